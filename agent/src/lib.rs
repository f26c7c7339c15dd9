//! shoald, the node daemon.

pub mod drivers;
pub mod netns;
pub mod durable;
pub mod facility;
pub mod facts;
pub mod ledger;
pub mod pki;
pub mod stats;
pub mod reconciler;
