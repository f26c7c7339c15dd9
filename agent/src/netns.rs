//! Network namespaces: persistent ones by name, and running code inside one.
//!
//! A socket belongs to the namespace of the thread that made it, for ever, and may then be used from any
//! thread. So code never "moves" into a namespace: a throw-away thread does, makes what is wanted, hands it
//! back and dies. An executor thread must never call `setns`, and nothing inside the closure may start
//! threads (a blocking pool, name look-ups): they would inherit the namespace and keep it.
//!
//! A namespace lives as long as a bind mount, a process, a socket or an open descriptor holds it. [`Netns`]
//! is such a descriptor: keep it for the length of one operation, not in a cache.

mod dir;
mod names;
mod netlink;
pub(crate) mod sys;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, setns};
use nix::sys::statfs::{FsType, fstatfs};

pub use dir::NetnsDir;
pub use netlink::Netlink;

/// The magic number of the file system that namespace descriptors live on.
const NSFS_MAGIC: FsType = FsType(0x6e73_6673);

/// What can go wrong with a network namespace.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// The name can't be a file name of ours.
    #[error("network namespace name '{0}' is invalid: use 1 to 64 of a-z, A-Z, 0-9, '-', '_' and '.'")]
    Name(String),
    /// Nothing of that name is there.
    #[error("network namespace {} does not exist", .0.display())]
    NotFound(PathBuf),
    /// The file exists and is not a namespace.
    #[error("{} is not a network namespace", .0.display())]
    NotANamespace(PathBuf),
    /// A system call failed.
    #[error("cannot {action} network namespace {}", path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// To which namespace.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The thread that worked inside the namespace panicked or could not be started.
    #[error("the thread working in network namespace {} failed", .0.display())]
    Thread(PathBuf),
}

impl NetnsError {
    fn io(action: &'static str, path: &Path, source: impl Into<io::Error>) -> Self {
        Self::Io { action, path: path.to_owned(), source: source.into() }
    }

    /// Whether trying again later may help. A wrong name stays wrong.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Io { .. } | Self::Thread(_) | Self::NotFound(_))
    }
}

/// An open network namespace.
#[derive(Debug)]
pub struct Netns {
    fd: OwnedFd,
    path: PathBuf,
}

impl Netns {
    /// Opens the namespace at a path, which may be a bind mount or `/proc/PID/ns/net`.
    pub fn open(path: &Path) -> Result<Self, NetnsError> {
        let file = File::open(path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => NetnsError::NotFound(path.to_owned()),
            _ => NetnsError::io("open", path, error),
        })?;
        let stat = fstatfs(&file).map_err(|errno| NetnsError::io("examine", path, errno))?;
        if stat.filesystem_type() != NSFS_MAGIC {
            return Err(NetnsError::NotANamespace(path.to_owned()));
        }
        Ok(Self { fd: file.into(), path: path.to_owned() })
    }

    /// The namespace of the calling thread. `/proc/self` would be the main thread's.
    pub fn current() -> Result<Self, NetnsError> {
        Self::open(Path::new("/proc/thread-self/ns/net"))
    }

    /// A new namespace without a name, gone when the last descriptor closes. Its loopback is up.
    pub fn anonymous() -> Result<Self, NetnsError> {
        let path = Path::new("(new)");
        on_own_thread(path, || {
            sys::unshare(CloneFlags::CLONE_NEWNET).map_err(|error| NetnsError::io("create", path, error))?;
            sys::loopback_up().map_err(|error| NetnsError::io("bring loopback up in", path, error))?;
            Self::current()
        })?
    }

    /// The path the namespace was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The inode number: two descriptors with the same one are the same namespace.
    pub fn inode(&self) -> Result<u64, NetnsError> {
        nix::sys::stat::fstat(&self.fd)
            .map(|stat| stat.st_ino)
            .map_err(|errno| NetnsError::io("examine", &self.path, errno))
    }

    /// The namespace's cookie (`SO_NETNS_COOKIE`): unlike the inode number, no other namespace ever has it. Blocks for
    /// a moment.
    pub fn cookie(&self) -> Result<u64, NetnsError> {
        self.run(sys::netns_cookie)?
            .map_err(|error| NetnsError::io("ask for the cookie of", &self.path, error))
    }

    /// Runs a closure on a thread of its own inside the namespace and returns what it returns.
    ///
    /// Blocks the caller for the length of the closure, which must only make sockets and plain system calls.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
        in_netns(self.fd.as_fd(), &self.path, work)
    }

    /// A route netlink connection inside the namespace, driven by the current tokio runtime.
    pub fn netlink(&self) -> Result<Netlink, NetnsError> {
        Netlink::connect(self)
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Runs `work` on a throw-away thread inside the namespace `fd`; `path` is named in errors.
pub fn in_netns<T: Send>(
    fd: BorrowedFd<'_>,
    path: &Path,
    work: impl FnOnce() -> T + Send,
) -> Result<T, NetnsError> {
    on_own_thread(path, || {
        setns(fd, CloneFlags::CLONE_NEWNET).map_err(|errno| NetnsError::io("enter", path, errno))?;
        Ok(work())
    })?
}

fn on_own_thread<T: Send>(path: &Path, work: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
    std::thread::scope(|scope| {
        std::thread::Builder::new()
            .name("netns".to_owned())
            .spawn_scoped(scope, work)
            .map_err(|error| NetnsError::io("start a thread for", path, error))?
            .join()
            .map_err(|_| NetnsError::Thread(path.to_owned()))
    })
}

#[cfg(test)]
mod tests;
