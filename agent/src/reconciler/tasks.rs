//! Tasks: started, stopped and removed in the background, one operation at a time each; their states reported.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use shoal_types::TaskId;
use shoal_types::assignment::{AssignedTask, Assignment};
use shoal_types::object::{DesiredState, TaskState};
use tokio::sync::{broadcast, mpsc, watch};

use super::drain::Drains;
use super::report::{Evidence, Reports, chain};
use crate::drivers::runtime::{
    ObservedTask, Runtime, RuntimeError, RuntimeSpec, RuntimeState, StartFailure, TaskEnded, TaskExit,
};
use crate::health::{Checks, Subject};

/// Grace of a task whose spec is not known any more.
const DEFAULT_GRACE: Duration = Duration::from_secs(10);
/// Pause after an operation on a task failed.
const PAUSE: Duration = Duration::from_secs(1);

/// An operation on a task is done.
#[derive(Debug)]
pub(super) struct TaskEvent {
    task: TaskId,
    outcome: Result<(), RuntimeError>,
}

/// What is going on with the tasks.
pub(super) struct Tasks {
    runtime: Arc<dyn Runtime>,
    checks: Checks,
    drains: Drains,
    tell: mpsc::Sender<TaskEvent>,
    /// Tasks with an operation under way.
    busy: BTreeSet<TaskId>,
    /// Tasks that run, by the last look.
    running: BTreeSet<TaskId>,
    /// Tasks that the runtime holds, by the last look.
    held: BTreeSet<TaskId>,
    graces: BTreeMap<TaskId, Duration>,
}

impl Tasks {
    pub(super) fn new(
        runtime: Arc<dyn Runtime>,
        checks: Checks,
        drains: Drains,
        tell: mpsc::Sender<TaskEvent>,
    ) -> Self {
        Self {
            runtime,
            checks,
            drains,
            tell,
            busy: BTreeSet::new(),
            running: BTreeSet::new(),
            held: BTreeSet::new(),
            graces: BTreeMap::new(),
        }
    }

    /// Whether the task still needs what belongs to it.
    pub(super) fn holds(&self, task: &TaskId) -> bool {
        self.busy.contains(task) || self.running.contains(task)
    }

    /// Takes over what the runtime sees.
    pub(super) fn observed(&mut self, tasks: &[ObservedTask], assignment: &Assignment, reports: &Reports) {
        let assigned: BTreeMap<&TaskId, &AssignedTask> =
            assignment.tasks().map(|task| (&task.id, task)).collect();
        self.graces = assigned
            .iter()
            .map(|(id, task)| ((*id).clone(), Duration::from_millis(task.spec.stop_grace_ms)))
            .collect();
        self.running.clear();
        self.held.clear();
        let drains = |task: &AssignedTask| task.desired == DesiredState::Draining && task.withdrawn;
        self.drains.retain(|id| assigned.get(id).is_some_and(|task| drains(task)));
        for task in tasks {
            let Ok(id) = task.spec.task.parse::<TaskId>() else { continue };
            if matches!(task.state, RuntimeState::Running { .. }) {
                self.running.insert(id.clone());
            }
            if let Some(assigned) = assigned.get(&id) {
                self.report(&id, task, assigned, reports);
                if drains(assigned) && matches!(task.state, RuntimeState::Running { .. }) {
                    self.drains.follow(&id, &task.spec.netns);
                }
            }
            self.held.insert(id);
        }
    }

    /// Tells how a task stands. One that is checked is asked while it runs and is not being stopped.
    fn report(&mut self, id: &TaskId, task: &ObservedTask, assigned: &AssignedTask, reports: &Reports) {
        let Some(check) = &assigned.spec.health else {
            return report_state(id, &task.state, assigned.desired, reports);
        };
        match &task.state {
            RuntimeState::Running { pid, started_at_ms } if assigned.desired < DesiredState::Shutdown => {
                let (pid, started_at_ms) = (*pid, *started_at_ms);
                self.checks.follow(&Subject { id, check, netns: &task.spec.netns, pid, started_at_ms });
            }
            RuntimeState::Running { .. } => self.checks.rest(id),
            RuntimeState::Exited(exit) if assigned.desired >= DesiredState::Shutdown => {
                self.checks.rest(id);
                match self.checks.verdict(id) {
                    // It was stopped for that: the operator has to see why.
                    Some(why) => {
                        let message = format!("unhealthy: {why}");
                        let evidence =
                            Evidence { message, exit_code: Some(exit.code()), ..Evidence::default() };
                        reports.task(id, TaskState::Failed, evidence);
                    }
                    None => report_state(id, &task.state, assigned.desired, reports),
                }
            }
            _ => {
                self.checks.rest(id);
                report_state(id, &task.state, assigned.desired, reports);
            }
        }
    }

    /// What should have ended and is not held has ended.
    pub(super) fn settle(&mut self, assignment: &Assignment, reports: &Reports) {
        for task in assignment.tasks() {
            let over = matches!(task.desired, DesiredState::Shutdown | DesiredState::Remove);
            if over && !self.held.contains(&task.id) && !self.busy.contains(&task.id) {
                reports.task(&task.id, TaskState::Shutdown, Evidence::said("stopped"));
            }
        }
        let assigned: BTreeSet<&TaskId> = assignment.tasks().map(|task| &task.id).collect();
        reports.retain(|id| assigned.contains(id));
        self.checks.retain(|id| assigned.contains(id));
    }

    /// Starts a task. One that is checked is not said to run: that is for its first good answer to say.
    pub(super) fn start(&mut self, id: &TaskId, spec: RuntimeSpec, is_checked: bool, reports: &Reports) {
        reports.task(id, TaskState::Preparing, Evidence::default());
        let (runtime, reports, task) = (Arc::clone(&self.runtime), reports.clone(), id.clone());
        self.spawn(id, async move {
            let started = async {
                runtime.prepare(&spec).await?;
                reports.task(&task, TaskState::Starting, Evidence::default());
                runtime.start(task.as_str()).await
            };
            match started.await {
                // The pass that follows has it asked.
                Ok(RuntimeState::Running { .. }) if is_checked => {}
                Ok(state) => report_state(&task, &state, DesiredState::Running, &reports),
                Err(RuntimeError::Rejected { failure, .. }) => reject(&task, &failure, &reports),
                // A spec that can never work: the managers have to know, trying again is in vain.
                Err(error) if !error.is_retryable() => {
                    reports.task(&task, TaskState::Rejected, Evidence::said(chain(&error)));
                }
                Err(error) => return Err(error),
            }
            Ok(())
        });
    }

    /// Stops a task.
    pub(super) fn stop(&mut self, id: &TaskId) {
        let grace = self.graces.get(id).copied().unwrap_or(DEFAULT_GRACE);
        let (runtime, task) = (Arc::clone(&self.runtime), id.clone());
        self.spawn(id, async move { runtime.stop(task.as_str(), grace).await.map(drop) });
    }

    /// Stops a task and removes it.
    pub(super) fn remove(&mut self, id: &TaskId) {
        let grace = self.graces.get(id).copied().unwrap_or(DEFAULT_GRACE);
        let (runtime, task, runs) = (Arc::clone(&self.runtime), id.clone(), self.running.contains(id));
        self.spawn(id, async move {
            if runs {
                runtime.stop(task.as_str(), grace).await?;
            }
            runtime.remove(task.as_str()).await
        });
    }

    /// Runs an operation on a task, unless there is one under way.
    fn spawn(&mut self, id: &TaskId, work: impl Future<Output = Result<(), RuntimeError>> + Send + 'static) {
        if !self.busy.insert(id.clone()) {
            return;
        }
        let (tell, task) = (self.tell.clone(), id.clone());
        tokio::spawn(async move {
            let outcome = work.await;
            if outcome.is_err() {
                tokio::time::sleep(PAUSE).await;
            }
            // Without a receiver the node is closing; the next start finds the task as it is.
            drop(tell.send(TaskEvent { task, outcome }).await);
        });
    }

    /// An operation is done; the next pass sees what came of it.
    pub(super) fn finish(&mut self, event: TaskEvent) {
        self.busy.remove(&event.task);
        if let Err(error) = event.outcome {
            tracing::warn!(task = %event.task, error = chain(&error), "task");
        }
    }
}

/// Tells ends that nobody asked for as they happen. What was to be stopped is the passes' to tell, as is what is missed.
pub(super) async fn report_ends(
    mut ends: broadcast::Receiver<TaskEnded>,
    assignment: watch::Receiver<Arc<Assignment>>,
    reports: Reports,
) {
    loop {
        let ended = match ends.recv().await {
            Ok(ended) => ended,
            Err(broadcast::error::RecvError::Lagged(_)) => continue,
            Err(broadcast::error::RecvError::Closed) => return,
        };
        let Ok(id) = ended.task.parse::<TaskId>() else { continue };
        let now = Arc::clone(&assignment.borrow());
        let desired = now.tasks().find(|task| task.id == id).map(|task| task.desired);
        if let Some(desired) = desired.filter(|desired| *desired < DesiredState::Shutdown) {
            report_state(&id, &RuntimeState::Exited(ended.exit), desired, &reports);
        }
    }
}

fn reject(id: &TaskId, failure: &StartFailure, reports: &Reports) {
    reports.task(id, TaskState::Rejected, Evidence::said(failure.to_string()));
}

fn report_state(id: &TaskId, state: &RuntimeState, desired: DesiredState, reports: &Reports) {
    match state {
        RuntimeState::Prepared => {}
        RuntimeState::Running { pid, .. } => {
            let evidence = Evidence { pid: u32::try_from(*pid).ok(), ..Evidence::default() };
            reports.task(id, TaskState::Running, evidence);
        }
        RuntimeState::Rejected(failure) => reject(id, failure, reports),
        RuntimeState::Exited(exit) => {
            let state = if matches!(desired, DesiredState::Shutdown | DesiredState::Remove) {
                TaskState::Shutdown
            } else if exit.is_success() {
                TaskState::Complete
            } else {
                TaskState::Failed
            };
            reports.task(id, state, exit_evidence(exit));
        }
    }
}

fn exit_evidence(exit: &TaskExit) -> Evidence {
    use crate::drivers::runtime::ExitCause;
    let message = match exit.cause {
        _ if exit.out_of_memory => "killed for want of memory; raise --limit-memory".to_owned(),
        ExitCause::Code { code } => format!("exited with {code}"),
        ExitCause::Signal { signal } => format!("killed by signal {signal}"),
        ExitCause::Lost => "gone; nobody saw how it ended".to_owned(),
    };
    Evidence { message, exit_code: Some(exit.code()), ..Evidence::default() }
}
