//! What the cluster holds: objects of the replicated state.

mod stored;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::id::{ClusterId, Name, NetworkId, NodeId, ServiceId, TaskId, TokenId};
use crate::lb::{DirectRouting, LbEngine, NodeLb, Weight};
use crate::net::{DualAddr, DualNet, EndpointId, MacAddr, ServiceIndex, Vni};
use crate::port::PublishedPort;
use crate::spec::{NetworkSpec, ServiceSpec, TaskSpec};

/// Milliseconds since the Unix epoch, stamped by the leader before a command is proposed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// Milliseconds from `earlier` to `self`, zero when it lies in the future.
    pub const fn since_ms(self, earlier: Timestamp) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// Fence of what a node was told: the Raft log index that the assignment was computed from, so it rises across
/// leader changes and two managers can't give the same number to different content.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Generation(pub u64);

/// The swarm itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    /// Identity, also in every certificate.
    pub id: ClusterId,
    /// Chosen or given at init.
    pub name: Name,
    /// Creation.
    pub created_at: Timestamp,
    /// UDP port of the overlay on every node.
    pub data_port: u16,
    /// Life time of node certificates, milliseconds.
    pub cert_lifetime_ms: u64,
    /// Root certificate, DER.
    pub ca_cert_der: Vec<u8>,
    /// Root key, sealed (AEAD) with the managers' data key; never in clear in the state.
    pub ca_key_sealed: Vec<u8>,
    /// How its nodes balance. Not part of what the derived reader and writer see: the state keeps it beside them.
    #[serde(skip)]
    pub balancing: Balancing,
}

/// How the nodes of a cluster balance.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Balancing {
    /// The engine of every node that has no wish of its own.
    pub engine: LbEngine,
    /// Whether virtual IPs stand on the loopbacks of tasks, for IPVS to forward to them directly.
    pub direct: DirectRouting,
    /// Log index since which it is so.
    pub direct_since: u64,
}

/// Manager or worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum NodeRole {
    /// Runs tasks.
    Worker,
    /// Runs tasks and `shoal-control`.
    Manager,
}

/// Whether the scheduler may use a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Availability {
    /// Takes tasks.
    Active,
    /// Keeps its tasks, takes no new ones.
    Pause,
    /// Its tasks move away.
    Drain,
}

/// What the managers see of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum NodeState {
    /// Joined, has had no session yet.
    Unknown,
    /// Has a session.
    Ready,
    /// 2 s without contact: out of the load balancers, reversible.
    Suspect,
    /// 10 s without contact: its tasks are replaced.
    Down,
}

/// A host that joined.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "stored::Node", into = "stored::Node")]
pub struct Node {
    /// Identity, common name of its certificates.
    pub id: NodeId,
    /// Host name as a DNS label; unique by suffixing when two hosts have the same.
    pub name: Name,
    /// Role.
    pub role: NodeRole,
    /// Scheduling.
    pub availability: Availability,
    /// What share of new flows its tasks get.
    pub weight: Weight,
    /// Liveness as the leader sees it.
    pub state: NodeState,
    /// Since when it is in `state`.
    pub state_since: Timestamp,
    /// When it joined.
    pub joined_at: Timestamp,
    /// Where its manager listens (managers only).
    pub control_addr: Option<SocketAddr>,
    /// VTEP: source address of its VXLAN frames.
    pub data_addr: IpAddr,
    /// Its router endpoint in the ingress network.
    pub router: Attachment,
    /// What it said about itself.
    pub description: NodeDescription,
    /// Operator's labels.
    pub labels: BTreeMap<String, String>,
}

/// What a node says about itself at the start of a session.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeDescription {
    /// Kernel host name.
    pub hostname: String,
    /// CPU capacity, thousandths of a core.
    pub cpu_milli: u64,
    /// Memory, bytes.
    pub memory: u64,
    /// shoald's version.
    pub version: String,
    /// `uname -r`.
    pub kernel: String,
    /// How it balances. It says so anew when that changes, within a session too.
    #[serde(with = "lb_in_words")]
    pub lb: NodeLb,
}

/// The first version's states hold the name of an engine here. Their format does not name fields, so none can be
/// added: all that a node says goes into this text.
mod lb_in_words {
    use serde::{Deserialize, Deserializer, Serializer};

    use crate::lb::NodeLb;

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "the derived writer hands over a reference")]
    pub(super) fn serialize<S: Serializer>(lb: &NodeLb, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(lb)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<NodeLb, D::Error> {
        // What another version said in other words is as good as not said: the node will say it again.
        Ok(String::deserialize(deserializer)?.parse().unwrap_or_default())
    }
}

/// An endpoint: one task, router or VIP in one network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// Number of the endpoint; its MAC follows from it.
    pub endpoint: EndpointId,
    /// The network.
    pub network: NetworkId,
    /// Addresses in it.
    pub addr: DualAddr,
}

impl Attachment {
    /// The endpoint's MAC.
    pub fn mac(&self) -> MacAddr {
        MacAddr::of_endpoint(self.endpoint)
    }
}

/// An overlay network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// Identity.
    pub id: NetworkId,
    /// As asked for.
    pub spec: NetworkSpec,
    /// Its VXLAN id.
    pub vni: Vni,
    /// Subnets in use.
    pub subnets: DualNet,
    /// The one network that published ports travel on; made at init, never removed.
    pub ingress: bool,
    /// Creation.
    pub created_at: Timestamp,
}

/// A service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// Identity.
    pub id: ServiceId,
    /// Number in the LB maps.
    pub index: ServiceIndex,
    /// As asked for.
    pub spec: ServiceSpec,
    /// Counts the changes of `spec.task` and its networks: tasks of an older one are outdated.
    pub task_version: u64,
    /// Counts every change of `spec`; the version for optimistic updates.
    pub version: u64,
    /// Its VIP in each network it is on (not in ingress).
    pub vips: Vec<Attachment>,
    /// Published ports with automatic ones filled in, same order as `spec.ports`.
    pub ports: Vec<PublishedPort>,
    /// Creation.
    pub created_at: Timestamp,
    /// Last change of `spec`.
    pub updated_at: Timestamp,
    /// Being removed: tasks drain and stop, then the service goes.
    pub removing: bool,
}

/// A place of a service that one task at a time fills.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Slot {
    /// Replicated: counts from 1.
    Number(u32),
    /// Global: the node.
    Node(NodeId),
}

impl std::fmt::Display for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Number(n) => n.fmt(f),
            Self::Node(id) => f.write_str(id.short()),
        }
    }
}

/// What the managers want of a task. Only ever moves down this list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum DesiredState {
    /// Run it and send it new flows.
    Running,
    /// Out of the load balancers, keep it running for the flows it has (barrier).
    Draining,
    /// Stop it.
    Shutdown,
    /// Stop it and forget it.
    Remove,
}

/// What is known of a task. Only ever moves down this list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum TaskState {
    /// Made, no node yet.
    Pending,
    /// Has a node.
    Assigned,
    /// The node sets up its namespace, links and addresses.
    Preparing,
    /// The program is being started.
    Starting,
    /// The program runs.
    Running,
    /// Ended with exit code 0.
    Complete,
    /// Stopped on demand.
    Shutdown,
    /// Ended otherwise.
    Failed,
    /// Could not be started at all (no such program, no such user).
    Rejected,
    /// Its node has been down for too long, or is gone.
    Orphaned,
}

impl TaskState {
    /// Nothing of it runs any more.
    pub const fn is_terminal(self) -> bool {
        matches!(self, Self::Complete | Self::Shutdown | Self::Failed | Self::Rejected | Self::Orphaned)
    }
}

/// What the last answers to a task's health check come to. Unlike its state it moves both ways.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Health {
    /// It has no health check, or does not run yet.
    #[default]
    Unchecked,
    /// No good answer yet, and not enough wrong ones.
    Starting,
    /// It can serve.
    Healthy,
    /// It can't: too many wrong answers in a row.
    Unhealthy,
}

/// Evidence for a task's state. A task with a health check is [`TaskState::Starting`] until its first good answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "stored::Status", into = "stored::Status")]
pub struct TaskStatus {
    /// The state.
    pub state: TaskState,
    /// What its health check says.
    pub health: Health,
    /// Since when.
    pub since: Timestamp,
    /// Why, in words for the operator; empty when there is nothing to say.
    pub message: String,
    /// Exit code, or 128 + signal, once it ended.
    pub exit_code: Option<i32>,
    /// Process id on its node while it runs.
    pub pid: Option<u32>,
    /// Connections that are left of a task that drains, counted after every ready node had withdrawn it. `None`: not
    /// counted (yet).
    pub connections: Option<u32>,
}

/// One run of one slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    /// Identity.
    pub id: TaskId,
    /// Whose it is.
    pub service: ServiceId,
    /// Which place it fills.
    pub slot: Slot,
    /// Spec it was made from.
    pub spec: TaskSpec,
    /// `Service::task_version` it was made from.
    pub task_version: u64,
    /// Where it runs, once scheduled.
    pub node: Option<NodeId>,
    /// What the managers want.
    pub desired: DesiredState,
    /// Raft log index at which `desired` last changed: the barrier is passed once every node has applied it.
    pub desired_index: u64,
    /// When `desired` last changed.
    pub desired_at: Timestamp,
    /// What is.
    pub status: TaskStatus,
    /// Its endpoints: one per network of the service, and one in ingress when the service publishes ports.
    pub attachments: Vec<Attachment>,
    /// Creation.
    pub created_at: Timestamp,
    /// Not to be started before (restart delay).
    pub not_before: Timestamp,
}

impl Task {
    /// Whether new flows may be sent to it.
    pub fn is_serving(&self) -> bool {
        self.desired == DesiredState::Running
            && self.status.state == TaskState::Running
            && self.status.health != Health::Unhealthy
    }
}

/// A join token. The secret itself is printed once and never stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinToken {
    /// Public part.
    pub id: TokenId,
    /// Role a node gets by it.
    pub role: NodeRole,
    /// SHA-256 of the secret.
    pub secret_sha256: [u8; 32],
    /// End of its life.
    pub expires_at: Timestamp,
    /// Joins left; `None` = no limit.
    pub uses_left: Option<u32>,
    /// Creation.
    pub created_at: Timestamp,
}
