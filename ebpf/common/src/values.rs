//! Map values.

use crate::addr::Addr;
use crate::keys::{FlowKey, Mac, layout, same_mac};

layout! {
    /// What the node is: the only entry of `CONFIG`.
    NodeConfig, size 52 {
        /// IPv4 address of this node's router endpoint, or [`Addr::ANY`].
        router_ip4 @ 0: Addr,
        /// IPv6 address of this node's router endpoint, or [`Addr::ANY`].
        router_ip6 @ 16: Addr,
        /// Address of this node's router endpoint in the ingress network; zero until it has one.
        router_mac @ 32: Mac,
        /// UDP port of the tunnels, host order; 0 turns the admission check off.
        vxlan_port @ 38: u16,
        /// Host side of the link by which packets for published ports enter the balancer's namespace; 0: there is none.
        gate @ 40: u32,
        /// Host side of that balancer's leg into the ingress network, which has the router's addresses; 0: there is
        /// none.
        balancer @ 44: u32,
        /// VXLAN device of the ingress network; 0 until it is there.
        ingress_vxlan @ 48: u32,
    }
}

layout! {
    /// What a published port leads to: `PORTS`.
    PortVal, size 16 {
        /// Key in `SERVICES`.
        service @ 0: u64,
        /// Port the tasks listen on, host order.
        target_port @ 8: u16,
        /// `PORT_*`.
        flags @ 10: u16,
        /// Mark of the virtual service that balances it; 0: the service's table does.
        mark @ 12: u32,
    }
}

/// [`PortVal::flags`]: tasks are told who the client is by a header of the PROXY protocol, version 2.
pub const PORT_PROXY: u16 = 1;
/// [`PortVal::flags`]: the node of a task answers clients itself where it can: see [`crate::direct`].
pub const PORT_DSR: u16 = 2;

impl PortVal {
    /// A published port of a service, balanced by the service's table.
    pub const fn new(service: u64, target_port: u16) -> Self {
        Self::balanced(service, target_port, 0)
    }

    /// A published port of a service, balanced by a virtual service.
    pub const fn balanced(service: u64, target_port: u16, mark: u32) -> Self {
        Self { service, target_port, flags: 0, mark }
    }
}

layout! {
    /// The table of a service: a region of `SLOTS`. Written by the driver; see [`crate::maglev`].
    ServiceVal, size 32 {
        /// Hash seed, the same on every node.
        seed @ 0: u64,
        /// Digest of the members the region was computed from ([`crate::maglev::digest`]).
        digest @ 8: u64,
        /// First slot of the region.
        base @ 16: u32,
        /// Slots in the region; 0: the service has no endpoint.
        len @ 20: u32,
        /// One of `POLICY_*`.
        policy @ 24: u32,
        /// Zero.
        pad @ 28: u32,
    }
}

/// The slot is the hash of the flow.
pub const POLICY_FLOW: u32 = 0;
/// The slot is the hash of the client's address.
pub const POLICY_SOURCE: u32 = 1;
/// The slots are taken in turn, by each CPU for itself; each endpoint has one.
pub const POLICY_TURN: u32 = 2;
/// A slot is drawn; each endpoint has one.
pub const POLICY_RANDOM: u32 = 3;

layout! {
    /// One attachment that can be chosen: `ENDPOINTS`, by a 64-bit id that is the same on every node.
    EndpointVal, size 48 {
        /// IPv4 address, or [`Addr::ANY`].
        ip4 @ 0: Addr,
        /// IPv6 address, or [`Addr::ANY`].
        ip6 @ 16: Addr,
        /// Address of the task's interface.
        mac @ 32: Mac,
        /// `ENDPOINT_*`.
        flags @ 38: u16,
        /// Host side of the task's veth if local, else the VXLAN device of the network.
        ifindex @ 40: u32,
        /// Zero.
        pad @ 44: u32,
    }
}

/// The endpoint's task runs on this node.
pub const ENDPOINT_LOCAL: u16 = 1;
/// The endpoint keeps its flows and gets no new ones.
pub const ENDPOINT_DRAINING: u16 = 2;
/// The endpoint's node, another one, can answer clients of this one itself: see [`crate::direct`].
pub const ENDPOINT_DSR: u16 = 4;
/// The endpoint's node has weight 0: it keeps its flows and gets new ones only by tables that name it, those of the node's own
/// ports.
pub const ENDPOINT_IDLE: u16 = 8;

impl EndpointVal {
    /// The endpoint's address in a family; [`Addr::ANY`] if it has none.
    #[inline(always)]
    pub const fn addr(&self, v4: bool) -> &Addr {
        if v4 { &self.ip4 } else { &self.ip6 }
    }

    /// Whether the task runs on this node.
    #[inline(always)]
    pub const fn is_local(&self) -> bool {
        self.flags & ENDPOINT_LOCAL != 0
    }

    /// Whether its node can answer clients of this one itself.
    #[inline(always)]
    pub const fn may_answer(&self) -> bool {
        self.flags & ENDPOINT_DSR != 0
    }

    /// Whether the endpoint gets no new flows.
    #[inline(always)]
    pub const fn is_draining(&self) -> bool {
        self.flags & ENDPOINT_DRAINING != 0
    }

    /// Whether its node has weight 0.
    #[inline(always)]
    pub const fn is_idle(&self) -> bool {
        self.flags & ENDPOINT_IDLE != 0
    }
}

layout! {
    /// A task of this node in one of its networks: `CLIENTS`.
    ClientVal, size 44 {
        /// The task's IPv4 address in that network, or [`Addr::ANY`].
        ip4 @ 0: Addr,
        /// The task's IPv6 address in that network, or [`Addr::ANY`].
        ip6 @ 16: Addr,
        /// Address of the task's interface.
        mac @ 32: Mac,
        /// Zero.
        pad @ 38: u16,
        /// VNI of the network.
        network @ 40: u32,
    }
}

layout! {
    /// What a socket was connected to in place of a virtual IP: `PEER_NAMES`, by the socket's cookie.
    PeerName, size 32 {
        /// The virtual IP that was asked for.
        vip @ 0: Addr,
        /// The endpoint's address.
        endpoint @ 16: Addr,
    }
}

layout! {
    /// How a frame gets to a task or router elsewhere: `PEERS`, as in the forwarding table of the VXLAN device.
    PeerVal, size 16 {
        /// Address of its node's end of the tunnel, network order.
        vtep @ 0: u32,
        /// Address of this node's end, network order.
        source @ 4: u32,
        /// VNI of the network.
        vni @ 8: u32,
        /// MTU of the network, bytes.
        mtu @ 12: u32,
    }
}

layout! {
    /// A task of this node behind a VXLAN device: `LOCAL`.
    LocalVal, size 40 {
        /// The task's IPv4 address in that network, or [`Addr::ANY`].
        ip4 @ 0: Addr,
        /// The task's IPv6 address in that network, or [`Addr::ANY`].
        ip6 @ 16: Addr,
        /// Host side of the task's veth.
        veth @ 32: u32,
        /// VNI of the network.
        network @ 36: u32,
    }
}

layout! {
    /// What the task behind a veth may send, and where it belongs: `TASK_IFS`, by the veth's interface index.
    TaskIf, size 128 {
        /// The task's IPv4 address on this leg, or [`Addr::ANY`].
        ip4 @ 0: Addr,
        /// The task's IPv6 address on this leg, or [`Addr::ANY`].
        ip6 @ 16: Addr,
        /// The task's IPv4 address in the ingress network; [`Addr::ANY`] if it publishes nothing.
        ingress_ip4 @ 32: Addr,
        /// The task's IPv6 address in the ingress network; [`Addr::ANY`] if it publishes nothing.
        ingress_ip6 @ 48: Addr,
        /// Address of the task's interface on this leg.
        mac @ 64: Mac,
        /// Address of the task's interface in the ingress network.
        ingress_mac @ 70: Mac,
        /// VNI of this leg's network; 0 on the egress leg.
        network @ 76: u32,
        /// VXLAN device of this leg's network; 0 on the egress leg.
        vxlan @ 80: u32,
        /// VXLAN device of the ingress network; 0 if the task publishes nothing.
        ingress_vxlan @ 84: u32,
        /// One of `LEG_*`.
        leg @ 88: u16,
        /// Zero.
        pad @ 90: [u16; 3],
        /// Virtual IPv4 address that the task answers from on this leg, too; [`Addr::ANY`]: none.
        vip_ip4 @ 96: Addr,
        /// Virtual IPv6 address that the task answers from on this leg, too; [`Addr::ANY`]: none.
        vip_ip6 @ 112: Addr,
    }
}

/// A leg in an ordinary overlay network.
pub const LEG_OVERLAY: u16 = 0;
/// The leg in the ingress network.
pub const LEG_INGRESS: u16 = 1;
/// The leg to the node's egress bridge.
pub const LEG_EGRESS: u16 = 2;

layout! {
    /// A virtual IP: `VIPS`.
    VipVal, size 24 {
        /// Key in `SERVICES`.
        service @ 0: u64,
        /// Ethernet address the node answers for the virtual IP; packets to it never leave unchanged.
        mac @ 8: Mac,
        /// Zero.
        pad @ 14: u16,
        /// Host side of the leg of the network's balancer; 0: it has none.
        balancer @ 16: u32,
        /// Mark of the virtual service that balances it; 0: the service's table does.
        mark @ 20: u32,
    }
}

layout! {
    /// A balancer's leg into its network: `BALANCER_IFS`, by the interface index of the host side.
    BalancerIf, size 8 {
        /// VXLAN device of the network.
        vxlan @ 0: u32,
        /// 1: answers of this node's tasks are steered back to the balancer, as it translates them.
        steer @ 4: u32,
    }
}

/// [`FlowVal::endpoint`] of a flow whose endpoint a balancer knows.
pub const BALANCED: u64 = u64::MAX;
/// [`FlowVal::endpoint`] of a flow that a router brought to a task of this node, and whose source port is translated
/// because another flow has it. [`FlowVal::service`] is the router's address as a number; the key's network is the low
/// half of that.
pub const ALIASED: u64 = u64::MAX - 1;

layout! {
    /// Where a flow goes: `FLOWS`.
    FlowVal, size 48 {
        /// Key in `ENDPOINTS`, or [`BALANCED`] or [`ALIASED`].
        endpoint @ 0: u64,
        /// Key in `SERVICES`.
        service @ 8: u64,
        /// Port the endpoint listens on, host order.
        target_port @ 16: u16,
        /// Source port the endpoint sees, host order: the client's, unless two flows would be told apart by
        /// nothing else.
        source_port @ 18: u16,
        /// Mark of the virtual service of a [`BALANCED`] flow, else 0.
        mark @ 20: u32,
        /// When it was last used, on the clock of [`crate::life`]; as exact as a tick.
        seen @ 24: u32,
        /// What has been seen of it: bits `FLOW_*` of [`crate::life`].
        state @ 28: u32,
        /// Bytes its client has sent, IP headers and all; of a flow that an endpoint is counted for ([`crate::life::is_counted`]).
        bytes @ 32: u64,
        /// Of a connection whose task is told of its client ([`PORT_PROXY`]): the sequence number of its SYN.
        isn @ 40: u32,
        /// Number of the address that was asked, if the endpoint's node answers the client itself; 0: it doesn't. See
        /// [`crate::direct`].
        door @ 44: u32,
    }
}

impl FlowVal {
    /// Whether both lead to the same place, whatever has been seen of either.
    #[inline(always)]
    pub fn is_same(&self, other: &Self) -> bool {
        self.endpoint == other.endpoint
            && self.service == other.service
            && self.target_port == other.target_port
            && self.source_port == other.source_port
            && self.mark == other.mark
            && self.isn == other.isn
            && self.door == other.door
    }
}

layout! {
    /// What happens to an endpoint's answer: `REPLIES`.
    ReplyVal, size 72 {
        /// [`REPLY_RESTORE`], [`REPLY_LOCAL`], [`REPLY_VIP`], [`REPLY_HAIRPIN`]: the source the client expects. [`REPLY_STEER`]: the
        /// source that the task gives its answers, if it isn't where the request went.
        addr @ 0: Addr,
        /// Port of `addr`, host order.
        port @ 16: u16,
        /// Port of the client, host order. [`REPLY_STEER`]: as its router knows it.
        client_port @ 18: u16,
        /// Where the answer leaves: the uplink, or the veth of the client's task.
        ifindex @ 20: u32,
        /// [`REPLY_STEER`]: router of the node the flow entered by.
        mac @ 24: Mac,
        /// One of `REPLY_*`.
        kind @ 30: u16,
        /// [`FlowVal::endpoint`] of the flow; 0 with [`REPLY_STEER`] and [`REPLY_DIRECT`].
        endpoint @ 32: u64,
        /// [`FlowVal::service`] of the flow; 0 with [`REPLY_STEER`] and [`REPLY_DIRECT`].
        service @ 40: u64,
        /// As [`FlowVal::seen`].
        seen @ 48: u32,
        /// As [`FlowVal::state`].
        state @ 52: u32,
        /// Bytes its endpoint has sent, IP headers and all; likewise.
        bytes @ 56: u64,
        /// As [`FlowVal::isn`].
        isn @ 64: u32,
        /// Zero.
        pad @ 68: u32,
    }
}

impl ReplyVal {
    /// Whether both lead to the same place, whatever has been seen of either.
    #[inline(always)]
    pub fn is_same(&self, other: &Self) -> bool {
        self.kind == other.kind
            && self.port == other.port
            && self.client_port == other.client_port
            && self.ifindex == other.ifindex
            && self.endpoint == other.endpoint
            && self.service == other.service
            && self.addr == other.addr
            && same_mac(&self.mac, &other.mac)
            && self.isn == other.isn
    }
}

layout! {
    /// Whose bytes: `TOTALS`.
    TotalKey, size 16 {
        /// Key in `ENDPOINTS`; 0: endpoints that are gone.
        endpoint @ 0: u64,
        /// Key in `SERVICES`.
        service @ 8: u64,
    }
}

layout! {
    /// Bytes of flows whose records are gone: `TOTALS`.
    TotalVal, size 16 {
        /// What clients sent.
        requests @ 0: u64,
        /// What they were answered.
        answers @ 8: u64,
    }
}

layout! {
    /// A flow that may not last: `PARKED`. See [`crate::life`].
    Parked, size 80 {
        /// Its key in `FLOWS`; all zeroes if it has nothing there.
        request @ 0: FlowKey,
        /// Its key in `REPLIES`; all zeroes if it has nothing there.
        answers @ 40: FlowKey,
    }
}

layout! {
    /// An entry that user space proposes to remove: `PROPOSED`. See [`crate::life`].
    Proposal, size 56 {
        /// Key of the entry.
        key @ 0: FlowKey,
        /// [`FlowVal::seen`] as it was read.
        seen @ 40: u32,
        /// [`FlowVal::state`] as it was read.
        state @ 44: u32,
        /// One of `PROPOSE_*`, with or without [`PROPOSE_ANYWAY`].
        table @ 48: u32,
        /// Zero.
        pad @ 52: u32,
    }
}

/// [`Proposal::table`]: no proposal.
pub const PROPOSE_NOTHING: u32 = 0;
/// [`Proposal::table`]: an entry of `FLOWS`.
pub const PROPOSE_FLOW: u32 = 1;
/// [`Proposal::table`]: an entry of `REPLIES`.
pub const PROPOSE_REPLY: u32 = 2;
/// [`Proposal::table`]: it is removed even if it has been used since.
pub const PROPOSE_ANYWAY: u32 = 4;

/// The flow entered by this node: restore the published address and send it out of the uplink.
pub const REPLY_RESTORE: u16 = 1;
/// The flow entered by another node: send the answer to its router.
pub const REPLY_STEER: u16 = 2;
/// The flow came from a task of this node through a virtual IP: restore it and deliver.
pub const REPLY_VIP: u16 = 3;
/// As [`REPLY_VIP`], and the task is its own client: its address is the destination.
pub const REPLY_HAIRPIN: u16 = 4;
/// The flow came to a virtual IP by direct routing: answer from it.
pub const REPLY_DIRECT: u16 = 5;
/// As [`REPLY_RESTORE`], and the client is on this node: deliver it by the loopback device.
pub const REPLY_LOCAL: u16 = 6;
