use super::*;

fn write(dir: &Path, bound: u64, output: &[u8]) {
    LogWriter::open(dir, bound).expect("opens").copy(LogSource::Stdout, output);
}

fn lines(entries: &[LogEntry]) -> Vec<(String, bool)> {
    entries.iter().map(|entry| (String::from_utf8_lossy(&entry.line).into_owned(), entry.partial)).collect()
}

#[test]
fn lines_come_back_as_written() {
    let dir = tempfile::tempdir().expect("directory");
    write(dir.path(), 1 << 20, b"one\n\n  three \xff\nfour");
    let entries = LogReader::new(dir.path()).read(100).expect("reads");
    assert_eq!(
        lines(&entries),
        [
            ("one".to_owned(), false),
            (String::new(), false),
            ("  three \u{fffd}".to_owned(), false),
            ("four".to_owned(), true)
        ]
    );
    assert_eq!(entries[2].line, b"  three \xff");
    assert!(entries[0].at.elapsed().expect("in the past") < Duration::from_mins(1));
}

#[test]
fn long_lines_come_in_parts() {
    let dir = tempfile::tempdir().expect("directory");
    let mut output = vec![b'x'; MAX_LINE + 1];
    output.push(b'\n');
    write(dir.path(), 1 << 20, &output);
    let entries = LogReader::new(dir.path()).read(100).expect("reads");
    let shape: Vec<_> = entries.iter().map(|entry| (entry.line.len(), entry.partial)).collect();
    assert_eq!(shape, [(MAX_LINE, true), (1, false)]);
}

#[test]
fn a_log_stays_within_its_bound_and_keeps_the_newest() {
    let dir = tempfile::tempdir().expect("directory");
    let bound = 256 << 10;
    let writer = LogWriter::open(dir.path(), bound).expect("opens");
    for number in 0..20_000 {
        writer.copy(LogSource::Stderr, format!("line {number} of many that fill the log\n").as_bytes());
    }
    let size: u64 = fs::read_dir(dir.path())
        .expect("lists")
        .map(|entry| entry.expect("entry").metadata().expect("stat").len())
        .sum();
    assert!(size <= bound, "{size} > {bound}");
    let entries = LogReader::new(dir.path()).read(usize::MAX).expect("reads");
    let first: usize = String::from_utf8_lossy(&entries[0].line)
        .split(' ')
        .nth(1)
        .and_then(|number| number.parse().ok())
        .expect("numbered");
    assert_eq!(entries.len(), 20_000 - first, "no gap between the oldest kept and the newest");
}

#[test]
fn a_reader_follows_across_a_turn_over() {
    let dir = tempfile::tempdir().expect("directory");
    let writer = LogWriter::open(dir.path(), 0).expect("opens");
    let mut reader = LogReader::new(dir.path());
    assert_eq!(reader.read(9).expect("reads"), []);
    let mut seen = 0;
    for number in 0..4000 {
        writer.copy(LogSource::Stdout, format!("{number} {}\n", "x".repeat(100)).as_bytes());
        if number % 100 == 99 {
            for entry in reader.read(usize::MAX).expect("reads") {
                let line = String::from_utf8(entry.line).expect("ASCII");
                assert_eq!(line.split(' ').next(), Some(seen.to_string().as_str()));
                seen += 1;
            }
        }
    }
    assert_eq!(seen, 4000);
    assert!(dir.path().join("log.1").exists(), "the log was never turned over");
}

#[test]
fn damage_is_passed_over() {
    for record in ["", "x", "1.2", "1.2 oF", "a.b oF x", "1.2 xx y", "99999999999999999999.0 oF x"] {
        assert_eq!(parse(record.as_bytes()), None, "{record}");
    }
}
