//! A pool against a model that looks at every key and every claim.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::collections::BTreeMap;

use keyguard_core::cooling::Cooling;
use keyguard_core::effect::Claimed;
use keyguard_core::limit::Limit;
use keyguard_core::limiter::Retry;
use keyguard_core::meters::Meters;
use keyguard_core::pool::{HandOut, Pool, Traits, Unit, Wanted};
use keyguard_core::record::{UnitLimit, UnitLimits};
use keyguard_core::selection::{AHEAD_MS, Accounts, Ask, Choice, Chosen, Order, Refusal, SOON_MS};
use keyguard_core::{Result, selection};
use proptest::prelude::*;

const START_MS: u64 = 1_800_000_000_000;
const NEVER_MS: u64 = u64::MAX;

/// Unit, count and window. All of one unit have the same longest window: what a log forgets when limits change is not of
/// interest here.
type Limits = &'static [(&'static str, u64, u64)];

const LIMITS: [Limits; 5] = [
    &[],
    &[("requests", 2, 1000)],
    &[("requests", 3, 1000), ("requests", 1, 50)],
    &[("requests", 4, 1000), ("tokens", 10, 600)],
    &[("tokens", 12, 600)],
];

fn unit_limits(limits: Limits) -> UnitLimits<'static> {
    let limit = |(unit, count, window_ms): &(&'static str, u64, u64)| UnitLimit {
        unit,
        limit: Limit::new(*count, *window_ms).unwrap(),
    };
    limits.iter().map(limit).collect()
}

/// Claims on the logs of one owner.
#[derive(Debug, Clone, Default)]
struct Log {
    claims: Vec<(&'static str, u64, u64)>,
    latest: BTreeMap<&'static str, u64>,
}

impl Log {
    fn claim(&mut self, unit: &'static str, at_ms: u64, units: u64) {
        self.claims.push((unit, at_ms, units));
        self.latest.insert(unit, at_ms);
    }

    fn units_at(&self, unit: &str, at_ms: u64) -> u64 {
        self.claims.iter().filter(|claim| claim.0 == unit && claim.1 == at_ms).map(|claim| claim.2).sum()
    }

    fn settle(&mut self, unit: &'static str, at_ms: u64, units: u64) {
        self.claims.retain(|claim| !(claim.0 == unit && claim.1 == at_ms));
        if units > 0 {
            self.claims.push((unit, at_ms, units));
            let latest = self.latest.entry(unit).or_insert(at_ms);
            *latest = (*latest).max(at_ms);
        }
    }

    /// When a claim may come back, as of `as_of_ms`, and the units left before it.
    fn ask(&self, (unit, count, window_ms): (&str, u64, u64), cost: u64, now_ms: u64, as_of_ms: u64) -> (Retry, u64) {
        let mut counting: Vec<(u64, u64)> = self
            .claims
            .iter()
            .filter(|claim| claim.0 == unit && claim.1 + window_ms > as_of_ms)
            .map(|claim| (claim.1, claim.2))
            .collect();
        counting.sort_unstable();
        let used: u64 = counting.iter().map(|(_, units)| units).sum();
        let left = count.saturating_sub(used);
        if used + cost <= count {
            return (Retry::Granted, left);
        }
        if cost > count {
            return (Retry::Never, left);
        }
        let mut gone = 0;
        for (at_ms, units) in counting {
            gone += units;
            if used - gone + cost <= count {
                return (Retry::After(at_ms + window_ms - now_ms), left);
            }
        }
        unreachable!()
    }
}

#[derive(Debug, Clone)]
struct Key {
    id: u64,
    active: bool,
    expires_ms: u64,
    source: Option<&'static str>,
    batch: Option<&'static str>,
    account: Option<&'static str>,
    weight: u32,
    limits: Limits,
    shared: Limits,
    log: Log,
    used_ms: u64,
    turn: u64,
    pass: u64,
    cooling_ms: u64,
}

impl Key {
    fn traits(&self) -> Traits<'static> {
        Traits {
            active: self.active,
            expires_ms: (self.expires_ms != NEVER_MS).then_some(self.expires_ms),
            source: self.source,
            login: None,
            batch: self.batch,
            account: self.account,
            weight: self.weight,
            limits: unit_limits(self.limits),
            shared: unit_limits(self.shared),
        }
    }

    fn usable(&self, now_ms: u64) -> bool {
        self.active && self.expires_ms > now_ms
    }

    fn wanted(&self, wanted: &Wanted) -> bool {
        let agree = |wanted: &Option<Box<str>>, has: Option<&str>| wanted.is_none() || wanted.as_deref() == has;
        agree(&wanted.source, self.source) && agree(&wanted.batch, self.batch)
    }
}

#[derive(Debug, Clone, Copy)]
struct Asked {
    order: Order,
    source: Option<&'static str>,
    batch: Option<&'static str>,
    requests: Option<u64>,
    tokens: Option<u64>,
    limits: Limits,
}

impl Asked {
    fn wanted(&self) -> Wanted {
        Wanted { source: self.source.map(Into::into), login: None, batch: self.batch.map(Into::into) }
    }

    fn ask(&self) -> Ask {
        let unit = |unit: &str| Unit::from(unit).unwrap();
        let requests = self.requests.map(|units| (unit("requests"), units));
        let tokens = self.tokens.map(|units| (unit("tokens"), units));
        Ask::new(self.wanted(), self.order, requests.into_iter().chain(tokens).collect(), &unit_limits(self.limits))
    }

    fn cost(&self, unit: &str) -> u64 {
        if unit == "requests" { self.requests.unwrap_or(1) } else { self.tokens.unwrap_or(0) }
    }
}

#[derive(Debug, Clone, Default)]
struct Model {
    keys: BTreeMap<u64, Key>,
    accounts: BTreeMap<&'static str, Log>,
    turns: u64,
    pass: u64,
}

struct Trial {
    retry: Retry,
    cooling: bool,
    at_ms: u64,
    left: u64,
}

impl Model {
    fn limits_of(&self, key: &Key, asked: &Asked) -> (Limits, Limits) {
        let own = if key.limits.is_empty() { asked.limits } else { key.limits };
        (own, if key.shared.is_empty() { own } else { key.shared })
    }

    fn trial(&self, key: &Key, asked: &Asked, now_ms: u64) -> Trial {
        let (own, shared) = self.limits_of(key, asked);
        let empty = Log::default();
        let mut sides = vec![(own, &key.log)];
        if let Some(account) = key.account {
            sides.push((shared, self.accounts.get(account).unwrap_or(&empty)));
        }
        let also = key.account.map(|_| (shared, &key.log));
        let latest = sides
            .iter()
            .chain(&also)
            .flat_map(|(limits, log)| limits.iter().filter_map(|limit| log.latest.get(limit.0)))
            .fold(now_ms, |latest, at_ms| latest.max(*at_ms));
        let as_of_ms = if latest <= now_ms + AHEAD_MS { now_ms } else { latest };
        let taken = key.used_ms >= latest && key.used_ms < now_ms + AHEAD_MS;
        let at_ms = if taken { key.used_ms + 1 } else { latest };
        let mut retry = Retry::Granted;
        for (limits, log) in &sides {
            for limit in *limits {
                retry = retry.max(log.ask(*limit, asked.cost(limit.0), now_ms, as_of_ms).0);
            }
        }
        let left = own.iter().map(|limit| key.log.ask(*limit, 0, now_ms, as_of_ms).1).min().unwrap_or(u64::MAX);
        let of_cooling = if key.cooling_ms > now_ms { Retry::After(key.cooling_ms - now_ms) } else { Retry::Granted };
        retry = retry.max(of_cooling);
        let cooling = retry == of_cooling;
        Trial { retry, cooling, at_ms, left }
    }

    /// The keys that may be chosen, in the order, each with the instant of its claim; and what a refusal would say: when, and
    /// whether what ends then is a cooling; and from when to when it may say to look again.
    #[allow(clippy::type_complexity)]
    fn choose(
        &self,
        asked: &Asked,
        barred: &[Wanted],
        now_ms: u64,
    ) -> (Vec<(u64, u64)>, Option<(u64, Vec<bool>)>, [u64; 2]) {
        let usable: Vec<&Key> = self.keys.values().filter(|key| key.usable(now_ms)).collect();
        let set = |key: &Key| (key.source, key.batch);
        let in_set = |key: &Key| usable.iter().filter(|other| set(other) == set(key)).count();
        let mut granted: Vec<(&Key, Trial)> = Vec::new();
        let mut waits: Vec<(u64, bool)> = Vec::new();
        // One that is left to others may be passed over when another was.
        let (mut left, mut again) = (false, [NEVER_MS; 2]);
        for key in usable.iter().filter(|key| key.wanted(&asked.wanted())) {
            let is_barred = barred.iter().any(|barred| key.wanted(barred));
            let trial = self.trial(key, asked, now_ms);
            match trial.retry {
                Retry::Granted if is_barred => left = true,
                Retry::Granted => granted.push((key, trial)),
                Retry::After(ms) => {
                    waits.push((now_ms + ms, trial.cooling));
                    again[0] = again[0].min(now_ms + ms);
                    if !is_barred {
                        again[1] = again[1].min(now_ms + ms);
                    }
                }
                Retry::Never => waits.push((NEVER_MS, false)),
            }
        }
        let soonest_ms = granted.iter().map(|(key, _)| key.expires_ms).min().unwrap_or(0);
        let soon = |key: &Key| key.expires_ms == soonest_ms || key.expires_ms < soonest_ms.saturating_add(SOON_MS);
        match asked.order {
            Order::Expiry => {
                granted.retain(|(key, _)| soon(key));
                granted.sort_by_key(|(key, _)| (in_set(key), key.expires_ms, key.id));
            }
            Order::Remaining => granted.sort_by_key(|(key, trial)| (u64::MAX - trial.left, key.id)),
            Order::Rotate => granted.sort_by_key(|(key, _)| (key.turn, key.id)),
            Order::Weight => granted.sort_by_key(|(key, _)| (key.pass, key.id)),
            Order::Random => {}
        }
        if left {
            waits = vec![(now_ms + 1, false)];
        } else {
            again[1] = again[0];
        }
        let first = waits.iter().map(|(at_ms, _)| *at_ms).min();
        let why = first.map(|at_ms| (at_ms, waits.iter().filter(|wait| wait.0 == at_ms).map(|wait| wait.1).collect()));
        (granted.iter().map(|(key, trial)| (key.id, trial.at_ms)).collect(), why, again)
    }
}

#[derive(Default)]
struct Windows(BTreeMap<String, Meters>);

impl Accounts for Windows {
    fn look(&mut self, account: &str, look: &mut dyn FnMut(Option<&Meters>)) -> Result<()> {
        look(self.0.get(account));
        Ok(())
    }
}

#[derive(Debug, Clone)]
enum Step {
    Enroll {
        id: u64,
        active: bool,
        expires: Option<u64>,
        source: usize,
        batch: usize,
        account: usize,
        weight: u32,
        limits: usize,
        shared: usize,
    },
    Withdraw(u64),
    Acquire {
        asked: Asked,
        barred: Option<usize>,
        random: u64,
    },
    Cool(u64, Option<u64>),
    Settle {
        id: u64,
        back: usize,
        tokens: u64,
    },
    Pass(u64),
    Reload,
    Next(Option<usize>),
}

const TEXTS: [Option<&str>; 3] = [None, Some("a"), Some("b")];

fn step() -> impl Strategy<Value = Step> {
    let id = 1..=7_u64;
    let order = prop::sample::select(Order::WORDS.map(|(_, order)| order).to_vec());
    let few = prop::option::weighted(0.3, 0..8_u64);
    let asked = (order, 0..4_usize, 0..4_usize, prop::option::weighted(0.1, 0..3_u64), few, 0..8_usize).prop_map(
        |(order, source, batch, requests, tokens, limits)| Asked {
            order,
            source: TEXTS.get(source).copied().flatten(),
            batch: TEXTS.get(batch).copied().flatten(),
            requests,
            tokens,
            limits: LIMITS.get(limits).copied().unwrap_or_default(),
        },
    );
    let enroll = (
        id.clone(),
        any::<bool>(),
        prop::option::of(0..4_u64),
        (0..3_usize, 0..3_usize, 0..6_usize),
        1..4_u32,
        0..5_usize,
        0..9_usize,
    )
        .prop_map(|(id, active, expires, (source, batch, account), weight, limits, shared)| Step::Enroll {
            id,
            active: active || id % 2 == 0,
            expires,
            source,
            batch,
            account,
            weight,
            limits,
            shared,
        });
    prop_oneof![
        3 => enroll,
        1 => id.clone().prop_map(Step::Withdraw),
        12 => (asked, prop::option::weighted(0.1, 0..3_usize), any::<u64>())
            .prop_map(|(asked, barred, random)| Step::Acquire { asked, barred, random }),
        1 => (id.clone(), prop::option::of(1..800_u64)).prop_map(|(id, ms)| Step::Cool(id, ms)),
        2 => (id, 0..3_usize, 0..15_u64).prop_map(|(id, back, tokens)| Step::Settle { id, back, tokens }),
        4 => (0..400_u64).prop_map(Step::Pass),
        1 => Just(Step::Reload),
        1 => prop::option::of(0..3_usize).prop_map(Step::Next),
    ]
}

/// The pool and its model, taking the same steps.
#[derive(Default)]
struct Both {
    pool: Pool,
    windows: Windows,
    model: Model,
    now_ms: u64,
    handed: Vec<(u64, u64)>,
}

impl Both {
    fn enroll(&mut self, key: Key) {
        self.pool.enroll(key.id, &key.traits(), None);
        match self.model.keys.get_mut(&key.id) {
            Some(old) => {
                let Key { log, used_ms, turn, pass, cooling_ms, .. } = old.clone();
                *old = Key { log, used_ms, turn, pass, cooling_ms, ..key };
            }
            None => {
                self.model.keys.insert(key.id, Key { pass: self.model.pass, ..key });
            }
        }
    }

    fn acquire(&mut self, asked: &Asked, barred: &[Wanted], random: u64) {
        let (possible, why, looks) = self.model.choose(asked, barred, self.now_ms);
        let choice = self.pool.choose(&asked.ask(), barred, self.now_ms, random, &mut self.windows).unwrap();
        match choice {
            Choice::Chosen(chosen) => {
                let expected = possible.iter().find(|(id, _)| *id == chosen.id);
                assert!(expected.is_some(), "{asked:?}: {chosen:?} of {possible:?}");
                assert_eq!(expected, Some(&(chosen.id, chosen.at_ms)));
                if asked.order != Order::Random {
                    assert_eq!(possible.first().map(|(id, _)| *id), Some(chosen.id), "{asked:?} of {possible:?}");
                }
                self.hand_out(asked, &chosen);
            }
            Choice::Refused { why: said, retry, again } => {
                assert_eq!(possible, [], "{asked:?}: {said:?}");
                let again_ms = if let Retry::After(ms) = again { self.now_ms + ms } else { NEVER_MS };
                assert!((looks[0]..=looks[1]).contains(&again_ms), "{asked:?}: {again:?} {looks:?}");
                match why {
                    None => assert_eq!((said, retry), (Refusal::NoneUsable, Retry::Never)),
                    Some((NEVER_MS, _)) => assert_eq!((said, retry), (Refusal::RateLimited, Retry::Never)),
                    Some((at_ms, cooling)) => {
                        assert_eq!(retry, Retry::After(at_ms - self.now_ms), "{asked:?}");
                        assert!(cooling.contains(&(said == Refusal::Cooling)), "{asked:?}: {said:?}");
                    }
                }
            }
        }
    }

    fn hand_out(&mut self, asked: &Asked, chosen: &Chosen) {
        let Chosen { id, at_ms, turn, pass, claims, account, .. } = chosen;
        let key = self.model.keys.get(id).unwrap().clone();
        let (own, shared) = self.model.limits_of(&key, asked);
        let costs = |limits: Limits| -> BTreeMap<&'static str, u64> {
            let costs = limits.iter().map(|limit| (limit.0, asked.cost(limit.0)));
            costs.filter(|(_, cost)| *cost > 0).collect()
        };
        let said = |claims: &[(Unit, Claimed)]| -> BTreeMap<String, u64> {
            claims.iter().map(|(unit, claimed)| (unit.to_string(), claimed.units)).collect()
        };
        let in_words = |costs: BTreeMap<&'static str, u64>| -> BTreeMap<String, u64> {
            costs.into_iter().map(|(unit, units)| (unit.to_owned(), units)).collect()
        };
        // What only the account limits is noted with the key, too.
        let mut noted = if key.account.is_some() { costs(shared) } else { BTreeMap::new() };
        noted.retain(|unit, _| own.iter().all(|limit| limit.0 != *unit));
        noted.extend(costs(own));
        assert_eq!(said(claims), in_words(noted.clone()));
        assert!(
            *at_ms > key.used_ms || key.used_ms >= self.now_ms + AHEAD_MS,
            "each hand-out has an instant of its own"
        );
        self.pool.hand_out(&HandOut { id: *id, at_ms: *at_ms, turn: *turn, pass: *pass, claims });
        if let Some((name, claims)) = account {
            assert_eq!((Some(&**name), said(claims)), (key.account, in_words(costs(shared))));
            let claims: Vec<_> = claims.iter().map(|(unit, claimed)| (unit.as_str(), *claimed)).collect();
            self.windows.0.entry(name.to_string()).or_default().charge(&claims);
            let log = self.model.accounts.entry(key.account.unwrap()).or_default();
            costs(shared).into_iter().for_each(|(unit, units)| log.claim(unit, *at_ms, units));
        }
        self.model.turns += 1;
        if asked.order == Order::Weight {
            self.model.pass = self.model.pass.max(key.pass);
        }
        let floor = self.model.pass;
        let key = self.model.keys.get_mut(id).unwrap();
        if asked.order == Order::Weight {
            key.pass = floor + 100_000_000 / u64::from(key.weight);
        }
        (key.used_ms, key.turn) = (*at_ms, self.model.turns);
        noted.into_iter().for_each(|(unit, units)| key.log.claim(unit, *at_ms, units));
        self.handed.push((*id, *at_ms));
    }

    fn take(&mut self, step: &Step) {
        match step {
            Step::Enroll { id, active, expires, source, batch, account, weight, limits, shared } => {
                self.enroll(Key {
                    id: *id,
                    active: *active,
                    expires_ms: expires.map_or(NEVER_MS, |hours| START_MS + 500 + hours * SOON_MS / 2),
                    source: TEXTS[*source],
                    batch: TEXTS[*batch],
                    account: TEXTS.get(*account).copied().flatten(),
                    weight: *weight,
                    limits: LIMITS[*limits],
                    shared: LIMITS.get(*shared).copied().unwrap_or_default(),
                    log: Log::default(),
                    used_ms: 0,
                    turn: 0,
                    pass: 0,
                    cooling_ms: 0,
                });
            }
            Step::Withdraw(id) => {
                self.pool.withdraw(&[*id]);
                self.model.keys.remove(id);
            }
            Step::Acquire { asked, barred, random } => {
                let barred = barred.map(|batch| Wanted { batch: TEXTS[batch].map(Into::into), ..Wanted::default() });
                self.acquire(asked, barred.as_slice(), *random);
            }
            Step::Cool(id, ms) => {
                let until_ms = ms.map(|ms| self.now_ms + ms);
                let cooling = |until_ms| Cooling { until_ms, count: 1, throttled_ms: self.now_ms };
                self.pool.cool(*id, until_ms.map(cooling));
                if let Some(key) = self.model.keys.get_mut(id) {
                    key.cooling_ms = until_ms.unwrap_or(0);
                }
            }
            Step::Settle { id, back, tokens } => {
                let of_key: Vec<u64> =
                    self.handed.iter().filter(|handed| handed.0 == *id).map(|handed| handed.1).collect();
                let Some(at_ms) = of_key.iter().rev().nth(*back).copied() else { return };
                let Some(key) = self.model.keys.get_mut(id) else { return };
                if at_ms + 600 <= self.now_ms || !key.limits.iter().any(|limit| limit.0 == "tokens") {
                    return;
                }
                key.log.settle("tokens", at_ms, *tokens);
                self.pool.settle(*id, "tokens", at_ms, *tokens, 600);
                let there = self.pool.history(*id).unwrap().meters.log("tokens");
                assert_eq!(
                    there.map_or(0, |log| log.units_after(at_ms - 1) - log.units_after(at_ms)),
                    key.log.units_at("tokens", at_ms)
                );
            }
            Step::Pass(ms) => self.now_ms += ms,
            Step::Reload => {
                let bytes = self.pool.encode();
                let pool = Pool::decode(&bytes).unwrap();
                assert_eq!(pool.encode(), bytes);
                self.pool = pool;
            }
            Step::Next(batch) => {
                let wanted =
                    Wanted { batch: batch.and_then(|batch| TEXTS[batch]).map(Into::into), ..Wanted::default() };
                let usable: Vec<&Key> = self.model.keys.values().filter(|key| key.usable(self.now_ms)).collect();
                let set = |key: &Key| (key.source, key.batch);
                let in_set = |key: &Key| usable.iter().filter(|other| set(other) == set(key)).count();
                let wanted_keys = || usable.iter().filter(|key| key.wanted(&wanted));
                let soonest_ms = wanted_keys().map(|key| key.expires_ms).min().unwrap_or(0);
                let soon =
                    |key: &&&Key| key.expires_ms == soonest_ms || key.expires_ms < soonest_ms.saturating_add(SOON_MS);
                let expected = wanted_keys().filter(soon).min_by_key(|key| (in_set(key), key.expires_ms, key.id));
                assert_eq!(self.pool.next(&wanted, self.now_ms), expected.map(|key| key.id));
            }
        }
        assert_eq!(self.pool.len(), self.model.keys.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_pool_chooses_as_one_that_looks_at_every_key(steps in prop::collection::vec(step(), 1..120)) {
        let mut both = Both { now_ms: START_MS, ..Both::default() };
        steps.iter().for_each(|step| both.take(step));
    }

    #[test]
    fn damaged_bytes_are_refused_or_read_as_what_they_say(
        steps in prop::collection::vec(step(), 1..60),
        at in any::<prop::sample::Index>(),
        byte: u8,
    ) {
        let mut both = Both { now_ms: START_MS, ..Both::default() };
        steps.iter().for_each(|step| both.take(step));
        let mut bytes = both.pool.encode();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Some(mut pool) = Pool::decode(&bytes) {
            prop_assert_eq!(pool.encode(), bytes);
            let _ = pool.choose(&Ask::default(), &[], both.now_ms, 7, &mut both.windows);
        }
    }
}

fn pool_of(keys: u64, traits: &Traits<'_>) -> Pool {
    let mut pool = Pool::default();
    (1..=keys).for_each(|id| pool.enroll(id, traits, None));
    pool
}

fn plain() -> Traits<'static> {
    let limits = UnitLimits::new();
    Traits {
        active: true,
        expires_ms: None,
        source: None,
        login: None,
        batch: None,
        account: None,
        weight: 1,
        limits: limits.clone(),
        shared: limits,
    }
}

fn acquire(pool: &mut Pool, ask: &Ask, now_ms: u64, random: u64) -> Option<u64> {
    let Choice::Chosen(chosen) = pool.choose(ask, &[], now_ms, random, &mut Windows::default()).unwrap() else {
        return None;
    };
    let Chosen { id, at_ms, turn, pass, claims, .. } = &*chosen;
    pool.hand_out(&HandOut { id: *id, at_ms: *at_ms, turn: *turn, pass: *pass, claims });
    Some(*id)
}

fn ask(order: Order) -> Ask {
    Ask::new(Wanted::default(), order, Vec::new(), &UnitLimits::new())
}

#[test]
fn weights_are_kept_exactly() {
    let mut pool = Pool::default();
    for (id, weight) in [(1, 1), (2, 2), (3, 5)] {
        pool.enroll(id, &Traits { weight, ..plain() }, None);
    }
    let mut had = BTreeMap::new();
    for turn in 0..800 {
        *had.entry(acquire(&mut pool, &ask(Order::Weight), START_MS + turn, 0).unwrap()).or_insert(0) += 1;
    }
    assert_eq!(had, BTreeMap::from([(1, 100), (2, 200), (3, 500)]));
}

#[test]
fn chance_gives_each_as_often() {
    let mut pool = pool_of(10, &plain());
    let mut had = BTreeMap::new();
    for turn in 0..20_000_u64 {
        *had.entry(acquire(&mut pool, &ask(Order::Random), START_MS, turn.wrapping_mul(0x9e37_79b9)).unwrap())
            .or_insert(0_u64) += 1;
    }
    // Expected 2,000 with a standard deviation of 42.
    assert!(had.len() == 10 && had.values().all(|had| (1750..2250).contains(had)), "{had:?}");
}

#[test]
fn a_key_added_later_does_not_catch_up_on_what_it_missed() {
    let mut pool = pool_of(1, &plain());
    for turn in 0..100 {
        assert_eq!(acquire(&mut pool, &ask(Order::Weight), START_MS + turn, 0), Some(1));
    }
    pool.enroll(2, &plain(), None);
    let had: Vec<u64> =
        (0..10).filter_map(|turn| acquire(&mut pool, &ask(Order::Weight), START_MS + 200 + turn, 0)).collect();
    assert_eq!(had.iter().filter(|id| **id == 2).count(), 5, "{had:?}");
}

#[test]
fn a_key_that_moves_takes_its_windows_along() {
    let limits = unit_limits(&[("requests", 1, 1000)]);
    let (mut from, mut to) = (pool_of(1, &Traits { limits: limits.clone(), ..plain() }), Pool::default());
    assert_eq!(acquire(&mut from, &ask(Order::Expiry), START_MS, 0), Some(1));
    let history = from.withdraw(&[1]);
    to.enroll(1, &Traits { limits, ..plain() }, history);
    assert_eq!((from.is_empty(), acquire(&mut to, &ask(Order::Expiry), START_MS + 999, 0)), (true, None));
    assert_eq!(acquire(&mut to, &ask(Order::Expiry), START_MS + 1000, 0), Some(1));
}

#[test]
fn a_pool_made_again_goes_on_where_it_was() {
    let traits = Traits { limits: unit_limits(&[("requests", 3, 1000)]), weight: 2, ..plain() };
    for order in Order::WORDS.map(|(_, order)| order) {
        let mut pool = pool_of(4, &traits);
        pool.enroll(5, &Traits { active: false, ..traits.clone() }, None);
        for now_ms in [0, 1, 5, 9, 400, 401] {
            acquire(&mut pool, &ask(order), START_MS + now_ms, now_ms).unwrap();
        }
        pool.cool(2, Some(Cooling { until_ms: START_MS + 700, count: 2, throttled_ms: START_MS + 401 }));
        let mut again = pool_of(4, &traits);
        again.enroll(5, &Traits { active: false, ..traits.clone() }, None);
        for id in 1..=5 {
            match pool.remembered(id, usize::MAX) {
                Some(remembered) => again.recall(id, &remembered),
                None => assert_eq!(pool.history(id).unwrap().used_ms, 0, "nothing happened to it"),
            }
        }
        assert_eq!(again.encode(), pool.encode(), "{order:?}");
        // What is no memory of this key changes nothing.
        let remembered = pool.remembered(2, usize::MAX).unwrap();
        again.recall(3, &remembered);
        again.recall(2, b"");
        again.recall(2, remembered.split_last().unwrap().1);
        assert_eq!(again.encode(), pool.encode(), "{order:?}");
        for now_ms in [402, 701, 1_002] {
            let [at_ms, random] = [START_MS + now_ms, now_ms];
            assert_eq!(acquire(&mut again, &ask(order), at_ms, random), acquire(&mut pool, &ask(order), at_ms, random));
        }
    }
}

#[test]
fn windows_that_are_too_large_are_not_remembered() {
    let mut pool = pool_of(1, &Traits { limits: unit_limits(&[("requests", 1000, 1000)]), ..plain() });
    (0..500).for_each(|_| _ = acquire(&mut pool, &ask(Order::Expiry), START_MS, 0));
    let mut again = pool_of(1, &plain());
    again.recall(1, &pool.remembered(1, 64).unwrap());
    assert!(again.history(1).unwrap().meters.log("requests").is_none());
    assert_eq!(again.history(1).unwrap().used_ms, pool.history(1).unwrap().used_ms);
}

#[test]
fn one_key_left_of_ten_thousand_is_found_without_looking_at_the_others() {
    let limits = unit_limits(&[("requests", 1, 3_600_000)]);
    for order in Order::WORDS.map(|(_, order)| order) {
        let mut pool = pool_of(10_000, &Traits { limits: limits.clone(), ..plain() });
        for turn in 0..9_999 {
            acquire(&mut pool, &ask(order), START_MS + turn, turn).unwrap();
        }
        let begun = std::time::Instant::now();
        for turn in 0..1000 {
            let choice = pool.choose(&ask(order), &[], START_MS + 20_000, turn, &mut Windows::default()).unwrap();
            assert!(matches!(choice, Choice::Chosen(_)));
        }
        // A look at each of 10,000 keys, a thousand times, takes over half a second, however it is built.
        assert!(begun.elapsed().as_millis() < 300, "{order:?}: {:?}", begun.elapsed());
        acquire(&mut pool, &ask(order), START_MS + 20_000, 0).unwrap();
        let refused = pool.choose(&ask(order), &[], START_MS + 20_000, 0, &mut Windows::default()).unwrap();
        let retry = Retry::After(3_600_000 - 20_000);
        assert_eq!(refused, Choice::Refused { why: selection::Refusal::RateLimited, retry, again: retry });
    }
}

#[test]
fn nothing_comes_free_early_however_far_bookings_run_ahead_of_the_clock() {
    // Eleven at one instant are booked up to ten milliseconds after it, fifty up to fifty: 61 within one second of the clock.
    let mut pool = pool_of(1, &Traits { limits: unit_limits(&[("requests", 61, 1000)]), ..plain() });
    let mut take =
        |now_ms, most| (0..most).filter(|_| acquire(&mut pool, &ask(Order::Expiry), now_ms, 0).is_some()).count();
    assert_eq!(take(START_MS, 11), 11);
    assert_eq!(take(START_MS + 960, 100), 50);
}
