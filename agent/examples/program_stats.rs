//! Runs a program and tells, as JSON, what eBPF programs at devices did meanwhile on this machine: how often each ran, and for
//! how long. Needs root.
//!
//! For `cargo xtask bench mesh --stats`. The kernel reads its clock twice for each run while it counts (`BPF_ENABLE_STATS`),
//! which makes what is counted slower.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};
use aya::programs::loaded_programs;
use aya::sys::{Stats, enable_stats};
use clap::Parser;
use serde_json::{Value, json};

/// `BPF_PROG_TYPE_SCHED_CLS`.
const CLASSIFIER: u32 = 3;

#[derive(Parser)]
struct Args {
    /// What to run; it prints JSON
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// Runs of a program.
#[derive(Clone, Copy, Default)]
struct Runs {
    count: u64,
    /// Nanoseconds.
    time: u128,
}

#[expect(clippy::print_stdout, reason = "the figures are what it is for")]
fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let (program, rest) = args.command.split_first().context("a command")?;
    // Until it is closed.
    let _counting = enable_stats(Stats::RunTime).context("count runs of programs")?;
    let before = runs();
    let output = Command::new(program).args(rest).stderr(Stdio::inherit()).output().context("run it")?;
    let after = runs();
    ensure!(output.status.success(), "{program}: {}", output.status);
    let told: Value = serde_json::from_slice(&output.stdout).with_context(|| format!("JSON of {program}"))?;
    let mut programs: BTreeMap<&str, Runs> = BTreeMap::new();
    for (id, (name, now)) in &after {
        // Those that came meanwhile began at nothing.
        let then = before.get(id).map(|(_, then)| *then).unwrap_or_default();
        let runs = programs.entry(name).or_default();
        runs.count += now.count.saturating_sub(then.count);
        runs.time += now.time.saturating_sub(then.time);
    }
    programs.retain(|_, runs| runs.count > 0);
    let programs =
        programs.iter().map(|(name, runs)| json!({ "name": name, "runs": runs.count, "ns": runs.time }));
    let programs: Vec<_> = programs.collect();
    println!("{}", json!({ "told": told, "programs": programs }));
    Ok(())
}

/// All programs at devices, by their numbers.
fn runs() -> BTreeMap<u32, (String, Runs)> {
    let mut runs = BTreeMap::new();
    for info in loaded_programs() {
        // One may have gone since its number was told.
        let Ok(info) = info else { continue };
        if info.program_type() as u32 == CLASSIFIER {
            let name = info.name_as_str().unwrap_or("unnamed").to_owned();
            runs.insert(
                info.id(),
                (name, Runs { count: info.run_count(), time: info.run_time().as_nanos() }),
            );
        }
    }
    runs
}
