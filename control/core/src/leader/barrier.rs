//! Taking a task out without a failed request: out of every load balancer, time for its flows, then the stop.
//!
//! ```text
//! Draining at index G -> every ready node has programmed G -> PassBarrier -> drain time -> Shutdown or Remove
//! ```
//! A node that comes back in between may still hold an older view: what every ready node has programmed is looked
//! at again before the stop.

use shoal_types::id::TaskId;
use shoal_types::object::{DesiredState, NodeState, Task, Timestamp};

use super::Ctx;
use super::orchestrator::Scope;
use super::slots::ServiceTasks;
use crate::command::Command;

pub(super) fn plan(ctx: &mut Ctx<'_>, tasks: &ServiceTasks<'_>, scope: &Scope) {
    let mut passed: Vec<TaskId> = Vec::new();
    for (slot, in_slot) in &tasks.slots {
        let end = if scope.keeps(tasks, slot) { DesiredState::Shutdown } else { DesiredState::Remove };
        for task in in_slot.leaving.iter().filter(|t| t.desired == DesiredState::Draining) {
            match step(ctx, task, tasks.service.spec.drain_ms) {
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

enum Step {
    Wait,
    Pass,
    Stop,
}

fn step(ctx: &mut Ctx<'_>, task: &Task, drain_ms: u64) -> Step {
    if ctx.node_state(task).is_none_or(|s| s == NodeState::Down) {
        return Step::Stop;
    }
    let programmed = ctx.is_programmed(task.desired_index);
    match ctx.state.track(&task.id).barrier_at {
        None if programmed && drain_ms == 0 => Step::Stop,
        None if programmed => Step::Pass,
        None => Step::Wait,
        Some(at) => {
            let end = Timestamp(at.0.saturating_add(drain_ms));
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
