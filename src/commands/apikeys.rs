//! API keys: `KG.NEWKEY`, `KG.ROTATE`, `KG.REVOKE`, and what `KG.SETKEY` changes of them.

use keyguard_core::digest::{Domain, digest};
use keyguard_core::keyring::Keyring;
use keyguard_core::names::{Meta, name, text};
use keyguard_core::record::{ApiRecord, Issued, OrgRecord, Record, Status};
use keyguard_core::token::{MAX_PREFIX_BYTES, Prefix, RawKey, SHOWN_BODY_BYTES, prefix_after};
use keyguard_core::{Error, Result, parse};

use super::given::Given;
use super::keys::rewrite;
use super::{ALLOW, Call, EXPIRY, LIMIT, QUOTA, SCOPES};
use crate::adding::{Activity, MORE, NewApiKey, digest_keys, index_start, issued};
use crate::args::{Args, once};
use crate::ffi::{Kind, OwnedString};
use crate::gate;
use crate::keyring;
use crate::register::{Access, Arg, Category, Command, Spec};
use crate::reply::integer;
use crate::store::{FOREIGN_KEYS, Missing, Packed, Store, api_fields, using};

/// A raw key that nobody has yet, and what is kept of it.
fn issue<'r>(raw: &'r RawKey, keyring: &Keyring) -> Issued<'r> {
    let key = keyring.newest();
    let digest = digest(key, Domain::Api, raw.as_bytes());
    Issued { digest, digest_key: key.fingerprint(), start: raw.start(), is_foreign: false }
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
            SCOPES,
            LIMIT,
            QUOTA,
            ALLOW,
            EXPIRY,
            Arg::text(c"json").token(c"META").optional(),
        ],
    };

    fn run(call: &Call<'_>, mut args: Args<'_>) -> Result<()> {
        const OPTIONS: [&str; 8] = ["PREFIX", "SCOPES", "LIMIT", "QUOTA", "ALLOW", "EXPIREAT", "EXPIREIN", "META"];
        let at = args.store()?;
        let org = name(args.bytes()?, "org")?;
        let label = name(args.bytes()?, "label")?;
        let (mut prefix, mut given) = (None, Given::default());
        while let Some(option) = args.option(&OPTIONS)? {
            match option {
                "PREFIX" => once(&mut prefix, option, Prefix::parse(args.value(option)?)?)?,
                _ => given.take(option, &mut args, call.now_ms)?,
            }
        }
        args.finish()?;
        let store = Store::open(call.ctx, at, Missing::Refuse)?;
        OrgRecord::decode(store.packed_org(org)?.bytes())?;
        let keyring = keyring::current(call.ctx)?;

        let raw = RawKey::new(&prefix.unwrap_or_default(), &*keyring::random()?);
        let record = ApiRecord {
            org,
            label,
            status: Status::Active,
            created_ms: call.now_ms,
            expires_ms: given.expires.flatten(),
            scopes: given.scopes.unwrap_or_default(),
            limits: given.limits,
            quotas: given.quotas,
            allowed: given.allowed,
            issued: issue(&raw, &keyring),
            previous: None,
        };
        let adding =
            NewApiKey::expect(&store, store.next_id()?, &record, given.meta.as_ref().map(Meta::as_str), false)?;

        let id = adding.write(&store, call.now_ms)?;

        answer(call, id, &raw);
        Ok(())
    }
}

fn answer(call: &Call<'_>, id: u64, raw: &RawKey) {
    call.ctx.reply_array(2);
    call.ctx.reply_integer(integer(id));
    call.ctx.reply_bytes(raw.as_bytes());
}

/// `KG.ROTATE store id [GRACE duration]`
pub struct Rotate;

impl Command for Rotate {
    const SPEC: Spec = Spec {
        name: c"KG.ROTATE",
        summary: c"Gives an API key a new secret, shown this once; the record stays, with what it used",
        complexity: c"O(1)",
        flags: "deny-oom deny-script",
        access: Access::Write,
        category: Category::Secrets,
        min_args: 3,
        // Whoever means a key by itself shows it where an id is expected.
        secrets: &[],
        secrets_from: 2,
        args: &[Arg::key(c"store"), Arg::integer(c"id"), Arg::text(c"duration").token(c"GRACE").optional()],
    };

    fn run(call: &Call<'_>, mut args: Args<'_>) -> Result<()> {
        let at = args.store()?;
        let id = args.id()?;
        let mut grace_ms = None;
        while let Some(option) = args.option(&["GRACE"])? {
            once(&mut grace_ms, option, parse::duration_ms(args.value(option)?, option)?)?;
        }
        args.finish()?;
        let store = Store::open(call.ctx, at, Missing::Refuse)?;
        let packed = store.packed_record(id)?;
        let old = api_record(&packed)?;
        if old.status == Status::Revoked {
            return Err(Error::Invalid { what: "id", accepted: "not that of a key that is revoked, which is final" });
        }
        let keyring = keyring::current(call.ctx)?;

        let prefix = prefix_after(old.issued.start, old.issued.is_foreign);
        let raw = RawKey::new(&prefix, &*keyring::random()?);
        let previous = grace_ms.map(|grace_ms| (old.issued, call.now_ms + grace_ms));
        let new = ApiRecord { issued: issue(&raw, &keyring), previous, ..old.clone() };
        store.expect_free(&store.name.digest(&new.issued.digest))?;
        let changing = Reissue::expect(&store, id, &old, &new)?;

        changing.write(&store)?;
        call.ctx.notify(c"kg.rotate", OwnedString::new(&store.name.key(id)).name());

        answer(call, id, &raw);
        Ok(())
    }
}

/// A record that gets another raw key or another digest of the one that it has, or loses the one that it had before.
pub(super) struct Reissue<'n, 'r> {
    id: u64,
    old: &'n ApiRecord<'r>,
    new: &'n ApiRecord<'r>,
    /// What changes in the header's counts of keyring keys in use and of raw keys made elsewhere.
    counts: Vec<(String, i64)>,
}

impl<'n, 'r> Reissue<'n, 'r> {
    /// Makes sure that everything can be written, before anything is.
    ///
    /// # Errors
    /// [`Error::WrongType`] or [`Error::Damaged`].
    pub(super) fn expect(store: &Store<'_>, id: u64, old: &'n ApiRecord<'r>, new: &'n ApiRecord<'r>) -> Result<Self> {
        let uses = |record, key| digest_keys(record).any(|used| used == key);
        let released = digest_keys(old).filter(|key| !uses(new, *key)).map(|key| (using(key), -1));
        let taken = digest_keys(new).filter(|key| !uses(old, *key)).map(|key| (using(key), 1));
        let foreign = i64::from(new.foreign_keys()) - i64::from(old.foreign_keys());
        let foreign = (foreign != 0).then(|| (FOREIGN_KEYS.to_owned(), foreign));
        let counts: Vec<(String, i64)> = released.chain(taken).chain(foreign).collect();
        store.expect_counts(&counts.iter().map(|(count, _)| &**count).collect::<Vec<_>>(), None)?;
        for issued in issued(old).chain(issued(new)) {
            store.expect(&store.name.digest(&issued.digest), Kind::Text)?;
            store.ids_of_start(issued.start)?;
        }
        Ok(Self { id, old, new, counts })
    }

    pub(super) fn write(&self, store: &Store<'_>) -> Result<()> {
        let Self { id, old, new, counts } = self;
        let has = |record, digest| issued(record).any(|issued| issued.digest == digest);
        rewrite(store, *id, &api_fields(new, None)?, false)?;
        for gone in issued(old).filter(|issued| !has(new, issued.digest)) {
            store.set_ids(&gone.digest, &[])?;
        }
        if !has(old, new.issued.digest) {
            store.index_digest(&new.issued.digest, *id)?;
        }
        if let Some((previous, until_ms)) = &new.previous {
            store.expire_digest(&previous.digest, *until_ms)?;
        }
        for gone in issued(old).filter(|old| !issued(new).any(|new| new.start == old.start)) {
            index_start(store, gone.start, *id, false)?;
        }
        index_start(store, new.issued.start, *id, true)?;
        counts.iter().try_for_each(|(count, by)| store.count(count, *by))
    }
}

fn api_record(packed: &Packed) -> Result<ApiRecord<'_>> {
    match Record::decode(packed.bytes())? {
        Record::Api(record) => Ok(record),
        Record::Vault(_) => Err(Error::NoSuch { what: "API key" }),
    }
}

/// `KG.REVOKE store <id | KEY raw-key | START start>`
pub struct Revoke;

impl Command for Revoke {
    const SPEC: Spec = Spec {
        name: c"KG.REVOKE",
        summary: c"Ends an API key for good: by its id, by the leaked key itself, or by its visible beginning",
        complexity: c"O(1)",
        flags: "fast deny-script",
        access: Access::Write,
        category: Category::Admin,
        min_args: 3,
        // Whoever forgets the word KEY shows the raw key where an id is expected.
        secrets: &[],
        secrets_from: 2,
        args: &[
            Arg::key(c"store"),
            Arg::one_of(
                c"which",
                &[Arg::integer(c"id"), Arg::text(c"raw-key").token(c"KEY"), Arg::text(c"start").token(c"START")],
            ),
        ],
    };

    fn run(call: &Call<'_>, mut args: Args<'_>) -> Result<()> {
        let at = args.store()?;
        let (store, id) = if args.take_word("KEY") {
            let raw_key = args.value("KEY")?;
            args.finish()?;
            let store = Store::open(call.ctx, at, Missing::Refuse)?;
            let unknown = Error::NoSuch { what: "API key" };
            let found = gate::look_up(call.ctx, &store, raw_key, &mut Vec::new())?.ok_or(unknown)?;
            if !found.works(&ApiRecord::decode(found.packed.bytes())?, call.now_ms)? {
                return Err(unknown);
            }
            (store, found.id)
        } else if args.take_word("START") {
            let start = text(args.value("START")?, "START", MAX_PREFIX_BYTES + SHOWN_BODY_BYTES)?;
            args.finish()?;
            let store = Store::open(call.ctx, at, Missing::Refuse)?;
            let id = id_beginning(&store, start, call.now_ms)?;
            (store, id)
        } else {
            let id = args.id()?;
            args.finish()?;
            (Store::open(call.ctx, at, Missing::Refuse)?, id)
        };
        let packed = store.packed_record(id)?;
        let old = api_record(&packed)?;

        let activity = Activity::expect(&store, old.status, Status::Revoked)?;
        let revoked = ApiRecord { status: Status::Revoked, ..old };
        rewrite(&store, id, &api_fields(&revoked, None)?, false)?;
        activity.write(&store)?;
        call.ctx.notify(c"kg.revoke", OwnedString::new(&store.name.key(id)).name());

        call.ctx.reply_status(c"OK");
        Ok(())
    }
}

/// The id of the only API key that has a raw key with this visible beginning which works now. The index also knows those whose
/// grace has ended: they must not lead to the raw key that came after them.
///
/// # Errors
/// [`Error::NoSuch`], or [`Error::NotUnique`] if there are several.
fn id_beginning(store: &Store<'_>, start: &str, now_ms: u64) -> Result<u64> {
    let mut only = None;
    for id in store.ids_of_start(start)? {
        if id == MORE {
            return Err(Error::NotUnique);
        }
        let packed = match store.packed_record(id) {
            // Somebody deleted it by hand.
            Err(Error::NoSuch { .. }) => continue,
            packed => packed?,
        };
        let record = api_record(&packed)?;
        let in_grace = record.previous.filter(|(_, until_ms)| now_ms < *until_ms).map(|(issued, _)| issued);
        if record.issued.start != start && in_grace.is_none_or(|issued| issued.start != start) {
            continue;
        }
        if only.replace(id).is_some() {
            return Err(Error::NotUnique);
        }
    }
    only.ok_or(Error::NoSuch { what: "visible beginning" })
}

/// Writes a record that SETKEY changed, and says which fields did. `meta` is what becomes of META, if it changes.
pub(super) fn change<'r>(
    store: &Store<'_>,
    id: u64,
    old: &ApiRecord<'r>,
    new: &ApiRecord<'r>,
    meta: Option<Option<&str>>,
) -> Result<Vec<&'static str>> {
    let differ = [
        ("label", old.label != new.label),
        ("active", old.status != new.status),
        ("expires_at", old.expires_ms != new.expires_ms),
        ("scopes", old.scopes != new.scopes),
        ("limits", old.limits != new.limits),
        ("quotas", old.quotas != new.quotas),
        ("allowed", old.allowed != new.allowed),
        ("meta", meta.is_some()),
    ];
    let changed: Vec<&'static str> = differ.into_iter().filter(|(_, differ)| *differ).map(|(field, _)| field).collect();
    if !changed.is_empty() {
        let activity = Activity::expect(store, old.status, new.status)?;
        rewrite(store, id, &api_fields(new, meta.flatten())?, meta.is_some())?;
        activity.write(store)?;
    }
    Ok(changed)
}
