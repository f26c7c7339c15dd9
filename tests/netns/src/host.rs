//! A host: a network namespace with a name nobody else has.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Context;
use nix::sched::{CloneFlags, setns};

use crate::command::{Process, Run, kill_hard};

static COUNTER: AtomicU32 = AtomicU32::new(0);

/// A named network namespace with a scratch directory. Dropping it ends every process in it and removes both.
///
/// The name carries this process's id and a counter, so that fixtures running side by side never meet, and is visible
/// to `ip netns`, so that a person can look inside.
pub struct Host {
    label: String,
    unique: String,
    scratch: PathBuf,
}

impl Host {
    /// Makes the namespace, with its loopback up.
    pub fn new(label: &str) -> anyhow::Result<Self> {
        let count = COUNTER.fetch_add(1, Ordering::Relaxed);
        let unique = format!("{}{count}-{label}", prefix());
        let scratch = std::env::temp_dir().join(&unique);
        std::fs::create_dir_all(&scratch).with_context(|| format!("can't make {}", scratch.display()))?;
        let host = Self { label: label.to_owned(), unique, scratch };
        Run::line(&format!("ip netns add {}", host.unique))
            .stdout()
            .context("network namespaces need root")?;
        host.ip("link set lo up")?;
        Ok(host)
    }

    /// The short name, unique within one fixture.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// The name no other host on this machine has: its namespace, and the root of all that belongs to it.
    pub fn unique(&self) -> &str {
        &self.unique
    }

    /// A directory of its own, gone with the host.
    pub fn scratch(&self) -> &Path {
        &self.scratch
    }

    /// Where the namespace is mounted.
    pub fn netns_path(&self) -> PathBuf {
        netns_path(&self.unique)
    }

    /// `ip` inside the host.
    pub fn ip(&self, arguments: &str) -> anyhow::Result<String> {
        Run::line(&format!("ip -n {} {arguments}", self.unique)).stdout()
    }

    /// A program inside the host.
    pub fn run(&self, program: impl AsRef<std::ffi::OsStr>) -> Run {
        Run::new(program).netns(self.netns_path())
    }

    /// A whole command line, split at white space, inside the host.
    pub fn run_line(&self, line: &str) -> Run {
        Run::line(line).netns(self.netns_path())
    }

    /// Starts a program inside the host, its output in a file named after `name`.
    pub fn spawn(&self, name: &str, run: Run) -> anyhow::Result<Process> {
        run.netns(self.netns_path()).spawn(&self.scratch.join(format!("{name}.log")))
    }

    /// Runs `work` on a throw-away thread inside the host: sockets it opens belong to the host for life.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> anyhow::Result<T> + Send) -> anyhow::Result<T> {
        enter(&self.netns_path(), work)
    }

    /// Writes one sysctl of the namespace, named by its path below `/proc/sys/net`.
    pub fn sysctl(&self, path: &str, value: &str) -> anyhow::Result<()> {
        let path = Path::new("/proc/sys/net").join(path);
        self.enter(|| std::fs::write(&path, value).with_context(|| format!("writing {}", path.display())))
    }

    /// Reads one sysctl of the namespace.
    pub fn read_sysctl(&self, path: &str) -> anyhow::Result<String> {
        let path = Path::new("/proc/sys/net").join(path);
        self.enter(|| std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display())))
    }

    /// Processes that live in the namespace now.
    pub fn pids(&self) -> Vec<i32> {
        let listed = Run::line(&format!("ip netns pids {}", self.unique)).stdout().unwrap_or_default();
        listed.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        for pid in self.pids() {
            kill_hard(pid);
        }
        // Teardown goes on past what is already gone; the residue check tells what stayed.
        drop(Run::line(&format!("ip netns del {}", self.unique)).stdout());
        drop(std::fs::remove_dir_all(&self.scratch));
    }
}

/// Runs `work` on a throw-away thread inside the network namespace at a path.
pub fn enter<T: Send>(netns: &Path, work: impl FnOnce() -> anyhow::Result<T> + Send) -> anyhow::Result<T> {
    std::thread::scope(|scope| {
        let inside = scope.spawn(move || {
            let namespace =
                File::open(netns).with_context(|| format!("no namespace at {}", netns.display()))?;
            setns(namespace, CloneFlags::CLONE_NEWNET)?;
            work()
        });
        inside.join().map_err(|_| anyhow::anyhow!("work inside a namespace panicked"))?
    })
}

/// What every name made by this process starts with.
pub fn prefix() -> String {
    format!("sh{}x", std::process::id())
}

/// Where `ip netns` mounts a namespace.
pub(crate) fn netns_path(name: &str) -> PathBuf {
    Path::new("/run/netns").join(name)
}
