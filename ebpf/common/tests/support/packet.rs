//! Building and taking apart packets, with every checksum computed in full. Shared by the tests of both crates.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub(crate) type Mac = [u8; 6];

pub(crate) const ICMP: u8 = 1;
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const ICMPV6: u8 = 58;
pub(crate) const SCTP: u8 = 132;
pub(crate) const FIN: u8 = 0x01;
pub(crate) const SYN: u8 = 0x02;
pub(crate) const RST: u8 = 0x04;
pub(crate) const ACK: u8 = 0x10;
/// Of SCTP: a question whether a path works.
pub(crate) const PROBE: u8 = 0x40;
/// Chunks of SCTP and the flags of TCP that say the same.
const CHUNKS: [(u8, u8); 9] = [
    (0, ACK),
    (1, SYN),
    (2, SYN | ACK),
    (4, PROBE),
    (6, RST),
    (7, FIN | ACK),
    (8, FIN),
    (10, 0),
    (14, RST | ACK),
];

/// A TCP, UDP or SCTP packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) dst_mac: Mac,
    pub(crate) src_mac: Mac,
    pub(crate) src: IpAddr,
    pub(crate) dst: IpAddr,
    pub(crate) proto: u8,
    pub(crate) sport: u16,
    pub(crate) dport: u16,
    pub(crate) flags: u8,
    /// Sequence number of TCP and what it acknowledges.
    pub(crate) sequence: u32,
    pub(crate) acknowledged: u32,
    pub(crate) payload: Vec<u8>,
    /// UDP over IPv4 without a checksum.
    pub(crate) unchecked: bool,
    /// IPv4 options, a multiple of four bytes.
    pub(crate) options: Vec<u8>,
    /// TCP options, a multiple of four bytes.
    pub(crate) tcp_options: Vec<u8>,
}

impl Segment {
    pub(crate) fn new(proto: u8, src: (&str, u16), dst: (&str, u16)) -> Self {
        Self {
            dst_mac: [0x02, 0, 0, 0, 0, 0xd],
            src_mac: [0x02, 0, 0, 0, 0, 0x5],
            src: src.0.parse().unwrap(),
            dst: dst.0.parse().unwrap(),
            proto,
            sport: src.1,
            dport: dst.1,
            flags: if proto == UDP { 0 } else { SYN },
            sequence: 1,
            acknowledged: 2,
            payload: b"a payload of odd len".to_vec(),
            unchecked: false,
            options: Vec::new(),
            tcp_options: Vec::new(),
        }
    }

    pub(crate) fn macs(mut self, src: Mac, dst: Mac) -> Self {
        (self.src_mac, self.dst_mac) = (src, dst);
        self
    }

    /// With other TCP flags than SYN, or the chunk of SCTP that says the same; UDP has none.
    pub(crate) fn flags(mut self, flags: u8) -> Self {
        if self.proto != UDP {
            self.flags = flags;
        }
        self
    }

    /// The packet as it is on the wire.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut upper = Vec::new();
        upper.extend(self.sport.to_be_bytes());
        upper.extend(self.dport.to_be_bytes());
        let check_at = if self.proto == TCP {
            let offset = u8::try_from(5 + self.tcp_options.len() / 4).unwrap() << 4;
            upper.extend(self.sequence.to_be_bytes());
            upper.extend(self.acknowledged.to_be_bytes());
            upper.extend([offset, self.flags, 0x10, 0, 0, 0, 0, 0]);
            upper.extend(&self.tcp_options);
            16
        } else if self.proto == SCTP {
            let (chunk, _) = CHUNKS.into_iter().find(|(_, flags)| *flags == self.flags).unwrap();
            let length = u16::try_from(4 + self.payload.len()).unwrap();
            upper.extend([0, 0, 0, 9, 0, 0, 0, 0, chunk, 0]);
            upper.extend(length.to_be_bytes());
            8
        } else {
            let len = u16::try_from(8 + self.payload.len()).unwrap();
            upper.extend(len.to_be_bytes());
            upper.extend([0, 0]);
            6
        };
        upper.extend(&self.payload);
        if self.proto == SCTP {
            let check = crc32c(&upper);
            upper[check_at..check_at + 4].copy_from_slice(&check.to_le_bytes());
        } else if !self.unchecked {
            let mut check = upper_checksum(self.src, self.dst, self.proto, &upper);
            if self.proto == UDP && check == 0 {
                check = 0xffff;
            }
            upper[check_at..check_at + 2].copy_from_slice(&check.to_be_bytes());
        }
        frame((self.src_mac, self.dst_mac), (self.src, self.dst), self.proto, &self.options, &upper)
    }

    /// Takes a packet apart; panics if a checksum is wrong.
    pub(crate) fn parse(bytes: &[u8]) -> Self {
        let (l4, src, dst, proto, options): (usize, IpAddr, IpAddr, u8, Vec<u8>) = match be16(&bytes[12..]) {
            0x0800 => {
                let length = usize::from(bytes[14] & 15) * 4;
                assert_eq!(fold(sum(&bytes[14..14 + length])), 0xffff, "IPv4 header checksum");
                let src: [u8; 4] = bytes[26..30].try_into().unwrap();
                let dst: [u8; 4] = bytes[30..34].try_into().unwrap();
                let options = bytes[34..14 + length].to_vec();
                (14 + length, Ipv4Addr::from(src).into(), Ipv4Addr::from(dst).into(), bytes[23], options)
            }
            0x86dd => {
                let src: [u8; 16] = bytes[22..38].try_into().unwrap();
                let dst: [u8; 16] = bytes[38..54].try_into().unwrap();
                (54, Ipv6Addr::from(src).into(), Ipv6Addr::from(dst).into(), bytes[20], Vec::new())
            }
            other => panic!("ethertype {other:#x}"),
        };
        let upper = &bytes[l4..];
        let (header, check) = if proto == SCTP {
            let mut zeroed = upper.to_vec();
            zeroed[8..12].fill(0);
            assert_eq!(crc32c(&zeroed).to_le_bytes(), upper[8..12], "checksum of SCTP");
            (16, 0)
        } else if proto == TCP {
            (usize::from(upper[12] >> 4) * 4, be16(&upper[16..]))
        } else {
            (8, be16(&upper[6..]))
        };
        let unchecked = proto == UDP && check == 0;
        if unchecked {
            assert!(src.is_ipv4(), "UDP over IPv6 must have a checksum");
        } else if proto != SCTP {
            assert_eq!(fold(sum(upper) + pseudo(src, dst, proto, upper.len())), 0xffff, "transport checksum");
        }
        Self {
            dst_mac: bytes[..6].try_into().unwrap(),
            src_mac: bytes[6..12].try_into().unwrap(),
            src,
            dst,
            proto,
            sport: be16(upper),
            dport: be16(&upper[2..]),
            flags: match proto {
                TCP => upper[13],
                SCTP => CHUNKS.into_iter().find(|(chunk, _)| *chunk == upper[12]).unwrap().1,
                _ => 0,
            },
            sequence: if proto == TCP { be32(&upper[4..]) } else { 1 },
            acknowledged: if proto == TCP { be32(&upper[8..]) } else { 2 },
            payload: upper[header..].to_vec(),
            unchecked,
            options,
            tcp_options: if proto == TCP { upper[20..header].to_vec() } else { Vec::new() },
        }
    }
}

/// The checksum of SCTP (RFC 9260 appendix A), bit by bit.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |sum, byte| {
        (0..8).fold(
            sum ^ u32::from(*byte),
            |sum, _| {
                if sum & 1 == 1 { (sum >> 1) ^ 0x82f6_3b78 } else { sum >> 1 }
            },
        )
    })
}

/// An ICMP error.
#[derive(Clone, Debug)]
pub(crate) struct Complaint {
    /// Ethernet source and destination.
    pub(crate) macs: (Mac, Mac),
    pub(crate) sender: IpAddr,
    /// Type and code.
    pub(crate) kind: (u8, u8),
    /// The packet it quotes, to whose source it goes.
    pub(crate) about: Segment,
    /// Bytes quoted of the upper layer.
    pub(crate) cut: usize,
}

impl Complaint {
    /// Errors of a family.
    pub(crate) fn kinds(v4: bool) -> [(u8, u8); 4] {
        if v4 { [(3, 3), (3, 4), (11, 0), (12, 0)] } else { [(1, 4), (2, 0), (3, 0), (4, 1)] }
    }

    /// The packet as it is on the wire.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.with(&self.quote(), self.about.src)
    }

    /// With another quote.
    pub(crate) fn quoting(&self, quote: &[u8]) -> Vec<u8> {
        self.with(quote, self.about.src)
    }

    /// With a destination that is not the source of the quoted packet.
    pub(crate) fn to(&self, dst: &str) -> Vec<u8> {
        self.with(&self.quote(), dst.parse().unwrap())
    }

    fn quote(&self) -> Vec<u8> {
        let mut quote = self.about.bytes()[14..].to_vec();
        let header = if self.about.src.is_ipv4() { 20 + self.about.options.len() } else { 40 };
        quote.truncate(header.saturating_add(self.cut));
        quote
    }

    fn with(&self, quote: &[u8], dst: IpAddr) -> Vec<u8> {
        let mut upper = vec![self.kind.0, self.kind.1, 0, 0, 0, 0, 5, 0x14];
        upper.extend(quote);
        let (proto, pseudo) = match dst {
            IpAddr::V4(_) => (ICMP, 0),
            IpAddr::V6(_) => (ICMPV6, pseudo(self.sender, dst, ICMPV6, upper.len())),
        };
        let check = !fold(sum(&upper) + pseudo);
        upper[2..4].copy_from_slice(&check.to_be_bytes());
        frame(self.macs, (self.sender, dst), proto, &[], &upper)
    }
}

/// An IP packet around an upper layer.
pub(crate) fn frame(
    (src_mac, dst_mac): (Mac, Mac),
    (src, dst): (IpAddr, IpAddr),
    proto: u8,
    options: &[u8],
    upper: &[u8],
) -> Vec<u8> {
    let mut bytes = [dst_mac, src_mac].concat();
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let length = 20 + options.len();
            let total = u16::try_from(length + upper.len()).unwrap();
            bytes.extend([0x08, 0x00, 0x40 | u8::try_from(length / 4).unwrap(), 0]);
            bytes.extend(total.to_be_bytes());
            bytes.extend([0x12, 0x34, 0x40, 0, 64, proto, 0, 0]);
            bytes.extend(src.octets());
            bytes.extend(dst.octets());
            bytes.extend(options);
            let check = !fold(sum(&bytes[14..14 + length]));
            bytes[24..26].copy_from_slice(&check.to_be_bytes());
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            bytes.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            bytes.extend(u16::try_from(upper.len()).unwrap().to_be_bytes());
            bytes.extend([proto, if proto == ICMPV6 { 255 } else { 64 }]);
            bytes.extend(src.octets());
            bytes.extend(dst.octets());
        }
        _ => panic!("two families"),
    }
    bytes.extend(upper);
    bytes
}

/// A packet without options in fragments of some bytes of its upper layer, a multiple of eight.
pub(crate) fn split(packet: &[u8], id: u16, size: usize) -> Vec<Vec<u8>> {
    let v4 = packet[12] == 0x08;
    let (head, upper) = packet.split_at(if v4 { 34 } else { 54 });
    let count = upper.len().div_ceil(size);
    let piece = |(index, part): (usize, &[u8])| {
        let (offset, more) = (u16::try_from(index * size / 8).unwrap(), index + 1 < count);
        let mut bytes = head.to_vec();
        if v4 {
            bytes[16..18].copy_from_slice(&u16::try_from(20 + part.len()).unwrap().to_be_bytes());
            bytes[18..20].copy_from_slice(&id.to_be_bytes());
            bytes[20..22].copy_from_slice(&(offset | u16::from(more) << 13).to_be_bytes());
            bytes[24..26].fill(0);
            let check = !fold(sum(&bytes[14..]));
            bytes[24..26].copy_from_slice(&check.to_be_bytes());
        } else {
            bytes[18..20].copy_from_slice(&u16::try_from(8 + part.len()).unwrap().to_be_bytes());
            bytes[20] = 44;
            bytes.extend([head[20], 0]);
            bytes.extend((offset << 3 | u16::from(more)).to_be_bytes());
            bytes.extend(u32::from(id).to_be_bytes());
        }
        bytes.extend(part);
        bytes
    };
    upper.chunks(size).enumerate().map(piece).collect()
}

/// The packet that fragments in their order make; panics if the checksum of an IPv4 header is wrong, or they don't all
/// come from and go to the same place.
pub(crate) fn join(fragments: &[Vec<u8>]) -> Segment {
    let first = &fragments[0];
    let v4 = first[12] == 0x08;
    let (from, until) = if v4 { (26, 34) } else { (22, 54) };
    let mut upper = Vec::new();
    for fragment in fragments {
        assert_eq!(fragment[..12], first[..12], "one way");
        assert_eq!(fragment[from..until], first[from..until], "one source and destination");
        if v4 {
            assert_eq!(fold(sum(&fragment[14..34])), 0xffff, "IPv4 header checksum");
        }
        upper.extend(&fragment[if v4 { 34 } else { 62 }..]);
    }
    let macs = (first[6..12].try_into().unwrap(), first[..6].try_into().unwrap());
    let (ends, proto): ((IpAddr, IpAddr), u8) = if v4 {
        let of = |at: usize| IpAddr::from(<[u8; 4]>::try_from(&first[at..at + 4]).unwrap());
        ((of(26), of(30)), first[23])
    } else {
        let of = |at: usize| IpAddr::from(<[u8; 16]>::try_from(&first[at..at + 16]).unwrap());
        ((of(22), of(38)), first[54])
    };
    Segment::parse(&frame(macs, ends, proto, &[], &upper))
}

/// An ARP packet.
pub(crate) fn arp(mac: Mac, operation: u8, sender_mac: Mac, sender: &str, target: &str) -> Vec<u8> {
    let octets = |text: &str| text.parse::<Ipv4Addr>().unwrap().octets();
    let mut bytes = [[0xff; 6], mac].concat();
    bytes.extend([0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, operation]);
    bytes.extend(sender_mac);
    bytes.extend(octets(sender));
    bytes.extend([0; 6]);
    bytes.extend(octets(target));
    bytes
}

/// A neighbor solicitation (135) or advertisement (136), with one option if there is one.
pub(crate) fn neighbor(
    mac: Mac,
    kind: u8,
    src: &str,
    dst: &str,
    target: &str,
    option: Option<(u8, Mac)>,
) -> Vec<u8> {
    let (src, dst): (Ipv6Addr, Ipv6Addr) = (src.parse().unwrap(), dst.parse().unwrap());
    let mut upper = vec![kind, 0, 0, 0, 0, 0, 0, 0];
    upper.extend(target.parse::<Ipv6Addr>().unwrap().octets());
    if let Some((kind, mac)) = option {
        upper.extend([kind, 1]);
        upper.extend(mac);
    }
    icmpv6(mac, src, dst, upper)
}

/// An ICMPv6 packet; the checksum is filled in.
pub(crate) fn icmpv6(mac: Mac, src: Ipv6Addr, dst: Ipv6Addr, mut upper: Vec<u8>) -> Vec<u8> {
    let check = upper_checksum(src.into(), dst.into(), ICMPV6, &upper);
    upper[2..4].copy_from_slice(&check.to_be_bytes());
    frame((mac, [0x33, 0x33, 0, 0, 0, 1]), (src.into(), dst.into()), ICMPV6, &[], &upper)
}

/// Whether the checksum of an ICMPv6 packet without extension headers is right.
pub(crate) fn icmpv6_is_valid(bytes: &[u8]) -> bool {
    let src: [u8; 16] = bytes[22..38].try_into().unwrap();
    let dst: [u8; 16] = bytes[38..54].try_into().unwrap();
    let upper = &bytes[54..];
    let (src, dst) = (Ipv6Addr::from(src).into(), Ipv6Addr::from(dst).into());
    fold(sum(upper) + pseudo(src, dst, ICMPV6, upper.len())) == 0xffff
}

fn upper_checksum(src: IpAddr, dst: IpAddr, proto: u8, upper: &[u8]) -> u16 {
    !fold(sum(upper) + pseudo(src, dst, proto, upper.len()))
}

fn pseudo(src: IpAddr, dst: IpAddr, proto: u8, len: usize) -> u64 {
    let of = |addr: IpAddr| match addr {
        IpAddr::V4(v4) => sum(&v4.octets()),
        IpAddr::V6(v6) => sum(&v6.octets()),
    };
    of(src) + of(dst) + u64::from(proto) + u64::try_from(len).unwrap()
}

/// The sum of bytes as big-endian 16-bit words, the way RFC 1071 tells it first.
pub(crate) fn sum(bytes: &[u8]) -> u64 {
    bytes.chunks(2).map(|pair| u64::from(pair[0]) << 8 | pair.get(1).map_or(0, |&b| u64::from(b))).sum()
}

pub(crate) fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).unwrap()
}

fn be32(bytes: &[u8]) -> u32 {
    u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

fn be16(bytes: &[u8]) -> u16 {
    u16::from_be_bytes([bytes[0], bytes[1]])
}
