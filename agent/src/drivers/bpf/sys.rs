//! The few bpf(2) commands that aya lacks, hides or ties to interface names, and mounting bpffs.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount, umount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::pod::Layout;

const BPF_OBJ_PIN: libc::c_int = 6;
const BPF_OBJ_GET: libc::c_int = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const BPF_MAP_LOOKUP_BATCH: libc::c_int = 24;
const BPF_MAP_UPDATE_BATCH: libc::c_int = 26;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_LINK_UPDATE: libc::c_int = 29;
const BPF_TCX_INGRESS: u32 = 46;
const BPF_NETKIT_PEER: u32 = 55;
const BPF_LINK_TYPE_NETKIT: u32 = 13;

/// `union bpf_attr`, large enough for the commands used here, as 64-bit words.
#[repr(C, align(8))]
struct Attr([u64; 16]);

impl Attr {
    const fn new() -> Self {
        Self([0; 16])
    }

    /// Two 32-bit fields that share a word.
    fn pair(mut self, word: usize, first: u32, second: u32) -> Self {
        let (a, b) = (first.to_ne_bytes(), second.to_ne_bytes());
        self.0[word] = u64::from_ne_bytes([a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3]]);
        self
    }

    fn word(mut self, word: usize, value: u64) -> Self {
        self.0[word] = value;
        self
    }
}

/// Calls bpf(2).
///
/// # Safety
///
/// Every address in the attribute must be valid for what the command does with it.
unsafe fn bpf(command: libc::c_int, attr: &mut Attr) -> io::Result<libc::c_long> {
    let size = size_of::<Attr>();
    // SAFETY: the attribute is a live, writable buffer of the size passed; the caller vouches for the addresses in it.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Takes over a file descriptor a command returned.
fn owned(fd: libc::c_long) -> io::Result<OwnedFd> {
    let fd = libc::c_int::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just returned this descriptor and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().unsigned_abs()
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}

/// Opens a pinned object; `None` if nothing is pinned there.
pub(crate) fn object_get(path: &Path) -> io::Result<Option<OwnedFd>> {
    let path = c_path(path)?;
    let mut attr = Attr::new().word(0, path.as_ptr().expose_provenance() as u64);
    // SAFETY: the path is a live C string.
    match unsafe { bpf(BPF_OBJ_GET, &mut attr) } {
        Ok(fd) => owned(fd).map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Pins an object.
pub(crate) fn object_pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let mut attr = Attr::new().word(0, path.as_ptr().expose_provenance() as u64).pair(1, raw(object), 0);
    // SAFETY: the path is a live C string.
    unsafe { bpf(BPF_OBJ_PIN, &mut attr) }.map(|_| ())
}

/// Attaches a program to the ingress of a device of the calling thread's network namespace, as the last of its list.
pub(crate) fn tcx_attach(program: BorrowedFd<'_>, ifindex: u32) -> io::Result<OwnedFd> {
    device_attach(program, ifindex, BPF_TCX_INGRESS)
}

/// Attaches a program to what the other side of a netkit device sends, as the last of its list. `ENXIO`: the device is of
/// another kind; `EINVAL`: the kernel (before Linux 6.7, or built without) knows none of that kind.
pub(crate) fn netkit_attach(program: BorrowedFd<'_>, ifindex: u32) -> io::Result<OwnedFd> {
    device_attach(program, ifindex, BPF_NETKIT_PEER)
}

fn device_attach(program: BorrowedFd<'_>, ifindex: u32, kind: u32) -> io::Result<OwnedFd> {
    let mut attr = Attr::new().pair(0, raw(program), ifindex).pair(1, kind, 0);
    // SAFETY: the attribute holds no addresses.
    let fd = unsafe { bpf(BPF_LINK_CREATE, &mut attr) }?;
    owned(fd)
}

/// Attaches a program to a control group, beside those that are there. `kind` is one of `BPF_CGROUP_*`.
pub(crate) fn cgroup_attach(
    program: BorrowedFd<'_>,
    group: BorrowedFd<'_>,
    kind: u32,
) -> io::Result<OwnedFd> {
    let mut attr = Attr::new().pair(0, raw(program), raw(group)).pair(1, kind, 0);
    // SAFETY: the attribute holds no addresses.
    let fd = unsafe { bpf(BPF_LINK_CREATE, &mut attr) }?;
    owned(fd)
}

/// What a link to a control group says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct GroupLink {
    /// The attached program's id.
    pub(crate) program: u32,
    /// The group's id, the inode number of its directory; 0 once it is gone.
    pub(crate) group: u64,
}

/// Reads what a link to a control group is attached to.
pub(crate) fn group_link(link: BorrowedFd<'_>) -> io::Result<GroupLink> {
    // struct bpf_link_info: type, id, prog_id, (padding), then the union with cgroup_id first for control groups.
    let words = object_info(link)?;
    let (a, b) = (words[4].to_ne_bytes(), words[5].to_ne_bytes());
    let group = u64::from_ne_bytes([a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3]]);
    Ok(GroupLink { program: words[2], group })
}

/// Replaces the program of a link atomically.
pub(crate) fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = Attr::new().pair(0, raw(link), raw(program));
    // SAFETY: the attribute holds no addresses.
    unsafe { bpf(BPF_LINK_UPDATE, &mut attr) }.map(|_| ())
}

/// Writes many elements of a map in one call, in order. On failure tells how many were written.
///
/// # Safety
///
/// The map's keys and values must have the sizes of the types.
pub(crate) unsafe fn map_update_batch<K: Layout, V: Layout>(
    map: BorrowedFd<'_>,
    keys: &[K],
    values: &[V],
) -> Result<(), (usize, io::Error)> {
    let count = u32::try_from(keys.len().min(values.len())).unwrap_or(u32::MAX);
    // struct { in_batch, out_batch, keys, values: u64; count, map_fd: u32; elem_flags, flags: u64 }.
    let mut attr = Attr::new()
        .word(2, keys.as_ptr().expose_provenance() as u64)
        .word(3, values.as_ptr().expose_provenance() as u64)
        .pair(4, count, raw(map));
    // SAFETY: both slices are live and hold `count` elements, of the map's sizes by the caller's word.
    let result = unsafe { bpf(BPF_MAP_UPDATE_BATCH, &mut attr) };
    result.map(|_| ()).map_err(|error| {
        // The kernel leaves the number there, unless it refused the call as a whole.
        let [a, b, c, d, ..] = attr.0[4].to_ne_bytes();
        let done = u32::from_ne_bytes([a, b, c, d]);
        let done = if done < count { usize::try_from(done).unwrap_or(0) } else { 0 };
        (done, error)
    })
}

/// The monotonic clock as of the last tick, which programs read, too; nanoseconds.
pub(crate) fn monotonic() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the structure is live and writable. It can't fail for this clock.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, &raw mut time) };
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    seconds * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
}

/// Entries that one call reads: more than a bucket of a table holds.
const BATCH: usize = 4096;

/// Every entry of a hash map. The kernel copies a batch of buckets at a time, which spares two calls for each entry.
///
/// # Safety
///
/// The map's keys and values must have the sizes of the types.
pub(crate) unsafe fn lookup_batches<K: Layout, V: Layout>(map: BorrowedFd<'_>) -> io::Result<Vec<(K, V)>> {
    let mut entries = Vec::new();
    let (mut place, mut is_first) = (0_u64, true);
    loop {
        let mut keys = Vec::<K>::with_capacity(BATCH);
        let mut values = Vec::<V>::with_capacity(BATCH);
        let count = u32::try_from(BATCH).map_err(io::Error::other)?;
        let place_at = (&raw mut place).expose_provenance() as u64;
        let mut attr = Attr::new()
            .word(0, if is_first { 0 } else { place_at })
            .word(1, place_at)
            .word(2, keys.as_mut_ptr().expose_provenance() as u64)
            .word(3, values.as_mut_ptr().expose_provenance() as u64)
            .pair(4, count, raw(map));
        // SAFETY: the kernel writes at most `count` keys and values, for which there is room, and where it stopped.
        let result = unsafe { bpf(BPF_MAP_LOOKUP_BATCH, &mut attr) };
        let is_last = match result {
            Ok(_) => false,
            Err(error) if error.kind() == io::ErrorKind::NotFound => true,
            Err(error) => return Err(error),
        };
        let [a, b, c, d, ..] = attr.0[4].to_ne_bytes();
        let found = usize::try_from(u32::from_ne_bytes([a, b, c, d])).map_err(io::Error::other)?;
        // SAFETY: the kernel wrote so many, and says so; it can't say more than there is room for. Any bytes are a value.
        unsafe {
            keys.set_len(found.min(BATCH));
            values.set_len(found.min(BATCH));
        }
        entries.extend(keys.into_iter().zip(values));
        if is_last {
            return Ok(entries);
        }
        is_first = false;
    }
}

/// What a link to a device says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LinkInfo {
    /// The attached program's id.
    pub(crate) program: u32,
    /// The device; 0 once it is gone. That of netkit is the other side, numbered in a namespace of its own
    /// (`bpf_netkit_link_fill_info` in drivers/net/netkit.c).
    ifindex: u32,
    is_netkit: bool,
}

impl LinkInfo {
    /// Whether what was attached to a device still is.
    pub(crate) fn is_alive(self, ifindex: u32) -> bool {
        if self.is_netkit { self.ifindex != 0 } else { self.ifindex == ifindex }
    }
}

/// Reads what a link is attached to; `None` if the object is no link but a program.
pub(crate) fn link_info(object: BorrowedFd<'_>) -> io::Result<Option<LinkInfo>> {
    let name = std::fs::read_link(format!("/proc/self/fd/{}", object.as_raw_fd()))?;
    // The kernel has no command to ask what kind of object a descriptor is of; it names the file after it.
    if name.as_os_str() == "anon_inode:bpf-prog" {
        return Ok(None);
    }
    // struct bpf_link_info: type, id, prog_id, (padding), then the union with ifindex first for TCX and netkit.
    let words = object_info(object)?;
    let is_netkit = words[0] == BPF_LINK_TYPE_NETKIT;
    Ok(Some(LinkInfo { program: words[2], ifindex: words[4], is_netkit }))
}

/// Reads the id of a program.
pub(crate) fn program_id(program: BorrowedFd<'_>) -> io::Result<u32> {
    // struct bpf_prog_info: type, id, …
    Ok(object_info(program)?[1])
}

/// The first words of the object's info structure.
fn object_info(object: BorrowedFd<'_>) -> io::Result<[u32; 16]> {
    let mut info = [0_u32; 16];
    let size = u32::try_from(size_of_val(&info)).map_err(io::Error::other)?;
    let address = info.as_mut_ptr().expose_provenance() as u64;
    let mut attr = Attr::new().pair(0, raw(object), size).word(1, address);
    // SAFETY: the kernel writes at most `size` bytes to the live, writable array.
    unsafe { bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr) }?;
    Ok(info)
}

/// Where distributions mount a bpffs.
const USUAL: &str = "/sys/fs/bpf";

/// Sees to it that a directory lies on a bpffs: mounts one where the distribution would have, or on the directory.
pub(crate) fn ensure_bpffs(dir: &Path) -> io::Result<()> {
    let mut existing: PathBuf = dir.to_owned();
    while !existing.exists() {
        if !existing.pop() {
            return Err(io::Error::new(io::ErrorKind::NotFound, "no existing parent directory"));
        }
    }
    if statfs(&existing)?.filesystem_type() != BPF_FS_MAGIC {
        let point = if dir.starts_with(USUAL) { Path::new(USUAL) } else { dir };
        std::fs::create_dir_all(point)?;
        mount(Some("bpf"), point, Some("bpf"), MsFlags::empty(), Some("mode=0700"))?;
    }
    std::fs::create_dir_all(dir)
}

/// Removes the directory, and the bpffs on it if [`ensure_bpffs`] mounted one there.
pub(crate) fn release_bpffs(dir: &Path) -> io::Result<()> {
    let parent = dir.parent().unwrap_or(Path::new("/"));
    if dir.metadata()?.dev() != parent.metadata()?.dev() && dir != Path::new(USUAL) {
        umount(dir)?;
    }
    std::fs::remove_dir(dir)
}
