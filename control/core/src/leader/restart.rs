//! The restart policy: whether, when and how often an ended or unhealthy task is replaced in its slot.

use shoal_types::object::{Health, Service, Task, TaskState, Timestamp};
use shoal_types::spec::RestartCondition;

use crate::state::State;

/// What the policy says of an ended or unhealthy task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It stays as it ended.
    Never,
    /// The attempts are used up until then.
    NotYet(Timestamp),
    /// A new task takes the slot.
    Restart {
        /// Its earliest start.
        not_before: Timestamp,
        /// Whether it counts as an attempt.
        counts: bool,
    },
}

pub(super) fn verdict(state: &State, service: &Service, ended: &Task, now: Timestamp) -> Verdict {
    let policy = ended.spec.restart;
    // Lost with its node, or outdated anyway: no doing of its own, so no delay and no limit.
    if ended.status.state == TaskState::Orphaned || ended.task_version < service.task_version {
        return Verdict::Restart { not_before: now, counts: false };
    }
    let wanted = match policy.condition {
        RestartCondition::None => false,
        RestartCondition::OnFailure => ended.status.state != TaskState::Complete,
        RestartCondition::Any => true,
    };
    if !wanted {
        return Verdict::Never;
    }
    if let Some(refusal) = used_up(state, ended, now) {
        return refusal;
    }
    // One that is unhealthy has not ended: it is looked at once, when that is told.
    let end = if ended.status.state.is_terminal() { ended.status.since } else { now };
    let ran_ms = state.track(&ended.id).running.map_or(0, |(_, since)| end.since_ms(since));
    let lasted = ran_ms > policy.delay_ms;
    let not_before = if lasted { now } else { Timestamp(end.0.saturating_add(policy.delay_ms)).max(now) };
    Verdict::Restart { not_before, counts: true }
}

/// The refusal, when the slot has had as many attempts as the policy allows within its window.
fn used_up(state: &State, ended: &Task, now: Timestamp) -> Option<Verdict> {
    let policy = ended.spec.restart;
    let limit = usize::try_from(policy.max_attempts).unwrap_or(usize::MAX);
    let history = state.restarts.get(&(ended.service.clone(), ended.slot.clone()))?;
    if limit == 0 || history.task_version != ended.task_version || history.at.len() < limit {
        return None;
    }
    if policy.window_ms == 0 {
        return Some(Verdict::Never);
    }
    // The limit-th youngest attempt has to leave the window before there may be another.
    let oldest = history.at.iter().rev().nth(limit - 1)?;
    let free_at = Timestamp(oldest.0.saturating_add(policy.window_ms));
    (free_at > now).then_some(Verdict::NotYet(free_at))
}

/// Why the new task was made, for the operator.
pub(super) fn reason(service: &Service, ended: &Task, not_before: Timestamp, now: Timestamp) -> String {
    let name = format!("{}.{}", service.spec.name, ended.slot);
    let how = match (ended.status.state, ended.status.exit_code) {
        (TaskState::Orphaned, _) => "lost its node".to_owned(),
        (state, _) if !state.is_terminal() && ended.status.health == Health::Unhealthy => {
            "was unhealthy".to_owned()
        }
        (TaskState::Rejected, _) => "could not be started".to_owned(),
        (_, Some(code)) => format!("ended with exit code {code}"),
        (_, None) => "ended".to_owned(),
    };
    match not_before.since_ms(now) {
        0 => format!("{name} {how}"),
        wait => format!("{name} {how}; starts again after {} s", wait.div_ceil(1_000)),
    }
}
