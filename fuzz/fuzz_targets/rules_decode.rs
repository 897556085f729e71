//! Address rules out of any bytes, and whom they keep out.
#![no_main]

use keyguard_core::ip::{Address, Kind, Mark, Net, Rules, Standing};
use keyguard_core::path::Path;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Ok(mut rules) = Rules::decode(input) else { return };
    let packed = rules.encode();
    assert!(packed == input || input.first() == Some(&1), "a set of rules has one form");
    assert_eq!(Rules::decode(&packed).as_ref(), Ok(&rules));
    assert_eq!(rules.len(), rules.iter().count());

    let all: Vec<(Net, Mark, Option<u64>)> =
        rules.iter().map(|(net, rule)| (net, Mark::of(net, &rule), rule.until_ms)).collect();
    for (index, (net, mark, until_ms)) in all.iter().enumerate().take(16) {
        let text = net.to_string();
        assert_eq!(Net::parse(text.as_bytes()).as_ref(), Ok(net), "a network reads back");
        assert_eq!(Mark::parse(mark.to_string().as_bytes()).as_ref(), Ok(mark), "and so does a mark");
        assert_eq!(rules.after(Some(mark)).count(), all.len() - index - 1);
        let first = text.split('/').next().unwrap_or_default();
        let address = Address::parse(first.as_bytes()).expect("a network begins with an address");
        for path in [None, Path::parse(b"/a/b").ok()] {
            check_standing(&rules, address, path.as_ref(), 0);
            check_standing(&rules, address, path.as_ref(), until_ms.unwrap_or(0));
        }
    }

    let nets: Vec<Net> = all.iter().map(|(net, ..)| *net).collect();
    let now_ms = all.iter().filter_map(|(.., until_ms)| *until_ms).min().unwrap_or(0);
    if let Some(net) = nets.first()
        && let Some(block) = rules.next_block(*net, 1_000, now_ms)
    {
        let (before, len) = (rules.clone(), rules.len());
        match rules.set(*net, &block, now_ms) {
            Ok(()) => assert_eq!(rules.rule(*net, Kind::Block, None), Some(block)),
            Err(_) => assert_eq!((rules.len(), &rules), (len, &before), "a refusal changes nothing"),
        }
    }
    for net in nets {
        let of_net: Vec<(Kind, Option<Path<'static>>)> =
            rules.of(net).iter().map(|rule| (rule.kind, rule.path.as_ref().map(Path::to_static))).collect();
        of_net.iter().for_each(|(kind, path)| assert!(rules.remove(net, *kind, path.as_ref())));
    }
    assert_eq!(rules, Rules::new());
});

/// An address is let in if any rule lets it in, and else kept out for as long as any rule keeps it out.
fn check_standing(rules: &Rules, address: Address, path: Option<&Path<'_>>, now_ms: u64) {
    let lasts = |until_ms: Option<u64>| until_ms.unwrap_or(u64::MAX);
    let applies = |of: Option<&Path<'_>>| of.is_none_or(|of| path.is_some_and(|path| of.covers(path)));
    let covering = || {
        rules.iter().filter(|(net, rule)| net.contains(&address) && rule.holds(now_ms) && applies(rule.path.as_ref()))
    };
    match rules.judge(address, path, now_ms) {
        Standing::Allowed(_, rule) => assert!(covering().any(|(_, other)| other == rule)),
        Standing::Blocked(_, rule) => {
            assert!(covering().all(|(_, other)| other.kind == Kind::Block));
            assert_eq!(covering().map(|(_, other)| lasts(other.until_ms)).max(), Some(lasts(rule.until_ms)));
        }
        Standing::Neutral => assert_eq!(covering().count(), 0),
    }
}
