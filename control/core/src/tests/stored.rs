//! What the first version wrote: logs and snapshots of clusters that are older than this build.

use shoal_types::lb::{DirectRouting, LbEngine, LbInUse, LbPolicy, NodeLb, Weight};
use shoal_types::object::{Balancing, Health};
use shoal_types::spec::{DnsSpec, EndpointMode, HealthCheck, HealthProbe, ServiceMode, ServiceSpec};

use super::checks;
use super::sim::{Sim, name, service, tcp};
use crate::command::Entry;
use crate::{Command, State};

/// Two nodes, a network, a published service that was updated and a global one; `n2` said that its engine is `ebpf`.
const LOG: &[u8] = include_bytes!("stored/first-log.bin");
const STATE: &[u8] = include_bytes!("stored/first-state.bin");
const HASH: u128 = 0xd086_c9d3_541d_0018_cfb3_2c27_8dc8_4ca9;

fn snapshot(state: &State) -> Vec<u8> {
    postcard::to_stdvec(state).expect("serializes")
}

fn read(bytes: &[u8]) -> State {
    postcard::from_bytes(bytes).expect("reads")
}

#[test]
fn a_snapshot_of_the_first_version_is_read_and_written_as_it_was() {
    let state = read(STATE);
    checks::check(&state);
    assert_eq!(state.hash(), HASH);
    assert_eq!(snapshot(&state), STATE);
    assert_eq!(state.cluster().expect("founded").balancing, Balancing::default());
    assert!(state.services().values().all(|s| s.spec.lb == LbPolicy::Auto));
    assert!(state.nodes().values().all(|n| n.weight == Weight::default()));
    assert!(state.services().values().all(|s| s.spec.endpoint == EndpointMode::Vip));
    let said: Vec<NodeLb> = state.nodes().values().map(|n| n.description.lb).collect();
    assert!(said.contains(&NodeLb { setting: LbEngine::Auto, in_use: Some(LbInUse::default()) }), "{said:?}");
}

#[test]
fn a_log_of_the_first_version_leads_to_the_same_state() {
    let log: Vec<(u64, Entry)> = postcard::from_bytes(LOG).expect("reads");
    let mut state = State::default();
    for (index, entry) in &log {
        state.apply(*index, entry).expect("was accepted");
    }
    assert_eq!(state.hash(), HASH);
    assert_eq!(postcard::to_stdvec(&log).expect("serializes"), LOG);
}

#[test]
fn what_came_later_is_read_back() {
    let mut sim = Sim::of(2);
    sim.must(Command::SetLbEngine { engine: LbEngine::Ipvs });
    sim.balances("n1", LbEngine::Ipvs, true, false);
    sim.weigh("n2", 7);
    let spec = service("web", 2, &[], &[]);
    let web = sim.create(&ServiceSpec { lb: LbPolicy::LeastConnections, ..spec.clone() });
    let gone = sim.create(&service("gone", 1, &[], &[tcp(8080, 80)]));
    let rotated = ServiceSpec { name: name("rotated"), endpoint: EndpointMode::Dnsrr, ..spec.clone() };
    let rotated = sim.create(&rotated);
    let both = ServiceSpec {
        name: name("both"),
        mode: ServiceMode::Global,
        lb: LbPolicy::Source,
        endpoint: EndpointMode::Dnsrr,
        dns: DnsSpec { search: vec![".".to_owned()], ..DnsSpec::default() },
        ..spec
    };
    let both = sim.create(&both);
    let mut checked = service("checked", 1, &[], &[]);
    let probe = HealthProbe::Command(vec!["true".to_owned()]);
    checked.task.health = Some(HealthCheck { retries: 7, ..HealthCheck::of(probe) });
    let checked = sim.create(&checked);
    sim.run(60_000);
    let drains = sim.live_task("gone.1").id;
    sim.must(Command::RemoveService { id: gone });
    sim.rest();
    sim.report_connections(&drains, 12);
    let sick = sim.live_task("checked.1").id;
    sim.report_health(&sick, Health::Unhealthy);
    let state = read(&snapshot(&sim.state));
    assert_eq!(state.tasks()[&drains].status.connections, Some(12));
    assert_eq!(state.hash(), sim.state.hash());
    let balancing = state.cluster().expect("founded").balancing;
    assert_eq!((balancing.engine, balancing.direct), (LbEngine::Ipvs, DirectRouting::Ready));
    for id in [&web, &rotated, &both, &checked] {
        assert_eq!(state.services()[id], sim.state.services()[id]);
    }
    assert_eq!(state.tasks()[&sick].status.health, Health::Unhealthy);
    assert_eq!(state.tasks(), sim.state.tasks());
    assert_eq!(state.nodes(), sim.state.nodes());
    assert_eq!(state.nodes()[&sim.node("n2")].weight.get(), 7);
    let log: Vec<(u64, Entry)> =
        postcard::from_bytes(&postcard::to_stdvec(&sim.log).expect("serializes")).expect("reads");
    assert_eq!(log, sim.log);
}
