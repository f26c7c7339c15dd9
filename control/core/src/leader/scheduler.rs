//! Gives waiting tasks a node: filters, then the node with the fewest tasks of the service, then the fewest at all.

use std::collections::BTreeMap;

use shoal_types::id::{Name, NetworkId, NodeId, ServiceId};
use shoal_types::object::{Availability, DesiredState, Node, NodeRole, NodeState, Slot, Task, TaskState};
use shoal_types::port::PortPlace;
use shoal_types::spec::{Constraint, ConstraintKey, TaskSpec, UpdateOrder};

use super::Ctx;
use crate::addresses;
use crate::command::Command;
use crate::host_ports::HostPorts;
use crate::some_of::some_of;
use crate::state::State;

/// What the nodes carry, with what this call has placed already.
#[derive(Debug, Default)]
pub(crate) struct Loads<'a> {
    nodes: BTreeMap<&'a NodeId, Load>,
    /// Which slots of a service are where.
    slots: BTreeMap<(&'a ServiceId, &'a NodeId), Vec<&'a Slot>>,
    /// Who has which ports in host mode.
    host_ports: HostPorts<'a>,
    /// Addresses taken in this call.
    taken: BTreeMap<NetworkId, u64>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Load {
    cpu_milli: u64,
    memory: u64,
    tasks: usize,
}

impl<'a> Loads<'a> {
    pub(crate) fn of(state: &'a State) -> Self {
        let mut loads = Self { host_ports: HostPorts::of_services(state), ..Self::default() };
        for task in state.tasks.values() {
            if let (Some(node), false) = (&task.node, task.status.state.is_terminal()) {
                loads.add(task, node);
            }
        }
        loads
    }

    fn add(&mut self, task: &'a Task, node: &'a NodeId) {
        self.host_ports.add(&task.service, node);
        let load = self.nodes.entry(node).or_default();
        load.cpu_milli = load.cpu_milli.saturating_add(task.spec.resources.reserve_cpu_milli);
        load.memory = load.memory.saturating_add(task.spec.resources.reserve_memory);
        // What is on its way out still needs its memory, but is no reason to go elsewhere.
        if task.desired == DesiredState::Running {
            load.tasks += 1;
            self.slots.entry((&task.service, node)).or_default().push(&task.slot);
        }
    }

    /// A port in host mode that the task would not get on the node: another service has it, or another slot of its
    /// own. Its predecessor makes place.
    fn host_port_in_use(&self, task: &Task, node: &NodeId) -> Option<PortPlace> {
        let own = self.host_ports.first_of(&task.service)?;
        if self.of_service(task, node) > 0 {
            return Some(own);
        }
        self.host_ports.taken(&task.service, node)
    }

    /// Tasks of other slots of the service on the node: the slot's own predecessor makes place.
    fn of_service(&self, task: &Task, node: &NodeId) -> usize {
        let slots = self.slots.get(&(&task.service, node));
        slots.map_or(0, |slots| slots.iter().filter(|s| **s != &task.slot).count())
    }
}

/// Places what waits, and says of the rest why it waits.
pub(super) fn plan(ctx: &mut Ctx<'_>) {
    let state = ctx.state;
    let mut waiting: Vec<&Task> = state
        .tasks
        .values()
        .filter(|t| t.status.state == TaskState::Pending && t.desired == DesiredState::Running)
        .collect();
    waiting.sort_by_key(|t| state.order(&t.id));
    for task in waiting {
        if ctx.is_full() {
            return;
        }
        if ctx.leaving.contains(&task.id) {
            continue;
        }
        if task.not_before > ctx.now {
            ctx.wake_at(task.not_before);
            continue;
        }
        match place(ctx, task) {
            Ok(node) => {
                ctx.loads.add(task, node);
                for network in networks_of(state, task) {
                    *ctx.loads.taken.entry(network).or_default() += 1;
                }
                ctx.push(Command::AssignTask { id: task.id.clone(), node: node.clone() });
            }
            Err(reason) if reason != task.status.message => {
                ctx.push(Command::SetPendingReason { id: task.id.clone(), message: reason });
            }
            Err(_) => {}
        }
    }
}

fn networks_of(state: &State, task: &Task) -> Vec<NetworkId> {
    state.services.get(&task.service).map(|s| addresses::networks_of(state, &s.spec)).unwrap_or_default()
}

/// In a service whose tasks stop first, a task that is led out makes place before its successor starts.
fn waits_for_predecessor(ctx: &Ctx<'_>, task: &Task) -> Option<String> {
    let service = ctx.state.services.get(&task.service)?;
    if service.spec.update.order != UpdateOrder::StopFirst {
        return None;
    }
    let alive = ctx.state.tasks_of_service(&task.service).find(|other| {
        other.slot == task.slot
            && other.id != task.id
            && other.desired > DesiredState::Running
            && !other.status.state.is_terminal()
            && ctx.node_state(other).is_some_and(|state| state != NodeState::Down)
    })?;
    let word = if alive.desired == DesiredState::Draining { "drain" } else { "stop" };
    Some(format!("waits for its predecessor to {word}"))
}

/// The best node for a task, or why there is none.
pub(super) fn place<'a>(ctx: &Ctx<'a>, task: &Task) -> Result<&'a NodeId, String> {
    if let Some(reason) = waits_for_predecessor(ctx, task).or_else(|| lacks_address(ctx, task)) {
        return Err(reason);
    }
    let mut refusals = Refusals::default();
    let mut best: Option<((usize, usize, &str), &Node)> = None;
    let state = ctx.state;
    for node in state.nodes.values().filter(|n| match &task.slot {
        Slot::Node(id) => n.id == *id,
        Slot::Number(_) => true,
    }) {
        if let Some(refusal) = refuse(&ctx.loads, task, node) {
            refusals.note(refusal, node);
            continue;
        }
        let total = ctx.loads.nodes.get(&node.id).map_or(0, |l| l.tasks);
        let score = (ctx.loads.of_service(task, &node.id), total, node.name.as_str());
        if best.is_none_or(|(least, _)| score < least) {
            best = Some((score, node));
        }
    }
    best.map(|(_, node)| &node.id).ok_or_else(|| refusals.to_text(task))
}

fn lacks_address(ctx: &Ctx<'_>, task: &Task) -> Option<String> {
    networks_of(ctx.state, task).into_iter().find_map(|id| {
        let taken = ctx.loads.taken.get(&id).copied().unwrap_or(0);
        if ctx.state.ipam.free(&id) > taken {
            return None;
        }
        let network = ctx.state.networks.get(&id)?;
        let total = ctx.state.ipam.capacity(&id).map_or(0, |(total, _)| total);
        Some(format!(
            "no free address in network '{}' ({}, {total} in all): remove tasks from it, or use a larger one",
            network.spec.name, network.subnets.v4
        ))
    })
}

/// Why a node is not fit; in the order they are looked at and shown.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Refusal {
    NoSession,
    Suspect,
    Down,
    Drained,
    Paused,
    Constraint(String),
    Memory { free: u64 },
    Cpu { free: u64 },
    MaxPerNode,
    HostPort(PortPlace),
}

fn refuse(loads: &Loads<'_>, task: &Task, node: &Node) -> Option<Refusal> {
    let by_state = match (node.state, node.availability) {
        (NodeState::Unknown, _) => Some(Refusal::NoSession),
        (NodeState::Suspect, _) => Some(Refusal::Suspect),
        (NodeState::Down, _) => Some(Refusal::Down),
        (NodeState::Ready, Availability::Drain) => Some(Refusal::Drained),
        (NodeState::Ready, Availability::Pause) => Some(Refusal::Paused),
        (NodeState::Ready, Availability::Active) => None,
    };
    if by_state.is_some() {
        return by_state;
    }
    if let Some(constraint) = unmet_constraint(&task.spec, node) {
        return Some(Refusal::Constraint(constraint.to_string()));
    }
    let load = loads.nodes.get(&node.id).copied().unwrap_or_default();
    let memory = node.description.memory.saturating_sub(load.memory);
    if memory < task.spec.resources.reserve_memory {
        return Some(Refusal::Memory { free: memory });
    }
    let cpu = node.description.cpu_milli.saturating_sub(load.cpu_milli);
    if cpu < task.spec.resources.reserve_cpu_milli {
        return Some(Refusal::Cpu { free: cpu });
    }
    let limit = usize::try_from(task.spec.max_per_node).unwrap_or(usize::MAX);
    if limit > 0 && loads.of_service(task, &node.id) >= limit {
        return Some(Refusal::MaxPerNode);
    }
    loads.host_port_in_use(task, &node.id).map(Refusal::HostPort)
}

/// The first constraint that does not hold of the node.
pub(crate) fn unmet_constraint<'a>(spec: &'a TaskSpec, node: &Node) -> Option<&'a Constraint> {
    spec.constraints.iter().find(|c| {
        let actual = match &c.key {
            ConstraintKey::NodeId => node.id.as_str(),
            ConstraintKey::Hostname => node.name.as_str(),
            ConstraintKey::Role => match node.role {
                NodeRole::Manager => "manager",
                NodeRole::Worker => "worker",
            },
            // A label that isn't there is an empty one: `!=` holds.
            ConstraintKey::Label(key) => node.labels.get(key).map_or("", String::as_str),
        };
        actual.eq_ignore_ascii_case(&c.value) != c.equal
    })
}

/// How many nodes refused for which reason.
#[derive(Debug, Default)]
struct Refusals {
    nodes: usize,
    /// By what is shown, in order, with the most that was free among the nodes counted.
    counts: BTreeMap<(u8, String), Count>,
}

#[derive(Debug, Default)]
struct Count {
    nodes: usize,
    /// Their names, where they are told.
    names: Vec<Name>,
    most_free: Option<(u64, String)>,
}

impl Refusals {
    fn note(&mut self, refusal: Refusal, node: &Node) {
        let (order, text, free) = match refusal {
            Refusal::Memory { free } => (0, "memory".to_owned(), Some(free)),
            Refusal::Cpu { free } => (1, "cpu".to_owned(), Some(free)),
            Refusal::Constraint(text) => (2, text, None),
            Refusal::MaxPerNode => (3, "max-per-node".to_owned(), None),
            Refusal::HostPort(place) => (4, format!("port {place} in use on"), None),
            Refusal::Drained => (5, "drained".to_owned(), None),
            Refusal::Paused => (6, "paused".to_owned(), None),
            Refusal::Suspect => (7, "suspect".to_owned(), None),
            Refusal::Down => (8, "down".to_owned(), None),
            Refusal::NoSession => (9, "not connected yet".to_owned(), None),
        };
        let is_named = order == 4;
        self.nodes += 1;
        let count = self.counts.entry((order, text)).or_default();
        count.nodes += 1;
        if is_named {
            count.names.push(node.name.clone());
        }
        let Some(free) = free else { return };
        let better =
            |(most, name): &(u64, String)| free > *most || (free == *most && node.name.as_str() < name);
        if count.most_free.as_ref().is_none_or(better) {
            count.most_free = Some((free, node.name.to_string()));
        }
    }

    fn to_text(&self, task: &Task) -> String {
        let resources = task.spec.resources;
        let parts: Vec<String> = self
            .counts
            .iter()
            .map(|((order, what), Count { nodes, names, most_free })| {
                let (free, node) = most_free.clone().unwrap_or_default();
                let (lacks, matches) = if *nodes == 1 { ("lacks", "does") } else { ("lack", "do") };
                match order {
                    0 => format!(
                        "{nodes} {lacks} memory {} (most free: {node} {})",
                        bytes(resources.reserve_memory),
                        bytes(free)
                    ),
                    1 => format!(
                        "{nodes} {lacks} CPU {} (most free: {node} {})",
                        cores(resources.reserve_cpu_milli),
                        cores(free)
                    ),
                    2 => format!("{nodes} {matches} not match {what}"),
                    3 => format!("{nodes} at the limit of {} per node", task.spec.max_per_node),
                    4 => format!("{what} {}", some_of(names)),
                    _ => format!("{nodes} {what}"),
                }
            })
            .collect();
        if parts.is_empty() {
            return "0 of 0 nodes fit".to_owned();
        }
        format!("0 of {} nodes fit: {}", self.nodes, parts.join(", "))
    }
}

/// `1.4 GiB`, with a digit behind the point only where it says something.
fn bytes(value: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut tenths = value.saturating_mul(10);
    let mut unit = 0;
    while tenths >= 10_240 && unit + 1 < UNITS.len() {
        tenths /= 1_024;
        unit += 1;
    }
    format!("{} {}", point(tenths, 10), UNITS.get(unit).copied().unwrap_or("B"))
}

fn cores(milli: u64) -> String {
    point(milli / 10, 100)
}

/// A number of `scale`-ths without trailing zeros.
fn point(value: u64, scale: u64) -> String {
    let (whole, rest) = (value / scale, value % scale);
    if rest == 0 {
        return whole.to_string();
    }
    let digits = if scale == 100 { format!("{rest:02}") } else { rest.to_string() };
    format!("{whole}.{}", digits.trim_end_matches('0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_as_people_write_them() {
        assert_eq!(bytes(2 << 30), "2 GiB");
        assert_eq!(bytes(1_503_238_554), "1.4 GiB");
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(cores(1_500), "1.5");
        assert_eq!(cores(2_000), "2");
        assert_eq!(cores(50), "0.05");
    }
}
