//! The border to the server: safe wrappers over the raw module API, the panic guard and the allocator.
//!
//! Handlers above this file see slices, owned strings and typed keys. The wrappers of the `redis-module` crate are not used:
//! several allocate per argument, some read the wrong thing (a message as a format string, a count as a status), and a panic in
//! its trampolines ends the server.

use std::alloc::{GlobalAlloc, Layout};
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::sync::OnceLock;

use keyguard_core::{Error, Result};
pub use redis_module::raw;

use crate::native::Native;

/// A function of the module API that every server we load on has.
macro_rules! api {
    ($name:ident) => {
        // Reading the table is unsafe, as calling what it holds is: this stands in the caller's unsafe block. The table is filled
        // once, before OnLoad runs our code, and never written again.
        match $crate::ffi::raw::$name {
            Some(function) => function,
            None => $crate::ffi::missing(stringify!($name)),
        }
    };
}
pub(crate) use api;

/// A function of the module API that only some servers have.
macro_rules! optional_api {
    ($name:ident) => {
        // SAFETY: the table is filled once, before OnLoad runs our code, and never written again.
        unsafe { $crate::ffi::raw::$name }
    };
}
pub(crate) use optional_api;

#[cold]
pub(crate) fn missing(name: &'static str) -> ! {
    panic!("the server lacks {name}")
}

/// The server's status codes.
pub const OK: c_int = raw::REDISMODULE_OK as c_int;
/// See [`OK`].
pub const ERR: c_int = raw::REDISMODULE_ERR as c_int;

/// Memory comes from the server, so that it counts in `used_memory` and against `maxmemory`.
///
/// The crate's own allocator lacks `realloc` and `alloc_zeroed`: growing a vector would always copy.
pub struct ServerAllocator;

/// What `malloc` and the server's allocators align to on the 64-bit platforms that servers run on.
const MALLOC_ALIGN: usize = 16;

impl ServerAllocator {
    /// The size to ask for so that the result is aligned: size classes of jemalloc are multiples of their alignment.
    fn size(layout: Layout) -> usize {
        if layout.align() <= MALLOC_ALIGN { layout.size() } else { layout.size().next_multiple_of(layout.align()) }
    }
}

// SAFETY: the server's functions keep the contract of malloc, realloc, calloc and free; they end the process rather than return
// null. Alignments above that of malloc are met by rounding the size up, as redis-module's allocator does.
unsafe impl GlobalAlloc for ServerAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps the contract of GlobalAlloc.
        unsafe { raw::RedisModule_Alloc.map_or(ptr::null_mut(), |alloc| alloc(Self::size(layout)).cast()) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, _: Layout) {
        // SAFETY: the pointer came from the same allocator.
        if let Some(free) = unsafe { raw::RedisModule_Free } {
            // SAFETY: as above.
            unsafe { free(pointer.cast()) }
        }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        let layout = Layout::from_size_align(new_size, layout.align()).unwrap_or(layout);
        // SAFETY: the pointer came from the same allocator, and the size is rounded as in `alloc`.
        unsafe {
            raw::RedisModule_Realloc
                .map_or(ptr::null_mut(), |realloc| realloc(pointer.cast(), Self::size(layout)).cast())
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps the contract of GlobalAlloc.
        unsafe { raw::RedisModule_Calloc.map_or(ptr::null_mut(), |calloc| calloc(1, Self::size(layout)).cast()) }
    }
}

/// A call from the server: what commands, timers and load functions do everything through.
///
/// It lives as long as the call, and stays on its thread.
#[derive(Clone, Copy)]
pub struct Ctx<'c> {
    raw: *mut raw::RedisModuleCtx,
    call: PhantomData<&'c *mut ()>,
}

/// The severity of a log line.
#[derive(Clone, Copy)]
pub enum Level {
    /// What an operator should know.
    Notice,
    /// What an operator should act on.
    Warning,
}

/// What kind of value a key holds.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// No such key.
    Empty,
    /// A string.
    Text,
    /// A hash.
    Hash,
    /// A stream.
    Stream,
    /// A value of a module: ours or another's.
    Module,
    /// Anything else.
    Other,
}

impl<'c> Ctx<'c> {
    /// Wraps the context of a call.
    ///
    /// # Safety
    /// `raw` must be the context that the server gave to the call that is running, on this thread, for `'c`.
    pub unsafe fn new(raw: *mut raw::RedisModuleCtx) -> Self {
        Self { raw, call: PhantomData }
    }

    /// The raw context, for calls that only one place makes.
    pub fn as_raw(self) -> *mut raw::RedisModuleCtx {
        self.raw
    }

    /// The server's clock, in unix milliseconds.
    pub fn milliseconds(self) -> u64 {
        // SAFETY: takes nothing.
        u64::try_from(unsafe { api!(RedisModule_Milliseconds)() }).unwrap_or(0)
    }

    /// Whether all of these context flags (`REDISMODULE_CTX_FLAGS_*`) are set.
    pub fn has_flags(self, flags: u32) -> bool {
        // SAFETY: the context is valid during the call.
        unsafe { api!(RedisModule_GetContextFlags)(self.raw) as u32 & flags == flags }
    }

    /// Whether a write now is one that replicas would get: this is a primary, and nobody has paused writes. Outside of a
    /// command that is registered as one that writes, the server does not ask.
    pub fn may_write(self) -> bool {
        let forbidden = raw::REDISMODULE_CTX_FLAGS_LOADING | raw::REDISMODULE_CTX_FLAGS_READONLY;
        // SAFETY: the context is valid; the other function takes nothing.
        unsafe {
            let flags = api!(RedisModule_GetContextFlags)(self.raw) as u32;
            flags & raw::REDISMODULE_CTX_FLAGS_MASTER != 0
                && flags & forbidden == 0
                && api!(RedisModule_AvoidReplicaTraffic)() == 0
        }
    }

    /// What a command that adds data is refused with when memory is full.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn refuse_if_out_of_memory(self) -> Result<()> {
        if self.has_flags(raw::REDISMODULE_CTX_FLAGS_OOM) { Err(Error::OutOfMemory) } else { Ok(()) }
    }

    /// The database that the client has selected.
    pub fn selected_database(self) -> c_int {
        // SAFETY: the context is valid.
        unsafe { api!(RedisModule_GetSelectedDb)(self.raw) }
    }

    /// Selects a database, for what this context does from now on; it must be one that the server has.
    pub fn select_database(self, database: c_int) {
        // SAFETY: the context is valid.
        unsafe { api!(RedisModule_SelectDb)(self.raw, database) };
    }

    /// Hides an argument of the running command from MONITOR and the slow logs.
    pub fn redact(self, position: usize) {
        if let Some(redact) = optional_api!(RedisModule_RedactClientCommandArgument) {
            // SAFETY: the context is valid; a position out of range is refused by the server.
            unsafe { redact(self.raw, position as c_int) };
        }
    }

    /// Writes a line to the server's log.
    pub fn log(self, level: Level, message: &str) {
        log_to(self.raw, level, message);
    }

    /// Opens a key to read it.
    pub fn read(self, name: Name<'_>) -> Key<'c> {
        self.open(name, raw::REDISMODULE_READ as c_int)
    }

    /// Opens a key to change it. Opening alone marks nothing as changed: see [`Key::touched`].
    pub fn change(self, name: Name<'_>) -> Key<'c> {
        self.open(name, (raw::REDISMODULE_READ | raw::REDISMODULE_WRITE) as c_int)
    }

    fn open(self, name: Name<'_>, mode: c_int) -> Key<'c> {
        // SAFETY: context and name are valid; the handle is closed when the key is dropped, before the call ends.
        let raw = unsafe { api!(RedisModule_OpenKey)(self.raw, name.raw, mode) };
        Key { raw, call: PhantomData }
    }

    /// Tells WATCH and client-side caches that a key changed.
    pub fn signal_modified(self, name: Name<'_>) {
        // SAFETY: context and name are valid.
        unsafe { api!(RedisModule_SignalModifiedKey)(self.raw, name.raw) };
    }

    /// Sends a keyspace notification of the module class.
    pub fn notify(self, event: &CStr, name: Name<'_>) {
        // SAFETY: context, event and name are valid.
        unsafe {
            api!(RedisModule_NotifyKeyspaceEvent)(self.raw, raw::REDISMODULE_NOTIFY_MODULE, event.as_ptr(), name.raw)
        };
    }

    /// Sends `command name payload` to replicas and the append-only file, without running it here.
    pub fn replicate(self, command: &CStr, name: Name<'_>, payload: &[u8]) {
        // SAFETY: the format takes a string object, then bytes with their length.
        unsafe {
            api!(RedisModule_Replicate)(
                self.raw,
                command.as_ptr(),
                c"sb".as_ptr(),
                name.raw,
                payload.as_ptr().cast::<c_char>(),
                payload.len(),
            )
        };
    }

    /// Sends the running command on as it came.
    pub fn replicate_verbatim(self) {
        // SAFETY: the context is valid.
        unsafe { api!(RedisModule_ReplicateVerbatim)(self.raw) };
    }

    /// Runs one of the server's own commands; with `!` in `flags` it reaches replicas and the append-only file.
    pub fn call(self, command: &CStr, flags: &CStr, args: &[&[u8]]) -> CallReply {
        let strings: Vec<OwnedString> = args.iter().map(|arg| OwnedString::new(arg)).collect();
        let mut pointers: Vec<*mut raw::RedisModuleString> = strings.iter().map(|string| string.0).collect();
        // SAFETY: the format ends in `v`, which takes an array of string objects and its length; both outlive the call.
        let raw = unsafe {
            api!(RedisModule_Call)(self.raw, command.as_ptr(), flags.as_ptr(), pointers.as_mut_ptr(), pointers.len())
        };
        CallReply(raw)
    }

    /// Answers with an integer.
    pub fn reply_integer(self, value: i64) {
        // SAFETY: the context is valid.
        unsafe { api!(RedisModule_ReplyWithLongLong)(self.raw, value) };
    }

    /// Answers with a number that may have decimals, two at the most: a double for RESP3 clients, its text for others. Some servers
    /// write more digits than it has into a RESP2 reply of their own.
    pub fn reply_decimal(self, value: f64) {
        if self.has_flags(raw::REDISMODULE_CTX_FLAGS_RESP3) {
            // SAFETY: the context is valid.
            unsafe { api!(RedisModule_ReplyWithDouble)(self.raw, value) };
        } else {
            self.reply_bytes(value.to_string().as_bytes());
        }
    }

    /// Answers with a bulk string.
    pub fn reply_bytes(self, bytes: &[u8]) {
        // SAFETY: pointer and length describe the slice, which the server copies.
        unsafe { api!(RedisModule_ReplyWithStringBuffer)(self.raw, bytes.as_ptr().cast(), bytes.len()) };
    }

    /// Answers with a status.
    pub fn reply_status(self, text: &'static CStr) {
        // SAFETY: the context is valid, the text ends in NUL.
        unsafe { api!(RedisModule_ReplyWithSimpleString)(self.raw, text.as_ptr()) };
    }

    /// Begins an array of `len` replies.
    pub fn reply_array(self, len: usize) {
        // SAFETY: the context is valid.
        unsafe { api!(RedisModule_ReplyWithArray)(self.raw, len as std::ffi::c_long) };
    }

    /// Begins a map of `len` pairs; a flat array for RESP2 clients.
    pub fn reply_map(self, len: usize) {
        // SAFETY: the context is valid.
        unsafe { api!(RedisModule_ReplyWithMap)(self.raw, len as std::ffi::c_long) };
    }

    /// Answers with an error.
    pub fn reply_error(self, error: &Error) {
        self.reply_error_text(&error.to_string());
    }

    /// Answers with an error in other words than ours: the server's.
    pub fn reply_error_text(self, text: &str) {
        let text = to_c_string(text);
        // SAFETY: the context is valid, the text ends in NUL and is copied.
        unsafe { api!(RedisModule_ReplyWithError)(self.raw, text.as_ptr()) };
    }

    /// One field of a section of INFO.
    pub fn server_info(self, section: &CStr, field: &CStr) -> Option<String> {
        // SAFETY: context, section and field are valid; the data is freed after the field was copied.
        unsafe {
            let data = api!(RedisModule_GetServerInfo)(self.raw, section.as_ptr());
            let value = api!(RedisModule_ServerInfoGetFieldC)(data, field.as_ptr());
            let value = (!value.is_null()).then(|| CStr::from_ptr(value).to_string_lossy().into_owned());
            api!(RedisModule_FreeServerInfo)(self.raw, data);
            value
        }
    }
}

/// Tells the server what the module can do; it keeps only the last that it was told.
pub fn set_module_options(ctx: Ctx<'_>, options: c_int) {
    // SAFETY: the context is valid.
    unsafe { api!(RedisModule_SetModuleOptions)(ctx.raw, options) };
}

/// Writes a line to the server's log; the context may be null.
pub fn log_to(ctx: *mut raw::RedisModuleCtx, level: Level, message: &str) {
    let level = match level {
        Level::Notice => c"notice",
        Level::Warning => c"warning",
    };
    let message = to_c_string(message);
    // SAFETY: the message is an argument of a fixed format, never the format itself.
    unsafe { api!(RedisModule_Log)(ctx, level.as_ptr(), c"%s".as_ptr(), message.as_ptr()) };
}

/// A text for the server; a NUL inside it, which none of ours has, becomes a space.
pub fn to_c_string(text: &str) -> CString {
    CString::new(text.replace('\0', " ")).unwrap_or_default()
}

/// The name of a key, as a string object of the server: an argument of the command, or an [`OwnedString`].
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Name<'s> {
    raw: *mut raw::RedisModuleString,
    lives: PhantomData<&'s ()>,
}

impl<'s> Name<'s> {
    /// Wraps a string object of the server.
    ///
    /// # Safety
    /// `raw` must be valid for `'s`.
    pub unsafe fn new(raw: *mut raw::RedisModuleString) -> Self {
        Self { raw, lives: PhantomData }
    }

    /// Its bytes.
    pub fn bytes(self) -> &'s [u8] {
        let mut len = 0;
        // SAFETY: the object is valid for 's, and strings that a command holds do not change.
        unsafe {
            let start = api!(RedisModule_StringPtrLen)(self.raw, &mut len);
            std::slice::from_raw_parts(start.cast(), len)
        }
    }
}

/// A string object that we made.
pub struct OwnedString(*mut raw::RedisModuleString);

impl OwnedString {
    /// A copy of `bytes`.
    pub fn new(bytes: &[u8]) -> Self {
        // SAFETY: without a context the object belongs to us; pointer and length describe the slice.
        Self(unsafe { api!(RedisModule_CreateString)(ptr::null_mut(), bytes.as_ptr().cast(), bytes.len()) })
    }

    /// The raw object, which stays ours.
    pub fn as_raw(&self) -> *mut raw::RedisModuleString {
        self.0
    }

    /// The raw object, which the caller hands to the server for good.
    pub fn into_raw(self) -> *mut raw::RedisModuleString {
        std::mem::ManuallyDrop::new(self).0
    }

    /// The object as the name of a key.
    pub fn name(&self) -> Name<'_> {
        Name { raw: self.0, lives: PhantomData }
    }
}

impl Drop for OwnedString {
    fn drop(&mut self) {
        // SAFETY: we own the object.
        unsafe { api!(RedisModule_FreeString)(ptr::null_mut(), self.0) };
    }
}

/// The name of a field that is read of many hashes: the server's object for it is made once.
pub struct FieldName {
    name: &'static str,
    object: OnceLock<Kept>,
}

struct Kept(OwnedString);

// SAFETY: nobody changes the object, and commands, which alone use it, run on one thread.
unsafe impl Send for Kept {}
// SAFETY: as above.
unsafe impl Sync for Kept {}

impl FieldName {
    /// A field of this name.
    pub const fn new(name: &'static str) -> Self {
        Self { name, object: OnceLock::new() }
    }

    /// The name.
    pub const fn as_str(&self) -> &'static str {
        self.name
    }

    fn object(&self) -> Name<'_> {
        self.object.get_or_init(|| Kept(OwnedString::new(self.name.as_bytes()))).0.name()
    }
}

/// An open key.
pub struct Key<'c> {
    /// Null for a key that does not exist, when opened to read.
    raw: *mut raw::RedisModuleKey,
    call: PhantomData<&'c ()>,
}

impl Key<'_> {
    /// What the key holds.
    pub fn kind(&self) -> Kind {
        // SAFETY: the server takes a null handle as an empty key.
        match unsafe { api!(RedisModule_KeyType)(self.raw) } as isize {
            raw::REDISMODULE_KEYTYPE_EMPTY => Kind::Empty,
            raw::REDISMODULE_KEYTYPE_STRING => Kind::Text,
            raw::REDISMODULE_KEYTYPE_HASH => Kind::Hash,
            raw::REDISMODULE_KEYTYPE_MODULE => Kind::Module,
            raw::REDISMODULE_KEYTYPE_STREAM => Kind::Stream,
            _ => Kind::Other,
        }
    }

    /// The value of a native type; `None` if the key does not exist.
    ///
    /// # Errors
    /// [`Error::WrongType`] if it holds anything else.
    pub fn native<T: Native>(&self) -> Result<Option<&T>> {
        // SAFETY: the pointer is what a value of this type was stored as; nothing changes it while the key is borrowed.
        Ok(self.native_pointer::<T>()?.map(|value| unsafe { &*value }))
    }

    /// The value of a native type, to change; `None` if the key does not exist.
    ///
    /// # Errors
    /// [`Error::WrongType`] if it holds anything else.
    pub fn native_mut<T: Native>(&mut self) -> Result<Option<&mut T>> {
        // SAFETY: as in `native`; commands run one at a time, and a handler opens each key once.
        Ok(self.native_pointer::<T>()?.map(|value| unsafe { &mut *value }))
    }

    fn native_pointer<T: Native>(&self) -> Result<Option<*mut T>> {
        if self.raw.is_null() {
            return Ok(None);
        }
        // SAFETY: the handle is open; for keys of other kinds the type is null.
        let of = unsafe { api!(RedisModule_ModuleTypeGetType)(self.raw) };
        if of.is_null() {
            return if self.kind() == Kind::Empty { Ok(None) } else { Err(Error::WrongType) };
        }
        if of != T::slot().get() {
            return Err(Error::WrongType);
        }
        // SAFETY: the key holds a value of our type.
        let value = unsafe { api!(RedisModule_ModuleTypeGetValue)(self.raw) };
        Ok((!value.is_null()).then(|| value.cast::<T>()))
    }

    /// Stores a value in a key that does not exist yet, and hands it out.
    pub fn put<T: Native>(&mut self, value: T) -> &mut T {
        let value = Box::into_raw(Box::new(value));
        // SAFETY: the key was opened to change it; the server owns the value from now on and frees it by the type's `free`.
        unsafe {
            api!(RedisModule_ModuleTypeSetValue)(self.raw, T::slot().get(), value.cast::<c_void>());
            &mut *value
        }
    }

    /// Sets when the key expires, in unix milliseconds.
    pub fn expire_at(&self, at_ms: u64) {
        // SAFETY: the key was opened to change it and exists.
        unsafe { api!(RedisModule_SetAbsExpire)(self.raw, i64::try_from(at_ms).unwrap_or(i64::MAX)) };
    }

    /// Deletes the key.
    pub fn delete(&self) {
        // SAFETY: the key was opened to change it.
        unsafe { api!(RedisModule_DeleteKey)(self.raw) };
    }

    /// Copies one field of a hash; `None` if there is none.
    ///
    /// # Errors
    /// [`Error::WrongType`] unless the key holds a hash or nothing.
    pub fn hash_field(&self, field: &CStr) -> Result<Option<OwnedString>> {
        self.hash_get(raw::REDISMODULE_HASH_CFIELDS, field.as_ptr().cast())
    }

    /// As [`hash_field`](Self::hash_field), for a field that is read of many hashes: the server makes no object of its name.
    ///
    /// # Errors
    /// As there.
    pub fn hash_field_named(&self, field: &FieldName) -> Result<Option<OwnedString>> {
        self.hash_get(raw::REDISMODULE_HASH_NONE, field.object().raw.cast())
    }

    /// `field` is a C string or a string object, as the flags say.
    fn hash_get(&self, flags: u32, field: *const c_void) -> Result<Option<OwnedString>> {
        match self.kind() {
            Kind::Empty => return Ok(None),
            Kind::Hash => {}
            _ => return Err(Error::WrongType),
        }
        let mut value: *mut raw::RedisModuleString = ptr::null_mut();
        // SAFETY: the arguments are a field's name, of the kind that the flags say, where its value goes, and the end mark.
        unsafe { api!(RedisModule_HashGet)(self.raw, flags as c_int, field, &raw mut value, ptr::null::<c_char>()) };
        // Not `then_some`: an object around a null pointer must not even be made.
        Ok((!value.is_null()).then(|| OwnedString(value)))
    }

    /// Sets one field of the hash that the key holds, of which it was made sure. The caller replicates it.
    pub fn set_hash_field(&self, field: &FieldName, value: &[u8]) {
        let value = OwnedString::new(value);
        // SAFETY: the key was opened to change it; the arguments are a field's name, its value, which the server copies or
        // retains, and the end mark.
        unsafe {
            api!(RedisModule_HashSet)(
                self.raw,
                raw::REDISMODULE_HASH_NONE as c_int,
                field.object().raw,
                value.as_raw(),
                ptr::null::<c_char>(),
            )
        };
    }

    /// Takes the key's expiry away.
    pub fn persist(&self) {
        // SAFETY: the key was opened to change it and exists.
        unsafe { api!(RedisModule_SetAbsExpire)(self.raw, i64::from(raw::REDISMODULE_NO_EXPIRE)) };
    }

    /// The bytes of a string key; `None` if there is none.
    ///
    /// # Errors
    /// [`Error::WrongType`] unless the key holds a string or nothing.
    pub fn text(&self) -> Result<Option<Vec<u8>>> {
        self.with_text(<[u8]>::to_vec)
    }

    /// What `read` makes of the bytes of a string key, which may be long and are not copied; `None` if there is none. It may not
    /// call the server.
    ///
    /// # Errors
    /// As [`text`](Self::text).
    pub fn with_text<T>(&self, read: impl FnOnce(&[u8]) -> T) -> Result<Option<T>> {
        match self.kind() {
            Kind::Empty => return Ok(None),
            Kind::Text => {}
            _ => return Err(Error::WrongType),
        }
        let mut len = 0;
        // SAFETY: the key holds a string; the bytes are read before anything else touches it, and do not leave `read`.
        unsafe {
            let start = api!(RedisModule_StringDMA)(self.raw, &mut len, raw::REDISMODULE_READ as c_int);
            Ok((!start.is_null()).then(|| read(std::slice::from_raw_parts(start.cast::<u8>(), len))))
        }
    }
}

impl Drop for Key<'_> {
    fn drop(&mut self) {
        if !self.raw.is_null() {
            // SAFETY: the handle is open, and closed only here.
            unsafe { api!(RedisModule_CloseKey)(self.raw) };
        }
    }
}

/// The id of an entry of a stream: unix milliseconds, and a number within these.
pub type EntryId = (u64, u64);

/// The fields of an entry of a stream, with their values.
pub type EntryFields = [(OwnedString, OwnedString)];

fn raw_id((ms, seq): EntryId) -> raw::RedisModuleStreamID {
    raw::RedisModuleStreamID { ms, seq }
}

/// Streams.
impl Key<'_> {
    /// How many entries the stream has; 0 if there is none.
    ///
    /// # Errors
    /// [`Error::WrongType`] unless the key holds a stream or nothing.
    pub fn stream_len(&self) -> Result<u64> {
        match self.kind() {
            Kind::Empty => Ok(0),
            // SAFETY: the handle is open.
            Kind::Stream => Ok(unsafe { api!(RedisModule_ValueLength)(self.raw) } as u64),
            _ => Err(Error::WrongType),
        }
    }

    /// Adds an entry to the stream, which is made here if need be. Whether the id lies behind all that the stream ever had.
    pub fn stream_add<'n>(&self, id: EntryId, fields: impl Iterator<Item = (&'n FieldName, OwnedString)>) -> bool {
        let (mut arguments, mut values) = (Vec::with_capacity(16), Vec::with_capacity(8));
        for (name, value) in fields {
            arguments.extend([name.object().raw, value.as_raw()]);
            values.push(value);
        }
        let fields = values.len() as i64;
        // SAFETY: the key was opened to change it; the array holds pairs of string objects, which live until the call is over and
        // are copied by it, and the number is that of the pairs.
        unsafe { api!(RedisModule_StreamAdd)(self.raw, 0, &mut raw_id(id), arguments.as_mut_ptr(), fields) == OK }
    }

    /// Deletes the oldest entries of the stream beyond so many.
    pub fn stream_keep(&self, entries: u64) {
        let entries = i64::try_from(entries).unwrap_or(i64::MAX);
        // SAFETY: the key was opened to change it and holds a stream.
        unsafe { api!(RedisModule_StreamTrimByLength)(self.raw, 0, entries) };
    }

    /// Deletes the entries of the stream before this one.
    pub fn stream_keep_from(&self, id: EntryId) {
        // SAFETY: the key was opened to change it and holds a stream.
        unsafe { api!(RedisModule_StreamTrimByID)(self.raw, 0, &mut raw_id(id)) };
    }

    /// Shows entries of the stream from `first` to `last`, or the other way round, until `visit` says that it has seen enough. It may
    /// not call the server.
    ///
    /// # Errors
    /// [`Error::WrongType`] unless the key holds a stream or nothing.
    pub fn stream_visit(
        &self,
        (first, last): (EntryId, EntryId),
        newest_first: bool,
        mut visit: impl FnMut(EntryId, &EntryFields) -> bool,
    ) -> Result<()> {
        if self.stream_len()? == 0 || first > last {
            return Ok(());
        }
        let flags = if newest_first { raw::REDISMODULE_STREAM_ITERATOR_REVERSE } else { 0 };
        let mut entry: Vec<(OwnedString, OwnedString)> = Vec::with_capacity(8);
        // SAFETY: the key holds a stream, which nothing changes until the iterator is stopped. All fields of an entry are read before
        // the next one is asked for, and each gives two string objects that are ours.
        unsafe {
            if api!(RedisModule_StreamIteratorStart)(self.raw, flags as c_int, &mut raw_id(first), &mut raw_id(last))
                != OK
            {
                return Ok(());
            }
            let (mut id, mut fields) = (raw_id((0, 0)), 0);
            while api!(RedisModule_StreamIteratorNextID)(self.raw, &mut id, &mut fields) == OK {
                entry.clear();
                let (mut name, mut value) = (ptr::null_mut(), ptr::null_mut());
                while api!(RedisModule_StreamIteratorNextField)(self.raw, &mut name, &mut value) == OK {
                    entry.push((OwnedString(name), OwnedString(value)));
                }
                if !visit((id.ms, id.seq), &entry) {
                    break;
                }
            }
            api!(RedisModule_StreamIteratorStop)(self.raw);
        }
        Ok(())
    }
}

/// What one of the server's commands answered.
pub struct CallReply(*mut raw::RedisModuleCallReply);

impl CallReply {
    /// The integer that the command answered; `None` for an error or anything else.
    pub fn integer(&self) -> Option<i64> {
        if self.0.is_null() {
            return None;
        }
        // SAFETY: the reply is not null.
        unsafe {
            let kind = api!(RedisModule_CallReplyType)(self.0) as isize;
            (kind == raw::REDISMODULE_REPLY_INTEGER).then(|| api!(RedisModule_CallReplyInteger)(self.0))
        }
    }

    /// Whether the command was carried out.
    pub fn succeeded(&self) -> bool {
        // SAFETY: the reply is not null where its type is asked for.
        !self.0.is_null() && unsafe { api!(RedisModule_CallReplyType)(self.0) } as isize != raw::REDISMODULE_REPLY_ERROR
    }

    /// The text of the error that the command answered, code first.
    pub fn error(&self) -> Option<String> {
        if self.0.is_null() {
            return Some(Error::Internal.to_string());
        }
        // SAFETY: the reply is ours.
        if self.succeeded() { None } else { unsafe { string(self.0) } }
    }

    /// The string that the command answered; `None` for an error or anything else.
    pub fn text(&self) -> Option<String> {
        // SAFETY: the reply is ours.
        if self.succeeded() { unsafe { string(self.0) } } else { None }
    }

    /// The element of an array, if it is a string.
    pub fn element(&self, index: usize) -> Option<String> {
        if self.0.is_null() {
            return None;
        }
        // SAFETY: the reply is ours, and its elements are its own; other types than arrays have none.
        unsafe { string(api!(RedisModule_CallReplyArrayElement)(self.0, index)) }
    }
}

/// The text of a reply, which other types than strings and errors do not have.
///
/// # Safety
/// `reply` must be null, or valid during the call.
unsafe fn string(reply: *mut raw::RedisModuleCallReply) -> Option<String> {
    if reply.is_null() {
        return None;
    }
    let mut len = 0;
    // SAFETY: the reply is valid, as the caller promises; the text is copied.
    unsafe {
        let start = api!(RedisModule_CallReplyStringPtr)(reply, &mut len);
        (!start.is_null()).then(|| String::from_utf8_lossy(std::slice::from_raw_parts(start.cast(), len)).into_owned())
    }
}

impl Drop for CallReply {
    fn drop(&mut self) {
        if !self.0.is_null() {
            // SAFETY: the reply is ours.
            unsafe { api!(RedisModule_FreeCallReply)(self.0) };
        }
    }
}

/// Runs what a command does, and turns its error, or its panic, into an error reply.
pub fn guard(ctx: Ctx<'_>, run: impl FnOnce() -> Result<()>) -> c_int {
    let outcome = catch_unwind(AssertUnwindSafe(run)).unwrap_or(Err(Error::Internal));
    if let Err(error) = outcome {
        ctx.reply_error(&error);
    }
    OK
}

/// Runs a callback that has no reply; a panic gives `otherwise`. The panic hook has logged where it was.
pub fn guarded<T>(otherwise: T, run: impl FnOnce() -> T) -> T {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or(otherwise)
}

/// Lets the server's own threads, and its clients on the same machine, go before this thread.
#[cfg(feature = "snapshot")]
pub fn lower_priority() {
    #[cfg(target_os = "linux")]
    // SAFETY: takes numbers only; there, the priority of process 0 is that of the calling thread. That it may be refused does no
    // harm.
    unsafe {
        libc::setpriority(libc::PRIO_PROCESS, 0, 19);
    }
}

/// Makes panics leave a line with their place, and nothing of their message, in the server's log.
pub fn log_panics() {
    std::panic::set_hook(Box::new(|info| {
        let place = info.location().map_or_else(String::new, |place| format!(" at {}:{}", place.file(), place.line()));
        log_to(ptr::null_mut(), Level::Warning, &format!("keyguard: internal error, a handler panicked{place}"));
    }));
}
