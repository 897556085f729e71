//! What the window log costs by itself, without a server: `cargo bench -p keyguard-core -- --quick`.
//!
//! A log of *n* entries holds one claim a millisecond and a window of *n* milliseconds, unless a bench says otherwise.
#![allow(clippy::unwrap_used)]

use std::hint::black_box;

use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};
use keyguard_core::limit::{Limit, MAX_UNITS};
use keyguard_core::limiter::{Moment, decide};
use keyguard_core::window::WindowLog;

const START_MS: u64 = 1_800_000_000_000;
/// One log for each form: in the struct itself, in a few chunks, in hundreds of them.
const SIZES: [u64; 3] = [10, 1_000, 100_000];

criterion_group!(benches, push, decide_claim, push_finds_all_expired, encode, decode, refund, settle);
criterion_main!(benches);

/// A claim that drops the oldest entry: the window rolls, and the log keeps its size.
fn push(c: &mut Criterion) {
    let mut group = c.benchmark_group("push");
    for entries in SIZES {
        let mut log = log_of(entries);
        let mut at_ms = newest_ms(&log);
        group.bench_function(BenchmarkId::from_parameter(entries), |b| {
            b.iter(|| {
                at_ms += 1;
                log.push(at_ms, 1, entries);
            });
        });
        assert_eq!(log.entries() as u64, entries, "the log neither grew nor shrank");
    }
}

/// A decision over half of what the log holds, so that the window begins inside it.
fn decide_claim(c: &mut Criterion) {
    for (name, spare, granted) in [("decide, allowed", 1, true), ("decide, refused", 0, false)] {
        let mut group = c.benchmark_group(name);
        for entries in SIZES {
            let log = log_of(entries);
            let now_ms = newest_ms(&log);
            let moment = Moment::at(now_ms, now_ms);
            let limits = [Limit::new(entries / 2 + spare, entries / 2).unwrap()];
            let decided = || decide(Some(black_box(&log)), black_box(&limits), 1, moment).unwrap().unwrap();
            assert_eq!(decided().granted(), granted);
            group.bench_function(BenchmarkId::from_parameter(entries), |b| b.iter(decided));
        }
    }
}

/// The claim that pays for a burst: everything before it has left the window.
fn push_finds_all_expired(c: &mut Criterion) {
    let entries = 100_000;
    let full = log_of(entries);
    let later_ms = newest_ms(&full) + entries;
    c.bench_function(&format!("push that finds {entries} expired"), |b| {
        b.iter_batched(
            || full.clone(),
            |mut log| {
                log.push(later_ms, 1, entries);
                log
            },
            BatchSize::PerIteration,
        );
    });
}

fn encode(c: &mut Criterion) {
    let mut group = c.benchmark_group("encode");
    for entries in [60, 100_000] {
        let log = log_of(entries);
        group.bench_function(BenchmarkId::from_parameter(entries), |b| b.iter(|| black_box(&log).encode()));
    }
}

fn decode(c: &mut Criterion) {
    let mut group = c.benchmark_group("decode");
    for entries in [60, 100_000] {
        let bytes = log_of(entries).encode();
        group.bench_function(BenchmarkId::from_parameter(entries), |b| {
            b.iter_with_large_drop(|| WindowLog::decode(black_box(&bytes)).unwrap());
        });
    }
}

/// Gives a unit back to a claim in the middle of the log: one that is never used up, so that the log keeps its size.
fn refund(c: &mut Criterion) {
    let mut group = c.benchmark_group("refund at an old claim");
    for entries in SIZES {
        let old_ms = START_MS + entries / 2;
        let mut log = WindowLog::default();
        for at_ms in START_MS..START_MS + entries {
            log.push(at_ms, if at_ms == old_ms { MAX_UNITS } else { 1 }, entries);
        }
        group.bench_function(BenchmarkId::from_parameter(entries), |b| {
            b.iter(|| log.refund(1, black_box(Some(old_ms)), None));
        });
        assert_eq!(log.entries() as u64, entries, "the old claim is still there");
    }
}

/// Takes a claim in the middle of the log back and brings it in again.
fn settle(c: &mut Criterion) {
    let mut group = c.benchmark_group("settle an old claim to nothing and back");
    for entries in SIZES {
        let old_ms = START_MS + entries / 2;
        let mut log = log_of(entries);
        group.bench_function(BenchmarkId::from_parameter(entries), |b| {
            b.iter(|| log.settle(black_box(old_ms), 0, entries) + log.settle(black_box(old_ms), 1, entries));
        });
        assert_eq!(log.units_at(old_ms), 1, "the old claim is there again");
    }
}

fn log_of(entries: u64) -> WindowLog {
    let mut log = WindowLog::default();
    for at_ms in START_MS..START_MS + entries {
        log.push(at_ms, 1, entries);
    }
    log
}

fn newest_ms(log: &WindowLog) -> u64 {
    log.newest_ms().unwrap()
}
