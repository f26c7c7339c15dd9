//! What somebody takes away from a node by hand comes back, is counted under what it was, and breaks no stream beside it.

use std::net::SocketAddr;

use anyhow::{Context, ensure};
use shoal_netns::{Need, Node, Swarm, Traffic, wait_for};

use crate::harness::{
    PATIENCE, PUBLISHED_ECHO, PUBLISHED_WHOAMI, Scenario, answered_by, ask_node, host_names, scenario, web,
};

pub(crate) const SCENARIOS: &[Scenario] = &[
    scenario("forwarding_neighbors_and_parameters_come_back_under_streams", under_streams),
    scenario("a_table_comes_back_under_streams", table).needs(&[Need::Nftables]),
    scenario("links_and_programs_come_back_with_all_that_hangs_on_them", links),
];

/// How often a node repaired a kind of object.
fn repaired(node: &Node, object: &str) -> f64 {
    // Without a repair there is no series.
    node.metric(&format!("shoal_agent_drift_repairs_total{{object=\"{object}\"}}")).unwrap_or_default()
}

/// Does something to a node, and waits until it was repaired as such an object and something shows that it is back.
fn repairs(
    node: &Node,
    object: &str,
    harm: impl FnOnce() -> anyhow::Result<()>,
    is_back: impl Fn() -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    ensure!(is_back()?, "{object}: it is not there to begin with");
    let before = repaired(node, object);
    harm().with_context(|| format!("cannot harm the {object}"))?;
    wait_for(&format!("{} to repair its {object}", node.name()), PATIENCE, || {
        let now = repaired(node, object);
        let back = is_back().map_err(|error| format!("{error:#}"))?;
        if back && now > before { Ok(()) } else { Err(format!("back: {back}; {before} repairs, then {now}")) }
    })
}

/// Streams from the client through every node.
fn streams(swarm: &Swarm) -> anyhow::Result<Vec<Traffic>> {
    let addresses = swarm.nodes.iter().flat_map(|node| node.place.addresses());
    addresses
        .map(|address| {
            Traffic::streams(&swarm.client, &swarm.programs, SocketAddr::new(address, PUBLISHED_ECHO), 3)
        })
        .collect()
}

fn finish(streams: Vec<Traffic>) -> anyhow::Result<()> {
    for stream in streams {
        let report = stream.finish()?;
        ensure!(report["lines"].as_u64() > Some(5), "hardly a line was sent: {report}");
    }
    Ok(())
}

/// The first line of a listing on a node that has a word.
fn line_with(node: &Node, listing: &str, word: &str) -> anyhow::Result<Option<String>> {
    let text = node.host.run_line(listing).stdout()?;
    Ok(text.lines().find(|line| line.contains(word)).map(|line| line.trim().to_owned()))
}

/// A link of a node whose name starts so.
fn link_named(node: &Node, prefix: &str) -> anyhow::Result<String> {
    let text = node.host.ip("-o link show")?;
    let mut names = text.lines().filter_map(|line| line.split(": ").nth(1)?.split('@').next());
    let found = names.find(|name| name.starts_with(prefix));
    found.map(str::to_owned).with_context(|| format!("no link {prefix}… on {}:\n{text}", node.name()))
}

fn under_streams(swarm: &mut Swarm) -> anyhow::Result<()> {
    let tasks = web(swarm, 3)?;
    let node = swarm.manager();
    let long = streams(swarm)?;

    let vxlan = link_named(node, "shx-")?;
    let listing = format!("bridge fdb show dev {vxlan}");
    let entry = line_with(node, &listing, " dst ")?.context("no forwarding entry with a destination")?;
    let mac = entry.split(' ').next().unwrap_or_default().to_owned();
    let delete = format!("bridge fdb del {mac} dev {vxlan} self");
    let is_back = || Ok(line_with(node, &listing, &mac)?.is_some());
    repairs(node, "fdb", || node.host.run_line(&delete).stdout().map(drop), is_back)?;

    for family in ["-4", "-6"] {
        let listing = format!("ip {family} neigh show dev {vxlan} nud permanent");
        let entry = line_with(node, &listing, "PERMANENT")?.context("no permanent neighbor")?;
        let address = entry.split(' ').next().unwrap_or_default().to_owned();
        let delete = format!("{family} neigh del {address} dev {vxlan}");
        let is_back = || Ok(line_with(node, &listing, &format!("{address} "))?.is_some());
        repairs(node, "neighbor", || node.host.ip(&delete).map(drop), is_back)?;
    }

    let path = "ipv4/conf/lo/accept_local";
    let is_back = || Ok(node.host.read_sysctl(path)?.trim() == "1");
    repairs(node, "sysctl", || node.host.sysctl(path, "0"), is_back)?;

    finish(long)?;
    swarm.nodes.iter().try_for_each(|node| answered_by(swarm, node, &host_names(&tasks)))
}

fn table(swarm: &mut Swarm) -> anyhow::Result<()> {
    web(swarm, 3)?;
    let node = swarm.manager();
    let long = streams(swarm)?;
    // A table of somebody else's stays as it is.
    node.host.run_line("nft add table inet foreign").stdout()?;
    for harm in ["nft flush table inet shoal", "nft delete table inet shoal"] {
        let is_back = || Ok(line_with(node, "nft list ruleset", "masquerade")?.is_some());
        repairs(node, "firewall", || node.host.run_line(harm).stdout().map(drop), is_back)?;
    }
    node.host.run_line("nft delete table inet foreign").stdout().context("the foreign table")?;
    finish(long)
}

fn links(swarm: &mut Swarm) -> anyhow::Result<()> {
    let tasks = web(swarm, 3)?;
    let node = swarm.manager();
    for (prefix, object) in [("shx-", "vxlan"), ("shb-", "bridge"), ("shv-", "leg")] {
        let name = link_named(node, prefix)?;
        let is_back = || Ok(line_with(node, "ip -o link show", &format!(" {name}"))?.is_some());
        repairs(node, object, || node.host.ip(&format!("link del {name}")).map(drop), is_back)?;
        every_node_answers(swarm, &host_names(&tasks)).with_context(|| format!("after the {object}"))?;
    }
    let pins = pins(node)?;
    let pin = pins.first().context("no attachment is pinned")?.clone();
    let is_back = || Ok(pin.exists());
    repairs(node, "hook", || Ok(std::fs::remove_file(&pin)?), is_back)?;
    every_node_answers(swarm, &host_names(&tasks)).context("after the hook")
}

/// What is pinned for the attachments of programs.
fn pins(node: &Node) -> anyhow::Result<Vec<std::path::PathBuf>> {
    let mut found = Vec::new();
    for generation in std::fs::read_dir(node.bpf_dir())? {
        let Ok(links) = std::fs::read_dir(generation?.path().join("links")) else { continue };
        for link in links {
            found.push(link?.path());
        }
    }
    found.sort();
    Ok(found)
}

fn every_node_answers(swarm: &Swarm, hosts: &std::collections::BTreeSet<String>) -> anyhow::Result<()> {
    for node in &swarm.nodes {
        answered_by(swarm, node, hosts)?;
        let udp = ask_node(swarm, node.place.v6.into(), PUBLISHED_WHOAMI, true, 10)?;
        udp.complete().with_context(|| format!("{} by UDP", node.name()))?;
    }
    Ok(())
}
