//! Names that stand for addresses: `4.3.2.1.in-addr.arpa` and `….ip6.arpa`.

use std::net::{Ipv4Addr, Ipv6Addr};

use hickory_proto::rr::Name;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// The prefix a reverse name stands for; a whole address is a prefix of full length. `None` if it is no reverse
/// name, or one that can't stand for an address (`x.in-addr.arpa`, or the bare `in-addr.arpa`).
pub(super) fn parse(name: &Name) -> Option<IpNet> {
    let labels: Vec<&[u8]> = name.iter().collect();
    let (rest, arpa) = labels.split_at_checked(labels.len().checked_sub(2)?)?;
    if !arpa[1].eq_ignore_ascii_case(b"arpa") || rest.is_empty() {
        return None;
    }
    if arpa[0].eq_ignore_ascii_case(b"in-addr") {
        parse_v4(rest)
    } else if arpa[0].eq_ignore_ascii_case(b"ip6") {
        parse_v6(rest)
    } else {
        None
    }
}

fn parse_v4(labels: &[&[u8]]) -> Option<IpNet> {
    let mut octets = [0_u8; 4];
    if labels.len() > octets.len() {
        return None;
    }
    for (octet, label) in octets.iter_mut().zip(labels.iter().rev()) {
        *octet = std::str::from_utf8(label).ok()?.parse().ok()?;
    }
    let bits = u8::try_from(labels.len() * 8).ok()?;
    Ipv4Net::new(Ipv4Addr::from(octets), bits).ok().map(IpNet::V4)
}

fn parse_v6(labels: &[&[u8]]) -> Option<IpNet> {
    if labels.len() > 32 {
        return None;
    }
    let mut address = 0_u128;
    for (position, label) in (1_u32..).zip(labels.iter().rev()) {
        let [digit] = label else { return None };
        let nibble = char::from(*digit).to_digit(16)?;
        address |= u128::from(nibble) << (128 - 4 * position);
    }
    let bits = u8::try_from(labels.len() * 4).ok()?;
    Ipv6Net::new(Ipv6Addr::from(address), bits).ok().map(IpNet::V6)
}
