//! The native types: one set of callbacks for every value that knows how to become bytes and back.
//!
//! Buckets ([`WindowLog`]), the hot state of records and organizations ([`Meters`]), pools of vault keys ([`Pool`]), address
//! rules ([`Rules`]), what addresses claimed ([`AddressLogs`]) and what was counted ([`StoreStats`], [`KeyDays`]) live in the
//! keyspace as values of our own. Each is saved as one string of its own versioned encoding, which one total function reads back: a
//! crafted dump gives an error, never a crash.

use std::ffi::{CStr, c_int, c_void};
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

use keyguard_core::address::AddressLogs;
use keyguard_core::effect::{Effect, WholeValue};
use keyguard_core::ip::Rules;
use keyguard_core::meters::Meters;
use keyguard_core::pool::Pool;
use keyguard_core::usage::{KeyDays, StoreStats};
use keyguard_core::window::WindowLog;
use keyguard_core::{Error, Result};

use crate::effects::APPLY;
use crate::ffi::{self, Ctx, Name, api, raw};
use crate::waiting;

/// Where the server's handle of a native type is kept.
pub struct Slot(AtomicPtr<raw::RedisModuleType>);

impl Slot {
    const fn empty() -> Self {
        Self(AtomicPtr::new(ptr::null_mut()))
    }

    /// The handle; null before the type is registered.
    pub fn get(&self) -> *mut raw::RedisModuleType {
        self.0.load(Ordering::Relaxed)
    }
}

/// A value that a key can hold.
pub trait Native: Sized + Clone + 'static {
    /// Nine characters, unique among all modules, for ever.
    const NAME: &'static CStr;

    /// Where its handle is kept.
    fn slot() -> &'static Slot;

    /// The value as bytes: equal values give equal bytes.
    fn to_bytes(&self) -> Vec<u8>;

    /// Reads such bytes, and refuses all others.
    fn from_bytes(bytes: &[u8]) -> Option<Self>;

    /// The value as an effect carries it.
    fn whole(bytes: &[u8]) -> WholeValue<'_>;

    /// Bytes of memory held.
    fn memory(&self) -> usize;

    /// How many allocations freeing it costs.
    fn effort(&self) -> usize;

    /// Who is to know when a value is about to be taken from its key, in this database: deleted, expired, evicted, renamed away
    /// or replaced; not when a whole database is emptied. It may not touch the keyspace.
    const UNLINKED: Option<fn(c_int, Name<'_>)> = None;
}

macro_rules! native {
    ($type:ty, $name:literal, $whole:ident, $self:ident, $to_bytes:expr, $from_bytes:expr, $effort:expr
     $(, unlinked: $unlinked:expr)?) => {
        impl Native for $type {
            const NAME: &'static CStr = $name;
            $(const UNLINKED: Option<fn(c_int, Name<'_>)> = Some($unlinked);)?

            fn slot() -> &'static Slot {
                static SLOT: Slot = Slot::empty();
                &SLOT
            }

            fn to_bytes(&$self) -> Vec<u8> {
                $to_bytes
            }

            fn from_bytes(bytes: &[u8]) -> Option<Self> {
                $from_bytes(bytes)
            }

            fn whole(bytes: &[u8]) -> WholeValue<'_> {
                WholeValue::$whole(bytes)
            }

            fn memory(&$self) -> usize {
                $self.memory_bytes()
            }

            fn effort(&$self) -> usize {
                $effort
            }
        }
    };
}

native!(
    WindowLog, c"kgwindow1", Bucket, self, self.encode(), WindowLog::decode, self.allocations(),
    unlinked: waiting::unlinked
);
native!(Meters, c"kgmeters1", Meters, self, self.encode(), Meters::decode, self.allocations());
native!(Pool, c"kgkeypool", Pool, self, self.encode(), Pool::decode, self.allocations(), unlinked: waiting::unlinked);
native!(Rules, c"kgiprules", Rules, self, self.encode(), |bytes| Rules::decode(bytes).ok(), self.allocations());
native!(AddressLogs, c"kgaddress", Address, self, self.encode(), AddressLogs::decode, self.allocations());
native!(StoreStats, c"kgstatist", Stats, self, self.encode(), StoreStats::decode, self.allocations());
native!(KeyDays, c"kgkeydays", Days, self, self.encode(), KeyDays::decode, self.allocations());

/// Registers all native types.
///
/// # Errors
/// [`Error::Internal`] when the server refuses one.
pub fn register(ctx: Ctx<'_>) -> Result<()> {
    register_type::<WindowLog>(ctx)?;
    register_type::<Meters>(ctx)?;
    register_type::<Pool>(ctx)?;
    register_type::<Rules>(ctx)?;
    register_type::<AddressLogs>(ctx)?;
    register_type::<StoreStats>(ctx)?;
    register_type::<KeyDays>(ctx)
}

fn register_type<T: Native>(ctx: Ctx<'_>) -> Result<()> {
    let mut methods = raw::RedisModuleTypeMethods {
        version: u64::from(raw::REDISMODULE_TYPE_METHOD_VERSION),
        rdb_load: Some(rdb_load::<T>),
        rdb_save: Some(rdb_save::<T>),
        aof_rewrite: Some(aof_rewrite::<T>),
        mem_usage: Some(mem_usage::<T>),
        digest: Some(digest::<T>),
        free: Some(free::<T>),
        aux_load: None,
        aux_save: None,
        aux_save_triggers: 0,
        free_effort: Some(free_effort::<T>),
        unlink: None,
        copy: Some(copy::<T>),
        // A value is a tree of allocations that Rust owns: the server's defragmenter, which moves single blocks, cannot help.
        defrag: None,
        mem_usage2: None,
        free_effort2: None,
        unlink2: T::UNLINKED.map(|_| unlink::<T> as unsafe extern "C" fn(_, _)),
        copy2: None,
        aux_save2: None,
    };
    // SAFETY: context, name and methods are valid; the server copies the methods.
    let handle =
        unsafe { api!(RedisModule_CreateDataType)(ctx.as_raw(), T::NAME.as_ptr(), ENCODING_VERSION, &raw mut methods) };
    if handle.is_null() {
        return Err(Error::Internal);
    }
    T::slot().0.store(handle, Ordering::Relaxed);
    Ok(())
}

/// The encoding version that the server stores beside the type. The bytes carry versions of their own.
const ENCODING_VERSION: c_int = 0;

unsafe extern "C" fn rdb_load<T: Native>(io: *mut raw::RedisModuleIO, version: c_int) -> *mut c_void {
    ffi::guarded(ptr::null_mut(), || {
        if version != ENCODING_VERSION {
            return ptr::null_mut();
        }
        let mut len = 0;
        // SAFETY: `io` is valid during the call.
        let start = unsafe { api!(RedisModule_LoadStringBuffer)(io, &mut len) };
        // SAFETY: as above. A short or mistyped payload is told of here, because the module handles such errors itself.
        if start.is_null() || unsafe { api!(RedisModule_IsIOError)(io) } != 0 {
            return ptr::null_mut();
        }
        // SAFETY: the server gave a buffer of this length, which is ours to free.
        let value = T::from_bytes(unsafe { std::slice::from_raw_parts(start.cast(), len) });
        // SAFETY: as above; the value does not borrow from it.
        unsafe { api!(RedisModule_Free)(start.cast()) };
        value.map_or(ptr::null_mut(), |value| Box::into_raw(Box::new(value)).cast())
    })
}

unsafe extern "C" fn rdb_save<T: Native>(io: *mut raw::RedisModuleIO, value: *mut c_void) {
    ffi::guarded((), || {
        // SAFETY: the server hands out what a key of this type holds.
        let bytes = unsafe { &*value.cast::<T>() }.to_bytes();
        // SAFETY: pointer and length describe the vector.
        unsafe { api!(RedisModule_SaveStringBuffer)(io, bytes.as_ptr().cast(), bytes.len()) };
    });
}

unsafe extern "C" fn aof_rewrite<T: Native>(
    io: *mut raw::RedisModuleIO,
    key: *mut raw::RedisModuleString,
    value: *mut c_void,
) {
    ffi::guarded((), || {
        // SAFETY: the server hands out what a key of this type holds.
        let bytes = unsafe { &*value.cast::<T>() }.to_bytes();
        let Ok(effect) = (Effect::Whole { value: T::whole(&bytes) }).encode() else { return };
        // SAFETY: the format takes a string object, then bytes with their length. The server writes the expiry itself.
        unsafe {
            api!(RedisModule_EmitAOF)(
                io,
                APPLY.as_ptr(),
                c"sb".as_ptr(),
                key,
                effect.as_ptr().cast::<std::ffi::c_char>(),
                effect.len(),
            );
        }
    });
}

unsafe extern "C" fn mem_usage<T: Native>(value: *const c_void) -> usize {
    // SAFETY: the server hands out what a key of this type holds.
    ffi::guarded(0, || unsafe { &*value.cast::<T>() }.memory())
}

unsafe extern "C" fn digest<T: Native>(digest: *mut raw::RedisModuleDigest, value: *mut c_void) {
    ffi::guarded((), || {
        // SAFETY: the server hands out what a key of this type holds.
        let bytes = unsafe { &*value.cast::<T>() }.to_bytes();
        // SAFETY: the digest is valid during the call; pointer and length describe the vector.
        unsafe {
            api!(RedisModule_DigestAddStringBuffer)(digest, bytes.as_ptr().cast(), bytes.len());
            api!(RedisModule_DigestEndSequence)(digest);
        }
    });
}

/// May run on a background thread: it touches nothing but the value.
unsafe extern "C" fn free<T: Native>(value: *mut c_void) {
    // SAFETY: the value came from `Box::into_raw`, and the server frees it once.
    drop(unsafe { Box::from_raw(value.cast::<T>()) });
}

unsafe extern "C" fn unlink<T: Native>(key: *mut raw::RedisModuleKeyOptCtx, _: *const c_void) {
    ffi::guarded((), || {
        // SAFETY: the server's description of the key is valid during the call.
        let (database, name) =
            unsafe { (api!(RedisModule_GetDbIdFromOptCtx)(key), api!(RedisModule_GetKeyNameFromOptCtx)(key)) };
        if let Some(unlinked) = T::UNLINKED
            && !name.is_null()
        {
            // SAFETY: the name lives as long; nobody changes it.
            unlinked(database, unsafe { Name::new(name.cast_mut()) });
        }
    });
}

unsafe extern "C" fn free_effort<T: Native>(_: *mut raw::RedisModuleString, value: *const c_void) -> usize {
    // SAFETY: the server hands out what a key of this type holds. At least 1: 0 would mean "always in the background".
    ffi::guarded(1, || unsafe { &*value.cast::<T>() }.effort().max(1))
}

unsafe extern "C" fn copy<T: Native>(
    _: *mut raw::RedisModuleString,
    _: *mut raw::RedisModuleString,
    value: *const c_void,
) -> *mut c_void {
    // SAFETY: the server hands out what a key of this type holds, and owns the copy.
    ffi::guarded(ptr::null_mut(), || Box::into_raw(Box::new(unsafe { &*value.cast::<T>() }.clone())).cast())
}
