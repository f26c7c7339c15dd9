//! `shoal-load`: the peer on both ends of a test or a measurement.
//!
//! As a server it answers on TCP and UDP, IPv4 and IPv6; as a client it makes connections, requests, bulk data or
//! numbered streams and prints one JSON document about what happened. It depends on little more than the standard
//! library, so that an optimised build takes seconds and its own cost stays small beside that of the path it measures.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command-line tool: stdout is its result")]

mod args;
mod ask;
mod connect;
mod flood;
mod header;
mod rr;
mod serve;
mod stats;
mod stream;
mod transfer;

use std::process::ExitCode;

use args::Args;

const USAGE: &str = "\
usage: shoal-load serve   [--whoami PORT]… [--echo PORT]… [--conn PORT]… [--discard PORT]… [--health PORT]…
                          [--greet PORT]… [--transfer PORT]… [--proxy PORT]… [--bind ADDR] [--cpu N]
       shoal-load connect --target ADDR:PORT [--workers N] [--secs S] [--rate PER_SECOND] [--until-eof] [--cpu N]
       shoal-load rr      --target ADDR:PORT [--secs S] [--size BYTES] [--udp] [--cpu N]
       shoal-load bulk    --target ADDR:PORT [--streams N] [--secs S] [--cpu N]
       shoal-load ask     --target ADDR:PORT [--count N] [--udp [--from-port PORT] | --greeted] [--timeout-ms MS]
       shoal-load stream  --target ADDR:PORT [--streams N] [--interval-ms MS] [--secs S] [--until-eof] [--timeout-ms MS]
       shoal-load transfer --target ADDR:PORT [--up BYTES] [--down BYTES] [--timeout-ms MS]
       shoal-load flood   --target ADDR:PORT [--count N]

serve: each server listens on TCP and UDP at once; with TCP_ONLY in the environment on TCP only. whoami answers with the peer address it saw and its own name;
       echo sends back what it gets; conn reads one byte, answers one byte and closes; discard reads for ever. health
       answers a GET with 200 while the file named by READY_FILE is there, else with 503; the others close what they
       are asked until it has been there once. greet says first who it is, and then sends a line back; transfer takes
       and sends bytes that tell their place. At a port that is named by --proxy, too, each connection must begin with a
       header of the PROXY protocol, version 2; one that does not is closed and counted. Lines of whoami and greet then say
       which client and which address asked it names, and those of every port how many had none.
ask: asks whoami, or with --greeted, and without a word until it has been greeted, greet.
transfer: sends bytes up to a transfer server, and then takes bytes down from it; fails when one is not in its place.
flood: sends requests for connections from addresses of nobody (198.18.0.0/15), and hears no answer.
stream: sends numbered lines to an echo server and fails when one is lost, late or out of order.
--until-eof: run until stdin is closed instead of for a number of seconds.
";

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let Some(mode) = words.next() else {
        eprint!("{USAGE}");
        return ExitCode::from(2);
    };
    match run(&mode, words) {
        Ok(clean) => ExitCode::from(u8::from(!clean)),
        Err(error) => {
            eprintln!("shoal-load {mode}: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Runs one mode. `Ok(false)` means it ran, and what it saw was not clean.
fn run(mode: &str, words: impl Iterator<Item = String>) -> anyhow::Result<bool> {
    let mut args = Args::parse(words)?;
    if let Some(cpu) = args.take::<usize>("cpu")? {
        let mut set = nix::sched::CpuSet::new();
        set.set(cpu)?;
        nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set)?;
    }
    match mode {
        "serve" => serve::run(args).map(|()| true),
        "connect" => connect::run(args),
        "rr" => rr::run(args),
        "bulk" => stream::run_bulk(args),
        "flood" => flood::run(args),
        "ask" => ask::run(args),
        "stream" => stream::run_numbered(args),
        "transfer" => transfer::run(args),
        "help" | "--help" => {
            print!("{USAGE}");
            Ok(true)
        }
        other => anyhow::bail!("unknown mode '{other}'\n{USAGE}"),
    }
}
