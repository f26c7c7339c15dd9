//! A task's log: written by its monitor, read by the agent.
//!
//! One line of a file is one line of output: `SECONDS.NANOSECONDS o|e F|P TEXT`, `o` for stdout and `e` for
//! stderr, `F` for a full line and `P` for a part of one. When `log` has reached half of what a task's logs may
//! take it becomes `log.1`, so the newest half is always there.

mod reader;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::drivers::runtime::{LogEntry, LogSource};

pub(super) use reader::LogReader;

/// Longer lines are logged in parts.
const MAX_LINE: usize = 16 << 10;

/// Writes a task's log, from several threads.
#[derive(Debug)]
pub(super) struct LogWriter {
    path: PathBuf,
    half: u64,
    file: Mutex<LogFile>,
}

#[derive(Debug)]
struct LogFile {
    file: File,
    size: u64,
}

impl LogWriter {
    /// Opens the log in a task's directory; `bound` is what it may take on disk as a whole.
    pub(super) fn open(dir: &Path, bound: u64) -> io::Result<Self> {
        let path = dir.join("log");
        let file = open(&path)?;
        let size = file.metadata()?.len();
        Ok(Self { path, half: (bound / 2).max(64 << 10), file: Mutex::new(LogFile { file, size }) })
    }

    /// Logs everything that comes out of a pipe until its other end is closed. A disk that takes nothing loses
    /// output, but never stops the task: the pipe is read on.
    pub(super) fn copy(&self, source: LogSource, mut pipe: impl Read) {
        let mut lines = Lines::new(source);
        let mut buffer = vec![0; 64 << 10];
        loop {
            let length = match pipe.read(&mut buffer) {
                Ok(0) => break,
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => break,
            };
            let records = lines.push(&buffer[..length], SystemTime::now());
            let _lost = self.append(&records);
        }
        let _lost = self.append(&lines.finish(SystemTime::now()));
    }

    fn append(&self, records: &[u8]) -> io::Result<()> {
        if records.is_empty() {
            return Ok(());
        }
        let length = u64::try_from(records.len()).unwrap_or(u64::MAX);
        let mut log = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        if log.size > 0 && log.size + length > self.half {
            fs::rename(&self.path, self.path.with_extension("1"))?;
            *log = LogFile { file: open(&self.path)?, size: 0 };
        }
        // Counted even if it fails half way: rather too short than too long.
        log.size += length;
        log.file.write_all(records)
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

/// Cuts output into records.
struct Lines {
    source: LogSource,
    pending: Vec<u8>,
}

impl Lines {
    fn new(source: LogSource) -> Self {
        Self { source, pending: Vec::new() }
    }

    fn push(&mut self, bytes: &[u8], at: SystemTime) -> Vec<u8> {
        let mut records = Vec::with_capacity(bytes.len() + 64);
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (text, ended) = match piece.strip_suffix(b"\n") {
                Some(text) => (text, true),
                None => (piece, false),
            };
            for byte in text {
                if self.pending.len() == MAX_LINE {
                    self.record(&mut records, at, false);
                }
                self.pending.push(*byte);
            }
            if ended {
                self.record(&mut records, at, true);
            }
        }
        records
    }

    fn finish(&mut self, at: SystemTime) -> Vec<u8> {
        let mut records = Vec::new();
        if !self.pending.is_empty() {
            self.record(&mut records, at, false);
        }
        records
    }

    fn record(&mut self, records: &mut Vec<u8>, at: SystemTime, full: bool) {
        let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
        let source = if self.source == LogSource::Stdout { 'o' } else { 'e' };
        let full = if full { 'F' } else { 'P' };
        let head = format!("{}.{:09} {source}{full} ", since.as_secs(), since.subsec_nanos());
        records.extend_from_slice(head.as_bytes());
        records.append(&mut self.pending);
        records.push(b'\n');
    }
}

/// Reads a record; `None` for what is none, such as a line cut by a full disk.
fn parse(record: &[u8]) -> Option<LogEntry> {
    let mut parts = record.splitn(3, |byte| *byte == b' ');
    let (time, kind, line) = (std::str::from_utf8(parts.next()?).ok()?, parts.next()?, parts.next()?);
    let (seconds, nanos) = time.split_once('.')?;
    let at = UNIX_EPOCH
        .checked_add(Duration::from_secs(seconds.parse().ok()?))?
        .checked_add(Duration::from_nanos(nanos.parse().ok()?))?;
    let (source, partial) = match kind {
        b"oF" => (LogSource::Stdout, false),
        b"oP" => (LogSource::Stdout, true),
        b"eF" => (LogSource::Stderr, false),
        b"eP" => (LogSource::Stderr, true),
        _ => return None,
    };
    Some(LogEntry { at, source, line: line.to_vec(), partial })
}

#[cfg(test)]
mod tests;
