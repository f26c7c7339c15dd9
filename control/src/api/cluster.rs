//! The cluster as a whole.

use shoal_api::pb;
use shoal_api::status::ApiError;
use shoal_api::wire::field;
use shoal_core::{Command, LeaderView, some_of, view};
use shoal_types::ErrorCode;
use shoal_types::id::Name;
use shoal_types::object::{NodeRole, NodeState};
use shoal_types::token::digest_text;
use tonic::Status;

use super::describe::count;
use crate::consensus::StateView;
use crate::dispatcher::sessions::Failing;
use crate::manager::Manager;

/// So much of what nodes find between one another is shown.
const SHOWN_BETWEEN: usize = 16;
/// So many nodes that can't program all they are told are named.
const SHOWN_FAILING: usize = 16;

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

/// What nodes find that others should know of, a line each and a last one for the rest. What several find is one line.
fn between_nodes(manager: &Manager, seen: &StateView) -> Vec<String> {
    let found = manager.sessions.peer_troubles().into_iter().filter_map(|(node, trouble)| {
        let name = seen.state.nodes().get(&node)?.name.clone();
        Some((name, trouble))
    });
    let mut lines = joined(found.collect());
    let more = lines.len().saturating_sub(SHOWN_BETWEEN);
    lines.truncate(SHOWN_BETWEEN);
    if more > 0 {
        lines.push(format!("{more} more of what nodes see; 'shoal status' on each has its own"));
    }
    lines
}

/// A line for each thing that was found, in the order in which it was first.
fn joined(found: Vec<(Name, String)>) -> Vec<String> {
    let mut things: Vec<(String, Vec<Name>)> = Vec::new();
    for (name, trouble) in found {
        match things.iter_mut().find(|(known, _)| *known == trouble) {
            Some((_, names)) => names.push(name),
            None => things.push((trouble, vec![name])),
        }
    }
    things.iter().map(|(trouble, names)| format!("seen from {}: {trouble}", some_of(names))).collect()
}

/// What nodes can't program, a line for each node, and what follows.
fn not_programmed(seen: &StateView, view: &LeaderView, failing: &[Failing]) -> Vec<String> {
    let line = |failing: &Failing| {
        let name = &seen.state.nodes().get(&failing.node)?.name;
        Some(failure(name, failing, view.is_left_behind(&seen.state, &failing.node)))
    };
    let mut lines: Vec<String> = failing.iter().filter_map(line).take(SHOWN_FAILING).collect();
    let more = failing.len().saturating_sub(SHOWN_FAILING);
    if more > 0 {
        lines.push(format!("{more} more nodes can't program all they are told"));
    }
    lines
}

fn failure(name: &Name, failing: &Failing, is_left_behind: bool) -> String {
    let (seconds, first) = (failing.lasting.as_secs(), &failing.first);
    let what = match (failing.behind, is_left_behind) {
        (false, _) => format!("{name} can't program all it is told, for {seconds} s"),
        (true, false) => format!("{name} is behind for {seconds} s, drains and updates wait for it"),
        (true, true) => format!("{name} is behind for {seconds} s, drains and updates no longer wait for it"),
    };
    match failing.count {
        0 | 1 => format!("{what}: {first}"),
        count => format!("{what}: {first} (and {} more)", count - 1),
    }
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
        warnings: not_programmed(seen, &leader_view, &manager.sessions.failing())
            .into_iter()
            .chain(view::warnings(state))
            .chain(between_nodes(manager, seen))
            .collect(),
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use shoal_types::NodeId;

    use super::*;

    #[test]
    fn what_several_nodes_find_is_one_line() {
        let found = |name: &str, what: &str| (name.parse::<Name>().expect("a name"), what.to_owned());
        let lines = joined(vec![found("n1", "22/tcp"), found("n1", "80/tcp"), found("n2", "22/tcp")]);
        assert_eq!(lines, ["seen from n1, n2: 22/tcp", "seen from n1: 80/tcp"]);
    }

    #[test]
    fn a_node_is_named_with_what_it_can_not_program_and_what_follows() {
        let name: Name = "n3".parse().expect("a name");
        let failing = |behind, count| Failing {
            node: NodeId::from_entropy(3),
            behind,
            lasting: Duration::from_millis(45_900),
            first: "Port 80/tcp: table full".to_owned(),
            count,
        };
        assert_eq!(
            failure(&name, &failing(true, 3), false),
            "n3 is behind for 45 s, drains and updates wait for it: Port 80/tcp: table full (and 2 more)"
        );
        assert_eq!(
            failure(&name, &failing(true, 1), true),
            "n3 is behind for 45 s, drains and updates no longer wait for it: Port 80/tcp: table full"
        );
        assert_eq!(
            failure(&name, &failing(false, 1), false),
            "n3 can't program all it is told, for 45 s: Port 80/tcp: table full"
        );
    }
}
