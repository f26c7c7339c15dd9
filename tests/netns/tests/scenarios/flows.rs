//! What happens to a service must not reach the flows of another, nor of replicas that stay.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use anyhow::ensure;
use shoal_netns::{Need, Node, Swarm, Traffic, kill_hard, wait_for};

use crate::harness::{
    ECHO, LISTENS, PATIENCE, PUBLISHED_CONN, PUBLISHED_ECHO, Scenario, answered_by, create, create_web,
    ensure_same, host_names, running, scenario, web,
};
use crate::{bytes, sameport, weights};

pub(crate) const SCENARIOS: &[Scenario] = &[
    scenario("scaling_takes_effect_and_leaves_unrelated_flows_alone", scaling),
    scenario("removing_a_service_leaves_unrelated_flows_alone", removal),
    scenario("a_killed_task_is_replaced_in_its_slot", replacement),
    scenario("bytes_are_counted_where_they_enter_and_never_less", bytes::counted),
    scenario("one_client_port_through_many_ways_to_one_task", sameport::one_port_many_ways),
    scenario("new_connections_go_by_the_weights_of_nodes", weights::shares),
];

const OTHER_ECHO: u16 = 8192;

/// Another service with streams to it, on the same network and nodes, through every node.
fn other(swarm: &Swarm) -> anyhow::Result<Vec<Traffic>> {
    let port = format!("{OTHER_ECHO}:{ECHO}");
    create(swarm, "other", "front", &["--replicas", "3", "-p", &port])?;
    running(swarm, "other", 3)?;
    let targets = swarm.nodes.iter().flat_map(|node| node.place.addresses());
    targets
        .map(|address| {
            Traffic::streams(&swarm.client, &swarm.programs, SocketAddr::new(address, OTHER_ECHO), 3)
        })
        .collect()
}

fn finish(traffic: Vec<Traffic>) -> anyhow::Result<()> {
    for one in traffic {
        let report = one.finish()?;
        ensure!(report["lines"].as_u64() > Some(20), "hardly a line was sent: {report}");
    }
    Ok(())
}

fn scaling(swarm: &mut Swarm) -> anyhow::Result<()> {
    let unrelated = other(swarm)?;
    // Without a check a task may get connections before it listens.
    create_web(swarm, 2, &LISTENS)?;
    running(swarm, "web", 2)?;
    // Growing takes nothing away, so streams to the service itself must live through it.
    let echo = SocketAddr::new(swarm.nodes[0].place.v4.into(), PUBLISHED_ECHO);
    let own = Traffic::streams(&swarm.client, &swarm.programs, echo, 8)?;
    scale_and_see(swarm, 6)?;
    let connections = SocketAddr::new(swarm.nodes[1].place.v6.into(), PUBLISHED_CONN);
    let new = Traffic::connections(&swarm.client, &swarm.programs, connections, 100)?;
    scale_and_see(swarm, 7)?;
    new.finish()?;
    own.finish()?;
    scale_and_see(swarm, 2)?;
    scale_and_see(swarm, 4)?;
    finish(unrelated)
}

/// Scales, and waits until every node answers by exactly the tasks there are then.
fn scale_and_see(swarm: &Swarm, count: u32) -> anyhow::Result<()> {
    swarm.manager().shoal(&["service", "scale", &format!("web={count}")])?;
    let tasks = running(swarm, "web", count)?;
    swarm.nodes.iter().try_for_each(|node| answered_by(swarm, node, &host_names(&tasks)))
}

/// What metrics tell of a service on the ingress network.
fn told(node: &Node, metric: &str, service: &str, further: &str) -> anyhow::Result<f64> {
    node.metric(&format!("{metric}{{service=\"{service}\",network=\"ingress\"{further}}}"))
}

/// A service's connections under way through a node, added up over its three slots.
fn by_slot(node: &Node, service: &str) -> anyhow::Result<f64> {
    let slot =
        |slot| told(node, "shoal_lb_endpoint_active_connections", service, &format!(",slot=\"{slot}\""));
    Ok(slot(1)? + slot(2)? + slot(3)?)
}

fn removal(swarm: &mut Swarm) -> anyhow::Result<()> {
    let unrelated = other(swarm)?;
    for node in &swarm.nodes {
        wait_for("three streams by each address to be counted", PATIENCE, || {
            let read = |metric, further| told(node, metric, "other", further);
            let counts = [
                read("shoal_lb_active_connections", ""),
                read("shoal_lb_new_connections_total", ""),
                read("shoal_lb_backends", ",state=\"serving\""),
                by_slot(node, "other"),
            ];
            let is_right = |(count, wanted): (&anyhow::Result<f64>, f64)| {
                count.as_ref().is_ok_and(|count| (count - wanted).abs() < 0.5)
            };
            // What a balancer leads is not told by endpoint.
            let ours = if Need::EbpfEngine.lacking().is_none() { 6.0 } else { 0.0 };
            let wanted = [6.0, 6.0, 3.0, ours];
            if counts.iter().zip(wanted).all(is_right) { Ok(()) } else { Err(format!("{counts:?}")) }
        })?;
    }
    for _ in 0..2 {
        web(swarm, 3)?;
        swarm.manager().shoal(&["--yes", "service", "rm", "web"])?;
    }
    finish(unrelated)
}

fn replacement(swarm: &mut Swarm) -> anyhow::Result<()> {
    let tasks = web(swarm, 3)?;
    let names: BTreeSet<_> = tasks.iter().map(|task| task.name.clone()).collect();
    let victim = &tasks[1];
    kill_hard(victim.process()?);
    let successor = wait_for("a successor in the same slot", PATIENCE, || {
        let now = swarm.manager().running_tasks("web").map_err(|error| format!("{error:#}"))?;
        let found = now.iter().find(|task| task.name == victim.name && task.id != victim.id).cloned();
        found.ok_or_else(|| format!("{now:?}"))
    })?;
    ensure_same("the successor's name", &successor.name, &victim.name)?;
    let now = running(swarm, "web", 3)?;
    ensure_same("slots", &now.iter().map(|task| task.name.clone()).collect(), &names)?;
    for node in &swarm.nodes {
        answered_by(swarm, node, &host_names(&now))?;
    }
    Ok(())
}
