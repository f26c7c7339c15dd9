//! The task's first steps, as `task-init`: from a child of the monitor to the program. It is born in the task's
//! process and network namespaces and leaves itself behind by exec; on the way it reports on its standard input,
//! which is a pipe to the monitor: first its process id, then nothing if the program runs, or why it doesn't.

use std::fs::{self, File};
use std::io::{self, PipeWriter, Write as _};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use nix::sched::CloneFlags;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{AccessFlags, Gid, Uid};

use crate::drivers::runtime::{RuntimeSpec, StartFailure, StartStage};
use crate::netns::sys;

use super::record::{Launch, ProcessId, TaskDir};
use super::user::Identity;
use super::{capability, sandbox, user};

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Runs the task's program, or reports why not.
pub(super) fn run(dir: &TaskDir) -> ExitCode {
    let Ok(report) = take_report() else { return ExitCode::FAILURE };
    let mut report = PipeWriter::from(report);
    let failure = match start(dir, &mut report) {
        Ok(never) => match never {},
        Err(failure) => failure,
    };
    let told = serde_json::to_vec(&failure).map_err(io::Error::from);
    match told.and_then(|bytes| report.write_all(&bytes)) {
        Ok(()) => ExitCode::from(127),
        Err(_) => ExitCode::FAILURE,
    }
}

/// Takes the pipe off standard input, out of the program's reach (it closes on exec).
fn take_report() -> io::Result<std::os::fd::OwnedFd> {
    let report = io::stdin().as_fd().try_clone_to_owned()?;
    nix::unistd::dup2_stdin(File::open("/dev/null")?)?;
    Ok(report)
}

fn start(dir: &TaskDir, report: &mut PipeWriter) -> Result<std::convert::Infallible, StartFailure> {
    let ours = |what: &str| {
        let what = what.to_owned();
        move |error: io::Error| StartFailure::new(StartStage::Monitor, format!("{what}: {error}"))
    };
    let own = ProcessId::own().map_err(ours("cannot find own process"))?;
    let line = serde_json::to_string(&own).map_err(io::Error::from).map_err(ours("cannot report"))?;
    writeln!(report, "{line}").map_err(ours("cannot report"))?;
    let launch = dir.launch().map_err(ours("cannot read task.json"))?;
    let launch = launch.ok_or_else(|| StartFailure::new(StartStage::Monitor, "task.json is missing"))?;
    let spec = &launch.spec;

    launch.cgroup.join().map_err(|error| failed_with(StartStage::Limits, &error))?;
    namespaces(spec)?;
    sandbox::build(dir, &launch)?;
    ulimits(&launch)?;
    let identity =
        user::resolve(spec.user.as_deref()).map_err(|reason| StartFailure::new(StartStage::User, reason))?;
    become_user(&identity, capability::capability_set(&spec.capabilities))?;

    let workdir = spec.workdir.as_deref().unwrap_or(Path::new("/"));
    nix::unistd::chdir(workdir).map_err(|errno| {
        let reason = format!("cannot change to working directory {}: {errno}", workdir.display());
        StartFailure::new(StartStage::Workdir, reason)
    })?;
    Err(execute(spec, &identity))
}

fn namespaces(spec: &RuntimeSpec) -> Result<(), StartFailure> {
    let failed = |what: &'static str| {
        move |error: io::Error| StartFailure::new(StartStage::Namespaces, format!("cannot {what}: {error}"))
    };
    nix::unistd::setsid().map_err(io::Error::from).map_err(failed("start a session"))?;
    let flags = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS | CloneFlags::CLONE_NEWIPC;
    sys::unshare(flags).map_err(failed("make namespaces"))?;
    nix::unistd::sethostname(&spec.hostname).map_err(io::Error::from).map_err(failed("set the host name"))?;
    // The task has its network for itself: no port in it needs a privilege. A kernel without the knob keeps
    // low ports for tasks with CAP_NET_BIND_SERVICE.
    for (knob, value) in [("ip_unprivileged_port_start", "0"), ("ping_group_range", "0 2147483647")] {
        if let Err(error) = fs::write(Path::new("/proc/sys/net/ipv4").join(knob), value)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(failed("open low ports")(error));
        }
    }
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    Ok(())
}

/// Puts the agent's own limit of open files back, and sets those that were asked for.
pub(super) fn ulimits(launch: &Launch) -> Result<(), StartFailure> {
    if let Some(soft) = launch.open_files {
        let lowered = getrlimit(Resource::RLIMIT_NOFILE)
            .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, soft.min(hard), hard));
        lowered.map_err(|errno| {
            StartFailure::new(StartStage::Limits, format!("cannot set the limit of open files: {errno}"))
        })?;
    }
    for ulimit in &launch.spec.ulimits {
        let Some(resource) = ulimit.resource() else { continue };
        setrlimit(resource, ulimit.soft, ulimit.hard).map_err(|errno| {
            let reason =
                format!("cannot set ulimit {}={}:{}: {errno}", ulimit.name, ulimit.soft, ulimit.hard);
            StartFailure::new(StartStage::Limits, reason)
        })?;
    }
    Ok(())
}

/// Gives up everything that was not given, for good.
pub(super) fn become_user(identity: &Identity, keep: u64) -> Result<(), StartFailure> {
    let capabilities = |error: io::Error| {
        StartFailure::new(StartStage::Capabilities, format!("cannot set capabilities: {error}"))
    };
    let user = |errno: nix::errno::Errno| {
        let reason = format!("cannot become user {}:{}: {errno}", identity.uid, identity.gid);
        StartFailure::new(StartStage::User, reason)
    };
    // So that the program can open /dev/stdout and /dev/stderr, which are pipes of root's.
    for output in [io::stdout().as_fd(), io::stderr().as_fd()] {
        nix::unistd::fchown(output, Some(Uid::from_raw(identity.uid)), Some(Gid::from_raw(identity.gid)))
            .map_err(user)?;
    }
    capability::bound_to(keep).map_err(capabilities)?;
    // Becoming another user would clear the permitted set; what is kept of it is set below.
    nix::sys::prctl::set_keepcaps(true).map_err(user)?;
    let groups: Vec<Gid> = identity.groups.iter().copied().map(Gid::from_raw).collect();
    nix::unistd::setgroups(&groups).map_err(user)?;
    let gid = Gid::from_raw(identity.gid);
    nix::unistd::setresgid(gid, gid, gid).map_err(user)?;
    let uid = Uid::from_raw(identity.uid);
    nix::unistd::setresuid(uid, uid, uid).map_err(user)?;
    capability::keep_only(keep).map_err(capabilities)?;
    nix::sys::prctl::set_no_new_privs().map_err(user)
}

/// Becomes the program; returns only if that failed.
pub(super) fn execute(spec: &RuntimeSpec, identity: &Identity) -> StartFailure {
    let failed = |reason: String| StartFailure::new(StartStage::Program, reason);
    let Some((name, arguments)) = spec.command.split_first() else {
        return failed("no program named".to_owned());
    };
    let own =
        |name: &str| spec.env.iter().rev().find(|(own, _)| own == name).map(|(_, value)| value.as_str());
    let path = own("PATH").unwrap_or(DEFAULT_PATH);
    let program = match find_program(name, path) {
        Ok(program) => program,
        Err(reason) => return failed(reason),
    };
    let mut command = Command::new(&program);
    command.arg0(name).args(arguments).env_clear();
    command.env("PATH", path).env("HOME", &identity.home).env("HOSTNAME", &spec.hostname);
    command.envs(spec.env.iter().map(|(name, value)| (name, value)));
    // Whoever started shoald may ignore or block signals; a program that inherits that can't be stopped by them.
    if let Err(error) = sys::default_signals() {
        return failed(format!("cannot reset signals: {error}"));
    }
    let error = command.exec();
    failed(match error.raw_os_error() {
        Some(nix::libc::ENOENT) => {
            format!("cannot execute {}: its interpreter or loader does not exist", program.display())
        }
        _ => format!("cannot execute {}: {error}", program.display()),
    })
}

/// The program's file, as a shell would find it, with the permissions the task has.
fn find_program(name: &str, path: &str) -> Result<PathBuf, String> {
    if name.contains('/') {
        return check_program(Path::new(name)).map(|()| PathBuf::from(name));
    }
    let mut refused = None;
    for directory in path.split(':').filter(|directory| !directory.is_empty()) {
        let candidate = Path::new(directory).join(name);
        match check_program(&candidate) {
            Ok(()) => return Ok(candidate),
            // Found but unusable says more than not found.
            Err(reason) if candidate.is_file() => refused = refused.or(Some(reason)),
            Err(_) => {}
        }
    }
    Err(refused.unwrap_or_else(|| format!("program '{name}' not found in PATH ({path})")))
}

fn check_program(path: &Path) -> Result<(), String> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => {
            return Err(format!("program {} is a directory", path.display()));
        }
        Ok(_) => {}
        Err(error) => return Err(format!("program {}: {error}", path.display())),
    }
    nix::unistd::access(path, AccessFlags::X_OK)
        .map_err(|errno| format!("program {} is not executable by the task: {errno}", path.display()))
}

/// An error with its causes, on one line.
fn failed_with(stage: StartStage, error: &dyn std::error::Error) -> StartFailure {
    let mut reason = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        reason = format!("{reason}: {error}");
        cause = error.source();
    }
    StartFailure::new(stage, reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_as_a_shell_does() {
        assert_eq!(find_program("sh", "/nowhere:/bin"), Ok("/bin/sh".into()));
        assert_eq!(find_program("/bin/sh", ""), Ok("/bin/sh".into()));
        assert!(find_program("sh", "/nowhere").expect_err("refused").contains("not found in PATH"));
        assert!(find_program("/etc", "").expect_err("refused").contains("directory"));
        assert!(find_program("passwd", "/etc").expect_err("refused").contains("not executable"));
        assert!(find_program("/no/such", "").expect_err("refused").contains("/no/such"));
    }
}
