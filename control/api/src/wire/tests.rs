use std::collections::BTreeMap;

use shoal_types::assignment::{AssignedService, AssignedTask, Delta, Endpoint, Object, ObjectKey};
use shoal_types::object::{Attachment, DesiredState, Generation, NodeDescription, Slot};
use shoal_types::port::{Binding, ProxyProtocol, PublishMode, PublishedPort};
use shoal_types::spec::{
    AttachmentSpec, DnsSpec, EndpointMode, HealthCheck, HealthProbe, PortSpec, ProcessSpec, Resources,
    RestartPolicy, ServiceMode, ServiceSpec, TaskSpec, UpdateConfig,
};
use shoal_types::{
    DualAddr, EndpointId, LbEngine, LbInUse, LbPolicy, NetworkId, NodeId, NodeLb, Protocol, ServiceId,
    TaskId, Weight,
};

use super::WireError;
use crate::pb;

fn network() -> NetworkId {
    NetworkId::from_entropy(7)
}

fn spec() -> ServiceSpec {
    ServiceSpec {
        name: "web".parse().expect("literal"),
        mode: ServiceMode::Replicated { replicas: 3 },
        task: TaskSpec {
            process: ProcessSpec {
                command: vec!["httpd".into(), "-f".into()],
                env: vec!["A=b=c".into()],
                workdir: Some("/srv".into()),
                user: None,
                hostname: None,
                root: None,
                cap_add: vec!["NET_BIND_SERVICE".into()],
                read_only: true,
            },
            resources: Resources { limit_memory: 1 << 20, ..Resources::default() },
            restart: RestartPolicy::default(),
            health: None,
            stop_grace_ms: 10_000,
            stop_signal: 15,
            constraints: vec!["node.role!=manager".parse().expect("literal")],
            max_per_node: 2,
            force_update: 1,
        },
        networks: vec![AttachmentSpec { network: network(), aliases: vec!["www".parse().expect("literal")] }],
        ports: vec![
            PortSpec {
                protocol: Protocol::Tcp,
                published: Some(8080),
                target: 80,
                binding: Binding::EVERYWHERE,
                proxy: Some(ProxyProtocol::V2),
                dsr: false,
            },
            PortSpec {
                protocol: Protocol::Udp,
                published: None,
                target: 53,
                binding: Binding {
                    mode: PublishMode::Host,
                    addr: Some("2001:db8::7".parse().expect("an address")),
                },
                proxy: None,
                dsr: true,
            },
        ],
        update: UpdateConfig::default(),
        drain_ms: 5_000,
        lb: LbPolicy::Source,
        endpoint: EndpointMode::Dnsrr,
        dns: DnsSpec {
            servers: vec!["192.0.2.53".parse().expect("literal")],
            search: vec!["corp.example".into()],
            options: vec!["ndots:2".into()],
        },
        labels: BTreeMap::from([("a".to_owned(), "b".to_owned())]),
    }
}

#[test]
fn a_service_spec_survives_the_wire() {
    let spec = spec();
    assert_eq!(ServiceSpec::try_from(pb::ServiceSpec::from(&spec)), Ok(spec));
}

#[test]
fn health_checks_survive_the_wire_and_faulty_ones_are_named() {
    let to = "[::1]:8080".parse().expect("literal");
    for probe in [
        HealthProbe::Command(vec!["/bin/sh".into(), "-c".into(), "true".into()]),
        HealthProbe::Http { to, path: "/healthz".into() },
        HealthProbe::Tcp("80".parse().expect("literal")),
    ] {
        let check = HealthCheck { interval_ms: 700, retries: 5, ..HealthCheck::of(probe) };
        let mut spec = spec();
        spec.task.health = Some(check);
        assert_eq!(ServiceSpec::try_from(pb::ServiceSpec::from(&spec)), Ok(spec.clone()));
        let mut wire = pb::ServiceSpec::from(&spec);
        wire.task.as_mut().and_then(|t| t.health.as_mut()).expect("given").interval_ms = 0;
        let error = ServiceSpec::try_from(wire).expect_err("refused");
        assert_eq!(error.field, "task.health.interval");
    }
    let missing = pb::HealthCheck { interval_ms: 1_000, timeout_ms: 1_000, retries: 1, ..Default::default() };
    assert_eq!(HealthCheck::try_from(missing).expect_err("refused").field, "probe");
}

#[test]
fn a_delta_survives_the_wire() {
    let addr = DualAddr { v4: [10, 0, 0, 2].into(), v6: "fd00::2".parse().expect("literal") };
    let at = Attachment { endpoint: EndpointId(9), network: network(), addr };
    let task = TaskId::from_entropy(1);
    let service = ServiceId::from_entropy(2);
    let delta = Delta {
        from: Generation(4),
        to: Generation(9),
        upserts: vec![
            Object::Endpoint(Endpoint {
                id: at.endpoint,
                network: network(),
                addr,
                node: NodeId::from_entropy(3),
                task: task.clone(),
                service: service.clone(),
                slot: Slot::Number(1),
                serving: true,
                weight: Weight::ZERO,
            }),
            Object::Task(Box::new(AssignedTask {
                id: task.clone(),
                service,
                service_name: "web".parse().expect("literal"),
                slot: Slot::Node(NodeId::from_entropy(3)),
                spec: spec().task,
                desired: DesiredState::Draining,
                withdrawn: true,
                attachments: vec![at],
                dns: spec().dns,
            })),
        ],
        removes: vec![ObjectKey::Cluster, ObjectKey::Endpoint(EndpointId(1)), ObjectKey::Task(task)],
    };
    assert_eq!(Delta::try_from(pb::DeltaMessage::from(&delta)), Ok(delta));
}

#[test]
fn an_endpoint_of_a_manager_that_knows_no_weights_has_that_of_all() {
    let sent = |weight| {
        let endpoint = Endpoint {
            id: EndpointId(9),
            network: network(),
            addr: DualAddr { v4: [10, 0, 0, 2].into(), v6: "fd00::2".parse().expect("literal") },
            node: NodeId::from_entropy(3),
            task: TaskId::from_entropy(1),
            service: ServiceId::from_entropy(2),
            slot: Slot::Number(1),
            serving: true,
            weight,
        };
        let wire = pb::AssignmentObject::from(&Object::Endpoint(endpoint.clone()));
        let Some(pb::assignment_object::Object::Endpoint(sent)) = wire.object else { panic!("an endpoint") };
        (Object::Endpoint(endpoint), sent)
    };
    let read = |sent: pb::Endpoint| {
        let object = Some(pb::assignment_object::Object::Endpoint(sent));
        Object::try_from(pb::AssignmentObject { object })
    };
    let (object, wire) = sent(Weight::default());
    assert_eq!(wire.weight, None, "as ever");
    assert_eq!(read(wire), Ok(object));
    let most = Weight::try_from(100).expect("in range");
    let (object, wire) = sent(most);
    assert_eq!(wire.weight, Some(100));
    assert_eq!(read(wire.clone()), Ok(object));
    let refused = read(pb::Endpoint { weight: Some(101), ..wire }).expect_err("out of range");
    assert_eq!(refused.to_string(), "field 'endpoint.weight': 101 is not a weight; use 0 to 100");
}

#[test]
fn a_spec_of_a_caller_that_knows_no_policies_has_none() {
    let mut wire = pb::ServiceSpec { lb: String::new(), endpoint_mode: String::new(), ..(&spec()).into() };
    wire.ports[0].proxy = 0;
    wire.ports[1].dsr = false;
    let mut expected = ServiceSpec { lb: LbPolicy::Auto, endpoint: EndpointMode::Vip, ..spec() };
    expected.ports[0].proxy = None;
    expected.ports[1].dsr = false;
    assert_eq!(ServiceSpec::try_from(wire), Ok(expected));
}

#[test]
fn what_a_node_says_of_its_balancing_survives_the_wire() {
    let ipvs = LbInUse { engine: LbEngine::Ipvs, ipvs: true, lingering: false };
    let left = LbInUse { engine: LbEngine::Ebpf, ipvs: true, lingering: true };
    for in_use in [None, Some(LbInUse::default()), Some(ipvs), Some(left)] {
        for setting in [LbEngine::Auto, LbEngine::Ipvs, LbEngine::Ebpf] {
            let lb = NodeLb { setting, in_use };
            let description =
                NodeDescription { hostname: "n1".into(), memory: 1, lb, ..NodeDescription::default() };
            assert_eq!(
                NodeDescription::try_from(pb::NodeDescription::from(&description)),
                Ok(description),
                "{lb:?}"
            );
        }
        let Some(used) = in_use else { continue };
        assert_eq!(LbInUse::try_from(pb::LbInUse::from(used)), Ok(used));
    }
    // An agent of the first version names its engine and nothing else.
    let first = pb::NodeDescription { lb_engine: "ebpf".into(), ..Default::default() };
    let lb = NodeLb { setting: LbEngine::Auto, in_use: Some(LbInUse::default()) };
    assert_eq!(NodeDescription::try_from(first).map(|d| d.lb), Ok(lb));
    for engine in ["", "auto", "iptables"] {
        let refused = LbInUse::try_from(pb::LbInUse { engine: engine.into(), ..Default::default() });
        assert_eq!(refused.map_err(|error| error.field), Err("engine".to_owned()), "'{engine}'");
    }
}

/// Each half-valid message is refused by name of the field.
#[test]
fn a_policy_that_older_nodes_don_t_know_is_told_as_the_nearest_that_they_do() {
    for lb in LbPolicy::ALL {
        let service = Object::Service(AssignedService {
            id: ServiceId::from_entropy(1),
            index: shoal_types::ServiceIndex(7),
            name: "web".parse().expect("a name"),
            vips: Vec::new(),
            ports: Vec::new(),
            lb,
            dnsrr: Vec::new(),
        });
        let wire = pb::AssignmentObject::from(&service);
        let Some(pb::assignment_object::Object::Service(sent)) = &wire.object else { panic!("a service") };
        let expected = if lb == LbPolicy::Random { "rr" } else { lb.as_str() };
        assert_eq!(sent.lb, expected);
        assert_eq!(Object::try_from(wire), Ok(service));
    }
}

#[test]
fn bad_fields_are_named() {
    let good = || pb::ServiceSpec::from(&spec());
    let field_of = |s: pb::ServiceSpec| ServiceSpec::try_from(s).map_err(|e: WireError| e.field);
    let with = |change: &dyn Fn(&mut pb::ServiceSpec)| {
        let mut s = good();
        change(&mut s);
        field_of(s).expect_err("must be refused")
    };
    assert_eq!(with(&|s| s.name = "Web!".into()), "name");
    assert_eq!(with(&|s| s.task = None), "task");
    let process = |s: &mut pb::ServiceSpec, f: &dyn Fn(&mut pb::ProcessSpec)| {
        f(s.task.as_mut().and_then(|t| t.process.as_mut()).expect("set above"));
    };
    assert_eq!(with(&|s| process(s, &|p| p.command.clear())), "task.process.command");
    assert_eq!(with(&|s| process(s, &|p| p.env = vec!["=x".into()])), "task.process.env");
    assert_eq!(with(&|s| process(s, &|p| p.workdir = Some("srv".into()))), "task.process.workdir");
    assert_eq!(with(&|s| process(s, &|p| p.user = Some("a\0b".into()))), "task.process.user");
    assert_eq!(with(&|s| s.ports[0].target = 0), "ports.target");
    assert_eq!(with(&|s| s.ports[0].published = 65_536), "ports.published");
    assert_eq!(with(&|s| s.ports[0].protocol = 0), "protocol");
    assert_eq!(with(&|s| s.ports[0].mode = 77), "ports.mode");
    assert_eq!(with(&|s| s.ports[0].ip = "eth0".into()), "ports.ip");
    assert_eq!(with(&|s| s.ports[0].proxy = 1), "ports.proxy-protocol");
    assert_eq!(with(&|s| s.lb = "fastest".into()), "lb");
    assert_eq!(with(&|s| s.networks[0].network = "../x".into()), "networks.network");
    assert_eq!(with(&|s| s.task.as_mut().expect("set").stop_signal = 0), "task.stop_signal");
}

#[test]
fn a_peer_of_an_older_version_never_opens_a_port_in_another_way_than_asked_for() {
    let everywhere = PublishedPort::everywhere(Protocol::Tcp, 8080, 80);
    let host = Binding { mode: PublishMode::Host, addr: None };
    let one = Binding { mode: PublishMode::Ingress, addr: Some("192.0.2.1".parse().expect("an address")) };
    let service = AssignedService {
        id: ServiceId::from_entropy(1),
        index: shoal_types::ServiceIndex(1),
        name: "web".parse().expect("a name"),
        vips: Vec::new(),
        ports: vec![
            everywhere,
            PublishedPort { binding: host, ..everywhere },
            PublishedPort { binding: one, ..everywhere },
            PublishedPort::everywhere(Protocol::Sctp, 5060, 5060),
            PublishedPort {
                proxy: Some(ProxyProtocol::V2),
                ..PublishedPort::everywhere(Protocol::Tcp, 8081, 80)
            },
            PublishedPort { binding: host, proxy: Some(ProxyProtocol::V2), ..everywhere },
        ],
        lb: LbPolicy::Auto,
        dnsrr: Vec::new(),
    };
    let object = Object::Service(service);
    let wire = pb::AssignmentObject::from(&object);
    let Some(pb::assignment_object::Object::Service(sent)) = &wire.object else { panic!("a service") };
    // What the first version reads.
    assert_eq!(sent.ports.len(), 1);
    // What versions before SCTP read.
    assert!(sent.bound_ports.iter().all(|port| port.protocol() == pb::Protocol::Tcp));
    // What versions before the header read.
    let plain = [&sent.ports, &sent.bound_ports, &sent.sctp_ports];
    assert!(
        plain.iter().all(|ports| ports.iter().all(|port| port.proxy() == pb::ProxyProtocol::Unspecified))
    );
    assert_eq!(sent.proxy_ports.len(), 2);
    assert_eq!(Object::try_from(wire), Ok(object));
}

#[test]
fn a_peer_of_an_older_version_answers_a_port_with_direct_return_by_the_node_asked() {
    let everywhere = PublishedPort { dsr: true, ..PublishedPort::everywhere(Protocol::Tcp, 8080, 80) };
    let one = Binding { mode: PublishMode::Ingress, addr: Some("192.0.2.1".parse().expect("an address")) };
    let forms = [
        everywhere,
        PublishedPort { binding: one, ..everywhere },
        PublishedPort { dsr: true, ..PublishedPort::everywhere(Protocol::Sctp, 5060, 5060) },
    ];
    let without = forms.map(|port| PublishedPort { dsr: false, ..port });
    let wire = |ports: [PublishedPort; 3]| {
        let object = Object::Service(AssignedService {
            id: ServiceId::from_entropy(1),
            index: shoal_types::ServiceIndex(1),
            name: "web".parse().expect("a name"),
            vips: Vec::new(),
            ports: ports.to_vec(),
            lb: LbPolicy::Auto,
            dnsrr: Vec::new(),
        });
        let wire = pb::AssignmentObject::from(&object);
        assert_eq!(Object::try_from(wire.clone()), Ok(object));
        let Some(pb::assignment_object::Object::Service(sent)) = wire.object else { panic!("a service") };
        sent
    };
    let mut sent = wire(forms);
    for ports in [&mut sent.ports, &mut sent.bound_ports, &mut sent.sctp_ports] {
        assert!(ports.len() == 1 && ports[0].dsr);
        // What it skips.
        ports[0].dsr = false;
    }
    assert_eq!(sent, wire(without));
}
