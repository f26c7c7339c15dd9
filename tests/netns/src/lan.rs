//! A LAN: a bridge that joins hosts, IPv4 and IPv6.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::host::Host;

/// The device every host has on the LAN.
pub const DEVICE: &str = "eth0";

/// A host's place on the LAN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    number: u8,
    /// Its IPv4 address.
    pub v4: Ipv4Addr,
    /// Its IPv6 address.
    pub v6: Ipv6Addr,
}

impl Place {
    /// The place with this number.
    pub fn numbered(number: u8) -> Self {
        let v6 = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, u16::from(number));
        Self { number, v4: Ipv4Addr::new(10, 77, 0, number), v6 }
    }

    /// A place on no LAN of ours: hosts cabled otherwise.
    pub fn at(v4: Ipv4Addr, v6: Ipv6Addr) -> Self {
        Self { number: 0, v4, v6 }
    }

    /// Both addresses.
    pub fn addresses(&self) -> [IpAddr; 2] {
        [self.v4.into(), self.v6.into()]
    }
}

/// A bridge in a namespace of its own: nothing of it is seen on the machine.
pub struct Lan {
    bridge: Host,
}

impl Lan {
    /// An empty LAN.
    pub fn new() -> anyhow::Result<Self> {
        let bridge = Host::new("lan")?;
        bridge.ip("link add br0 type bridge")?;
        bridge.ip("link set br0 up")?;
        Ok(Self { bridge })
    }

    /// Plugs a host in under a number of its own (1 to 254).
    pub fn join(&self, host: &Host, number: u8) -> anyhow::Result<Place> {
        let place = Place::numbered(number);
        let port = port(place);
        // No time is spent on finding duplicates of addresses that can't have any.
        host.sysctl("ipv6/conf/default/accept_dad", "0")?;
        self.bridge.ip(&format!("link add {port} type veth peer name {DEVICE} netns {}", host.unique()))?;
        self.bridge.ip(&format!("link set {port} master br0 up"))?;
        host.ip(&format!("addr add {}/24 dev {DEVICE}", place.v4))?;
        host.ip(&format!("addr add {}/64 dev {DEVICE} nodad", place.v6))?;
        host.ip(&format!("link set {DEVICE} up"))?;
        Ok(place)
    }

    /// Pulls the cable of a host.
    pub fn unplug(&self, place: Place) -> anyhow::Result<()> {
        self.bridge.ip(&format!("link set {} down", port(place))).map(drop)
    }

    /// Puts the cable back.
    pub fn plug(&self, place: Place) -> anyhow::Result<()> {
        self.bridge.ip(&format!("link set {} up", port(place))).map(drop)
    }

    /// Sets what the cable of a host carries: it drops what is larger, and tells nobody.
    pub fn narrow(&self, place: Place, mtu: u32) -> anyhow::Result<()> {
        // A bridge that has IP look at what it carries would cut it into fragments.
        const IP_LOOKS: &str = "bridge/bridge-nf-call-iptables";
        if self.bridge.read_sysctl(IP_LOOKS).is_ok() {
            self.bridge.sysctl(IP_LOOKS, "0")?;
        }
        self.bridge.ip(&format!("link set {} mtu {mtu}", port(place))).map(drop)
    }

    /// The namespace that holds the bridge.
    pub fn host(&self) -> &Host {
        &self.bridge
    }
}

fn port(place: Place) -> String {
    format!("port{}", place.number)
}
