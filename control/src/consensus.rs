//! What the manager needs of consensus, in its own words. The library behind it is named only in [`crate::raft`].

use std::sync::Arc;

use async_trait::async_trait;
use shoal_core::{Entry, Outcome, Rejection, State};
use shoal_types::{NodeId, Timestamp};
use tokio::sync::watch;

/// What became of one command.
pub type Verdict = Result<Outcome, Rejection>;

/// The replicated state as of a log index. Cheap to clone; a new one for each batch that was applied.
#[derive(Debug, Clone, Default)]
pub struct StateView {
    /// The last log index that is in it.
    pub index: u64,
    /// The state.
    pub state: Arc<State>,
}

/// Who leads, as this manager sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Leadership {
    /// Raft term.
    pub term: u64,
    /// The leader, when one is known.
    pub leader: Option<NodeId>,
    /// It is this manager.
    pub is_self: bool,
}

/// Waits until this manager does (or does not) lead. `None` when consensus is gone. Cancel safe.
pub async fn until_leading(
    leadership: &mut watch::Receiver<Leadership>,
    is_self: bool,
) -> Option<Leadership> {
    leadership.wait_for(|now| now.is_self == is_self).await.ok().map(|now| now.clone())
}

/// Where the log stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LogPosition {
    /// Last index in the log.
    pub last: u64,
    /// Last index applied.
    pub applied: u64,
    /// Last index covered by the snapshot.
    pub snapshot: u64,
    /// Last index no longer in the log.
    pub purged: u64,
}

/// A manager in the Raft membership.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Voter {
    /// Its node.
    pub node: NodeId,
    /// `ADDR:PORT` of its control port.
    pub addr: String,
}

/// Why consensus did not do as asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConsensusError {
    /// Nobody leads, or the leader can't be reached.
    #[error("the managers have no leader right now")]
    NoLeader,
    /// No answer in time. A write may still be applied.
    #[error("the managers did not answer in time")]
    Timeout,
    /// Refused by the rules of membership changes.
    #[error("the change of managers was refused: {0}")]
    Membership(String),
    /// This manager's storage or consensus failed; the process ends.
    #[error("this manager has stopped: {0}")]
    Stopped(String),
}

/// Consensus among managers.
#[async_trait]
pub trait Consensus: Send + Sync {
    /// Writes commands as one log entry, through the leader, and waits until they are applied here.
    async fn propose(&self, batch: Vec<Entry>) -> Result<Vec<Verdict>, ConsensusError>;
    /// Returns once the state here has everything that was acknowledged before the call (read index, no lease).
    async fn read_barrier(&self) -> Result<(), ConsensusError>;
    /// The state, as batches are applied.
    fn state(&self) -> watch::Receiver<StateView>;
    /// The time to stamp into the log.
    fn log_time(&self) -> Timestamp;
    /// Who leads.
    fn leadership(&self) -> watch::Receiver<Leadership>;
    /// Where the log stands.
    fn position(&self) -> watch::Receiver<LogPosition>;
    /// Starts a snapshot now instead of after the usual number of entries.
    async fn snapshot(&self) -> Result<(), ConsensusError>;
    /// Adds a manager that gets the log and has no vote yet; returns when it has caught up.
    async fn add_learner(&self, learner: Voter) -> Result<(), ConsensusError>;
    /// Gives a learner its vote.
    async fn add_voter(&self, node: &NodeId) -> Result<(), ConsensusError>;
    /// Takes a manager out of the membership.
    async fn remove_voter(&self, node: &NodeId) -> Result<(), ConsensusError>;
    /// Resolves when consensus failed for good, with the reason.
    async fn failed(&self) -> ConsensusError;
    /// Stops; what was acknowledged is on disk.
    async fn shutdown(&self);
}
