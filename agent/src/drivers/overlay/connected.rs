//! Routes to the subnets that links of ours are in. The kernel makes them with the addresses, and does not make them again
//! when somebody has removed one.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::{
    RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::RouteMessageBuilder;
use shoal_plan::IfName;

use super::leg::MAIN_TABLE;
use crate::drivers::link::{Link, LinkError, LinkTable, Nl};

/// Priority that the kernel gives such a route of IPv6 (`IP6_RT_PRIO_ADDRCONF`).
const PRIORITY: u32 = 256;

/// The route to the subnet of an address at a link, as the kernel makes it.
pub(super) fn route(index: u32, ip: IpAddr, len: u8) -> RouteMessage {
    let mut message = match ip {
        IpAddr::V4(ip) => RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(Ipv4Net::new_assert(ip, len).network(), len)
            .output_interface(index)
            .pref_source(ip)
            .build(),
        IpAddr::V6(ip) => RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(Ipv6Net::new_assert(ip, len).network(), len)
            .output_interface(index)
            .priority(PRIORITY)
            .build(),
    };
    message.header.table = RouteHeader::RT_TABLE_UNSPEC;
    message.header.protocol = RouteProtocol::Kernel;
    message.header.scope = if ip.is_ipv4() { RouteScope::Link } else { RouteScope::Universe };
    message.header.kind = RouteType::Unicast;
    message.attributes.push(RouteAttribute::Table(MAIN_TABLE));
    message
}

/// Makes those of the routes again that a link's addresses should have and have not.
pub(super) async fn restore(
    nl: &Nl,
    name: &IfName,
    index: u32,
    lost: impl IntoIterator<Item = (IpAddr, u8)>,
) -> Result<(), LinkError> {
    for (ip, len) in lost {
        let message = RouteNetlinkMessage::NewRoute(route(index, ip, len));
        nl.replace(&format!("route to the subnet of {ip}/{len} by {name}"), message).await?;
    }
    Ok(())
}

/// Which of a bridge's subnets the node has no route to. A host may have any number of routes: the kernel is asked for the
/// way to one address. Without a port there may be none.
pub(super) async fn lost(
    nl: &Nl,
    bridge: &Link,
    links: &LinkTable,
    addresses: &[(IpAddr, u8)],
) -> Result<Vec<(IpAddr, u8)>, LinkError> {
    let mut lost = Vec::new();
    if !bridge.up || !links.iter().any(|link| link.up && link.controller == Some(bridge.index)) {
        return Ok(lost);
    }
    for (ip, len) in addresses {
        // A neighbor's address: the bridge's own is local, and so is a router's for the subnet, the first of IPv6.
        let is_neighbor = |net: &IpNet, host: &IpAddr| host != ip && *host != net.network();
        let neighbor =
            IpNet::new(*ip, *len).ok().and_then(|net| net.hosts().find(|host| is_neighbor(&net, host)));
        if let Some(neighbor) = neighbor
            && nl.way_to(neighbor).await? != Some(bridge.index)
        {
            lost.push((*ip, *len));
        }
    }
    Ok(lost)
}
