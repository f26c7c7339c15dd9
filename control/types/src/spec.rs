//! What an operator asks for.

mod dns;
mod health;
mod stored;

use std::collections::BTreeMap;

use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use crate::id::{Name, NetworkId};
use crate::lb::LbPolicy;
pub use crate::port::PortSpec;

pub use health::{HealthCheck, HealthProbe, HealthTarget, parse_http};

pub use dns::DnsSpec;

/// An overlay network as asked for; absent subnets are chosen from the cluster's pools.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkSpec {
    /// Unique among networks.
    pub name: Name,
    /// IPv4 subnet, or one from the pool.
    pub subnet4: Option<Ipv4Net>,
    /// IPv6 subnet, or one from the pool.
    pub subnet6: Option<Ipv6Net>,
    /// No way out: no egress leg, no forwarding of foreign names.
    pub internal: bool,
    /// Free-form labels.
    pub labels: BTreeMap<String, String>,
}

/// A service as asked for. How it is written is in `spec/stored.rs`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceSpec {
    /// Unique among services, a DNS label.
    pub name: Name,
    /// How many tasks, and where.
    pub mode: ServiceMode,
    /// What one task is.
    pub task: TaskSpec,
    /// Overlay networks its tasks are on, by id (names are resolved before a command is proposed).
    pub networks: Vec<AttachmentSpec>,
    /// Published ports.
    pub ports: Vec<PortSpec>,
    /// How a task's spec is changed on running slots.
    pub update: UpdateConfig,
    /// Time between "out of the load balancers everywhere" and the stop signal, for flows to end; milliseconds.
    pub drain_ms: u64,
    /// How new flows are spread over its tasks.
    pub lb: LbPolicy,
    /// What its names stand for.
    pub endpoint: EndpointMode,
    /// Resolver settings of its tasks. A change of it replaces them.
    pub dns: DnsSpec,
    /// Free-form labels.
    pub labels: BTreeMap<String, String>,
}

/// What the names of a service stand for in its networks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum EndpointMode {
    /// A virtual IP in each of them.
    #[default]
    Vip,
    /// The addresses of its serving tasks, in turn; it has no virtual IP.
    Dnsrr,
}

impl EndpointMode {
    /// As it is written on the command line.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Vip => "vip",
            Self::Dnsrr => "dnsrr",
        }
    }
}

impl std::fmt::Display for EndpointMode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for EndpointMode {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Vip, Self::Dnsrr]
            .into_iter()
            .find(|mode| mode.as_str() == text)
            .ok_or_else(|| format!("'{text}' is not an endpoint mode; use vip or dnsrr"))
    }
}

/// How many tasks a service has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ServiceMode {
    /// That many slots, spread over the nodes.
    Replicated {
        /// Number of slots.
        replicas: u32,
    },
    /// One task on every node that is active.
    Global,
}

/// Membership of a service's tasks in a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachmentSpec {
    /// The network.
    pub network: NetworkId,
    /// Further names for the service in this network.
    pub aliases: Vec<Name>,
}

/// What a task runs and within which limits. A change of it replaces the tasks. How it is written is in
/// `spec/stored.rs`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskSpec {
    /// The program.
    pub process: ProcessSpec,
    /// Limits and reservations.
    pub resources: Resources,
    /// What follows when the task ends.
    pub restart: RestartPolicy,
    /// How its node finds out whether it can serve; without one it can as soon as its program runs.
    pub health: Option<HealthCheck>,
    /// Time from the stop signal to SIGKILL, milliseconds.
    pub stop_grace_ms: u64,
    /// Stop signal number (SIGTERM = 15).
    pub stop_signal: i32,
    /// Every one must hold of the node.
    pub constraints: Vec<Constraint>,
    /// At most so many tasks of this service on a node; 0 = no limit.
    pub max_per_node: u32,
    /// Counts up to redeploy an unchanged spec (`service update --force`).
    pub force_update: u64,
}

/// A host program in namespaces of its own (runtime `process`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessSpec {
    /// Program and arguments; the program is looked up in PATH when it has no slash. Never empty.
    pub command: Vec<String>,
    /// `KEY=value`, templates `{{.Service.Name}} {{.Task.Slot}} {{.Node.Hostname}}` allowed.
    pub env: Vec<String>,
    /// Working directory; `/` when absent.
    pub workdir: Option<String>,
    /// User name or `uid[:gid]`; root without capabilities when absent.
    pub user: Option<String>,
    /// Host name inside; `<service>-<slot>` when absent. Templates allowed.
    pub hostname: Option<String>,
    /// Directory that becomes `/`.
    pub root: Option<String>,
    /// Capabilities to keep (`NET_BIND_SERVICE`, without `CAP_`).
    pub cap_add: Vec<String>,
    /// Root file system is read-only.
    pub read_only: bool,
}

/// Limits are enforced by cgroups, reservations by the scheduler; 0 means none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// CPU limit, thousandths of a core.
    pub limit_cpu_milli: u64,
    /// Memory limit, bytes.
    pub limit_memory: u64,
    /// Limit of processes and threads.
    pub limit_pids: u64,
    /// CPU the scheduler sets aside, thousandths of a core.
    pub reserve_cpu_milli: u64,
    /// Memory the scheduler sets aside, bytes.
    pub reserve_memory: u64,
}

/// When a task that ended is replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestartPolicy {
    /// Which ends count.
    pub condition: RestartCondition,
    /// Pause before the replacement starts, milliseconds.
    pub delay_ms: u64,
    /// Replacements within `window_ms` before giving up; 0 = no limit.
    pub max_attempts: u32,
    /// Length of the window, milliseconds; 0 = the whole history of the slot.
    pub window_ms: u64,
}

impl Default for RestartPolicy {
    fn default() -> Self {
        Self { condition: RestartCondition::Any, delay_ms: 5_000, max_attempts: 0, window_ms: 0 }
    }
}

/// See [`RestartPolicy`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RestartCondition {
    /// Never replaced.
    None,
    /// Replaced unless it exited with 0.
    OnFailure,
    /// Always replaced.
    Any,
}

/// How running slots get a new task spec.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdateConfig {
    /// Slots at a time; 0 = all.
    pub parallelism: u32,
    /// Pause between batches, milliseconds.
    pub delay_ms: u64,
    /// Old first out or new first in.
    pub order: UpdateOrder,
}

impl Default for UpdateConfig {
    fn default() -> Self {
        Self { parallelism: 1, delay_ms: 0, order: UpdateOrder::StartFirst }
    }
}

/// See [`UpdateConfig`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum UpdateOrder {
    /// The new task runs before the old one is stopped.
    StartFirst,
    /// The old task is stopped first.
    StopFirst,
}

/// A placement constraint, `node.labels.zone == a`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Constraint {
    /// `node.id`, `node.hostname`, `node.role` or `node.labels.KEY`.
    pub key: ConstraintKey,
    /// `==` when true, `!=` when false.
    pub equal: bool,
    /// Compared without regard to case.
    pub value: String,
}

/// What a constraint looks at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ConstraintKey {
    /// The node's id.
    NodeId,
    /// The node's name.
    Hostname,
    /// `manager` or `worker`.
    Role,
    /// A label of the node.
    Label(String),
}

impl std::str::FromStr for Constraint {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (key, equal, value) = if let Some((k, v)) = text.split_once("!=") {
            (k, false, v)
        } else if let Some((k, v)) = text.split_once("==") {
            (k, true, v)
        } else {
            return Err(format!("constraint '{text}' has neither '==' nor '!='; write node.hostname==n1"));
        };
        let key = match key.trim() {
            "node.id" => ConstraintKey::NodeId,
            "node.hostname" => ConstraintKey::Hostname,
            "node.role" => ConstraintKey::Role,
            other => match other.strip_prefix("node.labels.") {
                Some(label) if !label.is_empty() => ConstraintKey::Label(label.to_owned()),
                _ => {
                    return Err(format!(
                        "constraint key '{other}' is unknown; use node.id, node.hostname, node.role or node.labels.KEY"
                    ));
                }
            },
        };
        Ok(Self { key, equal, value: value.trim().to_owned() })
    }
}

impl std::fmt::Display for Constraint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.key {
            ConstraintKey::NodeId => f.write_str("node.id"),
            ConstraintKey::Hostname => f.write_str("node.hostname"),
            ConstraintKey::Role => f.write_str("node.role"),
            ConstraintKey::Label(label) => write!(f, "node.labels.{label}"),
        }?;
        write!(f, "{}{}", if self.equal { "==" } else { "!=" }, self.value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constraints_round_trip_and_refuse_unknown_keys() {
        for text in ["node.id==abc", "node.hostname!=n1", "node.role==manager", "node.labels.zone==a"] {
            assert_eq!(text.parse::<Constraint>().map(|c| c.to_string()), Ok(text.to_owned()));
        }
        for bad in ["node.id", "node.os==linux", "node.labels.==x", "=="] {
            assert!(bad.parse::<Constraint>().is_err(), "{bad}");
        }
    }
}
