//! The leader's loops as one function: the state and the time in, commands out. Applying them and asking again
//! comes to rest; on a state at rest the answer is empty.
//!
//! Per service: `orchestrator` decides which slots there are, `upkeep` keeps one good task in each, `update`
//! brings new specs in, `barrier` leads tasks out of the load balancers, `reaper` forgets what ended. Then the
//! `scheduler` places what waits. For the cluster, `direct` leads direct routing in and out.

mod barrier;
mod direct;
mod orchestrator;
mod reaper;
mod restart;
pub(crate) mod scheduler;
pub(crate) mod slots;
mod update;
mod upkeep;

use std::collections::{BTreeMap, BTreeSet};

use shoal_types::id::{NodeId, TaskId};
use shoal_types::object::{
    Availability, DesiredState, Node, NodeState, Service, Slot, Task, TaskState, Timestamp,
};

use crate::command::Command;
use crate::state::State;
use scheduler::Loads;
use slots::ServiceTasks;

/// Commands per call at most (a service is finished once begun); what is left follows with the next call.
pub const COMMANDS_PER_CALL: usize = 256;

/// What the leader knows beside the replicated state.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LeaderView {
    /// Highest log index that each connected node has programmed into its kernel. A node whose assignment did not
    /// change has programmed that index too.
    pub applied: BTreeMap<NodeId, u64>,
    /// Nodes that fail at programming what they were told, and have got no further for a long time.
    pub stalled: BTreeSet<NodeId>,
}

impl LeaderView {
    /// The highest index that every ready node has programmed. Nodes that are suspect or down send no new flows to
    /// anybody through us and don't count; without any ready node there is nobody to wait for. Nor is for those that are
    /// [left behind](Self::is_left_behind).
    pub fn floor(&self, state: &State) -> u64 {
        let ready = ready(state).filter(|n| !self.is_left_behind(state, &n.id));
        ready.map(|n| self.applied.get(&n.id).copied().unwrap_or(0)).min().unwrap_or(u64::MAX)
    }

    /// Whether a node has stalled and is not waited for. That goes for a minority, or half of the nodes: if most fail, it
    /// is hardly their own fault, and what they still send flows to must not be stopped. A node that is left behind
    /// stays ready. What it can't program may be one service of many: its tasks serve, and are not replaced.
    pub fn is_left_behind(&self, state: &State, node: &NodeId) -> bool {
        let stalled = ready(state).filter(|n| self.stalled.contains(&n.id)).count();
        self.stalled.contains(node) && 2 * stalled <= ready(state).count()
    }
}

fn ready(state: &State) -> impl Iterator<Item = &Node> {
    state.nodes.values().filter(|n| n.state == NodeState::Ready)
}

/// What has to be done next. Call it again after its commands were applied, after every other change, and at
/// [`next_deadline`].
pub fn plan(state: &State, now: Timestamp, view: &LeaderView, ids: &mut dyn FnMut() -> u128) -> Vec<Command> {
    let mut ctx = Ctx::new(state, now, view.floor(state), ids);
    ctx.limit = COMMANDS_PER_CALL;
    release_stranded(&mut ctx, view);
    direct::plan(&mut ctx, view);
    plan_all(&mut ctx);
    ctx.commands
}

/// When [`plan`] will have something to do although nothing else happens.
pub fn next_deadline(state: &State, now: Timestamp) -> Option<Timestamp> {
    let mut ids = || 0;
    // As if everything were programmed: what waits for a node is woken by that node.
    let mut ctx = Ctx::new(state, now, u64::MAX, &mut ids);
    plan_all(&mut ctx);
    ctx.wake
}

fn plan_all(ctx: &mut Ctx<'_>) {
    let state = ctx.state;
    for service in state.services.values() {
        if ctx.is_full() {
            return;
        }
        plan_service(ctx, service);
    }
    scheduler::plan(ctx);
}

fn plan_service(ctx: &mut Ctx<'_>, service: &Service) {
    let tasks = ServiceTasks::of(ctx.state, service);
    let scope = orchestrator::scope(ctx, &tasks);
    barrier::plan(ctx, &tasks, &scope);
    for slot in &scope.victims {
        for task in tasks.live(slot) {
            ctx.take_out(task, DesiredState::Remove);
        }
    }
    upkeep::plan(ctx, &tasks, &scope);
    update::plan(ctx, &tasks, &scope);
    orchestrator::fill(ctx, &tasks, &scope);
    reaper::plan(ctx, &tasks, &scope);
}

/// Addresses of forgotten tasks are free once their node, back again, has programmed an assignment without them.
fn release_stranded(ctx: &mut Ctx<'_>, view: &LeaderView) {
    let state = ctx.state;
    for (id, stranded) in &state.stranded {
        let ready = state.nodes.get(id).is_some_and(|n| n.state == NodeState::Ready);
        if ready && view.applied.get(id).is_some_and(|applied| *applied >= stranded.index) {
            ctx.push(Command::ReleaseStranded { node: id.clone() });
        }
    }
}

/// One call of [`plan`].
pub(crate) struct Ctx<'a> {
    pub(crate) state: &'a State,
    pub(crate) now: Timestamp,
    /// See [`LeaderView::floor`].
    floor: u64,
    ids: &'a mut dyn FnMut() -> u128,
    limit: usize,
    pub(crate) loads: Loads<'a>,
    commands: Vec<Command>,
    /// Tasks that a command of this call takes out.
    leaving: BTreeSet<TaskId>,
    wake: Option<Timestamp>,
}

impl<'a> Ctx<'a> {
    fn new(state: &'a State, now: Timestamp, floor: u64, ids: &'a mut dyn FnMut() -> u128) -> Self {
        Self {
            state,
            now,
            floor,
            ids,
            limit: usize::MAX,
            loads: Loads::of(state),
            commands: Vec::new(),
            leaving: BTreeSet::new(),
            wake: None,
        }
    }

    fn is_full(&self) -> bool {
        self.commands.len() >= self.limit
    }

    fn push(&mut self, command: Command) {
        self.commands.push(command);
    }

    /// Notes that time alone will change something then.
    fn wake_at(&mut self, at: Timestamp) {
        if at > self.now && self.wake.is_none_or(|earlier| at < earlier) {
            self.wake = Some(at);
        }
    }

    /// Whether every ready node has programmed that log index.
    fn is_programmed(&self, index: u64) -> bool {
        self.floor >= index
    }

    /// Whether a task runs and every ready node sends it its share: only then may another one go for it.
    fn is_up(&self, task: &Task) -> bool {
        task.is_serving()
            && self.node_state(task) == Some(NodeState::Ready)
            && self.state.track(&task.id).running.is_some_and(|(index, _)| self.is_programmed(index))
    }

    /// State of the task's node; `None` when it has none, or the node is no member any more.
    fn node_state(&self, task: &Task) -> Option<NodeState> {
        self.state.nodes.get(task.node.as_ref()?).map(|n| n.state)
    }

    fn is_on_drained_node(&self, task: &Task) -> bool {
        let node = task.node.as_ref().and_then(|n| self.state.nodes.get(n));
        node.is_some_and(|n| n.availability == Availability::Drain)
    }

    /// Leads a task out: through the barrier when flows may be on it, else straight to its end.
    fn take_out(&mut self, task: &Task, end: DesiredState) {
        let reachable = self.node_state(task).is_some_and(|s| s != NodeState::Down);
        let has_flows = task.status.state == TaskState::Running && !task.attachments.is_empty() && reachable;
        self.set_desired(task, if has_flows { DesiredState::Draining } else { end });
    }

    fn set_desired(&mut self, task: &Task, desired: DesiredState) {
        if desired > task.desired && self.leaving.insert(task.id.clone()) {
            self.push(Command::SetDesired { id: task.id.clone(), desired });
        }
    }

    fn create(&mut self, service: &Service, slot: &Slot, new: NewTask<'_>) {
        let id = TaskId::from_entropy((self.ids)());
        self.push(Command::CreateTask {
            id,
            service: service.id.clone(),
            slot: slot.clone(),
            not_before: new.not_before,
            replaces: new.replaces.map(|t| t.id.clone()),
            restart: new.restart,
            message: new.message,
        });
    }
}

/// What is special about a task to be made.
struct NewTask<'a> {
    not_before: Timestamp,
    replaces: Option<&'a Task>,
    restart: bool,
    message: String,
}

impl NewTask<'_> {
    /// One that can start at once.
    fn at_once(now: Timestamp) -> Self {
        Self { not_before: now, replaces: None, restart: false, message: String::new() }
    }
}
