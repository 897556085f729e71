//! Sealing the vault again under the newest key of the keyring: `KG.REKEY`.
//!
//! A job goes through the vault keys of one store in the order of their ids, in slices from a timer, while everything else goes on.
//! Each record is read afresh, opened, sealed with a fresh nonce and digested anew, and written together with its index entry and
//! the header's counts, in one slice: replicas and the append-only file get a slice as one transaction. Until its turn comes, a
//! record is found and opened under its old key, as before.
//!
//! Jobs are kept in memory only. After a restart or a failover the same call goes on, since a record that is under the newest key
//! already is passed over.
//!
//! The timer runs outside of any command, where the server refuses nothing by itself: so a slice asks first what it would have
//! asked, the role, a pause of writes, the disk and enough replicas, and looks again later.

use std::collections::VecDeque;
use std::ffi::{c_int, c_void};
use std::ptr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use keyguard_core::digest::{Domain, digest};
use keyguard_core::keyring::{Fingerprint, Keyring};
use keyguard_core::names::StoreName;
use keyguard_core::record::{Record, RecordType, VaultRecord};
use keyguard_core::{Error, Result, vault};

use crate::ffi::{self, Ctx, Level, OwnedString, api, raw};
use crate::store::{MAX_SHARED, Missing, Store, place, using, vault_fields};
use crate::{keyring, server};

/// How long a slice may take, once it has done one record: half of what anything may hold the server up, so that a record of
/// the largest size, begun at its end, still fits.
const SLICE: Duration = Duration::from_millis(1);

/// The pause after a slice, in milliseconds: three times its length leave three quarters of the processor to clients.
const PAUSE_MS: i64 = 3;

/// While nothing may be written, whether it still is so is looked at so often, in milliseconds.
const FORBIDDEN_MS: i64 = 100;

/// How many jobs that have ended are told of, at the most.
const MAX_ENDED: usize = 64;

/// How a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum State {
    /// It is at work, or will be when those before it have ended.
    Running,
    /// It was ended before it was through.
    Stopped,
    /// It is through, or there was nothing to do.
    #[default]
    Done,
}

impl State {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Stopped => "stopped",
            Self::Done => "done",
        }
    }
}

/// How far a job has come.
#[derive(Debug, Clone, Copy, Default)]
pub struct Progress {
    /// How it stands.
    pub state: State,
    /// Vault keys that still are under an older key, those that failed among them; while it runs, at the most.
    pub left: u64,
    /// Vault keys that it has sealed again.
    pub done: u64,
    /// Vault keys that did not open: changed from outside, or under a key that the keyring lacks.
    pub failed: u64,
}

struct Job {
    database: c_int,
    store: String,
    /// The newest key of the keyring, to which it takes all.
    newest: Fingerprint,
    /// Which keyring that is: under another one, what failed may open.
    keyring: u64,
    /// The last id that was looked at.
    after: u64,
    /// How many vault keys were looked at up to there.
    seen: u64,
    /// How many records used an older key when it ended: more than that is new work.
    older: u64,
    progress: Progress,
}

impl Job {
    fn is_of(&self, database: c_int, store: StoreName<'_>) -> bool {
        self.database == database && self.store == store.as_str()
    }

    fn begin_again(&mut self) {
        (self.after, self.seen) = (0, 0);
        self.progress.failed = 0;
    }

    /// Brings `left` up to date. The header counts API keys among those who use an older key, which stay under it: so it is the
    /// vault keys that were not looked at, of which no more than the header says can be under an older one.
    fn count_left(&mut self, store: &Store<'_>) -> Result<()> {
        let (vault_keys, older) = store.vault_keys_and_older(self.newest)?;
        let failed = self.progress.failed;
        let not_seen = vault_keys.saturating_sub(self.seen).min(older.saturating_sub(failed));
        self.older = older;
        self.progress.left = if self.progress.state == State::Done { failed } else { failed.saturating_add(not_seen) };
        Ok(())
    }
}

#[derive(Default)]
struct Work {
    /// The one at work first.
    queue: VecDeque<Job>,
    /// Those that are through, the newest last.
    ended: VecDeque<Job>,
    /// How the one at work stands, or the last that was.
    last: Progress,
    timer_is_set: bool,
}

static WORK: Mutex<Option<Work>> = Mutex::new(None);

/// Runs `with` on the jobs. It must not call the server, which may call back.
fn work<T>(with: impl FnOnce(&mut Work) -> T) -> T {
    let mut guard: MutexGuard<'_, Option<Work>> = WORK.lock().unwrap_or_else(PoisonError::into_inner);
    with(guard.get_or_insert_default())
}

/// The job at work, or the last that was, for INFO.
pub fn summary() -> Progress {
    work(|work| work.last)
}

/// Starts a job for a store, if there is something to do and none yet; how it stands.
///
/// One that is through is told of until there is new work for it: records under an older key that came since, or another keyring.
///
/// # Errors
/// [`Error::NoKeyring`].
pub fn start(ctx: Ctx<'_>, store: &Store<'_>) -> Result<Progress> {
    let database = ctx.selected_database();
    let is_ours = |job: &&Job| job.is_of(database, store.name);
    if let Some(progress) = work(|work| work.queue.iter().find(is_ours).map(|job| job.progress)) {
        return Ok(progress);
    }
    let newest = keyring::current(ctx)?.newest().fingerprint();
    let keyring = keyring::installation();
    let (_, older) = store.vault_keys_and_older(newest)?;
    let ended = work(|work| work.ended.iter().find(is_ours).map(|job| (job.keyring, job.older, job.progress)));
    if let Some((before, older_before, progress)) = ended
        && before == keyring
        && older_before >= older
    {
        return Ok(progress);
    }
    if older == 0 {
        return Ok(Progress::default());
    }
    let mut job = Job {
        database,
        store: store.name.as_str().to_owned(),
        newest,
        after: 0,
        seen: 0,
        older,
        keyring,
        progress: Progress { state: State::Running, ..Progress::default() },
    };
    job.count_left(store)?;
    let progress = job.progress;
    work(|work| {
        if work.queue.is_empty() {
            work.last = progress;
        }
        work.ended.retain(|ended| !ended.is_of(database, store.name));
        work.queue.push_back(job);
    });
    arm(ctx, 1);
    Ok(progress)
}

/// Ends the job of a store, and forgets one that is through; how it stood.
pub fn stop(ctx: Ctx<'_>, store: &Store<'_>) -> Progress {
    let database = ctx.selected_database();
    work(|work| {
        let was_at_work = work.queue.front().is_some_and(|job| job.is_of(database, store.name));
        let queued = work.queue.iter().position(|job| job.is_of(database, store.name));
        let ended = work.ended.iter().position(|job| job.is_of(database, store.name));
        let job = match (queued, ended) {
            (Some(queued), _) => work.queue.remove(queued),
            (None, Some(ended)) => work.ended.remove(ended),
            (None, None) => None,
        };
        let mut progress = job.map_or_else(Progress::default, |job| job.progress);
        if progress.state == State::Running {
            progress.state = State::Stopped;
        }
        if was_at_work {
            work.last = progress;
        }
        progress
    })
}

/// Other data may stand where jobs have been: they look at it from the beginning, and what is through is through no more.
pub fn data_replaced() {
    work(|work| {
        work.queue.iter_mut().for_each(Job::begin_again);
        work.ended.clear();
    });
}

/// Sets the timer, unless it is set.
fn arm(ctx: Ctx<'_>, ms: i64) {
    if work(|work| !work.queue.is_empty() && !std::mem::replace(&mut work.timer_is_set, true)) {
        // SAFETY: the callback has the type that the server calls.
        unsafe { api!(RedisModule_CreateTimer)(ctx.as_raw(), ms, Some(on_timer), ptr::null_mut()) };
    }
}

unsafe extern "C" fn on_timer(ctx: *mut raw::RedisModuleCtx, _: *mut c_void) {
    // SAFETY: the server's context is valid during the call.
    let ctx = unsafe { Ctx::new(ctx) };
    let pause_ms = ffi::guarded(PAUSE_MS, || {
        work(|work| work.timer_is_set = false);
        serve(ctx)
    });
    ffi::guarded((), || arm(ctx, pause_ms));
}

/// What becomes of a job after a slice.
enum Next {
    /// It goes on after this many milliseconds.
    Later(i64),
    /// It has ended.
    Ended(State),
}

/// One slice of the first job; how long to pause then, in milliseconds.
fn serve(ctx: Ctx<'_>) -> i64 {
    // It stands in the queue again only if it comes out of the slice: one that meets a defect of ours does not meet it for ever.
    let Some(mut job) = work(|work| work.queue.pop_front()) else { return PAUSE_MS };
    let next = slice(ctx, &mut job).unwrap_or_else(|error| {
        ctx.log(Level::Warning, &format!("KG.REKEY stopped: {error}"));
        Next::Ended(State::Stopped)
    });
    match next {
        Next::Later(ms) => {
            work(|work| {
                work.last = job.progress;
                work.queue.push_front(job);
            });
            ms
        }
        Next::Ended(state) => {
            let Progress { left, done, failed, .. } = job.progress;
            let state_text = state.as_str();
            let message =
                format!("KG.REKEY {state_text}: {done} vault keys sealed again, {failed} failed, {left} left");
            ctx.log(Level::Notice, &message);
            job.progress.state = state;
            work(|work| {
                work.last = job.progress;
                if state == State::Done {
                    work.ended.push_back(job);
                    if work.ended.len() > MAX_ENDED {
                        work.ended.pop_front();
                    }
                }
            });
            PAUSE_MS
        }
    }
}

fn slice(ctx: Ctx<'_>, job: &mut Job) -> Result<Next> {
    let begun = Instant::now();
    if !ctx.has_flags(raw::REDISMODULE_CTX_FLAGS_MASTER) {
        return Ok(Next::Ended(State::Stopped));
    }
    if !ctx.may_write() {
        return Ok(Next::Later(FORBIDDEN_MS));
    }
    ctx.select_database(job.database);
    let header = OwnedString::new(job.store.as_bytes());
    let name = StoreName::parse(header.name().bytes())?;
    let store = Store::open(ctx, (name, header.name()), Missing::Refuse)?;
    if server::refusal_to_write(ctx, header.name()).is_some() {
        return Ok(Next::Later(FORBIDDEN_MS));
    }
    let keyring = keyring::current(ctx)?;
    if keyring::installation() != job.keyring {
        // What it has done may be under an older key now, and what it could not open may open.
        (job.newest, job.keyring) = (keyring.newest().fingerprint(), keyring::installation());
        job.begin_again();
    }
    loop {
        let Some(id) = store.ids_after(RecordType::Vault, job.after, 1)?.pop() else {
            job.progress.state = State::Done;
            job.count_left(&store)?;
            return Ok(Next::Ended(State::Done));
        };
        match rekey(&store, &keyring, id) {
            Ok(Outcome::NoVaultKey) => {}
            Ok(Outcome::IsNewest) => job.seen += 1,
            Ok(Outcome::Rekeyed) => {
                job.seen += 1;
                job.progress.done += 1;
            }
            Err(error @ (Error::TryAgain | Error::Internal)) => return Err(error),
            Err(_) => {
                job.seen += 1;
                job.progress.failed += 1;
            }
        }
        job.after = id;
        if begun.elapsed() >= SLICE {
            job.count_left(&store)?;
            return Ok(Next::Later(PAUSE_MS));
        }
    }
}

/// What became of an id.
enum Outcome {
    /// It is no vault key's.
    NoVaultKey,
    /// Its record is under the newest key already.
    IsNewest,
    /// It is now.
    Rekeyed,
}

/// Seals and digests a record anew under the newest key, unless it is under that.
fn rekey(store: &Store<'_>, keyring: &Keyring, id: u64) -> Result<Outcome> {
    let packed = match store.packed_record(id) {
        Err(Error::NoSuch { .. }) => return Ok(Outcome::NoVaultKey),
        packed => packed?,
    };
    let Record::Vault(record) = Record::decode(packed.bytes())? else { return Ok(Outcome::NoVaultKey) };
    let newest = keyring.newest();
    if vault::fingerprint_of(record.sealed) == Some(newest.fingerprint()) && record.digest_key == newest.fingerprint() {
        return Ok(Outcome::IsNewest);
    }

    let secret = vault::open(keyring, &place(store, id), record.sealed)?;
    let sealed = vault::seal(newest, *keyring::random()?, &place(store, id), &secret)?;
    let digested = digest(newest, Domain::Vault, secret.expose());
    let renamed = digested != record.digest;
    let mut others = store.ids_of(&record.digest)?;
    others.retain(|other| *other != id);
    if renamed && store.ids_of(&digested)?.len() >= MAX_SHARED {
        return Err(Error::TooMany { what: "keys with this secret", max: MAX_SHARED });
    }
    let (old_count, new_count) = (using(record.digest_key), using(newest.fingerprint()));
    store.expect_counts(&[&old_count, &new_count], None)?;
    let (old_digest, moved) = (record.digest, record.digest_key != newest.fingerprint());
    let record = VaultRecord { sealed: &sealed, digest: digested, digest_key: newest.fingerprint(), ..record };
    let fields = vault_fields(&record, None)?;

    store.write_hash(&store.name.key(id), &fields)?;
    if renamed {
        store.set_ids(&old_digest, &others)?;
        store.index_digest(&record.digest, id)?;
    }
    if moved {
        store.count(&old_count, -1)?;
        store.count(&new_count, 1)?;
    }
    Ok(Outcome::Rekeyed)
}
