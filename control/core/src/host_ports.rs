//! Ports in host mode as a resource of nodes: one service at a time has a port on a node.
//!
//! A service counts as being on a node from the moment one of its tasks is assigned to it until the last has ended,
//! whatever is wanted of them: flows that drain still come in by the port.

use std::collections::{BTreeMap, BTreeSet};

use shoal_types::id::{NodeId, ServiceId};
use shoal_types::object::{Service, Task};
use shoal_types::port::{PortPlace, PublishedPort};

use crate::ports::Places;
use crate::state::State;

/// The places that a service takes in host mode.
pub(crate) fn of(ports: &[PublishedPort]) -> Places {
    ports.iter().filter(|port| port.is_host()).map(PublishedPort::place).collect()
}

/// Whether a node still has the task.
fn is_there(task: &Task) -> bool {
    task.node.is_some() && !task.status.state.is_terminal()
}

/// A place that two services can't both have on one node.
fn clash(wanted: &Places, held: &Places) -> Option<PortPlace> {
    // Each lookup is short, so the shorter list asks the longer.
    if wanted.len() <= held.len() {
        wanted.iter().find(|place| held.overlapping(*place).is_some())
    } else {
        held.iter().find_map(|place| wanted.overlapping(place))
    }
}

/// Who is in the way of a service's ports in host mode on a node: the place it asks for, and who has it.
pub(crate) fn in_the_way<'a>(
    state: &'a State,
    node: &NodeId,
    service: &ServiceId,
    wanted: &Places,
) -> Option<(PortPlace, &'a Service)> {
    if wanted.is_empty() {
        return None;
    }
    let others: BTreeSet<&ServiceId> = state
        .tasks_of_node(node)
        .filter(|t| is_there(t) && t.service != *service)
        .map(|t| &t.service)
        .collect();
    others.into_iter().find_map(|id| {
        let other = state.services.get(id)?;
        Some((clash(wanted, &of(&other.ports))?, other))
    })
}

/// Who is in the way of new ports of a service where its tasks are now.
pub(crate) fn in_the_way_of_tasks<'a>(
    state: &'a State,
    service: &ServiceId,
    ports: &[PublishedPort],
) -> Option<(PortPlace, &'a Service, &'a NodeId)> {
    let wanted = of(ports);
    let nodes: BTreeSet<&NodeId> =
        state.tasks_of_service(service).filter(|t| is_there(t)).filter_map(|t| t.node.as_ref()).collect();
    nodes.into_iter().find_map(|node| {
        let (place, other) = in_the_way(state, node, service, &wanted)?;
        Some((place, other, node))
    })
}

/// Which services with ports in host mode are on which nodes, with what the scheduler has placed already.
#[derive(Debug, Default)]
pub(crate) struct HostPorts<'a> {
    places: BTreeMap<&'a ServiceId, Places>,
    nodes: BTreeMap<&'a NodeId, BTreeSet<&'a ServiceId>>,
}

impl<'a> HostPorts<'a> {
    /// Those of a state whose tasks are yet to be added.
    pub(crate) fn of_services(state: &'a State) -> Self {
        let places = state.services.values().map(|s| (&s.id, of(&s.ports))).filter(|(_, p)| !p.is_empty());
        Self { places: places.collect(), nodes: BTreeMap::new() }
    }

    pub(crate) fn add(&mut self, service: &'a ServiceId, node: &'a NodeId) {
        if self.places.contains_key(service) {
            self.nodes.entry(node).or_default().insert(service);
        }
    }

    /// The first of a service's ports in host mode.
    pub(crate) fn first_of(&self, service: &ServiceId) -> Option<PortPlace> {
        self.places.get(service)?.iter().next()
    }

    /// A port of the service that another has on the node.
    pub(crate) fn taken(&self, service: &ServiceId, node: &NodeId) -> Option<PortPlace> {
        let wanted = self.places.get(service)?;
        let others = self.nodes.get(node)?.iter().filter(|other| **other != service);
        others.filter_map(|other| self.places.get(*other)).find_map(|held| clash(wanted, held))
    }
}
