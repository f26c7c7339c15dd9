//! One way through all phases: what is wanted, what is there, and the operations that make it so.
//!
//! The few are looked at first, and what there may be a hundred thousand of slice by slice, when the phase has come in which
//! it is made: so beside the few a node has of one slice at a time in memory what is wanted and what is there.

use std::sync::Arc;

use shoal_plan::desired::derive_slice;
use shoal_plan::object::{Goal, Task};
use shoal_plan::{Facts, Key, Object, Objects, Op, Phase, Plan, Slice, Step, plan, steps};
use shoal_types::TaskId;
use shoal_types::assignment::Assignment;

use super::report::chain;
use super::work::Work;
use super::{Reconciler, Wake};
use crate::drivers::runtime::{ObservedTask, RuntimeState};
use crate::facility::{Facility, Look};
use crate::stats::Stats;

/// To look at a large node takes a second or so, and gives way to the managers, but not more often than this in a row. Then it
/// does after a slice; after as many times more, when events have had it begin anew, not at all.
const GIVES_WAY: u32 = 8;

/// What a round is made over.
pub(super) struct Scope<'a> {
    pub(super) assignment: &'a Arc<Assignment>,
    pub(super) facts: &'a Facts,
    pub(super) why: Wake,
    /// The first round looks at all slices. After it, only the few may differ by what it did.
    pub(super) is_first: bool,
    /// It is over what the node has settled on: what a change is told apart from.
    pub(super) is_current: bool,
    /// What there is to work out is worked out beside the loop, which changes would have to wait for.
    pub(super) is_large: bool,
}

impl Scope<'_> {
    /// Whether news from the managers may end it, as long as it has changed nothing of the few.
    fn gives_way(&self) -> bool {
        self.is_first && (self.is_large || self.why == Wake::Sweep)
    }
}

/// Why a round has not come to its end.
pub(super) enum Stop {
    /// The managers have something new.
    News,
    /// What is there, or wanted, is not known.
    Lost(String),
}

/// A slice that is not, or may not be, as it should.
struct Seen {
    desired: Objects,
    observed: Objects,
}

impl<F: Facility> Reconciler<F> {
    /// Looks at all slices and puts right what differs.
    pub(super) async fn round(&mut self, scope: &Scope<'_>, is_drift: bool) -> Result<Work, Stop> {
        let mut work = Work::new(is_drift);
        let few = self.look(scope, Slice::Few, &mut work).await?;
        let plan = few.as_ref().map(|few| plan(&few.desired, &few.observed)).unwrap_or_default();
        if let Some(few) = &few {
            self.verify(few, &plan, |key| Slice::of(key) != Slice::Few);
            work.lead_to(&few.desired);
            work.plan(&plan);
            if work.is_open {
                // What hangs on what is made anew is to be looked at again.
                self.looked.clear();
            }
        }
        let mut left: Vec<Object> = Vec::new();
        for step in steps() {
            match step {
                Step::Look(slice) if scope.is_first && !self.looked.contains(&slice) => {
                    let before = left.len();
                    match self.look(scope, slice, &mut work).await {
                        Ok(None) => {}
                        Ok(Some(seen)) => left.extend(self.make(&seen, few.as_ref(), &mut work).await),
                        Err(Stop::News) => return Err(Stop::News),
                        Err(Stop::Lost(error)) => {
                            work.outcome.lose(error);
                            return Ok(work);
                        }
                    }
                    if left.len() == before {
                        self.looked.insert(slice);
                    }
                    work.slices += 1;
                }
                Step::Look(_) => {}
                Step::Phase(phase) => {
                    work.few_begun |= !plan.of(phase).is_empty();
                    self.carry_out_phase(phase, plan.of(phase), &mut work).await;
                    let of_phase = left.iter().filter(|object| removed_in(object) == phase);
                    let ops: Vec<Op<'_>> = of_phase.map(|object| Op::Remove { object, task: None }).collect();
                    self.carry_out_phase(phase, &ops, &mut work).await;
                }
            }
        }
        if !std::mem::replace(&mut self.started, true) {
            let adopted = self.adopted.values().sum::<usize>();
            Stats::set(&self.stats.adopted, u64::try_from(adopted).unwrap_or(0));
        }
        self.looked.clear();
        Ok(work)
    }

    /// Makes what is to be made of a slice other than the few, and tells what is to be removed.
    async fn make(&mut self, seen: &Seen, few: Option<&Seen>, work: &mut Work) -> Vec<Object> {
        let plan = plan(&seen.desired, &seen.observed);
        self.verify(seen, &plan, |key| few.is_none_or(|few| few.desired.contains_key(key)));
        work.plan(&plan);
        let mut left = Vec::new();
        for (phase, ops) in &plan.phases {
            let is_made = ops.iter().all(|op| matches!(op, Op::Ensure { .. }));
            if is_made {
                self.carry_out_phase(*phase, ops, work).await;
            } else {
                left.extend(ops.iter().map(|op| op.object().clone()));
            }
        }
        left
    }

    const fn may_give_way(&self, work: &Work) -> bool {
        self.gave_way < GIVES_WAY || self.gave_way < 2 * GIVES_WAY && work.slices > 0
    }

    /// What is wanted of a slice, and what is there. `None`: there is nothing to do.
    async fn look(&mut self, scope: &Scope<'_>, slice: Slice, work: &mut Work) -> Result<Option<Seen>, Stop> {
        let gives_way = scope.gives_way() && work.may_end(scope.is_current) && self.may_give_way(work);
        let (assignment, facts) = (Arc::clone(scope.assignment), scope.facts.clone());
        let derive = move || derive_slice(&assignment, &facts, slice);
        let derived = if scope.is_large { self.aside(derive, gives_way).await? } else { derive() };
        let desired = derived.ok_or_else(|| Stop::Lost("no manager has said who this node is".to_owned()))?;
        self.backoffs.retain(|key| Slice::of(key) != slice || desired.contains_key(key));
        let mut news = self.assignment.clone();
        let thorough = scope.is_first && scope.why != Wake::Task || !self.started;
        let look = Look { slice, thorough };
        // Observing only reads, so it may end anywhere.
        let observed = tokio::select! {
            biased;
            observed = self.observe(&desired, scope.assignment, look) => observed.map_err(Stop::Lost)?,
            Ok(()) = news.changed(), if gives_way => return Err(Stop::News),
        };
        self.wanted.insert(slice, desired.len());
        self.looked_at += desired.len();
        if !self.started {
            // What was found first: what is found later may have been made by then.
            self.adopted.entry(slice).or_insert_with(|| right(&desired, &observed));
        }
        let seen = Seen { desired, observed };
        if scope.is_large { self.aside(move || seen.if_differing(), gives_way).await } else { Ok(Some(seen)) }
    }

    /// Works something out beside the loop, one thing at a time.
    async fn aside<T: Send + 'static>(
        &mut self,
        work: impl FnOnce() -> T + Send + 'static,
        gives_way: bool,
    ) -> Result<T, Stop> {
        let mut news = self.assignment.clone();
        let beside = Arc::clone(&self.beside);
        let worked_out = async {
            let permit = beside.acquire_owned().await.map_err(|closed| closed.to_string())?;
            let work = move || {
                let done = work();
                drop(permit);
                done
            };
            tokio::task::spawn_blocking(work).await.map_err(|ended| ended.to_string())
        };
        tokio::select! {
            biased;
            Ok(()) = news.changed(), if gives_way => Err(Stop::News),
            done = worked_out => done.map_err(Stop::Lost),
        }
    }

    async fn observe(
        &mut self,
        desired: &Objects,
        assignment: &Assignment,
        look: Look,
    ) -> Result<Objects, String> {
        let mut observed = self.facility.observe(desired, look).await.map_err(|error| chain(&error))?;
        if look.slice != Slice::Few {
            return Ok(observed);
        }
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

    fn verify(&self, seen: &Seen, plan: &Plan<'_>, is_wanted: impl Fn(&Key) -> bool) {
        if cfg!(debug_assertions) {
            for violation in shoal_plan::check::check(&seen.desired, &seen.observed, plan, is_wanted) {
                tracing::error!(node = %self.node, %violation, "the plan breaks a rule");
            }
        }
    }
}

impl Seen {
    /// Nothing, if there is nothing to do: then dropping it is done, too.
    fn if_differing(self) -> Option<Self> {
        let is_right = plan(&self.desired, &self.observed).is_empty();
        (!is_right).then_some(self)
    }
}

/// How much is there as it is wanted.
fn right(desired: &Objects, observed: &Objects) -> usize {
    let is_right = |(key, wanted): &(&Key, &Object)| {
        observed.get(*key).is_some_and(|found| wanted.is_satisfied_by(found))
    };
    desired.iter().filter(is_right).count()
}

/// The phase in which an object of which there is much is removed: none of them is one task's own.
fn removed_in(object: &Object) -> Phase {
    Phase::of_remove(&object.key(), false)
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
