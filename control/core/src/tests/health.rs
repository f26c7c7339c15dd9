//! Tasks with health checks: they count when they are healthy, and go when they are not.

use shoal_types::object::{DesiredState, Health, TaskState};
use shoal_types::spec::{HealthCheck, HealthProbe, RestartCondition, ServiceSpec, UpdateOrder};

use super::sim::{Sim, service, tcp};
use crate::{Command, Outcome};

fn checked(replicas: u32) -> ServiceSpec {
    let mut spec = service("web", replicas, &[], &[tcp(8080, 80)]);
    spec.task.health = Some(HealthCheck::of(HealthProbe::Tcp("80".parse().expect("a target"))));
    spec
}

/// Numbers of the endpoints that a node may send new flows to.
fn endpoints(sim: &Sim, node: &str) -> usize {
    sim.assignment(node).endpoints().filter(|e| e.serving).count()
}

#[test]
fn no_flow_goes_to_a_task_before_it_is_healthy() {
    let mut sim = Sim::of(2);
    let spec = checked(2);
    let web = sim.create(&spec);
    sim.unready.insert(web.clone());
    sim.run(3_600_000);
    assert_eq!(sim.ps(&web), ["web.1 n1 Starting", "web.2 n2 Starting"]);
    assert_eq!((sim.serving(&web), endpoints(&sim, "n1"), sim.converged(&web)), (0, 0, false));
    sim.unready.clear();
    sim.rest();
    assert_eq!((sim.serving(&web), endpoints(&sim, "n1"), sim.converged(&web)), (2, 2, true));
}

#[test]
fn a_rolling_update_waits_for_health_and_keeps_what_serves() {
    let mut sim = Sim::of(2);
    let web = sim.create(&checked(3));
    sim.rest();
    sim.unready.insert(web.clone());
    sim.update(&web, |s| s.task.force_update = 1);
    sim.run(3_600_000);
    assert_eq!(sim.serving(&web), 3, "the old ones serve until a new one is healthy");
    let starting = sim.ps(&web).iter().filter(|line| line.ends_with("Starting")).count();
    assert_eq!(starting, 1, "one at a time: {:?}", sim.ps(&web));
    sim.unready.clear();
    sim.run(60_000);
    assert!(sim.converged(&web), "{:?}", sim.ps(&web));
}

#[test]
fn an_unhealthy_task_is_withdrawn_led_out_and_replaced() {
    let mut sim = Sim::of(2);
    let web = sim.create(&checked(2));
    sim.run(60_000);
    let sick = sim.live_task("web.1");
    sim.report_health(&sick.id, Health::Unhealthy);
    assert_eq!(
        endpoints(&sim, "n2"),
        1,
        "out of the balancers with the report, before the leader does anything"
    );
    let late = sim.node("n2");
    sim.mute.insert(late);
    sim.rest();
    let leaving = &sim.state.tasks()[&sick.id];
    assert_eq!((leaving.desired, leaving.status.state), (DesiredState::Draining, TaskState::Running));
    let successor = sim.live_task("web.1");
    assert_ne!(successor.id, sick.id);
    sim.run(60_000);
    assert_eq!(sim.state.tasks()[&sick.id].desired, DesiredState::Draining, "n2 may still send it flows");
    sim.mute.clear();
    sim.run(60_000);
    assert_eq!(sim.state.tasks()[&sick.id].status.state, TaskState::Shutdown);
    assert!(sim.converged(&web));
}

#[test]
fn one_that_was_never_healthy_is_replaced_after_the_delay_and_within_the_limit() {
    let mut sim = Sim::of(1);
    let mut spec = checked(1);
    spec.task.restart.max_attempts = 2;
    let web = sim.create(&spec);
    sim.unready.insert(web.clone());
    let mut ids = Vec::new();
    for attempt in 0..3 {
        sim.run(if attempt == 0 { 0 } else { 5_000 });
        let task = sim.live_task("web.1");
        assert_eq!(task.status.state, TaskState::Starting, "attempt {attempt}");
        assert!(!ids.contains(&task.id));
        ids.push(task.id.clone());
        sim.report_health(&task.id, Health::Unhealthy);
        sim.rest();
    }
    sim.run(3_600_000);
    let last = sim.live_task("web.1");
    assert_eq!(Some(&last.id), ids.last(), "the attempts are used up");
    assert_eq!((last.desired, last.status.health), (DesiredState::Running, Health::Unhealthy));
}

#[test]
fn one_that_is_not_to_be_replaced_comes_back_when_it_recovers() {
    let mut sim = Sim::of(2);
    let mut spec = checked(1);
    spec.task.restart.condition = RestartCondition::None;
    let web = sim.create(&spec);
    sim.rest();
    let task = sim.live_task("web.1");
    sim.report_health(&task.id, Health::Unhealthy);
    sim.run(60_000);
    assert_eq!((sim.live_task("web.1").id, sim.serving(&web)), (task.id.clone(), 0));
    assert!(!sim.converged(&web));
    let late = sim.node("n2");
    sim.mute.insert(late);
    sim.report_health(&task.id, Health::Healthy);
    sim.rest();
    assert_eq!((sim.serving(&web), sim.converged(&web)), (1, false), "n2 has not taken it in again yet");
    sim.mute.clear();
    sim.rest();
    assert!(sim.converged(&web));
}

#[test]
fn where_tasks_stop_first_the_successor_waits_for_the_end() {
    let mut sim = Sim::of(2);
    let mut spec = checked(1);
    spec.update.order = UpdateOrder::StopFirst;
    let web = sim.create(&spec);
    sim.run(60_000);
    let sick = sim.live_task("web.1").id;
    sim.report_health(&sick, Health::Unhealthy);
    sim.rest();
    let successor = sim.live_task("web.1");
    assert_eq!(successor.status.state, TaskState::Pending);
    assert_eq!(successor.status.message, "waits for its predecessor to drain");
    sim.run(60_000);
    assert_eq!(sim.state.tasks()[&sick].status.state, TaskState::Shutdown);
    assert!(sim.converged(&web), "{:?}", sim.ps(&web));
}

#[test]
fn a_node_that_has_forgotten_takes_no_healthy_task_out() {
    let mut sim = Sim::of(1);
    let web = sim.create(&checked(1));
    sim.rest();
    let task = sim.live_task("web.1");
    let mut status = task.status.clone();
    status.state = TaskState::Starting;
    status.health = Health::Starting;
    let updates = vec![(task.id.clone(), status)];
    let node = task.node.clone().expect("placed");
    assert_eq!(sim.must(Command::ReportTasks { node, updates }), Outcome::Unchanged);
    assert_eq!(sim.serving(&web), 1);
}
