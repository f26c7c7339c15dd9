//! `bench cost`: what a packet costs in the programs, and that it costs the same with many services.

use std::fmt::Write as _;

use anyhow::Context;
use serde::Deserialize;
use serde_json::Value;
use shoal_netns::Run;

use super::{Outcome, programs};

/// A packet of a known flow, where programs are compiled.
const LIMIT_NS: f64 = 150.0;
/// What many services may add. (3 % is aimed at; a nanosecond more or less is the clock's.)
const SIMILAR: f64 = 1.1;

/// What the program that measures prints, as far as it is read here.
#[derive(Deserialize)]
struct Document {
    kernel: String,
    compiled: bool,
    few: u32,
    many: u32,
    costs: Vec<Cost>,
}

#[derive(Deserialize)]
struct Cost {
    packet: String,
    few_ns: f64,
    many_ns: f64,
}

#[expect(clippy::print_stdout, reason = "a command line tool reports to its terminal")]
pub(crate) fn run() -> anyhow::Result<Outcome> {
    let text = Run::new(programs::build()?.join("examples/program_cost")).stdout()?;
    let document: Value = serde_json::from_str(&text).with_context(|| format!("no JSON: {text}"))?;
    let figures: Document = serde_json::from_value(document.clone())?;
    println!("{}", figures.table());
    Ok(Outcome { document, failure: figures.failure() })
}

impl Document {
    fn table(&self) -> String {
        let how = if self.compiled { "compiled" } else { "interpreted" };
        let mut text = format!("cost on {}: programs {how}, nanoseconds a packet\n\n", self.kernel);
        // Writing to a string can't fail.
        let _ok = writeln!(text, "| packet | {} services | {} services | ratio |", self.few, self.many);
        text += "|---|---:|---:|---:|\n";
        for Cost { packet, few_ns, many_ns } in &self.costs {
            let ratio = many_ns / few_ns;
            let _ok = writeln!(text, "| {packet} | {few_ns:.0} | {many_ns:.0} | {ratio:.2} |");
        }
        text
    }

    /// What misses its target. An interpreter has none, and a guest's clock may be somebody else's time.
    fn failure(&self) -> Option<String> {
        if !self.compiled || programs::guest().is_some() {
            return None;
        }
        let mut missed = Vec::new();
        for Cost { packet, few_ns, many_ns } in &self.costs {
            if *few_ns > LIMIT_NS {
                missed.push(format!("{packet}: {few_ns:.0} ns"));
            }
            if *many_ns > *few_ns * SIMILAR {
                missed.push(format!("{packet}: {few_ns:.0} ns became {many_ns:.0} ns"));
            }
        }
        (!missed.is_empty()).then(|| missed.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(few_ns: f64, many_ns: f64) -> Option<String> {
        let costs = vec![Cost { packet: "known".into(), few_ns, many_ns }];
        Document { kernel: "6.18".into(), compiled: true, few: 10, many: 1000, costs }.failure()
    }

    #[test]
    fn a_packet_must_be_cheap_and_stay_so() {
        assert_eq!(failure(100.0, 103.0), None);
        assert_eq!(failure(160.0, 160.0).as_deref(), Some("known: 160 ns"));
        assert_eq!(failure(100.0, 130.0).as_deref(), Some("known: 100 ns became 130 ns"));
    }
}
