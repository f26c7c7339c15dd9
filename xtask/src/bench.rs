//! `cargo xtask bench`: figures of shoal beside those of what it replaces, from one run.

mod chain;
mod cost;
mod devices;
mod docker;
mod guest;
mod ipvs;
mod measure;
mod mesh;
mod nodes;
mod path;
mod programs;
mod report;
mod rolling;
mod scale;
mod servers;
mod stage;
mod swarm;
mod vip;

use std::path::PathBuf;

use anyhow::{Context, ensure};
use clap::ValueEnum;
use serde_json::Value;

use crate::interrupt::Interrupt;
use crate::vm::Kind;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Which benches to run; all without a name
    names: Vec<Name>,
    /// Write the figures to a file as JSON; an array if more than one bench is run
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Rounds; every path is measured once in each, so that drift of the machine meets all alike (5, in a guest 3)
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: Option<u32>,
    /// Let the scheduler place the processes, instead of pinning the whole path to one CPU
    #[arg(long)]
    free: bool,
    /// Seconds per measurement
    #[arg(long, default_value_t = 1.0)]
    secs: f64,
    /// Measure only these paths
    #[arg(long = "path", value_enum, value_name = "PATH")]
    paths: Vec<path::Path>,
    /// Also count what eBPF programs have of a new connection (`mesh`), in runs of their own
    #[arg(long)]
    stats: bool,
    /// Run on another kernel, in a guest of `cargo xtask vm`; nothing is built there
    #[arg(long, value_enum, value_name = "KIND")]
    vm: Option<Kind>,
    /// The kernel under QEMU, as for `cargo xtask vm`
    #[arg(long, requires = "vm", value_name = "VERSION")]
    kernel: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Name {
    /// A published port: client, node A, task on node B (and on node A)
    Mesh,
    /// A service asked by its virtual IP, beside its endpoint asked by its own address
    Vip,
    /// A packet in the programs, with few services and with many
    Cost,
    /// The speed at which the IPVS driver programs the kernel
    Ipvs,
    /// Replacing ten tasks again and again under load, which must not notice; `--rounds` are the updates
    Rolling,
    /// How fast nodes are programmed, with few services and with many; `--rounds` are the tasks that are killed
    Scale,
}

impl Name {
    fn name(self) -> &'static str {
        match self {
            Self::Mesh => "mesh",
            Self::Vip => "vip",
            Self::Cost => "cost",
            Self::Ipvs => "ipvs",
            Self::Rolling => "rolling",
            Self::Scale => "scale",
        }
    }
}

/// What a bench came to.
struct Outcome {
    document: Value,
    /// What went wrong although there are figures.
    failure: Option<String>,
}

/// Where benches run.
enum Place {
    Here(Interrupt),
    /// Whoever watches the guest takes signals itself.
    Guest(Kind),
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let names = if args.names.is_empty() { Name::value_variants() } else { &args.names };
    let mut documents = Vec::new();
    let mut failures = Vec::new();
    let place = if let Some(kind) = args.vm {
        Place::Guest(kind)
    } else {
        // Before signals are watched: a compiler inherits that they are blocked, and would go on after Ctrl-C.
        programs::build()?;
        Place::Here(Interrupt::watch()?)
    };
    for &name in names {
        let outcome = match &place {
            Place::Guest(kind) => guest::run(args, *kind, name),
            Place::Here(interrupt) => run_here(args, name, interrupt),
        };
        let outcome = outcome.with_context(|| format!("bench {}", name.name()))?;
        documents.push(outcome.document);
        failures.extend(outcome.failure.map(|failure| format!("bench {}: {failure}", name.name())));
    }
    if let Some(file) = &args.json {
        let document = if documents.len() == 1 { documents.remove(0) } else { Value::Array(documents) };
        std::fs::write(file, serde_json::to_string_pretty(&document)?)
            .with_context(|| format!("can't write {}", file.display()))?;
    }
    ensure!(failures.is_empty(), "{}", failures.join("; "));
    Ok(())
}

/// Fails once it is interrupted, and then leaves nothing behind.
fn run_here(args: &Args, name: Name, interrupt: &Interrupt) -> anyhow::Result<Outcome> {
    let outcome = match name {
        Name::Mesh => mesh::run(args, interrupt),
        Name::Vip => vip::run(args, interrupt),
        Name::Cost => cost::run(),
        Name::Ipvs => ipvs::run(),
        Name::Rolling => rolling::run(args, interrupt),
        Name::Scale => scale::run(args, interrupt),
    }?;
    // Some take seconds and look at it nowhere.
    interrupt.check()?;
    Ok(outcome)
}

/// Why there is no IPVS in this kernel, if there is none.
fn lacks_ipvs() -> Option<String> {
    let has_ipvs = || std::path::Path::new("/proc/net/ip_vs").exists();
    if !has_ipvs() {
        // A kernel that has it as a module may not have loaded it; one without modules may have no such program.
        drop(shoal_netns::Run::line("modprobe ip_vs").output());
    }
    (!has_ipvs()).then(|| "this kernel has no IPVS (try --vm uml or --vm qemu)".to_owned())
}

/// The release of the kernel that is measured.
fn kernel_release() -> anyhow::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned())
}
