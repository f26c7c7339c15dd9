//! Names and marks of what a node makes: a link is ours when its name has our prefix and its alias says what it is.

use std::fmt;
use std::sync::Arc;

use shoal_types::{EndpointId, NetworkId, TaskId};

/// The bridge that tasks leave the overlay by.
pub const EGRESS_BRIDGE: &str = "shoal0";
/// The link to the balancer of published ports.
const GATE: &str = "shg-ingress";

/// A network interface's name (at most 15 bytes, which all names made here keep to). Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IfName(Arc<str>);

impl IfName {
    /// A name that exists or comes from the kernel.
    pub fn new(name: impl AsRef<str>) -> Self {
        Self(Arc::from(name.as_ref()))
    }

    /// The bridge of a network.
    pub fn bridge(network: &NetworkId) -> Self {
        Self::new(format!("shb-{}", network.short()))
    }

    /// The VXLAN device of a network.
    pub fn vxlan(network: &NetworkId) -> Self {
        Self::new(format!("shx-{}", network.short()))
    }

    /// The host side of an endpoint's veth.
    pub fn veth(endpoint: EndpointId) -> Self {
        Self::new(format!("shv-{:08x}", endpoint.0))
    }

    /// The host side of a task's egress veth.
    pub fn egress(task: &TaskId) -> Self {
        Self::new(format!("she-{}", task.short()))
    }

    /// The host side of a balancer's leg into a network.
    pub fn balancer(network: &NetworkId) -> Self {
        Self::new(format!("shl-{}", network.short()))
    }

    /// The host side of the gate to the balancer of published ports.
    pub fn gate() -> Self {
        Self::new(GATE)
    }

    /// The loopback device, which is not ours.
    pub fn loopback() -> Self {
        Self::new("lo")
    }

    /// The egress bridge.
    pub fn egress_bridge() -> Self {
        Self::new(EGRESS_BRIDGE)
    }

    /// Stands for an interface that is gone and of which only the index is known.
    pub fn gone(index: u32) -> Self {
        Self::new(format!("#{index}"))
    }

    /// The index in a name made by [`IfName::gone`].
    pub fn gone_index(&self) -> Option<u32> {
        self.0.strip_prefix('#')?.parse().ok()
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the name has one of our prefixes. Ownership needs the alias too, see [`Mark`].
    pub fn has_our_prefix(&self) -> bool {
        self.as_str() == EGRESS_BRIDGE
            || ["shb-", "shx-", "shv-", "she-", "shl-", "shg-"]
                .iter()
                .any(|prefix| self.0.starts_with(prefix))
    }
}

impl fmt::Display for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The ownership mark of a link, written to its alias as `shoal:<kind>:<id>`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mark {
    /// A network's bridge.
    Bridge(NetworkId),
    /// A network's VXLAN device.
    Vxlan(NetworkId),
    /// A task's veth into a network.
    Veth(TaskId, EndpointId),
    /// A task's veth to the egress bridge.
    Egress(TaskId),
    /// A balancer's veth into a network.
    Balancer(NetworkId),
    /// The link to the balancer of published ports.
    Gate,
    /// The egress bridge.
    EgressBridge,
}

impl Mark {
    /// Reads an alias; `None` when the link is not ours.
    pub fn parse(alias: &str) -> Option<Self> {
        let mut parts = alias.strip_prefix("shoal:")?.split(':');
        let kind = parts.next()?;
        let mark = match kind {
            "bridge" => Self::Bridge(parts.next()?.parse().ok()?),
            "vxlan" => Self::Vxlan(parts.next()?.parse().ok()?),
            "veth" => Self::Veth(parts.next()?.parse().ok()?, EndpointId(parts.next()?.parse().ok()?)),
            "egress" => Self::Egress(parts.next()?.parse().ok()?),
            "balancer" => Self::Balancer(parts.next()?.parse().ok()?),
            "gate" => Self::Gate,
            "egress-bridge" => Self::EgressBridge,
            _ => return None,
        };
        if parts.next().is_some() { None } else { Some(mark) }
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bridge(id) => write!(f, "shoal:bridge:{id}"),
            Self::Vxlan(id) => write!(f, "shoal:vxlan:{id}"),
            Self::Veth(task, endpoint) => write!(f, "shoal:veth:{task}:{}", endpoint.0),
            Self::Egress(task) => write!(f, "shoal:egress:{task}"),
            Self::Balancer(id) => write!(f, "shoal:balancer:{id}"),
            Self::Gate => f.write_str("shoal:gate"),
            Self::EgressBridge => f.write_str("shoal:egress-bridge"),
        }
    }
}
