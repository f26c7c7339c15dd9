//! What the loop reports: state, not events, so that a session that was away misses nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use shoal_types::object::{Health, TaskState, TaskStatus};
use shoal_types::{Generation, LbInUse, TaskId, Timestamp};
use tokio::sync::watch;

/// The outcome of the last pass.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Applied {
    /// What is programmed.
    pub generation: Generation,
    /// Objects that are not, and why.
    pub errors: Vec<String>,
    /// How long it took.
    pub took: Duration,
    /// How many writes to the kernel it took.
    pub writes: u64,
    /// How the node balances since then.
    pub lb: LbInUse,
}

/// Where reports go.
#[derive(Debug, Clone)]
pub struct Reports {
    applied: Arc<watch::Sender<Option<Applied>>>,
    statuses: Arc<watch::Sender<BTreeMap<TaskId, TaskStatus>>>,
}

impl Default for Reports {
    fn default() -> Self {
        Self {
            applied: Arc::new(watch::Sender::new(None)),
            statuses: Arc::new(watch::Sender::new(BTreeMap::new())),
        }
    }
}

impl Reports {
    /// The outcome of passes.
    pub fn applied(&self) -> watch::Receiver<Option<Applied>> {
        self.applied.subscribe()
    }

    /// The states of this node's tasks.
    pub fn statuses(&self) -> watch::Receiver<BTreeMap<TaskId, TaskStatus>> {
        self.statuses.subscribe()
    }

    /// A pass is done. One that changed nothing and tells nothing new wakes nobody.
    pub(super) fn pass_done(&self, applied: Applied) {
        self.applied.send_if_modified(|last| {
            let news = last.as_ref().is_none_or(|last| {
                last.generation != applied.generation
                    || last.errors != applied.errors
                    || last.lb != applied.lb
                    || applied.writes > 0
            });
            *last = Some(applied);
            news
        });
    }

    /// The state of a task, if it is ahead of what was said: states only move forward. Within a state, its health moves
    /// both ways.
    pub(crate) fn task(&self, id: &TaskId, state: TaskState, evidence: Evidence) {
        self.statuses.send_if_modified(|statuses| {
            let last = statuses.get(id);
            let is_stale = last.is_some_and(|last| {
                let same = last.health == evidence.health && last.message == evidence.message;
                let checked = evidence.health != Health::Unchecked;
                last.state.is_terminal() || state < last.state || (state == last.state && (same || !checked))
            });
            if is_stale {
                return false;
            }
            let status = TaskStatus {
                state,
                health: evidence.health,
                since: now(),
                message: evidence.message,
                exit_code: evidence.exit_code,
                pid: evidence.pid,
                connections: statuses.get(id).filter(|last| last.state == state).and_then(|last| last.connections),
            };
            tracing::info!(task = %id, state = ?status.state, health = ?status.health, message = status.message, "task");
            statuses.insert(id.clone(), status);
            true
        });
    }

    /// How many connections a task that drains has left.
    pub(crate) fn connections(&self, id: &TaskId, connections: u32) {
        self.statuses.send_if_modified(|statuses| {
            let Some(status) = statuses.get_mut(id) else { return false };
            if status.state.is_terminal() || status.connections == Some(connections) {
                return false;
            }
            status.connections = Some(connections);
            tracing::info!(task = %id, connections, "draining");
            true
        });
    }

    /// Forgets tasks that nobody speaks of any more.
    pub(super) fn retain(&self, keep: impl Fn(&TaskId) -> bool) {
        self.statuses.send_if_modified(|statuses| {
            statuses.retain(|id, _| keep(id));
            // Nobody waits for what is gone.
            false
        });
    }
}

/// What goes with a state.
#[derive(Debug, Default)]
pub(crate) struct Evidence {
    pub(crate) health: Health,
    pub(crate) message: String,
    pub(crate) exit_code: Option<i32>,
    pub(crate) pid: Option<u32>,
}

impl Evidence {
    /// Words only.
    pub(super) fn said(message: impl Into<String>) -> Self {
        Self { message: message.into(), ..Self::default() }
    }
}

/// The time of the wall clock.
pub(crate) fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// An error with its causes, on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.ends_with(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use shoal_types::LbEngine;

    use super::*;

    #[test]
    fn a_pass_that_tells_nothing_new_wakes_nobody() {
        let reports = Reports::default();
        let mut applied = reports.applied();
        let mut pass = |change: &dyn Fn(&mut Applied)| {
            let mut pass = Applied { generation: Generation(1), ..Applied::default() };
            change(&mut pass);
            reports.pass_done(pass);
            let news = applied.has_changed().expect("there");
            applied.mark_unchanged();
            news
        };
        assert!(pass(&|_| {}), "the first");
        assert!(!pass(&|a| a.took = Duration::from_secs(1)));
        assert!(pass(&|a| a.writes = 1));
        assert!(pass(&|a| a.errors = vec!["no".to_owned()]));
        assert!(pass(&|_| {}));
        assert!(pass(&|a| a.lb.ipvs = true), "the module was loaded");
        let left = LbInUse { engine: LbEngine::Ebpf, ipvs: true, lingering: true };
        assert!(pass(&|a| a.lb = left));
        assert!(!pass(&|a| a.lb = left));
    }
}
