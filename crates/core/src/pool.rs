//! A pool: the vault keys of one name, with all that choosing among them needs.
//!
//! A pool repeats what the records of its keys say of who they are and what they may do ([`Traits`]), and holds what happens to
//! them: their window logs, when they were handed out, and how long they cool down. So the choice, which
//! [`selection`](crate::selection) makes, opens no record but that of the key it fell on.
//!
//! Equal pools give equal bytes, however they came about. What is kept only to choose quickly is not part of the value: it is
//! made when somebody first chooses, and never written.

use arrayvec::{ArrayString, ArrayVec};

use crate::codec::{Reader, Writer as _};
use crate::cooling::Cooling;
use crate::effect::Claimed;
use crate::interned::Interned;
use crate::limit::{Limit, Limits, MAX_LIMITS};
use crate::meters::Meters;
use crate::names;
use crate::parse::MAX_INSTANT_MS;
use crate::record::{
    MAX_UNIT_BYTES, MAX_WEIGHT, Status, UnitLimit, UnitLimits, VaultRecord, read_limits, write_limits,
};
use crate::selection::Derived;

/// The most keys of one name. To look at each, as the first question of a kind does, takes about 2 ms for 10,000.
pub const MAX_POOL_KEYS: usize = 1_000_000;

/// The most units that one hand-out charges to a key: those of its own limits, and those that only its account limits.
const MAX_CLAIMS: usize = 2 * MAX_LIMITS;

/// The first byte of [`Pool::encode`].
const FORMAT: u8 = 1;

/// The expiry of a key that never expires.
pub(crate) const NEVER_MS: u64 = u64::MAX;

/// The name of a unit.
pub type Unit = ArrayString<MAX_UNIT_BYTES>;

/// Claims on several logs of one owner.
pub type Claims = Vec<(Unit, Claimed)>;

/// Which of the keys of a name: those that agree with all that is named.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Wanted {
    /// SOURCE.
    pub source: Option<Box<str>>,
    /// LOGIN.
    pub login: Option<Box<str>>,
    /// BATCH.
    pub batch: Option<Box<str>>,
}

impl Wanted {
    pub(crate) fn matches(&self, set: &SetName) -> bool {
        let agree = |wanted: &Option<Box<str>>, has: &Option<Box<str>>| wanted.is_none() || wanted == has;
        agree(&self.source, &set.0.source) && agree(&self.login, &set.0.login) && agree(&self.batch, &set.0.batch)
    }
}

/// What a pool knows of a key by its record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Traits<'a> {
    /// Whether it may be handed out.
    pub active: bool,
    /// Unix milliseconds; None is never.
    pub expires_ms: Option<u64>,
    /// As in the record.
    pub source: Option<&'a str>,
    /// As in the record.
    pub login: Option<&'a str>,
    /// As in the record.
    pub batch: Option<&'a str>,
    /// As in the record.
    pub account: Option<&'a str>,
    /// As in the record.
    pub weight: u32,
    /// As in the record.
    pub limits: UnitLimits<'a>,
    /// As in the record.
    pub shared: UnitLimits<'a>,
}

impl<'a> Traits<'a> {
    /// What a record says.
    #[must_use]
    pub fn of(record: &VaultRecord<'a>) -> Self {
        Self {
            active: record.status == Status::Active,
            expires_ms: record.expires_ms,
            source: record.source,
            login: record.login,
            batch: record.batch,
            account: record.account,
            weight: record.weight,
            limits: record.limits.clone(),
            shared: record.shared.clone(),
        }
    }

    /// Those of a key about which nothing is known.
    fn none() -> Self {
        let (limits, shared) = (UnitLimits::new(), UnitLimits::new());
        Self {
            active: true,
            expires_ms: None,
            source: None,
            login: None,
            batch: None,
            account: None,
            weight: 1,
            limits,
            shared,
        }
    }

    /// The packed form, as effects carry it.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64);
        out.put_byte(u8::from(self.active));
        out.put_option(self.expires_ms, Vec::put_varint);
        for text in [self.source, self.login, self.batch, self.account] {
            out.put_option(text, Vec::put_text);
        }
        out.put_varint(u64::from(self.weight));
        write_limits(&mut out, &self.limits);
        write_limits(&mut out, &self.shared);
        out
    }

    /// Reads what [`encode`](Self::encode) wrote; `None` for any other bytes.
    #[must_use]
    pub fn decode(packed: &'a [u8]) -> Option<Self> {
        let mut fields = Reader::new(packed);
        let traits = Self {
            active: flag(&mut fields)?,
            expires_ms: fields.option(Reader::varint)?,
            source: fields.option(name)?,
            login: fields.option(name)?,
            batch: fields.option(name)?,
            account: fields.option(name)?,
            weight: weight(&mut fields)?,
            limits: read_limits(&mut fields)?,
            shared: read_limits(&mut fields)?,
        };
        let in_range = traits.expires_ms.is_none_or(|at_ms| at_ms <= MAX_INSTANT_MS);
        (in_range && fields.is_empty()).then_some(traits)
    }
}

fn flag(fields: &mut Reader<'_>) -> Option<bool> {
    match fields.byte()? {
        0 => Some(false),
        1 => Some(true),
        _ => None,
    }
}

fn name<'a>(fields: &mut Reader<'a>) -> Option<&'a str> {
    fields.text().filter(|text| names::is_name(text))
}

fn weight(fields: &mut Reader<'_>) -> Option<u32> {
    u32::try_from(fields.varint()?).ok().filter(|weight| (1..=MAX_WEIGHT).contains(weight))
}

fn instant(fields: &mut Reader<'_>) -> Option<u64> {
    fields.varint().filter(|at_ms| *at_ms <= MAX_INSTANT_MS)
}

/// A set: the keys of a name that share source, login and batch.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SetName(Wanted);

/// The limits on one unit.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct UnitPlan {
    pub(crate) unit: Unit,
    /// Sorted: their order makes no difference.
    pub(crate) limits: Limits,
}

/// What keys with the same limits share.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Plan {
    pub(crate) account: Option<Box<str>>,
    pub(crate) own: Box<[UnitPlan]>,
    pub(crate) shared: Box<[UnitPlan]>,
}

impl Plan {
    fn new(account: Option<&str>, limits: &UnitLimits<'_>, shared: &UnitLimits<'_>) -> Self {
        Self { account: account.map(Into::into), own: by_unit(limits), shared: by_unit(shared) }
    }

    fn memory_bytes(&self) -> usize {
        let plans = [&self.own, &self.shared].into_iter().map(|plans| size_of_val::<[UnitPlan]>(plans)).sum::<usize>();
        plans + self.account.as_ref().map_or(0, |account| account.len())
    }
}

/// Limits, those of one unit together, in order.
pub(crate) fn by_unit(limits: &UnitLimits<'_>) -> Box<[UnitPlan]> {
    let mut plans: ArrayVec<UnitPlan, MAX_LIMITS> = ArrayVec::new();
    for UnitLimit { unit, limit } in limits {
        let Ok(unit) = Unit::from(unit) else { continue };
        match plans.iter_mut().find(|plan| plan.unit == unit) {
            Some(plan) => plan.limits.push(*limit),
            None => plans.push(UnitPlan { unit, limits: [*limit].into_iter().collect() }),
        }
    }
    plans.iter_mut().for_each(|plan| plan.limits.sort_unstable());
    plans.sort_unstable_by_key(|plan| plan.unit);
    plans.into_iter().collect()
}

fn write_plans(out: &mut Vec<u8>, plans: &[UnitPlan]) {
    let flat =
        plans.iter().flat_map(|plan| plan.limits.iter().map(|limit| UnitLimit { unit: &plan.unit, limit: *limit }));
    write_limits(out, &flat.collect());
}

/// What happened to a key, apart from what its record says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct History {
    /// Its window logs.
    pub meters: Meters,
    /// The latest instant that it was handed out at, in unix milliseconds; 0 is never.
    pub used_ms: u64,
    /// That it was throttled.
    pub cooling: Option<Box<Cooling>>,
}

/// A key of the pool.
#[derive(Debug, Clone)]
pub(crate) struct Member {
    pub(crate) set: u32,
    pub(crate) plan: u32,
    pub(crate) weight: u32,
    pub(crate) active: bool,
    /// [`NEVER_MS`] is never.
    pub(crate) expires_ms: u64,
    /// Counts the hand-outs of the pool: that of its last one; 0 is never.
    pub(crate) turn: u64,
    /// How much of its share it has had: see [`Pool::pass_after`].
    pub(crate) pass: u64,
    pub(crate) history: History,
}

/// The vault keys of one name.
#[derive(Debug, Default)]
pub struct Pool {
    /// In order of their ids.
    pub(crate) members: Vec<(u64, Box<Member>)>,
    pub(crate) sets: Interned<SetName>,
    pub(crate) plans: Interned<Plan>,
    pub(crate) turns: u64,
    pub(crate) pass: u64,
    /// What makes choosing quick; made when it is first needed.
    pub(crate) derived: Option<Box<Derived>>,
}

impl Clone for Pool {
    fn clone(&self) -> Self {
        let Self { members, sets, plans, turns, pass, derived: _ } = self;
        Self {
            members: members.clone(),
            sets: sets.clone(),
            plans: plans.clone(),
            turns: *turns,
            pass: *pass,
            derived: None,
        }
    }
}

/// By what they are written as: how values are numbered inside makes no difference.
impl PartialEq for Pool {
    fn eq(&self, other: &Self) -> bool {
        self.encode() == other.encode()
    }
}

impl Eq for Pool {}

/// That a key was handed out, and what that cost it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HandOut<'a> {
    /// Its id.
    pub id: u64,
    /// When, in unix milliseconds.
    pub at_ms: u64,
    /// The number of this hand-out in the pool.
    pub turn: u64,
    /// What the choice by weight noted: how much of its share the key has had, and how far the pool has come.
    pub pass: Option<(u64, u64)>,
    /// The claims on its own logs, each with its unit.
    pub claims: &'a [(Unit, Claimed)],
}

impl Pool {
    /// How many keys there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// The first `most` ids after `after`.
    pub fn ids_after(&self, after: u64, most: usize) -> impl Iterator<Item = u64> + '_ {
        let from = self.members.partition_point(|(id, _)| *id <= after);
        self.members.get(from..).unwrap_or_default().iter().take(most).map(|(id, _)| *id)
    }

    /// Whether a key is in it.
    #[must_use]
    pub fn contains(&self, id: u64) -> bool {
        self.find(id).is_ok()
    }

    /// Of each key: its set, whether it is active, and when it expires, in unix milliseconds.
    pub fn usabilities(&self) -> impl Iterator<Item = (&Wanted, bool, Option<u64>)> {
        self.members.iter().filter_map(|(_, member)| {
            let SetName(set) = self.sets.value(member.set)?;
            Some((set, member.active, (member.expires_ms != NEVER_MS).then_some(member.expires_ms)))
        })
    }

    /// What happened to a key.
    #[must_use]
    pub fn history(&self, id: u64) -> Option<&History> {
        self.member(id).map(|member| &member.history)
    }

    /// What happened to a key, as bytes that [`recall`](Self::recall) reads: None if nothing did. Window logs that hold more than `max`
    /// bytes of memory are left out.
    #[must_use]
    pub fn remembered(&self, id: u64, max: usize) -> Option<Vec<u8>> {
        let member = self.member(id)?;
        let History { meters, used_ms, cooling } = &member.history;
        if *used_ms == 0 && cooling.is_none() && *meters == Meters::default() {
            return None;
        }
        let meters = if meters.memory_bytes() <= max { meters.clone() } else { Meters::default() };
        let history = History { meters, used_ms: *used_ms, cooling: cooling.clone() };
        // It is the encoding of a pool of this key alone, about which nothing else is known.
        let mut alone = Self { turns: self.turns, pass: self.pass, ..Self::default() };
        alone.enroll(id, &Traits::none(), Some(history));
        alone.change(id, |alone| (alone.turn, alone.pass) = (member.turn, member.pass));
        Some(alone.encode())
    }

    /// Makes what happened to a key of this pool what [`remembered`](Self::remembered) says: of the same key in another place, or at
    /// another time. Anything else is ignored.
    pub fn recall(&mut self, id: u64, remembered: &[u8]) {
        let Some(mut before) = Self::decode(remembered) else { return };
        let Some((turn, pass, history)) = before.members.first_mut().and_then(|(of, member)| {
            (*of == id).then(|| (member.turn, member.pass, std::mem::take(&mut member.history)))
        }) else {
            return;
        };
        self.turns = self.turns.max(before.turns);
        self.pass = self.pass.max(before.pass);
        self.change(id, |member| (member.turn, member.pass, member.history) = (turn, pass, history));
    }

    /// Makes a key what its record says; adds it if need be, with its history, which is otherwise left as it is.
    pub fn enroll(&mut self, id: u64, traits: &Traits<'_>, history: Option<History>) {
        let set = SetName(Wanted {
            source: traits.source.map(Into::into),
            login: traits.login.map(Into::into),
            batch: traits.batch.map(Into::into),
        });
        let (set, plan) =
            (self.sets.take(set), self.plans.take(Plan::new(traits.account, &traits.limits, &traits.shared)));
        let (weight, active, expires_ms) = (traits.weight, traits.active, traits.expires_ms.unwrap_or(NEVER_MS));
        self.forget(id);
        match self.find(id) {
            Ok(index) => {
                if let Some((_, member)) = self.members.get_mut(index) {
                    let old = (member.set, member.plan);
                    (member.set, member.plan) = (set, plan);
                    (member.weight, member.active, member.expires_ms) = (weight, active, expires_ms);
                    if let Some(history) = history {
                        member.history = history;
                    }
                    self.sets.release([old.0]);
                    self.plans.release([old.1]);
                }
            }
            Err(index) => {
                let history = history.unwrap_or_default();
                let member = Member { set, plan, weight, active, expires_ms, turn: 0, pass: self.pass, history };
                self.members.reserve_exact(usize::from(self.members.is_empty()));
                self.members.insert(index, (id, Box::new(member)));
            }
        }
        self.note(id);
    }

    /// Takes keys out, and says what had happened to the last of them.
    pub fn withdraw(&mut self, ids: &[u64]) -> Option<History> {
        let mut ids = ids.to_vec();
        ids.sort_unstable();
        ids.iter().for_each(|id| self.forget(*id));
        let mut history = None;
        let (mut sets, mut plans) = (Vec::new(), Vec::new());
        self.members.retain_mut(|(id, member)| {
            let stays = ids.binary_search(id).is_err();
            if !stays {
                sets.push(member.set);
                plans.push(member.plan);
                history = Some(std::mem::take(&mut member.history));
            }
            stays
        });
        self.sets.release(sets);
        self.plans.release(plans);
        history
    }

    /// Books that a key was handed out.
    pub fn hand_out(&mut self, handed: &HandOut<'_>) {
        self.turns = self.turns.max(handed.turn);
        if let Some((_, pass)) = handed.pass {
            self.pass = self.pass.max(pass);
        }
        self.change(handed.id, |member| {
            member.turn = handed.turn;
            member.pass = handed.pass.map_or(member.pass, |(pass, _)| pass);
            member.history.used_ms = handed.at_ms.min(MAX_INSTANT_MS);
            let mut claims: ArrayVec<(&str, Claimed), MAX_CLAIMS> = ArrayVec::new();
            claims.extend(handed.claims.iter().take(MAX_CLAIMS).map(|(unit, claimed)| (unit.as_str(), *claimed)));
            member.history.meters.charge(&claims);
        });
    }

    /// Notes that a key cools down, or that it does no more.
    pub fn cool(&mut self, id: u64, cooling: Option<Cooling>) {
        self.change(id, |member| member.history.cooling = cooling.map(Box::new));
    }

    /// Corrects what was claimed at `at_ms` in a unit: see [`WindowLog::settle`](crate::window::WindowLog::settle).
    pub fn settle(&mut self, id: u64, unit: &str, at_ms: u64, units: u64, window_ms: u64) {
        self.change(id, |member| member.history.meters.settle(unit, at_ms, units, window_ms));
    }

    /// The limits that a key's claims are held against, by unit: its own, and those of its account, with the account's name.
    #[must_use]
    pub fn limits(&self, id: u64) -> Option<KeyLimits<'_>> {
        let plan = self.plans.value(self.member(id)?.plan)?;
        Some(KeyLimits(plan))
    }

    /// How many separate allocations freeing costs.
    #[must_use]
    pub fn allocations(&self) -> usize {
        2 + 3 * self.members.len()
    }

    /// Bytes of memory held, the struct itself included.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        let members = self.members.iter().map(|(_, member)| {
            size_of::<Member>() - size_of::<Meters>()
                + member.history.meters.memory_bytes()
                + member.history.cooling.as_ref().map_or(0, |_| size_of::<Cooling>())
        });
        let text = |text: &Option<Box<str>>| text.as_ref().map_or(0, |text| text.len());
        let sets = self.sets.iter().map(|(_, SetName(set))| text(&set.source) + text(&set.login) + text(&set.batch));
        size_of::<Self>()
            + self.members.capacity() * size_of::<(u64, Box<Member>)>()
            + members.sum::<usize>()
            + self.sets.memory_bytes()
            + sets.sum::<usize>()
            + self.plans.memory_bytes()
            + self.plans.iter().map(|(_, plan)| plan.memory_bytes()).sum::<usize>()
            + self.derived.as_ref().map_or(0, |derived| derived.memory_bytes())
    }

    /// The pool as bytes that [`decode`](Self::decode) reads.
    ///
    /// `FORMAT, turns, pass, number of sets, sets, number of plans, plans, number of keys, keys`, numbers as LEB128. Sets and plans
    /// stand in order, and keys name them by their place.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64 + self.members.len() * 48);
        out.push(FORMAT);
        out.put_varint(self.turns);
        out.put_varint(self.pass);
        out.put_varint(self.sets.len() as u64);
        let mut set_places = Places::default();
        for (number, SetName(set)) in self.sets.iter() {
            set_places.add(number);
            for text in [&set.source, &set.login, &set.batch] {
                out.put_option(text.as_deref(), Vec::put_text);
            }
        }
        out.put_varint(self.plans.len() as u64);
        let mut plan_places = Places::default();
        for (number, plan) in self.plans.iter() {
            plan_places.add(number);
            out.put_option(plan.account.as_deref(), Vec::put_text);
            write_plans(&mut out, &plan.own);
            write_plans(&mut out, &plan.shared);
        }
        out.put_varint(self.members.len() as u64);
        let mut last_id = 0;
        for (id, member) in &self.members {
            out.put_varint(id - last_id);
            last_id = *id;
            out.put_varint(set_places.of(member.set));
            out.put_varint(plan_places.of(member.plan));
            out.put_byte(u8::from(member.active));
            out.put_option((member.expires_ms != NEVER_MS).then_some(member.expires_ms), Vec::put_varint);
            out.put_varint(u64::from(member.weight));
            out.put_varint(member.turn);
            out.put_varint(member.pass);
            let History { meters, used_ms, cooling } = &member.history;
            out.put_varint(*used_ms);
            out.put_option(cooling.as_deref(), |out, cooling| {
                out.put_varint(cooling.until_ms);
                out.put_varint(u64::from(cooling.count));
                out.put_varint(cooling.throttled_ms);
            });
            out.put_option((*meters != Meters::default()).then(|| meters.encode()), |out, meters| {
                out.put_bytes(&meters)
            });
        }
        out
    }

    /// Reads what [`encode`](Self::encode) wrote, and nothing else; any bytes may come. No allocation that the length of `bytes`
    /// does not bound.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (&FORMAT, rest) = bytes.split_first()? else { return None };
        let mut fields = Reader::new(rest);
        let mut pool = Self { turns: fields.varint()?, pass: fields.varint()?, ..Self::default() };
        let text = |fields: &mut Reader<'_>| Some(fields.option(name)?.map(Into::into));
        let sets = sorted(&mut fields, |fields| {
            Some(SetName(Wanted { source: text(fields)?, login: text(fields)?, batch: text(fields)? }))
        })?;
        let plans = sorted(&mut fields, |fields| {
            let account = fields.option(name)?;
            let (own, shared) = (read_limits(fields)?, read_limits(fields)?);
            let plan = Plan::new(account, &own, &shared);
            // Only in the order in which they are written.
            let mut again = Vec::new();
            write_plans(&mut again, &plan.own);
            write_plans(&mut again, &plan.shared);
            let mut read = Vec::new();
            write_limits(&mut read, &own);
            write_limits(&mut read, &shared);
            (again == read).then_some(plan)
        })?;
        let (mut set_uses, mut plan_uses) = (Uses::of(sets), Uses::of(plans));
        let keys = fields.varint()?;
        if keys > MAX_POOL_KEYS as u64 {
            return None;
        }
        let mut last_id = 0_u64;
        for index in 0..keys {
            let step = fields.varint().filter(|step| index == 0 || *step > 0)?;
            last_id = last_id.checked_add(step)?;
            let (set, plan) = (set_uses.take(fields.varint()?)?, plan_uses.take(fields.varint()?)?);
            let member = Member {
                set,
                plan,
                active: flag(&mut fields)?,
                expires_ms: fields.option(instant)?.unwrap_or(NEVER_MS),
                weight: weight(&mut fields)?,
                turn: fields.varint()?,
                pass: fields.varint()?,
                history: History {
                    used_ms: instant(&mut fields)?,
                    cooling: fields.option(|fields| {
                        Some(Box::new(Cooling {
                            until_ms: instant(fields)?,
                            count: u32::try_from(fields.varint()?).ok().filter(|count| *count > 0)?,
                            throttled_ms: instant(fields)?,
                        }))
                    })?,
                    meters: fields
                        .option(|fields| Meters::decode(fields.bytes()?).filter(|meters| *meters != Meters::default()))?
                        .unwrap_or_default(),
                },
            };
            pool.members.push((last_id, Box::new(member)));
        }
        pool.members.shrink_to_fit();
        (pool.sets, pool.plans) = (set_uses.done()?, plan_uses.done()?);
        fields.is_empty().then_some(pool)
    }

    pub(crate) fn member(&self, id: u64) -> Option<&Member> {
        let index = self.find(id).ok()?;
        self.members.get(index).map(|(_, member)| &**member)
    }

    fn find(&self, id: u64) -> Result<usize, usize> {
        self.members.binary_search_by_key(&id, |(id, _)| *id)
    }

    fn change(&mut self, id: u64, change: impl FnOnce(&mut Member)) {
        self.forget(id);
        if let Ok(index) = self.find(id)
            && let Some((_, member)) = self.members.get_mut(index)
        {
            change(member);
        }
        self.note(id);
    }
}

/// The limits that the claims on a key are held against.
#[derive(Debug, Clone, Copy)]
pub struct KeyLimits<'p>(&'p Plan);

impl<'p> KeyLimits<'p> {
    /// The limits of its own, by unit.
    pub fn own(&self) -> impl Iterator<Item = (&'p str, &'p [Limit])> + use<'p> {
        self.0.own.iter().map(|plan| (plan.unit.as_str(), plan.limits.as_slice()))
    }

    /// Its account, if it has one, and the limits of that, by unit.
    pub fn of_account(&self) -> Option<(&'p str, impl Iterator<Item = (&'p str, &'p [Limit])> + use<'p>)> {
        let account = self.0.account.as_deref()?;
        let shared = if self.0.shared.is_empty() { &self.0.own } else { &self.0.shared };
        Some((account, shared.iter().map(|plan| (plan.unit.as_str(), plan.limits.as_slice()))))
    }
}

/// At which place the numbers of interned values are written.
#[derive(Default)]
struct Places {
    of: Vec<u64>,
    count: u64,
}

impl Places {
    fn add(&mut self, number: u32) {
        let number = number as usize;
        if self.of.len() <= number {
            self.of.resize(number + 1, 0);
        }
        if let Some(place) = self.of.get_mut(number) {
            *place = self.count;
        }
        self.count += 1;
    }

    fn of(&self, number: u32) -> u64 {
        self.of.get(number as usize).copied().unwrap_or_default()
    }
}

/// Values in strictly rising order, their number before them.
fn sorted<'a, T: Ord>(fields: &mut Reader<'a>, read: impl Fn(&mut Reader<'a>) -> Option<T>) -> Option<Vec<T>> {
    let count = fields.varint()?;
    let mut values: Vec<T> = Vec::new();
    for _ in 0..count {
        let value = read(fields)?;
        if values.last().is_some_and(|last| *last >= value) {
            return None;
        }
        values.push(value);
    }
    Some(values)
}

/// Values that are read before their users are.
struct Uses<T> {
    values: Vec<T>,
    users: Vec<u32>,
}

impl<T: Ord> Uses<T> {
    fn of(values: Vec<T>) -> Self {
        Self { users: vec![0; values.len()], values }
    }

    fn take(&mut self, place: u64) -> Option<u32> {
        let users = self.users.get_mut(usize::try_from(place).ok()?)?;
        *users += 1;
        u32::try_from(place).ok()
    }

    /// Each must have one.
    fn done(self) -> Option<Interned<T>> {
        let used = self.users.iter().all(|users| *users > 0);
        used.then(|| Interned::from_sorted(self.values.into_iter().zip(self.users)))
    }
}
