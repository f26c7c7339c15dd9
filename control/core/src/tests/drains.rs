//! Drains: they end with the last connection, never before the barrier, and never after their time.

use shoal_types::object::{DesiredState, NodeState, TaskState};
use shoal_types::spec::{EndpointMode, ServiceMode, ServiceSpec};
use shoal_types::{ServiceId, TaskId};

use super::sim::{Sim, service, tcp};

fn patient() -> ServiceSpec {
    ServiceSpec { drain_ms: 3_600_000, ..service("web", 2, &[], &[tcp(8080, 80)]) }
}

/// A service of two tasks on two nodes, settled; one of them is then to go.
fn leaving(spec: &ServiceSpec, prepare: impl FnOnce(&mut Sim)) -> (Sim, ServiceId, TaskId) {
    let mut sim = Sim::of(2);
    let web = sim.create(spec);
    sim.run(60_000);
    prepare(&mut sim);
    sim.update(&web, |spec| spec.mode = ServiceMode::Replicated { replicas: 1 });
    sim.rest();
    let mut tasks = sim.state.tasks_of_service(&web);
    let task = tasks.find(|t| t.desired == DesiredState::Draining).expect("one drains").id.clone();
    drop(tasks);
    (sim, web, task)
}

fn desired(sim: &Sim, task: &TaskId) -> Option<DesiredState> {
    sim.state.tasks().get(task).map(|t| t.desired)
}

fn is_over(sim: &Sim, task: &TaskId) -> bool {
    sim.state.tasks().get(task).is_none_or(|t| t.status.state == TaskState::Shutdown)
}

#[test]
fn a_drain_ends_with_the_last_connection() {
    let (mut sim, _, task) = leaving(&patient(), |_| ());
    sim.run(60_000);
    assert_eq!(desired(&sim, &task), Some(DesiredState::Draining), "nobody said that it is idle");
    sim.report_connections(&task, 1);
    sim.run(60_000);
    assert_eq!(desired(&sim, &task), Some(DesiredState::Draining));
    sim.report_connections(&task, 0);
    sim.rest();
    assert!(is_over(&sim, &task));
}

#[test]
fn connections_hold_a_drain_for_its_time_only() {
    let (mut sim, _, task) = leaving(&patient(), |_| ());
    sim.report_connections(&task, 5);
    sim.run(3_599_999);
    assert_eq!(desired(&sim, &task), Some(DesiredState::Draining));
    sim.run(1);
    assert!(is_over(&sim, &task));
}

#[test]
fn what_is_counted_before_the_barrier_counts_for_nothing() {
    let mut muted = None;
    let (mut sim, web, task) = leaving(&patient(), |sim| {
        let late = sim.node("n2");
        sim.mute.insert(late.clone());
        muted = Some(late);
    });
    let told = |sim: &Sim| {
        let node = sim.state.tasks()[&task].node.clone().expect("placed");
        let name = sim.state.nodes()[&node].name.to_string();
        let assignment = sim.assignment(&name);
        assignment.tasks().any(|t| t.id == task && t.withdrawn)
    };
    assert!(!told(&sim), "n2 may still send it flows");
    sim.report_connections(&task, 0);
    sim.run(60_000);
    assert_eq!(desired(&sim, &task), Some(DesiredState::Draining));
    assert_eq!(sim.state.tasks()[&task].status.connections, None);
    sim.mute.clear();
    sim.run(60_000);
    assert!(told(&sim), "its node is to count now");
    assert_eq!(desired(&sim, &task), Some(DesiredState::Draining), "what was said before does not count");
    sim.report_connections(&task, 0);
    sim.rest();
    assert!(is_over(&sim, &task));
    assert!(sim.converged(&web));
}

#[test]
fn a_node_that_comes_back_may_have_led_flows_to_it_meanwhile() {
    let (mut sim, _, task) = leaving(&patient(), |sim| {
        sim.join(3);
    });
    sim.set_node("n3", NodeState::Suspect);
    sim.run(10_000);
    sim.set_node("n3", NodeState::Ready);
    sim.report_connections(&task, 0);
    sim.rest();
    assert_eq!(desired(&sim, &task), Some(DesiredState::Draining), "the count may be older than those flows");
    sim.run(1_999);
    assert_eq!(desired(&sim, &task), Some(DesiredState::Draining));
    sim.run(1);
    assert!(is_over(&sim, &task));
}

#[test]
fn addresses_that_clients_looked_up_last_as_long_as_their_names() {
    let spec = ServiceSpec { endpoint: EndpointMode::Dnsrr, ..patient() };
    let (mut sim, _, task) = leaving(&spec, |_| ());
    sim.report_connections(&task, 0);
    sim.run(4_999);
    assert_eq!(desired(&sim, &task), Some(DesiredState::Draining));
    sim.run(1);
    assert!(is_over(&sim, &task));
}
