//! A flow as the model knows it, and what its ends see of it.

use std::collections::BTreeSet;
use std::net::IpAddr;

use shoal_ebpf_common::maglev::Policy;

use super::mesh::Fate;
use super::place::{self, Client, Line, Target};
use super::support::packet::{ACK, FIN, RST, SYN, Segment, TCP};

/// A leg of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Leg {
    Ingress,
    Overlay,
    Egress,
}

/// What a node knows of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    In,
    Draining,
    Gone,
}

/// What a node was told.
#[derive(Clone, Debug)]
pub(crate) struct View {
    /// By [`PORTS`], without the last.
    pub(crate) published: [bool; 3],
    pub(crate) state: Vec<State>,
    /// By service: who has slots.
    pub(crate) slots: Vec<BTreeSet<usize>>,
    pub(crate) policy: Vec<Policy>,
}

/// What a task sees of a flow's other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Peer {
    pub(crate) task: usize,
    pub(crate) leg: Leg,
    pub(crate) proto: u8,
    /// The task's port.
    pub(crate) tport: u16,
    pub(crate) addr: IpAddr,
    pub(crate) port: u16,
}

/// A flow by the node it enters by.
#[derive(Clone, Debug)]
#[allow(clippy::struct_excessive_bools, reason = "each is a thing of its own that is known or not")]
pub(crate) struct Flow {
    pub(crate) peer: Peer,
    pub(crate) service: usize,
    /// Its client went on, or a datagram of it was answered.
    pub(crate) open: bool,
    pub(crate) client_fin: bool,
    pub(crate) server_fin: bool,
    pub(crate) reset: bool,
    /// When it was last used, in ticks.
    pub(crate) last: u32,
    /// Whether the mesh must know where it goes, and how its answers come back.
    pub(crate) request: bool,
    pub(crate) answers: bool,
    /// Whether part of it was ever forgotten: the mesh then knows less of its state than we do.
    pub(crate) tampered: bool,
    /// Another flow has its place, as it was over.
    pub(crate) dead: bool,
}

pub(crate) fn seconds(ticks: u32) -> u64 {
    (u64::from(ticks) << 30) / 1_000_000_000
}

pub(crate) fn is_syn(proto: u8, flags: u8) -> bool {
    proto == TCP && flags & (SYN | ACK | FIN | RST) == SYN
}

impl Flow {
    pub(crate) fn is_closed(&self) -> bool {
        self.reset || self.client_fin && self.server_fin
    }

    /// How long it may be idle; two seconds are for ticks and rounding.
    pub(crate) fn limit(&self) -> u64 {
        match (self.is_closed(), self.open, self.peer.proto) {
            (true, ..) | (_, false, _) => 60,
            (_, true, TCP) => 432_000,
            _ => 180,
        }
    }

    pub(crate) fn is_over(&self, now: u32) -> bool {
        !self.tampered && (self.is_closed() || seconds(now - self.last) >= self.limit() + 2)
    }
}

/// What the task sees of a packet; nothing but its receiver and the client's port may be another.
pub(crate) fn as_seen(
    line: &Line,
    n: usize,
    (task, leg, got): (usize, Leg, &Segment),
    segment: &Segment,
) -> Result<Peer, String> {
    let is_vip = matches!(line.target, Target::Vip(_));
    let (want_leg, own) = if is_vip {
        (Leg::Overlay, place::overlay(task, line.v4))
    } else {
        (Leg::Ingress, place::ingress(task, line.v4))
    };
    let addr = match (line.client, line.target) {
        (Client::Task(client), Target::Vip(_)) if client == task => line.destination(),
        (_, Target::Loopback(_)) => place::router(n, line.v4),
        _ => line.source(),
    };
    let tport = got.dport;
    let want = Segment {
        src: addr,
        dst: own,
        sport: if is_vip { segment.sport } else { got.sport },
        dport: tport,
        src_mac: got.src_mac,
        dst_mac: got.dst_mac,
        ..segment.clone()
    };
    if leg != want_leg || *got != want {
        return Err(format!("by {want_leg:?} it should be {want:?}"));
    }
    Ok(Peer { task, leg, proto: line.proto, tport, addr, port: got.sport })
}

/// Ethernet addresses beyond the last hop are not what this is about.
pub(crate) fn without_macs(fate: Fate) -> Fate {
    let strip = |segment: Segment| segment.macs([0; 6], [0; 6]);
    match fate {
        Fate::Task(task, leg, segment) => Fate::Task(task, leg, strip(segment)),
        Fate::Outside(n, segment) => Fate::Outside(n, strip(segment)),
        Fate::OnNode(n, segment) => Fate::OnNode(n, strip(segment)),
        other => other,
    }
}
