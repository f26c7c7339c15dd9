//! Objects of the state as the API shows them.

use shoal_api::pb;
use shoal_api::wire::attachment_to;
use shoal_core::{LeaderView, State, view};
use shoal_types::NodeId;
use shoal_types::object::{JoinToken, Network, Node, Service, Task, TaskState};

use crate::dispatcher::sessions::Sessions;

/// A node.
pub fn node(state: &State, sessions: &Sessions, leader: Option<&NodeId>, node: &Node) -> pb::NodeInfo {
    let running = state.tasks_of_node(&node.id).filter(|t| t.status.state == TaskState::Running).count();
    pb::NodeInfo {
        id: node.id.to_string(),
        name: node.name.to_string(),
        role: pb::NodeRole::from(node.role).into(),
        availability: pb::Availability::from(node.availability).into(),
        state: pb::NodeState::from(node.state).into(),
        state_since_ms: node.state_since.0,
        joined_at_ms: node.joined_at.0,
        control_addr: node.control_addr.map(|a| a.to_string()).unwrap_or_default(),
        data_addr: node.data_addr.to_string(),
        router: Some(attachment_to(&node.router)),
        description: Some((&node.description).into()),
        labels: node.labels.clone().into_iter().collect(),
        leader: leader == Some(&node.id),
        applied_generation: sessions.reported(&node.id),
        tasks_running: count(running),
        weight: Some(node.weight.into()),
        notes: Vec::new(),
    }
}

/// A network.
pub fn network(state: &State, network: &Network) -> pb::NetworkInfo {
    let addresses = view::addresses(state, &network.id).unwrap_or_default();
    pb::NetworkInfo {
        id: network.id.to_string(),
        spec: Some((&network.spec).into()),
        vni: network.vni.get(),
        subnet4: network.subnets.v4.to_string(),
        subnet6: network.subnets.v6.to_string(),
        ingress: network.ingress,
        created_at_ms: network.created_at.0,
        addresses_used: addresses.used,
        addresses_total: addresses.total,
        services: view::services_on(state, &network.id).map(|s| s.spec.name.to_string()).collect(),
    }
}

/// A service.
pub fn service(state: &State, leader: &LeaderView, service: &Service) -> pb::ServiceInfo {
    let convergence = view::convergence(state, &service.id, Some(leader)).unwrap_or_default();
    pb::ServiceInfo {
        id: service.id.to_string(),
        index: service.index.0,
        spec: Some((&service.spec).into()),
        version: service.version,
        vips: service.vips.iter().map(attachment_to).collect(),
        ports: service.ports.iter().map(|p| (*p).into()).collect(),
        created_at_ms: service.created_at.0,
        updated_at_ms: service.updated_at.0,
        removing: service.removing,
        running: convergence.running,
        wanted: convergence.wanted,
        updated: convergence.updated,
        converged: convergence.converged,
    }
}

/// A task.
pub fn task(state: &State, task: &Task) -> pb::TaskInfo {
    let node = task.node.as_ref();
    let name_of = |id: &NodeId| state.nodes().get(id).map_or_else(String::new, |n| n.name.to_string());
    let service = state.services().get(&task.service);
    pb::TaskInfo {
        id: task.id.to_string(),
        service: task.service.to_string(),
        service_name: service.map_or_else(String::new, |s| s.spec.name.to_string()),
        slot: Some((&task.slot).into()),
        name: view::task_name(state, task),
        node: node.map_or_else(String::new, ToString::to_string),
        node_name: node.map_or_else(String::new, name_of),
        desired: pb::DesiredState::from(task.desired).into(),
        status: Some((&task.status).into()),
        attachments: task.attachments.iter().map(attachment_to).collect(),
        spec: Some((&task.spec).into()),
        task_version: task.task_version,
        created_at_ms: task.created_at.0,
        drain_ends_ms: view::drain_end(state, task).map(|at| at.0),
    }
}

/// A token, without its secret, which nobody has any more.
pub fn token(token: &JoinToken) -> pb::TokenInfo {
    pb::TokenInfo {
        id: token.id.to_string(),
        role: pb::NodeRole::from(token.role).into(),
        expires_at_ms: token.expires_at.0,
        uses_left: token.uses_left,
        created_at_ms: token.created_at.0,
    }
}

/// A count as the wire has it.
pub fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}
