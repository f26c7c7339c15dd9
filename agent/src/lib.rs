//! shoald, the node daemon.

pub mod api;
pub mod cleanup;
pub mod config;
pub mod dial;
pub mod doctor;
pub mod drivers;
pub mod durable;
pub mod facility;
pub mod facts;
mod health;
pub mod in_use;
pub mod ledger;
pub mod limits;
pub mod memory;
pub mod metrics;
pub mod mounts;
pub mod netns;
pub mod node;
pub mod notify;
pub mod pki;
pub mod probe;
pub mod reconciler;
pub mod session;
mod shadow;
pub mod stats;
pub mod supervisor;
