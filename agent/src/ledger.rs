//! The last-known-good assignment, on disk before it is programmed: a node that starts without any manager programs
//! what it was told last. What the disk does not take is programmed all the same, and written when it does: a full disk
//! on one node must not keep it, and all that wait for it, from what is wanted.
//!
//! One line of header (format, SHA-256 of the body), then the body. A file whose digest does not fit is refused as a
//! whole and kept aside for inspection. Small changes are written to a second file, see [`log`].

mod log;

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, BufWriter, IntoInnerError, Seek as _, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ring::digest::{Context, SHA256, digest};
use shoal_types::Generation;
use shoal_types::assignment::{Assignment, Delta, FenceError, Object};
use tokio::time::Instant;

use crate::durable::{self, FileError, Unkept};

use log::Log;

const FORMAT: &str = "shoal-ledger-1";
/// What could not be written is tried again after so long.
const AGAIN: Duration = Duration::from_secs(10);

/// What can go wrong with the ledger.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The file.
    #[error(transparent)]
    File(#[from] FileError),
    /// The file is torn, or of another release.
    #[error("{} is not a whole ledger ({reason}); it was moved to {}", path.display(), aside.display())]
    Damaged {
        /// Which.
        path: PathBuf,
        /// Where it is now.
        aside: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The assignment can't be written down.
    #[error("the assignment can't be encoded")]
    Encode(#[source] serde_json::Error),
    /// What came does not follow what is there.
    #[error(transparent)]
    Fence(#[from] FenceError),
}

/// The ledger: what it holds is on disk, as far as that takes it.
#[derive(Debug)]
pub struct Ledger {
    path: PathBuf,
    assignment: Assignment,
    /// The file as it was written last; none: the next change writes all of it.
    base: Option<Base>,
    log: Log,
    unkept: Unkept,
    /// When all of it was to be written last.
    stored: Option<Instant>,
}

/// A file that holds all of an assignment.
#[derive(Debug)]
struct Base {
    checksum: String,
    bytes: u64,
}

impl Ledger {
    /// An empty ledger at a path, whatever is there.
    pub fn empty(path: &Path) -> Self {
        let log = Log::new(path);
        let (assignment, unkept) = (Assignment::default(), Unkept::default());
        Self { path: path.to_owned(), assignment, base: None, log, unkept, stored: None }
    }

    /// The same, which tells there what can't be written.
    pub fn telling(self, unkept: Unkept) -> Self {
        Self { unkept, ..self }
    }

    /// Reads the ledger. A damaged one is moved aside, and an error says so; [`Ledger::empty`] goes on without it.
    pub fn open(path: &Path) -> Result<Self, LedgerError> {
        let Some(content) = durable::read(path)? else { return Ok(Self::empty(path)) };
        let (bytes, decoded) = (length(&content), decode(&content));
        // It is as large as what was read from it.
        drop(content);
        match decoded {
            Ok((generation, objects, checksum)) => {
                let mut assignment = Assignment::new(generation, objects);
                let mut log = Log::new(path);
                log.read(&checksum, &mut assignment)?;
                let base = Some(Base { checksum, bytes });
                Ok(Self { assignment, base, log, ..Self::empty(path) })
            }
            Err(reason) => {
                let aside = path.with_extension("damaged");
                std::fs::rename(path, &aside).map_err(|source| FileError {
                    action: "move aside",
                    path: path.to_owned(),
                    source,
                })?;
                Err(LedgerError::Damaged { path: path.to_owned(), aside, reason })
            }
        }
    }

    /// What the node was told last. A copy of it costs little.
    pub fn assignment(&self) -> &Assignment {
        &self.assignment
    }

    /// Its generation.
    pub fn generation(&self) -> Generation {
        self.assignment.generation
    }

    /// Takes a snapshot: fenced, then on disk if that can be, and held. An equal one writes nothing.
    pub fn replace(&mut self, generation: Generation, objects: Vec<Object>) -> Result<(), LedgerError> {
        let mut next = self.assignment.clone();
        next.replace(Assignment::new(generation, objects))?;
        if next == self.assignment {
            return Ok(());
        }
        self.assignment = next;
        self.store();
        Ok(())
    }

    /// Takes a delta: fenced, then on disk if that can be, and held. It is written behind the others, until together they are as
    /// large as the whole.
    pub fn apply(&mut self, delta: Delta) -> Result<(), LedgerError> {
        let record = serde_json::to_vec(&delta).map_err(LedgerError::Encode)?;
        let mut next = self.assignment.clone();
        next.apply(delta)?;
        self.assignment = next;
        match &self.base {
            Some(base) if self.log.has_room(&record, base.bytes) => {
                let appended = self.log.append(&base.checksum, &record);
                if appended.is_err() {
                    // What is behind a torn record would not be read again.
                    self.base = None;
                }
                self.unkept.note(&self.path, appended);
                Ok(())
            }
            _ => {
                self.store();
                Ok(())
            }
        }
    }

    /// Writes what could not be written, if that was some time ago.
    pub fn store_again(&mut self) {
        let is_due = self.stored.is_none_or(|stored| stored.elapsed() >= AGAIN);
        if is_due && self.unkept.lacks(&self.path) {
            self.store();
        }
    }

    /// Writes all of it.
    fn store(&mut self) {
        self.stored = Some(Instant::now());
        self.base = None;
        let written = durable::write_with(&self.path, 0o600, |file| tell(&self.assignment, file));
        let written = written.map(|base| {
            self.base = Some(base);
            if let Err(error) = self.log.remove() {
                // It belongs to another file and is not read.
                tracing::debug!(error = &error as &dyn std::error::Error, "former changes are left");
            }
        });
        self.unkept.note(&self.path, written);
    }
}

/// Writes through to a file, and digests what it writes.
struct Digesting<'a> {
    file: &'a mut File,
    digest: Context,
    bytes: u64,
}

impl Write for Digesting<'_> {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        let written = self.file.write(piece)?;
        let piece = piece.get(..written).unwrap_or_default();
        self.digest.update(piece);
        self.bytes += length(piece);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Writes a file's content, of which no copy is made: it is tens of megabytes on a node that is told of 10,000 services.
fn tell(assignment: &Assignment, file: &mut File) -> io::Result<Base> {
    // As long as the one that takes its place, which is known last.
    let place = header(&checksum(&[]));
    file.write_all(place.as_bytes())?;
    let (checksum, bytes) = tell_body(assignment, file)?;
    file.rewind()?;
    file.write_all(header(&checksum).as_bytes())?;
    Ok(Base { checksum, bytes: bytes + length(place.as_bytes()) })
}

/// Its checksum, and how many bytes it has.
fn tell_body(assignment: &Assignment, file: &mut File) -> io::Result<(String, u64)> {
    let objects: Vec<&Object> = assignment.objects.values().collect();
    let mut body = BufWriter::new(Digesting { file, digest: Context::new(&SHA256), bytes: 0 });
    serde_json::to_writer(&mut body, &(assignment.generation, objects))?;
    let body = body.into_inner().map_err(IntoInnerError::into_error)?;
    Ok((hex(body.digest.finish().as_ref()), body.bytes))
}

fn header(checksum: &str) -> String {
    format!("{FORMAT} {checksum}\n")
}

/// What a file holds, and its checksum.
fn decode(content: &[u8]) -> Result<(Generation, Vec<Object>, String), String> {
    let end = content.iter().position(|byte| *byte == b'\n').ok_or("it has no header")?;
    let (header, body) = content.split_at(end);
    let body = body.get(1..).unwrap_or_default();
    let header = std::str::from_utf8(header).map_err(|_| "its header is not text")?;
    let sum = header.strip_prefix(FORMAT).ok_or("its format is another one")?.trim();
    if sum != checksum(body) {
        return Err("its checksum does not fit".into());
    }
    let (generation, objects) = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    Ok((generation, objects, sum.to_owned()))
}

fn checksum(body: &[u8]) -> String {
    hex(digest(&SHA256, body).as_ref())
}

fn hex(digest: &[u8]) -> String {
    let mut text = String::new();
    for byte in digest {
        // Writing to a String cannot fail.
        let _written = write!(text, "{byte:02x}");
    }
    text
}

fn length(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use shoal_types::assignment::{Member, ObjectKey};
    use shoal_types::object::Attachment;
    use shoal_types::{ClusterId, DualAddr, EndpointId, NetworkId, NodeId, ServiceId};

    fn member(n: u8) -> Object {
        Object::Member(Member {
            node: NodeId::from_entropy(n.into()),
            name: format!("n{n}").parse().expect("a label"),
            data_addr: [192, 0, 2, n].into(),
            router: Attachment {
                endpoint: EndpointId(n.into()),
                network: NetworkId::from_entropy(1),
                addr: DualAddr { v4: [10, 0, 0, n].into(), v6: [0xfd, 0, 0, 0, 0, 0, 0, n.into()].into() },
            },
        })
    }

    fn ledger() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("assignment");
        (dir, path)
    }

    #[test]
    fn what_was_stored_is_read_again() {
        let (_dir, path) = ledger();
        let mut ledger = Ledger::open(&path).expect("none yet");
        ledger.replace(Generation(3), vec![member(1), member(2)]).expect("newer");
        let delta = Delta {
            from: Generation(3),
            to: Generation(5),
            upserts: vec![member(3)],
            removes: vec![ObjectKey::Member(NodeId::from_entropy(1))],
        };
        ledger.apply(delta).expect("follows");
        let read = Ledger::open(&path).expect("whole");
        assert_eq!(read.generation(), Generation(5));
        assert_eq!(read.assignment(), ledger.assignment());
    }

    #[test]
    fn a_ledger_of_the_first_version_is_read() {
        let at = |n: u8| json!({ "endpoint": n, "network": NetworkId::from_entropy(1), "addr": { "v4": "10.0.0.2", "v6": "fd00::2" } });
        let body = json!([7, [
            { "Cluster": {
                "id": ClusterId::from_entropy(1), "name": "otter", "data_port": 7378, "node": NodeId::from_entropy(1),
                "node_name": "n1", "router": at(1), "lb_engine": "Auto", "direct": "Off",
            } },
            { "Service": {
                "id": ServiceId::from_entropy(2), "index": 1, "name": "web", "lb": "Auto", "ports": [],
                "vips": [{ "at": at(2), "aliases": ["db"] }],
            } },
        ]]);
        let body = body.to_string().into_bytes();
        let mut content = format!("{FORMAT} {}\n", checksum(&body)).into_bytes();
        content.extend(body);
        let (generation, objects, _) = decode(&content).expect("read");
        let assignment = Assignment::new(generation, objects);
        assert!(assignment.cluster().is_some_and(|c| c.reserved.networks.is_empty()));
        assert!(assignment.services().all(|s| s.dnsrr.is_empty() && s.vips.len() == 1));
        assert_eq!(assignment.services().count(), 1);
    }

    #[test]
    fn a_torn_file_is_refused_and_kept_aside() {
        let (_dir, path) = ledger();
        Ledger::empty(&path).replace(Generation(3), vec![member(1)]).expect("stored");
        let mut content = std::fs::read(&path).expect("there");
        content.truncate(content.len() - 5);
        std::fs::write(&path, &content).expect("written");
        assert!(matches!(Ledger::open(&path), Err(LedgerError::Damaged { .. })));
        assert_eq!(std::fs::read(path.with_extension("damaged")).expect("kept"), content);
        assert_eq!(Ledger::open(&path).expect("none now").generation(), Generation(0));
    }

    fn delta(from: u64, n: u8) -> Delta {
        let (from, to) = (Generation(from), Generation(from + 1));
        Delta { from, to, upserts: vec![member(n)], removes: vec![] }
    }

    #[test]
    fn a_change_is_written_behind_the_others_until_they_are_many() {
        let (_dir, path) = ledger();
        let mut ledger = Ledger::open(&path).expect("none yet");
        ledger.replace(Generation(1), (0..200).map(member).collect()).expect("newer");
        let (whole, mut rewrites) = (std::fs::read(&path).expect("there"), 0);
        ledger.apply(delta(1, 7)).expect("follows");
        assert_eq!(std::fs::read(&path).expect("there"), whole, "not written again");
        let mut before = whole;
        for from in 2..1_000 {
            ledger.apply(delta(from, u8::try_from(from % 250).expect("small"))).expect("follows");
            let now = std::fs::read(&path).expect("there");
            rewrites += u32::from(now != before);
            before = now;
            if from % 97 == 0 {
                let again = Ledger::open(&path).expect("whole");
                assert_eq!(again.assignment(), ledger.assignment());
                // A restarted daemon goes on where the last one was.
                ledger = again;
            }
        }
        assert!((1..30).contains(&rewrites), "written as a whole {rewrites} times");
    }

    #[test]
    fn a_torn_record_ends_what_is_read_and_is_overwritten() {
        let (_dir, path) = ledger();
        let mut ledger = Ledger::open(&path).expect("none yet");
        ledger.replace(Generation(1), vec![member(1)]).expect("newer");
        ledger.apply(delta(1, 2)).expect("follows");
        let log = path.with_extension("log");
        let whole = std::fs::read(&log).expect("there");
        ledger.apply(delta(2, 3)).expect("follows");
        let both = std::fs::read(&log).expect("there");
        for cut in whole.len() + 1..both.len() {
            std::fs::write(&log, &both[..cut]).expect("written");
            assert_eq!(Ledger::open(&path).expect("whole").generation(), Generation(2), "cut at {cut}");
        }
        let mut again = Ledger::open(&path).expect("whole");
        again.apply(delta(2, 4)).expect("follows");
        let read = Ledger::open(&path).expect("whole");
        assert_eq!((read.generation(), read.assignment()), (Generation(3), again.assignment()));
    }

    #[test]
    fn what_the_disk_does_not_take_is_held_told_and_written_later() {
        let (_dir, path) = ledger();
        let unkept = Unkept::default();
        let mut ledger = Ledger::open(&path).expect("none yet").telling(unkept.clone());
        ledger.replace(Generation(1), vec![member(1)]).expect("newer");
        // As on a full disk, neither of the two files can be written.
        let obstacles = [path.with_extension("new"), path.with_extension("log")];
        for obstacle in &obstacles {
            std::fs::create_dir(obstacle).expect("made");
        }
        for from in 1..4 {
            ledger.apply(delta(from, 2)).expect("held");
            assert_eq!(ledger.generation(), Generation(from + 1));
            assert!(unkept.warnings().len() == 1 && unkept.warnings()[0].contains("assignment"));
        }
        ledger.replace(Generation(7), vec![member(3)]).expect("held");
        assert_eq!((ledger.generation(), ledger.assignment().members().count()), (Generation(7), 1));
        for obstacle in &obstacles {
            std::fs::remove_dir(obstacle).expect("removed");
        }
        assert_eq!(Ledger::open(&path).expect("whole").generation(), Generation(1));
        ledger.apply(delta(7, 4)).expect("follows");
        assert_eq!(Ledger::open(&path).expect("whole").assignment(), ledger.assignment());
        assert!(unkept.warnings().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_not_written_is_tried_again_without_a_change() {
        let (_dir, path) = ledger();
        let mut ledger = Ledger::empty(&path);
        let obstacle = path.with_extension("new");
        std::fs::create_dir(&obstacle).expect("made");
        ledger.replace(Generation(3), vec![member(1)]).expect("held");
        std::fs::remove_dir(&obstacle).expect("removed");
        ledger.store_again();
        assert!(!path.exists(), "too soon");
        tokio::time::advance(AGAIN).await;
        ledger.store_again();
        assert_eq!(Ledger::open(&path).expect("whole").generation(), Generation(3));
    }

    #[test]
    fn changes_of_another_file_are_not_read() {
        let (_dir, path) = ledger();
        let mut ledger = Ledger::open(&path).expect("none yet");
        ledger.replace(Generation(1), vec![member(1)]).expect("newer");
        ledger.apply(delta(1, 2)).expect("follows");
        let log = path.with_extension("log");
        let left = std::fs::read(&log).expect("there");
        // As if the daemon had ended between the two.
        ledger.replace(Generation(2), vec![member(1), member(2)]).expect("equal");
        ledger.replace(Generation(9), vec![member(5)]).expect("newer");
        assert!(!log.exists());
        std::fs::write(&log, left).expect("written");
        let mut read = Ledger::open(&path).expect("whole");
        assert_eq!((read.generation(), read.assignment().members().count()), (Generation(9), 1));
        read.apply(delta(9, 6)).expect("follows");
        assert_eq!(Ledger::open(&path).expect("whole").generation(), Generation(10));
    }

    #[test]
    fn a_write_that_never_finished_leaves_the_previous_one() {
        let (_dir, path) = ledger();
        Ledger::empty(&path).replace(Generation(3), vec![member(1)]).expect("stored");
        std::fs::write(path.with_extension("new"), b"half of a").expect("written");
        assert_eq!(Ledger::open(&path).expect("whole").generation(), Generation(3));
    }

    #[test]
    fn what_does_not_follow_is_refused_and_nothing_changes() {
        let (_dir, path) = ledger();
        let mut ledger = Ledger::empty(&path);
        ledger.replace(Generation(7), vec![member(1)]).expect("newer");
        let before = std::fs::read(&path).expect("there");
        let older = ledger.replace(Generation(6), vec![member(2)]);
        assert!(matches!(older, Err(LedgerError::Fence(FenceError::Old { .. }))));
        let other = ledger.replace(Generation(7), vec![member(2)]);
        assert!(matches!(other, Err(LedgerError::Fence(FenceError::Conflict(_)))));
        let gap = Delta { from: Generation(8), to: Generation(9), upserts: vec![], removes: vec![] };
        assert!(matches!(ledger.apply(gap), Err(LedgerError::Fence(FenceError::Gap { .. }))));
        ledger.replace(Generation(7), vec![member(1)]).expect("the same again is fine");
        assert_eq!(std::fs::read(&path).expect("there"), before);
    }
}
