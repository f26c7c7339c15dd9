//! Why packets are dropped and how programs are counted: the indices of `DROPS` and `STATS`.

/// Declares an enum whose variants index a per-CPU array and carry a name for metrics.
macro_rules! indices {
    ($(#[$meta:meta])* $name:ident { $($(#[$vmeta:meta])* $variant:ident => $label:literal,)* }) => {
        $(#[$meta])*
        #[repr(u32)]
        #[derive(Clone, Copy, PartialEq, Eq)]
        #[cfg_attr(feature = "host", derive(Debug, PartialOrd, Ord, Hash))]
        pub enum $name { $($(#[$vmeta])* $variant,)* }

        impl $name {
            /// Every variant, by index.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The variant's index in its array.
            #[inline(always)]
            pub const fn index(self) -> u32 {
                self as u32
            }

            /// The variant's name, as metrics show it.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $label,)* }
            }
        }
    };
}

indices! {
    /// Why a packet was dropped, or refused by the stack in our stead ([`Reason::NoEndpoint`]).
    Reason {
        /// Tunnel packet from an address that is no member's.
        NotMember => "not_member",
        /// Published port or virtual IP whose service has no endpoint.
        NoEndpoint => "no_endpoint",
        /// Frame for our router that belongs to no flow, or an SCTP association's question whether a path works that is
        /// not the one it began on.
        UnknownReply => "unknown_reply",
        /// Task sent from an Ethernet address that is not its own.
        SpoofedMac => "spoofed_mac",
        /// Task sent from an IPv4 address that is not its own.
        SpoofedIpv4 => "spoofed_ipv4",
        /// Task sent from an IPv6 address that is not its own.
        SpoofedIpv6 => "spoofed_ipv6",
        /// Task's ARP speaks for somebody else.
        SpoofedArp => "spoofed_arp",
        /// Task's neighbor advertisement or solicitation speaks for somebody else.
        SpoofedNd => "spoofed_nd",
        /// Task sent what only a router or DHCP server sends.
        RogueControl => "rogue_control",
        /// Task sent a frame that is neither ARP, IPv4 nor IPv6.
        UnknownEthertype => "unknown_ethertype",
        /// Truncated or inconsistent headers.
        Malformed => "malformed",
        /// Packet of a veth without an entry in `TASK_IFS`.
        UnknownInterface => "unknown_interface",
        /// The kernel refused to change the packet.
        RewriteFailed => "rewrite_failed",
        /// No route leads to the client of a published port.
        NoRoute => "no_route",
        /// No source port is left to tell a flow from others of its client to the same task.
        NoSourcePort => "no_source_port",
        /// Fragment of a datagram of ours whose first one, which has the ports, has not come.
        NoFirstFragment => "no_first_fragment",
        /// SYN with data to a port that tells tasks of their clients: what it tells must come first.
        EarlyData => "early_data",
    }
}

indices! {
    /// A program.
    Program {
        /// Ingress of each uplink.
        MeshIngress => "mesh_ingress",
        /// Ingress of each VXLAN device.
        OverlayRx => "overlay_rx",
        /// Ingress of the host side of each task veth.
        TaskTx => "task_tx",
        /// Ingress of the host side of each balancer's leg into its network.
        BalancerTx => "balancer_tx",
        /// Ingress of the host side of the gate: what the balancer of published ports sends to clients.
        GateTx => "gate_tx",
        /// Ingress of the loopback device: what the node itself sends to its own addresses.
        HostTx => "host_tx",
    }
}

indices! {
    /// What a program did with a packet.
    Event {
        /// Packets seen.
        Received => "received",
        /// Packets rewritten or redirected.
        Forwarded => "forwarded",
        /// Packets left to the stack or the bridge.
        Passed => "passed",
        /// Packets dropped.
        Dropped => "dropped",
    }
}

/// The index of a program's counter in `STATS`.
#[inline(always)]
pub const fn stat_index(program: Program, event: Event) -> u32 {
    program.index() * 4 + event.index()
}
