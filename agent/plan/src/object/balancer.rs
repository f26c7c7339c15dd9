//! Balancers: namespaces in which the kernel's virtual services (IPVS) choose endpoints.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::{Ipv4Net, Ipv6Net};
use shoal_types::{DualAddr, EndpointId, MacAddr, NetworkId, Protocol, ServiceIndex};

use crate::name::{IfName, Mark};

/// Which balancer: a node has one for published ports, and one for the virtual IPs of each network it takes part in.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// Published ports.
    Ingress,
    /// Virtual IPs of a network.
    Network(NetworkId),
}

impl Place {
    /// The name of the balancer's namespace.
    pub fn namespace(&self) -> String {
        match self {
            Self::Ingress => "ingress".to_owned(),
            Self::Network(id) => format!("lb-{id}"),
        }
    }

    /// The balancer of a namespace of that name.
    pub fn of_namespace(name: &str) -> Option<Self> {
        match name.strip_prefix("lb-") {
            Some(id) => id.parse().ok().map(Self::Network),
            None => (name == "ingress").then_some(Self::Ingress),
        }
    }
}

/// A balancer's namespace, with the links into it and what makes packets stop there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Balancer {
    /// Which.
    pub place: Place,
    /// Its leg into the network.
    pub leg: BalancerLeg,
    /// How packets of published ports come in and answers go out; only the balancer of published ports has it.
    pub gate: Option<Gate>,
    /// Whether all settings the driver implies are in place.
    pub intact: bool,
}

/// A balancer's leg into its network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BalancerLeg {
    /// Name on the host.
    pub host: IfName,
    /// Ownership mark on the host's side.
    pub mark: Mark,
    /// The bridge its host side is a port of.
    pub bridge: IfName,
    /// MAC in the namespace: the router's, which no other node has.
    pub mac: MacAddr,
    /// Address and prefix.
    pub v4: Ipv4Net,
    /// Address and prefix.
    pub v6: Ipv6Net,
    /// MTU.
    pub mtu: u32,
}

/// A link between the host and the balancer of published ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gate {
    /// Name on the host.
    pub host: IfName,
    /// MTU.
    pub mtu: u32,
    /// The node's addresses, which the namespace takes for its own: ports are published on them.
    pub addrs: BTreeSet<IpAddr>,
}

/// A balancer's leg as the programs know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BalancerIf {
    /// Host side of the leg.
    pub host: IfName,
    /// VXLAN device of the network.
    pub vxlan: IfName,
    /// Answers to what it sends are steered back to it.
    pub steers: bool,
}

/// What the programs know of the balancer of published ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IngressBalancer {
    /// Host side of its gate.
    pub gate: IfName,
    /// Host side of its leg.
    pub leg: IfName,
    /// VXLAN device of the ingress network.
    pub vxlan: IfName,
}

/// The firewall mark that leads to a virtual service: what `ipvsadm` shows as `FWM`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FirewallMark(u32);

/// Places a port's digits in a mark, so that both can be read from it.
const MARK_PORTS: u32 = 100_000;
/// Places the number of an address above the digits of protocol and port.
const MARK_SCOPES: u32 = 2_000_000;
/// Stands for SCTP, whose number is too large: its first two digits.
const MARK_SCTP: u32 = 13;
const _: () =
    assert!(17 * MARK_PORTS + 65_535 < MARK_SCOPES && FirewallMark::SCOPES < u32::MAX / MARK_SCOPES);

impl FirewallMark {
    /// The mark of a published port: protocol number (13 for SCTP) and port, as digits. 608080 is TCP port 8080.
    pub fn of_port(protocol: Protocol, port: u16) -> Self {
        let transport = match protocol {
            Protocol::Tcp | Protocol::Udp => u32::from(protocol.number()),
            Protocol::Sctp => MARK_SCTP,
        };
        Self(transport * MARK_PORTS + u32::from(port))
    }

    /// The mark of a published port on one address: the digits of [`FirewallMark::of_port`] behind the number of the
    /// address, which tells the addresses of this port apart. A number from 1 to [`Self::SCOPES`].
    pub fn of_scoped_port(protocol: Protocol, port: u16, number: u32) -> Self {
        Self(number.clamp(1, Self::SCOPES) * MARK_SCOPES + Self::of_port(protocol, port).0)
    }

    /// Addresses of one port that can be told apart.
    pub const SCOPES: u32 = 2_000;

    /// The mark of a service's virtual IP: its number. `None` for number 0, which no service has.
    pub fn of_service(index: ServiceIndex) -> Option<Self> {
        Self::new(index.0)
    }

    /// A mark of the kernel's; 0 is none.
    pub fn new(value: u32) -> Option<Self> {
        (value != 0).then_some(Self(value))
    }

    /// The mark as a number, never 0.
    pub const fn get(self) -> u32 {
        self.0
    }
}

/// A virtual service of a balancer, in both families.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Virtual {
    /// Which balancer has it.
    pub place: Place,
    /// Packets with this mark are its.
    pub mark: FirewallMark,
    /// How it chooses.
    pub scheduler: VirtualScheduler,
    /// How it forwards.
    pub forward: VirtualForward,
    /// Its destinations, in the order in which they were made known to the cluster: a Maglev table depends on it.
    pub destinations: BTreeMap<EndpointId, VirtualDestination>,
}

/// How a virtual service chooses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VirtualScheduler {
    /// `rr`.
    RoundRobin,
    /// `wrr`: the same by weight.
    WeightedRoundRobin,
    /// `lc`.
    LeastConnections,
    /// `wlc`: the same by weight.
    WeightedLeastConnections,
    /// `mh` by address and port.
    Maglev,
    /// `mh` by address.
    Source,
    /// Something that nobody here asked for.
    Unknown,
}

/// How a virtual service forwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VirtualForward {
    /// To the destination's address and this port; answers come back through the balancer.
    Translated(u16),
    /// Unchanged, by direct routing; answers go straight to the client.
    Direct,
}

/// A destination of a virtual service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VirtualDestination {
    /// Its addresses.
    pub addr: DualAddr,
    /// Its share; 0: it keeps its flows and gets no new ones.
    pub weight: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespaces_tell_whose_they_are() {
        for place in [Place::Ingress, Place::Network(NetworkId::from_entropy(7))] {
            assert_eq!(Place::of_namespace(&place.namespace()), Some(place));
        }
        assert_eq!(Place::of_namespace("lb-"), None);
        let task = shoal_types::TaskId::from_entropy(7);
        assert_eq!(Place::of_namespace(task.as_str()), None);
    }

    #[test]
    fn marks_can_be_read_and_do_not_clash() {
        let mark = |protocol, port| FirewallMark::of_port(protocol, port).get();
        assert_eq!(mark(Protocol::Tcp, 8080), 608_080);
        assert_eq!(mark(Protocol::Udp, 53), 1_700_053);
        assert_eq!(mark(Protocol::Sctp, 5060), 1_305_060);
        assert!(mark(Protocol::Tcp, u16::MAX) < mark(Protocol::Sctp, 1));
        assert!(mark(Protocol::Sctp, u16::MAX) < mark(Protocol::Udp, 1));
        assert_eq!(FirewallMark::of_service(ServiceIndex(0)), None);
        let scoped = |number| FirewallMark::of_scoped_port(Protocol::Udp, u16::MAX, number).get();
        assert_eq!(FirewallMark::of_scoped_port(Protocol::Tcp, 8080, 1).get(), 2_608_080);
        assert!(mark(Protocol::Udp, u16::MAX) < scoped(1) && scoped(1) < scoped(2));
        assert!(scoped(FirewallMark::SCOPES - 1) < scoped(FirewallMark::SCOPES));
    }
}
