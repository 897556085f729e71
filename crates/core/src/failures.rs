//! Who looked up keys that do not exist, and how often within the last hour: a table of fixed size in memory.
//!
//! # Rounding
//!
//! Failures are counted by periods of five minutes, and a count is of the present period and the twelve before it: of the last 60
//! to 65 minutes. More than a threshold within one hour is never missed; what is up to five minutes older than an hour may count
//! with it.
//!
//! # Bound
//!
//! There is room for [`ADDRESSES`] addresses, in sets of [`WAYS`]; a keyed hash says in which set an address belongs, so that nobody
//! can choose addresses that meet in one. Where a set is full, the address with the fewest failures makes room, of equals the one
//! that failed last the longest ago: a flood of addresses that fail once each pushes out one another, and nobody who failed more
//! often. All this takes 2.5 MiB, from the first failure on.

use std::hash::{DefaultHasher, Hash, Hasher};

use crate::ip::Net;

/// How many addresses there is room for.
pub const ADDRESSES: usize = 65_536;

/// How many of them share a set.
pub const WAYS: usize = 8;

/// The largest threshold that can be asked for: no period counts beyond 65,535.
pub const MAX_THRESHOLD: u64 = 60_000;

const PERIOD_MS: u64 = 5 * 60 * 1000;

/// The present one, and those of an hour before it.
const PERIODS: usize = 13;

/// Whose failures: those of an address in a store of a database.
#[derive(Debug, Clone, Copy, Hash)]
pub struct Who<'a> {
    /// The database's number.
    pub database: i32,
    /// The name of the store.
    pub store: &'a str,
    /// What a failure of the address counts against.
    pub net: Net,
}

/// Failures by address: see the module's documentation.
#[derive(Debug)]
pub struct Failures {
    seed: [u64; 2],
    /// Empty until the first failure, then [`ADDRESSES`] slots.
    slots: Vec<Slot>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Slot {
    /// The hash of whose they are; 0 with an empty one too, which then has no count.
    who: u64,
    /// The newest period that has a count.
    period: u32,
    /// The counts of that period and those before it.
    counts: [u16; PERIODS],
}

const _: () = assert!(size_of::<Slot>() == 40);

impl Slot {
    /// How many failures count in this period.
    fn total(&self, period: u32) -> u64 {
        // A clock that went back a little must not lose what was counted; what was counted far ahead of it says nothing.
        if self.is_ahead(period) {
            return 0;
        }
        let age = period.saturating_sub(self.period) as usize;
        self.counts.iter().take(PERIODS.saturating_sub(age)).map(|count| u64::from(*count)).sum()
    }

    fn is_ahead(&self, period: u32) -> bool {
        self.period.saturating_sub(period) as usize >= PERIODS
    }

    fn note(&mut self, period: u32) {
        if self.is_ahead(period) {
            (self.period, self.counts) = (period, [0; PERIODS]);
        }
        let age = period.saturating_sub(self.period) as usize;
        if age > 0 {
            self.counts.copy_within(..PERIODS.saturating_sub(age), age.min(PERIODS));
            self.counts.iter_mut().take(age).for_each(|count| *count = 0);
            self.period = period;
        }
        if let Some(count) = self.counts.first_mut() {
            *count = count.saturating_add(1);
        }
    }
}

impl Failures {
    /// None yet. The seed is random and secret.
    #[must_use]
    pub const fn new(seed: [u64; 2]) -> Self {
        Self { seed, slots: Vec::new() }
    }

    /// Counts a failure, and says how many there were in the last hour.
    pub fn note(&mut self, who: Who<'_>, now_ms: u64) -> u64 {
        if self.slots.is_empty() {
            self.slots = vec![Slot::default(); ADDRESSES];
        }
        let (hash, period) = (self.hash(who), period(now_ms));
        let set = self.slots.get_mut(set(hash)).unwrap_or_default();
        let known = set.iter().position(|slot| slot.who == hash);
        let index = known.or_else(|| {
            let fewest = set.iter().enumerate().min_by_key(|(_, slot)| (slot.total(period), slot.period));
            fewest.map(|(index, _)| index)
        });
        let Some(slot) = index.and_then(|index| set.get_mut(index)) else { return 0 };
        if slot.who != hash {
            *slot = Slot { who: hash, period, ..Slot::default() };
        }
        slot.note(period);
        slot.total(period)
    }

    /// How many failures of an address count now.
    #[must_use]
    pub fn count(&self, who: Who<'_>, now_ms: u64) -> u64 {
        let hash = self.hash(who);
        let set = self.slots.get(set(hash)).unwrap_or_default();
        set.iter().find(|slot| slot.who == hash).map_or(0, |slot| slot.total(period(now_ms)))
    }

    /// Forgets the failures of an address. Whether any counted.
    pub fn clear(&mut self, who: Who<'_>, now_ms: u64) -> bool {
        let hash = self.hash(who);
        let set = self.slots.get_mut(set(hash)).unwrap_or_default();
        let slot = set.iter_mut().find(|slot| slot.who == hash).map(std::mem::take);
        slot.is_some_and(|slot| slot.total(period(now_ms)) > 0)
    }

    /// Forgets all.
    pub fn clear_all(&mut self) {
        self.slots = Vec::new();
    }

    /// How many addresses have failures that count now. It looks at all of the table.
    #[must_use]
    pub fn addresses(&self, now_ms: u64) -> usize {
        let period = period(now_ms);
        self.slots.iter().filter(|slot| slot.total(period) > 0).count()
    }

    /// Bytes of memory held, the struct itself included.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        size_of::<Self>() + self.slots.capacity() * size_of::<Slot>()
    }

    fn hash(&self, who: Who<'_>) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.seed.hash(&mut hasher);
        who.hash(&mut hasher);
        hasher.finish()
    }
}

fn set(hash: u64) -> std::ops::Range<usize> {
    let first = (hash as usize % (ADDRESSES / WAYS)) * WAYS;
    first..first + WAYS
}

fn period(now_ms: u64) -> u32 {
    u32::try_from(now_ms / PERIOD_MS).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use std::net::{IpAddr, Ipv4Addr};

    use proptest::prelude::*;

    use super::*;
    use crate::ip::Address;

    const START_MS: u64 = 1_800_000_000_000;
    const HOUR_MS: u64 = 60 * 60 * 1000;

    fn who(bits: u32) -> Who<'static> {
        Who { database: 0, store: "acme", net: Address::from(IpAddr::V4(Ipv4Addr::from_bits(bits))).net() }
    }

    #[test]
    fn an_address_is_counted_for_each_store_of_each_database() {
        let mut failures = Failures::new([1, 2]);
        let all = [who(1), Who { database: 1, ..who(1) }, Who { store: "zeta", ..who(1) }, who(2)];
        for (index, who) in all.into_iter().enumerate() {
            (0..=index).for_each(|_| _ = failures.note(who, START_MS));
        }
        assert_eq!(all.map(|who| failures.count(who, START_MS)), [1, 2, 3, 4]);
        assert_eq!(failures.addresses(START_MS), 4);
        assert!(failures.clear(all[3], START_MS));
        assert!(!failures.clear(all[3], START_MS));
        assert_eq!(all.map(|who| failures.count(who, START_MS)), [1, 2, 3, 0]);
        failures.clear_all();
        assert_eq!((failures.addresses(START_MS), failures.count(all[0], START_MS)), (0, 0));
    }

    #[test]
    fn nothing_is_allocated_before_the_first_failure_and_never_more_than_the_bound() {
        let mut failures = Failures::new([1, 2]);
        assert_eq!((failures.count(who(1), START_MS), failures.clear(who(1), START_MS)), (0, false));
        assert!(failures.memory_bytes() < 100);
        (0..1_000_000).for_each(|bits| _ = failures.note(who(bits), START_MS));
        assert!(failures.memory_bytes() < 2_700_000);
        assert!(failures.addresses(START_MS) <= ADDRESSES);
    }

    #[test]
    fn who_failed_often_survives_a_flood() {
        for seed in 0..4 {
            let mut failures = Failures::new([seed, 7]);
            let often = who(u32::MAX);
            (0..50).for_each(|_| _ = failures.note(often, START_MS));
            let flood = |failures: &mut Failures, at_ms| {
                (0..1_000_000).for_each(|bits| _ = failures.note(who(bits), at_ms));
            };
            flood(&mut failures, START_MS + 1);
            assert_eq!(failures.note(often, START_MS + HOUR_MS - 1), 51);
            flood(&mut failures, START_MS + HOUR_MS - 1);
            assert_eq!(failures.note(often, START_MS + HOUR_MS - 1), 52);
        }
    }

    #[test]
    fn who_failed_last_hour_makes_room_first() {
        let mut failures = Failures::new([3, 4]);
        (0..1_000_000).for_each(|bits| (0..3).for_each(|_| _ = failures.note(who(bits), START_MS)));
        let later = START_MS + 2 * HOUR_MS;
        assert_eq!(failures.addresses(later), 0);
        (0..1_000_u32).for_each(|bits| _ = failures.note(who(!bits), later));
        assert_eq!((0..1_000_u32).filter(|bits| failures.count(who(!bits), later) == 1).count(), 1_000);
    }

    #[test]
    fn a_clock_that_goes_back_up_to_an_hour_loses_nothing() {
        let mut failures = Failures::new([3, 4]);
        failures.note(who(1), START_MS + HOUR_MS);
        assert_eq!(failures.note(who(1), START_MS), 2);
        assert_eq!(failures.count(who(1), START_MS + HOUR_MS), 2);
    }

    #[test]
    fn what_was_counted_while_the_clock_ran_far_ahead_counts_no_more() {
        let mut failures = Failures::new([3, 4]);
        failures.note(who(1), START_MS + 5 * HOUR_MS);
        assert_eq!(failures.count(who(1), START_MS), 0);
        assert_eq!(failures.note(who(1), START_MS), 1);
        assert_eq!(failures.count(who(1), START_MS + 2 * HOUR_MS), 0);
    }

    proptest! {
        #[test]
        fn a_count_is_at_least_that_of_the_hour_and_at_most_that_of_65_minutes(
            steps in proptest::collection::vec((0..3_u32, 0..HOUR_MS / 3), 1..60),
        ) {
            let mut failures = Failures::new([5, 6]);
            let (mut now_ms, mut all) = (START_MS, Vec::new());
            for (bits, step_ms) in steps {
                now_ms += step_ms;
                all.push((bits, now_ms));
                let counted = failures.note(who(bits), now_ms);
                let within = |ms: u64| all.iter().filter(|(other, at)| *other == bits && now_ms - at < ms).count() as u64;
                prop_assert!(within(HOUR_MS) <= counted && counted <= within(HOUR_MS + PERIOD_MS));
                prop_assert_eq!(failures.count(who(bits), now_ms), counted);
            }
        }
    }
}
