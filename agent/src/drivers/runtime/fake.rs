//! A runtime in memory that keeps the promises of [`Runtime`], for tests of what drives one. Programs are not
//! run: a test ends them with [`FakeRuntime::end`] and makes starts fail with [`FakeRuntime::reject_next`].

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use futures_util::stream;
use tokio::sync::{broadcast, watch};

use super::spec::parse_signal;
use super::{
    ExitCause, LogEntry, LogQuery, LogSource, LogStream, ObservedTask, ProbeEnd, ProbeOutcome, Runtime,
    RuntimeError, RuntimeSpec, RuntimeState, StartFailure, TaskEnded, TaskExit,
};

/// Tasks that only pretend to run.
#[derive(Debug)]
pub struct FakeRuntime {
    state: Mutex<State>,
    ended: broadcast::Sender<TaskEnded>,
    changed: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct State {
    tasks: BTreeMap<String, FakeTask>,
    reject: BTreeMap<String, StartFailure>,
    clock_ms: u64,
    next_pid: i32,
    ignores_stop: bool,
    probe: Option<ProbeOutcome>,
    probe_error: Option<i32>,
    writes: usize,
}

#[derive(Debug)]
struct FakeTask {
    spec: RuntimeSpec,
    state: RuntimeState,
    log: Vec<LogEntry>,
    signals: Vec<String>,
}

impl Default for FakeRuntime {
    fn default() -> Self {
        Self {
            state: Mutex::new(State { next_pid: 100, ..State::default() }),
            ended: broadcast::channel(64).0,
            changed: watch::channel(()).0,
        }
    }
}

impl FakeRuntime {
    /// A runtime without tasks.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the time, in milliseconds, that starts and ends are stamped with.
    pub fn set_clock(&self, now_ms: u64) {
        self.lock().clock_ms = now_ms;
    }

    /// Makes the next start of a task fail.
    pub fn reject_next(&self, task: &str, failure: StartFailure) {
        self.lock().reject.insert(task.to_owned(), failure);
    }

    /// Makes tasks ignore their stop signal, so that a stop takes the whole grace period.
    pub fn ignore_stop_signals(&self, ignore: bool) {
        self.lock().ignores_stop = ignore;
    }

    /// What programs that are run beside tasks come to from now on; at first they exit with 0.
    pub fn answer_probes(&self, outcome: ProbeOutcome) {
        let mut state = self.lock();
        (state.probe, state.probe_error) = (Some(outcome), None);
    }

    /// Programs can't be run beside tasks from now on, for this reason.
    pub fn refuse_probes(&self, errno: i32) {
        self.lock().probe_error = Some(errno);
    }

    /// Ends a running task. Returns whether it ran.
    pub fn end(&self, task: &str, cause: ExitCause) -> bool {
        let ended = {
            let mut state = self.lock();
            let exit = TaskExit { cause, out_of_memory: false, finished_at_ms: state.clock_ms };
            match state.tasks.get_mut(task) {
                Some(found) if matches!(found.state, RuntimeState::Running { .. }) => {
                    found.state = RuntimeState::Exited(exit.clone());
                    Some(TaskEnded { task: task.to_owned(), exit })
                }
                _ => None,
            }
        };
        let Some(ended) = ended else { return false };
        // Nobody listening is fine: the end is in `observe`.
        let _receivers = self.ended.send(ended);
        self.changed.send_replace(());
        true
    }

    /// Adds a line to a task's log.
    pub fn print(&self, task: &str, line: &str) {
        let mut state = self.lock();
        let at = SystemTime::UNIX_EPOCH + Duration::from_millis(state.clock_ms);
        if let Some(found) = state.tasks.get_mut(task) {
            let (source, line) = (LogSource::Stdout, line.as_bytes().to_vec());
            found.log.push(LogEntry { at, source, line, partial: false });
        }
    }

    /// The signals a task was sent, without those of a stop.
    pub fn signals(&self, task: &str) -> Vec<String> {
        self.lock().tasks.get(task).map(|found| found.signals.clone()).unwrap_or_default()
    }

    /// How many operations changed something so far.
    pub fn writes(&self) -> usize {
        self.lock().writes
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn state_of(&self, task: &str) -> Result<RuntimeState, RuntimeError> {
        let state = self.lock();
        let found = state.tasks.get(task).ok_or_else(|| RuntimeError::NotFound(task.to_owned()))?;
        Ok(found.state.clone())
    }
}

#[async_trait]
impl Runtime for FakeRuntime {
    fn name(&self) -> &'static str {
        "fake"
    }

    async fn prepare(&self, spec: &RuntimeSpec) -> Result<(), RuntimeError> {
        spec.validate()?;
        let mut state = self.lock();
        match state.tasks.get(&spec.task) {
            Some(found) if found.spec == *spec => Ok(()),
            Some(_) => Err(RuntimeError::SpecChanged(spec.task.clone())),
            None => {
                let task = FakeTask {
                    spec: spec.clone(),
                    state: RuntimeState::Prepared,
                    log: Vec::new(),
                    signals: Vec::new(),
                };
                state.tasks.insert(spec.task.clone(), task);
                state.writes += 1;
                Ok(())
            }
        }
    }

    async fn start(&self, task: &str) -> Result<RuntimeState, RuntimeError> {
        let mut state = self.lock();
        let failure = state.reject.remove(task);
        let started_at_ms = state.clock_ms;
        let pid = state.next_pid;
        let found = state.tasks.get_mut(task).ok_or_else(|| RuntimeError::NotFound(task.to_owned()))?;
        if found.state == RuntimeState::Prepared {
            found.state = match failure {
                Some(failure) => RuntimeState::Rejected(failure),
                None => RuntimeState::Running { pid, started_at_ms },
            };
            let started = found.state.clone();
            state.next_pid += 1;
            state.writes += 1;
            return rejected(task, started);
        }
        rejected(task, found.state.clone())
    }

    async fn observe(&self) -> Result<Vec<ObservedTask>, RuntimeError> {
        let state = self.lock();
        Ok(state
            .tasks
            .values()
            .map(|task| ObservedTask { spec: task.spec.clone(), state: task.state.clone() })
            .collect())
    }

    async fn state(&self, task: &str) -> Result<Option<RuntimeState>, RuntimeError> {
        Ok(self.lock().tasks.get(task).map(|found| found.state.clone()))
    }

    fn subscribe(&self) -> broadcast::Receiver<TaskEnded> {
        self.ended.subscribe()
    }

    async fn wait(&self, task: &str) -> Result<TaskExit, RuntimeError> {
        let mut changed = self.changed.subscribe();
        loop {
            match self.state_of(task)? {
                RuntimeState::Exited(exit) => return Ok(exit),
                RuntimeState::Prepared => return Err(RuntimeError::NotStarted(task.to_owned())),
                RuntimeState::Rejected(failure) => {
                    return Err(RuntimeError::Rejected { task: task.to_owned(), failure });
                }
                RuntimeState::Running { .. } => {}
            }
            // The sender lives in `self`: this can't fail while we are here.
            let _closed = changed.changed().await;
        }
    }

    async fn signal(&self, task: &str, signal: &str) -> Result<(), RuntimeError> {
        parse_signal(signal).map_err(|reason| RuntimeError::InvalidSpec {
            task: task.to_owned(),
            field: "signal",
            reason,
        })?;
        let mut state = self.lock();
        let found = state.tasks.get_mut(task).ok_or_else(|| RuntimeError::NotFound(task.to_owned()))?;
        found.signals.push(signal.to_owned());
        Ok(())
    }

    async fn stop(&self, task: &str, grace: Duration) -> Result<TaskExit, RuntimeError> {
        if let RuntimeState::Running { .. } = self.state_of(task)? {
            let ignores = self.lock().ignores_stop;
            if ignores && tokio::time::timeout(grace, self.wait(task)).await.is_err() {
                self.end(task, ExitCause::Signal { signal: 9 });
            } else {
                self.end(task, ExitCause::Signal { signal: 15 });
            }
            self.lock().writes += 1;
        }
        self.wait(task).await
    }

    async fn remove(&self, task: &str) -> Result<(), RuntimeError> {
        self.end(task, ExitCause::Signal { signal: 9 });
        let mut state = self.lock();
        if state.tasks.remove(task).is_some() {
            state.writes += 1;
        }
        Ok(())
    }

    async fn probe(
        &self,
        task: &str,
        _command: &[String],
        _limit: Duration,
    ) -> Result<ProbeOutcome, RuntimeError> {
        match self.state_of(task)? {
            RuntimeState::Running { .. } => {
                if let Some(errno) = self.lock().probe_error {
                    return Err(RuntimeError::Io {
                        task: task.to_owned(),
                        action: "execute",
                        path: "/proc/self/exe".into(),
                        source: std::io::Error::from_raw_os_error(errno),
                    });
                }
                let good = ProbeOutcome { end: ProbeEnd::Exited { code: 0 }, output: Vec::new() };
                Ok(self.lock().probe.clone().unwrap_or(good))
            }
            _ => Err(RuntimeError::NotStarted(task.to_owned())),
        }
    }

    async fn logs(&self, task: &str, query: LogQuery) -> Result<LogStream, RuntimeError> {
        let state = self.lock();
        let found = state.tasks.get(task).ok_or_else(|| RuntimeError::NotFound(task.to_owned()))?;
        let wanted = |entry: &&LogEntry| query.since.is_none_or(|since| entry.at >= since);
        let mut entries: Vec<_> = found.log.iter().filter(wanted).cloned().collect();
        if let Some(tail) = query.tail {
            entries.drain(..entries.len().saturating_sub(tail));
        }
        Ok(Box::pin(stream::iter(entries.into_iter().map(Ok))))
    }
}

fn rejected(task: &str, state: RuntimeState) -> Result<RuntimeState, RuntimeError> {
    match state {
        RuntimeState::Rejected(failure) => Err(RuntimeError::Rejected { task: task.to_owned(), failure }),
        other => Ok(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drivers::runtime::StartStage;

    fn spec(task: &str) -> RuntimeSpec {
        RuntimeSpec::new(task, vec!["true".to_owned()], "/run/x")
    }

    #[tokio::test]
    async fn a_task_lives_once() {
        let runtime = FakeRuntime::new();
        let mut ends = runtime.subscribe();
        runtime.prepare(&spec("a")).await.expect("prepared");
        runtime.prepare(&spec("a")).await.expect("prepared again");
        assert!(matches!(runtime.wait("a").await, Err(RuntimeError::NotStarted(_))));
        runtime.start("a").await.expect("started");
        assert!(runtime.end("a", ExitCause::Code { code: 3 }));
        assert_eq!(runtime.wait("a").await.expect("ended").code(), 3);
        assert_eq!(ends.recv().await.expect("told").task, "a");
        assert!(matches!(runtime.start("a").await, Ok(RuntimeState::Exited(_))));
        runtime.remove("a").await.expect("removed");
        runtime.remove("a").await.expect("removed again");
        assert_eq!(runtime.observe().await.expect("observed"), []);
    }

    #[tokio::test]
    async fn a_rejected_start_keeps_its_reason() {
        let runtime = FakeRuntime::new();
        runtime.prepare(&spec("a")).await.expect("prepared");
        runtime.reject_next("a", StartFailure::new(StartStage::Program, "no such program"));
        for _ in 0..2 {
            let refused = runtime.start("a").await;
            assert!(matches!(refused, Err(RuntimeError::Rejected { .. })), "{refused:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_stop_takes_the_grace_period_only_if_it_must() {
        let runtime = FakeRuntime::new();
        for (task, ignores, signal) in [("a", false, 15), ("b", true, 9)] {
            runtime.prepare(&spec(task)).await.expect("prepared");
            runtime.start(task).await.expect("started");
            runtime.ignore_stop_signals(ignores);
            let exit = runtime.stop(task, Duration::from_secs(10)).await.expect("stopped");
            assert_eq!(exit.cause, ExitCause::Signal { signal });
        }
    }
}
