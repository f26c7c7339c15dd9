//! `cargo xtask bench`: figures of shoal beside those of what it replaces, from one run.

mod chain;
mod measure;
mod mesh;
mod nodes;
mod path;
mod report;

use std::path::PathBuf;

use clap::ValueEnum;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Which benches to run; all without a name
    names: Vec<Name>,
    /// Write the figures to a file as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Rounds; every path is measured once in each, so that drift of the machine meets all alike
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Let the scheduler place the processes, instead of pinning the whole path to one CPU
    #[arg(long)]
    free: bool,
    /// Seconds per measurement
    #[arg(long, default_value_t = 1.0)]
    secs: f64,
    /// Measure only these paths
    #[arg(long = "path", value_enum, value_name = "PATH")]
    paths: Vec<path::Path>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Name {
    /// A published port: client, node A, task on node B (and on node A)
    Mesh,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let names = if args.names.is_empty() { Name::value_variants() } else { &args.names };
    for name in names {
        match name {
            Name::Mesh => mesh::run(args)?,
        }
    }
    Ok(())
}
