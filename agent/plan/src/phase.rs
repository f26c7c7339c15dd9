//! The order in which a node is changed: make before break.

use crate::object::{Goal, Key, Object};

/// A step of a plan. Everything a new flow needs is there before the first name or port leads to it; everything that
/// leads somewhere is gone before what it leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// Kernel parameters, the firewall table, and the names of the data plane's maps and programs.
    PrepareHost,
    /// Bridges and VXLAN devices.
    AddLinks,
    /// Forwarding entries and neighbors.
    AddForwarding,
    /// Namespaces and interfaces of tasks.
    AddSandboxes,
    /// Load-balancing state and programs.
    AddBalancing,
    /// Ports, virtual IPs and names.
    Publish,
    /// Tasks.
    StartTasks,
    /// Ports, virtual IPs and names.
    Withdraw,
    /// Load-balancing state and programs.
    RemoveBalancing,
    /// Tasks.
    StopTasks,
    /// Namespaces and interfaces of tasks, with what belongs to them alone.
    RemoveSandboxes,
    /// Forwarding entries and neighbors.
    RemoveForwarding,
    /// Bridges and VXLAN devices, at last the firewall table.
    RemoveLinks,
}

impl Phase {
    /// All of them, in order.
    pub const ALL: [Self; 13] = [
        Self::PrepareHost,
        Self::AddLinks,
        Self::AddForwarding,
        Self::AddSandboxes,
        Self::AddBalancing,
        Self::Publish,
        Self::StartTasks,
        Self::Withdraw,
        Self::RemoveBalancing,
        Self::StopTasks,
        Self::RemoveSandboxes,
        Self::RemoveForwarding,
        Self::RemoveLinks,
    ];

    /// The phase in which an object is made or changed.
    pub fn of_ensure(object: &Object) -> Self {
        if let Object::Task(task) = object
            && task.goal == Goal::Stop
        {
            return Self::StopTasks;
        }
        match object.key() {
            Key::Sysctl(_) | Key::Firewall | Key::Pins => Self::PrepareHost,
            Key::Bridge(_) | Key::Vxlan(_) => Self::AddLinks,
            Key::Fdb(..) | Key::Neighbor(..) => Self::AddForwarding,
            Key::Sandbox(_) | Key::Leg(_) | Key::Balancer(_) => Self::AddSandboxes,
            Key::MeshConfig
            | Key::Member(_)
            | Key::LocalAddr(_)
            | Key::Door(_)
            | Key::Outward(_)
            | Key::Router(_)
            | Key::Tunnel(_)
            | Key::Peer(..)
            | Key::TaskIf(_)
            | Key::Local(..)
            | Key::LbEndpoint(_)
            | Key::LbService(_)
            | Key::BalancerIf(_)
            | Key::Client(..)
            | Key::Connecting
            | Key::Virtual(..)
            | Key::Hook(..) => Self::AddBalancing,
            Key::Vip(..) | Key::Port(..) | Key::Resolver(_) => Self::Publish,
            Key::Task(_) => Self::StartTasks,
        }
    }

    /// The phase in which an object is removed; `of_task` when it belongs to one task alone.
    pub fn of_remove(key: &Key, of_task: bool) -> Self {
        match key {
            Key::Vip(..) | Key::Port(..) => Self::Withdraw,
            Key::Hook(..) if of_task => Self::RemoveSandboxes,
            Key::MeshConfig
            | Key::Member(_)
            | Key::LocalAddr(_)
            | Key::Door(_)
            | Key::Outward(_)
            | Key::Router(_)
            | Key::Tunnel(_)
            | Key::Peer(..)
            | Key::LbEndpoint(_)
            | Key::LbService(_)
            | Key::BalancerIf(_)
            | Key::Client(..)
            | Key::Connecting
            | Key::Virtual(..)
            | Key::Hook(..) => Self::RemoveBalancing,
            Key::Task(_) => Self::StopTasks,
            Key::Resolver(_)
            | Key::TaskIf(_)
            | Key::Local(..)
            | Key::Leg(_)
            | Key::Sandbox(_)
            | Key::Balancer(_) => Self::RemoveSandboxes,
            Key::Fdb(..) | Key::Neighbor(..) => Self::RemoveForwarding,
            Key::Bridge(_) | Key::Vxlan(_) | Key::Firewall | Key::Pins | Key::Sysctl(_) => Self::RemoveLinks,
        }
    }
}
