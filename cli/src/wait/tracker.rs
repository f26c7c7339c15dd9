//! What a watched service's progress means: the line to show, what is worth a line of its own, and the verdict. Pure.

use std::collections::{BTreeMap, BTreeSet};

use shoal_api::pb;

use crate::failure::one_line;
use crate::view::{reason, task_state};

/// Failures of one slot within a single wait after which waiting on makes no sense...
const FAILURES_TO_GIVE_UP: usize = 5;
/// ...when they lie so far apart; a short restart delay makes many of them out of one cause that may pass.
const FAILING_FOR_MS: u64 = 5_000;

/// What the wait is for; decides which numbers the line shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Goal {
    /// New tasks run.
    Running,
    /// Tasks run, all of the present version.
    Updated,
    /// As many tasks run as are wanted.
    Scaled,
    /// The service is no more.
    Gone,
}

/// What one message says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Not there yet.
    GoOn,
    /// Converged; the ids of the tasks that make it so.
    Converged(BTreeSet<String>),
    /// The service no longer exists.
    Gone,
    /// It won't get there by itself.
    Hopeless(String),
}

/// Failures of one slot.
#[derive(Debug, Clone, Copy)]
struct Failures {
    count: usize,
    first_ms: u64,
    last_ms: u64,
}

/// Follows one wait.
#[derive(Debug)]
pub(crate) struct Tracker {
    goal: Goal,
    name: String,
    seen_first: bool,
    /// Whether a task had failed when it was last looked at.
    fates: BTreeMap<String, bool>,
    failures: BTreeMap<String, Failures>,
    failed: usize,
}

impl Tracker {
    /// Starts to follow the service called `name`.
    pub(crate) fn new(goal: Goal, name: &str) -> Self {
        Self {
            goal,
            name: name.to_owned(),
            seen_first: false,
            fates: BTreeMap::new(),
            failures: BTreeMap::new(),
            failed: 0,
        }
    }

    /// Lines for tasks that have failed, or become unhealthy, since the last message. What had failed before the wait began is history.
    pub(crate) fn events(&mut self, progress: &pb::ServiceProgress) -> Vec<String> {
        let history = !self.seen_first && self.goal != Goal::Running || self.goal == Goal::Gone;
        self.seen_first = true;
        let mut lines = Vec::new();
        for task in &progress.tasks {
            let status = task.status.clone().unwrap_or_default();
            let state = status.state();
            let failed =
                matches!(state, pb::TaskState::Failed | pb::TaskState::Rejected) || is_unhealthy(task);
            // One that is unhealthy and then stopped for it has failed once.
            let before = self.fates.insert(task.id.clone(), failed);
            if !failed || before == Some(true) || history {
                continue;
            }
            self.failed += 1;
            let now = status.since_ms;
            let first = Failures { count: 0, first_ms: now, last_ms: now };
            let slot = self.failures.entry(task.name.clone()).or_insert(first);
            *slot = Failures { count: slot.count + 1, last_ms: now, ..*slot };
            lines.push(failure_line(task, &status));
        }
        lines
    }

    /// The line that stands for the whole.
    pub(crate) fn summary(&self, progress: &pb::ServiceProgress) -> String {
        let service = progress.service.clone().unwrap_or_default();
        if progress.gone {
            return format!("{}  gone", self.name);
        }
        if self.goal == Goal::Gone {
            let left = progress.tasks.iter().filter(|t| !is_terminal(state_of(t))).count();
            return format!("{}  {left} to stop", self.name);
        }
        let (have, word) = match self.goal {
            Goal::Updated => (service.updated, "updated"),
            _ => (service.running, "running"),
        };
        let mut line = format!("{}  {have}/{} {word}", self.name, service.wanted);
        let counts = self.counts(progress).into_iter().filter(|(count, _)| *count > 0);
        line.extend(counts.map(|(count, word)| format!("  {count} {word}")));
        if let Some(reason) = waiting_reason(progress) {
            line.push_str("   ");
            line.push_str(&reason);
        }
        line
    }

    fn counts(&self, progress: &pb::ServiceProgress) -> [(usize, &'static str); 6] {
        let wanted_in = |states: &[pb::TaskState]| {
            let wanted = |t: &&pb::TaskInfo| t.desired() == pb::DesiredState::Running;
            progress.tasks.iter().filter(wanted).filter(|t| states.contains(&state_of(t))).count()
        };
        let unhealthy =
            progress.tasks.iter().filter(|t| t.desired() == pb::DesiredState::Running && is_unhealthy(t));
        let stopping = progress
            .tasks
            .iter()
            .filter(|t| t.desired() != pb::DesiredState::Running && state_of(t) == pb::TaskState::Running);
        [
            (wanted_in(&[pb::TaskState::Pending]), "pending"),
            (
                wanted_in(&[pb::TaskState::Assigned, pb::TaskState::Preparing, pb::TaskState::Starting]),
                "starting",
            ),
            (wanted_in(&[pb::TaskState::Complete]), "complete"),
            (unhealthy.count(), "unhealthy"),
            (stopping.count(), "stopping"),
            (self.failed, "failed"),
        ]
    }

    /// Whether the wait is over.
    pub(crate) fn verdict(&self, progress: &pb::ServiceProgress) -> Verdict {
        if progress.gone {
            return Verdict::Gone;
        }
        if self.goal == Goal::Gone {
            return Verdict::GoOn;
        }
        if progress.service.as_ref().is_some_and(|service| service.removing) {
            return Verdict::Hopeless(format!("service '{}' is being removed", self.name));
        }
        // Before "converged": a task that failed and is not restarted has found its end, but not a good one.
        if let Some(why) = self.hopeless_slot(progress) {
            return Verdict::Hopeless(why);
        }
        if progress.converged {
            let serving = |t: &&pb::TaskInfo| {
                t.desired() == pb::DesiredState::Running
                    && state_of(t) == pb::TaskState::Running
                    && !is_unhealthy(t)
            };
            return Verdict::Converged(progress.tasks.iter().filter(serving).map(|t| t.id.clone()).collect());
        }
        Verdict::GoOn
    }

    /// A slot that keeps failing, or failed and is not to be restarted.
    fn hopeless_slot(&self, progress: &pb::ServiceProgress) -> Option<String> {
        let restart = progress
            .service
            .as_ref()
            .and_then(|service| service.spec.as_ref()?.task.as_ref()?.restart)
            .unwrap_or_default();
        // How many failures the managers answer with a new task; `None`: any number.
        let attempts = match restart.condition() {
            pb::RestartCondition::None => Some(0),
            _ => usize::try_from(restart.max_attempts).ok().filter(|n| *n > 0),
        };
        for (slot, failures) in &self.failures {
            let of_slot = || progress.tasks.iter().filter(|t| &t.name == slot);
            let alive = of_slot().any(|t| state_of(t) == pb::TaskState::Running && !is_unhealthy(t));
            let exhausted = attempts.is_some_and(|n| failures.count > n);
            let lasting = failures.last_ms.saturating_sub(failures.first_ms) >= FAILING_FOR_MS;
            if alive || !(exhausted || failures.count >= FAILURES_TO_GIVE_UP && lasting) {
                continue;
            }
            let failed = of_slot()
                .filter(|t| is_terminal(state_of(t)) || is_unhealthy(t))
                .max_by_key(|t| t.created_at_ms);
            let why =
                failed.map(|t| failure_line(t, &t.status.clone().unwrap_or_default())).unwrap_or_default();
            let often =
                if failures.count == 1 { "once".to_owned() } else { format!("{} times", failures.count) };
            return Some(format!("task {slot} failed {often} and does not come up: {why}"));
        }
        None
    }
}

fn state_of(task: &pb::TaskInfo) -> pb::TaskState {
    task.status.as_ref().map_or(pb::TaskState::Unspecified, pb::TaskStatus::state)
}

/// Whether a task is unhealthy; what has ended is neither.
fn is_unhealthy(task: &pb::TaskInfo) -> bool {
    !is_terminal(state_of(task)) && task.status.as_ref().is_some_and(|s| s.health() == pb::Health::Unhealthy)
}

fn is_terminal(state: pb::TaskState) -> bool {
    matches!(
        state,
        pb::TaskState::Complete
            | pb::TaskState::Shutdown
            | pb::TaskState::Failed
            | pb::TaskState::Rejected
            | pb::TaskState::Orphaned
    )
}

fn place(task: &pb::TaskInfo) -> String {
    if task.node_name.is_empty() { task.name.clone() } else { format!("{} on {}", task.name, task.node_name) }
}

fn failure_line(task: &pb::TaskInfo, status: &pb::TaskStatus) -> String {
    let (place, state) = (place(task), task_state(status.state()));
    match reason(status) {
        // The node says so, and why.
        why if is_unhealthy(task) => format!("{place} {why}"),
        why if why.is_empty() => format!("{place} {state}"),
        why => format!("{place} {state}: {why}"),
    }
}

/// Why the first task that is not running yet is not.
fn waiting_reason(progress: &pb::ServiceProgress) -> Option<String> {
    let waiting = progress.tasks.iter().find(|t| {
        t.desired() == pb::DesiredState::Running
            && !is_terminal(state_of(t))
            && state_of(t) != pb::TaskState::Running
            && t.status.as_ref().is_some_and(|s| !s.message.is_empty())
    })?;
    let message = one_line(&waiting.status.as_ref()?.message);
    Some(format!("{}: {message}", place(waiting)))
}

#[cfg(test)]
mod tests;
