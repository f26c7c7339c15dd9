//! The manager: Raft, CA, API, scheduler loops, dispatcher. Runs as an unprivileged child of `shoald`.
#![forbid(unsafe_code)]

pub mod api;
pub mod authz;
pub mod ca;
pub mod clock;
pub mod config;
pub mod consensus;
pub mod counters;
pub mod dispatcher;
pub mod leader;
pub mod limits;
pub mod liveness;
pub mod manager;
pub mod metrics;
pub mod proposer;
pub mod raft;
pub mod run;
pub mod seal;
pub mod server;
pub mod tls;
