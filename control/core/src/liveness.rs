//! Two-stage failure detection as a function of the last contact; the clock is the caller's.

use shoal_types::object::{NodeState, Timestamp};

/// The two thresholds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LivenessConfig {
    /// Without contact for so long: out of the load balancers, reversible.
    pub suspect_after_ms: u64,
    /// Without contact for so long: its tasks are replaced.
    pub down_after_ms: u64,
}

impl Default for LivenessConfig {
    fn default() -> Self {
        Self { suspect_after_ms: 2_000, down_after_ms: 10_000 }
    }
}

/// What a leader knows of its contact with one node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Contact {
    /// State in the replicated state.
    pub state: NodeState,
    /// Last heartbeat that *this* leader got; `None` when it has had none yet.
    pub last: Option<Timestamp>,
    /// When this leader was elected: silence counts from here at the earliest.
    pub leader_since: Timestamp,
}

impl Contact {
    fn silent_since(self) -> Timestamp {
        self.last.unwrap_or_default().max(self.leader_since)
    }
}

/// The state a node should be in. Only a heartbeat makes a node ready; silence only ever makes it worse.
pub fn judge(contact: Contact, now: Timestamp, config: &LivenessConfig) -> NodeState {
    let silence = now.since_ms(contact.silent_since());
    match contact.state {
        // It never had a session: there is nothing to take out of the load balancers.
        NodeState::Unknown if contact.last.is_none() => NodeState::Unknown,
        NodeState::Down if contact.last.is_none() => NodeState::Down,
        _ if silence >= config.down_after_ms => NodeState::Down,
        NodeState::Down if silence >= config.suspect_after_ms => NodeState::Down,
        _ if silence >= config.suspect_after_ms => NodeState::Suspect,
        state if contact.last.is_none() => state,
        _ => NodeState::Ready,
    }
}

/// When [`judge`] will next give another answer if nothing is heard.
pub fn next_deadline(contact: Contact, now: Timestamp, config: &LivenessConfig) -> Option<Timestamp> {
    if contact.last.is_none() && matches!(contact.state, NodeState::Unknown | NodeState::Down) {
        return None;
    }
    let since = contact.silent_since().0;
    [config.suspect_after_ms, config.down_after_ms]
        .into_iter()
        .map(|after| Timestamp(since.saturating_add(after)))
        .find(|at| *at > now)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: LivenessConfig = LivenessConfig { suspect_after_ms: 2_000, down_after_ms: 10_000 };

    fn contact(state: NodeState, last: Option<u64>, leader_since: u64) -> Contact {
        Contact { state, last: last.map(Timestamp), leader_since: Timestamp(leader_since) }
    }

    #[test]
    fn silence_makes_a_node_suspect_then_down() {
        let c = contact(NodeState::Ready, Some(1_000), 0);
        assert_eq!(judge(c, Timestamp(2_999), &CONFIG), NodeState::Ready);
        assert_eq!(judge(c, Timestamp(3_000), &CONFIG), NodeState::Suspect);
        assert_eq!(judge(c, Timestamp(11_000), &CONFIG), NodeState::Down);
        assert_eq!(next_deadline(c, Timestamp(1_000), &CONFIG), Some(Timestamp(3_000)));
        assert_eq!(next_deadline(c, Timestamp(3_000), &CONFIG), Some(Timestamp(11_000)));
        assert_eq!(next_deadline(c, Timestamp(11_000), &CONFIG), None);
    }

    #[test]
    fn a_heartbeat_brings_a_node_back_from_any_state() {
        for state in [NodeState::Unknown, NodeState::Suspect, NodeState::Down] {
            assert_eq!(judge(contact(state, Some(50_000), 0), Timestamp(50_100), &CONFIG), NodeState::Ready);
        }
    }

    #[test]
    fn a_new_leader_gives_everyone_a_fresh_grace_period() {
        let c = contact(NodeState::Ready, None, 100_000);
        assert_eq!(judge(c, Timestamp(101_999), &CONFIG), NodeState::Ready);
        assert_eq!(judge(c, Timestamp(102_000), &CONFIG), NodeState::Suspect);
        assert_eq!(judge(c, Timestamp(110_000), &CONFIG), NodeState::Down);
        let suspect = contact(NodeState::Suspect, None, 100_000);
        assert_eq!(
            judge(suspect, Timestamp(100_001), &CONFIG),
            NodeState::Suspect,
            "silence never makes ready"
        );
        let down = contact(NodeState::Down, None, 100_000);
        assert_eq!(judge(down, Timestamp(100_001), &CONFIG), NodeState::Down);
    }
}
