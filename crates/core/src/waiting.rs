//! Who waits for which bucket or pool, in what order, and when to look again: the lines in front of them, without a clock or a
//! server.
//!
//! All who wait for one bucket under the same limits stand in one *line*, in the order they came; so do all who wait for the same
//! keys of a pool. Only the first of a line is ever tried: who comes later waits even where its smaller cost would fit. The lines
//! in front of one bucket have nothing to do with each other; those in front of one pool may want the same keys: there the first of
//! a line takes none that somebody wants who came before it ([`Lines::earlier`]). Two things happen at points in time: the first of a
//! line is looked at again (when its units become free, or at once when something has changed), and someone's time is out.
//! [`Lines::next`] hands out what is due, one [`Turn`] at a time; its taker does what is to be done and says what became of it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::limit::{Limit, Limits};
use crate::pool::Wanted;
use crate::selection::Ask;

/// The most that may wait for one bucket or pool.
pub const MAX_WAITERS_A_BUCKET: usize = 1000;

/// The most that may wait in all.
pub const MAX_WAITERS: usize = 10_000;

/// The most lines in front of one bucket or pool: a claim on it looks at each.
pub const MAX_LINES_A_BUCKET: usize = 64;

/// A bucket or a pool: a key in a database.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Bucket {
    /// The database's number.
    pub database: i32,
    /// The key's name.
    pub name: Arc<[u8]>,
}

impl Bucket {
    /// The bucket of this name in that database.
    #[must_use]
    pub fn new(database: i32, name: &[u8]) -> Self {
        Self { database, name: name.into() }
    }
}

/// What someone waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wish {
    /// The bucket, or the pool.
    pub bucket: Bucket,
    /// What of it.
    pub demand: Demand,
}

/// What someone wants of a bucket or a pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Demand {
    /// Units of a bucket.
    Units {
        /// The limits, as the claim names them.
        limits: Limits,
        /// How many.
        cost: u64,
        /// How long the bucket is to be locked when the time is out, in milliseconds.
        lockout_ms: Option<u64>,
    },
    /// A key of a pool.
    Key(Ask),
}

/// What those who stand in one line have in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Class {
    /// They claim under these limits, in order: that in which a claim names them does not matter.
    Limits(Limits),
    /// They want these keys.
    Wanted(Wanted),
}

impl Class {
    /// Of claims under these limits.
    #[must_use]
    pub fn of_limits(limits: &Limits) -> Self {
        let mut limits = limits.clone();
        limits.sort_unstable_by_key(|limit: &Limit| (limit.window_ms(), limit.count()));
        Self::Limits(limits)
    }
}

impl Demand {
    /// In which line it stands.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::Units { limits, .. } => Class::of_limits(limits),
            Self::Key(ask) => Class::Wanted(ask.wanted.clone()),
        }
    }
}

/// One who waits; ids count up in the order of arrival.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WaiterId(u64);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct LineId(u64);

/// What is due: someone is to be looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Turn {
    /// Whose turn it is.
    pub waiter: WaiterId,
    /// What it waits for.
    pub wish: Wish,
    /// Whether it is the first of its line: no other may be granted anything.
    pub is_first: bool,
    /// Whether its time is out: it must be answered now, whatever the answer is.
    pub is_last_chance: bool,
}

/// Everyone who waits. `W` is how the caller finds the one it belongs to.
#[derive(Debug)]
pub struct Lines<W> {
    waiters: BTreeMap<WaiterId, Waiter<W>>,
    lines: HashMap<LineId, Line>,
    of_bucket: HashMap<i32, HashMap<Arc<[u8]>, Vec<LineId>>>,
    /// Of those due at the same millisecond, the line whose first came first.
    looks: BTreeSet<(u64, WaiterId, LineId)>,
    ends: BTreeSet<(u64, WaiterId)>,
    ids: u64,
}

#[derive(Debug)]
struct Waiter<W> {
    handle: W,
    wish: Wish,
    line: LineId,
    since_ms: u64,
    until_ms: u64,
}

#[derive(Debug)]
struct Line {
    bucket: Bucket,
    class: Class,
    queue: BTreeSet<WaiterId>,
    look_at_ms: u64,
}

impl<W> Default for Lines<W> {
    fn default() -> Self {
        Self {
            waiters: BTreeMap::new(),
            lines: HashMap::new(),
            of_bucket: HashMap::new(),
            looks: BTreeSet::new(),
            ends: BTreeSet::new(),
            ids: 0,
        }
    }
}

impl<W> Lines<W> {
    /// How many wait.
    #[must_use]
    pub fn waiters(&self) -> usize {
        self.waiters.len()
    }

    /// How many lines there are.
    #[must_use]
    pub fn lines(&self) -> usize {
        self.lines.len()
    }

    /// How many wait for one bucket.
    #[must_use]
    pub fn waiters_of(&self, database: i32, bucket: &[u8]) -> usize {
        let lines = self.lines_of(database, bucket).iter().filter_map(|line| self.lines.get(line));
        lines.map(|line| line.queue.len()).sum()
    }

    /// Since when the one who has waited longest does, in unix milliseconds.
    #[must_use]
    pub fn oldest_since_ms(&self) -> Option<u64> {
        self.waiters.first_key_value().map(|(_, waiter)| waiter.since_ms)
    }

    /// When the line of this class for this bucket is next looked at, in unix milliseconds, if anyone stands in it: nobody
    /// who comes now gets anything before.
    #[must_use]
    pub fn next_look_ms(&self, database: i32, bucket: &[u8], class: &Class) -> Option<u64> {
        let line = self.line(database, bucket, class)?;
        self.lines.get(&line).map(|line| line.look_at_ms)
    }

    /// What those want of a pool who came before this one, each the first of its line; without one, of all lines.
    #[must_use]
    pub fn earlier(&self, database: i32, pool: &[u8], than: Option<WaiterId>) -> Vec<Wanted> {
        let lines = self.lines_of(database, pool).iter().filter_map(|line| self.lines.get(line));
        let earlier =
            lines.filter(|line| line.queue.first().is_some_and(|first| than.is_none_or(|than| *first < than)));
        earlier
            .filter_map(|line| match &line.class {
                Class::Wanted(wanted) => Some(wanted.clone()),
                Class::Limits(_) => None,
            })
            .collect()
    }

    /// Whether one more may wait.
    ///
    /// # Errors
    /// [`Error::TooManyWaiters`] beyond [`MAX_WAITERS_A_BUCKET`], [`MAX_LINES_A_BUCKET`] or [`MAX_WAITERS`].
    pub fn has_room(&self, wish: &Wish) -> Result<()> {
        let Bucket { database, name } = &wish.bucket;
        let lines = self.lines_of(*database, name).len();
        let full = self.waiters.len() >= MAX_WAITERS
            || self.waiters_of(*database, name) >= MAX_WAITERS_A_BUCKET
            || lines >= MAX_LINES_A_BUCKET && self.line(*database, name, &wish.demand.class()).is_none();
        if full { Err(Error::TooManyWaiters) } else { Ok(()) }
    }

    /// Puts someone at the end of its line, at `now_ms`, to be looked at from `look_at_ms` (if it is the first) and for the last
    /// time at `until_ms`.
    pub fn join(&mut self, handle: W, wish: Wish, now_ms: u64, look_at_ms: u64, until_ms: u64) -> WaiterId {
        let Bucket { database, name } = &wish.bucket;
        let class = wish.demand.class();
        let id = WaiterId(self.next_id());
        let line = match self.line(*database, name, &class) {
            Some(line) => line,
            None => {
                let line = LineId(self.next_id());
                let bucket = wish.bucket.clone();
                let of_database = self.of_bucket.entry(bucket.database).or_default();
                of_database.entry(Arc::clone(&bucket.name)).or_default().push(line);
                self.lines.insert(line, Line { bucket, class, queue: BTreeSet::new(), look_at_ms });
                self.looks.insert((look_at_ms, id, line));
                line
            }
        };
        if let Some(line) = self.lines.get_mut(&line) {
            line.queue.insert(id);
        }
        self.ends.insert((until_ms, id));
        self.waiters.insert(id, Waiter { handle, wish, line, since_ms: now_ms, until_ms });
        id
    }

    /// When something is due next, in unix milliseconds.
    #[must_use]
    pub fn due_ms(&self) -> Option<u64> {
        [self.looks.first().map(|(at_ms, ..)| *at_ms), self.next_end_ms()].into_iter().flatten().min()
    }

    /// When someone's time is out next, in unix milliseconds.
    #[must_use]
    pub fn next_end_ms(&self) -> Option<u64> {
        self.ends.first().map(|(at_ms, _)| *at_ms)
    }

    /// What is due at `now_ms`, the earliest first; without `may_grant`, only those whose time is out. The taker then calls
    /// [`leave`](Self::leave) for whom it answered, or [`wait`](Self::wait).
    pub fn next(&self, now_ms: u64, may_grant: bool) -> Option<Turn> {
        let look = self.looks.first().filter(|(at_ms, ..)| may_grant && *at_ms <= now_ms);
        let end = self.ends.first().filter(|(at_ms, _)| *at_ms <= now_ms);
        // Of two at the same instant, the look: it may still be granted.
        let (id, is_last_chance) = match (look, end) {
            (Some((look_ms, id, _)), end) if end.is_none_or(|(end_ms, _)| look_ms <= end_ms) => (*id, false),
            (_, Some((_, id))) => (*id, true),
            _ => return None,
        };
        self.turn(id, is_last_chance)
    }

    /// The turn of someone whose wait is to end now, whatever the answer is.
    #[must_use]
    pub fn last_turn(&self, id: WaiterId) -> Option<Turn> {
        self.turn(id, true)
    }

    fn turn(&self, id: WaiterId, is_last_chance: bool) -> Option<Turn> {
        let waiter = self.waiters.get(&id)?;
        let is_first = self.lines.get(&waiter.line)?.queue.first() == Some(&id);
        Some(Turn { waiter: id, wish: waiter.wish.clone(), is_first, is_last_chance })
    }

    /// The one whose turn it was, the first of its line, waits on: the line is looked at again at `look_at_ms`.
    pub fn wait(&mut self, id: WaiterId, look_at_ms: u64) {
        if let Some(line) = self.waiters.get(&id).map(|waiter| waiter.line) {
            self.look(line, look_at_ms);
        }
    }

    /// Someone waits no more: answered, or gone. The next in its line is looked at at once, at `now_ms`.
    pub fn leave(&mut self, id: WaiterId, now_ms: u64) -> Option<W> {
        let waiter = self.waiters.remove(&id)?;
        self.ends.remove(&(waiter.until_ms, id));
        let line = self.lines.get_mut(&waiter.line)?;
        let was_first = line.queue.first() == Some(&id);
        line.queue.remove(&id);
        if was_first {
            self.looks.remove(&(line.look_at_ms, id, waiter.line));
        }
        let (bucket, of_pool) = (line.bucket.clone(), matches!(line.class, Class::Wanted(_)));
        if line.queue.is_empty() {
            self.lines.remove(&waiter.line);
            if let Some(of_database) = self.of_bucket.get_mut(&bucket.database)
                && let Some(lines) = of_database.get_mut(&bucket.name)
            {
                lines.retain(|line| *line != waiter.line);
                if lines.is_empty() {
                    of_database.remove(&bucket.name);
                }
            }
        } else if was_first {
            self.look(waiter.line, now_ms);
        }
        // What it kept from those behind it in other lines is theirs now.
        if was_first && of_pool {
            self.touch(bucket.database, &bucket.name, now_ms);
        }
        Some(waiter.handle)
    }

    /// A bucket has changed: its lines are looked at at once, at `now_ms`, unless they are due already: so whoever is due longer
    /// stays before them. Says whether there are any.
    ///
    /// A claim too is a change that may let another line in: it may end the memory of a window that none has named for long.
    pub fn touch(&mut self, database: i32, bucket: &[u8], now_ms: u64) -> bool {
        let lines = self.lines_of(database, bucket).to_vec();
        lines.iter().for_each(|line| self.look_now(*line, now_ms));
        !lines.is_empty()
    }

    /// The pools whose keys' names begin so may have changed: their lines are looked at at once.
    pub fn touch_all_of(&mut self, database: i32, prefix: &[u8], now_ms: u64) {
        let Some(of_database) = self.of_bucket.get(&database) else { return };
        let lines = of_database.iter().filter(|(name, _)| name.starts_with(prefix)).flat_map(|(_, lines)| lines);
        let lines: Vec<LineId> = lines.copied().collect();
        lines.into_iter().for_each(|line| self.look_now(line, now_ms));
    }

    /// Any bucket may have changed: all lines are looked at at once.
    pub fn touch_all(&mut self, now_ms: u64) {
        let lines: Vec<LineId> = self.lines.keys().copied().collect();
        lines.into_iter().for_each(|line| self.look_now(line, now_ms));
    }

    fn look_now(&mut self, id: LineId, now_ms: u64) {
        if self.lines.get(&id).is_some_and(|line| line.look_at_ms > now_ms) {
            self.look(id, now_ms);
        }
    }

    fn look(&mut self, id: LineId, at_ms: u64) {
        let Some(line) = self.lines.get_mut(&id) else { return };
        let Some(first) = line.queue.first() else { return };
        self.looks.remove(&(line.look_at_ms, *first, id));
        line.look_at_ms = at_ms;
        self.looks.insert((at_ms, *first, id));
    }

    fn lines_of(&self, database: i32, bucket: &[u8]) -> &[LineId] {
        self.of_bucket.get(&database).and_then(|buckets| buckets.get(bucket)).map_or(&[], Vec::as_slice)
    }

    fn line(&self, database: i32, bucket: &[u8], class: &Class) -> Option<LineId> {
        let lines = self.lines_of(database, bucket);
        lines.iter().copied().find(|line| self.lines.get(line).is_some_and(|line| line.class == *class))
    }

    fn next_id(&mut self) -> u64 {
        self.ids += 1;
        self.ids
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use proptest::prelude::*;

    use super::*;
    use crate::limiter::{Retry, clock, decide, longest_ms};
    use crate::record::UnitLimits;
    use crate::selection::Order;
    use crate::window::WindowLog;

    fn limits(pairs: &[(u64, u64)]) -> Limits {
        pairs.iter().map(|(count, window_ms)| Limit::new(*count, *window_ms).unwrap()).collect()
    }

    fn wish(bucket: &Bucket, limits: &Limits, cost: u64) -> Wish {
        Wish { bucket: bucket.clone(), demand: Demand::Units { limits: limits.clone(), cost, lockout_ms: None } }
    }

    #[test]
    fn only_the_first_is_tried_and_the_next_when_it_has_gone() {
        let (bucket, one) = (Bucket::new(0, b"b"), limits(&[(1, 1000)]));
        let mut lines = Lines::default();
        let first = lines.join('a', wish(&bucket, &one, 1), 100, 150, 900);
        let second = lines.join('b', wish(&bucket, &one, 1), 101, 101, 200);
        assert_eq!((lines.waiters(), lines.lines(), lines.waiters_of(0, b"b")), (2, 1, 2));
        assert_eq!((lines.due_ms(), lines.next_look_ms(0, b"b", &Class::of_limits(&one))), (Some(150), Some(150)));
        assert_eq!(lines.next(149, true), None);
        assert_eq!(lines.next(150, true).unwrap().waiter, first);
        lines.wait(first, 300);
        let last_chance = lines.next(200, true).unwrap();
        assert_eq!((last_chance.waiter, last_chance.is_last_chance, last_chance.is_first), (second, true, false));
        assert_eq!(lines.leave(second, 200), Some('b'));
        assert_eq!(lines.leave(second, 200), None);
        assert_eq!(lines.due_ms(), Some(300), "who stood behind does not move the first");
        let third = lines.join('c', wish(&bucket, &one, 1), 250, 250, 900);
        assert_eq!(lines.leave(first, 250), Some('a'));
        assert_eq!(lines.next(250, true).unwrap().waiter, third, "its turn comes at once");
        assert_eq!(lines.next(250, false), None, "unless nothing may be granted");
        lines.leave(third, 250);
        assert_eq!((lines.waiters(), lines.lines(), lines.waiters_of(0, b"b"), lines.due_ms()), (0, 0, 0, None));
    }

    #[test]
    fn limits_in_another_order_are_the_same_line_and_other_limits_are_not() {
        let bucket = Bucket::new(0, b"b");
        let mut lines = Lines::default();
        let (ab, ba) = (limits(&[(1, 1000), (5, 60_000)]), limits(&[(5, 60_000), (1, 1000)]));
        lines.join((), wish(&bucket, &ab, 1), 0, 7, 100);
        assert_eq!(lines.next_look_ms(0, b"b", &Class::of_limits(&ba)), Some(7));
        for other in [limits(&[(1, 1000)]), limits(&[(2, 1000), (5, 60_000)])] {
            assert_eq!(lines.next_look_ms(0, b"b", &Class::of_limits(&other)), None);
        }
        for other in [(1, b"b"), (0, b"c")] {
            assert_eq!(lines.next_look_ms(other.0, other.1, &Class::of_limits(&ab)), None);
        }
    }

    #[test]
    fn who_wants_keys_that_another_waits_for_comes_after_it() {
        let pool = Bucket::new(0, b"{s}:pool:p");
        let wanted = |batch: Option<&str>| Wanted { batch: batch.map(Into::into), ..Wanted::default() };
        let wish = |batch| Wish {
            bucket: pool.clone(),
            demand: Demand::Key(Ask::new(wanted(batch), Order::Expiry, Vec::new(), &UnitLimits::new())),
        };
        let mut lines = Lines::default();
        let first_a = lines.join('a', wish(Some("a")), 0, 50, 900);
        let any = lines.join('*', wish(None), 1, 50, 900);
        let second_a = lines.join('A', wish(Some("a")), 2, 50, 900);
        let first_b = lines.join('b', wish(Some("b")), 3, 50, 900);
        let earlier = |lines: &Lines<char>, than| lines.earlier(0, b"{s}:pool:p", than);
        assert_eq!(earlier(&lines, Some(first_a)), []);
        assert_eq!(earlier(&lines, Some(any)), [wanted(Some("a"))]);
        assert_eq!(earlier(&lines, Some(first_b)), [wanted(Some("a")), wanted(None)]);
        assert_eq!(earlier(&lines, None).len(), 3, "who comes now is behind all");
        assert_eq!(lines.due_ms(), Some(50));
        lines.leave(first_a, 10);
        assert_eq!(lines.due_ms(), Some(10), "the other lines are looked at too");
        assert_eq!(earlier(&lines, Some(any)), [], "the next for `a` came later");
        assert_eq!(earlier(&lines, Some(second_a)), [wanted(None)]);
        assert!(earlier(&lines, Some(first_b)).contains(&wanted(Some("a"))));
        lines.touch_all_of(0, b"{s}:pool:", 5);
        assert_eq!(lines.due_ms(), Some(5));
    }

    #[test]
    fn a_change_is_looked_at_at_once() {
        let (one, other) = (Bucket::new(0, b"b"), Bucket::new(0, b"c"));
        let limits = limits(&[(1, 1000)]);
        let mut lines = Lines::default();
        let first = lines.join((), wish(&one, &limits, 1), 0, 500, 900);
        let second = lines.join((), wish(&other, &limits, 1), 0, 500, 900);
        assert!(lines.touch(0, b"c", 1) && !lines.touch(7, b"b", 1));
        assert_eq!(lines.next(1, true).unwrap().waiter, second);
        lines.wait(second, 500);
        lines.touch_all(1);
        for _ in 0..2 {
            let turn = lines.next(1, true).unwrap();
            lines.wait(turn.waiter, 600);
        }
        assert_eq!(lines.next(1, true), None);
        assert_eq!(lines.next(900, true).unwrap().waiter, first);
    }

    #[test]
    fn a_bucket_and_the_server_take_only_so_many() {
        let limits = limits(&[(1, 1000)]);
        let mut lines = Lines::default();
        let mut join = |bucket: usize| {
            let bucket = Bucket::new(0, bucket.to_string().as_bytes());
            let wish = wish(&bucket, &limits, 1);
            lines.has_room(&wish).map(|()| lines.join((), wish, 0, 0, 1))
        };
        for bucket in 0..MAX_WAITERS / MAX_WAITERS_A_BUCKET {
            assert!((0..MAX_WAITERS_A_BUCKET).all(|_| join(bucket).is_ok()));
            assert_eq!(join(bucket), Err(Error::TooManyWaiters));
        }
        assert_eq!(join(99), Err(Error::TooManyWaiters));
    }

    #[test]
    fn a_bucket_has_only_so_many_lines() {
        let bucket = Bucket::new(0, b"b");
        let mut lines = Lines::default();
        for count in 1..=MAX_LINES_A_BUCKET as u64 {
            let wish = wish(&bucket, &limits(&[(count, 1000)]), 1);
            lines.has_room(&wish).unwrap();
            lines.join((), wish, 0, 0, 1);
        }
        assert_eq!(lines.has_room(&wish(&bucket, &limits(&[(99, 1000)]), 1)), Err(Error::TooManyWaiters));
        assert_eq!(lines.has_room(&wish(&bucket, &limits(&[(1, 1000)]), 1)), Ok(()), "a line that is there");
    }

    #[test]
    fn lines_that_are_touched_again_and_again_hold_nobody_up() {
        let (busy, quiet, one) = (Bucket::new(0, b"b"), Bucket::new(0, b"c"), limits(&[(1, 1000)]));
        let mut lines = Lines::default();
        for count in 1..=MAX_LINES_A_BUCKET as u64 {
            lines.join((), wish(&busy, &limits(&[(count, 1000)]), 1), 0, 50, 900);
        }
        let other = lines.join((), wish(&quiet, &one, 1), 0, 60, 90);
        let served = |lines: &mut Lines<()>, from, until| {
            (from..until).find_map(|now| {
                // Fewer turns than there are lines, and all are touched before each.
                lines.touch(0, b"b", now);
                (0..12).find_map(|_| {
                    let turn = lines.next(now, true)?;
                    lines.wait(turn.waiter, now + 1000);
                    (turn.waiter == other).then_some((now, turn.is_last_chance))
                })
            })
        };
        let (at, last) = served(&mut lines, 0, 90).expect("its look");
        assert!((60..75).contains(&at) && !last, "looked at at {at}");
        let (at, last) = served(&mut lines, at + 1, 120).expect("its end");
        assert!((90..105).contains(&at) && last, "ended at {at}");
    }

    #[test]
    fn of_two_lines_that_are_due_together_the_one_whose_first_came_first_is_next() {
        let bucket = Bucket::new(0, b"b");
        let mut lines = Lines::default();
        let join =
            |lines: &mut Lines<()>, count| lines.join((), wish(&bucket, &limits(&[(count, 1000)]), 1), 0, 5, 900);
        let (a1, b1, a2) = (join(&mut lines, 1), join(&mut lines, 2), join(&mut lines, 1));
        assert_eq!(lines.next(5, true).unwrap().waiter, a1);
        lines.leave(a1, 5);
        assert_eq!(lines.next(5, true).unwrap().waiter, b1, "before the second of the other line");
        lines.leave(b1, 5);
        assert_eq!(lines.next(5, true).unwrap().waiter, a2);
    }

    #[derive(Debug, Clone)]
    enum Event {
        Join { line: usize, cost: u64, patience_ms: u64 },
        Disconnect(prop::sample::Index),
        Refund(u64),
        Delete,
    }

    fn events() -> impl Strategy<Value = Vec<(u64, Event)>> {
        let event = prop_oneof![
            12 => (0usize..2, prop_oneof![4 => Just(1u64), 1 => 2u64..4], 1u64..400)
                .prop_map(|(line, cost, patience_ms)| Event::Join { line, cost, patience_ms }),
            1 => any::<prop::sample::Index>().prop_map(Event::Disconnect),
            1 => (1u64..4).prop_map(Event::Refund),
            1 => Just(Event::Delete),
        ];
        prop::collection::vec((0u64..30, event), 1..120)
    }

    proptest! {
        /// A server in small, on a clock that ticks every millisecond: everybody is served in the order of its line at the
        /// first millisecond at which its claim fits, or leaves at the end of its patience.
        #[test]
        fn everybody_is_served_in_order_at_the_first_millisecond_or_times_out(events in events()) {
            let bucket = Bucket::new(0, b"b");
            let offered = [limits(&[(3, 100)]), limits(&[(5, 100), (8, 400)])];
            let mut lines: Lines<usize> = Lines::default();
            let mut log = WindowLog::default();
            let mut now: u64 = 1_000;
            let mut waiting: Vec<(WaiterId, usize, u64, u64)> = Vec::new(); // id, line, cost, until
            let mut events = events.into_iter();
            let (mut next_event_at, mut event) = (now, events.next());
            let fits = |log: &WindowLog, line: usize, cost, now| {
                let moment = clock([log], longest_ms(&offered[line]), now);
                decide(Some(log), &offered[line], cost, moment).unwrap().unwrap().retry
            };
            while event.is_some() || !waiting.is_empty() {
                while let Some((wait, what)) = event.as_ref().filter(|(wait, _)| next_event_at + wait <= now) {
                    next_event_at += wait;
                    match what {
                        Event::Join { line, cost, patience_ms } => {
                            let retry = fits(&log, *line, *cost, now);
                            let others = lines.next_look_ms(0, b"b", &Class::of_limits(&offered[*line])).is_some();
                            prop_assert_eq!(others, waiting.iter().any(|waiter| waiter.1 == *line));
                            match retry {
                                Retry::Granted if !others => {
                                    log.push(now, *cost, longest_ms(&offered[*line]));
                                    lines.touch(0, b"b", now);
                                }
                                _ => {
                                    let look = now + u64::try_from(retry.as_reply()).unwrap_or(0);
                                    let until = now + patience_ms;
                                    let wish = wish(&bucket, &offered[*line], *cost);
                                    let id = lines.join(*line, wish, now, look, until);
                                    waiting.push((id, *line, *cost, until));
                                }
                            }
                        }
                        Event::Disconnect(index) if !waiting.is_empty() => {
                            let (id, line, ..) = waiting.remove(index.index(waiting.len()));
                            prop_assert_eq!(lines.leave(id, now), Some(line));
                        }
                        Event::Disconnect(_) => {}
                        Event::Refund(units) => {
                            log.refund(*units, None, None);
                            lines.touch(0, b"b", now);
                        }
                        Event::Delete => {
                            log = WindowLog::default();
                            lines.touch(0, b"b", now);
                        }
                    }
                    event = events.next();
                }
                while let Some(turn) = lines.next(now, true) {
                    let index = waiting.iter().position(|waiter| waiter.0 == turn.waiter).unwrap();
                    let (_, line, cost, until) = waiting[index];
                    let first = waiting.iter().position(|waiter| waiter.1 == line).unwrap() == index;
                    prop_assert_eq!(first, turn.is_first);
                    match fits(&log, line, cost, now) {
                        Retry::Granted if turn.is_first => {
                            log.push(now, cost, longest_ms(&offered[line]));
                            lines.leave(turn.waiter, now);
                            lines.touch(0, b"b", now);
                            waiting.remove(index);
                        }
                        Retry::After(wait) if !turn.is_last_chance => {
                            prop_assert!(turn.is_first);
                            lines.wait(turn.waiter, now + wait);
                        }
                        _ => {
                            prop_assert!(turn.is_last_chance);
                            prop_assert_eq!(until, now);
                            lines.leave(turn.waiter, now);
                            waiting.remove(index);
                        }
                    }
                }
                // Nothing was missed: no first whose claim fits, and nobody whose time is out, is left.
                for line in 0..2 {
                    let first = waiting.iter().find(|waiter| waiter.1 == line);
                    prop_assert!(first.is_none_or(|waiter| fits(&log, line, waiter.2, now) != Retry::Granted));
                }
                prop_assert!(waiting.iter().all(|waiter| waiter.3 > now));
                prop_assert_eq!(lines.waiters(), waiting.len());
                now += 1;
            }
            prop_assert_eq!((lines.waiters(), lines.lines(), lines.due_ms()), (0, 0, None));
        }
    }
}
