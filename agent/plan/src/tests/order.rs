//! What is there at every instant on the way from one state to another, by one plan or slice by slice.

use super::*;
use crate::desired::derive_slice;
use crate::{Slice, Step, steps};

/// An operation, done to the stand-in for the kernel.
fn done(op: &Op<'_>, observed: &Objects) -> Objects {
    let mut single = Plan::default();
    single.phases.push((op.phase(), vec![op.clone()]));
    applied(&single, observed)
}

fn only(slice: Slice, objects: &Objects) -> Objects {
    let of_slice = objects.iter().filter(|(key, _)| Slice::of(key) == slice);
    of_slice.map(|(key, object)| (key.clone(), object.clone())).collect()
}

/// Every state on the way, and what the last operation was about, when all is planned at once.
fn at_once(wanted: &Objects, start: &Objects) -> Vec<(Key, Objects)> {
    let mut states = Vec::new();
    let mut observed = start.clone();
    for op in plan(wanted, start).ops() {
        observed = done(op, &observed);
        states.push((op.key(), observed.clone()));
    }
    states
}

/// The same, when it is looked at and planned slice by slice.
fn in_steps(wanted: &Objects, start: &Objects) -> Vec<(Key, Objects)> {
    let slices = Slice::ALL.map(|slice| (only(slice, wanted), only(slice, start)));
    let mut plans = BTreeMap::new();
    let mut states: Vec<(Key, Objects)> = Vec::new();
    let observed =
        |states: &[(Key, Objects)]| states.last().map_or_else(|| start.clone(), |(_, o)| o.clone());
    for step in [Step::Look(Slice::Few)].into_iter().chain(steps()) {
        let due: Vec<Op<'_>> = match step {
            Step::Look(slice) => {
                let place = Slice::ALL.iter().position(|other| *other == slice).expect("one of all");
                // Only itself changes what is in a slice that is not looked at yet.
                assert_eq!(only(slice, &observed(&states)), slices[place].1);
                let plan = plan(&slices[place].0, &slices[place].1);
                let (now, later): (Vec<_>, Vec<_>) = plan
                    .ops()
                    .cloned()
                    .partition(|op| slice != Slice::Few && matches!(op, Op::Ensure { .. }));
                plans.insert(slice, later);
                now
            }
            Step::Phase(phase) => {
                plans.values().flatten().filter(|op| op.phase() == phase).cloned().collect()
            }
        };
        for op in due {
            let after = done(&op, &observed(&states));
            states.push((op.key(), after));
        }
    }
    states
}

/// What is published or led to at an instant without being there.
fn missing(observed: &Objects) -> Option<String> {
    let leads = |service, place: Place, mark| match mark {
        Some(mark) => observed.contains_key(&Key::Virtual(place, mark)),
        None => observed.contains_key(&Key::LbService(service)),
    };
    let is_whole = |object: &&Object| match object {
        Object::LbService(service) => {
            service.members.iter().all(|(id, _)| observed.contains_key(&Key::LbEndpoint(*id)))
        }
        Object::Port(port) => {
            leads(port.service, Place::Ingress, port.mark) && (port.mark.is_none() || has_gate(observed))
        }
        Object::Vip(vip) => leads(vip.service, Place::Network(network_id(1)), vip.mark),
        Object::Virtual(service) => observed.contains_key(&Key::Balancer(service.place.clone())),
        Object::Fdb(fdb) => observed.contains_key(&Key::Vxlan(fdb.link.clone())),
        Object::LbEndpoint(endpoint) if endpoint.local => {
            observed.contains_key(&Key::Leg(endpoint.link.clone()))
        }
        _ => true,
    };
    observed.values().find(|object| !is_whole(object)).map(|object| format!("{object:?}"))
}

fn has_gate(observed: &Objects) -> bool {
    matches!(observed.get(&Key::MeshConfig), Some(Object::MeshConfig(config)) if config.balancer.is_some())
}

proptest! {
    #[test]
    fn nothing_is_published_before_it_works_or_broken_before_it_is_withdrawn(
        before in (balance(), proptest::collection::vec(run(), 0..8)),
        after in (balance(), proptest::collection::vec(run(), 0..8)),
    ) {
        // A node does not let go of its balancers while a port still leads to them.
        prop_assume!(before.0.engine != Engine::Ipvs || after.0.engine != Engine::Ebpf);
        let (nothing, first) = (Objects::new(), balanced(before.0, &before.1));
        let start = applied(&plan(&first, &nothing), &nothing);
        let wanted = balanced(after.0, &after.1);
        let ways = [at_once(&wanted, &start), in_steps(&wanted, &start)];
        for (key, observed) in ways.iter().flatten() {
            let missing = missing(observed);
            prop_assert!(missing.is_none(), "after {:?}: {:?}", key, missing);
        }
        let [at_once, in_steps] = ways.map(|way| way.last().map(|(_, observed)| observed.clone()));
        prop_assert_eq!(at_once, in_steps);
    }

    #[test]
    fn every_object_is_in_one_slice(
        balance in balance(),
        runs in proptest::collection::vec(run(), 0..8),
    ) {
        let (assignment, facts) = told(balance, &runs);
        for slice in Slice::ALL {
            let objects = derive_slice(&assignment, &facts, slice).expect("says who the node is");
            prop_assert!(objects.keys().all(|key| Slice::of(key) == slice), "{:?}: {:?}", slice, objects);
        }
    }
}
