//! Asks a `whoami` server many times, each time from a new port, and counts who answered and whom they saw.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::json;

use crate::args::Args;
use crate::rr::udp_to;

pub(crate) fn run(mut args: Args) -> anyhow::Result<bool> {
    let target = args.target()?;
    let count: usize = args.take_or("count", 1)?;
    let udp = args.switch("udp");
    let first: Option<u16> = args.take("from-port")?;
    let timeout = Duration::from_millis(args.take_or("timeout-ms", 2000)?);
    args.finish()?;

    let mut hosts: BTreeMap<String, usize> = BTreeMap::new();
    let mut peers: BTreeSet<String> = BTreeSet::new();
    let mut connected: BTreeSet<String> = BTreeSet::new();
    let mut failed = 0;
    let mut port_kept = 0;
    let mut errors: Vec<String> = Vec::new();
    for number in 0..count {
        // Datagrams have no end by which a port would be free again: whoever asks through several nodes has a range for each.
        let own = first.map_or(0, |first| first.saturating_add(u16::try_from(number).unwrap_or(u16::MAX)));
        let answer = if udp { ask_udp(target, own, timeout) } else { ask_tcp(target, timeout) };
        match answer.map(|(line, port, to)| (Answer::parse(&line), port, to)) {
            Ok((Some(answer), port, to)) => {
                connected.insert(to.to_string());
                *hosts.entry(answer.host).or_default() += 1;
                port_kept += usize::from(answer.peer.port() == port);
                peers.insert(answer.peer.ip().to_string());
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
        "hosts": hosts, "peers": peers, "connected": connected, "port_kept": port_kept,
    });
    println!("{report}");
    Ok(failed == 0)
}

struct Answer {
    host: String,
    peer: SocketAddr,
}

impl Answer {
    fn parse(line: &str) -> Option<Self> {
        let field =
            |name: &str| line.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        Some(Self { host: field("host")?.to_owned(), peer: field("peer")?.parse().ok()? })
    }
}

/// The answer, the port it was asked from, and whom the kernel says the socket is connected to.
type Told = (String, u16, SocketAddr);

fn ask_tcp(target: SocketAddr, timeout: Duration) -> std::io::Result<Told> {
    let mut stream = TcpStream::connect_timeout(&target, timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    let (port, to) = (stream.local_addr()?.port(), stream.peer_addr()?);
    stream.write_all(b"\n")?;
    let mut line = String::new();
    stream.read_to_string(&mut line)?;
    Ok((line, port, to))
}

fn ask_udp(target: SocketAddr, own: u16, timeout: Duration) -> std::io::Result<Told> {
    let socket = udp_to(target, own, timeout)?;
    let (port, to) = (socket.local_addr()?.port(), socket.peer_addr()?);
    socket.send(b"?")?;
    let mut buffer = [0; 1024];
    let length = socket.recv(&mut buffer)?;
    Ok((String::from_utf8_lossy(&buffer[..length]).into_owned(), port, to))
}
