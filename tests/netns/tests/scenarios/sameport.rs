//! One port of a client, many ways to one task: each is a connection of its own.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::{Context, ensure};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use shoal_netns::{Answers, Swarm, slowness, wait_for, wanted_engine};

use crate::harness::{
    PATIENCE, PUBLISHED_ECHO, PUBLISHED_WHOAMI, WHOAMI, answered_by, ask_node, create_web, host_names,
    running,
};

/// The port of the client: below those that the kernel gives out.
const OWN_PORT: u16 = 20_000;
/// `whoami`, published once more.
const FURTHER: u16 = 8089;
/// Further addresses of the first node.
const SECOND: [(&str, u8); 2] = [("10.77.0.201", 24), ("fd77::201", 64)];
const ROUNDS: u32 = 5;

pub(crate) fn one_port_many_ways(swarm: &mut Swarm) -> anyhow::Result<()> {
    let further = format!("{FURTHER}:{WHOAMI}");
    create_web(swarm, 1, &["-p", &further, "-p", &format!("{further}/udp")])?;
    let hosts = host_names(&running(swarm, "web", 1)?);
    swarm.nodes.iter().try_for_each(|node| answered_by(swarm, node, &hosts))?;
    let host = &swarm.nodes[0].host;
    for (address, length) in SECOND {
        host.ip(&format!("addr add {address}/{length} dev eth0"))?;
    }
    let outcome = connect_all(swarm);
    for (address, length) in SECOND {
        host.ip(&format!("addr del {address}/{length} dev eth0"))?;
    }
    outcome
}

fn connect_all(swarm: &Swarm) -> anyhow::Result<()> {
    for ((second, _), own) in SECOND.into_iter().zip(swarm.client_place.addresses()) {
        let second: IpAddr = second.parse()?;
        let nodes = swarm.nodes.iter().flat_map(|node| node.place.addresses());
        let mut ways: Vec<IpAddr> = nodes.filter(|address| address.is_ipv4() == second.is_ipv4()).collect();
        let mut whoami: Vec<_> = ways.iter().map(|way| SocketAddr::new(*way, PUBLISHED_WHOAMI)).collect();
        // Within a node, IPVS tells connections apart by the client's address and port alone.
        if wanted_engine().as_deref() != Some("ipvs") {
            wait_for("the second address to answer", PATIENCE, || {
                let asked = ask_node(swarm, second, PUBLISHED_WHOAMI, true, 1);
                asked.and_then(Answers::complete).map_err(|error| format!("{error:#}"))
            })?;
            whoami.push(SocketAddr::new(ways[0], FURTHER));
            whoami.push(SocketAddr::new(second, PUBLISHED_WHOAMI));
            ways.push(second);
        }
        let echo: Vec<_> = ways.iter().map(|way| SocketAddr::new(*way, PUBLISHED_ECHO)).collect();
        let client = SocketAddr::new(own, OWN_PORT);
        swarm.client.enter(|| {
            lines(client, &echo).context("streams")?;
            datagrams(client, &echo).context("datagrams")?;
            seen(client, &whoami).context("whom the task sees")
        })?;
    }
    Ok(())
}

/// A socket bound to the client's port, which other sockets may be bound to, too.
pub(crate) fn bound(client: SocketAddr, kind: SockType) -> anyhow::Result<OwnedFd> {
    let family = if client.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = socket(family, kind, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    let patience = TimeVal::seconds(i64::from(4 * slowness()));
    setsockopt(&socket, sockopt::SendTimeout, &patience)?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &patience)?;
    bind(socket.as_raw_fd(), &SockaddrStorage::from(client))?;
    Ok(socket)
}

/// Connections to all targets, every one of them open before the first is used.
pub(crate) fn connected(client: SocketAddr, targets: &[SocketAddr]) -> anyhow::Result<Vec<TcpStream>> {
    let open = |target: &SocketAddr| {
        let socket = bound(client, SockType::Stream)?;
        connect(socket.as_raw_fd(), &SockaddrStorage::from(*target))
            .with_context(|| format!("to {target}"))?;
        let stream = TcpStream::from(socket);
        // Sockets in TIME_WAIT would be in the way of the next.
        let linger = libc::linger { l_onoff: 1, l_linger: 0 };
        setsockopt(&stream, sockopt::Linger, &linger)?;
        Ok(stream)
    };
    targets.iter().map(open).collect()
}

/// Every connection carries data both ways, in turn with the others.
fn lines(client: SocketAddr, targets: &[SocketAddr]) -> anyhow::Result<()> {
    let streams = connected(client, targets)?;
    let mut readers: Vec<_> = streams.iter().map(BufReader::new).collect();
    for round in 0..ROUNDS {
        for (mut stream, target) in streams.iter().zip(targets) {
            stream.write_all(format!("{round} {target}\n").as_bytes())?;
        }
        for (reader, target) in readers.iter_mut().zip(targets) {
            let mut line = String::new();
            reader.read_line(&mut line).with_context(|| format!("round {round} of {target}"))?;
            ensure!(line == format!("{round} {target}\n"), "{target} sent {line:?}");
        }
    }
    Ok(())
}

/// The task sees the client's address in every connection, and the port of the first.
fn seen(client: SocketAddr, targets: &[SocketAddr]) -> anyhow::Result<()> {
    let mut ports = Vec::new();
    for (mut stream, target) in connected(client, targets)?.into_iter().zip(targets) {
        stream.write_all(b"\n")?;
        let mut line = String::new();
        stream.read_to_string(&mut line).with_context(|| format!("{target}"))?;
        let peer = line.split_whitespace().find_map(|word| word.strip_prefix("peer=")).context("no peer")?;
        let peer: SocketAddr = peer.parse()?;
        ensure!(peer.ip() == client.ip(), "through {target} it sees {peer}");
        ports.push(peer.port());
    }
    ports.sort_unstable();
    ports.dedup();
    ensure!(ports.len() == targets.len(), "{} connections from ports {ports:?}", targets.len());
    Ok(())
}

/// One socket, datagrams to all targets before the first answer is read: each answers from its own address.
fn datagrams(client: SocketAddr, targets: &[SocketAddr]) -> anyhow::Result<()> {
    let socket = UdpSocket::from(bound(client, SockType::Datagram)?);
    for round in 0..ROUNDS {
        for target in targets {
            socket.send_to(format!("{round} {target}").as_bytes(), target)?;
        }
        let mut waited_for: Vec<_> = targets.to_vec();
        while !waited_for.is_empty() {
            let mut buffer = [0; 128];
            let (length, from) = socket
                .recv_from(&mut buffer)
                .with_context(|| format!("round {round}: not {waited_for:?}"))?;
            let text = String::from_utf8_lossy(&buffer[..length]);
            ensure!(text == format!("{round} {from}"), "{from} sent {text:?}");
            waited_for.retain(|target| *target != from);
        }
    }
    Ok(())
}
