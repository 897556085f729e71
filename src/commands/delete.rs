//! Deleting key records: `KG.DELKEY`.

use std::collections::{BTreeMap, BTreeSet};

use keyguard_core::digest::Digest;
use keyguard_core::effect::Effect;
use keyguard_core::listing::Filter;
use keyguard_core::names::Listed;
use keyguard_core::pool::Pool;
use keyguard_core::record::{Record, RecordType, Status};
use keyguard_core::usage::KEYS;
use keyguard_core::{Error, Result};

use super::apikeys::{digest_keys, issued};
use super::keys::pool_touched;
use super::list::{MAX_READ, Scan};
use super::{Call, FILTER_OPTIONS, OF_TYPE};
use crate::args::Args;
use crate::ffi::Kind;
use crate::register::{Access, Arg, Category, Command, Spec};
use crate::reply::integer;
use crate::store::{ACTIVE_KEYS, API_KEYS, Missing, Packed, Store, VAULT_KEYS, using};
use crate::{effects, usage};

/// The most records that one call deletes: more would hold the server up for over 2 ms.
pub(super) const MAX_DELETED: usize = 100;

/// Deleting a record takes as long as looking at so many: where few match, a call deletes less, and holds the server up no longer.
const DELETING: usize = 7;

/// `KG.DELKEY store <id [id ...] | MATCH TYPE t filters | ALL TYPE t>`
pub struct DelKey;

/// Which records go.
enum Which<'a> {
    /// Those with these ids, in order.
    Ids(Vec<u64>),
    /// The first that match.
    Matching(Filter<'a>),
}

impl Command for DelKey {
    const SPEC: Spec = Spec {
        name: c"KG.DELKEY",
        summary: c"Deletes key records and all that belongs to them",
        complexity: c"O(N), N being the ids, or the records looked at, at most 1,000",
        flags: "",
        access: Access::Write,
        category: Category::Admin,
        min_args: 3,
        secrets: &[],
        secrets_from: 0,
        args: &[
            Arg::key(c"store"),
            Arg::one_of(
                c"which",
                &[
                    Arg::integer(c"id").multiple(),
                    Arg::block(c"match", &[OF_TYPE, FILTER_OPTIONS]).token(c"MATCH"),
                    Arg::block(c"all", &[OF_TYPE]).token(c"ALL"),
                ],
            ),
        ],
    };

    fn run(call: &Call<'_>, mut args: Args<'_>) -> Result<()> {
        let at = args.store()?;
        let which = which(args)?;
        let store = Store::open(call.ctx, at, Missing::Refuse)?;

        let packed = match which {
            Which::Ids(ids) => existing(&store, &ids)?,
            Which::Matching(filter) => matching(&store, &filter, call.now_ms)?,
        };
        let mut records = Vec::with_capacity(packed.len());
        for (id, packed) in &packed {
            records.push((*id, Record::decode(packed.bytes())?));
        }
        let doomed = Doomed::gather(&store, &records)?;

        doomed.delete(&store)?;
        let ids: Vec<u64> = records.iter().map(|(id, _)| *id).collect();
        usage::forget_keys(&store, &ids, call.now_ms)?;

        call.ctx.reply_integer(integer(records.len() as u64));
        Ok(())
    }
}

/// Reads what follows the store.
fn which<'c>(mut args: Args<'c>) -> Result<Which<'c>> {
    if args.take_word("MATCH") {
        let mut filter = Filter::default();
        while let Some(option) = args.option(&Filter::OPTIONS)? {
            filter.take(option, &mut args)?;
        }
        // Without a filter it would be ALL: who forgets one must not lose everything.
        return match filter.of_type {
            Some(_) if !filter.is_type_only() => Ok(Which::Matching(filter)),
            _ => Err(args.misuse()),
        };
    }
    if args.take_word("ALL") {
        let mut filter = Filter::default();
        while let Some(option) = args.option(&["TYPE"])? {
            filter.take(option, &mut args)?;
        }
        return if filter.of_type.is_some() { Ok(Which::Matching(filter)) } else { Err(args.misuse()) };
    }
    if args.left() > MAX_DELETED {
        return Err(Error::TooMany { what: "ids in one call", max: MAX_DELETED });
    }
    let mut ids = vec![args.id()?];
    while args.left() > 0 {
        ids.push(args.id()?);
    }
    args.finish()?;
    ids.sort_unstable();
    ids.dedup();
    Ok(Which::Ids(ids))
}

/// Those of the records that there are.
fn existing(store: &Store<'_>, ids: &[u64]) -> Result<Vec<(u64, Packed)>> {
    let mut packed = Vec::new();
    for id in ids {
        match store.packed_record(*id) {
            Err(Error::NoSuch { .. }) => {}
            found => packed.push((*id, found?)),
        }
    }
    Ok(packed)
}

/// The first records that match, as many as one call deletes.
///
/// # Errors
/// [`Error::TooMany`] if none was found and there are more: nothing deleted would mean that all is done.
fn matching(store: &Store<'_>, filter: &Filter<'_>, now_ms: u64) -> Result<Vec<(u64, Packed)>> {
    let mut scan = Scan::new(store, filter, 0)?;
    let mut found = Vec::new();
    while found.len() < MAX_DELETED
        && scan.looked() + found.len() * DELETING < 2 * MAX_READ
        && let Some((id, _, packed)) = scan.matching(filter, now_ms)?
    {
        found.push((id, packed));
    }
    if found.is_empty() {
        scan.expect_all("records without a match: filter by NAME, or delete the ids that KG.LISTKEYS finds by AFTER")?;
    }
    Ok(found)
}

/// An id that a store to be deleted lists.
pub(super) struct Listing<'a> {
    pub(super) id: u64,
    /// Its record, if it can be read.
    pub(super) record: Option<Record<'a>>,
    /// The name of its pool, if it has one.
    pub(super) pool: Option<&'a [u8]>,
}

/// Records that are to go, and what is to change with them: every index is looked at once, before the first change.
#[derive(Default)]
pub(super) struct Doomed<'a> {
    /// Keys that go as a whole.
    pub(super) keys: Vec<Vec<u8>>,
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
    /// `records` are in order of their ids.
    fn gather(store: &Store<'_>, records: &'a [(u64, Record<'a>)]) -> Result<Self> {
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
    pub(super) fn of_store(store: &Store<'_>, slice: &'a [Listing<'a>]) -> Result<Self> {
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
    pub(super) fn unlink(&self, store: &Store<'_>) -> Result<()> {
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
                *self.orgs.entry(api.org).or_default() -= 1;
            }
        }
    }

    pub(super) fn delete(&self, store: &Store<'_>) -> Result<()> {
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
