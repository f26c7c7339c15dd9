//! New connections: connect, one byte there, one byte back, close.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::args::{Args, Until};
use crate::stats::{Samples, rate};

/// No connection of a healthy path takes this long; it covers two SYN retransmissions.
const TIMEOUT: Duration = Duration::from_secs(4);
/// Distinct failures worth printing.
const ERRORS_SHOWN: usize = 5;

#[derive(Default)]
struct Outcome {
    latency: Samples,
    failed: usize,
    errors: Vec<String>,
}

pub(crate) fn run(mut args: Args) -> anyhow::Result<bool> {
    let target = args.target()?;
    let workers: u32 = args.take_or("workers", 1)?;
    let per_second: Option<f64> = args.take("rate")?;
    let until = args.until(2.0)?;
    args.finish()?;
    if per_second.is_none() {
        // A measurement has no time-outs on its sockets, as each costs a system call; one for all ends it instead.
        nix::unistd::alarm::set(until.seconds_left() + 15);
    }
    let pause = per_second.map(|rate| Duration::from_secs_f64(f64::from(workers) / rate));

    let start = Instant::now();
    let threads: Vec<_> = (0..workers)
        .map(|_| {
            let until = until.clone();
            thread::spawn(move || work(target, &until, pause))
        })
        .collect();
    let mut total = Outcome::default();
    for thread in threads {
        let outcome = thread.join().map_err(|_| anyhow::anyhow!("a worker panicked"))?;
        total.latency.append(outcome.latency);
        total.failed += outcome.failed;
        total.errors.extend(outcome.errors);
    }
    let elapsed = start.elapsed();
    total.errors.truncate(ERRORS_SHOWN);
    let report = json!({
        "mode": "connect", "ok": total.latency.len(), "failed": total.failed, "errors": total.errors,
        "rate": rate(total.latency.len(), elapsed),
        "p50_us": total.latency.percentile_us(50), "p99_us": total.latency.percentile_us(99),
        "max_us": total.latency.percentile_us(100),
    });
    println!("{report}");
    Ok(total.failed == 0 && total.latency.len() > 0)
}

fn work(target: SocketAddr, until: &Until, pause: Option<Duration>) -> Outcome {
    let mut outcome = Outcome::default();
    let mut now = Instant::now();
    let mut next = now;
    while !until.reached_at(now) {
        if let Some(pause) = pause {
            next += pause;
            wait_until(next);
            now = Instant::now();
        }
        let result =
            if pause.is_some() { careful_exchange(target) } else { exchange(TcpStream::connect(target)) };
        let after = Instant::now();
        match result {
            Ok(()) => outcome.latency.push(after - now),
            Err(error) => {
                outcome.failed += 1;
                if outcome.errors.len() < ERRORS_SHOWN {
                    outcome.errors.push(error.to_string());
                }
            }
        }
        now = after;
    }
    outcome
}

fn careful_exchange(target: SocketAddr) -> std::io::Result<()> {
    let stream = TcpStream::connect_timeout(&target, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    exchange(Ok(stream))
}

fn exchange(connected: std::io::Result<TcpStream>) -> std::io::Result<()> {
    let mut stream = connected?;
    stream.write_all(b"x")?;
    let mut answer = [0; 2];
    let mut read = 0;
    // Reading to the end lets the server close first: no reset, and this end's port is free at once.
    loop {
        match stream.read(&mut answer[read..])? {
            0 if read == 1 => return Ok(()),
            0 => return Err(std::io::Error::other("closed without an answer")),
            more => read += more,
        }
        if read > 1 {
            return Err(std::io::Error::other("more than one byte came back"));
        }
    }
}

fn wait_until(moment: Instant) {
    let now = Instant::now();
    if moment > now {
        #[expect(clippy::disallowed_methods, reason = "pacing is the purpose, not waiting for a state")]
        thread::sleep(moment - now);
    }
}
