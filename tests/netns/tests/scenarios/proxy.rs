//! Published ports whose tasks are told of their clients by a header of the PROXY protocol.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context, ensure};
use shoal_netns::{
    Answers, DEVICE, Host, Need, Place, Swarm, Traffic, ask_by, ask_greeted_by, slowness, transfer_by,
    wait_for,
};

use crate::harness::{
    ECHO, PATIENCE, PUBLISHED_ECHO, PUBLISHED_WHOAMI, Scenario, WHOAMI, create_serving, ensure_same, running,
    scenario,
};
use crate::repair;

pub(crate) const SCENARIOS: &[Scenario] = &[
    scenario("the_header_has_the_client_and_what_it_asked", named),
    scenario("many_connections_at_once_have_each_its_own", many),
    scenario("large_transfers_are_whole", large),
    scenario("nothing_is_lost_or_doubled_where_packets_are", lossy).needs(&[Need::Nftables]),
    scenario("switching_it_is_for_new_connections", switched),
    scenario("a_port_in_host_mode_and_on_one_address_has_it_too", bound),
    scenario("virtual_ips_and_ports_beside_it_have_none", beside),
    scenario("what_somebody_changes_of_it_is_put_back", put_back),
    scenario("what_can_t_have_it_is_refused", refused),
];

/// Servers of a task that expect the header.
const NAMED: u16 = 7010;
const GREETED: u16 = 7011;
const MOVED: u16 = 7012;
const ECHOED: u16 = 7013;
/// Where they are published.
const PUBLISHED: u16 = 8090;
const PUBLISHED_GREETED: u16 = 8091;
const PUBLISHED_MOVED: u16 = 8092;
const PUBLISHED_ECHOED: u16 = 8093;
/// One that takes bytes without a header.
const PLAIN_MOVED: u16 = 7020;

const LARGE: u64 = 8 << 20;

fn servers() -> String {
    let headed = format!("--whoami {NAMED} --greet {GREETED} --transfer {MOVED} --echo {ECHOED}");
    let marks = [NAMED, GREETED, MOVED, ECHOED].map(|port| format!("--proxy {port}")).join(" ");
    format!("--whoami {WHOAMI} --echo {ECHO} --transfer {PLAIN_MOVED} {headed} {marks}")
}

/// A service whose servers are published with the header, and one of them without.
fn create(swarm: &Swarm, flags: &[&str]) -> anyhow::Result<()> {
    let headed =
        format!("published={PUBLISHED}-{PUBLISHED_ECHOED},target={NAMED}-{ECHOED},proxy-protocol=v2");
    let plain = format!("{PUBLISHED_WHOAMI}:{WHOAMI}");
    let ports = ["-p", &headed, "-p", &plain];
    create_serving(swarm, "web", "front", &[&ports, flags].concat(), &servers())
}

/// The same with its only task on the second node.
fn on_one_node(swarm: &Swarm) -> anyhow::Result<()> {
    create(swarm, &["--constraint", "node.hostname==n2"])?;
    running(swarm, "web", 1).map(drop)
}

fn update(swarm: &Swarm, port: &str) -> anyhow::Result<()> {
    swarm.manager().shoal(&["service", "update", "--publish-add", port, "web"]).map(drop)
}

/// Every address of every node.
fn nodes(swarm: &Swarm) -> Vec<IpAddr> {
    swarm.nodes.iter().flat_map(|node| node.place.addresses()).collect()
}

/// Whoever asks from a host, and what; the first question may come before the port is there.
struct Asker<'a> {
    swarm: &'a Swarm,
    host: &'a Host,
    greeted: bool,
}

impl Asker<'_> {
    fn once(&self, target: SocketAddr, count: usize) -> anyhow::Result<Answers> {
        let run = self.host.run(&self.swarm.programs.load);
        if self.greeted { ask_greeted_by(run, target, count) } else { ask_by(run, target, false, count) }
    }

    /// Asks until it is answered, and then so many times; all must be.
    fn answers(&self, target: SocketAddr, count: usize) -> anyhow::Result<Answers> {
        wait_for(&format!("{target} to answer {}", self.host.label()), PATIENCE, || {
            let answers = self.once(target, 1).map_err(|error| format!("{error:#}"))?;
            if answers.failed == 0 { Ok(()) } else { Err(format!("{answers:?}")) }
        })?;
        self.once(target, count)?.complete()
    }

    /// Asks; every connection must have had the header, and it must have said what the client's socket says.
    fn is_named(&self, target: SocketAddr, count: usize) -> anyhow::Result<Answers> {
        let answers = self.answers(target, count)?;
        let right = answers.headed == count && answers.misled.is_empty() && answers.headless == 0;
        ensure!(right, "{} asked {target}: {answers:?}", self.host.label());
        Ok(answers)
    }
}

fn client(swarm: &Swarm) -> Asker<'_> {
    Asker { swarm, host: &swarm.client, greeted: false }
}

fn named(swarm: &mut Swarm) -> anyhow::Result<()> {
    on_one_node(swarm)?;
    for (greeted, port) in [(false, PUBLISHED), (true, PUBLISHED_GREETED)] {
        let own: BTreeSet<IpAddr> = swarm.client_place.addresses().into();
        for address in nodes(swarm) {
            let asker = Asker { greeted, ..client(swarm) };
            let answers = asker.is_named(SocketAddr::new(address, port), 5)?;
            // It is what the task sees anyway.
            let seen = answers.peers.iter().all(|peer| own.contains(peer));
            ensure!(seen && answers.port_kept == 5, "{answers:?}");
        }
        for node in &swarm.nodes {
            let asker = Asker { swarm, host: &node.host, greeted };
            let loopback: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
            for address in loopback.into_iter().chain(node.place.addresses()) {
                asker.is_named(SocketAddr::new(address, port), 5)?;
            }
        }
    }
    Ok(())
}

fn many(swarm: &mut Swarm) -> anyhow::Result<()> {
    create(swarm, &["--replicas", "3"])?;
    running(swarm, "web", 3)?;
    let swarm = &*swarm;
    let count = 200 / usize::try_from(slowness())?;
    std::thread::scope(|scope| {
        let targets = nodes(swarm).into_iter().map(|address| SocketAddr::new(address, PUBLISHED));
        let ask = |target| scope.spawn(move || client(swarm).is_named(target, count));
        let threads: Vec<_> = targets.map(ask).collect();
        let panicked = |_| Err(anyhow::anyhow!("panicked"));
        for thread in threads {
            let answers = thread.join().unwrap_or_else(panicked)?;
            ensure!(answers.hosts.len() == 3, "not every task was asked: {answers:?}");
        }
        Ok(())
    })
}

/// Waits until transfers to a target are possible at all.
fn can_move(host: &Host, swarm: &Swarm, target: SocketAddr) -> anyhow::Result<()> {
    wait_for(&format!("{target} to take bytes of {}", host.label()), PATIENCE, || {
        transfer_by(host.run(&swarm.programs.load), target, 1, 1).map_err(|error| format!("{error:#}"))
    })
}

fn moves(host: &Host, swarm: &Swarm, target: SocketAddr, bytes: u64) -> anyhow::Result<()> {
    can_move(host, swarm, target)?;
    let load = || host.run(&swarm.programs.load);
    transfer_by(load(), target, bytes, 0).context("up")?;
    transfer_by(load(), target, 0, bytes).context("down")
}

fn large(swarm: &mut Swarm) -> anyhow::Result<()> {
    on_one_node(swarm)?;
    let bytes = LARGE / u64::from(slowness().pow(2));
    for address in nodes(swarm) {
        moves(&swarm.client, swarm, SocketAddr::new(address, PUBLISHED_MOVED), bytes)?;
    }
    for node in &swarm.nodes {
        for address in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
            moves(&node.host, swarm, SocketAddr::new(address, PUBLISHED_MOVED), bytes)?;
        }
    }
    Ok(())
}

/// A LAN that loses some packets of published ports and tunnels.
struct Lossy<'a>(&'a Host);

impl<'a> Lossy<'a> {
    fn new(swarm: &'a Swarm, percent: u32) -> anyhow::Result<Self> {
        let this = Self(swarm.lan.host());
        // A packet of many would be lost whole, and few are sent.
        swarm.client.ip(&format!("link set {DEVICE} gso_max_segs 1"))?;
        this.nft("add table netdev lossy")?;
        for number in [1, 2, 3, 100] {
            let hook = format!("type filter hook ingress device port{number} priority 0 ;");
            this.nft(&format!("add chain netdev lossy port{number} {{ {hook} }}"))?;
            let ports = format!("{PUBLISHED}-{PUBLISHED_ECHOED}");
            for those in [format!("tcp dport {ports}"), format!("tcp sport {ports}"), "udp dport 7378".into()]
            {
                let lose = format!("numgen random mod 100 < {percent} counter drop");
                this.nft(&format!("add rule netdev lossy port{number} {those} {lose}"))?;
            }
        }
        Ok(this)
    }

    fn nft(&self, line: &str) -> anyhow::Result<()> {
        self.0.run_line(&format!("nft {line}")).stdout().map(drop)
    }

    /// Packets lost so far, either way.
    fn lost(&self) -> anyhow::Result<u64> {
        let table = self.0.run_line("nft list table netdev lossy").stdout()?;
        let counts = table.split("counter packets ").skip(1).filter_map(|rest| rest.split(' ').next());
        counts.map(|count| count.parse::<u64>().context("a count")).sum()
    }
}

impl Drop for Lossy<'_> {
    fn drop(&mut self) {
        // A scenario that failed leaves none behind either; the residue check sees what stays.
        drop(self.nft("delete table netdev lossy"));
    }
}

fn lossy(swarm: &mut Swarm) -> anyhow::Result<()> {
    const ROUNDS: usize = 15;
    on_one_node(swarm)?;
    let places = [swarm.nodes[0].place, swarm.nodes[1].place];
    for address in places.iter().flat_map(Place::addresses) {
        can_move(&swarm.client, swarm, SocketAddr::new(address, PUBLISHED_MOVED))?;
    }
    let loss = Lossy::new(swarm, 4)?;
    for address in places.iter().flat_map(Place::addresses) {
        let target = SocketAddr::new(address, PUBLISHED_MOVED);
        let load = || swarm.client.run(&swarm.programs.load);
        transfer_by(load(), target, 1 << 20, 0).context("up")?;
        transfer_by(load(), target, 0, 1 << 20).context("down")?;
        // Headers are among what is lost, of clients that send at once and of those that wait for a word.
        for _ in 0..ROUNDS {
            transfer_by(load(), target, 3_000, 3_000).context("a few bytes")?;
        }
        // (The server of `whoami` does not wait long for a lost question, and resets what comes later.)
        let patient =
            load().args(["ask", "--greeted", "--timeout-ms", "30000", "--count", &ROUNDS.to_string()]);
        let greeted = SocketAddr::new(address, PUBLISHED_GREETED);
        let output = patient.args(["--target", &greeted.to_string()]).output()?;
        let answers: Answers = serde_json::from_slice(&output.stdout).context("no answers")?;
        let right = answers.headed == ROUNDS && answers.misled.is_empty() && answers.headless == 0;
        ensure!(right, "{address}: {answers:?}");
    }
    let lost = loss.lost()?;
    swarm.client.ip(&format!("link set {DEVICE} gso_max_segs 65535"))?;
    ensure!(lost > 100, "hardly a packet was lost: {lost}");
    Ok(())
}

fn switched(swarm: &mut Swarm) -> anyhow::Result<()> {
    create(swarm, &["-p", &format!("{PUBLISHED_ECHO}:{ECHO}")])?;
    running(swarm, "web", 1)?;
    let addresses = [nodes(swarm), vec![Ipv4Addr::LOCALHOST.into()]].concat();
    let host = |address: IpAddr| if address.is_loopback() { &swarm.nodes[0].host } else { &swarm.client };
    let asker = |address| Asker { host: host(address), ..client(swarm) };
    let target = SocketAddr::new;
    let mut streams = Vec::new();
    for address in &addresses {
        asker(*address).is_named(target(*address, PUBLISHED), 1)?;
        for port in [PUBLISHED_ECHOED, PUBLISHED_ECHO] {
            let to = target(*address, port);
            streams.push(Traffic::streams(host(*address), &swarm.programs, to, 2)?);
        }
    }
    // Off for the one, on for the other: the connections that are there know nothing of it.
    update(swarm, &format!("{PUBLISHED_ECHOED}:{ECHOED}"))?;
    update(swarm, &format!("published={PUBLISHED_ECHO},target={ECHO},proxy-protocol=v2"))?;
    update(swarm, &format!("{PUBLISHED_MOVED}:{PLAIN_MOVED}"))?;
    update(swarm, &format!("{PUBLISHED}:{WHOAMI}"))?;
    for address in &addresses {
        wait_for(&format!("{address} to lead to the plain server"), PATIENCE, || {
            let answers = asker(*address).once(target(*address, PUBLISHED), 5);
            let answers = answers.map_err(|error| format!("{error:#}"))?;
            let is_plain = answers.ok == 5 && answers.headed == 0;
            if is_plain { Ok(()) } else { Err(format!("{answers:?}")) }
        })?;
        // The server would take a header for how many bytes come.
        moves(host(*address), swarm, target(*address, PUBLISHED_MOVED), 1 << 16)?;
    }
    update(swarm, &format!("published={PUBLISHED_MOVED},target={MOVED},proxy-protocol=v2"))?;
    for address in &addresses {
        moves(host(*address), swarm, target(*address, PUBLISHED_MOVED), 1 << 16)?;
    }
    for stream in streams {
        let report = stream.finish()?;
        ensure!(report["lines"].as_u64() > Some(20), "hardly a line was sent: {report}");
    }
    Ok(())
}

fn bound(swarm: &mut Swarm) -> anyhow::Result<()> {
    let own = swarm.nodes[2].place.v6;
    let host = format!("published=8100,target={NAMED},mode=host,proxy-protocol=v2");
    let one = format!("published=8101,target={NAMED},ip={own},proxy-protocol=v2");
    on_one_node(swarm)?;
    update(swarm, &host)?;
    update(swarm, &one)?;
    running(swarm, "web", 1)?;
    for address in swarm.nodes[1].place.addresses() {
        client(swarm).is_named(SocketAddr::new(address, 8100), 5)?;
    }
    client(swarm).is_named(SocketAddr::new(own.into(), 8101), 5)?;
    let here = Asker { host: &swarm.nodes[2].host, ..client(swarm) };
    here.is_named(SocketAddr::new(own.into(), 8101), 5)?;
    for closed in [
        SocketAddr::new(swarm.nodes[0].place.v4.into(), 8100),
        SocketAddr::new(swarm.nodes[2].place.v4.into(), 8101),
    ] {
        ensure_same("answers where it is not published", &client(swarm).once(closed, 1)?.ok, &0)?;
    }
    Ok(())
}

fn beside(swarm: &mut Swarm) -> anyhow::Result<()> {
    on_one_node(swarm)?;
    create_serving(swarm, "asker", "front", &[], &format!("--whoami {WHOAMI}"))?;
    let task = running(swarm, "asker", 1)?.pop().context("one task")?;
    for address in nodes(swarm) {
        client(swarm).is_named(SocketAddr::new(address, PUBLISHED), 1)?;
        let answers = client(swarm).answers(SocketAddr::new(address, PUBLISHED_WHOAMI), 5)?;
        ensure_same("headers beside it", &(answers.headed, answers.headless), &(0, 0))?;
    }
    let vip = swarm.manager().vip("web", "front")?;
    let load = swarm.programs.load.display().to_string();
    for address in vip.addresses() {
        let ask = |port| ask_by(task.run_line(&load)?, SocketAddr::new(address, port), false, 1);
        ensure_same("answers by the virtual IP", &ask(WHOAMI)?.complete()?.headed, &0)?;
        ensure_same("answers to what has no header", &ask(NAMED)?.ok, &0)?;
    }
    let told = SocketAddr::new(nodes(swarm)[0], PUBLISHED_WHOAMI);
    wait_for("the server to count what had no header", PATIENCE, || {
        let answers = client(swarm).once(told, 1).map_err(|error| format!("{error:#}"))?;
        if answers.headless == 2 { Ok(()) } else { Err(format!("{answers:?}")) }
    })
}

fn put_back(swarm: &mut Swarm) -> anyhow::Result<()> {
    let port = format!("published={PUBLISHED},target={NAMED},proxy-protocol=v2");
    create_serving(swarm, "web", "front", &["-p", &port], &servers())?;
    running(swarm, "web", 1)?;
    let node = swarm.manager();
    let target = SocketAddr::new(node.place.v4.into(), PUBLISHED);
    client(swarm).is_named(target, 1)?;
    let map = repair::map(node, "PORTS")?;
    let key = map.first_key()?.context("the only port")?;
    let value = RefCell::new(map.get(&key)?.context("it was there")?);
    // See `PortVal` for the place of its flags.
    let wanted = value.borrow()[10..12].to_vec();
    ensure_same("its flags", &wanted, &1_u16.to_ne_bytes().to_vec())?;
    let without = || {
        value.borrow_mut()[10..12].fill(0);
        map.set(&key, &value.borrow())
    };
    let is_back = || Ok(map.get(&key)?.is_some_and(|now| now[10..12] == wanted));
    repair::repairs(node, "port", without, is_back)?;
    client(swarm).is_named(target, 1).map(drop)
}

fn refused(swarm: &mut Swarm) -> anyhow::Result<()> {
    let refuse = |words: &str, said: &[&str]| {
        let words = format!("service create --name other {words} -- sleep 1000");
        let words: Vec<&str> = words.split(' ').collect();
        swarm.manager().refused(&words, 2, said)
    };
    let port = format!("-p published={PUBLISHED},target={NAMED}");
    refuse(&format!("{port},proxy-protocol=v1"), &["only v2", "proxy-protocol=v2"])?;
    for protocol in ["udp", "sctp"] {
        let words = format!("-p published={NAMED},target={NAMED},protocol={protocol},proxy-protocol=v2");
        refuse(&words, &["E0100", "publish.proxy-protocol", protocol, "for tcp alone", "help:"])?;
    }
    on_one_node(swarm)?;
    let shown = swarm.manager().shoal(&["service", "ls", "--format", "{{.Ports}}"])?;
    let text = format!(
        "*:{PUBLISHED}-{PUBLISHED_ECHOED}->{NAMED}-{ECHOED}/tcp (proxy v2), *:{PUBLISHED_WHOAMI}->{WHOAMI}/tcp"
    );
    ensure_same("what is shown", &shown.trim(), &text.as_str())
}
