//! Maps and links that a node has pinned, as somebody with root on it can reach them: what scenarios of harm are done with.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::{Context, ensure};

/// Commands of bpf(2).
const LOOKUP: libc::c_int = 1;
const UPDATE: libc::c_int = 2;
const DELETE: libc::c_int = 3;
const NEXT_KEY: libc::c_int = 4;
const OBJ_GET: libc::c_int = 7;
const LINK_DETACH: libc::c_int = 34;

/// Room for every key and value of the maps, and what the kernel may want to write.
const ROOM: usize = 4096;

/// A pinned map or link.
pub struct Pinned(OwnedFd);

impl Pinned {
    /// Opens what is pinned at a path.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let name = CString::new(path.as_os_str().as_bytes())?;
        let fd = bpf(OBJ_GET, [name.as_ptr().expose_provenance() as u64, 0, 0, 0])
            .with_context(|| format!("open {}", path.display()))?;
        // SAFETY: the kernel has just returned this descriptor, and nobody else owns it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(i32::try_from(fd)?) }))
    }

    fn fd(&self) -> u64 {
        u64::from(self.0.as_raw_fd().unsigned_abs())
    }

    /// What a link is of, as the kernel calls it (`tcx`, `netkit`); none if it is no link.
    pub fn kind_of_link(&self) -> anyhow::Result<Option<String>> {
        let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", self.fd()))?;
        Ok(text.lines().find_map(|line| line.strip_prefix("link_type:")).map(|kind| kind.trim().to_owned()))
    }

    /// The first key of a map, in room for the longest.
    pub fn first_key(&self) -> anyhow::Result<Option<Vec<u8>>> {
        let mut key = vec![0_u8; ROOM];
        match bpf(NEXT_KEY, [self.fd(), 0, key.as_mut_ptr().expose_provenance() as u64, 0]) {
            Ok(_) => Ok(Some(key)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).context("the first key"),
        }
    }

    /// The value of a key, in room for the longest; none if it is not there.
    pub fn get(&self, key: &[u8]) -> anyhow::Result<Option<Vec<u8>>> {
        ensure!(key.len() == ROOM, "a key as this gives it");
        let mut value = vec![0_u8; ROOM];
        let words = [
            self.fd(),
            key.as_ptr().expose_provenance() as u64,
            value.as_mut_ptr().expose_provenance() as u64,
            0,
        ];
        match bpf(LOOKUP, words) {
            Ok(_) => Ok(Some(value)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).context("look up a key"),
        }
    }

    /// Sets the value of a key.
    pub fn set(&self, key: &[u8], value: &[u8]) -> anyhow::Result<()> {
        ensure!(key.len() == ROOM && value.len() == ROOM, "a key and a value as this gives them");
        let (key, value) = (key.as_ptr().expose_provenance(), value.as_ptr().expose_provenance());
        bpf(UPDATE, [self.fd(), key as u64, value as u64, 0]).context("set a key")?;
        Ok(())
    }

    /// Removes a key.
    pub fn delete(&self, key: &[u8]) -> anyhow::Result<()> {
        ensure!(key.len() == ROOM, "a key as this gives it");
        bpf(DELETE, [self.fd(), key.as_ptr().expose_provenance() as u64, 0, 0]).context("remove a key")?;
        Ok(())
    }

    /// Detaches a link, as `bpftool link detach` does: its pin stays.
    pub fn detach(&self) -> anyhow::Result<()> {
        bpf(LINK_DETACH, [self.fd(), 0, 0, 0]).context("detach")?;
        Ok(())
    }
}

/// A key of an array.
pub fn index(index: u32) -> Vec<u8> {
    let mut key = index.to_ne_bytes().to_vec();
    key.resize(ROOM, 0);
    key
}

fn bpf(command: libc::c_int, words: [u64; 4]) -> io::Result<libc::c_long> {
    // SAFETY: the attribute is live and of the size passed; the addresses in it are of live strings, or of buffers that are
    // larger than any key or value of the maps, writable where the command writes.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, words.as_ptr(), size_of_val(&words)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
