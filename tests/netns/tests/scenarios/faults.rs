//! Daemons that die, and nodes that do.

use std::net::SocketAddr;

use anyhow::{Context, ensure};
use shoal_netns::{Programs, Swarm, Traffic, slowness, wait_for};

use crate::harness::{
    PATIENCE, PUBLISHED_CONN, PUBLISHED_ECHO, PUBLISHED_WHOAMI, Scenario, answered_by, ask_node, ensure_same,
    formed, formed_with, host_names, running, scenario, web,
};

pub(crate) const SCENARIOS: &[Scenario] = &[
    scenario("an_idle_restart_adopts_with_zero_kernel_writes", restart),
    scenario("killing_every_daemon_breaks_no_connection", kill_all),
    scenario("a_dead_node_s_tasks_are_replaced_elsewhere", dead_node),
];

/// A swarm of three. Where everything takes longer, so does the start of a daemon: its manager has more patience there, or
/// it would take nodes out of the mesh and write to the others' kernels.
pub(crate) fn start(programs: &Programs) -> anyhow::Result<Swarm> {
    match slowness() {
        1 => formed(programs),
        _ => formed_with(programs, "[agent]\nsuspect_after = \"10s\"\ndown_after = \"20s\"\n", 3),
    }
}

const WRITES: &str = "shoal_agent_kernel_writes_total";

/// Starts the daemons again and waits until all is as before.
fn start_again(swarm: &mut Swarm) -> anyhow::Result<()> {
    for node in &mut swarm.nodes {
        node.start_daemon()?;
    }
    swarm.wait_ready(3)
}

/// No daemon wrote to its kernel since it started.
fn ensure_no_writes(swarm: &Swarm) -> anyhow::Result<()> {
    for node in &swarm.nodes {
        let writes = node.metric(WRITES)?;
        ensure!(writes < 0.5, "{} wrote to its kernel {writes} times\n{}", node.name(), node.log_tail());
    }
    Ok(())
}

fn restart(swarm: &mut Swarm) -> anyhow::Result<()> {
    let tasks = web(swarm, 3)?;
    for node in &mut swarm.nodes {
        node.stop_daemon()?;
    }
    // The data path is the kernel's.
    for node in &swarm.nodes {
        for address in node.place.addresses() {
            ask_node(swarm, address, PUBLISHED_WHOAMI, false, 10)?.complete()?;
        }
    }
    start_again(swarm)?;
    ensure_no_writes(swarm)?;
    ensure_same("the tasks after the restart", &running(swarm, "web", 3)?, &tasks)
}

fn kill_all(swarm: &mut Swarm) -> anyhow::Result<()> {
    let tasks = web(swarm, 3)?;
    let services = swarm.manager().items(&["service", "ls"])?;
    let mut traffic = Vec::new();
    for node in &swarm.nodes {
        for address in node.place.addresses() {
            let echo = SocketAddr::new(address, PUBLISHED_ECHO);
            traffic.push(Traffic::streams(&swarm.client, &swarm.programs, echo, 5)?);
            let connections = SocketAddr::new(address, PUBLISHED_CONN);
            traffic.push(Traffic::connections(&swarm.client, &swarm.programs, connections, 20)?);
        }
    }
    for _ in 0..2 {
        for node in &mut swarm.nodes {
            node.kill_daemons()?;
        }
        for node in &swarm.nodes {
            for address in node.place.addresses() {
                for udp in [false, true] {
                    ask_node(swarm, address, PUBLISHED_WHOAMI, udp, 20)?
                        .complete()
                        .context("without daemons")?;
                }
            }
        }
        start_again(swarm)?;
        ensure_no_writes(swarm)?;
    }
    for one in traffic {
        one.finish()?;
    }
    ensure_same("the tasks after all", &running(swarm, "web", 3)?, &tasks)?;
    // They count as converged again once every node has reported to the manager that came back.
    wait_for("the services to be as before", PATIENCE, || {
        let now = swarm.manager().items(&["service", "ls"]).map_err(|error| format!("{error:#}"))?;
        if now == services { Ok(()) } else { Err(format!("{now:?} instead of {services:?}")) }
    })
}

fn dead_node(swarm: &mut Swarm) -> anyhow::Result<()> {
    let tasks = web(swarm, 3)?;
    let lost = tasks.iter().find(|task| task.node == "n3").context("a task on n3")?.clone();
    let place = swarm.nodes[2].place;
    swarm.lan.unplug(place)?;
    let unreachable = ask_node(swarm, place.v4.into(), PUBLISHED_WHOAMI, false, 1)?;
    ensure!(unreachable.ok == 0, "the cable is out and n3 answers");
    wait_for("three tasks on the nodes that live", PATIENCE, || {
        let now = swarm.manager().running_tasks("web").map_err(|error| format!("{error:#}"))?;
        let alive: Vec<_> = now.iter().filter(|task| task.node != "n3").collect();
        let slot = alive.iter().any(|task| task.name == lost.name && task.id != lost.id);
        if alive.len() == 3 && slot { Ok(()) } else { Err(format!("{now:?}")) }
    })?;
    let now: Vec<_> =
        swarm.manager().running_tasks("web")?.into_iter().filter(|task| task.node != "n3").collect();
    for node in &swarm.nodes[..2] {
        answered_by(swarm, node, &host_names(&now))?;
        let answers = ask_node(swarm, node.place.v6.into(), PUBLISHED_WHOAMI, true, 60)?.complete()?;
        ensure_same("who answered", &answers.hosts.keys().cloned().collect(), &host_names(&now))?;
    }
    swarm.lan.plug(place)?;
    swarm.wait_ready(3)?;
    let tasks = running(swarm, "web", 3)?;
    wait_for("n3 to stop the task that was replaced", PATIENCE, || {
        let own = tasks.iter().filter(|task| task.node == "n3").count();
        let pids = swarm.nodes[2].task_pids("shoal-load");
        if pids.len() == own { Ok(()) } else { Err(format!("processes {pids:?}")) }
    })?;
    swarm.nodes.iter().try_for_each(|node| answered_by(swarm, node, &host_names(&tasks)))
}
