//! `cargo xtask test`: every tier of tests, cheapest first.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use clap::ValueEnum;

use crate::build_ebpf;
use crate::tools::{FIXTURE, SCENARIOS, cargo, ensure_tools, root};

#[derive(Default, clap::Args)]
pub(crate) struct Args {
    /// Run one tier only
    #[arg(long, value_enum)]
    tier: Option<Tier>,
    /// Run only tests whose name contains this
    filter: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Tier {
    /// Packages that touch nothing: unit, property and golden tests
    Pure,
    /// The daemons' parts with stateful fakes, and with namespaces of their own
    Fake,
    /// Each eBPF program, packet by packet, in the kernel
    Bpf,
    /// Hosts as namespaces, real daemons, real traffic
    Netns,
}

/// Packages of the pure tier. The fixture's scenarios are a tier of their own.
const PURE: [&str; 5] = ["shoal-types", "shoal-api", "shoal-core", "shoal-plan", "shoal-ebpf-common"];
const FAKE: [&str; 3] = ["shoal-control", "shoal-cli", "xtask"];

#[derive(Default)]
struct Counts {
    passed: u32,
    failed: u32,
    ignored: u32,
    /// Runs that ended badly without a count: a crash, or code that doesn't compile.
    broken: Vec<String>,
}

#[expect(clippy::print_stdout, reason = "a command line tool reports to its terminal")]
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let tiers = match args.tier {
        Some(tier) => vec![tier],
        None => Tier::value_variants().to_vec(),
    };
    // The agent embeds the object, so every tier that builds the agent needs it.
    build_ebpf::run(&build_ebpf::Args::default())?;
    let mut counts = Counts::default();
    let filter = args.filter.as_deref();
    for tier in tiers {
        match tier {
            Tier::Pure => {
                counts.cargo_test("pure", &packages(&PURE), filter)?;
                counts.cargo_test("pure", &["-p", "shoal-netns", "--lib", "--bins"], filter)?;
            }
            Tier::Fake => {
                ensure_tools(&FIXTURE)?;
                counts.cargo_test("fake", &packages(&FAKE), filter)?;
                let targets = agent_targets()?;
                let targets: Vec<_> = targets.iter().map(String::as_str).collect();
                counts.cargo_test(
                    "fake",
                    &[&["-p", "shoal-agent", "--lib", "--bins"], &targets[..]].concat(),
                    filter,
                )?;
            }
            Tier::Bpf => {
                counts.cargo_test("bpf", &["-p", "shoal-agent", "--test", "bpf"], filter)?;
            }
            Tier::Netns => {
                ensure_tools(FIXTURE.iter().chain(&SCENARIOS))?;
                build_programs()?;
                counts.cargo_test("netns", &["-p", "shoal-netns", "--test", "scenarios"], filter)?;
            }
        }
    }
    for broken in &counts.broken {
        println!("broken: {broken}");
    }
    if counts.ignored > 0 {
        println!("{} ignored (not counted as passed)", counts.ignored);
    }
    let failed = counts.failed + u32::try_from(counts.broken.len())?;
    println!("{} passed, {failed} failed", counts.passed);
    if failed > 0 {
        bail!("tests failed");
    }
    if counts.passed == 0 {
        bail!("no test ran");
    }
    Ok(())
}

/// The programs under test, as a user builds them.
pub(crate) fn build_programs() -> anyhow::Result<()> {
    let names = ["shoal-agent", "shoal-control", "shoal-cli", "shoal-netns"];
    cargo(&[&["build", "--quiet"], &packages(&names)[..], &["--bins"]].concat())
}

fn packages<'a>(names: &[&'a str]) -> Vec<&'a str> {
    names.iter().flat_map(|name| ["-p", name]).collect()
}

/// The agent's integration tests, except those of the bpf tier.
fn agent_targets() -> anyhow::Result<Vec<String>> {
    let Ok(entries) = std::fs::read_dir(root()?.join("agent/tests")) else { return Ok(Vec::new()) };
    let mut targets = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        if path.extension().is_some_and(|extension| extension == "rs") && stem != "bpf" {
            targets.extend(["--test".to_owned(), stem.to_owned()]);
        }
    }
    Ok(targets)
}

impl Counts {
    /// Runs `cargo test`, passing its output on and adding up what it counted.
    #[expect(clippy::print_stdout, reason = "a command line tool reports to its terminal")]
    fn cargo_test(&mut self, tier: &str, arguments: &[&str], filter: Option<&str>) -> anyhow::Result<()> {
        println!("\n==== {tier}: cargo test {}", arguments.join(" "));
        let mut command = Command::new("cargo");
        command.args(["test", "--no-fail-fast", "--quiet"]).args(arguments).args(filter);
        let mut child =
            command.current_dir(root()?).stdout(Stdio::piped()).spawn().context("can't run cargo")?;
        let stdout = child.stdout.take().context("cargo's stdout")?;
        let failed_before = self.failed;
        for line in BufReader::new(stdout).lines() {
            let line = line?;
            println!("{line}");
            self.add(&line);
        }
        let status = child.wait()?;
        if !status.success() && self.failed == failed_before {
            self.broken.push(format!("{tier}: cargo test {}: {status}", arguments.join(" ")));
        }
        Ok(())
    }

    /// `test result: ok. 3 passed; 0 failed; 1 ignored; …`
    fn add(&mut self, line: &str) {
        let Some((_, counts)) = line.strip_prefix("test result: ").and_then(|rest| rest.split_once(". "))
        else {
            return;
        };
        for part in counts.split(';') {
            let Some((number, word)) = part.trim().split_once(' ') else { continue };
            let Ok(number) = number.parse::<u32>() else { continue };
            match word {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.ignored += number,
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_add_up() {
        let mut counts = Counts::default();
        counts.add(
            "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s",
        );
        counts.add(
            "test result: FAILED. 2 passed; 4 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1s",
        );
        counts.add("test net::ok ... ok");
        assert_eq!((counts.passed, counts.failed, counts.ignored), (5, 4, 1));
    }
}
