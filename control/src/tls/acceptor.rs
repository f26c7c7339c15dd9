//! The two doors of a manager as streams of connections that know who is behind them.
//!
//! TCP: handshakes run in tasks, bounded in number and time, so that a slow or hostile peer holds up nobody; the
//! certificate that TLS verified is read once, here. Unix socket: the file's permission is the authority.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;

use crate::authz::Peer;
use crate::ca::identity::Identity;
use crate::counters::Counters;

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
const HANDSHAKES: usize = 64;
const CONNECTIONS: usize = 4096;
/// Of one address, before and without a certificate.
const CONNECTIONS_PER_PEER: usize = 64;
/// After a failed accept (no file descriptors left), so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
const BACKLOG: usize = 16;

/// A connection with what is known of its other end.
pub struct Conn<S> {
    stream: S,
    peer: Peer,
    _seat: Option<Seat>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl<S> Connected for Conn<S> {
    type ConnectInfo = Peer;
    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Conn<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Conn<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }
    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

/// How many connections each address has.
type Seats = Arc<Mutex<BTreeMap<IpAddr, usize>>>;

/// A place among the connections of one address that nobody has vouched for; given back when dropped.
struct Seat {
    addr: IpAddr,
    seats: Seats,
}

impl Seat {
    fn take(addr: IpAddr, seats: &Seats) -> Option<Self> {
        let mut taken = seats.lock().unwrap_or_else(PoisonError::into_inner);
        let count = taken.entry(addr).or_default();
        if *count >= CONNECTIONS_PER_PEER {
            return None;
        }
        *count += 1;
        Some(Self { addr, seats: Arc::clone(seats) })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.seats.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = taken.get_mut(&self.addr) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.addr);
            }
        }
    }
}

/// Connections of the control port, each after its handshake.
pub type TlsConnections = ReceiverStream<io::Result<Conn<TlsStream<TcpStream>>>>;

/// Accepts on the control port until stopped.
pub fn accept_tls(
    listener: TcpListener,
    config: Arc<ServerConfig>,
    counters: Arc<Counters>,
    stop: CancellationToken,
) -> TlsConnections {
    let (ready, connections) = mpsc::channel(BACKLOG);
    let door = Door {
        acceptor: TlsAcceptor::from(config),
        handshakes: Arc::new(Semaphore::new(HANDSHAKES)),
        connections: Arc::new(Semaphore::new(CONNECTIONS)),
        seats: Seats::default(),
        counters,
        ready,
    };
    tokio::spawn(async move {
        loop {
            // Cancel safe: a connection that was not accepted stays in the kernel's queue.
            let accepted = tokio::select! {
                () = stop.cancelled() => return,
                () = door.ready.closed() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((tcp, addr)) => door.admit(tcp, addr).await,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    });
    ReceiverStream::new(connections)
}

struct Door {
    acceptor: TlsAcceptor,
    handshakes: Arc<Semaphore>,
    connections: Arc<Semaphore>,
    seats: Seats,
    counters: Arc<Counters>,
    ready: mpsc::Sender<io::Result<Conn<TlsStream<TcpStream>>>>,
}

impl Door {
    async fn admit(&self, tcp: TcpStream, addr: SocketAddr) {
        // Neither semaphore is ever closed. All handshakes end within their time-out, so this waits no longer.
        let Ok(handshake) = Arc::clone(&self.handshakes).acquire_owned().await else { return };
        let Ok(permit) = Arc::clone(&self.connections).try_acquire_owned() else {
            tracing::warn!(peer = %addr, "refused: {CONNECTIONS} connections are open");
            return;
        };
        let Some(seat) = Seat::take(addr.ip().to_canonical(), &self.seats) else {
            tracing::warn!(peer = %addr, "refused: this address has {CONNECTIONS_PER_PEER} connections");
            return;
        };
        let (acceptor, ready, counters) =
            (self.acceptor.clone(), self.ready.clone(), Arc::clone(&self.counters));
        tokio::spawn(async move {
            let shaken = tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake_with(&acceptor, tcp, addr)).await;
            drop(handshake);
            match shaken {
                Ok(Ok((stream, peer))) => {
                    // Nodes of the cluster may share an address.
                    let known = matches!(peer, Peer::Remote { identity: Some(_), .. });
                    let seat = (!known).then_some(seat);
                    // The server is gone when this fails.
                    drop(ready.send(Ok(Conn { stream, peer, _seat: seat, _permit: Some(permit) })).await);
                }
                Ok(Err(error)) => {
                    counters.tls_failures.fetch_add(1, Ordering::Relaxed);
                    tracing::info!(peer = %addr, %error, "TLS handshake failed");
                }
                Err(_) => {
                    counters.tls_failures.fetch_add(1, Ordering::Relaxed);
                    tracing::info!(peer = %addr, "TLS handshake took too long");
                }
            }
        });
    }
}

async fn handshake_with(
    acceptor: &TlsAcceptor,
    tcp: TcpStream,
    addr: SocketAddr,
) -> io::Result<(TlsStream<TcpStream>, Peer)> {
    tcp.set_nodelay(true)?;
    // As nodes do: lost packets of a stream with few are sent again at a steady pace, not ever more slowly.
    socket2::SockRef::from(&tcp).set_tcp_thin_linear_timeouts(true)?;
    let stream = acceptor.accept(tcp).await?;
    let (_, session) = stream.get_ref();
    let identity = match session.peer_certificates().and_then(<[_]>::first) {
        Some(cert) => {
            let identity = Identity::from_der(cert).map_err(io::Error::other)?;
            Some(Arc::new(identity))
        }
        None => None,
    };
    Ok((stream, Peer::Remote { addr, identity }))
}

/// Connections of the local socket.
pub type LocalConnections = ReceiverStream<io::Result<Conn<UnixStream>>>;

/// Accepts on the local socket until stopped.
pub fn accept_local(listener: UnixListener, stop: CancellationToken) -> LocalConnections {
    let (ready, connections) = mpsc::channel(BACKLOG);
    let own = std::fs::metadata("/proc/self").map(|process| process.uid()).ok();
    tokio::spawn(async move {
        loop {
            // Cancel safe: a connection that was not accepted stays in the kernel's queue.
            let accepted = tokio::select! {
                () = stop.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            let conn = accepted.and_then(|(stream, _)| {
                let uid = stream.peer_cred()?.uid();
                let owner = uid == 0 || own == Some(uid);
                Ok(Conn { stream, peer: Peer::Local { uid, owner }, _seat: None, _permit: None })
            });
            match conn {
                Ok(conn) => {
                    if ready.send(Ok(conn)).await.is_err() {
                        return;
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a local connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    });
    ReceiverStream::new(connections)
}
