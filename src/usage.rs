//! Counting calls and logging them: in memory at first, and once a second into the keyspace.
//!
//! `KG.AUTH` and `KG.LOG` add to what waits here, by database, store and minute of the call. A timer writes it down, in slices, as
//! effects with absolute data (`keyguard_core::usage::UsageBatch`): so the hot path writes nothing, and a failover loses what came in
//! within the last second. The timer is set only while something waits.
//!
//! Nobody can make this grow: only so many lines of the log wait, and of refusals, which strangers cause, a store gets only so many
//! lines a second. What finds no room is counted, and that it was not logged is counted too.
//!
//! The timer runs outside of any command: as in [`rekey`](crate::rekey), a slice asks first what the server would have asked.

use std::collections::{HashMap, VecDeque};
use std::ffi::{c_int, c_void};
use std::hash::{BuildHasherDefault, Hasher};
use std::ptr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arrayvec::ArrayVec;
use keyguard_core::effect::Effect;
use keyguard_core::gate::Code;
use keyguard_core::ip::Address;
use keyguard_core::names::{MAX_STORE_BYTES, StoreName};
use keyguard_core::usage::{
    Counts, Days, KEYS, KeyDays, MAX_LATENCY_MS, MINUTE_MS, MINUTES_KEPT, Row, StoreStats, Tally, Totals, UsageBatch,
    hour_of, minute_of, next_entry, printable_path,
};
use keyguard_core::zone::Zone;
use keyguard_core::{Error, Result, parse};

use crate::commands::Call;
use crate::ffi::{self, Ctx, EntryFields, EntryId, Kind, Level, OwnedString, api, raw};
use crate::store::{Missing, Store};
use crate::{config, effects, server};

/// How long things wait before they are written down, in milliseconds.
const FLUSH_MS: i64 = 1_000;

/// How long a slice may take, once it has done one piece.
const SLICE: Duration = Duration::from_millis(1);

/// The pause after a slice, in milliseconds.
const PAUSE_MS: i64 = 3;

/// While nothing may be written, whether it still is so is looked at so often, in milliseconds.
const FORBIDDEN_MS: i64 = 100;

/// The most lines of the log that a store gets of refusals within a second.
const REFUSALS_A_SECOND: u32 = 256;

/// The most lines that wait.
const MAX_ROWS: usize = 65_536;

/// The most bytes of paths and methods that they have.
const MAX_ROW_BYTES: usize = 16 << 20;

/// The most keys that wait with counts; a minute of a call beyond them counts for its store alone.
const MAX_KEYS: usize = 1 << 20;

/// How many lines one effect carries.
const ROWS_AT_ONCE: usize = 64;

/// How many bytes of paths and methods it carries.
const ROW_BYTES_AT_ONCE: usize = 64 << 10;

/// How many old lines go beyond those that come, in one piece.
const TRIMMED_AT_ONCE: u64 = 512;

/// Days change at quarters of an hour, whatever the zone; in minutes.
const QUARTER: u32 = 15;

/// What a call of the gate said of itself.
#[derive(Clone, Copy)]
pub struct Told<'c> {
    /// Its path, as it was given.
    pub path: Option<&'c [u8]>,
    /// Its method.
    pub method: Option<&'c str>,
    /// Where it came from.
    pub address: Option<Address>,
}

/// How a call ended, as `KG.LOG` tells.
pub struct Ended<'c> {
    /// The id of the record; 0 for none.
    pub id: u64,
    /// Its status.
    pub status: u16,
    /// How long it took, in milliseconds.
    pub latency_ms: u32,
    /// The rest.
    pub told: Told<'c>,
}

/// A hasher for ids that the server itself gave out and for names of stores that exist: nobody chooses them to collide.
#[derive(Default)]
struct Mix(u64);

impl Hasher for Mix {
    fn write(&mut self, bytes: &[u8]) {
        for part in bytes.chunks(8) {
            let mut word = [0; 8];
            word.iter_mut().zip(part).for_each(|(to, from)| *to = *from);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_u64(&mut self, word: u64) {
        let product = u128::from(self.0.rotate_left(23) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
        self.0 = (product >> 64) as u64 ^ product as u64;
    }

    fn write_u32(&mut self, word: u32) {
        self.write_u64(u64::from(word));
    }

    fn write_usize(&mut self, word: usize) {
        self.write_u64(word as u64);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

type Map<K, V> = HashMap<K, V, BuildHasherDefault<Mix>>;

/// A store of a database: the database's number, then the name.
type Place = ArrayVec<u8, { MAX_STORE_BYTES + 4 }>;

fn place(database: c_int, name: StoreName<'_>) -> Place {
    let mut place = Place::new();
    let _ = place.try_extend_from_slice(&database.to_le_bytes());
    let _ = place.try_extend_from_slice(name.as_bytes());
    place
}

fn place_of(store: &Store<'_>) -> Place {
    place(store.ctx().selected_database(), store.name)
}

/// The keys of one value of days, by a quarter of an hour.
type ChunkOf = (u64, u32);

/// What keys of one value counted.
struct Chunk {
    /// Where the counts of a key stand, if they stand there: by the last eight bits of its id.
    index: [u8; KEYS as usize],
    counts: Vec<(u8, Counts)>,
}

impl Default for Chunk {
    fn default() -> Self {
        Self { index: [0; KEYS as usize], counts: Vec::new() }
    }
}

impl Chunk {
    fn find(&self, low: u8) -> Option<&Counts> {
        let index = *self.index.get(usize::from(low))?;
        self.counts.get(usize::from(index)).filter(|(of, _)| *of == low).map(|(_, counts)| counts)
    }

    /// The counts of a key; whether they are new.
    fn counts(&mut self, low: u8) -> (Option<&mut Counts>, bool) {
        let index = self.index.get(usize::from(low)).map_or(0, |index| usize::from(*index));
        let is_new = self.counts.get(index).is_none_or(|(of, _)| *of != low);
        let index = if is_new {
            // There are no more than 256 of them.
            self.index.get_mut(usize::from(low)).into_iter().for_each(|index| *index = self.counts.len() as u8);
            self.counts.push((low, Counts::default()));
            self.counts.len() - 1
        } else {
            index
        };
        (self.counts.get_mut(index).map(|(_, counts)| counts), is_new)
    }
}

/// A line of the log that waits.
struct WaitingRow {
    at_ms: u64,
    id: u64,
    code: Option<Code>,
    status: Option<u16>,
    latency_ms: Option<u32>,
    method: Option<Box<str>>,
    path: Option<Box<str>>,
    ip: Option<Address>,
}

impl WaitingRow {
    fn bytes(&self) -> usize {
        [&self.method, &self.path].into_iter().flatten().map(|text| text.len()).sum()
    }
}

/// What waits of a store.
#[derive(Default)]
struct Waiting {
    database: c_int,
    name: Box<str>,
    /// Counts of the store by the minute.
    minutes: Vec<(u32, Totals)>,
    chunks: Map<ChunkOf, Box<Chunk>>,
    rows: VecDeque<WaitingRow>,
    /// The second in which refusals were logged last, and how many were.
    refusals: (u64, u32),
    /// What is being written down.
    going: Going,
    /// An import holds it back.
    is_held: bool,
}

/// The part of what waits that is being written down.
#[derive(Default)]
struct Going {
    minutes: Vec<(u32, Totals)>,
    chunks: Vec<(ChunkOf, Box<Chunk>)>,
    rows: usize,
    /// Whether the log is to be looked at, even without lines for it.
    log: bool,
}

impl Going {
    fn is_over(&self) -> bool {
        self.minutes.is_empty() && self.chunks.is_empty() && self.rows == 0 && !self.log
    }
}

impl Waiting {
    fn totals_of(&mut self, minute: u32) -> Option<&mut Totals> {
        let known = self.minutes.iter().rposition(|(of, _)| *of == minute);
        let index = known.unwrap_or_else(|| {
            self.minutes.push((minute, Totals::default()));
            self.minutes.len() - 1
        });
        self.minutes.get_mut(index).map(|(_, totals)| totals)
    }

    fn is_empty(&self) -> bool {
        self.minutes.is_empty() && self.chunks.is_empty() && self.rows.is_empty() && self.going.is_over()
    }

    /// Whether it may be forgotten: also how many refusals this second has logged, of which there would be as many again.
    fn is_over(&self, second: u64) -> bool {
        self.is_empty() && !self.is_held && self.refusals.0 < second
    }

    fn all_minutes(&self) -> impl Iterator<Item = &(u32, Totals)> {
        self.minutes.iter().chain(&self.going.minutes)
    }

    fn all_chunks(&self) -> impl Iterator<Item = (&ChunkOf, &Chunk)> {
        let going = self.going.chunks.iter().map(|(of, chunk)| (of, &**chunk));
        self.chunks.iter().map(|(of, chunk)| (of, &**chunk)).chain(going)
    }

    fn keys(&self) -> usize {
        self.all_chunks().map(|(_, chunk)| chunk.counts.len()).sum()
    }

    fn row_bytes(&self) -> usize {
        self.rows.iter().map(WaitingRow::bytes).sum()
    }
}

#[derive(Default)]
struct Buffer {
    stores: Map<Box<[u8]>, Waiting>,
    /// Those with something that is being written down, the one at work first.
    queue: VecDeque<Place>,
    /// How many lines wait, how many bytes these have, and how many keys wait with counts.
    rows: usize,
    row_bytes: usize,
    keys: usize,
    /// Lines for which there was no room since the server started.
    dropped: u64,
    timer: Option<raw::RedisModuleTimerID>,
    /// When what is being written down was begun with, and how long that took the last time, in microseconds.
    spent: Duration,
    last_flush_us: u64,
    detached: Option<Detached>,
}

/// A context for setting a timer outside of any command.
struct Detached(*mut raw::RedisModuleCtx);

// SAFETY: it is made and used on the main thread only; the mutex is there because a static needs one.
unsafe impl Send for Detached {}

static BUFFER: Mutex<Option<Buffer>> = Mutex::new(None);

/// Runs `with` on what waits. It must not call the server, which may call back.
fn buffer<T>(with: impl FnOnce(&mut Buffer) -> T) -> T {
    let mut guard: MutexGuard<'_, Option<Buffer>> = BUFFER.lock().unwrap_or_else(PoisonError::into_inner);
    with(guard.get_or_insert_default())
}

/// What waits of a store, made here if nothing does. Not a function: what it gave would then hold all of the buffer.
macro_rules! waiting_mut {
    ($buffer:expr, $database:expr, $name:expr) => {{
        let place = place($database, $name);
        match $buffer.stores.get_mut(&place[..]) {
            Some(waiting) => waiting,
            None => $buffer.stores.entry(place.as_slice().into()).or_insert_with(|| Waiting {
                database: $database,
                name: $name.as_str().into(),
                ..Waiting::default()
            }),
        }
    }};
}

impl Buffer {
    /// Takes out a store with all that waits of it.
    fn remove(&mut self, place: &[u8]) -> Option<Waiting> {
        let waiting = self.stores.remove(place)?;
        self.rows = self.rows.saturating_sub(waiting.rows.len());
        self.row_bytes = self.row_bytes.saturating_sub(waiting.row_bytes());
        self.keys = self.keys.saturating_sub(waiting.keys());
        Some(waiting)
    }

    fn has_room(&self, bytes: usize) -> bool {
        self.rows < MAX_ROWS && self.row_bytes + bytes <= MAX_ROW_BYTES
    }
}

/// Counts an answer of `KG.AUTH`, and logs a refusal.
pub fn answered(call: &Call<'_>, store: &Store<'_>, code: Code, id: u64, told: Told<'_>) {
    if !config::usage() {
        return;
    }
    let logs = code != Code::Valid && config::usage_log().0 > 0;
    let database = call.ctx.selected_database();
    let needs_timer = buffer(|buffer| {
        let (keys, has_room) = (buffer.keys, buffer.has_room(told.bytes()));
        let waiting = waiting_mut!(buffer, database, store.name);
        let minute = minute_of(call.now_ms);
        let mut logged = false;
        if logs {
            let second = call.now_ms / 1000;
            if waiting.refusals.0 != second {
                waiting.refusals = (second, 0);
            }
            waiting.refusals.1 = waiting.refusals.1.saturating_add(1);
            logged = waiting.refusals.1 <= REFUSALS_A_SECOND && has_room;
        }
        let totals = waiting.totals_of(minute)?;
        totals.count(code);
        if logs && !logged {
            totals.unlogged += 1;
        }
        let mut new_keys = 0;
        if id > 0 && keys < MAX_KEYS {
            let chunk = waiting.chunks.entry((id / KEYS, minute / QUARTER)).or_default();
            let (counts, is_new) = chunk.counts((id % KEYS) as u8);
            new_keys += usize::from(is_new);
            if let Some(counts) = counts {
                if code == Code::Valid {
                    counts.requests += 1;
                } else {
                    counts.refused += 1;
                }
            }
        }
        let mut bytes = 0;
        if logged {
            let row = told.row(call.now_ms, id);
            bytes = row.bytes();
            waiting.rows.push_back(WaitingRow { code: Some(code), ..row });
        }
        buffer.keys += new_keys;
        buffer.rows += usize::from(logged);
        buffer.row_bytes += bytes;
        buffer.dropped += u64::from(logs && !logged);
        Some(buffer.timer.is_none())
    });
    if needs_timer == Some(true) {
        arm(call.ctx, FLUSH_MS);
    }
}

/// Counts and logs how a call ended.
pub fn ended(call: &Call<'_>, store: &Store<'_>, ended: &Ended<'_>) {
    if !config::usage() {
        return;
    }
    let logs = config::usage_log().0 > 0;
    let database = call.ctx.selected_database();
    let needs_timer = buffer(|buffer| {
        let (keys, has_room) = (buffer.keys, buffer.has_room(ended.told.bytes()));
        let waiting = waiting_mut!(buffer, database, store.name);
        let minute = minute_of(call.now_ms);
        let is_error = u64::from(ended.status >= 400);
        let latency_ms = u64::from(ended.latency_ms.min(MAX_LATENCY_MS));
        let totals = waiting.totals_of(minute)?;
        totals.logged += 1;
        totals.errors += is_error;
        totals.latency_ms += latency_ms;
        totals.unlogged += u64::from(logs && !has_room);
        let mut new_keys = 0;
        if ended.id > 0 && keys < MAX_KEYS {
            let chunk = waiting.chunks.entry((ended.id / KEYS, minute / QUARTER)).or_default();
            let (counts, is_new) = chunk.counts((ended.id % KEYS) as u8);
            new_keys += usize::from(is_new);
            if let Some(counts) = counts {
                counts.logged += 1;
                counts.errors += is_error;
                counts.latency_ms += latency_ms;
            }
        }
        let (mut rows, mut bytes) = (0, 0);
        if logs && has_room {
            let row = ended.told.row(call.now_ms, ended.id);
            (rows, bytes) = (1, row.bytes());
            let (status, latency_ms) = (Some(ended.status), Some(ended.latency_ms));
            waiting.rows.push_back(WaitingRow { status, latency_ms, ..row });
        }
        buffer.keys += new_keys;
        buffer.rows += rows;
        buffer.row_bytes += bytes;
        buffer.dropped += u64::from(logs && !has_room);
        Some(buffer.timer.is_none())
    });
    if needs_timer == Some(true) {
        arm(call.ctx, FLUSH_MS);
    }
}

impl Told<'_> {
    fn bytes(&self) -> usize {
        self.path.map_or(0, <[u8]>::len) + self.method.map_or(0, str::len)
    }

    fn row(&self, at_ms: u64, id: u64) -> WaitingRow {
        WaitingRow {
            at_ms,
            id,
            code: None,
            status: None,
            latency_ms: None,
            method: self.method.map(Into::into),
            path: self.path.map(|path| printable_path(path).into()),
            ip: self.address,
        }
    }
}

/// What waits, for INFO.
pub struct Summary {
    /// Of how many stores.
    pub stores: u64,
    /// How many lines of the log.
    pub rows: u64,
    /// For how many there was no room since the server started.
    pub dropped: u64,
    /// How long it took to write down what waited the last time, in microseconds.
    pub last_flush_us: u64,
}

/// What waits.
pub fn summary() -> Summary {
    buffer(|buffer| Summary {
        stores: buffer.stores.values().filter(|waiting| !waiting.is_empty() || waiting.is_held).count() as u64,
        rows: buffer.rows as u64,
        dropped: buffer.dropped,
        last_flush_us: buffer.last_flush_us,
    })
}

/// The setting changed. Where nothing is counted any more, what waits is written down at once.
pub fn set_counting(counts: bool) {
    let late = buffer(|buffer| {
        let ctx = buffer.detached.as_ref().map(|detached| detached.0)?;
        if counts { None } else { buffer.timer.take().map(|timer| (ctx, timer)) }
    });
    let Some((ctx, timer)) = late else { return };
    // SAFETY: the context is never freed, and settings change on the main thread; the timer is one that has not run yet, and has no
    // data.
    let ctx = unsafe {
        api!(RedisModule_StopTimer)(ctx, timer, ptr::null_mut());
        Ctx::new(ctx)
    };
    arm(ctx, 1);
}

/// A database was emptied, or all were: -1. What waits for it goes.
pub fn flushed(database: c_int) {
    buffer(|buffer| {
        let places: Vec<Box<[u8]>> = buffer
            .stores
            .iter()
            .filter(|(_, waiting)| database < 0 || waiting.database == database)
            .map(|(place, _)| place.clone())
            .collect();
        places.iter().for_each(|place| drop(buffer.remove(place)));
    });
}

/// Two databases changed places, and what waits for them with them.
pub fn swapped(one: c_int, other: c_int) {
    buffer(|buffer| {
        let stores = std::mem::take(&mut buffer.stores);
        for mut waiting in stores.into_values() {
            waiting.database = match waiting.database {
                database if database == one => other,
                database if database == other => one,
                database => database,
            };
            // An import ends where databases change places, and would let go of the store in its old one.
            waiting.is_held = false;
            if let Ok(name) = StoreName::parse(waiting.name.as_bytes()) {
                let place = place(waiting.database, name);
                buffer.stores.insert(place.as_slice().into(), waiting);
            }
        }
        // Who was being written down is so under the new place.
        buffer.queue.clear();
    });
}

/// Keys are deleted: their statistics go, and what waits for these.
pub fn forget_keys(store: &Store<'_>, ids: &[u64], now_ms: u64) -> Result<()> {
    forget_waiting(store, ids);
    let mut gone = Vec::new();
    for id in ids {
        let days = store.read(&store.name.days(id / KEYS))?;
        // Where something else stands, there is nothing of ours.
        if days.native::<KeyDays>().is_ok_and(|days| days.is_some_and(|days| days.has((id % KEYS) as u8))) {
            gone.push(*id);
        }
    }
    let stats_are_ours = store.read(&store.name.stats())?.native::<StoreStats>().is_ok();
    if gone.is_empty() || !stats_are_ours {
        return Ok(());
    }
    let effect = Effect::Usage(UsageBatch { now_ms, gone, ..UsageBatch::default() });
    effects::commit(store.ctx(), store.header, &effect)
}

/// A store is being deleted, these keys of it now; at last all that waits for it goes.
pub fn store_goes(ctx: Ctx<'_>, store: &Store<'_>, is_last: bool, ids: &[u64]) {
    if is_last {
        let place = place(ctx.selected_database(), store.name);
        buffer(|buffer| drop(buffer.remove(&place)));
    } else {
        forget_waiting(store, ids);
    }
}

fn forget_waiting(store: &Store<'_>, ids: &[u64]) {
    let place = place_of(store);
    buffer(|buffer| {
        let Some(waiting) = buffer.stores.get_mut(&place[..]) else { return };
        let all = waiting.chunks.iter_mut().map(|(of, chunk)| (*of, chunk));
        let going = waiting.going.chunks.iter_mut().map(|(of, chunk)| (*of, chunk));
        for ((number, _), chunk) in all.chain(going) {
            for id in ids.iter().filter(|id| **id / KEYS == number) {
                // The counts stay where they stand: nothing is written down of those that are none.
                let low = (id % KEYS) as u8;
                if chunk.find(low).is_some()
                    && let (Some(counts), _) = chunk.counts(low)
                {
                    *counts = Counts::default();
                }
            }
        }
    });
}

/// Keeps what waits of a store from being written down, as long as older lines are being imported; or does so no longer.
#[cfg(feature = "snapshot")]
pub fn hold(ctx: Ctx<'_>, database: c_int, name: StoreName<'_>, is_held: bool) {
    buffer(|buffer| {
        waiting_mut!(buffer, database, name).is_held = is_held;
    });
    arm(ctx, FLUSH_MS);
}

/// What waits of a store as a whole: its totals, what of it lies within the last hour, and hours.
pub fn waiting_of(store: &Store<'_>, now_ms: u64) -> (Totals, Tally, Days) {
    let place = place_of(store);
    buffer(|buffer| {
        let (mut totals, mut recent, mut hours) = (Totals::default(), Tally::default(), Days::new());
        let Some(waiting) = buffer.stores.get(&place[..]) else { return (totals, recent, hours) };
        let now = minute_of(now_ms);
        for (minute, more) in waiting.all_minutes() {
            totals.add(more);
            let tally = more.counts().tally();
            if minute.abs_diff(now) < MINUTES_KEPT {
                recent.add(&tally);
            }
            add(&mut hours, hour_of(*minute), &tally);
        }
        (totals, recent, hours)
    })
}

/// What waits of a key: in all, and by the day.
pub fn waiting_of_key(store: &Store<'_>, zone: &Zone, id: u64) -> (Counts, Days) {
    let place = place_of(store);
    buffer(|buffer| {
        let (mut totals, mut days) = (Counts::default(), Days::new());
        let Some(waiting) = buffer.stores.get(&place[..]) else { return (totals, days) };
        for ((number, quarter), chunk) in waiting.all_chunks() {
            if *number == id / KEYS
                && let Some(counts) = chunk.find((id % KEYS) as u8)
            {
                totals.add(counts);
                add(&mut days, day_of(zone, *quarter), &counts.tally());
            }
        }
        (totals, days)
    })
}

/// The keys with most requests that wait, and how many these are; no more than so many.
pub fn waiting_top(store: &Store<'_>, most: usize) -> Vec<(u64, u64)> {
    let place = place_of(store);
    let mut all: Vec<(u64, u64)> = buffer(|buffer| {
        let Some(waiting) = buffer.stores.get(&place[..]) else { return Vec::new() };
        let of = |number: u64, (low, counts): &(u8, Counts)| (number * KEYS + u64::from(*low), counts.requests);
        waiting.all_chunks().flat_map(|((number, _), chunk)| chunk.counts.iter().map(|key| of(*number, key))).collect()
    });
    all.retain(|(_, requests)| *requests > 0);
    all.sort_unstable();
    // A key may wait in two quarters of an hour.
    all.dedup_by(|(id, requests), (before, sum)| {
        let same = id == before;
        *sum += if same { *requests } else { 0 };
        same
    });
    all.sort_unstable_by_key(|(id, requests)| (std::cmp::Reverse(*requests), *id));
    all.truncate(most);
    all
}

fn add(series: &mut Days, unit: u32, tally: &Tally) {
    match series.binary_search_by_key(&unit, |(unit, _)| *unit) {
        Ok(index) => series.get_mut(index).into_iter().for_each(|(_, before)| before.add(tally)),
        Err(index) => series.insert(index, (unit, *tally)),
    }
}

fn day_of(zone: &Zone, quarter: u32) -> u32 {
    zone.day(u64::from(quarter) * u64::from(QUARTER) * MINUTE_MS)
}

/// Sets the timer, unless it is set.
fn arm(ctx: Ctx<'_>, ms: i64) {
    if buffer(|buffer| buffer.timer.is_some() || buffer.stores.is_empty()) {
        return;
    }
    // SAFETY: the context is valid; the callback has the type that the server calls. The context that it makes is ours, kept for good.
    unsafe {
        if buffer(|buffer| buffer.detached.is_none()) {
            let detached = Detached(api!(RedisModule_GetDetachedThreadSafeContext)(ctx.as_raw()));
            buffer(|buffer| buffer.detached = Some(detached));
        }
        let timer = api!(RedisModule_CreateTimer)(ctx.as_raw(), ms, Some(on_timer), ptr::null_mut());
        buffer(|buffer| buffer.timer = Some(timer));
    }
}

unsafe extern "C" fn on_timer(ctx: *mut raw::RedisModuleCtx, _: *mut c_void) {
    // SAFETY: the server's context is valid during the call.
    let ctx = unsafe { Ctx::new(ctx) };
    let pause_ms = ffi::guarded(FLUSH_MS, || {
        buffer(|buffer| buffer.timer = None);
        serve(ctx)
    });
    ffi::guarded((), || arm(ctx, pause_ms));
}

/// One slice; how long to pause then, in milliseconds.
fn serve(ctx: Ctx<'_>) -> i64 {
    if !ctx.has_flags(raw::REDISMODULE_CTX_FLAGS_MASTER) {
        // Its primary counts for itself.
        flushed(-1);
        return FLUSH_MS;
    }
    if !ctx.may_write() {
        return FORBIDDEN_MS;
    }
    let begun = Instant::now();
    if buffer(|buffer| buffer.queue.is_empty()) {
        buffer(begin);
    }
    let pause_ms = loop {
        let Some(place) = buffer(|buffer| buffer.queue.front().cloned()) else { break FLUSH_MS };
        match piece(ctx, &place) {
            Ok(Step::Done) => {}
            Ok(Step::StoreDone) => buffer(|buffer| {
                buffer.queue.pop_front();
                let second = ctx.milliseconds() / 1000;
                if buffer.stores.get(&place[..]).is_some_and(|waiting| waiting.is_over(second)) {
                    buffer.remove(&place);
                }
            }),
            Ok(Step::Later) => break FORBIDDEN_MS,
            Err(error) => {
                // There is no such store any more, or none of ours: nothing is counted for it.
                if !matches!(error, Error::NoStore | Error::ForeignHash | Error::WrongType) {
                    ctx.log(Level::Warning, &format!("usage could not be written down: {error}"));
                }
                buffer(|buffer| {
                    buffer.queue.pop_front();
                    drop(buffer.remove(&place));
                });
            }
        }
        if begun.elapsed() >= SLICE {
            break PAUSE_MS;
        }
    };
    buffer(|buffer| {
        buffer.spent += begun.elapsed();
        if buffer.queue.is_empty() {
            buffer.last_flush_us = buffer.spent.as_micros() as u64;
            buffer.spent = Duration::ZERO;
            return FLUSH_MS;
        }
        pause_ms
    })
}

/// Begins to write down what waits now.
fn begin(buffer: &mut Buffer) {
    for (place, waiting) in &mut buffer.stores {
        if waiting.is_held {
            continue;
        }
        let going = &mut waiting.going;
        going.minutes.append(&mut waiting.minutes);
        going.chunks.extend(waiting.chunks.drain());
        going.rows = waiting.rows.len();
        going.log = true;
        buffer.queue.extend(Place::try_from(&**place).ok());
    }
}

/// What became of a piece.
enum Step {
    /// It is written down, and there may be more.
    Done,
    /// Nothing is left of the store.
    StoreDone,
    /// It cannot be written now.
    Later,
}

/// What is to be written down next of a store.
enum Next {
    Counts,
    Rows,
    Chunk(u64),
}

/// Writes down one piece of a store.
fn piece(ctx: Ctx<'_>, place: &Place) -> Result<Step> {
    let Some((database, name, next)) = buffer(|buffer| {
        let waiting = buffer.stores.get(&place[..])?;
        let going = &waiting.going;
        let next = match going.chunks.last() {
            _ if !going.minutes.is_empty() => Some(Next::Counts),
            _ if going.rows > 0 || going.log => Some(Next::Rows),
            Some(((number, _), _)) => Some(Next::Chunk(*number)),
            None => None,
        };
        Some((waiting.database, waiting.name.clone(), next))
    }) else {
        return Ok(Step::StoreDone);
    };
    let Some(next) = next else { return Ok(Step::StoreDone) };
    ctx.select_database(database);
    let header = OwnedString::new(name.as_bytes());
    let name = StoreName::parse(header.name().bytes())?;
    if server::is_cluster()
        && let Some(words) = ctx.call(c"EXISTS", c"Ev", &[name.as_bytes()]).error()
    {
        // Where the slot has gone, the store is another node's.
        let may_return = words.contains("cluster is down") || ctx.read(header.name()).kind() != Kind::Empty;
        return if may_return { Ok(Step::Later) } else { Err(Error::NoStore) };
    }
    let store = Store::open(ctx, (name, header.name()), Missing::Refuse)?;
    if server::refusal_to_write(ctx, header.name()).is_some() {
        return Ok(Step::Later);
    }
    let written = match next {
        Next::Counts => counts(&store, place),
        Next::Rows => rows(&store, place),
        Next::Chunk(number) => chunk(&store, place, number),
    };
    match written {
        Ok(()) => Ok(Step::Done),
        // While the slot moves, a key of it may be on the other node already.
        Err(Error::TryAgain) => Ok(Step::Later),
        Err(error) => Err(error),
    }
}

fn counts(store: &Store<'_>, place: &Place) -> Result<()> {
    let ours = store.read(&store.name.stats())?.native::<StoreStats>().map(drop);
    let going =
        buffer(|buffer| buffer.stores.get_mut(&place[..]).map(|waiting| std::mem::take(&mut waiting.going.minutes)));
    // Where something else stands, nothing is counted.
    let (Ok(()), Some(minutes)) = (ours, going) else { return Ok(()) };
    let (mut totals, mut by_minute, mut hours) = (Totals::default(), Days::new(), Days::new());
    for (minute, more) in &minutes {
        totals.add(more);
        let tally = more.counts().tally();
        add(&mut by_minute, *minute, &tally);
        add(&mut hours, hour_of(*minute), &tally);
    }
    let now_ms = store.ctx().milliseconds();
    let batch = UsageBatch { now_ms, totals: Some(totals), minutes: by_minute, hours, ..UsageBatch::default() };
    effects::commit(store.ctx(), store.header, &Effect::Usage(batch))
}

fn chunk(store: &Store<'_>, place: &Place, number: u64) -> Result<()> {
    let ours = store.read(&store.name.days(number))?.native::<KeyDays>().is_ok()
        && store.read(&store.name.stats())?.native::<StoreStats>().is_ok();
    let zone = store.zone().unwrap_or_default();
    let taken = buffer(|buffer| {
        let taken = buffer.stores.get_mut(&place[..])?.going.chunks.pop()?;
        buffer.keys = buffer.keys.saturating_sub(taken.1.counts.len());
        Some(taken)
    });
    let Some(((_, quarter), mut chunk)) = taken.filter(|_| ours) else { return Ok(()) };
    let now_ms = store.ctx().milliseconds();
    let day = day_of(&zone, quarter);
    chunk.counts.retain(|(_, counts)| *counts != Counts::default());
    if chunk.counts.is_empty() {
        return Ok(());
    }
    chunk.counts.sort_unstable_by_key(|(low, _)| *low);
    let keys = chunk.counts.iter();
    let keys =
        keys.map(|(low, counts)| (number * KEYS + u64::from(*low), *counts, vec![(day, counts.tally())])).collect();
    let batch = UsageBatch { now_ms, today: zone.day(now_ms), keys, ..UsageBatch::default() };
    effects::commit(store.ctx(), store.header, &Effect::Usage(batch))
}

/// Writes lines to the log, and takes old ones out of it.
fn rows(store: &Store<'_>, place: &Place) -> Result<()> {
    let (most, age_ms) = config::usage_log();
    let log = store.read(&store.name.usage())?;
    let len = log.stream_len();
    let now_ms = store.ctx().milliseconds();
    let old = log_from(store, now_ms.saturating_sub(age_ms))?;
    drop(log);
    let taken = buffer(|buffer| {
        let Some(waiting) = buffer.stores.get_mut(&place[..]) else { return Vec::new() };
        let (mut taken, mut bytes) = (Vec::new(), 0);
        while waiting.going.rows > 0 && taken.len() < ROWS_AT_ONCE && bytes < ROW_BYTES_AT_ONCE {
            waiting.going.rows -= 1;
            let Some(row) = waiting.rows.pop_front() else { break };
            bytes += row.bytes();
            taken.push(row);
        }
        waiting.going.log = false;
        buffer.rows = buffer.rows.saturating_sub(taken.len());
        buffer.row_bytes = buffer.row_bytes.saturating_sub(bytes);
        taken
    });
    // Where something else stands, nothing is logged.
    let Ok(len) = len else { return unlogged(store, &taken, now_ms) };
    let addresses: Vec<Option<String>> = taken.iter().map(|row| row.ip.map(|ip| ip.to_string())).collect();
    let mut last = if taken.is_empty() || len == 0 { (0, 0) } else { last_entry(store) };
    let mut rows = Vec::with_capacity(taken.len());
    if most > 0 {
        for (row, ip) in taken.iter().zip(&addresses) {
            let Some(id) = next_entry(last, row.at_ms) else { break };
            last = id;
            rows.push(Row {
                at_ms: id.0,
                seq: id.1,
                id: row.id,
                code: row.code,
                status: row.status,
                latency_ms: row.latency_ms,
                method: row.method.as_deref(),
                path: row.path.as_deref(),
                ip: ip.as_deref(),
            });
        }
    }
    let now_has = len + rows.len() as u64;
    // Not more at once than one slice can bear.
    let keeps = most.max(len.saturating_sub(TRIMMED_AT_ONCE));
    let log_entries = (now_has > keeps || most == 0 && len > 0 && keeps == 0).then_some(keeps);
    let is_left = keeps > most || old.is_some_and(|(_, more)| more);
    if is_left {
        buffer(|buffer| buffer.stores.get_mut(&place[..]).into_iter().for_each(|waiting| waiting.going.log = true));
    }
    let log_from = old.map(|(from, _)| from);
    // Somebody may have added an entry after which no other can come.
    let no_room = if most > 0 { taken.get(rows.len()..).unwrap_or_default() } else { &[] };
    unlogged(store, no_room, now_ms)?;
    if rows.is_empty() && log_entries.is_none() && log_from.is_none() {
        return Ok(());
    }
    let batch = UsageBatch { now_ms, rows, log_entries, log_from, ..UsageBatch::default() };
    effects::commit(store.ctx(), store.header, &Effect::Usage(batch))
}

/// Counts lines that the log cannot take.
fn unlogged(store: &Store<'_>, rows: &[WaitingRow], now_ms: u64) -> Result<()> {
    let unlogged = rows.len() as u64;
    buffer(|buffer| buffer.dropped += unlogged);
    if unlogged == 0 || store.read(&store.name.stats())?.native::<StoreStats>().is_err() {
        return Ok(());
    }
    let totals = Some(Totals { unlogged, ..Totals::default() });
    effects::commit(store.ctx(), store.header, &Effect::Usage(UsageBatch { now_ms, totals, ..UsageBatch::default() }))
}

/// The first entry of the log that stays when those before `from_ms` go, but no more of them than one piece bears; and whether more
/// should go. None if none should.
fn log_from(store: &Store<'_>, from_ms: u64) -> Result<Option<(EntryId, bool)>> {
    let key = store.read(&store.name.usage())?;
    let (mut seen, mut stays) = (0, None);
    // Something else that stands there has no old entries.
    let _ = key.stream_visit(((0, 0), (u64::MAX, u64::MAX)), false, |id, _| {
        if id.0 >= from_ms {
            stays = (seen > 0).then_some((id, false));
            return false;
        }
        seen += 1;
        if seen > TRIMMED_AT_ONCE {
            stays = Some((id, true));
            return false;
        }
        true
    });
    // All are older, and they are few.
    Ok(stays.or_else(|| (seen > 0 && seen <= TRIMMED_AT_ONCE).then_some(((from_ms, 0), false))))
}

/// The last entry that the log ever had.
fn last_entry(store: &Store<'_>) -> EntryId {
    let reply = store.ctx().call(c"XINFO", c"Ev", &[b"STREAM", &store.name.usage()]);
    let named = (0..32).find(|index| reply.element(2 * index).as_deref() == Some("last-generated-id"));
    let id = named.and_then(|index| reply.element(2 * index + 1));
    id.and_then(|id| entry_id(id.as_bytes())).unwrap_or((0, 0))
}

/// The id of an entry in its text form, `1800000000000-0`.
pub fn entry_id(bytes: &[u8]) -> Option<EntryId> {
    let dash = bytes.iter().position(|byte| *byte == b'-')?;
    let (ms, seq) = bytes.split_at_checked(dash)?;
    Some((parse::unsigned(ms)?, parse::unsigned(seq.get(1..)?)?))
}

/// The line of the log that an entry is.
pub fn row_of((at_ms, seq): EntryId, fields: &EntryFields) -> Row<'_> {
    let mut row = Row { at_ms, seq, ..Row::default() };
    fields.iter().for_each(|(name, value)| row.take(name.name().bytes(), value.name().bytes()));
    row
}

/// Shows at most `n` lines of the log of a store, the oldest first, after an entry or from the beginning. `visit` may not call the
/// server.
///
/// # Errors
/// [`Error::WrongType`] where something else stands.
#[allow(dead_code, reason = "exports read it")]
pub fn read_log(store: &Store<'_>, after: Option<EntryId>, n: usize, mut visit: impl FnMut(Row<'_>)) -> Result<()> {
    let first = match after {
        None => (0, 0),
        Some(last) => match next_entry(last, last.0) {
            Some(next) => next,
            None => return Ok(()),
        },
    };
    let mut seen = 0;
    if n == 0 {
        return Ok(());
    }
    store.read(&store.name.usage())?.stream_visit((first, (u64::MAX, u64::MAX)), false, |id, fields| {
        visit(row_of(id, fields));
        seen += 1;
        seen < n
    })
}

/// The time of the newest line that the log ever had, in unix milliseconds: no older one can come.
#[cfg(feature = "snapshot")]
pub fn newest_ms(store: &Store<'_>) -> u64 {
    last_entry(store).0
}

/// Adds what another store counted and logged: counts merge with what is there, and lines follow on those that are, in their order,
/// with numbers of their own; one that is older than the [newest](newest_ms) is left out. Lines must be few enough for one effect. Of a log with more than `most` lines as many go as come, and as one
/// piece bears.
///
/// # Errors
/// [`Error::WrongType`] where something else stands, before anything changes.
#[cfg(feature = "snapshot")]
pub fn restore(store: &Store<'_>, mut batch: UsageBatch<'_>, most: u64) -> Result<()> {
    let len = store.read(&store.name.usage())?.stream_len()?;
    let mut last = if batch.rows.is_empty() { (0, 0) } else { last_entry(store) };
    batch.rows.retain_mut(|row| {
        let id = next_entry(last, row.at_ms).filter(|_| row.at_ms >= last.0);
        if let Some(id) = id {
            (row.at_ms, row.seq) = id;
            last = id;
        }
        id.is_some()
    });
    batch.keys.sort_by_key(|(id, ..)| *id);
    let keeps = most.max(len.saturating_sub(TRIMMED_AT_ONCE));
    batch.log_entries = (most > 0 && len + batch.rows.len() as u64 > keeps).then_some(keeps);
    effects::commit(store.ctx(), store.header, &Effect::Usage(batch))
}
