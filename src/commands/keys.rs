//! Key records: `KG.ADDKEY`, `KG.GETKEY`, `KG.REVEAL`, `KG.FINDKEY`, `KG.DELKEY`, `KG.NEWKEY`, `KG.REVOKE`.

use std::collections::BTreeMap;

use keyguard_core::digest::{Digest, Domain, digest};
use keyguard_core::names::{Meta, name};
use keyguard_core::record::{ApiRecord, MAX_WEIGHT, OrgRecord, Record, Status, UnitLimits, VaultRecord};
use keyguard_core::scope::Scopes;
use keyguard_core::secret::Secret;
use keyguard_core::token::{Prefix, RawKey};
use keyguard_core::vault;
use keyguard_core::{Error, Result};

use super::{Call, EXPIRY, LIMIT, expiry, unit_limit};
use crate::args::{Args, once};
use crate::ffi::{Ctx, Kind, OwnedString};
use crate::keyring;
use crate::register::{Access, Arg, Category, Command, Spec};
use crate::reply::{Map, Value, integer};
use crate::store::{API_KEYS, MAX_SHARED, Missing, Store, VAULT_KEYS, api_fields, place, using, vault_fields};

/// The most ids that one DELKEY takes: more would hold the server up for over 2 ms.
const MAX_DELETED: usize = 250;

/// `KG.ADDKEY store name secret [options]`
pub struct AddKey;

impl Command for AddKey {
    const SPEC: Spec = Spec {
        name: c"KG.ADDKEY",
        summary: c"Stores an encrypted secret and answers its id",
        complexity: c"O(1)",
        flags: "deny-oom deny-script",
        access: Access::Write,
        category: Category::Admin,
        min_args: 4,
        secrets: &[3],
        args: &[
            Arg::key(c"store"),
            Arg::text(c"name"),
            Arg::text(c"secret"),
            Arg::word(c"inactive", c"INACTIVE").optional(),
            EXPIRY,
            Arg::text(c"source").token(c"SOURCE").optional(),
            Arg::text(c"login").token(c"LOGIN").optional(),
            Arg::text(c"batch").token(c"BATCH").optional(),
            Arg::text(c"account").token(c"ACCOUNT").optional(),
            LIMIT,
            Arg::integer(c"n").token(c"WEIGHT").optional(),
            Arg::text(c"json").token(c"META").optional(),
            Arg::word(c"unique", c"UNIQUE").optional(),
        ],
    };

    fn run(call: &Call<'_>, mut args: Args<'_>) -> Result<()> {
        const OPTIONS: &[&str] = &[
            "INACTIVE", "EXPIREAT", "EXPIREIN", "SOURCE", "LOGIN", "BATCH", "ACCOUNT", "LIMIT", "WEIGHT", "META",
            "UNIQUE",
        ];
        let at = args.store()?;
        let of = name(args.bytes()?, "name")?;
        let secret = Secret::parse(args.bytes()?)?;
        let (mut inactive, mut expires, mut weight, mut meta, mut unique) = (None, None, None, None, None);
        let (mut source, mut login, mut batch, mut account) = (None, None, None, None);
        let mut limits = UnitLimits::new();
        while let Some(option) = args.option(OPTIONS)? {
            match option {
                "INACTIVE" => once(&mut inactive, option, ())?,
                "UNIQUE" => once(&mut unique, option, ())?,
                "EXPIREAT" | "EXPIREIN" => once(&mut expires, option, expiry(&mut args, option, call.now_ms)?)?,
                "SOURCE" => once(&mut source, option, name(args.value(option)?, option)?)?,
                "LOGIN" => once(&mut login, option, name(args.value(option)?, option)?)?,
                "BATCH" => once(&mut batch, option, name(args.value(option)?, option)?)?,
                "ACCOUNT" => once(&mut account, option, name(args.value(option)?, option)?)?,
                "LIMIT" => unit_limit(&mut args, &mut limits)?,
                "WEIGHT" => once(
                    &mut weight,
                    option,
                    args.positive(option, u64::from(MAX_WEIGHT), "a whole number from 1 to 1000000")?,
                )?,
                _ => once(&mut meta, option, Meta::parse(args.value(option)?)?)?,
            }
        }
        args.finish()?;
        let keyring = keyring::current(call.ctx)?;
        let store = Store::open(call.ctx, at, Missing::Create)?;

        let key = keyring.newest();
        let digested = digest(key, Domain::Vault, secret.expose());
        if unique.is_some() {
            store.confirm_keyring(&keyring)?;
            for key in keyring.newest_first().filter(|key| store.uses(key.fingerprint())) {
                if !store.ids_of(&digest(key, Domain::Vault, secret.expose()))?.is_empty() {
                    return Err(Error::Duplicate { what: "this secret" });
                }
            }
        }
        if store.ids_of(&digested)?.len() >= MAX_SHARED {
            return Err(Error::TooMany { what: "keys with this secret", max: MAX_SHARED });
        }
        let id = store.next_id()?;
        store.expect_free(&store.name.key(id))?;
        store.expect(&store.name.pool(of), Kind::Hash)?;
        store.expect_counts(&[VAULT_KEYS, &using(key.fingerprint())], None)?;
        let sealed = vault::seal(key, *keyring::random()?, &place(&store, id), &secret)?;
        let record = VaultRecord {
            name: of,
            status: if inactive.is_some() { Status::Inactive } else { Status::Active },
            created_ms: call.now_ms,
            expires_ms: expires.flatten(),
            source,
            login,
            batch,
            account,
            weight: weight.and_then(|weight| u32::try_from(weight).ok()).unwrap_or(1),
            limits,
            sealed: &sealed,
            digest: digested,
            digest_key: key.fingerprint(),
            hint: secret.hint(),
        };
        let fields = vault_fields(&record, meta.as_ref().map(Meta::as_str))?;

        store.write_header(call.now_ms, Some(id))?;
        store.count(VAULT_KEYS, 1)?;
        store.count(&using(key.fingerprint()), 1)?;
        store.write_hash(&store.name.key(id), &fields)?;
        store.index_digest(&record.digest, id)?;
        store.write(c"HSET", &[&store.name.pool(of), id.to_string().as_bytes(), b""])?;

        call.ctx.reply_integer(integer(id));
        Ok(())
    }
}

/// `KG.GETKEY store <id | NAME name>`
pub struct GetKey;

/// `<id | NAME name>`
const WHICH: Arg = Arg::one_of(c"which", &[Arg::integer(c"id"), Arg::text(c"name").token(c"NAME")]);

impl Command for GetKey {
    const SPEC: Spec = Spec {
        name: c"KG.GETKEY",
        summary: c"Describes a key record; never shows its secret",
        complexity: c"O(1)",
        flags: "",
        access: Access::Read,
        category: Category::Read,
        min_args: 3,
        secrets: &[],
        args: &[Arg::key(c"store"), WHICH],
    };

    fn run(call: &Call<'_>, args: Args<'_>) -> Result<()> {
        let (store, id) = which(call.ctx, args)?;
        let packed = store.packed_record(id)?;
        let record = Record::decode(packed.name().bytes())?;
        let meta = store.record_field(id, c"meta")?;

        describe(call, id, &record, meta.as_ref().map(|meta| meta.name().bytes()));
        Ok(())
    }
}

/// Reads `store <id | NAME name>`.
fn which<'c>(ctx: Ctx<'c>, mut args: Args<'c>) -> Result<(Store<'c>, u64)> {
    let at = args.store()?;
    if args.take_word("NAME") && args.left() > 0 {
        let of = name(args.value("NAME")?, "name")?;
        args.finish()?;
        let store = Store::open(ctx, at, Missing::Refuse)?;
        let id = store.id_named(of)?;
        return Ok((store, id));
    }
    let id = args.id()?;
    args.finish()?;
    Ok((Store::open(ctx, at, Missing::Refuse)?, id))
}

fn describe(call: &Call<'_>, id: u64, record: &Record<'_>, meta: Option<&[u8]>) {
    let limits: Vec<String> = record
        .limits()
        .iter()
        .map(|limit| format!("{} {}ms {}", limit.limit.count(), limit.limit.window_ms(), limit.unit))
        .collect();
    let expired = record.expired(call.now_ms);
    let mut map = Map::default();
    map.field("id", id).field("type", record.type_name());
    match record {
        Record::Vault(vault) => {
            map.field("name", vault.name)
                .optional("source", vault.source)
                .optional("login", vault.login)
                .optional("batch", vault.batch)
                .optional("account", vault.account)
                .field("weight", u64::from(vault.weight))
                .optional("hint", vault.hint.as_ref().map(|hint| hint.as_str()))
                .field("created_at", vault.created_ms);
        }
        Record::Api(api) => {
            map.field("org", api.org)
                .field("label", api.label)
                .field("start", api.start)
                .field("scopes", Value::Strings(api.scopes.iter().collect()))
                .field("created_at", api.created_ms);
        }
    }
    map.optional("expires_at", record.expires_ms())
        .field("limits", Value::Strings(limits.iter().map(String::as_str).collect()))
        .field("status", record.status().as_str())
        .field("active", record.status() == Status::Active)
        .field("expired", expired)
        .field("usable", record.status() == Status::Active && !expired)
        .optional("meta", meta);
    map.send(call.ctx);
}

/// `KG.REVEAL store <id | NAME name>`
pub struct Reveal;

impl Command for Reveal {
    const SPEC: Spec = Spec {
        name: c"KG.REVEAL",
        summary: c"Decrypts a secret",
        complexity: c"O(1)",
        flags: "deny-script",
        access: Access::Read,
        category: Category::Secrets,
        min_args: 3,
        secrets: &[],
        args: GetKey::SPEC.args,
    };

    fn run(call: &Call<'_>, args: Args<'_>) -> Result<()> {
        let (store, id) = which(call.ctx, args)?;
        let packed = store.packed_record(id)?;
        let Record::Vault(record) = Record::decode(packed.name().bytes())? else {
            return Err(Error::NoSuch { what: "vault key" });
        };
        let keyring = keyring::current(call.ctx)?;
        let secret = vault::open(&keyring, &place(&store, id), record.sealed)?;

        call.ctx.reply_bytes(secret.expose());
        Ok(())
    }
}

/// `KG.FINDKEY store secret`
pub struct FindKey;

impl Command for FindKey {
    const SPEC: Spec = Spec {
        name: c"KG.FINDKEY",
        summary: c"Answers the ids of the vault keys that have this secret",
        complexity: c"O(N), N being the ids found, whatever the size of the store",
        flags: "deny-script",
        access: Access::Read,
        category: Category::Secrets,
        min_args: 3,
        secrets: &[2],
        args: &[Arg::key(c"store"), Arg::text(c"secret")],
    };

    fn run(call: &Call<'_>, mut args: Args<'_>) -> Result<()> {
        let at = args.store()?;
        let secret = Secret::parse(args.bytes()?)?;
        args.finish()?;
        let store = Store::open(call.ctx, at, Missing::Refuse)?;
        let keyring = keyring::current(call.ctx)?;

        store.confirm_keyring(&keyring)?;
        let mut ids = Vec::new();
        for key in keyring.newest_first().filter(|key| store.uses(key.fingerprint())) {
            ids.extend(store.ids_of(&digest(key, Domain::Vault, secret.expose()))?);
        }
        ids.sort_unstable();

        call.ctx.reply_array(ids.len());
        ids.into_iter().for_each(|id| call.ctx.reply_integer(integer(id)));
        Ok(())
    }
}

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
        if !self.keys.is_empty() {
            store.write(c"DEL", &self.keys.iter().map(Vec::as_slice).collect::<Vec<_>>())?;
        }
        self.counts.iter().try_for_each(|(what, by)| store.count(what, *by))?;
        self.orgs.iter().try_for_each(|(org, by)| store.count_in_org(org, *by))
    }
}

/// `KG.NEWKEY store org label [options]`
pub struct NewKey;

impl Command for NewKey {
    const SPEC: Spec = Spec {
        name: c"KG.NEWKEY",
        summary: c"Issues an API key; this is the only time that it is shown",
        complexity: c"O(1)",
        flags: "deny-oom deny-script",
        access: Access::Write,
        category: Category::Secrets,
        min_args: 4,
        secrets: &[],
        args: &[
            Arg::key(c"store"),
            Arg::text(c"org"),
            Arg::text(c"label"),
            Arg::text(c"prefix").token(c"PREFIX").optional(),
            Arg::text(c"scopes").token(c"SCOPES").optional(),
            LIMIT,
            EXPIRY,
            Arg::text(c"json").token(c"META").optional(),
        ],
    };

    fn run(call: &Call<'_>, mut args: Args<'_>) -> Result<()> {
        const OPTIONS: &[&str] = &["PREFIX", "SCOPES", "LIMIT", "EXPIREAT", "EXPIREIN", "META", "QUOTA", "ALLOW"];
        let at = args.store()?;
        let org = name(args.bytes()?, "org")?;
        let label = name(args.bytes()?, "label")?;
        let (mut prefix, mut scopes, mut expires, mut meta) = (None, None, None, None);
        let mut limits = UnitLimits::new();
        while let Some(option) = args.option(OPTIONS)? {
            match option {
                "PREFIX" => once(&mut prefix, option, Prefix::parse(args.value(option)?)?)?,
                "SCOPES" => once(&mut scopes, option, Scopes::parse(args.value(option)?)?)?,
                "LIMIT" => unit_limit(&mut args, &mut limits)?,
                "EXPIREAT" | "EXPIREIN" => once(&mut expires, option, expiry(&mut args, option, call.now_ms)?)?,
                "META" => once(&mut meta, option, Meta::parse(args.value(option)?)?)?,
                what => return Err(Error::NotYet { what }),
            }
        }
        args.finish()?;
        let store = Store::open(call.ctx, at, Missing::Refuse)?;
        OrgRecord::decode(store.packed_org(org)?.name().bytes())?;
        let keyring = keyring::current(call.ctx)?;

        let id = store.next_id()?;
        store.expect_free(&store.name.key(id))?;
        let raw = RawKey::new(&prefix.unwrap_or_default(), &*keyring::random()?);
        let key = keyring.newest();
        let record = ApiRecord {
            org,
            label,
            status: Status::Active,
            created_ms: call.now_ms,
            expires_ms: expires.flatten(),
            scopes: scopes.unwrap_or_default(),
            limits,
            digest: digest(key, Domain::Api, raw.as_bytes()),
            digest_key: key.fingerprint(),
            start: raw.start(),
        };
        store.expect_free(&store.name.digest(&record.digest))?;
        store.expect_counts(&[API_KEYS, &using(key.fingerprint())], Some(org))?;
        let fields = api_fields(&record, meta.as_ref().map(Meta::as_str))?;

        store.write_header(call.now_ms, Some(id))?;
        store.count(API_KEYS, 1)?;
        store.count_in_org(org, 1)?;
        store.count(&using(key.fingerprint()), 1)?;
        store.write_hash(&store.name.key(id), &fields)?;
        store.index_digest(&record.digest, id)?;

        call.ctx.reply_array(2);
        call.ctx.reply_integer(integer(id));
        call.ctx.reply_bytes(raw.as_bytes());
        Ok(())
    }
}

/// `KG.REVOKE store id`
pub struct Revoke;

impl Command for Revoke {
    const SPEC: Spec = Spec {
        name: c"KG.REVOKE",
        summary: c"Ends an API key for good",
        complexity: c"O(1)",
        flags: "fast",
        access: Access::Write,
        category: Category::Admin,
        min_args: 3,
        secrets: &[],
        args: &[Arg::key(c"store"), Arg::integer(c"id")],
    };

    fn run(call: &Call<'_>, mut args: Args<'_>) -> Result<()> {
        let at = args.store()?;
        let id = args.id()?;
        args.finish()?;
        let store = Store::open(call.ctx, at, Missing::Refuse)?;

        let packed = store.packed_record(id)?;
        let Record::Api(mut record) = Record::decode(packed.name().bytes())? else {
            return Err(Error::NoSuch { what: "API key" });
        };
        record.status = Status::Revoked;

        let key = store.name.key(id);
        store.write_hash(&key, &api_fields(&record, None)?)?;
        call.ctx.notify(c"kg.revoke", OwnedString::new(&key).name());

        call.ctx.reply_status(c"OK");
        Ok(())
    }
}
