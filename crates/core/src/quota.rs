//! Quotas: how many units in a calendar day, in a calendar month, or in all.
//!
//! A limit slides, a quota does not: it is full again when the day or month of the store's time zone ends. When that is, is decided
//! once, at the first use in a period, and kept with the count: a store that gets another time zone ends the running periods when
//! it said it would.

use arrayvec::ArrayVec;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::limiter::Retry;
use crate::zone::Zone;

/// The most quotas of one record.
pub const MAX_QUOTAS: usize = 8;

const DAY_MS: u64 = 24 * 60 * 60 * 1000;

/// After what time a quota is full again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Period {
    /// After the calendar day.
    Day,
    /// After the calendar month.
    Month,
    /// Never.
    Total,
}

impl Period {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Day, Self::Month, Self::Total];

    /// A client's word, whatever its case.
    ///
    /// # Errors
    /// [`Error::Invalid`].
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|known| bytes.eq_ignore_ascii_case(known.as_str().as_bytes()))
            .ok_or(Error::Invalid { what: "QUOTA", accepted: "a number of units, then day, month or total" })
    }

    /// The word that replies, options and readable fields use.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Day => "day",
            Self::Month => "month",
            Self::Total => "total",
        }
    }

    /// When the period ends that `now_ms` lies in, in unix milliseconds; None is never.
    #[must_use]
    pub fn end_ms(self, zone: &Zone, now_ms: u64) -> Option<u64> {
        match self {
            Self::Day => Some(zone.day_end_ms(now_ms)),
            Self::Month => Some(zone.month_end_ms(now_ms)),
            Self::Total => None,
        }
    }

    /// It never lasts longer, in milliseconds: an end that lies further ahead was decided under a wrong clock. Where clocks are put
    /// back, a day lasts up to some hours more.
    const fn longest_ms(self) -> u64 {
        match self {
            Self::Day => 2 * DAY_MS,
            Self::Month => 33 * DAY_MS,
            Self::Total => u64::MAX,
        }
    }

    pub(crate) const fn packed(self) -> u8 {
        match self {
            Self::Day => 0,
            Self::Month => 1,
            Self::Total => 2,
        }
    }

    pub(crate) fn unpacked(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|period| period.packed() == byte)
    }
}

/// At most so many units in a period.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota<'a> {
    /// How many units.
    pub count: u64,
    /// In what period.
    pub period: Period,
    /// What it counts.
    pub unit: &'a str,
}

impl std::fmt::Display for Quota<'_> {
    /// As descriptions of records show it: `100000 month requests`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} {}", self.count, self.period.as_str(), self.unit)
    }
}

/// The quotas of one record, at most one for each period and unit.
pub type Quotas<'a> = ArrayVec<Quota<'a>, MAX_QUOTAS>;

/// Adds a quota to those that a client gave.
///
/// # Errors
/// [`Error::TooManyItems`]; [`Error::Repeated`] for a second one of the same period and unit.
pub fn add<'a>(quotas: &mut Quotas<'a>, quota: Quota<'a>) -> Result<()> {
    if quotas.iter().any(|other| (other.period, other.unit) == (quota.period, quota.unit)) {
        return Err(Error::Repeated { option: "QUOTA of a period and unit" });
    }
    quotas.try_push(quota).map_err(|_| Error::TooManyItems { what: "quotas", max: MAX_QUOTAS })
}

/// What was used in a period.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Used {
    /// When the period ends, in unix milliseconds; None is never.
    pub until_ms: Option<u64>,
    /// How many units.
    pub units: u64,
}

impl Used {
    /// Whether the count is that of the running period.
    fn counts(&self, period: Period, now_ms: u64) -> bool {
        self.until_ms.is_none_or(|until_ms| now_ms < until_ms && until_ms - now_ms <= period.longest_ms())
    }
}

/// What becomes of a call that costs so many units of a quota.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuotaVerdict {
    /// The quota's count.
    pub count: u64,
    /// What was used of it before.
    pub used: u64,
    /// What the call costs.
    pub cost: u64,
    /// When the running period ends, in unix milliseconds; None is never.
    pub until_ms: Option<u64>,
    /// Whether the call fits, and when it may come back if not.
    pub retry: Retry,
}

impl QuotaVerdict {
    /// Decides on a quota, of which `used` is what was counted last.
    ///
    /// # Errors
    /// Those of `zone`, which is asked only when a new period begins.
    pub fn on(
        quota: &Quota<'_>,
        used: Option<Used>,
        cost: u64,
        now_ms: u64,
        zone: &dyn Fn() -> Result<Zone>,
    ) -> Result<Self> {
        let used = match used.filter(|used| used.counts(quota.period, now_ms)) {
            Some(used) => used,
            None if quota.period == Period::Total => Used { until_ms: None, units: 0 },
            None => Used { until_ms: quota.period.end_ms(&zone()?, now_ms), units: 0 },
        };
        let fits = used.units.saturating_add(cost) <= quota.count;
        let retry = match used.until_ms {
            // What costs nothing is never too much.
            _ if fits || cost == 0 => Retry::Granted,
            Some(until_ms) if cost <= quota.count => Retry::After(until_ms - now_ms),
            _ => Retry::Never,
        };
        Ok(Self { count: quota.count, used: used.units, cost, until_ms: used.until_ms, retry })
    }

    /// Whether the call fits.
    #[must_use]
    pub fn granted(&self) -> bool {
        self.retry == Retry::Granted
    }

    /// Units left before the call.
    #[must_use]
    pub const fn remaining_before(&self) -> u64 {
        self.count.saturating_sub(self.used)
    }

    /// Units left when all is done: after the cost if the call fits.
    #[must_use]
    pub fn remaining(&self) -> u64 {
        self.remaining_before().saturating_sub(if self.granted() { self.cost } else { 0 })
    }

    /// Of two verdicts on parts of one call, the one to tell: a refusal before a grant, then the longest wait, or the fewest units
    /// remaining; ties go to `self`.
    #[must_use]
    pub fn matters_more_than(&self, other: &Self) -> bool {
        let mine = (self.retry, self.granted().then(|| std::cmp::Reverse(self.remaining())));
        let theirs = (other.retry, other.granted().then(|| std::cmp::Reverse(other.remaining())));
        mine >= theirs
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::parse::rfc3339_ms;

    fn ms(text: &str) -> u64 {
        rfc3339_ms(text.as_bytes()).unwrap()
    }

    fn utc() -> Result<Zone> {
        Ok(Zone::default())
    }

    const DAILY: Quota<'_> = Quota { count: 10, period: Period::Day, unit: "requests" };

    #[test]
    fn a_period_has_one_of_three_names() {
        for period in Period::ALL {
            assert_eq!(Period::parse(period.as_str().to_uppercase().as_bytes()), Ok(period));
            assert_eq!(Period::unpacked(period.packed()), Some(period));
        }
        for bytes in [&b""[..], b"days", b"week", b"30d"] {
            assert!(matches!(Period::parse(bytes), Err(Error::Invalid { .. })));
        }
        assert_eq!(Period::unpacked(3), None);
    }

    #[test]
    fn a_record_has_one_quota_of_a_period_and_unit() {
        let mut quotas = Quotas::new();
        assert_eq!(add(&mut quotas, DAILY), Ok(()));
        assert!(matches!(add(&mut quotas, Quota { count: 11, ..DAILY }), Err(Error::Repeated { .. })));
        assert_eq!(add(&mut quotas, Quota { unit: "tokens", ..DAILY }), Ok(()));
        let units = ["a", "b", "c", "d", "e", "f"];
        assert!(units.iter().all(|unit| add(&mut quotas, Quota { unit, ..DAILY }).is_ok()));
        assert!(matches!(add(&mut quotas, Quota { unit: "g", ..DAILY }), Err(Error::TooManyItems { .. })));
    }

    #[test]
    fn what_is_used_counts_until_its_period_ends() {
        let now = ms("2026-02-10T12:00:00Z");
        let end = ms("2026-02-11T00:00:00Z");
        let on = |units, until_ms, cost, now_ms| {
            QuotaVerdict::on(&DAILY, Some(Used { until_ms: Some(until_ms), units }), cost, now_ms, &utc).unwrap()
        };
        for (units, until_ms, cost, now_ms, used, retry) in [
            (9, end, 1, now, 9, Retry::Granted),
            (10, end, 1, now, 10, Retry::After(end - now)),
            (10, end, 1, end - 1, 10, Retry::After(1)),
            (10, end, 1, end, 0, Retry::Granted),
            (10, end, 0, now, 10, Retry::Granted),
            (0, end, 11, now, 0, Retry::Never),
            // A quota that was lowered, and a count that was made while the clock was wrong.
            (50, end, 1, now, 50, Retry::After(end - now)),
            (10, ms("2036-01-01T00:00:00Z"), 1, now, 0, Retry::Granted),
            (10, ms("2026-02-21T00:00:00Z"), 1, now, 0, Retry::Granted),
        ] {
            let verdict = on(units, until_ms, cost, now_ms);
            assert_eq!((verdict.used, verdict.retry), (used, retry), "{units} {cost} {now_ms}");
        }
        assert_eq!(on(9, end, 1, now).remaining(), 0);
        assert_eq!(on(10, end, 1, end).until_ms, Some(ms("2026-02-12T00:00:00Z")));
    }

    #[test]
    fn a_total_never_comes_back() {
        let total = Quota { count: 2, period: Period::Total, unit: "requests" };
        let on = |used: Option<u64>, cost| {
            let used = used.map(|units| Used { until_ms: None, units });
            QuotaVerdict::on(&total, used, cost, 5, &|| panic!("no zone is asked")).unwrap()
        };
        assert_eq!((on(None, 1).retry, on(None, 1).remaining()), (Retry::Granted, 1));
        assert_eq!(on(Some(2), 1).retry, Retry::Never);
        assert_eq!(on(Some(u64::MAX), u64::MAX).retry, Retry::Never);
    }

    #[test]
    fn a_refusal_matters_more_and_then_the_longest_wait_or_the_fewest_left() {
        let verdict = |used, retry| QuotaVerdict { count: 10, used, cost: 1, until_ms: None, retry };
        let order = [
            verdict(10, Retry::Never),
            verdict(10, Retry::After(9)),
            verdict(10, Retry::After(5)),
            verdict(9, Retry::Granted),
            verdict(3, Retry::Granted),
        ];
        for (index, verdict) in order.iter().enumerate() {
            for (other, less) in order.iter().enumerate() {
                assert_eq!(verdict.matters_more_than(less), index <= other);
            }
        }
    }
}
