//! `bench vip`: a service asked by its virtual IP, beside the same endpoint asked by its own address.
//!
//! The client is a program of a task on node A, the services have one endpoint each: on node B (remote) and on A (local).

use shoal_netns::{Programs, Residue, prefix, sweep_stale};

use super::measure::{Loader, measure};
use super::mesh::{NoAutogroups, last_cpu};
use super::nodes::{Engine, Nodes};
use super::path::{Case, Target};
use super::report::{Column, Conditions, Figures};
use super::{Args, Outcome, kernel_release, programs};
use crate::interrupt::Interrupt;
use crate::tools::{BENCH, FIXTURE, ensure_tools};

/// Rounds without a flag.
const ROUNDS: u32 = 9;

impl Column for Target {
    const BENCH: &str = "vip";
    const REFERENCE: Self = Self::Endpoint;
    const REPLACED: Option<Self> = None;

    fn name(self) -> &'static str {
        match self {
            Self::Endpoint => "endpoint",
            Self::Vip => "vip",
        }
    }
}

#[expect(clippy::print_stdout, reason = "a command line tool reports to its terminal")]
pub(crate) fn run(args: &Args, interrupt: &Interrupt) -> anyhow::Result<Outcome> {
    ensure_tools(FIXTURE.iter().chain(&BENCH))?;
    let programs = Programs::in_directory(&programs::build()?)?;
    sweep_stale();
    let before = Residue::observe(&prefix());
    let cpu = if args.free { None } else { Some(last_cpu()?) };
    let load = Loader { program: programs.load.clone(), cpu };
    let rounds = args.rounds.unwrap_or(ROUNDS);
    let figures = {
        let _autogroups = NoAutogroups::begin()?;
        let nodes = Nodes::start(&load, &programs, Engine::Ebpf)?;
        nodes.serve_client(&load)?;
        let figures = measure_rounds(&nodes, &load, rounds, args.secs, interrupt);
        let dissolved = nodes.dissolve();
        let figures = figures?;
        dissolved?;
        figures
    };
    drop(programs);
    Residue::ensure_none_since(&before, &prefix())?;
    let conditions =
        Conditions { kernel: kernel_release()?, guest: programs::guest(), pinned: !args.free, rounds };
    print!("{}", figures.report(&conditions, &[]));
    Ok(Outcome { document: figures.document(conditions, &[])?, failure: None })
}

/// Both targets in each round, either of them first in every other.
#[expect(clippy::print_stderr, reason = "a command line tool reports to its terminal")]
fn measure_rounds(
    nodes: &Nodes,
    load: &Loader,
    rounds: u32,
    secs: f64,
    interrupt: &Interrupt,
) -> anyhow::Result<Figures<Target>> {
    let mut figures = Figures::new();
    for round in 1..=rounds {
        let mut targets = [Target::Endpoint, Target::Vip];
        targets.rotate_left(usize::from(round % 2 == 0));
        for case in Case::ALL {
            for target in targets {
                interrupt.check()?;
                eprintln!("round {round} of {rounds}: {} {}", case.name(), target.name());
                let open = nodes.open_inside(case, target)?;
                for (metric, value) in measure(load, &open, secs)? {
                    figures.add(case, target, metric, value);
                }
            }
        }
    }
    Ok(figures)
}
