//! SQLite files to stores, in the background: `KG.IMPORT`.
//!
//! A thread of ours ([`worker`](crate::worker)) reads the file, opens what is under a Fernet key or sealed for another store, and hands
//! the rows over a channel, some hundred at the most. A timer takes them on the main thread, in short slices, while everything else goes
//! on. What becomes of a row is written in one slice, and everything is looked at before the first write of it: it is there as a whole
//! or not at all. Replicas and the append-only file get a slice as one transaction.
//!
//! Nothing remembers an import but the records that it made. After a restart or a failover the same call goes on: what is there
//! already is a conflict, and skipped. Usage is no record: how far that of a snapshot has come stands in the header of the store
//! until it is through ([`Mark`]).
//!
//! The timer runs outside of any command, where the server refuses nothing by itself: so a slice asks first what it would have asked,
//! the role, a pause of writes, memory, the disk and enough replicas, and looks again later.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::ffi::{c_int, c_void};
use std::path::PathBuf;
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use keyguard_core::digest::{Digest, Domain, digest};
use keyguard_core::effect::{Effect, RuleSet, WholeValue, path_of};
use keyguard_core::fernet;
use keyguard_core::gate::Code;
use keyguard_core::ip::{Address, Net, Rule, Rules};
use keyguard_core::keyring::Keyring;
use keyguard_core::limit::Limit;
use keyguard_core::meters::{Lifetime, Meters};
use keyguard_core::names::{self, Derived, Listed, StoreName};
use keyguard_core::quota::{Period, Quota, Quotas};
use keyguard_core::record::{
    ApiRecord, DEFAULT_UNIT, Issued, OrgRecord, OrgStatus, Record, RecordType, Status, UnitLimit, UnitLimits,
    VaultRecord,
};
use keyguard_core::scope::Scopes;
use keyguard_core::secret::Secret;
use keyguard_core::usage::{
    Counts, KEYS, KeyDays, MAX_LATENCY_MS, Row as UsageRow, StoreStats, Tally, Totals, UsageBatch, hour_of, minute_of,
    printable_path,
};
use keyguard_core::zone::Zone;
use keyguard_core::{Error, Result, parse, vault};
use keyguard_snapshot::file::{FileError, FileName, Folder};
use keyguard_snapshot::item::{self, ForeignKey, ForeignOrg, ForeignSecret, Header, Item, Row};
use keyguard_snapshot::read::{Format, Reader};

use crate::adding::{Activity, NewApiKey, NewOrg, NewVaultKey, digest_keys, pool_touched};
use crate::doomed::Doomed;
use crate::effects::{self, LAST_USED_AT};
use crate::ffi::{self, Ctx, EntryId, Kind, Level, OwnedString, api, raw, to_c_string};
use crate::store::{
    Fields, IP_THRESHOLD, META, Missing, Store, TZ, USAGE_FROM, api_fields, org_fields, place, place_in, vault_fields,
};
use crate::worker::{Failure, Stop, Worker};
use crate::{config, keyring, server, usage};

/// How long a slice may take, once it has done one row: half of what anything may hold the server up.
const SLICE: Duration = Duration::from_millis(1);

/// The pause after a slice, in milliseconds: three times its length leave three quarters of the processor to clients.
const PAUSE_MS: i64 = 3;

/// While the thread has the word, whether it has said something is looked at so often, in milliseconds.
const WAIT_MS: i64 = 5;

/// While nothing may be written, whether it still is so is looked at so often, in milliseconds.
const FORBIDDEN_MS: i64 = 100;

/// How many rows are handed over at once, and how many times before the main thread has taken any.
const HANDED: usize = 32;
const AHEAD: usize = 8;

/// Of how many rows is told what became of them, beside the counts.
const MAX_TOLD: usize = 100;

/// How many imports that have ended are told of, at the most.
const MAX_ENDED: usize = 64;

/// Requests a minute of `keyguard_python`, in milliseconds.
const MINUTE_MS: u64 = 60_000;

/// How many API keys of a store are looked at in one step.
const LOOKED_AT: usize = 64;

/// The largest state of a record and the largest value of statistics that are taken over, in bytes: no snapshot of ours has larger
/// ones, and to unpack them must not hold the server up.
const MAX_STATE: usize = 256 << 10;
const MAX_VALUE: usize = 1 << 20;

/// How many lines of the usage log are written at once.
const LINES: usize = 128;

/// What is to be read, and where it belongs.
#[derive(Debug, Clone)]
pub struct Order {
    /// The database that the store is in, or will be.
    pub database: c_int,
    /// The store.
    pub store: String,
    /// The file.
    pub file: FileName,
    /// What the file is.
    pub format: Format,
    /// Whether it is only told what would be done.
    pub check: bool,
    /// Whether what is there already becomes what the file says, and is not left as it is.
    pub replace: bool,
    /// The label of the pepper under which the API keys of `keyguard_python` were digested.
    pub pepper: Option<String>,
    /// The label of the Fernet key of a `simple_keystore`.
    pub fernet: Option<String>,
}

/// How an import stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It is at work.
    Running,
    /// It is through.
    Done,
    /// It ended before it was through.
    Failed,
    /// It was ended.
    Stopped,
}

impl State {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Stopped => "stopped",
        }
    }
}

/// What is imported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// An organization.
    Org,
    /// An API key.
    ApiKey,
    /// A vault key.
    VaultKey,
    /// An address rule.
    Rule,
    /// The state of an account.
    Account,
    /// A line of the usage log.
    Usage,
}

impl What {
    /// All there is, in the order of the counts.
    pub const ALL: [Self; 6] = [Self::Org, Self::ApiKey, Self::VaultKey, Self::Rule, Self::Account, Self::Usage];

    /// What STATUS calls them.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Org => "organizations",
            Self::ApiKey => "api_keys",
            Self::VaultKey => "vault_keys",
            Self::Rule => "address_rules",
            Self::Account => "accounts",
            Self::Usage => "usage",
        }
    }
}

/// What is told of a row. It never says what stands in it.
#[derive(Debug, Clone)]
pub struct Told {
    /// Its table.
    pub table: &'static str,
    /// Its rowid; of our own tables that of records is the id.
    pub rowid: i64,
    /// What became of it, and why.
    pub why: String,
}

/// How far an import has come.
#[derive(Debug, Clone)]
pub struct Report {
    /// How it stands.
    pub state: State,
    /// What it was told.
    pub order: Order,
    /// Rows that were looked at.
    pub rows: u64,
    /// Rows of the file.
    pub total: u64,
    /// How many were added, or became what the file says, in the order of [`What::ALL`]; with CHECK, how many would.
    pub imported: [u64; What::ALL.len()],
    /// How many of them were there already.
    pub replaced: u64,
    /// How many rows were left out.
    pub skipped: u64,
    /// Why the first of them were, and what there is to know of others.
    pub told: Vec<Told>,
    /// Why it makes no progress now.
    pub waits: Option<String>,
    /// Why it failed.
    pub failure: Option<Failure>,
    /// In unix milliseconds.
    pub begun_ms: u64,
    /// In unix milliseconds.
    pub ended_ms: Option<u64>,
}

impl Report {
    fn tell(&mut self, table: &'static str, rowid: i64, why: impl Into<String>) {
        if self.told.len() < MAX_TOLD {
            self.told.push(Told { table, rowid, why: why.into() });
        }
    }

    fn skip(&mut self, table: &'static str, rowid: i64, why: impl Into<String>) {
        self.skipped += 1;
        self.tell(table, rowid, why);
    }

    /// Takes over all but what is told of rows.
    fn come_to(&mut self, now: &Self) {
        (self.state, self.rows, self.total) = (now.state, now.rows, now.total);
        (self.imported, self.replaced, self.skipped) = (now.imported, now.replaced, now.skipped);
        self.waits.clone_from(&now.waits);
    }

    fn is_of(&self, database: c_int, store: &str) -> bool {
        self.order.database == database && self.order.store == store
    }
}

/// What INFO tells of imports.
#[derive(Debug, Clone, Copy, Default)]
pub struct Summary {
    /// Whether one is at work.
    pub running: bool,
    /// Rows that the one at work, or the last one, has looked at.
    pub rows: u64,
    /// Rows that it skipped.
    pub skipped: u64,
    /// How many have ended well since the module was loaded.
    pub done: u64,
    /// How many have not.
    pub failed: u64,
}

/// A row as the thread hands it over.
enum Prepared {
    Row(Row),
    /// A key of a `simple_keystore`, and its secret.
    Secret(Box<ForeignSecret>, Secret),
    /// One that cannot be taken over.
    Refused(Told),
}

/// What the thread says of itself.
#[derive(Default)]
struct Shared {
    total: AtomicU64,
    outcome: Mutex<Option<Result<(), Failure>>>,
}

/// What the rows before lead to.
#[derive(Default)]
struct Before {
    /// Whether the store was there, or something was written: then it must still be there.
    exists: bool,
    /// The names that organizations of `keyguard_python` have here, by their ids there.
    orgs: HashMap<String, String>,
    /// The names of the file's organizations: with CHECK they may be nowhere else.
    names: HashSet<String>,
    /// The id from which on the store of the snapshot has given none out, as long as the lists are too short for it.
    next_id: Option<u64>,
    /// The last number that was put behind a name.
    numbers: HashMap<String, u32>,
    /// The ids that the store's API keys have which were imported, by those in `keyguard_python`.
    known: HashMap<String, u64>,
    /// Those ids alone: what one of them is, is known, however much it is like another.
    known_ids: HashSet<u64>,
    /// The last id that was looked at for them; None when all were.
    looked_up_to: Option<u64>,
    /// The ids that API keys of `keyguard_python` got from this import, by those there: what they did is not known here.
    keys: HashMap<String, u64>,
    /// How far the usage of a snapshot has come, if the store takes it.
    mark: Option<Mark>,
    /// How far it had come in an import that broke off, which this one goes on with.
    resumed: Option<Mark>,
    /// Why none of it is taken.
    no_usage: &'static str,
    /// How many values of statistics the snapshot has had so far.
    values: u64,
    /// Why usage was left out, as far as it was told.
    told_of_usage: Vec<&'static str>,
    /// With CHECK, the time of the last line that the log would have, in unix milliseconds.
    newest_ms: u64,
    /// Usage that waits to be written down.
    usage: Usage,
}

/// How far the usage of a snapshot has come, as the header of the store has it while the import is at work: after one that broke off
/// nothing else could tell what of the log and the statistics comes from there.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mark {
    /// The store that the snapshot is of.
    store: String,
    /// When the snapshot was begun, in unix milliseconds.
    begun_ms: u64,
    /// The last line of its log that was looked at: its time in unix milliseconds, and its number within that.
    line: EntryId,
    /// How many of its values of statistics were looked at.
    values: u64,
}

impl Mark {
    /// That nothing has come yet.
    fn of(header: &Header) -> Self {
        // A snapshot of ours has no other name.
        let store = StoreName::parse(header.store.as_bytes()).map_or("", |name| name.as_str());
        Self { store: store.to_owned(), begun_ms: header.begun_ms, line: (0, 0), values: 0 }
    }

    fn text(&self) -> String {
        let Self { store, begun_ms, line: (at_ms, seq), values } = self;
        format!("{begun_ms} {at_ms}-{seq} {values} {store}")
    }

    /// What [`text`](Self::text) gave; None for anything else.
    fn parse(text: &[u8]) -> Option<Self> {
        let mut words = text.splitn(4, |byte| *byte == b' ');
        let begun_ms = parse::unsigned(words.next()?)?;
        let line = usage::entry_id(words.next()?)?;
        let values = parse::unsigned(words.next()?)?;
        let store = str::from_utf8(words.next()?).ok()?.to_owned();
        Some(Self { store, begun_ms, line, values })
    }

    fn is_of_same_snapshot(&self, other: &Self) -> bool {
        (&self.store, self.begun_ms) == (&other.store, other.begun_ms)
    }
}

/// Usage on its way into a store.
#[derive(Default)]
struct Usage {
    rows: Vec<item::Usage>,
    totals: Totals,
    hours: BTreeMap<u32, Tally>,
    minutes: BTreeMap<u32, Tally>,
    keys: BTreeMap<u64, (Counts, BTreeMap<u32, Tally>)>,
}

impl Usage {
    /// Counts a call of a key that was let in and ended.
    fn count(&mut self, usage: &item::Usage, zone: &Zone) {
        let errors = u64::from(usage.status.is_some_and(|status| status >= 400));
        let latency_ms = u64::from(usage.latency_ms.unwrap_or(0).min(MAX_LATENCY_MS));
        let one = Counts { requests: 1, refused: 0, logged: 1, errors, latency_ms };
        let (minute, tally) = (minute_of(usage.at_ms), one.tally());
        self.totals.count(Code::Valid);
        self.totals.logged += 1;
        self.totals.errors += errors;
        self.totals.latency_ms += latency_ms;
        self.minutes.entry(minute).or_default().add(&tally);
        self.hours.entry(hour_of(minute)).or_default().add(&tally);
        let (totals, days) = self.keys.entry(usage.key).or_default();
        totals.add(&one);
        days.entry(zone.day(usage.at_ms)).or_default().add(&tally);
    }
}

/// A line as the log takes it.
fn line(usage: &item::Usage) -> UsageRow<'_> {
    let is_token = |text: &&str| (1..=32).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
    UsageRow {
        at_ms: usage.at_ms,
        seq: usage.seq,
        id: usage.key,
        code: usage.code.as_deref().and_then(|code| Code::ALL.into_iter().find(|known| known.as_str() == code)),
        status: usage.status,
        latency_ms: usage.latency_ms.map(|latency_ms| latency_ms.min(MAX_LATENCY_MS)),
        method: usage.method.as_deref().filter(is_token),
        path: usage.path.as_deref(),
        ip: usage.ip.as_deref().filter(|ip| Address::parse(ip.as_bytes()).is_ok()),
    }
}

struct Job {
    status: Report,
    receiver: Receiver<Vec<Prepared>>,
    rows: VecDeque<Prepared>,
    before: Before,
    shared: Arc<Shared>,
    /// None when the thread has ended, or was told to.
    worker: Option<Worker>,
}

#[derive(Default)]
struct Imports {
    running: Option<Box<Job>>,
    /// How the one at work stands.
    current: Option<Report>,
    /// The last of each store, the newest at the end.
    ended: VecDeque<Report>,
    /// Threads of imports that were broken off, until they have noticed.
    leaving: Vec<Worker>,
    summary: Summary,
    /// To be ended when its slice is over.
    stopped: Option<(State, Option<Failure>)>,
    timer_is_set: bool,
}

static IMPORTS: Mutex<Option<Imports>> = Mutex::new(None);

/// Runs `with` on the imports. It must not call the server, which may call back.
fn imports<T>(with: impl FnOnce(&mut Imports) -> T) -> T {
    let mut guard: MutexGuard<'_, Option<Imports>> = IMPORTS.lock().unwrap_or_else(PoisonError::into_inner);
    with(guard.get_or_insert_default())
}

/// Begins an import.
///
/// # Errors
/// [`Error::Busy`] while another one is at work, [`Error::SnapshotsOff`] without a folder for files, [`Error::NoKeyring`].
pub fn start(ctx: Ctx<'_>, order: Order, store_exists: bool) -> Result<()> {
    let folder = config::snapshot_dir().ok_or(Error::SnapshotsOff)?;
    imports(|imports| imports.leaving.retain(|worker| !worker.is_finished()));
    if is_running() || imports(|imports| !imports.leaving.is_empty()) {
        return Err(Error::Busy { what: "another import" });
    }
    let keyring = keyring::current(ctx)?;
    let (sender, receiver) = sync_channel(AHEAD);
    let shared = Arc::new(Shared::default());
    let (its_shared, its_order) = (Arc::clone(&shared), order.clone());
    let work = move |stop: &Stop| {
        let reading = || read(&folder, &its_order, &keyring, &sender, stop, &its_shared);
        let outcome = ffi::guarded(Err(Failure::Thread), reading);
        *its_shared.outcome.lock().unwrap_or_else(PoisonError::into_inner) = Some(outcome);
        // The channel closes behind the last word.
        drop(sender);
    };
    let worker = Worker::start(Stop::default(), work).map_err(|_| Error::Internal)?;
    let status = Report {
        state: State::Running,
        order,
        rows: 0,
        total: 0,
        imported: Default::default(),
        replaced: 0,
        skipped: 0,
        told: Vec::new(),
        waits: None,
        failure: None,
        begun_ms: ctx.milliseconds(),
        ended_ms: None,
    };
    let looked_up_to = (status.order.format == Format::Keyguard).then_some(0);
    let before = Before { exists: store_exists, looked_up_to, ..Before::default() };
    let job = Job { status, receiver, rows: VecDeque::new(), before, shared, worker: Some(worker) };
    hold_usage(ctx, &job.status.order, true);
    imports(|imports| {
        imports.summary.running = true;
        imports.current = Some(job.status.clone());
        imports.running = Some(Box::new(job));
    });
    arm(ctx, 1);
    Ok(())
}

/// Whether an import is at work: then records under any key of the keyring may come.
pub fn is_running() -> bool {
    imports(|imports| imports.summary.running)
}

/// How the import into a store stands that is at work, or the last one that was.
pub fn status(database: c_int, store: StoreName<'_>) -> Option<Report> {
    imports(|imports| {
        let is_ours = |status: &&Report| status.is_of(database, store.as_str());
        imports.current.as_ref().filter(is_ours).or_else(|| imports.ended.iter().find(is_ours)).cloned()
    })
}

/// What INFO tells.
pub fn summary() -> Summary {
    imports(|imports| imports.summary)
}

/// Ends the import into a store, if it is at work.
pub fn stop(ctx: Ctx<'_>, store: &Store<'_>) {
    let database = ctx.selected_database();
    if imports(|imports| imports.current.as_ref().is_some_and(|status| status.is_of(database, store.name.as_str()))) {
        break_off(ctx, State::Stopped, None);
    }
}

/// Other data may stand where the import is at work: it ends.
pub fn data_replaced(ctx: Ctx<'_>) {
    break_off(ctx, State::Failed, Some(Failure::Replaced));
}

/// The server goes down: the thread is waited for, which takes no longer than what it is at.
pub fn shut_down() {
    let workers = imports(|imports| {
        imports.summary.running = false;
        // The channel closes with the job, so that the thread does not wait for anybody to take its rows.
        let running = imports.running.take().and_then(|mut job| job.worker.take());
        running.into_iter().chain(imports.leaving.drain(..)).collect::<Vec<_>>()
    });
    workers.into_iter().for_each(Worker::stop_and_wait);
}

fn break_off(ctx: Ctx<'_>, state: State, why: Option<Failure>) {
    match imports(|imports| imports.running.take()) {
        Some(job) => end(ctx, *job, state, why),
        // What is in its slice learns of it behind that.
        None => imports(|imports| {
            if imports.summary.running {
                imports.stopped = Some((state, why));
            }
        }),
    }
}

/// Sets the timer, unless it is set.
fn arm(ctx: Ctx<'_>, ms: i64) {
    if imports(|imports| imports.running.is_some() && !std::mem::replace(&mut imports.timer_is_set, true)) {
        // SAFETY: the callback has the type that the server calls.
        unsafe { api!(RedisModule_CreateTimer)(ctx.as_raw(), ms, Some(on_timer), ptr::null_mut()) };
    }
}

unsafe extern "C" fn on_timer(ctx: *mut raw::RedisModuleCtx, _: *mut c_void) {
    // SAFETY: the server's context is valid during the call.
    let ctx = unsafe { Ctx::new(ctx) };
    let pause_ms = ffi::guarded(PAUSE_MS, || {
        imports(|imports| imports.timer_is_set = false);
        serve(ctx)
    });
    ffi::guarded((), || arm(ctx, pause_ms));
}

/// What becomes of an import after a slice.
enum Next {
    /// It goes on after this many milliseconds.
    Later(i64),
    /// It waits for something, and looks again.
    Waits(String),
    /// It is through.
    Done,
}

/// One slice; how long to pause then, in milliseconds.
fn serve(ctx: Ctx<'_>) -> i64 {
    // It stands there again only if it comes out of the slice: one that meets a defect of ours does not meet it for ever.
    let Some(mut job) = imports(|imports| imports.running.take()) else { return PAUSE_MS };
    let next = ffi::guarded(Err(Failure::Store(Error::Internal)), || slice(ctx, &mut job));
    job.status.total = job.shared.total.load(Ordering::Relaxed);
    if let Some((state, why)) = imports(|imports| imports.stopped.take()) {
        end(ctx, *job, state, why);
        return PAUSE_MS;
    }
    let pause_ms = match next {
        Ok(Next::Later(ms)) => {
            job.status.waits = None;
            ms
        }
        Ok(Next::Waits(why)) => {
            job.status.waits = Some(why);
            FORBIDDEN_MS
        }
        Ok(Next::Done) => {
            end(ctx, *job, State::Done, None);
            return PAUSE_MS;
        }
        Err(failure) => {
            end(ctx, *job, State::Failed, Some(failure));
            return PAUSE_MS;
        }
    };
    imports(|imports| {
        (imports.summary.rows, imports.summary.skipped) = (job.status.rows, job.status.skipped);
        match &mut imports.current {
            // What was told before need not be copied again.
            Some(current) if current.told.len() == job.status.told.len() => current.come_to(&job.status),
            current => *current = Some(job.status.clone()),
        }
        imports.running = Some(job);
    });
    pause_ms
}

/// Keeps lines of calls that are made now from coming before those of the file, as long as the import is at work.
fn hold_usage(ctx: Ctx<'_>, order: &Order, is_held: bool) {
    if let Ok(name) = StoreName::parse(order.store.as_bytes())
        && !order.check
        && order.format != Format::SimpleKeystore
    {
        usage::hold(ctx, order.database, name, is_held);
    }
}

/// An import has ended.
fn end(ctx: Ctx<'_>, job: Job, state: State, failure: Option<Failure>) {
    let Job { mut status, receiver, shared, worker, .. } = job;
    hold_usage(ctx, &status.order, false);
    // The thread may wait for somebody to take what it hands over.
    drop(receiver);
    worker.iter().for_each(Worker::stop);
    status.total = shared.total.load(Ordering::Relaxed);
    (status.state, status.failure, status.waits) = (state, failure, None);
    status.ended_ms = Some(ctx.milliseconds());
    let imported: u64 = status.imported.iter().sum();
    let (order, rows, skipped) = (&status.order, status.rows, status.skipped);
    let (store, file, check) = (&order.store, order.file.as_str(), if order.check { " (CHECK)" } else { "" });
    let mut message = format!(
        "import of {file} into store {store}{check} {}: {rows} rows, {imported} imported, {skipped} skipped",
        state.as_str()
    );
    if let Some(failure) = failure {
        message.push_str(&format!(": {failure}"));
    }
    ctx.log(if state == State::Done { Level::Notice } else { Level::Warning }, &message);
    imports(|imports| {
        imports.summary.running = false;
        (imports.summary.rows, imports.summary.skipped) = (rows, skipped);
        if state == State::Done {
            imports.summary.done += 1
        } else {
            imports.summary.failed += 1
        }
        imports.current = None;
        imports.leaving.extend(worker);
        imports.ended.retain(|other| !other.is_of(status.order.database, &status.order.store));
        imports.ended.push_back(status);
        if imports.ended.len() > MAX_ENDED {
            imports.ended.pop_front();
        }
    });
}

/// What the thread does.
fn read(
    folder: &str,
    order: &Order,
    keyring: &Keyring,
    sender: &SyncSender<Vec<Prepared>>,
    stop: &Stop,
    shared: &Shared,
) -> Result<(), Failure> {
    let folder = Folder::open(&PathBuf::from(folder))?;
    let mut reader = Reader::open_with(&folder, &order.file, order.format, |interrupter| stop.interrupts(interrupter))?;
    shared.total.store(reader.total(), Ordering::Relaxed);
    let fernet = order.fernet.as_ref().and_then(|label| keyring.fernet(label));
    let mut from = None;
    loop {
        let mut rows = reader.next_rows()?.into_iter();
        if rows.len() == 0 {
            return Ok(());
        }
        while rows.len() > 0 {
            let mut prepared = Vec::with_capacity(HANDED);
            for row in rows.by_ref().take(HANDED) {
                if stop.requested() {
                    return Err(FileError::Stopped.into());
                }
                if let Row::Item(Item::Header(header)) = &row {
                    from = Some(header.store.clone());
                }
                prepared.push(prepare(row, order, keyring, fernet, from.as_deref()));
            }
            // The main thread has given up, and knows why.
            sender.send(prepared).map_err(|_| FileError::Stopped)?;
        }
    }
}

/// Opens what is under a Fernet key or sealed for another store.
fn prepare(row: Row, order: &Order, keyring: &Keyring, fernet: Option<&fernet::Key>, from: Option<&str>) -> Prepared {
    let too_large = |table, rowid| {
        Prepared::Refused(Told { table, rowid, why: "its state is larger than any that a snapshot has".to_owned() })
    };
    let is_large = |state: &Option<Vec<u8>>| state.as_ref().is_some_and(|state| state.len() > MAX_STATE);
    match row {
        Row::Item(Item::Org(org)) if is_large(&org.meters) => too_large("keyguard_orgs", rowid(org.id)),
        Row::Item(Item::Key(key)) if is_large(&key.meters) => too_large("keyguard_keys", rowid(key.id)),
        Row::Item(Item::Account { meters, .. }) if meters.len() > MAX_STATE => too_large("keyguard_accounts", 0),
        Row::Item(Item::Value { packed, .. }) if packed.len() > MAX_VALUE => too_large("keyguard_values", 0),
        Row::ForeignSecret(mut row) => {
            let opened = fernet.ok_or(fernet::FernetError::WrongKey);
            match opened.and_then(|key| fernet::decrypt(key, row.token.as_bytes())) {
                Ok(secret) => {
                    row.token = String::new();
                    Prepared::Secret(row, secret)
                }
                Err(why) => Prepared::Refused(Told { table: "keystore", rowid: row.id, why: why.to_string() }),
            }
        }
        Row::Item(Item::Key(mut key)) => match sealed_for(&key, order, keyring, from) {
            Ok(packed) => {
                key.packed = packed.unwrap_or(key.packed);
                Prepared::Row(Row::Item(Item::Key(key)))
            }
            Err(error) => {
                let (rowid, why) = (rowid(key.id), error.to_string());
                Prepared::Refused(Told { table: "keyguard_keys", rowid, why })
            }
        },
        row => Prepared::Row(row),
    }
}

/// Makes sure that the secret of a vault key opens where it comes from; its record with it sealed anew, if it goes to a store of
/// another name.
fn sealed_for(key: &item::Key, order: &Order, keyring: &Keyring, from: Option<&str>) -> Result<Option<Vec<u8>>> {
    let Record::Vault(record) = Record::decode(&key.packed)? else { return Ok(None) };
    let from = from.ok_or(Error::Internal)?;
    let secret = vault::open(keyring, &place_in(from, key.id), record.sealed)?;
    if from == order.store {
        // A digest that is another's would lead whoever looks for that to this key, and keep the other out.
        let is_its_own = keyring
            .find(record.digest_key)
            .is_none_or(|key| digest(key, Domain::Vault, secret.expose()).matches(&record.digest));
        return if is_its_own { Ok(None) } else { Err(Error::Tampered) };
    }
    let newest = keyring.newest();
    let sealed = vault::seal(newest, *keyring::random()?, &place_in(&order.store, key.id), &secret)?;
    let digest = digest(newest, Domain::Vault, secret.expose());
    VaultRecord { sealed: &sealed, digest, digest_key: newest.fingerprint(), ..record }.encode().map(Some)
}

/// An id as a rowid.
fn rowid(id: u64) -> i64 {
    i64::try_from(id).unwrap_or(i64::MAX)
}

fn slice(ctx: Ctx<'_>, job: &mut Job) -> Result<Next, Failure> {
    const PAUSED: &str = "writes are paused";
    let begun = Instant::now();
    if !ctx.has_flags(raw::REDISMODULE_CTX_FLAGS_MASTER) {
        return Err(Failure::Replica);
    }
    ctx.select_database(job.status.order.database);
    let header = OwnedString::new(job.status.order.store.as_bytes());
    let name = StoreName::parse(header.name().bytes())?;
    if !job.status.order.check {
        if !ctx.may_write() {
            return Ok(Next::Waits(PAUSED.to_owned()));
        }
        if let Err(error) = ctx.refuse_if_out_of_memory() {
            return Ok(Next::Waits(error.to_string()));
        }
        if let Some(words) = server::refusal_to_write(ctx, header.name()) {
            return Ok(Next::Waits(words));
        }
    }
    let missing = if job.before.exists { Missing::Refuse } else { Missing::Create };
    let store = Store::open(ctx, (name, header.name()), missing)?;
    let zone = store.zone()?;
    let taking = Taking { store, zone, keyring: keyring::current(ctx)?, now_ms: ctx.milliseconds() };
    while job.before.looked_up_to.is_some() {
        taking.look_for_imported(&mut job.before)?;
        if begun.elapsed() >= SLICE {
            return Ok(Next::Later(PAUSE_MS));
        }
    }
    loop {
        let Some(row) = job.rows.pop_front() else {
            match job.receiver.try_recv() {
                Ok(rows) => job.rows.extend(rows),
                Err(TryRecvError::Empty) => return Ok(Next::Later(WAIT_MS)),
                Err(TryRecvError::Disconnected) => {
                    let outcome = job.shared.outcome.lock().unwrap_or_else(PoisonError::into_inner).take();
                    outcome.unwrap_or(Err(Failure::Thread))?;
                    taking.write_usage(&mut job.before, &mut job.status)?;
                    if !job.status.order.check {
                        taking.take_next_id(&mut job.before)?;
                        taking.forget_mark(&job.before)?;
                    }
                    if job.before.next_id.is_some_and(|id| taking.store.expect_list(Listed::Orgs, id).is_err()) {
                        job.status.tell(
                            "keyguard_meta",
                            0,
                            "its next id lies too far behind its records: it is left out",
                        );
                    }
                    return Ok(Next::Done);
                }
            }
            continue;
        };
        taking.take(row, &mut job.before, &mut job.status)?;
        if job.before.usage.rows.len() >= LINES {
            taking.write_usage(&mut job.before, &mut job.status)?;
        }
        job.before.exists |= !job.status.order.check && store.exists();
        if begun.elapsed() >= SLICE {
            return Ok(Next::Later(PAUSE_MS));
        }
    }
}

/// What became of a row that stands for something.
enum Taken {
    /// It was added; with CHECK, it would be.
    Added,
    /// What was there became what it says.
    Replaced,
    /// It was left out.
    Skipped(&'static str),
    /// There was nothing to do.
    Nothing,
}

/// A slice of rows that are taken into a store.
struct Taking<'c> {
    store: Store<'c>,
    zone: Zone,
    keyring: Arc<Keyring>,
    now_ms: u64,
}

impl Taking<'_> {
    /// Takes a row, and notes what became of it.
    ///
    /// # Errors
    /// What ends the import: all else is noted.
    fn take(&self, row: Prepared, before: &mut Before, status: &mut Report) -> Result<()> {
        status.rows += 1;
        let (check, replace) = (status.order.check, status.order.replace);
        let (what, table, rowid, taken) = match row {
            Prepared::Refused(Told { table, rowid, why }) => {
                status.skip(table, rowid, why);
                return Ok(());
            }
            Prepared::Secret(row, secret) => {
                let taken = self.foreign_secret(&row, &secret, check, replace);
                (What::VaultKey, "keystore", row.id, taken)
            }
            Prepared::Row(Row::Skipped(item::Skipped { table, rowid, why })) => {
                status.skip(table, rowid, why);
                return Ok(());
            }
            Prepared::Row(Row::ForeignOrg(row)) => {
                let taken = self.foreign_org(&row, before, status);
                (What::Org, "organizations", row.rowid, taken)
            }
            Prepared::Row(Row::ForeignKey(row)) => {
                let taken = self.foreign_key(&row, before, status);
                (What::ApiKey, "api_keys", row.rowid, taken)
            }
            // The thread has made a secret of it.
            Prepared::Row(Row::ForeignSecret(_)) => return Err(Error::Internal),
            Prepared::Row(Row::ForeignUse { key, usage }) => {
                self.foreign_use(&key, usage, before, status);
                return Ok(());
            }
            Prepared::Row(Row::Item(item)) => match item {
                Item::Header(header) => return self.header(&header, before, check),
                Item::Org(org) => (What::Org, "keyguard_orgs", rowid(org.id), self.org(&org, before, check, replace)),
                Item::Key(key) => {
                    let what = if matches!(key.packed.get(1), Some(&1)) { What::VaultKey } else { What::ApiKey };
                    (what, "keyguard_keys", rowid(key.id), self.key(&key, before, check, replace))
                }
                Item::Rule(rule) => (What::Rule, "keyguard_address_rules", 0, self.rule(&rule, check, replace)),
                Item::Account { name, meters } => {
                    (What::Account, "keyguard_accounts", 0, self.account(&name, &meters, check, replace))
                }
                Item::Usage(usage) => {
                    take_usage(usage, before, status);
                    return Ok(());
                }
                // For people, as the readable fields of records are: what counts is the values.
                Item::Hour { .. } | Item::Day { .. } | Item::Total { .. } => return Ok(()),
                Item::Value { name, packed } => return self.take_value(&name, &packed, before, status),
            },
        };
        match taken {
            Ok(taken @ (Taken::Added | Taken::Replaced)) => {
                if let Some(count) = status.imported.get_mut(what as usize) {
                    *count += 1;
                }
                status.replaced += u64::from(matches!(taken, Taken::Replaced));
            }
            Ok(Taken::Skipped(why)) => status.skip(table, rowid, why),
            Ok(Taken::Nothing) => {}
            // These are not about this row.
            Err(error @ (Error::TryAgain | Error::Internal | Error::OutOfMemory | Error::NoStore)) => {
                return Err(error);
            }
            Err(error) => status.skip(table, rowid, error.to_string()),
        }
        Ok(())
    }

    /// Makes sure that no id of the snapshot is given out again, and takes over settings that the store has not.
    fn header(&self, header: &Header, before: &mut Before, check: bool) -> Result<()> {
        let store = &self.store;
        let mut fields = Fields::default();
        let mark = Mark::of(header);
        before.resumed = store.usage_from()?.and_then(|text| Mark::parse(text.name().bytes()));
        before.resumed.take_if(|resumed| !resumed.is_of_same_snapshot(&mark));
        match (&before.resumed, self.refusal_of_usage()?) {
            (Some(resumed), _) => before.mark = Some(resumed.clone()),
            (None, Some(why)) => before.no_usage = why,
            (None, None) => {
                // It stands there before the first record of the snapshot does, which would be one of others without it.
                fields.set(USAGE_FROM, mark.text());
                before.mark = Some(mark);
            }
        }
        if !store.exists() {
            fields.set("created_at", header.created_ms.to_string());
        }
        if header.next_id > store.next_id()? {
            before.next_id = Some(header.next_id);
        }
        if let Some(tz) = header.tz.as_ref().filter(|_| matches!(store.named_zone(), Ok(None))) {
            fields.set(TZ, tz);
        }
        if let Some(threshold) = header.ip_threshold.filter(|_| matches!(store.ip_threshold(), Ok(None))) {
            fields.set(IP_THRESHOLD, threshold.to_string());
        }
        if check {
            return Ok(());
        }

        store.write_header(self.now_ms, None)?;
        store.rewrite_hash(store.name.as_bytes(), &fields, &[])?;
        self.take_next_id(before)
    }

    /// Why the store takes no usage of a snapshot, if it does not.
    fn refusal_of_usage(&self) -> Result<Option<&'static str>> {
        let store = &self.store;
        for key in [store.name.usage(), store.name.stats()] {
            if store.read(&key)?.kind() != Kind::Empty {
                return Ok(Some("the store has a usage log or statistics of its own"));
            }
        }
        for of in [RecordType::Api, RecordType::Vault] {
            if !store.ids_after(of, 0, 1)?.is_empty() {
                return Ok(Some("the store had keys before: usage under their ids may be that of others"));
            }
        }
        Ok(None)
    }

    /// Notes in the header how far the usage of a snapshot has come.
    fn write_mark(&self, before: &Before) -> Result<()> {
        let Some(mark) = &before.mark else { return Ok(()) };
        self.store.rewrite_hash(self.store.name.as_bytes(), Fields::default().set(USAGE_FROM, mark.text()), &[])
    }

    /// All usage of the snapshot is there.
    fn forget_mark(&self, before: &Before) -> Result<()> {
        match before.mark {
            Some(_) => self.store.write(c"HDEL", &[self.store.name.as_bytes(), USAGE_FROM.as_bytes()]),
            None => Ok(()),
        }
    }

    /// Makes sure that no id of the snapshot is given out again, as soon as the lists of the store reach near enough to it: whatever
    /// the file says, an id that no list can take makes the store one that takes no records.
    fn take_next_id(&self, before: &mut Before) -> Result<()> {
        let store = &self.store;
        let Some(next_id) = before.next_id.filter(|next_id| store.expect_list(Listed::Orgs, *next_id).is_ok()) else {
            return Ok(());
        };
        before.next_id = None;
        if next_id <= store.next_id()? {
            return Ok(());
        }
        let mut fields = Fields::default();
        fields.set("next_id", next_id.to_string()).set("run_id", server::run_id());
        store.rewrite_hash(store.name.as_bytes(), &fields, &[])
    }

    fn org(&self, org: &item::Org, before: &mut Before, check: bool, replace: bool) -> Result<Taken> {
        let (store, name) = (&self.store, names::name(org.name.as_bytes(), "name")?);
        let record = OrgRecord::decode(&org.packed)?;
        if record.id != org.id {
            return Err(Error::Damaged { what: "organization record" });
        }
        if store.read(&store.name.key(org.id))?.kind() != Kind::Empty {
            return Ok(Taken::Skipped("a key has its id"));
        }
        let named = self.org_of_id(org.id)?;
        if named.as_ref().is_some_and(|named| named != name) {
            return Ok(Taken::Skipped("an organization of another name has its id"));
        }
        let win = store.name.orgwin(name);
        store.read(&win)?.native::<Meters>()?;
        match store.packed_org(name) {
            Ok(packed) => {
                before.names.insert(name.to_owned());
                if OrgRecord::decode(packed.bytes())?.id != org.id {
                    return Ok(Taken::Skipped("an organization of its name has another id"));
                }
                if !replace {
                    return Ok(Taken::Skipped(THERE));
                }
                let fields = org_fields(name, &record)?;
                if !check {
                    store.rewrite_hash(&store.name.org(name), &fields, &[])?;
                    self.restore_meters(&win, org.meters.as_deref())?;
                }
                Ok(Taken::Replaced)
            }
            Err(Error::NoSuch { .. }) => {
                let adding = NewOrg::expect(store, name, &record)?;
                before.names.insert(name.to_owned());
                if !check {
                    adding.write(store, self.now_ms)?;
                    self.restore_meters(&win, org.meters.as_deref())?;
                }
                Ok(Taken::Added)
            }
            Err(error) => Err(error),
        }
    }

    /// The name of the organization that has this id.
    fn org_of_id(&self, id: u64) -> Result<Option<String>> {
        let name = self.store.read(&self.store.name.orgs())?.hash_field(&to_c_string(&id.to_string()))?;
        Ok(name.map(|name| String::from_utf8_lossy(name.name().bytes()).into_owned()))
    }

    fn key(&self, key: &item::Key, before: &Before, check: bool, replace: bool) -> Result<Taken> {
        let (store, id) = (&self.store, key.id);
        let record = Record::decode(&key.packed)?;
        if self.org_of_id(id)?.is_some() {
            return Ok(Taken::Skipped("an organization has its id"));
        }
        let old = match store.packed_record(id) {
            Ok(_) if !replace => return Ok(Taken::Skipped(THERE)),
            Ok(packed) => Some(packed),
            Err(Error::NoSuch { .. }) => None,
            Err(error) => return Err(error),
        };
        let old = old.as_ref().map(|packed| Record::decode(packed.bytes())).transpose()?;
        if old.as_ref().is_some_and(|old| status_of(old) == Status::Revoked) && status_of(&record) != Status::Revoked {
            return Ok(Taken::Skipped(FINAL));
        }
        let old: Vec<(u64, Record<'_>)> = old.into_iter().map(|old| (id, old)).collect();
        let doomed = Doomed::gather(store, &old)?;
        let (win, replaces) = (store.name.win(id), !old.is_empty());
        store.read(&win)?.native::<Meters>()?;
        match &record {
            Record::Api(api) => {
                if digest_keys(api).any(|used| !self.keyring.holds(used)) {
                    return Ok(Taken::Skipped(LACKING));
                }
                if !self.has_org(api.org, before)? {
                    return Ok(Taken::Skipped("its organization is not in the store"));
                }
                let adding = NewApiKey::expect(store, id, api, key.meta.as_deref(), replaces)?;
                if check {
                    return Ok(if replaces { Taken::Replaced } else { Taken::Added });
                }

                doomed.delete(store)?;
                adding.write(store, self.now_ms)?;
                self.note_use(id, key.last_used_ms)?;
                self.restore_meters(&win, key.meters.as_deref())?;
            }
            Record::Vault(vault) => {
                let sealed_under = vault::fingerprint_of(vault.sealed);
                if sealed_under.into_iter().chain([vault.digest_key]).any(|used| !self.keyring.holds(used)) {
                    return Ok(Taken::Skipped(LACKING));
                }
                let adding = NewVaultKey::expect(store, id, vault, key.meta.as_deref(), replaces)?;
                if check {
                    return Ok(if replaces { Taken::Replaced } else { Taken::Added });
                }

                doomed.delete(store)?;
                adding.write(store, self.now_ms)?;
                if let Some(remembered) = &key.meters {
                    let effect = Effect::Recall { pool: vault.name, id, remembered };
                    effects::commit(store.ctx(), store.header, &effect)?;
                    pool_touched(store, vault.name);
                }
            }
        }
        Ok(if replaces { Taken::Replaced } else { Taken::Added })
    }

    /// Whether an organization is there; with CHECK, whether it would be.
    fn has_org(&self, org: &str, before: &Before) -> Result<bool> {
        match self.store.packed_org(org) {
            Ok(packed) => OrgRecord::decode(packed.bytes()).map(|_| true),
            Err(Error::NoSuch { .. }) => Ok(before.names.contains(org)),
            Err(error) => Err(error),
        }
    }

    /// Writes down when an API key was last used.
    fn note_use(&self, id: u64, last_used_ms: Option<u64>) -> Result<()> {
        let Some(at_ms) = last_used_ms else { return Ok(()) };
        let (key, at_ms) = (self.store.name.key(id), at_ms.to_string());
        self.store.write(c"HSET", &[&key, LAST_USED_AT.as_str().as_bytes(), at_ms.as_bytes()])
    }

    /// Puts windows and quotas where they belong, as long as they are worth keeping.
    fn restore_meters(&self, key: &[u8], meters: Option<&[u8]>) -> Result<()> {
        // What cannot be read is a state that nobody has: the record counts.
        let Some((bytes, meters)) = meters.and_then(|bytes| Some((bytes, Meters::decode(bytes)?))) else {
            return Ok(());
        };
        let until_ms = match meters.lifetime() {
            Lifetime::Forever => None,
            Lifetime::Until(at_ms) if at_ms > self.now_ms => Some(at_ms),
            Lifetime::Until(_) | Lifetime::Over => return Ok(()),
        };
        let name = OwnedString::new(key);
        effects::commit(self.store.ctx(), name.name(), &Effect::Whole { value: WholeValue::Meters(bytes) })?;
        match until_ms {
            Some(at_ms) => self.store.write(c"PEXPIREAT", &[key, at_ms.to_string().as_bytes()]),
            None => Ok(()),
        }
    }

    fn rule(&self, rule: &item::Rule, check: bool, replace: bool) -> Result<Taken> {
        let store = &self.store;
        let net = Net::parse(rule.net.as_bytes())?;
        let path = path_of(rule.path.as_deref()).map_err(|_| Error::Damaged { what: "address rule" })?;
        let item::Rule { kind, until_ms, by, strikes, .. } = *rule;
        let rule = Rule { kind, path, until_ms, reason: &rule.reason, by, strikes };
        if !rule.holds(self.now_ms) && strikes.is_none_or(|strikes| strikes.until_ms <= self.now_ms) {
            return Ok(Taken::Skipped("it has ended"));
        }
        let key = store.read(&store.name.ips())?;
        let none = Rules::new();
        let rules = key.native::<Rules>()?.unwrap_or(&none);
        let is_there = rules.rule(net, kind, rule.path.as_ref()).is_some();
        if is_there && !replace {
            return Ok(Taken::Skipped(THERE));
        }
        rules.accept(net, &rule, self.now_ms)?;
        drop(key);
        if !check {
            store.write_header(self.now_ms, None)?;
            let net = net.to_string();
            let effect = Effect::SetRule { at_ms: self.now_ms, net: &net, rule: RuleSet::of(&rule) };
            effects::commit(store.ctx(), store.header, &effect)?;
        }
        Ok(if is_there { Taken::Replaced } else { Taken::Added })
    }

    fn account(&self, name: &str, meters: &[u8], check: bool, replace: bool) -> Result<Taken> {
        let name = names::name(name.as_bytes(), "account")?;
        let key = self.store.name.derived(&Derived::Account(name.as_bytes()));
        let is_there = self.store.read(&key)?.native::<Meters>()?.is_some();
        if is_there && !replace {
            return Ok(Taken::Skipped(THERE));
        }
        let worth = Meters::decode(meters).ok_or(Error::Damaged { what: "state of an account" })?.lifetime();
        if worth <= Lifetime::Until(self.now_ms) {
            return Ok(Taken::Nothing);
        }
        if !check {
            self.restore_meters(&key, Some(meters))?;
        }
        Ok(if is_there { Taken::Replaced } else { Taken::Added })
    }

    /// An organization of `keyguard_python`: its name, or, if that was there before in the file, the name with a number behind it.
    fn foreign_org(&self, org: &ForeignOrg, before: &mut Before, status: &mut Report) -> Result<Taken> {
        let store = &self.store;
        let mut name = org.name.clone();
        if before.names.contains(&name) {
            // Whoever calls another one `name (2)` shall not make this a search through all that follow.
            let number = before.numbers.entry(name.clone()).or_insert(1);
            while before.names.contains(&name) {
                *number = number.saturating_add(1);
                name = format!("{} ({number})", org.name);
            }
        }
        names::name(name.as_bytes(), "name")?;
        let record = OrgRecord {
            id: store.next_id()?,
            status: if org.is_active { OrgStatus::Active } else { OrgStatus::Suspended },
            created_ms: org.created_ms.unwrap_or(self.now_ms),
            limits: UnitLimits::new(),
            quotas: Quotas::new(),
        };
        let (check, replace) = (status.order.check, status.order.replace);
        let taken = match store.packed_org(&name) {
            Ok(_) if !replace => Taken::Skipped(THERE),
            Ok(packed) => {
                let old = OrgRecord::decode(packed.bytes())?;
                let fields = org_fields(&name, &OrgRecord { status: record.status, ..old })?;
                if !check {
                    store.rewrite_hash(&store.name.org(&name), &fields, &[])?;
                }
                Taken::Replaced
            }
            Err(Error::NoSuch { .. }) => {
                let adding = NewOrg::expect(store, &name, &record)?;
                if !check {
                    adding.write(store, self.now_ms)?;
                }
                Taken::Added
            }
            Err(error) => return Err(error),
        };
        if name != org.name {
            status.tell("organizations", org.rowid, "its name is there before in the file: a number stands behind it");
        }
        before.names.insert(name.clone());
        before.orgs.insert(org.id.clone(), name);
        Ok(taken)
    }

    /// An API key of `keyguard_python`.
    fn foreign_key(&self, key: &ForeignKey, before: &mut Before, status: &mut Report) -> Result<Taken> {
        let store = &self.store;
        let (check, replace) = (status.order.check, status.order.replace);
        let Some(org) = before.orgs.get(&key.org).cloned() else {
            return Ok(Taken::Skipped("its organization was skipped"));
        };
        let pepper = status.order.pepper.as_ref().and_then(|label| self.keyring.pepper(label));
        // Somebody may have taken it away meanwhile.
        let Some(pepper) = pepper else { return Ok(Taken::Skipped(LACKING)) };
        let is_active = key.is_active && key.per_minute > 0;
        let mut limits = UnitLimits::new();
        if key.per_minute > 0 {
            limits.push(UnitLimit { unit: DEFAULT_UNIT, limit: Limit::new(key.per_minute, MINUTE_MS)? });
        }
        let mut quotas = Quotas::new();
        if let Some(count) = key.per_month.filter(|count| *count > 0) {
            quotas.push(Quota { count, period: Period::Month, unit: DEFAULT_UNIT });
        }
        let scopes = key.scopes.join(",");
        let digest = Digest::from_bytes(key.hash);
        let record = ApiRecord {
            org: &org,
            label: &key.label,
            status: if is_active { Status::Active } else { Status::Inactive },
            created_ms: key.created_ms.unwrap_or(0),
            expires_ms: key.expires_ms,
            scopes: Scopes::parse(scopes.as_bytes())?,
            limits,
            quotas,
            allowed: Default::default(),
            issued: Issued { digest, digest_key: pepper.fingerprint(), start: &key.start, is_foreign: true },
            previous: None,
        };
        let meta = Imported { imported_id: key.id.clone() };
        let meta = serde_json::to_string(&meta).map_err(|_| Error::Internal)?;
        let taken = match self.same_api_key(key, &record, before)? {
            Some(_) if !replace => Taken::Skipped(THERE),
            Some(id) => {
                let packed = store.packed_record(id)?;
                let Record::Api(old) = Record::decode(packed.bytes())? else {
                    return Err(Error::Damaged { what: "digest index" });
                };
                if old.status == Status::Revoked {
                    return Ok(Taken::Skipped(FINAL));
                }
                let before_status = old.status;
                let ApiRecord { label, status, expires_ms, scopes, limits, quotas, .. } = record;
                let new = ApiRecord { label, status, expires_ms, scopes, limits, quotas, ..old };
                let fields = api_fields(&new, Some(&meta))?;
                let activity = Activity::expect(store, before_status, new.status)?;
                if !check {
                    store.rewrite_hash(&store.name.key(id), &fields, &[])?;
                    activity.write(store)?;
                }
                Taken::Replaced
            }
            None => {
                let id = store.next_id()?;
                let adding = NewApiKey::expect(store, id, &record, Some(&meta), false)?;
                if !check {
                    adding.write(store, self.now_ms)?;
                    self.note_use(id, key.last_used_ms)?;
                }
                before.keys.insert(key.id.clone(), id);
                before.known_ids.insert(id);
                Taken::Added
            }
        };
        if key.per_minute == 0 && !matches!(taken, Taken::Skipped(_)) {
            let why = "it is inactive: its rate_limit_per_minute of 0 lets nothing in";
            status.tell("api_keys", key.rowid, why);
        }
        if key.per_month == Some(0) && !matches!(taken, Taken::Skipped(_)) {
            let why = "it has no quota: its monthly_limit of 0, which was never enforced, would let nothing in";
            status.tell("api_keys", key.rowid, why);
        }
        Ok(taken)
    }

    /// A line of the log of `keyguard_python`. What a key did that was there before the import is known, or is not asked for.
    fn foreign_use(&self, key: &str, usage: item::Usage, before: &mut Before, status: &mut Report) {
        let Some(id) = before.keys.get(key).copied() else {
            skip_usage(before, status, "usage_logs", "usage is taken only of keys that this import has added");
            return;
        };
        let path = usage.path.as_deref().map(|path| printable_path(path.as_bytes()));
        let usage = item::Usage { key: id, seq: 0, code: None, path, ..usage };
        before.usage.count(&usage, &self.zone);
        before.usage.rows.push(usage);
    }

    /// Writes usage down that waits.
    fn write_usage(&self, before: &mut Before, status: &mut Report) -> Result<()> {
        let Usage { mut rows, totals, hours, minutes, keys } = std::mem::take(&mut before.usage);
        let Some(last) = rows.iter().map(|row| (row.at_ms, row.seq)).max() else { return Ok(()) };
        rows.sort_by_key(|row| (row.at_ms, row.seq));
        // An older line would get the time of the newest in the log: an entry has none but that of its id.
        let newest_ms = usage::newest_ms(&self.store).max(before.newest_ms);
        let is_older = |row: &&item::Usage| row.at_ms < newest_ms;
        let older = rows.iter().take_while(is_older).count();
        let table = if before.mark.is_some() { "keyguard_usage" } else { "usage_logs" };
        (0..older).for_each(|_| skip_usage(before, status, table, "older than the newest line of the log"));
        rows.drain(..older);
        if let Some(count) = status.imported.get_mut(What::Usage as usize) {
            *count += rows.len() as u64;
        }
        if let Some(mark) = &mut before.mark {
            mark.line = mark.line.max(last);
        }
        if status.order.check {
            before.newest_ms = newest_ms.max(last.0);
            return Ok(());
        }
        let (most, age_ms) = config::usage_log();
        let oldest_ms = self.now_ms.saturating_sub(age_ms);
        let lines = rows.iter().filter(|row| most > 0 && row.at_ms >= oldest_ms).map(line);
        let keys = keys.into_iter().map(|(id, (counts, days))| (id, counts, days.into_iter().collect()));
        let batch = UsageBatch {
            now_ms: self.now_ms,
            today: self.zone.day(self.now_ms),
            totals: (totals != Totals::default()).then_some(totals),
            minutes: minutes.into_iter().collect(),
            hours: hours.into_iter().collect(),
            keys: keys.collect(),
            rows: lines.collect(),
            ..UsageBatch::default()
        };
        usage::restore(&self.store, batch, most)?;
        self.write_mark(before)
    }

    /// A value of the statistics of a snapshot.
    fn take_value(&self, name: &str, packed: &[u8], before: &mut Before, status: &mut Report) -> Result<()> {
        let (check, is_resumed) = (status.order.check, before.resumed.is_some());
        let Some(mark) = &mut before.mark else {
            let why = before.no_usage;
            skip_usage(before, status, "keyguard_values", why);
            return Ok(());
        };
        before.values += 1;
        if before.values <= mark.values {
            // It came before the import broke off.
            return Ok(());
        }
        mark.values = before.values;
        if let Err(error) = self.value(name, packed, check, is_resumed) {
            status.skip("keyguard_values", 0, error.to_string());
        }
        if check { Ok(()) } else { self.write_mark(before) }
    }

    /// Writes a value of the statistics; where an import goes on that broke off, it comes to what was counted since.
    fn value(&self, name: &str, packed: &[u8], check: bool, is_resumed: bool) -> Result<()> {
        let damaged = Error::Damaged { what: "value of statistics" };
        let of_keys = name.strip_prefix("stats:").ok_or(damaged)?;
        let (now_ms, today) = (self.now_ms, self.zone.day(self.now_ms));
        let mut batch = UsageBatch { now_ms, today, ..UsageBatch::default() };
        let (key, value) = if of_keys == "all" {
            let stats = StoreStats::decode(packed).ok_or(damaged)?;
            (batch.totals, batch.minutes) = (Some(*stats.totals()), stats.minutes().collect());
            batch.hours = stats.hours().collect();
            (self.store.name.stats(), WholeValue::Stats(packed))
        } else {
            let days = KeyDays::decode(packed).ok_or(damaged)?;
            let chunk = parse::unsigned(of_keys.as_bytes()).ok_or(damaged)?;
            // Those of ids that were never given out would outlive the store.
            if chunk > self.store.next_id()? / KEYS && !check {
                return Err(damaged);
            }
            let id = |low| chunk.saturating_mul(KEYS).saturating_add(u64::from(low));
            batch.keys = days.iter().map(|(low, counts, days)| (id(low), counts, days)).collect();
            (self.store.name.days(chunk), WholeValue::Days(packed))
        };
        if is_resumed {
            return if check { Ok(()) } else { usage::restore(&self.store, batch, 0) };
        }
        self.store.expect_free(&key).map_err(|_| Error::Duplicate { what: "statistics of this name" })?;
        if check {
            return Ok(());
        }
        effects::commit(self.store.ctx(), OwnedString::new(&key).name(), &Effect::Whole { value })
    }

    /// Looks at some API keys of the store for those that were imported, and as what.
    fn look_for_imported(&self, before: &mut Before) -> Result<()> {
        let ids = self.store.ids_after(RecordType::Api, before.looked_up_to.unwrap_or(0), LOOKED_AT)?;
        before.looked_up_to = ids.last().copied();
        for id in ids {
            // One that somebody put another value in the place of was not imported.
            let meta = self.store.record_field(id, &META).ok().flatten();
            let meta = meta.as_ref().map_or(&[][..], |meta| meta.name().bytes());
            if let Ok(Imported { imported_id }) = serde_json::from_slice(meta) {
                before.known.insert(imported_id, id);
                before.known_ids.insert(id);
            }
        }
        Ok(())
    }

    /// The key that was imported before as this one: by its digest, which may have been renewed since; by its META; or, where that was
    /// changed, by everything that tells keys apart.
    fn same_api_key(&self, key: &ForeignKey, record: &ApiRecord<'_>, before: &Before) -> Result<Option<u64>> {
        let store = &self.store;
        if let Some(id) = store.ids_of(&record.issued.digest)?.first() {
            return Ok(Some(*id));
        }
        let found = |id| match store.packed_record(id) {
            Err(Error::NoSuch { .. }) => Ok(None),
            packed => packed.map(Some),
        };
        if let Some(id) = before.known.get(&key.id)
            && found(*id)?.is_some()
        {
            return Ok(Some(*id));
        }
        for id in store.ids_of_start(&key.start)? {
            let Some(packed) = found(id)?.filter(|_| !before.known_ids.contains(&id)) else { continue };
            let Ok(Record::Api(found)) = Record::decode(packed.bytes()) else { continue };
            if (found.org, found.label, found.created_ms) == (record.org, record.label, record.created_ms) {
                return Ok(Some(id));
            }
        }
        Ok(None)
    }

    /// A key of `simple_keystore`, with its secret.
    fn foreign_secret(&self, row: &ForeignSecret, secret: &Secret, check: bool, replace: bool) -> Result<Taken> {
        let store = &self.store;
        let newest = self.keyring.newest();
        let (source, login, batch) = (row.source.as_deref(), row.login.as_deref(), row.batch.as_deref());
        let status = if row.is_active { Status::Active } else { Status::Inactive };
        for key in self.keyring.newest_first().filter(|key| store.uses(key.fingerprint())) {
            for id in store.ids_of(&digest(key, Domain::Vault, secret.expose()))? {
                let packed = match store.packed_record(id) {
                    Err(Error::NoSuch { .. }) => continue,
                    packed => packed?,
                };
                let Record::Vault(old) = Record::decode(packed.bytes())? else { continue };
                if (old.name, old.source, old.login, old.batch) != (row.name.as_str(), source, login, batch) {
                    continue;
                }
                if !replace {
                    return Ok(Taken::Skipped(THERE));
                }
                if old.status == Status::Revoked {
                    return Ok(Taken::Skipped(FINAL));
                }
                let rejected = old.rejected.filter(|_| status != Status::Active);
                let new = VaultRecord { status, rejected, expires_ms: row.expires_ms, ..old };
                let fields = vault_fields(&new, None)?;
                let pool = store.name.pool(new.name);
                store.read(&pool)?.native::<keyguard_core::pool::Pool>()?;
                let traits = keyguard_core::pool::Traits::of(&new).encode();
                if !check {
                    store.rewrite_hash(&store.name.key(id), &fields, &[META.as_str()])?;
                    let effect = Effect::Enroll { pool: new.name, from: None, id, traits: &traits };
                    effects::commit(store.ctx(), store.header, &effect)?;
                    pool_touched(store, new.name);
                }
                return Ok(Taken::Replaced);
            }
        }
        let id = store.next_id()?;
        let sealed = vault::seal(newest, *keyring::random()?, &place(store, id), secret)?;
        let record = VaultRecord {
            name: &row.name,
            status,
            created_ms: row.created_ms.unwrap_or(self.now_ms),
            expires_ms: row.expires_ms,
            source,
            login,
            batch,
            account: None,
            weight: 1,
            limits: UnitLimits::new(),
            shared: UnitLimits::new(),
            rejected: None,
            sealed: &sealed,
            digest: digest(newest, Domain::Vault, secret.expose()),
            digest_key: newest.fingerprint(),
            hint: secret.hint(),
        };
        let adding = NewVaultKey::expect(store, id, &record, None, false)?;
        if !check {
            adding.write(store, self.now_ms)?;
        }
        Ok(Taken::Added)
    }
}

/// What META says of an API key of `keyguard_python`.
#[derive(serde::Deserialize, serde::Serialize)]
struct Imported {
    imported_id: String,
}

fn status_of(record: &Record<'_>) -> Status {
    match record {
        Record::Api(api) => api.status,
        Record::Vault(vault) => vault.status,
    }
}

/// A line of the log of a snapshot. What it counted stands in the values.
fn take_usage(usage: item::Usage, before: &mut Before, status: &mut Report) {
    if before.mark.is_none() {
        let why = before.no_usage;
        skip_usage(before, status, "keyguard_usage", why);
    } else if before.resumed.as_ref().is_none_or(|resumed| (usage.at_ms, usage.seq) > resumed.line) {
        before.usage.rows.push(usage);
    }
}

/// Counts usage that is left out, and tells once why: there are few reasons, and however much was told before, these are too.
fn skip_usage(before: &mut Before, status: &mut Report, table: &'static str, why: &'static str) {
    status.skipped += 1;
    if !before.told_of_usage.contains(&why) {
        before.told_of_usage.push(why);
        status.told.push(Told { table, rowid: 0, why: why.to_owned() });
    }
}

/// Why a row was skipped that is in the store already.
const THERE: &str = "it is there already";

/// Why one was that nothing brings back.
const FINAL: &str = "it is there and revoked, which is final";

/// Why one was skipped that is of no use here.
const LACKING: &str = "the keyring of this server lacks the key or pepper that it is under";
