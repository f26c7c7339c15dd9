//! Long streams: bulk data, and numbered lines that show a gap.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::args::{Args, Until};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(4);
const CHUNK: usize = 1 << 17;

pub(crate) fn run_bulk(mut args: Args) -> anyhow::Result<bool> {
    let target = args.target()?;
    let streams: usize = args.take_or("streams", 1)?;
    let until = args.until(2.0)?;
    args.finish()?;
    let start = Instant::now();
    let threads: Vec<_> = (0..streams)
        .map(|_| {
            let until = until.clone();
            thread::spawn(move || push_bytes(target, &until))
        })
        .collect();
    let mut chunks = 0;
    for thread in threads {
        chunks += thread.join().map_err(|_| anyhow::anyhow!("a stream panicked"))??;
    }
    let gbits = f64::from(chunks) * f64::from(u32::try_from(CHUNK)?) * 8.0 / 1e9;
    println!(
        "{}",
        json!({"mode": "bulk", "streams": streams, "gbps": gbits / start.elapsed().as_secs_f64()})
    );
    Ok(true)
}

fn push_bytes(target: SocketAddr, until: &Until) -> std::io::Result<u32> {
    let mut stream = TcpStream::connect_timeout(&target, CONNECT_TIMEOUT)?;
    let chunk = vec![0; CHUNK];
    let mut chunks = 0;
    while !until.reached() {
        stream.write_all(&chunk)?;
        chunks += 1;
    }
    Ok(chunks)
}

/// What one numbered stream saw.
#[derive(Default)]
struct Numbered {
    sent: u64,
    worst: Duration,
    failure: Option<String>,
}

pub(crate) fn run_numbered(mut args: Args) -> anyhow::Result<bool> {
    let target = args.target()?;
    let streams: usize = args.take_or("streams", 1)?;
    let interval = Duration::from_millis(args.take_or("interval-ms", 20)?);
    let timeout = Duration::from_millis(args.take_or("timeout-ms", 5000)?);
    let until = args.until(5.0)?;
    args.finish()?;
    let threads: Vec<_> = (0..streams)
        .map(|_| {
            let until = until.clone();
            thread::spawn(move || {
                let mut seen = Numbered::default();
                if let Err(error) = count_up(target, &until, interval, timeout, &mut seen) {
                    seen.failure = Some(format!("line {}: {error}", seen.sent));
                }
                seen
            })
        })
        .collect();
    let mut lines = 0;
    let mut worst = Duration::ZERO;
    let mut failures = Vec::new();
    for thread in threads {
        let seen = thread.join().map_err(|_| anyhow::anyhow!("a stream panicked"))?;
        lines += seen.sent;
        worst = worst.max(seen.worst);
        failures.extend(seen.failure);
    }
    let clean = failures.is_empty();
    let report = json!({
        "mode": "stream", "streams": streams, "lines": lines, "broken": failures.len(),
        "failures": failures, "worst_ms": worst.as_millis(),
    });
    println!("{report}");
    Ok(clean)
}

fn count_up(
    target: SocketAddr,
    until: &Until,
    interval: Duration,
    timeout: Duration,
    seen: &mut Numbered,
) -> std::io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&target, CONNECT_TIMEOUT)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(timeout))?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    while !until.reached() {
        let start = Instant::now();
        let number = seen.sent.to_string();
        stream.write_all(format!("{number}\n").as_bytes())?;
        line.clear();
        reader.read_line(&mut line)?;
        if line.trim_end() != number {
            return Err(std::io::Error::other(format!("expected {number}, got {line:?}")));
        }
        seen.sent += 1;
        seen.worst = seen.worst.max(start.elapsed());
        #[expect(clippy::disallowed_methods, reason = "pacing is the purpose, not waiting for a state")]
        thread::sleep(interval.saturating_sub(start.elapsed()));
    }
    Ok(())
}
