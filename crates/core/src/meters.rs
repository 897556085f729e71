//! The hot state of a key record or an organization: a window log for each unit, what was used of quotas, and when it was last used.

use arrayvec::ArrayString;

use crate::codec::{Reader, Writer as _};
use crate::effect::{Charged, Claimed};
use crate::limit::MAX_LIMITS;
use crate::quota::{MAX_QUOTAS, Period, Used};
use crate::record::{MAX_UNIT_BYTES, is_unit, parse_unit};
use crate::window::WindowLog;

/// The most units with a log: those of the limits now, and of limits that the record had before.
const MAX_LOGS: usize = 4 * MAX_LIMITS;

/// The most counts of quotas: those of the record now, and of quotas that it had before.
const MAX_COUNTS: usize = 4 * MAX_QUOTAS;

/// How exactly a last use is known, in milliseconds: within this time of one, the next is not written down.
pub const USE_MS: u64 = 60_000;

/// The first byte of [`Meters::encode`] for logs alone, and for what has more.
const FORMAT: u8 = 1;
const FORMAT_2: u8 = 2;

type Unit = ArrayString<MAX_UNIT_BYTES>;

/// What a record or an organization was charged.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Meters {
    /// In order of the units' names, so that equal states have equal bytes.
    logs: Vec<(Unit, WindowLog)>,
    /// In order of periods and units.
    counts: Vec<((Period, Unit), Used)>,
    /// When a use was last written down, in unix milliseconds; 0 for never.
    used_ms: u64,
}

/// How long a value is worth keeping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lifetime {
    /// It holds nothing.
    Over,
    /// Until this instant, in unix milliseconds.
    Until(u64),
    /// For good.
    Forever,
}

impl Meters {
    /// The log of a unit, if it was ever charged.
    #[must_use]
    pub fn log(&self, unit: &str) -> Option<&WindowLog> {
        self.logs.iter().find(|(name, _)| name.as_str() == unit).map(|(_, log)| log)
    }

    /// Adds the claims of one call, each with its unit: see [`WindowLog::push`].
    ///
    /// A unit that cannot be one is ignored: replaying must not fail, and no command of ours charges it. Where a unit finds no
    /// room, because the limits of the record were changed again and again, the log that would run out first makes it.
    pub fn charge(&mut self, claims: &[(&str, Claimed)]) {
        let charged = |unit: &str| claims.iter().any(|(other, _)| *other == unit);
        for (unit, claimed) in claims {
            let Some(name) = ArrayString::from(unit).ok().filter(|name| parse_unit(name.as_bytes()).is_ok()) else {
                continue;
            };
            if self.log(unit).is_none() && self.logs.len() >= MAX_LOGS {
                let spare = self.logs.iter().enumerate().filter(|(_, (name, _))| !charged(name));
                let first_to_go = spare.min_by_key(|(_, (_, log))| log.expires_at_ms()).map(|(index, _)| index);
                first_to_go.map(|index| self.logs.remove(index));
            }
            let index = match self.logs.binary_search_by(|(name, _)| name.as_str().cmp(unit)) {
                Ok(index) => index,
                Err(index) => {
                    // Most have one unit only, and a vector would grow to four.
                    self.logs.reserve_exact(1);
                    self.logs.insert(index, (name, WindowLog::default()));
                    index
                }
            };
            if let Some((_, log)) = self.logs.get_mut(index) {
                log.push(claimed.at_ms, claimed.units, claimed.window_ms);
            }
        }
    }

    /// Adds what a call of an API key was charged, at `at_ms`.
    pub fn book(&mut self, at_ms: u64, charged: &Charged<'_>) {
        let claimed =
            |(unit, units, window_ms): &(_, _, _)| (*unit, Claimed { at_ms, units: *units, window_ms: *window_ms });
        match &*charged.claims {
            // Most have one limit, and need no list.
            [claim] => self.charge(&[claimed(claim)]),
            claims => self.charge(&claims.iter().map(claimed).collect::<Vec<_>>()),
        }
        for (period, unit, until_ms, units) in &charged.quotas {
            self.set_used(*period, unit, Used { until_ms: *until_ms, units: *units });
        }
    }

    /// Corrects what was claimed at `at_ms` in a unit: see [`WindowLog::settle`]. As with [`charge`](Self::charge), a unit that
    /// cannot be one is ignored.
    pub fn settle(&mut self, unit: &str, at_ms: u64, units: u64, window_ms: u64) {
        match self.logs.iter_mut().find(|(name, _)| name.as_str() == unit) {
            Some((_, log)) => {
                log.settle(at_ms, units, window_ms);
            }
            None if units > 0 => self.charge(&[(unit, Claimed { at_ms, units, window_ms })]),
            None => {}
        }
    }

    /// What was counted last of a quota.
    #[must_use]
    pub fn used(&self, period: Period, unit: &str) -> Option<Used> {
        let found = self.counts.iter().find(|((of, name), _)| (*of, name.as_str()) == (period, unit));
        found.map(|(_, used)| *used)
    }

    /// Sets what is used of a quota. As with [`charge`](Self::charge), a unit that cannot be one is ignored, and where there is no
    /// room the count whose period ends first makes it, before those of quotas in all.
    pub fn set_used(&mut self, period: Period, unit: &str, used: Used) {
        let Some(name) = Unit::from(unit).ok().filter(|name| is_unit(name)) else { return };
        let place = |counts: &[((Period, Unit), Used)]| counts.binary_search_by(|(of, _)| of.cmp(&(period, name)));
        if place(&self.counts).is_err() && self.counts.len() >= MAX_COUNTS {
            let ends = |(_, used): &(_, Used)| used.until_ms.unwrap_or(u64::MAX);
            let first_to_go =
                self.counts.iter().enumerate().min_by_key(|(_, count)| ends(count)).map(|(index, _)| index);
            first_to_go.map(|index| self.counts.remove(index));
        }
        match place(&self.counts) {
            Ok(index) => _ = self.counts.get_mut(index).map(|(_, count)| *count = used),
            Err(index) => {
                self.counts.reserve_exact(1);
                self.counts.insert(index, ((period, name), used));
            }
        }
    }

    /// Whether a use now is worth writing down: the last that was is a minute old, or lies ahead of a clock that was set back.
    #[must_use]
    pub const fn use_is_due(&self, now_ms: u64) -> bool {
        now_ms < self.used_ms || now_ms - self.used_ms >= USE_MS
    }

    /// A use was written down.
    pub const fn set_use(&mut self, at_ms: u64) {
        self.used_ms = at_ms;
    }

    /// How long the whole is worth keeping, rounded up to a whole second: the expiry of the key need not be set again for every
    /// charge.
    #[must_use]
    pub fn lifetime(&self) -> Lifetime {
        let logs = self.logs.iter().filter_map(|(_, log)| log.expires_at_ms()).map(Lifetime::Until);
        let counts = self.counts.iter().map(|(_, used)| used.until_ms.map_or(Lifetime::Forever, Lifetime::Until));
        let used = (self.used_ms > 0).then_some(Lifetime::Until(self.used_ms.saturating_add(USE_MS)));
        match logs.chain(counts).chain(used).max() {
            None => Lifetime::Over,
            Some(Lifetime::Until(at_ms)) => Lifetime::Until(at_ms.div_ceil(1000).saturating_mul(1000)),
            Some(lifetime) => lifetime,
        }
    }

    /// How many separate allocations freeing costs.
    #[must_use]
    pub fn allocations(&self) -> usize {
        2 + usize::from(!self.counts.is_empty()) + self.logs.iter().map(|(_, log)| log.allocations()).sum::<usize>()
    }

    /// Bytes of memory held, the struct itself included.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        let beside = self.logs.iter().map(|(_, log)| log.memory_bytes() - size_of::<WindowLog>()).sum::<usize>();
        size_of::<Self>()
            + self.logs.capacity() * size_of::<(Unit, WindowLog)>()
            + self.counts.capacity() * size_of::<((Period, Unit), Used)>()
            + beside
    }

    /// The state as bytes that [`decode`](Self::decode) reads; equal states give equal bytes.
    ///
    /// `FORMAT, number of units, then for each: length and name, length (4 bytes, big-endian) and log`. In the second format there
    /// follow, packed as records are: when a use was last written down, then for each count its period, its unit, when that period
    /// ends as an option, and the units.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let is_second = self.used_ms > 0 || !self.counts.is_empty();
        let mut out = vec![if is_second { FORMAT_2 } else { FORMAT }, self.logs.len() as u8];
        for (name, log) in &self.logs {
            out.push(name.len() as u8);
            out.extend_from_slice(name.as_bytes());
            let log = log.encode();
            out.extend_from_slice(&(log.len() as u32).to_be_bytes());
            out.extend_from_slice(&log);
        }
        if is_second {
            out.put_varint(self.used_ms);
            for ((period, unit), used) in &self.counts {
                out.put_byte(period.packed());
                out.put_text(unit);
                out.put_option(used.until_ms, Vec::put_varint);
                out.put_varint(used.units);
            }
        }
        out
    }

    /// As [`encode`](Self::encode); where the logs hold more than `max` bytes of memory, without them.
    #[must_use]
    pub fn encode_within(&self, max: usize) -> Vec<u8> {
        if self.memory_bytes() <= max {
            return self.encode();
        }
        Self { logs: Vec::new(), counts: self.counts.clone(), used_ms: self.used_ms }.encode()
    }

    /// Reads what [`encode`](Self::encode) wrote; `None` for any other bytes.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (&[format, count], mut rest) = bytes.split_first_chunk()?;
        if !matches!(format, FORMAT | FORMAT_2) || usize::from(count) > MAX_LOGS {
            return None;
        }
        let mut meters = Self::default();
        for _ in 0..count {
            let (&len, after) = rest.split_first()?;
            let (name, after) = after.split_at_checked(usize::from(len))?;
            let (&len, after) = after.split_first_chunk::<4>()?;
            let (log, after) = after.split_at_checked(u32::from_be_bytes(len) as usize)?;
            let name = ArrayString::from(parse_unit(name).ok()?).ok()?;
            if meters.logs.last().is_some_and(|(last, _)| *last >= name) {
                return None;
            }
            meters.logs.push((name, WindowLog::decode(log)?));
            rest = after;
        }
        if format == FORMAT_2 {
            meters.read_second(Reader::new(rest))?;
            rest = &[];
        }
        rest.is_empty().then_some(meters)
    }

    fn read_second(&mut self, mut rest: Reader<'_>) -> Option<()> {
        self.used_ms = rest.varint()?;
        while !rest.is_empty() {
            let period = Period::unpacked(rest.byte()?)?;
            let unit = Unit::from(rest.text().filter(|unit| is_unit(unit))?).ok()?;
            let until_ms = rest.option(Reader::varint)?;
            let used = Used { until_ms, units: rest.varint()? };
            if self.counts.last().is_some_and(|(last, _)| *last >= (period, unit)) || self.counts.len() >= MAX_COUNTS {
                return None;
            }
            self.counts.push(((period, unit), used));
        }
        // What needs no second format is not written in it.
        (self.used_ms > 0 || !self.counts.is_empty()).then_some(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use proptest::prelude::*;

    use super::*;

    const START_MS: u64 = 1_800_000_000_000;

    fn claimed(at_ms: u64, units: u64, window_ms: u64) -> Claimed {
        Claimed { at_ms, units, window_ms }
    }

    #[test]
    fn each_unit_has_a_log_of_its_own() {
        let mut meters = Meters::default();
        meters.charge(&[("tokens", claimed(START_MS, 500, 60_000)), ("requests", claimed(START_MS + 5, 1, 1_000))]);
        assert_eq!(meters.log("tokens").unwrap().units(), 500);
        assert_eq!(meters.log("requests").unwrap().units(), 1);
        assert_eq!(meters.log("bytes"), None);
        assert_eq!(meters.lifetime(), Lifetime::Until(START_MS + 61_000));
        meters.charge(&[("tokens", claimed(START_MS + 1, 500, 60_000))]);
        assert_eq!(meters.lifetime(), Lifetime::Until(START_MS + 62_000), "in whole seconds");
    }

    #[test]
    fn it_is_kept_until_all_that_it_holds_is_over() {
        let mut meters = Meters::default();
        assert_eq!(meters.lifetime(), Lifetime::Over);
        meters.set_use(START_MS);
        assert_eq!(meters.lifetime(), Lifetime::Until(START_MS + USE_MS));
        meters.charge(&[("requests", claimed(START_MS, 1, 120_000))]);
        assert_eq!(meters.lifetime(), Lifetime::Until(START_MS + 121_000));
        meters.set_used(Period::Day, "requests", Used { until_ms: Some(START_MS + 500_000), units: 1 });
        assert_eq!(meters.lifetime(), Lifetime::Until(START_MS + 500_000));
        meters.set_used(Period::Total, "requests", Used { until_ms: None, units: 1 });
        assert_eq!(meters.lifetime(), Lifetime::Forever);
    }

    #[test]
    fn a_use_is_written_down_once_a_minute() {
        let mut meters = Meters::default();
        assert!(meters.use_is_due(START_MS));
        meters.set_use(START_MS);
        for (at_ms, due) in [(0, false), (USE_MS - 1, false), (USE_MS, true)] {
            assert_eq!(meters.use_is_due(START_MS + at_ms), due);
        }
        assert!(meters.use_is_due(START_MS - 1), "the clock was set back");
    }

    #[test]
    fn a_quota_has_one_count_and_new_ones_find_room() {
        let mut meters = Meters::default();
        let used = |units| Used { until_ms: Some(START_MS + units), units };
        meters.set_used(Period::Day, "tokens", used(5));
        meters.set_used(Period::Day, "tokens", used(7));
        meters.set_used(Period::Month, "tokens", used(9));
        meters.set_used(Period::Month, "No Unit", used(9));
        assert_eq!(meters.used(Period::Day, "tokens"), Some(used(7)));
        assert_eq!(meters.used(Period::Month, "tokens"), Some(used(9)));
        assert_eq!(meters.used(Period::Total, "tokens"), None);
        meters.set_used(Period::Total, "tokens", Used { until_ms: None, units: 1 });
        for index in 0..MAX_COUNTS {
            meters.set_used(Period::Day, &format!("unit{index}"), used(100 + index as u64));
        }
        assert_eq!(meters.counts.len(), MAX_COUNTS);
        assert_eq!(meters.used(Period::Day, "tokens"), None, "ended first");
        assert_eq!(meters.used(Period::Total, "tokens").map(|used| used.units), Some(1), "never ends");
        assert_eq!(Meters::decode(&meters.encode()), Some(meters));
    }

    #[test]
    fn what_is_no_second_format_is_not_read() {
        let mut meters = Meters::default();
        meters.set_use(300);
        meters.set_used(Period::Day, "a", Used { until_ms: Some(5), units: 3 });
        meters.set_used(Period::Month, "a", Used { until_ms: None, units: 4 });
        let packed = [2, 0, 0xac, 2, 0, 1, b'a', 1, 5, 3, 1, 1, b'a', 0, 4];
        assert_eq!(meters.encode(), packed);
        for bytes in [
            &[2, 0][..],
            &[2, 0, 0],
            &[3, 0, 5],
            &[2, 0, 5, 3, 1, b'a', 0, 4],
            &[2, 0, 5, 1, 1, b'A', 0, 4],
            &[2, 0, 5, 1, 1, b'a', 0, 4, 1, 1, b'a', 0, 4],
            &[2, 0, 5, 1, 1, b'a', 0, 4, 0, 1, b'a', 0, 4],
            &[2, 0, 5, 1, 1, b'a', 0],
            &[1, 0, 5],
        ] {
            assert_eq!(Meters::decode(bytes), None, "{bytes:?}");
        }
    }

    #[test]
    fn the_order_of_charges_does_not_show_in_the_bytes() {
        let charge = |units: &[&str]| {
            let mut meters = Meters::default();
            units.iter().for_each(|unit| meters.charge(&[(unit, claimed(START_MS, 1, 1_000))]));
            meters.encode()
        };
        assert_eq!(charge(&["a", "b", "c"]), charge(&["c", "a", "b"]));
    }

    #[test]
    fn a_new_unit_is_always_charged_in_place_of_the_log_that_runs_out_first() {
        let mut meters = Meters::default();
        let names: Vec<String> = (0..MAX_LOGS).map(|index| format!("unit{index}")).collect();
        for (index, name) in names.iter().enumerate() {
            meters.charge(&[(name, claimed(START_MS, 1, 1_000 + index as u64))]);
        }
        meters.charge(&[(&names[0], claimed(START_MS, 1, 1_000)), ("new", claimed(START_MS, 1, 1_000))]);
        assert_eq!(meters.log("new").unwrap().units(), 1);
        assert_eq!(meters.log(&names[0]).unwrap().units(), 2, "charged by the same call");
        assert_eq!(meters.log(&names[1]), None, "the first to run out of the others");
        assert_eq!(Meters::decode(&meters.encode()), Some(meters));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_and_other_bytes_never_panic(
            charges in prop::collection::vec((0usize..4, 0u64..5_000, 1u64..50), 0..60),
            uses: bool,
            damage in prop::option::of((any::<prop::sample::Index>(), any::<u8>())),
        ) {
            let mut meters = Meters::default();
            let mut now = START_MS;
            for (unit, step, units) in charges {
                now += step;
                meters.charge(&[(["requests", "tokens", "bytes", "x"][unit], claimed(now, units, 60_000))]);
            }
            if uses {
                meters.set_use(now);
                meters.set_used(Period::Day, "x", Used { until_ms: Some(now), units: 7 });
            }
            let mut bytes = meters.encode();
            prop_assert_eq!(Meters::decode(&bytes), Some(meters));
            if let Some((index, value)) = damage {
                let index = index.index(bytes.len());
                bytes[index] = value;
                if let Some(meters) = Meters::decode(&bytes) {
                    let encoded = meters.encode();
                    prop_assert_eq!(Meters::decode(&encoded), Some(meters));
                }
            }
        }
    }
}
