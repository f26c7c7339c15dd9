//! Hosts as network namespaces: the fixture under the scenarios, the demo and the benches.
//!
//! A [`Host`] is a namespace, a [`Lan`] joins hosts over a bridge, a [`Run`] is a program started inside one. All of it
//! ends with its handle; [`Residue`] proves that nothing stayed. Names carry the id of the process that made them, so
//! any number of fixtures run side by side on one machine.
//!
//! Needs root and `ip`.

mod command;
mod host;
mod lan;
mod residue;
mod wait;

pub use command::{Process, Run, kill_hard};
pub use host::{Host, prefix};
pub use lan::{DEVICE, Lan, Place};
pub use residue::{Residue, sweep_stale};
pub use wait::wait_for;
