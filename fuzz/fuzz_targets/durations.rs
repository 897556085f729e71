//! Any bytes as a number, a duration and a point in time.
#![no_main]

use keyguard_core::limit::MAX_WINDOW_MS;
use keyguard_core::parse::{MAX_INSTANT_MS, duration_ms, duration_with_unit_ms, instant_ms, rfc3339, unsigned};
use libfuzzer_sys::fuzz_target;

/// The last second that [`rfc3339`] can write: a day before the year 9999 ends.
const LAST_WRITTEN: u64 = 253_402_207_200;

fuzz_target!(|input: &[u8]| {
    let number = unsigned(input);
    let digits = !input.is_empty() && input.iter().all(u8::is_ascii_digit);
    let expected = digits.then(|| str::from_utf8(input).ok()?.parse().ok()).flatten();
    assert_eq!(number, expected, "digits only, and no overflow");

    let duration = duration_ms(input, "x").ok();
    let with_unit = duration_with_unit_ms(input, "x").ok();
    assert_eq!(with_unit, model_with_unit(input).filter(|ms| (1..=MAX_WINDOW_MS).contains(ms)));
    if let Some(ms) = duration {
        assert!((1..=MAX_WINDOW_MS).contains(&ms));
        assert_eq!(duration_with_unit_ms(format!("{ms}ms").as_bytes(), "x"), Ok(ms), "in another form");
    }
    match number {
        Some(seconds) => {
            assert_eq!(with_unit, None, "a bare number has no unit");
            assert_eq!(duration, seconds.checked_mul(1000).filter(|ms| (1..=MAX_WINDOW_MS).contains(ms)));
        }
        None => assert_eq!(duration, with_unit, "what has a unit means the same in both"),
    }

    let instant = instant_ms(input, "x").ok();
    if let Some(ms) = instant {
        assert!(ms <= MAX_INSTANT_MS);
        assert_eq!(ms == 0, number == Some(0), "never is said by 0 alone");
        let seconds = (ms / 1000).min(LAST_WRITTEN);
        let expected = (seconds * 1000).max(1);
        assert_eq!(instant_ms(rfc3339(seconds).as_bytes(), "x"), Ok(expected), "in another form");
    }
    if let Some(seconds) = number {
        assert_eq!(instant, seconds.checked_mul(1000).filter(|ms| *ms <= MAX_INSTANT_MS));
    }
});

/// A number and a unit, with room for any number there is; `None` also for more than 64 bits.
fn model_with_unit(input: &[u8]) -> Option<u64> {
    let text = str::from_utf8(input).ok()?.to_ascii_lowercase();
    let units = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];
    let (digits, unit_ms) = units.iter().find_map(|(unit, ms)| Some((text.strip_suffix(unit)?, *ms)))?;
    let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    let number: u128 = plain.then(|| digits.parse().ok()).flatten()?;
    number.checked_mul(unit_ms)?.try_into().ok()
}
