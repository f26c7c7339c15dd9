//! Subnets of networks: checking one that was given, finding a free one in the pools.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use shoal_types::id::Name;
use shoal_types::net::{DualNet, nets_overlap4, nets_overlap6};
use shoal_types::object::{Network, Node};
use shoal_types::spec::NetworkSpec;

use crate::command::Pools;
use crate::rejection::Rejection;

/// Largest and smallest IPv4 subnet: below /29 no address is left for a task beside a VIP and routers.
pub(crate) const PREFIX4: std::ops::RangeInclusive<u8> = 8..=29;
/// Largest and smallest IPv6 subnet.
pub(crate) const PREFIX6: std::ops::RangeInclusive<u8> = 48..=125;
/// Every network takes a /64 of the cluster's block.
const NETWORK6: u8 = 64;

/// What a new subnet must keep clear of.
#[derive(Clone, Copy)]
pub(crate) struct Occupied<'a> {
    /// Networks that exist.
    pub(crate) networks: &'a std::collections::BTreeMap<shoal_types::id::NetworkId, Network>,
    /// Hosts, whose own addresses must stay reachable.
    pub(crate) nodes: &'a std::collections::BTreeMap<shoal_types::id::NodeId, Node>,
    /// A host that is not in `nodes` yet.
    pub(crate) newcomer: Option<IpAddr>,
}

impl Occupied<'_> {
    fn hosts(&self) -> impl Iterator<Item = IpAddr> {
        self.nodes.values().map(|n| n.data_addr).chain(self.newcomer)
    }

    fn blocks(&self, v4: bool) -> Vec<(u128, u128)> {
        let nets =
            self.networks.values().map(|n| if v4 { range4(n.subnets.v4) } else { range6(n.subnets.v6) });
        let hosts = self.hosts().filter(|a| a.is_ipv4() == v4).map(|a| match a {
            IpAddr::V4(a) => (u128::from(a.to_bits()), u128::from(a.to_bits())),
            IpAddr::V6(a) => (a.to_bits(), a.to_bits()),
        });
        let mut blocks: Vec<_> = nets.chain(hosts).collect();
        blocks.sort_unstable();
        blocks
    }
}

/// The subnets of a new network: those given, checked, and free ones for those left out.
pub(crate) fn resolve(
    spec: &NetworkSpec,
    pools: &Pools,
    occupied: Occupied<'_>,
) -> Result<DualNet, Rejection> {
    let v4 = match spec.subnet4 {
        Some(given) => check4(given, &spec.name, occupied)?,
        None => free4(pools, |_| pools.v4_prefix, occupied)
            .ok_or_else(|| exhausted4(pools, pools.v4_prefix, &spec.name))?,
    };
    let v6 = match spec.subnet6 {
        Some(given) => check6(given, &spec.name, occupied)?,
        None => free6(pools, &spec.name, occupied)?,
    };
    Ok(DualNet { v4, v6 })
}

/// The subnets of the ingress network: a /16, or half of a smaller pool.
pub(crate) fn ingress(pools: &Pools, name: &Name, occupied: Occupied<'_>) -> Result<DualNet, Rejection> {
    let prefix = |pool: Ipv4Net| pool.prefix_len().saturating_add(1).clamp(16, *PREFIX4.end());
    let v4 = free4(pools, prefix, occupied).ok_or_else(|| exhausted4(pools, 16, name))?;
    Ok(DualNet { v4, v6: free6(pools, name, occupied)? })
}

/// Checks the pools of a new cluster.
pub(crate) fn check_pools(pools: &Pools) -> Result<(), Rejection> {
    if pools.v4.is_empty() {
        return Err(Rejection::invalid("pools", "", "is empty", "give at least one IPv4 block, 10.0.0.0/8"));
    }
    if !PREFIX4.contains(&pools.v4_prefix) {
        return Err(Rejection::invalid("pool_size", pools.v4_prefix, "is not in 8..=29", "write 20"));
    }
    for pool in &pools.v4 {
        if pool.prefix_len() > pools.v4_prefix || pool.prefix_len() > 28 {
            let help = format!("give a block of /{} or larger", pools.v4_prefix.min(28));
            return Err(Rejection::invalid("pools", pool, "is too small for a network", help));
        }
        check_ordinary("pools", IpNet::V4(*pool))?;
    }
    if pools.v6.prefix_len() > NETWORK6 {
        return Err(Rejection::invalid("pools", pools.v6, "has no room for a /64", "give a /48"));
    }
    check_ordinary("pools", IpNet::V6(pools.v6))
}

/// Refuses a host's address that lies in an overlay.
pub(crate) fn check_host<'a>(
    addr: IpAddr,
    node: &str,
    mut networks: impl Iterator<Item = &'a Network>,
) -> Result<(), Rejection> {
    if addr.is_unspecified() || addr.is_multicast() {
        let help = "give the address that the other hosts reach this one by: '--advertise-addr'";
        return Err(Rejection::invalid("data_addr", addr, "is no address of a host", help));
    }
    match networks.find(|n| n.subnets.contains(addr)) {
        Some(network) => Err(Rejection::AddressInOverlay {
            addr,
            node: node.to_owned(),
            network: network.spec.name.clone(),
            subnet: if addr.is_ipv4() {
                network.subnets.v4.to_string()
            } else {
                network.subnets.v6.to_string()
            },
        }),
        None => Ok(()),
    }
}

fn check4(given: Ipv4Net, name: &Name, occupied: Occupied<'_>) -> Result<Ipv4Net, Rejection> {
    check_shape("subnet4", IpNet::V4(given), PREFIX4)?;
    for network in occupied.networks.values() {
        if nets_overlap4(given, network.subnets.v4) {
            return Err(overlap("subnet4", &given, name, network, &network.subnets.v4));
        }
    }
    check_hosts(IpNet::V4(given), name, occupied)?;
    Ok(given)
}

fn check6(given: Ipv6Net, name: &Name, occupied: Occupied<'_>) -> Result<Ipv6Net, Rejection> {
    check_shape("subnet6", IpNet::V6(given), PREFIX6)?;
    for network in occupied.networks.values() {
        if nets_overlap6(given, network.subnets.v6) {
            return Err(overlap("subnet6", &given, name, network, &network.subnets.v6));
        }
    }
    check_hosts(IpNet::V6(given), name, occupied)?;
    Ok(given)
}

fn overlap(
    field: &str,
    given: &dyn std::fmt::Display,
    name: &Name,
    holder: &Network,
    held: &dyn std::fmt::Display,
) -> Rejection {
    Rejection::SubnetOverlap {
        field: field.to_owned(),
        subnet: given.to_string(),
        asked_by: name.clone(),
        holder: holder.spec.name.clone(),
        held: held.to_string(),
    }
}

fn check_hosts(subnet: IpNet, name: &Name, occupied: Occupied<'_>) -> Result<(), Rejection> {
    let inside = occupied.nodes.values().find(|n| subnet.contains(&n.data_addr));
    match inside {
        Some(node) => Err(Rejection::AddressInOverlay {
            addr: node.data_addr,
            node: node.name.to_string(),
            network: name.clone(),
            subnet: subnet.to_string(),
        }),
        None => Ok(()),
    }
}

fn check_shape(field: &str, subnet: IpNet, prefixes: std::ops::RangeInclusive<u8>) -> Result<(), Rejection> {
    if subnet.addr() != subnet.network() {
        let help = format!("write {}", subnet.trunc());
        return Err(Rejection::invalid(field, subnet, "has address bits behind the prefix", help));
    }
    if !prefixes.contains(&subnet.prefix_len()) {
        let problem = format!("has a prefix outside /{} to /{}", prefixes.start(), prefixes.end());
        return Err(Rejection::invalid(field, subnet, problem, "choose a prefix in that range"));
    }
    check_ordinary(field, subnet)
}

/// Refuses blocks that mean something of their own on every host.
fn check_ordinary(field: &str, subnet: IpNet) -> Result<(), Rejection> {
    const SPECIAL4: [(Ipv4Addr, u8); 4] = [
        (Ipv4Addr::UNSPECIFIED, 8),
        (Ipv4Addr::new(127, 0, 0, 0), 8),
        (Ipv4Addr::new(169, 254, 0, 0), 16),
        (Ipv4Addr::new(224, 0, 0, 0), 3),
    ];
    const SPECIAL6: [(Ipv6Addr, u8); 3] = [
        (Ipv6Addr::UNSPECIFIED, 8),
        (Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10),
        (Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8),
    ];
    let special = match subnet {
        IpNet::V4(net) => {
            SPECIAL4.into_iter().any(|(a, p)| Ipv4Net::new(a, p).is_ok_and(|s| nets_overlap4(net, s)))
        }
        IpNet::V6(net) => {
            SPECIAL6.into_iter().any(|(a, p)| Ipv6Net::new(a, p).is_ok_and(|s| nets_overlap6(net, s)))
        }
    };
    if special {
        let help = "choose a private block: 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16, fd00::/8";
        return Err(Rejection::invalid(
            field,
            subnet,
            "is reserved (loopback, link-local or multicast)",
            help,
        ));
    }
    Ok(())
}

fn free4(pools: &Pools, prefix: impl Fn(Ipv4Net) -> u8, occupied: Occupied<'_>) -> Option<Ipv4Net> {
    let blocked = occupied.blocks(true);
    pools.v4.iter().find_map(|pool| {
        let prefix = prefix(*pool);
        let start = first_free(range4(*pool), 1 << (32 - prefix.min(32)), &blocked)?;
        Ipv4Net::new(Ipv4Addr::from_bits(u32::try_from(start).ok()?), prefix).ok()
    })
}

fn free6(pools: &Pools, name: &Name, occupied: Occupied<'_>) -> Result<Ipv6Net, Rejection> {
    first_free(range6(pools.v6), 1 << (128 - NETWORK6), &occupied.blocks(false))
        .and_then(|start| Ipv6Net::new(Ipv6Addr::from_bits(start), NETWORK6).ok())
        .ok_or_else(|| Rejection::PoolExhausted {
            family: "IPv6".to_owned(),
            prefix: NETWORK6,
            pools: pools.v6.to_string(),
            network: name.clone(),
        })
}

fn exhausted4(pools: &Pools, prefix: u8, name: &Name) -> Rejection {
    let list: Vec<String> = pools.v4.iter().map(ToString::to_string).collect();
    Rejection::PoolExhausted {
        family: "IPv4".to_owned(),
        prefix,
        pools: list.join(", "),
        network: name.clone(),
    }
}

/// The first aligned block of `size` (a power of two) in `pool` that touches none of the blocked ranges, which are
/// sorted by their start.
fn first_free(pool: (u128, u128), size: u128, blocked: &[(u128, u128)]) -> Option<u128> {
    let mut start = pool.0;
    for (from, to) in blocked {
        if *to < start {
            continue;
        }
        if *from > start.checked_add(size - 1)? {
            break;
        }
        // Up to the next multiple of the size behind the obstacle.
        start = (to / size).checked_add(1)?.checked_mul(size)?;
    }
    (start.checked_add(size - 1)? <= pool.1).then_some(start)
}

fn range4(net: Ipv4Net) -> (u128, u128) {
    (u128::from(net.network().to_bits()), u128::from(net.broadcast().to_bits()))
}

fn range6(net: Ipv6Net) -> (u128, u128) {
    (net.network().to_bits(), net.broadcast().to_bits())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_hole_that_is_large_enough() {
        assert_eq!(first_free((0, 255), 16, &[]), Some(0));
        assert_eq!(first_free((0, 255), 16, &[(0, 15), (32, 47)]), Some(16));
        assert_eq!(
            first_free((0, 255), 32, &[(0, 15), (40, 40)]),
            Some(64),
            "aligned, and past the single host"
        );
        assert_eq!(first_free((0, 63), 16, &[(0, 255)]), None);
        assert_eq!(first_free((16, 31), 16, &[(0, 200), (5, 7)]), None, "a larger block around the pool");
    }
}
