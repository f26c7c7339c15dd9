//! Both doors, with their limits.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use shoal_api::pb::bootstrap_server::BootstrapServer;
use shoal_api::pb::ca_server::CaServer;
use shoal_api::pb::control_server::ControlServer;
use shoal_api::pb::dispatcher_server::DispatcherServer;
use tokio::net::{TcpListener, UnixListener};
use tokio::task::JoinHandle;
use tonic::transport::Server;
use tonic::transport::server::Router;
use tower::layer::util::{Identity, Stack};

use crate::api::ControlService;
use crate::authz::AuthzLayer;
use crate::ca::service::{BootstrapService, CaService};
use crate::dispatcher::DispatcherService;
use crate::manager::Manager;
use crate::raft::RaftNode;
use crate::raft::service::RaftService;
use crate::tls::acceptor::{accept_local, accept_tls};

const STREAMS_PER_CONNECTION: u32 = 128;
const HEADER_BYTES: u32 = 16 << 10;
const MESSAGE_BYTES: usize = 4 << 20;
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

type Guarded = Server<Stack<AuthzLayer, Identity>>;

fn limited(manager: &Manager) -> Guarded {
    let authz = AuthzLayer::new(manager.consensus.state(), Arc::clone(&manager.counters));
    Server::builder()
        .max_concurrent_streams(STREAMS_PER_CONNECTION)
        .http2_max_header_list_size(HEADER_BYTES)
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .layer(authz)
}

fn control(manager: &Arc<Manager>) -> ControlServer<ControlService> {
    ControlServer::new(ControlService(Arc::clone(manager)))
        .max_decoding_message_size(MESSAGE_BYTES)
        .max_encoding_message_size(MESSAGE_BYTES)
}

fn remote_services(manager: &Arc<Manager>, raft: Arc<RaftNode>) -> Router<Stack<AuthzLayer, Identity>> {
    let ca = CaServer::new(CaService(Arc::clone(manager))).max_decoding_message_size(MESSAGE_BYTES);
    let dispatcher = DispatcherServer::new(DispatcherService(Arc::clone(manager)))
        .max_decoding_message_size(MESSAGE_BYTES)
        .max_encoding_message_size(MESSAGE_BYTES);
    limited(manager)
        .add_service(ca)
        .add_service(dispatcher)
        .add_service(control(manager))
        .add_service(RaftService::server(raft))
}

/// Serves the control port until the manager stops.
pub fn serve_remote(
    manager: &Arc<Manager>,
    raft: Arc<RaftNode>,
    listener: TcpListener,
    tls: Arc<ServerConfig>,
) -> JoinHandle<()> {
    let stop = manager.stop.clone();
    let connections = accept_tls(listener, tls, Arc::clone(&manager.counters), stop.clone());
    let services = remote_services(manager, raft);
    tokio::spawn(async move {
        let served = services.serve_with_incoming_shutdown(connections, stop.cancelled_owned()).await;
        if let Err(error) = served {
            tracing::error!(%error, "the control port is no longer served");
        }
    })
}

/// Serves the local socket until the manager stops.
pub fn serve_local(manager: &Arc<Manager>, listener: UnixListener) -> JoinHandle<()> {
    let stop = manager.stop.clone();
    let connections = accept_local(listener, stop.clone());
    let bootstrap =
        BootstrapServer::new(BootstrapService(Arc::clone(manager))).max_decoding_message_size(MESSAGE_BYTES);
    let services = limited(manager).add_service(control(manager)).add_service(bootstrap);
    tokio::spawn(async move {
        let served = services.serve_with_incoming_shutdown(connections, stop.cancelled_owned()).await;
        if let Err(error) = served {
            tracing::error!(%error, "the local socket is no longer served");
        }
    })
}

/// Makes the local socket. It appears under its name with its mode, replacing what an earlier life left there.
pub fn bind_local(path: &Path) -> io::Result<UnixListener> {
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(".new");
    let fresh = PathBuf::from(fresh);
    match std::fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&fresh)?;
    std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o660))?;
    std::fs::rename(&fresh, path)?;
    Ok(listener)
}
