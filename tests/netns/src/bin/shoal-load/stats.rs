//! Percentiles over every sample taken, not over buckets.

use std::time::Duration;

/// Durations in nanoseconds, as measured.
#[derive(Default)]
pub(crate) struct Samples(Vec<u32>);

impl Samples {
    pub(crate) fn push(&mut self, sample: Duration) {
        self.0.push(u32::try_from(sample.as_nanos()).unwrap_or(u32::MAX));
    }

    pub(crate) fn append(&mut self, mut other: Self) {
        self.0.append(&mut other.0);
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The sample below which `percent` of all samples lie, in microseconds.
    pub(crate) fn percentile_us(&mut self, percent: usize) -> f64 {
        if self.0.is_empty() {
            return 0.0;
        }
        self.0.sort_unstable();
        let index = (self.0.len() * percent / 100).min(self.0.len() - 1);
        f64::from(self.0[index]) / 1000.0
    }
}

/// Events per second.
pub(crate) fn rate(events: usize, elapsed: Duration) -> f64 {
    let events = u32::try_from(events).unwrap_or(u32::MAX);
    f64::from(events) / elapsed.as_secs_f64()
}
