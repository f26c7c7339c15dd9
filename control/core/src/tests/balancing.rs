//! Stories of engines, policies and direct routing.

use shoal_types::ErrorCode;
use shoal_types::lb::{DirectRouting, LbEngine, LbInUse, LbPolicy, NodeLb};
use shoal_types::object::{Balancing, NodeDescription, NodeState};
use shoal_types::spec::ServiceSpec;

use super::sim::{Sim, service, tcp};
use crate::{Command, LeaderView, Outcome, Rejection, State, assignment, view};

fn balancing(sim: &Sim) -> Balancing {
    sim.state.cluster().expect("founded").balancing
}

fn direct(sim: &Sim) -> DirectRouting {
    balancing(sim).direct
}

fn set(sim: &mut Sim, engine: LbEngine) -> Result<Outcome, Rejection> {
    sim.propose(Command::SetLbEngine { engine })
}

fn least(text: &str) -> ServiceSpec {
    ServiceSpec { lb: LbPolicy::LeastConnections, ..service(text, 2, &[], &[tcp(8080, 80)]) }
}

fn create(sim: &mut Sim, spec: &ServiceSpec) -> Result<Outcome, Rejection> {
    let id = shoal_types::ServiceId::from_entropy(sim.draw());
    sim.propose(Command::CreateService { id, spec: Box::new(spec.clone()) })
}

/// All nodes of a cluster of that size balance by IPVS.
fn on_ipvs(count: u8) -> Sim {
    let mut sim = Sim::of(count);
    set(&mut sim, LbEngine::Ipvs).expect("nobody said anything against it");
    for n in 1..=count {
        sim.balances(&format!("n{n}"), LbEngine::Ipvs, true, false);
    }
    sim
}

#[test]
fn nodes_are_told_the_engine_and_the_policy_and_tasks_stay() {
    let mut sim = on_ipvs(2);
    let web = sim.create(&service("web", 2, &[], &[tcp(8080, 80)]));
    sim.run(60_000);
    let before = sim.ps(&web);
    let version = sim.state.services()[&web].task_version;
    sim.update(&web, |spec| spec.lb = LbPolicy::LeastConnections);
    assert!(
        !view::convergence(&sim.state, &web, Some(&sim.view)).expect("there").converged,
        "not programmed yet"
    );
    sim.run(60_000);
    assert_eq!((sim.ps(&web), sim.state.services()[&web].task_version), (before, version));
    assert!(sim.converged(&web));
    let told = sim.assignment("n2");
    assert_eq!(told.services().map(|s| s.lb).collect::<Vec<_>>(), [LbPolicy::LeastConnections]);
    let cluster = told.cluster().expect("told");
    assert_eq!((cluster.lb_engine, cluster.direct), (LbEngine::Ipvs, DirectRouting::Ready));
}

#[test]
fn the_same_engine_again_is_no_change_and_a_retry_is_applied_once() {
    let mut sim = Sim::of(1);
    let command = Command::SetLbEngine { engine: LbEngine::Ipvs };
    assert_eq!(sim.propose_as(Some("r1"), command.clone()), Ok(Outcome::Done));
    assert_eq!(set(&mut sim, LbEngine::Ebpf), Ok(Outcome::Done));
    assert_eq!(sim.propose_as(Some("r1"), command), Ok(Outcome::Done), "remembered");
    assert_eq!(balancing(&sim).engine, LbEngine::Ebpf);
    assert_eq!(set(&mut sim, LbEngine::Ebpf), Ok(Outcome::Unchanged));
}

#[test]
fn virtual_ips_are_everywhere_before_the_first_node_forwards_directly() {
    let mut sim = Sim::of(3);
    sim.run(1_000);
    assert_eq!(direct(&sim), DirectRouting::Off);
    set(&mut sim, LbEngine::Ipvs).expect("set");
    sim.lead();
    assert_eq!((direct(&sim), balancing(&sim).direct_since), (DirectRouting::Preparing, sim.index));
    assert_eq!(sim.assignment("n1").cluster().expect("told").direct, DirectRouting::Preparing);
    for done in ["n1", "n2"] {
        let id = sim.node(done);
        sim.work_one(&id);
        assert_eq!((sim.lead(), direct(&sim)), (0, DirectRouting::Preparing), "n3 has not programmed it");
    }
    let last = sim.node("n3");
    sim.work_one(&last);
    sim.lead();
    assert_eq!(direct(&sim), DirectRouting::Ready);
    let joined = sim.join(4);
    assert_eq!(sim.lead(), 0, "it gets everything in its snapshot");
    let told = assignment::for_node(&sim.state, &joined, sim.index).expect("a member");
    assert_eq!(told.cluster().expect("told").direct, DirectRouting::Ready);
}

#[test]
fn they_stay_until_the_last_node_has_ceased_to() {
    let mut sim = on_ipvs(2);
    sim.run(1_000);
    assert_eq!(direct(&sim), DirectRouting::Ready);
    set(&mut sim, LbEngine::Auto).expect("no service minds");
    sim.run(1_000);
    assert_eq!(direct(&sim), DirectRouting::Ready, "both still balance by ipvs");
    sim.balances("n1", LbEngine::Ebpf, true, false);
    sim.balances("n2", LbEngine::Ebpf, true, true);
    sim.run(1_000);
    assert_eq!(direct(&sim), DirectRouting::Ready, "n2 has flows left");
    // Neither a lost contact nor a new session, which begins by knowing nothing, ends what its kernel does.
    sim.set_node("n2", NodeState::Down);
    sim.run(1_000);
    sim.set_node("n2", NodeState::Ready);
    sim.run(1_000);
    assert_eq!(direct(&sim), DirectRouting::Ready);
    sim.balances("n2", LbEngine::Ebpf, true, false);
    sim.run(1_000);
    assert_eq!(direct(&sim), DirectRouting::Off);
    assert_eq!(sim.lead(), 0);
}

#[test]
fn one_node_s_own_setting_is_enough_to_want_it() {
    let mut sim = Sim::of(2);
    let (id, own) = (sim.node("n2"), NodeLb { setting: LbEngine::Ipvs, in_use: None });
    let data_addr = sim.state.nodes()[&id].data_addr;
    let description = NodeDescription { lb: own, ..NodeDescription::default() };
    sim.must(Command::NodeHello { id, description, data_addr });
    sim.run(1_000);
    assert_eq!(direct(&sim), DirectRouting::Ready);
    // It says that it cannot.
    sim.balances("n2", LbEngine::Ebpf, false, false);
    sim.run(1_000);
    assert_eq!(direct(&sim), DirectRouting::Off);
}

#[test]
fn a_node_that_is_down_holds_nothing_up_and_one_that_may_come_back_does() {
    let mut sim = Sim::of(3);
    sim.run(1_000);
    sim.set_node("n3", NodeState::Suspect);
    set(&mut sim, LbEngine::Ipvs).expect("set");
    sim.run(1_000);
    assert_eq!(
        direct(&sim),
        DirectRouting::Preparing,
        "its tasks are sent flows the moment it is heard again"
    );
    sim.set_node("n3", NodeState::Down);
    sim.run(1_000);
    assert_eq!(direct(&sim), DirectRouting::Ready);
}

#[test]
fn what_is_no_longer_wanted_is_not_prepared_to_the_end() {
    let mut sim = Sim::of(2);
    sim.set_node("n2", NodeState::Suspect);
    set(&mut sim, LbEngine::Ipvs).expect("set");
    sim.run(1_000);
    assert_eq!(direct(&sim), DirectRouting::Preparing);
    set(&mut sim, LbEngine::Ebpf).expect("set");
    sim.run(1_000);
    assert_eq!(direct(&sim), DirectRouting::Off);
}

#[test]
fn a_new_leader_goes_on_in_the_middle() {
    let mut sim = Sim::of(2);
    sim.run(1_000);
    set(&mut sim, LbEngine::Ipvs).expect("set");
    sim.lead();
    let id = sim.node("n1");
    sim.work_one(&id);
    let since = balancing(&sim).direct_since;
    // The new leader has heard nobody; its state is the old one's, from the log or from a snapshot.
    sim.view = LeaderView::default();
    let mut replica = State::default();
    for (index, entry) in &sim.log {
        drop(replica.apply(*index, entry));
    }
    assert_eq!(replica.hash(), sim.state.hash());
    sim.state = postcard::from_bytes(&postcard::to_stdvec(&replica).expect("serializes")).expect("reads");
    assert_eq!(sim.state.hash(), replica.hash());
    assert_eq!(sim.lead(), 0, "nobody has told it yet");
    assert_eq!((direct(&sim), balancing(&sim).direct_since), (DirectRouting::Preparing, since));
    // A leader that was deposed decides late.
    let late = Command::SetDirectRouting { direct: DirectRouting::Preparing };
    let refused = sim.propose(late).expect_err("no step from here");
    assert!(matches!(refused, Rejection::Outdated { .. }), "{refused}");
    sim.work();
    sim.lead();
    assert_eq!(direct(&sim), DirectRouting::Ready);
}

#[test]
fn off_is_not_ready_in_one_step() {
    let mut sim = Sim::of(1);
    for direct in [DirectRouting::Ready, DirectRouting::Off] {
        assert!(matches!(sim.propose(Command::SetDirectRouting { direct }), Err(Rejection::Outdated { .. })));
    }
}

#[test]
fn least_connections_is_refused_where_nobody_counts_them() {
    let mut sim = Sim::of(2);
    let refused = create(&mut sim, &least("web")).expect_err("auto is ebpf");
    assert_eq!(refused.code(), ErrorCode::PolicyUnsupported);
    assert_eq!(refused.code().number(), 221);
    assert_eq!(
        refused.to_string(),
        "service 'web' cannot balance by leastconn: engine ebpf does not count the connections an endpoint has"
    );
    assert_eq!(refused.context(), ["engine of the swarm: auto (ebpf)"]);
    assert_eq!(
        refused.help(),
        "'shoal swarm update --lb-engine ipvs', or choose another policy: auto, rr, maglev or source"
    );
    for lb in [LbPolicy::RoundRobin, LbPolicy::Maglev, LbPolicy::Source, LbPolicy::Random] {
        let spec = ServiceSpec { lb, ..service(lb.as_str(), 1, &[], &[]) };
        assert!(create(&mut sim, &spec).is_ok(), "{lb}");
    }
}

#[test]
fn drawing_is_refused_where_ipvs_balances() {
    let drawn = || ServiceSpec { lb: LbPolicy::Random, ..service("web", 2, &[], &[tcp(8080, 80)]) };
    let mut sim = on_ipvs(1);
    let refused = create(&mut sim, &drawn()).expect_err("no such scheduler");
    assert_eq!(refused.code(), ErrorCode::PolicyUnsupported);
    assert_eq!(
        refused.to_string(),
        "service 'web' cannot balance by random: the kernel's IPVS has no scheduler that draws at random"
    );
    assert_eq!(refused.context()[0], "engine of the swarm: ipvs");
    assert_eq!(
        refused.help(),
        "'shoal swarm update --lb-engine ebpf', or choose another policy: auto, rr, maglev or source"
    );
    // A node of its own mind is named, too.
    let mut sim = Sim::of(2);
    sim.balances("n2", LbEngine::Ipvs, true, false);
    let refused = create(&mut sim, &drawn()).expect_err("n2 does not draw");
    assert_eq!(refused.context(), ["engine of the swarm: auto (ebpf)", "on engine ipvs: n2"]);
    assert!(refused.help().contains("set to ipvs themselves"), "{}", refused.help());
    sim.balances("n2", LbEngine::Ebpf, true, false);
    sim.create(&drawn());
    let refused = set(&mut sim, LbEngine::Ipvs).expect_err("web draws");
    assert_eq!(
        (refused.code(), refused.context()),
        (ErrorCode::EngineInUse, vec!["by random: web".to_owned()])
    );
}

#[test]
fn a_node_on_another_engine_is_named() {
    let mut sim = on_ipvs(5);
    for n in 1..=4 {
        sim.balances(&format!("n{n}"), LbEngine::Ebpf, true, false);
    }
    sim.set_node("n1", NodeState::Down);
    let refused = create(&mut sim, &least("web")).expect_err("n2 to n4 do not count");
    assert_eq!(refused.context(), ["engine of the swarm: ipvs", "on engine ebpf: n2, n3, n4"]);
    assert!(refused.help().contains("[network]"), "{}", refused.help());
    sim.set_node("n1", NodeState::Ready);
    let refused = create(&mut sim, &least("web")).expect_err("nor does n1");
    assert_eq!(refused.context(), ["engine of the swarm: ipvs", "on engine ebpf: n1, n2, n3 and 1 more"]);
    for n in 1..=4 {
        sim.balances(&format!("n{n}"), LbEngine::Ipvs, true, false);
    }
    assert!(create(&mut sim, &least("web")).is_ok());
    // What it already has does not stand in the way of other changes.
    sim.balances("n3", LbEngine::Ebpf, true, false);
    let id = view::find_service(&sim.state, "web").expect("there").id.clone();
    sim.update(&id, |spec| spec.drain_ms = 1_000);
    sim.update(&id, |spec| spec.lb = LbPolicy::Auto);
    let mut spec = sim.state.services()[&id].spec.clone();
    spec.lb = LbPolicy::LeastConnections;
    let again = sim.propose(Command::UpdateService { id, spec: Box::new(spec), expect_version: None });
    assert_eq!(again.map_err(|r| r.code()), Err(ErrorCode::PolicyUnsupported));
}

#[test]
fn the_engine_stays_while_services_need_it() {
    let mut sim = on_ipvs(1);
    let web = sim.create(&least("web"));
    for engine in [LbEngine::Auto, LbEngine::Ebpf] {
        let refused = set(&mut sim, engine).expect_err("web counts connections");
        assert_eq!((refused.code(), refused.code().number()), (ErrorCode::EngineInUse, 222));
        assert_eq!(refused.context(), ["by leastconn: web"]);
        assert_eq!(
            refused.help(),
            "give each of them another policy first: 'shoal service update --lb auto web'"
        );
    }
    sim.must(Command::RemoveService { id: web });
    assert_eq!(set(&mut sim, LbEngine::Ebpf), Ok(Outcome::Done), "on its way out it needs nothing");
}

#[test]
fn ipvs_needs_a_kernel_that_has_it_or_a_node_that_stays_out() {
    let mut sim = Sim::of(4);
    sim.balances("n2", LbEngine::Ebpf, false, false);
    sim.balances("n3", LbEngine::Ebpf, true, false);
    let refused = set(&mut sim, LbEngine::Ipvs).expect_err("n2 has none");
    assert_eq!((refused.code(), refused.code().number()), (ErrorCode::EngineMissing, 223));
    assert_eq!(refused.to_string(), "the swarm cannot be set to engine ipvs: 1 of its nodes has no IPVS");
    assert_eq!(refused.context(), ["without IPVS: n2"]);
    assert!(refused.help().contains("modprobe ip_vs") && refused.help().contains("lb_engine = \"ebpf\""));
    // By a setting of its own it stays out; what it did before is not forgotten.
    let id = sim.node("n2");
    let data_addr = sim.state.nodes()[&id].data_addr;
    let lb = NodeLb { setting: LbEngine::Ebpf, in_use: None };
    let description = NodeDescription { lb, ..NodeDescription::default() };
    sim.must(Command::NodeHello { id: id.clone(), description, data_addr });
    assert_eq!(sim.state.nodes()[&id].description.lb.in_use, Some(LbInUse::default()));
    assert_eq!(set(&mut sim, LbEngine::Ipvs), Ok(Outcome::Done), "n1 and n4 have not said anything");
}

#[test]
fn a_node_that_is_down_does_not_decide_what_the_others_do() {
    let mut sim = Sim::of(2);
    sim.balances("n2", LbEngine::Ebpf, false, false);
    sim.set_node("n2", NodeState::Down);
    assert_eq!(set(&mut sim, LbEngine::Ipvs), Ok(Outcome::Done));
    assert!(create(&mut sim, &least("web")).is_ok());
}

#[test]
fn reports_that_say_nothing_new_change_nothing() {
    let mut sim = Sim::of(1);
    sim.balances("n1", LbEngine::Ipvs, true, false);
    let (node, before) = (sim.node("n1"), sim.state.hash());
    let lb = LbInUse { engine: LbEngine::Ipvs, ipvs: true, lingering: false };
    assert_eq!(sim.propose(Command::ReportLb { node, lb }), Ok(Outcome::Unchanged));
    assert_eq!(sim.state.hash(), before);
    let node = shoal_types::NodeId::from_entropy(1);
    let refused = sim.propose(Command::ReportLb { node, lb }).expect_err("a stranger");
    assert_eq!(refused.code(), ErrorCode::NotFound);
}

#[test]
fn an_operator_is_told_who_differs() {
    let mut sim = Sim::of(6);
    assert!(view::warnings(&sim.state).is_empty(), "nobody has said anything");
    sim.balances("n1", LbEngine::Ebpf, false, false);
    assert!(view::warnings(&sim.state).is_empty(), "auto is ebpf");
    sim.set_node("n1", NodeState::Down);
    set(&mut sim, LbEngine::Ipvs).expect("set");
    sim.balances("n2", LbEngine::Ipvs, true, false);
    sim.create(&least("web"));
    sim.set_node("n1", NodeState::Ready);
    sim.balances("n3", LbEngine::Ebpf, true, false);
    let id = sim.node("n4");
    let data_addr = sim.state.nodes()[&id].data_addr;
    let in_use = Some(LbInUse { ipvs: true, ..LbInUse::default() });
    let description =
        NodeDescription { lb: NodeLb { setting: LbEngine::Ebpf, in_use }, ..NodeDescription::default() };
    sim.must(Command::NodeHello { id, description, data_addr });
    assert_eq!(
        view::warnings(&sim.state),
        [
            "changing over from engine ebpf to ipvs: n3",
            "engine ebpf by the node's own setting, the swarm's is ipvs: n4",
            "engine ipvs is not possible, the kernel has no IPVS ('modprobe ip_vs'): n1",
            "service 'web' is not balanced by leastconn on: n1, n3, n4",
        ]
    );
}
