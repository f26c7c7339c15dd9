//! Traffic as clients see it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::process::Output;

use anyhow::{Context, bail, ensure};
use serde::Deserialize;
use serde_json::Value;

use crate::command::{Process, Run};
use crate::host::Host;
use crate::node::Programs;
use crate::wait::slowness;

/// Who answered a series of questions, and whom they saw.
#[derive(Debug, Deserialize)]
pub struct Answers {
    /// Questions answered.
    pub ok: usize,
    /// Questions not answered.
    pub failed: usize,
    /// Why not.
    pub errors: Vec<String>,
    /// Answers by the host name of who gave them.
    pub hosts: BTreeMap<String, usize>,
    /// Client addresses the servers saw.
    pub peers: Vec<IpAddr>,
    /// What the kernel told the client it was connected to.
    pub connected: BTreeSet<SocketAddr>,
    /// Answers whose server also saw the client's own port.
    pub port_kept: usize,
    /// Answers to connections that began with a header of the PROXY protocol.
    pub headed: usize,
    /// What such headers said otherwise than the client's socket, which has its own address and the one it asked.
    pub misled: BTreeSet<String>,
    /// Connections without the header that should have had one, as the server knows of.
    pub headless: usize,
}

impl Answers {
    /// Fails unless every question was answered.
    pub fn complete(self) -> anyhow::Result<Self> {
        ensure!(
            self.failed == 0 && self.ok > 0,
            "{} of {} failed: {:?}",
            self.failed,
            self.failed + self.ok,
            self.errors
        );
        Ok(self)
    }
}

/// Asks a `whoami` server `count` times from a host, each time from another port.
pub fn ask(
    host: &Host,
    programs: &Programs,
    target: SocketAddr,
    udp: bool,
    count: usize,
) -> anyhow::Result<Answers> {
    ask_by(host.run(&programs.load), target, udp, count)
}

/// Asks as [`ask`] does with datagrams, from ports `first` on.
pub fn ask_from(
    host: &Host,
    programs: &Programs,
    target: SocketAddr,
    first: u16,
    count: usize,
) -> anyhow::Result<Answers> {
    asked(host.run(&programs.load), target, count, &["--udp", "--from-port", &first.to_string()])
}

/// As [`ask`], by `shoal-load` as it is started by `run`.
pub fn ask_by(run: Run, target: SocketAddr, udp: bool, count: usize) -> anyhow::Result<Answers> {
    asked(run, target, count, if udp { &["--udp"] } else { &[] })
}

/// As [`ask`] of a server that greets first, by `shoal-load` as it is started by `run`.
pub fn ask_greeted_by(run: Run, target: SocketAddr, count: usize) -> anyhow::Result<Answers> {
    asked(run, target, count, &["--greeted"])
}

/// Sends so many bytes up to a transfer server, and takes so many down from it, by `shoal-load` as it is started by `run`;
/// fails when one is missing or out of its place.
pub fn transfer_by(run: Run, target: SocketAddr, up: u64, down: u64) -> anyhow::Result<()> {
    let words = ["transfer", "--timeout-ms", "30000", "--target", &target.to_string()];
    let run = run.args(words).args(["--up", &up.to_string(), "--down", &down.to_string()]);
    let output = run.output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "{target}: {text}{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn asked(run: Run, target: SocketAddr, count: usize, more: &[&str]) -> anyhow::Result<Answers> {
    let run = run.args(["ask", "--target", &target.to_string(), "--count", &count.to_string()]);
    let output = run.args(more).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let error = String::from_utf8_lossy(&output.stderr);
    serde_json::from_str(&text).with_context(|| format!("asking {target}: {text}{error}"))
}

/// Traffic that runs until it is asked what it saw.
pub struct Traffic {
    process: Process,
}

impl Traffic {
    /// Numbered lines over so many connections to an echo server; fewer each second on slow machines.
    pub fn streams(
        host: &Host,
        programs: &Programs,
        target: SocketAddr,
        streams: u32,
    ) -> anyhow::Result<Self> {
        Self::streams_in(&host.netns_path(), programs, target, streams)
    }

    /// As [`Self::streams`], from a namespace.
    pub fn streams_in(
        netns: &std::path::Path,
        programs: &Programs,
        target: SocketAddr,
        streams: u32,
    ) -> anyhow::Result<Self> {
        let interval = (20 * slowness()).to_string();
        let mode =
            ["stream", "--streams", &streams.to_string(), "--interval-ms", &interval, "--timeout-ms", "8000"];
        Self::start_in(netns, programs, target, &mode)
    }

    /// New connections at a steady rate, lower on slow machines, one byte each way.
    pub fn connections(
        host: &Host,
        programs: &Programs,
        target: SocketAddr,
        per_second: u32,
    ) -> anyhow::Result<Self> {
        Self::start(
            host,
            programs,
            target,
            &["connect", "--rate", &(per_second / slowness()).max(1).to_string()],
        )
    }

    /// As [`Self::connections`], from a namespace.
    pub fn connections_in(
        netns: &std::path::Path,
        programs: &Programs,
        target: SocketAddr,
        per_second: u32,
    ) -> anyhow::Result<Self> {
        let rate = (per_second / slowness()).max(1).to_string();
        Self::start_in(netns, programs, target, &["connect", "--rate", &rate])
    }

    fn start(host: &Host, programs: &Programs, target: SocketAddr, mode: &[&str]) -> anyhow::Result<Self> {
        Self::from_run(host.run(&programs.load), target, mode)
    }

    /// What else the load generator can do, by its words, from a namespace.
    pub fn start_in(
        netns: &std::path::Path,
        programs: &Programs,
        target: SocketAddr,
        mode: &[&str],
    ) -> anyhow::Result<Self> {
        Self::from_run(Run::new(&programs.load).netns(netns), target, mode)
    }

    fn from_run(run: Run, target: SocketAddr, mode: &[&str]) -> anyhow::Result<Self> {
        let run = run.args(mode).args(["--target", &target.to_string(), "--until-eof"]);
        Ok(Self { process: run.stdin_piped().spawn_captured()? })
    }

    /// Ends it; what it saw, or an error if it wasn't all well.
    pub fn finish(self) -> anyhow::Result<Value> {
        let (line, output) = self.end()?;
        let text = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() {
            bail!("{line}: {}: {text}", output.status);
        }
        serde_json::from_str(&text).with_context(|| format!("{line} printed {text}"))
    }

    /// Ends it; what it saw, well or not.
    pub fn report(self) -> anyhow::Result<Value> {
        let (line, output) = self.end()?;
        let text = String::from_utf8_lossy(&output.stdout);
        serde_json::from_str(&text).with_context(|| format!("{line}: {}: printed {text}", output.status))
    }

    fn end(self) -> anyhow::Result<(String, Output)> {
        let line = self.process.command_line().to_owned();
        Ok((line, self.process.finish()?))
    }
}
