//! The overlay driver against the kernel, in namespaces made for it: what is written is read back the same, a second
//! pass writes nothing, drift is put right, two hosts talk over it without any program, and nothing stays. Needs root.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::time::Duration;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteType};
use rtnetlink::packet_route::AddressFamily;
use shoal_agent::drivers::link::{LinkError, LinkTable, Nl, Writes, link_message};
use shoal_agent::drivers::overlay::Overlay;
use shoal_agent::netns::{Netlink, Netns, NetnsDir};
use shoal_plan::object::{Fdb, LegKind, Neighbor};
use shoal_plan::{EgressFacts, Facts, IfName, Key, Object, Objects, Op, desired, plan};
use shoal_types::assignment::{
    AssignedNetwork, AssignedTask, Assignment, ClusterView, Endpoint, Member, Object as Assigned,
};
use shoal_types::object::{Attachment, DesiredState, Slot};
use shoal_types::spec::{DnsSpec, ProcessSpec, Resources, RestartPolicy, TaskSpec};
use shoal_types::{
    ClusterId, DualAddr, DualNet, EndpointId, Generation, MacAddr, NetworkId, NodeId, ServiceId, TaskId, Vni,
};

const PATIENCE: Duration = Duration::from_secs(5);

/// A host that nobody else sees: a namespace with the driver over it.
struct TestHost {
    netns: Netns,
    connection: Netlink,
    overlay: Overlay,
    writes: Writes,
    namespaces: NetnsDir,
    _scratch: tempfile::TempDir,
}

impl TestHost {
    fn new() -> Self {
        Self::with_netkit(None)
    }

    fn with_netkit(netkit: Option<bool>) -> Self {
        let scratch = tempfile::tempdir().expect("a directory");
        let netns = Netns::anonymous().expect("namespaces need root");
        let connection = netns.netlink().expect("netlink");
        let writes = Writes::default();
        let namespaces = NetnsDir::new(scratch.path());
        let overlay =
            Overlay::new(Nl::new(connection.handle(), &writes), namespaces.clone()).with_netkit(netkit);
        Self { netns, connection, overlay, writes, namespaces, _scratch: scratch }
    }

    fn nl(&self) -> Nl {
        Nl::new(self.connection.handle(), &Writes::default())
    }

    async fn observe(&self) -> Objects {
        let links = self.overlay.netlink().links().await.expect("links");
        let mut observed = self.overlay.observe(&links).await.expect("observed");
        let mut more = self.overlay.forwarding(&links).await.expect("observed");
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            more.extend(self.overlay.neighbors(&links, family).await.expect("observed"));
        }
        observed.extend(more.into_iter().map(|object| (object.key(), object)));
        observed
    }

    /// Carries out one plan; returns how many writes it took.
    async fn converge(&self, wanted: &Objects) -> u64 {
        let before = self.writes.total();
        let observed = self.observe().await;
        for op in plan(wanted, &observed).ops() {
            let links = self.overlay.netlink().links().await.expect("links");
            let outcome = match op {
                Op::Ensure { object: Object::Bridge(o), .. } => self.overlay.ensure_bridge(o).await,
                Op::Ensure { object: Object::Vxlan(o), .. } => self.overlay.ensure_vxlan(o).await,
                Op::Ensure { object: Object::Fdb(o), .. } => self.overlay.ensure_fdb(&links, o).await,
                Op::Ensure { object: Object::Neighbor(o), .. } => {
                    self.overlay.ensure_neighbor(&links, o).await
                }
                Op::Ensure { object: Object::Sandbox(o), .. } => self.overlay.ensure_sandbox(o).await,
                Op::Ensure { object: Object::Leg(o), .. } => self.overlay.ensure_leg(o).await,
                Op::Remove { object: Object::Bridge(o), .. } => self.overlay.remove_link(&o.name).await,
                Op::Remove { object: Object::Vxlan(o), .. } => self.overlay.remove_link(&o.name).await,
                Op::Remove { object: Object::Leg(o), .. } => self.overlay.remove_link(&o.host).await,
                Op::Remove { object: Object::Fdb(o), .. } => self.overlay.remove_fdb(&links, o).await,
                Op::Remove { object: Object::Neighbor(o), .. } => {
                    self.overlay.remove_neighbor(&links, o).await
                }
                Op::Remove { object: Object::Sandbox(o), .. } => self.overlay.remove_sandbox(o),
                other => panic!("not of the overlay: {other:?}"),
            };
            outcome.unwrap_or_else(|error| panic!("{:?}: {error}", op.key()));
        }
        self.writes.total() - before
    }

    async fn assert_is(&self, wanted: &Objects) {
        let observed = self.observe().await;
        let rest = plan(wanted, &observed);
        assert!(rest.is_empty(), "still to do: {rest:#?}");
    }
}

impl Drop for TestHost {
    fn drop(&mut self) {
        self.namespaces.remove_all().expect("its namespaces go");
    }
}

fn node(n: u8) -> NodeId {
    NodeId::from_entropy(u128::from(n) + 1)
}

fn task(n: u8) -> TaskId {
    TaskId::from_entropy(u128::from(n + 1) << 96)
}

fn network(n: u8) -> NetworkId {
    NetworkId::from_entropy(u128::from(n + 1) << 96)
}

fn at(endpoint: u8, net: u8) -> Attachment {
    let addr = DualAddr {
        v4: Ipv4Addr::new(10, net, 0, endpoint),
        v6: Ipv6Addr::new(0xfd00, net.into(), 0, 0, 0, 0, 0, endpoint.into()),
    };
    Attachment {
        endpoint: EndpointId(u32::from(net) * 256 + u32::from(endpoint)),
        network: network(net),
        addr,
    }
}

fn underlay(n: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(192, 0, 2, n + 1))
}

/// Two nodes, each with a task in network 1 and in the ingress network (0), as node `own` is told.
fn assignment(own: u8, tasks: bool) -> Assignment {
    let label = |text: String| text.parse().expect("a label");
    let mut objects = vec![Assigned::Cluster(ClusterView {
        id: ClusterId::from_entropy(1),
        name: label("otter".into()),
        data_port: 7378,
        node: node(own),
        node_name: label(format!("n{own}")),
        router: at(own + 1, 0),
        lb_engine: shoal_types::LbEngine::Auto,
        direct: shoal_types::DirectRouting::Off,
        reserved: shoal_types::assignment::Reserved::default(),
    })];
    for n in 0..2 {
        objects.push(Assigned::Network(AssignedNetwork {
            id: network(n),
            name: label(format!("net{n}")),
            vni: Vni::new(u32::from(n) + 100).expect("in range"),
            subnets: DualNet {
                v4: format!("10.{n}.0.0/16").parse().expect("literal"),
                v6: format!("fd00:{n}::/64").parse().expect("literal"),
            },
            internal: false,
            ingress: n == 0,
        }));
        objects.push(Assigned::Member(Member {
            node: node(n),
            name: label(format!("n{n}")),
            data_addr: underlay(n),
            router: at(n + 1, 0),
        }));
        let attachments = vec![at(n + 20, 1), at(n + 20, 0)];
        if !tasks {
            continue;
        }
        objects.extend(attachments.iter().map(|at| {
            Assigned::Endpoint(Endpoint {
                id: at.endpoint,
                network: at.network.clone(),
                addr: at.addr,
                node: node(n),
                task: task(n),
                service: ServiceId::from_entropy(1),
                slot: Slot::Number(1),
                serving: true,
                weight: shoal_types::Weight::default(),
            })
        }));
        if n == own {
            objects.push(Assigned::Task(Box::new(AssignedTask {
                id: task(n),
                service: ServiceId::from_entropy(1),
                service_name: label("web".into()),
                slot: Slot::Number(1),
                spec: spec(),
                desired: DesiredState::Running,
                attachments,
                withdrawn: false,
                dns: DnsSpec::default(),
            })));
        }
    }
    Assignment::new(Generation(1), objects)
}

fn spec() -> TaskSpec {
    TaskSpec {
        process: ProcessSpec {
            command: vec!["true".into()],
            env: vec![],
            workdir: None,
            user: None,
            hostname: None,
            root: None,
            cap_add: vec![],
            read_only: false,
        },
        resources: Resources::default(),
        restart: RestartPolicy::default(),
        health: None,
        stop_grace_ms: 1,
        stop_signal: 15,
        constraints: vec![],
        max_per_node: 0,
        force_update: 0,
    }
}

/// What of it the overlay driver makes.
fn wanted(own: u8, tasks: bool) -> Objects {
    let assignment = assignment(own, tasks);
    let mut egress = EgressFacts {
        v4: "172.31.240.0/20".parse().expect("literal"),
        v6: "fd5a::/64".parse().expect("literal"),
        slots: BTreeMap::new(),
    };
    egress.assign(assignment.tasks().map(|task| &task.id));
    let facts = Facts {
        data_addr: underlay(own),
        underlay_mtu: 1500,
        uplinks: vec![],
        egress,
        engine: shoal_plan::Engine::Ebpf,
        firewall: true,
        fast_lane: true,
        connect_hooks: true,
        peers: Arc::default(),
    };
    let mut all = desired::derive(&assignment, &facts).expect("says who the node is");
    all.retain(|key, _| {
        matches!(
            key,
            Key::Bridge(_) | Key::Vxlan(_) | Key::Fdb(..) | Key::Neighbor(..) | Key::Sandbox(_) | Key::Leg(_)
        )
    });
    all
}

#[tokio::test]
async fn what_is_written_is_read_back_and_a_second_pass_writes_nothing() {
    let host = TestHost::new();
    let wanted = wanted(0, true);
    assert!(host.converge(&wanted).await > 20);
    host.assert_is(&wanted).await;
    assert_eq!(host.converge(&wanted).await, 0);
}

/// Makes all that a task has but its interface, and then that: its kind.
async fn kind_of_interface(netkit: Option<bool>) -> Result<InfoKind, LinkError> {
    let host = TestHost::with_netkit(netkit);
    let wanted = wanted(0, true);
    let mut rest = wanted.clone();
    rest.retain(|key, _| !matches!(key, Key::Leg(_)));
    host.converge(&rest).await;
    let legs = wanted.values().filter_map(|object| match object {
        Object::Leg(leg) if matches!(leg.kind, LegKind::Ingress { .. }) => Some(leg),
        _ => None,
    });
    for leg in legs {
        host.overlay.ensure_leg(leg).await?;
    }
    let links = host.nl().links().await.expect("links");
    let link = links.get(&IfName::veth(at(20, 0).endpoint)).expect("the interface is there");
    Ok(link.kind.clone().expect("it is of a kind"))
}

#[tokio::test]
async fn interfaces_of_tasks_are_netkit_where_that_is_and_is_not_refused() {
    // What the kernel has shows when nothing else will do.
    let best = match kind_of_interface(Some(true)).await {
        Ok(kind) => {
            assert_eq!(kind, InfoKind::Netkit);
            kind
        }
        Err(error) => {
            let text = error.to_string();
            assert!(text.contains("set network.netkit to auto or off"), "{text}");
            InfoKind::Veth
        }
    };
    assert_eq!(kind_of_interface(None).await.expect("made"), best);
    assert_eq!(kind_of_interface(Some(false)).await.expect("made"), InfoKind::Veth);
}

#[tokio::test]
async fn many_are_written_at_once_and_what_is_refused_is_told() {
    let host = TestHost::new();
    let mut wanted = wanted(0, false);
    host.converge(&wanted).await;
    let link = IfName::vxlan(&network(1));
    let mac = |n: u16| MacAddr([2, 0x73, 0, 1, n.to_be_bytes()[0], n.to_be_bytes()[1]]);
    let entries: Vec<Object> =
        (0..1_000).map(|n| Object::Fdb(Fdb { link: link.clone(), mac: mac(n), vtep: underlay(1) })).collect();
    let neighbors: Vec<Object> = (0..1_000)
        .map(|n| {
            let ip = Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 1, n).into();
            Object::Neighbor(Neighbor { link: link.clone(), ip, mac: mac(n) })
        })
        .collect();
    let links = host.nl().links().await.expect("links");
    let made = |links: &LinkTable, objects: &[Object]| {
        let objects: Vec<&Object> = objects.iter().collect();
        let write = || Overlay::ensure_many(links, &objects).expect("answered");
        host.netns.run(write).expect("in the namespace")
    };
    assert_eq!((made(&links, &entries), made(&links, &neighbors)), (1_000, 1_000));
    assert_eq!(made(&links, &entries), 1_000, "once more");
    wanted.extend(entries.iter().chain(&neighbors).map(|object| (object.key(), object.clone())));
    host.assert_is(&wanted).await;
    // A device that is gone although its index is still known; the first are for another one.
    let (gone, stays) = (IfName::vxlan(&network(0)), entries[..300].to_vec());
    host.overlay.remove_link(&gone).await.expect("removed");
    let mixed: Vec<Object> = stays
        .into_iter()
        .chain((0..300).map(|n| Object::Fdb(Fdb { link: gone.clone(), mac: mac(n), vtep: underlay(1) })))
        .collect();
    assert_eq!(made(&links, &mixed), 300);
}

#[tokio::test]
async fn what_others_change_is_put_right_and_no_more_than_that() {
    let host = TestHost::new();
    let wanted = wanted(0, true);
    host.converge(&wanted).await;
    let nl = host.nl();
    let links = nl.links().await.expect("links");
    let veth = links.get(&IfName::veth(at(20, 1).endpoint)).expect("there").clone();
    let vxlan = links.get(&IfName::vxlan(&network(1))).expect("there").clone();
    // A veth set down and taken off its bridge.
    let mut message = link_message(veth.index, vec![LinkAttribute::Controller(0)], false);
    message.header.change_mask = LinkFlags::Up;
    nl.change("damage", RouteNetlinkMessage::SetLink(message)).await.expect("changed");
    // Forwarding entries and neighbors of a device all gone.
    let mut removed = 0;
    for family in [AddressFamily::Bridge, AddressFamily::Inet, AddressFamily::Inet6] {
        for entry in nl.neighbors(family).await.expect("listed") {
            if entry.header.ifindex == vxlan.index
                && nl.change("damage", RouteNetlinkMessage::DelNeighbour(entry)).await.is_ok()
            {
                removed += 1;
            }
        }
    }
    assert!(removed >= 3, "{removed}");
    // Inside the task: an address gone, and another one there.
    let inside = host.namespaces.open(task(0).as_str()).expect("there");
    let connection = inside.netlink().expect("netlink");
    let inner = Nl::new(connection.handle(), &Writes::default());
    let eth0 = inner.link(&IfName::new("eth0")).await.expect("listed").expect("there");
    let own: IpAddr = Ipv4Addr::new(10, 1, 0, 20).into();
    let message = RouteNetlinkMessage::DelAddress(address(eth0.index, own, 16));
    inner.change("damage", message).await.expect("changed");
    let message = RouteNetlinkMessage::NewAddress(address(eth0.index, Ipv4Addr::new(10, 1, 9, 9).into(), 16));
    inner.create("damage", message).await.expect("changed");
    connection.close().await;
    // A route of the host's, to the egress bridge.
    let before = without_routes(&nl, &IfName::egress_bridge()).await;

    let repair = host.converge(&wanted).await;
    host.assert_is(&wanted).await;
    assert!(repair <= removed + 10, "{repair} writes for {removed} + 6 changes");
    assert_eq!(host.converge(&wanted).await, 0);
    assert_eq!(routes(&nl, &IfName::egress_bridge()).await, before, "as the kernel had made them");
}

/// The routes to subnets by a link.
async fn routes(nl: &Nl, name: &IfName) -> Vec<RouteMessage> {
    let index = nl.link(name).await.expect("listed").expect("there").index;
    let mut found = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        found.extend(nl.routes(family).await.expect("listed"));
    }
    found.retain(|route| {
        route.header.kind == RouteType::Unicast && route.attributes.contains(&RouteAttribute::Oif(index))
    });
    found
}

/// Removes them; which they were.
async fn without_routes(nl: &Nl, name: &IfName) -> Vec<RouteMessage> {
    let routes = routes(nl, name).await;
    assert!(routes.len() >= 2, "{routes:?}");
    for route in &routes {
        nl.change("damage", RouteNetlinkMessage::DelRoute(route.clone())).await.expect("changed");
    }
    routes
}

#[tokio::test]
async fn routes_of_a_task_that_somebody_removes_are_made_again() {
    let host = TestHost::new();
    let wanted = wanted(0, true);
    host.converge(&wanted).await;
    let inside = host.namespaces.open(task(0).as_str()).expect("there");
    let connection = inside.netlink().expect("netlink");
    let inner = Nl::new(connection.handle(), &Writes::default());
    let names: Vec<IfName> =
        inner.links().await.expect("listed").iter().map(|link| link.name.clone()).collect();
    let mut lost = Vec::new();
    for name in names.iter().filter(|name| name.as_str() != "lo") {
        lost.push((name, without_routes(&inner, name).await));
    }
    assert!(host.converge(&wanted).await > 0);
    host.assert_is(&wanted).await;
    for (name, lost) in lost {
        assert_eq!(routes(&inner, name).await.len(), lost.len(), "{name}");
    }
    connection.close().await;
    assert_eq!(host.converge(&wanted).await, 0);
}

#[tokio::test]
async fn a_device_of_another_identity_is_replaced_and_a_foreign_one_is_left_alone() {
    let host = TestHost::new();
    let before = wanted(0, true);
    host.converge(&before).await;
    // The VTEP moved: every VXLAN device has to be made anew.
    let mut after = before.clone();
    for object in after.values_mut() {
        if let Object::Vxlan(vxlan) = object {
            vxlan.local = Ipv4Addr::new(192, 0, 2, 77).into();
        }
    }
    host.converge(&after).await;
    // Entries went with their device; the next pass sees that.
    host.converge(&after).await;
    host.assert_is(&after).await;

    let other = TestHost::new();
    let mut foreign = LinkMessage::default();
    foreign.attributes = vec![
        LinkAttribute::IfName(IfName::bridge(&network(1)).to_string()),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]),
    ];
    other.nl().create("make", RouteNetlinkMessage::NewLink(foreign)).await.expect("made");
    let link = other.nl().link(&IfName::bridge(&network(1))).await.expect("listed").expect("there");
    let alias = vec![LinkAttribute::IfAlias("the lab's".into())];
    let message = RouteNetlinkMessage::SetLink(link_message(link.index, alias, false));
    other.nl().change("mark", message).await.expect("marked");
    let bridge = before.values().find_map(|object| match object {
        Object::Bridge(bridge) if bridge.name == IfName::bridge(&network(1)) => Some(bridge.clone()),
        _ => None,
    });
    let refused = other.overlay.ensure_bridge(&bridge.expect("wanted")).await.expect_err("not ours");
    assert!(!refused.is_retryable() && refused.to_string().contains("the lab's"), "{refused}");
    assert!(other.observe().await.is_empty(), "a foreign link is not observed, so never removed");
}

#[tokio::test]
async fn two_hosts_talk_over_the_baseline_and_nothing_stays() {
    let hosts = [TestHost::new(), TestHost::new()];
    cable(&hosts).await;
    for (n, host) in (0..).zip(&hosts) {
        host.converge(&wanted(n, true)).await;
        host.assert_is(&wanted(n, true)).await;
    }
    let inside = |n: u8| hosts[usize::from(n)].namespaces.open(task(n).as_str()).expect("there");
    let (client, server) = (inside(0), inside(1));
    for ip in at(21, 1).addr.iter() {
        let listener =
            server.run(|| TcpListener::bind(SocketAddr::new(ip, 80)).expect("bound")).expect("inside");
        let answering = std::thread::spawn(move || {
            let (mut stream, peer) = listener.accept().expect("a client");
            stream.write_all(b"hello").expect("written");
            peer.ip()
        });
        let mut stream = client
            .run(|| TcpStream::connect_timeout(&SocketAddr::new(ip, 80), PATIENCE))
            .expect("inside")
            .unwrap_or_else(|error| panic!("{ip}: {error}"));
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("read");
        assert_eq!(text, "hello");
        let peer = answering.join().expect("no panic");
        assert!(at(20, 1).addr.iter().any(|own| own == peer), "{peer}");
    }
    drop((client, server));
    for host in &hosts {
        host.converge(&Objects::new()).await;
        assert!(host.observe().await.is_empty());
        let links = host.nl().links().await.expect("links");
        let left: Vec<_> = links.iter().filter(|link| link.name.has_our_prefix()).collect();
        assert!(left.is_empty(), "{left:?}");
        assert!(host.namespaces.list().expect("listed").is_empty());
    }
}

fn address(index: u32, ip: IpAddr, prefix_len: u8) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.index = index;
    message.header.prefix_len = prefix_len;
    message.header.family = if ip.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    message.header.flags = AddressHeaderFlags::Nodad;
    message.attributes = vec![AddressAttribute::Address(ip), AddressAttribute::Local(ip)];
    message
}

/// Joins the two by a veth with their underlay addresses.
async fn cable(hosts: &[TestHost; 2]) {
    let mut peer = LinkMessage::default();
    peer.attributes =
        vec![LinkAttribute::NetNsFd(hosts[1].netns.as_fd().as_raw_fd()), LinkAttribute::IfName("up0".into())];
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName("up0".into()),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]),
    ];
    hosts[0].nl().create("cable", RouteNetlinkMessage::NewLink(message)).await.expect("a cable");
    for (n, host) in (0..).zip(hosts) {
        let nl = host.nl();
        let link = nl.link(&IfName::new("up0")).await.expect("listed").expect("there");
        let message = RouteNetlinkMessage::NewAddress(address(link.index, underlay(n), 24));
        nl.create("address", message).await.expect("an address");
        let message = RouteNetlinkMessage::SetLink(link_message(link.index, vec![], true));
        nl.change("up", message).await.expect("up");
    }
}
