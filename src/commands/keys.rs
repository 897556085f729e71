//! Key records: `KG.ADDKEY`, `KG.SETKEY`, `KG.GETKEY`, `KG.REVEAL`, `KG.FINDKEY`, `KG.NEWKEY`, `KG.REVOKE`.

use arrayvec::ArrayVec;
use keyguard_core::digest::{Digest, Domain, digest};
use keyguard_core::effect::Effect;
use keyguard_core::keyring::{Keyring, KeyringKey};
use keyguard_core::listing::yes_or_no;
use keyguard_core::names::{Meta, name};
use keyguard_core::pool::{History, MAX_POOL_KEYS, Pool, Traits};
use keyguard_core::record::{ApiRecord, MAX_WEIGHT, OrgRecord, Record, RecordType, Status, UnitLimits, VaultRecord};
use keyguard_core::scope::Scopes;
use keyguard_core::secret::Secret;
use keyguard_core::token::{Prefix, RawKey};
use keyguard_core::vault;
use keyguard_core::{Error, Result};

use super::{Call, EXPIRY, LIMIT, expiry, unit_limit};
use crate::args::{Args, once};
use crate::ffi::{Ctx, Key, OwnedString};
use crate::register::{Access, Arg, Category, Command, Spec};
use crate::reply::{Map, Value, integer};
use crate::store::{API_KEYS, MAX_SHARED, Missing, Store, VAULT_KEYS, api_fields, place, using, vault_fields};
use crate::{effects, keyring, waiting};

/// `SHARED count window [UNIT u]`, which may be given several times.
const SHARED: Arg = Arg::block(
    c"shared",
    &[Arg::integer(c"count").token(c"SHARED"), Arg::text(c"window"), Arg::text(c"unit").token(c"UNIT").optional()],
)
.optional()
.multiple();

/// What ADDKEY and SETKEY may say of a vault key, beside its name and secret.
#[derive(Default)]
struct Given<'c> {
    active: Option<bool>,
    expires: Option<Option<u64>>,
    source: Option<&'c str>,
    login: Option<&'c str>,
    batch: Option<&'c str>,
    account: Option<&'c str>,
    weight: Option<u64>,
    meta: Option<Meta<'c>>,
    unique: Option<()>,
    limits: UnitLimits<'c>,
    shared: UnitLimits<'c>,
}

impl<'c> Given<'c> {
    const OPTIONS: [&'static str; 12] = [
        "INACTIVE", "EXPIREAT", "EXPIREIN", "SOURCE", "LOGIN", "BATCH", "ACCOUNT", "SHARED", "LIMIT", "WEIGHT", "META",
        "UNIQUE",
    ];

    /// Reads what follows one of the options.
    fn take(&mut self, option: &'static str, args: &mut Args<'c>, now_ms: u64) -> Result<()> {
        match option {
            "INACTIVE" => once(&mut self.active, option, false),
            "UNIQUE" => once(&mut self.unique, option, ()),
            "EXPIREAT" | "EXPIREIN" => once(&mut self.expires, option, expiry(args, option, now_ms)?),
            "SOURCE" => once(&mut self.source, option, name(args.value(option)?, option)?),
            "LOGIN" => once(&mut self.login, option, name(args.value(option)?, option)?),
            "BATCH" => once(&mut self.batch, option, name(args.value(option)?, option)?),
            "ACCOUNT" => once(&mut self.account, option, name(args.value(option)?, option)?),
            "SHARED" => unit_limit(args, &mut self.shared),
            "LIMIT" => unit_limit(args, &mut self.limits),
            "WEIGHT" => {
                let accepted = "a whole number from 1 to 1000000";
                once(&mut self.weight, option, args.positive(option, u64::from(MAX_WEIGHT), accepted)?)
            }
            _ => once(&mut self.meta, option, Meta::parse(args.value(option)?)?),
        }
    }

    fn weight(&self) -> Option<u32> {
        self.weight.and_then(|weight| u32::try_from(weight).ok())
    }
}

/// Limits that are shared need somebody to share them with.
fn expect_account(account: Option<&str>, shared: &UnitLimits<'_>) -> Result<()> {
    let alone = account.is_none() && !shared.is_empty();
    if alone { Err(Error::Invalid { what: "SHARED", accepted: "only with ACCOUNT" }) } else { Ok(()) }
}

/// A secret that a record is to have: digested, and whether others have it looked at.
struct Digested<'k> {
    key: &'k KeyringKey,
    digest: Digest,
}

impl<'k> Digested<'k> {
    /// `own` is the record that gets it, if that exists already.
    ///
    /// # Errors
    /// [`Error::Duplicate`] if it is to be `unique` and another key has it; [`Error::TooMany`] if too many have.
    fn new(store: &Store<'_>, keyring: &'k Keyring, secret: &Secret, unique: bool, own: Option<u64>) -> Result<Self> {
        let key = keyring.newest();
        let digested = digest(key, Domain::Vault, secret.expose());
        if unique {
            store.confirm_keyring(keyring)?;
            for key in keyring.newest_first().filter(|key| store.uses(key.fingerprint())) {
                let ids = store.ids_of(&digest(key, Domain::Vault, secret.expose()))?;
                if ids.iter().any(|id| Some(*id) != own) {
                    return Err(Error::Duplicate { what: "this secret" });
                }
            }
        }
        if store.ids_of(&digested)?.len() >= MAX_SHARED {
            return Err(Error::TooMany { what: "keys with this secret", max: MAX_SHARED });
        }
        Ok(Self { key, digest: digested })
    }

    fn seal(&self, store: &Store<'_>, id: u64, secret: &Secret) -> Result<Vec<u8>> {
        vault::seal(self.key, *keyring::random()?, &place(store, id), secret)
    }
}

/// Makes sure that a pool has room for one key more.
fn expect_room(store: &Store<'_>, name: &str) -> Result<()> {
    let key = store.read(&store.name.pool(name))?;
    let keys = key.native::<Pool>()?.map_or(0, Pool::len);
    if keys < MAX_POOL_KEYS { Ok(()) } else { Err(Error::TooMany { what: "keys of one name", max: MAX_POOL_KEYS }) }
}

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
        secrets_from: 0,
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
            SHARED,
            LIMIT,
            Arg::integer(c"n").token(c"WEIGHT").optional(),
            Arg::text(c"json").token(c"META").optional(),
            Arg::word(c"unique", c"UNIQUE").optional(),
        ],
    };

    fn run(call: &Call<'_>, mut args: Args<'_>) -> Result<()> {
        let at = args.store()?;
        let of = name(args.bytes()?, "name")?;
        let secret = Secret::parse(args.bytes()?)?;
        let mut given = Given::default();
        while let Some(option) = args.option(&Given::OPTIONS)? {
            given.take(option, &mut args, call.now_ms)?;
        }
        args.finish()?;
        expect_account(given.account, &given.shared)?;
        let keyring = keyring::current(call.ctx)?;
        let store = Store::open(call.ctx, at, Missing::Create)?;

        let digested = Digested::new(&store, &keyring, &secret, given.unique.is_some(), None)?;
        let id = store.next_id()?;
        store.expect_free(&store.name.key(id))?;
        expect_room(&store, of)?;
        store.expect_list(RecordType::Vault, id)?;
        let count = using(digested.key.fingerprint());
        store.expect_counts(&[VAULT_KEYS, &count], None)?;
        let sealed = digested.seal(&store, id, &secret)?;
        let record = VaultRecord {
            name: of,
            status: if given.active.unwrap_or(true) { Status::Active } else { Status::Inactive },
            created_ms: call.now_ms,
            expires_ms: given.expires.flatten(),
            source: given.source,
            login: given.login,
            batch: given.batch,
            account: given.account,
            weight: given.weight().unwrap_or(1),
            limits: given.limits,
            shared: given.shared,
            rejected: None,
            sealed: &sealed,
            digest: digested.digest,
            digest_key: digested.key.fingerprint(),
            hint: secret.hint(),
        };
        let fields = vault_fields(&record, given.meta.as_ref().map(Meta::as_str))?;
        let traits = Traits::of(&record).encode();

        store.enlist(RecordType::Vault, id)?;
        store.write_header(call.now_ms, Some(id))?;
        store.count(VAULT_KEYS, 1)?;
        store.count(&count, 1)?;
        store.write_hash(&store.name.key(id), &fields)?;
        store.index_digest(&record.digest, id)?;
        let effect = Effect::Enroll { pool: of, from: None, id, traits: &traits };
        effects::commit(call.ctx, store.header, &effect)?;
        pool_touched(&store, of);

        call.ctx.reply_integer(integer(id));
        Ok(())
    }
}

/// Those who wait for a key of this name are looked at.
pub(super) fn pool_touched(store: &Store<'_>, name: &str) {
    let pool = OwnedString::new(&store.name.pool(name));
    waiting::touched(store.ctx(), pool.name());
}

/// Writes a changed record, and META if that changes too: `Some(None)` clears it.
pub(super) fn write_vault(
    store: &Store<'_>,
    id: u64,
    record: &VaultRecord<'_>,
    meta: Option<Option<&str>>,
) -> Result<()> {
    let key = store.name.key(id);
    let fields = vault_fields(record, meta.flatten())?;
    store.write_hash(&key, &fields)?;
    let mut args: Vec<&[u8]> = vec![&key];
    args.extend(fields.absent().filter(|field| *field != META || meta.is_some()).map(|field| field.as_bytes()));
    if args.len() > 1 { store.write(c"HDEL", &args) } else { Ok(()) }
}

/// The readable field of META.
const META: &str = "meta";

/// `KG.SETKEY store id [options]`
pub struct SetKey;

/// The fields that CLEAR takes, by the names that KG.GETKEY shows them under.
const CLEARABLE: [&str; 9] =
    ["source", "login", "batch", "account", "expires_at", "limits", "shared", "weight", "meta"];

impl Command for SetKey {
    const SPEC: Spec = Spec {
        name: c"KG.SETKEY",
        summary:
            c"Changes or clears what is known of a vault key, its secret included, and answers which fields changed",
        complexity: c"O(log N), N being the keys of its name",
        flags: "deny-script",
        access: Access::Write,
        category: Category::Admin,
        min_args: 4,
        secrets: &[],
        secrets_from: 3,
        args: &[
            Arg::key(c"store"),
            Arg::integer(c"id"),
            Arg::text(c"name").token(c"NAME").optional(),
            Arg::text(c"secret").token(c"SECRET").optional(),
            Arg::one_of(c"active", &[Arg::word(c"yes", c"yes"), Arg::word(c"no", c"no")]).token(c"ACTIVE").optional(),
            Arg::word(c"inactive", c"INACTIVE").optional(),
            EXPIRY,
            Arg::text(c"source").token(c"SOURCE").optional(),
            Arg::text(c"login").token(c"LOGIN").optional(),
            Arg::text(c"batch").token(c"BATCH").optional(),
            Arg::text(c"account").token(c"ACCOUNT").optional(),
            SHARED,
            LIMIT,
            Arg::integer(c"n").token(c"WEIGHT").optional(),
            Arg::text(c"json").token(c"META").optional(),
            Arg::word(c"unique", c"UNIQUE").optional(),
            Arg::text(c"field").token(c"CLEAR").optional().multiple(),
        ],
    };

    fn run(call: &Call<'_>, mut args: Args<'_>) -> Result<()> {
        const OWN: [&str; 4] = ["NAME", "SECRET", "ACTIVE", "CLEAR"];
        let options: ArrayVec<&'static str, 16> = Given::OPTIONS.into_iter().chain(OWN).collect();
        let at = args.store()?;
        let id = args.id()?;
        let (mut given, mut of, mut secret, mut cleared) = (Given::default(), None, None, ArrayVec::<&str, 9>::new());
        while let Some(option) = args.option(&options)? {
            match option {
                "NAME" => once(&mut of, option, name(args.value(option)?, option)?)?,
                "SECRET" => once(&mut secret, option, Secret::parse(args.value(option)?)?)?,
                "ACTIVE" => once(&mut given.active, option, yes_or_no(args.value(option)?, option)?)?,
                "CLEAR" => clear(args.value(option)?, &mut cleared)?,
                _ => given.take(option, &mut args, call.now_ms)?,
            }
        }
        args.finish()?;
        if given.unique.is_some() && secret.is_none() {
            return Err(Error::Invalid { what: "UNIQUE", accepted: "only with SECRET" });
        }
        given.expect_not(&cleared)?;
        let store = Store::open(call.ctx, at, Missing::Refuse)?;

        let packed = store.packed_record(id)?;
        let Record::Vault(old) = Record::decode(packed.name().bytes())? else {
            return Err(Error::NoSuch { what: "vault key" });
        };
        let old_meta = store.record_field(id, c"meta")?;
        let sealed;
        let mut new = given.applied(&old, &cleared);
        new.name = of.unwrap_or(old.name);
        expect_account(new.account, &new.shared)?;
        // A key can be put away also where its secret cannot be read.
        let keyring = secret.as_ref().map(|_| keyring::current(call.ctx)).transpose()?;
        if let (Some(secret), Some(keyring)) = (&secret, &keyring) {
            let digested = Digested::new(&store, keyring, secret, given.unique.is_some(), Some(id))?;
            sealed = digested.seal(&store, id, secret)?;
            (new.sealed, new.hint) = (&sealed, secret.hint());
            (new.digest, new.digest_key) = (digested.digest, digested.key.fingerprint());
        }
        let meta = match given.meta {
            Some(meta) => Some(Some(meta.as_str())),
            None => cleared.contains(&META).then_some(None),
        };
        let old_meta = old_meta.as_ref().map(|meta| meta.name().bytes());
        let meta = meta.filter(|meta| meta.map(str::as_bytes) != old_meta);
        let mut changed = changes(&old, &new);
        changed.extend(secret.is_some().then_some("secret"));
        changed.extend(meta.is_some().then_some(META));
        // Somebody may have taken it out of the pool by hand, or put back a record whose pool had given it up.
        let is_enrolled =
            store.read(&store.name.pool(old.name))?.native::<Pool>()?.is_some_and(|pool| pool.contains(id));
        if new.name != old.name || !is_enrolled {
            expect_room(&store, new.name)?;
        }
        let counts = [using(old.digest_key), using(new.digest_key)];
        store.expect_counts(&[&counts[0], &counts[1]], None)?;
        let mut others = store.ids_of(&old.digest)?;
        others.retain(|other| *other != id);
        let traits = Traits::of(&new).encode();

        if !changed.is_empty() {
            write_vault(&store, id, &new, meta)?;
            if secret.is_some() {
                store.set_ids(&old.digest, &others)?;
                store.index_digest(&new.digest, id)?;
            }
            if counts[0] != counts[1] {
                store.count(&counts[0], -1)?;
                store.count(&counts[1], 1)?;
            }
        }
        if !changed.is_empty() || !is_enrolled {
            let from = (new.name != old.name).then_some(old.name);
            let effect = Effect::Enroll { pool: new.name, from, id, traits: &traits };
            effects::commit(call.ctx, store.header, &effect)?;
            from.into_iter().chain([new.name]).for_each(|name| pool_touched(&store, name));
        }

        call.ctx.reply_array(changed.len());
        changed.iter().for_each(|field| call.ctx.reply_bytes(field.as_bytes()));
        Ok(())
    }
}

fn clear(field: &[u8], cleared: &mut ArrayVec<&'static str, 9>) -> Result<()> {
    let known = CLEARABLE.into_iter().find(|name| field.eq_ignore_ascii_case(name.as_bytes()));
    let accepted = "source, login, batch, account, expires_at, limits, shared, weight or meta";
    let field = known.ok_or(Error::Invalid { what: "CLEAR", accepted })?;
    if cleared.contains(&field) {
        return Err(Error::Repeated { option: "CLEAR" });
    }
    cleared.try_push(field).map_err(|_| Error::Internal)
}

impl<'c> Given<'c> {
    /// Makes sure that nothing is both given and cleared.
    fn expect_not(&self, cleared: &[&str]) -> Result<()> {
        let given = [
            ("source", self.source.is_some()),
            ("login", self.login.is_some()),
            ("batch", self.batch.is_some()),
            ("account", self.account.is_some()),
            ("expires_at", self.expires.is_some()),
            ("limits", !self.limits.is_empty()),
            ("shared", !self.shared.is_empty()),
            ("weight", self.weight.is_some()),
            (META, self.meta.is_some()),
        ];
        let both = given.iter().any(|(field, given)| *given && cleared.contains(field));
        if both { Err(Error::Repeated { option: "CLEAR" }) } else { Ok(()) }
    }

    /// What becomes of a record.
    fn applied<'r>(&self, old: &VaultRecord<'r>, cleared: &[&str]) -> VaultRecord<'r>
    where
        'c: 'r,
    {
        let text =
            |given: Option<&'c str>, old: Option<&'r str>, field| given.or(old.filter(|_| !cleared.contains(&field)));
        let limits = |given: &UnitLimits<'c>, old: &UnitLimits<'r>, field| -> UnitLimits<'r> {
            match given.is_empty() {
                true if cleared.contains(&field) => UnitLimits::new(),
                true => old.clone(),
                false => given.clone(),
            }
        };
        let status = match self.active {
            Some(true) => Status::Active,
            Some(false) => Status::Inactive,
            None => old.status,
        };
        let account = text(self.account, old.account, "account");
        VaultRecord {
            status,
            // Taken into use again, or put away by hand: what the vendor said is past.
            rejected: old.rejected.filter(|_| self.active.is_none()),
            expires_ms: self.expires.unwrap_or(old.expires_ms.filter(|_| !cleared.contains(&"expires_at"))),
            source: text(self.source, old.source, "source"),
            login: text(self.login, old.login, "login"),
            batch: text(self.batch, old.batch, "batch"),
            account,
            weight: self.weight().unwrap_or(if cleared.contains(&"weight") { 1 } else { old.weight }),
            limits: limits(&self.limits, &old.limits, "limits"),
            shared: match limits(&self.shared, &old.shared, "shared") {
                // Without its account, its limits go too, unless they are asked for.
                _ if account.is_none() && self.shared.is_empty() => UnitLimits::new(),
                shared => shared,
            },
            ..old.clone()
        }
    }
}

/// The fields in which two records differ, by the names that KG.GETKEY shows them under; not those of the secret.
fn changes(old: &VaultRecord<'_>, new: &VaultRecord<'_>) -> Vec<&'static str> {
    let differ = [
        ("name", old.name != new.name),
        ("active", old.status != new.status),
        ("rejected", old.rejected != new.rejected),
        ("expires_at", old.expires_ms != new.expires_ms),
        ("source", old.source != new.source),
        ("login", old.login != new.login),
        ("batch", old.batch != new.batch),
        ("account", old.account != new.account),
        ("shared", old.shared != new.shared),
        ("limits", old.limits != new.limits),
        ("weight", old.weight != new.weight),
    ];
    differ.into_iter().filter(|(_, differ)| *differ).map(|(field, _)| field).collect()
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
        secrets_from: 0,
        args: &[Arg::key(c"store"), WHICH],
    };

    fn run(call: &Call<'_>, args: Args<'_>) -> Result<()> {
        let (store, id) = which(call.ctx, args)?;

        describe_record(call, &store, id)
    }
}

/// Answers what is known of a record.
pub(super) fn describe_record(call: &Call<'_>, store: &Store<'_>, id: u64) -> Result<()> {
    let packed = store.packed_record(id)?;
    let record = Record::decode(packed.name().bytes())?;
    let meta = store.record_field(id, c"meta")?;
    let pool = pool_of(store, &record)?;
    let history = history_of(pool.as_ref(), id)?;

    describe(call, id, &record, meta.as_ref().map(|meta| meta.name().bytes()), history);
    Ok(())
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

/// The pool of a record, which holds what happened to it; an API key has none.
pub(super) fn pool_of<'c>(store: &Store<'c>, record: &Record<'_>) -> Result<Option<Key<'c>>> {
    match record {
        Record::Vault(vault) => store.read(&store.name.pool(vault.name)).map(Some),
        Record::Api(_) => Ok(None),
    }
}

/// What happened to a record, as its pool tells.
pub(super) fn history_of<'k>(pool: Option<&'k Key<'_>>, id: u64) -> Result<Option<&'k History>> {
    let pool = pool.map(|pool| pool.native::<Pool>()).transpose()?.flatten();
    Ok(pool.and_then(|pool| pool.history(id)))
}

/// Describes a record: never its secret, nor a digest of it.
pub(super) fn describe(call: &Call<'_>, id: u64, record: &Record<'_>, meta: Option<&[u8]>, history: Option<&History>) {
    let cooling = history.and_then(|history| history.cooling.as_ref());
    let shared = match record {
        Record::Vault(vault) if !vault.shared.is_empty() => Some(&vault.shared),
        _ => None,
    };
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
        .optional("shared", shared)
        .field("status", record.status().as_str())
        .field("active", record.status() == Status::Active)
        .field("expired", expired)
        .field("usable", record.usable(call.now_ms))
        .optional("meta", meta);
    if let Record::Vault(vault) = record {
        map.optional("rejected", vault.rejected)
            .optional("cooling_until", cooling.map(|cooling| cooling.until_ms).filter(|until| *until > call.now_ms))
            .optional("throttled", cooling.map(|cooling| u64::from(cooling.count)))
            .optional("last_used_at", history.map(|history| history.used_ms).filter(|used_ms| *used_ms > 0));
    }
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
        secrets_from: 0,
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
        secrets_from: 0,
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
        secrets_from: 0,
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
        secrets_from: 0,
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
