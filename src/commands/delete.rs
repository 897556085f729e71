//! Deleting key records: `KG.DELKEY`.

use std::collections::BTreeMap;

use keyguard_core::digest::Digest;
use keyguard_core::record::{Record, RecordType};
use keyguard_core::{Error, Result};

use super::Call;
use crate::args::Args;
use crate::ffi::Kind;
use crate::register::{Access, Arg, Category, Command, Spec};
use crate::reply::integer;
use crate::store::{API_KEYS, Missing, Store, VAULT_KEYS, using};

/// The most ids that one DELKEY takes: more would hold the server up for over 2 ms.
const MAX_DELETED: usize = 250;

/// `KG.DELKEY store id [id ...]`
pub struct DelKey;

impl Command for DelKey {
    const SPEC: Spec = Spec {
        name: c"KG.DELKEY",
        summary: c"Deletes key records and all that belongs to them",
        complexity: c"O(N), N being the ids",
        flags: "",
        access: Access::Write,
        category: Category::Admin,
        min_args: 3,
        secrets: &[],
        args: &[Arg::key(c"store"), Arg::integer(c"id").multiple()],
    };

    fn run(call: &Call<'_>, mut args: Args<'_>) -> Result<()> {
        let at = args.store()?;
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
        let store = Store::open(call.ctx, at, Missing::Refuse)?;

        let mut packed = Vec::new();
        for id in ids {
            match store.packed_record(id) {
                Err(Error::NoSuch { .. }) => {}
                found => packed.push((id, found?)),
            }
        }
        let mut records = Vec::with_capacity(packed.len());
        for (id, packed) in &packed {
            records.push((*id, Record::decode(packed.name().bytes())?));
        }
        let doomed = Doomed::gather(&store, &records)?;

        doomed.delete(&store)?;

        call.ctx.reply_integer(integer(records.len() as u64));
        Ok(())
    }
}

/// Records that are to go, and what is to change with them: every index is looked at once, before the first change.
#[derive(Default)]
struct Doomed<'a> {
    /// Keys that go as a whole.
    keys: Vec<Vec<u8>>,
    /// Digests that other records have too, and those records.
    shared: Vec<(Digest, Vec<u64>)>,
    pools: BTreeMap<&'a str, Vec<u64>>,
    lists: BTreeMap<RecordType, Vec<u64>>,
    counts: BTreeMap<String, i64>,
    orgs: BTreeMap<&'a str, i64>,
}

impl<'a> Doomed<'a> {
    /// `records` are in order of their ids.
    fn gather(store: &Store<'_>, records: &'a [(u64, Record<'a>)]) -> Result<Self> {
        let mut doomed = Self::default();
        let mut digests: BTreeMap<[u8; 32], Vec<u64>> = BTreeMap::new();
        for (id, record) in records {
            let win = store.name.win(*id);
            store.read(&win)?;
            doomed.keys.extend([store.name.key(*id), win]);
            let (digest, digest_key, count) = match record {
                Record::Vault(vault) => {
                    doomed.pools.entry(vault.name).or_default().push(*id);
                    (&vault.digest, vault.digest_key, VAULT_KEYS)
                }
                Record::Api(api) => {
                    *doomed.orgs.entry(api.org).or_default() -= 1;
                    (&api.digest, api.digest_key, API_KEYS)
                }
            };
            doomed.lists.entry(record.record_type()).or_default().push(*id);
            digests.entry(*digest.as_bytes()).or_default().push(*id);
            *doomed.counts.entry(count.to_owned()).or_default() -= 1;
            *doomed.counts.entry(using(digest_key)).or_default() -= 1;
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
        for name in doomed.pools.keys() {
            store.expect(&store.name.pool(name), Kind::Hash)?;
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

    fn delete(&self, store: &Store<'_>) -> Result<()> {
        for (digest, left) in &self.shared {
            store.set_ids(digest, left)?;
        }
        for (name, ids) in &self.pools {
            let ids: Vec<String> = ids.iter().map(u64::to_string).collect();
            let pool = store.name.pool(name);
            let args: Vec<&[u8]> = std::iter::once(&*pool).chain(ids.iter().map(String::as_bytes)).collect();
            store.write(c"HDEL", &args)?;
        }
        self.lists.iter().try_for_each(|(of, ids)| store.delist(*of, ids))?;
        if !self.keys.is_empty() {
            store.write(c"DEL", &self.keys.iter().map(Vec::as_slice).collect::<Vec<_>>())?;
        }
        self.counts.iter().try_for_each(|(what, by)| store.count(what, *by))?;
        self.orgs.iter().try_for_each(|(org, by)| store.count_in_org(org, *by))
    }
}
