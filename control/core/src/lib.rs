//! The control plane as pure functions: a deterministic state machine and the decisions of its leader.
//!
//! ```text
//! State::apply(index, Entry{now, request_id, command}) -> Outcome | Rejection     the log, applied everywhere
//! leader::plan(state, now, view, ids) -> commands                                 what the leader proposes next
//! assignment::for_node(state, node, index) -> Assignment                          what a node is told
//! view::*                                                                         what an operator asks
//! ```
//!
//! Nothing here reads a clock, draws randomness or does I/O: time, ids and contact come in as arguments.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod addresses;
mod apply;
pub mod assignment;
mod clock_text;
pub mod command;
mod hash;
mod host_ports;
mod index;
mod ipam;
pub mod leader;
pub mod liveness;
mod ports;
pub mod rejection;
mod requests;
mod some_of;
mod state;
mod subnets;
pub mod view;

pub use command::{Command, Entry, Outcome};
pub use hash::digest;
pub use leader::LeaderView;
pub use rejection::{Kind, Rejection};
pub use some_of::some_of;
pub use state::State;

#[cfg(test)]
mod tests;
