//! Stores over the keyspace: the header, key records, organizations and the indexes beside them.
//!
//! Everything here is a hash or a string, so that people can read it; it is changed by the server's own commands, which a
//! replica without the module can follow. The packed field `r` is what commands believe; the readable fields beside it are
//! written for people and never read back.

use std::collections::BTreeMap;
use std::ffi::CStr;

use keyguard_core::digest::Digest;
use keyguard_core::failures::MAX_THRESHOLD;
use keyguard_core::keyring::{Fingerprint, Keyring};
use keyguard_core::names::{Derived, Listed, StoreName};
use keyguard_core::pool::Pool;
use keyguard_core::record::{ApiRecord, OrgRecord, Record, UnitLimits, VaultRecord};
use keyguard_core::vault::Place;
use keyguard_core::zone::Zone;
use keyguard_core::{Error, Result, listing, parse};

use crate::ffi::{Ctx, FieldName, Key, Kind, Level, Name, OwnedString, to_c_string};
use crate::server;

/// The field of the packed form of a record. One of up to 256 bytes goes on in those of [`MORE_PACKED`]: a hash stays small as long
/// as no value in it is longer than [`PIECE_BYTES`], and takes three times the memory as soon as one is.
static PACKED: FieldName = FieldName::new("r");

/// Where a packed record goes on.
static MORE_PACKED: [FieldName; 3] = [FieldName::new("r2"), FieldName::new("r3"), FieldName::new("r4")];

/// The readable field of META, which no packed field repeats.
pub static META: FieldName = FieldName::new("meta");

/// The server's `hash-max-listpack-value`, unless somebody changed it.
const PIECE_BYTES: usize = 64;

/// The packed form of a record, as one.
pub enum Packed {
    /// It stood in one field.
    Whole(OwnedString),
    /// It stood in several.
    Joined(Vec<u8>),
}

impl Packed {
    /// Reads that of the record that a key holds; None if the hash has none.
    ///
    /// # Errors
    /// [`Error::WrongType`] unless the key holds a hash or nothing.
    pub fn read(key: &Key<'_>) -> Result<Option<Self>> {
        let Some(first) = key.hash_field_named(&PACKED)? else { return Ok(None) };
        if first.name().bytes().len() != PIECE_BYTES {
            return Ok(Some(Self::Whole(first)));
        }
        let mut joined = Vec::with_capacity(4 * PIECE_BYTES);
        joined.extend_from_slice(first.name().bytes());
        for field in &MORE_PACKED {
            let Some(piece) = key.hash_field_named(field)? else { break };
            let piece = piece.name().bytes();
            joined.extend_from_slice(piece);
            if piece.len() != PIECE_BYTES {
                break;
            }
        }
        Ok(Some(Self::Joined(joined)))
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Whole(string) => string.name().bytes(),
            Self::Joined(bytes) => bytes,
        }
    }
}

/// The most ids that share one secret.
pub const MAX_SHARED: usize = 2_000;

/// The version of the layout that DESIGN calls keyspace, in the header.
const SCHEMA: &str = "1";

/// How many ids an allocator leaves out when another server allocated before it: what that server gave out and could not
/// replicate before it failed must not be given out again.
const SKIPPED_IDS: u64 = 1_024;

/// How far behind the last id listed a new one may lie, in bytes of the bitmap. Ids that other lists have and ids that were skipped
/// lie between; a header that somebody damaged must not make the server fill half a gigabyte with zeros.
const LIST_GAP: usize = 16 << 20;

/// A store that exists.
#[derive(Clone, Copy)]
pub struct Store<'c> {
    ctx: Ctx<'c>,
    /// Its name.
    pub name: StoreName<'c>,
    /// The key of its header.
    pub header: Name<'c>,
}

/// The fields of a hash that is being written; those that do not apply are left out.
#[derive(Default)]
pub struct Fields(Vec<(&'static str, Vec<u8>)>, Vec<&'static str>);

impl Fields {
    /// Adds a field.
    pub fn set(&mut self, name: &'static str, value: impl AsRef<[u8]>) -> &mut Self {
        self.0.push((name, value.as_ref().to_vec()));
        self
    }

    /// Adds the packed form of a record.
    fn packed(&mut self, packed: &[u8]) -> &mut Self {
        let names = std::iter::once(&PACKED).chain(&MORE_PACKED).map(FieldName::as_str);
        // One of exactly a piece would be taken for one that goes on.
        let whole = packed.len() > (1 + MORE_PACKED.len()) * PIECE_BYTES;
        let mut pieces = packed.chunks(if whole { packed.len() } else { PIECE_BYTES });
        for name in names {
            self.optional(name, pieces.next());
        }
        self
    }

    /// Adds a field that may not apply.
    pub fn optional(&mut self, name: &'static str, value: Option<impl AsRef<[u8]>>) -> &mut Self {
        match value {
            Some(value) => _ = self.set(name, value),
            None => self.1.push(name),
        }
        self
    }

    /// Those that do not apply.
    pub fn absent(&self) -> impl Iterator<Item = &'static str> {
        self.1.iter().copied()
    }
}

/// How a handler takes a store that does not exist.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// As an error: `NOSTORE`.
    Refuse,
    /// As one to create with the first write.
    Create,
}

impl<'c> Store<'c> {
    /// The call that it was opened in.
    pub fn ctx(&self) -> Ctx<'c> {
        self.ctx
    }

    /// The store of this name.
    ///
    /// # Errors
    /// [`Error::NoStore`], or [`Error::WrongType`] and [`Error::ForeignHash`] where something else stands under the name.
    pub fn open(ctx: Ctx<'c>, (name, header): (StoreName<'c>, Name<'c>), missing: Missing) -> Result<Self> {
        let store = Self { ctx, name, header };
        let key = ctx.read(header);
        match (key.kind(), missing) {
            (Kind::Empty, Missing::Refuse) => Err(Error::NoStore),
            (Kind::Empty, Missing::Create) => Ok(store),
            _ => match key.hash_field(c"schema")? {
                None => Err(Error::ForeignHash),
                Some(schema) if schema.name().bytes() == SCHEMA.as_bytes() => Ok(store),
                Some(_) => Err(Error::Damaged { what: "header" }),
            },
        }
    }

    /// [`open`](Self::open) for the hot path: that the key is a hash is all it asks. [`confirm`](Self::confirm) asks the rest,
    /// before anything is said to be absent.
    pub fn open_unconfirmed(ctx: Ctx<'c>, (name, header): (StoreName<'c>, Name<'c>)) -> Result<Self> {
        match ctx.read(header).kind() {
            Kind::Empty => Err(Error::NoStore),
            Kind::Hash => Ok(Self { ctx, name, header }),
            _ => Err(Error::WrongType),
        }
    }

    /// Asks what [`open_unconfirmed`](Self::open_unconfirmed) left out.
    pub fn confirm(&self) -> Result<()> {
        Self::open(self.ctx, (self.name, self.header), Missing::Refuse).map(drop)
    }

    /// Makes sure that this keyring can look up every secret of the store, before one is said to be absent: with a keyring that
    /// lacks a key, every customer would be a stranger.
    ///
    /// # Errors
    /// [`Error::NoKeyring`].
    pub fn confirm_keyring(&self, keyring: &Keyring) -> Result<()> {
        let used = fingerprints(self.ctx, self.name.as_bytes());
        let lacking = used.into_iter().any(|(used, _)| !keyring.holds(used));
        let why =
            "the keyring lacks a key that this store uses; the server's log and INFO keyguard name its fingerprint";
        if lacking { Err(Error::NoKeyring { why }) } else { Ok(()) }
    }

    /// Whether a record of the store may use this key of the keyring: what none uses need not be looked up.
    pub fn uses(&self, fingerprint: Fingerprint) -> bool {
        let count = self.ctx.read(self.header).hash_field(&to_c_string(&using(fingerprint)));
        !matches!(count, Ok(None)) && !matches!(count, Ok(Some(count)) if count.name().bytes() == b"0")
    }

    /// How many vault keys the header counts, and how many records of either type that use another key of the keyring than the
    /// newest; it does not count the two apart.
    pub fn vault_keys_and_older(&self, newest: Fingerprint) -> Result<(u64, u64)> {
        let vault_keys = self.ctx.read(self.header).hash_field(&to_c_string(VAULT_KEYS))?;
        // One that is no count makes an estimate worse, and nothing wrong.
        let vault_keys = vault_keys.and_then(|count| parse::unsigned(count.name().bytes())).unwrap_or(0);
        let used = fingerprints(self.ctx, self.name.as_bytes());
        let older = used.into_iter().filter(|(used, _)| *used != newest).map(|(_, count)| count);
        Ok((vault_keys, older.fold(0, u64::saturating_add)))
    }

    /// Whether the header exists.
    pub fn exists(&self) -> bool {
        self.ctx.read(self.header).kind() != Kind::Empty
    }

    /// Makes sure that a derived key which is not here is nowhere: while its slot moves, it may be on the other node already.
    ///
    /// # Errors
    /// [`Error::TryAgain`].
    pub fn confirm_absent(&self, derived: &[u8]) -> Result<()> {
        if !server::is_cluster() {
            return Ok(());
        }
        // The server refuses a call on a key that it does not serve. Naming the header too makes it a call on several keys,
        // which the importing node refuses as well while one of them is still missing.
        let reply = self.ctx.call(c"EXISTS", c"Ev", &[self.name.as_bytes(), derived]);
        if reply.integer().is_some() { Ok(()) } else { Err(Error::TryAgain) }
    }

    /// As [`read`](Self::read) or, to change it, `ctx.change`; the name of the key is written into a buffer that is used again, and
    /// given back.
    pub fn open_derived(
        &self,
        key: &Derived<'_>,
        buffer: &mut Vec<u8>,
        to_change: bool,
    ) -> Result<(OwnedString, Key<'c>)> {
        self.name.write_derived(key, buffer);
        let name = OwnedString::new(buffer);
        let key = if to_change { self.ctx.change(name.name()) } else { self.ctx.read(name.name()) };
        if key.kind() == Kind::Empty {
            self.confirm_absent(buffer)?;
        }
        Ok((name, key))
    }

    /// Opens a derived key to read it; one that is absent was looked for on the other node too.
    pub fn read(&self, derived: &[u8]) -> Result<Key<'c>> {
        let name = OwnedString::new(derived);
        let key = self.ctx.read(name.name());
        if key.kind() == Kind::Empty {
            self.confirm_absent(derived)?;
        }
        Ok(key)
    }

    /// Makes sure that a derived key holds `kind` or is absent everywhere, before it is written.
    pub fn expect(&self, derived: &[u8], kind: Kind) -> Result<()> {
        let found = self.read(derived)?.kind();
        if found == kind || found == Kind::Empty { Ok(()) } else { Err(Error::WrongType) }
    }

    /// The packed field of a record.
    ///
    /// # Errors
    /// [`Error::NoSuch`] `what`, [`Error::WrongType`], or [`Error::Damaged`] without the field.
    fn packed(&self, derived: &[u8], what: &'static str, damaged: &'static str) -> Result<Packed> {
        Self::packed_in(&self.read(derived)?, what, damaged)
    }

    /// The packed form of the record in a key that is open.
    ///
    /// # Errors
    /// [`Error::NoSuch`] `what`, [`Error::WrongType`], or [`Error::Damaged`] without the field.
    pub fn packed_in(key: &Key<'_>, what: &'static str, damaged: &'static str) -> Result<Packed> {
        match key.kind() {
            Kind::Empty => Err(Error::NoSuch { what }),
            Kind::Hash => Packed::read(key)?.ok_or(Error::Damaged { what: damaged }),
            _ => Err(Error::WrongType),
        }
    }

    /// The packed form of a key record.
    pub fn packed_record(&self, id: u64) -> Result<Packed> {
        self.packed(&self.name.key(id), "id", "key record")
    }

    /// The packed form of an organization.
    pub fn packed_org(&self, org: &str) -> Result<Packed> {
        self.packed(&self.name.org(org), "organization", "organization record")
    }

    /// A readable field of a key record that no packed field repeats.
    pub fn record_field(&self, id: u64, field: &FieldName) -> Result<Option<OwnedString>> {
        self.read(&self.name.key(id))?.hash_field_named(field)
    }

    /// The ids that have a secret of this digest, oldest first.
    pub fn ids_of(&self, digest: &Digest) -> Result<Vec<u64>> {
        match self.read(&self.name.digest(digest))?.text()? {
            None => Ok(Vec::new()),
            Some(ids) => listed(&ids, "digest index"),
        }
    }

    /// The id of the only vault key of this name.
    ///
    /// # Errors
    /// [`Error::NoSuch`], or [`Error::NotUnique`] if there are several.
    pub fn id_named(&self, name: &str) -> Result<u64> {
        let key = self.read(&self.name.pool(name))?;
        let pool = key.native::<Pool>()?.ok_or(Error::NoSuch { what: "name" })?;
        match (pool.len(), pool.ids_after(0, 1).next()) {
            (1, Some(id)) => Ok(id),
            _ => Err(Error::NotUnique),
        }
    }

    /// The ids of key records of a type, or of organizations, after a given one, in order, and at most `n`: fewer are all there
    /// are. That the records exist is not asked.
    ///
    /// # Errors
    /// [`Error::WrongType`].
    pub fn ids_after(&self, of: impl Into<Listed>, after: u64, n: usize) -> Result<Vec<u64>> {
        let ids = self.read(&self.name.ids(of))?.with_text(|bitmap| listing::ids_after(bitmap, after, n))?;
        Ok(ids.unwrap_or_default())
    }

    /// How many ids are listed, whether there are records or not.
    ///
    /// # Errors
    /// [`Error::WrongType`].
    pub fn listed(&self, of: impl Into<Listed>) -> Result<u64> {
        Ok(self.read(&self.name.ids(of))?.with_text(listing::count)?.unwrap_or(0))
    }

    /// The ids of the vault keys of a name, as [`ids_after`](Self::ids_after) gives them.
    ///
    /// # Errors
    /// [`Error::WrongType`].
    pub fn vault_ids_named(&self, name: &str, after: u64, n: usize) -> Result<Vec<u64>> {
        let key = self.read(&self.name.pool(name))?;
        Ok(key.native::<Pool>()?.map_or_else(Vec::new, |pool| pool.ids_after(after, n).collect()))
    }

    /// How many vault keys have a name.
    ///
    /// # Errors
    /// [`Error::WrongType`].
    pub fn named(&self, name: &str) -> Result<u64> {
        let key = self.read(&self.name.pool(name))?;
        Ok(key.native::<Pool>()?.map_or(0, |pool| pool.len() as u64))
    }

    /// A count in the header.
    ///
    /// # Errors
    /// [`Error::Damaged`] if it is no number.
    pub fn counted(&self, what: &str) -> Result<u64> {
        match self.ctx.read(self.header).hash_field(&to_c_string(what))? {
            None => Ok(0),
            Some(count) => parse::unsigned(count.name().bytes()).ok_or(Error::Damaged { what: "header" }),
        }
    }

    /// How many API keys are active, as the header counts them. Keys that version 0.1.0 issued were not counted, so that a store may
    /// have lost more than it got.
    ///
    /// # Errors
    /// [`Error::Damaged`] if it is no number.
    pub fn active_keys(&self) -> Result<u64> {
        let Some(count) = self.ctx.read(self.header).hash_field(&to_c_string(ACTIVE_KEYS))? else { return Ok(0) };
        let count = str::from_utf8(count.name().bytes()).ok().and_then(|count| count.parse::<i64>().ok());
        count.map(|count| u64::try_from(count).unwrap_or(0)).ok_or(Error::Damaged { what: "header" })
    }

    /// The time zone in which the store's days and months end: UTC, unless KG.SETSTORE said otherwise.
    ///
    /// # Errors
    /// [`Error::Damaged`] if there is none of the name that the header has.
    pub fn zone(&self) -> Result<Zone> {
        Ok(self.named_zone()?.unwrap_or_default())
    }

    /// The time zone that KG.SETSTORE said, if it did.
    ///
    /// # Errors
    /// As [`zone`](Self::zone).
    pub fn named_zone(&self) -> Result<Option<Zone>> {
        let name = self.ctx.read(self.header).hash_field(&to_c_string(TZ))?;
        let zone = name.map(|name| Zone::parse(name.name().bytes())).transpose();
        zone.map_err(|_| Error::Damaged { what: "header" })
    }

    /// How many wrong keys in an hour block an address, as KG.SETSTORE said of this store; 0 is never.
    ///
    /// # Errors
    /// [`Error::Damaged`] if it is none that KG.SETSTORE takes.
    pub fn ip_threshold(&self) -> Result<Option<u64>> {
        match self.ctx.read(self.header).hash_field(&to_c_string(IP_THRESHOLD))? {
            None => Ok(None),
            Some(count) => {
                let count = parse::unsigned(count.name().bytes()).filter(|count| *count <= MAX_THRESHOLD);
                count.map(Some).ok_or(Error::Damaged { what: "header" })
            }
        }
    }

    /// How far the import of a snapshot has come with its usage, if one is at work or broke off.
    ///
    /// # Errors
    /// [`Error::WrongType`].
    #[cfg(feature = "snapshot")]
    pub fn usage_from(&self) -> Result<Option<OwnedString>> {
        self.ctx.read(self.header).hash_field(&to_c_string(USAGE_FROM))
    }

    /// When the store was created, in unix milliseconds.
    ///
    /// # Errors
    /// [`Error::Damaged`] if it is no number.
    pub fn created_ms(&self) -> Result<u64> {
        self.counted(CREATED)
    }

    /// How many keys an organization has.
    ///
    /// # Errors
    /// [`Error::Damaged`] if the count is no number.
    pub fn keys_of_org(&self, org: &str) -> Result<u64> {
        match self.read(&self.name.org(org))?.hash_field(&to_c_string(KEYS_OF_ORG))? {
            None => Ok(0),
            Some(count) => {
                let count = str::from_utf8(count.name().bytes()).ok().and_then(|count| count.parse::<i64>().ok());
                // One that somebody deleted by hand and added again may have lost more keys than it got.
                count
                    .map(|count| u64::try_from(count).unwrap_or(0))
                    .ok_or(Error::Damaged { what: "organization record" })
            }
        }
    }

    /// Makes sure that a new record can be listed, before anything is written.
    ///
    /// # Errors
    /// [`Error::WrongType`], or [`Error::Damaged`] for an id so large that the list would have to grow by leaps.
    pub fn expect_list(&self, of: impl Into<Listed>, id: u64) -> Result<()> {
        let near = |of| -> Result<bool> {
            let listed = self.read(&self.name.ids(of))?.with_text(<[u8]>::len)?;
            Ok(id / 8 <= (listed.unwrap_or(0) + LIST_GAP) as u64)
        };
        let of = of.into();
        if near(of)? {
            return Ok(());
        }
        // A store with many records of one kind may get its first of another.
        for other in Listed::ALL.into_iter().filter(|other| *other != of) {
            if near(other)? {
                return Ok(());
            }
        }
        Err(Error::Damaged { what: "header" })
    }

    /// Lists a new record.
    pub fn enlist(&self, of: impl Into<Listed>, id: u64) -> Result<()> {
        self.write(c"SETBIT", &[&self.name.ids(of), id.to_string().as_bytes(), b"1"])
    }

    /// Takes records out of the list, and with the last of them the list; `ids` are in order.
    pub fn delist(&self, of: impl Into<Listed>, ids: &[u64]) -> Result<()> {
        let key = self.name.ids(of);
        let found = self.read(&key)?.with_text(|bitmap| {
            let listed: Vec<u64> = ids.iter().copied().filter(|id| listing::is_listed(bitmap, *id)).collect();
            let first = listing::ids_after(bitmap, 0, listed.len() + 1);
            (first == listed, listed)
        })?;
        match found {
            None => Ok(()),
            Some((true, _)) => self.write(c"DEL", &[&key]),
            Some((false, listed)) if listed.is_empty() => Ok(()),
            Some((false, listed)) => {
                // One command for all of them, not a SETBIT for each.
                let listed: Vec<String> = listed.iter().map(u64::to_string).collect();
                let clear = listed.iter().flat_map(|id| [&b"SET"[..], b"u1", id.as_bytes(), b"0"]);
                self.write(c"BITFIELD", &std::iter::once(&*key).chain(clear).collect::<Vec<_>>())
            }
        }
    }

    /// The id that the next new record gets. It is taken by [`write_header`](Self::write_header).
    pub fn next_id(&self) -> Result<u64> {
        let key = self.ctx.read(self.header);
        if key.kind() == Kind::Empty {
            return Ok(1);
        }
        let damaged = Error::Damaged { what: "header" };
        let next = key.hash_field(c"next_id")?.and_then(|next| parse::unsigned(next.name().bytes()));
        let next = next.filter(|next| (1..i64::MAX as u64 - SKIPPED_IDS).contains(next)).ok_or(damaged)?;
        let same_server =
            key.hash_field(c"run_id")?.is_some_and(|run_id| run_id.name().bytes() == server::run_id().as_bytes());
        Ok(if same_server { next } else { next + SKIPPED_IDS })
    }

    /// Makes sure that nothing stands where a new record will.
    pub fn expect_free(&self, derived: &[u8]) -> Result<()> {
        if self.read(derived)?.kind() == Kind::Empty { Ok(()) } else { Err(Error::Damaged { what: "header" }) }
    }

    /// Writes the header: creates it if need be, and takes the id if one was given out.
    pub fn write_header(&self, now_ms: u64, taken_id: Option<u64>) -> Result<()> {
        let mut fields = Fields::default();
        if !self.exists() {
            fields.set("schema", SCHEMA).set(CREATED, now_ms.to_string());
            // Nobody has given out an id of it: none is left out when the first is.
            fields.set("next_id", "1").set("run_id", server::run_id());
        }
        if let Some(id) = taken_id {
            fields.set("next_id", (id + 1).to_string()).set("run_id", server::run_id());
        }
        if fields.0.is_empty() { Ok(()) } else { self.write_hash(self.name.as_bytes(), &fields) }
    }

    /// Makes sure that these counts of the header, and that of the organization, can be changed, before anything is.
    ///
    /// # Errors
    /// [`Error::Damaged`] if one is not a number.
    pub fn expect_counts(&self, header: &[&str], org: Option<&str>) -> Result<()> {
        let sound = |key: &Key<'_>, field: &str| -> Result<bool> {
            let count = key.hash_field(&to_c_string(field))?;
            Ok(count.is_none_or(|count| {
                // As HINCRBY takes it: `+5`, `05` and `-0` are no numbers. None comes near the ends of the range.
                let bytes = count.name().bytes();
                let number = str::from_utf8(bytes).ok().and_then(|text| text.parse::<i64>().ok());
                number.is_some_and(|number| number.abs() < i64::MAX / 2 && number.to_string().as_bytes() == bytes)
            }))
        };
        let key = self.ctx.read(self.header);
        for field in header {
            if !sound(&key, field)? {
                return Err(Error::Damaged { what: "header" });
            }
        }
        match org {
            Some(org) if !sound(&self.read(&self.name.org(org))?, KEYS_OF_ORG)? => {
                Err(Error::Damaged { what: "organization record" })
            }
            _ => Ok(()),
        }
    }

    /// Adds `by` to a count in the header.
    pub fn count(&self, what: &str, by: i64) -> Result<()> {
        self.write(c"HINCRBY", &[self.name.as_bytes(), what.as_bytes(), by.to_string().as_bytes()])
    }

    /// Adds `by` to the count of keys of an organization.
    ///
    /// One that somebody deleted by hand is not brought back by halves.
    pub fn count_in_org(&self, org: &str, by: i64) -> Result<()> {
        if self.read(&self.name.org(org))?.kind() == Kind::Empty {
            return Ok(());
        }
        self.write(c"HINCRBY", &[&self.name.org(org), KEYS_OF_ORG.as_bytes(), by.to_string().as_bytes()])
    }

    /// Sets fields of a hash.
    pub fn write_hash(&self, key: &[u8], fields: &Fields) -> Result<()> {
        let mut args = vec![key];
        for (name, value) in &fields.0 {
            args.push(name.as_bytes());
            args.push(value);
        }
        self.write(c"HSET", &args)
    }

    /// Sets the fields of a record that exists, and takes away those that do not apply, but for `kept`.
    pub fn rewrite_hash(&self, key: &[u8], fields: &Fields, kept: &[&str]) -> Result<()> {
        if !fields.0.is_empty() {
            self.write_hash(key, fields)?;
        }
        let mut args: Vec<&[u8]> = vec![key];
        for field in fields.absent().filter(|field| !kept.iter().any(|kept| kept == field)) {
            args.push(field.as_bytes());
        }
        if args.len() > 1 { self.write(c"HDEL", &args) } else { Ok(()) }
    }

    /// Runs one of the server's writing commands, here and wherever our writes go.
    ///
    /// # Errors
    /// When the server would not, although every type was checked before: [`Error::TryAgain`] in a cluster, where the slot is
    /// moving, else [`Error::Internal`], and a line in the log.
    pub fn write(&self, command: &CStr, args: &[&[u8]]) -> Result<()> {
        if self.ctx.call(command, c"!Ev", args).succeeded() {
            return Ok(());
        }
        let message = format!("the server refused its own command {}", command.to_string_lossy());
        self.ctx.log(Level::Warning, &message);
        Err(if server::is_cluster() { Error::TryAgain } else { Error::Internal })
    }

    /// Notes that record `id` has a secret of this digest.
    pub fn index_digest(&self, digest: &Digest, id: u64) -> Result<()> {
        let key = self.name.digest(digest);
        let shared = self.read(&key)?.kind() == Kind::Text;
        let separator = if shared { "," } else { "" };
        self.write(c"APPEND", &[&key, format!("{separator}{id}").as_bytes()])
    }

    /// The digest of a raw key that was rotated leads to its record no longer than this instant, in unix milliseconds.
    pub fn expire_digest(&self, digest: &Digest, at_ms: u64) -> Result<()> {
        self.write(c"PEXPIREAT", &[&self.name.digest(digest), at_ms.to_string().as_bytes()])
    }

    /// The ids of API keys with this visible beginning, in order.
    ///
    /// # Errors
    /// [`Error::WrongType`], or [`Error::Damaged`] for what is no list of ids.
    pub fn ids_of_start(&self, start: &str) -> Result<Vec<u64>> {
        let (key, field) = self.name.starts(start);
        let ids = self.read(&key)?.hash_field(&to_c_string(field))?;
        ids.map_or(Ok(Vec::new()), |ids| listed(ids.name().bytes(), "index of visible beginnings"))
    }

    /// Sets the ids of API keys with this visible beginning.
    pub fn set_ids_of_start(&self, start: &str, ids: &[u64]) -> Result<()> {
        let (key, field) = self.name.starts(start);
        if ids.is_empty() {
            return self.write(c"HDEL", &[&key, field.as_bytes()]);
        }
        let ids: Vec<String> = ids.iter().map(u64::to_string).collect();
        self.write(c"HSET", &[&key, field.as_bytes(), ids.join(",").as_bytes()])
    }

    /// Sets the ids that have a secret of this digest.
    pub fn set_ids(&self, digest: &Digest, ids: &[u64]) -> Result<()> {
        if ids.is_empty() {
            return self.write(c"DEL", &[&self.name.digest(digest)]);
        }
        let ids: Vec<String> = ids.iter().map(u64::to_string).collect();
        self.write(c"SET", &[&self.name.digest(digest), ids.join(",").as_bytes()])
    }
}

/// Reads ids with commas between.
fn listed(ids: &[u8], what: &'static str) -> Result<Vec<u64>> {
    let damaged = Error::Damaged { what };
    // An id has at most 20 digits, and a comma.
    if ids.len() > MAX_SHARED * 21 {
        return Err(damaged);
    }
    ids.split(|byte| *byte == b',').map(|id| parse::unsigned(id).ok_or(damaged)).collect()
}

/// The names of a store's organizations by their ids, as the index of organizations has them.
pub enum OrgNames<'c> {
    /// All of them: the server keeps a small hash as a list, and looks through that for every field.
    Few(BTreeMap<u64, String>),
    /// Where they stand.
    Many(Key<'c>),
}

/// How many names a hash that is a list may have, as servers are configured unless told otherwise.
const FEW_NAMES: i64 = 512;

impl<'c> OrgNames<'c> {
    /// Those of a store.
    ///
    /// # Errors
    /// [`Error::WrongType`].
    pub fn of(store: &Store<'c>) -> Result<Self> {
        let name = store.name.orgs();
        store.expect(&name, Kind::Hash)?;
        if store.ctx.call(c"HLEN", c"Ev", &[&name]).integer().is_none_or(|len| len > FEW_NAMES) {
            return store.read(&name).map(Self::Many);
        }
        let all = store.ctx.call(c"HGETALL", c"Ev", &[&name]);
        let pairs = (0..).map_while(|index| Some((all.element(2 * index)?, all.element(2 * index + 1)?)));
        Ok(Self::Few(pairs.filter_map(|(id, name)| Some((parse::unsigned(id.as_bytes())?, name))).collect()))
    }

    /// The name of an organization; None if there is none that one of ours can have.
    ///
    /// # Errors
    /// [`Error::WrongType`].
    pub fn name(&self, id: u64) -> Result<Option<String>> {
        match self {
            Self::Few(names) => Ok(names.get(&id).cloned()),
            Self::Many(key) => {
                let name = key.hash_field(&to_c_string(&id.to_string()))?;
                Ok(name.and_then(|name| String::from_utf8(name.name().bytes().to_vec()).ok()))
            }
        }
    }
}

/// The keyring keys that the records of a store use, by its header, and how many records use each.
pub fn fingerprints(ctx: Ctx<'_>, header: &[u8]) -> Vec<(Fingerprint, u64)> {
    let reply = ctx.call(c"HGETALL", c"Ev", &[header]);
    let pairs = (0..).map_while(|index| Some((reply.element(2 * index)?, reply.element(2 * index + 1)?)));
    pairs
        .filter_map(|(field, count)| {
            Some((field.strip_prefix(USING)?.parse().ok()?, parse::unsigned(count.as_bytes())?))
        })
        .filter(|(_, count)| *count > 0)
        .collect()
}

/// Where the secret of a vault key is sealed for.
pub fn place<'a>(store: &Store<'a>, id: u64) -> Place<'a> {
    place_in(store.name.as_str(), id)
}

/// The same in the store of this name, which need not be here.
pub fn place_in(store: &str, id: u64) -> Place<'_> {
    Place { record_type: "vault", store, id, field: SEALED_FIELD }
}

/// What the sealed field of a vault key is called where it is sealed for.
const SEALED_FIELD: &str = "secret";

/// An organization's count of its keys.
const KEYS_OF_ORG: &str = "keys";

/// The header's count of vault keys.
pub const VAULT_KEYS: &str = "vault_keys";

/// The header's count of API keys.
pub const API_KEYS: &str = "api_keys";

/// The header's count of raw API keys that were made elsewhere, those in their grace among them.
pub const FOREIGN_KEYS: &str = "foreign_keys";
/// The header's count of API keys that are active, whether they have expired or not.
pub const ACTIVE_KEYS: &str = "active_keys";

/// The header's count of organizations.
pub const ORGANIZATIONS: &str = "organizations";

/// The header's field of the store's time zone.
pub const TZ: &str = "tz";

/// The header's field of how many wrong keys in an hour block an address.
pub const IP_THRESHOLD: &str = "ip_threshold";

/// The header's field of the snapshot whose usage is being imported, and of how far that has come.
#[cfg(feature = "snapshot")]
pub const USAGE_FROM: &str = "usage_from";

/// The header's field of when the store was created.
const CREATED: &str = "created_at";

/// The header's count of records that use a key of the keyring.
pub fn using(fingerprint: Fingerprint) -> String {
    format!("{USING}{fingerprint}")
}

/// What the header's counts of keyring keys in use begin with.
const USING: &str = "using:";

/// Limits as people read them: `100/60000ms requests`.
fn limits_text(limits: &UnitLimits<'_>) -> Option<String> {
    let each: Vec<String> = limits
        .iter()
        .map(|limit| format!("{}/{}ms {}", limit.limit.count(), limit.limit.window_ms(), limit.unit))
        .collect();
    (!each.is_empty()).then(|| each.join(", "))
}

/// What a list has, as people read it.
fn joined(items: impl Iterator<Item = impl ToString>) -> Option<String> {
    let each: Vec<String> = items.map(|item| item.to_string()).collect();
    (!each.is_empty()).then(|| each.join(", "))
}

/// The fields of a vault key's hash.
pub fn vault_fields(record: &VaultRecord<'_>, meta: Option<&str>) -> Result<Fields> {
    let mut fields = Fields::default();
    fields
        .packed(&Record::Vault(record.clone()).encode()?)
        .set("type", "vault")
        .set("name", record.name)
        .set("status", record.status.as_str())
        .set("created_at", record.created_ms.to_string())
        .optional("expires_at", record.expires_ms.map(|at_ms| at_ms.to_string()))
        .optional("source", record.source)
        .optional("login", record.login)
        .optional("batch", record.batch)
        .optional("account", record.account)
        .optional("limits", limits_text(&record.limits))
        .optional("shared", limits_text(&record.shared))
        .optional("rejected", record.rejected)
        .optional("hint", record.hint.as_ref().map(|hint| hint.as_str()))
        .optional("meta", meta);
    Ok(fields)
}

/// The fields of an API key's hash.
pub fn api_fields(record: &ApiRecord<'_>, meta: Option<&str>) -> Result<Fields> {
    let mut fields = Fields::default();
    fields
        .packed(&record.encode()?)
        .set("type", "api")
        .set("org", record.org)
        .set("label", record.label)
        .set("status", record.status.as_str())
        .set("created_at", record.created_ms.to_string())
        .set("start", record.issued.start)
        .optional("expires_at", record.expires_ms.map(|at_ms| at_ms.to_string()))
        .optional("scopes", (!record.scopes.is_empty()).then(|| record.scopes.as_str()))
        .optional("limits", limits_text(&record.limits))
        .optional("quotas", joined(record.quotas.iter()))
        .optional("allowed", joined(record.allowed.iter()))
        .optional("rotated_until", record.previous.map(|(_, until_ms)| until_ms.to_string()))
        .optional("meta", meta);
    Ok(fields)
}

/// The fields of an organization's hash.
pub fn org_fields(name: &str, record: &OrgRecord<'_>) -> Result<Fields> {
    let mut fields = Fields::default();
    fields
        .packed(&record.encode()?)
        .set("id", record.id.to_string())
        .set("name", name)
        .set("status", record.status.as_str())
        .set("created_at", record.created_ms.to_string())
        .optional("limits", limits_text(&record.limits))
        .optional("quotas", joined(record.quotas.iter()));
    Ok(fields)
}
