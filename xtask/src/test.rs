//! `cargo xtask test`: every tier of tests, cheapest first.

mod column;
mod guests;
mod hole;
mod matrix;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::ValueEnum;
use serde_json::Value;

use crate::build_ebpf;
use crate::tools::{FIXTURE, SCENARIOS, cargo, cargo_command, ensure_tools, target_dir};
use column::{Column, Form};
use guests::{GuestPrograms, Guests};
use matrix::{Cell, Filled, Matrix};

#[derive(Default, clap::Args)]
pub(crate) struct Args {
    /// Run one tier only
    #[arg(long, value_enum)]
    tier: Option<Tier>,
    /// In the vm tier, run all groups under emulation and on its older kernel, too (hours)
    #[arg(long)]
    long: bool,
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
    /// The scenarios for both engines on other kernels, in guests
    Vm,
}

/// What a run of all tiers builds: programs and tests in one go, as they share dependencies only then, and by the profile
/// that guests need, as nothing has to be built twice then.
const ALL: [&str; 5] = ["--profile", "guest", "--workspace", "--bins", "--tests"];
/// The part of it that guests run.
const FOR_GUESTS: [&str; 10] =
    ["--profile", "guest", "--workspace", "--bins", "--test", "scenarios", "--test", "bpf", "--test", "ipvs"];
/// Packages of the pure tier.
const PURE: [&str; 5] = ["shoal-types", "shoal-api", "shoal-core", "shoal-plan", "shoal-ebpf-common"];

impl Tier {
    fn name(self) -> &'static str {
        match self {
            Self::Pure => "pure",
            Self::Fake => "fake",
            Self::Bpf => "bpf",
            Self::Netns => "netns",
            Self::Vm => "vm",
        }
    }

    /// The tier that a test program belongs to: each belongs to one.
    fn of(program: &TestProgram) -> Self {
        match (program.package.as_str(), program.target.as_str()) {
            ("shoal-agent", "bpf") => Self::Bpf,
            ("shoal-netns", "scenarios") => Self::Netns,
            ("shoal-netns", _) => Self::Pure,
            (package, _) if PURE.contains(&package) => Self::Pure,
            _ => Self::Fake,
        }
    }

    /// What cargo builds for the tier alone.
    fn selection(self) -> Vec<&'static str> {
        match self {
            Self::Pure => packages(&[&PURE[..], &["shoal-netns"]].concat()),
            Self::Fake => packages(&["shoal-agent", "shoal-control", "shoal-cli", "xtask"]),
            Self::Bpf => vec!["-p", "shoal-agent", "--test", "bpf"],
            Self::Netns => vec!["-p", "shoal-netns", "--test", "scenarios"],
            Self::Vm => FOR_GUESTS.to_vec(),
        }
    }
}

/// An executable that cargo built from tests.
struct TestProgram {
    package: String,
    target: String,
    directory: PathBuf,
    executable: PathBuf,
}

#[derive(Default)]
struct Counts {
    passed: u32,
    failed: u32,
    ignored: u32,
    /// Programs that ended badly without saying which test failed.
    broken: Vec<String>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    // The agent embeds the object, so whatever builds the agent needs it.
    build_ebpf::run(&build_ebpf::Args::default())?;
    ensure_tools(FIXTURE.iter().chain(&SCENARIOS))?;
    let mut clock = Clock::default();
    let (tiers, programs) = match args.tier {
        None => (Tier::value_variants().to_vec(), build_tests(&["build"], &ALL)?),
        Some(Tier::Vm) => (vec![Tier::Vm], build_tests(&["build"], &Tier::Vm.selection())?),
        Some(tier) => (vec![tier], build_tests(&["test", "--no-run"], &tier.selection())?),
    };
    if args.tier == Some(Tier::Netns) {
        build_programs()?;
    }
    clock.lap("build");
    let counts = run_tiers(args, &tiers, &programs, &mut clock)?;
    clock.tell();
    counts.report()
}

fn run_tiers(
    args: &Args,
    tiers: &[Tier],
    programs: &[TestProgram],
    clock: &mut Clock,
) -> anyhow::Result<Counts> {
    let mut counts = Counts::default();
    let mut guests = None;
    if tiers.contains(&Tier::Vm) {
        let form = if args.long { Form::Long } else { Form::Default };
        guests = Some(Guests::new(guest_programs(programs)?, form, args.filter.clone(), target_dir()?)?);
    }
    if let Some(guests) = guests.as_mut().filter(|_| tiers.len() > 1) {
        guests.begin_beside()?;
    }
    let mut host = None;
    for &tier in tiers {
        match guests.take_if(|_| tier == Tier::Vm) {
            Some(guests) => counts.finish_guests(guests, host.take())?,
            None => {
                for program in programs.iter().filter(|program| Tier::of(program) == tier) {
                    let filled = counts.run(tier, program, args.filter.as_deref())?;
                    if tier == Tier::Netns {
                        host = Some(filled);
                    }
                }
            }
        }
        clock.lap(tier.name());
    }
    Ok(counts)
}

/// Runs cargo, which builds test programs without running them; which.
fn build_tests(task: &[&str], selection: &[&str]) -> anyhow::Result<Vec<TestProgram>> {
    let mut cargo = cargo_command()?;
    cargo.args(task).args(["--message-format", "json-render-diagnostics"]).args(selection);
    let mut child = cargo.stdout(Stdio::piped()).spawn().context("can't run cargo")?;
    let stdout = child.stdout.take().context("cargo's stdout")?;
    let mut programs = Vec::new();
    for line in BufReader::new(stdout).lines() {
        programs.extend(test_program(&serde_json::from_str(&line?)?));
    }
    ensure!(child.wait()?.success(), "the tests don't compile");
    Ok(programs)
}

/// What guests run of what was built.
fn guest_programs(programs: &[TestProgram]) -> anyhow::Result<GuestPrograms> {
    let find = |target: &str| {
        let found = programs.iter().find(|program| program.target == target);
        found.map(|program| program.executable.clone()).with_context(|| format!("no test program {target}"))
    };
    Ok(GuestPrograms { scenarios: find("scenarios")?, bpf: find("bpf")?, ipvs: find("ipvs")? })
}

/// The test program that one of cargo's messages announces, if it does.
fn test_program(message: &Value) -> Option<TestProgram> {
    if message["reason"] != "compiler-artifact" || message["profile"]["test"] != true {
        return None;
    }
    let manifest = Path::new(message["manifest_path"].as_str()?);
    // …/control/core#shoal-core@0.1.0, or …/xtask#0.1.0 where the directory has the package's name.
    let (place, name) = message["package_id"].as_str()?.rsplit_once('#')?;
    let package = match name.split_once('@') {
        Some((package, _)) => package,
        None => place.rsplit_once('/')?.1,
    };
    Some(TestProgram {
        package: package.to_owned(),
        target: message["target"]["name"].as_str()?.to_owned(),
        directory: manifest.parent()?.to_owned(),
        executable: message["executable"].as_str()?.into(),
    })
}

/// The programs under test, as a user builds them.
pub(crate) fn build_programs() -> anyhow::Result<()> {
    cargo(&["build", "--quiet", "--workspace", "--bins"])
}

fn packages<'a>(names: &[&'a str]) -> Vec<&'a str> {
    names.iter().flat_map(|name| ["-p", name]).collect()
}

/// How long what a run consists of took.
struct Clock {
    since: Instant,
    laps: Vec<(&'static str, Duration)>,
}

impl Default for Clock {
    fn default() -> Self {
        Self { since: Instant::now(), laps: Vec::new() }
    }
}

impl Clock {
    /// Ends what began with the one before.
    fn lap(&mut self, name: &'static str) {
        let now = Instant::now();
        self.laps.push((name, now - self.since));
        self.since = now;
    }

    #[expect(clippy::print_stdout, reason = "a command line tool reports to its terminal")]
    fn tell(&self) {
        println!("\n{}\n", self.table());
    }

    fn table(&self) -> String {
        let all = self.laps.iter().map(|(_, took)| *took).sum();
        let rows = self.laps.iter().copied().chain([("all", all)]);
        let lines = rows.map(|(name, took)| format!("{name:6}{:6.0} s", took.as_secs_f64()));
        lines.collect::<Vec<_>>().join("\n")
    }
}

impl Counts {
    /// Runs a test program, passing its output on and adding up what it counted.
    #[expect(clippy::print_stdout, reason = "a command line tool reports to its terminal")]
    fn run(&mut self, tier: Tier, program: &TestProgram, filter: Option<&str>) -> anyhow::Result<Filled> {
        let mut filled = Filled::new(Column::HOST);
        let start = Instant::now();
        let name = format!("{}: {} {}", tier.name(), program.package, program.target);
        println!("\n==== {name}");
        let mut command = Command::new(&program.executable);
        command.arg("--quiet").args(filter).current_dir(&program.directory);
        command.env("CARGO_MANIFEST_DIR", &program.directory);
        if tier == Tier::Netns {
            command.env(guests::ENGINE_SETTING, Column::HOST.engine.name());
        }
        let mut child =
            command.stdout(Stdio::piped()).spawn().with_context(|| format!("can't run {name}"))?;
        let stdout = child.stdout.take().context("a test's stdout")?;
        let failed_before = self.failed;
        // Tests may print anything, not only text.
        for line in BufReader::new(stdout).split(b'\n') {
            let line = line?;
            let line = String::from_utf8_lossy(&line);
            println!("{line}");
            self.add(&line);
            filled.read(&line);
        }
        filled.seconds = start.elapsed().as_secs_f64();
        let status = child.wait()?;
        if !status.success() && self.failed == failed_before {
            self.broken.push(format!("{name}: {status}"));
        }
        Ok(filled)
    }

    /// The vm tier. A host's column that the netns tier filled is counted already.
    #[expect(clippy::print_stdout, reason = "a command line tool reports to its terminal")]
    fn finish_guests(&mut self, guests: Guests, host: Option<Filled>) -> anyhow::Result<()> {
        println!("\n==== vm");
        let counted = host.as_ref().map(|host| host.column);
        let matrix = guests.finish(host)?;
        println!("\n{}\n{}", matrix.markdown(), matrix.summary());
        self.add_matrix(&matrix, counted);
        Ok(())
    }

    fn add_matrix(&mut self, matrix: &Matrix, counted: Option<Column>) {
        for filled in matrix.columns.iter().filter(|filled| Some(filled.column) != counted) {
            self.passed += filled.count(|cell| *cell == Cell::Ok) + filled.driver_tests;
            self.ignored += filled.count(|cell| matches!(cell, Cell::NotRun(_)));
        }
        self.broken.extend(matrix.problems());
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

    #[expect(clippy::print_stdout, reason = "a command line tool reports to its terminal")]
    fn report(&self) -> anyhow::Result<()> {
        for broken in &self.broken {
            println!("broken: {broken}");
        }
        if self.ignored > 0 {
            println!("{} ignored (not counted as passed)", self.ignored);
        }
        let failed = self.failed + u32::try_from(self.broken.len())?;
        println!("{} passed, {failed} failed", self.passed);
        ensure!(failed == 0, "tests failed");
        ensure!(self.passed > 0, "no test ran");
        Ok(())
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

    #[test]
    fn the_table_of_tiers_adds_up() {
        let laps = vec![("build", Duration::from_secs(61)), ("pure", Duration::from_millis(1_700))];
        let table = Clock { since: Instant::now(), laps }.table();
        assert_eq!(table, "build     61 s\npure       2 s\nall       63 s");
    }

    #[test]
    fn each_test_program_has_its_tier() {
        let tier = |id: &str, target: &str| {
            let message = serde_json::json!({
                "reason": "compiler-artifact", "profile": { "test": true }, "package_id": id,
                "target": { "name": target }, "manifest_path": "/x/Cargo.toml", "executable": "/x/test",
            });
            test_program(&message).map(|program| Tier::of(&program).name())
        };
        assert_eq!(tier("path+file:///x/control/core#shoal-core@0.1.0", "shoal_core"), Some("pure"));
        assert_eq!(tier("path+file:///x/agent#shoal-agent@0.1.0", "bpf"), Some("bpf"));
        assert_eq!(tier("path+file:///x/agent#shoal-agent@0.1.0", "dns"), Some("fake"));
        assert_eq!(tier("path+file:///x/tests/netns#shoal-netns@0.1.0", "scenarios"), Some("netns"));
        assert_eq!(tier("path+file:///x/xtask#0.1.0", "xtask"), Some("fake"));
        assert!(test_program(&serde_json::json!({"reason": "build-finished"})).is_none());
    }
}
