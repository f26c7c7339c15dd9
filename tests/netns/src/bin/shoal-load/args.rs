//! Flags: `--name value`, `--switch`. Every flag must be taken by the mode, so a misspelt one is an error.

use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

const SWITCHES: [&str; 3] = ["udp", "until-eof", "greeted"];

/// Flags not yet taken.
pub(crate) struct Args {
    flags: Vec<(String, String)>,
}

impl Args {
    pub(crate) fn parse(mut words: impl Iterator<Item = String>) -> anyhow::Result<Self> {
        let mut flags = Vec::new();
        while let Some(word) = words.next() {
            let Some(name) = word.strip_prefix("--") else { bail!("unexpected argument '{word}'") };
            let value = if SWITCHES.contains(&name) {
                String::new()
            } else {
                words.next().with_context(|| format!("--{name} needs a value"))?
            };
            flags.push((name.to_owned(), value));
        }
        Ok(Self { flags })
    }

    pub(crate) fn take<T: FromStr>(&mut self, name: &str) -> anyhow::Result<Option<T>> {
        let mut all = self.take_all(name)?;
        if all.len() > 1 {
            bail!("--{name} given twice");
        }
        Ok(all.pop())
    }

    pub(crate) fn take_or<T: FromStr>(&mut self, name: &str, default: T) -> anyhow::Result<T> {
        Ok(self.take(name)?.unwrap_or(default))
    }

    pub(crate) fn take_all<T: FromStr>(&mut self, name: &str) -> anyhow::Result<Vec<T>> {
        let mut taken = Vec::new();
        for (_, value) in self.flags.extract_if(.., |(flag, _)| flag == name) {
            match value.parse() {
                Ok(value) => taken.push(value),
                Err(_) => bail!("--{name} can't be '{value}'"),
            }
        }
        Ok(taken)
    }

    pub(crate) fn switch(&mut self, name: &str) -> bool {
        let before = self.flags.len();
        self.flags.retain(|(flag, _)| flag != name);
        self.flags.len() != before
    }

    pub(crate) fn target(&mut self) -> anyhow::Result<SocketAddr> {
        self.take("target")?.context("--target ADDR:PORT is needed")
    }

    /// Refuses what no one took.
    pub(crate) fn finish(self) -> anyhow::Result<()> {
        match self.flags.first() {
            Some((flag, _)) => bail!("unknown flag --{flag}"),
            None => Ok(()),
        }
    }

    /// When to stop: `--secs`, or with `--until-eof` when stdin closes.
    pub(crate) fn until(&mut self, default_secs: f64) -> anyhow::Result<Until> {
        let secs = self.take::<f64>("secs")?;
        if self.switch("until-eof") {
            return Ok(Until { deadline: None, closed: watch_stdin() });
        }
        let run_time = Duration::try_from_secs_f64(secs.unwrap_or(default_secs))?;
        Ok(Until { deadline: Some(Instant::now() + run_time), closed: Arc::default() })
    }
}

/// A moment that comes by the clock or by the caller closing stdin.
#[derive(Clone)]
pub(crate) struct Until {
    deadline: Option<Instant>,
    closed: Arc<AtomicBool>,
}

impl Until {
    pub(crate) fn reached(&self) -> bool {
        self.reached_at(Instant::now())
    }

    /// Whole seconds until the deadline; zero when there is none.
    pub(crate) fn seconds_left(&self) -> u32 {
        let left =
            self.deadline.map_or(0, |deadline| deadline.saturating_duration_since(Instant::now()).as_secs());
        u32::try_from(left).unwrap_or(u32::MAX)
    }

    /// For loops that have read the clock anyway.
    pub(crate) fn reached_at(&self, now: Instant) -> bool {
        self.closed.load(Ordering::Relaxed) || self.deadline.is_some_and(|deadline| now >= deadline)
    }
}

fn watch_stdin() -> Arc<AtomicBool> {
    let closed = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&closed);
    std::thread::spawn(move || {
        // Whether stdin ended or broke, the caller is done with us.
        drop(std::io::copy(&mut std::io::stdin(), &mut std::io::sink()));
        flag.store(true, Ordering::Relaxed);
    });
    closed
}
