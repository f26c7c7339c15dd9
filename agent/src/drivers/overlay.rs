//! The overlay in the kernel: bridges and VXLAN devices, their forwarding entries and neighbors, and the interfaces
//! of tasks and balancers. This baseline carries traffic by itself; `ip`, `bridge` and `tcpdump` show all of it.

mod balancer;
mod connected;
mod forwarding;
mod inside;
mod leg;
mod pair;
mod sandbox;
mod veth;

use std::net::IpAddr;

use ipnet::{Ipv4Net, Ipv6Net};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{
    BridgeStpState, InfoBridge, InfoBridgePort, InfoKind, InfoVxlan, LinkAttribute, LinkMessage,
};
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::{LinkBridge, LinkBridgePort, LinkMessageBuilder, LinkVxlan};
use shoal_plan::name::Mark;
use shoal_plan::object::{Bridge, Object, Vxlan};
use shoal_plan::{IfName, Objects};
use shoal_types::Vni;

use pair::Pairs;

use super::link::{Link, LinkError, LinkTable, Nl, link_message};
use crate::netns::NetnsDir;

pub use leg::TASK_TABLE;

/// The driver: links in the node's own namespace, and in those of its tasks.
#[derive(Debug)]
pub struct Overlay {
    nl: Nl,
    namespaces: NetnsDir,
    pairs: Pairs,
}

/// An address to be put on a link: no duplicate detection, as addresses come from the cluster's state.
pub(crate) fn address_message(index: u32, ip: IpAddr, prefix_len: u8) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.index = index;
    message.header.prefix_len = prefix_len;
    message.attributes.push(AddressAttribute::Address(ip));
    if ip.is_ipv4() {
        message.header.family = AddressFamily::Inet;
        message.attributes.push(AddressAttribute::Local(ip));
    } else {
        message.header.family = AddressFamily::Inet6;
        message.header.flags = netlink_packet_route::address::AddressHeaderFlags::Nodad;
    }
    message
}

/// The addresses of a link; link-local ones aside.
pub fn addresses_of(all: &[AddressMessage], index: u32) -> Vec<(IpAddr, u8)> {
    all.iter()
        .filter(|message| message.header.index == index)
        .filter_map(|message| {
            let find = |local: bool| {
                message.attributes.iter().find_map(|attribute| match attribute {
                    AddressAttribute::Local(ip) if local => Some(*ip),
                    AddressAttribute::Address(ip) if !local => Some(*ip),
                    _ => None,
                })
            };
            let ip = find(true).or_else(|| find(false))?;
            let link_local = matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local());
            (!link_local).then_some((ip, message.header.prefix_len))
        })
        .collect()
}

/// The first address of each family, as nets.
fn first_of_each(addresses: &[(IpAddr, u8)]) -> Option<(Ipv4Net, Ipv6Net)> {
    let v4 = addresses.iter().find_map(|(ip, len)| match ip {
        IpAddr::V4(ip) => Ipv4Net::new(*ip, *len).ok(),
        IpAddr::V6(_) => None,
    })?;
    let v6 = addresses.iter().find_map(|(ip, len)| match ip {
        IpAddr::V6(ip) => Ipv6Net::new(*ip, *len).ok(),
        IpAddr::V4(_) => None,
    })?;
    Some((v4, v6))
}

impl Overlay {
    /// Over the node's own namespace, with the tasks' ones under a run directory.
    pub fn new(nl: Nl, namespaces: NetnsDir) -> Self {
        Self { nl, namespaces, pairs: Pairs::new(Some(false)) }
    }

    /// With interfaces of tasks as netkit devices, or not (as before); none: where the kernel has them.
    #[must_use]
    pub fn with_netkit(self, netkit: Option<bool>) -> Self {
        Self { pairs: Pairs::new(netkit), ..self }
    }

    /// The netlink handle of the node's namespace.
    pub fn netlink(&self) -> &Nl {
        &self.nl
    }

    /// The tasks' namespaces.
    pub fn namespaces(&self) -> &NetnsDir {
        &self.namespaces
    }

    /// What is ours of the overlay, but for forwarding entries and neighbors.
    pub async fn observe(&self, links: &LinkTable) -> Result<Objects, LinkError> {
        let addresses = self.nl.addresses().await?;
        let mut found: Vec<Object> = Vec::new();
        for link in links.iter() {
            match (link.mark(), &link.kind) {
                (Some(mark @ (Mark::Bridge(_) | Mark::EgressBridge)), Some(InfoKind::Bridge)) => {
                    let mut bridge = observed_bridge(link, mark, &addresses);
                    let own = addresses_of(&addresses, link.index);
                    bridge.intact &= connected::lost(&self.nl, link, links, &own).await?.is_empty();
                    found.push(Object::from(bridge));
                }
                (Some(mark @ Mark::Vxlan(_)), Some(InfoKind::Vxlan)) => {
                    found.extend(observed_vxlan(link, mark, links).map(Object::from));
                }
                _ => {}
            }
        }
        // Those of bridges: where the bridge has found the ports of tasks and balancers to be.
        let of_bridges = |message| (!forwarding::is_of_device(&message)).then_some(message);
        let forwarding = self.nl.neighbors_of(AddressFamily::Bridge, of_bridges).await?;
        self.observe_sandboxes(links, &forwarding, &mut found).await?;
        self.observe_balancers(links, &forwarding, &mut found).await?;
        Ok(found.into_iter().map(|object| (object.key(), object)).collect())
    }

    /// Makes a bridge, or makes it so.
    pub async fn ensure_bridge(&self, bridge: &Bridge) -> Result<(), LinkError> {
        let name = &bridge.name;
        let link = match self.nl.link(name).await? {
            Some(link) => link,
            None => self.create(name, new_bridge(bridge)).await?,
        };
        link.claimable(&bridge.mark)?;
        let settings = [InfoBridge::StpState(BridgeStpState::Disabled), InfoBridge::MulticastSnooping(false)];
        if !settings.iter().all(|setting| link.bridge.contains(setting)) {
            let mut message = LinkMessageBuilder::<LinkBridge>::new(name.as_str())
                .stp_state(BridgeStpState::Disabled)
                .mcast_snooping(false)
                .build();
            message.header.index = link.index;
            self.nl.change(&format!("configure {name}"), RouteNetlinkMessage::NewLink(message)).await?;
        }
        self.settle(&link, &bridge.mark, bridge.mtu, None).await?;
        if let Some((v4, v6)) = bridge.gateway {
            let own = [(v4.addr().into(), v4.prefix_len()), (v6.addr().into(), v6.prefix_len())];
            self.ensure_addresses(link.index, name, &own).await?;
            let lost = connected::lost(&self.nl, &link, &self.nl.links().await?, &own).await?;
            connected::restore(&self.nl, name, link.index, lost).await?;
        }
        Ok(())
    }

    /// Makes a VXLAN device, or makes it so; one with another identity is replaced.
    pub async fn ensure_vxlan(&self, vxlan: &Vxlan) -> Result<(), LinkError> {
        let name = &vxlan.name;
        let mut existing = self.nl.link(name).await?;
        if let Some(link) = &existing {
            link.claimable(&vxlan.mark)?;
            if !has_identity(link, vxlan) {
                self.remove_link(name).await?;
                existing = None;
            }
        }
        let link = match existing {
            Some(link) => link,
            None => self.create(name, new_vxlan(vxlan)).await?,
        };
        let bridge =
            self.nl.link(&vxlan.bridge).await?.ok_or_else(|| LinkError::Missing(vxlan.bridge.clone()))?;
        self.settle(&link, &vxlan.mark, vxlan.mtu, Some(bridge.index)).await?;
        let learning_off =
            link.controller == Some(bridge.index) && link.port.contains(&InfoBridgePort::Learning(false));
        if !learning_off {
            let message = LinkBridgePort::new(link.index).learning(false).build();
            self.nl.change(&format!("configure port {name}"), RouteNetlinkMessage::NewLink(message)).await?;
        }
        Ok(())
    }

    /// Removes a link.
    pub async fn remove_link(&self, name: &IfName) -> Result<(), LinkError> {
        let Some(link) = self.nl.link(name).await? else { return Ok(()) };
        let mut message = LinkMessage::default();
        message.header.index = link.index;
        self.nl.remove(&format!("remove {name}"), RouteNetlinkMessage::DelLink(message)).await
    }

    async fn create(&self, name: &IfName, message: LinkMessage) -> Result<Link, LinkError> {
        self.nl.create(&format!("make {name}"), RouteNetlinkMessage::NewLink(message)).await?;
        self.nl.link(name).await?.ok_or_else(|| LinkError::Missing(name.clone()))
    }

    /// Mark, MTU, bridge and silence of a link, then up; only what differs.
    async fn settle(
        &self,
        link: &Link,
        mark: &Mark,
        mtu: u32,
        controller: Option<u32>,
    ) -> Result<(), LinkError> {
        let alias = mark.to_string();
        let mut attributes = Vec::new();
        if link.alias != alias {
            attributes.push(LinkAttribute::IfAlias(alias));
        }
        if link.mtu != mtu {
            attributes.push(LinkAttribute::Mtu(mtu));
        }
        if let Some(index) = controller
            && link.controller != controller
        {
            attributes.push(LinkAttribute::Controller(index));
        }
        if !attributes.is_empty() || !link.quiet {
            let message = link_message(link.index, attributes, false);
            self.nl
                .change(&format!("configure {}", link.name), RouteNetlinkMessage::SetLink(message))
                .await?;
        }
        if !link.up {
            let message = link_message(link.index, Vec::new(), true);
            self.nl.change(&format!("set {} up", link.name), RouteNetlinkMessage::SetLink(message)).await?;
        }
        Ok(())
    }

    async fn ensure_addresses(
        &self,
        index: u32,
        name: &IfName,
        wanted: &[(IpAddr, u8)],
    ) -> Result<(), LinkError> {
        let found = addresses_of(&self.nl.addresses().await?, index);
        set_addresses(&self.nl, index, name, &found, wanted).await
    }
}

/// Removes the addresses that are not wanted, then adds those that are missing. Removing a primary address takes the
/// secondary ones of its subnet along, so after a removal all wanted ones are written.
async fn set_addresses(
    nl: &Nl,
    index: u32,
    name: &IfName,
    found: &[(IpAddr, u8)],
    wanted: &[(IpAddr, u8)],
) -> Result<(), LinkError> {
    let surplus: Vec<_> = found.iter().filter(|address| !wanted.contains(address)).collect();
    for (ip, len) in &surplus {
        let message = RouteNetlinkMessage::DelAddress(address_message(index, *ip, *len));
        nl.remove(&format!("remove {ip}/{len} from {name}"), message).await?;
    }
    for (ip, len) in wanted.iter().filter(|address| !surplus.is_empty() || !found.contains(address)) {
        let message = RouteNetlinkMessage::NewAddress(address_message(index, *ip, *len));
        nl.replace(&format!("add {ip}/{len} to {name}"), message).await?;
    }
    Ok(())
}

fn new_bridge(bridge: &Bridge) -> LinkMessage {
    let mut builder = LinkMessageBuilder::<LinkBridge>::new(bridge.name.as_str())
        .mtu(bridge.mtu)
        .stp_state(BridgeStpState::Disabled)
        .mcast_snooping(false);
    if let Some((v4, _)) = bridge.gateway {
        // A gateway's MAC must not follow its ports', as a bridge's does until it is set.
        let [a, b, c, d] = v4.addr().octets();
        builder = builder.address(vec![0x02, 0x74, a, b, c, d]);
    }
    builder.build()
}

fn new_vxlan(vxlan: &Vxlan) -> LinkMessage {
    let builder = LinkVxlan::new(vxlan.name.as_str(), vxlan.vni.get())
        .mtu(vxlan.mtu)
        .port(vxlan.port)
        .learning(false)
        .proxy(true);
    match vxlan.local {
        IpAddr::V4(local) => builder.local(local),
        IpAddr::V6(local) => builder.local6(local),
    }
    .build()
}

/// Whether what can't be changed on a VXLAN device is as wanted.
fn has_identity(link: &Link, wanted: &Vxlan) -> bool {
    let local = match wanted.local {
        IpAddr::V4(local) => InfoVxlan::Local(local),
        IpAddr::V6(local) => InfoVxlan::Local6(local),
    };
    link.kind == Some(InfoKind::Vxlan)
        && [
            InfoVxlan::Id(wanted.vni.get()),
            InfoVxlan::Port(wanted.port),
            InfoVxlan::Learning(false),
            InfoVxlan::Proxy(true),
            local,
        ]
        .iter()
        .all(|setting| link.vxlan.contains(setting))
}

fn observed_bridge(link: &Link, mark: Mark, addresses: &[AddressMessage]) -> Bridge {
    let settings = [InfoBridge::StpState(BridgeStpState::Disabled), InfoBridge::MulticastSnooping(false)];
    let own = addresses_of(addresses, link.index);
    let expected = if mark == Mark::EgressBridge { 2 } else { 0 };
    Bridge {
        name: link.name.clone(),
        mark,
        mtu: link.mtu,
        gateway: first_of_each(&own),
        intact: link.up
            && link.quiet
            && own.len() == expected
            && settings.iter().all(|setting| link.bridge.contains(setting)),
    }
}

fn observed_vxlan(link: &Link, mark: Mark, links: &LinkTable) -> Option<Vxlan> {
    let mut vxlan = Vxlan {
        name: link.name.clone(),
        mark,
        vni: Vni::new(1)?,
        local: IpAddr::from([0, 0, 0, 0]),
        port: 0,
        mtu: link.mtu,
        bridge: link.controller.map_or_else(|| IfName::new(""), |index| links.name(index)),
        intact: false,
    };
    for setting in &link.vxlan {
        match setting {
            InfoVxlan::Id(id) => vxlan.vni = Vni::new(*id)?,
            InfoVxlan::Local(local) => vxlan.local = (*local).into(),
            InfoVxlan::Local6(local) => vxlan.local = (*local).into(),
            InfoVxlan::Port(port) => vxlan.port = *port,
            _ => {}
        }
    }
    vxlan.intact = link.up
        && link.quiet
        && has_identity(link, &vxlan)
        && link.port.contains(&InfoBridgePort::Learning(false));
    Some(vxlan)
}
