//! The replicated state: what every manager holds, byte for byte the same after the same log.

mod founded;

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use shoal_types::id::{Name, NetworkId, NodeId, ServiceId, TaskId, TokenId};
use shoal_types::object::{Attachment, Cluster, JoinToken, Network, Node, Service, Slot, Task, Timestamp};

use crate::apply;
use crate::command::{Command, Entry, Outcome, Pools};
use crate::hash;
use crate::index::Index;
use crate::ipam::Ipam;
use crate::ports::PortTable;
use crate::rejection::Rejection;
use crate::requests::Requests;

/// Everything the cluster knows. Changes only by [`State::apply`].
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(remote = "Self")]
pub struct State {
    #[serde(with = "founded")]
    pub(crate) cluster: Option<Cluster>,
    pub(crate) pools: Option<Pools>,
    pub(crate) ingress: Option<NetworkId>,
    pub(crate) nodes: BTreeMap<NodeId, Node>,
    pub(crate) networks: BTreeMap<NetworkId, Network>,
    pub(crate) services: BTreeMap<ServiceId, Service>,
    pub(crate) tasks: BTreeMap<TaskId, Task>,
    pub(crate) tokens: BTreeMap<TokenId, JoinToken>,
    pub(crate) ipam: Ipam,
    pub(crate) ports: PortTable,
    pub(crate) counters: Counters,
    /// Removed nodes whose certificates are still valid, and until when.
    pub(crate) denied: BTreeMap<NodeId, Timestamp>,
    pub(crate) requests: Requests,
    /// Latest time in the log.
    pub(crate) latest: Timestamp,
    /// Attempts of the restart policy, by slot.
    pub(crate) restarts: BTreeMap<(ServiceId, Slot), RestartHistory>,
    /// What is remembered of a task beside its status.
    pub(crate) tracks: BTreeMap<TaskId, Track>,
    /// Log index of each service's last change: what nodes must have programmed to follow it.
    pub(crate) service_changes: BTreeMap<ServiceId, u64>,
    /// Addresses of forgotten tasks on nodes that were down then: not free before the node has let go of them.
    pub(crate) stranded: BTreeMap<NodeId, Stranded>,
    /// Derived from the rest.
    #[serde(skip)]
    pub(crate) index: Index,
}

/// Numbers given out so far; none is used twice.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Counters {
    /// Last endpoint number.
    pub(crate) endpoint: u32,
    /// Last service index.
    pub(crate) service: u32,
    /// Tasks made so far.
    pub(crate) tasks: u64,
}

/// When replacements of a slot were made under the restart policy.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RestartHistory {
    /// Version of the tasks; a new spec starts afresh.
    pub(crate) task_version: u64,
    /// Attempts, oldest first.
    pub(crate) at: Vec<Timestamp>,
}

/// What is remembered of a task beside its status.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Track {
    /// Counts the tasks in the order they were made: clocks of two leaders may disagree, this does not.
    pub(crate) order: u64,
    /// Log index and time at which it was reported running.
    pub(crate) running: Option<(u64, Timestamp)>,
    /// When every ready node had taken it out of the load balancers.
    pub(crate) barrier_at: Option<Timestamp>,
}

/// See [`State::stranded`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stranded {
    /// Index of the last forgotten task: an assignment of at least this index is without them all.
    pub(crate) index: u64,
    /// What they held.
    pub(crate) attachments: Vec<Attachment>,
}

impl State {
    /// Applies one entry of the log at that index. A rejection leaves the state as it was.
    pub fn apply(&mut self, index: u64, entry: &Entry) -> Result<Outcome, Rejection> {
        if let Some(request) = &entry.request_id
            && let Some(earlier) = self.requests.earlier(request, &entry.command)
        {
            return earlier;
        }
        let outcome = apply::command(self, apply::At { index, now: entry.now }, &entry.command)?;
        self.latest = self.latest.max(entry.now);
        if let Some(request) = &entry.request_id {
            self.requests.record(request, &entry.command, &outcome);
        }
        Ok(outcome)
    }

    /// What [`State::apply`] would answer, for `--dry-run`.
    pub fn check(&self, now: Timestamp, command: &Command) -> Result<Outcome, Rejection> {
        self.preview(now, command).map(|(_, outcome)| outcome)
    }

    /// What the state would be, for `--dry-run` that shows the result.
    pub fn preview(&self, now: Timestamp, command: &Command) -> Result<(State, Outcome), Rejection> {
        let mut copy = self.clone();
        let outcome = apply::command(&mut copy, apply::At { index: 0, now }, command)?;
        Ok((copy, outcome))
    }

    /// 128 bits that are the same exactly when the replicated content is (FNV-1a over a canonical walk).
    pub fn hash(&self) -> u128 {
        hash::digest(self)
    }

    /// The latest time in the log. A leader whose wall clock is behind it (another leader's was ahead, or its own was
    /// set back) goes on from here by its monotonic clock; else a pause of five seconds could last an hour.
    pub fn latest(&self) -> Timestamp {
        self.latest
    }

    /// The cluster, once founded.
    pub fn cluster(&self) -> Option<&Cluster> {
        self.cluster.as_ref()
    }

    /// The network that published ports travel on, once founded.
    pub fn ingress(&self) -> Option<&Network> {
        self.networks.get(self.ingress.as_ref()?)
    }

    /// Nodes by id.
    pub fn nodes(&self) -> &BTreeMap<NodeId, Node> {
        &self.nodes
    }

    /// Networks by id.
    pub fn networks(&self) -> &BTreeMap<NetworkId, Network> {
        &self.networks
    }

    /// Services by id.
    pub fn services(&self) -> &BTreeMap<ServiceId, Service> {
        &self.services
    }

    /// Tasks by id.
    pub fn tasks(&self) -> &BTreeMap<TaskId, Task> {
        &self.tasks
    }

    /// Tokens by id.
    pub fn tokens(&self) -> &BTreeMap<TokenId, JoinToken> {
        &self.tokens
    }

    /// Tasks of a service, by id.
    pub fn tasks_of_service(&self, service: &ServiceId) -> impl Iterator<Item = &Task> {
        self.index.by_service.get(service).into_iter().flatten().filter_map(|id| self.tasks.get(id))
    }

    /// Tasks of a node, by id.
    pub fn tasks_of_node(&self, node: &NodeId) -> impl Iterator<Item = &Task> {
        self.index.by_node.get(node).into_iter().flatten().filter_map(|id| self.tasks.get(id))
    }

    /// Tasks with an endpoint in a network, by id.
    pub fn tasks_in_network(&self, network: &NetworkId) -> impl Iterator<Item = &Task> {
        self.index.by_network.get(network).into_iter().flatten().filter_map(|id| self.tasks.get(id))
    }

    /// Until when a removed node's certificate is refused; `None` when it isn't.
    pub fn denied_until(&self, node: &NodeId) -> Option<Timestamp> {
        self.denied.get(node).copied()
    }

    /// Changes a task, keeping the lookups right. What the change returns is handed on.
    pub(crate) fn edit_task<R>(&mut self, id: &TaskId, change: impl FnOnce(&mut Task) -> R) -> Option<R> {
        let task = self.tasks.get_mut(id)?;
        self.index.drop(task);
        let result = change(task);
        self.index.add(task);
        Some(result)
    }

    /// Adds a task.
    pub(crate) fn put_task(&mut self, task: Task) {
        self.index.add(&task);
        self.counters.tasks += 1;
        self.tracks.insert(task.id.clone(), Track { order: self.counters.tasks, ..Track::default() });
        self.tasks.insert(task.id.clone(), task);
    }

    /// Forgets a task and what was remembered of it.
    pub(crate) fn drop_task(&mut self, id: &TaskId) {
        if let Some(task) = self.tasks.remove(id) {
            self.index.drop(&task);
        }
        self.tracks.remove(id);
    }

    /// Whether a task was made before another one, by count.
    pub(crate) fn order(&self, id: &TaskId) -> u64 {
        self.tracks.get(id).map_or(0, |t| t.order)
    }

    /// What is remembered of a task beside its status.
    pub(crate) fn track(&self, id: &TaskId) -> Track {
        self.tracks.get(id).cloned().unwrap_or_default()
    }

    pub(crate) fn service_named(&self, name: &Name) -> Option<&Service> {
        self.services.get(self.index.service_names.get(name)?)
    }
}

// The derives above make inherent functions (`remote = "Self"`); these add what they can't: the index is derived.
impl Serialize for State {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Self::serialize(self, serializer)
    }
}

impl<'de> Deserialize<'de> for State {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut state = Self::deserialize(deserializer)?;
        state.index = Index::of(&state);
        Ok(state)
    }
}
