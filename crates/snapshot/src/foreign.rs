//! The rows of the two packages that keyguard succeeds, as those packages understand them.

use std::borrow::Cow;

use keyguard_core::limit::MAX_UNITS;
use keyguard_core::names;
use keyguard_core::parse::MAX_INSTANT_MS;
use keyguard_core::scope::{MAX_SCOPES, Scope};
use keyguard_core::token::{MAX_PREFIX_BYTES, SHOWN_BODY_BYTES};
use rusqlite::types::ValueRef;

use crate::item::{ForeignKey, ForeignOrg, ForeignSecret, Row, Usage};
use crate::read::{Fields, Known, Table, Why};
use crate::time;

/// The tables of `keyguard_python` 0.3.0.
pub const KEYGUARD: [Table; 3] = [
    table("organizations", &["id", "name", "status", "created_at"], org),
    table(
        "api_keys",
        &[
            "id",
            "org_id",
            "label",
            "prefix",
            "key_hash",
            "is_active",
            "scopes",
            "rate_limit_per_minute",
            "monthly_limit",
            "created_at",
            "expires_at",
            "last_used_at",
        ],
        key,
    ),
    Table {
        required: false,
        ..table(
            "usage_logs",
            &["key_id", "path", "method", "status_code", "latency_ms", "ip_address", "timestamp"],
            usage,
        )
    },
];

/// The table of `simple_keystore` 0.10.0.
pub const SIMPLE_KEYSTORE: [Table; 1] = [table(
    "keystore",
    &["id", "name", "expiration_in_sse", "active", "batch", "source", "login", "encrypted_key", "created_at"],
    secret,
)];

const fn table(name: &'static str, columns: &'static [&'static str], take: crate::read::Take) -> Table {
    Table { name, columns, required: true, take, joins_the_one_before: false }
}

/// What `rate_limit_per_minute` is where nothing else was given.
const DEFAULT_PER_MINUTE: u64 = 60;

/// The longest text of a row of the log, in bytes.
const MAX_USAGE_TEXT_BYTES: usize = 8 * 1024;

const NO_ID: Why = "an id is not 1 to 256 bytes of UTF-8 without control characters";
const NO_NAME: Why = "a name is not 1 to 256 bytes of UTF-8 without control characters";
const NO_TIME: Why = "a time is not one from 1970 to 9999";
const NO_LIMIT: Why = "a limit is negative or larger than 10^12";

fn org(fields: &Fields<'_>, known: &mut Known) -> Result<Row, Why> {
    let id = name(fields, 1, NO_ID)?;
    let org = ForeignOrg {
        rowid: rowid(fields)?,
        id: id.clone(),
        name: name(fields, 2, NO_NAME)?,
        is_active: fields.optional_text(3)?.unwrap_or("active") == "active",
        created_ms: datetime(fields, 4)?,
    };
    known.orgs.insert(id);
    Ok(Row::ForeignOrg(org))
}

fn key(fields: &Fields<'_>, known: &mut Known) -> Result<Row, Why> {
    let org = name(fields, 2, NO_ID)?;
    if !known.orgs.contains(&org) {
        return Err("its organization is not there or was skipped");
    }
    let start = fields.text(4)?;
    if !(1..=MAX_PREFIX_BYTES + SHOWN_BODY_BYTES).contains(&start.len())
        || !start.bytes().all(|byte| byte.is_ascii_graphic())
    {
        return Err("its prefix is not 1 to 38 characters of ASCII without spaces");
    }
    Ok(Row::ForeignKey(Box::new(ForeignKey {
        rowid: rowid(fields)?,
        id: name(fields, 1, NO_ID)?,
        org,
        label: name(fields, 3, NO_NAME)?,
        start: start.to_owned(),
        hash: hash(fields.text(5)?).ok_or("its hash is not 64 hexadecimal digits")?,
        // The old package asks for keys with `is_active == True`: it never let one in with NULL.
        is_active: flag(fields, 6)?,
        scopes: scopes(fields, 7)?,
        per_minute: limit(fields, 8)?.unwrap_or(DEFAULT_PER_MINUTE),
        per_month: limit(fields, 9)?,
        created_ms: datetime(fields, 10)?,
        expires_ms: datetime(fields, 11)?,
        last_used_ms: datetime(fields, 12)?,
    })))
}

fn usage(fields: &Fields<'_>, _: &mut Known) -> Result<Row, Why> {
    let text = |column| match fields.optional_text(column)? {
        Some(text) if text.len() > MAX_USAGE_TEXT_BYTES => Err("a text is too long"),
        text => Ok(text.filter(|text| !text.is_empty()).map(ToOwned::to_owned)),
    };
    let status = fields.int(4)?.map(u16::try_from).transpose().map_err(|_| "its status is out of range")?;
    let latency_ms = fields.int(5)?.map(u32::try_from).transpose().map_err(|_| "its latency is out of range")?;
    let usage = Usage {
        at_ms: datetime(fields, 7)?.ok_or(NO_TIME)?,
        seq: 0,
        key: 0,
        code: None,
        status,
        latency_ms,
        method: text(3)?,
        path: text(2)?,
        ip: text(6)?,
    };
    Ok(Row::ForeignUse { key: name(fields, 1, NO_ID)?, usage })
}

fn secret(fields: &Fields<'_>, _: &mut Known) -> Result<Row, Why> {
    let optional = |column| match fields.optional_text(column)? {
        None | Some("") => Ok(None),
        Some(text) if names::is_name(text) => Ok(Some(text.to_owned())),
        Some(_) => Err(NO_NAME),
    };
    Ok(Row::ForeignSecret(Box::new(ForeignSecret {
        id: fields.int(1)?.ok_or("it has no id")?,
        name: name(fields, 2, NO_NAME)?,
        token: token(fields, 8)?,
        expires_ms: expiration(fields, 3)?,
        // As Python takes a number for a truth, and NULL for none.
        is_active: !matches!(fields.value(4)?, ValueRef::Null | ValueRef::Integer(0)),
        batch: optional(5)?,
        source: optional(6)?,
        login: optional(7)?,
        created_ms: datetime(fields, 9)?,
    })))
}

fn rowid(fields: &Fields<'_>) -> Result<i64, Why> {
    fields.int(0)?.ok_or("it has no rowid")
}

fn name(fields: &Fields<'_>, column: usize, why: Why) -> Result<String, Why> {
    let text = fields.optional_text(column)?.filter(|text| names::is_name(text));
    text.map(ToOwned::to_owned).ok_or(why)
}

/// A DATETIME of SQLAlchemy or a TIMESTAMP of SQLite: a text.
fn datetime(fields: &Fields<'_>, column: usize) -> Result<Option<u64>, Why> {
    let text = fields.optional_text(column).map_err(|_| NO_TIME)?;
    text.map(|text| time::parse(text).ok_or(NO_TIME)).transpose()
}

/// Seconds since 1970, with or without a fraction, which the old package cuts off; 0 and NULL are never.
fn expiration(fields: &Fields<'_>, column: usize) -> Result<Option<u64>, Why> {
    let seconds = match fields.value(column)? {
        ValueRef::Null => 0,
        ValueRef::Integer(seconds) => u64::try_from(seconds).map_err(|_| NO_TIME)?,
        // Python takes 0.5 for a time, which is long past.
        ValueRef::Real(seconds) if seconds > 0.0 && seconds < 1e12 => (seconds as u64).max(1),
        ValueRef::Real(0.0) => 0,
        _ => return Err(NO_TIME),
    };
    match seconds.checked_mul(1_000) {
        Some(0) => Ok(None),
        Some(at_ms) if at_ms <= MAX_INSTANT_MS => Ok(Some(at_ms)),
        _ => Err(NO_TIME),
    }
}

/// A BOOLEAN of SQLAlchemy.
fn flag(fields: &Fields<'_>, column: usize) -> Result<bool, Why> {
    match fields.int(column)? {
        None | Some(0) => Ok(false),
        Some(1) => Ok(true),
        Some(_) => Err("its is_active is neither 0 nor 1"),
    }
}

fn limit(fields: &Fields<'_>, column: usize) -> Result<Option<u64>, Why> {
    let limit = fields.int(column)?.map(u64::try_from).transpose().map_err(|_| NO_LIMIT)?;
    if limit.is_some_and(|limit| limit > MAX_UNITS) { Err(NO_LIMIT) } else { Ok(limit) }
}

/// A JSON column: a list of texts. None of Python is there as `null`.
fn scopes(fields: &Fields<'_>, column: usize) -> Result<Vec<String>, Why> {
    let why = "its scopes are no list of up to 64 texts of printable ASCII without spaces and commas";
    let Some(text) = fields.optional_text(column)? else { return Ok(Vec::new()) };
    let scopes: Option<Vec<Cow<'_, str>>> = serde_json::from_str(text).map_err(|_| why)?;
    let scopes = scopes.unwrap_or_default();
    if scopes.len() > MAX_SCOPES || scopes.iter().any(|scope| Scope::parse(scope.as_bytes()).is_err()) {
        return Err(why);
    }
    Ok(scopes.into_iter().map(Cow::into_owned).collect())
}

fn hash(text: &str) -> Option<[u8; 32]> {
    let (digits, []) = text.as_bytes().as_chunks::<2>() else { return None };
    let mut hash = [0; 32];
    if digits.len() != hash.len() {
        return None;
    }
    for (byte, [high, low]) in hash.iter_mut().zip(digits) {
        let digit = |digit: &u8| char::from(*digit).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        *byte = digit(high)? << 4 | digit(low)?;
    }
    Some(hash)
}

/// The token of a key, which Python's sqlite3 stores as a blob if it is bytes.
fn token(fields: &Fields<'_>, column: usize) -> Result<String, Why> {
    let bytes = match fields.value(column)? {
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => bytes,
        ValueRef::Null => return Err("it has no secret"),
        _ => return Err("its secret is no token of Fernet"),
    };
    let is_base64url = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'=');
    let text =
        str::from_utf8(bytes).ok().filter(|text| !text.is_empty() && text.bytes().all(|byte| is_base64url(&byte)));
    text.map(ToOwned::to_owned).ok_or("its secret is no token of Fernet")
}
