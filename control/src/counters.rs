//! What the manager counts, in one place; names as in the metrics.

use std::sync::atomic::AtomicU64;

/// Counters of one manager process.
#[derive(Debug, Default)]
pub struct Counters {
    /// Handshakes that failed.
    pub tls_failures: AtomicU64,
    /// Connections refused because there were too many.
    pub connections_refused: AtomicU64,
    /// Calls refused for want of a role.
    pub authz_denied: AtomicU64,
    /// Joins accepted.
    pub joins: AtomicU64,
    /// Joins refused.
    pub joins_refused: AtomicU64,
    /// Join secrets that were not compared because the token was tried too often.
    pub joins_metered: AtomicU64,
    /// Commands of the leader's loops that the state refused.
    pub leader_rejections: AtomicU64,
}
