//! A task's interfaces, as the programs know them.

use shoal_types::{DualAddr, MacAddr, TaskId, Vni};

use crate::name::IfName;

/// What the task behind a veth may send, and where it belongs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskIf {
    /// Host side of the veth.
    pub host: IfName,
    /// Addresses on this leg.
    pub addr: DualAddr,
    /// MAC on this leg.
    pub mac: MacAddr,
    /// VXLAN id and device of this leg's network; none on the egress leg.
    pub network: Option<(Vni, IfName)>,
    /// The task's place in the ingress network, if it publishes anything.
    pub ingress: Option<IngressPlace>,
    /// What the leg is for.
    pub role: LegRole,
    /// Virtual IPs that it answers from on this leg, too.
    pub vip: Option<DualAddr>,
}

/// A task's place in the ingress network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IngressPlace {
    /// Addresses.
    pub addr: DualAddr,
    /// MAC.
    pub mac: MacAddr,
    /// VXLAN device of the ingress network.
    pub vxlan: IfName,
}

/// See [`TaskIf::role`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LegRole {
    /// In an ordinary overlay.
    Overlay,
    /// In the ingress network.
    Ingress,
    /// To the egress bridge.
    Egress,
}

/// A task in one of its networks: what connections of its sockets are decided by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Client {
    /// The task.
    pub task: TaskId,
    /// Which of its networks, counted from 0 without gaps.
    pub place: u32,
    /// Its addresses in that network.
    pub addr: DualAddr,
    /// Its MAC in that network.
    pub mac: MacAddr,
    /// VXLAN id of the network.
    pub network: Vni,
}

/// A local task as seen from a VXLAN device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Local {
    /// The VXLAN device.
    pub vxlan: IfName,
    /// The task's MAC.
    pub mac: MacAddr,
    /// The task's addresses in that network.
    pub addr: DualAddr,
    /// Host side of its veth.
    pub veth: IfName,
    /// VXLAN id of the network.
    pub network: Vni,
}
