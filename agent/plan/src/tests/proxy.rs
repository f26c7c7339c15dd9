//! Ports whose tasks get a header of the PROXY protocol.

use super::*;

fn web(proxy: bool, engine: Engine) -> Objects {
    let run =
        |node| Run { node, service: 0, networks: vec![0], desired: DesiredState::Running, serving: true };
    let mut assignment = assignment(&[run(0), run(1)]);
    for object in assignment.objects.values_mut() {
        if let Assigned::Service(service) = object
            && service.id == service_id(0)
        {
            let port = |n| PublishedPort::everywhere(Protocol::Tcp, n, 80);
            let host = Binding { mode: PublishMode::Host, addr: None };
            let proxy = proxy.then_some(ProxyProtocol::V2);
            service.ports = vec![
                port(80),
                PublishedPort { proxy, ..port(81) },
                PublishedPort { proxy, binding: host, ..port(82) },
            ];
        }
    }
    let facts = Facts { engine, ..facts(&assignment) };
    derive(&assignment, &facts).expect("the assignment says who the node is")
}

/// Of each port of `web`: its header, whether a virtual service balances it, and how many endpoints its table has.
fn ports(objects: &Objects) -> Vec<(u16, bool, bool, usize)> {
    let found = objects.values().filter_map(|object| match object {
        Object::Port(port) if port.service.index == 1 => {
            let table = match objects.get(&Key::LbService(port.service)) {
                Some(Object::LbService(table)) => table.members.len(),
                _ => 0,
            };
            Some((port.place.port, port.proxy, port.mark.is_some(), table))
        }
        _ => None,
    });
    found.collect()
}

#[test]
fn a_port_with_a_header_is_balanced_by_the_table_on_either_engine() {
    for engine in [Engine::Ebpf, Engine::EbpfAfterIpvs] {
        let found = ports(&web(true, engine));
        assert_eq!(found, [(80, false, false, 2), (81, true, false, 2), (82, true, false, 1)], "{engine:?}");
    }
    let found = ports(&web(true, Engine::Ipvs));
    assert_eq!(found, [(80, false, true, 2), (81, true, false, 2), (82, true, false, 1)]);
    assert!(ports(&web(false, Engine::Ipvs)).iter().all(|(_, proxy, marked, _)| !proxy && *marked));
}

#[test]
fn switching_a_header_writes_the_port_and_takes_nothing_away() {
    for engine in [Engine::Ebpf, Engine::Ipvs] {
        for on in [true, false] {
            let (before, after) = (web(!on, engine), web(on, engine));
            let plan = plan(&after, &before);
            let is_port = |op: &Op<'_>| matches!(op, Op::Ensure { object: Object::Port(_), found: Some(_) });
            // The virtual service stays: connections that began on it go on.
            assert!(plan.ops().all(is_port) && plan.ops().count() == 2, "{engine:?}: {plan:?}");
        }
    }
}
