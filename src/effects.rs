//! Changes of native values: the same function makes them where a command decided, on replicas, and when an append-only file
//! is read. Nothing else replicates, except the server's own commands that [`store`](crate::store) runs for hashes and strings.

use std::ffi::CStr;

use keyguard_core::effect::{BUCKET_EFFECT_BYTES, Charges, Claimed, Effect, Owner, WholeValue};
use keyguard_core::ip::{Net, Rule, Rules};
use keyguard_core::meters::Meters;
use keyguard_core::names::StoreName;
use keyguard_core::window::WindowLog;
use keyguard_core::{Error, Result};

use crate::ffi::{Ctx, Key, Name, OwnedString};
use crate::native::Native;

/// The command that carries effects.
pub const APPLY: &CStr = c"KG.APPLY";

/// Books a claim or a lock on a bucket, whose key is open to be changed.
pub fn book(ctx: Ctx<'_>, bucket: Name<'_>, key: &mut Key<'_>, effect: &Effect<'_>) -> Result<()> {
    let mut buffer = [0; BUCKET_EFFECT_BYTES];
    let packed = effect.encode_into(&mut buffer)?;
    match effect {
        Effect::Claim(claimed) => change(key, |log| push(log, *claimed))?,
        Effect::Lock { at_ms, until_ms } => change(key, |log| log.lock(*at_ms, *until_ms))?,
        _ => return Err(Error::Internal),
    }
    ctx.signal_modified(bucket);
    ctx.replicate(APPLY, bucket, packed);
    Ok(())
}

/// Takes back up to `units` units from a bucket, whose key is open to be changed, and says how many there were.
pub fn refund(
    ctx: Ctx<'_>,
    bucket: Name<'_>,
    key: &mut Key<'_>,
    units: u64,
    at_ms: Option<u64>,
    dead_until_ms: Option<u64>,
) -> Result<u64> {
    let taken = take_back(key, units, at_ms, dead_until_ms)?;
    if taken > 0 {
        ctx.signal_modified(bucket);
        ctx.replicate(APPLY, bucket, &Effect::Refund { units: taken, at_ms }.encode()?);
    }
    Ok(taken)
}

/// Makes a change of a store's native values.
pub fn commit(ctx: Ctx<'_>, store: Name<'_>, effect: &Effect<'_>) -> Result<()> {
    let packed = effect.encode()?;
    apply(ctx, store, effect)?;
    ctx.replicate(APPLY, store, &packed);
    Ok(())
}

/// Carries out an effect on the declared key `name`. It is history, not a request: no limit is asked.
///
/// # Errors
/// [`Error::WrongType`] where a key of another type stands in the way, [`Error::Damaged`] for an effect that names what cannot
/// be; then nothing was changed.
pub fn apply(ctx: Ctx<'_>, name: Name<'_>, effect: &Effect<'_>) -> Result<()> {
    match effect {
        Effect::Claim(claimed) => {
            change(&mut ctx.change(name), |log| push(log, *claimed))?;
            ctx.signal_modified(name);
        }
        Effect::Lock { at_ms, until_ms } => {
            change(&mut ctx.change(name), |log| log.lock(*at_ms, *until_ms))?;
            ctx.signal_modified(name);
        }
        Effect::Refund { units, at_ms } => {
            take_back(&mut ctx.change(name), *units, *at_ms, None)?;
            ctx.signal_modified(name);
        }
        Effect::Charge(charges) => charge(ctx, StoreName::parse(name.bytes())?, charges)?,
        Effect::Block { at_ms, net, until_ms, reason } => {
            let rule = Rule { until_ms: *until_ms, reason: (*reason).to_owned() };
            let net = Net::parse(net.as_bytes())?;
            change_rules(ctx, StoreName::parse(name.bytes())?, |rules| {
                rules.prune(*at_ms);
                rules.block(net, rule).map(drop)
            })?;
        }
        Effect::Unblock { net } => {
            let net = Net::parse(net.as_bytes())?;
            change_rules(ctx, StoreName::parse(name.bytes())?, |rules| {
                rules.unblock(net);
                Ok(())
            })?;
        }
        Effect::Whole { value } => match value {
            WholeValue::Bucket(bytes) => replace::<WindowLog>(ctx, name, bytes)?,
            WholeValue::Meters(bytes) => replace::<Meters>(ctx, name, bytes)?,
            WholeValue::Rules(bytes) => replace::<Rules>(ctx, name, bytes)?,
        },
    }
    Ok(())
}

fn push(log: &mut WindowLog, claimed: Claimed) {
    log.push(claimed.at_ms, claimed.units, claimed.window_ms);
}

/// Changes the log of a bucket, made here if need be, and the key's expiry with it.
fn change(key: &mut Key<'_>, change: impl FnOnce(&mut WindowLog)) -> Result<()> {
    let mut expires_at_ms = None;
    let log = match key.native_mut::<WindowLog>()? {
        Some(log) => {
            expires_at_ms = log.expires_at_ms();
            change(log);
            log
        }
        None => {
            let mut log = WindowLog::default();
            change(&mut log);
            key.put(log)
        }
    };
    // Many claims in one millisecond need one expiry.
    if let Some(at_ms) = log.expires_at_ms().filter(|at_ms| Some(*at_ms) != expires_at_ms) {
        key.expire_at(at_ms);
    }
    Ok(())
}

fn take_back(key: &mut Key<'_>, units: u64, at_ms: Option<u64>, dead_until_ms: Option<u64>) -> Result<u64> {
    let Some(log) = key.native_mut::<WindowLog>()? else { return Ok(0) };
    let taken = log.refund(units, at_ms, dead_until_ms);
    if taken == 0 {
        // Nothing changed, so nothing is replicated: the expiry must stay as it is too.
        return Ok(0);
    }
    match log.expires_at_ms() {
        Some(at_ms) => key.expire_at(at_ms),
        None => key.delete(),
    }
    Ok(taken)
}

fn charge(ctx: Ctx<'_>, store: StoreName<'_>, charges: &Charges<'_>) -> Result<()> {
    for (index, charge) in charges.iter().enumerate() {
        // The charges of one owner stand together: its key is opened once.
        if index > 0 && charges.get(index - 1).is_some_and(|before| before.owner == charge.owner) {
            continue;
        }
        let name = OwnedString::new(&match charge.owner {
            Owner::Key(id) => store.win(id),
            Owner::Org(org) => store.orgwin(org),
        });
        let mut key = ctx.change(name.name());
        let meters = if key.native::<Meters>()?.is_some() { key.native_mut()? } else { None };
        let meters = match meters {
            Some(meters) => meters,
            None => key.put(Meters::default()),
        };
        let of_owner = charges.iter().filter(|other| other.owner == charge.owner);
        meters.charge(&of_owner.map(|charge| (charge.unit, charge.claimed)).collect::<Vec<_>>());
        let expires_at = meters.expires_at_ms();
        if let Some(at_ms) = expires_at {
            key.expire_at(at_ms);
        }
        ctx.signal_modified(name.name());
    }
    Ok(())
}

fn change_rules(ctx: Ctx<'_>, store: StoreName<'_>, change: impl FnOnce(&mut Rules) -> Result<()>) -> Result<()> {
    let name = OwnedString::new(&store.ips());
    let mut key = ctx.change(name.name());
    match key.native_mut::<Rules>()? {
        Some(rules) => {
            change(rules)?;
            if rules.is_empty() {
                key.delete();
            }
        }
        None => {
            let mut rules = Rules::new();
            change(&mut rules)?;
            if !rules.is_empty() {
                key.put(rules);
            }
        }
    }
    ctx.signal_modified(name.name());
    Ok(())
}

fn replace<T: Native>(ctx: Ctx<'_>, name: Name<'_>, bytes: &[u8]) -> Result<()> {
    let value = T::from_bytes(bytes).ok_or(Error::Damaged { what: "effect" })?;
    let mut key = ctx.change(name);
    key.delete();
    key.put(value);
    ctx.signal_modified(name);
    Ok(())
}
