//! What nodes report of their tasks.

use shoal_types::id::{NodeId, TaskId};
use shoal_types::object::{Health, Task, TaskState, TaskStatus};

use super::At;
use crate::addresses;
use crate::command::Outcome;
use crate::rejection::{Kind, Rejection};
use crate::state::State;

/// A worker's words are shown, not stored without end.
const MESSAGE_CHARS: usize = 512;

pub(super) fn tasks(
    state: &mut State,
    at: At,
    node: &NodeId,
    updates: &[(TaskId, TaskStatus)],
) -> Result<Outcome, Rejection> {
    if !state.nodes.contains_key(node) {
        return Err(Rejection::not_found(Kind::Node, node));
    }
    let mut changed = false;
    for (id, status) in updates {
        // Before the barrier there may be new connections at any moment.
        let withdrawn = state.tracks.get(id).is_some_and(|t| t.barrier_at.is_some());
        let connections = status.connections.filter(|_| withdrawn);
        let status = TaskStatus { connections, ..status.clone() };
        let counts = state.tasks.get(id).is_some_and(|t| t.node.as_ref() == Some(node) && moves(t, &status));
        if counts {
            record(state, at, id, &status);
            changed = true;
        }
    }
    Ok(if changed { Outcome::Done } else { Outcome::Unchanged })
}

/// Whether the report says something new that a node may say: forward only, and not what managers decide.
fn moves(task: &Task, reported: &TaskStatus) -> bool {
    let was = &task.status;
    if was.state.is_terminal()
        || matches!(reported.state, TaskState::Pending | TaskState::Assigned | TaskState::Orphaned)
    {
        return false;
    }
    reported.state > was.state
        || (reported.state == was.state
            && (clipped(&reported.message) != was.message
                || reported.pid != was.pid
                || reported.health != was.health
                || reported.connections != was.connections))
}

fn clipped(message: &str) -> String {
    message.chars().take(MESSAGE_CHARS).collect()
}

fn record(state: &mut State, at: At, id: &TaskId, reported: &TaskStatus) {
    let mut recovered = false;
    let freed = state.edit_task(id, |task| {
        let moved = reported.state > task.status.state;
        recovered = task.status.health == Health::Unhealthy && reported.health != Health::Unhealthy;
        task.status = TaskStatus {
            state: reported.state,
            health: reported.health,
            // The leader's clock: restart delays are measured with it, and nodes' clocks differ.
            since: if moved { at.now } else { task.status.since },
            message: clipped(&reported.message),
            exit_code: reported.exit_code,
            pid: reported.pid,
            connections: reported.connections,
        };
        if reported.state.is_terminal() { std::mem::take(&mut task.attachments) } else { Vec::new() }
    });
    addresses::release(state, &freed.unwrap_or_default());
    if reported.state == TaskState::Running {
        let track = state.tracks.entry(id.clone()).or_default();
        let (index, _) = track.running.get_or_insert((at.index, at.now));
        if recovered {
            // Nodes take it in again: it counts when they have programmed that.
            *index = at.index;
        }
    }
}
