//! How the cluster balances: engines of nodes, policies of services, and what does not go together.

use shoal_types::id::{Name, NodeId};
use shoal_types::lb::{DirectRouting, LbEngine, LbInUse, LbPolicy};
use shoal_types::object::{Cluster, Node, NodeState};
use shoal_types::spec::{PortSpec, ServiceSpec};

use super::At;
use crate::command::Outcome;
use crate::ports;
use crate::rejection::{Kind, Rejection};
use crate::state::State;

fn cluster(state: &mut State) -> Result<&mut Cluster, Rejection> {
    state.cluster.as_mut().ok_or(Rejection::NotInitialized)
}

/// Nodes that count for what a cluster can do: those that are down don't, they may never come back.
fn present(state: &State) -> impl Iterator<Item = &Node> {
    state.nodes.values().filter(|n| n.state != NodeState::Down)
}

fn names<'a>(nodes: impl Iterator<Item = &'a Node>) -> Vec<Name> {
    nodes.map(|n| n.name.clone()).collect()
}

/// Refuses a policy that the cluster's engine, or that of a node, does not have.
pub(super) fn check_policy(state: &State, spec: &ServiceSpec) -> Result<(), Rejection> {
    let engine = state.cluster.as_ref().map_or(LbEngine::Auto, |c| c.balancing.engine);
    let refused_on = |n: &Node| spec.lb.refused_by(n.description.lb.known_engine()?);
    let lacking: Vec<&Node> = present(state).filter(|n| refused_on(n).is_some()).collect();
    let on_a_node = || lacking.first().and_then(|n| refused_on(n));
    match spec.lb.refused_by(engine).or_else(on_a_node) {
        Some(reason) => Err(Rejection::PolicyUnsupported {
            service: spec.name.clone(),
            policy: spec.lb,
            reason: reason.to_owned(),
            engine,
            nodes: names(lacking.into_iter()),
        }),
        None => Ok(()),
    }
}

/// Refuses a policy that only IPVS has beside a port whose tasks get a header or answer past the node that was asked:
/// IPVS does neither, so such a port is balanced by the service's table on either engine.
pub(super) fn check_tables(spec: &ServiceSpec) -> Result<(), Rejection> {
    if spec.lb.refused_by(LbEngine::Ebpf).is_none() {
        return Ok(());
    }
    let option = |port: &PortSpec| match port.proxy {
        Some(_) => Some("proxy-protocol"),
        None => port.dsr.then_some("dsr"),
    };
    let Some((port, option)) = spec.ports.iter().find_map(|port| Some((port, option(port)?))) else {
        return Ok(());
    };
    let problem = format!(
        "is a policy of engine ipvs alone, and port {} with {option} is balanced by the eBPF table on either \
         engine",
        ports::shown(*port)
    );
    let help =
        format!("choose another policy: auto, rr, maglev or source; or publish the port without {option}");
    Err(Rejection::invalid("lb", spec.lb, problem, help))
}

pub(super) fn set_engine(state: &mut State, engine: LbEngine) -> Result<Outcome, Rejection> {
    if cluster(state)?.balancing.engine == engine {
        return Ok(Outcome::Unchanged);
    }
    check_services(state, engine)?;
    if engine == LbEngine::Ipvs {
        check_nodes(state)?;
    }
    cluster(state)?.balancing.engine = engine;
    Ok(Outcome::Done)
}

/// Refuses an engine without the policies that services have.
fn check_services(state: &State, engine: LbEngine) -> Result<(), Rejection> {
    let refused = |policy: LbPolicy| policy.refused_by(engine);
    let staying = state.services.values().filter(|s| !s.removing);
    let users: Vec<_> = staying.filter(|s| refused(s.spec.lb).is_some()).collect();
    let Some((first, reason)) = users.first().and_then(|s| Some((s, refused(s.spec.lb)?))) else {
        return Ok(());
    };
    Err(Rejection::EngineInUse {
        engine,
        policy: first.spec.lb,
        reason: reason.to_owned(),
        services: users.iter().map(|s| s.spec.name.clone()).collect(),
    })
}

/// Refuses IPVS while nodes that would follow say that they have none. Who has not said anything yet is no obstacle.
fn check_nodes(state: &State) -> Result<(), Rejection> {
    let lacks = |n: &&Node| {
        n.description.lb.setting != LbEngine::Ebpf && n.description.lb.in_use.is_some_and(|used| !used.ipvs)
    };
    let nodes = names(present(state).filter(lacks));
    if nodes.is_empty() { Ok(()) } else { Err(Rejection::EngineMissing { nodes }) }
}

pub(super) fn report(state: &mut State, id: &NodeId, lb: LbInUse) -> Result<Outcome, Rejection> {
    let node = state.nodes.get_mut(id).ok_or_else(|| Rejection::not_found(Kind::Node, id))?;
    if node.description.lb.in_use == Some(lb) {
        return Ok(Outcome::Unchanged);
    }
    node.description.lb.in_use = Some(lb);
    Ok(Outcome::Done)
}

/// The leader decides on a state that may have moved on: whatever is not the next step of the present state is refused.
pub(super) fn set_direct(state: &mut State, at: At, next: DirectRouting) -> Result<Outcome, Rejection> {
    let balancing = &mut cluster(state)?.balancing;
    match (balancing.direct, next) {
        (DirectRouting::Off, DirectRouting::Preparing)
        | (DirectRouting::Preparing, DirectRouting::Ready)
        | (DirectRouting::Preparing | DirectRouting::Ready, DirectRouting::Off) => {
            balancing.direct = next;
            balancing.direct_since = at.index;
            Ok(Outcome::Done)
        }
        (now, _) => Err(Rejection::Outdated {
            what: "set-direct-routing".to_owned(),
            why: format!("direct routing is {now}, from where {next} is no step"),
        }),
    }
}
