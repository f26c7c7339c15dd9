//! `bench mesh`: a published port, by every path, in interleaved rounds.

use clap::ValueEnum;
use shoal_netns::{Residue, prefix, sweep_stale};

use super::Args;
use super::chain::Chain;
use super::measure::{Loader, measure};
use super::nodes::Nodes;
use super::path::{Case, Path, Stage};
use super::report::Figures;
use crate::build_ebpf;
use crate::test::build_programs;
use crate::tools::{BENCH, FIXTURE, build_load_generator, ensure_tools};

#[expect(clippy::print_stdout, clippy::print_stderr, reason = "a command line tool reports to its terminal")]
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    ensure_tools(FIXTURE.iter().chain(&BENCH))?;
    let program = build_load_generator()?;
    sweep_stale();
    let before = Residue::observe(&prefix());
    let paths = if args.paths.is_empty() { Path::value_variants() } else { &args.paths };
    let cpu = if args.free { None } else { Some(last_cpu()?) };
    let load = Loader { program, cpu };
    let with_shoal = paths.contains(&Path::Ebpf);
    if with_shoal {
        build_ebpf::run(&build_ebpf::Args::default())?;
        build_programs()?;
    }
    let mut figures = Figures::default();
    {
        let _autogroups = NoAutogroups::begin()?;
        let nodes = if with_shoal { Some(Nodes::start(&load)?) } else { None };
        let stage = Stage { chain: Chain::new(&load.program, cpu)?, nodes };
        for round in 1..=args.rounds {
            for case in Case::ALL {
                for &path in paths {
                    eprintln!("round {round} of {}: {} {}", args.rounds, case.name(), path.name());
                    let open = path.open(&stage, case)?;
                    for (metric, value) in measure(&load, &open, args.secs)? {
                        figures.add(case, path, metric, value);
                    }
                }
            }
        }
        if let Some(nodes) = stage.nodes {
            nodes.dissolve()?;
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

/// Turns the scheduler's automatic groups off until it is dropped. A task of shoal has a session of its own and would
/// be scheduled as a group, the servers of the other paths would not; here each shall be a process like any other.
struct NoAutogroups(Option<String>);

const AUTOGROUPS: &str = "/proc/sys/kernel/sched_autogroup_enabled";

impl NoAutogroups {
    fn begin() -> anyhow::Result<Self> {
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
fn last_cpu() -> anyhow::Result<usize> {
    Ok(std::thread::available_parallelism()?.get() - 1)
}
