//! `bench scale`: how fast nodes are programmed. One agent, from nothing and one endpoint at a time, with few services
//! and with many; and three nodes, from the end of a task to the last node that leads nobody to it.

mod swarm;

use std::fmt::Write as _;

use anyhow::Context;
use serde::{Deserialize, Serialize};
use shoal_netns::Run;

use super::{Args, Outcome, programs};
use crate::interrupt::Interrupt;
use crate::tools::{FIXTURE, ensure_tools};

/// Services of each agent.
const SERVICES: [u32; 3] = [10, 1_000, 10_000];

#[derive(Serialize)]
struct Document {
    bench: &'static str,
    kernel: String,
    agents: Vec<Agent>,
    swarm: swarm::Figures,
}

/// What the program that measures an agent prints.
#[derive(Deserialize, Serialize)]
struct Agent {
    services: u32,
    endpoints: u32,
    fill: Fill,
    changes: Vec<Change>,
    idle_ms_per_s: f64,
    memory: Memory,
}

#[derive(Deserialize, Serialize)]
struct Fill {
    ms: f64,
    ledger_ms: f64,
    writes: u64,
}

#[derive(Deserialize, Serialize)]
struct Change {
    out: bool,
    ms: f64,
    ledger_ms: f64,
    pass_ms: f64,
    writes: u64,
}

#[derive(Deserialize, Serialize)]
struct Memory {
    idle: u64,
    full: u64,
    filling: u64,
    looking: u64,
}

#[expect(clippy::print_stdout, reason = "a command line tool reports to its terminal")]
pub(crate) fn run(args: &Args, interrupt: &Interrupt) -> anyhow::Result<Outcome> {
    ensure_tools(FIXTURE.iter())?;
    let directory = programs::build()?;
    let kernel = super::kernel_release()?;
    let mut agents = Vec::new();
    for services in SERVICES {
        interrupt.check()?;
        let program = directory.join("examples/scale");
        let text = Run::new(program).args(["--services", &services.to_string()]).stdout()?;
        let agent: Agent = serde_json::from_str(&text).with_context(|| format!("not as expected: {text}"))?;
        agents.push(agent);
    }
    let swarm = swarm::measure(&directory, args.rounds, interrupt)?;
    let document = Document { bench: "scale", kernel, agents, swarm };
    println!("{}", document.report());
    Ok(Outcome { document: serde_json::to_value(&document)?, failure: None })
}

/// The value below which a share of the values lies.
fn quantile(values: impl Iterator<Item = f64>, share: f64) -> f64 {
    let mut sorted: Vec<f64> = values.collect();
    sorted.sort_by(f64::total_cmp);
    #[expect(clippy::cast_precision_loss, reason = "few values")]
    let place = (sorted.len().saturating_sub(1)) as f64 * share;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "within the values")]
    let place = place.ceil() as usize;
    sorted.get(place).copied().unwrap_or_default()
}

/// One line of the table of agents: what it is, and how to read it from one.
type Row = (&'static str, fn(&Agent) -> f64, usize);

const ROWS: [Row; 13] = [
    ("from nothing, ms", |agent| agent.fill.ms, 0),
    ("… of it the ledger, ms", |agent| agent.fill.ledger_ms, 0),
    ("… writes to the kernel", |agent| whole(agent.fill.writes), 0),
    ("one endpoint, ms (median)", |agent| agent.change(0.5, |change| change.ms), 2),
    ("one endpoint, ms (p95)", |agent| agent.change(0.95, |change| change.ms), 2),
    ("… of it the ledger (median)", |agent| agent.change(0.5, |change| change.ledger_ms), 2),
    ("… the pass (median)", |agent| agent.change(0.5, |change| change.pass_ms), 2),
    ("… writes to the kernel (most)", |agent| agent.change(1.0, |change| whole(change.writes)), 0),
    ("CPU when idle, ms a second", |agent| agent.idle_ms_per_s, 1),
    ("memory when empty, MiB", |agent| mib(agent.memory.idle), 1),
    ("memory when programmed, MiB", |agent| mib(agent.memory.full), 1),
    ("memory at most until then, MiB", |agent| mib(agent.memory.filling), 1),
    ("memory at most after, MiB", |agent| mib(agent.memory.looking), 1),
];

#[expect(clippy::cast_precision_loss, reason = "far below what a double holds")]
fn whole(number: u64) -> f64 {
    number as f64
}

fn mib(kib: u64) -> f64 {
    whole(kib) / 1024.0
}

impl Agent {
    fn change(&self, share: f64, figure: fn(&Change) -> f64) -> f64 {
        quantile(self.changes.iter().map(figure), share)
    }
}

impl Document {
    fn report(&self) -> String {
        let mut text = format!("scale on {}\n\n| one agent |", self.kernel);
        for Agent { services, endpoints, .. } in &self.agents {
            // Writing to a string can't fail.
            let _ok = write!(text, " {services} × {endpoints} |");
        }
        text += " last to first |\n|---|";
        text += &"---:|".repeat(self.agents.len() + 1);
        text.push('\n');
        for (name, figure, digits) in ROWS {
            let _ok = write!(text, "| {name} |");
            for agent in &self.agents {
                let _ok = write!(text, " {:.digits$} |", figure(agent));
            }
            let ratio = match (self.agents.first(), self.agents.last()) {
                (Some(first), Some(last)) if figure(first) > 0.0 => figure(last) / figure(first),
                _ => 1.0,
            };
            let _ok = writeln!(text, " {ratio:.1} |");
        }
        text + "\n" + &self.swarm.report()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_one_of_the_values() {
        let values = || (1..=100).map(f64::from);
        assert!((quantile(values(), 0.5) - 51.0).abs() < 1e-9);
        assert!((quantile(values(), 0.99) - 100.0).abs() < 1e-9);
        assert!((quantile(values(), 0.0) - 1.0).abs() < 1e-9);
        assert!(quantile(std::iter::empty(), 0.5).abs() < 1e-9);
    }

    #[test]
    fn the_table_has_a_line_for_each_figure() {
        let agent = |services, ms| Agent {
            services,
            endpoints: 10,
            fill: Fill { ms, ledger_ms: 1.0, writes: 5 },
            changes: vec![Change { out: true, ms: 1.0, ledger_ms: 0.5, pass_ms: 0.2, writes: 37 }],
            idle_ms_per_s: 0.0,
            memory: Memory { idle: 1024, full: 2048, filling: 8192, looking: 4096 },
        };
        let document = Document {
            bench: "scale",
            kernel: "6.18".into(),
            agents: vec![agent(10, 20.0), agent(10_000, 1_000.0)],
            swarm: swarm::Figures::default(),
        };
        let report = document.report();
        assert!(report.contains("| one agent | 10 × 10 | 10000 × 10 | last to first |"), "{report}");
        assert!(report.contains("| from nothing, ms | 20 | 1000 | 50.0 |"), "{report}");
        assert!(report.contains("| memory at most after, MiB | 4.0 | 4.0 | 1.0 |"), "{report}");
        let value: serde_json::Value = serde_json::to_value(&document).expect("JSON");
        assert_eq!(value["agents"][1]["changes"][0]["writes"], 37);
    }
}
