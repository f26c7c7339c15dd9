//! The leader's loops as one function: the state and the time in, commands out. Applying them and asking again
//! comes to rest; on a state at rest the answer is empty.

use std::collections::BTreeMap;

use shoal_types::id::NodeId;
use shoal_types::object::Timestamp;

use crate::command::Command;
use crate::state::State;

/// Commands per call at most; what is left follows with the next call.
pub const COMMANDS_PER_CALL: usize = 256;

/// What the leader knows beside the replicated state.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LeaderView {
    /// Highest log index that each connected node has programmed into its kernel. A node whose assignment did not
    /// change has programmed that index too.
    pub applied: BTreeMap<NodeId, u64>,
}

/// What has to be done next. Call it again after its commands were applied, after every other change, and at
/// [`next_deadline`].
pub fn plan(state: &State, now: Timestamp, view: &LeaderView, ids: &mut dyn FnMut() -> u128) -> Vec<Command> {
    let _ = (state, now, view, ids);
    Vec::new()
}

/// When [`plan`] will have something to do although nothing else happens.
pub fn next_deadline(state: &State, now: Timestamp) -> Option<Timestamp> {
    let _ = (state, now);
    None
}
