//! What can be asked of the replicated state, and what comes back.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use shoal_types::id::{ClusterId, Name, NetworkId, NodeId, ServiceId, TaskId, TokenId};
use shoal_types::lb::{DirectRouting, LbEngine, LbInUse, Weight};
use shoal_types::object::{
    Availability, DesiredState, NodeDescription, NodeRole, NodeState, Slot, TaskStatus, Timestamp,
};
use shoal_types::spec::{NetworkSpec, ServiceSpec};

/// One entry of the log: a command with the facts that only the leader may read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The leader's clock when it proposed the command.
    pub now: Timestamp,
    /// The client's request id: a command that was applied under it is not applied again.
    pub request_id: Option<String>,
    /// What is asked.
    pub command: Command,
}

/// What is asked. Ids of new objects are drawn by the leader before it proposes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// Founds the cluster: pools, ingress network, first manager.
    InitCluster(Box<InitCluster>),

    /// Makes an overlay network.
    CreateNetwork {
        /// Its id.
        id: NetworkId,
        /// As asked for.
        spec: NetworkSpec,
    },
    /// Removes a network that nothing uses.
    RemoveNetwork {
        /// Which.
        id: NetworkId,
    },

    /// Makes a service, with VIPs and published ports.
    CreateService {
        /// Its id.
        id: ServiceId,
        /// As asked for.
        spec: Box<ServiceSpec>,
    },
    /// Replaces a service's spec.
    UpdateService {
        /// Which.
        id: ServiceId,
        /// The whole new spec.
        spec: Box<ServiceSpec>,
        /// Refused unless the service is at this version; `None` overwrites.
        expect_version: Option<u64>,
    },
    /// Changes the number of replicas and nothing else.
    ScaleService {
        /// Which.
        id: ServiceId,
        /// How many.
        replicas: u32,
    },
    /// Starts the removal of a service: its tasks drain and stop, then it goes.
    RemoveService {
        /// Which.
        id: ServiceId,
    },

    /// Makes a join token.
    CreateToken {
        /// Public part.
        id: TokenId,
        /// Role of who joins by it.
        role: NodeRole,
        /// SHA-256 of the secret.
        secret_sha256: [u8; 32],
        /// Life time from now, milliseconds.
        ttl_ms: u64,
        /// Joins it is good for; `None` = no limit.
        uses: Option<u32>,
    },
    /// Withdraws a join token.
    RemoveToken {
        /// Which.
        id: TokenId,
    },

    /// A host joins; consumes one use of the token. The role is the token's.
    Join(Box<Join>),
    /// Changes what an operator may change of a node.
    UpdateNode {
        /// Which.
        id: NodeId,
        /// New availability.
        availability: Option<Availability>,
        /// Labels to set.
        labels_add: BTreeMap<String, String>,
        /// Labels to take away.
        labels_remove: Vec<String>,
    },
    /// Removes a node and denies its certificate.
    RemoveNode {
        /// Which.
        id: NodeId,
        /// Even when it is alive and has tasks.
        force: bool,
    },
    /// The node said goodbye by itself.
    NodeLeft {
        /// Which.
        id: NodeId,
    },
    /// Liveness as the leader judged it.
    SetNodeState {
        /// Which.
        id: NodeId,
        /// The verdict.
        state: NodeState,
    },
    /// A node opened a session: it is ready, and this is what it says of itself.
    NodeHello {
        /// Which.
        id: NodeId,
        /// What it says of itself.
        description: NodeDescription,
        /// Source address of its VXLAN frames.
        data_addr: IpAddr,
    },
    /// Where a manager can be dialled now.
    SetControlAddr {
        /// Which.
        id: NodeId,
        /// The address.
        addr: SocketAddr,
    },
    /// What a node reports of its own tasks. Only forward moves count, the rest is ignored.
    ReportTasks {
        /// Who reports.
        node: NodeId,
        /// What it saw.
        updates: Vec<(TaskId, TaskStatus)>,
    },

    /// Leader: a task for a slot, made of the service's current spec.
    CreateTask {
        /// Its id.
        id: TaskId,
        /// Whose.
        service: ServiceId,
        /// Which place.
        slot: Slot,
        /// Not to be started before.
        not_before: Timestamp,
        /// The ended task whose place it takes; that one becomes history.
        replaces: Option<TaskId>,
        /// Whether this counts as an attempt of the restart policy.
        restart: bool,
        /// Why it was made, for the operator.
        message: String,
    },
    /// Leader: gives a pending task a node and its addresses.
    AssignTask {
        /// Which.
        id: TaskId,
        /// Where to.
        node: NodeId,
    },
    /// Leader: why a pending task has no node.
    SetPendingReason {
        /// Which.
        id: TaskId,
        /// The reason in words.
        message: String,
    },
    /// Leader: moves what is wanted of a task; only forward.
    SetDesired {
        /// Which.
        id: TaskId,
        /// What is wanted.
        desired: DesiredState,
    },
    /// Leader: every ready node has taken these draining tasks out of its load balancers.
    PassBarrier {
        /// Which.
        ids: Vec<TaskId>,
    },
    /// Leader: forgets a task that ended.
    RemoveTask {
        /// Which.
        id: TaskId,
    },
    /// Leader: the last task of a service under removal is gone; frees its name, ports and VIPs.
    FinishServiceRemoval {
        /// Which.
        id: ServiceId,
    },
    /// Leader: a node that was down has applied an assignment without its forgotten tasks; frees their addresses.
    ReleaseStranded {
        /// Which node.
        node: NodeId,
    },

    // New commands go here: logs tell commands by their number in this list.
    /// Chooses the engine of all nodes that have no setting of their own. A founding with a choice is followed by one.
    SetLbEngine {
        /// The engine.
        engine: LbEngine,
    },
    /// How a node balances is no longer what it said last.
    ReportLb {
        /// Who reports.
        node: NodeId,
        /// What it does.
        lb: LbInUse,
    },
    /// Leader: whether virtual IPs stand on the loopbacks of tasks; one step at a time.
    SetDirectRouting {
        /// The next state.
        direct: DirectRouting,
    },
    /// [`Command::UpdateNode`] with a weight. That one has no place for it in the logs there are.
    WeighNode {
        /// Which.
        id: NodeId,
        /// New weight.
        weight: Weight,
        /// New availability.
        availability: Option<Availability>,
        /// Labels to set.
        labels_add: BTreeMap<String, String>,
        /// Labels to take away.
        labels_remove: Vec<String>,
    },
}

impl Command {
    /// A stable word for the kind of command (metrics, request records).
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::InitCluster(_) => "init-cluster",
            Self::CreateNetwork { .. } => "create-network",
            Self::RemoveNetwork { .. } => "remove-network",
            Self::CreateService { .. } => "create-service",
            Self::UpdateService { .. } => "update-service",
            Self::ScaleService { .. } => "scale-service",
            Self::RemoveService { .. } => "remove-service",
            Self::CreateToken { .. } => "create-token",
            Self::RemoveToken { .. } => "remove-token",
            Self::Join(_) => "join",
            Self::UpdateNode { .. } | Self::WeighNode { .. } => "update-node",
            Self::RemoveNode { .. } => "remove-node",
            Self::NodeLeft { .. } => "node-left",
            Self::SetNodeState { .. } => "set-node-state",
            Self::NodeHello { .. } => "node-hello",
            Self::SetControlAddr { .. } => "set-control-addr",
            Self::ReportTasks { .. } => "report-tasks",
            Self::CreateTask { .. } => "create-task",
            Self::AssignTask { .. } => "assign-task",
            Self::SetPendingReason { .. } => "set-pending-reason",
            Self::SetDesired { .. } => "set-desired",
            Self::PassBarrier { .. } => "pass-barrier",
            Self::RemoveTask { .. } => "remove-task",
            Self::FinishServiceRemoval { .. } => "finish-service-removal",
            Self::ReleaseStranded { .. } => "release-stranded",
            Self::SetLbEngine { .. } => "set-lb-engine",
            Self::ReportLb { .. } => "report-lb",
            Self::SetDirectRouting { .. } => "set-direct-routing",
        }
    }
}

/// Facts of a new cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InitCluster {
    /// Identity.
    pub id: ClusterId,
    /// Name.
    pub name: Name,
    /// UDP port of the overlay.
    pub data_port: u16,
    /// Life time of node certificates, milliseconds.
    pub cert_lifetime_ms: u64,
    /// Root certificate, DER.
    pub ca_cert_der: Vec<u8>,
    /// Root key, sealed.
    pub ca_key_sealed: Vec<u8>,
    /// Where networks take their subnets from.
    pub pools: Pools,
    /// Id of the ingress network that is made with the cluster.
    pub ingress: NetworkId,
    /// The node it is founded on, the first manager.
    pub manager: FirstManager,
}

/// Where networks without a subnet of their own take it from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pools {
    /// IPv4 blocks, tried in this order.
    pub v4: Vec<Ipv4Net>,
    /// Prefix length of a network cut out of them (20).
    pub v4_prefix: u8,
    /// Unique local /48 of the cluster; each network takes a /64.
    pub v6: Ipv6Net,
}

/// The node a cluster is founded on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FirstManager {
    /// Identity.
    pub id: NodeId,
    /// Host name; made a DNS label.
    pub name_hint: String,
    /// Where its manager listens.
    pub control_addr: SocketAddr,
    /// VTEP.
    pub data_addr: IpAddr,
    /// What it says of itself.
    pub description: NodeDescription,
}

/// A host that wants in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Join {
    /// Public part of its token.
    pub token: TokenId,
    /// SHA-256 of the secret it showed.
    pub secret_sha256: [u8; 32],
    /// The id it will have.
    pub node: NodeId,
    /// Host name; made a DNS label and unique by a suffix.
    pub name_hint: String,
    /// VTEP.
    pub data_addr: IpAddr,
}

/// What an accepted command did. Small, since it is remembered for retries: read the object from the state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// Nothing to name (leader loops, reports).
    Done,
    /// The state already was as asked.
    Unchanged,
    /// The cluster was founded.
    Cluster {
        /// Its id.
        id: ClusterId,
        /// Its first manager.
        node: NodeId,
    },
    /// About a node: joined, changed or removed.
    Node {
        /// Its id.
        id: NodeId,
        /// Its name.
        name: Name,
    },
    /// About a network.
    Network {
        /// Its id.
        id: NetworkId,
        /// Its name.
        name: Name,
    },
    /// About a service.
    Service {
        /// Its id.
        id: ServiceId,
        /// Its name.
        name: Name,
        /// Version after the command.
        version: u64,
    },
    /// About a token.
    Token {
        /// Its id.
        id: TokenId,
    },
}
