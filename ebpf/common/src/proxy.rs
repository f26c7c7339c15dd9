//! The PROXY protocol, version 2 (haproxy's `doc/proxy-protocol.txt`, section 2.2): a task whose port asks for it is told
//! by a header, in front of all that a client sends, who the client is and what it asked for.
//!
//! The header is put in where the client comes in, so that it names what the client sees. The task reads that many bytes
//! more than the client has sent: sequence numbers of the client go up by them, what the task acknowledges goes down.
//!
//! The header goes with the client's first acknowledgement, which has no data and so room for it. If that has data already,
//! or is lost and data is sent again, the data goes first, as a copy of its own, and the packet that remains becomes one
//! with the header alone: no packet ever grows beyond what its way can carry, and none is held back.

use crate::csum;
use crate::keys::FlowKey;
use crate::life::{self, FLOW_HEARD, FLOW_PROXY, FLOW_SPOKE, FLOW_TOLD};
use crate::packet::{ETH_LEN, Header, Packet, TCP, TCP_ACK, TCP_FIN};
use crate::reason::Reason;
use crate::rewrite::{self, PacketMut, TCP_CHECK, TCP_HEADER};
use crate::tables::Tables;
use crate::values::{PORT_PROXY, PortVal, ReplyVal};
use crate::verdict::{Out, Work};

/// [`Work::proxy`]: nothing is to be done.
pub const PLAIN: u32 = 0;
/// [`Work::proxy`]: the packet is one of the client, [`Work::key`] its flow.
pub const AHEAD: u32 = 1;
/// [`Work::proxy`]: the packet is one of the task, [`Work::key`] that of the answers.
pub const BACK: u32 = 2;

/// Where fields of a TCP header are (RFC 9293 section 3.1).
const SEQUENCE: u32 = 4;
const ACKNOWLEDGED: u32 = 8;
const OFFSET: u32 = 12;
const FLAGS: u32 = 13;
/// Selective acknowledgements (RFC 2018), and the edges of blocks that one option can hold.
const OPTION_SACK: u8 = 5;
const MAX_EDGES: u32 = 8;
/// Words of the longest TCP header and the longest of ours.
const MAX_WORDS: u32 = 15 + 13;
/// Sequence numbers less than half of all apart are in order (RFC 9293 section 3.4).
const HALF: u32 = 1 << 31;

const SIGNATURE: [u8; 12] = [0x0d, 0x0a, 0x0d, 0x0a, 0x00, 0x0d, 0x0a, 0x51, 0x55, 0x49, 0x54, 0x0a];
/// What the signature and the four bytes after it take.
const FIXED: u32 = 16;

/// Length of the header, bytes.
#[inline(always)]
pub const fn length(v4: bool) -> u32 {
    FIXED + if v4 { 12 } else { 36 }
}

/// A packet whose length can change.
pub trait Resize: PacketMut {
    /// Makes the packet that long, Ethernet header and all; new bytes at its end are zero.
    #[must_use]
    fn resize(&mut self, length: u32) -> Option<()>;
    /// Sends the packet as it is, by a device; it stays. Nobody hears of a failure: it is as if it was lost.
    fn send_copy(&mut self, out: Out);
}

/// Sets what is to be recorded ([`Work::flow`]) for the first packet of a flow to a port.
#[inline(always)]
pub(crate) fn begin<P: Packet>(packet: &P, port: &PortVal, work: &mut Work) {
    if port.flags & PORT_PROXY == 0 || work.header.proto != TCP {
        return;
    }
    work.proxy = AHEAD;
    if work.header.is_syn()
        && let Some(isn) = packet.load::<4>(work.header.l4 + SEQUENCE)
    {
        work.flow.isn = u32::from_be_bytes(isn);
    }
}

/// What a flow begins with. One that began by another node has sent its header there.
#[inline(always)]
pub(crate) const fn at_first(work: &Work) -> u32 {
    match (work.proxy, work.header.may_begin()) {
        (PLAIN, _) => 0,
        (_, true) => FLOW_PROXY,
        (_, false) => FLOW_PROXY | FLOW_TOLD | FLOW_SPOKE | FLOW_HEARD,
    }
}

/// What [`Work::proxy`] is for a packet of a client whose flow is known.
#[inline(always)]
pub(crate) const fn ahead(state: u32) -> u32 {
    if state & FLOW_PROXY == 0 { PLAIN } else { AHEAD }
}

/// What [`Work::proxy`] is for an answer.
#[inline(always)]
pub(crate) const fn back(reply: &ReplyVal) -> u32 {
    if reply.state & FLOW_PROXY == 0 { PLAIN } else { BACK }
}

/// Changes a packet of a client that is otherwise as it goes on. Returns whether its checksum is left to [`sum_up`].
#[inline(always)]
pub fn to_task<P: Resize, T: Tables>(packet: &mut P, tables: &T, work: &mut Work) -> Result<bool, Reason> {
    // Of a fragment it can't be told where its segment ends.
    if work.header.leads() {
        return Err(Reason::RewriteFailed);
    }
    let Some(segment) = read(packet, &work.header) else { return Err(Reason::Malformed) };
    if work.header.is_syn() {
        // Data would be in front of the header (RFC 7413). Its sender sends it again, without or after the handshake.
        return if segment.payload == 0 { Ok(false) } else { Err(Reason::EarlyData) };
    }
    lead_ahead(packet, tables, work, &segment).ok_or(Reason::RewriteFailed)
}

/// Changes an answer that is otherwise as it goes on, but for its selective acknowledgements; `None` if the kernel refused.
#[inline(always)]
pub fn to_client<P: PacketMut, T: Tables>(packet: &mut P, tables: &T, work: &mut Work) -> Option<()> {
    let segment = read(packet, &work.header)?;
    lead_back(packet, tables, work, &segment)
}

/// What there is to know of a segment.
struct Segment {
    sequence: u32,
    acknowledged: u32,
    /// Bytes of its TCP header.
    header: u32,
    /// Bytes of its data.
    payload: u32,
    flags: u8,
}

#[inline(always)]
fn read<P: Packet>(packet: &P, header: &Header) -> Option<Segment> {
    let h = packet.load::<16>(header.l4)?;
    let length = u32::from(h[12] >> 4) * 4;
    let payload = header.end.checked_sub(header.l4 + length)?;
    if length < TCP_HEADER {
        return None;
    }
    Some(Segment {
        sequence: u32::from_be_bytes([h[4], h[5], h[6], h[7]]),
        acknowledged: u32::from_be_bytes([h[8], h[9], h[10], h[11]]),
        header: length,
        payload,
        flags: h[13],
    })
}

#[inline(always)]
fn lead_ahead<P: Resize, T: Tables>(
    packet: &mut P,
    tables: &T,
    work: &mut Work,
    segment: &Segment,
) -> Option<bool> {
    let flow = tables.flow(&work.key)?;
    let (isn, state) = (flow.isn, flow.state);
    let (sequence, more) = (segment.sequence, length(work.header.v4));
    let after = sequence.wrapping_sub(isn.wrapping_add(1));
    let shifted = sequence.wrapping_add(more);
    if state & FLOW_HEARD != 0 || (after != 0 && after < HALF) {
        put(packet, &work.header, SEQUENCE, sequence, shifted)?;
        return Some(false);
    }
    // Before the first: it asks whether the other end is there. A reset before anything was told needs no more, either.
    let is_reset = work.header.is_reset();
    if after != 0 || (is_reset && state & FLOW_TOLD == 0) {
        return Some(false);
    }
    let has_data = segment.payload != 0;
    if is_reset || has_data {
        put(packet, &work.header, SEQUENCE, sequence, shifted)?;
    }
    let is_told = is_reset || (has_data && state & (FLOW_TOLD | FLOW_SPOKE) == FLOW_TOLD);
    if !is_told {
        if has_data {
            packet.send_copy(work.forward.out);
            put(packet, &work.header, SEQUENCE, shifted, sequence)?;
        }
        tell(packet, work, segment)?;
    }
    note(tables, work, state | FLOW_TOLD | if has_data { FLOW_SPOKE } else { 0 });
    Some(!is_told)
}

/// Notes how far a flow is, in both its records.
#[inline(always)]
fn note<T: Tables>(tables: &T, work: &mut Work, state: u32) {
    let now = tables.clock();
    tables.touch_flow(&work.key, now, state);
    // Field by field, as in [`Work::forward_unchanged`].
    work.answers.src = work.forward.dst.copied();
    work.answers.dst = work.forward.src.copied();
    work.answers.sport = work.forward.dport;
    work.answers.dport = work.forward.sport;
    work.answers.scope = FlowKey::scope(0, TCP);
    tables.touch_reply(&work.answers, now, state);
}

/// Makes the packet one with the header alone.
#[inline(always)]
fn tell<P: Resize>(packet: &mut P, work: &Work, segment: &Segment) -> Option<()> {
    let header = &work.header;
    let (more, at) = (length(header.v4), header.l4 + segment.header);
    // In two steps: a device's sum over all of the packet follows what is cut off, and is given up for what is added.
    packet.resize(at)?;
    packet.resize(at + more)?;
    write(packet, header, at)?;
    if segment.payload != 0 {
        // What ends the client's data is in the copy.
        packet.store(header.l4 + FLAGS, &[segment.flags & !TCP_FIN])?;
    }
    let (from, to) = (header.end, at + more);
    if header.v4 {
        let (from, to) = (length_field(from - ETH_LEN), length_field(to - ETH_LEN));
        packet.store(ETH_LEN + 2, &to.to_ne_bytes())?;
        packet.change_ip_checksum(rewrite::IPV4_CHECK, csum::word_diff(from.into(), to.into()))?;
    } else {
        let base = ETH_LEN + 40;
        packet.store(ETH_LEN + 4, &length_field(to - base).to_ne_bytes())?;
    }
    let (from, to) = ((from - header.l4).to_be(), (to - header.l4).to_be());
    rewrite::change_transport(packet, header, csum::word_diff(from, to), true)
}

/// A length as it stands in an IP header.
#[inline(always)]
fn length_field(length: u32) -> u16 {
    let [_, _, high, low] = length.to_be_bytes();
    u16::from_ne_bytes([high, low])
}

/// Writes the header itself.
#[inline(always)]
fn write<P: PacketMut>(packet: &mut P, header: &Header, at: u32) -> Option<()> {
    packet.store(at, &SIGNATURE)?;
    let ports = csum::port_word((header.sport, header.dport)).to_ne_bytes();
    let at = at + 12;
    // Version 2, on behalf of another; TCP over IPv4 or IPv6; how much follows.
    if header.v4 {
        packet.store(at, &[0x21, 0x11, 0, 12])?;
        packet.store(at + 4, &header.src.v4_octets())?;
        packet.store(at + 8, &header.dst.v4_octets())?;
        packet.store(at + 12, &ports)
    } else {
        packet.store(at, &[0x21, 0x21, 0, 36])?;
        packet.store(at + 4, &header.src.octets())?;
        packet.store(at + 20, &header.dst.octets())?;
        packet.store(at + 36, &ports)
    }
}

/// Brings the checksum up to what the segment holds now; `None` if the kernel refused. (If a device is to make it, the
/// kernel does nothing of this.)
#[inline(always)]
pub fn sum_up<P: PacketMut>(packet: &mut P, work: &Work) -> Option<()> {
    let l4 = work.header.l4;
    let [offset] = packet.load::<1>(l4 + OFFSET)?;
    let length = u32::from(offset >> 4) * 4 + self::length(work.header.v4);
    let mut sum = csum::pseudo(&work.forward.src, &work.forward.dst, TCP, length);
    for word in 0..MAX_WORDS {
        let at = word * 4;
        if at >= length {
            break;
        }
        let [a, b, c, d] = packet.load::<4>(l4 + at)?;
        let bytes = if at == TCP_CHECK { [0, 0, c, d] } else { [a, b, c, d] };
        sum = csum::add(sum, u32::from_ne_bytes(bytes));
    }
    let is = u16::from_ne_bytes(packet.load::<2>(l4 + TCP_CHECK)?);
    let diff = csum::add(u32::from(csum::fold(sum)), u32::from(is));
    rewrite::change_transport(packet, &work.header, diff, false)
}

#[inline(always)]
fn lead_back<P: PacketMut, T: Tables>(
    packet: &mut P,
    tables: &T,
    work: &mut Work,
    segment: &Segment,
) -> Option<()> {
    if segment.flags & TCP_ACK == 0 {
        return Some(());
    }
    let reply = tables.reply(&work.key)?;
    let (first, more) = (reply.isn.wrapping_add(1), length(work.header.v4));
    work.space = Space { first, more, heard: reply.state & FLOW_HEARD != 0 };
    let to = work.space.clients(segment.acknowledged);
    put(packet, &work.header, ACKNOWLEDGED, segment.acknowledged, to)?;
    let said = segment.acknowledged.wrapping_sub(first);
    if reply.state & FLOW_HEARD == 0 && said >= more && said < HALF {
        let (now, state) = (tables.clock(), reply.state | FLOW_HEARD | FLOW_TOLD);
        tables.touch_reply(&work.key, now, state);
        life::request_of(tables, work, reply);
        tables.touch_flow(&work.request, now, state);
    }
    Some(())
}

/// The sequence numbers of a connection, with the header and without.
#[derive(Clone, Copy, Default)]
#[cfg_attr(feature = "host", derive(Debug))]
pub struct Space {
    /// That of the first byte.
    pub first: u32,
    /// Bytes of the header.
    pub more: u32,
    /// Whether the task has acknowledged all of it: only until then a number before `first` is as it was.
    pub heard: bool,
}

impl Space {
    /// What the client calls a number of the task's.
    #[inline(always)]
    fn clients(&self, number: u32) -> u32 {
        let after = number.wrapping_sub(self.first);
        number.wrapping_sub(match (self.heard, after < HALF) {
            (true, _) => self.more,
            (false, true) => after.min(self.more),
            (false, false) => 0,
        })
    }
}

/// Translates selective acknowledgements, which stand where Linux puts them (`tcp_options_write` of
/// `net/ipv4/tcp_output.c`), whose tasks these are: first, or after the timestamps. (To look for them among options of any
/// order would make the programs three times as long to verify.) `None` if the kernel refused.
#[inline(always)]
pub fn blocks<P: PacketMut>(packet: &mut P, work: &Work) -> Option<()> {
    const AFTER_TIMESTAMPS: u32 = TCP_HEADER + 12;
    let header = &work.header;
    let [offset] = packet.load::<1>(header.l4 + OFFSET)?;
    let length = u32::from(offset >> 4) * 4;
    let mut option = TCP_HEADER;
    if length >= AFTER_TIMESTAMPS + 4 && packet.load::<4>(header.l4 + TCP_HEADER)? == [1, 1, 8, 10] {
        option = AFTER_TIMESTAMPS;
    }
    if length < option + 4 {
        return Some(());
    }
    let [first, second, kind, size] = packet.load::<4>(header.l4 + option)?;
    if [first, second, kind] != [1, 1, OPTION_SACK] {
        return Some(());
    }
    let end = (option + 2 + u32::from(size)).min(length);
    for edge in 0..MAX_EDGES {
        let at = option + 4 + edge * 4;
        if at + 4 > end {
            break;
        }
        let edge = u32::from_be_bytes(packet.load::<4>(header.l4 + at)?);
        put(packet, header, at, edge, work.space.clients(edge))?;
    }
    Some(())
}

/// Writes a word of the TCP header.
#[inline(always)]
fn put<P: PacketMut>(packet: &mut P, header: &Header, at: u32, from: u32, to: u32) -> Option<()> {
    packet.store(header.l4 + at, &to.to_be_bytes())?;
    rewrite::change_transport(packet, header, csum::word_diff(from.to_be(), to.to_be()), false)
}
