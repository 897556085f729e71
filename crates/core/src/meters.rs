//! The hot state of a key record or an organization: one window log per unit.

use arrayvec::ArrayString;

use crate::effect::Claimed;
use crate::limit::MAX_LIMITS;
use crate::record::{MAX_UNIT_BYTES, parse_unit};
use crate::window::WindowLog;

/// The most units with a log: those of the limits now, and of limits that the record had before.
const MAX_LOGS: usize = 4 * MAX_LIMITS;

/// The first byte of [`Meters::encode`].
const FORMAT: u8 = 1;

/// A window log for each unit that has been charged.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Meters {
    /// In order of the units' names, so that equal states have equal bytes.
    logs: Vec<(ArrayString<MAX_UNIT_BYTES>, WindowLog)>,
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

    /// When the whole may be forgotten, in unix milliseconds.
    #[must_use]
    pub fn expires_at_ms(&self) -> Option<u64> {
        self.logs.iter().filter_map(|(_, log)| log.expires_at_ms()).max()
    }

    /// How many separate allocations freeing costs.
    #[must_use]
    pub fn allocations(&self) -> usize {
        2 + self.logs.iter().map(|(_, log)| log.allocations()).sum::<usize>()
    }

    /// Bytes of memory held, the struct itself included.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        let beside = self.logs.iter().map(|(_, log)| log.memory_bytes() - size_of::<WindowLog>()).sum::<usize>();
        size_of::<Self>() + self.logs.capacity() * size_of::<(ArrayString<MAX_UNIT_BYTES>, WindowLog)>() + beside
    }

    /// The state as bytes that [`decode`](Self::decode) reads; equal states give equal bytes.
    ///
    /// `FORMAT, number of units, then for each: length and name, length (4 bytes, big-endian) and log`.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![FORMAT, self.logs.len() as u8];
        for (name, log) in &self.logs {
            out.push(name.len() as u8);
            out.extend_from_slice(name.as_bytes());
            let log = log.encode();
            out.extend_from_slice(&(log.len() as u32).to_be_bytes());
            out.extend_from_slice(&log);
        }
        out
    }

    /// Reads what [`encode`](Self::encode) wrote; `None` for any other bytes.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (&[FORMAT, count], mut rest) = bytes.split_first_chunk()? else { return None };
        if usize::from(count) > MAX_LOGS {
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
        rest.is_empty().then_some(meters)
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
        assert_eq!(meters.expires_at_ms(), Some(START_MS + 61_000));
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
            damage in prop::option::of((any::<prop::sample::Index>(), any::<u8>())),
        ) {
            let mut meters = Meters::default();
            let mut now = START_MS;
            for (unit, step, units) in charges {
                now += step;
                meters.charge(&[(["requests", "tokens", "bytes", "x"][unit], claimed(now, units, 60_000))]);
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
