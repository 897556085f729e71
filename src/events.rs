//! What the server tells modules of itself. It keeps one callback of a module for each kind of event: this one hands them on.

use std::ffi::c_void;

use crate::ffi::{self, Ctx, api, raw};
use crate::{eviction, failures, rekey, survey, usage, waiting};
#[cfg(feature = "snapshot")]
use crate::{export, import};

/// Asks to be told.
pub fn subscribe(ctx: Ctx<'_>) {
    for id in [
        raw::REDISMODULE_EVENT_CONFIG,
        raw::REDISMODULE_EVENT_FLUSHDB,
        raw::REDISMODULE_EVENT_LOADING,
        raw::REDISMODULE_EVENT_REPLICATION_ROLE_CHANGED,
        raw::REDISMODULE_EVENT_SHUTDOWN,
        raw::REDISMODULE_EVENT_SWAPDB,
    ] {
        let event = raw::RedisModuleEvent { id, dataver: 1 };
        // SAFETY: the callback has the type that the server calls.
        unsafe { api!(RedisModule_SubscribeToServerEvent)(ctx.as_raw(), event, Some(on_event)) };
    }
}

unsafe extern "C" fn on_event(
    ctx: *mut raw::RedisModuleCtx,
    event: raw::RedisModuleEvent,
    sub: u64,
    data: *mut c_void,
) {
    // SAFETY: the server's context is valid during the call.
    let ctx = unsafe { Ctx::new(ctx) };
    ffi::guarded((), || match event.id {
        raw::REDISMODULE_EVENT_CONFIG => {
            eviction::look(ctx);
            #[cfg(feature = "snapshot")]
            export::reschedule(ctx);
        }
        raw::REDISMODULE_EVENT_FLUSHDB if sub == raw::REDISMODULE_SUBEVENT_FLUSHDB_END => {
            failures::forget_all();
            // SAFETY: this is what the server gives with this event.
            let flushed = unsafe { data.cast::<raw::RedisModuleFlushInfo>().as_ref() };
            usage::flushed(flushed.map_or(-1, |flushed| flushed.dbnum));
            rekey::data_replaced();
            waiting::all_touched(ctx);
            #[cfg(feature = "snapshot")]
            {
                export::data_replaced(ctx);
                import::data_replaced(ctx);
            }
        }
        raw::REDISMODULE_EVENT_SWAPDB => {
            failures::forget_all();
            // SAFETY: as above.
            if let Some(swapped) = unsafe { data.cast::<raw::RedisModuleSwapDbInfo>().as_ref() } {
                usage::swapped(swapped.dbnum_first, swapped.dbnum_second);
            }
            survey::start_over();
            rekey::data_replaced();
            waiting::all_touched(ctx);
            #[cfg(feature = "snapshot")]
            {
                export::data_replaced(ctx);
                import::data_replaced(ctx);
            }
        }
        raw::REDISMODULE_EVENT_LOADING if sub == raw::REDISMODULE_SUBEVENT_LOADING_ENDED => {
            failures::forget_all();
            survey::start(ctx);
            rekey::data_replaced();
            waiting::all_touched(ctx);
            #[cfg(feature = "snapshot")]
            {
                export::data_replaced(ctx);
                import::data_replaced(ctx);
            }
        }
        raw::REDISMODULE_EVENT_REPLICATION_ROLE_CHANGED => {
            if !ctx.has_flags(raw::REDISMODULE_CTX_FLAGS_MASTER) {
                usage::flushed(-1);
            }
            survey::start(ctx);
        }
        #[cfg(feature = "snapshot")]
        raw::REDISMODULE_EVENT_SHUTDOWN => {
            import::shut_down();
            export::shut_down();
        }
        _ => {}
    });
}
