//! What names stand for: virtual IPs or tasks, aliases, and what no node may ask outside.

use std::collections::BTreeSet;

use shoal_types::id::{Name, NetworkId, ServiceId, TaskId};
use shoal_types::spec::{AttachmentSpec, DnsSpec, EndpointMode, ServiceSpec};

use super::sim::{Sim, name, service, tcp};
use crate::rejection::Rejection;
use crate::{Command, view};

fn rotated(text: &str, replicas: u32, networks: &[&NetworkId]) -> ServiceSpec {
    ServiceSpec { endpoint: EndpointMode::Dnsrr, ..service(text, replicas, networks, &[tcp(8080, 80)]) }
}

fn used(sim: &Sim, network: &NetworkId) -> u64 {
    view::addresses(&sim.state, network).expect("a network").used
}

/// The tasks that serve.
fn serving(sim: &Sim, service: &ServiceId) -> BTreeSet<TaskId> {
    sim.state.tasks_of_service(service).filter(|task| task.is_serving()).map(|task| task.id.clone()).collect()
}

#[test]
fn a_rotated_service_takes_no_virtual_ip_and_publishes_all_the_same() {
    let mut sim = Sim::of(3);
    let net = sim.network("back", None);
    let web = sim.create(&rotated("web", 2, &[&net]));
    sim.rest();
    assert!(sim.converged(&web));
    assert_eq!(used(&sim, &net), 2, "its tasks and nothing else");
    for node in ["n1", "n2", "n3"] {
        let told = sim.assignment(node);
        let known = told.services().find(|s| s.id == web).expect("published everywhere");
        assert!(known.vips.is_empty() && known.ports.len() == 1);
        let here = told.networks().any(|n| n.id == net);
        assert_eq!(known.dnsrr.iter().any(|at| at.network == net), here, "{node}");
    }
}

#[test]
fn its_name_is_known_without_a_single_task() {
    let mut sim = Sim::of(1);
    let net = sim.network("back", None);
    let asker = sim.create(&service("asker", 1, &[&net], &[]));
    let idle = sim.create(&ServiceSpec { ports: Vec::new(), ..rotated("idle", 0, &[&net]) });
    sim.rest();
    assert!(sim.converged(&asker));
    assert!(sim.assignment("n1").services().any(|s| s.id == idle && !s.dnsrr.is_empty()));
}

#[test]
fn switching_gives_back_or_takes_the_virtual_ip_and_replaces_no_task() {
    let mut sim = Sim::of(2);
    let net = sim.network("back", None);
    let web = sim.create(&service("web", 2, &[&net], &[tcp(8080, 80)]));
    sim.rest();
    let tasks = serving(&sim, &web);
    assert_eq!(tasks.len(), 2);
    assert_eq!(used(&sim, &net), 3);
    let first = sim.state.services()[&web].vips.clone();
    sim.update(&web, |spec| spec.endpoint = EndpointMode::Dnsrr);
    sim.rest();
    assert_eq!(used(&sim, &net), 2);
    assert!(sim.state.services()[&web].vips.is_empty());
    sim.update(&web, |spec| spec.endpoint = EndpointMode::Vip);
    sim.rest();
    assert_eq!(used(&sim, &net), 3);
    let second = sim.state.services()[&web].vips.clone();
    assert_ne!(first[0].addr, second[0].addr, "the address rests");
    assert!(sim.assignment("n1").services().all(|s| s.dnsrr.is_empty() && s.vips.len() == 1));
    assert_eq!(serving(&sim, &web), tasks);
}

#[test]
fn a_switch_without_a_free_address_is_refused_whole() {
    let mut sim = Sim::of(1);
    let net = sim.network("small", Some("10.99.0.0/29"));
    let web = sim.create(&rotated("web", 3, &[&net]));
    sim.rest();
    // Of five addresses two are left, and promised to another service's tasks.
    let other = ServiceSpec { ports: Vec::new(), ..rotated("other", 2, &[&net]) };
    let other = sim.create(&other);
    let before = sim.state.services()[&web].clone();
    let spec = ServiceSpec { endpoint: EndpointMode::Vip, ..before.spec.clone() };
    let command = Command::UpdateService { id: web.clone(), spec: Box::new(spec), expect_version: None };
    assert!(matches!(sim.propose(command), Err(Rejection::SubnetExhausted { wanted: 1, .. })));
    assert_eq!(sim.state.services()[&web], before);
    sim.rest();
    assert!(sim.converged(&other), "what was promised is there");
}

#[test]
fn aliases_change_without_replacing_tasks() {
    let mut sim = Sim::of(1);
    let net = sim.network("back", None);
    for endpoint in [EndpointMode::Vip, EndpointMode::Dnsrr] {
        let spec = service(endpoint.as_str(), 1, &[&net], &[]);
        let id = sim.create(&ServiceSpec { endpoint, ..spec });
        sim.rest();
        let tasks = serving(&sim, &id);
        let aliases = vec![name("db"), name("sql")];
        let place = AttachmentSpec { network: net.clone(), aliases: aliases.clone() };
        sim.update(&id, |spec| spec.networks = vec![place.clone()]);
        sim.rest();
        let told = sim.assignment("n1");
        let known = told.services().find(|s| s.id == id).expect("on this node");
        match endpoint {
            EndpointMode::Vip => assert_eq!(known.vips[0].aliases, aliases),
            EndpointMode::Dnsrr => assert_eq!(known.dnsrr, [place]),
        }
        assert_eq!(serving(&sim, &id), tasks);
    }
}

#[test]
fn an_alias_that_a_name_hides_is_reported() {
    let mut sim = Sim::of(1);
    let (net, other) = (sim.network("back", None), sim.network("front", None));
    let spec = service("new", 1, &[], &[]);
    let place = |network: &NetworkId| AttachmentSpec { network: network.clone(), aliases: vec![name("db")] };
    sim.create(&ServiceSpec { networks: vec![place(&net), place(&other)], ..spec });
    assert!(view::warnings(&sim.state).is_empty());
    let db = sim.create(&service("db", 1, &[&net], &[]));
    assert_eq!(
        view::warnings(&sim.state),
        ["alias 'db' of service 'new' leads to service 'db' on network 'back'"]
    );
    sim.must(Command::RemoveService { id: db });
    sim.rest();
    assert!(view::warnings(&sim.state).is_empty());
}

#[test]
fn every_node_knows_what_is_not_asked_outside() {
    let mut sim = Sim::of(2);
    let pools = sim.assignment("n2").cluster().expect("founded").reserved.subnets.len();
    let id = sim.network("back", None);
    sim.network("odd", Some("172.29.0.0/24"));
    let reserved = sim.assignment("n2").cluster().expect("founded").reserved.clone();
    let mut names: Vec<&str> = reserved.networks.iter().map(Name::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, ["back", "odd"], "it has no task on either, and ingress is no name");
    assert_eq!(reserved.subnets.len(), pools + 1, "what is from a pool is covered by it");
    sim.must(Command::RemoveNetwork { id });
    let after = sim.assignment("n2").cluster().expect("founded").reserved.clone();
    assert_eq!(after.networks, [name("odd")]);
}

#[test]
fn resolver_settings_are_checked_and_a_change_replaces_the_tasks() {
    let mut sim = Sim::of(1);
    let web = sim.create(&service("web", 1, &[], &[]));
    sim.rest();
    let before = serving(&sim, &web);
    let dns = DnsSpec { servers: vec!["192.0.2.53".parse().expect("literal")], ..DnsSpec::default() };
    sim.update(&web, |spec| spec.dns = dns.clone());
    sim.run(60_000);
    let now = serving(&sim, &web);
    assert!(now.len() == 1 && now.is_disjoint(&before), "{before:?} became {now:?}");
    assert!(sim.assignment("n1").tasks().all(|task| task.dns == dns));
    let spec = sim.state.services()[&web].spec.clone();
    let bad = DnsSpec { options: vec!["a\nnameserver 192.0.2.1".to_owned()], ..dns };
    let spec = Box::new(ServiceSpec { dns: bad, ..spec });
    let command = Command::UpdateService { id: web, spec, expect_version: None };
    assert!(
        matches!(sim.propose(command), Err(Rejection::InvalidField { field, .. }) if field == "dns-option")
    );
}
