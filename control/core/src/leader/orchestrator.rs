//! Which slots a service has: by number, or one per node.

use std::collections::{BTreeMap, BTreeSet};

use shoal_types::id::NodeId;
use shoal_types::object::{Availability, DesiredState, Node, NodeState, Service, Slot};
use shoal_types::spec::{ServiceMode, UpdateOrder};

use super::scheduler;
use super::slots::{ServiceTasks, SlotTasks};
use super::{Ctx, NewTask};

/// The slots of a service as they should be.
#[derive(Debug, Default)]
pub(super) struct Scope {
    /// Have live tasks and should not.
    pub(super) victims: BTreeSet<Slot>,
    /// Should have a live task and have none.
    pub(super) missing: Vec<Slot>,
}

impl Scope {
    /// Whether the slot is one that stays: what ends in it becomes its history.
    pub(super) fn keeps(&self, tasks: &ServiceTasks<'_>, slot: &Slot) -> bool {
        if tasks.service.removing || self.victims.contains(slot) {
            return false;
        }
        self.missing.contains(slot) || tasks.slots.get(slot).is_some_and(|s| !s.live.is_empty())
    }
}

/// Decides on the slots.
pub(super) fn scope(ctx: &Ctx<'_>, tasks: &ServiceTasks<'_>) -> Scope {
    if tasks.service.removing {
        let victims = tasks.live_slots().map(|(slot, _)| slot.clone()).collect();
        return Scope { victims, missing: Vec::new() };
    }
    match tasks.service.spec.mode {
        ServiceMode::Replicated { replicas } => replicated(ctx, tasks, replicas),
        ServiceMode::Global => global(ctx, tasks),
    }
}

fn replicated(ctx: &Ctx<'_>, tasks: &ServiceTasks<'_>, replicas: u32) -> Scope {
    let wanted = usize::try_from(replicas).unwrap_or(usize::MAX);
    let live: BTreeSet<&Slot> = tasks.live_slots().map(|(slot, _)| slot).collect();
    // A slot whose task is on its way out, or lost its node, before a new number: it keeps its name and history.
    let used = tasks.slots.iter().filter(|(_, s)| s.leaving.iter().any(|t| t.desired < DesiredState::Remove));
    let known: BTreeSet<Slot> =
        used.map(|(slot, _)| slot.clone()).filter(|slot| !live.contains(slot)).collect();
    let fresh = (1..=u32::MAX).map(Slot::Number).filter(|s| !live.contains(s) && !known.contains(s));
    let missing = known.iter().cloned().chain(fresh).take(wanted.saturating_sub(live.len())).collect();
    Scope { victims: victims(ctx, tasks, live.len().saturating_sub(wanted)), missing }
}

/// Slots to give up: those that do not run first, then on the most crowded node, then the highest number.
fn victims(ctx: &Ctx<'_>, tasks: &ServiceTasks<'_>, count: usize) -> BTreeSet<Slot> {
    let mut victims = BTreeSet::new();
    if count == 0 {
        return victims;
    }
    let mut crowd: BTreeMap<&NodeId, usize> = BTreeMap::new();
    let homes: BTreeMap<&Slot, Option<&NodeId>> =
        tasks.live_slots().map(|(slot, s)| (slot, s.live.last().and_then(|t| t.node.as_ref()))).collect();
    for home in homes.values().flatten() {
        *crowd.entry(home).or_default() += 1;
    }
    for _ in 0..count {
        let worst = tasks
            .live_slots()
            .filter(|(slot, _)| !victims.contains(*slot))
            .max_by_key(|(slot, s)| {
                let home = homes.get(slot).copied().flatten();
                (!runs(ctx, s), home.and_then(|h| crowd.get(h)).copied(), (*slot).clone())
            })
            .map(|(slot, _)| slot);
        let Some(worst) = worst else { break };
        if let Some(count) = homes.get(worst).copied().flatten().and_then(|h| crowd.get_mut(h)) {
            *count -= 1;
        }
        victims.insert(worst.clone());
    }
    victims
}

fn runs(ctx: &Ctx<'_>, slot: &SlotTasks<'_>) -> bool {
    slot.live.iter().any(|t| t.is_serving() && ctx.node_state(t) != Some(NodeState::Down))
}

fn global(ctx: &Ctx<'_>, tasks: &ServiceTasks<'_>) -> Scope {
    let mut scope = Scope::default();
    for (slot, _) in tasks.live_slots() {
        let home = if let Slot::Node(node) = slot { ctx.state.nodes().get(node) } else { None };
        if !home.is_some_and(|n| may_stay(tasks.service, n)) {
            scope.victims.insert(slot.clone());
        }
    }
    let newcomers = ctx.state.nodes().values().filter(|n| {
        may_stay(tasks.service, n)
            && n.availability == Availability::Active
            && matches!(n.state, NodeState::Ready | NodeState::Suspect)
    });
    let slots = newcomers.map(|n| Slot::Node(n.id.clone()));
    scope.missing = slots.filter(|slot| tasks.slots.get(slot).is_none_or(|s| s.live.is_empty())).collect();
    scope
}

/// Whether a global service's task belongs on the node.
fn may_stay(service: &Service, node: &Node) -> bool {
    node.availability != Availability::Drain
        && scheduler::unmet_constraint(&service.spec.task, node).is_none()
}

/// Makes tasks for the slots that have none.
pub(super) fn fill(ctx: &mut Ctx<'_>, tasks: &ServiceTasks<'_>, scope: &Scope) {
    for slot in &scope.missing {
        if ctx.is_full() {
            return;
        }
        let waits = tasks.service.spec.update.order == UpdateOrder::StopFirst
            && tasks.slots.get(slot).is_some_and(|s| {
                s.leaving.iter().any(|t| ctx.node_state(t).is_some_and(|state| state != NodeState::Down))
            });
        if !waits {
            ctx.create(tasks.service, slot, NewTask::at_once(ctx.now));
        }
    }
}
