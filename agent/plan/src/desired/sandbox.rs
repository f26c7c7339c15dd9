//! Tasks: their namespaces, interfaces and programs.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::{Ipv4Net, Ipv6Net};
use shoal_types::assignment::AssignedTask;
use shoal_types::object::DesiredState;
use shoal_types::{DualAddr, MacAddr};

use super::{EgressFacts, View};
use crate::name::{IfName, Mark};
use crate::object::{Goal, Leg, LegKind, Object, Sandbox, Task};
use crate::slice::Gathered;

pub(super) fn derive(view: &View<'_>, out: &mut Gathered) {
    for task in view.assignment.tasks() {
        match task.desired {
            DesiredState::Running | DesiredState::Draining => {
                out.push(Object::Sandbox(Sandbox {
                    task: task.id.clone(),
                    vips: vips(view, task),
                    intact: true,
                }));
                legs(view, task, out);
                let spec = Some(Arc::new(task.clone()));
                out.push(Object::Task(Task { id: task.id.clone(), goal: Goal::Run, spec }));
            }
            DesiredState::Shutdown => {
                out.push(Object::Task(Task { id: task.id.clone(), goal: Goal::Stop, spec: None }));
            }
            DesiredState::Remove => {}
        }
    }
}

/// The virtual IPs that stand on a task's loopback: its service's, in the networks it is on.
fn vips(view: &View<'_>, task: &AssignedTask) -> BTreeSet<IpAddr> {
    let vips = task.attachments.iter().filter_map(|at| view.direct_vip(&task.service, &at.network));
    vips.flat_map(DualAddr::iter).collect()
}

fn legs(view: &View<'_>, task: &AssignedTask, out: &mut Gathered) {
    let mut number = 0;
    for at in &task.attachments {
        let Some(network) = view.network(&at.network) else { continue };
        let router = &view.cluster.router;
        out.push(Object::from(Leg {
            task: task.id.clone(),
            host: IfName::veth(at.endpoint),
            mark: Mark::Veth(task.id.clone(), at.endpoint),
            inner: IfName::new(format!("eth{number}")),
            mac: at.mac(),
            v4: within4(at.addr.v4, network.subnets.v4.prefix_len()),
            v6: within6(at.addr.v6, network.subnets.v6.prefix_len()),
            mtu: view.overlay_mtu,
            bridge: IfName::bridge(&network.id),
            kind: if network.ingress {
                LegKind::Ingress { router: router.addr, router_mac: router.mac() }
            } else {
                LegKind::Overlay
            },
            link_local: view.direct_vip(&task.service, &at.network).is_some(),
            intact: true,
        }));
        number += 1;
    }
    if let Some((addr, mac)) = egress_place(view, task) {
        let egress = &view.facts.egress;
        out.push(Object::from(Leg {
            task: task.id.clone(),
            host: IfName::egress(&task.id),
            mark: Mark::Egress(task.id.clone()),
            inner: IfName::new(format!("eth{number}")),
            mac,
            v4: within4(addr.v4, egress.v4.prefix_len()),
            v6: within6(addr.v6, egress.v6.prefix_len()),
            mtu: view.facts.underlay_mtu,
            bridge: IfName::egress_bridge(),
            kind: LegKind::Egress { gateway: gateway(egress) },
            link_local: false,
            intact: true,
        }));
    }
}

/// Whether all networks of a task (the ingress network aside) are internal, and there is one.
pub(super) fn is_internal(view: &View<'_>, task: &AssignedTask) -> bool {
    let mut own =
        task.attachments.iter().filter_map(|at| view.network(&at.network)).filter(|n| !n.ingress).peekable();
    own.peek().is_some() && own.all(|network| network.internal)
}

/// A task's address and MAC on the egress bridge; none for a task with internal networks only.
pub(super) fn egress_place(view: &View<'_>, task: &AssignedTask) -> Option<(DualAddr, MacAddr)> {
    if is_internal(view, task) {
        return None;
    }
    let egress = &view.facts.egress;
    let slot = *egress.slots.get(&task.id)?;
    let addr = host_of(egress, slot);
    let [a, b, c, d] = addr.v4.octets();
    // Only has to be unique on this bridge; 02:74 keeps it apart from the MACs of endpoints.
    Some((addr, MacAddr([0x02, 0x74, a, b, c, d])))
}

/// The addresses of the egress bridge itself.
pub(super) fn gateway(egress: &EgressFacts) -> DualAddr {
    host_of(egress, 1)
}

fn host_of(egress: &EgressFacts, number: u32) -> DualAddr {
    DualAddr {
        v4: Ipv4Addr::from(u32::from(egress.v4.network()).wrapping_add(number)),
        v6: Ipv6Addr::from(u128::from(egress.v6.network()).wrapping_add(u128::from(number))),
    }
}

/// An address with the prefix of the subnet it is in. A prefix length that comes from a subnet is valid.
pub(super) fn within4(addr: Ipv4Addr, prefix_len: u8) -> Ipv4Net {
    Ipv4Net::new(addr, prefix_len).unwrap_or_else(|_| addr.into())
}

/// See [`within4`].
pub(super) fn within6(addr: Ipv6Addr, prefix_len: u8) -> Ipv6Net {
    Ipv6Net::new(addr, prefix_len).unwrap_or_else(|_| addr.into())
}
