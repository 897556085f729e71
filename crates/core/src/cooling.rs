//! What callers learnt from a vendor: how long a key that was throttled is left alone.
//!
//! The first `THROTTLED` cools a key down for a second, each repeat for twice as long, up to five minutes; a vendor that says how
//! long (`Retry-After`) is believed. Many calls are in flight when a vendor begins to refuse, and all of them report it: while a
//! key cools, further reports only make the time as long as the longest of them asks for.

use serde::{Deserialize, Serialize};

/// How long the first `THROTTLED` without a duration lasts, in milliseconds.
pub const FIRST_MS: u64 = 1000;

/// The longest that one without a duration lasts, in milliseconds.
pub const LONGEST_MS: u64 = 5 * 60 * 1000;

/// After so long without another, counted from the end of the last cooling, a `THROTTLED` is no repeat, in milliseconds.
pub const FORGOTTEN_MS: u64 = LONGEST_MS;

/// That a key was throttled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cooling {
    /// Until when it is not handed out, in unix milliseconds.
    pub until_ms: u64,
    /// How many times in a row; at least 1.
    pub count: u32,
    /// When the last of these was reported, in unix milliseconds: every claim up to then was made before.
    pub throttled_ms: u64,
}

/// What a caller learnt when it used a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Feedback {
    /// The vendor took the call.
    Ok,
    /// The vendor refused it for now; for so many milliseconds, if it said so.
    Throttled(Option<u64>),
}

/// What a key's cooling is after a report at `now_ms` on the claim at `claimed_ms`, if that is known; the latest claim on the key
/// was at `used_ms`, which may lie a little ahead of the clock.
#[must_use]
pub fn after(
    before: Option<Cooling>,
    feedback: Feedback,
    claimed_ms: Option<u64>,
    used_ms: u64,
    now_ms: u64,
) -> Option<Cooling> {
    match (feedback, before) {
        // A call that was on its way when another was throttled says nothing about what came after.
        (Feedback::Ok, Some(before)) if claimed_ms.is_none_or(|claimed_ms| claimed_ms <= before.throttled_ms) => {
            Some(before)
        }
        (Feedback::Ok, _) => None,
        (Feedback::Throttled(said_ms), Some(before)) if now_ms < before.until_ms => {
            let asked_ms = now_ms + said_ms.unwrap_or_else(|| doubled_ms(before.count));
            Some(Cooling { until_ms: before.until_ms.max(asked_ms), ..before })
        }
        // Claimed before the last report: news of the same trouble, that only came late.
        (Feedback::Throttled(said_ms), Some(before))
            if claimed_ms.is_some_and(|claimed_ms| claimed_ms <= before.throttled_ms) =>
        {
            let until_ms = said_ms.map_or(before.until_ms, |said_ms| now_ms + said_ms);
            Some(Cooling { until_ms: before.until_ms.max(until_ms), ..before })
        }
        (Feedback::Throttled(said_ms), before) => {
            let in_a_row = before.filter(|before| now_ms < before.until_ms + FORGOTTEN_MS);
            let count = in_a_row.map_or(1, |before| before.count.saturating_add(1));
            let until_ms = now_ms + said_ms.unwrap_or_else(|| doubled_ms(count));
            Some(Cooling { until_ms, count, throttled_ms: now_ms.max(used_ms) })
        }
    }
}

fn doubled_ms(count: u32) -> u64 {
    FIRST_MS.checked_shl(count.saturating_sub(1).min(16)).map_or(LONGEST_MS, |ms| ms.min(LONGEST_MS))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const T: u64 = 1_800_000_000_000;

    fn throttled(before: Option<Cooling>, said_ms: Option<u64>, now_ms: u64) -> Cooling {
        after(before, Feedback::Throttled(said_ms), None, 0, now_ms).unwrap()
    }

    #[test]
    fn repeats_double_from_a_second_to_five_minutes() {
        let mut cooling = None;
        let mut now_ms = T;
        for expected_s in [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300] {
            let next = throttled(cooling, None, now_ms);
            assert_eq!(next.until_ms - now_ms, expected_s * 1000);
            now_ms = next.until_ms;
            cooling = Some(next);
        }
        let many = Cooling { count: u32::MAX, ..cooling.unwrap() };
        assert_eq!(throttled(Some(many), None, now_ms).until_ms - now_ms, LONGEST_MS);
    }

    #[test]
    fn fifty_reports_in_flight_count_as_one() {
        let mut cooling = throttled(None, None, T);
        for late in 1..50 {
            cooling = throttled(Some(cooling), None, T + late);
        }
        assert_eq!(cooling, Cooling { until_ms: T + 49 + 1000, count: 1, throttled_ms: T });
    }

    #[test]
    fn what_the_vendor_says_is_believed_and_the_longer_of_two_holds() {
        let cooling = throttled(None, Some(20_000), T);
        assert_eq!(cooling.until_ms, T + 20_000);
        assert_eq!(throttled(Some(cooling), Some(5000), T + 1).until_ms, T + 20_000);
        assert_eq!(throttled(Some(cooling), Some(30_000), T + 1).until_ms, T + 30_001);
    }

    #[test]
    fn a_report_on_a_claim_before_the_last_throttling_is_no_repeat() {
        let cooling = throttled(None, None, T);
        let late = T + 2000;
        let stale = |said_ms| after(Some(cooling), Feedback::Throttled(said_ms), Some(T), 0, late);
        assert_eq!(stale(None), Some(cooling));
        assert_eq!(stale(Some(3000)).unwrap(), Cooling { until_ms: late + 3000, ..cooling });
        assert_eq!(after(Some(cooling), Feedback::Throttled(None), Some(T + 1), 0, late).unwrap().count, 2);
    }

    #[test]
    fn ok_forgets_only_what_was_before_its_claim() {
        let cooling = throttled(None, None, T);
        assert_eq!(after(Some(cooling), Feedback::Ok, Some(T + 1), 0, T + 5000), None);
        for claimed_ms in [None, Some(T - 1), Some(T)] {
            assert_eq!(after(Some(cooling), Feedback::Ok, claimed_ms, 0, T + 5000), Some(cooling), "{claimed_ms:?}");
        }
        assert_eq!(after(None, Feedback::Ok, None, 0, T), None);
        // A claim may be booked a little ahead of the clock: it was made before all the same.
        let cooling = after(None, Feedback::Throttled(None), None, T + 40, T);
        assert_eq!(after(cooling, Feedback::Ok, Some(T + 40), T + 40, T + 5000), cooling);
        assert_eq!(after(cooling, Feedback::Ok, Some(T + 1000), T + 1000, T + 5000), None);
    }

    #[test]
    fn after_a_quiet_time_it_begins_anew() {
        let cooling = Cooling { until_ms: T, count: 7, throttled_ms: T - 64_000 };
        assert_eq!(throttled(Some(cooling), None, T + FORGOTTEN_MS - 1).count, 8);
        assert_eq!(throttled(Some(cooling), None, T + FORGOTTEN_MS).count, 1);
    }
}
