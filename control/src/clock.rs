//! The one place of the manager that reads the wall clock; pure code gets the result as an argument.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

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
