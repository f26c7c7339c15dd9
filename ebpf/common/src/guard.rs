//! A task may send only as itself: which frames of a task's veth are its own.

use crate::addr::Addr;
use crate::keys::{Mac, same_mac};
use crate::packet::{ETH_LEN, Fragment, Header, ICMP, ICMPV6, Packet, UDP, be16, sixteen};
use crate::reason::Reason;
use crate::values::TaskIf;

const ND_ROUTER_ADVERTISEMENT: u8 = 134;
const ND_SOLICITATION: u8 = 135;
const ND_ADVERTISEMENT: u8 = 136;
const ND_REDIRECT: u8 = 137;
const MLD_REPORT: u8 = 131;
const MLD_DONE: u8 = 132;
const MLD2_REPORT: u8 = 143;
const ICMP_REDIRECT: u8 = 5;

const DHCP_SERVER: u16 = 67;
const DHCP6_SERVER: u16 = 547;

/// Length of a solicitation or advertisement before its options (RFC 4861 section 4.3).
const ND_LEN: u32 = 24;
/// Length of the one option that is allowed in it.
const ND_OPTION_LEN: u32 = 8;
const OPTION_SOURCE: u8 = 1;
const OPTION_TARGET: u8 = 2;
const OPTION_NONCE: u8 = 14;

/// An ARP packet's fields.
#[derive(Clone, Copy)]
#[cfg_attr(feature = "host", derive(Debug))]
pub struct Arp {
    /// 1: request.
    pub operation: u16,
    /// Who speaks.
    pub sender_mac: Mac,
    /// As which address.
    pub sender: Addr,
    /// About which address.
    pub target: Addr,
}

/// Reads an ARP packet for IPv4 on Ethernet.
#[inline(always)]
pub fn arp<P: Packet>(packet: &P) -> Option<Arp> {
    let h = packet.load::<28>(ETH_LEN)?;
    if be16(h[0], h[1]) != 1 || be16(h[2], h[3]) != 0x0800 || h[4] != 6 || h[5] != 4 {
        return None;
    }
    Some(Arp {
        operation: be16(h[6], h[7]),
        sender_mac: [h[8], h[9], h[10], h[11], h[12], h[13]],
        sender: Addr::v4([h[14], h[15], h[16], h[17]]),
        target: Addr::v4([h[24], h[25], h[26], h[27]]),
    })
}

/// What becomes of a task's ARP packet.
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "host", derive(Debug))]
pub enum Speech {
    /// The task speaks as itself, or asks whether an address is taken (RFC 5227).
    Own,
    /// It asks as its ingress address on another leg, as Linux does for a packet with that source unless
    /// `arp_announce` forbids it: it is to ask as its address there.
    Elsewhere,
    /// It speaks for somebody else.
    Spoofed,
}

/// Judges a task's ARP packet.
#[inline(always)]
pub fn check_arp(task: &TaskIf, arp: &Arp) -> Speech {
    if !same_mac(&arp.sender_mac, &task.mac) {
        return Speech::Spoofed;
    }
    if arp.sender == task.ip4 || arp.sender == Addr::v4([0; 4]) {
        return Speech::Own;
    }
    let is_request = arp.operation == 1 && arp.target != arp.sender;
    if is_request && arp.sender == task.ingress_ip4 { Speech::Elsewhere } else { Speech::Spoofed }
}

/// Whether a task may send an IP packet.
#[inline(always)]
pub fn check_ip<P: Packet>(packet: &P, task: &TaskIf, header: &Header) -> Result<(), Reason> {
    if header.v4 { check_ipv4(packet, task, header) } else { check_ipv6(packet, task, header) }
}

/// Whether a task may send from the source that a packet has, whatever is in it.
#[inline(always)]
pub(crate) fn check_source(task: &TaskIf, header: &Header) -> Result<(), Reason> {
    match header.v4 {
        true if header.src != task.ip4 && !is_vip(&header.src, &task.vip_ip4) => Err(Reason::SpoofedIpv4),
        false if !is_own(task, &header.src) => Err(Reason::SpoofedIpv6),
        _ => Ok(()),
    }
}

#[inline(always)]
fn check_ipv4<P: Packet>(packet: &P, task: &TaskIf, header: &Header) -> Result<(), Reason> {
    if header.src != task.ip4 && !is_vip(&header.src, &task.vip_ip4) {
        return Err(Reason::SpoofedIpv4);
    }
    if matches!(header.fragment, Fragment::Later) {
        return Ok(());
    }
    match header.proto {
        UDP if header.sport == DHCP_SERVER => Err(Reason::RogueControl),
        ICMP => match packet.load::<1>(header.l4) {
            Some([ICMP_REDIRECT]) => Err(Reason::RogueControl),
            Some(_) => Ok(()),
            None => Err(Reason::Malformed),
        },
        _ => Ok(()),
    }
}

#[inline(always)]
fn check_ipv6<P: Packet>(packet: &P, task: &TaskIf, header: &Header) -> Result<(), Reason> {
    let is_own = is_own(task, &header.src);
    if header.proto != ICMPV6 {
        let is_server = header.proto == UDP && header.sport == DHCP6_SERVER;
        return match (is_own, is_server) {
            (false, _) => Err(Reason::SpoofedIpv6),
            (true, true) => Err(Reason::RogueControl),
            (true, false) => Ok(()),
        };
    }
    match header.fragment {
        Fragment::Later if is_own => return Ok(()),
        Fragment::Later => return Err(Reason::SpoofedIpv6),
        Fragment::First | Fragment::Whole => {}
    }
    let Some([kind]) = packet.load::<1>(header.l4) else { return Err(Reason::Malformed) };
    // Before it has an address, a host asks whether one is taken and joins groups (RFC 4862, RFC 3590).
    let may_be_unspecified = matches!(kind, ND_SOLICITATION | MLD_REPORT | MLD_DONE | MLD2_REPORT);
    if !(is_own || header.src.is_any() && may_be_unspecified) {
        return Err(Reason::SpoofedIpv6);
    }
    match kind {
        ND_ROUTER_ADVERTISEMENT | ND_REDIRECT => Err(Reason::RogueControl),
        ND_SOLICITATION | ND_ADVERTISEMENT => check_nd(packet, task, header, kind),
        _ => Ok(()),
    }
}

/// A neighbor message may be about others only when it asks, and may name no Ethernet address but the task's own.
#[inline(always)]
fn check_nd<P: Packet>(packet: &P, task: &TaskIf, header: &Header, kind: u8) -> Result<(), Reason> {
    // Neighbor messages are never fragmented (RFC 6980).
    if !matches!(header.fragment, Fragment::Whole) {
        return Err(Reason::SpoofedNd);
    }
    let Some(message) = packet.load::<24>(header.l4) else { return Err(Reason::Malformed) };
    let target = Addr::v6(sixteen(&message, 8));
    if kind == ND_ADVERTISEMENT && !has(task, &target) {
        return Err(Reason::SpoofedNd);
    }
    if header.end <= header.l4 + ND_LEN {
        return Ok(());
    }
    // One option is what hosts send; more could hide an address behind the first.
    if header.end > header.l4 + ND_LEN + ND_OPTION_LEN {
        return Err(Reason::SpoofedNd);
    }
    let Some(option) = packet.load::<8>(header.l4 + ND_LEN) else { return Err(Reason::Malformed) };
    let mac = [option[2], option[3], option[4], option[5], option[6], option[7]];
    match option[0] {
        OPTION_NONCE => Ok(()),
        OPTION_SOURCE | OPTION_TARGET if same_mac(&mac, &task.mac) => Ok(()),
        _ => Err(Reason::SpoofedNd),
    }
}

/// The target of a neighbor solicitation that has room for the answer: the source's address and one option.
#[inline(always)]
pub fn solicited<P: Packet>(packet: &P, header: &Header) -> Option<Addr> {
    let is_whole = matches!(header.fragment, Fragment::Whole);
    let is_long = header.end == header.l4 + ND_LEN + ND_OPTION_LEN;
    if header.proto != ICMPV6 || !is_whole || !is_long || header.l4 != ETH_LEN + 40 || header.src.is_any() {
        return None;
    }
    let message = packet.load::<24>(header.l4)?;
    (message[0] == ND_SOLICITATION).then(|| Addr::v6(sixteen(&message, 8)))
}

/// Whether a task may send from an IPv6 address.
#[inline(always)]
fn is_own(task: &TaskIf, addr: &Addr) -> bool {
    has(task, addr) || is_vip(addr, &task.vip_ip6)
}

/// Whether an IPv6 address is at the task's interface: assigned, or link-local from its Ethernet address.
#[inline(always)]
fn has(task: &TaskIf, addr: &Addr) -> bool {
    (*addr == task.ip6 && !addr.is_any()) || *addr == link_local(&task.mac)
}

/// Whether an address is the virtual one that the task answers from.
#[inline(always)]
fn is_vip(addr: &Addr, vip: &Addr) -> bool {
    !vip.is_any() && addr == vip
}

/// The link-local address of an interface (RFC 4291 appendix A).
#[inline(always)]
pub const fn link_local(mac: &Mac) -> Addr {
    Addr::v6([0xfe, 0x80, 0, 0, 0, 0, 0, 0, mac[0] ^ 2, mac[1], mac[2], 0xff, 0xfe, mac[3], mac[4], mac[5]])
}
