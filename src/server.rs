//! What kind of server we are on.

use std::sync::OnceLock;

use crate::ffi::{Ctx, Name, optional_api, raw};

static RUN_ID: OnceLock<String> = OnceLock::new();
static IS_VALKEY: OnceLock<bool> = OnceLock::new();
static IS_CLUSTER: OnceLock<bool> = OnceLock::new();

/// Looks at the server, once, when the module is loaded.
///
/// # Errors
/// Why this server is too old.
pub fn examine(ctx: Ctx<'_>) -> Result<(), String> {
    let info = |field| ctx.server_info(c"server", field);
    let is_valkey = info(c"server_name").is_some_and(|name| name == "valkey");
    // Pointers, not version numbers, say what a server can do. These came with Redis 7.0.
    let hides_arguments = optional_api!(RedisModule_RedactClientCommandArgument).is_some();
    let describes_commands = optional_api!(RedisModule_SetCommandInfo).is_some();
    let replies_with_maps = optional_api!(RedisModule_ReplyWithMap).is_some();
    if !(hides_arguments && describes_commands && replies_with_maps) {
        let version = info(c"redis_version").unwrap_or_default();
        return Err(format!(
            "keyguard needs Redis 7.0 or Valkey 7.2 or later: version {version} cannot hide secrets from MONITOR and SLOWLOG"
        ));
    }
    let _ = RUN_ID.set(info(c"run_id").unwrap_or_default());
    let _ = IS_VALKEY.set(is_valkey);
    let _ = IS_CLUSTER.set(ctx.has_flags(raw::REDISMODULE_CTX_FLAGS_CLUSTER));
    Ok(())
}

/// The id of this run of this server.
pub fn run_id() -> &'static str {
    RUN_ID.get().map_or("", String::as_str)
}

/// Whether the server is a node of a cluster; that never changes while it runs.
pub fn is_cluster() -> bool {
    IS_CLUSTER.get() == Some(&true)
}

/// What the server would refuse a command with that writes to this key: its disk is full, say, or too few replicas follow. It asks
/// none of this where a module writes outside of a command.
pub fn refusal_to_write(ctx: Ctx<'_>, key: Name<'_>) -> Option<String> {
    // As from a script, so that the server asks whether it may write at all; and nothing that could change anything: the expiry
    // would have to be there and lie beyond that instant.
    let nothing = [key.bytes(), b"9007199254740991", b"XX", b"LT"];
    let words = ctx.call(c"PEXPIREAT", c"ESv", &nothing).error()?;
    // Other words, such as those for a command that was renamed away, are not about this.
    ["MISCONF ", "NOREPLICAS ", "READONLY ", "MASTERDOWN "].iter().any(|code| words.starts_with(code)).then_some(words)
}

/// The options that tell the server what our native types can do.
pub fn module_options() -> i32 {
    /// Valkey 9: our types survive the migration of a slot as a whole. Redis uses the bit for something else.
    const HANDLE_ATOMIC_SLOT_MIGRATION: i32 = 1 << 5;
    let known = optional_api!(RedisModule_GetModuleOptionsAll).map_or(0, |all| {
        // SAFETY: takes nothing.
        unsafe { all() }
    });
    let slots = if IS_VALKEY.get() == Some(&true) { known & HANDLE_ATOMIC_SLOT_MIGRATION } else { 0 };
    let common = raw::REDISMODULE_OPTIONS_HANDLE_IO_ERRORS
        | raw::REDISMODULE_OPTIONS_HANDLE_REPL_ASYNC_LOAD
        | raw::REDISMODULE_OPTION_NO_IMPLICIT_SIGNAL_MODIFIED;
    common as i32 | slots
}
