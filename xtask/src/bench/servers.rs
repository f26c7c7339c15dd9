//! The servers that every path ends at, in places that are no tasks of shoal's.

use shoal_netns::{Groups, Host, Process};

use super::chain::{Ports, server_arguments};
use super::measure::Loader;

/// The servers in one place, in control groups of their own: a task has them, and so has whatever a host runs under systemd.
/// The kernel accounts for groups at each switch between processes, which no path shall have for nothing.
pub(crate) struct Servers {
    load: Process,
    _iperf: Process,
    /// Held until the servers are gone.
    _groups: Groups,
}

impl Servers {
    pub(crate) fn start(host: &Host, load: &Loader, ports: Ports) -> anyhow::Result<Self> {
        // Ports of a node towards a task come round again within a run. The TIME_WAIT that one path left there would answer
        // the next path's SYN with a stray ACK and cost it a second.
        host.sysctl("ipv4/tcp_max_tw_buckets", "0")?;
        let groups = Groups::new(host.unique())?;
        let port = ports.iperf.to_string();
        let iperf = groups.run("iperf3".as_ref()).args(["-s", "-p", &port]).cpu(load.cpu);
        let servers = groups.run(&load.program).args(server_arguments(ports)).cpu(load.cpu);
        Ok(Self { load: host.spawn("load", servers)?, _iperf: host.spawn("iperf", iperf)?, _groups: groups })
    }

    /// What they say of themselves.
    pub(crate) fn mark(&self) -> String {
        format!(" pid={} ", self.load.pid())
    }
}
