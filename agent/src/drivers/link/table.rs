//! The links of a namespace, by name and by index.

use std::collections::BTreeMap;

use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoBridge, InfoBridgePort, InfoData, InfoKind, InfoPortData,
    InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use shoal_plan::IfName;
use shoal_plan::name::Mark;

use super::LinkError;

/// A link.
#[derive(Debug, Clone)]
pub struct Link {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: IfName,
    /// Its alias; empty when it has none.
    pub alias: String,
    /// Its MTU.
    pub mtu: u32,
    /// Its hardware address.
    pub mac: Vec<u8>,
    /// Whether it is set up.
    pub up: bool,
    /// Whether it is a loopback.
    pub loopback: bool,
    /// The bridge it is a port of.
    pub controller: Option<u32>,
    /// The other end of a veth, in whichever namespace that is.
    pub peer: Option<u32>,
    /// What kind of virtual link it is.
    pub kind: Option<InfoKind>,
    /// Settings of a VXLAN device.
    pub vxlan: Vec<InfoVxlan>,
    /// Settings of a bridge.
    pub bridge: Vec<InfoBridge>,
    /// Settings of a bridge port.
    pub port: Vec<InfoBridgePort>,
    /// Whether it makes no link-local address of its own.
    pub quiet: bool,
}

impl Link {
    /// Its ownership mark; none when it isn't ours.
    pub fn mark(&self) -> Option<Mark> {
        if self.name.has_our_prefix() { Mark::parse(&self.alias) } else { None }
    }

    /// Whether it may be taken over under a mark: it has that mark, or none yet (we died between making and marking).
    pub fn claimable(&self, mark: &Mark) -> Result<(), LinkError> {
        if self.alias.is_empty() || Mark::parse(&self.alias).as_ref() == Some(mark) {
            Ok(())
        } else {
            Err(LinkError::Foreign { name: self.name.clone(), alias: self.alias.clone() })
        }
    }
}

impl From<LinkMessage> for Link {
    fn from(message: LinkMessage) -> Self {
        let flags = message.header.flags;
        let mut link = Self {
            index: message.header.index,
            name: IfName::new(""),
            alias: String::new(),
            mtu: 0,
            mac: Vec::new(),
            up: flags.contains(LinkFlags::Up),
            loopback: flags.contains(LinkFlags::Loopback),
            controller: None,
            peer: None,
            kind: None,
            vxlan: Vec::new(),
            bridge: Vec::new(),
            port: Vec::new(),
            quiet: false,
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = IfName::new(name),
                LinkAttribute::IfAlias(alias) => link.alias = alias,
                LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                LinkAttribute::Address(mac) => link.mac = mac,
                LinkAttribute::Controller(index) => link.controller = Some(index),
                LinkAttribute::Link(index) => link.peer = Some(index),
                LinkAttribute::LinkInfo(infos) => infos.into_iter().for_each(|info| link.info(info)),
                LinkAttribute::AfSpecUnspec(specs) => link.quiet = is_quiet(&specs),
                _ => {}
            }
        }
        link
    }
}

impl Link {
    fn info(&mut self, info: LinkInfo) {
        match info {
            LinkInfo::Kind(kind) => self.kind = Some(kind),
            LinkInfo::Data(InfoData::Vxlan(vxlan)) => self.vxlan = vxlan,
            LinkInfo::Data(InfoData::Bridge(bridge)) => self.bridge = bridge,
            LinkInfo::PortData(InfoPortData::BridgePort(port)) => self.port = port,
            _ => {}
        }
    }
}

fn is_quiet(specs: &[AfSpecUnspec]) -> bool {
    let inet6 = specs.iter().find_map(|spec| match spec {
        AfSpecUnspec::Inet6(inet6) => Some(inet6),
        _ => None,
    });
    // Without IPv6 in the kernel there is nothing to be quiet about.
    inet6.is_none_or(|inet6| inet6.contains(&AfSpecInet6::AddrGenMode(In6AddrGenMode::None)))
}

/// The links of a namespace.
#[derive(Debug, Clone, Default)]
pub struct LinkTable {
    by_index: BTreeMap<u32, Link>,
    by_name: BTreeMap<IfName, u32>,
}

impl FromIterator<Link> for LinkTable {
    fn from_iter<I: IntoIterator<Item = Link>>(links: I) -> Self {
        let mut table = Self::default();
        for link in links {
            table.by_name.insert(link.name.clone(), link.index);
            table.by_index.insert(link.index, link);
        }
        table
    }
}

impl LinkTable {
    /// The link of that name.
    pub fn get(&self, name: &IfName) -> Option<&Link> {
        self.by_name.get(name).and_then(|index| self.by_index.get(index))
    }

    /// The link with that index.
    pub fn at(&self, index: u32) -> Option<&Link> {
        self.by_index.get(&index)
    }

    /// The index of a name, or an error that names it.
    pub fn index(&self, name: &IfName) -> Result<u32, LinkError> {
        self.by_name.get(name).copied().ok_or_else(|| LinkError::Missing(name.clone()))
    }

    /// The name of an index; a link that is gone has a name that says so.
    pub fn name(&self, index: u32) -> IfName {
        self.by_index.get(&index).map_or_else(|| IfName::gone(index), |link| link.name.clone())
    }

    /// All of them, by index.
    pub fn iter(&self) -> impl Iterator<Item = &Link> {
        self.by_index.values()
    }
}
