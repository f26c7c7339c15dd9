//! A running guest: its output as it comes, its status, its end.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// How often the guest's output is looked at.
const TICK_MS: u8 = 50;
/// What the kernel still prints after it gave up.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// How long processes that were killed may take to be gone.
const END: Duration = Duration::from_secs(5);
/// How much of the console is kept.
const CONSOLE_BYTES: usize = 64 * 1024;

/// How a run ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The command's exit status.
    Status(u8),
    /// It took longer than it may.
    TimedOut,
    /// A signal asked for the end.
    Interrupted(u8),
    /// The guest ended without a status; the end of what its console said.
    Died(String),
}

/// The processes of a guest. They end with this, and with this process.
pub(super) struct Guest {
    children: Vec<Child>,
    console: PipeReader,
    writer: Option<PipeWriter>,
    said: Vec<u8>,
}

impl Guest {
    pub(super) fn new() -> anyhow::Result<Self> {
        let (console, writer) = io::pipe()?;
        Ok(Self { children: Vec::new(), console, writer: Some(writer), said: Vec::new() })
    }

    /// Starts one of its processes in `directory`. The guest itself is the last one.
    pub(super) fn start(
        &mut self,
        line: &[OsString],
        directory: &Path,
        libraries: Option<&Path>,
    ) -> anyhow::Result<()> {
        let (program, arguments) = line.split_first().context("an empty command line")?;
        let writer = self.writer.as_ref().context("the guest is started already")?;
        let mut command = Command::new(program);
        command.args(arguments).current_dir(directory).stdin(Stdio::null());
        // Ctrl-C is for this process; its end is theirs.
        command.process_group(0).stdout(writer.try_clone()?).stderr(writer.try_clone()?);
        if let Some(libraries) = libraries {
            command.env("LD_LIBRARY_PATH", libraries);
        }
        let child = command.spawn().with_context(|| format!("can't start {}", program.display()))?;
        self.children.push(child);
        Ok(())
    }

    /// Waits for a file that one of its processes makes.
    pub(super) fn wait_for_file(&mut self, file: &Path, limit: Duration) -> anyhow::Result<()> {
        let start = Instant::now();
        while !file.exists() {
            self.listen()?;
            if start.elapsed() > limit || self.ended()? {
                anyhow::bail!("the server of the guest's root didn't come up: {}", self.last_words());
            }
        }
        Ok(())
    }

    /// Relays the command's output until there is a status, the guest is gone or its time is over.
    pub(super) fn watch(&mut self, control: &Path, limit: Duration) -> anyhow::Result<Outcome> {
        // With nobody else holding it, the console's end is the guest's.
        self.writer = None;
        // From here on, an interrupt ends the guest first. Before, and whatever kills this process, it ends with it.
        let mut signals = SigSet::empty();
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
            signals.add(signal);
        }
        signals.thread_block()?;
        let signals = SignalFd::with_flags(&signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        let start = Instant::now();
        let mut relays = [
            (File::open(control.join("stdout"))?, Box::new(io::stdout()) as Box<dyn Write>),
            (File::open(control.join("stderr"))?, Box::new(io::stderr())),
        ];
        let mut panicked: Option<Instant> = None;
        loop {
            let open = self.listen()?;
            let gone = !open || self.ended()?;
            // The status is written after the output, so it is looked for first.
            let status = fs::read_to_string(control.join("status")).ok();
            for (from, to) in &mut relays {
                io::copy(from, to)?;
                to.flush()?;
            }
            if let Some(status) = status {
                return Ok(Outcome::Status(status.trim().parse().context("the guest's status")?));
            }
            if panicked.is_none() && self.has_panicked() {
                panicked = Some(Instant::now());
            }
            if gone || panicked.is_some_and(|at| at.elapsed() > LAST_WORDS) {
                return Ok(Outcome::Died(self.last_words()));
            }
            if start.elapsed() > limit {
                return Ok(Outcome::TimedOut);
            }
            if let Some(signal) = signals.read_signal()? {
                return Ok(Outcome::Interrupted(u8::try_from(signal.ssi_signo)?));
            }
        }
    }

    /// Reads the console for at most a tick; whether it is still open.
    fn listen(&mut self) -> anyhow::Result<bool> {
        let mut watched = [PollFd::new(self.console.as_fd(), PollFlags::POLLIN)];
        match poll(&mut watched, PollTimeout::from(TICK_MS)) {
            Ok(0) | Err(nix::errno::Errno::EINTR) => return Ok(true),
            Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
        let mut buffer = [0; 4096];
        let length = self.console.read(&mut buffer)?;
        self.said.extend_from_slice(&buffer[..length]);
        if self.said.len() > 2 * CONSOLE_BYTES {
            self.said.drain(..self.said.len() - CONSOLE_BYTES);
        }
        Ok(length > 0)
    }

    fn ended(&mut self) -> anyhow::Result<bool> {
        match self.children.last_mut() {
            Some(child) => Ok(child.try_wait()?.is_some()),
            None => Ok(true),
        }
    }

    fn has_panicked(&self) -> bool {
        let words = b"Kernel panic";
        self.said.windows(words.len()).any(|window| window == words)
    }

    fn last_words(&self) -> String {
        let text = String::from_utf8_lossy(&self.said).into_owned();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }

    /// Ends all of it and waits until it is gone.
    fn end(&mut self) -> anyhow::Result<()> {
        for child in &mut self.children {
            child.kill()?;
            child.wait()?;
        }
        self.writer = None;
        let start = Instant::now();
        // Processes below those that were killed hold the console until they are gone, too.
        while start.elapsed() < END && self.listen()? {}
        Ok(())
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // What can't be killed is gone already.
        drop(self.end());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A "guest" that is a shell with the control directory as its working directory.
    fn watch(script: &str, limit: Duration) -> (Outcome, Duration) {
        let control =
            std::env::temp_dir().join(format!("shoal-vm-watch-{}-{}", std::process::id(), script.len()));
        fs::create_dir(&control).unwrap();
        for name in ["stdout", "stderr"] {
            fs::write(control.join(name), "").unwrap();
        }
        let mut guest = Guest::new().unwrap();
        guest.start(&["sh".into(), "-c".into(), script.into()], &control, None).unwrap();
        let start = Instant::now();
        let outcome = guest.watch(&control, limit).unwrap();
        drop(guest);
        fs::remove_dir_all(&control).unwrap();
        (outcome, start.elapsed())
    }

    const MINUTE: Duration = Duration::from_mins(1);

    #[test]
    fn a_status_ends_the_run_even_if_the_guest_goes_on() {
        let (outcome, took) = watch("echo 7 > new; mv new status; exec sleep 50", MINUTE);
        assert_eq!(outcome, Outcome::Status(7));
        assert!(took < Duration::from_secs(20), "{took:?}");
    }

    #[test]
    fn a_guest_without_a_status_died_and_its_console_is_told() {
        assert_eq!(watch("echo starting; echo oops >&2", MINUTE).0, Outcome::Died("starting\noops".into()));
    }

    #[test]
    fn a_panic_is_an_end() {
        let (outcome, took) = watch("echo 'Kernel panic - not syncing'; exec sleep 51", MINUTE);
        assert_eq!(outcome, Outcome::Died("Kernel panic - not syncing".into()));
        assert!(took < Duration::from_secs(20), "{took:?}");
    }

    #[test]
    fn an_interrupt_ends_the_guest_first() {
        // To this thread only, as other tests run beside it; blocked, so that it waits to be read.
        let mut signals = SigSet::empty();
        signals.add(Signal::SIGTERM);
        signals.thread_block().unwrap();
        nix::sys::signal::raise(Signal::SIGTERM).unwrap();
        let (outcome, took) = watch("exec sleep 57", MINUTE);
        assert_eq!(outcome, Outcome::Interrupted(15));
        assert!(took < Duration::from_secs(20), "{took:?}");
    }

    #[test]
    fn time_is_limited() {
        assert_eq!(watch("exec sleep 53", Duration::from_millis(300)).0, Outcome::TimedOut);
    }
}
