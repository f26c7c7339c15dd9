//! Published ports whose clients are answered by the task's node itself (`dsr=true`).

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, ensure};
use shoal_netns::{DEVICE, Host, Node, Swarm, Traffic, slowness, transfer_by, wait_for};

use crate::harness::{
    CONN, ECHO, LISTENS, PATIENCE, PUBLISHED_CONN, PUBLISHED_ECHO, PUBLISHED_WHOAMI, Scenario, WHOAMI,
    ask_node, create_serving, ensure_same, running, scenario,
};
use crate::load::Load;
use crate::repair;

pub(crate) const SCENARIOS: &[Scenario] = &[
    scenario("answers_go_past_the_node_that_was_asked", past),
    scenario("datagrams_are_answered_from_where_they_were_sent_to", datagrams),
    scenario("clients_on_the_nodes_are_answered_too", nodes_ask),
    scenario("clients_behind_a_bridge_of_a_node_are_answered_by_it", behind),
    scenario("streams_outlast_what_becomes_of_doors", streams),
    scenario("an_address_that_moves_takes_its_connections_along", moved),
    scenario("replacing_tasks_fails_no_request", replaced),
    scenario("what_it_does_not_go_with_is_refused", refused),
];

const MOVED: u16 = 7012;
const PUBLISHED_MOVED: u16 = 8092;
const LARGE: u64 = 8 << 20;
const DATAGRAMS: u64 = 400;

fn port(published: u16, target: u16) -> String {
    format!("published={published},target={target},dsr=true")
}

/// A service all of whose ports are answered so.
fn create(swarm: &Swarm, flags: &[&str]) -> anyhow::Result<()> {
    let servers = format!("--whoami {WHOAMI} --conn {CONN} --echo {ECHO} --transfer {MOVED}");
    let ports = [
        port(PUBLISHED_WHOAMI, WHOAMI),
        format!("{},protocol=udp", port(PUBLISHED_WHOAMI, WHOAMI)),
        port(PUBLISHED_CONN, CONN),
        port(PUBLISHED_ECHO, ECHO),
        port(PUBLISHED_MOVED, MOVED),
    ];
    let ports: Vec<&str> = ports.iter().flat_map(|port| ["-p", port]).collect();
    create_serving(swarm, "web", "front", &[&ports, flags].concat(), &servers)
}

/// The same with its only task on the second node.
fn on_one_node(swarm: &Swarm) -> anyhow::Result<()> {
    create(swarm, &["--constraint", "node.hostname==n2"])?;
    running(swarm, "web", 1).map(drop)
}

fn update(swarm: &Swarm, port: &str) -> anyhow::Result<()> {
    swarm.manager().shoal(&["service", "update", "--publish-add", port, "web"]).map(drop)
}

/// What the kernel says of a host's device.
fn device(host: &Host) -> anyhow::Result<serde_json::Value> {
    let text = host.ip(&format!("-s -j link show dev {DEVICE}"))?;
    let links: serde_json::Value = serde_json::from_str(&text)?;
    Ok(links[0].clone())
}

/// How many `bytes` or `packets` a node has sent to the LAN so far.
fn sent(node: &Node, what: &str) -> anyhow::Result<u64> {
    device(&node.host)?["stats64"]["tx"][what].as_u64().context("what was sent")
}

/// Bytes that a download from an address makes the node that has it, and the task's node, send.
fn download(swarm: &Swarm, by: &Node, address: IpAddr, bytes: u64) -> anyhow::Result<[u64; 2]> {
    let both = [by, &swarm.nodes[1]];
    let before = [sent(both[0], "bytes")?, sent(both[1], "bytes")?];
    let target = SocketAddr::new(address, PUBLISHED_MOVED);
    transfer_by(swarm.client.run(&swarm.programs.load), target, 0, bytes)?;
    Ok([sent(both[0], "bytes")? - before[0], sent(both[1], "bytes")? - before[1]])
}

/// Waits until a node's answers go past it.
fn goes_past(swarm: &Swarm, by: &Node, address: IpAddr) -> anyhow::Result<()> {
    let bytes = LARGE / u64::from(slowness().pow(2));
    wait_for(&format!("answers of {address} to go past {}", by.name()), PATIENCE, || {
        let [asked, task] = download(swarm, by, address, bytes).map_err(|error| format!("{error:#}"))?;
        if asked < bytes / 4 && task >= bytes {
            Ok(())
        } else {
            Err(format!("{asked} and {task} of {bytes}"))
        }
    })
}

fn past(swarm: &mut Swarm) -> anyhow::Result<()> {
    on_one_node(swarm)?;
    for node in [&swarm.nodes[0], &swarm.nodes[2]] {
        for address in node.place.addresses() {
            goes_past(swarm, node, address)?;
            let answers = ask_node(swarm, address, PUBLISHED_WHOAMI, false, 20)?.complete()?;
            let seen = answers.peers.iter().all(|peer| swarm.client_place.addresses().contains(peer));
            ensure!(seen && answers.port_kept == 20, "{answers:?}");
        }
    }
    // By the task's own node, and without the option: the way that all go.
    for address in swarm.nodes[1].place.addresses() {
        download(swarm, &swarm.nodes[1], address, 1 << 16)?;
    }
    update(swarm, &format!("{PUBLISHED_MOVED}:{MOVED}"))?;
    let bytes = LARGE / u64::from(slowness().pow(2));
    let node = &swarm.nodes[0];
    wait_for("answers to go by the node that is asked again", PATIENCE, || {
        let sent =
            download(swarm, node, node.place.v4.into(), bytes).map_err(|error| format!("{error:#}"))?;
        if sent[0] >= bytes { Ok(()) } else { Err(format!("{sent:?} of {bytes}")) }
    })
}

fn datagrams(swarm: &mut Swarm) -> anyhow::Result<()> {
    on_one_node(swarm)?;
    for node in &swarm.nodes {
        for address in node.place.addresses() {
            if node.name() != "n2" {
                goes_past(swarm, node, address)?;
            }
            // The client's socket is connected: it takes nothing from elsewhere.
            ask_node(swarm, address, PUBLISHED_WHOAMI, true, 20)?.complete()?;
        }
    }
    // Each is sent on once, and what else a node has to say is little.
    for address in swarm.nodes[0].place.addresses() {
        let before = [sent(&swarm.nodes[0], "packets")?, sent(&swarm.nodes[1], "packets")?];
        ask_node(swarm, address, PUBLISHED_WHOAMI, true, usize::try_from(DATAGRAMS)?)?.complete()?;
        let asked = sent(&swarm.nodes[0], "packets")? - before[0];
        let task = sent(&swarm.nodes[1], "packets")? - before[1];
        let is_so = (DATAGRAMS..DATAGRAMS * 3 / 2).contains(&asked) && task >= DATAGRAMS;
        ensure!(is_so, "{asked} and {task} of {DATAGRAMS}");
    }
    Ok(())
}

fn nodes_ask(swarm: &mut Swarm) -> anyhow::Result<()> {
    on_one_node(swarm)?;
    for node in [&swarm.nodes[0], &swarm.nodes[2]] {
        goes_past(swarm, node, node.place.v6.into())?;
    }
    let addresses: Vec<IpAddr> = swarm.nodes.iter().flat_map(|node| node.place.addresses()).collect();
    for node in &swarm.nodes {
        let own = ["127.0.0.1".parse()?, "::1".parse()?];
        for address in addresses.iter().copied().chain(own) {
            for udp in [false, true] {
                let target = SocketAddr::new(address, PUBLISHED_WHOAMI);
                let answers = shoal_netns::ask(&node.host, &swarm.programs, target, udp, 5);
                answers?.complete().with_context(|| format!("{} asked {address}", node.name()))?;
            }
        }
    }
    Ok(())
}

/// A network of a node's own, of the kind that containers of something else are in: every node has it, with the same
/// addresses. It goes when it is dropped.
struct Inner<'a>(&'a Swarm);

impl<'a> Inner<'a> {
    const BRIDGE: &'static str = "inner0";

    /// With a client in that of the first node, and somebody else of the same address in that of the task's.
    fn new(swarm: &'a Swarm, client: &Host, other: &Host) -> anyhow::Result<Self> {
        let this = Self(swarm);
        for (node, guest) in [(&swarm.nodes[0], client), (&swarm.nodes[1], other)] {
            let bridge = Self::BRIDGE;
            node.host.ip(&format!("link add {bridge} type bridge"))?;
            node.host.ip(&format!("addr add 172.30.9.1/24 dev {bridge}"))?;
            node.host.ip(&format!("addr add fd79::1/64 dev {bridge} nodad"))?;
            let guest_end = format!("peer name {DEVICE} netns {}", guest.unique());
            node.host.ip(&format!("link add inner1 type veth {guest_end}"))?;
            node.host.ip(&format!("link set inner1 master {bridge} up"))?;
            node.host.ip(&format!("link set {bridge} up"))?;
            guest.ip(&format!("addr add 172.30.9.2/24 dev {DEVICE}"))?;
            guest.ip(&format!("addr add fd79::2/64 dev {DEVICE} nodad"))?;
            guest.ip(&format!("link set {DEVICE} up"))?;
            guest.ip("route add default via 172.30.9.1")?;
            guest.ip("-6 route add default via fd79::1")?;
        }
        Ok(this)
    }
}

impl Drop for Inner<'_> {
    fn drop(&mut self) {
        // A scenario that failed leaves none behind either; the residue check sees what stays.
        for node in &self.0.nodes[..2] {
            drop(node.host.ip("link del inner1"));
            drop(node.host.ip(&format!("link del {}", Self::BRIDGE)));
        }
    }
}

fn behind(swarm: &mut Swarm) -> anyhow::Result<()> {
    on_one_node(swarm)?;
    for address in swarm.nodes[0].place.addresses() {
        goes_past(swarm, &swarm.nodes[0], address)?;
    }
    let (guest, other) = (Host::new("guest")?, Host::new("other")?);
    let _inner = Inner::new(swarm, &guest, &other)?;
    let inside: [IpAddr; 2] = ["172.30.9.1".parse()?, "fd79::1".parse()?];
    for address in swarm.nodes[0].place.addresses().into_iter().chain(inside) {
        for udp in [false, true] {
            let target = SocketAddr::new(address, PUBLISHED_WHOAMI);
            wait_for(&format!("{target} to answer its guest"), PATIENCE, || {
                let answers = shoal_netns::ask(&guest, &swarm.programs, target, udp, 5);
                answers.and_then(shoal_netns::Answers::complete).map_err(|error| format!("{error:#}"))
            })?;
        }
    }
    // Outside nothing has changed.
    goes_past(swarm, &swarm.nodes[0], swarm.nodes[0].place.v4.into())
}

/// Streams by all addresses of the first node.
fn by_first(swarm: &Swarm) -> anyhow::Result<Vec<Traffic>> {
    let target = |address| SocketAddr::new(address, PUBLISHED_ECHO);
    let stream = |address| Traffic::streams(&swarm.client, &swarm.programs, target(address), 3);
    swarm.nodes[0].place.addresses().into_iter().map(stream).collect()
}

fn finish(streams: Vec<Traffic>) -> anyhow::Result<()> {
    for stream in streams {
        let report = stream.finish()?;
        ensure!(report["lines"].as_u64() > Some(20), "hardly a line was sent: {report}");
    }
    Ok(())
}

fn streams(swarm: &mut Swarm) -> anyhow::Result<()> {
    on_one_node(swarm)?;
    for address in swarm.nodes[0].place.addresses() {
        goes_past(swarm, &swarm.nodes[0], address)?;
    }
    let streams = by_first(swarm)?;
    // Somebody takes a door away, and puts another address behind one.
    let map = repair::map(&swarm.nodes[1], "DOORS")?;
    let key = map.first_key()?.context("a door")?;
    let wanted = map.get(&key)?.context("it was there")?;
    let is_back = || Ok(map.get(&key)?.as_ref() == Some(&wanted));
    repair::repairs(&swarm.nodes[1], "door", || map.delete(&key), is_back)?;
    // The ports are published otherwise, and so again: what is there goes on as it began.
    update(swarm, &format!("{PUBLISHED_ECHO}:{ECHO}"))?;
    let middle = by_first(swarm)?;
    update(swarm, &port(PUBLISHED_ECHO, ECHO))?;
    let last = by_first(swarm)?;
    // Both ends forget what they were told of each other.
    for n in [1, 0] {
        swarm.nodes[n].kill_daemon()?;
        swarm.nodes[n].start_daemon()?;
    }
    swarm.wait_ready(3)?;
    for address in swarm.nodes[0].place.addresses() {
        goes_past(swarm, &swarm.nodes[0], address)?;
    }
    [streams, middle, last].into_iter().try_for_each(finish)
}

/// The client finds an address at one node from now on, as after an announcement.
fn leads_to(swarm: &Swarm, address: IpAddr, node: &Node) -> anyhow::Result<()> {
    let link = device(&node.host)?;
    let mac = link["address"].as_str().context("an Ethernet address")?;
    swarm.client.ip(&format!("neigh replace {address} lladdr {mac} dev {DEVICE}")).map(drop)
}

fn moved(swarm: &mut Swarm) -> anyhow::Result<()> {
    on_one_node(swarm)?;
    let floating: [IpAddr; 2] = ["10.77.0.201".parse()?, "fd77::201".parse()?];
    // Both have it: where one has not found it yet, the stack resets whose connection it does not know.
    for node in [&swarm.nodes[0], &swarm.nodes[2]] {
        node.host.ip(&format!("addr add {}/32 dev {DEVICE}", floating[0]))?;
        node.host.ip(&format!("addr add {}/128 dev {DEVICE} nodad", floating[1]))?;
    }
    let mut streams = Vec::new();
    for address in floating {
        swarm.client.ip(&format!("route replace {address} dev {DEVICE}"))?;
        for node in [&swarm.nodes[2], &swarm.nodes[0]] {
            leads_to(swarm, address, node)?;
            goes_past(swarm, node, address)?;
        }
        let target = SocketAddr::new(address, PUBLISHED_ECHO);
        streams.push(Traffic::streams(&swarm.client, &swarm.programs, target, 3)?);
    }
    for node in [&swarm.nodes[2], &swarm.nodes[0]] {
        for address in floating {
            leads_to(swarm, address, node)?;
            goes_past(swarm, node, address)?;
        }
    }
    let ended = finish(streams);
    for address in floating {
        swarm.client.ip(&format!("neigh del {address} dev {DEVICE}"))?;
        swarm.client.ip(&format!("route del {address} dev {DEVICE}"))?;
        for node in [&swarm.nodes[0], &swarm.nodes[2]] {
            let length = if address.is_ipv4() { 32 } else { 128 };
            node.host.ip(&format!("addr del {address}/{length} dev {DEVICE}"))?;
        }
    }
    ended
}

fn replaced(swarm: &mut Swarm) -> anyhow::Result<()> {
    let flags = ["--replicas", "3", "--update-parallelism", "1", "--drain", "10s"];
    create(swarm, &[&flags[..], &LISTENS].concat())?;
    running(swarm, "web", 3)?;
    for node in &swarm.nodes {
        for address in node.place.addresses() {
            wait_for(&format!("{address} to answer"), PATIENCE, || {
                let answers = ask_node(swarm, address, PUBLISHED_WHOAMI, false, 10);
                answers.and_then(shoal_netns::Answers::complete).map_err(|error| format!("{error:#}"))
            })?;
        }
    }
    let load = Load::published(swarm, &swarm.nodes)?;
    swarm.manager().shoal(&["service", "update", "--force", "web"])?;
    swarm.manager().shoal(&["service", "scale", "web=2"])?;
    running(swarm, "web", 2)?;
    load.finish()
}

fn refused(swarm: &mut Swarm) -> anyhow::Result<()> {
    let refuse = |words: &str, said: &[&str]| {
        let words = format!("service create --name other {words} -- sleep 1000");
        let words: Vec<&str> = words.split(' ').collect();
        swarm.manager().refused(&words, 2, said)
    };
    let port = format!("-p {}", port(PUBLISHED_WHOAMI, WHOAMI));
    refuse(&format!("{port},proxy-protocol=v2"), &["E0100", "dsr", "proxy-protocol", "help:"])?;
    refuse(&format!("{port},mode=host"), &["E0100", "dsr", "host", "help:"])?;
    refuse(&format!("{port},dsr=maybe"), &["dsr", "maybe"])?;
    on_one_node(swarm)?;
    let shown = swarm.manager().shoal(&["service", "ls", "--format", "{{.Ports}}"])?;
    let text = format!("*:{PUBLISHED_WHOAMI}->{WHOAMI}/tcp (dsr)");
    ensure!(shown.contains(&text), "{text} is not in {shown}");
    ensure_same("the option once", &shown.matches("8092").count(), &1)
}
