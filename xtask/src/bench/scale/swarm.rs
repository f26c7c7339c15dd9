//! Three nodes: tasks are killed one after the other, and the maps of every node are watched meanwhile.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use shoal_netns::{Programs, Swarm, Task, wait_for};

use super::quantile;
use crate::interrupt::Interrupt;

/// Tasks killed without a flag.
const KILLS: u32 = 50;
const REPLICAS: usize = 6;
const PATIENCE: Duration = Duration::from_mins(1);

/// What came of it, milliseconds.
#[derive(Default, Serialize)]
pub(super) struct Figures {
    /// From the kill to the task's own node, which sees it end.
    own: Vec<f64>,
    /// From the kill to the first other node: through the manager's log.
    first: Vec<f64>,
    /// From the kill to the last node.
    last: Vec<f64>,
    /// From the first node that leads new flows to a new task to the last.
    spread_in: Vec<f64>,
}

/// What the watching program tells.
#[derive(Debug, Clone, Copy, Deserialize)]
struct Event {
    node: usize,
    addr: Ipv4Addr,
    usable: bool,
    at_ns: i64,
}

/// The watching program; it ends with this.
struct Watch {
    child: Child,
    events: Receiver<Event>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Watch {
    fn start(directory: &Path, swarm: &Swarm) -> anyhow::Result<Self> {
        let mut command = Command::new(directory.join("examples/endpoint_watch"));
        command.args(swarm.nodes.iter().map(shoal_netns::Node::bpf_dir)).stdout(Stdio::piped());
        let mut child = command.spawn().context("can't start endpoint_watch")?;
        let output = child.stdout.take().context("no output")?;
        let (tell, events) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let Ok(event) = serde_json::from_str(&line) else { return };
                if tell.send(event).is_err() {
                    return;
                }
            }
        });
        Ok(Self { child, events })
    }

    /// The first event of each node about an address, in order of time.
    fn each_node(&self, addr: Ipv4Addr, usable: bool, nodes: usize) -> anyhow::Result<Vec<Event>> {
        let (mut found, mut seen) = (Vec::new(), BTreeSet::new());
        let until = Instant::now() + PATIENCE;
        while found.len() < nodes {
            let left = until.saturating_duration_since(Instant::now());
            let event = self.events.recv_timeout(left).with_context(|| {
                format!("{addr}: only {found:?} of {nodes} nodes came to usable={usable}")
            })?;
            if event.addr == addr && event.usable == usable && seen.insert(event.node) {
                found.push(event);
            }
        }
        found.sort_by_key(|event| event.at_ns);
        Ok(found)
    }
}

fn now() -> anyhow::Result<i64> {
    Ok(i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos())?)
}

#[expect(clippy::cast_precision_loss, reason = "minutes at most")]
fn ms(nanoseconds: i64) -> f64 {
    nanoseconds as f64 / 1e6
}

/// Forms a swarm and kills so many tasks of a service in it.
pub(super) fn measure(
    directory: &Path,
    rounds: Option<u32>,
    interrupt: &Interrupt,
) -> anyhow::Result<Figures> {
    let programs = Programs::in_directory(directory)?;
    let swarm = Swarm::three(&programs)?;
    let figures = kill_all(directory, &swarm, rounds.unwrap_or(KILLS), interrupt);
    let dissolved = swarm.dissolve();
    let figures = figures?;
    dissolved?;
    Ok(figures)
}

/// Runs a service and kills so many of its tasks, one after the other.
fn kill_all(directory: &Path, swarm: &Swarm, kills: u32, interrupt: &Interrupt) -> anyhow::Result<Figures> {
    let load = swarm.programs.load.display().to_string();
    let replicas = REPLICAS.to_string();
    let head = ["service", "create", "--name", "web", "--replicas", &replicas, "-p", "8081:7001"];
    let options = ["--restart-delay", "0s", "--restart-max-attempts", "0"];
    swarm.manager().shoal(&[&head[..], &options, &["--", &load, "serve", "--conn", "7001"]].concat())?;
    running(swarm, None)?;
    let watch = Watch::start(directory, swarm)?;
    let mut figures = Figures::default();
    for number in 0..kills {
        interrupt.check()?;
        let tasks = running(swarm, None)?;
        let task = tasks.get(usize::try_from(number)? % tasks.len()).context("no task")?;
        figures.kill(swarm, &watch, task).with_context(|| format!("kill {number} ({})", task.name))?;
    }
    Ok(figures)
}

/// All tasks of the service, running; without one that was killed.
fn running(swarm: &Swarm, without: Option<&str>) -> anyhow::Result<Vec<Task>> {
    wait_for(&format!("{REPLICAS} running tasks"), PATIENCE, || {
        let mut tasks = swarm.manager().running_tasks("web").map_err(|error| format!("{error:#}"))?;
        tasks.retain(|task| Some(task.id.as_str()) != without);
        if tasks.len() == REPLICAS { Ok(tasks) } else { Err(format!("{} run", tasks.len())) }
    })
}

/// The address that published ports lead to.
fn address(task: &Task) -> anyhow::Result<Ipv4Addr> {
    Ok(task.attachment("ingress")?.v4)
}

impl Figures {
    fn kill(&mut self, swarm: &Swarm, watch: &Watch, task: &Task) -> anyhow::Result<()> {
        let own = swarm.nodes.iter().position(|node| node.name() == task.node).context("of which node?")?;
        // What is older is of the task's own beginning.
        while watch.events.try_recv().is_ok() {}
        let begin = now()?;
        kill(Pid::from_raw(task.process()?), Signal::SIGKILL)?;
        let out = watch.each_node(address(task)?, false, swarm.nodes.len())?;
        let others: Vec<f64> =
            out.iter().filter(|event| event.node != own).map(|event| ms(event.at_ns - begin)).collect();
        ensure!(out.iter().all(|event| event.at_ns > begin), "an event of before: {out:?}");
        self.own.extend(out.iter().filter(|event| event.node == own).map(|event| ms(event.at_ns - begin)));
        self.first.extend(others.first());
        self.last.extend(out.last().map(|event| ms(event.at_ns - begin)));
        let after = running(swarm, Some(&task.id))?;
        let fresh = after.iter().find(|other| other.name == task.name).context("not replaced")?;
        let into = watch.each_node(address(fresh)?, true, swarm.nodes.len())?;
        if let (Some(first), Some(last)) = (into.first(), into.last()) {
            self.spread_in.push(ms(last.at_ns - first.at_ns));
        }
        Ok(())
    }

    pub(super) fn report(&self) -> String {
        use std::fmt::Write as _;
        let mut text = format!("| three nodes, {} tasks killed, ms | p50 | p99 | most |\n", self.last.len());
        text += "|---|---:|---:|---:|\n";
        for (name, values) in [
            ("kill → out of the mesh on its own node", &self.own),
            ("kill → on the first other node", &self.first),
            ("kill → on all three", &self.last),
            ("a new task: first node → all three", &self.spread_in),
        ] {
            let at = |share| quantile(values.iter().copied(), share);
            // Writing to a string can't fail.
            let _ok = writeln!(text, "| {name} | {:.1} | {:.1} | {:.1} |", at(0.5), at(0.99), at(1.0));
        }
        text
    }
}
