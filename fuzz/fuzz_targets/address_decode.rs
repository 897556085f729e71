//! What an address claimed out of any bytes, and a claim on it.
#![no_main]

use keyguard_core::address::{AddressLogs, MAX_PATHS};
use keyguard_core::effect::Claimed;
use keyguard_core::path::Path;
use keyguard_fuzz::check_log;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some(mut logs) = AddressLogs::decode(input) else { return };
    check(&logs);
    let path = Path::parse(b"/a/path").expect("a path");
    let newest_ms = logs.iter().filter_map(|(_, log)| log.newest_ms()).max().unwrap_or(0);
    for path in [Some(&path), None] {
        let claimed = Claimed { at_ms: newest_ms + 1, units: 2, window_ms: 60_000 };
        let has_room = logs.wait_for_room_ms(path, claimed.at_ms) == 0;
        logs.claim(path, claimed);
        assert_eq!(logs.log(path).is_some(), has_room, "a claim is booked where there is room");
        check(&logs);
    }
    let known = logs.log(Some(&path)).is_some();
    assert_eq!(logs.clear(&path), known);
    assert!(logs.log(Some(&path)).is_none() && logs.len() <= MAX_PATHS);
});

fn check(logs: &AddressLogs) {
    logs.iter().for_each(|(_, log)| check_log(log));
    assert_eq!(logs.len(), logs.iter().count());
    assert!(logs.iter().all(|(_, log)| log.expires_at_ms() <= logs.expires_at_ms()));
    let encoded = logs.encode();
    let decoded = AddressLogs::decode(&encoded).expect("what is written can be read");
    assert_eq!(decoded, *logs);
    assert_eq!(decoded.encode(), encoded, "equal states have equal bytes");
    let _ = (logs.allocations(), logs.memory_bytes());
}
