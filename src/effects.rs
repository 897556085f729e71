//! Changes of native values: the same function makes them where a command decided, on replicas, and when an append-only file
//! is read. Nothing else replicates, except the server's own commands that [`store`](crate::store) runs for hashes and strings.

use std::ffi::CStr;

use keyguard_core::address::AddressLogs;
use keyguard_core::effect::{
    Admitted, BUCKET_EFFECT_BYTES, Charges, Claimed, Effect, Handed, Owner, UnitClaims, WholeValue, path_of,
};
use keyguard_core::ip::{By, Kind, Net, Rule, Rules};
use keyguard_core::meters::{Lifetime, Meters};
use keyguard_core::names::StoreName;
use keyguard_core::pool::{HandOut, Pool, Traits, Unit};
use keyguard_core::usage::{KEYS, KeyDays, ROW_FIELDS, StoreStats, UsageBatch};
use keyguard_core::window::WindowLog;
use keyguard_core::{Error, Result};

use crate::ffi::{self, Ctx, FieldName, Key, Name, OwnedString};
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

/// Hands out a key of a pool, whose key is open to be changed.
pub fn hand_out(
    ctx: Ctx<'_>,
    store: (StoreName<'_>, Name<'_>),
    key: &mut Key<'_>,
    pool: Name<'_>,
    handed: Handed<'_>,
) -> Result<()> {
    let effect = Effect::HandOut(handed);
    let packed = effect.encode()?;
    let Effect::HandOut(handed) = &effect else { return Err(Error::Internal) };
    book_hand_out(key.native_mut::<Pool>()?.ok_or(Error::Internal)?, handed);
    ctx.signal_modified(pool);
    charge_account(ctx, store.0, handed)?;
    ctx.replicate(APPLY, store.1, &packed);
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
        Effect::Admit(admitted) => admit(ctx, StoreName::parse(name.bytes())?, admitted)?,
        Effect::Block { at_ms, net, until_ms, reason } => {
            let kind = Kind::Block;
            let rule = Rule { kind, path: None, until_ms: *until_ms, reason, by: By::Hand, strikes: None };
            let net = Net::parse(net.as_bytes())?;
            change_rules(ctx, StoreName::parse(name.bytes())?, |rules| rules.set(net, &rule, *at_ms))?;
        }
        Effect::Unblock { net } => {
            let net = Net::parse(net.as_bytes())?;
            change_rules(ctx, StoreName::parse(name.bytes())?, |rules| {
                rules.remove(net, Kind::Block, None);
                Ok(())
            })?;
        }
        Effect::SetRule { at_ms, net, rule } => {
            let (net, rule) = (Net::parse(net.as_bytes())?, rule.rule()?);
            change_rules(ctx, StoreName::parse(name.bytes())?, |rules| rules.set(net, &rule, *at_ms))?;
        }
        Effect::DropRule { net, kind, path } => {
            let (net, path) = (Net::parse(net.as_bytes())?, path_of(*path)?);
            change_rules(ctx, StoreName::parse(name.bytes())?, |rules| {
                rules.remove(net, *kind, path.as_ref());
                Ok(())
            })?;
        }
        Effect::ClaimAddress { net, path, claimed } => {
            let (net, path) = (Net::parse(net.as_bytes())?, path_of(*path)?);
            change_address(ctx, StoreName::parse(name.bytes())?, net, |logs| logs.claim(path.as_ref(), *claimed))?;
        }
        Effect::ClearAddress { net, path, blocks } => {
            let (store, net, path) = (StoreName::parse(name.bytes())?, Net::parse(net.as_bytes())?, path_of(*path)?);
            let blocks = blocks.iter().map(|path| path_of(*path)).collect::<Result<Vec<_>>>()?;
            if !blocks.is_empty() {
                change_rules(ctx, store, |rules| {
                    blocks.iter().for_each(|path| _ = rules.remove(net, Kind::Block, path.as_ref()));
                    Ok(())
                })?;
            }
            change_address(ctx, store, net, |logs| match &path {
                Some(path) => _ = logs.clear(path),
                None => *logs = AddressLogs::default(),
            })?;
        }
        Effect::Enroll { pool, from, id, traits } => {
            let store = StoreName::parse(name.bytes())?;
            let traits = Traits::decode(traits).ok_or(Error::Damaged { what: "effect" })?;
            let mut history = None;
            if let Some(from) = from {
                change_pool(ctx, &store.pool(from), |pool| history = pool.withdraw(&[*id]))?;
            }
            change_pool(ctx, &store.pool(pool), |pool| pool.enroll(*id, &traits, history))?;
        }
        Effect::Withdraw { pool, ids } => {
            let store = StoreName::parse(name.bytes())?;
            change_pool(ctx, &store.pool(pool), |pool| drop(pool.withdraw(ids)))?;
        }
        Effect::Recall { pool, id, remembered } => {
            let store = StoreName::parse(name.bytes())?;
            change_pool(ctx, &store.pool(pool), |pool| pool.recall(*id, remembered))?;
        }
        Effect::HandOut(handed) => {
            let store = StoreName::parse(name.bytes())?;
            change_pool(ctx, &store.pool(handed.pool), |pool| book_hand_out(pool, handed))?;
            charge_account(ctx, store, handed)?;
        }
        Effect::Cool { pool, id, cooling } => {
            let store = StoreName::parse(name.bytes())?;
            change_pool(ctx, &store.pool(pool), |pool| pool.cool(*id, *cooling))?;
        }
        Effect::Settle { pool, id, at_ms, own, account } => {
            let store = StoreName::parse(name.bytes())?;
            change_pool(ctx, &store.pool(pool), |pool| {
                for (unit, units, window_ms) in own {
                    pool.settle(*id, unit, *at_ms, *units, *window_ms);
                }
            })?;
            if let Some((account, claims)) = account {
                change_meters(ctx, &store.account(account), |meters| {
                    for (unit, units, window_ms) in claims {
                        meters.settle(unit, *at_ms, *units, *window_ms);
                    }
                })?;
            }
        }
        Effect::Whole { value } => match value {
            WholeValue::Bucket(bytes) => replace::<WindowLog>(ctx, name, bytes)?,
            WholeValue::Meters(bytes) => replace::<Meters>(ctx, name, bytes)?,
            WholeValue::Rules(bytes) => replace::<Rules>(ctx, name, bytes)?,
            WholeValue::Pool(bytes) => replace::<Pool>(ctx, name, bytes)?,
            WholeValue::Address(bytes) => replace::<AddressLogs>(ctx, name, bytes)?,
            WholeValue::Stats(bytes) => replace::<StoreStats>(ctx, name, bytes)?,
            WholeValue::Days(bytes) => replace::<KeyDays>(ctx, name, bytes)?,
        },
        Effect::Usage(batch) => note_usage(ctx, StoreName::parse(name.bytes())?, batch)?,
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
        let name = match charge.owner {
            Owner::Key(id) => store.win(id),
            Owner::Org(org) => store.orgwin(org),
        };
        let of_owner = charges.iter().filter(|other| other.owner == charge.owner);
        let claims: Vec<_> = of_owner.map(|charge| (charge.unit, charge.claimed)).collect();
        change_meters(ctx, &name, |meters| meters.charge(&claims))?;
    }
    Ok(())
}

/// The readable field of a record that says when an API key was last used.
pub static LAST_USED_AT: FieldName = FieldName::new("last_used_at");

fn admit(ctx: Ctx<'_>, store: StoreName<'_>, admitted: &Admitted<'_>) -> Result<()> {
    note_use(ctx, store, admitted);
    if admitted.last_use || !admitted.own.is_empty() {
        change_meters(ctx, &store.win(admitted.id), |meters| book_own(meters, admitted))?;
    }
    if let Some((org, charged)) = &admitted.org {
        change_meters(ctx, &store.orgwin(org), |meters| meters.book(admitted.at_ms, charged))?;
    }
    Ok(())
}

/// Where the state of a key or an organization stands: its name, and the key, open to be changed.
pub type OpenState<'a, 'c> = (&'a OwnedString, &'a mut Key<'c>);

/// Makes the change of an authenticated call: as [`commit`], on keys that are open.
pub fn commit_admitted(
    ctx: Ctx<'_>,
    store: (StoreName<'_>, Name<'_>),
    admitted: Admitted<'_>,
    own: OpenState<'_, '_>,
    org: Option<OpenState<'_, '_>>,
) -> Result<()> {
    let effect = Effect::Admit(admitted);
    let packed = effect.encode()?;
    let Effect::Admit(admitted) = &effect else { return Err(Error::Internal) };
    note_use(ctx, store.0, admitted);
    if admitted.last_use || !admitted.own.is_empty() {
        change_open_meters(ctx, own.0.name(), own.1, |meters| book_own(meters, admitted))?;
    }
    if let (Some((_, charged)), Some((name, key))) = (&admitted.org, org) {
        change_open_meters(ctx, name.name(), key, |meters| meters.book(admitted.at_ms, charged))?;
    }
    ctx.replicate(APPLY, store.1, &packed);
    Ok(())
}

fn book_own(meters: &mut Meters, admitted: &Admitted<'_>) {
    meters.book(admitted.at_ms, &admitted.own);
    if admitted.last_use {
        meters.set_use(admitted.at_ms);
    }
}

/// Writes a use down in the record.
fn note_use(ctx: Ctx<'_>, store: StoreName<'_>, admitted: &Admitted<'_>) {
    if !admitted.last_use {
        return;
    }
    let name = OwnedString::new(&store.key(admitted.id));
    let key = ctx.change(name.name());
    // A record that somebody deleted by hand is not brought back by halves.
    if key.kind() == ffi::Kind::Hash {
        key.set_hash_field(&LAST_USED_AT, admitted.at_ms.to_string().as_bytes());
        ctx.signal_modified(name.name());
    }
}

/// Changes window logs by unit, made here if need be, and the key's expiry with them.
fn change_meters(ctx: Ctx<'_>, name: &[u8], change: impl FnOnce(&mut Meters)) -> Result<()> {
    let name = OwnedString::new(name);
    change_open_meters(ctx, name.name(), &mut ctx.change(name.name()), change)
}

/// As [`change_meters`], of a key that is open to be changed.
fn change_open_meters(ctx: Ctx<'_>, name: Name<'_>, key: &mut Key<'_>, change: impl FnOnce(&mut Meters)) -> Result<()> {
    let meters: &mut Meters = value_of(key)?;
    let before = meters.lifetime();
    change(meters);
    match meters.lifetime() {
        Lifetime::Over => key.delete(),
        lifetime if lifetime == before => {}
        Lifetime::Until(at_ms) => key.expire_at(at_ms),
        Lifetime::Forever => key.persist(),
    }
    ctx.signal_modified(name);
    Ok(())
}

fn book_hand_out(pool: &mut Pool, handed: &Handed<'_>) {
    let Handed { id, at_ms, turn, pass, own, .. } = handed;
    let claims = in_claims(own, *at_ms).filter_map(|(unit, claimed)| Some((Unit::from(unit).ok()?, claimed)));
    let claims: Vec<(Unit, Claimed)> = claims.collect();
    pool.hand_out(&HandOut { id: *id, at_ms: *at_ms, turn: *turn, pass: *pass, claims: &claims });
}

fn charge_account(ctx: Ctx<'_>, store: StoreName<'_>, handed: &Handed<'_>) -> Result<()> {
    let Some((account, claims)) = &handed.account else { return Ok(()) };
    let claims: Vec<_> = in_claims(claims, handed.at_ms).collect();
    if claims.is_empty() {
        Ok(())
    } else {
        change_meters(ctx, &store.account(account), |meters| meters.charge(&claims))
    }
}

fn in_claims<'a>(claims: &'a UnitClaims<'a>, at_ms: u64) -> impl Iterator<Item = (&'a str, Claimed)> {
    claims.iter().map(move |(unit, units, window_ms)| (*unit, Claimed { at_ms, units: *units, window_ms: *window_ms }))
}

/// Changes a pool, made here if need be, and gone when no key is left in it.
fn change_pool(ctx: Ctx<'_>, name: &[u8], change: impl FnOnce(&mut Pool)) -> Result<()> {
    let name = OwnedString::new(name);
    let mut key = ctx.change(name.name());
    let pool: &mut Pool = value_of(&mut key)?;
    change(pool);
    if pool.is_empty() {
        key.delete();
    }
    ctx.signal_modified(name.name());
    Ok(())
}

/// The value of a key that is open to be changed, made here if there is none.
fn value_of<'k, T: Native + Default>(key: &'k mut Key<'_>) -> Result<&'k mut T> {
    if key.native::<T>()?.is_none() {
        key.put(T::default());
    }
    key.native_mut()?.ok_or(Error::Internal)
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

/// Changes what an address claimed, and the key's expiry with it; where nothing is left, the key goes.
fn change_address(ctx: Ctx<'_>, store: StoreName<'_>, net: Net, change: impl FnOnce(&mut AddressLogs)) -> Result<()> {
    let name = OwnedString::new(&store.ip(net));
    let mut key = ctx.change(name.name());
    let logs: &mut AddressLogs = value_of(&mut key)?;
    change(logs);
    match logs.expires_at_ms() {
        Some(at_ms) => key.expire_at(at_ms),
        None => key.delete(),
    }
    ctx.signal_modified(name.name());
    Ok(())
}

/// The fields of an entry in the usage log.
static ROW: [FieldName; ROW_FIELDS.len()] = {
    let [id, code, status, ms, method, path, ip] = ROW_FIELDS;
    [
        FieldName::new(id),
        FieldName::new(code),
        FieldName::new(status),
        FieldName::new(ms),
        FieldName::new(method),
        FieldName::new(path),
        FieldName::new(ip),
    ]
};

/// Writes down what was counted and logged.
fn note_usage(ctx: Ctx<'_>, store: StoreName<'_>, batch: &UsageBatch<'_>) -> Result<()> {
    let of = |name: Vec<u8>| OwnedString::new(&name);
    let (all, log) = (of(store.stats()), of(store.usage()));
    let has_counts = batch.totals.is_some() || !batch.minutes.is_empty() || !batch.hours.is_empty();
    let has_keys = !batch.keys.is_empty() || !batch.gone.is_empty();
    let changes_log = !batch.rows.is_empty() || batch.log_entries.is_some() || batch.log_from.is_some();
    let mut chunks: Vec<u64> =
        batch.keys.iter().map(|(id, ..)| id / KEYS).chain(batch.gone.iter().map(|id| id / KEYS)).collect();
    chunks.dedup();
    // The types of all that is touched are looked at before the first change.
    if has_counts || has_keys {
        ctx.read(all.name()).native::<StoreStats>()?;
    }
    for chunk in &chunks {
        ctx.read(of(store.days(*chunk)).name()).native::<KeyDays>()?;
    }
    if changes_log {
        ctx.read(log.name()).stream_len()?;
    }

    if has_counts || has_keys {
        let mut key = ctx.change(all.name());
        let stats: &mut StoreStats = value_of(&mut key)?;
        stats.merge(&batch.totals.unwrap_or_default(), &batch.minutes, &batch.hours, batch.now_ms);
        for keys in batch.keys.chunk_by(|(one, ..), (other, ..)| one / KEYS == other / KEYS) {
            let name = of(store.days(keys.first().map_or(0, |(id, ..)| id / KEYS)));
            let mut key = ctx.change(name.name());
            let value: &mut KeyDays = value_of(&mut key)?;
            for (id, totals, days) in keys {
                stats.offer(*id, value.merge((id % KEYS) as u8, totals, days, batch.today));
            }
            ctx.signal_modified(name.name());
        }
        for ids in batch.gone.chunk_by(|one, other| one / KEYS == other / KEYS) {
            let name = of(store.days(ids.first().map_or(0, |id| id / KEYS)));
            let mut key = ctx.change(name.name());
            let value: &mut KeyDays = value_of(&mut key)?;
            for id in ids {
                value.forget((id % KEYS) as u8);
                stats.forget(*id);
            }
            if value.is_empty() {
                key.delete();
            }
            ctx.signal_modified(name.name());
        }
        ctx.signal_modified(all.name());
    }
    if changes_log {
        let key = ctx.change(log.name());
        for row in &batch.rows {
            let fields = row.fields();
            let fields =
                fields.iter().filter_map(|(index, text)| Some((ROW.get(*index)?, OwnedString::new(text.as_bytes()))));
            // One that the log has, or had, stays as it is.
            key.stream_add((row.at_ms, row.seq), fields);
        }
        if key.kind() == ffi::Kind::Stream {
            match batch.log_entries {
                Some(0) => key.delete(),
                Some(entries) => key.stream_keep(entries),
                None => {}
            }
        }
        if key.kind() == ffi::Kind::Stream
            && let Some(from) = batch.log_from
        {
            key.stream_keep_from(from);
        }
        ctx.signal_modified(log.name());
    }
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
