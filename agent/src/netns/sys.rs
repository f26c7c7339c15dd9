//! The system calls that have no safe wrapper elsewhere, each behind one. All unsafe code that is about
//! namespaces and processes is in this file.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use nix::libc;
use nix::sched::CloneFlags;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use tokio::io::unix::AsyncFd;

/// Moves the calling thread into new namespaces.
pub(crate) fn unshare(flags: CloneFlags) -> io::Result<()> {
    nix::sched::unshare(flags).map_err(io::Error::from)
}

/// Sets the loopback interface of the calling thread's network namespace up.
pub(crate) fn loopback_up() -> io::Result<()> {
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: `ifreq` is a plain C structure for which all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(*b"lo") {
        *to = libc::c_char::try_from(from).unwrap_or_default();
    }
    // SAFETY: SIOCGIFFLAGS reads the name from and writes the flags to the `ifreq` it is given, which lives
    // for the whole call.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &raw mut request) })?;
    let up = libc::c_short::try_from(libc::IFF_UP).unwrap_or_default();
    // SAFETY: the successful SIOCGIFFLAGS above filled the `ifru_flags` member of the union.
    unsafe { request.ifr_ifru.ifru_flags |= up };
    // SAFETY: SIOCSIFFLAGS only reads the `ifreq`, which lives for the whole call.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) })?;
    Ok(())
}

/// Makes a mount, and all below it, read-only. The path must be a mount point.
pub(crate) fn remount_read_only(path: &Path) -> io::Result<()> {
    let path = std::ffi::CString::new(path.as_os_str().as_encoded_bytes())?;
    let attributes =
        libc::mount_attr { attr_set: libc::MOUNT_ATTR_RDONLY, attr_clr: 0, propagation: 0, userns_fd: 0 };
    // SAFETY: the path is a NUL-terminated string and `attributes` a `mount_attr` whose size is given; the
    // kernel reads both during the call only.
    check_long(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            path.as_ptr(),
            libc::AT_RECURSIVE,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    })
    .map(drop)
}

/// A descriptor of a process, readable when the process has ended.
pub(crate) fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: takes two integers; a successful call returns a new descriptor that nobody else owns.
    let fd = check_long(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the descriptor was just made by the kernel for us (close-on-exec) and is owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Signals the process behind a descriptor: it can't hit another one that got the same number.
pub(crate) fn pidfd_send_signal(pidfd: impl AsFd, signal: i32) -> io::Result<()> {
    let no_info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: the descriptor is borrowed for the call; a null siginfo means "as kill(2) does".
    check_long(unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_fd().as_raw_fd(), signal, no_info, 0)
    })
    .map(drop)
}

/// Waits until a pidfd's process has ended. Cancel safe.
pub(crate) async fn pidfd_ended(pidfd: OwnedFd) -> io::Result<()> {
    let interest = tokio::io::Interest::READABLE;
    // SAFETY: the descriptor is owned by the `AsyncFd` and an `OwnedFd` is open, and the same, until dropped.
    let pidfd = unsafe { AsyncFd::register_with_interest(pidfd, interest) }?;
    let _ready = pidfd.readable().await?;
    Ok(())
}

/// A child that ended: its process id and how.
pub(crate) enum Reaped {
    /// By itself, with this code.
    Exited(i32, i32),
    /// Killed by this signal.
    Killed(i32, i32),
}

/// Waits for any child to end; `None` if there are none. Not nix's, which fails on real-time signals after the
/// child is reaped.
pub(crate) fn reap_any() -> io::Result<Option<Reaped>> {
    loop {
        let mut status = 0;
        // SAFETY: waitpid writes one integer to the address of one that lives for the whole call.
        match check(unsafe { libc::waitpid(-1, &raw mut status, 0) }) {
            Ok(pid) if libc::WIFEXITED(status) => {
                return Ok(Some(Reaped::Exited(pid, libc::WEXITSTATUS(status))));
            }
            Ok(pid) if libc::WIFSIGNALED(status) => {
                return Ok(Some(Reaped::Killed(pid, libc::WTERMSIG(status))));
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.raw_os_error() == Some(libc::ECHILD) => return Ok(None),
            Err(error) => return Err(error),
        }
    }
}

/// Splits the process in two, which is safe only while it has a single thread: checked.
pub(crate) fn fork() -> io::Result<nix::unistd::ForkResult> {
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::other("a process with threads can't be split"));
    }
    // SAFETY: without other threads no lock is held by anybody who will not be there in the child.
    unsafe { nix::unistd::fork() }.map_err(io::Error::from)
}

/// Marks every descriptor from 3 on close-on-exec, whatever opened it.
pub(crate) fn close_descriptors_on_exec() -> io::Result<()> {
    // SAFETY: takes three integers; marking descriptors close-on-exec closes nothing now.
    check_long(unsafe { libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) })
        .map(drop)
}

/// Removes a capability from the bounding set: no exec can bring it back.
pub(crate) fn drop_bounding_capability(capability: u32) -> io::Result<()> {
    // SAFETY: PR_CAPBSET_DROP takes one integer and no pointer.
    check(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(capability), 0, 0, 0) }).map(drop)
}

/// Whether the bounding set has the capability; an error means the kernel doesn't know it.
pub(crate) fn has_bounding_capability(capability: u32) -> io::Result<bool> {
    // SAFETY: PR_CAPBSET_READ takes one integer and no pointer.
    check(unsafe { libc::prctl(libc::PR_CAPBSET_READ, libc::c_ulong::from(capability), 0, 0, 0) })
        .map(|value| value == 1)
}

/// Clears the ambient set.
pub(crate) fn clear_ambient_capabilities() -> io::Result<()> {
    let operation = libc::c_ulong::try_from(libc::PR_CAP_AMBIENT_CLEAR_ALL).unwrap_or_default();
    // SAFETY: PR_CAP_AMBIENT takes integers and no pointer.
    check(unsafe { libc::prctl(libc::PR_CAP_AMBIENT, operation, 0, 0, 0) }).map(drop)
}

/// Adds a permitted and inheritable capability to the ambient set, so that it outlives exec.
pub(crate) fn raise_ambient_capability(capability: u32) -> io::Result<()> {
    let operation = libc::c_ulong::try_from(libc::PR_CAP_AMBIENT_RAISE).unwrap_or_default();
    // SAFETY: PR_CAP_AMBIENT takes integers and no pointer.
    check(unsafe { libc::prctl(libc::PR_CAP_AMBIENT, operation, libc::c_ulong::from(capability), 0, 0) })
        .map(drop)
}

/// Sets the calling thread's effective, permitted and inheritable sets to exactly these bits.
pub(crate) fn set_capabilities(bits: u64) -> io::Result<()> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: libc::c_int,
    }
    #[repr(C)]
    struct Sets {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    // _LINUX_CAPABILITY_VERSION_3: two words per set.
    let header = Header { version: 0x2008_0522, pid: 0 };
    let [low, high] = [bits & u64::from(u32::MAX), bits >> 32].map(|word| u32::try_from(word).unwrap_or(0));
    let sets = [low, high].map(|word| Sets { effective: word, permitted: word, inheritable: word });
    // SAFETY: `header` and the two-element `sets` have the layout capset(2) documents for version 3 and live
    // for the whole call; the kernel only reads them.
    check_long(unsafe { libc::syscall(libc::SYS_capset, &raw const header, sets.as_ptr()) }).map(drop)
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn check_long(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
/// Gives every signal its default effect and blocks none, as a program expects at its start. Both survive exec.
pub(crate) fn default_signals() -> io::Result<()> {
    for signal in nix::sys::signal::Signal::iterator() {
        if matches!(signal, nix::sys::signal::SIGKILL | nix::sys::signal::SIGSTOP) {
            continue;
        }
        // SAFETY: the default disposition runs no code of ours.
        unsafe { nix::sys::signal::signal(signal, nix::sys::signal::SigHandler::SigDfl) }?;
    }
    Ok(nix::sys::signal::SigSet::empty().thread_set_mask()?)
}

/// The number that the kernel gives the network namespace of the calling thread, never again given to another.
pub(crate) fn netns_cookie() -> io::Result<u64> {
    let socket = std::net::UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, 0))?;
    let mut cookie = 0_u64;
    let mut length = libc::socklen_t::try_from(size_of_val(&cookie)).map_err(io::Error::other)?;
    // SAFETY: the kernel writes at most `length` bytes to the live, writable number.
    let result = unsafe {
        libc::getsockopt(
            std::os::fd::AsRawFd::as_raw_fd(&socket),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

/// `asm-generic/socket.h`, since Linux 5.14.
const SO_NETNS_COOKIE: libc::c_int = 71;
