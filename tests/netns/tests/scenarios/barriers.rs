//! Changes under load: a task gets flows when it can take them on every node, and is stopped when nobody sends it any.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use anyhow::{Context, ensure};
use shoal_netns::{Programs, Swarm, Task, Traffic, wait_for};

use crate::harness::{
    ECHO, LISTENS, PATIENCE, PUBLISHED_ECHO, Scenario, answered_by, create_web, ensure_same, formed_with,
    host_names, running, scenario,
};
use crate::load::{Load, bystander};

pub(crate) const SCENARIOS: &[Scenario] = &[
    scenario("scaling_under_load_fails_no_request", scaling),
    scenario("a_rolling_update_under_load_fails_no_request", rolling),
    scenario("streams_live_until_the_drain_is_over", draining),
    scenario("a_drain_ends_with_the_last_connection", idle),
    scenario("an_agent_killed_while_it_programs_leaves_nothing_half_done", crate::faults::kill_at_work),
    scenario("draining_and_removing_a_node_under_load_fails_no_request", node_removal),
];

/// Longer than one request of the load takes on a busy machine.
const DRAIN: [&str; 2] = ["--drain", "1s"];

/// A swarm whose manager is patient: how long a daemon takes to start again is not what is looked at here.
pub(crate) fn start(programs: &Programs) -> anyhow::Result<Swarm> {
    formed_with(programs, "[agent]\nsuspect_after = \"30s\"\ndown_after = \"60s\"\n", 3)
}

/// `web` with so many replicas, load on it from everywhere, and streams to a service beside it.
fn loaded(swarm: &Swarm, replicas: u32) -> anyhow::Result<Load> {
    create_web(swarm, replicas, &[&DRAIN[..], &LISTENS].concat())?;
    running(swarm, "web", replicas)?;
    let (others, port) = bystander(swarm, &["--mode", "global"])?;
    Load::published(swarm, &swarm.nodes)?.and_by_vip(swarm, &others)?.and_streams(swarm, &swarm.nodes, port)
}

fn scaling(swarm: &mut Swarm) -> anyhow::Result<()> {
    let load = loaded(swarm, 3)?;
    for count in [6, 2, 5, 1, 3] {
        swarm.manager().shoal(&["service", "scale", &format!("web={count}")])?;
        let tasks = running(swarm, "web", count)?;
        swarm.nodes.iter().try_for_each(|node| answered_by(swarm, node, &host_names(&tasks)))?;
    }
    load.finish()
}

fn rolling(swarm: &mut Swarm) -> anyhow::Result<()> {
    let load = loaded(swarm, 4)?;
    let mut ids: BTreeSet<String> = BTreeSet::new();
    for parallelism in ["1", "2", "0"] {
        let tasks = running(swarm, "web", 4)?;
        ensure!(tasks.iter().all(|task| ids.insert(task.id.clone())), "a task was not replaced: {tasks:?}");
        swarm.manager().shoal(&[
            "service",
            "update",
            "--force",
            "--update-parallelism",
            parallelism,
            "web",
        ])?;
    }
    let tasks = running(swarm, "web", 4)?;
    ensure!(tasks.iter().all(|task| !ids.contains(&task.id)), "a task was not replaced: {tasks:?}");
    load.finish()
}

/// All tasks of `web` that have not ended.
fn alive(swarm: &Swarm) -> anyhow::Result<Vec<Task>> {
    let mut tasks = swarm.manager().all_tasks("web")?;
    tasks.retain(|task| task.state == "running");
    Ok(tasks)
}

fn draining(swarm: &mut Swarm) -> anyhow::Result<()> {
    create_web(swarm, 4, &["--drain", "1h"])?;
    let seen = drains(swarm);
    // Whatever was seen: else nothing would end within an hour.
    swarm.manager().shoal(&["service", "update", "-d", "--drain", "0s", "web"])?;
    seen?;
    wait_for("the drain to be over", PATIENCE, || {
        let left = alive(swarm).map_err(|error| format!("{error:#}"))?;
        if left.len() == 2 { Ok(()) } else { Err(format!("{left:?}")) }
    })
}

/// Two of four tasks drain: nobody is led to them any more, and what was there goes on.
fn drains(swarm: &Swarm) -> anyhow::Result<()> {
    running(swarm, "web", 4)?;
    let load = Load::published(swarm, &swarm.nodes)?.and_streams(swarm, &swarm.nodes, PUBLISHED_ECHO)?;
    swarm.manager().shoal(&["service", "scale", "-d", "web=2"])?;
    let stay = running(swarm, "web", 2)?;
    swarm.nodes.iter().try_for_each(|node| answered_by(swarm, node, &host_names(&stay)))?;
    load.finish()?;
    let draining = alive(swarm)?.into_iter().filter(|task| task.desired_state == "draining").count();
    ensure_same("tasks that drain", &draining, &2)
}

/// Old tasks without a connection end at once, long before their drain does; one with a stream ends after that.
fn idle(swarm: &mut Swarm) -> anyhow::Result<()> {
    create_web(swarm, 3, &[&["--drain", "1h", "--env", "TCP_ONLY=1"], &LISTENS[..]].concat())?;
    let seen = ends_when_idle(swarm);
    // Whatever was seen: else what follows would wait for an hour.
    swarm.manager().shoal(&["service", "update", "-d", "--drain", "0s", "web"])?;
    seen
}

fn ends_when_idle(swarm: &Swarm) -> anyhow::Result<()> {
    let old = running(swarm, "web", 3)?;
    let (others, _) = bystander(swarm, &["--replicas", "1"])?;
    let other = others.first().context("one bystander")?;
    let at_node = SocketAddr::new(swarm.manager().place.v6.into(), PUBLISHED_ECHO);
    let at_vip = SocketAddr::new(swarm.manager().vip("web", "front")?.v4.into(), ECHO);
    let held = [
        Traffic::streams(&swarm.client, &swarm.programs, at_node, 1)?,
        Traffic::streams_in(&other.netns()?, &swarm.programs, at_vip, 1)?,
    ];
    swarm.manager().shoal(&["service", "update", "--force", "web"])?;
    let left = || -> Result<Vec<Task>, String> {
        let mut tasks = alive(swarm).map_err(|error| format!("{error:#}"))?;
        tasks.retain(|task| old.iter().any(|old| old.id == task.id));
        Ok(tasks)
    };
    wait_for("only tasks with a stream to be left", PATIENCE, || {
        let tasks = left()?;
        let counts: Vec<u32> = tasks.iter().map(|task| task.connections.unwrap_or_default()).collect();
        let only_streams = counts.iter().sum::<u32>() == 2 && !counts.contains(&0);
        if only_streams { Ok(()) } else { Err(format!("{tasks:?}")) }
    })?;
    for stream in held {
        let report = stream.finish()?;
        ensure!(report["broken"] == 0, "a stream did not live until its end: {report}");
    }
    wait_for("the last drains to be over", PATIENCE, || {
        let tasks = left()?;
        if tasks.is_empty() { Ok(()) } else { Err(format!("{tasks:?}")) }
    })?;
    let tasks = running(swarm, "web", 3)?;
    swarm.nodes.iter().try_for_each(|node| answered_by(swarm, node, &host_names(&tasks)))
}

fn node_removal(swarm: &mut Swarm) -> anyhow::Result<()> {
    create_web(swarm, 4, &[&DRAIN[..], &LISTENS].concat())?;
    running(swarm, "web", 4)?;
    let (others, port) = bystander(swarm, &["--replicas", "2", "--constraint", "node.hostname!=n3"])?;
    let (rest, last) = swarm.nodes.split_at(2);
    let last = last.first().context("three nodes")?;
    let load = Load::published(swarm, rest)?.and_by_vip(swarm, &others)?.and_streams(swarm, rest, port)?;
    let through_last = Load::published(swarm, [last])?.and_streams(swarm, [last], port)?;
    swarm.manager().shoal(&["node", "update", "--availability", "drain", last.name()])?;
    let tasks = wait_for("the node to be empty", PATIENCE, || {
        let all = alive(swarm).map_err(|error| format!("{error:#}"))?;
        let empty = all.iter().all(|task| task.node != last.name());
        if empty && all.len() == 4 { Ok(all) } else { Err(format!("{all:?}")) }
    })?;
    swarm.nodes.iter().try_for_each(|node| answered_by(swarm, node, &host_names(&tasks)))?;
    // It still takes part in the mesh, until it goes.
    through_last.finish()?;
    last.shoal(&["swarm", "leave"])?;
    rest.iter().try_for_each(|node| answered_by(swarm, node, &host_names(&tasks)))?;
    load.finish()?;
    let token = swarm.worker_token(&[])?;
    swarm.join(last, &token)?;
    swarm.wait_ready(3)?;
    answered_by(swarm, last, &host_names(&tasks))
}
