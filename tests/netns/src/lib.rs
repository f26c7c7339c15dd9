//! Hosts as network namespaces: the fixture under the scenarios, the demo and the benches.
//!
//! A [`Host`] is a namespace, a [`Lan`] joins hosts over a bridge, a [`Run`] is a program started inside one. All of it
//! ends with its handle; [`Residue`] proves that nothing stayed. Names carry the id of the process that made them, so
//! any number of fixtures run side by side on one machine. A [`Node`] is a host with a `shoald`, a [`Swarm`] three of them
//! and a client; [`Traffic`] runs while something else happens and reports every gap.
//!
//! Needs root and `ip`.

mod capabilities;
mod command;
mod group;
mod host;
mod lan;
mod node;
pub mod pinned;
mod residue;
mod scrub;
mod swarm;
mod traffic;
mod view;
mod wait;

pub use capabilities::{Need, wanted_engine};
pub use command::{Process, Run, kill_hard};
pub use group::Groups;
pub use host::{Host, enter, prefix};
pub use lan::{DEVICE, Lan, Place};
pub use node::{Node, Programs};
pub use residue::{Residue, sweep_stale};
pub use swarm::Swarm;
pub use traffic::{Answers, Traffic, ask, ask_by, ask_from, ask_greeted_by, transfer_by};
pub use view::{Attachment, Names, Task, dig};
pub use wait::{slowness, wait_for};
