//! The devices on the way to a task of the same node, with programs that look at nothing: what is left of `bare` when the
//! server has a network namespace of its own. No program can be on that way for less.
//!
//! The namespace has the node's own addresses, IP and Ethernet, so that nothing needs to be translated. While the path is open
//! it gets whatever comes in by the node's uplink.

use anyhow::Context;
use shoal_netns::{Host, Process};

use super::chain::{A_FRONT, Chain, TASK_PORTS};
use super::measure::Loader;
use super::programs;
use super::servers::Servers;

/// Host side of the namespace's veth.
const VETH: &str = "td";

pub(crate) struct Devices {
    /// Held for the namespace, which ends with it.
    _task: Host,
    servers: Servers,
    program: std::path::PathBuf,
}

impl Devices {
    pub(crate) fn start(chain: &Chain, load: &Loader) -> anyhow::Result<Self> {
        let task = Host::new("td")?;
        let a = &chain.a;
        let link = link(a, "eth0")?;
        let mac = link["address"].as_str().context("an Ethernet address")?;
        let peer = format!("peer name eth0 address {mac} mtu 1450 netns {}", task.unique());
        a.ip(&format!("link add {VETH} mtu 1450 type veth {peer}"))?;
        a.ip(&format!("link set {VETH} up"))?;
        task.ip(&format!("addr add {A_FRONT}/24 dev eth0"))?;
        task.ip("link set eth0 up")?;
        chain.same_senders(&task)?;
        Ok(Self {
            servers: Servers::start(&task, load, TASK_PORTS)?,
            _task: task,
            program: programs::build()?.join("examples/redirect_only"),
        })
    }

    /// What its server says of itself.
    pub(crate) fn mark(&self) -> String {
        self.servers.mark()
    }

    /// Leads what comes in by the uplink there, until it is dropped.
    pub(crate) fn lead(&self, chain: &Chain) -> anyhow::Result<Process> {
        let index = |name| -> anyhow::Result<String> {
            Ok(link(&chain.a, name)?["ifindex"].as_u64().context("an index")?.to_string())
        };
        let run = chain.a.run(&self.program).args([index("eth0")?, index(VETH)?]);
        run.stdin_piped().spawn_captured()
    }
}

fn link(host: &Host, name: &str) -> anyhow::Result<serde_json::Value> {
    let text = host.ip(&format!("-j link show dev {name}"))?;
    let links: serde_json::Value = serde_json::from_str(&text)?;
    Ok(links[0].clone())
}
