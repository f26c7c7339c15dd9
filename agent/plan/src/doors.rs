//! Addresses that a node tells the others of, so that they can answer its clients themselves, and the numbers that frames
//! name them by (`shoal_ebpf_common::direct`).

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use shoal_types::{MacAddr, NodeId};

/// So many addresses of IPv4 are told,
pub const MOST_V4: usize = 32;
/// and of IPv6; together they fit any probe but the smallest.
pub const MOST_V6: usize = 48;
/// Numbers are 1 to this: six bits, of which 0 says something else.
const NUMBERS: u32 = 63;

/// Addresses of a node, of each family the lowest ones that can be told, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Addresses {
    v4: Vec<Ipv4Addr>,
    v6: Vec<Ipv6Addr>,
}

/// What is known of other nodes: those that tell their addresses, and so know what to do with those of others.
pub type Told = BTreeMap<NodeId, Arc<Addresses>>;

impl Addresses {
    /// Takes those of which there can be only one in a network.
    pub fn of(addrs: impl IntoIterator<Item = IpAddr>) -> Self {
        let (mut v4, mut v6) = (BTreeSet::new(), BTreeSet::new());
        for addr in addrs.into_iter().filter(is_of_one) {
            match addr {
                IpAddr::V4(addr) => v4.insert(addr),
                IpAddr::V6(addr) => v6.insert(addr),
            };
        }
        Self { v4: v4.into_iter().take(MOST_V4).collect(), v6: v6.into_iter().take(MOST_V6).collect() }
    }

    /// Those of IPv4, at most [`MOST_V4`].
    pub fn v4(&self) -> &[Ipv4Addr] {
        &self.v4
    }

    /// Those of IPv6, at most [`MOST_V6`].
    pub fn v6(&self) -> &[Ipv6Addr] {
        &self.v6
    }

    /// The numbers of addresses, 1 to 63 in each family. Both sides work them out by themselves, from what one told the
    /// other.
    ///
    /// A number follows from the address alone: it is its hash (FNV-1a of 32 bits over the octets) modulo 63, plus 1. So an
    /// address keeps it whatever others come and go. If it were the place in the list, a node that has not heard the latest
    /// yet would answer from another address. (It still does where an address is replaced by one that happens to have the same
    /// number, until it hears of that.) Where two of a family come out alike, neither has a number, and what they are asked
    /// is answered by their own node.
    pub fn doors(&self) -> BTreeMap<IpAddr, u8> {
        let mut doors = BTreeMap::new();
        number_alone(self.v4.iter().map(|addr| IpAddr::V4(*addr)), &mut doors);
        number_alone(self.v6.iter().map(|addr| IpAddr::V6(*addr)), &mut doors);
        doors
    }
}

/// Numbers those of a family whose number no other one has.
fn number_alone(addrs: impl Iterator<Item = IpAddr>, doors: &mut BTreeMap<IpAddr, u8>) {
    let mut by_number: BTreeMap<u8, Vec<IpAddr>> = BTreeMap::new();
    for addr in addrs {
        by_number.entry(number(addr)).or_default().push(addr);
    }
    for (number, addrs) in by_number {
        if let [alone] = addrs.as_slice() {
            doors.insert(*alone, number);
        }
    }
}

fn number(addr: IpAddr) -> u8 {
    u8::try_from(digest(addr) % NUMBERS + 1).unwrap_or(1)
}

/// The digest of an address (FNV-1a over its octets).
pub(crate) fn digest(addr: IpAddr) -> u32 {
    let fold = |hash: u32, octet: u8| (hash ^ u32::from(octet)).wrapping_mul(0x0100_0193);
    match addr {
        IpAddr::V4(addr) => addr.octets().into_iter().fold(0x811c_9dc5, fold),
        IpAddr::V6(addr) => addr.octets().into_iter().fold(0x811c_9dc5, fold),
    }
}

/// Whether an address can be one node's: another node can't answer from what every host or link has.
fn is_of_one(addr: &IpAddr) -> bool {
    match addr {
        IpAddr::V4(addr) => {
            !(addr.is_unspecified()
                || addr.is_loopback()
                || addr.is_link_local()
                || addr.is_multicast()
                || addr.is_broadcast())
        }
        IpAddr::V6(addr) => {
            !(addr.is_unspecified()
                || addr.is_loopback()
                || addr.is_unicast_link_local()
                || addr.is_multicast()
                || addr.to_ipv4_mapped().is_some())
        }
    }
}

/// The low half of a router's address, as a number: all that a frame has of it. The upper half must be the same on both
/// nodes ([`are_alike`]).
pub fn scope(router: MacAddr) -> u32 {
    let [_, _, _, low @ ..] = router.0;
    let [a, b, c] = low;
    u32::from_be_bytes([0, a, b, c])
}

/// Whether a node can tell the other's router by the low half of its address.
pub fn are_alike(one: MacAddr, other: MacAddr) -> bool {
    one.0.iter().zip(other.0).take(3).all(|(one, other)| *one == other)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn v4(number: u32) -> IpAddr {
        Ipv4Addr::from(number).into()
    }

    #[test]
    fn an_address_has_the_number_of_its_octets() {
        let known: [(&str, u8); 4] =
            [("192.0.2.1", 15), ("192.0.2.2", 30), ("198.51.100.7", 33), ("2001:db8::1", 63)];
        for (addr, wanted) in known {
            let addr: IpAddr = addr.parse().expect("an address");
            assert_eq!(Addresses::of([addr]).doors(), BTreeMap::from([(addr, wanted)]));
        }
    }

    #[test]
    fn addresses_that_come_out_alike_have_no_number() {
        let one = v4(0xc000_0201);
        let others = || (0..10_000).map(|n| v4(0xc000_0202 + n));
        let same = others().find(|other| number(*other) == number(one)).expect("one of 63");
        let third = others().find(|other| number(*other) != number(one)).expect("one of 63");
        let doors = Addresses::of([one, same, third]).doors();
        assert_eq!(doors, BTreeMap::from([(third, number(third))]));
        let mut v6s = (1..10_000).map(|n| IpAddr::from(Ipv6Addr::from((0xfd << 120) | n)));
        let same = v6s.find(|other| number(*other) == number(one)).expect("one of 63");
        assert_eq!(Addresses::of([one, same]).doors().len(), 2, "families have numbers of their own");
    }

    #[test]
    fn what_every_host_has_is_not_told() {
        let none = [
            "127.0.0.1",
            "::1",
            "fe80::1",
            "169.254.7.7",
            "0.0.0.0",
            "::",
            "224.0.0.1",
            "ff02::1",
            "::ffff:192.0.2.1",
        ];
        let all = none.iter().map(|addr| addr.parse().expect("an address"));
        assert_eq!(Addresses::of(all), Addresses::default());
        let many = (0..100)
            .map(|n| v4(0x0a00_0000 + n))
            .chain((0..100).map(|n: u128| Ipv6Addr::from((0xfd << 120) | n).into()));
        let many = Addresses::of(many);
        assert_eq!((many.v4().len(), many.v6().len()), (MOST_V4, MOST_V6));
        assert_eq!(many.v4().first(), Some(&Ipv4Addr::new(10, 0, 0, 0)));
    }

    #[test]
    fn a_router_is_told_by_its_low_half_among_those_alike() {
        let mac = |last: [u8; 4]| MacAddr([2, 0x73, last[0], last[1], last[2], last[3]]);
        assert_eq!(scope(mac([0, 1, 2, 3])), 0x01_02_03);
        assert!(are_alike(mac([0, 1, 2, 3]), mac([0, 3, 2, 1])));
        assert!(!are_alike(mac([0, 1, 2, 3]), mac([1, 1, 2, 3])));
    }

    proptest! {
        #[test]
        fn both_sides_number_alike_and_none_twice(
            v4s in proptest::collection::vec(any::<[u8; 4]>(), 0..60),
            v6s in proptest::collection::vec(any::<[u8; 16]>(), 0..60),
        ) {
            let all = || v4s.iter().map(|a| IpAddr::from(*a)).chain(v6s.iter().map(|a| IpAddr::from(*a)));
            let own = Addresses::of(all());
            // The other side has them from a probe, in whatever order.
            let told = Addresses::of(own.v6().iter().map(|a| IpAddr::V6(*a)).chain(own.v4().iter().rev().map(|a| IpAddr::V4(*a))));
            prop_assert_eq!(&own, &told);
            let doors = own.doors();
            let places: BTreeSet<_> = doors.iter().map(|(addr, number)| (addr.is_ipv4(), *number)).collect();
            prop_assert_eq!(places.len(), doors.len());
            prop_assert!(doors.values().all(|number| (1..=63).contains(number)));
        }

        #[test]
        fn an_address_keeps_its_number_when_another_goes(addrs in proptest::collection::btree_set(any::<u32>(), 2..30), gone in any::<proptest::sample::Index>()) {
            let all: Vec<IpAddr> = addrs.iter().map(|n| v4(*n)).collect();
            let gone = *gone.get(&all);
            let before = Addresses::of(all.iter().copied()).doors();
            let after = Addresses::of(all.iter().copied().filter(|addr| *addr != gone)).doors();
            for (addr, number) in before.iter().filter(|(addr, _)| **addr != gone) {
                prop_assert_eq!(after.get(addr), Some(number));
            }
        }
    }
}
