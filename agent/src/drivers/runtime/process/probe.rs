//! Running another program beside a task's (`task-probe DIR LIMIT_MS PROGRAM [ARGUMENT]...`).
//!
//! The agent starts this helper, which joins the task's process, network, host name and IPC namespaces, splits in two
//! and waits. Its child joins the control group and the mounts too, gives up what the task may not have and becomes the
//! program, in a session and process group of its own. When the program ends, or its time is over, the helper kills the
//! whole group. The program's output is the helper's stdout; the helper's stderr is a pipe for what became of it.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::{ForkResult, Pid};
use tokio::io::AsyncReadExt as _;
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::timeout;

use crate::drivers::runtime::{ProbeEnd, ProbeOutcome, RuntimeError};
use crate::netns::sys::{self, Reaped};

use super::record::{Launch, TaskDir};
use super::tasks::io_failed;
use super::{PROBE, capability, init, user};

/// What is kept of the output.
const OUTPUT: usize = 512;
/// The helper may take so much longer than the program, on a busy machine.
const SLACK: Duration = Duration::from_secs(5);
/// Output that is still in the pipe when the helper has ended is there at once.
const DRAIN: Duration = Duration::from_millis(100);

/// Runs a program beside a task's, from the agent.
pub(super) async fn probe(
    executable: &Path,
    task: &str,
    dir: &TaskDir,
    command: &[String],
    limit: Duration,
) -> Result<ProbeOutcome, RuntimeError> {
    let failed = || io_failed(task, "execute", executable);
    let mut helper = Command::new(executable)
        .arg(PROBE)
        .arg(dir.path())
        .arg(limit.as_millis().to_string())
        .args(command)
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(failed())?;
    let mut tail = Tail { stdout: helper.stdout.take(), bytes: Vec::new() };
    let report = timeout(limit + SLACK, read_report(&mut helper, &mut tail)).await;
    let end = match report {
        Ok(report) => report.map_err(failed())?,
        // Dropping the helper kills it, and the program with it.
        Err(_) => ProbeEnd::TimedOut,
    };
    Ok(ProbeOutcome { end, output: tail.bytes })
}

async fn read_report(helper: &mut Child, tail: &mut Tail) -> io::Result<ProbeEnd> {
    let mut report = Vec::new();
    if let Some(mut stderr) = helper.stderr.take() {
        let mut reading = Box::pin(stderr.read_to_end(&mut report));
        // Both arms only read; the output is read on while the helper lives, or the program would block.
        loop {
            tokio::select! {
                read = &mut reading => {
                    read?;
                    break;
                }
                () = tail.read_some() => {}
            }
        }
    }
    // Something that left the program's group may keep the pipe open.
    while timeout(DRAIN, tail.read_some()).await.is_ok() && tail.stdout.is_some() {}
    helper.wait().await?;
    let first = report.split(|byte| *byte == b'\n').next().unwrap_or_default();
    Ok(serde_json::from_slice(first)
        .unwrap_or_else(|_| ProbeEnd::Failed { reason: "the helper ended without a word".to_owned() }))
}

/// The end of what a program writes.
struct Tail {
    stdout: Option<ChildStdout>,
    bytes: Vec<u8>,
}

impl Tail {
    /// Reads once; never returns after the end. Cancel safe.
    async fn read_some(&mut self) {
        let Some(stdout) = &mut self.stdout else { return std::future::pending().await };
        let mut buffer = [0; OUTPUT];
        match stdout.read(&mut buffer).await {
            Ok(0) | Err(_) => self.stdout = None,
            Ok(read) => {
                self.bytes.extend_from_slice(buffer.get(..read).unwrap_or_default());
                let surplus = self.bytes.len().saturating_sub(OUTPUT);
                self.bytes.drain(..surplus);
            }
        }
    }
}

/// `task-probe`, the helper.
pub(super) fn run(dir: Option<OsString>, mut args: impl Iterator<Item = OsString>) -> ExitCode {
    let limit = args.next().and_then(|text| text.to_str()?.parse().ok()).map(Duration::from_millis);
    let command: Option<Vec<String>> = args.map(|word| word.into_string().ok()).collect();
    let (Some(dir), Some(limit), Some(command)) = (dir, limit, command) else { return ExitCode::FAILURE };
    let Ok(report) = take_report() else { return ExitCode::FAILURE };
    let mut report = File::from(report);
    let end = match watch(&TaskDir::new(PathBuf::from(dir)), limit, command) {
        Ok(end) => end,
        Err(error) => Side::Helper(ProbeEnd::Failed { reason: error.to_string() }),
    };
    let (code, end) = match end {
        Side::Helper(end) => (ExitCode::SUCCESS, end),
        Side::Child(reason) => (ExitCode::from(127), ProbeEnd::Failed { reason }),
    };
    tell(&mut report, &end);
    code
}

/// Which of the two processes goes on here, and with what.
enum Side {
    /// The helper: how the program ended.
    Helper(ProbeEnd),
    /// Its child: why it is not the program.
    Child(String),
}

fn tell(report: &mut File, end: &ProbeEnd) {
    if let Ok(mut line) = serde_json::to_vec(end) {
        line.push(b'\n');
        // An agent that is gone does not ask any more.
        let _gone = report.write_all(&line);
    }
}

/// Takes the pipe off standard error, out of the program's reach (it closes on exec), and puts the output there.
fn take_report() -> io::Result<OwnedFd> {
    let report = io::stderr().as_fd().try_clone_to_owned()?;
    nix::unistd::dup2_stderr(io::stdout())?;
    sys::close_descriptors_on_exec()?;
    // The task may be root: it must not look into this process, nor its child's before that is the program.
    nix::sys::prctl::set_dumpable(false)?;
    Ok(report)
}

fn watch(dir: &TaskDir, limit: Duration, command: Vec<String>) -> io::Result<Side> {
    let gone = || io::Error::other("the task does not run");
    let mut launch = dir.launch()?.ok_or_else(gone)?;
    launch.spec.command = command;
    let program = dir.status()?.and_then(|status| status.program).ok_or_else(gone)?;
    let task = program.open()?.ok_or_else(gone)?;
    let namespaces = CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWIPC;
    setns(&task, namespaces)
        .map_err(|errno| io::Error::other(format!("cannot enter the task's namespaces: {errno}")))?;
    match sys::fork()? {
        ForkResult::Child => Ok(Side::Child(become_program(&launch, &task))),
        ForkResult::Parent { child } => wait(child, limit).map(Side::Helper),
    }
}

/// Waits for the child to end, and ends it when its time is over.
fn wait(child: Pid, limit: Duration) -> io::Result<ProbeEnd> {
    let pidfd = sys::pidfd_open(child.as_raw())?;
    let deadline = Instant::now() + limit;
    let mut timed_out = false;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        // Rounded up, so as not to spin through the last millisecond.
        let left = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)], left) {
            Ok(0) if Instant::now() < deadline => {}
            Ok(0) => {
                timed_out = true;
                break;
            }
            Ok(_) => break,
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    // While the child is not reaped its group can't be another's. It has none of its own yet if it did not get far.
    if timed_out {
        sys::pidfd_send_signal(&pidfd, nix::libc::SIGKILL)?;
    }
    match killpg(child, Signal::SIGKILL) {
        Ok(()) | Err(Errno::ESRCH | Errno::EPERM) => {}
        Err(errno) => return Err(errno.into()),
    }
    match sys::reap_any()? {
        _ if timed_out => Ok(ProbeEnd::TimedOut),
        Some(Reaped::Exited(_, code)) => Ok(ProbeEnd::Exited { code }),
        Some(Reaped::Killed(_, signal)) => Ok(ProbeEnd::Killed { signal }),
        None => Err(io::Error::other("the program is nobody's child")),
    }
}

/// Becomes the program; returns why not.
fn become_program(launch: &Launch, task: &OwnedFd) -> String {
    let spec = &launch.spec;
    let prepare = || -> Result<user::Identity, String> {
        let said = |what: &'static str| move |errno: Errno| format!("cannot {what}: {errno}");
        launch.cgroup.join().map_err(|error| error.to_string())?;
        nix::unistd::setsid().map_err(said("start a session"))?;
        setns(task, CloneFlags::CLONE_NEWNS).map_err(said("enter the task's mounts"))?;
        nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
        init::ulimits(launch).map_err(|failure| failure.to_string())?;
        let identity = user::resolve(spec.user.as_deref())?;
        init::become_user(&identity, capability::capability_set(&spec.capabilities))
            .map_err(|failure| failure.to_string())?;
        // Becoming another user clears it. Our parent is outside of this process namespace: it has no number here.
        nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(said("hang on the helper"))?;
        if nix::unistd::getppid().as_raw() != 0 {
            return Err("the helper is gone".to_owned());
        }
        let workdir = spec.workdir.as_deref().unwrap_or(Path::new("/"));
        nix::unistd::chdir(workdir)
            .map_err(|errno| format!("cannot change to working directory {}: {errno}", workdir.display()))?;
        Ok(identity)
    };
    match prepare() {
        Ok(identity) => init::execute(spec, &identity).to_string(),
        Err(reason) => reason,
    }
}
