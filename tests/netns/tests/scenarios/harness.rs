//! Runs groups of scenarios and reports as `cargo test` does.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use shoal_netns::{
    Answers, Need, Node, Programs, Swarm, Task, ask, slowness, sweep_stale, wait_for, wanted_engine,
};

/// Ports of the servers in a task of [`web`].
pub(crate) const WHOAMI: u16 = 7000;
pub(crate) const CONN: u16 = 7001;
pub(crate) const ECHO: u16 = 7002;
pub(crate) const HEALTH: u16 = 7003;
/// The same, published.
pub(crate) const PUBLISHED_WHOAMI: u16 = 8080;
pub(crate) const PUBLISHED_CONN: u16 = 8081;
pub(crate) const PUBLISHED_ECHO: u16 = 8082;
/// For what takes a node some work, on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(45);

/// The first and the last row of each group.
const START: &str = "(start)";
const LEAVES_NOTHING: &str = "(leaves nothing)";

type Body = fn(&mut Swarm) -> anyhow::Result<()>;

/// Something that must be so, told from outside.
pub(crate) struct Scenario {
    name: &'static str,
    body: Body,
    needs: &'static [Need],
}

/// A scenario that runs everywhere.
pub(crate) const fn scenario(name: &'static str, body: Body) -> Scenario {
    Scenario { name, body, needs: &[] }
}

impl Scenario {
    /// It runs only where all of these are there, and else says what isn't.
    pub(crate) const fn needs(self, needs: &'static [Need]) -> Self {
        Self { needs, ..self }
    }

    fn lacking(&self) -> Option<&'static str> {
        self.needs.iter().find_map(|need| need.lacking())
    }
}

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

/// A swarm of the first so many nodes, whose manager has settings of its own.
pub(crate) fn formed_with(programs: &Programs, settings: &str, members: usize) -> anyhow::Result<Swarm> {
    let mut swarm = Swarm::unformed(programs)?;
    let manager = &mut swarm.nodes[0];
    manager.stop_daemon()?;
    manager.configure(settings)?;
    manager.start_daemon()?;
    let token = swarm.init()?;
    swarm.nodes[1..members].iter().try_for_each(|node| swarm.join(node, &token))?;
    swarm.wait_ready(members)?;
    Ok(swarm)
}

#[derive(Default)]
struct Report {
    passed: u32,
    ignored: u32,
    filtered: usize,
    failures: Vec<(String, String)>,
}

/// What the command line chose, with libtest's words: `[FILTER] [--skip TEXT]... [--list]`.
#[derive(Default)]
struct Choice {
    filter: Option<String>,
    skipped: Vec<String>,
    list: bool,
}

impl Choice {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Self {
        let mut choice = Self::default();
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--list" => choice.list = true,
                "--skip" => choice.skipped.extend(arguments.next()),
                flag if flag.starts_with('-') => {}
                _ => choice.filter = Some(argument),
            }
        }
        choice
    }

    fn takes(&self, name: &str) -> bool {
        self.filter.as_ref().is_none_or(|filter| name.contains(filter))
            && !self.skipped.iter().any(|text| name.contains(text))
    }

    fn of(&self, group: &Group) -> Vec<&'static Scenario> {
        group.scenarios.iter().filter(|scenario| self.takes(&group.row(scenario.name))).collect()
    }
}

/// Runs all groups, or what the command line chose.
pub(crate) fn run(groups: &[Group]) -> ExitCode {
    let choice = Choice::parse(std::env::args().skip(1));
    if choice.list {
        list(groups, &choice);
        return ExitCode::SUCCESS;
    }
    let start = Instant::now();
    let mut report = Report::default();
    sweep_stale();
    for group in groups {
        report.run_group(group, &choice);
    }
    for (name, failure) in &report.failures {
        println!("\n---- {name} ----\n{failure}");
    }
    let word = if report.failures.is_empty() { "ok" } else { "FAILED" };
    println!(
        "\ntest result: {word}. {} passed; {} failed; {} ignored; 0 measured; {} filtered out; finished in {:.1}s",
        report.passed,
        report.failures.len(),
        report.ignored,
        report.filtered,
        start.elapsed().as_secs_f64()
    );
    ExitCode::from(u8::from(!report.failures.is_empty()))
}

/// All rows that a run reports on, in its order.
fn list(groups: &[Group], choice: &Choice) {
    for group in groups {
        let chosen = choice.of(group);
        if chosen.is_empty() {
            continue;
        }
        let names = chosen.iter().map(|scenario| scenario.name);
        for name in [START].into_iter().chain(names).chain([LEAVES_NOTHING]) {
            println!("{}: test", group.row(name));
        }
    }
}

/// The programs beside this one: `target/debug`, as this is `target/debug/deps/scenarios-…`.
fn programs() -> anyhow::Result<Programs> {
    let own = std::env::current_exe()?;
    let directory = own.ancestors().nth(2).context("this program has no place")?;
    Programs::in_directory(directory)
}

impl Group {
    fn row(&self, name: &str) -> String {
        format!("{}::{name}", self.name)
    }

    fn started(&self) -> anyhow::Result<Swarm> {
        let swarm = (self.start)(&programs()?)?;
        ensure_engine(&swarm)?;
        Ok(swarm)
    }
}

/// Waits until every member balances by the engine that the environment asks for.
fn ensure_engine(swarm: &Swarm) -> anyhow::Result<()> {
    match wanted_engine() {
        Some(wanted) => wait_engine(swarm, &wanted),
        None => Ok(()),
    }
}

/// Waits until every member balances by an engine.
pub(crate) fn wait_engine(swarm: &Swarm, wanted: &str) -> anyhow::Result<()> {
    for node in swarm.nodes.iter().filter(|node| is_member(node)) {
        wait_for(&format!("{} to balance by {wanted}", node.name()), PATIENCE, || {
            match engine_in_force(swarm.manager(), node.name()).map_err(|error| format!("{error:#}"))? {
                Some(engine) if engine == wanted => Ok(()),
                told => Err(format!("{told:?}")),
            }
        })?;
    }
    Ok(())
}

/// The engine that a node reports to run.
fn engine_in_force(manager: &Node, name: &str) -> anyhow::Result<Option<String>> {
    let nodes = manager.items(&["node", "ls"])?;
    let node = nodes.iter().find(|node| node["name"] == name).with_context(|| format!("no node '{name}'"))?;
    Ok(node["lbEngine"].as_str().map(str::to_owned))
}

impl Report {
    fn run_group(&mut self, group: &Group, choice: &Choice) {
        let chosen = choice.of(group);
        self.filtered += group.scenarios.len() - chosen.len();
        let (able, unable): (Vec<_>, Vec<_>) =
            chosen.into_iter().partition(|scenario| scenario.lacking().is_none());
        for scenario in &unable {
            self.ignore(&group.row(scenario.name), scenario.lacking().unwrap_or_default());
        }
        if able.is_empty() {
            if let Some(reason) = unable.first().and_then(|scenario| scenario.lacking()) {
                self.ignore(&group.row(START), reason);
                self.ignore(&group.row(LEAVES_NOTHING), reason);
            }
            return;
        }
        let mut swarm = None;
        self.record(&group.row(START), || {
            swarm = Some(group.started()?);
            Ok(())
        });
        let Some(mut swarm) = swarm else {
            let names = able.iter().map(|scenario| scenario.name).chain([LEAVES_NOTHING]);
            for name in names {
                self.record(&group.row(name), || bail!("its swarm didn't start"));
            }
            return;
        };
        for scenario in able {
            self.record(&group.row(scenario.name), || {
                let outcome = check(&mut swarm, scenario.body);
                outcome.map_err(|error| anyhow::anyhow!("{error:#}\n{}", logs(&swarm)))
            });
        }
        self.record(&group.row(LEAVES_NOTHING), || swarm.dissolve());
    }

    fn ignore(&mut self, name: &str, reason: &str) {
        println!("test {name} ... ignored, {reason}");
        self.ignored += 1;
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
fn check(swarm: &mut Swarm, scenario: Body) -> anyhow::Result<()> {
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
    cleared.context("residue")?;
    ensure_counted(swarm)
}

/// Programs that packets of every swarm meet.
const PROGRAMS: [&str; 3] = ["mesh_ingress", "overlay_rx", "task_tx"];

/// Every packet that a program received, it forwarded, passed or dropped.
fn ensure_counted(swarm: &Swarm) -> anyhow::Result<()> {
    for node in swarm.nodes.iter().filter(|node| is_member(node)) {
        // The counters are read one after the other, and packets come in meanwhile.
        wait_for(&format!("the packets of {} to add up", node.name()), PATIENCE, || {
            for program in PROGRAMS {
                let packets = node.packets(program).map_err(|error| format!("{error:#}"))?;
                let of = |event| packets.get(event).copied().unwrap_or_default();
                if of("received") != of("forwarded") + of("passed") + of("dropped") {
                    return Err(format!("{program}: {packets:?}"));
                }
            }
            Ok(())
        })?;
    }
    Ok(())
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
    let servers = format!("--whoami {WHOAMI} --conn {CONN} --echo {ECHO} --health {HEALTH}");
    create_serving(swarm, name, network, flags, &servers)
}

/// As [`create`], with these servers.
pub(crate) fn create_serving(
    swarm: &Swarm,
    name: &str,
    network: &str,
    flags: &[&str],
    servers: &str,
) -> anyhow::Result<()> {
    let manager = swarm.manager();
    let networks = manager.items(&["network", "ls"])?;
    if !networks.iter().any(|item| item["name"] == network) {
        manager.shoal(&["network", "create", network])?;
    }
    let load = swarm.programs.load.display().to_string();
    let program: Vec<_> = [load.as_str(), "serve"].into_iter().chain(servers.split(' ')).collect();
    let mut service = vec!["service", "create", "--name", name, "--network", network];
    // What flags don't say otherwise: no time is spent on waiting.
    for (flag, value) in [("--restart-delay", "100ms"), ("--drain", "0s"), ("--stop-grace-period", "500ms")] {
        if !flags.contains(&flag) {
            service.extend([flag, value]);
        }
    }
    manager.shoal(&[&service, flags, &["--"], &program].concat()).map(drop)
}

/// The service most scenarios look at: so many replicas, every server published.
pub(crate) fn web(swarm: &Swarm, replicas: u32) -> anyhow::Result<Vec<Task>> {
    create_web(swarm, replicas, &[])?;
    running(swarm, "web", replicas)
}

/// Flags by which a task counts when it takes connections.
pub(crate) const LISTENS: [&str; 4] = ["--health-tcp", "7001", "--health-interval", "500ms"];

/// Makes that service, with further flags.
pub(crate) fn create_web(swarm: &Swarm, replicas: u32, further: &[&str]) -> anyhow::Result<()> {
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
    flags.extend(further);
    create(swarm, "web", "front", &flags)
}

/// Waits until so many tasks of a service run; which.
pub(crate) fn running(swarm: &Swarm, service: &str, count: u32) -> anyhow::Result<Vec<Task>> {
    let count = usize::try_from(count)?;
    wait_for(&format!("{count} running tasks of '{service}'"), PATIENCE, || {
        let tasks = swarm.manager().running_tasks(service).map_err(|error| format!("{error:#}"))?;
        if tasks.len() == count { Ok(tasks) } else { Err(format!("{tasks:?}")) }
    })
}

/// Seconds of traffic, from milliseconds on a host: more where everything takes longer.
pub(crate) fn traffic_secs(milliseconds: u32) -> String {
    (f64::from(milliseconds * slowness()) / 1000.0).to_string()
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
