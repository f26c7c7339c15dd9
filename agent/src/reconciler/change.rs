//! A change of endpoints and services, made at the cost of what it touches.
//!
//! After a pass that left nothing to do, what is there is what was wanted, but for what others do to it, which is for
//! sweeps and events to find. So the part of the former assignment that the change is about stands for what is there.

use std::sync::Arc;

use futures_util::FutureExt as _;
use shoal_plan::desired::{Part, Services, derive_part};
use shoal_plan::doors::Told;
use shoal_plan::{Facts, plan};
use shoal_types::assignment::Assignment;
use tokio::task::JoinHandle;

use super::work::Outcome;
use super::{Reconciler, Wake};
use crate::facility::Facility;

/// So many changed objects are no small change: everything is looked at.
const AT_ONCE: usize = 4096;

/// What a pass that waits for nothing was made over.
#[derive(Debug)]
pub(super) struct Settled {
    assignment: Arc<Assignment>,
    facts: Facts,
    /// Whether nothing failed.
    clean: bool,
    /// The endpoints of each service in it, once they were needed.
    services: Option<Services>,
    /// The same, on their way.
    learning: Option<JoinHandle<Services>>,
}

impl Settled {
    /// What `former` becomes by a pass over `assignment`.
    pub(super) fn after(
        former: Option<Self>,
        assignment: &Arc<Assignment>,
        facts: Facts,
        clean: bool,
    ) -> Self {
        let mut former = former;
        let same = former.as_mut().filter(|former| Arc::ptr_eq(&former.assignment, assignment));
        let learning = same.and_then(|same| same.learning.take());
        let services = former.and_then(|former| {
            let mut services = former.services?;
            let changes = former.assignment.changes(assignment);
            if changes.len() > AT_ONCE {
                return None;
            }
            services.add(&changes);
            services.drop_former(&changes);
            Some(services)
        });
        Self { assignment: Arc::clone(assignment), facts, clean, services, learning }
    }

    /// What other nodes told of themselves.
    pub(super) fn peers(&self) -> Arc<Told> {
        Arc::clone(&self.facts.peers)
    }

    /// Indexes the endpoints of services in the background, for the first change not to wait for it where they are many.
    pub(super) fn learn(&mut self) {
        let may_change = self.assignment.cluster().is_some_and(|cluster| Part::may_be(&self.facts, cluster));
        if may_change && self.services.is_none() && self.learning.is_none() {
            let assignment = Arc::clone(&self.assignment);
            self.learning = Some(tokio::task::spawn_blocking(move || Services::of(&assignment)));
        }
    }

    /// The endpoints of each service in it.
    fn take_services(&mut self) -> Services {
        let learned = self.learning.take().filter(JoinHandle::is_finished);
        let learned = learned.and_then(|learned| learned.now_or_never()?.ok());
        self.services.take().or(learned).unwrap_or_else(|| Services::of(&self.assignment))
    }

    /// Whether nothing failed.
    pub(super) const fn is_clean(&self) -> bool {
        self.clean
    }

    /// Whether this is what is wanted now.
    pub(super) fn is_current(&self, assignment: &Assignment, facts: &Facts) -> bool {
        self.assignment.generation == assignment.generation && self.facts == *facts
    }
}

impl<F: Facility> Reconciler<F> {
    /// Makes a change, if it is one of endpoints and services only and the node is as it was wanted before.
    pub(super) async fn change(
        &mut self,
        why: Wake,
        assignment: &Assignment,
        facts: &Facts,
    ) -> Option<Outcome> {
        let settled = self.settled.as_mut()?;
        if why != Wake::Assignment || !settled.clean || settled.facts != *facts {
            return None;
        }
        let former = Arc::clone(&settled.assignment);
        let changes = former.changes(assignment);
        if changes.len() > AT_ONCE {
            return None;
        }
        let part = Part::of(&changes, facts, assignment.cluster()?)?;
        // Takes in what comes; what goes is dropped when the pass has settled.
        let mut services = settled.take_services();
        services.add(&changes);
        if services.want_direct(&former) != services.want_direct(assignment) {
            settled.services = Some(services);
            return None;
        }
        let from = derive_part(&former, facts, &part, &services);
        let to = derive_part(assignment, facts, &part, &services);
        settled.services = Some(services);
        let (from, to) = (from?, to?);
        Some(self.carry_out(&plan(&to, &from), &to).await)
    }
}
