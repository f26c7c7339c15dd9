//! What an operator should know although nothing failed.

use std::collections::{BTreeMap, BTreeSet};

use shoal_types::id::{Name, NodeId};
use shoal_types::lb::{LbEngine, Weight};
use shoal_types::object::{Node, NodeState, Service};

use crate::some_of::some_of;
use crate::state::State;

/// A line each: nodes that balance by another engine than the cluster's, or can't do what they are set to, services
/// whose policy some node lacks or whose tasks get no connection, and aliases that a service's name hides. Nodes that are down, or have not said how they
/// balance, are left out.
pub fn warnings(state: &State) -> Vec<String> {
    let wanted = state.cluster.as_ref().map_or(LbEngine::Auto, |c| c.balancing.engine).resolved();
    let mut found: BTreeMap<String, Vec<Name>> = BTreeMap::new();
    for node in state.nodes.values().filter(|n| n.state != NodeState::Down) {
        if let Some(what) = of_node(node, wanted) {
            found.entry(what).or_default().push(node.name.clone());
        }
    }
    let mut lines: Vec<String> =
        found.iter().map(|(what, nodes)| format!("{what}: {}", some_of(nodes))).collect();
    lines.extend(of_services(state));
    lines.extend(hidden_aliases(state));
    lines.extend(without_share(state, None));
    lines
}

/// A line for each service whose serving tasks get no new connection, as all their nodes have weight 0: of all services, or of
/// those with such a task on that node.
pub fn without_share(state: &State, node: Option<&NodeId>) -> Vec<String> {
    let line = |service: &Service| {
        let is_balanced = !service.vips.is_empty() || service.ports.iter().any(|port| !port.is_host());
        let serving = || state.tasks_of_service(&service.id).filter(|task| task.is_serving());
        let nodes: BTreeSet<&NodeId> = serving().filter_map(|task| task.node.as_ref()).collect();
        let found: Vec<&Node> = nodes
            .iter()
            .filter_map(|id| state.nodes.get(*id))
            .filter(|n| n.state == NodeState::Ready)
            .collect();
        let counts = is_balanced && !service.removing && node.is_none_or(|node| nodes.contains(node));
        let of_none = !found.is_empty() && found.iter().all(|node| node.weight == Weight::ZERO);
        let names: Vec<Name> = found.iter().map(|node| node.name.clone()).collect();
        (counts && of_none).then(|| {
            let name = &service.spec.name;
            format!(
                "service '{name}' takes no new connection, the nodes of all its tasks have weight 0: {}",
                some_of(&names)
            )
        })
    };
    state.services.values().filter_map(line).collect()
}

fn of_node(node: &Node, wanted: LbEngine) -> Option<String> {
    let lb = node.description.lb;
    let used = lb.in_use?;
    let (goal, own) = match lb.setting {
        LbEngine::Auto => (wanted, false),
        own => (own, true),
    };
    if goal == LbEngine::Ipvs && !used.ipvs {
        Some("engine ipvs is not possible, the kernel has no IPVS ('modprobe ip_vs')".to_owned())
    } else if used.engine != goal {
        Some(format!("changing over from engine {} to {goal}", used.engine))
    } else if own && goal != wanted {
        Some(format!("engine {goal} by the node's own setting, the swarm's is {wanted}"))
    } else {
        None
    }
}

fn of_services(state: &State) -> impl Iterator<Item = String> {
    let present = || state.nodes.values().filter(|n| n.state != NodeState::Down);
    state.services.values().filter(|s| !s.removing).filter_map(move |service| {
        let policy = service.spec.lb;
        let lacks = |n: &&Node| {
            n.description.lb.known_engine().is_some_and(|engine| policy.refused_by(engine).is_some())
        };
        let nodes: Vec<Name> = present().filter(lacks).map(|n| n.name.clone()).collect();
        let line =
            || format!("service '{}' is not balanced by {policy} on: {}", service.spec.name, some_of(&nodes));
        (!nodes.is_empty()).then(line)
    })
}

/// In a network, a service's name goes before other services' aliases.
fn hidden_aliases(state: &State) -> impl Iterator<Item = String> {
    let attachments = state.services.values().flat_map(|s| s.spec.networks.iter().map(move |at| (s, at)));
    attachments.flat_map(move |(service, at)| {
        at.aliases.iter().filter_map(move |alias| {
            let holder = state.service_named(alias).filter(|holder| holder.id != service.id)?;
            if !holder.spec.networks.iter().any(|other| other.network == at.network) {
                return None;
            }
            let network = &state.networks.get(&at.network)?.spec.name;
            let (own, held) = (&service.spec.name, &holder.spec.name);
            Some(format!(
                "alias '{alias}' of service '{own}' leads to service '{held}' on network '{network}'"
            ))
        })
    })
}
