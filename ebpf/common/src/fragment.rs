//! Fragments (RFC 791, RFC 8200 section 4.5): the first one has the ports and is decided on as a whole packet is; what was
//! decided is kept for those that follow, which have none.
//!
//! What follows goes where the first one went, with the addresses that it got. What comes before its first one (networks
//! may change the order) is left to the host at an uplink, where nothing tells whose it is, and to the bridge where that
//! leads to the right task; elsewhere it is dropped, as the datagram is lost without it. Nothing is put together and
//! nothing waits.
//!
//! A record holds for one datagram: it is found by source, destination, protocol and identification, at the device where
//! the first fragment was met. The table is small, and gives up what was used least when it is full.

use crate::addr::Addr;
use crate::guard;
use crate::keys::{Mac, VipKey, copied, layout, same_mac};
use crate::life;
use crate::packet::{self, Packet};
use crate::reason::{Program, Reason};
use crate::tables::Tables;
use crate::values::TaskIf;
use crate::verdict::{Out, Verdict, Work};

/// Datagrams that are followed at a time.
pub const DATAGRAMS: u32 = 8_192;
/// Ticks of [`crate::life`] that a record holds: as long as Linux waits for fragments (`ipfrag_time`).
const HOLDS: u32 = 30;

layout! {
    /// A datagram in fragments: `FRAGMENTS`.
    FragmentKey, size 48 {
        /// Source address.
        src @ 0: Addr,
        /// Destination address.
        dst @ 16: Addr,
        /// Identification.
        id @ 32: u32,
        /// The device.
        ifindex @ 36: u32,
        /// The program, by its index.
        program @ 40: u32,
        /// IP protocol number.
        proto @ 44: u32,
    }
}

layout! {
    /// What becomes of the fragments that follow a first one: `FRAGMENTS`.
    FragmentVal, size 64 {
        /// Their source from now on.
        src @ 0: Addr,
        /// Their destination from now on.
        dst @ 16: Addr,
        /// Their Ethernet source from now on.
        src_mac @ 32: Mac,
        /// Their Ethernet destination from now on.
        dst_mac @ 38: Mac,
        /// One of `BY_*`: where they leave.
        by @ 44: u32,
        /// The device of that.
        ifindex @ 48: u32,
        /// Mark that they go on with.
        mark @ 52: u32,
        /// When the first one came, on the clock of [`crate::life`].
        seen @ 56: u32,
        /// 1: they go on as they are.
        unchanged @ 60: u32,
    }
}

/// [`FragmentVal::by`]: [`Out::Peer`].
const BY_PEER: u32 = 0;
/// [`FragmentVal::by`]: [`Out::Device`].
const BY_DEVICE: u32 = 1;
/// [`FragmentVal::by`]: [`Out::Neighbor`].
const BY_NEIGHBOR: u32 = 2;
/// [`FragmentVal::by`]: [`Out::Host`].
const BY_HOST: u32 = 3;

#[inline(always)]
fn set_key(work: &mut Work, program: Program, ifindex: u32) {
    work.datagram.src = work.header.src.copied();
    work.datagram.dst = work.header.dst.copied();
    work.datagram.id = work.header.id;
    work.datagram.ifindex = ifindex;
    work.datagram.program = program.index();
    work.datagram.proto = u32::from(work.header.proto);
}

/// Remembers what was decided on a first fragment, for those that follow; `unchanged`: it goes on as it is.
#[inline(always)]
pub fn remember<T: Tables>(tables: &T, at: (Program, u32), work: &mut Work, unchanged: bool) {
    set_key(work, at.0, at.1);
    let (by, ifindex) = match work.forward.out {
        Out::Peer(ifindex) => (BY_PEER, ifindex),
        Out::Device(ifindex) => (BY_DEVICE, ifindex),
        Out::Neighbor(ifindex) => (BY_NEIGHBOR, ifindex),
        Out::Host(ifindex) => (BY_HOST, ifindex),
        // By a balancer, which gets what follows as it comes.
        Out::Route => return,
    };
    let followers = &mut work.followers;
    followers.src = work.forward.src.copied();
    followers.dst = work.forward.dst.copied();
    followers.src_mac = copied(&work.forward.src_mac);
    followers.dst_mac = copied(&work.forward.dst_mac);
    followers.by = by;
    followers.ifindex = ifindex;
    followers.mark = work.mark;
    followers.seen = tables.clock();
    followers.unchanged = u32::from(unchanged);
    tables.set_fragment(&work.datagram, &work.followers);
}

/// Decides on a fragment that is not the first. `Forward` is for [`crate::rewrite::fragment`].
#[inline(always)]
pub fn decide<P: Packet, T: Tables>(packet: &P, tables: &T, at: (Program, u32), work: &mut Work) -> Verdict {
    set_key(work, at.0, at.1);
    if let Some(known) = tables.fragment(&work.datagram)
        && life::idle(tables.clock(), known.seen) < HOLDS
    {
        work.forward.out = match known.by {
            BY_DEVICE => Out::Device(known.ifindex),
            BY_NEIGHBOR => Out::Neighbor(known.ifindex),
            BY_HOST => Out::Host(known.ifindex),
            _ => Out::Peer(known.ifindex),
        };
        work.mark = known.mark;
        if known.unchanged != 0 {
            return Verdict::Redirect;
        }
        work.forward.src = known.src.copied();
        work.forward.dst = known.dst.copied();
        work.forward.src_mac = copied(&known.src_mac);
        work.forward.dst_mac = copied(&known.dst_mac);
        return Verdict::Forward;
    }
    match at.0 {
        Program::OverlayRx => from_tunnel(packet, tables, work),
        Program::TaskTx => from_task(tables, at.1, work),
        _ => Verdict::Pass,
    }
}

/// Only answers of the mesh come to a router's address, and they can't go on without the first.
#[inline(always)]
fn from_tunnel<P: Packet, T: Tables>(packet: &P, tables: &T, work: &mut Work) -> Verdict {
    let Some(config) = tables.config() else { return Verdict::Pass };
    let Some(ethernet) = packet::ethernet(packet) else { return Verdict::Pass };
    let router = if work.header.v4 { &config.router_ip4 } else { &config.router_ip6 };
    if same_mac(&ethernet.dst, &config.router_mac) && work.header.dst != *router {
        return Verdict::Drop(Reason::NoFirstFragment);
    }
    Verdict::Pass
}

/// What a task sends from its address in the mesh on another leg, or to a virtual IP, leaves translated or not at all.
#[inline(always)]
fn from_task<T: Tables>(tables: &T, ifindex: u32, work: &mut Work) -> Verdict {
    let Some(task) = tables.task_if(ifindex) else { return Verdict::Pass };
    if let Err(reason) = guard::check_source(task, &work.header) {
        let is_mesh = work.header.src == *ingress(task, work.header.v4);
        return Verdict::Drop(if is_mesh { Reason::NoFirstFragment } else { reason });
    }
    let vip = VipKey { addr: work.header.dst.copied(), network: task.network };
    if task.network != 0 && tables.vip(&vip).is_some() {
        return Verdict::Drop(Reason::NoFirstFragment);
    }
    Verdict::Pass
}

#[inline(always)]
const fn ingress(task: &TaskIf, v4: bool) -> &Addr {
    if v4 { &task.ingress_ip4 } else { &task.ingress_ip6 }
}
