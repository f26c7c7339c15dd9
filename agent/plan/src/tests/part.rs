//! A change planned by the part it is about comes to the same as one planned over everything.

use shoal_types::assignment::ObjectKey;

use super::direct::told;
use super::weights::weight;
use super::*;
use crate::desired::{Part, Services, derive_part, wants_direct};

/// What becomes of an object, by a number.
fn altered(object: &Assigned, how: u8) -> Option<Assigned> {
    let mut object = object.clone();
    match &mut object {
        Assigned::Endpoint(endpoint) => match how % 8 {
            0 => return None,
            1 => endpoint.serving = !endpoint.serving,
            2 => endpoint.node = node(how / 8 % 3),
            3 => endpoint.service = service_id(how / 8 % 3),
            4 => endpoint.network = network_id(how / 8 % 3),
            5 => endpoint.weight = weight(how / 8 % 3),
            _ => {}
        },
        Assigned::Service(service) => match how % 8 {
            0 => return None,
            1 => service.ports.clear(),
            2 => service.vips.clear(),
            3 => service.lb = LbPolicy::Source,
            4 => service.ports.iter_mut().for_each(|port| port.binding = binding(how / 8)),
            6 => service.ports.iter_mut().for_each(|port| port.proxy = None),
            7 => service.ports.iter_mut().for_each(|port| port.dsr = !port.dsr),
            5 => service.dnsrr.push(shoal_types::spec::AttachmentSpec {
                network: network_id(how / 8 % 3),
                aliases: vec![],
            }),
            _ => {}
        },
        _ => {}
    }
    Some(object)
}

proptest! {
    #[test]
    fn a_part_changes_what_everything_would(
        runs in proptest::collection::vec(run(), 0..8),
        how in proptest::collection::vec(any::<u8>(), 40),
        calm in 0..4_u8,
        is_direct in any::<bool>(),
    ) {
        let mut before = assignment(&runs);
        for object in before.objects.values_mut() {
            if let Assigned::Service(service) = object {
                service.ports.iter_mut().for_each(|port| port.dsr = is_direct);
            }
        }
        let mut after = Assignment::new(
            Generation(2),
            before.objects.values().zip(how.iter().cycle()).filter_map(|(object, how)| {
                if how % 4 < calm { Some(object.clone()) } else { altered(object, how / 4) }
            }),
        );
        // Something that was not there: an endpoint with the address of one that went.
        if let Some(gone) = before.endpoints().find(|e| after.endpoint(e.id).is_none()) {
            let again = Endpoint { id: EndpointId(900), ..gone.clone() };
            after.objects.insert(ObjectKey::Endpoint(again.id), Assigned::Endpoint(again));
        }
        let facts = Facts { peers: told(), ..facts(&before) };
        let changes = before.changes(&after);
        let cluster = after.cluster().expect("is there");
        let part = Part::of(&changes, &facts, cluster).expect("endpoints and services only");
        let mut services = Services::of(&before);
        services.add(&changes);
        let is_part = services.want_direct(&before) == services.want_direct(&after);
        prop_assert_eq!(services.want_direct(&before), wants_direct(&before));
        prop_assert_eq!(services.want_direct(&after), wants_direct(&after));
        let from = derive_part(&before, &facts, &part, &services).expect("says who the node is");
        let to = derive_part(&after, &facts, &part, &services).expect("says who the node is");
        services.drop_former(&changes);
        prop_assert_eq!(services, Services::of(&after));

        let (old, new) = (derive(&before, &facts).expect("as above"), derive(&after, &facts).expect("as above"));
        if is_part {
            prop_assert_eq!(by_key(&plan(&to, &from)), by_key(&plan(&new, &old)));
        }
    }
}

#[test]
fn a_change_of_anything_else_is_about_everything() {
    let runs =
        [Run { node: 0, service: 1, networks: vec![1], desired: DesiredState::Running, serving: true }];
    let before = assignment(&runs);
    let facts = facts(&before);
    let cluster = before.cluster().expect("is there");
    let part = |after: &Assignment| Part::of(&before.changes(after), &facts, cluster);
    assert_eq!(part(&before), Some(Part::default()));
    for kind in ["member", "network", "task", "cluster"] {
        let mut after = before.clone();
        for object in after.objects.values_mut() {
            match object {
                Assigned::Member(member) if kind == "member" => member.name = name("other"),
                Assigned::Network(network) if kind == "network" => network.internal = !network.internal,
                Assigned::Task(task) if kind == "task" => task.desired = DesiredState::Draining,
                Assigned::Cluster(cluster) if kind == "cluster" => cluster.data_port = 1,
                _ => {}
            }
        }
        assert_eq!(part(&after), None, "{kind}");
    }
    let mut after = before.clone();
    after.objects.remove(&ObjectKey::Service(service_id(0)));
    assert!(part(&after).is_some());
    let changes = before.changes(&after);
    let ipvs = Facts { engine: Engine::Ipvs, ..facts.clone() };
    assert_eq!(Part::of(&changes, &ipvs, cluster), None);
    let direct = ClusterView { direct: DirectRouting::Ready, ..cluster.clone() };
    assert_eq!(Part::of(&changes, &facts, &direct), None);
}

fn by_key<'a>(plan: &Plan<'a>) -> BTreeMap<Key, Op<'a>> {
    plan.ops().map(|op| (op.key(), op.clone())).collect()
}
