//! How commands become known to the server: names, keys, permissions and documentation, from one table.

use std::ffi::{CStr, c_char, c_int};
use std::mem::{size_of, zeroed};
use std::ptr;
use std::sync::OnceLock;

use arrayvec::ArrayVec;
use keyguard_core::{Error, Result};

use crate::args::Args;
use crate::commands::{Call, table};
use crate::ffi::{self, Ctx, Name, api, optional_api, raw};

/// The release in which all present commands came.
const SINCE: &CStr = c"0.1.0";

/// A command: what it is, and what it does.
pub trait Command {
    /// What it is.
    const SPEC: Spec;

    /// What it does. An error is answered as such, and must leave nothing half done.
    fn run(call: &Call<'_>, args: Args<'_>) -> Result<()>;
}

/// What a command does to the key that it declares.
#[derive(Clone, Copy)]
pub enum Access {
    /// Nothing: it declares none, and works on replicas too.
    None,
    /// It reads.
    Read,
    /// It changes what is there, and may create or delete it.
    Write,
}

/// Who is meant to call a command: our own ACL categories.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Category {
    /// Applications, on every request.
    Use,
    /// Those who may see secrets.
    Secrets,
    /// Those who may look.
    Read,
    /// Those who manage.
    Admin,
    /// The servers themselves.
    Internal,
}

impl Category {
    /// The name of the category of our own.
    fn own(self) -> &'static str {
        match self {
            Self::Use => "keyguard_use",
            Self::Secrets => "keyguard_secrets",
            Self::Read => "keyguard_read",
            Self::Admin | Self::Internal => "keyguard_admin",
        }
    }

    /// The server's categories that a command belongs to. Those that show secrets are in neither `read` nor `write`: a user
    /// with `+@read` must not see one.
    fn of_server(self, access: Access) -> &'static str {
        match (self, access) {
            (Self::Secrets, _) => "dangerous",
            (Self::Internal, _) => "admin dangerous",
            (Self::Admin, Access::Write) => "write dangerous",
            (Self::Admin, Access::Read) => "read dangerous",
            (Self::Admin, Access::None) => "admin dangerous",
            (Self::Use, Access::Write) => "write fast",
            (Self::Use | Self::Read, Access::Read | Access::None) => "read fast",
            (Self::Read, Access::Write) => "write",
        }
    }
}

/// What a command is.
pub struct Spec {
    /// Its name.
    pub name: &'static CStr,
    /// One sentence.
    pub summary: &'static CStr,
    /// What its time depends on.
    pub complexity: &'static CStr,
    /// Its flags, beside those that its access brings.
    pub flags: &'static str,
    /// What it does to its key.
    pub access: Access,
    /// Who calls it.
    pub category: Category,
    /// The fewest arguments, the command's name among them.
    pub min_args: c_int,
    /// The arguments that carry a secret, hidden before anything else happens; the command's name is 0.
    pub secrets: &'static [usize],
    /// From which argument on all are hidden, because any of them may be a secret; 0 for none.
    pub secrets_from: usize,
    /// Its arguments; the key, if it has one, is the first.
    pub args: &'static [Arg],
}

/// One argument, as COMMAND DOCS describes it.
#[derive(Clone, Copy)]
pub struct Arg {
    name: &'static CStr,
    kind: ArgKind,
    token: Option<&'static CStr>,
    optional: bool,
    multiple: bool,
}

#[derive(Clone, Copy)]
enum ArgKind {
    Key,
    Text,
    Integer,
    Word,
    Block(&'static [Arg]),
    OneOf(&'static [Arg]),
}

impl Arg {
    const fn new(name: &'static CStr, kind: ArgKind) -> Self {
        Self { name, kind, token: None, optional: false, multiple: false }
    }

    /// The key.
    pub const fn key(name: &'static CStr) -> Self {
        Self::new(name, ArgKind::Key)
    }

    /// A string.
    pub const fn text(name: &'static CStr) -> Self {
        Self::new(name, ArgKind::Text)
    }

    /// A whole number.
    pub const fn integer(name: &'static CStr) -> Self {
        Self::new(name, ArgKind::Integer)
    }

    /// A word that stands for itself.
    pub const fn word(name: &'static CStr, word: &'static CStr) -> Self {
        Self::new(name, ArgKind::Word).token(word)
    }

    /// Several arguments that go together.
    pub const fn block(name: &'static CStr, parts: &'static [Arg]) -> Self {
        Self::new(name, ArgKind::Block(parts))
    }

    /// One of several.
    pub const fn one_of(name: &'static CStr, choices: &'static [Arg]) -> Self {
        Self::new(name, ArgKind::OneOf(choices))
    }

    /// The word before it.
    pub const fn token(mut self, token: &'static CStr) -> Self {
        self.token = Some(token);
        self
    }

    /// May be left out.
    pub const fn optional(mut self) -> Self {
        self.optional = true;
        self
    }

    /// May be given several times.
    pub const fn multiple(mut self) -> Self {
        self.multiple = true;
        self
    }

    /// The argument in the notation of the command reference.
    fn usage(&self) -> String {
        let parts = |parts: &[Self], between: &str| parts.iter().map(Self::usage).collect::<Vec<_>>().join(between);
        let inner = match self.kind {
            ArgKind::Word => String::new(),
            ArgKind::Block(block) => parts(block, " "),
            ArgKind::OneOf(choices) => parts(choices, " | "),
            _ => self.name.to_string_lossy().into_owned(),
        };
        let mut text = match self.token {
            Some(token) if inner.is_empty() => token.to_string_lossy().into_owned(),
            Some(token) => format!("{} {inner}", token.to_string_lossy()),
            None => inner,
        };
        match (self.optional, self.multiple) {
            (true, true) => text = format!("[{text}]..."),
            (true, false) => text = format!("[{text}]"),
            (false, true) => text = format!("{text} [{text} ...]"),
            (false, false) if matches!(self.kind, ArgKind::OneOf(_)) => text = format!("<{text}>"),
            (false, false) => {}
        }
        text
    }
}

/// A command as the table holds it.
pub struct Entry {
    spec: Spec,
    run: raw::RedisModuleCmdFunc,
}

impl Entry {
    /// The entry of a command.
    pub const fn of<C: Command>() -> Self {
        Self { spec: C::SPEC, run: Some(run::<C>) }
    }
}

/// What the server calls: hides secrets, reads the clock once, and answers whatever happens.
unsafe extern "C" fn run<C: Command>(
    ctx: *mut raw::RedisModuleCtx,
    argv: *mut *mut raw::RedisModuleString,
    argc: c_int,
) -> c_int {
    // SAFETY: the server's context is valid during the call.
    let ctx = unsafe { Ctx::new(ctx) };
    ffi::guard(ctx, || {
        let len = usize::try_from(argc).unwrap_or(0);
        // SAFETY: the server gives `argc` string objects, valid during the call; a `Name` is such a pointer and nothing else.
        let given = unsafe { std::slice::from_raw_parts(argv.cast::<Name<'_>>(), len) };
        // Valkey 8.1 hides an argument in the very array that it gave us, and keeps the objects in another: the pointers are
        // copied first.
        let (copied, many): (ArrayVec<Name<'_>, 16>, Vec<Name<'_>>);
        let names = if C::SPEC.secrets.is_empty() && C::SPEC.secrets_from == 0 {
            given
        } else {
            let few = given.get(..len.min(16)).unwrap_or_default();
            copied = few.iter().copied().collect();
            many = if len > few.len() { given.to_vec() } else { Vec::new() };
            C::SPEC.secrets.iter().for_each(|position| ctx.redact(*position));
            if C::SPEC.secrets_from > 0 {
                (C::SPEC.secrets_from..len).for_each(|position| ctx.redact(position));
            }
            if many.is_empty() { copied.as_slice() } else { many.as_slice() }
        };
        let args = Args::new(names.get(1..).unwrap_or_default(), usage::<C>);
        C::run(&Call { ctx, now_ms: ctx.milliseconds() }, args)
    })
}

/// The grammar of each command, made from its arguments when the module is loaded.
static USAGES: OnceLock<Vec<(&'static CStr, &'static str)>> = OnceLock::new();

fn usage<C: Command>() -> &'static str {
    let name = C::SPEC.name;
    let usages = USAGES.get().map_or(&[][..], Vec::as_slice);
    usages.iter().find(|(of, _)| *of == name).map_or("", |(_, usage)| usage)
}

/// Registers every command.
///
/// # Errors
/// The name of one that the server refused.
pub fn register(ctx: Ctx<'_>) -> std::result::Result<(), String> {
    for category in [Category::Use, Category::Secrets, Category::Read, Category::Admin] {
        if let Some(add) = optional_api!(RedisModule_AddACLCategory) {
            let name = ffi::to_c_string(category.own());
            // SAFETY: the name ends in NUL and is copied.
            if unsafe { add(ctx.as_raw(), name.as_ptr()) } != ffi::OK {
                return Err(format!("the server refused the ACL category {}", category.own()));
            }
        }
    }
    let mut usages = Vec::new();
    for entry in table() {
        let name = entry.spec.name.to_string_lossy();
        let arguments: Vec<String> = entry.spec.args.iter().map(Arg::usage).collect();
        usages.push((entry.spec.name, &*format!("{name} {}", arguments.join(" ")).leak()));
        register_one(ctx, &entry).map_err(|_| format!("the server refused the command {name}"))?;
    }
    let _ = USAGES.set(usages);
    Ok(())
}

fn register_one(ctx: Ctx<'_>, entry: &Entry) -> Result<()> {
    let spec = &entry.spec;
    let (kind, key_flags) = match spec.access {
        Access::None => ("admin", 0),
        Access::Read => ("readonly", raw::REDISMODULE_CMD_KEY_RO | raw::REDISMODULE_CMD_KEY_ACCESS),
        Access::Write => {
            ("write", raw::REDISMODULE_CMD_KEY_RW | raw::REDISMODULE_CMD_KEY_ACCESS | raw::REDISMODULE_CMD_KEY_UPDATE)
        }
    };
    let flags = ffi::to_c_string(format!("{kind} {}", spec.flags).trim());
    let has_key = spec.args.iter().any(|arg| matches!(arg.kind, ArgKind::Key));
    let key_position = c_int::from(has_key);
    let refused = Error::Internal;
    // SAFETY: name and flags end in NUL and are copied; the function has the type of a command.
    let created = unsafe {
        api!(RedisModule_CreateCommand)(
            ctx.as_raw(),
            spec.name.as_ptr(),
            entry.run,
            flags.as_ptr(),
            key_position,
            key_position,
            key_position,
        )
    };
    if created != ffi::OK {
        return Err(refused);
    }
    // SAFETY: the command was created above.
    let command = unsafe { api!(RedisModule_GetCommand)(ctx.as_raw(), spec.name.as_ptr()) };
    let mut docs = Docs::default();
    let arguments = docs.describe(spec.args);
    // SAFETY: all zeros is the terminator that the server looks for, and a valid value of these plain structs.
    let mut keys: [raw::RedisModuleCommandKeySpec; 2] = unsafe { zeroed() };
    if let Some(key) = keys.first_mut() {
        key.flags = u64::from(key_flags);
        key.begin_search_type = raw::RedisModuleKeySpecBeginSearchType_REDISMODULE_KSPEC_BS_INDEX;
        key.bs.index.pos = 1;
    }
    // SAFETY: as above.
    let mut info: raw::RedisModuleCommandInfo = unsafe { zeroed() };
    info.version = &INFO_VERSION.0;
    info.summary = spec.summary.as_ptr();
    info.complexity = spec.complexity.as_ptr();
    info.since = SINCE.as_ptr();
    info.arity = -spec.min_args;
    info.key_specs = if has_key { keys.as_mut_ptr() } else { ptr::null_mut() };
    info.args = arguments;
    // SAFETY: everything that `info` points to lives until the call is over, and the server copies it.
    if unsafe { api!(RedisModule_SetCommandInfo)(command, &raw const info) } != ffi::OK {
        return Err(refused);
    }
    if let Some(set) = optional_api!(RedisModule_SetCommandACLCategories) {
        let own = match optional_api!(RedisModule_AddACLCategory) {
            Some(_) => spec.category.own(),
            None => "",
        };
        let blocking = spec.flags.split(' ').find(|flag| *flag == "blocking").unwrap_or("");
        let mut categories = vec![spec.category.of_server(spec.access), blocking, own];
        categories.retain(|category| !category.is_empty());
        let categories = ffi::to_c_string(&categories.join(" "));
        // SAFETY: the text ends in NUL and is copied.
        if unsafe { set(command, categories.as_ptr()) } != ffi::OK {
            return Err(refused);
        }
    }
    Ok(())
}

struct InfoVersion(raw::RedisModuleCommandInfoVersion);

// SAFETY: plain numbers that nothing changes.
unsafe impl Sync for InfoVersion {}

static INFO_VERSION: InfoVersion = InfoVersion(raw::RedisModuleCommandInfoVersion {
    version: 1,
    sizeof_historyentry: size_of::<raw::RedisModuleCommandHistoryEntry>(),
    sizeof_keyspec: size_of::<raw::RedisModuleCommandKeySpec>(),
    sizeof_arg: size_of::<raw::RedisModuleCommandArg>(),
});

/// The server's form of argument descriptions, kept alive while it copies them.
#[derive(Default)]
struct Docs {
    lists: Vec<Box<[raw::RedisModuleCommandArg]>>,
}

impl Docs {
    fn describe(&mut self, args: &[Arg]) -> *mut raw::RedisModuleCommandArg {
        let mut list = Vec::with_capacity(args.len() + 1);
        for arg in args {
            let (type_, subargs) = match arg.kind {
                ArgKind::Key => (raw::RedisModuleCommandArgType_REDISMODULE_ARG_TYPE_KEY, ptr::null_mut()),
                ArgKind::Text => (raw::RedisModuleCommandArgType_REDISMODULE_ARG_TYPE_STRING, ptr::null_mut()),
                ArgKind::Integer => (raw::RedisModuleCommandArgType_REDISMODULE_ARG_TYPE_INTEGER, ptr::null_mut()),
                ArgKind::Word => (raw::RedisModuleCommandArgType_REDISMODULE_ARG_TYPE_PURE_TOKEN, ptr::null_mut()),
                ArgKind::Block(parts) => {
                    (raw::RedisModuleCommandArgType_REDISMODULE_ARG_TYPE_BLOCK, self.describe(parts))
                }
                ArgKind::OneOf(choices) => {
                    (raw::RedisModuleCommandArgType_REDISMODULE_ARG_TYPE_ONEOF, self.describe(choices))
                }
            };
            let optional = if arg.optional { raw::REDISMODULE_CMD_ARG_OPTIONAL } else { 0 };
            let multiple = match (arg.multiple, arg.token, arg.kind) {
                (false, ..) => 0,
                (true, Some(_), _) => raw::REDISMODULE_CMD_ARG_MULTIPLE | raw::REDISMODULE_CMD_ARG_MULTIPLE_TOKEN,
                (true, None, _) => raw::REDISMODULE_CMD_ARG_MULTIPLE,
            };
            // SAFETY: all zeros is a valid value of this plain struct.
            let mut described: raw::RedisModuleCommandArg = unsafe { zeroed() };
            described.name = arg.name.as_ptr();
            described.type_ = type_;
            described.key_spec_index = if matches!(arg.kind, ArgKind::Key) { 0 } else { -1 };
            described.token = arg.token.map_or(ptr::null::<c_char>(), CStr::as_ptr);
            described.flags = (optional | multiple) as c_int;
            described.subargs = subargs;
            list.push(described);
        }
        // SAFETY: as above; all zeros ends the list.
        list.push(unsafe { zeroed() });
        let mut list = list.into_boxed_slice();
        let start = list.as_mut_ptr();
        self.lists.push(list);
        start
    }
}
