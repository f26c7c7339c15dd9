//! The manager as a child: started, watched and restarted while this node's role is manager.
//!
//! The child runs under a user of its own, without any capability, and gets SIGTERM when shoald goes. That signal
//! hangs on the *thread* that started it, so one thread lives only for that.

use std::convert::Infallible;
use std::fs;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Gid, Pid, Uid, User, chown, setgid, setgroups, setuid};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::durable::{self, FileError};
use crate::netns::sys;

/// Hidden subcommand of shoald: sheds privileges, then becomes shoal-control.
pub const SUBCOMMAND: &str = "exec-control";
/// User and group number where there is no user `shoal`.
const FALLBACK_ID: u32 = 7377;
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// A manager that ran so long starts again without a pause.
const STABLE: Duration = Duration::from_secs(30);
/// A manager may take so long to end before it is killed.
const STOP: Duration = Duration::from_secs(5);

/// Why a manager can't be started.
#[derive(Debug, thiserror::Error)]
pub enum SupervisorError {
    /// A directory of its.
    #[error(transparent)]
    File(#[from] FileError),
    /// Handing a directory over.
    #[error("cannot give {} to the manager's user", .0.display())]
    Owner(PathBuf, #[source] nix::Error),
    /// The mode of a directory.
    #[error("cannot set the mode of {}", .0.display())]
    Mode(PathBuf, #[source] io::Error),
    /// The thread.
    #[error("cannot start the thread that starts the manager")]
    Thread(#[source] io::Error),
}

/// What a manager is started with.
#[derive(Debug, Clone)]
pub struct ControlArgs {
    /// Everything after the program's name.
    pub args: Vec<String>,
    /// Where its process id is noted.
    pub pid_file: PathBuf,
}

/// A supervised manager.
#[derive(Debug)]
pub struct Supervisor {
    closing: CancellationToken,
    task: tokio::task::JoinHandle<()>,
    first: Arc<FirstRun>,
}

/// How the first start went: what it said last, and whether it has ended.
#[derive(Debug, Default)]
struct FirstRun {
    last_line: Mutex<String>,
    ended: AtomicBool,
}

fn control_user() -> (Uid, Gid) {
    match User::from_name("shoal") {
        Ok(Some(user)) => (user.uid, user.gid),
        _ => (Uid::from_raw(FALLBACK_ID), Gid::from_raw(FALLBACK_ID)),
    }
}

/// Makes the manager's directories and hands them to its user. Of its socket's, the group `shoal`, where there is one,
/// may pass through, and what is made in it is the group's: the socket is open to whom the node's own is.
pub fn prepare(config: &Config) -> Result<(), SupervisorError> {
    let (uid, gid) = control_user();
    let state = config.state_dir.join("control");
    hand_over(&state, uid, gid, 0o700)?;
    let socket = config.run_dir.join("control");
    match durable::operators() {
        Some(operators) => hand_over(&socket, uid, operators, 0o2710),
        None => hand_over(&socket, uid, gid, 0o700),
    }
}

/// Makes a directory, or makes it what it should be: an older release, or a host without that group, had other modes.
fn hand_over(dir: &Path, uid: Uid, gid: Gid, mode: u32) -> Result<(), SupervisorError> {
    durable::ensure_dir(dir, 0o700)?;
    chown(dir, Some(uid), Some(gid)).map_err(|errno| SupervisorError::Owner(dir.to_owned(), errno))?;
    fs::set_permissions(dir, fs::Permissions::from_mode(mode))
        .map_err(|error| SupervisorError::Mode(dir.to_owned(), error))
}

/// The program: beside shoald, else whatever PATH finds.
fn program() -> PathBuf {
    let beside = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join("shoal-control")));
    beside.filter(|path| path.exists()).unwrap_or_else(|| "shoal-control".into())
}

/// The hidden subcommand: everything after it is the program and its arguments. Does not return unless it fails.
pub fn exec_control(mut arguments: impl Iterator<Item = std::ffi::OsString>) -> io::Result<Infallible> {
    let program = arguments.next().ok_or(io::ErrorKind::InvalidInput)?;
    let parent = arguments.next().and_then(|text| text.to_str()?.parse::<i32>().ok());
    let (uid, gid) = control_user();
    for capability in 0..64 {
        // The first number that the kernel does not know ends the list.
        match sys::has_bounding_capability(capability) {
            Ok(true) => sys::drop_bounding_capability(capability)?,
            Ok(false) => {}
            Err(_) => break,
        }
    }
    sys::clear_ambient_capabilities()?;
    setgroups(&[])?;
    setgid(gid)?;
    // Leaving root takes all capabilities along.
    setuid(uid)?;
    nix::sys::prctl::set_no_new_privs()?;
    // A change of user clears it, so it comes last.
    nix::sys::prctl::set_pdeathsig(Signal::SIGTERM)?;
    if parent.is_some_and(|parent| nix::unistd::getppid() != Pid::from_raw(parent)) {
        // shoald went before the signal was asked for.
        return Err(io::ErrorKind::NotConnected.into());
    }
    Err(Command::new(program).args(arguments).exec())
}

/// Ends a manager that an earlier shoald of this node left behind, if it still runs.
pub fn end_stale(pid_file: &Path) -> Result<(), FileError> {
    let Some(content) = durable::read(pid_file)? else { return Ok(()) };
    let text = String::from_utf8_lossy(&content).into_owned();
    let mut words = text.split_whitespace();
    let pid = words.next().and_then(|word| word.parse::<i32>().ok());
    let started = words.next().and_then(|word| word.parse::<u64>().ok());
    if let (Some(pid), Some(started)) = (pid, started) {
        let alive = || start_time(pid) == Some(started);
        let begin = Instant::now();
        let mut signal = Signal::SIGTERM;
        while alive() {
            if begin.elapsed() > STOP {
                signal = Signal::SIGKILL;
            }
            // It may have ended since; the loop looks again.
            let _gone = kill(Pid::from_raw(pid), signal);
            thread::park_timeout(Duration::from_millis(50));
        }
    }
    durable::remove(pid_file)
}

/// When a process started, in ticks since boot: a number that comes again is not the same process.
fn start_time(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    let mut words = rest.split_whitespace();
    if words.next() == Some("Z") {
        return None;
    }
    words.nth(18)?.parse().ok()
}

type Spawned = io::Result<Child>;
type Request = (Command, oneshot::Sender<Spawned>);

/// A thread that starts children for others and lives as long as the process.
fn spawner() -> io::Result<mpsc::Sender<Request>> {
    let (send, receive) = mpsc::channel::<Request>();
    thread::Builder::new().name("control-parent".into()).spawn(move || {
        while let Ok((mut command, reply)) = receive.recv() {
            // Whoever asked may be gone; the child then ends with this send's value.
            if let Err(Ok(mut child)) = reply.send(command.spawn()) {
                let _ended = child.kill();
            }
        }
        // Ending this thread would signal the child. The process ends soon after.
        loop {
            thread::park();
        }
    })?;
    Ok(send)
}

impl Supervisor {
    /// Starts the manager and keeps it running. `first` is used once, for the start that makes the cluster.
    pub fn start(first: ControlArgs, later: ControlArgs) -> Result<Self, SupervisorError> {
        let spawner = spawner().map_err(SupervisorError::Thread)?;
        let closing = CancellationToken::new();
        let first_run = Arc::new(FirstRun::default());
        let task = tokio::spawn(supervise(spawner, first, later, Arc::clone(&first_run), closing.clone()));
        Ok(Self { closing, task, first: first_run })
    }

    /// What the first start said last, if it has ended.
    pub fn first_failure(&self) -> Option<String> {
        let ended = self.first.ended.load(Ordering::Acquire);
        ended.then(|| self.first.last_line.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }

    /// Ends the manager, and waits until it has.
    pub async fn stop(self) {
        self.closing.cancel();
        // A panic in it was logged; the child has its death signal.
        drop(self.task.await);
    }
}

async fn supervise(
    spawner: mpsc::Sender<Request>,
    first: ControlArgs,
    later: ControlArgs,
    first_run: Arc<FirstRun>,
    closing: CancellationToken,
) {
    let mut args = first;
    let mut pause = FIRST_PAUSE;
    let mut listen = Some(Arc::clone(&first_run));
    while !closing.is_cancelled() {
        let begin = Instant::now();
        let outcome = run_once(&spawner, &args, listen.take(), &closing).await;
        first_run.ended.store(true, Ordering::Release);
        match outcome {
            Ok(Some(status)) => tracing::warn!(%status, "shoal-control ended"),
            Ok(None) => return,
            Err(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, "shoal-control can't be started");
            }
        }
        args = later.clone();
        pause = if begin.elapsed() > STABLE { FIRST_PAUSE } else { (pause * 2).min(LONGEST_PAUSE) };
        tokio::select! {
            () = closing.cancelled() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Runs the manager until it ends (its status) or is told to (none).
async fn run_once(
    spawner: &mpsc::Sender<Request>,
    args: &ControlArgs,
    listen: Option<Arc<FirstRun>>,
    closing: &CancellationToken,
) -> io::Result<Option<ExitStatus>> {
    let mut command = Command::new("/proc/self/exe");
    command
        .arg(SUBCOMMAND)
        .arg(program())
        .arg(std::process::id().to_string())
        .args(&args.args)
        .stdin(Stdio::null())
        .stdout(Stdio::inherit())
        .stderr(if listen.is_some() { Stdio::piped() } else { Stdio::inherit() });
    let (reply, spawned) = oneshot::channel();
    spawner.send((command, reply)).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
    let mut child = spawned.await.map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))??;
    note(&args.pid_file, &child);
    let listener = match (listen, child.stderr.take()) {
        (Some(first), Some(stderr)) => Some(pass_on(stderr, first)?),
        _ => None,
    };
    let mut stopping: Option<Instant> = None;
    let mut tick = tokio::time::interval(Duration::from_millis(50));
    loop {
        if let Some(status) = child.try_wait()? {
            drop(durable::remove(&args.pid_file));
            // All it said is read once its end of the pipe is closed.
            drop(listener.map(thread::JoinHandle::join));
            return Ok(stopping.is_none().then_some(status));
        }
        match stopping {
            None if closing.is_cancelled() => {
                stopping = Some(Instant::now());
                // Only fails when it has ended, which the next look shows.
                let _ended = i32::try_from(child.id()).map(|pid| kill(Pid::from_raw(pid), Signal::SIGTERM));
            }
            Some(since) if since.elapsed() > STOP => child.kill()?,
            _ => {}
        }
        tick.tick().await;
    }
}

/// Copies what the manager says to our own standard error and keeps the last line.
fn pass_on(stderr: ChildStderr, first: Arc<FirstRun>) -> io::Result<thread::JoinHandle<()>> {
    thread::Builder::new().name("control-log".into()).spawn(move || {
        for line in BufReader::new(stderr).split(b'\n').map_while(Result::ok) {
            // Nobody reading our log is no reason to stop the manager's.
            drop(io::stderr().write_all(&[line.as_slice(), b"\n"].concat()));
            let text = String::from_utf8_lossy(&line).trim().to_owned();
            if !text.is_empty() {
                *first.last_line.lock().unwrap_or_else(PoisonError::into_inner) = text;
            }
        }
    })
}

fn note(pid_file: &Path, child: &Child) {
    let started = i32::try_from(child.id()).ok().and_then(start_time);
    if let Some(started) = started {
        let written = durable::write(pid_file, format!("{} {started}\n", child.id()).as_bytes(), 0o600);
        if let Err(error) = written {
            tracing::warn!(error = &error as &dyn std::error::Error, "the manager's process id is not noted");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn what_the_manager_makes_in_its_socket_s_directory_is_the_operators() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("control");
        durable::ensure_dir(&path, 0o700).expect("as an older release made it");
        // Only root can give it to a group that it is not in.
        let group = if Uid::current().is_root() { Gid::from_raw(FALLBACK_ID) } else { Gid::current() };
        hand_over(&path, Uid::current(), group, 0o2710).expect("handed over");
        let found = fs::metadata(&path).expect("there");
        assert_eq!((found.mode() & 0o7777, found.gid()), (0o2710, group.as_raw()));
        let socket = std::os::unix::net::UnixListener::bind(path.join("control.sock")).expect("bound");
        assert_eq!(fs::metadata(path.join("control.sock")).expect("there").gid(), group.as_raw());
        drop(socket);
        hand_over(&path, Uid::current(), Gid::current(), 0o700).expect("the group is gone");
        assert_eq!(fs::metadata(&path).expect("there").mode() & 0o7777, 0o700);
    }
}
