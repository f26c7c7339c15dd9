//! Addresses of networks and VXLAN ids.
//!
//! A network gives out host numbers; both addresses of an endpoint follow from its number, so one owner table
//! covers both families. Numbers never used come first, then the longest unused one: a freed address rests as
//! long as the network allows, and giving one out costs O(log n) however full the network is.

use std::collections::{BTreeMap, VecDeque};
use std::net::{Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};
use shoal_types::id::NetworkId;
use shoal_types::net::{DualAddr, DualNet, EndpointId, Vni};
use shoal_types::object::Attachment;

/// VNIs below are left to whoever numbers tunnels by hand.
pub(crate) const FIRST_VNI: u32 = 4096;

/// Host number 0 is the network, 1 the gateway.
const FIRST_HOST: u32 = 2;

/// All networks' addresses, and the VNIs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ipam {
    networks: BTreeMap<NetworkId, HostPool>,
    vnis: BTreeMap<Vni, NetworkId>,
    /// VNI given out last; the search goes on behind it.
    last_vni: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct HostPool {
    subnets: DualNet,
    /// Last host number that can be given out.
    last: u32,
    /// Next host number that was never given out.
    fresh: u32,
    /// Given back, longest unused first.
    freed: VecDeque<u32>,
    owners: BTreeMap<u32, EndpointId>,
}

impl HostPool {
    fn new(subnets: DualNet) -> Self {
        let hosts4 = 1_u64 << (32 - u32::from(subnets.v4.prefix_len()));
        let bits6 = 128 - u32::from(subnets.v6.prefix_len());
        let hosts6 = 1_u64.checked_shl(bits6).filter(|_| bits6 < 64).unwrap_or(u64::MAX);
        // The last IPv4 number is the broadcast address; IPv6 has none.
        let last = hosts4.saturating_sub(2).min(hosts6.saturating_sub(1));
        Self {
            subnets,
            last: u32::try_from(last).unwrap_or(u32::MAX - 1),
            fresh: FIRST_HOST,
            freed: VecDeque::new(),
            owners: BTreeMap::new(),
        }
    }

    fn total(&self) -> u64 {
        u64::from(self.last.saturating_sub(FIRST_HOST - 1))
    }

    fn used(&self) -> u64 {
        u64::try_from(self.owners.len()).unwrap_or(u64::MAX)
    }

    fn take(&mut self, endpoint: EndpointId) -> Option<DualAddr> {
        let host = if self.fresh <= self.last {
            self.fresh += 1;
            self.fresh - 1
        } else {
            self.freed.pop_front()?
        };
        self.owners.insert(host, endpoint);
        Some(self.address(host))
    }

    fn address(&self, host: u32) -> DualAddr {
        DualAddr {
            v4: Ipv4Addr::from_bits(self.subnets.v4.network().to_bits() | host),
            v6: Ipv6Addr::from_bits(self.subnets.v6.network().to_bits() | u128::from(host)),
        }
    }

    fn give_back(&mut self, at: &Attachment) {
        let host = at.addr.v4.to_bits().wrapping_sub(self.subnets.v4.network().to_bits());
        if self.owners.get(&host) == Some(&at.endpoint) {
            self.owners.remove(&host);
            self.freed.push_back(host);
        }
    }
}

impl Ipam {
    /// Starts giving out addresses of a network. Its VNI must come from [`Ipam::free_vni`].
    pub(crate) fn open(&mut self, network: &NetworkId, subnets: DualNet, vni: Vni) {
        self.networks.insert(network.clone(), HostPool::new(subnets));
        self.vnis.insert(vni, network.clone());
        self.last_vni = vni.get();
    }

    /// Forgets a network.
    pub(crate) fn close(&mut self, network: &NetworkId, vni: Vni) {
        self.networks.remove(network);
        self.vnis.remove(&vni);
    }

    /// The next VNI that no network has, not one that was freed just now.
    pub(crate) fn free_vni(&self) -> Option<Vni> {
        let after = self.last_vni.saturating_add(1).max(FIRST_VNI);
        (after..=0x00ff_ffff)
            .chain(FIRST_VNI..after)
            .filter_map(Vni::new)
            .find(|vni| !self.vnis.contains_key(vni))
    }

    /// Addresses that could be given out at all, and those that are.
    pub(crate) fn capacity(&self, network: &NetworkId) -> Option<(u64, u64)> {
        self.networks.get(network).map(|pool| (pool.total(), pool.used()))
    }

    /// Addresses that can be given out now.
    pub(crate) fn free(&self, network: &NetworkId) -> u64 {
        self.capacity(network).map_or(0, |(total, used)| total.saturating_sub(used))
    }

    /// Gives an address to an endpoint; `None` when the network has none left.
    pub(crate) fn take(&mut self, network: &NetworkId, endpoint: EndpointId) -> Option<DualAddr> {
        self.networks.get_mut(network)?.take(endpoint)
    }

    /// Takes an endpoint's address back; that of somebody else is left alone.
    pub(crate) fn give_back(&mut self, at: &Attachment) {
        if let Some(pool) = self.networks.get_mut(&at.network) {
            pool.give_back(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ipam(v4: &str, v6: &str) -> (Ipam, NetworkId) {
        let network = NetworkId::from_entropy(1);
        let mut ipam = Ipam::default();
        let subnets = DualNet { v4: v4.parse().expect("literal"), v6: v6.parse().expect("literal") };
        let vni = ipam.free_vni().expect("empty");
        ipam.open(&network, subnets, vni);
        (ipam, network)
    }

    fn at(network: &NetworkId, endpoint: u32, addr: DualAddr) -> Attachment {
        Attachment { endpoint: EndpointId(endpoint), network: network.clone(), addr }
    }

    #[test]
    fn network_gateway_and_broadcast_are_left_out() {
        let (mut ipam, network) = ipam("10.0.0.0/29", "fd00::/64");
        let given: Vec<String> = (0..6)
            .filter_map(|n| ipam.take(&network, EndpointId(n)))
            .map(|a| format!("{} {}", a.v4, a.v6))
            .collect();
        assert_eq!(
            given,
            [
                "10.0.0.2 fd00::2",
                "10.0.0.3 fd00::3",
                "10.0.0.4 fd00::4",
                "10.0.0.5 fd00::5",
                "10.0.0.6 fd00::6"
            ]
        );
        assert_eq!(ipam.capacity(&network), Some((5, 5)));
    }

    #[test]
    fn the_smaller_family_limits() {
        let (ipam, network) = ipam("10.0.0.0/20", "fd00::/125");
        assert_eq!(ipam.capacity(&network), Some((6, 0)));
    }

    #[test]
    fn a_freed_address_comes_back_last() {
        let (mut ipam, network) = ipam("10.0.0.0/29", "fd00::/64");
        let mut given: Vec<DualAddr> = (0..3).filter_map(|n| ipam.take(&network, EndpointId(n))).collect();
        ipam.give_back(&at(&network, 1, given[1]));
        ipam.give_back(&at(&network, 0, given[0]));
        given.extend((3..7).filter_map(|n| ipam.take(&network, EndpointId(n))));
        let hosts: Vec<u8> = given.iter().map(|a| a.v4.octets()[3]).collect();
        assert_eq!(hosts, [2, 3, 4, 5, 6, 3, 2], "fresh ones first, then in the order they were freed");
    }

    #[test]
    fn only_the_owner_can_give_back() {
        let (mut ipam, network) = ipam("10.0.0.0/29", "fd00::/64");
        let addr = ipam.take(&network, EndpointId(7)).expect("free");
        ipam.give_back(&at(&network, 8, addr));
        assert_eq!(ipam.free(&network), 4);
        ipam.give_back(&at(&network, 7, addr));
        ipam.give_back(&at(&network, 7, addr));
        assert_eq!(ipam.free(&network), 5);
    }

    #[test]
    fn a_vni_is_not_given_out_again_at_once() {
        let (mut ipam, network) = ipam("10.0.0.0/29", "fd00::/64");
        ipam.close(&network, Vni::new(FIRST_VNI).expect("in range"));
        assert_eq!(ipam.free_vni().map(Vni::get), Some(FIRST_VNI + 1));
    }
}
