//! What is known about a node's tasks: all of it read from their directories, each time anew.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

use crate::drivers::runtime::spec::is_task_id;
use crate::drivers::runtime::{
    ExitCause, RuntimeError, RuntimeState, StartFailure, StartStage, TaskEnded, TaskExit,
};

use super::ProcessConfig;
use super::cgroup::{CgroupError, Cgroups};
use super::record::{Launch, Phase, Status, TaskDir, now_ms};

/// The tasks of a node.
#[derive(Debug)]
pub(super) struct Tasks {
    pub(super) config: ProcessConfig,
    pub(super) cgroups: Cgroups,
    pub(super) boot: String,
    pub(super) ended: broadcast::Sender<TaskEnded>,
    /// Tasks whose monitors are waited for.
    pub(super) watched: Mutex<BTreeSet<String>>,
    /// Ends that could not be written down (a full disk). They are told all the same, and written when that goes.
    pub(super) unwritten: Mutex<BTreeMap<String, Status>>,
    pub(super) closing: CancellationToken,
}

impl Drop for Tasks {
    fn drop(&mut self) {
        self.closing.cancel();
    }
}

impl Tasks {
    pub(super) fn dir(&self, task: &str) -> TaskDir {
        TaskDir::new(self.config.tasks_dir.join(task))
    }

    pub(super) fn watched(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The ids of all tasks that have a directory.
    pub(super) fn list(&self) -> Result<BTreeSet<String>, RuntimeError> {
        let path = &self.config.tasks_dir;
        let mut tasks = BTreeSet::new();
        for entry in std::fs::read_dir(path).map_err(io_failed("(all)", "list", path))? {
            let entry = entry.map_err(io_failed("(all)", "list", path))?;
            tasks.extend(entry.file_name().into_string().ok().filter(|name| is_task_id(name)));
        }
        Ok(tasks)
    }

    pub(super) fn prepared(&self, task: &str) -> Result<Launch, RuntimeError> {
        let not_found = || RuntimeError::NotFound(task.to_owned());
        if !is_task_id(task) {
            return Err(not_found());
        }
        let dir = self.dir(task);
        dir.launch().map_err(io_failed(task, "read", dir.path()))?.ok_or_else(not_found)
    }

    /// The task's state. One whose monitor is gone without a word is written off here, for good, whether or not that can be
    /// noted.
    pub(super) fn state(&self, task: &str) -> Result<RuntimeState, RuntimeError> {
        let dir = self.dir(task);
        let failed = |action| io_failed(task, action, dir.path());
        let Some(status) = dir.status().map_err(failed("read"))? else { return Ok(RuntimeState::Prepared) };
        if matches!(status.phase, Phase::Exited { .. } | Phase::Rejected { .. })
            || self.is_watched_over(&status)
        {
            self.unwritten().remove(task);
            return Ok(status.state());
        }
        // It may have written its last word between our two looks.
        let Some(mut status) = dir.status().map_err(failed("read"))? else {
            return Ok(RuntimeState::Prepared);
        };
        status.phase = self.written_off(task, &status);
        self.write_off(task, &dir, &status);
        Ok(status.state())
    }

    /// What became of a task whose monitor is gone: always the same.
    fn written_off(&self, task: &str, status: &Status) -> Phase {
        let known = self.unwritten().get(task).filter(|known| known.monitor == status.monitor).cloned();
        match (&status.phase, known) {
            (Phase::Starting | Phase::Running { .. }, Some(known)) => known.phase,
            (Phase::Starting, None) => Phase::Rejected {
                failure: StartFailure::new(StartStage::Monitor, "the monitor was killed during the start"),
            },
            (Phase::Running { .. }, None) => {
                let out_of_memory = self.cgroups.group(task).had_oom_kill();
                let exit = TaskExit { cause: ExitCause::Lost, out_of_memory, finished_at_ms: now_ms() };
                Phase::Exited { exit }
            }
            (last, _) => last.clone(),
        }
    }

    fn write_off(&self, task: &str, dir: &TaskDir, status: &Status) {
        match dir.set_status(status) {
            Ok(()) => drop(self.unwritten().remove(task)),
            Err(error) => {
                if self.unwritten().insert(task.to_owned(), status.clone()).is_none() {
                    let path = dir.path().display();
                    tracing::warn!(task, %path, %error, "the task is gone, which can't be written down");
                }
            }
        }
    }

    pub(super) fn unwritten(&self) -> MutexGuard<'_, BTreeMap<String, Status>> {
        self.unwritten.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_watched_over(&self, status: &Status) -> bool {
        status.boot == self.boot && status.monitor.is_alive()
    }

    /// Signals the program; `false` if it is gone.
    pub(super) fn signal_program(&self, task: &str, signal: i32) -> Result<bool, RuntimeError> {
        let dir = self.dir(task);
        let status = dir.status().map_err(io_failed(task, "read", dir.path()))?;
        match status {
            Some(Status { boot, program: Some(program), .. }) if boot == self.boot => {
                program.signal(signal).map_err(io_failed(task, "signal", dir.path()))
            }
            _ => Ok(false),
        }
    }

    pub(super) fn kill_monitor(&self, task: &str) -> Result<(), RuntimeError> {
        let dir = self.dir(task);
        match dir.status().map_err(io_failed(task, "read", dir.path()))? {
            Some(status) if status.boot == self.boot => status
                .monitor
                .signal(nix::libc::SIGKILL)
                .map(drop)
                .map_err(io_failed(task, "kill the monitor in", dir.path())),
            _ => Ok(()),
        }
    }
}

pub(super) fn io_failed(
    task: &str,
    action: &'static str,
    path: &Path,
) -> impl Fn(io::Error) -> RuntimeError + use<> {
    let (task, path) = (task.to_owned(), path.to_owned());
    move |source| RuntimeError::Io { task: task.clone(), action, path: path.clone(), source }
}

pub(super) fn cgroup_failed(task: &str) -> impl Fn(CgroupError) -> RuntimeError + use<> {
    let task = task.to_owned();
    move |source| RuntimeError::Cgroup { task: task.clone(), source }
}
