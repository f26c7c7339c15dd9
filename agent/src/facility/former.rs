//! What kernel parameters were before they were changed, kept in a file until they are put back.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::drivers::link::LinkError;
use crate::durable::{self, FileError};

/// What can go wrong with a kernel parameter.
#[derive(Debug, thiserror::Error)]
pub enum FormerError {
    /// The parameter.
    #[error(transparent)]
    Kernel(#[from] LinkError),
    /// Our own file.
    #[error(transparent)]
    File(#[from] FileError),
    /// Our own file's content.
    #[error("the former kernel parameters can't be encoded")]
    Encode(#[source] serde_json::Error),
}

#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
struct Change {
    before: String,
    ours: String,
}

/// Kernel parameters that were changed.
#[derive(Debug)]
pub struct FormerValues {
    root: PathBuf,
    path: PathBuf,
    changes: BTreeMap<String, Change>,
}

impl FormerValues {
    /// Reads the file. One that does not parse is as good as none: nothing is put back then.
    pub fn open(path: &Path) -> Result<Self, FileError> {
        let stored = durable::read(path)?.and_then(|text| serde_json::from_slice(&text).ok());
        Ok(Self { root: "/proc/sys".into(), path: path.to_owned(), changes: stored.unwrap_or_default() })
    }

    /// Sets a parameter, by its path below `/proc/sys`. What it was before the first time is kept.
    pub fn set(&mut self, parameter: &str, value: &str) -> Result<(), FormerError> {
        let before = self.read(parameter)?;
        if before != value && !self.changes.contains_key(parameter) {
            let mut changes = self.changes.clone();
            changes.insert(parameter.to_owned(), Change { before, ours: value.to_owned() });
            let text = serde_json::to_vec(&changes).map_err(FormerError::Encode)?;
            durable::write(&self.path, &text, 0o600)?;
            self.changes = changes;
        }
        Ok(self.write(parameter, value)?)
    }

    /// Puts back what still is as it was set.
    pub fn restore(self) -> Result<(), FormerError> {
        for (parameter, change) in &self.changes {
            if self.read(parameter)? == change.ours {
                self.write(parameter, &change.before)?;
            }
        }
        Ok(durable::remove(&self.path)?)
    }

    fn read(&self, parameter: &str) -> Result<String, LinkError> {
        let path = self.root.join(parameter);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(text.trim().to_owned()),
            Err(source) => Err(LinkError::File { action: "read", path, source }),
        }
    }

    fn write(&self, parameter: &str, value: &str) -> Result<(), LinkError> {
        let path = self.root.join(parameter);
        fs::write(&path, value).map_err(|source| LinkError::File { action: "write", path, source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_changed_and_still_is_ours_is_put_back() {
        let dir = tempfile::tempdir().expect("a directory");
        let at = |name: &str| dir.path().join(name);
        let read = |name: &str| fs::read_to_string(at(name)).expect("there").trim().to_owned();
        for (name, value) in [("off", "0\n"), ("on", "1\n"), ("other", "0\n")] {
            fs::write(at(name), value).expect("written");
        }
        let open = || {
            let opened = FormerValues::open(&at("former.json")).expect("readable");
            FormerValues { root: dir.path().to_owned(), ..opened }
        };
        // What could not be noted is not set, however often it is tried.
        let (obstacle, mut refused) = (at("former.json.new"), open());
        fs::create_dir(&obstacle).expect("made");
        for _ in 0..2 {
            refused.set("off", "1").expect_err("nowhere to note it");
            assert_eq!(read("off"), "0");
        }
        fs::remove_dir(&obstacle).expect("removed");
        for name in ["off", "on", "other"] {
            open().set(name, "1").expect("set");
            assert_eq!(read(name), "1");
        }
        // Undone by somebody and set again: what it was first is what it was.
        fs::write(at("off"), "2").expect("written");
        open().set("off", "1").expect("set");
        fs::write(at("other"), "2").expect("written");
        open().restore().expect("restored");
        assert_eq!((read("off"), read("on"), read("other")), ("0".into(), "1".into(), "2".into()));
        assert!(!at("former.json").exists());
    }
}
