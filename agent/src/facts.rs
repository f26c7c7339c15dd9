//! What only the host can tell: its uplinks, the MTU of the way to the peers, a free subnet for egress.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use ipnet::{Ipv4Net, Ipv6Net};
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::InfoKind;
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage};
use ring::digest::{SHA256, digest};
use rtnetlink::packet_route::AddressFamily;
use serde::{Deserialize, Serialize};
use shoal_plan::{EgressFacts, Uplink};
use shoal_types::assignment::Assignment;
use shoal_types::net::nets_overlap4;
use shoal_types::{NodeId, TaskId};

use crate::drivers::link::{LinkError, LinkTable, Nl};
use crate::drivers::overlay::addresses_of;
use crate::durable::{self, FileError, Unkept};

/// Ethernet without anything special.
const DEFAULT_MTU: u32 = 1500;
/// Bytes of an Ethernet address.
const ETHERNET_ADDRESS: usize = 6;
/// Prefix length of the egress subnet: room for 4093 tasks.
const EGRESS_PREFIX: u8 = 20;

/// Interfaces that clients come in by: up, with an address, and neither loopback nor ours.
pub fn uplinks(links: &LinkTable, addresses: &[AddressMessage]) -> Vec<Uplink> {
    links
        .iter()
        .filter(|link| link.up && !link.loopback && !link.name.has_our_prefix())
        .filter_map(|link| {
            let mut addrs: Vec<IpAddr> =
                addresses_of(addresses, link.index).into_iter().map(|(ip, _)| ip).collect();
            addrs.sort_unstable();
            let inner = link.kind == Some(InfoKind::Bridge) || link.mac.len() != ETHERNET_ADDRESS;
            let (name, index) = (link.name.clone(), link.index);
            (!addrs.is_empty()).then_some(Uplink { name, index, inner, addrs })
        })
        .collect()
}

/// The MTU of the interface that has the address.
pub fn underlay_mtu(links: &LinkTable, addresses: &[AddressMessage], data_addr: IpAddr) -> u32 {
    links
        .iter()
        .find(|link| addresses_of(addresses, link.index).iter().any(|(ip, _)| *ip == data_addr))
        .map_or(DEFAULT_MTU, |link| link.mtu)
}

/// The egress network of this node, chosen once and kept in a file with the tasks' places in it.
#[derive(Debug)]
pub struct EgressBook {
    path: PathBuf,
    facts: Option<EgressFacts>,
    unkept: Unkept,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    v4: Ipv4Net,
    v6: Ipv6Net,
    slots: BTreeMap<TaskId, u32>,
}

impl EgressBook {
    /// Reads the file. One that does not parse is as good as none: places are found in the kernel again.
    /// What can't be written is told to `unkept`.
    pub fn open(path: &Path, unkept: Unkept) -> Result<Self, FileError> {
        let stored = durable::read(path)?.and_then(|text| serde_json::from_slice::<Stored>(&text).ok());
        let facts = stored.map(|stored| EgressFacts { v4: stored.v4, v6: stored.v6, slots: stored.slots });
        Ok(Self { path: path.to_owned(), facts, unkept })
    }

    /// The egress network with a place for each task of the assignment, chosen if there is none yet.
    pub async fn facts(
        &mut self,
        nl: &Nl,
        links: &LinkTable,
        assignment: &Assignment,
        node: &NodeId,
    ) -> Result<EgressFacts, EgressBookError> {
        let mut facts = if let Some(facts) = self.facts.clone() {
            facts
        } else {
            let routes = nl.routes(AddressFamily::Inet).await?;
            EgressFacts {
                v4: free_subnet(&taken(&routes, links, assignment)),
                v6: unique_local(node),
                slots: BTreeMap::new(),
            }
        };
        facts.assign(assignment.tasks().map(|task| &task.id));
        self.keep(&facts)?;
        Ok(facts)
    }

    /// Holds them, and writes them if they are others or could not be written before.
    fn keep(&mut self, facts: &EgressFacts) -> Result<(), EgressBookError> {
        if self.facts.as_ref() != Some(facts) || self.unkept.lacks(&self.path) {
            let stored = Stored { v4: facts.v4, v6: facts.v6, slots: facts.slots.clone() };
            let text = serde_json::to_vec(&stored).map_err(EgressBookError::Encode)?;
            self.unkept.note(&self.path, durable::write(&self.path, &text, 0o600));
            self.facts = Some(facts.clone());
        }
        Ok(())
    }
}

/// What can go wrong with the egress network's file.
#[derive(Debug, thiserror::Error)]
pub enum EgressBookError {
    /// The routes of the host.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The file's content.
    #[error("the egress network can't be encoded")]
    Encode(#[source] serde_json::Error),
}

/// Subnets that the host routes to or the cluster uses.
fn taken(routes: &[RouteMessage], links: &LinkTable, assignment: &Assignment) -> Vec<Ipv4Net> {
    let ours = |route: &RouteMessage| {
        route.attributes.iter().any(|attribute| {
            matches!(attribute, RouteAttribute::Oif(index) if links.name(*index).has_our_prefix())
        })
    };
    let routed = routes.iter().filter(|route| !ours(route)).filter_map(|route| {
        let len = route.header.destination_prefix_length;
        route.attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(ip)) if len > 0 => Ipv4Net::new(*ip, len).ok(),
            _ => None,
        })
    });
    routed.chain(assignment.networks().map(|network| network.subnets.v4)).collect()
}

/// The first of a few rarely used private subnets that overlaps none of these.
fn free_subnet(taken: &[Ipv4Net]) -> Ipv4Net {
    let preferred = Ipv4Addr::new(172, 31, 240, 0);
    let candidates = std::iter::once(preferred)
        .chain((16..=31).rev().map(|b| Ipv4Addr::new(172, b, 224, 0)))
        .chain((0..=15).rev().map(|c| Ipv4Addr::new(192, 168, c * 16, 0)))
        .chain((200..=255).rev().map(|b| Ipv4Addr::new(10, b, 240, 0)));
    let nets = candidates.filter_map(|ip| Ipv4Net::new(ip, EGRESS_PREFIX).ok());
    let fallback = Ipv4Net::new(preferred, EGRESS_PREFIX).unwrap_or_default();
    let mut nets = nets.map(|net| net.trunc());
    nets.find(|net| !taken.iter().any(|other| nets_overlap4(*net, *other))).unwrap_or(fallback)
}

/// A unique local subnet (RFC 4193) that follows from the node's id.
fn unique_local(node: &NodeId) -> Ipv6Net {
    let hash = digest(&SHA256, node.as_str().as_bytes());
    let mut octets = [0_u8; 16];
    for (to, from) in octets.iter_mut().skip(1).take(7).zip(hash.as_ref()) {
        *to = *from;
    }
    octets[0] = 0xfd;
    Ipv6Net::new(Ipv6Addr::from(octets), 64).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drivers::link::Link;
    use crate::drivers::overlay::address_message;
    use netlink_packet_route::link::LinkMessage;
    use shoal_plan::IfName;

    #[test]
    fn bridges_and_devices_without_an_ethernet_address_are_inner_uplinks() {
        let ethernet = vec![2, 0, 0, 0, 0, 1];
        let link = |(index, name, mac, kind): (u32, &str, &Vec<u8>, Option<InfoKind>)| Link {
            index,
            name: IfName::new(name),
            mac: mac.clone(),
            up: true,
            kind,
            ..Link::from(LinkMessage::default())
        };
        let links = [
            (2, "eth0", &ethernet, None),
            (3, "eth0.7", &ethernet, Some(InfoKind::Vlan)),
            (4, "docker0", &ethernet, Some(InfoKind::Bridge)),
            (5, "wg0", &vec![], Some(InfoKind::Wireguard)),
            (6, "gre1", &vec![192, 0, 2, 1], Some(InfoKind::GreTun)),
            (7, "shoal0", &ethernet, Some(InfoKind::Bridge)),
        ];
        let addresses = links.each_ref().map(|(index, ..)| address_message(*index, [10, 9, 8, 7].into(), 24));
        let found = uplinks(&links.into_iter().map(link).collect(), &addresses);
        let found: Vec<_> = found.iter().map(|uplink| (uplink.name.as_str(), uplink.inner)).collect();
        assert_eq!(
            found,
            [("eth0", false), ("eth0.7", false), ("docker0", true), ("wg0", true), ("gre1", true)]
        );
    }

    #[test]
    fn the_egress_subnet_avoids_what_is_taken() {
        assert_eq!(free_subnet(&[]).to_string(), "172.31.240.0/20");
        let vpc = ["172.16.0.0/12".parse().expect("literal"), "192.168.0.0/16".parse().expect("literal")];
        assert_eq!(free_subnet(&vpc).to_string(), "10.255.240.0/20");
    }

    #[test]
    fn places_that_can_t_be_written_are_held_and_written_later() {
        let dir = tempfile::tempdir().expect("a directory");
        let (path, unkept) = (dir.path().join("egress.json"), Unkept::default());
        let mut book = EgressBook::open(&path, unkept.clone()).expect("none yet");
        let (v4, v6) = (free_subnet(&[]), unique_local(&NodeId::from_entropy(1)));
        let facts = EgressFacts { v4, v6, slots: [(TaskId::from_entropy(1), 7)].into() };
        let obstacle = dir.path().join("egress.json.new");
        std::fs::create_dir(&obstacle).expect("made");
        book.keep(&facts).expect("held");
        assert_eq!((book.facts.as_ref(), unkept.warnings().len()), (Some(&facts), 1));
        std::fs::remove_dir(&obstacle).expect("removed");
        book.keep(&facts).expect("written");
        assert_eq!(EgressBook::open(&path, unkept.clone()).expect("there").facts, Some(facts));
        assert!(unkept.warnings().is_empty());
    }

    #[test]
    fn the_unique_local_subnet_is_stable_and_of_the_node() {
        let (a, b) = (NodeId::from_entropy(1), NodeId::from_entropy(2));
        assert_eq!(unique_local(&a), unique_local(&a));
        assert_ne!(unique_local(&a), unique_local(&b));
        assert_eq!(unique_local(&a).addr().octets()[0], 0xfd);
    }
}
