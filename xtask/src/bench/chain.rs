//! The topology: client, node A, node B in a row, with an overlay of the kernel's own between the nodes.
//!
//! ```text
//! client eth0 --- eth0 A eth1 --- eth0 B        A and B: brx0 + vxlan0, a task namespace behind each
//!        eth1 ---------------------- eth1
//! ```
//! The second cable from the client to B is for the bare path only: what the hosts can do with nothing between them.

use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::ensure;
use shoal_netns::{Host, wait_for};

use super::measure::Loader;
use super::path::{Case, Client};
use super::servers::Servers;

/// The ports of one set of servers.
#[derive(Clone, Copy)]
pub(crate) struct Ports {
    /// Says which process answered.
    pub(crate) whoami: u16,
    pub(crate) conn: u16,
    pub(crate) echo: u16,
    pub(crate) iperf: u16,
}

impl Ports {
    pub(crate) fn all(self) -> [u16; 4] {
        [self.whoami, self.conn, self.echo, self.iperf]
    }
}

/// The servers in a task, and the ports by which node A offers them.
pub(crate) const TASK_PORTS: Ports = Ports { whoami: 7000, conn: 7001, echo: 7002, iperf: 5201 };
/// The servers of a host itself: other ports, so that none of them can answer in a task's stead.
pub(crate) const HOST_PORTS: Ports = Ports { whoami: 7100, conn: 7101, echo: 7102, iperf: 5301 };

const VXLAN_PORT: u16 = 7378;
const VNI: u32 = 77;

/// Addresses of A, by which the client reaches what A offers.
pub(crate) const A_FRONT: &str = "10.78.0.1";
pub(crate) const A_BACK: &str = "10.78.1.1";
pub(crate) const B_BACK: &str = "10.78.1.2";
const B_DIRECT: &str = "10.78.2.2";

/// One side of the overlay: the namespace of a task on a node, and how it is addressed.
pub(crate) struct Task {
    pub(crate) address: &'static str,
    mac: &'static str,
    host: Host,
}

/// The hosts and the cables: what a node of shoal starts from.
pub(crate) struct Hosts {
    pub(crate) client: Host,
    pub(crate) a: Host,
    pub(crate) b: Host,
}

impl Hosts {
    pub(crate) fn cabled() -> anyhow::Result<Self> {
        let this = Self { client: Host::new("client")?, a: Host::new("a")?, b: Host::new("b")? };
        link(&this.client, "eth0", "10.78.0.9/24", &this.a, "eth0", &format!("{A_FRONT}/24"))?;
        link(&this.a, "eth1", &format!("{A_BACK}/24"), &this.b, "eth0", &format!("{B_BACK}/24"))?;
        link(&this.client, "eth1", "10.78.2.9/24", &this.b, "eth1", &format!("{B_DIRECT}/24"))?;
        ensure_no_packet_steering(&this.a)?;
        for host in [&this.client, &this.a, &this.b] {
            congest_by_loss(host)?;
        }
        Ok(this)
    }
}

/// The hosts with the kernel's own overlay up and servers listening everywhere.
pub(crate) struct Chain {
    pub(crate) client: Host,
    pub(crate) a: Host,
    pub(crate) b: Host,
    pub(crate) remote: Task,
    pub(crate) local: Task,
    pub(crate) cpu: Option<usize>,
    servers: Vec<Servers>,
}

const A_ROUTER_MAC: &str = "02:00:00:78:00:0a";
const A_ROUTER: &str = "10.79.0.1";

impl Chain {
    pub(crate) fn new(load: &Loader) -> anyhow::Result<Self> {
        let remote = Task { address: "10.79.0.12", mac: "02:00:00:78:00:12", host: Host::new("tb")? };
        let local = Task { address: "10.79.0.11", mac: "02:00:00:78:00:11", host: Host::new("ta")? };
        let Hosts { client, a, b } = Hosts::cabled()?;
        let mut chain = Self { client, a, b, remote, local, cpu: load.cpu, servers: Vec::new() };
        chain.overlay()?;
        chain.start_servers(load)?;
        Ok(chain)
    }

    fn overlay(&self) -> anyhow::Result<()> {
        for (node, local, task, name) in
            [(&self.a, A_BACK, &self.local, "ta"), (&self.b, B_BACK, &self.remote, "tb")]
        {
            node.sysctl("ipv4/ip_forward", "1")?;
            node.ip(&format!(
                "link add vxlan0 type vxlan id {VNI} local {local} dstport {VXLAN_PORT} nolearning"
            ))?;
            node.ip("link add brx0 mtu 1450 type bridge")?;
            node.ip("link set vxlan0 master brx0 up")?;
            node.ip(&format!(
                "link add {name} mtu 1450 type veth peer name eth0 address {} mtu 1450 netns {}",
                task.mac,
                task.host.unique()
            ))?;
            node.ip(&format!("link set {name} master brx0 up"))?;
            node.ip("link set brx0 up")?;
            task.host.ip(&format!("addr add {}/24 dev eth0", task.address))?;
            task.host.ip("link set eth0 up")?;
            task.host.ip(&format!("route add default via {A_ROUTER}"))?;
            task.host.ip(&format!("neigh replace {A_ROUTER} lladdr {A_ROUTER_MAC} dev eth0"))?;
        }
        self.a.ip(&format!("link set brx0 address {A_ROUTER_MAC}"))?;
        self.a.ip(&format!("addr add {A_ROUTER}/24 dev brx0"))?;
        for task in [&self.local, &self.remote] {
            self.a.ip(&format!("neigh replace {} lladdr {} dev brx0", task.address, task.mac))?;
        }
        forward(&self.a, self.remote.mac, B_BACK)?;
        forward(&self.b, A_ROUTER_MAC, A_BACK)?;
        self.client.ip(&format!("route add 10.79.0.0/24 via {A_FRONT}"))?;
        Ok(())
    }

    fn start_servers(&mut self, load: &Loader) -> anyhow::Result<()> {
        let places = [
            (&self.a, HOST_PORTS),
            (&self.b, HOST_PORTS),
            (&self.local.host, TASK_PORTS),
            (&self.remote.host, TASK_PORTS),
        ];
        for (host, ports) in places {
            self.servers.push(Servers::start(host, load, ports)?);
        }
        Ok(())
    }

    /// Has a further host send as those of the chain do.
    pub(crate) fn same_senders(&self, host: &Host) -> anyhow::Result<()> {
        let control = self.a.read_sysctl("ipv4/tcp_congestion_control")?;
        host.sysctl("ipv4/tcp_congestion_control", control.trim())
    }

    /// What nftables' path would miss: a kernel may have nftables for some families only.
    pub(crate) fn lacks_nftables(&self) -> anyhow::Result<Option<String>> {
        let made = self.a.run_line("nft add table ip probe").output()?;
        if !made.status.success() {
            return Ok(Some("this kernel has no nftables for IPv4".to_owned()));
        }
        self.a.run_line("nft delete table ip probe").stdout()?;
        Ok(None)
    }

    /// Whether the kernel has netkit devices.
    pub(crate) fn has_netkit(&self) -> bool {
        // Its peer goes with it.
        self.local.host.ip("link add probe type netkit").is_ok()
            && self.local.host.ip("link del probe").is_ok()
    }

    /// What the server meant says of itself, at the end of a path.
    pub(crate) fn server_mark(&self, case: Case, bare: bool) -> String {
        let index = match (bare, case) {
            (true, Case::Local) => 0,
            (true, Case::Remote) => 1,
            (false, Case::Local) => 2,
            (false, Case::Remote) => 3,
        };
        self.servers[index].mark()
    }

    /// Where the bare path ends: a process of the node that has the task, one cable away.
    pub(crate) fn bare_address(case: Case) -> &'static str {
        match case {
            Case::Remote => B_DIRECT,
            Case::Local => A_FRONT,
        }
    }
}

/// Waits until all servers behind an address answer the client, and the one meant is among them.
pub(crate) fn wait_until_served(
    client: &Client<'_>,
    address: &str,
    ports: Ports,
    mark: &str,
) -> anyhow::Result<()> {
    // iperf3 counts a client that only connects as an error.
    for port in [ports.whoami, ports.conn, ports.echo] {
        let target = format!("{address}:{port}").parse()?;
        wait_for(&format!("{target} to answer"), Duration::from_secs(10), || {
            let probe = || Ok(TcpStream::connect_timeout(&target, Duration::from_secs(1))?);
            client.enter(probe).map(drop).map_err(|error| format!("{error:#}"))
        })?;
    }
    let target = SocketAddr::new(address.parse()?, ports.whoami);
    let line = client.enter(|| {
        let mut line = String::new();
        TcpStream::connect_timeout(&target, Duration::from_secs(1))?.read_to_string(&mut line)?;
        Ok(line)
    })?;
    ensure!(line.contains(mark), "not the server meant ({mark}), but: {line}");
    Ok(())
}

/// `shoal-load` as all servers a measurement needs.
pub(crate) fn server_arguments(ports: Ports) -> Vec<String> {
    let words = format!("serve --whoami {} --conn {} --echo {}", ports.whoami, ports.conn, ports.echo);
    words.split(' ').map(str::to_owned).collect()
}

fn link(
    one: &Host,
    dev: &str,
    address: &str,
    other: &Host,
    peer: &str,
    peer_address: &str,
) -> anyhow::Result<()> {
    one.ip(&format!("link add {dev} type veth peer name {peer} netns {}", other.unique()))?;
    for (host, dev, address) in [(one, dev, address), (other, peer, peer_address)] {
        host.ip(&format!("addr add {address} dev {dev}"))?;
        host.ip(&format!("link set {dev} up"))?;
    }
    Ok(())
}

/// A static forwarding entry: frames to this MAC address go to that node.
fn forward(node: &Host, mac: &str, vtep: &str) -> anyhow::Result<()> {
    let line = format!("bridge fdb replace {mac} dev vxlan0 dst {vtep} self static");
    node.run_line(&line).stdout().map(drop)
}

/// Senders that fill what there is. One that paces itself by a model of the path (BBR) measures its own timers on a
/// path that is a CPU.
fn congest_by_loss(host: &Host) -> anyhow::Result<()> {
    host.sysctl("ipv4/tcp_congestion_control", "cubic")
        .or_else(|_| host.sysctl("ipv4/tcp_congestion_control", "reno"))
}

/// Receive packet steering would move work of the path to other CPUs.
fn ensure_no_packet_steering(host: &Host) -> anyhow::Result<()> {
    // Kernels before 6.3, and those for one CPU, have no default: nothing is steered unless asked for by device.
    let mask = host.read_sysctl("core/rps_default_mask").unwrap_or_default();
    ensure!(mask.trim_matches(['0', ',', '\n']).is_empty(), "receive packet steering is on: {mask}");
    Ok(())
}
