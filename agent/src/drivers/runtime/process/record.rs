//! What is on disk about a task, in `STATE_DIR/tasks/ID/`:
//!
//! - `task.json`: what to run, written once by the agent; a task without it is not prepared;
//! - `lock`: held by the task's monitor for as long as it lives, so there is never a second one;
//! - `status.json`: what became of it, replaced as a whole by the monitor while that lives, by the agent after;
//! - `resolv.conf`, `hosts`: mounted into the task;
//! - `log`, `log.1`: its output.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::drivers::runtime::{RuntimeSpec, RuntimeState, StartFailure, TaskExit};
use crate::netns::sys;

use super::MONITOR;
use super::cgroup::Cgroup;

/// A task's directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TaskDir {
    path: PathBuf,
}

/// `task.json`: all that the monitor and the task's first steps need.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Launch {
    pub(super) spec: RuntimeSpec,
    pub(super) cgroup: Cgroup,
    /// Directories of the node that the task must not see.
    pub(super) hidden: Vec<PathBuf>,
    pub(super) log_bytes: u64,
    /// Open files that the task may have until it asks for more; none: as many as the agent. (Older agents wrote none.)
    #[serde(default)]
    pub(super) open_files: Option<u64>,
}

/// `status.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Status {
    /// Which boot of the machine this was written in: process ids mean nothing in another.
    pub(super) boot: String,
    pub(super) monitor: ProcessId,
    pub(super) program: Option<ProcessId>,
    pub(super) phase: Phase,
}

/// How far a task got.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "phase", rename_all = "snake_case")]
pub(super) enum Phase {
    Starting,
    Running { started_at_ms: u64 },
    Exited { exit: TaskExit },
    Rejected { failure: StartFailure },
}

impl Status {
    /// The status of a task about which no more is known than that it ran before this boot of the machine.
    fn of_another_boot() -> Self {
        Self {
            boot: String::new(),
            monitor: ProcessId { pid: 0, start: 0 },
            program: None,
            phase: Phase::Running { started_at_ms: 0 },
        }
    }

    /// The status as others know it. A task whose start is under way is still only prepared.
    pub(super) fn state(&self) -> RuntimeState {
        match (&self.phase, self.program) {
            (Phase::Starting, _) => RuntimeState::Prepared,
            (Phase::Running { started_at_ms }, program) => RuntimeState::Running {
                pid: program.map_or(0, |program| program.pid),
                started_at_ms: *started_at_ms,
            },
            (Phase::Exited { exit }, _) => RuntimeState::Exited(exit.clone()),
            (Phase::Rejected { failure }, _) => RuntimeState::Rejected(failure.clone()),
        }
    }
}

/// Whether a file's content is at fault, not the reading of it.
pub(super) fn is_damage(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof)
}

/// A process, and not another that got its number later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ProcessId {
    pub(super) pid: i32,
    /// Clock ticks from boot to its start.
    start: u64,
}

impl ProcessId {
    /// The calling process, as the host numbers it, whatever process namespace it is in: `/proc` is the host's.
    pub(super) fn own() -> io::Result<Self> {
        let link = fs::read_link("/proc/self")?;
        let pid = link.to_str().and_then(|text| text.parse().ok());
        Self::of(pid.ok_or_else(|| io::Error::other("/proc/self is no process id"))?)
    }

    pub(super) fn of(pid: i32) -> io::Result<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let start = parse_stat(&stat).map(|(_, start)| start);
        Ok(Self { pid, start: start.ok_or_else(|| io::Error::other("unreadable /proc/PID/stat"))? })
    }

    /// A descriptor of the process, if it still lives.
    pub(super) fn open(self) -> io::Result<Option<std::os::fd::OwnedFd>> {
        let pidfd = match sys::pidfd_open(self.pid) {
            Ok(pidfd) => pidfd,
            Err(error) if error.raw_os_error().is_some_and(is_no_process) => return Ok(None),
            Err(error) => return Err(error),
        };
        // Checked after opening: from here on the descriptor can't change its meaning.
        Ok(if self.is_alive() { Some(pidfd) } else { None })
    }

    /// Whether the process lives; a zombie doesn't.
    pub(super) fn is_alive(self) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
        matches!(parse_stat(&stat), Some((state, start)) if start == self.start && !matches!(state, 'Z' | 'X'))
    }

    /// Sends a signal. A process that is gone is not an error: `false`.
    pub(super) fn signal(self, signal: i32) -> io::Result<bool> {
        let Some(pidfd) = self.open()? else { return Ok(false) };
        match sys::pidfd_send_signal(pidfd, signal) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(nix::libc::ESRCH) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// What `pidfd_open` says of a number that no process has (any more): nothing has it, or it is a thread's, which is
/// also how a process looks in the middle of its end. (EINVAL before Linux 6.15.)
const fn is_no_process(errno: i32) -> bool {
    matches!(errno, nix::libc::ESRCH | nix::libc::ENOENT | nix::libc::EINVAL)
}

/// State and start time from `/proc/PID/stat`. The command in it may contain spaces and parentheses.
fn parse_stat(stat: &str) -> Option<(char, u64)> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

/// Whether a process descends from the monitor of a task below this directory.
pub(super) fn is_watched_from(pid: i32, tasks_dir: &Path) -> bool {
    let mut pid = Some(pid);
    // A chain of parents ends at the first process; the bound is for a chain that changes while we climb.
    for _ in 0..1000 {
        let Some(current) = pid.filter(|pid| *pid > 1) else { return false };
        let command = fs::read(format!("/proc/{current}/cmdline")).unwrap_or_default();
        let mut arguments = command.split(|byte| *byte == 0).skip(1).map(OsStr::from_bytes);
        if arguments.next() == Some(OsStr::new(MONITOR)) {
            return arguments.next().is_some_and(|dir| Path::new(dir).parent() == Some(tasks_dir));
        }
        let status = fs::read_to_string(format!("/proc/{current}/status")).unwrap_or_default();
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"));
        pid = parent.and_then(|parent| parent.trim().parse().ok());
    }
    false
}

/// Names this boot of the machine.
pub(super) fn boot_id() -> io::Result<String> {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|text| text.trim().to_owned())
}

/// Milliseconds of Unix time.
pub(super) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

impl TaskDir {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Lays everything down, `task.json` last.
    pub(super) fn create(&self, launch: &Launch) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.path)?;
        replace(&self.file("resolv.conf"), launch.spec.resolv_conf.as_bytes(), 0o644)?;
        replace(&self.file("hosts"), launch.spec.hosts.as_bytes(), 0o644)?;
        self.write_json("task.json", launch)
    }

    /// `None` if the task is not prepared.
    pub(super) fn launch(&self) -> io::Result<Option<Launch>> {
        self.read_json("task.json")
    }

    /// `None` if the task was never started. One that a power cut made unreadable is that of a lost task, unless
    /// there is a monitor that can write it anew.
    pub(super) fn status(&self) -> io::Result<Option<Status>> {
        match self.read_json("status.json") {
            Err(error) if is_damage(&error) && self.lock()?.is_some() => Ok(Some(Status::of_another_boot())),
            other => other,
        }
    }

    pub(super) fn set_status(&self, status: &Status) -> io::Result<()> {
        self.write_json("status.json", status)
    }

    /// Takes the lock of the task's monitor; `None` if there is a monitor that has it.
    pub(super) fn lock(&self) -> io::Result<Option<File>> {
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(self.file("lock"))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// Removes the directory. What isn't there is removed already.
    pub(super) fn remove(&self) -> io::Result<()> {
        match fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn read_json<T: DeserializeOwned>(&self, name: &str) -> io::Result<Option<T>> {
        match fs::read(self.file(name)) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(io::Error::from),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn write_json<T: Serialize>(&self, name: &str, value: &T) -> io::Result<()> {
        replace(&self.file(name), &serde_json::to_vec(value)?, 0o600)
    }
}

/// Replaces a file as a whole: a reader sees the old or the new one.
fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(mode).open(&new)?;
    file.write_all(bytes)?;
    fs::rename(&new, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_can_t_confuse_the_state() {
        let stat = "12 (a) Z 9 (x) S 1 12 12 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4711 0 0";
        assert_eq!(parse_stat(stat), Some(('S', 4711)));
        assert_eq!(parse_stat("12 (a"), None);
    }

    #[test]
    fn a_number_that_is_a_threads_is_no_process() {
        let thread = std::thread::spawn(|| {
            let id = ProcessId::of(nix::unistd::gettid().as_raw()).expect("a thread");
            assert!(id.open().expect("no error").is_none());
            assert!(!id.signal(0).expect("no error"));
        });
        thread.join().expect("its assertions hold");
    }

    #[test]
    fn a_process_is_itself_and_no_other() {
        let own = ProcessId::own().expect("own");
        assert_eq!(own.pid, i32::try_from(std::process::id()).expect("fits"));
        assert!(own.is_alive());
        assert!(own.open().expect("opens").is_some());
        let other = ProcessId { start: own.start + 1, ..own };
        assert!(other.open().expect("opens").is_none());
        assert!(!other.signal(0).expect("no error"));
    }

    #[test]
    fn only_one_monitor_has_the_lock() {
        let dir = tempfile::tempdir().expect("directory");
        let task = TaskDir::new(dir.path().to_owned());
        let held = task.lock().expect("locks");
        assert!(held.is_some());
        assert!(task.lock().expect("locks").is_none());
        drop(held);
        assert!(task.lock().expect("locks").is_some());
    }
}
