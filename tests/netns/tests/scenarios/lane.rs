//! The fast lane past the VXLAN devices, and the bridges and devices below it.

use std::net::SocketAddr;

use anyhow::{Context, ensure};
use serde_json::Value;
use shoal_netns::{Node, Run, Swarm, Task, wait_for};

use crate::harness::{
    ECHO, PATIENCE, PUBLISHED_ECHO, PUBLISHED_WHOAMI, Scenario, WHOAMI, ask_node, create, ensure_same,
    host_names, node_of, running, scenario, traffic_secs, web,
};

pub(crate) const SCENARIOS: &[Scenario] = &[
    scenario("tunnel_packets_pass_by_the_devices", past_the_devices),
    scenario("a_node_without_it_is_a_peer_like_others", mixed),
    scenario("large_and_small_packets_keep_their_order", large_and_small),
    scenario("without_the_programs_the_bridges_carry_everything", bridges),
];

/// Starts a node's daemon again, with the lane so.
fn set_lane(swarm: &mut Swarm, index: usize, setting: &str) -> anyhow::Result<()> {
    let node = &mut swarm.nodes[index];
    node.configure(&format!("[network]\nfast_lane = \"{setting}\"\n"))?;
    node.stop_daemon()?;
    node.start_daemon()?;
    swarm.wait_ready(3)
}

fn set_lanes(swarm: &mut Swarm, setting: &str) -> anyhow::Result<()> {
    (0..3).try_for_each(|index| set_lane(swarm, index, setting))
}

/// Packets that a program of a node forwarded.
fn forwarded(node: &Node, program: &str) -> anyhow::Result<u64> {
    node.packets(program)?.get("forwarded").copied().context("no packets forwarded are counted")
}

/// Packets that a node has sent by its VXLAN devices.
fn sent_by_devices(node: &Node) -> anyhow::Result<u64> {
    let text = node.host.ip("-j -s link show type vxlan")?;
    let links: Vec<Value> = serde_json::from_str(&text)?;
    let packets = links.iter().map(|link| link["stats64"]["tx"]["packets"].as_u64());
    packets.sum::<Option<u64>>().context("no packets of VXLAN devices are counted")
}

/// Packets that went in and out of a tunnel while a node was asked that has no task.
#[derive(Debug)]
struct Seen {
    /// Sent by the devices of the node that was asked.
    sent: u64,
    /// Opened in the lane of the task's node.
    lane: u64,
    /// Taken from the devices there.
    device: u64,
}

/// Each way at least this many packets go through the tunnel.
const LEAST: u64 = 120;

/// Asks a node that has no task, over both protocols and families.
fn seen(swarm: &Swarm, entry: usize, task: &Task) -> anyhow::Result<Seen> {
    let (asked, node) = (&swarm.nodes[entry], node_of(swarm, task)?);
    let counted = || {
        let (lane, device) = (forwarded(node, "mesh_ingress")?, forwarded(node, "overlay_rx")?);
        anyhow::Ok(Seen { sent: sent_by_devices(asked)?, lane, device })
    };
    let before = counted()?;
    for address in asked.place.addresses() {
        for udp in [false, true] {
            let answers = ask_node(swarm, address, PUBLISHED_WHOAMI, udp, 30)?.complete()?;
            ensure_same(
                "who answered",
                &answers.hosts.keys().cloned().collect(),
                &host_names(std::slice::from_ref(task)),
            )?;
        }
    }
    wait_for("the packets to be counted", PATIENCE, || {
        let now = counted().map_err(|error| format!("{error:#}"))?;
        let seen = Seen {
            sent: now.sent - before.sent,
            lane: now.lane - before.lane,
            device: now.device - before.device,
        };
        if seen.lane + seen.device >= LEAST { Ok(seen) } else { Err(format!("{seen:?}")) }
    })
}

/// A task, and a node that has none.
fn apart(swarm: &Swarm) -> anyhow::Result<(Task, usize)> {
    let task = web(swarm, 1)?.pop().context("one task")?;
    let entry = swarm.nodes.iter().position(|node| node.name() != task.node).context("another node")?;
    Ok((task, entry))
}

fn past_the_devices(swarm: &mut Swarm) -> anyhow::Result<()> {
    set_lanes(swarm, "on")?;
    let (task, entry) = apart(swarm)?;
    let on = seen(swarm, entry, &task)?;
    // Neighbors may ask for one another meanwhile.
    ensure!(on.lane >= LEAST && on.device == 0 && on.sent < LEAST / 4, "with the lane: {on:?}");
    set_lanes(swarm, "off")?;
    let off = seen(swarm, entry, &task)?;
    ensure!(off.lane == 0 && off.device >= LEAST && off.sent >= LEAST, "without the lane: {off:?}");
    set_lanes(swarm, "auto")
}

fn mixed(swarm: &mut Swarm) -> anyhow::Result<()> {
    set_lanes(swarm, "on")?;
    let (task, entry) = apart(swarm)?;
    set_lane(swarm, entry, "off")?;
    let by_device = seen(swarm, entry, &task)?;
    // What a device sends has a checksum, which a device checks.
    ensure!(by_device.sent >= LEAST && by_device.device >= LEAST, "sent by the device: {by_device:?}");
    set_lane(swarm, entry, "on")?;
    let other = swarm.nodes.iter().position(|node| node.name() == task.node).context("the task's node")?;
    set_lane(swarm, other, "off")?;
    let to_device = seen(swarm, entry, &task)?;
    ensure!(to_device.sent < LEAST / 4 && to_device.device >= LEAST, "taken by the device: {to_device:?}");
    set_lanes(swarm, "auto")
}

fn large_and_small(swarm: &mut Swarm) -> anyhow::Result<()> {
    set_lanes(swarm, "on")?;
    let (_, entry) = apart(swarm)?;
    for address in swarm.nodes[entry].place.addresses() {
        let target = SocketAddr::new(address, PUBLISHED_ECHO).to_string();
        // Each message is many full packets, merged on their way, and a small one at the end.
        for size in ["10", "3000", "100001"] {
            let mode = ["rr", "--target", &target, "--size", size, "--secs", &traffic_secs(500)];
            let text = swarm.client.run(&swarm.programs.load).args(mode).stdout()?;
            let report: Value = serde_json::from_str(&text)?;
            ensure!(report["ok"].as_u64() > Some(20), "{size} bytes through {address} crawl: {report}");
        }
    }
    set_lanes(swarm, "auto")
}

/// Takes the programs from all links of a node, as nobody should.
fn detach(node: &Node) -> anyhow::Result<()> {
    for generation in std::fs::read_dir(node.bpf_dir())? {
        let links = generation?.path().join("links");
        for link in std::fs::read_dir(&links).into_iter().flatten() {
            std::fs::remove_file(link?.path())?;
        }
    }
    let links = node.host.ip("-o link show")?;
    for name in links.lines().filter_map(|line| line.split(": ").nth(1)) {
        let name = name.split('@').next().unwrap_or(name);
        // Where programs are attached to a queueing discipline, they go with it; elsewhere there is none.
        drop(node.host.run_line(&format!("tc qdisc del dev {name} clsact")).output()?);
    }
    Ok(())
}

fn bridges(swarm: &mut Swarm) -> anyhow::Result<()> {
    let tasks = web(swarm, 3)?;
    create(swarm, "asker", "front", &[])?;
    let asker = running(swarm, "asker", 1)?.pop().context("one task")?;
    for node in &mut swarm.nodes {
        node.stop_daemon()?;
        detach(node)?;
    }
    for task in &tasks {
        for address in task.attachment("front")?.addresses() {
            for (port, mode) in [(WHOAMI, "ask"), (ECHO, "rr")] {
                let target = SocketAddr::new(address, port).to_string();
                let run =
                    Run::new(&swarm.programs.load).netns(asker.netns()?).args([mode, "--target", &target]);
                let run = if mode == "rr" { run.args(["--size", "100000", "--secs", "0.2"]) } else { run };
                run.stdout().with_context(|| format!("{} at {target} without programs", task.name))?;
            }
        }
    }
    let closed = ask_node(swarm, swarm.nodes[0].place.v4.into(), PUBLISHED_WHOAMI, false, 1)?;
    ensure_same("answers of a published port, which is the programs'", &closed.ok, &0)?;
    for node in &mut swarm.nodes {
        node.start_daemon()?;
    }
    swarm.wait_ready(3)?;
    for node in &swarm.nodes {
        for address in node.place.addresses() {
            ask_node(swarm, address, PUBLISHED_WHOAMI, false, 10)?.complete()?;
        }
    }
    Ok(())
}
