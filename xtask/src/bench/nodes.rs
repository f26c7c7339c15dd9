//! The chain with shoal on nodes A and B: the servers are tasks, their ports published.

use std::net::Ipv6Addr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use shoal_netns::{Host, Node, Place, Programs, Task, enter, prefix, wait_for};

use super::chain::{A_BACK, A_FRONT, B_BACK, Hosts, Ports, TASK_PORTS, server_arguments, wait_until_served};
use super::measure::Loader;
use super::path::{Case, Client, Kept, Open, Target};

/// The task on B is published by the servers' own ports, that on A by these.
const LOCAL_PORTS: Ports = Ports { whoami: 7200, conn: 7201, echo: 7202, iperf: 5401 };
/// The network of all tasks.
const NETWORK: &str = "bench";
const PATIENCE: Duration = Duration::from_mins(1);

/// What balances published ports.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Engine {
    Ebpf,
    /// The same, with tasks behind netkit.
    Netkit,
    Ipvs,
}

impl Engine {
    fn name(self) -> &'static str {
        match self {
            Self::Ebpf => "ebpf",
            Self::Netkit => "netkit",
            Self::Ipvs => "ipvs",
        }
    }

    /// The settings of `shoald` that choose it.
    fn settings(self) -> &'static str {
        match self {
            Self::Ebpf => "SHOAL_NETWORK_LB_ENGINE=ebpf SHOAL_NETWORK_NETKIT=off",
            Self::Netkit => "SHOAL_NETWORK_LB_ENGINE=ebpf SHOAL_NETWORK_NETKIT=on",
            Self::Ipvs => "SHOAL_NETWORK_LB_ENGINE=ipvs SHOAL_NETWORK_NETKIT=off",
        }
    }
}

/// A swarm of the two nodes.
pub(crate) struct Nodes {
    a: Node,
    b: Node,
    client: Host,
    engine: Engine,
    _launcher: Launcher,
}

/// `shoald` with its engine in the environment, as a program of its own.
struct Launcher(PathBuf);

impl Launcher {
    fn new(shoald: &Path, engine: Engine) -> anyhow::Result<Self> {
        let this = Self(std::env::temp_dir().join(format!("{}shoald-{}", prefix(), engine.name())));
        let script = format!("#!/bin/sh\n{} exec {} \"$@\"\n", engine.settings(), shoald.display());
        std::fs::write(&this.0, script)?;
        std::fs::set_permissions(&this.0, std::fs::Permissions::from_mode(0o755))?;
        Ok(this)
    }
}

impl Drop for Launcher {
    fn drop(&mut self) {
        // A run that fails before it was written has nothing to remove.
        drop(std::fs::remove_file(&self.0));
    }
}

impl Nodes {
    pub(crate) fn start(load: &Loader, programs: &Programs, engine: Engine) -> anyhow::Result<Self> {
        let launcher = Launcher::new(&programs.shoald, engine)?;
        let mut programs = programs.clone();
        programs.shoald.clone_from(&launcher.0);
        let Hosts { client, a, b } = Hosts::cabled()?;
        let nowhere = Ipv6Addr::UNSPECIFIED;
        // The daemons are not on the path, so they are kept off its CPU, which is never the first.
        let elsewhere = load.cpu.filter(|&cpu| cpu > 0).map(|_| 0);
        let a = Node::start_on(a, Place::at(A_BACK.parse()?, nowhere), &programs, elsewhere)?;
        let b = Node::start_on(b, Place::at(B_BACK.parse()?, nowhere), &programs, elsewhere)?;
        let this = Self { a, b, client, engine, _launcher: launcher };
        this.a.shoal(&["swarm", "init", "--advertise-addr", A_BACK])?;
        let printed = this.a.shoal(&["-q", "swarm", "token", "create"])?;
        let token =
            printed.split_whitespace().find(|word| word.starts_with("SHOAL-1-")).context("no token")?;
        this.b.shoal(&["swarm", "join", "--token", token, "--advertise-addr", B_BACK, A_BACK])?;
        this.a.shoal(&["network", "create", NETWORK])?;
        this.serve(load, "remote", "b", TASK_PORTS)?;
        this.serve(load, "local", "a", LOCAL_PORTS)?;
        for node in [&this.a, &this.b] {
            this.ensure_engine(node)?;
        }
        Ok(this)
    }

    /// The engine in force must be the one asked for: the kernel's own table of virtual services tells.
    fn ensure_engine(&self, node: &Node) -> anyhow::Result<()> {
        let netns = node.run_dir().join("netns/ingress");
        let services = || -> anyhow::Result<usize> {
            if !netns.exists() {
                return Ok(0);
            }
            enter(&netns, || {
                // Without IPVS there is no such file.
                let table = std::fs::read_to_string("/proc/thread-self/net/ip_vs").unwrap_or_default();
                let is_service = |line: &&str| ["TCP ", "FWM "].iter().any(|kind| line.starts_with(kind));
                Ok(table.lines().filter(is_service).count())
            })
        };
        let name = node.name();
        match self.engine {
            Engine::Ebpf | Engine::Netkit => {
                ensure!(services()? == 0, "node {name} balances by IPVS, not by eBPF");
            }
            Engine::Ipvs => {
                wait_for(&format!("an IPVS service on node {name}"), PATIENCE, || match services() {
                    Ok(0) => Err(format!("none in {}: the engine is not ipvs", netns.display())),
                    Ok(_) => Ok(()),
                    Err(error) => Err(format!("{error:#}")),
                })?;
            }
        }
        Ok(())
    }

    /// The servers as a service on one node.
    fn serve(&self, load: &Loader, name: &str, node: &str, published: Ports) -> anyhow::Result<()> {
        let pin = load.cpu.map(|cpu| format!("taskset -c {cpu} ")).unwrap_or_default();
        let servers = server_arguments(TASK_PORTS).join(" ");
        let program = load.program.display();
        let script = format!("{pin}iperf3 -s -p {} >&2 & exec {pin}{program} {servers}", TASK_PORTS.iperf);
        let constraint = format!("node.hostname=={node}");
        let mut arguments = vec!["service", "create", "--name", name, "--network", NETWORK];
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
        // As in the other chain: no path pays for another's TIME_WAIT, and all senders are alike.
        let control = self.client.read_sysctl("ipv4/tcp_congestion_control")?;
        enter(&task.netns()?, || {
            std::fs::write("/proc/sys/net/ipv4/tcp_max_tw_buckets", "0")?;
            Ok(std::fs::write("/proc/sys/net/ipv4/tcp_congestion_control", control.trim())?)
        })
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
        Open {
            client: Client::Host(&self.client),
            address: A_FRONT.to_owned(),
            ports,
            mark,
            _kept: Kept::Nothing,
        }
    }

    /// A task on A that asks.
    pub(crate) fn serve_client(&self, load: &Loader) -> anyhow::Result<()> {
        let program = load.program.display().to_string();
        let place = ["--constraint", "node.hostname==a", "--stop-grace-period", "1s"];
        let create = ["service", "create", "--name", "client", "--network", NETWORK];
        let serve = ["--", &program, "serve", "--health", "7003"];
        self.a.shoal(&[&create[..], &place, &serve].concat())?;
        self.running("client").map(drop)
    }

    /// From inside the client's task.
    pub(crate) fn open_inside(&self, case: Case, target: Target) -> anyhow::Result<Open<'_>> {
        let (client, service) = (self.running("client")?, case.name());
        let endpoint = self.running(service)?;
        let address = match target {
            Target::Endpoint => endpoint.attachment(NETWORK)?.v4,
            Target::Vip => self.a.vip(service, NETWORK)?.v4,
        };
        let open = Open {
            client: Client::Task { netns: client.netns()?, group: client.control_group()? },
            address: address.to_string(),
            ports: TASK_PORTS,
            mark: format!(" host={service}-1 "),
            _kept: Kept::Nothing,
        };
        wait_until_served(&open.client, &open.address, open.ports, &open.mark)?;
        Ok(open)
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
