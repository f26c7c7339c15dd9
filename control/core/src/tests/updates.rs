//! Rolling updates and drains: at no step fewer tasks serve than were asked for.

use std::collections::BTreeMap;

use proptest::prelude::*;
use shoal_types::NodeId;
use shoal_types::assignment::Assignment;
use shoal_types::object::{Availability, DesiredState, TaskState};
use shoal_types::spec::{UpdateConfig, UpdateOrder};

use super::sim::{Sim, service, tcp};
use crate::assignment::for_node;
use crate::{Command, leader};

/// Runs turn by turn; the smallest number of serving tasks and the largest of live ones on the way.
fn watch(sim: &mut Sim, web: &shoal_types::ServiceId, turns: usize) -> (usize, usize) {
    let (mut least, mut most) = (usize::MAX, 0);
    for _ in 0..turns {
        let before = sim.view.applied.clone();
        let moved = sim.lead() + sim.work();
        least = least.min(sim.serving(web));
        most = most.max(sim.ps(web).len());
        if moved == 0 && before == sim.view.applied && !sim.tick_within(60_000) {
            break;
        }
    }
    (least, most)
}

#[test]
fn start_first_never_serves_with_fewer_than_were_asked_for() {
    let mut sim = Sim::of(3);
    let web = sim.create(&service("web", 5, &[], &[tcp(8080, 80)]));
    sim.rest();
    sim.update(&web, |s| {
        s.task.process.command.push("v2".to_owned());
        s.update.parallelism = 2;
    });
    let (least, most) = watch(&mut sim, &web, 500);
    assert!(least >= 5, "{least} served");
    assert!(most <= 7, "{most} at a time with parallelism 2");
    assert!(sim.converged(&web));
    assert!(sim.state.tasks_of_service(&web).filter(|t| t.is_serving()).all(|t| t.task_version == 2));
}

#[test]
fn stop_first_empties_a_slot_before_it_fills_it() {
    let mut sim = Sim::of(2);
    let mut spec = service("db", 3, &[], &[tcp(5432, 5432)]);
    spec.update = UpdateConfig { parallelism: 1, delay_ms: 0, order: UpdateOrder::StopFirst };
    let db = sim.create(&spec);
    sim.rest();
    sim.update(&db, |s| s.task.process.command.push("v2".to_owned()));
    for _ in 0..500 {
        let before = sim.view.applied.clone();
        let moved = sim.lead() + sim.work();
        for slot in 1..=3 {
            let alive = sim.state.tasks_of_service(&db).filter(|t| {
                t.slot == shoal_types::object::Slot::Number(slot) && !t.status.state.is_terminal()
            });
            assert!(alive.count() <= 1, "two at once in slot {slot}");
        }
        assert!(sim.serving(&db) >= 2, "one at a time");
        if moved == 0 && before == sim.view.applied && !sim.tick_within(60_000) {
            break;
        }
    }
    assert!(sim.converged(&db));
    assert_eq!(sim.ps(&db).len(), 3);
}

#[test]
fn a_pause_between_batches_is_kept() {
    let mut sim = Sim::of(1);
    let web = sim.create(&service("web", 3, &[], &[]));
    sim.rest();
    sim.now.0 += 1_000;
    sim.update(&web, |s| {
        s.task.force_update = 1;
        s.update.delay_ms = 10_000;
    });
    let updated = |sim: &Sim| {
        sim.state.tasks_of_service(&web).filter(|t| t.is_serving() && t.task_version == 2).count()
    };
    sim.rest();
    assert_eq!(updated(&sim), 1);
    assert_eq!(leader::next_deadline(&sim.state, sim.now).map(|t| t.since_ms(sim.now)), Some(10_000));
    sim.run(9_999);
    assert_eq!(updated(&sim), 1);
    sim.run(1);
    assert_eq!(updated(&sim), 2);
    sim.run(10_000);
    assert_eq!(updated(&sim), 3);
    assert!(sim.converged(&web));
}

#[test]
fn a_spec_that_does_not_start_stops_at_the_first_batch() {
    let mut sim = Sim::of(2);
    let web = sim.create(&service("web", 4, &[], &[tcp(8080, 80)]));
    sim.rest();
    sim.update(&web, |s| s.task.resources.reserve_memory = 1 << 60);
    sim.run(120_000);
    assert_eq!(sim.serving(&web), 4, "the old ones go on");
    assert_eq!(sim.ps(&web).len(), 5);
    assert!(!sim.converged(&web));
    // And the way back is open.
    sim.update(&web, |s| s.task.resources.reserve_memory = 0);
    sim.run(120_000);
    assert!(sim.converged(&web), "{:?}", sim.ps(&web));
}

#[test]
fn publishing_the_first_port_replaces_tasks_and_another_one_does_not() {
    let mut sim = Sim::of(2);
    let net = sim.network("backend", None);
    let web = sim.create(&service("web", 2, &[&net], &[]));
    sim.rest();
    sim.update(&web, |s| s.ports = vec![tcp(8080, 80)]);
    assert_eq!(sim.state.services()[&web].task_version, 2);
    sim.run(60_000);
    assert!(sim.converged(&web));
    sim.update(&web, |s| s.ports.push(tcp(8443, 443)));
    assert_eq!(sim.state.services()[&web].task_version, 2);
    assert!(!sim.converged(&web), "not before the nodes answer on the new port");
    sim.rest();
    assert!(sim.converged(&web));
}

#[test]
fn draining_a_node_moves_its_tasks_without_a_gap() {
    let mut sim = Sim::of(3);
    let web = sim.create(&service("web", 3, &[], &[tcp(8080, 80)]));
    sim.rest();
    let id = sim.node("n2");
    sim.set_availability(&id, Availability::Drain);
    let (least, _) = watch(&mut sim, &web, 200);
    assert!(least >= 3, "{least} served");
    assert!(sim.state.tasks_of_node(&id).all(|t| t.status.state == TaskState::Shutdown));
    assert!(sim.converged(&web));
    sim.must(Command::RemoveNode { id, force: false });
    sim.rest();
}

#[test]
fn a_leader_whose_clock_is_behind_makes_no_task_too_many() {
    let mut sim = Sim::of(3);
    let web = sim.create(&service("web", 3, &[], &[tcp(8080, 80)]));
    sim.rest();
    let before = sim.state.latest();
    sim.now.0 -= 3_600_000;
    let id = sim.node("n2");
    sim.set_availability(&id, Availability::Drain);
    sim.update(&web, |s| s.task.force_update = 1);
    sim.run(60_000);
    assert!(sim.converged(&web), "{:?}", sim.ps(&web));
    assert!(sim.state.counters.tasks <= 7, "{} tasks were made", sim.state.counters.tasks);
    assert_eq!(sim.state.latest(), before);
}

#[test]
fn a_drained_node_is_emptied_even_when_there_is_no_other_place() {
    let mut sim = Sim::of(1);
    let web = sim.create(&service("web", 1, &[], &[tcp(8080, 80)]));
    sim.rest();
    let id = sim.node("n1");
    sim.set_availability(&id, Availability::Drain);
    sim.run(20_000);
    assert_eq!(sim.ps(&web), ["web.1 - Pending"]);
    assert_eq!(sim.live_task("web.1").status.message, "0 of 1 nodes fit: 1 drained");
    assert!(sim.state.tasks_of_node(&id).all(|t| t.desired == DesiredState::Shutdown));
}

#[test]
fn one_per_node_can_be_updated_on_full_nodes() {
    let mut sim = Sim::of(3);
    let mut spec = service("web", 3, &[], &[tcp(8080, 80)]);
    spec.task.max_per_node = 1;
    let web = sim.create(&spec);
    sim.rest();
    sim.update(&web, |s| s.task.force_update = 1);
    sim.run(60_000);
    assert!(sim.converged(&web), "{:?}", sim.ps(&web));
}

#[derive(Debug, Clone, Copy)]
enum Turn {
    Lead,
    Work(u8),
    Time,
}

fn turn() -> impl Strategy<Value = Turn> {
    prop_oneof![3 => Just(Turn::Lead), 6 => (0..4_u8).prop_map(Turn::Work), 1 => Just(Turn::Time)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// However late nodes hear of it, an update or a scale-down by start-first leaves as many tasks serving as were
    /// asked for, in the view of every single node.
    #[test]
    fn start_first_never_serves_with_fewer_however_late_nodes_are(
        replicas in 1..7_u32,
        parallelism in 0..4_u32,
        drain_ms in prop_oneof![Just(0_u64), Just(3_000)],
        turns in prop::collection::vec(turn(), 1..200),
    ) {
        let mut sim = Sim::of(4);
        let mut spec = service("web", replicas + 1, &[], &[tcp(8080, 80)]);
        spec.drain_ms = drain_ms;
        let web = sim.create(&spec);
        sim.rest();
        let nodes: Vec<NodeId> = sim.state.nodes().keys().cloned().collect();
        let mut told: BTreeMap<NodeId, Assignment> =
            nodes.iter().map(|n| (n.clone(), for_node(&sim.state, n, sim.index).expect("a member"))).collect();
        sim.must(Command::ScaleService { id: web.clone(), replicas });
        sim.update(&web, |s| {
            s.task.force_update = 1;
            s.update.parallelism = parallelism;
        });
        for turn in turns {
            match turn {
                Turn::Lead => { sim.lead(); }
                Turn::Work(n) => {
                    let node = &nodes[usize::from(n)];
                    told.insert(node.clone(), for_node(&sim.state, node, sim.index).expect("a member"));
                    sim.work_one(node);
                }
                Turn::Time => { sim.tick_within(60_000); }
            }
            for (node, view) in &told {
                let serving: Vec<_> = view.endpoints().filter(|e| e.serving).collect();
                prop_assert!(serving.len() >= usize::try_from(replicas).expect("small"), "{node}: {}", serving.len());
                for endpoint in serving {
                    let task = sim.state.tasks().get(&endpoint.task);
                    let runs = task.is_some_and(|t| t.status.state == TaskState::Running);
                    prop_assert!(runs, "{node} sends flows to {endpoint:?}, which is {task:?}");
                }
            }
        }
        sim.run(600_000);
        prop_assert!(sim.converged(&web));
    }
}
