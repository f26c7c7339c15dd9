//! The two doors of a manager as streams of connections that know who is behind them.
//!
//! TCP: handshakes run in tasks, bounded in number and time, so that a slow or hostile peer holds up nobody; who shows no
//! certificate has one of a few [`seats`], and not for long. The certificate that TLS verified is read once, here. Unix
//! socket: the file's permission is the authority.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Instant, Sleep};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;

use crate::authz::Peer;
use crate::ca::identity::Identity;
use crate::counters::Counters;

mod seats;

use seats::{Full, Seat, Seats};

/// For a handshake, with the wait for its turn.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// With a certificate. Those without have seats.
const CONNECTIONS: usize = 4096;
/// A connection without a certificate is for joining and ends then.
const STRANGER_LIFE: Duration = Duration::from_mins(1);
/// After a failed accept (no file descriptors left), so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Between two lines about connections that were refused.
const REFUSAL_PAUSE: Duration = Duration::from_secs(1);
const BACKLOG: usize = 16;

/// A connection with what is known of its other end.
pub struct Conn<S> {
    stream: S,
    peer: Peer,
    stranger: Option<Stranger>,
    _permit: Option<OwnedSemaphorePermit>,
}

/// What a connection without a certificate has: a place, and an end.
struct Stranger {
    _seat: Seat,
    end: Pin<Box<Sleep>>,
}

impl<S> Conn<S> {
    fn of_stranger(stream: S, peer: Peer, seat: Seat) -> Self {
        let end = Box::pin(tokio::time::sleep(STRANGER_LIFE));
        Self { stream, peer, stranger: Some(Stranger { _seat: seat, end }), _permit: None }
    }

    /// An error when its time is over. Asked with every read and write: who takes nothing keeps a server writing, and who
    /// says nothing keeps it reading.
    fn in_time(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if let Some(stranger) = &mut self.stranger
            && stranger.end.as_mut().poll(cx).is_ready()
        {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "too long without a certificate"));
        }
        Ok(())
    }
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
        self.in_time(cx)?;
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Conn<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.in_time(cx)?;
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.in_time(cx)?;
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
        self.in_time(cx)?;
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }
    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
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
        connections: Arc::new(Semaphore::new(CONNECTIONS)),
        seats: Seats::default(),
        counters,
        ready,
    };
    let mut refusals = Refusals::default();
    tokio::spawn(async move {
        loop {
            // Cancel safe: a connection that was not accepted stays in the kernel's queue.
            let accepted = tokio::select! {
                () = stop.cancelled() => return,
                () = door.ready.closed() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                // Nothing is waited for here: the next in the queue may be a node.
                Ok((tcp, addr)) => match door.seats.take(addr.ip()) {
                    Ok(seat) => drop(tokio::spawn(door.clone().admit(tcp, addr, seat))),
                    Err(full) => {
                        door.counters.connections_refused.fetch_add(1, Ordering::Relaxed);
                        refusals.note(addr, full);
                    }
                },
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    });
    ReceiverStream::new(connections)
}

/// Says that connections are refused, but not for each of a flood.
#[derive(Default)]
struct Refusals {
    said: Option<Instant>,
    unsaid: u64,
}

impl Refusals {
    fn note(&mut self, peer: SocketAddr, reason: Full) {
        if self.said.is_some_and(|at| at.elapsed() < REFUSAL_PAUSE) {
            self.unsaid += 1;
            return;
        }
        tracing::warn!(%peer, %reason, others = self.unsaid, "connection refused");
        *self = Self { said: Some(Instant::now()), unsaid: 0 };
    }
}

#[derive(Clone)]
struct Door {
    acceptor: TlsAcceptor,
    connections: Arc<Semaphore>,
    seats: Seats,
    counters: Arc<Counters>,
    ready: mpsc::Sender<io::Result<Conn<TlsStream<TcpStream>>>>,
}

impl Door {
    async fn admit(self, tcp: TcpStream, addr: SocketAddr, seat: Seat) {
        let in_turn = async {
            let _turn = seat.turn().await;
            handshake_with(&self.acceptor, tcp, addr).await
        };
        let shaken = tokio::time::timeout(HANDSHAKE_TIMEOUT, in_turn).await;
        match shaken {
            Ok(Ok((stream, peer))) => {
                let Some(conn) = self.seated(stream, peer, seat) else {
                    self.counters.connections_refused.fetch_add(1, Ordering::Relaxed);
                    tracing::warn!(peer = %addr, "refused: {CONNECTIONS} connections are open");
                    return;
                };
                // The server is gone when this fails.
                drop(self.ready.send(Ok(conn)).await);
            }
            Ok(Err(error)) => {
                self.counters.tls_failures.fetch_add(1, Ordering::Relaxed);
                tracing::info!(peer = %addr, %error, "TLS handshake failed");
            }
            Err(_) => {
                self.counters.tls_failures.fetch_add(1, Ordering::Relaxed);
                tracing::info!(peer = %addr, "TLS handshake took too long");
            }
        }
    }

    /// Who has shown a certificate gives the seat back, as nodes of the cluster may share an address.
    fn seated<S>(&self, stream: S, peer: Peer, seat: Seat) -> Option<Conn<S>> {
        if !matches!(peer, Peer::Remote { identity: Some(_), .. }) {
            return Some(Conn::of_stranger(stream, peer, seat));
        }
        let permit = Arc::clone(&self.connections).try_acquire_owned().ok()?;
        Some(Conn { stream, peer, stranger: None, _permit: Some(permit) })
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
                Ok(Conn { stream, peer: Peer::Local { uid, owner }, stranger: None, _permit: None })
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

#[cfg(test)]
mod tests;
