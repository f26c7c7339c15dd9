//! The one place of the manager that reads the wall clock; pure code gets the result as an argument.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use shoal_types::Timestamp;

/// Milliseconds since the epoch.
pub fn now() -> Timestamp {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    Timestamp(u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX))
}

/// The same instant for libraries that want the standard library's type.
pub fn system_time(at: Timestamp) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(at.0)
}

/// Time for the log: the wall clock, but never behind what the log has seen. Set back, it goes on at the pace of the
/// monotonic clock until the wall has caught up; else a pause of five seconds could last an hour.
#[derive(Debug)]
pub struct LogClock {
    anchor: Mutex<(Timestamp, Instant)>,
}

impl Default for LogClock {
    fn default() -> Self {
        Self { anchor: Mutex::new((Timestamp(0), Instant::now())) }
    }
}

impl LogClock {
    /// The time to stamp, when the log has seen `latest`.
    pub fn now(&self, latest: Timestamp) -> Timestamp {
        self.at(latest, now(), Instant::now())
    }

    fn at(&self, latest: Timestamp, wall: Timestamp, monotonic: Instant) -> Timestamp {
        let mut anchor = self.anchor.lock().unwrap_or_else(PoisonError::into_inner);
        let passed = monotonic.saturating_duration_since(anchor.1).as_millis();
        let steady = Timestamp(anchor.0.0.saturating_add(u64::try_from(passed).unwrap_or(u64::MAX)));
        let time = steady.max(wall).max(latest);
        if time > steady {
            *anchor = (time, monotonic);
        }
        time
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_time_follows_the_wall_and_never_goes_back() {
        let clock = LogClock::default();
        let start = Instant::now();
        let at = |latest, wall, after| {
            clock.at(Timestamp(latest), Timestamp(wall), start + Duration::from_millis(after)).0
        };
        assert_eq!(at(0, 1_000_000, 0), 1_000_000);
        assert_eq!(at(0, 1_000_500, 500), 1_000_500);
        assert_eq!(at(0, 10, 600), 1_000_600, "set back by a quarter of an hour");
        assert_eq!(at(0, 110, 700), 1_000_700, "and on at the pace of time");
        assert_eq!(at(5_000_000, 210, 800), 5_000_000, "another leader was ahead");
        assert_eq!(at(5_000_000, 310, 900), 5_000_100);
        assert_eq!(at(5_000_100, 6_000_000, 1_000), 6_000_000, "the wall is ahead again");
    }
}
