//! Published ports: where they answer, and when two of them get into each other's way.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::net::Protocol;

/// Which nodes answer on a published port, and with whose tasks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum PublishMode {
    /// The routing mesh: every node, with the tasks of all nodes.
    #[default]
    Ingress,
    /// Each node that has a task of the service, with that task.
    Host,
}

impl PublishMode {
    /// As operators write it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Host => "host",
        }
    }
}

impl fmt::Display for PublishMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for PublishMode {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "ingress" => Ok(Self::Ingress),
            "host" => Ok(Self::Host),
            _ => Err(format!("mode '{text}' is unknown; use mode=ingress or mode=host")),
        }
    }
}

/// Where a published port answers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Binding {
    /// On which nodes.
    pub mode: PublishMode,
    /// Only packets to this address are taken, by a node that has it; `None`: to every address of a node.
    pub addr: Option<IpAddr>,
}

impl Binding {
    /// Every address of every node.
    pub const EVERYWHERE: Self = Self { mode: PublishMode::Ingress, addr: None };
}

/// How a task is told which client it has, in front of what the client sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ProxyProtocol {
    /// A header of the PROXY protocol, version 2 (binary).
    V2,
}

impl ProxyProtocol {
    /// As operators write it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::V2 => "v2",
        }
    }
}

impl fmt::Display for ProxyProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for ProxyProtocol {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "v2" => Ok(Self::V2),
            _ => Err(format!(
                "proxy-protocol '{text}' is not there, only v2 is; write proxy-protocol=v2, or leave it out"
            )),
        }
    }
}

/// Why no packet that a client sends to a node can carry an address, or one that means something else; `None` when a
/// port can be published on it.
pub const fn unfit_address(addr: IpAddr) -> Option<&'static str> {
    match addr {
        IpAddr::V4(a) if a.is_unspecified() => {
            Some("is no address; leave it out to publish on every address")
        }
        IpAddr::V6(a) if a.is_unspecified() => {
            Some("is no address; leave it out to publish on every address")
        }
        IpAddr::V4(a) if a.is_loopback() => Some("is loopback, which no client reaches"),
        IpAddr::V6(a) if a.is_loopback() => Some("is loopback, which no client reaches"),
        IpAddr::V4(a) if a.is_multicast() || a.is_broadcast() => Some("is no address of one host"),
        IpAddr::V6(a) if a.is_multicast() => Some("is no address of one host"),
        IpAddr::V6(a) if is_link_local(a) => Some("is link-local: it means another host on every link"),
        IpAddr::V6(a) if a.to_ipv4_mapped().is_some() => Some("is an IPv4 address; write it as one"),
        _ => None,
    }
}

const fn is_link_local(addr: Ipv6Addr) -> bool {
    addr.segments()[0] & 0xffc0 == 0xfe80
}

/// What only one service may have: a port, on one address or on all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PortPlace {
    /// Transport.
    pub protocol: Protocol,
    /// Published port, host byte order.
    pub port: u16,
    /// The one address, or all.
    pub addr: Option<IpAddr>,
}

impl PortPlace {
    /// Whether a packet could be meant for either, as the kernel decides it when sockets are bound: the same port and
    /// the same address, or one of them on all addresses.
    pub fn overlaps(self, other: Self) -> bool {
        self.protocol == other.protocol
            && self.port == other.port
            && (self.addr.is_none() || other.addr.is_none() || self.addr == other.addr)
    }

    /// The first of all places of this port, in their order.
    pub const fn first_of_port(self) -> Self {
        Self { addr: None, ..self }
    }

    /// Whether the ports are the same, whatever their addresses.
    pub fn same_port(self, other: Self) -> bool {
        self.protocol == other.protocol && self.port == other.port
    }
}

impl fmt::Display for PortPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_address(f, self.addr)?;
        write!(f, "{}/{}", self.port, self.protocol)
    }
}

fn write_address(f: &mut fmt::Formatter<'_>, addr: Option<IpAddr>) -> fmt::Result {
    match addr {
        None => Ok(()),
        Some(IpAddr::V4(addr)) => write!(f, "{addr}:"),
        Some(IpAddr::V6(addr)) => write!(f, "[{addr}]:"),
    }
}

/// A port that nodes answer on. Ports in host byte order, never zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "stored::Port", into = "stored::Port")]
pub struct PublishedPort {
    /// Transport.
    pub protocol: Protocol,
    /// The port on the nodes.
    pub published: u16,
    /// The port the task listens on.
    pub target: u16,
    /// Where it answers.
    pub binding: Binding,
    /// Header that connections begin with for the task; `None`: what the client sends, and nothing else.
    pub proxy: Option<ProxyProtocol>,
    /// Direct server return: the node of the task answers the client itself, past the node that the client asked.
    pub dsr: bool,
}

impl PublishedPort {
    /// A port that every node answers on at every address.
    pub const fn everywhere(protocol: Protocol, published: u16, target: u16) -> Self {
        Self { protocol, published, target, binding: Binding::EVERYWHERE, proxy: None, dsr: false }
    }

    /// What it takes.
    pub const fn place(&self) -> PortPlace {
        PortPlace { protocol: self.protocol, port: self.published, addr: self.binding.addr }
    }

    /// Whether only nodes with a task of the service answer.
    pub fn is_host(&self) -> bool {
        self.binding.mode == PublishMode::Host
    }
}

/// What a version of shoal must know to answer on a port, in the order in which it was learned. Assignments have their
/// ports in this order, each form where older versions don't look: they answer on none of those they would get wrong. Direct server
/// return has no form: a version that doesn't know of it answers by the node that was asked, which is right for clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum PortForm {
    /// TCP or UDP on every address of every node.
    Everywhere,
    /// With a mode or an address.
    Bound,
    /// Of SCTP, everywhere or not.
    Sctp,
    /// With a header in front.
    Headed,
}

impl PublishedPort {
    /// What it takes to answer on it.
    pub fn form(&self) -> PortForm {
        match self.protocol {
            _ if self.proxy.is_some() => PortForm::Headed,
            Protocol::Sctp => PortForm::Sctp,
            Protocol::Tcp | Protocol::Udp if self.binding == Binding::EVERYWHERE => PortForm::Everywhere,
            Protocol::Tcp | Protocol::Udp => PortForm::Bound,
        }
    }
}

impl fmt::Display for PublishedPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_address(f, self.binding.addr)?;
        write!(f, "{}->{}/{}", self.published, self.target, self.protocol)?;
        let host = self.is_host().then(|| "host".to_owned());
        let proxy = self.proxy.map(|proxy| format!("proxy {proxy}"));
        let dsr = self.dsr.then(|| "dsr".to_owned());
        let how: Vec<_> = [host, proxy, dsr].into_iter().flatten().collect();
        if how.is_empty() { Ok(()) } else { write!(f, " ({})", how.join(", ")) }
    }
}

/// A published port as asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "stored::Spec", into = "stored::Spec")]
pub struct PortSpec {
    /// Transport.
    pub protocol: Protocol,
    /// Port on the nodes; `None` takes a free one of 30000-32767.
    pub published: Option<u16>,
    /// Port the task listens on.
    pub target: u16,
    /// Where it answers.
    pub binding: Binding,
    /// Header that connections begin with for the task; `None`: what the client sends, and nothing else.
    pub proxy: Option<ProxyProtocol>,
    /// Direct server return: the node of the task answers the client itself, past the node that the client asked.
    pub dsr: bool,
}

impl PortSpec {
    /// What it takes, when it says which port.
    pub fn place(&self) -> Option<PortPlace> {
        let port = self.published?;
        Some(PortPlace { protocol: self.protocol, port, addr: self.binding.addr })
    }
}

/// How ports stand in logs, snapshots and ledgers. Their formats don't take another field, but the protocol may get
/// another variant: a port that answers everywhere, without a header and by the node asked, is written as
/// ever.
mod stored {
    use serde::{Deserialize, Serialize};

    use super::{Binding, PortSpec, ProxyProtocol, PublishedPort};
    use crate::net::Protocol;

    /// The first two are those of [`Protocol`], in its order; the others came later, one by one.
    #[derive(Clone, Copy, Serialize, Deserialize)]
    enum Transport {
        Tcp,
        Udp,
        Bound {
            protocol: Protocol,
            binding: Binding,
        },
        Headed {
            protocol: Protocol,
            binding: Binding,
            proxy: ProxyProtocol,
        },
        /// With direct server return. It has a header as well where both were asked for, to be refused.
        Direct {
            protocol: Protocol,
            binding: Binding,
            proxy: Option<ProxyProtocol>,
        },
    }

    impl Transport {
        fn of(protocol: Protocol, binding: Binding, proxy: Option<ProxyProtocol>, dsr: bool) -> Self {
            if dsr {
                return Self::Direct { protocol, binding, proxy };
            }
            if let Some(proxy) = proxy {
                return Self::Headed { protocol, binding, proxy };
            }
            match protocol {
                Protocol::Tcp if binding == Binding::EVERYWHERE => Self::Tcp,
                Protocol::Udp if binding == Binding::EVERYWHERE => Self::Udp,
                Protocol::Tcp | Protocol::Udp | Protocol::Sctp => Self::Bound { protocol, binding },
            }
        }

        const fn parts(self) -> (Protocol, Binding, Option<ProxyProtocol>, bool) {
            match self {
                Self::Tcp => (Protocol::Tcp, Binding::EVERYWHERE, None, false),
                Self::Udp => (Protocol::Udp, Binding::EVERYWHERE, None, false),
                Self::Bound { protocol, binding } => (protocol, binding, None, false),
                Self::Headed { protocol, binding, proxy } => (protocol, binding, Some(proxy), false),
                Self::Direct { protocol, binding, proxy } => (protocol, binding, proxy, true),
            }
        }
    }

    #[derive(Serialize, Deserialize)]
    pub(super) struct Port {
        protocol: Transport,
        published: u16,
        target: u16,
    }

    impl From<PublishedPort> for Port {
        fn from(p: PublishedPort) -> Self {
            let protocol = Transport::of(p.protocol, p.binding, p.proxy, p.dsr);
            Self { protocol, published: p.published, target: p.target }
        }
    }

    impl From<Port> for PublishedPort {
        fn from(p: Port) -> Self {
            let (protocol, binding, proxy, dsr) = p.protocol.parts();
            Self { protocol, published: p.published, target: p.target, binding, proxy, dsr }
        }
    }

    #[derive(Serialize, Deserialize)]
    pub(super) struct Spec {
        protocol: Transport,
        published: Option<u16>,
        target: u16,
    }

    impl From<PortSpec> for Spec {
        fn from(p: PortSpec) -> Self {
            let protocol = Transport::of(p.protocol, p.binding, p.proxy, p.dsr);
            Self { protocol, published: p.published, target: p.target }
        }
    }

    impl From<Spec> for PortSpec {
        fn from(p: Spec) -> Self {
            let (protocol, binding, proxy, dsr) = p.protocol.parts();
            Self { protocol, published: p.published, target: p.target, binding, proxy, dsr }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(port: u16, addr: Option<&str>) -> PortPlace {
        let addr = addr.map(|a| a.parse().expect("an address"));
        PortPlace { protocol: Protocol::Tcp, port, addr }
    }

    #[test]
    fn places_overlap_as_sockets_do() {
        let all = place(80, None);
        let (one, other) = (place(80, Some("192.0.2.1")), place(80, Some("2001:db8::1")));
        assert!(all.overlaps(all) && all.overlaps(one) && other.overlaps(all) && one.overlaps(one));
        assert!(!one.overlaps(other));
        assert!(!all.overlaps(place(81, None)));
        assert!(!all.overlaps(PortPlace { protocol: Protocol::Udp, ..all }));
        assert!(all < one && all.first_of_port() == one.first_of_port());
    }

    #[test]
    fn ports_as_people_write_them() {
        let shown = |binding| {
            PublishedPort { binding, ..PublishedPort::everywhere(Protocol::Tcp, 8080, 80) }.to_string()
        };
        assert_eq!(shown(Binding::EVERYWHERE), "8080->80/tcp");
        let addr = Some("2001:db8::1".parse().expect("an address"));
        assert_eq!(shown(Binding { mode: PublishMode::Host, addr }), "[2001:db8::1]:8080->80/tcp (host)");
        assert_eq!(place(80, Some("192.0.2.1")).to_string(), "192.0.2.1:80/tcp");
        let told = PublishedPort {
            proxy: Some(ProxyProtocol::V2),
            ..PublishedPort::everywhere(Protocol::Tcp, 8080, 80)
        };
        assert_eq!(told.to_string(), "8080->80/tcp (proxy v2)");
        let host = Binding { mode: PublishMode::Host, addr: None };
        assert_eq!(PublishedPort { binding: host, ..told }.to_string(), "8080->80/tcp (host, proxy v2)");
        let past = PublishedPort { dsr: true, ..PublishedPort::everywhere(Protocol::Udp, 53, 53) };
        assert_eq!(past.to_string(), "53->53/udp (dsr)");
        assert_eq!(ProxyProtocol::V2.to_string().parse(), Ok(ProxyProtocol::V2));
        assert!("v1".parse::<ProxyProtocol>().is_err_and(|error| error.contains("only v2")));
        assert!("mesh".parse::<PublishMode>().is_err());
        for mode in [PublishMode::Ingress, PublishMode::Host] {
            assert_eq!(mode.to_string().parse(), Ok(mode));
        }
    }

    #[test]
    fn addresses_that_no_client_can_mean_are_unfit() {
        let unfit = |text: &str| unfit_address(text.parse().expect("an address")).is_some();
        for bad in
            ["0.0.0.0", "::", "127.0.0.1", "::1", "224.0.0.1", "ff02::1", "fe80::1", "::ffff:192.0.2.1"]
        {
            assert!(unfit(bad), "{bad}");
        }
        assert!(unfit("255.255.255.255"));
        for good in ["192.0.2.1", "10.0.0.1", "2001:db8::1", "fd00::1", "169.254.1.1"] {
            assert!(!unfit(good), "{good}");
        }
    }
}
