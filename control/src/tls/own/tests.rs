use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::authz::Peer;
use crate::ca::{self, Authority};
use crate::counters::Counters;
use crate::seal::DataKey;
use crate::tls::acceptor::accept_tls;
use crate::tls::{client_config, server_config};
use rustls_pki_types::ServerName;
use shoal_types::ClusterId;
use shoal_types::object::Cluster;
use shoal_types::pki::MANAGER_SERVER_NAME;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_stream::StreamExt;
use tonic::transport::server::Connected;

pub(in crate::tls) fn authority(lifetime_ms: u64) -> SharedAuthority {
    let data_key = DataKey::from_bytes(&[1; 32]).expect("random");
    let id = ClusterId::from_entropy(1);
    let made = ca::create(&id, &data_key, clock::now()).expect("CA");
    let cluster = Cluster {
        id,
        name: "otter".parse().expect("literal"),
        created_at: clock::now(),
        data_port: 7378,
        cert_lifetime_ms: lifetime_ms,
        ca_cert_der: made.cert_der,
        ca_key_sealed: made.key_sealed,
        balancing: shoal_types::object::Balancing::default(),
    };
    Arc::new(Authority::open(&cluster, &data_key).expect("open"))
}

#[test]
fn renewal_is_between_half_and_four_fifths_of_the_life_however_short() {
    for lifetime_ms in [2_000, 60_000, 7 * 24 * 3_600_000] {
        let dir = tempfile::tempdir().expect("temporary directory");
        let cert =
            OwnCert::issue(dir.path(), &authority(lifetime_ms), &NodeId::from_entropy(1)).expect("issued");
        let identity = &cert.pair.identity;
        let issued = identity.not_before.0 + 3_600_000;
        let life = identity.not_after.0 - issued;
        assert_eq!(life, lifetime_ms);
        for share in [0, 1, 128, 255] {
            let at = renewal_time(identity, share).0 - issued;
            assert!((life / 2..=life * 4 / 5).contains(&at), "{at} of {life}");
        }
    }
}

#[test]
fn a_certificate_is_taken_from_its_files_only_when_it_fits() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (own, other) = (NodeId::from_entropy(1), NodeId::from_entropy(2));
    let authority = authority(60_000);
    assert!(OwnCert::load(dir.path(), &own).expect("readable").is_none());
    let issued = OwnCert::issue(dir.path(), &authority, &own).expect("issued");
    let loaded = OwnCert::load(dir.path(), &own).expect("readable").expect("fits");
    assert_eq!(loaded.pair.identity, issued.pair.identity);
    assert!(OwnCert::load(dir.path(), &other).expect("readable").is_none(), "of another node");
    let stray = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("key").serialize_der();
    fs::write(dir.path().join(KEY), stray).expect("write");
    assert!(OwnCert::load(dir.path(), &own).expect("readable").is_none(), "with another key");
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_jumps_is_noticed_within_the_hour() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (authority, stop) = (authority(7 * 24 * 3_600_000), CancellationToken::new());
    let cert = OwnCert::issue(dir.path(), &authority, &NodeId::from_entropy(1)).expect("issued");
    let first = cert.pair.identity.serial.clone();
    let kept =
        || Identity::from_der(&fs::read(dir.path().join(CERT)).expect("kept")).expect("identity").serial;
    let begun = clock::now();
    let wall = AtomicU64::new(begun.0);
    let renewal = cert.keep_fresh_by(|| Timestamp(wall.load(Ordering::Relaxed)), &authority, &stop);
    let story = async {
        tokio::time::sleep(2 * LONGEST).await;
        assert_eq!(kept(), first, "it is good for days");
        // As a machine that was stopped for six days: timers have not moved.
        wall.fetch_add(6 * 24 * 3_600_000, Ordering::Relaxed);
        tokio::time::sleep(LONGEST + 2 * PAUSE).await;
        let second = kept();
        assert_ne!(second, first);
        // One that is put right made what was issued before it one of the future.
        wall.fetch_sub(8 * 24 * 3_600_000, Ordering::Relaxed);
        tokio::time::sleep(LONGEST + 2 * PAUSE).await;
        assert_ne!(kept(), second);
        stop.cancel();
    };
    tokio::join!(renewal, story);
}

/// Sends a byte and gets it back.
async fn echo(stream: &mut TlsStream<TcpStream>) {
    stream.write_all(b"x").await.expect("open");
    let mut back = [0];
    stream.read_exact(&mut back).await.expect("open");
    assert_eq!(&back, b"x");
}

fn served_by(stream: &TlsStream<TcpStream>) -> String {
    let (_, session) = stream.get_ref();
    let leaf = session.peer_certificates().and_then(<[_]>::first).expect("a certificate");
    Identity::from_der(leaf).expect("identity").serial
}

#[tokio::test]
async fn renewal_swaps_the_certificate_under_open_connections() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let node = NodeId::from_entropy(1);
    let authority = authority(2_000);
    let cert = OwnCert::issue(dir.path(), &authority, &node).expect("issued");
    let first = cert.pair.identity.serial.clone();
    let (swap, ca) = (cert.swap(), cert.ca().clone());
    let stop = CancellationToken::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let addr = listener.local_addr().expect("address");
    let config = server_config(Arc::clone(&swap), &ca).expect("TLS");
    let mut connections = accept_tls(listener, config, Arc::new(Counters::default()), stop.clone());
    tokio::spawn(async move {
        while let Some(Ok(mut conn)) = connections.next().await {
            assert!(matches!(conn.connect_info(), Peer::Remote { identity: Some(_), .. }));
            tokio::spawn(async move {
                let mut byte = [0];
                while conn.read_exact(&mut byte).await.is_ok() && conn.write_all(&byte).await.is_ok() {
                    conn.flush().await.expect("open");
                }
            });
        }
    });
    let connector = TlsConnector::from(client_config(swap, &ca).expect("TLS"));
    let dial = async || {
        let tcp = TcpStream::connect(addr).await.expect("connects");
        let name = ServerName::try_from(MANAGER_SERVER_NAME).expect("name");
        connector.connect(name, tcp).await.expect("handshake")
    };
    let mut before = dial().await;
    echo(&mut before).await;
    assert_eq!(served_by(&before), first);

    let renewal = tokio::spawn(cert.keep_fresh(authority, stop.clone()));
    // Past the end of the first certificate's life.
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    echo(&mut before).await;
    let mut after = dial().await;
    echo(&mut after).await;
    assert_ne!(served_by(&after), first);
    stop.cancel();
    renewal.await.expect("ends");
}
