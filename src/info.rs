//! The section that `INFO keyguard` shows.

use std::ffi::c_int;

use crate::ffi::{self, api, raw};
use crate::{eviction, failures, gate, keyring, rekey, survey, usage, waiting};
#[cfg(feature = "snapshot")]
use crate::{export, import};

/// Registers the section.
pub fn register(ctx: ffi::Ctx<'_>) {
    // SAFETY: the callback has the type that the server calls.
    unsafe { api!(RedisModule_RegisterInfoFunc)(ctx.as_raw(), Some(info)) };
}

unsafe extern "C" fn info(ctx: *mut raw::RedisModuleInfoCtx, for_crash_report: c_int) {
    // In a crash report nothing may allocate or wait for a lock.
    if for_crash_report != 0 {
        return;
    }
    ffi::guarded((), || {
        let version = ffi::to_c_string(env!("CARGO_PKG_VERSION"));
        let source = ffi::to_c_string(keyring::source());
        let installed = keyring::installed();
        let newest = installed.as_ref().map(|keyring| ffi::to_c_string(&keyring.newest().fingerprint().to_string()));
        let keys = installed.as_ref().map_or(0, |keyring| keyring.len() as u64);
        let lacking: Vec<String> = survey::lacking().iter().map(ToString::to_string).collect();
        let lacking = ffi::to_c_string(&lacking.join(","));
        let waiting = waiting::summary();
        let rekey = rekey::summary();
        let written = usage::summary();
        // SAFETY: takes nothing.
        let now_ms = u64::try_from(unsafe { api!(RedisModule_Milliseconds)() }).unwrap_or(0);
        let longest_wait_ms = waiting.oldest_since_ms.map_or(0, |since| now_ms.saturating_sub(since));
        // SAFETY: the context is valid during the call; names and values end in NUL and are copied.
        unsafe {
            api!(RedisModule_InfoAddSection)(ctx, c"".as_ptr());
            api!(RedisModule_InfoAddFieldCString)(ctx, c"version".as_ptr(), version.as_ptr());
            api!(RedisModule_InfoAddFieldCString)(ctx, c"keyring_source".as_ptr(), source.as_ptr());
            api!(RedisModule_InfoAddFieldULongLong)(ctx, c"keyring_keys".as_ptr(), keys);
            api!(RedisModule_InfoAddFieldCString)(ctx, c"keyring_lacking".as_ptr(), lacking.as_ptr());
            api!(RedisModule_InfoAddFieldULongLong)(ctx, c"eviction_unsafe".as_ptr(), u64::from(eviction::is_unsafe()));
            for (name, value) in [
                (c"waiters", waiting.waiters as u64),
                (c"waiting_lines", waiting.lines as u64),
                (c"longest_wait_ms", longest_wait_ms),
                (c"addresses_failing", failures::addresses(now_ms)),
                (c"automatic_blocks", failures::blocks()),
                (c"rekey_running", u64::from(rekey.state == rekey::State::Running)),
                (c"rekey_done", rekey.done),
                (c"rekey_left", rekey.left),
                (c"rekey_failed", rekey.failed),
                (c"usage_stores_waiting", written.stores),
                (c"usage_rows_waiting", written.rows),
                (c"usage_rows_dropped", written.dropped),
                (c"usage_last_flush_us", written.last_flush_us),
            ] {
                api!(RedisModule_InfoAddFieldULongLong)(ctx, name.as_ptr(), value);
            }
            for (code, count) in gate::answered() {
                let name = ffi::to_c_string(&format!("auth_{}", code.as_str().to_ascii_lowercase()));
                api!(RedisModule_InfoAddFieldULongLong)(ctx, name.as_ptr(), count);
            }
            #[cfg(feature = "snapshot")]
            for (name, value) in files() {
                api!(RedisModule_InfoAddFieldULongLong)(ctx, name.as_ptr(), value);
            }
            if let Some(newest) = newest {
                api!(RedisModule_InfoAddFieldCString)(ctx, c"keyring_newest".as_ptr(), newest.as_ptr());
            }
        }
    });
}

#[cfg(feature = "snapshot")]
fn files() -> [(&'static std::ffi::CStr, u64); 11] {
    let summary = export::summary();
    let import = import::summary();
    [
        (c"snapshot_running", u64::from(summary.running)),
        (c"snapshot_rows", summary.rows),
        (c"snapshots_done", summary.done),
        (c"snapshots_failed", summary.failed),
        (c"snapshot_last_at", summary.last_done_ms),
        (c"snapshot_last_ms", summary.last_took_ms),
        (c"import_running", u64::from(import.running)),
        (c"import_rows", import.rows),
        (c"import_skipped", import.skipped),
        (c"imports_done", import.done),
        (c"imports_failed", import.failed),
    ]
}
