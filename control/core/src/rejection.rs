//! Why a command was refused: a value with a stable code, what was asked, who holds it and what to do next.

mod advice;

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use shoal_types::ErrorCode;
use shoal_types::id::{Name, TokenId};
use shoal_types::lb::{LbEngine, LbPolicy};
use shoal_types::net::Protocol;
use shoal_types::object::Timestamp;
use shoal_types::port::{PortPlace, PublishMode};

use crate::clock_text::utc;

/// A kind of object, as operators call it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// A host.
    Node,
    /// An overlay.
    Network,
    /// A service.
    Service,
    /// A task.
    Task,
    /// A join token.
    Token,
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Node => "node",
            Self::Network => "network",
            Self::Service => "service",
            Self::Task => "task",
            Self::Token => "token",
        })
    }
}

/// Why a command was refused. The state is as it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Rejection {
    /// A command came before the cluster was founded.
    #[error("there is no cluster here yet")]
    NotInitialized,
    /// Founded twice.
    #[error("this node already is in cluster '{cluster}'")]
    AlreadyInitialized {
        /// Which one.
        cluster: Name,
    },
    /// A field that can't be as it was given.
    #[error("{field}: '{value}' {problem}")]
    InvalidField {
        /// The field, as the operator knows it.
        field: String,
        /// What was given.
        value: String,
        /// What is wrong with it.
        problem: String,
        /// What to write instead.
        help: String,
    },
    /// No such object.
    #[error("{kind} '{target}' not found")]
    NotFound {
        /// What was looked for.
        kind: Kind,
        /// Id, prefix or name.
        target: String,
    },
    /// An id prefix of several objects.
    #[error("{kind} '{target}' is ambiguous: {} match", .matches.len())]
    Ambiguous {
        /// What was looked for.
        kind: Kind,
        /// The prefix.
        target: String,
        /// `id (name)` of each.
        matches: Vec<String>,
    },
    /// The name is taken.
    #[error("{kind} name '{name}' is already taken")]
    NameTaken {
        /// What was to be made.
        kind: Kind,
        /// The name.
        name: Name,
        /// Id of who has it.
        holder: String,
        /// Since when.
        since: Timestamp,
        /// The holder is being removed.
        removing: bool,
    },
    /// The id is taken: the same command twice without a request id.
    #[error("{kind} id '{id}' is already taken")]
    IdTaken {
        /// What was to be made.
        kind: Kind,
        /// The id.
        id: String,
    },
    /// Somebody else changed the service in between.
    #[error("service '{service}' is at version {actual}, not {expected}")]
    VersionConflict {
        /// Which.
        service: Name,
        /// What the caller had read.
        expected: u64,
        /// What it is.
        actual: u64,
        /// When it was changed.
        changed_at: Timestamp,
    },
    /// The service is on its way out.
    #[error("service '{service}' is being removed")]
    Removing {
        /// Which.
        service: Name,
    },
    /// Another service publishes the port.
    #[error("port {port}/{protocol} is already published by service '{holder}'")]
    PortTaken {
        /// Port on every node.
        port: u16,
        /// Transport.
        protocol: Protocol,
        /// Service that asked.
        asked_by: Name,
        /// Service that has it.
        holder: Name,
        /// Target port there (what `--publish-rm` takes).
        holder_target: u16,
        /// Since when.
        since: Timestamp,
        /// The holder is being removed; the port is free when its tasks have stopped.
        removing: bool,
    },
    /// The automatic range is full.
    #[error("no free {protocol} port in {first}-{last} for service '{asked_by}'")]
    PortsExhausted {
        /// Transport.
        protocol: Protocol,
        /// Service that asked.
        asked_by: Name,
        /// First port of the range.
        first: u16,
        /// Last port of the range.
        last: u16,
    },
    /// The subnet shares addresses with another network.
    #[error("{field}: {subnet} overlaps {held} of network '{holder}'")]
    SubnetOverlap {
        /// `subnet4` or `subnet6`.
        field: String,
        /// What was asked for.
        subnet: String,
        /// Network that asked.
        asked_by: Name,
        /// Network that has it.
        holder: Name,
        /// Its subnet.
        held: String,
    },
    /// A host's own address lies in an overlay: frames to it would loop into the tunnel.
    #[error("address {addr} of node '{node}' lies in {subnet} of network '{network}'")]
    AddressInOverlay {
        /// The host's address.
        addr: IpAddr,
        /// The host.
        node: String,
        /// The network, existing or asked for.
        network: Name,
        /// Its subnet.
        subnet: String,
    },
    /// Another live node has the address.
    #[error("data address {addr} is that of node '{holder}', which is alive")]
    AddressTaken {
        /// The address.
        addr: IpAddr,
        /// Who has it.
        holder: Name,
    },
    /// Fewer free addresses than needed.
    #[error("network '{network}' ({subnet}) has {free} free addresses of {total}, {wanted} are needed")]
    SubnetExhausted {
        /// Which.
        network: Name,
        /// Its IPv4 subnet.
        subnet: String,
        /// Addresses that could be given out at all.
        total: u64,
        /// Free ones.
        free: u64,
        /// Needed ones.
        wanted: u64,
        /// Who asked, in words.
        asked_by: String,
    },
    /// No free block in the pools.
    #[error("no free {family} /{prefix} in the pools ({pools}) for network '{network}'")]
    PoolExhausted {
        /// `IPv4` or `IPv6`.
        family: String,
        /// Size wanted.
        prefix: u8,
        /// The pools.
        pools: String,
        /// Who asked.
        network: Name,
    },
    /// A number that is never reused ran out.
    #[error("the cluster has given out every {what}")]
    NumbersExhausted {
        /// `VNI`, `endpoint number`, `service number`.
        what: String,
    },
    /// Something still needs the object.
    #[error("{kind} '{name}' is in use")]
    InUse {
        /// What.
        kind: Kind,
        /// Its name.
        name: Name,
        /// By whom.
        by: Vec<String>,
    },
    /// The ingress network stays.
    #[error("network '{network}' carries the published ports and cannot be removed")]
    IngressStays {
        /// Its name.
        network: Name,
    },
    /// The node is alive or has tasks.
    #[error("node '{node}' is {state} and has {tasks} tasks")]
    NodeAlive {
        /// Which.
        node: Name,
        /// Its state in words.
        state: String,
        /// Tasks that are not over.
        tasks: usize,
    },
    /// The last manager can't go.
    #[error("node '{node}' is the only manager of the cluster")]
    LastManager {
        /// Which.
        node: Name,
    },
    /// A manager that is alive has to be demoted first.
    #[error("node '{node}' is a manager")]
    IsManager {
        /// Which.
        node: Name,
    },
    /// No token with that id and secret.
    #[error("no join token '{id}' with this secret")]
    TokenUnknown {
        /// Public part.
        id: TokenId,
    },
    /// The token's life time is over.
    #[error("join token '{id}' expired {}", utc(*.at))]
    TokenExpired {
        /// Public part.
        id: TokenId,
        /// When.
        at: Timestamp,
    },
    /// No joins left.
    #[error("join token '{id}' has no uses left")]
    TokenUsedUp {
        /// Public part.
        id: TokenId,
    },
    /// The request id was used for another kind of command.
    #[error("request id '{request}' was already used for {earlier}")]
    RequestReused {
        /// The id.
        request: String,
        /// What it was used for.
        earlier: String,
    },
    /// A leader loop decided on a state that has moved on; it will decide again.
    #[error("{what} no longer applies: {why}")]
    Outdated {
        /// The command.
        what: String,
        /// What is different.
        why: String,
    },
    /// An engine in use lacks the policy.
    #[error("service '{service}' cannot balance by {policy}: {reason}")]
    PolicyUnsupported {
        /// Service that asked.
        service: Name,
        /// What it asked for.
        policy: LbPolicy,
        /// Why it can't be.
        reason: String,
        /// What the cluster is set to.
        engine: LbEngine,
        /// Nodes that balance by an engine without it.
        nodes: Vec<Name>,
    },
    /// Services have a policy that the engine lacks.
    #[error("the swarm cannot be set to engine {engine} while services balance by {policy}: {reason}")]
    EngineInUse {
        /// What was asked for.
        engine: LbEngine,
        /// The policy.
        policy: LbPolicy,
        /// Why they do not go together.
        reason: String,
        /// Services that have it.
        services: Vec<Name>,
    },
    /// Nodes have no IPVS.
    #[error("the swarm cannot be set to engine ipvs: {} of its nodes {} no IPVS", .nodes.len(), have(.nodes.len()))]
    EngineMissing {
        /// Which.
        nodes: Vec<Name>,
    },
    /// Another service publishes a port of that number on addresses in common.
    #[error("port {place} ({mode}) overlaps {held} ({held_mode}) of service '{holder}'")]
    PortOverlap {
        /// What was asked for.
        place: PortPlace,
        /// How.
        mode: PublishMode,
        /// Service that asked.
        asked_by: Name,
        /// What is taken.
        held: PortPlace,
        /// How.
        held_mode: PublishMode,
        /// Service that has it.
        holder: Name,
        /// Since when.
        since: Timestamp,
        /// The holder is being removed; the port is free when its tasks have stopped.
        removing: bool,
    },
    /// A service would get a port in host mode on a node where another has it.
    #[error(
        "port {place} is in use on {node} by service '{holder}', and service '{asked_by}' has a task there"
    )]
    HostPortInUse {
        /// What was asked for.
        place: PortPlace,
        /// Service that asked.
        asked_by: Name,
        /// Service that has it.
        holder: Name,
        /// Node that has tasks of both.
        node: Name,
    },
    /// The port would have to be translated, and its protocol does not allow that.
    #[error("publish: '{port}' leads to another port, and {protocol} ports cannot be translated")]
    PortsUnequal {
        /// What was asked for.
        port: String,
        /// Transport.
        protocol: Protocol,
        /// Service that asked.
        asked_by: Name,
        /// Port that the tasks listen on.
        target: u16,
    },
}

const fn have(count: usize) -> &'static str {
    if count == 1 { "has" } else { "have" }
}

impl Rejection {
    /// A field that can't be as it was given.
    #[expect(clippy::needless_pass_by_value, reason = "callers hand over numbers, names and literals alike")]
    pub fn invalid(
        field: impl Into<String>,
        value: impl ToString,
        problem: impl Into<String>,
        help: impl Into<String>,
    ) -> Self {
        Self::InvalidField {
            field: field.into(),
            value: value.to_string(),
            problem: problem.into(),
            help: help.into(),
        }
    }

    /// No such object.
    #[expect(clippy::needless_pass_by_value, reason = "callers hand over ids and texts alike")]
    pub fn not_found(kind: Kind, target: impl ToString) -> Self {
        Self::NotFound { kind, target: target.to_string() }
    }

    /// The stable code.
    pub const fn code(&self) -> ErrorCode {
        match self {
            Self::NotInitialized => ErrorCode::NotMember,
            Self::AlreadyInitialized { .. } => ErrorCode::AlreadyMember,
            Self::InvalidField { .. } | Self::RequestReused { .. } => ErrorCode::InvalidField,
            Self::NotFound { .. } => ErrorCode::NotFound,
            Self::Ambiguous { .. } => ErrorCode::Ambiguous,
            Self::NameTaken { .. } | Self::IdTaken { .. } => ErrorCode::NameTaken,
            Self::VersionConflict { .. } | Self::Outdated { .. } => ErrorCode::VersionConflict,
            Self::PortTaken { .. } | Self::PortOverlap { .. } | Self::HostPortInUse { .. } => {
                ErrorCode::PortTaken
            }
            Self::PortsExhausted { .. } => ErrorCode::PortsExhausted,
            Self::SubnetOverlap { .. } | Self::AddressInOverlay { .. } => ErrorCode::SubnetOverlap,
            Self::SubnetExhausted { .. } => ErrorCode::SubnetExhausted,
            Self::PoolExhausted { .. } | Self::NumbersExhausted { .. } => ErrorCode::PoolExhausted,
            Self::InUse { .. } | Self::IngressStays { .. } | Self::Removing { .. } => ErrorCode::InUse,
            Self::NodeAlive { .. }
            | Self::LastManager { .. }
            | Self::IsManager { .. }
            | Self::AddressTaken { .. } => ErrorCode::NodeBusy,
            Self::TokenUnknown { .. } => ErrorCode::TokenUnknown,
            Self::TokenExpired { .. } => ErrorCode::TokenExpired,
            Self::TokenUsedUp { .. } => ErrorCode::TokenUsedUp,
            Self::PolicyUnsupported { .. } => ErrorCode::PolicyUnsupported,
            Self::EngineInUse { .. } => ErrorCode::EngineInUse,
            Self::EngineMissing { .. } => ErrorCode::EngineMissing,
            Self::PortsUnequal { .. } => ErrorCode::PortsUnequal,
        }
    }
}
