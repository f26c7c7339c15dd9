//! Times as people and scripts read them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Milliseconds since the epoch.
pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// `40s`, `2m`, `3h`, `5d`: one unit, rounded down.
pub(crate) fn short(time: Duration) -> String {
    let s = time.as_secs();
    match s {
        0..60 => format!("{s}s"),
        60..3600 => format!("{}m", s / 60),
        3600..86400 => format!("{}h", s / 3600),
        _ => format!("{}d", s / 86400),
    }
}

/// Time since `then_ms`, at `now_ms`; `-` when there is no time.
pub(crate) fn age(then_ms: u64, now_ms: u64) -> String {
    if then_ms == 0 { "-".to_owned() } else { short(Duration::from_millis(now_ms.saturating_sub(then_ms))) }
}

/// Time until `then_ms`: `in 3h`, `over` when past.
pub(crate) fn until(then_ms: u64, now_ms: u64) -> String {
    match then_ms.checked_sub(now_ms) {
        Some(left) if left > 0 => format!("in {}", short(Duration::from_millis(left))),
        _ => "over".to_owned(),
    }
}

/// RFC 3339 in UTC with milliseconds; empty for 0.
pub(crate) fn rfc3339(ms: u64) -> String {
    if ms == 0 {
        return String::new();
    }
    let (days, rest) = (ms / 86_400_000, ms % 86_400_000);
    let (year, month, day) = civil(days);
    let (h, m) = (rest / 3_600_000, rest / 60_000 % 60);
    let (s, ms) = (rest / 1000 % 60, rest % 1000);
    format!("{year:04}-{month:02}-{day:02}T{h:02}:{m:02}:{s:02}.{ms:03}Z")
}

/// Days since 1970-01-01 to (year, month, day) of the Gregorian calendar, counting eras of 400 years from a March.
fn civil(days: u64) -> (u64, u64, u64) {
    let z = days + 719_468;
    let (era, day_of_era) = (z / 146_097, z % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        for (ms, text) in [
            (0, ""),
            (1, "1970-01-01T00:00:00.001Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (1_772_359_920_500, "2026-03-01T10:12:00.500Z"),
            (4_102_444_799_999, "2099-12-31T23:59:59.999Z"),
        ] {
            assert_eq!(rfc3339(ms), text);
        }
    }

    #[test]
    fn spans() {
        for (s, text) in [(0, "0s"), (59, "59s"), (60, "1m"), (7199, "1h"), (86_400, "1d"), (864_000, "10d")]
        {
            assert_eq!(short(Duration::from_secs(s)), text);
        }
        assert_eq!(age(0, 5), "-");
        assert_eq!(age(9, 5), "0s");
        assert_eq!(until(61_000, 1000), "in 1m");
        assert_eq!(until(1000, 1000), "over");
    }
}
