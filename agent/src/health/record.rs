//! What is known of the health of tasks, on disk: a file each, gone with the task.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use shoal_plan::health::Checked;
use shoal_types::TaskId;
use shoal_types::object::Health;

use crate::durable;
use crate::reconciler::chain;

/// A directory of records.
#[derive(Debug)]
pub(super) struct Records {
    dir: PathBuf,
}

/// The content of a file. Kept across upgrades of the agent: a new field needs a default.
#[derive(Serialize, Deserialize)]
struct Record {
    been_healthy: bool,
    unhealthy: bool,
    line: String,
}

impl Records {
    pub(super) fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// What was found of a task; nothing yet when there is no record, or none that can be read.
    pub(super) fn read(&self, id: &TaskId) -> Checked {
        let path = self.dir.join(id.as_str());
        let content = durable::read(&path).unwrap_or_else(|error| {
            tracing::warn!(error = chain(&error), "a task is taken for one that is starting");
            None
        });
        let record = content.and_then(|content| serde_json::from_slice::<Record>(&content).ok());
        let Some(Record { been_healthy, unhealthy, line }) = record else { return Checked::default() };
        let health = match (unhealthy, been_healthy) {
            (true, _) => Health::Unhealthy,
            (false, true) => Health::Healthy,
            (false, false) => Health::Starting,
        };
        Checked { health, been_healthy, failures: 0, line }
    }

    /// Keeps what was found. A failure costs a restarted agent its memory, nothing else.
    pub(super) fn write(&self, id: &TaskId, checked: &Checked) {
        let record = Record {
            been_healthy: checked.been_healthy,
            unhealthy: checked.health == Health::Unhealthy,
            line: checked.line.clone(),
        };
        let content = serde_json::to_vec(&record).unwrap_or_default();
        let written = durable::ensure_dir(&self.dir, 0o700)
            .and_then(|()| durable::write(&self.dir.join(id.as_str()), &content, 0o600));
        if let Err(error) = written {
            tracing::warn!(task = %id, error = chain(&error), "its health is not kept");
        }
    }

    /// Forgets a task.
    pub(super) fn remove(&self, id: &TaskId) {
        if let Err(error) = durable::remove(&self.dir.join(id.as_str())) {
            tracing::warn!(error = chain(&error), "a record of a task's health stays");
        }
    }

    /// Forgets all tasks but these.
    pub(super) fn retain(&self, keep: impl Fn(&TaskId) -> bool) {
        // Without a task that was ever checked there is no directory.
        let Ok(entries) = std::fs::read_dir(&self.dir) else { return };
        for entry in entries.flatten() {
            let id = entry.file_name().to_str().and_then(|name| name.parse::<TaskId>().ok());
            if !id.is_some_and(|id| keep(&id))
                && let Err(error) = durable::remove(&entry.path())
            {
                tracing::warn!(error = chain(&error), "a record of a task's health stays");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_found_is_found_again_and_goes_with_its_task() {
        let dir = tempfile::tempdir().expect("a directory");
        let records = Records::new(dir.path().join("health"));
        let (a, b) = (TaskId::from_entropy(1), TaskId::from_entropy(2));
        assert_eq!(records.read(&a), Checked::default());
        let healthy =
            Checked { health: Health::Healthy, been_healthy: true, failures: 0, line: String::new() };
        let sick =
            Checked { health: Health::Unhealthy, failures: 3, line: "refused".to_owned(), ..healthy.clone() };
        records.write(&a, &healthy);
        records.write(&b, &sick);
        assert_eq!(records.read(&a), healthy);
        assert_eq!(records.read(&b), Checked { failures: 0, ..sick });
        records.retain(|id| *id == a);
        assert_eq!((records.read(&a), records.read(&b)), (healthy, Checked::default()));
        std::fs::write(dir.path().join("health").join(a.as_str()), b"{").expect("written");
        assert_eq!(records.read(&a), Checked::default(), "a torn record is none");
    }
}
