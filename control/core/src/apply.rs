//! Commands applied to the state.
use crate::command::{Command, Outcome};
use crate::rejection::Rejection;
use crate::state::State;
use shoal_types::object::Timestamp;

/// Where and when an entry is applied.
#[derive(Debug, Clone, Copy)]
pub(crate) struct At {
    pub(crate) index: u64,
    pub(crate) now: Timestamp,
}

pub(crate) fn command(state: &mut State, at: At, command: &Command) -> Result<Outcome, Rejection> {
    let _ = (state, at, command);
    Err(Rejection::NotInitialized)
}
