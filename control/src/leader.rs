//! The leader's loops, driven: ask the pure planner what is next, propose it, sleep until something changes.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use shoal_core::leader;
use tokio::time::{Instant, sleep, sleep_until};

use crate::consensus::until_leading;
use crate::manager::Manager;

/// Between two rounds at least: changes that come together are looked at together.
const PAUSE: Duration = Duration::from_millis(5);
/// After a round that came to nothing (no leader, refused commands).
const SETBACK: Duration = Duration::from_millis(200);
/// A full look even when nothing happened: a lost wake-up costs latency, never correctness.
const SWEEP: Duration = Duration::from_secs(1);

/// How a round ended.
#[derive(Debug, PartialEq, Eq)]
enum Round {
    /// Nothing to do.
    AtRest,
    /// Commands were applied; the next look follows the change they made.
    Progress,
    /// Commands were refused or not written.
    Setback,
}

/// Plans and proposes until stopped; only while this manager leads.
pub async fn run(manager: Arc<Manager>) {
    let mut state = manager.consensus.state();
    let mut leadership = manager.consensus.leadership();
    let mut programmed = manager.sessions.watch();
    loop {
        // Cancel safe: a token and a watch.
        tokio::select! {
            () = manager.stop.cancelled() => return,
            led = until_leading(&mut leadership, true) => if led.is_none() { return },
        }
        let started = Instant::now();
        state.mark_unchanged();
        programmed.mark_unchanged();
        let round = round(&manager).await;
        let wake = started + wake_after(&manager, &round);
        let pause = if round == Round::Setback { SETBACK } else { PAUSE };
        sleep(pause).await;
        // Cancel safe: watches, a token and a timer. A change during the pause is seen here at once.
        tokio::select! {
            () = manager.stop.cancelled() => return,
            changed = state.changed() => if changed.is_err() { return },
            changed = programmed.changed() => if changed.is_err() { return },
            _ = until_leading(&mut leadership, false) => {}
            () = sleep_until(wake) => {}
        }
    }
}

fn wake_after(manager: &Manager, round: &Round) -> Duration {
    if *round != Round::AtRest {
        return SETBACK;
    }
    let now = manager.consensus.log_time();
    let view = manager.now();
    let deadline = leader::next_deadline(&view.state, now);
    deadline.map_or(SWEEP, |at| Duration::from_millis(at.since_ms(now)).min(SWEEP))
}

async fn round(manager: &Manager) -> Round {
    let view = manager.now();
    let commands =
        leader::plan(&view.state, manager.consensus.log_time(), &manager.leader_view(), &mut || {
            rand::random::<u128>()
        });
    if commands.is_empty() {
        return Round::AtRest;
    }
    let kinds: Vec<_> = commands.iter().map(shoal_core::Command::kind).collect();
    match manager.proposer.propose_all(commands).await {
        Ok(verdicts) => {
            let mut accepted = false;
            for (kind, verdict) in kinds.into_iter().zip(verdicts) {
                match verdict {
                    Ok(outcome) => {
                        accepted = true;
                        tracing::debug!(kind, ?outcome, "leader command applied");
                    }
                    Err(rejection) => {
                        manager.counters.leader_rejections.fetch_add(1, Ordering::Relaxed);
                        tracing::debug!(kind, %rejection, "leader command refused");
                    }
                }
            }
            if accepted { Round::Progress } else { Round::Setback }
        }
        Err(error) => {
            tracing::warn!(%error, "leader commands not written");
            Round::Setback
        }
    }
}
