//! Adding records to a store, which KG.NEWKEY, KG.ADDKEY and KG.ADDORG have in common with KG.IMPORT: first everything is looked at
//! that will be written, then it is written.

use keyguard_core::effect::Effect;
use keyguard_core::keyring::Fingerprint;
use keyguard_core::names::Listed;
use keyguard_core::pool::{MAX_POOL_KEYS, Pool, Traits};
use keyguard_core::record::{ApiRecord, Issued, OrgRecord, RecordType, Status, VaultRecord};
use keyguard_core::{Error, Result};

use crate::effects;
use crate::ffi::{Kind, OwnedString};
use crate::store::{
    ACTIVE_KEYS, API_KEYS, FOREIGN_KEYS, Fields, MAX_SHARED, ORGANIZATIONS, Store, VAULT_KEYS, api_fields, org_fields,
    using, vault_fields,
};
use crate::waiting;

/// An API key that is to be added.
pub struct NewApiKey<'n, 'r> {
    id: u64,
    /// The id, if the header must know that it is taken.
    taken: Option<u64>,
    record: &'n ApiRecord<'r>,
    fields: Fields,
    /// The header's counts that grow, and by how much.
    counts: Vec<(String, i64)>,
}

impl<'n, 'r> NewApiKey<'n, 'r> {
    /// Makes sure that it can be written under this id, once the record is gone that may be there if it is to replace that. Its
    /// organization must exist; that is the caller's to know.
    ///
    /// # Errors
    /// [`Error::Duplicate`] where the raw key is known already, [`Error::WrongType`] or [`Error::Damaged`].
    pub fn expect(
        store: &Store<'_>,
        id: u64,
        record: &'n ApiRecord<'r>,
        meta: Option<&str>,
        replaces: bool,
    ) -> Result<Self> {
        let taken = expect_id(store, id, replaces)?;
        // Two entries of one digest would make an index that leads nowhere.
        if record.previous.is_some_and(|(previous, _)| previous.digest.matches(&record.issued.digest)) {
            return Err(Error::Duplicate { what: "this API key" });
        }
        for issued in issued(record) {
            let others = store.ids_of(&issued.digest)?;
            if others.iter().any(|other| *other != id || !replaces) {
                return Err(Error::Duplicate { what: "this API key" });
            }
            store.ids_of_start(issued.start)?;
        }
        store.expect_list(RecordType::Api, id)?;
        let mut counts = vec![(API_KEYS.to_owned(), 1)];
        counts.extend((record.status == Status::Active).then(|| (ACTIVE_KEYS.to_owned(), 1)));
        counts.extend(digest_keys(record).map(|key| (using(key), 1)));
        let foreign = record.foreign_keys();
        counts.extend((foreign > 0).then(|| (FOREIGN_KEYS.to_owned(), i64::from(foreign))));
        store.expect_counts(&counts.iter().map(|(count, _)| &**count).collect::<Vec<_>>(), Some(record.org))?;
        Ok(Self { id, taken, record, fields: api_fields(record, meta)?, counts })
    }

    /// Writes it, and says under which id.
    pub fn write(&self, store: &Store<'_>, now_ms: u64) -> Result<u64> {
        let Self { id, taken, record, fields, counts } = self;
        store.enlist(RecordType::Api, *id)?;
        store.write_header(now_ms, *taken)?;
        counts.iter().try_for_each(|(count, by)| store.count(count, *by))?;
        store.count_in_org(record.org, 1)?;
        store.write_hash(&store.name.key(*id), fields)?;
        for issued in issued(record) {
            store.index_digest(&issued.digest, *id)?;
            index_start(store, issued.start, *id, true)?;
        }
        if let Some((previous, until_ms)) = &record.previous {
            store.expire_digest(&previous.digest, *until_ms)?;
        }
        Ok(*id)
    }
}

/// What comes to the header's count of active keys.
pub struct Activity(i64);

impl Activity {
    /// Makes sure that the count can be written, if it changes, before anything is.
    ///
    /// # Errors
    /// [`Error::Damaged`].
    pub fn expect(store: &Store<'_>, old: Status, new: Status) -> Result<Self> {
        let change = i64::from(new == Status::Active) - i64::from(old == Status::Active);
        if change != 0 {
            store.expect_counts(&[ACTIVE_KEYS], None)?;
        }
        Ok(Self(change))
    }

    /// Writes it.
    pub fn write(&self, store: &Store<'_>) -> Result<()> {
        if self.0 == 0 { Ok(()) } else { store.count(ACTIVE_KEYS, self.0) }
    }
}

/// A vault key that is to be added.
pub struct NewVaultKey<'n, 'r> {
    id: u64,
    taken: Option<u64>,
    record: &'n VaultRecord<'r>,
    fields: Fields,
    traits: Vec<u8>,
    using: String,
}

impl<'n, 'r> NewVaultKey<'n, 'r> {
    /// Makes sure that it can be written under this id, for which its secret is sealed, once the record is gone that may be there if
    /// it is to replace that.
    ///
    /// # Errors
    /// [`Error::TooMany`] keys of its name or its secret, [`Error::WrongType`] or [`Error::Damaged`].
    pub fn expect(
        store: &Store<'_>,
        id: u64,
        record: &'n VaultRecord<'r>,
        meta: Option<&str>,
        replaces: bool,
    ) -> Result<Self> {
        let taken = expect_id(store, id, replaces)?;
        expect_room(store, record.name)?;
        if store.ids_of(&record.digest)?.len() >= MAX_SHARED {
            return Err(Error::TooMany { what: "keys with this secret", max: MAX_SHARED });
        }
        store.expect_list(RecordType::Vault, id)?;
        let using = using(record.digest_key);
        store.expect_counts(&[VAULT_KEYS, &using], None)?;
        let (fields, traits) = (vault_fields(record, meta)?, Traits::of(record).encode());
        Ok(Self { id, taken, record, fields, traits, using })
    }

    /// Writes it, and says under which id.
    pub fn write(&self, store: &Store<'_>, now_ms: u64) -> Result<u64> {
        let Self { id, taken, record, fields, traits, using } = self;
        store.enlist(RecordType::Vault, *id)?;
        store.write_header(now_ms, *taken)?;
        store.count(VAULT_KEYS, 1)?;
        store.count(using, 1)?;
        store.write_hash(&store.name.key(*id), fields)?;
        store.index_digest(&record.digest, *id)?;
        let effect = Effect::Enroll { pool: record.name, from: None, id: *id, traits };
        effects::commit(store.ctx(), store.header, &effect)?;
        pool_touched(store, record.name);
        Ok(*id)
    }
}

/// An organization that is to be added.
pub struct NewOrg<'n> {
    id: u64,
    taken: Option<u64>,
    name: &'n str,
    fields: Fields,
}

impl<'n> NewOrg<'n> {
    /// Makes sure that it can be written under the id that its record has.
    ///
    /// # Errors
    /// [`Error::Duplicate`] if there is one of this name, [`Error::WrongType`] or [`Error::Damaged`].
    pub fn expect(store: &Store<'_>, name: &'n str, record: &OrgRecord<'_>) -> Result<Self> {
        match store.packed_org(name) {
            Err(Error::NoSuch { .. }) => {}
            Err(error) => return Err(error),
            Ok(_) => return Err(Error::Duplicate { what: "an organization of this name" }),
        }
        let next = store.next_id()?;
        let id = record.id;
        store.expect(&store.name.orgs(), Kind::Hash)?;
        store.expect_list(Listed::Orgs, id)?;
        store.expect_counts(&[ORGANIZATIONS], None)?;
        Ok(Self { id, taken: (id >= next).then_some(id), name, fields: org_fields(name, record)? })
    }

    /// Writes it, and says under which id.
    pub fn write(&self, store: &Store<'_>, now_ms: u64) -> Result<u64> {
        let Self { id, taken, name, fields } = self;
        store.enlist(Listed::Orgs, *id)?;
        store.write_header(now_ms, *taken)?;
        store.count(ORGANIZATIONS, 1)?;
        store.write(c"HSET", &[&store.name.orgs(), id.to_string().as_bytes(), name.as_bytes()])?;
        store.write_hash(&store.name.org(name), fields)?;
        Ok(*id)
    }
}

/// Makes sure that no record stands under an id; the id, if the header would else give it out again.
fn expect_id(store: &Store<'_>, id: u64, replaces: bool) -> Result<Option<u64>> {
    let next = store.next_id()?;
    if !replaces {
        store.expect_free(&store.name.key(id))?;
    }
    Ok((id >= next).then_some(id))
}

/// Makes sure that a pool has room for one key more.
pub fn expect_room(store: &Store<'_>, name: &str) -> Result<()> {
    let key = store.read(&store.name.pool(name))?;
    let keys = key.native::<Pool>()?.map_or(0, Pool::len);
    if keys < MAX_POOL_KEYS { Ok(()) } else { Err(Error::TooMany { what: "keys of one name", max: MAX_POOL_KEYS }) }
}

/// Those who wait for a key of this name are looked at.
pub fn pool_touched(store: &Store<'_>, name: &str) {
    let pool = OwnedString::new(&store.name.pool(name));
    waiting::touched(store.ctx(), pool.name());
}

/// How many records with one visible beginning are told apart.
const MAX_LIKE: usize = 64;

/// Stands among the ids of records with one visible beginning in the place of those that are not told. No record has it.
pub const MORE: u64 = 0;

/// Notes that a record has a raw key with this visible beginning, or has none any more.
///
/// Of raw keys that were made elsewhere many may begin alike: beyond [`MAX_LIKE`], the index only says that there are more.
pub fn index_start(store: &Store<'_>, start: &str, id: u64, has: bool) -> Result<()> {
    let mut ids = store.ids_of_start(start)?;
    if has && ids.len() >= MAX_LIKE {
        if ids.first() == Some(&MORE) {
            return Ok(());
        }
        ids.insert(0, MORE);
        return store.set_ids_of_start(start, &ids);
    }
    match (ids.binary_search(&id), has) {
        (Err(place), true) => ids.insert(place, id),
        (Ok(place), false) => drop(ids.remove(place)),
        _ => return Ok(()),
    }
    store.set_ids_of_start(start, &ids)
}

/// The keyring keys under which the raw keys of a record are digested, each once. That of a key in its grace is among them, until
/// the record forgets it: as long as its holder may show it, nobody may take the keyring key away.
pub fn digest_keys(record: &ApiRecord<'_>) -> impl Iterator<Item = Fingerprint> {
    let now = record.issued.digest_key;
    let before = record.previous.map(|(issued, _)| issued.digest_key).filter(|before| *before != now);
    std::iter::once(now).chain(before)
}

/// What is kept of a record's raw keys: that of now, and the one before it.
pub fn issued<'n, 'r>(record: &'n ApiRecord<'r>) -> impl Iterator<Item = &'n Issued<'r>> {
    std::iter::once(&record.issued).chain(record.previous.iter().map(|(issued, _)| issued))
}
