//! Load balancing: what the programs find in their maps, and where the programs are.

use std::collections::{BTreeMap, BTreeSet};

use shoal_types::assignment::{AssignedNetwork, AssignedService, AssignedTask, Endpoint};
use shoal_types::object::Attachment;
use shoal_types::{EndpointId, LbPolicy, ServiceId, Vni, Weight};

use super::sandbox::egress_place;
use super::{Engine, View, running_tasks};
use super::{balancer, direct};
use crate::name::IfName;
use crate::object::{
    Client, IngressPlace, LbEndpoint, LbService, LegRole, Local, MeshConfig, Object, Port, Program,
    ServiceKey, Takes, TaskIf, Tunnel, Vip,
};
use crate::slice::Gathered;

pub(super) fn derive(view: &View<'_>, out: &mut Gathered) {
    node(view, out);
    for task in running_tasks(view.assignment) {
        task_interfaces(view, task, out);
        if view.facts.connect_hooks {
            clients(view, task, out);
        }
    }
    if view.facts.connect_hooks {
        out.push(Object::Connecting(true));
    }
    services(view, out);
}

fn node(view: &View<'_>, out: &mut Gathered) {
    out.push(Object::from(MeshConfig {
        addr: view.cluster.router.addr,
        router: view.cluster.router.mac(),
        data_port: view.cluster.data_port,
        balancer: balancer::of_ports(view),
    }));
    for member in view.assignment.members().filter(|m| m.node != view.cluster.node) {
        out.push(Object::Member(member.data_addr));
        out.push(Object::Router(member.router.mac()));
    }
    for uplink in &view.facts.uplinks {
        out.push(Object::Hook(uplink.name.clone(), Program::MeshIngress));
    }
    direct::derive(view, out);
    out.push(Object::Hook(IfName::loopback(), Program::HostTx));
    for network in view.networks.values() {
        let vxlan = IfName::vxlan(&network.id);
        if view.facts.fast_lane && view.facts.data_addr.is_ipv4() {
            out.push(Object::Tunnel(Tunnel { vni: network.vni, vxlan: vxlan.clone() }));
        }
        out.push(Object::Hook(vxlan, Program::OverlayRx));
    }
}

fn task_interfaces(view: &View<'_>, task: &AssignedTask, out: &mut Gathered) {
    let legs: Vec<(&Attachment, &AssignedNetwork)> = task
        .attachments
        .iter()
        .filter_map(|at| view.network(&at.network).map(|network| (at, network)))
        .collect();
    let ingress = legs.iter().find(|(_, network)| network.ingress).map(|(at, network)| IngressPlace {
        addr: at.addr,
        mac: at.mac(),
        vxlan: IfName::vxlan(&network.id),
    });
    for (at, network) in legs {
        let (host, vxlan) = (IfName::veth(at.endpoint), IfName::vxlan(&network.id));
        out.push(Object::from(TaskIf {
            host: host.clone(),
            addr: at.addr,
            mac: at.mac(),
            network: Some((network.vni, vxlan.clone())),
            ingress: ingress.clone(),
            role: if network.ingress { LegRole::Ingress } else { LegRole::Overlay },
            vip: view.direct_vip(&task.service, &at.network),
        }));
        out.push(Object::from(Local {
            vxlan,
            mac: at.mac(),
            addr: at.addr,
            veth: host.clone(),
            network: network.vni,
        }));
        out.push(Object::Hook(host, Program::TaskTx));
    }
    if let Some((addr, mac)) = egress_place(view, task) {
        let host = IfName::egress(&task.id);
        out.push(Object::from(TaskIf {
            host: host.clone(),
            addr,
            mac,
            network: None,
            ingress,
            role: LegRole::Egress,
            vip: None,
        }));
        out.push(Object::Hook(host, Program::TaskTx));
    }
}

/// A task's networks that have virtual IPs. (In the ingress network only nodes are clients.)
fn clients(view: &View<'_>, task: &AssignedTask, out: &mut Gathered) {
    let places = task.attachments.iter().filter_map(|at| {
        let network = view.network(&at.network).filter(|network| !network.ingress)?;
        Some((at, network.vni))
    });
    out.extend((0..).zip(places).map(|(place, (at, network))| {
        Object::Client(Client { task: task.id.clone(), place, addr: at.addr, mac: at.mac(), network })
    }));
}

pub(super) fn endpoints(view: &View<'_>, out: &mut Gathered) {
    let all = view.endpoints();
    out.extend(all.map(|(endpoint, network, local)| lb_endpoint(view, endpoint, network, local)));
}

pub(super) fn lb_endpoint(
    view: &View<'_>,
    endpoint: &Endpoint,
    network: &AssignedNetwork,
    local: bool,
) -> Object {
    Object::LbEndpoint(LbEndpoint {
        id: endpoint.id,
        addr: endpoint.addr,
        mac: endpoint.mac(),
        local,
        takes: match (endpoint.serving, endpoint.weight) {
            (false, _) => Takes::None,
            (true, Weight::ZERO) => Takes::Own,
            (true, _) => Takes::All,
        },
        dsr: !local && view.answering.contains_key(&endpoint.node),
        link: if local { IfName::veth(endpoint.id) } else { view.vxlan(network) },
    })
}

/// The tables of services, and what leads to them or to the virtual services of a balancer.
fn services(view: &View<'_>, out: &mut Gathered) {
    let members = Members::of(view.endpoints());
    for service in view.assignment.services() {
        one_service(view, service, &members, out);
    }
}

/// The tables of a service, and what leads to them.
pub(super) fn one_service(
    view: &View<'_>,
    service: &AssignedService,
    members: &Members<'_>,
    out: &mut Gathered,
) {
    virtual_ips(view, service, members, out);
    ports(view, service, members, out);
}

fn virtual_ips(view: &View<'_>, service: &AssignedService, members: &Members<'_>, out: &mut Gathered) {
    for vip in &service.vips {
        let Some(network) = view.network(&vip.at.network) else { continue };
        let key = ServiceKey { network: network.vni, index: service.index.0, own: false };
        let mark = balancer::mark_of_vip(view, service);
        if mark.is_none() {
            out.push(members.table(service, key));
        }
        out.extend(vip.at.addr.iter().map(|addr| {
            Object::Vip(Vip {
                network: network.vni,
                addr,
                service: key,
                mac: vip.at.mac(),
                balancer: balancer::leg_of(view, network),
                mark,
            })
        }));
    }
}

fn ports(view: &View<'_>, service: &AssignedService, members: &Members<'_>, out: &mut Gathered) {
    let Some(ingress) = view.ingress else { return };
    let with_tables = view.facts.engine != Engine::Ipvs;
    let key = |own| ServiceKey { network: ingress.vni, index: service.index.0, own };
    let published = view.published(&service.id);
    // Clients on the node itself are led by the table on either engine, and all of a port with a header, which IPVS puts
    // in front of nothing, or whose clients are answered past this node, of which it knows nothing. (Such a port's virtual
    // service stays for the flows that began on it before.)
    let kinds: BTreeSet<bool> = published.iter().map(|p| p.port.is_host()).collect();
    out.extend(kinds.into_iter().map(|own| members.table(service, key(own))));
    out.extend(published.iter().map(|published| {
        let (proxy, dsr) = (published.port.proxy.is_some(), direct::is_direct(published.port));
        Object::Port(Port {
            place: published.port.place(),
            service: key(published.port.is_host()),
            target: published.port.target,
            mark: (!with_tables && !proxy && !dsr).then_some(published.mark),
            proxy,
            dsr,
        })
    }));
}

/// The serving endpoints of each service in each network, with their shares.
pub(super) struct Members<'a> {
    of_all: BTreeMap<(&'a ServiceId, Vni), BTreeMap<EndpointId, u8>>,
    /// Those whose task is on this node.
    own: BTreeSet<EndpointId>,
}

impl<'a> Members<'a> {
    /// Of these endpoints, each with its network and whether it is of this node.
    pub(super) fn of(endpoints: impl Iterator<Item = (&'a Endpoint, &'a AssignedNetwork, bool)>) -> Self {
        let mut members = Self { of_all: BTreeMap::new(), own: BTreeSet::new() };
        for (endpoint, network, here) in endpoints.filter(|(endpoint, _, _)| endpoint.serving) {
            members
                .of_all
                .entry((&endpoint.service, network.vni))
                .or_default()
                .insert(endpoint.id, endpoint.share());
            if here {
                members.own.insert(endpoint.id);
            }
        }
        members
    }

    fn table(&self, service: &AssignedService, key: ServiceKey) -> Object {
        let all = self.of_all.get(&(&service.id, key.network)).into_iter().flatten();
        // Of a port in host mode the node's own tasks are all there is: none has less of it for the node's weight.
        let members: Vec<(EndpointId, u8)> = if key.own {
            all.filter(|(id, _)| self.own.contains(id)).map(|(id, _)| (*id, 1)).collect()
        } else {
            all.filter(|(_, share)| **share > 0).map(|(id, share)| (*id, *share)).collect()
        };
        Object::LbService(LbService {
            key,
            // The key is the same on every node and stays for the life of the service: a good seed.
            seed: key.to_u64(),
            policy: table_policy(service.lb),
            members,
        })
    }
}

/// How a table is read. The managers refuse what tables can't do; a service that was there before gets what is
/// nearest.
const fn table_policy(policy: LbPolicy) -> LbPolicy {
    match policy {
        LbPolicy::Auto | LbPolicy::LeastConnections => LbPolicy::Maglev,
        LbPolicy::RoundRobin | LbPolicy::Maglev | LbPolicy::Source | LbPolicy::Random => policy,
    }
}
