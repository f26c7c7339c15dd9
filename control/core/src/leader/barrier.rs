//! Taking a task out without a failed request: out of every load balancer, time for its flows, then the stop.
//!
//! ```text
//! Draining at index G -> every ready node has programmed G -> PassBarrier -> no connection left, or drain time over
//!     -> Shutdown or Remove
//! ```
//! The task's node counts its connections once it has been told that the barrier is passed. A node that comes back in
//! between may still hold an older view: what every ready node has programmed is looked at again before the stop.

use shoal_types::id::TaskId;
use shoal_types::object::{DesiredState, NodeState, Service, Task, Timestamp};
use shoal_types::spec::EndpointMode;

use super::Ctx;
use super::orchestrator::Scope;
use super::slots::ServiceTasks;
use crate::command::Command;

pub(super) fn plan(ctx: &mut Ctx<'_>, tasks: &ServiceTasks<'_>, scope: &Scope) {
    let mut passed: Vec<TaskId> = Vec::new();
    for (slot, in_slot) in &tasks.slots {
        let end = if scope.keeps(tasks, slot) { DesiredState::Shutdown } else { DesiredState::Remove };
        for task in in_slot.leaving.iter().filter(|t| t.desired == DesiredState::Draining) {
            match step(ctx, task, tasks.service) {
                Step::Wait => {}
                Step::Pass => passed.push(task.id.clone()),
                Step::Stop => ctx.set_desired(task, end),
            }
        }
        // It ended by itself while it drained.
        for task in in_slot.past.iter().filter(|t| t.desired == DesiredState::Draining) {
            ctx.set_desired(task, end);
        }
    }
    if !passed.is_empty() {
        ctx.push(Command::PassBarrier { ids: passed });
    }
}

/// A node that has just become ready may have led flows to the task by an older view; its count must have been taken
/// after that.
const SETTLE_MS: u64 = 2_000;
/// For so long a client may use what a name that stands for tasks meant (`TTL_TASK` of the resolvers).
const NAMES_MS: u64 = 5_000;

enum Step {
    Wait,
    Pass,
    Stop,
}

fn step(ctx: &mut Ctx<'_>, task: &Task, service: &Service) -> Step {
    let drain_ms = service.spec.drain_ms;
    if ctx.node_state(task).is_none_or(|s| s == NodeState::Down) {
        return Step::Stop;
    }
    let programmed = ctx.is_programmed(task.desired_index);
    match ctx.state.track(&task.id).barrier_at {
        None if programmed && drain_ms == 0 => Step::Stop,
        None if programmed => Step::Pass,
        None => Step::Wait,
        Some(at) => {
            let end = Timestamp(at.0.saturating_add(drain_ms)).min(early_end(ctx, task, service, at));
            if end > ctx.now {
                ctx.wake_at(end);
                Step::Wait
            } else if programmed {
                Step::Stop
            } else {
                Step::Wait
            }
        }
    }
}

/// When a drain without a connection may end, if it may.
fn early_end(ctx: &Ctx<'_>, task: &Task, service: &Service, barrier_at: Timestamp) -> Timestamp {
    if task.status.connections != Some(0) {
        return Timestamp(u64::MAX);
    }
    let ready = ctx.state.nodes.values().filter(|n| n.state == NodeState::Ready);
    let settled = ready.map(|n| n.state_since.0.saturating_add(SETTLE_MS)).max().unwrap_or_default();
    let unnamed = match service.spec.endpoint {
        EndpointMode::Dnsrr => barrier_at.0.saturating_add(NAMES_MS),
        EndpointMode::Vip => 0,
    };
    Timestamp(settled.max(unnamed))
}
