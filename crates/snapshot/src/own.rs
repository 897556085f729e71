//! The rows of our own tables, in order of [`Item`]'s variants.

use keyguard_core::failures::MAX_THRESHOLD;
use keyguard_core::ip::{Net, Strikes};
use keyguard_core::meters::Meters;
use keyguard_core::names::{self, StoreName};
use keyguard_core::parse::MAX_INSTANT_MS;
use keyguard_core::pool::Pool;
use keyguard_core::record::{OrgRecord, Record, RecordType};
use keyguard_core::zone::Zone;

use crate::item::{Counts, Header, Item, Key, Org, Row, Rule, Usage};
use crate::read::{Fields, Known, Table, Why};
use crate::schema;
use crate::uuid;
use crate::write;

/// The table of the header, which is read as a whole.
pub const META: Table = Table {
    name: "keyguard_meta",
    columns: &["key", "value"],
    required: true,
    take: |_, _| Err(""),
    joins_the_one_before: false,
};

/// Those of which each row is an item, or, of one log, two.
pub const TABLES: [Table; 10] = [
    table("keyguard_orgs", &["id", "name", "packed", "meters"], org),
    table("keyguard_keys", &["id", "packed", "meta", "meters", "last_used_ms"], key),
    table(
        "keyguard_address_rules",
        &["net", "kind", "path", "until_ms", "reason", "made_by", "strikes", "strikes_until_ms"],
        rule,
    ),
    table("keyguard_accounts", &["name", "meters"], account),
    table("usage_logs", &["id", "key_id", "path", "method", "status_code", "latency_ms", "ip_address"], logged),
    Table {
        joins_the_one_before: true,
        ..table(
            "keyguard_usage",
            &["at_ms", "seq", "key_id", "code", "status", "latency_ms", "method", "path", "ip"],
            usage,
        )
    },
    table("keyguard_usage_hours", &["hour_ms", "requests", "refused", "logged", "errors", "latency_ms"], hour),
    table("keyguard_usage_days", &["key_id", "day", "requests", "refused", "logged", "errors", "latency_ms"], day),
    table("keyguard_usage_totals", &["key_id", "code", "requests", "refused", "logged", "errors", "latency_ms"], total),
    table("keyguard_values", &["name", "packed"], value),
];

const fn table(name: &'static str, columns: &'static [&'static str], take: crate::read::Take) -> Table {
    Table { name, columns, required: true, take, joins_the_one_before: false }
}

/// The longest text of a row of the usage log, in bytes.
const MAX_USAGE_TEXT_BYTES: usize = 8 * 1024;

const NO_NAME: Why = "a name is not 1 to 256 bytes of UTF-8 without control characters";
const BAD_ID: Why = "an id is not from 1 to 2^63 - 1";
const BAD_TIME: Why = "a time lies after the year 9999";
const BAD_METERS: Why = "what it was charged cannot be read";

/// What the header's table says.
#[derive(Default)]
pub struct Meta {
    /// The format of the tables.
    pub format: Option<i64>,
    version: Option<String>,
    store: Option<String>,
    created_ms: Option<u64>,
    next_id: Option<u64>,
    tz: Option<String>,
    ip_threshold: Option<u64>,
    begun_ms: Option<u64>,
}

impl Meta {
    /// Adds a row. What is not known, or is of another kind, is left out.
    pub fn add(&mut self, fields: &Fields<'_>) {
        let text = || fields.text(2).ok().filter(|text| names::is_name(text)).map(ToOwned::to_owned);
        let count = || fields.count(2).ok();
        match fields.text(1) {
            Ok("format") => self.format = fields.int(2).ok().flatten(),
            Ok("version") => self.version = text(),
            Ok("store") => self.store = text().filter(|name| StoreName::parse(name.as_bytes()).is_ok()),
            Ok("created_ms") => self.created_ms = count().filter(|at_ms| *at_ms <= MAX_INSTANT_MS),
            Ok("next_id") => self.next_id = count(),
            // A header with a setting that KG.SETSTORE does not take is damaged: such a setting is as one that is not there.
            Ok("tz") => self.tz = text().filter(|zone| Zone::parse(zone.as_bytes()).is_ok()),
            Ok("ip_threshold") => self.ip_threshold = count().filter(|count| *count <= MAX_THRESHOLD),
            Ok("begun_ms") => self.begun_ms = count(),
            _ => {}
        }
    }

    /// The header; None if it lacks anything.
    pub fn header(self) -> Option<Header> {
        self.format.filter(|format| *format > 0)?;
        Some(Header {
            version: self.version?,
            store: self.store?,
            created_ms: self.created_ms?,
            next_id: self.next_id.filter(|id| *id > 0)?,
            tz: self.tz,
            ip_threshold: self.ip_threshold,
            begun_ms: self.begun_ms?,
        })
    }
}

fn org(fields: &Fields<'_>, _: &mut Known) -> Result<Row, Why> {
    let (id, packed) = (id(fields, 1)?, fields.bytes_of(3)?);
    let record = OrgRecord::decode(packed).map_err(|_| "its record cannot be read")?;
    if record.id != id {
        return Err("its record is that of another id");
    }
    Ok(Row::Item(Item::Org(Org { id, name: name(fields, 2)?, packed: packed.to_owned(), meters: meters(fields, 4)? })))
}

fn key(fields: &Fields<'_>, _: &mut Known) -> Result<Row, Why> {
    let (id, packed) = (id(fields, 1)?, fields.bytes_of(2)?);
    let record = Record::decode(packed).map_err(|_| "its record cannot be read")?;
    let meta = fields.optional_text(3)?;
    if meta.is_some_and(|meta| names::Meta::parse(meta.as_bytes()).is_err()) {
        return Err("its META is no JSON object of at most 16 KiB");
    }
    Ok(Row::Item(Item::Key(Key {
        id,
        packed: packed.to_owned(),
        meta: meta.map(ToOwned::to_owned),
        meters: match record.record_type() {
            RecordType::Api => meters(fields, 4)?,
            RecordType::Vault => remembered(fields, 4)?,
        },
        last_used_ms: time(fields, 5)?,
        token: None,
    })))
}

fn rule(fields: &Fields<'_>, _: &mut Known) -> Result<Row, Why> {
    let net = fields.text(1)?;
    if Net::parse_allowed(net.as_bytes()).is_err() {
        return Err("its network cannot be read");
    }
    let strikes = match (fields.int(7)?, time(fields, 8)?) {
        (None, None) => None,
        (Some(count), Some(until_ms)) => {
            let count =
                u8::try_from(count).ok().filter(|count| *count > 0).ok_or("its strikes are not from 1 to 255")?;
            Some(Strikes { count, until_ms })
        }
        _ => return Err("its strikes lack a number or a time"),
    };
    let path = fields.optional_text(3)?;
    if path.is_some_and(|path| path.len() > keyguard_core::path::MAX_PATH_BYTES) {
        return Err("its path is too long");
    }
    let reason = fields.text(5)?;
    if !reason.is_empty() && !names::is_name(reason) {
        return Err("its reason is longer than 256 bytes or has control characters");
    }
    Ok(Row::Item(Item::Rule(Rule {
        net: net.to_owned(),
        kind: write::kind(fields.text(2)?).ok_or("its kind is unknown")?,
        path: path.map(ToOwned::to_owned),
        until_ms: time(fields, 4)?,
        reason: reason.to_owned(),
        by: write::by(fields.text(6)?).ok_or("what made it is unknown")?,
        strikes,
    })))
}

fn account(fields: &Fields<'_>, _: &mut Known) -> Result<Row, Why> {
    let meters = meters(fields, 2)?.ok_or(BAD_METERS)?;
    Ok(Row::Item(Item::Account { name: name(fields, 1)?, meters }))
}

/// A row of the table of the old package.
fn logged(fields: &Fields<'_>, known: &mut Known) -> Result<Row, Why> {
    let tag = known.tag.ok_or("it is that of another store")?;
    let id = uuid::usage_id(tag, fields.text(1)?).ok_or("its id is none of this store")?;
    let key =
        uuid::record_id(uuid::Kind::Key, tag, fields.text(2)?).ok_or("the id of its key is none of this store")?;
    let code = match usize::from(id.code).checked_sub(1) {
        None => None,
        Some(index) => Some(schema::CODES.get(index).ok_or("its code is unknown")?.to_string()),
    };
    // The column cannot be NULL.
    let given = |column| Ok::<_, Why>(usage_text(fields, column)?.filter(|text| !text.is_empty()));
    let latency_ms = small(fields, 6)?.ok_or("its latency is missing")?;
    Ok(Row::Item(Item::Usage(Usage {
        at_ms: id.at_ms,
        seq: u64::from(id.seq),
        key,
        code,
        status: Some(small(fields, 5)?.ok_or("its status is missing")?),
        latency_ms: (!id.no_latency).then_some(latency_ms),
        method: given(4)?,
        path: given(3)?,
        ip: given(7)?,
    })))
}

fn usage(fields: &Fields<'_>, _: &mut Known) -> Result<Row, Why> {
    Ok(Row::Item(Item::Usage(Usage {
        at_ms: fields.count(1)?,
        seq: fields.count(2)?,
        key: fields.count(3)?,
        code: usage_text(fields, 4)?,
        status: small(fields, 5)?,
        latency_ms: small(fields, 6)?,
        method: usage_text(fields, 7)?,
        path: usage_text(fields, 8)?,
        ip: usage_text(fields, 9)?,
    })))
}

fn hour(fields: &Fields<'_>, _: &mut Known) -> Result<Row, Why> {
    Ok(Row::Item(Item::Hour { hour_ms: fields.count(1)?, counts: counts(fields, 2)? }))
}

fn day(fields: &Fields<'_>, _: &mut Known) -> Result<Row, Why> {
    let day = fields.int(2)?.and_then(|day| i32::try_from(day).ok()).ok_or("its day is out of range")?;
    Ok(Row::Item(Item::Day { key: id(fields, 1)?, day, counts: counts(fields, 3)? }))
}

fn total(fields: &Fields<'_>, _: &mut Known) -> Result<Row, Why> {
    let key = fields.int(1)?.map(|_| id(fields, 1)).transpose()?;
    Ok(Row::Item(Item::Total { key, code: usage_text(fields, 2)?, counts: counts(fields, 3)? }))
}

fn value(fields: &Fields<'_>, _: &mut Known) -> Result<Row, Why> {
    Ok(Row::Item(Item::Value { name: name(fields, 1)?, packed: fields.bytes_of(2)?.to_owned() }))
}

fn id(fields: &Fields<'_>, column: usize) -> Result<u64, Why> {
    fields.int(column)?.and_then(|id| u64::try_from(id).ok()).filter(|id| *id > 0).ok_or(BAD_ID)
}

fn name(fields: &Fields<'_>, column: usize) -> Result<String, Why> {
    let name = fields.text(column)?;
    if names::is_name(name) { Ok(name.to_owned()) } else { Err(NO_NAME) }
}

fn time(fields: &Fields<'_>, column: usize) -> Result<Option<u64>, Why> {
    let at_ms = fields.optional_count(column)?;
    if at_ms.is_some_and(|at_ms| at_ms > MAX_INSTANT_MS) { Err(BAD_TIME) } else { Ok(at_ms) }
}

/// What happened to a vault key, if anything did: what its pool remembers.
fn remembered(fields: &Fields<'_>, column: usize) -> Result<Option<Vec<u8>>, Why> {
    let remembered = fields.optional_bytes(column)?;
    if remembered.is_some_and(|remembered| Pool::decode(remembered).is_none()) {
        return Err("what happened to it cannot be read");
    }
    Ok(remembered.map(ToOwned::to_owned))
}

fn meters(fields: &Fields<'_>, column: usize) -> Result<Option<Vec<u8>>, Why> {
    let meters = fields.optional_bytes(column)?;
    if meters.is_some_and(|meters| Meters::decode(meters).is_none()) {
        return Err(BAD_METERS);
    }
    Ok(meters.map(ToOwned::to_owned))
}

fn usage_text(fields: &Fields<'_>, column: usize) -> Result<Option<String>, Why> {
    match fields.optional_text(column)? {
        Some(text) if text.len() > MAX_USAGE_TEXT_BYTES => Err("a text is too long"),
        text => Ok(text.map(ToOwned::to_owned)),
    }
}

/// A number of a narrower type.
fn small<T: TryFrom<i64>>(fields: &Fields<'_>, column: usize) -> Result<Option<T>, Why> {
    fields.int(column)?.map(T::try_from).transpose().map_err(|_| "a number is out of range")
}

/// Five columns from this one on.
fn counts(fields: &Fields<'_>, first: usize) -> Result<Counts, Why> {
    Ok(Counts {
        requests: fields.count(first)?,
        refused: fields.count(first + 1)?,
        logged: fields.count(first + 2)?,
        errors: fields.count(first + 3)?,
        latency_ms: fields.count(first + 4)?,
    })
}
