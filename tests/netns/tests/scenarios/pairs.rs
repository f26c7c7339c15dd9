//! Interfaces of tasks: netkit devices where the kernel has them, and veth beside them.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context, ensure};
use serde_json::Value;
use shoal_netns::pinned::Pinned;
use shoal_netns::{Host, Node, Run, Swarm, Task, ask_by, wait_for};

use crate::harness::{
    ECHO, PATIENCE, PUBLISHED_WHOAMI, WHOAMI, ask_node, create, ensure_same, host_names, node_of, running,
    traffic_secs, web,
};

/// Enough that none of six tasks is missed.
const QUESTIONS: usize = 120;

/// What a kernel makes of interfaces of tasks.
fn best() -> anyhow::Result<&'static str> {
    let host = Host::new("probe")?;
    Ok(if host.ip("link add nk type netkit").is_ok() { "netkit" } else { "veth" })
}

/// The kinds of a task's interfaces.
fn kinds(task: &Task) -> anyhow::Result<Vec<String>> {
    let text = task.run_line("ip -j -d link show")?.stdout()?;
    let links: Vec<Value> = serde_json::from_str(&text)?;
    let kinds = links.iter().filter_map(|link| link["linkinfo"]["info_kind"].as_str().map(str::to_owned));
    Ok(kinds.collect())
}

fn ensure_kind(tasks: &[Task], kind: &str) -> anyhow::Result<()> {
    for task in tasks {
        let kinds = kinds(task)?;
        ensure!(kinds.len() >= 2 && kinds.iter().all(|found| found == kind), "{}: {kinds:?}", task.name);
    }
    Ok(())
}

fn set_netkit(swarm: &mut Swarm, setting: &str) -> anyhow::Result<()> {
    for node in &mut swarm.nodes {
        node.configure(&format!("[network]\nlb_engine = \"ebpf\"\nnetkit = \"{setting}\"\n"))?;
        node.stop_daemon()?;
        node.start_daemon()?;
    }
    swarm.wait_ready(3)
}

/// Tasks ask a service by its virtual IP and all its tasks by their own addresses, over both protocols and families.
fn meet(swarm: &Swarm, askers: &[Task], service: &str, asked: &[Task]) -> anyhow::Result<()> {
    let vip = swarm.manager().vip(service, "front")?;
    for asker in askers {
        let netns = asker.netns()?;
        let run = || Run::new(&swarm.programs.load).netns(&netns);
        for address in vip.addresses() {
            for udp in [false, true] {
                let answers = ask_by(run(), SocketAddr::new(address, WHOAMI), udp, QUESTIONS)?.complete();
                let answers =
                    answers.with_context(|| format!("{} asks {service} (udp: {udp})", asker.name))?;
                let found = answers.hosts.keys().cloned().collect();
                ensure_same("who answered", &found, &answering(asker, asked))?;
            }
        }
        for task in asked.iter().filter(|task| task.id != asker.id) {
            for address in task.attachment("front")?.addresses() {
                let target = SocketAddr::new(address, ECHO).to_string();
                let mode = ["rr", "--target", &target, "--size", "100000", "--secs", &traffic_secs(200)];
                run().args(mode).stdout().with_context(|| format!("{} and {}", asker.name, task.name))?;
            }
        }
    }
    Ok(())
}

/// Who of a service answers a task: of its own one the others, if there are any.
fn answering(asker: &Task, asked: &[Task]) -> BTreeSet<String> {
    let others: Vec<_> = asked.iter().filter(|task| task.id != asker.id).cloned().collect();
    host_names(if others.is_empty() { asked } else { &others })
}

/// The pins of what is attached to interfaces of tasks.
fn pins(node: &Node) -> anyhow::Result<Vec<PathBuf>> {
    let mut pins = Vec::new();
    for generation in std::fs::read_dir(node.bpf_dir())? {
        for link in std::fs::read_dir(generation?.path().join("links")).into_iter().flatten() {
            pins.push(link?.path());
        }
    }
    let is_of_task =
        |pin: &PathBuf| pin.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"task_tx@"));
    pins.retain(is_of_task);
    Ok(pins)
}

/// How many of them are links of netkit devices.
fn by_netkit(pins: &[PathBuf]) -> anyhow::Result<usize> {
    let kinds = pins.iter().map(|pin| Pinned::open(pin)?.kind_of_link());
    let kinds = kinds.collect::<anyhow::Result<Vec<_>>>()?;
    Ok(kinds.iter().flatten().filter(|kind| *kind == "netkit").count())
}

/// Tasks that have interfaces of one kind, beside others of the other. What is attached to them comes back when it is taken.
pub(crate) fn meet_each_other(swarm: &mut Swarm) -> anyhow::Result<()> {
    let best = best()?;
    set_netkit(swarm, "auto")?;
    let web = web(swarm, 6)?;
    create(swarm, "alone", "front", &[])?;
    let alone = running(swarm, "alone", 1)?;
    ensure_kind(&web, best)?;
    // On one node, on two, and itself.
    meet(swarm, &web[..1], "web", &web)?;
    meet(swarm, &alone, "alone", &alone)?;
    swarm.manager().shoal(&["--yes", "service", "rm", "alone"])?;
    set_netkit(swarm, "off")?;
    create(swarm, "later", "front", &["--mode", "global"])?;
    let later = running(swarm, "later", 3)?;
    ensure_kind(&web, best).context("tasks of before")?;
    ensure_kind(&later, "veth").context("tasks of after")?;
    meet(swarm, &later[..1], "web", &web)?;
    meet(swarm, &web[..1], "later", &later)?;
    let node = node_of(swarm, &web[0])?;
    let taken = pins(node)?;
    ensure!(taken.len() >= 5, "each interface has a program: {taken:?}");
    let here = web.iter().filter(|task| task.node == web[0].node);
    let legs = here.map(|task| Ok(kinds(task)?.len())).sum::<anyhow::Result<usize>>()?;
    let expected = if best == "netkit" { legs } else { 0 };
    ensure_same("programs at netkit devices", &by_netkit(&taken)?, &expected)?;
    taken.iter().try_for_each(std::fs::remove_file)?;
    wait_for("the programs to be back", PATIENCE, || match pins(node) {
        Ok(back) if back.len() == taken.len() => Ok(()),
        other => Err(format!("{other:?}, not {taken:?}")),
    })?;
    ensure_same("programs at netkit devices again", &by_netkit(&pins(node)?)?, &expected)?;
    meet(swarm, &web[..1], "web", &web)?;
    for node in &swarm.nodes {
        for address in node.place.addresses() {
            for udp in [false, true] {
                ask_node(swarm, address, PUBLISHED_WHOAMI, udp, 20)?.complete()?;
            }
        }
    }
    for node in &mut swarm.nodes {
        node.configure("")?;
        node.stop_daemon()?;
        node.start_daemon()?;
    }
    swarm.wait_ready(3)
}
