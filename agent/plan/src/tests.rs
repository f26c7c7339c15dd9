mod connect;
mod direct;
mod lane;
mod names;
mod order;
mod part;
mod proxy;
mod weights;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::{Ipv4Net, Ipv6Net};
use proptest::prelude::*;
use shoal_types::assignment::{
    AssignedNetwork, AssignedService, AssignedTask, Assignment, ClusterView, Endpoint, Member,
    Object as Assigned, Reserved, Vip as AssignedVip,
};
use shoal_types::id::Name;
use shoal_types::object::{Attachment, DesiredState, Slot};
use shoal_types::spec::{DnsSpec, ProcessSpec, Resources, RestartPolicy, TaskSpec};
use shoal_types::{
    Binding, ClusterId, DirectRouting, DualAddr, DualNet, EndpointId, Generation, LbPolicy, NetworkId,
    NodeId, Protocol, ProxyProtocol, PublishMode, PublishedPort, ServiceId, ServiceIndex, TaskId, Vni,
    Weight,
};

use crate::check::check;
use crate::desired::derive;
use crate::object::{Goal, Local, Place, Port, ServiceKey, Task};
use crate::{EgressFacts, Engine, Facts, IfName, Key, Object, Objects, Op, Phase, Plan, Uplink, plan};

/// The node's address.
const OWN_ADDR: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

/// A stateful stand-in for the kernel: it does what a plan says.
fn applied(plan: &Plan<'_>, observed: &Objects) -> Objects {
    let mut after = observed.clone();
    for op in plan.ops() {
        match op {
            Op::Ensure { object, .. } => {
                let mut object = Object::clone(object);
                if let Object::Task(task) = &mut object {
                    task.spec = None;
                }
                after.insert(object.key(), object);
            }
            Op::Remove { object, .. } => {
                after.remove(&object.key());
            }
        }
    }
    after
}

/// A task of the world: which node, service and networks, and what is wanted of it.
#[derive(Debug, Clone)]
struct Run {
    node: u8,
    service: u8,
    networks: Vec<u8>,
    desired: DesiredState,
    serving: bool,
}

fn run() -> impl Strategy<Value = Run> {
    let desired = prop_oneof![
        4 => Just(DesiredState::Running),
        1 => Just(DesiredState::Draining),
        1 => Just(DesiredState::Shutdown),
        1 => Just(DesiredState::Remove),
    ];
    (0..3_u8, 0..3_u8, proptest::sample::subsequence(vec![0_u8, 1, 2], 1..=3), desired, any::<bool>())
        .prop_map(|(node, service, networks, desired, serving)| Run {
            node,
            service,
            networks,
            desired,
            serving,
        })
}

fn node(n: u8) -> NodeId {
    NodeId::from_entropy(u128::from(n) << 100)
}

fn network_id(n: u8) -> NetworkId {
    NetworkId::from_entropy((u128::from(n) + 1) << 100)
}

fn service_id(n: u8) -> ServiceId {
    ServiceId::from_entropy(u128::from(n) + 1)
}

fn attachment(endpoint: u32, network: u8) -> Attachment {
    let [_, _, c, d] = endpoint.to_be_bytes();
    Attachment {
        endpoint: EndpointId(endpoint),
        network: network_id(network),
        addr: DualAddr {
            v4: Ipv4Addr::new(10, network, c, d),
            v6: Ipv6Addr::new(0xfd00, network.into(), 0, 0, 0, 0, 0, u16::from_be_bytes([c, d])),
        },
    }
}

fn task_spec() -> TaskSpec {
    TaskSpec {
        process: ProcessSpec {
            command: vec!["true".into()],
            env: vec![],
            workdir: None,
            user: None,
            hostname: None,
            root: None,
            cap_add: vec![],
            read_only: false,
        },
        resources: Resources::default(),
        restart: RestartPolicy::default(),
        health: None,
        stop_grace_ms: 10,
        stop_signal: 15,
        constraints: vec![],
        max_per_node: 0,
        force_update: 0,
    }
}

/// Where the port of a service answers: everywhere, where its tasks are, or on one address; on the node's own.
fn binding(n: u8) -> Binding {
    let (mode, addr) = match n % 4 {
        1 => (PublishMode::Host, None),
        2 => (PublishMode::Ingress, Some(OWN_ADDR)),
        3 => (PublishMode::Host, Some(OWN_ADDR)),
        _ => return Binding::EVERYWHERE,
    };
    Binding { mode, addr }
}

/// A service with a virtual IP in network 1 and a published port.
fn service(n: u8) -> AssignedService {
    AssignedService {
        id: service_id(n),
        index: ServiceIndex(u32::from(n) + 1),
        name: name(&format!("svc{n}")),
        vips: vec![AssignedVip { at: attachment(u32::from(n) + 10, 1), aliases: vec![] }],
        ports: vec![PublishedPort {
            binding: binding(n),
            proxy: (n > 0).then_some(ProxyProtocol::V2),
            ..PublishedPort::everywhere(Protocol::Tcp, 8000 + u16::from(n), 80)
        }],
        lb: shoal_types::LbPolicy::Auto,
        dnsrr: vec![],
    }
}

/// The assignment of node 0 in a world with these tasks. Network 0 is ingress, network 2 internal.
fn assignment(runs: &[Run]) -> Assignment {
    let mut objects = vec![Assigned::Cluster(ClusterView {
        id: ClusterId::from_entropy(7),
        name: name("otter"),
        data_port: 7378,
        node: node(0),
        node_name: name("n0"),
        router: attachment(1, 0),
        lb_engine: shoal_types::LbEngine::Auto,
        direct: shoal_types::DirectRouting::Off,
        reserved: Reserved::default(),
    })];
    for n in 0..3_u8 {
        objects.push(Assigned::Member(Member {
            node: node(n),
            name: name(&format!("n{n}")),
            data_addr: IpAddr::V4(Ipv4Addr::new(192, 0, 2, n + 1)),
            router: attachment(u32::from(n) + 1, 0),
        }));
        objects.push(Assigned::Network(AssignedNetwork {
            id: network_id(n),
            name: name(&format!("net{n}")),
            vni: Vni::new(u32::from(n) + 1).expect("in range"),
            subnets: DualNet {
                v4: Ipv4Net::new(Ipv4Addr::new(10, n, 0, 0), 16).expect("literal"),
                v6: Ipv6Net::new(Ipv6Addr::new(0xfd00, n.into(), 0, 0, 0, 0, 0, 0), 64).expect("literal"),
            },
            internal: n == 2,
            ingress: n == 0,
        }));
        objects.push(Assigned::Service(service(n)));
    }
    for (number, run) in runs.iter().enumerate() {
        let number = u32::try_from(number).expect("few tasks");
        let attachments: Vec<_> =
            run.networks.iter().map(|n| attachment(100 + number * 4 + u32::from(*n), *n)).collect();
        let id = TaskId::from_entropy(u128::from(number + 1) << 96);
        if run.desired != DesiredState::Remove {
            objects.extend(attachments.iter().map(|at| {
                Assigned::Endpoint(Endpoint {
                    id: at.endpoint,
                    network: at.network.clone(),
                    addr: at.addr,
                    node: node(run.node),
                    task: id.clone(),
                    service: service_id(run.service),
                    slot: Slot::Number(number),
                    serving: run.serving,
                    weight: Weight::default(),
                })
            }));
        }
        if run.node == 0 {
            objects.push(Assigned::Task(Box::new(AssignedTask {
                id,
                service: service_id(run.service),
                service_name: name(&format!("svc{}", run.service)),
                slot: Slot::Number(number),
                spec: task_spec(),
                desired: run.desired,
                attachments,
                withdrawn: false,
                dns: DnsSpec::default(),
            })));
        }
    }
    Assignment::new(Generation(1), objects)
}

fn name(text: &str) -> Name {
    text.parse().expect("a valid label")
}

fn uplink(name: &str, index: u32, addrs: Vec<IpAddr>) -> Uplink {
    Uplink { name: IfName::new(name), index, inner: false, addrs }
}

fn facts(assignment: &Assignment) -> Facts {
    let mut egress = EgressFacts {
        v4: "172.31.240.0/24".parse().expect("literal"),
        v6: "fd5a::/64".parse().expect("literal"),
        slots: BTreeMap::new(),
    };
    egress.assign(assignment.tasks().map(|task| &task.id));
    Facts {
        data_addr: IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
        underlay_mtu: 1500,
        uplinks: vec![uplink("eth0", 2, vec![OWN_ADDR])],
        egress,
        engine: Engine::Ebpf,
        firewall: true,
        fast_lane: true,
        connect_hooks: true,
        peers: Arc::default(),
    }
}

fn desired(runs: &[Run]) -> Objects {
    balanced(Balance { engine: Engine::Ebpf, direct: DirectRouting::Off, lb: LbPolicy::Auto }, runs)
}

/// Who balances how.
#[derive(Debug, Clone, Copy)]
struct Balance {
    engine: Engine,
    direct: DirectRouting,
    lb: LbPolicy,
}

fn balance() -> impl Strategy<Value = Balance> {
    let engine = prop_oneof![Just(Engine::Ebpf), Just(Engine::EbpfAfterIpvs), Just(Engine::Ipvs)];
    let direct =
        prop_oneof![Just(DirectRouting::Off), Just(DirectRouting::Preparing), Just(DirectRouting::Ready)];
    (engine, direct, proptest::sample::select(LbPolicy::ALL.to_vec()))
        .prop_map(|(engine, direct, lb)| Balance { engine, direct, lb })
}

fn balanced(balance: Balance, runs: &[Run]) -> Objects {
    let (assignment, facts) = told(balance, runs);
    derive(&assignment, &facts).expect("the assignment says who the node is")
}

fn told(balance: Balance, runs: &[Run]) -> (Assignment, Facts) {
    let mut assignment = assignment(runs);
    for object in assignment.objects.values_mut() {
        match object {
            Assigned::Cluster(cluster) => cluster.direct = balance.direct,
            Assigned::Service(service) => service.lb = balance.lb,
            _ => {}
        }
    }
    let facts = Facts { engine: balance.engine, ..facts(&assignment) };
    (assignment, facts)
}

proptest! {
    #[test]
    fn planning_again_after_applying_is_empty(
        before in (balance(), proptest::collection::vec(run(), 0..8)),
        after in (balance(), proptest::collection::vec(run(), 0..8)),
        lost in any::<u64>(),
    ) {
        let (nothing, first) = (Objects::new(), balanced(before.0, &before.1));
        let mut observed = applied(&plan(&first, &nothing), &nothing);
        // Something else took away or damaged a part of it.
        let mut bits = lost;
        observed.retain(|_, _| { bits = bits.rotate_left(1); bits & 7 != 7 });
        for object in observed.values_mut() {
            if let Object::Leg(leg) = object && bits & 1 == 1 {
                leg.intact = false;
            }
        }
        let wanted = balanced(after.0, &after.1);
        let first = plan(&wanted, &observed);
        prop_assert_eq!(check(&wanted, &observed, &first, |_| false), vec![]);
        let observed = applied(&first, &observed);
        let second = plan(&wanted, &observed);
        prop_assert!(second.is_empty(), "{:?}", second);
    }
}

/// The ports a node answers on, as `place service(own) members`, with one service that publishes `ports`.
fn answered(runs: &[Run], ports: &[PublishedPort], engine: Engine) -> Vec<(String, bool, usize)> {
    let mut assignment = assignment(runs);
    for object in assignment.objects.values_mut() {
        if let Assigned::Service(service) = object {
            service.ports = if service.id == service_id(0) { ports.to_vec() } else { Vec::new() };
        }
    }
    let facts = Facts { engine, ..facts(&assignment) };
    let objects = derive(&assignment, &facts).expect("the assignment says who the node is");
    let members = |port: &Port| match (port.mark, objects.get(&Key::LbService(port.service))) {
        (None, Some(Object::LbService(table))) => table.members.len(),
        (Some(mark), _) => match objects.get(&Key::Virtual(Place::Ingress, mark)) {
            Some(Object::Virtual(service)) => service.destinations.len(),
            _ => panic!("no virtual service of {port:?}"),
        },
        (None, _) => panic!("no table of {port:?}"),
    };
    let found = objects.values().filter_map(|object| match object {
        Object::Port(port) => Some((port.place.to_string(), port.service.own, members(port))),
        _ => None,
    });
    let mut found: Vec<_> = found.collect();
    found.sort();
    found
}

#[test]
fn a_port_in_host_mode_leads_to_the_nodes_own_tasks_alone() {
    let run =
        |node| Run { node, service: 0, networks: vec![0], desired: DesiredState::Running, serving: true };
    let host = Binding { mode: PublishMode::Host, addr: None };
    let ports = [
        PublishedPort::everywhere(Protocol::Tcp, 80, 80),
        PublishedPort { binding: host, ..PublishedPort::everywhere(Protocol::Tcp, 8080, 80) },
    ];
    for engine in [Engine::Ebpf, Engine::EbpfAfterIpvs, Engine::Ipvs] {
        let here = answered(&[run(0), run(1)], &ports, engine);
        assert_eq!(here, [("80/tcp".into(), false, 2), ("8080/tcp".into(), true, 1)], "{engine:?}");
        let elsewhere = answered(&[run(1), run(1)], &ports, engine);
        assert_eq!(elsewhere, [("80/tcp".into(), false, 2)], "{engine:?}");
        // It is there as long as the task may have flows, and refuses new ones.
        let leaving = Run { desired: DesiredState::Draining, serving: false, ..run(0) };
        let found = answered(&[leaving.clone(), run(1)], &ports, engine);
        let members = usize::from(engine == Engine::Ipvs);
        assert_eq!(found[1], ("8080/tcp".into(), true, members), "{engine:?}");
        let gone = Run { desired: DesiredState::Shutdown, ..leaving };
        assert_eq!(answered(&[gone, run(1)], &ports, engine).len(), 1, "{engine:?}");
    }
}

#[test]
fn a_port_on_one_address_is_answered_where_that_address_is() {
    let on = |addr: &str, target| PublishedPort {
        binding: Binding { mode: PublishMode::Ingress, addr: Some(addr.parse().expect("literal")) },
        ..PublishedPort::everywhere(Protocol::Udp, 53, target)
    };
    let ports = [on("192.0.2.1", 53), on("192.0.2.9", 54), on("2001:db8::1", 55)];
    for engine in [Engine::Ebpf, Engine::Ipvs] {
        let found = answered(&one(DesiredState::Running), &ports, engine);
        assert_eq!(found, [("192.0.2.1:53/udp".into(), false, 1)], "{engine:?}");
    }
}

#[test]
fn virtual_ips_wait_for_the_loopbacks_of_all_tasks() {
    let runs = one(DesiredState::Running);
    let with = |engine, direct| balanced(Balance { engine, direct, lb: LbPolicy::Auto }, &runs);
    let marked = |objects: &Objects| {
        objects.values().filter(|object| matches!(object, Object::Vip(vip) if vip.mark.is_some())).count()
    };
    let on_loopbacks = |objects: &Objects| {
        objects.values().filter(|object| matches!(object, Object::Sandbox(o) if !o.vips.is_empty())).count()
    };
    for (direct, vips, loopbacks) in
        [(DirectRouting::Off, 0, 0), (DirectRouting::Preparing, 0, 1), (DirectRouting::Ready, 6, 1)]
    {
        let objects = with(Engine::Ipvs, direct);
        assert_eq!((marked(&objects), on_loopbacks(&objects)), (vips, loopbacks), "{direct}");
        // A node of the other engine has the loopbacks, too: its tasks are destinations of others.
        let objects = with(Engine::Ebpf, direct);
        assert_eq!((marked(&objects), on_loopbacks(&objects)), (0, loopbacks), "{direct}");
    }
}

#[test]
fn switching_back_keeps_the_virtual_services_of_flows_that_go_on() {
    let runs = one(DesiredState::Running);
    let with =
        |engine| balanced(Balance { engine, direct: DirectRouting::Ready, lb: LbPolicy::RoundRobin }, &runs);
    let (ipvs, after) = (with(Engine::Ipvs), with(Engine::EbpfAfterIpvs));
    let virtuals = |objects: &Objects| -> Vec<_> {
        objects.values().filter(|object| matches!(object, Object::Virtual(_))).cloned().collect()
    };
    assert_eq!(virtuals(&ipvs), virtuals(&after));
    assert!(virtuals(&with(Engine::Ebpf)).is_empty());
    let removed: Vec<_> =
        plan(&after, &ipvs).ops().filter(|op| matches!(op, Op::Remove { .. })).map(Op::key).collect();
    assert_eq!(removed, [], "nothing goes while flows may need it");
}

fn one(desired: DesiredState) -> Vec<Run> {
    vec![Run { node: 0, service: 0, networks: vec![0, 1], desired, serving: true }]
}

#[test]
fn a_task_that_ended_is_not_started_again() {
    let wanted = desired(&one(DesiredState::Running));
    let mut observed = wanted.clone();
    let id = TaskId::from_entropy(1 << 96);
    observed
        .insert(Key::Task(id.clone()), Object::Task(Task { id: id.clone(), goal: Goal::Stop, spec: None }));
    assert!(plan(&wanted, &observed).is_empty());
}

#[test]
fn a_stopped_task_loses_its_network_after_its_program() {
    let observed = desired(&one(DesiredState::Running));
    let wanted = desired(&one(DesiredState::Shutdown));
    let plan = plan(&wanted, &observed);
    let position = |wanted: &dyn Fn(&Op<'_>) -> bool| plan.ops().position(wanted).expect("in the plan");
    let stop = position(&|op| matches!(op, Op::Ensure { object: Object::Task(_), .. }));
    let leg = position(&|op| matches!(op, Op::Remove { object: Object::Leg(_), task: Some(_) }));
    let sandbox = position(&|op| matches!(op, Op::Remove { object: Object::Sandbox(_), .. }));
    let table = position(&|op| matches!(op.object(), Object::LbService(_)));
    assert!(table < stop && stop < leg && leg < sandbox);
}

#[test]
fn what_is_left_of_a_device_that_is_gone_waits_for_no_task() {
    let wanted = desired(&one(DesiredState::Running));
    let mut observed = wanted.clone();
    let local = wanted.values().find_map(|object| match object {
        Object::Local(local) => Some(local.clone()),
        _ => None,
    });
    let stale = Object::from(Local { vxlan: IfName::new("#5"), ..*local.expect("the task's") });
    observed.insert(stale.key(), stale.clone());
    let plan = plan(&wanted, &observed);
    assert_eq!(plan.ops().collect::<Vec<_>>(), [&Op::Remove { object: &stale, task: None }]);
}

#[test]
fn a_task_starts_last_and_only_internal_networks_have_no_way_out() {
    let internal = vec![Run {
        node: 0,
        service: 0,
        networks: vec![0, 2],
        desired: DesiredState::Running,
        serving: false,
    }];
    let wanted = desired(&internal);
    let nothing = Objects::new();
    let plan = plan(&wanted, &nothing);
    assert_eq!(plan.phases.last().map(|(phase, _)| *phase), Some(Phase::StartTasks));
    let legs = wanted.values().filter(|object| matches!(object, Object::Leg(_))).count();
    assert_eq!(legs, 2, "no egress leg");
    assert!(wanted.values().any(|object| matches!(object, Object::Resolver(r) if !r.forward)));
    let open = desired(&one(DesiredState::Running));
    assert_eq!(open.values().filter(|object| matches!(object, Object::Leg(_))).count(), 3);
}

#[test]
fn without_a_cluster_view_nothing_is_known() {
    let empty = Assignment::default();
    assert_eq!(derive(&empty, &facts(&empty)), None);
}

#[test]
fn egress_places_are_kept_and_reused() {
    let ids: Vec<_> = (1..=4_u128).map(TaskId::from_entropy).collect();
    let mut egress = EgressFacts {
        v4: "172.31.240.0/29".parse().expect("literal"),
        v6: "fd5a::/64".parse().expect("literal"),
        slots: BTreeMap::new(),
    };
    egress.assign(&ids[..3]);
    let kept = egress.slots[&ids[2]];
    egress.assign(&ids[1..]);
    assert_eq!(egress.slots[&ids[2]], kept);
    assert_eq!(egress.slots[&ids[3]], 2, "the first place became free");
}

#[test]
fn marks_round_trip() {
    use crate::name::Mark;
    let task = TaskId::from_entropy(5);
    for mark in [
        Mark::Bridge(network_id(1)),
        Mark::Vxlan(network_id(2)),
        Mark::Veth(task.clone(), EndpointId(77)),
        Mark::Egress(task),
        Mark::EgressBridge,
        Mark::Balancer(network_id(3)),
        Mark::Gate,
    ] {
        assert_eq!(Mark::parse(&mark.to_string()), Some(mark));
    }
    assert_eq!(Mark::parse("shoal:bridge:abc:more"), None);
    assert_eq!(Mark::parse("uplink to the lab"), None);
}

#[test]
fn objects_are_small() {
    // A node may hold half a million of them, twice while it compares.
    assert!(
        size_of::<Object>() <= 72 && size_of::<Key>() <= 48,
        "{} and {}",
        size_of::<Object>(),
        size_of::<Key>()
    );
}
