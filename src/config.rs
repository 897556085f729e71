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
    /// `snapshot-dir`: the folder of snapshots; empty for none.
    snapshot_dir: String,
    /// `snapshot-every`: how often all stores are written there, as it was written; `off` for never.
    snapshot_every: String,
    /// The same in milliseconds.
    snapshot_every_ms: Option<u64>,
    /// `snapshot-keep`: how many of those of a store are kept.
    snapshot_keep: u64,
}

/// The most scheduled snapshots of one store that are kept.
const MAX_KEPT: u64 = 10_000;

/// The shortest time between scheduled snapshots.
const MIN_EVERY_MS: u64 = 1_000;

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
            snapshot_dir: String::new(),
            snapshot_every: OFF.to_owned(),
            snapshot_every_ms: None,
            snapshot_keep: 24,
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
}

impl Settings {
    fn set_usage_log_age(&mut self, value: &str) -> Result<(), &'static str> {
        self.usage_log_age_ms = parse::duration_with_unit_ms(value.as_bytes(), "usage-log-age")
            .map_err(|_| "usage-log-age is a duration with its unit, up to 366d: 30s, 5m, 2h or 7d")?;
        self.usage_log_age = value.to_owned();
        Ok(())
    }

    fn set_snapshot_every(&mut self, value: &str) -> Result<(), &'static str> {
        self.snapshot_every_ms = match value {
            OFF => None,
            _ => Some(
                parse::duration_with_unit_ms(value.as_bytes(), "snapshot-every")
                    .ok()
                    .filter(|ms| *ms >= MIN_EVERY_MS)
                    .ok_or(
                        "snapshot-every is off, or a duration with its unit, at least a second: 30s, 15m, 1h or 1d",
                    )?,
            ),
        };
        self.snapshot_every = value.to_owned();
        Ok(())
    }
}

/// What `snapshot-every` is when there is no schedule.
const OFF: &str = "off";

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

/// The folder of snapshots, if there is one.
#[cfg(feature = "snapshot")]
pub fn snapshot_dir() -> Option<String> {
    Some(settings().snapshot_dir).filter(|dir| !dir.is_empty())
}

/// How often all stores are written there, in milliseconds, if they are.
#[cfg(feature = "snapshot")]
pub fn snapshot_every_ms() -> Option<u64> {
    lock().get_or_insert_default().snapshot_every_ms
}

/// How many of those of a store are kept.
#[cfg(feature = "snapshot")]
pub fn snapshot_keep() -> usize {
    usize::try_from(lock().get_or_insert_default().snapshot_keep).unwrap_or(usize::MAX)
}

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
    let mut defaults = settings();
    USAGE.store(defaults.usage, Ordering::Relaxed);
    let fixed = raw::REDISMODULE_CONFIG_IMMUTABLE;
    let may_change = raw::REDISMODULE_CONFIG_DEFAULT;
    let texts = TEXTS.iter().all(|setting| {
        let default = to_c_string((setting.value)(&defaults));
        // SAFETY: name and default end in NUL and are copied; the callbacks have the types that the server calls them with.
        unsafe {
            api!(RedisModule_RegisterStringConfig)(
                ctx.as_raw(),
                setting.name.as_ptr(),
                default.as_ptr(),
                if setting.fixed { fixed } else { may_change },
                Some(text),
                Some(set_text),
                None,
                ptr::null_mut(),
            ) == ffi::OK
        }
    });
    let numbers = NUMBERS.iter().all(|setting| {
        // SAFETY: as above.
        unsafe {
            api!(RedisModule_RegisterNumericConfig)(
                ctx.as_raw(),
                setting.name.as_ptr(),
                *(setting.place)(&mut defaults) as c_longlong,
                may_change,
                setting.min as c_longlong,
                setting.max as c_longlong,
                Some(number),
                Some(set_number),
                None,
                ptr::null_mut(),
            ) == ffi::OK
        }
    });
    // SAFETY: as above.
    let registered = texts
        && numbers
        && unsafe {
            api!(RedisModule_RegisterBoolConfig)(
                ctx.as_raw(),
                c"keyring-auto-create".as_ptr(),
                c_int::from(defaults.keyring_auto_create),
                fixed,
                Some(keyring_auto_create),
                Some(set_keyring_auto_create),
                None,
                ptr::null_mut(),
            ) == ffi::OK
                && api!(RedisModule_RegisterBoolConfig)(
                    ctx.as_raw(),
                    c"usage".as_ptr(),
                    c_int::from(defaults.usage),
                    may_change,
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
                         [usage-log-entries n] [usage-log-age duration] [snapshot-dir path] [snapshot-every off|duration] [snapshot-keep n]";
    let mut settings = Settings::default();
    for pair in arguments.chunks(2) {
        let [name, value] = pair else { return Err(format!("an argument has no value; usage: {USAGE}")) };
        let value = std::str::from_utf8(value.bytes()).map_err(|_| "an argument is not UTF-8".to_owned())?;
        let name = name.bytes();
        if let Some(setting) = TEXTS.iter().find(|setting| setting.name.to_bytes() == name) {
            (setting.set)(&mut settings, value)?;
        } else if let Some(setting) = NUMBERS.iter().find(|setting| setting.name.to_bytes() == name) {
            let number = parse::unsigned(value.as_bytes());
            let within = number.filter(|number| (setting.min..=setting.max).contains(number));
            *(setting.place)(&mut settings) = within.ok_or_else(|| setting.refusal())?;
        } else if name == b"keyring-auto-create" {
            settings.keyring_auto_create = yes_or_no(value).ok_or("keyring-auto-create is yes or no")?;
        } else if name == b"usage" {
            settings.usage = yes_or_no(value).ok_or("usage is yes or no")?;
        } else {
            return Err(format!("unknown argument; usage: {USAGE}"));
        }
    }
    Ok(settings)
}

fn yes_or_no(value: &str) -> Option<bool> {
    match value {
        "yes" => Some(true),
        "no" => Some(false),
        _ => None,
    }
}

/// A setting that is a text, or something else written as one.
struct TextSetting {
    name: &'static CStr,
    /// Whether it stays as it was when the server started.
    fixed: bool,
    value: fn(&Settings) -> &str,
    set: fn(&mut Settings, &str) -> Result<(), &'static str>,
}

const TEXTS: &[TextSetting] = &[
    TextSetting {
        name: c"keyring-file",
        fixed: true,
        value: |settings| &settings.keyring_file,
        set: |settings, value| {
            settings.keyring_file = value.to_owned();
            Ok(())
        },
    },
    TextSetting {
        name: c"block-max",
        fixed: false,
        value: |settings| &settings.block_max,
        set: Settings::set_block_max,
    },
    TextSetting {
        name: c"ip-block-duration",
        fixed: false,
        value: |settings| &settings.ip_block_duration,
        set: Settings::set_ip_block_duration,
    },
    TextSetting {
        name: c"usage-log-age",
        fixed: false,
        value: |settings| &settings.usage_log_age,
        set: Settings::set_usage_log_age,
    },
    TextSetting {
        name: c"snapshot-dir",
        fixed: true,
        value: |settings| &settings.snapshot_dir,
        set: |settings, value| {
            settings.snapshot_dir = value.to_owned();
            Ok(())
        },
    },
    TextSetting {
        name: c"snapshot-every",
        fixed: false,
        value: |settings| &settings.snapshot_every,
        set: Settings::set_snapshot_every,
    },
];

/// A setting that is a number.
struct NumberSetting {
    name: &'static CStr,
    min: u64,
    max: u64,
    place: fn(&mut Settings) -> &mut u64,
}

impl NumberSetting {
    fn refusal(&self) -> String {
        format!("{} is a whole number from {} to {}", self.name.to_string_lossy(), self.min, self.max)
    }
}

const NUMBERS: &[NumberSetting] = &[
    NumberSetting {
        name: c"ip-block-threshold",
        min: 0,
        max: MAX_THRESHOLD,
        place: |settings| &mut settings.ip_block_threshold,
    },
    NumberSetting {
        name: c"usage-log-entries",
        min: 0,
        max: MAX_LOG_ENTRIES,
        place: |settings| &mut settings.usage_log_entries,
    },
    NumberSetting { name: c"snapshot-keep", min: 1, max: MAX_KEPT, place: |settings| &mut settings.snapshot_keep },
];

/// The server takes the string and leaves it to us: one is kept, and replaced when asked for again.
unsafe extern "C" fn text(name: *const c_char, _: *mut c_void) -> *mut raw::RedisModuleString {
    static LAST: Mutex<Option<Kept>> = Mutex::new(None);
    ffi::guarded(ptr::null_mut(), || {
        let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
        let settings = settings();
        // SAFETY: the server gives the name that the setting was registered under.
        let name = unsafe { CStr::from_ptr(name) };
        let setting = TEXTS.iter().find(|setting| setting.name == name);
        let value = OwnedString::new(setting.map_or("", |setting| (setting.value)(&settings)).as_bytes());
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
            let setting = TEXTS.iter().find(|setting| setting.name == name).ok_or("there is no such setting")?;
            (setting.set)(lock().get_or_insert_default(), value)
        });
        let Err(why) = set else { return ffi::OK };
        // SAFETY: the server frees the text that it is given.
        unsafe { *error = OwnedString::new(why.as_bytes()).into_raw() };
        ffi::ERR
    })
}

unsafe extern "C" fn number(name: *const c_char, _: *mut c_void) -> c_longlong {
    ffi::guarded(0, || {
        // SAFETY: the server gives the name that the setting was registered under.
        let name = unsafe { CStr::from_ptr(name) };
        let setting = NUMBERS.iter().find(|setting| setting.name == name);
        setting.map_or(0, |setting| *(setting.place)(lock().get_or_insert_default()) as c_longlong)
    })
}

/// The server has made sure that the value lies within the bounds.
unsafe extern "C" fn set_number(
    name: *const c_char,
    value: c_longlong,
    _: *mut c_void,
    _: *mut *mut raw::RedisModuleString,
) -> c_int {
    ffi::guarded(ffi::ERR, || {
        // SAFETY: as above.
        let name = unsafe { CStr::from_ptr(name) };
        let Some(setting) = NUMBERS.iter().find(|setting| setting.name == name) else { return ffi::ERR };
        *(setting.place)(lock().get_or_insert_default()) = u64::try_from(value).unwrap_or(setting.min);
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
