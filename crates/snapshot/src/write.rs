//! Writing a snapshot: beside its place, checked, then moved there.
//!
//! The file is built under a name of its own, `.<name>.<16 hex digits>.tmp`, without a journal: if the server is killed, what is left
//! of it is worthless, and the next [`Writer::create`] in that folder removes it. It is whole on the disk before it is renamed.
//!
//! A writer holds about 8 MB, however large the store is: 4 MB of pages, a bit for every API key, one row.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use keyguard_core::ip::{By, Kind};
use keyguard_core::parse::MAX_INSTANT_MS;
use keyguard_core::quota::Period;
use keyguard_core::record::{ApiRecord, DEFAULT_UNIT, OrgRecord, OrgStatus, Record, Status, UnitLimits, VaultRecord};
use rusqlite::{Connection, InterruptHandle, OpenFlags, Params, ToSql, params};

use crate::file::{FileError, FileName, Folder};
use crate::item::{Counts, Header, Item, Key, Org, Rule, Usage};
use crate::schema;
use crate::time;
use crate::uuid::{self, Tag, UsageId};

/// What the file is built with. Nothing is written outside of its folder, so that SQLite has no temporary files either; indexes
/// exist from the beginning because making one needs those. `foreign_keys` are checked once, at the end.
const SETTINGS: &str = "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA locking_mode = EXCLUSIVE;
    PRAGMA cache_size = -4096; PRAGMA temp_store = MEMORY; PRAGMA foreign_keys = OFF; PRAGMA trusted_schema = OFF;";

/// How many steps SQLite does between two looks at whether it shall stop.
const STEPS_BETWEEN_LOOKS: i32 = 10_000;

/// How many statements are kept prepared: all of a snapshot.
const STATEMENTS: usize = 32;

/// When a temporary file that no writer of ours is at has been left behind.
const LEFT_BEHIND: Duration = Duration::from_secs(60 * 60);

/// What `rate_limit_per_minute` says of a key without a limit on requests. NULL would stop the old package's `list-keys`.
const NO_LIMIT: u64 = i32::MAX as u64;

const MINUTE_MS: u64 = 60_000;

/// How much of the visible beginning of a key `prefix` has, as in the old package.
const PREFIX_CHARS: usize = 12;

/// A snapshot that is being written. One that is dropped leaves nothing behind.
pub struct Writer {
    conn: Connection,
    temporary: Temporary,
    folder: PathBuf,
    name: String,
    stop: Interrupter,
    tag: Option<Tag>,
    api_keys: Ids,
    /// The name of the last organization that was looked for, and its id.
    org: Option<(String, u64)>,
    rows: u64,
    /// What went wrong first.
    failed: Option<FileError>,
}

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Written {
    /// Rows in all tables of ours.
    pub rows: u64,
    /// The size of the file.
    pub bytes: u64,
}

impl Writer {
    /// Begins a file.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn create(folder: &Folder, name: &FileName) -> Result<Self, FileError> {
        let (folder, name) = (folder.path().to_owned(), name.as_str().to_owned());
        check_target(&folder, &name)?;
        remove_left_behind(&folder)?;
        let temporary = Temporary::create(&folder, &name)?;
        let flags =
            OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NOFOLLOW | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut conn = Connection::open_with_flags(&temporary.path, flags).map_err(wrong)?;
        conn.set_prepared_statement_cache_capacity(STATEMENTS);
        conn.execute_batch(SETTINGS).map_err(wrong)?;
        conn.execute_batch(&format!(
            "PRAGMA application_id = {}; BEGIN; {} {}",
            schema::APPLICATION_ID,
            schema::FOREIGN,
            schema::OWN
        ))
        .map_err(wrong)?;
        let stop = Interrupter::of(&conn);
        let told = Arc::clone(&stop.told);
        conn.progress_handler(STEPS_BETWEEN_LOOKS, Some(move || told.load(Ordering::Relaxed))).map_err(wrong)?;
        Ok(Self {
            conn,
            temporary,
            folder,
            name,
            stop,
            tag: None,
            api_keys: Ids::default(),
            org: None,
            rows: 0,
            failed: None,
        })
    }

    /// Adds a piece. The header comes first; keys come behind the organizations, and the usage log behind the keys.
    ///
    /// # Errors
    /// [`FileError`]; the writer is of no use then.
    pub fn put(&mut self, item: &Item) -> Result<(), FileError> {
        self.failed.map_or(Ok(()), Err)?;
        let put = self.stop.check().and_then(|()| self.put_item(item));
        self.failed = put.err();
        self.rows += u64::from(put.is_ok());
        put
    }

    /// Checks the file, and moves it to its place.
    ///
    /// # Errors
    /// [`FileError`]; what stood in its place still does.
    pub fn finish(self, finished_ms: u64) -> Result<Written, FileError> {
        self.failed.map_or(Ok(()), Err)?;
        self.put_meta("finished_ms", int(finished_ms))?;
        self.conn.execute_batch("COMMIT").map_err(wrong)?;
        self.check()?;
        let Self { conn, temporary, folder, name, stop, rows, .. } = self;
        conn.close().map_err(|(_, error)| wrong(error))?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&temporary.path)
            .map_err(failed)?;
        file.sync_all().map_err(failed)?;
        let bytes = file.metadata().map_err(failed)?.len();
        stop.check()?;
        check_target(&folder, &name)?;
        temporary.move_to(folder.join(&name))?;
        File::open(&folder).and_then(|folder| folder.sync_all()).map_err(failed)?;
        Ok(Written { rows, bytes })
    }

    /// What ends a long call from another thread.
    #[must_use]
    pub fn interrupter(&self) -> Interrupter {
        self.stop.clone()
    }

    fn put_item(&mut self, item: &Item) -> Result<(), FileError> {
        match item {
            Item::Header(header) => self.put_header(header),
            Item::Org(org) => self.put_org(org),
            Item::Key(key) => self.put_key(key),
            Item::Rule(rule) => self.put_rule(rule),
            Item::Account { name, meters } => self
                .run("INSERT INTO keyguard_accounts (name, meters) VALUES (?1, ?2)", params![name, in_range(meters)?]),
            Item::Usage(usage) => self.put_usage(usage),
            Item::Hour { hour_ms, counts } => {
                let [requests, refused, logged, errors, latency_ms] = columns(counts);
                self.run(
                    "INSERT INTO keyguard_usage_hours (hour_ms, requests, refused, logged, errors, latency_ms)
                        VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                    params![int(*hour_ms), requests, refused, logged, errors, latency_ms],
                )
            }
            Item::Day { key, day, counts } => {
                let [requests, refused, logged, errors, latency_ms] = columns(counts);
                self.run(
                    "INSERT INTO keyguard_usage_days (key_id, day, date, requests, refused, logged, errors, latency_ms)
                        VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
                    params![id(*key)?, day, time::date(*day), requests, refused, logged, errors, latency_ms],
                )
            }
            Item::Total { key, code, counts } => {
                let [requests, refused, logged, errors, latency_ms] = columns(counts);
                self.run(
                    "INSERT INTO keyguard_usage_totals (key_id, code, requests, refused, logged, errors, latency_ms)
                        VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
                    params![key.map(id).transpose()?, code, requests, refused, logged, errors, latency_ms],
                )
            }
            Item::Value { name, packed } => {
                self.run("INSERT INTO keyguard_values (name, packed) VALUES (?1, ?2)", params![name, in_range(packed)?])
            }
        }
    }

    fn put_header(&mut self, header: &Header) -> Result<(), FileError> {
        self.tag = Some(Tag::of(&header.store));
        self.put_meta("format", schema::FORMAT)?;
        self.put_meta("version", &header.version)?;
        self.put_meta("store", &header.store)?;
        self.put_meta("created_ms", int(header.created_ms))?;
        self.put_meta("next_id", int(header.next_id))?;
        self.put_meta("tz", &header.tz)?;
        self.put_meta("ip_threshold", header.ip_threshold.map(int))?;
        self.put_meta("begun_ms", int(header.begun_ms))
    }

    fn put_meta(&self, key: &str, value: impl ToSql) -> Result<(), FileError> {
        self.run("INSERT OR REPLACE INTO keyguard_meta (key, value) VALUES (?1, ?2)", params![key, value])
    }

    fn put_org(&mut self, org: &Org) -> Result<(), FileError> {
        let record = OrgRecord::decode(&org.packed).ok();
        let read = record.as_ref();
        self.run(
            "INSERT OR REPLACE INTO keyguard_orgs (id, name, status, created_ms, limits, quotas, packed, meters)
                VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            params![
                id(org.id)?,
                org.name,
                read.map(|record| record.status.as_str()),
                read.map(|record| int(record.created_ms)),
                read.and_then(|record| limits_text(&record.limits)),
                read.and_then(|record| joined(record.quotas.iter())),
                in_range(&org.packed)?,
                org.meters.as_deref().map(in_range).transpose()?,
            ],
        )?;
        self.org = None;
        let Some(record) = record else { return Ok(()) };
        let status = match record.status {
            OrgStatus::Active => "active",
            OrgStatus::Suspended => "suspended",
        };
        self.run(
            "INSERT OR REPLACE INTO organizations (id, name, status, created_at) VALUES (?1, ?2, ?3, ?4)",
            params![
                uuid::record(uuid::Kind::Org, self.tag()?, org.id),
                org.name,
                status,
                time::sqlalchemy(record.created_ms)
            ],
        )
    }

    fn put_key(&mut self, key: &Key) -> Result<(), FileError> {
        match Record::decode(&key.packed) {
            Ok(Record::Api(record)) => self.put_api_key(key, &record),
            Ok(Record::Vault(record)) => self.put_vault_key(key, &record),
            // It is kept as it is, and is no reason not to have the others.
            Err(_) => self.run(
                "INSERT OR REPLACE INTO keyguard_keys (id, last_used_ms, meta, packed, meters) VALUES (?1, ?2, ?3, ?4, ?5)",
                params![
                    id(key.id)?,
                    key.last_used_ms.map(int),
                    key.meta,
                    in_range(&key.packed)?,
                    key.meters.as_deref().map(in_range).transpose()?,
                ],
            ),
        }
    }

    fn put_api_key(&mut self, key: &Key, record: &ApiRecord<'_>) -> Result<(), FileError> {
        self.run(
            "INSERT OR REPLACE INTO keyguard_keys (id, type, org, label, status, created_ms, expires_ms, last_used_ms, start, scopes,
                limits, quotas, allowed, rotated_until_ms, meta, packed, meters)
                VALUES (?1, 'api', ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16)",
            params![
                id(key.id)?,
                record.org,
                record.label,
                record.status.as_str(),
                int(record.created_ms),
                record.expires_ms.map(int),
                key.last_used_ms.map(int),
                record.issued.start,
                (!record.scopes.is_empty()).then(|| record.scopes.as_str()),
                limits_text(&record.limits),
                joined(record.quotas.iter()),
                joined(record.allowed.iter()),
                record.previous.map(|(_, until_ms)| int(until_ms)),
                key.meta,
                in_range(&key.packed)?,
                key.meters.as_deref().map(in_range).transpose()?,
            ],
        )?;
        let Some(org) = self.org_id(record.org)? else { return Ok(()) };
        let scopes: Vec<&str> = record.scopes.iter().collect();
        // A list of texts always has a form as JSON.
        let scopes = serde_json::to_string(&scopes).unwrap_or_default();
        let prefix: String = record.issued.start.chars().take(PREFIX_CHARS).collect();
        let put = |hash: &str| {
            self.changes(
                "INSERT OR IGNORE INTO api_keys (id, org_id, label, prefix, key_hash, is_active, scopes, rate_limit_per_minute,
                    monthly_limit, created_at, expires_at, last_used_at)
                    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
                params![
                    uuid::record(uuid::Kind::Key, self.tag()?, key.id),
                    uuid::record(uuid::Kind::Org, self.tag()?, org),
                    record.label,
                    prefix,
                    hash,
                    record.status == Status::Active,
                    scopes,
                    int(per_minute(&record.limits)),
                    per_month(record).map(int),
                    time::sqlalchemy(record.created_ms),
                    record.expires_ms.and_then(time::sqlalchemy),
                    key.last_used_ms.and_then(time::sqlalchemy),
                ],
            )
        };
        // Its hash may be another record's, too, if someone copied that.
        let foreign = key.token.as_deref().map(put).transpose()?;
        if foreign == Some(1) || put(&own_hash(key.id, record))? == 1 {
            self.api_keys.insert(key.id);
        }
        Ok(())
    }

    fn put_vault_key(&mut self, key: &Key, record: &VaultRecord<'_>) -> Result<(), FileError> {
        self.run(
            "INSERT OR REPLACE INTO keyguard_keys (id, type, name, status, created_ms, expires_ms, last_used_ms, limits, source, login,
                batch, account, weight, shared, rejected, hint, meta, packed, meters)
                VALUES (?1, 'vault', ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18)",
            params![
                id(key.id)?,
                record.name,
                record.status.as_str(),
                int(record.created_ms),
                record.expires_ms.map(int),
                key.last_used_ms.map(int),
                limits_text(&record.limits),
                record.source,
                record.login,
                record.batch,
                record.account,
                record.weight,
                limits_text(&record.shared),
                record.rejected,
                record.hint.as_ref().map(|hint| hint.as_str()),
                key.meta,
                in_range(&key.packed)?,
                key.meters.as_deref().map(in_range).transpose()?,
            ],
        )?;
        let put = |encrypted: &str| {
            let created = time::seconds(record.created_ms);
            self.changes(
                "INSERT OR IGNORE INTO keystore (id, name, expiration_in_sse, active, batch, source, login, encrypted_key, created_at,
                    updated_at)
                    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?9)",
                params![
                    id(key.id)?,
                    record.name,
                    int(record.expires_ms.map_or(0, whole_seconds)),
                    record.status == Status::Active,
                    record.batch,
                    record.source,
                    record.login,
                    encrypted,
                    created,
                ],
            )
        };
        let token = key.token.as_deref().map(put).transpose()?;
        if token != Some(1) {
            put(&format!("keyguard:{}:{}", key.id, STANDARD.encode(record.sealed)))?;
        }
        Ok(())
    }

    fn put_rule(&mut self, rule: &Rule) -> Result<(), FileError> {
        self.run(
            "INSERT INTO keyguard_address_rules (net, kind, path, until_ms, reason, made_by, strikes, strikes_until_ms)
                VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            params![
                rule.net,
                rule.kind.as_str(),
                rule.path,
                rule.until_ms.map(int),
                rule.reason,
                made_by(rule.by),
                rule.strikes.map(|strikes| strikes.count),
                rule.strikes.map(|strikes| int(strikes.until_ms)),
            ],
        )
    }

    /// A row stands in one table: in that of the old package, if it comes back whole from there.
    fn put_usage(&mut self, usage: &Usage) -> Result<(), FileError> {
        let foreign = (self.foreign_usage_id(usage)?, time::sqlalchemy(usage.at_ms), usage.status);
        if let (Some(id), Some(at), Some(status)) = foreign {
            let put = self.changes(
                "INSERT OR IGNORE INTO usage_logs (id, key_id, path, method, status_code, latency_ms, ip_address, timestamp)
                    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
                params![
                    id,
                    uuid::record(uuid::Kind::Key, self.tag()?, usage.key),
                    usage.path.as_deref().unwrap_or_default(),
                    usage.method.as_deref().unwrap_or_default(),
                    status,
                    usage.latency_ms.unwrap_or(0),
                    usage.ip.as_deref().unwrap_or_default(),
                    at,
                ],
            )?;
            if put == 1 {
                return Ok(());
            }
        }
        self.run(
            "INSERT INTO keyguard_usage (at_ms, seq, key_id, code, status, latency_ms, method, path, ip)
                VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
            params![
                int(usage.at_ms),
                int(usage.seq),
                int(usage.key),
                usage.code,
                usage.status,
                usage.latency_ms,
                usage.method,
                usage.path,
                usage.ip
            ],
        )
    }

    fn foreign_usage_id(&self, usage: &Usage) -> Result<Option<String>, FileError> {
        let code = match usage.code.as_deref() {
            None => Some(0),
            Some(code) => schema::CODES.iter().position(|known| *known == code).map(|index| index + 1),
        };
        let texts = [&usage.method, &usage.path, &usage.ip];
        let (Some(code), Ok(seq)) = (code.and_then(|code| u8::try_from(code).ok()), u32::try_from(usage.seq)) else {
            return Ok(None);
        };
        // An empty text would come back as none.
        if usage.at_ms > MAX_INSTANT_MS
            || !self.api_keys.contains(usage.key)
            || texts.iter().any(|text| text.as_deref() == Some(""))
        {
            return Ok(None);
        }
        let id = UsageId { at_ms: usage.at_ms, seq, code, no_latency: usage.latency_ms.is_none() };
        Ok(uuid::usage(self.tag()?, id))
    }

    /// The id of an organization whose record can be read.
    fn org_id(&mut self, name: &str) -> Result<Option<u64>, FileError> {
        if let Some((last, id)) = &self.org
            && last == name
        {
            return Ok(Some(*id));
        }
        let sql = "SELECT id FROM keyguard_orgs WHERE name = ?1 AND status IS NOT NULL LIMIT 1";
        let mut find = self.conn.prepare_cached(sql).map_err(wrong)?;
        let found = match find.query_row([name], |row| row.get::<_, i64>(0)) {
            Ok(id) => u64::try_from(id).ok(),
            Err(rusqlite::Error::QueryReturnedNoRows) => None,
            Err(error) => return Err(wrong(error)),
        };
        drop(find);
        if let Some(id) = found {
            self.org = Some((name.to_owned(), id));
        }
        Ok(found)
    }

    fn tag(&self) -> Result<Tag, FileError> {
        self.tag.ok_or(FileError::Unsound)
    }

    fn run(&self, sql: &str, values: impl Params) -> Result<(), FileError> {
        self.changes(sql, values).map(drop)
    }

    fn changes(&self, sql: &str, values: impl Params) -> Result<usize, FileError> {
        self.conn.prepare_cached(sql).and_then(|mut statement| statement.execute(values)).map_err(wrong)
    }

    /// Whether the file holds together, read back from where it lies.
    fn check(&self) -> Result<(), FileError> {
        let one = |sql: &str| {
            let found = self.conn.query_row(sql, [], |row| row.get::<_, String>(0));
            match found {
                Ok(found) => Ok(Some(found)),
                Err(rusqlite::Error::QueryReturnedNoRows) => Ok(None),
                Err(error) => Err(wrong(error)),
            }
        };
        let sound = one("PRAGMA integrity_check(1)")?.as_deref() == Some("ok")
            && one("PRAGMA foreign_key_check(api_keys)")?.is_none()
            && one("PRAGMA foreign_key_check(usage_logs)")?.is_none();
        if sound { Ok(()) } else { Err(FileError::Unsound) }
    }
}

/// Ends a long call from another thread; it answers [`FileError::Stopped`] then.
#[derive(Clone)]
pub struct Interrupter {
    told: Arc<AtomicBool>,
    handle: Arc<InterruptHandle>,
}

impl Interrupter {
    /// Ends it, and all that come after it.
    pub fn interrupt(&self) {
        self.told.store(true, Ordering::Relaxed);
        self.handle.interrupt();
    }

    pub(crate) fn of(conn: &Connection) -> Self {
        Self { told: Arc::default(), handle: Arc::new(conn.get_interrupt_handle()) }
    }

    pub(crate) fn told(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.told)
    }

    pub(crate) fn check(&self) -> Result<(), FileError> {
        if self.told.load(Ordering::Relaxed) { Err(FileError::Stopped) } else { Ok(()) }
    }
}

fn wrong(error: rusqlite::Error) -> FileError {
    FileError::of_writing(&error)
}

fn failed(error: io::Error) -> FileError {
    FileError::of_io(&error)
}

/// What rules are said to be made by.
const MADE_BY: [(By, &str); 3] = [(By::Hand, "hand"), (By::Claims, "claims"), (By::Failures, "failures")];

fn made_by(by: By) -> &'static str {
    MADE_BY.iter().find(|(known, _)| *known == by).map_or("hand", |(_, text)| text)
}

/// What made a rule, by its name; None if there is no such thing.
pub(crate) fn by(text: &str) -> Option<By> {
    MADE_BY.iter().find(|(_, known)| *known == text).map(|(by, _)| *by)
}

/// The kind of a rule, by its name; None if there is no such kind.
pub(crate) fn kind(text: &str) -> Option<Kind> {
    [Kind::Allow, Kind::Block].into_iter().find(|kind| kind.as_str() == text)
}

/// SQLite's integers are signed. Counts and times beyond are the largest there is: no clock and no count of ours gets there.
fn int(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Ids must not become others.
fn id(id: u64) -> Result<i64, FileError> {
    i64::try_from(id).ok().filter(|id| *id > 0).ok_or(FileError::OutOfRange)
}

/// What could not be read back is not written.
fn in_range(value: &[u8]) -> Result<&[u8], FileError> {
    if value.len() <= schema::MAX_VALUE_BYTES { Ok(value) } else { Err(FileError::OutOfRange) }
}

fn columns(counts: &Counts) -> [i64; 5] {
    [counts.requests, counts.refused, counts.logged, counts.errors, counts.latency_ms].map(int)
}

/// A time in whole seconds, so that a key is never said to live longer; not 0, which would be never.
fn whole_seconds(at_ms: u64) -> u64 {
    (at_ms / 1_000).max(1)
}

/// Limits as people read them, and as the hashes of a store show them: `100/60000ms requests`.
fn limits_text(limits: &UnitLimits<'_>) -> Option<String> {
    joined(limits.iter().map(|limit| format!("{}/{}ms {}", limit.limit.count(), limit.limit.window_ms(), limit.unit)))
}

fn joined(items: impl Iterator<Item = impl ToString>) -> Option<String> {
    let each: Vec<String> = items.map(|item| item.to_string()).collect();
    (!each.is_empty()).then(|| each.join(", "))
}

/// Requests a minute: the limit of a minute, else the least that the others come to in one, at least 1.
fn per_minute(limits: &UnitLimits<'_>) -> u64 {
    let requests = || limits.iter().filter(|limit| limit.unit == DEFAULT_UNIT).map(|limit| limit.limit);
    let of_a_minute = requests().filter(|limit| limit.window_ms() == MINUTE_MS).map(|limit| limit.count()).min();
    let scaled = |count: u64, window_ms: u64| {
        let scaled = u128::from(count) * u128::from(MINUTE_MS) / u128::from(window_ms.max(1));
        u64::try_from(scaled).unwrap_or(u64::MAX).max(1)
    };
    of_a_minute.or_else(|| requests().map(|limit| scaled(limit.count(), limit.window_ms())).min()).unwrap_or(NO_LIMIT)
}

fn per_month(record: &ApiRecord<'_>) -> Option<u64> {
    let monthly = record.quotas.iter().filter(|quota| quota.unit == DEFAULT_UNIT && quota.period == Period::Month);
    monthly.map(|quota| quota.count).min()
}

/// What stands for the hash of a key that the old package cannot know: no digest of ours is of use to it. With the id in front there
/// are no two alike.
fn own_hash(id: u64, record: &ApiRecord<'_>) -> String {
    format!("keyguard:{id}:{}", record.issued.digest.base64url())
}

/// Refuses to replace what is no file, or may not be written to.
fn check_target(folder: &std::path::Path, name: &str) -> Result<(), FileError> {
    match fs::symlink_metadata(folder.join(name)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed(error)),
        Ok(metadata) if !metadata.is_file() => Err(FileError::NotAFile),
        // A rename does not ask for it, and the superuser may do anything.
        Ok(metadata) if metadata.permissions().mode() & 0o200 == 0 => Err(FileError::Protected),
        Ok(_) => Ok(()),
    }
}

/// The temporary files of the writers of this process.
static BEING_WRITTEN: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// A temporary file, removed when dropped.
struct Temporary {
    path: PathBuf,
}

impl Temporary {
    fn create(folder: &std::path::Path, name: &str) -> Result<Self, FileError> {
        let path = folder.join(format!(".{name}.{:016x}.tmp", rand::random::<u64>()));
        being_written(|paths| paths.insert(path.clone()));
        let temporary = Self { path };
        // create_new is O_CREAT with O_EXCL: it follows no link.
        OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&temporary.path)
            .map_err(failed)?;
        Ok(temporary)
    }

    fn move_to(self, target: PathBuf) -> Result<(), FileError> {
        fs::rename(&self.path, target).map_err(failed)
    }
}

impl Drop for Temporary {
    /// Where it was moved away there is nothing left to remove.
    fn drop(&mut self) {
        fs::remove_file(&self.path).ok();
        being_written(|paths| paths.remove(&self.path));
    }
}

fn being_written<T>(with: impl FnOnce(&mut BTreeSet<PathBuf>) -> T) -> T {
    with(&mut BEING_WRITTEN.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Removes what a killed server left: files of the names that ours have, which nobody has written to for an hour.
fn remove_left_behind(folder: &std::path::Path) -> Result<(), FileError> {
    let names = Folder::open(folder)?.names()?;
    for path in names.iter().filter(|name| is_temporary(name)).map(|name| folder.join(name)) {
        let untouched = |modified: SystemTime| modified.elapsed().is_ok_and(|age| age > LEFT_BEHIND);
        let left = fs::symlink_metadata(&path)
            .is_ok_and(|metadata| metadata.is_file() && metadata.modified().is_ok_and(untouched));
        if left && !being_written(|paths| paths.contains(&path)) {
            // Another server may have been quicker.
            fs::remove_file(&path).ok();
        }
    }
    Ok(())
}

fn is_temporary(name: &str) -> bool {
    let parts = name.strip_prefix('.').and_then(|rest| rest.strip_suffix(".tmp")?.rsplit_once('.'));
    parts.is_some_and(|(name, random)| {
        FileName::parse(name.as_bytes()).is_some()
            && random.len() == 16
            && random.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    })
}

/// A set of ids. They are given one after the other, so that a bit is enough for most.
#[derive(Default)]
struct Ids(BTreeMap<u64, [u64; 8]>);

impl Ids {
    fn insert(&mut self, id: u64) {
        let (block, word, bit) = Self::place(id);
        if let Some(word) = self.0.entry(block).or_default().get_mut(word) {
            *word |= bit;
        }
    }

    fn contains(&self, id: u64) -> bool {
        let (block, word, bit) = Self::place(id);
        self.0.get(&block).and_then(|words| words.get(word)).is_some_and(|word| word & bit != 0)
    }

    fn place(id: u64) -> (u64, usize, u64) {
        (id / 512, (id / 64 % 8) as usize, 1 << (id % 64))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeSet as Model;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_full_disk_says_so_and_keeps_the_last_snapshot() {
        let folder = tempfile::tempdir().unwrap();
        let (open, name) = (Folder::open(folder.path()).unwrap(), FileName::parse(b"a").unwrap());
        let header = Item::Header(Header {
            version: "0".to_owned(),
            store: "acme".to_owned(),
            created_ms: 0,
            next_id: 1,
            tz: None,
            ip_threshold: None,
            begun_ms: 0,
        });
        let mut writer = Writer::create(&open, &name).unwrap();
        writer.put(&header).unwrap();
        let written = writer.finish(1).unwrap();
        let mut writer = Writer::create(&open, &name).unwrap();
        // It is how SQLite has it: the same error as that of a disk without room.
        writer.conn.execute_batch("PRAGMA max_page_count = 40").unwrap();
        writer.put(&header).unwrap();
        let large = Item::Value { name: "v".to_owned(), packed: vec![0; 1 << 20] };
        let full = writer.put(&large).unwrap_err();
        assert_eq!(full, FileError::DiskFull);
        assert_eq!(full.to_string(), "the disk is full");
        // A writer that failed does not become a snapshot without what failed.
        assert_eq!(writer.finish(1), Err(FileError::DiskFull));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        assert_eq!(fs::metadata(folder.path().join("a")).unwrap().len(), written.bytes);
    }

    #[test]
    fn temporary_files_are_known_by_their_names() {
        for (name, expected) in [
            (".a.0123456789abcdef.tmp", true),
            (".a.b.0123456789abcdef.tmp", true),
            ("a.0123456789abcdef.tmp", false),
            (".a.0123456789abcdeg.tmp", false),
            (".a.0123456789abcdef", false),
            ("..0123456789abcdef.tmp", false),
            (".0123456789abcdef.tmp", false),
        ] {
            assert_eq!(is_temporary(name), expected, "{name}");
        }
    }

    proptest! {
        #[test]
        fn a_set_of_ids_is_a_set(ids in proptest::collection::vec(prop_oneof![0..2_000_u64, any::<u64>()], 0..50), asked in 0..2_000_u64) {
            let mut set = Ids::default();
            ids.iter().for_each(|id| set.insert(*id));
            let model: Model<u64> = ids.iter().copied().collect();
            for id in ids.iter().copied().chain([asked, 0, 511, 512, u64::MAX]) {
                prop_assert_eq!(set.contains(id), model.contains(&id));
            }
        }
    }
}
