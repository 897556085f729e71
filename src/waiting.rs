//! Those who wait on the server: `KG.CLAIM ... BLOCK` and `KG.ACQUIRE ... BLOCK`.
//!
//! Who waits for what, and in which order, `keyguard_core::waiting` knows. Here is what makes it happen: clients that are held,
//! one timer of the module set for whatever is due next, and the events after which a bucket deserves a look. Everything is
//! granted and refused from that timer, never from inside an event or another client's command. It decides on the data as it is
//! then, so that a bucket that was deleted, renamed, restored, replaced or moved away meanwhile needs no case of its own. The
//! native type says when a bucket goes (keyspace notifications would say it too, but on Valkey 8.1 a module that listens to them
//! makes MOVE leave its caller in the other database). A slot that another node took tells nobody, so a line is looked at once a
//! second at the least.
//!
//! The timer runs outside of any command, where the server refuses nothing by itself. So before a grant we ask what it would
//! have asked: its role, a pause of writes, memory, the disk, enough replicas, and whether it still serves the slot.

use std::collections::HashMap;
use std::ffi::{c_int, c_void};
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use keyguard_core::limit::Limits;
use keyguard_core::limiter::{Decision, Retry};
use keyguard_core::names::StoreName;
use keyguard_core::pool::Wanted;
use keyguard_core::selection::Ask;
use keyguard_core::waiting::{Class, Demand, Lines, Turn, WaiterId, Wish};
use keyguard_core::window::WindowLog;
use keyguard_core::{Error, Result};

use crate::acquire::{self, Outcome};
use crate::ffi::{self, Ctx, Kind, Name, OwnedString, api, raw};
use crate::reply::ClaimReply;
use crate::store::Store;
use crate::{effects, server};

/// A line is looked at so often at the least, in milliseconds.
const LOOK_EVERY_MS: u64 = 1000;

/// While writes are paused, whether they still are is looked at so often, in milliseconds.
const PAUSED_MS: u64 = 5;

/// How many are answered before other clients get a chance: about half a millisecond.
const TURNS_AT_ONCE: usize = 200;

/// Nor does it go on longer than this: a key of a large pool may take much longer to choose than a claim on a bucket.
const LONGEST_AT_ONCE: Duration = Duration::from_millis(1);

/// The client of one who waits.
#[derive(Debug, Clone, Copy)]
struct Held(*mut raw::RedisModuleBlockedClient);

// SAFETY: the server's object for a held client is used on the main thread only; the mutex is there because a static needs one.
unsafe impl Send for Held {}

impl Held {
    /// Answers the client and lets it go on; `None` if it is gone or answered already. To be called once.
    fn release(self, answer: Option<Answer>) {
        let answer = answer.map_or(ptr::null_mut(), |answer| Box::into_raw(Box::new(answer)));
        // SAFETY: the object is valid until it is released, which takes it out of the lines first. The server hands the answer
        // to `on_answer`, then to `free_answer`.
        unsafe { api!(RedisModule_UnblockClient)(self.0, answer.cast()) };
    }
}

/// What a held client is told.
enum Answer {
    Claim(ClaimReply),
    Key(Outcome),
    Error(Error),
    /// The server's own words, where it would not let a command write.
    Refused(String),
}

#[derive(Default)]
struct Waiting {
    lines: Lines<Held>,
    of_client: HashMap<usize, WaiterId>,
    timer: Option<Timer>,
    /// For timers set from where the server gives no context.
    detached: Option<Detached>,
}

#[derive(Clone, Copy)]
struct Detached(*mut raw::RedisModuleCtx);

// SAFETY: the context is used on the main thread only; the mutex is there because a static needs one.
unsafe impl Send for Detached {}

struct Timer {
    id: raw::RedisModuleTimerID,
    due_ms: u64,
}

static WAITING: Mutex<Option<Waiting>> = Mutex::new(None);

/// How many wait: so that a claim need not look further on a server where nobody does.
static WAITERS: AtomicUsize = AtomicUsize::new(0);

/// Runs `with` on those who wait. It must not call the server, which may call back.
fn waiting<T>(with: impl FnOnce(&mut Waiting) -> T) -> T {
    let mut guard: MutexGuard<'_, Option<Waiting>> = WAITING.lock().unwrap_or_else(PoisonError::into_inner);
    with(guard.get_or_insert_default())
}

fn nobody_waits() -> bool {
    WAITERS.load(Ordering::Relaxed) == 0
}

impl Waiting {
    /// Takes someone out of the lines.
    fn take(&mut self, id: WaiterId, now_ms: u64) -> Option<Held> {
        let held = self.lines.leave(id, now_ms)?;
        self.of_client.remove(&held.0.addr());
        WAITERS.store(self.lines.waiters(), Ordering::Relaxed);
        Some(held)
    }
}

/// What INFO says of those who wait.
#[derive(Default)]
pub struct Summary {
    /// How many wait.
    pub waiters: usize,
    /// In how many lines.
    pub lines: usize,
    /// Since when the one who has waited longest does, in unix milliseconds.
    pub oldest_since_ms: Option<u64>,
}

/// Those who wait now.
pub fn summary() -> Summary {
    waiting(|waiting| Summary {
        waiters: waiting.lines.waiters(),
        lines: waiting.lines.lines(),
        oldest_since_ms: waiting.lines.oldest_since_ms(),
    })
}

/// How many wait for a bucket.
pub fn waiters_of(ctx: Ctx<'_>, bucket: Name<'_>) -> usize {
    if nobody_waits() {
        return 0;
    }
    let database = ctx.selected_database();
    waiting(|waiting| waiting.lines.waiters_of(database, bucket.bytes()))
}

/// For how many milliseconds at the least a newcomer gets nothing, because others stand in line for the same; `None` if nobody
/// does.
pub fn others_wait_ms(ctx: Ctx<'_>, bucket: Name<'_>, limits: &Limits, now_ms: u64) -> Option<u64> {
    if nobody_waits() {
        return None;
    }
    let database = ctx.selected_database();
    let look_ms = waiting(|waiting| waiting.lines.next_look_ms(database, bucket.bytes(), &Class::of_limits(limits)))?;
    Some(look_ms.saturating_sub(now_ms).max(1))
}

/// What those want of a pool who wait already: a newcomer leaves it to them.
pub fn wanted_by_others(ctx: Ctx<'_>, pool: Name<'_>) -> Vec<Wanted> {
    if nobody_waits() {
        return Vec::new();
    }
    let database = ctx.selected_database();
    waiting(|waiting| waiting.lines.earlier(database, pool.bytes(), None))
}

/// Holds the client until its turn comes, `block_ms` at the longest; `retry_ms` from now its claim is worth a first look.
///
/// # Errors
/// [`Error::TooManyWaiters`].
pub fn join(ctx: Ctx<'_>, wish: Wish, now_ms: u64, retry_ms: u64, block_ms: u64) -> Result<()> {
    waiting(|waiting| waiting.lines.has_room(&wish))?;
    if waiting(|waiting| waiting.detached.is_none()) {
        // SAFETY: the context is valid; the server makes another one that is ours, and kept for good.
        let detached = Detached(unsafe { api!(RedisModule_GetDetachedThreadSafeContext)(ctx.as_raw()) });
        waiting(|waiting| waiting.detached = Some(detached));
    }
    // SAFETY: the callbacks have the types that the server calls. It is given no time-out of its own, whose clock ticks ten
    // times a second: ours ends on the millisecond.
    let held = Held(unsafe {
        let held = api!(RedisModule_BlockClient)(ctx.as_raw(), Some(on_answer), Some(on_unblock), Some(free_answer), 0);
        api!(RedisModule_SetDisconnectCallback)(held, Some(on_disconnect));
        held
    });
    waiting(|waiting| {
        let look_ms = now_ms + retry_ms.min(LOOK_EVERY_MS);
        let id = waiting.lines.join(held, wish, now_ms, look_ms, now_ms + block_ms);
        waiting.of_client.insert(held.0.addr(), id);
        WAITERS.store(waiting.lines.waiters(), Ordering::Relaxed);
    });
    arm(ctx);
    Ok(())
}

/// A bucket has changed: those who wait for it are looked at.
pub fn touched(ctx: Ctx<'_>, bucket: Name<'_>) {
    if nobody_waits() {
        return;
    }
    let database = ctx.selected_database();
    let now_ms = ctx.milliseconds();
    if waiting(|waiting| waiting.lines.touch(database, bucket.bytes(), now_ms)) {
        arm(ctx);
    }
}

/// An account of a store has changed: those who wait for keys of any of its pools are looked at.
pub fn account_touched(ctx: Ctx<'_>, store: StoreName<'_>) {
    if nobody_waits() {
        return;
    }
    let (database, now_ms) = (ctx.selected_database(), ctx.milliseconds());
    waiting(|waiting| waiting.lines.touch_all_of(database, &store.pool(""), now_ms));
    arm(ctx);
}

/// A bucket is about to be gone from its key.
pub fn unlinked(database: c_int, bucket: Name<'_>) {
    if nobody_waits() {
        return;
    }
    let Some(Detached(ctx)) = waiting(|waiting| waiting.detached) else { return };
    // SAFETY: the context is never freed, and this is the main thread, which unlinks.
    let ctx = unsafe { Ctx::new(ctx) };
    let now_ms = ctx.milliseconds();
    if waiting(|waiting| waiting.lines.touch(database, bucket.bytes(), now_ms)) {
        arm(ctx);
    }
}

/// Any bucket may have changed.
pub fn all_touched(ctx: Ctx<'_>) {
    if !nobody_waits() {
        let now_ms = ctx.milliseconds();
        waiting(|waiting| waiting.lines.touch_all(now_ms));
        arm(ctx);
    }
}

/// Sets the timer for what is due next.
fn arm(ctx: Ctx<'_>) {
    let now_ms = ctx.milliseconds();
    let may_grant = ctx.may_write();
    let (due_ms, late) = waiting(|waiting| {
        let due = if may_grant {
            waiting.lines.due_ms()
        } else {
            waiting.lines.due_ms().map(|_| waiting.lines.next_end_ms().unwrap_or(u64::MAX).min(now_ms + PAUSED_MS))
        };
        let due = due.filter(|due| waiting.timer.as_ref().is_none_or(|timer| *due < timer.due_ms));
        (due, due.and_then(|_| waiting.timer.take()))
    });
    let Some(due_ms) = due_ms else { return };
    // SAFETY: the context is valid; the timer is one that has not run yet, and has no data; the callback has the type that the
    // server calls.
    let id = unsafe {
        if let Some(timer) = late {
            api!(RedisModule_StopTimer)(ctx.as_raw(), timer.id, ptr::null_mut());
        }
        let period = i64::try_from(due_ms.saturating_sub(now_ms)).unwrap_or(i64::MAX);
        api!(RedisModule_CreateTimer)(ctx.as_raw(), period, Some(on_timer), ptr::null_mut())
    };
    waiting(|waiting| waiting.timer = Some(Timer { id, due_ms }));
}

unsafe extern "C" fn on_timer(ctx: *mut raw::RedisModuleCtx, _: *mut c_void) {
    // SAFETY: the server's context is valid during the call.
    let ctx = unsafe { Ctx::new(ctx) };
    ffi::guarded((), || {
        waiting(|waiting| waiting.timer = None);
        serve(ctx);
    });
    ffi::guarded((), || arm(ctx));
}

/// Answers whose turn it is.
fn serve(ctx: Ctx<'_>) {
    let now_ms = ctx.milliseconds();
    let may_grant = ctx.may_write();
    let begun = Instant::now();
    for turn in 0..TURNS_AT_ONCE {
        if turn > 0 && begun.elapsed() >= LONGEST_AT_ONCE {
            return;
        }
        let Some(turn) = waiting(|waiting| waiting.lines.next(now_ms, may_grant)) else { return };
        ctx.select_database(turn.wish.bucket.database);
        let bucket = OwnedString::new(&turn.wish.bucket.name);
        let answer = match decide(ctx, bucket.name(), &turn, now_ms, may_grant) {
            Ok(Decided::Wait(ms)) => {
                waiting(|waiting| waiting.lines.wait(turn.waiter, now_ms + ms.clamp(1, LOOK_EVERY_MS)));
                continue;
            }
            Ok(Decided::Answer(answer)) => answer,
            Err(error) => Answer::Error(error),
        };
        if let Some(held) = waiting(|waiting| waiting.take(turn.waiter, now_ms)) {
            held.release(Some(answer));
        }
    }
}

enum Decided {
    Wait(u64),
    Answer(Answer),
}

/// Decides about one who waits, and books what is granted.
fn decide(ctx: Ctx<'_>, bucket: Name<'_>, turn: &Turn, now_ms: u64, may_grant: bool) -> Result<Decided> {
    if may_grant && let Some(refusal) = refused_by_the_server(ctx, bucket) {
        return Ok(Decided::Answer(refusal));
    }
    match &turn.wish.demand {
        Demand::Units { limits, cost, lockout_ms } => {
            decide_units(ctx, bucket, turn, (limits, *cost, *lockout_ms), now_ms, may_grant)
        }
        Demand::Key(ask) => decide_key(ctx, bucket, turn, ask, now_ms, may_grant),
    }
}

fn decide_units(
    ctx: Ctx<'_>,
    bucket: Name<'_>,
    turn: &Turn,
    (limits, cost, lockout_ms): (&Limits, u64, Option<u64>),
    now_ms: u64,
    may_grant: bool,
) -> Result<Decided> {
    let mut key = if may_grant { ctx.change(bucket) } else { ctx.read(bucket) };
    let mut decision = Decision::on(key.native::<WindowLog>()?, limits, cost, now_ms)?;
    match decision.verdict.retry {
        Retry::After(ms) if !turn.is_last_chance => return Ok(Decided::Wait(ms)),
        // It would fit, but others stand before it, or nothing may be written now.
        Retry::Granted if !(turn.is_first && may_grant) => decision.defer(1),
        _ => {}
    }
    if may_grant && let Some(effect) = decision.effect(lockout_ms) {
        ctx.refuse_if_out_of_memory()?;
        effects::book(ctx, bucket, &mut key, &effect)?;
        let database = turn.wish.bucket.database;
        waiting(|waiting| waiting.lines.touch(database, bucket.bytes(), now_ms));
    }
    Ok(Decided::Answer(Answer::Claim(ClaimReply::of_claim(&decision))))
}

fn decide_key(ctx: Ctx<'_>, pool: Name<'_>, turn: &Turn, ask: &Ask, now_ms: u64, may_grant: bool) -> Result<Decided> {
    let (store, of) = StoreName::of_pool(pool.bytes()).ok_or(Error::Internal)?;
    let header = OwnedString::new(store.as_bytes());
    let both = [header.name().bytes(), pool.bytes()];
    let store = match Store::open_unconfirmed(ctx, (store, header.name())) {
        // The header may have gone to another node already, and the pool not yet.
        Err(Error::NoStore) if server::is_cluster() && ctx.call(c"EXISTS", c"Ev", &both).integer().is_none() => {
            return Err(Error::TryAgain);
        }
        store => store?,
    };
    if may_grant {
        ctx.refuse_if_out_of_memory()?;
    }
    let database = turn.wish.bucket.database;
    let earlier = waiting(|waiting| waiting.lines.earlier(database, pool.bytes(), Some(turn.waiter)));
    let outcome = acquire::attempt(&store, of, ask, &earlier, now_ms, may_grant)?;
    Ok(match outcome.wait_ms() {
        Some(ms) if !turn.is_last_chance => Decided::Wait(ms),
        _ => Decided::Answer(Answer::Key(outcome)),
    })
}

/// What the server would have said to a command that writes to this key, had it been one.
fn refused_by_the_server(ctx: Ctx<'_>, bucket: Name<'_>) -> Option<Answer> {
    if server::is_cluster()
        && let Some(words) = ctx.call(c"EXISTS", c"Ev", &[bucket.bytes()]).error()
    {
        if words.contains("cluster is down") {
            return Some(Answer::Refused("CLUSTERDOWN The cluster is down".to_owned()));
        }
        // Its slot is another node's. The bucket has gone there; or it has just come from there, and the slot will follow.
        let has_come = ctx.read(bucket).kind() != Kind::Empty && is_importing(ctx, bucket);
        return if has_come { None } else { Some(Answer::Error(Error::TryAgain)) };
    }
    server::refusal_to_write(ctx, bucket).map(Answer::Refused)
}

/// Whether this node takes over the slot of a key.
fn is_importing(ctx: Ctx<'_>, key: Name<'_>) -> bool {
    let Some(slot) = ctx.call(c"CLUSTER", c"Ev", &[b"KEYSLOT", key.bytes()]).integer() else { return false };
    let nodes = ctx.call(c"CLUSTER", c"Ev", &[b"NODES"]).text().unwrap_or_default();
    nodes.lines().any(|node| node.contains("myself") && node.contains(&format!("[{slot}-<-")))
}

unsafe extern "C" fn on_answer(ctx: *mut raw::RedisModuleCtx, _: *mut *mut raw::RedisModuleString, _: c_int) -> c_int {
    // SAFETY: the server's context is valid during the call.
    let ctx = unsafe { Ctx::new(ctx) };
    ffi::guard(ctx, || {
        // SAFETY: the server gives what the client was released with: an answer, which it frees only afterwards.
        let answer = unsafe { api!(RedisModule_GetBlockedClientPrivateData)(ctx.as_raw()).cast::<Answer>().as_ref() };
        match answer {
            Some(Answer::Claim(reply)) => reply.send(ctx),
            Some(Answer::Key(outcome)) => outcome.send(ctx),
            Some(Answer::Error(error)) => return Err(*error),
            Some(Answer::Refused(words)) => ctx.reply_error_text(words),
            None => return Err(Error::Internal),
        }
        Ok(())
    })
}

unsafe extern "C" fn free_answer(_: *mut raw::RedisModuleCtx, answer: *mut c_void) {
    if !answer.is_null() {
        // SAFETY: the answer came from `Box::into_raw` in `release`, and the server gives it back once.
        drop(unsafe { Box::from_raw(answer.cast::<Answer>()) });
    }
}

/// `CLIENT UNBLOCK` ends the wait: with the refusal that the end of its time would have brought. Nothing is written here.
unsafe extern "C" fn on_unblock(ctx: *mut raw::RedisModuleCtx, _: *mut *mut raw::RedisModuleString, _: c_int) -> c_int {
    // SAFETY: the server's context is valid during the call.
    let ctx = unsafe { Ctx::new(ctx) };
    ffi::guard(ctx, || {
        // SAFETY: in this callback the server has a held client to give.
        let held = Held(unsafe { api!(RedisModule_GetBlockedClientHandle)(ctx.as_raw()) });
        let now_ms = ctx.milliseconds();
        let turn = waiting(|waiting| {
            let id = *waiting.of_client.get(&held.0.addr())?;
            let turn = waiting.lines.last_turn(id);
            waiting.take(id, now_ms);
            turn
        });
        let Some(turn) = turn else { return Err(Error::Internal) };
        held.release(None);
        arm(ctx);
        let bucket = OwnedString::new(&turn.wish.bucket.name);
        match decide(ctx, bucket.name(), &turn, now_ms, false)? {
            Decided::Answer(Answer::Claim(reply)) => reply.send(ctx),
            Decided::Answer(Answer::Key(outcome)) => outcome.send(ctx),
            _ => return Err(Error::Internal),
        }
        Ok(())
    })
}

/// The client is gone: it hung up, was killed, unblocked with an error, or sent away because this server's role changed.
unsafe extern "C" fn on_disconnect(ctx: *mut raw::RedisModuleCtx, held: *mut raw::RedisModuleBlockedClient) {
    // SAFETY: the server's context is valid during the call.
    let ctx = unsafe { Ctx::new(ctx) };
    ffi::guarded((), || {
        let now_ms = ctx.milliseconds();
        let taken = waiting(|waiting| {
            let id = *waiting.of_client.get(&held.addr())?;
            waiting.take(id, now_ms)
        });
        if let Some(held) = taken {
            held.release(None);
            arm(ctx);
        }
    });
}
