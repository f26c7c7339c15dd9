//! `bench mesh`: a published port, by every path, in interleaved rounds.

use std::path::PathBuf;

use clap::ValueEnum;
use shoal_netns::{Programs, Residue, prefix, sweep_stale};

use super::measure::{Loader, measure, measure_programs};
use super::path::{Case, Path};
use super::report::{Column, Conditions, Figures, Missing};
use super::stage::{NotRun, Stage};
use super::{Args, Outcome, kernel_release, programs};
use crate::interrupt::Interrupt;
use crate::tools::{BENCH, FIXTURE, ensure_tools};

/// Rounds without a flag.
const ROUNDS: u32 = 5;

#[expect(clippy::print_stdout, reason = "a command line tool reports to its terminal")]
pub(crate) fn run(args: &Args, interrupt: &Interrupt) -> anyhow::Result<Outcome> {
    ensure_tools(FIXTURE.iter().chain(&BENCH))?;
    let directory = programs::build()?;
    let programs = Programs::in_directory(&directory)?;
    sweep_stale();
    let before = Residue::observe(&prefix());
    let paths = if args.paths.is_empty() { Path::value_variants() } else { &args.paths };
    let cpu = if args.free { None } else { Some(last_cpu()?) };
    let load = Loader { program: programs.load.clone(), cpu };
    let rounds = args.rounds.unwrap_or(ROUNDS);
    let (figures, not_run) = {
        let _autogroups = NoAutogroups::begin()?;
        let (stage, not_run) = Stage::set(paths, &load, &programs, interrupt)?;
        let paths: Vec<_> =
            paths.iter().copied().filter(|&path| not_run.iter().all(|not| not.path != path)).collect();
        let stats = args.stats.then(|| directory.join("examples/program_stats"));
        let effort = Effort { rounds, secs: args.secs, stats };
        let figures = measure_rounds(&stage, &paths, &load, &effort, interrupt);
        // Also when it is interrupted: daemons don't end with their handles.
        let struck = stage.strike();
        let figures = figures?;
        struck?;
        (figures, not_run)
    };
    drop(programs);
    Residue::ensure_none_since(&before, &prefix())?;
    let conditions =
        Conditions { kernel: kernel_release()?, guest: programs::guest(), pinned: !args.free, rounds };
    let missing: Vec<_> =
        not_run.iter().map(|not| Missing { path: not.path.name(), reason: not.reason.clone() }).collect();
    print!("{}", figures.report(&conditions, &missing));
    Ok(Outcome { document: figures.document(conditions, &missing)?, failure: failure(&not_run) })
}

/// How often and how long is measured.
struct Effort {
    rounds: u32,
    secs: f64,
    /// The program that counts what eBPF programs do, if that is asked for.
    stats: Option<PathBuf>,
}

/// Each path once in each round.
#[expect(clippy::print_stderr, reason = "a command line tool reports to its terminal")]
fn measure_rounds(
    stage: &Stage,
    paths: &[Path],
    load: &Loader,
    effort: &Effort,
    interrupt: &Interrupt,
) -> anyhow::Result<Figures<Path>> {
    let Effort { rounds, secs, stats } = effort;
    let mut figures = Figures::new();
    for round in 1..=*rounds {
        for case in Case::ALL {
            for &path in paths.iter().filter(|path| path.leads(case)) {
                interrupt.check()?;
                eprintln!("round {round} of {rounds}: {} {}", case.name(), path.name());
                let open = path.open(stage, case)?;
                let mut measured = measure(load, &open, *secs)?;
                if let Some(stats) = stats.as_ref().filter(|_| path.has_programs()) {
                    measured.extend(measure_programs(load, &open, stats, *secs)?);
                }
                for (metric, value) in measured {
                    figures.add(case, path, metric, value);
                }
            }
        }
    }
    Ok(figures)
}

/// Paths that should have had figures.
fn failure(not_run: &[NotRun]) -> Option<String> {
    let failed: Vec<_> = not_run.iter().filter(|path| !path.is_expected).map(|not| not.path.name()).collect();
    (!failed.is_empty()).then(|| format!("no figures for {}", failed.join(", ")))
}

/// Turns the scheduler's automatic groups off until it is dropped. A task of shoal has a session of its own and would
/// be scheduled as a group, the servers of the other paths would not; here each shall be a process like any other.
pub(super) struct NoAutogroups(Option<String>);

const AUTOGROUPS: &str = "/proc/sys/kernel/sched_autogroup_enabled";

impl NoAutogroups {
    pub(super) fn begin() -> anyhow::Result<Self> {
        // A kernel without them needs nothing.
        let Ok(before) = std::fs::read_to_string(AUTOGROUPS) else { return Ok(Self(None)) };
        std::fs::write(AUTOGROUPS, "0")?;
        Ok(Self(Some(before)))
    }
}

impl Drop for NoAutogroups {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            // It was writable a moment ago.
            drop(std::fs::write(AUTOGROUPS, before));
        }
    }
}

/// The last CPU: the first one has the machine's interrupts.
pub(super) fn last_cpu() -> anyhow::Result<usize> {
    Ok(std::thread::available_parallelism()?.get() - 1)
}
