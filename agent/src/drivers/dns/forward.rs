//! Asking the host's servers on behalf of tasks.
//!
//! Sockets are made on the runtime's threads, so they belong to the agent's own namespace, and a server on the
//! host's loopback works. Each try has its own socket (a random source port), its own random id, and takes a
//! reply only from the address it asked and only to the question it asked.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use hickory_proto::op::ResponseCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout, timeout_at};

use super::message::{HEADER, Request, Transport, is_truncated, response_code};
use super::resolv::HostResolver;
use super::{DnsConfig, DnsMetrics};

/// A client has given up by then (glibc: 5 s), so we do.
const TOTAL_TIMEOUT: Duration = Duration::from_millis(4500);
/// How often the host's file is looked at.
const RELOAD_INTERVAL: Duration = Duration::from_secs(1);

/// Why there is no reply.
#[derive(Debug, thiserror::Error)]
pub(super) enum ForwardError {
    #[error("too many forwards in flight")]
    TooMany,
    #[error("no upstream server replied in time")]
    Timeout,
    #[error("upstream server {server}")]
    Io {
        server: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("the question can't be encoded")]
    Encode,
}

/// Asks upstream servers; shared by all resolvers of a node.
#[derive(Debug)]
pub(super) struct Forwarder {
    config: DnsConfig,
    metrics: DnsMetrics,
    permits: Semaphore,
    upstream: Mutex<Upstream>,
}

#[derive(Debug)]
struct Upstream {
    servers: Arc<[SocketAddr]>,
    modified: Option<SystemTime>,
    looked_at: Option<Instant>,
}

impl Forwarder {
    pub(super) fn new(config: DnsConfig, metrics: DnsMetrics) -> Self {
        Self {
            permits: Semaphore::new(config.max_forwards),
            upstream: Mutex::new(Upstream { servers: Arc::new([]), modified: None, looked_at: None }),
            config,
            metrics,
        }
    }

    /// The reply to a request, as a response to the client: of the servers given, or of the host's if none are.
    pub(super) async fn forward(
        &self,
        request: &Request,
        servers: Arc<[SocketAddr]>,
        client: Transport,
    ) -> Result<Vec<u8>, ForwardError> {
        let _permit = self.permit()?;
        let deadline = Instant::now() + TOTAL_TIMEOUT;
        let servers = if servers.is_empty() { self.servers() } else { servers };
        let rounds = if servers.len() == 1 { 2 } else { 1 };
        let mut outcome = Err(ForwardError::Timeout);
        for server in servers.iter().cycle().take(servers.len() * rounds) {
            let exchanged = timeout_at(deadline, self.ask(*server, request, client)).await;
            match exchanged.unwrap_or(Err(ForwardError::Timeout)) {
                Ok(reply) => {
                    let failed =
                        matches!(response_code(&reply), ResponseCode::ServFail | ResponseCode::Refused);
                    outcome = Ok(request.relay(reply, client));
                    if !failed {
                        break;
                    }
                }
                // An unhappy reply of another server is better than none.
                Err(error) if outcome.is_err() => outcome = Err(error),
                Err(_) => {}
            }
            if Instant::now() >= deadline {
                break;
            }
        }
        outcome
    }

    fn permit(&self) -> Result<ForwardPermit<'_>, ForwardError> {
        let Ok(permit) = self.permits.try_acquire() else {
            self.metrics.count_rate_limited();
            return Err(ForwardError::TooMany);
        };
        self.metrics.forward_begins();
        Ok(ForwardPermit { metrics: &self.metrics, _permit: permit })
    }

    async fn ask(
        &self,
        server: SocketAddr,
        request: &Request,
        client: Transport,
    ) -> Result<Vec<u8>, ForwardError> {
        let failed = |source| ForwardError::Io { server, source };
        if client == Transport::Tcp {
            return self.ask_tcp(server, request).await;
        }
        let id = rand::random();
        let query = request.upstream_query(id).ok_or(ForwardError::Encode)?;
        let exchange = exchange_udp(server, &query, |reply| request.is_reply(id, reply));
        let reply = timeout(self.config.forward_timeout, exchange)
            .await
            .map_err(|_| ForwardError::Timeout)?
            .map_err(failed)?;
        if !is_truncated(&reply) {
            return Ok(reply);
        }
        // What was cut is still a reply if the whole can't be had.
        Ok(self.ask_tcp(server, request).await.unwrap_or(reply))
    }

    async fn ask_tcp(&self, server: SocketAddr, request: &Request) -> Result<Vec<u8>, ForwardError> {
        let failed = |source| ForwardError::Io { server, source };
        let id = rand::random();
        let query = request.upstream_query(id).ok_or(ForwardError::Encode)?;
        let reply = timeout(self.config.forward_timeout, exchange_tcp(server, &query))
            .await
            .map_err(|_| ForwardError::Timeout)?
            .map_err(failed)?;
        if request.is_reply(id, &reply) {
            Ok(reply)
        } else {
            Err(failed(io::Error::new(io::ErrorKind::InvalidData, "not the reply to the question asked")))
        }
    }

    /// The search domains in the host's file, unless tasks are to have none. Without the file there are none.
    pub(super) fn search_domains(&self) -> Vec<String> {
        if !self.config.search {
            return Vec::new();
        }
        let text = std::fs::read_to_string(&self.config.upstream_resolv_conf).unwrap_or_default();
        HostResolver::parse(&text).search
    }

    /// The servers in the host's file, read again when it changed. A file that can't be read leaves those known.
    fn servers(&self) -> Arc<[SocketAddr]> {
        let mut upstream = self.upstream.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if upstream.looked_at.is_some_and(|at| now.duration_since(at) < RELOAD_INTERVAL) {
            return Arc::clone(&upstream.servers);
        }
        upstream.looked_at = Some(now);
        let path = &self.config.upstream_resolv_conf;
        let modified = std::fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
        if upstream.servers.is_empty() || modified != upstream.modified {
            match std::fs::read_to_string(path) {
                Ok(text) => {
                    upstream.servers = HostResolver::parse(&text).servers.into();
                    upstream.modified = modified;
                }
                Err(error) if upstream.servers.is_empty() => {
                    tracing::warn!(path = %path.display(), %error, "no upstream name servers: cannot read");
                }
                Err(_) => {}
            }
        }
        Arc::clone(&upstream.servers)
    }
}

/// A place among the forwards in flight.
struct ForwardPermit<'a> {
    metrics: &'a DnsMetrics,
    _permit: SemaphorePermit<'a>,
}

impl Drop for ForwardPermit<'_> {
    fn drop(&mut self) {
        self.metrics.forward_ends();
    }
}

async fn exchange_udp(
    server: SocketAddr,
    query: &[u8],
    is_reply: impl Fn(&[u8]) -> bool,
) -> io::Result<Vec<u8>> {
    let any: SocketAddr = match server {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).await?;
    // Connected: the kernel drops what comes from elsewhere and tells us of ICMP errors.
    socket.connect(server).await?;
    socket.send(query).await?;
    let mut buffer = vec![0; 4096];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if is_reply(&buffer[..length]) {
            buffer.truncate(length);
            return Ok(buffer);
        }
    }
}

async fn exchange_tcp(server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    stream.set_nodelay(true)?;
    let length = u16::try_from(query.len()).map_err(io::Error::other)?;
    let mut framed = length.to_be_bytes().to_vec();
    framed.extend_from_slice(query);
    stream.write_all(&framed).await?;
    let length = usize::from(stream.read_u16().await?);
    if length < HEADER {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "shorter than a header"));
    }
    let mut reply = vec![0; length];
    stream.read_exact(&mut reply).await?;
    Ok(reply)
}
