//! Networks.

use shoal_api::pb;
use shoal_api::wire::required;
use shoal_core::{Command, Outcome, view};
use shoal_types::NetworkId;
use tonic::Status;

use super::{describe, unexpected, vanished};
use crate::manager::{Manager, rejection};

pub(super) async fn create(
    manager: &Manager,
    request: pb::CreateNetworkRequest,
) -> Result<pb::NetworkInfo, Status> {
    let spec = required("spec", request.spec)?.try_into()?;
    let command = Command::CreateNetwork { id: NetworkId::from_entropy(rand::random()), spec };
    let (outcome, after) = manager.write_or_preview(&request.request_id, request.dry_run, command).await?;
    let Outcome::Network { id, .. } = outcome else { return Err(unexpected(&outcome)) };
    let network = after.state.networks().get(&id).ok_or_else(|| vanished("network"))?;
    Ok(describe::network(&after.state, network))
}

pub(super) async fn list(manager: &Manager) -> Result<pb::NetworkList, Status> {
    let seen = manager.read().await?;
    let networks = seen.state.networks().values().map(|n| describe::network(&seen.state, n)).collect();
    Ok(pb::NetworkList { networks })
}

pub(super) async fn remove(manager: &Manager, request: pb::RemoveRequest) -> Result<pb::ObjectRef, Status> {
    let seen = manager.read().await?;
    let id = view::find_network(&seen.state, &request.target).map_err(rejection)?.id.clone();
    let command = Command::RemoveNetwork { id };
    let (outcome, _) = manager.write_or_preview(&request.request_id, request.dry_run, command).await?;
    match outcome {
        Outcome::Network { id, name } => Ok(pb::ObjectRef { id: id.to_string(), name: name.to_string() }),
        other => Err(unexpected(&other)),
    }
}
