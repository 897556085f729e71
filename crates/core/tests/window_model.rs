//! The window log and the limiter against a plain list of timestamps.
//!
//! `KEYGUARD_OPS` sets the number of operations (default 1,000,000) of the first property.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, missing_docs)]

use std::num::NonZero;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use keyguard_core::Error;
use keyguard_core::limit::{Limit, MAX_UNITS};
use keyguard_core::limiter::{Moment, Retry, clock, decide, longest_ms};
use keyguard_core::window::{EXPIRY_SLACK_MS, MAX_ENTRIES, WindowLog};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

const START_MS: u64 = 1_800_000_000_000;
/// Long enough for several chunks, short enough for a failure to be shrunk.
const OPS_PER_CASE: usize = 500;

/// What DESIGN calls the window, as a list: no chunks, no deltas, no running totals.
#[derive(Default, Clone)]
struct Model {
    entries: Vec<(u64, u64)>,
    retention: u64,
    renewed: u64,
    shorter: u64,
    /// The latest instant that anything was booked at.
    latest: Option<u64>,
    locked_until: Option<u64>,
}

impl Model {
    fn newest(&self) -> Option<u64> {
        self.entries.last().map(|entry| entry.0)
    }

    fn at(&self, limits: &[Limit], now: u64) -> u64 {
        let longest = longest_ms(limits).max(self.retention);
        match self.latest {
            Some(latest) if latest > now && latest - now <= longest => latest,
            _ => now,
        }
    }

    /// Whether a claim at this instant starts afresh.
    fn is_void(&self, at: u64) -> bool {
        self.latest.is_some_and(|latest| latest > at)
    }

    fn is_locked(&self, at: u64) -> bool {
        !self.is_void(at) && self.locked_until.is_some_and(|until| at < until)
    }

    fn used(&self, window: u64, at: u64) -> u64 {
        self.entries.iter().filter(|&&(t, _)| at < t + window).map(|entry| entry.1).sum()
    }

    /// The first millisecond from `now` at which `limits` let `cost` through, looked for one candidate after the other.
    fn first_fit(&self, limits: &[Limit], cost: u64, now: u64) -> Option<u64> {
        let fits = |when: u64| {
            let at = self.at(limits, when);
            let counted = if self.is_void(at) { 0 } else { 1 };
            !self.is_locked(at)
                && limits.iter().all(|limit| counted * self.used(limit.window_ms(), at) + cost <= limit.count())
        };
        let mut candidates = vec![now];
        candidates.extend(self.locked_until.filter(|until| *until > now));
        for limit in limits {
            candidates.extend(self.entries.iter().map(|entry| entry.0 + limit.window_ms()).filter(|&t| t > now));
        }
        candidates.sort_unstable();
        candidates.into_iter().find(|&when| fits(when))
    }

    fn claim(&mut self, at: u64, cost: u64, window: u64) {
        if self.is_void(at) {
            *self = Self::default();
        }
        self.locked_until = self.locked_until.filter(|until| at < *until);
        self.latest = Some(at);
        let last = self.newest();
        if self.entries.is_empty() || window >= self.retention {
            (self.retention, self.renewed, self.shorter) = (window, at, 0);
        } else {
            if self.shorter == 0 {
                self.renewed = last.unwrap();
            }
            self.shorter = self.shorter.max(window);
            if at.saturating_sub(self.renewed) >= self.retention {
                (self.retention, self.renewed) = (self.shorter, at);
                self.shorter = if self.retention > window { window } else { 0 };
            }
        }
        self.entries.retain(|&(t, _)| at < t + self.retention);
        self.entries.push((at, cost));
    }

    fn lock(&mut self, at: u64, until: u64) {
        if self.is_void(at) {
            *self = Self::default();
        }
        (self.latest, self.locked_until) = (Some(at), Some(until));
        self.entries.retain(|&(t, _)| at < t + self.retention);
        if self.entries.is_empty() {
            self.shorter = 0;
        }
    }

    fn refund(&mut self, mut units: u64, at: Option<u64>, dead_until: u64) -> u64 {
        let mut given = 0;
        for entry in self.entries.iter_mut().rev() {
            if entry.0 > dead_until && at.is_none_or(|at| at == entry.0) {
                let taken = entry.1.min(units);
                entry.1 -= taken;
                units -= taken;
                given += taken;
            }
        }
        self.entries.retain(|entry| entry.1 > 0);
        if self.entries.is_empty() {
            self.shorter = 0;
        }
        given
    }

    fn settle(&mut self, at: u64, units: u64, window: u64) -> u64 {
        let before = self.units_at(at);
        if units <= before {
            self.refund(before - units, Some(at), 0);
            return before;
        }
        let latest = self.latest.unwrap_or(0);
        if before == 0 && at >= latest {
            self.claim(at, units, window);
            return before;
        }
        if before == 0 && latest >= at + self.retention.max(window) {
            return before;
        }
        if self.shorter > 0 && window >= self.retention {
            self.renewed = self.renewed.max(at);
        } else if self.shorter > 0 && at > self.renewed {
            self.shorter = self.shorter.max(window);
        }
        self.retention = self.retention.max(window);
        let index = self.entries.iter().take_while(|entry| entry.0 < at).count();
        if before > 0 {
            self.entries[index].1 += units - before;
        } else {
            self.entries.insert(index, (at, units));
        }
        before
    }

    fn units_at(&self, at: u64) -> u64 {
        self.entries.iter().filter(|entry| entry.0 == at).map(|entry| entry.1).sum()
    }
}

#[derive(Debug, Clone)]
enum Op {
    Claim {
        step: i64,
        limits: prop::sample::Index,
        cost: u64,
    },
    Refund {
        units: u64,
        back: Option<usize>,
    },
    /// Of the claim so many claims ago, or of an instant so far from the latest.
    Settle {
        units: u64,
        back: Option<usize>,
        step: i64,
        limits: prop::sample::Index,
    },
    Lock {
        limits: prop::sample::Index,
        length: u64,
    },
    Reload,
}

fn limits() -> impl Strategy<Value = Vec<Limit>> {
    let one = (
        prop_oneof![4 => 1u64..20, 2 => 20u64..400, 1 => Just(1_000_000u64)],
        prop_oneof![Just(1u64), Just(50), Just(1_000), Just(10_000), Just(600_000), 1u64..5_000],
    );
    prop::collection::vec(one.prop_map(|(count, window)| Limit::new(count, window).unwrap()), 1..=4)
}

/// Mostly small steps forward, at times none, long ones, and steps backwards short and long.
fn step() -> impl Strategy<Value = i64> {
    prop_oneof![
        8 => Just(0i64),
        8 => 1i64..4,
        3 => 4i64..200,
        2 => 200i64..3_000,
        1 => 3_000i64..700_000,
        1 => -20i64..0,
        1 => -2_000i64..0,
        1 => -1_500_000i64..0,
    ]
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let cost = prop_oneof![8 => Just(1u64), 2 => 2u64..6, 1 => Just(0u64), 1 => 100u64..2_000];
    let op = prop_oneof![
        20 => (step(), any::<prop::sample::Index>(), cost)
            .prop_map(|(step, limits, cost)| Op::Claim { step, limits, cost }),
        2 => (prop_oneof![5 => 1u64..8, 1 => 50u64..2_000], proptest::option::of(0usize..40)).prop_map(|(units, back)| Op::Refund { units, back }),
        3 => (
            prop_oneof![2 => Just(0u64), 8 => 1u64..6, 1 => 100u64..2_000],
            proptest::option::weighted(0.7, 0usize..200),
            prop_oneof![6 => -200i64..0, 2 => -5_000i64..0, 1 => -700_000i64..0, 1 => 0i64..10],
            any::<prop::sample::Index>(),
        )
            .prop_map(|(units, back, step, limits)| Op::Settle { units, back, step, limits }),
        1 => (any::<prop::sample::Index>(), 1u64..3_000).prop_map(|(limits, length)| Op::Lock { limits, length }),
        1 => Just(Op::Reload),
    ];
    prop::collection::vec(op, 1..2 * OPS_PER_CASE)
}

fn same(log: &WindowLog, model: &Model) -> Result<(), TestCaseError> {
    prop_assert_eq!(log.entries(), model.entries.len());
    prop_assert_eq!(log.units(), model.entries.iter().map(|entry| entry.1).sum::<u64>());
    prop_assert_eq!(log.newest_ms(), model.newest());
    prop_assert_eq!(log.oldest_ms(), model.entries.first().map(|entry| entry.0));
    prop_assert_eq!(log.latest_ms(), model.latest);
    prop_assert_eq!(log.locked_until_ms(), model.locked_until);
    if let Some(latest) = model.latest {
        prop_assert_eq!(log.retention_ms(), model.retention);
        let out_of_sight = (latest + model.retention).max(model.locked_until.unwrap_or(0));
        prop_assert_eq!(log.expires_at_ms(), Some(out_of_sight + EXPIRY_SLACK_MS));
    }
    Ok(())
}

fn run(pool: &[Vec<Limit>], ops: &[Op], done: &AtomicU64) -> Result<(), TestCaseError> {
    let (mut log, mut model) = (WindowLog::default(), Model::default());
    let mut now = START_MS;
    let mut claims: Vec<u64> = Vec::new();
    for op in ops {
        done.fetch_add(1, Ordering::Relaxed);
        match op {
            Op::Claim { step, limits, cost } => {
                let limits = limits.get(pool).as_slice();
                now = now.checked_add_signed(*step).unwrap();
                let moment = clock([&log], longest_ms(limits), now);
                prop_assert_eq!(moment.at_ms, model.at(limits, now));
                let verdict = decide(Some(&log), limits, *cost, moment).unwrap().unwrap();
                let (void, locked) = (model.is_void(moment.at_ms), model.is_locked(moment.at_ms));
                let used = |limit: &Limit| if void { 0 } else { model.used(limit.window_ms(), moment.at_ms) };
                let told = used(&verdict.limit).max(if locked { verdict.limit.count() } else { 0 });
                prop_assert_eq!(verdict.used, told);
                let fits = !locked && limits.iter().all(|limit| used(limit) + cost <= limit.count());
                prop_assert_eq!(verdict.granted(), fits);
                match verdict.retry {
                    Retry::Granted => {
                        let fewest = limits.iter().map(|limit| limit.count() - used(limit) - cost).min().unwrap();
                        prop_assert_eq!(verdict.remaining(), fewest);
                    }
                    Retry::Never => prop_assert!(limits.iter().any(|limit| *cost > limit.count())),
                    Retry::After(wait) => {
                        prop_assert!(wait > 0);
                        prop_assert_eq!(Some(now + wait), model.first_fit(limits, *cost, now));
                        let asked_at = |when| {
                            let moment = clock([&log], longest_ms(limits), when);
                            decide(Some(&log), limits, *cost, moment).unwrap().unwrap().granted()
                        };
                        prop_assert!(!asked_at(now + wait - 1), "refused one millisecond before");
                        prop_assert!(asked_at(now + wait), "allowed at it");
                    }
                }
                if fits && *cost > 0 {
                    let window = longest_ms(limits);
                    log.push(moment.at_ms, *cost, window);
                    model.claim(moment.at_ms, *cost, window);
                    claims.push(moment.at_ms);
                    prop_assert_eq!(
                        verdict.reset_after_ms,
                        moment.at_ms + verdict.limit.window_ms() - now,
                        "full again when this claim has left"
                    );
                }
            }
            Op::Refund { units, back } => {
                let at = back.and_then(|back| claims.len().checked_sub(back + 1)).map(|index| claims[index]);
                let dead_until = now.saturating_sub(model.retention);
                let given = log.refund(*units, at, Some(dead_until));
                prop_assert_eq!(given, model.refund(*units, at, dead_until));
            }
            Op::Settle { units, back, step, limits } => {
                let claimed = back.and_then(|back| claims.len().checked_sub(back + 1)).map(|index| claims[index]);
                let at = claimed.unwrap_or_else(|| model.latest.unwrap_or(now).checked_add_signed(*step).unwrap());
                let window = longest_ms(limits.get(pool).as_slice());
                prop_assert_eq!(log.units_at(at), model.units_at(at));
                prop_assert_eq!(log.settle(at, *units, window), model.settle(at, *units, window));
                prop_assert_eq!(log.units_at(at), model.units_at(at));
                let once = log.encode();
                log.settle(at, *units, window);
                prop_assert_eq!(log.encode(), once, "settling twice is settling once");
                prop_assert!(log.iter().map(|entry| (entry.at_ms, entry.units)).eq(model.entries.iter().copied()));
            }
            Op::Lock { limits, length } => {
                let at = model.at(limits.get(pool).as_slice(), now);
                log.lock(at, at + length);
                model.lock(at, at + length);
            }
            Op::Reload => {
                let bytes = log.encode();
                let again = WindowLog::decode(&bytes).expect("what encode wrote is read");
                prop_assert_eq!(&again, &log);
                prop_assert_eq!(again.encode(), bytes);
                log = again;
            }
        }
        same(&log, &model)?;
    }
    Ok(())
}

#[test]
fn the_log_and_a_plain_list_agree_on_everything() {
    let wanted: u64 = std::env::var("KEYGUARD_OPS").ok().and_then(|ops| ops.parse().ok()).unwrap_or(1_000_000);
    let done = AtomicU64::new(0);
    let cases = u32::try_from(wanted.div_ceil(10 * OPS_PER_CASE as u64)).unwrap();
    let compare = || {
        let strategy = (prop::collection::vec(limits(), 1..4), ops());
        while done.load(Ordering::Relaxed) < wanted {
            let config = Config { cases, failure_persistence: None, ..Config::default() };
            TestRunner::new(config).run(&strategy, |(pool, ops)| run(&pool, &ops, &done)).unwrap();
        }
    };
    // By far the longest of these tests: on every processor that there is.
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, NonZero::get) {
            scope.spawn(compare);
        }
    });
    let done = done.into_inner();
    println!("{done} operations compared");
    assert!(done >= wanted);
}

proptest! {
    #![proptest_config(Config { cases: 200, failure_persistence: None, ..Config::default() })]

    /// Whatever other windows claims name beside it, a window that all of them name never holds more than its count.
    #[test]
    fn a_limit_that_every_claim_names_is_never_exceeded(
        count in 1u64..30,
        window in prop_oneof![Just(100u64), Just(1_000), 1u64..3_000],
        others in prop::collection::vec((0u64..400, prop::option::of((1u64..60, 1u64..10_000)), 1u64..4), 1..800),
    ) {
        let mut log = WindowLog::default();
        let mut history: Vec<(u64, u64)> = Vec::new();
        let mut now = START_MS;
        for (step, other, cost) in others {
            now += step;
            let mut limits = vec![Limit::new(count, window).unwrap()];
            limits.extend(other.map(|(count, window)| Limit::new(count, window).unwrap()));
            let moment = clock([&log], longest_ms(&limits), now);
            if decide(Some(&log), &limits, cost, moment).unwrap().unwrap().granted() {
                log.push(moment.at_ms, cost, longest_ms(&limits));
                history.push((moment.at_ms, cost));
            }
            let held: u64 = history.iter().filter(|&&(t, _)| now < t + window).map(|entry| entry.1).sum();
            prop_assert!(held <= count);
            prop_assert_eq!(log.units_after(now - window), held);
        }
    }

    /// Nor do units given back, and a clock that goes back meanwhile by less than the window, let anything through too early.
    #[test]
    fn refunds_and_a_clock_that_steps_back_grant_nothing_too_early(
        count in 1u64..12,
        ops in prop::collection::vec((-900i64..900, 1u64..4, prop::option::weighted(0.3, 1u64..6)), 1..200),
    ) {
        const WINDOW: u64 = 1_000;
        let limits = [Limit::new(count, WINDOW).unwrap()];
        let mut log = WindowLog::default();
        let mut held: Vec<(u64, u64)> = Vec::new();
        let mut now = START_MS;
        for (step, cost, refund) in ops {
            now = now.saturating_add_signed(step).max(log.latest_ms().map_or(now, |latest| latest - 900));
            let moment = clock([&log], WINDOW, now);
            if decide(Some(&log), &limits, cost, moment).unwrap().unwrap().granted() {
                log.push(moment.at_ms, cost, WINDOW);
                held.push((moment.at_ms, cost));
            }
            for &(end, _) in &held {
                let inside = held.iter().filter(|&&(t, _)| t <= end && end < t + WINDOW).map(|&(_, units)| units);
                prop_assert!(inside.sum::<u64>() <= count, "in the window up to {end}: {held:?}");
            }
            let mut left = refund.map_or(0, |units| log.refund(units, None, None));
            while let Some((_, units)) = held.last_mut().filter(|_| left > 0) {
                let taken = left.min(*units);
                (*units, left) = (*units - taken, left - taken);
                if *units == 0 {
                    held.pop();
                }
            }
        }
    }

    /// However late a claim's units become known: while the latest instant lies inside the window that it named, they count.
    #[test]
    fn what_was_settled_counts_for_the_window_that_it_named(
        ops in prop::collection::vec(
            (
                prop_oneof![4 => 0u64..3, 4 => 0u64..80, 1 => 0u64..900],
                prop_oneof![Just(10u64), Just(100), Just(500), Just(2_000), 1u64..600],
                0u64..4,
                prop::option::weighted(0.5, any::<prop::sample::Index>()),
            ),
            1..600,
        ),
    ) {
        let mut log = WindowLog::default();
        // Instants that were claimed at, with the units and the longest window last named for each.
        let mut claims: Vec<(u64, u64, u64)> = Vec::new();
        let mut now = START_MS;
        for (step, window, units, settled) in ops {
            if let Some(index) = settled.filter(|_| !claims.is_empty()) {
                let (at, _, named) = index.get(&claims).to_owned();
                // What has run out, and was settled since, may stand there as it was or as it was settled.
                let held = log.units_at(at);
                let counts = now < at + window.max(named);
                log.settle(at, units, window);
                let index = claims.iter().position(|claim| claim.0 == at).unwrap();
                // What has run out may be kept, but need not be.
                claims[index] = match units {
                    _ if !counts => (at, held, 0),
                    0 => (at, 0, 0),
                    _ if units > held => (at, units, window.max(named)),
                    _ => (at, units, named),
                };
                if units > 0 && now < at + window {
                    prop_assert_eq!(log.units_at(at), units);
                }
            } else {
                now += step;
                log.push(now, units.max(1), window);
                match claims.last_mut().filter(|claim| claim.0 == now) {
                    Some(claim) => *claim = (now, claim.1 + units.max(1), claim.2.max(window)),
                    None => claims.push((now, units.max(1), window)),
                }
            }
            prop_assert_eq!(log.latest_ms(), Some(now), "a correction does not move time");
            for &(at, units, window) in &claims {
                if now < at + window {
                    prop_assert_eq!(log.units_at(at), units, "at {} in a window of {}", at, window);
                }
            }
        }
    }

    /// Settled in any order, claims stand as if all of them had been made in time.
    #[test]
    fn a_claim_settled_late_stands_where_it_was_made(
        claims in prop::collection::vec((1u64..300, prop_oneof![4 => Just(1u64), 1 => 1u64..400]), 1..1_500),
        order in prop::collection::vec(any::<u32>(), 1_500),
        every in 1usize..6,
    ) {
        const WINDOW: u64 = 86_400_000;
        let mut now = START_MS;
        let claims: Vec<(u64, u64)> = claims.into_iter().map(|(step, units)| {
            now += step;
            (now, units)
        }).collect();
        let mut in_time = WindowLog::default();
        let mut late = WindowLog::default();
        let (last, earlier) = claims.split_last().unwrap();
        for (index, &(at, units)) in earlier.iter().enumerate() {
            in_time.push(at, units, WINDOW);
            if index % every == 0 {
                late.push(at, units, WINDOW);
            }
        }
        in_time.push(last.0, last.1, WINDOW);
        late.push(last.0, last.1, WINDOW);
        let mut unsettled: Vec<(u32, (u64, u64))> = order.into_iter().zip(earlier.iter().copied()).collect();
        unsettled.sort_unstable();
        for (_, (at, units)) in unsettled {
            late.settle(at, units, WINDOW);
        }
        prop_assert_eq!(late.encode(), in_time.encode());
        prop_assert_eq!(&late, &in_time);
        prop_assert!(late.allocations() + 1 >= in_time.allocations(), "no chunk grows beyond its bound");
        prop_assert!(late.memory_bytes() < 2 * in_time.memory_bytes() + 512, "{}", late.memory_bytes());
        let mut passed = 0;
        for &(at, units) in &claims {
            passed += units;
            prop_assert_eq!((late.units_at(at), late.units_at(at + 300)), (units, in_time.units_at(at + 300)));
            prop_assert_eq!(late.units_after(at), in_time.units() - passed);
            prop_assert_eq!(late.instant_of_unit(passed), Some(at));
        }
    }

    #[test]
    fn any_bytes_decode_to_a_sound_log_or_to_none(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Some(log) = WindowLog::decode(&bytes) {
            exercise(log)?;
        }
    }

    #[test]
    fn a_damaged_encoding_decodes_to_a_sound_log_or_to_none(
        claims in prop::collection::vec((0u64..300, 1u64..300, prop_oneof![Just(1_000u64), Just(60_000)]), 1..500),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut log = WindowLog::default();
        let mut now = START_MS;
        for (step, units, window) in claims {
            now += step;
            log.push(now, units, window);
        }
        let mut bytes = log.encode();
        for (index, value) in damage {
            let index = index.index(bytes.len());
            bytes[index] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Some(log) = WindowLog::decode(&bytes) {
            exercise(log)?;
        }
    }
}

/// Everything that commands do with a log, on one that may have come from anybody.
fn exercise(mut log: WindowLog) -> Result<(), TestCaseError> {
    let bytes = log.encode();
    let again = WindowLog::decode(&bytes).expect("what encode wrote is read");
    prop_assert_eq!(again.encode(), bytes);
    let newest = log.newest_ms().unwrap_or(START_MS);
    let limits = [Limit::new(5, 1_000).unwrap(), Limit::new(1_000_000, 86_400_000).unwrap()];
    for now in [0, newest.saturating_sub(5_000), newest, newest + 5_000] {
        let moment = clock([&log], longest_ms(&limits), now);
        decide(Some(&log), &limits, 3, moment).expect("there is room");
        log.clone().push(moment.at_ms, 3, 1_000);
        log.clone().lock(moment.at_ms, moment.at_ms + 3);
        log.clone().refund(10, Some(newest), None);
        for units in [0, 1, 10] {
            let mut settled = log.clone();
            settled.settle(now, units, 1_000);
            prop_assert_eq!(settled.units(), settled.iter().map(|entry| entry.units).sum::<u64>());
            prop_assert_eq!(WindowLog::decode(&settled.encode()), Some(settled));
        }
    }
    log.refund(u64::MAX, None, None);
    prop_assert!(log.is_empty());
    Ok(())
}

#[test]
fn a_full_log_refuses_and_a_claim_that_frees_room_does_not() {
    let limit = [Limit::new(MAX_UNITS, 1_000).unwrap()];
    let mut log = WindowLog::default();
    for _ in 0..MAX_ENTRIES {
        log.push(START_MS, 1, 1_000);
    }
    let asked = |now_ms| decide(Some(&log), &limit, 1, Moment::at(now_ms, now_ms));
    assert_eq!(asked(START_MS + 999), Err(Error::BucketFull));
    assert!(asked(START_MS + 1_000).unwrap().unwrap().granted());
}

#[test]
fn memory_stays_within_the_published_figures() {
    let per_entry = |entries: u64, step_ms: u64| {
        let mut log = WindowLog::default();
        for index in 0..entries {
            log.push(START_MS + index * step_ms, 1, 366 * 86_400_000);
        }
        log.memory_bytes() as f64 / entries as f64
    };
    assert!(per_entry(100_000, 1) < 2.5, "{}", per_entry(100_000, 1));
    assert!(per_entry(100_000, 600) < 2.5, "{}", per_entry(100_000, 600));
    assert!(per_entry(60, 1_000) < 3.7, "{}", per_entry(60, 1_000));
    assert!(per_entry(1, 1) <= 32.0);
}

/// A claim of one unit every 10 ms, and a window that holds all of them.
fn steady(claims: u64, window_ms: u64) -> WindowLog {
    let mut log = WindowLog::default();
    (0..claims).for_each(|index| log.push(START_MS + index * 10, 1, window_ms));
    log
}

#[test]
fn an_overage_delays_later_claims() {
    // Logs of every form: in the struct, in one vector, in chunks.
    for claims in [3, 50, 2_000] {
        let window_ms = claims * 10 + 1_000;
        let limit = [Limit::new(claims + 5, window_ms).unwrap()];
        let mut log = steady(claims, window_ms);
        let now_ms = START_MS + claims * 10;
        let asked =
            |log: &WindowLog, now_ms| decide(Some(log), &limit, 1, clock([log], window_ms, now_ms)).unwrap().unwrap();
        assert!(asked(&log, now_ms).granted());

        // The last claim took 8 units and not 1: two more than there are. The claim that makes room is the third to run out.
        assert_eq!(log.settle(START_MS + (claims - 1) * 10, 8, window_ms), 1);
        let refused = asked(&log, now_ms);
        assert_eq!((refused.used, refused.remaining()), (claims + 7, 0));
        let free_ms = START_MS + 2 * 10 + window_ms;
        // Of three claims the third is the one that grew, and goes as a whole.
        assert_eq!(refused.retry, Retry::After(free_ms - now_ms));
        assert!(!asked(&log, free_ms - 1).granted(), "refused one millisecond before");
        assert!(asked(&log, free_ms).granted(), "allowed at it");
    }
}

#[test]
fn an_overage_beyond_any_window_still_ends() {
    let limit = [Limit::new(5, 1_000).unwrap()];
    let mut log = WindowLog::default();
    log.push(START_MS, 5, 1_000);
    log.settle(START_MS, u64::MAX, 1_000);
    assert_eq!(log.units_at(START_MS), MAX_UNITS, "no entry holds more");
    let refused = decide(Some(&log), &limit, 5, Moment::at(START_MS + 1, START_MS + 1)).unwrap().unwrap();
    assert_eq!(refused.retry, Retry::After(999));
}

#[test]
fn a_claim_that_took_less_makes_room_at_once() {
    let limit = [Limit::new(5, 1_000).unwrap()];
    let mut log = WindowLog::default();
    log.push(START_MS, 5, 1_000);
    log.push(START_MS + 10, 1, 1_000);
    let asked = |log: &WindowLog| decide(Some(log), &limit, 1, clock([log], 1_000, START_MS + 20)).unwrap().unwrap();
    assert!(!asked(&log).granted());
    assert_eq!(log.settle(START_MS, 3, 1_000), 5);
    assert_eq!(asked(&log).remaining(), 0);
    assert!(asked(&log).granted());
    assert_eq!(log.settle(START_MS, 0, 1_000), 3);
    assert_eq!((log.entries(), log.oldest_ms()), (1, Some(START_MS + 10)));
}

#[test]
fn every_claim_of_a_long_log_can_be_corrected_in_its_place() {
    const CLAIMS: u64 = 2_000;
    let mut claimed = WindowLog::default();
    (0..CLAIMS).for_each(|index| claimed.push(START_MS + index * 10, 300, 60_000));
    let mut settled = steady(CLAIMS, 60_000);
    for index in (0..CLAIMS).rev() {
        assert_eq!(settled.settle(START_MS + index * 10, 300, 60_000), 1);
    }
    assert_eq!((settled.entries(), settled.encode()), (claimed.entries(), claimed.encode()));
    for index in 0..CLAIMS {
        assert_eq!(settled.settle(START_MS + index * 10, 1, 60_000), 300);
    }
    assert_eq!(settled.encode(), steady(CLAIMS, 60_000).encode());
}

#[test]
fn settling_an_empty_log_is_a_claim() {
    let mut settled = WindowLog::default();
    assert_eq!(settled.settle(START_MS, 0, 1_000), 0);
    assert_eq!(settled, WindowLog::default(), "nothing is nothing");
    assert_eq!(settled.settle(START_MS, 7, 1_000), 0);
    let mut claimed = WindowLog::default();
    claimed.push(START_MS, 7, 1_000);
    assert_eq!(settled, claimed);

    // All units were given back since; time went on.
    claimed.push(START_MS + 100, 1, 1_000);
    claimed.refund(8, None, None);
    claimed.settle(START_MS, 7, 1_000);
    assert_eq!((claimed.units_at(START_MS), claimed.latest_ms()), (7, Some(START_MS + 100)));
    assert_eq!(WindowLog::decode(&claimed.encode()), Some(claimed));
}

#[test]
fn a_claim_that_no_window_holds_is_not_brought_back() {
    let mut log = steady(200, 500);
    let before = log.encode();
    let latest_ms = log.latest_ms().unwrap();
    log.settle(latest_ms - 500, 9, 500);
    log.settle(START_MS, 9, 500);
    assert_eq!(log.encode(), before);
    log.settle(latest_ms - 499, 9, 500);
    assert_eq!((log.units_at(latest_ms - 499), log.oldest_ms()), (9, Some(latest_ms - 499)));
}

#[test]
fn a_correction_keeps_a_lock_and_the_latest_instant() {
    let mut log = steady(5, 10_000);
    log.lock(START_MS + 1_000, START_MS + 2_000);
    log.settle(START_MS + 20, 4, 10_000);
    log.settle(START_MS + 25, 4, 10_000);
    log.settle(START_MS + 900, 4, 10_000);
    assert_eq!((log.entries(), log.units(), log.newest_ms()), (7, 16, Some(START_MS + 900)));
    assert_eq!((log.latest_ms(), log.locked_until_ms()), (Some(START_MS + 1_000), Some(START_MS + 2_000)));
    log.settle(START_MS + 2_000, 1, 10_000);
    assert_eq!(
        (log.latest_ms(), log.locked_until_ms()),
        (Some(START_MS + 2_000), None),
        "a claim after it ends a lock"
    );
}

#[test]
fn a_correction_never_shortens_what_is_kept() {
    let mut log = steady(100, 60_000);
    log.settle(START_MS + 500, 3, 1_000);
    log.settle(START_MS + 505, 3, 1_000);
    assert_eq!((log.retention_ms(), log.entries()), (60_000, 101));
    log.settle(START_MS + 500, 9, 70_000);
    assert_eq!((log.retention_ms(), log.entries()), (70_000, 101));
}

#[test]
fn a_full_log_lets_the_next_newer_entry_grow() {
    let mut log = WindowLog::default();
    for index in 0..MAX_ENTRIES as u64 {
        log.push(START_MS + index / 1_000 * 10, 1, 60_000);
    }
    let newest_ms = log.newest_ms().unwrap();
    assert_eq!(log.settle(START_MS + 15, 7, 60_000), 0);
    assert_eq!((log.units_at(START_MS + 15), log.units_at(START_MS + 20)), (0, 1_007));
    assert_eq!(log.settle(START_MS - 5, 7, 60_000), 0);
    assert_eq!((log.units_at(START_MS), log.oldest_ms()), (1_007, Some(START_MS)));
    assert_eq!(log.settle(newest_ms + 5, 7, 60_000), 0);
    assert_eq!((log.units_at(newest_ms), log.latest_ms()), (1_007, Some(newest_ms)));
    assert_eq!((log.entries(), log.units()), (MAX_ENTRIES, MAX_ENTRIES as u64 + 21));
    assert_eq!(WindowLog::decode(&log.encode()).as_ref(), Some(&log));

    // What has run out makes room.
    assert_eq!(log.settle(START_MS + 60_000, 7, 60_000), 0);
    assert_eq!((log.units_at(START_MS + 60_000), log.entries()), (7, MAX_ENTRIES - 999));
}
