//! Probes on the wire: UDP between the routers of two nodes in the ingress network, as Ethernet frames, so that they go
//! where frames for a task there go. All numbers are big endian.
//!
//! ```text
//! Ethernet 14 | IPv4 20 | UDP 8 | "shp1" | kind 1 | size class 1 | attempt 1 | 0 | run 8 | round 4 | clock 8 | length 2 | 0 6 | filling
//! ```
//!
//! Whoever gets a probe answers at once with the same words and its own clock, in a frame of the smallest size: which
//! sizes arrive is told by what is answered, one direction at a time. The checksum covers the filling, so a frame that
//! was damaged on the way is as good as lost.

use std::net::Ipv4Addr;

use shoal_types::MacAddr;

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

impl Message {
    /// The answer to a probe.
    #[must_use]
    pub const fn answer(self, clock_ms: u64) -> Self {
        Self { kind: Kind::Answer, clock_ms, ..self }
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

/// The frame of a message. A probe is as long as it says, an answer as short as can be. The source port differs from
/// round to round, so that rounds take different ones of several equal paths.
pub fn build(ends: &Ends, message: &Message) -> Vec<u8> {
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
    frame.extend((ETH + HEADERS + WORDS..ETH + size).map(filling));
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

    #[test]
    fn what_is_sent_is_read() {
        for length in [64, 65, 1400, 1450, 8950, u16::MAX] {
            let frame = build(&ENDS, &probe(length));
            assert_eq!(frame.len(), ETH + usize::from(length));
            assert_eq!(parse(&frame), Some((ENDS, probe(length))), "{length}");
        }
        let answer = probe(1450).answer(7);
        let frame = build(&ENDS.turned(), &answer);
        assert_eq!(frame.len(), ETH + usize::from(SMALLEST), "an answer is small whatever is answered");
        assert_eq!(parse(&frame), Some((ENDS.turned(), answer)));
    }

    #[test]
    fn what_is_damaged_cut_or_padded() {
        let frame = build(&ENDS, &probe(200));
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
        let mut frame = build(&ENDS, &lies);
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
            let frame = build(&ENDS, &Message { round, ..probe(64) });
            u16::from_be_bytes([frame[ETH + IP], frame[ETH + IP + 1]])
        };
        assert_eq!([port(0), port(1), port(0x4001)], [49_152, 49_153, 49_153]);
    }
}
