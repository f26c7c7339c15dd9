//! What resolvers are told.

use std::collections::BTreeSet;

use shoal_types::spec::AttachmentSpec;

use super::*;
use crate::object::{NetworkNames, Resolver};

/// Two tasks of service 0 in network 1, the second elsewhere and not serving; services 1 and 2 have none.
fn world(change: impl FnOnce(&mut Assignment)) -> Resolver {
    let runs = [(0, true), (1, false)].map(|(node, serving)| Run {
        node,
        service: 0,
        networks: vec![0, 1],
        desired: DesiredState::Running,
        serving,
    });
    let mut assignment = assignment(&runs);
    change(&mut assignment);
    let objects = derive(&assignment, &facts(&assignment)).expect("the assignment says who the node is");
    let mut found = objects.into_values().filter_map(|object| match object {
        Object::Resolver(resolver) => Some(resolver),
        _ => None,
    });
    *found.next().expect("the task has a resolver")
}

fn each_service(assignment: &mut Assignment, change: impl Fn(&mut AssignedService)) {
    for object in assignment.objects.values_mut() {
        if let Assigned::Service(service) = object {
            change(service);
        }
    }
}

pub(super) fn only(resolver: &Resolver) -> &NetworkNames {
    assert_eq!(resolver.networks.len(), 1, "ingress has no names");
    &resolver.networks[0]
}

#[test]
fn a_service_is_named_with_its_virtual_ips_and_the_ports_it_is_published_with() {
    let resolver = world(|_| {});
    let names = only(&resolver);
    assert_eq!(names.services.len(), 3, "also those without a task here");
    assert!(names.services.iter().all(|service| service.vips.len() == 2));
    assert_eq!(names.services[0].targets, BTreeSet::from([(Protocol::Tcp, 80)]));
    let tasks: Vec<_> =
        names.tasks.iter().map(|task| (task.service.as_str(), task.slot.as_str(), task.serving)).collect();
    assert_eq!(tasks, [("svc0", "0", true), ("svc0", "1", false)]);
}

#[test]
fn without_a_virtual_ip_names_and_aliases_stay() {
    let resolver = world(|assignment| {
        each_service(assignment, |service| {
            service.vips.clear();
            service.dnsrr = vec![AttachmentSpec { network: network_id(1), aliases: vec![name("db")] }];
        });
    });
    let names = only(&resolver);
    assert_eq!(names.services.len(), 3);
    assert!(names.services.iter().all(|service| service.vips.is_empty() && service.aliases == ["db"]));
}

#[test]
fn a_network_that_a_service_left_keeps_its_name_as_long_as_tasks_are_there() {
    let resolver = world(|assignment| each_service(assignment, |service| service.vips.clear()));
    let services: Vec<_> = only(&resolver).services.iter().map(|service| service.name.as_str()).collect();
    assert_eq!(services, ["svc0"]);
}

#[test]
fn tasks_of_global_services_have_their_node_s_id_in_their_name() {
    let resolver = world(|assignment| {
        for object in assignment.objects.values_mut() {
            if let Assigned::Endpoint(endpoint) = object {
                endpoint.slot = Slot::Node(endpoint.node.clone());
            }
        }
    });
    assert_eq!(only(&resolver).tasks[0].slot, node(0).short());
    let slots: BTreeSet<_> = (0..3).map(|n| node(n).short().to_owned()).collect();
    assert_eq!(resolver.reserved.slots, slots);
}

#[test]
fn a_service_s_own_servers_are_asked_for_its_tasks() {
    assert!(world(|_| {}).servers.is_empty());
    let server = "192.0.2.53".parse().expect("literal");
    let told = world(|assignment| {
        for object in assignment.objects.values_mut() {
            if let Assigned::Task(task) = object {
                task.dns.servers = vec![server];
            }
        }
    });
    assert_eq!(told.servers, [server]);
}

#[test]
fn what_managers_reserve_is_added_to_what_the_node_knows() {
    let own = world(|_| {}).reserved;
    assert_eq!(own.networks, BTreeSet::from(["net1".to_owned(), "net2".to_owned()]));
    let told = world(|assignment| {
        for object in assignment.objects.values_mut() {
            if let Assigned::Cluster(cluster) = object {
                cluster.reserved.networks = vec![name("elsewhere"), name("net1")];
                cluster.reserved.subnets = vec!["10.128.0.0/9".parse().expect("literal")];
            }
        }
    });
    let mut expected = own.networks.clone();
    expected.insert("elsewhere".to_owned());
    assert_eq!(told.reserved.networks, expected);
    assert_eq!(told.reserved.subnets.len(), own.subnets.len() + 1);
}
