//! Bad input: what the operator reads, and that nothing happened. `Sim::propose` compares the state's hash.

use std::net::IpAddr;

use shoal_types::ErrorCode;
use shoal_types::id::{NetworkId, NodeId, ServiceId, TokenId};
use shoal_types::object::{NodeRole, NodeState};
use shoal_types::spec::{PortSpec, ServiceSpec};

use super::sim::{Sim, network_spec, service, tcp};
use crate::command::Join;
use crate::{Command, Outcome, Rejection, view};

/// A field and a change of it that is refused.
type Change = (&'static str, Box<dyn Fn(&mut ServiceSpec)>);

fn refused(sim: &mut Sim, command: Command) -> Rejection {
    let rejection = sim.propose(command).expect_err("refused");
    assert!(!rejection.help().is_empty() && !rejection.to_string().is_empty());
    rejection
}

fn create(sim: &mut Sim, spec: ServiceSpec) -> Command {
    Command::CreateService { id: ServiceId::from_entropy(sim.draw()), spec: Box::new(spec) }
}

fn create_network(sim: &mut Sim, text: &str, subnet4: &str) -> Command {
    Command::CreateNetwork {
        id: NetworkId::from_entropy(sim.draw()),
        spec: network_spec(text, Some(subnet4)),
    }
}

#[test]
fn a_taken_port_names_its_holder_and_the_way_out() {
    let mut sim = Sim::of(1);
    sim.create(&service("api", 1, &[], &[tcp(8080, 80)]));
    let command = create(&mut sim, service("web", 1, &[], &[tcp(8080, 8000)]));
    let rejection = refused(&mut sim, command);
    assert_eq!(rejection.code(), ErrorCode::PortTaken);
    assert_eq!(rejection.to_string(), "port 8080/tcp is already published by service 'api'");
    assert_eq!(
        rejection.context(),
        ["asked by: service 'web' (ingress)", "held by: api, since 2026-03-01 10:12"]
    );
    assert_eq!(rejection.help(), "choose another port, or 'shoal service update --publish-rm 80 api'");
    let udp = PortSpec { protocol: shoal_types::Protocol::Udp, ..tcp(8080, 80) };
    sim.create(&service("dns", 1, &[], &[udp]));
}

#[test]
fn ports_of_the_cluster_itself_are_not_published() {
    let mut sim = Sim::of(1);
    let control = sim.state.nodes().values().find_map(|n| n.control_addr).expect("a manager").port();
    let data = sim.state.cluster().expect("founded").data_port;
    let udp = |port| PortSpec { protocol: shoal_types::Protocol::Udp, ..tcp(port, 80) };
    for port in [tcp(control, 80), udp(data)] {
        let command = create(&mut sim, service("web", 1, &[], &[port]));
        let rejection = refused(&mut sim, command);
        assert_eq!(rejection.code(), ErrorCode::InvalidField);
        assert!(rejection.to_string().contains("is a port of the swarm itself"), "{rejection}");
    }
    // The other transport's ports of these numbers are nobody's.
    sim.create(&service("web", 1, &[], &[udp(control), tcp(data, 80)]));
}

#[test]
fn automatic_ports_run_out_with_a_clear_word_and_stay_over_an_update() {
    let mut sim = Sim::of(1);
    let auto = PortSpec { published: None, ..tcp(1, 80) };
    let web = sim.create(&service("web", 0, &[], &[auto]));
    assert_eq!(sim.state.services()[&web].ports[0].published, 30_000);
    sim.create(&service("api", 0, &[], &[auto]));
    sim.update(&web, |s| s.ports.insert(0, tcp(8080, 81)));
    assert_eq!(
        sim.state.services()[&web].ports.iter().map(|p| p.published).collect::<Vec<_>>(),
        [8080, 30_000]
    );
    let all: Vec<PortSpec> = (30_002..=32_767).map(|p| tcp(p, 80)).collect();
    sim.create(&service("greedy", 0, &[], &all));
    let command = create(&mut sim, service("late", 0, &[], &[auto]));
    assert_eq!(refused(&mut sim, command).to_string(), "no free tcp port in 30000-32767 for service 'late'");
}

#[test]
fn overlapping_subnets_are_refused_in_both_families() {
    let mut sim = Sim::of(1);
    let ingress = sim.state.ingress().expect("founded").subnets;
    assert_eq!(
        (ingress.v4.to_string(), ingress.v6.to_string()),
        ("10.0.0.0/16".into(), "fd12:3456:789a::/64".into())
    );
    sim.network("a", Some("172.20.0.0/16"));
    let command = create_network(&mut sim, "b", "172.20.7.0/24");
    let rejection = refused(&mut sim, command);
    assert_eq!(rejection.code(), ErrorCode::SubnetOverlap);
    assert_eq!(rejection.to_string(), "subnet4: 172.20.7.0/24 overlaps 172.20.0.0/16 of network 'a'");

    let mut spec = network_spec("c", None);
    spec.subnet6 = Some("fd12:3456:789a::/56".parse().expect("a net"));
    let id = NetworkId::from_entropy(sim.draw());
    let rejection = refused(&mut sim, Command::CreateNetwork { id, spec });
    assert!(rejection.to_string().starts_with("subnet6:"), "{rejection}");

    let command = create_network(&mut sim, "d", "192.168.0.0/16");
    let rejection = refused(&mut sim, command);
    assert_eq!(
        rejection.to_string(),
        "address 192.168.7.1 of node 'n1' lies in 192.168.0.0/16 of network 'd'"
    );
    for (bad, word) in
        [("10.9.1.0/20", "behind the prefix"), ("172.30.0.0/30", "outside"), ("127.0.0.0/16", "reserved")]
    {
        let command = create_network(&mut sim, "e", bad);
        let rejection = refused(&mut sim, command);
        assert_eq!(rejection.code(), ErrorCode::InvalidField);
        assert!(rejection.to_string().contains(word), "{rejection}");
    }
}

#[test]
fn pools_skip_what_is_in_use_and_run_out() {
    let mut sim = Sim::with_pools("10.9.0.0/16", 20);
    let v4 = |sim: &Sim, id: &NetworkId| sim.state.networks()[id].subnets.v4.to_string();
    let mut seen = Vec::new();
    sim.network("given", Some("10.9.160.0/20"));
    for n in 0..7 {
        let id = sim.network(&format!("net{n}"), None);
        seen.push(v4(&sim, &id));
    }
    assert_eq!(seen[0], "10.9.128.0/20", "behind ingress");
    assert!(!seen.contains(&"10.9.160.0/20".to_owned()));
    let id = NetworkId::from_entropy(sim.draw());
    let rejection = refused(&mut sim, Command::CreateNetwork { id, spec: network_spec("late", None) });
    assert_eq!(rejection.code(), ErrorCode::PoolExhausted);
    assert_eq!(rejection.to_string(), "no free IPv4 /20 in the pools (10.9.0.0/16) for network 'late'");
}

#[test]
fn an_exhausted_subnet_refuses_the_service_that_would_not_fit() {
    let mut sim = Sim::of(1);
    let net = sim.network("tiny", Some("172.20.0.0/29"));
    let command = create(&mut sim, service("web", 5, &[&net], &[]));
    let rejection = refused(&mut sim, command);
    assert_eq!(rejection.code(), ErrorCode::SubnetExhausted);
    assert_eq!(
        rejection.to_string(),
        "network 'tiny' (172.20.0.0/29) has 5 free addresses of 5, 6 are needed"
    );
    assert_eq!(rejection.context(), ["asked by: service 'web' (5 tasks)"]);
    let web = sim.create(&service("web", 4, &[&net], &[]));
    // Promised, although no task exists yet.
    let command = create(&mut sim, service("api", 1, &[&net], &[]));
    assert_eq!(refused(&mut sim, command).code(), ErrorCode::SubnetExhausted);
    let rejection = refused(&mut sim, Command::ScaleService { id: web.clone(), replicas: 5 });
    assert_eq!(
        rejection.to_string(),
        "network 'tiny' (172.20.0.0/29) has 4 free addresses of 5, 5 are needed"
    );
    sim.rest();
    assert!(sim.converged(&web));
    // An update has no room for one more task beside the old ones: it waits, and says why.
    sim.update(&web, |s| s.task.force_update = 1);
    sim.rest();
    let waiting = sim.live_task("web.1");
    assert!(
        waiting.status.message.starts_with("no free address in network 'tiny' (172.20.0.0/29, 5 in all)")
    );
    assert_eq!(sim.serving(&web), 4);
}

#[test]
fn tokens_are_refused_each_for_its_reason() {
    let mut sim = Sim::of(1);
    let (token, secret_sha256) = sim.token(NodeRole::Worker, Some(1));
    let join = |sim: &mut Sim, token: &TokenId, secret_sha256, n: u8| {
        let node = NodeId::from_entropy(sim.draw());
        let data_addr = IpAddr::from([192, 168, 7, n]);
        Command::Join(Box::new(Join {
            token: token.clone(),
            secret_sha256,
            node,
            name_hint: "x".to_owned(),
            data_addr,
        }))
    };
    let wrong = join(&mut sim, &token, [8; 32], 50);
    assert_eq!(refused(&mut sim, wrong).code(), ErrorCode::TokenUnknown);
    let unknown = join(&mut sim, &TokenId::from_entropy(99), secret_sha256, 50);
    assert_eq!(refused(&mut sim, unknown).code(), ErrorCode::TokenUnknown);
    let good = join(&mut sim, &token, secret_sha256, 50);
    sim.must(good);
    let second = join(&mut sim, &token, secret_sha256, 51);
    assert_eq!(refused(&mut sim, second).code(), ErrorCode::TokenUsedUp);
    let (token, secret_sha256) = sim.token(NodeRole::Worker, None);
    sim.now.0 += 86_400_000;
    let late = join(&mut sim, &token, secret_sha256, 52);
    let rejection = refused(&mut sim, late);
    assert_eq!(rejection.code(), ErrorCode::TokenExpired);
    assert!(rejection.to_string().ends_with("expired 2026-03-02 10:12"), "{rejection}");
}

#[test]
fn a_join_inside_an_overlay_or_on_a_live_address_consumes_no_use() {
    let mut sim = Sim::of(1);
    let (token, secret_sha256) = sim.token(NodeRole::Worker, Some(1));
    for addr in ["10.0.0.9", "192.168.7.1", "0.0.0.0", "2001:db8::9"] {
        let node = NodeId::from_entropy(sim.draw());
        let data_addr = addr.parse().expect("an address");
        let name_hint = "x".to_owned();
        let join = Join { token: token.clone(), secret_sha256, node, name_hint, data_addr };
        refused(&mut sim, Command::Join(Box::new(join)));
    }
    assert_eq!(sim.state.tokens()[&token].uses_left, Some(1));
}

#[test]
fn networks_and_names_in_use_stay() {
    let mut sim = Sim::of(1);
    let net = sim.network("backend", None);
    let web = sim.create(&service("web", 1, &[&net], &[]));
    let rejection = refused(&mut sim, Command::RemoveNetwork { id: net.clone() });
    assert_eq!(
        (rejection.code(), rejection.context()),
        (ErrorCode::InUse, vec!["used by: service 'web'".to_owned()])
    );
    let command = create(&mut sim, service("web", 1, &[], &[]));
    assert_eq!(refused(&mut sim, command).code(), ErrorCode::NameTaken);
    let ingress = sim.state.ingress().expect("founded").id.clone();
    assert_eq!(refused(&mut sim, Command::RemoveNetwork { id: ingress.clone() }).code(), ErrorCode::InUse);
    let command = create(&mut sim, service("api", 1, &[&ingress], &[]));
    assert_eq!(refused(&mut sim, command).code(), ErrorCode::InvalidField);
    let command = create(&mut sim, service("api", 1, &[&NetworkId::from_entropy(5)], &[]));
    assert_eq!(refused(&mut sim, command).code(), ErrorCode::NotFound);
    // A network that the service has left is in use while the old tasks are.
    sim.rest();
    sim.update(&web, |s| s.networks.clear());
    let rejection = refused(&mut sim, Command::RemoveNetwork { id: net.clone() });
    assert!(rejection.context()[0].contains("web.1"), "{:?}", rejection.context());
    sim.run(30_000);
    sim.must(Command::RemoveNetwork { id: net });
}

#[test]
fn updates_check_their_version_and_what_may_not_change() {
    let mut sim = Sim::of(1);
    let web = sim.create(&service("web", 1, &[], &[]));
    let update = |sim: &Sim, expect_version, change: &dyn Fn(&mut ServiceSpec)| {
        let mut spec = sim.state.services()[&web].spec.clone();
        change(&mut spec);
        Command::UpdateService { id: web.clone(), spec: Box::new(spec), expect_version }
    };
    let command = update(&sim, Some(1), &|s| s.drain_ms = 1);
    sim.must(command);
    let command = update(&sim, Some(1), &|s| s.drain_ms = 2);
    let rejection = refused(&mut sim, command);
    assert_eq!(rejection.code(), ErrorCode::VersionConflict);
    assert_eq!(rejection.to_string(), "service 'web' is at version 2, not 1");
    let changes: Vec<Change> = vec![
        ("name", Box::new(|s| s.name = "api".parse().expect("a name"))),
        ("mode", Box::new(|s| s.mode = shoal_types::spec::ServiceMode::Global)),
        ("command", Box::new(|s| s.task.process.command.clear())),
        ("env", Box::new(|s| s.task.process.env.push("NOVALUE".into()))),
        ("stop-signal", Box::new(|s| s.task.stop_signal = 0)),
        ("publish", Box::new(|s| s.ports = vec![tcp(80, 80), tcp(80, 81)])),
        ("publish", Box::new(|s| s.ports = vec![tcp(80, 0)])),
        ("drain", Box::new(|s| s.drain_ms = u64::MAX)),
    ];
    for (field, change) in changes {
        let command = update(&sim, None, &change);
        let rejection = refused(&mut sim, command);
        assert!(rejection.to_string().starts_with(&format!("{field}: '")), "{rejection}");
        assert_eq!(rejection.code(), ErrorCode::InvalidField);
    }
}

#[test]
fn nodes_that_live_are_not_removed_by_mistake() {
    let mut sim = Sim::of(2);
    let (n1, n2) = (sim.node("n1"), sim.node("n2"));
    assert!(matches!(
        refused(&mut sim, Command::RemoveNode { id: n1, force: true }),
        Rejection::LastManager { .. }
    ));
    let rejection = refused(&mut sim, Command::RemoveNode { id: n2.clone(), force: false });
    assert_eq!(rejection.to_string(), "node 'n2' is ready and has 0 tasks");
    sim.set_node("n2", NodeState::Down);
    sim.must(Command::RemoveNode { id: n2, force: false });
}

#[test]
fn a_retry_applies_once_and_answers_the_same() {
    let mut sim = Sim::of(1);
    let command = create(&mut sim, service("web", 1, &[], &[]));
    let first = sim.propose_as(Some("r1"), command).expect("accepted");
    // The leader draws another id for the retry.
    let command = create(&mut sim, service("web", 1, &[], &[]));
    assert_eq!(sim.propose_as(Some("r1"), command), Ok(first.clone()));
    assert_eq!(sim.state.services().len(), 1);
    let Outcome::Service { id, .. } = first else { panic!("a service") };
    let rejection = sim.propose_as(Some("r1"), Command::RemoveService { id }).expect_err("another command");
    assert_eq!(rejection.to_string(), "request id 'r1' was already used for create-service");
    for n in 0..1_100 {
        let token = Command::CreateToken {
            id: TokenId::from_entropy(sim.draw()),
            role: NodeRole::Worker,
            secret_sha256: [0; 32],
            ttl_ms: 1,
            uses: None,
        };
        sim.propose_as(Some(&format!("t{n}")), token).expect("accepted");
    }
    let command = create(&mut sim, service("web", 1, &[], &[]));
    assert!(sim.propose_as(Some("r1"), command).is_err(), "forgotten after a thousand others");
}

#[test]
fn dry_runs_answer_and_change_nothing() {
    let mut sim = Sim::of(1);
    let before = sim.state.hash();
    let command = create(&mut sim, service("web", 1, &[], &[tcp(8080, 80)]));
    assert!(sim.state.check(sim.now, &command).is_ok());
    let (after, _) = sim.state.preview(sim.now, &command).expect("fine");
    assert_eq!(after.services().len(), 1);
    assert_eq!(sim.state.hash(), before);
}

#[test]
fn references_are_ids_names_or_unique_prefixes() {
    let mut sim = Sim::of(3);
    let id = sim.node("n2");
    assert_eq!(view::find_node(&sim.state, id.as_str()).map(|n| &n.id), Ok(&id));
    assert_eq!(view::find_node(&sim.state, id.short()).map(|n| &n.id), Ok(&id));
    let rejection = view::find_node(&sim.state, "n9").expect_err("none");
    assert_eq!(
        (rejection.code(), rejection.help()),
        (ErrorCode::NotFound, "list them with 'shoal node ls'".into())
    );
    assert!(view::find_node(&sim.state, "").is_err());
    for (n, text) in ["aaa1", "aaa2"].into_iter().enumerate() {
        let id = text.parse().expect("an id");
        let spec = service(&format!("s{n}"), 0, &[], &[]);
        sim.must(Command::CreateService { id, spec: Box::new(spec) });
    }
    let rejection = view::find_service(&sim.state, "aaa").expect_err("two");
    assert_eq!(rejection.code(), ErrorCode::Ambiguous);
    assert_eq!(rejection.context().len(), 2);
}

#[test]
fn before_the_cluster_is_founded_there_is_nothing() {
    let mut sim = Sim::of(1);
    let mut empty = crate::State::default();
    let command = create(&mut sim, service("web", 1, &[], &[]));
    assert_eq!(empty.check(sim.now, &command), Err(Rejection::NotInitialized));
    let mut init = sim.init();
    init.manager.data_addr = "0.0.0.0".parse().expect("an address");
    let before = empty.hash();
    let entry = crate::Entry {
        now: sim.now,
        request_id: None,
        command: Command::InitCluster(Box::new(init.clone())),
    };
    assert!(empty.apply(1, &entry).is_err());
    assert_eq!(empty.hash(), before);
    assert!(matches!(
        refused(&mut sim, Command::InitCluster(Box::new(init))),
        Rejection::AlreadyInitialized { .. }
    ));
}
