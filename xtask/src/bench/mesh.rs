//! `bench mesh`: a published port, by every path, in interleaved rounds.

use clap::ValueEnum;
use shoal_netns::{Residue, prefix, sweep_stale};

use super::Args;
use super::chain::Chain;
use super::measure::measure;
use super::path::{Case, Path};
use super::report::Figures;
use crate::tools::{BENCH, FIXTURE, build_load_generator, ensure_tools};

#[expect(clippy::print_stdout, clippy::print_stderr, reason = "a command line tool reports to its terminal")]
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    ensure_tools(FIXTURE.iter().chain(&BENCH))?;
    let load = build_load_generator()?;
    sweep_stale();
    let before = Residue::observe(&prefix());
    let paths = if args.paths.is_empty() { Path::value_variants() } else { &args.paths };
    let cpu = if args.free { None } else { Some(last_cpu()?) };
    let mut figures = Figures::default();
    {
        let chain = Chain::new(&load, cpu)?;
        for round in 1..=args.rounds {
            for case in Case::ALL {
                for &path in paths {
                    eprintln!("round {round} of {}: {} {}", args.rounds, case.name(), path.name());
                    let open = path.open(&chain, case)?;
                    for (metric, value) in measure(&chain, &open, args.secs)? {
                        figures.add(case, path, metric, value);
                    }
                }
            }
        }
    }
    Residue::ensure_none_since(&before, &prefix())?;
    if let Some(file) = &args.json {
        std::fs::write(file, figures.json(!args.free, args.rounds)?)?;
    }
    let place = if args.free { "free-running" } else { "the whole path pinned to one CPU" };
    println!("mesh: {place}, medians of {} rounds, in brackets the ratio to routed\n", args.rounds);
    print!("{}", figures.table(paths, Path::Routed));
    Ok(())
}

/// The last CPU: the first one has the machine's interrupts.
fn last_cpu() -> anyhow::Result<usize> {
    Ok(std::thread::available_parallelism()?.get() - 1)
}
