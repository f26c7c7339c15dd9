//! Who may call what: one rule per RPC, everything else is refused.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use futures_util::future::{Either, Ready, ready};
use shoal_api::status::ApiError;
use shoal_core::State;
use shoal_types::object::NodeRole;
use shoal_types::pki::CertRole;
use shoal_types::{ErrorCode, NodeId};
use tokio::sync::watch;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http;
use tower::{Layer, Service};

use crate::ca::identity::Identity;
use crate::clock;
use crate::consensus::StateView;
use crate::counters::Counters;

/// The other end of a connection.
#[derive(Debug, Clone)]
pub enum Peer {
    /// Over the local socket.
    Local {
        /// User of the process there.
        uid: u32,
        /// Whether that is root or the manager's own user, and not a member of the socket's group.
        owner: bool,
    },
    /// Over TLS.
    Remote {
        /// Where from.
        addr: SocketAddr,
        /// Subject of the certificate it showed, which TLS has verified.
        identity: Option<Arc<Identity>>,
    },
}

/// Who calls, after the rules have been asked. Found in the extensions of every request that reaches a service.
#[derive(Debug, Clone)]
pub enum Caller {
    /// Somebody who may open the local socket.
    Admin {
        /// User of the process there.
        uid: u32,
    },
    /// A node of the cluster.
    Node(Arc<Identity>),
    /// Nobody known.
    Anonymous {
        /// Where from.
        addr: SocketAddr,
    },
}

/// What a call asks of its caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// Nothing: the call carries its own proof.
    Anyone,
    /// A certificate of a node of this cluster.
    Node,
    /// A manager's certificate, or the local socket.
    Manager,
    /// A manager's certificate. A manager that has not caught up knows no other, so membership is only asked for what
    /// it excludes: nodes that were removed.
    Raft,
    /// The local socket, and there root, as the daemon beside the manager is. The socket's group may do what operators do,
    /// but not get a node's certificate for a key of its own.
    Daemon,
    /// Not served by a manager.
    Nobody,
}

/// The rule of each RPC there is. A test compares this with the protobuf files.
pub const RULES: &[(&str, Rule)] = &[
    ("/shoal.v1.Bootstrap/IssueLocal", Rule::Daemon),
    ("/shoal.v1.Bootstrap/Metrics", Rule::Daemon),
    ("/shoal.v1.Ca/Join", Rule::Anyone),
    ("/shoal.v1.Ca/Renew", Rule::Node),
    ("/shoal.v1.Control/CreateNetwork", Rule::Manager),
    ("/shoal.v1.Control/CreateService", Rule::Manager),
    ("/shoal.v1.Control/CreateToken", Rule::Manager),
    ("/shoal.v1.Control/GetCluster", Rule::Manager),
    ("/shoal.v1.Control/ListNetworks", Rule::Manager),
    ("/shoal.v1.Control/ListNodes", Rule::Manager),
    ("/shoal.v1.Control/ListServices", Rule::Manager),
    ("/shoal.v1.Control/ListTasks", Rule::Manager),
    ("/shoal.v1.Control/ListTokens", Rule::Manager),
    ("/shoal.v1.Control/RemoveNetwork", Rule::Manager),
    ("/shoal.v1.Control/RemoveNode", Rule::Manager),
    ("/shoal.v1.Control/RemoveService", Rule::Manager),
    ("/shoal.v1.Control/RemoveToken", Rule::Manager),
    ("/shoal.v1.Control/ScaleService", Rule::Manager),
    ("/shoal.v1.Control/ServiceLogs", Rule::Manager),
    ("/shoal.v1.Control/UpdateCluster", Rule::Manager),
    ("/shoal.v1.Control/UpdateNode", Rule::Manager),
    ("/shoal.v1.Control/UpdateService", Rule::Manager),
    ("/shoal.v1.Control/WatchService", Rule::Manager),
    ("/shoal.v1.Dispatcher/Leave", Rule::Node),
    ("/shoal.v1.Dispatcher/Session", Rule::Node),
    ("/shoal.v1.Node/Diagnose", Rule::Nobody),
    ("/shoal.v1.Node/Info", Rule::Nobody),
    ("/shoal.v1.Node/Init", Rule::Nobody),
    ("/shoal.v1.Node/Join", Rule::Nobody),
    ("/shoal.v1.Node/Leave", Rule::Nobody),
    ("/shoal.v1.Raft/Append", Rule::Raft),
    ("/shoal.v1.Raft/Forward", Rule::Raft),
    ("/shoal.v1.Raft/InstallSnapshot", Rule::Raft),
    ("/shoal.v1.Raft/Vote", Rule::Raft),
];

/// Why a call is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Denial {
    /// No rule, or one that nobody meets.
    #[error("this call is not open to anyone")]
    NoRule,
    /// No certificate where one is needed.
    #[error("this call needs a certificate of the cluster")]
    NoCertificate,
    /// The certificate is of another cluster.
    #[error("the certificate is of another cluster")]
    OtherCluster,
    /// The life of the certificate ended while the connection was open.
    #[error("the certificate has expired")]
    Expired,
    /// The node was removed.
    #[error("node {0} is not in the cluster (any more)")]
    NotMember(NodeId),
    /// The role is too small.
    #[error(
        "an identity with role '{0}' may not make this call; it needs a manager's, or the manager's local socket"
    )]
    Role(CertRole),
    /// Only over the local socket.
    #[error("this call is open on the manager's local socket only")]
    NotLocal,
    /// Only for root.
    #[error("this call is open to root only; it was user {0} who made it")]
    NotRoot(u32),
}

/// Decides by the rules and the state.
pub fn decide(path: &str, peer: &Peer, state: &State) -> Result<Caller, Denial> {
    let rule = RULES.iter().find(|(known, _)| *known == path).map_or(Rule::Nobody, |(_, rule)| *rule);
    let (addr, identity) = match peer {
        Peer::Local { uid, owner } => {
            return match rule {
                Rule::Daemon if !owner => Err(Denial::NotRoot(*uid)),
                Rule::Manager | Rule::Daemon => Ok(Caller::Admin { uid: *uid }),
                Rule::Anyone | Rule::Node | Rule::Raft => Err(Denial::NoCertificate),
                Rule::Nobody => Err(Denial::NoRule),
            };
        }
        Peer::Remote { addr, identity } => (*addr, identity.as_ref()),
    };
    match rule {
        Rule::Nobody => Err(Denial::NoRule),
        Rule::Daemon => Err(Denial::NotLocal),
        Rule::Anyone => Ok(Caller::Anonymous { addr }),
        Rule::Node | Rule::Manager | Rule::Raft => {
            let identity = identity.ok_or(Denial::NoCertificate)?;
            check_identity(identity, state)?;
            if rule != Rule::Node && identity.role != CertRole::Manager {
                return Err(Denial::Role(identity.role));
            }
            if rule != Rule::Raft {
                check_member(identity, state)?;
            }
            Ok(Caller::Node(Arc::clone(identity)))
        }
    }
}

fn check_identity(identity: &Identity, state: &State) -> Result<(), Denial> {
    if state.cluster().is_some_and(|cluster| cluster.id != identity.cluster) {
        return Err(Denial::OtherCluster);
    }
    if identity.not_after < clock::now() {
        return Err(Denial::Expired);
    }
    if state.denied_until(&identity.node).is_some() {
        return Err(Denial::NotMember(identity.node.clone()));
    }
    Ok(())
}

fn check_member(identity: &Identity, state: &State) -> Result<(), Denial> {
    let node = state.nodes().get(&identity.node).ok_or_else(|| Denial::NotMember(identity.node.clone()))?;
    if identity.role == CertRole::Manager && node.role != NodeRole::Manager {
        return Err(Denial::Role(CertRole::Agent));
    }
    Ok(())
}

/// Whether an operator's call changes anything; who asked for that goes into the log.
fn changes(path: &str) -> bool {
    let call = path.strip_prefix("/shoal.v1.Control/");
    call.is_some_and(|call| {
        !["Get", "List", "Watch", "ServiceLogs"].iter().any(|read| call.starts_with(read))
    })
}

/// Puts [`decide`] in front of every call.
#[derive(Clone)]
pub struct AuthzLayer {
    state: watch::Receiver<StateView>,
    counters: Arc<Counters>,
}

impl AuthzLayer {
    /// Asks this state.
    pub fn new(state: watch::Receiver<StateView>, counters: Arc<Counters>) -> Self {
        Self { state, counters }
    }

    fn admit(&self, request: &mut http::Request<Body>) -> Result<(), Status> {
        let path = request.uri().path();
        let Some(peer) = request.extensions().get::<Peer>() else {
            return Err(Status::internal("a connection without a peer"));
        };
        let state = Arc::clone(&self.state.borrow().state);
        match decide(path, peer, &state) {
            Ok(caller) => {
                if changes(path) {
                    tracing::info!(path, ?caller, "change asked for");
                } else {
                    tracing::debug!(path, ?caller, "call");
                }
                request.extensions_mut().insert(caller);
                Ok(())
            }
            Err(denial) => {
                self.counters.authz_denied.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(path, ?peer, %denial, "call refused");
                Err(ApiError::new(ErrorCode::PermissionDenied, denial.to_string()).into())
            }
        }
    }
}

impl<S> Layer<S> for AuthzLayer {
    type Service = Authz<S>;
    fn layer(&self, inner: S) -> Authz<S> {
        Authz { inner, rules: self.clone() }
    }
}

/// See [`AuthzLayer`].
#[derive(Clone)]
pub struct Authz<S> {
    inner: S,
    rules: AuthzLayer,
}

impl<S> Service<http::Request<Body>> for Authz<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Either<Ready<Result<Self::Response, Self::Error>>, S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        match self.rules.admit(&mut request) {
            Ok(()) => Either::Right(self.inner.call(request)),
            Err(status) => Either::Left(ready(Ok(status.into_http()))),
        }
    }
}

#[cfg(test)]
mod tests;
