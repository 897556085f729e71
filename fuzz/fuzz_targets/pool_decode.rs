//! A pool out of any bytes, and everything that is done with one.
#![no_main]

use keyguard_core::Result;
use keyguard_core::cooling::Cooling;
use keyguard_core::meters::Meters;
use keyguard_core::pool::{HandOut, Pool, Traits, Wanted};
use keyguard_core::record::UnitLimits;
use keyguard_core::selection::{Accounts, Ask, Choice, Order};
use libfuzzer_sys::fuzz_target;

struct NoAccounts;

impl Accounts for NoAccounts {
    fn look(&mut self, _: &str, look: &mut dyn FnMut(Option<&Meters>)) -> Result<()> {
        look(None);
        Ok(())
    }
}

fuzz_target!(|input: &[u8]| {
    let Some(mut pool) = Pool::decode(input) else { return };
    assert_eq!(pool.encode(), input, "only what is written is read");
    let ids: Vec<u64> = pool.ids_after(0, 5).collect();
    let used_ms = |pool: &Pool| ids.iter().filter_map(|id| pool.history(*id)).map(|history| history.used_ms).max();
    let now_ms = used_ms(&pool).unwrap_or(0).clamp(1_800_000_000_000, 200_000_000_000_000);
    for (round, order) in Order::WORDS.map(|(_, order)| order).into_iter().cycle().take(15).enumerate() {
        let round = round as u64;
        let ask = Ask::new(Wanted::default(), order, Vec::new(), &UnitLimits::new());
        let choice = pool.choose(&ask, &[], now_ms + round, round, &mut NoAccounts);
        if let Ok(Choice::Chosen(chosen)) = choice {
            let (id, at_ms, turn, pass) = (chosen.id, chosen.at_ms, chosen.turn, chosen.pass);
            assert!(at_ms >= now_ms, "never before now");
            pool.hand_out(&HandOut { id, at_ms, turn, pass, claims: &chosen.claims });
            pool.settle(id, "requests", at_ms, round % 3, 60_000);
        }
        if let Some(id) = ids.get(round as usize % 5) {
            pool.cool(*id, Some(Cooling { until_ms: now_ms + round + 2, count: 1, throttled_ms: now_ms }));
        }
    }
    let _ = (pool.next(&Wanted::default(), now_ms), pool.memory_bytes(), pool.allocations());
    let mut copy = pool.clone();
    assert!(copy == pool);
    if let Some(first) = ids.first() {
        let limits = UnitLimits::new();
        let traits = Traits {
            active: true,
            expires_ms: None,
            source: Some("a"),
            login: None,
            batch: None,
            account: None,
            weight: 1,
            limits: limits.clone(),
            shared: limits,
        };
        copy.enroll(*first, &traits, None);
        let history = copy.withdraw(&ids);
        copy.enroll(7, &traits, history);
    }
    let encoded = copy.encode();
    assert_eq!(Pool::decode(&encoded).map(|pool| pool.encode()), Some(encoded), "what is written can be read");
});
