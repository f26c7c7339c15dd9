//! Nodes: joining, leaving, liveness.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use shoal_types::Weight;
use shoal_types::id::{Name, NodeId, TaskId};
use shoal_types::object::{
    Attachment, Availability, Health, Node, NodeDescription, NodeRole, NodeState, Slot, TaskState,
    TaskStatus, Timestamp,
};

use super::{At, token};
use crate::addresses;
use crate::command::{Join, Outcome};
use crate::rejection::{Kind, Rejection};
use crate::state::State;
use crate::subnets;

pub(super) fn join(state: &mut State, at: At, join: &Join) -> Result<Outcome, Rejection> {
    let role = token::admit(state, at, join)?;
    if state.nodes.contains_key(&join.node) || state.denied.contains_key(&join.node) {
        return Err(Rejection::IdTaken { kind: Kind::Node, id: join.node.to_string() });
    }
    check_data_addr(state, &join.node, &join.name_hint, join.data_addr)?;
    let name = unique_name(state, &join.name_hint)?;
    let router = allocate_router(state, &name)?;

    token::consume(state, &join.token);
    let node = Node {
        id: join.node.clone(),
        name: name.clone(),
        role,
        availability: Availability::Active,
        weight: Weight::default(),
        state: NodeState::Unknown,
        state_since: at.now,
        joined_at: at.now,
        control_addr: None,
        data_addr: join.data_addr,
        router,
        description: NodeDescription::default(),
        labels: BTreeMap::new(),
    };
    state.nodes.insert(node.id.clone(), node);
    Ok(Outcome::Node { id: join.node.clone(), name })
}

/// A host name as a DNS label that no other node has.
pub(super) fn unique_name(state: &State, hint: &str) -> Result<Name, Rejection> {
    let invalid = || Rejection::invalid("hostname", hint, "makes no node name", "set one with '--name'");
    let first = hint.split('.').next().unwrap_or_default();
    let base =
        Name::from_lossy(first).or_else(|| Name::from_lossy(hint)).or_else(|| Name::from_lossy("node"));
    let base = base.ok_or_else(invalid)?;
    let taken = |name: &Name| state.nodes.values().any(|n| n.name == *name);
    if !taken(&base) {
        return Ok(base);
    }
    (2_u32..=u32::MAX)
        .filter_map(|n| {
            let suffix = format!("-{n}");
            // A name is ASCII: cutting at a byte is cutting at a character.
            let keep = base.as_str().len().min(63 - suffix.len());
            let stem = base.as_str().get(..keep).unwrap_or_default().trim_end_matches('-');
            format!("{stem}{suffix}").parse::<Name>().ok()
        })
        .find(|name| !taken(name))
        .ok_or_else(invalid)
}

/// The node's own endpoint in the ingress network.
pub(super) fn allocate_router(state: &mut State, name: &Name) -> Result<Attachment, Rejection> {
    let Some(ingress) = state.ingress.clone() else { return Err(Rejection::NotInitialized) };
    let given = addresses::allocate(state, &[ingress], &format!("the router of node '{name}'"))?;
    given.into_iter().next().ok_or(Rejection::NotInitialized)
}

fn check_data_addr(state: &State, id: &NodeId, name: &str, addr: IpAddr) -> Result<(), Rejection> {
    subnets::check_host(addr, name, state.networks.values())?;
    // A host that was set up anew comes with the address of its own dead entry; one that is alive keeps its own.
    let holder =
        state.nodes.values().find(|n| n.id != *id && n.data_addr == addr && n.state == NodeState::Ready);
    if let Some(holder) = holder {
        return Err(Rejection::AddressTaken { addr, holder: holder.name.clone() });
    }
    // A tunnel has one family on both ends.
    let other =
        |n: &&Node| n.id != *id && n.state == NodeState::Ready && n.data_addr.is_ipv4() != addr.is_ipv4();
    let Some(other) = state.nodes.values().find(other) else { return Ok(()) };
    let family = if addr.is_ipv4() { "IPv6" } else { "IPv4" };
    Err(Rejection::invalid(
        "data_addr",
        addr,
        format!("cannot have a tunnel to {} of node '{}'", other.data_addr, other.name),
        format!("give this host's {family} address: '--data-path-addr ADDR'"),
    ))
}

fn find<'a>(state: &'a State, id: &NodeId) -> Result<&'a Node, Rejection> {
    state.nodes.get(id).ok_or_else(|| Rejection::not_found(Kind::Node, id))
}

/// Replaces a node by its changed self.
fn put(state: &mut State, node: Node) -> Outcome {
    let outcome = Outcome::Node { id: node.id.clone(), name: node.name.clone() };
    state.nodes.insert(node.id.clone(), node);
    outcome
}

pub(super) fn update(
    state: &mut State,
    id: &NodeId,
    availability: Option<Availability>,
    weight: Option<Weight>,
    labels_add: &BTreeMap<String, String>,
    labels_remove: &[String],
) -> Result<Outcome, Rejection> {
    let mut node = find(state, id)?.clone();
    if let Some(empty) = labels_add.keys().find(|k| k.trim().is_empty() || k.contains(char::is_whitespace)) {
        return Err(Rejection::invalid(
            "label",
            empty,
            "is not a key",
            "write KEY=value without spaces in the key",
        ));
    }
    for key in labels_remove {
        if node.labels.remove(key).is_none() && !labels_add.contains_key(key) {
            let help = format!("'shoal node inspect {}' shows its labels", node.name);
            return Err(Rejection::invalid("label-rm", key, "is no label of the node", help));
        }
    }
    node.labels.extend(labels_add.clone());
    node.availability = availability.unwrap_or(node.availability);
    node.weight = weight.unwrap_or(node.weight);
    Ok(put(state, node))
}

pub(super) fn remove(state: &mut State, at: At, id: &NodeId, force: bool) -> Result<Outcome, Rejection> {
    let node = find(state, id)?;
    refuse_last_manager(state, node)?;
    if node.role == NodeRole::Manager && !force {
        return Err(Rejection::IsManager { node: node.name.clone() });
    }
    let tasks = state.tasks_of_node(id).filter(|t| !t.status.state.is_terminal()).count();
    let gone = matches!(node.state, NodeState::Down | NodeState::Unknown);
    let empty = node.availability == Availability::Drain && tasks == 0;
    if !(force || gone || empty) {
        let state = format!("{:?}", node.state).to_lowercase();
        return Err(Rejection::NodeAlive { node: node.name.clone(), state, tasks });
    }
    let why = format!("node '{}' was removed", node.name);
    Ok(take_out(state, at, id, &why))
}

pub(super) fn left(state: &mut State, at: At, id: &NodeId) -> Result<Outcome, Rejection> {
    let node = find(state, id)?;
    refuse_last_manager(state, node)?;
    let why = format!("node '{}' left the cluster", node.name);
    Ok(take_out(state, at, id, &why))
}

fn refuse_last_manager(state: &State, node: &Node) -> Result<(), Rejection> {
    let managers = state.nodes.values().filter(|n| n.role == NodeRole::Manager).count();
    if node.role == NodeRole::Manager && managers == 1 {
        return Err(Rejection::LastManager { node: node.name.clone() });
    }
    Ok(())
}

/// Removes a node: its tasks are orphaned, its addresses free, its certificate denied until it would have expired.
fn take_out(state: &mut State, at: At, id: &NodeId, why: &str) -> Outcome {
    let tasks: Vec<TaskId> =
        state.tasks_of_node(id).filter(|t| !t.status.state.is_terminal()).map(|t| t.id.clone()).collect();
    for task in tasks {
        let freed = state.edit_task(&task, |t| {
            t.status = TaskStatus {
                state: TaskState::Orphaned,
                health: Health::Unchecked,
                since: at.now,
                message: why.to_owned(),
                exit_code: None,
                pid: None,
                connections: None,
            };
            std::mem::take(&mut t.attachments)
        });
        addresses::release(state, &freed.unwrap_or_default());
    }
    if let Some(stranded) = state.stranded.remove(id) {
        addresses::release(state, &stranded.attachments);
    }
    state.restarts.retain(|(_, slot), _| *slot != Slot::Node(id.clone()));
    let lifetime = state.cluster.as_ref().map_or(0, |c| c.cert_lifetime_ms);
    state.denied.retain(|_, until| *until > at.now);
    state.denied.insert(id.clone(), Timestamp(at.now.0.saturating_add(lifetime)));
    match state.nodes.remove(id) {
        Some(node) => {
            addresses::release(state, std::slice::from_ref(&node.router));
            Outcome::Node { id: node.id, name: node.name }
        }
        None => Outcome::Unchanged,
    }
}

pub(super) fn set_state(
    state: &mut State,
    at: At,
    id: &NodeId,
    verdict: NodeState,
) -> Result<Outcome, Rejection> {
    let node = find(state, id)?;
    if node.state == verdict {
        return Ok(Outcome::Unchanged);
    }
    let node = Node { state: verdict, state_since: at.now, ..node.clone() };
    Ok(put(state, node))
}

pub(super) fn hello(
    state: &mut State,
    at: At,
    id: &NodeId,
    description: &NodeDescription,
    data_addr: IpAddr,
) -> Result<Outcome, Rejection> {
    let node = find(state, id)?;
    check_data_addr(state, id, node.name.as_str(), data_addr)?;
    let mut node = node.clone();
    if node.state != NodeState::Ready {
        node.state = NodeState::Ready;
        node.state_since = at.now;
    }
    let known = node.description.lb.in_use;
    node.description = description.clone();
    // What it did when it was last heard holds until it says otherwise: its kernel goes on with it.
    node.description.lb.in_use = description.lb.in_use.or(known);
    node.data_addr = data_addr;
    Ok(put(state, node))
}

pub(super) fn set_control_addr(
    state: &mut State,
    id: &NodeId,
    addr: SocketAddr,
) -> Result<Outcome, Rejection> {
    let node = Node { control_addr: Some(addr), ..find(state, id)?.clone() };
    Ok(put(state, node))
}

pub(super) fn release_stranded(state: &mut State, id: &NodeId) -> Result<Outcome, Rejection> {
    find(state, id)?;
    match state.stranded.remove(id) {
        Some(stranded) => {
            addresses::release(state, &stranded.attachments);
            Ok(Outcome::Done)
        }
        None => Ok(Outcome::Unchanged),
    }
}
