//! What happens, told from the outside.

use shoal_types::NodeId;
use shoal_types::object::{Availability, DesiredState, NodeState, TaskState, TaskStatus};
use shoal_types::spec::{RestartCondition, ServiceMode};

use super::sim::{GIB, Sim, service, tcp};
use crate::{Command, Outcome, leader, view};

#[test]
fn three_replicas_are_spread_over_three_nodes_and_serve_everywhere() {
    let mut sim = Sim::of(3);
    let net = sim.network("backend", None);
    let web = sim.create(&service("web", 3, &[&net], &[tcp(8080, 80)]));
    sim.rest();
    let mut nodes: Vec<String> =
        sim.ps(&web).iter().map(|l| l.split(' ').nth(1).unwrap_or("").to_owned()).collect();
    nodes.sort();
    assert_eq!(nodes, ["n1", "n2", "n3"]);
    assert!(sim.converged(&web));
    for node in ["n1", "n2", "n3"] {
        let told = sim.assignment(node);
        assert_eq!(told.members().count(), 3);
        assert_eq!(told.networks().count(), 2, "ingress and backend");
        assert_eq!(told.tasks().count(), 1, "its own");
        assert_eq!(told.endpoints().filter(|e| e.serving).count(), 6, "three tasks in two networks");
        assert_eq!(told.services().next().map(|s| (s.vips.len(), s.ports.len())), Some((1, 1)));
    }
}

#[test]
fn a_node_without_tasks_is_in_ingress_alone_and_knows_every_published_port() {
    let mut sim = Sim::of(2);
    let net = sim.network("backend", None);
    let web = sim.create(&service("web", 1, &[&net], &[tcp(8080, 80)]));
    sim.rest();
    let host = sim.live_task("web.1").node.expect("placed");
    let other = if sim.node("n1") == host { "n2" } else { "n1" };
    let told = sim.assignment(other);
    assert_eq!(told.networks().map(|n| n.ingress).collect::<Vec<_>>(), [true]);
    assert_eq!(told.endpoints().count(), 1);
    let services: Vec<_> = told.services().collect();
    assert_eq!((services[0].id.clone(), services[0].vips.len(), services[0].ports.len()), (web, 0, 1));
    assert!(told.cluster().is_some_and(|c| c.node_name.as_str() == other));
}

#[test]
fn an_unpublished_service_on_a_network_is_told_only_where_the_network_is() {
    let mut sim = Sim::of(2);
    let net = sim.network("backend", None);
    sim.create(&service("db", 1, &[&net], &[]));
    sim.rest();
    let with: Vec<bool> = ["n1", "n2"].map(|n| sim.assignment(n).services().count() == 1).to_vec();
    assert_eq!(with.iter().filter(|w| **w).count(), 1);
}

#[test]
fn a_killed_task_is_replaced_in_its_slot_at_once_when_it_had_run_long_enough() {
    let mut sim = Sim::of(1);
    let web = sim.create(&service("web", 2, &[], &[tcp(8080, 80)]));
    sim.rest();
    sim.now.0 += 60_000;
    let victim = sim.live_task("web.2");
    sim.report(&victim.id, TaskState::Failed, Some(137));
    sim.rest();
    assert_eq!(sim.ps(&web), ["web.1 n1 Running", "web.2 n1 Running"]);
    assert_ne!(sim.live_task("web.2").id, victim.id);
    assert_eq!(sim.state.tasks()[&victim.id].desired, DesiredState::Shutdown, "it became history");
}

#[test]
fn a_task_that_keeps_failing_waits_and_its_history_stays_short() {
    let mut sim = Sim::of(1);
    let web = sim.create(&service("web", 1, &[], &[]));
    sim.crashing.insert(web.clone(), 1);
    sim.rest();
    let waiting = sim.live_task("web.1");
    assert_eq!(waiting.status.state, TaskState::Pending);
    assert_eq!(waiting.status.message, "web.1 ended with exit code 1; starts again after 5 s");
    assert_eq!(leader::next_deadline(&sim.state, sim.now).map(|t| t.since_ms(sim.now)), Some(5_000));
    sim.run(60_000);
    assert_eq!(sim.state.tasks_of_service(&web).count(), 6, "five ended ones and the next");
    let starts = sim.log.iter().filter(|(_, e)| matches!(e.command, Command::CreateTask { .. })).count();
    assert_eq!(starts, 14, "one each 5 s, and the one that waits");
}

#[test]
fn attempts_are_limited_within_their_window() {
    let mut sim = Sim::of(1);
    let mut spec = service("job", 1, &[], &[]);
    spec.task.restart.max_attempts = 2;
    spec.task.restart.delay_ms = 1_000;
    spec.task.restart.window_ms = 60_000;
    let job = sim.create(&spec);
    sim.crashing.insert(job.clone(), 1);
    sim.run(30_000);
    assert_eq!(sim.state.tasks_of_service(&job).count(), 3, "the first and two attempts");
    assert!(leader::next_deadline(&sim.state, sim.now).is_some(), "the window will pass");
    sim.run(60_000);
    assert!(sim.state.tasks_of_service(&job).count() > 3);
}

#[test]
fn a_task_that_ran_to_its_end_stays_ended_when_only_failures_count() {
    let mut sim = Sim::of(1);
    let mut spec = service("job", 1, &[], &[]);
    spec.task.restart.condition = RestartCondition::OnFailure;
    let job = sim.create(&spec);
    sim.rest();
    let task = sim.live_task("job.1");
    sim.report(&task.id, TaskState::Complete, Some(0));
    sim.run(60_000);
    assert_eq!(sim.ps(&job), ["job.1 n1 Complete"]);
    assert!(sim.converged(&job));
}

#[test]
fn a_dead_nodes_tasks_are_replaced_elsewhere_and_it_stops_them_when_it_comes_back() {
    let mut sim = Sim::of(3);
    let net = sim.network("backend", None);
    let web = sim.create(&service("web", 3, &[&net], &[tcp(8080, 80)]));
    sim.rest();
    sim.set_node("n2", NodeState::Suspect);
    sim.rest();
    assert_eq!(sim.serving(&web), 2, "suspect: out of the load balancers");
    let serving = |sim: &Sim| sim.assignment("n1").endpoints().filter(|e| e.serving).count();
    assert_eq!(serving(&sim), 4);
    assert_eq!(sim.ps(&web).len(), 3, "and nothing is replaced yet");

    sim.set_node("n2", NodeState::Down);
    sim.rest();
    assert_eq!(sim.serving(&web), 3);
    assert!(sim.ps(&web).iter().all(|l| !l.contains("n2")), "{:?}", sim.ps(&web));
    assert!(sim.converged(&web));

    sim.set_node("n2", NodeState::Ready);
    sim.rest();
    let left: Vec<_> = sim.state.tasks_of_node(&sim.node("n2")).map(|t| t.status.state).collect();
    assert_eq!(left, [TaskState::Shutdown]);
}

#[test]
fn a_dead_node_keeps_the_addresses_of_its_tasks_until_it_has_let_go() {
    let mut sim = Sim::of(2);
    let net = sim.network("backend", None);
    let web = sim.create(&service("web", 2, &[&net], &[]));
    sim.rest();
    let host = sim.node("n2");
    let addr = sim.state.tasks_of_node(&host).next().map(|t| t.attachments[0].addr).expect("one task there");
    sim.set_node("n2", NodeState::Down);
    sim.must(Command::RemoveService { id: web.clone() });
    sim.run(10_000);
    assert!(!sim.state.services().contains_key(&web), "the service is gone although a node is down");
    assert_eq!(
        view::addresses(&sim.state, &net).map(|a| a.used),
        Some(1),
        "{addr:?} may still be in use there"
    );
    let refused = sim.propose(Command::RemoveNetwork { id: net.clone() }).expect_err("in use");
    assert!(refused.context()[0].contains("node 'n2'"), "{:?}", refused.context());

    sim.set_node("n2", NodeState::Ready);
    sim.rest();
    assert_eq!(view::addresses(&sim.state, &net).map(|a| a.used), Some(0));
    sim.must(Command::RemoveNetwork { id: net });
}

#[test]
fn removing_a_service_drains_it_and_frees_everything() {
    let mut sim = Sim::of(3);
    let net = sim.network("backend", None);
    let web = sim.create(&service("web", 3, &[&net], &[tcp(8080, 80)]));
    sim.rest();
    sim.must(Command::RemoveService { id: web.clone() });
    sim.rest();
    assert_eq!(sim.serving(&web), 0);
    assert!(sim.state.tasks_of_service(&web).all(|t| t.desired == DesiredState::Draining));
    assert_eq!(leader::next_deadline(&sim.state, sim.now).map(|t| t.since_ms(sim.now)), Some(5_000));
    let id = shoal_types::ServiceId::from_entropy(sim.draw());
    let spec = Box::new(service("web2", 1, &[], &[tcp(8080, 80)]));
    let refused = sim.propose(Command::CreateService { id, spec }).expect_err("still draining");
    assert!(refused.help().contains("try again in a few seconds"), "{}", refused.help());
    sim.run(5_000);
    assert!(sim.state.services().is_empty() && sim.state.tasks().is_empty());
    assert_eq!(view::addresses(&sim.state, &net).map(|a| a.used), Some(0));
    sim.must(Command::RemoveNetwork { id: net });
}

#[test]
fn scaling_down_gives_up_what_does_not_run_then_the_crowded_then_the_highest() {
    let mut sim = Sim::of(2);
    let web = sim.create(&service("web", 5, &[], &[tcp(8080, 80)]));
    sim.rest();
    let crowded = sim.ps(&web).iter().filter(|l| l.contains("n1")).count();
    sim.must(Command::ScaleService { id: web.clone(), replicas: 4 });
    sim.run(10_000);
    let after = sim.ps(&web);
    assert_eq!(after.len(), 4);
    assert_eq!(after.iter().filter(|l| l.contains("n1")).count(), 2, "from {crowded} on n1: {after:?}");
    sim.must(Command::ScaleService { id: web.clone(), replicas: 0 });
    sim.run(10_000);
    assert!(sim.state.tasks().is_empty() && sim.converged(&web));
    sim.must(Command::ScaleService { id: web.clone(), replicas: 2 });
    sim.rest();
    assert_eq!(sim.ps(&web).len(), 2);
    assert!(sim.ps(&web)[0].starts_with("web.1 ") && sim.ps(&web)[1].starts_with("web.2 "));
}

#[test]
fn a_task_that_fits_nowhere_says_why_by_filter() {
    let mut sim = Sim::of(6);
    for node in ["n5", "n6"] {
        let id = sim.node(node);
        sim.set_availability(&id, Availability::Drain);
    }
    let mut big = service("db", 4, &[], &[]);
    big.task.resources.reserve_memory = 7 * GIB;
    sim.create(&big);
    let mut web = service("web", 1, &[], &[]);
    web.task.resources.reserve_memory = 2 * GIB;
    sim.create(&web);
    sim.rest();
    let task = sim.live_task("web.1");
    assert_eq!(task.status.message, "0 of 6 nodes fit: 4 lack memory 2 GiB (most free: n1 1 GiB), 2 drained");
    assert_eq!(sim.lead(), 0, "and it is said once");
}

#[test]
fn constraints_and_limits_per_node_are_filters_too() {
    let mut sim = Sim::of(3);
    let mut spec = service("web", 4, &[], &[]);
    spec.task.max_per_node = 1;
    spec.task.constraints = vec!["node.role!=manager".parse().expect("a constraint")];
    let web = sim.create(&spec);
    sim.rest();
    assert_eq!(sim.ps(&web).iter().filter(|l| l.ends_with("Running")).count(), 2);
    let waiting =
        sim.state.tasks().values().find(|t| t.status.state == TaskState::Pending).expect("one waits");
    assert_eq!(
        waiting.status.message,
        "0 of 3 nodes fit: 1 does not match node.role!=manager, 2 at the limit of 1 per node"
    );
}

#[test]
fn a_global_service_follows_the_nodes() {
    let mut sim = Sim::of(2);
    let mut spec = service("agent", 1, &[], &[tcp(9100, 9100)]);
    spec.mode = ServiceMode::Global;
    let agent = sim.create(&spec);
    sim.rest();
    assert_eq!(sim.serving(&agent), 2);
    let third = sim.join(3);
    sim.rest();
    assert_eq!(sim.serving(&agent), 3);
    assert!(sim.converged(&agent));

    sim.set_node("n3", NodeState::Down);
    sim.rest();
    assert_eq!(sim.ps(&agent).len(), 3, "its slot is that node: nothing to replace");
    assert!(sim.converged(&agent), "nobody waits for a dead node");
    sim.must(Command::RemoveNode { id: third, force: false });
    sim.rest();
    assert_eq!((sim.ps(&agent).len(), sim.state.tasks().len()), (2, 2));

    let second = sim.node("n2");
    sim.set_availability(&second, Availability::Drain);
    sim.run(10_000);
    assert_eq!(sim.ps(&agent).len(), 1);
    assert!(sim.converged(&agent));
}

#[test]
fn a_removed_node_is_denied_and_its_tasks_start_elsewhere_at_once() {
    let mut sim = Sim::of(2);
    let net = sim.network("backend", None);
    let web = sim.create(&service("web", 2, &[&net], &[]));
    sim.rest();
    let second = sim.node("n2");
    sim.must(Command::RemoveNode { id: second.clone(), force: true });
    sim.rest();
    assert_eq!(sim.serving(&web), 2);
    assert_eq!(sim.state.denied_until(&second).map(|t| t.since_ms(sim.now)), Some(7 * 86_400_000));
    assert!(crate::assignment::for_node(&sim.state, &second, sim.index).is_none());
}

#[test]
fn two_hosts_of_one_name_get_two_names() {
    let mut sim = Sim::of(1);
    let (token, secret_sha256) = sim.token(shoal_types::object::NodeRole::Worker, Some(3));
    for (n, hint) in [(8, "N1.example.org"), (9, "n1")] {
        let node = shoal_types::NodeId::from_entropy(sim.draw());
        let join = crate::command::Join {
            token: token.clone(),
            secret_sha256,
            node,
            name_hint: hint.to_owned(),
            data_addr: std::net::IpAddr::from([192, 168, 7, n]),
        };
        sim.must(Command::Join(Box::new(join)));
    }
    let mut names: Vec<_> = sim.state.nodes().values().map(|n| n.name.to_string()).collect();
    names.sort();
    assert_eq!(names, ["n1", "n1-2", "n1-3"]);
    assert_eq!(sim.state.tokens()[&token].uses_left, Some(1));
}

#[test]
fn a_new_leader_waits_for_everyone_again() {
    let mut sim = Sim::of(3);
    let web = sim.create(&service("web", 2, &[], &[tcp(8080, 80)]));
    sim.rest();
    sim.must(Command::ScaleService { id: web.clone(), replicas: 1 });
    sim.view = leader::LeaderView::default();
    sim.lead();
    sim.now.0 += 60_000;
    assert_eq!(sim.lead(), 0, "nobody has said what it programmed: the barrier holds");
    sim.run(10_000);
    assert_eq!(sim.ps(&web).len(), 1);
}

#[test]
fn a_new_task_counts_only_when_the_last_node_sends_it_its_share() {
    let mut sim = Sim::of(3);
    let web = sim.create(&service("web", 1, &[], &[tcp(8080, 80)]));
    sim.rest();
    let old = sim.live_task("web.1").id;
    let late = sim.node("n3");
    sim.mute.insert(late.clone());
    sim.update(&web, |s| s.task.force_update = 1);
    sim.rest();
    assert_eq!(sim.serving(&web), 2, "the new one runs");
    assert!(!sim.converged(&web));
    assert_eq!(sim.state.tasks()[&old].desired, DesiredState::Running, "but n3 does not know yet");
    sim.mute.clear();
    sim.run(10_000);
    assert!(sim.converged(&web));
    assert_eq!(sim.state.tasks()[&old].status.state, TaskState::Shutdown);
}

#[test]
fn a_minority_that_can_not_program_is_left_behind_and_keeps_its_tasks() {
    let mut sim = Sim::of(4);
    let web = sim.create(&service("web", 4, &[], &[tcp(8080, 80)]));
    let db = sim.create(&service("db", 1, &[], &[]));
    sim.rest();
    let late = ["n2", "n3", "n4"].map(|n| sim.node(n));
    sim.mute.extend(late.iter().cloned());
    sim.view.stalled.extend(late.iter().cloned());
    sim.must(Command::ScaleService { id: web.clone(), replicas: 3 });
    sim.run(60_000);
    assert!(!sim.converged(&web), "three of four fail: they may send flows to it, and nobody stops it");
    assert!(!sim.view.is_left_behind(&sim.state, &late[0]));
    sim.view.stalled.remove(&late[0]);
    sim.mute.remove(&late[0]);
    sim.run(60_000);
    assert!(sim.view.is_left_behind(&sim.state, &late[1]) && !sim.view.is_left_behind(&sim.state, &late[0]));
    assert!(sim.converged(&web) && sim.converged(&db));
    let on = |id: &NodeId| sim.state.tasks_of_node(id).filter(|t| t.is_serving()).count();
    assert!(late.iter().map(on).sum::<usize>() > 0, "what runs there serves on");
    // Back again, they count as before.
    sim.view.stalled.clear();
    sim.must(Command::ScaleService { id: web.clone(), replicas: 2 });
    sim.run(60_000);
    assert!(!sim.converged(&web));
    sim.mute.clear();
    sim.run(60_000);
    assert!(sim.converged(&web));
}

#[test]
fn reports_count_only_forward_and_only_for_the_nodes_own_tasks() {
    let mut sim = Sim::of(2);
    sim.create(&service("web", 1, &[], &[]));
    sim.rest();
    let task = sim.live_task("web.1");
    let host = task.node.clone().expect("placed");
    let other = if sim.node("n1") == host { sim.node("n2") } else { sim.node("n1") };
    let says =
        |sim: &Sim, state| TaskStatus { state, message: "x".repeat(9_999), ..sim.live_task("web.1").status };
    let wrong = [
        (other, TaskState::Failed),
        (host.clone(), TaskState::Starting),
        (host.clone(), TaskState::Pending),
        (host.clone(), TaskState::Orphaned),
    ];
    for (node, state) in wrong {
        let updates = vec![(task.id.clone(), says(&sim, state))];
        assert_eq!(sim.must(Command::ReportTasks { node, updates }), Outcome::Unchanged, "{state:?}");
    }
    let updates = vec![(task.id.clone(), says(&sim, TaskState::Failed))];
    assert_eq!(sim.must(Command::ReportTasks { node: host.clone(), updates }), Outcome::Done);
    let ended = sim.state.tasks()[&task.id].status.clone();
    assert_eq!((ended.state, ended.message.len()), (TaskState::Failed, 512));
    let updates = vec![(task.id.clone(), says(&sim, TaskState::Rejected))];
    assert_eq!(sim.must(Command::ReportTasks { node: host, updates }), Outcome::Unchanged, "it ended once");
    assert_eq!(sim.state.tasks()[&task.id].status, ended);
}

#[test]
fn an_ended_task_is_never_told_to_run_again() {
    let mut sim = Sim::of(1);
    let mut spec = service("job", 1, &[], &[]);
    spec.task.restart.condition = RestartCondition::None;
    sim.create(&spec);
    sim.rest();
    let task = sim.live_task("job.1");
    sim.report(&task.id, TaskState::Failed, Some(1));
    sim.rest();
    assert_eq!(sim.state.tasks()[&task.id].desired, DesiredState::Running, "nothing replaced it");
    let told: Vec<DesiredState> = sim.assignment("n1").tasks().map(|t| t.desired).collect();
    assert_eq!(told, [DesiredState::Shutdown]);
}
