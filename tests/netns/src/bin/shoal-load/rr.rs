//! Requests and answers on one connection, or in datagrams.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::args::Args;
use crate::stats::{Samples, rate};

const TIMEOUT: Duration = Duration::from_secs(4);

/// A request out and its answer in.
trait Exchange {
    fn exchange(&mut self, request: &[u8], answer: &mut [u8]) -> std::io::Result<()>;
}

impl Exchange for TcpStream {
    fn exchange(&mut self, request: &[u8], answer: &mut [u8]) -> std::io::Result<()> {
        self.write_all(request)?;
        self.read_exact(answer)
    }
}

impl Exchange for UdpSocket {
    fn exchange(&mut self, request: &[u8], answer: &mut [u8]) -> std::io::Result<()> {
        self.send(request)?;
        self.recv(answer).map(|_| ())
    }
}

pub(crate) fn run(mut args: Args) -> anyhow::Result<bool> {
    let target = args.target()?;
    let size: usize = args.take_or("size", 1)?;
    let udp = args.switch("udp");
    let until = args.until(2.0)?;
    args.finish()?;
    let mut peer: Box<dyn Exchange> =
        if udp { Box::new(udp_to(target, 0, TIMEOUT)?) } else { Box::new(tcp_to(target)?) };

    let request = vec![b'x'; size];
    let mut answer = vec![0; size];
    let mut latency = Samples::default();
    let mut failed = 0;
    let mut first_error = None;
    let start = Instant::now();
    let mut now = start;
    while !until.reached_at(now) {
        let result = peer.exchange(&request, &mut answer);
        let after = Instant::now();
        match result {
            Ok(()) => latency.push(after - now),
            Err(error) => {
                failed += 1;
                first_error.get_or_insert(error.to_string());
                if !udp {
                    break;
                }
            }
        }
        now = after;
    }
    let report = json!({
        "mode": "rr", "udp": udp, "ok": latency.len(), "failed": failed, "error": first_error,
        "rate": rate(latency.len(), start.elapsed()),
        "p50_us": latency.percentile_us(50), "p99_us": latency.percentile_us(99), "max_us": latency.percentile_us(100),
    });
    println!("{report}");
    Ok(failed == 0 && latency.len() > 0)
}

fn tcp_to(target: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&target, TIMEOUT)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    Ok(stream)
}

/// A UDP socket that hears only the target, at a port of its own; 0: any that is free.
pub(crate) fn udp_to(target: SocketAddr, port: u16, timeout: Duration) -> std::io::Result<UdpSocket> {
    let own: IpAddr =
        if target.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((own, port))?;
    socket.connect(target)?;
    socket.set_read_timeout(Some(timeout))?;
    Ok(socket)
}
