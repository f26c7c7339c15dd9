//! The programs under test and those that make the load, optimised: built on the host, only found in a guest.

use std::path::PathBuf;

use crate::build_ebpf;
use crate::tools::{cargo, target_dir};

/// The kind of the guest that this process runs in, if it does.
pub(crate) fn guest() -> Option<String> {
    std::env::var("SHOAL_GUEST").ok()
}

/// Builds everything that a bench runs; the directory of the programs.
pub(crate) fn build() -> anyhow::Result<PathBuf> {
    if guest().is_none() {
        // The agent embeds the object.
        build_ebpf::run(&build_ebpf::Args::default())?;
        let packages = ["--package", "shoal-agent", "--package", "shoal-control", "--package", "shoal-cli"];
        let load = ["--package", "shoal-netns", "--bins"];
        let examples =
            ["ipvs_scale", "program_cost", "program_stats", "scale", "endpoint_watch", "redirect_only"];
        let examples: Vec<_> = examples.iter().flat_map(|name| ["--example", name]).collect();
        cargo(&[&["build", "--quiet", "--release"][..], &packages, &load, &examples].concat())?;
    }
    Ok(target_dir()?.join("release"))
}
