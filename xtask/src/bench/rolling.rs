//! `bench rolling`: replacing every task of a service, again and again, under load that must not notice.
//!
//! What counts are requests and streams, not seconds: it may run on a busy machine, in a guest as well.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::ensure;
use serde::Serialize;
use serde_json::Value;
use shoal_netns::{Programs, Swarm, Task, Traffic, slowness, wait_for};

use super::{Args, Outcome, kernel_release, programs};
use crate::interrupt::Interrupt;
use crate::tools::{FIXTURE, ensure_tools};

/// Updates without a flag.
const UPDATES: u32 = 5;
const REPLICAS: usize = 10;
/// Requests a second, all targets together.
const REQUESTS: u32 = 1000;
/// Streams, all targets together.
const STREAMS: u32 = 200;
/// Where the replaced service answers, and the one beside it that the streams go to: their server must live as long.
const WEB: u16 = 8081;
const BESIDE: u16 = 8192;
const PATIENCE: Duration = Duration::from_mins(3);

/// What came out.
#[derive(Default, Serialize)]
struct Figures {
    bench: &'static str,
    kernel: String,
    updates: u32,
    replaced: usize,
    /// Seconds that an update took; the median.
    update_secs: f64,
    requests: u64,
    failed_requests: u64,
    p50_us: f64,
    p99_us: f64,
    streams: u64,
    lines: u64,
    broken_streams: u64,
    /// Longest time that an answer on a stream took, ms.
    worst_line_ms: u64,
}

#[expect(clippy::print_stdout, reason = "a command line tool reports to its terminal")]
pub(crate) fn run(args: &Args, interrupt: &Interrupt) -> anyhow::Result<Outcome> {
    ensure_tools(FIXTURE.iter())?;
    let programs = Programs::in_directory(&programs::build()?)?;
    let swarm = Swarm::three(&programs)?;
    create(&swarm)?;
    let load = Load::start(&swarm)?;
    let updated = replace_all(&swarm, args.rounds.unwrap_or(UPDATES), interrupt);
    // Also when an update failed: the load must end before its swarm does.
    let figures = load.finish();
    let dissolved = swarm.dissolve();
    let updated = updated?;
    let mut figures = figures?;
    dissolved?;
    (figures.updates, figures.replaced, figures.update_secs) = updated;
    figures.kernel = kernel_release()?;
    println!("{}", figures.report());
    Ok(Outcome { document: serde_json::to_value(&figures)?, failure: figures.failure() })
}

fn create(swarm: &Swarm) -> anyhow::Result<()> {
    let manager = swarm.manager();
    manager.shoal(&["network", "create", "front"])?;
    let load = swarm.programs.load.display().to_string();
    let serve = |flags: &[&str], servers: &[&str]| {
        let head = ["service", "create", "--network", "front"];
        manager.shoal(&[&head[..], flags, &["--", &load, "serve"], servers].concat())
    };
    let (replicas, web, beside) = (REPLICAS.to_string(), format!("{WEB}:7001"), format!("{BESIDE}:7002"));
    let flags = ["--name", "web", "--replicas", &replicas, "-p", &web, "--update-parallelism", "2"];
    let health = ["--health-http", "7003", "--health-interval", "500ms"];
    serve(&[&flags[..], &health].concat(), &["--conn", "7001", "--health", "7003"])?;
    serve(&["--name", "beside", "--mode", "global", "-p", &beside], &["--echo", "7002"])?;
    Ok(())
}

/// Replaces all tasks so many times: how often, how many tasks, and the median of the seconds it took.
#[expect(clippy::print_stderr, reason = "a command line tool reports to its terminal")]
fn replace_all(swarm: &Swarm, updates: u32, interrupt: &Interrupt) -> anyhow::Result<(u32, usize, f64)> {
    let mut replaced = 0;
    let mut seconds = Vec::new();
    let mut before = running(swarm)?;
    for update in 1..=updates {
        interrupt.check()?;
        let start = Instant::now();
        swarm.manager().shoal(&["service", "update", "--force", "web"])?;
        seconds.push(start.elapsed().as_secs_f64());
        let after = running(swarm)?;
        let kept = after.iter().filter(|task| before.iter().any(|other| other.id == task.id)).count();
        ensure!(kept == 0, "update {update} left {kept} tasks in place");
        replaced += after.len();
        before = after;
        eprintln!("update {update} of {updates}: {:.1} s", start.elapsed().as_secs_f64());
    }
    seconds.sort_by(f64::total_cmp);
    Ok((updates, replaced, seconds.get(seconds.len() / 2).copied().unwrap_or_default()))
}

/// The tasks that run, all of them.
fn running(swarm: &Swarm) -> anyhow::Result<Vec<Task>> {
    wait_for(&format!("{REPLICAS} running tasks"), PATIENCE, || {
        let tasks = swarm.manager().running_tasks("web").map_err(|error| format!("{error:#}"))?;
        if tasks.len() == REPLICAS { Ok(tasks) } else { Err(format!("{} run", tasks.len())) }
    })
}

/// Requests and streams through every node, by both families.
struct Load {
    requests: Vec<Traffic>,
    streams: Vec<Traffic>,
}

impl Load {
    fn start(swarm: &Swarm) -> anyhow::Result<Self> {
        running(swarm)?;
        let addresses: Vec<_> = swarm.nodes.iter().flat_map(|node| node.place.addresses()).collect();
        let targets = u32::try_from(addresses.len())?;
        let netns = swarm.client.netns_path();
        let mut load = Self { requests: Vec::new(), streams: Vec::new() };
        for address in addresses {
            load.requests.push(requests(
                &netns,
                swarm,
                SocketAddr::new(address, WEB),
                REQUESTS / targets + 1,
            )?);
            let target = SocketAddr::new(address, BESIDE);
            load.streams.push(Traffic::streams_in(
                &netns,
                &swarm.programs,
                target,
                STREAMS.div_ceil(targets),
            )?);
        }
        Ok(load)
    }

    /// Ends it and adds up what it saw.
    fn finish(self) -> anyhow::Result<Figures> {
        let mut figures = Figures { bench: "rolling", ..Figures::default() };
        let number = |report: &Value, field: &str| report[field].as_u64().unwrap_or_default();
        for traffic in self.requests {
            let report = traffic.report()?;
            figures.requests += number(&report, "ok");
            figures.failed_requests += number(&report, "failed");
            // Of the slowest way.
            figures.p50_us = figures.p50_us.max(report["p50_us"].as_f64().unwrap_or_default());
            figures.p99_us = figures.p99_us.max(report["p99_us"].as_f64().unwrap_or_default());
        }
        for traffic in self.streams {
            let report = traffic.report()?;
            figures.streams += number(&report, "streams");
            figures.lines += number(&report, "lines");
            figures.broken_streams += number(&report, "broken");
            figures.worst_line_ms = figures.worst_line_ms.max(number(&report, "worst_ms"));
        }
        ensure!(figures.requests > 0 && figures.lines > 0, "there was no load");
        Ok(figures)
    }
}

/// Connections at a rate from several workers, so that a slow one does not hold up the others.
fn requests(netns: &Path, swarm: &Swarm, target: SocketAddr, rate: u32) -> anyhow::Result<Traffic> {
    let rate = (rate / slowness()).max(1).to_string();
    Traffic::start_in(netns, &swarm.programs, target, &["connect", "--workers", "4", "--rate", &rate])
}

impl Figures {
    fn report(&self) -> String {
        format!(
            "rolling on {}: {} updates, {} tasks replaced, {:.1} s an update (median)\n\n\
             | | made | failed | p50 µs | p99 µs |\n|---|---:|---:|---:|---:|\n\
             | requests | {} | {} | {:.0} | {:.0} |\n\n\
             | | open | broken | lines | worst answer, ms |\n|---|---:|---:|---:|---:|\n\
             | streams | {} | {} | {} | {} |\n",
            self.kernel,
            self.updates,
            self.replaced,
            self.update_secs,
            self.requests,
            self.failed_requests,
            self.p50_us,
            self.p99_us,
            self.streams,
            self.broken_streams,
            self.lines,
            self.worst_line_ms
        )
    }

    fn failure(&self) -> Option<String> {
        let lost = self.failed_requests + self.broken_streams;
        (lost > 0).then(|| {
            format!("{} requests failed, {} streams broke", self.failed_requests, self.broken_streams)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_single_loss_is_a_failure() {
        assert_eq!(Figures::default().failure(), None);
        let one = Figures { broken_streams: 1, ..Figures::default() };
        assert_eq!(one.failure().as_deref(), Some("0 requests failed, 1 streams broke"));
    }
}
