//! Servers. Each port answers on TCP and, without `TCP_ONLY` in the environment, on UDP, dual stack.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::Context;

use crate::args::Args;
use crate::header::Header;
use crate::transfer;

/// How long `whoami` waits for a request before it answers a silent client.
const SILENT_CLIENT: Duration = Duration::from_millis(200);

#[derive(Clone, Copy)]
enum Service {
    Health,
    Whoami,
    Echo,
    Conn,
    Discard,
    Greet,
    Transfer,
}

pub(crate) fn run(mut args: Args) -> anyhow::Result<()> {
    let bind: Option<IpAddr> = args.take("bind")?;
    let mut ports = Vec::new();
    for (name, service) in [
        ("health", Service::Health),
        ("whoami", Service::Whoami),
        ("echo", Service::Echo),
        ("conn", Service::Conn),
        ("discard", Service::Discard),
        ("greet", Service::Greet),
        ("transfer", Service::Transfer),
    ] {
        ports.extend(args.take_all::<u16>(name)?.into_iter().map(|port| (port, service)));
    }
    let headed: Vec<u16> = args.take_all("proxy")?;
    args.finish()?;
    anyhow::ensure!(!ports.is_empty(), "nothing to serve");
    let is_served = |port: &&u16| ports.iter().any(|(served, _)| served == *port);
    anyhow::ensure!(
        headed.iter().filter(is_served).count() == headed.len(),
        "--proxy names a port of no server"
    );
    let readiness = Arc::new(Readiness::from_env());
    let headless = Arc::new(AtomicUsize::new(0));
    let mut threads = Vec::new();
    for (port, service) in ports {
        let listener = dual_stack(bind, port, TcpListener::bind)?;
        let readiness = Arc::clone(&readiness);
        let (is_headed, headless) = (headed.contains(&port), Arc::clone(&headless));
        let pool =
            Arc::new(Pool { listener, idle: AtomicUsize::new(1), service, readiness, is_headed, headless });
        threads.push(thread::spawn(move || accept_loop(&pool)));
        if std::env::var_os("TCP_ONLY").is_none() && !is_headed {
            let socket = dual_stack(bind, port, UdpSocket::bind)?;
            threads.push(thread::spawn(move || datagram_loop(&socket, service)));
        }
    }
    eprintln!("shoal-load: serving");
    for thread in threads {
        thread.join().map_err(|_| anyhow::anyhow!("a server thread panicked"))?;
    }
    Ok(())
}

/// Binds the given address, or `[::]` for both families, or `0.0.0.0` where there is no IPv6.
fn dual_stack<T>(
    bind: Option<IpAddr>,
    port: u16,
    open: impl Fn(SocketAddr) -> std::io::Result<T>,
) -> anyhow::Result<T> {
    let first = bind.unwrap_or(Ipv6Addr::UNSPECIFIED.into());
    match open((first, port).into()) {
        Err(error) if bind.is_none() && error.kind() != ErrorKind::AddrInUse => {
            open((Ipv4Addr::UNSPECIFIED, port).into())
        }
        other => other,
    }
    .with_context(|| format!("can't listen on {first} port {port}"))
}

/// Threads that accept and serve in place. There is always one idle: the last to become busy starts another, so a
/// burst of short connections needs no thread of its own and long ones never starve the port.
struct Pool {
    listener: TcpListener,
    idle: AtomicUsize,
    service: Service,
    readiness: Arc<Readiness>,
    /// Connections begin with a header.
    is_headed: bool,
    /// Connections to ports of this server that should have had one.
    headless: Arc<AtomicUsize>,
}

/// A connection, and what is known of its client.
struct Client {
    stream: TcpStream,
    peer: SocketAddr,
    header: Option<Header>,
    headless: usize,
}

impl Pool {
    /// The client of a connection; none if it should have said who it is and has not.
    fn client(&self, mut stream: TcpStream, peer: SocketAddr) -> Option<Client> {
        let header = if self.is_headed { Header::take(&mut stream) } else { None };
        if self.is_headed && header.is_none() {
            self.headless.fetch_add(1, Ordering::AcqRel);
            return None;
        }
        Some(Client { stream, peer, header, headless: self.headless.load(Ordering::Acquire) })
    }

    fn serve(&self, stream: TcpStream, peer: SocketAddr) -> std::io::Result<()> {
        let Some(client) = self.client(stream, peer) else { return Ok(()) };
        match self.service {
            Service::Health => serve_health(client.stream, self.readiness.is_there()),
            service if self.readiness.serves() => serve_stream(client, service),
            _ => Ok(()),
        }
    }
}

/// A server that takes its time: until the file named by `READY_FILE` has been there once it closes what it is asked, so
/// that whoever was led here too early finds out. Its health is whether the file is there now.
struct Readiness {
    file: Option<PathBuf>,
    was_ready: AtomicBool,
}

impl Readiness {
    fn from_env() -> Self {
        Self { file: std::env::var_os("READY_FILE").map(PathBuf::from), was_ready: AtomicBool::new(false) }
    }

    fn is_there(&self) -> bool {
        let there = self.file.as_ref().is_none_or(|file| file.exists());
        if there {
            self.was_ready.store(true, Ordering::Release);
        }
        there
    }

    fn serves(&self) -> bool {
        self.was_ready.load(Ordering::Acquire) || self.is_there()
    }
}

fn accept_loop(pool: &Arc<Pool>) {
    loop {
        let accepted = pool.listener.accept();
        if pool.idle.fetch_sub(1, Ordering::AcqRel) == 1 {
            pool.idle.fetch_add(1, Ordering::AcqRel);
            let pool = Arc::clone(pool);
            thread::spawn(move || accept_loop(&pool));
        }
        if let Ok((stream, peer)) = accepted {
            // A client that goes away in the middle is its own business.
            drop(pool.serve(stream, peer));
        }
        pool.idle.fetch_add(1, Ordering::AcqRel);
    }
}

fn serve_stream(mut client: Client, service: Service) -> std::io::Result<()> {
    let stream = &mut client.stream;
    match service {
        Service::Health => Ok(()),
        Service::Whoami => serve_whoami(client),
        Service::Greet => serve_greeting(client),
        Service::Transfer => transfer::serve(client.stream),
        Service::Echo => {
            stream.set_nodelay(true)?;
            let mut buffer = vec![0; 65536];
            loop {
                let read = stream.read(&mut buffer)?;
                if read == 0 {
                    return Ok(());
                }
                stream.write_all(&buffer[..read])?;
            }
        }
        Service::Conn => {
            let mut byte = [0];
            stream.read_exact(&mut byte)?;
            // Closing first leaves the TIME_WAIT here, and the client's port free for its next connection.
            stream.write_all(&byte)
        }
        Service::Discard => {
            let mut buffer = vec![0; 1 << 17];
            while stream.read(&mut buffer)? != 0 {}
            Ok(())
        }
    }
}

fn serve_health(mut stream: TcpStream, is_well: bool) -> std::io::Result<()> {
    stream.set_read_timeout(Some(SILENT_CLIENT))?;
    let mut request = [0; 1024];
    let _read = stream.read(&mut request)?;
    let (status, body) = if is_well { ("200 OK", "ready") } else { ("503 Service Unavailable", "not ready") };
    let head = format!("HTTP/1.0 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    stream.write_all(format!("{head}{body}").as_bytes())
}

/// Says first who it is, then sends back the line that is the client's answer.
fn serve_greeting(client: Client) -> std::io::Result<()> {
    let line = client.identity();
    let mut stream = client.stream;
    stream.write_all(line.as_bytes())?;
    let mut said = String::new();
    BufReader::new(&stream).read_line(&mut said)?;
    stream.write_all(said.as_bytes())
}

fn serve_whoami(client: Client) -> std::io::Result<()> {
    let line = client.identity();
    let mut stream = client.stream;
    stream.set_read_timeout(Some(SILENT_CLIENT))?;
    let mut request = [0; 1024];
    let read = stream.read(&mut request).unwrap_or(0);
    if !request[..read].starts_with(b"GET ") {
        return stream.write_all(line.as_bytes());
    }
    let head = format!(
        "HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        line.len()
    );
    stream.write_all(format!("{head}{line}").as_bytes())
}

fn datagram_loop(socket: &UdpSocket, service: Service) {
    let mut buffer = vec![0; 65536];
    loop {
        let Ok((length, peer)) = socket.recv_from(&mut buffer) else { continue };
        let sent = match service {
            Service::Whoami => {
                let line = identity("udp", peer, None);
                socket.send_to(line.as_bytes(), peer)
            }
            Service::Echo | Service::Conn => socket.send_to(&buffer[..length], peer),
            Service::Health | Service::Discard | Service::Greet | Service::Transfer => Ok(0),
        };
        // An answer that can't be sent is a lost datagram, which the client must be ready for anyway.
        drop(sent);
    }
}

/// `peer=192.0.2.9:40000 host=web.1 slot=1 proto=tcp local=10.0.0.3:80`
fn identity(proto: &str, peer: SocketAddr, local: Option<SocketAddr>) -> String {
    let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default();
    let slot = std::env::var("SLOT").unwrap_or_else(|_| "-".into());
    let local = local.map_or_else(|| "-".into(), |address| canonical(address).to_string());
    format!(
        "peer={} host={host} slot={slot} pid={} proto={proto} local={local}\n",
        canonical(peer),
        std::process::id()
    )
}

impl Client {
    /// As [`identity`] has it, and what its header says.
    fn identity(&self) -> String {
        let mut line = identity("tcp", self.peer, self.stream.local_addr().ok());
        line.truncate(line.trim_end().len());
        if let Some(header) = &self.header {
            line = format!("{line} client={} asked={}", header.client, header.asked);
        }
        format!("{line} headless={}\n", self.headless)
    }
}

/// An IPv4 peer of a dual-stack socket in its own notation.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
