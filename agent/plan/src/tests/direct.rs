//! Ports whose clients are answered by the nodes of the tasks.

use super::*;
use crate::doors::{Addresses, Told};
use crate::object::{Door, DoorPlace, LbEndpoint, LocalAddr};

fn addr(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// What nodes 1 and 7 tell; the latter is none of the swarm, and nothing is known of node 2.
pub(super) fn told() -> Arc<Told> {
    let all = ["198.51.100.7", "2001:db8::1"].map(addr);
    let told = Arc::new(Addresses::of(all));
    Arc::new([(node(1), Arc::clone(&told)), (node(7), told)].into())
}

fn on(n: u8) -> Run {
    Run { node: n, service: 0, networks: vec![0, 1], desired: DesiredState::Running, serving: true }
}

/// A task on each node, of a service with these ports.
fn world(ports: &[PublishedPort]) -> Assignment {
    let mut assignment = assignment(&[on(0), on(1), on(2)]);
    for object in assignment.objects.values_mut() {
        if let Assigned::Service(service) = object
            && service.id == service_id(0)
        {
            service.ports = ports.to_vec();
        }
    }
    assignment
}

fn direct() -> PublishedPort {
    PublishedPort { dsr: true, ..PublishedPort::everywhere(Protocol::Tcp, 80, 80) }
}

fn objects(assignment: &Assignment, peers: Arc<Told>) -> Objects {
    derive(assignment, &Facts { peers, ..facts(assignment) }).expect("the assignment says who the node is")
}

fn doors(objects: &Objects) -> Vec<Door> {
    objects
        .values()
        .filter_map(|object| if let Object::Door(door) = object { Some(*door) } else { None })
        .collect()
}

/// Of every endpoint: whether it is of this node, and whether its node may answer.
fn endpoints(objects: &Objects) -> Vec<(u32, bool, bool)> {
    let found = objects.values().filter_map(|object| match object {
        Object::LbEndpoint(LbEndpoint { id, local, dsr, .. }) => Some((id.0, *local, *dsr)),
        _ => None,
    });
    found.collect()
}

#[test]
fn peers_that_told_their_addresses_answer_and_are_answered_for() {
    let objects = objects(&world(&[direct()]), told());
    let place = |number, family| DoorPlace { router: 2, number, family };
    let wanted = [
        Door { place: place(33, 4), addr: addr("198.51.100.7") },
        Door { place: place(63, 6), addr: addr("2001:db8::1") },
    ];
    assert_eq!(doors(&objects), wanted);
    let wanted = [
        (100, true, false),
        (101, true, false),
        (104, false, true),
        (105, false, true),
        (108, false, false),
        (109, false, false),
    ];
    assert_eq!(endpoints(&objects), wanted);
}

#[test]
fn without_such_a_port_nobody_answers_for_anybody() {
    let everywhere = PublishedPort::everywhere(Protocol::Tcp, 80, 80);
    let host = Binding { mode: PublishMode::Host, addr: None };
    // The managers take neither of the others.
    let none = [
        everywhere,
        PublishedPort { proxy: Some(ProxyProtocol::V2), ..direct() },
        PublishedPort { binding: host, ..direct() },
    ];
    for port in none {
        let objects = objects(&world(&[port]), told());
        assert_eq!(doors(&objects), []);
        assert!(endpoints(&objects).iter().all(|(_, _, dsr)| !dsr));
        assert!(objects.values().all(|object| !matches!(object, Object::Port(port) if port.dsr)));
    }
}

#[test]
fn who_tells_nothing_is_left_out_and_who_has_no_address_still_answers() {
    let assignment = world(&[direct()]);
    let objects_of = |told: Told| objects(&assignment, Arc::new(told));
    assert!(endpoints(&objects_of(Told::new())).iter().all(|(_, _, dsr)| !dsr));
    let found = objects_of([(node(2), Arc::default())].into());
    assert_eq!(doors(&found), []);
    let answering: Vec<u32> =
        endpoints(&found).iter().filter(|(_, _, dsr)| *dsr).map(|(id, ..)| *id).collect();
    assert_eq!(answering, [108, 109]);
}

#[test]
fn a_router_that_the_half_of_its_address_does_not_tell_is_left_out() {
    let mut assignment = world(&[direct()]);
    for object in assignment.objects.values_mut() {
        if let Assigned::Member(member) = object
            && member.node == node(1)
        {
            member.router = attachment(1 << 24 | 2, 0);
        }
    }
    let objects = objects(&assignment, told());
    assert_eq!(doors(&objects), []);
    assert!(endpoints(&objects).iter().all(|(_, _, dsr)| !dsr));
}

#[test]
fn own_addresses_have_the_numbers_that_others_know_them_by() {
    let assignment = world(&[]);
    let uplinks = ["192.0.2.1", "198.51.100.7"].map(addr).to_vec();
    let facts = Facts { uplinks: vec![uplink("eth0", 2, uplinks)], ..facts(&assignment) };
    let objects = derive(&assignment, &facts).expect("the assignment says who the node is");
    for (addr, door) in [(addr("192.0.2.1"), 15), (addr("198.51.100.7"), 33)] {
        let wanted = Object::LocalAddr(LocalAddr { addr, door, device: 2 });
        assert_eq!(objects.get(&Key::LocalAddr(addr)), Some(&wanted));
    }
}

/// Others may have the same ones.
#[test]
fn addresses_of_a_network_for_this_host_alone_have_none() {
    let assignment = world(&[]);
    let behind = |addrs| Uplink { inner: true, ..uplink("docker0", 7, addrs) };
    let (main, inner) = (addr("192.0.2.1"), addr("172.17.0.1"));
    for (uplinks, inner_door, main_device) in [
        (vec![uplink("eth0", 2, vec![main]), behind(vec![inner])], false, 2),
        // The tunnels' own address is on it: it is a way to the others.
        (vec![behind(vec![main, inner])], true, 7),
    ] {
        let facts = Facts { uplinks, ..facts(&assignment) };
        let objects = derive(&assignment, &facts).expect("the assignment says who the node is");
        let own = |addr| match objects.get(&Key::LocalAddr(addr)) {
            Some(Object::LocalAddr(own)) => (own.door != 0, own.device),
            _ => panic!("{addr} is not there"),
        };
        assert_eq!(own(main), (true, main_device));
        assert_eq!(own(inner), (inner_door, if inner_door { 7 } else { 0 }));
    }
}

#[test]
fn answers_leave_by_the_devices_that_lead_to_others() {
    let (main, other) = (addr("192.0.2.1"), addr("198.51.100.7"));
    let behind = |addrs| Uplink { inner: true, ..uplink("wg0", 7, addrs) };
    let outward = |uplinks, port| {
        let assignment = world(&[port]);
        let facts = Facts { uplinks, ..facts(&assignment) };
        let objects = derive(&assignment, &facts).expect("the assignment says who the node is");
        let found =
            objects.values().filter_map(|o| if let Object::Outward(at) = o { Some(*at) } else { None });
        found.collect::<Vec<_>>()
    };
    let everywhere = PublishedPort::everywhere(Protocol::Tcp, 80, 80);
    for (inner, port, wanted) in [
        // With 0, as there is more than one.
        (vec![other], direct(), &[0, 2, 3][..]),
        (vec![other], everywhere, &[0, 2, 3]),
        // The tunnels' own address is on it.
        (vec![facts(&world(&[])).data_addr, other], direct(), &[0, 2, 3, 7]),
    ] {
        let uplinks = vec![uplink("eth0", 2, vec![main]), uplink("eth1", 3, vec![other]), behind(inner)];
        assert_eq!(outward(uplinks, port), wanted);
    }
    for (port, wanted) in [(direct(), &[2][..]), (everywhere, &[])] {
        assert_eq!(outward(vec![uplink("eth0", 2, vec![main]), behind(vec![other])], port), wanted);
    }
}

#[test]
fn such_a_port_is_balanced_by_the_table_on_either_engine() {
    for (engine, is_marked) in [(Engine::Ebpf, false), (Engine::EbpfAfterIpvs, false), (Engine::Ipvs, true)] {
        let other = PublishedPort::everywhere(Protocol::Tcp, 81, 80);
        let assignment = world(&[direct(), other]);
        let facts = Facts { engine, peers: told(), ..facts(&assignment) };
        let objects = derive(&assignment, &facts).expect("the assignment says who the node is");
        let port = |n| match objects.get(&Key::Port(PublishedPort::everywhere(Protocol::Tcp, n, 80).place()))
        {
            Some(Object::Port(port)) => (port.dsr, port.mark.is_some()),
            _ => panic!("port {n} is not published"),
        };
        assert_eq!((port(80), port(81)), ((true, false), (false, is_marked)), "{engine:?}");
    }
}
