//! keyguard: a Redis and Valkey module that guards API keys.
//!
//! # One command, from the socket to the disk
//!
//! The server calls the function that [`register`] made for the command. It hides the arguments that carry secrets, reads the
//! clock once, and runs the handler inside a guard that turns an error, or a panic, into an error reply. The handler, in
//! [`commands`], is four paragraphs:
//!
//! 1. *Parse*: [`args`] reads the arguments into types that cannot be wrong.
//! 2. *Decide*: `keyguard-core`, which knows neither the server nor the clock, says what becomes of it. [`store`] reads what the
//!    decision needs, and makes sure that every key to be written is what it should be.
//! 3. *Effect*: what was decided is done, once. Native values change through [`effects`], which also replicates; hashes and
//!    strings change through [`store`], by the server's own commands.
//! 4. *Reply*: [`reply`] writes it, for RESP2 and RESP3.
//!
//! # What is kept where
//!
//! A bucket is a key of the caller's choice that holds a window log. A store `acme` is a hash of that name, its header, and keys
//! that begin with `{acme}:`, so that one command may touch them all in a cluster. Key records and organizations are hashes whose
//! field `r` (and `r2` to `r4`, where it goes on) is what commands believe, packed; bitmaps list the ids of records by type, and
//! those of organizations. Window logs, the hot state of records, pools of vault keys, address rules and what addresses claimed are
//! values of native types ([`native`]): they are saved, copied, migrated and compared as one versioned string.
//!
//! A pool holds all that choosing among the vault keys of one name needs: what their records say of them, and what happened to them.
//! A record is what counts: where the pool disagrees with it, [`acquire`] puts the pool right. What makes the choice quick
//! (`keyguard_core::selection`) is derived from the value inside it, and never written: no command on keys can leave it stale.
//!
//! A raw API key leads by its digest to an id, and that to the record; the record says which digests are its own. `KG.AUTH` opens
//! these and the few keys that the answer depends on, decides once (`keyguard_core::gate`), and books all charges by one effect. Only
//! what [`failures`] counts is outside of the keyspace: the block that follows on it is in there.
//!
//! # What replicas see
//!
//! Never the command as it came: an effect (`KG.APPLY`) with absolute times, or the server's own commands. A refusal replicates
//! nothing. The same function applies an effect here, on a replica and when an append-only file is read.
//!
//! # Usage
//!
//! What `KG.AUTH` answers and `KG.LOG` tells is counted in memory ([`usage`]) and written down once a second by a timer, as one effect
//! or a few: `keyguard_core::usage` says what is kept of it. The log is a stream, statistics are values of native types.
//!
//! # Files
//!
//! A store becomes a SQLite file, and a file a store, while everything else goes on (`export`, `import`): a timer copies records, or
//! writes them, slice by slice, and a thread of ours (`worker`) deals with the file through the crate `keyguard-snapshot`, and with what
//! is sealed or encrypted. A channel that holds little stands between the two. No thread but the main one ever touches a key.
//!
//! # Who waits
//!
//! A call with BLOCK that gets nothing is held: `keyguard_core::waiting` knows who stands in which line, [`waiting`] holds the
//! clients and answers them from a timer, and [`events`] and the native types tell it when a bucket or a pool may have changed.
//!
//! # Secrets
//!
//! [`keyring`] holds the keys that seal and digest; they never enter the keyspace. Secrets arrive in arguments that are hidden
//! first of all, and stand in the keyspace sealed or digested only. Errors come from one table and never repeat a client's bytes.
//! When the keyring gets a newer key, [`rekey`] seals the vault again under it, a little at a time; [`survey`] counts what still
//! uses an older one.
//!
//! # The border
//!
//! [`ffi`] wraps the module API. A panic must not cross it, so every callback is guarded; every `unsafe` says why it holds.
#![allow(missing_docs, reason = "`redis_module!` makes functions without; nothing else of a cdylib is public")]
#![cfg_attr(test, allow(dead_code, reason = "the allocator of the server, see below"))]

mod acquire;
mod adding;
mod args;
mod commands;
mod config;
mod doomed;
mod effects;
mod events;
mod eviction;
#[cfg(feature = "snapshot")]
mod export;
mod failures;
mod ffi;
mod gate;
#[cfg(feature = "snapshot")]
mod import;
mod info;
mod keyring;
mod native;
mod register;
mod rekey;
mod reply;
mod server;
mod store;
mod survey;
mod usage;
mod waiting;
#[cfg(feature = "snapshot")]
mod worker;

use redis_module::{Context, RedisString, Status};

#[cfg(not(test))]
use crate::ffi::ServerAllocator;
use crate::ffi::{Ctx, Level, Name};
// `cargo test --workspace --lib` runs this crate too, where no server is.
#[cfg(test)]
use std::alloc::System as ServerAllocator;

redis_module::redis_module! {
    name: "keyguard",
    version: 1,
    allocator: (ServerAllocator, ServerAllocator),
    data_types: [],
    init: init,
    commands: [],
}

/// What OnLoad does once the API is there. Everything that can fail does so here, with a line in the log.
fn init(context: &Context, arguments: &[RedisString]) -> Status {
    // SAFETY: the server's context is valid while OnLoad runs.
    let ctx = unsafe { Ctx::new(context.get_raw()) };
    ffi::log_panics();
    // SAFETY: the arguments are valid while OnLoad runs.
    let arguments: Vec<Name<'_>> = arguments.iter().map(|argument| unsafe { Name::new(argument.inner) }).collect();
    match ffi::guarded(Err("a defect of keyguard".to_owned()), || load(ctx, &arguments)) {
        Ok(()) => Status::Ok,
        Err(why) => {
            ctx.log(Level::Warning, &format!("keyguard is not loaded: {why}"));
            Status::Err
        }
    }
}

fn load(ctx: Ctx<'_>, arguments: &[Name<'_>]) -> Result<(), String> {
    server::examine(ctx)?;
    ffi::set_module_options(ctx, server::module_options());
    native::register(ctx).map_err(|_| "the server refused a native type".to_owned())?;
    register::register(ctx)?;
    info::register(ctx);
    config::register(ctx, arguments)?;
    if keyring::load()?.is_none() {
        ctx.log(Level::Notice, "no keyring yet: limits work, key records need one");
    }
    events::subscribe(ctx);
    survey::start(ctx);
    eviction::look(ctx);
    #[cfg(feature = "snapshot")]
    export::reschedule(ctx);
    Ok(())
}
