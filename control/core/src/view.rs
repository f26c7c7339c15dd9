//! Questions the API asks of the state.

use shoal_types::id::{NetworkId, ServiceId};
use shoal_types::object::{JoinToken, Network, Node, Service, Task};

use crate::leader::LeaderView;
use crate::rejection::Rejection;
use crate::state::State;

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
    let _ = view;
    state.services.get(service)?;
    None
}

/// Addresses of a network.
pub fn addresses(state: &State, network: &NetworkId) -> Option<AddressUse> {
    let _ = (state, network);
    None
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
    find(
        crate::rejection::Kind::Node,
        target,
        state.nodes.values().map(|n| (n.id.as_str(), n.name.as_str().to_owned(), n)),
    )
}

/// The network with that id, name or unique id prefix.
pub fn find_network<'a>(state: &'a State, target: &str) -> Result<&'a Network, Rejection> {
    find(
        crate::rejection::Kind::Network,
        target,
        state.networks.values().map(|n| (n.id.as_str(), n.spec.name.as_str().to_owned(), n)),
    )
}

/// The service with that id, name or unique id prefix.
pub fn find_service<'a>(state: &'a State, target: &str) -> Result<&'a Service, Rejection> {
    find(
        crate::rejection::Kind::Service,
        target,
        state.services.values().map(|s| (s.id.as_str(), s.spec.name.as_str().to_owned(), s)),
    )
}

/// The task with that id, name (`web.1`: the newest of that slot) or unique id prefix.
pub fn find_task<'a>(state: &'a State, target: &str) -> Result<&'a Task, Rejection> {
    find(
        crate::rejection::Kind::Task,
        target,
        state.tasks.values().map(|t| (t.id.as_str(), task_name(state, t), t)),
    )
}

/// The token with that id or unique id prefix.
pub fn find_token<'a>(state: &'a State, target: &str) -> Result<&'a JoinToken, Rejection> {
    find(
        crate::rejection::Kind::Token,
        target,
        state.tokens.values().map(|t| (t.id.as_str(), String::new(), t)),
    )
}

fn find<'a, T>(
    kind: crate::rejection::Kind,
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
