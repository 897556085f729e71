//! Usage: what calls were made and what became of them, by minutes, hours and days, and the log of single calls.
//!
//! # Time
//!
//! A count belongs to the minute, the hour and the day of its call, whenever it is written down. Minutes are kept for an hour, hours
//! and days for 90 days: what lies further from the clock than that, before it or ahead of it, is forgotten. So a clock that goes
//! back a little loses nothing, and what was counted while it ran far ahead keeps nothing out.
//!
//! # Top keys
//!
//! A store remembers the [`TOP_KEPT`] keys with most requests in all. Totals only grow, and every total that grew is offered: so no
//! key is missing that belongs among them, until more than [`TOP_KEPT`] less those that are shown of them were deleted.

use std::borrow::Cow;

use arrayvec::ArrayVec;
use serde::{Deserialize, Serialize};

use crate::codec::{Reader, Writer};
pub use crate::days::{Days, KEYS, KeyDays};
use crate::gate::Code;
use crate::parse;

/// How many minutes are kept: the present one and those of an hour before it.
pub const MINUTES_KEPT: u32 = 61;

/// How many hours are kept.
pub const HOURS_KEPT: u32 = 24 * DAYS_KEPT;

/// How many days are kept.
pub const DAYS_KEPT: u32 = 90;

/// How many of the keys with most requests are remembered.
pub const TOP_KEPT: usize = 64;

/// The longest path of a call, in bytes as it is logged.
pub const MAX_LOGGED_PATH: usize = 2_048;

/// The longest that a call can have taken, in milliseconds: a day.
pub const MAX_LATENCY_MS: u32 = 24 * 60 * 60 * 1000;

/// A minute, in milliseconds.
pub const MINUTE_MS: u64 = 60_000;

/// An hour, in milliseconds.
pub const HOUR_MS: u64 = 60 * MINUTE_MS;

/// The first byte of [`StoreStats::encode`].
const FORMAT: u8 = 1;

/// Whether something of this minute, hour or day is kept, of so many, now.
pub(crate) const fn is_kept(unit: u32, now: u32, kept: u32) -> bool {
    unit.abs_diff(now) < kept
}

/// The number of a minute, counted from 1970 on.
#[must_use]
pub fn minute_of(at_ms: u64) -> u32 {
    u32::try_from(at_ms / MINUTE_MS).unwrap_or(u32::MAX)
}

/// The number of the hour that a minute lies in.
#[must_use]
pub const fn hour_of(minute: u32) -> u32 {
    minute / 60
}

/// What calls came to, within a time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Calls that were let in.
    pub requests: u64,
    /// Calls that were refused.
    pub refused: u64,
    /// Calls whose end was logged.
    pub logged: u64,
    /// Of these, those with a status of 400 or more.
    pub errors: u64,
}

impl Tally {
    /// Adds another.
    pub fn add(&mut self, more: &Self) {
        self.requests = self.requests.saturating_add(more.requests);
        self.refused = self.refused.saturating_add(more.refused);
        self.logged = self.logged.saturating_add(more.logged);
        self.errors = self.errors.saturating_add(more.errors);
    }
}

/// What the calls of a key came to in all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Calls that were let in.
    pub requests: u64,
    /// Calls that were refused.
    pub refused: u64,
    /// Calls whose end was logged.
    pub logged: u64,
    /// Of these, those with a status of 400 or more.
    pub errors: u64,
    /// How long those that were logged took together, in milliseconds.
    pub latency_ms: u64,
}

impl Counts {
    /// Adds others.
    pub fn add(&mut self, more: &Self) {
        self.requests = self.requests.saturating_add(more.requests);
        self.refused = self.refused.saturating_add(more.refused);
        self.logged = self.logged.saturating_add(more.logged);
        self.errors = self.errors.saturating_add(more.errors);
        self.latency_ms = self.latency_ms.saturating_add(more.latency_ms);
    }

    /// The same without the time taken.
    #[must_use]
    pub const fn tally(&self) -> Tally {
        Tally { requests: self.requests, refused: self.refused, logged: self.logged, errors: self.errors }
    }

    /// Errors among what was logged, in percent with two decimals; 0 if nothing was.
    #[must_use]
    pub fn error_rate(&self) -> f64 {
        error_rate(self.errors, self.logged)
    }

    /// How long a call took that was logged, on the average, in whole milliseconds.
    #[must_use]
    pub const fn mean_latency_ms(&self) -> u64 {
        match self.latency_ms.checked_div(self.logged) {
            Some(mean) => mean,
            None => 0,
        }
    }
}

/// Errors of so many calls, in percent with two decimals; 0 of none.
#[must_use]
pub fn error_rate(errors: u64, logged: u64) -> f64 {
    if logged == 0 {
        return 0.0;
    }
    let hundredths = (u128::from(errors) * 10_000 + u128::from(logged) / 2) / u128::from(logged);
    hundredths as f64 / 100.0
}

/// What a store counted in all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// How often each code was answered, in the order of [`Code::ALL`].
    pub codes: [u64; Code::ALL.len()],
    /// Calls whose end was logged.
    pub logged: u64,
    /// Of these, those with a status of 400 or more.
    pub errors: u64,
    /// How long they took together, in milliseconds.
    pub latency_ms: u64,
    /// Calls that are counted but for which the log had no room.
    pub unlogged: u64,
}

impl Totals {
    /// Adds others.
    pub fn add(&mut self, more: &Self) {
        for (count, more) in self.codes.iter_mut().zip(more.codes) {
            *count = count.saturating_add(more);
        }
        self.logged = self.logged.saturating_add(more.logged);
        self.errors = self.errors.saturating_add(more.errors);
        self.latency_ms = self.latency_ms.saturating_add(more.latency_ms);
        self.unlogged = self.unlogged.saturating_add(more.unlogged);
    }

    /// Counts an answer.
    pub fn count(&mut self, code: Code) {
        if let Some(count) = self.codes.get_mut(code as usize) {
            *count = count.saturating_add(1);
        }
    }

    /// How often each code was answered.
    pub fn codes(&self) -> impl Iterator<Item = (Code, u64)> {
        Code::ALL.into_iter().zip(self.codes)
    }

    /// What the calls came to.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let (mut requests, mut refused) = (0, 0_u64);
        for (code, count) in self.codes() {
            match code {
                Code::Valid => requests = count,
                _ => refused = refused.saturating_add(count),
            }
        }
        Counts { requests, refused, logged: self.logged, errors: self.errors, latency_ms: self.latency_ms }
    }
}

/// Minutes or hours with what they counted, in order; each counted something.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Series(Vec<(u32, Tally)>);

impl Series {
    fn add(&mut self, unit: u32, tally: &Tally, now: u32, kept: u32) {
        if *tally == Tally::default() || !is_kept(unit, now, kept) {
            return;
        }
        match self.0.last_mut() {
            Some((last, before)) if *last == unit => before.add(tally),
            _ => match self.0.binary_search_by_key(&unit, |(unit, _)| *unit) {
                Ok(index) => _ = self.0.get_mut(index).map(|(_, before)| before.add(tally)),
                Err(index) => {
                    // Only here can others have come to lie too far away.
                    self.0.insert(index, (unit, *tally));
                    self.0.retain(|(unit, _)| is_kept(*unit, now, kept));
                }
            },
        }
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.put_varint(self.0.len() as u64);
        let mut last = 0;
        for (unit, Tally { requests, refused, logged, errors }) in &self.0 {
            out.put_varint(u64::from(unit - last));
            [requests, refused, logged, errors].into_iter().for_each(|number| out.put_varint(*number));
            last = *unit;
        }
    }

    fn read(rest: &mut Reader<'_>, kept: u32) -> Option<Self> {
        let count = rest.varint()?;
        if count > u64::from(2 * kept) {
            return None;
        }
        let mut all = Vec::with_capacity(usize::try_from(count).ok()?);
        let mut last = None;
        for _ in 0..count {
            let step = u32::try_from(rest.varint()?).ok()?;
            let unit = last.map_or(Some(step), |last: u32| last.checked_add(step).filter(|_| step > 0))?;
            let tally = Tally {
                requests: rest.varint()?,
                refused: rest.varint()?,
                logged: rest.varint()?,
                errors: rest.varint()?,
            };
            if tally == Tally::default() {
                return None;
            }
            all.push((unit, tally));
            last = Some(unit);
        }
        Some(Self(all))
    }
}

/// What a store counted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StoreStats {
    totals: Totals,
    minutes: Series,
    hours: Series,
    /// The ids with most requests and how many these are: most first, of equals the lower id.
    top: Vec<(u64, u64)>,
}

impl StoreStats {
    /// Adds what was counted, `now_ms` being the clock at which it is written down.
    pub fn merge(&mut self, totals: &Totals, minutes: &[(u32, Tally)], hours: &[(u32, Tally)], now_ms: u64) {
        self.totals.add(totals);
        let minute = minute_of(now_ms);
        minutes.iter().for_each(|(unit, tally)| self.minutes.add(*unit, tally, minute, MINUTES_KEPT));
        hours.iter().for_each(|(unit, tally)| self.hours.add(*unit, tally, hour_of(minute), HOURS_KEPT));
    }

    /// That a key has this many requests in all from now on.
    pub fn offer(&mut self, id: u64, requests: u64) {
        if requests == 0 {
            return;
        }
        let known = self.top.iter().position(|(known, _)| *known == id);
        if known.is_none()
            && self.top.len() >= TOP_KEPT
            && self
                .top
                .last()
                .is_some_and(|(last, least)| (*least, std::cmp::Reverse(*last)) >= (requests, std::cmp::Reverse(id)))
        {
            return;
        }
        if let Some(known) = known {
            self.top.remove(known);
        }
        let place = |(other, more): &(u64, u64)| (*more, std::cmp::Reverse(*other)) > (requests, std::cmp::Reverse(id));
        let index = self.top.partition_point(place);
        self.top.insert(index, (id, requests));
        self.top.truncate(TOP_KEPT);
    }

    /// Forgets a key that is deleted. Whether it was among the top keys.
    pub fn forget(&mut self, id: u64) -> bool {
        let before = self.top.len();
        self.top.retain(|(known, _)| *known != id);
        self.top.len() < before
    }

    /// What was counted in all.
    #[must_use]
    pub const fn totals(&self) -> &Totals {
        &self.totals
    }

    /// How often each code was answered.
    pub fn codes(&self) -> impl Iterator<Item = (Code, u64)> {
        self.totals.codes()
    }

    /// The hours in which something was counted, in order: their numbers, counted from 1970 on.
    pub fn hours(&self) -> impl DoubleEndedIterator<Item = (u32, Tally)> {
        self.hours.0.iter().copied()
    }

    /// The minutes in which something was counted and that are kept, in order: their numbers, counted from 1970 on.
    pub fn minutes(&self) -> impl Iterator<Item = (u32, Tally)> {
        self.minutes.0.iter().copied()
    }

    /// What was counted in this minute and the 60 before it; and in minutes that lie ahead, where the clock went back.
    #[must_use]
    pub fn last_hour(&self, now_ms: u64) -> Tally {
        let now = minute_of(now_ms);
        let mut all = Tally::default();
        let recent = self.minutes.0.iter().rev().filter(|(minute, _)| is_kept(*minute, now, MINUTES_KEPT));
        recent.for_each(|(_, tally)| all.add(tally));
        all
    }

    /// The keys with most requests, and how many these are: most first.
    pub fn top(&self) -> impl Iterator<Item = (u64, u64)> {
        self.top.iter().copied()
    }

    /// A value that remembers these keys and nothing else.
    #[must_use]
    pub fn clone_top(&self) -> Self {
        Self { top: self.top.clone(), ..Self::default() }
    }

    /// How many separate allocations freeing costs.
    #[must_use]
    pub const fn allocations(&self) -> usize {
        4
    }

    /// Bytes of memory held, the struct itself included.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        let series = self.minutes.0.capacity() + self.hours.0.capacity();
        size_of::<Self>() + series * size_of::<(u32, Tally)>() + self.top.capacity() * size_of::<(u64, u64)>()
    }

    /// The value as bytes that [`decode`](Self::decode) reads; equal values give equal bytes.
    ///
    /// `FORMAT`, then numbers: totals by code, logged, errors, latency, unlogged; the number of minutes and each as its distance from
    /// the one before and its tally; the same for hours; the number of top keys, and each as its id and requests.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![FORMAT];
        let Totals { codes, logged, errors, latency_ms, unlogged } = self.totals;
        codes.into_iter().chain([logged, errors, latency_ms, unlogged]).for_each(|number| out.put_varint(number));
        self.minutes.write(&mut out);
        self.hours.write(&mut out);
        out.put_varint(self.top.len() as u64);
        for (id, requests) in &self.top {
            out.put_varint(*id);
            out.put_varint(*requests);
        }
        out
    }

    /// Reads what [`encode`](Self::encode) wrote; `None` for any other bytes.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (&FORMAT, rest) = bytes.split_first()? else { return None };
        let mut rest = Reader::new(rest);
        let mut all = Self::default();
        for count in &mut all.totals.codes {
            *count = rest.varint()?;
        }
        let Totals { logged, errors, latency_ms, unlogged, .. } = &mut all.totals;
        for count in [logged, errors, latency_ms, unlogged] {
            *count = rest.varint()?;
        }
        all.minutes = Series::read(&mut rest, MINUTES_KEPT)?;
        all.hours = Series::read(&mut rest, HOURS_KEPT)?;
        let top = rest.varint()?;
        if top > TOP_KEPT as u64 {
            return None;
        }
        for _ in 0..top {
            let (id, requests) = (rest.varint()?, rest.varint()?);
            let follows =
                |(last, more): &(u64, u64)| (*more, std::cmp::Reverse(*last)) > (requests, std::cmp::Reverse(id));
            if requests == 0 || !all.top.last().is_none_or(follows) || all.top.iter().any(|(known, _)| *known == id) {
                return None;
            }
            all.top.push((id, requests));
        }
        rest.is_empty().then_some(all)
    }
}

/// One line of the usage log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row<'a> {
    /// When, in unix milliseconds; with [`seq`](Self::seq) the id of its entry.
    pub at_ms: u64,
    /// Which of this millisecond.
    pub seq: u64,
    /// Whose: the id of a key record; 0 for none.
    pub id: u64,
    /// What the gate answered.
    pub code: Option<Code>,
    /// With what status the call ended.
    pub status: Option<u16>,
    /// How long it took, in milliseconds.
    pub latency_ms: Option<u32>,
    /// Its method.
    pub method: Option<&'a str>,
    /// Its path.
    pub path: Option<&'a str>,
    /// Where it came from.
    pub ip: Option<&'a str>,
}

/// The names of the fields of an entry in the log.
pub const ROW_FIELDS: [&str; 7] = ["id", "code", "status", "ms", "method", "path", "ip"];

impl<'a> Row<'a> {
    /// The fields of its entry: which of [`ROW_FIELDS`], and the text. There is at least one.
    #[must_use]
    pub fn fields(&self) -> ArrayVec<(usize, Cow<'a, str>), { ROW_FIELDS.len() }> {
        let all = [
            // An entry has to have a field: without any other it says that it is nobody's.
            (self.id > 0 || self.code.is_none() && self.status.is_none()).then(|| self.id.to_string().into()),
            self.code.map(|code| code.as_str().into()),
            self.status.map(|status| status.to_string().into()),
            self.latency_ms.map(|latency_ms| latency_ms.to_string().into()),
            self.method.map(Cow::Borrowed),
            self.path.map(Cow::Borrowed),
            self.ip.map(Cow::Borrowed),
        ];
        all.into_iter().enumerate().filter_map(|(index, text)| Some((index, text?))).collect()
    }

    /// Takes a field of an entry; what is none of ours, or not as ours are, is left out.
    pub fn take(&mut self, name: &[u8], value: &'a [u8]) {
        let text = || str::from_utf8(value).ok();
        match name {
            b"id" => self.id = parse::unsigned(value).unwrap_or(0),
            b"code" => self.code = Code::ALL.into_iter().find(|code| code.as_str().as_bytes() == value),
            b"status" => self.status = parse::unsigned(value).and_then(|status| u16::try_from(status).ok()),
            b"ms" => self.latency_ms = parse::unsigned(value).and_then(|ms| u32::try_from(ms).ok()),
            b"method" => self.method = text(),
            b"path" => self.path = text(),
            b"ip" => self.ip = text(),
            _ => {}
        }
    }
}

/// The id of the entry that follows on `last`, for a call at this instant; None after the last that there can be.
#[must_use]
pub fn next_entry((last_ms, last_seq): (u64, u64), at_ms: u64) -> Option<(u64, u64)> {
    if at_ms > last_ms || (last_ms, last_seq) == (0, 0) && at_ms == 0 {
        // The entry 0-0 cannot be.
        return Some((at_ms, u64::from(at_ms == 0)));
    }
    match last_seq.checked_add(1) {
        Some(seq) => Some((last_ms, seq)),
        None => Some((last_ms.checked_add(1)?, 0)),
    }
}

/// A path as it is logged: what stands before `?`, since what follows often carries secrets; at most [`MAX_LOGGED_PATH`] bytes; what
/// cannot be printed as `%` and two hexadecimal digits.
#[must_use]
pub fn printable_path(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == b'?').unwrap_or(bytes.len());
    // What is cut off need not be looked at.
    let bytes = bytes.get(..end.min(MAX_LOGGED_PATH + 4)).unwrap_or_default();
    let mut path = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            if character.is_control() {
                let mut encoded = [0; 4];
                character.encode_utf8(&mut encoded).bytes().for_each(|byte| push_escaped(&mut path, byte));
            } else {
                path.push(character);
            }
        }
        chunk.invalid().iter().for_each(|byte| push_escaped(&mut path, *byte));
    }
    while path.len() > MAX_LOGGED_PATH {
        path.pop();
    }
    path
}

fn push_escaped(path: &mut String, byte: u8) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    path.push('%');
    for digit in [byte >> 4, byte & 15] {
        path.push(char::from(DIGITS.get(usize::from(digit)).copied().unwrap_or(b'0')));
    }
}

/// What was counted and logged, on its way to a store: the part that one effect carries.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageBatch<'a> {
    /// When it is written down, in unix milliseconds: what lies too far from that is forgotten.
    pub now_ms: u64,
    /// The day that this is in the store's time zone.
    pub today: u32,
    /// What comes to the totals of the store; each count of `keys`, `minutes` and `hours` stands in here by itself.
    pub totals: Option<Totals>,
    /// What comes to minutes.
    pub minutes: Vec<(u32, Tally)>,
    /// What comes to hours.
    pub hours: Vec<(u32, Tally)>,
    /// What comes to keys: id, totals, and days.
    pub keys: Vec<(u64, Counts, Days)>,
    /// Ids of keys whose statistics go.
    pub gone: Vec<u64>,
    /// Entries of the log, in order of their ids.
    #[serde(borrow)]
    pub rows: Vec<Row<'a>>,
    /// How many entries the log has at the most then; 0 deletes it, None leaves it.
    pub log_entries: Option<u64>,
    /// The first entry that stays, if those before it go.
    pub log_from: Option<(u64, u64)>,
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::zone::Zone;

    const START_MS: u64 = 1_800_000_000_000;
    const DAY_MS: u64 = 24 * HOUR_MS;

    fn tally(requests: u64, refused: u64) -> Tally {
        Tally { requests, refused, logged: requests, errors: refused / 2 }
    }

    /// Counts a call of a minute, written down at `now_ms`.
    fn call(stats: &mut StoreStats, at_ms: u64, now_ms: u64) {
        let minute = minute_of(at_ms);
        let one = [(minute, tally(1, 0))];
        let mut totals = Totals::default();
        totals.count(Code::Valid);
        stats.merge(&totals, &one, &[(hour_of(minute), one[0].1)], now_ms);
    }

    #[test]
    fn a_call_counts_for_its_own_minute_and_hour_when_it_is_written_down_later() {
        let midnight_ms = START_MS - START_MS % DAY_MS;
        let mut stats = StoreStats::default();
        call(&mut stats, midnight_ms - 100, midnight_ms + 500);
        call(&mut stats, midnight_ms + 400, midnight_ms + 500);
        let hour = hour_of(minute_of(midnight_ms));
        assert_eq!(stats.hours().collect::<Vec<_>>(), [(hour - 1, tally(1, 0)), (hour, tally(1, 0))]);
        // The minute before midnight is the sixtieth before 00:59, and no longer within the hour at 01:00.
        assert_eq!(stats.last_hour(midnight_ms + 59 * MINUTE_MS + 59_999).requests, 2);
        assert_eq!(stats.last_hour(midnight_ms + 60 * MINUTE_MS).requests, 1);
        assert_eq!(stats.last_hour(midnight_ms + 61 * MINUTE_MS).requests, 0);
        assert_eq!(stats.totals().counts().requests, 2);
        let mut days = KeyDays::default();
        for (at_ms, zone) in [(midnight_ms - 100, "UTC"), (midnight_ms + 400, "UTC")] {
            let zone = Zone::parse(zone.as_bytes()).unwrap();
            days.merge(7, &Counts::default(), &[(zone.day(at_ms), tally(1, 0))], zone.day(midnight_ms + 500));
        }
        let day = Zone::default().day(midnight_ms);
        assert_eq!(days.days(7), [(day - 1, tally(1, 0)), (day, tally(1, 0))]);
    }

    #[test]
    fn hours_are_kept_for_90_days_and_totals_for_ever() {
        let mut stats = StoreStats::default();
        for hour in 0..5_000 {
            call(&mut stats, START_MS + hour * HOUR_MS, START_MS + hour * HOUR_MS);
        }
        assert_eq!(stats.hours().count(), HOURS_KEPT as usize);
        assert_eq!(stats.totals().counts().requests, 5_000);
        assert!(stats.memory_bytes() < 200_000 && stats.encode().len() < 15_000);
    }

    #[test]
    fn what_was_counted_while_the_clock_ran_far_ahead_keeps_nothing_out() {
        let mut stats = StoreStats::default();
        let ahead_ms = START_MS + 400 * DAY_MS;
        call(&mut stats, ahead_ms, ahead_ms);
        call(&mut stats, START_MS, START_MS);
        assert_eq!(stats.hours().map(|(hour, _)| hour).collect::<Vec<_>>(), [hour_of(minute_of(START_MS))]);
        assert_eq!(stats.last_hour(START_MS).requests, 1);
        let mut days = KeyDays::default();
        days.merge(1, &Counts::default(), &[(20_500, tally(1, 0))], 20_500);
        days.merge(1, &Counts::default(), &[(20_100, tally(1, 0))], 20_100);
        assert_eq!(days.days(1), [(20_100, tally(1, 0))]);
    }

    #[test]
    fn the_top_keys_are_those_with_most_requests() {
        let mut stats = StoreStats::default();
        let mut totals = BTreeMap::new();
        let mut state = 1_u64;
        for step in 0..20_000_u64 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let id = (state >> 33) % 300 + 1;
            let total = totals.entry(id).or_insert(0);
            *total += (state >> 20) % 7 + id % 5;
            stats.offer(id, *total);
            if step % 997 == 0 {
                let mut expected: Vec<(u64, u64)> = totals.iter().map(|(id, total)| (*id, *total)).collect();
                expected.retain(|(_, total)| *total > 0);
                expected.sort_by_key(|(id, total)| (std::cmp::Reverse(*total), *id));
                expected.truncate(TOP_KEPT);
                assert_eq!(stats.top().collect::<Vec<_>>(), expected);
                assert_eq!(StoreStats::decode(&stats.encode()).as_ref(), Some(&stats));
            }
        }
        let (first, _) = stats.top().next().unwrap();
        assert!(stats.forget(first) && !stats.forget(first));
    }

    #[test]
    fn rates_are_percent_with_two_decimals() {
        for (errors, logged, rate) in [(0, 0, 0.0), (1, 3, 33.33), (2, 3, 66.67), (3, 3, 100.0), (1, 100_000, 0.0)] {
            assert!((error_rate(errors, logged) - rate).abs() < 1e-9, "{errors} of {logged}");
        }
        assert_eq!(Counts { logged: 3, latency_ms: 11, ..Counts::default() }.mean_latency_ms(), 3);
        assert_eq!(Counts::default().mean_latency_ms(), 0);
    }

    #[test]
    fn a_row_is_read_from_the_fields_that_it_gave() {
        for row in [
            Row {
                id: 17,
                status: Some(200),
                latency_ms: Some(12),
                method: Some("GET"),
                path: Some("/x"),
                ..Row::default()
            },
            Row { code: Some(Code::NotFound), ip: Some("192.0.2.7"), ..Row::default() },
            Row { id: u64::MAX, code: Some(Code::Expired), ..Row::default() },
            Row::default(),
        ] {
            let fields = row.fields();
            assert!(!fields.is_empty());
            let mut read = Row::default();
            fields.iter().for_each(|(name, value)| read.take(ROW_FIELDS[*name].as_bytes(), value.as_bytes()));
            assert_eq!(read, row);
        }
    }

    #[test]
    fn entries_follow_one_another_whatever_the_clock_does() {
        for (last, at_ms, next) in [
            ((0, 0), 0, Some((0, 1))),
            ((0, 0), 7, Some((7, 0))),
            ((7, 0), 7, Some((7, 1))),
            ((7, 3), 5, Some((7, 4))),
            ((7, u64::MAX), 7, Some((8, 0))),
            ((u64::MAX, u64::MAX), 7, None),
        ] {
            assert_eq!(next_entry(last, at_ms), next, "{last:?} {at_ms}");
        }
    }

    #[test]
    fn a_path_is_logged_printable_and_without_its_query() {
        for (given, logged) in [
            (&b"/api/x?token=secret"[..], "/api/x"),
            (b"", ""),
            (b"/a\nb\x7f\xff", "/a%0Ab%7F%FF"),
            ("/\u{fc}ber/\u{85}".as_bytes(), "/\u{fc}ber/%C2%85"),
        ] {
            assert_eq!(printable_path(given), logged);
        }
        assert_eq!(printable_path(&[b'x'; 9_000]).len(), MAX_LOGGED_PATH);
        assert!(printable_path(&[0xff; 9_000]).len() <= MAX_LOGGED_PATH);
        assert!(printable_path("\u{20ac}".repeat(1_000).as_bytes()).len() <= MAX_LOGGED_PATH);
    }

    /// Counts of a key with so many calls a day: fewer on two days of seven, a fifth more or less, some refusals and errors.
    fn day_of(requests: u64, day: u32, salt: u64) -> Tally {
        let mix = (u64::from(day) * 0x9e37_79b9 + salt).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 20;
        let share = if day % 7 < 2 { 40 } else { 100 };
        let requests = requests * share * (80 + mix % 41) / 10_000;
        let logged = requests - (mix >> 8) % 3;
        Tally {
            requests,
            refused: requests * ((mix >> 12) % 10) / 1_000,
            logged,
            errors: logged * ((mix >> 16) % 30) / 1_000,
        }
    }

    #[test]
    fn a_key_that_was_active_on_all_of_90_days_takes_at_most_400_bytes() {
        for (requests, most) in [(100, 300), (1_000, 400), (5_000, 400), (10_000, 450), (1_000_000, 700)] {
            let mut value = KeyDays::default();
            for day in 20_000..20_100 {
                for low in 0..=255 {
                    let of_day = day_of(requests, day, u64::from(low));
                    let Tally { requests, refused, logged, errors } = of_day;
                    let counts = Counts { requests, refused, logged, errors, latency_ms: 35 * logged };
                    value.merge(low, &counts, &[(day, of_day)], day);
                }
            }
            assert_eq!(value.days(9).len(), DAYS_KEPT as usize);
            let each = value.memory_bytes() / 256;
            println!("{requests} requests a day: {each} bytes a key, {} encoded", value.encode().len() / 256);
            assert!(each <= most, "{requests} requests a day: {each} bytes a key");
            assert_eq!(KeyDays::decode(&value.encode()), Some(value));
        }
    }

    fn steps() -> impl Strategy<Value = Vec<(i64, u32, u8, u64, u64)>> {
        let jump = prop_oneof![
            8 => -3_i64..60,
            4 => 0_i64..2 * 1440,
            1 => -300_000_i64..300_000,
        ];
        let count = prop_oneof![4 => 0_u64..20, 1 => 0_u64..1 << 40];
        proptest::collection::vec((jump, 0_u32..180, 0_u8..4, count.clone(), count), 1..120)
    }

    proptest! {
        #[test]
        fn counts_are_those_of_a_naive_model(steps in steps()) {
            let (mut stats, mut days) = (StoreStats::default(), KeyDays::default());
            let (mut minutes, mut hours) = (BTreeMap::new(), BTreeMap::new());
            let mut by_key: BTreeMap<u8, (Counts, BTreeMap<u32, Tally>)> = BTreeMap::new();
            let mut minute = 30_000_000_i64;
            let mut requests_in_all = 0_u64;
            for (jump, late, low, requests, refused) in steps {
                minute = (minute + jump).max(200);
                let now = u32::try_from(minute).unwrap();
                // Late ones are of a minute before that of the writing.
                let of = now - late % 3 * 40;
                let one = tally(requests, refused);
                let mut totals = Totals::default();
                totals.codes[0] = requests;
                stats.merge(&totals, &[(of, one)], &[(hour_of(of), one)], u64::from(now) * MINUTE_MS);
                requests_in_all += requests;
                let (today, day) = (now / 1440, of / 1440);
                let counts = Counts { requests, refused, ..Counts::default() };
                days.merge(low, &counts, &[(day, one)], today);

                let series = |all: &mut BTreeMap<u32, Tally>, unit: u32, now: u32, kept: u32| {
                    if one == Tally::default() || unit.abs_diff(now) >= kept {
                        return;
                    }
                    let is_new = !all.contains_key(&unit);
                    all.entry(unit).or_default().add(&one);
                    if is_new {
                        all.retain(|unit, _| unit.abs_diff(now) < kept);
                    }
                };
                series(&mut minutes, of, now, MINUTES_KEPT);
                series(&mut hours, hour_of(of), hour_of(now), HOURS_KEPT);
                let (totals, of_key) = by_key.entry(low).or_default();
                totals.add(&counts);
                if one != Tally::default() {
                    let in_place = of_key.last_key_value().is_some_and(|(newest, _)| *newest == day)
                        && day.abs_diff(today) < DAYS_KEPT;
                    of_key.entry(day).or_default().add(&one);
                    if !in_place {
                        of_key.retain(|day, _| day.abs_diff(today) < DAYS_KEPT);
                    }
                }

                let mut recent = Tally::default();
                let in_hour = minutes.iter().filter(|(minute, _)| minute.abs_diff(now) < MINUTES_KEPT);
                in_hour.for_each(|(_, tally)| recent.add(tally));
                prop_assert_eq!(stats.last_hour(u64::from(now) * MINUTE_MS), recent);
                let shown: BTreeMap<u32, Tally> = stats.hours().collect();
                prop_assert_eq!(&shown, &hours);
                let shown: BTreeMap<u32, Tally> = days.days(low).into_iter().collect();
                prop_assert_eq!(&shown, &*of_key);
                prop_assert_eq!(days.totals(low).unwrap(), *totals);
            }
            prop_assert_eq!(stats.totals().counts().requests, requests_in_all);
            let encoded = stats.encode();
            let decoded = StoreStats::decode(&encoded).unwrap();
            prop_assert_eq!(&decoded, &stats);
            let encoded = days.encode();
            prop_assert_eq!(KeyDays::decode(&encoded).unwrap(), days);
        }

        #[test]
        fn decoding_is_total_and_canonical(
            steps in steps(), mutations in proptest::collection::vec((any::<usize>(), any::<u8>()), 0..4),
            random in proptest::collection::vec(any::<u8>(), 0..100),
        ) {
            let (mut stats, mut days) = (StoreStats::default(), KeyDays::default());
            for (_, late, low, requests, refused) in steps {
                stats.merge(&Totals::default(), &[(late, tally(requests, refused))], &[(late, tally(refused, 1))], 0);
                stats.offer(u64::from(low), requests);
                days.merge(low, &Counts::default(), &[(late, tally(requests, refused))], 90);
            }
            for mut bytes in [stats.encode(), days.encode(), [&[FORMAT, 0][..], &random].concat(), random] {
                for (place, byte) in &mutations {
                    if let Some(len) = bytes.len().checked_sub(1) {
                        bytes[place % (len + 1)] = *byte;
                    }
                }
                if let Some(read) = StoreStats::decode(&bytes) {
                    prop_assert_eq!(read.encode(), bytes.clone());
                }
                if let Some(mut read) = KeyDays::decode(&bytes) {
                    prop_assert_eq!(read.encode(), bytes.clone());
                    // Packed again, each is what it was.
                    let again: Vec<_> = read.iter().collect();
                    for (low, totals, of_key) in again {
                        let mut fresh = KeyDays::default();
                        let today = of_key.last().map_or(0, |(day, _)| *day);
                        if of_key.iter().all(|(day, _)| is_kept(*day, today, DAYS_KEPT)) {
                            fresh.merge(low, &totals, &of_key, today);
                            prop_assert_eq!(fresh.days(low), read.days(low));
                            prop_assert_eq!(fresh.totals(low), read.totals(low));
                            let keys: Vec<u8> = read.iter().map(|(low, ..)| low).filter(|other| *other != low).collect();
                            let mut alone = read.clone();
                            keys.iter().for_each(|other| _ = alone.forget(*other));
                            prop_assert_eq!(&fresh, &alone, "one form for one value");
                        }
                        read.merge(low, &Counts { requests: 1, ..Counts::default() }, &[(5, tally(1, 1))], 5);
                    }
                }
            }
        }
    }
}
