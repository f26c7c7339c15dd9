//! What is inside a task's namespace, as netlink shows it.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::neighbour::{NeighbourMessage, NeighbourState};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};
use netlink_packet_route::rule::{RuleAttribute, RuleMessage};
use rtnetlink::packet_route::AddressFamily;
use shoal_plan::IfName;
use shoal_types::{DualAddr, MacAddr};

use super::addresses_of;
use super::forwarding::{address_of, mac_of};
use super::leg::TASK_TABLE;
use crate::drivers::link::{LinkError, LinkTable, Nl, Writes};
use crate::netns::Netns;

/// The links, addresses, routes, rules and neighbors of a namespace.
#[derive(Debug)]
pub(super) struct Inside {
    pub(super) links: LinkTable,
    pub(super) addresses: Vec<AddressMessage>,
    routes: Vec<RouteMessage>,
    rules: Vec<RuleMessage>,
    neighbors: Vec<NeighbourMessage>,
}

impl Inside {
    /// Looks into a namespace over a connection of its own, closed again before this returns.
    pub(super) async fn observe(netns: &Netns, writes: &Writes) -> Result<Self, LinkError> {
        let connection = netns.netlink()?;
        let inside = Self::read(&Nl::new(connection.handle(), writes)).await;
        connection.close().await;
        inside
    }

    /// Looks through a connection that is there.
    pub(super) async fn read(nl: &Nl) -> Result<Self, LinkError> {
        let (mut routes, mut rules, mut neighbors) = (Vec::new(), Vec::new(), Vec::new());
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            routes.extend(nl.routes(family).await?);
            rules.extend(nl.rules(family).await?);
            neighbors.extend(nl.neighbors(family).await?);
        }
        Ok(Self { links: nl.links().await?, addresses: nl.addresses().await?, routes, rules, neighbors })
    }

    /// The link-local address of a link.
    pub(super) fn link_local(&self, index: u32) -> Option<Ipv6Addr> {
        let of_link = self.addresses.iter().filter(|message| message.header.index == index);
        of_link.flat_map(|message| &message.attributes).find_map(|attribute| match attribute {
            AddressAttribute::Address(IpAddr::V6(ip)) if ip.is_unicast_link_local() => Some(*ip),
            _ => None,
        })
    }

    /// The loopback.
    pub(super) fn loopback(&self) -> Result<(IfName, u32), LinkError> {
        let name = IfName::new("lo");
        self.links.index(&name).map(|index| (name, index))
    }

    /// The addresses of the loopback that are not the kernel's own.
    pub(super) fn own_addresses(&self) -> BTreeSet<IpAddr> {
        let Ok((_, loopback)) = self.loopback() else { return BTreeSet::new() };
        let addresses = addresses_of(&self.addresses, loopback).into_iter().map(|(ip, _)| ip);
        addresses.filter(|ip| !ip.is_loopback()).collect()
    }

    /// The gateways of the default routes in a table that leave by a link.
    pub(super) fn gateways(&self, table: u32, index: u32) -> Option<DualAddr> {
        let mut found = (None, None);
        for route in self.routes.iter().filter(|route| is_default(route, table, index)) {
            for attribute in &route.attributes {
                match attribute {
                    RouteAttribute::Gateway(RouteAddress::Inet(ip)) => found.0 = Some(*ip),
                    RouteAttribute::Gateway(RouteAddress::Inet6(ip)) => found.1 = Some(*ip),
                    _ => {}
                }
            }
        }
        Some(DualAddr { v4: found.0?, v6: found.1? })
    }

    /// Whether the subnet of an address at a link is reached by that link.
    pub(super) fn is_connected(&self, index: u32, ip: IpAddr, len: u8) -> bool {
        let Ok(net) = IpNet::new(ip, len) else { return true };
        let subnet = RouteAttribute::Destination(net.network().into());
        self.routes.iter().any(|route| {
            route.header.destination_prefix_length == len
                && route.header.kind == RouteType::Unicast
                && route.attributes.contains(&subnet)
                && route.attributes.contains(&RouteAttribute::Oif(index))
        })
    }

    /// Whether a table makes every address of a family the namespace's own.
    pub(super) fn takes_all(&self, family: AddressFamily, table: u32, loopback: u32) -> bool {
        self.routes.iter().any(|route| {
            route.header.address_family == family
                && route.header.kind == RouteType::Local
                && is_default(route, table, loopback)
        })
    }

    /// Whether what comes in by a link is looked up in a table.
    pub(super) fn has_input_rule(&self, family: AddressFamily, link: &str, table: u32) -> bool {
        self.rules.iter().any(|rule| {
            rule.header.family == family
                && rule.attributes.contains(&RuleAttribute::Iifname(link.to_owned()))
                && rule.attributes.contains(&RuleAttribute::Table(table))
        })
    }

    /// Whether what comes from an address is looked up in the task table.
    pub(super) fn has_rule(&self, from: IpAddr) -> bool {
        self.rules.iter().any(|rule| {
            rule.attributes.contains(&RuleAttribute::Source(from))
                && rule.attributes.contains(&RuleAttribute::Table(TASK_TABLE))
        })
    }

    /// The MAC of a permanent neighbor.
    pub(super) fn neighbor(&self, index: u32, ip: IpAddr) -> Option<MacAddr> {
        self.neighbors
            .iter()
            .filter(|message| {
                message.header.ifindex == index && message.header.state == NeighbourState::Permanent
            })
            .find(|message| address_of(message) == Some(ip))
            .and_then(mac_of)
    }
}

/// An address as it stands on a loopback.
pub(super) fn host_address(ip: IpAddr) -> (IpAddr, u8) {
    (ip, if ip.is_ipv4() { 32 } else { 128 })
}

fn is_default(route: &RouteMessage, table: u32, index: u32) -> bool {
    let of_table = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    route.header.destination_prefix_length == 0
        && of_table.unwrap_or_else(|| route.header.table.into()) == table
        && route.attributes.contains(&RouteAttribute::Oif(index))
}
