//! Certificates over the wire: join with a token, renewal, and the local node's own.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use ring::digest::{SHA256, digest};
use ring::hmac;
use shoal_api::pb;
use shoal_api::pb::bootstrap_server::Bootstrap;
use shoal_api::pb::ca_server::Ca;
use shoal_api::status::ApiError;
use shoal_core::command::Join;
use shoal_core::{Command, Outcome, Rejection};
use shoal_types::pki::CertRole;
use shoal_types::{ErrorCode, NodeId, TokenId};
use tonic::{Request, Response, Status};

use crate::authz::Caller;
use crate::ca::{CaError, RequestedKey};
use crate::clock;
use crate::manager::{Manager, rejection};
use crate::metrics;
use crate::seal;

const HOSTNAME_LIMIT: usize = 253;

/// Join and renewal, on the control port.
pub struct CaService(pub Arc<Manager>);

/// The local node's certificate, on the local socket.
pub struct BootstrapService(pub Arc<Manager>);

fn internal(error: &dyn std::error::Error) -> Status {
    tracing::error!(%error, "certificate not issued");
    ApiError::new(ErrorCode::Internal, error.to_string()).into()
}

fn ca_error(error: &CaError) -> Status {
    match error {
        CaError::Request(_) => ApiError::new(ErrorCode::InvalidField, format!("csr_der: {error}"))
            .with_help("send a PKCS#10 request with an ECDSA P-256 key, signed by that key")
            .into(),
        other => internal(other),
    }
}

impl Manager {
    fn certificate(
        &self,
        key: &RequestedKey,
        node: &NodeId,
        role: CertRole,
    ) -> Result<pb::Certificate, Status> {
        let view = self.now();
        let member = view.state.nodes().get(node).ok_or_else(|| {
            Status::from(ApiError::new(ErrorCode::NotMember, format!("node {node} is not in the cluster")))
        })?;
        let authority = self.authority()?;
        let cert = authority.issue(key, node, role, clock::now()).map_err(|e| ca_error(&e))?;
        let node_role = pb::NodeRole::from(member.role);
        tracing::info!(%node, %role, "certificate issued");
        Ok(pb::Certificate {
            node_id: node.to_string(),
            cluster_id: authority.cluster().to_string(),
            node_name: member.name.to_string(),
            role: node_role.into(),
            cert_der: cert.to_vec(),
            ca_der: authority.cert().to_vec(),
            manager_addrs: self.manager_addrs(),
        })
    }

    /// Proves a join secret without telling by time how much of it was right, and not too often.
    fn prove(&self, token: &TokenId, secret_sha256: &[u8; 32]) -> Result<(), Status> {
        let view = self.now();
        let unknown = || Status::from(rejection(Rejection::TokenUnknown { id: token.clone() }));
        let stored = view.state.tokens().get(token).ok_or_else(unknown)?;
        if !self.meter.admit(token, Instant::now()) {
            self.counters.joins_metered.fetch_add(1, Ordering::Relaxed);
            return Err(ApiError::new(
                ErrorCode::TokenUnknown,
                format!("join token '{token}' is tried too often"),
            )
            .with_help("try again in a second")
            .into());
        }
        self.meter.retain(|id| view.state.tokens().contains_key(id));
        // Equal tags under a fresh key mean equal digests; the comparison inside is constant-time.
        let key: [u8; 32] = seal::random().map_err(|e| internal(&e))?;
        let key = hmac::Key::new(hmac::HMAC_SHA256, &key);
        let tag = hmac::sign(&key, &stored.secret_sha256);
        hmac::verify(&key, secret_sha256, tag.as_ref()).map_err(|_| unknown())
    }

    async fn join(&self, request: pb::JoinRequest, from: IpAddr) -> Result<pb::Certificate, Status> {
        let token: TokenId = request
            .token_id
            .parse()
            .map_err(|e| Status::from(ApiError::new(ErrorCode::TokenMalformed, format!("token_id: {e}"))))?;
        let secret_sha256 = sha256(&[&request.secret]);
        self.prove(&token, &secret_sha256)?;
        let key = RequestedKey::from_csr(&request.csr_der).map_err(|e| ca_error(&e))?;
        let data_addr: IpAddr = if request.data_addr.is_empty() {
            from
        } else {
            request.data_addr.parse().map_err(|_| {
                Status::from(ApiError::new(
                    ErrorCode::InvalidField,
                    format!("data_addr: '{}' is not an IP address", request.data_addr),
                ))
            })?
        };
        if request.hostname.len() > HOSTNAME_LIMIT {
            return Err(ApiError::new(ErrorCode::InvalidField, "hostname: longer than 253 bytes").into());
        }
        // The id of a request is what a retry has in common: somebody without this secret and this key can't be
        // answered as if he had made it.
        let retry = sha256(&[&secret_sha256, request.request_id.as_bytes(), &request.csr_der]);
        let request_id = format!("join-{token}-{}", hex(&retry));
        let node = NodeId::from_entropy(seal::entropy().map_err(|e| internal(&e))?);
        let command = Command::Join(Box::new(Join {
            token,
            secret_sha256,
            node,
            name_hint: request.hostname,
            data_addr,
        }));
        match self.write(&request_id, command).await? {
            Outcome::Node { id, name } => {
                tracing::info!(node = %id, %name, %data_addr, "a node joined");
                self.certificate(&key, &id, CertRole::Agent)
            }
            other => Err(Status::internal(format!("unexpected outcome of a join: {other:?}"))),
        }
    }
}

fn sha256(parts: &[&[u8]]) -> [u8; 32] {
    // One part is hashed as it is; several are joined with their lengths, so that no two lists read the same.
    let joined = match parts {
        [only] => only.to_vec(),
        parts => parts.iter().flat_map(|p| [&(p.len() as u64).to_be_bytes()[..], p].concat()).collect(),
    };
    let hash = digest(&SHA256, &joined);
    hash.as_ref().first_chunk().copied().unwrap_or_default()
}

fn hex(bytes: &[u8]) -> String {
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    digits.filter_map(|digit| char::from_digit(digit.into(), 16)).collect()
}

#[tonic::async_trait]
impl Ca for CaService {
    async fn join(&self, request: Request<pb::JoinRequest>) -> Result<Response<pb::Certificate>, Status> {
        let from = match request.extensions().get::<Caller>() {
            Some(Caller::Anonymous { addr }) => addr.ip().to_canonical(),
            _ => return Err(Status::internal("a join without a remote peer")),
        };
        let joined = self.0.join(request.into_inner(), from).await;
        let counters = &self.0.counters;
        match &joined {
            Ok(_) => counters.joins.fetch_add(1, Ordering::Relaxed),
            Err(status) => {
                tracing::warn!(%from, reason = status.message(), "join refused");
                counters.joins_refused.fetch_add(1, Ordering::Relaxed)
            }
        };
        joined.map(Response::new)
    }

    async fn renew(&self, request: Request<pb::RenewRequest>) -> Result<Response<pb::Certificate>, Status> {
        let identity = match request.extensions().get::<Caller>() {
            Some(Caller::Node(identity)) => Arc::clone(identity),
            _ => return Err(Status::internal("a renewal without an identity")),
        };
        let key = RequestedKey::from_csr(&request.get_ref().csr_der).map_err(|e| ca_error(&e))?;
        self.0.certificate(&key, &identity.node, identity.role).map(Response::new)
    }
}

#[tonic::async_trait]
impl Bootstrap for BootstrapService {
    async fn issue_local(
        &self,
        request: Request<pb::RenewRequest>,
    ) -> Result<Response<pb::Certificate>, Status> {
        let key = RequestedKey::from_csr(&request.get_ref().csr_der).map_err(|e| ca_error(&e))?;
        self.0.certificate(&key, &self.0.own, CertRole::Agent).map(Response::new)
    }

    async fn metrics(&self, _request: Request<pb::Empty>) -> Result<Response<pb::MetricsText>, Status> {
        Ok(Response::new(pb::MetricsText { text: metrics::text(&self.0) }))
    }
}
