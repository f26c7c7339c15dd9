//! ICMP errors and fragments: errors reach the end that is meant, about the packet that this end knows, and all of a
//! datagram goes one way.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::Value;
use shoal_netns::{Host, Swarm, enter, wait_for, wanted_engine};

use crate::harness::{ECHO, PATIENCE, PUBLISHED_ECHO, create, running, traffic_secs, web};

/// A port where nothing listens in a task, and the one it is published as.
const SHUT: u16 = 7999;
const PUBLISHED_SHUT: u16 = 8090;
/// How long a datagram's error may take. There may be none: a host makes few of them at a time for each receiver.
const ERROR_TIME: Duration = Duration::from_millis(200);

/// A socket of a namespace that sends to a port.
fn sender(netns: &Path, to: SocketAddr) -> anyhow::Result<UdpSocket> {
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = enter(netns, || Ok(UdpSocket::bind((any, 0))?))?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(ERROR_TIME))?;
    Ok(socket)
}

/// Sends datagrams to a port from a namespace until one is refused.
fn refused(netns: &Path, to: SocketAddr) -> anyhow::Result<()> {
    let socket = sender(netns, to)?;
    wait_for(&format!("a datagram to {to} to be refused"), PATIENCE, || {
        // What the last one was told may come with the next.
        let told = socket.send(b"anybody there?").and_then(|_| socket.recv(&mut [0; 64]));
        match told.map_err(|error| error.kind()) {
            Err(ErrorKind::ConnectionRefused) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
}

/// A client of a port that nobody listens on in the task is told so.
pub(crate) fn closed_ports_refuse(swarm: &mut Swarm) -> anyhow::Result<()> {
    create(swarm, "shut", "front", &["-p", &format!("{PUBLISHED_SHUT}:{SHUT}/udp")])?;
    create(swarm, "asker", "front", &["--mode", "global"])?;
    let task = running(swarm, "shut", 1)?.pop().context("one task")?;
    let askers = running(swarm, "asker", 3)?;
    for node in &swarm.nodes {
        for address in node.place.addresses() {
            let to = SocketAddr::new(address, PUBLISHED_SHUT);
            // IPVS takes the checksum of such an error for wrong: it leaves ICMPv6's pseudo header out.
            if address.is_ipv4() || wanted_engine().as_deref() != Some("ipvs") {
                refused(&swarm.client.netns_path(), to).with_context(|| format!("by {}", node.name()))?;
            }
            refused(&node.host.netns_path(), to).with_context(|| format!("on {}", node.name()))?;
        }
        for loopback in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
            let to = SocketAddr::new(loopback, PUBLISHED_SHUT);
            refused(&node.host.netns_path(), to).with_context(|| format!("on {}", node.name()))?;
        }
    }
    let vip = swarm.manager().vip("shut", "front")?;
    for asker in askers.iter().chain([&task]) {
        for address in [IpAddr::from(vip.v4), vip.v6.into()] {
            let to = SocketAddr::new(address, SHUT);
            refused(&asker.netns()?, to).with_context(|| format!("by {}", asker.name))?;
        }
    }
    Ok(())
}

/// A client behind a router, whose link to it takes less than the rest of the way.
struct Far {
    router: Host,
    client: Host,
}

impl Far {
    const MTU: u32 = 1300;

    fn behind(swarm: &Swarm) -> anyhow::Result<Self> {
        let (router, client) = (Host::new("router")?, Host::new("far")?);
        let place = swarm.lan.join(&router, 200)?;
        for parameter in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            router.sysctl(parameter, "1")?;
        }
        router.ip(&format!("link add far0 type veth peer name eth0 netns {}", client.unique()))?;
        for (host, device, number) in [(&router, "far0", 1), (&client, "eth0", 2)] {
            host.ip(&format!("addr add 198.18.0.{number}/24 dev {device}"))?;
            host.ip(&format!("addr add fd78::{number}/64 dev {device} nodad"))?;
            host.ip(&format!("link set {device} up"))?;
        }
        client.ip("route add default via 198.18.0.1")?;
        client.ip("-6 route add default via fd78::1")?;
        let mtu = Self::MTU;
        router.ip(&format!("route replace 198.18.0.0/24 dev far0 mtu {mtu}"))?;
        router.ip(&format!("-6 route replace fd78::2/128 dev far0 mtu {mtu}"))?;
        for node in &swarm.nodes {
            node.host.ip(&format!("route replace 198.18.0.0/24 via {}", place.v4))?;
            node.host.ip(&format!("-6 route replace fd78::/64 via {}", place.v6))?;
        }
        Ok(Self { router, client })
    }

    /// Takes the routes to it away again.
    fn leave(self, swarm: &Swarm) -> anyhow::Result<()> {
        for node in &swarm.nodes {
            node.host.ip("route del 198.18.0.0/24")?;
            node.host.ip("-6 route del fd78::/64")?;
        }
        self.router.ip("link del eth0").map(drop)
    }
}

/// What a task sends to a client behind a smaller MTU gets there: the task learns of it.
pub(crate) fn a_smaller_mtu_is_learned(swarm: &mut Swarm) -> anyhow::Result<()> {
    let task = web(swarm, 1)?.pop().context("one task")?;
    enter(&task.netns()?, || Ok(std::fs::write("/proc/sys/net/ipv4/tcp_mtu_probing", "0")?))?;
    let far = Far::behind(swarm)?;
    for node in &swarm.nodes {
        for address in node.place.addresses() {
            let on_task = |line: &str| task.run_line(line)?.stdout();
            // Each node's errors are to be what tells it, and nothing else.
            on_task("ip route flush cache")?;
            on_task("ip -6 route flush cache")?;
            let target = SocketAddr::new(address, PUBLISHED_ECHO).to_string();
            let mode = ["rr", "--target", &target, "--size", "20000", "--secs", &traffic_secs(200)];
            let text = far.client.run(&swarm.programs.load).args(mode).stdout()?;
            let report: Value = serde_json::from_str(&text)?;
            ensure!(report["ok"].as_u64() > Some(10), "20000 bytes through {target} crawl: {report}");
            let [v4, v6] = task.attachment("ingress")?.addresses();
            let (client, own) = if address.is_ipv4() { ("198.18.0.2", v4) } else { ("fd78::2", v6) };
            let route = on_task(&format!("ip route get {client} from {own}"))?;
            ensure!(route.contains(&format!("mtu {}", Far::MTU)), "the task learned nothing: {route}");
        }
    }
    far.leave(swarm)
}

/// Sends a datagram of several packets to an echo server until it comes back whole.
fn echoed(netns: &Path, to: SocketAddr) -> anyhow::Result<()> {
    let socket = sender(netns, to)?;
    let sent: Vec<u8> = (0..=u8::MAX).cycle().take(5000).collect();
    wait_for(&format!("{} bytes to come back from {to}", sent.len()), PATIENCE, || {
        // The first answer may be lost for the tunnel's MTU, which the task learns by that.
        let mut buffer = [0; 8192];
        match socket.send(&sent).and_then(|_| socket.recv(&mut buffer)) {
            Ok(length) if buffer[..length] == sent => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
}

/// Datagrams that are larger than a packet come through, both ways.
pub(crate) fn large_datagrams(swarm: &mut Swarm) -> anyhow::Result<()> {
    let task = web(swarm, 1)?.pop().context("one task")?;
    create(swarm, "asker", "front", &["--mode", "global"])?;
    let askers = running(swarm, "asker", 3)?;
    for node in &swarm.nodes {
        for address in node.place.addresses() {
            let to = SocketAddr::new(address, PUBLISHED_ECHO);
            echoed(&swarm.client.netns_path(), to).with_context(|| format!("by {}", node.name()))?;
        }
        for loopback in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
            let to = SocketAddr::new(loopback, PUBLISHED_ECHO);
            echoed(&node.host.netns_path(), to).with_context(|| format!("on {}", node.name()))?;
        }
    }
    let vip = swarm.manager().vip("web", "front")?;
    for asker in askers.iter().chain([&task]) {
        for address in [IpAddr::from(vip.v4), vip.v6.into()] {
            let to = SocketAddr::new(address, ECHO);
            echoed(&asker.netns()?, to).with_context(|| format!("by {}", asker.name))?;
        }
    }
    Ok(())
}
