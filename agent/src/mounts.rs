//! The mount namespace the daemon lives in.
//!
//! `ip netns exec` gives a program a mount namespace of its own, with a fresh `/sys` that hides the host's bpffs.
//! Pins and namespaces that a daemon puts there die with it, and with the pins the data path: the one thing that a
//! daemon's death must not touch. So a daemon that finds itself in such a place goes back to the host's mounts.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd as _, IntoRawFd as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, setns};

/// Where the names of the host's resolvers stand.
pub const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Ancestors that are looked at; a chain of parents is rarely longer than a handful.
const ANCESTORS: usize = 32;

/// Goes back to the host's mounts if this process was started by `ip netns exec`; else does nothing. Tells where the
/// `resolv.conf` is that the process saw before: `ip netns exec` may have mounted one for its namespace. To be called
/// while the process has one thread.
///
/// The host's mounts are those of the nearest ancestor that has others: `ip` replaces itself by the program, so that is
/// whoever called it. (The machine's first process would do, but may have rights that we lack, and then it can't be
/// looked into.)
pub fn return_to_host() -> io::Result<PathBuf> {
    let resolv_conf = PathBuf::from(RESOLV_CONF);
    let Some(host) = ancestors().find(|host| is_netns_exec(Path::new("/"), &host.join("root"))) else {
        return Ok(resolv_conf);
    };
    let kept = match File::open(&resolv_conf) {
        Ok(file) if file_id(&resolv_conf) != file_id(&host.join("root/etc/resolv.conf")) => Some(file),
        _ => None,
    };
    let here = std::env::current_dir();
    setns(File::open(host.join("ns/mnt"))?, CloneFlags::CLONE_NEWNS)?;
    if let Ok(here) = here {
        // Relative paths in arguments mean what they meant; if the directory is not there, absolute ones are used.
        std::env::set_current_dir(here).or_else(|_| std::env::set_current_dir("/"))?;
    }
    tracing::info!(
        "was started by 'ip netns exec': back among the host's mounts, where pins outlive the daemon"
    );
    Ok(kept.map_or(resolv_conf, |file| {
        let path = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
        // Open for as long as the process lives: the path above leads through it.
        let _kept = file.into_raw_fd();
        path.into()
    }))
}

/// The directories in `/proc` of this process's parent, its parent, and so on.
fn ancestors() -> impl Iterator<Item = PathBuf> {
    std::iter::successors(parent("self"), |pid| parent(pid))
        .take_while(|pid| pid != "0")
        .take(ANCESTORS)
        .map(|pid| Path::new("/proc").join(pid))
}

/// The parent of a process; "0" for the first one of a pid namespace.
fn parent(pid: &str) -> Option<String> {
    let status = fs::read_to_string(Path::new("/proc").join(pid).join("status")).ok()?;
    status.lines().find_map(|line| Some(line.strip_prefix("PPid:")?.trim().to_owned()))
}

/// The same root directory (no container), and another `/sys` (what `ip netns exec` mounts; service managers that
/// give a private mount namespace leave `/sys` and its bpffs as they are).
fn is_netns_exec(own: &Path, host: &Path) -> bool {
    let (Some(root), Some(host_root)) = (file_id(own), file_id(host)) else { return false };
    let (Some(sys), Some(host_sys)) = (file_id(&own.join("sys")), file_id(&host.join("sys"))) else {
        return false;
    };
    root == host_root && sys.0 != host_sys.0
}

/// Device and inode.
fn file_id(path: &Path) -> Option<(u64, u64)> {
    fs::metadata(path).ok().map(|found| (found.dev(), found.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_among_the_hosts_mounts_stays() {
        assert!(!is_netns_exec(Path::new("/"), Path::new("/")));
    }

    #[test]
    fn another_root_is_a_container_and_stays() {
        let root = tempfile::tempdir().expect("directory");
        fs::create_dir(root.path().join("sys")).expect("directory");
        assert!(!is_netns_exec(root.path(), Path::new("/")));
    }
}
