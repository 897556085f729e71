//! What the commands of the gate share: how a raw key leads to its record, and how often each code was answered.

use std::sync::atomic::{AtomicU64, Ordering};

use keyguard_core::digest::{Digest, Domain, digest, foreign_digest};
use keyguard_core::gate::Code;
use keyguard_core::names::Derived;
use keyguard_core::record::ApiRecord;
use keyguard_core::token::MAX_FOREIGN_BYTES;
use keyguard_core::{Error, Result, parse, token};

use crate::ffi::Ctx;
use crate::keyring;
use crate::store::{FOREIGN_KEYS, Packed, Store};

/// How often `KG.AUTH` answered each code since the module was loaded, in the order of [`Code::ALL`].
static ANSWERED: [AtomicU64; Code::ALL.len()] = [const { AtomicU64::new(0) }; Code::ALL.len()];

/// Counts an answer.
pub fn count(code: Code) {
    if let Some(count) = ANSWERED.get(code as usize) {
        count.fetch_add(1, Ordering::Relaxed);
    }
}

/// How often each code was answered.
pub fn answered() -> impl Iterator<Item = (Code, u64)> {
    Code::ALL.into_iter().zip(&ANSWERED).map(|(code, count)| (code, count.load(Ordering::Relaxed)))
}

/// Where a raw key leads: to the id of a record, its packed form, and the digest that was found.
pub struct Found {
    pub id: u64,
    pub packed: Packed,
    pub digest: Digest,
    /// Whether the digest is one under the newest key of the keyring.
    pub is_newest: bool,
}

impl Found {
    /// Whether the raw key is one of the record now.
    ///
    /// # Errors
    /// [`Error::Damaged`] for a record that the index led to in error.
    pub fn works(&self, record: &ApiRecord<'_>, now_ms: u64) -> Result<bool> {
        if record.issued_as(&self.digest, now_ms).is_some() {
            return Ok(true);
        }
        // The grace of a rotated key may end before the server takes its entry out of the index.
        if record.issued_as(&self.digest, 0).is_some() { Ok(false) } else { Err(ASTRAY) }
    }
}

const ASTRAY: Error = Error::Damaged { what: "digest index" };

/// Finds the record that a raw key is of; `buffer` is for the names of keys. What has not the form of ours is looked up only where
/// the store counts raw keys that were made elsewhere: digested as our own, then as it was where they come from.
///
/// # Errors
/// [`Error::NoKeyring`] where the keyring lacks a key that the store uses: its customers would else be strangers;
/// [`Error::Damaged`] for an index that leads nowhere.
pub fn look_up(ctx: Ctx<'_>, store: &Store<'_>, raw_key: &[u8], buffer: &mut Vec<u8>) -> Result<Option<Found>> {
    let is_ours = token::well_formed(raw_key);
    if !is_ours && !may_be_foreign(store, raw_key)? {
        return Ok(None);
    }
    let keyring = keyring::current(ctx)?;
    for (index, key) in keyring.newest_first().enumerate() {
        let digest = digest(key, Domain::Api, raw_key);
        if let Some((id, packed)) = find(store, &digest, buffer)? {
            return Ok(Some(Found { id, packed, digest, is_newest: index == 0 }));
        }
    }
    if !is_ours {
        for pepper in keyring.peppers() {
            let digest = foreign_digest(pepper, raw_key);
            if let Some((id, packed)) = find(store, &digest, buffer)? {
                return Ok(Some(Found { id, packed, digest, is_newest: false }));
            }
        }
    }
    store.confirm_keyring(&keyring)?;
    Ok(None)
}

/// Whether what has not the form of our raw keys may be one that was made elsewhere.
fn may_be_foreign(store: &Store<'_>, raw_key: &[u8]) -> Result<bool> {
    Ok((1..=MAX_FOREIGN_BYTES).contains(&raw_key.len()) && store.counted(FOREIGN_KEYS)? > 0)
}

/// The record that a digest leads to.
fn find(store: &Store<'_>, digest: &Digest, buffer: &mut Vec<u8>) -> Result<Option<(u64, Packed)>> {
    let (_, entry) = store.open_derived(&Derived::Digest(digest), buffer, false)?;
    let Some(id) = entry.with_text(parse::unsigned)? else { return Ok(None) };
    let id = id.ok_or(ASTRAY)?;
    drop(entry);
    let (_, record) = store.open_derived(&Derived::Key(id), buffer, false)?;
    let packed = Store::packed_in(&record, "id", "key record").map_err(|error| match error {
        Error::NoSuch { .. } => ASTRAY,
        error => error,
    })?;
    Ok(Some((id, packed)))
}
