//! Settings: from the arguments of `loadmodule`, then from `keyguard.*` lines of the configuration file, then from CONFIG SET.

use std::ffi::{CStr, c_char, c_int, c_longlong, c_void};
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use keyguard_core::failures::MAX_THRESHOLD;
use keyguard_core::ip::MAX_AUTOMATIC_MS;
use keyguard_core::{Error, parse};

use crate::ffi::{self, Ctx, Name, OwnedString, api, raw, to_c_string};

/// What can be set.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `keyring-file`: where the keyring lies; empty for the environment or `.netrc`.
    pub keyring_file: String,
    /// `keyring-auto-create`: whether a server that is alone and holds no store may make one.
    pub keyring_auto_create: bool,
    /// `block-max`: the longest that a claim may wait, as it was written.
    block_max: String,
    /// The same in milliseconds.
    block_max_ms: u64,
    /// `ip-block-threshold`: an address with more failed look-ups within an hour is blocked; 0 is never.
    ip_block_threshold: u64,
    /// `ip-block-duration`: for how long, the first time, as it was written.
    ip_block_duration: String,
    /// The same in milliseconds.
    ip_block_duration_ms: u64,
    /// `usage`: whether calls are counted and logged.
    usage: bool,
    /// `usage-log-entries`: how many entries the log of a store has at the most; 0 for no log.
    usage_log_entries: u64,
    /// `usage-log-age`: how old they get, as it was written.
    usage_log_age: String,
    /// The same in milliseconds.
    usage_log_age_ms: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            keyring_file: String::new(),
            keyring_auto_create: false,
            block_max: "1h".to_owned(),
            block_max_ms: 60 * 60 * 1000,
            ip_block_threshold: 100,
            ip_block_duration: "24h".to_owned(),
            ip_block_duration_ms: 24 * 60 * 60 * 1000,
            usage: true,
            usage_log_entries: 100_000,
            usage_log_age: "30d".to_owned(),
            usage_log_age_ms: 30 * 24 * 60 * 60 * 1000,
        }
    }
}

impl Settings {
    fn set_block_max(&mut self, value: &str) -> Result<(), &'static str> {
        self.block_max_ms = parse::duration_with_unit_ms(value.as_bytes(), "block-max")
            .map_err(|_| "block-max is a duration with its unit: 500ms, 30s, 5m, 2h or 7d")?;
        self.block_max = value.to_owned();
        Ok(())
    }

    fn set_ip_block_duration(&mut self, value: &str) -> Result<(), &'static str> {
        self.ip_block_duration_ms = parse::duration_with_unit_ms(value.as_bytes(), "ip-block-duration")
            .ok()
            .filter(|ms| *ms <= MAX_AUTOMATIC_MS)
            .ok_or("ip-block-duration is a duration with its unit, at most 30d: 500ms, 30s, 5m, 2h or 7d")?;
        self.ip_block_duration = value.to_owned();
        Ok(())
    }

    fn set_usage_log_age(&mut self, value: &str) -> Result<(), &'static str> {
        self.usage_log_age_ms = parse::duration_with_unit_ms(value.as_bytes(), "usage-log-age")
            .map_err(|_| "usage-log-age is a duration with its unit, up to 366d: 30s, 5m, 2h or 7d")?;
        self.usage_log_age = value.to_owned();
        Ok(())
    }
}

static SETTINGS: Mutex<Option<Settings>> = Mutex::new(None);

/// The settings in force.
pub fn settings() -> Settings {
    lock().clone().unwrap_or_default()
}

/// The time that a claim asks to wait, if it may.
///
/// # Errors
/// [`Error::Invalid`] beyond the setting `block-max`.
pub fn checked_block_ms(block_ms: u64) -> Result<u64, Error> {
    let accepted = "500ms, 30s, 5m or 2h, at most the setting keyguard.block-max";
    let max_ms = lock().get_or_insert_default().block_max_ms;
    if block_ms <= max_ms { Ok(block_ms) } else { Err(Error::Invalid { what: "BLOCK", accepted }) }
}

/// More failed look-ups of an address than this within an hour are too many, unless its store says otherwise; 0 is never.
pub fn ip_block_threshold() -> u64 {
    lock().get_or_insert_default().ip_block_threshold
}

/// How long the first block lasts that follows on too many, in milliseconds.
pub fn ip_block_duration_ms() -> u64 {
    lock().get_or_insert_default().ip_block_duration_ms
}

/// Whether calls are counted and logged.
pub fn usage() -> bool {
    USAGE.load(Ordering::Relaxed)
}

/// How many entries the log of a store has at the most, 0 for no log; and how old they get, in milliseconds.
pub fn usage_log() -> (u64, u64) {
    let mut settings = lock();
    let settings = settings.get_or_insert_default();
    (settings.usage_log_entries, settings.usage_log_age_ms)
}

/// The most that `usage-log-entries` may say.
const MAX_LOG_ENTRIES: u64 = 10_000_000;

/// What `usage` says, for the path of every AUTH.
static USAGE: AtomicBool = AtomicBool::new(true);

fn lock() -> MutexGuard<'static, Option<Settings>> {
    SETTINGS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reads the arguments of `loadmodule`, then registers each setting with what they say as its default, so that the
/// configuration file can still override it, and lets the server apply its own lines.
///
/// # Errors
/// What is wrong with an argument, in words.
pub fn register(ctx: Ctx<'_>, arguments: &[Name<'_>]) -> Result<(), String> {
    *lock() = Some(from_arguments(arguments)?);
    let defaults = settings();
    USAGE.store(defaults.usage, Ordering::Relaxed);
    let usage_log_age = to_c_string(&defaults.usage_log_age);
    let fixed = raw::REDISMODULE_CONFIG_IMMUTABLE;
    let file = to_c_string(&defaults.keyring_file);
    let block_max = to_c_string(&defaults.block_max);
    let ip_block_duration = to_c_string(&defaults.ip_block_duration);
    // SAFETY: names and defaults end in NUL and are copied; the callbacks have the types that the server calls them with.
    let registered = unsafe {
        api!(RedisModule_RegisterStringConfig)(
            ctx.as_raw(),
            KEYRING_FILE.as_ptr(),
            file.as_ptr(),
            fixed,
            Some(text),
            Some(set_text),
            None,
            ptr::null_mut(),
        ) == ffi::OK
            && api!(RedisModule_RegisterStringConfig)(
                ctx.as_raw(),
                BLOCK_MAX.as_ptr(),
                block_max.as_ptr(),
                raw::REDISMODULE_CONFIG_DEFAULT,
                Some(text),
                Some(set_text),
                None,
                ptr::null_mut(),
            ) == ffi::OK
            && api!(RedisModule_RegisterStringConfig)(
                ctx.as_raw(),
                IP_BLOCK_DURATION.as_ptr(),
                ip_block_duration.as_ptr(),
                raw::REDISMODULE_CONFIG_DEFAULT,
                Some(text),
                Some(set_text),
                None,
                ptr::null_mut(),
            ) == ffi::OK
            && api!(RedisModule_RegisterNumericConfig)(
                ctx.as_raw(),
                c"ip-block-threshold".as_ptr(),
                defaults.ip_block_threshold as c_longlong,
                raw::REDISMODULE_CONFIG_DEFAULT,
                0,
                MAX_THRESHOLD as c_longlong,
                Some(threshold),
                Some(set_threshold),
                None,
                ptr::null_mut(),
            ) == ffi::OK
            && api!(RedisModule_RegisterBoolConfig)(
                ctx.as_raw(),
                c"keyring-auto-create".as_ptr(),
                c_int::from(defaults.keyring_auto_create),
                fixed,
                Some(keyring_auto_create),
                Some(set_keyring_auto_create),
                None,
                ptr::null_mut(),
            ) == ffi::OK
            && api!(RedisModule_RegisterStringConfig)(
                ctx.as_raw(),
                USAGE_LOG_AGE.as_ptr(),
                usage_log_age.as_ptr(),
                raw::REDISMODULE_CONFIG_DEFAULT,
                Some(text),
                Some(set_text),
                None,
                ptr::null_mut(),
            ) == ffi::OK
            && api!(RedisModule_RegisterNumericConfig)(
                ctx.as_raw(),
                c"usage-log-entries".as_ptr(),
                defaults.usage_log_entries as c_longlong,
                raw::REDISMODULE_CONFIG_DEFAULT,
                0,
                MAX_LOG_ENTRIES as c_longlong,
                Some(log_entries),
                Some(set_log_entries),
                None,
                ptr::null_mut(),
            ) == ffi::OK
            && api!(RedisModule_RegisterBoolConfig)(
                ctx.as_raw(),
                c"usage".as_ptr(),
                c_int::from(defaults.usage),
                raw::REDISMODULE_CONFIG_DEFAULT,
                Some(counts_usage),
                Some(set_counts_usage),
                None,
                ptr::null_mut(),
            ) == ffi::OK
            && api!(RedisModule_LoadConfigs)(ctx.as_raw()) == ffi::OK
    };
    if registered { Ok(()) } else { Err("a keyguard.* line of the configuration is not valid".to_owned()) }
}

fn from_arguments(arguments: &[Name<'_>]) -> Result<Settings, String> {
    const USAGE: &str = "loadmodule libkeyguard.so [keyring-file path] [keyring-auto-create yes|no] [block-max duration] \
                         [ip-block-threshold n] [ip-block-duration duration] [usage yes|no] \
                         [usage-log-entries n] [usage-log-age duration]";
    let mut settings = Settings::default();
    for pair in arguments.chunks(2) {
        let [name, value] = pair else { return Err(format!("an argument has no value; usage: {USAGE}")) };
        let value = std::str::from_utf8(value.bytes()).map_err(|_| "an argument is not UTF-8".to_owned())?;
        match name.bytes() {
            b"keyring-file" => settings.keyring_file = value.to_owned(),
            b"keyring-auto-create" => {
                settings.keyring_auto_create = match value {
                    "yes" => true,
                    "no" => false,
                    _ => return Err("keyring-auto-create is yes or no".to_owned()),
                };
            }
            b"block-max" => settings.set_block_max(value)?,
            b"ip-block-threshold" => {
                settings.ip_block_threshold = parse::unsigned(value.as_bytes())
                    .filter(|threshold| *threshold <= MAX_THRESHOLD)
                    .ok_or("ip-block-threshold is a whole number from 0 to 60000")?;
            }
            b"ip-block-duration" => settings.set_ip_block_duration(value)?,
            b"usage" => {
                settings.usage = match value {
                    "yes" => true,
                    "no" => false,
                    _ => return Err("usage is yes or no".to_owned()),
                };
            }
            b"usage-log-entries" => {
                settings.usage_log_entries = parse::unsigned(value.as_bytes())
                    .filter(|entries| *entries <= MAX_LOG_ENTRIES)
                    .ok_or("usage-log-entries is a whole number from 0 to 10000000")?;
            }
            b"usage-log-age" => settings.set_usage_log_age(value)?,
            _ => return Err(format!("unknown argument; usage: {USAGE}")),
        }
    }
    Ok(settings)
}

const KEYRING_FILE: &CStr = c"keyring-file";
const BLOCK_MAX: &CStr = c"block-max";
const IP_BLOCK_DURATION: &CStr = c"ip-block-duration";
const USAGE_LOG_AGE: &CStr = c"usage-log-age";

/// The server takes the string and leaves it to us: one is kept, and replaced when asked for again.
unsafe extern "C" fn text(name: *const c_char, _: *mut c_void) -> *mut raw::RedisModuleString {
    static LAST: Mutex<Option<Kept>> = Mutex::new(None);
    ffi::guarded(ptr::null_mut(), || {
        let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
        let settings = settings();
        // SAFETY: the server gives the name that the setting was registered under.
        let name = unsafe { CStr::from_ptr(name) };
        let value = if name == BLOCK_MAX {
            settings.block_max
        } else if name == IP_BLOCK_DURATION {
            settings.ip_block_duration
        } else if name == USAGE_LOG_AGE {
            settings.usage_log_age
        } else {
            settings.keyring_file
        };
        let value = OwnedString::new(value.as_bytes());
        let raw = value.as_raw();
        *last = Some(Kept { _value: value });
        raw
    })
}

struct Kept {
    _value: OwnedString,
}

// SAFETY: configuration is read on the main thread only; the mutex is there because a static needs one.
unsafe impl Send for Kept {}

unsafe extern "C" fn set_text(
    name: *const c_char,
    value: *mut raw::RedisModuleString,
    _: *mut c_void,
    error: *mut *mut raw::RedisModuleString,
) -> c_int {
    ffi::guarded(ffi::ERR, || {
        // SAFETY: name and value are valid during the call.
        let (name, value) = unsafe { (CStr::from_ptr(name), Name::new(value)) };
        let set = std::str::from_utf8(value.bytes()).map_err(|_| "the value is not UTF-8").and_then(|value| {
            let mut settings = lock();
            let settings = settings.get_or_insert_default();
            if name == BLOCK_MAX {
                return settings.set_block_max(value);
            }
            if name == IP_BLOCK_DURATION {
                return settings.set_ip_block_duration(value);
            }
            if name == USAGE_LOG_AGE {
                return settings.set_usage_log_age(value);
            }
            settings.keyring_file = value.to_owned();
            Ok(())
        });
        let Err(why) = set else { return ffi::OK };
        // SAFETY: the server frees the text that it is given.
        unsafe { *error = OwnedString::new(why.as_bytes()).into_raw() };
        ffi::ERR
    })
}

unsafe extern "C" fn threshold(_: *const c_char, _: *mut c_void) -> c_longlong {
    ffi::guarded(0, || ip_block_threshold() as c_longlong)
}

/// The server has made sure that the value lies within the bounds.
unsafe extern "C" fn set_threshold(
    _: *const c_char,
    value: c_longlong,
    _: *mut c_void,
    _: *mut *mut raw::RedisModuleString,
) -> c_int {
    ffi::guarded(ffi::ERR, || {
        lock().get_or_insert_default().ip_block_threshold = u64::try_from(value).unwrap_or(0);
        ffi::OK
    })
}

unsafe extern "C" fn log_entries(_: *const c_char, _: *mut c_void) -> c_longlong {
    ffi::guarded(0, || usage_log().0 as c_longlong)
}

/// The server has made sure that the value lies within the bounds.
unsafe extern "C" fn set_log_entries(
    _: *const c_char,
    value: c_longlong,
    _: *mut c_void,
    _: *mut *mut raw::RedisModuleString,
) -> c_int {
    ffi::guarded(ffi::ERR, || {
        lock().get_or_insert_default().usage_log_entries = u64::try_from(value).unwrap_or(0);
        ffi::OK
    })
}

unsafe extern "C" fn counts_usage(_: *const c_char, _: *mut c_void) -> c_int {
    ffi::guarded(0, || c_int::from(usage()))
}

unsafe extern "C" fn set_counts_usage(
    _: *const c_char,
    value: c_int,
    _: *mut c_void,
    _: *mut *mut raw::RedisModuleString,
) -> c_int {
    ffi::guarded(ffi::ERR, || {
        USAGE.store(value != 0, Ordering::Relaxed);
        crate::usage::set_counting(value != 0);
        ffi::OK
    })
}

unsafe extern "C" fn keyring_auto_create(_: *const c_char, _: *mut c_void) -> c_int {
    ffi::guarded(0, || c_int::from(settings().keyring_auto_create))
}

unsafe extern "C" fn set_keyring_auto_create(
    _: *const c_char,
    value: c_int,
    _: *mut c_void,
    _: *mut *mut raw::RedisModuleString,
) -> c_int {
    ffi::guarded(ffi::ERR, || {
        lock().get_or_insert_default().keyring_auto_create = value != 0;
        ffi::OK
    })
}
