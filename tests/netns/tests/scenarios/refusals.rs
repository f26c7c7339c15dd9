//! Bad input: a clear error that names the field and the remedy, and nothing changed.

use anyhow::ensure;
use shoal_netns::Swarm;

use crate::harness::{PUBLISHED_WHOAMI, Scenario, WHOAMI, create, running, scenario, web};

pub(crate) const SCENARIOS: &[Scenario] = &[
    scenario("a_taken_port_is_refused", taken_port),
    scenario("subnets_can_t_overlap", overlap),
    scenario("unknown_and_malformed_names_are_refused", names),
    scenario("an_exhausted_subnet_says_so", exhausted),
    scenario("dry_run_changes_nothing", dry_run),
];

/// Services and networks, by name.
fn objects(swarm: &Swarm) -> anyhow::Result<Vec<String>> {
    let mut found = Vec::new();
    for noun in ["service", "network"] {
        for item in swarm.manager().items(&[noun, "ls"])? {
            found.push(format!("{noun} {} {}", item["name"], item["version"]));
        }
    }
    Ok(found)
}

/// A command that must be refused, with this exit code and these words, and change nothing.
fn refused(swarm: &Swarm, arguments: &[&str], code: i32, words: &[&str]) -> anyhow::Result<()> {
    let before = objects(swarm)?;
    swarm.manager().refused(arguments, code, words)?;
    let after = objects(swarm)?;
    ensure!(before == after, "shoal {arguments:?} was refused but changed {before:?} to {after:?}");
    Ok(())
}

fn taken_port(swarm: &mut Swarm) -> anyhow::Result<()> {
    web(swarm, 1)?;
    let port = format!("{PUBLISHED_WHOAMI}:{WHOAMI}");
    let other = ["service", "create", "--name", "other", "-p", &port, "--", "sleep", "1000"];
    refused(swarm, &other, 5, &["E0214", "8080", "web", "help:"])?;
    swarm.manager().shoal(&["service", "create", "-d", "--name", "other", "--", "sleep", "1000"])?;
    refused(
        swarm,
        &["service", "update", "--publish-add", &port, "other"],
        5,
        &["E0214", "8080", "web", "help:"],
    )
}

fn overlap(swarm: &mut Swarm) -> anyhow::Result<()> {
    swarm.manager().shoal(&["network", "create", "--subnet", "10.120.0.0/20", "first"])?;
    for subnet in ["10.120.0.0/20", "10.120.1.0/24", "10.120.0.0/16"] {
        let second = ["network", "create", "--subnet", subnet, "second"];
        refused(swarm, &second, 5, &["E0215", "overlap", "first", "help:"])?;
    }
    // Nor with the hosts' own.
    let own = ["network", "create", "--subnet", "10.77.0.0/24", "second"];
    refused(swarm, &own, 5, &["E0215", "10.77.0", "help:"])
}

fn names(swarm: &mut Swarm) -> anyhow::Result<()> {
    let unknown = ["service", "create", "--name", "web", "--network", "nosuch", "--", "sleep", "1000"];
    refused(swarm, &unknown, 4, &["E0200", "nosuch", "network ls"])?;
    for name in ["Web!", "-web", "a.b", &"x".repeat(64)] {
        let malformed = ["service", "create", "--name", name, "--", "sleep", "1000"];
        // An equal sign keeps a leading dash from being taken for a flag.
        let equals = format!("--name={name}");
        let malformed = if name.starts_with('-') {
            ["service", "create", &equals, "--detach", "--", "sleep", "1000"]
        } else {
            malformed
        };
        refused(swarm, &malformed, 2, &["name", name])?;
        refused(swarm, &["network", "create", "--", name], 2, &["name", name])?;
    }
    for (noun, verb) in
        [("service", "inspect"), ("network", "inspect"), ("service", "rm"), ("node", "inspect")]
    {
        refused(swarm, &["--yes", noun, verb, "nosuch"], 4, &["nosuch"])?;
    }
    refused(
        swarm,
        &["service", "create", "--name", "web", "--no-such-flag", "--", "sleep", "1"],
        2,
        &["--no-such-flag"],
    )
}

fn exhausted(swarm: &mut Swarm) -> anyhow::Result<()> {
    swarm.manager().shoal(&["network", "create", "--subnet", "10.121.0.0/29", "tiny"])?;
    create(swarm, "few", "tiny", &["--replicas", "2"])?;
    running(swarm, "few", 2)?;
    refused(swarm, &["service", "scale", "few=20"], 5, &["E0216", "tiny", "10.121.0.0/29", "free", "help:"])?;
    running(swarm, "few", 2)?;
    let many = [
        "service",
        "create",
        "--name",
        "many",
        "--network",
        "tiny",
        "--replicas",
        "9",
        "--",
        "sleep",
        "1000",
    ];
    refused(swarm, &many, 5, &["E0216", "tiny", "help:"])
}

fn dry_run(swarm: &mut Swarm) -> anyhow::Result<()> {
    web(swarm, 1)?;
    refused(swarm, &["service", "scale", "--dry-run", "web=5"], 10, &[])?;
    refused(swarm, &["service", "update", "--dry-run", "--env-add", "A=B", "web"], 10, &[])
}
