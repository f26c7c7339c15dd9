//! One hash map of the data plane, written only where it differs.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use aya::maps::{HashMap, IterableMap, Map, MapData, MapError, MapInfo};
use aya::sys::SyscallError;

use super::BpfError;
use super::pod::{Layout, Plain};
use super::sys;
use super::window::Window;
use crate::in_use::MapFill;

/// A pinned hash map from `K` to `V`.
pub struct Table<K: Layout, V: Layout> {
    name: &'static str,
    map: HashMap<MapData, Plain<K>, Plain<V>>,
    limit: u32,
    /// Entries that were there when all were read last.
    entries: AtomicUsize,
    /// Raised after each write, if programs remember what they read of it (`ebpf/src/memo.rs`).
    epoch: Option<Arc<Window>>,
}

/// The kernel takes the elements of a map that grows from a stock, which it fills in the background
/// (`kernel/bpf/memalloc.c`, since Linux 6.1): after many writes at once it is empty for a moment. So often a write waits
/// for it; a kernel that has no memory at all is for the caller, who has other things to do.
const REFILLS: u32 = 20;

/// Elements that one call writes: so many are copied for it.
const BATCH: usize = 4096;

/// Lets the kernel fill its stock, which some do by their next tick, 10 ms away at most, or end what it does later.
#[expect(
    clippy::disallowed_methods,
    reason = "the driver is synchronous, and such moments all that it waits for"
)]
pub(super) fn rest() {
    std::thread::sleep(Duration::from_millis(1));
}

impl<K: Layout + Ord, V: Layout + PartialEq> Table<K, V> {
    /// Opens the map pinned in a directory.
    pub(crate) fn open(maps: &Path, name: &'static str) -> Result<Self, BpfError> {
        let map = open_map(maps, name)?.try_into().map_err(|source| map_error(name, "open", source))?;
        let info = MapInfo::from_pin(maps.join(name)).map_err(|source| map_error(name, "inspect", source))?;
        Ok(Self { name, map, limit: info.max_entries(), entries: AtomicUsize::new(0), epoch: None })
    }

    /// The same, of a map that programs remember under the number of an epoch.
    pub(crate) fn under(self, epoch: &Arc<Window>) -> Self {
        Self { epoch: Some(Arc::clone(epoch)), ..self }
    }

    /// How full it was when all of it was read last.
    pub(crate) fn fill(&self) -> MapFill {
        let entries = self.entries.load(Ordering::Relaxed).try_into().unwrap_or(u64::MAX);
        MapFill { map: self.name, entries, limit: self.limit.into() }
    }

    /// The value of a key.
    pub fn get(&self, key: &K) -> Result<Option<V>, BpfError> {
        match self.map.get(&Plain(*key), 0) {
            Ok(value) => Ok(Some(value.0)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(source) => Err(self.error("read", source)),
        }
    }

    /// Sets the value of a key; reads first and writes only a difference. Returns whether it wrote.
    pub fn upsert(&mut self, key: &K, value: &V) -> Result<bool, BpfError> {
        if self.get(key)?.as_ref() == Some(value) {
            return Ok(false);
        }
        let mut waited = 0;
        loop {
            match self.map.insert(Plain(*key), Plain(*value), 0) {
                Err(source) if errno(&source) == Some(libc::ENOMEM) && waited < REFILLS => rest(),
                result => {
                    self.make_forget();
                    return result.map(|()| true).map_err(|source| self.error("write", source));
                }
            }
            waited += 1;
        }
    }

    /// Sets many values, by as few calls as possible and without reading first: for those that are known to differ.
    pub fn write_all(&mut self, entries: &[(K, V)]) -> Result<(), BpfError> {
        for chunk in entries.chunks(BATCH) {
            let (keys, values): (Vec<K>, Vec<V>) = chunk.iter().copied().unzip();
            let (mut done, mut waited) = (0, 0);
            loop {
                // SAFETY: the map was opened with these types, which aya compares with the kernel's sizes.
                let written = unsafe { sys::map_update_batch(self.fd(), &keys[done..], &values[done..]) };
                self.make_forget();
                match written {
                    Ok(()) => break,
                    Err((more, error)) if error.raw_os_error() == Some(libc::ENOMEM) && waited < REFILLS => {
                        done += more;
                        waited = if more > 0 { 0 } else { waited + 1 };
                        rest();
                    }
                    Err((_, error)) => return Err(self.error("write", syscall(error))),
                }
            }
        }
        Ok(())
    }

    fn fd(&self) -> BorrowedFd<'_> {
        IterableMap::<Plain<K>, Plain<V>>::map(&self.map).fd().as_fd()
    }

    /// Removes a key. Returns whether it was there.
    pub fn remove(&mut self, key: &K) -> Result<bool, BpfError> {
        let removed = self.map.remove(&Plain(*key));
        // Also if somebody else has removed it: programs may remember it.
        self.make_forget();
        match removed {
            Ok(()) => Ok(true),
            Err(source) if is_gone(&source) => Ok(false),
            Err(source) => Err(self.error("remove from", source)),
        }
    }

    /// Makes programs forget what they remember.
    fn make_forget(&self) {
        if let Some(epoch) = &self.epoch {
            epoch.raise();
        }
    }

    /// Every entry, in order.
    pub fn dump(&self) -> Result<BTreeMap<K, V>, BpfError> {
        Ok(self.scan()?.into_iter().collect())
    }

    /// Every entry. Of a table that programs write, one that is written meanwhile may be missing, or come twice.
    pub(crate) fn scan(&self) -> Result<Vec<(K, V)>, BpfError> {
        // SAFETY: the map was opened with these types, which aya compares with the kernel's sizes.
        let entries = unsafe { sys::lookup_batches(self.fd()) }
            .map_err(|source| self.error("list", MapError::IoError(source)))?;
        self.entries.store(entries.len(), Ordering::Relaxed);
        // What somebody else wrote and took back shows in none of them, but may be remembered.
        self.make_forget();
        Ok(entries)
    }

    fn error(&self, action: &'static str, source: MapError) -> BpfError {
        map_error(self.name, action, source)
    }
}

/// Opens a pinned map.
pub(crate) fn open_map(maps: &Path, name: &'static str) -> Result<Map, BpfError> {
    let data = MapData::from_pin(maps.join(name)).map_err(|source| map_error(name, "open", source))?;
    Map::from_map_data(data).map_err(|source| map_error(name, "open", source))
}

/// An error of a command that aya has not got.
pub(crate) fn syscall(io_error: io::Error) -> MapError {
    SyscallError { call: "bpf", io_error }.into()
}

/// An error about a map.
pub(crate) fn map_error(map: &'static str, action: &'static str, source: MapError) -> BpfError {
    BpfError::Map { map, action, source: Box::new(source) }
}

/// Whether an error says that there is no such entry.
pub(super) fn is_gone(error: &MapError) -> bool {
    matches!(error, MapError::KeyNotFound) || errno(error) == Some(libc::ENOENT)
}

fn errno(error: &MapError) -> Option<i32> {
    match error {
        MapError::SyscallError(syscall) => syscall.io_error.raw_os_error(),
        _ => None,
    }
}
