//! Failure detection: silence makes a node suspect, then down; loss and starvation make it neither for long.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use shoal_netns::{Need, Node, Programs, Swarm, Task, Traffic, kill_hard, wait_for};

use crate::harness::{
    PATIENCE, PUBLISHED_CONN, PUBLISHED_ECHO, Scenario, answered_by, create, ensure_same, formed_with,
    host_names, running, scenario, web,
};

pub(crate) const SCENARIOS: &[Scenario] = &[
    scenario("a_suspect_node_is_out_of_the_mesh_and_comes_back_with_its_tasks", suspect)
        .needs(&[Need::Nftables]),
    scenario("a_node_that_is_cut_off_for_longer_is_replaced", down).needs(&[Need::Nftables]),
    scenario("a_third_of_packets_lost_is_no_death", loss).needs(&[Need::Nftables]),
    scenario("a_starved_daemon_is_not_dead", starved),
    scenario("a_killed_task_leaves_every_node_at_once", killed),
];

/// Between what makes a node suspect and what makes it down there is time to look at it.
const SETTINGS: &str = "[agent]\nsuspect_after = \"2s\"\ndown_after = \"20s\"\n";
/// How long packets are lost, or a daemon is starved; what is asserted does not depend on it.
const ORDEAL: Duration = Duration::from_secs(15);
const CONTROL_PORT: u16 = 7377;

/// A swarm whose manager takes its time before it replaces anything.
pub(crate) fn start(programs: &Programs) -> anyhow::Result<Swarm> {
    formed_with(programs, SETTINGS, 3)
}

/// A rule on a node's control traffic, both ways; the data path is not touched.
struct Obstacle<'a>(&'a Node);

impl<'a> Obstacle<'a> {
    fn new(node: &'a Node, verdict: &str) -> anyhow::Result<Self> {
        let this = Self(node);
        this.nft("add table inet obstacle")?;
        for (hook, port) in [("input", "sport"), ("output", "dport")] {
            this.nft(&format!("add chain inet obstacle {hook} {{ type filter hook {hook} priority 0 ; }}"))?;
            this.nft(&format!("add rule inet obstacle {hook} tcp {port} {CONTROL_PORT} {verdict}"))?;
        }
        Ok(this)
    }

    fn nft(&self, line: &str) -> anyhow::Result<()> {
        self.0.host.run_line(&format!("nft {line}")).stdout().map(drop)
    }
}

impl Drop for Obstacle<'_> {
    fn drop(&mut self) {
        // A scenario that failed leaves none behind either; the residue check sees what stays.
        drop(self.nft("delete table inet obstacle"));
    }
}

/// A node's state as the manager sees it.
fn state(swarm: &Swarm, name: &str) -> anyhow::Result<String> {
    let nodes = swarm.manager().items(&["node", "ls"])?;
    let node = nodes.iter().find(|node| node["name"] == name).with_context(|| format!("no node {name}"))?;
    Ok(node["state"].as_str().unwrap_or_default().to_owned())
}

fn wait_state(swarm: &Swarm, name: &str, wanted: &str) -> anyhow::Result<()> {
    wait_for(&format!("{name} to be {wanted}"), PATIENCE, || {
        let now = state(swarm, name).map_err(|error| format!("{error:#}"))?;
        if now == wanted { Ok(()) } else { Err(now) }
    })
}

fn ids(tasks: &[Task]) -> BTreeSet<String> {
    tasks.iter().map(|task| task.id.clone()).collect()
}

fn tasks_elsewhere(tasks: &[Task], name: &str) -> Vec<Task> {
    tasks.iter().filter(|task| task.node != name).cloned().collect()
}

/// Streams to `web` through a node.
fn streams(swarm: &Swarm, node: &Node) -> anyhow::Result<Traffic> {
    let target = SocketAddr::new(node.place.v4.into(), PUBLISHED_ECHO);
    Traffic::streams(&swarm.client, &swarm.programs, target, 9)
}

fn suspect(swarm: &mut Swarm) -> anyhow::Result<()> {
    let tasks = web(swarm, 3)?;
    let last = &swarm.nodes[2];
    // Some of these lead to the node that will be suspect: its data path is well, and theirs goes on.
    let traffic = streams(swarm, &swarm.nodes[0])?;
    let cut = Obstacle::new(last, "drop")?;
    wait_state(swarm, last.name(), "suspect")?;
    let others = host_names(&tasks_elsewhere(&tasks, last.name()));
    for node in &swarm.nodes[..2] {
        answered_by(swarm, node, &others)?;
    }
    ensure_same("its state while that was seen", &state(swarm, last.name())?.as_str(), &"suspect")?;
    drop(cut);
    wait_state(swarm, last.name(), "ready")?;
    swarm.nodes.iter().try_for_each(|node| answered_by(swarm, node, &host_names(&tasks)))?;
    ensure_same("the tasks", &running(swarm, "web", 3)?, &tasks)?;
    traffic.finish().map(drop)
}

fn down(swarm: &mut Swarm) -> anyhow::Result<()> {
    let tasks = web(swarm, 3)?;
    let last = &swarm.nodes[2];
    let lost = tasks.iter().find(|task| task.node == last.name()).context("a task there")?.clone();
    let cut = Obstacle::new(last, "drop")?;
    wait_state(swarm, last.name(), "down")?;
    let now = wait_for("its task to be replaced", PATIENCE, || {
        let now = swarm.manager().running_tasks("web").map_err(|error| format!("{error:#}"))?;
        let alive = tasks_elsewhere(&now, last.name());
        let replaced = alive.iter().any(|task| task.name == lost.name && task.id != lost.id);
        if alive.len() == 3 && replaced { Ok(alive) } else { Err(format!("{now:?}")) }
    })?;
    for node in &swarm.nodes[..2] {
        answered_by(swarm, node, &host_names(&now))?;
    }
    drop(cut);
    wait_state(swarm, last.name(), "ready")?;
    wait_for("the replaced task to be stopped", PATIENCE, || {
        let pids = last.task_pids("shoal-load");
        if pids.is_empty() { Ok(()) } else { Err(format!("{pids:?}")) }
    })?;
    ensure_same("the tasks that stay", &ids(&running(swarm, "web", 3)?), &ids(&now))?;
    swarm.nodes.iter().try_for_each(|node| answered_by(swarm, node, &host_names(&now)))
}

/// Looks at a node's state again and again for the length of an ordeal; it was never down. How often it was suspect.
fn endure(
    swarm: &Swarm,
    name: &str,
    mut meanwhile: impl FnMut() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let begin = Instant::now();
    let (mut looks, mut suspect) = (0_u32, 0_u32);
    while begin.elapsed() < ORDEAL {
        meanwhile()?;
        let now = state(swarm, name)?;
        ensure!(now != "down" && now != "unknown", "{name} is {now}");
        looks += 1;
        suspect += u32::from(now == "suspect");
    }
    println!("  {name} was looked at {looks} times, {suspect} times it was suspect");
    Ok(())
}

fn loss(swarm: &mut Swarm) -> anyhow::Result<()> {
    let tasks = web(swarm, 3)?;
    let traffic = streams(swarm, &swarm.nodes[0])?;
    let last = &swarm.nodes[2];
    let rule = Obstacle::new(last, "numgen random mod 100 < 30 counter drop")?;
    endure(swarm, last.name(), || Ok(()))?;
    let rules = last.host.run_line("nft list table inet obstacle").stdout()?;
    ensure!(!rules.contains("packets 0 "), "nothing was lost: {rules}");
    drop(rule);
    wait_state(swarm, last.name(), "ready")?;
    ensure_same("the tasks", &running(swarm, "web", 3)?, &tasks)?;
    swarm.nodes.iter().try_for_each(|node| answered_by(swarm, node, &host_names(&tasks)))?;
    traffic.finish().map(drop)
}

/// Stops processes nearly all the time.
fn starve(pids: &[i32]) -> anyhow::Result<()> {
    for (signal, ms) in [(Signal::SIGSTOP, 950), (Signal::SIGCONT, 50)] {
        for pid in pids {
            kill(Pid::from_raw(*pid), signal)?;
        }
        #[expect(
            clippy::disallowed_methods,
            reason = "the time itself is the ordeal, nothing is waited for"
        )]
        std::thread::sleep(Duration::from_millis(ms));
    }
    Ok(())
}

fn starved(swarm: &mut Swarm) -> anyhow::Result<()> {
    let tasks = web(swarm, 3)?;
    let traffic = streams(swarm, &swarm.nodes[0])?;
    let last = &swarm.nodes[2];
    let daemon = i32::try_from(last.daemon_pid().context("runs")?)?;
    endure(swarm, last.name(), || starve(&[daemon]))?;
    // And the manager: it must not take its own absence for that of others.
    let control = swarm.manager().control_pid().context("runs")?;
    endure(swarm, last.name(), || starve(&[control]))?;
    for node in &swarm.nodes {
        wait_state(swarm, node.name(), "ready")?;
    }
    ensure_same("the tasks", &running(swarm, "web", 3)?, &tasks)?;
    swarm.nodes.iter().try_for_each(|node| answered_by(swarm, node, &host_names(&tasks)))?;
    traffic.finish().map(drop)
}

/// Whether one connection through an address gets its answer.
fn is_served(address: SocketAddr) -> bool {
    let exchange = || -> std::io::Result<usize> {
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_millis(500))?;
        stream.set_read_timeout(Some(Duration::from_millis(500)))?;
        stream.write_all(b"x")?;
        stream.read(&mut [0; 2])
    };
    exchange().is_ok_and(|read| read == 1)
}

/// Connects through a node until so many in a row are served; when the last one failed.
fn last_failure(swarm: &Swarm, node: &Node, begin: Instant) -> anyhow::Result<Duration> {
    const IN_A_ROW: u32 = 60;
    let address = SocketAddr::new(node.place.v4.into(), PUBLISHED_CONN);
    swarm.client.enter(|| {
        let (mut served, mut last) = (0, Duration::ZERO);
        while served < IN_A_ROW {
            ensure!(begin.elapsed() < PATIENCE, "{} still leads somebody there", node.name());
            served = if is_served(address) { served + 1 } else { 0 };
            if served == 0 {
                last = begin.elapsed();
            }
        }
        Ok(last)
    })
}

fn killed(swarm: &mut Swarm) -> anyhow::Result<()> {
    // Its successor waits, so that what is seen is the leaving.
    let ports = ["-p", "8080:7000", "-p", "8081:7001"];
    create(swarm, "web", "front", &[&["--replicas", "3", "--restart-delay", "1h"], &ports[..]].concat())?;
    let tasks = running(swarm, "web", 3)?;
    let victim = tasks.first().context("three")?;
    let rest = host_names(&tasks[1..]);
    swarm.nodes.iter().try_for_each(|node| answered_by(swarm, node, &host_names(&tasks)))?;
    let begin = Instant::now();
    kill_hard(victim.process()?);
    let swarm = &*swarm;
    let seen: Vec<(&str, anyhow::Result<Duration>)> = std::thread::scope(|scope| {
        let nodes = swarm.nodes.iter();
        let threads: Vec<_> =
            nodes.map(|node| (node.name(), scope.spawn(|| last_failure(swarm, node, begin)))).collect();
        let panicked = |_| Err(anyhow::anyhow!("panicked"));
        threads.into_iter().map(|(name, thread)| (name, thread.join().unwrap_or_else(panicked))).collect()
    });
    for (name, last) in seen {
        println!("  {name} led somebody to the killed task for the last time after {} ms", last?.as_millis());
    }
    swarm.nodes.iter().try_for_each(|node| answered_by(swarm, node, &rest))
}
