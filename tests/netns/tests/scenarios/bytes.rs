//! Bytes of services as metrics: where they entered, and never less than before. The service has a name of its own: one that
//! had it before may not have been forgotten yet.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, ensure};
use serde_json::Value;
use shoal_netns::{Node, Swarm, kill_hard, wait_for};

use crate::harness::{ECHO, LISTENS, PATIENCE, PUBLISHED_ECHO, create, node_of, running, traffic_secs};

/// Bytes of a question, and of its answer.
const SIZE: u64 = 100_000;
const DIRECTIONS: [&str; 2] = ["in", "out"];

/// Bytes of the service by direction, then those of its one slot.
type Told = [f64; 4];

fn told(node: &Node) -> anyhow::Result<Told> {
    let labels = "{service=\"counted\",network=\"ingress\"";
    let mut told = Told::default();
    for (at, direction) in DIRECTIONS.into_iter().enumerate() {
        let direction = format!("direction=\"{direction}\"}}");
        told[at] = node.metric(&format!("shoal_lb_bytes_total{labels},{direction}"))?;
        told[at + 2] =
            node.metric(&format!("shoal_lb_endpoint_bytes_total{labels},slot=\"1\",{direction}"))?;
    }
    Ok(told)
}

/// Waits until what a node tells is so.
fn wait_told(node: &Node, what: &str, is_so: impl Fn(&Told) -> bool) -> anyhow::Result<Told> {
    wait_for(&format!("{} to tell {what}", node.name()), PATIENCE, || {
        let told = told(node).map_err(|error| format!("{error:#}"))?;
        if is_so(&told) { Ok(told) } else { Err(format!("{told:?}")) }
    })
}

/// Questions and answers with the echo server, from the client; the bytes of all questions.
fn transfer(swarm: &Swarm, address: IpAddr) -> anyhow::Result<f64> {
    let target = SocketAddr::new(address, PUBLISHED_ECHO).to_string();
    let (size, secs) = (SIZE.to_string(), traffic_secs(300));
    let mode = ["rr", "--target", &target, "--size", &size, "--secs", &secs];
    let text = swarm.client.run(&swarm.programs.load).args(mode).stdout()?;
    let report: Value = serde_json::from_str(&text)?;
    let answered = report["ok"].as_u64().filter(|ok| *ok > 3).context(text)?;
    Ok(f64::from(u32::try_from(answered * SIZE)?))
}

/// Every byte, and less than a fifth more for headers and acknowledgements.
fn is_about(bytes: f64, payload: f64) -> bool {
    bytes >= payload && bytes < payload * 1.2
}

pub(crate) fn counted(swarm: &mut Swarm) -> anyhow::Result<()> {
    let port = format!("{PUBLISHED_ECHO}:{ECHO}");
    let flags = [&["--replicas", "1", "-p", &port][..], &LISTENS].concat();
    create(swarm, "counted", "front", &flags)?;
    let task = running(swarm, "counted", 1)?.remove(0);
    let home = node_of(swarm, &task)?.name().to_owned();
    let entry = swarm.nodes.iter().position(|node| node.name() != home).context("three nodes")?;
    let place = swarm.nodes[entry].place;
    let mut payload = 0.0;
    for address in place.addresses() {
        payload += transfer(swarm, address)?;
    }
    let all = |told: &Told| told.iter().all(|bytes| is_about(*bytes, payload));
    let before = wait_told(&swarm.nodes[entry], &format!("about {payload} bytes each way"), all)?;
    for node in swarm.nodes.iter().filter(|node| node.name() != swarm.nodes[entry].name()) {
        // The node that the task is on only passed them on.
        wait_told(node, "no byte", |told| told.iter().all(|bytes| *bytes < 0.5))?;
    }

    let never_less = |told: &Told| told.iter().zip(&before).all(|(now, before)| now >= before);
    let node = &mut swarm.nodes[entry];
    node.kill_daemon()?;
    node.start_daemon()?;
    wait_told(node, "as much after a restart", never_less)?;
    let victim = task.process()?;
    kill_hard(victim);
    wait_for("a successor in the same slot", PATIENCE, || {
        let now = swarm.manager().running_tasks("counted").map_err(|error| format!("{error:#}"))?;
        if now.iter().any(|other| other.id != task.id) { Ok(()) } else { Err(format!("{now:?}")) }
    })?;
    let after = told(&swarm.nodes[entry])?;
    ensure!(never_less(&after), "{after:?} after {before:?}, when the task was replaced");
    payload += transfer(swarm, place.v6.into())?;
    let all = |told: &Told| told[..2].iter().all(|bytes| is_about(*bytes, payload)) && never_less(told);
    wait_told(&swarm.nodes[entry], &format!("about {payload} bytes each way"), all)?;
    Ok(())
}
