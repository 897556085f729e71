//! The hot state of a key record out of any bytes, and a charge on it.
#![no_main]

use keyguard_core::effect::Claimed;
use keyguard_core::meters::{Lifetime, Meters};
use keyguard_core::quota::Period;
use keyguard_core::window::WindowLog;
use keyguard_fuzz::check_log;
use libfuzzer_sys::fuzz_target;

const UNITS: [&str; 3] = ["requests", "tokens", "x"];

fuzz_target!(|input: &[u8]| {
    let Some(mut meters) = Meters::decode(input) else { return };
    check(&meters);
    let [charged, also, _] = UNITS;
    let newest_ms = meters.log(charged).and_then(|log| log.newest_ms()).unwrap_or(0);
    let claimed = Claimed { at_ms: newest_ms + 1, units: 2, window_ms: 60_000 };
    meters.charge(&[(charged, claimed), (also, claimed), ("not a unit", claimed)]);
    assert!(meters.log(charged).is_some() && meters.log(also).is_some(), "a new unit finds room");
    check(&meters);
});

fn check(meters: &Meters) {
    UNITS.iter().filter_map(|unit| meters.log(unit)).for_each(check_log);
    let logs = UNITS.iter().filter_map(|unit| meters.log(unit)).filter_map(WindowLog::expires_at_ms);
    let counts = Period::ALL.into_iter().flat_map(|period| UNITS.map(|unit| meters.used(period, unit))).flatten();
    let ends = counts.map(|used| used.until_ms.map_or(Lifetime::Forever, Lifetime::Until));
    assert!(logs.map(Lifetime::Until).chain(ends).all(|end| end <= meters.lifetime()));
    let encoded = meters.encode();
    let decoded = Meters::decode(&encoded).expect("what is written can be read");
    assert_eq!(decoded, *meters);
    assert_eq!(decoded.encode(), encoded, "equal states have equal bytes");
    let _ = (meters.allocations(), meters.memory_bytes());
}
