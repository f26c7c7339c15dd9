//! What the programs at the control group know of a node's tasks.

use std::collections::BTreeSet;

use shoal_types::object::DesiredState;

use super::{Run, assignment, facts};
use crate::desired::derive;
use crate::object::{Client, Program};
use crate::{Facts, Key, Object, Objects, plan};

/// A task here on two networks, one here on one that should stop, and one elsewhere.
fn objects(change: impl FnOnce(&mut Facts)) -> Objects {
    let run = |node, networks, desired| Run { node, service: 1, networks, desired, serving: true };
    let assignment = assignment(&[
        run(0, vec![1, 2], DesiredState::Running),
        run(0, vec![1], DesiredState::Shutdown),
        run(1, vec![1], DesiredState::Running),
    ]);
    let mut facts = facts(&assignment);
    change(&mut facts);
    derive(&assignment, &facts).expect("says who the node is")
}

fn clients(objects: &Objects) -> Vec<&Client> {
    let clients = objects.values().filter_map(|object| match object {
        Object::Client(client) => Some(client),
        _ => None,
    });
    clients.collect()
}

#[test]
fn each_running_task_is_known_in_each_of_its_networks() {
    let objects = objects(|_| {});
    assert_eq!(objects.get(&Key::Connecting), Some(&Object::Connecting(true)));
    let clients = clients(&objects);
    let places: Vec<u32> = clients.iter().map(|client| client.place).collect();
    assert_eq!(places, [0, 1], "without gaps, and not in the ingress network: {clients:?}");
    let networks: BTreeSet<_> = clients.iter().map(|client| client.network).collect();
    assert_eq!(networks.len(), 2);
    for client in clients {
        let leg = objects.values().find_map(|object| match object {
            Object::TaskIf(leg) if leg.mac == client.mac => Some(leg),
            _ => None,
        });
        let leg = leg.expect("the same leg as its packets come by");
        assert_eq!(
            (leg.addr, leg.network.as_ref().map(|(vni, _)| *vni)),
            (client.addr, Some(client.network))
        );
        assert!(
            objects.contains_key(&Key::Hook(leg.host.clone(), Program::TaskTx)),
            "which goes on to be watched"
        );
    }
}

#[test]
fn switched_off_nothing_is_known_and_what_was_is_removed() {
    let (on, off) = (objects(|_| {}), objects(|facts| facts.connect_hooks = false));
    assert!(clients(&off).is_empty() && !off.contains_key(&Key::Connecting));
    let removed: BTreeSet<Key> = plan(&off, &on).ops().map(crate::Op::key).collect();
    let expected: BTreeSet<Key> = on.keys().filter(|key| !off.contains_key(key)).cloned().collect();
    assert_eq!(removed, expected, "although the task goes on");
    assert_eq!(removed.len(), 3);
}
