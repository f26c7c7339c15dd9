//! Rolling updates: tasks of an older spec, and tasks on drained nodes, get a successor in their slot.

use shoal_types::object::{DesiredState, NodeState, Slot, Task, Timestamp};
use shoal_types::spec::{ServiceMode, UpdateOrder};

use super::orchestrator::Scope;
use super::slots::{ServiceTasks, SlotTasks};
use super::{Ctx, NewTask};

pub(super) fn plan(ctx: &mut Ctx<'_>, tasks: &ServiceTasks<'_>, scope: &Scope) {
    if tasks.service.removing {
        return;
    }
    let mut candidates: Vec<(&Slot, &Task)> = tasks
        .live_slots()
        .filter(|(slot, _)| !scope.victims.contains(*slot))
        .filter(|(slot, _)| !is_dead(ctx, slot))
        .filter_map(|(slot, in_slot)| Some((slot, stale(ctx, tasks, in_slot)?)))
        .collect();
    if candidates.is_empty() {
        return;
    }
    // What serves nobody can be replaced at once; so can what sits on a drained node.
    let is_free = |ctx: &Ctx<'_>, task: &Task| !task.is_serving() || ctx.is_on_drained_node(task);
    candidates.sort_by_key(|(slot, task)| (!is_free(ctx, task), (*slot).clone()));
    let mut budget = budget(ctx, tasks, scope);
    for (slot, task) in candidates {
        if ctx.is_full() {
            return;
        }
        if !is_free(ctx, task) {
            if budget == 0 {
                return;
            }
            budget -= 1;
        }
        replace(ctx, tasks, slot, task);
    }
}

/// A global slot whose node is down: its turn comes when the node is back, and nobody waits for it.
fn is_dead(ctx: &Ctx<'_>, slot: &Slot) -> bool {
    let Slot::Node(node) = slot else { return false };
    ctx.state.nodes().get(node).is_none_or(|n| n.state == NodeState::Down)
}

/// The slot's task, when it needs a successor and has none yet.
fn stale<'a>(ctx: &Ctx<'_>, tasks: &ServiceTasks<'a>, slot: &SlotTasks<'a>) -> Option<&'a Task> {
    let newest = slot.live.last()?;
    if newest.status.state.is_terminal() || ctx.leaving.contains(&newest.id) {
        return None;
    }
    let moves = tasks.service.spec.mode != ServiceMode::Global && ctx.is_on_drained_node(newest);
    (newest.task_version < tasks.service.task_version || moves).then_some(newest)
}

fn replace(ctx: &mut Ctx<'_>, tasks: &ServiceTasks<'_>, slot: &Slot, old: &Task) {
    let serves = old.is_serving();
    match tasks.service.spec.update.order {
        UpdateOrder::StartFirst => {
            if !serves {
                ctx.take_out(old, DesiredState::Shutdown);
            }
            ctx.create(tasks.service, slot, NewTask::at_once(ctx.now));
        }
        // The successor is made when the slot is empty.
        UpdateOrder::StopFirst => ctx.take_out(old, DesiredState::Shutdown),
    }
}

/// How many more slots may begin now.
fn budget(ctx: &mut Ctx<'_>, tasks: &ServiceTasks<'_>, scope: &Scope) -> usize {
    let config = tasks.service.spec.update;
    if config.delay_ms > 0
        && let Some(last) = last_finished(ctx, tasks)
    {
        let next = Timestamp(last.0.saturating_add(config.delay_ms));
        if next > ctx.now {
            ctx.wake_at(next);
            return 0;
        }
    }
    let parallelism = match config.parallelism {
        0 => usize::MAX,
        n => usize::try_from(n).unwrap_or(usize::MAX),
    };
    parallelism.saturating_sub(in_flight(ctx, tasks, scope))
}

/// Slots that have begun and whose new task doesn't serve everywhere yet.
fn in_flight(ctx: &Ctx<'_>, tasks: &ServiceTasks<'_>, scope: &Scope) -> usize {
    let version = tasks.service.task_version;
    let begun = tasks.live_slots().filter(|(slot, _)| !is_dead(ctx, slot)).filter(|(_, slot)| {
        slot.has_older_than(version)
            && slot.live.last().is_some_and(|t| t.task_version == version && !ctx.is_up(t))
    });
    let between =
        scope.missing.iter().filter(|slot| tasks.slots.get(*slot).is_some_and(|s| s.has_older_than(version)));
    begun.count() + between.count()
}

/// When the last slot of this update was done.
fn last_finished(ctx: &Ctx<'_>, tasks: &ServiceTasks<'_>) -> Option<Timestamp> {
    let version = tasks.service.task_version;
    tasks
        .live_slots()
        .filter(|(_, slot)| slot.has_older_than(version))
        .flat_map(|(_, slot)| &slot.live)
        .filter(|t| t.task_version == version)
        .filter_map(|t| ctx.state.track(&t.id).running.map(|(_, at)| at))
        .max()
}
