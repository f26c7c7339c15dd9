//! The library's log storage on top of [`Store`].
//!
//! Order matters more than speed here: a write is on disk before its callback or return, and one write ends before
//! the next begins, because the library awaits each of these calls in turn.

use std::fmt::Debug;
use std::ops::RangeBounds;
use std::sync::Arc;

use openraft::storage::{LogFlushed, RaftLogStorage};
use openraft::{AnyError, LogState, OptionalSend, RaftLogReader};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::store::{Store, StoreError};
use super::types::{LogId, StorageError, StorageIOError, TypeConfig, Vote};

type LogEntry = openraft::Entry<TypeConfig>;

const VOTE: &str = "vote";
const COMMITTED: &str = "committed";
const PURGED: &str = "purged";

/// Why a record of the log or the snapshot could not be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum RecordError {
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The bytes of a record.
    #[error("a record of '{0}' does not decode")]
    Decode(&'static str, #[source] postcard::Error),
    /// The value.
    #[error("a record of '{0}' does not encode")]
    Encode(&'static str, #[source] postcard::Error),
    /// The blocking call was cancelled: the process is ending.
    #[error("the storage thread is gone")]
    Gone,
}

pub(super) fn any(error: &RecordError) -> AnyError {
    AnyError::new(error)
}

pub(super) fn encode<T: Serialize>(what: &'static str, value: &T) -> Result<Vec<u8>, RecordError> {
    postcard::to_stdvec(value).map_err(|e| RecordError::Encode(what, e))
}

pub(super) fn decode<T: DeserializeOwned>(what: &'static str, bytes: &[u8]) -> Result<T, RecordError> {
    postcard::from_bytes(bytes).map_err(|e| RecordError::Decode(what, e))
}

/// Runs a blocking store call off the runtime's workers.
pub(super) async fn blocking<T: Send + 'static>(
    store: &Arc<Store>,
    body: impl FnOnce(&Store) -> Result<T, RecordError> + Send + 'static,
) -> Result<T, RecordError> {
    let store = Arc::clone(store);
    tokio::task::spawn_blocking(move || body(&store)).await.map_err(|_| RecordError::Gone)?
}

fn fact<T: DeserializeOwned>(store: &Store, name: &'static str) -> Result<Option<T>, RecordError> {
    store.fact(name)?.map(|bytes| decode(name, &bytes)).transpose()
}

/// Up to where the log was cut.
pub(super) fn purged(store: &Store) -> Result<Option<LogId>, RecordError> {
    fact(store, PURGED)
}

/// Log, vote and commit point of one manager.
#[derive(Clone)]
pub(super) struct LogStore {
    store: Arc<Store>,
}

impl LogStore {
    pub(super) fn new(store: Arc<Store>) -> Self {
        Self { store }
    }

    fn fact<T: DeserializeOwned>(&self, name: &'static str) -> Result<Option<T>, RecordError> {
        fact(&self.store, name)
    }

    fn log_state(&self) -> Result<LogState<TypeConfig>, RecordError> {
        let last_purged_log_id: Option<LogId> = self.fact(PURGED)?;
        let last_log_id = match self.store.last()? {
            Some((_, bytes)) => Some(decode::<LogEntry>("log", &bytes)?.log_id),
            None => last_purged_log_id,
        };
        Ok(LogState { last_purged_log_id, last_log_id })
    }
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<LogEntry>, StorageError> {
        let read = || {
            let records = self.store.read(range)?;
            records.iter().map(|(_, bytes)| decode("log", bytes)).collect::<Result<Vec<_>, _>>()
        };
        read().map_err(|e: RecordError| StorageIOError::read_logs(any(&e)).into())
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, StorageError> {
        self.log_state().map_err(|e| StorageIOError::read_logs(any(&e)).into())
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), StorageError> {
        let vote = *vote;
        blocking(&self.store, move |store| Ok(store.write_facts(&[(VOTE, &encode(VOTE, &vote)?)])?))
            .await
            .map_err(|e| StorageIOError::write_vote(any(&e)).into())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, StorageError> {
        self.fact(VOTE).map_err(|e| StorageIOError::read_vote(any(&e)).into())
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), StorageError> {
        // Lost in a power cut it is found again by the next election, so it need not wait for the disk.
        blocking(&self.store, move |store| {
            Ok(store.write_fact_lazily(COMMITTED, &encode(COMMITTED, &committed)?)?)
        })
        .await
        .map_err(|e| StorageIOError::write(any(&e)).into())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, StorageError> {
        let read = || {
            let committed = self.fact::<Option<LogId>>(COMMITTED)?.flatten();
            // It may be ahead of what is on disk after a power cut, as it is not ordered with the log.
            Ok(committed.min(self.log_state()?.last_log_id))
        };
        read().map_err(|e: RecordError| StorageIOError::read(any(&e)).into())
    }

    async fn append<I>(&mut self, entries: I, callback: LogFlushed<TypeConfig>) -> Result<(), StorageError>
    where
        I: IntoIterator<Item = LogEntry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let records: Result<Vec<_>, RecordError> =
            entries.into_iter().map(|entry| Ok((entry.log_id.index, encode("log", &entry)?))).collect();
        let records = records.map_err(|e| StorageIOError::write_logs(any(&e)))?;
        blocking(&self.store, move |store| Ok(store.append(&records)?))
            .await
            .map_err(|e| StorageIOError::write_logs(any(&e)))?;
        callback.log_io_completed(Ok(()));
        Ok(())
    }

    async fn truncate(&mut self, log_id: LogId) -> Result<(), StorageError> {
        blocking(&self.store, move |store| Ok(store.remove(log_id.index.., &[])?))
            .await
            .map_err(|e| StorageIOError::write_logs(any(&e)).into())
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), StorageError> {
        blocking(&self.store, move |store| {
            Ok(store.remove(..=log_id.index, &[(PURGED, &encode(PURGED, &log_id)?)])?)
        })
        .await
        .map_err(|e| StorageIOError::write_logs(any(&e)).into())
    }
}
