//! Names that `ip netns` knows: symbolic links `/run/netns/shoal-NAME` to the namespaces of this machine's node.
//!
//! For operators only. Nothing of ours is opened through them, so what happens to one does no harm, and one that can't be
//! made is no failure.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Where `ip netns` looks (`NETNS_RUN_DIR` of iproute2).
const DIRECTORY: &str = "/run/netns";
/// The run directory whose namespaces get names. Other nodes' (several on one machine) would be of the same name.
const RUN_DIR: &str = "/run/shoal";
const PREFIX: &str = "shoal-";

/// The directory of names, for one directory of namespaces.
#[derive(Clone, Debug)]
pub(super) struct Names {
    directory: PathBuf,
    root: PathBuf,
}

impl Names {
    /// The names for the namespaces below `root`, which belong to the node with this run directory; none for a node whose
    /// run directory is not the usual one.
    pub(super) fn of(run_dir: &Path, root: &Path) -> Option<Self> {
        (run_dir == Path::new(RUN_DIR)).then(|| Self::new(Path::new(DIRECTORY), root))
    }

    pub(super) fn new(directory: &Path, root: &Path) -> Self {
        Self { directory: directory.to_owned(), root: root.to_owned() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{PREFIX}{name}"))
    }

    /// Whether `path` is a link of ours, whatever it leads to.
    fn is_ours(&self, path: &Path) -> bool {
        fs::read_link(path).is_ok_and(|target| target.starts_with(&self.root))
    }

    /// Makes the name. One that is somebody else's stays.
    pub(super) fn add(&self, name: &str) {
        let (path, target) = (self.path(name), self.root.join(name));
        if fs::read_link(&path).is_ok_and(|found| found == target) {
            return;
        }
        let made =
            fs::create_dir_all(&self.directory).and_then(|()| std::os::unix::fs::symlink(&target, &path));
        if let Err(error) = made {
            tracing::debug!(%error, path = %path.display(), "ip netns won't know a namespace");
        }
    }

    /// Takes the name away, if it is ours.
    pub(super) fn remove(&self, name: &str) {
        let path = self.path(name);
        if self.is_ours(&path)
            && let Err(error) = fs::remove_file(&path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::debug!(%error, path = %path.display(), "a name of ip netns stays");
        }
    }

    /// Takes away the names of ours that lead nowhere: a crash leaves them.
    pub(super) fn sweep(&self) {
        let entries = fs::read_dir(&self.directory).into_iter().flatten().flatten();
        for path in entries.map(|entry| entry.path()) {
            if self.is_ours(&path) && matches!(path.try_exists(), Ok(false)) {
                let _gone = fs::remove_file(&path);
            }
        }
    }
}
