//! Persistent namespaces: bind mounts below `RUN_DIR/netns`, which outlive the daemon.
//!
//! To look into one: `nsenter --net=RUN_DIR/netns/NAME ip addr`, or, with the usual run directory,
//! `ip netns exec shoal-NAME ip addr` (`names`).
//!
//! The directory is bind-mounted on itself and made shared, as `ip netns` does with its own: a mount
//! namespace made later by anybody receives our unmounts, so a copy there can't keep a namespace alive.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::CloneFlags;

use super::names::Names;
use super::{Netns, NetnsError, on_own_thread, sys};

const NONE: Option<&str> = None;

/// The directory that holds a node's named network namespaces.
#[derive(Clone, Debug)]
pub struct NetnsDir {
    root: PathBuf,
    names: Option<Names>,
}

impl NetnsDir {
    /// The namespaces of the node with this run directory. Touches nothing yet.
    pub fn new(run_dir: &Path) -> Self {
        let root = run_dir.join("netns");
        Self { names: Names::of(run_dir, &root), root }
    }

    #[cfg(test)]
    pub(super) fn with_names(run_dir: &Path, names: &Path) -> Self {
        let root = run_dir.join("netns");
        Self { names: Some(Names::new(names, &root)), root }
    }

    /// Where the namespaces are mounted.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The path of a namespace, whether it exists or not.
    pub fn path(&self, name: &str) -> Result<PathBuf, NetnsError> {
        let valid = (1..=64).contains(&name.len())
            && !name.starts_with('.')
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
        if valid { Ok(self.root.join(name)) } else { Err(NetnsError::Name(name.to_owned())) }
    }

    /// Opens a namespace that exists.
    pub fn open(&self, name: &str) -> Result<Netns, NetnsError> {
        Netns::open(&self.path(name)?)
    }

    /// Opens a namespace, making it first (with its loopback up) if it isn't there.
    pub fn ensure(&self, name: &str) -> Result<Netns, NetnsError> {
        let netns = self.open_or_make(name)?;
        if let Some(names) = &self.names {
            names.add(name);
        }
        Ok(netns)
    }

    fn open_or_make(&self, name: &str) -> Result<Netns, NetnsError> {
        let path = self.path(name)?;
        match Netns::open(&path) {
            Ok(netns) => return Ok(netns),
            // A mount point without a mount: left by a crash between the two steps below, or by a reboot.
            Err(NetnsError::NotFound(_) | NetnsError::NotANamespace(_)) => {}
            Err(error) => return Err(error),
        }
        self.prepare_root()?;
        OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(|error| NetnsError::io("make the mount point of", &path, error))?;
        let made = on_own_thread(&path, || {
            sys::unshare(CloneFlags::CLONE_NEWNET).map_err(|error| NetnsError::io("create", &path, error))?;
            sys::loopback_up().map_err(|error| NetnsError::io("bring loopback up in", &path, error))?;
            mount(Some("/proc/thread-self/ns/net"), &path, NONE, MsFlags::MS_BIND, NONE)
                .map_err(|errno| NetnsError::io("mount", &path, errno))
        })?;
        if let Err(error) = made {
            // The mount failed: its empty mount point is all there is to take back.
            let _gone = fs::remove_file(&path);
            return Err(error);
        }
        Netns::open(&path)
    }

    /// Removes a namespace's name. The namespace goes with its last process, socket and descriptor.
    /// Removing what isn't there is done already.
    pub fn remove(&self, name: &str) -> Result<(), NetnsError> {
        let path = self.path(name)?;
        if let Some(names) = &self.names {
            names.remove(name);
        }
        // Several mounts can be stacked on one point after a crash; stop at the first "not mounted".
        for _ in 0..16 {
            match umount2(&path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
                Ok(()) => {}
                Err(Errno::EINVAL | Errno::ENOENT) => break,
                Err(errno) => return Err(NetnsError::io("unmount", &path, errno)),
            }
        }
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(NetnsError::io("remove", &path, error))
            }
            _ => Ok(()),
        }
    }

    /// The names of the namespaces that exist, sorted. Mount points without a mount are not listed.
    pub fn list(&self) -> Result<Vec<String>, NetnsError> {
        let entries = match fs::read_dir(&self.root) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(NetnsError::io("list", &self.root, error)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|error| NetnsError::io("list", &self.root, error))?;
            if let Ok(name) = entry.file_name().into_string()
                && self.open(&name).is_ok()
            {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    /// Removes mount points without a mount, which a crash between two steps leaves. Not to be called while a namespace is
    /// being made. Returns how many there were.
    pub fn sweep(&self) -> Result<usize, NetnsError> {
        if let Some(names) = &self.names {
            names.sweep();
        }
        let entries = match fs::read_dir(&self.root) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
            Err(error) => return Err(NetnsError::io("list", &self.root, error)),
        };
        let mut swept = 0;
        for entry in entries.flatten() {
            if let Ok(name) = entry.file_name().into_string()
                && matches!(self.open(&name), Err(NetnsError::NotANamespace(_)))
            {
                self.remove(&name)?;
                swept += 1;
            }
        }
        Ok(swept)
    }

    /// Removes every namespace and the directory itself: nothing of ours stays mounted.
    pub fn remove_all(&self) -> Result<(), NetnsError> {
        let entries = match fs::read_dir(&self.root) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(NetnsError::io("list", &self.root, error)),
        };
        for entry in entries.flatten() {
            if let Ok(name) = entry.file_name().into_string() {
                self.remove(&name)?;
            }
        }
        match umount2(&self.root, MntFlags::MNT_DETACH) {
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
            Err(errno) => return Err(NetnsError::io("unmount", &self.root, errno)),
        }
        fs::remove_dir(&self.root).map_err(|error| NetnsError::io("remove", &self.root, error))
    }

    fn prepare_root(&self) -> Result<(), NetnsError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(&self.root)
            .map_err(|error| NetnsError::io("make the directory of", &self.root, error))?;
        let share = || mount(NONE, &self.root, NONE, MsFlags::MS_SHARED | MsFlags::MS_REC, NONE);
        match share() {
            Ok(()) => Ok(()),
            // EINVAL: not a mount point yet.
            Err(Errno::EINVAL) => {
                mount(Some(&self.root), &self.root, NONE, MsFlags::MS_BIND | MsFlags::MS_REC, NONE)
                    .and_then(|()| share())
                    .map_err(|errno| NetnsError::io("share the directory of", &self.root, errno))
            }
            Err(errno) => Err(NetnsError::io("share the directory of", &self.root, errno)),
        }
    }
}
