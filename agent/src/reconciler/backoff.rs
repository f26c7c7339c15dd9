//! Objects that failed, and when to try them again.

use std::collections::BTreeMap;
use std::time::Duration;

use shoal_plan::Key;
use tokio::time::Instant;

const FIRST: Duration = Duration::from_millis(250);
const LONGEST: Duration = Duration::from_secs(30);

/// The failures of each object.
#[derive(Debug, Default)]
pub(super) struct Backoffs {
    failed: BTreeMap<Key, Failure>,
}

#[derive(Debug)]
struct Failure {
    pause: Duration,
    until: Instant,
    error: String,
}

impl Backoffs {
    /// The last error of an object that is not to be tried yet.
    pub(super) fn blocked(&self, key: &Key) -> Option<&str> {
        self.failed.get(key).filter(|f| f.until > Instant::now()).map(|f| f.error.as_str())
    }

    /// An object failed.
    pub(super) fn failed(&mut self, key: Key, error: String) {
        let pause = self.failed.get(&key).map_or(FIRST, |before| (before.pause * 2).min(LONGEST));
        self.failed.insert(key, Failure { pause, until: Instant::now() + pause, error });
    }

    /// An object is as it should be. Returns whether it had failed before.
    pub(super) fn succeeded(&mut self, key: &Key) -> bool {
        self.failed.remove(key).is_some()
    }

    /// Whether nothing has failed of late.
    pub(super) fn is_empty(&self) -> bool {
        self.failed.is_empty()
    }

    /// What is wanted has changed: everything is tried anew.
    pub(super) fn clear(&mut self) {
        self.failed.clear();
    }

    /// When the next object is to be tried again.
    pub(super) fn next(&self) -> Option<Instant> {
        let now = Instant::now();
        self.failed.values().map(|failure| failure.until.max(now + FIRST / 5)).min()
    }

    /// Forgets objects that are neither wanted nor there.
    pub(super) fn retain(&mut self, keep: impl Fn(&Key) -> bool) {
        self.failed.retain(|key, _| keep(key));
    }
}
