//! The other end of `network`: what peers ask of this manager's Raft.

use std::sync::Arc;

use shoal_api::pb;
use shoal_api::pb::raft_server::{Raft as RaftRpc, RaftServer};
use shoal_api::status::ApiError;
use shoal_types::ErrorCode;
use tonic::{Request, Response, Status, Streaming};

use super::RaftNode;
use super::network::{Forwarded, ForwardedReply, MESSAGE_LIMIT, SnapshotHead, pack, unpack};
use super::types::Snapshot;

/// No cluster's state is larger; a peer that says so is broken.
const SNAPSHOT_LIMIT: u64 = 1 << 30;

/// Serves peers.
pub struct RaftService {
    node: Arc<RaftNode>,
}

impl RaftService {
    /// The service, ready to be added to a server.
    pub fn server(node: Arc<RaftNode>) -> RaftServer<Self> {
        RaftServer::new(Self { node })
            .max_decoding_message_size(MESSAGE_LIMIT)
            .max_encoding_message_size(MESSAGE_LIMIT)
    }
}

fn refused(error: &dyn std::error::Error) -> Status {
    Status::internal(error.to_string())
}

#[tonic::async_trait]
impl RaftRpc for RaftService {
    async fn append(&self, request: Request<pb::RaftPayload>) -> Result<Response<pb::RaftPayload>, Status> {
        let rpc = unpack(request.get_ref())?;
        let reply = self.node.raft().append_entries(rpc).await.map_err(|e| refused(&e))?;
        Ok(Response::new(pack(&reply)?))
    }

    async fn vote(&self, request: Request<pb::RaftPayload>) -> Result<Response<pb::RaftPayload>, Status> {
        let rpc = unpack(request.get_ref())?;
        let reply = self.node.raft().vote(rpc).await.map_err(|e| refused(&e))?;
        Ok(Response::new(pack(&reply)?))
    }

    async fn install_snapshot(
        &self,
        request: Request<Streaming<pb::RaftPayload>>,
    ) -> Result<Response<pb::RaftPayload>, Status> {
        let mut stream = request.into_inner();
        let first = stream.message().await?.ok_or_else(|| Status::invalid_argument("no snapshot head"))?;
        let head: SnapshotHead = unpack(&first)?;
        if head.length > SNAPSHOT_LIMIT {
            return Err(Status::invalid_argument("the snapshot is larger than any state"));
        }
        let wanted = usize::try_from(head.length).map_err(|_| Status::invalid_argument("snapshot length"))?;
        let mut body = Vec::new();
        while let Some(piece) = stream.message().await? {
            if body.len() + piece.data.len() > wanted {
                return Err(Status::invalid_argument("the snapshot is longer than its head says"));
            }
            body.extend_from_slice(&piece.data);
        }
        if body.len() != wanted {
            return Err(Status::invalid_argument("the snapshot is shorter than its head says"));
        }
        let snapshot = Snapshot { meta: head.meta, snapshot: Box::new(body) };
        let reply =
            self.node.raft().install_full_snapshot(head.vote, snapshot).await.map_err(|e| refused(&e))?;
        Ok(Response::new(pack(&reply)?))
    }

    async fn forward(&self, request: Request<pb::RaftPayload>) -> Result<Response<pb::RaftPayload>, Status> {
        let forwarded: Forwarded = unpack(request.get_ref())?;
        let (index, verdicts) = match forwarded {
            Forwarded::Propose(batch) => self.node.propose_here(batch).await,
            Forwarded::ReadIndex => self.node.read_index_here().await.map(|index| (index, Vec::new())),
        }
        .map_err(|e| Status::from(ApiError::new(ErrorCode::NoLeader, e.to_string())))?;
        Ok(Response::new(pack(&ForwardedReply { index, verdicts })?))
    }
}
