//! Failed look-ups of API keys, by address: who has too many within an hour is kept out for a while.
//!
//! The counts are this process's alone, see `keyguard_core::failures`; the block that follows on them is an address rule like any
//! other, replicated and saved.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use keyguard_core::effect::{Effect, RuleSet};
use keyguard_core::failures::{Failures, Who};
use keyguard_core::ip::{Address, Net, Rules, Standing};
use keyguard_core::{Error, Result};
use rand::TryRng;
use rand::rngs::SysRng;

use crate::commands::Call;
use crate::config;
use crate::effects;
use crate::ffi::{Ctx, Level, OwnedString};
use crate::store::Store;

static TABLE: Mutex<Option<Failures>> = Mutex::new(None);
static BLOCKS: AtomicU64 = AtomicU64::new(0);

/// Counts a look-up that found nothing against an address that was let in, and blocks it if there were too many.
pub fn note(call: &Call<'_>, store: &Store<'_>, address: Address) -> Result<()> {
    let threshold = threshold(store)?;
    if threshold == 0 {
        return Ok(());
    }
    let name = store.name.ips();
    let key = store.read(&name)?;
    let none = Rules::new();
    let rules = key.native::<Rules>()?.unwrap_or(&none);
    if matches!(rules.judge(address, None, call.now_ms), Standing::Allowed(..)) {
        return Ok(());
    }
    let net = address.net();
    let who = who(call.ctx, store, address);
    let failures = with_table(|table| table.note(who, call.now_ms))?;
    if failures <= threshold {
        return Ok(());
    }
    let Some(block) = rules.next_block(net, config::ip_block_duration_ms(), call.now_ms) else { return Ok(()) };
    if let Err(error) = rules.accept(net, &block, call.now_ms) {
        log_no_room(call, store, net, error);
        return Ok(());
    }
    drop(key);

    let text = net.to_string();
    let effect = Effect::SetRule { at_ms: call.now_ms, net: &text, rule: RuleSet::of(&block) };
    effects::commit(call.ctx, store.header, &effect)?;
    call.ctx.notify(c"kg.block", OwnedString::new(&name).name());
    forget(call.ctx, store, address, call.now_ms);
    BLOCKS.fetch_add(1, Ordering::Relaxed);
    let minutes = block.left_ms(call.now_ms).unwrap_or(0).div_ceil(60_000);
    let strikes = block.strikes.map_or(1, |strikes| strikes.count);
    let what = format!("{failures} look-ups of unknown keys within an hour, block {strikes} in a row");
    call.ctx.log(Level::Notice, &format!("store {}: {net} is kept out for {minutes} min: {what}", store.name));
    Ok(())
}

/// Says in the log that an address is not kept out, because there is no room for the rule. Whoever sends the calls decides how often
/// that happens: so it is said once a minute.
pub fn log_no_room(call: &Call<'_>, store: &Store<'_>, net: Net, error: Error) {
    static SAID_MS: AtomicU64 = AtomicU64::new(0);
    let said_ms = SAID_MS.load(Ordering::Relaxed);
    if call.now_ms < said_ms || call.now_ms - said_ms >= 60_000 {
        SAID_MS.store(call.now_ms, Ordering::Relaxed);
        call.ctx.log(Level::Warning, &format!("store {}: {net} is not kept out: {error}", store.name));
    }
}

/// How many failures of an address count now.
pub fn count(ctx: Ctx<'_>, store: &Store<'_>, address: Address, now_ms: u64) -> u64 {
    lock().as_ref().map_or(0, |table| table.count(who(ctx, store, address), now_ms))
}

/// Forgets the failures of an address. Whether any counted.
pub fn forget(ctx: Ctx<'_>, store: &Store<'_>, address: Address, now_ms: u64) -> bool {
    lock().as_mut().is_some_and(|table| table.clear(who(ctx, store, address), now_ms))
}

/// Forgets all: what they were counted for may be gone.
pub fn forget_all() {
    if let Some(table) = lock().as_mut() {
        table.clear_all();
    }
}

/// How many addresses have failures that count now.
pub fn addresses(now_ms: u64) -> u64 {
    lock().as_ref().map_or(0, |table| table.addresses(now_ms) as u64)
}

/// How many blocks followed on failures since the server started.
pub fn blocks() -> u64 {
    BLOCKS.load(Ordering::Relaxed)
}

/// More failures than this within an hour are too many; 0 is never. The store's own setting comes before that of the server.
fn threshold(store: &Store<'_>) -> Result<u64> {
    Ok(store.ip_threshold()?.unwrap_or_else(config::ip_block_threshold))
}

fn who<'a>(ctx: Ctx<'_>, store: &Store<'a>, address: Address) -> Who<'a> {
    Who { database: ctx.selected_database(), store: store.name.as_str(), net: address.net() }
}

fn with_table<T>(run: impl FnOnce(&mut Failures) -> T) -> Result<T> {
    let mut table = lock();
    if table.is_none() {
        let random = || SysRng.try_next_u64().map_err(|_| Error::Internal);
        *table = Some(Failures::new([random()?, random()?]));
    }
    table.as_mut().map(run).ok_or(Error::Internal)
}

fn lock() -> MutexGuard<'static, Option<Failures>> {
    TABLE.lock().unwrap_or_else(PoisonError::into_inner)
}
