//! The life of a flow: what is seen of it, when its record may go, and how its two halves are kept together.
//!
//! A flow of this node has two records, one for each direction, in tables that give up what was used least when they are
//! full. Both hold when the flow was last used and how far it is. That is written at most once a tick, or when it
//! changes, and then to both records: they age alike, and if one is gone, it is made again from the other.
//!
//! A flow that has only begun may be one of millions that a sender makes up. Each new one is parked at the next place of a
//! ring that is smaller than the tables; what was parked there goes if nothing has come of it, or if it has ended, so that
//! such flows never fill the tables. What is left of others is for user space to find: it proposes, and a program removes
//! what has not been used since.

use crate::keys::FlowKey;
use crate::packet::{Header, SCTP, connects};
use crate::tables::Tables;
use crate::values::{
    ALIASED, FlowVal, PROPOSE_ANYWAY, PROPOSE_FLOW, PROPOSE_REPLY, Proposal, REPLY_DIRECT, REPLY_HAIRPIN,
    REPLY_LOCAL, REPLY_STEER, ReplyVal,
};
use crate::verdict::Work;

/// A tick is 2^30 nanoseconds of the monotonic clock, a little more than a second.
pub const TICK_SHIFT: u32 = 30;

/// The client went on after its first packet, or a datagram was answered.
pub const FLOW_OPEN: u32 = 1;
/// The client sends no more.
pub const FLOW_CLIENT_FIN: u32 = 2;
/// The endpoint sends no more.
pub const FLOW_SERVER_FIN: u32 = 4;
/// One of them has reset the connection.
pub const FLOW_RESET: u32 = 8;
/// The endpoint is told of its client: see [`crate::proxy`].
pub const FLOW_PROXY: u32 = 16;
/// It was told.
pub const FLOW_TOLD: u32 = 32;
/// The client's first data has passed.
pub const FLOW_SPOKE: u32 = 64;
/// The endpoint has acknowledged what it was told.
pub const FLOW_HEARD: u32 = 128;
/// Its answers don't pass here: see [`crate::direct`].
pub const FLOW_DSR: u32 = 256;

/// Proposals that one run of the collector looks at.
pub const PROPOSALS: u32 = 64;

/// Seconds after its end that a connection's late packets are still led to its endpoint.
const CLOSED_FOR: u64 = 60;
/// Seconds that a connection is kept whose client has said its last, and whose endpoint is not heard here.
const HALF_HEARD_FOR: u64 = 600;
/// Seconds that a flow may take to get from its first packet to the next.
const EMBRYO_FOR: u64 = 60;
/// Seconds that a flow of datagrams may be idle.
const DATAGRAMS_FOR: u64 = 180;
/// Seconds that an open connection may be idle: five days, as in the kernel's connection tracking.
const CONNECTION_FOR: u64 = 432_000;

/// Whether a connection has ended.
#[inline(always)]
pub const fn is_closed(state: u32) -> bool {
    const BOTH: u32 = FLOW_CLIENT_FIN | FLOW_SERVER_FIN;
    state & FLOW_RESET != 0 || state & BOTH == BOTH
}

/// Ticks after which a client that has said its last, and whose endpoint is not heard here, has no more to acknowledge.
const SILENCE: u32 = 2;

/// Ticks after which a client that has said nothing but its first would have said it again.
const BEGINNING: u32 = 5;

/// Whether only the client of a connection is heard here, and it sends no more.
#[inline(always)]
const fn is_half_heard(state: u32) -> bool {
    const BOTH: u32 = FLOW_DSR | FLOW_CLIENT_FIN;
    state & BOTH == BOTH
}

/// Whether a connection that was idle for so many ticks has ended, so far as can be told here.
#[inline(always)]
pub const fn has_ended(state: u32, idle: u32) -> bool {
    is_closed(state) || (is_half_heard(state) && idle >= SILENCE)
}

/// Whether a flow is under way: neither ended nor still at its beginning, and of datagrams used lately.
pub const fn is_live(proto: u8, state: u32, idle: u32) -> bool {
    !has_ended(state, idle) && state & FLOW_OPEN != 0 && (connects(proto) || seconds(idle) < DATAGRAMS_FOR)
}

/// Whether the record of a flow that was idle for so many ticks has had its time.
pub const fn is_expired(proto: u8, state: u32, idle: u32) -> bool {
    let limit = if is_closed(state) {
        CLOSED_FOR
    } else if is_half_heard(state) {
        HALF_HEARD_FOR
    } else if state & (FLOW_DSR | FLOW_OPEN) == FLOW_DSR | FLOW_OPEN && proto == SCTP {
        // Its end may not have been heard. Both ends of one that lives are, each half minute (RFC 9260 section 8.3).
        DATAGRAMS_FOR
    } else if state & FLOW_OPEN == 0 {
        EMBRYO_FOR
    } else if connects(proto) {
        CONNECTION_FOR
    } else {
        DATAGRAMS_FOR
    };
    seconds(idle) >= limit
}

/// Whether a flow is at its beginning, so that what begins it anew is the same said again. A client waits for 1, 2 and 4 s
/// before that (RFC 6298 section 2); afterwards it may as well go elsewhere.
#[inline(always)]
pub const fn is_beginning(state: u32, idle: u32) -> bool {
    const MORE: u32 = FLOW_OPEN | FLOW_CLIENT_FIN | FLOW_SERVER_FIN | FLOW_RESET;
    state & MORE == 0 && idle < BEGINNING
}

/// Whether a flow is over, by the record of its answers: another may have its ports.
#[inline(always)]
pub(crate) fn is_over<T: Tables>(tables: &T, proto: u8, known: &ReplyVal) -> bool {
    is_closed(known.state) || is_expired(proto, known.state, idle(tables.clock(), known.seen))
}

const fn seconds(ticks: u32) -> u64 {
    ((ticks as u64) << TICK_SHIFT) / 1_000_000_000
}

/// How long something seen at one tick has been idle at another. Clocks of two CPUs may differ by one.
#[inline(always)]
pub const fn idle(now: u32, seen: u32) -> u32 {
    let idle = now.wrapping_sub(seen);
    if idle > u32::MAX / 2 { 0 } else { idle }
}

/// What a packet of a client says of a flow that is known.
#[inline(always)]
pub const fn of_client(header: &Header) -> u32 {
    FLOW_OPEN | of_flags(header, FLOW_CLIENT_FIN)
}

/// What an answer says of its flow.
#[inline(always)]
pub const fn of_answer(header: &Header) -> u32 {
    let open = if connects(header.proto) { 0 } else { FLOW_OPEN };
    open | of_flags(header, FLOW_SERVER_FIN)
}

#[inline(always)]
const fn of_flags(header: &Header, fin: u32) -> u32 {
    let fin = if header.is_fin() { fin } else { 0 };
    let reset = if header.is_reset() { FLOW_RESET } else { 0 };
    fin | reset
}

/// The state of a new flow: one whose first packet opens nothing began elsewhere, and is open.
#[inline(always)]
pub const fn at_first(header: &Header) -> u32 {
    if header.may_begin() { 0 } else { FLOW_OPEN }
}

/// Whether a record says already what a packet says. (A reset in it that is followed by other packets was none.)
#[inline(always)]
pub const fn is_noted(seen: u32, state: u32, now: u32, says: u32) -> bool {
    seen == now && state & (says | FLOW_RESET) == says
}

/// The state after a packet.
#[inline(always)]
pub const fn after(state: u32, says: u32) -> u32 {
    (state & !FLOW_RESET) | says
}

/// Notes an answer ([`Work::key`]) in both records of its flow; makes the other again if it is gone.
#[inline(always)]
pub(crate) fn note_answer<T: Tables>(tables: &T, work: &mut Work, reply: &ReplyVal) {
    let (now, says) = (tables.clock(), of_answer(&work.header));
    if is_noted(reply.seen, reply.state, now, says) {
        return;
    }
    let state = after(reply.state, says);
    tables.renew_reply(&work.key, reply, now, state);
    let is_whole = reply.kind == REPLY_STEER && reply.client_port == work.key.dport;
    if is_whole || reply.kind == REPLY_DIRECT {
        return;
    }
    request_of(tables, work, reply);
    if tables.touch_flow(&work.request, now, state) {
        return;
    }
    work.flow.endpoint = reply.endpoint;
    work.flow.service = reply.service;
    work.flow.target_port = work.key.sport;
    work.flow.source_port = work.key.dport;
    work.flow.mark = 0;
    work.flow.bytes = 0;
    work.flow.isn = reply.isn;
    work.flow.door = 0;
    work.flow.seen = now;
    work.flow.state = state;
    if reply.kind == REPLY_STEER {
        crate::steer::alias_of(work, reply);
    }
    tables.set_flow(&work.request, &work.flow);
}

/// Whether the bytes of an endpoint's flows are counted: [`FlowVal::endpoint`] may stand for something else.
pub const fn is_counted(endpoint: u64) -> bool {
    endpoint != 0 && endpoint < ALIASED
}

/// Adds what a flow's client has sent to the totals, before its record goes.
#[inline(always)]
pub(crate) fn settle_requests<T: Tables>(tables: &T, key: &FlowKey, flow: &FlowVal) {
    // What doesn't count is told apart behind the call: each branch here is another way for the verifier to follow.
    let bytes = tables.take_requests(key, flow);
    tables.add_total(flow.endpoint, flow.service, bytes, 0);
}

/// As [`settle_requests`], of what its endpoint has answered.
#[inline(always)]
pub(crate) fn settle_answers<T: Tables>(tables: &T, key: &FlowKey, reply: &ReplyVal) {
    let bytes = tables.take_answers(key, reply);
    tables.add_total(reply.endpoint, reply.service, 0, bytes);
}

/// Removes both records of a flow, found by those of its answers ([`Work::key`]).
#[inline(always)]
pub(crate) fn forget<T: Tables>(tables: &T, work: &mut Work, reply: &ReplyVal) {
    request_of(tables, work, reply);
    if let Some(flow) = tables.flow(&work.request) {
        settle_requests(tables, &work.request, flow);
    }
    settle_answers(tables, &work.key, reply);
    tables.remove_flow(&work.request);
    tables.remove_reply(&work.key);
}

/// Finds the key of the flow that an answer ([`Work::key`]) is for: [`Work::request`].
#[inline(always)]
pub(crate) fn request_of<T: Tables>(tables: &T, work: &mut Work, reply: &ReplyVal) {
    let client = if reply.kind == REPLY_HAIRPIN { &work.key.src } else { &work.key.dst };
    work.request.src = client.copied();
    work.request.dst = if reply.kind == REPLY_STEER { &work.key.src } else { &reply.addr }.copied();
    work.request.sport = reply.client_port;
    work.request.dport = reply.port;
    work.request.scope = work.key.scope;
    if reply.kind == REPLY_STEER {
        work.request.scope |= FlowKey::scope(crate::steer::scope_of(&reply.mac), 0);
    }
    if reply.kind == REPLY_LOCAL
        && let Some(config) = tables.config()
    {
        work.request.src = crate::local::client_of(config, work.header.v4, &work.key.dst);
    }
}

/// Parks a new flow ([`Work::request`], [`Work::answers`]) and removes what was parked in its place, if nothing has come
/// of that.
#[inline(always)]
pub(crate) fn park<T: Tables>(tables: &T, work: &Work) {
    let place = tables.next_place();
    let Some(parked) = tables.parked(place) else { return };
    let now = tables.clock();
    let may_go = |proto, seen, state| {
        let idle = idle(now, seen);
        has_ended(state, idle) || state & FLOW_OPEN == 0 || is_expired(proto, state, idle)
    };
    let flow = tables.flow(&parked.request);
    let goes = flow.is_none_or(|flow| may_go(parked.request.proto(), flow.seen, flow.state));
    if goes
        && let Some(reply) = tables.reply(&parked.answers)
        && may_go(parked.answers.proto(), reply.seen, reply.state)
    {
        settle_answers(tables, &parked.answers, reply);
        tables.remove_reply(&parked.answers);
    }
    if goes && let Some(flow) = flow {
        settle_requests(tables, &parked.request, flow);
        tables.remove_flow(&parked.request);
    }
    tables.park(place, &work.request, &work.answers);
}

/// Removes the entry that user space proposes at a place, unless it has been used since. Whether it did; `None`: nothing is
/// proposed from there on.
#[inline(always)]
pub fn collect<T: Tables>(tables: &T, place: u32) -> Option<bool> {
    let proposal = tables.proposal(place)?;
    match proposal.table & !PROPOSE_ANYWAY {
        PROPOSE_FLOW => Some(collect_flow(tables, proposal)),
        PROPOSE_REPLY => Some(collect_reply(tables, proposal)),
        _ => None,
    }
}

#[inline(always)]
fn collect_flow<T: Tables>(tables: &T, proposal: &Proposal) -> bool {
    let Some(flow) = tables.flow(&proposal.key) else { return false };
    let goes = is_unused(proposal, flow.seen, flow.state);
    if goes {
        settle_requests(tables, &proposal.key, flow);
        tables.remove_flow(&proposal.key);
    }
    goes
}

#[inline(always)]
fn collect_reply<T: Tables>(tables: &T, proposal: &Proposal) -> bool {
    let Some(reply) = tables.reply(&proposal.key) else { return false };
    let goes = is_unused(proposal, reply.seen, reply.state);
    if goes {
        settle_answers(tables, &proposal.key, reply);
        tables.remove_reply(&proposal.key);
    }
    goes
}

#[inline(always)]
const fn is_unused(proposal: &Proposal, seen: u32, state: u32) -> bool {
    proposal.table & PROPOSE_ANYWAY != 0 || (seen == proposal.seen && state == proposal.state)
}
