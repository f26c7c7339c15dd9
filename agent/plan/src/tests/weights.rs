//! What becomes of the weights of nodes.

use super::names::only;
use super::*;
use crate::desired::{Part, Services, derive_part};
use crate::object::{Takes, VirtualForward, VirtualScheduler};

pub(super) fn weight(n: u8) -> Weight {
    Weight::try_from(u32::from(n)).expect("in range")
}

/// A task of service 0 on each of three nodes of these weights, one of which drains if it is given, in network 1, with a port on
/// every node and one in host mode.
fn world(weights: [u8; 3], drains: Option<u8>, lb: LbPolicy) -> Assignment {
    let runs = [0, 1, 2].map(|n| Run {
        node: n,
        service: 0,
        networks: vec![0, 1],
        desired: DesiredState::Running,
        serving: drains != Some(n),
    });
    let mut assignment = assignment(&runs);
    for object in assignment.objects.values_mut() {
        match object {
            Assigned::Cluster(cluster) => cluster.direct = DirectRouting::Ready,
            Assigned::Endpoint(endpoint) => {
                let n = (0..3).find(|n| endpoint.node == node(*n)).expect("one of three");
                endpoint.weight = weight(weights[usize::from(n)]);
            }
            Assigned::Service(service) if service.id == service_id(0) => {
                let host = Binding { mode: PublishMode::Host, addr: None };
                let port = |n| PublishedPort::everywhere(Protocol::Tcp, n, 80);
                service.ports = vec![port(80), PublishedPort { binding: host, ..port(81) }];
                service.lb = lb;
            }
            _ => {}
        }
    }
    assignment
}

fn objects(assignment: &Assignment, engine: Engine) -> Objects {
    let facts = Facts { engine, ..facts(assignment) };
    derive(assignment, &facts).expect("the assignment says who the node is")
}

/// The shares in the tables of service 0: of its virtual IP, of its port, of the one in host mode.
fn tables(objects: &Objects) -> [Vec<u8>; 3] {
    [(2, false), (1, false), (1, true)].map(|(vni, own)| {
        let network = Vni::new(vni).expect("in range");
        match objects.get(&Key::LbService(ServiceKey { network, index: 1, own })) {
            Some(Object::LbService(table)) => table.members.iter().map(|(_, share)| *share).collect(),
            _ => panic!("no table in network {vni}"),
        }
    })
}

/// The same of its virtual services, and how they choose.
fn virtuals(objects: &Objects) -> [(VirtualScheduler, Vec<u32>); 3] {
    let mut found = objects.values().filter_map(|object| match object {
        Object::Virtual(service) if service.destinations.is_empty() => None,
        Object::Virtual(service) => {
            let weights: Vec<u32> = service.destinations.values().map(|to| to.weight).collect();
            let place = (service.forward == VirtualForward::Translated(80), service.mark);
            Some((place, (service.scheduler, weights)))
        }
        _ => None,
    });
    let found: BTreeMap<_, _> = found.by_ref().collect();
    let found: Vec<_> = found.into_values().collect();
    found.try_into().expect("three")
}

#[test]
fn tables_have_the_weights_of_nodes_but_in_host_mode() {
    let tables = |weights, drains| tables(&objects(&world(weights, drains, LbPolicy::Auto), Engine::Ebpf));
    assert_eq!(tables([1, 1, 1], None), [vec![1, 1, 1], vec![1, 1, 1], vec![1]]);
    assert_eq!(tables([3, 100, 1], None), [vec![3, 100, 1], vec![3, 100, 1], vec![1]]);
    assert_eq!(tables([0, 2, 1], None), [vec![2, 1], vec![2, 1], vec![1]], "its own port is its own");
    assert_eq!(tables([5, 2, 1], Some(0)), [vec![2, 1], vec![2, 1], vec![]], "what drains has no share");
    assert_eq!(tables([0, 0, 0], None), [vec![], vec![], vec![1]], "refused, as without endpoints");
}

#[test]
fn an_endpoint_of_weight_0_is_idle_and_does_not_drain() {
    use Takes::{All, None, Own};
    let objects = objects(&world([0, 1, 0], Some(2), LbPolicy::Auto), Engine::Ebpf);
    let takes: Vec<_> = objects
        .values()
        .filter_map(|object| match object {
            Object::LbEndpoint(endpoint) => Some(endpoint.takes),
            _ => Option::None,
        })
        .collect();
    assert_eq!(takes, [Own, Own, All, All, None, None], "in two networks each");
}

#[test]
fn virtual_services_have_weights_and_schedulers_that_mind_them() {
    use VirtualScheduler::{
        LeastConnections, Maglev, RoundRobin, Source, WeightedLeastConnections, WeightedRoundRobin,
    };
    for (lb, vip, port, weighted_vip, weighted_port) in [
        (LbPolicy::Auto, RoundRobin, Maglev, WeightedRoundRobin, Maglev),
        (LbPolicy::RoundRobin, RoundRobin, RoundRobin, WeightedRoundRobin, WeightedRoundRobin),
        (
            LbPolicy::LeastConnections,
            LeastConnections,
            LeastConnections,
            WeightedLeastConnections,
            WeightedLeastConnections,
        ),
        (LbPolicy::Maglev, Maglev, Maglev, Maglev, Maglev),
        (LbPolicy::Source, Source, Source, Source, Source),
    ] {
        let virtuals = |weights, drains| virtuals(&objects(&world(weights, drains, lb), Engine::Ipvs));
        // Of the virtual IP, of the port in host mode, where the weight is no matter, and of the other one.
        let all = |weights: [u32; 3]| (vip, weights.to_vec());
        let [of_vip, of_port, of_host] = virtuals([2, 2, 2], None);
        assert_eq!((of_vip, of_port), (all([2, 2, 2]), (port, vec![2, 2, 2])), "{lb}");
        assert_eq!(of_host, (port, vec![1]));
        let [of_vip, of_port, of_host] = virtuals([3, 0, 3], None);
        assert_eq!(
            (of_vip, of_port),
            (all([3, 0, 3]), (port, vec![3, 0, 3])),
            "{lb}: alike but for the idle"
        );
        assert_eq!(of_host, (port, vec![1]));
        let [of_vip, of_port, of_host] = virtuals([3, 1, 3], None);
        assert_eq!(of_vip, (weighted_vip, vec![3, 1, 3]), "{lb}");
        assert_eq!(of_port, (weighted_port, vec![3, 1, 3]), "{lb}");
        assert_eq!(of_host, (port, vec![1]), "{lb}");
        let [of_vip, _, _] = virtuals([3, 1, 3], Some(1));
        assert_eq!(of_vip, all([3, 0, 3]), "{lb}: the one that differs drains");
    }
}

#[test]
fn a_draining_endpoint_is_a_destination_without_weight() {
    let [of_vip, of_port, of_host] =
        virtuals(&objects(&world([5; 3], Some(0), LbPolicy::Auto), Engine::Ipvs));
    assert_eq!((of_vip.1, of_port.1, of_host.1), (vec![0, 5, 5], vec![0, 5, 5], vec![0]));
}

/// A change of a weight writes tables, and of the endpoint only whether it is idle.
#[test]
fn a_change_of_weight_touches_the_tables_of_its_services_only() {
    let mut before = world([1, 1, 1], None, LbPolicy::Auto);
    for object in before.objects.values_mut() {
        if let Assigned::Cluster(cluster) = object {
            cluster.direct = DirectRouting::Off;
        }
    }
    let facts = facts(&before);
    for (to, endpoints) in [(4, 0), (0, 2)] {
        let mut after = before.clone();
        for object in after.objects.values_mut() {
            if let Assigned::Endpoint(endpoint) = object
                && endpoint.node == node(1)
            {
                endpoint.weight = weight(to);
            }
        }
        let changes = before.changes(&after);
        assert_eq!(changes.len(), 2, "its endpoints in two networks");
        let part =
            Part::of(&changes, &facts, after.cluster().expect("is there")).expect("no more than a part");
        let services = Services::of(&before);
        let [old, new] = [&before, &after].map(|assignment| {
            derive_part(assignment, &facts, &part, &services).expect("says who the node is")
        });
        let plan = plan(&new, &old);
        let kinds: Vec<&str> = plan.ops().map(|op| op.object().kind()).collect();
        let count = |kind: &str| kinds.iter().filter(|found| **found == kind).count();
        assert_eq!((count("service"), count("endpoint")), (2, endpoints), "{kinds:?}");
        // A task's resolver has its name in turn only while it is not idle.
        assert_eq!(kinds.len(), 2 + endpoints + usize::from(to == 0), "{kinds:?}");
    }
}

#[test]
fn names_tell_who_is_idle() {
    let objects = objects(&world([1, 0, 2], None, LbPolicy::Auto), Engine::Ebpf);
    let resolver = objects.values().find_map(|object| match object {
        Object::Resolver(resolver) => Some(resolver),
        _ => None,
    });
    let idle: Vec<_> = only(resolver.expect("the task has one")).tasks.iter().map(|task| task.idle).collect();
    assert_eq!(idle, [false, true, false]);
}
