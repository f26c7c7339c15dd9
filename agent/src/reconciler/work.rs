//! Carrying out: operations by phase, what came of them, and what must not be done for what failed.

use std::collections::{BTreeMap, BTreeSet};

use shoal_plan::check::references;
use shoal_plan::desired::RESERVED_PORTS;
use shoal_plan::object::{Goal, Task};
use shoal_plan::{IfName, Key, Object, Objects, Op, Phase, Plan, veth_owners};
use shoal_types::TaskId;

use super::Reconciler;
use super::report::chain;
use crate::facility::Facility;

/// What came of carrying out a plan.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) done: usize,
    /// Operations that wait for a task to end.
    pub(super) deferred: usize,
    pub(super) errors: Vec<String>,
    /// New flows may still be led by something older: the generation is not programmed.
    pub(super) behind: bool,
}

impl Outcome {
    /// A pass that did not get as far as a plan.
    pub(super) fn lost(error: String) -> Self {
        let mut lost = Self::default();
        lost.lose(error);
        lost
    }

    /// What there is, or is wanted, can't be told any more. What was not come to is still to be done, and nobody else's doing.
    pub(super) fn lose(&mut self, error: String) {
        self.errors.push(error);
        (self.behind, self.deferred) = (true, self.deferred + 1);
    }

    fn failed(&mut self, op: &Op<'_>, error: String) {
        self.errors.push(error);
        self.behind |= matches!(
            op.object(),
            Object::LbService(_)
                | Object::LbEndpoint(_)
                | Object::Virtual(_)
                | Object::Vip(_)
                | Object::Port(_)
        );
    }
}

/// Which tasks can't be started, or must not lose anything yet.
#[derive(Debug, Default)]
pub(super) struct Obstacles {
    /// Whose interfaces there are, by their host sides.
    owners: BTreeMap<IfName, TaskId>,
    /// Something of theirs could not be made.
    unready: BTreeSet<TaskId>,
    /// Something that new flows need could not be made.
    broken: bool,
    /// What could not be made.
    failed: BTreeSet<Key>,
}

/// What is carried out in a round, and what came of it.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) outcome: Outcome,
    pub(super) obstacles: Obstacles,
    /// What differs was changed by somebody else.
    is_drift: bool,
    /// Operations that were planned.
    planned: usize,
    /// Some of them make something that others hang on: another round has to look what became of these.
    pub(super) is_open: bool,
    /// Devices that may be made anew, which takes along what hangs on them.
    pub(super) replaced: BTreeSet<IfName>,
    /// Operations over the few were carried out.
    pub(super) few_begun: bool,
    /// Slices that were looked at, beside the few.
    pub(super) slices: u32,
}

impl Work {
    pub(super) fn new(is_drift: bool) -> Self {
        Self {
            outcome: Outcome::default(),
            obstacles: Obstacles::default(),
            is_drift,
            planned: 0,
            is_open: false,
            replaced: BTreeSet::new(),
            few_begun: false,
            slices: 0,
        }
    }

    /// Learns what is wanted of the few.
    pub(super) fn lead_to(&mut self, desired: &Objects) {
        self.obstacles.owners = veth_owners(desired);
    }

    /// Takes up a plan.
    pub(super) fn plan(&mut self, plan: &Plan<'_>) {
        self.planned += plan.ops().count();
        self.is_open |= plan.ops().any(|op| !op.object().is_leaf());
        self.replaced.extend(plan.ops().filter_map(replaced).cloned());
    }

    /// Whether there was nothing to do, as far as could be told.
    pub(super) fn is_nothing(&self) -> bool {
        self.planned == 0 && self.outcome.errors.is_empty()
    }

    /// Whether the round may end here: what it made of other slices than the few stays made, if it is what the next change is
    /// told apart from.
    pub(super) fn may_end(&self, is_current: bool) -> bool {
        let Outcome { done, deferred, errors, .. } = &self.outcome;
        !self.few_begun && (is_current || *done == 0) && *deferred == 0 && errors.is_empty()
    }

    /// Whether another round would find nothing else to do.
    pub(super) fn is_over(&self) -> bool {
        self.outcome.done == 0 || !self.outcome.errors.is_empty() || !self.is_open
    }

    fn failed(&mut self, op: &Op<'_>, error: String) {
        self.outcome.failed(op, error);
        self.obstacles.note(op);
    }
}

/// The device that an operation may make anew, by its name on the node.
fn replaced<'a>(op: &Op<'a>) -> Option<&'a IfName> {
    match op {
        Op::Ensure { object, found: Some(_) } => match object {
            Object::Bridge(o) => Some(&o.name),
            Object::Vxlan(o) => Some(&o.name),
            Object::Leg(o) => Some(&o.host),
            Object::Balancer(o) => Some(&o.leg.host),
            _ => None,
        },
        _ => None,
    }
}

/// The device that an object of which there is much hangs on, and goes with.
const fn device(object: &Object) -> Option<&IfName> {
    match object {
        Object::Fdb(o) => Some(&o.link),
        Object::Neighbor(o) => Some(&o.link),
        Object::Peer(o) => Some(&o.vxlan),
        Object::LbEndpoint(o) => Some(&o.link),
        _ => None,
    }
}

impl<F: Facility> Reconciler<F> {
    /// Carries out a whole plan.
    pub(super) async fn carry_out(&mut self, plan: &Plan<'_>, desired: &Objects) -> Outcome {
        let mut work = Work::new(false);
        work.lead_to(desired);
        work.plan(plan);
        for (phase, ops) in &plan.phases {
            self.carry_out_phase(*phase, ops, &mut work).await;
        }
        work.outcome
    }

    /// Carries out operations of a phase, in order.
    pub(super) async fn carry_out_phase(&mut self, phase: Phase, ops: &[Op<'_>], work: &mut Work) {
        if ops.is_empty() {
            return;
        }
        // Nothing that new flows may still need goes while its replacement could not be made.
        let held = work.obstacles.broken
            && matches!(phase, Phase::RemoveBalancing | Phase::RemoveForwarding | Phase::RemoveLinks);
        if held {
            work.outcome.deferred += ops.len();
            return;
        }
        self.carry_out_runs(ops, work).await;
        if let Err(error) = self.facility.phase_done().await {
            work.outcome.errors.push(format!("after {phase:?}: {}", chain(&error)));
        }
    }

    pub(super) async fn step(&mut self, op: &Op<'_>, work: &mut Work) {
        let key = op.key();
        if let Some(error) = self.backoffs.blocked(&key) {
            work.failed(op, format!("{key:?}: {error}"));
            return;
        }
        let result = match op {
            Op::Ensure { object: Object::Task(task), .. } => {
                self.task_step(task, work);
                return;
            }
            Op::Remove { object: Object::Task(task), .. } => {
                self.tasks.remove(&task.id);
                work.outcome.deferred += 1;
                return;
            }
            // What leads somewhere stays as it is until what it is to lead to is there.
            Op::Ensure { object, .. } if work.obstacles.bar(object) => {
                work.outcome.deferred += 1;
                work.outcome.behind = true;
                return;
            }
            Op::Remove { task: Some(task), .. } if self.tasks.holds(task) => {
                work.outcome.deferred += 1;
                return;
            }
            Op::Ensure { object, .. } => self.facility.ensure(object).await,
            Op::Remove { object, .. } => self.facility.remove(object).await,
        };
        match result {
            Ok(()) => self.made(op, work),
            Err(error) => {
                let text = chain(&error);
                tracing::warn!(?key, error = text, "not applied");
                work.failed(op, format!("{key:?}: {text}"));
                self.backoffs.failed(key, text);
            }
        }
    }

    /// An operation is done.
    pub(super) fn made(&mut self, op: &Op<'_>, work: &mut Work) {
        let key = op.key();
        let had_failed = self.backoffs.succeeded(&key);
        work.outcome.done += 1;
        tracing::debug!(?key, "applied");
        // What went with its device nobody else took away.
        let went_along = device(op.object()).is_some_and(|device| work.replaced.contains(device));
        if work.is_drift && !had_failed && !went_along {
            let (object, found) = (op.object().kind(), found_as(op));
            tracing::warn!(object, ?key, found, "somebody else changed it; repaired");
            self.stats.drift_repaired(object);
        }
    }

    fn task_step(&mut self, task: &Task, work: &mut Work) {
        work.outcome.deferred += 1;
        match (task.goal, &task.spec) {
            (Goal::Run, Some(_)) if work.obstacles.unready.contains(&task.id) => {}
            (Goal::Run, Some(assigned)) => {
                let path = self.facility.sandbox_path(&task.id);
                let node_name =
                    self.assignment.borrow().cluster().map(|cluster| cluster.node_name.to_string());
                let spec = super::spec::runtime_spec(
                    assigned,
                    path,
                    &self.node,
                    node_name.as_deref().unwrap_or_default(),
                    &self.facility.search_domains(&task.id),
                );
                let is_checked = assigned.spec.health.is_some();
                self.tasks.start(&task.id, spec, is_checked, &self.reports);
            }
            _ => self.tasks.stop(&task.id),
        }
    }
}

impl Obstacles {
    /// Whether everything could be made so far.
    pub(super) fn is_none(&self) -> bool {
        !self.broken && self.failed.is_empty()
    }

    /// Whether an object leads new flows to something that could not be made.
    fn bar(&self, object: &Object) -> bool {
        matches!(object, Object::Port(_) | Object::Vip(_))
            && references(object).iter().any(|key| self.failed.contains(key))
    }

    fn note(&mut self, op: &Op<'_>) {
        let owners = &self.owners;
        if matches!(op, Op::Ensure { .. }) {
            self.failed.insert(op.key());
        }
        let task = match op.object() {
            Object::Sandbox(o) => Some(&o.task),
            Object::Leg(o) => Some(&o.task),
            Object::Resolver(o) => Some(&o.task),
            Object::TaskIf(o) => owners.get(&o.host),
            Object::Local(o) => owners.get(&o.veth),
            Object::Hook(link, _) => owners.get(link),
            // The way out of tasks is none of the mesh's, and without the other a task's packets are translated one by one.
            Object::Firewall(_) | Object::Client(_) => return,
            // Nor do reserved ports lead anything: they keep the host's own connections off published ones.
            Object::Sysctl(o) if o.path == RESERVED_PORTS => return,
            _ => None,
        };
        match task {
            // What is one task's own is in no other's way.
            Some(task) => {
                self.unready.insert(task.clone());
            }
            None => self.broken |= op.phase() < Phase::StartTasks,
        }
    }
}

/// How what was repaired was found.
const fn found_as(op: &Op<'_>) -> &'static str {
    match op {
        Op::Ensure { found: None, .. } => "missing",
        Op::Ensure { found: Some(_), .. } => "changed",
        Op::Remove { .. } => "not wanted",
    }
}
