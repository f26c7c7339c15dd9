//! The chain with shoal on nodes A and B: the servers are tasks, their ports published.

use std::net::Ipv6Addr;
use std::time::Duration;

use anyhow::{Context, ensure};
use shoal_netns::{Host, Node, Place, Programs, Task, enter, wait_for};

use super::chain::{A_BACK, A_FRONT, B_BACK, Hosts, Ports, TASK_PORTS, server_arguments};
use super::measure::Loader;
use super::path::{Case, Kept, Open};
use crate::tools::target_dir;

/// The task on B is published by the servers' own ports, that on A by these.
const LOCAL_PORTS: Ports = Ports { whoami: 7200, conn: 7201, echo: 7202, iperf: 5401 };
const PATIENCE: Duration = Duration::from_mins(1);

/// A swarm of the two nodes.
pub(crate) struct Nodes {
    a: Node,
    b: Node,
    client: Host,
}

impl Nodes {
    pub(crate) fn start(load: &Loader) -> anyhow::Result<Self> {
        let programs = Programs::in_directory(&target_dir()?.join("debug"))?;
        let Hosts { client, a, b } = Hosts::cabled()?;
        let nowhere = Ipv6Addr::UNSPECIFIED;
        // The daemons are not on the path, so they are kept off its CPU, which is never the first.
        let elsewhere = load.cpu.filter(|&cpu| cpu > 0).map(|_| 0);
        let a = Node::start_on(a, Place::at(A_BACK.parse()?, nowhere), &programs, elsewhere)?;
        let b = Node::start_on(b, Place::at(B_BACK.parse()?, nowhere), &programs, elsewhere)?;
        let this = Self { a, b, client };
        this.a.shoal(&["swarm", "init", "--advertise-addr", A_BACK])?;
        let printed = this.a.shoal(&["-q", "swarm", "token", "create"])?;
        let token =
            printed.split_whitespace().find(|word| word.starts_with("SHOAL-1-")).context("no token")?;
        this.b.shoal(&["swarm", "join", "--token", token, "--advertise-addr", B_BACK, A_BACK])?;
        this.a.shoal(&["network", "create", "bench"])?;
        this.serve(load, "remote", "b", TASK_PORTS)?;
        this.serve(load, "local", "a", LOCAL_PORTS)?;
        Ok(this)
    }

    /// The servers as a service on one node.
    fn serve(&self, load: &Loader, name: &str, node: &str, published: Ports) -> anyhow::Result<()> {
        let pin = load.cpu.map(|cpu| format!("taskset -c {cpu} ")).unwrap_or_default();
        let servers = server_arguments(TASK_PORTS).join(" ");
        let program = load.program.display();
        let script = format!("{pin}iperf3 -s -p {} >&2 & exec {pin}{program} {servers}", TASK_PORTS.iperf);
        let constraint = format!("node.hostname=={node}");
        let mut arguments = vec!["service", "create", "--name", name, "--network", "bench"];
        arguments.extend(["--constraint", &constraint, "--drain", "0s", "--stop-grace-period", "1s"]);
        let ports: Vec<_> = published
            .all()
            .iter()
            .zip(TASK_PORTS.all())
            .map(|(public, own)| format!("{public}:{own}"))
            .collect();
        for port in &ports {
            arguments.extend(["-p", port]);
        }
        arguments.extend(["--", "/bin/sh", "-c", &script]);
        self.a.shoal(&arguments)?;
        let task = self.running(name)?;
        ensure!(task.node == node, "{} runs on {}", task.name, task.node);
        // As in the other chain: no path pays for another's TIME_WAIT.
        enter(&task.netns()?, || Ok(std::fs::write("/proc/sys/net/ipv4/tcp_max_tw_buckets", "0")?))
    }

    fn running(&self, service: &str) -> anyhow::Result<Task> {
        wait_for(&format!("a running task of '{service}'"), PATIENCE, || {
            let tasks = self.a.running_tasks(service).map_err(|error| format!("{error:#}"))?;
            tasks.into_iter().next().ok_or_else(|| "none".to_owned())
        })
    }

    pub(crate) fn open(&self, case: Case) -> Open<'_> {
        let ports = match case {
            Case::Remote => TASK_PORTS,
            Case::Local => LOCAL_PORTS,
        };
        let mark = format!(" host={}-1 ", case.name());
        Open { client: &self.client, address: A_FRONT, ports, mark, _kept: Kept::Nothing }
    }

    /// Leaves the swarm on both nodes.
    pub(crate) fn dissolve(mut self) -> anyhow::Result<()> {
        for node in [&mut self.b, &mut self.a] {
            node.shoal(&["swarm", "leave", "--force"])?;
            node.stop_daemon()?;
        }
        Ok(())
    }
}
