//! Running a program, perhaps in another namespace and on one CPU, and saying what it said when it fails.

use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use nix::sched::{CloneFlags, CpuSet, sched_setaffinity, setns};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;

use crate::wait::wait_for;

/// A program to run: `std::process::Command` plus the namespace and CPU it starts in.
pub struct Run {
    command: Command,
    line: String,
    netns: Option<PathBuf>,
    cpu: Option<usize>,
}

impl Run {
    /// A program in this process's own namespace.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        let program = program.as_ref();
        let mut command = Command::new(program);
        command.stdin(Stdio::null());
        Self { command, line: program.to_string_lossy().into_owned(), netns: None, cpu: None }
    }

    /// Words split at white space: for the short command lines of a fixture.
    pub fn line(line: &str) -> Self {
        let mut words = line.split_whitespace();
        Self::new(words.next().unwrap_or_default()).args(words)
    }

    /// A program in a control group.
    pub fn in_group(group: &Path, program: impl AsRef<OsStr>) -> Self {
        Self::in_groups(&[group], program)
    }

    /// A program in control groups, one of each hierarchy.
    pub fn in_groups<G: AsRef<Path>>(groups: &[G], program: impl AsRef<OsStr>) -> Self {
        let join = |group: &G| format!("echo 0 > {}/cgroup.procs && ", group.as_ref().display());
        let script = groups.iter().map(join).collect::<String>() + "exec \"$0\" \"$@\"";
        Self::new("sh").args(["-c", &script]).args([program])
    }

    /// Adds arguments.
    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        for arg in args {
            self.line.push(' ');
            self.line.push_str(&arg.as_ref().to_string_lossy());
            self.command.arg(arg);
        }
        self
    }

    /// Adds an environment variable.
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Starts in the network namespace at this path.
    pub fn netns(mut self, path: impl Into<PathBuf>) -> Self {
        self.netns = Some(path.into());
        self
    }

    /// Starts on one CPU only.
    pub fn cpu(mut self, cpu: Option<usize>) -> Self {
        self.cpu = cpu;
        self
    }

    /// Gives the program an open stdin, closed by [`Process::close_stdin`].
    pub fn stdin_piped(mut self) -> Self {
        self.command.stdin(Stdio::piped());
        self
    }

    fn start(&mut self) -> anyhow::Result<Child> {
        // A child inherits namespace and affinity from the thread that starts it. The thread is thrown away after, so
        // that no other work ever runs in a namespace by accident.
        let Self { command, line, netns, cpu } = self;
        std::thread::scope(|scope| {
            let started = scope.spawn(|| -> anyhow::Result<Child> {
                // A caller that waits for signals has them blocked; a program that inherits that can't be ended.
                SigSet::empty().thread_set_mask().context("unblocking signals")?;
                if let Some(path) = netns {
                    let file =
                        File::open(&*path).with_context(|| format!("no namespace at {}", path.display()))?;
                    setns(file, CloneFlags::CLONE_NEWNET).context("setns")?;
                }
                if let Some(cpu) = cpu {
                    let mut set = CpuSet::new();
                    set.set(*cpu)?;
                    sched_setaffinity(Pid::from_raw(0), &set)
                        .with_context(|| format!("can't run on CPU {cpu}"))?;
                }
                // A caller that waits for signals blocks them; its children shall not.
                SigSet::all().thread_unblock()?;
                command.spawn().with_context(|| format!("can't start: {line}"))
            });
            started.join().map_err(|_| anyhow::anyhow!("the starting thread panicked"))?
        })
    }

    /// Runs to the end and hands back whatever happened.
    pub fn output(mut self) -> anyhow::Result<Output> {
        self.command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = self.start()?;
        child.wait_with_output().with_context(|| format!("waiting for: {}", self.line))
    }

    /// Runs to the end; its stdout, or an error that quotes what it said.
    pub fn stdout(self) -> anyhow::Result<String> {
        let line = self.line.clone();
        let output = self.output()?;
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            let stderr = String::from_utf8_lossy(&output.stderr);
            bail!("{line}: {}\n{}{}", output.status, stderr.trim_end(), stdout.trim_end());
        }
        Ok(stdout)
    }

    /// Starts and lets run, output going to `log`; killed when the handle is dropped.
    pub fn spawn(mut self, log: &Path) -> anyhow::Result<Process> {
        let file = File::options()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("can't write {}", log.display()))?;
        self.command.stdout(file.try_clone()?).stderr(file);
        // Ctrl-C at the terminal is for the program that made the fixture: it ends its daemons in order.
        std::os::unix::process::CommandExt::process_group(&mut self.command, 0);
        Ok(Process { child: self.start()?, line: self.line, log: log.to_owned() })
    }

    /// Starts and lets run with stdout kept for [`Process::finish`]; killed when the handle is dropped.
    pub fn spawn_captured(mut self) -> anyhow::Result<Process> {
        self.command.stdout(Stdio::piped()).stderr(Stdio::inherit());
        Ok(Process { child: self.start()?, line: self.line, log: PathBuf::new() })
    }
}

/// SIGKILL to one process. That it ended in between is no error.
pub fn kill_hard(pid: i32) {
    kill(Pid::from_raw(pid), Signal::SIGKILL).ok();
}

/// A running program that ends with its handle.
pub struct Process {
    child: Child,
    line: String,
    log: PathBuf,
}

impl Process {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it was started as.
    pub fn command_line(&self) -> &str {
        &self.line
    }

    /// What it wrote so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Its exit status, if it ended.
    pub fn ended(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.child.kill().with_context(|| format!("killing {}", self.line))?;
        self.child.wait()?;
        Ok(())
    }

    /// SIGTERM, and waits for it to end by itself.
    pub fn terminate(&mut self, deadline: Duration) -> anyhow::Result<ExitStatus> {
        let pid = Pid::from_raw(i32::try_from(self.pid())?);
        kill(pid, Signal::SIGTERM).with_context(|| format!("SIGTERM to {}", self.line))?;
        wait_for(&format!("'{}' to end after SIGTERM", self.line), deadline, || {
            self.child
                .try_wait()
                .map_err(|error| error.to_string())?
                .ok_or_else(|| "still running".to_owned())
        })
    }

    /// Closes its stdin and collects what it printed.
    pub fn finish(mut self) -> anyhow::Result<Output> {
        drop(self.child.stdin.take());
        let mut stdout = Vec::new();
        if let Some(mut pipe) = self.child.stdout.take() {
            std::io::Read::read_to_end(&mut pipe, &mut stdout)?;
        }
        let status = self.child.wait()?;
        Ok(Output { status, stdout, stderr: Vec::new() })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already; then there is nothing to kill.
        drop(self.kill());
    }
}
