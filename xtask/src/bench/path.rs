//! The paths a connection can take from the client to the task.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::Context;
use clap::ValueEnum;
use shoal_netns::{Host, Process, Run, enter};

use super::chain::{A_FRONT, Chain, HOST_PORTS, Ports, TASK_PORTS, wait_until_served};
use super::report::Column;
use super::stage::Stage;

/// Where the task is, seen from the node the client talks to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Case {
    Remote,
    Local,
}

impl Case {
    pub(crate) const ALL: [Self; 2] = [Self::Remote, Self::Local];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Remote => "remote",
            Self::Local => "local",
        }
    }
}

/// By which address a task asks a service.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Target {
    /// That of its endpoint
    Endpoint,
    /// Its own, the virtual IP
    Vip,
}

/// One way to serve a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Path {
    /// No overlay and no load balancer: a process on the node itself, one cable away
    Bare,
    /// The devices on shoal's way to a task of the same node, with programs that look at nothing; nothing elsewhere
    Devices,
    /// The kernel's overlay, routed to the task's own address; no load balancer
    Routed,
    /// shoal's routing mesh, engine ebpf: the port published on node A
    Ebpf,
    /// The same with tasks behind netkit
    Netkit,
    /// shoal's routing mesh, engine ipvs
    Ipvs,
    /// The kernel configuration that Docker's swarm mode makes
    Docker,
    /// Docker's swarm mode itself, in a guest under QEMU
    Swarm,
    /// nftables on node A: destination NAT to the task, masquerade
    Nft,
    /// haproxy on node A as TCP proxy
    Haproxy,
}

impl Column for Path {
    const BENCH: &str = "mesh";
    /// The overlay without a load balancer: what is left to win or lose.
    const REFERENCE: Self = Self::Routed;
    /// What shoal is there instead of.
    const REPLACED: Option<Self> = Some(Self::Docker);

    fn name(self) -> &'static str {
        match self {
            Self::Bare => "bare",
            Self::Devices => "devices",
            Self::Routed => "routed",
            Self::Ebpf => "ebpf",
            Self::Netkit => "netkit",
            Self::Ipvs => "ipvs",
            Self::Docker => "docker",
            Self::Swarm => "swarm",
            Self::Nft => "nft",
            Self::Haproxy => "haproxy",
        }
    }
}

impl Path {
    /// Whether there is such a path to a task there.
    pub(crate) fn leads(self, case: Case) -> bool {
        self != Self::Devices || case == Case::Local
    }

    /// Whether eBPF programs are on it.
    pub(crate) fn has_programs(self) -> bool {
        matches!(self, Self::Devices | Self::Ebpf | Self::Netkit | Self::Ipvs)
    }

    /// Sets the path up. It is gone when the handle is dropped, so that no path pays for another.
    pub(crate) fn open(self, stage: &Stage, case: Case) -> anyhow::Result<Open<'_>> {
        let chain = &stage.chain;
        let task = match case {
            Case::Remote => &chain.remote,
            Case::Local => &chain.local,
        };
        let bare = self == Self::Bare;
        let kernel = |address: &str, kept| Open {
            client: Client::Host(&chain.client),
            address: address.to_owned(),
            ports: if bare { HOST_PORTS } else { TASK_PORTS },
            mark: chain.server_mark(case, bare),
            _kept: kept,
        };
        let open = match self {
            Self::Bare => kernel(Chain::bare_address(case), Kept::Nothing),
            Self::Devices => {
                let devices = stage.devices.as_ref().context("no namespace behind devices alone")?;
                let kept = Kept::Program(devices.lead(chain)?);
                Open { mark: devices.mark(), ..kernel(A_FRONT, kept) }
            }
            Self::Routed => kernel(task.address, Kept::Nothing),
            Self::Nft => kernel(A_FRONT, Kept::Nat(nat(chain, task.address)?)),
            Self::Haproxy => kernel(A_FRONT, Kept::Program(proxy(chain, task.address)?)),
            Self::Ebpf => stage.ebpf.as_ref().context("no nodes with engine ebpf")?.open(case),
            Self::Netkit => stage.netkit.as_ref().context("no nodes with tasks behind netkit")?.open(case),
            Self::Ipvs => stage.ipvs.as_ref().context("no nodes with engine ipvs")?.open(case),
            Self::Docker => stage.docker.as_ref().context("no nodes of Docker's kind")?.open(case)?,
            Self::Swarm => stage.swarm.as_ref().context("no swarm of Docker's")?.open(case),
        };
        wait_until_served(&open.client, &open.address, open.ports, &open.mark)
            .with_context(|| format!("path {}", self.name()))?;
        Ok(open)
    }
}

/// Where the load runs.
pub(crate) enum Client<'a> {
    Host(&'a Host),
    /// As a program of a task: in its network namespace and its control group.
    Task {
        netns: PathBuf,
        group: PathBuf,
    },
}

impl Client<'_> {
    pub(crate) fn run(&self, program: impl AsRef<OsStr>) -> Run {
        match self {
            Self::Host(host) => host.run(program),
            Self::Task { netns, group } => Run::in_group(group, program).netns(netns),
        }
    }

    /// Does something in its network namespace.
    pub(crate) fn enter<T: Send>(
        &self,
        work: impl FnOnce() -> anyhow::Result<T> + Send,
    ) -> anyhow::Result<T> {
        match self {
            Self::Host(host) => host.enter(work),
            Self::Task { netns, .. } => enter(netns, work),
        }
    }
}

/// A path that is set up.
pub(crate) struct Open<'a> {
    pub(crate) client: Client<'a>,
    /// Where the client finds the servers.
    pub(crate) address: String,
    pub(crate) ports: Ports,
    /// By which the server meant is known.
    pub(crate) mark: String,
    pub(crate) _kept: Kept<'a>,
}

#[expect(dead_code, reason = "held for what dropping them undoes")]
pub(crate) enum Kept<'a> {
    Nothing,
    Nat(Nat<'a>),
    /// haproxy, or whoever holds programs.
    Program(Process),
}

pub(crate) struct Nat<'a>(&'a Chain);

fn nat<'a>(chain: &'a Chain, task: &str) -> anyhow::Result<Nat<'a>> {
    let ports = TASK_PORTS.all().map(|port| port.to_string()).join(", ");
    let rules = format!(
        "table ip bench {{
            chain before {{
                type nat hook prerouting priority dstnat;
                ip daddr {A_FRONT} tcp dport {{ {ports} }} dnat to {task}
            }}
            chain after {{ type nat hook postrouting priority srcnat; oifname brx0 masquerade; }}
        }}"
    );
    let file = chain.a.scratch().join("nat.nft");
    std::fs::write(&file, rules)?;
    chain.a.run("nft").args(["-f".as_ref(), file.as_os_str()]).stdout()?;
    Ok(Nat(chain))
}

impl Drop for Nat<'_> {
    fn drop(&mut self) {
        // The namespace goes in any case; a failure here shows as the next path being slow, and in its log.
        drop(self.0.a.run_line("nft delete table ip bench").stdout());
    }
}

fn proxy(chain: &Chain, task: &str) -> anyhow::Result<Process> {
    let mut config = "global\n  nbthread 1\n  maxconn 4000\ndefaults\n  mode tcp\n  timeout connect 5s\n  \
                      timeout client 60s\n  timeout server 60s\n"
        .to_owned();
    for port in TASK_PORTS.all() {
        writeln!(config, "listen p{port}\n  bind {A_FRONT}:{port}\n  server task {task}:{port}")?;
    }
    let file = chain.a.scratch().join("haproxy.cfg");
    std::fs::write(&file, config)?;
    let run = chain.a.run("haproxy").args(["-db", "-f"]).args([&file]).cpu(chain.cpu);
    chain.a.spawn("haproxy", run)
}
