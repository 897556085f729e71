//! Looks through the keyspace for stores that hold key records, in slices that hold nobody up: to say which keys of a keyring this
//! server lacks before anybody asks for a secret, and whether it may make a keyring of its own.

use std::collections::BTreeSet;
use std::ffi::{c_int, c_void};
use std::ptr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use keyguard_core::keyring::Fingerprint;
use keyguard_core::names::StoreName;

use crate::ffi::{self, Ctx, Kind, Level, Name, OwnedString, api, raw};
use crate::{keyring, store};

/// How long one slice may take, once it has made [`STEPS`] steps.
const SLICE: Duration = Duration::from_millis(1);

/// How many steps a slice makes at the least: on a busy machine a millisecond may pass without any.
const STEPS: usize = 500;

/// The pause between slices, in milliseconds.
const PAUSE_MS: i64 = 20;

/// What a survey has found.
#[derive(Debug, Clone, Default)]
pub struct Findings {
    /// Whether a store holds key records, or once held some.
    pub records: bool,
    /// Keys that stores use.
    pub used: BTreeSet<Fingerprint>,
}

/// A survey of all databases that has come so far.
#[derive(Default)]
pub struct Survey {
    database: c_int,
    cursor: Option<Cursor>,
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
            let mut names: Vec<Vec<u8>> = Vec::new();
            // SAFETY: the cursor is created by the server, and destroyed when dropped.
            let cursor = self.cursor.get_or_insert_with(|| Cursor(unsafe { api!(RedisModule_ScanCursorCreate)() }));
            // SAFETY: the callback has the type that the server calls, and the names outlive the call.
            let more =
                unsafe { api!(RedisModule_Scan)(ctx.as_raw(), cursor.0, Some(collect), (&raw mut names).cast()) } != 0;
            names.iter().for_each(|name| look(ctx, name, &mut self.findings));
            if !more {
                self.next_database();
            }
        }
    }

    fn next_database(&mut self) {
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
        if is_hash && StoreName::parse(name.bytes()).is_ok() {
            // SAFETY: the names are what `slice` lends for the call.
            unsafe { &mut *names.cast::<Vec<Vec<u8>>>() }.push(name.bytes().to_vec());
        }
    });
}

fn look(ctx: Ctx<'_>, name: &[u8], findings: &mut Findings) {
    let store = OwnedString::new(name);
    let key = ctx.read(store.name());
    let has = |field| key.hash_field(field).is_ok_and(|value| value.is_some());
    if key.kind() == Kind::Hash && has(c"schema") && (has(c"vault_keys") || has(c"api_keys")) {
        drop(key);
        findings.records = true;
        findings.used.extend(store::fingerprints(ctx, name));
    }
}

/// The survey that runs beside everything else, and what the last one found to be lacking.
#[derive(Default)]
struct Watch {
    survey: Survey,
    running: bool,
    lacking: Vec<Fingerprint>,
}

static WATCH: Mutex<Option<Watch>> = Mutex::new(None);

fn watch() -> MutexGuard<'static, Option<Watch>> {
    WATCH.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Keys that stores use and the keyring lacks, as of the last survey.
pub fn lacking() -> Vec<Fingerprint> {
    watch().as_ref().map_or_else(Vec::new, |watch| watch.lacking.clone())
}

/// Surveys the keyspace: when the module is loaded, and whenever other data was loaded or this server's role changed.
pub fn start(ctx: Ctx<'_>) {
    let mut watch = watch();
    let watch = watch.get_or_insert_default();
    watch.survey = Survey::default();
    if !watch.running {
        watch.running = true;
        later(ctx, 1);
    }
}

fn later(ctx: Ctx<'_>, ms: i64) {
    // SAFETY: the callback has the type that the server calls.
    unsafe { api!(RedisModule_CreateTimer)(ctx.as_raw(), ms, Some(on_timer), ptr::null_mut()) };
}

unsafe extern "C" fn on_timer(ctx: *mut raw::RedisModuleCtx, _: *mut c_void) {
    ffi::guarded((), || {
        // SAFETY: the server's context is valid during the call.
        let ctx = unsafe { Ctx::new(ctx) };
        let mut watch = watch();
        let Some(watch) = watch.as_mut() else { return };
        let Some(findings) = watch.survey.go_on(ctx) else { return later(ctx, PAUSE_MS) };
        watch.running = false;
        watch.survey = Survey::default();
        let keyring = keyring::installed();
        let has = |used: &Fingerprint| keyring.as_ref().is_some_and(|keyring| keyring.find(*used).is_some());
        watch.lacking = findings.used.into_iter().filter(|used| !has(used)).collect();
        for lacking in &watch.lacking {
            let message = format!("stores here use key {lacking}, which the keyring lacks: they answer NOKEYRING");
            ctx.log(Level::Warning, &message);
        }
    });
}
