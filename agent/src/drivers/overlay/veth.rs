//! A veth into a namespace of ours: one side on the host, marked and perhaps a port of a bridge, the other inside.

use std::net::IpAddr;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoBridgePort, LinkAttribute};
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState};
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::{LinkBridgePort, LinkMessageBuilder};
use shoal_plan::IfName;
use shoal_plan::name::Mark;
use shoal_types::MacAddr;

use super::forwarding::mac_of;
use super::inside::Inside;
use super::{Overlay, address_message, addresses_of, connected, set_addresses};
use crate::drivers::link::{Link, LinkError, Nl, link_message};
use crate::netns::Netns;

/// Length of the prefix that all of a link share.
const LINK_LOCAL_PREFIX: u8 = 64;

/// A veth as it is wanted.
#[derive(Debug)]
pub(super) struct Veth<'a> {
    /// Whether it is a task's, and may be of netkit.
    pub(super) is_leg: bool,
    /// Name on the host.
    pub(super) host: &'a IfName,
    /// Ownership mark on the host's side.
    pub(super) mark: &'a Mark,
    /// The bridge its host side is a port of.
    pub(super) port: Option<Port<'a>>,
    /// Name inside.
    pub(super) inner: IfName,
    /// MAC inside; the kernel's choice if none.
    pub(super) mac: Option<MacAddr>,
    /// MTU of both sides.
    pub(super) mtu: u32,
    /// Addresses inside.
    pub(super) addresses: Vec<(IpAddr, u8)>,
    /// Whether it has the link-local address of its MAC inside.
    pub(super) link_local: bool,
}

/// What the host's side of a veth is on a bridge.
#[derive(Debug, Clone, Copy)]
pub(super) struct Port<'a> {
    /// The bridge.
    pub(super) bridge: &'a IfName,
    /// Kept apart from other such ports.
    pub(super) isolated: bool,
}

/// On an overlay nothing is learnt from a port and nothing unknown is sent to it: its MAC has a static entry. On the
/// egress bridge ports don't see each other.
fn settings(isolated: bool) -> Vec<InfoBridgePort> {
    if isolated {
        vec![InfoBridgePort::Isolated(true)]
    } else {
        vec![InfoBridgePort::Learning(false), InfoBridgePort::UnicastFlood(false)]
    }
}

/// Whether a link has all that a port needs.
pub(super) fn is_settled_port(
    link: &Link,
    isolated: bool,
    mac: MacAddr,
    forwarding: &[NeighbourMessage],
) -> bool {
    settings(isolated).iter().all(|setting| link.port.contains(setting))
        && (isolated || has_static_entry(forwarding, link.index, mac))
}

fn has_static_entry(forwarding: &[NeighbourMessage], index: u32, mac: MacAddr) -> bool {
    forwarding.iter().any(|message| {
        message.header.ifindex == index
            && message.header.state == NeighbourState::Noarp
            && !message.header.flags.contains(NeighbourFlags::Own)
            && mac_of(message) == Some(mac)
    })
}

fn static_entry(index: u32, mac: MacAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = index;
    message.header.state = NeighbourState::Noarp;
    message.header.flags = NeighbourFlags::Controller;
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
    message
}

impl Overlay {
    /// Makes a veth, or makes it so. Returns what is inside the namespace, with the index of the veth's inner side.
    pub(super) async fn ensure_veth(
        &self,
        veth: &Veth<'_>,
        netns: &Netns,
        inner_nl: &Nl,
    ) -> Result<(Inside, u32), LinkError> {
        let mut inside = Inside::read(inner_nl).await?;
        let mut existing = self.nl.link(veth.host).await?;
        if let Some(link) = &existing {
            link.claimable(veth.mark)?;
            let inner = link.peer.and_then(|index| inside.links.at(index));
            if inner.is_none_or(|inner| inner.name != veth.inner) {
                self.remove_link(veth.host).await?;
                existing = None;
            }
        }
        let link = if let Some(link) = existing {
            link
        } else {
            let link = self.make_pair(veth, netns).await?;
            inside = Inside::read(inner_nl).await?;
            link
        };
        match veth.port {
            Some(port) => self.ensure_port(veth, &link, port).await?,
            None => self.settle(&link, veth.mark, veth.mtu, None).await?,
        }
        let inner = inside.links.get(&veth.inner).ok_or_else(|| LinkError::Missing(veth.inner.clone()))?;
        ensure_inner(inner_nl, veth, inner, &inside).await?;
        let index = inner.index;
        Ok((inside, index))
    }

    async fn ensure_port(&self, veth: &Veth<'_>, link: &Link, port: Port<'_>) -> Result<(), LinkError> {
        let bridge =
            self.nl.link(port.bridge).await?.ok_or_else(|| LinkError::Missing(port.bridge.clone()))?.index;
        self.settle(link, veth.mark, veth.mtu, Some(bridge)).await?;
        let settings = settings(port.isolated);
        let is_port = link.controller == Some(bridge);
        if !is_port || !settings.iter().all(|setting| link.port.contains(setting)) {
            let port = LinkBridgePort::new(link.index);
            let builder =
                settings.into_iter().fold(port, LinkMessageBuilder::<LinkBridgePort>::append_info_data);
            let message = RouteNetlinkMessage::NewLink(builder.build());
            self.nl.change(&format!("configure port {}", veth.host), message).await?;
        }
        if let Some(mac) = veth.mac.filter(|_| !port.isolated) {
            let entries = self.nl.neighbors(AddressFamily::Bridge).await?;
            if !has_static_entry(&entries, link.index, mac) {
                let message = RouteNetlinkMessage::NewNeighbour(static_entry(link.index, mac));
                self.nl.replace(&format!("bind {mac} to {}", veth.host), message).await?;
            }
        }
        Ok(())
    }
}

async fn ensure_inner(nl: &Nl, veth: &Veth<'_>, inner: &Link, inside: &Inside) -> Result<(), LinkError> {
    let mut attributes = Vec::new();
    if let Some(mac) = veth.mac
        && inner.mac != mac.0
    {
        attributes.push(LinkAttribute::Address(mac.0.to_vec()));
    }
    if inner.mtu != veth.mtu {
        attributes.push(LinkAttribute::Mtu(veth.mtu));
    }
    let what = format!("{} behind {}", veth.inner, veth.host);
    if !attributes.is_empty() || !inner.quiet {
        let message = RouteNetlinkMessage::SetLink(link_message(inner.index, attributes, false));
        nl.change(&format!("configure {what}"), message).await?;
    }
    if !inner.up {
        let message = RouteNetlinkMessage::SetLink(link_message(inner.index, Vec::new(), true));
        nl.change(&format!("set {what} up"), message).await?;
    }
    let found = addresses_of(&inside.addresses, inner.index);
    set_addresses(nl, inner.index, &veth.inner, &found, &veth.addresses).await?;
    // Those of addresses that were there already: with the others, and with a link that comes up, the kernel makes them.
    let lost = veth.addresses.iter().copied().filter(|(ip, len)| {
        inner.up && found.contains(&(*ip, *len)) && !inside.is_connected(inner.index, *ip, *len)
    });
    connected::restore(nl, &veth.inner, inner.index, lost).await?;
    let Some(mac) = veth.mac else { return Ok(()) };
    match (veth.link_local, inside.link_local(inner.index)) {
        (true, None) => {
            let message = address_message(inner.index, mac.link_local().into(), LINK_LOCAL_PREFIX);
            let message = RouteNetlinkMessage::NewAddress(message);
            nl.replace(&format!("add the link-local address to {what}"), message).await
        }
        (false, Some(ip)) => {
            let message = address_message(inner.index, ip.into(), LINK_LOCAL_PREFIX);
            let message = RouteNetlinkMessage::DelAddress(message);
            nl.remove(&format!("remove the link-local address from {what}"), message).await
        }
        _ => Ok(()),
    }
}
