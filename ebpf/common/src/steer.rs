//! Steering: the answers of a task to a flow that a router brought go back to that router.
//!
//! A client may reach one task from one port through two nodes at once. To the task the two flows would be one: the
//! later one's source port is translated here, at the task's node, which alone sees both. Its answers are found by the
//! translated port and get the client's back. Flows that enter by this very node are told apart by
//! [`crate::choose::record`], in the same table.

use crate::choose::{PORT_TRIES, other_port};
use crate::keys::{FlowKey, Mac, copied, same_mac};
use crate::life;
use crate::tables::Tables;
use crate::values::{ALIASED, REPLY_STEER, ReplyVal};
use crate::verdict::{Out, Verdict, Work};

/// Whether answers to the packet ([`Work::answers`]) are known to go to a router, with the port the packet came from.
#[inline(always)]
pub(crate) fn is_known<T: Tables>(tables: &T, work: &Work, router: &Mac) -> bool {
    let Some(known) = tables.reply(&work.answers) else { return false };
    if !leads_to(known, router, work.header.sport) {
        return false;
    }
    note(tables, work, known);
    true
}

/// Notes a packet of a known flow. A connection that begins anew is at its beginning again.
#[inline(always)]
fn note<T: Tables>(tables: &T, work: &Work, known: &ReplyVal) {
    let (now, says) = (tables.clock(), life::of_client(&work.header));
    if work.header.is_syn() {
        tables.renew_reply(&work.answers, known, now, 0);
    } else if !life::is_noted(known.seen, known.state, now, says) {
        tables.renew_reply(&work.answers, known, now, life::after(known.state, says));
    }
}

/// Sees to it that answers to a packet, which `router` brought and whose [`Work::answers`] are set, go to that router.
/// Returns the source port that the task sees; `None` if no port is left to tell the flow from others, of which SCTP has
/// none but its own.
///
/// A packet that begins nothing, by a router that has no flow yet, is of a connection that began by another router (the
/// address it was sent to has moved): it takes the answers over.
#[inline(always)]
pub(crate) fn lead<T: Tables>(tables: &T, work: &mut Work, router: &Mac) -> Option<u16> {
    let own = work.header.sport;
    work.key = work.header.key(scope_of(router));
    let is_free = match tables.reply(&work.answers) {
        Some(known) if leads_to(known, router, own) => {
            note(tables, work, known);
            return Some(own);
        }
        // By the same router, which wants it answered in another way.
        Some(known) if came_by(known, router, own) => {
            change(tables, work, router, known.state);
            return Some(own);
        }
        // What has ended makes room for what begins.
        Some(known) => {
            life::settle_answers(tables, &work.answers, known);
            work.header.may_begin() && life::is_over(tables, work.header.proto, known)
        }
        None => true,
    };
    // To its task a flow has the port that it was given, whether or not its own is free by now.
    if let Some(port) = alias(tables, work, router) {
        return Some(port);
    }
    if is_free {
        set(tables, work, router);
        work.request = FlowKey::default();
        life::park(tables, work);
        return Some(own);
    }
    if !work.header.may_begin() {
        set(tables, work, router);
        return Some(own);
    }
    if work.header.keeps_ports() {
        return None;
    }
    for salt in 1..=PORT_TRIES {
        work.answers.dport = other_port(&work.key, salt | u64::from(scope_of(router)) << 8);
        let is_free = match tables.reply(&work.answers) {
            Some(known) => leads_to(known, router, own),
            None => true,
        };
        if is_free {
            let port = work.answers.dport;
            set(tables, work, router);
            record(tables, work, router, port);
            work.request = work.key;
            life::park(tables, work);
            return Some(port);
        }
    }
    None
}

/// Delivers a packet, with the source port that [`lead`] found.
#[inline(always)]
pub(crate) fn deliver(work: &mut Work, port: u16, out: Out) -> Verdict {
    if port == work.header.sport {
        return work.redirect(out);
    }
    work.forward_unchanged(out);
    work.forward.sport = port;
    Verdict::Forward
}

/// The port a known flow ([`Work::key`]) of a router was given, if it was; its answers go to that router.
#[inline(always)]
fn alias<T: Tables>(tables: &T, work: &mut Work, router: &Mac) -> Option<u16> {
    let flow = tables.flow(&work.key)?;
    if flow.endpoint != ALIASED || !is_of(flow.service, router) {
        return None;
    }
    let port = flow.source_port;
    let original = work.answers.dport;
    work.answers.dport = port;
    if let Some(known) = tables.reply(&work.answers) {
        if leads_to(known, router, work.header.sport) {
            note(tables, work, known);
            let (now, says) = (tables.clock(), life::of_client(&work.header));
            if !life::is_noted(flow.seen, flow.state, now, says) {
                tables.renew_flow(&work.key, flow, now, life::after(flow.state, says));
            }
            return Some(port);
        }
        if !came_by(known, router, work.header.sport) {
            work.answers.dport = original;
            return None;
        }
        change(tables, work, router, known.state);
        return Some(port);
    }
    set(tables, work, router);
    Some(port)
}

#[inline(always)]
fn record<T: Tables>(tables: &T, work: &mut Work, router: &Mac, port: u16) {
    // Field by field, as in [`Work::forward_unchanged`].
    work.flow.endpoint = ALIASED;
    work.flow.service = number(router);
    work.flow.target_port = work.header.dport;
    work.flow.source_port = port;
    work.flow.mark = 0;
    work.flow.seen = tables.clock();
    work.flow.state = life::at_first(&work.header);
    work.flow.bytes = 0;
    work.flow.isn = 0;
    work.flow.door = 0;
    tables.set_flow(&work.key, &work.flow);
}

#[inline(always)]
pub(crate) fn leads_to(known: &ReplyVal, router: &Mac, port: u16) -> bool {
    known.kind == REPLY_STEER && known.client_port == port && same_mac(&known.mac, router)
}

/// As [`leads_to`], whatever the router said of who answers ([`crate::direct`]).
#[inline(always)]
pub(crate) fn came_by(known: &ReplyVal, router: &Mac, port: u16) -> bool {
    known.kind == REPLY_STEER && known.client_port == port && scope_of(&known.mac) == scope_of(router)
}

#[inline(always)]
fn set<T: Tables>(tables: &T, work: &mut Work, router: &Mac) {
    work.reply.addr = work.header.dst.copied();
    work.reply.port = work.header.dport;
    work.reply.client_port = work.header.sport;
    work.reply.ifindex = 0;
    work.reply.mac = copied(router);
    work.reply.kind = REPLY_STEER;
    work.reply.endpoint = 0;
    work.reply.service = 0;
    work.reply.bytes = 0;
    work.reply.isn = 0;
    work.reply.seen = tables.clock();
    work.reply.state = life::at_first(&work.header);
    tables.set_reply(&work.answers, &work.reply);
}

/// Sets how a known flow in this state is answered from now on.
#[inline(always)]
fn change<T: Tables>(tables: &T, work: &mut Work, router: &Mac, state: u32) {
    set(tables, work, router);
    if !work.header.is_syn() {
        let state = life::after(state, life::of_client(&work.header));
        tables.touch_reply(&work.answers, work.reply.seen, state);
    }
}

/// Remembers that the task answers a flow from the address of another leg, for errors about its answers ([`crate::icmp`]).
#[inline(always)]
pub(crate) fn answers_from<T: Tables>(tables: &T, work: &mut Work, known: &ReplyVal) {
    // Field by field, as in [`Work::forward_unchanged`].
    work.reply.addr = work.header.src.copied();
    work.reply.port = known.port;
    work.reply.client_port = known.client_port;
    work.reply.ifindex = known.ifindex;
    work.reply.mac = copied(&known.mac);
    work.reply.kind = known.kind;
    work.reply.endpoint = known.endpoint;
    work.reply.service = known.service;
    work.reply.bytes = known.bytes;
    work.reply.isn = known.isn;
    // What was noted of this answer may not be in what was read before.
    work.reply.seen = tables.clock();
    work.reply.state = life::after(known.state, life::of_answer(&work.header));
    tables.set_reply(&work.key, &work.reply);
}

/// Stands for a network in the keys of flows that a router brought: the low half of its address, which numbers it in the
/// cluster. (No network has the addresses of tasks in the ingress network as virtual ones.)
#[inline(always)]
pub(crate) const fn scope_of(router: &Mac) -> u32 {
    u32::from_be_bytes([0, router[3], router[4], router[5]])
}

/// A router's address as a number.
#[inline(always)]
pub(crate) const fn number(router: &Mac) -> u64 {
    u64::from_be_bytes([0, 0, router[0], router[1], router[2], router[3], router[4], router[5]])
}

/// Whether a number ([`number`]) is of that router, whatever it said of who answers.
#[inline(always)]
pub(crate) const fn is_of(number: u64, router: &Mac) -> bool {
    number & 0xff_ffff == scope_of(router) as u64
}

/// Sets what is recorded for a flow with a translated port, from what is recorded for its answers.
#[inline(always)]
pub(crate) fn alias_of(work: &mut Work, reply: &ReplyVal) {
    work.flow.endpoint = ALIASED;
    work.flow.service = number(&reply.mac);
}
