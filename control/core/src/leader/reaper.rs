//! Forgets tasks: all of a slot that is gone, all but the last few of one that stays.

use shoal_types::object::{DesiredState, NodeState, Task};

use super::Ctx;
use super::orchestrator::Scope;
use super::slots::ServiceTasks;
use crate::command::Command;

/// Ended tasks kept per slot, for `service ps` and their logs.
const HISTORY: usize = 5;

pub(super) fn plan(ctx: &mut Ctx<'_>, tasks: &ServiceTasks<'_>, scope: &Scope) {
    for (slot, in_slot) in &tasks.slots {
        let keeps = scope.keeps(tasks, slot);
        for task in &in_slot.leaving {
            if !keeps && task.desired == DesiredState::Shutdown {
                ctx.set_desired(task, DesiredState::Remove);
            } else if is_lost(ctx, task) {
                ctx.push(Command::RemoveTask { id: task.id.clone() });
            }
        }
        let history: Vec<&Task> =
            in_slot.past.iter().copied().filter(|t| t.desired != DesiredState::Draining).collect();
        let surplus = if keeps { history.len().saturating_sub(HISTORY) } else { history.len() };
        for (age, task) in history.iter().enumerate() {
            if age < surplus || task.desired == DesiredState::Remove {
                ctx.push(Command::RemoveTask { id: task.id.clone() });
            }
        }
    }
    if tasks.service.removing && tasks.slots.is_empty() {
        ctx.push(Command::FinishServiceRemoval { id: tasks.service.id.clone() });
    }
}

/// Nobody will ever report its end: it has no node, or one that is down and whose task is not wanted anywhere.
fn is_lost(ctx: &Ctx<'_>, task: &Task) -> bool {
    let unplaced = task.node.is_none() && task.desired >= DesiredState::Shutdown;
    let unreachable =
        task.desired == DesiredState::Remove && ctx.node_state(task).is_none_or(|s| s == NodeState::Down);
    unplaced || unreachable
}
