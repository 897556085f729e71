//! What several targets check.

use keyguard_core::limit::{MAX_UNITS, MAX_WINDOW_MS};
use keyguard_core::window::{Entry, MAX_INSTANT_MS, WindowLog};

/// Checks a log against the plain list of its entries, and that it reads back as it is written.
pub fn check_log(log: &WindowLog) {
    let entries: Vec<Entry> = log.iter().collect();
    assert_eq!(log.entries(), entries.len());
    assert_eq!(log.units(), entries.iter().map(|entry| entry.units).sum::<u64>());
    assert_eq!(log.is_empty(), entries.is_empty());
    assert_eq!(log.oldest_ms(), entries.first().map(|entry| entry.at_ms));
    assert_eq!(log.newest_ms(), entries.last().map(|entry| entry.at_ms));
    assert!(entries.is_sorted_by_key(|entry| entry.at_ms), "in order of time");
    assert!(entries.iter().all(|entry| entry.at_ms <= MAX_INSTANT_MS && (1..=MAX_UNITS).contains(&entry.units)));
    assert!(log.retention_ms() <= MAX_WINDOW_MS);
    assert!(log.expires_at_ms() > log.newest_ms() || log.is_empty());

    // A few entries from everywhere, and the milliseconds before and after them.
    for entry in entries.iter().step_by(entries.len() / 8 + 1).chain(entries.last()) {
        for after_ms in [entry.at_ms.saturating_sub(1), entry.at_ms, entry.at_ms + 1] {
            check_counts(log, &entries, after_ms);
        }
    }

    let encoded = log.encode();
    let decoded = WindowLog::decode(&encoded).expect("what is written can be read");
    assert_eq!(decoded, *log);
    assert_eq!(decoded.encode(), encoded, "equal logs have equal bytes");
    let _ = (log.allocations(), log.memory_bytes(), log.is_full(log.newest_ms().unwrap_or(0), 1), format!("{log:?}"));
}

fn check_counts(log: &WindowLog, entries: &[Entry], after_ms: u64) {
    let counted = || entries.iter().filter(|entry| entry.at_ms > after_ms);
    let units: u64 = counted().map(|entry| entry.units).sum();
    assert_eq!(log.units_after(after_ms), units, "after {after_ms}");
    for nth in [1, units / 2, units, units + 1] {
        let mut passed = 0;
        let expected = counted().find(|entry| {
            passed += entry.units;
            passed >= nth
        });
        // The first unit is number 1.
        if nth > 0 {
            let gone = log.units() - log.units_after(after_ms);
            assert_eq!(log.instant_of_unit(gone + nth), expected.map(|entry| entry.at_ms), "{nth} after {after_ms}");
        }
    }
}

/// A number of any size in one byte: four bits of value, four of magnitude.
pub fn magnified(byte: u8) -> u64 {
    u64::from(byte & 15) << (u32::from(byte >> 4) * 4)
}
