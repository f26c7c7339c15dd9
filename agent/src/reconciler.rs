//! The level-triggered loop: observe, plan, apply by phase, report.
//!
//! Whatever wakes it, a pass looks at everything, so a lost event costs time and never correctness; a sweep every few
//! seconds finds what nobody told. Only what the managers change of endpoints and services on a node that is as it
//! should be is made without looking ([`change`]), as it would else cost what exists. Objects that fail are tried again with a growing pause and named in the report.

mod backoff;
mod change;
mod drain;
mod events;
mod many;
mod pass;
mod report;
mod round;
mod spec;
mod tasks;
mod work;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use shoal_plan::Slice;
use shoal_plan::doors::Told;
use shoal_types::assignment::Assignment;
use shoal_types::{Generation, NodeId};
use tokio::sync::{Semaphore, broadcast, mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::drivers::runtime::Runtime;
use crate::facility::Facility;
use crate::health::Checks;
use crate::in_use::Grown;
use crate::stats::Stats;

use backoff::Backoffs;
use change::Settled;
use drain::Drains;
use tasks::{TaskEvent, Tasks};

pub(crate) use drain::{Listener, listeners};
pub use events::KernelEvents;
pub use report::{Applied, Reports};
pub(crate) use report::{Evidence, chain, now};

/// Everything is looked at at least this often.
const SWEEP: Duration = Duration::from_secs(5);
/// Of the time, a node spends this part on sweeps at most: the larger it is, the rarer they come.
const SWEEP_SHARE: u32 = 20;
/// Events of the kernel come in bursts: they are waited out for so long.
const SETTLE: Duration = Duration::from_millis(50);

/// How often it is asked whether something is gone of which the kernel tells nobody.
const GLANCE: Duration = Duration::from_millis(500);

/// What changes again and again is looked at with pauses of so many times what a look takes,
const KERNEL_SHARE: u32 = 4;
/// yet none longer than this, so that what is lost is back within a second.
const KERNEL_PAUSE: Duration = Duration::from_millis(500);

/// A look that gave way to a change is begun again after so long: changes seldom come alone.
const AGAIN: Duration = Duration::from_millis(500);

/// Why a pass is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wake {
    /// The daemon started.
    Start,
    /// The managers sent something new.
    Assignment,
    /// A link or an address changed, or something on a link of ours was lost, or a program or a pin.
    Kernel,
    /// A task ended, or an operation on one is done.
    Task,
    /// Other nodes told other addresses.
    Peers,
    /// Time for a look at everything.
    Sweep,
    /// Time to try again what failed.
    Retry,
}

/// What the loop works with.
pub struct Context<F> {
    /// The node.
    pub facility: F,
    /// What runs tasks.
    pub runtime: Arc<dyn Runtime>,
    /// What the node was told.
    pub assignment: watch::Receiver<Arc<Assignment>>,
    /// What it reports.
    pub reports: Reports,
    /// What it counts.
    pub stats: Arc<Stats>,
    /// Which node it is.
    pub node: NodeId,
    /// Where the health of tasks is kept.
    pub health_dir: PathBuf,
    /// Changes of links and addresses.
    pub events: KernelEvents,
    /// Ends the loop; everything stays as it is.
    pub closing: CancellationToken,
}

/// The loop.
pub struct Reconciler<F> {
    facility: F,
    runtime: Arc<dyn Runtime>,
    assignment: watch::Receiver<Arc<Assignment>>,
    /// Addresses of other nodes.
    peers: watch::Receiver<Arc<Told>>,
    reports: Reports,
    stats: Arc<Stats>,
    node: NodeId,
    events: KernelEvents,
    closing: CancellationToken,
    tasks: Tasks,
    finished: mpsc::Receiver<TaskEvent>,
    backoffs: Backoffs,
    /// What was wanted when the last pass ended with nothing left to do.
    settled: Option<Settled>,
    /// Looks that gave way to a change since the last that did not.
    gave_way: u32,
    /// Slices that a look was done with before it gave way: one that goes on with it does not look at them again.
    looked: BTreeSet<Slice>,
    /// The next look goes on with one that gave way.
    resumes: bool,
    /// A sweep gave way to a change: what comes with it comes after that.
    untended: bool,
    /// What is programmed.
    applied: Generation,
    /// What works beside the loop: one look at a time, however many gave way, as each holds much memory.
    beside: Arc<Semaphore>,
    /// Objects of each slice that were wanted when it was looked at last.
    wanted: BTreeMap<Slice, usize>,
    /// Objects that this pass looked at.
    looked_at: usize,
    /// Objects of each slice that were there as they are wanted when it was looked at first.
    adopted: BTreeMap<Slice, usize>,
    started: bool,
    /// Bytes that were told of services.
    grown: Grown,
}

impl<F: Facility> Reconciler<F> {
    /// A loop that has not looked at anything yet.
    pub fn new(context: Context<F>) -> Self {
        let (tell, finished) = mpsc::channel(64);
        let checks = Checks::new(
            Arc::clone(&context.runtime),
            context.reports.clone(),
            Arc::clone(&context.stats),
            context.health_dir,
        );
        Self {
            tasks: Tasks::new(
                Arc::clone(&context.runtime),
                checks,
                Drains::new(context.reports.clone()),
                tell,
            ),
            facility: context.facility,
            runtime: context.runtime,
            assignment: context.assignment,
            peers: context.stats.probes.peers(),
            reports: context.reports,
            stats: context.stats,
            node: context.node,
            events: context.events,
            closing: context.closing,
            finished,
            backoffs: Backoffs::default(),
            settled: None,
            gave_way: 0,
            looked: BTreeSet::new(),
            resumes: false,
            untended: false,
            applied: Generation(0),
            beside: Arc::new(Semaphore::new(1)),
            wanted: BTreeMap::new(),
            looked_at: 0,
            adopted: BTreeMap::new(),
            started: false,
            grown: Grown::default(),
        }
    }

    /// Runs until it is told to close, and gives the facility back.
    pub async fn run(mut self) -> F {
        let mut sweep = interval(SWEEP);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first tick comes at once.
        sweep.tick().await;
        let mut glance = interval(GLANCE);
        glance.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut was_touched = false;
        let mut ended = self.runtime.subscribe();
        // Others lead flows to a task until they hear of its end: that must not wait for a pass that is under way.
        let ends =
            tasks::report_ends(self.runtime.subscribe(), self.assignment.clone(), self.reports.clone());
        let _ends = AbortOnDropHandle::new(tokio::spawn(ends));
        let closing = self.closing.clone();
        let mut wake = Some(Wake::Start);
        let mut quiet = Instant::now();
        let mut again: Option<(Instant, Wake)> = None;
        loop {
            if let Some(why) = wake {
                // What the managers changed does not wait for a look at everything.
                if why != Wake::Assignment && self.assignment.has_changed().unwrap_or(false) {
                    self.pass(Wake::Assignment).await;
                }
                let begin = Instant::now();
                let is_over = self.pass(why).await;
                // Another sweep comes; for the rest there may be no second cause.
                again = (!is_over && why != Wake::Sweep).then(|| (Instant::now() + AGAIN, why)).or(again);
                if why == Wake::Kernel {
                    quiet = Instant::now() + KERNEL_PAUSE.min(begin.elapsed() * KERNEL_SHARE);
                }
                if why == Wake::Sweep {
                    sweep.reset_after(SWEEP.max(begin.elapsed() * SWEEP_SHARE));
                }
            }
            let retry = self.backoffs.next();
            // Every arm only receives: dropping one that lost loses nothing, as a pass looks at everything anyway.
            wake = tokio::select! {
                () = closing.cancelled() => break,
                changed = self.assignment.changed() => match changed {
                    Ok(()) => Some(Wake::Assignment),
                    // The sender goes only when the node closes.
                    Err(_) => break,
                },
                // Its sender stays as long as the counters do.
                Ok(()) = self.peers.changed() => Some(Wake::Peers),
                event = self.finished.recv() => {
                    if let Some(event) = event {
                        self.tasks.finish(event);
                    }
                    Some(Wake::Task)
                }
                end = ended.recv() => match end {
                    Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => Some(Wake::Task),
                    Err(broadcast::error::RecvError::Closed) => None,
                },
                () = self.events.next(quiet) => {
                    self.settle().await;
                    self.events.drain();
                    Some(Wake::Kernel)
                }
                _ = glance.tick() => {
                    // What stays so is not repaired by another look: sweeps and retries go on.
                    let touched = self.facility.is_touched();
                    (!std::mem::replace(&mut was_touched, touched) && touched).then_some(Wake::Kernel)
                }
                () = sleep_until(again.map_or_else(Instant::now, |(at, _)| at)), if again.is_some() => {
                    self.resumes = true;
                    again.take().map(|(_, why)| why)
                }
                _ = sweep.tick() => Some(Wake::Sweep),
                // Without anything to retry it must not come in a sweep's place: what sweeps find is drift.
                () = sleep_until(retry.unwrap_or_else(Instant::now)), if retry.is_some() => Some(Wake::Retry),
            };
        }
        self.facility
    }

    /// Waits a burst of events out. Changes of the managers don't wait for that.
    async fn settle(&mut self) {
        let over = Instant::now() + SETTLE;
        loop {
            tokio::select! {
                () = sleep_until(over) => break,
                Ok(()) = self.assignment.changed() => self.pass(Wake::Assignment).await,
            };
        }
    }
}

#[cfg(test)]
mod tests;
