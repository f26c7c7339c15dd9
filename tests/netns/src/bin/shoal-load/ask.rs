//! Asks a `whoami` server many times, each time from a new port, and counts who answered and whom they saw.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Error, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::json;

use crate::args::Args;
use crate::rr::udp_to;

pub(crate) fn run(mut args: Args) -> anyhow::Result<bool> {
    let target = args.target()?;
    let count: usize = args.take_or("count", 1)?;
    let udp = args.switch("udp");
    let greeted = args.switch("greeted");
    let first: Option<u16> = args.take("from-port")?;
    let timeout = Duration::from_millis(args.take_or("timeout-ms", 2000)?);
    args.finish()?;

    let mut hosts: BTreeMap<String, usize> = BTreeMap::new();
    let mut peers: BTreeSet<String> = BTreeSet::new();
    let mut connected: BTreeSet<String> = BTreeSet::new();
    let (mut failed, mut port_kept, mut headed, mut headless) = (0, 0, 0, 0);
    let mut misled: BTreeSet<String> = BTreeSet::new();
    let mut errors: Vec<String> = Vec::new();
    for number in 0..count {
        // Datagrams have no end by which a port would be free again: whoever asks through several nodes has a range for each.
        let own = first.map_or(0, |first| first.saturating_add(u16::try_from(number).unwrap_or(u16::MAX)));
        let answer = match (udp, greeted) {
            (true, _) => ask_udp(target, own, timeout),
            (false, true) => hear_tcp(target, timeout),
            (false, false) => ask_tcp(target, timeout),
        };
        match answer.map(|(line, own, to)| (Answer::parse(&line), own, to)) {
            Ok((Some(answer), own, to)) => {
                connected.insert(to.to_string());
                port_kept += usize::from(answer.peer.port() == own.port());
                peers.insert(answer.peer.ip().to_string());
                headless = headless.max(answer.headless);
                if let Some(header) = answer.header {
                    headed += 1;
                    if header != [own, to] {
                        misled.insert(format!("{own} asked {to}, and the header says {header:?}"));
                    }
                }
                *hosts.entry(answer.host).or_default() += 1;
            }
            Ok((None, ..)) => {
                failed += 1;
                errors.push("the answer is no whoami line".into());
            }
            Err(error) => {
                failed += 1;
                errors.push(error.to_string());
            }
        }
    }
    errors.dedup();
    errors.truncate(5);
    let report = json!({
        "mode": "ask", "udp": udp, "ok": count - failed, "failed": failed, "errors": errors,
        "hosts": hosts, "peers": peers, "connected": connected, "port_kept": port_kept, "headed": headed,
        "misled": misled, "headless": headless,
    });
    println!("{report}");
    Ok(failed == 0)
}

struct Answer {
    host: String,
    peer: SocketAddr,
    /// The client, and what it asked.
    header: Option<[SocketAddr; 2]>,
    /// Connections that came to the server without one.
    headless: usize,
}

impl Answer {
    fn parse(line: &str) -> Option<Self> {
        let field =
            |name: &str| line.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        let address = |name: &str| field(name)?.parse().ok();
        Some(Self {
            host: field("host")?.to_owned(),
            peer: address("peer")?,
            header: address("client").zip(address("asked")).map(Into::into),
            headless: field("headless").and_then(|count| count.parse().ok()).unwrap_or_default(),
        })
    }
}

/// The answer, where it was asked from, and whom the kernel says the socket is connected to.
type Told = (String, SocketAddr, SocketAddr);

fn ask_tcp(target: SocketAddr, timeout: Duration) -> std::io::Result<Told> {
    let mut stream = TcpStream::connect_timeout(&target, timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    let (own, to) = (stream.local_addr()?, stream.peer_addr()?);
    stream.write_all(b"\n")?;
    let mut line = String::new();
    stream.read_to_string(&mut line)?;
    Ok((line, own, to))
}

/// Says nothing before it is greeted, and then something that must come back.
fn hear_tcp(target: SocketAddr, timeout: Duration) -> std::io::Result<Told> {
    let stream = TcpStream::connect_timeout(&target, timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    let (own, to) = (stream.local_addr()?, stream.peer_addr()?);
    let mut reader = BufReader::new(&stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let answer = format!("{own} to {to}\n");
    (&stream).write_all(answer.as_bytes())?;
    let mut back = String::new();
    reader.read_to_string(&mut back)?;
    if back == answer {
        Ok((line, own, to))
    } else {
        Err(Error::other(format!("said {answer}, back came {back}")))
    }
}

fn ask_udp(target: SocketAddr, own: u16, timeout: Duration) -> std::io::Result<Told> {
    let socket = udp_to(target, own, timeout)?;
    let (own, to) = (socket.local_addr()?, socket.peer_addr()?);
    socket.send(b"?")?;
    let mut buffer = [0; 1024];
    let length = socket.recv(&mut buffer)?;
    Ok((String::from_utf8_lossy(&buffer[..length]).into_owned(), own, to))
}
