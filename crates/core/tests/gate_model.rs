//! The gate against a plain model: any sequence of calls, changes of records and steps of time.
//!
//! The model keeps a list of everything that was ever charged, and adds up what counts each time. What is decided here goes the way
//! that it goes in the server: records are packed and read again, an effect is packed, read and booked on window logs and counts,
//! and these are packed and read again.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, missing_docs)]

use std::sync::Mutex;

use keyguard_core::allowed::Allowed;
use keyguard_core::digest::Digest;
use keyguard_core::effect::Effect;
use keyguard_core::gate::{self, Asked, Code, Owner, Whose};
use keyguard_core::ip::{Address, Net};
use keyguard_core::keyring::Fingerprint;
use keyguard_core::limit::Limit;
use keyguard_core::limiter::{Decision, Retry};
use keyguard_core::meters::Meters;
use keyguard_core::quota::{Period, Quota, Quotas};
use keyguard_core::record::{ApiRecord, Issued, OrgRecord, OrgStatus, Status, UnitLimit, UnitLimits};
use keyguard_core::scope::{Scope, Scopes};
use keyguard_core::window::WindowLog;
use keyguard_core::zone::Zone;
use proptest::prelude::*;

/// A Saturday, an hour before midnight in UTC; in New York the month ends at five hours past it.
const START_MS: u64 = 1_772_319_600_000;
const KEYS: usize = 3;
const UNITS: [&str; 2] = ["requests", "tokens"];
const SCOPES: [&str; 3] = ["read", "orders:write", "admin"];
/// That of the bucket's limit, and whom the model charges for it.
const WINDOW_MS: u64 = 20_000;
const BUCKET: Option<usize> = Some(usize::MAX);
const ADDRESSES: [&str; 3] = ["192.0.2.7", "198.51.100.7", "2001:db8::7"];

#[derive(Debug, Clone)]
enum Step {
    Call { key: usize, old: bool, charging: bool, address: Option<usize>, scopes: Vec<usize>, costs: [Option<u64>; 2] },
    Claim { limit: u64, cost: u64 },
    Wait(u64),
    Suspend(bool),
    Activate { key: usize, active: bool },
    Revoke(usize),
    Rotate { key: usize, grace_ms: Option<u64> },
    Expire { key: usize, in_ms: Option<u64> },
    Limit { key: Option<usize>, limits: Vec<(usize, u64, u64)> },
    Quota { key: Option<usize>, quotas: Vec<(usize, u64, usize)> },
    Allow { key: usize, nets: Vec<usize> },
}

/// One charge: whose (None is the organization), of which unit, when, and how much.
type Charge = (Option<usize>, usize, u64, u64);

#[derive(Default)]
struct Model {
    charges: Vec<Charge>,
}

impl Model {
    fn units(&self, owner: Option<usize>, unit: usize, counts: impl Fn(u64) -> bool) -> u64 {
        let of = self.charges.iter().filter(|(whose, of, at_ms, _)| *whose == owner && *of == unit && counts(*at_ms));
        of.map(|(.., units)| units).sum()
    }
}

/// What is known of a key outside of the code that is tested.
#[derive(Clone)]
struct Known {
    status: Status,
    expires_ms: Option<u64>,
    limits: Vec<(usize, u64, u64)>,
    quotas: Vec<(usize, u64, usize)>,
    nets: Vec<usize>,
    secret: u8,
    old: Option<(u8, u64)>,
}

fn digest(secret: u8, key: usize) -> Digest {
    let mut bytes = [secret; 32];
    bytes[0] = key as u8;
    Digest::from_bytes(bytes)
}

fn issued(secret: u8, key: usize) -> Issued<'static> {
    Issued {
        digest: digest(secret, key),
        digest_key: Fingerprint::from_bytes([7; 8]),
        start: "kg_live_abcdef",
        is_foreign: false,
    }
}

fn unit_limits(limits: &[(usize, u64, u64)]) -> UnitLimits<'static> {
    limits
        .iter()
        .map(|(unit, count, window_ms)| UnitLimit {
            unit: UNITS[*unit],
            limit: Limit::new(*count, *window_ms).unwrap(),
        })
        .collect()
}

fn quotas_of(quotas: &[(usize, u64, usize)]) -> Quotas<'static> {
    let mut all = Quotas::new();
    for (unit, count, period) in quotas {
        let _ = keyguard_core::quota::add(
            &mut all,
            Quota { count: *count, period: Period::ALL[*period], unit: UNITS[*unit] },
        );
    }
    all
}

fn record(known: &Known, key: usize) -> Vec<u8> {
    let mut allowed = Allowed::default();
    known.nets.iter().for_each(|net| allowed.add(Net::parse(ADDRESSES[*net].as_bytes()).unwrap()).unwrap());
    let record = ApiRecord {
        org: "shop",
        label: "web",
        status: known.status,
        created_ms: START_MS,
        expires_ms: known.expires_ms,
        scopes: Scopes::parse(b"read,orders:*").unwrap(),
        limits: unit_limits(&known.limits),
        quotas: quotas_of(&known.quotas),
        allowed,
        issued: issued(known.secret, key),
        previous: known.old.map(|(secret, until_ms)| (issued(secret, key), until_ms)),
    };
    record.encode().unwrap()
}

/// When the running day or month began and ends, in a zone, counted without the code that is tested: as the instants at which the
/// date in that zone changes.
fn period(zone: &Zone, period: Period, now_ms: u64) -> (u64, u64) {
    type Known = Vec<(String, Period, (u64, u64))>;
    static KNOWN: Mutex<Known> = Mutex::new(Vec::new());
    if period == Period::Total {
        return (0, u64::MAX);
    }
    let mut known = KNOWN.lock().unwrap();
    let found = known
        .iter()
        .find(|(name, of, (begin, end))| name == zone.name() && *of == period && (*begin..*end).contains(&now_ms));
    if let Some((.., found)) = found {
        return *found;
    }
    let tz = jiff::tz::TimeZone::get(zone.name()).unwrap();
    let date = |ms: u64| {
        let date = jiff::Timestamp::from_millisecond(ms as i64).unwrap().to_zoned(tz.clone()).date();
        if period == Period::Day { date } else { date.first_of_month() }
    };
    // All zones here change their date on a whole minute.
    let minute = 60_000;
    let now = now_ms / minute * minute;
    let mut begin = now;
    while date(begin - minute) == date(now_ms) {
        begin -= minute;
    }
    let mut end = now + minute;
    while date(end) == date(now_ms) {
        end += minute;
    }
    known.push((zone.name().to_owned(), period, (begin, end)));
    (begin, end)
}

struct World {
    now_ms: u64,
    zone: Zone,
    model: Model,
    org_status: OrgStatus,
    org_limits: Vec<(usize, u64, u64)>,
    org_quotas: Vec<(usize, u64, usize)>,
    keys: Vec<Known>,
    /// A bucket, which callers claim of themselves: nothing that the gate does touches it.
    bucket: Option<WindowLog>,
    key_meters: Vec<Option<Meters>>,
    org_meters: Option<Meters>,
}

impl World {
    fn new(zone: &str) -> Self {
        let key = Known {
            status: Status::Active,
            expires_ms: None,
            limits: vec![(0, 5, 10_000)],
            quotas: vec![],
            nets: vec![],
            secret: 1,
            old: None,
        };
        Self {
            now_ms: START_MS,
            zone: Zone::parse(zone.as_bytes()).unwrap(),
            model: Model::default(),
            org_status: OrgStatus::Active,
            org_limits: vec![(0, 9, 30_000)],
            org_quotas: vec![],
            keys: vec![key; KEYS],
            bucket: None,
            key_meters: vec![None; KEYS],
            org_meters: None,
        }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Wait(ms) => self.now_ms += ms,
            Step::Claim { limit, cost } => self.claim(*limit, *cost),
            Step::Suspend(suspended) => {
                self.org_status = if *suspended { OrgStatus::Suspended } else { OrgStatus::Active };
            }
            Step::Activate { key, active } => {
                let key = &mut self.keys[*key];
                if key.status != Status::Revoked {
                    key.status = if *active { Status::Active } else { Status::Inactive };
                }
            }
            Step::Revoke(key) => self.keys[*key].status = Status::Revoked,
            Step::Rotate { key, grace_ms } => {
                let key = &mut self.keys[*key];
                key.old = grace_ms.map(|grace_ms| (key.secret, self.now_ms + grace_ms));
                key.secret = key.secret.wrapping_add(1);
            }
            Step::Expire { key, in_ms } => self.keys[*key].expires_ms = in_ms.map(|ms| self.now_ms + ms),
            Step::Limit { key, limits } => match key {
                Some(key) => self.keys[*key].limits.clone_from(limits),
                None => self.org_limits.clone_from(limits),
            },
            Step::Quota { key, quotas } => {
                let quotas = quotas_of(quotas)
                    .iter()
                    .map(|quota| {
                        let unit = UNITS.iter().position(|unit| *unit == quota.unit).unwrap();
                        (unit, quota.count, Period::ALL.iter().position(|period| *period == quota.period).unwrap())
                    })
                    .collect();
                match key {
                    Some(key) => self.keys[*key].quotas = quotas,
                    None => self.org_quotas = quotas,
                }
            }
            Step::Allow { key, nets } => self.keys[*key].nets.clone_from(nets),
            Step::Call { key, old, charging, address, scopes, costs } => {
                self.call(*key, *old, *charging, *address, scopes, *costs);
            }
        }
    }

    fn claim(&mut self, count: u64, cost: u64) {
        let (limit, now_ms) = (Limit::new(count, WINDOW_MS).unwrap(), self.now_ms);
        let mut decision = Decision::on(self.bucket.as_ref(), &[limit], cost, now_ms).unwrap();
        let used = self.model.units(BUCKET, 0, |at_ms| now_ms < at_ms + WINDOW_MS);
        assert_eq!(decision.verdict.granted(), used + cost <= count);
        let spent = if decision.verdict.granted() { cost } else { 0 };
        assert_eq!(decision.verdict.remaining(), count.saturating_sub(used + spent));
        if let Some(Effect::Claim(claimed)) = decision.effect(None) {
            assert_eq!((claimed.at_ms, claimed.units), (now_ms, cost));
            let mut log = self.bucket.take().unwrap_or_default();
            log.push(claimed.at_ms, claimed.units, claimed.window_ms);
            self.bucket = Some(WindowLog::decode(&log.encode()).unwrap());
            self.model.charges.push((BUCKET, 0, now_ms, cost));
        }
    }

    fn call(
        &mut self,
        key: usize,
        old: bool,
        charging: bool,
        address: Option<usize>,
        scopes: &[usize],
        costs: [Option<u64>; 2],
    ) {
        let known = self.keys[key].clone();
        let (now_ms, zone) = (self.now_ms, self.zone.clone());
        let secret = if old { known.old.map_or(0, |(secret, _)| secret) } else { known.secret };
        let mut asked =
            Asked { address: address.map(|at| Address::parse(ADDRESSES[at].as_bytes()).unwrap()), ..Asked::default() };
        asked.scopes = scopes.iter().map(|scope| Scope::parse(SCOPES[*scope].as_bytes()).unwrap()).collect();
        for (unit, cost) in UNITS.iter().zip(costs) {
            asked.costs.extend(cost.map(|cost| (*unit, cost)));
        }

        // What the code says.
        let packed = record(&known, key);
        let packed_org = OrgRecord {
            id: 1,
            status: self.org_status,
            created_ms: START_MS,
            limits: unit_limits(&self.org_limits),
            quotas: quotas_of(&self.org_quotas),
        }
        .encode()
        .unwrap();
        let api = ApiRecord::decode(&packed).unwrap();
        let org = OrgRecord::decode(&packed_org).unwrap();
        let before = (self.key_meters.clone(), self.org_meters.clone());
        let mut decision = None;
        let code = match api.issued_as(&digest(secret, key), now_ms) {
            None => Code::NotFound,
            Some(_) => gate::standing(&api, &org, &asked, now_ms).unwrap_or_else(|| {
                let decided = gate::admit(
                    Owner { limits: &api.limits, quotas: &api.quotas, meters: self.key_meters[key].as_ref() },
                    Owner { limits: &org.limits, quotas: &org.quotas, meters: self.org_meters.as_ref() },
                    &asked,
                    charging,
                    now_ms,
                    &|| Ok(zone.clone()),
                )
                .unwrap();
                let code = decided.code;
                decision = Some(decided);
                code
            }),
        };

        // What the model says.
        let cost = |unit: usize| costs[unit].unwrap_or(u64::from(unit == 0));
        let owners = [(Some(key), &known.limits, &known.quotas), (None, &self.org_limits, &self.org_quotas)];
        let mut remaining: Vec<(u64, u64)> = Vec::new();
        let (mut waits, mut never) = (Vec::new(), false);
        for (owner, limits, _) in owners {
            for (unit, count, window_ms) in limits {
                let used_at = |now: u64| self.model.units(owner, *unit, |at_ms| now < at_ms + window_ms);
                let (used, cost) = (used_at(now_ms), cost(*unit));
                remaining.push((count.saturating_sub(used), cost));
                if used + cost > *count {
                    never |= cost > *count;
                    let ends = self.model.charges.iter().map(|(_, _, at_ms, _)| at_ms + window_ms);
                    waits.extend(ends.filter(|end| *end > now_ms && used_at(*end) + cost <= *count).min());
                }
            }
        }
        let limited = remaining.iter().any(|(remaining, cost)| cost > remaining);
        let mut quota_remaining: Vec<(u64, u64)> = Vec::new();
        for (owner, _, quotas) in owners {
            for (unit, count, of) in quotas {
                let (begin, _) = period(&self.zone, Period::ALL[*of], now_ms);
                let used = self.model.units(owner, *unit, |at_ms| at_ms >= begin);
                quota_remaining.push((count.saturating_sub(used), cost(*unit)));
            }
        }
        let exceeded = quota_remaining.iter().any(|(remaining, cost)| cost > remaining);
        let works = !old || known.old.is_some_and(|(_, until_ms)| now_ms < until_ms);
        let expected = if !works {
            Code::NotFound
        } else if known.status != Status::Active {
            Code::Disabled
        } else if known.expires_ms.is_some_and(|at_ms| now_ms >= at_ms) {
            Code::Expired
        } else if self.org_status == OrgStatus::Suspended {
            Code::OrgSuspended
        } else if !known.nets.is_empty() && address.is_none_or(|address| !known.nets.contains(&address)) {
            Code::IpNotAllowed
        } else if scopes.contains(&2) {
            Code::InsufficientScope
        } else if limited {
            Code::RateLimited
        } else if exceeded {
            Code::QuotaExceeded
        } else {
            Code::Valid
        };
        assert_eq!(code, expected, "at {now_ms}: {asked:?}");

        let Some(decision) = &mut decision else { return };
        let left = |all: &[(u64, u64)]| {
            let spent = |cost: u64| if charging && code == Code::Valid { cost } else { 0 };
            all.iter().map(|(remaining, cost)| remaining - spent(*cost)).min()
        };
        if let Some(verdict) = decision.limit {
            match code {
                Code::RateLimited if never => assert_eq!(verdict.retry, Retry::Never),
                Code::RateLimited => {
                    // The longest of the waits, and the first instant at which all would fit.
                    let at = *waits.iter().max().unwrap();
                    assert_eq!(verdict.retry, Retry::After(at - now_ms));
                }
                // Of several limits the one that would have least left is told of: as it stands, when nothing is taken.
                Code::Valid if charging => assert_eq!(Some(verdict.remaining), left(&remaining)),
                _ => assert!(remaining.iter().any(|(before, _)| *before == verdict.remaining)),
            }
        }
        if let Some(verdict) = decision.quota {
            match code {
                Code::Valid if charging => assert_eq!(Some(verdict.remaining()), left(&quota_remaining)),
                Code::QuotaExceeded => {
                    let ends = |quotas: &[(usize, u64, usize)], owner| -> Vec<Option<u64>> {
                        let exceeded = quotas.iter().filter(|(unit, count, of)| {
                            let (begin, _) = period(&self.zone, Period::ALL[*of], now_ms);
                            self.model.units(owner, *unit, |at_ms| at_ms >= begin) + cost(*unit) > *count
                                && cost(*unit) > 0
                        });
                        exceeded
                            .map(|(unit, count, of)| {
                                let end = period(&self.zone, Period::ALL[*of], now_ms).1;
                                (end < u64::MAX && cost(*unit) <= *count).then_some(end - now_ms)
                            })
                            .collect()
                    };
                    let waits = [ends(&known.quotas, Some(key)), ends(&self.org_quotas, None)].concat();
                    let expected = match waits.iter().any(Option::is_none) {
                        true => Retry::Never,
                        false => Retry::After(waits.iter().flatten().copied().max().unwrap()),
                    };
                    assert_eq!(verdict.retry, expected);
                }
                _ => {}
            }
        }
        if code != Code::Valid || !charging {
            if code != Code::Valid {
                assert!(decision.charged.iter().all(|charged| charged.is_empty()), "a refusal charges nothing");
            }
            assert!(before == (self.key_meters.clone(), self.org_meters.clone()));
            return;
        }

        // It is booked as in the server, and in the model.
        assert_eq!(decision.at_ms, now_ms);
        let last_use = self.key_meters[key].as_ref().is_none_or(|meters| meters.use_is_due(now_ms));
        if let Some(admitted) = gate::admitted(decision, key as u64, "shop", last_use) {
            let packed = Effect::Admit(admitted).encode().unwrap();
            let Ok(Effect::Admit(admitted)) = Effect::decode(&packed) else { panic!("an effect that was packed") };
            let book = |meters: &mut Option<Meters>, change: &dyn Fn(&mut Meters)| {
                let mut changed = meters.take().unwrap_or_default();
                change(&mut changed);
                *meters = Some(Meters::decode(&changed.encode()).expect("what was written is read"));
            };
            book(&mut self.key_meters[key], &|meters| {
                meters.book(admitted.at_ms, &admitted.own);
                if admitted.last_use {
                    meters.set_use(admitted.at_ms);
                }
            });
            if let Some((_, charged)) = &admitted.org {
                book(&mut self.org_meters, &|meters| meters.book(admitted.at_ms, charged));
            }
        }
        for (owner, limits, quotas) in
            [(Some(key), known.limits, known.quotas), (None, self.org_limits.clone(), self.org_quotas.clone())]
        {
            for unit in 0..UNITS.len() {
                // What nothing limits is not counted, and there is nothing to count it.
                let counted = limits.iter().any(|(of, ..)| *of == unit) || quotas.iter().any(|(of, ..)| *of == unit);
                if counted && cost(unit) > 0 {
                    self.model.charges.push((owner, unit, now_ms, cost(unit)));
                }
            }
        }
        let whose = decision.limit.map(|verdict| verdict.whose);
        assert!(matches!(whose, None | Some(Whose::Key | Whose::Org)));
    }
}

fn limits() -> impl Strategy<Value = Vec<(usize, u64, u64)>> {
    // Never fewer units than before in a shorter window: what a log forgot under it, the model remembers.
    prop::collection::vec((0..UNITS.len(), 1..8_u64, Just(10_000_u64)), 1..3)
}

fn quotas() -> impl Strategy<Value = Vec<(usize, u64, usize)>> {
    prop::collection::vec((0..UNITS.len(), 1..12_u64, 0..3_usize), 0..4)
}

fn step() -> impl Strategy<Value = Step> {
    let key = || 0..KEYS;
    let call = (
        key(),
        prop::bool::weighted(0.15),
        prop::bool::weighted(0.8),
        prop::option::weighted(0.6, 0..ADDRESSES.len()),
        prop::collection::vec(prop_oneof![8 => 0..2_usize, 1 => 2..3_usize], 0..3),
        [prop::option::weighted(0.3, 0..4_u64), prop::option::weighted(0.3, 0..4_u64)],
    )
        .prop_map(|(key, old, charging, address, scopes, costs)| Step::Call {
            key,
            old,
            charging,
            address,
            scopes,
            costs,
        });
    prop_oneof![
        24 => call,
        4 => (1..9_u64, 0..4_u64).prop_map(|(limit, cost)| Step::Claim { limit, cost }),
        6 => prop_oneof![0..2_000_u64, 2_000..40_000_u64, 600_000..3_000_000_u64].prop_map(Step::Wait),
        1 => any::<bool>().prop_map(Step::Suspend),
        1 => (key(), any::<bool>()).prop_map(|(key, active)| Step::Activate { key, active }),
        1 => prop_oneof![9 => Just(None), 1 => key().prop_map(Some)].prop_map(|key| key.map_or(Step::Wait(1), Step::Revoke)),
        1 => (key(), prop::option::of(1..20_000_u64)).prop_map(|(key, grace_ms)| Step::Rotate { key, grace_ms }),
        1 => (key(), prop_oneof![3 => Just(None), 1 => (1..20_000_u64).prop_map(Some)])
            .prop_map(|(key, in_ms)| Step::Expire { key, in_ms }),
        1 => (key(), prop::collection::vec(0..ADDRESSES.len(), 0..3)).prop_map(|(key, nets)| Step::Allow { key, nets }),
    ]
}

/// What a key or the organization has at the beginning. It changes only before the first call: a log that was charged under other
/// limits may have forgotten, as it should, what a list of everything remembers.
fn beginning() -> impl Strategy<Value = Vec<Step>> {
    let owner = || prop_oneof![1 => Just(None), 3 => (0..KEYS).prop_map(Some)];
    let limit = (owner(), limits()).prop_map(|(key, limits)| Step::Limit { key, limits });
    let quota = (owner(), quotas()).prop_map(|(key, quotas)| Step::Quota { key, quotas });
    prop::collection::vec(prop_oneof![limit, quota], 0..6)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_gate_agrees_with_a_plain_model(
        zone in prop::sample::select(vec!["UTC", "America/New_York", "Asia/Kathmandu"]),
        beginning in beginning(),
        steps in prop::collection::vec(step(), 1..120),
    ) {
        let mut world = World::new(zone);
        beginning.iter().chain(&steps).for_each(|step| world.step(step));
    }
}

fn cases() -> u32 {
    std::env::var("KEYGUARD_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(2_000)
}
