//! Reading a file, which may be anybody's.
//!
//! A database is a program of sorts: its schema has views, triggers, expressions and virtual tables. None of it is run here. The file
//! is opened for reading alone, an authorizer lets nothing pass but plain reads of the tables that a format has, those must be
//! ordinary tables, and no index of theirs is used. They are checked for damage before their first row is given out, and no step may
//! take longer than the size of the file explains.
//!
//! SQLite's own locks keep a writer out as long as the file is read. A database in WAL mode cannot be opened for reading alone where
//! nothing may be created beside it: it is read as a file that does not change (`immutable`), which is why it must have been closed.

use std::collections::{HashSet, VecDeque};
use std::fs::{self, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::hooks::{AuthAction, AuthContext, Authorization, TransactionOperation};
use rusqlite::limits::Limit;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, ErrorCode, OpenFlags};

use crate::file::{FileError, FileName, Folder};
use crate::item::{Item, Row, Skipped};
use crate::schema;
use crate::uuid::Tag;
use crate::write::Interrupter;
use crate::{foreign, own};

/// The most rows that are given at once, and about how many bytes.
const ROWS_AT_ONCE: i64 = 256;
const BYTES_AT_ONCE: usize = 1024 * 1024;

/// The largest value of a file of another program, in bytes: a secret has at most 64 KiB.
const MAX_FOREIGN_VALUE_BYTES: i32 = 1024 * 1024;

/// How many of SQLite's steps are one tick of the clock that bounds what a call may do.
const STEPS_OF_TICK: i32 = 1_000;

/// Ticks for reading the schema, and for so many rows: some dozen steps are needed for each.
const TICKS_OF_ROWS: u64 = 1_000;

/// Of the file, for a look at everything in it: a row has some bytes, and some dozen steps.
const BYTES_OF_TICK: u64 = 64;

/// How long somebody else may be writing.
const PATIENCE: Duration = Duration::from_secs(2);

const MAGIC: &[u8; 16] = b"SQLite format 3\0";

/// What a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// A snapshot of ours.
    Snapshot,
    /// A database of `keyguard_python`.
    Keyguard,
    /// A database of `simple_keystore`.
    SimpleKeystore,
}

impl Format {
    const fn tables(self) -> &'static [Table] {
        match self {
            Self::Snapshot => &own::TABLES,
            Self::Keyguard => &foreign::KEYGUARD,
            Self::SimpleKeystore => &foreign::SIMPLE_KEYSTORE,
        }
    }
}

/// A table that is read.
pub(crate) struct Table {
    /// Its name.
    pub name: &'static str,
    /// The columns that are read.
    pub columns: &'static [&'static str],
    /// Whether it must be there.
    pub required: bool,
    /// Makes a row of what stands in those columns.
    pub take: Take,
    /// Whether its rows and those of the table before it are one log, in order of time.
    pub joins_the_one_before: bool,
}

/// Makes a row of the columns of a table.
pub(crate) type Take = fn(&Fields<'_>, &mut Known) -> Result<Row, Why>;

/// Why a row cannot be taken over; nothing of its content.
pub(crate) type Why = &'static str;

/// What rows refer to.
#[derive(Default)]
pub(crate) struct Known {
    /// The ids of the organizations that were taken over from `keyguard_python`.
    pub orgs: HashSet<String>,
    /// That of the snapshot's store.
    pub tag: Option<Tag>,
}

/// A file that is being read, from its first row to its last.
pub struct Reader {
    conn: Connection,
    stop: Interrupter,
    ticks: Arc<AtomicU64>,
    known: Known,
    /// The header of a snapshot, which has no rows of its own.
    header: Option<Row>,
    sources: VecDeque<Source>,
    total: u64,
}

/// Where rows come from: a table, or two in order of time.
enum Source {
    One(Cursor),
    Merged(Cursor, Cursor),
}

/// How far a table was read.
struct Cursor {
    table: &'static Table,
    sql: String,
    /// The lowest rowid to come; None at the end.
    next: Option<i64>,
    /// What was read and not given out.
    read: VecDeque<Row>,
}

impl Reader {
    /// Opens a file, and makes sure that it is what it is said to be.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn open(folder: &Folder, name: &FileName, format: Format) -> Result<Self, FileError> {
        Self::open_with(folder, name, format, |_| {})
    }

    /// As [`open`](Self::open), which looks at all of the file and may take long: `tell` gets what ends that, before it begins.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn open_with(
        folder: &Folder,
        name: &FileName,
        format: Format,
        tell: impl FnOnce(Interrupter),
    ) -> Result<Self, FileError> {
        let path = folder.path().join(name.as_str());
        let found = examine(&path)?;
        for suffix in ["-wal", "-journal"] {
            if has_content(&folder.path().join(format!("{}{suffix}", name.as_str())))? {
                return Err(FileError::Unfinished);
            }
        }
        let conn = connect(&path, found.is_wal).map_err(wrong)?;
        let stop = Interrupter::of(&conn);
        tell(stop.clone());
        Self::of(conn, stop, format, found.bytes)
    }

    fn of(mut conn: Connection, stop: Interrupter, format: Format, bytes: u64) -> Result<Self, FileError> {
        let ticks = Arc::new(AtomicU64::new(TICKS_OF_ROWS));
        guard(&mut conn, format, &stop, &ticks).map_err(wrong)?;
        let mut reader =
            Self { conn, stop, ticks, known: Known::default(), header: None, sources: VecDeque::new(), total: 0 };
        let whole = TICKS_OF_ROWS + bytes / BYTES_OF_TICK;
        reader.allow(whole);
        reader.conn.execute_batch("BEGIN").map_err(|error| reader.wrong(error))?;
        if format == Format::Snapshot {
            reader.is_ordinary(&own::META)?.then_some(()).ok_or(FileError::OtherFormat)?;
            reader.is_sound(&own::META, whole)?;
            reader.read_header()?;
        }
        for table in format.tables() {
            // Who asks between two statements interrupts neither.
            reader.stop.check()?;
            reader.allow(TICKS_OF_ROWS);
            if !reader.is_ordinary(table)? {
                if table.required {
                    return Err(FileError::OtherFormat);
                }
                continue;
            }
            reader.is_sound(table, whole)?;
            reader.allow(whole);
            reader.total += reader.count(table)?;
            let cursor = Cursor::new(table);
            let source = match reader.sources.pop_back() {
                Some(Source::One(before)) if table.joins_the_one_before => Source::Merged(before, cursor),
                before => {
                    reader.sources.extend(before);
                    Source::One(cursor)
                }
            };
            reader.sources.push_back(source);
        }
        Ok(reader)
    }

    /// How many rows it has.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.total
    }

    /// The next rows, some hundred at the most; none at the end.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn next_rows(&mut self) -> Result<Vec<Row>, FileError> {
        self.stop.check()?;
        let mut rows: Vec<Row> = self.header.take().into_iter().collect();
        while rows.is_empty() {
            let Some(mut source) = self.sources.pop_front() else { break };
            match &mut source {
                Source::One(cursor) => {
                    self.fill(cursor)?;
                    rows.extend(cursor.read.drain(..));
                }
                Source::Merged(first, second) => {
                    self.fill(first)?;
                    self.fill(second)?;
                    rows.extend(merge(first, second));
                }
            }
            if !source.is_over() {
                self.sources.push_front(source);
            }
        }
        Ok(rows)
    }

    /// What ends a long call from another thread.
    #[must_use]
    pub fn interrupter(&self) -> Interrupter {
        self.stop.clone()
    }

    /// Reads on, if nothing is left of what was read.
    fn fill(&mut self, cursor: &mut Cursor) -> Result<(), FileError> {
        while cursor.read.is_empty()
            && let Some(next) = cursor.next
        {
            self.allow(TICKS_OF_ROWS);
            let (mut last, mut bytes) = (None, 0);
            let ended = self.read_rows(cursor, next, &mut last, &mut bytes);
            cursor.next = match ended {
                Ok(true) => None,
                Ok(false) => last.and_then(|last: i64| last.checked_add(1)),
                // A value longer than any that can be taken over: the row is one to skip.
                Err(error) if error.sqlite_error_code() == Some(ErrorCode::TooBig) => {
                    let next = last.map_or(Some(next), |last| last.checked_add(1)).ok_or(FileError::Damaged)?;
                    let rowid = self.rowid_from(cursor.table, next)?;
                    let why = "a value is too long";
                    cursor.read.push_back(Row::Skipped(Skipped { table: cursor.table.name, rowid, why }));
                    rowid.checked_add(1)
                }
                Err(error) => return Err(self.wrong(error)),
            };
        }
        Ok(())
    }

    /// Reads rows from `next` on, remembering the last. Whether there are no more.
    fn read_rows(
        &mut self,
        cursor: &mut Cursor,
        next: i64,
        last: &mut Option<i64>,
        bytes: &mut usize,
    ) -> rusqlite::Result<bool> {
        let mut select = self.conn.prepare_cached(&cursor.sql)?;
        let mut rows = select.query([next])?;
        let mut count = 0;
        while let Some(row) = rows.next()? {
            let fields = Fields(row);
            let rowid = row.get(0)?;
            let taken = (cursor.table.take)(&fields, &mut self.known);
            let skipped = |why| Row::Skipped(Skipped { table: cursor.table.name, rowid, why });
            cursor.read.push_back(taken.unwrap_or_else(skipped));
            *last = Some(rowid);
            *bytes = bytes.saturating_add(fields.bytes(cursor.table.columns.len()));
            count += 1;
            if *bytes > BYTES_AT_ONCE {
                return Ok(false);
            }
        }
        Ok(count < ROWS_AT_ONCE)
    }

    /// The lowest rowid from `next` on.
    fn rowid_from(&self, table: &Table, next: i64) -> Result<i64, FileError> {
        let sql = format!("SELECT rowid FROM {} NOT INDEXED WHERE rowid >= ?1 ORDER BY rowid LIMIT 1", table.name);
        self.conn.query_row(&sql, [next], |row| row.get(0)).map_err(|error| self.wrong(error))
    }

    fn read_header(&mut self) -> Result<(), FileError> {
        let mut meta = own::Meta::default();
        let sql = "SELECT rowid, key, value FROM keyguard_meta NOT INDEXED ORDER BY rowid LIMIT 100";
        let mut select = self.conn.prepare(sql).map_err(|error| self.wrong(error))?;
        let mut rows = select.query([]).map_err(|error| self.wrong(error))?;
        while let Some(row) = rows.next().map_err(|error| self.wrong(error))? {
            meta.add(&Fields(row));
        }
        if meta.format.is_some_and(|format| format > schema::FORMAT) {
            return Err(FileError::LaterFormat);
        }
        let header = meta.header().ok_or(FileError::Damaged)?;
        self.known.tag = Some(Tag::of(&header.store));
        self.header = Some(Row::Item(Item::Header(header)));
        self.total = 1;
        Ok(())
    }

    /// Whether a table of this name is there; an error if it is anything but an ordinary table with the columns.
    fn is_ordinary(&self, table: &Table) -> Result<bool, FileError> {
        let wrong = |error| self.wrong(error);
        let sql = "SELECT type, sql, rootpage FROM sqlite_schema WHERE name = ?1 COLLATE NOCASE LIMIT 2";
        let mut select = self.conn.prepare(sql).map_err(wrong)?;
        let mut found = select.query([table.name]).map_err(wrong)?;
        let Some(row) = found.next().map_err(wrong)? else { return Ok(false) };
        let fields = Fields(row);
        // SQLite keeps the beginning of the statement in this one form. A virtual table has another, and no root page.
        let ordinary = fields.text(0).is_ok_and(|kind| kind == "table")
            && fields
                .text(1)
                .is_ok_and(|sql| sql.get(..13).is_some_and(|head| head.eq_ignore_ascii_case("CREATE TABLE ")))
            && fields.int(2).is_ok_and(|root| root.is_some_and(|root| root > 1));
        if !ordinary || found.next().map_err(wrong)?.is_some() {
            return Err(FileError::OtherFormat);
        }
        drop(found);
        let mut missing: Vec<&str> = table.columns.to_vec();
        let mut select = self.conn.prepare(&format!("PRAGMA table_xinfo({})", table.name)).map_err(wrong)?;
        let mut columns = select.query([]).map_err(wrong)?;
        while let Some(row) = columns.next().map_err(wrong)? {
            let fields = Fields(row);
            let (name, hidden) = (fields.text(1).unwrap_or_default(), fields.int(6).unwrap_or_default());
            let hides_rowid = ["rowid", "_rowid_", "oid"].iter().any(|known| known.eq_ignore_ascii_case(name));
            // Generated columns are computed by expressions of whoever made the file.
            if hidden != Some(0) || hides_rowid {
                return Err(FileError::OtherFormat);
            }
            missing.retain(|column| !column.eq_ignore_ascii_case(name));
        }
        // Without a rowid there is no such column.
        let has_rowid = || self.conn.prepare(&format!("SELECT rowid FROM {} NOT INDEXED LIMIT 0", table.name)).is_ok();
        if missing.is_empty() && has_rowid() { Ok(true) } else { Err(FileError::OtherFormat) }
    }

    /// Whether its pages are in order, as far as SQLite can tell without its indexes.
    fn is_sound(&self, table: &Table, ticks: u64) -> Result<(), FileError> {
        self.allow(ticks);
        let sql = format!("PRAGMA quick_check({})", table.name);
        let sound: String = self.conn.query_row(&sql, [], |row| row.get(0)).map_err(|error| self.wrong(error))?;
        if sound == "ok" { Ok(()) } else { Err(FileError::Damaged) }
    }

    fn count(&self, table: &Table) -> Result<u64, FileError> {
        let sql = format!("SELECT count(*) FROM {} NOT INDEXED", table.name);
        let count: i64 = self.conn.query_row(&sql, [], |row| row.get(0)).map_err(|error| self.wrong(error))?;
        Ok(u64::try_from(count).unwrap_or(0))
    }

    /// Gives the next statements so many ticks.
    fn allow(&self, ticks: u64) {
        self.ticks.store(ticks, Ordering::Relaxed);
    }

    /// What SQLite's error means. A statement that was ended because of its length is one that only a damaged file has.
    fn wrong(&self, error: rusqlite::Error) -> FileError {
        self.stop.check().err().unwrap_or_else(|| FileError::of_reading(&error))
    }
}

impl Source {
    fn is_over(&self) -> bool {
        match self {
            Self::One(cursor) => cursor.is_over(),
            Self::Merged(first, second) => first.is_over() && second.is_over(),
        }
    }
}

impl Cursor {
    fn new(table: &'static Table) -> Self {
        let (name, columns) = (table.name, table.columns.join(", "));
        // NOT INDEXED: what an index of the file says, or its statistics, must not decide how it is read.
        let sql = format!(
            "SELECT rowid, {columns} FROM {name} NOT INDEXED WHERE rowid >= ?1 ORDER BY rowid LIMIT {ROWS_AT_ONCE}"
        );
        Self { table, sql, next: Some(i64::MIN), read: VecDeque::new() }
    }

    fn is_over(&self) -> bool {
        self.next.is_none() && self.read.is_empty()
    }
}

/// Takes rows of two logs in order of time, until it cannot be known which comes next.
fn merge(first: &mut Cursor, second: &mut Cursor) -> Vec<Row> {
    let mut rows = Vec::new();
    // What is skipped has no time, and does not wait.
    let at = |cursor: &Cursor| {
        cursor.read.front().map(|row| match row {
            Row::Item(Item::Usage(usage)) => (usage.at_ms, usage.seq),
            _ => (0, 0),
        })
    };
    loop {
        let next = match (at(first), at(second)) {
            (Some(_), None) if second.next.is_none() => first.read.pop_front(),
            (None, Some(_)) if first.next.is_none() => second.read.pop_front(),
            (Some(one), Some(other)) if one <= other => first.read.pop_front(),
            (Some(_), Some(_)) => second.read.pop_front(),
            _ => return rows,
        };
        rows.extend(next);
    }
}

/// What stands in the columns of a row, by the storage class that each value has: column 0 is the rowid.
pub(crate) struct Fields<'r>(&'r rusqlite::Row<'r>);

impl<'r> Fields<'r> {
    /// Any value.
    pub fn value(&self, column: usize) -> Result<ValueRef<'r>, Why> {
        self.0.get_ref(column).map_err(|_| "a column is missing")
    }

    /// A text, or NULL.
    pub fn optional_text(&self, column: usize) -> Result<Option<&'r str>, Why> {
        match self.value(column)? {
            ValueRef::Null => Ok(None),
            ValueRef::Text(text) => str::from_utf8(text).map(Some).map_err(|_| "a text is not UTF-8"),
            _ => Err("a value that should be a text is none"),
        }
    }

    /// A text.
    pub fn text(&self, column: usize) -> Result<&'r str, Why> {
        self.optional_text(column)?.ok_or("a value that must be there is NULL")
    }

    /// An integer, or NULL.
    pub fn int(&self, column: usize) -> Result<Option<i64>, Why> {
        match self.value(column)? {
            ValueRef::Null => Ok(None),
            ValueRef::Integer(number) => Ok(Some(number)),
            _ => Err("a value that should be an integer is none"),
        }
    }

    /// A number that is not negative, or NULL.
    pub fn optional_count(&self, column: usize) -> Result<Option<u64>, Why> {
        self.int(column)?.map(u64::try_from).transpose().map_err(|_| "a number is negative")
    }

    /// A number that is not negative.
    pub fn count(&self, column: usize) -> Result<u64, Why> {
        self.optional_count(column)?.ok_or("a value that must be there is NULL")
    }

    /// Bytes, or NULL.
    pub fn optional_bytes(&self, column: usize) -> Result<Option<&'r [u8]>, Why> {
        match self.value(column)? {
            ValueRef::Null => Ok(None),
            ValueRef::Blob(bytes) => Ok(Some(bytes)),
            _ => Err("a value that should be a blob is none"),
        }
    }

    /// Bytes.
    pub fn bytes_of(&self, column: usize) -> Result<&'r [u8], Why> {
        self.optional_bytes(column)?.ok_or("a value that must be there is NULL")
    }

    fn bytes(&self, columns: usize) -> usize {
        let each = (0..=columns).map(|column| match self.0.get_ref(column) {
            Ok(ValueRef::Text(bytes) | ValueRef::Blob(bytes)) => bytes.len(),
            _ => 8,
        });
        each.sum()
    }
}

/// What was found out about a file before SQLite sees it.
struct Found {
    bytes: u64,
    is_wal: bool,
}

/// Makes sure that it is an ordinary file that begins as a database does. Neither a pipe nor a device is waited for.
fn examine(path: &Path) -> Result<Found, FileError> {
    let failed = |error: io::Error| FileError::of_io(&error);
    if !fs::symlink_metadata(path).map_err(failed)?.is_file() {
        return Err(FileError::NotAFile);
    }
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let mut file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(FileError::NotAFile);
    }
    let mut head = [0_u8; 20];
    match file.read_exact(&mut head) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(FileError::NotADatabase),
        Err(error) => return Err(failed(error)),
    }
    // The last two are the versions of the format for writing and for reading.
    match head {
        [magic @ .., _, _, write, read] if magic == *MAGIC => {
            Ok(Found { bytes: metadata.len(), is_wal: write == 2 || read == 2 })
        }
        _ => Err(FileError::NotADatabase),
    }
}

/// Whether anything but an empty file has this name.
fn has_content(path: &Path) -> Result<bool, FileError> {
    match fs::symlink_metadata(path) {
        Ok(metadata) => Ok(!metadata.is_file() || metadata.len() > 0),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(FileError::of_io(&error)),
    }
}

fn connect(path: &Path, is_immutable: bool) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NOFOLLOW | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    if !is_immutable {
        return Connection::open_with_flags(path, flags);
    }
    let mut uri = String::from("file:");
    for byte in path.as_os_str().as_bytes() {
        match byte {
            b'/' | b'.' | b'_' | b'-' | b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' => uri.push(char::from(*byte)),
            _ => uri.push_str(&format!("%{byte:02X}")),
        }
    }
    uri.push_str("?immutable=1");
    Connection::open_with_flags(uri, flags | OpenFlags::SQLITE_OPEN_URI)
}

/// Takes from a connection all that reading plain tables does not need.
fn guard(conn: &mut Connection, format: Format, stop: &Interrupter, ticks: &Arc<AtomicU64>) -> rusqlite::Result<()> {
    conn.busy_timeout(PATIENCE)?;
    for (setting, value) in [
        (DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true),
        (DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false),
        (DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false),
        (DbConfig::SQLITE_DBCONFIG_ENABLE_VIEW, false),
        (DbConfig::SQLITE_DBCONFIG_ENABLE_FKEY, false),
    ] {
        conn.set_db_config(setting, value)?;
    }
    let length = match format {
        Format::Snapshot => i32::try_from(schema::MAX_VALUE_BYTES).unwrap_or(i32::MAX),
        Format::Keyguard | Format::SimpleKeystore => MAX_FOREIGN_VALUE_BYTES,
    };
    for (limit, value) in [
        (Limit::SQLITE_LIMIT_LENGTH, length),
        (Limit::SQLITE_LIMIT_SQL_LENGTH, 64 * 1024),
        (Limit::SQLITE_LIMIT_COLUMN, 256),
        (Limit::SQLITE_LIMIT_EXPR_DEPTH, 100),
        (Limit::SQLITE_LIMIT_COMPOUND_SELECT, 50),
        (Limit::SQLITE_LIMIT_VDBE_OP, 25_000),
        (Limit::SQLITE_LIMIT_FUNCTION_ARG, 32),
        (Limit::SQLITE_LIMIT_ATTACHED, 0),
        (Limit::SQLITE_LIMIT_LIKE_PATTERN_LENGTH, 100),
        (Limit::SQLITE_LIMIT_VARIABLE_NUMBER, 16),
        (Limit::SQLITE_LIMIT_TRIGGER_DEPTH, 1),
        (Limit::SQLITE_LIMIT_WORKER_THREADS, 0),
        (Limit::SQLITE_LIMIT_SCHEMA, 1_000),
    ] {
        conn.set_limit(limit, value)?;
    }
    // Before the authorizer, which lets none of them pass. Checks are expressions of whoever made the file.
    conn.execute_batch(
        "PRAGMA cell_size_check = ON; PRAGMA mmap_size = 0; PRAGMA cache_size = -2048; PRAGMA temp_store = MEMORY;
            PRAGMA ignore_check_constraints = ON;",
    )?;
    let (told, ticks) = (stop.told(), Arc::clone(ticks));
    let late = move || {
        let left = ticks.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        left.is_err() || told.load(Ordering::Relaxed)
    };
    conn.progress_handler(STEPS_OF_TICK, Some(late))?;
    conn.authorizer(Some(move |context: AuthContext<'_>| authorization(format, &context)))
}

/// The functions that a statement of ours or the default of a column may name. The check for damage looks at those of columns, and
/// runs none of them.
const FUNCTIONS: [&str; 9] =
    ["count", "current_timestamp", "current_date", "current_time", "datetime", "date", "time", "strftime", "unixepoch"];

/// What statements of ours do, and none that hides in the file.
fn authorization(format: Format, context: &AuthContext<'_>) -> Authorization {
    let ours = |name: &str| {
        let is_meta = format == Format::Snapshot && own::META.name.eq_ignore_ascii_case(name);
        is_meta || format.tables().iter().any(|table| table.name.eq_ignore_ascii_case(name))
    };
    let allowed = match context.action {
        // A view or a trigger asks in its own name.
        _ if context.accessor.is_some() => false,
        AuthAction::Function { function_name } => {
            FUNCTIONS.iter().any(|known| known.eq_ignore_ascii_case(function_name))
        }
        AuthAction::Select | AuthAction::Transaction { operation: TransactionOperation::Begin } => true,
        AuthAction::Read { table_name, .. } => {
            ours(table_name) || matches!(table_name, "sqlite_master" | "sqlite_schema")
        }
        AuthAction::Pragma { pragma_name, pragma_value } => {
            matches!(pragma_name, "table_xinfo" | "quick_check") && pragma_value.is_some_and(ours)
        }
        _ => false,
    };
    if allowed { Authorization::Allow } else { Authorization::Deny }
}

fn wrong(error: rusqlite::Error) -> FileError {
    FileError::of_reading(&error)
}
