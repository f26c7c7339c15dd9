//! `overlay_rx`: what arrives through a tunnel.

use crate::direct;
use crate::icmp;
use crate::keys::{LocalKey, RouterKey, VipKey, copied, same_mac};
use crate::life;
use crate::local;
use crate::packet::{self, Packet, TCP};
use crate::proxy;
use crate::reason::Reason;
use crate::steer;
use crate::tables::Tables;
use crate::values::{LocalVal, NodeConfig, REPLY_DIRECT, REPLY_LOCAL, REPLY_RESTORE, REPLY_VIP};
use crate::verdict::{Out, Verdict, Work};

/// Decides on a frame that arrived at the VXLAN device `ifindex`.
#[inline(always)]
pub fn decide<P: Packet, T: Tables>(packet: &P, tables: &T, ifindex: u32, work: &mut Work) -> Verdict {
    work.begin();
    let Some(ethernet) = packet::ethernet(packet) else { return Verdict::Pass };
    work.ethernet = ethernet;
    if packet::header(packet, work.ethernet.kind, &mut work.header).is_err() {
        return Verdict::Pass;
    }
    if !work.header.has_flow() {
        return icmp::aside(packet, &work.header);
    }
    let Some(config) = tables.config() else { return Verdict::Pass };
    if same_mac(&work.ethernet.dst, &config.router_mac) {
        work.narrow = if work.header.opens() { ifindex } else { 0 };
        return to_router(tables, work, config);
    }
    let Some(local) = tables.local(&LocalKey::new(ifindex, work.ethernet.dst)) else { return Verdict::Pass };
    // A router's address is also that of its node's balancers, whose packets may go to a virtual IP.
    let own = if work.header.v4 { &local.ip4 } else { &local.ip6 };
    if work.header.dst == *own {
        work.answers = work.header.reverse_key(0);
        let source = copied(&work.ethernet.src);
        // Who is steered to is a router.
        if steer::is_known(tables, work, &source) {
            return work.redirect(Out::Peer(local.veth));
        }
        let router = direct::router_of(&source, &config.router_mac);
        if tables.is_router(&RouterKey::new(router)) {
            return match steer::lead(tables, work, &source) {
                Some(port) => steer::deliver(work, port, Out::Peer(local.veth)),
                None => Verdict::Drop(Reason::NoSourcePort),
            };
        }
    }
    from_task(tables, work, local)
}

/// An endpoint's answer to a flow that entered by this node.
#[inline(always)]
fn to_router<T: Tables>(tables: &T, work: &mut Work, config: &NodeConfig) -> Verdict {
    let router = if work.header.v4 { &config.router_ip4 } else { &config.router_ip6 };
    work.set_key(0);
    match tables.reply(&work.key) {
        Some(reply) if reply.kind == REPLY_RESTORE => {
            life::note_answer(tables, work, reply);
            work.proxy = proxy::back(reply);
            tables.count_answer(&work.key, reply, work.header.length.into());
            work.forward_restored(reply, Out::Neighbor(reply.ifindex));
            Verdict::Forward
        }
        Some(reply) if reply.kind == REPLY_LOCAL => {
            life::note_answer(tables, work, reply);
            work.proxy = proxy::back(reply);
            tables.count_answer(&work.key, reply, work.header.length.into());
            local::home(work, config, reply);
            Verdict::Forward
        }
        _ if work.header.dst == *router => Verdict::Pass,
        _ if config.balancer != 0 => work.redirect(Out::Peer(config.balancer)),
        _ => Verdict::Drop(Reason::UnknownReply),
    }
}

/// A packet from a task elsewhere: perhaps the answer to a connection made through a virtual IP.
#[inline(always)]
fn from_task<T: Tables>(tables: &T, work: &mut Work, local: &LocalVal) -> Verdict {
    work.set_key(local.network);
    match tables.reply(&work.key) {
        Some(reply) if reply.kind == REPLY_VIP => {
            life::note_answer(tables, work, reply);
            tables.count_answer(&work.key, reply, work.header.length.into());
            work.forward_restored(reply, Out::Peer(local.veth));
            Verdict::Forward
        }
        _ if direct(tables, work, local) => work.redirect(Out::Peer(local.veth)),
        _ => Verdict::Pass,
    }
}

/// Whether a packet comes to a task by direct routing: to a virtual IP, which the task has on its loopback.
///
/// A UDP server that listens on every address and answers with `sendto` gets the source of its route, and so do the
/// answers of SCTP, whose system knows several addresses: what the client asked is remembered, and put back when it is
/// answered. (TCP answers from the address it was asked at.)
#[inline(always)]
pub(crate) fn direct<T: Tables>(tables: &T, work: &mut Work, local: &LocalVal) -> bool {
    let own = if work.header.v4 { &local.ip4 } else { &local.ip6 };
    let (addr, network) = (work.header.dst, local.network);
    if addr == *own || tables.vip(&VipKey { addr, network }).is_none() {
        return false;
    }
    if work.header.proto != TCP {
        work.answers = work.header.reverse_key(network);
        work.answers.src = *own;
        remember(tables, work);
    }
    true
}

#[inline(always)]
fn remember<T: Tables>(tables: &T, work: &mut Work) {
    if let Some(known) = tables.reply(&work.answers)
        && known.kind == REPLY_DIRECT
        && known.addr == work.header.dst
    {
        let (now, says) = (tables.clock(), life::FLOW_OPEN);
        if !life::is_noted(known.seen, known.state, now, says) {
            tables.renew_reply(&work.answers, known, now, says);
        }
        return;
    }
    work.reply.addr = work.header.dst;
    work.reply.port = work.header.dport;
    work.reply.client_port = work.header.sport;
    work.reply.ifindex = 0;
    work.reply.mac = [0; 6];
    work.reply.kind = REPLY_DIRECT;
    work.reply.endpoint = 0;
    work.reply.service = 0;
    work.reply.bytes = 0;
    work.reply.isn = 0;
    work.reply.seen = tables.clock();
    work.reply.state = 0;
    tables.set_reply(&work.answers, &work.reply);
}
