//! Requests for connections from nobody, more than the tables of flows hold.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, ensure};
use shoal_netns::{Programs, Swarm, Traffic, slowness};

use crate::harness::{PUBLISHED_ECHO, PUBLISHED_WHOAMI, Scenario, ask_node, running, scenario, web};

pub(crate) const SCENARIOS: &[Scenario] =
    &[scenario("connections_live_through_a_flood_of_requests_for_others", flood)];

/// Ten times what the tables hold.
const FLOOD: u32 = 40_960;
const IDLE: usize = 30;

/// Three nodes with tables as small as they can be.
pub(crate) fn start(programs: &Programs) -> anyhow::Result<Swarm> {
    let mut swarm = Swarm::unformed(programs)?;
    for node in &mut swarm.nodes {
        node.stop_daemon()?;
        node.configure("[network]\nflow_entries = 4096\n")?;
        node.start_daemon()?;
        // Or each sender of a flood would be a neighbor, and the kernel's table of those is small.
        node.host.ip(&format!("route add default via {}", swarm.client_place.v4))?;
    }
    let token = swarm.init()?;
    swarm.nodes[1..].iter().try_for_each(|node| swarm.join(node, &token))?;
    swarm.wait_ready(swarm.nodes.len())?;
    Ok(swarm)
}

fn flood(swarm: &mut Swarm) -> anyhow::Result<()> {
    web(swarm, 2)?;
    let node = &swarm.nodes[0];
    let echo = SocketAddr::new(node.place.v4.into(), PUBLISHED_ECHO);
    let streams = Traffic::streams(&swarm.client, &swarm.programs, echo, 8)?;
    let mut idle =
        swarm.client.enter(|| (0..IDLE).map(|_| open(echo)).collect::<anyhow::Result<Vec<_>>>())?;
    // From here on a connection that is forgotten may be led to another task than its own.
    swarm.manager().shoal(&["service", "scale", "web=6"])?;
    running(swarm, "web", 6)?;
    for target in [PUBLISHED_ECHO, PUBLISHED_WHOAMI] {
        let target = SocketAddr::new(node.place.v4.into(), target).to_string();
        let words = ["flood", "--target", &target, "--count", &FLOOD.to_string()];
        swarm.client.run(&swarm.programs.load).args(words).output()?;
    }
    for (number, stream) in idle.iter_mut().enumerate() {
        exchange(stream, number).with_context(|| format!("idle connection {number}"))?;
    }
    let report = streams.finish()?;
    ensure!(report["lines"].as_u64() > Some(20), "hardly a line was sent: {report}");
    for node in &swarm.nodes {
        ask_node(swarm, node.place.v4.into(), PUBLISHED_WHOAMI, false, 20)?.complete()?;
        ask_node(swarm, node.place.v6.into(), PUBLISHED_WHOAMI, true, 20)?.complete()?;
    }
    Ok(())
}

/// A connection to an echo server that has carried a line.
pub(crate) fn open(target: SocketAddr) -> anyhow::Result<TcpStream> {
    let patience = Duration::from_secs(u64::from(4 * slowness()));
    let mut stream = TcpStream::connect_timeout(&target, patience)?;
    stream.set_read_timeout(Some(patience))?;
    exchange(&mut stream, 0)?;
    Ok(stream)
}

/// Sends a line and expects it back.
pub(crate) fn exchange(stream: &mut TcpStream, number: usize) -> anyhow::Result<()> {
    let line = format!("{number}\n");
    stream.write_all(line.as_bytes())?;
    let mut answer = vec![0; line.len()];
    stream.read_exact(&mut answer)?;
    ensure!(answer == line.as_bytes(), "expected {line:?}, got {answer:?}");
    Ok(())
}
