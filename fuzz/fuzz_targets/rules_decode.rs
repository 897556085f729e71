//! Address rules out of any bytes, and whom they keep out.
#![no_main]

use keyguard_core::ip::{Address, Net, Rules};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Ok(mut rules) = Rules::decode(input) else { return };
    assert_eq!(rules.encode(), input, "a set of rules has one form");
    assert_eq!(rules.len(), rules.iter().count());

    let nets: Vec<Net> = rules.iter().map(|(net, _)| net).collect();
    for net in nets.iter().take(16) {
        let text = net.to_string();
        assert_eq!(Net::parse(text.as_bytes()).as_ref(), Ok(net), "a network reads back");
        let first = text.split('/').next().unwrap_or_default();
        let address = Address::parse(first.as_bytes()).expect("a network begins with an address");
        check_blocked(&rules, address, 0);
        check_blocked(&rules, address, rules.rule(*net).and_then(|rule| rule.until_ms).unwrap_or(0));
    }

    let now_ms = rules.iter().filter_map(|(_, rule)| rule.until_ms).min().unwrap_or(0);
    let held = rules.iter().filter(|(_, rule)| rule.holds(now_ms)).count();
    rules.prune(now_ms);
    assert_eq!(rules.len(), held, "those that hold stay");
    nets.iter().for_each(|net| _ = rules.unblock(*net));
    assert_eq!(rules, Rules::new());
});

/// The rule that keeps an address out lasts as long as any that covers it.
fn check_blocked(rules: &Rules, address: Address, now_ms: u64) {
    let lasts = |until_ms: Option<u64>| until_ms.unwrap_or(u64::MAX);
    let covering = rules.iter().filter(|(net, rule)| net.contains(&address) && rule.holds(now_ms));
    let expected = covering.map(|(_, rule)| lasts(rule.until_ms)).max();
    assert_eq!(rules.blocked(address, now_ms).map(|(_, rule)| lasts(rule.until_ms)), expected);
}
