//! Choosing an endpoint and remembering the choice.

use crate::addr::Addr;
use crate::direct;
use crate::hash;
use crate::keys::{FlowKey, Mac, same_mac};
use crate::life;
use crate::maglev;
use crate::packet::{Packet, connects, reply_key};
use crate::proxy;
use crate::tables::Tables;
use crate::values::{
    BALANCED, EndpointVal, FlowVal, POLICY_RANDOM, POLICY_SOURCE, POLICY_TURN, REPLY_LOCAL, REPLY_RESTORE,
    REPLY_STEER, ReplyVal, ServiceVal,
};
use crate::verdict::Work;

/// Slots tried before a service counts as having no endpoint. More than one only helps while the agent is between
/// two writes, or to avoid an endpoint.
const PROBES: u32 = 8;
/// Source ports tried for a flow whose own is taken.
pub(crate) const PORT_TRIES: u64 = 8;

/// A flow's endpoint.
#[derive(Clone, Copy)]
#[cfg_attr(feature = "host", derive(Debug))]
pub struct Choice<'a> {
    /// The endpoint's id.
    pub id: u64,
    /// The endpoint.
    pub endpoint: &'a EndpointVal,
}

/// What the flow table says of a packet.
#[derive(Clone, Copy)]
#[cfg_attr(feature = "host", derive(Debug))]
pub enum Known<'a> {
    /// Its flow goes on to its endpoint.
    Flow(&'a FlowVal, &'a EndpointVal),
    /// A balancer knows its endpoint.
    Balanced(&'a FlowVal),
    /// Its flow's endpoint is gone, and with it the connection.
    Gone,
    /// It needs an endpoint.
    New,
}

/// Looks the flow of a packet up by [`Work::key`].
///
/// An established connection stays with its endpoint whatever happens to the service. A packet that may begin
/// something does so only while the endpoint exists: UDP goes on with it, a SYN asks for the published port again,
/// which may lead elsewhere by now.
#[inline(always)]
pub fn known<'a, T: Tables>(tables: &'a T, work: &Work) -> Known<'a> {
    if work.header.is_syn() {
        return Known::New;
    }
    let Some(flow) = tables.flow(&work.key) else { return Known::New };
    if flow.endpoint == BALANCED {
        return Known::Balanced(flow);
    }
    match tables.endpoint_of(flow) {
        Some(endpoint) => Known::Flow(flow, endpoint),
        None if connects(work.header.proto) => Known::Gone,
        None => Known::New,
    }
}

/// Chooses an endpoint of a service for a flow: the one it has if that still takes new flows, whatever table names it, else by
/// the service's table. `known` is what is recorded for the flow, `avoid` the address of a task that is the client itself.
#[inline(always)]
pub fn choose<'a, T: Tables>(
    tables: &'a T,
    service: u64,
    work: &Work,
    known: Option<&FlowVal>,
    avoid: &Mac,
) -> Option<Choice<'a>> {
    let v4 = work.header.v4;
    if let Some(flow) = known
        && flow.service == service
        && let Some(endpoint) = tables.endpoint(flow.endpoint)
        && is_usable(endpoint, v4, avoid)
        // A client's port that is used again is no way around the table; a SYN that is sent again asks for the same.
        && (!endpoint.is_idle()
            || work.header.is_syn()
                && life::is_beginning(flow.state, life::idle(tables.clock(), flow.seen)))
    {
        return Some(Choice { id: flow.endpoint, endpoint });
    }
    // A connection that is under way elsewhere has no turn: nothing tells whose it was.
    let begins = work.header.may_begin();
    by_table(tables, service, &work.key, &Asked { v4, begins }, avoid)
}

/// What is asked of a service's table.
#[derive(Clone, Copy)]
#[cfg_attr(feature = "host", derive(Debug))]
pub struct Asked {
    /// Whether the endpoint must have an IPv4 address, or else an IPv6 one.
    pub v4: bool,
    /// Whether the flow begins now.
    pub begins: bool,
}

/// Chooses an endpoint by the service's table. `avoid` is the address of a task that is the client itself.
#[inline(always)]
pub fn by_table<'a, T: Tables>(
    tables: &'a T,
    service: u64,
    key: &FlowKey,
    asked: &Asked,
    avoid: &Mac,
) -> Option<Choice<'a>> {
    let table = tables.service(service)?;
    let (base, len) = (table.base, table.len);
    if len == 0 {
        return None;
    }
    let first = first_slot(tables, service, table, key, asked.begins);
    for probe in 0..PROBES {
        // A table of turns may be shorter than the search.
        let slot = (first + probe) % len;
        if let Some(id) = tables.slot(base + slot)
            && let Some(endpoint) = tables.endpoint(id)
            && is_usable(endpoint, asked.v4, avoid)
        {
            return Some(Choice { id, endpoint });
        }
    }
    None
}

/// Where the search begins, by the service's policy.
#[inline(always)]
fn first_slot<T: Tables>(tables: &T, service: u64, table: &ServiceVal, key: &FlowKey, begins: bool) -> u32 {
    let seed = table.seed;
    let hash = match table.policy {
        POLICY_TURN if begins => {
            // Its low half is as good as all of it, and divided by one instruction.
            return (tables.connections(service) & 0xffff_ffff) as u32 % table.len.max(1);
        }
        // The slot is in the upper half of a hash.
        POLICY_RANDOM if begins => u64::from(tables.random()) << 32,
        POLICY_SOURCE => hash::source(key, seed),
        _ => hash::flow(key, seed),
    };
    maglev::slot(hash, table.len)
}

#[inline(always)]
fn is_usable(endpoint: &EndpointVal, v4: bool, avoid: &Mac) -> bool {
    !endpoint.is_draining() && !endpoint.addr(v4).is_any() && !same_mac(&endpoint.mac, avoid)
}

/// Where a flow of the mesh comes in.
#[derive(Clone, Copy)]
#[cfg_attr(feature = "host", derive(Debug))]
pub struct Entry<'a> {
    /// The device.
    pub ifindex: u32,
    /// What its answers are: [`REPLY_RESTORE`] or [`REPLY_LOCAL`].
    pub kind: u16,
    /// The client's address as the endpoint sees it, if that is another than the packet's source.
    pub client: Option<&'a Addr>,
}

/// Records a new flow of the mesh ([`Work::flow`]) in both directions; `known` is what was recorded for it.
///
/// If the answers could be taken for those of another flow (the same client address and port reached the same task
/// through another address or port of this node, or through another node), the client's port is translated for this one.
/// Returns whether it could be: not if all ports that are tried are taken, and never for SCTP.
#[inline(always)]
#[must_use]
pub fn record<P: Packet, T: Tables>(
    packet: &P,
    tables: &T,
    work: &mut Work,
    known: Option<&FlowVal>,
    endpoint: &EndpointVal,
    entry: &Entry<'_>,
) -> bool {
    answer(packet, work, endpoint, entry);
    for salt in 1..=PORT_TRIES {
        let other = tables.reply(&work.answers);
        let is_taken = other.is_some_and(|other| {
            is_another_flow(work, other) && !life::is_over(tables, work.header.proto, other)
        });
        if !is_taken {
            write(tables, work, known, other);
            return true;
        }
        if work.header.keeps_ports() {
            return false;
        }
        work.flow.source_port = other_port(&work.key, salt);
        // Only here is it known what to translate that back to.
        work.flow.door = 0;
        work.answers.dport = work.flow.source_port;
    }
    false
}

/// Notes a packet of a known flow of the mesh in both its records, and makes the answers' again if it is gone.
///
/// Returns whether the flow goes on. It doesn't if its answers are another's now, who began when this one was over, or
/// came by another node when they were forgotten: unless this is a connection and that came by another node, for then it
/// has come back with the address it was sent to.
#[inline(always)]
pub fn goes_on<P: Packet, T: Tables>(
    packet: &P,
    tables: &T,
    work: &mut Work,
    flow: &FlowVal,
    endpoint: &EndpointVal,
    entry: &Entry<'_>,
) -> bool {
    // Of a connection that has ended a packet may come late, when another has its place.
    if !life::is_closed(flow.state) && is_noted(tables, work, flow) {
        return true;
    }
    work.flow = *flow;
    answer(packet, work, endpoint, entry);
    let answers = tables.reply(&work.answers);
    if answers.is_some_and(|known| is_another_flow(work, known)) {
        return false;
    }
    note(tables, work, flow, answers);
    true
}

/// Whether there is nothing to note of a packet of a known flow.
#[inline(always)]
pub(crate) fn is_noted<T: Tables>(tables: &T, work: &Work, flow: &FlowVal) -> bool {
    life::is_noted(flow.seen, flow.state, tables.clock(), life::of_client(&work.header))
}

/// Notes a packet of a known flow in both its records. [`Work::answers`] and [`Work::reply`] are what they would be for a
/// new one; `answers` is what is recorded for them.
#[inline(always)]
pub(crate) fn note<T: Tables>(tables: &T, work: &mut Work, flow: &FlowVal, answers: Option<&ReplyVal>) {
    let (now, state) = (tables.clock(), life::after(flow.state, life::of_client(&work.header)));
    tables.renew_flow(&work.key, flow, now, state);
    work.reply.seen = now;
    work.reply.state = state;
    set_reply(tables, work, answers);
}

/// Sets what happens to answers ([`Work::reply`]), in place if it is what is recorded, `known`, but for what has been seen.
/// Returns whether it was not.
#[inline(always)]
fn set_reply<T: Tables>(tables: &T, work: &Work, known: Option<&ReplyVal>) -> bool {
    match known {
        Some(known) if known.is_same(&work.reply) => {
            tables.renew_reply(&work.answers, known, work.reply.seen, work.reply.state);
            return false;
        }
        Some(other) => life::settle_answers(tables, &work.answers, other),
        None => {}
    }
    tables.set_reply(&work.answers, &work.reply);
    true
}

/// Sets [`Work::answers`] and [`Work::reply`]: how answers to a flow of the mesh ([`Work::flow`]) become ones to its client.
#[inline(always)]
fn answer<P: Packet>(packet: &P, work: &mut Work, endpoint: &EndpointVal, entry: &Entry<'_>) {
    work.answers = reply_key(&work.key, &work.flow, endpoint.addr(work.header.v4));
    if let Some(client) = entry.client {
        work.answers.dst = client.copied();
    }
    work.reply.addr = work.key.dst.copied();
    work.reply.port = work.key.dport;
    work.reply.client_port = work.key.sport;
    work.reply.ifindex =
        if entry.kind == REPLY_RESTORE { packet.back(&work.header, entry.ifindex) } else { entry.ifindex };
    work.reply.mac = [0; 6];
    work.reply.kind = entry.kind;
    work.reply.endpoint = work.flow.endpoint;
    work.reply.service = work.flow.service;
    work.reply.bytes = 0;
    work.reply.isn = work.flow.isn;
}

/// Writes a new flow and its answers; in place, so far as what is recorded for them is of an earlier connection of the same
/// addresses and ports.
#[inline(always)]
pub fn write<T: Tables>(tables: &T, work: &mut Work, known: Option<&FlowVal>, answers: Option<&ReplyVal>) {
    let is_new = set_flow(tables, work, known);
    work.reply.seen = work.flow.seen;
    work.reply.state = work.flow.state;
    if set_reply(tables, work, answers) || is_new {
        work.request = work.key;
        life::park(tables, work);
    }
    tables.count_connection(work.flow.service);
}

/// Sets where a flow goes ([`Work::flow`]) with its first packet, in place if it is what is recorded, `known`, but for what has
/// been seen. Returns whether it was not.
#[inline(always)]
pub(crate) fn set_flow<T: Tables>(tables: &T, work: &mut Work, known: Option<&FlowVal>) -> bool {
    let (now, state) =
        (tables.clock(), life::at_first(&work.header) | proxy::at_first(work) | direct::at_first(work));
    work.flow.seen = now;
    work.flow.state = state;
    match known {
        Some(known) if known.is_same(&work.flow) => {
            tables.count_request(&work.key, known, work.flow.bytes);
            tables.renew_flow(&work.key, known, now, state);
            return false;
        }
        Some(other) => life::settle_requests(tables, &work.key, other),
        None => {}
    }
    tables.set_flow(&work.key, &work.flow);
    true
}

/// Whether answers recorded already are those of another flow than the packet's ([`Work::reply`]).
#[inline(always)]
fn is_another_flow(work: &Work, other: &ReplyVal) -> bool {
    let own = &work.reply;
    match other.kind {
        // A connection under way comes from there: the address it was sent to has moved.
        REPLY_STEER => work.header.may_begin(),
        REPLY_RESTORE | REPLY_LOCAL => {
            other.kind != own.kind
                || other.addr != own.addr
                || other.port != own.port
                || other.client_port != own.client_port
        }
        _ => false,
    }
}

/// A source port that is not the client's: from the dynamic range, by the flow.
#[inline(always)]
pub(crate) const fn other_port(key: &FlowKey, salt: u64) -> u16 {
    let [low, high, ..] = hash::flow(key, salt).to_le_bytes();
    u16::from_le_bytes([low, high]) | 0xc000
}
