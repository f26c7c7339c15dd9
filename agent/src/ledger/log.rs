//! Changes since the ledger was written as a whole: a change costs what it holds.
//!
//! A line of header (format, checksum of the file that it continues), then a line for each change: its SHA-256 and the
//! change. A record is on disk before its change counts, so a torn one at the end was never acted on, unless the disk was
//! full.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use shoal_types::assignment::{Assignment, Delta};

use super::{checksum, length};
use crate::durable::{self, FileError};

const FORMAT: &str = "shoal-ledger-log-1";
/// It may grow as large as the whole, and so large in any case.
const SMALL: u64 = 64 << 10;

/// The file of changes.
#[derive(Debug)]
pub(super) struct Log {
    path: PathBuf,
    /// Open once something was written.
    file: Option<File>,
    /// Bytes of it that count.
    bytes: u64,
}

impl Log {
    /// Beside the ledger; nothing is read.
    pub(super) fn new(ledger: &Path) -> Self {
        Self { path: ledger.with_extension("log"), file: None, bytes: 0 }
    }

    /// Applies what was written behind the file with this checksum.
    pub(super) fn read(&mut self, base: &str, assignment: &mut Assignment) -> Result<(), FileError> {
        let Some(content) = durable::read(&self.path)? else { return Ok(()) };
        let header = header(base);
        let Some(mut rest) = content.strip_prefix(header.as_bytes()) else { return Ok(()) };
        self.bytes = length(header.as_bytes());
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let (line, after) = rest.split_at(end + 1);
            let Some(delta) = record(line) else { break };
            // One that does not follow was written by nobody of ours.
            if assignment.apply(delta).is_err() {
                break;
            }
            self.bytes += length(line);
            rest = after;
        }
        Ok(())
    }

    /// Whether a record may be added to it, when the whole has so many bytes.
    pub(super) fn has_room(&self, record: &[u8], whole: u64) -> bool {
        self.bytes.saturating_add(length(record)) <= whole.max(SMALL)
    }

    /// Adds a record; it is on disk when this returns.
    pub(super) fn append(&mut self, base: &str, record: &[u8]) -> Result<(), FileError> {
        let mut line = Vec::new();
        if self.bytes == 0 {
            line.extend(header(base).as_bytes());
        }
        line.extend(checksum(record).as_bytes());
        line.push(b' ');
        line.extend(record);
        line.push(b'\n');
        self.write(&line).map_err(|source| FileError { action: "write", path: self.path.clone(), source })?;
        self.bytes += length(&line);
        Ok(())
    }

    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            none => {
                let mut options = OpenOptions::new();
                options.write(true).create(true).truncate(false).mode(0o600);
                let file = none.insert(options.open(&self.path)?);
                // What is behind the last whole record goes.
                file.set_len(self.bytes)?;
                file.seek(SeekFrom::Start(self.bytes))?;
                if let Some(parent) = self.path.parent() {
                    File::open(parent)?.sync_all()?;
                }
                file
            }
        };
        file.write_all(line)?;
        file.sync_data()
    }

    /// Begins anew.
    pub(super) fn remove(&mut self) -> Result<(), FileError> {
        (self.file, self.bytes) = (None, 0);
        durable::remove(&self.path)
    }
}

fn header(base: &str) -> String {
    format!("{FORMAT} {base}\n")
}

/// A line's change, if the line is whole.
fn record(line: &[u8]) -> Option<Delta> {
    let line = line.strip_suffix(b"\n")?;
    let space = line.iter().position(|byte| *byte == b' ')?;
    let (sum, body) = line.split_at(space);
    let body = body.get(1..)?;
    if sum != checksum(body).as_bytes() {
        return None;
    }
    serde_json::from_slice(body).ok()
}
