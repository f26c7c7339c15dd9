//! Reading a log while it is written and turned over.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::drivers::runtime::LogEntry;

use super::parse;

/// Reads a log from its oldest entry on; at the end, asks again for what came since.
#[derive(Debug)]
pub(in crate::drivers::runtime::process) struct LogReader {
    path: PathBuf,
    current: Option<OpenLog>,
    /// Not opened yet.
    old: Option<PathBuf>,
}

#[derive(Debug)]
struct OpenLog {
    file: BufReader<File>,
    inode: u64,
    /// The beginning of a record whose end is not written yet.
    torn: Vec<u8>,
}

impl LogReader {
    /// Reads the log in a task's directory. There need not be one yet.
    pub(in crate::drivers::runtime::process) fn new(dir: &Path) -> Self {
        let path = dir.join("log");
        Self { old: Some(path.with_extension("1")), path, current: None }
    }

    /// The next entries, at most so many; none at the end.
    pub(in crate::drivers::runtime::process) fn read(&mut self, most: usize) -> io::Result<Vec<LogEntry>> {
        let mut entries = Vec::new();
        while entries.len() < most {
            if self.current.is_none() {
                self.current = match self.old.take() {
                    Some(old) => OpenLog::open(&old)?,
                    None => None,
                };
                if self.current.is_none() {
                    self.current = OpenLog::open(&self.path)?;
                }
            }
            let Some(current) = &mut self.current else { break };
            match current.next_record()? {
                Some(record) => entries.extend(parse(&record)),
                // The writer goes on in another file only after its last record here.
                None if self.was_turned_over()? => {
                    if let Some(record) =
                        self.current.as_mut().map(OpenLog::next_record).transpose()?.flatten()
                    {
                        entries.extend(parse(&record));
                    } else {
                        self.current = OpenLog::open(&self.path)?;
                    }
                }
                None => break,
            }
        }
        Ok(entries)
    }

    /// Whether the file being read is no longer the one that is written.
    fn was_turned_over(&self) -> io::Result<bool> {
        match (&self.current, std::fs::metadata(&self.path)) {
            (Some(current), Ok(metadata)) => Ok(metadata.ino() != current.inode),
            // Between the renaming of the old and the making of the new file.
            (_, Err(error)) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            (_, Err(error)) => Err(error),
            (None, Ok(_)) => Ok(false),
        }
    }
}

impl OpenLog {
    fn open(path: &Path) -> io::Result<Option<Self>> {
        match File::open(path) {
            Ok(file) => {
                let inode = file.metadata()?.ino();
                Ok(Some(Self { file: BufReader::new(file), inode, torn: Vec::new() }))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn next_record(&mut self) -> io::Result<Option<Vec<u8>>> {
        self.file.read_until(b'\n', &mut self.torn)?;
        if self.torn.pop_if(|last| *last == b'\n').is_some() {
            Ok(Some(std::mem::take(&mut self.torn)))
        } else {
            Ok(None)
        }
    }
}
