//! The rules of a plan, as code. Run in tests over generated plans, and by the agent over each plan in debug builds.

use std::collections::BTreeSet;

use crate::diff::{Op, Plan};
use crate::name::IfName;
use crate::object::{Goal, Key, Object, Objects, Place, Task};

/// A rule that a plan breaks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// Phases out of order.
    #[error("phase {later} comes before {earlier}")]
    Order {
        /// What comes first and should not.
        later: String,
        /// What comes after it.
        earlier: String,
    },
    /// An operation in a phase that isn't its own.
    #[error("{0:?} is in the wrong phase")]
    Misplaced(Key),
    /// Two operations on one object.
    #[error("{0:?} is changed twice")]
    Twice(Key),
    /// A removal of something that the node was not found to own.
    #[error("{0:?} is removed without having been observed as ours")]
    NotOwned(Key),
    /// A removal of something that is wanted.
    #[error("{0:?} is removed although it is desired")]
    Wanted(Key),
    /// An object that refers to one that will not be there.
    #[error("{from:?} needs {to:?}, which is not desired")]
    Dangling {
        /// Who refers.
        from: Key,
        /// To what.
        to: Key,
    },
}

/// Every rule that a plan breaks. `is_wanted` tells of objects that are not in `desired`, as it is a slice, whether they are.
pub fn check(
    desired: &Objects,
    observed: &Objects,
    plan: &Plan<'_>,
    is_wanted: impl Fn(&Key) -> bool,
) -> Vec<Violation> {
    let is_wanted = |key: &Key| desired.contains_key(key) || is_wanted(key);
    let mut violations = Vec::new();
    for pair in plan.phases.windows(2) {
        if let [(first, _), (second, _)] = pair
            && first >= second
        {
            violations.push(Violation::Order { later: format!("{first:?}"), earlier: format!("{second:?}") });
        }
    }
    let mut seen = BTreeSet::new();
    for (phase, ops) in &plan.phases {
        for op in ops {
            let key = op.key();
            if op.phase() != *phase {
                violations.push(Violation::Misplaced(key.clone()));
            }
            match op {
                Op::Remove { .. } if !observed.contains_key(&key) => {
                    violations.push(Violation::NotOwned(key.clone()));
                }
                Op::Remove { .. } if desired.contains_key(&key) => {
                    violations.push(Violation::Wanted(key.clone()));
                }
                Op::Ensure { object, .. } => dangling(object, is_wanted, &mut violations),
                Op::Remove { .. } => {}
            }
            if !seen.insert(key.clone()) {
                violations.push(Violation::Twice(key));
            }
        }
    }
    violations
}

fn dangling(object: &Object, is_wanted: impl Fn(&Key) -> bool, violations: &mut Vec<Violation>) {
    for to in references(object) {
        if !is_wanted(&to) {
            violations.push(Violation::Dangling { from: object.key(), to });
        }
    }
}

/// What an object needs to be there before it.
pub fn references(object: &Object) -> Vec<Key> {
    match object {
        Object::Vxlan(o) => vec![Key::Bridge(o.bridge.clone())],
        Object::Fdb(o) => vec![Key::Vxlan(o.link.clone())],
        Object::Neighbor(o) => vec![Key::Vxlan(o.link.clone())],
        Object::Leg(o) => vec![Key::Bridge(o.bridge.clone()), Key::Sandbox(o.task.clone())],
        Object::Balancer(o) => vec![Key::Bridge(o.leg.bridge.clone())],
        Object::BalancerIf(o) => vec![Key::Vxlan(o.vxlan.clone())],
        Object::Virtual(o) => vec![Key::Balancer(o.place.clone())],
        Object::MeshConfig(o) => o.balancer.iter().map(|_| Key::Balancer(Place::Ingress)).collect(),
        Object::Tunnel(o) => vec![Key::Vxlan(o.vxlan.clone())],
        Object::Peer(o) => vec![Key::Vxlan(o.vxlan.clone())],
        Object::TaskIf(o) => vec![Key::Leg(o.host.clone())],
        Object::Client(o) => vec![Key::Sandbox(o.task.clone())],
        Object::Local(o) => vec![Key::Vxlan(o.vxlan.clone()), Key::Leg(o.veth.clone())],
        Object::LbEndpoint(o) => vec![link_key(o.local, &o.link)],
        Object::LbService(o) => o.members.iter().map(|(id, _)| Key::LbEndpoint(*id)).collect(),
        Object::Vip(o) if o.mark.is_none() => vec![Key::LbService(o.service)],
        Object::Port(o) => match o.mark {
            Some(mark) => vec![Key::Virtual(Place::Ingress, mark), Key::MeshConfig],
            None => vec![Key::LbService(o.service)],
        },
        Object::Resolver(o) => vec![Key::Sandbox(o.task.clone())],
        Object::Task(Task { id, goal: Goal::Run, .. }) => {
            vec![Key::Sandbox(id.clone()), Key::Resolver(id.clone())]
        }
        _ => Vec::new(),
    }
}

fn link_key(local: bool, link: &IfName) -> Key {
    if local { Key::Leg(link.clone()) } else { Key::Vxlan(link.clone()) }
}
