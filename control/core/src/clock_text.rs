//! Points in time as an operator reads them.

use shoal_types::object::Timestamp;

/// `2026-03-01 10:12` in UTC (the calendar of Howard Hinnant's `civil_from_days`).
pub(crate) fn utc(at: Timestamp) -> String {
    let minutes = at.0 / 60_000;
    let (days, minute_of_day) = (minutes / 1_440, minutes % 1_440);
    // Days since 0000-03-01, so that a leap day is the last of its year.
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}", minute_of_day / 60, minute_of_day % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_instants() {
        assert_eq!(utc(Timestamp(0)), "1970-01-01 00:00");
        assert_eq!(utc(Timestamp(951_782_400_000)), "2000-02-29 00:00");
        assert_eq!(utc(Timestamp(1_772_359_920_000)), "2026-03-01 10:12");
        // A clock that went mad must not take the manager with it.
        assert!(!utc(Timestamp(u64::MAX)).is_empty());
    }
}
