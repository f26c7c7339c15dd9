//! What one node is told: everything it needs and nothing else, as a set of objects under one generation.
//!
//! A full assignment (`snapshot`) is sent when a session starts; after that `Delta`s chained by generation.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::id::{ClusterId, Name, NetworkId, NodeId, ServiceId, TaskId};
use crate::lb::{DirectRouting, LbEngine, LbPolicy, Weight};
use crate::net::{DualAddr, DualNet, EndpointId, MacAddr, ServiceIndex, Vni};
use crate::object::{Attachment, DesiredState, Generation, Slot};
use crate::port::PublishedPort;
use crate::shared::{Change, SharedMap};
use crate::spec::{AttachmentSpec, DnsSpec, TaskSpec};

/// Key of an object in an assignment.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ObjectKey {
    /// The node's own view of the cluster; there is exactly one.
    Cluster,
    /// A member of the swarm (a VTEP).
    Member(NodeId),
    /// A network this node takes part in.
    Network(NetworkId),
    /// An endpoint in one of those networks, anywhere.
    Endpoint(EndpointId),
    /// A service with its VIPs in those networks and its published ports.
    Service(ServiceId),
    /// A task of this node.
    Task(TaskId),
}

impl ObjectKey {
    /// The place of its kind in the order of keys.
    const fn kind(&self) -> u8 {
        match self {
            Self::Cluster => 0,
            Self::Member(_) => 1,
            Self::Network(_) => 2,
            Self::Endpoint(_) => 3,
            Self::Service(_) => 4,
            Self::Task(_) => 5,
        }
    }
}

/// An object in an assignment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Object {
    /// See [`ClusterView`].
    Cluster(ClusterView),
    /// See [`Member`].
    Member(Member),
    /// See [`AssignedNetwork`].
    Network(AssignedNetwork),
    /// See [`Endpoint`].
    Endpoint(Endpoint),
    /// See [`AssignedService`].
    Service(AssignedService),
    /// See [`AssignedTask`].
    Task(Box<AssignedTask>),
}

impl Object {
    /// The key it is stored under.
    pub fn key(&self) -> ObjectKey {
        match self {
            Self::Cluster(_) => ObjectKey::Cluster,
            Self::Member(m) => ObjectKey::Member(m.node.clone()),
            Self::Network(n) => ObjectKey::Network(n.id.clone()),
            Self::Endpoint(e) => ObjectKey::Endpoint(e.id),
            Self::Service(s) => ObjectKey::Service(s.id.clone()),
            Self::Task(t) => ObjectKey::Task(t.id.clone()),
        }
    }
}

/// Facts of the swarm that every node needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterView {
    /// Identity.
    pub id: ClusterId,
    /// Name.
    pub name: Name,
    /// UDP port of the overlay.
    pub data_port: u16,
    /// The node this assignment is for.
    pub node: NodeId,
    /// Its name.
    pub node_name: Name,
    /// Its router endpoint in the ingress network.
    pub router: Attachment,
    /// What balances, unless the node's own settings say otherwise.
    pub lb_engine: LbEngine,
    /// Whether virtual IPs stand on the loopbacks of tasks.
    pub direct: DirectRouting,
    /// What means something only inside the swarm. Absent in ledgers of the first version.
    #[serde(default)]
    pub reserved: Reserved,
}

/// Names and addresses that no name server outside is ever asked about, whatever networks the node takes part in.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reserved {
    /// Names of all networks, ingress aside.
    pub networks: Vec<Name>,
    /// The pools, and subnets of networks that are not from them.
    pub subnets: Vec<IpNet>,
}

/// A node of the swarm as its peers see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Identity.
    pub node: NodeId,
    /// Name.
    pub name: Name,
    /// VTEP address.
    pub data_addr: IpAddr,
    /// Its router endpoint in the ingress network.
    pub router: Attachment,
}

/// A network this node takes part in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AssignedNetwork {
    /// Identity.
    pub id: NetworkId,
    /// Name, a DNS label.
    pub name: Name,
    /// VXLAN id.
    pub vni: Vni,
    /// Subnets.
    pub subnets: DualNet,
    /// No egress, no forwarding.
    pub internal: bool,
    /// The ingress network.
    pub ingress: bool,
}

/// An endpoint of a task in a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Number.
    pub id: EndpointId,
    /// Network it is in.
    pub network: NetworkId,
    /// Addresses.
    pub addr: DualAddr,
    /// Node it is on; its VTEP is that member's `data_addr`.
    pub node: NodeId,
    /// Task it belongs to.
    pub task: TaskId,
    /// Service of the task.
    pub service: ServiceId,
    /// Slot of the task; with the service's name it makes the task's name.
    pub slot: Slot,
    /// Whether it takes new flows (running, healthy, not draining, node not suspect).
    pub serving: bool,
    /// What share of them it gets: its node's. Absent in ledgers of versions before weights.
    #[serde(default)]
    pub weight: Weight,
}

impl Endpoint {
    /// Its share of new flows, so that it can be told from others': 0 if it takes none.
    pub fn share(&self) -> u8 {
        if self.serving { self.weight.get() } else { 0 }
    }

    /// Its MAC.
    pub fn mac(&self) -> MacAddr {
        MacAddr::of_endpoint(self.id)
    }
}

/// A service as a node needs it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AssignedService {
    /// Identity.
    pub id: ServiceId,
    /// Number in the LB maps.
    pub index: ServiceIndex,
    /// Name, a DNS label.
    pub name: Name,
    /// VIPs in the networks this node takes part in.
    pub vips: Vec<Vip>,
    /// Published ports; which of them a node answers on, their bindings say.
    pub ports: Vec<PublishedPort>,
    /// How new flows are spread.
    pub lb: LbPolicy,
    /// Networks this node takes part in where its names stand for its serving tasks (endpoint mode `dnsrr`). Absent in
    /// ledgers of the first version.
    #[serde(default)]
    pub dnsrr: Vec<AttachmentSpec>,
}

/// A service's virtual IP in one network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vip {
    /// Where it is, and its addresses.
    pub at: Attachment,
    /// Further names for it in this network.
    pub aliases: Vec<Name>,
}

/// A task of this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AssignedTask {
    /// Identity.
    pub id: TaskId,
    /// Its service.
    pub service: ServiceId,
    /// Name of the service.
    pub service_name: Name,
    /// Slot.
    pub slot: Slot,
    /// What to run.
    pub spec: TaskSpec,
    /// What is wanted of it.
    pub desired: DesiredState,
    /// It drains, and every ready node has withdrawn it: its node counts the connections it still has. Absent in
    /// ledgers of the first version.
    #[serde(default)]
    pub withdrawn: bool,
    /// Its endpoints.
    pub attachments: Vec<Attachment>,
    /// Resolver settings. Absent in ledgers of the first version.
    #[serde(default)]
    pub dns: DnsSpec,
}

/// Everything a node was told.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Assignment {
    /// Fence.
    pub generation: Generation,
    /// The objects; each is stored under its own key.
    pub objects: SharedMap<ObjectKey, Object>,
}

/// A change of an assignment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delta {
    /// Applies only to an assignment of exactly this generation.
    pub from: Generation,
    /// Generation after it.
    pub to: Generation,
    /// New or changed objects.
    pub upserts: Vec<Object>,
    /// Objects that are gone.
    pub removes: Vec<ObjectKey>,
}

/// Why a delta or snapshot was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FenceError {
    /// The chain is broken: ask for a snapshot.
    #[error("delta starts at generation {from:?}, this node is at {at:?}; a snapshot is needed")]
    Gap {
        /// Where the delta starts.
        from: Generation,
        /// Where the node is.
        at: Generation,
    },
    /// Older than what the node has.
    #[error("generation {got:?} is older than {at:?}, which this node already has")]
    Old {
        /// What came.
        got: Generation,
        /// Where the node is.
        at: Generation,
    },
    /// Same generation, other content: a bug of the sender.
    #[error("generation {0:?} came twice with different content")]
    Conflict(Generation),
}

impl Assignment {
    /// Collects objects under their keys.
    pub fn new(generation: Generation, objects: impl IntoIterator<Item = Object>) -> Self {
        Self { generation, objects: objects.into_iter().map(|o| (o.key(), o)).collect() }
    }

    /// The change that leads from `self` to `next`.
    pub fn delta_to(&self, next: &Assignment) -> Delta {
        let (mut upserts, mut removes) = (Vec::new(), Vec::new());
        for change in self.objects.changes(&next.objects) {
            match change.after {
                Some(object) => upserts.push(object.clone()),
                None => removes.push(change.key.clone()),
            }
        }
        Delta { from: self.generation, to: next.generation, upserts, removes }
    }

    /// Applies a delta, or says why it must not be.
    pub fn apply(&mut self, delta: Delta) -> Result<(), FenceError> {
        if delta.to <= self.generation {
            return Err(FenceError::Old { got: delta.to, at: self.generation });
        }
        if delta.from != self.generation {
            return Err(FenceError::Gap { from: delta.from, at: self.generation });
        }
        for key in &delta.removes {
            self.objects.remove(key);
        }
        self.objects.extend(delta.upserts.into_iter().map(|o| (o.key(), o)));
        self.generation = delta.to;
        Ok(())
    }

    /// Replaces the content by a snapshot, or says why it must not be.
    pub fn replace(&mut self, snapshot: Assignment) -> Result<(), FenceError> {
        if snapshot.generation < self.generation {
            return Err(FenceError::Old { got: snapshot.generation, at: self.generation });
        }
        if snapshot.generation == self.generation && snapshot.objects != self.objects {
            return Err(FenceError::Conflict(self.generation));
        }
        *self = snapshot;
        Ok(())
    }

    /// The facts of the swarm, when they were sent.
    pub fn cluster(&self) -> Option<&ClusterView> {
        match self.objects.get(&ObjectKey::Cluster) {
            Some(Object::Cluster(view)) => Some(view),
            _ => None,
        }
    }

    /// What differs in `next`, by key.
    pub fn changes<'a>(&'a self, next: &'a Assignment) -> Vec<Change<'a, ObjectKey, Object>> {
        self.objects.changes(&next.objects)
    }

    /// An endpoint.
    pub fn endpoint(&self, id: EndpointId) -> Option<&Endpoint> {
        match self.objects.get(&ObjectKey::Endpoint(id)) {
            Some(Object::Endpoint(endpoint)) => Some(endpoint),
            _ => None,
        }
    }

    /// A service.
    pub fn service(&self, id: &ServiceId) -> Option<&AssignedService> {
        match self.objects.get(&ObjectKey::Service(id.clone())) {
            Some(Object::Service(service)) => Some(service),
            _ => None,
        }
    }

    fn of_kind(&self, kind: u8) -> impl Iterator<Item = &Object> + Clone {
        self.objects.range(move |key| key.kind().cmp(&kind)).map(|(_, object)| object)
    }

    /// Members, by node id.
    pub fn members(&self) -> impl Iterator<Item = &Member> + Clone {
        self.of_kind(1).filter_map(|o| if let Object::Member(m) = o { Some(m) } else { None })
    }

    /// Networks, by id.
    pub fn networks(&self) -> impl Iterator<Item = &AssignedNetwork> + Clone {
        self.of_kind(2).filter_map(|o| if let Object::Network(n) = o { Some(n) } else { None })
    }

    /// Endpoints, by number.
    pub fn endpoints(&self) -> impl Iterator<Item = &Endpoint> + Clone {
        self.of_kind(3).filter_map(|o| if let Object::Endpoint(e) = o { Some(e) } else { None })
    }

    /// Services, by id.
    pub fn services(&self) -> impl Iterator<Item = &AssignedService> + Clone {
        self.of_kind(4).filter_map(|o| if let Object::Service(s) = o { Some(s) } else { None })
    }

    /// Tasks of this node, by id.
    pub fn tasks(&self) -> impl Iterator<Item = &AssignedTask> + Clone {
        self.of_kind(5).filter_map(|o| if let Object::Task(t) = o { Some(t.as_ref()) } else { None })
    }
}
