//! The fast lane: tunnel packets that the programs open and make themselves, past the kernel's tunnel device.
//!
//! What is inside is decided on as behind the device, and what comes out is what the device would send (but without a
//! checksum, which RFC 7348 section 5 leaves open and the one inside makes up for), so the two ends of a tunnel need not
//! agree on it, and a packet that doesn't fit goes the long way. What doesn't: IPv6 underneath, anything that the
//! programs do not send themselves (options, fragments, the checksums of devices), a mark of congestion, which the kernel
//! knows how to hand on, and packets that were merged from several, whose bookkeeping no program can put right
//! (`bpf_skb_adjust_room` leaves the tunnel's bits in `gso_type`).
//!
//! A flow that has merged packets stays with the device for a second after each, or its packets would overtake one
//! another: the device hands packets on later (`gro_cells`). Flows are told apart by what the sender made of them, the
//! tunnel's source port.

use crate::overlay;
use crate::packet::{ETH_IPV4, ETH_LEN, Fragment, Header, Packet, UDP, be16};
use crate::tables::Tables;
use crate::values::PeerVal;
use crate::verdict::{Verdict, Work};

/// What a tunnel puts before a frame: IPv4, UDP and VXLAN headers. Also what it adds to an IP packet between its own
/// Ethernet header and the packet's, as that moves to the front.
pub const OVERHEAD: u32 = IPV4_LEN + UDP_LEN + VXLAN_LEN + ETH_LEN;
/// Flows told apart in `BULK`: one for each source port of a tunnel.
pub const BULK_SLOTS: u32 = 1 << 16;

const IPV4_LEN: u32 = 20;
const UDP_LEN: u32 = 8;
const VXLAN_LEN: u32 = 8;
/// "There is a VNI" (RFC 7348 section 5).
const VXLAN_FLAGS: u8 = 0x08;
const ECN: u8 = 0x03;
const ECT_0: u8 = 0x02;

/// A packet without what its tunnel put before it.
pub struct Inside<'a, P>(pub &'a P);

impl<P: Packet> Packet for Inside<'_, P> {
    #[inline(always)]
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        self.0.load(offset + OVERHEAD)
    }

    #[inline(always)]
    fn load_words<const N: usize>(&self, offset: u32) -> Option<[u32; N]> {
        self.0.load_words(offset + OVERHEAD)
    }

    #[inline(always)]
    fn head<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        self.0.head(offset + OVERHEAD)
    }

    #[inline(always)]
    fn length(&self) -> u32 {
        self.0.length().wrapping_sub(OVERHEAD)
    }
}

/// How a tunnel packet came.
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "host", derive(Debug))]
pub enum Form {
    /// As it was on the wire.
    Single,
    /// Merged from several.
    Merged,
    /// With something beside it that the programs don't carry along.
    Other,
}

/// Decides on an admitted tunnel packet, whose own headers are in [`Work::header`], by what is inside; `Pass` leaves it
/// to the tunnel's device. With any other verdict [`Work`] is about the frame inside.
#[inline(always)]
pub fn decide<P: Packet, T: Tables>(packet: &P, tables: &T, form: Form, work: &mut Work) -> Verdict {
    let Some(tunnel) = open(packet, &work.header) else { return Verdict::Pass };
    match form {
        Form::Single if tables.is_bulk(tunnel.slot) => return Verdict::Pass,
        Form::Single => {}
        Form::Merged => {
            tables.note_bulk(tunnel.slot);
            return Verdict::Pass;
        }
        Form::Other => return Verdict::Pass,
    }
    let Some(device) = tables.tunnel(tunnel.vni) else { return Verdict::Pass };
    match overlay::decide(&Inside(packet), tables, device, work) {
        Verdict::Error | Verdict::Follow => Verdict::Pass,
        // All of a datagram go one way.
        _ if work.header.leads() => Verdict::Pass,
        verdict => verdict,
    }
}

struct Tunnel {
    vni: u32,
    slot: u32,
}

#[inline(always)]
fn open<P: Packet>(packet: &P, header: &Header) -> Option<Tunnel> {
    let is_whole = matches!(header.fragment, Fragment::Whole);
    if !header.v4 || header.l4 != ETH_LEN + IPV4_LEN || !is_whole || header.tos & ECN == ECN {
        return None;
    }
    let h = packet.load::<16>(header.l4)?;
    if h[6] | h[7] != 0 || h[8] != VXLAN_FLAGS || h[9] | h[10] | h[11] | h[15] != 0 {
        return None;
    }
    let [.., high, low] = header.src.v4_octets();
    let slot = u32::from(header.sport ^ be16(high, low));
    Some(Tunnel { vni: u32::from_be_bytes([0, h[12], h[13], h[14]]), slot })
}

/// The source port of a flow's tunnel packets: what `udp_flow_src_port` (`net/udp.h`) makes of the same hash, with the
/// range of ports that Linux begins with, so that a flow has one path through the network underneath.
#[inline(always)]
pub const fn source_port(hash: u32) -> u16 {
    const LOW: u64 = 32_768;
    const RANGE: u64 = 60_999 - LOW;
    let mixed = (hash ^ (hash << 16)) as u64;
    let [low, high, ..] = (((mixed * RANGE) >> 32) + LOW).to_le_bytes();
    u16::from_le_bytes([low, high])
}

/// What is known of a frame that goes into a tunnel.
#[derive(Clone, Copy)]
#[cfg_attr(feature = "host", derive(Debug))]
pub struct Parcel {
    /// Its Ethernet header and the first two bytes of its IP header.
    pub head: [u8; 16],
    /// Its length with the Ethernet header.
    pub length: u16,
    /// Source port of the tunnel packet.
    pub port: u16,
    /// Identification of the tunnel packet, should it be fragmented.
    pub id: u16,
}

/// Where what [`wrap`] gives begins: after the Ethernet addresses, which the kernel fills in.
pub const WRAP_AT: u32 = 12;

/// What a tunnel puts before a frame, from the type in its own Ethernet header on; the frame's Ethernet header is the
/// last of it. In words as they lie in memory: the target has few registers for bytes.
#[inline(always)]
pub fn wrap(parcel: &Parcel, peer: &PeerVal, data_port: u16) -> [u32; 13] {
    /// 64 is what Linux gives its own packets where nothing is configured (`IPDEFTTL`).
    const TTL_AND_UDP: u16 = (64 << 8) | UDP as u16;
    const VERSION_AND_LENGTH: u16 = 0x4500;
    const UDP_AND_VXLAN: u16 = 16;
    const IPV4: u16 = 20;
    let e = &parcel.head;
    let datagram = parcel.length + UDP_AND_VXLAN;
    let total = datagram + IPV4;
    let first = VERSION_AND_LENGTH | ecn(e);
    let (source, to) = (u32::from_be(peer.source), u32::from_be(peer.vtep));
    let sum = u32::from(first)
        + u32::from(total)
        + u32::from(parcel.id)
        + u32::from(TTL_AND_UDP)
        + (source >> 16)
        + (source & 0xffff)
        + (to >> 16)
        + (to & 0xffff);
    let sum = (sum & 0xffff) + (sum >> 16);
    let check = !(sum + (sum >> 16)) & 0xffff;
    [
        pair(ETH_IPV4, u32::from(first)),
        pair(total, u32::from(parcel.id)),
        pair(0, u32::from(TTL_AND_UDP)),
        ((check << 16) | (source >> 16)).to_be(),
        ((source << 16) | (to >> 16)).to_be(),
        ((to << 16) | u32::from(parcel.port)).to_be(),
        pair(data_port, u32::from(datagram)),
        // No checksum of the datagram; the VXLAN header begins in the other half.
        pair(0, u32::from(VXLAN_FLAGS) << 8),
        (peer.vni >> 8).to_be(),
        ((peer.vni << 24) | u32::from(be16(e[0], e[1]))).to_be(),
        u32::from_ne_bytes([e[2], e[3], e[4], e[5]]),
        u32::from_ne_bytes([e[6], e[7], e[8], e[9]]),
        u32::from_ne_bytes([e[10], e[11], e[12], e[13]]),
    ]
}

/// A word of two halves, in network order.
#[inline(always)]
const fn pair(high: u16, low: u32) -> u32 {
    (((high as u32) << 16) | low).to_be()
}

/// What the tunnel packet says of congestion (RFC 6040 section 4.1, normal mode; a packet that met congestion before it
/// came here says so inside).
#[inline(always)]
const fn ecn(head: &[u8; 16]) -> u16 {
    let tos = if head[14] >> 4 == 4 { head[15] } else { head[15] >> 4 };
    match tos & ECN {
        ECN => ECT_0 as u16,
        ecn => ecn as u16,
    }
}
