//! Servers. Each port answers on TCP and, without `TCP_ONLY` in the environment, on UDP, dual stack.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::Context;

use crate::args::Args;

/// How long `whoami` waits for a request before it answers a silent client.
const SILENT_CLIENT: Duration = Duration::from_millis(200);

#[derive(Clone, Copy)]
enum Service {
    Health,
    Whoami,
    Echo,
    Conn,
    Discard,
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
    ] {
        ports.extend(args.take_all::<u16>(name)?.into_iter().map(|port| (port, service)));
    }
    args.finish()?;
    anyhow::ensure!(!ports.is_empty(), "nothing to serve");
    let readiness = Arc::new(Readiness::from_env());
    let mut threads = Vec::new();
    for (port, service) in ports {
        let listener = dual_stack(bind, port, TcpListener::bind)?;
        let readiness = Arc::clone(&readiness);
        let pool = Arc::new(Pool { listener, idle: AtomicUsize::new(1), service, readiness });
        threads.push(thread::spawn(move || accept_loop(&pool)));
        if std::env::var_os("TCP_ONLY").is_none() {
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
            drop(match pool.service {
                Service::Health => serve_health(stream, pool.readiness.is_there()),
                service if pool.readiness.serves() => serve_stream(stream, peer, service),
                _ => Ok(()),
            });
        }
        pool.idle.fetch_add(1, Ordering::AcqRel);
    }
}

fn serve_stream(mut stream: TcpStream, peer: SocketAddr, service: Service) -> std::io::Result<()> {
    match service {
        Service::Health => Ok(()),
        Service::Whoami => serve_whoami(stream, peer),
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

fn serve_whoami(mut stream: TcpStream, peer: SocketAddr) -> std::io::Result<()> {
    stream.set_read_timeout(Some(SILENT_CLIENT))?;
    let line = identity("tcp", peer, stream.local_addr().ok());
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
            Service::Health | Service::Discard => Ok(0),
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

/// An IPv4 peer of a dual-stack socket in its own notation.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
