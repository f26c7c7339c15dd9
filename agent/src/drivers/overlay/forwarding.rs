//! Static forwarding entries and permanent neighbors on VXLAN devices.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::InfoKind;
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::AddressFamily;
use shoal_plan::name::Mark;
use shoal_plan::object::{Fdb, Neighbor, Object};
use shoal_types::MacAddr;

use super::Overlay;
use crate::drivers::link::{Link, LinkError, LinkTable, replace_all};

/// Whether a forwarding entry is of a device's own table, as that of a VXLAN device, and not of its bridge's.
pub(super) fn is_of_device(message: &NeighbourMessage) -> bool {
    message.header.flags.contains(NeighbourFlags::Own)
}

fn our_vxlan(links: &LinkTable, index: u32) -> Option<&Link> {
    links
        .at(index)
        .filter(|link| link.kind == Some(InfoKind::Vxlan) && matches!(link.mark(), Some(Mark::Vxlan(_))))
}

pub(super) fn mac_of(message: &NeighbourMessage) -> Option<MacAddr> {
    message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(bytes) => {
            <[u8; 6]>::try_from(bytes.as_slice()).ok().map(MacAddr)
        }
        _ => None,
    })
}

/// The destination. That of a forwarding entry comes as bytes, as its family is neither of the two.
pub(super) fn address_of(message: &NeighbourMessage) -> Option<IpAddr> {
    message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => Some((*ip).into()),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => Some((*ip).into()),
        NeighbourAttribute::Destination(NeighbourAddress::Other(bytes)) => match bytes.len() {
            4 => <[u8; 4]>::try_from(bytes.as_slice()).ok().map(|b| Ipv4Addr::from(b).into()),
            16 => <[u8; 16]>::try_from(bytes.as_slice()).ok().map(|b| Ipv6Addr::from(b).into()),
            _ => None,
        },
        _ => None,
    })
}

pub(super) fn destination(ip: IpAddr) -> NeighbourAttribute {
    NeighbourAttribute::Destination(match ip {
        IpAddr::V4(ip) => NeighbourAddress::Inet(ip),
        IpAddr::V6(ip) => NeighbourAddress::Inet6(ip),
    })
}

/// A permanent neighbor of a link.
pub(super) fn neighbor_message(index: u32, ip: IpAddr, mac: Option<MacAddr>) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = if ip.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    message.attributes.push(destination(ip));
    message.attributes.extend(mac.map(|mac| NeighbourAttribute::LinkLayerAddress(mac.0.to_vec())));
    message
}

/// A forwarding entry. NTF_SELF puts it into the VXLAN device's table; without it, it would land in the bridge's, and
/// its destination be dropped without an error.
fn fdb_message(index: u32, mac: MacAddr, vtep: Option<IpAddr>) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    message.header.flags = NeighbourFlags::Own;
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
    message.attributes.extend(vtep.map(destination));
    message
}

impl Overlay {
    /// The forwarding entries of our VXLAN devices.
    pub async fn forwarding(&self, links: &LinkTable) -> Result<Vec<Object>, LinkError> {
        let entry = |message: NeighbourMessage| {
            let link = our_vxlan(links, message.header.ifindex)?;
            let (mac, vtep) = (mac_of(&message)?, address_of(&message)?);
            is_of_device(&message).then(|| Object::Fdb(Fdb { link: link.name.clone(), mac, vtep }))
        };
        self.nl.neighbors_of(AddressFamily::Bridge, entry).await
    }

    /// The permanent neighbors of our VXLAN devices, of a family.
    pub async fn neighbors(
        &self,
        links: &LinkTable,
        family: AddressFamily,
    ) -> Result<Vec<Object>, LinkError> {
        let neighbor = |message: NeighbourMessage| {
            let link = our_vxlan(links, message.header.ifindex)?;
            let (mac, ip) = (mac_of(&message)?, address_of(&message)?);
            let is_permanent = message.header.state == NeighbourState::Permanent;
            is_permanent.then(|| Object::Neighbor(Neighbor { link: link.name.clone(), ip, mac }))
        };
        self.nl.neighbors_of(family, neighbor).await
    }

    /// Makes forwarding entries or neighbors in the namespace of the calling thread, or makes them so. Returns how many
    /// of the first of them are made.
    pub fn ensure_many(links: &LinkTable, objects: &[&Object]) -> Result<usize, LinkError> {
        let message = |object: &&Object| {
            Some(RouteNetlinkMessage::NewNeighbour(match object {
                Object::Fdb(o) => fdb_message(links.index(&o.link).ok()?, o.mac, Some(o.vtep)),
                Object::Neighbor(o) => neighbor_message(links.index(&o.link).ok()?, o.ip, Some(o.mac)),
                _ => return None,
            }))
        };
        replace_all(objects.iter().map_while(message))
            .map_err(|source| LinkError::Refused { action: "add forwarding entries".to_owned(), source })
    }

    /// Makes a forwarding entry, or makes it so.
    pub async fn ensure_fdb(&self, links: &LinkTable, fdb: &Fdb) -> Result<(), LinkError> {
        let index = links.index(&fdb.link)?;
        let message = RouteNetlinkMessage::NewNeighbour(fdb_message(index, fdb.mac, Some(fdb.vtep)));
        self.nl.replace(&format!("forward {} to {} on {}", fdb.mac, fdb.vtep, fdb.link), message).await
    }

    /// Removes a forwarding entry.
    pub async fn remove_fdb(&self, links: &LinkTable, fdb: &Fdb) -> Result<(), LinkError> {
        let Ok(index) = links.index(&fdb.link) else { return Ok(()) };
        let message = RouteNetlinkMessage::DelNeighbour(fdb_message(index, fdb.mac, None));
        self.nl.remove(&format!("stop forwarding {} on {}", fdb.mac, fdb.link), message).await
    }

    /// Makes a neighbor, or makes it so.
    pub async fn ensure_neighbor(&self, links: &LinkTable, neighbor: &Neighbor) -> Result<(), LinkError> {
        let index = links.index(&neighbor.link)?;
        let message =
            RouteNetlinkMessage::NewNeighbour(neighbor_message(index, neighbor.ip, Some(neighbor.mac)));
        self.nl.replace(&format!("add neighbor {} to {}", neighbor.ip, neighbor.link), message).await
    }

    /// Removes a neighbor.
    pub async fn remove_neighbor(&self, links: &LinkTable, neighbor: &Neighbor) -> Result<(), LinkError> {
        let Ok(index) = links.index(&neighbor.link) else { return Ok(()) };
        let message = RouteNetlinkMessage::DelNeighbour(neighbor_message(index, neighbor.ip, None));
        self.nl.remove(&format!("remove neighbor {} from {}", neighbor.ip, neighbor.link), message).await
    }
}
