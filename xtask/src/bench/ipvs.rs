//! `bench ipvs`: how fast the IPVS driver programs the kernel, and that one change costs the same in any table.

use std::fmt::Write as _;

use anyhow::Context;
use serde::Deserialize;
use serde_json::{Value, json};
use shoal_netns::Run;

use super::{Outcome, lacks_ipvs, programs};

/// A large table from nothing, in user-mode Linux.
const TARGET_MS: f64 = 2000.0;
/// A change may take this many times as long in a large table as in a small one: other work on the machine.
const SIMILAR: f64 = 3.0;

/// What the program that measures prints, as far as it is read here.
#[derive(Deserialize)]
struct Document {
    kernel: String,
    destinations: u32,
    fills: Vec<Fill>,
    changes: Vec<Change>,
}

#[derive(Deserialize)]
struct Fill {
    services: u32,
    scheduler: String,
    ms: f64,
    writes: u64,
    unchanged_ms: f64,
}

#[derive(Deserialize)]
struct Change {
    services: u32,
    scheduler: String,
    #[serde(rename = "change")]
    what: String,
    us: f64,
    writes: u64,
}

#[expect(clippy::print_stdout, reason = "a command line tool reports to its terminal")]
pub(crate) fn run() -> anyhow::Result<Outcome> {
    if let Some(reason) = lacks_ipvs() {
        println!("ipvs: not run: {reason}");
        return Ok(Outcome { document: json!({ "bench": "ipvs", "not_run": reason }), failure: None });
    }
    let text = Run::new(programs::build()?.join("examples/ipvs_scale")).stdout()?;
    let document: Value = serde_json::from_str(&text).with_context(|| format!("no JSON: {text}"))?;
    let figures: Document = serde_json::from_value(document.clone())?;
    println!("{}", figures.tables());
    Ok(Outcome { document, failure: figures.failure() })
}

impl Document {
    fn tables(&self) -> String {
        let mut text = format!("ipvs on {}: {} destinations per service\n\n", self.kernel, self.destinations);
        text += "| table from nothing | services | ms | writes | again, unchanged, ms |\n";
        text += "|---|---:|---:|---:|---:|\n";
        for Fill { services, scheduler, ms, writes, unchanged_ms } in &self.fills {
            // Writing to a string can't fail.
            let _ok = writeln!(text, "| {scheduler} | {services} | {ms:.0} | {writes} | {unchanged_ms:.0} |");
        }
        text += "\n| one change | scheduler | services | µs | writes |\n|---|---|---:|---:|---:|\n";
        for Change { services, scheduler, what, us, writes } in &self.changes {
            let _ok = writeln!(text, "| {what} | {scheduler} | {services} | {us:.0} | {writes} |");
        }
        text
    }

    /// What misses its target.
    fn failure(&self) -> Option<String> {
        let mut missed = Vec::new();
        for small in &self.changes {
            if small.writes == 0 {
                missed.push(format!("{} with {}: nothing was written", small.what, small.scheduler));
            }
            let same = |large: &&Change| {
                (&large.scheduler, &large.what) == (&small.scheduler, &small.what)
                    && large.services > small.services
            };
            for large in self.changes.iter().filter(same) {
                let what = format!("{} with {}", small.what, small.scheduler);
                if large.writes != small.writes {
                    missed.push(format!("{what}: {} writes became {}", small.writes, large.writes));
                }
                if large.us > small.us * SIMILAR {
                    missed.push(format!("{what}: {} µs became {} µs", small.us, large.us));
                }
            }
        }
        if programs::guest().as_deref() == Some("uml") {
            let slow = self.fills.iter().filter(|fill| fill.scheduler == "rr" && fill.ms > TARGET_MS);
            missed.extend(slow.map(|fill| format!("{} services took {} ms", fill.services, fill.ms)));
        }
        (!missed.is_empty()).then(|| missed.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(services: u32, us: f64, writes: u64) -> Change {
        Change { services, scheduler: "rr".into(), what: "add".into(), us, writes }
    }

    fn failure(changes: Vec<Change>) -> Option<String> {
        Document { kernel: "6.1".into(), destinations: 10, fills: Vec::new(), changes }.failure()
    }

    #[test]
    fn a_change_must_be_written() {
        assert!(failure(vec![changed(10, 20.0, 0)]).is_some());
    }

    #[test]
    fn a_change_must_cost_the_same_in_a_large_table() {
        assert_eq!(failure(vec![changed(10, 20.0, 1), changed(1000, 30.0, 1)]), None);
        let more = failure(vec![changed(10, 20.0, 1), changed(1000, 20.0, 2)]).unwrap();
        assert_eq!(more, "add with rr: 1 writes became 2");
        let slower = failure(vec![changed(10, 20.0, 1), changed(1000, 2000.0, 1)]).unwrap();
        assert_eq!(slower, "add with rr: 20 µs became 2000 µs");
    }
}
