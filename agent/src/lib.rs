//! shoald, the node daemon.

pub mod drivers;
pub mod netns;
