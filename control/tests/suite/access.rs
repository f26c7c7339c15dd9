//! Every RPC there is, tried with every kind of identity, over real TLS.

use std::sync::atomic::Ordering;

use rustls_pki_types::CertificateDer;
use shoal_api::pb;
use shoal_api::pb::ca_client::CaClient;
use shoal_control::authz::RULES;
use shoal_control::ca::{self, Authority, RequestedKey};
use shoal_control::clock;
use shoal_control::seal::DataKey;
use shoal_types::object::Cluster;
use shoal_types::pki::CertRole;
use shoal_types::{ClusterId, ErrorCode, NodeId};
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;

use crate::fixture::{Credentials, Fixture, code, csr, new_key};

/// Calls an RPC with an empty message. What is open answers something else than "permission denied".
async fn call(channel: &Channel, path: &'static str) -> Result<(), Status> {
    let mut grpc = Grpc::new(channel.clone());
    grpc.ready().await.map_err(|e| Status::unknown(e.to_string()))?;
    let codec: ProstCodec<pb::Empty, pb::Empty> = ProstCodec::default();
    let path = PathAndQuery::from_static(path);
    let call = grpc.unary(Request::new(pb::Empty {}), path, codec);
    // A stream that is open stays open.
    match tokio::time::timeout(std::time::Duration::from_millis(300), call).await {
        Ok(answer) => answer.map(|_| ()),
        Err(_) => Ok(()),
    }
}

fn issue(authority: &Authority, node: &NodeId, role: CertRole) -> Credentials {
    let key = new_key();
    let requested = RequestedKey::of(&key).expect("P-256");
    let cert = authority.issue(&requested, node, role, clock::now()).expect("issue");
    Credentials { node: node.to_string(), cert, key }
}

fn foreign() -> Authority {
    let data_key = DataKey::from_bytes(&[5; 32]).expect("random");
    let id = ClusterId::from_entropy(77);
    let made = ca::create(&id, &data_key, clock::now()).expect("CA");
    let cluster = Cluster {
        id,
        name: "other".parse().expect("literal"),
        created_at: clock::now(),
        data_port: 1,
        cert_lifetime_ms: 3_600_000,
        ca_cert_der: made.cert_der,
        ca_key_sealed: made.key_sealed,
        balancing: shoal_types::object::Balancing::default(),
    };
    Authority::open(&cluster, &data_key).expect("open")
}

/// What a kind of identity may call; the caller of a test's own view, not derived from the rules.
fn may(kind: &str, path: &str) -> bool {
    let open_to_all = path == "/shoal.v1.Ca/Join";
    let of_nodes = path == "/shoal.v1.Ca/Renew" || path.starts_with("/shoal.v1.Dispatcher/");
    let of_managers = path.starts_with("/shoal.v1.Control/") || path.starts_with("/shoal.v1.Raft/");
    match kind {
        "worker" => open_to_all || of_nodes,
        "manager" => open_to_all || of_nodes || of_managers,
        _ => open_to_all,
    }
}

/// Leaving works for whom it is open: it would end the identity under test.
fn harmful(path: &str) -> bool {
    path == "/shoal.v1.Dispatcher/Leave"
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_rpc_is_open_to_exactly_whom_it_should_be() {
    let fixture = Fixture::start().await;
    let manager = &fixture.running.manager;
    let authority = manager.authority().expect("is there");
    let worker = fixture.join("w1", "10.0.0.2").await;
    let removed = fixture.join("w2", "10.0.0.3").await;
    let removed_channel = fixture.with(&removed);
    // Connected before it was removed: the connection must not outlive the right.
    assert!(
        call(&removed_channel, "/shoal.v1.Ca/Renew").await.is_err_and(|s| s.code() != Code::PermissionDenied)
    );
    let request = pb::RemoveNodeRequest {
        target: removed.node.clone(),
        force: true,
        ..pb::RemoveNodeRequest::default()
    };
    fixture.control().await.remove_node(request).await.expect("removed");
    let own = manager.own.clone();
    let unknown = issue(authority, &NodeId::from_entropy(999), CertRole::Agent);
    let worker_id: NodeId = worker.node.parse().expect("an id");

    let cases = [
        ("none", fixture.anonymous()),
        ("worker", fixture.with(&worker)),
        ("manager", fixture.with(&issue(authority, &own, CertRole::Manager))),
        ("removed", removed_channel),
        ("removed again", fixture.with(&removed)),
        ("unknown node", fixture.with(&unknown)),
    ];
    let denied_before = manager.counters.authz_denied.load(Ordering::Relaxed);
    let mut denied = 0;
    for (kind, channel) in &cases {
        for (path, _) in RULES {
            let open = may(kind, path);
            if open && harmful(path) {
                continue;
            }
            let refused = call(channel, path).await.err().filter(|s| s.code() == Code::PermissionDenied);
            assert_eq!(refused.is_none(), open, "{kind} calls {path}: {refused:?}");
            if let Some(status) = refused {
                assert_eq!(code(&status), Some(ErrorCode::PermissionDenied), "{kind} calls {path}");
                denied += 1;
            }
        }
    }
    assert_eq!(
        manager.counters.authz_denied.load(Ordering::Relaxed) - denied_before,
        denied,
        "each is counted"
    );

    // A worker that says it is a manager: its request contributes a key, its certificate keeps its role.
    let key = new_key();
    let renewed = CaClient::new(fixture.with(&worker))
        .renew(pb::RenewRequest { csr_der: csr(&key) })
        .await
        .expect("renewed")
        .into_inner();
    assert_eq!(renewed.node_id, worker.node);
    let renewed = Credentials { node: renewed.node_id, cert: CertificateDer::from(renewed.cert_der), key };
    let refused =
        call(&fixture.with(&renewed), "/shoal.v1.Control/ListNodes").await.expect_err("still a worker");
    assert_eq!(refused.code(), Code::PermissionDenied);
    // A manager's certificate of a node that is a worker in the state.
    let promoted = issue(authority, &worker_id, CertRole::Manager);
    let refused =
        call(&fixture.with(&promoted), "/shoal.v1.Control/ListNodes").await.expect_err("not a manager");
    assert_eq!(refused.code(), Code::PermissionDenied);
    fixture.running.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_of_another_ca_or_another_time_do_not_get_through_the_handshake() {
    let fixture = Fixture::start().await;
    let manager = &fixture.running.manager;
    let authority = manager.authority().expect("is there");
    let key = new_key();
    let requested = RequestedKey::of(&key).expect("P-256");
    let cert =
        authority.issue_expired(&requested, &manager.own, CertRole::Manager, clock::now()).expect("issue");
    let expired = Credentials { node: manager.own.to_string(), cert, key };
    let foreign = issue(&foreign(), &manager.own, CertRole::Manager);
    for (kind, credentials) in [("foreign", &foreign), ("expired", &expired)] {
        let failures = manager.counters.tls_failures.load(Ordering::Relaxed);
        let channel = fixture.with(credentials);
        for (path, _) in RULES.iter().filter(|(path, _)| !harmful(path)) {
            let refused = call(&channel, path).await.expect_err("refused");
            assert_eq!(code(&refused), None, "{kind} reached {path}: {refused:?}");
        }
        assert!(manager.counters.tls_failures.load(Ordering::Relaxed) > failures, "{kind}: counted");
    }
    fixture.running.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_local_socket_serves_operators_and_the_own_node_only() {
    let fixture = Fixture::start().await;
    let channel = crate::fixture::local_channel(fixture.dir.path()).await;
    for (path, _) in RULES {
        let open = path.starts_with("/shoal.v1.Control/") || path.starts_with("/shoal.v1.Bootstrap/");
        let refused = call(&channel, path).await.err().filter(|s| s.code() == Code::PermissionDenied);
        assert_eq!(refused.is_none(), open, "{path}: {refused:?}");
    }
    let metrics = fixture.bootstrap().await.metrics(pb::Empty {}).await.expect("told").into_inner().text;
    let has = |line: &str| assert!(metrics.lines().any(|found| found == line), "no '{line}' in:\n{metrics}");
    has("shoal_raft_is_leader 1");
    has("shoal_manager_networks 1");
    has("shoal_manager_nodes{state=\"unknown\",role=\"manager\"} 1");
    // The calls above that are not for this socket.
    let denied = RULES.iter().filter(|(path, _)| {
        !path.starts_with("/shoal.v1.Control/") && !path.starts_with("/shoal.v1.Bootstrap/")
    });
    has(&format!("shoal_authz_denied_total {}", denied.count()));
    has("shoal_manager_join_attempts_total{result=\"accepted\"} 0");
    let key = new_key();
    let issued = fixture.bootstrap().await.issue_local(pb::RenewRequest { csr_der: csr(&key) }).await;
    let issued = issued.expect("issued").into_inner();
    assert_eq!(issued.node_id, fixture.running.manager.own.to_string());
    let own = Credentials { node: issued.node_id, cert: CertificateDer::from(issued.cert_der), key };
    let refused = call(&fixture.with(&own), "/shoal.v1.Control/ListNodes").await.expect_err("an agent's");
    assert_eq!(refused.code(), Code::PermissionDenied);
    fixture.running.shutdown().await;
}
