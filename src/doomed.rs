//! What goes with key records that are deleted: everything is looked at before the first change.

use std::collections::{BTreeMap, BTreeSet};

use keyguard_core::Result;
use keyguard_core::digest::Digest;
use keyguard_core::effect::Effect;
use keyguard_core::names::Listed;
use keyguard_core::pool::Pool;
use keyguard_core::record::{Record, RecordType, Status};
use keyguard_core::usage::KEYS;

use crate::adding::{digest_keys, issued, pool_touched};
use crate::effects;
use crate::ffi::Kind;
use crate::store::{ACTIVE_KEYS, API_KEYS, FOREIGN_KEYS, Store, VAULT_KEYS, using};

/// An id that a store to be deleted lists.
pub struct Listing<'a> {
    /// The id.
    pub id: u64,
    /// Its record, if it can be read.
    pub record: Option<Record<'a>>,
    /// The name of its pool, if it has one.
    pub pool: Option<&'a [u8]>,
}

/// Records that are to go, and what is to change with them: every index is looked at once, before the first change.
#[derive(Default)]
pub struct Doomed<'a> {
    /// Keys that go as a whole.
    pub keys: Vec<Vec<u8>>,
    /// Digests that other records have too, and those records.
    shared: Vec<(Digest, Vec<u64>)>,
    /// Visible beginnings, and the other API keys that have them.
    starts: Vec<(&'a str, Vec<u64>)>,
    pools: BTreeMap<&'a str, Vec<u64>>,
    lists: BTreeMap<Listed, Vec<u64>>,
    counts: BTreeMap<String, i64>,
    orgs: BTreeMap<&'a str, i64>,
}

impl<'a> Doomed<'a> {
    /// What goes with these records, which are in order of their ids.
    ///
    /// # Errors
    /// [`Error::WrongType`](keyguard_core::Error::WrongType) or [`Error::Damaged`](keyguard_core::Error::Damaged).
    pub fn gather(store: &Store<'_>, records: &'a [(u64, Record<'a>)]) -> Result<Self> {
        let mut doomed = Self::default();
        let mut digests: BTreeMap<[u8; 32], Vec<u64>> = BTreeMap::new();
        let mut starts: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
        for (id, record) in records {
            let win = store.name.win(*id);
            store.read(&win)?;
            doomed.keys.extend([store.name.key(*id), win]);
            match record {
                Record::Vault(vault) => doomed.pools.entry(vault.name).or_default().push(*id),
                Record::Api(api) => {
                    issued(api).for_each(|issued| starts.entry(issued.start).or_default().push(*id));
                }
            }
            doomed.uncount(record);
            doomed.lists.entry(record.record_type().into()).or_default().push(*id);
            for digest in digests_of(record) {
                digests.entry(*digest.as_bytes()).or_default().push(*id);
            }
        }
        for (digest, ids) in digests {
            let digest = Digest::from_bytes(digest);
            let mut left = store.ids_of(&digest)?;
            left.retain(|id| ids.binary_search(id).is_err());
            if left.is_empty() {
                doomed.keys.push(store.name.digest(&digest));
            } else {
                doomed.shared.push((digest, left));
            }
        }
        for (start, ids) in starts {
            let mut left = store.ids_of_start(start)?;
            left.retain(|id| ids.binary_search(id).is_err());
            doomed.starts.push((start, left));
        }
        for name in doomed.pools.keys() {
            store.read(&store.name.pool(name))?.native::<Pool>()?;
        }
        for of in doomed.lists.keys() {
            store.expect(&store.name.ids(*of), Kind::Text)?;
        }
        store.expect_counts(&doomed.counts.keys().map(String::as_str).collect::<Vec<_>>(), None)?;
        for org in doomed.orgs.keys() {
            store.expect(&store.name.org(org), Kind::Hash)?;
            store.expect_counts(&[], Some(org))?;
        }
        Ok(doomed)
    }

    /// As [`gather`](Self::gather), when the whole store is to go. Who shares a secret or a pool with these records goes too, so
    /// that its index entry and the pool go at once, whatever they hold. What cannot be read, because somebody changed it from
    /// outside, must not keep a store alive: a record goes even so, and a count that is no number stays as it is.
    pub fn of_store(store: &Store<'_>, slice: &'a [Listing<'a>]) -> Result<Self> {
        let mut doomed = Self::default();
        let mut pools = BTreeSet::new();
        for Listing { id, record, pool } in slice {
            doomed.keys.extend([store.name.key(*id), store.name.win(*id)]);
            pools.extend(*pool);
            if let Some(record) = record {
                doomed.uncount(record);
                doomed.keys.extend(digests_of(record).map(|digest| store.name.digest(digest)));
                if let Record::Api(api) = record {
                    doomed.keys.extend(issued(api).map(|issued| store.name.starts(issued.start).0));
                }
            }
        }
        doomed.keys.extend(pools.into_iter().map(|name| store.name.pool(name)));
        for key in &doomed.keys {
            store.read(key)?;
        }
        let ids: Vec<u64> = slice.iter().map(|listing| listing.id).collect();
        // So do the statistics of those who share a value with them.
        let mut chunks: Vec<u64> = ids.iter().map(|id| id / KEYS).collect();
        chunks.dedup();
        for chunk in chunks {
            let name = store.name.days(chunk);
            store.read(&name)?;
            doomed.keys.push(name);
        }
        for of in [RecordType::Vault, RecordType::Api] {
            store.expect(&store.name.ids(of), Kind::Text)?;
            doomed.lists.insert(of.into(), ids.clone());
        }
        doomed.counts.retain(|what, _| store.expect_counts(&[what], None).is_ok());
        for org in doomed.orgs.keys() {
            store.read(&store.name.org(org))?;
        }
        doomed.orgs.retain(|org, _| {
            store.expect(&store.name.org(org), Kind::Hash).is_ok() && store.expect_counts(&[], Some(org)).is_ok()
        });
        Ok(doomed)
    }

    /// Deletes the keys that go as a whole, and no more than that: when what else there is to change goes too.
    pub fn unlink(&self, store: &Store<'_>) -> Result<()> {
        if self.keys.is_empty() {
            return Ok(());
        }
        // A whole pool may be large: the server frees it in the background.
        store.write(c"UNLINK", &self.keys.iter().map(Vec::as_slice).collect::<Vec<_>>())
    }

    /// Notes in which counts a record is one less.
    fn uncount(&mut self, record: &'a Record<'a>) {
        let mut uncount = |what: String| *self.counts.entry(what).or_default() -= 1;
        match record {
            Record::Vault(vault) => {
                uncount(VAULT_KEYS.to_owned());
                uncount(using(vault.digest_key));
            }
            Record::Api(api) => {
                uncount(API_KEYS.to_owned());
                if api.status == Status::Active {
                    uncount(ACTIVE_KEYS.to_owned());
                }
                digest_keys(api).for_each(|key| uncount(using(key)));
                (0..api.foreign_keys()).for_each(|_| uncount(FOREIGN_KEYS.to_owned()));
                *self.orgs.entry(api.org).or_default() -= 1;
            }
        }
    }

    /// Deletes all of it.
    pub fn delete(&self, store: &Store<'_>) -> Result<()> {
        for (digest, left) in &self.shared {
            store.set_ids(digest, left)?;
        }
        for (start, left) in &self.starts {
            store.set_ids_of_start(start, left)?;
        }
        for (name, ids) in &self.pools {
            let effect = Effect::Withdraw { pool: name, ids: ids.clone() };
            effects::commit(store.ctx(), store.header, &effect)?;
            pool_touched(store, name);
        }
        self.lists.iter().try_for_each(|(of, ids)| store.delist(*of, ids))?;
        self.unlink(store)?;
        self.counts.iter().try_for_each(|(what, by)| store.count(what, *by))?;
        self.orgs.iter().try_for_each(|(org, by)| store.count_in_org(org, *by))
    }
}

/// The digests under which a record is found.
fn digests_of<'n>(record: &'n Record<'_>) -> impl Iterator<Item = &'n Digest> {
    let (vault, api) = match record {
        Record::Vault(vault) => (Some(&vault.digest), None),
        Record::Api(api) => (None, Some(issued(api).map(|issued| &issued.digest))),
    };
    vault.into_iter().chain(api.into_iter().flatten())
}
