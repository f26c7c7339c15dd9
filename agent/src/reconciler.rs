//! The level-triggered loop: observe, plan, apply by phase, report.
//!
//! Whatever wakes it, a pass looks at everything, so a lost event costs time and never correctness; a sweep every few
//! seconds finds what nobody told. Objects that fail are tried again with a growing pause and named in the report.

mod backoff;
mod events;
mod pass;
mod report;
mod spec;
mod tasks;

use std::sync::Arc;
use std::time::Duration;

use shoal_plan::Facts;
use shoal_types::assignment::Assignment;
use shoal_types::{Generation, NodeId};
use tokio::sync::{broadcast, mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::drivers::runtime::Runtime;
use crate::facility::Facility;
use crate::stats::Stats;

use backoff::Backoffs;
use tasks::{TaskEvent, Tasks};

pub use events::KernelEvents;
pub use report::{Applied, Reports};
pub(crate) use report::{chain, now};

/// Everything is looked at at least this often.
const SWEEP: Duration = Duration::from_secs(5);
/// Events of the kernel come in bursts: they are waited out for so long.
const SETTLE: Duration = Duration::from_millis(50);

/// Why a pass is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wake {
    /// The daemon started.
    Start,
    /// The managers sent something new.
    Assignment,
    /// A link or an address changed.
    Kernel,
    /// A task ended, or an operation on one is done.
    Task,
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
    reports: Reports,
    stats: Arc<Stats>,
    node: NodeId,
    events: KernelEvents,
    closing: CancellationToken,
    tasks: Tasks,
    finished: mpsc::Receiver<TaskEvent>,
    backoffs: Backoffs,
    /// What was wanted when the last pass ended with nothing left to do.
    settled: Option<(Generation, Facts)>,
    /// What is programmed.
    applied: Generation,
    started: bool,
}

impl<F: Facility> Reconciler<F> {
    /// A loop that has not looked at anything yet.
    pub fn new(context: Context<F>) -> Self {
        let (tell, finished) = mpsc::channel(64);
        Self {
            tasks: Tasks::new(Arc::clone(&context.runtime), tell),
            facility: context.facility,
            runtime: context.runtime,
            assignment: context.assignment,
            reports: context.reports,
            stats: context.stats,
            node: context.node,
            events: context.events,
            closing: context.closing,
            finished,
            backoffs: Backoffs::default(),
            settled: None,
            applied: Generation(0),
            started: false,
        }
    }

    /// Runs until it is told to close, and gives the facility back.
    pub async fn run(mut self) -> F {
        let mut sweep = interval(SWEEP);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first tick comes at once.
        sweep.tick().await;
        let mut ended = self.runtime.subscribe();
        let closing = self.closing.clone();
        let mut wake = Some(Wake::Start);
        loop {
            if let Some(why) = wake {
                self.pass(why).await;
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
                () = self.events.next() => {
                    tokio::time::sleep(SETTLE).await;
                    self.events.drain();
                    Some(Wake::Kernel)
                }
                _ = sweep.tick() => Some(Wake::Sweep),
                () = sleep_until(retry.unwrap_or_else(Instant::now)), if retry.is_some() => Some(Wake::Retry),
            };
        }
        self.facility
    }
}

#[cfg(test)]
mod tests;
