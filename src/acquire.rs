//! Handing out vault keys: what `KG.ACQUIRE` does, at once or when its turn has come.

use std::borrow::Cow;
use std::sync::atomic::{AtomicU64, Ordering};

use keyguard_core::effect::{Claimed, Effect, Handed, UnitClaims};
use keyguard_core::limiter::{Retry, Verdict};
use keyguard_core::meters::Meters;
use keyguard_core::pool::{Pool, Traits, Unit, Wanted};
use keyguard_core::record::{Status, VaultRecord};
use keyguard_core::secret::Secret;
use keyguard_core::selection::{Accounts, Ask, Choice, Chosen, Order, Refusal};
use keyguard_core::vault;
use keyguard_core::{Error, Result};

use crate::effects;
use crate::ffi::{Ctx, Key, Level, OwnedString};
use crate::keyring;
use crate::reply::{Map, Value};
use crate::store::{Store, place};

/// How many keys whose record is not what the pool says one call puts right before it gives up.
const MAX_PUT_RIGHT: usize = 16;

/// What comes of a call. It may hold a secret, which is wiped when it is dropped.
pub enum Outcome {
    /// A key was handed out.
    Acquired {
        /// Its id.
        id: u64,
        /// Its secret.
        secret: Secret,
        /// The instant of the claim, in unix milliseconds.
        claimed_at_ms: u64,
        /// What the limit that matters most says.
        verdict: Option<Verdict>,
    },
    /// None was.
    Refused {
        /// Why.
        why: Refusal,
        /// When one may be had.
        retry: Retry,
        /// The same, but for keys that are left to those who wait.
        again: Retry,
    },
}

impl Outcome {
    /// How long to wait before it is worth another try, in milliseconds, unless something changes before; None if there is
    /// nothing to wait for.
    pub fn wait_ms(&self) -> Option<u64> {
        match self {
            Self::Acquired { .. } => None,
            Self::Refused { again: Retry::After(ms), .. } => Some(*ms),
            // Those to whom keys are left may go: then whoever waits is looked at.
            Self::Refused { retry: Retry::After(_), .. } => Some(u64::from(u32::MAX)),
            // A key may be added, or made active again.
            Self::Refused { why: Refusal::NoneUsable, .. } => Some(u64::from(u32::MAX)),
            Self::Refused { .. } => None,
        }
    }

    /// Sends the reply.
    pub fn send(&self, ctx: Ctx<'_>) {
        let mut map = Map::default();
        match self {
            Self::Acquired { id, secret, claimed_at_ms, verdict } => {
                map.field("code", "ACQUIRED").field("id", *id).field("secret", secret.expose());
                map.field("claimed_at_ms", *claimed_at_ms);
                if let Some(verdict) = verdict {
                    map.field("limit", verdict.limit.count())
                        .field("remaining", verdict.remaining())
                        .field("reset_after_ms", verdict.reset_after_ms);
                }
            }
            Self::Refused { why, retry, .. } => {
                map.field("code", why.as_str()).field("retry_after_ms", Value::Integer(retry.as_reply()));
            }
        }
        map.send(ctx);
    }
}

/// Chooses a key of the name `of`, books it and opens its secret, all or nothing; without `may_write` it only says what keeps it
/// from that. A key whose secret does not open is told of in the log, and passed over.
///
/// # Errors
/// [`Error::NoSuch`] if no key has this name; what a damaged or tampered record answers, if no other key is usable.
pub fn attempt(
    store: &Store<'_>,
    of: &str,
    ask: &Ask,
    barred: &[Wanted],
    now_ms: u64,
    may_write: bool,
) -> Result<Outcome> {
    let ctx = store.ctx();
    let name = OwnedString::new(&store.name.pool(of));
    let random = if ask.order == Order::Random { u64::from_le_bytes(*keyring::random()?) } else { 0 };
    let mut windows = Windows { store, last: None };
    let (mut ask, mut unopened) = (Cow::Borrowed(ask), None);
    for _ in 0..MAX_PUT_RIGHT {
        let mut key = if may_write { ctx.change(name.name()) } else { ctx.read(name.name()) };
        let Some(pool) = key.native_mut::<Pool>()? else {
            drop(key);
            store.confirm()?;
            store.confirm_absent(name.name().bytes())?;
            return Err(Error::NoSuch { what: "name" });
        };
        let chosen = match pool.choose(&ask, barred, now_ms, random, &mut windows)? {
            Choice::Refused { why: Refusal::NoneUsable, .. } if let Some(error) = unopened => return Err(error),
            Choice::Refused { why, retry, again } => return Ok(Outcome::Refused { why, retry, again }),
            Choice::Chosen(_) if !may_write => {
                let retry = Retry::After(1);
                return Ok(Outcome::Refused { why: Refusal::RateLimited, retry, again: retry });
            }
            Choice::Chosen(chosen) => chosen,
        };
        windows.last = None;
        let packed = match store.packed_record(chosen.id) {
            // Gone, or without all that is believed of it.
            Err(Error::NoSuch { .. } | Error::Damaged { .. }) => {
                drop(key);
                effects::commit(ctx, store.header, &Effect::Withdraw { pool: of, ids: vec![chosen.id] })?;
                continue;
            }
            packed => packed?,
        };
        let keyring = keyring::current(ctx)?;
        let opened = VaultRecord::decode(packed.bytes()).and_then(|record| {
            if !agrees(&record, of, now_ms) {
                return Ok(Err(record));
            }
            vault::open(&keyring, &place(store, chosen.id), record.sealed).map(Ok)
        });
        let secret = match opened {
            Ok(Ok(secret)) => secret,
            Ok(Err(record)) => {
                drop(key);
                put_right(store, of, chosen.id, &record)?;
                continue;
            }
            Err(error) => {
                tell(ctx, chosen.id, error, now_ms);
                unopened.get_or_insert(error);
                ask.to_mut().passed_over.push(chosen.id);
                continue;
            }
        };

        let Chosen { id, at_ms, turn, pass, claims, account, verdict } = &*chosen;
        let handed = Handed {
            pool: of,
            id: *id,
            at_ms: *at_ms,
            turn: *turn,
            pass: *pass,
            own: in_effect(claims),
            account: account.as_ref().map(|(account, claims)| (&**account, in_effect(claims))),
        };
        effects::hand_out(ctx, (store.name, store.header), &mut key, name.name(), handed)?;
        return Ok(Outcome::Acquired { id: *id, secret, claimed_at_ms: *at_ms, verdict: *verdict });
    }
    Err(unopened.unwrap_or(Error::Damaged { what: "pool" }))
}

/// Tells the operator which key it was, which the caller is not told; once a second, however many callers there are.
fn tell(ctx: Ctx<'_>, id: u64, error: Error, now_ms: u64) {
    static TOLD_MS: AtomicU64 = AtomicU64::new(0);
    if now_ms.abs_diff(TOLD_MS.load(Ordering::Relaxed)) >= 1000 {
        TOLD_MS.store(now_ms, Ordering::Relaxed);
        ctx.log(Level::Warning, &format!("vault key {id} could not be handed out: {error}"));
    }
}

/// Whether a record is one that the pool may hand out: somebody may have changed it by hand, or restored an older one.
fn agrees(record: &VaultRecord<'_>, of: &str, now_ms: u64) -> bool {
    record.name == of && record.status == Status::Active && !record.expired(now_ms)
}

/// The record is what counts: it goes to the pool of its name, unless something else stands there.
fn put_right(store: &Store<'_>, of: &str, id: u64, record: &VaultRecord<'_>) -> Result<()> {
    let traits = Traits::of(record).encode();
    let has_place = store.read(&store.name.pool(record.name))?.native::<Pool>().is_ok();
    let effect = if has_place {
        let from = (record.name != of).then_some(of);
        Effect::Enroll { pool: record.name, from, id, traits: &traits }
    } else {
        Effect::Withdraw { pool: of, ids: vec![id] }
    };
    effects::commit(store.ctx(), store.header, &effect)
}

fn in_effect(claims: &[(Unit, Claimed)]) -> UnitClaims<'_> {
    claims.iter().map(|(unit, claimed)| (unit.as_str(), claimed.units, claimed.window_ms)).collect()
}

/// The windows of accounts in the keyspace.
struct Windows<'s, 'c> {
    store: &'s Store<'c>,
    /// Most keys that are looked at one after the other have the same account.
    last: Option<(Box<str>, Key<'c>)>,
}

impl Accounts for Windows<'_, '_> {
    fn look(&mut self, account: &str, look: &mut dyn FnMut(Option<&Meters>)) -> Result<()> {
        if self.last.as_ref().is_none_or(|(last, _)| **last != *account) {
            self.last = Some((account.into(), self.store.read(&self.store.name.account(account))?));
        }
        let Some((_, key)) = &self.last else { return Err(Error::Internal) };
        look(key.native()?);
        Ok(())
    }
}
