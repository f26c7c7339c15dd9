//! Lookups that are derived from the state's objects, so that a question costs what its answer holds.

use std::collections::{BTreeMap, BTreeSet};

use shoal_types::id::{Name, NetworkId, NodeId, ServiceId, TaskId};
use shoal_types::object::Task;

use crate::state::State;

/// Inverted maps. Every change of a task goes through [`Index::add`] and [`Index::drop`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Index {
    pub(crate) service_names: BTreeMap<Name, ServiceId>,
    pub(crate) by_service: BTreeMap<ServiceId, BTreeSet<TaskId>>,
    pub(crate) by_node: BTreeMap<NodeId, BTreeSet<TaskId>>,
    pub(crate) by_network: BTreeMap<NetworkId, BTreeSet<TaskId>>,
}

impl Index {
    /// Built from scratch, after a snapshot was read.
    pub(crate) fn of(state: &State) -> Self {
        let mut index = Self {
            service_names: state.services.values().map(|s| (s.spec.name.clone(), s.id.clone())).collect(),
            ..Self::default()
        };
        for task in state.tasks.values() {
            index.add(task);
        }
        index
    }

    /// Enters a task under all its keys.
    pub(crate) fn add(&mut self, task: &Task) {
        self.by_service.entry(task.service.clone()).or_default().insert(task.id.clone());
        if let Some(node) = &task.node {
            self.by_node.entry(node.clone()).or_default().insert(task.id.clone());
        }
        for at in &task.attachments {
            self.by_network.entry(at.network.clone()).or_default().insert(task.id.clone());
        }
    }

    /// Takes a task out from under all its keys.
    pub(crate) fn drop(&mut self, task: &Task) {
        take(&mut self.by_service, &task.service, &task.id);
        if let Some(node) = &task.node {
            take(&mut self.by_node, node, &task.id);
        }
        for at in &task.attachments {
            take(&mut self.by_network, &at.network, &task.id);
        }
    }
}

fn take<K: Ord>(map: &mut BTreeMap<K, BTreeSet<TaskId>>, key: &K, task: &TaskId) {
    if let Some(set) = map.get_mut(key) {
        set.remove(task);
        if set.is_empty() {
            map.remove(key);
        }
    }
}
