//! Keeps one good task in every slot: ended and unhealthy ones are replaced by the restart policy, those on dead nodes
//! by others, and of two the older one goes when the newer one serves.

use shoal_types::object::{DesiredState, Health, NodeState, Slot, Task, TaskState};
use shoal_types::spec::ServiceMode;

use super::orchestrator::Scope;
use super::restart::{self, Verdict};
use super::scheduler;
use super::slots::{ServiceTasks, SlotTasks};
use super::{Ctx, NewTask};

pub(super) fn plan(ctx: &mut Ctx<'_>, tasks: &ServiceTasks<'_>, scope: &Scope) {
    for (slot, in_slot) in tasks.live_slots() {
        if !scope.victims.contains(slot) {
            give_up_dead_nodes(ctx, tasks, in_slot);
            settle_ended(ctx, tasks, slot, in_slot);
            settle_unhealthy(ctx, tasks, slot, in_slot);
            settle_rivals(ctx, in_slot);
        }
    }
}

/// Tasks on nodes that are down are replaced elsewhere. A global task stays: its slot is that node.
fn give_up_dead_nodes(ctx: &mut Ctx<'_>, tasks: &ServiceTasks<'_>, slot: &SlotTasks<'_>) {
    if tasks.service.spec.mode == ServiceMode::Global {
        return;
    }
    for task in slot.alive() {
        if ctx.node_state(task) == Some(NodeState::Down) {
            ctx.set_desired(task, DesiredState::Shutdown);
        }
    }
}

/// An ended task becomes history when another took its place, else the restart policy decides.
fn settle_ended(ctx: &mut Ctx<'_>, tasks: &ServiceTasks<'_>, slot: &Slot, in_slot: &SlotTasks<'_>) {
    let Some(newest) = in_slot.live.last() else { return };
    for ended in in_slot.ended() {
        if ended.id != newest.id {
            ctx.set_desired(ended, DesiredState::Shutdown);
            continue;
        }
        match restart::verdict(ctx.state, tasks.service, ended, ctx.now) {
            Verdict::Never => {}
            Verdict::NotYet(at) => ctx.wake_at(at),
            Verdict::Restart { not_before, counts } => {
                let message = restart::reason(tasks.service, ended, not_before, ctx.now);
                let new = NewTask { not_before, replaces: Some(ended), restart: counts, message };
                ctx.create(tasks.service, slot, new);
            }
        }
    }
}

/// An unhealthy task takes no new flows. It is led out, and its successor made, when the restart policy allows one;
/// else it stays as it is and may recover.
fn settle_unhealthy(ctx: &mut Ctx<'_>, tasks: &ServiceTasks<'_>, slot: &Slot, in_slot: &SlotTasks<'_>) {
    let Some(newest) = in_slot.alive().next_back() else { return };
    if newest.status.health != Health::Unhealthy
        || ctx.leaving.contains(&newest.id)
        || in_slot.live.last().is_none_or(|t| t.id != newest.id)
    {
        return;
    }
    match restart::verdict(ctx.state, tasks.service, newest, ctx.now) {
        Verdict::Never => {}
        Verdict::NotYet(at) => ctx.wake_at(at),
        Verdict::Restart { not_before, counts } => {
            let message = restart::reason(tasks.service, newest, not_before, ctx.now);
            ctx.take_out(newest, DesiredState::Shutdown);
            ctx.create(tasks.service, slot, NewTask { not_before, replaces: None, restart: counts, message });
        }
    }
}

/// Of several tasks in a slot the newest one stays.
fn settle_rivals(ctx: &mut Ctx<'_>, slot: &SlotTasks<'_>) {
    let alive: Vec<&Task> = slot.alive().filter(|t| ctx.node_state(t) != Some(NodeState::Down)).collect();
    let Some((newest, older)) = alive.split_last() else { return };
    if older.is_empty() {
        return;
    }
    let up = ctx.is_up(newest);
    let nowhere = newest.status.state == TaskState::Pending
        && newest.not_before <= ctx.now
        && scheduler::place(ctx, newest).is_err();
    for old in older {
        // A drained node is emptied even when there is no other place for its tasks.
        let stranded = nowhere && ctx.is_on_drained_node(old);
        if up || stranded || old.status.state < TaskState::Running {
            ctx.take_out(old, DesiredState::Shutdown);
        }
    }
}
