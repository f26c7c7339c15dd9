//! Packets that are almost right: valid ones with some bytes changed and some cut off.

use super::packet::{Complaint, SCTP, Segment, TCP, UDP, arp, neighbor};
use super::world::{Family, OTHER_ROUTER, OTHER_TASK, ROUTER, TASK, TUNNEL_PORT, V4, V6};

/// A sequence that is random enough and the same every time (xorshift64*).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below a bound.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() >> 33).unwrap() % bound
    }

    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

/// A packet that may mean something to one of the programs, damaged in one case of two.
pub(crate) fn packet(random: &mut Random) -> Vec<u8> {
    let mut bytes = sound(random);
    if random.below(2) == 0 {
        return bytes;
    }
    for _ in 0..random.below(4) {
        // Headers are where it matters.
        let at = random.below(bytes.len().min(100));
        bytes[at] = u8::try_from(random.below(256)).unwrap();
    }
    if random.below(4) == 0 {
        bytes.truncate(14 + random.below(bytes.len() - 13));
    }
    bytes
}

/// Whether a test run in the kernel takes the packet: recent ones refuse an IP packet without a whole header.
pub(crate) fn has_ip_header(packet: &[u8]) -> bool {
    match (packet[12], packet[13]) {
        (0x08, 0x00) => packet.len() >= 34,
        (0x86, 0xdd) => packet.len() >= 54,
        _ => true,
    }
}

fn sound(random: &mut Random) -> Vec<u8> {
    let macs = [TASK, OTHER_TASK, ROUTER, OTHER_ROUTER];
    let (src, dst) = (random.pick(&macs), random.pick(&macs));
    match random.below(8) {
        0 => {
            let [sender, target] =
                [0; 2].map(|_| random.pick(&[V4.task, V4.other, V4.vip, V4.leg, "0.0.0.0"]));
            arp(src, u8::try_from(1 + random.below(2)).unwrap(), src, sender, target)
        }
        1 => {
            let [sender, target] = [0; 2].map(|_| random.pick(&[V6.task, V6.other, V6.vip, "::", "fe80::1"]));
            let option = random.pick(&[None, Some((1, src)), Some((2, dst)), Some((14, src))]);
            neighbor(src, random.pick(&[133, 134, 135, 136, 137, 143]), sender, "ff02::1", target, option)
        }
        2 => {
            let family = random.pick(&[V4, V6]);
            let (sender, about) = (address(random, &family), segment(random, &family));
            let kind = random.pick(&Complaint::kinds(about.src.is_ipv4()));
            Complaint {
                macs: (src, dst),
                sender: sender.parse().unwrap(),
                kind,
                about,
                cut: random.below(60),
            }
            .bytes()
        }
        _ => {
            let family = random.pick(&[V4, V6]);
            segment(random, &family).macs(src, dst).bytes()
        }
    }
}

fn segment(random: &mut Random, family: &Family) -> Segment {
    let (from, to) = (address(random, family), address(random, family));
    let ports = [80, 8080, 40_000, 40_001, 22, TUNNEL_PORT];
    let mut segment =
        Segment::new(random.pick(&[TCP, UDP, SCTP]), (from, random.pick(&ports)), (to, random.pick(&ports)));
    segment.payload.truncate(random.below(20));
    segment.unchecked = segment.proto == UDP && segment.src.is_ipv4() && random.below(4) == 0;
    segment.flags(random.pick(&[0x02, 0x10, 0x12, 0x04, 0x11]))
}

fn address(random: &mut Random, family: &Family) -> &'static str {
    random.pick(&[
        family.client,
        family.node,
        family.node2,
        family.task,
        family.other,
        family.vip,
        family.router,
    ])
}
