//! The consensus library's type parameters, filled in.

use serde::{Deserialize, Serialize};
use shoal_core::{Entry, Outcome, Rejection};

/// What became of one command.
pub(crate) type Verdict = Result<Outcome, Rejection>;

/// One log entry: commands that were grouped, because an entry costs an fsync and a command should not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Batch(pub Vec<Entry>);

/// Verdicts on the commands of a batch, in their order; none for entries of the library's own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Reply(pub Vec<Verdict>);

/// A manager as the membership knows it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Peer {
    /// Node id.
    pub node: String,
    /// `ADDR:PORT` of its control port.
    pub addr: String,
}

openraft::declare_raft_types!(
    /// Types of our Raft.
    pub(crate) TypeConfig:
        D = Batch,
        R = Reply,
        NodeId = u64,
        Node = Peer,
        SnapshotData = Vec<u8>,
);

pub(super) type LogId = openraft::LogId<u64>;
pub(super) type Vote = openraft::Vote<u64>;
pub(super) type StorageError = openraft::StorageError<u64>;
pub(super) type StorageIOError = openraft::StorageIOError<u64>;
pub(super) type StoredMembership = openraft::StoredMembership<u64, Peer>;
pub(super) type SnapshotMeta = openraft::SnapshotMeta<u64, Peer>;
pub(super) type Snapshot = openraft::Snapshot<TypeConfig>;
pub(super) type Raft = openraft::Raft<TypeConfig>;
