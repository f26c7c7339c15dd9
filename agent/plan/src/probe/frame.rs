//! Probes on the wire: UDP between the routers of two nodes in the ingress network, as Ethernet frames, so that they go
//! where frames for a task there go. All numbers are big endian.
//!
//! ```text
//! Ethernet 14 | IPv4 20 | UDP 8 | "shp1" | kind 1 | size class 1 | attempt 1 | 0 | run 8 | round 4 | clock 8 | length 2
//!     | addresses 1 | of IPv4 1 | of IPv6 1 | 0 3 | addresses of IPv4, 4 each | of IPv6, 16 each | filling
//! ```
//!
//! Every probe that has room for the longest list tells the addresses of the sender that published ports answer on
//! ([`crate::doors`]); "addresses" is 1 in those, or 2 while the sender does not know its own yet. A version that knows nothing
//! of them sends 0 there, and reads none of it.
//!
//! Whoever gets a probe answers at once with the same words and its own clock, in a frame of the smallest size: which
//! sizes arrive is told by what is answered, one direction at a time. The checksum covers the filling, so a frame that
//! was damaged on the way is as good as lost.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use shoal_types::MacAddr;

use crate::doors::{Addresses, MOST_V4, MOST_V6};

/// UDP port, inside the tunnel, that probes and answers go to.
pub const PORT: u16 = 7378;
/// The smallest probe: length of its IP packet.
pub const SMALLEST: u16 = 64;

const ETH: usize = 14;
const IP: usize = 20;
const UDP: usize = 8;
/// What probe and answer say.
const WORDS: usize = 36;
const HEADERS: usize = IP + UDP;
/// Where the words say whether there are addresses, and how many.
const TELLS: usize = 30;
const OF_V4: usize = TELLS + 1;
const OF_V6: usize = TELLS + 2;
/// How they are told, the only way so far.
const IN_TURN: u8 = 1;
/// They are not known yet.
const LATER: u8 = 2;
/// Smallest probe, by its IP packet, that tells addresses: with room for as many as there may be.
const ROOM: u16 = 960;
const _: () = assert!(HEADERS + WORDS + MOST_V4 * 4 + MOST_V6 * 16 <= ROOM as usize);
const MAGIC: [u8; 4] = *b"shp1";
const ETH_IPV4: [u8; 2] = [0x08, 0x00];
const PROTO_UDP: u8 = 17;
/// Flags and offset of a packet that is whole and must stay so.
const NOT_FRAGMENTED: [u8; 2] = [0x40, 0];

/// Who sends to whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ends {
    /// Ethernet address of the sender's router.
    pub src_mac: MacAddr,
    /// Ethernet address of the receiver's router.
    pub dst_mac: MacAddr,
    /// Address of the sender's router.
    pub src: Ipv4Addr,
    /// Address of the receiver's router.
    pub dst: Ipv4Addr,
}

impl Ends {
    /// The way back.
    pub const fn turned(self) -> Self {
        Self { src_mac: self.dst_mac, dst_mac: self.src_mac, src: self.dst, dst: self.src }
    }
}

/// Which of both it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Asks for an answer.
    Probe,
    /// Is one.
    Answer,
}

/// What a probe or an answer says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message {
    /// Which of both it is.
    pub kind: Kind,
    /// A number that only this run of the asking daemon has: nobody answers what was not asked.
    pub run: u64,
    /// The round of the one who asks.
    pub round: u32,
    /// Which of the round's sizes, from 0.
    pub class: u8,
    /// How often it was sent before in this round.
    pub attempt: u8,
    /// Length of the probe's IP packet, bytes.
    pub length: u16,
    /// The sender's wall clock, milliseconds of Unix time.
    pub clock_ms: u64,
}

/// What a probe says of its sender's addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Says {
    /// Nothing: it is of a version that tells none, or in a way that this one does not know.
    Nothing,
    /// That they are not known yet.
    Later,
    /// These.
    Addresses(Addresses),
}

impl Message {
    /// The answer to a probe.
    #[must_use]
    pub const fn answer(self, clock_ms: u64) -> Self {
        Self { kind: Kind::Answer, clock_ms, ..self }
    }

    /// Whether it is one in which a sender tells its addresses, if it can.
    pub const fn has_room(&self) -> bool {
        matches!(self.kind, Kind::Probe) && self.length >= ROOM
    }

    fn words(&self) -> [u8; WORDS] {
        let mut words = [0; WORDS];
        let kind = match self.kind {
            Kind::Probe => 1,
            Kind::Answer => 2,
        };
        words[..4].copy_from_slice(&MAGIC);
        words[4..8].copy_from_slice(&[kind, self.class, self.attempt, 0]);
        words[8..16].copy_from_slice(&self.run.to_be_bytes());
        words[16..20].copy_from_slice(&self.round.to_be_bytes());
        words[20..28].copy_from_slice(&self.clock_ms.to_be_bytes());
        words[28..30].copy_from_slice(&self.length.to_be_bytes());
        words
    }

    fn of(words: &[u8]) -> Option<Self> {
        let kind = match words.get(4)? {
            1 => Kind::Probe,
            2 => Kind::Answer,
            _ => return None,
        };
        if words.get(..4)? != MAGIC {
            return None;
        }
        Some(Self {
            kind,
            class: *words.get(5)?,
            attempt: *words.get(6)?,
            run: u64::from_be_bytes(array(words, 8)?),
            round: u32::from_be_bytes(array(words, 16)?),
            clock_ms: u64::from_be_bytes(array(words, 20)?),
            length: u16::from_be_bytes(array(words, 28)?),
        })
    }
}

/// The frame of a message. A probe is as long as it says, and tells the addresses if it has room (`None`: they are not known
/// yet); an answer is as short as can be. The source port differs from round to round, so that rounds take different ones of several equal paths.
pub fn build(ends: &Ends, message: &Message, own: Option<&Addresses>) -> Vec<u8> {
    let length = match message.kind {
        Kind::Probe => message.length.max(SMALLEST),
        Kind::Answer => SMALLEST,
    };
    let size = usize::from(length);
    let mut frame = Vec::with_capacity(ETH + size);
    frame.extend(ends.dst_mac.0);
    frame.extend(ends.src_mac.0);
    frame.extend(ETH_IPV4);
    frame.extend([0x45, 0]);
    frame.extend(length.to_be_bytes());
    // No identification, not to be fragmented, 64 hops.
    frame.extend([0, 0]);
    frame.extend(NOT_FRAGMENTED);
    frame.extend([64, PROTO_UDP, 0, 0]);
    frame.extend(ends.src.octets());
    frame.extend(ends.dst.octets());
    frame.extend(source_port(message).to_be_bytes());
    frame.extend(PORT.to_be_bytes());
    let datagram = length.saturating_sub(20);
    frame.extend(datagram.to_be_bytes());
    frame.extend([0, 0]);
    frame.extend(message.words());
    if message.has_room() {
        tell(&mut frame, own);
    }
    frame.extend((frame.len()..ETH + size).map(filling));
    let header = checksum(frame.get(ETH..ETH + IP).unwrap_or_default(), 0);
    put(&mut frame, ETH + 10, header);
    let sum = match checksum(frame.get(ETH + IP..).unwrap_or_default(), pseudo(ends, datagram)) {
        0 => 0xffff,
        sum => sum,
    };
    put(&mut frame, ETH + IP + 6, sum);
    frame
}

/// Reads a frame: who speaks to whom, and what. `None` for anything but a whole probe or answer.
pub fn parse(frame: &[u8]) -> Option<(Ends, Message)> {
    let mac = |at| array(frame, at).map(MacAddr);
    let ip = |at| array(frame, at).map(|octets: [u8; 4]| Ipv4Addr::from(octets));
    let ends = Ends { dst_mac: mac(0)?, src_mac: mac(6)?, src: ip(ETH + 12)?, dst: ip(ETH + 16)? };
    let packet = frame.get(ETH..)?;
    let length = u16::from_be_bytes(array(packet, 2)?);
    // A frame may be longer than what is in it.
    let packet = packet.get(..usize::from(length))?;
    let plain = frame.get(12..14)? == ETH_IPV4
        && packet.first() == Some(&0x45)
        && packet.get(6..8)? == NOT_FRAGMENTED
        && packet.get(9) == Some(&PROTO_UDP)
        && checksum(packet.get(..IP)?, 0) == 0;
    let datagram = packet.get(IP..)?;
    let said = u16::from_be_bytes(array(datagram, 4)?);
    if !plain
        || u16::from_be_bytes(array(datagram, 2)?) != PORT
        || usize::from(said) != datagram.len()
        || checksum(datagram, pseudo(&ends, said)) != 0
    {
        return None;
    }
    let message = Message::of(datagram.get(UDP..)?)?;
    let whole = match message.kind {
        Kind::Probe => message.length == length,
        Kind::Answer => length == SMALLEST,
    };
    whole.then_some((ends, message))
}

/// Adds addresses to a frame that has its words.
fn tell(frame: &mut Vec<u8>, own: Option<&Addresses>) {
    let number = |all: usize| u8::try_from(all).unwrap_or_default();
    let said = match own {
        Some(own) => [IN_TURN, number(own.v4().len()), number(own.v6().len())],
        None => [LATER, 0, 0],
    };
    if let Some(place) = frame.get_mut(ETH + HEADERS + TELLS..).and_then(|words| words.get_mut(..said.len()))
    {
        place.copy_from_slice(&said);
    }
    if let Some(own) = own {
        frame.extend(own.v4().iter().flat_map(Ipv4Addr::octets));
        frame.extend(own.v6().iter().flat_map(Ipv6Addr::octets));
    }
}

/// What a probe says of its sender's addresses, from a frame that [`parse`] read as one that has room for them.
pub fn addresses(frame: &[u8]) -> Says {
    let datagram = frame.get(ETH + HEADERS..).unwrap_or_default();
    match datagram.get(TELLS) {
        Some(&LATER) => Says::Later,
        Some(&IN_TURN) => in_turn(datagram).map_or(Says::Nothing, Says::Addresses),
        _ => Says::Nothing,
    }
}

fn in_turn(datagram: &[u8]) -> Option<Addresses> {
    let (v4, v6) = (usize::from(*datagram.get(OF_V4)?), usize::from(*datagram.get(OF_V6)?));
    if v4 > MOST_V4 || v6 > MOST_V6 {
        return None;
    }
    let (of_v4, rest) = datagram.get(WORDS..)?.split_at_checked(v4 * 4)?;
    let of_v6 = rest.get(..v6 * 16)?;
    let of_v4 = of_v4.chunks_exact(4).filter_map(|octets| array::<4>(octets, 0).map(IpAddr::from));
    let of_v6 = of_v6.chunks_exact(16).filter_map(|octets| array::<16>(octets, 0).map(IpAddr::from));
    Some(Addresses::of(of_v4.chain(of_v6)))
}

fn source_port(message: &Message) -> u16 {
    // Of the dynamic ones, 49152 and above (RFC 6335).
    0xc000 | u16::try_from(message.round & 0x3fff).unwrap_or_default()
}

fn filling(at: usize) -> u8 {
    u8::try_from(at % 251).unwrap_or_default()
}

fn put(frame: &mut [u8], at: usize, value: u16) {
    if let Some(place) = frame.get_mut(at..at + 2) {
        place.copy_from_slice(&value.to_be_bytes());
    }
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

/// What a UDP checksum covers besides the datagram (RFC 768), not folded.
fn pseudo(ends: &Ends, datagram: u16) -> u32 {
    let words = |ip: Ipv4Addr| {
        let [a, b, c, d] = ip.octets();
        u32::from(u16::from_be_bytes([a, b])) + u32::from(u16::from_be_bytes([c, d]))
    };
    words(ends.src) + words(ends.dst) + u32::from(PROTO_UDP) + u32::from(datagram)
}

/// The Internet checksum (RFC 1071); over bytes that hold their own it is 0. At most 65,535 bytes, so no sum overflows.
fn checksum(bytes: &[u8], start: u32) -> u16 {
    let sum = bytes.chunks(2).fold(start, |sum, pair| {
        let (high, low) =
            (pair.first().copied().unwrap_or_default(), pair.get(1).copied().unwrap_or_default());
        sum + u32::from(u16::from_be_bytes([high, low]))
    });
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    !u16::try_from(sum).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ENDS: Ends = Ends {
        src_mac: MacAddr([2, 0x73, 0, 0, 0, 1]),
        dst_mac: MacAddr([2, 0x73, 0, 0, 0, 2]),
        src: Ipv4Addr::new(10, 9, 0, 2),
        dst: Ipv4Addr::new(10, 9, 0, 3),
    };

    fn probe(length: u16) -> Message {
        let (run, clock_ms) = (0x0123_4567_89ab_cdef, 1_790_000_000_000);
        Message { kind: Kind::Probe, run, round: 70_001, class: 2, attempt: 1, length, clock_ms }
    }

    fn several() -> Addresses {
        let all = ["192.0.2.7", "2001:db8::7", "198.51.100.7", "2001:db8::8", "2001:db8::9"];
        Addresses::of(all.map(|addr| addr.parse().expect("an address")))
    }

    #[test]
    fn addresses_are_told_where_there_is_room() {
        let most = (0..MOST_V4).map(|n| IpAddr::from([10, 0, 0, u8::try_from(n).expect("few")]));
        let most = most.chain((1..=MOST_V6).map(|n| IpAddr::from(Ipv6Addr::from((0xfd << 120) | n as u128))));
        let most = Addresses::of(most);
        assert_eq!((most.v4().len(), most.v6().len()), (MOST_V4, MOST_V6));
        for own in [Addresses::default(), several(), most] {
            for length in [ROOM, 1400, 1450, 8950] {
                let frame = build(&ENDS, &probe(length), Some(&own));
                assert_eq!(frame.len(), ETH + usize::from(length));
                assert_eq!(parse(&frame), Some((ENDS, probe(length))), "{length}");
                assert!(probe(length).has_room());
                assert_eq!(addresses(&frame), Says::Addresses(own.clone()), "{length}");
            }
        }
    }

    #[test]
    fn who_says_nothing_of_addresses_is_told_from_who_has_none() {
        let none = build(&ENDS, &probe(1400), Some(&Addresses::default()));
        assert_eq!(addresses(&none), Says::Addresses(Addresses::default()));
        let later = build(&ENDS, &probe(1400), None);
        assert_eq!(parse(&later), Some((ENDS, probe(1400))));
        assert_eq!(addresses(&later), Says::Later);
        for other in [0, 3, 255] {
            let mut of_another_version = build(&ENDS, &probe(1400), Some(&several()));
            of_another_version[ETH + HEADERS + TELLS] = other;
            assert_eq!(addresses(&of_another_version), Says::Nothing);
        }
        let small = probe(ROOM - 1);
        assert!(!small.has_room() && !probe(1400).answer(7).has_room());
        assert_eq!(build(&ENDS, &small, Some(&several())), build(&ENDS, &small, None));
    }

    #[test]
    fn more_addresses_than_there_may_be_are_none() {
        for (at, most) in [(OF_V4, MOST_V4), (OF_V6, MOST_V6)] {
            let mut frame = build(&ENDS, &probe(1450), Some(&Addresses::default()));
            frame[ETH + HEADERS + at] = u8::try_from(most + 1).expect("few");
            assert_eq!(addresses(&frame), Says::Nothing);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_harm(
            mut frame in proptest::collection::vec(any::<u8>(), 0..1500),
            v4 in any::<u8>(),
            v6 in any::<u8>(),
        ) {
            for (at, octet) in [(TELLS, IN_TURN), (OF_V4, v4), (OF_V6, v6)] {
                if let Some(place) = frame.get_mut(ETH + HEADERS + at) {
                    *place = octet;
                }
            }
            let told = addresses(&frame);
            let needed = ETH + HEADERS + WORDS + usize::from(v4) * 4 + usize::from(v6) * 16;
            let may = usize::from(v4) <= MOST_V4 && usize::from(v6) <= MOST_V6 && needed <= frame.len();
            prop_assert_eq!(matches!(told, Says::Addresses(_)), may);
        }
    }

    #[test]
    fn what_is_sent_is_read() {
        for length in [64, 65, 1400, 1450, 8950, u16::MAX] {
            let frame = build(&ENDS, &probe(length), None);
            assert_eq!(frame.len(), ETH + usize::from(length));
            assert_eq!(parse(&frame), Some((ENDS, probe(length))), "{length}");
        }
        let answer = probe(1450).answer(7);
        let frame = build(&ENDS.turned(), &answer, Some(&several()));
        assert_eq!(frame.len(), ETH + usize::from(SMALLEST), "an answer is small whatever is answered");
        assert_eq!(parse(&frame), Some((ENDS.turned(), answer)));
    }

    #[test]
    fn what_is_damaged_cut_or_padded() {
        let frame = build(&ENDS, &probe(200), None);
        for at in 12..frame.len() {
            let mut damaged = frame.clone();
            damaged[at] ^= 0x10;
            assert_eq!(parse(&damaged), None, "byte {at}");
        }
        for length in 0..frame.len() {
            assert_eq!(parse(&frame[..length]), None, "cut to {length}");
        }
        let padded = [frame.as_slice(), &[9; 20]].concat();
        assert_eq!(parse(&padded), Some((ENDS, probe(200))));
    }

    #[test]
    fn a_probe_that_is_not_as_long_as_it_says_is_none() {
        let mut lies = probe(300);
        lies.kind = Kind::Answer;
        let mut frame = build(&ENDS, &lies, None);
        frame[ETH + HEADERS + 4] = 1;
        let datagram = 44;
        put(&mut frame, ETH + IP + 6, 0);
        let sum = checksum(&frame[ETH + IP..], pseudo(&ENDS, datagram));
        put(&mut frame, ETH + IP + 6, sum);
        assert_eq!(parse(&frame), None);
    }

    #[test]
    fn rounds_differ_in_their_source_port() {
        let port = |round| {
            let frame = build(&ENDS, &Message { round, ..probe(64) }, None);
            u16::from_be_bytes([frame[ETH + IP], frame[ETH + IP + 1]])
        };
        assert_eq!([port(0), port(1), port(0x4001)], [49_152, 49_153, 49_153]);
    }
}
