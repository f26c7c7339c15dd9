//! Interfaces of tasks: a veth from a bridge into the task's namespace, with addresses and routes.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::neighbour::NeighbourMessage;
use netlink_packet_route::route::{RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::AddressFamily;
use shoal_plan::IfName;
use shoal_plan::name::Mark;
use shoal_plan::object::{Leg, LegKind};
use shoal_types::{DualAddr, MacAddr, TaskId};

use super::forwarding::neighbor_message;
use super::inside::Inside;
use super::veth::{Port, Veth, is_settled_port};
use super::{Overlay, addresses_of, first_of_each};
use crate::drivers::link::{Link, LinkError, LinkTable, Nl};
use crate::netns::Netns;

/// Routing table, in a task's namespace, of what has the ingress address as source.
pub const TASK_TABLE: u32 = 7378;
/// Before the kernel's own rule for the main table.
const RULE_PRIORITY: u32 = 7378;
/// Protocol number that routes and rules of ours carry.
pub(crate) const ROUTE_PROTOCOL: u8 = 73;
pub(super) const MAIN_TABLE: u32 = 254;

/// Reads the leg behind a link, if the link is the host side of one.
pub(super) fn observe(
    link: &Link,
    links: &LinkTable,
    forwarding: &[NeighbourMessage],
    insides: &BTreeMap<TaskId, Inside>,
) -> Option<Leg> {
    let (mark, task, egress) = match link.mark()? {
        Mark::Veth(task, endpoint) => (Mark::Veth(task.clone(), endpoint), task, false),
        Mark::Egress(task) => (Mark::Egress(task.clone()), task, true),
        _ => return None,
    };
    let mut leg = Leg {
        task,
        host: link.name.clone(),
        mark,
        inner: IfName::new(""),
        mac: MacAddr([0; 6]),
        v4: Ipv4Net::from(Ipv4Addr::UNSPECIFIED),
        v6: Ipv6Net::from(Ipv6Addr::UNSPECIFIED),
        mtu: link.mtu,
        bridge: link.controller.map_or_else(|| IfName::new(""), |index| links.name(index)),
        kind: LegKind::Overlay,
        link_local: false,
        intact: false,
    };
    let inside = insides.get(&leg.task)?;
    let Some(inner) = link.peer.and_then(|index| inside.links.at(index)) else { return Some(leg) };
    leg.inner = inner.name.clone();
    leg.mac = <[u8; 6]>::try_from(inner.mac.as_slice()).map_or(leg.mac, MacAddr);
    let addresses = addresses_of(&inside.addresses, inner.index);
    (leg.v4, leg.v6) = first_of_each(&addresses).unwrap_or((leg.v4, leg.v6));
    leg.link_local = inside.link_local(inner.index).is_some();
    leg.kind = observed_kind(inside, inner.index, egress, leg.v4, leg.v6);
    leg.intact = link.up
        && link.quiet
        && inner.up
        && inner.mtu == link.mtu
        && addresses.len() == 2
        && addresses.iter().all(|(ip, len)| inside.is_connected(inner.index, *ip, *len))
        && is_settled_port(link, egress, leg.mac, forwarding);
    Some(leg)
}

fn observed_kind(inside: &Inside, index: u32, egress: bool, v4: Ipv4Net, v6: Ipv6Net) -> LegKind {
    if egress {
        return inside
            .gateways(MAIN_TABLE, index)
            .map_or(LegKind::Overlay, |gateway| LegKind::Egress { gateway });
    }
    let routed = inside.has_rule(v4.addr().into()) && inside.has_rule(v6.addr().into());
    let Some(router) = inside.gateways(TASK_TABLE, index).filter(|_| routed) else { return LegKind::Overlay };
    let macs: Vec<_> = router.iter().map(|ip| inside.neighbor(index, ip)).collect();
    match macs.as_slice() {
        [Some(v4), Some(v6)] if v4 == v6 => LegKind::Ingress { router, router_mac: *v4 },
        _ => LegKind::Overlay,
    }
}

impl Overlay {
    /// Makes a task's interface, or makes it so. Its namespace must be there.
    pub async fn ensure_leg(&self, leg: &Leg) -> Result<(), LinkError> {
        let netns = self.netns(&leg.task)?;
        let connection = netns.netlink()?;
        let inner_nl = Nl::new(connection.handle(), self.nl.writes());
        let outcome = self.ensure_leg_in(leg, &netns, &inner_nl).await;
        connection.close().await;
        outcome
    }

    async fn ensure_leg_in(&self, leg: &Leg, netns: &Netns, inner_nl: &Nl) -> Result<(), LinkError> {
        let veth = Veth {
            is_leg: true,
            host: &leg.host,
            mark: &leg.mark,
            port: Some(Port { bridge: &leg.bridge, isolated: matches!(leg.kind, LegKind::Egress { .. }) }),
            inner: leg.inner.clone(),
            mac: Some(leg.mac),
            mtu: leg.mtu,
            addresses: vec![
                (leg.v4.addr().into(), leg.v4.prefix_len()),
                (leg.v6.addr().into(), leg.v6.prefix_len()),
            ],
            link_local: leg.link_local,
        };
        let (inside, index) = self.ensure_veth(&veth, netns, inner_nl).await?;
        match leg.kind {
            LegKind::Overlay => Ok(()),
            LegKind::Egress { gateway } => {
                default_routes(inner_nl, &inside, MAIN_TABLE, index, gateway).await
            }
            LegKind::Ingress { router, router_mac } => {
                neighbors(inner_nl, &inside, index, router, router_mac).await?;
                default_routes(inner_nl, &inside, TASK_TABLE, index, router).await?;
                rules(inner_nl, &inside, leg).await
            }
        }
    }
}

/// Default routes of both families.
pub(super) async fn default_routes(
    nl: &Nl,
    inside: &Inside,
    table: u32,
    index: u32,
    gateway: DualAddr,
) -> Result<(), LinkError> {
    if inside.gateways(table, index) == Some(gateway) {
        return Ok(());
    }
    for via in gateway.iter() {
        let message = RouteNetlinkMessage::NewRoute(default_route(table, index, via));
        nl.replace(&format!("add the default route by {via} to table {table}"), message).await?;
    }
    Ok(())
}

fn default_route(table: u32, index: u32, via: IpAddr) -> RouteMessage {
    let mut message = match via {
        IpAddr::V4(via) => {
            RouteMessageBuilder::<Ipv4Addr>::new().output_interface(index).gateway(via).onlink().build()
        }
        IpAddr::V6(via) => {
            RouteMessageBuilder::<Ipv6Addr>::new().output_interface(index).gateway(via).onlink().build()
        }
    };
    message.header.table = RouteHeader::RT_TABLE_UNSPEC;
    message.header.protocol = RouteProtocol::Other(ROUTE_PROTOCOL);
    message.header.scope = RouteScope::Universe;
    message.header.kind = RouteType::Unicast;
    message.attributes.push(netlink_packet_route::route::RouteAttribute::Table(table));
    message
}

/// Permanent neighbors of both families.
pub(super) async fn neighbors(
    nl: &Nl,
    inside: &Inside,
    index: u32,
    router: DualAddr,
    mac: MacAddr,
) -> Result<(), LinkError> {
    for ip in router.iter().filter(|ip| inside.neighbor(index, *ip) != Some(mac)) {
        let message = RouteNetlinkMessage::NewNeighbour(neighbor_message(index, ip, Some(mac)));
        nl.replace(&format!("add the router {ip} as neighbor"), message).await?;
    }
    Ok(())
}

async fn rules(nl: &Nl, inside: &Inside, leg: &Leg) -> Result<(), LinkError> {
    let addresses: [IpAddr; 2] = [leg.v4.addr().into(), leg.v6.addr().into()];
    for ip in addresses.into_iter().filter(|ip| !inside.has_rule(*ip)) {
        let mut message = RuleMessage::default();
        message.header.family = if ip.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        message.header.src_len = if ip.is_ipv4() { 32 } else { 128 };
        message.header.action = RuleAction::ToTable;
        message.attributes = vec![
            RuleAttribute::Source(ip),
            RuleAttribute::Table(TASK_TABLE),
            RuleAttribute::Priority(RULE_PRIORITY),
            RuleAttribute::Protocol(RouteProtocol::Other(ROUTE_PROTOCOL)),
        ];
        nl.replace(&format!("route by source {ip}"), RouteNetlinkMessage::NewRule(message)).await?;
    }
    Ok(())
}
