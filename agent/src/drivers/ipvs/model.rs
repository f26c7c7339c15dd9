//! What the kernel's table of virtual services holds.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::time::Duration;

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of an address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

/// A transport that IPVS balances.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

/// What tells a virtual service from others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ServiceKey {
    /// All packets with a firewall mark.
    Mark {
        /// Their family: a mark has a service for each.
        family: Family,
        /// The mark.
        mark: NonZeroU32,
    },
    /// Packets to an address and port. Port 0 takes all ports and needs persistence.
    Address {
        /// Their transport.
        transport: Transport,
        /// Where they go.
        address: SocketAddr,
    },
}

impl ServiceKey {
    /// The family of its packets.
    pub fn family(&self) -> Family {
        match self {
            Self::Mark { family, .. } => *family,
            Self::Address { address, .. } => Family::of(address.ip()),
        }
    }
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mark { family: Family::V4, mark } => write!(f, "fwmark {mark}"),
            Self::Mark { family: Family::V6, mark } => write!(f, "fwmark {mark} (IPv6)"),
            Self::Address { transport, address } => {
                let transport = match transport {
                    Transport::Tcp => "tcp",
                    Transport::Udp => "udp",
                    Transport::Sctp => "sctp",
                };
                write!(f, "{address}/{transport}")
            }
        }
    }
}

/// Options of the schedulers that hash.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct HashOptions {
    /// Take the next destination if the chosen one has no weight, instead of refusing.
    pub fallback: bool,
    /// Hash the client's port, too.
    pub port: bool,
}

/// How a destination is chosen for a new connection.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scheduler {
    /// `rr`: one after the other.
    RoundRobin,
    /// `wrr`: one after the other, by weight.
    WeightedRoundRobin,
    /// `lc`: the one with the fewest connections.
    LeastConnections,
    /// `wlc`: the same, by weight.
    WeightedLeastConnections,
    /// `lblc`: by destination address, to a less loaded one if its own is overloaded.
    LocalityLeastConnections,
    /// `lblcr`: the same with sets of destinations.
    LocalityLeastConnectionsReplicated,
    /// `dh`: by destination address.
    DestinationHash,
    /// `sh`: by source address.
    SourceHash(HashOptions),
    /// `mh`: by source address with a Maglev table.
    Maglev(HashOptions),
    /// `sed`: the shortest expected delay.
    ShortestDelay,
    /// `nq`: an idle one, else the shortest expected delay.
    NeverQueue,
    /// `fo`: the one with the highest weight.
    Failover,
    /// `ovf`: the one with the highest weight until it has as many connections as weight.
    Overflow,
    /// One that this driver doesn't know.
    Other(String),
}

impl Scheduler {
    /// Every scheduler that this driver knows, without options.
    pub const ALL: [Self; 13] = [
        Self::RoundRobin,
        Self::WeightedRoundRobin,
        Self::LeastConnections,
        Self::WeightedLeastConnections,
        Self::LocalityLeastConnections,
        Self::LocalityLeastConnectionsReplicated,
        Self::DestinationHash,
        Self::SourceHash(HashOptions { fallback: false, port: false }),
        Self::Maglev(HashOptions { fallback: false, port: false }),
        Self::ShortestDelay,
        Self::NeverQueue,
        Self::Failover,
        Self::Overflow,
    ];

    /// The kernel's name for it; its module is `ip_vs_` and that name.
    pub fn name(&self) -> &str {
        match self {
            Self::RoundRobin => "rr",
            Self::WeightedRoundRobin => "wrr",
            Self::LeastConnections => "lc",
            Self::WeightedLeastConnections => "wlc",
            Self::LocalityLeastConnections => "lblc",
            Self::LocalityLeastConnectionsReplicated => "lblcr",
            Self::DestinationHash => "dh",
            Self::SourceHash(_) => "sh",
            Self::Maglev(_) => "mh",
            Self::ShortestDelay => "sed",
            Self::NeverQueue => "nq",
            Self::Failover => "fo",
            Self::Overflow => "ovf",
            Self::Other(name) => name,
        }
    }

    /// The scheduler of that name; options are for those that have some.
    pub fn from_name(name: &str, options: HashOptions) -> Self {
        match name {
            "sh" => Self::SourceHash(options),
            "mh" => Self::Maglev(options),
            _ => Self::ALL
                .into_iter()
                .find(|scheduler| scheduler.name() == name)
                .unwrap_or_else(|| Self::Other(name.to_owned())),
        }
    }

    /// Its options, if it has some.
    pub fn options(&self) -> HashOptions {
        match self {
            Self::SourceHash(options) | Self::Maglev(options) => *options,
            _ => HashOptions::default(),
        }
    }
}

/// Connections of one client network go to one destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Persistence {
    /// For how long after the last one. The kernel counts whole seconds.
    pub timeout: Duration,
    /// Length of the prefix that makes a client network.
    pub prefix: u8,
}

/// A virtual service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Which one.
    pub key: ServiceKey,
    /// How destinations are chosen.
    pub scheduler: Scheduler,
    /// Whether clients stay with a destination.
    pub persistence: Option<Persistence>,
    /// Choose anew for each packet (UDP).
    pub one_packet: bool,
}

impl Service {
    /// A service that chooses by connection.
    pub fn new(key: ServiceKey, scheduler: Scheduler) -> Self {
        Self { key, scheduler, persistence: None, one_packet: false }
    }
}

/// How packets get to a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Forwarding {
    /// With its address as their destination; replies come back through here.
    Nat,
    /// Unchanged, to its link address.
    DirectRouting,
    /// In a tunnel. Seen, never made by us.
    Tunnel,
    /// Not at all: what the kernel makes of any destination with an address of its own namespace.
    LocalNode,
    /// Past the balancer. Seen, never made by us.
    Bypass,
}

/// What tells a destination from others of its service.
pub type DestinationKey = SocketAddr;

/// A destination of a virtual service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Destination {
    /// Where it is. With direct routing, the port is the service's.
    pub address: DestinationKey,
    /// How packets get there.
    pub forwarding: Forwarding,
    /// Its share; 0 gets no new connections and keeps the old ones.
    pub weight: u32,
    /// With this many connections it gets no more; 0 is no limit.
    pub upper: u32,
    /// Below this many it gets new ones again; 0 is three quarters of the upper.
    pub lower: u32,
}

impl Destination {
    /// A destination without thresholds.
    pub fn new(address: DestinationKey, forwarding: Forwarding, weight: u32) -> Self {
        Self { address, forwarding, weight, upper: 0, lower: 0 }
    }

    /// Whether the kernel would show `self` after being told `wanted`.
    pub fn satisfies(&self, wanted: &Self) -> bool {
        let forwarding =
            if self.forwarding == Forwarding::LocalNode { self.forwarding } else { wanted.forwarding };
        *self == Self { forwarding, ..*wanted }
    }
}

/// A service with its destinations: what is desired, and what is observed. Two are the same in whatever order their
/// destinations came.
#[derive(Clone, Debug)]
pub struct VirtualService {
    /// The service.
    pub service: Service,
    /// Its destinations.
    pub destinations: BTreeMap<DestinationKey, Destination>,
    /// The order to make them in. A Maglev table depends on it: the kernel fills it walking the list of destinations
    /// (`ip_vs_mh_populate`, Linux 4.18), and two nodes should have the same one.
    sequence: Vec<DestinationKey>,
}

impl PartialEq for VirtualService {
    fn eq(&self, other: &Self) -> bool {
        self.service == other.service && self.destinations == other.destinations
    }
}

impl Eq for VirtualService {}

impl VirtualService {
    /// A service with these destinations.
    pub fn new(service: Service, destinations: impl IntoIterator<Item = Destination>) -> Self {
        let (mut by_address, mut sequence) = (BTreeMap::new(), Vec::new());
        for destination in destinations {
            if by_address.insert(destination.address, destination).is_none() {
                sequence.push(destination.address);
            }
        }
        Self { service, destinations: by_address, sequence }
    }

    /// Its destinations in the order to make them in; those that were put in later come last, by address.
    pub fn in_sequence(&self) -> impl Iterator<Item = &Destination> {
        let known: BTreeSet<_> = self.sequence.iter().collect();
        let later = self.destinations.iter().filter(move |(address, _)| !known.contains(address));
        let first = self.sequence.iter().filter_map(|address| self.destinations.get(address));
        first.chain(later.map(|(_, destination)| destination))
    }
}

/// Counters of a service or destination. The kernel adds them up every two seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Connections.
    pub connections: u64,
    /// Packets from clients.
    pub in_packets: u64,
    /// Packets to clients.
    pub out_packets: u64,
    /// Bytes from clients.
    pub in_bytes: u64,
    /// Bytes to clients.
    pub out_bytes: u64,
    /// Connections each second.
    pub connection_rate: u64,
    /// Packets from clients each second.
    pub in_packet_rate: u64,
    /// Packets to clients each second.
    pub out_packet_rate: u64,
    /// Bytes from clients each second.
    pub in_byte_rate: u64,
    /// Bytes to clients each second.
    pub out_byte_rate: u64,
}

/// A service as the kernel shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceStatus {
    /// The service.
    pub service: Service,
    /// Its counters.
    pub stats: Stats,
}

/// A destination as the kernel shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DestinationStatus {
    /// The destination.
    pub destination: Destination,
    /// Connections that are established.
    pub active: u32,
    /// Connections that are not.
    pub inactive: u32,
    /// Connections that keep clients with it.
    pub persistent: u32,
    /// Its counters.
    pub stats: Stats,
}

/// What IPVS says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Info {
    /// Its version.
    pub version: (u8, u8, u8),
    /// Buckets of its connection table.
    pub table_size: u32,
}

/// When connections are forgotten. The kernel counts whole seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timeouts {
    /// Established TCP.
    pub tcp: Duration,
    /// TCP after a FIN.
    pub tcp_fin: Duration,
    /// UDP.
    pub udp: Duration,
}
