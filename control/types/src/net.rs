//! Network values: addresses, subnets, VNIs, MACs, ports.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

/// VXLAN network identifier: 24 bits, zero excluded (RFC 7348 section 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Vni(u32);

impl Vni {
    /// `None` when out of 1..=0xff_ffff.
    pub const fn new(value: u32) -> Option<Self> {
        if value >= 1 && value <= 0x00ff_ffff { Some(Self(value)) } else { None }
    }

    /// Host byte order.
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl TryFrom<u32> for Vni {
    type Error = String;
    fn try_from(value: u32) -> Result<Self, String> {
        Self::new(value).ok_or_else(|| format!("VNI {value} is not in 1..=16777215"))
    }
}

impl From<Vni> for u32 {
    fn from(vni: Vni) -> u32 {
        vni.0
    }
}

impl fmt::Display for Vni {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Number of an endpoint (an attachment of a task, router or VIP to one network), given out by the Raft state,
/// never reused. It is the id in the LB maps and the tail of the endpoint's MAC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct EndpointId(pub u32);

/// Number of a service in the LB maps, given out by the Raft state, never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ServiceIndex(pub u32);

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// The MAC of an endpoint: `02:73` (locally administered, unicast) and the endpoint's number, big endian. One
    /// cluster never has two of the same.
    pub const fn of_endpoint(id: EndpointId) -> Self {
        let n = id.0.to_be_bytes();
        Self([0x02, 0x73, n[0], n[1], n[2], n[3]])
    }
}

impl MacAddr {
    /// The link-local address of an interface with this MAC (RFC 4291 appendix A).
    pub const fn link_local(self) -> Ipv6Addr {
        let m = self.0;
        let octets = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, m[0] ^ 2, m[1], m[2], 0xff, 0xfe, m[3], m[4], m[5]];
        Ipv6Addr::from_octets(octets)
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let m = self.0;
        write!(f, "{:02x}:{:02x}:{:02x}:{:02x}:{:02x}:{:02x}", m[0], m[1], m[2], m[3], m[4], m[5])
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One address of each family; every endpoint and VIP has both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct DualAddr {
    /// IPv4.
    pub v4: Ipv4Addr,
    /// IPv6.
    pub v6: Ipv6Addr,
}

impl DualAddr {
    /// Both addresses, IPv4 first.
    pub fn iter(self) -> impl Iterator<Item = IpAddr> {
        [IpAddr::V4(self.v4), IpAddr::V6(self.v6)].into_iter()
    }
}

/// The subnets of a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct DualNet {
    /// IPv4 subnet, truncated to its prefix.
    pub v4: Ipv4Net,
    /// IPv6 subnet, truncated to its prefix.
    pub v6: Ipv6Net,
}

impl DualNet {
    /// Whether either subnet contains the address.
    pub fn contains(&self, addr: IpAddr) -> bool {
        match addr {
            IpAddr::V4(a) => self.v4.contains(&a),
            IpAddr::V6(a) => self.v6.contains(&a),
        }
    }

    /// Whether the two share an address in either family.
    pub fn overlaps(&self, other: &DualNet) -> bool {
        nets_overlap4(self.v4, other.v4) || nets_overlap6(self.v6, other.v6)
    }
}

/// Two CIDR blocks overlap exactly when one contains the other's first address.
pub fn nets_overlap4(a: Ipv4Net, b: Ipv4Net) -> bool {
    a.contains(&b.network()) || b.contains(&a.network())
}

/// See [`nets_overlap4`].
pub fn nets_overlap6(a: Ipv6Net, b: Ipv6Net) -> bool {
    a.contains(&b.network()) || b.contains(&a.network())
}

/// A transport the mesh carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP, whose ports can't be translated.
    Sctp,
}

impl Protocol {
    /// IANA protocol number, as in the IP header.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        })
    }
}

impl FromStr for Protocol {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "tcp" => Ok(Self::Tcp),
            "udp" => Ok(Self::Udp),
            "sctp" => Ok(Self::Sctp),
            _ => Err(format!("'{text}' is not a protocol shoal publishes; use tcp, udp or sctp")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vni_is_24_bits_and_not_zero() {
        assert!(Vni::new(0).is_none());
        assert!(Vni::new(0x0100_0000).is_none());
        assert_eq!(Vni::new(0x00ff_ffff).map(Vni::get), Some(0x00ff_ffff));
    }

    #[test]
    fn endpoint_macs_are_local_unicast_and_carry_the_number() {
        let mac = MacAddr::of_endpoint(EndpointId(0x0102_0304));
        assert_eq!(mac.to_string(), "02:73:01:02:03:04");
        assert_eq!(mac.0[0] & 0b11, 0b10);
        assert_eq!(mac.link_local().to_string(), "fe80::73:1ff:fe02:304");
    }

    #[test]
    fn overlap_is_symmetric_and_sees_containment() {
        let big: Ipv4Net = "10.0.0.0/8".parse().expect("literal");
        let small: Ipv4Net = "10.7.0.0/24".parse().expect("literal");
        let other: Ipv4Net = "11.0.0.0/24".parse().expect("literal");
        assert!(nets_overlap4(big, small) && nets_overlap4(small, big));
        assert!(!nets_overlap4(small, other) && !nets_overlap4(other, small));
    }
}
