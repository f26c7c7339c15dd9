//! The chain with Docker's swarm mode on nodes A and B: no daemon, but the kernel configuration that it makes, by the
//! same programs (`ip`, `bridge`, `iptables`; IPVS by `ipvsadm`).
//!
//! ```text
//! client --- node: DNAT, docker_gwbridge --- ingress sandbox: mark, IPVS, SNAT --- overlay: br0, vxlan0 --- other node
//!                                     \---------------------- task: REDIRECT -----/
//! ```
//! Every box but the client and the nodes is a network namespace of a node. What each part is there for, and what is
//! left out, is in `docs/bench.md`.

mod rules;

use std::net::Ipv4Addr;

use anyhow::Context;
use shoal_netns::{Host, Run};

use super::chain::{A_BACK, A_FRONT, B_BACK, Hosts, Ports, TASK_PORTS};
use super::measure::Loader;
use super::path::{Case, Client, Kept, Open};
use super::servers::Servers;

/// The task on B is published by the servers' own ports, that on A by these.
const LOCAL_PORTS: Ports = Ports { whoami: 7200, conn: 7201, echo: 7202, iperf: 5401 };

/// The ingress network, and who has which address on it.
const SUBNET: &str = "10.79.0.0/24";
const GATEWAY: &str = "10.79.0.1/24";
const VNI: u32 = 4096;
const VXLAN_PORT: u16 = 4789;
const MTU: u32 = 1450;
/// The bridge that leads from the node into its sandboxes.
const GWBRIDGE: &str = "docker_gwbridge";
const GWBRIDGE_ADDRESS: &str = "172.18.0.1";
const SANDBOX_LEG: &str = "172.18.0.2";
const TASK_LEG: &str = "172.18.0.3";

/// A service of one task, as every node sees it.
struct Service {
    mark: u32,
    vip: Ipv4Addr,
    published: Ports,
    task: Ipv4Addr,
}

const SERVICES: [Service; 2] = [
    Service {
        mark: 0x100,
        vip: Ipv4Addr::new(10, 79, 0, 4),
        published: TASK_PORTS,
        task: Ipv4Addr::new(10, 79, 0, 12),
    },
    Service {
        mark: 0x101,
        vip: Ipv4Addr::new(10, 79, 0, 5),
        published: LOCAL_PORTS,
        task: Ipv4Addr::new(10, 79, 0, 11),
    },
];

/// What a node has on the ingress network, and where the others find it.
#[derive(Clone, Copy)]
struct Seat {
    vtep: &'static str,
    /// Of its ingress sandbox: the source of all that it balances.
    balancer: Ipv4Addr,
    /// The service whose task runs here.
    service: &'static Service,
}

const SEATS: [Seat; 2] = [
    Seat { vtep: A_BACK, balancer: Ipv4Addr::new(10, 79, 0, 2), service: &SERVICES[1] },
    Seat { vtep: B_BACK, balancer: Ipv4Addr::new(10, 79, 0, 3), service: &SERVICES[0] },
];

/// Both nodes, and the client.
pub(crate) struct Docker {
    client: Host,
    sides: [Side; 2],
}

/// A node with its sandboxes, and the servers in its task.
struct Side {
    seat: Seat,
    task: Host,
    sandbox: Host,
    overlay: Host,
    node: Host,
    servers: Option<Servers>,
}

impl Docker {
    pub(crate) fn start(load: &Loader) -> anyhow::Result<Self> {
        let Hosts { client, a, b } = Hosts::cabled()?;
        let [seat_a, seat_b] = SEATS;
        let mut sides = [Side::new(seat_a, a)?, Side::new(seat_b, b)?];
        for (side, other) in sides.iter_mut().zip([seat_b, seat_a]) {
            side.build(other).with_context(|| format!("on {}", side.node.label()))?;
            side.servers = Some(Servers::start(&side.task, load, TASK_PORTS)?);
        }
        Ok(Self { client, sides })
    }

    pub(crate) fn open(&self, case: Case) -> anyhow::Result<Open<'_>> {
        let (side, ports) = match case {
            Case::Remote => (&self.sides[1], TASK_PORTS),
            Case::Local => (&self.sides[0], LOCAL_PORTS),
        };
        let mark = side.servers.as_ref().context("no servers were started")?.mark();
        Ok(Open {
            client: Client::Host(&self.client),
            address: A_FRONT.to_owned(),
            ports,
            mark,
            _kept: Kept::Nothing,
        })
    }
}

impl Side {
    fn new(seat: Seat, node: Host) -> anyhow::Result<Self> {
        let new = |part: &str| Host::new(&format!("{part}{}", node.label()));
        let (overlay, sandbox, task) = (new("ov")?, new("in")?, new("t")?);
        Ok(Self { seat, task, sandbox, overlay, node, servers: None })
    }

    fn build(&self, other: Seat) -> anyhow::Result<()> {
        self.make_overlay(other)?;
        self.make_gwbridge()?;
        for host in [&self.node, &self.sandbox] {
            host.sysctl("ipv4/ip_forward", "1")?;
        }
        program(&self.node, &rules::of_node())?;
        program(&self.sandbox, &rules::of_sandbox(self.seat.balancer))?;
        let Service { task, published, .. } = self.seat.service;
        program(&self.task, &rules::of_task(*task, *published))?;
        self.balance()
    }

    /// The overlay has a namespace of its own; its VXLAN device is made on the node, so that its socket stays there.
    fn make_overlay(&self, other: Seat) -> anyhow::Result<()> {
        self.node.ip(&format!(
            "link add vxlan0 mtu {MTU} type vxlan id {VNI} dstport {VXLAN_PORT} learning proxy l2miss l3miss"
        ))?;
        self.node.ip(&format!("link set vxlan0 netns {}", self.overlay.unique()))?;
        self.overlay.ip(&format!("link add br0 mtu {MTU} type bridge vlan_default_pvid 0"))?;
        self.overlay.ip(&format!("addr add {GATEWAY} dev br0"))?;
        self.overlay.ip("link set vxlan0 master br0 up")?;
        self.overlay.ip("link set br0 up")?;
        let bridge = (&self.overlay, "br0");
        attach(bridge, ("vin", &self.sandbox), ("eth0", self.seat.balancer, 24))?;
        attach(bridge, ("vt", &self.task), ("eth0", self.seat.service.task, 24))?;
        for service in &SERVICES {
            self.sandbox.ip(&format!("addr add {}/32 dev eth0", service.vip))?;
        }
        for address in [other.balancer, other.service.task] {
            let mac = mac(address);
            self.overlay.ip(&format!("neigh add {address} lladdr {mac} dev vxlan0 nud permanent"))?;
            let line = format!("bridge fdb replace {mac} dev vxlan0 dst {} self permanent", other.vtep);
            self.overlay.run_line(&line).stdout()?;
        }
        Ok(())
    }

    /// The way between the node and its sandboxes.
    fn make_gwbridge(&self) -> anyhow::Result<()> {
        self.node.ip(&format!("link add {GWBRIDGE} type bridge"))?;
        self.node.ip(&format!("addr add {GWBRIDGE_ADDRESS}/16 dev {GWBRIDGE}"))?;
        self.node.ip(&format!("link set {GWBRIDGE} up"))?;
        for (name, host, leg) in [("gin", &self.sandbox, SANDBOX_LEG), ("gt", &self.task, TASK_LEG)] {
            attach((&self.node, GWBRIDGE), (name, host), ("eth1", leg.parse()?, 16))?;
            host.ip(&format!("route add default via {GWBRIDGE_ADDRESS}"))?;
        }
        Ok(())
    }

    /// The services by mark, and the parameters that Docker sets for them.
    fn balance(&self) -> anyhow::Result<()> {
        for service in &SERVICES {
            let Service { mark, task, .. } = service;
            for line in
                [format!("ipvsadm -A -f {mark} -s rr"), format!("ipvsadm -a -f {mark} -r {task}:0 -m -w 1")]
            {
                self.sandbox.run_line(&line).stdout()?;
            }
        }
        for (name, value) in [
            ("conntrack", "1"),
            ("conn_reuse_mode", "0"),
            ("expire_nodest_conn", "1"),
            ("expire_quiescent_template", "1"),
        ] {
            self.sandbox.sysctl(&format!("ipv4/vs/{name}"), value)?;
        }
        Ok(())
    }
}

/// A cable from a bridge, named there by `port`, into a namespace.
fn attach(
    (place, bridge): (&Host, &str),
    (port, inside): (&str, &Host),
    (device, address, prefix): (&str, Ipv4Addr, u8),
) -> anyhow::Result<()> {
    let mtu = if bridge == GWBRIDGE { 1500 } else { MTU };
    let (peer, mac) = (inside.unique(), mac(address));
    place.ip(&format!(
        "link add {port} mtu {mtu} type veth peer name {device} address {mac} mtu {mtu} netns {peer}"
    ))?;
    place.ip(&format!("link set {port} master {bridge} up"))?;
    inside.ip(&format!("addr add {address}/{prefix} dev {device}"))?;
    inside.ip(&format!("link set {device} up")).map(drop)
}

fn program(place: &Host, rules: &str) -> anyhow::Result<()> {
    let file = place.scratch().join("rules");
    std::fs::write(&file, rules)?;
    restore(place)?.args([&file]).stdout().map(drop)
}

/// The program that loads rules: nftables under iptables' language as Debian and Docker have it, the old one on a kernel
/// whose nftables knows no IPv4.
fn restore(place: &Host) -> anyhow::Result<Run> {
    let has_nft = place.run_line("nft add table ip filter").output()?.status.success();
    Ok(place.run(if has_nft { "iptables-nft-restore" } else { "iptables-legacy-restore" }))
}

/// As Docker makes them: locally administered, from the address.
fn mac(address: Ipv4Addr) -> String {
    let [a, b, c, d] = address.octets();
    format!("02:42:{a:02x}:{b:02x}:{c:02x}:{d:02x}")
}
