//! `cargo xtask vm`: a command as root on another kernel, with this host's files.
//!
//! The guest sees the host's root read-only with an overlay in memory on top, so that the checkout, what was built in it
//! and the host's programs are all there and nothing that the command writes stays. Kernels come from Debian's
//! packages, unpacked below `target/vm`; nothing is installed. All processes die with this one and all mounts are in a
//! namespace of its own, so nothing is left even after SIGKILL.

mod boot;
mod cpio;
mod kernel;
mod packages;
mod stage;
mod watch;

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use nix::fcntl::{Flock, FlockArg};
use nix::sched::{CpuSet, sched_getaffinity};
use nix::sys::prctl::set_child_subreaper;
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

use crate::tools::{root, target_dir};
use boot::Machine;
use kernel::{Kernel, TOOLS, Version};
use packages::{Bundle, ensure_unpacked};
use stage::{Shown, Stage};
use watch::{Guest, Outcome};

const INIT: &str = include_str!("vm/guest-init.sh");
const TIMED_OUT: u8 = 124;
const DIED: u8 = 125;
/// A shell's way to say that a signal ended something.
const SIGNALED: u8 = 128;
/// Boots at most of which none gets as far as the command.
const BOOTS: u32 = 3;
/// How long the server of a guest's root may take to come up.
const SERVER_START: Duration = Duration::from_secs(30);

#[derive(clap::Args)]
pub(crate) struct Args {
    /// What boots: user-mode Linux 6.1 (seconds, native speed, no JIT) or Debian's kernel under QEMU (emulated)
    #[arg(value_enum)]
    kind: Kind,
    /// The kernel under QEMU
    #[arg(long, value_enum, default_value = "6.12")]
    kernel: Version,
    /// Seconds until the guest is ended, boot included; the exit code is then 124
    #[arg(long, value_name = "S", default_value = "600", value_parser = clap::value_parser!(u64).range(1..))]
    timeout: u64,
    /// Memory, in M or G
    #[arg(long, value_name = "M", default_value = "2G", value_parser = parse_memory)]
    mem: u32,
    /// CPUs; user-mode Linux has one
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u32).range(1..=64))]
    cpus: u32,
    /// A directory for results; the command finds it as $SHOAL_OUT
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// The command, run as root in the current directory
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<OsString>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Kind {
    Uml,
    Qemu,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Uml => "uml",
            Self::Qemu => "qemu",
        }
    }
}

/// Mebibytes from `512M`, `2G` or a bare number of mebibytes.
fn parse_memory(text: &str) -> Result<u32, String> {
    let (number, factor) = match text.strip_suffix(['G', 'g']) {
        Some(number) => (number, 1024),
        None => (text.strip_suffix(['M', 'm']).unwrap_or(text), 1),
    };
    let mebibytes = number.parse::<u32>().ok().and_then(|number| number.checked_mul(factor));
    match mebibytes {
        Some(mebibytes @ 128..) => Ok(mebibytes),
        Some(_) => Err("a guest needs at least 128M".into()),
        None => Err("give memory as 512M or 2G".into()),
    }
}

/// Runs the command; this process then ends with the command's exit code unless that is 0.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let code = match run_guest(args)? {
        Outcome::Status(status) => status,
        Outcome::TimedOut => {
            say(&format!("time-out after {} s", args.timeout));
            TIMED_OUT
        }
        Outcome::Interrupted(signal) => SIGNALED + signal,
        Outcome::Died(console) => {
            say(&format!("the guest ended without a status; its console said:\n{console}"));
            DIED
        }
    };
    if code != 0 {
        #[expect(
            clippy::exit,
            reason = "the exit code is the command's, and everything is torn down by now"
        )]
        std::process::exit(code.into());
    }
    Ok(())
}

#[expect(clippy::print_stderr, reason = "a command line tool reports to its terminal")]
fn say(line: &str) {
    eprintln!("vm: {line}");
}

fn run_guest(args: &Args) -> anyhow::Result<Outcome> {
    ensure!(nix::unistd::geteuid().is_root(), "vm makes mounts and namespaces: run it as root");
    ensure!(
        args.kind == Kind::Qemu || args.cpus == 1,
        "user-mode Linux has one CPU: leave --cpus out, or use qemu"
    );
    let base = target_dir()?.join("vm");
    fs::create_dir_all(&base)?;
    let preparing = lock(&base.join("lock"))?;
    let tools = ensure_unpacked(&base, &TOOLS)?;
    let kernel = match args.kind {
        Kind::Uml => kernel::user_mode(&base, &tools)?,
        Kind::Qemu => kernel::debian(&base, args.kernel, &tools)?,
    };
    let emulator = match args.kind {
        Kind::Uml => None,
        Kind::Qemu => Some(Emulator::find(&base)?),
    };
    drop(preparing);
    let out = args.out.as_deref().map(made_directory).transpose()?;
    let directory = std::env::current_dir().context("the current directory")?;
    let places = [root()?.to_owned(), target_dir()?, directory.clone()];
    let keep_tmp = places.iter().any(|place| place.starts_with("/tmp"));
    let stage = Stage::set(
        &base,
        args.kind,
        &Shown { kernel: &kernel, tools: &tools, out: out.as_deref(), places: &places },
    )?;
    write_control(&stage.control, args, &directory, keep_tmp)?;

    let machine = Machine { memory_mib: args.mem, cpus: args.cpus };
    // What the guest's processes leave behind falls to this one, which waits for it.
    set_child_subreaper(true)?;
    let (cpu, _held) = take_cpu(&base)?;
    let mut boots = 1;
    loop {
        let mut guest = match &emulator {
            None => user_mode(&kernel, machine, &stage, cpu)?,
            Some(emulator) => emulated(emulator, &kernel, machine, &stage)?,
        };
        let outcome = guest.watch(&stage.control, Duration::from_secs(args.timeout))?;
        drop(guest);
        while waitpid(None::<Pid>, None).is_ok() {}
        if boots == BOOTS || !never_began(&outcome, &stage.control) {
            return Ok(outcome);
        }
        boots += 1;
        say("the guest's kernel ended before it ran anything; it is booted once more");
    }
}

/// Whether a guest ended before it came to the command. An emulated kernel does so at times: it changes its own code while
/// another CPU runs that, and the emulator lets that one see half of the change.
fn never_began(outcome: &Outcome, control: &Path) -> bool {
    matches!(outcome, Outcome::Died(_)) && !control.join("booted").exists()
}

fn user_mode(kernel: &Kernel, machine: Machine, stage: &Stage, cpu: usize) -> anyhow::Result<Guest> {
    let mut guest = Guest::new()?;
    guest.start(&boot::user_mode(kernel, machine, &stage.root, cpu), &stage.run, None)?;
    Ok(guest)
}

fn emulated(emulator: &Emulator, kernel: &Kernel, machine: Machine, stage: &Stage) -> anyhow::Result<Guest> {
    let mut guest = Guest::new()?;
    // Socket addresses are short, paths need not be: both ends use the directory they run in.
    // The server keeps a lock of this name on the machine.
    let socket = PathBuf::from(format!("root{}.sock", std::process::id()));
    let (socket, made) = (socket.as_path(), stage.run.join(socket.as_path()));
    // That of a boot before this one.
    if made.exists() {
        fs::remove_file(&made).with_context(|| made.display().to_string())?;
    }
    let libraries = emulator.libraries.as_deref();
    guest.start(&boot::root_server(&emulator.server, &stage.root, socket), &stage.run, libraries)?;
    guest.wait_for_file(&made, SERVER_START)?;
    let firmware: Vec<_> = emulator.firmware.iter().map(PathBuf::as_path).collect();
    let line = boot::emulated(&emulator.program, &firmware, kernel, machine, socket);
    guest.start(&line, &stage.run, libraries)?;
    Ok(guest)
}

fn made_directory(path: &Path) -> anyhow::Result<PathBuf> {
    fs::create_dir_all(path)
        .and_then(|()| path.canonicalize())
        .with_context(|| format!("--out {}", path.display()))
}

fn write_control(control: &Path, args: &Args, directory: &Path, keep_tmp: bool) -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let guest = args.kind.name();
    let script = boot::command_script(directory, std::env::vars_os(), guest, &args.command);
    fs::write(control.join("command"), script)?;
    fs::write(
        control.join("settings"),
        format!("SHOAL_GUEST={guest}\nSHOAL_KEEP_TMP={}\n", u8::from(keep_tmp)),
    )?;
    for stream in ["stdout", "stderr"] {
        fs::write(control.join(stream), "")?;
    }
    let init = control.join("init");
    fs::write(&init, INIT)?;
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

fn lock(path: &Path) -> anyhow::Result<Flock<File>> {
    let file = File::create(path).with_context(|| path.display().to_string())?;
    Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, error)| error).context("flock")
}

/// A CPU of those this process may use that no other guest has, if there is one. User-mode Linux is several processes
/// that hand over to each other: spread over CPUs, every system call in it costs ten times as much.
fn take_cpu(base: &Path) -> anyhow::Result<(usize, Option<Flock<File>>)> {
    let allowed = sched_getaffinity(Pid::from_raw(0))?;
    let cpus: Vec<_> = (0..CpuSet::count()).filter(|&cpu| allowed.is_set(cpu).unwrap_or_default()).collect();
    for &cpu in &cpus {
        let file = File::create(base.join(format!("cpu{cpu}")))?;
        if let Ok(held) = Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            return Ok((cpu, Some(held)));
        }
    }
    let any = usize::try_from(std::process::id())? % cpus.len().max(1);
    Ok((cpus.get(any).copied().unwrap_or_default(), None))
}

/// Docker's daemon with what it runs, for guests: unpacked on first use.
const DOCKER: Bundle<'_> =
    Bundle { name: "docker", packages: &["docker.io", "containerd", "runc"], newest: false };

/// The directory of Docker's programs.
pub(crate) fn docker_programs() -> anyhow::Result<PathBuf> {
    let base = target_dir()?.join("vm");
    fs::create_dir_all(&base)?;
    ensure_unpacked(&base, &DOCKER)
}

/// QEMU and the server of a guest's root: the host's, or unpacked.
struct Emulator {
    program: PathBuf,
    server: PathBuf,
    firmware: Vec<PathBuf>,
    libraries: Option<PathBuf>,
}

const QEMU: Bundle<'_> = Bundle {
    name: "qemu",
    packages: &["qemu-system-x86", "qemu-system-common", "qemu-system-data", "seabios"],
    newest: false,
};

impl Emulator {
    fn find(base: &Path) -> anyhow::Result<Self> {
        let own = Self::below(Path::new("/"));
        if own.is_complete() {
            return Ok(Self { firmware: Vec::new(), libraries: None, ..own });
        }
        let unpacked = Self::below(&ensure_unpacked(base, &QEMU)?);
        if !unpacked.is_complete() {
            bail!("Debian's QEMU packages lack {}: this needs Debian 12", unpacked.server.display());
        }
        Ok(unpacked)
    }

    fn below(place: &Path) -> Self {
        Self {
            program: place.join("usr/bin/qemu-system-x86_64"),
            server: place.join("usr/lib/qemu/virtiofsd"),
            firmware: ["seabios", "qemu"].map(|name| place.join("usr/share").join(name)).into(),
            libraries: Some(place.join("usr/lib/x86_64-linux-gnu")),
        }
    }

    fn is_complete(&self) -> bool {
        self.program.exists() && self.server.exists()
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn parse(line: &str) -> Result<Args, String> {
        let words = std::iter::once("vm").chain(line.split(' '));
        Line::try_parse_from(words).map(|line| line.args).map_err(|error| error.to_string())
    }

    #[test]
    fn defaults_and_every_flag() {
        let args = parse("uml -- uname -r").unwrap();
        assert_eq!((args.kind, args.kernel, args.timeout), (Kind::Uml, Version::V6_12, 600));
        assert_eq!((args.mem, args.cpus, args.out), (2048, 1, None));
        assert_eq!(args.command, ["uname", "-r"]);
        let args =
            parse("qemu --kernel 6.1 --timeout 5 --mem 512M --cpus 2 --out d -- sh -c true --mem").unwrap();
        assert_eq!((args.kind, args.kernel, args.timeout), (Kind::Qemu, Version::V6_1, 5));
        assert_eq!((args.mem, args.cpus, args.out), (512, 2, Some(PathBuf::from("d"))));
        assert_eq!(args.command, ["sh", "-c", "true", "--mem"]);
    }

    #[test]
    fn wrong_arguments_say_what_is_right() {
        for (line, wanted) in [
            ("uml", "<CMD>"),
            ("kvm -- true", "possible values: uml, qemu"),
            ("qemu --kernel 5.4 -- true", "possible values: 6.12, 6.1"),
            ("uml --timeout 0 -- true", "--timeout"),
            ("uml --mem 1 -- true", "at least 128M"),
            ("uml --mem lots -- true", "512M or 2G"),
            ("uml --cpus 0 -- true", "--cpus"),
        ] {
            let Err(error) = parse(line) else { panic!("accepted: {line}") };
            assert!(error.contains(wanted), "{line}: {error}");
        }
    }

    #[test]
    fn only_what_never_began_is_booted_again() {
        let control = std::env::temp_dir().join(format!("shoal-vm-boots-{}", std::process::id()));
        fs::create_dir(&control).unwrap();
        let died = Outcome::Died("Kernel panic".into());
        assert!(never_began(&died, &control));
        for other in [Outcome::Status(125), Outcome::TimedOut, Outcome::Interrupted(2)] {
            assert!(!never_began(&other, &control), "{other:?}");
        }
        fs::write(control.join("booted"), "").unwrap();
        assert!(!never_began(&died, &control), "the command may have run");
        fs::remove_dir_all(&control).unwrap();
    }

    #[test]
    fn memory_in_either_unit() {
        assert_eq!(parse_memory("2G"), Ok(2048));
        assert_eq!(parse_memory("300m"), Ok(300));
        assert_eq!(parse_memory("4096"), Ok(4096));
        assert!(parse_memory("9999999G").is_err());
    }
}
