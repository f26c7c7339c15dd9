//! Published ports: scopes, host mode, limits.

use std::collections::BTreeMap;
use std::net::IpAddr;

use shoal_types::ErrorCode;
use shoal_types::id::ServiceId;
use shoal_types::lb::{LbEngine, LbPolicy};
use shoal_types::net::Protocol;
use shoal_types::object::{NodeState, TaskState, Timestamp};
use shoal_types::port::{Binding, ProxyProtocol, PublishMode};
use shoal_types::spec::{PortSpec, ServiceMode, ServiceSpec, UpdateOrder};

use super::sim::{Sim, name, service, tcp};
use crate::ports::{Asker, OwnPorts, PortTable};
use crate::{Command, Entry, Rejection, State};

fn on(addr: &str, port: PortSpec) -> PortSpec {
    let addr: IpAddr = addr.parse().expect("an address");
    PortSpec { binding: Binding { addr: Some(addr), ..port.binding }, ..port }
}

fn host(port: PortSpec) -> PortSpec {
    PortSpec { binding: Binding { mode: PublishMode::Host, ..port.binding }, ..port }
}

fn headed(port: PortSpec) -> PortSpec {
    PortSpec { proxy: Some(ProxyProtocol::V2), ..port }
}

fn direct(port: PortSpec) -> PortSpec {
    PortSpec { dsr: true, ..port }
}

fn publishing(text: &str, replicas: u32, ports: &[PortSpec]) -> ServiceSpec {
    let mut spec = service(text, replicas, &[], ports);
    spec.update.order = UpdateOrder::StopFirst;
    spec.drain_ms = 0;
    spec
}

fn refused(sim: &mut Sim, spec: ServiceSpec) -> Rejection {
    let id = ServiceId::from_entropy(sim.draw());
    let rejection = sim.propose(Command::CreateService { id, spec: Box::new(spec) }).expect_err("refused");
    assert!(!rejection.help().is_empty());
    rejection
}

fn update(sim: &mut Sim, id: &ServiceId, ports: &[PortSpec]) -> Result<(), Rejection> {
    let spec = Box::new(ServiceSpec { ports: ports.to_vec(), ..sim.state.services()[id].spec.clone() });
    sim.propose(Command::UpdateService { id: id.clone(), spec, expect_version: None }).map(drop)
}

/// Why the service's task waits.
fn waits(sim: &Sim, id: &ServiceId) -> Vec<String> {
    let pending = sim.state.tasks_of_service(id).filter(|t| t.status.state == TaskState::Pending);
    pending.map(|t| t.status.message.clone()).collect()
}

#[test]
fn one_port_on_different_addresses_may_be_of_different_services() {
    let mut sim = Sim::of(2);
    for (name, addr) in [("a", "192.0.2.1"), ("b", "192.0.2.2"), ("c", "2001:db8::1")] {
        sim.create(&publishing(name, 1, &[on(addr, tcp(8080, 80))]));
    }
    let same = refused(&mut sim, publishing("d", 1, &[on("192.0.2.2", tcp(8080, 80))]));
    assert_eq!(same.code(), ErrorCode::PortTaken);
    assert_eq!(
        same.to_string(),
        "port 192.0.2.2:8080/tcp (ingress) overlaps 192.0.2.2:8080/tcp (ingress) of service 'b'"
    );
    assert_eq!(
        same.help(),
        "choose another port or address, or 'shoal service update --publish-rm \
         published=8080,protocol=tcp,ip=192.0.2.2 b'"
    );
    let all = refused(&mut sim, publishing("d", 1, &[tcp(8079, 80), tcp(8080, 80)]));
    assert!(all.to_string().starts_with("port 8080/tcp (ingress) overlaps 192.0.2.1:8080/tcp"), "{all}");
    sim.create(&publishing("d", 1, &[tcp(9090, 80)]));
    let one = refused(&mut sim, publishing("e", 1, &[on("192.0.2.1", tcp(9090, 80))]));
    assert!(one.to_string().contains("overlaps 9090/tcp (ingress) of service 'd'"), "{one}");
}

#[test]
fn a_service_does_not_get_into_its_own_way() {
    let mut sim = Sim::of(1);
    for (ports, problem) in [
        (vec![tcp(80, 80), on("192.0.2.1", tcp(80, 81))], "overlaps 80/tcp of the same service"),
        (vec![host(tcp(80, 80)), tcp(80, 80)], "is published twice"),
        (vec![on("127.0.0.1", tcp(80, 80))], "is loopback, which no client reaches"),
        (vec![tcp(80, 80); 20_000], "ports are more than a service can publish"),
    ] {
        let rejection = refused(&mut sim, publishing("web", 1, &ports));
        assert_eq!(rejection.code(), ErrorCode::InvalidField);
        assert!(rejection.to_string().contains(problem), "{rejection}");
    }
    let web = sim.create(&publishing("web", 1, &[tcp(80, 80)]));
    // From all addresses to one and back: its own ports are no obstacle.
    update(&mut sim, &web, &[on("192.0.2.1", tcp(80, 80)), on("192.0.2.2", tcp(80, 81))]).expect("narrowed");
    update(&mut sim, &web, &[host(tcp(80, 80))]).expect("to host mode");
    update(&mut sim, &web, &[tcp(80, 80)]).expect("and back");
}

#[test]
fn an_automatic_port_stays_over_every_other_change() {
    let mut sim = Sim::of(1);
    let auto = PortSpec { published: None, ..tcp(1, 80) };
    let web = sim.create(&publishing("web", 1, &[auto, host(PortSpec { target: 81, ..auto })]));
    let numbers =
        |sim: &Sim| -> Vec<u16> { sim.state.services()[&web].ports.iter().map(|p| p.published).collect() };
    assert_eq!(numbers(&sim), [30_000, 30_001]);
    sim.create(&publishing("other", 1, &[auto]));
    update(&mut sim, &web, &[tcp(8080, 82), on("192.0.2.1", auto), host(PortSpec { target: 81, ..auto })])
        .expect("bound to an address");
    assert_eq!(numbers(&sim), [8080, 30_000, 30_001]);
    sim.update(&web, |s| s.drain_ms = 7);
    assert_eq!(numbers(&sim), [8080, 30_000, 30_001]);
}

#[test]
fn an_automatic_port_is_none_of_the_swarm_itself() {
    let mut sim = Sim::founded(|init| {
        init.data_port = 30_000;
        init.manager.control_addr.set_port(30_001);
    });
    let auto = PortSpec { published: None, ..tcp(1, 80) };
    let web = sim.create(&publishing("web", 0, &[PortSpec { protocol: Protocol::Udp, ..auto }, auto]));
    let published: Vec<u16> = sim.state.services()[&web].ports.iter().map(|p| p.published).collect();
    assert_eq!(published, [30_001, 30_000], "past the tunnels' by UDP, which is free by TCP");
    let other = sim.create(&publishing("other", 0, &[auto]));
    assert_eq!(sim.state.services()[&other].ports[0].published, 30_002, "past the manager's");

    // A manager is given a port that a service has: the service keeps it, whatever else is changed.
    let (n1, addr) = (sim.node("n1"), "192.168.7.1:30000".parse().expect("an address"));
    sim.must(Command::SetControlAddr { id: n1, addr });
    sim.update(&web, |spec| spec.drain_ms = 7);
    update(&mut sim, &other, &[auto, tcp(30_000, 81)]).expect_err("taken");
    let published: Vec<u16> = sim.state.services()[&web].ports.iter().map(|p| p.published).collect();
    assert_eq!(published, [30_001, 30_000]);
}

#[test]
fn a_port_in_host_mode_takes_one_task_on_a_node() {
    let mut sim = Sim::of(3);
    let web = sim.create(&publishing("web", 4, &[host(tcp(8080, 80))]));
    sim.rest();
    let placed = sim.ps(&web);
    for node in ["n1", "n2", "n3"] {
        assert_eq!(placed.iter().filter(|t| t.contains(node)).count(), 1, "{placed:?}");
    }
    assert_eq!(waits(&sim, &web), ["0 of 3 nodes fit: port 8080/tcp in use on n1, n2, n3"]);
    // A node more, and it runs.
    sim.join(4);
    sim.rest();
    assert!(sim.converged(&web));
}

#[test]
fn services_share_a_port_in_host_mode_on_different_nodes_only() {
    let mut sim = Sim::of(3);
    let web = sim.create(&publishing("web", 2, &[host(tcp(8080, 80))]));
    sim.rest();
    let api = sim.create(&publishing("api", 2, &[host(tcp(8080, 80))]));
    // On another address they get along.
    let far = sim.create(&publishing("far", 1, &[host(on("192.0.2.1", tcp(8081, 80)))]));
    let near = sim.create(&publishing("near", 3, &[host(on("192.0.2.2", tcp(8081, 80)))]));
    sim.rest();
    assert!(sim.converged(&web) && sim.converged(&far) && sim.converged(&near));
    let waiting = waits(&sim, &api);
    assert_eq!(waiting.len(), 1);
    assert!(waiting[0].starts_with("0 of 3 nodes fit: port 8080/tcp in use on n"), "{waiting:?}");
    // Everywhere is also there.
    let mesh = refused(&mut sim, publishing("mesh", 1, &[tcp(8080, 80)]));
    assert!(mesh.to_string().contains("overlaps 8080/tcp (host) of service"), "{mesh}");
    let under = sim.create(&publishing("under", 1, &[tcp(9090, 80)]));
    sim.rest();
    let in_use = update(&mut sim, &under, &[host(tcp(8080, 80))]).expect_err("web or api is on its node");
    assert_eq!(in_use.code(), ErrorCode::PortTaken);
    assert!(in_use.to_string().starts_with("port 8080/tcp is in use on n"), "{in_use}");
    sim.must(Command::RemoveService { id: web.clone() });
    sim.run(60_000);
    assert!(sim.converged(&api), "its place is free");
}

#[test]
fn a_port_is_not_given_on_while_a_task_still_drains() {
    let mut sim = Sim::of(1);
    let spec = ServiceSpec { drain_ms: 10_000, ..publishing("web", 1, &[host(tcp(8080, 80))]) };
    let web = sim.create(&spec);
    sim.rest();
    let api = sim.create(&publishing("api", 1, &[host(tcp(8080, 80))]));
    sim.must(Command::RemoveService { id: web });
    sim.rest();
    assert_eq!(waits(&sim, &api), ["0 of 1 nodes fit: port 8080/tcp in use on n1"]);
    sim.run(11_000);
    assert!(sim.converged(&api));
}

#[test]
fn a_successor_may_take_its_predecessors_node() {
    for order in [UpdateOrder::StartFirst, UpdateOrder::StopFirst] {
        let mut sim = Sim::of(2);
        let mut spec = publishing("web", 2, &[host(tcp(8080, 80))]);
        spec.update.order = order;
        let web = sim.create(&spec);
        sim.rest();
        sim.update(&web, |s| s.task.process.command.push("v2".to_owned()));
        sim.run(60_000);
        assert!(sim.converged(&web), "{order:?}: {:?}", sim.ps(&web));
    }
}

#[test]
fn a_first_port_in_host_mode_spreads_tasks_anew() {
    let mut sim = Sim::of(2);
    sim.set_node("n2", NodeState::Down);
    let web = sim.create(&publishing("web", 2, &[tcp(8080, 80)]));
    sim.rest();
    sim.set_node("n2", NodeState::Ready);
    sim.rest();
    assert!(sim.ps(&web).iter().all(|t| t.contains("n1")), "both are on n1");
    update(&mut sim, &web, &[host(tcp(8080, 80))]).expect("nobody else has it");
    sim.run(60_000);
    assert!(sim.converged(&web));
    assert!(sim.ps(&web).iter().any(|t| t.contains("n2")), "{:?}", sim.ps(&web));
}

#[test]
fn a_global_service_in_host_mode_is_on_every_node() {
    let mut sim = Sim::of(3);
    let spec = ServiceSpec { mode: ServiceMode::Global, ..publishing("web", 0, &[host(tcp(8080, 80))]) };
    let web = sim.create(&spec);
    sim.rest();
    assert_eq!(sim.serving(&web), 3);
}

#[test]
fn ports_by_the_thousand() {
    let mut sim = Sim::of(1);
    let range: Vec<PortSpec> = (10_000..20_000).map(|port| tcp(port, port)).collect();
    let web = sim.create(&publishing("media", 1, &range));
    let rejection = refused(&mut sim, publishing("late", 1, &[tcp(9_999, 80), tcp(10_007, 80)]));
    assert_eq!(rejection.to_string(), "port 10007/tcp is already published by service 'media'");
    sim.must(Command::RemoveService { id: web });
    sim.run(60_000);
    sim.create(&publishing("late", 1, &[tcp(10_007, 80)]));
}

#[test]
fn a_swarm_publishes_as_many_ports_as_a_node_has_place_for() {
    let mut table = PortTable::default();
    let services = BTreeMap::new();
    let name = name("web");
    let mut ask = |number: u128, ports: &[PortSpec]| {
        let id = ServiceId::from_entropy(number);
        let asker = Asker { id: &id, name: &name, has: &[], own: &OwnPorts::default() };
        let ports = table.resolve(asker, ports, &services)?;
        table.assign(&id, &ports, Timestamp(1));
        Ok::<_, Rejection>(())
    };
    for n in 0..4_u8 {
        let range: Vec<PortSpec> =
            (1..=16_384).map(|port| on(&format!("192.0.2.{n}"), tcp(port, 80))).collect();
        ask(n.into(), &range).expect("there is place");
    }
    let rejection = ask(9, &[tcp(20_000, 80)]).expect_err("there is none");
    assert!(rejection.to_string().contains("beside the 65536 that other services publish"), "{rejection}");
}

#[test]
fn bindings_are_read_back_from_logs_and_snapshots() {
    let mut sim = Sim::of(1);
    let auto = PortSpec { published: None, ..tcp(1, 81) };
    sim.create(&publishing("web", 1, &[tcp(443, 80), on("2001:db8::1", tcp(80, 80)), host(auto)]));
    sim.create(&publishing("api", 1, &[host(on("192.0.2.1", tcp(8080, 80)))]));
    sim.create(&publishing("told", 1, &[headed(tcp(8443, 80)), headed(host(auto)), host(tcp(8444, 80))]));
    let other = |protocol| PortSpec { protocol, ..tcp(7000, 7000) };
    let past = [tcp(7000, 70), other(Protocol::Udp), on("192.0.2.2", other(Protocol::Sctp)), tcp(7001, 71)];
    let past = past.map(direct);
    let past = sim.create(&publishing("past", 1, &past));
    assert!(sim.state.services()[&past].ports.iter().all(|port| port.dsr));
    sim.rest();
    let bytes = postcard::to_stdvec(&sim.state).expect("serializes");
    let state: State = postcard::from_bytes(&bytes).expect("reads");
    assert_eq!((state.hash(), state.services()), (sim.state.hash(), sim.state.services()));
    let log: Vec<(u64, Entry)> =
        postcard::from_bytes(&postcard::to_stdvec(&sim.log).expect("serializes")).expect("reads");
    assert_eq!(log, sim.log);
}

#[test]
fn ports_of_older_logs_are_read_as_they_were_and_what_was_asked_for_in_vain_is_read_as_well() {
    let v4 = [0, 1, 0, 192, 0, 2, 1];
    for (port, transport) in [
        (tcp(80, 8), vec![0]),
        (PortSpec { protocol: Protocol::Udp, ..tcp(80, 8) }, vec![1]),
        (host(tcp(80, 8)), vec![2, 0, 1, 0]),
        (on("192.0.2.1", tcp(80, 8)), [&[2, 0][..], &v4].concat()),
        (PortSpec { protocol: Protocol::Sctp, ..tcp(80, 8) }, vec![2, 2, 0, 0]),
        (headed(tcp(80, 8)), vec![3, 0, 0, 0, 0]),
        // Since direct server return.
        (direct(tcp(80, 8)), vec![4, 0, 0, 0, 0]),
        (direct(on("192.0.2.1", tcp(80, 8))), [&[4, 0][..], &v4, &[0]].concat()),
        // Commands are in logs before they are refused.
        (direct(headed(host(tcp(80, 8)))), vec![4, 0, 1, 0, 1, 0]),
    ] {
        let stored = [&transport[..], &[1, 80, 8]].concat();
        assert_eq!(postcard::to_stdvec(&port).expect("written"), stored, "{port:?}");
        assert_eq!(postcard::from_bytes(&stored), Ok(port));
    }
}

#[test]
fn a_port_of_sctp_is_published_as_itself() {
    let mut sim = Sim::of(1);
    let sctp = |published, target| PortSpec { protocol: Protocol::Sctp, published, ..tcp(1, target) };
    for (port, shown) in [(sctp(Some(5061), 5060), "5061:5060/sctp"), (sctp(None, 5060), ":5060/sctp")] {
        let rejection = refused(&mut sim, publishing("gate", 1, &[port]));
        assert_eq!(rejection.code(), ErrorCode::PortsUnequal);
        assert!(rejection.to_string().contains(shown), "{rejection}");
        assert_eq!(rejection.help(), "publish the port that the tasks listen on: '-p 5060:5060/sctp'");
    }
    let gate = sim.create(&publishing("gate", 1, &[sctp(Some(5060), 5060), tcp(5060, 80)]));
    // The number is taken for SCTP alone, and is free again for it.
    assert_eq!(
        refused(&mut sim, publishing("other", 1, &[sctp(Some(5060), 5060)])).code(),
        ErrorCode::PortTaken
    );
    let unequal = update(&mut sim, &gate, &[sctp(Some(5060), 5061)]).expect_err("refused");
    assert_eq!(unequal.code(), ErrorCode::PortsUnequal);
    let stored = postcard::to_stdvec(&sim.state).expect("written");
    let read: State = postcard::from_bytes(&stored).expect("read");
    assert_eq!(read.services()[&gate].ports, sim.state.services()[&gate].ports);
    assert_eq!(postcard::to_stdvec(&read).expect("written"), stored);
}

#[test]
fn a_header_is_for_ports_of_tcp_alone() {
    let mut sim = Sim::of(1);
    for protocol in [Protocol::Udp, Protocol::Sctp] {
        let port = headed(PortSpec { protocol, ..tcp(5060, 5060) });
        let rejection = refused(&mut sim, publishing("gate", 1, &[port]));
        assert_eq!(rejection.code(), ErrorCode::InvalidField);
        let says = format!(
            "publish.proxy-protocol: '5060:5060/{protocol}' is a port of {protocol}, and proxy-protocol=v2 is"
        );
        assert!(rejection.to_string().starts_with(&says), "{rejection}");
        assert!(rejection.help().contains("protocol=tcp"));
    }
    let auto = headed(host(PortSpec { published: None, ..tcp(1, 80) }));
    let gate = sim.create(&publishing("gate", 1, &[headed(tcp(5060, 5060)), auto]));
    let to_udp = [headed(PortSpec { protocol: Protocol::Udp, ..tcp(5060, 5060) })];
    assert!(update(&mut sim, &gate, &to_udp).is_err());
    assert!(sim.state.services()[&gate].ports.iter().all(|port| port.proxy == Some(ProxyProtocol::V2)));
}

#[test]
fn a_header_is_switched_without_another_task_and_nodes_are_told() {
    let mut sim = Sim::of(2);
    let ports = [host(tcp(8080, 80)), tcp(8081, 80)];
    let web = sim.create(&publishing("web", 2, &ports));
    sim.run(60_000);
    let version = |sim: &Sim| sim.state.services()[&web].task_version;
    let before = (sim.ps(&web), version(&sim));
    for wanted in [ports.map(headed), ports] {
        update(&mut sim, &web, &wanted).expect("may be switched");
        sim.run(60_000);
        assert_eq!((sim.ps(&web), version(&sim)), before);
        assert!(sim.converged(&web));
        let told = sim.assignment("n2");
        let told: Vec<_> = told.services().flat_map(|s| &s.ports).collect();
        assert_eq!(told.iter().map(|port| port.proxy).collect::<Vec<_>>(), wanted.map(|port| port.proxy));
        assert!(told.is_sorted_by_key(|port| port.form()), "as the wire has them");
    }
    // What else changes in host mode spreads tasks anew, as ever.
    update(&mut sim, &web, &[headed(host(tcp(8080, 81)))]).expect("may be changed");
    assert_eq!(version(&sim), before.1 + 1);
}

#[test]
fn a_policy_that_only_ipvs_has_does_not_go_with_what_ipvs_does_not_do() {
    for (option, port) in [("proxy-protocol", headed(tcp(8081, 81))), ("dsr", direct(tcp(8081, 81)))] {
        let mut sim = Sim::of(1);
        sim.must(Command::SetLbEngine { engine: LbEngine::Ipvs });
        sim.balances("n1", LbEngine::Ipvs, true, false);
        let least = |ports: &[PortSpec]| ServiceSpec {
            lb: LbPolicy::LeastConnections,
            ..publishing("web", 1, ports)
        };
        let both = [tcp(8080, 80), port];
        let rejection = refused(&mut sim, least(&both));
        assert_eq!(rejection.code(), ErrorCode::InvalidField);
        let says = format!(
            "lb: 'leastconn' is a policy of engine ipvs alone, and port 8081:81/tcp with {option} is balanced"
        );
        assert!(rejection.to_string().starts_with(&says), "{rejection}");
        let help = format!(
            "choose another policy: auto, rr, maglev or source; or publish the port without {option}"
        );
        assert_eq!(rejection.help(), help);
        // Neither by an update of the one nor of the other.
        let web = sim.create(&least(&both[..1]));
        assert!(update(&mut sim, &web, &both).is_err());
        sim.update(&web, |spec| spec.lb = LbPolicy::RoundRobin);
        update(&mut sim, &web, &both).expect("tables have round robin");
        let spec = ServiceSpec { lb: LbPolicy::LeastConnections, ..sim.state.services()[&web].spec.clone() };
        let change = Command::UpdateService { id: web.clone(), spec: Box::new(spec), expect_version: None };
        assert_eq!(sim.propose(change).expect_err("refused").to_string(), rejection.to_string());
    }
}

#[test]
fn only_a_node_that_another_one_asked_answers_past_it() {
    let mut sim = Sim::of(1);
    let web = sim.create(&publishing("web", 1, &[direct(tcp(8080, 80))]));
    let auto = PortSpec { published: None, ..tcp(1, 80) };
    for (port, says, help) in [
        (
            headed(tcp(8080, 80)),
            "'8080:80/tcp' has proxy-protocol=v2, and the node that puts",
            "leave proxy-protocol out",
        ),
        (
            host(tcp(8080, 80)),
            "'8080:80/tcp' has mode=host: its nodes answer with their own",
            "with mode=ingress",
        ),
        (host(auto), "':80/tcp' has mode=host", "with mode=ingress"),
        (
            host(on("192.0.2.1", headed(tcp(8080, 80)))),
            "'192.0.2.1:8080:80/tcp' has proxy-protocol=v2",
            "leave dsr out",
        ),
    ] {
        let rejections = [
            refused(&mut sim, publishing("other", 1, &[direct(port)])),
            update(&mut sim, &web, &[direct(port)]).expect_err("refused"),
        ];
        for rejection in rejections {
            assert_eq!(rejection.code(), ErrorCode::InvalidField);
            assert!(rejection.to_string().starts_with(&format!("publish.dsr: {says}")), "{rejection}");
            assert!(rejection.help().contains(help), "{}", rejection.help());
        }
        update(&mut sim, &web, &[port]).expect("each without the other");
        update(&mut sim, &web, &[direct(tcp(8080, 80))]).expect("and back");
    }
}

#[test]
fn answers_are_sent_another_way_without_another_task_and_nodes_are_told() {
    let mut sim = Sim::of(2);
    let other = |protocol| PortSpec { protocol, ..tcp(8080, 8080) };
    let ports = [tcp(8080, 80), other(Protocol::Udp), on("192.0.2.1", tcp(8081, 80)), other(Protocol::Sctp)];
    let web = sim.create(&publishing("web", 2, &ports));
    sim.run(60_000);
    let version = |sim: &Sim| sim.state.services()[&web].task_version;
    let before = (sim.ps(&web), version(&sim));
    // In every protocol and place, and beside one that is answered by the node asked.
    for wanted in [ports.map(direct), [direct(ports[0]), ports[1], ports[2], direct(ports[3])], ports] {
        update(&mut sim, &web, &wanted).expect("may be switched");
        sim.run(60_000);
        assert_eq!((sim.ps(&web), version(&sim)), before);
        assert!(sim.converged(&web));
        let told = sim.assignment("n2");
        let told: Vec<_> = told.services().flat_map(|s| &s.ports).collect();
        assert_eq!(told.iter().map(|port| port.dsr).collect::<Vec<_>>(), wanted.map(|port| port.dsr));
        assert!(told.is_sorted_by_key(|port| port.form()), "as the wire has them");
    }
}
