//! Connections of tasks to virtual IPs, which are led to an endpoint when they are made.
//!
//! The clients are programs of a task: in its control group and its network namespace, as what it starts itself.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use shoal_netns::{Answers, Need, Node, Run, Swarm, Task, ask_by, wait_for};

use crate::harness::{
    PATIENCE, PUBLISHED_WHOAMI, Scenario, WHOAMI, ask_node, create, ensure_same, host_names, node_of,
    running, scenario, wait_engine, web,
};

const EBPF: &[Need] = &[Need::EbpfEngine];

pub(crate) const SCENARIOS: &[Scenario] = &[
    scenario("a_connection_goes_to_an_endpoint_and_shows_the_virtual_ip", led).needs(EBPF),
    scenario("datagrams_are_translated_one_by_one", datagrams).needs(EBPF),
    scenario("only_tasks_of_the_network_are_led", scope).needs(EBPF),
    scenario("a_withdrawn_endpoint_gets_no_connection", withdrawn).needs(EBPF),
    scenario("a_task_reaches_its_own_service", own).needs(EBPF),
    scenario("connections_are_led_while_no_daemon_runs", without_daemon).needs(EBPF),
    scenario("what_a_table_is_read_by_is_each_service_s_own", policies).needs(EBPF),
    scenario("switched_off_packets_are_translated_one_by_one", switched_off).needs(EBPF),
];

/// Connections of one question; a virtual IP that is translated takes several packets for each.
const COUNT: usize = 40;

/// `shoal-load` in a control group, in some namespace.
fn in_group(swarm: &Swarm, group: &Path, netns: impl Into<PathBuf>) -> Run {
    Run::in_group(group, &swarm.programs.load).netns(netns)
}

/// Asks as a program of the task does.
fn ask_as(swarm: &Swarm, task: &Task, to: IpAddr, udp: bool) -> anyhow::Result<Answers> {
    let run = in_group(swarm, &task.control_group()?, task.netns()?);
    ask_by(run, SocketAddr::new(to, WHOAMI), udp, COUNT)
}

/// Connections that a node's programs have led to endpoints, as of its last pass.
fn counted(node: &Node) -> anyhow::Result<f64> {
    node.metric("shoal_connect_translations_total")
}

/// Waits until a node has led so many more connections, and no more.
fn led_since(node: &Node, before: f64, connections: usize) -> anyhow::Result<()> {
    let expected = before + f64::from(u32::try_from(connections)?);
    wait_for("the connections to be counted", PATIENCE, || {
        let now = counted(node).map_err(|error| format!("{error:#}"))?;
        if (now - expected).abs() < 0.5 { Ok(()) } else { Err(format!("{now}, not {expected}")) }
    })
}

/// Packets that a node's programs have rewritten for tasks.
fn rewritten(node: &Node) -> anyhow::Result<u64> {
    node.packets("task_tx")?.get("forwarded").copied().context("no packets are counted")
}

/// Lets a node count what its programs have done: it does with each pass, and tells how long that took.
fn passed(node: &Node) -> anyhow::Result<()> {
    let took = || node.metric("shoal_agent_program_seconds").map(f64::to_bits);
    let before = took()?;
    wait_for("a pass", PATIENCE, || match took() {
        Ok(now) if now != before => Ok(()),
        other => Err(format!("{other:?}")),
    })
}

/// A task of a service of its own on a network.
fn asker(swarm: &Swarm, network: &str) -> anyhow::Result<Task> {
    create(swarm, "asker", network, &[])?;
    running(swarm, "asker", 1)?.pop().context("one task")
}

fn only(to: IpAddr) -> BTreeSet<SocketAddr> {
    [SocketAddr::new(to, WHOAMI)].into()
}

/// By published ports, from outside, and by the virtual IP, from a task.
fn policies(swarm: &mut Swarm) -> anyhow::Result<()> {
    let (tasks, asker) = (web(swarm, 3)?, asker(swarm, "front")?);
    let vip = swarm.manager().vip("web", "front")?;
    for policy in ["random", "source", "rr", "maglev"] {
        swarm.manager().shoal(&["service", "update", "--lb", policy, "web"])?;
        let ports = swarm.nodes.iter().flat_map(|node| node.place.addresses());
        for (address, by_task) in ports.map(|at| (at, false)).chain(vip.addresses().map(|at| (at, true))) {
            // With 40 draws, one of three is left out once in ten million times.
            wait_for(&format!("{address} to answer by {policy}"), PATIENCE, || {
                let answers = if by_task {
                    ask_as(swarm, &asker, address, false)
                } else {
                    ask_node(swarm, address, PUBLISHED_WHOAMI, false, COUNT)
                };
                let answers = answers.and_then(Answers::complete).map_err(|error| format!("{error:#}"))?;
                let hosts: BTreeSet<String> = answers.hosts.keys().cloned().collect();
                let is_so = if policy == "source" { hosts.len() == 1 } else { hosts == host_names(&tasks) };
                if is_so { Ok(()) } else { Err(format!("{:?}", answers.hosts)) }
            })?;
        }
    }
    let shown = swarm.manager().shoal(&["service", "ls", "--format", "{{.Name}}={{.LB}}"])?;
    ensure!(shown.contains("web=maglev"), "{shown}");
    Ok(())
}

fn led(swarm: &mut Swarm) -> anyhow::Result<()> {
    let (tasks, asker) = (web(swarm, 3)?, asker(swarm, "front")?);
    let node = node_of(swarm, &asker)?;
    ensure_same("connect hooks", &node.metric("shoal_connect_hooks")?, &1.0)?;
    let vip = swarm.manager().vip("web", "front")?;
    // An IPv6 socket that reaches IPv4, as of a program that knows only those.
    let mapped = IpAddr::from(vip.v4.to_ipv6_mapped());
    let own: BTreeSet<IpAddr> = asker.attachment("front")?.addresses().into();
    passed(node)?;
    let (before, packets) = (counted(node)?, rewritten(node)?);
    for to in [vip.v4.into(), vip.v6.into(), mapped] {
        let answers = ask_as(swarm, &asker, to, false)?.complete()?;
        ensure_same("who answered", &answers.hosts.keys().cloned().collect(), &host_names(&tasks))?;
        ensure_same("the peer's name", &answers.connected, &only(to))?;
        ensure_same("ports kept", &answers.port_kept, &COUNT)?;
        ensure!(answers.peers.iter().all(|peer| own.contains(peer)), "seen as {:?}", answers.peers);
    }
    led_since(node, before, 3 * COUNT)?;
    let packets = rewritten(node)? - packets;
    ensure!(packets < u64::try_from(COUNT)?, "{packets} packets were rewritten although none needs to be");
    // From outside the control group the same is done per packet.
    let outside = Run::new(&swarm.programs.load).netns(asker.netns()?);
    ask_by(outside, SocketAddr::new(vip.v4.into(), WHOAMI), false, COUNT)?.complete()?;
    wait_for("packets to be rewritten", PATIENCE, || {
        let now = rewritten(node).map_err(|error| format!("{error:#}"))?;
        if now >= packets + 3 * 40 { Ok(()) } else { Err(format!("{now} after {packets}")) }
    })?;
    led_since(node, before, 3 * COUNT)
}

fn datagrams(swarm: &mut Swarm) -> anyhow::Result<()> {
    let (tasks, asker) = (web(swarm, 3)?, asker(swarm, "front")?);
    let node = node_of(swarm, &asker)?;
    let (vip, before) = (swarm.manager().vip("web", "front")?, counted(node)?);
    for to in vip.addresses() {
        let answers = ask_as(swarm, &asker, to, true)?.complete()?;
        ensure_same("who answered", &answers.hosts.keys().cloned().collect(), &host_names(&tasks))?;
        ensure_same("the peer's name", &answers.connected, &only(to))?;
    }
    passed(node)?;
    ensure_same("connections led", &counted(node)?, &before)
}

/// Asks where nothing may be answered.
fn refused(run: Run, to: IpAddr) -> anyhow::Result<()> {
    let run = run.args(["ask", "--target", &SocketAddr::new(to, WHOAMI).to_string(), "--timeout-ms", "700"]);
    let output = run.output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let answers: Answers = serde_json::from_str(&text).with_context(|| format!("asking {to}: {text}"))?;
    ensure!(answers.ok == 0, "{to} answered: {answers:?}");
    Ok(())
}

fn scope(swarm: &mut Swarm) -> anyhow::Result<()> {
    let (tasks, stranger) = (web(swarm, 3)?, asker(swarm, "back")?);
    let vip = swarm.manager().vip("web", "front")?;
    let counts: Vec<f64> = swarm.nodes.iter().map(counted).collect::<Result<_, _>>()?;
    let strangers = stranger.control_group()?;
    let own = node_of(swarm, &tasks[0])?;
    // What another node's tasks are in, and what is in the group of a task but elsewhere.
    let other = swarm.nodes.iter().find(|node| node.name() != own.name()).context("another node")?;
    let elsewhere = tasks.iter().find(|task| task.node == other.name()).context("a task there")?;
    for to in vip.addresses() {
        refused(in_group(swarm, &strangers, stranger.netns()?), to)?;
        refused(in_group(swarm, &tasks[0].control_group()?, own.host.netns_path()), to)?;
        refused(Run::new(&swarm.programs.load).netns(own.host.netns_path()), to)?;
        // In a group of one node and a namespace of another: not led, and the packets find their way.
        let run = in_group(swarm, &tasks[0].control_group()?, elsewhere.netns()?);
        let answers = ask_by(run, SocketAddr::new(to, WHOAMI), false, COUNT)?.complete()?;
        ensure_same("the peer's name", &answers.connected, &only(to))?;
    }
    for (node, before) in swarm.nodes.iter().zip(counts) {
        passed(node)?;
        ensure_same(&format!("connections led on {}", node.name()), &counted(node)?, &before)?;
    }
    Ok(())
}

fn withdrawn(swarm: &mut Swarm) -> anyhow::Result<()> {
    web(swarm, 4)?;
    let asker = asker(swarm, "front")?;
    let vip = swarm.manager().vip("web", "front")?;
    swarm.manager().shoal(&["service", "scale", "web=1"])?;
    let left = running(swarm, "web", 1)?;
    for to in vip.addresses() {
        let answers = ask_as(swarm, &asker, to, false)?.complete()?;
        ensure_same("who answered", &answers.hosts.keys().cloned().collect(), &host_names(&left))?;
    }
    swarm.manager().shoal(&["service", "scale", "web=0"])?;
    running(swarm, "web", 0)?;
    for to in vip.addresses() {
        refused(in_group(swarm, &asker.control_group()?, asker.netns()?), to)?;
    }
    Ok(())
}

fn own(swarm: &mut Swarm) -> anyhow::Result<()> {
    let tasks = web(swarm, 1)?;
    let vip = swarm.manager().vip("web", "front")?;
    for to in vip.addresses() {
        let answers = ask_as(swarm, &tasks[0], to, false)?.complete()?;
        ensure_same("who answered", &answers.hosts.keys().cloned().collect(), &host_names(&tasks))?;
        ensure_same("the peer's name", &answers.connected, &only(to))?;
    }
    Ok(())
}

fn without_daemon(swarm: &mut Swarm) -> anyhow::Result<()> {
    let (tasks, asker) = (web(swarm, 3)?, asker(swarm, "front")?);
    let vip = swarm.manager().vip("web", "front")?;
    let before = counted(node_of(swarm, &asker)?)?;
    let index = swarm.nodes.iter().position(|node| node.name() == asker.node).context("its node")?;
    let (task_group, netns) = (asker.control_group()?, asker.netns()?);
    swarm.nodes[index].kill_daemons()?;
    for to in vip.addresses() {
        let run = in_group(swarm, &task_group, &netns);
        let answers = ask_by(run, SocketAddr::new(to, WHOAMI), false, COUNT)?.complete()?;
        ensure_same("who answered", &answers.hosts.keys().cloned().collect(), &host_names(&tasks))?;
        ensure_same("the peer's name", &answers.connected, &only(to))?;
    }
    swarm.nodes[index].start_daemon()?;
    swarm.wait_ready(3)?;
    led_since(&swarm.nodes[index], before, 2 * COUNT)
}

/// Starts a node's daemon again, with the setting so.
fn set(swarm: &mut Swarm, index: usize, setting: &str) -> anyhow::Result<()> {
    let node = &mut swarm.nodes[index];
    node.configure(&format!("[network]\nconnect_hooks = \"{setting}\"\n"))?;
    node.stop_daemon()?;
    node.start_daemon()?;
    swarm.wait_ready(3)
}

/// Links to the control group that a node has pinned.
fn pinned(node: &Node) -> anyhow::Result<usize> {
    let mut pins = 0;
    for generation in std::fs::read_dir(node.bpf_dir())? {
        let groups = generation?.path().join("groups");
        pins += std::fs::read_dir(groups).into_iter().flatten().count();
    }
    Ok(pins)
}

fn switched_off(swarm: &mut Swarm) -> anyhow::Result<()> {
    let (tasks, asker) = (web(swarm, 3)?, asker(swarm, "front")?);
    let vip = swarm.manager().vip("web", "front")?;
    let index = swarm.nodes.iter().position(|node| node.name() == asker.node).context("its node")?;
    let pins = pinned(&swarm.nodes[index])?;
    ensure_same("links", &pins, &4)?;
    set(swarm, index, "off")?;
    wait_for("the links to be gone", PATIENCE, || match pinned(&swarm.nodes[index]) {
        Ok(0) => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
    let node = &swarm.nodes[index];
    ensure_same("connect hooks", &node.metric("shoal_connect_hooks")?, &0.0)?;
    passed(node)?;
    let packets = rewritten(node)?;
    for to in vip.addresses() {
        let answers = ask_as(swarm, &asker, to, false)?.complete()?;
        ensure_same("who answered", &answers.hosts.keys().cloned().collect(), &host_names(&tasks))?;
        ensure_same("the peer's name", &answers.connected, &only(to))?;
    }
    wait_for("packets to be rewritten", PATIENCE, || {
        let now = rewritten(node).map_err(|error| format!("{error:#}"))?;
        if now >= packets + 3 * 40 { Ok(()) } else { Err(format!("{now} after {packets}")) }
    })?;
    set(swarm, index, "auto")?;
    let before = counted(&swarm.nodes[index])?;
    ask_as(swarm, &asker, vip.v4.into(), false)?.complete()?;
    led_since(&swarm.nodes[index], before, COUNT)?;
    wait_engine(swarm, shoal_netns::wanted_engine().as_deref().unwrap_or("ebpf"))
}
