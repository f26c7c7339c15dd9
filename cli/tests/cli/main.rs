//! The real `shoal` against fake daemons on unix sockets: what it asks for, prints and exits with.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod changes;
mod failures;
mod fake;
mod lists;
mod run;
mod swarm;
mod waits;
