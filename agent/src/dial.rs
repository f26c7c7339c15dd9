//! Channels to managers: over TLS of our own making, or over a manager's local socket.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use shoal_types::pki::MANAGER_SERVER_NAME;
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint, Error};
use tower::service_fn;

/// Connecting and shaking hands may take so long.
const CONNECT: Duration = Duration::from_secs(5);
/// A connection that says nothing for so long is asked...
const KEEPALIVE: Duration = Duration::from_secs(2);
/// ...and cut if it does not answer within this time. Sessions notice a silent manager earlier by themselves.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(8);

/// Connects to an address over TLS.
pub async fn tls(address: SocketAddr, config: Arc<ClientConfig>) -> io::Result<TlsStream<TcpStream>> {
    let connect = async {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        // Few packets are ever under way: one that is lost again and again is sent at a steady pace, not after pauses
        // that double until they are silence.
        socket2::SockRef::from(&stream).set_tcp_thin_linear_timeouts(true)?;
        let name = ServerName::try_from(MANAGER_SERVER_NAME).map_err(io::Error::other)?;
        TlsConnector::from(config).connect(name, stream).await
    };
    timeout(CONNECT, connect).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

/// A channel over one connection that is there; it does not reconnect, as the caller decides where to go next.
pub async fn over(stream: TlsStream<TcpStream>) -> Result<Channel, Error> {
    let stream = Mutex::new(Some(stream));
    let connector = service_fn(move |_uri| {
        let stream = stream.lock().unwrap_or_else(PoisonError::into_inner).take();
        async move { stream.map(TokioIo::new).ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected)) }
    });
    // The connector does the TLS: to the library this is plain HTTP/2.
    endpoint().connect_with_connector(connector).await
}

/// A channel over a local socket.
pub async fn local(socket: &Path) -> Result<Channel, Error> {
    let socket: PathBuf = socket.to_owned();
    let connector = service_fn(move |_uri| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    endpoint().connect_with_connector(connector).await
}

fn endpoint() -> Endpoint {
    Endpoint::from_static("http://manager.shoal")
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
}
