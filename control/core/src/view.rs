//! Questions the API asks of the state.

mod warnings;

use shoal_types::id::{NetworkId, ServiceId};
use shoal_types::object::{
    Availability, DesiredState, JoinToken, Network, Node, NodeState, Service, Slot, Task, TaskState,
    Timestamp,
};
use shoal_types::spec::{RestartCondition, ServiceMode};

use crate::leader::slots::ServiceTasks;
use crate::leader::{LeaderView, scheduler};
use crate::rejection::{Kind, Rejection};
use crate::state::State;

pub use warnings::{warnings, without_share};

/// How far a service is from what was asked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Convergence {
    /// Tasks that take new flows, of any version.
    pub running: u32,
    /// Those of the current version.
    pub updated: u32,
    /// Tasks there should be.
    pub wanted: u32,
    /// All there, all current, in the load balancers of every ready node, and nothing surplus in them.
    pub converged: bool,
}

/// Addresses of a network.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AddressUse {
    /// Owned by a task, router or VIP.
    pub used: u64,
    /// That can be owned at all.
    pub total: u64,
}

/// How far a service is. Without a leader's view, what the nodes have programmed is not looked at.
pub fn convergence(state: &State, service: &ServiceId, view: Option<&LeaderView>) -> Option<Convergence> {
    let service = state.services.get(service)?;
    let floor = view.map_or(u64::MAX, |v| v.floor(state));
    let tasks = ServiceTasks::of(state, service);
    let serves = |task: &Task| task.is_serving() && node_state(state, task) == Some(NodeState::Ready);
    let everywhere = |task: &Task| state.track(&task.id).running.is_some_and(|(index, _)| floor >= index);

    let wanted = wanted(state, service);
    let (mut running, mut updated, mut settled) = (0_u32, 0_u32, 0_u32);
    let mut surplus = false;
    for slot in tasks.slots.values() {
        for task in slot.live.iter().filter(|t| serves(t)) {
            running = running.saturating_add(1);
            updated = updated.saturating_add(u32::from(task.task_version == service.task_version));
        }
        surplus |= slot.alive().count() > 1 || slot.leaving.iter().any(|t| in_balancers(state, t, floor));
        let good = slot.live.last().is_some_and(|t| {
            t.task_version == service.task_version && ((serves(t) && everywhere(t)) || is_finished(t))
        });
        settled = settled.saturating_add(u32::from(good));
    }
    let live = tasks.live_slots().filter(|(slot, _)| !is_on_dead_node(state, slot)).count();
    let followed = state.service_changes.get(&service.id).is_none_or(|index| floor >= *index);
    let converged = !service.removing
        && followed
        && !surplus
        && settled >= wanted
        && u32::try_from(live).is_ok_and(|live| live == wanted);
    Some(Convergence { running, updated, wanted, converged })
}

/// Tasks a service should have now.
fn wanted(state: &State, service: &Service) -> u32 {
    if service.removing {
        return 0;
    }
    match service.spec.mode {
        ServiceMode::Replicated { replicas } => replicas,
        ServiceMode::Global => {
            let hosts = state.nodes.values().filter(|n| {
                (n.availability == Availability::Active || stays_paused(state, service, n))
                    && matches!(n.state, NodeState::Ready | NodeState::Suspect)
                    && scheduler::unmet_constraint(&service.spec.task, n).is_none()
            });
            u32::try_from(hosts.count()).unwrap_or(u32::MAX)
        }
    }
}

/// A paused node takes no new task and keeps the one it has.
fn stays_paused(state: &State, service: &Service, node: &Node) -> bool {
    node.availability == Availability::Pause
        && state
            .tasks_of_node(&node.id)
            .any(|t| t.service == service.id && t.desired == DesiredState::Running)
}

fn node_state(state: &State, task: &Task) -> Option<NodeState> {
    state.nodes.get(task.node.as_ref()?).map(|n| n.state)
}

/// A task that ran to its end and is not to be run again.
fn is_finished(task: &Task) -> bool {
    task.status.state == TaskState::Complete && task.spec.restart.condition != RestartCondition::Any
}

/// When a task that drains is stopped, whatever connections it has left; `None` before every ready node has withdrawn it.
pub fn drain_end(state: &State, task: &Task) -> Option<Timestamp> {
    let drains = task.desired == DesiredState::Draining && !task.status.state.is_terminal();
    let at = state.tracks.get(&task.id).filter(|_| drains)?.barrier_at?;
    Some(Timestamp(at.0.saturating_add(state.services.get(&task.service)?.spec.drain_ms)))
}

/// A leaving task that some ready node may still send new flows to.
fn in_balancers(state: &State, task: &Task, floor: u64) -> bool {
    task.desired == DesiredState::Draining
        && floor < task.desired_index
        && node_state(state, task).is_some_and(|s| s != NodeState::Down)
}

fn is_on_dead_node(state: &State, slot: &Slot) -> bool {
    match slot {
        Slot::Number(_) => false,
        Slot::Node(node) => state.nodes.get(node).is_none_or(|n| n.state == NodeState::Down),
    }
}

/// Addresses of a network.
pub fn addresses(state: &State, network: &NetworkId) -> Option<AddressUse> {
    state.ipam.capacity(network).map(|(total, used)| AddressUse { used, total })
}

/// A task's name: `web.1`, or `web.<node>` for a global service.
pub fn task_name(state: &State, task: &Task) -> String {
    let service = state.services.get(&task.service);
    let name = service.map_or_else(|| task.service.short(), |s| s.spec.name.as_str());
    format!("{name}.{}", task.slot)
}

/// Services attached to a network, by id.
pub fn services_on<'a>(state: &'a State, network: &'a NetworkId) -> impl Iterator<Item = &'a Service> {
    state.services.values().filter(move |s| s.spec.networks.iter().any(|n| n.network == *network))
}

/// The node with that id, name or unique id prefix.
pub fn find_node<'a>(state: &'a State, target: &str) -> Result<&'a Node, Rejection> {
    find(Kind::Node, target, state.nodes.values().map(|n| (n.id.as_str(), n.name.as_str().to_owned(), n)))
}

/// The network with that id, name or unique id prefix.
pub fn find_network<'a>(state: &'a State, target: &str) -> Result<&'a Network, Rejection> {
    find(
        Kind::Network,
        target,
        state.networks.values().map(|n| (n.id.as_str(), n.spec.name.as_str().to_owned(), n)),
    )
}

/// The service with that id, name or unique id prefix.
pub fn find_service<'a>(state: &'a State, target: &str) -> Result<&'a Service, Rejection> {
    find(
        Kind::Service,
        target,
        state.services.values().map(|s| (s.id.as_str(), s.spec.name.as_str().to_owned(), s)),
    )
}

/// The task with that id, name (`web.1`: the newest of that slot) or unique id prefix.
pub fn find_task<'a>(state: &'a State, target: &str) -> Result<&'a Task, Rejection> {
    let named = || {
        // Ids have no dot, names of services neither.
        let (service, _) = target.split_once('.')?;
        let service = state.service_named(&service.parse().ok()?)?;
        state
            .tasks_of_service(&service.id)
            .filter(|t| task_name(state, t) == target)
            .max_by_key(|t| (t.desired == DesiredState::Running, t.task_version, state.order(&t.id)))
    };
    if let Some(task) = named() {
        return Ok(task);
    }
    find(Kind::Task, target, state.tasks.values().map(|t| (t.id.as_str(), task_name(state, t), t)))
}

/// The token with that id or unique id prefix.
pub fn find_token<'a>(state: &'a State, target: &str) -> Result<&'a JoinToken, Rejection> {
    find(Kind::Token, target, state.tokens.values().map(|t| (t.id.as_str(), String::new(), t)))
}

fn find<'a, T>(
    kind: Kind,
    target: &str,
    candidates: impl Iterator<Item = (&'a str, String, &'a T)> + Clone,
) -> Result<&'a T, Rejection> {
    let exact = candidates.clone().find(|(id, _, _)| *id == target);
    if let Some((_, _, found)) = exact.or_else(|| candidates.clone().find(|(_, name, _)| name == target)) {
        return Ok(found);
    }
    let mut by_prefix: Vec<_> =
        candidates.filter(|(id, _, _)| !target.is_empty() && id.starts_with(target)).collect();
    match (by_prefix.pop(), by_prefix.is_empty()) {
        (None, _) => Err(Rejection::not_found(kind, target)),
        (Some((_, _, only)), true) => Ok(only),
        (Some(last), false) => {
            by_prefix.push(last);
            let matches = by_prefix.into_iter().map(|(id, name, _)| format!("{id} ({name})")).collect();
            Err(Rejection::Ambiguous { kind, target: target.to_owned(), matches })
        }
    }
}
