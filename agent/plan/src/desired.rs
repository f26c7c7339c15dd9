//! From an assignment and a few facts of the host to everything the node should hold.

mod balancer;
mod balancing;
mod direct;
mod names;
mod part;
mod published;
mod sandbox;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::{Ipv4Net, Ipv6Net};
use shoal_types::assignment::{
    AssignedNetwork, AssignedService, AssignedTask, Assignment, ClusterView, Endpoint,
};
use shoal_types::object::{Attachment, DesiredState};
use shoal_types::{DirectRouting, DualAddr, EndpointId, MacAddr, NetworkId, NodeId, ServiceId, TaskId};

use crate::doors::{Addresses, Told};
use crate::name::{IfName, Mark};
use crate::object::{Bridge, Fdb, Firewall, Neighbor, Object, Objects, Peer, Sysctl, Vxlan};
use crate::ports::{self, PortSet};
use crate::slice::{Gathered, Slice};
use published::Published;

pub use direct::wants_direct;
pub use part::{Part, Services, derive_part};

/// Kernel parameters of the host that the mesh needs: packets of tasks are forwarded.
pub const HOST_SYSCTLS: &[(&str, &str)] = &[
    ("net/ipv4/ip_forward", "1"),
    ("net/ipv6/conf/all/forwarding", "1"),
    // What a task answers a client on this node comes in by the loopback device, from addresses of the node.
    ("net/ipv4/conf/lo/accept_local", "1"),
    ("net/ipv4/conf/lo/route_localnet", "1"),
];

/// The kernel parameter with the ports that no connection of the host takes as its local one. As an object it is
/// only about the published ones.
pub const RESERVED_PORTS: &str = "net/ipv4/ip_local_reserved_ports";

/// Bytes a VXLAN header adds over IPv4 and over IPv6.
const VXLAN_OVERHEAD_V4: u32 = 50;
const VXLAN_OVERHEAD_V6: u32 = 70;

/// What only the host can tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Source address of this node's tunnel packets.
    pub data_addr: IpAddr,
    /// MTU of the way to the peers.
    pub underlay_mtu: u32,
    /// Interfaces that clients come in by.
    pub uplinks: Vec<Uplink>,
    /// The egress network of this node.
    pub egress: EgressFacts,
    /// What balances here.
    pub engine: Engine,
    /// Whether the kernel takes the nftables table.
    pub firewall: bool,
    /// Whether the programs may open and make tunnel packets themselves.
    pub fast_lane: bool,
    /// Whether connections of tasks to virtual IPs are led to endpoints when they are made.
    pub connect_hooks: bool,
    /// Addresses of other nodes, of those that tell them, while a published port has answers go past the node that was
    /// asked.
    pub peers: Arc<Told>,
}

impl Facts {
    /// The addresses that the node tells others of.
    pub fn addresses(&self) -> Addresses {
        Addresses::of(self.outward().flat_map(|uplink| &uplink.addrs).copied())
    }

    /// The uplinks that lead where other nodes are, too. Behind an inner one that does not have the address of the tunnels
    /// there may be a network of this host's own, which others have under the same addresses, or no way to.
    pub(crate) fn outward(&self) -> impl Iterator<Item = &Uplink> {
        self.uplinks.iter().filter(|uplink| !uplink.inner || uplink.addrs.contains(&self.data_addr))
    }
}

/// What balances on a node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Engine {
    /// Tables of the programs.
    #[default]
    Ebpf,
    /// The same, and virtual services go on with the flows they have.
    EbpfAfterIpvs,
    /// Virtual services of the kernel.
    Ipvs,
}

/// An interface that clients come in by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uplink {
    /// Its name.
    pub name: IfName,
    /// Its index.
    pub index: u32,
    /// Whether it is a bridge, or has no Ethernet address, as tunnels of a VPN.
    pub inner: bool,
    /// Its addresses.
    pub addrs: Vec<IpAddr>,
}

/// The node's own network behind `shoal0`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EgressFacts {
    /// Its subnet; the bridge has the first address.
    pub v4: Ipv4Net,
    /// Its subnet; the bridge has the first address.
    pub v6: Ipv6Net,
    /// Place of each task in it; 2 is the first.
    pub slots: BTreeMap<TaskId, u32>,
}

impl EgressFacts {
    /// Keeps the places of the tasks that are still there and gives the lowest free ones to the others. A task for
    /// which none is left has none.
    pub fn assign<'a>(&mut self, tasks: impl IntoIterator<Item = &'a TaskId>) {
        let wanted: BTreeSet<&TaskId> = tasks.into_iter().collect();
        self.slots.retain(|task, _| wanted.contains(task));
        let mut taken: BTreeSet<u32> = self.slots.values().copied().collect();
        let host_bits = 32 - u32::from(self.v4.prefix_len());
        let end = 1_u32.checked_shl(host_bits).map_or(u32::MAX, |size| size.saturating_sub(1));
        let mut next = 2;
        for task in wanted {
            if self.slots.contains_key(task) {
                continue;
            }
            while taken.contains(&next) {
                next += 1;
            }
            if next >= end {
                return;
            }
            taken.insert(next);
            self.slots.insert(task.clone(), next);
        }
    }
}

/// The tasks that should run: the ones with a namespace, interfaces and a resolver.
pub fn running_tasks(assignment: &Assignment) -> impl Iterator<Item = &AssignedTask> {
    assignment.tasks().filter(|t| matches!(t.desired, DesiredState::Running | DesiredState::Draining))
}

/// An assignment with what is looked up again and again.
pub(crate) struct View<'a> {
    assignment: &'a Assignment,
    facts: &'a Facts,
    cluster: &'a ClusterView,
    networks: BTreeMap<&'a NetworkId, &'a AssignedNetwork>,
    /// Names of their VXLAN devices.
    vxlans: BTreeMap<&'a NetworkId, IfName>,
    ingress: Option<&'a AssignedNetwork>,
    /// Endpoints of tasks that run here and should.
    local: BTreeSet<EndpointId>,
    overlay_mtu: u32,
    /// Published ports that this node answers on.
    published: BTreeMap<&'a ServiceId, Vec<Published<'a>>>,
    /// Virtual IPs on the loopbacks of tasks; none while nobody forwards to them unchanged.
    direct: BTreeMap<(&'a ServiceId, &'a NetworkId), DualAddr>,
    /// Other nodes that can answer clients of this one, with their routers; none while no published port wants it.
    answering: BTreeMap<&'a NodeId, MacAddr>,
}

impl<'a> View<'a> {
    fn new(assignment: &'a Assignment, facts: &'a Facts) -> Option<Self> {
        let mut view = Self::without_services(assignment, facts)?;
        let own = &view.local;
        let with_tasks: BTreeSet<&ServiceId> =
            assignment.endpoints().filter(|e| own.contains(&e.id)).map(|e| &e.service).collect();
        view.published = published::published(assignment.services(), &view.addrs(), |service| {
            with_tasks.contains(service)
        });
        view.direct = direct_vips(assignment, view.cluster);
        if wants_direct(assignment) {
            view.answering = direct::answering(&view);
        }
        Some(view)
    }

    /// What does not look at every endpoint and service.
    fn without_services(assignment: &'a Assignment, facts: &'a Facts) -> Option<Self> {
        let cluster = assignment.cluster()?;
        let networks: BTreeMap<_, _> = assignment.networks().map(|n| (&n.id, n)).collect();
        let local: BTreeSet<EndpointId> = running_tasks(assignment)
            .flat_map(|task| task.attachments.iter())
            .filter(|at| networks.contains_key(&at.network))
            .map(|at| at.endpoint)
            .collect();
        let overhead = if facts.data_addr.is_ipv4() { VXLAN_OVERHEAD_V4 } else { VXLAN_OVERHEAD_V6 };
        Some(Self {
            assignment,
            facts,
            cluster,
            ingress: networks.values().find(|n| n.ingress).copied(),
            vxlans: networks.keys().map(|id| (*id, IfName::vxlan(id))).collect(),
            networks,
            published: BTreeMap::new(),
            local,
            overlay_mtu: facts.underlay_mtu.saturating_sub(overhead),
            direct: BTreeMap::new(),
            answering: BTreeMap::new(),
        })
    }

    /// The addresses of this node.
    fn addrs(&self) -> BTreeSet<IpAddr> {
        self.facts.uplinks.iter().flat_map(|uplink| &uplink.addrs).copied().collect()
    }

    /// The VXLAN device of a network.
    fn vxlan(&self, network: &AssignedNetwork) -> IfName {
        self.vxlans.get(&network.id).cloned().unwrap_or_else(|| IfName::vxlan(&network.id))
    }

    /// The VTEP of each member.
    fn vteps(&self) -> BTreeMap<&'a NodeId, IpAddr> {
        self.assignment.members().map(|m| (&m.node, m.data_addr)).collect()
    }

    /// The virtual IP that a task of a service has on its loopback for a network.
    fn direct_vip(&self, service: &ServiceId, network: &NetworkId) -> Option<DualAddr> {
        self.direct.get(&(service, network)).copied()
    }

    /// Ports of a service that this node answers on.
    fn published(&self, service: &ServiceId) -> &[Published<'a>] {
        self.published.get(service).map_or(&[], Vec::as_slice)
    }

    fn network(&self, id: &NetworkId) -> Option<&'a AssignedNetwork> {
        self.networks.get(id).copied()
    }

    /// Endpoints this node can deal with: those elsewhere in networks it knows, and its own running ones.
    fn endpoints(&self) -> impl Iterator<Item = (&'a Endpoint, &'a AssignedNetwork, bool)> + '_ {
        self.assignment.endpoints().filter_map(|endpoint| self.reachable(endpoint))
    }

    fn reachable(&self, endpoint: &'a Endpoint) -> Option<(&'a Endpoint, &'a AssignedNetwork, bool)> {
        let network = self.network(&endpoint.network)?;
        let here = endpoint.node == self.cluster.node;
        (!here || self.local.contains(&endpoint.id)).then_some((endpoint, network, here))
    }
}

fn direct_vips<'a>(
    assignment: &'a Assignment,
    cluster: &ClusterView,
) -> BTreeMap<(&'a ServiceId, &'a NetworkId), DualAddr> {
    if cluster.direct == DirectRouting::Off {
        return BTreeMap::new();
    }
    let of_service = |service: &'a AssignedService| {
        service.vips.iter().map(|vip| ((&service.id, &vip.at.network), vip.at.addr))
    };
    assignment.services().flat_map(of_service).collect()
}

/// Everything the node should hold. `None` while the assignment does not say who the node is: nothing is known then,
/// which is not the same as wanting nothing.
pub fn derive(assignment: &Assignment, facts: &Facts) -> Option<Objects> {
    let mut all = Objects::new();
    for slice in Slice::ALL {
        all.append(&mut derive_slice(assignment, facts, slice)?);
    }
    Some(all)
}

/// What is in a slice of it.
pub fn derive_slice(assignment: &Assignment, facts: &Facts, slice: Slice) -> Option<Objects> {
    let mut out = Gathered::all();
    match slice {
        Slice::Few => {
            let view = View::new(assignment, facts)?;
            host(&view, &mut out);
            links(&view, &mut out);
            sandbox::derive(&view, &mut out);
            balancer::derive(&view, &mut out);
            balancing::derive(&view, &mut out);
            names::derive(&view, &mut out);
        }
        Slice::Forwarding | Slice::Neighbors4 | Slice::Neighbors6 | Slice::Peers => {
            out = Gathered::only(slice);
            forwarding(&View::without_services(assignment, facts)?, &mut out);
        }
        Slice::Endpoints => {
            let mut view = View::without_services(assignment, facts)?;
            if wants_direct(assignment) {
                view.answering = direct::answering(&view);
            }
            balancing::endpoints(&view, &mut out);
        }
    }
    Some(out.objects())
}

fn host(view: &View<'_>, out: &mut Gathered) {
    out.extend(
        HOST_SYSCTLS
            .iter()
            .map(|(path, value)| Object::Sysctl(Sysctl { path: (*path).into(), value: (*value).into() })),
    );
    beside_ports(view, out);
    out.push(Object::Pins);
    let egress = &view.facts.egress;
    let gateway = sandbox::gateway(egress);
    out.push(Object::from(Bridge {
        name: IfName::egress_bridge(),
        mark: Mark::EgressBridge,
        mtu: view.facts.underlay_mtu,
        gateway: Some((
            sandbox::within4(gateway.v4, egress.v4.prefix_len()),
            sandbox::within6(gateway.v6, egress.v6.prefix_len()),
        )),
        intact: true,
    }));
}

/// What keeps connections of the host and of its tasks off published ports.
fn beside_ports(view: &View<'_>, out: &mut Gathered) {
    let published: PortSet =
        view.published.values().flatten().map(|published| published.port.published).collect();
    out.push(Object::Sysctl(Sysctl { path: RESERVED_PORTS.into(), value: ports::format(&published) }));
    if view.facts.firewall {
        let data_port = view.cluster.data_port;
        let taken = published.into_iter().chain([data_port]).collect();
        let high = ports::widest_free(&taken, 1024..=u16::MAX).unwrap_or((1024, u16::MAX));
        let low = ports::widest_free(&taken, 1..=1023).unwrap_or(high);
        out.push(Object::Firewall(Firewall {
            v4: view.facts.egress.v4,
            v6: view.facts.egress.v6,
            data_port,
            ports: [low, high],
            intact: true,
        }));
    }
}

fn links(view: &View<'_>, out: &mut Gathered) {
    for network in view.networks.values() {
        let bridge = IfName::bridge(&network.id);
        out.push(Object::from(Bridge {
            name: bridge.clone(),
            mark: Mark::Bridge(network.id.clone()),
            mtu: view.overlay_mtu,
            gateway: None,
            intact: true,
        }));
        out.push(Object::from(Vxlan {
            name: IfName::vxlan(&network.id),
            mark: Mark::Vxlan(network.id.clone()),
            vni: network.vni,
            local: view.facts.data_addr,
            port: view.cluster.data_port,
            mtu: view.overlay_mtu,
            bridge,
            intact: true,
        }));
    }
}

fn forwarding(view: &View<'_>, out: &mut Gathered) {
    let vteps = view.vteps();
    for (endpoint, network, here) in view.endpoints() {
        if !here {
            endpoint_elsewhere(view, &vteps, endpoint, network, out);
        }
    }
    for member in view.assignment.members().filter(|m| m.node != view.cluster.node) {
        if let Some(network) = view.network(&member.router.network) {
            entry(view, network, member.router.mac(), member.data_addr, out);
            neighbors(&IfName::vxlan(&network.id), member.router.addr.iter(), member.router.mac(), out);
        }
    }
    for service in view.assignment.services() {
        vip_neighbors(view, service, out);
    }
    let own = &view.cluster.router;
    if let Some(link) = attachment_vxlan(view, own) {
        neighbors(&link, own.addr.iter(), own.mac(), out);
    }
}

/// How frames get to an endpoint of another node.
fn endpoint_elsewhere(
    view: &View<'_>,
    vteps: &BTreeMap<&NodeId, IpAddr>,
    endpoint: &Endpoint,
    network: &AssignedNetwork,
    out: &mut Gathered,
) {
    if let Some(vtep) = vteps.get(&endpoint.node) {
        entry(view, network, endpoint.mac(), *vtep, out);
    }
    neighbors(&view.vxlan(network), endpoint.addr.iter(), endpoint.mac(), out);
}

fn vip_neighbors(view: &View<'_>, service: &AssignedService, out: &mut Gathered) {
    for vip in &service.vips {
        if let Some(link) = attachment_vxlan(view, &vip.at) {
            neighbors(&link, vip.at.addr.iter(), vip.at.mac(), out);
        }
    }
}

/// A forwarding entry, and the same for the programs.
fn entry(view: &View<'_>, network: &AssignedNetwork, mac: MacAddr, vtep: IpAddr, out: &mut Gathered) {
    let link = view.vxlan(network);
    if let (IpAddr::V4(source), IpAddr::V4(vtep), true) = (view.facts.data_addr, vtep, view.facts.fast_lane) {
        let (vxlan, vni, mtu) = (link.clone(), network.vni, view.overlay_mtu);
        out.push(Object::Peer(Peer { vxlan, mac, vtep, source, vni, mtu }));
    }
    out.push(Object::Fdb(Fdb { link, mac, vtep }));
}

fn neighbors(link: &IfName, ips: impl Iterator<Item = IpAddr>, mac: MacAddr, out: &mut Gathered) {
    out.extend(ips.map(|ip| Object::Neighbor(Neighbor { link: link.clone(), ip, mac })));
}

fn attachment_vxlan(view: &View<'_>, at: &Attachment) -> Option<IfName> {
    view.network(&at.network).map(|network| IfName::vxlan(&network.id))
}
