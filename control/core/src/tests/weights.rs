//! Stories of nodes whose tasks get more or less of what is new.

use std::collections::{BTreeMap, BTreeSet};

use shoal_types::assignment::{Delta, Object};
use shoal_types::object::{Availability, NodeState};
use shoal_types::spec::{EndpointMode, ServiceSpec};
use shoal_types::{NodeId, Weight};

use super::sim::{Sim, service, tcp};
use crate::{Command, Outcome, view};

/// Three nodes with a task of `web` on each, which is published and on a network.
fn world() -> Sim {
    let mut sim = Sim::of(3);
    let front = sim.network("front", None);
    sim.create(&service("web", 3, &[&front], &[tcp(8080, 80)]));
    sim.run(60_000);
    sim
}

/// What a node's endpoints weigh, as `asked` is told.
fn told(sim: &Sim, asked: &str, of: &str) -> Vec<u8> {
    let of = sim.node(of);
    sim.assignment(asked).endpoints().filter(|e| e.node == of).map(|e| e.weight.get()).collect()
}

/// The change that a command makes to what a node was told.
fn delta(sim: &mut Sim, change: impl FnOnce(&mut Sim)) -> Delta {
    let before = sim.assignment("n1");
    change(sim);
    before.delta_to(&sim.assignment("n1"))
}

#[test]
fn every_node_is_told_and_nothing_else_changes() {
    let mut sim = world();
    let tasks = sim.state.tasks().clone();
    assert_eq!(told(&sim, "n1", "n2"), [1, 1], "in ingress and in front");
    let changed = delta(&mut sim, |sim| assert!(matches!(sim.weigh("n2", 5), Outcome::Node { .. })));
    assert_eq!(told(&sim, "n3", "n2"), [5, 5]);
    let of_n2 = |object: &Object| matches!(object, Object::Endpoint(e) if e.node == sim.node("n2"));
    assert!(changed.upserts.iter().all(of_n2), "{changed:?}");
    assert_eq!((changed.upserts.len(), changed.removes.len()), (2, 0));
    // Nothing is moved or started because of it, not by weight 0 either.
    sim.weigh("n2", 0);
    sim.run(60_000);
    assert_eq!(sim.state.tasks(), &tasks);
    assert!(sim.assignment("n1").endpoints().all(|e| e.serving), "idle is not withdrawn");
    let same = delta(&mut sim, |sim| drop(sim.weigh("n2", 0)));
    assert!(same.upserts.is_empty(), "{same:?}");
}

#[test]
fn a_weight_stays_and_goes_with_its_node() {
    let mut sim = world();
    sim.weigh("n2", 5);
    let id = sim.node("n2");
    let weight = |sim: &Sim, id: &NodeId| sim.state.nodes()[id].weight.get();
    sim.set_availability(&id, Availability::Pause);
    sim.hello(&id);
    sim.set_node("n2", NodeState::Down);
    sim.set_node("n2", NodeState::Ready);
    assert_eq!(weight(&sim, &id), 5, "of a node that was away and said hello");
    let fourth = sim.join(4);
    assert_eq!(weight(&sim, &fourth), 1);
    // With other changes it is one: all of it or nothing.
    let with_label = |id: &NodeId, key: &str| Command::WeighNode {
        id: id.clone(),
        weight: Weight::ZERO,
        availability: Some(Availability::Active),
        labels_add: BTreeMap::from([(key.to_owned(), "3".to_owned())]),
        labels_remove: vec![],
    };
    assert!(sim.propose(with_label(&id, "")).is_err());
    assert_eq!(weight(&sim, &id), 5);
    sim.must(with_label(&id, "rack"));
    let node = &sim.state.nodes()[&id];
    assert_eq!((node.weight, node.availability, node.labels.len()), (Weight::ZERO, Availability::Active, 1));
    assert!(sim.propose(with_label(&NodeId::from_entropy(1), "rack")).is_err());
}

#[test]
fn a_retry_is_applied_once() {
    let mut sim = world();
    let command = |weight| Command::WeighNode {
        id: sim.node("n2"),
        weight: Weight::try_from(weight).expect("in range"),
        availability: None,
        labels_add: BTreeMap::new(),
        labels_remove: vec![],
    };
    let (first, second) = (command(5), command(7));
    sim.propose_as(Some("r1"), first.clone()).expect("accepted");
    sim.must(second);
    sim.propose_as(Some("r1"), first).expect("remembered");
    assert_eq!(told(&sim, "n1", "n2"), [7, 7]);
}

#[test]
fn an_operator_is_told_of_services_that_take_no_connection() {
    let mut sim = world();
    let front = sim.state.networks().values().find(|n| !n.ingress).expect("there").id.clone();
    let spec = service("rotated", 3, &[&front], &[]);
    sim.create(&ServiceSpec { endpoint: EndpointMode::Dnsrr, ..spec });
    sim.create(&service("job", 3, &[], &[]));
    sim.run(60_000);
    let notes = |sim: &Sim, node: &str| view::without_share(&sim.state, Some(&sim.node(node)));
    for node in ["n1", "n2"] {
        sim.weigh(node, 0);
        assert!(notes(&sim, node).is_empty(), "n3 has all of it");
    }
    assert!(view::warnings(&sim.state).is_empty());
    sim.weigh("n3", 0);
    let line = "service 'web' takes no new connection, the nodes of all its tasks have weight 0: n1, n2, n3";
    assert_eq!(notes(&sim, "n3"), [line], "names of the other two have nothing to do with weights");
    assert_eq!(view::warnings(&sim.state), [line]);
    let nodes: BTreeSet<_> = sim.state.nodes().keys().cloned().collect();
    let fourth = sim.join(4);
    assert!(!nodes.contains(&fourth));
    assert!(notes(&sim, "n4").is_empty(), "no task of it is there");
    sim.weigh("n1", 1);
    assert!(notes(&sim, "n1").is_empty());
    sim.set_node("n1", NodeState::Suspect);
    assert_eq!(notes(&sim, "n2").len(), 1, "the one that would take them is out");
}
