//! How managers reach each other: gRPC over the cluster's mTLS, one lazily dialled connection per peer.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use openraft::error::{
    Fatal, NetworkError, RPCError, RaftError, ReplicationClosed, StreamingError, Timeout, Unreachable,
};
use openraft::network::{RPCOption, RPCTypes, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse,
};
use openraft::{AnyError, OptionalSend};
use rustls::ClientConfig;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use shoal_api::pb;
use shoal_api::pb::raft_client::RaftClient;
use shoal_core::Entry;
use tonic::Status;
use tonic::transport::Channel;

use super::types::{Peer, Snapshot, SnapshotMeta, TypeConfig, Verdict, Vote};
use crate::tls::connector;

/// How to dial peers; empty until this manager has its first certificate.
pub type TlsSlot = Arc<ArcSwapOption<ClientConfig>>;

/// Raft messages carry batches; only managers may call these, so the limit is wider than elsewhere.
pub(super) const MESSAGE_LIMIT: usize = 64 << 20;
/// Pieces in which a snapshot travels.
const CHUNK: usize = 1 << 20;
const SNAPSHOT_TIMEOUT: Duration = Duration::from_mins(2);

/// Head of a snapshot's stream; the body follows in pieces.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct SnapshotHead {
    pub(super) vote: Vote,
    pub(super) meta: SnapshotMeta,
    pub(super) length: u64,
}

/// What a follower hands to the leader.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Forwarded {
    /// Commands to write.
    Propose(Vec<Entry>),
    /// The index from which on a read is linearizable.
    ReadIndex,
}

/// The leader's answer: the caller waits until its own state has this index.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ForwardedReply {
    pub(super) index: u64,
    pub(super) verdicts: Vec<Verdict>,
}

pub(super) fn pack<T: Serialize>(value: &T) -> Result<pb::RaftPayload, Status> {
    let data = postcard::to_stdvec(value).map_err(|e| Status::internal(format!("cannot encode: {e}")))?;
    Ok(pb::RaftPayload { data })
}

pub(super) fn unpack<T: DeserializeOwned>(payload: &pb::RaftPayload) -> Result<T, Status> {
    postcard::from_bytes(&payload.data).map_err(|e| Status::invalid_argument(format!("cannot decode: {e}")))
}

/// A client for the Raft service of a peer.
pub(super) fn client(tls: &TlsSlot, peer: &Peer) -> Result<RaftClient<Channel>, Status> {
    let tls = tls.load_full().ok_or_else(|| Status::unavailable("this manager has no certificate yet"))?;
    let node = peer.node.parse().map_err(|e| Status::internal(format!("peer: {e}")))?;
    let channel = connector::channel_to_node(&tls, &peer.addr, &node)
        .map_err(|e| Status::unavailable(e.to_string()))?;
    Ok(RaftClient::new(channel)
        .max_decoding_message_size(MESSAGE_LIMIT)
        .max_encoding_message_size(MESSAGE_LIMIT))
}

/// Makes a connection per peer for the library.
pub(super) struct Factory {
    pub(super) own_id: u64,
    pub(super) tls: TlsSlot,
}

impl RaftNetworkFactory<TypeConfig> for Factory {
    type Network = PeerLink;

    async fn new_client(&mut self, target: u64, node: &Peer) -> PeerLink {
        let (tls, peer) = (Arc::clone(&self.tls), node.clone());
        PeerLink { own_id: self.own_id, target, tls, peer, client: None }
    }
}

/// The library's way to one peer.
pub(super) struct PeerLink {
    own_id: u64,
    target: u64,
    tls: TlsSlot,
    peer: Peer,
    client: Option<RaftClient<Channel>>,
}

type RpcError = RPCError<u64, Peer, RaftError<u64>>;

enum CallError {
    Status(Status),
    Elapsed,
}

impl From<Status> for CallError {
    fn from(status: Status) -> Self {
        Self::Status(status)
    }
}

impl PeerLink {
    fn client(&mut self) -> Result<RaftClient<Channel>, Status> {
        if let Some(client) = &self.client {
            return Ok(client.clone());
        }
        let made = client(&self.tls, &self.peer)?;
        self.client = Some(made.clone());
        Ok(made)
    }

    fn rpc_error(&self, action: RPCTypes, timeout: Duration, error: CallError) -> RpcError {
        match error {
            CallError::Elapsed => Timeout { action, id: self.own_id, target: self.target, timeout }.into(),
            CallError::Status(status) if status.code() == tonic::Code::Unavailable => {
                Unreachable::new(&AnyError::error(status.message())).into()
            }
            CallError::Status(status) => NetworkError::new(&AnyError::error(status.message())).into(),
        }
    }
}

async fn within<T>(limit: Duration, call: impl Future<Output = Result<T, Status>>) -> Result<T, CallError> {
    Ok(tokio::time::timeout(limit, call).await.map_err(|_| CallError::Elapsed)??)
}

impl RaftNetwork<TypeConfig> for PeerLink {
    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<u64>, RpcError> {
        let limit = option.hard_ttl();
        let call = async {
            let mut client = self.client()?;
            unpack(client.append(pack(&rpc)?).await?.get_ref())
        };
        within(limit, call).await.map_err(|e| self.rpc_error(RPCTypes::AppendEntries, limit, e))
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<u64>,
        option: RPCOption,
    ) -> Result<VoteResponse<u64>, RpcError> {
        let limit = option.hard_ttl();
        let call = async {
            let mut client = self.client()?;
            unpack(client.vote(pack(&rpc)?).await?.get_ref())
        };
        within(limit, call).await.map_err(|e| self.rpc_error(RPCTypes::Vote, limit, e))
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<u64>, StreamingError<TypeConfig, Fatal<u64>>> {
        let (own_id, target) = (self.own_id, self.target);
        let send = within(SNAPSHOT_TIMEOUT, self.send_snapshot(vote, snapshot));
        // Cancel safe: a snapshot that is cut off half way is not installed.
        let sent = tokio::select! {
            closed = cancel => return Err(closed.into()),
            sent = send => sent,
        };
        sent.map_err(|error| match error {
            CallError::Elapsed => {
                Timeout { action: RPCTypes::InstallSnapshot, id: own_id, target, timeout: SNAPSHOT_TIMEOUT }
                    .into()
            }
            CallError::Status(status) => {
                StreamingError::Unreachable(Unreachable::new(&AnyError::error(status.message())))
            }
        })
    }
}

impl PeerLink {
    async fn send_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
    ) -> Result<SnapshotResponse<u64>, Status> {
        let body = *snapshot.snapshot;
        let length = u64::try_from(body.len()).map_err(|_| Status::internal("snapshot length"))?;
        let head = pack(&SnapshotHead { vote, meta: snapshot.meta, length })?;
        let pieces: Vec<_> =
            body.chunks(CHUNK).map(|piece| pb::RaftPayload { data: piece.to_vec() }).collect();
        let stream = tokio_stream::iter(std::iter::once(head).chain(pieces));
        let mut client = self.client()?;
        unpack(client.install_snapshot(stream).await?.get_ref())
    }
}
