//! What the daemon counts about itself, read by the local API and the metrics.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use shoal_types::LbInUse;
use tokio::sync::watch;

use crate::drivers::dns::{DnsMetrics, Told};
use crate::drivers::link::Writes;
use crate::durable::Unkept;
use crate::in_use::{MapFill, ServiceUse};
use crate::probe::Probes;

/// Counters and gauges of a running daemon.
#[derive(Debug, Default)]
pub struct Stats {
    /// Writes to the kernel.
    pub writes: Writes,
    /// Generation in the ledger.
    pub generation: AtomicU64,
    /// Generation that is programmed.
    pub applied: AtomicU64,
    /// Objects found in place when the daemon started.
    pub adopted: AtomicU64,
    /// Time the last pass took, in microseconds.
    pub last_pass_us: AtomicU64,
    /// Passes that changed something or tried to.
    pub passes: AtomicU64,
    /// Since when there is a session, in milliseconds of Unix time; 0 without one.
    pub session_since_ms: AtomicU64,
    /// When the node's certificate was issued, in milliseconds of Unix time.
    pub cert_issued_ms: AtomicU64,
    /// End of the node certificate's life, in milliseconds of Unix time.
    pub cert_expires_ms: AtomicU64,
    /// What resolvers count.
    pub dns: DnsMetrics,
    /// Whether a session keeps the node up to date.
    pub told: Told,
    /// What probes of other nodes tell.
    pub probes: Probes,
    /// Programs of tasks that run.
    pub tasks_running: AtomicU64,
    /// Programs of the host that published ports leave nothing to, a line each.
    pub shadowed: watch::Sender<Vec<String>>,
    /// Files that could not be written.
    pub unkept: Unkept,
    uplink_addrs: Mutex<BTreeSet<IpAddr>>,
    checks: Mutex<BTreeMap<&'static str, u64>>,
    drift: Mutex<BTreeMap<&'static str, u64>>,
    drops: Mutex<BTreeMap<&'static str, u64>>,
    packets: Mutex<Vec<(&'static str, &'static str, u64)>>,
    connects: Mutex<Option<BTreeMap<&'static str, u64>>>,
    maps: Mutex<Vec<MapFill>>,
    services: Mutex<BTreeMap<(String, String), ServiceUse>>,
    warnings: Mutex<Vec<String>>,
    lb: Mutex<LbInUse>,
}

impl Stats {
    /// An object was found changed by somebody else and put right.
    pub fn drift_repaired(&self, kind: &'static str) {
        *self.drift.lock().unwrap_or_else(PoisonError::into_inner).entry(kind).or_default() += 1;
    }

    /// A health check was answered, or wasn't.
    pub fn health_checked(&self, result: &'static str) {
        *self.checks.lock().unwrap_or_else(PoisonError::into_inner).entry(result).or_default() += 1;
    }

    /// Health checks by result.
    pub fn health_checks(&self) -> BTreeMap<&'static str, u64> {
        self.checks.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Drift repairs by kind of object.
    pub fn drift(&self) -> BTreeMap<&'static str, u64> {
        self.drift.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Packets the programs dropped, by reason.
    pub fn drops(&self) -> BTreeMap<&'static str, u64> {
        self.drops.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes over what the programs counted.
    pub fn set_drops(&self, drops: BTreeMap<&'static str, u64>) {
        *self.drops.lock().unwrap_or_else(PoisonError::into_inner) = drops;
    }

    /// What each program did with how many packets: program, event, packets.
    pub fn packets(&self) -> Vec<(&'static str, &'static str, u64)> {
        self.packets.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes over what the programs counted.
    pub fn set_packets(&self, packets: Vec<(&'static str, &'static str, u64)>) {
        *self.packets.lock().unwrap_or_else(PoisonError::into_inner) = packets;
    }

    /// Connections that were led to an endpoint when they were made, by family; `None` while none are led.
    pub fn connects(&self) -> Option<BTreeMap<&'static str, u64>> {
        self.connects.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes over how many connections were led.
    pub fn set_connects(&self, connects: Option<BTreeMap<&'static str, u64>>) {
        *self.connects.lock().unwrap_or_else(PoisonError::into_inner) = connects;
    }

    /// How full the programs' maps were at the last sweep.
    pub fn maps(&self) -> Vec<MapFill> {
        self.maps.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What each service carried at the last sweep, by its name and the network's.
    pub fn services(&self) -> BTreeMap<(String, String), ServiceUse> {
        self.services.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes over how full maps are.
    pub fn set_maps(&self, maps: Vec<MapFill>) {
        *self.maps.lock().unwrap_or_else(PoisonError::into_inner) = maps;
    }

    /// Takes over what services carry.
    pub fn set_services(&self, services: BTreeMap<(String, String), ServiceUse>) {
        *self.services.lock().unwrap_or_else(PoisonError::into_inner) = services;
    }

    /// What is not as it should be now.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = self.warnings.lock().unwrap_or_else(PoisonError::into_inner).clone();
        warnings.extend(self.unkept.warnings());
        warnings
    }

    /// Takes over what is not as it should be.
    pub fn set_warnings(&self, warnings: Vec<String>) {
        *self.warnings.lock().unwrap_or_else(PoisonError::into_inner) = warnings;
    }

    /// How the node balances.
    pub fn lb(&self) -> LbInUse {
        *self.lb.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes over how the node balances.
    pub fn set_lb(&self, lb: LbInUse) {
        *self.lb.lock().unwrap_or_else(PoisonError::into_inner) = lb;
    }

    /// Takes over which programs of the host get nothing. The same again wakes nobody.
    pub fn set_shadowed(&self, lines: Vec<String>) {
        self.shadowed.send_if_modified(|last| {
            let news = *last != lines;
            if news && !lines.is_empty() {
                tracing::warn!(?lines, "published ports shadow listeners of the host");
            }
            *last = lines;
            news
        });
    }

    /// The addresses that clients come in by.
    pub fn uplink_addrs(&self) -> BTreeSet<IpAddr> {
        self.uplink_addrs.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes over the addresses that clients come in by.
    pub fn set_uplink_addrs(&self, addrs: BTreeSet<IpAddr>) {
        *self.uplink_addrs.lock().unwrap_or_else(PoisonError::into_inner) = addrs;
    }

    /// Reads a gauge.
    pub fn get(gauge: &AtomicU64) -> u64 {
        gauge.load(Ordering::Relaxed)
    }

    /// Sets a gauge.
    pub fn set(gauge: &AtomicU64, value: u64) {
        gauge.store(value, Ordering::Relaxed);
    }
}
