//! The `process` runtime: host programs, each in process, mount, host name, IPC and network namespaces of its
//! own, with its own `resolv.conf` and `hosts`, in a control group with its limits, without capabilities that it
//! wasn't given.
//!
//! The agent starts a task's *monitor* ([`monitor`](self)) and is not needed any more: the monitor is nobody's
//! child, keeps the log, sees the end and writes it down. All the agent knows about tasks is in their
//! directories ([`record`](self)), so one that restarts knows as much as before.
//!
//! The monitor, the task's first steps and what is run beside it are this same binary, started anew as the hidden
//! subcommands `task-shim`, `task-monitor`, `task-init` and `task-probe`: see [`run_subcommand`].

mod capability;
mod cgroup;
mod driver;
mod follow;
mod init;
mod log;
mod monitor;
mod probe;
mod record;
mod sandbox;
mod tasks;
mod user;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

pub use cgroup::{CgroupError, unified_group};
pub use driver::ProcessRuntime;

pub(in crate::drivers::runtime) use capability::capability;

use record::TaskDir;

const SHIM: &str = "task-shim";
const MONITOR: &str = "task-monitor";
const INIT: &str = "task-init";
const PROBE: &str = "task-probe";

/// Runs one of the hidden subcommands if the arguments (the program's name first) ask for one; `None` if they
/// are for the daemon. To be called first of all in `main`, before there is any thread.
pub fn run_subcommand(args: impl IntoIterator<Item = OsString>) -> Option<ExitCode> {
    let mut args = args.into_iter().skip(1);
    let (name, dir) = (args.next()?, args.next());
    let run = match name.to_str()? {
        PROBE => return Some(probe::run(dir, args)),
        SHIM => monitor::run_shim,
        MONITOR => monitor::run_monitor,
        INIT => init::run,
        _ => return None,
    };
    Some(match dir {
        Some(dir) => run(&TaskDir::new(PathBuf::from(dir))),
        // Not for people: there is nobody to explain to.
        None => ExitCode::FAILURE,
    })
}

/// What the process runtime needs to know about its node.
#[derive(Clone, Debug)]
pub struct ProcessConfig {
    /// Where the tasks' directories are: `STATE_DIR/tasks`.
    pub tasks_dir: PathBuf,
    /// The name of the node's level in the control group hierarchies.
    pub cgroup: String,
    /// What a task's logs may take on disk.
    pub log_bytes_per_task: u64,
    /// Open files that a task may have until it asks for more; none: as many as this process.
    pub open_files: Option<u64>,
    /// Directories that no task may see: the node's own.
    pub hidden: Vec<PathBuf>,
    /// The binary that has the hidden subcommands.
    pub executable: PathBuf,
    /// How long a task may take from its monitor's start to its program's.
    pub start_timeout: Duration,
}

impl ProcessConfig {
    /// The usual values for a node with these directories and this control group name.
    pub fn new(state_dir: &Path, run_dir: &Path, cgroup: &str) -> Self {
        Self {
            tasks_dir: state_dir.join("tasks"),
            cgroup: cgroup.to_owned(),
            log_bytes_per_task: 10 << 20,
            open_files: None,
            hidden: vec![state_dir.to_owned(), run_dir.to_owned()],
            executable: "/proc/self/exe".into(),
            start_timeout: Duration::from_secs(30),
        }
    }
}
