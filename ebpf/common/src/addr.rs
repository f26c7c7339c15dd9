//! Addresses: 16 bytes, IPv4 as IPv4-mapped.

#[cfg(feature = "host")]
use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An IP address as it lies in a map: the 16 octets in network order.
///
/// Four words instead of 16 bytes, because the BPF target compares and copies words.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Addr {
    words: [u32; 4],
}

/// The third word of an IPv4-mapped address: `::ffff:0:0/96`.
const MAPPED: u32 = u32::from_ne_bytes([0, 0, 0xff, 0xff]);

impl Addr {
    /// No address; in a [`crate::keys::PortKey`], any address of the node.
    pub const ANY: Self = Self { words: [0; 4] };

    /// An IPv4 address from its octets.
    #[inline(always)]
    pub const fn v4(octets: [u8; 4]) -> Self {
        Self { words: [0, 0, MAPPED, u32::from_ne_bytes(octets)] }
    }

    /// An IPv6 address from its octets.
    #[inline(always)]
    pub const fn v6(o: [u8; 16]) -> Self {
        Self {
            words: [
                u32::from_ne_bytes([o[0], o[1], o[2], o[3]]),
                u32::from_ne_bytes([o[4], o[5], o[6], o[7]]),
                u32::from_ne_bytes([o[8], o[9], o[10], o[11]]),
                u32::from_ne_bytes([o[12], o[13], o[14], o[15]]),
            ],
        }
    }

    /// A copy, by words: the target has no instruction for "these bytes, to a place that may overlap", which is what a
    /// plain copy between two references becomes, and calls a function instead.
    #[inline(always)]
    #[must_use]
    pub const fn copied(&self) -> Self {
        Self { words: [self.words[0], self.words[1], self.words[2], self.words[3]] }
    }

    /// An address from its four words, each in network order in memory.
    #[inline(always)]
    pub const fn from_words(words: [u32; 4]) -> Self {
        Self { words }
    }

    /// The four words, each in network order in memory.
    #[inline(always)]
    pub const fn words(&self) -> [u32; 4] {
        self.words
    }

    /// The 16 octets.
    #[inline(always)]
    pub const fn octets(&self) -> [u8; 16] {
        let [a, b, c, d] = self.words;
        let (a, b, c, d) = (a.to_ne_bytes(), b.to_ne_bytes(), c.to_ne_bytes(), d.to_ne_bytes());
        [a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], d[0], d[1], d[2], d[3]]
    }

    /// The four octets of an IPv4-mapped address (the last four of any other).
    #[inline(always)]
    pub const fn v4_octets(&self) -> [u8; 4] {
        self.words[3].to_ne_bytes()
    }

    /// Whether it means another host on every link: 169.254.0.0/16 (RFC 3927) and fe80::/10 (RFC 4291).
    #[inline(always)]
    pub const fn is_link_local(&self) -> bool {
        if self.is_v4() {
            let octets = self.v4_octets();
            octets[0] == 169 && octets[1] == 254
        } else {
            let octets = self.octets();
            octets[0] == 0xfe && octets[1] & 0xc0 == 0x80
        }
    }

    /// Whether this is an IPv4-mapped address.
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        (self.words[0] | self.words[1] | (self.words[2] ^ MAPPED)) == 0
    }

    /// Whether this is [`Addr::ANY`].
    #[inline(always)]
    pub const fn is_any(&self) -> bool {
        (self.words[0] | self.words[1] | self.words[2] | self.words[3]) == 0
    }
}

impl PartialEq for Addr {
    #[inline(always)]
    fn eq(&self, other: &Self) -> bool {
        let (a, b) = (&self.words, &other.words);
        ((a[0] ^ b[0]) | (a[1] ^ b[1]) | (a[2] ^ b[2]) | (a[3] ^ b[3])) == 0
    }
}

impl Eq for Addr {}

impl From<IpAddr> for Addr {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(v4) => v4.into(),
            IpAddr::V6(v6) => v6.into(),
        }
    }
}

impl From<Ipv4Addr> for Addr {
    fn from(address: Ipv4Addr) -> Self {
        Self::v4(address.octets())
    }
}

impl From<Ipv6Addr> for Addr {
    fn from(address: Ipv6Addr) -> Self {
        Self::v6(address.octets())
    }
}

impl From<Addr> for IpAddr {
    fn from(address: Addr) -> Self {
        Ipv6Addr::from(address.octets()).to_canonical()
    }
}

#[cfg(feature = "host")]
impl core::hash::Hash for Addr {
    fn hash<H: core::hash::Hasher>(&self, state: &mut H) {
        self.words.hash(state);
    }
}

#[cfg(feature = "host")]
impl Ord for Addr {
    fn cmp(&self, other: &Self) -> core::cmp::Ordering {
        self.octets().cmp(&other.octets())
    }
}

#[cfg(feature = "host")]
impl PartialOrd for Addr {
    fn partial_cmp(&self, other: &Self) -> Option<core::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

#[cfg(feature = "host")]
impl fmt::Debug for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&IpAddr::from(*self), f)
    }
}

#[cfg(feature = "host")]
impl fmt::Display for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&IpAddr::from(*self), f)
    }
}
