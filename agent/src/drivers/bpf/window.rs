//! A part of an array map, as memory: a table of some hundred slots is read or written in the time of one system call.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};

/// Slots of an array of u64 that can be mapped (`BPF_F_MMAPABLE`), until it is dropped. Only while it is used: what is
/// mapped counts as memory of the process.
pub(crate) struct Window {
    address: *mut libc::c_void,
    /// Bytes that are mapped, and those before the first slot: windows begin and end with pages.
    length: usize,
    before: usize,
    slots: usize,
}

impl Window {
    /// Maps `len` slots from `base` on. Fails if the array has no such slots or can't be mapped.
    pub(crate) fn open(map: BorrowedFd<'_>, base: u32, len: u32) -> io::Result<Self> {
        const SLOT: usize = size_of::<AtomicU64>();
        let page = page_size()?;
        let bytes = |slots: u32| usize::try_from(slots).map(|slots| slots * SLOT).map_err(io::Error::other);
        let (first, size) = (bytes(base)?, bytes(len)?);
        let before = first % page;
        let length = (before + size).next_multiple_of(page);
        let offset = libc::off_t::try_from(first - before).map_err(io::Error::other)?;
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        // SAFETY: a new mapping, at a place of the kernel's choice, of a map that outlives it.
        let address =
            unsafe { libc::mmap(std::ptr::null_mut(), length, protection, flags, map.as_raw_fd(), offset) };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { address, length, before, slots: size / SLOT })
    }

    /// What they hold.
    pub(crate) fn read(&self) -> Vec<u64> {
        self.slots().iter().map(|slot| slot.load(Ordering::Relaxed)).collect()
    }

    /// Sets one of them, as seen from the first. Programs see the old value or the new one. `None` if there is no such.
    pub(crate) fn set(&self, index: usize, value: u64) -> Option<()> {
        self.slots().get(index)?.store(value, Ordering::Release);
        Some(())
    }

    /// Raises the first of them by one. Programs that see that see all that was written before.
    pub(crate) fn raise(&self) {
        if let Some(slot) = self.slots().first() {
            slot.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn slots(&self) -> &[AtomicU64] {
        // SAFETY: so many words are mapped there, aligned as pages and slots are, until this is dropped; and others, the
        // programs among them, read and write them as whole words.
        unsafe {
            let first = self.address.byte_add(self.before).cast::<AtomicU64>();
            std::slice::from_raw_parts(first, self.slots)
        }
    }
}

// SAFETY: what is mapped belongs to no thread, and is read and written as whole words only.
unsafe impl Send for Window {}
// SAFETY: as above.
unsafe impl Sync for Window {}

impl Drop for Window {
    fn drop(&mut self) {
        // SAFETY: it was mapped with this length, and nothing borrowed from it is left.
        unsafe { libc::munmap(self.address, self.length) };
    }
}

fn page_size() -> io::Result<usize> {
    // SAFETY: takes no pointers.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(size).ok().filter(|size| *size > 0).ok_or_else(io::Error::last_os_error)
}
