//! Who is silent: the leader turns contact into node states.

use std::sync::Arc;
use std::time::Duration;

use shoal_core::Command;
use shoal_core::liveness::{Contact, LivenessConfig, judge};
use shoal_types::Timestamp;
use shoal_types::object::NodeState;

use crate::manager::Manager;

const TICK: Duration = Duration::from_millis(200);
/// When this process itself was away for so long (stopped, starved), it has heard nobody and may judge nobody.
const OWN_ABSENCE_MS: u64 = 1_000;
/// Time that nodes have to find a new leader before their silence counts. Without it a manager that starts again
/// would take every node out of the load balancers that is still waiting to dial.
const RECONNECT_MS: u64 = 5_000;

/// Judges until stopped; only while this manager leads.
pub async fn run(manager: Arc<Manager>, config: LivenessConfig) {
    let mut leadership = manager.consensus.leadership();
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut leader_since: Option<Timestamp> = None;
    let mut last_tick = manager.sessions.monotonic();
    loop {
        // Cancel safe: a token and a timer.
        tokio::select! {
            () = manager.stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let now = manager.sessions.monotonic();
        let was_away = now.since_ms(last_tick) > OWN_ABSENCE_MS;
        last_tick = now;
        if !leadership.borrow_and_update().is_self {
            leader_since = None;
            continue;
        }
        if leader_since.is_none() || was_away {
            manager.sessions.forget_contacts();
            leader_since = Some(now);
        }
        let commands = verdicts(&manager, leader_since.unwrap_or(now), now, &config);
        if commands.is_empty() {
            continue;
        }
        if let Err(error) = manager.proposer.propose_all(commands).await {
            tracing::warn!(%error, "node states not written");
        }
    }
}

fn verdicts(
    manager: &Manager,
    leader_since: Timestamp,
    now: Timestamp,
    config: &LivenessConfig,
) -> Vec<Command> {
    let view = manager.now();
    let unheard_since = Timestamp(leader_since.0.saturating_add(RECONNECT_MS));
    manager.sessions.retain(|id| view.state.nodes().contains_key(id));
    let mut commands = Vec::new();
    for node in view.state.nodes().values() {
        let last = manager.sessions.last_contact(&node.id);
        let leader_since = if last.is_none() { unheard_since } else { leader_since };
        let contact = Contact { state: node.state, last, leader_since };
        let state = judge(contact, now, config);
        // Only a hello makes a node ready for the first time: it brings what the scheduler has to know.
        let early = node.state == NodeState::Unknown && state == NodeState::Ready;
        if state != node.state && !early {
            tracing::info!(node = %node.id, name = %node.name, from = ?node.state, to = ?state, "node state");
            commands.push(Command::SetNodeState { id: node.id.clone(), state });
        }
    }
    commands
}
