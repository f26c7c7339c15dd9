//! Direct server return: which nodes can answer clients of one another, and from what.

use std::collections::BTreeMap;

use shoal_types::assignment::{AssignedService, Assignment};
use shoal_types::{MacAddr, NodeId, PublishedPort};

use super::View;
use crate::doors;
use crate::object::{Door, DoorPlace, LocalAddr, Object};
use crate::slice::Gathered;

/// Whether a port's clients are answered by the nodes of its tasks. The managers take it for no port in host mode, which
/// has its tasks here, nor for one with a header, whose answers have to be seen.
pub(super) fn is_direct(port: &PublishedPort) -> bool {
    port.dsr && !port.is_host() && port.proxy.is_none()
}

/// Whether clients of a service are answered so.
pub(super) fn is_wanted(service: &AssignedService) -> bool {
    service.ports.iter().any(is_direct)
}

/// Whether those of any published port are: only then nodes look at each other's addresses.
pub fn wants_direct(assignment: &Assignment) -> bool {
    assignment.services().any(is_wanted)
}

/// The other nodes that told their addresses, and whose router can be told by the half of its address that is in a frame.
pub(super) fn answering<'a>(view: &View<'a>) -> BTreeMap<&'a NodeId, MacAddr> {
    let own = view.cluster.router.mac();
    let others = view.assignment.members().filter(|member| member.node != view.cluster.node);
    others
        .map(|member| (&member.node, member.router.mac()))
        .filter(|(node, router)| view.facts.peers.contains_key(*node) && doors::are_alike(*router, own))
        .collect()
}

/// The addresses of this node, and those of others that it may answer from, with the devices to do it by.
pub(super) fn derive(view: &View<'_>, out: &mut Gathered) {
    let numbers = view.facts.addresses().doors();
    let door = |addr| numbers.get(&addr).copied().unwrap_or_default().into();
    for uplink in &view.facts.uplinks {
        out.extend(uplink.addrs.iter().map(|&addr| {
            let door = door(addr);
            Object::LocalAddr(LocalAddr { addr, door, device: if door == 0 { 0 } else { uplink.index } })
        }));
    }
    let has_ways = view.facts.outward().nth(1).is_some();
    if has_ways || wants_direct(view.assignment) {
        out.extend(view.facts.outward().map(|uplink| Object::Outward(uplink.index)));
    }
    if has_ways {
        out.push(Object::Outward(0));
    }
    for (node, router) in &view.answering {
        let Some(told) = view.facts.peers.get(*node) else { continue };
        let router = doors::scope(*router);
        out.extend(told.doors().into_iter().map(|(addr, number)| {
            let family = if addr.is_ipv4() { 4 } else { 6 };
            Object::Door(Door { place: DoorPlace { router, number: number.into(), family }, addr })
        }));
    }
}
