//! Numbers, durations and points in time as clients write them.
//!
//! Nothing is rounded or guessed: what is not exactly one of the accepted forms is an error. The predecessor took
//! `30 minutes` for an hour.

use jiff::civil::Time;

use crate::error::{Error, Result};
use crate::limit::MAX_WINDOW_MS;
use crate::zone::Zone;

/// The last instant that an instant may name: the end of the year 9999, in unix milliseconds.
pub const MAX_INSTANT_MS: u64 = 253_402_300_799_999;

const DURATION: &str = "500ms, 30s, 5m, 2h, 7d or whole seconds, from 1ms to 366d";
const DURATION_WITH_UNIT: &str = "500ms, 30s, 5m, 2h or 7d, from 1ms to 366d";
const UNTIL: &str =
    "a time that lies ahead: 16:00, 4:00 PM or 4 PM in the store's time zone, unix seconds, or RFC 3339";
const INSTANT: &str = "unix seconds, or RFC 3339 such as 2026-01-31T12:00:00Z, from 1970 to 9999";

/// A plain decimal number: digits only, leading zeros allowed. None for anything else, overflow included.
#[must_use]
pub fn unsigned(bytes: &[u8]) -> Option<u64> {
    if bytes.is_empty() {
        return None;
    }
    bytes.iter().try_fold(0_u64, |value, byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        value.checked_mul(10)?.checked_add(digit)
    })
}

/// A duration in milliseconds: `500ms`, `30s`, `5m`, `2h`, `7d` (the unit in any case), or a bare number of seconds.
///
/// # Errors
/// [`Error::Invalid`] for `what` unless it is one of these forms and from 1 ms to [`MAX_WINDOW_MS`].
pub fn duration_ms(bytes: &[u8], what: &'static str) -> Result<u64> {
    let in_seconds = || unsigned(bytes)?.checked_mul(1000);
    with_unit(bytes)
        .or_else(in_seconds)
        .filter(|ms| (1..=MAX_WINDOW_MS).contains(ms))
        .ok_or(Error::Invalid { what, accepted: DURATION })
}

/// As [`duration_ms`], but a bare number is refused: for the places where Redis's own commands take seconds or
/// milliseconds, so that a bare number would be a guess.
///
/// # Errors
/// [`Error::Invalid`] for `what`, as there.
pub fn duration_with_unit_ms(bytes: &[u8], what: &'static str) -> Result<u64> {
    with_unit(bytes)
        .filter(|ms| (1..=MAX_WINDOW_MS).contains(ms))
        .ok_or(Error::Invalid { what, accepted: DURATION_WITH_UNIT })
}

/// A point in time in unix milliseconds: unix seconds, or RFC 3339. `0` gives 0, which stands for "never".
///
/// The past is accepted. Fractions of a millisecond are dropped, and an RFC 3339 time inside the first millisecond of 1970
/// gives 1: it is long past, and must not turn into "never".
///
/// # Errors
/// [`Error::Invalid`] for `what` when it is neither, before 1970 or after 9999.
pub fn instant_ms(bytes: &[u8], what: &'static str) -> Result<u64> {
    let in_seconds = || unsigned(bytes)?.checked_mul(1000);
    in_seconds()
        .or_else(|| rfc3339_ms(bytes).map(|ms| ms.max(1)))
        .filter(|ms| *ms <= MAX_INSTANT_MS)
        .ok_or(Error::Invalid { what, accepted: INSTANT })
}

/// When something is to end, in unix milliseconds: a time of day in a zone, `16:00`, `4:00 PM` or `4 PM`, which comes today or
/// tomorrow; or a point in time as [`instant_ms`] takes it.
///
/// One that has passed is refused: what ends before it begins is a mistake, and a block that never holds would look like one.
///
/// # Errors
/// [`Error::Invalid`] for `what`.
pub fn until_ms(bytes: &[u8], what: &'static str, zone: &Zone, now_ms: u64) -> Result<u64> {
    let time = time_of_day(bytes).map(|time| zone.next_time_ms(time, now_ms));
    time.or_else(|| instant_ms(bytes, what).ok())
        .filter(|until_ms| *until_ms > now_ms)
        .ok_or(Error::Invalid { what, accepted: UNTIL })
}

/// `16:00` or `09:30:15`, from 00:00 to 23:59:59; or `4:00 PM`, `4 pm` or `12:30am`, from 1 to 12.
fn time_of_day(bytes: &[u8]) -> Option<Time> {
    let (clock, afternoon) = match bytes {
        [clock @ .., half @ (b'A' | b'a' | b'P' | b'p'), b'M' | b'm'] => {
            (clock.strip_suffix(b" ").unwrap_or(clock), Some(half.eq_ignore_ascii_case(&b'P')))
        }
        _ => (bytes, None),
    };
    let mut parts = clock.split(|byte| *byte == b':');
    let hour = parts.next().filter(|hour| hour.len() <= 2).and_then(unsigned)?;
    let mut sixtieth = || match parts.next() {
        None => Some(None),
        Some(part) => unsigned(part).filter(|_| part.len() == 2).map(Some),
    };
    let (minute, second) = (sixtieth()?, sixtieth()?);
    let hour = match afternoon {
        // A number alone is unix seconds.
        None => minute.map(|_| hour),
        Some(afternoon) => (1..=12).contains(&hour).then_some(hour % 12 + if afternoon { 12 } else { 0 }),
    }?;
    if parts.next().is_some() {
        return None;
    }
    let part = |value: u64| i8::try_from(value).ok();
    Time::new(part(hour)?, part(minute.unwrap_or(0))?, part(second.unwrap_or(0))?, 0).ok()
}

fn with_unit(bytes: &[u8]) -> Option<u64> {
    let digits = bytes.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (number, unit) = bytes.split_at_checked(digits)?;
    let unit_ms = match unit {
        [b'm' | b'M', b's' | b'S'] => 1,
        [b's' | b'S'] => 1000,
        [b'm' | b'M'] => 60 * 1000,
        [b'h' | b'H'] => 60 * 60 * 1000,
        [b'd' | b'D'] => 24 * 60 * 60 * 1000,
        _ => return None,
    };
    unsigned(number)?.checked_mul(unit_ms)
}

/// RFC 3339 in unix milliseconds, rounded down; None also before 1970.
///
/// The parser takes only the date and the time. What lies round them is checked here, since it would also take the basic
/// format and missing seconds; and its own instants end a day before the year 9999 does, which many write for "never".
pub(crate) fn rfc3339_ms(bytes: &[u8]) -> Option<u64> {
    let (start, _) = bytes.split_first_chunk::<19>()?;
    let shaped = std::iter::zip(start, b"dddd-dd-ddTdd:dd:dd").all(|(byte, shape)| match shape {
        b'd' => byte.is_ascii_digit(),
        b'T' => matches!(byte, b'T' | b't' | b' '),
        other => byte == other,
    });
    let (date_time, offset_minutes) = match bytes {
        [date_time @ .., b'Z' | b'z'] => (date_time, 0),
        [date_time @ .., sign @ (b'+' | b'-'), h1, h2, b':', m1, m2] => {
            let (hours, minutes) = (unsigned(&[*h1, *h2])?, unsigned(&[*m1, *m2])?);
            if hours > 23 || minutes > 59 {
                return None;
            }
            let offset_minutes = i64::try_from(hours * 60 + minutes).ok()?;
            (date_time, if *sign == b'-' { -offset_minutes } else { offset_minutes })
        }
        _ => return None,
    };
    let fraction = match date_time.get(start.len()..)? {
        [] | [b'.', _, ..] => date_time.get(start.len() + 1..).unwrap_or_default(),
        _ => return None,
    };
    if !(shaped && fraction.iter().all(u8::is_ascii_digit)) {
        return None;
    }
    let local: jiff::civil::DateTime = str::from_utf8(date_time).ok()?.parse().ok()?;
    let since_1970 = local.duration_since(jiff::civil::date(1970, 1, 1).at(0, 0, 0, 0));
    let ns = since_1970.as_nanos() - i128::from(offset_minutes) * 60 * 1_000_000_000;
    // Before the division, which would round the last millisecond before 1970 up into it.
    if ns < 0 {
        return None;
    }
    u64::try_from(ns / 1_000_000).ok()
}

/// A point in time as RFC 3339 writes it, in UTC; `seconds` since 1970.
#[must_use]
pub fn rfc3339(seconds: u64) -> String {
    let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
    jiff::Timestamp::from_second(seconds).unwrap_or(jiff::Timestamp::MAX).to_string()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check<T: PartialEq + std::fmt::Debug>(parse: impl Fn(&[u8]) -> Option<T>, cases: &[(&str, Option<T>)]) {
        for (text, expected) in cases {
            assert_eq!(parse(text.as_bytes()), *expected, "{text:?}");
        }
    }

    const NO: Option<u64> = None;

    #[test]
    fn an_unsigned_number_is_digits_and_nothing_else() {
        check(
            unsigned,
            &[
                ("0", Some(0)),
                ("007", Some(7)),
                ("18446744073709551615", Some(u64::MAX)),
                ("00000000000000000000000000001", Some(1)),
                ("18446744073709551616", NO),
                ("99999999999999999999999999", NO),
                ("", NO),
                ("+1", NO),
                ("-1", NO),
                ("1.0", NO),
                ("1e3", NO),
                (" 1", NO),
                ("1 ", NO),
                ("0x10", NO),
                ("\u{0661}", NO),
            ],
        );
    }

    #[test]
    fn a_duration_is_whole_units_within_the_longest_window() {
        let valid = [
            ("1", 1000),
            ("60", 60_000),
            ("1ms", 1),
            ("500ms", 500),
            ("30s", 30_000),
            ("5m", 300_000),
            ("2h", 7_200_000),
            ("7d", 604_800_000),
            ("2H", 7_200_000),
            ("10Ms", 10),
            ("366d", MAX_WINDOW_MS),
            ("31622400", MAX_WINDOW_MS),
            ("007s", 7000),
        ];
        let invalid = [
            "",
            "0",
            "0ms",
            "0d",
            "-1",
            "-1s",
            "+1s",
            "1.5s",
            "1 s",
            "s",
            "ms",
            "1w",
            "1y",
            "1us",
            "1mss",
            "30 minutes",
            "1s2",
            "367d",
            "31622401",
            "18446744073709551615",
            "18446744073709551615d",
            "213503982335d",
            "1\0s",
        ];
        for (text, ms) in valid {
            assert_eq!(duration_ms(text.as_bytes(), "window"), Ok(ms), "{text:?}");
            let bare = text.bytes().all(|byte| byte.is_ascii_digit());
            assert_eq!(duration_with_unit_ms(text.as_bytes(), "window").ok(), (!bare).then_some(ms), "{text:?}");
        }
        for text in invalid {
            let refused = |accepted| Err(Error::Invalid { what: "window", accepted });
            assert_eq!(duration_ms(text.as_bytes(), "window"), refused(DURATION), "{text:?}");
            assert_eq!(duration_with_unit_ms(text.as_bytes(), "window"), refused(DURATION_WITH_UNIT), "{text:?}");
        }
    }

    #[test]
    fn an_instant_is_unix_seconds_or_rfc_3339() {
        check(
            |bytes| instant_ms(bytes, "EXPIREAT").ok(),
            &[
                ("0", Some(0)),
                ("1", Some(1000)),
                ("1700000000", Some(1_700_000_000_000)),
                ("253402300799", Some(253_402_300_799_000)),
                ("2026-01-01T00:00:00Z", Some(1_767_225_600_000)),
                ("2026-01-01t00:00:00z", Some(1_767_225_600_000)),
                ("2026-01-01 00:00:00Z", Some(1_767_225_600_000)),
                ("2026-01-01T01:00:00+01:00", Some(1_767_225_600_000)),
                ("2025-12-31T19:00:00-05:00", Some(1_767_225_600_000)),
                ("2026-01-01T00:00:00.123Z", Some(1_767_225_600_123)),
                ("2026-01-01T00:00:00.1239999Z", Some(1_767_225_600_123)),
                ("1970-01-01T00:00:00Z", Some(1)),
                ("1970-01-01T00:00:00.0009Z", Some(1)),
                ("9999-12-31T23:59:59.999Z", Some(MAX_INSTANT_MS)),
                ("9999-12-31T23:59:59+01:00", Some(253_402_297_199_000)),
                ("2026-01-01T00:00:00.1-00:00", Some(1_767_225_600_100)),
                ("1969-12-31T23:59:59-00:01", Some(59_000)),
                ("9999-12-31T23:59:59-00:01", NO),
                ("253402300800", NO),
                ("18446744073709551615", NO),
                ("-1", NO),
                ("1.5", NO),
                ("1969-12-31T23:59:59Z", NO),
                ("1969-12-31T23:59:59.9999999Z", NO),
                ("10000-01-01T00:00:00Z", NO),
                ("2026-13-01T00:00:00Z", NO),
                ("2026-02-29T00:00:00Z", NO),
                ("2026-01-01T24:00:00Z", NO),
                ("2026-01-01T00:00:00", NO),
                ("2026-01-01T00:00Z", NO),
                ("2026-01-01", NO),
                ("20260101T000000Z", NO),
                ("2026-01-01T00:00:00+01", NO),
                ("2026-01-01T00:00:00+01:00[Europe/Berlin]", NO),
                ("2026-01-01T00:00:00-05:00[UTC]Z", NO),
                ("2026-01-01T00:00:00+24:00", NO),
                ("2026-01-01T00:00:00+01:60", NO),
                ("2026-01-01T00:00:00.Z", NO),
                ("2026-01-01T00:00:00.1.1Z", NO),
                ("2026-01-01T00:00:00,1Z", NO),
                ("2026-01-01T00:00:00ZZ", NO),
                ("2026-01-01T00:00:00Z+01:00", NO),
                ("2026-01-01T00:00:0Z", NO),
                ("+002026-01-01T00:00:00Z", NO),
                ("tomorrow", NO),
                ("", NO),
            ],
        );
    }

    #[test]
    fn an_end_is_a_time_of_day_or_an_instant_that_lies_ahead() {
        let now_ms = rfc3339_ms(b"2026-02-10T15:00:00Z").unwrap();
        let until = |text: &str, zone: &str| {
            until_ms(text.as_bytes(), "UNTIL", &Zone::parse(zone.as_bytes()).unwrap(), now_ms).ok()
        };
        for (text, zone, expected) in [
            ("16:00", "UTC", "2026-02-10T16:00:00Z"),
            ("15:00", "UTC", "2026-02-11T15:00:00Z"),
            ("15:00:01", "UTC", "2026-02-10T15:00:01Z"),
            ("4:00 PM", "UTC", "2026-02-10T16:00:00Z"),
            ("4 PM", "UTC", "2026-02-10T16:00:00Z"),
            ("4pm", "UTC", "2026-02-10T16:00:00Z"),
            ("04:30 pm", "UTC", "2026-02-10T16:30:00Z"),
            ("4:00", "UTC", "2026-02-11T04:00:00Z"),
            ("4 AM", "UTC", "2026-02-11T04:00:00Z"),
            ("12 AM", "UTC", "2026-02-11T00:00:00Z"),
            ("12:30 PM", "UTC", "2026-02-11T12:30:00Z"),
            ("00:00", "UTC", "2026-02-11T00:00:00Z"),
            ("23:59:59", "UTC", "2026-02-10T23:59:59Z"),
            ("16:00", "America/New_York", "2026-02-10T21:00:00Z"),
            ("9:00", "America/New_York", "2026-02-11T14:00:00Z"),
            ("16:00", "Asia/Kathmandu", "2026-02-11T10:15:00Z"),
            ("2026-02-10T15:00:01+00:00", "America/New_York", "2026-02-10T15:00:01Z"),
            ("1770735601", "UTC", "2026-02-10T15:00:01Z"),
        ] {
            assert_eq!(until(text, zone), rfc3339_ms(expected.as_bytes()), "{text} in {zone}");
        }
        for text in [
            "",
            "0",
            "4",
            "16",
            "30 minutes",
            "30m",
            "24:00",
            "16:60",
            "16:00:60",
            "16:0",
            "16:000",
            "016:00",
            "16:00:00:00",
            "16:",
            ":00",
            "0 PM",
            "0:30 AM",
            "13 PM",
            "16:00 PM",
            "4  PM",
            "4 P.M.",
            " 4 PM",
            "4 PM ",
            "PM",
            " PM",
            "4:00 XM",
            "noon",
            "tomorrow",
            "-4 PM",
            "16.00",
            "1770735600",
            "2026-02-10T15:00:00Z",
            "2026-02-10",
            "253402300800",
        ] {
            assert_eq!(until(text, "UTC"), None, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn every_parser_is_total(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            let _ = (unsigned(&bytes), duration_ms(&bytes, "x"), duration_with_unit_ms(&bytes, "x"), instant_ms(&bytes, "x"));
            let _ = until_ms(&bytes, "x", &Zone::default(), 5);
        }

        #[test]
        fn near_misses_of_a_time_of_day_are_total(text in "[0-9]{0,3}(:[0-9]{0,3}){0,3} ?[apAP]?[mM]?", now_ms in 0..MAX_INSTANT_MS) {
            if let Ok(until_ms) = until_ms(text.as_bytes(), "x", &Zone::default(), now_ms) {
                prop_assert!(now_ms < until_ms && until_ms <= MAX_INSTANT_MS);
            }
        }

        #[test]
        fn near_misses_of_rfc_3339_are_total(text in "[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(\\.[0-9]{0,12})?(Z|[+-][0-9]{2}:[0-9]{2})") {
            if let Ok(ms) = instant_ms(text.as_bytes(), "x") {
                prop_assert!((1..=MAX_INSTANT_MS).contains(&ms));
            }
        }

        #[test]
        fn any_number_reads_back(value: u64) {
            prop_assert_eq!(unsigned(value.to_string().as_bytes()), Some(value));
        }
    }
}
