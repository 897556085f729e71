//! Looks through the keyspace for stores that hold key records, in slices that hold nobody up: to say which keys of a keyring this
//! server lacks before anybody asks for a secret, whether it may make a keyring of its own, and how many records use a key that is
//! to go.
//!
//! Who asks is held while a survey that began after the question goes on, and answered from the timer slice that ends it, before
//! any other command can run.

use std::collections::BTreeMap;
use std::ffi::{c_int, c_void};
use std::ptr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use keyguard_core::keyring::Fingerprint;
use keyguard_core::names::StoreName;
use keyguard_core::{Error, Result};

use crate::ffi::{self, Ctx, Kind, Level, Name, OwnedString, api, raw};
use crate::{keyring, store};

/// How long one slice may take, once it has made [`STEPS`] steps.
const SLICE: Duration = Duration::from_millis(1);

/// How many steps a slice makes at the least: on a busy machine a millisecond may pass without any.
const STEPS: usize = 500;

/// The pause between slices, in milliseconds.
const PAUSE_MS: i64 = 20;

/// The same while somebody waits for the end: a quarter of the time at the most goes into the survey.
const ASKED_PAUSE_MS: i64 = 3;

/// What a survey has found.
#[derive(Debug, Clone, Default)]
pub struct Findings {
    /// Whether a store holds key records, or once held some.
    pub records: bool,
    /// Keys that stores use, and how many records use each.
    pub using: BTreeMap<Fingerprint, u64>,
    /// The stores themselves, each with its database.
    pub stores: Vec<(c_int, String)>,
}

impl Findings {
    /// The keys that stores use and the keyring in force lacks.
    pub fn lacking(&self) -> Vec<Fingerprint> {
        let keyring = keyring::installed();
        let has = |used: &Fingerprint| keyring.as_ref().is_some_and(|keyring| keyring.holds(*used));
        self.using.keys().filter(|used| !has(used)).copied().collect()
    }
}

/// A survey of all databases that has come so far.
#[derive(Default)]
pub struct Survey {
    database: c_int,
    cursor: Option<Cursor>,
    /// What the stores of the database use, by their names, and None for those that never held records: while its table grows, the
    /// server may show a key twice.
    stores: BTreeMap<String, Option<Vec<(Fingerprint, u64)>>>,
    findings: Findings,
}

struct Cursor(*mut raw::RedisModuleScanCursor);

// SAFETY: a cursor is a number that the server keeps; it is used on the main thread only.
unsafe impl Send for Cursor {}

impl Drop for Cursor {
    fn drop(&mut self) {
        // SAFETY: the cursor was created here and is destroyed once.
        unsafe { api!(RedisModule_ScanCursorDestroy)(self.0) };
    }
}

impl Survey {
    /// Goes on for one slice; what it found, when the whole keyspace has been seen.
    pub fn go_on(&mut self, ctx: Ctx<'_>) -> Option<Findings> {
        // SAFETY: the context is valid; the selected database is put back below.
        let selected = unsafe { api!(RedisModule_GetSelectedDb)(ctx.as_raw()) };
        let done = self.slice(ctx);
        // SAFETY: as above.
        unsafe { api!(RedisModule_SelectDb)(ctx.as_raw(), selected) };
        done.then(|| self.findings.clone())
    }

    fn slice(&mut self, ctx: Ctx<'_>) -> bool {
        let begun = Instant::now();
        let mut steps = 0;
        loop {
            // SAFETY: the server refuses a database that it does not have; the context is valid.
            let keys = unsafe {
                if api!(RedisModule_SelectDb)(ctx.as_raw(), self.database) != ffi::OK {
                    return true;
                }
                api!(RedisModule_DbSize)(ctx.as_raw())
            };
            if keys == 0 {
                self.next_database();
                continue;
            }
            if steps >= STEPS && begun.elapsed() >= SLICE {
                return false;
            }
            steps += 1;
            let mut names: Vec<String> = Vec::new();
            // SAFETY: the cursor is created by the server, and destroyed when dropped.
            let cursor = self.cursor.get_or_insert_with(|| Cursor(unsafe { api!(RedisModule_ScanCursorCreate)() }));
            // SAFETY: the callback has the type that the server calls, and the names outlive the call.
            let more =
                unsafe { api!(RedisModule_Scan)(ctx.as_raw(), cursor.0, Some(collect), (&raw mut names).cast()) } != 0;
            for name in names {
                if let Some(using) = look(ctx, name.as_bytes()) {
                    self.stores.insert(name, using);
                }
            }
            if !more {
                self.next_database();
            }
        }
    }

    fn next_database(&mut self) {
        for (name, using) in std::mem::take(&mut self.stores) {
            self.findings.stores.push((self.database, name));
            self.findings.records |= using.is_some();
            for (fingerprint, count) in using.into_iter().flatten() {
                let sum = self.findings.using.entry(fingerprint).or_default();
                *sum = sum.saturating_add(count);
            }
        }
        self.cursor = None;
        self.database += 1;
    }
}

/// Only takes down the names of what may be a store. To open a key may find it expired and delete it, and then the server would
/// go on with the handle that it holds during this call: it reads what it has freed.
unsafe extern "C" fn collect(
    _: *mut raw::RedisModuleCtx,
    name: *mut raw::RedisModuleString,
    key: *mut raw::RedisModuleKey,
    names: *mut c_void,
) {
    ffi::guarded((), || {
        // SAFETY: the server's key is valid during the call, or null.
        let is_hash =
            key.is_null() || unsafe { api!(RedisModule_KeyType)(key) } as isize == raw::REDISMODULE_KEYTYPE_HASH;
        // SAFETY: the server's name is valid during the call.
        let name = unsafe { Name::new(name) };
        if is_hash && let Ok(name) = StoreName::parse(name.bytes()) {
            // SAFETY: the names are what `slice` lends for the call.
            unsafe { &mut *names.cast::<Vec<String>>() }.push(name.as_str().to_owned());
        }
    });
}

/// What the records of a store use, None within if it never held any; `None` if it is no store.
fn look(ctx: Ctx<'_>, name: &[u8]) -> Option<Option<Vec<(Fingerprint, u64)>>> {
    let store = OwnedString::new(name);
    let key = ctx.read(store.name());
    let has = |field| key.hash_field(field).is_ok_and(|value| value.is_some());
    let is_store = key.kind() == Kind::Hash && has(c"schema");
    let holds_records = is_store && (has(c"vault_keys") || has(c"api_keys"));
    drop(key);
    is_store.then(|| holds_records.then(|| store::fingerprints(ctx, name)))
}

/// What is asked of a survey: it decides on the findings, and says what is to be answered.
pub type Question = Box<dyn FnOnce(&Findings) -> Result<Answer> + Send>;

/// Answers the client that has asked.
pub type Answer = Box<dyn Fn(Ctx<'_>) + Send>;

/// A client that waits for the end of a survey.
struct Asked {
    held: Held,
    question: Question,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Held(*mut raw::RedisModuleBlockedClient);

// SAFETY: the server's object for a held client is used on the main thread only; the mutex is there because a static needs one.
unsafe impl Send for Held {}

impl Held {
    /// Answers the client and lets it go on; `None` if it is gone. To be called once.
    fn release(self, answer: Option<Result<Answer>>) {
        let answer = answer.map_or(ptr::null_mut(), |answer| Box::into_raw(Box::new(answer)));
        // SAFETY: the object is valid until it is released, which takes it out of the watch first. The server hands the answer
        // to `on_answer`, then to `free_answer`.
        unsafe { api!(RedisModule_UnblockClient)(self.0, answer.cast()) };
    }
}

/// The survey that runs beside everything else, who waits for its end, and what the last one found to be lacking.
#[derive(Default)]
struct Watch {
    survey: Survey,
    running: bool,
    /// Those who asked before the survey began.
    asked: Vec<Asked>,
    /// Those who asked since: the next one is for them.
    next: Vec<Asked>,
    lacking: Vec<Fingerprint>,
}

impl Watch {
    fn start(&mut self, ctx: Ctx<'_>) {
        self.survey = Survey::default();
        self.asked.append(&mut self.next);
        if !self.running {
            self.running = true;
            later(ctx, 1);
        }
    }
}

static WATCH: Mutex<Option<Watch>> = Mutex::new(None);

fn watch<T>(with: impl FnOnce(&mut Watch) -> T) -> T {
    let mut guard: MutexGuard<'_, Option<Watch>> = WATCH.lock().unwrap_or_else(PoisonError::into_inner);
    with(guard.get_or_insert_default())
}

/// Keys that stores use and the keyring lacks, as of the last survey.
pub fn lacking() -> Vec<Fingerprint> {
    watch(|watch| watch.lacking.clone())
}

/// Surveys the keyspace: when the module is loaded, and whenever other data was loaded, a keyring was put in force or this
/// server's role changed.
pub fn start(ctx: Ctx<'_>) {
    watch(|watch| watch.start(ctx));
}

/// What a survey under way has seen may be elsewhere now: it starts over.
pub fn start_over() {
    watch(|watch| watch.survey = Survey::default());
}

/// Holds the client until a survey that begins now has ended, and answers it then.
///
/// # Errors
/// [`Error::MayNotWait`] in a transaction, a script or a function.
pub fn ask(ctx: Ctx<'_>, question: Question) -> Result<()> {
    if ctx.has_flags(raw::REDISMODULE_CTX_FLAGS_DENY_BLOCKING) {
        return Err(Error::MayNotWait);
    }
    // SAFETY: the callbacks have the types that the server calls. There is no time-out, as a survey ends by itself; without a
    // callback for it, CLIENT UNBLOCK leaves the client alone.
    let held = Held(unsafe {
        let held = api!(RedisModule_BlockClient)(ctx.as_raw(), Some(on_answer), None, Some(free_answer), 0);
        api!(RedisModule_SetDisconnectCallback)(held, Some(on_disconnect));
        held
    });
    watch(|watch| {
        watch.next.push(Asked { held, question });
        // One that nobody waits for may as well begin again. Else the next one is theirs: those who wait are not put off.
        if watch.asked.is_empty() {
            watch.start(ctx);
        }
    });
    Ok(())
}

fn later(ctx: Ctx<'_>, ms: i64) {
    // SAFETY: the callback has the type that the server calls.
    unsafe { api!(RedisModule_CreateTimer)(ctx.as_raw(), ms, Some(on_timer), ptr::null_mut()) };
}

unsafe extern "C" fn on_timer(ctx: *mut raw::RedisModuleCtx, _: *mut c_void) {
    // SAFETY: the server's context is valid during the call.
    let ctx = unsafe { Ctx::new(ctx) };
    ffi::guarded((), || {
        // A survey that fails by a defect of ours ends too: nobody waits for good.
        let slice = ffi::guarded(Some(Err(Error::Internal)), || watch(|watch| watch.survey.go_on(ctx)).map(Ok));
        let Some(findings) = slice else {
            let pause_ms = if watch(|watch| watch.asked.is_empty()) { PAUSE_MS } else { ASKED_PAUSE_MS };
            return later(ctx, pause_ms);
        };
        let asked = watch(|watch| {
            watch.running = false;
            watch.survey = Survey::default();
            let asked = std::mem::take(&mut watch.asked);
            if !watch.next.is_empty() {
                watch.start(ctx);
            }
            asked
        });
        for Asked { held, question } in asked {
            let decide = || findings.as_ref().map_err(|error| *error).and_then(question);
            held.release(Some(ffi::guarded(Err(Error::Internal), decide)));
        }
        if let Ok(findings) = findings {
            tell_of_lacking(ctx, findings.lacking());
        }
    });
}

/// Keeps for INFO what the keyring lacks, and writes into the log what is new of it.
fn tell_of_lacking(ctx: Ctx<'_>, lacking: Vec<Fingerprint>) {
    let before = watch(|watch| std::mem::replace(&mut watch.lacking, lacking.clone()));
    for lacking in lacking.iter().filter(|lacking| !before.contains(lacking)) {
        let message = format!("stores here use key {lacking}, which the keyring lacks: they answer NOKEYRING");
        ctx.log(Level::Warning, &message);
    }
}

unsafe extern "C" fn on_answer(ctx: *mut raw::RedisModuleCtx, _: *mut *mut raw::RedisModuleString, _: c_int) -> c_int {
    // SAFETY: the server's context is valid during the call.
    let ctx = unsafe { Ctx::new(ctx) };
    ffi::guard(ctx, || {
        // SAFETY: the context is valid.
        let answer = unsafe { api!(RedisModule_GetBlockedClientPrivateData)(ctx.as_raw()) };
        // SAFETY: the server gives what the client was released with: an answer, which it frees only afterwards.
        match unsafe { answer.cast::<Result<Answer>>().as_ref() } {
            Some(Ok(answer)) => answer(ctx),
            Some(Err(error)) => return Err(*error),
            None => return Err(Error::Internal),
        }
        Ok(())
    })
}

unsafe extern "C" fn free_answer(_: *mut raw::RedisModuleCtx, answer: *mut c_void) {
    if !answer.is_null() {
        // SAFETY: the answer came from `Box::into_raw` in `release`, and the server gives it back once.
        drop(unsafe { Box::from_raw(answer.cast::<Result<Answer>>()) });
    }
}

/// The client is gone: it hung up, was killed, or sent away because this server's role changed.
unsafe extern "C" fn on_disconnect(_: *mut raw::RedisModuleCtx, held: *mut raw::RedisModuleBlockedClient) {
    ffi::guarded((), || {
        let gone = Held(held);
        let waited = watch(|watch| {
            let before = watch.asked.len() + watch.next.len();
            watch.asked.retain(|asked| asked.held != gone);
            watch.next.retain(|asked| asked.held != gone);
            watch.asked.len() + watch.next.len() < before
        });
        if waited {
            gone.release(None);
        }
    });
}
