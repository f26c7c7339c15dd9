//! Files that are whole or not there: written aside, synced, renamed, and the directory synced.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::unistd::{Gid, Group};

/// A file that could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}", path.display())]
pub struct FileError {
    /// What was being done.
    pub action: &'static str,
    /// To what.
    pub path: PathBuf,
    /// Why it failed.
    #[source]
    pub source: io::Error,
}

impl FileError {
    fn new(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self { action, path, source }
    }
}

/// Files that could not be written while the daemon goes on with what is to be in them. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Unkept(Arc<Mutex<BTreeMap<PathBuf, String>>>);

impl Unkept {
    /// Notes how writing a file went. Logs it if that is news.
    pub fn note(&self, path: &Path, written: Result<(), FileError>) {
        let mut files = self.files();
        match written {
            Ok(()) => {
                if files.remove(path).is_some() {
                    tracing::info!(file = %path.display(), "written again");
                }
            }
            Err(error) => {
                let why = format!("{error}: {}; it is held in memory until there is room", error.source);
                let before = files.insert(path.to_owned(), why.clone());
                if before.as_ref() != Some(&why) {
                    tracing::warn!(error = why, "not on disk");
                }
            }
        }
    }

    /// Whether a file could not be written.
    pub fn lacks(&self, path: &Path) -> bool {
        self.files().contains_key(path)
    }

    /// Forgets all of them, with what they belong to.
    pub fn clear(&self) {
        self.files().clear();
    }

    /// What an operator has to know.
    pub fn warnings(&self) -> Vec<String> {
        self.files().values().cloned().collect()
    }

    fn files(&self) -> MutexGuard<'_, BTreeMap<PathBuf, String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes a directory for this process, until the file is closed. Children that become another program don't keep it.
pub fn claim_dir(path: &Path) -> Result<File, FileError> {
    let claim = || {
        let dir = File::open(path)?;
        dir.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => io::Error::new(io::ErrorKind::WouldBlock, "another shoald uses it"),
            TryLockError::Error(error) => error,
        })?;
        Ok(dir)
    };
    claim().map_err(FileError::new("take", path))
}

/// Makes a directory and those above it; a new one has this mode.
pub fn ensure_dir(path: &Path, mode: u32) -> Result<(), FileError> {
    fs::DirBuilder::new().recursive(true).mode(mode).create(path).map_err(FileError::new("make", path))
}

/// The group that may drive the node, `shoal`, where there is one: it may open the node's socket and the manager's.
pub fn operators() -> Option<Gid> {
    Group::from_name("shoal").ok().flatten().map(|group| group.gid)
}

/// Replaces a file's content so that a reader, also after a crash, finds the old or the new one whole.
pub fn write(path: &Path, content: &[u8], mode: u32) -> Result<(), FileError> {
    write_with(path, mode, |file| file.write_all(content))
}

/// The same for content that is not in memory as a whole. Gives back what `tell` does, which writes it.
pub fn write_with<T>(
    path: &Path,
    mode: u32,
    tell: impl FnOnce(&mut File) -> io::Result<T>,
) -> Result<T, FileError> {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".new");
    let aside = PathBuf::from(aside);
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&aside)?;
        let told = tell(&mut file)?;
        file.sync_all()?;
        fs::rename(&aside, path)?;
        if let Some(parent) = path.parent() {
            File::open(parent)?.sync_all()?;
        }
        Ok(told)
    })();
    written.map_err(FileError::new("write", path))
}

/// A file's content, if there is one.
pub fn read(path: &Path) -> Result<Option<Vec<u8>>, FileError> {
    match fs::read(path) {
        Ok(content) => Ok(Some(content)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(FileError::new("read", path)(error)),
    }
}

/// Removes a file; one that isn't there is removed.
pub fn remove(path: &Path) -> Result<(), FileError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(FileError::new("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Removes a directory with all in it; one that isn't there is removed.
pub fn remove_dir(path: &Path) -> Result<(), FileError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(FileError::new("remove", path)(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_taken_once_at_a_time() {
        let dir = tempfile::tempdir().expect("a directory");
        let first = claim_dir(dir.path()).expect("free");
        let second = claim_dir(dir.path()).expect_err("taken");
        assert_eq!(second.source.to_string(), "another shoald uses it");
        drop(first);
        claim_dir(dir.path()).expect("free again");
    }
}
