//! Stores to SQLite files, in the background: `KG.SNAPSHOT`, and the schedule of the setting `snapshot-every`.
//!
//! A timer goes through the store on the main thread, in short slices, and only copies bytes; a thread of ours ([`worker`](crate::worker))
//! takes the copies from a channel, decodes them and writes the file. Where the channel is full, the timer waits for the thread:
//! what is under way at any time are some [`AHEAD`] slices. Each record is copied in one step, so that it is whole; the store as a
//! whole is as it was in the minutes of the export: what is added after its beginning is left out, what is changed or deleted
//! meanwhile is in the file as it was when its turn came.
//!
//! Nothing is written into the keyspace, so that it works on replicas too.

use std::collections::{BTreeSet, VecDeque};
use std::ffi::{c_int, c_void};
use std::path::PathBuf;
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use keyguard_core::gate::Code;
use keyguard_core::ip::{Mark, Rules};
use keyguard_core::meters::Meters;
use keyguard_core::names::{Derived, Listed, StoreName};
use keyguard_core::pool::Pool;
use keyguard_core::record::{Record, RecordType, VaultRecord};
use keyguard_core::usage::{HOUR_MS, KEYS, KeyDays, StoreStats, Tally};
use keyguard_core::{Error, fernet, parse, vault};
use keyguard_snapshot::file::{FileError, FileName, Folder};
use keyguard_snapshot::item::{Counts, Header, Item, Key, Org, Rule, Usage};
use keyguard_snapshot::write::{Writer, Written};

use crate::effects::LAST_USED_AT;
use crate::ffi::{self, Ctx, EntryId, Kind, Level, OwnedString, api, raw};
use crate::native::Native;
use crate::store::{META, Missing, Packed, Store};
use crate::survey::Survey;
use crate::worker::{Failure, Stop, Worker};
use crate::{config, keyring, store, usage};

/// How long a slice may take once it has made a step. With the pause it leaves clients nineteen twentieths of the processor, and none
/// of them waits longer for it than for another client's pipeline.
const SLICE: Duration = Duration::from_micros(100);

/// The pause after a slice, in milliseconds.
const PAUSE_MS: i64 = 3;

/// While the thread has the word, whether it is through is looked at so often, in milliseconds.
const WAIT_MS: i64 = 10;

/// How many slices may wait for the thread.
const AHEAD: usize = 16;

/// A slice ends when what it copied has so many bytes.
const SLICE_BYTES: usize = 256 << 10;

/// The windows of one key are left out of a snapshot when they are larger, in bytes: to pack a million entries would hold the server
/// up. What is used of its quotas is always there.
const MAX_METERS: usize = 64 << 10;

/// How many ids are read from a list at once.
const IDS: usize = 64;

/// How many exports that have ended are told of, at the most.
const MAX_ENDED: usize = 64;

/// The time between two looks at the schedule, in milliseconds.
const SCHEDULE_MS: u64 = 1_000;

/// What is to be written where.
#[derive(Debug, Clone)]
pub struct Order {
    /// The database that the store is in.
    pub database: c_int,
    /// The store.
    pub store: String,
    /// The file.
    pub file: FileName,
    /// The label of the Fernet key of the keyring that secrets are put under.
    pub fernet: Option<String>,
    /// What files of the same schedule are called up to the time, and how many of them are kept.
    pub schedule: Option<(String, usize)>,
}

/// How an export stands.
#[derive(Debug, Clone)]
pub struct Status {
    /// The file.
    pub file: FileName,
    /// None while it is at work.
    pub outcome: Option<Result<Written, Failure>>,
    /// Rows that are in the file now.
    pub rows: u64,
    /// Secrets that did not open, and so are not under the Fernet key.
    pub unopened: u64,
    /// In unix milliseconds.
    pub begun_ms: u64,
    /// In unix milliseconds.
    pub ended_ms: Option<u64>,
}

/// What INFO tells of exports.
#[derive(Debug, Clone, Copy, Default)]
pub struct Summary {
    /// Whether one is at work.
    pub running: bool,
    /// Rows that the one at work, or the last one, has written.
    pub rows: u64,
    /// How many have ended well since the module was loaded.
    pub done: u64,
    /// How many have failed.
    pub failed: u64,
    /// When the last one ended well, in unix milliseconds; 0 for never.
    pub last_done_ms: u64,
    /// How long that took, in milliseconds.
    pub last_took_ms: u64,
}

/// What the thread says of itself.
#[derive(Default)]
struct Progress {
    rows: AtomicU64,
    unopened: AtomicU64,
    outcome: Mutex<Option<Result<Written, Failure>>>,
}

/// What the thread is told.
enum Message {
    Items(Vec<Item>),
    Finish,
}

struct Job {
    order: Order,
    walk: Walk,
    /// None when everything was said.
    sender: Option<SyncSender<Message>>,
    /// What found the channel full.
    pending: Option<Message>,
    progress: Arc<Progress>,
    /// None when the thread has ended, or was told to.
    worker: Option<Worker>,
    begun_ms: u64,
}

impl Job {
    fn status(&self) -> Status {
        Status {
            file: self.order.file.clone(),
            outcome: None,
            rows: self.progress.rows.load(Ordering::Relaxed),
            unopened: self.progress.unopened.load(Ordering::Relaxed),
            begun_ms: self.begun_ms,
            ended_ms: None,
        }
    }

    fn is_of(&self, database: c_int, store: &str) -> bool {
        self.order.database == database && self.order.store == store
    }
}

#[derive(Default)]
struct Exports {
    running: Option<Box<Job>>,
    /// Those that the schedule wants.
    queue: VecDeque<Order>,
    /// The last of each store, the newest at the end.
    ended: VecDeque<((c_int, String), Status)>,
    /// Threads of exports that were broken off, until they have noticed.
    leaving: Vec<Worker>,
    summary: Summary,
    timer_is_set: bool,
    schedule: Schedule,
}

/// When the stores of this server are to be written next.
#[derive(Default)]
struct Schedule {
    /// In unix milliseconds.
    due_ms: Option<u64>,
    /// A search for all stores, once it is due.
    search: Option<Survey>,
    timer_is_set: bool,
}

static EXPORTS: Mutex<Option<Exports>> = Mutex::new(None);

/// Runs `with` on the exports. It must not call the server, which may call back.
fn exports<T>(with: impl FnOnce(&mut Exports) -> T) -> T {
    let mut guard: MutexGuard<'_, Option<Exports>> = EXPORTS.lock().unwrap_or_else(PoisonError::into_inner);
    with(guard.get_or_insert_default())
}

/// Begins an export.
///
/// # Errors
/// [`Error::Busy`] while another one is at work, [`Error::SnapshotsOff`] without a folder for it, and what the store fails with.
pub fn start(ctx: Ctx<'_>, order: Order) -> keyguard_core::Result<()> {
    let folder = config::snapshot_dir().ok_or(Error::SnapshotsOff)?;
    exports(|exports| exports.leaving.retain(|worker| !worker.is_finished()));
    if exports(|exports| exports.running.is_some() || !exports.leaving.is_empty()) {
        return Err(Error::Busy { what: "another snapshot" });
    }
    let begun_ms = ctx.milliseconds();
    // Now, not with the timer: what comes after the reply comes after the beginning.
    let mut walk = Walk::new(begun_ms);
    let first = slice(ctx, &order, &mut walk)?;
    let (sender, receiver) = sync_channel(AHEAD);
    let progress = Arc::new(Progress::default());
    let (its_progress, its_order) = (Arc::clone(&progress), order.clone());
    let work = move |stop: &Stop| {
        let outcome = ffi::guarded(Err(Failure::Thread), || write(&folder, &its_order, &receiver, stop, &its_progress));
        *its_progress.outcome.lock().unwrap_or_else(PoisonError::into_inner) = Some(outcome);
    };
    let worker = Worker::start(Stop::default(), work).map_err(|_| Error::Internal)?;
    let job = Job { order, walk, sender: Some(sender), pending: Some(first), progress, worker: Some(worker), begun_ms };
    exports(|exports| {
        exports.summary.running = true;
        exports.running = Some(Box::new(job));
    });
    arm(ctx, 1);
    Ok(())
}

/// How the export of a store stands that is at work, or the last one that was.
pub fn status(database: c_int, store: StoreName<'_>) -> Option<Status> {
    exports(|exports| {
        let running = exports.running.as_ref().filter(|job| job.is_of(database, store.as_str()));
        let ended = || exports.ended.iter().find(|((of, name), _)| *of == database && name == store.as_str());
        running.map(|job| job.status()).or_else(|| ended().map(|(_, status)| status.clone()))
    })
}

/// What INFO tells.
pub fn summary() -> Summary {
    exports(|exports| {
        if let Some(job) = &exports.running {
            exports.summary.rows = job.progress.rows.load(Ordering::Relaxed);
        }
        exports.summary
    })
}

/// Other data may stand where the export is at work: it comes to nothing.
pub fn data_replaced(ctx: Ctx<'_>) {
    if let Some(job) = exports(|exports| exports.running.take()) {
        break_off(ctx, *job, Failure::Replaced);
    }
}

/// The server goes down: the thread is waited for, which takes no longer than what it is at.
pub fn shut_down() {
    let workers = exports(|exports| {
        exports.queue.clear();
        exports.summary.running = false;
        let running = exports.running.take().and_then(|mut job| job.worker.take());
        running.into_iter().chain(exports.leaving.drain(..)).collect::<Vec<_>>()
    });
    workers.into_iter().for_each(Worker::stop_and_wait);
}

/// Sets the timer, unless it is set.
fn arm(ctx: Ctx<'_>, ms: i64) {
    if exports(|exports| exports.running.is_some() && !std::mem::replace(&mut exports.timer_is_set, true)) {
        // SAFETY: the callback has the type that the server calls.
        unsafe { api!(RedisModule_CreateTimer)(ctx.as_raw(), ms, Some(on_timer), ptr::null_mut()) };
    }
}

unsafe extern "C" fn on_timer(ctx: *mut raw::RedisModuleCtx, _: *mut c_void) {
    // SAFETY: the server's context is valid during the call.
    let ctx = unsafe { Ctx::new(ctx) };
    let pause_ms = ffi::guarded(PAUSE_MS, || {
        exports(|exports| exports.timer_is_set = false);
        serve(ctx)
    });
    ffi::guarded((), || arm(ctx, pause_ms));
}

/// One slice; how long to pause then, in milliseconds.
fn serve(ctx: Ctx<'_>) -> i64 {
    // It stands there again only if it comes out of the slice: one that meets a defect of ours does not meet it for ever.
    let Some(mut job) = exports(|exports| exports.running.take()) else { return PAUSE_MS };
    let outcome = job.progress.outcome.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(outcome) = outcome {
        // It has said its last word.
        job.worker.take().into_iter().for_each(Worker::stop_and_wait);
        end(ctx, *job, outcome);
        return PAUSE_MS;
    }
    if job.sender.is_some() && job.pending.is_none() {
        match slice(ctx, &job.order, &mut job.walk) {
            Ok(message) => job.pending = Some(message),
            Err(error) => {
                break_off(ctx, *job, error.into());
                return PAUSE_MS;
            }
        }
    }
    if let (Some(sender), Some(message)) = (&job.sender, job.pending.take()) {
        let is_last = matches!(message, Message::Finish);
        match sender.try_send(message) {
            Ok(()) if is_last => job.sender = None,
            Ok(()) => {}
            Err(TrySendError::Full(message)) => job.pending = Some(message),
            // The thread has ended, and says why.
            Err(TrySendError::Disconnected(_)) => job.sender = None,
        }
    }
    let pause_ms = if job.sender.is_none() || job.pending.is_some() { WAIT_MS } else { PAUSE_MS };
    exports(|exports| exports.running = Some(job));
    pause_ms
}

/// Copies what comes next.
fn slice(ctx: Ctx<'_>, order: &Order, walk: &mut Walk) -> keyguard_core::Result<Message> {
    ctx.select_database(order.database);
    let header = OwnedString::new(order.store.as_bytes());
    let name = StoreName::parse(header.name().bytes())?;
    let store = Store::open(ctx, (name, header.name()), Missing::Refuse)?;
    let begun = Instant::now();
    let mut batch = Batch::default();
    while !walk.step(&store, &mut batch)? {
        if begun.elapsed() >= SLICE || batch.bytes >= SLICE_BYTES {
            return Ok(Message::Items(batch.items));
        }
    }
    // What there is to say at the end is empty only when all was said before.
    Ok(if batch.items.is_empty() { Message::Finish } else { Message::Items(batch.items) })
}

/// Ends an export whose thread is at work: it notices by itself.
fn break_off(ctx: Ctx<'_>, mut job: Job, why: Failure) {
    let worker = job.worker.take();
    worker.iter().for_each(Worker::stop);
    exports(|exports| exports.leaving.extend(worker));
    end(ctx, job, Err(why));
}

/// An export has ended; the next one that the schedule wants begins.
fn end(ctx: Ctx<'_>, job: Job, outcome: Result<Written, Failure>) {
    let ended_ms = ctx.milliseconds();
    let took_ms = ended_ms.saturating_sub(job.begun_ms);
    let (store, file) = (&job.order.store, job.order.file.as_str());
    match &outcome {
        Ok(written) => ctx.log(
            Level::Notice,
            &format!("snapshot of store {store} written to {file}: {} rows in {took_ms} ms", written.rows),
        ),
        Err(failure) => {
            ctx.log(Level::Warning, &format!("snapshot of store {store} to {file} failed: {failure}"));
        }
    }
    let mut status = job.status();
    if let Ok(written) = &outcome {
        status.rows = written.rows;
    }
    (status.outcome, status.ended_ms) = (Some(outcome), Some(ended_ms));
    let next = exports(|exports| {
        let summary = &mut exports.summary;
        (summary.running, summary.rows) = (false, status.rows);
        match outcome {
            Ok(_) => {
                summary.done += 1;
                (summary.last_done_ms, summary.last_took_ms) = (ended_ms, took_ms);
            }
            Err(_) => summary.failed += 1,
        }
        let of = (job.order.database, job.order.store);
        exports.ended.retain(|(other, _)| *other != of);
        exports.ended.push_back((of, status));
        if exports.ended.len() > MAX_ENDED {
            exports.ended.pop_front();
        }
        exports.queue.pop_front()
    });
    next.into_iter().for_each(|order| start_in_turn(ctx, order));
}

/// Begins what the schedule wants. While a thread that was broken off is still at a long call, it keeps its turn.
fn start_in_turn(ctx: Ctx<'_>, order: Order) {
    match start(ctx, order.clone()) {
        Ok(()) => {}
        Err(Error::Busy { .. }) => {
            exports(|exports| exports.queue.push_front(order));
            arm_schedule(ctx, SCHEDULE_MS as i64);
        }
        Err(error) => {
            ctx.log(Level::Warning, &format!("snapshot of store {} was not begun: {error}", order.store));
        }
    }
}

/// What a slice has copied.
#[derive(Default)]
struct Batch {
    items: Vec<Item>,
    bytes: usize,
}

impl Batch {
    fn push(&mut self, item: Item, bytes: usize) {
        self.bytes += bytes + size_of::<Item>();
        self.items.push(item);
    }
}

/// How far an export has come through its store.
struct Walk {
    begun_ms: u64,
    /// Ids from this one on were given out after the beginning.
    end_id: u64,
    /// The highest id that was listed: the header may say anything of the next one.
    last_id: u64,
    /// Ids to be looked at, of what is listed under [`Phase`].
    ids: VecDeque<u64>,
    phase: Phase,
    /// Accounts of the vault keys that were seen.
    accounts: BTreeSet<String>,
}

enum Phase {
    Header,
    /// What is listed by id, after this one.
    Listed(Listed, u64),
    Rules(Option<Mark>),
    Accounts,
    /// The log behind this entry.
    Log(Option<EntryId>),
    Stats,
    /// The days of so many keys, from this value on.
    Days(u64),
    Done,
}

impl Walk {
    fn new(begun_ms: u64) -> Self {
        Self { begun_ms, end_id: 0, last_id: 0, ids: VecDeque::new(), phase: Phase::Header, accounts: BTreeSet::new() }
    }

    /// Copies a record, or some small things; whether nothing is left.
    fn step(&mut self, store: &Store<'_>, batch: &mut Batch) -> keyguard_core::Result<bool> {
        const FIRST: Listed = Listed::Orgs;
        match &mut self.phase {
            Phase::Header => {
                let header = header(store, self.begun_ms)?;
                self.end_id = header.next_id;
                batch.push(Item::Header(header), 0);
                self.phase = Phase::Listed(FIRST, 0);
            }
            Phase::Listed(of, after) => {
                if self.ids.is_empty() {
                    self.ids = store.ids_after(*of, *after, IDS)?.into();
                }
                let Some(id) = self.ids.pop_front().filter(|id| *id < self.end_id) else {
                    self.ids.clear();
                    self.phase = match of {
                        Listed::Orgs => Phase::Listed(Listed::Keys(RecordType::Api), 0),
                        Listed::Keys(RecordType::Api) => Phase::Listed(Listed::Keys(RecordType::Vault), 0),
                        Listed::Keys(RecordType::Vault) => Phase::Rules(None),
                    };
                    return Ok(false);
                };
                *after = id;
                self.last_id = self.last_id.max(id);
                match *of {
                    Listed::Orgs => copy_org(store, id, batch)?,
                    Listed::Keys(record_type) => {
                        copy_key(store, id, record_type, batch, &mut self.accounts)?;
                    }
                }
            }
            Phase::Rules(mark) => {
                let next = copy_rules(store, mark.as_ref(), batch)?;
                self.phase = next.map_or(Phase::Accounts, |mark| Phase::Rules(Some(mark)));
            }
            Phase::Accounts => match self.accounts.pop_first() {
                Some(name) => {
                    if let Some(meters) = meters(store, &Derived::Account(name.as_bytes()))? {
                        let bytes = name.len() + meters.len();
                        batch.push(Item::Account { name, meters }, bytes);
                    }
                }
                None => self.phase = Phase::Log(None),
            },
            Phase::Log(after) => {
                let next = copy_log(store, *after, self.begun_ms, batch)?;
                self.phase = next.map_or(Phase::Stats, |last| Phase::Log(Some(last)));
            }
            Phase::Stats => {
                copy_value::<StoreStats>(store, &store.name.stats(), batch)?;
                self.phase = Phase::Days(0);
            }
            Phase::Days(chunk) if *chunk <= self.last_id / KEYS => {
                copy_value::<KeyDays>(store, &store.name.days(*chunk), batch)?;
                *chunk += 1;
            }
            Phase::Days(_) => self.phase = Phase::Done,
            Phase::Done => return Ok(true),
        }
        Ok(false)
    }
}

fn header(store: &Store<'_>, begun_ms: u64) -> keyguard_core::Result<Header> {
    let tz = store.named_zone()?.map(|zone| zone.name().to_owned());
    Ok(Header {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        store: store.name.as_str().to_owned(),
        created_ms: store.created_ms()?,
        next_id: store.next_id()?,
        tz,
        ip_threshold: store.ip_threshold()?,
        begun_ms,
    })
}

fn copy_org(store: &Store<'_>, id: u64, batch: &mut Batch) -> keyguard_core::Result<()> {
    let names = store.read(&store.name.orgs())?;
    let field = names.hash_field(&ffi::to_c_string(&id.to_string()))?;
    let Some(name) = field.and_then(|name| String::from_utf8(name.name().bytes().to_vec()).ok()) else {
        // Somebody deleted it by hand.
        return Ok(());
    };
    let record = store.read(&store.name.org(&name))?;
    if record.kind() != Kind::Hash {
        return Ok(());
    }
    let Some(packed) = Packed::read(&record)?.map(|packed| packed.bytes().to_vec()) else { return Ok(()) };
    let meters = meters(store, &Derived::OrgWin(name.as_bytes()))?;
    let bytes = name.len() + packed.len() + meters.as_ref().map_or(0, Vec::len);
    batch.push(Item::Org(Org { id, name, packed, meters }), bytes);
    Ok(())
}

fn copy_key(
    store: &Store<'_>,
    id: u64,
    record_type: RecordType,
    batch: &mut Batch,
    accounts: &mut BTreeSet<String>,
) -> keyguard_core::Result<()> {
    let record = store.read(&store.name.key(id))?;
    // One that is gone, or was put there by somebody else, is none of the store's.
    if record.kind() != Kind::Hash {
        return Ok(());
    }
    let Some(packed) = Packed::read(&record)?.map(|packed| packed.bytes().to_vec()) else { return Ok(()) };
    let text = |field| -> keyguard_core::Result<Option<String>> {
        let value = record.hash_field_named(field)?;
        Ok(value.and_then(|value| String::from_utf8(value.name().bytes().to_vec()).ok()))
    };
    let meta = text(&META)?;
    let (mut state, mut last_used_ms) = (None, None);
    match record_type {
        RecordType::Api => {
            last_used_ms = text(&LAST_USED_AT)?.and_then(|at_ms| parse::unsigned(at_ms.as_bytes()));
            state = meters(store, &Derived::Win(id))?;
        }
        RecordType::Vault => {
            if let Ok(record) = VaultRecord::decode(&packed) {
                if let Some(account) = record.account.filter(|account| !accounts.contains(*account)) {
                    accounts.insert(account.to_owned());
                }
                let pool = store.read(&store.name.pool(record.name))?;
                state = pool.native::<Pool>().ok().flatten().and_then(|pool| pool.remembered(id, MAX_METERS));
            }
        }
    }
    let bytes = packed.len() + meta.as_ref().map_or(0, String::len) + state.as_ref().map_or(0, Vec::len);
    batch.push(Item::Key(Key { id, packed, meta, meters: state, last_used_ms, token: None }), bytes);
    Ok(())
}

/// The state that stands under a derived key, if there is any that can be read.
fn meters(store: &Store<'_>, key: &Derived<'_>) -> keyguard_core::Result<Option<Vec<u8>>> {
    let key = store.read(&store.name.derived(key))?;
    // What another value stands in the place of, has no state.
    Ok(key.native::<Meters>().ok().flatten().map(|meters| meters.encode_within(MAX_METERS)))
}

/// Copies some rules; where the next ones begin.
fn copy_rules(store: &Store<'_>, after: Option<&Mark>, batch: &mut Batch) -> keyguard_core::Result<Option<Mark>> {
    let key = store.read(&store.name.ips())?;
    let Some(rules) = key.native::<Rules>()? else { return Ok(None) };
    let mut mark = None;
    for (net, rule) in rules.after(after).take(IDS) {
        mark = Some(Mark::of(net, &rule));
        let item = Rule {
            net: net.to_string(),
            kind: rule.kind,
            path: rule.path.as_ref().map(|path| path.as_str().to_owned()),
            until_ms: rule.until_ms,
            reason: rule.reason.to_owned(),
            by: rule.by,
            strikes: rule.strikes,
        };
        let bytes = item.net.len() + item.reason.len() + item.path.as_ref().map_or(0, String::len);
        batch.push(Item::Rule(item), bytes);
    }
    Ok(mark)
}

/// Copies some entries of the usage log; the last one, if there may be more.
fn copy_log(
    store: &Store<'_>,
    after: Option<EntryId>,
    begun_ms: u64,
    batch: &mut Batch,
) -> keyguard_core::Result<Option<EntryId>> {
    let (mut seen, mut last) = (0, None);
    usage::read_log(store, after, IDS, |row| {
        seen += 1;
        if row.at_ms > begun_ms {
            return;
        }
        last = Some((row.at_ms, row.seq));
        let owned = |text: Option<&str>| text.map(str::to_owned);
        let item = Usage {
            at_ms: row.at_ms,
            seq: row.seq,
            key: row.id,
            code: row.code.map(|code| code.as_str().to_owned()),
            status: row.status,
            latency_ms: row.latency_ms,
            method: owned(row.method),
            path: owned(row.path),
            ip: owned(row.ip),
        };
        let bytes = [&item.method, &item.path, &item.ip].into_iter().flatten().map(String::len).sum();
        batch.push(Item::Usage(item), bytes);
    })?;
    Ok(last.filter(|_| seen == IDS))
}

/// Copies a native value as it is; the thread takes it apart.
fn copy_value<T: Native>(store: &Store<'_>, key: &[u8], batch: &mut Batch) -> keyguard_core::Result<()> {
    let Some(packed) = store.read(key)?.native::<T>().ok().flatten().map(T::to_bytes) else { return Ok(()) };
    // What stands behind `{acme}:`.
    let name = key.splitn(2, |byte| *byte == b':').nth(1).unwrap_or_default();
    let bytes = packed.len();
    batch.push(Item::Value { name: String::from_utf8_lossy(name).into_owned(), packed }, bytes);
    Ok(())
}

/// What a value says, in rows for people.
fn in_rows(name: &str, packed: &[u8]) -> Vec<Item> {
    let Some(of) = name.strip_prefix("stats:") else { return Vec::new() };
    let mut rows = Vec::new();
    if let Some(stats) = StoreStats::decode(packed) {
        let total = |code: Option<Code>, counts| Item::Total {
            key: None,
            code: code.map(|code| code.as_str().to_owned()),
            counts,
        };
        rows.push(total(None, counts(&stats.totals().counts())));
        rows.extend(stats.codes().filter(|(_, count)| *count > 0).map(|(code, count)| {
            let (requests, refused) = if code == Code::Valid { (count, 0) } else { (0, count) };
            total(Some(code), Counts { requests, refused, ..Counts::default() })
        }));
        rows.extend(
            stats
                .hours()
                .map(|(hour, tally)| Item::Hour { hour_ms: u64::from(hour) * HOUR_MS, counts: counts_of_day(&tally) }),
        );
    } else if let (Some(days), Some(chunk)) = (KeyDays::decode(packed), parse::unsigned(of.as_bytes())) {
        for (low, total, days) in days.iter() {
            let key = chunk * KEYS + u64::from(low);
            rows.push(Item::Total { key: Some(key), code: None, counts: counts(&total) });
            rows.extend(days.into_iter().map(|(day, tally)| Item::Day {
                key,
                day: i32::try_from(day).unwrap_or(i32::MAX),
                counts: counts_of_day(&tally),
            }));
        }
    }
    rows
}

fn counts(of: &keyguard_core::usage::Counts) -> Counts {
    let keyguard_core::usage::Counts { requests, refused, logged, errors, latency_ms } = *of;
    Counts { requests, refused, logged, errors, latency_ms }
}

fn counts_of_day(of: &Tally) -> Counts {
    let Tally { requests, refused, logged, errors } = *of;
    Counts { requests, refused, logged, errors, latency_ms: 0 }
}

/// What the thread does.
fn write(
    folder: &str,
    order: &Order,
    receiver: &Receiver<Message>,
    stop: &Stop,
    progress: &Progress,
) -> Result<Written, Failure> {
    let folder = Folder::open(&PathBuf::from(folder))?;
    let mut writer = Writer::create(&folder, &order.file)?;
    stop.interrupts(writer.interrupter());
    loop {
        match receiver.recv() {
            Ok(Message::Items(items)) => {
                for mut item in items {
                    if stop.requested() {
                        return Err(FileError::Stopped.into());
                    }
                    if let Item::Key(key) = &mut item {
                        let opened = for_old_packages(order, key);
                        progress.unopened.fetch_add(u64::from(opened.is_err()), Ordering::Relaxed);
                    }
                    writer.put(&item)?;
                    progress.rows.fetch_add(1, Ordering::Relaxed);
                    if let Item::Value { name, packed } = &item {
                        for row in in_rows(name, packed) {
                            writer.put(&row)?;
                            progress.rows.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                }
            }
            Ok(Message::Finish) => break,
            // The main thread has given up.
            Err(_) => return Err(FileError::Stopped.into()),
        }
    }
    let written = writer.finish(now_ms())?;
    if let Some((prefix, keep)) = &order.schedule {
        folder.prune(prefix, *keep)?;
    }
    Ok(written)
}

/// Finds what the old packages know a key by: the secret of a vault key under the Fernet key, if one is named; the hash of an API key
/// that came from there, as long as it is the digest.
fn for_old_packages(order: &Order, key: &mut Key) -> keyguard_core::Result<()> {
    let Some(keyring) = keyring::installed() else { return Ok(()) };
    match (Record::decode(&key.packed), &order.fernet) {
        (Ok(Record::Vault(record)), Some(label)) => {
            let fernet_key = keyring.fernet(label).ok_or(Error::Internal)?;
            let secret = vault::open(&keyring, &store::place_in(&order.store, key.id), record.sealed)?;
            key.token = Some(fernet::encrypt(fernet_key, &secret, now_ms() / 1000, *keyring::random()?));
        }
        (Ok(Record::Api(record)), _) => {
            let has_old_digest = keyring.peppers().any(|pepper| pepper.fingerprint() == record.issued.digest_key);
            key.token = has_old_digest.then(|| hex(record.issued.digest.as_bytes()));
        }
        _ => {}
    }
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The system's clock: the server's may be asked for on its own thread only.
fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// Looks at the settings of the schedule, which may have changed.
pub fn reschedule(ctx: Ctx<'_>) {
    let every_ms = config::snapshot_every_ms();
    let now_ms = ctx.milliseconds();
    exports(|exports| {
        exports.schedule.due_ms = every_ms.map(|every_ms| next_due_ms(now_ms, every_ms));
        if every_ms.is_none() {
            exports.schedule.search = None;
        }
    });
    arm_schedule(ctx, SCHEDULE_MS as i64);
}

/// The next whole multiple of the interval: a schedule goes on as it did before a restart.
fn next_due_ms(now_ms: u64, every_ms: u64) -> u64 {
    (now_ms / every_ms.max(1)).saturating_add(1).saturating_mul(every_ms)
}

fn arm_schedule(ctx: Ctx<'_>, ms: i64) {
    let needs_one = |exports: &mut Exports| {
        let schedule = &mut exports.schedule;
        let wanted = schedule.due_ms.is_some() || schedule.search.is_some() || !exports.queue.is_empty();
        wanted && !std::mem::replace(&mut schedule.timer_is_set, true)
    };
    if exports(needs_one) {
        // SAFETY: the callback has the type that the server calls.
        unsafe { api!(RedisModule_CreateTimer)(ctx.as_raw(), ms, Some(on_schedule), ptr::null_mut()) };
    }
}

unsafe extern "C" fn on_schedule(ctx: *mut raw::RedisModuleCtx, _: *mut c_void) {
    // SAFETY: the server's context is valid during the call.
    let ctx = unsafe { Ctx::new(ctx) };
    let pause_ms = ffi::guarded(SCHEDULE_MS as i64, || {
        exports(|exports| exports.schedule.timer_is_set = false);
        look_at_schedule(ctx)
    });
    ffi::guarded((), || arm_schedule(ctx, pause_ms));
}

/// Does what is due; when to look again, in milliseconds.
fn look_at_schedule(ctx: Ctx<'_>) -> i64 {
    let now_ms = ctx.milliseconds();
    if let Some(mut search) = exports(|exports| exports.schedule.search.take()) {
        let Some(findings) = search.go_on(ctx) else {
            exports(|exports| exports.schedule.search = Some(search));
            return PAUSE_MS;
        };
        let keep = config::snapshot_keep();
        let mut orders = VecDeque::new();
        for (database, store) in findings.stores {
            let prefix = if database == 0 { store.clone() } else { format!("{store}@{database}") };
            if let Some(file) = FileName::scheduled(&prefix, now_ms) {
                orders.push_back(Order { database, store, file, fernet: None, schedule: Some((prefix, keep)) });
            }
        }
        // What the last time was not done is done with this one.
        exports(|exports| exports.queue = orders);
    } else if exports(|exports| exports.schedule.due_ms.is_some_and(|due_ms| now_ms >= due_ms)) {
        exports(|exports| {
            exports.schedule.due_ms = config::snapshot_every_ms().map(|every_ms| next_due_ms(now_ms, every_ms));
            exports.schedule.search = Some(Survey::default());
        });
        return 1;
    }
    if exports(|exports| exports.running.is_none())
        && let Some(order) = exports(|exports| exports.queue.pop_front())
    {
        start_in_turn(ctx, order);
    }
    let due_ms = exports(|exports| exports.schedule.due_ms).unwrap_or(u64::MAX);
    due_ms.saturating_sub(ctx.milliseconds()).clamp(1, SCHEDULE_MS) as i64
}
