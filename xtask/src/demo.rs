//! `cargo xtask demo`: three hosts and a client, a swarm, a web service on an overlay, and what the client sees of it.

mod claims;

use std::fmt::Write as _;
use std::time::Instant;

use anyhow::Context;
use serde::Serialize;
use shoal_netns::{Programs, Swarm, sweep_stale};

use crate::build_ebpf;
use crate::interrupt::Interrupt;
use crate::test::build_programs;
use crate::tools::{DEMO, FIXTURE, ensure_tools, target_dir};
use claims::{CLAIMS, Claim, Services};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Verify every claim from the client's side, take everything down and exit 0 or 1
    #[arg(long)]
    check: bool,
    /// With --check: print one JSON document
    #[arg(long, requires = "check")]
    json: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    api_version: &'static str,
    kind: &'static str,
    ok: bool,
    items: Vec<Outcome>,
}

/// A claim and what became of it.
#[derive(Serialize)]
struct Outcome {
    claim: &'static str,
    ok: bool,
    detail: String,
    seconds: f64,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    ensure_tools(FIXTURE.iter().chain(&DEMO))?;
    build_ebpf::run(&build_ebpf::Args::default())?;
    say("building shoald, shoal-control and shoal");
    build_programs()?;
    let programs = Programs::in_directory(&target_dir()?.join("debug"))?;
    sweep_stale();
    let interrupt = Interrupt::watch()?;
    if args.check { check(&programs, args.json, &interrupt) } else { show(&programs, &interrupt) }
}

/// Progress goes to stderr: stdout is the result.
#[expect(clippy::print_stderr, reason = "a command line tool reports to its terminal")]
fn say(line: &str) {
    eprintln!("{line}");
}

#[expect(clippy::print_stdout, reason = "a command line tool reports to its terminal")]
fn result(text: &str) {
    println!("{text}");
}

fn check(programs: &Programs, json: bool, interrupt: &Interrupt) -> anyhow::Result<()> {
    let mut outcomes = Vec::new();
    let mut stage = None;
    let started = outcome("three hosts form a swarm over mTLS and run the services", || {
        let swarm = Swarm::three(programs)?;
        let services = Services::create(&swarm);
        stage = Some(swarm);
        services.map(|services| services.to_string())
    });
    let up = started.ok;
    tell(json, &mut outcomes, started);
    if let Some(swarm) = stage {
        for Claim { text, verify } in CLAIMS {
            interrupt.check()?;
            let held = if up { outcome(text, || verify(&swarm)) } else { not_tried(text) };
            tell(json, &mut outcomes, held);
        }
        let left = outcome("after leaving, nothing is left on any host or on the machine", || {
            swarm
                .dissolve()
                .map(|()| "links, pins, namespaces, mounts, control groups, processes: none".to_owned())
        });
        tell(json, &mut outcomes, left);
    }
    let failed = outcomes.iter().filter(|outcome| !outcome.ok).count();
    if json {
        let document =
            Document { api_version: "shoal/v1", kind: "DemoCheck", ok: failed == 0, items: outcomes };
        result(&serde_json::to_string_pretty(&document)?);
    } else {
        result(&format!("{} claims hold, {failed} do not", outcomes.len() - failed));
    }
    anyhow::ensure!(failed == 0, "{failed} claims do not hold");
    Ok(())
}

fn outcome(claim: &'static str, verify: impl FnOnce() -> anyhow::Result<String>) -> Outcome {
    let start = Instant::now();
    let verified = verify();
    let seconds = (start.elapsed().as_secs_f64() * 10.0).round() / 10.0;
    match verified {
        Ok(detail) => Outcome { claim, ok: true, detail, seconds },
        Err(error) => Outcome { claim, ok: false, detail: format!("{error:#}"), seconds },
    }
}

fn not_tried(claim: &'static str) -> Outcome {
    Outcome { claim, ok: false, detail: "not tried: the services don't run".into(), seconds: 0.0 }
}

fn tell(json: bool, outcomes: &mut Vec<Outcome>, outcome: Outcome) {
    let mark = if outcome.ok { "ok  " } else { "FAIL" };
    let line = format!("{mark} {} ({:.1} s): {}", outcome.claim, outcome.seconds, outcome.detail);
    if json {
        say(&line);
    } else {
        result(&line);
    }
    outcomes.push(outcome);
}

fn show(programs: &Programs, interrupt: &Interrupt) -> anyhow::Result<()> {
    say("making three hosts and a client, forming a swarm");
    let swarm = Swarm::three(programs)?;
    let shown = Services::create(&swarm).and_then(|services| {
        interrupt.check()?;
        result(&tour(&swarm, &services)?);
        interrupt.wait();
        Ok(())
    });
    say("taking everything down");
    swarm.dissolve().context("the teardown left something")?;
    say("nothing is left");
    match shown {
        Err(error) if !interrupt.came() => Err(error),
        _ => Ok(()),
    }
}

/// What there is, and how to drive it.
fn tour(swarm: &Swarm, services: &Services) -> anyhow::Result<String> {
    let manager = swarm.manager();
    let shoal = swarm.programs.shoal.display();
    let socket = manager.run_dir().join("api.sock");
    let client = swarm.client.unique();
    let [n1, n2, n3] = [0, 1, 2].map(|index| swarm.nodes[index].place);
    let mut text = String::new();
    for arguments in
        [&["status"][..], &["node", "ls"], &["service", "ls"], &["service", "ps", "web", "whoami"]]
    {
        write!(text, "\n$ shoal {}\n{}", arguments.join(" "), manager.shoal(arguments)?)?;
    }
    let whoami = claims::ask_whoami_line(swarm, n2.v4.into())?;
    write!(
        text,
        "\nA client at {client4} asked n2 for whoami and a replica saw: {whoami}
The swarm is up. Drive it from another terminal, as root:

  export SHOAL_HOST=unix://{socket}
  alias shoal={shoal}
  shoal service scale web=6
  shoal service ps web

Be the client (every node answers, IPv4 and IPv6):

  ip netns exec {client} curl http://{n1}:{web}/
  ip netns exec {client} curl http://[{n3}]:{web}/
  ip netns exec {client} curl http://{n2}:{who}/

Look inside a host, or ask for names as a task does:

  ip netns exec {host} ip -d link
  nsenter --net=/proc/{task}/ns/net dig @127.0.0.11 web

Ctrl-C takes everything down.
",
        client4 = swarm.client_place.v4,
        socket = socket.display(),
        n1 = n1.v4,
        n2 = n2.v4,
        n3 = n3.v6,
        web = claims::WEB_PORT,
        who = claims::WHOAMI_PORT,
        host = manager.host.unique(),
        task = services.a_process,
    )?;
    Ok(text)
}
