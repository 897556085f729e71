//! SQLite files to stores, in the background: `KG.IMPORT`.
//!
//! A thread of ours ([`worker`](crate::worker)) reads the file, opens what is under a Fernet key or sealed for another store, and hands
//! the rows over a channel, some hundred at the most. A timer takes them on the main thread, in short slices, while everything else goes
//! on. What becomes of a row is written in one slice, and everything is looked at before the first write of it: it is there as a whole
//! or not at all. Replicas and the append-only file get a slice as one transaction.
//!
//! Nothing remembers an import but the records that it made. After a restart or a failover the same call goes on: what is there
//! already is a conflict, and skipped. Usage is no record: how far that of a snapshot has come stands in the header of the store
//! until it is through ([`taking`]).
//!
//! The timer runs outside of any command, where the server refuses nothing by itself: so a slice asks first what it would have asked,
//! the role, a pause of writes, memory, the disk and enough replicas, and looks again later.

mod foreign;
mod prepared;
mod report;
mod taking;

use std::collections::VecDeque;
use std::ffi::{c_int, c_void};
use std::ptr;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, TryRecvError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use keyguard_core::names::{Listed, StoreName};
use keyguard_core::{Error, Result};
use keyguard_snapshot::read::Format;

use self::prepared::{Prepared, Shared, read};
pub use self::report::{Order, Report, State, Summary, What};
use self::taking::{Before, Taking};
use crate::ffi::{self, Ctx, Level, OwnedString, api, raw};
use crate::store::{Missing, Store};
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

/// How often the thread may hand rows over before the main thread has taken any.
const AHEAD: usize = 8;

/// How many imports that have ended are told of, at the most.
const MAX_ENDED: usize = 64;

/// How many lines of the usage log are written at once.
const LINES: usize = 128;

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
    let mut before = Before::default();
    (before.exists, before.looked_up_to) = (store_exists, looked_up_to);
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
