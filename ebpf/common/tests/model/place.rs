//! What the histories are about: a few nodes with their tasks, and who talks to them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::support::fuzz::Random;
use super::support::packet::{Mac, TCP, UDP};

/// VNIs of the ingress network and of the one that has virtual addresses.
pub(crate) const INGRESS: u32 = 100;
pub(crate) const OVERLAY: u32 = 200;

pub(crate) const SERVICES: usize = 2;
/// Addresses that move from node to node.
pub(crate) const FLOATING: usize = 2;

/// A task: one endpoint of a service.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Task {
    pub(crate) node: usize,
    pub(crate) service: usize,
    /// Whether it has an IPv6 address, too.
    pub(crate) v6: bool,
}

impl Task {
    pub(crate) fn has(self, v4: bool) -> bool {
        v4 || self.v6
    }
}

/// The nodes and tasks of a history.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) nodes: usize,
    pub(crate) tasks: Vec<Task>,
    /// Whether nodes of tasks answer clients themselves where they can.
    pub(crate) dsr: bool,
}

/// Number of the own address of each node, where it is answered from.
pub(crate) const DOOR: u16 = 9;
/// Number of the first of the addresses that move. Of the second nobody is told.
pub(crate) const FLOATING_DOOR: u16 = 40;

impl Place {
    pub(crate) fn generate(random: &mut Random) -> Self {
        let nodes = 2 + random.below(3);
        let tasks = (0..2 + random.below(4))
            .map(|task| Task {
                node: random.below(nodes),
                // The second service has one task at most: it is there to tell services apart.
                service: usize::from(task == 1),
                v6: random.below(4) > 0,
            })
            .collect();
        Self { nodes, tasks, dsr: random.below(3) == 0 }
    }
}

/// Where a client sends to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Target {
    /// The own address of a node.
    Node(usize),
    /// An address that is at some node.
    Floating(usize),
    /// A node's loopback address.
    Loopback(usize),
    /// The virtual address of a service.
    Vip(usize),
}

/// Who sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Client {
    /// Somebody outside.
    Outside(usize),
    /// A program on a node.
    OnNode(usize),
    /// A task.
    Task(usize),
}

/// A flow that there may be: what the client's socket is bound and connected to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Line {
    pub(crate) v4: bool,
    pub(crate) proto: u8,
    pub(crate) client: Client,
    pub(crate) cport: u16,
    pub(crate) target: Target,
    pub(crate) port: u16,
}

/// Published by the first service on all addresses, by the second on all, by the first on the first floating address,
/// and by nobody.
pub(crate) const PORTS: [u16; 4] = [8080, 9090, 9191, 22];

impl Line {
    pub(crate) fn generate(random: &mut Random, place: &Place) -> Self {
        let client = match random.below(10) {
            0..7 => Client::Outside(random.below(2)),
            7 => Client::OnNode(random.below(place.nodes)),
            _ => Client::Task(random.below(place.tasks.len())),
        };
        let target = match client {
            Client::Outside(_) if random.below(2) == 0 => Target::Node(random.below(place.nodes)),
            Client::Outside(_) => Target::Floating(random.below(FLOATING)),
            Client::OnNode(node) if random.below(2) == 0 => Target::Node(node),
            Client::OnNode(node) => Target::Loopback(node),
            Client::Task(_) => Target::Vip(random.below(SERVICES)),
        };
        Self {
            v4: random.below(2) == 0,
            proto: random.pick(&[TCP, UDP]),
            client,
            // Few ports and mostly one service: flows are to be in each other's way.
            cport: random.pick(&[40_000, 40_000, 40_000, 40_001]),
            target,
            port: random.pick(&[PORTS[0], PORTS[0], PORTS[0], PORTS[0], PORTS[1], PORTS[2], PORTS[3]]),
        }
    }

    pub(crate) fn source(&self) -> IpAddr {
        match (self.client, self.target) {
            (Client::Outside(k), _) => client(k, self.v4),
            (Client::OnNode(_), Target::Loopback(_)) => loopback(self.v4),
            (Client::OnNode(n), _) => node(n, self.v4),
            (Client::Task(t), _) => overlay(t, self.v4),
        }
    }

    pub(crate) fn destination(&self) -> IpAddr {
        match self.target {
            Target::Node(n) => node(n, self.v4),
            Target::Floating(f) => floating(f, self.v4),
            Target::Loopback(_) => loopback(self.v4),
            Target::Vip(s) => vip(s, self.v4),
        }
    }
}

impl std::fmt::Display for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let proto = if self.proto == TCP { "TCP" } else { "UDP" };
        let (client, target) = (format!("{:?}", self.client), format!("{:?}", self.target));
        write!(f, "{proto} {client} [{}]:{} -> ", self.source(), self.cport)?;
        write!(f, "{target} [{}]:{}", self.destination(), self.port)
    }
}

fn byte(n: usize) -> u8 {
    u8::try_from(n).expect("few of each")
}

/// An address of one of two families that differ in a net and a number.
fn ip(v4: bool, net: u8, n: usize) -> IpAddr {
    if v4 {
        Ipv4Addr::new(10, net, 0, byte(n + 1)).into()
    } else {
        Ipv6Addr::new(0xfd00, net.into(), 0, 0, 0, 0, 0, u16::from(byte(n + 1))).into()
    }
}

pub(crate) fn client(k: usize, v4: bool) -> IpAddr {
    ip(v4, 1, k)
}
pub(crate) fn node(n: usize, v4: bool) -> IpAddr {
    ip(v4, 2, n)
}
pub(crate) fn floating(f: usize, v4: bool) -> IpAddr {
    ip(v4, 3, f)
}
pub(crate) fn router(n: usize, v4: bool) -> IpAddr {
    ip(v4, 4, n)
}
pub(crate) fn ingress(task: usize, v4: bool) -> IpAddr {
    ip(v4, 5, task)
}
pub(crate) fn overlay(task: usize, v4: bool) -> IpAddr {
    ip(v4, 6, task)
}
pub(crate) fn egress(task: usize, v4: bool) -> IpAddr {
    ip(v4, 7, task)
}
pub(crate) fn vip(service: usize, v4: bool) -> IpAddr {
    ip(v4, 8, service)
}
fn loopback(v4: bool) -> IpAddr {
    if v4 { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() }
}

pub(crate) fn mac(net: u8, n: usize) -> Mac {
    [2, 0x51, 0, net, 0, byte(n + 1)]
}
pub(crate) fn router_mac(n: usize) -> Mac {
    mac(4, n)
}
pub(crate) fn ingress_mac(task: usize) -> Mac {
    mac(5, task)
}
pub(crate) fn overlay_mac(task: usize) -> Mac {
    mac(6, task)
}
pub(crate) fn egress_mac(task: usize) -> Mac {
    mac(7, task)
}
pub(crate) fn vip_mac(service: usize) -> Mac {
    mac(8, service)
}
