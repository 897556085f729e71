//! Times as SQLAlchemy and SQLite write them into text columns, and back.

use jiff::SignedDuration;
use jiff::civil::DateTime;
use jiff::fmt::temporal::Pieces;
use keyguard_core::parse::MAX_INSTANT_MS;

const EPOCH: DateTime = DateTime::constant(1970, 1, 1, 0, 0, 0, 0);

/// The longest text that is looked at: all that Python writes is shorter.
const MAX_TEXT_BYTES: usize = 48;

/// `2026-11-22 12:00:00.123000` in UTC, as SQLAlchemy writes a DATETIME: its comparisons are those of the texts. None after the year
/// 9999.
pub fn sqlalchemy(at_ms: u64) -> Option<String> {
    let at = civil(at_ms)?;
    let micros = at.subsec_nanosecond() / 1_000;
    Some(format!("{}.{micros:06}", seconds_of(&at)))
}

/// `2026-11-22 12:00:00`, as CURRENT_TIMESTAMP gives it.
pub fn seconds(at_ms: u64) -> Option<String> {
    civil(at_ms).as_ref().map(seconds_of)
}

/// `20261122T120000Z`, for names of files.
pub fn compact(at_ms: u64) -> Option<String> {
    let at = civil(at_ms)?;
    let (year, month, day) = (at.year(), at.month(), at.day());
    Some(format!("{year:04}{month:02}{day:02}T{:02}{:02}{:02}Z", at.hour(), at.minute(), at.second()))
}

/// `2026-11-22` of the days since 1970-01-01.
pub fn date(day: i32) -> Option<String> {
    let at = EPOCH.checked_add(SignedDuration::from_hours(i64::from(day) * 24)).ok()?;
    Some(format!("{:04}-{:02}-{:02}", at.year(), at.month(), at.day()))
}

/// Unix milliseconds of what Python writes: a date and a time with a space or `T` between, with or without a fraction, with or
/// without an offset; without one it is UTC. None for anything else, and before 1970.
pub fn parse(text: &str) -> Option<u64> {
    let pieces = (text.len() <= MAX_TEXT_BYTES).then(|| Pieces::parse(text).ok()).flatten()?;
    if pieces.time_zone_annotation().is_some() {
        return None;
    }
    let offset = pieces.to_numeric_offset().map_or(0, |offset| i64::from(offset.seconds()));
    let local = DateTime::from_parts(pieces.date(), pieces.time()?).duration_since(EPOCH);
    let at = local.checked_sub(SignedDuration::from_secs(offset))?;
    u64::try_from(at.as_millis()).ok().filter(|at_ms| *at_ms <= MAX_INSTANT_MS && !at.is_negative())
}

fn civil(at_ms: u64) -> Option<DateTime> {
    EPOCH.checked_add(SignedDuration::from_millis(i64::try_from(at_ms).ok()?)).ok()
}

fn seconds_of(at: &DateTime) -> String {
    let (year, month, day) = (at.year(), at.month(), at.day());
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}", at.hour(), at.minute(), at.second())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn times_are_written_as_python_writes_them() {
        let at_ms = 1_795_348_800_123;
        assert_eq!(sqlalchemy(at_ms).unwrap(), "2026-11-22 12:00:00.123000");
        assert_eq!(seconds(at_ms).unwrap(), "2026-11-22 12:00:00");
        assert_eq!(compact(at_ms).unwrap(), "20261122T120000Z");
        assert_eq!(date(20_779).unwrap(), "2026-11-22");
        assert_eq!(sqlalchemy(0).unwrap(), "1970-01-01 00:00:00.000000");
        assert_eq!(sqlalchemy(MAX_INSTANT_MS).unwrap(), "9999-12-31 23:59:59.999000");
        assert_eq!(sqlalchemy(MAX_INSTANT_MS + 1), None);
        assert_eq!(sqlalchemy(u64::MAX), None);
        assert_eq!(date(i32::MAX), None);
        assert_eq!(date(i32::MIN), None);
    }

    #[test]
    fn times_are_read_in_every_form_that_python_gives_them() {
        let noon = 1_795_348_800_000;
        for (text, expected) in [
            ("2026-11-22 12:00:00", Some(noon)),
            ("2026-11-22T12:00:00", Some(noon)),
            ("2026-11-22 12:00:00.123000", Some(noon + 123)),
            ("2026-11-22 12:00:00.123999", Some(noon + 123)),
            ("2026-11-22T12:00:00Z", Some(noon)),
            ("2026-11-22 12:00:00+00:00", Some(noon)),
            ("2026-11-22 14:30:00.5+02:30", Some(noon + 500)),
            ("2026-11-22T07:00:00-05:00", Some(noon)),
            ("1970-01-01 00:00:00", Some(0)),
            ("9999-12-31 23:59:59.999999", Some(MAX_INSTANT_MS)),
            ("9999-12-31 23:59:59-01:00", None),
            ("1969-12-31 23:59:59.999", None),
            ("2026-11-22", None),
            ("2026-11-22 12:00:00[Europe/Berlin]", None),
            ("2026-13-22 12:00:00", None),
            ("2026-02-30 12:00:00", None),
            ("1795348800", None),
            ("", None),
            ("never", None),
        ] {
            assert_eq!(parse(text), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn every_time_reads_back(at_ms in 0..=MAX_INSTANT_MS) {
            let text = sqlalchemy(at_ms).unwrap();
            prop_assert_eq!(text.len(), 26);
            prop_assert_eq!(parse(&text), Some(at_ms));
            prop_assert_eq!(parse(&seconds(at_ms).unwrap()), Some(at_ms / 1_000 * 1_000));
        }

        #[test]
        fn reading_is_total(text in "\\PC{0,50}") {
            let _ = parse(&text);
        }
    }
}
