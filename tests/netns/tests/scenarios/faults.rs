//! Daemons that die, and nodes that do.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use shoal_netns::{Node, Programs, Swarm, Task, Traffic, slowness, wait_for};

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

/// How often the agents are killed. `SHOAL_KILLS` says another number.
const KILLS: u64 = 6;

/// Kills the agents of two nodes again and again, sooner or later after each start, while networks and endpoints come and
/// go. Then all is as wanted, to the last object: an agent that starts and looks at everything finds nothing to write. (It
/// is listed with `barriers`, which guests leave out by default.)
pub(crate) fn kill_at_work(swarm: &mut Swarm) -> anyhow::Result<()> {
    let kills = match std::env::var("SHOAL_KILLS") {
        Ok(count) => count.parse().context("SHOAL_KILLS")?,
        Err(_) => KILLS,
    };
    web(swarm, 3)?;
    let spare = |swarm: &Swarm, tasks: &[Task]| -> Vec<usize> {
        let of = |node: &Node| {
            let own = tasks.iter().filter(|task| task.node == node.name()).count();
            node.task_namespaces().len().abs_diff(own)
        };
        swarm.nodes.iter().map(of).collect()
    };
    let before = spare(swarm, &running(swarm, "web", 3)?);
    swarm.manager().shoal(&["network", "create", "back"])?;
    for turn in 0..kills {
        let wanted = format!("web={}", 2 + turn * 3 % 5);
        swarm.manager().shoal(&["service", "scale", "-d", &wanted])?;
        match turn % 4 {
            0 => come(swarm)?,
            2 => swarm.manager().shoal(&["service", "rm", "-d", "back"]).map(drop)?,
            _ => {}
        }
        let node = swarm.nodes.get_mut(1 + usize::from(turn % 2 == 1)).context("three nodes")?;
        let daemon = node.daemon_pid().context("no shoald")?;
        let until = Instant::now() + Duration::from_millis(turn * 37 % 200) * slowness();
        wait_for(
            "the moment",
            PATIENCE,
            || if Instant::now() >= until { Ok(()) } else { Err(String::new()) },
        )?;
        node.kill_daemon()?;
        node.start_daemon().with_context(|| format!("after kill {turn} of process {daemon}"))?;
    }
    if swarm.manager().items(&["service", "ls"])?.iter().any(|service| service["name"] == "back") {
        swarm.manager().shoal(&["service", "rm", "back"])?;
    }
    swarm.manager().shoal(&["service", "scale", "web=3"])?;
    let tasks = running(swarm, "web", 3)?;
    swarm.wait_ready(3)?;
    swarm.nodes.iter().try_for_each(|node| answered_by(swarm, node, &host_names(&tasks)))?;
    wait_for("no namespace to be left over", PATIENCE, || {
        let now = spare(swarm, &tasks);
        if now == before { Ok(()) } else { Err(format!("{now:?} instead of {before:?}")) }
    })?;
    for node in &mut swarm.nodes {
        node.stop_daemon()?;
    }
    start_again(swarm)?;
    ensure_no_writes(swarm)?;
    ensure_same("the tasks after all", &running(swarm, "web", 3)?, &tasks)
}

/// A service on every node, on a network that no other is on.
fn come(swarm: &Swarm) -> anyhow::Result<()> {
    let load = swarm.programs.load.display().to_string();
    let words = ["service", "create", "-d", "--name", "back", "--mode", "global", "--network", "back"];
    let further = ["--drain", "0s", "--stop-grace-period", "100ms", "-p", "8199:7001", "--"];
    let program = [load.as_str(), "serve", "--conn", "7001"];
    // It may still be going from the last time.
    wait_for("the service to be made", PATIENCE, || {
        let made = swarm.manager().shoal(&[&words[..], &further[..], &program[..]].concat());
        made.map(drop).map_err(|error| format!("{error:#}"))
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
