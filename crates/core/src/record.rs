//! Records in their packed form: the one field of a key's or an organization's hash that the hot path reads.
//!
//! A packed record is a version byte, a byte for the type, then the fields in the order of the structs below: numbers as varints,
//! texts with their length before them, options as 0 or 1, digests as they are. Reading borrows from the packed bytes and allocates nothing. It takes any bytes and gives a record
//! whose every value is in range, or [`Error::Damaged`]: anyone who may write the hash may put anything into it.

use arrayvec::ArrayVec;

use crate::allowed::Allowed;
use crate::codec::{Reader, Writer as _};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::keyring::Fingerprint;
use crate::limit::{Limit, MAX_LIMITS, MAX_UNITS};
use crate::names;
use crate::parse::MAX_INSTANT_MS;
use crate::quota::{self, Period, Quota, Quotas};
use crate::scope::Scopes;
use crate::secret::Hint;
use crate::token::{MAX_PREFIX_BYTES, SHOWN_BODY_BYTES};
use crate::vault::{MAX_SEALED_BYTES, OVERHEAD_BYTES};

/// What a limit counts unless it says otherwise.
pub const DEFAULT_UNIT: &str = "requests";

/// The longest name of a unit, in bytes.
pub const MAX_UNIT_BYTES: usize = 32;

/// The largest weight of a vault key.
pub const MAX_WEIGHT: u32 = 1_000_000;

const VERSION: u8 = 1;

/// That of a record with something that version 1 has no room for: of a vault key the limits of its account, or that it was
/// rejected; of an API key quotas, the addresses it may be used from, that it was rotated, or that it was made elsewhere; of an
/// organization quotas.
const VERSION_2: u8 = 2;

/// The raw key of now was made elsewhere.
const FOREIGN_NOW: u8 = 1;

/// The one before it was.
const FOREIGN_BEFORE: u8 = 2;

const VAULT: u8 = 1;
const API: u8 = 2;
const ORG: u8 = 3;

/// What both kinds of damage are called in the error.
const KEY_RECORD: &str = "key record";
const ORG_RECORD: &str = "organization record";

/// A client's name of a unit: 1 to [`MAX_UNIT_BYTES`] of `a-z 0-9 _ -`.
///
/// # Errors
/// [`Error::Invalid`].
pub fn parse_unit(bytes: &[u8]) -> Result<&str> {
    str::from_utf8(bytes)
        .ok()
        .filter(|unit| is_unit(unit))
        .ok_or(Error::Invalid { what: "UNIT", accepted: "1 to 32 of a-z 0-9 _ -" })
}

/// A limit and what it counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnitLimit<'a> {
    /// The unit, as [`parse_unit`] takes it.
    pub unit: &'a str,
    /// The limit.
    pub limit: Limit,
}

impl std::fmt::Display for UnitLimit<'_> {
    /// As descriptions of records show it: `100 60000ms requests`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}ms {}", self.limit.count(), self.limit.window_ms(), self.unit)
    }
}

/// The limits of one record.
pub type UnitLimits<'a> = ArrayVec<UnitLimit<'a>, MAX_LIMITS>;

/// What a key record is the record of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RecordType {
    /// A vault key.
    Vault,
    /// An API key.
    Api,
}

impl RecordType {
    /// A client's word, whatever its case.
    ///
    /// # Errors
    /// [`Error::Invalid`].
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        [Self::Vault, Self::Api]
            .into_iter()
            .find(|known| bytes.eq_ignore_ascii_case(known.as_str().as_bytes()))
            .ok_or(Error::Invalid { what: "TYPE", accepted: "vault or api" })
    }

    /// The word that replies, options and readable fields use.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Vault => "vault",
            Self::Api => "api",
        }
    }
}

/// Whether a key works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// It does.
    Active,
    /// Not now.
    Inactive,
    /// Never again.
    Revoked,
}

impl Status {
    /// The word that replies and readable fields use.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Inactive => "inactive",
            Self::Revoked => "revoked",
        }
    }

    const fn packed(self) -> u8 {
        match self {
            Self::Active => 0,
            Self::Inactive => 1,
            Self::Revoked => 2,
        }
    }

    const fn unpacked(byte: u8) -> Option<Self> {
        match byte {
            0 => Some(Self::Active),
            1 => Some(Self::Inactive),
            2 => Some(Self::Revoked),
            _ => None,
        }
    }
}

/// Whether an organization's keys work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OrgStatus {
    /// They do.
    Active,
    /// None does.
    Suspended,
}

impl OrgStatus {
    /// The word that replies, options and readable fields use.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Suspended => "suspended",
        }
    }

    const fn packed(self) -> u8 {
        match self {
            Self::Active => 0,
            Self::Suspended => 1,
        }
    }

    const fn unpacked(byte: u8) -> Option<Self> {
        match byte {
            0 => Some(Self::Active),
            1 => Some(Self::Suspended),
            _ => None,
        }
    }
}

/// A vault key: a secret that can be had back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VaultRecord<'a> {
    /// Under which ACQUIRE finds it; several keys may share it.
    pub name: &'a str,
    /// Whether it may be handed out.
    pub status: Status,
    /// Unix milliseconds.
    pub created_ms: u64,
    /// Unix milliseconds; None is never.
    pub expires_ms: Option<u64>,
    /// Where it came from.
    pub source: Option<&'a str>,
    /// The login that it belongs to.
    pub login: Option<&'a str>,
    /// The batch that it came in.
    pub batch: Option<&'a str>,
    /// The account at the vendor that it draws on.
    pub account: Option<&'a str>,
    /// Its share under `ORDER weight`, 1 to [`MAX_WEIGHT`].
    pub weight: u32,
    /// Its limits.
    pub limits: UnitLimits<'a>,
    /// The limits of its account, which all keys of the account share; if there are none, its own are also those.
    pub shared: UnitLimits<'a>,
    /// Why it was taken out of use, if the vendor rejected it.
    pub rejected: Option<&'a str>,
    /// The sealed secret, as [`crate::vault::seal`] made it.
    pub sealed: &'a [u8],
    /// The digest of the secret.
    pub digest: Digest,
    /// Under which keyring key it was digested.
    pub digest_key: Fingerprint,
    /// The last characters of the secret, if it is long enough.
    pub hint: Option<Hint>,
}

/// An API key: only a digest of it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiRecord<'a> {
    /// The name of its organization.
    pub org: &'a str,
    /// What people call it.
    pub label: &'a str,
    /// Whether it authenticates.
    pub status: Status,
    /// Unix milliseconds.
    pub created_ms: u64,
    /// Unix milliseconds; None is never.
    pub expires_ms: Option<u64>,
    /// What it may do.
    pub scopes: Scopes<'a>,
    /// Its limits.
    pub limits: UnitLimits<'a>,
    /// Its quotas.
    pub quotas: Quotas<'a>,
    /// Where it may be used from.
    pub allowed: Allowed<'a>,
    /// The raw key as it is now.
    pub issued: Issued<'a>,
    /// The raw key as it was before it was last rotated, and until when that one works too, in unix milliseconds.
    pub previous: Option<(Issued<'a>, u64)>,
}

/// What is kept of a raw API key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Issued<'a> {
    /// The digest of the raw key.
    pub digest: Digest,
    /// Under which keyring key it was digested.
    pub digest_key: Fingerprint,
    /// The visible beginning of the raw key.
    pub start: &'a str,
    /// Whether it was made elsewhere and has not the form of ours: it has no checksum, whatever it is digested under.
    pub is_foreign: bool,
}

/// An organization.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrgRecord<'a> {
    /// Its id, unique in the store and never used again.
    pub id: u64,
    /// Whether its keys work.
    pub status: OrgStatus,
    /// Unix milliseconds.
    pub created_ms: u64,
    /// Limits that all its keys share.
    pub limits: UnitLimits<'a>,
    /// Quotas that all its keys share.
    pub quotas: Quotas<'a>,
}

/// A key record of either type.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(
    clippy::large_enum_variant,
    reason = "it lives on the stack of one command; a box would be an allocation for each"
)]
pub enum Record<'a> {
    /// A vault key.
    Vault(VaultRecord<'a>),
    /// An API key.
    Api(ApiRecord<'a>),
}

impl<'a> Record<'a> {
    /// Reads a packed record, from any bytes.
    ///
    /// # Errors
    /// [`Error::Damaged`] unless [`encode`](Self::encode) can have written it, in this version.
    pub fn decode(packed: &'a [u8]) -> Result<Self> {
        match packed {
            [_, VAULT, ..] => VaultRecord::decode(packed).map(Self::Vault),
            _ => ApiRecord::decode(packed).map(Self::Api),
        }
    }

    /// The packed form.
    ///
    /// # Errors
    /// [`Error::Internal`] for values out of range: what [`decode`](Self::decode) would refuse is not written.
    pub fn encode(&self) -> Result<Vec<u8>> {
        match self {
            Self::Vault(record) => record.encode(),
            Self::Api(record) => record.encode(),
        }
    }

    /// Which of the two it is.
    #[must_use]
    pub const fn record_type(&self) -> RecordType {
        match self {
            Self::Vault(_) => RecordType::Vault,
            Self::Api(_) => RecordType::Api,
        }
    }

    /// `vault` or `api`.
    #[must_use]
    pub const fn type_name(&self) -> &'static str {
        self.record_type().as_str()
    }

    /// Whether the key works, expiry aside.
    #[must_use]
    pub const fn status(&self) -> Status {
        match self {
            Self::Vault(record) => record.status,
            Self::Api(record) => record.status,
        }
    }

    /// When it expires, in unix milliseconds; None is never.
    #[must_use]
    pub const fn expires_ms(&self) -> Option<u64> {
        match self {
            Self::Vault(record) => record.expires_ms,
            Self::Api(record) => record.expires_ms,
        }
    }

    /// Whether it has expired: at the very millisecond of its expiry it has.
    #[must_use]
    pub const fn expired(&self, now_ms: u64) -> bool {
        is_past(self.expires_ms(), now_ms)
    }

    /// Whether it works now: it is active and has not expired.
    #[must_use]
    pub fn usable(&self, now_ms: u64) -> bool {
        self.status() == Status::Active && !self.expired(now_ms)
    }

    /// When it was made, in unix milliseconds.
    #[must_use]
    pub const fn created_ms(&self) -> u64 {
        match self {
            Self::Vault(record) => record.created_ms,
            Self::Api(record) => record.created_ms,
        }
    }

    /// Its limits.
    #[must_use]
    pub const fn limits(&self) -> &UnitLimits<'a> {
        match self {
            Self::Vault(record) => &record.limits,
            Self::Api(record) => &record.limits,
        }
    }
}

impl<'a> VaultRecord<'a> {
    /// Reads a packed record, which must be that of a vault key. As [`Record::decode`].
    ///
    /// # Errors
    /// As there; also for a record of another type.
    pub fn decode(packed: &'a [u8]) -> Result<Self> {
        let damaged = Error::Damaged { what: KEY_RECORD };
        let (read, is_second) = match packed {
            [VERSION, VAULT, fields @ ..] => (Self::read(Reader::new(fields), false), false),
            [VERSION_2, VAULT, fields @ ..] => (Self::read(Reader::new(fields), true), true),
            _ => return Err(damaged),
        };
        match read {
            Some(record) if record.in_range() && record.needs_version_2() == is_second => Ok(record),
            _ => Err(damaged),
        }
    }

    /// As [`Record::encode`].
    ///
    /// # Errors
    /// As there.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let mut packed = begin(VAULT, self.in_range(), 512 + self.sealed.len())?;
        if self.needs_version_2() {
            second(&mut packed);
        }
        packed.put_text(self.name);
        packed.put_byte(self.status.packed());
        packed.put_varint(self.created_ms);
        packed.put_option(self.expires_ms, Vec::put_varint);
        for text in [self.source, self.login, self.batch, self.account] {
            packed.put_option(text, Vec::put_text);
        }
        packed.put_varint(u64::from(self.weight));
        write_limits(&mut packed, &self.limits);
        if self.needs_version_2() {
            write_limits(&mut packed, &self.shared);
            packed.put_option(self.rejected, Vec::put_text);
        }
        packed.put_bytes(self.sealed);
        packed.put_array(self.digest.as_bytes());
        packed.put_array(self.digest_key.as_bytes());
        packed.put_option(self.hint, |packed, hint| packed.put_array(hint.as_bytes()));
        Ok(packed)
    }

    /// The fields in the order in which [`encode`](Self::encode) writes them, and nothing behind them.
    #[inline]
    fn read(mut fields: Reader<'a>, is_second: bool) -> Option<Self> {
        let record = Self {
            name: fields.text()?,
            status: Status::unpacked(fields.byte()?)?,
            created_ms: fields.varint()?,
            expires_ms: fields.option(Reader::varint)?,
            source: fields.option(Reader::text)?,
            login: fields.option(Reader::text)?,
            batch: fields.option(Reader::text)?,
            account: fields.option(Reader::text)?,
            weight: u32::try_from(fields.varint()?).ok()?,
            limits: read_limits(&mut fields)?,
            shared: if is_second { read_limits(&mut fields)? } else { UnitLimits::new() },
            rejected: if is_second { fields.option(Reader::text)? } else { None },
            sealed: fields.bytes()?,
            digest: Digest::from_bytes(*fields.array()?),
            digest_key: Fingerprint::from_bytes(*fields.array()?),
            hint: fields.option(|fields| Hint::try_from(*fields.array()?).ok())?,
        };
        fields.is_empty().then_some(record)
    }

    /// As [`Record::expired`].
    #[must_use]
    pub const fn expired(&self, now_ms: u64) -> bool {
        is_past(self.expires_ms, now_ms)
    }

    fn needs_version_2(&self) -> bool {
        !self.shared.is_empty() || self.rejected.is_some()
    }

    fn in_range(&self) -> bool {
        let optional = [self.source, self.login, self.batch, self.account, self.rejected];
        names::is_name(self.name)
            && optional.into_iter().flatten().all(names::is_name)
            && times_in_range(self.created_ms, self.expires_ms)
            && (1..=MAX_WEIGHT).contains(&self.weight)
            && units_in_range(&self.limits)
            && units_in_range(&self.shared)
            && (self.rejected.is_none() || self.status != Status::Active)
            && (OVERHEAD_BYTES + 1..=MAX_SEALED_BYTES).contains(&self.sealed.len())
    }
}

impl<'a> ApiRecord<'a> {
    /// Reads a packed record, which must be that of an API key. As [`Record::decode`].
    ///
    /// # Errors
    /// As there; also for a record of another type.
    pub fn decode(packed: &'a [u8]) -> Result<Self> {
        let damaged = Error::Damaged { what: KEY_RECORD };
        let (read, is_second) = match packed {
            [VERSION, API, fields @ ..] => (Self::read(Reader::new(fields), false), false),
            [VERSION_2, API, fields @ ..] => (Self::read(Reader::new(fields), true), true),
            _ => return Err(damaged),
        };
        match read {
            Some(record) if record.in_range() && record.needs_version_2() == is_second => Ok(record),
            _ => Err(damaged),
        }
    }

    /// As [`Record::encode`].
    ///
    /// # Errors
    /// As there.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let mut packed = begin(API, self.in_range(), 256 + self.scopes.as_str().len())?;
        packed.put_text(self.org);
        packed.put_text(self.label);
        packed.put_byte(self.status.packed());
        packed.put_varint(self.created_ms);
        packed.put_option(self.expires_ms, Vec::put_varint);
        packed.put_text(self.scopes.as_str());
        write_limits(&mut packed, &self.limits);
        self.issued.write(&mut packed);
        if self.needs_version_2() {
            second(&mut packed);
            write_quotas(&mut packed, &self.quotas);
            packed.put_bytes(self.allowed.as_packed());
            packed.put_option(self.previous, |packed, (issued, until_ms)| {
                issued.write(packed);
                packed.put_varint(until_ms);
            });
            packed.put_byte(self.foreign());
        }
        Ok(packed)
    }

    /// The fields in the order in which [`encode`](Self::encode) writes them, and nothing behind them.
    #[inline]
    fn read(mut fields: Reader<'a>, is_second: bool) -> Option<Self> {
        let mut record = Self {
            org: fields.text()?,
            label: fields.text()?,
            status: Status::unpacked(fields.byte()?)?,
            created_ms: fields.varint()?,
            expires_ms: fields.option(Reader::varint)?,
            scopes: Scopes::from_joined(fields.text()?)?,
            limits: read_limits(&mut fields)?,
            issued: Issued::read(&mut fields)?,
            quotas: Quotas::new(),
            allowed: Allowed::default(),
            previous: None,
        };
        if is_second {
            record.quotas = read_quotas(&mut fields)?;
            record.allowed = Allowed::from_packed(fields.bytes()?)?;
            record.previous = fields.option(|fields| Some((Issued::read(fields)?, fields.varint()?)))?;
            let foreign = fields.byte()?;
            record.issued.is_foreign = foreign & FOREIGN_NOW != 0;
            if let Some((previous, _)) = &mut record.previous {
                previous.is_foreign = foreign & FOREIGN_BEFORE != 0;
            }
            // Bits that say nothing are not set.
            if foreign != record.foreign() {
                return None;
            }
        }
        fields.is_empty().then_some(record)
    }

    /// As [`Record::expired`].
    #[must_use]
    pub const fn expired(&self, now_ms: u64) -> bool {
        is_past(self.expires_ms, now_ms)
    }

    /// The raw key that has this digest, if that works now: that of now, or the one before it as long as its grace lasts.
    #[must_use]
    pub fn issued_as(&self, digest: &Digest, now_ms: u64) -> Option<&Issued<'a>> {
        if self.issued.digest.matches(digest) {
            return Some(&self.issued);
        }
        let (previous, until_ms) = self.previous.as_ref()?;
        (previous.digest.matches(digest) && now_ms < *until_ms).then_some(previous)
    }

    /// How many of its raw keys, that of now and the one before it, were made elsewhere.
    #[must_use]
    pub const fn foreign_keys(&self) -> u32 {
        self.foreign().count_ones()
    }

    /// Which of its raw keys were made elsewhere, as it is written.
    const fn foreign(&self) -> u8 {
        let now = if self.issued.is_foreign { FOREIGN_NOW } else { 0 };
        match &self.previous {
            Some((previous, _)) if previous.is_foreign => now | FOREIGN_BEFORE,
            _ => now,
        }
    }

    fn needs_version_2(&self) -> bool {
        !self.quotas.is_empty() || !self.allowed.is_empty() || self.previous.is_some() || self.issued.is_foreign
    }

    fn in_range(&self) -> bool {
        names::is_name(self.org)
            && names::is_name(self.label)
            && times_in_range(self.created_ms, self.expires_ms)
            && units_in_range(&self.limits)
            && quotas_in_range(&self.quotas)
            && self.issued.in_range()
            && self.previous.is_none_or(|(issued, until_ms)| issued.in_range() && until_ms <= MAX_INSTANT_MS)
    }
}

impl<'a> Issued<'a> {
    fn write(&self, packed: &mut Vec<u8>) {
        packed.put_array(self.digest.as_bytes());
        packed.put_array(self.digest_key.as_bytes());
        packed.put_text(self.start);
    }

    #[inline]
    fn read(fields: &mut Reader<'a>) -> Option<Self> {
        Some(Self {
            digest: Digest::from_bytes(*fields.array()?),
            digest_key: Fingerprint::from_bytes(*fields.array()?),
            start: fields.text()?,
            is_foreign: false,
        })
    }

    fn in_range(&self) -> bool {
        (1..=MAX_PREFIX_BYTES + SHOWN_BODY_BYTES).contains(&self.start.len())
            && self.start.bytes().all(|byte| byte.is_ascii_graphic())
    }
}

impl<'a> OrgRecord<'a> {
    /// Reads a packed organization, from any bytes.
    ///
    /// # Errors
    /// [`Error::Damaged`] unless [`encode`](Self::encode) can have written it, in this version.
    pub fn decode(packed: &'a [u8]) -> Result<Self> {
        let damaged = Error::Damaged { what: ORG_RECORD };
        let (read, is_second) = match packed {
            [VERSION, ORG, fields @ ..] => (Self::read(Reader::new(fields), false), false),
            [VERSION_2, ORG, fields @ ..] => (Self::read(Reader::new(fields), true), true),
            _ => return Err(damaged),
        };
        match read {
            Some(record) if record.in_range() && record.quotas.is_empty() != is_second => Ok(record),
            _ => Err(damaged),
        }
    }

    /// The packed form.
    ///
    /// # Errors
    /// As [`Record::encode`].
    pub fn encode(&self) -> Result<Vec<u8>> {
        let mut packed = begin(ORG, self.in_range(), 128)?;
        packed.put_varint(self.id);
        packed.put_byte(self.status.packed());
        packed.put_varint(self.created_ms);
        write_limits(&mut packed, &self.limits);
        if !self.quotas.is_empty() {
            second(&mut packed);
            write_quotas(&mut packed, &self.quotas);
        }
        Ok(packed)
    }

    /// The fields in the order in which [`encode`](Self::encode) writes them, and nothing behind them.
    #[inline]
    fn read(mut fields: Reader<'a>, is_second: bool) -> Option<Self> {
        let record = Self {
            id: fields.varint()?,
            status: OrgStatus::unpacked(fields.byte()?)?,
            created_ms: fields.varint()?,
            limits: read_limits(&mut fields)?,
            quotas: if is_second { read_quotas(&mut fields)? } else { Quotas::new() },
        };
        fields.is_empty().then_some(record)
    }

    fn in_range(&self) -> bool {
        times_in_range(self.created_ms, None) && units_in_range(&self.limits) && quotas_in_range(&self.quotas)
    }
}

/// Makes a packed record one of the second version.
fn second(packed: &mut [u8]) {
    if let Some(version) = packed.first_mut() {
        *version = VERSION_2;
    }
}

/// The head of a packed record. Out of range is a defect of the caller's: what would not be read is not written.
fn begin(kind: u8, in_range: bool, size_hint: usize) -> Result<Vec<u8>> {
    if !in_range {
        return Err(Error::Internal);
    }
    let mut packed = Vec::with_capacity(size_hint);
    packed.extend_from_slice(&[VERSION, kind]);
    Ok(packed)
}

/// The unit that nearly every limit has is written as the empty text, which no unit is: eight bytes less in each limit.
pub(crate) fn write_limits(packed: &mut Vec<u8>, limits: &UnitLimits<'_>) {
    packed.put_varint(limits.len() as u64);
    for UnitLimit { unit, limit } in limits {
        packed.put_text(if *unit == DEFAULT_UNIT { "" } else { unit });
        packed.put_varint(limit.count());
        packed.put_varint(limit.window_ms());
    }
}

#[inline]
pub(crate) fn read_limits<'a>(fields: &mut Reader<'a>) -> Option<UnitLimits<'a>> {
    fields.list(|fields| {
        let unit = match fields.text()? {
            "" => DEFAULT_UNIT,
            unit if is_unit(unit) => unit,
            _ => return None,
        };
        let limit = Limit::new(fields.varint()?, fields.varint()?).ok()?;
        Some(UnitLimit { unit, limit })
    })
}

/// As limits, the period in place of the window.
fn write_quotas(packed: &mut Vec<u8>, quotas: &Quotas<'_>) {
    packed.put_varint(quotas.len() as u64);
    for Quota { count, period, unit } in quotas {
        packed.put_text(if *unit == DEFAULT_UNIT { "" } else { unit });
        packed.put_varint(*count);
        packed.put_byte(period.packed());
    }
}

fn read_quotas<'a>(fields: &mut Reader<'a>) -> Option<Quotas<'a>> {
    let mut quotas = Quotas::new();
    let count = fields.varint()?;
    for _ in 0..count {
        let unit = match fields.text()? {
            "" => DEFAULT_UNIT,
            unit if is_unit(unit) => unit,
            _ => return None,
        };
        let count = fields.varint().filter(|count| (1..=MAX_UNITS).contains(count))?;
        quota::add(&mut quotas, Quota { count, period: Period::unpacked(fields.byte()?)?, unit }).ok()?;
    }
    Some(quotas)
}

const fn is_past(expires_ms: Option<u64>, now_ms: u64) -> bool {
    matches!(expires_ms, Some(expires_ms) if now_ms >= expires_ms)
}

fn times_in_range(created_ms: u64, expires_ms: Option<u64>) -> bool {
    created_ms <= MAX_INSTANT_MS && expires_ms.is_none_or(|expires_ms| expires_ms <= MAX_INSTANT_MS)
}

fn units_in_range(limits: &UnitLimits<'_>) -> bool {
    limits.iter().all(|UnitLimit { unit, .. }| is_unit(unit))
}

fn quotas_in_range(quotas: &Quotas<'_>) -> bool {
    quotas.iter().all(|quota| is_unit(quota.unit) && (1..=MAX_UNITS).contains(&quota.count))
}

pub(crate) fn is_unit(unit: &str) -> bool {
    (1..=MAX_UNIT_BYTES).contains(&unit.len())
        && unit.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-'))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ip::Net;
    use crate::limit::MAX_WINDOW_MS;

    const SEALED: [u8; OVERHEAD_BYTES + 3] = [9; OVERHEAD_BYTES + 3];

    fn digest() -> Digest {
        Digest::from_slice(&[0xd1; 32]).unwrap()
    }

    fn limits<const N: usize>(limits: [(&'static str, u64, u64); N]) -> UnitLimits<'static> {
        limits
            .map(|(unit, count, window_ms)| UnitLimit { unit, limit: Limit::new(count, window_ms).unwrap() })
            .into_iter()
            .collect()
    }

    fn vault() -> VaultRecord<'static> {
        VaultRecord {
            name: "openai",
            status: Status::Active,
            created_ms: 1_700_000_000_000,
            expires_ms: Some(1_800_000_000_000),
            source: Some("web"),
            login: None,
            batch: Some("b1"),
            account: None,
            weight: 1,
            shared: limits([("requests", 600, 60_000)]),
            rejected: None,
            limits: limits([("requests", 60, 60_000), ("tokens", MAX_UNITS, MAX_WINDOW_MS)]),
            sealed: &SEALED,
            digest: digest(),
            digest_key: Fingerprint::from_bytes(*b"fingerpr"),
            hint: Some(Hint::try_from(*b"cdef").unwrap()),
        }
    }

    fn api() -> ApiRecord<'static> {
        ApiRecord {
            org: "acme",
            label: "ci",
            status: Status::Active,
            created_ms: 1_700_000_000_000,
            expires_ms: None,
            scopes: Scopes::parse(b"orders:*,users:read").unwrap(),
            limits: limits([("requests", 100, 1000)]),
            issued: issued(),
            quotas: Quotas::new(),
            allowed: Allowed::default(),
            previous: None,
        }
    }

    fn issued() -> Issued<'static> {
        Issued {
            digest: digest(),
            digest_key: Fingerprint::from_bytes(*b"fingerpr"),
            start: "kg_live_003aUl",
            is_foreign: false,
        }
    }

    fn foreign() -> Issued<'static> {
        Issued { is_foreign: true, ..issued() }
    }

    fn quotas() -> Quotas<'static> {
        let daily = Quota { count: 100, period: Period::Day, unit: "requests" };
        [daily, Quota { unit: "tokens", ..daily }, Quota { count: MAX_UNITS, period: Period::Total, ..daily }]
            .into_iter()
            .collect()
    }

    fn allowed() -> Allowed<'static> {
        let mut allowed = Allowed::default();
        for net in ["192.0.2.0/24", "2001:db8::/32"] {
            allowed.add(Net::parse(net.as_bytes()).unwrap()).unwrap();
        }
        allowed
    }

    /// Everything that the first version has no room for.
    fn second_api() -> ApiRecord<'static> {
        let old = Issued { digest: Digest::from_slice(&[0xd2; 32]).unwrap(), start: "kg_live_before", ..issued() };
        ApiRecord { quotas: quotas(), allowed: allowed(), previous: Some((old, 1_800_000_000_000)), ..api() }
    }

    fn org() -> OrgRecord<'static> {
        OrgRecord {
            id: 3,
            status: OrgStatus::Active,
            created_ms: 1_700_000_000_000,
            limits: limits([("bytes", 5, 7)]),
            quotas: Quotas::new(),
        }
    }

    /// Records of every type, with nothing and with everything.
    fn samples() -> Vec<Record<'static>> {
        let full = limits([
            ("a", 1, 1),
            ("b", 2, 2),
            ("c", 3, 3),
            ("d", 4, 4),
            ("e", 5, 5),
            ("f", 6, 6),
            ("g", 7, 7),
            ("h", 8, 8),
        ]);
        let bare =
            VaultRecord { source: None, batch: None, expires_ms: None, limits: limits([]), hint: None, ..vault() };
        vec![
            Record::Vault(vault()),
            Record::Vault(bare),
            Record::Vault(VaultRecord { weight: MAX_WEIGHT, status: Status::Revoked, limits: full.clone(), ..vault() }),
            Record::Api(api()),
            Record::Api(ApiRecord { scopes: Scopes::default(), limits: limits([]), status: Status::Inactive, ..api() }),
            Record::Api(ApiRecord { expires_ms: Some(MAX_INSTANT_MS), limits: full, ..api() }),
            Record::Api(second_api()),
            Record::Api(ApiRecord { quotas: quotas(), ..api() }),
            Record::Api(ApiRecord { allowed: allowed(), ..api() }),
            Record::Api(ApiRecord { issued: foreign(), ..api() }),
            Record::Api(ApiRecord { previous: Some((foreign(), 1)), ..api() }),
            Record::Api(ApiRecord { issued: foreign(), previous: Some((foreign(), 1)), ..api() }),
        ]
    }

    #[test]
    fn every_record_reads_back() {
        for record in samples() {
            let packed = record.encode().unwrap();
            assert_eq!(Record::decode(&packed), Ok(record));
        }
        for status in [OrgStatus::Active, OrgStatus::Suspended] {
            for quotas in [Quotas::new(), quotas()] {
                let record = OrgRecord { status, quotas, ..org() };
                assert_eq!(OrgRecord::decode(&record.encode().unwrap()), Ok(record));
            }
        }
    }

    #[test]
    fn version_1_stays_as_it_was_released() {
        let tail = [&[0xd1; 32][..], b"fingerpr"].concat();
        let created = [0x80, 0xd0, 0x95, 0xff, 0xbc, 0x31];
        let api_fields = [
            &[1, 2, 4][..],
            b"acme",
            &[2],
            b"ci",
            &[0],
            &created,
            &[0, 19],
            b"orders:*,users:read",
            &[1, 0, 100, 0xe8, 7],
            &tail,
            &[14],
            b"kg_live_003aUl",
        ];
        assert_eq!(api().encode().unwrap(), api_fields.concat());
        let vault_record =
            VaultRecord { expires_ms: None, limits: limits([("tokens", 5, 7)]), shared: limits([]), ..vault() };
        let vault_fields = [
            &[1, 1, 6][..],
            b"openai",
            &[0],
            &created,
            &[0, 1, 3],
            b"web",
            &[0, 1, 2],
            b"b1",
            &[0, 1, 1, 6],
            b"tokens",
            &[5, 7],
            &[SEALED.len() as u8],
            &SEALED,
            &tail,
            &[1],
            b"cdef",
        ];
        assert_eq!(vault_record.encode().unwrap(), vault_fields.concat());
        let org_fields = [&[1, 3, 3, 0][..], &created, &[1, 5], b"bytes", &[5, 7]];
        assert_eq!(org().encode().unwrap(), org_fields.concat());
    }

    #[test]
    fn version_2_stays_as_it_was_released() {
        let record = second_api();
        let first = ApiRecord { quotas: Quotas::new(), allowed: Allowed::default(), previous: None, ..record.clone() };
        let quotas = [&[3, 0, 100, 0, 6][..], b"tokens", &[100, 0, 0, 0x80, 0xa0, 0x94, 0xa5, 0x8d, 0x1d, 2]].concat();
        let allowed = [9, 24, 192, 0, 2, 96, 0x20, 1, 0xd, 0xb8];
        let until = [0x80, 0xa0, 0xf1, 0xc2, 0xb1, 0x34];
        let previous = [&[1][..], &[0xd2; 32], b"fingerpr", &[14], b"kg_live_before", &until].concat();
        let first = first.encode().unwrap();
        let expected = [&[2][..], &first[1..], &quotas, &allowed, &previous, &[0]].concat();
        assert_eq!(record.encode().unwrap(), expected);
        // What version 1 has room for is not written as version 2.
        let needless = [&[2][..], &first[1..], &[0, 0, 0, 0]].concat();
        assert_eq!(ApiRecord::decode(&needless), Err(Error::Damaged { what: KEY_RECORD }));
        let made_elsewhere = ApiRecord { issued: foreign(), ..api() };
        let expected = [&[2][..], &first[1..], &[0, 0, 0, 1]].concat();
        assert_eq!(made_elsewhere.encode().unwrap(), expected);
        // What is said of a raw key that there is not, or in bits that there are not, is damage.
        for foreign in [2, 3, 4, 5, 0xff] {
            let packed = [&[2][..], &first[1..], &[0, 0, 0, foreign]].concat();
            assert_eq!(ApiRecord::decode(&packed), Err(Error::Damaged { what: KEY_RECORD }), "{foreign}");
        }
        let org = OrgRecord { quotas: super::tests::quotas(), ..org() };
        let first = OrgRecord { quotas: Quotas::new(), ..org.clone() }.encode().unwrap();
        assert_eq!(org.encode().unwrap(), [&[2][..], &first[1..], &quotas].concat());
    }

    #[test]
    fn a_rotated_key_goes_by_its_old_digest_until_the_grace_ends() {
        let record = second_api();
        let (old, until_ms) = record.previous.unwrap();
        assert_eq!(record.issued_as(&record.issued.digest, u64::MAX), Some(&record.issued));
        assert_eq!(record.issued_as(&old.digest, until_ms - 1), Some(&old));
        assert_eq!(record.issued_as(&old.digest, until_ms), None);
        assert_eq!(record.issued_as(&Digest::from_slice(&[0; 32]).unwrap(), 0), None);
        assert_eq!(api().issued_as(&old.digest, 0), None);
    }

    #[test]
    fn the_raw_keys_of_a_record_that_were_made_elsewhere_are_counted() {
        let before = |issued| Some((issued, 1));
        for (issued, previous, expected) in [
            (issued(), None, 0),
            (issued(), before(issued()), 0),
            (foreign(), None, 1),
            (issued(), before(foreign()), 1),
            (foreign(), before(issued()), 1),
            (foreign(), before(foreign()), 2),
        ] {
            assert_eq!(ApiRecord { issued, previous, ..api() }.foreign_keys(), expected);
        }
    }

    #[test]
    fn a_record_is_expired_from_its_instant_on() {
        for (expires_ms, now_ms, expected) in
            [(None, u64::MAX, false), (Some(5), 4, false), (Some(5), 5, true), (Some(5), 6, true)]
        {
            assert_eq!(Record::Api(ApiRecord { expires_ms, ..api() }).expired(now_ms), expected);
            assert_eq!(Record::Vault(VaultRecord { expires_ms, ..vault() }).expired(now_ms), expected);
        }
    }

    #[test]
    fn a_truncated_extended_or_foreign_record_is_damaged() {
        let damaged = Error::Damaged { what: KEY_RECORD };
        for record in samples() {
            let packed = record.encode().unwrap();
            for length in 0..packed.len() {
                assert_eq!(Record::decode(&packed[..length]), Err(damaged), "{length} bytes of {record:?}");
            }
            assert_eq!(Record::decode(&[packed.as_slice(), &[0]].concat()), Err(damaged));
            // A version is not taken for another one either.
            for (index, byte) in [(0, 0), (0, packed[0] ^ 3), (0, 4), (1, 0), (1, ORG), (1, 0xff)] {
                let mut foreign = packed.clone();
                foreign[index] = byte;
                assert_eq!(Record::decode(&foreign), Err(damaged));
            }
            assert_eq!(OrgRecord::decode(&packed), Err(Error::Damaged { what: ORG_RECORD }));
        }
        assert_eq!(Record::decode(&org().encode().unwrap()), Err(damaged));
        let packed = org().encode().unwrap();
        for length in 0..packed.len() {
            assert!(OrgRecord::decode(&packed[..length]).is_err());
        }
    }

    #[test]
    fn values_out_of_range_are_not_written() {
        let long = "x".repeat(257);
        let oversized = vec![0; MAX_SEALED_BYTES + 1];
        for record in [
            VaultRecord { name: "", ..vault() },
            VaultRecord { name: &long, ..vault() },
            VaultRecord { name: "a\0", ..vault() },
            VaultRecord { source: Some(""), ..vault() },
            VaultRecord { account: Some("\n"), ..vault() },
            VaultRecord { created_ms: MAX_INSTANT_MS + 1, ..vault() },
            VaultRecord { expires_ms: Some(u64::MAX), ..vault() },
            VaultRecord { weight: 0, ..vault() },
            VaultRecord { weight: MAX_WEIGHT + 1, ..vault() },
            VaultRecord { sealed: &[], ..vault() },
            VaultRecord { sealed: &SEALED[..OVERHEAD_BYTES], ..vault() },
            VaultRecord { sealed: &oversized, ..vault() },
        ] {
            assert_eq!(record.encode(), Err(Error::Internal), "{record:?}");
        }
        for record in [
            ApiRecord { org: "", ..api() },
            ApiRecord { label: &long, ..api() },
            ApiRecord { issued: Issued { start: "", ..issued() }, ..api() },
            ApiRecord { issued: Issued { start: "kg live", ..issued() }, ..api() },
            ApiRecord { issued: Issued { start: &long, ..issued() }, ..api() },
            ApiRecord { previous: Some((issued(), MAX_INSTANT_MS + 1)), ..api() },
            ApiRecord { quotas: [Quota { count: 0, period: Period::Day, unit: "x" }].into_iter().collect(), ..api() },
            ApiRecord { expires_ms: Some(MAX_INSTANT_MS + 1), ..api() },
            ApiRecord { limits: limits([("Tokens", 1, 1)]), ..api() },
            ApiRecord { limits: limits([("", 1, 1)]), ..api() },
        ] {
            assert_eq!(record.encode(), Err(Error::Internal), "{record:?}");
        }
        assert_eq!(OrgRecord { created_ms: u64::MAX, ..org() }.encode(), Err(Error::Internal));
    }

    #[test]
    fn values_out_of_range_are_not_read() {
        // Each replaces one stretch of a good record: where it starts, how long it is, and with what.
        let packed = api().encode().unwrap();
        assert_eq!((packed[2], packed[7], packed[10], packed[17]), (4, 2, 0, 0), "the layout that the cases below cut");
        for (at, length, bytes) in [
            (2, 5, &[0][..]),                                           // an empty organization
            (3, 1, b"\n"),                                              // a control character in it
            (3, 1, b"\xff"),                                            // not UTF-8
            (8, 1, b"\x7f"),                                            // a control character in the label
            (10, 1, &[3]),                                              // an unknown status
            (11, 6, &[0x80; 6]),                                        // a time that does not end
            (17, 1, &[2]),                                              // neither there nor not there
            (17, 1, &[1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1]), // an expiry after the year 9999
            (19, 1, b","),                                              // an empty scope
            (19, 1, b" "),                                              // a scope with a space
            (packed.len() - 1, 1, b" "),                                // a start with a space
        ] {
            let mut changed = packed.clone();
            changed.splice(at..at + length, bytes.iter().copied());
            assert!(Record::decode(&changed).is_err(), "{bytes:?} at {at}");
        }
    }

    #[test]
    fn limits_out_of_range_or_too_many_are_not_read() {
        // An organization: id 3, active, created 0, then its limits.
        let decode =
            |limits: &[u8]| OrgRecord::decode(&[&[1, 3, 3, 0, 0][..], limits].concat()).map(|org| org.limits.len());
        let eight = [&[8][..], &[0, 1, 1].repeat(8)].concat();
        let nine = [&[9][..], &[0, 1, 1].repeat(9)].concat();
        let units_beyond = [&[1, 0][..], &[0x81, 0xa0, 0x94, 0xa5, 0x8d, 0x1d], &[1]].concat();
        for (packed, expected) in [
            (&[0][..], Some(0)),
            (&[1, 0, 1, 1], Some(1)),
            (&eight, Some(8)),
            (&nine, None),
            (&[1, 0, 0, 1], None),
            (&[1, 0, 1, 0], None),
            (&units_beyond, None),
            (&[0xff, 0xff, 0xff, 0xff, 0x0f], None),
            (&[1, 0xff, 0xff, 0xff, 0xff, 0x0f, 1, 1], None),
        ] {
            assert_eq!(decode(packed).ok(), expected, "{packed:?}");
        }
    }

    #[test]
    fn a_unit_is_named_with_1_to_32_plain_characters() {
        let longest = "x".repeat(MAX_UNIT_BYTES);
        for unit in ["requests", "tokens", "a-b_9", &longest] {
            assert_eq!(parse_unit(unit.as_bytes()), Ok(unit));
        }
        let too_long = "x".repeat(MAX_UNIT_BYTES + 1);
        for unit in ["", "Tokens", "a b", "a:b", "\u{e9}", &too_long] {
            assert!(matches!(parse_unit(unit.as_bytes()), Err(Error::Invalid { what: "UNIT", .. })), "{unit:?}");
        }
    }

    #[test]
    fn a_typical_api_record_is_small() {
        // 700 bytes are allowed for an idle key with all its keys and indexes.
        assert!(api().encode().unwrap().len() <= 110);
    }

    proptest! {
        #[test]
        fn decoding_is_total(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), kind in 0..4_u8) {
            let _ = (Record::decode(&bytes), OrgRecord::decode(&bytes));
            if bytes.len() > 2 {
                bytes[0] = VERSION;
                bytes[1] = kind;
                let _ = (Record::decode(&bytes), OrgRecord::decode(&bytes));
            }
        }

        #[test]
        fn what_a_changed_record_gives_can_be_written_again(
            sample in 0..12_usize, changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..4),
        ) {
            let mut packed = samples()[sample].encode().unwrap();
            for (index, byte) in changes {
                let index = index.index(packed.len());
                packed[index] = byte;
            }
            if let Ok(record) = Record::decode(&packed) {
                let again = record.encode().unwrap();
                prop_assert_eq!(Record::decode(&again).unwrap(), record);
            }
        }
    }
}
