//! Which key of a pool is handed out: the orders, and what keeps them from looking at every key.
//!
//! Of the keys that are active, unexpired, not cooling, wanted and within their limits, the first in the order asked for is
//! chosen. Most keys of a busy pool are none of these at any moment, so a pool keeps a *lane* for each kind of question that it is
//! asked: the keys that may be ready, in the order, and the others by the instant at which each is worth another look. A lane is
//! asked with costs rounded down to powers of two: who is refused even those is refused the true ones, and who is not is tried
//! with them. Nothing of this is part of the pool's value: a lane is made by the first question that needs it, and kept up by
//! every change.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{BuildHasherDefault, Hasher};

use crate::effect::Claimed;
use crate::error::{Error, Result};
use crate::limit::Limit;
use crate::limiter::{Moment, Retry, Verdict, clock, decide, longest_ms};
use crate::meters::Meters;
use crate::pool::{Claims, Member, NEVER_MS, Plan, Pool, Unit, UnitPlan, Wanted, by_unit};
use crate::record::{DEFAULT_UNIT, UnitLimits};

/// Keys that expire within so long of the soonest count as expiring with it, in milliseconds.
pub const SOON_MS: u64 = 12 * 60 * 60 * 1000;

/// How far the bookings of one key may run ahead of the clock so that each has an instant of its own, in milliseconds. Beyond,
/// with more than fifty hand-outs of one key at once, several share one.
pub const AHEAD_MS: u64 = 50;

/// The most lanes of a pool. Each costs every hand-out about half a microsecond.
const MAX_LANES: usize = 8;

/// A key of weight w has had its share when it is this much divided by w further.
const STRIDE: u64 = 100_000_000;

/// A clock that is behind by more than this was set back: everything is looked at anew.
const SET_BACK_MS: u64 = 1000;

/// How long a key whose log is full of entries is left alone, in milliseconds.
const FULL_MS: u64 = 1000;

/// Which of several keys is handed out first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Order {
    /// Of those that expire within [`SOON_MS`] of the soonest, one of the set with the fewest usable keys; there, the soonest.
    #[default]
    Expiry,
    /// The one with the most units left, of whatever its limits leave fewest of.
    Remaining,
    /// The one that was handed out longest ago.
    Rotate,
    /// Each in proportion to its weight.
    Weight,
    /// Any.
    Random,
}

impl Order {
    /// All of them, with their words.
    pub const WORDS: [(&'static str, Self); 5] = [
        ("expiry", Self::Expiry),
        ("remaining", Self::Remaining),
        ("rotate", Self::Rotate),
        ("weight", Self::Weight),
        ("random", Self::Random),
    ];
}

/// What is asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ask {
    /// Which keys.
    pub wanted: Wanted,
    /// Which of them first.
    pub order: Order,
    /// What the use costs, by unit; one request and nothing else, unless named.
    pub costs: Vec<(Unit, u64)>,
    /// Keys that are not to be chosen, because it was seen that their secrets do not open.
    pub passed_over: Vec<u64>,
    limits: Box<[UnitPlan]>,
}

impl Ask {
    /// A question; `limits` hold for keys that have none of their own.
    #[must_use]
    pub fn new(wanted: Wanted, order: Order, costs: Vec<(Unit, u64)>, limits: &UnitLimits<'_>) -> Self {
        Self { wanted, order, costs, passed_over: Vec::new(), limits: by_unit(limits) }
    }

    fn cost(&self, unit: &str) -> u64 {
        let named = self.costs.iter().find(|(name, _)| name.as_str() == unit).map(|(_, units)| *units);
        named.unwrap_or(u64::from(unit == DEFAULT_UNIT))
    }

    fn lane(&self) -> Question {
        let mut costs = self.costs.clone();
        if !costs.iter().any(|(unit, _)| unit.as_str() == DEFAULT_UNIT) {
            costs.extend(Unit::from(DEFAULT_UNIT).map(|unit| (unit, 1)));
        }
        costs.iter_mut().for_each(|(_, units)| *units = units.checked_ilog2().map_or(0, |log| 1 << log));
        costs.sort_unstable();
        let wanted = Wanted::default();
        Question { wanted, order: self.order, costs, passed_over: Vec::new(), limits: self.limits.clone() }
    }
}

/// What a lane answers: [`Ask`] with rounded costs, for all keys of the pool.
type Question = Ask;

/// The windows of accounts, which lie outside of pools: keys of several names may share one.
pub trait Accounts {
    /// Looks at the windows of an account.
    ///
    /// # Errors
    /// When they cannot be had.
    fn look(&mut self, account: &str, look: &mut dyn FnMut(Option<&Meters>)) -> Result<()>;
}

/// What comes of a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice {
    /// A key to hand out.
    Chosen(Box<Chosen>),
    /// None now.
    Refused {
        /// Why.
        why: Refusal,
        /// When one may be had, if nobody else asks; with keys that are left to others, when they may have taken them.
        retry: Retry,
        /// The same without those: to look at them again is worth it only once somebody they are left to has gone.
        again: Retry,
    },
}

/// Why no key is handed out: what ends the wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The first key to come back is held by a limit.
    RateLimited,
    /// The first key to come back cools down.
    Cooling,
    /// No key that is wanted is active and unexpired.
    NoneUsable,
}

impl Refusal {
    /// The code of the reply.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::RateLimited => "RATE_LIMITED",
            Self::Cooling => "COOLING",
            Self::NoneUsable => "NONE_USABLE",
        }
    }
}

/// A key to hand out, and what that costs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chosen {
    /// Its id.
    pub id: u64,
    /// The instant of the claims, in unix milliseconds: no other of this key has it.
    pub at_ms: u64,
    /// The number of this hand-out in the pool.
    pub turn: u64,
    /// As [`HandOut::pass`](crate::pool::HandOut::pass).
    pub pass: Option<(u64, u64)>,
    /// The claims on its own logs.
    pub claims: Claims,
    /// Its account, and the claims on the logs of that.
    pub account: Option<(Box<str>, Claims)>,
    /// What the limit that matters most says; None if there is no limit.
    pub verdict: Option<Verdict>,
}

/// Which of the two is asked about first, the account's limits or the key's, makes no difference: all or none are taken from.
enum Trial {
    Granted { at_ms: u64, verdict: Option<Verdict> },
    Refused { retry: Retry, cooling: bool },
}

impl Pool {
    /// Chooses a key, and changes nothing that is part of the value. Keys that one of `barred` wants are left to those who wait
    /// for them; `random` decides where chance does.
    ///
    /// # Errors
    /// What `accounts` answers.
    pub fn choose(
        &mut self,
        ask: &Ask,
        barred: &[Wanted],
        now_ms: u64,
        random: u64,
        accounts: &mut impl Accounts,
    ) -> Result<Choice> {
        let mut derived = match self.derived.take() {
            Some(derived) if now_ms + SET_BACK_MS >= derived.as_of_ms => derived,
            _ => Box::new(Derived::of(self, now_ms)),
        };
        derived.tick(self, now_ms);
        let is_wanted = |set: &u32| self.sets.value(*set).is_some_and(|set| ask.wanted.matches(set));
        if ask.wanted != Wanted::default() && !derived.usable.keys().any(is_wanted) {
            self.derived = Some(derived);
            return Ok(Choice::Refused { why: Refusal::NoneUsable, retry: Retry::Never, again: Retry::Never });
        }
        let mut question = ask.lane();
        // Limits that no key needs make no other question.
        if !question.limits.is_empty() && self.plans.iter().all(|(_, plan)| !plan.own.is_empty()) {
            question.limits = Box::default();
        }
        derived.prepare(self, question);
        let lane = derived.lanes.last().ok_or(Error::Internal)?;
        let choice = Search::new(self, ask, barred, now_ms, accounts).run(lane, &derived.usable, random);
        self.derived = Some(derived);
        choice
    }

    /// The usable key that [`Order::Expiry`] puts first, whatever its limits say. It looks at every key.
    #[must_use]
    pub fn next(&self, wanted: &Wanted, now_ms: u64) -> Option<u64> {
        let is_wanted = |set: u32| self.sets.value(set).is_some_and(|set| wanted.matches(set));
        let usable = || self.members.iter().filter(|(_, member)| member.usable(now_ms));
        let candidates = || usable().filter(|(_, member)| is_wanted(member.set));
        let mut in_set = Usable::default();
        usable().for_each(|(_, member)| *in_set.entry(member.set).or_default() += 1);
        let soonest_ms = candidates().map(|(_, member)| member.expires_ms).min()?;
        let soon = candidates().filter(|(_, member)| is_soon(member.expires_ms, soonest_ms));
        let first = soon.min_by_key(|(id, member)| (in_set.get(&member.set), member.expires_ms, *id));
        first.map(|(id, _)| *id)
    }

    /// To be called before a key changes: what is derived from it is taken out.
    pub(crate) fn forget(&mut self, id: u64) {
        self.with_derived(|pool, derived| {
            if let Some(member) = pool.member(id) {
                derived.remove(id, member);
            }
        });
    }

    /// To be called after a key has changed.
    pub(crate) fn note(&mut self, id: u64) {
        self.with_derived(|pool, derived| {
            if let Some(member) = pool.member(id) {
                derived.insert(pool, id, member);
            }
        });
    }

    fn with_derived(&mut self, with: impl FnOnce(&Self, &mut Derived)) {
        if let Some(mut derived) = self.derived.take() {
            with(self, &mut derived);
            self.derived = Some(derived);
        }
    }

    fn plan(&self, member: &Member) -> Option<&Plan> {
        self.plans.value(member.plan)
    }

    fn trial(
        &self,
        member: &Member,
        ask: &Ask,
        now_ms: u64,
        accounts: &mut impl Accounts,
        exhausted: &mut Exhausted,
    ) -> Result<Trial> {
        let plan = self.plan(member).ok_or(Error::Internal)?;
        let mut weighing = Weighing::new(member, own_limits(plan, ask), ask, now_ms);
        let mut of_account = Retry::Granted;
        if let Some(retry) = exhausted.get(&member.plan) {
            of_account = *retry;
        } else if let Some(account) = &plan.account {
            let shared = shared_limits(plan, ask);
            weighing.clock(shared, Some(&member.history.meters));
            accounts.look(account, &mut |meters| {
                weighing.clock(shared, meters);
                weighing.weigh(shared, meters);
            })?;
            of_account = weighing.told.map_or(Retry::Granted, |verdict| verdict.retry);
            // For the other keys with this account and these limits it is the same, whatever instant they would be booked at.
            if of_account != Retry::Granted && weighing.moment.as_of_ms == now_ms {
                exhausted.insert(member.plan, of_account);
            }
        }
        weighing.weigh(own_limits(plan, ask), Some(&member.history.meters));
        let of_limits = weighing.told.map_or(Retry::Granted, |verdict| verdict.retry).max(of_account);
        let of_cooling =
            member.cooling_until_ms(now_ms).map_or(Retry::Granted, |until_ms| Retry::After(until_ms - now_ms));
        Ok(match of_limits.max(of_cooling) {
            Retry::Granted => Trial::Granted { at_ms: weighing.moment.at_ms, verdict: weighing.told },
            retry => Trial::Refused { retry, cooling: retry == of_cooling },
        })
    }

    fn chosen(&self, id: u64, member: &Member, ask: &Ask, at_ms: u64, verdict: Option<Verdict>) -> Option<Chosen> {
        let plan = self.plan(member)?;
        let claims = |plans: &[UnitPlan]| -> Claims {
            let cost = |plan: &UnitPlan| Some(ask.cost(&plan.unit)).filter(|units| *units > 0);
            let claims = plans.iter().filter_map(|plan| {
                Some((plan.unit, Claimed { at_ms, units: cost(plan)?, window_ms: kept_ms(&plan.limits) }))
            });
            claims.collect()
        };
        // What only the account limits is noted with the key, too: to correct it later, one must know what the key's part was.
        let (own, shared) = (own_limits(plan, ask), shared_limits(plan, ask));
        let is_own = |unit: &Unit| own.iter().any(|plan| plan.unit == *unit);
        let mut noted = claims(own);
        let of_account = plan.account.clone().map(|account| (account, claims(shared)));
        if let Some((_, claims)) = &of_account {
            noted.extend(claims.iter().filter(|(unit, _)| !is_own(unit)));
        }
        let pass = (ask.order == Order::Weight).then(|| {
            let pass = member.pass.max(self.pass);
            (pass.saturating_add(STRIDE / u64::from(member.weight.max(1))), pass)
        });
        Some(Chosen {
            id,
            at_ms,
            turn: self.turns.saturating_add(1),
            pass,
            claims: noted,
            account: of_account,
            verdict,
        })
    }
}

impl Member {
    fn usable(&self, now_ms: u64) -> bool {
        self.active && self.expires_ms > now_ms
    }

    fn cooling_until_ms(&self, now_ms: u64) -> Option<u64> {
        self.history.cooling.as_ref().map(|cooling| cooling.until_ms).filter(|until_ms| *until_ms > now_ms)
    }
}

/// For how long a claim under these limits is kept, in milliseconds: by [`AHEAD_MS`] longer than it counts. A log drops what has
/// run out as of the instant of the next claim, and that may run so far ahead of the clock, by which units are counted.
#[must_use]
pub fn kept_ms(limits: &[Limit]) -> u64 {
    longest_ms(limits) + AHEAD_MS
}

fn is_soon(expires_ms: u64, soonest_ms: u64) -> bool {
    expires_ms == soonest_ms || expires_ms < soonest_ms.saturating_add(SOON_MS)
}

fn own_limits<'a>(plan: &'a Plan, ask: &'a Ask) -> &'a [UnitPlan] {
    if plan.own.is_empty() { &ask.limits } else { &plan.own }
}

fn shared_limits<'a>(plan: &'a Plan, ask: &'a Ask) -> &'a [UnitPlan] {
    if plan.shared.is_empty() { own_limits(plan, ask) } else { &plan.shared }
}

/// A claim on several logs, all or none.
struct Weighing<'a> {
    ask: &'a Ask,
    moment: Moment,
    used_ms: u64,
    told: Option<Verdict>,
    /// The fewest units that any limit leaves, before the claim.
    left: u64,
}

impl<'a> Weighing<'a> {
    fn new(member: &Member, limits: &[UnitPlan], ask: &'a Ask, now_ms: u64) -> Self {
        let moment = Moment::at(now_ms, now_ms);
        let mut weighing = Self { ask, moment, used_ms: member.history.used_ms, told: None, left: u64::MAX };
        weighing.clock(limits, Some(&member.history.meters));
        weighing
    }

    /// Never before what a log has seen, and no two claims on a key at the same instant, so that each can be settled: one that
    /// must be put off for that is put off as little as can be, and decided as of now.
    fn clock(&mut self, limits: &[UnitPlan], meters: Option<&Meters>) {
        let now_ms = self.moment.now_ms;
        let log = |plan: &UnitPlan| meters.and_then(|meters| meters.log(&plan.unit));
        let at_ms = limits.iter().map(|plan| clock(log(plan), longest_ms(&plan.limits), now_ms).at_ms);
        let latest_ms = at_ms.max().unwrap_or(now_ms).max(self.moment.at_ms);
        let as_of_ms = if latest_ms <= now_ms + AHEAD_MS { now_ms } else { latest_ms };
        let taken = self.used_ms >= latest_ms && self.used_ms < now_ms + AHEAD_MS;
        self.moment = Moment { now_ms, at_ms: if taken { self.used_ms + 1 } else { latest_ms }, as_of_ms };
    }

    fn weigh(&mut self, limits: &[UnitPlan], meters: Option<&Meters>) {
        for plan in limits {
            let log = meters.and_then(|meters| meters.log(&plan.unit));
            let cost = self.ask.cost(&plan.unit);
            let verdict = match decide(log, &plan.limits, cost, self.moment) {
                Ok(Some(verdict)) => verdict,
                Ok(None) => continue,
                // Full of entries: as good as refused for a while.
                Err(_) => {
                    let Some(limit) = plan.limits.first() else { continue };
                    let retry = Retry::After(FULL_MS);
                    Verdict { limit: *limit, used: limit.count(), cost, retry, reset_after_ms: FULL_MS }
                }
            };
            self.left = self.left.min(verdict.remaining_before());
            if self.told.is_none_or(|told| !told.matters_more_than(&verdict)) {
                self.told = Some(verdict);
            }
        }
    }
}

/// What a pool derives from its value, as of an instant, to choose without looking at every key.
#[derive(Debug, Default)]
pub(crate) struct Derived {
    as_of_ms: u64,
    /// How many keys of each set are usable.
    usable: Usable,
    /// The usable keys that expire, by when.
    expiring: BTreeSet<(u64, u64)>,
    /// The one asked last comes last.
    lanes: Vec<Lane>,
}

type Usable = HashMap<u32, u32, BuildHasherDefault<NumberHasher>>;

/// Numbers that the server gave out need no defence against those who choose them to collide.
#[derive(Debug, Default, Clone, Copy)]
struct NumberHasher(u64);

impl Hasher for NumberHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn write_u32(&mut self, number: u32) {
        self.write_u64(u64::from(number));
    }

    fn write_u64(&mut self, number: u64) {
        // Knuth's multiplicative hashing: the table takes the top bits too.
        self.0 = (self.0 ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(32);
    }
}

impl Derived {
    fn of(pool: &Pool, now_ms: u64) -> Self {
        let mut derived = Self { as_of_ms: now_ms, ..Self::default() };
        let usable = || pool.members.iter().filter(|(_, member)| member.usable(now_ms));
        usable().for_each(|(_, member)| *derived.usable.entry(member.set).or_default() += 1);
        let expiring = usable().filter(|(_, member)| member.expires_ms != NEVER_MS);
        derived.expiring = expiring.map(|(id, member)| (member.expires_ms, *id)).collect();
        derived
    }

    /// Goes on to `now_ms`.
    fn tick(&mut self, pool: &Pool, now_ms: u64) {
        self.as_of_ms = self.as_of_ms.max(now_ms);
        while let Some((_, id)) = self.expiring.first().copied().filter(|(expires_ms, _)| *expires_ms <= self.as_of_ms)
        {
            self.expiring.pop_first();
            if let Some(member) = pool.member(id) {
                self.uncount(id, member);
            }
        }
    }

    fn insert(&mut self, pool: &Pool, id: u64, member: &Member) {
        if !member.usable(self.as_of_ms) {
            return;
        }
        if member.expires_ms != NEVER_MS {
            self.expiring.insert((member.expires_ms, id));
        }
        let before = *self.usable.get(&member.set).unwrap_or(&0);
        self.usable.insert(member.set, before + 1);
        for lane in &mut self.lanes {
            lane.recount(member.set, before, before + 1);
            lane.insert(pool, id, member, self.as_of_ms, &self.usable);
        }
    }

    fn remove(&mut self, id: u64, member: &Member) {
        if member.usable(self.as_of_ms) {
            self.expiring.remove(&(member.expires_ms, id));
            self.uncount(id, member);
        }
    }

    fn uncount(&mut self, id: u64, member: &Member) {
        let before = *self.usable.get(&member.set).unwrap_or(&0);
        let now = before.saturating_sub(1);
        if now == 0 {
            self.usable.remove(&member.set)
        } else {
            self.usable.insert(member.set, now)
        };
        for lane in &mut self.lanes {
            lane.remove(id, member, before);
            lane.recount(member.set, before, now);
        }
    }

    /// Brings the lane for a question up to date, making it if need be; it comes last.
    fn prepare(&mut self, pool: &Pool, question: Question) {
        let mut lane = match self.lanes.iter().position(|lane| lane.question == question) {
            Some(index) => self.lanes.remove(index),
            None => {
                if self.lanes.len() >= MAX_LANES {
                    self.lanes.remove(0);
                }
                Lane::of(pool, question, self.as_of_ms, &self.usable)
            }
        };
        lane.tick(pool, self.as_of_ms, &self.usable);
        self.lanes.push(lane);
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        // A tree's nodes are about two thirds full.
        let pairs = |pairs: usize| pairs * 16 * 3 / 2;
        let lanes = self.lanes.iter().map(|lane| {
            size_of::<Lane>()
                + lane.states.capacity() * (size_of::<(u64, State)>() + 1)
                + pairs(lane.resting.len() + lane.drifting.len() + 2 * lane.states.len())
        });
        size_of::<Self>() + pairs(self.expiring.len()) + self.usable.capacity() * 9 + lanes.sum::<usize>()
    }
}

/// The usable keys as one question sees them.
#[derive(Debug)]
struct Lane {
    question: Question,
    states: HashMap<u64, State, BuildHasherDefault<NumberHasher>>,
    /// Those that rest, by when they are worth another look.
    resting: BTreeSet<(u64, u64)>,
    /// Those whose rank changes by itself, by when.
    drifting: BTreeSet<(u64, u64)>,
    ready: Ready,
}

/// Where a lane has put a key.
#[derive(Debug, Clone, Copy)]
struct State {
    /// 0: it may be ready.
    rests_until_ms: u64,
    rank: u64,
    drifts_at_ms: Option<u64>,
}

/// The keys that may be ready, in order.
#[derive(Debug)]
enum Ready {
    Expiry(ByExpiry),
    /// By rank, the lowest first, then by id.
    Ranked(BTreeSet<(u64, u64)>),
    /// In no order; the rank of a key is its place.
    Any(Vec<u64>),
}

#[derive(Debug, Default)]
struct ByExpiry {
    all: BTreeSet<(u64, u64)>,
    of_set: BTreeMap<u32, BTreeSet<(u64, u64)>>,
    /// Each set with keys that may be ready: how many of its keys are usable, when the first of the ready ones expires.
    sets: BTreeSet<(u32, u64, u32)>,
}

impl Lane {
    /// All of a pool at once: trees are made of lists several times faster than key by key.
    fn of(pool: &Pool, question: Question, now_ms: u64, usable: &Usable) -> Self {
        let ready = Ready::Any(Vec::new());
        let mut lane = Self {
            question,
            states: HashMap::with_capacity_and_hasher(pool.members.len(), BuildHasherDefault::default()),
            resting: BTreeSet::new(),
            drifting: BTreeSet::new(),
            ready,
        };
        let (mut resting, mut drifting, mut ready) = (Vec::new(), Vec::new(), Vec::new());
        for (id, member) in pool.members.iter().filter(|(_, member)| member.usable(now_ms)) {
            let mut state = lane.standing(pool, member, now_ms);
            if state.rests_until_ms > 0 {
                resting.push((state.rests_until_ms, *id));
            } else {
                drifting.extend(state.drifts_at_ms.map(|at_ms| (at_ms, *id)));
                if lane.question.order == Order::Random {
                    state.rank = ready.len() as u64;
                }
                ready.push((*id, &**member, state.rank));
            }
            lane.states.insert(*id, state);
        }
        lane.resting = resting.into_iter().collect();
        lane.drifting = drifting.into_iter().collect();
        lane.ready = match lane.question.order {
            Order::Expiry => Ready::Expiry(ByExpiry::of(&ready, usable)),
            Order::Random => Ready::Any(ready.into_iter().map(|(id, ..)| id).collect()),
            Order::Remaining | Order::Rotate | Order::Weight => {
                Ready::Ranked(ready.into_iter().map(|(id, _, rank)| (rank, id)).collect())
            }
        };
        lane
    }

    fn tick(&mut self, pool: &Pool, now_ms: u64, usable: &Usable) {
        while let Some((_, id)) = self.resting.first().copied().filter(|(until_ms, _)| *until_ms <= now_ms) {
            self.look_again(pool, id, now_ms, usable);
        }
        while let Some((_, id)) = self.drifting.first().copied().filter(|(at_ms, _)| *at_ms <= now_ms) {
            self.look_again(pool, id, now_ms, usable);
        }
    }

    fn look_again(&mut self, pool: &Pool, id: u64, now_ms: u64, usable: &Usable) {
        match pool.member(id) {
            Some(member) => {
                self.remove(id, member, usable.get(&member.set).copied().unwrap_or(0));
                self.insert(pool, id, member, now_ms, usable);
            }
            None => {
                self.resting.retain(|(_, other)| *other != id);
                self.drifting.retain(|(_, other)| *other != id);
            }
        }
    }

    fn insert(&mut self, pool: &Pool, id: u64, member: &Member, now_ms: u64, usable: &Usable) {
        let mut state = self.standing(pool, member, now_ms);
        if state.rests_until_ms > 0 {
            self.resting.insert((state.rests_until_ms, id));
        } else {
            match &mut self.ready {
                Ready::Expiry(ready) => {
                    ready.insert(id, member, usable.get(&member.set).copied().unwrap_or(0));
                }
                Ready::Ranked(ready) => {
                    ready.insert((state.rank, id));
                }
                Ready::Any(ready) => {
                    state.rank = ready.len() as u64;
                    ready.push(id);
                }
            }
            if let Some(at_ms) = state.drifts_at_ms {
                self.drifting.insert((at_ms, id));
            }
        }
        self.states.insert(id, state);
    }

    /// `usable` is how many keys of its set were usable when it was put there.
    fn remove(&mut self, id: u64, member: &Member, usable: u32) {
        let Some(state) = self.states.remove(&id) else { return };
        if state.rests_until_ms > 0 {
            self.resting.remove(&(state.rests_until_ms, id));
            return;
        }
        if let Some(at_ms) = state.drifts_at_ms {
            self.drifting.remove(&(at_ms, id));
        }
        match &mut self.ready {
            Ready::Expiry(ready) => ready.remove(id, member, usable),
            Ready::Ranked(ready) => {
                ready.remove(&(state.rank, id));
            }
            Ready::Any(ready) => {
                let place = state.rank as usize;
                if ready.get(place) == Some(&id) {
                    ready.swap_remove(place);
                }
                if let Some(moved) = ready.get(place)
                    && let Some(state) = self.states.get_mut(moved)
                {
                    state.rank = place as u64;
                }
            }
        }
    }

    /// Another number of keys of a set is usable.
    fn recount(&mut self, set: u32, before: u32, now: u32) {
        if let Ready::Expiry(ready) = &mut self.ready {
            ready.recount(set, before, now);
        }
    }

    /// How a key stands at `now_ms`, as far as it alone is concerned.
    fn standing(&self, pool: &Pool, member: &Member, now_ms: u64) -> State {
        let Some(plan) = pool.plan(member) else {
            return State { rests_until_ms: NEVER_MS, rank: 0, drifts_at_ms: None };
        };
        let limits = own_limits(plan, &self.question);
        let meters = &member.history.meters;
        let mut weighing = Weighing::new(member, limits, &self.question, now_ms);
        weighing.weigh(limits, Some(meters));
        let of_limits = match weighing.told.map(|told| told.retry) {
            Some(Retry::After(ms)) => now_ms + ms,
            Some(Retry::Never) => NEVER_MS,
            Some(Retry::Granted) | None => 0,
        };
        let rests_until_ms = of_limits.max(member.cooling_until_ms(now_ms).unwrap_or(0));
        let (rank, drifts_at_ms) = match self.question.order {
            Order::Rotate => (member.turn, None),
            Order::Weight => (member.pass, None),
            Order::Remaining => {
                let rises = limits.iter().filter_map(|plan| rises_at_ms(meters, plan, weighing.moment.as_of_ms)).min();
                (u64::MAX - weighing.left, rises)
            }
            Order::Expiry | Order::Random => (0, None),
        };
        State { rests_until_ms, rank, drifts_at_ms }
    }
}

/// When the units left of a limit become more by themselves.
fn rises_at_ms(meters: &Meters, plan: &UnitPlan, as_of_ms: u64) -> Option<u64> {
    let log = meters.log(&plan.unit)?;
    let rises = |limit: &Limit| {
        let used = as_of_ms.checked_sub(limit.window_ms()).map_or(log.units(), |gone| log.units_after(gone));
        let oldest = (used > 0).then(|| log.instant_of_unit(log.units() - used + 1)).flatten()?;
        Some(oldest + limit.window_ms())
    };
    // An overage leaves nothing for longer than its oldest unit counts: it is looked at more than once.
    plan.limits.iter().filter_map(rises).min()
}

impl ByExpiry {
    fn of(ready: &[(u64, &Member, u64)], usable: &Usable) -> Self {
        let mut by_set: Vec<(u32, u64, u64)> =
            ready.iter().map(|(id, member, _)| (member.set, member.expires_ms, *id)).collect();
        by_set.sort_unstable();
        let of_set: BTreeMap<u32, BTreeSet<(u64, u64)>> = by_set
            .chunk_by(|left, right| left.0 == right.0)
            .filter_map(|keys| Some((keys.first()?.0, keys.iter().map(|key| (key.1, key.2)).collect())))
            .collect();
        let sets = of_set
            .iter()
            .filter_map(|(set, keys)| Some((usable.get(set).copied().unwrap_or(0), keys.first()?.0, *set)));
        Self {
            sets: sets.collect(),
            all: ready.iter().map(|(id, member, _)| (member.expires_ms, *id)).collect(),
            of_set,
        }
    }

    fn insert(&mut self, id: u64, member: &Member, usable: u32) {
        self.all.insert((member.expires_ms, id));
        self.change_set(member.set, usable, |keys| {
            keys.insert((member.expires_ms, id));
        });
    }

    fn remove(&mut self, id: u64, member: &Member, usable: u32) {
        self.all.remove(&(member.expires_ms, id));
        self.change_set(member.set, usable, |keys| {
            keys.remove(&(member.expires_ms, id));
        });
    }

    fn change_set(&mut self, set: u32, usable: u32, change: impl FnOnce(&mut BTreeSet<(u64, u64)>)) {
        let keys = self.of_set.entry(set).or_default();
        let before = keys.first().map(|(expires_ms, _)| *expires_ms);
        change(keys);
        let now = keys.first().map(|(expires_ms, _)| *expires_ms);
        if keys.is_empty() {
            self.of_set.remove(&set);
        }
        if before != now {
            before.map(|expires_ms| self.sets.remove(&(usable, expires_ms, set)));
            now.map(|expires_ms| self.sets.insert((usable, expires_ms, set)));
        }
    }

    fn recount(&mut self, set: u32, before: u32, now: u32) {
        if let Some((expires_ms, _)) = self.of_set.get(&set).and_then(BTreeSet::first)
            && self.sets.remove(&(before, *expires_ms, set))
        {
            self.sets.insert((now, *expires_ms, set));
        }
    }

    /// The sets with fewer than `usable` usable keys whose first ready key expires within [`SOON_MS`] of `soonest_ms`, fewest first.
    fn smaller_sets(&self, usable: u32, soonest_ms: u64) -> impl Iterator<Item = (u32, u32, &BTreeSet<(u64, u64)>)> {
        let mut from = (0, 0, 0);
        std::iter::from_fn(move || {
            loop {
                let &(count, expires_ms, set) = self.sets.range(from..).next()?;
                if count >= usable {
                    return None;
                }
                if is_soon(expires_ms, soonest_ms) {
                    from = (count, expires_ms, set.checked_add(1)?);
                    return self.of_set.get(&set).map(|keys| (count, set, keys));
                }
                // The others with as many usable keys expire later still.
                from = (count + 1, 0, 0);
            }
        })
    }
}

/// One question's way through its lane.
struct Search<'a, A> {
    pool: &'a Pool,
    ask: &'a Ask,
    barred: &'a [Wanted],
    now_ms: u64,
    accounts: &'a mut A,
    /// Of the keys that were tried in vain: when the first comes back, and whether what keeps it is that it cools down.
    soonest: Option<(u64, bool)>,
    /// Whether a key could be had, but is left to others.
    left: bool,
    /// Which sets are left to others, as far as that was asked: there may be thousands of keys in each.
    barred_sets: HashMap<u32, bool>,
    exhausted: Exhausted,
}

/// For how long the account of a plan refuses whatever its keys say, as far as that was asked: many keys may share one.
type Exhausted = HashMap<u32, Retry, BuildHasherDefault<NumberHasher>>;

impl<'a, A: Accounts> Search<'a, A> {
    fn new(pool: &'a Pool, ask: &'a Ask, barred: &'a [Wanted], now_ms: u64, accounts: &'a mut A) -> Self {
        Self {
            pool,
            ask,
            barred,
            now_ms,
            accounts,
            soonest: None,
            left: false,
            barred_sets: HashMap::new(),
            exhausted: Exhausted::default(),
        }
    }

    fn run(mut self, lane: &Lane, usable: &Usable, random: u64) -> Result<Choice> {
        let chosen = match &lane.ready {
            Ready::Ranked(ready) => self.first_of(ready.iter().map(|(_, id)| *id))?,
            Ready::Any(ready) => self.any_of(ready, random)?,
            Ready::Expiry(ready) => self.by_expiry(ready, usable)?,
        };
        if let Some(chosen) = chosen {
            return Ok(Choice::Chosen(Box::new(chosen)));
        }
        for (until_ms, id) in &lane.resting {
            // None is back before it is worth a look.
            if self.soonest.is_some_and(|(soonest_ms, _)| soonest_ms <= *until_ms) {
                break;
            }
            self.consider(*id)?;
        }
        let again = match self.soonest {
            None | Some((NEVER_MS, _)) => Retry::Never,
            Some((at_ms, _)) => Retry::After(at_ms.saturating_sub(self.now_ms).max(1)),
        };
        let (why, retry) = match self.soonest {
            _ if self.left => (Refusal::RateLimited, Retry::After(1)),
            None => (Refusal::NoneUsable, again),
            Some((_, true)) => (Refusal::Cooling, again),
            Some((_, false)) => (Refusal::RateLimited, again),
        };
        Ok(Choice::Refused { why, retry, again })
    }

    fn first_of(&mut self, ids: impl Iterator<Item = u64>) -> Result<Option<Chosen>> {
        for id in ids {
            let chosen = self.consider(id)?;
            if chosen.is_some() {
                return Ok(chosen);
            }
        }
        Ok(None)
    }

    /// Each that can be had is as likely. Most often the first that is drawn can be; where it cannot, all are shuffled as far as
    /// need be.
    fn any_of(&mut self, ready: &[u64], random: u64) -> Result<Option<Chosen>> {
        let mut random = SplitMix(random);
        let Some(last) = (ready.len() as u64).checked_sub(1) else { return Ok(None) };
        if let Some(id) = ready.get(random.up_to(last) as usize) {
            let chosen = self.consider(*id)?;
            if chosen.is_some() {
                return Ok(chosen);
            }
        }
        let mut ids = ready.to_vec();
        for place in 0..ids.len() {
            let other = place as u64 + random.up_to(last - place as u64);
            ids.swap(place, other as usize);
            let chosen = ids.get(place).map_or(Ok(None), |id| self.consider(*id))?;
            if chosen.is_some() {
                return Ok(chosen);
            }
        }
        Ok(None)
    }

    fn by_expiry(&mut self, ready: &ByExpiry, usable: &Usable) -> Result<Option<Chosen>> {
        let Some(soonest) = self.first_of(ready.all.iter().map(|(_, id)| *id))? else { return Ok(None) };
        let Some(member) = self.pool.member(soonest.id) else { return Ok(Some(soonest)) };
        let of_set = usable.get(&member.set).copied().unwrap_or(0);
        let mut best: Option<(u32, u64, Chosen)> = None;
        for (usable, set, keys) in ready.smaller_sets(of_set, member.expires_ms) {
            let first_ms = keys.first().map_or(NEVER_MS, |(expires_ms, _)| *expires_ms);
            // Sets with as many usable keys come in the order of their first keys; more of them do not matter any more.
            if best.as_ref().is_some_and(|(fewest, expires_ms, _)| usable > *fewest || first_ms > *expires_ms) {
                break;
            }
            if !self.wants(set) {
                continue;
            }
            let soon = keys.iter().take_while(|(expires_ms, _)| is_soon(*expires_ms, member.expires_ms));
            if let Some(chosen) = self.first_of(soon.map(|(_, id)| *id))? {
                let expires_ms = self.pool.member(chosen.id).map_or(NEVER_MS, |member| member.expires_ms);
                let is_better = |(_, best_ms, best): &(u32, u64, Chosen)| (expires_ms, chosen.id) < (*best_ms, best.id);
                if best.as_ref().is_none_or(is_better) {
                    best = Some((usable, expires_ms, chosen));
                }
            }
        }
        Ok(Some(best.map_or(soonest, |(_, _, chosen)| chosen)))
    }

    fn wants(&self, set: u32) -> bool {
        self.pool.sets.value(set).is_some_and(|set| self.ask.wanted.matches(set))
    }

    /// Takes a key, unless it is not wanted, left to others, or refused.
    fn consider(&mut self, id: u64) -> Result<Option<Chosen>> {
        let Some(member) = self.pool.member(id).filter(|_| !self.ask.passed_over.contains(&id)) else {
            return Ok(None);
        };
        let Some(set) = self.pool.sets.value(member.set).filter(|set| self.ask.wanted.matches(set)) else {
            return Ok(None);
        };
        let is_barred = !self.barred.is_empty()
            && *self
                .barred_sets
                .entry(member.set)
                .or_insert_with(|| self.barred.iter().any(|barred| barred.matches(set)));
        if is_barred && self.left {
            return Ok(None);
        }
        match self.pool.trial(member, self.ask, self.now_ms, self.accounts, &mut self.exhausted)? {
            // Those who wait for it take it first, and may leave some.
            Trial::Granted { .. } if is_barred => {
                self.left = true;
                Ok(None)
            }
            Trial::Granted { at_ms, verdict } => Ok(self.pool.chosen(id, member, self.ask, at_ms, verdict)),
            Trial::Refused { retry, cooling } => {
                let at_ms = match retry {
                    Retry::After(ms) => self.now_ms + ms,
                    _ => NEVER_MS,
                };
                self.note(at_ms, cooling);
                Ok(None)
            }
        }
    }

    fn note(&mut self, at_ms: u64, cooling: bool) {
        if self.soonest.is_none_or(|(soonest_ms, _)| at_ms < soonest_ms) {
            self.soonest = Some((at_ms, cooling));
        }
    }
}

/// Vigna's generator, from one random number as many as are needed.
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// 0 to `last`, each as likely as far as 64 bits go.
    fn up_to(&mut self, last: u64) -> u64 {
        ((u128::from(self.next()) * (u128::from(last) + 1)) >> 64) as u64
    }
}
