//! Tables of endpoints, and what endpoints take by them.

use shoal_types::{EndpointId, LbPolicy, Vni};

/// A service in a network: one table of endpoints. Alike on every node, but for those of ports in host mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceKey {
    /// The network its endpoints are in.
    pub network: Vni,
    /// Number of the service.
    pub index: u32,
    /// Only the node's own endpoints.
    pub own: bool,
}

/// The bit of a key's number that says [`ServiceKey::own`]: above the 24 of the network.
const OWN_ENDPOINTS: u64 = 1 << 63;

impl ServiceKey {
    /// As one number.
    pub const fn to_u64(self) -> u64 {
        // Both widen; From is not available in a const function.
        let own = if self.own { OWN_ENDPOINTS } else { 0 };
        own | ((self.network.get() as u64) << 32) | self.index as u64
    }

    /// From a number, if it is one of ours.
    pub fn from_u64(value: u64) -> Option<Self> {
        let own = value & OWN_ENDPOINTS != 0;
        let network = Vni::new(u32::try_from((value & !OWN_ENDPOINTS) >> 32).ok()?)?;
        let index = u32::try_from(value & u64::from(u32::MAX)).ok()?;
        Some(Self { network, index, own })
    }
}

/// The table of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LbService {
    /// Which.
    pub key: ServiceKey,
    /// Seed of its table, the same on every node.
    pub seed: u64,
    /// How they are chosen.
    pub policy: LbPolicy,
    /// Its endpoints, sorted, with their shares of new flows; none of them is 0.
    pub members: Vec<(EndpointId, u8)>,
}

/// What new flows an endpoint gets. It keeps those it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Takes {
    /// Those that tables give it, and those of a client that had one before.
    All,
    /// Those that tables give it, which are of its node's own ports in host mode: its node has weight 0.
    Own,
    /// None: it drains, or can't serve.
    None,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_back_from_their_numbers() {
        let network = Vni::new(0x00ff_ffff).expect("24 bits");
        for (own, index) in [(false, 0), (true, 7), (true, u32::MAX)] {
            let key = ServiceKey { network, index, own };
            assert_eq!(ServiceKey::from_u64(key.to_u64()), Some(key));
        }
        assert_eq!(ServiceKey::from_u64(7), None, "no network");
        assert_eq!(ServiceKey::from_u64(1 << 62 | 1 << 32), None, "a bit that is no one's");
    }
}
