//! [`Consensus`] by openraft. Nothing outside this module names the library.
//!
//! Files: [`store`] sealed records in redb, `log` and `machine` the library's storage on top of it, `network` and
//! [`service`] both ends of the manager-to-manager calls. Tasks: the library's own, and one that copies its metrics
//! into our watches (the metrics are never borrowed across an await: that would stop the library).

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use openraft::error::{CheckIsLeaderError, ClientWriteError, ForwardToLeader, InitializeError, RaftError};
use openraft::{ChangeMembers, Config, RaftMetrics, ServerState, SnapshotPolicy};
use ring::digest::{SHA256, digest};
use shoal_api::pb::raft_client::RaftClient;
use shoal_core::Entry;
use shoal_types::{NodeId, Timestamp};
use tokio::sync::watch;
use tonic::transport::Channel;

use crate::clock::LogClock;
use crate::consensus::{Consensus, ConsensusError, Leadership, LogPosition, StateView, Verdict, Voter};
use crate::seal::DataKey;

mod log;
mod machine;
mod network;
pub mod service;
pub mod store;
mod types;

use log::{LogStore, RecordError};
use machine::Machine;
pub use network::TlsSlot;
use network::{Forwarded, ForwardedReply};
use store::{Store, StoreError};
use types::{Batch, Peer, Raft};

/// How long a call waits for an election before it says that there is no leader.
const LEADER_WAIT: Duration = Duration::from_secs(3);
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
const CATCH_UP_TIMEOUT: Duration = Duration::from_mins(1);

/// Why consensus did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A record of it.
    #[error("the Raft store cannot be used: {0}")]
    Record(String),
    /// The library.
    #[error("Raft cannot start: {0}")]
    Raft(String),
}

impl From<RecordError> for StartError {
    fn from(error: RecordError) -> Self {
        match error {
            RecordError::Store(error) => Self::Store(error),
            other => Self::Record(other.to_string()),
        }
    }
}

/// What a manager's Raft needs.
#[derive(Debug)]
pub struct RaftOptions {
    /// Directory of the store.
    pub dir: PathBuf,
    /// Seals it.
    pub key: Arc<DataKey>,
    /// This manager.
    pub own: Voter,
    /// How to dial peers; may be filled later.
    pub tls: TlsSlot,
    /// Entries after which a snapshot is made.
    pub snapshot_every: u64,
}

/// One manager's Raft.
pub struct RaftNode {
    raft: Raft,
    id: u64,
    own: Voter,
    tls: TlsSlot,
    links: Mutex<BTreeMap<u64, (Peer, RaftClient<Channel>)>>,
    state: watch::Receiver<StateView>,
    leadership: watch::Receiver<Leadership>,
    position: watch::Receiver<LogPosition>,
    failure: watch::Receiver<Option<ConsensusError>>,
    clock: LogClock,
}

impl std::fmt::Debug for RaftNode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RaftNode").field("own", &self.own).finish_non_exhaustive()
    }
}

/// The library wants small copyable ids: 64 bits of a digest of ours. It refuses a second node under the same one.
fn raft_id(node: &NodeId) -> u64 {
    let hash = digest(&SHA256, node.as_str().as_bytes());
    hash.as_ref().first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes))
}

fn config(snapshot_every: u64) -> Config {
    Config {
        cluster_name: "shoal".to_owned(),
        heartbeat_interval: 100,
        // Shorter elections lose the leader as soon as a disk is busy for a moment.
        election_timeout_min: 500,
        election_timeout_max: 1_000,
        install_snapshot_timeout: 10_000,
        max_payload_entries: 64,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(snapshot_every),
        max_in_snapshot_log_to_keep: snapshot_every / 5,
        ..Config::default()
    }
}

/// The snapshot and the log must meet: what was cut off the log is in the snapshot, and the log goes on from there.
fn check_order(store: &Store, snapshot: u64) -> Result<(), StartError> {
    let (first, purged) = (store.first_index()?, log::purged(store)?.map_or(0, |id| id.index));
    if purged > snapshot {
        return Err(StartError::Record(format!(
            "the log is cut up to {purged}, the snapshot ends at {snapshot}"
        )));
    }
    match first {
        Some(first) if first > purged + 1 => {
            Err(StartError::Record(format!("the log is cut up to {purged} and begins at {first}")))
        }
        _ => Ok(()),
    }
}

impl RaftNode {
    /// Opens the store and starts; what was committed before is applied again.
    pub async fn start(options: RaftOptions) -> Result<Arc<Self>, StartError> {
        let RaftOptions { dir, key, own, tls, snapshot_every } = options;
        let opened = tokio::task::spawn_blocking(move || {
            let store = Arc::new(Store::open(&dir, key)?);
            let machine = Machine::open(Arc::clone(&store))?;
            check_order(&store, machine.watch().borrow().index)?;
            Ok::<_, StartError>((store, machine))
        });
        let (store, machine) = opened.await.map_err(|e| StartError::Record(e.to_string()))??;
        let raft_error = |e: &dyn std::error::Error| StartError::Raft(e.to_string());
        let config = config(snapshot_every).validate().map_err(|e| raft_error(&e))?;
        let id = raft_id(&own.node);
        let state = machine.watch();
        let factory = network::Factory { own_id: id, tls: Arc::clone(&tls) };
        let raft = Raft::new(id, Arc::new(config), factory, LogStore::new(store), machine)
            .await
            .map_err(|e| raft_error(&e))?;
        let (leadership, position, failure) = follow_metrics(&raft);
        let (links, clock) = (Mutex::default(), LogClock::default());
        Ok(Arc::new(Self { raft, id, own, tls, links, state, leadership, position, failure, clock }))
    }

    /// Makes this manager the only voter of a new cluster; nothing happens when it already is in one.
    pub async fn found(&self) -> Result<(), StartError> {
        // Asked first, because the library calls a second founding an error in its log.
        if self.is_founded().await? {
            return Ok(());
        }
        let peer = Peer { node: self.own.node.to_string(), addr: self.own.addr.clone() };
        match self.raft.initialize(BTreeMap::from([(self.id, peer)])).await {
            Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Ok(()),
            Err(error) => Err(StartError::Raft(error.to_string())),
        }
    }

    /// Whether it is in a cluster.
    pub async fn is_founded(&self) -> Result<bool, StartError> {
        self.raft.is_initialized().await.map_err(|e| StartError::Raft(e.to_string()))
    }

    pub(crate) fn raft(&self) -> &Raft {
        &self.raft
    }

    async fn wait_for_leader(&self) -> Result<(), ConsensusError> {
        let mut leadership = self.leadership.clone();
        let known = leadership.wait_for(|now| now.leader.is_some());
        match tokio::time::timeout(LEADER_WAIT, known).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(self.stopped()),
            Err(_) => Err(ConsensusError::NoLeader),
        }
    }

    fn stopped(&self) -> ConsensusError {
        let failure = self.failure.borrow().clone();
        failure.unwrap_or_else(|| ConsensusError::Stopped("it is shutting down".into()))
    }

    /// Writes on this manager, which must lead. The index is that of the entry.
    pub(crate) async fn propose_here(
        &self,
        mut batch: Vec<Entry>,
    ) -> Result<(u64, Vec<Verdict>), ConsensusError> {
        // It came from a follower: time in the log is the leader's.
        let now = self.log_time();
        for entry in &mut batch {
            entry.now = now;
        }
        self.propose_or_forward(batch, false).await
    }

    async fn propose_or_forward(
        &self,
        batch: Vec<Entry>,
        may_forward: bool,
    ) -> Result<(u64, Vec<Verdict>), ConsensusError> {
        let kept = may_forward.then(|| batch.clone());
        // A leader that was cut off would wait for ever.
        let written = tokio::time::timeout(CALL_TIMEOUT, self.raft.client_write(Batch(batch))).await;
        match written.map_err(|_| ConsensusError::Timeout)? {
            Ok(response) => Ok((response.log_id.index, response.data.0)),
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(to))) => match kept {
                Some(batch) => self.forward(&to, Forwarded::Propose(batch)).await,
                None => Err(ConsensusError::NoLeader),
            },
            Err(RaftError::APIError(ClientWriteError::ChangeMembershipError(error))) => {
                Err(ConsensusError::Membership(error.to_string()))
            }
            Err(RaftError::Fatal(error)) => Err(ConsensusError::Stopped(error.to_string())),
        }
    }

    /// The read index of this manager, which must lead; its quorum has confirmed that after the call began.
    pub(crate) async fn read_index_here(&self) -> Result<u64, ConsensusError> {
        match self.read_index_or_leader().await? {
            Ok(index) => Ok(index),
            Err(_) => Err(ConsensusError::NoLeader),
        }
    }

    async fn read_index_or_leader(&self) -> Result<Result<u64, ForwardToLeader<u64, Peer>>, ConsensusError> {
        let barrier = tokio::time::timeout(CALL_TIMEOUT, self.raft.ensure_linearizable()).await;
        match barrier.map_err(|_| ConsensusError::Timeout)? {
            Ok(read) => Ok(Ok(read.map_or(0, |id| id.index))),
            Err(RaftError::APIError(CheckIsLeaderError::ForwardToLeader(to))) => Ok(Err(to)),
            Err(RaftError::APIError(CheckIsLeaderError::QuorumNotEnough(_))) => Err(ConsensusError::NoLeader),
            Err(RaftError::Fatal(error)) => Err(ConsensusError::Stopped(error.to_string())),
        }
    }

    async fn forward(
        &self,
        to: &ForwardToLeader<u64, Peer>,
        what: Forwarded,
    ) -> Result<(u64, Vec<Verdict>), ConsensusError> {
        let (Some(id), Some(peer)) = (to.leader_id, to.leader_node.as_ref()) else {
            return Err(ConsensusError::NoLeader);
        };
        let mut client = self.link(id, peer)?;
        let payload = network::pack(&what).map_err(|e| ConsensusError::Stopped(e.to_string()))?;
        let called = tokio::time::timeout(CALL_TIMEOUT, client.forward(payload)).await;
        let reply = called
            .map_err(|_| ConsensusError::Timeout)?
            // It may have been written: "no leader" would promise too much.
            .map_err(|_| ConsensusError::Timeout)?;
        let reply: ForwardedReply = network::unpack(reply.get_ref()).map_err(|_| ConsensusError::Timeout)?;
        self.wait_applied(reply.index).await?;
        Ok((reply.index, reply.verdicts))
    }

    fn link(&self, id: u64, peer: &Peer) -> Result<RaftClient<Channel>, ConsensusError> {
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, client)) = links.get(&id)
            && known == peer
        {
            return Ok(client.clone());
        }
        let client = network::client(&self.tls, peer).map_err(|_| ConsensusError::NoLeader)?;
        links.insert(id, (peer.clone(), client.clone()));
        Ok(client)
    }

    async fn wait_applied(&self, index: u64) -> Result<(), ConsensusError> {
        let mut state = self.state.clone();
        let reached = state.wait_for(|view| view.index >= index);
        match tokio::time::timeout(CALL_TIMEOUT, reached).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(self.stopped()),
            Err(_) => Err(ConsensusError::Timeout),
        }
    }

    async fn change(&self, change: ChangeMembers<u64, Peer>) -> Result<(), ConsensusError> {
        let changed =
            tokio::time::timeout(CATCH_UP_TIMEOUT, self.raft.change_membership(change, false)).await;
        changed.map_err(|_| ConsensusError::Timeout)?.map_err(membership_error)?;
        Ok(())
    }
}

fn membership_error(error: RaftError<u64, ClientWriteError<u64, Peer>>) -> ConsensusError {
    match error {
        RaftError::APIError(ClientWriteError::ForwardToLeader(_)) => ConsensusError::NoLeader,
        RaftError::APIError(error) => ConsensusError::Membership(error.to_string()),
        RaftError::Fatal(error) => ConsensusError::Stopped(error.to_string()),
    }
}

type Watches =
    (watch::Receiver<Leadership>, watch::Receiver<LogPosition>, watch::Receiver<Option<ConsensusError>>);

fn follow_metrics(raft: &Raft) -> Watches {
    let mut metrics = raft.metrics();
    let (leadership, leadership_rx) = watch::channel(Leadership::default());
    let (position, position_rx) = watch::channel(LogPosition::default());
    let (failure, failure_rx) = watch::channel(None);
    tokio::spawn(async move {
        loop {
            let now = metrics.borrow_and_update().clone();
            leadership.send_if_modified(|known| replace(known, leadership_of(&now)));
            position.send_if_modified(|known| replace(known, position_of(&now)));
            if let Err(error) = &now.running_state {
                failure.send_replace(Some(ConsensusError::Stopped(error.to_string())));
                return;
            }
            if metrics.changed().await.is_err() {
                failure.send_replace(Some(ConsensusError::Stopped("it was shut down".into())));
                return;
            }
        }
    });
    (leadership_rx, position_rx, failure_rx)
}

fn replace<T: PartialEq>(known: &mut T, now: T) -> bool {
    let changed = *known != now;
    *known = now;
    changed
}

fn leadership_of(metrics: &RaftMetrics<u64, Peer>) -> Leadership {
    let leader = metrics.current_leader.and_then(|id| {
        let peer = metrics.membership_config.nodes().find(|(known, _)| **known == id)?;
        peer.1.node.parse().ok()
    });
    let is_self = metrics.state == ServerState::Leader;
    Leadership { term: metrics.current_term, leader, is_self }
}

fn position_of(metrics: &RaftMetrics<u64, Peer>) -> LogPosition {
    let index = |id: Option<openraft::LogId<u64>>| id.map_or(0, |id| id.index);
    LogPosition {
        last: metrics.last_log_index.unwrap_or(0),
        applied: index(metrics.last_applied),
        snapshot: index(metrics.snapshot),
        purged: index(metrics.purged),
    }
}

#[async_trait]
impl Consensus for RaftNode {
    async fn propose(&self, batch: Vec<Entry>) -> Result<Vec<Verdict>, ConsensusError> {
        self.wait_for_leader().await?;
        Ok(self.propose_or_forward(batch, true).await?.1)
    }

    async fn read_barrier(&self) -> Result<(), ConsensusError> {
        self.wait_for_leader().await?;
        match self.read_index_or_leader().await? {
            Ok(index) => self.wait_applied(index).await,
            Err(to) => self.forward(&to, Forwarded::ReadIndex).await.map(|_| ()),
        }
    }

    fn state(&self) -> watch::Receiver<StateView> {
        self.state.clone()
    }

    fn log_time(&self) -> Timestamp {
        let latest = self.state.borrow().state.latest();
        self.clock.now(latest)
    }

    fn leadership(&self) -> watch::Receiver<Leadership> {
        self.leadership.clone()
    }

    fn position(&self) -> watch::Receiver<LogPosition> {
        self.position.clone()
    }

    async fn snapshot(&self) -> Result<(), ConsensusError> {
        self.raft.trigger().snapshot().await.map_err(|e| ConsensusError::Stopped(e.to_string()))
    }

    async fn add_learner(&self, learner: Voter) -> Result<(), ConsensusError> {
        let peer = Peer { node: learner.node.to_string(), addr: learner.addr };
        let added = self.raft.add_learner(raft_id(&learner.node), peer, true);
        let added = tokio::time::timeout(CATCH_UP_TIMEOUT, added).await;
        added.map_err(|_| ConsensusError::Timeout)?.map_err(membership_error)?;
        Ok(())
    }

    async fn add_voter(&self, node: &NodeId) -> Result<(), ConsensusError> {
        self.change(ChangeMembers::AddVoterIds(BTreeSet::from([raft_id(node)]))).await
    }

    async fn remove_voter(&self, node: &NodeId) -> Result<(), ConsensusError> {
        self.change(ChangeMembers::RemoveVoters(BTreeSet::from([raft_id(node)]))).await
    }

    async fn failed(&self) -> ConsensusError {
        let mut failure = self.failure.clone();
        let failed = failure.wait_for(Option::is_some).await.ok().and_then(|failure| failure.clone());
        failed.unwrap_or_else(|| ConsensusError::Stopped("its watch is gone".into()))
    }

    async fn shutdown(&self) {
        if let Err(error) = self.raft.shutdown().await {
            tracing::warn!(%error, "raft did not stop cleanly");
        }
    }
}

#[cfg(test)]
mod tests;
