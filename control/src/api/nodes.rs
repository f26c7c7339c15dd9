//! Nodes.

use shoal_api::pb;
use shoal_api::status::ApiError;
use shoal_api::wire;
use shoal_core::{Command, Outcome, view};
use shoal_types::{ErrorCode, NodeId};
use tonic::Status;

use super::{describe, unexpected, vanished};
use crate::consensus::StateView;
use crate::manager::{Manager, rejection};

fn shown(manager: &Manager, seen: &StateView, id: &NodeId) -> Result<pb::NodeInfo, Status> {
    let leader = manager.consensus.leadership().borrow().leader.clone();
    let node = seen.state.nodes().get(id).ok_or_else(|| vanished("node"))?;
    Ok(describe::node(&seen.state, &manager.sessions, leader.as_ref(), node))
}

pub(super) async fn list(manager: &Manager) -> Result<pb::NodeList, Status> {
    let seen = manager.read().await?;
    let nodes = seen.state.nodes().keys().map(|id| shown(manager, &seen, id)).collect::<Result<_, _>>()?;
    Ok(pb::NodeList { nodes })
}

pub(super) async fn update(
    manager: &Manager,
    request: pb::UpdateNodeRequest,
) -> Result<pb::NodeInfo, Status> {
    let seen = manager.read().await?;
    let id = view::find_node(&seen.state, &request.target).map_err(rejection)?.id.clone();
    let availability = match request.availability() {
        pb::Availability::Unspecified if request.availability == 0 => None,
        given => Some(given.try_into()?),
    };
    let labels_add = request.labels_add.into_iter().collect();
    let labels_remove = request.labels_remove;
    let weight = request.weight.map(wire::weight).transpose()?;
    let command = match weight {
        Some(weight) => {
            Command::WeighNode { id: id.clone(), weight, availability, labels_add, labels_remove }
        }
        None => Command::UpdateNode { id: id.clone(), availability, labels_add, labels_remove },
    };
    let (_, after) = manager.write_or_preview(&request.request_id, request.dry_run, command).await?;
    let mut node = shown(manager, &after, &id)?;
    if weight.is_some() {
        node.notes = view::without_share(&after.state, Some(&id));
    }
    Ok(node)
}

pub(super) async fn remove(
    manager: &Manager,
    request: pb::RemoveNodeRequest,
) -> Result<pb::ObjectRef, Status> {
    let seen = manager.read().await?;
    let id = view::find_node(&seen.state, &request.target).map_err(rejection)?.id.clone();
    if id == manager.own {
        let error = ApiError::new(ErrorCode::NodeBusy, "a manager does not remove the node it runs on");
        return Err(error.with_help("run 'shoal swarm leave --force' on that node").into());
    }
    let command = Command::RemoveNode { id, force: request.force };
    let (outcome, _) = manager.write_or_preview(&request.request_id, request.dry_run, command).await?;
    match outcome {
        Outcome::Node { id, name } => Ok(pb::ObjectRef { id: id.to_string(), name: name.to_string() }),
        other => Err(unexpected(&other)),
    }
}
