//! A window log out of any bytes, and what becomes of it under any operations.
//!
//! Input: the number of operations, four bytes for each, the encoded log.
#![no_main]

use keyguard_core::limit::{MAX_UNITS, MAX_WINDOW_MS};
use keyguard_core::window::{Entry, MAX_INSTANT_MS, WindowLog};
use keyguard_fuzz::{check_log, magnified};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some((&operations, rest)) = input.split_first() else { return };
    let Some((operations, encoded)) = rest.split_at_checked(usize::from(operations) * 4) else { return };
    let Some(mut log) = WindowLog::decode(encoded) else { return };
    assert_eq!(log.encode(), encoded, "nothing else than what is written is read");
    check_log(&log);
    for operation in operations.as_chunks().0 {
        operate(&mut log, *operation);
        check_log(&log);
    }
});

fn operate(log: &mut WindowLog, [kind, a, b, c]: [u8; 4]) {
    let newest_ms = log.newest_ms().unwrap_or(1_800_000_000_000);
    let latest_ms = log.latest_ms().unwrap_or(newest_ms);
    match kind % 8 {
        0 => push(log, latest_ms + magnified(a), magnified(b), magnified(c)),
        1 => push(log, latest_ms.saturating_sub(magnified(a)), magnified(b), magnified(c)),
        2 => lock(log, latest_ms + magnified(a), magnified(b)),
        3 => lock(log, latest_ms.saturating_sub(magnified(a)), magnified(b)),
        4 => refund(log, magnified(a), None, newest_ms.checked_sub(magnified(b))),
        5 => {
            let at_ms = log.iter().nth(usize::from(b)).map_or(newest_ms, |entry| entry.at_ms);
            refund(log, magnified(a), Some(at_ms), newest_ms.checked_sub(magnified(c)));
        }
        6 => settle(log, latest_ms.saturating_sub(magnified(a)), magnified(b), magnified(c)),
        _ => {
            let at_ms = log.iter().nth(usize::from(a)).map_or(latest_ms + 1, |entry| entry.at_ms);
            settle(log, at_ms, magnified(b), magnified(c));
        }
    }
}

fn push(log: &mut WindowLog, at_ms: u64, units: u64, window_ms: u64) {
    let before: Vec<Entry> = log.iter().collect();
    let latest_ms = log.latest_ms();
    log.push(at_ms, units, window_ms);

    let pushed = Entry { at_ms: at_ms.clamp(1, MAX_INSTANT_MS), units: units.clamp(1, MAX_UNITS) };
    assert_eq!(log.latest_ms(), Some(pushed.at_ms));
    assert!(log.retention_ms() >= window_ms.clamp(1, MAX_WINDOW_MS));
    let afresh = latest_ms.is_some_and(|latest_ms| latest_ms > pushed.at_ms);
    let needed = before.into_iter().filter(|entry| !afresh && entry.at_ms + log.retention_ms() > pushed.at_ms);
    assert!(log.iter().eq(needed.chain([pushed])), "the entries that a window needs, and the new one");
}

fn lock(log: &mut WindowLog, at_ms: u64, length_ms: u64) {
    let before: Vec<Entry> = log.iter().collect();
    let latest_ms = log.latest_ms();
    let until_ms = at_ms.saturating_add(length_ms);
    log.lock(at_ms, until_ms);

    let at_ms = at_ms.clamp(1, MAX_INSTANT_MS);
    assert_eq!(log.latest_ms(), Some(at_ms));
    assert_eq!(log.locked_until_ms(), Some(until_ms.clamp(at_ms, MAX_INSTANT_MS)));
    let afresh = latest_ms.is_some_and(|latest_ms| latest_ms > at_ms);
    let needed = before.into_iter().filter(|entry| !afresh && entry.at_ms + log.retention_ms() > at_ms);
    assert!(log.iter().eq(needed), "the entries that a window needs");
}

fn refund(log: &mut WindowLog, units: u64, at_ms: Option<u64>, dead_until_ms: Option<u64>) {
    let mut expected: Vec<Entry> = log.iter().collect();
    let latest_ms = log.latest_ms();
    let taken = log.refund(units, at_ms, dead_until_ms);

    let mut left = units;
    for entry in expected.iter_mut().rev() {
        if at_ms.is_none_or(|at_ms| at_ms == entry.at_ms) && dead_until_ms.is_none_or(|dead| entry.at_ms > dead) {
            let taken = entry.units.min(left);
            entry.units -= taken;
            left -= taken;
        }
    }
    expected.retain(|entry| entry.units > 0);
    assert_eq!(taken, units - left);
    assert_eq!(log.latest_ms(), latest_ms, "time does not go back");
    assert!(log.iter().eq(expected), "what was not taken back");
}

fn settle(log: &mut WindowLog, at_ms: u64, units: u64, window_ms: u64) {
    let at_ms = at_ms.clamp(1, MAX_INSTANT_MS);
    let mut expected: Vec<Entry> = log.iter().collect();
    let (latest_ms, retention_ms) = (log.latest_ms(), log.retention_ms());
    let is_claim = latest_ms.is_none_or(|latest_ms| at_ms >= latest_ms);
    let stood: u64 = expected.iter().filter(|entry| entry.at_ms == at_ms).map(|entry| entry.units).sum();
    if stood == 0 && units > 0 && is_claim {
        let mut pushed = log.clone();
        pushed.push(at_ms, units, window_ms);
        assert_eq!(log.settle(at_ms, units, window_ms), 0);
        assert_eq!(*log, pushed, "at the latest instant it is a claim");
        return;
    }
    assert_eq!(log.settle(at_ms, units, window_ms), stood);

    let kept_ms = retention_ms.max(window_ms.clamp(1, MAX_WINDOW_MS));
    assert_eq!(log.latest_ms(), latest_ms, "time stands");
    assert!((retention_ms..=kept_ms).contains(&log.retention_ms()), "nothing is kept for less long");
    let index = expected.partition_point(|entry| entry.at_ms < at_ms);
    if units <= stood {
        let mut left = stood - units;
        for entry in expected.iter_mut().rev().filter(|entry| entry.at_ms == at_ms) {
            let taken = entry.units.min(left);
            entry.units -= taken;
            left -= taken;
        }
        expected.retain(|entry| entry.units > 0);
    } else if stood > 0 {
        expected[index].units = expected[index].units.saturating_add(units - stood).min(MAX_UNITS);
    } else if latest_ms.is_some_and(|latest_ms| at_ms + kept_ms > latest_ms) {
        expected.insert(index, Entry { at_ms, units: units.min(MAX_UNITS) });
    }
    assert!(log.iter().eq(expected), "the units of one instant are corrected, and nothing else");
}
