//! Services.

use shoal_api::pb;
use shoal_api::wire::required;
use shoal_core::{Command, Outcome, State, view};
use shoal_types::ServiceId;
use shoal_types::spec::ServiceSpec;
use tonic::Status;

use super::{describe, unexpected, vanished};
use crate::consensus::StateView;
use crate::manager::{Manager, rejection};

/// The spec with networks as ids: the API also takes names and prefixes.
fn resolve(state: &State, spec: Option<pb::ServiceSpec>) -> Result<Box<ServiceSpec>, Status> {
    let mut spec = required("spec", spec)?;
    for attachment in &mut spec.networks {
        let network = view::find_network(state, &attachment.network).map_err(rejection)?;
        attachment.network = network.id.to_string();
    }
    Ok(Box::new(spec.try_into()?))
}

fn shown(manager: &Manager, seen: &StateView, id: &ServiceId) -> Result<pb::ServiceInfo, Status> {
    let service = seen.state.services().get(id).ok_or_else(|| vanished("service"))?;
    Ok(describe::service(&seen.state, &manager.leader_view(), service))
}

async fn write(
    manager: &Manager,
    request_id: &str,
    dry_run: bool,
    command: Command,
) -> Result<pb::ServiceInfo, Status> {
    let (outcome, after) = manager.write_or_preview(request_id, dry_run, command).await?;
    let Outcome::Service { id, .. } = outcome else { return Err(unexpected(&outcome)) };
    shown(manager, &after, &id)
}

pub(super) async fn create(
    manager: &Manager,
    request: pb::CreateServiceRequest,
) -> Result<pb::ServiceInfo, Status> {
    let seen = manager.read().await?;
    let spec = resolve(&seen.state, request.spec)?;
    let command = Command::CreateService { id: ServiceId::from_entropy(rand::random()), spec };
    write(manager, &request.request_id, request.dry_run, command).await
}

pub(super) async fn update(
    manager: &Manager,
    request: pb::UpdateServiceRequest,
) -> Result<pb::ServiceInfo, Status> {
    let seen = manager.read().await?;
    let id = view::find_service(&seen.state, &request.target).map_err(rejection)?.id.clone();
    let spec = resolve(&seen.state, request.spec)?;
    let expect_version = (request.expect_version != 0).then_some(request.expect_version);
    let command = Command::UpdateService { id, spec, expect_version };
    write(manager, &request.request_id, request.dry_run, command).await
}

pub(super) async fn scale(
    manager: &Manager,
    request: pb::ScaleServiceRequest,
) -> Result<pb::ServiceInfo, Status> {
    let seen = manager.read().await?;
    let id = view::find_service(&seen.state, &request.target).map_err(rejection)?.id.clone();
    let command = Command::ScaleService { id, replicas: request.replicas };
    write(manager, &request.request_id, request.dry_run, command).await
}

pub(super) async fn remove(manager: &Manager, request: pb::RemoveRequest) -> Result<pb::ObjectRef, Status> {
    let seen = manager.read().await?;
    let service = view::find_service(&seen.state, &request.target).map_err(rejection)?;
    let (id, name) = (service.id.clone(), service.spec.name.clone());
    let shown = pb::ObjectRef { id: id.to_string(), name: name.to_string() };
    manager.write_or_preview(&request.request_id, request.dry_run, Command::RemoveService { id }).await?;
    Ok(shown)
}

pub(super) async fn list(manager: &Manager) -> Result<pb::ServiceList, Status> {
    let seen = manager.read().await?;
    let ids = seen.state.services().keys();
    let services = ids.map(|id| shown(manager, &seen, id)).collect::<Result<_, _>>()?;
    Ok(pb::ServiceList { services })
}
