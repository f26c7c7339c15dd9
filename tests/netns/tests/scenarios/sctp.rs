//! SCTP, by the kernel's own where it has one, and else by packets made here: to published ports by every node, from the
//! nodes themselves, and to virtual IPs.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::sys::socket::sockopt::{ReceiveTimeout, SendTimeout};
use nix::sys::socket::{
    AddressFamily, Backlog, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, connect,
    listen, recvfrom, sendto, setsockopt, socket,
};
use nix::sys::time::{TimeVal, TimeValLike};
use shoal_netns::{Swarm, Task, enter, slowness, wait_for};

use crate::harness::{PATIENCE, create, running};

const PORT: u16 = 5060;
/// How long an answer may take.
const ANSWER: Duration = Duration::from_millis(500);
/// How often a server looks whether it is still wanted.
const LOOK: Duration = Duration::from_millis(50);

const DATA: u8 = 0;
const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
const ABORT: u8 = 6;

/// Associations with a published port, by every node and address; what can't be is refused.
pub(crate) fn associations(swarm: &mut Swarm) -> anyhow::Result<()> {
    let refused = |ports: &str| {
        let words = ["service", "create", "--name", "bad", "--network", "front", "-p", ports, "--", "true"];
        swarm.manager().refused(&words, 2, &["E0224", "sctp ports cannot be translated", "-p 5060:5060/sctp"])
    };
    let port = format!("{PORT}:{PORT}/sctp");
    create(swarm, "gate", "front", &["--replicas", "2", "-p", &port])?;
    refused("5061:5060/sctp")?;
    refused("5060/sctp")?;
    let tasks = running(swarm, "gate", 2)?;
    let shown = swarm.manager().shoal(&["service", "ls", "--format", "{{.Ports}}"])?;
    ensure!(shown.trim() == format!("*:{PORT}->{PORT}/sctp"), "{shown}");
    let real = has_sctp();
    let _servers = tasks.iter().map(|task| Server::start(task, real)).collect::<anyhow::Result<Vec<_>>>()?;
    let client = swarm.client.netns_path();
    for node in &swarm.nodes {
        for address in node.place.addresses() {
            let to = SocketAddr::new(address, PORT);
            let place = &swarm.client_place;
            let from: IpAddr = if address.is_ipv4() { place.v4.into() } else { place.v6.into() };
            answered(&client, (from, to), Some(from), real).with_context(|| format!("by {}", node.name()))?;
            answered(&node.host.netns_path(), (address, to), Some(address), real)
                .with_context(|| format!("on {}", node.name()))?;
        }
        for lo in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
            answered(&node.host.netns_path(), (lo, SocketAddr::new(lo, PORT)), None, real)
                .with_context(|| format!("on {}", node.name()))?;
        }
    }
    create(swarm, "asker", "front", &["--mode", "global"])?;
    let vip = swarm.manager().vip("gate", "front")?;
    for asker in running(swarm, "asker", 3)? {
        let own = asker.attachment("front")?.addresses();
        for (from, address) in own.into_iter().zip([IpAddr::from(vip.v4), vip.v6.into()]) {
            answered(&asker.netns()?, (from, SocketAddr::new(address, PORT)), Some(from), real)
                .with_context(|| format!("by {}", asker.name))?;
        }
    }
    Ok(())
}

/// Whether the kernel has SCTP.
fn has_sctp() -> bool {
    open(SockType::Stream, true).is_ok()
}

fn open(kind: SockType, v4: bool) -> nix::Result<OwnedFd> {
    let family = if v4 { AddressFamily::Inet } else { AddressFamily::Inet6 };
    socket(family, kind, SockFlag::SOCK_CLOEXEC, SockProtocol::Sctp)
}

/// Asks until the answer comes, from whom was asked; it says whom the task saw, and that must be `seen`.
fn answered(
    netns: &Path,
    (from, to): (IpAddr, SocketAddr),
    seen: Option<IpAddr>,
    real: bool,
) -> anyhow::Result<()> {
    wait_for(&format!("{to} to answer {from} by SCTP"), PATIENCE, || {
        let ask = || if real { ask_kernel(from, to) } else { ask_raw(from, to) };
        let answer = enter(netns, ask).map_err(|error| format!("{error:#}"))?;
        match seen {
            Some(seen) if answer != seen.to_string() => Err(format!("the task saw {answer}")),
            _ => Ok(()),
        }
    })
}

/// Servers of one task, which answer each message with the client's address.
struct Server {
    done: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Server {
    fn start(task: &Task, real: bool) -> anyhow::Result<Self> {
        let done = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        for v4 in [true, false] {
            let done = Arc::clone(&done);
            if real {
                let listener = enter(&task.netns()?, || listening(v4))?;
                threads.push(thread::spawn(move || serve_kernel(&listener, &done)));
            } else {
                let socket = enter(&task.netns()?, || raw(v4, LOOK))?;
                threads.push(thread::spawn(move || serve_raw(&socket, &done)));
            }
        }
        Ok(Self { done, threads })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            drop(thread.join());
        }
    }
}

fn any(v4: bool) -> IpAddr {
    if v4 { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }
}

/// The kernel's sockets of one association each are used as those of TCP are.
fn listening(v4: bool) -> anyhow::Result<TcpListener> {
    let socket = open(SockType::Stream, v4)?;
    if !v4 {
        setsockopt(&socket, nix::sys::socket::sockopt::Ipv6V6Only, &true)?;
    }
    bind(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(any(v4), PORT)))?;
    listen(&socket, Backlog::new(16)?)?;
    setsockopt(&socket, ReceiveTimeout, &time(LOOK)?)?;
    Ok(TcpListener::from(socket))
}

fn serve_kernel(listener: &TcpListener, done: &AtomicBool) {
    while !done.load(Ordering::Relaxed) {
        // There is nobody for as long as the socket waits, or the association is over again.
        if let Ok((mut stream, peer)) = listener.accept() {
            drop(answer_kernel(&mut stream, peer));
        }
    }
}

fn answer_kernel(stream: &mut TcpStream, peer: SocketAddr) -> std::io::Result<()> {
    stream.set_read_timeout(Some(ANSWER))?;
    let answer = peer.ip().to_canonical().to_string();
    // Until the client has shut the association down.
    while stream.read(&mut [0; 64])? > 0 {
        stream.write_all(answer.as_bytes())?;
    }
    Ok(())
}

fn ask_kernel(from: IpAddr, to: SocketAddr) -> anyhow::Result<String> {
    let socket = open(SockType::Stream, to.is_ipv4())?;
    // On one address, or all that the client has would be told to the task.
    bind(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(from, 0)))?;
    // As long as the kernel would try, the scenario would wait.
    setsockopt(&socket, SendTimeout, &time(ANSWER * slowness())?)?;
    connect(socket.as_raw_fd(), &SockaddrStorage::from(to)).context("cannot associate")?;
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(ANSWER * slowness()))?;
    stream.write_all(b"?")?;
    let mut buffer = [0; 64];
    let length = stream.read(&mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

fn raw(v4: bool, patience: Duration) -> anyhow::Result<OwnedFd> {
    let socket = open(SockType::Raw, v4)?;
    setsockopt(&socket, ReceiveTimeout, &time(patience)?)?;
    Ok(socket)
}

fn time(of: Duration) -> anyhow::Result<TimeVal> {
    Ok(TimeVal::milliseconds(i64::try_from(of.as_millis())?))
}

/// A packet of one chunk.
struct Packet {
    from: u16,
    to: u16,
    chunk: u8,
    text: String,
}

impl Packet {
    fn bytes(&self) -> anyhow::Result<Vec<u8>> {
        let mut bytes = [self.from.to_be_bytes(), self.to.to_be_bytes()].concat();
        bytes.extend([0, 0, 0, 9, 0, 0, 0, 0, self.chunk, 0]);
        bytes.extend(u16::try_from(4 + self.text.len())?.to_be_bytes());
        bytes.extend(self.text.as_bytes());
        let check = crc32c(&bytes);
        bytes[8..12].copy_from_slice(&check.to_le_bytes());
        Ok(bytes)
    }

    /// What came, if it is whole.
    fn parse(bytes: &[u8]) -> anyhow::Result<Self> {
        ensure!(bytes.len() >= 16, "a packet of {} bytes", bytes.len());
        let mut zeroed = bytes.to_vec();
        zeroed[8..12].fill(0);
        ensure!(crc32c(&zeroed).to_le_bytes() == bytes[8..12], "its checksum is wrong");
        Ok(Self {
            from: u16::from_be_bytes([bytes[0], bytes[1]]),
            to: u16::from_be_bytes([bytes[2], bytes[3]]),
            chunk: bytes[12],
            text: String::from_utf8_lossy(&bytes[16..]).into_owned(),
        })
    }

    fn send(&self, socket: &OwnedFd, to: IpAddr) -> anyhow::Result<()> {
        let to = SockaddrStorage::from(SocketAddr::new(to, 0));
        sendto(socket.as_raw_fd(), &self.bytes()?, &to, MsgFlags::empty())?;
        Ok(())
    }

    /// The next one for a port; none for as long as the socket waits.
    fn receive(socket: &OwnedFd, port: u16) -> anyhow::Result<(IpAddr, Self)> {
        let start = Instant::now();
        let mut buffer = [0; 2048];
        while start.elapsed() < ANSWER * slowness() {
            let (length, from) = recvfrom::<SockaddrStorage>(socket.as_raw_fd(), &mut buffer)?;
            let from = from.context("nobody sent it")?;
            let v4 = from.as_sockaddr_in().map(|from| IpAddr::V4(from.ip()));
            let from = v4.or_else(|| from.as_sockaddr_in6().map(|from| IpAddr::V6(from.ip())));
            let from = from.context("of another family")?;
            // Only those of IPv4 come with their header.
            let header = if from.is_ipv4() { usize::from(buffer[0] & 15) * 4 } else { 0 };
            let packet = Self::parse(buffer.get(header..length).context("cut off")?)?;
            if packet.to == port {
                return Ok((from, packet));
            }
        }
        Err(std::io::Error::from(ErrorKind::TimedOut).into())
    }

    fn answer(&self, chunk: u8, text: String) -> Self {
        Self { from: self.to, to: self.from, chunk, text }
    }
}

fn serve_raw(socket: &OwnedFd, done: &AtomicBool) {
    while !done.load(Ordering::Relaxed) {
        let Ok((from, packet)) = Packet::receive(socket, PORT) else { continue };
        let answer = match packet.chunk {
            INIT => packet.answer(INIT_ACK, String::new()),
            DATA => packet.answer(DATA, from.to_string()),
            _ => continue,
        };
        drop(answer.send(socket, from));
    }
}

fn ask_raw(from: IpAddr, to: SocketAddr) -> anyhow::Result<String> {
    static NEXT: std::sync::atomic::AtomicU16 = std::sync::atomic::AtomicU16::new(40_000);
    let own = NEXT.fetch_add(1, Ordering::Relaxed);
    let socket = raw(to.is_ipv4(), ANSWER * slowness())?;
    bind(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(from, 0)))?;
    let exchange = |chunk, expected| -> anyhow::Result<String> {
        Packet { from: own, to: to.port(), chunk, text: "?".to_owned() }.send(&socket, to.ip())?;
        let (sender, packet) = Packet::receive(&socket, own)?;
        let is_it = sender == to.ip() && packet.from == to.port() && packet.chunk == expected;
        ensure!(is_it, "chunk {} of {sender} port {}", packet.chunk, packet.from);
        Ok(packet.text)
    };
    exchange(INIT, INIT_ACK)?;
    let answer = exchange(DATA, DATA)?;
    Packet { from: own, to: to.port(), chunk: ABORT, text: String::new() }.send(&socket, to.ip())?;
    Ok(answer)
}

/// The checksum of SCTP (RFC 9260 appendix A).
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |sum, byte| {
        (0..8).fold(
            sum ^ u32::from(*byte),
            |sum, _| {
                if sum & 1 == 1 { (sum >> 1) ^ 0x82f6_3b78 } else { sum >> 1 }
            },
        )
    })
}
