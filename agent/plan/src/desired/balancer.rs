//! Balancers: a namespace for published ports and one for each network, with virtual services in them.
//!
//! They are wanted while the engine is IPVS, and afterwards until the last flow they know has ended.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use shoal_types::assignment::{AssignedNetwork, AssignedService};
use shoal_types::{DirectRouting, EndpointId, LbPolicy, ServiceId, Vni};

use super::sandbox::{within4, within6};
use super::{Engine, View};
use crate::name::{IfName, Mark};
use crate::object::{
    Balancer, BalancerIf, BalancerLeg, FirewallMark, Gate, IngressBalancer, Object, Place, Program, Virtual,
    VirtualDestination, VirtualForward, VirtualScheduler,
};
use crate::slice::Gathered;

pub(super) fn derive(view: &View<'_>, out: &mut Gathered) {
    if view.facts.engine == Engine::Ebpf {
        return;
    }
    for network in view.networks.values() {
        balancer(view, network, out);
    }
    virtual_services(view, out);
}

/// What the programs know of the balancer of published ports.
pub(super) fn of_ports(view: &View<'_>) -> Option<IngressBalancer> {
    let ingress = view.ingress.filter(|_| view.facts.engine != Engine::Ebpf)?;
    Some(IngressBalancer {
        gate: IfName::gate(),
        leg: IfName::balancer(&ingress.id),
        vxlan: IfName::vxlan(&ingress.id),
    })
}

/// The leg of a network's balancer, if the network has one.
pub(super) fn leg_of(view: &View<'_>, network: &AssignedNetwork) -> Option<IfName> {
    (view.facts.engine != Engine::Ebpf).then(|| IfName::balancer(&network.id))
}

/// The virtual service that new flows to a service's virtual IPs go to. Its packets arrive unchanged, so every task
/// must know the virtual IP before the first is sent.
pub(super) fn mark_of_vip(view: &View<'_>, service: &AssignedService) -> Option<FirewallMark> {
    let is_ready = view.cluster.direct == DirectRouting::Ready;
    FirewallMark::of_service(service.index).filter(|_| is_ready && view.facts.engine == Engine::Ipvs)
}

fn place(network: &AssignedNetwork) -> Place {
    if network.ingress { Place::Ingress } else { Place::Network(network.id.clone()) }
}

fn balancer(view: &View<'_>, network: &AssignedNetwork, out: &mut Gathered) {
    let router = &view.cluster.router;
    let (v4, v6) = if network.ingress {
        (router.addr.v4, router.addr.v6)
    } else {
        // Given to nobody: every node's balancer asks its neighbors as this address, and nothing is sent to it.
        (first(network.subnets.v4.network()), first6(network.subnets.v6.network()))
    };
    let host = IfName::balancer(&network.id);
    let addrs = || view.facts.uplinks.iter().flat_map(|uplink| &uplink.addrs).copied().collect();
    out.push(Object::from(Balancer {
        place: place(network),
        leg: BalancerLeg {
            host: host.clone(),
            mark: Mark::Balancer(network.id.clone()),
            bridge: IfName::bridge(&network.id),
            mac: router.mac(),
            v4: within4(v4, network.subnets.v4.prefix_len()),
            v6: within6(v6, network.subnets.v6.prefix_len()),
            mtu: view.overlay_mtu,
        },
        gate: network.ingress.then(|| Gate {
            host: IfName::gate(),
            mtu: view.facts.underlay_mtu,
            addrs: addrs(),
        }),
        intact: true,
    }));
    out.push(Object::BalancerIf(BalancerIf {
        host: host.clone(),
        vxlan: IfName::vxlan(&network.id),
        steers: network.ingress,
    }));
    out.push(Object::Hook(host, Program::BalancerTx));
    if network.ingress {
        out.push(Object::Hook(IfName::gate(), Program::GateTx));
    }
}

fn first(network: Ipv4Addr) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(network).wrapping_add(1))
}

fn first6(network: Ipv6Addr) -> Ipv6Addr {
    Ipv6Addr::from(u128::from(network).wrapping_add(1))
}

fn virtual_services(view: &View<'_>, out: &mut Gathered) {
    let destinations = Destinations::of(view);
    for service in view.assignment.services() {
        for vip in &service.vips {
            let (Some(network), Some(mark)) =
                (view.network(&vip.at.network), FirewallMark::of_service(service.index))
            else {
                continue;
            };
            let destinations = destinations.in_network(service, network, false);
            out.push(Object::from(Virtual {
                place: place(network),
                mark,
                scheduler: scheduler(service.lb, VirtualScheduler::RoundRobin, &destinations),
                forward: VirtualForward::Direct,
                destinations,
            }));
        }
        let Some(ingress) = view.ingress else { continue };
        out.extend(view.published(&service.id).iter().map(|published| {
            let destinations = destinations.in_network(service, ingress, published.port.is_host());
            Object::from(Virtual {
                place: Place::Ingress,
                mark: published.mark,
                // A flow may come in by another node after an address has moved: it is to find its endpoint there.
                scheduler: scheduler(service.lb, VirtualScheduler::Maglev, &destinations),
                forward: VirtualForward::Translated(published.port.target),
                destinations,
            })
        }));
    }
}

fn scheduler(
    policy: LbPolicy,
    otherwise: VirtualScheduler,
    destinations: &BTreeMap<EndpointId, VirtualDestination>,
) -> VirtualScheduler {
    let plain = match policy {
        LbPolicy::Auto => otherwise,
        // Refused where IPVS balances; a node whose own setting came later takes what is nearest.
        LbPolicy::RoundRobin | LbPolicy::Random => VirtualScheduler::RoundRobin,
        LbPolicy::LeastConnections => VirtualScheduler::LeastConnections,
        LbPolicy::Maglev => VirtualScheduler::Maglev,
        LbPolicy::Source => VirtualScheduler::Source,
    };
    // The hashing ones go by weights themselves.
    match plain {
        VirtualScheduler::RoundRobin if differ(destinations) => VirtualScheduler::WeightedRoundRobin,
        VirtualScheduler::LeastConnections if differ(destinations) => {
            VirtualScheduler::WeightedLeastConnections
        }
        plain => plain,
    }
}

/// Whether some of the destinations that get new flows are to get more of them than others.
fn differ(destinations: &BTreeMap<EndpointId, VirtualDestination>) -> bool {
    let mut weights = destinations.values().map(|to| to.weight).filter(|weight| *weight > 0);
    weights.next().is_some_and(|first| weights.any(|other| other != first))
}

/// Destinations of each service in each network. Those that are on their way out keep their flows.
struct Destinations<'a> {
    of_all: BTreeMap<(&'a ServiceId, Vni), BTreeMap<EndpointId, VirtualDestination>>,
    /// Those whose task is on this node, as they are in host mode.
    own: BTreeMap<EndpointId, VirtualDestination>,
}

impl<'a> Destinations<'a> {
    fn of(view: &View<'a>) -> Self {
        let mut destinations = Self { of_all: BTreeMap::new(), own: BTreeMap::new() };
        for (endpoint, network, here) in view.endpoints() {
            destinations.of_all.entry((&endpoint.service, network.vni)).or_default().insert(
                endpoint.id,
                VirtualDestination { addr: endpoint.addr, weight: endpoint.share().into() },
            );
            // Where the own alone are asked, they have no less for the node's weight.
            if here {
                let alone = VirtualDestination { addr: endpoint.addr, weight: endpoint.serving.into() };
                destinations.own.insert(endpoint.id, alone);
            }
        }
        destinations
    }

    fn in_network(
        &self,
        service: &AssignedService,
        network: &AssignedNetwork,
        only_own: bool,
    ) -> BTreeMap<EndpointId, VirtualDestination> {
        let all = self.of_all.get(&(&service.id, network.vni)).into_iter().flatten();
        if only_own {
            return all.filter_map(|(id, _)| self.own.get(id).map(|to| (*id, *to))).collect();
        }
        all.map(|(id, to)| (*id, *to)).collect()
    }
}
