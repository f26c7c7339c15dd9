use std::io::{ErrorKind, Read as _};
use std::net::IpAddr;

use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use shoal_types::NodeId;
use shoal_types::pki::MANAGER_SERVER_NAME;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_stream::StreamExt;

use super::seats::{HANDSHAKES_PER_ADDRESS, SEATS_PER_ORIGIN};
use super::*;
use crate::tls::own::OwnCert;
use crate::tls::own::tests::authority;
use crate::tls::{client_config, server_config};

struct Fixture {
    addr: SocketAddr,
    connections: TlsConnections,
    counters: Arc<Counters>,
    client: Arc<ClientConfig>,
}

impl Fixture {
    async fn new() -> Self {
        let dir = tempfile::tempdir().expect("temporary directory");
        let cert = OwnCert::issue(dir.path(), &authority(60_000), &NodeId::from_entropy(1)).expect("issued");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let addr = listener.local_addr().expect("address");
        let config = server_config(cert.swap(), cert.ca()).expect("TLS");
        let counters = Arc::new(Counters::default());
        let connections = accept_tls(listener, config, Arc::clone(&counters), CancellationToken::new());
        let client = client_config(cert.swap(), cert.ca()).expect("TLS");
        Self { addr, connections, counters, client }
    }

    async fn connect(&self, from: &str) -> TcpStream {
        let socket = TcpSocket::new_v4().expect("socket");
        socket.bind(format!("{from}:0").parse().expect("literal")).expect("a loopback address");
        socket.connect(self.addr).await.expect("connects")
    }

    /// A node from there, its handshake under way.
    async fn node(&self, from: &str) -> tokio::task::JoinHandle<io::Result<()>> {
        let (tcp, connector) = (self.connect(from).await, TlsConnector::from(Arc::clone(&self.client)));
        let name = ServerName::try_from(MANAGER_SERVER_NAME).expect("name");
        tokio::spawn(async move { connector.connect(name, tcp).await.map(drop) })
    }

    /// Where the next connection that got through is from.
    async fn next(&mut self) -> IpAddr {
        let next = timeout(Duration::from_secs(30), self.connections.next()).await;
        let conn = next.expect("somebody gets through").expect("accepts").expect("a connection");
        match conn.connect_info() {
            Peer::Remote { addr, identity: Some(_) } => addr.ip(),
            other => panic!("not a node: {other:?}"),
        }
    }
}

fn is_open(stream: TcpStream) -> bool {
    let read = stream.into_std().expect("a socket").read(&mut [0]);
    read.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
}

#[tokio::test]
async fn one_address_keeps_nobody_else_from_the_port() {
    let mut fixture = Fixture::new().await;
    let mut silent = Vec::new();
    for _ in 0..SEATS_PER_ORIGIN {
        silent.push(fixture.connect("127.0.0.1").await);
    }
    let node = fixture.node("127.0.0.2").await;
    assert_eq!(fixture.next().await.to_string(), "127.0.0.2");
    node.await.expect("ends").expect("handshake");
    assert!(silent.into_iter().all(is_open), "the node did not wait for any of them to be given up");
}

#[tokio::test]
async fn an_address_without_a_seat_left_is_refused() {
    let fixture = Fixture::new().await;
    let mut silent = Vec::new();
    for _ in 0..SEATS_PER_ORIGIN {
        silent.push(fixture.connect("127.0.0.1").await);
    }
    let mut refused = fixture.connect("127.0.0.1").await;
    assert!(matches!(refused.read(&mut [0]).await, Ok(0) | Err(_)));
    assert_eq!(fixture.counters.connections_refused.load(Ordering::Relaxed), 1);
    assert!(silent.into_iter().all(is_open));
}

#[tokio::test]
async fn an_address_has_few_handshakes_at_once_and_its_others_wait() {
    let mut fixture = Fixture::new().await;
    let mut silent = Vec::new();
    for _ in 0..HANDSHAKES_PER_ADDRESS {
        silent.push(fixture.connect("127.0.0.1").await);
    }
    let waiting = fixture.node("127.0.0.1").await;
    let other = fixture.node("127.0.0.2").await;
    assert_eq!(fixture.next().await.to_string(), "127.0.0.2");
    silent.pop();
    assert_eq!(fixture.next().await.to_string(), "127.0.0.1");
    assert!(silent.into_iter().all(is_open));
    for node in [waiting, other] {
        node.await.expect("ends").expect("handshake");
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_without_a_certificate_ends() {
    let addr = "192.0.2.1:1".parse::<SocketAddr>().expect("literal");
    let seats = Seats::default();
    let stranger = || {
        let seat = seats.take(addr.ip()).expect("free");
        let (far, near) = tokio::io::duplex(8);
        (far, Conn::of_stranger(near, Peer::Remote { addr, identity: None }, seat))
    };
    let (_silent, mut asked) = stranger();
    let (_deaf, mut answering) = stranger();
    let begun = Instant::now();
    let read = timeout(2 * STRANGER_LIFE, asked.read(&mut [0])).await.expect("ends");
    assert_eq!(read.expect_err("its time is over").kind(), ErrorKind::TimedOut);
    assert!(begun.elapsed() >= STRANGER_LIFE);
    let written = timeout(2 * STRANGER_LIFE, answering.write_all(&[0; 64])).await.expect("ends");
    assert_eq!(written.expect_err("its time is over").kind(), ErrorKind::TimedOut);
}
