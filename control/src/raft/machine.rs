//! The library's state machine on top of the pure one.
//!
//! The state lives in memory; what is on disk is the last snapshot and the log after it, from which a start builds the
//! same state again. One value is handed to all readers: `Arc<State>`, copied on write once per batch.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use openraft::storage::RaftStateMachine;
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder};
use shoal_core::State;
use tokio::sync::watch;

use super::log::{RecordError, any, blocking, decode, encode};
use super::store::Store;
use super::types::{
    LogId, Reply, Snapshot, SnapshotMeta, StorageError, StorageIOError, StoredMembership, TypeConfig,
};
use crate::consensus::StateView;

const META: &str = "snapshot-meta";
const BODY: &str = "snapshot";

#[derive(Default)]
struct Applied {
    last: Option<LogId>,
    membership: StoredMembership,
    state: Arc<State>,
    /// Makes two snapshots of the same log position different.
    snapshots_built: u64,
}

/// State, where it stands in the log, and who is told of changes.
#[derive(Clone)]
pub(super) struct Machine {
    store: Arc<Store>,
    applied: Arc<Mutex<Applied>>,
    view: Arc<watch::Sender<StateView>>,
}

impl Machine {
    /// The state of the last snapshot; the library replays the log after it.
    pub(super) fn open(store: Arc<Store>) -> Result<Self, RecordError> {
        let mut applied = Applied::default();
        if let Some((meta, body)) = read_snapshot(&store)? {
            applied.state = Arc::new(decode(BODY, &body)?);
            applied.last = meta.last_log_id;
            applied.membership = meta.last_membership;
        }
        let view = StateView { index: index_of(applied.last), state: Arc::clone(&applied.state) };
        Ok(Self { store, applied: Arc::new(Mutex::new(applied)), view: Arc::new(watch::Sender::new(view)) })
    }

    pub(super) fn watch(&self) -> watch::Receiver<StateView> {
        self.view.subscribe()
    }

    fn lock(&self) -> MutexGuard<'_, Applied> {
        self.applied.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self, applied: &Applied) {
        let view = StateView { index: index_of(applied.last), state: Arc::clone(&applied.state) };
        self.view.send_replace(view);
    }

    fn current(&self) -> (SnapshotMeta, Arc<State>) {
        let mut applied = self.lock();
        applied.snapshots_built += 1;
        let position = applied.last.map_or_else(|| "0".to_owned(), |id| id.to_string());
        let meta = SnapshotMeta {
            last_log_id: applied.last,
            last_membership: applied.membership.clone(),
            snapshot_id: format!("{position}-{}", applied.snapshots_built),
        };
        (meta, Arc::clone(&applied.state))
    }
}

fn index_of(last: Option<LogId>) -> u64 {
    last.map_or(0, |id| id.index)
}

fn read_snapshot(store: &Store) -> Result<Option<(SnapshotMeta, Vec<u8>)>, RecordError> {
    let (Some(meta), Some(body)) = (store.fact(META)?, store.fact(BODY)?) else { return Ok(None) };
    Ok(Some((decode(META, &meta)?, body)))
}

fn write_snapshot(store: &Store, meta: &SnapshotMeta, body: &[u8]) -> Result<(), RecordError> {
    Ok(store.write_facts(&[(META, &encode(META, meta)?), (BODY, body)])?)
}

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), StorageError> {
        let applied = self.lock();
        Ok((applied.last, applied.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Reply>, StorageError>
    where
        I: IntoIterator<Item = openraft::Entry<TypeConfig>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut applied = self.lock();
        let mut replies = Vec::new();
        for entry in entries {
            applied.last = Some(entry.log_id);
            let mut reply = Reply::default();
            match entry.payload {
                EntryPayload::Blank => {}
                EntryPayload::Membership(membership) => {
                    applied.membership = StoredMembership::new(Some(entry.log_id), membership);
                }
                EntryPayload::Normal(batch) => {
                    let state = Arc::make_mut(&mut applied.state);
                    reply.0 = batch.0.iter().map(|e| state.apply(entry.log_id.index, e)).collect();
                }
            }
            replies.push(reply);
        }
        self.publish(&applied);
        Ok(replies)
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Vec<u8>>, StorageError> {
        Ok(Box::default())
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: Box<Vec<u8>>,
    ) -> Result<(), StorageError> {
        let (kept, body) = (meta.clone(), *snapshot);
        // Decoded before it is kept: a snapshot that this build can't read must not replace one that it can.
        let state = blocking(&self.store, move |store| {
            let state: State = decode(BODY, &body)?;
            write_snapshot(store, &kept, &body)?;
            Ok(state)
        })
        .await
        .map_err(|e| StorageIOError::write_snapshot(Some(meta.signature()), any(&e)))?;
        let mut applied = self.lock();
        applied.state = Arc::new(state);
        applied.last = meta.last_log_id;
        applied.membership = meta.last_membership.clone();
        self.publish(&applied);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, StorageError> {
        let read = blocking(&self.store, read_snapshot).await;
        let read = read.map_err(|e| StorageIOError::read_snapshot(None, any(&e)))?;
        Ok(read.map(|(meta, body)| Snapshot { meta, snapshot: Box::new(body) }))
    }
}

impl RaftSnapshotBuilder<TypeConfig> for Machine {
    async fn build_snapshot(&mut self) -> Result<Snapshot, StorageError> {
        let (meta, state) = self.current();
        let kept = meta.clone();
        let body = blocking(&self.store, move |store| {
            let body = encode(BODY, state.as_ref())?;
            write_snapshot(store, &kept, &body)?;
            Ok(body)
        })
        .await
        .map_err(|e| StorageIOError::write_snapshot(Some(meta.signature()), any(&e)))?;
        Ok(Snapshot { meta, snapshot: Box::new(body) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::log::LogStore;
    use crate::seal::DataKey;
    use openraft::testing::{StoreBuilder, Suite};
    use tempfile::TempDir;

    struct Builder;

    impl StoreBuilder<TypeConfig, LogStore, Machine, TempDir> for Builder {
        async fn build(&self) -> Result<(TempDir, LogStore, Machine), StorageError> {
            let dir = tempfile::tempdir().expect("temporary directory");
            let key = Arc::new(DataKey::from_bytes(&[9; 32]).expect("random"));
            let store = Arc::new(Store::open(dir.path(), key).expect("open"));
            let machine = Machine::open(Arc::clone(&store)).expect("machine");
            Ok((dir, LogStore::new(store), machine))
        }
    }

    #[test]
    fn the_consensus_library_s_own_storage_suite_passes() {
        Suite::test_all(Builder).expect("suite");
    }
}
