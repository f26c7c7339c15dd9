//! What the programs need to open and make tunnel packets themselves.

use std::net::Ipv4Addr;

use shoal_types::{MacAddr, Vni};

use crate::name::IfName;

/// A network whose tunnel packets the programs may open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tunnel {
    /// VXLAN id.
    pub vni: Vni,
    /// The device they would come out of.
    pub vxlan: IfName,
}

/// A forwarding entry as the programs know it: see [`super::Fdb`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// The VXLAN device.
    pub vxlan: IfName,
    /// Whose frames.
    pub mac: MacAddr,
    /// Where they go.
    pub vtep: Ipv4Addr,
    /// Where they come from.
    pub source: Ipv4Addr,
    /// VXLAN id.
    pub vni: Vni,
    /// MTU of the network; what is larger goes by the device.
    pub mtu: u32,
}
