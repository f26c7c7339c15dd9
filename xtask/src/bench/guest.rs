//! A bench on another kernel: this program again, in a guest.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Context;
use clap::ValueEnum;

use super::path::Path;
use super::report::Column;
use super::{Args, Name, Outcome, programs};
use crate::tools::{BENCH, FIXTURE, ensure_tools, target_dir};
use crate::vm::{self, Kind};

/// Rounds of a guest: half an hour is too long to wait for a figure.
const ROUNDS: u32 = 3;
/// Ends a guest that hangs; no run with the rounds above comes near.
const TIMEOUT_SECONDS: &str = "3600";
const MEMORY: &str = "3G";
/// The file in which the guest hands back its figures.
const FIGURES: &str = "figures.json";
/// The guest knows where results go, this side does not.
const SCRIPT: &str = "exec \"$@\" --json \"$SHOAL_OUT/figures.json\"";

/// A directory for results that ends with its handle.
struct Out(PathBuf);

impl Drop for Out {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

/// Builds what the bench takes, then runs it in a guest. What it prints is seen as it comes.
pub(crate) fn run(args: &Args, kind: Kind, name: Name) -> anyhow::Result<Outcome> {
    ensure_tools(FIXTURE.iter().chain(&BENCH))?;
    programs::build()?;
    let has_swarm = args.paths.is_empty() || args.paths.contains(&Path::Swarm);
    if name == Name::Mesh && kind == Kind::Qemu && has_swarm {
        vm::docker_programs()?;
    }
    let out = Out(target_dir()?.join(format!("bench-{}", std::process::id())));
    std::fs::create_dir_all(&out.0)?;
    let own = std::env::current_exe()?;
    // Mounts and child processes of a guest belong to the process that started it.
    let mut command = Command::new(&own);
    command.args(guest_arguments(args, kind)).arg("--out").arg(&out.0);
    command.args(["--", "sh", "-c", SCRIPT, "sh"]).arg(&own).args(bench_arguments(args, name));
    let status = command.status().context("can't start the guest")?;
    let document =
        read(&out.0.join(FIGURES)).with_context(|| format!("no figures from the guest: {status}"))?;
    let failure = (!status.success()).then(|| format!("the guest ended with {status}"));
    Ok(Outcome { document, failure })
}

/// What `xtask` is told of the guest.
fn guest_arguments(args: &Args, kind: Kind) -> Vec<String> {
    let kind_name = kind.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
    let mut words = vec!["vm".to_owned(), kind_name];
    words.extend(["--timeout", TIMEOUT_SECONDS, "--mem", MEMORY].map(str::to_owned));
    if kind == Kind::Qemu {
        // One for what is measured, one for everything else.
        words.extend(["--cpus", "2"].map(str::to_owned));
    }
    if let Some(kernel) = &args.kernel {
        words.extend(["--kernel".to_owned(), kernel.clone()]);
    }
    words
}

/// What it is told in the guest.
fn bench_arguments(args: &Args, name: Name) -> Vec<String> {
    let mut words = vec!["bench".to_owned(), name.name().to_owned()];
    words.extend(["--rounds".to_owned(), args.rounds.unwrap_or(ROUNDS).to_string()]);
    words.extend(["--secs".to_owned(), args.secs.to_string()]);
    if args.stats {
        words.push("--stats".to_owned());
    }
    if args.free {
        words.push("--free".to_owned());
    }
    for path in &args.paths {
        words.extend(["--path".to_owned(), path.name().to_owned()]);
    }
    words
}

fn read(file: &std::path::Path) -> anyhow::Result<serde_json::Value> {
    Ok(serde_json::from_str(&std::fs::read_to_string(file)?)?)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn parse(words: &[String]) -> Args {
        Line::try_parse_from(words).map_or_else(|error| panic!("{error}"), |line| line.args)
    }

    #[test]
    fn the_guest_is_told_what_this_side_was_told() {
        let words = "bench mesh --vm qemu --kernel 6.1 --free --secs 0.5 --path routed --path docker";
        let args = parse(&words.split(' ').map(str::to_owned).collect::<Vec<_>>());
        assert_eq!(
            guest_arguments(&args, Kind::Qemu).join(" "),
            "vm qemu --timeout 3600 --mem 3G --cpus 2 --kernel 6.1"
        );
        let inner = parse(&bench_arguments(&args, Name::Mesh));
        assert_eq!((inner.rounds, inner.free, inner.vm), (Some(ROUNDS), true, None));
        assert!((inner.secs - 0.5).abs() < 1e-9);
        assert_eq!(inner.paths, [Path::Routed, Path::Docker]);
    }

    #[test]
    fn user_mode_linux_has_one_cpu_and_one_kernel() {
        let args = parse(&["bench".to_owned()]);
        assert_eq!(guest_arguments(&args, Kind::Uml).join(" "), "vm uml --timeout 3600 --mem 3G");
    }
}
