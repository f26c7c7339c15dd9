//! One pass: what is wanted, what is there, and the way from one to the other.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use shoal_plan::check::references;
use shoal_plan::desired::RESERVED_PORTS;
use shoal_plan::doors::{self, Told};
use shoal_plan::object::{Goal, Task};
use shoal_plan::{Facts, IfName, Key, Object, Objects, Op, Phase, Plan, desired, plan};
use shoal_types::TaskId;
use shoal_types::assignment::Assignment;

use super::change::Settled;
use super::report::{Applied, chain};
use super::{Reconciler, Wake, many};
use crate::drivers::runtime::{ObservedTask, RuntimeState};
use crate::facility::{Facility, FacilityError, Look};
use crate::stats::Stats;
use crate::{in_use, memory};

/// A change that made another one necessary settles within this many rounds.
const ROUNDS: usize = 4;

/// To look at a large node takes a second or two, and gives way to the managers, but not more often than this in a row.
const GIVES_WAY: u32 = 8;

/// A pass over more objects than this holds much memory, and works on them for longer than a change should have to wait.
const MANY: usize = if cfg!(test) { 0 } else { 20_000 };

/// What came of carrying out a plan.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    done: usize,
    /// Operations that wait for a task to end.
    deferred: usize,
    errors: Vec<String>,
    /// New flows may still be led by something older: the generation is not programmed.
    behind: bool,
}

impl Outcome {
    /// A pass that did not get as far as a plan.
    fn lost(error: String) -> Self {
        Self { errors: vec![error], behind: true, ..Self::default() }
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
    /// Something of theirs could not be made.
    unready: BTreeSet<TaskId>,
    /// Something that new flows need could not be made.
    broken: bool,
    /// What could not be made.
    failed: BTreeSet<Key>,
}

impl<F: Facility> Reconciler<F> {
    /// Looks at everything and puts right what differs. Whether it came to its end: else the managers have something new.
    pub(super) async fn pass(&mut self, why: Wake) -> bool {
        let assignment = Arc::clone(&self.assignment.borrow_and_update());
        if assignment.cluster().is_none() {
            return true;
        }
        let (begin, writes) = (Instant::now(), self.stats.writes.total());
        if why == Wake::Assignment {
            self.backoffs.clear();
        }
        let outcome = match self.facts(why, &assignment).await {
            Ok(facts) => {
                let outcome = match self.change(why, &assignment, &facts).await {
                    Some(outcome) => outcome,
                    None => match self.rounds(why, &assignment, &facts).await {
                        Some(outcome) => outcome,
                        // What the managers have to say is next; what was found so far is not worth keeping.
                        None => return false,
                    },
                };
                // News that came meanwhile is still to be seen.
                if Arc::ptr_eq(&self.peers.borrow(), &facts.peers) {
                    self.peers.mark_unchanged();
                }
                // What fails is told apart: what was made before and is found changed is somebody else's doing.
                let (is_settled, clean) = (outcome.deferred == 0, outcome.errors.is_empty());
                let former = self.settled.take();
                self.settled = is_settled.then(|| Settled::after(former, &assignment, facts, clean));
                outcome
            }
            Err(error) => Outcome::lost(chain(&error)),
        };
        if why == Wake::Sweep {
            let in_use = self.facility.tend();
            self.stats.set_maps(in_use.maps);
            // What could not be read stays as it was: a counter must not fall.
            if let Some(flows) = in_use.flows {
                let mut services = in_use::by_name(&assignment, &flows, &in_use.endpoints);
                self.grown.raise(&mut services);
                self.stats.set_services(services);
            }
        }
        if !outcome.behind {
            self.applied = assignment.generation;
        }
        let errors = outcome.errors;
        let took = begin.elapsed();
        let writes = self.stats.writes.total() - writes;
        if writes > 0 || !errors.is_empty() {
            tracing::info!(?why, generation = assignment.generation.0, writes, ?took, ?errors, "pass");
        }
        Stats::set(&self.stats.applied, self.applied.0);
        Stats::set(&self.stats.last_pass_us, u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
        self.stats.set_warnings(errors.clone());
        self.stats.set_drops(self.facility.drops());
        self.stats.set_packets(self.facility.packets());
        self.stats.set_connects(self.facility.connects());
        let lb = self.facility.lb();
        self.stats.set_lb(lb);
        self.reports.pass_done(Applied { generation: self.applied, errors, took, writes, lb });
        if std::mem::take(&mut self.looked_at) > MANY {
            // Nobody waits for it, nor for its end.
            drop(tokio::task::spawn_blocking(memory::give_back));
        }
        true
    }

    /// What only the host can tell, and what other nodes told of themselves. A change of the managers does not wait for a look
    /// at everything because of these: what is new of them comes right after it.
    async fn facts(&mut self, why: Wake, assignment: &Assignment) -> Result<Facts, FacilityError> {
        let facts = self.facility.facts(assignment, &self.node).await?;
        self.stats.probes.tell(facts.addresses());
        self.stats.set_uplink_addrs(facts.uplinks.iter().flat_map(|uplink| &uplink.addrs).copied().collect());
        if !self.started {
            self.recall(assignment);
        }
        let settled = self.settled.as_ref().filter(|_| why == Wake::Assignment);
        let peers = settled.map_or_else(|| Arc::clone(&self.peers.borrow()), Settled::peers);
        Ok(Facts { peers, ..facts })
    }

    /// What is in place tells what other nodes told an earlier run: it stays until they are heard again.
    fn recall(&self, assignment: &Assignment) {
        let mut in_place = self.facility.doors();
        let others = assignment.members().filter(|member| member.node != self.node);
        let told = others.filter_map(|member| {
            let addrs = in_place.remove(&doors::scope(member.router.mac()))?;
            Some((member.node.clone(), Arc::new(addrs)))
        });
        let told: Told = told.collect();
        if !told.is_empty() {
            self.stats.probes.recall(&told);
        }
    }

    /// Looks and changes until nothing is left to do. `None`: it gave way before it changed anything.
    async fn rounds(&mut self, why: Wake, assignment: &Arc<Assignment>, facts: &Facts) -> Option<Outcome> {
        let is_large = self.wanted > MANY && !matches!(why, Wake::Start | Wake::Assignment);
        let gives_way = (is_large || why == Wake::Sweep) && self.gave_way < GIVES_WAY;
        let is_aside = gives_way && is_large;
        let derived = if is_aside {
            let (assignment, facts) = (Arc::clone(assignment), facts.clone());
            self.aside(move || desired::derive(&assignment, &facts)).await?
        } else {
            desired::derive(assignment, facts)
        };
        let Some(mut desired) = derived else { return Some(Outcome::default()) };
        (self.wanted, self.looked_at) = (desired.len(), desired.len());
        self.backoffs.retain(|key| desired.contains_key(key));
        let mut is_drift = matches!(why, Wake::Kernel | Wake::Sweep)
            && self.settled.as_ref().is_some_and(|settled| settled.is_current(assignment, facts));
        let mut outcome = Outcome::default();
        // Without leaves, once these are made.
        let mut few: Option<Objects> = None;
        for round in 0..ROUNDS {
            let look = Look { thorough: round == 0 && why != Wake::Task, leaves: few.is_none() };
            let mut news = self.assignment.clone();
            // Observing only reads, so it may end anywhere.
            let observed = tokio::select! {
                biased;
                observed = self.observe(&desired, assignment, look) => observed,
                Ok(()) = news.changed(), if gives_way && round == 0 => {
                    self.gave_way += 1;
                    return None;
                }
            };
            let mut observed = match observed {
                Ok(observed) => observed,
                Err(error) => return Some(Outcome::lost(error)),
            };
            self.adopt(&desired, &observed);
            if is_aside && round == 0 {
                let differing = self.aside(move || differing(desired, observed)).await?;
                let Some(both) = differing else { break };
                (desired, observed) = both;
            }
            let plan = plan(few.as_ref().unwrap_or(&desired), &observed);
            self.verify(&desired, &observed, &plan);
            if plan.is_empty() {
                break;
            }
            outcome = self.carry_out(&plan, &desired, is_drift).await;
            if outcome.done == 0 || !outcome.errors.is_empty() || many::is_final(&plan) {
                break;
            }
            // What was replaced took along what hung on it; else what differs next was changed meanwhile.
            let settles = many::settles_leaves(&plan);
            is_drift &= settles;
            drop(plan);
            if settles && few.is_none() {
                few = Some(many::few(&desired));
            }
        }
        self.gave_way = 0;
        self.tasks.settle(assignment, &self.reports);
        Some(outcome)
    }

    /// Works something out beside the loop, which changes would have to wait for. `None`: there is one.
    async fn aside<T: Send + 'static>(&mut self, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let mut news = self.assignment.clone();
        let beside = Arc::clone(&self.beside);
        let worked_out = async {
            let permit = beside.acquire_owned().await.ok()?;
            let work = move || {
                let done = work();
                drop(permit);
                done
            };
            tokio::task::spawn_blocking(work).await.ok()
        };
        let done = tokio::select! {
            biased;
            Ok(()) = news.changed() => None,
            done = worked_out => done,
        };
        self.gave_way += u32::from(done.is_none());
        done
    }

    /// Counts what is there when the daemon starts.
    fn adopt(&mut self, desired: &Objects, observed: &Objects) {
        if std::mem::replace(&mut self.started, true) {
            return;
        }
        let is_right = |(key, wanted): &(&Key, &Object)| {
            observed.get(*key).is_some_and(|found| wanted.is_satisfied_by(found))
        };
        let adopted = desired.iter().filter(is_right).count();
        Stats::set(&self.stats.adopted, u64::try_from(adopted).unwrap_or(0));
    }

    async fn observe(
        &mut self,
        desired: &Objects,
        assignment: &Assignment,
        look: Look,
    ) -> Result<Objects, String> {
        let look = Look { thorough: look.thorough || !self.started, ..look };
        let mut observed = self.facility.observe(desired, look).await.map_err(|error| chain(&error))?;
        let tasks = self.runtime.observe().await.map_err(|error| chain(&error))?;
        let running = tasks.iter().filter(|task| matches!(task.state, RuntimeState::Running { .. })).count();
        Stats::set(&self.stats.tasks_running, u64::try_from(running).unwrap_or(0));
        self.tasks.observed(&tasks, assignment, &self.reports);
        for task in tasks {
            if let Some(object) = task_object(&task, desired) {
                observed.insert(object.key(), object);
            }
        }
        Ok(observed)
    }

    fn verify(&self, desired: &Objects, observed: &Objects, plan: &Plan<'_>) {
        if cfg!(debug_assertions) {
            for violation in shoal_plan::check::check(desired, observed, plan) {
                tracing::error!(node = %self.node, %violation, "the plan breaks a rule");
            }
        }
    }

    pub(super) async fn carry_out(&mut self, plan: &Plan<'_>, desired: &Objects, is_drift: bool) -> Outcome {
        let owners = veth_owners(desired);
        let (mut outcome, mut obstacles) = (Outcome::default(), Obstacles::default());
        for (phase, ops) in &plan.phases {
            // Nothing that new flows may still need goes while its replacement could not be made.
            let held = obstacles.broken
                && matches!(phase, Phase::RemoveBalancing | Phase::RemoveForwarding | Phase::RemoveLinks);
            if held {
                outcome.deferred += ops.len();
                continue;
            }
            self.carry_out_phase(ops, &owners, &mut outcome, &mut obstacles, is_drift).await;
            if let Err(error) = self.facility.phase_done().await {
                outcome.errors.push(format!("after {phase:?}: {}", chain(&error)));
            }
        }
        outcome
    }

    pub(super) async fn step(
        &mut self,
        op: &Op<'_>,
        owners: &BTreeMap<IfName, TaskId>,
        outcome: &mut Outcome,
        obstacles: &mut Obstacles,
        is_drift: bool,
    ) {
        let key = op.key();
        if let Some(error) = self.backoffs.blocked(&key) {
            outcome.failed(op, format!("{key:?}: {error}"));
            obstacles.note(op, owners);
            return;
        }
        let result = match op {
            Op::Ensure { object: Object::Task(task), .. } => {
                self.task_step(task, obstacles, outcome);
                return;
            }
            Op::Remove { object: Object::Task(task), .. } => {
                self.tasks.remove(&task.id);
                outcome.deferred += 1;
                return;
            }
            // What leads somewhere stays as it is until what it is to lead to is there.
            Op::Ensure { object, .. } if obstacles.bar(object) => {
                outcome.deferred += 1;
                outcome.behind = true;
                return;
            }
            Op::Remove { task: Some(task), .. } if self.tasks.holds(task) => {
                outcome.deferred += 1;
                return;
            }
            Op::Ensure { object, .. } => self.facility.ensure(object).await,
            Op::Remove { object, .. } => self.facility.remove(object).await,
        };
        match result {
            Ok(()) => self.made(op, outcome, is_drift),
            Err(error) => {
                let text = chain(&error);
                tracing::warn!(?key, error = text, "not applied");
                outcome.failed(op, format!("{key:?}: {text}"));
                self.backoffs.failed(key, text);
                obstacles.note(op, owners);
            }
        }
    }

    /// An operation is done.
    pub(super) fn made(&mut self, op: &Op<'_>, outcome: &mut Outcome, is_drift: bool) {
        let key = op.key();
        let had_failed = self.backoffs.succeeded(&key);
        outcome.done += 1;
        tracing::debug!(?key, "applied");
        if is_drift && !had_failed {
            let (object, found) = (op.object().kind(), found_as(op));
            tracing::warn!(object, ?key, found, "somebody else changed it; repaired");
            self.stats.drift_repaired(object);
        }
    }

    fn task_step(&mut self, task: &Task, obstacles: &Obstacles, outcome: &mut Outcome) {
        match (task.goal, &task.spec) {
            (Goal::Run, Some(_)) if obstacles.unready.contains(&task.id) => outcome.deferred += 1,
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
                outcome.deferred += 1;
            }
            _ => {
                self.tasks.stop(&task.id);
                outcome.deferred += 1;
            }
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

    fn note(&mut self, op: &Op<'_>, owners: &BTreeMap<IfName, TaskId>) {
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

/// Both, if they differ; else dropping them is done, too.
fn differing(desired: Objects, observed: Objects) -> Option<(Objects, Objects)> {
    let is_right = plan(&desired, &observed).is_empty();
    (!is_right).then_some((desired, observed))
}

/// How what was repaired was found.
const fn found_as(op: &Op<'_>) -> &'static str {
    match op {
        Op::Ensure { found: None, .. } => "missing",
        Op::Ensure { found: Some(_), .. } => "changed",
        Op::Remove { .. } => "not wanted",
    }
}

fn veth_owners(desired: &Objects) -> BTreeMap<IfName, TaskId> {
    desired
        .values()
        .filter_map(|object| match object {
            Object::Leg(leg) => Some((leg.host.clone(), leg.task.clone())),
            _ => None,
        })
        .collect()
}

/// A task as the plan sees it. One that is prepared and wanted is not there yet.
fn task_object(task: &ObservedTask, desired: &Objects) -> Option<Object> {
    let id: TaskId = task.spec.task.parse().ok()?;
    let wanted_running =
        matches!(desired.get(&Key::Task(id.clone())), Some(Object::Task(Task { goal: Goal::Run, .. })));
    let goal = match task.state {
        RuntimeState::Running { .. } => Goal::Run,
        RuntimeState::Prepared if wanted_running => return None,
        _ => Goal::Stop,
    };
    Some(Object::Task(Task { id, goal, spec: None }))
}
