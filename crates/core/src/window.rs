//! The window log: which units were claimed when, exactly, in as few bytes as that takes.
//!
//! An entry is a claim: an instant and a number of units. Entries stand in order of time; a unit claimed at *t* counts while
//! `now < t + window`. The log does not decide anything (that is [`limiter`](crate::limiter)), it remembers and counts.
//!
//! # Layout
//!
//! Entries are a byte stream: the time since the entry before as a LEB128 varint, its lowest bit saying whether a varint with
//! the units follows (a claim of one unit, the usual one, needs none). The first delta of a stream is never read: the instant
//! of its first entry stands outside, so that dropping entries from the front rewrites nothing.
//!
//! * Up to 14 bytes lie in the struct itself, which takes 32 bytes: a young bucket is one allocation.
//! * Up to 256 bytes lie in one vector.
//! * Beyond that, chunks of up to 256 bytes, each with the instant of its first entry and the running total of units before
//!   it: counting inside any window is two binary searches and at most one walk through a chunk. The memory of chunks that
//!   have run out is given back a few at a time, so that a claim that finds a million entries expired does not wait for it.
//!
//! # How long entries stay
//!
//! A granted claim names windows, and the log keeps what the longest of them needs: its *retention*. A window that no claim
//! has named for its own length is forgotten, so that one mistaken `7d` does not hold a week of entries for ever; what
//! shorter windows were named meanwhile takes its place. A claim whose units are corrected later names its window for the
//! instant that it was booked at.
//!
//! # Time
//!
//! The log remembers the latest instant that anything was booked at, also when those units were given back since: what ran
//! out by then was dropped, so that a claim booked before it would not be held against all that it should be.

use std::collections::VecDeque;

use crate::limit::{MAX_UNITS, MAX_WINDOW_MS};

/// The most entries in one log.
pub const MAX_ENTRIES: usize = 1_000_000;

/// How long a log outlives its newest entry, beyond the retention: time for waiters to wake, in milliseconds.
pub const EXPIRY_SLACK_MS: u64 = 1000;

/// The latest instant that a log can hold, in unix milliseconds: some 8,900 years from 1970.
pub const MAX_INSTANT_MS: u64 = (1 << 48) - 1;

/// The first byte of [`WindowLog::encode`].
const FORMAT: u8 = 1;

const INLINE_BYTES: usize = 14;
const CHUNK_BYTES: usize = 256;

/// No entry takes more bytes.
const ENTRY_BYTES: usize = 20;

/// How many spent chunks a claim gives the memory back of.
const FREED_AT_ONCE: usize = 8;

/// What [`WindowLog::encode`] writes beside the entries.
const HAS_MIXED: u64 = 1;
const HAS_LOCK: u64 = 2;
const HAS_LATEST: u64 = 4;

/// One claim: `units` taken at `at_ms` (unix milliseconds).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// When, in unix milliseconds.
    pub at_ms: u64,
    /// How many units; at least 1.
    pub units: u64,
}

/// The log of one window-limited thing; see the module's documentation.
#[derive(Clone)]
pub struct WindowLog {
    /// The instant of the oldest entry; while there is none, the latest instant.
    oldest: Packed<6>,
    /// From there to the latest instant that anything was booked at.
    span: Packed<5>,
    retention: Packed<5>,
    body: Body,
}

const _: () = assert!(size_of::<WindowLog>() == 32, "a young bucket is one allocation of 32 bytes");

#[derive(Clone)]
enum Body {
    Inline { len: u8, bytes: [u8; INLINE_BYTES] },
    Flat(Box<Flat>),
    Rich(Box<Rich>),
}

/// What a log of middle length needs.
#[derive(Clone)]
struct Flat {
    units: u64,
    bytes: Vec<u8>,
}

/// What a log needs when it is long, or when something unusual is to be remembered: claims on it that name different windows,
/// a lock, a latest instant beyond the newest entry.
#[derive(Clone, Default)]
struct Rich {
    units: u64,
    chunks: VecDeque<Chunk>,
    entries: usize,
    /// The instant of the newest entry.
    newest_ms: u64,
    mixed: Option<Mixed>,
    locked_until_ms: Option<u64>,
    /// Chunks that have run out, and wait for their memory to be given back.
    spent: Vec<Chunk>,
}

#[derive(Clone)]
struct Chunk {
    first_ms: u64,
    /// Units that stood before this chunk since the log began; it wraps, only differences count.
    before: u64,
    entries: u32,
    bytes: Vec<u8>,
}

/// Claims have named windows shorter than the retention since `renewed_ms`, when the retention itself was last named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mixed {
    renewed_ms: u64,
    /// The longest window named since then.
    shorter_ms: u64,
}

impl Default for WindowLog {
    fn default() -> Self {
        Self { oldest: Packed::ZERO, span: Packed::ZERO, retention: Packed::ZERO, body: Body::EMPTY }
    }
}

impl Body {
    const EMPTY: Self = Self::Inline { len: 0, bytes: [0; INLINE_BYTES] };
}

impl WindowLog {
    /// Whether there is no entry.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        match &self.body {
            Body::Inline { len, .. } => *len == 0,
            Body::Flat(flat) => flat.bytes.is_empty(),
            Body::Rich(rich) => rich.entries == 0,
        }
    }

    /// Units of all entries held, whatever their age.
    #[must_use]
    pub fn units(&self) -> u64 {
        match &self.body {
            Body::Inline { .. } => self.iter_short().map(|entry| entry.units).sum(),
            Body::Flat(flat) => flat.units,
            Body::Rich(rich) => rich.units,
        }
    }

    /// The number of entries held, whatever their age.
    #[must_use]
    pub fn entries(&self) -> usize {
        match &self.body {
            Body::Inline { .. } | Body::Flat(_) => self.iter_short().count(),
            Body::Rich(rich) => rich.entries,
        }
    }

    /// The instant of the oldest entry held, in unix milliseconds.
    #[must_use]
    pub fn oldest_ms(&self) -> Option<u64> {
        (!self.is_empty()).then(|| self.oldest.get())
    }

    /// The instant of the newest entry held, in unix milliseconds.
    #[must_use]
    pub fn newest_ms(&self) -> Option<u64> {
        (!self.is_empty()).then(|| self.newest())
    }

    /// The latest instant that anything was booked at, in unix milliseconds: of the newest entry, of a claim since given
    /// back, or of a lock. `None` if nothing ever was.
    #[must_use]
    pub fn latest_ms(&self) -> Option<u64> {
        let never = self.is_empty() && self.oldest == Packed::ZERO;
        (!never).then(|| self.latest())
    }

    /// Until when every claim is refused, in unix milliseconds; `None` if no lock was ever set.
    #[must_use]
    pub fn locked_until_ms(&self) -> Option<u64> {
        match &self.body {
            Body::Rich(rich) => rich.locked_until_ms,
            _ => None,
        }
    }

    /// The longest window that the log keeps entries for, in milliseconds; 0 before the first entry.
    #[must_use]
    pub fn retention_ms(&self) -> u64 {
        self.retention.get()
    }

    /// When the log may be forgotten, in unix milliseconds: one second after what was booked last has left the longest window,
    /// and no lock holds.
    #[must_use]
    pub fn expires_at_ms(&self) -> Option<u64> {
        let out_of_sight = self.latest_ms()? + self.retention_ms();
        Some(out_of_sight.max(self.locked_until_ms().unwrap_or(0)) + EXPIRY_SLACK_MS)
    }

    /// Units claimed after `after_ms`.
    #[must_use]
    pub fn units_after(&self, after_ms: u64) -> u64 {
        self.units() - self.units_until(after_ms)
    }

    /// Units claimed at exactly `at_ms`.
    #[must_use]
    pub fn units_at(&self, at_ms: u64) -> u64 {
        at_ms.checked_sub(1).map_or(0, |before_ms| self.units_until(at_ms) - self.units_until(before_ms))
    }

    /// The instant of the entry that holds the `nth` unit (from 1) of those held; `None` if there are fewer.
    #[must_use]
    pub fn instant_of_unit(&self, nth: u64) -> Option<u64> {
        let (first_ms, bytes, mut passed) = match &self.body {
            Body::Rich(rich) => {
                let base = rich.base();
                let behind = rich.chunks.partition_point(|chunk| chunk.before.wrapping_sub(base) < nth);
                let chunk = rich.chunks.get(behind.checked_sub(1)?)?;
                (chunk.first_ms, chunk.bytes.as_slice(), chunk.before.wrapping_sub(base))
            }
            _ => (self.oldest.get(), self.short_bytes(), 0),
        };
        Entries::new(first_ms, bytes).find_map(|entry| {
            passed += entry.units;
            (passed >= nth).then_some(entry.at_ms)
        })
    }

    /// Adds a claim of `units` at `at_ms` whose longest named window is `window_ms`, and drops the entries that no window
    /// needs any more.
    ///
    /// An instant before the latest can only come from a claim that started afresh (see
    /// [`limiter::clock`](crate::limiter::clock)): the log is emptied first. Values out of range are brought into it, so that
    /// replaying a claim cannot fail.
    pub fn push(&mut self, at_ms: u64, units: u64, window_ms: u64) {
        let at_ms = at_ms.clamp(1, MAX_INSTANT_MS);
        let units = units.clamp(1, MAX_UNITS);
        let window_ms = window_ms.clamp(1, MAX_WINDOW_MS);
        if self.latest_ms().is_some_and(|latest| at_ms < latest) {
            *self = Self::default();
        }
        if let Body::Rich(rich) = &mut self.body {
            rich.locked_until_ms = rich.locked_until_ms.filter(|until| at_ms < *until);
        }
        self.retain(at_ms, window_ms);
        self.trim(at_ms.checked_sub(self.retention.get()));
        self.append(Entry { at_ms, units });
    }

    /// Refuses every claim from `at_ms` until `until_ms`, and drops the entries that no window needs any more.
    ///
    /// As with a claim, an instant before the latest empties the log first, and values are brought into range.
    pub fn lock(&mut self, at_ms: u64, until_ms: u64) {
        let at_ms = at_ms.clamp(1, MAX_INSTANT_MS);
        if self.latest_ms().is_some_and(|latest| at_ms < latest) {
            *self = Self::default();
        }
        self.trim(at_ms.checked_sub(self.retention.get()));
        let is_empty = self.is_empty();
        let rich = self.rich();
        rich.locked_until_ms = Some(until_ms.clamp(at_ms, MAX_INSTANT_MS));
        rich.mixed = rich.mixed.filter(|_| !is_empty);
        self.book(at_ms);
    }

    /// Takes back up to `units` units: of the claims at exactly `at_ms`, or of the newest ones; nothing claimed at or before
    /// `dead_until_ms` (`None`: everything counts). Returns how many there were to take.
    pub fn refund(&mut self, units: u64, at_ms: Option<u64>, dead_until_ms: Option<u64>) -> u64 {
        let latest_ms = self.latest_ms();
        let mut left = units;
        match &mut self.body {
            Body::Rich(rich) => left -= rich.refund(left, at_ms, dead_until_ms),
            _ => {
                let mut all = self.short_chunk();
                let newest_ms = self.newest();
                left -= all.refund(left, at_ms, dead_until_ms).units;
                // The newest entry's instant stands nowhere but in its delta.
                if left < units && all.iter().last().is_none_or(|entry| entry.at_ms < newest_ms) {
                    self.rich();
                    return self.refund(units, at_ms, dead_until_ms);
                }
                let held = self.units() - (units - left);
                self.oldest = Packed::new(all.first_ms);
                self.set_short_bytes(&all.bytes, held);
            }
        }
        if left < units
            && let Some(latest_ms) = latest_ms
        {
            if let Body::Rich(rich) = &mut self.body {
                let last = rich.chunks.back().and_then(|chunk| chunk.iter().last());
                rich.newest_ms = last.map_or(0, |entry| entry.at_ms);
                self.oldest = Packed::new(rich.chunks.front().map_or(latest_ms, |chunk| chunk.first_ms));
                rich.mixed = rich.mixed.filter(|_| rich.entries > 0);
            }
            self.book(latest_ms);
        }
        units - left
    }

    /// Sets the units claimed at exactly `at_ms` to `units`, now that it is known how many it took: fewer (none with 0), more,
    /// or some where there are none any more. Returns how many there were.
    ///
    /// Fewer are taken back as by [`refund`](Self::refund). More are held against later claims from that instant on, for the
    /// window of `window_ms` that the claim named: the first entry of the instant grows, or one is put in its place in the
    /// order of time, without a change of the latest instant. At or after the latest instant that is a [`push`](Self::push).
    /// What no window holds any more is left alone.
    ///
    /// As with a claim, values are brought into range: one entry grows to [`MAX_UNITS`] at the most. A log of [`MAX_ENTRIES`]
    /// takes no further entry: the next newer one grows instead, so that the units count rather too long than too short, or
    /// the newest, if there is none. Settling twice is settling once, but not where another entry grew in place of its own.
    pub fn settle(&mut self, at_ms: u64, units: u64, window_ms: u64) -> u64 {
        let at_ms = at_ms.clamp(1, MAX_INSTANT_MS);
        let window_ms = window_ms.clamp(1, MAX_WINDOW_MS);
        let before = self.units_at(at_ms);
        if units <= before {
            self.refund(before - units, Some(at_ms), None);
            return before;
        }
        let latest_ms = self.latest_ms().unwrap_or(0);
        if before == 0 && at_ms >= latest_ms && !self.is_full(at_ms, window_ms) {
            self.push(at_ms, units, window_ms);
            return before;
        }
        let out_of_sight = latest_ms.saturating_sub(at_ms) >= self.retention.get().max(window_ms);
        if before == 0 && out_of_sight {
            return before;
        }
        self.retain_late(at_ms, window_ms);
        let more = Entry { at_ms, units: units - before };
        let has_room = self.entries() < MAX_ENTRIES;
        // An only entry before the latest instant, and a stream that may become too long, take the long form.
        if self.is_empty() || self.short_bytes().len() > CHUNK_BYTES - ENTRY_BYTES {
            self.rich();
        }
        match &mut self.body {
            Body::Rich(rich) => {
                rich.add(more, has_room);
                self.oldest = Packed::new(rich.chunks.front().map_or(at_ms, |chunk| chunk.first_ms));
            }
            _ => {
                let mut all = self.short_chunk();
                let held = self.units() + all.add(more, has_room);
                self.oldest = Packed::new(all.first_ms);
                self.set_short_bytes(&all.bytes, held);
            }
        }
        self.book(latest_ms);
        before
    }

    /// Every entry held, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = Entry> + '_ {
        let chunks = match &self.body {
            Body::Rich(rich) => Some(rich.chunks.iter().flat_map(Chunk::iter)),
            _ => None,
        };
        self.iter_short().chain(chunks.into_iter().flatten())
    }

    /// Whether a claim at `at_ms` naming `window_ms` finds no room: [`MAX_ENTRIES`] entries, none of which it may drop.
    #[must_use]
    pub fn is_full(&self, at_ms: u64, window_ms: u64) -> bool {
        let Body::Rich(rich) = &self.body else { return false };
        let longest = self.retention.get().max(window_ms);
        rich.entries >= MAX_ENTRIES && self.oldest.get() > at_ms.saturating_sub(longest)
    }

    /// How many separate allocations the log has: what freeing it costs.
    #[must_use]
    pub fn allocations(&self) -> usize {
        match &self.body {
            Body::Inline { .. } => 1,
            Body::Flat(_) => 3,
            Body::Rich(rich) => 4 + rich.chunks.len() + rich.spent.len(),
        }
    }

    /// Bytes of memory held, the struct itself included.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        size_of::<Self>()
            + match &self.body {
                Body::Inline { .. } => 0,
                Body::Flat(flat) => size_of::<Flat>() + flat.bytes.capacity(),
                Body::Rich(rich) => {
                    size_of::<Rich>()
                        + (rich.chunks.capacity() + rich.spent.capacity()) * size_of::<Chunk>()
                        + rich.chunks.iter().chain(&rich.spent).map(|chunk| chunk.bytes.capacity()).sum::<usize>()
                }
            }
    }

    /// The log as bytes that [`decode`](Self::decode) reads: the same bytes for the same entries, retention, latest instant and
    /// lock, however they came about.
    ///
    /// `FORMAT, retention, what else there is (bits), [renewed, shorter], [locked until], [latest], number of entries, instant of
    /// the oldest, stream`, numbers as LEB128.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let entries = self.entries();
        let mixed = self.mixed();
        let locked_until_ms = self.locked_until_ms();
        let latest_ms = self.latest_ms().filter(|latest| self.newest_ms() != Some(*latest));
        let mut out = Vec::with_capacity(48 + entries * 2);
        out.push(FORMAT);
        put_varint(&mut out, self.retention.get());
        let bit = |there: bool, bit| if there { bit } else { 0 };
        put_varint(
            &mut out,
            bit(mixed.is_some(), HAS_MIXED)
                | bit(locked_until_ms.is_some(), HAS_LOCK)
                | bit(latest_ms.is_some(), HAS_LATEST),
        );
        let mixed = mixed.into_iter().flat_map(|mixed| [mixed.renewed_ms, mixed.shorter_ms]);
        mixed.chain(locked_until_ms).chain(latest_ms).for_each(|number| put_varint(&mut out, number));
        put_varint(&mut out, entries as u64);
        let oldest = self.oldest_ms().unwrap_or(0);
        put_varint(&mut out, oldest);
        match &self.body {
            Body::Rich(rich) => {
                let mut last = oldest;
                for chunk in &rich.chunks {
                    last = put_stream(&mut out, last, chunk.first_ms, &chunk.bytes);
                }
            }
            _ => drop(put_stream(&mut out, oldest, oldest, self.short_bytes())),
        }
        out
    }

    /// Reads what [`encode`](Self::encode) writes, and nothing else. Any bytes may come (from a dump that someone made up):
    /// `None` for what cannot have been written, and no allocation that the length of `bytes` does not bound.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (&FORMAT, mut rest) = bytes.split_first()? else { return None };
        let retention = take_varint(&mut rest)?;
        let there = take_varint(&mut rest)?;
        if there > HAS_MIXED | HAS_LOCK | HAS_LATEST {
            return None;
        }
        let mut number = |bit| if there & bit == 0 { Some(None) } else { take_varint(&mut rest).map(Some) };
        let mixed = match (number(HAS_MIXED)?, number(HAS_MIXED)?) {
            (Some(renewed_ms), Some(shorter_ms)) => Some(Mixed { renewed_ms, shorter_ms }),
            _ => None,
        };
        let locked_until_ms = number(HAS_LOCK)?;
        let latest = number(HAS_LATEST)?;
        let entries = take_varint(&mut rest)?;
        let oldest = take_varint(&mut rest)?;
        let sound = retention <= MAX_WINDOW_MS
            && (retention > 0 || entries == 0)
            && mixed
                .is_none_or(|mixed| entries > 0 && mixed.shorter_ms < retention && mixed.renewed_ms <= MAX_INSTANT_MS)
            && (entries > 0) == (oldest > 0)
            && entries <= rest.len() as u64
            && entries <= MAX_ENTRIES as u64
            && oldest <= MAX_INSTANT_MS
            && latest.is_none_or(|latest| (1..=MAX_INSTANT_MS).contains(&latest))
            && locked_until_ms.is_none_or(|until| until <= MAX_INSTANT_MS && (entries > 0 || latest.is_some()));
        if !sound {
            return None;
        }
        let mut log = Self { retention: Packed::new(retention), ..Self::default() };
        let (stream, mut rich, mut at_ms) = (rest, Rich::default(), oldest);
        let mut chunk = Chunk { first_ms: oldest, before: 0, entries: 0, bytes: Vec::new() };
        // Where in the stream the chunk begins.
        let mut start = 0;
        for index in 0..entries {
            let here = stream.len() - rest.len();
            let (delta, units) = take_entry(&mut rest)?;
            at_ms = at_ms.checked_add(delta)?;
            let sound = (index > 0 || delta == 0)
                && at_ms <= MAX_INSTANT_MS
                && at_ms - oldest <= retention
                && (1..=MAX_UNITS).contains(&units);
            if !sound {
                return None;
            }
            if stream.len() - rest.len() - start > CHUNK_BYTES {
                let next = Chunk { first_ms: at_ms, before: rich.units, entries: 0, bytes: Vec::new() };
                let bytes = stream.get(start..here)?.to_vec();
                rich.chunks.push_back(Chunk { bytes, ..std::mem::replace(&mut chunk, next) });
                start = here;
            }
            chunk.entries += 1;
            rich.units += units;
        }
        if !rest.is_empty() {
            return None;
        }
        if entries > 0 {
            (log.oldest, log.span) = (Packed::new(oldest), Packed::new(at_ms - oldest));
            log.body = match stream.len() {
                len if len <= INLINE_BYTES => {
                    let mut bytes = [0; INLINE_BYTES];
                    bytes.get_mut(..stream.len())?.copy_from_slice(stream);
                    Body::Inline { len: len as u8, bytes }
                }
                len if len <= CHUNK_BYTES => Body::Flat(Box::new(Flat { units: rich.units, bytes: stream.to_vec() })),
                _ => {
                    rich.chunks.push_back(Chunk { bytes: stream.get(start..)?.to_vec(), ..chunk });
                    (rich.entries, rich.newest_ms) = (entries as usize, at_ms);
                    Body::Rich(Box::new(rich))
                }
            };
        }
        if let Some(latest) = latest {
            if entries > 0 && (latest <= at_ms || latest - oldest > retention) {
                return None;
            }
            log.rich();
            log.book(latest);
        }
        if mixed.is_some() || locked_until_ms.is_some() {
            let rich = log.rich();
            (rich.mixed, rich.locked_until_ms) = (mixed, locked_until_ms);
        }
        Some(log)
    }

    fn latest(&self) -> u64 {
        self.oldest.get() + self.span.get()
    }

    fn newest(&self) -> u64 {
        match &self.body {
            Body::Rich(rich) => rich.newest_ms,
            _ => self.latest(),
        }
    }

    /// Makes `at_ms` the latest instant.
    fn book(&mut self, at_ms: u64) {
        if self.is_empty() {
            self.oldest = Packed::new(at_ms);
        }
        self.span = Packed::new(at_ms - self.oldest.get());
    }

    fn iter_short(&self) -> Entries<'_> {
        Entries::new(self.oldest.get(), self.short_bytes())
    }

    fn mixed(&self) -> Option<Mixed> {
        match &self.body {
            Body::Rich(rich) => rich.mixed,
            _ => None,
        }
    }

    /// Units claimed at or before `until_ms`.
    fn units_until(&self, until_ms: u64) -> u64 {
        if self.is_empty() || until_ms < self.oldest.get() {
            return 0;
        }
        if until_ms >= self.newest() {
            return self.units();
        }
        let (first_ms, bytes, passed) = match &self.body {
            Body::Rich(rich) => {
                let behind = rich.chunks.partition_point(|chunk| chunk.first_ms <= until_ms);
                let Some(chunk) = rich.chunks.get(behind.wrapping_sub(1)) else { return 0 };
                (chunk.first_ms, chunk.bytes.as_slice(), chunk.before.wrapping_sub(rich.base()))
            }
            _ => (self.oldest.get(), self.short_bytes(), 0),
        };
        let inside = Entries::new(first_ms, bytes).take_while(|entry| entry.at_ms <= until_ms);
        passed + inside.map(|entry| entry.units).sum::<u64>()
    }

    /// Remembers that a claim at `at_ms` named `window_ms`.
    fn retain(&mut self, at_ms: u64, window_ms: u64) {
        let retention = self.retention.get();
        if window_ms >= retention || self.is_empty() {
            self.retention = Packed::new(window_ms);
            if let Body::Rich(rich) = &mut self.body {
                rich.mixed = None;
            }
            return;
        }
        // Every claim up to now named the retention, unless `mixed` says otherwise.
        let mixed = self.mixed().unwrap_or(Mixed { renewed_ms: self.newest(), shorter_ms: 0 });
        let shorter_ms = mixed.shorter_ms.max(window_ms);
        let forgotten = at_ms.saturating_sub(mixed.renewed_ms) >= retention;
        let mixed = if !forgotten {
            Some(Mixed { shorter_ms, ..mixed })
        } else {
            self.retention = Packed::new(shorter_ms);
            (shorter_ms > window_ms).then_some(Mixed { renewed_ms: at_ms, shorter_ms: window_ms })
        };
        self.rich().mixed = mixed;
    }

    /// Remembers that a claim at `at_ms` named `window_ms`, though others may have been booked since. What was named after it
    /// stays remembered, so that no more is dropped than would be otherwise.
    fn retain_late(&mut self, at_ms: u64, window_ms: u64) {
        let retention = self.retention.get();
        self.retention = Packed::new(retention.max(window_ms));
        let Body::Rich(rich) = &mut self.body else { return };
        // Without `mixed` there is no more to remember: the retention is then forgotten its own length after the newest entry
        // at the soonest, and this one is not newer.
        if let Some(mixed) = &mut rich.mixed {
            if window_ms >= retention {
                mixed.renewed_ms = mixed.renewed_ms.max(at_ms);
            } else if at_ms > mixed.renewed_ms {
                mixed.shorter_ms = mixed.shorter_ms.max(window_ms);
            }
        }
    }

    /// Drops every entry at or before `until_ms`.
    fn trim(&mut self, until_ms: Option<u64>) {
        let Some(until_ms) = until_ms else { return };
        if self.is_empty() || self.oldest.get() > until_ms {
            return;
        }
        let latest = self.latest();
        if self.newest() <= until_ms {
            // What follows is a claim or a lock, which brings an instant of its own.
            match &mut self.body {
                Body::Rich(rich) if rich.mixed.is_some() || rich.locked_until_ms.is_some() => rich.clear(),
                Body::Rich(rich) if rich.chunks.len() + rich.spent.len() > FREED_AT_ONCE => rich.clear(),
                body => *body = Body::EMPTY,
            }
            (self.oldest, self.span) = (Packed::new(latest), Packed::ZERO);
            return;
        }
        match &mut self.body {
            Body::Rich(rich) => {
                rich.trim(until_ms);
                self.oldest = Packed::new(rich.chunks.front().map_or(latest, |chunk| chunk.first_ms));
            }
            Body::Flat(flat) => {
                let cut = Cut::before(self.oldest.get(), &flat.bytes, until_ms);
                flat.bytes.drain(..cut.bytes);
                flat.units -= cut.units;
                self.oldest = Packed::new(cut.first_ms);
            }
            Body::Inline { len, bytes } => {
                let cut = Cut::before(self.oldest.get(), bytes.get(..usize::from(*len)).unwrap_or_default(), until_ms);
                bytes.copy_within(cut.bytes.., 0);
                *len -= cut.bytes as u8;
                self.oldest = Packed::new(cut.first_ms);
            }
        }
        self.span = Packed::new(latest - self.oldest.get());
    }

    /// Adds an entry behind all others.
    fn append(&mut self, entry: Entry) {
        let delta = if self.is_empty() { 0 } else { entry.at_ms - self.newest() };
        self.book(entry.at_ms);
        let mut encoded = [0; ENTRY_BYTES];
        let encoded = encode_entry(&mut encoded, delta, entry.units);
        match &mut self.body {
            Body::Inline { len, bytes } => {
                let start = usize::from(*len);
                if let Some(free) = bytes.get_mut(start..start + encoded.len()) {
                    free.copy_from_slice(encoded);
                    *len += encoded.len() as u8;
                } else {
                    let units = self.units() + entry.units;
                    let mut bytes = Vec::with_capacity(grown(start + encoded.len()));
                    bytes.extend_from_slice(self.short_bytes());
                    bytes.extend_from_slice(encoded);
                    self.body = Body::Flat(Box::new(Flat { units, bytes }));
                }
            }
            Body::Flat(flat) if flat.bytes.len() + encoded.len() <= CHUNK_BYTES => {
                flat.units += entry.units;
                put_exact(&mut flat.bytes, encoded);
            }
            Body::Flat(_) | Body::Rich(_) => self.rich().append(entry, encoded),
        }
    }

    /// The rich form of the log, made from a short one if need be.
    fn rich(&mut self) -> &mut Rich {
        if !matches!(self.body, Body::Rich(_)) {
            let mut rich = Box::new(Rich::default());
            if !self.is_empty() {
                rich.entries = self.entries();
                rich.units = self.units();
                rich.newest_ms = self.newest();
                let bytes = match std::mem::replace(&mut self.body, Body::EMPTY) {
                    Body::Flat(flat) => flat.bytes,
                    Body::Inline { len, bytes } => bytes.get(..usize::from(len)).unwrap_or_default().to_vec(),
                    Body::Rich(_) => Vec::new(),
                };
                let (first_ms, entries) = (self.oldest.get(), rich.entries as u32);
                rich.chunks.push_back(Chunk { first_ms, before: 0, entries, bytes });
            }
            self.body = Body::Rich(rich);
        }
        match &mut self.body {
            Body::Rich(rich) => rich,
            _ => unreachable!("made rich above"),
        }
    }

    /// The stream of a log that is not rich.
    fn short_bytes(&self) -> &[u8] {
        match &self.body {
            Body::Inline { len, bytes } => bytes.get(..usize::from(*len)).unwrap_or_default(),
            Body::Flat(flat) => &flat.bytes,
            Body::Rich(_) => &[],
        }
    }

    /// The stream of a log that is not rich, to be taken apart; without the number of its entries, which stands nowhere.
    fn short_chunk(&self) -> Chunk {
        Chunk { first_ms: self.oldest.get(), before: 0, entries: 0, bytes: self.short_bytes().to_vec() }
    }

    /// Replaces the stream of a log that is not rich by one of up to [`CHUNK_BYTES`] that holds so many units.
    fn set_short_bytes(&mut self, stream: &[u8], held: u64) {
        match &mut self.body {
            Body::Inline { len, bytes } => {
                if let Some(place) = bytes.get_mut(..stream.len()) {
                    place.copy_from_slice(stream);
                    *len = stream.len() as u8;
                } else {
                    let mut bytes = Vec::with_capacity(grown(stream.len()));
                    bytes.extend_from_slice(stream);
                    self.body = Body::Flat(Box::new(Flat { units: held, bytes }));
                }
            }
            Body::Flat(flat) => {
                flat.units = held;
                flat.bytes.clear();
                put_exact(&mut flat.bytes, stream);
            }
            Body::Rich(_) => {}
        }
    }
}

impl std::fmt::Debug for WindowLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WindowLog")
            .field("entries", &self.entries())
            .field("units", &self.units())
            .field("oldest_ms", &self.oldest_ms())
            .field("newest_ms", &self.newest_ms())
            .field("latest_ms", &self.latest_ms())
            .field("locked_until_ms", &self.locked_until_ms())
            .field("retention_ms", &self.retention_ms())
            .finish()
    }
}

impl PartialEq for WindowLog {
    fn eq(&self, other: &Self) -> bool {
        self.retention == other.retention
            && self.latest_ms() == other.latest_ms()
            && self.locked_until_ms() == other.locked_until_ms()
            && self.mixed() == other.mixed()
            && self.iter().eq(other.iter())
    }
}

impl Eq for WindowLog {}

impl Rich {
    /// The running total where the first chunk begins.
    fn base(&self) -> u64 {
        self.chunks.front().map_or(0, |chunk| chunk.before)
    }

    /// Drops every entry.
    fn clear(&mut self) {
        (self.units, self.entries) = (0, 0);
        self.spent.extend(self.chunks.drain(..));
    }

    /// Drops every entry at or before `until_ms`, where one stays.
    fn trim(&mut self, until_ms: u64) {
        let base = self.base();
        while self.chunks.get(1).is_some_and(|second| second.first_ms <= until_ms) {
            if let Some(dropped) = self.chunks.pop_front() {
                self.entries -= dropped.entries as usize;
                self.spent.push(dropped);
            }
        }
        // What is left of the front chunk may be dropped in part, or in whole where its successor begins later.
        if let Some(front) = self.chunks.front_mut() {
            self.entries -= front.trim(until_ms);
            if front.entries == 0 {
                self.spent.extend(self.chunks.pop_front());
            }
        }
        self.units -= self.base().wrapping_sub(base);
    }

    /// Adds an entry, `encoded` for a stream.
    fn append(&mut self, entry: Entry, encoded: &[u8]) {
        if !self.spent.is_empty() {
            self.spent.truncate(self.spent.len().saturating_sub(FREED_AT_ONCE));
            if self.spent.is_empty() {
                self.spent = Vec::new();
            }
        }
        let base = self.base();
        let before = base.wrapping_add(self.units);
        self.entries += 1;
        self.units += entry.units;
        self.newest_ms = entry.at_ms;
        match self.chunks.back_mut() {
            Some(last) if last.bytes.len() + encoded.len() <= CHUNK_BYTES => {
                last.entries += 1;
                put_exact(&mut last.bytes, encoded);
            }
            _ => {
                let mut bytes = Vec::with_capacity(grown(encoded.len()));
                bytes.extend_from_slice(encoded);
                self.chunks.push_back(Chunk { first_ms: entry.at_ms, before, entries: 1, bytes });
            }
        }
    }
}

impl Rich {
    /// See [`WindowLog::refund`]. Returns how many units were taken.
    fn refund(&mut self, units: u64, at_ms: Option<u64>, dead_until_ms: Option<u64>) -> u64 {
        let mut left = units;
        // The chunks that may hold the claim end here.
        let end = at_ms.map_or(self.chunks.len(), |at_ms| self.chunks.partition_point(|chunk| chunk.first_ms <= at_ms));
        let mut next_before = self.chunks.get(end).map_or(self.base().wrapping_add(self.units), |chunk| chunk.before);
        let mut start = end;
        let mut taken_backwards = Vec::new();
        while let Some(chunk) = start.checked_sub(1).and_then(|index| self.chunks.get_mut(index)) {
            start -= 1;
            let (first_ms, holds) = (chunk.first_ms, next_before.wrapping_sub(chunk.before));
            next_before = chunk.before;
            // A chunk that goes as a whole need not be taken apart: the newest claims; or, with more of the same instant in the
            // chunk behind it, claims of one instant only.
            let alive = dead_until_ms.is_none_or(|dead| first_ms > dead);
            let asked_for = at_ms.is_none_or(|at_ms| first_ms == at_ms && start + 1 < end);
            let taken = if alive && asked_for && holds <= left {
                let entries = std::mem::take(&mut chunk.entries);
                Taken { units: holds, entries: entries as usize }
            } else {
                chunk.refund(left, at_ms, dead_until_ms)
            };
            left -= taken.units;
            self.entries -= taken.entries;
            taken_backwards.push(taken.units);
            let went_on_before = at_ms.map_or(taken.units == holds, |at_ms| first_ms == at_ms);
            if left == 0 || !went_on_before {
                break;
            }
        }
        // Each chunk begins after so much less as was taken before it.
        let mut taken_before = 0u64;
        let mut taken = taken_backwards.into_iter().rev();
        for chunk in self.chunks.iter_mut().skip(start) {
            chunk.before = chunk.before.wrapping_sub(taken_before);
            taken_before += taken.next().unwrap_or(0);
        }
        if self.chunks.get(start).is_some_and(|chunk| chunk.entries > 0) {
            start += 1;
        }
        let emptied = self.chunks.iter().skip(start).take_while(|chunk| chunk.entries == 0).count();
        self.chunks.drain(start..start + emptied);
        self.units -= units - left;
        units - left
    }

    /// Adds the units of `more` at its instant, by another entry only if the log `has_room` for it.
    fn add(&mut self, more: Entry, has_room: bool) {
        // The chunk that holds the first entry which is not older; failing that, the last one.
        let next = self.chunks.partition_point(|chunk| chunk.first_ms < more.at_ms);
        let holds = |chunk: &Chunk| chunk.iter().any(|entry| entry.at_ms >= more.at_ms);
        let index = match next.checked_sub(1) {
            Some(index) if next == self.chunks.len() || self.chunks.get(index).is_some_and(holds) => index,
            _ => next,
        };
        let Some(chunk) = self.chunks.get_mut(index) else {
            let only = Entry { units: more.units.min(MAX_UNITS), ..more };
            return self.append(only, encode_entry(&mut [0; ENTRY_BYTES], 0, only.units));
        };
        let entries = chunk.entries;
        let units = chunk.add(more, has_room);
        self.units += units;
        if chunk.entries > entries {
            self.entries += 1;
            self.newest_ms = self.newest_ms.max(more.at_ms);
        }
        let second = chunk.split();
        for later in self.chunks.iter_mut().skip(index + 1) {
            later.before = later.before.wrapping_add(units);
        }
        if let Some(second) = second {
            self.chunks.insert(index + 1, second);
        }
    }
}

/// What a refund took from a chunk.
struct Taken {
    units: u64,
    entries: usize,
}

impl Chunk {
    fn iter(&self) -> Entries<'_> {
        Entries::new(self.first_ms, &self.bytes)
    }

    /// Drops the entries at or before `until_ms`; returns how many there were.
    fn trim(&mut self, until_ms: u64) -> usize {
        let cut = Cut::before(self.first_ms, &self.bytes, until_ms);
        self.bytes.drain(..cut.bytes);
        self.entries -= cut.entries;
        self.before = self.before.wrapping_add(cut.units);
        self.first_ms = cut.first_ms;
        cut.entries as usize
    }

    /// See [`WindowLog::refund`]. A stream cannot be read backwards: the chunk is taken apart and written again.
    fn refund(&mut self, units: u64, at_ms: Option<u64>, dead_until_ms: Option<u64>) -> Taken {
        let mut left = units;
        let mut entries: Vec<Entry> = self.iter().collect();
        let before = entries.len();
        for entry in entries.iter_mut().rev() {
            let alive = dead_until_ms.is_none_or(|dead| entry.at_ms > dead);
            if left == 0 || !alive || at_ms.is_some_and(|at_ms| at_ms > entry.at_ms) {
                break;
            }
            if at_ms.is_none_or(|at_ms| at_ms == entry.at_ms) {
                let taken = entry.units.min(left);
                entry.units -= taken;
                left -= taken;
            }
        }
        if left < units {
            entries.retain(|entry| entry.units > 0);
            self.write(&entries);
        }
        Taken { units: units - left, entries: before - entries.len() }
    }

    /// See [`Rich::add`]. Returns how many units were added. The stream may become longer than [`CHUNK_BYTES`] by it.
    fn add(&mut self, more: Entry, has_room: bool) -> u64 {
        let mut entries: Vec<Entry> = self.iter().collect();
        let index = entries.partition_point(|entry| entry.at_ms < more.at_ms);
        let stands = entries.get(index).is_some_and(|entry| entry.at_ms == more.at_ms);
        if has_room && !stands {
            entries.insert(index, Entry { units: 0, ..more });
        }
        let last = entries.len().saturating_sub(1);
        let Some(entry) = entries.get_mut(index.min(last)) else { return 0 };
        let added = more.units.min(MAX_UNITS - entry.units);
        entry.units += added;
        self.write(&entries);
        added
    }

    fn write(&mut self, entries: &[Entry]) {
        self.bytes.clear();
        self.entries = entries.len() as u32;
        self.first_ms = entries.first().map_or(0, |entry| entry.at_ms);
        let mut last = self.first_ms;
        for entry in entries {
            put_exact(&mut self.bytes, encode_entry(&mut [0; ENTRY_BYTES], entry.at_ms - last, entry.units));
            last = entry.at_ms;
        }
    }

    /// Makes two of a chunk that has become too long, and returns the second.
    fn split(&mut self) -> Option<Self> {
        let len = self.bytes.len();
        if len <= CHUNK_BYTES {
            return None;
        }
        let (mut kept, mut units) = (0, 0);
        let mut entries = self.iter();
        let (first_ms, start) = loop {
            let start = len - entries.rest.len();
            let entry = entries.next()?;
            if start >= len / 2 {
                break (entry.at_ms, start);
            }
            kept += 1;
            units += entry.units;
        };
        let bytes = self.bytes.split_off(start);
        self.bytes.shrink_to(CHUNK_BYTES);
        let entries = std::mem::replace(&mut self.entries, kept) - kept;
        Some(Self { first_ms, before: self.before.wrapping_add(units), entries, bytes })
    }
}

/// Where a stream is cut so that only entries after an instant stay.
struct Cut {
    bytes: usize,
    entries: u32,
    units: u64,
    /// The instant of the first entry that stays.
    first_ms: u64,
}

impl Cut {
    fn before(first_ms: u64, bytes: &[u8], until_ms: u64) -> Self {
        let mut entries = Entries::new(first_ms, bytes);
        let mut cut = Self { bytes: 0, entries: 0, units: 0, first_ms };
        while let Some(entry) = entries.next() {
            cut.first_ms = entry.at_ms;
            if entry.at_ms > until_ms {
                break;
            }
            cut.entries += 1;
            cut.units += entry.units;
            cut.bytes = bytes.len() - entries.rest.len();
        }
        cut
    }
}

/// Walks a stream whose first entry lies at a given instant.
struct Entries<'a> {
    /// The instant of the entry before. Before the first, so much less than its instant as its delta says.
    at_ms: u64,
    rest: &'a [u8],
}

impl<'a> Entries<'a> {
    #[inline]
    fn new(first_ms: u64, rest: &'a [u8]) -> Self {
        let (delta, _) = take_entry(&mut { rest }).unwrap_or_default();
        Self { at_ms: first_ms.wrapping_sub(delta), rest }
    }
}

impl Iterator for Entries<'_> {
    type Item = Entry;

    #[inline]
    fn next(&mut self) -> Option<Entry> {
        let (delta, units) = take_entry(&mut self.rest)?;
        self.at_ms = self.at_ms.wrapping_add(delta);
        Some(Entry { at_ms: self.at_ms, units })
    }
}

/// A whole number below 2^(8 N), kept in N bytes so that the struct stays small.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Packed<const N: usize>([u8; N]);

impl<const N: usize> Packed<N> {
    const ZERO: Self = Self([0; N]);

    /// `value`, which the callers keep below 2^(8 N): instants by [`MAX_INSTANT_MS`], spans by [`MAX_WINDOW_MS`].
    #[inline]
    fn new(value: u64) -> Self {
        debug_assert!(value >> (8 * N) == 0, "the value fits");
        let mut bytes = [0; N];
        for (byte, from) in bytes.iter_mut().zip(value.to_le_bytes()) {
            *byte = from;
        }
        Self(bytes)
    }

    #[inline]
    fn get(self) -> u64 {
        let mut bytes = [0; 8];
        for (to, byte) in bytes.iter_mut().zip(self.0) {
            *to = byte;
        }
        u64::from_le_bytes(bytes)
    }
}

/// The capacity to give a stream of `len` bytes: steps of a quarter, in sizes that allocators have.
fn grown(len: usize) -> usize {
    let wanted = len + len / 4;
    match wanted {
        0..=64 => wanted.next_multiple_of(16).max(32),
        65..=CHUNK_BYTES => wanted.next_multiple_of(32).min(CHUNK_BYTES),
        _ => wanted.min(CHUNK_BYTES.max(len)),
    }
}

/// Appends without the doubling that [`Vec`] would do.
fn put_exact(bytes: &mut Vec<u8>, more: &[u8]) {
    let len = bytes.len() + more.len();
    if len > bytes.capacity() {
        bytes.reserve_exact(grown(len) - bytes.len());
    }
    bytes.extend_from_slice(more);
}

fn put_entry(out: &mut Vec<u8>, delta_ms: u64, units: u64) {
    let mut buffer = [0; ENTRY_BYTES];
    out.extend_from_slice(encode_entry(&mut buffer, delta_ms, units));
}

/// Writes a stream so that it goes on after an entry at `last_ms`: all of it as it is, but for the delta that is never read.
/// Returns the instant of its last entry.
fn put_stream(out: &mut Vec<u8>, last_ms: u64, first_ms: u64, stream: &[u8]) -> u64 {
    let mut entries = Entries::new(first_ms, stream);
    let Some(first) = entries.next() else { return last_ms };
    put_entry(out, first.at_ms - last_ms, first.units);
    out.extend_from_slice(entries.rest);
    entries.last().map_or(first.at_ms, |last| last.at_ms)
}

/// The bytes of one entry of a stream.
fn encode_entry(buffer: &mut [u8; ENTRY_BYTES], delta_ms: u64, units: u64) -> &[u8] {
    let weighted = u64::from(units != 1);
    let mut len = encode_varint(buffer, 0, delta_ms << 1 | weighted);
    if weighted == 1 {
        len = encode_varint(buffer, len, units);
    }
    buffer.get(..len).unwrap_or_default()
}

#[inline]
fn encode_varint(buffer: &mut [u8; ENTRY_BYTES], mut at: usize, mut value: u64) -> usize {
    while let Some(byte) = buffer.get_mut(at) {
        at += 1;
        if value < 0x80 {
            *byte = value as u8;
            break;
        }
        *byte = value as u8 | 0x80;
        value >>= 7;
    }
    at
}

/// The milliseconds since the entry before, and the units, of the next entry of a stream.
#[inline]
fn take_entry(rest: &mut &[u8]) -> Option<(u64, u64)> {
    // Most entries: one unit, less than 64 ms or 8 s after the one before.
    match **rest {
        [head, ref after @ ..] if head & 0x81 == 0 => {
            *rest = after;
            Some((u64::from(head >> 1), 1))
        }
        [low, high @ 1..0x80, ref after @ ..] if low & 1 == 0 => {
            *rest = after;
            Some((u64::from(low & 0x7f) >> 1 | u64::from(high) << 6, 1))
        }
        _ => take_long_entry(rest),
    }
}

fn take_long_entry(rest: &mut &[u8]) -> Option<(u64, u64)> {
    let head = take_varint(rest)?;
    let units = if head & 1 == 0 { 1 } else { take_varint(rest).filter(|units| *units != 1)? };
    Some((head >> 1, units))
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Unsigned LEB128, as short as it can be; `None` at the end of the bytes, beyond 64 bits or for a longer form.
#[inline]
fn take_varint(rest: &mut &[u8]) -> Option<u64> {
    let (&first, after) = rest.split_first()?;
    *rest = after;
    if first < 0x80 {
        return Some(u64::from(first));
    }
    let mut value = u64::from(first & 0x7f);
    let mut shift = 7;
    loop {
        let (&byte, after) = rest.split_first()?;
        *rest = after;
        let bits = u64::from(byte & 0x7f);
        if shift > 63 || bits << shift >> shift != bits {
            return None;
        }
        value |= bits << shift;
        if byte < 0x80 {
            return (byte > 0).then_some(value);
        }
        shift += 7;
    }
}
