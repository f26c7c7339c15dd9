//! The local API: one socket, for whoever may open it.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use nix::unistd::chown;
use shoal_api::pb;
use shoal_api::pb::node_server::{Node as NodeService, NodeServer};
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use crate::durable;
use crate::node::Node;

struct Service(Arc<Node>);

#[tonic::async_trait]
impl NodeService for Service {
    async fn info(&self, _request: Request<pb::Empty>) -> Result<Response<pb::LocalNode>, Status> {
        Ok(Response::new(self.0.info()))
    }

    async fn init(&self, request: Request<pb::InitRequest>) -> Result<Response<pb::InitReply>, Status> {
        // On a task of its own: a caller that goes away must not stop it half way.
        let node = Arc::clone(&self.0);
        let work = tokio::spawn(async move { node.init(request.into_inner()).await });
        work.await.map_err(|_| Status::internal("shoald failed; see its log"))?.map(Response::new)
    }

    async fn join(&self, request: Request<pb::LocalJoinRequest>) -> Result<Response<pb::LocalNode>, Status> {
        let node = Arc::clone(&self.0);
        let work = tokio::spawn(async move { node.join(request.into_inner()).await });
        work.await.map_err(|_| Status::internal("shoald failed; see its log"))?.map(Response::new)
    }

    async fn diagnose(
        &self,
        request: Request<pb::DiagnoseRequest>,
    ) -> Result<Response<pb::Diagnosis>, Status> {
        // On a task of its own: what it tries on the host is taken back, whoever waits for the answer.
        let node = Arc::clone(&self.0);
        let work = tokio::spawn(async move { node.diagnose(request.into_inner()).await });
        work.await.map_err(|_| Status::internal("shoald failed; see its log"))?.map(Response::new)
    }

    type LeaveStream = ReceiverStream<Result<pb::LeaveProgress, Status>>;

    async fn leave(&self, request: Request<pb::LeaveRequest>) -> Result<Response<Self::LeaveStream>, Status> {
        let node = Arc::clone(&self.0);
        let (progress, receive) = mpsc::channel(16);
        tokio::spawn(async move { node.leave(request.into_inner().force, progress).await });
        Ok(Response::new(ReceiverStream::new(receive)))
    }
}

/// Opens the socket: mode 0660, group `shoal` where there is one.
pub fn listen(path: &Path) -> anyhow::Result<UnixListener> {
    durable::remove(path)?;
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
    if let Some(operators) = durable::operators() {
        chown(path, None, Some(operators))?;
    }
    Ok(listener)
}

/// Serves until it is told to close.
pub async fn serve(
    listener: UnixListener,
    node: Arc<Node>,
    closing: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    tonic::transport::Server::builder()
        .add_service(NodeServer::new(Service(node)))
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), closing.cancelled_owned())
        .await
}
