//! Interfaces of tasks: a veth from a bridge into the task's namespace, with addresses and routes.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd};

use ipnet::{Ipv4Net, Ipv6Net};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoBridgePort, InfoData, InfoKind, InfoVeth, LinkAttribute, LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{NeighbourFlags, NeighbourMessage, NeighbourState};
use netlink_packet_route::route::{RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::{LinkBridgePort, LinkMessageBuilder, RouteMessageBuilder};
use shoal_plan::IfName;
use shoal_plan::name::Mark;
use shoal_plan::object::{Leg, LegKind};
use shoal_types::{DualAddr, MacAddr, TaskId};

use super::forwarding::{mac_of, neighbor_message};
use super::inside::Inside;
use super::{Overlay, addresses_of, first_of_each, set_addresses};
use crate::drivers::link::{Link, LinkError, LinkTable, Nl, link_message};
use crate::netns::Netns;

/// Routing table, in a task's namespace, of what has the ingress address as source.
pub const TASK_TABLE: u32 = 7378;
/// Before the kernel's own rule for the main table.
const RULE_PRIORITY: u32 = 7378;
/// Protocol number that routes and rules of ours carry.
pub(crate) const ROUTE_PROTOCOL: u8 = 73;
const MAIN_TABLE: u32 = 254;

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
        intact: false,
    };
    let inside = insides.get(&leg.task)?;
    let Some(inner) = link.peer.and_then(|index| inside.links.at(index)) else { return Some(leg) };
    leg.inner = inner.name.clone();
    leg.mac = <[u8; 6]>::try_from(inner.mac.as_slice()).map_or(leg.mac, MacAddr);
    let addresses = addresses_of(&inside.addresses, inner.index);
    (leg.v4, leg.v6) = first_of_each(&addresses).unwrap_or((leg.v4, leg.v6));
    leg.kind = observed_kind(inside, inner.index, egress, leg.v4, leg.v6);
    let fixed = egress || has_static_entry(forwarding, link.index, leg.mac);
    leg.intact = link.up
        && link.quiet
        && inner.up
        && inner.mtu == link.mtu
        && addresses.len() == 2
        && fixed
        && port_settings(egress).iter().all(|setting| link.port.contains(setting));
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

/// Bridge port of a task: nothing is learnt from it and nothing unknown is sent to it, its MAC has a static entry. On
/// the egress bridge tasks don't see each other.
fn port_settings(egress: bool) -> Vec<InfoBridgePort> {
    if egress {
        vec![InfoBridgePort::Isolated(true)]
    } else {
        vec![InfoBridgePort::Learning(false), InfoBridgePort::UnicastFlood(false)]
    }
}

fn is_static_entry(message: &NeighbourMessage, index: u32, mac: MacAddr) -> bool {
    message.header.ifindex == index
        && message.header.state == NeighbourState::Noarp
        && !message.header.flags.contains(NeighbourFlags::Own)
        && mac_of(message) == Some(mac)
}

fn has_static_entry(forwarding: &[NeighbourMessage], index: u32, mac: MacAddr) -> bool {
    forwarding.iter().any(|message| is_static_entry(message, index, mac))
}

fn static_entry(index: u32, mac: MacAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = index;
    message.header.state = NeighbourState::Noarp;
    message.header.flags = NeighbourFlags::Controller;
    message
        .attributes
        .push(netlink_packet_route::neighbour::NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
    message
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
        let mut inside = Inside::read(inner_nl).await?;
        let mut existing = self.nl.link(&leg.host).await?;
        if let Some(link) = &existing {
            link.claimable(&leg.mark)?;
            let inner = link.peer.and_then(|index| inside.links.at(index));
            if inner.is_none_or(|inner| inner.name != leg.inner) {
                self.remove_link(&leg.host).await?;
                existing = None;
            }
        }
        let link = if let Some(link) = existing {
            link
        } else {
            let link = self.create(&leg.host, new_veth(leg, netns)).await?;
            inside = Inside::read(inner_nl).await?;
            link
        };
        let bridge =
            self.nl.link(&leg.bridge).await?.ok_or_else(|| LinkError::Missing(leg.bridge.clone()))?;
        self.ensure_port(leg, &link, bridge.index).await?;
        let inner = inside.links.get(&leg.inner).ok_or_else(|| LinkError::Missing(leg.inner.clone()))?;
        ensure_inner(inner_nl, leg, inner, &inside).await?;
        match leg.kind {
            LegKind::Overlay => Ok(()),
            LegKind::Egress { gateway } => {
                default_routes(inner_nl, &inside, MAIN_TABLE, inner.index, gateway).await
            }
            LegKind::Ingress { router, router_mac } => {
                neighbors(inner_nl, &inside, inner.index, router, router_mac).await?;
                default_routes(inner_nl, &inside, TASK_TABLE, inner.index, router).await?;
                rules(inner_nl, &inside, leg).await
            }
        }
    }

    async fn ensure_port(&self, leg: &Leg, link: &Link, bridge: u32) -> Result<(), LinkError> {
        self.settle(link, &leg.mark, leg.mtu, Some(bridge)).await?;
        let egress = matches!(leg.kind, LegKind::Egress { .. });
        let settings = port_settings(egress);
        let is_port = link.controller == Some(bridge);
        if !is_port || !settings.iter().all(|setting| link.port.contains(setting)) {
            let port = LinkBridgePort::new(link.index);
            let builder =
                settings.into_iter().fold(port, LinkMessageBuilder::<LinkBridgePort>::append_info_data);
            let message = RouteNetlinkMessage::NewLink(builder.build());
            self.nl.change(&format!("configure port {}", leg.host), message).await?;
        }
        if !egress {
            let entries = self.nl.neighbors(AddressFamily::Bridge).await?;
            if !has_static_entry(&entries, link.index, leg.mac) {
                let message = RouteNetlinkMessage::NewNeighbour(static_entry(link.index, leg.mac));
                self.nl.replace(&format!("bind {} to {}", leg.mac, leg.host), message).await?;
            }
        }
        Ok(())
    }
}

/// A veth whose other end is made in the task's namespace under its final name.
fn new_veth(leg: &Leg, netns: &Netns) -> LinkMessage {
    let mut peer = LinkMessage::default();
    peer.attributes = vec![
        LinkAttribute::NetNsFd(netns.as_fd().as_raw_fd()),
        LinkAttribute::IfName(leg.inner.to_string()),
        LinkAttribute::Address(leg.mac.0.to_vec()),
        LinkAttribute::Mtu(leg.mtu),
    ];
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(leg.host.to_string()),
        LinkAttribute::Mtu(leg.mtu),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]),
    ];
    message
}

async fn ensure_inner(nl: &Nl, leg: &Leg, inner: &Link, inside: &Inside) -> Result<(), LinkError> {
    let mut attributes = Vec::new();
    if inner.mac != leg.mac.0 {
        attributes.push(LinkAttribute::Address(leg.mac.0.to_vec()));
    }
    if inner.mtu != leg.mtu {
        attributes.push(LinkAttribute::Mtu(leg.mtu));
    }
    let what = format!("{} of task {}", leg.inner, leg.task);
    if !attributes.is_empty() || !inner.quiet {
        let message = RouteNetlinkMessage::SetLink(link_message(inner.index, attributes, false));
        nl.change(&format!("configure {what}"), message).await?;
    }
    if !inner.up {
        let message = RouteNetlinkMessage::SetLink(link_message(inner.index, Vec::new(), true));
        nl.change(&format!("set {what} up"), message).await?;
    }
    let wanted: [(IpAddr, u8); 2] =
        [(leg.v4.addr().into(), leg.v4.prefix_len()), (leg.v6.addr().into(), leg.v6.prefix_len())];
    set_addresses(nl, inner.index, &leg.inner, &addresses_of(&inside.addresses, inner.index), &wanted).await
}

async fn default_routes(
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

async fn neighbors(
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
