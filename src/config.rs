//! Settings: from the arguments of `loadmodule`, then from `keyguard.*` lines of the configuration file.

use std::ffi::{c_char, c_int, c_void};
use std::ptr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::ffi::{self, Ctx, Name, OwnedString, api, raw, to_c_string};

/// What can be set.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// `keyring-file`: where the keyring lies; empty for the environment or `.netrc`.
    pub keyring_file: String,
    /// `keyring-auto-create`: whether a server that is alone and holds no store may make one.
    pub keyring_auto_create: bool,
}

static SETTINGS: Mutex<Option<Settings>> = Mutex::new(None);

/// The settings in force.
pub fn settings() -> Settings {
    lock().clone().unwrap_or_default()
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
    let defaults = settings();
    let flags = raw::REDISMODULE_CONFIG_IMMUTABLE;
    let file = to_c_string(&defaults.keyring_file);
    // SAFETY: names and defaults end in NUL and are copied; the callbacks have the types that the server calls them with.
    let registered = unsafe {
        api!(RedisModule_RegisterStringConfig)(
            ctx.as_raw(),
            c"keyring-file".as_ptr(),
            file.as_ptr(),
            flags,
            Some(keyring_file),
            Some(set_keyring_file),
            None,
            ptr::null_mut(),
        ) == ffi::OK
            && api!(RedisModule_RegisterBoolConfig)(
                ctx.as_raw(),
                c"keyring-auto-create".as_ptr(),
                c_int::from(defaults.keyring_auto_create),
                flags,
                Some(keyring_auto_create),
                Some(set_keyring_auto_create),
                None,
                ptr::null_mut(),
            ) == ffi::OK
            && api!(RedisModule_LoadConfigs)(ctx.as_raw()) == ffi::OK
    };
    if registered { Ok(()) } else { Err("a keyguard.* line of the configuration is not valid".to_owned()) }
}

fn from_arguments(arguments: &[Name<'_>]) -> Result<Settings, String> {
    const USAGE: &str = "loadmodule libkeyguard.so [keyring-file path] [keyring-auto-create yes|no]";
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
            _ => return Err(format!("unknown argument; usage: {USAGE}")),
        }
    }
    Ok(settings)
}

/// The server takes the string and leaves it to us: one is kept, and replaced when asked for again.
unsafe extern "C" fn keyring_file(_: *const c_char, _: *mut c_void) -> *mut raw::RedisModuleString {
    static LAST: Mutex<Option<Kept>> = Mutex::new(None);
    ffi::guarded(ptr::null_mut(), || {
        let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
        let value = OwnedString::new(settings().keyring_file.as_bytes());
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

unsafe extern "C" fn set_keyring_file(
    _: *const c_char,
    value: *mut raw::RedisModuleString,
    _: *mut c_void,
    error: *mut *mut raw::RedisModuleString,
) -> c_int {
    ffi::guarded(ffi::ERR, || {
        // SAFETY: the value is valid during the call.
        let Ok(path) = std::str::from_utf8(unsafe { Name::new(value) }.bytes()) else {
            // SAFETY: the server frees the text that it is given.
            unsafe { *error = OwnedString::new(b"keyring-file is not UTF-8").into_raw() };
            return ffi::ERR;
        };
        lock().get_or_insert_default().keyring_file = path.to_owned();
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
