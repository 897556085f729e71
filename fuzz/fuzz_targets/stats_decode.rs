//! What a store and its keys counted, out of any bytes, and more that is counted then.
#![no_main]

use keyguard_core::gate::Code;
use keyguard_core::usage::{Counts, DAYS_KEPT, HOUR_MS, HOURS_KEPT, KeyDays, StoreStats, TOP_KEPT, Tally, Totals};
use libfuzzer_sys::fuzz_target;

const MORE: Tally = Tally { requests: 3, refused: 2, logged: 3, errors: 1 };

fuzz_target!(|input: &[u8]| {
    // The first byte says which of the two it is.
    match input.split_first() {
        Some((0, input)) => stats(input),
        Some((1, input)) => days(input),
        _ => {}
    }
});

fn stats(input: &[u8]) {
    let Some(mut stats) = StoreStats::decode(input) else { return };
    assert_eq!(stats.encode(), input, "a value has one form");
    let before = *stats.totals();
    let hour = stats.hours().next_back().map_or(0, |(hour, _)| hour);
    let mut totals = Totals::default();
    totals.count(Code::Valid);
    stats.merge(&totals, &[(hour.saturating_mul(60), MORE)], &[(hour, MORE)], u64::from(hour) * HOUR_MS);
    for (id, requests) in [(7, 1), (8, u64::MAX), (7, 2)] {
        stats.offer(id, requests);
    }
    assert!(stats.top().count() <= TOP_KEPT);
    assert!(stats.top().is_sorted_by(|(one, more), (other, less)| more > less || more == less && one < other));
    assert!(stats.hours().is_sorted_by_key(|(hour, _)| hour) && stats.hours().count() < 2 * HOURS_KEPT as usize + 1);
    assert_eq!(stats.totals().counts().requests, before.counts().requests.saturating_add(1));
    let recent = stats.last_hour(u64::from(hour) * HOUR_MS);
    assert!(recent.requests >= MORE.requests, "the minute just counted is within the hour");
    assert_eq!(StoreStats::decode(&stats.encode()).as_ref(), Some(&stats));
    let _ = (stats.forget(8), stats.memory_bytes(), stats.allocations());
}

fn days(input: &[u8]) {
    let Some(mut keys) = KeyDays::decode(input) else { return };
    assert_eq!(keys.encode(), input, "a value has one form");
    assert_eq!(keys.iter().count(), keys.len());
    let lows: Vec<u8> = keys.iter().map(|(low, ..)| low).collect();
    for low in lows.iter().copied().chain([9]) {
        let newest = keys.days(low).last().map_or(20_000, |(day, _)| *day);
        for day in [newest, newest.saturating_add(1), newest.saturating_sub(3)] {
            let before = keys.totals(low).unwrap_or_default();
            let more = Counts { requests: 3, refused: 2, logged: 3, errors: 1, latency_ms: 40 };
            let requests = keys.merge(low, &more, &[(day, MORE)], day);
            assert_eq!(requests, before.requests.saturating_add(3));
            let of_key = keys.days(low);
            assert!(of_key.is_sorted_by_key(|(day, _)| *day));
            assert!(of_key.iter().any(|(known, tally)| *known == day && tally.requests >= 3));
            assert!(of_key.len() < 2 * DAYS_KEPT as usize + 1);
        }
    }
    assert_eq!(KeyDays::decode(&keys.encode()).as_ref(), Some(&keys));
    let _ = (keys.memory_bytes(), keys.allocations());
    lows.iter().for_each(|low| assert!(keys.forget(*low)));
    assert!(keys.len() <= 1);
}
