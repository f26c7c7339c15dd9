//! Changing packets.

use crate::addr::Addr;
use crate::csum;
use crate::guard;
use crate::icmp::ICMP_LEN;
use crate::keys::Mac;
use crate::packet::{ETH_IPV4, ETH_IPV6, ETH_LEN, Header, Packet, SCTP, TCP, UDP};
use crate::verdict::{Ends, Forward, Image, Out, Question, Work};

/// How a transport checksum is changed.
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "host", derive(Debug))]
pub struct Cover {
    /// The difference is one of the pseudo header, not of the segment itself.
    pub pseudo: bool,
    /// A checksum of zero means there is none: it stays, and none becomes zero (UDP).
    pub optional: bool,
}

/// Write access to a packet, as the kernel's helpers give it.
pub trait PacketMut: Packet {
    /// Writes bytes that a checksum in the same packet makes up for, or that stand before the IP header: what a device
    /// summed up of the whole packet is right as before.
    #[must_use]
    fn store<const N: usize>(&mut self, offset: u32, bytes: &[u8; N]) -> Option<()>;
    /// Writes other bytes of the IP packet.
    #[must_use]
    fn store_counted<const N: usize>(&mut self, offset: u32, bytes: &[u8; N]) -> Option<()>;
    /// Makes the first `N` bytes those of an image.
    #[must_use]
    fn begin<const N: usize>(&mut self, image: &Image) -> Option<()>;
    /// Says by how much what was stored differs where nothing makes up for it.
    fn recount(&mut self, diff: u32);
    /// Applies a difference to the IPv4 header checksum at an offset.
    #[must_use]
    fn change_ip_checksum(&mut self, offset: u32, diff: u32) -> Option<()>;
    /// Applies a difference to a transport checksum at an offset.
    #[must_use]
    fn change_checksum(&mut self, offset: u32, diff: u32, cover: Cover) -> Option<()>;
    /// Applies to the checksum of TCP at an offset the difference that other addresses of IPv6 make, which were stored before and
    /// nothing makes up for yet.
    #[must_use]
    #[inline(always)]
    fn change_moved(&mut self, offset: u32, diff: u32) -> Option<()> {
        self.recount(diff);
        self.change_checksum(offset, diff, PSEUDO)
    }
}

pub(crate) const IPV4_CHECK: u32 = ETH_LEN + 10;
const IPV4_SRC: u32 = ETH_LEN + 12;
const IPV4_DST: u32 = ETH_LEN + 16;
const IPV6_SRC: u32 = ETH_LEN + 8;
const IPV6_DST: u32 = ETH_LEN + 24;
pub(crate) const TCP_CHECK: u32 = 16;
const UDP_CHECK: u32 = 6;
const ICMP_CHECK: u32 = 2;

/// A change of the pseudo header.
pub const PSEUDO: Cover = Cover { pseudo: true, optional: false };
/// The difference between equals, as one's complement has it.
const NO_DIFF: u32 = !0;
/// A change of what follows the header.
const SEGMENT: Cover = Cover { pseudo: false, optional: false };

/// Makes a packet what its verdict says; `None` if the kernel refused.
#[inline(always)]
pub fn apply<P: PacketMut>(packet: &mut P, work: &mut Work) -> Option<()> {
    let (header, forward) = (&work.header, &work.forward);
    let (from, to) = ((header.sport, header.dport), (forward.sport, forward.dport));
    let ported = csum::port_word(from) != csum::port_word(to);
    let diff = address_diff(header, forward);
    // What differs in its sum differs; the other way round it takes a look.
    let moved = diff != NO_DIFF || moved(header, forward);
    if !moved && !ported {
        return macs(packet, &mut work.image, forward);
    }
    if ported && header.proto == SCTP {
        return None;
    }
    write(packet, &mut work.image, header, forward, diff, true)?;
    if moved {
        settle(packet, header, diff)?;
    }
    if !ported {
        return Some(());
    }
    let diff = csum::port_diff(from, to);
    if header.proto == UDP && packet.load(header.l4 + UDP_CHECK)? == [0, 0] {
        packet.recount(diff);
        return Some(());
    }
    change_transport(packet, header, diff, false)
}

/// As [`apply`], for a fragment without ports and checksum.
#[inline(always)]
pub fn fragment<P: PacketMut>(packet: &mut P, work: &mut Work) -> Option<()> {
    let (header, forward) = (&work.header, &work.forward);
    let diff = address_diff(header, forward);
    write(packet, &mut work.image, header, forward, diff, false)?;
    if !header.v4 {
        packet.recount(diff);
    }
    Some(())
}

/// As [`apply`], for an ICMP error; `None` if the kernel refused. Its quote is for [`quote`].
#[inline(always)]
pub fn error<P: PacketMut>(packet: &mut P, work: &mut Work) -> Option<()> {
    let (header, forward) = (&work.header, &work.forward);
    let diff = address_diff(header, forward);
    write(packet, &mut work.image, header, forward, diff, false)?;
    if !header.v4 && moved(header, forward) {
        packet.recount(diff);
        packet.change_checksum(header.l4 + ICMP_CHECK, diff, PSEUDO)?;
    }
    Some(())
}

/// Makes the checksum right that covers addresses which were stored. (The header of IPv4 makes up for them itself, and SCTP
/// doesn't look at them.)
#[inline(always)]
fn settle<P: PacketMut>(packet: &mut P, header: &Header, diff: u32) -> Option<()> {
    if !header.v4 {
        if header.proto == TCP {
            return packet.change_moved(header.l4 + TCP_CHECK, diff);
        }
        packet.recount(diff);
    }
    if header.proto == SCTP { Some(()) } else { change_transport(packet, header, diff, true) }
}

/// Whether a packet gets another address.
#[inline(always)]
fn moved(header: &Header, forward: &Forward) -> bool {
    header.src != forward.src || header.dst != forward.dst
}

/// The difference that its addresses make.
#[inline(always)]
fn address_diff(header: &Header, forward: &Forward) -> u32 {
    csum::ends_diff((&header.src, &header.dst), (&forward.src, &forward.dst))
}

/// Writes what changes of a packet's headers, and of its ports if it has such, at once: each call of a helper costs as much
/// as a lookup. `diff`: what its addresses differ by; IPv6 makes up for nothing of that.
#[inline(always)]
fn write<P: PacketMut>(
    packet: &mut P,
    image: &mut Image,
    header: &Header,
    forward: &Forward,
    diff: u32,
    has_ports: bool,
) -> Option<()> {
    if header.v4 {
        return write4(packet, image, header, forward, diff, has_ports);
    }
    write6(packet, image, header, forward, has_ports)
}

/// As [`write`], of an IPv4 packet, whose header makes up for its addresses with its own checksum.
#[inline(always)]
fn write4<P: PacketMut>(
    packet: &mut P,
    image: &mut Image,
    header: &Header,
    forward: &Forward,
    diff: u32,
    has_ports: bool,
) -> Option<()> {
    let [first, second, third] = packet.words(ETH_LEN)?;
    let [ttl, proto, low, high] = third.to_ne_bytes();
    let [low, high] = csum::update(u16::from_ne_bytes([low, high]), diff).to_ne_bytes();
    ethernet(image, forward, ETH_IPV4);
    image[4] = first;
    image[5] = second;
    image[6] = u32::from_ne_bytes([ttl, proto, low, high]);
    image[7] = forward.src.words()[3];
    image[8] = forward.dst.words()[3];
    image[9] = csum::port_word((forward.sport, forward.dport));
    store_image::<_, 34, 38>(packet, image, header, has_ports.then_some(image[9]))
}

/// As [`write`], of an IPv6 packet.
#[inline(always)]
fn write6<P: PacketMut>(
    packet: &mut P,
    image: &mut Image,
    header: &Header,
    forward: &Forward,
    has_ports: bool,
) -> Option<()> {
    let [first, second] = packet.words(ETH_LEN)?;
    ethernet(image, forward, ETH_IPV6);
    image[4] = first;
    image[5] = second;
    [image[6], image[7], image[8], image[9]] = forward.src.words();
    [image[10], image[11], image[12], image[13]] = forward.dst.words();
    image[14] = csum::port_word((forward.sport, forward.dport));
    store_image::<_, 54, 58>(packet, image, header, has_ports.then_some(image[14]))
}

/// Writes an image: headers of `BARE` bytes, and the ports, if there are any. Without options the two are `WHOLE`.
#[inline(always)]
fn store_image<P: PacketMut, const BARE: usize, const WHOLE: usize>(
    packet: &mut P,
    image: &Image,
    header: &Header,
    ports: Option<u32>,
) -> Option<()> {
    if ports.is_some() && header.l4 as usize == BARE {
        return packet.begin::<WHOLE>(image);
    }
    packet.begin::<BARE>(image)?;
    match ports {
        Some(ports) => packet.store(header.l4, &ports.to_ne_bytes()),
        None => Some(()),
    }
}

/// Sets the Ethernet header. (Where the kernel writes it, this is of no effect.)
#[inline(always)]
fn ethernet(image: &mut Image, forward: &Forward, kind: u16) {
    let (d, s, k) = (&forward.dst_mac, &forward.src_mac, kind.to_be_bytes());
    image[0] = u32::from_ne_bytes([0, 0, d[0], d[1]]);
    image[1] = u32::from_ne_bytes([d[2], d[3], d[4], d[5]]);
    image[2] = u32::from_ne_bytes([s[0], s[1], s[2], s[3]]);
    image[3] = u32::from_ne_bytes([s[4], s[5], k[0], k[1]]);
}

/// Writes the Ethernet addresses, if the kernel doesn't.
#[inline(always)]
fn macs<P: PacketMut>(packet: &mut P, image: &mut Image, forward: &Forward) -> Option<()> {
    if matches!(forward.out, Out::Neighbor(_) | Out::Route) {
        return Some(());
    }
    ethernet(image, forward, 0);
    packet.begin::<12>(image)
}

/// Makes the packet that an ICMP error quotes what its verdict says; `None` if the kernel refused.
///
/// What the quote holds of checksums stays as right or wrong as it was.
#[inline(always)]
pub fn quote<P: PacketMut>(packet: &mut P, work: &Work) -> Option<()> {
    let diff = change_quote(packet, &work.header, &work.quote, &work.quoted)?;
    packet.change_checksum(work.header.l4 + ICMP_CHECK, diff, SEGMENT)
}

/// Changes a quoted packet. Returns the difference that makes to the sum over it.
#[inline(always)]
fn change_quote<P: PacketMut>(packet: &mut P, header: &Header, quote: &Header, to: &Ends) -> Option<u32> {
    let at = header.l4 + ICMP_LEN - ETH_LEN;
    let addresses = csum::add(csum::addr_diff(&quote.src, &to.src), csum::addr_diff(&quote.dst, &to.dst));
    let ports = csum::port_diff((quote.sport, quote.dport), (to.sport, to.dport));
    let both = csum::add(addresses, ports);
    address(packet, quote.v4, at + IPV4_SRC, at + IPV6_SRC, &to.src)?;
    address(packet, quote.v4, at + IPV4_DST, at + IPV6_DST, &to.dst)?;
    let mut sum = both;
    if quote.v4 {
        // The header's own checksum makes up for its addresses.
        let check = packet.load::<2>(at + IPV4_CHECK)?;
        let check = csum::update(u16::from_ne_bytes(check), addresses);
        packet.store(at + IPV4_CHECK, &check.to_ne_bytes())?;
        sum = ports;
    }
    packet.store(quote.l4, &csum::port_word((to.sport, to.dport)).to_ne_bytes())?;
    if quote.proto == SCTP {
        // Its checksum is of another kind, and stands behind what a quote must hold; its ports are as they were.
        return Some(sum);
    }
    let field = quote.l4 + if quote.proto == UDP { UDP_CHECK } else { TCP_CHECK };
    // Of TCP the quote may end before (RFC 792 asks for eight bytes).
    if field + 2 > header.end {
        return Some(sum);
    }
    let check = u16::from_ne_bytes(packet.load::<2>(field)?);
    let optional = quote.proto == UDP;
    if optional && check == 0 {
        return Some(sum);
    }
    let check = match csum::update(check, both) {
        0 if optional => 0xffff,
        check => check,
    };
    packet.store(field, &check.to_ne_bytes())?;
    Some(csum::add(sum, !both))
}

#[inline(always)]
fn address<P: PacketMut>(packet: &mut P, v4: bool, at4: u32, at6: u32, addr: &Addr) -> Option<()> {
    if v4 { packet.store(at4, &addr.v4_octets()) } else { packet.store(at6, &addr.octets()) }
}

#[inline(always)]
pub(crate) fn change_transport<P: PacketMut>(
    packet: &mut P,
    header: &Header,
    diff: u32,
    pseudo: bool,
) -> Option<()> {
    let udp = header.proto == UDP;
    let at = header.l4 + if udp { UDP_CHECK } else { TCP_CHECK };
    packet.change_checksum(at, diff, Cover { pseudo, optional: udp })
}

pub(crate) const TCP_HEADER: u32 = 20;
const OPTION_END: u8 = 0;
const OPTION_PADDING: u8 = 1;
const OPTION_MSS: u8 = 2;
/// Options looked at for the segment size, which comes first in practice.
const MAX_OPTIONS: u32 = 8;

/// Lowers the segment size a SYN announces to what fits an MTU (RFC 9293 section 3.7.1). A packet in which it is not
/// found goes on as it is.
#[inline(always)]
pub fn narrow<P: PacketMut>(packet: &mut P, header: &Header, mtu: u32) -> Option<()> {
    let limit = mtu.checked_sub(TCP_HEADER + if header.v4 { 20 } else { 40 })?;
    let [offset] = packet.load::<1>(header.l4 + 12)?;
    let end = header.l4 + u32::from(offset >> 4) * 4;
    let mut at = header.l4 + TCP_HEADER;
    for _ in 0..MAX_OPTIONS {
        if at + 4 > end {
            return Some(());
        }
        let option = packet.load::<4>(at)?;
        match option[0] {
            OPTION_END => return Some(()),
            OPTION_PADDING => at += 1,
            OPTION_MSS => return lower(packet, header, at + 2, [option[2], option[3]], limit),
            _ if option[1] < 2 => return Some(()),
            _ => at += u32::from(option[1]),
        }
    }
    Some(())
}

/// Lowers a 16-bit field of a TCP header to a limit.
#[inline(always)]
fn lower<P: PacketMut>(packet: &mut P, header: &Header, at: u32, old: [u8; 2], limit: u32) -> Option<()> {
    if u32::from(u16::from_be_bytes(old)) <= limit {
        return Some(());
    }
    let [_, _, high, low] = limit.to_be_bytes();
    packet.store(at, &[high, low])?;
    let (from, to) = (u16::from_ne_bytes(old), u16::from_ne_bytes([high, low]));
    // At an odd place the field lies across two words of the sum, its bytes the other way round.
    let odd = (at - header.l4) % 2 == 1;
    let (from, to) = if odd { (from.swap_bytes(), to.swap_bytes()) } else { (from, to) };
    change_transport(packet, header, csum::word_diff(u32::from(from), u32::from(to)), false)
}

/// Turns a question for the Ethernet address of a virtual IP into its answer.
#[inline(always)]
pub fn answer<P: PacketMut>(packet: &mut P, question: Question, mac: Mac) -> Option<()> {
    match question {
        Question::Arp => answer_arp(packet, mac),
        Question::Neighbor => answer_neighbor(packet, mac),
    }
}

#[inline(always)]
fn answer_arp<P: PacketMut>(packet: &mut P, m: Mac) -> Option<()> {
    let arp = guard::arp(packet)?;
    let (a, s, t) = (arp.sender_mac, arp.sender.v4_octets(), arp.target.v4_octets());
    packet.store(0, &[a[0], a[1], a[2], a[3], a[4], a[5], m[0], m[1], m[2], m[3], m[4], m[5]])?;
    // Operation 2, then who answers and to whom.
    let body = [
        0, 2, m[0], m[1], m[2], m[3], m[4], m[5], t[0], t[1], t[2], t[3], a[0], a[1], a[2], a[3], a[4], a[5],
        s[0], s[1], s[2], s[3],
    ];
    packet.store_counted(ETH_LEN + 6, &body)
}

/// Makes an ARP request ask as another address.
#[inline(always)]
pub fn announce<P: PacketMut>(packet: &mut P, sender: &Addr) -> Option<()> {
    packet.store_counted(ETH_LEN + 14, &sender.v4_octets())
}

/// The solicitation has just the length of the advertisement (see [`guard::solicited`]).
#[inline(always)]
fn answer_neighbor<P: PacketMut>(packet: &mut P, m: Mac) -> Option<()> {
    let l4 = ETH_LEN + 40;
    let asker = packet.load::<6>(6)?;
    let source = packet.load::<16>(IPV6_SRC)?;
    let target = packet.load::<16>(l4 + 8)?;
    let (src, dst) = (Addr::v6(target), Addr::v6(source));
    // Type 136, solicited and overriding; the target; its address in option 2.
    let head = [136, 0, 0, 0, 0x60, 0, 0, 0];
    let option = [2, 1, m[0], m[1], m[2], m[3], m[4], m[5]];
    let sum = csum::sum(&head, csum::sum(&target, csum::sum(&option, 0)));
    let check = !csum::fold(csum::add(sum, csum::pseudo(&src, &dst, crate::packet::ICMPV6, 32)));
    let [high, low] = check.to_ne_bytes();
    let a = asker;
    packet.store(0, &[a[0], a[1], a[2], a[3], a[4], a[5], m[0], m[1], m[2], m[3], m[4], m[5]])?;
    packet.store_counted(IPV6_SRC, &target)?;
    packet.store_counted(IPV6_DST, &source)?;
    packet.store_counted(l4, &[136, 0, high, low, 0x60, 0, 0, 0])?;
    packet.store_counted(l4 + 24, &option)
}
