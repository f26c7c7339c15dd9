//! Map keys. Every byte is named: the kernel compares keys as memory, so padding must be zero.

use crate::addr::Addr;

/// An Ethernet address.
pub type Mac = [u8; 6];

/// Compares Ethernet addresses without a call, which the BPF target has no function for.
#[inline(always)]
pub const fn same_mac(a: &Mac, b: &Mac) -> bool {
    ((a[0] ^ b[0]) | (a[1] ^ b[1]) | (a[2] ^ b[2]) | (a[3] ^ b[3]) | (a[4] ^ b[4]) | (a[5] ^ b[5])) == 0
}

/// A copy of an Ethernet address: see [`Addr::copied`].
#[inline(always)]
pub const fn copied(mac: &Mac) -> Mac {
    [mac[0], mac[1], mac[2], mac[3], mac[4], mac[5]]
}

/// Derives what only the host needs of a key or value, so that the BPF build carries none of it.
macro_rules! layout {
    ($(#[$meta:meta])* $name:ident, size $size:literal { $($(#[$fmeta:meta])* $field:ident @ $offset:literal: $ty:ty,)* }) => {
        $(#[$meta])*
        #[repr(C)]
        #[derive(Clone, Copy, Default, PartialEq, Eq)]
        #[cfg_attr(feature = "host", derive(Debug, Hash, PartialOrd, Ord))]
        pub struct $name {
            $($(#[$fmeta])* pub $field: $ty,)*
        }
        const _: () = assert!(core::mem::size_of::<$name>() == $size);
        $(const _: () = assert!(core::mem::offset_of!($name, $field) == $offset);)*
    };
}
pub(crate) use layout;

layout! {
    /// A published port: `PORTS`.
    PortKey, size 20 {
        /// Node address the port is published on; [`Addr::ANY`] for every local address.
        addr @ 0: Addr,
        /// Port, host order.
        port @ 16: u16,
        /// IP protocol number.
        proto @ 18: u8,
        /// Zero.
        pad @ 19: u8,
    }
}

impl PortKey {
    /// The key of a port in the scope of one address, or of all with [`Addr::ANY`].
    #[inline(always)]
    pub const fn new(addr: Addr, port: u16, proto: u8) -> Self {
        Self { addr, port, proto, pad: 0 }
    }
}

layout! {
    /// One direction of a flow: `FLOWS` (as the client sends it) and `REPLIES` (as the endpoint answers).
    FlowKey, size 40 {
        /// Source address.
        src @ 0: Addr,
        /// Destination address.
        dst @ 16: Addr,
        /// Source port, host order.
        sport @ 32: u16,
        /// Destination port, host order.
        dport @ 34: u16,
        /// Where the tuple is unique and its protocol: see [`FlowKey::scope`].
        scope @ 36: u32,
    }
}

impl FlowKey {
    /// The scope of a flow: the VNI of its network (0: the mesh, whose addresses are unique) and the protocol.
    #[inline(always)]
    pub const fn scope(network: u32, proto: u8) -> u32 {
        (network << 8) | proto as u32
    }

    /// The protocol of the flow.
    #[inline(always)]
    pub const fn proto(&self) -> u8 {
        self.scope.to_le_bytes()[0]
    }

    /// The VNI of the network of a VIP flow; 0 for a flow of the mesh.
    #[inline(always)]
    pub const fn network(&self) -> u32 {
        self.scope >> 8
    }
}

layout! {
    /// A task's attachment as seen from a VXLAN device: `LOCAL`.
    LocalKey, size 12 {
        /// Interface index of the VXLAN device.
        vxlan @ 0: u32,
        /// Address of the task's interface.
        mac @ 4: Mac,
        /// Zero.
        pad @ 10: u16,
    }
}

impl LocalKey {
    /// The key of a task's interface behind a VXLAN device.
    #[inline(always)]
    pub const fn new(vxlan: u32, mac: Mac) -> Self {
        Self { vxlan, mac, pad: 0 }
    }
}

layout! {
    /// Router address of another node: `ROUTERS`.
    RouterKey, size 8 {
        /// Address of the node's router endpoint.
        mac @ 0: Mac,
        /// Zero.
        pad @ 6: u16,
    }
}

impl RouterKey {
    /// The key of a router endpoint.
    #[inline(always)]
    pub const fn new(mac: Mac) -> Self {
        Self { mac, pad: 0 }
    }
}

layout! {
    /// An address of another node, as a frame from its router names it: `DOORS`. See [`crate::direct`].
    DoorKey, size 8 {
        /// The low half of the address of the node's router, as a number.
        router @ 0: u32,
        /// Which of the node's addresses, 1 to 63.
        number @ 4: u16,
        /// 4 or 6.
        family @ 6: u16,
    }
}

impl DoorKey {
    /// The key of a node's address of a family.
    #[inline(always)]
    pub const fn new(router: u32, number: u16, v4: bool) -> Self {
        Self { router, number, family: if v4 { 4 } else { 6 } }
    }
}

layout! {
    /// One of the networks of a task, by its namespace: `CLIENTS`.
    ClientKey, size 16 {
        /// Cookie of the task's network namespace (`SO_NETNS_COOKIE`).
        netns @ 0: u64,
        /// Which of the task's networks, counted from 0 without gaps.
        place @ 8: u32,
        /// Zero.
        pad @ 12: u32,
    }
}

impl ClientKey {
    /// The key of a place.
    #[inline(always)]
    pub const fn new(netns: u64, place: u32) -> Self {
        Self { netns, place, pad: 0 }
    }
}

layout! {
    /// A virtual IP within a network: `VIPS`.
    VipKey, size 20 {
        /// The virtual IP.
        addr @ 0: Addr,
        /// VNI of the network.
        network @ 16: u32,
    }
}
