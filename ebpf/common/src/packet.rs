//! Reading packets: Ethernet, IPv4 and IPv6 with their options and extension headers, and the ports.

use crate::addr::Addr;
use crate::keys::{FlowKey, Mac};
use crate::values::FlowVal;

/// IP protocol number of ICMP.
pub const ICMP: u8 = 1;
/// IP protocol number of TCP.
pub const TCP: u8 = 6;
/// IP protocol number of UDP.
pub const UDP: u8 = 17;
/// IP protocol number of ICMPv6.
pub const ICMPV6: u8 = 58;
/// IP protocol number of SCTP.
pub const SCTP: u8 = 132;

/// Ethertype of IPv4.
pub const ETH_IPV4: u16 = 0x0800;
/// Ethertype of ARP.
pub const ETH_ARP: u16 = 0x0806;
/// Ethertype of IPv6.
pub const ETH_IPV6: u16 = 0x86dd;
/// Length of an Ethernet header.
pub const ETH_LEN: u32 = 14;

pub(crate) const TCP_FIN: u8 = 0x01;
const TCP_SYN: u8 = 0x02;
const TCP_RST: u8 = 0x04;
pub(crate) const TCP_ACK: u8 = 0x10;
/// No flag of TCP that means anything here: SCTP asks whether a path works.
const PROBE: u8 = 0x40;

/// Extension headers walked before a packet counts as malformed.
const MAX_EXTENSIONS: u32 = 6;

/// Read access to a packet that starts with its Ethernet header.
pub trait Packet {
    /// The `N` bytes at an offset; `None` if the packet ends before.
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]>;
    /// As [`Self::load`]: words in memory order.
    fn load_words<const N: usize>(&self, offset: u32) -> Option<[u32; N]>;
    /// As [`Self::load`], for what every packet is asked for: takes more of a program, and less time.
    #[inline(always)]
    fn head<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        self.load(offset)
    }
    /// As [`Self::head`]: words in memory order. The offset is of a word of the IP header, with an Ethernet header before it:
    /// some machines read no words that lie across two, and there a packet begins two bytes off (`NET_IP_ALIGN` of
    /// `linux/skbuff.h`).
    #[inline(always)]
    fn words<const N: usize>(&self, offset: u32) -> Option<[u32; N]> {
        self.load_words(offset)
    }
    /// Its length in bytes, with whatever stands behind the IP packet.
    fn length(&self) -> u32;
    /// The device by which the kernel's routes lead to its destination, if that is one of `OUTWARD` and takes the packet as it
    /// is; `header` is the packet's.
    #[inline(always)]
    fn outward(&self, header: &Header) -> Option<u32> {
        let _ = header;
        None
    }
    /// The device by which the kernel's routes lead back to its source, for a packet that came in by an uplink; that uplink
    /// itself if there is no other, or they lead elsewhere.
    #[inline(always)]
    fn back(&self, header: &Header, uplink: u32) -> u32 {
        let _ = header;
        uplink
    }
}

/// An Ethernet header.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
#[cfg_attr(feature = "host", derive(Debug))]
pub struct Ethernet {
    /// Destination.
    pub dst: Mac,
    /// Source.
    pub src: Mac,
    /// Ethertype.
    pub kind: u16,
}

/// Whether a packet is part of a larger one.
#[repr(u8)]
#[derive(Clone, Copy, Default, PartialEq, Eq)]
#[cfg_attr(feature = "host", derive(Debug))]
pub enum Fragment {
    /// It is whole.
    #[default]
    Whole,
    /// The first fragment: it has the ports.
    First,
    /// A later fragment: it has none.
    Later,
}

/// What the data plane wants to know of an IP packet.
#[derive(Clone, Copy, Default)]
#[cfg_attr(feature = "host", derive(Debug))]
pub struct Header {
    /// Source address.
    pub src: Addr,
    /// Destination address.
    pub dst: Addr,
    /// Source port of TCP, UDP and SCTP, else 0.
    pub sport: u16,
    /// Destination port of TCP, UDP and SCTP, else 0.
    pub dport: u16,
    /// Where the upper layer starts, from the Ethernet header.
    pub l4: u32,
    /// Where the IP packet ends by its own account, from the Ethernet header.
    pub end: u32,
    /// Bytes it counts for: see [`length`].
    pub length: u32,
    /// Whether it is IPv4.
    pub v4: bool,
    /// Upper layer protocol.
    pub proto: u8,
    /// Identification of a fragment's datagram; of no meaning if it is whole.
    pub id: u32,
    /// Flags of TCP; of SCTP those that mean the same ([`sctp_flags`]); else 0.
    pub tcp_flags: u8,
    /// Type of service of IPv4, else 0.
    pub tos: u8,
    /// Whether it is a fragment.
    pub fragment: Fragment,
}

/// Why a packet has no [`Header`].
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "host", derive(Debug))]
pub enum ParseError {
    /// It is neither IPv4 nor IPv6.
    NotIp,
    /// It is, but ends early, contradicts itself or has too many extension headers.
    Malformed,
}

impl Header {
    /// The key of the packet's flow in a network (0: the mesh).
    #[inline(always)]
    pub const fn key(&self, network: u32) -> FlowKey {
        FlowKey {
            src: self.src.copied(),
            dst: self.dst.copied(),
            sport: self.sport,
            dport: self.dport,
            scope: FlowKey::scope(network, self.proto),
        }
    }

    /// The key of the packets that answer this one.
    #[inline(always)]
    pub const fn reverse_key(&self, network: u32) -> FlowKey {
        FlowKey {
            src: self.dst.copied(),
            dst: self.src.copied(),
            sport: self.dport,
            dport: self.sport,
            scope: FlowKey::scope(network, self.proto),
        }
    }

    /// Whether it is a TCP, UDP or SCTP packet with its ports, so that it has a flow: whole, or the first fragment.
    #[inline(always)]
    pub fn has_flow(&self) -> bool {
        has_ports(self.proto) && !self.follows()
    }

    /// Whether its ports can't be translated: SCTP's checksum is over the whole packet, and no program sums that up. It has
    /// no pseudo header, so that addresses can be (RFC 9260 section 6.8).
    #[inline(always)]
    pub const fn keeps_ports(&self) -> bool {
        self.proto == SCTP
    }

    /// Whether it asks if a path of an SCTP association works. If that is another one than it began on, nothing tells
    /// which endpoint has the association, and any other would end it: such a packet must reach none.
    #[inline(always)]
    pub const fn is_probe(&self) -> bool {
        self.tcp_flags & PROBE != 0 && self.proto == SCTP
    }

    /// Whether it is a fragment that has others after it, and goes before them.
    #[inline(always)]
    pub fn leads(&self) -> bool {
        matches!(self.fragment, Fragment::First)
    }

    /// Whether it is a fragment that is not the first.
    #[inline(always)]
    pub fn follows(&self) -> bool {
        matches!(self.fragment, Fragment::Later)
    }

    /// Whether it is of the two that open a TCP connection, which say how much may come.
    #[inline(always)]
    pub const fn opens(&self) -> bool {
        self.tcp_flags & TCP_SYN != 0 && self.proto == TCP
    }

    /// Whether it answers a SYN or INIT: it belongs to a connection this side opened.
    #[inline(always)]
    pub const fn is_syn_ack(&self) -> bool {
        self.tcp_flags & (TCP_SYN | TCP_ACK) == TCP_SYN | TCP_ACK
    }

    /// Whether its sender sends no more.
    #[inline(always)]
    pub const fn is_fin(&self) -> bool {
        self.tcp_flags & TCP_FIN != 0
    }

    /// Whether it resets its connection.
    #[inline(always)]
    pub const fn is_reset(&self) -> bool {
        self.tcp_flags & TCP_RST != 0
    }

    /// Whether it may be the first of its flow: of TCP only a SYN is, of SCTP only an INIT; any datagram may be.
    #[inline(always)]
    pub const fn may_begin(&self) -> bool {
        !connects(self.proto) || self.is_syn()
    }

    /// Whether it asks to open a TCP connection or an SCTP association.
    #[inline(always)]
    pub const fn is_syn(&self) -> bool {
        self.tcp_flags & (TCP_SYN | TCP_ACK | TCP_RST | TCP_FIN) == TCP_SYN
    }
}

/// Whether a protocol has ports, and so flows.
#[inline(always)]
pub const fn has_ports(proto: u8) -> bool {
    proto == TCP || proto == UDP || proto == SCTP
}

/// Whether a protocol has connections, which say where they begin and end (SCTP calls them associations).
#[inline(always)]
pub const fn connects(proto: u8) -> bool {
    proto == TCP || proto == SCTP
}

/// What the first chunk of an SCTP packet says (RFC 9260 section 3.2), as flags of TCP. The chunks that open an association
/// and the one that ends it stand alone; others may stand behind data and are not seen then.
#[inline(always)]
const fn sctp_flags(chunk: u8) -> u8 {
    const INIT: u8 = 1;
    const INIT_ACK: u8 = 2;
    const HEARTBEAT: u8 = 4;
    const ABORT: u8 = 6;
    const SHUTDOWN: u8 = 7;
    const SHUTDOWN_ACK: u8 = 8;
    const SHUTDOWN_COMPLETE: u8 = 14;
    match chunk {
        INIT => TCP_SYN,
        INIT_ACK => TCP_SYN | TCP_ACK,
        HEARTBEAT => PROBE,
        ABORT | SHUTDOWN_COMPLETE => TCP_RST,
        SHUTDOWN | SHUTDOWN_ACK => TCP_FIN,
        _ => TCP_ACK,
    }
}

/// The key of an endpoint's answers to a flow.
#[inline(always)]
pub const fn reply_key(key: &FlowKey, flow: &FlowVal, endpoint: &Addr) -> FlowKey {
    FlowKey {
        src: endpoint.copied(),
        dst: key.src.copied(),
        sport: flow.target_port,
        dport: flow.source_port,
        scope: key.scope,
    }
}

/// Reads the Ethernet header.
#[inline(always)]
pub fn ethernet<P: Packet>(packet: &P) -> Option<Ethernet> {
    let h = packet.head::<14>(0)?;
    Some(Ethernet {
        dst: [h[0], h[1], h[2], h[3], h[4], h[5]],
        src: [h[6], h[7], h[8], h[9], h[10], h[11]],
        kind: be16(h[12], h[13]),
    })
}

/// Reads the IP header and what follows.
#[inline(always)]
pub fn header<P: Packet>(packet: &P, kind: u16, header: &mut Header) -> Result<(), ParseError> {
    ip(packet, kind, header)?;
    header.length = length(packet, header);
    if matches!(header.fragment, Fragment::Later) {
        return Ok(());
    }
    match header.proto {
        TCP => {
            let h = packet.head::<20>(header.l4).ok_or(ParseError::Malformed)?;
            header.sport = be16(h[0], h[1]);
            header.dport = be16(h[2], h[3]);
            header.tcp_flags = h[13];
        }
        UDP => {
            let h = packet.head::<8>(header.l4).ok_or(ParseError::Malformed)?;
            header.sport = be16(h[0], h[1]);
            header.dport = be16(h[2], h[3]);
        }
        SCTP => {
            // The common header and that of the first chunk: there is no packet without one.
            let h = packet.load::<16>(header.l4).ok_or(ParseError::Malformed)?;
            header.sport = be16(h[0], h[1]);
            header.dport = be16(h[2], h[3]);
            header.tcp_flags = sctp_flags(h[12]);
        }
        _ => {}
    }
    Ok(())
}

/// The bytes of an IP packet, headers and all: by its own account, which leaves out what a short frame is filled up with,
/// but never more than there are. One that was merged from several counts whole, with one header. Beyond 64 KiB such a
/// packet of IPv6 claims nothing (RFC 2675): then it is as long as the frame.
#[inline(always)]
fn length<P: Packet>(packet: &P, header: &Header) -> u32 {
    let (claimed, there) = (header.end, packet.length());
    let end = if claimed > header.l4 && claimed < there { claimed } else { there };
    end.wrapping_sub(ETH_LEN)
}

/// Reads the IP header and steps over what it brings along, without the ports.
#[inline(always)]
pub(crate) fn ip<P: Packet>(packet: &P, kind: u16, header: &mut Header) -> Result<(), ParseError> {
    match kind {
        ETH_IPV4 => ipv4(packet, header),
        ETH_IPV6 => ipv6(packet, header),
        _ => Err(ParseError::NotIp),
    }
}

#[inline(always)]
fn ipv4<P: Packet>(packet: &P, header: &mut Header) -> Result<(), ParseError> {
    let [first, second, third, src, dst] = packet.words(ETH_LEN).ok_or(ParseError::Malformed)?;
    let [version, tos, total @ ..] = first.to_ne_bytes();
    let [id0, id1, place @ ..] = second.to_ne_bytes();
    let [_, proto, ..] = third.to_ne_bytes();
    let length = u32::from(version & 0x0f) * 4;
    let total = u32::from(u16::from_be_bytes(total));
    if version >> 4 != 4 || length < 20 || total < length {
        return Err(ParseError::Malformed);
    }
    *header = Header {
        src: Addr::v4(src.to_ne_bytes()),
        dst: Addr::v4(dst.to_ne_bytes()),
        sport: 0,
        dport: 0,
        l4: ETH_LEN + length,
        end: ETH_LEN + total,
        length: 0,
        v4: true,
        proto,
        id: u32::from(be16(id0, id1)),
        tcp_flags: 0,
        tos,
        fragment: fragment(be16(place[0], place[1]) & 0x1fff, place[0] & 0x20 != 0),
    };
    Ok(())
}

#[inline(always)]
fn ipv6<P: Packet>(packet: &P, header: &mut Header) -> Result<(), ParseError> {
    let words = packet.words::<2>(ETH_LEN).ok_or(ParseError::Malformed)?;
    let (first, [length0, length1, proto, _]) = (words[0].to_ne_bytes(), words[1].to_ne_bytes());
    if first[0] >> 4 != 6 {
        return Err(ParseError::Malformed);
    }
    // One after the other: each byte in flight is a register, or a word of stack.
    header.src = Addr::from_words(packet.words(ETH_LEN + 8).ok_or(ParseError::Malformed)?);
    header.dst = Addr::from_words(packet.words(ETH_LEN + 24).ok_or(ParseError::Malformed)?);
    header.sport = 0;
    header.dport = 0;
    header.l4 = ETH_LEN + 40;
    header.end = ETH_LEN + 40 + u32::from(be16(length0, length1));
    header.v4 = false;
    header.proto = proto;
    header.tcp_flags = 0;
    header.tos = 0;
    header.fragment = Fragment::Whole;
    for _ in 0..MAX_EXTENSIONS {
        if !is_extension(header.proto) || matches!(header.fragment, Fragment::Later) {
            return Ok(());
        }
        extension(packet, header)?;
    }
    Err(ParseError::Malformed)
}

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION: u8 = 60;

#[inline(always)]
const fn is_extension(proto: u8) -> bool {
    matches!(proto, HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION)
}

/// Steps over one IPv6 extension header (RFC 8200 section 4).
#[inline(always)]
fn extension<P: Packet>(packet: &P, header: &mut Header) -> Result<(), ParseError> {
    let h = packet.load::<8>(header.l4).ok_or(ParseError::Malformed)?;
    let length = match header.proto {
        FRAGMENT => {
            header.fragment = fragment(be16(h[2], h[3]) >> 3, h[3] & 1 != 0);
            header.id = u32::from_be_bytes([h[4], h[5], h[6], h[7]]);
            8
        }
        AUTHENTICATION => (u32::from(h[1]) + 2) * 4,
        _ => (u32::from(h[1]) + 1) * 8,
    };
    header.proto = h[0];
    header.l4 += length;
    Ok(())
}

#[inline(always)]
const fn fragment(offset: u16, more: bool) -> Fragment {
    match (offset, more) {
        (0, false) => Fragment::Whole,
        (0, true) => Fragment::First,
        _ => Fragment::Later,
    }
}

#[inline(always)]
pub(crate) const fn be16(high: u8, low: u8) -> u16 {
    u16::from_be_bytes([high, low])
}

/// Sixteen bytes from a constant place in a larger array.
#[inline(always)]
pub(crate) const fn sixteen<const N: usize>(h: &[u8; N], at: usize) -> [u8; 16] {
    [
        h[at],
        h[at + 1],
        h[at + 2],
        h[at + 3],
        h[at + 4],
        h[at + 5],
        h[at + 6],
        h[at + 7],
        h[at + 8],
        h[at + 9],
        h[at + 10],
        h[at + 11],
        h[at + 12],
        h[at + 13],
        h[at + 14],
        h[at + 15],
    ]
}
