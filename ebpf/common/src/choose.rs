//! Choosing an endpoint and remembering the choice.

use crate::addr::Addr;
use crate::hash;
use crate::keys::{FlowKey, Mac, same_mac};
use crate::maglev;
use crate::packet::{TCP, UDP, reply_key};
use crate::tables::Tables;
use crate::values::{
    BALANCED, EndpointVal, FlowVal, POLICY_SOURCE, POLICY_TURN, REPLY_LOCAL, REPLY_RESTORE, REPLY_STEER,
    ReplyVal, ServiceVal,
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
    match tables.endpoint(flow.endpoint) {
        Some(endpoint) => Known::Flow(flow, endpoint),
        None if work.header.proto == TCP => Known::Gone,
        None => Known::New,
    }
}

/// Chooses an endpoint of a service for a flow: the one it has if that still takes new flows, else by the service's
/// table. `avoid` is the address of a task that is the client itself.
#[inline(always)]
pub fn choose<'a, T: Tables>(tables: &'a T, service: u64, work: &Work, avoid: &Mac) -> Option<Choice<'a>> {
    let v4 = work.header.v4;
    if let Some(flow) = tables.flow(&work.key)
        && flow.service == service
        && let Some(endpoint) = tables.endpoint(flow.endpoint)
        && is_usable(endpoint, v4, avoid)
    {
        return Some(Choice { id: flow.endpoint, endpoint });
    }
    let table = tables.service(service)?;
    let (base, len) = (table.base, table.len);
    if len == 0 {
        return None;
    }
    let first = first_slot(tables, service, table, work);
    for probe in 0..PROBES {
        let slot = first + probe;
        let slot = if slot >= len { slot - len } else { slot };
        if let Some(id) = tables.slot(base + slot)
            && let Some(endpoint) = tables.endpoint(id)
            && is_usable(endpoint, v4, avoid)
        {
            return Some(Choice { id, endpoint });
        }
    }
    None
}

/// Where the search begins, by the service's policy.
#[inline(always)]
fn first_slot<T: Tables>(tables: &T, service: u64, table: &ServiceVal, work: &Work) -> u32 {
    let (key, seed) = (&work.key, table.seed);
    let hash = match table.policy {
        // A connection that is under way elsewhere has no turn: nothing tells whose it was.
        POLICY_TURN if work.header.proto != TCP || work.header.is_syn() => {
            // Its low half is as good as all of it, and divided by one instruction.
            return (tables.connections(service) & 0xffff_ffff) as u32 % table.len.max(1);
        }
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
    /// The client's address as the endpoint sees it.
    pub client: &'a Addr,
}

/// Records a new flow of the mesh ([`Work::flow`]) in both directions.
///
/// If the answers could be taken for those of another flow (the same client address and port reached the same task
/// through another address or port of this node, or through another node), the client's port is translated for this one.
/// Returns whether it could be: not if all ports that are tried are taken.
#[inline(always)]
#[must_use]
pub fn record<T: Tables>(tables: &T, work: &mut Work, endpoint: &EndpointVal, entry: &Entry<'_>) -> bool {
    work.reply = answer(work, entry.ifindex);
    work.reply.kind = entry.kind;
    work.answers = reply_key(&work.key, &work.flow, endpoint.addr(work.header.v4));
    work.answers.dst = entry.client.copied();
    for salt in 1..=PORT_TRIES {
        let is_taken = match tables.reply(&work.answers) {
            Some(other) => is_another_flow(work, other),
            None => false,
        };
        if !is_taken {
            write(tables, work);
            return true;
        }
        work.flow.source_port = other_port(&work.key, salt);
        work.answers.dport = work.flow.source_port;
    }
    false
}

/// Whether the answers to a known flow of datagrams come back here; they do from now on if nobody else has them. If not,
/// another node's flow of the same client took the port when this one's answers had been forgotten.
#[inline(always)]
pub fn is_answered<T: Tables>(
    tables: &T,
    work: &mut Work,
    flow: &FlowVal,
    endpoint: &EndpointVal,
    uplink: u32,
) -> bool {
    if work.header.proto != UDP || !endpoint.is_local() {
        return true;
    }
    work.answers = reply_key(&work.key, flow, endpoint.addr(work.header.v4));
    if let Some(known) = tables.reply(&work.answers) {
        return known.kind != REPLY_STEER;
    }
    work.reply = answer(work, uplink);
    tables.set_reply(&work.answers, &work.reply);
    true
}

/// How an answer to the flow of a packet becomes one to its client.
#[inline(always)]
const fn answer(work: &Work, uplink: u32) -> ReplyVal {
    ReplyVal {
        addr: work.key.dst,
        port: work.key.dport,
        client_port: work.key.sport,
        ifindex: uplink,
        mac: [0; 6],
        kind: REPLY_RESTORE,
    }
}

/// Writes a new flow and its answers, so far as they are not there from an earlier connection of the same addresses and
/// ports: a write takes another element and gives the old one back.
#[inline(always)]
pub fn write<T: Tables>(tables: &T, work: &Work) {
    if tables.flow(&work.key).is_none_or(|known| *known != work.flow) {
        tables.set_flow(&work.key, &work.flow);
    }
    if tables.reply(&work.answers).is_none_or(|known| *known != work.reply) {
        tables.set_reply(&work.answers, &work.reply);
    }
    tables.count_connection(work.flow.service);
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
