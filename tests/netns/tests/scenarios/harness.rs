//! Runs groups of scenarios and reports as `cargo test` does.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use shoal_netns::{Answers, Node, Programs, Swarm, Task, ask, sweep_stale, wait_for};

/// Ports of the servers in a task of [`web`].
pub(crate) const WHOAMI: u16 = 7000;
pub(crate) const CONN: u16 = 7001;
pub(crate) const ECHO: u16 = 7002;
/// The same, published.
pub(crate) const PUBLISHED_WHOAMI: u16 = 8080;
pub(crate) const PUBLISHED_CONN: u16 = 8081;
pub(crate) const PUBLISHED_ECHO: u16 = 8082;
/// For what takes a node some work, on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(45);

pub(crate) type Scenario = (&'static str, fn(&mut Swarm) -> anyhow::Result<()>);

/// Scenarios that share a swarm.
pub(crate) struct Group {
    pub(crate) name: &'static str,
    pub(crate) start: fn(&Programs) -> anyhow::Result<Swarm>,
    pub(crate) scenarios: &'static [Scenario],
}

/// A swarm of three, as most groups want it.
pub(crate) fn formed(programs: &Programs) -> anyhow::Result<Swarm> {
    Swarm::three(programs)
}

#[derive(Default)]
struct Report {
    passed: u32,
    filtered: usize,
    failures: Vec<(String, String)>,
}

/// Runs all groups, or what matches the filter on the command line.
pub(crate) fn run(groups: &[Group]) -> ExitCode {
    let filter = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    if std::env::args().any(|argument| argument == "--list") {
        for group in groups {
            for (name, _) in group.scenarios {
                println!("{}::{name}: test", group.name);
            }
        }
        return ExitCode::SUCCESS;
    }
    let start = Instant::now();
    let mut report = Report::default();
    sweep_stale();
    for group in groups {
        report.run_group(group, filter.as_deref());
    }
    for (name, failure) in &report.failures {
        println!("\n---- {name} ----\n{failure}");
    }
    let word = if report.failures.is_empty() { "ok" } else { "FAILED" };
    println!(
        "\ntest result: {word}. {} passed; {} failed; 0 ignored; 0 measured; {} filtered out; finished in {:.1}s",
        report.passed,
        report.failures.len(),
        report.filtered,
        start.elapsed().as_secs_f64()
    );
    ExitCode::from(u8::from(!report.failures.is_empty()))
}

/// The programs beside this one: `target/debug`, as this is `target/debug/deps/scenarios-…`.
fn programs() -> anyhow::Result<Programs> {
    let own = std::env::current_exe()?;
    let directory = own.ancestors().nth(2).context("this program has no place")?;
    Programs::in_directory(directory)
}

impl Report {
    fn run_group(&mut self, group: &Group, filter: Option<&str>) {
        let full_name = |name: &str| format!("{}::{name}", group.name);
        let chosen: Vec<_> = group
            .scenarios
            .iter()
            .filter(|(name, _)| filter.is_none_or(|filter| full_name(name).contains(filter)))
            .collect();
        self.filtered += group.scenarios.len() - chosen.len();
        if chosen.is_empty() {
            return;
        }
        let mut swarm = None;
        self.record(&full_name("(start)"), || {
            swarm = Some((group.start)(&programs()?)?);
            Ok(())
        });
        let Some(mut swarm) = swarm else {
            for (name, _) in chosen {
                self.record(&full_name(name), || bail!("its swarm didn't start"));
            }
            return;
        };
        for (name, scenario) in chosen {
            self.record(&full_name(name), || {
                let outcome = check(&mut swarm, *scenario);
                outcome.map_err(|error| anyhow::anyhow!("{error:#}\n{}", logs(&swarm)))
            });
        }
        self.record(&full_name("(leaves nothing)"), || swarm.dissolve());
    }

    fn record(&mut self, name: &str, test: impl FnOnce() -> anyhow::Result<()>) {
        let start = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(test)).unwrap_or_else(|_| bail!("panicked; see above"));
        let seconds = start.elapsed().as_secs_f64();
        match outcome {
            Ok(()) => {
                println!("test {name} ... ok ({seconds:.1}s)");
                self.passed += 1;
            }
            Err(error) => {
                println!("test {name} ... FAILED ({seconds:.1}s)");
                eprintln!("{name}: {error:#}");
                self.failures.push((name.to_owned(), format!("{error:#}")));
            }
        }
    }
}

/// Runs a scenario, takes away its services and networks, and compares what the nodes hold with before.
fn check(swarm: &mut Swarm, scenario: fn(&mut Swarm) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let before = holdings(swarm)?;
    let outcome = scenario(swarm);
    let cleared = clear(swarm).and_then(|()| {
        wait_for("the nodes to hold what they held before", PATIENCE, || {
            let now = holdings(swarm).map_err(|error| format!("{error:#}"))?;
            if now == before {
                return Ok(());
            }
            Err(format!("more: {:?}, less: {:?}", now.difference(&before), before.difference(&now)))
        })
    });
    outcome?;
    cleared.context("residue")
}

fn logs(swarm: &Swarm) -> String {
    let tails = swarm.nodes.iter().map(|node| format!("-- shoald of {}:\n{}", node.name(), node.log_tail()));
    tails.collect::<Vec<_>>().join("\n")
}

/// Links, task namespaces and task processes on every node.
fn holdings(swarm: &Swarm) -> anyhow::Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for node in &swarm.nodes {
        let links = node.host.ip("-o link show")?;
        let names = links.lines().filter_map(|line| line.split(": ").nth(1));
        found.extend(
            names.map(|name| format!("{} link {}", node.name(), name.split('@').next().unwrap_or(name))),
        );
        found.extend(node.task_namespaces().iter().map(|path| format!("{} {}", node.name(), path.display())));
        found.extend(node.task_pids("shoal-load").iter().map(|pid| format!("{} process {pid}", node.name())));
    }
    Ok(found)
}

/// Removes all services and networks that a scenario made.
fn clear(swarm: &Swarm) -> anyhow::Result<()> {
    let manager = swarm.manager();
    for (noun, field) in [("service", "name"), ("network", "name")] {
        if !is_member(manager) {
            return Ok(());
        }
        for item in manager.items(&[noun, "ls"])? {
            let name = item[field].as_str().unwrap_or_default();
            if item["ingress"].as_bool() != Some(true) {
                manager.shoal(&["--yes", noun, "rm", name])?;
            }
        }
    }
    Ok(())
}

fn is_member(node: &Node) -> bool {
    node.shoal_output(&["node", "ls"]).is_ok_and(|output| output.status.success())
}

/// `service create` of our own servers, on a network made if need be, with further flags.
pub(crate) fn create(swarm: &Swarm, name: &str, network: &str, flags: &[&str]) -> anyhow::Result<()> {
    let manager = swarm.manager();
    let networks = manager.items(&["network", "ls"])?;
    if !networks.iter().any(|item| item["name"] == network) {
        manager.shoal(&["network", "create", network])?;
    }
    let load = swarm.programs.load.display().to_string();
    let words = format!("serve --whoami {WHOAMI} --conn {CONN} --echo {ECHO}");
    let program: Vec<_> = std::iter::once(load.as_str()).chain(words.split(' ')).collect();
    let service = [
        "service",
        "create",
        "--name",
        name,
        "--network",
        network,
        "--restart-delay",
        "100ms",
        "--drain",
        "0s",
        "--stop-grace-period",
        "500ms",
    ];
    manager.shoal(&[&service, flags, &["--"], &program].concat()).map(drop)
}

/// The service most scenarios look at: so many replicas, every server published.
pub(crate) fn web(swarm: &Swarm, replicas: u32) -> anyhow::Result<Vec<Task>> {
    let ports = [
        format!("{PUBLISHED_WHOAMI}:{WHOAMI}"),
        format!("{PUBLISHED_WHOAMI}:{WHOAMI}/udp"),
        format!("{PUBLISHED_CONN}:{CONN}"),
        format!("{PUBLISHED_ECHO}:{ECHO}"),
        format!("{PUBLISHED_ECHO}:{ECHO}/udp"),
    ];
    let replicas_text = replicas.to_string();
    let mut flags = vec!["--replicas", &replicas_text];
    for port in &ports {
        flags.extend(["-p", port]);
    }
    create(swarm, "web", "front", &flags)?;
    running(swarm, "web", replicas)
}

/// Waits until so many tasks of a service run; which.
pub(crate) fn running(swarm: &Swarm, service: &str, count: u32) -> anyhow::Result<Vec<Task>> {
    let count = usize::try_from(count)?;
    wait_for(&format!("{count} running tasks of '{service}'"), PATIENCE, || {
        let tasks = swarm.manager().running_tasks(service).map_err(|error| format!("{error:#}"))?;
        if tasks.len() == count { Ok(tasks) } else { Err(format!("{tasks:?}")) }
    })
}

/// Asks a published port of a node from the client.
pub(crate) fn ask_node(
    swarm: &Swarm,
    address: IpAddr,
    port: u16,
    udp: bool,
    count: usize,
) -> anyhow::Result<Answers> {
    ask(&swarm.client, &swarm.programs, SocketAddr::new(address, port), udp, count)
}

/// Waits until a node's published port answers, and by exactly these hosts.
pub(crate) fn answered_by(swarm: &Swarm, node: &Node, hosts: &BTreeSet<String>) -> anyhow::Result<()> {
    let address = node.place.v4.into();
    wait_for(&format!("{} to answer by {hosts:?} only", node.name()), PATIENCE, || {
        let answers =
            ask_node(swarm, address, PUBLISHED_WHOAMI, false, 40).map_err(|error| format!("{error:#}"))?;
        let now: BTreeSet<_> = answers.hosts.keys().cloned().collect();
        if answers.failed == 0 && now == *hosts { Ok(()) } else { Err(format!("{answers:?}")) }
    })
}

/// Host names of tasks, as `whoami` reports them.
pub(crate) fn host_names(tasks: &[Task]) -> BTreeSet<String> {
    tasks.iter().map(|task| task.name.replacen('.', "-", 1)).collect()
}

/// The node a task runs on.
pub(crate) fn node_of<'a>(swarm: &'a Swarm, task: &Task) -> anyhow::Result<&'a Node> {
    swarm.node(&task.node)
}

/// Fails unless a set is as expected, naming both.
pub(crate) fn ensure_same<T: std::fmt::Debug + PartialEq>(
    what: &str,
    got: &T,
    expected: &T,
) -> anyhow::Result<()> {
    ensure!(got == expected, "{what}: expected {expected:?}, got {got:?}");
    Ok(())
}
