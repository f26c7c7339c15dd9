//! A swarm: three nodes and a client on one LAN.

use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::Value;

use crate::host::{Host, prefix};
use crate::lan::{Lan, Place};
use crate::node::{Node, Programs};
use crate::residue::Residue;
use crate::scrub;
use crate::wait::wait_for;

const NODES: u8 = 3;
const CLIENT: u8 = 100;
/// Long enough for a debug build on a busy machine.
const PATIENCE: Duration = Duration::from_mins(1);

/// Three nodes that formed a swarm, and a client that is no member.
pub struct Swarm {
    /// `n1` (the manager), `n2`, `n3`.
    pub nodes: Vec<Node>,
    /// A host that knows nothing of shoal.
    pub client: Host,
    /// Where the client is.
    pub client_place: Place,
    /// What joins them.
    pub lan: Lan,
    /// The programs under test.
    pub programs: Programs,
    before: Residue,
}

impl Swarm {
    /// Hosts, cables, daemons, `swarm init`, `swarm join`, and all nodes ready.
    pub fn three(programs: &Programs) -> anyhow::Result<Self> {
        let swarm = Self::unformed(programs)?;
        let token = swarm.init()?;
        for node in &swarm.nodes[1..] {
            swarm.join(node, &token)?;
        }
        swarm.wait_ready(usize::from(NODES))?;
        Ok(swarm)
    }

    /// The hosts with their daemons running, and no swarm yet.
    pub fn unformed(programs: &Programs) -> anyhow::Result<Self> {
        let before = Residue::observe(&prefix());
        let lan = Lan::new()?;
        let client = Host::new("client")?;
        let client_place = lan.join(&client, CLIENT)?;
        let mut nodes = Vec::new();
        for number in 1..=NODES {
            let host = Host::new(&format!("n{number}"))?;
            let place = lan.join(&host, number)?;
            nodes.push(Node::start(host, place, programs)?);
        }
        Ok(Self { nodes, client, client_place, lan, programs: programs.clone(), before })
    }

    /// `swarm init` on the first node; a token for workers.
    pub fn init(&self) -> anyhow::Result<String> {
        let manager = self.manager();
        manager.shoal(&["swarm", "init", "--advertise-addr", &manager.place.v4.to_string()])?;
        self.worker_token(&[])
    }

    /// A join token, with further flags.
    pub fn worker_token(&self, flags: &[&str]) -> anyhow::Result<String> {
        let printed = self.manager().shoal(&[&["-q", "swarm", "token", "create"], flags].concat())?;
        find_token(&printed).with_context(|| format!("no token in: {printed}"))
    }

    /// `swarm join` of one node.
    pub fn join(&self, node: &Node, token: &str) -> anyhow::Result<()> {
        let manager = self.manager().place.v4.to_string();
        let own = node.place.v4.to_string();
        node.shoal(&["swarm", "join", "--token", token, "--advertise-addr", &own, &manager]).map(drop)
    }

    /// The node that was made manager.
    pub fn manager(&self) -> &Node {
        &self.nodes[0]
    }

    /// A node by name.
    pub fn node(&self, name: &str) -> anyhow::Result<&Node> {
        self.nodes.iter().find(|node| node.name() == name).with_context(|| format!("no node '{name}'"))
    }

    /// Waits until the manager counts so many nodes as ready, and each of them reports so itself.
    pub fn wait_ready(&self, count: usize) -> anyhow::Result<()> {
        wait_for(&format!("{count} ready nodes"), PATIENCE, || {
            let nodes = self.manager().rows(&["node", "ls"]).map_err(|error| format!("{error:#}"))?;
            let ready = nodes.iter().filter(|node| is_ready(node)).count();
            let programmed = self.nodes.iter().filter(|node| node.is_ready()).count();
            let status = format!("{programmed} programmed, nodes {}", Value::from(nodes));
            if ready >= count && programmed >= count { Ok(()) } else { Err(status) }
        })
    }

    /// Leaves the swarm on every node, proves each clean, stops the daemons, and proves that nothing stayed.
    pub fn dissolve(mut self) -> anyhow::Result<()> {
        // The manager last: a worker tells it that it goes.
        for node in self.nodes.iter_mut().rev() {
            let left = node.shoal_output(&["swarm", "leave", "--force"])?;
            let error = String::from_utf8_lossy(&left.stderr);
            // E0411: it is no member; a scenario made it leave before.
            ensure!(left.status.success() || error.contains("E0411"), "{} can't leave: {error}", node.name());
            node.stop_daemon()?;
            let check = node.cleanup(true)?;
            let said = String::from_utf8_lossy(&check.stdout);
            let error = String::from_utf8_lossy(&check.stderr);
            ensure!(check.status.success(), "cleanup --check on {}: {said}{error}", node.name());
        }
        for node in &self.nodes {
            node_residue(node)?;
        }
        let before = std::mem::take(&mut self.before);
        drop(self);
        Residue::ensure_none_since(&before, &prefix())
    }
}

/// What must be gone although the host itself is still there.
fn node_residue(node: &Node) -> anyhow::Result<()> {
    let links = node.host.ip("-o link show")?;
    let stray: Vec<_> = links
        .lines()
        .filter(|line| line.contains("shb-") || line.contains("shx-") || line.contains("shv-"))
        .collect();
    ensure!(stray.is_empty(), "links left on {}: {stray:?}", node.name());
    node.ensure_parameters_restored()?;
    ensure!(!node.bpf_dir().exists(), "pins left on {}", node.name());
    let pids = node.host.pids();
    ensure!(pids.is_empty(), "processes left on {}: {pids:?}", node.name());
    let groups = scrub::groups(node.host.unique());
    ensure!(groups.is_empty(), "control groups left of {}: {groups:?}", node.name());
    let mounts = scrub::mounts_below(node.host.scratch());
    ensure!(mounts.is_empty(), "mounts left of {}: {mounts:?}", node.name());
    let namespaces = node.task_namespaces();
    ensure!(namespaces.is_empty(), "task namespaces left on {}: {namespaces:?}", node.name());
    Ok(())
}

fn is_ready(node: &Value) -> bool {
    node["Status"].as_str().is_some_and(|status| status.eq_ignore_ascii_case("ready"))
}

/// The join token in a text.
fn find_token(text: &str) -> Option<String> {
    text.split_whitespace().find(|word| word.starts_with("SHOAL-1-")).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_found_in_prose() {
        let text = "Add a worker:\n    shoal swarm join --token SHOAL-1-ab-cd-ef 10.0.3.11:7377\n";
        assert_eq!(find_token(text).as_deref(), Some("SHOAL-1-ab-cd-ef"));
        assert_eq!(find_token("no token here"), None);
    }
}
