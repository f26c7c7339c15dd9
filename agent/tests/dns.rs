//! The resolvers against real sockets in real network namespaces, as root, with an upstream server of the test's
//! own.

#[path = "dns/upstream.rs"]
mod upstream;

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use shoal_agent::drivers::dns::{
    AnsweredBy, DnsConfig, DnsDriver, DnsMetrics, NetworkRecords, NetworkZone, Reserved, ServiceRecord,
    TaskRecord, Told, Zone,
};
use shoal_agent::netns::{Netns, NetnsDir};

use upstream::Upstream;

const RESOLVER: &str = "127.0.0.11:53";

/// A node: a driver, a directory of namespaces, and an upstream server on the host's loopback.
struct Node {
    dir: tempfile::TempDir,
    netns: NetnsDir,
    driver: DnsDriver,
    metrics: DnsMetrics,
    told: Told,
    upstream: Upstream,
}

impl Node {
    fn new() -> Self {
        Self::with(DnsConfig { forward_timeout: Duration::from_millis(500), ..DnsConfig::default() })
    }

    fn with(mut config: DnsConfig) -> Self {
        let dir = tempfile::Builder::new().prefix("shoal-dns-").tempdir().expect("directory");
        let upstream = Upstream::start();
        let resolv_conf = dir.path().join("resolv.conf");
        std::fs::write(&resolv_conf, format!("nameserver {}\n", upstream.address)).expect("file");
        let metrics = DnsMetrics::default();
        config.upstream_resolv_conf = resolv_conf;
        let told = Told::default();
        told.set(true);
        let driver = DnsDriver::new(config, metrics.clone(), told.clone());
        Self { netns: NetnsDir::new(&dir.path().join("run")), dir, driver, metrics, told, upstream }
    }

    async fn task(&self, name: &str, zone: Zone) -> Client {
        let netns = self.netns.ensure(name).expect("namespace");
        let started = self.driver.ensure(name, netns.path(), Arc::new(zone)).await;
        assert!(started.expect("resolver starts"), "something was to be done");
        Client { netns: Arc::new(netns) }
    }

    async fn finish(self) {
        self.driver.shutdown().await;
        self.netns.remove_all().expect("namespaces go");
        let mounts = std::fs::read_to_string("/proc/self/mounts").expect("mounts");
        assert!(!mounts.contains(self.dir.path().to_str().expect("UTF-8")), "mounts left");
    }
}

impl Drop for Node {
    /// What a test that failed left behind.
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _left = self.netns.remove_all();
        }
    }
}

/// What a task does: asks from inside its namespace.
#[derive(Clone)]
struct Client {
    netns: Arc<Netns>,
}

impl Client {
    async fn udp(&self, query: Vec<u8>) -> Option<Vec<u8>> {
        self.inside(move || {
            let socket = UdpSocket::bind("127.0.0.1:0").expect("binds");
            socket.connect(RESOLVER).expect("connects");
            socket.set_read_timeout(Some(Duration::from_secs(3))).expect("time-out");
            let mut buffer = vec![0; 65536];
            // As a resolver library does: what is lost in a full buffer is asked again.
            let length = (0..2).find_map(|_| {
                socket.send(&query).expect("sends");
                socket.recv(&mut buffer).ok()
            })?;
            buffer.truncate(length);
            Some(buffer)
        })
        .await
    }

    async fn tcp(&self, query: Vec<u8>) -> Vec<u8> {
        self.inside(move || {
            let mut stream = TcpStream::connect(RESOLVER).expect("connects");
            exchange(&mut stream, &query)
        })
        .await
    }

    async fn ask(&self, name: &str, qtype: RecordType) -> Message {
        let reply = self.udp(query(name, qtype, None)).await.expect("a reply");
        Message::from_vec(&reply).expect("decodes")
    }

    async fn inside<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let netns = Arc::clone(&self.netns);
        tokio::task::spawn_blocking(move || netns.run(work).expect("runs")).await.expect("joins")
    }
}

fn exchange(stream: &mut TcpStream, query: &[u8]) -> Vec<u8> {
    let length = u16::try_from(query.len()).expect("fits").to_be_bytes();
    stream.write_all(&length).and_then(|()| stream.write_all(query)).expect("sends");
    let mut length = [0; 2];
    stream.read_exact(&mut length).expect("a reply");
    let mut reply = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut reply).expect("a whole reply");
    reply
}

fn query(name: &str, qtype: RecordType, payload: Option<u16>) -> Vec<u8> {
    let mut message = Message::new(0x1234, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).expect("name"), qtype));
    if let Some(payload) = payload {
        let mut edns = Edns::new();
        edns.set_max_payload(payload).set_version(0);
        message.set_edns(edns);
    }
    message.to_vec().expect("encodes")
}

fn addresses(message: &Message) -> Vec<String> {
    message.answers.iter().map(|record| record.data.to_string()).collect()
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("address")
}

fn network(name: &str, third: u8, service: &str, endpoints: u8) -> Arc<NetworkZone> {
    let address = |last: u8| ip(&format!("10.9.{third}.{last}"));
    Arc::new(NetworkZone::new(&NetworkRecords {
        name: name.to_owned(),
        subnets: vec![format!("10.9.{third}.0/24").parse().expect("subnet")],
        services: vec![ServiceRecord {
            name: service.to_owned(),
            aliases: Vec::new(),
            vips: vec![address(2)],
            targets: Vec::new(),
        }],
        tasks: (0..endpoints)
            .map(|n| TaskRecord {
                service: service.to_owned(),
                slot: (n + 1).to_string(),
                serving: true,
                idle: false,
                addresses: vec![address(n + 10)],
            })
            .collect(),
    }))
}

fn zone(networks: Vec<Arc<NetworkZone>>, forwards: bool) -> Zone {
    let reserved = Reserved {
        networks: ["front", "back"].map(str::to_owned).into(),
        slots: [].into(),
        subnets: vec!["10.9.0.0/16".parse().expect("pool")],
    };
    Zone::new(networks, Arc::new(reserved), forwards)
}

fn front() -> Zone {
    zone(vec![network("front", 0, "web", 2)], true)
}

#[tokio::test(flavor = "multi_thread")]
async fn names_are_answered_over_udp_and_tcp() {
    let node = Node::new();
    let client = node.task("t1", front()).await;
    for (name, qtype, expected) in [
        ("web.", RecordType::A, vec!["10.9.0.2"]),
        ("web.front.", RecordType::A, vec!["10.9.0.2"]),
        ("web.1.", RecordType::A, vec!["10.9.0.10"]),
        ("web.", RecordType::AAAA, vec![]),
        ("10.0.9.10.in-addr.arpa.", RecordType::PTR, vec!["web.1.front."]),
    ] {
        let udp = client.ask(name, qtype).await;
        let tcp = Message::from_vec(&client.tcp(query(name, qtype, None)).await).expect("decodes");
        for reply in [udp, tcp] {
            assert_eq!(reply.metadata.response_code, ResponseCode::NoError, "{name}");
            assert_eq!(reply.metadata.id, 0x1234);
            assert_eq!(addresses(&reply), expected, "{name} {qtype}");
        }
    }
    let mut both = addresses(&client.ask("tasks.web.", RecordType::A).await);
    both.sort();
    assert_eq!(both, ["10.9.0.10", "10.9.0.11"]);
    assert_eq!(node.upstream.asked(), 0);
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_resolves_for_programs_too() {
    let node = Node::new();
    let client = node.task("t1", front()).await;
    // The C library's resolver, with the task's resolv.conf mounted for it alone.
    let resolv_conf = node.dir.path().join("task-resolv.conf");
    std::fs::write(&resolv_conf, shoal_agent::drivers::dns::resolv::task_resolv_conf(&[], &[]))
        .expect("file");
    let script = format!(
        "mount --make-rprivate / && mount --bind {} /etc/resolv.conf && exec python3 -c 'import socket; print(socket.gethostbyname(\"web\"))'",
        resolv_conf.display()
    );
    let output = client
        .inside(move || std::process::Command::new("unshare").args(["-m", "sh", "-c", &script]).output())
        .await
        .expect("runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text == "10.9.0.2\n", "{text} {}", String::from_utf8_lossy(&output.stderr));
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn long_answers_are_cut_over_udp_and_whole_over_tcp() {
    let node = Node::new();
    let client = node.task("t1", zone(vec![network("front", 0, "web", 200)], true)).await;
    for (payload, limit) in [(None, 512), (Some(700), 700), (Some(65535), 1232)] {
        let reply = client.udp(query("tasks.web.", RecordType::A, payload)).await.expect("a reply");
        assert!(reply.len() <= limit);
        assert!(Message::from_vec(&reply).expect("decodes").metadata.truncation);
    }
    let whole = client.tcp(query("tasks.web.", RecordType::A, None)).await;
    assert_eq!(Message::from_vec(&whole).expect("decodes").answers.len(), 200);
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn other_names_are_forwarded_from_the_host() {
    let node = Node::new();
    let client = node.task("t1", front()).await;
    // The upstream server listens on the host's loopback: out of reach from inside the namespace.
    let reply = client.ask("a.example.", RecordType::A).await;
    assert_eq!((reply.metadata.id, addresses(&reply)), (0x1234, vec!["192.0.2.1".to_owned()]));
    let tcp =
        Message::from_vec(&client.tcp(query("a.example.", RecordType::A, None)).await).expect("decodes");
    assert_eq!(addresses(&tcp), ["192.0.2.1"]);
    assert_eq!(node.upstream.asked_tcp.load(Ordering::Relaxed), 1, "a TCP query is forwarded by TCP");
    let reply = client.ask("b.example.", RecordType::A).await;
    assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain);
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cut_replies_are_fetched_whole() {
    let node = Node::new();
    let client = node.task("t1", front()).await;
    let reply = client.udp(query("big.example.", RecordType::TXT, Some(1232))).await.expect("a reply");
    assert!(reply.len() <= 1232);
    assert!(Message::from_vec(&reply).expect("decodes").metadata.truncation);
    let whole = Message::from_vec(&client.tcp(query("big.example.", RecordType::TXT, None)).await);
    assert_eq!(whole.expect("decodes").answers.len(), 20);
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn false_replies_are_not_taken() {
    let node = Node::new();
    let client = node.task("t1", front()).await;
    assert_eq!(addresses(&client.ask("spoof.example.", RecordType::A).await), ["192.0.2.2"]);
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_upstream_is_a_failure_and_not_a_denial() {
    let node = Node::new();
    let client = node.task("t1", front()).await;
    let begun = Instant::now();
    let reply = client.ask("silent.example.", RecordType::A).await;
    assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn forwards_in_flight_are_bounded_and_own_names_unharmed() {
    let node = Node::with(DnsConfig {
        forward_timeout: Duration::from_secs(2),
        max_forwards_per_task: 4,
        ..DnsConfig::default()
    });
    let client = node.task("t1", front()).await;
    let begun = Instant::now();
    let refused = client
        .inside(move || {
            let socket = UdpSocket::bind("127.0.0.1:0").expect("binds");
            socket.connect(RESOLVER).expect("connects");
            socket.set_read_timeout(Some(Duration::from_secs(1))).expect("time-out");
            let query = query("silent.example.", RecordType::A, None);
            for _ in 0..50 {
                socket.send(&query).expect("sends");
            }
            let mut buffer = [0; 512];
            (0..46).filter(|_| socket.recv(&mut buffer).is_ok()).count()
        })
        .await;
    assert_eq!(refused, 46, "all but four are refused at once");
    assert_eq!(addresses(&client.ask("web.", RecordType::A).await), ["10.9.0.2"]);
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    assert_eq!(node.metrics.rate_limited(), 46);
    // Forwards under way don't hold up the end, nor keep the namespace.
    let begun = Instant::now();
    node.finish().await;
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn forwards_in_flight_are_bounded_for_all_tasks_together() {
    let node = Node::with(DnsConfig { max_forwards: 6, max_forwards_per_task: 4, ..DnsConfig::default() });
    let clients = [node.task("t1", front()).await, node.task("t2", front()).await];
    let flood = |client: Client| async move {
        client
            .inside(|| {
                let socket = UdpSocket::bind("127.0.0.1:0").expect("binds");
                socket.connect(RESOLVER).expect("connects");
                socket.set_read_timeout(Some(Duration::from_secs(1))).expect("time-out");
                let query = query("silent.example.", RecordType::A, None);
                for _ in 0..10 {
                    socket.send(&query).expect("sends");
                }
                (0..10).take_while(|_| socket.recv(&mut [0; 512]).is_ok()).count()
            })
            .await
    };
    let refused = [flood(clients[0].clone()).await, flood(clients[1].clone()).await];
    assert_eq!(refused, [6, 8], "four of one task and two of the other are under way");
    assert_eq!((node.metrics.forwards_inflight(), node.metrics.rate_limited()), (6, 14));
    for client in clients {
        assert_eq!(addresses(&client.ask("web.", RecordType::A).await), ["10.9.0.2"]);
    }
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn networks_are_isolated_and_internal_ones_leak_nothing() {
    let node = Node::new();
    let internal = node.task("t1", zone(vec![network("front", 0, "web", 1)], false)).await;
    let open = node.task("t2", zone(vec![network("back", 1, "db", 1)], true)).await;
    for name in ["a.example.", "secret.attacker.example.", "8.8.8.8.in-addr.arpa."] {
        let reply = internal.ask(name, RecordType::A).await;
        assert_eq!(reply.metadata.response_code, ResponseCode::Refused, "{name}");
    }
    for name in ["db.", "db.back.", "tasks.db.", "db.1."] {
        let reply = internal.ask(name, RecordType::A).await;
        assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain, "{name}");
    }
    for name in ["web.", "web.front.", "tasks.web.", "web.1.", "10.0.9.10.in-addr.arpa."] {
        let reply = open.ask(name, RecordType::A).await;
        assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain, "{name}");
    }
    assert_eq!(node.upstream.asked(), 0, "nothing of this went outside");
    // Control: the same driver does forward for the open task.
    open.ask("a.example.", RecordType::A).await;
    assert_eq!(node.upstream.asked(), 1);
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_denied_while_nobody_tells_of_changes() {
    let node = Node::new();
    let client = node.task("t1", front()).await;
    for (told, code) in [(false, ResponseCode::ServFail), (true, ResponseCode::NXDomain)] {
        node.told.set(told);
        for name in ["nosuch.", "web.9.front.", "_80._tcp.nosuch.", "99.0.9.10.in-addr.arpa."] {
            let reply = client.ask(name, RecordType::A).await;
            assert_eq!(reply.metadata.response_code, code, "{name}");
            assert_eq!(reply.metadata.authoritative, told);
        }
        // What is known is answered, and the outside is asked.
        assert_eq!(addresses(&client.ask("web.", RecordType::A).await), ["10.9.0.2"]);
        assert_eq!(addresses(&client.ask("a.example.", RecordType::A).await), ["192.0.2.1"]);
    }
    assert_eq!(node.metrics.queries(RecordType::A, ResponseCode::ServFail, AnsweredBy::Own), 4);
    assert_eq!(node.metrics.queries(RecordType::A, ResponseCode::NoError, AnsweredBy::Upstream), 2);
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn services_are_located_and_additional_records_give_way() {
    let node = Node::new();
    let client = node.task("t1", zone(vec![network("front", 0, "web", 20)], true)).await;
    let ask = async |payload| {
        let reply = client.udp(query("_80._tcp.web.", RecordType::SRV, payload)).await.expect("a reply");
        (reply.len(), Message::from_vec(&reply).expect("decodes"))
    };
    // 20 targets: too many for 512 bytes, without their addresses enough for 800, whole by TCP.
    let (length, cut) = ask(None).await;
    assert!(length <= 512 && cut.metadata.truncation && cut.answers.is_empty());
    let (length, bare) = ask(Some(800)).await;
    assert!(length <= 800 && !bare.metadata.truncation, "{length}");
    assert_eq!((bare.answers.len(), bare.additionals.len()), (20, 0));
    let whole = client.tcp(query("_80._tcp.web.", RecordType::SRV, None)).await;
    let whole = Message::from_vec(&whole).expect("decodes");
    assert_eq!((whole.answers.len(), whole.additionals.len()), (20, 20));
    assert!(whole.metadata.authoritative);
    let target = whole.answers.iter().find(|record| record.data.to_string().contains(" web.7.front."));
    assert!(target.is_some(), "{:?}", whole.answers);
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn search_domains_are_the_host_s_as_they_are_now() {
    let mut node = Node::new();
    assert!(node.driver.search_domains().is_empty());
    let path = node.dir.path().join("resolv.conf");
    std::fs::write(&path, "nameserver 192.0.2.1\nsearch a.example b.example\n").expect("file");
    assert_eq!(node.driver.search_domains(), ["a.example", "b.example"]);
    let off = DnsConfig { upstream_resolv_conf: path, search: false, ..DnsConfig::default() };
    node.driver = DnsDriver::new(off, node.metrics.clone(), node.told.clone());
    assert!(node.driver.search_domains().is_empty());
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_case_of_a_question_is_kept() {
    let node = Node::new();
    let client = node.task("t1", front()).await;
    // Clients that draw the case at random (0x20) take no reply in another one.
    for (name, qtype) in [
        ("wEb.FrOnT.", RecordType::A),
        ("_80._tCp.WEb.", RecordType::SRV),
        ("A.exAMple.", RecordType::A),
        ("nOSuch.", RecordType::A),
    ] {
        let asked = query(name, qtype, None);
        let reply = client.udp(asked.clone()).await.expect("a reply");
        assert_eq!(reply[12..asked.len()], asked[12..], "{name}");
    }
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_view_is_swapped_without_a_gap() {
    let node = Node::new();
    let client = node.task("t1", Zone::unknown()).await;
    let path = node.netns.path("t1").expect("path");
    assert_eq!(client.ask("web.", RecordType::A).await.metadata.response_code, ResponseCode::ServFail);
    assert!(node.driver.ensure("t1", &path, Arc::new(front())).await.expect("swaps"));
    assert_eq!(addresses(&client.ask("web.", RecordType::A).await), ["10.9.0.2"]);
    assert!(!node.driver.ensure("t1", &path, Arc::new(front())).await.expect("nothing to do"), "equal view");
    assert_eq!(node.driver.observe().into_iter().collect::<Vec<_>>(), ["t1"]);
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replaced_namespace_gets_a_new_resolver_and_a_removed_one_none() {
    let node = Node::new();
    let old = node.task("t1", front()).await;
    node.netns.remove("t1").expect("removes");
    drop(old);
    let new = node.task("t1", front()).await;
    assert_eq!(addresses(&new.ask("web.", RecordType::A).await), ["10.9.0.2"]);
    assert!(node.driver.remove("t1").await);
    assert!(!node.driver.remove("t1").await, "gone already");
    assert!(node.driver.observe().is_empty());
    let free = new.inside(|| UdpSocket::bind(RESOLVER).is_ok() && TcpListener::bind(RESOLVER).is_ok()).await;
    assert!(free, "the sockets are closed when remove returns");
    let missing = node.driver.ensure("t9", "/no/such".as_ref(), Arc::new(front())).await;
    assert!(missing.expect_err("refused").is_retryable());
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_messages_are_dropped_and_the_resolver_lives() {
    let node = Node::new();
    let client = node.task("t1", front()).await;
    let answered = client
        .inside(|| {
            let socket = UdpSocket::bind("127.0.0.1:0").expect("binds");
            socket.connect(RESOLVER).expect("connects");
            socket.set_read_timeout(Some(Duration::from_millis(300))).expect("time-out");
            let mut response = query("web.", RecordType::A, None);
            response[2] |= 0x80;
            for message in [response.as_slice(), b"", b"x", &response[..11], &[0x41; 5000]] {
                socket.send(message).expect("sends");
            }
            socket.recv(&mut [0; 512]).is_ok()
        })
        .await;
    assert!(!answered, "neither responses, scraps nor giants are answered");
    // 20,000 damaged queries; how each is answered is tested elsewhere.
    client
        .inside(|| {
            let socket = UdpSocket::bind("127.0.0.1:0").expect("binds");
            socket.connect(RESOLVER).expect("connects");
            let good = query("tasks.web.front.", RecordType::A, Some(1232));
            let mut seed = 1_u64;
            for _ in 0..20_000 {
                let mut bad = good.clone();
                for _ in 0..3 {
                    seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    let [at, value, ..] = (seed >> 32).to_le_bytes();
                    let at = usize::from(at) % bad.len();
                    bad[at] = value;
                }
                // A full buffer is the point of it.
                let _full = socket.send(&bad);
            }
        })
        .await;
    assert!(node.metrics.malformed() > 5, "{}", node.metrics.malformed());
    assert_eq!(addresses(&client.ask("web.", RecordType::A).await), ["10.9.0.2"]);
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_and_many_connections_are_cut() {
    let node = Node::new();
    let client = node.task("t1", front()).await;
    let (dripped, open) = client
        .inside(|| {
            // A query that drips one byte each 100 ms, and promises the most there can be.
            let mut slow = TcpStream::connect(RESOLVER).expect("connects");
            slow.set_read_timeout(Some(Duration::from_millis(100))).expect("time-out");
            slow.write_all(&[0x0f, 0xff]).expect("sends");
            let begun = Instant::now();
            while slow.write_all(&[0]).is_ok()
                && slow.read(&mut [0]).is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
                && begun.elapsed() < Duration::from_secs(8)
            {}
            let dripped = begun.elapsed();
            let all: Vec<_> = (0..60).map(|_| TcpStream::connect(RESOLVER).expect("connects")).collect();
            let open = all
                .iter()
                .filter(|stream| {
                    // One that is served waits for our query, one that isn't is closed.
                    stream.set_read_timeout(Some(Duration::from_millis(100))).expect("time-out");
                    let mut stream: &TcpStream = stream;
                    stream.read(&mut [0]).is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
                })
                .count();
            (dripped, open)
        })
        .await;
    assert!(dripped < Duration::from_secs(5), "{dripped:?}");
    assert_eq!(open, 32);
    // Too long a query is cut at its length, before its content.
    let cut = client
        .inside(|| {
            let mut stream = TcpStream::connect(RESOLVER).expect("connects");
            stream.set_read_timeout(Some(Duration::from_secs(2))).expect("time-out");
            stream.write_all(&[0xff, 0xff]).expect("sends");
            matches!(stream.read(&mut [0]), Ok(0))
        })
        .await;
    assert!(cut);
    // Several queries on one connection are fine.
    let names = client
        .inside(|| {
            let mut stream = TcpStream::connect(RESOLVER).expect("connects");
            (0..3)
                .map(|_| exchange(&mut stream, &query("web.", RecordType::A, None)).len())
                .collect::<Vec<_>>()
        })
        .await;
    assert_eq!(names.len(), 3);
    node.finish().await;
}
