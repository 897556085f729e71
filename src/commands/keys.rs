//! Key records: `KG.ADDKEY`, `KG.GETKEY`, `KG.REVEAL`, `KG.FINDKEY`, `KG.NEWKEY`, `KG.REVOKE`.

use keyguard_core::digest::{Domain, digest};
use keyguard_core::names::{Meta, name};
use keyguard_core::record::{ApiRecord, MAX_WEIGHT, OrgRecord, Record, RecordType, Status, UnitLimits, VaultRecord};
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
        store.expect_list(RecordType::Vault, id)?;
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

        store.enlist(RecordType::Vault, id)?;
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

/// Describes a record: never its secret, nor a digest of it.
pub(super) fn describe(call: &Call<'_>, id: u64, record: &Record<'_>, meta: Option<&[u8]>) {
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
        .field("limits", record.limits())
        .field("status", record.status().as_str())
        .field("active", record.status() == Status::Active)
        .field("expired", expired)
        .field("usable", record.usable(call.now_ms))
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
        store.expect_list(RecordType::Api, id)?;
        store.expect_counts(&[API_KEYS, &using(key.fingerprint())], Some(org))?;
        let fields = api_fields(&record, meta.as_ref().map(Meta::as_str))?;

        store.enlist(RecordType::Api, id)?;
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
