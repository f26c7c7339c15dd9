//! Random histories: whatever operators, nodes and clocks do in whatever order, the invariants hold, the cluster
//! comes to rest, and another replica has the same state.

use std::net::IpAddr;

use proptest::prelude::*;
use shoal_types::id::{NetworkId, NodeId, ServiceId, TaskId};
use shoal_types::lb::{LbEngine, LbPolicy};
use shoal_types::object::{Availability, NodeRole, NodeState, TaskState};
use shoal_types::port::{Binding, ProxyProtocol, PublishMode};
use shoal_types::spec::{EndpointMode, PortSpec, ServiceMode, UpdateOrder};

use super::checks;
use super::sim::{Sim, network_spec, service, tcp};
use crate::{Command, State};

#[derive(Debug, Clone)]
enum Step {
    Network { name: u8, small: bool },
    RemoveNetwork(u8),
    Service { name: u8, replicas: u8, network: u8, port: u8, flavour: u8 },
    Update { service: u8, flavour: u8, network: u8, port: u8 },
    Scale { service: u8, replicas: u8 },
    RemoveService(u8),
    Join,
    Leave(u8),
    RemoveNode { node: u8, force: bool },
    NodeState { node: u8, state: u8 },
    Availability { node: u8, availability: u8 },
    Weight { node: u8, weight: u8 },
    Fail { task: u8, state: u8 },
    Engine(u8),
    Balances { node: u8, how: u8 },
    Lead,
    Work(u8),
    Time(u16),
    Retry,
}

fn step() -> impl Strategy<Value = Step> {
    let b = any::<u8>;
    prop_oneof![
        1 => (b(), any::<bool>()).prop_map(|(name, small)| Step::Network { name, small }),
        1 => b().prop_map(Step::RemoveNetwork),
        3 => (b(), 0..7_u8, b(), b(), b()).prop_map(|(name, replicas, network, port, flavour)| {
            Step::Service { name, replicas, network, port, flavour }
        }),
        2 => (b(), b(), b(), b())
            .prop_map(|(service, flavour, network, port)| Step::Update { service, flavour, network, port }),
        2 => (b(), 0..9_u8).prop_map(|(service, replicas)| Step::Scale { service, replicas }),
        1 => b().prop_map(Step::RemoveService),
        1 => Just(Step::Join),
        1 => b().prop_map(Step::Leave),
        1 => (b(), any::<bool>()).prop_map(|(node, force)| Step::RemoveNode { node, force }),
        3 => (b(), b()).prop_map(|(node, state)| Step::NodeState { node, state }),
        1 => (b(), b()).prop_map(|(node, availability)| Step::Availability { node, availability }),
        1 => (b(), 0..4_u8).prop_map(|(node, weight)| Step::Weight { node, weight }),
        3 => (b(), b()).prop_map(|(task, state)| Step::Fail { task, state }),
        1 => b().prop_map(Step::Engine),
        2 => (b(), b()).prop_map(|(node, how)| Step::Balances { node, how }),
        8 => Just(Step::Lead),
        8 => b().prop_map(Step::Work),
        3 => any::<u16>().prop_map(Step::Time),
        1 => Just(Step::Retry),
    ]
}

fn pick<'a, T>(mut items: impl ExactSizeIterator<Item = &'a T>, n: u8) -> Option<&'a T> {
    let len = items.len();
    if len == 0 { None } else { items.nth(usize::from(n) % len) }
}

fn node(sim: &Sim, n: u8) -> Option<NodeId> {
    pick(sim.state.nodes().keys(), n).cloned()
}

fn a_service(sim: &Sim, n: u8) -> Option<ServiceId> {
    pick(sim.state.services().keys(), n).cloned()
}

fn network(sim: &Sim, n: u8) -> Option<NetworkId> {
    pick(sim.state.networks().keys(), n).cloned()
}

fn port(n: u8) -> Vec<PortSpec> {
    let number = 8000 + u16::from(n % 8);
    let host = |addr| Binding { mode: PublishMode::Host, addr };
    let one = |last| Some(IpAddr::from([192, 0, 2, last]));
    match n % 7 {
        0 => Vec::new(),
        1 => vec![PortSpec { published: None, ..tcp(1, 80) }],
        2 => vec![PortSpec { binding: host(None), ..tcp(number, 80) }],
        3 => vec![PortSpec { binding: host(one(n % 3)), ..tcp(number, 80) }],
        4 => {
            let binding = Binding { addr: one(n % 3), ..Binding::EVERYWHERE };
            vec![PortSpec { binding, dsr: n > 127, ..tcp(number, 80) }, tcp(9000 + u16::from(n), 81)]
        }
        5 => vec![PortSpec { published: None, binding: host(None), ..tcp(1, 80) }],
        _ => vec![PortSpec { proxy: (n > 127).then_some(ProxyProtocol::V2), dsr: n < 64, ..tcp(number, 80) }],
    }
}

fn take(sim: &mut Sim, step: Step) {
    match step {
        Step::Network { name, small } => {
            let id = NetworkId::from_entropy(sim.draw());
            let subnet = small.then_some("172.20.0.0/28");
            sim.try_it(Command::CreateNetwork {
                id,
                spec: network_spec(&format!("net{}", name % 4), subnet),
            });
        }
        Step::RemoveNetwork(n) => {
            if let Some(id) = network(sim, n) {
                sim.try_it(Command::RemoveNetwork { id });
            }
        }
        Step::Service { name, replicas, network: n, port: p, flavour } => {
            let on = network(sim, n).filter(|_| flavour % 2 == 0);
            let mut spec = service(
                &format!("svc{}", name % 5),
                replicas.into(),
                &on.iter().collect::<Vec<_>>(),
                &port(p),
            );
            vary(&mut spec, flavour);
            if flavour % 7 == 0 {
                spec.mode = ServiceMode::Global;
            }
            let id = ServiceId::from_entropy(sim.draw());
            sim.try_it(Command::CreateService { id, spec: Box::new(spec) });
        }
        Step::Update { service: s, flavour, network: n, port: p } => {
            let Some(id) = a_service(sim, s) else { return };
            let mut spec = sim.state.services()[&id].spec.clone();
            let on = network(sim, n).filter(|_| flavour % 3 != 0);
            spec.networks = service("x", 0, &on.iter().collect::<Vec<_>>(), &[]).networks;
            spec.ports = port(p);
            vary(&mut spec, flavour);
            sim.try_it(Command::UpdateService { id, spec: Box::new(spec), expect_version: None });
        }
        Step::Scale { service, replicas } => {
            if let Some(id) = a_service(sim, service) {
                sim.try_it(Command::ScaleService { id, replicas: replicas.into() });
            }
        }
        Step::RemoveService(n) => {
            if let Some(id) = a_service(sim, n) {
                sim.try_it(Command::RemoveService { id });
            }
        }
        other => take_more(sim, &other),
    }
}

fn vary(spec: &mut shoal_types::spec::ServiceSpec, flavour: u8) {
    spec.task.force_update = u64::from(flavour % 3);
    spec.update.parallelism = u32::from(flavour % 4);
    spec.update.order = if flavour & 16 == 0 { UpdateOrder::StartFirst } else { UpdateOrder::StopFirst };
    spec.update.delay_ms = if flavour & 32 == 0 { 0 } else { 3_000 };
    spec.drain_ms = if flavour & 64 == 0 { 5_000 } else { 0 };
    let lb = usize::from(flavour) % (2 * LbPolicy::ALL.len());
    spec.lb = LbPolicy::ALL.get(lb).copied().unwrap_or_default();
    spec.task.max_per_node = u32::from(flavour & 128 != 0) * 2;
    spec.endpoint = if flavour.is_multiple_of(5) { EndpointMode::Dnsrr } else { EndpointMode::Vip };
}

fn take_more(sim: &mut Sim, step: &Step) {
    match *step {
        Step::Join => {
            let number = (2..200).find(|n| {
                sim.state
                    .nodes()
                    .values()
                    .all(|node| node.data_addr != std::net::IpAddr::from([192, 168, 7, *n]))
            });
            if let (Some(number), true) = (number, sim.state.nodes().len() < 6) {
                sim.join(number);
            }
        }
        Step::Leave(n) => {
            if let Some(id) = node(sim, n) {
                sim.try_it(Command::NodeLeft { id });
            }
        }
        Step::RemoveNode { node: n, force } => {
            if let Some(id) = node(sim, n) {
                sim.try_it(Command::RemoveNode { id, force });
            }
        }
        Step::NodeState { node: n, state } => {
            let name = pick(sim.state.nodes().values(), n).map(|n| n.name.to_string()).unwrap_or_default();
            let states = [NodeState::Ready, NodeState::Ready, NodeState::Suspect, NodeState::Down];
            sim.set_node(&name, states[usize::from(state % 4)]);
            sim.idle = state & 4 != 0;
        }
        Step::Availability { node: n, availability } => {
            let all = [Availability::Active, Availability::Active, Availability::Pause, Availability::Drain];
            if let Some(id) = node(sim, n) {
                sim.set_availability(&id, all[usize::from(availability % 4)]);
            }
        }
        Step::Fail { task, state } => {
            let ends = [TaskState::Failed, TaskState::Complete, TaskState::Rejected, TaskState::Starting];
            let placed: Vec<TaskId> =
                sim.state.tasks().values().filter(|t| t.node.is_some()).map(|t| t.id.clone()).collect();
            let id = pick(placed.iter(), task).cloned();
            if let Some(id) = id.filter(|id| {
                sim.state.nodes().contains_key(sim.state.tasks()[id].node.as_ref().expect("placed"))
            }) {
                sim.report(&id, ends[usize::from(state % 4)], Some(1));
            }
        }
        Step::Lead => {
            sim.lead();
        }
        Step::Work(n) => {
            if let Some(id) = node(sim, n) {
                sim.work_one(&id);
            }
        }
        Step::Time(ms) => sim.now.0 += u64::from(ms),
        Step::Retry => {
            // The same entry again under a request id, as after a lost answer.
            let id = shoal_types::TokenId::from_entropy(sim.draw());
            let command = Command::CreateToken {
                id,
                role: NodeRole::Worker,
                secret_sha256: [1; 32],
                ttl_ms: 1_000,
                uses: None,
            };
            let request = format!("r{}", sim.index);
            let first = sim.propose_as(Some(&request), command.clone());
            assert_eq!(sim.propose_as(Some(&request), command), first);
        }
        _ => balance(sim, step),
    }
}

fn balance(sim: &mut Sim, step: &Step) {
    match *step {
        Step::Engine(n) => {
            let all = [LbEngine::Ipvs, LbEngine::Ipvs, LbEngine::Ebpf, LbEngine::Auto];
            sim.try_it(Command::SetLbEngine { engine: all[usize::from(n % 4)] });
        }
        Step::Weight { node: n, weight } => {
            let name = pick(sim.state.nodes().values(), n).map(|n| n.name.to_string());
            if let Some(name) = name {
                sim.weigh(&name, weight.into());
            }
        }
        Step::Balances { node: n, how } => {
            let name = pick(sim.state.nodes().values(), n).map(|n| n.name.to_string()).unwrap_or_default();
            let engine = if how & 1 == 0 { LbEngine::Ipvs } else { LbEngine::Ebpf };
            sim.balances(&name, engine, how & 6 != 0, how & 8 != 0);
        }
        _ => {}
    }
}

/// Postcard, as snapshots are written.
fn round_trip(state: &State) -> State {
    let bytes = postcard::to_stdvec(state).expect("serializes");
    postcard::from_bytes(&bytes).expect("reads back")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, max_shrink_iters: 400, ..ProptestConfig::default() })]

    #[test]
    fn any_history_keeps_the_invariants_and_comes_to_rest(steps in prop::collection::vec(step(), 1..120)) {
        let mut sim = Sim::of(3);
        for step in steps {
            take(&mut sim, step);
        }

        // Another replica, by the log and by a snapshot in the middle.
        let mut replica = State::default();
        let half = sim.log.len() / 2;
        for (n, (index, entry)) in sim.log.iter().enumerate() {
            drop(replica.apply(*index, entry));
            if n == half {
                let restored = round_trip(&replica);
                prop_assert_eq!(restored.hash(), replica.hash());
                checks::check(&restored);
                replica = restored;
            }
        }
        prop_assert_eq!(replica.hash(), sim.state.hash());

        // Everybody back: it settles, and then there is nothing left to do.
        let names: Vec<String> = sim.state.nodes().values().map(|n| n.name.to_string()).collect();
        for name in &names {
            sim.set_node(name, NodeState::Ready);
            let id = sim.node(name);
            sim.set_availability(&id, Availability::Active);
        }
        sim.run(600_000);
        prop_assert_eq!(sim.lead(), 0);
        for service in sim.state.services().values() {
            let why: Vec<_> = sim.state.tasks_of_service(&service.id).map(|t| t.status.message.clone()).collect();
            let waits = why.iter().any(|m| m.contains("no free address") || m.contains("nodes fit"));
            prop_assert!(waits || sim.converged(&service.id), "{}: {:?}", service.spec.name, sim.ps(&service.id));
        }
        // And after the operator has cleared away everything, nothing is held.
        let services: Vec<_> = sim.state.services().keys().cloned().collect();
        for id in services {
            sim.must(Command::RemoveService { id });
        }
        sim.run(60_000);
        prop_assert!(sim.state.services().is_empty() && sim.state.tasks().is_empty());
        prop_assert!(sim.state.stranded.is_empty() && sim.state.restarts.is_empty());
    }
}
