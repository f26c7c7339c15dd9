//! Joining: the CA can be pinned before anything is said, and each way to be refused has its own words.

use std::sync::atomic::Ordering;

use rustls_pki_types::ServerName;
use shoal_api::pb;
use shoal_api::pb::ca_client::CaClient;
use shoal_control::ca::identity::Identity;
use shoal_control::ca::spki_digest;
use shoal_control::tls::anonymous_client_config;
use shoal_types::pki::{CertRole, MANAGER_SERVER_NAME};
use shoal_types::{ErrorCode, TokenId};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::fixture::{Fixture, code, csr, new_key, wait_for};

async fn refused(fixture: &Fixture, token: &shoal_types::token::Token) -> Option<ErrorCode> {
    let status = fixture.join_with(token, "w9", "10.0.0.9").await.err().expect("refused");
    code(&status)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_good_token_makes_a_node_and_a_bad_one_says_why_not() {
    let fixture = Fixture::start().await;
    let token = fixture.token(0, 1).await;
    let mut wrong = token.clone();
    wrong.secret[0] ^= 1;
    assert_eq!(refused(&fixture, &wrong).await, Some(ErrorCode::TokenUnknown));
    let mut unknown = token.clone();
    unknown.id = TokenId::from_entropy(5);
    assert_eq!(refused(&fixture, &unknown).await, Some(ErrorCode::TokenUnknown));

    let joined = fixture.join_with(&token, "Worker.One", "10.0.0.2").await.expect("joined");
    let identity = Identity::from_der(&joined.cert).expect("identity");
    assert_eq!((identity.node.to_string(), identity.role), (joined.node.clone(), CertRole::Agent));
    assert_eq!(refused(&fixture, &token).await, Some(ErrorCode::TokenUsedUp));

    let short = fixture.token(1, 0).await;
    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    assert_eq!(refused(&fixture, &short).await, Some(ErrorCode::TokenExpired));

    let nodes = fixture.control().await.list_nodes(pb::Empty {}).await.expect("nodes").into_inner().nodes;
    assert_eq!(nodes.len(), 2, "{nodes:?}");
    assert!(nodes.iter().any(|n| n.name == "worker" && n.role() == pb::NodeRole::Worker));
    fixture.running.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_joins_once_and_nobody_else_can_ride_on_it() {
    let fixture = Fixture::start().await;
    let token = fixture.token(0, 1).await;
    let key = new_key();
    let request = pb::JoinRequest {
        token_id: token.id.to_string(),
        secret: token.secret.to_vec(),
        csr_der: csr(&key),
        hostname: "w1".into(),
        data_addr: "10.0.0.2".into(),
        request_id: "same".into(),
    };
    let mut client = CaClient::new(fixture.anonymous());
    let first = client.join(request.clone()).await.expect("joined").into_inner();
    let again = client.join(request.clone()).await.expect("the answer was lost").into_inner();
    assert_eq!(first.node_id, again.node_id);
    let stolen = pb::JoinRequest { csr_der: csr(&new_key()), ..request.clone() };
    let status = client.join(stolen).await.expect_err("another key");
    assert_eq!(code(&status), Some(ErrorCode::TokenUsedUp));
    let mut guessed = request;
    guessed.secret[3] ^= 0x40;
    let status = client.join(guessed).await.expect_err("another secret");
    assert_eq!(code(&status), Some(ErrorCode::TokenUnknown));
    fixture.running.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guesses_are_metered_and_leave_the_token_usable() {
    let fixture = Fixture::start().await;
    let token = fixture.token(0, 1).await;
    let mut client = CaClient::new(fixture.anonymous());
    for guess in 0..60_u8 {
        let request = pb::JoinRequest {
            token_id: token.id.to_string(),
            secret: vec![guess; 16],
            hostname: "w1".into(),
            ..pb::JoinRequest::default()
        };
        let status = client.join(request).await.expect_err("wrong");
        assert_eq!(code(&status), Some(ErrorCode::TokenUnknown));
    }
    let metered = fixture.running.manager.counters.joins_metered.load(Ordering::Relaxed);
    assert!(metered >= 10, "60 guesses within a second or two, {metered} metered");
    wait_for("the right secret is heard again", async || {
        fixture.join_with(&token, "w1", "10.0.0.2").await.ok()
    })
    .await;
    fixture.running.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_server_shows_the_ca_that_the_token_pins_and_resumes_nothing() {
    let fixture = Fixture::start().await;
    let token = fixture.token(0, 0).await;
    let connector = TlsConnector::from(anonymous_client_config(&fixture.ca()).expect("TLS"));
    let tcp = TcpStream::connect(fixture.addr).await.expect("connects");
    let name = ServerName::try_from(MANAGER_SERVER_NAME).expect("name");
    let stream = connector.connect(name, tcp).await.expect("handshake");
    let (_, session) = stream.get_ref();
    let chain = session.peer_certificates().expect("a chain");
    assert_eq!(chain.len(), 2);
    assert_eq!(spki_digest(&chain[1]).expect("a certificate"), token.ca_digest);
    assert_eq!(session.alpn_protocol(), Some(b"h2".as_slice()));
    assert_eq!(session.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
    assert_eq!(session.tls13_tickets_received(), 0);
    fixture.running.shutdown().await;
}
