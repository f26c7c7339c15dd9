//! Three managers in one process, over real TLS on loopback.

use std::net::SocketAddr;
use std::path::Path;

use arc_swap::ArcSwapOption;
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls_pki_types::PrivatePkcs8KeyDer;
use shoal_core::Command;
use shoal_core::command::{FirstManager, InitCluster, Pools};
use shoal_types::object::{Cluster, NodeDescription, NodeRole};
use shoal_types::pki::CertRole;
use shoal_types::{ClusterId, NetworkId, TokenId};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;

use super::*;
use crate::authz::AuthzLayer;
use crate::ca::{self, Authority, RequestedKey, SharedAuthority};
use crate::clock;
use crate::counters::Counters;
use crate::tls::acceptor::accept_tls;
use crate::tls::{SwapCert, client_config, server_config};

const DEADLINE: Duration = Duration::from_secs(20);

struct Fixture {
    authority: SharedAuthority,
    init: InitCluster,
    dirs: Vec<TempDir>,
    addrs: Vec<SocketAddr>,
}

/// One manager that can be killed.
struct Member {
    node: Arc<RaftNode>,
    stop: CancellationToken,
}

impl Fixture {
    fn new() -> Self {
        let data_key = DataKey::from_bytes(&[7; 32]).expect("random");
        let id = ClusterId::from_entropy(1);
        let made = ca::create(&id, &data_key, clock::now()).expect("CA");
        let addrs: Vec<SocketAddr> = (0..3)
            .map(|_| {
                let free = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
                free.local_addr().expect("address")
            })
            .collect();
        let cluster = Cluster {
            id: id.clone(),
            name: "otter".parse().expect("literal"),
            created_at: clock::now(),
            data_port: 7378,
            cert_lifetime_ms: 3_600_000,
            ca_cert_der: made.cert_der.clone(),
            ca_key_sealed: made.key_sealed.clone(),
            balancing: shoal_types::object::Balancing::default(),
        };
        let init = InitCluster {
            id,
            name: cluster.name.clone(),
            data_port: 7378,
            cert_lifetime_ms: cluster.cert_lifetime_ms,
            ca_cert_der: made.cert_der,
            ca_key_sealed: made.key_sealed,
            pools: Pools {
                v4: vec!["10.192.0.0/10".parse().expect("literal")],
                v4_prefix: 20,
                v6: "fd00:1:2::/48".parse().expect("literal"),
            },
            ingress: NetworkId::from_entropy(1),
            manager: FirstManager {
                id: member_id(0),
                name_hint: "n0".into(),
                control_addr: addrs[0],
                data_addr: "10.0.0.1".parse().expect("literal"),
                description: NodeDescription::default(),
            },
        };
        let authority = Arc::new(Authority::open(&cluster, &data_key).expect("open"));
        let dirs = (0..3).map(|_| tempfile::tempdir().expect("temporary directory")).collect();
        Self { authority, init, dirs, addrs }
    }

    fn dir(&self, n: usize) -> &Path {
        self.dirs[n].path()
    }

    async fn init(&self, member: &Member) {
        let command = Command::InitCluster(Box::new(self.init.clone()));
        let entry = Entry { now: clock::now(), request_id: None, command };
        let verdicts = member.node.propose(vec![entry]).await.expect("written");
        assert!(matches!(verdicts.as_slice(), [Ok(_)]), "{verdicts:?}");
    }

    async fn start(&self, n: usize) -> Member {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("key");
        let requested = RequestedKey::of(&key).expect("P-256");
        let cert =
            self.authority.issue(&requested, &member_id(n), CertRole::Manager, clock::now()).expect("issue");
        let ca = self.authority.cert();
        let private = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
        let swap = SwapCert::new(vec![cert, ca.clone()], private).expect("fits");
        let client = client_config(Arc::clone(&swap), ca).expect("TLS");
        let options = |dir: &Path| RaftOptions {
            dir: dir.to_owned(),
            key: Arc::new(DataKey::from_bytes(&[u8::try_from(n).expect("small"); 32]).expect("random")),
            own: Voter { node: member_id(n), addr: self.addrs[n].to_string() },
            tls: Arc::new(ArcSwapOption::from(Some(Arc::clone(&client)))),
            snapshot_every: 20,
        };
        // Tasks of an earlier life may hold the database for a moment.
        let started =
            wait_for("the database is free", async || RaftNode::start(options(self.dir(n))).await.ok());
        let node = started.await;
        let stop = CancellationToken::new();
        let listener =
            wait_for("the port is free", async || TcpListener::bind(self.addrs[n]).await.ok()).await;
        let counters = Arc::new(Counters::default());
        let tls = server_config(swap, ca).expect("TLS");
        let connections = accept_tls(listener, tls, Arc::clone(&counters), stop.clone());
        let authz = AuthzLayer::new(node.state(), counters);
        let router =
            Server::builder().layer(authz).add_service(service::RaftService::server(Arc::clone(&node)));
        let stopped = stop.clone().cancelled_owned();
        tokio::spawn(async move {
            // Dropping the server at once cuts its connections, as a killed process would.
            tokio::select! {
                served = router.serve_with_incoming(connections) => served.expect("serves"),
                () = stopped => {}
            }
        });
        Member { node, stop }
    }
}

impl Member {
    async fn kill(self) {
        self.stop.cancel();
        self.node.shutdown().await;
    }
}

fn member_id(n: usize) -> NodeId {
    NodeId::from_entropy(100 + n as u128)
}

async fn wait_for<T>(what: &str, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    let started = tokio::time::Instant::now();
    loop {
        if let Some(found) = probe().await {
            return found;
        }
        assert!(started.elapsed() < DEADLINE, "not within {DEADLINE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn token(n: u128) -> Entry {
    let command = Command::CreateToken {
        id: TokenId::from_entropy(n),
        role: NodeRole::Worker,
        secret_sha256: [0; 32],
        ttl_ms: 3_600_000,
        uses: None,
    };
    Entry { now: clock::now(), request_id: None, command }
}

async fn write(node: &RaftNode, n: u128) {
    let verdicts = node.propose(vec![token(n)]).await.expect("written");
    assert!(matches!(verdicts.as_slice(), [Ok(_)]), "{verdicts:?}");
}

fn has(node: &RaftNode, n: u128) -> bool {
    node.state().borrow().state.tokens().contains_key(&TokenId::from_entropy(n))
}

fn hash(node: &RaftNode) -> u128 {
    node.state().borrow().state.hash()
}

/// A write under the request id of its number, repeated until it is acknowledged: what a client does on a time-out.
async fn write_through_election(node: &RaftNode, n: u128) {
    let entry = Entry { request_id: Some(format!("r{n}")), ..token(n) };
    wait_for("a write is acknowledged", async || {
        let verdicts = node.propose(vec![entry.clone()]).await.ok()?;
        assert!(matches!(verdicts.as_slice(), [Ok(_)]), "{verdicts:?}");
        Some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_managers_elect_replicate_lose_their_leader_and_recover_from_disk() {
    let fixture = Fixture::new();
    let mut members = vec![fixture.start(0).await];
    members[0].node.found().await.expect("founded");
    members[0].node.found().await.expect("twice is once");
    fixture.init(&members[0]).await;
    for n in 0..50 {
        write(&members[0].node, n).await;
    }
    // The log was cut, so newcomers get a snapshot.
    wait_for("a snapshot was made and the log cut", async || {
        (members[0].node.position().borrow().purged > 0).then_some(())
    })
    .await;

    for n in 1..3 {
        members.push(fixture.start(n).await);
        let voter = Voter { node: member_id(n), addr: fixture.addrs[n].to_string() };
        members[0].node.add_learner(voter).await.expect("learner");
        members[0].node.add_voter(&member_id(n)).await.expect("voter");
    }
    for member in &members {
        wait_for("a newcomer has the state", async || has(&member.node, 49).then_some(())).await;
        assert_eq!(hash(&member.node), hash(&members[0].node));
    }
    assert!(members[1].node.position().borrow().snapshot > 0, "it came as a snapshot");

    // A follower hands writes to the leader and reads what it wrote.
    write(&members[2].node, 100).await;
    assert!(has(&members[2].node, 100));
    members[1].node.read_barrier().await.expect("read index");
    assert!(has(&members[1].node, 100), "linearizable on another follower");

    // The leader dies; the others go on without anything acknowledged being lost.
    members.remove(0).kill().await;
    write_through_election(&members[0].node, 101).await;
    let leader = members[1].node.leadership().borrow().clone().leader;
    assert!(leader.is_some() && leader != Some(member_id(0)), "{leader:?}");
    for n in (0..50).chain([100, 101]) {
        assert!(has(&members[0].node, n), "{n}");
    }

    // It comes back from its disk and catches up.
    members.push(fixture.start(0).await);
    wait_for("the old leader has what it missed", async || has(&members[2].node, 101).then_some(())).await;

    // All die, all come back.
    let before = hash(&members[0].node);
    for member in members {
        member.kill().await;
    }
    let members = [fixture.start(0).await, fixture.start(1).await, fixture.start(2).await];
    wait_for("a leader after the restart of all", async || members[0].node.read_barrier().await.ok()).await;
    assert_eq!(hash(&members[0].node), before);
    write_through_election(&members[1].node, 102).await;

    // One is taken out; two go on.
    let leader = wait_for("a leader", async || members[0].node.leadership().borrow().leader.clone()).await;
    let (leader, out) =
        (0..3).map(|n| (n, (n + 1) % 3)).find(|(n, _)| member_id(*n) == leader).expect("one of us");
    members[leader].node.remove_voter(&member_id(out)).await.expect("removed");
    write_through_election(&members[leader].node, 103).await;
    for member in members {
        member.kill().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_single_manager_recovers_what_it_acknowledged() {
    let fixture = Fixture::new();
    let member = fixture.start(0).await;
    member.node.found().await.expect("founded");
    fixture.init(&member).await;
    for n in 0..45 {
        write(&member.node, n).await;
    }
    let before = hash(&member.node);
    member.kill().await;
    let member = fixture.start(0).await;
    member.node.read_barrier().await.expect("leads again");
    assert_eq!(hash(&member.node), before);
    member.kill().await;
}
