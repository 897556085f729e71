//! Looks through the keyspace for stores that hold key records, in slices that hold nobody up.

use std::ffi::{c_int, c_void};
use std::time::{Duration, Instant};

use keyguard_core::names::StoreName;

use crate::ffi::{self, Ctx, Key, Kind, Name, api, raw};

/// How long one slice may take.
const SLICE: Duration = Duration::from_millis(1);

/// A search through all databases that has come so far.
#[derive(Default)]
pub struct Survey {
    database: c_int,
    cursor: Option<Cursor>,
    found: bool,
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
    /// Goes on for one slice: `Some(whether there is such a store)` when the whole keyspace has been seen or one was found.
    pub fn go_on(&mut self, ctx: Ctx<'_>) -> Option<bool> {
        // SAFETY: the context is valid; the selected database is put back below.
        let selected = unsafe { api!(RedisModule_GetSelectedDb)(ctx.as_raw()) };
        let outcome = self.slice(ctx);
        // SAFETY: as above.
        unsafe { api!(RedisModule_SelectDb)(ctx.as_raw(), selected) };
        outcome
    }

    fn slice(&mut self, ctx: Ctx<'_>) -> Option<bool> {
        let begun = Instant::now();
        loop {
            // SAFETY: the server refuses a database that it does not have.
            if unsafe { api!(RedisModule_SelectDb)(ctx.as_raw(), self.database) } != ffi::OK {
                return Some(false);
            }
            let found: *mut bool = &raw mut self.found;
            // SAFETY: the cursor is created by the server and destroyed when dropped.
            let cursor = self.cursor.get_or_insert_with(|| Cursor(unsafe { api!(RedisModule_ScanCursorCreate)() }));
            // SAFETY: the callback has the type that the server calls, and `found` outlives the call.
            let more = unsafe { api!(RedisModule_Scan)(ctx.as_raw(), cursor.0, Some(look), found.cast()) } != 0;
            if self.found {
                return Some(true);
            }
            if !more {
                self.cursor = None;
                self.database += 1;
            }
            if begun.elapsed() >= SLICE {
                return None;
            }
        }
    }
}

unsafe extern "C" fn look(
    ctx: *mut raw::RedisModuleCtx,
    name: *mut raw::RedisModuleString,
    _: *mut raw::RedisModuleKey,
    found: *mut c_void,
) {
    ffi::guarded((), || {
        // SAFETY: the server's context and name are valid during the call.
        let (ctx, name) = unsafe { (Ctx::new(ctx), Name::new(name)) };
        if StoreName::parse(name.bytes()).is_err() {
            return;
        }
        let key: Key<'_> = ctx.read(name);
        let counts = |records| key.hash_field(records).is_ok_and(|count| count.is_some());
        if key.kind() == Kind::Hash && counts(c"schema") && (counts(c"vault_keys") || counts(c"api_keys")) {
            // SAFETY: `found` is the flag that `slice` lends for the call.
            unsafe { *found.cast::<bool>() = true };
        }
    });
}
