//! By which device clients come in and answers go out: VLANs, a second uplink, and what leaves by a port that is published.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};

use anyhow::{Context, ensure};
use nix::sys::socket::SockType;
use shoal_netns::{Host, Swarm, Task, enter, wait_for};

use crate::harness::{
    PATIENCE, PUBLISHED_WHOAMI, WHOAMI, ask_node, create, ensure_same, host_names, running, web,
};
use crate::sameport::{bound, connected};

/// Asks an address by both protocols until all of these tasks answer, and no answer is missing.
fn answered(swarm: &Swarm, address: IpAddr, tasks: &[Task]) -> anyhow::Result<()> {
    let hosts = host_names(tasks);
    for udp in [false, true] {
        let what = format!("{address} (udp: {udp}) to be answered by {hosts:?}");
        wait_for(&what, PATIENCE, || {
            let answers =
                ask_node(swarm, address, PUBLISHED_WHOAMI, udp, 1).map_err(|error| format!("{error:#}"))?;
            if answers.failed == 0 { Ok(()) } else { Err(format!("{answers:?}")) }
        })?;
        let answers = ask_node(swarm, address, PUBLISHED_WHOAMI, udp, 30)?.complete()?;
        ensure_same(&what, &answers.hosts.into_keys().collect(), &hosts)?;
    }
    Ok(())
}

/// A VLAN of an uplink has its own addresses, and published ports answer on them, whether the task is there or not. The
/// uplink itself has addresses, too, and goes on answering.
pub(crate) fn vlans(swarm: &mut Swarm) -> anyhow::Result<()> {
    let tasks = web(swarm, 2)?;
    let hosts: Vec<_> =
        [&swarm.client].into_iter().chain(swarm.nodes.iter().map(|node| &node.host)).collect();
    for (host, number) in hosts.iter().zip(1_u8..) {
        host.ip("link add link eth0 name eth0.7 type vlan id 7")?;
        host.ip(&format!("addr add 10.79.0.{number}/24 dev eth0.7"))?;
        host.ip(&format!("addr add fd79::{number}/64 dev eth0.7 nodad"))?;
        host.ip("link set eth0.7 up")?;
    }
    for (node, number) in swarm.nodes.iter().zip(2_u8..) {
        answered(swarm, Ipv4Addr::new(10, 79, 0, number).into(), &tasks)?;
        answered(swarm, format!("fd79::{number}").parse()?, &tasks)?;
        answered(swarm, node.place.v4.into(), &tasks)?;
    }
    for host in hosts {
        host.ip("link del eth0.7")?;
    }
    Ok(())
}

/// A client that asks the address of a second uplink, though the node's routes lead back to it by the first.
pub(crate) fn two_uplinks(swarm: &mut Swarm) -> anyhow::Result<()> {
    let tasks = web(swarm, 3)?;
    let (node, router) = (&swarm.nodes[0], Host::new("router")?);
    let place = swarm.lan.join(&router, 200)?;
    for parameter in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
        router.sysctl(parameter, "1")?;
    }
    node.host.ip(&format!("link add eth1 type veth peer name eth1 netns {}", router.unique()))?;
    for (host, number) in [(&node.host, 1), (&router, 2)] {
        host.ip(&format!("addr add 10.80.0.{number}/24 dev eth1"))?;
        host.ip(&format!("addr add fd80::{number}/64 dev eth1 nodad"))?;
        host.ip("link set eth1 up")?;
    }
    swarm.client.ip(&format!("route add 10.80.0.0/24 via {}", place.v4))?;
    swarm.client.ip(&format!("-6 route add fd80::/64 via {}", place.v6))?;
    for address in ["10.80.0.1".parse()?, "fd80::1".parse()?, node.place.v4.into(), node.place.v6.into()] {
        answered(swarm, address, &tasks)?;
    }
    // Where the routes lead back by the second, too.
    node.host.ip(&format!("route add {}/32 via 10.80.0.2", swarm.client_place.v4))?;
    node.host.ip(&format!("-6 route add {}/128 via fd80::2", swarm.client_place.v6))?;
    for address in ["10.80.0.1".parse()?, "fd80::1".parse()?] {
        answered(swarm, address, &tasks)?;
    }
    node.host.ip(&format!("route del {}/32", swarm.client_place.v4))?;
    node.host.ip(&format!("-6 route del {}/128", swarm.client_place.v6))?;
    node.host.ip("link del eth1")?;
    swarm.client.ip("route del 10.80.0.0/24").or_else(gone)?;
    swarm.client.ip("-6 route del fd80::/64").or_else(gone)?;
    Ok(())
}

/// Clients and other nodes that can suddenly only be reached past a router: what was remembered of the way to them does not hold
/// packets up.
pub(crate) fn rerouted(swarm: &mut Swarm) -> anyhow::Result<()> {
    let tasks = web(swarm, 3)?;
    let (node, router) = (&swarm.nodes[0], Host::new("router")?);
    // A number of its own: for half a minute the node takes another router's Ethernet address for that of its place.
    let place = swarm.lan.join(&router, 201)?;
    for (parameter, value) in [
        ("ipv4/ip_forward", "1"),
        ("ipv6/conf/all/forwarding", "1"),
        ("ipv4/conf/all/send_redirects", "0"),
        ("ipv4/conf/eth0/send_redirects", "0"),
    ] {
        router.sysctl(parameter, value)?;
    }
    let own = node.place.addresses();
    for address in own {
        answered(swarm, address, &tasks)?;
    }
    let others = swarm.nodes[1..].iter().map(|other| other.place).chain([swarm.client_place]);
    let ways: Vec<_> =
        others.flat_map(|other| other.addresses().into_iter().zip(place.addresses())).collect();
    for (theirs, via) in &ways {
        // Nobody has this address.
        node.host.ip(&format!("neigh replace {theirs} lladdr 02:00:00:00:00:99 nud permanent dev eth0"))?;
        node.host.ip(&format!("route add {theirs} via {via} dev eth0"))?;
    }
    for address in own {
        answered(swarm, address, &tasks)?;
    }
    // And by a rule on the source, which no other route stands in for.
    let (clients, table) = (swarm.client_place.addresses(), "7400");
    for ((own, theirs), via) in own.into_iter().zip(clients).zip(place.addresses()) {
        let family = family(own);
        node.host.ip(&format!("{family} route add {theirs} via {via} dev eth0 table {table}"))?;
        node.host.ip(&format!("{family} rule add from {own} to {theirs} lookup {table}"))?;
        node.host.ip(&format!("route del {theirs} via {via} dev eth0"))?;
    }
    for address in own {
        answered(swarm, address, &tasks)?;
    }
    for (own, theirs) in own.into_iter().zip(clients) {
        let family = family(own);
        node.host.ip(&format!("{family} rule del from {own} to {theirs} lookup {table}"))?;
        node.host.ip(&format!("{family} route flush table {table}"))?;
    }
    // And by a gateway that is the node itself, which means that all is on the link.
    let (theirs, via) = (swarm.client_place.v4, node.place.v4);
    node.host.ip(&format!("neigh del {theirs} dev eth0"))?;
    node.host.ip(&format!("route add {theirs} via {via} dev eth0"))?;
    answered(swarm, via.into(), &tasks)?;
    node.host.ip(&format!("route del {theirs} via {via} dev eth0"))?;
    for (theirs, via) in &ways {
        if *theirs != IpAddr::from(swarm.client_place.v4) {
            node.host.ip(&format!("neigh del {theirs} dev eth0"))?;
        }
        if !clients.contains(theirs) {
            node.host.ip(&format!("route del {theirs} via {via} dev eth0"))?;
        }
    }
    Ok(())
}

fn family(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "-4" } else { "-6" }
}

/// A route may have gone with its gateway.
fn gone(error: anyhow::Error) -> anyhow::Result<String> {
    if format!("{error:#}").contains("No such process") { Ok(String::new()) } else { Err(error) }
}

/// A privileged port that is published, as of a time server.
const LOW: u16 = 123;

/// What a task asks elsewhere from a port that is published is answered to it, and not to who answers on that port.
pub(crate) fn leaving(swarm: &mut Swarm) -> anyhow::Result<()> {
    web(swarm, 3)?;
    let low = |protocol| format!("{LOW}:{WHOAMI}/{protocol}");
    create(swarm, "clock", "front", &["-p", &low("udp"), "-p", &low("tcp")])?;
    running(swarm, "clock", 1)?;
    create(swarm, "asker", "front", &[])?;
    let asker = running(swarm, "asker", 1)?.pop().context("one task")?;
    let words = ["serve", "--whoami", &WHOAMI.to_string()];
    let mut server = swarm.client.spawn("elsewhere", swarm.client.run(&swarm.programs.load).args(words))?;
    for address in swarm.client_place.addresses() {
        for (port, udp) in [(PUBLISHED_WHOAMI, true), (PUBLISHED_WHOAMI, false), (LOW, true), (LOW, false)] {
            let target = SocketAddr::new(address, WHOAMI);
            let netns = asker.netns()?;
            wait_for(&format!("{target} to answer port {port} (udp: {udp})"), PATIENCE, || {
                enter(&netns, || asked(port, target, udp)).map_err(|error| format!("{error:#}"))
            })?;
        }
    }
    server.kill()
}

/// Asks a server from a port that clients of a service ask, and hears from which one it was asked.
fn asked(port: u16, target: SocketAddr, udp: bool) -> anyhow::Result<()> {
    let any: IpAddr = if target.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() };
    let own = SocketAddr::new(any, port);
    let mut line = [0; 512];
    let length = if udp {
        let socket = UdpSocket::from(bound(own, SockType::Datagram)?);
        socket.connect(target)?;
        socket.send(b"who?\n")?;
        socket.recv(&mut line)?
    } else {
        let mut stream = connected(own, &[target])?.pop().context("one connection")?;
        stream.write_all(b"\n")?;
        stream.read(&mut line)?
    };
    let line = String::from_utf8_lossy(&line[..length]);
    let peer = line.split_whitespace().find_map(|word| word.strip_prefix("peer=")).context("no peer")?;
    let peer: SocketAddr = peer.parse()?;
    ensure!(peer.port() != port, "it left as {peer}");
    ensure!((peer.port() < 1024) == (port < 1024), "privileged ports stay so: {port} left as {peer}");
    Ok(())
}
