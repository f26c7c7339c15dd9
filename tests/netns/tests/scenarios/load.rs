//! Load on a service from everywhere: new connections and long streams, through every node and by its virtual IP.

use std::net::{IpAddr, SocketAddr};

use anyhow::ensure;
use shoal_netns::{Node, Swarm, Task, Traffic};

use crate::harness::{CONN, ECHO, PUBLISHED_CONN, create, running};

/// New connections a second on each address.
const RATE: u32 = 20;
const OTHER_ECHO: u16 = 8192;

/// Traffic that must not see a single failure.
pub(crate) struct Load {
    connections: Vec<Traffic>,
    streams: Vec<Traffic>,
}

impl Load {
    /// New connections to `web` through these nodes, by both families.
    pub(crate) fn published<'a>(
        swarm: &Swarm,
        nodes: impl IntoIterator<Item = &'a Node>,
    ) -> anyhow::Result<Self> {
        let addresses = nodes.into_iter().flat_map(|node| node.place.addresses());
        let connections = addresses
            .map(|address| {
                let target = SocketAddr::new(address, PUBLISHED_CONN);
                Traffic::connections(&swarm.client, &swarm.programs, target, RATE)
            })
            .collect::<anyhow::Result<_>>()?;
        Ok(Self { connections, streams: Vec::new() })
    }

    /// And from inside tasks, to the virtual IP of `web`.
    pub(crate) fn and_by_vip(mut self, swarm: &Swarm, from: &[Task]) -> anyhow::Result<Self> {
        let vip = swarm.manager().vip("web", "front")?;
        for task in from {
            for address in vip.addresses() {
                let target = SocketAddr::new(address, CONN);
                let traffic = Traffic::connections_in(&task.netns()?, &swarm.programs, target, RATE)?;
                self.connections.push(traffic);
            }
        }
        Ok(self)
    }

    /// And streams to a port of the nodes, which last as long as the load.
    pub(crate) fn and_streams<'a>(
        mut self,
        swarm: &Swarm,
        nodes: impl IntoIterator<Item = &'a Node>,
        port: u16,
    ) -> anyhow::Result<Self> {
        for address in nodes.into_iter().flat_map(|node| node.place.addresses()) {
            let target = SocketAddr::new(address, port);
            self.streams.push(Traffic::streams(&swarm.client, &swarm.programs, target, 3)?);
        }
        Ok(self)
    }

    /// Ends it: nothing failed, nothing broke, and there was some of each.
    pub(crate) fn finish(self) -> anyhow::Result<()> {
        let (mut requests, mut lines) = (0, 0);
        for traffic in self.connections {
            let report = traffic.finish()?;
            ensure!(report["failed"] == 0, "failed requests: {report}");
            let ok = report["ok"].as_u64().unwrap_or(0);
            ensure!(ok > 0, "no request was made: {report}");
            requests += ok;
        }
        for traffic in self.streams {
            let report = traffic.finish()?;
            ensure!(report["broken"] == 0, "broken streams: {report}");
            lines += report["lines"].as_u64().unwrap_or(0);
        }
        println!("  {requests} requests and {lines} lines on streams, none failed");
        Ok(())
    }
}

/// A service that nothing happens to: `flags` say where it is. Its tasks, and the port its echo is published on.
pub(crate) fn bystander(swarm: &Swarm, flags: &[&str]) -> anyhow::Result<(Vec<Task>, u16)> {
    let port = format!("{OTHER_ECHO}:{ECHO}");
    create(swarm, "other", "front", &[&["-p", &port], flags].concat())?;
    let tasks = shoal_netns::wait_for("the other service", crate::harness::PATIENCE, || {
        let listed = swarm.manager().items(&["service", "ls"]).map_err(|error| format!("{error:#}"))?;
        let other = listed.iter().find(|item| item["name"] == "other").ok_or("not listed")?;
        let wanted = other["wanted"].as_u64().and_then(|n| u32::try_from(n).ok()).filter(|n| *n > 0);
        wanted.ok_or_else(|| format!("{other}"))
    })
    .and_then(|count| running(swarm, "other", count))?;
    Ok((tasks, OTHER_ECHO))
}

/// Addresses of the client's side are of no interest here: whether anybody answers at an address at all.
pub(crate) fn answers(swarm: &Swarm, address: IpAddr, count: usize) -> anyhow::Result<usize> {
    Ok(crate::harness::ask_node(swarm, address, crate::harness::PUBLISHED_WHOAMI, false, count)?.ok)
}
