//! Dialling a manager: TCP, TLS with the cluster's CA, gRPC with keepalive.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use shoal_types::NodeId;
use shoal_types::pki::node_server_name;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint, Uri};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Why no channel could be made. Dialling itself happens later and fails the calls.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// Not `ADDR:PORT`.
    #[error("'{0}' is not ADDR:PORT")]
    Address(String),
    /// Not a DNS name.
    #[error("'{0}' is no name of a TLS server")]
    Name(String),
}

/// A channel to the manager of one node, dialled when it is first used and again whenever it breaks.
pub fn channel_to_node(tls: &Arc<ClientConfig>, addr: &str, node: &NodeId) -> Result<Channel, DialError> {
    channel(tls, addr, &node_server_name(node))
}

/// A channel to a manager that shows a certificate with this name.
pub fn channel(tls: &Arc<ClientConfig>, addr: &str, name: &str) -> Result<Channel, DialError> {
    let addr: SocketAddr = addr.parse().map_err(|_| DialError::Address(addr.to_owned()))?;
    let name = ServerName::try_from(name.to_owned()).map_err(|_| DialError::Name(name.to_owned()))?;
    let connector = TlsConnector::from(Arc::clone(tls));
    // TLS is ours, so that certificates can be swapped; the library sees a plain URI.
    let endpoint = Endpoint::from_static("http://manager.shoal")
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true);
    Ok(endpoint.connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
        let (connector, name) = (connector.clone(), name.clone());
        async move {
            let tcp = TcpStream::connect(addr).await?;
            tcp.set_nodelay(true)?;
            let stream = connector.connect(name, tcp).await?;
            Ok::<_, io::Error>(TokioIo::new(stream))
        }
    })))
}
