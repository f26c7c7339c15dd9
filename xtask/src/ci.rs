//! `cargo xtask ci`: what a change must pass.

use anyhow::bail;

use crate::tools::cargo;
use crate::{build_ebpf, test, tidy};

/// Runs every check even if an earlier one failed, tests last.
#[expect(clippy::print_stdout, reason = "a command line tool reports to its terminal")]
pub(crate) fn run() -> anyhow::Result<()> {
    build_ebpf::run(&build_ebpf::Args::default())?;
    let lints = [
        ("fmt", cargo(&["fmt", "--all", "--check"])),
        ("clippy", cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"])),
        ("tidy", tidy::run()),
    ];
    let failed: Vec<_> =
        lints.iter().filter_map(|(name, result)| result.as_ref().err().map(|_| *name)).collect();
    for (name, result) in &lints {
        match result {
            Ok(()) => println!("{name}: ok"),
            Err(error) => println!("{name}: {error:#}"),
        }
    }
    test::run(&test::Args::default())?;
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    Ok(())
}
