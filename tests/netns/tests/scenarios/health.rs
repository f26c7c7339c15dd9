//! Health checks: who is asked, what follows from the answer, and what a restart of the daemon changes about it.

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::{Context, ensure};
use shoal_netns::{Swarm, Task, wait_for};

use crate::harness::{
    HEALTH, PATIENCE, Scenario, answered_by, create, create_web, ensure_same, host_names, running, scenario,
};
use crate::load::{Load, answers};

pub(crate) const SCENARIOS: &[Scenario] = &[
    scenario("no_connection_reaches_a_task_before_it_is_healthy", slow_start),
    scenario("an_unhealthy_task_is_withdrawn_and_replaced_without_a_failed_request", unhealthy),
    scenario("a_daemon_that_starts_again_takes_no_healthy_task_out", restart),
    scenario("commands_and_connections_are_checks_too", kinds),
    scenario("what_never_gets_healthy_is_said_to_the_operator", hopeless),
];

const CHECKS: &str = "shoal_agent_health_checks_total";

/// Files that tasks take for their being ready.
struct Ready(PathBuf);

impl Ready {
    fn new(swarm: &Swarm) -> anyhow::Result<Self> {
        let dir = swarm.client.scratch().join("ready");
        std::fs::create_dir_all(&dir)?;
        Ok(Self(dir))
    }

    /// The flags that make a service ask for them.
    fn flags(&self) -> Vec<String> {
        let env = format!("READY_FILE={}/{{{{.Task.ID}}}}", self.0.display());
        let check = format!("{HEALTH}/healthz");
        let flags =
            ["-e", &env, "--health-http", &check, "--health-interval", "500ms", "--health-retries", "2"];
        flags.iter().map(|flag| (*flag).to_owned()).collect()
    }

    fn set(&self, task: &Task, is_ready: bool) -> anyhow::Result<()> {
        let file = self.0.join(&task.id);
        if is_ready { std::fs::write(&file, b"") } else { std::fs::remove_file(&file) }
            .with_context(|| format!("{}", file.display()))
    }

    fn knows(&self, task: &Task) -> bool {
        self.0.join(&task.id).exists()
    }
}

/// `web` whose tasks wait until they are let; drained for long enough for one request of the load.
fn checked_web(swarm: &Swarm, replicas: u32, ready: &Ready) -> anyhow::Result<()> {
    let flags = ready.flags();
    let mut further: Vec<&str> = flags.iter().map(String::as_str).collect();
    further.extend(["-d", "--drain", "1s"]);
    create_web(swarm, replicas, &further)
}

/// Waits until so many tasks run their programs and are not healthy yet.
fn starting(swarm: &Swarm, count: usize) -> anyhow::Result<Vec<Task>> {
    wait_for(&format!("{count} tasks that wait for health"), PATIENCE, || {
        let mut tasks = swarm.manager().all_tasks("web").map_err(|error| format!("{error:#}"))?;
        tasks.retain(|task| task.health.as_deref() == Some("starting") && task.pid.is_some());
        if tasks.len() == count { Ok(tasks) } else { Err(format!("{tasks:?}")) }
    })
}

/// Lets every task serve, and waits until so many do.
fn all_ready(swarm: &Swarm, count: u32, ready: &Ready) -> anyhow::Result<Vec<Task>> {
    for task in starting(swarm, usize::try_from(count)?)? {
        ready.set(&task, true)?;
    }
    let tasks = running(swarm, "web", count)?;
    swarm.nodes.iter().try_for_each(|node| answered_by(swarm, node, &host_names(&tasks)))?;
    ensure!(tasks.iter().all(|task| task.health.as_deref() == Some("healthy")), "{tasks:?}");
    Ok(tasks)
}

fn slow_start(swarm: &mut Swarm) -> anyhow::Result<()> {
    let ready = Ready::new(swarm)?;
    checked_web(swarm, 3, &ready)?;
    let waiting = starting(swarm, 3)?;
    for node in &swarm.nodes {
        ensure_same(
            "answers of a service without a healthy task",
            &answers(swarm, node.place.v4.into(), 2)?,
            &0,
        )?;
    }
    let first = waiting.first().context("three tasks")?;
    ready.set(first, true)?;
    running(swarm, "web", 1)?;
    let only = host_names(std::slice::from_ref(first));
    swarm.nodes.iter().try_for_each(|node| answered_by(swarm, node, &only))?;
    // A task that is reached too early closes what it is asked: that would be a failed request.
    let load = Load::published(swarm, &swarm.nodes)?;
    waiting.iter().skip(1).try_for_each(|task| ready.set(task, true))?;
    let mut old: BTreeSet<String> = running(swarm, "web", 3)?.into_iter().map(|task| task.id).collect();
    ensure_same("tasks", &old, &waiting.iter().map(|task| task.id.clone()).collect())?;
    swarm.manager().shoal(&["service", "update", "-d", "--force", "web"])?;
    let tasks = wait_for("an update that waits for every task", PATIENCE, || {
        let all = swarm.manager().all_tasks("web").map_err(|error| format!("{error:#}"))?;
        let serving = all.iter().filter(|task| task.state == "running" && task.desired_state == "running");
        if serving.clone().count() < 3 {
            return Err(format!("fewer than three serve: {all:?}"));
        }
        if serving.clone().count() == 3 && serving.clone().all(|task| !old.contains(&task.id)) {
            return Ok(serving.cloned().collect::<Vec<_>>());
        }
        let new = all.iter().find(|task| task.health.as_deref() == Some("starting") && !ready.knows(task));
        if let Some(new) = new {
            // Time for a connection to reach it, if any did.
            answers(swarm, swarm.nodes[0].place.v4.into(), 10).map_err(|error| format!("{error:#}"))?;
            ready.set(new, true).map_err(|error| format!("{error:#}"))?;
        }
        Err(format!("{all:?}"))
    })?;
    old.clear();
    swarm.nodes.iter().try_for_each(|node| answered_by(swarm, node, &host_names(&tasks)))?;
    load.finish()
}

fn unhealthy(swarm: &mut Swarm) -> anyhow::Result<()> {
    let ready = Ready::new(swarm)?;
    checked_web(swarm, 3, &ready)?;
    let tasks = all_ready(swarm, 3, &ready)?;
    let load = Load::published(swarm, &swarm.nodes)?;
    let sick = tasks.first().context("three tasks")?;
    ready.set(sick, false)?;
    let successor = starting(swarm, 1)?.into_iter().next().context("one")?;
    ensure_same("the successor's slot", &successor.name, &sick.name)?;
    // Its place stays empty while the successor is not healthy.
    let well = host_names(&tasks[1..]);
    swarm.nodes.iter().try_for_each(|node| answered_by(swarm, node, &well))?;
    ready.set(&successor, true)?;
    let now = running(swarm, "web", 3)?;
    swarm.nodes.iter().try_for_each(|node| answered_by(swarm, node, &host_names(&now)))?;
    load.finish()?;
    let ended = wait_for("the unhealthy task to be stopped", PATIENCE, || {
        let all = swarm.manager().all_tasks("web").map_err(|error| format!("{error:#}"))?;
        let ended = all.iter().find(|task| task.id == sick.id && task.state == "failed").cloned();
        ended.ok_or_else(|| format!("{all:?}"))
    })?;
    let why = format!("unhealthy: GET http://localhost:{HEALTH}/healthz: 503 Service Unavailable: not ready");
    ensure_same("why it was stopped", &ended.message, &why)
}

fn restart(swarm: &mut Swarm) -> anyhow::Result<()> {
    let ready = Ready::new(swarm)?;
    checked_web(swarm, 3, &ready)?;
    let tasks = all_ready(swarm, 3, &ready)?;
    let load = Load::published(swarm, &swarm.nodes)?;
    let writes = "shoal_agent_kernel_writes_total";
    let before = swarm.manager().metric(writes)?;
    for node in &mut swarm.nodes[1..] {
        node.kill_daemon()?;
        node.start_daemon()?;
    }
    swarm.wait_ready(3)?;
    for node in &swarm.nodes[1..] {
        wait_for(&format!("{} to check its tasks again", node.name()), PATIENCE, || {
            let checks = node.metric(CHECKS).map_err(|error| format!("{error:#}"))?;
            if checks > 2.5 { Ok(()) } else { Err(format!("{checks} checks")) }
        })?;
    }
    load.finish()?;
    // Not for a moment: that would have been written to the kernel of every other node.
    let after = swarm.manager().metric(writes)?;
    ensure!((after - before).abs() < 0.5, "the manager's node wrote {before} -> {after} times");
    for node in &swarm.nodes[1..] {
        let own = node.metric(writes)?;
        ensure!(own < 0.5, "{} wrote {own} times\n{}", node.name(), node.log_tail());
    }
    ensure_same("the tasks, their health and since when", &running(swarm, "web", 3)?, &tasks)
}

fn kinds(swarm: &mut Swarm) -> anyhow::Result<()> {
    let command = "test $(id -u) = 65534 && test $(hostname) = by-command-1 && test -d /proc/1";
    let flags = ["--user", "nobody", "--health-cmd", command, "--health-interval", "200ms"];
    create(swarm, "by-command", "front", &flags)?;
    let port = HEALTH.to_string();
    create(swarm, "by-tcp", "front", &["--health-tcp", &port, "--health-interval", "200ms"])?;
    for service in ["by-command", "by-tcp"] {
        let task = running(swarm, service, 1)?.into_iter().next().context("one")?;
        ensure_same("its health", &task.health.as_deref(), &Some("healthy"))?;
        let node = swarm.node(&task.node)?;
        let checks = node.metric(CHECKS)?;
        wait_for("further checks", PATIENCE, || {
            let now = node.metric(CHECKS).map_err(|error| format!("{error:#}"))?;
            if now > checks + 2.5 { Ok(()) } else { Err(format!("{checks} -> {now}")) }
        })?;
        ensure_same("the same task", &running(swarm, service, 1)?, &vec![task])?;
    }
    let shown = swarm.manager().items(&["service", "inspect", "by-tcp"])?;
    let test = shown.first().map(|item| item["spec"]["health"]["test"].clone());
    ensure_same("the check", &test, &Some(serde_json::json!(["TCP", format!("localhost:{HEALTH}")])))?;
    swarm.manager().shoal(&["service", "update", "--no-healthcheck", "by-tcp"])?;
    let task = running(swarm, "by-tcp", 1)?.into_iter().next().context("one")?;
    ensure_same("its health", &task.health, &None)
}

fn hopeless(swarm: &mut Swarm) -> anyhow::Result<()> {
    let load = swarm.programs.load.display().to_string();
    let line =
        ["service", "create", "--name", "lost", "--health-cmd", "echo no luck; exit 3", "--health-interval"];
    let limits =
        ["200ms", "--health-retries", "2", "--restart-max-attempts", "1", "--restart-delay", "100ms"];
    let program = ["--", load.as_str(), "serve", "--whoami", "7000"];
    let words = ["E0310", "unhealthy: exited with 3: no luck"];
    swarm.manager().refused(&[&line[..], &limits, &program].concat(), 1, &words)?;
    // One whose program hangs is told apart, and leaves nothing.
    let line = ["service", "update", "--health-cmd", "sleep 98761", "--health-timeout", "200ms", "lost"];
    swarm.manager().refused(&line, 1, &["E0310", "no answer within 200 ms"])
}
