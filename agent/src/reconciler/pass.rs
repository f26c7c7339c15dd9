//! One pass: what is wanted, what is there, and the way from one to the other.

use std::sync::Arc;
use std::time::Instant;

use shoal_plan::Facts;
use shoal_plan::doors::{self, Told};
use shoal_types::assignment::Assignment;

use super::change::Settled;
use super::report::{Applied, chain};
use super::round::{Scope, Stop};
use super::work::Outcome;
use super::{Reconciler, Wake};
use crate::facility::{Facility, FacilityError};
use crate::stats::Stats;
use crate::{in_use, memory};

/// A change that made another one necessary settles within this many rounds.
const ROUNDS: usize = 4;

/// A pass over more objects than this holds much memory, and works on them for longer than a change should have to wait.
const MANY: usize = if cfg!(test) { 0 } else { 20_000 };

impl<F: Facility> Reconciler<F> {
    /// Looks at everything and puts right what differs. Whether it came to its end: else the managers have something new.
    pub(super) async fn pass(&mut self, why: Wake) -> bool {
        let assignment = Arc::clone(&self.assignment.borrow_and_update());
        if assignment.cluster().is_none() {
            return true;
        }
        let (begin, writes) = (Instant::now(), self.stats.writes.total());
        let is_about_all = matches!(why, Wake::Start | Wake::Assignment);
        let resumes = !is_about_all && (std::mem::take(&mut self.resumes) || why == Wake::Sweep);
        if why == Wake::Assignment {
            self.backoffs.clear();
        }
        let outcome = match self.facts(why, &assignment).await {
            Ok(facts) => {
                let mut outcome = self.change(why, &assignment, &facts).await;
                if outcome.is_none() {
                    outcome = self.rounds(why, resumes, &assignment, &facts).await;
                }
                let Some(outcome) = outcome else {
                    // What the managers have to say is next.
                    self.untended |= why == Wake::Sweep;
                    return false;
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
            Err(error) => {
                self.looked.clear();
                Outcome::lost(chain(&error))
            }
        };
        if why == Wake::Sweep {
            self.tend(&assignment);
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
        if self.untended {
            self.tend(&assignment);
        }
        if std::mem::take(&mut self.looked_at) > MANY {
            // Nobody waits for it, nor for its end.
            drop(tokio::task::spawn_blocking(memory::give_back));
            if let Some(settled) = &mut self.settled {
                settled.learn();
            }
        }
        true
    }

    /// What comes with each sweep.
    fn tend(&mut self, assignment: &Assignment) {
        self.untended = false;
        let in_use = self.facility.tend();
        self.stats.set_maps(in_use.maps);
        // What could not be read stays as it was: a counter must not fall.
        if let Some(flows) = in_use.flows {
            let mut services = in_use::by_name(assignment, &flows, &in_use.endpoints);
            self.grown.raise(&mut services);
            self.stats.set_services(services);
        }
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

    /// Looks and changes until nothing is left to do. With `resumes`, where a look before it gave way. `None`: it gave way.
    async fn rounds(
        &mut self,
        why: Wake,
        resumes: bool,
        assignment: &Arc<Assignment>,
        facts: &Facts,
    ) -> Option<Outcome> {
        let current = self.settled.as_ref().filter(|settled| settled.is_current(assignment, facts));
        // What the managers changed meanwhile is made so in all slices, if it could be; an event may be about any.
        if !resumes || !current.is_some_and(Settled::is_clean) {
            self.looked.clear();
        }
        let is_current = current.is_some();
        let mut is_drift = matches!(why, Wake::Kernel | Wake::Sweep) && is_current;
        let is_about_all = matches!(why, Wake::Start | Wake::Assignment);
        let is_large = !is_about_all && self.wanted.values().sum::<usize>() > MANY;
        let mut outcome = Outcome::default();
        for number in 0..ROUNDS {
            let is_first = number == 0;
            let scope = Scope { assignment, facts, why, is_first, is_current, is_large };
            let work = match self.round(&scope, is_drift).await {
                Ok(work) => work,
                Err(Stop::News) => {
                    self.gave_way += 1;
                    return None;
                }
                Err(Stop::Lost(error)) => return Some(Outcome::lost(error)),
            };
            if work.is_nothing() {
                break;
            }
            let is_over = work.is_over();
            // What differs after a device was replaced may be what it took along; else it was changed meanwhile.
            is_drift &= work.replaced.is_empty();
            outcome = work.outcome;
            if is_over {
                break;
            }
        }
        self.gave_way = 0;
        self.tasks.settle(assignment, &self.reports);
        Some(outcome)
    }
}
