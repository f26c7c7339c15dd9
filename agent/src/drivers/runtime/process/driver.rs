//! The agent's side of the process runtime. It keeps nothing in memory that is not on disk, but what
//! it saw last; what it has beside that are tasks waiting for monitors to end, to tell subscribers.

use std::collections::BTreeMap;
use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use nix::libc;
use tokio::io::AsyncReadExt;
use tokio::process::Command;
use tokio::sync::broadcast;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::drivers::runtime::spec::{is_task_id, parse_signal};
use crate::drivers::runtime::{
    LogQuery, LogStream, ObservedTask, ProbeOutcome, Runtime, RuntimeError, RuntimeSpec, RuntimeState,
    StartFailure, StartStage, TaskEnded, TaskExit,
};
use crate::netns::sys;

use super::cgroup::{Cgroup, Cgroups};
use super::record::{Launch, Phase, Status, TaskDir, boot_id, is_damage, is_watched_from};
use super::tasks::{Tasks, cgroup_failed, io_failed};
use super::{ProcessConfig, SHIM, follow};

/// How many ends of tasks a slow subscriber may be behind before it must observe instead.
const ENDED_BACKLOG: usize = 1024;
/// How long all of a task may take to be gone after SIGKILL.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a program may take to be gone after SIGKILL before its monitor is killed too.
const PROGRAM_KILL_TIMEOUT: Duration = Duration::from_secs(2);

/// Runs host programs as tasks.
#[derive(Clone, Debug)]
pub struct ProcessRuntime {
    tasks: Arc<Tasks>,
    /// Tasks as they were last seen: one that can't be looked at has not gone for that.
    seen: Arc<Mutex<BTreeMap<String, ObservedTask>>>,
}

impl ProcessRuntime {
    /// Opens the runtime and takes on what an earlier agent left: running tasks are waited for again, half-made
    /// ones cleared away. Changes nothing about tasks that run. To be called inside a tokio runtime.
    pub fn open(config: ProcessConfig) -> Result<Self, RuntimeError> {
        let failed = |action, path: &Path| io_failed("(all)", action, path);
        let mut make = DirBuilder::new();
        make.recursive(true)
            .mode(0o711)
            .create(&config.tasks_dir)
            .map_err(failed("make", &config.tasks_dir))?;
        let cgroups = Cgroups::detect(&config.cgroup).map_err(cgroup_failed("(all)"))?;
        let boot = boot_id().map_err(failed("read", Path::new("/proc/sys/kernel/random/boot_id")))?;
        let runtime = Self {
            tasks: Arc::new(Tasks {
                config,
                cgroups,
                boot,
                ended: broadcast::channel(ENDED_BACKLOG).0,
                watched: Mutex::default(),
                unwritten: Mutex::default(),
                closing: CancellationToken::new(),
            }),
            seen: Arc::default(),
        };
        for task in runtime.tasks.list()? {
            // The others are not to suffer from one whose files can't be read or removed.
            if let Err(error) = runtime.adopt(&task) {
                tracing::warn!(task, error = &error as &dyn std::error::Error, "task not taken on");
            }
        }
        runtime.kill_orphans()?;
        Ok(runtime)
    }

    fn adopt(&self, task: &str) -> Result<(), RuntimeError> {
        let dir = self.tasks.dir(task);
        let is_prepared = match dir.launch() {
            Ok(launch) => launch.is_some(),
            Err(error) if is_damage(&error) => {
                let lock = dir.lock().map_err(io_failed(task, "lock", dir.path()))?;
                tracing::warn!(task, %error, running = lock.is_none(), "unreadable task record");
                // With a monitor it is no remains of a power cut, and nothing we dare to remove.
                lock.is_none()
            }
            Err(error) => return Err(io_failed(task, "read", dir.path())(error)),
        };
        if !is_prepared {
            if !self.tasks.cgroups.group(task).try_remove().map_err(cgroup_failed(task))? {
                tracing::warn!(task, "remains of a task still run; they are killed, their directory stays");
                return Ok(());
            }
            return dir.remove().map_err(io_failed(task, "remove", dir.path()));
        }
        if let RuntimeState::Running { .. } = self.tasks.state(task)? {
            self.watch(task)?;
        }
        Ok(())
    }

    /// Kills tasks of ours that nothing is known about: somebody removed the state directory under them. Their
    /// monitors still name it, so tasks of a node with the same control group name by mistake are told apart.
    fn kill_orphans(&self) -> Result<(), RuntimeError> {
        let cgroups = &self.tasks.cgroups;
        let tasks_dir = &self.tasks.config.tasks_dir;
        for task in cgroups.orphans(&self.tasks.list()?).map_err(cgroup_failed("(all)"))? {
            let group = cgroups.group(&task);
            let processes = group.processes().map_err(cgroup_failed(&task))?;
            if processes.iter().any(|pid| is_watched_from(*pid, tasks_dir)) {
                tracing::warn!(task, "a running task that nothing is known about is killed");
                group.try_remove().map_err(cgroup_failed(&task))?;
            }
        }
        Ok(())
    }

    /// Removes what the runtime keeps for itself, once its tasks are removed.
    pub fn remove_own(&self) -> Result<(), RuntimeError> {
        self.kill_orphans()?;
        self.tasks.cgroups.remove_empty().map_err(cgroup_failed("(all)"))?;
        let tasks_dir = &self.tasks.config.tasks_dir;
        match std::fs::remove_dir(tasks_dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(io_failed("(all)", "remove", tasks_dir)(error))
            }
            _ => Ok(()),
        }
    }

    /// Waits in the background for a running task's end, to tell subscribers.
    fn watch(&self, task: &str) -> Result<(), RuntimeError> {
        if !self.tasks.watched().insert(task.to_owned()) {
            return Ok(());
        }
        let dir = self.tasks.dir(task);
        let status = dir.status().map_err(io_failed(task, "read", dir.path()))?;
        // Weak: waiting for a task must not keep the runtime.
        let (tasks, closing) = (Arc::downgrade(&self.tasks), self.tasks.closing.clone());
        let task = task.to_owned();
        let span = tracing::info_span!("task", task);
        let watching = async move {
            if let Some(status) = status {
                monitor_ended(&status).await;
            }
            let Some(tasks) = tasks.upgrade() else { return };
            tasks.watched().remove(&task);
            match tasks.state(&task) {
                Ok(RuntimeState::Exited(exit)) => {
                    tracing::info!(code = exit.code(), out_of_memory = exit.out_of_memory, "task ended");
                    // Nobody listening is fine: the end is in `observe`.
                    let _receivers = tasks.ended.send(TaskEnded { task, exit });
                }
                Ok(state) => tracing::debug!(?state, "task removed while it was waited for"),
                Err(error) => {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "cannot tell how the task ended"
                    );
                }
            }
        };
        tokio::spawn(closing.run_until_cancelled_owned(watching).instrument(span));
        Ok(())
    }

    /// Starts a monitor and returns what it says about the start.
    async fn launch(&self, task: &str, dir: &TaskDir, launch: &Launch) -> Result<Phase, RuntimeError> {
        let tasks = Arc::clone(&self.tasks);
        let (group, limits) = (launch.cgroup.clone(), launch.spec.limits);
        blocking(task, move || tasks.cgroups.ensure(&group, limits)).await?.map_err(cgroup_failed(task))?;
        let executable = &self.tasks.config.executable;
        let mut shim = Command::new(executable)
            .arg(SHIM)
            .arg(dir.path())
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(io_failed(task, "execute", executable))?;
        let mut answer = Vec::new();
        let answered = async {
            if let Some(stdout) = &mut shim.stdout {
                stdout.read_to_end(&mut answer).await?;
            }
            shim.wait().await
        };
        let after = self.tasks.config.start_timeout;
        match timeout(after, answered).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return Err(io_failed(task, "read the answer of", executable)(error)),
            Err(_) => {
                self.abandon(task, dir).await?;
                return Err(RuntimeError::Timeout { task: task.to_owned(), action: "start", after });
            }
        }
        Ok(serde_json::from_slice(&answer).unwrap_or_else(|_| Phase::Rejected {
            failure: StartFailure::new(StartStage::Monitor, "the monitor ended without an answer"),
        }))
    }

    /// Kills a task whose start hangs.
    async fn abandon(&self, task: &str, dir: &TaskDir) -> Result<(), RuntimeError> {
        if let Some(status) = dir.status().map_err(io_failed(task, "read", dir.path()))? {
            status.monitor.signal(libc::SIGKILL).map_err(io_failed(task, "kill", dir.path()))?;
            monitor_ended(&status).await;
        }
        self.tasks.state(task).map(drop)
    }

    /// Waits for the end of a start that is under way, begun by an agent before us.
    async fn join_start(&self, task: &str) -> Result<Option<RuntimeState>, RuntimeError> {
        let dir = self.tasks.dir(task);
        let joined = async {
            loop {
                let state = self.tasks.state(task)?;
                let status = dir.status().map_err(io_failed(task, "read", dir.path()))?;
                if status.is_none() || state != RuntimeState::Prepared {
                    return Ok(status.map(|_| state));
                }
                sleep(Duration::from_millis(20)).await;
            }
        };
        let after = self.tasks.config.start_timeout;
        timeout(after, joined).await.unwrap_or(Err(RuntimeError::Timeout {
            task: task.to_owned(),
            action: "start",
            after,
        }))
    }
}

#[async_trait]
impl Runtime for ProcessRuntime {
    fn name(&self) -> &'static str {
        "process"
    }

    async fn prepare(&self, spec: &RuntimeSpec) -> Result<(), RuntimeError> {
        spec.validate()?;
        let (task, tasks) = (spec.task.as_str(), &self.tasks);
        let dir = tasks.dir(task);
        match dir.launch().map_err(io_failed(task, "read", dir.path()))? {
            Some(launch) if launch.spec == *spec => return Ok(()),
            Some(_) => return Err(RuntimeError::SpecChanged(task.to_owned())),
            None => {}
        }
        tasks.cgroups.check(spec.limits).map_err(cgroup_failed(task))?;
        let launch = Launch {
            spec: spec.clone(),
            cgroup: tasks.cgroups.group_within(task, spec.limits),
            hidden: tasks.config.hidden.clone(),
            log_bytes: tasks.config.log_bytes_per_task,
            open_files: tasks.config.open_files,
        };
        dir.create(&launch).map_err(io_failed(task, "write", dir.path()))
    }

    async fn start(&self, task: &str) -> Result<RuntimeState, RuntimeError> {
        let launch = self.tasks.prepared(task)?;
        let dir = self.tasks.dir(task);
        if let Some(state) = self.join_start(task).await? {
            if matches!(state, RuntimeState::Running { .. }) {
                self.watch(task)?;
            }
            return accepted(task, state);
        }
        match self.launch(task, &dir, &launch).await? {
            Phase::Rejected { failure } => {
                // Refused before the monitor could write it down.
                if dir.status().map_err(io_failed(task, "read", dir.path()))?.is_none() {
                    tracing::warn!(task, reason = %failure, "task not started; it may be started again");
                }
                Err(RuntimeError::Rejected { task: task.to_owned(), failure })
            }
            Phase::Starting | Phase::Running { .. } | Phase::Exited { .. } => {
                tracing::info!(task, "task started");
                self.watch(task)?;
                accepted(task, self.tasks.state(task)?)
            }
        }
    }

    async fn observe(&self) -> Result<Vec<ObservedTask>, RuntimeError> {
        let mut observed = BTreeMap::new();
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        for task in self.tasks.list()? {
            let looked = self
                .tasks
                .prepared(&task)
                .and_then(|launch| Ok(ObservedTask { spec: launch.spec, state: self.tasks.state(&task)? }));
            match looked {
                Ok(found) => drop(observed.insert(task, found)),
                // Being made or removed.
                Err(RuntimeError::NotFound(_)) => {}
                Err(error) => {
                    tracing::warn!(task, error = &error as &dyn std::error::Error, "task can't be observed");
                    observed.extend(seen.remove(&task).map(|last| (task, last)));
                }
            }
        }
        seen.clone_from(&observed);
        Ok(observed.into_values().collect())
    }

    async fn state(&self, task: &str) -> Result<Option<RuntimeState>, RuntimeError> {
        match self.tasks.prepared(task) {
            Ok(_) => self.tasks.state(task).map(Some),
            Err(RuntimeError::NotFound(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn subscribe(&self) -> broadcast::Receiver<TaskEnded> {
        self.tasks.ended.subscribe()
    }

    async fn wait(&self, task: &str) -> Result<TaskExit, RuntimeError> {
        self.tasks.prepared(task)?;
        let dir = self.tasks.dir(task);
        loop {
            match self.tasks.state(task)? {
                RuntimeState::Exited(exit) => return Ok(exit),
                RuntimeState::Prepared => return Err(RuntimeError::NotStarted(task.to_owned())),
                RuntimeState::Rejected(failure) => {
                    return Err(RuntimeError::Rejected { task: task.to_owned(), failure });
                }
                RuntimeState::Running { .. } => {}
            }
            if let Some(status) = dir.status().map_err(io_failed(task, "read", dir.path()))? {
                monitor_ended(&status).await;
            }
        }
    }

    async fn signal(&self, task: &str, signal: &str) -> Result<(), RuntimeError> {
        self.tasks.prepared(task)?;
        let number = parse_signal(signal).map_err(|reason| RuntimeError::InvalidSpec {
            task: task.to_owned(),
            field: "signal",
            reason,
        })?;
        // A task that ended meanwhile has got the signal too late, not wrongly.
        self.tasks.signal_program(task, number as i32).map(drop)
    }

    async fn stop(&self, task: &str, grace: Duration) -> Result<TaskExit, RuntimeError> {
        let launch = self.tasks.prepared(task)?;
        if !grace.is_zero() && matches!(self.tasks.state(task)?, RuntimeState::Running { .. }) {
            self.signal(task, &launch.spec.stop_signal).await?;
            if let Ok(ended) = timeout(grace, self.wait(task)).await {
                return ended;
            }
        }
        self.tasks.signal_program(task, libc::SIGKILL)?;
        if let Ok(ended) = timeout(PROGRAM_KILL_TIMEOUT, self.wait(task)).await {
            return ended;
        }
        // With the first process of a namespace the kernel kills all others.
        self.tasks.kill_monitor(task)?;
        timeout(KILL_TIMEOUT, self.wait(task)).await.unwrap_or(Err(RuntimeError::Timeout {
            task: task.to_owned(),
            action: "end after it was killed",
            after: KILL_TIMEOUT,
        }))
    }

    async fn remove(&self, task: &str) -> Result<(), RuntimeError> {
        let dir = self.tasks.dir(task);
        match self.stop(task, Duration::ZERO).await {
            Ok(_) | Err(RuntimeError::NotStarted(_) | RuntimeError::Rejected { .. }) => {}
            Err(RuntimeError::NotFound(_)) if is_task_id(task) => {}
            Err(error) => return Err(error),
        }
        if let Some(status) = dir.status().map_err(io_failed(task, "read", dir.path()))?
            && status.boot == self.tasks.boot
        {
            // It has said its last word and is about to go.
            let gone = timeout(KILL_TIMEOUT, monitor_ended(&status)).await;
            gone.map_err(|_| RuntimeError::Timeout {
                task: task.to_owned(),
                action: "leave its monitor",
                after: KILL_TIMEOUT,
            })?;
        }
        // The group of now and, should the host's hierarchies have changed, the one of then.
        let launched = dir.launch().map_err(io_failed(task, "read", dir.path()))?;
        let groups: Vec<Cgroup> = launched
            .map(|launch| launch.cgroup)
            .into_iter()
            .chain([self.tasks.cgroups.group(task)])
            .collect();
        for group in groups {
            remove_group(task, group).await?;
        }
        dir.remove().map_err(io_failed(task, "remove", dir.path()))?;
        self.tasks.unwritten().remove(task);
        Ok(())
    }

    async fn probe(
        &self,
        task: &str,
        command: &[String],
        limit: Duration,
    ) -> Result<ProbeOutcome, RuntimeError> {
        self.tasks.prepared(task)?;
        let executable = &self.tasks.config.executable;
        super::probe::probe(executable, task, &self.tasks.dir(task), command, limit).await
    }

    async fn logs(&self, task: &str, query: LogQuery) -> Result<LogStream, RuntimeError> {
        self.tasks.prepared(task)?;
        let tasks = Arc::clone(&self.tasks);
        let (owned, dir) = (task.to_owned(), self.tasks.dir(task));
        let is_over = move || {
            // A task that was removed under the reader is over too.
            tasks.prepared(&owned).is_err() || tasks.state(&owned).is_ok_and(|state| state.is_final())
        };
        Ok(follow::stream(task.to_owned(), dir, query, is_over))
    }
}

/// Removes a control group when the last process that was killed has left it.
async fn remove_group(task: &str, group: Cgroup) -> Result<(), RuntimeError> {
    let removed = async {
        loop {
            let group = group.clone();
            if blocking(task, move || group.try_remove()).await?.map_err(cgroup_failed(task))? {
                return Ok(());
            }
            sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(KILL_TIMEOUT, removed).await.unwrap_or(Err(RuntimeError::Timeout {
        task: task.to_owned(),
        action: "leave its control group",
        after: KILL_TIMEOUT,
    }))
}

/// Returns when the monitor has ended, at once if it had.
async fn monitor_ended(status: &Status) {
    let ended = match status.monitor.open() {
        Ok(None) => return,
        Ok(Some(pidfd)) => sys::pidfd_ended(pidfd).await,
        Err(error) => Err(error),
    };
    // Without a descriptor left for it, look again and again.
    while ended.is_err() && status.monitor.is_alive() {
        sleep(Duration::from_millis(20)).await;
    }
}

fn accepted(task: &str, state: RuntimeState) -> Result<RuntimeState, RuntimeError> {
    match state {
        RuntimeState::Rejected(failure) => Err(RuntimeError::Rejected { task: task.to_owned(), failure }),
        other => Ok(other),
    }
}

/// Runs what may block for more than a moment where it blocks nobody.
async fn blocking<T: Send + 'static>(
    task: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, RuntimeError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| {
        io_failed(task, "work in the background for", Path::new("."))(io::Error::other(error))
    })
}

#[cfg(test)]
mod tests {
    use super::super::record::ProcessId;
    use super::*;
    use crate::drivers::runtime::ExitCause;

    /// A process that is no more.
    fn gone() -> ProcessId {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().expect("started");
        let id = ProcessId::of(i32::try_from(child.id()).expect("fits")).expect("lives");
        child.kill().and_then(|()| child.wait()).expect("killed");
        id
    }

    #[tokio::test]
    async fn an_end_that_can_t_be_written_down_is_told_and_keeps_nothing_else() {
        let dir = tempfile::tempdir().expect("a directory");
        let open = || ProcessRuntime::open(ProcessConfig::new(dir.path(), dir.path(), "shoal-no-such-group"));
        let runtime = open().expect("opens");
        let lay_down = |task: &str| {
            let launch = Launch {
                spec: RuntimeSpec::new(task, vec!["true".to_owned()], "/run/x"),
                cgroup: runtime.tasks.cgroups.group(task),
                hidden: vec![],
                log_bytes: 0,
                open_files: None,
            };
            let dir = runtime.tasks.dir(task);
            dir.create(&launch).expect("laid down");
            dir
        };
        let (lost, broken) = (lay_down("lost"), lay_down("broken"));
        lay_down("fresh");
        let phase = Phase::Running { started_at_ms: 1 };
        let status = Status { boot: boot_id().expect("a boot"), monitor: gone(), program: None, phase };
        lost.set_status(&status).expect("written");
        // One file can't be written, and of another task one can't be read.
        let obstacle = lost.file("status.json.new");
        std::fs::create_dir(&obstacle).expect("made");
        std::fs::create_dir(broken.file("status.json")).expect("made");

        let observed = runtime.observe().await.expect("of the others");
        let state = |task: &str| observed.iter().find(|o| o.spec.task == task).map(|o| o.state.clone());
        assert_eq!((state("broken"), state("fresh")), (None, Some(RuntimeState::Prepared)));
        let Some(RuntimeState::Exited(exit)) = state("lost") else { panic!("{observed:?}") };
        assert_eq!(exit.cause, ExitCause::Lost);
        assert_eq!(runtime.observe().await.expect("the same"), observed);
        open().expect("starts all the same");
        // One that was seen before is as it was then.
        let fresh = runtime.tasks.dir("fresh").file("status.json");
        std::fs::create_dir(&fresh).expect("made");
        assert_eq!(runtime.observe().await.expect("the same"), observed);
        std::fs::remove_dir(&fresh).expect("removed");

        std::fs::remove_dir(&obstacle).expect("removed");
        assert_eq!(runtime.observe().await.expect("the same"), observed);
        let written = lost.status().expect("read").expect("there");
        assert_eq!(written.phase, Phase::Exited { exit });
    }
}
