//! The objects a node holds, each under a key, the same whether wanted or found.

mod attached;
mod balancer;
mod door;
mod lane;
mod service;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use shoal_types::assignment::AssignedTask;
use shoal_types::{DualAddr, EndpointId, MacAddr, PortPlace, Protocol, TaskId, Vni};

use crate::name::{IfName, Mark};

pub use attached::{Client, IngressPlace, LegRole, Local, TaskIf};
pub use balancer::{
    Balancer, BalancerIf, BalancerLeg, FirewallMark, Gate, IngressBalancer, Place, Virtual,
    VirtualDestination, VirtualForward, VirtualScheduler,
};
pub use door::{Door, DoorPlace, LocalAddr};
pub use lane::{Peer, Tunnel};
pub use service::{LbService, ServiceKey, Takes};

/// Everything a node should hold, or holds.
pub type Objects = BTreeMap<Key, Object>;

/// Identity of an object. Within a phase, operations are done in this order (removals in the reverse).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// A kernel parameter of the host's namespace, by its path below `/proc/sys`.
    Sysctl(String),
    /// The nftables table `inet shoal`.
    Firewall,
    /// The names under which the maps and programs of the data plane are found.
    Pins,
    /// A bridge.
    Bridge(IfName),
    /// A VXLAN device.
    Vxlan(IfName),
    /// A static forwarding entry of a VXLAN device: MAC to VTEP.
    Fdb(IfName, MacAddr),
    /// A permanent neighbor on a VXLAN device, from which it answers ARP and ND.
    Neighbor(IfName, IpAddr),
    /// A task's network namespace.
    Sandbox(TaskId),
    /// A task's interface, by its host side.
    Leg(IfName),
    /// A balancer's namespace.
    Balancer(Place),
    /// What the programs know of the node.
    MeshConfig,
    /// A member's VTEP, allowed to send tunnel packets.
    Member(IpAddr),
    /// An address of this node that published ports answer on.
    LocalAddr(IpAddr),
    /// An address of another node that this one may answer from.
    Door(DoorPlace),
    /// A device that answers from addresses of other nodes may leave by, by its index; 0: there are several, and answers to
    /// this node's own clients may have to leave by another one than they came in by.
    Outward(u32),
    /// Router of another node.
    Router(MacAddr),
    /// A network whose tunnel packets the programs open.
    Tunnel(Vni),
    /// A forwarding entry as the programs know it.
    Peer(IfName, MacAddr),
    /// What the task behind a veth may send.
    TaskIf(IfName),
    /// A local task as seen from a VXLAN device.
    Local(IfName, MacAddr),
    /// An endpoint that can be chosen.
    LbEndpoint(EndpointId),
    /// The table of a service in a network.
    LbService(ServiceKey),
    /// A balancer's leg as the programs know it, by its host side.
    BalancerIf(IfName),
    /// A task in one of its networks, as the programs know it by its namespace; which, counted from 0.
    Client(TaskId, u32),
    /// The programs at the control group of the node's tasks.
    Connecting,
    /// A virtual service of a balancer.
    Virtual(Place, FirewallMark),
    /// A program on a link.
    Hook(IfName, Program),
    /// A virtual IP in a network.
    Vip(Vni, IpAddr),
    /// A published port, on one address or on all.
    Port(PortPlace),
    /// A task's resolver.
    Resolver(TaskId),
    /// A task's program.
    Task(TaskId),
}

/// An object with its content. The kinds of which there are tens of thousands are in place, and small.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Object {
    /// See [`Key::Sysctl`].
    Sysctl(Sysctl),
    /// See [`Key::Firewall`].
    Firewall(Firewall),
    /// See [`Key::Pins`].
    Pins,
    /// See [`Key::Bridge`].
    Bridge(Box<Bridge>),
    /// See [`Key::Vxlan`].
    Vxlan(Box<Vxlan>),
    /// See [`Key::Fdb`].
    Fdb(Fdb),
    /// See [`Key::Neighbor`].
    Neighbor(Neighbor),
    /// See [`Key::Sandbox`].
    Sandbox(Sandbox),
    /// See [`Key::Leg`].
    Leg(Box<Leg>),
    /// See [`Key::Balancer`].
    Balancer(Box<Balancer>),
    /// See [`Key::MeshConfig`].
    MeshConfig(Box<MeshConfig>),
    /// See [`Key::Member`].
    Member(IpAddr),
    /// See [`Key::LocalAddr`].
    LocalAddr(LocalAddr),
    /// See [`Key::Door`].
    Door(Door),
    /// See [`Key::Outward`].
    Outward(u32),
    /// See [`Key::Router`].
    Router(MacAddr),
    /// See [`Key::Tunnel`].
    Tunnel(Tunnel),
    /// See [`Key::Peer`].
    Peer(Peer),
    /// See [`Key::TaskIf`].
    TaskIf(Box<TaskIf>),
    /// See [`Key::Local`].
    Local(Box<Local>),
    /// See [`Key::LbEndpoint`].
    LbEndpoint(LbEndpoint),
    /// See [`Key::LbService`].
    LbService(LbService),
    /// See [`Key::BalancerIf`].
    BalancerIf(BalancerIf),
    /// See [`Key::Client`].
    Client(Client),
    /// See [`Key::Connecting`]: whether all are in place.
    Connecting(bool),
    /// See [`Key::Virtual`].
    Virtual(Box<Virtual>),
    /// See [`Key::Hook`].
    Hook(IfName, Program),
    /// See [`Key::Vip`].
    Vip(Vip),
    /// See [`Key::Port`].
    Port(Port),
    /// See [`Key::Resolver`].
    Resolver(Box<Resolver>),
    /// See [`Key::Task`].
    Task(Task),
}

macro_rules! boxed {
    ($($kind:ident),*) => {
        $(
            impl From<$kind> for Object {
                fn from(object: $kind) -> Self {
                    Self::$kind(Box::new(object))
                }
            }
        )*
    };
}

boxed!(Bridge, Vxlan, Leg, Balancer, MeshConfig, TaskIf, Resolver, Virtual, Local);

impl Object {
    /// Whether it is one of a kind that is made by the ten thousand, and that nothing else is made over.
    pub const fn is_leaf(&self) -> bool {
        matches!(
            self,
            Self::Fdb(_)
                | Self::Neighbor(_)
                | Self::Peer(_)
                | Self::Door(_)
                | Self::LbEndpoint(_)
                | Self::LbService(_)
                | Self::Port(_)
                | Self::Vip(_)
        )
    }

    /// The key it is stored under.
    pub fn key(&self) -> Key {
        match self {
            Self::Sysctl(o) => Key::Sysctl(o.path.clone()),
            Self::Firewall(_) => Key::Firewall,
            Self::Pins => Key::Pins,
            Self::Bridge(o) => Key::Bridge(o.name.clone()),
            Self::Vxlan(o) => Key::Vxlan(o.name.clone()),
            Self::Fdb(o) => Key::Fdb(o.link.clone(), o.mac),
            Self::Neighbor(o) => Key::Neighbor(o.link.clone(), o.ip),
            Self::Sandbox(o) => Key::Sandbox(o.task.clone()),
            Self::Leg(o) => Key::Leg(o.host.clone()),
            Self::Balancer(o) => Key::Balancer(o.place.clone()),
            Self::MeshConfig(_) => Key::MeshConfig,
            Self::Member(addr) => Key::Member(*addr),
            Self::LocalAddr(o) => Key::LocalAddr(o.addr),
            Self::Door(o) => Key::Door(o.place),
            Self::Outward(index) => Key::Outward(*index),
            Self::Router(mac) => Key::Router(*mac),
            Self::Tunnel(o) => Key::Tunnel(o.vni),
            Self::Peer(o) => Key::Peer(o.vxlan.clone(), o.mac),
            Self::TaskIf(o) => Key::TaskIf(o.host.clone()),
            Self::Local(o) => Key::Local(o.vxlan.clone(), o.mac),
            Self::LbEndpoint(o) => Key::LbEndpoint(o.id),
            Self::LbService(o) => Key::LbService(o.key),
            Self::BalancerIf(o) => Key::BalancerIf(o.host.clone()),
            Self::Client(o) => Key::Client(o.task.clone(), o.place),
            Self::Connecting(_) => Key::Connecting,
            Self::Virtual(o) => Key::Virtual(o.place.clone(), o.mark),
            Self::Hook(link, program) => Key::Hook(link.clone(), *program),
            Self::Vip(o) => Key::Vip(o.network, o.addr),
            Self::Port(o) => Key::Port(o.place),
            Self::Resolver(o) => Key::Resolver(o.task.clone()),
            Self::Task(o) => Key::Task(o.id.clone()),
        }
    }

    /// What kind of object it is, as metrics name it.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Sysctl(_) => "sysctl",
            Self::Firewall(_) => "firewall",
            Self::Pins => "pin",
            Self::Bridge(_) => "bridge",
            Self::Vxlan(_) => "vxlan",
            Self::Fdb(_) => "fdb",
            Self::Neighbor(_) => "neighbor",
            Self::Sandbox(_) => "sandbox",
            Self::Leg(_) => "leg",
            Self::Balancer(_) => "balancer",
            Self::MeshConfig(_) => "mesh_config",
            Self::Member(_) => "member",
            Self::LocalAddr(_) => "local_addr",
            Self::Door(_) => "door",
            Self::Outward(_) => "outward",
            Self::Router(_) => "router",
            Self::Tunnel(_) => "tunnel",
            Self::Peer(_) => "peer",
            Self::TaskIf(_) => "task_if",
            Self::Local(_) => "local",
            Self::LbEndpoint(_) => "endpoint",
            Self::LbService(_) => "service",
            Self::BalancerIf(_) => "balancer_if",
            Self::Client(_) => "client",
            Self::Connecting(_) => "connecting",
            Self::Virtual(_) => "virtual_service",
            Self::Hook(..) => "hook",
            Self::Vip(_) => "vip",
            Self::Port(_) => "port",
            Self::Resolver(_) => "resolver",
            Self::Task(_) => "task",
        }
    }

    /// Whether `found` is what `self` wants. A task that ended by itself is not started again: its end is
    /// reported, and the managers make another one.
    pub fn is_satisfied_by(&self, found: &Object) -> bool {
        match (self, found) {
            (Self::Task(wanted), Self::Task(found)) => match wanted.goal {
                Goal::Run => true,
                Goal::Stop => found.goal == Goal::Stop,
            },
            _ => self == found,
        }
    }
}

/// A kernel parameter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sysctl {
    /// Path below `/proc/sys`.
    pub path: String,
    /// Its content.
    pub value: String,
}

/// The nftables table: masquerade and isolation of the egress bridge, tunnels kept out of connection tracking.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Firewall {
    /// Egress subnet.
    pub v4: Ipv4Net,
    /// Egress subnet.
    pub v6: Ipv6Net,
    /// UDP port of the tunnels.
    pub data_port: u16,
    /// Ports that connections of tasks leave with, first and last, those from privileged ports and all others: no published
    /// one, whose answers would be taken for a client's packets, nor the tunnels'.
    pub ports: [(u16, u16); 2],
    /// Whether the table is as it was written.
    pub intact: bool,
}

/// A bridge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bridge {
    /// Its name.
    pub name: IfName,
    /// Its ownership mark.
    pub mark: Mark,
    /// Its MTU.
    pub mtu: u32,
    /// Its own addresses: the egress bridge is a gateway, an overlay bridge has none.
    pub gateway: Option<(Ipv4Net, Ipv6Net)>,
    /// Whether all settings the driver implies are in place.
    pub intact: bool,
}

/// A VXLAN device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vxlan {
    /// Its name.
    pub name: IfName,
    /// Its ownership mark.
    pub mark: Mark,
    /// VXLAN id.
    pub vni: Vni,
    /// Source address of its packets.
    pub local: IpAddr,
    /// UDP port.
    pub port: u16,
    /// Its MTU.
    pub mtu: u32,
    /// The bridge it is a port of.
    pub bridge: IfName,
    /// Whether all settings the driver implies are in place.
    pub intact: bool,
}

/// A static forwarding entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fdb {
    /// The VXLAN device.
    pub link: IfName,
    /// Whose frames.
    pub mac: MacAddr,
    /// Where they go.
    pub vtep: IpAddr,
}

/// A permanent neighbor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Neighbor {
    /// The VXLAN device.
    pub link: IfName,
    /// Who.
    pub ip: IpAddr,
    /// Where.
    pub mac: MacAddr,
}

/// A task's namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sandbox {
    /// The task.
    pub task: TaskId,
    /// Virtual IPs on its loopback: what is sent to them unchanged is its own.
    pub vips: BTreeSet<IpAddr>,
    /// Whether its kernel parameters are in place.
    pub intact: bool,
}

/// A task's interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leg {
    /// The task.
    pub task: TaskId,
    /// Name on the host.
    pub host: IfName,
    /// Ownership mark on the host's side.
    pub mark: Mark,
    /// Name in the task's namespace.
    pub inner: IfName,
    /// MAC in the task's namespace.
    pub mac: MacAddr,
    /// Address and prefix.
    pub v4: Ipv4Net,
    /// Address and prefix.
    pub v6: Ipv6Net,
    /// MTU.
    pub mtu: u32,
    /// The bridge its host side is a port of.
    pub bridge: IfName,
    /// What it is for.
    pub kind: LegKind,
    /// Whether it has a link-local address: from any other that is not at the interface, as a virtual IP on the
    /// loopback, the kernel asks for no neighbor (`ndisc_send_ns`).
    pub link_local: bool,
    /// Whether all settings the driver implies are in place.
    pub intact: bool,
}

/// What a leg is for, with the routes that follow from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LegKind {
    /// An overlay: the connected routes are enough.
    Overlay,
    /// The ingress network: what has its address as source leaves by it, through the node's router.
    Ingress {
        /// Addresses of the node's router.
        router: DualAddr,
        /// MAC of it.
        router_mac: MacAddr,
    },
    /// The egress bridge: the default route.
    Egress {
        /// Addresses of the bridge.
        gateway: DualAddr,
    },
}

/// What the programs know of the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MeshConfig {
    /// Addresses of this node's router.
    pub addr: DualAddr,
    /// MAC of this node's router.
    pub router: MacAddr,
    /// UDP port of the tunnels.
    pub data_port: u16,
    /// The balancer of published ports, if there is one.
    pub balancer: Option<IngressBalancer>,
}

/// An endpoint that can be chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LbEndpoint {
    /// Its number.
    pub id: EndpointId,
    /// Its addresses.
    pub addr: DualAddr,
    /// Its MAC.
    pub mac: MacAddr,
    /// Whether its task runs on this node.
    pub local: bool,
    /// What new flows it gets.
    pub takes: Takes,
    /// Its node, another one, can answer clients of this one itself.
    pub dsr: bool,
    /// Host side of its veth when local, else the VXLAN device of its network.
    pub link: IfName,
}

/// A program of the data plane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Program {
    /// On each uplink.
    MeshIngress,
    /// On each VXLAN device.
    OverlayRx,
    /// On the host side of each task veth.
    TaskTx,
    /// On the host side of each balancer's leg.
    BalancerTx,
    /// On the host side of the gate.
    GateTx,
    /// On the loopback device.
    HostTx,
}

/// A virtual IP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vip {
    /// Network it is in.
    pub network: Vni,
    /// The address.
    pub addr: IpAddr,
    /// What it leads to.
    pub service: ServiceKey,
    /// MAC it is answered with.
    pub mac: MacAddr,
    /// The network's balancer, by the host side of its leg, if there is one.
    pub balancer: Option<IfName>,
    /// The virtual service that new flows go to; none: the service's table.
    pub mark: Option<FirewallMark>,
}

/// A published port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// Transport, port and address on the node.
    pub place: PortPlace,
    /// What it leads to.
    pub service: ServiceKey,
    /// Port the tasks listen on.
    pub target: u16,
    /// The virtual service that new flows go to; none: the service's table.
    pub mark: Option<FirewallMark>,
    /// Tasks are told who the client is by a header of the PROXY protocol, version 2.
    pub proxy: bool,
    /// The node of a task answers clients itself where it can.
    pub dsr: bool,
}

/// A task's resolver and what it answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolver {
    /// The task.
    pub task: TaskId,
    /// The names of the networks it is in, in order.
    pub networks: Vec<Arc<NetworkNames>>,
    /// What is never asked outside.
    pub reserved: Arc<ReservedNames>,
    /// Whether other names are asked outside at all.
    pub forward: bool,
    /// Which servers are asked then; none: the node's.
    pub servers: Vec<IpAddr>,
}

/// The names of a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkNames {
    /// The network's name.
    pub name: String,
    /// Its subnets.
    pub subnets: (Ipv4Net, Ipv6Net),
    /// Services in it.
    pub services: Vec<ServiceNames>,
    /// Tasks in it.
    pub tasks: Vec<TaskNames>,
}

/// A service's names and addresses in a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceNames {
    /// Its name.
    pub name: String,
    /// Further names.
    pub aliases: Vec<String>,
    /// Its virtual IPs; without any, its names stand for its serving tasks, and for those that are idle if all are.
    pub vips: Vec<IpAddr>,
    /// Ports that its tasks are published with.
    pub targets: BTreeSet<(Protocol, u16)>,
}

/// A task's name and addresses in a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskNames {
    /// Its service.
    pub service: String,
    /// Its slot: a number, or the start of its node's id.
    pub slot: String,
    /// Whether it takes new flows.
    pub serving: bool,
    /// Whether its node has weight 0.
    pub idle: bool,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}

/// Names and addresses that only mean something inside the cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReservedNames {
    /// Names of networks.
    pub networks: BTreeSet<String>,
    /// Slots of global services.
    pub slots: BTreeSet<String>,
    /// Subnets of networks, and pools.
    pub subnets: BTreeSet<IpNet>,
}

/// A task's program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    /// The task.
    pub id: TaskId,
    /// Wanted: whether it should run. Found: whether it does.
    pub goal: Goal,
    /// What to run; absent on what was found.
    pub spec: Option<Arc<AssignedTask>>,
}

/// See [`Task::goal`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goal {
    /// Runs.
    Run,
    /// Has ended, or must.
    Stop,
}
