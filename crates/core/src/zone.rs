//! Time zones: when a day or a month begins and ends, and when a time of day comes next.
//!
//! The table of zones is part of the binary, so that a server without one knows them, and every server the same. What is decided
//! is replicated in unix milliseconds: another table elsewhere changes nothing that was decided.

use jiff::civil::Time;
use jiff::tz::{TimeZone, TimeZoneDatabase};
use jiff::{Timestamp, Zoned};

use crate::error::{Error, Result};
use crate::parse::MAX_INSTANT_MS;

/// The longest name of a zone, in bytes: the longest there is has 32.
pub const MAX_ZONE_BYTES: usize = 64;

/// A time zone of the IANA database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Zone(TimeZone);

/// UTC.
impl Default for Zone {
    fn default() -> Self {
        Self(TimeZone::UTC)
    }
}

impl Zone {
    /// A client's name of a zone, such as `UTC` or `Europe/Berlin`, whatever its case.
    ///
    /// # Errors
    /// [`Error::Invalid`] if there is none of this name.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let name = str::from_utf8(bytes).ok().filter(|name| (1..=MAX_ZONE_BYTES).contains(&name.len()));
        name.and_then(|name| TimeZoneDatabase::bundled().get(name).ok()).map(Self).ok_or(Error::Invalid {
            what: "TZ",
            accepted: "a time zone of the IANA database such as UTC or Europe/Berlin",
        })
    }

    /// Its name, as the database spells it.
    #[must_use]
    pub fn name(&self) -> &str {
        self.0.iana_name().unwrap_or("UTC")
    }

    /// The first instant after the day that `now_ms` lies in, in unix milliseconds.
    #[must_use]
    pub fn day_end_ms(&self, now_ms: u64) -> u64 {
        // The next midnight, or the end of the gap that it lies in.
        self.after(now_ms, |now| now.tomorrow()?.start_of_day())
    }

    /// The first instant after the month that `now_ms` lies in, in unix milliseconds.
    #[must_use]
    pub fn month_end_ms(&self, now_ms: u64) -> u64 {
        self.after(now_ms, |now| now.last_of_month()?.tomorrow()?.start_of_day())
    }

    /// The day that an instant lies in, counted from 1970-01-01, which is 0; so is what lies before it.
    #[must_use]
    pub fn day(&self, at_ms: u64) -> u32 {
        const DAY_SECONDS: i64 = 24 * 60 * 60;
        let at = i64::try_from(at_ms).ok().and_then(|at_ms| Timestamp::from_millisecond(at_ms).ok());
        let at = at.unwrap_or(Timestamp::MAX);
        let local = at.as_second() + i64::from(self.0.to_offset(at).seconds());
        u32::try_from(local.div_euclid(DAY_SECONDS)).unwrap_or(0)
    }

    /// When this time of day comes next, strictly after `now_ms`, in unix milliseconds. A time that a day leaves out comes as much
    /// later as clocks were put forward; of one that comes twice it is the first.
    #[must_use]
    pub fn next_time_ms(&self, time: Time, now_ms: u64) -> u64 {
        self.after(now_ms, |now| {
            let today = now.date().to_datetime(time).to_zoned(self.0.clone())?;
            if today > *now { Ok(today) } else { now.date().tomorrow()?.to_datetime(time).to_zoned(self.0.clone()) }
        })
    }

    /// What `next` makes of now; the end of time where the calendar ends.
    fn after(&self, now_ms: u64, next: impl FnOnce(&Zoned) -> Result<Zoned, jiff::Error>) -> u64 {
        let now = i64::try_from(now_ms).ok().and_then(|now_ms| Timestamp::from_millisecond(now_ms).ok());
        let next = now.and_then(|now| next(&now.to_zoned(self.0.clone())).ok());
        let next = next.and_then(|next| u64::try_from(next.timestamp().as_millisecond()).ok());
        // Where clocks once went back across midnight, a day seems to end before it does.
        next.unwrap_or(MAX_INSTANT_MS).max(now_ms + 1)
    }
}

/// A day as [`Zone::day`] counts them, as people write it: `2026-11-22`.
#[must_use]
pub fn day_text(day: u32) -> String {
    let epoch = jiff::civil::date(1970, 1, 1);
    let days = jiff::Span::new().try_days(day).ok();
    days.and_then(|days| epoch.checked_add(days).ok()).unwrap_or(jiff::civil::Date::MAX).to_string()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::parse::rfc3339_ms;

    fn ms(text: &str) -> u64 {
        rfc3339_ms(text.as_bytes()).unwrap()
    }

    fn zone(name: &str) -> Zone {
        Zone::parse(name.as_bytes()).unwrap()
    }

    #[test]
    fn zones_are_those_of_the_database() {
        for (given, name) in [
            ("UTC", "UTC"),
            ("utc", "UTC"),
            ("europe/berlin", "Europe/Berlin"),
            ("America/New_York", "America/New_York"),
        ] {
            assert_eq!(zone(given).name(), name);
        }
        assert_eq!(Zone::default().name(), "UTC");
        for bytes in [&b""[..], b"Mars/Olympus", b"+02:00", b"Europe/Berlin\0", b"\xff", b"../etc/passwd", &[b'a'; 65]]
        {
            assert!(matches!(Zone::parse(bytes), Err(Error::Invalid { what: "TZ", .. })), "{bytes:?}");
        }
    }

    #[test]
    fn days_and_months_end_at_midnight_of_the_zone() {
        for (name, now, day, month) in [
            ("UTC", "2026-02-10T00:00:00Z", "2026-02-11T00:00:00Z", "2026-03-01T00:00:00Z"),
            ("UTC", "2026-02-28T23:59:59.999Z", "2026-03-01T00:00:00Z", "2026-03-01T00:00:00Z"),
            ("UTC", "2028-02-28T12:00:00Z", "2028-02-29T00:00:00Z", "2028-03-01T00:00:00Z"),
            ("UTC", "2026-12-31T12:00:00Z", "2027-01-01T00:00:00Z", "2027-01-01T00:00:00Z"),
            // 23:30 UTC is past midnight in Berlin.
            ("Europe/Berlin", "2026-01-31T23:30:00Z", "2026-02-01T23:00:00Z", "2026-02-28T23:00:00Z"),
            // Days of 23 and of 25 hours.
            ("Europe/Berlin", "2026-03-29T12:00:00Z", "2026-03-29T22:00:00Z", "2026-03-31T22:00:00Z"),
            ("Europe/Berlin", "2026-10-25T12:00:00Z", "2026-10-25T23:00:00Z", "2026-10-31T23:00:00Z"),
            // Midnight did not exist on that day in Beirut.
            ("Asia/Beirut", "2022-03-26T12:00:00Z", "2022-03-26T22:00:00Z", "2022-03-31T21:00:00Z"),
        ] {
            assert_eq!(zone(name).day_end_ms(ms(now)), ms(day), "day of {now} in {name}");
            assert_eq!(zone(name).month_end_ms(ms(now)), ms(month), "month of {now} in {name}");
        }
    }

    #[test]
    fn a_time_of_day_comes_today_or_tomorrow() {
        let four = jiff::civil::time(16, 0, 0, 0);
        for (name, now, next) in [
            ("UTC", "2026-02-10T15:59:59Z", "2026-02-10T16:00:00Z"),
            ("UTC", "2026-02-10T16:00:00Z", "2026-02-11T16:00:00Z"),
            ("America/New_York", "2026-02-10T20:30:00Z", "2026-02-10T21:00:00Z"),
            ("America/New_York", "2026-12-31T21:30:00Z", "2027-01-01T21:00:00Z"),
        ] {
            assert_eq!(zone(name).next_time_ms(four, ms(now)), ms(next), "{now} in {name}");
        }
        // 02:30 does not exist on that day, and comes twice on this one.
        let half_past_two = jiff::civil::time(2, 30, 0, 0);
        let berlin = zone("Europe/Berlin");
        assert_eq!(berlin.next_time_ms(half_past_two, ms("2026-03-29T00:00:00Z")), ms("2026-03-29T01:30:00Z"));
        assert_eq!(berlin.next_time_ms(half_past_two, ms("2026-10-24T23:00:00Z")), ms("2026-10-25T00:30:00Z"));
    }

    #[test]
    fn a_day_is_that_of_the_calendar_in_the_zone() {
        for (name, at, day) in [
            ("UTC", "1970-01-01T00:00:00Z", 0),
            ("America/New_York", "1970-01-01T00:00:00Z", 0),
            ("UTC", "2026-11-22T23:59:59.999Z", 20_779),
            ("UTC", "2026-11-23T00:00:00Z", 20_780),
            ("Europe/Berlin", "2026-11-22T22:59:59.999Z", 20_779),
            ("Europe/Berlin", "2026-11-22T23:00:00Z", 20_780),
            ("America/New_York", "2026-11-23T04:59:59.999Z", 20_779),
        ] {
            assert_eq!(zone(name).day(ms(at)), day, "{at} in {name}");
        }
        assert_eq!(zone("UTC").day(u64::MAX), zone("UTC").day(MAX_INSTANT_MS));
        assert_eq!(day_text(20_779), "2026-11-22");
        assert_eq!(day_text(0), "1970-01-01");
        assert_eq!(day_text(u32::MAX), "9999-12-31");
    }

    proptest! {
        #[test]
        fn what_comes_next_lies_ahead(now_ms in 0..MAX_INSTANT_MS - 40 * 86_400_000, index in 0..5_usize, hour in 0..24_i8) {
            let names = ["UTC", "Europe/Berlin", "America/St_Johns", "Pacific/Apia", "Asia/Kathmandu"];
            let zone = zone(names[index]);
            let (day, month) = (zone.day_end_ms(now_ms), zone.month_end_ms(now_ms));
            // Samoa once left a whole day out.
            prop_assert!(day > now_ms && day <= now_ms + 49 * 3_600_000);
            prop_assert!(month >= day && month <= now_ms + 33 * 86_400_000);
            let next = zone.next_time_ms(jiff::civil::time(hour, 0, 0, 0), now_ms);
            prop_assert!(next > now_ms && next <= now_ms + 51 * 3_600_000);
        }

        #[test]
        fn parsing_is_total(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = Zone::parse(&bytes);
        }
    }
}
