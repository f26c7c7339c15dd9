//! The cluster as a whole.

use shoal_api::pb;
use shoal_api::status::ApiError;
use shoal_api::wire::field;
use shoal_core::{Command, view};
use shoal_types::object::{NodeRole, NodeState};
use shoal_types::token::digest_text;
use shoal_types::{ErrorCode, NodeId};
use tonic::Status;

use super::describe::count;
use crate::consensus::StateView;
use crate::manager::Manager;

/// So much of what nodes find between one another is shown.
const SHOWN_BETWEEN: usize = 16;

pub(super) async fn get(manager: &Manager) -> Result<pb::ClusterInfo, Status> {
    shown(manager, &manager.read().await?)
}

pub(super) async fn update(
    manager: &Manager,
    request: pb::UpdateClusterRequest,
) -> Result<pb::ClusterInfo, Status> {
    if request.lb_engine.is_empty() {
        return shown(manager, &manager.read().await?);
    }
    let command = Command::SetLbEngine { engine: field("lb_engine", &request.lb_engine)? };
    let (_, after) = manager.write_or_preview(&request.request_id, request.dry_run, command).await?;
    shown(manager, &after)
}

/// What nodes find that others should know of, a line each and a last one for the rest.
fn between_nodes(manager: &Manager, seen: &StateView) -> Vec<String> {
    let found = manager.sessions.peer_troubles();
    let more = found.len().saturating_sub(SHOWN_BETWEEN);
    let line = |(node, trouble): &(NodeId, String)| {
        let name = seen.state.nodes().get(node).map(|node| &node.name)?;
        Some(format!("seen from {name}: {trouble}"))
    };
    let mut lines: Vec<String> = found.iter().take(SHOWN_BETWEEN).filter_map(line).collect();
    if more > 0 {
        lines.push(format!("{more} more of what nodes see; 'shoal status' on each has its own"));
    }
    lines
}

fn shown(manager: &Manager, seen: &StateView) -> Result<pb::ClusterInfo, Status> {
    let state = &seen.state;
    let cluster = state
        .cluster()
        .ok_or_else(|| Status::from(ApiError::new(ErrorCode::NotMember, "there is no cluster here yet")))?;
    let leadership = manager.consensus.leadership().borrow().clone();
    let leader_view = manager.leader_view();
    let nodes = || state.nodes().values();
    let ready = |n: &&shoal_types::object::Node| n.state == NodeState::Ready;
    let managers = || nodes().filter(|n| n.role == NodeRole::Manager);
    let mut converged = 0;
    let (mut running, mut wanted) = (0, 0);
    for id in state.services().keys() {
        let service = view::convergence(state, id, Some(&leader_view)).unwrap_or_default();
        converged += u32::from(service.converged);
        running += service.running;
        wanted += service.wanted;
    }
    Ok(pb::ClusterInfo {
        id: cluster.id.to_string(),
        name: cluster.name.to_string(),
        created_at_ms: cluster.created_at.0,
        data_port: cluster.data_port.into(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        leader: leadership.leader.as_ref().and_then(|id| Some(state.nodes().get(id)?.name.to_string())),
        term: leadership.term,
        // Read by index: what was committed when the call came is applied.
        commit_index: seen.index,
        applied_index: seen.index,
        nodes_ready: count(nodes().filter(ready).count()),
        nodes_total: count(nodes().count()),
        managers_ready: count(managers().filter(ready).count()),
        managers_total: count(managers().count()),
        services: count(state.services().len()),
        services_converged: converged,
        tasks_running: running,
        tasks_wanted: wanted,
        networks: count(state.networks().len()),
        ca_digest: digest_text(manager.authority()?.digest()),
        nodes_programmed: count(nodes().filter(|n| manager.sessions.is_programmed(&n.id)).count()),
        state_hash: format!("{:032x}", state.hash()),
        lb_engine: cluster.balancing.engine.to_string(),
        direct_routing: cluster.balancing.direct.to_string(),
        warnings: view::warnings(state).into_iter().chain(between_nodes(manager, seen)).collect(),
    })
}
