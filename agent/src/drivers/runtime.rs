//! What runs tasks. The reconciler needs a task runtime to prepare, start, observe, stop and remove; this is
//! that need as a trait, with its words. [`process::ProcessRuntime`] runs host programs;
//! [`fake::FakeRuntime`] keeps the same promises in memory, for tests.
//!
//! Promises of every runtime:
//! - a task outlives the agent: nothing about it hangs on our process; [`Runtime::observe`] after a restart
//!   finds what runs and what ended meanwhile;
//! - operations are idempotent: preparing what is prepared, starting what runs, stopping what ended and
//!   removing what is gone succeed;
//! - a task that can't be started is [`RuntimeState::Rejected`] with the reason, not an exit code;
//! - after [`Runtime::remove`] nothing of the task is left.

pub mod fake;
pub mod process;
pub mod spec;

use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use futures_util::Stream;
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;

pub use spec::{Limits, RuntimeSpec, Ulimit};

/// Something that runs tasks in namespaces the agent made.
#[async_trait]
pub trait Runtime: Send + Sync + 'static {
    /// The runtime's name, as in a service spec (`process`).
    fn name(&self) -> &'static str;

    /// Checks a spec and lays down what starting needs. Preparing the same spec again changes nothing;
    /// another spec under an id in use is [`RuntimeError::SpecChanged`], as tasks are immutable.
    async fn prepare(&self, spec: &RuntimeSpec) -> Result<(), RuntimeError>;

    /// Starts a prepared task and returns once its program runs, or with [`RuntimeError::Rejected`]. A task
    /// that was started before is not started again: its state is returned.
    async fn start(&self, task: &str) -> Result<RuntimeState, RuntimeError>;

    /// Everything this runtime holds, whoever started it, sorted by task id.
    async fn observe(&self) -> Result<Vec<ObservedTask>, RuntimeError>;

    /// The state of one task, if the runtime holds it.
    async fn state(&self, task: &str) -> Result<Option<RuntimeState>, RuntimeError>;

    /// Ends of tasks, as they happen, from now on. Ends that a slow receiver misses are in [`Self::observe`].
    fn subscribe(&self) -> broadcast::Receiver<TaskEnded>;

    /// Waits for a started task to end. Cancel safe.
    async fn wait(&self, task: &str) -> Result<TaskExit, RuntimeError>;

    /// Sends a signal, by name (`SIGHUP`) or number, to the task's first process.
    async fn signal(&self, task: &str, signal: &str) -> Result<(), RuntimeError>;

    /// Asks the task to end with its stop signal, kills all of it when the grace period is over, and returns
    /// how it ended. Safe to cancel and to repeat; a repeat with less grace kills earlier.
    async fn stop(&self, task: &str, grace: Duration) -> Result<TaskExit, RuntimeError>;

    /// Removes a task and everything of it, killing it first if it still runs.
    async fn remove(&self, task: &str) -> Result<(), RuntimeError>;

    /// Runs another program beside the task's own for at most `limit`: in its namespaces and limits, as its user, with
    /// its environment. When that time is over, or the program ends, all of its process group is killed.
    async fn probe(
        &self,
        task: &str,
        command: &[String],
        limit: Duration,
    ) -> Result<ProbeOutcome, RuntimeError>;

    /// What the task wrote to stdout and stderr, oldest first.
    async fn logs(&self, task: &str, query: LogQuery) -> Result<LogStream, RuntimeError>;
}

/// A task as a runtime sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct ObservedTask {
    /// What was asked for; the id is in it.
    pub spec: RuntimeSpec,
    /// What became of it.
    pub state: RuntimeState,
}

/// Where a task stands, with the evidence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum RuntimeState {
    /// Ready to be started.
    Prepared,
    /// Its program runs.
    Running {
        /// The process id of the program on the host.
        pid: i32,
        /// Since when, in milliseconds of Unix time.
        started_at_ms: u64,
    },
    /// Its program ended.
    Exited(TaskExit),
    /// Its program could not be started.
    Rejected(StartFailure),
}

impl RuntimeState {
    /// Whether the task has ended or never ran, for good.
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Exited(_) | Self::Rejected(_))
    }
}

/// How a task's program ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskExit {
    /// By itself, by a signal, or unseen.
    pub cause: ExitCause,
    /// Whether the kernel killed something of the task for want of memory.
    pub out_of_memory: bool,
    /// When it ended (or was found ended), in milliseconds of Unix time.
    pub finished_at_ms: u64,
}

impl TaskExit {
    /// The code a shell would report: 128 + signal when killed, 137 when nobody saw the end.
    pub fn code(&self) -> i32 {
        match self.cause {
            ExitCause::Code { code } => code,
            ExitCause::Signal { signal } => 128 + signal,
            ExitCause::Lost => 137,
        }
    }

    /// Whether the program ended by itself and was content.
    pub fn is_success(&self) -> bool {
        self.cause == ExitCause::Code { code: 0 }
    }
}

/// Why a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "cause", rename_all = "snake_case")]
pub enum ExitCause {
    /// It exited.
    Code {
        /// With this code.
        code: i32,
    },
    /// It was killed.
    Signal {
        /// By this signal.
        signal: i32,
    },
    /// It is gone and nobody saw how: its monitor was killed, or the machine restarted.
    Lost,
}

/// Why a program could not be started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{reason}")]
pub struct StartFailure {
    /// What was being done.
    pub stage: StartStage,
    /// What went wrong, for the operator.
    pub reason: String,
}

impl StartFailure {
    /// A failure at a stage.
    pub fn new(stage: StartStage, reason: impl Into<String>) -> Self {
        Self { stage, reason: reason.into() }
    }

    /// Whether the same spec may start on another try: what the spec names may be wrong, what the node does
    /// for it may recover.
    pub fn is_retryable(&self) -> bool {
        matches!(self.stage, StartStage::Namespaces | StartStage::Limits | StartStage::Monitor)
    }
}

/// The step of starting a task that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StartStage {
    /// Entering or making namespaces and mounts.
    Namespaces,
    /// Control group or resource limits.
    Limits,
    /// Changing to the task's root directory.
    Root,
    /// Finding the user or becoming it.
    User,
    /// Setting the capabilities.
    Capabilities,
    /// Changing to the working directory.
    Workdir,
    /// Finding or executing the program.
    Program,
    /// Starting the task's monitor.
    Monitor,
}

/// What came of a program that was run beside a task's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeOutcome {
    /// How it ended.
    pub end: ProbeEnd,
    /// The last it wrote to stdout or stderr, a few hundred bytes; not necessarily UTF-8.
    pub output: Vec<u8>,
}

/// How a program that was run beside a task's ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "end", rename_all = "snake_case")]
pub enum ProbeEnd {
    /// It exited.
    Exited {
        /// With this code.
        code: i32,
    },
    /// It was killed by somebody else.
    Killed {
        /// By this signal.
        signal: i32,
    },
    /// It took too long and was killed.
    TimedOut,
    /// It could not be started.
    Failed {
        /// Why.
        reason: String,
    },
}

/// News that a task ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskEnded {
    /// The task's id.
    pub task: String,
    /// How.
    pub exit: TaskExit,
}

/// Which part of a task's log is wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogQuery {
    /// Only entries at or after this time.
    pub since: Option<SystemTime>,
    /// Only this many of the newest of those.
    pub tail: Option<usize>,
    /// Go on with new entries until the task ends.
    pub follow: bool,
}

/// Which stream a log entry was written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogSource {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// One line of a task's output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEntry {
    /// When it was read from the task.
    pub at: SystemTime,
    /// Where it was written to.
    pub source: LogSource,
    /// The line, without its newline; not necessarily UTF-8.
    pub line: Vec<u8>,
    /// Whether the line goes on in the next entry of this source: it was too long, or the task ended in it.
    pub partial: bool,
}

/// Log entries, as they are read. Dropping it ends the reading.
pub type LogStream = Pin<Box<dyn Stream<Item = Result<LogEntry, RuntimeError>> + Send>>;

/// What can go wrong with running tasks.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The spec asks for something impossible.
    #[error("task '{task}': {field}: {reason}")]
    InvalidSpec {
        /// The task's id.
        task: String,
        /// The field of [`RuntimeSpec`] that is wrong.
        field: &'static str,
        /// What is wrong and what to do.
        reason: String,
    },
    /// The runtime holds no such task.
    #[error("task '{0}' is not known to the runtime")]
    NotFound(String),
    /// The id is taken by a task with another spec.
    #[error("task '{0}' exists with another spec: tasks are immutable, remove it or use a new id")]
    SpecChanged(String),
    /// The task was never started.
    #[error("task '{0}' was not started")]
    NotStarted(String),
    /// The program could not be started.
    #[error("task '{task}' could not be started: {failure}")]
    Rejected {
        /// The task's id.
        task: String,
        /// Why.
        failure: StartFailure,
    },
    /// The task did not do what it was told in time.
    #[error("task '{task}' did not {action} within {} s", after.as_secs())]
    Timeout {
        /// The task's id.
        task: String,
        /// What was waited for.
        action: &'static str,
        /// How long.
        after: Duration,
    },
    /// A system call failed.
    #[error("task '{task}': cannot {action} {}", path.display())]
    Io {
        /// The task's id.
        task: String,
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A control group could not be made, filled or removed.
    #[error("task '{task}': control group")]
    Cgroup {
        /// The task's id.
        task: String,
        /// Why.
        #[source]
        source: process::CgroupError,
    },
}

impl RuntimeError {
    /// Whether trying again later may help. A wrong spec stays wrong.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::InvalidSpec { .. } | Self::SpecChanged(_) | Self::NotFound(_) | Self::NotStarted(_) => {
                false
            }
            Self::Rejected { failure, .. } => failure.is_retryable(),
            Self::Timeout { .. } | Self::Io { .. } | Self::Cgroup { .. } => true,
        }
    }
}
