//! What a node should hold, what it holds, and the ordered way from one to the other. Pure: no I/O, no clock, no
//! randomness; a plan is a value that can be printed, checked and tested.
//!
//! [`desired::derive`] turns an assignment and a few facts of the host into [`Objects`]; the drivers observe the
//! same kind of set in the kernel; [`plan()`] is the difference between them, make before break, in [`Phase`]s;
//! [`check`] proves the rules of a plan. [`health`] judges the answers to health checks.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod check;
pub mod desired;
mod diff;
pub mod doors;
pub mod health;
pub mod name;
pub mod object;
mod phase;
pub mod ports;
pub mod probe;
mod slice;

pub use desired::{EgressFacts, Engine, Facts, Uplink};
pub use diff::{Op, Plan, plan, veth_owners};
pub use name::IfName;
pub use object::{Key, Object, Objects};
pub use phase::Phase;
pub use slice::{Slice, Step, steps};

#[cfg(test)]
mod tests;
