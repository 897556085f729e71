//! Key records: `KG.ADDKEY`, `KG.SETKEY`, `KG.GETKEY`, `KG.REVEAL`, `KG.FINDKEY`.

use arrayvec::ArrayVec;
use keyguard_core::digest::{Digest, Domain, digest};
use keyguard_core::effect::Effect;
use keyguard_core::keyring::{Keyring, KeyringKey};
use keyguard_core::listing::yes_or_no;
use keyguard_core::names::{Meta, name};
use keyguard_core::pool::{History, Pool, Traits};
use keyguard_core::record::{Record, RecordType, Status, UnitLimits, VaultRecord};
use keyguard_core::secret::Secret;
use keyguard_core::{Error, Result, parse, vault};

use super::given::{Cleared, Given, clear};
use super::{ALLOW, Call, EXPIRY, LIMIT, QUOTA, SCOPES, apikeys};
use crate::adding::{NewVaultKey, expect_room, pool_touched};
use crate::args::{Args, once};
use crate::effects::LAST_USED_AT;
use crate::ffi::{Ctx, Key, OwnedString};
use crate::register::{Access, Arg, Category, Command, Spec};
use crate::reply::{Map, Value, integer};
use crate::store::{Fields, MAX_SHARED, META, Missing, Store, place, using, vault_fields};
use crate::{effects, keyring};

/// `SHARED count window [UNIT u]`, which may be given several times.
const SHARED: Arg = Arg::block(
    c"shared",
    &[Arg::integer(c"count").token(c"SHARED"), Arg::text(c"window"), Arg::text(c"unit").token(c"UNIT").optional()],
)
.optional()
.multiple();

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
        while let Some(option) = args.option(&Given::OF_VAULT_KEYS)? {
            given.take(option, &mut args, call.now_ms)?;
        }
        args.finish()?;
        expect_account(given.account, &given.shared)?;
        let keyring = keyring::current(call.ctx)?;
        let store = Store::open(call.ctx, at, Missing::Create)?;

        let digested = Digested::new(&store, &keyring, &secret, given.unique.is_some(), None)?;
        let id = store.next_id()?;
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
        let adding = NewVaultKey::expect(&store, id, &record, given.meta.as_ref().map(Meta::as_str), false)?;

        adding.write(&store, call.now_ms)?;

        call.ctx.reply_integer(integer(id));
        Ok(())
    }
}

/// Writes a changed record, and META if that changes too: `Some(None)` clears it.
pub(super) fn write_vault(
    store: &Store<'_>,
    id: u64,
    record: &VaultRecord<'_>,
    meta: Option<Option<&str>>,
) -> Result<()> {
    rewrite(store, id, &vault_fields(record, meta.flatten())?, meta.is_some())
}

/// Sets the fields of a record, and takes away those that do not apply; META only if that changes.
pub(super) fn rewrite(store: &Store<'_>, id: u64, fields: &Fields, meta_changes: bool) -> Result<()> {
    let kept: &[&str] = if meta_changes { &[] } else { &[META.as_str()] };
    store.rewrite_hash(&store.name.key(id), fields, kept)
}

/// `KG.SETKEY store id [options]`
pub struct SetKey;

impl Command for SetKey {
    const SPEC: Spec = Spec {
        name: c"KG.SETKEY",
        summary:
            c"Changes or clears what is known of a key, the secret of a vault key included, and answers which fields changed",
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
            SCOPES,
            QUOTA,
            ALLOW,
            Arg::text(c"field").token(c"CLEAR").optional().multiple(),
        ],
    };

    fn run(call: &Call<'_>, mut args: Args<'_>) -> Result<()> {
        const OWN: [&str; 4] = ["NAME", "SECRET", "ACTIVE", "CLEAR"];
        let options: ArrayVec<&'static str, 19> =
            Given::OF_VAULT_KEYS.into_iter().chain(Given::OF_API_KEYS_ONLY).chain(OWN).collect();
        let at = args.store()?;
        let id = args.id()?;
        let (mut given, mut of, mut secret, mut cleared) = (Given::default(), None, None, Cleared::new());
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
        let old_meta = store.record_field(id, &META)?;
        let meta = match given.meta {
            Some(meta) => Some(Some(meta.as_str())),
            None => cleared.contains(&META.as_str()).then_some(None),
        };
        let old_meta = old_meta.as_ref().map(|meta| meta.name().bytes());
        let meta = meta.filter(|meta| meta.map(str::as_bytes) != old_meta);
        let old = match Record::decode(packed.bytes())? {
            Record::Vault(old) => old,
            Record::Api(_) if secret.is_some() => {
                let accepted = "for vault keys only: KG.ROTATE gives an API key a new secret";
                return Err(Error::Invalid { what: "SECRET", accepted });
            }
            Record::Api(old) => {
                given.expect(RecordType::Api, &cleared)?;
                let mut new = given.applied_to_api(&old, &cleared)?;
                new.label = of.unwrap_or(old.label);
                let changed = apikeys::change(&store, id, &old, &new, meta)?;
                answer(call, &changed);
                return Ok(());
            }
        };
        given.expect(RecordType::Vault, &cleared)?;
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
        let mut changed = changes(&old, &new);
        changed.extend(secret.is_some().then_some("secret"));
        changed.extend(meta.map(|_| META.as_str()));
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

        answer(call, &changed);
        Ok(())
    }
}

/// Answers the names of the fields that changed.
fn answer(call: &Call<'_>, changed: &[&str]) {
    call.ctx.reply_array(changed.len());
    changed.iter().for_each(|field| call.ctx.reply_bytes(field.as_bytes()));
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
    let record = Record::decode(packed.bytes())?;
    let beside = Beside::read(&store.read(&store.name.key(id))?)?;
    let pool = pool_of(store, &record)?;
    let history = history_of(pool.as_ref(), id)?;

    describe(call, id, &record, &beside, history);
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

/// What stands beside the packed form of a record and nowhere else.
pub(super) struct Beside {
    meta: Option<OwnedString>,
    last_used_at: Option<OwnedString>,
}

impl Beside {
    /// Reads it.
    pub(super) fn read(key: &Key<'_>) -> Result<Self> {
        let (meta, last_used_at) = (key.hash_field_named(&META)?, key.hash_field_named(&LAST_USED_AT)?);
        Ok(Self { meta, last_used_at })
    }

    fn meta(&self) -> Option<&[u8]> {
        self.meta.as_ref().map(|meta| meta.name().bytes())
    }

    /// How many bytes were read.
    pub(super) fn len(&self) -> usize {
        self.meta().map_or(0, <[u8]>::len)
    }
}

/// Describes a record: never its secret, nor a digest of it.
pub(super) fn describe(call: &Call<'_>, id: u64, record: &Record<'_>, beside: &Beside, history: Option<&History>) {
    let cooling = history.and_then(|history| history.cooling.as_ref());
    let shared = match record {
        Record::Vault(vault) if !vault.shared.is_empty() => Some(&vault.shared),
        _ => None,
    };
    let (quotas, allowed) = match record {
        Record::Vault(_) => (Vec::new(), Vec::new()),
        Record::Api(api) => (
            api.quotas.iter().map(ToString::to_string).collect::<Vec<_>>(),
            api.allowed.iter().map(|net| net.to_string()).collect(),
        ),
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
                .field("start", api.issued.start)
                .field("scopes", &api.scopes)
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
        .optional("meta", beside.meta());
    if let Record::Api(api) = record {
        let last_used_at = beside.last_used_at.as_ref().and_then(|at| parse::unsigned(at.name().bytes()));
        let previous = api.previous.filter(|(_, until_ms)| call.now_ms < *until_ms);
        map.field("quotas", Value::Strings(quotas.iter().map(String::as_str).collect()))
            .field("allowed", Value::Strings(allowed.iter().map(String::as_str).collect()))
            .optional("rotated_until", previous.map(|(_, until_ms)| until_ms))
            .optional("imported", api.issued.is_foreign.then_some(true))
            .optional("last_used_at", last_used_at);
    }
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
        let Record::Vault(record) = Record::decode(packed.bytes())? else {
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
