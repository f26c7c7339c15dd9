//! The task's monitor: the process that stands between the agent and the program, and outlives the agent.
//!
//! `task-shim` is started by the agent, makes a process namespace, starts `task-monitor` as the first process in
//! it and ends, so that the monitor is nobody's child. The monitor starts `task-init`, which becomes the program;
//! copies what the program prints to the log; collects orphans; and when the program ends, kills what is left
//! of the task, writes how it ended and ends too. If the monitor itself is killed the kernel kills the whole
//! process namespace: no task runs unwatched.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, PipeReader, Read as _, Write as _};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::sched::CloneFlags;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

use crate::drivers::runtime::{ExitCause, LogSource, StartFailure, StartStage, TaskExit};
use crate::netns::Netns;
use crate::netns::sys::{self, Reaped};

use super::log::LogWriter;
use super::record::{Launch, Phase, ProcessId, Status, TaskDir, boot_id, now_ms};
use super::{INIT, MONITOR};

/// The binary we are, whatever has taken its place on disk meanwhile.
const OWN_PROGRAM: &str = "/proc/self/exe";
/// When all processes are dead their pipes are closed, unless one was handed out of the task.
const LOG_DRAIN: Duration = Duration::from_secs(2);

/// `task-shim`: detaches from the agent and starts the monitor.
pub(super) fn run_shim(dir: &TaskDir) -> ExitCode {
    let detach = || -> io::Result<()> {
        sys::close_descriptors_on_exec()?;
        nix::unistd::chdir("/")?;
        nix::unistd::setsid()?;
        sys::unshare(CloneFlags::CLONE_NEWPID)?;
        // Not waited for: that is the point.
        Command::new(OWN_PROGRAM).arg(MONITOR).arg(dir.path()).spawn().map(drop)
    };
    match detach() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            answer(&rejected(&format!("cannot detach the monitor: {error}")));
            ExitCode::FAILURE
        }
    }
}

/// `task-monitor`: watches over the task until it ends.
pub(super) fn run_monitor(dir: &TaskDir) -> ExitCode {
    match watch(dir) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            answer(&rejected(&format!("the monitor failed: {error}")));
            ExitCode::FAILURE
        }
    }
}

fn watch(dir: &TaskDir) -> io::Result<()> {
    require_own_process_namespace()?;
    nix::sys::prctl::set_name(c"shoal-monitor")?;
    // A task may be root too and must not look into this process: our capabilities forbid that, and this does.
    nix::sys::prctl::set_dumpable(false)?;
    let Some(_lock) = dir.lock()? else {
        return Err(io::Error::other("the task has another monitor"));
    };
    let launch = dir.launch()?.ok_or_else(|| io::Error::other("the task is not prepared"))?;
    let mut status =
        Status { boot: boot_id()?, monitor: ProcessId::own()?, program: None, phase: Phase::Starting };
    dir.set_status(&status)?;

    let started = start(dir, &launch);
    let (program, logs) = match started {
        Ok(started) => started,
        Err(failure) => {
            status.phase = Phase::Rejected { failure };
            dir.set_status(&status)?;
            answer(&status.phase);
            return Ok(());
        }
    };
    status.program = Some(program.id);
    status.phase = Phase::Running { started_at_ms: now_ms() };
    dir.set_status(&status)?;
    answer(&status.phase);
    // The agent reads to the end of this pipe, and may be long gone when we write again.
    nix::unistd::dup2_stdout(File::options().write(true).open("/dev/null")?)?;

    let cause = reap_until(program.pid)?;
    end_namespace()?;
    logs.drain();
    let exit = TaskExit { cause, out_of_memory: launch.cgroup.had_oom_kill(), finished_at_ms: now_ms() };
    status.phase = Phase::Exited { exit };
    dir.set_status(&status)
}

struct Program {
    /// As the host sees it.
    id: ProcessId,
    /// As we see it.
    pid: Pid,
}

/// Starts `task-init` and returns when it has become the program.
fn start(dir: &TaskDir, launch: &Launch) -> Result<(Program, Logs), StartFailure> {
    let ours = |what: &'static str| {
        move |error: io::Error| StartFailure::new(StartStage::Monitor, format!("{what}: {error}"))
    };
    // Also for the monitor itself: it needs no network, and must not keep the node's alive.
    enter_netns(&launch.spec.netns)?;
    let (report, report_end) = io::pipe().map_err(ours("cannot make a pipe"))?;
    let (stdout, stdout_end) = io::pipe().map_err(ours("cannot make a pipe"))?;
    let (stderr, stderr_end) = io::pipe().map_err(ours("cannot make a pipe"))?;
    let child = Command::new(OWN_PROGRAM)
        .args([OsStr::new(INIT), dir.path().as_os_str()])
        .env_clear()
        .stdin(Stdio::from(report_end))
        .stdout(Stdio::from(stdout_end))
        .stderr(Stdio::from(stderr_end))
        .spawn()
        .map_err(ours("cannot start the first process"))?;
    let pid = i32::try_from(child.id()).map(Pid::from_raw);
    let pid = pid.map_err(io::Error::other).map_err(ours("unusable process id"))?;
    let writer = LogWriter::open(dir.path(), launch.log_bytes).map_err(ours("cannot open the log"))?;
    let logs = Logs::start(writer, stdout, stderr).map_err(ours("cannot start the log"))?;
    match read_report(report) {
        Ok(id) => Ok((Program { id, pid }, logs)),
        Err(failure) => {
            // It has ended or is about to, and there is nothing to learn from how.
            let _reaped = waitpid(pid, None);
            Err(failure)
        }
    }
}

fn enter_netns(path: &Path) -> Result<(), StartFailure> {
    let failed = |reason: String| StartFailure::new(StartStage::Namespaces, reason);
    let netns = Netns::open(path).map_err(|error| failed(error.to_string()))?;
    nix::sched::setns(netns, CloneFlags::CLONE_NEWNET)
        .map_err(|errno| failed(format!("cannot enter network namespace {}: {errno}", path.display())))
}

/// Reads who the first process is and, if it fails on its way to the program, why. The end of the pipe without
/// a reason is the exec: the pipe closes with it.
fn read_report(report: PipeReader) -> Result<ProcessId, StartFailure> {
    let failed = |reason: String| StartFailure::new(StartStage::Monitor, reason);
    let mut report = BufReader::new(report);
    let (mut first, mut rest) = (String::new(), String::new());
    report
        .read_line(&mut first)
        .and_then(|_| report.read_to_string(&mut rest))
        .map_err(|error| failed(format!("cannot read the report: {error}")))?;
    if first.is_empty() {
        return Err(failed("the first process ended before it reported".to_owned()));
    }
    if !rest.is_empty() {
        return Err(
            serde_json::from_str(&rest).unwrap_or_else(|error| failed(format!("unreadable report: {error}")))
        );
    }
    serde_json::from_str(&first).map_err(|error| failed(format!("unreadable report: {error}")))
}

/// Collects everything that ends, orphans too, until the program does.
fn reap_until(program: Pid) -> io::Result<ExitCause> {
    loop {
        match sys::reap_any()? {
            Some(Reaped::Exited(pid, code)) if pid == program.as_raw() => {
                return Ok(ExitCause::Code { code });
            }
            Some(Reaped::Killed(pid, signal)) if pid == program.as_raw() => {
                return Ok(ExitCause::Signal { signal });
            }
            Some(_) => {}
            None => return Err(io::Error::other("the program is nobody's child")),
        }
    }
}

/// Kills what the program left behind.
fn end_namespace() -> io::Result<()> {
    require_own_process_namespace()?;
    match kill(Pid::from_raw(-1), Signal::SIGKILL) {
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(errno) => return Err(errno.into()),
    }
    while sys::reap_any()?.is_some() {}
    Ok(())
}

/// A signal to "all" from anywhere else would be to all of the machine.
fn require_own_process_namespace() -> io::Result<()> {
    let status = fs::read_to_string("/proc/self/status")?;
    let levels = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    let nested = levels.is_some_and(|levels| levels.split_ascii_whitespace().count() > 1);
    if nested && std::process::id() == 1 {
        Ok(())
    } else {
        Err(io::Error::other("not the first process of a process namespace"))
    }
}

/// The threads that copy the task's output.
struct Logs {
    done: mpsc::Receiver<()>,
}

impl Logs {
    fn start(writer: LogWriter, stdout: PipeReader, stderr: PipeReader) -> io::Result<Self> {
        let (tell, done) = mpsc::sync_channel(2);
        let writer = Arc::new(writer);
        for (source, pipe) in [(LogSource::Stdout, stdout), (LogSource::Stderr, stderr)] {
            let (tell, writer) = (tell.clone(), Arc::clone(&writer));
            thread::Builder::new().name("log".to_owned()).spawn(move || {
                writer.copy(source, pipe);
                // Nobody waits any more if draining took too long.
                let _late = tell.send(());
            })?;
        }
        Ok(Self { done })
    }

    /// Waits until all that was written is in the log.
    fn drain(self) {
        for _ in 0..2 {
            if self.done.recv_timeout(LOG_DRAIN).is_err() {
                return;
            }
        }
    }
}

fn rejected(reason: &str) -> Phase {
    Phase::Rejected { failure: StartFailure::new(StartStage::Monitor, reason) }
}

/// Tells the agent, if it is still there, how the start went.
fn answer(phase: &Phase) {
    if let Ok(bytes) = serde_json::to_vec(phase) {
        // An agent that died meanwhile finds it in the status.
        let _gone = io::stdout().write_all(&bytes).and_then(|()| io::stdout().flush());
    }
}
