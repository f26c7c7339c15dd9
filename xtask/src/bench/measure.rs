//! One measurement of one path.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::Value;
use shoal_netns::wait_for;

use super::path::Open;

/// What is measured.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Metric {
    Tcp1Gbps,
    Tcp4Gbps,
    Conn1Rate,
    Conn8Rate,
    RrRate,
    RrP50Us,
    RrP99Us,
    /// Of a new connection, in eBPF programs.
    ConnProgramsUs,
    /// Of a new connection, runs of eBPF programs.
    ConnRuns,
}

impl Metric {
    pub(crate) const ALL: [Self; 9] = [
        Self::Tcp1Gbps,
        Self::Tcp4Gbps,
        Self::Conn1Rate,
        Self::Conn8Rate,
        Self::RrRate,
        Self::RrP50Us,
        Self::RrP99Us,
        Self::ConnProgramsUs,
        Self::ConnRuns,
    ];

    /// Its name in the JSON.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Tcp1Gbps => "tcp1_gbps",
            Self::Tcp4Gbps => "tcp4_gbps",
            Self::Conn1Rate => "conn1_rate",
            Self::Conn8Rate => "conn8_rate",
            Self::RrRate => "rr_rate",
            Self::RrP50Us => "rr_p50_us",
            Self::RrP99Us => "rr_p99_us",
            Self::ConnProgramsUs => "conn_programs_us",
            Self::ConnRuns => "conn_runs",
        }
    }

    /// Its name for people.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Tcp1Gbps => "TCP 1 stream, Gbit/s",
            Self::Tcp4Gbps => "TCP 4 streams, Gbit/s",
            Self::Conn1Rate => "new connections/s, 1 worker",
            Self::Conn8Rate => "new connections/s, 8 workers",
            Self::RrRate => "requests/s, one connection",
            Self::RrP50Us => "p50 of a request, µs",
            Self::RrP99Us => "p99 of a request, µs",
            Self::ConnProgramsUs => "of a new connection in programs, µs",
            Self::ConnRuns => "… runs of programs",
        }
    }

    /// Digits after the point worth reading.
    pub(crate) fn digits(self) -> usize {
        match self {
            Self::Conn1Rate | Self::Conn8Rate | Self::RrRate => 0,
            Self::Tcp1Gbps
            | Self::Tcp4Gbps
            | Self::RrP50Us
            | Self::RrP99Us
            | Self::ConnProgramsUs
            | Self::ConnRuns => 1,
        }
    }
}

const PATIENCE: Duration = Duration::from_secs(20);
/// A request that takes this long waited for something: a retransmission takes 200 ms at least.
const STALL: Duration = Duration::from_millis(150);

/// What makes the load, and where it runs.
pub(crate) struct Loader {
    pub(crate) program: PathBuf,
    pub(crate) cpu: Option<usize>,
}

/// Measures everything on one path; one value per metric.
pub(crate) fn measure(load: &Loader, path: &Open<'_>, secs: f64) -> anyhow::Result<Vec<(Metric, f64)>> {
    let connect =
        |workers: &str| generate(load, path, &["connect", "--workers", workers], path.ports.conn, secs);
    let requests = generate(load, path, &["rr"], path.ports.echo, secs)?;
    Ok(vec![
        (Metric::Tcp1Gbps, throughput(load, path, 1, secs)?),
        (Metric::Tcp4Gbps, throughput(load, path, 4, secs)?),
        (Metric::Conn1Rate, number(&connect("1")?, "rate")?),
        (Metric::Conn8Rate, number(&connect("8")?, "rate")?),
        (Metric::RrRate, number(&requests, "rate")?),
        (Metric::RrP50Us, number(&requests, "p50_us")?),
        (Metric::RrP99Us, number(&requests, "p99_us")?),
    ])
}

/// What eBPF programs have of a new connection (8 workers), in a run of its own, as counting makes it slower.
pub(crate) fn measure_programs(
    load: &Loader,
    path: &Open<'_>,
    stats: &Path,
    secs: f64,
) -> anyhow::Result<Vec<(Metric, f64)>> {
    let target = format!("{}:{}", path.address, path.ports.conn);
    let run = path.client.run(stats).args([&load.program]).args(["connect", "--workers", "8"]);
    let text = run.args(["--target", &target, "--secs", &secs.to_string()]).cpu(load.cpu).stdout()?;
    let value: Value = serde_json::from_str(&text).with_context(|| format!("not as expected: {text}"))?;
    let connections = number(&value["told"], "rate")? * secs;
    let programs = value["programs"].as_array().context("programs")?;
    let sum = |field| programs.iter().map(|program| number(program, field)).sum::<anyhow::Result<f64>>();
    Ok(vec![
        (Metric::ConnProgramsUs, sum("ns")? / 1e3 / connections),
        (Metric::ConnRuns, sum("runs")? / connections),
    ])
}

fn generate(load: &Loader, path: &Open<'_>, mode: &[&str], port: u16, secs: f64) -> anyhow::Result<Value> {
    let target = format!("{}:{port}", path.address);
    let measure = || -> anyhow::Result<Value> {
        let run = path.client.run(&load.program).args(mode).args(["--target", &target]);
        let text = run.args(["--secs", &secs.to_string()]).cpu(load.cpu).stdout()?;
        serde_json::from_str(&text).with_context(|| format!("shoal-load {mode:?} printed {text}"))
    };
    // A guest that its host forgets for a second gets nothing done in one. That must not cost a whole run.
    let report = measure().or_else(|error| {
        say(&format!("measuring again after: {error:#}"));
        measure()
    })?;
    match report["max_us"].as_f64() {
        Some(longest) if longest > STALL.as_secs_f64() * 1e6 => {
            say(&format!(
                "{mode:?}: one took {:.0} ms: a packet was lost, or the machine busy",
                longest / 1e3
            ));
        }
        _ => {}
    }
    Ok(report)
}

#[expect(clippy::print_stderr, reason = "a command line tool reports to its terminal")]
fn say(line: &str) {
    eprintln!("{line}");
}

fn throughput(load: &Loader, path: &Open<'_>, streams: u32, secs: f64) -> anyhow::Result<f64> {
    // iperf3 takes whole seconds.
    let arguments = format!("-c {} -p {} -P {streams} -t {} -J", path.address, path.ports.iperf, secs.ceil());
    // The server takes one client at a time and needs a moment between two.
    wait_for("iperf3 to measure", PATIENCE, || {
        let run = path.client.run("iperf3").args(arguments.split(' ')).cpu(load.cpu);
        let output = run.output().map_err(|error| format!("{error:#}"))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let report: Value = serde_json::from_str(&text).map_err(|error| format!("{error}: {text}"))?;
        let received = &report["end"]["sum_received"]["bits_per_second"];
        received.as_f64().ok_or_else(|| report["error"].to_string())
    })
    .map(|bits| bits / 1e9)
}

fn number(report: &Value, field: &str) -> anyhow::Result<f64> {
    match report[field].as_f64() {
        Some(number) => Ok(number),
        None => bail!("no number '{field}' in {report}"),
    }
}
