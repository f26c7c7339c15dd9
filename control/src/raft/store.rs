//! Sealed records in an embedded transactional database: the log, the vote, the snapshot.
//!
//! Knows nothing of Raft: numbers, names and bytes. Every record is sealed for its place, so a record that was
//! changed, moved or taken from another manager does not open. All calls block; the callers say where.

use std::fs::{self, DirBuilder};
use std::io;
use std::ops::{Bound, RangeBounds};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use redb::{Database, Durability, ReadableDatabase, ReadableTable, ReadableTableMetadata, TableDefinition};

use crate::seal::{DataKey, SealError};

const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");
const FACTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("facts");
/// The log and the state are small; the default of a gigabyte is for databases larger than memory.
const CACHE_BYTES: usize = 32 << 20;

/// Why a record could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The directory or file.
    #[error("cannot prepare the Raft store {path}")]
    Path {
        /// Where.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The database.
    #[error("cannot {action} the Raft store")]
    Database {
        /// What was tried.
        action: &'static str,
        /// Why not.
        #[source]
        source: Box<redb::Error>,
    },
    /// A record does not open.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// An index is missing between two that are there.
    #[error("the Raft log has a hole: {expected} is missing, {found} is there")]
    Hole {
        /// The index that should be there.
        expected: u64,
        /// The next one that is.
        found: u64,
    },
}

fn failed<E: Into<redb::Error>>(action: &'static str) -> impl FnOnce(E) -> StoreError {
    move |source| StoreError::Database { action, source: Box::new(source.into()) }
}

/// The database of one manager.
pub struct Store {
    db: Database,
    key: Arc<DataKey>,
}

impl Store {
    /// Opens or makes the database, and proves that every record of the log opens and none is missing.
    pub fn open(dir: &Path, key: Arc<DataKey>) -> Result<Self, StoreError> {
        let at = |source| StoreError::Path { path: dir.to_owned(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(at)?;
        let file = dir.join("raft.redb");
        let db = Database::builder().set_cache_size(CACHE_BYTES).create(&file).map_err(failed("open"))?;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).map_err(at)?;
        let store = Self { db, key };
        store.write(Durability::Immediate, |txn| {
            txn.open_table(LOG).map_err(failed("create"))?;
            txn.open_table(FACTS).map_err(failed("create"))?;
            Ok(())
        })?;
        store.check()?;
        Ok(store)
    }

    fn check(&self) -> Result<(), StoreError> {
        let mut expected = None;
        for (found, _) in self.read(..)? {
            match expected {
                Some(expected) if expected != found => return Err(StoreError::Hole { expected, found }),
                _ => expected = Some(found + 1),
            }
        }
        Ok(())
    }

    fn write(
        &self,
        durability: Durability,
        body: impl FnOnce(&redb::WriteTransaction) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let mut txn = self.db.begin_write().map_err(failed("write"))?;
        txn.set_durability(durability).map_err(failed("write"))?;
        body(&txn)?;
        txn.commit().map_err(failed("commit to"))
    }

    /// Appends log records; they are on disk when it returns.
    pub fn append(&self, records: &[(u64, Vec<u8>)]) -> Result<(), StoreError> {
        self.write(Durability::Immediate, |txn| {
            let mut table = txn.open_table(LOG).map_err(failed("write"))?;
            for (index, record) in records {
                let sealed = self.key.seal(&log_context(*index), record)?;
                table.insert(*index, sealed.as_slice()).map_err(failed("write"))?;
            }
            Ok(())
        })
    }

    /// Log records of a range.
    pub fn read(&self, range: impl RangeBounds<u64>) -> Result<Vec<(u64, Vec<u8>)>, StoreError> {
        let bounds = (range.start_bound().cloned(), range.end_bound().cloned());
        if is_empty(bounds) {
            return Ok(Vec::new());
        }
        let txn = self.db.begin_read().map_err(failed("read"))?;
        let table = txn.open_table(LOG).map_err(failed("read"))?;
        let mut records = Vec::new();
        for row in table.range(bounds).map_err(failed("read"))? {
            let (index, sealed) = row.map_err(failed("read"))?;
            let index = index.value();
            records.push((index, self.key.open(&log_context(index), sealed.value())?));
        }
        Ok(records)
    }

    /// The last log record.
    pub fn last(&self) -> Result<Option<(u64, Vec<u8>)>, StoreError> {
        let txn = self.db.begin_read().map_err(failed("read"))?;
        let table = txn.open_table(LOG).map_err(failed("read"))?;
        let Some((index, sealed)) = table.last().map_err(failed("read"))? else { return Ok(None) };
        let index = index.value();
        Ok(Some((index, self.key.open(&log_context(index), sealed.value())?)))
    }

    /// Index of the first log record.
    pub fn first_index(&self) -> Result<Option<u64>, StoreError> {
        let txn = self.db.begin_read().map_err(failed("read"))?;
        let table = txn.open_table(LOG).map_err(failed("read"))?;
        Ok(table.first().map_err(failed("read"))?.map(|(index, _)| index.value()))
    }

    /// How many records the log has.
    pub fn record_count(&self) -> Result<u64, StoreError> {
        let txn = self.db.begin_read().map_err(failed("read"))?;
        let table = txn.open_table(LOG).map_err(failed("read"))?;
        table.len().map_err(failed("read"))
    }

    /// Removes a range of log records and writes facts, as one.
    pub fn remove(&self, range: impl RangeBounds<u64>, facts: &[(&str, &[u8])]) -> Result<(), StoreError> {
        let bounds = (range.start_bound().cloned(), range.end_bound().cloned());
        self.write(Durability::Immediate, |txn| {
            if !is_empty(bounds) {
                let mut table = txn.open_table(LOG).map_err(failed("write"))?;
                table.retain_in(bounds, |_, _| false).map_err(failed("write"))?;
            }
            self.put(txn, facts)
        })
    }

    /// Writes facts as one; on disk when it returns.
    pub fn write_facts(&self, facts: &[(&str, &[u8])]) -> Result<(), StoreError> {
        self.write(Durability::Immediate, |txn| self.put(txn, facts))
    }

    /// Writes a fact that may be lost in a power cut, without waiting for the disk.
    pub fn write_fact_lazily(&self, name: &str, value: &[u8]) -> Result<(), StoreError> {
        self.write(Durability::None, |txn| self.put(txn, &[(name, value)]))
    }

    fn put(&self, txn: &redb::WriteTransaction, facts: &[(&str, &[u8])]) -> Result<(), StoreError> {
        let mut table = txn.open_table(FACTS).map_err(failed("write"))?;
        for (name, value) in facts {
            let sealed = self.key.seal(&fact_context(name), value)?;
            table.insert(*name, sealed.as_slice()).map_err(failed("write"))?;
        }
        Ok(())
    }

    /// A fact.
    pub fn fact(&self, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let txn = self.db.begin_read().map_err(failed("read"))?;
        let table = txn.open_table(FACTS).map_err(failed("read"))?;
        let Some(sealed) = table.get(name).map_err(failed("read"))? else { return Ok(None) };
        Ok(Some(self.key.open(&fact_context(name), sealed.value())?))
    }
}

fn is_empty((start, end): (Bound<u64>, Bound<u64>)) -> bool {
    let first = match start {
        Bound::Included(at) => Some(at),
        Bound::Excluded(at) => at.checked_add(1),
        Bound::Unbounded => Some(0),
    };
    let last = match end {
        Bound::Included(at) => Some(at),
        Bound::Excluded(at) => at.checked_sub(1),
        Bound::Unbounded => Some(u64::MAX),
    };
    !matches!((first, last), (Some(first), Some(last)) if first <= last)
}

fn log_context(index: u64) -> String {
    format!("raft/log/{index}")
}

fn fact_context(name: &str) -> String {
    format!("raft/fact/{name}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(dir: &Path, key: u8) -> Result<Store, StoreError> {
        Store::open(dir, Arc::new(DataKey::from_bytes(&[key; 32]).expect("random")))
    }

    #[test]
    fn what_was_written_is_there_after_reopening_and_sealed_on_disk() {
        let dir = tempfile::tempdir().expect("temporary directory");
        {
            let store = open(dir.path(), 1).expect("open");
            store.append(&[(1, b"canary-one".to_vec()), (2, b"canary-two".to_vec())]).expect("append");
            store.write_facts(&[("vote", b"canary-vote")]).expect("fact");
        }
        let raw = fs::read(dir.path().join("raft.redb")).expect("read");
        assert!(!raw.windows(6).any(|w| w == b"canary"));
        let store = open(dir.path(), 1).expect("reopen");
        assert_eq!(store.read(2..).expect("read"), vec![(2, b"canary-two".to_vec())]);
        assert_eq!(store.fact("vote").expect("read").as_deref(), Some(b"canary-vote".as_slice()));
        assert_eq!(store.last().expect("read").map(|(index, _)| index), Some(2));
    }

    #[test]
    fn another_key_or_a_hole_is_refused_when_opening() {
        let dir = tempfile::tempdir().expect("temporary directory");
        open(dir.path(), 1).expect("open").append(&[(1, vec![1]), (2, vec![2])]).expect("append");
        assert!(matches!(open(dir.path(), 2), Err(StoreError::Seal(SealError::Damaged { .. }))));
        open(dir.path(), 1).expect("open").append(&[(4, vec![4])]).expect("append");
        assert!(matches!(open(dir.path(), 1), Err(StoreError::Hole { expected: 3, found: 4 })));
    }

    /// Whatever is done to the file: it opens with what was written, or it does not open. Never other content.
    #[test]
    fn a_damaged_file_opens_unchanged_or_not_at_all() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let records: Vec<_> = (1..=20).map(|n| (n, vec![u8::try_from(n).expect("small"); 500])).collect();
        open(dir.path(), 1).expect("open").append(&records).expect("append");
        let good = fs::read(dir.path().join("raft.redb")).expect("read");
        let mut refused = 0;
        for case in 0..120_u64 {
            let bytes = damage(&good, case);
            let other = tempfile::tempdir().expect("temporary directory");
            fs::write(other.path().join("raft.redb"), &bytes).expect("write");
            // The database library panics on some damage; a manager's start turns that into an error.
            let opened = std::panic::catch_unwind(|| {
                let store = open(other.path(), 1)?;
                store.read(..)
            });
            match opened {
                Ok(Ok(found)) => assert_eq!(found, records, "case {case}"),
                Ok(Err(_)) | Err(_) => refused += 1,
            }
        }
        assert!((20..=120).contains(&refused), "{refused} of 120 were noticed");
    }

    /// One of: bytes flipped, a block zeroed, the end cut off, two blocks swapped; the place follows from the case.
    fn damage(good: &[u8], case: u64) -> Vec<u8> {
        let mut bytes = good.to_vec();
        let used = bytes.iter().rposition(|b| *b != 0).unwrap_or(0);
        let spread = case.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let at = usize::try_from(spread >> 20).expect("64 bit") % used;
        match case % 4 {
            0 => bytes[at] ^= 0x55,
            1 => bytes[at..].iter_mut().take(512).for_each(|b| *b = 0),
            2 => bytes.truncate(at),
            _ => {
                let (a, b) = (at / 4096 * 4096, used / 8192 * 4096);
                for offset in 0..4096.min(good.len() - a.max(b)) {
                    bytes.swap(a + offset, b + offset);
                }
            }
        }
        bytes
    }

    #[test]
    fn empty_and_inverted_ranges_read_and_remove_nothing() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let store = open(dir.path(), 1).expect("open");
        store.append(&[(1, vec![1]), (2, vec![2])]).expect("append");
        assert!(store.read(2..2).expect("read").is_empty());
        let (start, end) = (2, 1);
        assert!(store.read(start..end).expect("read").is_empty());
        store.remove(start..end, &[]).expect("remove");
        assert_eq!(store.record_count().expect("count"), 2);
        store.remove(..=1, &[("purged", b"x")]).expect("remove");
        assert_eq!(store.record_count().expect("count"), 1);
    }
}
