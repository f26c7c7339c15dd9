//! The operator's API. One function per call here; the work is in a file per noun.
//!
//! Reads are linearizable (read index); writes go through the proposer and are answered when they are applied; a dry
//! run asks the same state machine and changes nothing.

use std::sync::Arc;

use shoal_api::pb;
use shoal_api::pb::control_server::Control;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::manager::Manager;

mod cluster;
pub mod describe;
mod logs;
mod networks;
mod nodes;
mod services;
mod tasks;
mod tokens;
mod watch;

/// The operator's API, on both doors.
#[derive(Clone)]
pub struct ControlService(pub Arc<Manager>);

type Answer<T> = Result<Response<T>, Status>;
type Stream<T> = ReceiverStream<Result<T, Status>>;

#[tonic::async_trait]
impl Control for ControlService {
    async fn get_cluster(&self, _: Request<pb::Empty>) -> Answer<pb::ClusterInfo> {
        cluster::get(&self.0).await.map(Response::new)
    }

    async fn update_cluster(&self, request: Request<pb::UpdateClusterRequest>) -> Answer<pb::ClusterInfo> {
        cluster::update(&self.0, request.into_inner()).await.map(Response::new)
    }

    async fn list_nodes(&self, _: Request<pb::Empty>) -> Answer<pb::NodeList> {
        nodes::list(&self.0).await.map(Response::new)
    }

    async fn update_node(&self, request: Request<pb::UpdateNodeRequest>) -> Answer<pb::NodeInfo> {
        nodes::update(&self.0, request.into_inner()).await.map(Response::new)
    }

    async fn remove_node(&self, request: Request<pb::RemoveNodeRequest>) -> Answer<pb::ObjectRef> {
        nodes::remove(&self.0, request.into_inner()).await.map(Response::new)
    }

    async fn create_network(&self, request: Request<pb::CreateNetworkRequest>) -> Answer<pb::NetworkInfo> {
        networks::create(&self.0, request.into_inner()).await.map(Response::new)
    }

    async fn list_networks(&self, _: Request<pb::Empty>) -> Answer<pb::NetworkList> {
        networks::list(&self.0).await.map(Response::new)
    }

    async fn remove_network(&self, request: Request<pb::RemoveRequest>) -> Answer<pb::ObjectRef> {
        networks::remove(&self.0, request.into_inner()).await.map(Response::new)
    }

    async fn create_service(&self, request: Request<pb::CreateServiceRequest>) -> Answer<pb::ServiceInfo> {
        services::create(&self.0, request.into_inner()).await.map(Response::new)
    }

    async fn update_service(&self, request: Request<pb::UpdateServiceRequest>) -> Answer<pb::ServiceInfo> {
        services::update(&self.0, request.into_inner()).await.map(Response::new)
    }

    async fn scale_service(&self, request: Request<pb::ScaleServiceRequest>) -> Answer<pb::ServiceInfo> {
        services::scale(&self.0, request.into_inner()).await.map(Response::new)
    }

    async fn remove_service(&self, request: Request<pb::RemoveRequest>) -> Answer<pb::ObjectRef> {
        services::remove(&self.0, request.into_inner()).await.map(Response::new)
    }

    async fn list_services(&self, _: Request<pb::Empty>) -> Answer<pb::ServiceList> {
        services::list(&self.0).await.map(Response::new)
    }

    async fn list_tasks(&self, request: Request<pb::ListTasksRequest>) -> Answer<pb::TaskList> {
        tasks::list(&self.0, request.into_inner()).await.map(Response::new)
    }

    type WatchServiceStream = Stream<pb::ServiceProgress>;

    async fn watch_service(
        &self,
        request: Request<pb::WatchServiceRequest>,
    ) -> Answer<Self::WatchServiceStream> {
        watch::service(&self.0, request.into_inner()).await.map(Response::new)
    }

    type ServiceLogsStream = Stream<pb::LogEntry>;

    async fn service_logs(&self, request: Request<pb::LogsRequest>) -> Answer<Self::ServiceLogsStream> {
        logs::open(&self.0, request.into_inner()).await.map(Response::new)
    }

    async fn create_token(&self, request: Request<pb::CreateTokenRequest>) -> Answer<pb::TokenSecret> {
        tokens::create(&self.0, request.into_inner()).await.map(Response::new)
    }

    async fn list_tokens(&self, _: Request<pb::Empty>) -> Answer<pb::TokenList> {
        tokens::list(&self.0).await.map(Response::new)
    }

    async fn remove_token(&self, request: Request<pb::RemoveRequest>) -> Answer<pb::ObjectRef> {
        tokens::remove(&self.0, request.into_inner()).await.map(Response::new)
    }
}

/// An outcome of a kind that the command cannot have.
fn unexpected(outcome: &shoal_core::Outcome) -> Status {
    Status::internal(format!("unexpected outcome: {outcome:?}"))
}

/// An object that a command has just made or changed, gone before it could be shown.
fn vanished(what: &str) -> Status {
    Status::aborted(format!("the {what} was removed by somebody else in the same moment"))
}
