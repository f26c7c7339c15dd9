//! Namespaces of balancers: where the kernel's virtual services choose endpoints. What is in their tables is another
//! driver's; here are the namespaces, the links into them, and what makes packets stop there.
//!
//! `eth0` is the leg into the network, with the router's MAC. The balancer of published ports has the node's own
//! addresses on its loopback, so that what was sent to a published port is its own, and a gate `eth1` that answers
//! leave by. A balancer of virtual IPs takes everything that comes in for its own.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::neighbour::NeighbourMessage;
use netlink_packet_route::route::{
    RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::packet_route::AddressFamily;
use shoal_plan::IfName;
use shoal_plan::name::Mark;
use shoal_plan::object::{Balancer, BalancerLeg, Gate, Object, Place};
use shoal_types::{DualAddr, MacAddr};

use super::inside::{Inside, host_address};
use super::leg::{MAIN_TABLE, ROUTE_PROTOCOL, default_routes, neighbors};
use super::sandbox::{ensure_sysctls, sysctls_are};
use super::veth::{Port, Veth, is_settled_port};
use super::{Overlay, addresses_of, first_of_each, set_addresses};
use crate::drivers::link::{Link, LinkError, LinkTable, Nl};
use crate::netns::Netns;

/// Names inside.
const LEG: &str = "eth0";
const GATE: &str = "eth1";

/// Routing table, in a balancer's namespace, by which everything that comes in by the leg is its own.
const OWN_TABLE: u32 = 7379;
/// Before the kernel's own rule for the main table.
const RULE_PRIORITY: u32 = 7379;

/// What answers to clients are sent to: nobody has these addresses, as the program at the gate takes all packets.
const NEXT_HOP: DualAddr =
    DualAddr { v4: Ipv4Addr::new(169, 254, 73, 1), v6: Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1) };
const NEXT_HOP_MAC: MacAddr = MacAddr([0x02, 0x74, 0, 0, 0, 1]);

/// Kernel parameters of a balancer's namespace.
const SYSCTLS: &[(&str, &str)] = &[
    ("net/ipv6/conf/all/disable_ipv6", "0"),
    ("net/ipv6/conf/default/disable_ipv6", "0"),
    // Answers of tasks pass through, on their way to clients.
    ("net/ipv4/ip_forward", "1"),
    ("net/ipv6/conf/all/forwarding", "1"),
    // Clients come in by one link, and the routes to some of them lead to the other.
    ("net/ipv4/conf/all/rp_filter", "0"),
    ("net/ipv4/conf/default/rp_filter", "0"),
    // Nothing may be sent here by its address: the programs hand packets over.
    ("net/ipv4/conf/all/arp_ignore", "8"),
    ("net/ipv4/conf/all/arp_announce", "2"),
    ("net/ipv4/conf/all/send_redirects", "0"),
    ("net/ipv4/conf/default/send_redirects", "0"),
    ("net/ipv6/conf/all/accept_ra", "0"),
    ("net/ipv6/conf/default/accept_ra", "0"),
    ("net/ipv6/conf/default/router_solicitations", "0"),
    ("net/ipv6/conf/all/accept_dad", "0"),
    ("net/ipv6/conf/default/accept_dad", "0"),
    ("net/ipv6/conf/default/dad_transmits", "0"),
    ("net/ipv6/conf/default/addr_gen_mode", "1"),
];

impl Overlay {
    /// The places that have a namespace.
    pub fn balancers(&self) -> Result<Vec<Place>, LinkError> {
        Ok(self.namespaces.list()?.iter().filter_map(|name| Place::of_namespace(name)).collect())
    }

    /// A balancer's namespace.
    pub fn balancer_netns(&self, place: &Place) -> Result<Netns, LinkError> {
        Ok(self.namespaces.open(&place.namespace())?)
    }

    /// Makes a balancer's namespace with its links, or makes it so.
    pub async fn ensure_balancer(&self, balancer: &Balancer) -> Result<(), LinkError> {
        let name = balancer.place.namespace();
        if self.namespaces.open(&name).is_err() {
            self.nl.writes().count();
        }
        let netns = self.namespaces.ensure(&name)?;
        self.nl.writes().add(netns.run(|| ensure_sysctls(SYSCTLS))??);
        let connection = netns.netlink()?;
        let inner_nl = Nl::new(connection.handle(), self.nl.writes());
        let outcome = self.ensure_balancer_in(balancer, &netns, &inner_nl).await;
        connection.close().await;
        outcome
    }

    async fn ensure_balancer_in(
        &self,
        balancer: &Balancer,
        netns: &Netns,
        inner_nl: &Nl,
    ) -> Result<(), LinkError> {
        let leg = &balancer.leg;
        let veth = Veth {
            is_leg: false,
            host: &leg.host,
            mark: &leg.mark,
            port: Some(Port { bridge: &leg.bridge, isolated: false }),
            inner: IfName::new(LEG),
            mac: Some(leg.mac),
            mtu: leg.mtu,
            addresses: vec![
                (leg.v4.addr().into(), leg.v4.prefix_len()),
                (leg.v6.addr().into(), leg.v6.prefix_len()),
            ],
            // For a packet that it forwards the kernel asks for a neighbor from there, or not at all.
            link_local: true,
        };
        let (inside, _) = self.ensure_veth(&veth, netns, inner_nl).await?;
        match &balancer.gate {
            Some(gate) => self.ensure_gate(gate, netns, inner_nl).await,
            None => take_all(inner_nl, &inside).await,
        }
    }

    async fn ensure_gate(&self, gate: &Gate, netns: &Netns, inner_nl: &Nl) -> Result<(), LinkError> {
        let veth = Veth {
            is_leg: false,
            host: &gate.host,
            mark: &Mark::Gate,
            port: None,
            inner: IfName::new(GATE),
            mac: None,
            mtu: gate.mtu,
            addresses: Vec::new(),
            link_local: false,
        };
        let (inside, index) = self.ensure_veth(&veth, netns, inner_nl).await?;
        neighbors(inner_nl, &inside, index, NEXT_HOP, NEXT_HOP_MAC).await?;
        default_routes(inner_nl, &inside, MAIN_TABLE, index, NEXT_HOP).await?;
        let (name, loopback) = inside.loopback()?;
        let wanted: Vec<_> = gate.addrs.iter().copied().map(host_address).collect();
        let found: Vec<_> = inside.own_addresses().into_iter().map(host_address).collect();
        set_addresses(inner_nl, loopback, &name, &found, &wanted).await
    }

    /// Removes a balancer's namespace and links.
    pub async fn remove_balancer(&self, balancer: &Balancer) -> Result<(), LinkError> {
        for host in [Some(&balancer.leg.host), balancer.gate.as_ref().map(|gate| &gate.host)] {
            if let Some(host) = host
                && let Some(link) = self.nl.link(host).await?
                && link.mark().is_some_and(|mark| matches!(mark, Mark::Balancer(_) | Mark::Gate))
            {
                self.remove_link(host).await?;
            }
        }
        self.namespaces.remove(&balancer.place.namespace())?;
        self.nl.writes().count();
        Ok(())
    }

    /// The balancers that are there.
    pub(super) async fn observe_balancers(
        &self,
        links: &LinkTable,
        forwarding: &[NeighbourMessage],
        found: &mut Vec<Object>,
    ) -> Result<(), LinkError> {
        for place in self.balancers()? {
            // One that vanishes between the two is not there.
            let Ok(netns) = self.balancer_netns(&place) else { continue };
            let tuned = netns.run(|| sysctls_are(SYSCTLS))?;
            let inside = Inside::observe(&netns, self.nl.writes()).await?;
            let mut balancer = observed(place, links, forwarding, &inside);
            balancer.intact &= tuned;
            found.push(Object::from(balancer));
        }
        Ok(())
    }
}

/// Everything that comes in by the leg is the namespace's own.
async fn take_all(nl: &Nl, inside: &Inside) -> Result<(), LinkError> {
    let (_, loopback) = inside.loopback()?;
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        if !inside.takes_all(family, OWN_TABLE, loopback) {
            let message = RouteNetlinkMessage::NewRoute(own_route(family, loopback));
            nl.replace(&format!("take all for our own in table {OWN_TABLE}"), message).await?;
        }
        if !inside.has_input_rule(family, LEG, OWN_TABLE) {
            let message = RouteNetlinkMessage::NewRule(input_rule(family));
            nl.replace(&format!("route what comes in by {LEG}"), message).await?;
        }
    }
    Ok(())
}

fn own_route(family: AddressFamily, loopback: u32) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family;
    message.header.table = RouteHeader::RT_TABLE_UNSPEC;
    message.header.protocol = RouteProtocol::Other(ROUTE_PROTOCOL);
    message.header.scope = RouteScope::Host;
    message.header.kind = RouteType::Local;
    message.attributes = vec![RouteAttribute::Oif(loopback), RouteAttribute::Table(OWN_TABLE)];
    message
}

fn input_rule(family: AddressFamily) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = family;
    message.header.action = RuleAction::ToTable;
    message.attributes = vec![
        RuleAttribute::Iifname(LEG.to_owned()),
        RuleAttribute::Table(OWN_TABLE),
        RuleAttribute::Priority(RULE_PRIORITY),
        RuleAttribute::Protocol(RouteProtocol::Other(ROUTE_PROTOCOL)),
    ];
    message
}

/// A balancer as it is: what can't be read shows as a difference.
fn observed(place: Place, links: &LinkTable, forwarding: &[NeighbourMessage], inside: &Inside) -> Balancer {
    let host_of = |inner: &str| {
        let inner = inside.links.get(&IfName::new(inner))?;
        let is_peer = |link: &&Link| link.peer == Some(inner.index) && is_ours(link, &place);
        links.iter().find(is_peer).map(|host| (host, inner))
    };
    let leg_is_settled = |(host, inner): &(&Link, &Link), leg: &BalancerLeg| {
        are_up(host, inner)
            && inside.link_local(inner.index).is_some()
            && is_settled_port(host, false, leg.mac, forwarding)
            && addresses_of(&inside.addresses, inner.index).len() == 2
            && [(leg.v4.addr().into(), leg.v4.prefix_len()), (leg.v6.addr().into(), leg.v6.prefix_len())]
                .into_iter()
                .all(|(ip, len)| inside.is_connected(inner.index, ip, len))
    };
    let (leg, leg_settled) = match host_of(LEG) {
        Some(pair) => {
            let leg = observed_leg(pair, links, inside);
            let settled = leg_is_settled(&pair, &leg);
            (leg, settled)
        }
        None => (lost_leg(&place), false),
    };
    let (gate, rest_settled) = match place {
        Place::Ingress => {
            let gate = host_of(GATE);
            let settled = gate.is_some_and(|(host, inner)| {
                are_up(host, inner) && inside.gateways(MAIN_TABLE, inner.index) == Some(NEXT_HOP) && {
                    NEXT_HOP.iter().all(|ip| inside.neighbor(inner.index, ip) == Some(NEXT_HOP_MAC))
                }
            });
            (Some(observed_gate(gate.map(|(host, _)| host), inside)), settled)
        }
        Place::Network(_) => (None, takes_all(inside)),
    };
    Balancer { place, leg, gate, intact: leg_settled && rest_settled }
}

fn is_ours(link: &Link, place: &Place) -> bool {
    match (link.mark(), place) {
        (Some(Mark::Balancer(network)), Place::Network(id)) => network == *id,
        (Some(Mark::Balancer(_) | Mark::Gate), Place::Ingress) => true,
        _ => false,
    }
}

fn are_up(host: &Link, inner: &Link) -> bool {
    host.up && host.quiet && inner.up && inner.quiet && inner.mtu == host.mtu
}

fn takes_all(inside: &Inside) -> bool {
    let Ok((_, loopback)) = inside.loopback() else { return false };
    [AddressFamily::Inet, AddressFamily::Inet6].into_iter().all(|family| {
        inside.takes_all(family, OWN_TABLE, loopback) && inside.has_input_rule(family, LEG, OWN_TABLE)
    })
}

fn observed_leg((host, inner): (&Link, &Link), links: &LinkTable, inside: &Inside) -> BalancerLeg {
    let none = (Ipv4Net::from(Ipv4Addr::UNSPECIFIED), Ipv6Net::from(Ipv6Addr::UNSPECIFIED));
    let (v4, v6) = first_of_each(&addresses_of(&inside.addresses, inner.index)).unwrap_or(none);
    BalancerLeg {
        host: host.name.clone(),
        mark: host.mark().unwrap_or(Mark::Gate),
        bridge: host.controller.map_or_else(|| IfName::new(""), |index| links.name(index)),
        mac: <[u8; 6]>::try_from(inner.mac.as_slice()).map_or(MacAddr([0; 6]), MacAddr),
        v4,
        v6,
        mtu: host.mtu,
    }
}

/// Stands for a leg that is gone, under the name it had.
fn lost_leg(place: &Place) -> BalancerLeg {
    BalancerLeg {
        host: match place {
            Place::Network(id) => IfName::balancer(id),
            Place::Ingress => IfName::new(""),
        },
        mark: Mark::Gate,
        bridge: IfName::new(""),
        mac: MacAddr([0; 6]),
        v4: Ipv4Addr::UNSPECIFIED.into(),
        v6: Ipv6Addr::UNSPECIFIED.into(),
        mtu: 0,
    }
}

fn observed_gate(host: Option<&Link>, inside: &Inside) -> Gate {
    Gate { host: IfName::gate(), mtu: host.map_or(0, |host| host.mtu), addrs: inside.own_addresses() }
}
