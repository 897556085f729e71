//! Files that are damaged, something else, or made to do harm.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use keyguard_snapshot::file::{FileError, Folder};
use keyguard_snapshot::item::{Item, Row};
use keyguard_snapshot::read::{Format, Reader};
use proptest::prelude::*;
use rusqlite::Connection;

use crate::foreign::{KEYGUARD, SIMPLE_KEYSTORE, database};
use crate::samples::*;

const FORMATS: [Format; 3] = [Format::Snapshot, Format::Keyguard, Format::SimpleKeystore];

fn open(folder: &Path, name: &str, format: Format) -> Result<Reader, FileError> {
    Reader::open(&Folder::open(folder).unwrap(), &file_name(name), format)
}

/// Reads a file whatever is in it: to its end, or to a clear error.
fn read_all(folder: &Path, name: &str, format: Format) -> Result<u64, FileError> {
    let begun = Instant::now();
    let rows = open(folder, name, format).and_then(|mut reader| {
        let mut rows = 0;
        loop {
            match reader.next_rows()?.len() {
                0 => return Ok(rows),
                more => rows += more as u64,
            }
        }
    });
    assert!(begun.elapsed() < Duration::from_secs(10), "{rows:?} took {:?}", begun.elapsed());
    rows
}

/// What the changes to a sound database lead to.
fn after(base: &[&str], format: Format, statements: &[&str]) -> Result<u64, FileError> {
    let folder = tempfile::tempdir().unwrap();
    database(folder.path(), "x.db", base);
    database(folder.path(), "x.db", statements);
    read_all(folder.path(), "x.db", format)
}

#[test]
fn what_is_no_ordinary_file_is_not_read() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    write(folder.path(), "real", &[header()]).unwrap();
    symlink(at("real"), at("link")).unwrap();
    symlink(at("nowhere"), at("dangling")).unwrap();
    fs::create_dir(at("directory")).unwrap();
    assert!(Command::new("mkfifo").arg(at("fifo")).status().unwrap().success());
    for name in ["link", "dangling", "directory", "fifo"] {
        assert_eq!(read_all(folder.path(), name, Format::Snapshot), Err(FileError::NotAFile), "{name}");
    }
    assert_eq!(read_all(folder.path(), "none", Format::Snapshot), Err(FileError::NoFile));
    assert_eq!(read_all(folder.path(), "real", Format::Snapshot), Ok(1));
}

#[test]
fn what_does_not_begin_as_a_database_is_none() {
    let folder = tempfile::tempdir().unwrap();
    for content in [&b""[..], b"SQLite format 3", b"SQLite format 3\0", b"SQLite format 2\0............", &[0; 4096]] {
        fs::write(folder.path().join("x"), content).unwrap();
        for format in FORMATS {
            assert_eq!(read_all(folder.path(), "x", format), Err(FileError::NotADatabase), "{content:?}");
        }
    }
    // It begins as one, and that is all.
    let head = [b"SQLite format 3\0".as_slice(), &[1; 5000]].concat();
    fs::write(folder.path().join("x"), head).unwrap();
    for format in FORMATS {
        assert!(read_all(folder.path(), "x", format).is_err());
    }
}

#[test]
fn a_read_only_file_in_a_read_only_folder_is_read() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "a", &store()).unwrap();
    let mode = |mode| fs::Permissions::from_mode(mode);
    fs::set_permissions(folder.path().join("a"), mode(0o400)).unwrap();
    fs::set_permissions(folder.path(), mode(0o500)).unwrap();
    assert_eq!(read_all(folder.path(), "a", Format::Snapshot), Ok(store().len() as u64));
    fs::set_permissions(folder.path(), mode(0o700)).unwrap();
}

#[test]
fn a_database_that_is_not_closed_is_not_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.db");
    database(folder.path(), "x.db", &[SIMPLE_KEYSTORE]);
    let conn = Connection::open(&path).unwrap();
    conn.execute_batch("PRAGMA journal_mode = WAL; INSERT INTO keystore (name, encrypted_key) VALUES ('a', 'b')")
        .unwrap();
    assert_eq!(read_all(folder.path(), "x.db", Format::SimpleKeystore), Err(FileError::Unfinished));
    // Closed, it is whole, though its header still says WAL.
    conn.close().unwrap();
    assert!(!folder.path().join("x.db-wal").exists());
    assert_eq!(read_all(folder.path(), "x.db", Format::SimpleKeystore), Ok(1));
    let names = fs::read_dir(folder.path()).unwrap().count();
    assert_eq!(names, 1, "reading makes no files");
    fs::write(folder.path().join("x.db-wal"), "").unwrap();
    assert_eq!(read_all(folder.path(), "x.db", Format::SimpleKeystore), Ok(1));
    for suffix in ["-wal", "-journal"] {
        let beside = folder.path().join(format!("x.db{suffix}"));
        fs::write(&beside, "x").unwrap();
        assert_eq!(read_all(folder.path(), "x.db", Format::SimpleKeystore), Err(FileError::Unfinished));
        fs::remove_file(&beside).unwrap();
        symlink("elsewhere", &beside).unwrap();
        assert_eq!(read_all(folder.path(), "x.db", Format::SimpleKeystore), Err(FileError::Unfinished));
        fs::remove_file(&beside).unwrap();
    }
}

#[test]
fn a_folder_of_any_name_will_do() {
    let folder = tempfile::tempdir().unwrap();
    let odd = folder.path().join("a b?c=d&mode=rwc#%41\u{e9}");
    fs::create_dir(&odd).unwrap();
    write(&odd, "a", &[header()]).unwrap();
    assert_eq!(read_all(&odd, "a", Format::Snapshot), Ok(1));
    database(&odd, "w", &[SIMPLE_KEYSTORE, "PRAGMA journal_mode = WAL"]);
    assert_eq!(read_all(&odd, "w", Format::SimpleKeystore), Ok(0));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn a_database_that_somebody_writes_to_is_not_read() {
    let folder = tempfile::tempdir().unwrap();
    database(folder.path(), "x.db", &[SIMPLE_KEYSTORE]);
    let conn = Connection::open(folder.path().join("x.db")).unwrap();
    conn.execute_batch("PRAGMA journal_mode = MEMORY; BEGIN EXCLUSIVE").unwrap();
    assert_eq!(read_all(folder.path(), "x.db", Format::SimpleKeystore), Err(FileError::Busy));
}

#[test]
fn what_is_no_ordinary_table_is_not_read() {
    let columns = "id, name, expiration_in_sse, active, batch, source, login, encrypted_key, created_at";
    let view = format!("CREATE VIEW keystore AS SELECT {columns} FROM other");
    let spinning = "CREATE VIEW keystore AS WITH RECURSIVE n(id) AS (SELECT 1 UNION ALL SELECT id + 1 FROM n)
        SELECT id, '' AS name, 0 AS expiration_in_sse, 1 AS active, '' AS batch, '' AS source, '' AS login, '' AS encrypted_key,
        '' AS created_at FROM n";
    let fts = format!("CREATE VIRTUAL TABLE keystore USING fts5({columns})");
    let rtree = "CREATE VIRTUAL TABLE keystore USING rtree(id, name, expiration_in_sse)".to_owned();
    let without = format!("CREATE TABLE keystore ({columns}, PRIMARY KEY (id)) WITHOUT ROWID");
    let generated =
        "CREATE TABLE keystore (id, name AS ('x'), expiration_in_sse, active, batch, source, login, encrypted_key,
        created_at)";
    let another = format!("CREATE TABLE keystore ({columns}, more AS (zeroblob(1000000000)))");
    let hidden = format!("CREATE TABLE keystore ({columns}, rowid)");
    let few = "CREATE TABLE keystore (id, name)";
    let other = format!("CREATE TABLE other ({columns})");
    for statement in [&*view, spinning, &fts, &rtree, &without, generated, &another, &hidden, few, &other] {
        let statements: &[&str] =
            if statement.starts_with("CREATE VIEW") { &[&other, statement] } else { &[statement] };
        assert_eq!(after(statements, Format::SimpleKeystore, &[]), Err(FileError::OtherFormat), "{statement}");
    }
    // A plain one does, in any case and with other columns and indexes beside.
    let plain = format!("CREATE TABLE KeyStore (more, {}, CHECK (length(name) < 5))", columns.to_uppercase());
    let row = "INSERT INTO keystore (id, name, encrypted_key) VALUES (1, 'a', 'b')";
    assert_eq!(
        after(&[&plain, row, "CREATE INDEX i ON keystore (upper(name)) WHERE id > 0"], Format::SimpleKeystore, &[]),
        Ok(1)
    );
}

#[test]
fn what_else_a_schema_does_is_not_run() {
    let row = "INSERT INTO keystore (name, encrypted_key) VALUES ('a', 'b')";
    for statement in [
        "CREATE TRIGGER t AFTER INSERT ON keystore BEGIN DELETE FROM keystore; END",
        "CREATE VIEW v AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n",
        "CREATE VIRTUAL TABLE f USING fts5(a)",
        "CREATE VIRTUAL TABLE r USING rtree(a, b, c)",
        "CREATE VIEW keystores AS SELECT * FROM keystore",
    ] {
        assert_eq!(after(&[SIMPLE_KEYSTORE, row, statement], Format::SimpleKeystore, &[]), Ok(1), "{statement}");
    }
    // A check that runs for ever, on a row that is there.
    let checked =
        "CREATE TABLE keystore (id INTEGER PRIMARY KEY, name, expiration_in_sse, active, batch, source, login,
        encrypted_key, created_at, CHECK (name NOT LIKE '%x%'))";
    let insert =
        "PRAGMA ignore_check_constraints = 1; INSERT INTO keystore (name, active, encrypted_key) VALUES ('x', 1, 'y')";
    assert_eq!(after(&[checked, insert], Format::SimpleKeystore, &[]), Ok(1));
    // Functions in defaults, which a column added later is read by.
    let by_function =
        "CREATE TABLE keystore (id INTEGER PRIMARY KEY, name, expiration_in_sse, active, batch, source, login,
        encrypted_key, created_at DEFAULT (hex(randomblob(1000000))))";
    assert!(after(&[by_function], Format::SimpleKeystore, &[]).is_err());
}

#[test]
fn a_schema_that_says_one_thing_and_is_another_is_not_read() {
    let virtual_table =
        "UPDATE sqlite_master SET sql = 'CREATE VIRTUAL TABLE keystore USING fts5(a)' WHERE name = 'keystore'";
    let view = "UPDATE sqlite_master SET sql = 'CREATE VIEW keystore AS SELECT 1' WHERE name = 'keystore'";
    let other = "UPDATE sqlite_master SET sql = 'CREATE TABLE other (id)' WHERE name = 'keystore'";
    let spaced =
        "UPDATE sqlite_master SET sql = 'create  virtual table keystore using fts5(a)' WHERE name = 'keystore'";
    let nowhere = "UPDATE sqlite_master SET rootpage = 99999 WHERE name = 'keystore'";
    let schema = "UPDATE sqlite_master SET rootpage = 1 WHERE name = 'keystore'";
    let twice = "INSERT INTO sqlite_master SELECT * FROM sqlite_master WHERE name = 'keystore'";
    let first = "UPDATE sqlite_master SET type = 'view' WHERE name = 'keystore'";
    for update in [virtual_table, view, other, spaced, nowhere, schema, twice, first] {
        let folder = tempfile::tempdir().unwrap();
        database(folder.path(), "x.db", &[SIMPLE_KEYSTORE]);
        database(folder.path(), "x.db", &["PRAGMA writable_schema = ON", update]);
        let read = read_all(folder.path(), "x.db", Format::SimpleKeystore);
        assert!(matches!(read, Err(FileError::OtherFormat | FileError::Damaged)), "{update} gave {read:?}");
    }
}

#[test]
fn statistics_of_the_file_do_not_decide_how_it_is_read() {
    let rows = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 3000)
        INSERT INTO keystore (id, name, encrypted_key) SELECT i, 'a', i FROM n";
    let index = "CREATE INDEX everything ON keystore (name, id, expiration_in_sse, active, batch, source, login, encrypted_key, created_at);
        ANALYZE; UPDATE sqlite_stat1 SET stat = '1 1 1 1 1 1 1 1 1 1'";
    assert_eq!(after(&[SIMPLE_KEYSTORE, rows, index], Format::SimpleKeystore, &[]), Ok(3_000));
}

#[test]
fn rowids_go_from_the_lowest_to_the_highest() {
    let rows = "INSERT INTO keystore (id, name, encrypted_key) VALUES (-9223372036854775808, 'a', 'b'), (0, 'a', 'c'),
        (9223372036854775807, 'a', 'd')";
    assert_eq!(after(&[SIMPLE_KEYSTORE, rows], Format::SimpleKeystore, &[]), Ok(3));
    let huge = "INSERT INTO keystore (id, name, encrypted_key) VALUES (9223372036854775807, 'a', zeroblob(2000000))";
    assert_eq!(after(&[SIMPLE_KEYSTORE, huge], Format::SimpleKeystore, &[]), Ok(1));
}

/// A snapshot changed by these statements.
fn changed(statements: &[&str]) -> Result<Vec<Row>, FileError> {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "a", &store()).unwrap();
    database(folder.path(), "a", statements);
    read(folder.path(), "a", Format::Snapshot)
}

#[test]
fn a_snapshot_of_a_later_version_says_so() {
    assert_eq!(changed(&["UPDATE keyguard_meta SET value = 2 WHERE key = 'format'"]), Err(FileError::LaterFormat));
    for statement in [
        "UPDATE keyguard_meta SET value = 0 WHERE key = 'format'",
        "UPDATE keyguard_meta SET value = 'x' WHERE key = 'format'",
        "DELETE FROM keyguard_meta WHERE key = 'format'",
        "DELETE FROM keyguard_meta WHERE key = 'store'",
        "UPDATE keyguard_meta SET value = 'a/b' WHERE key = 'store'",
        "UPDATE keyguard_meta SET value = -1 WHERE key = 'next_id'",
        "DELETE FROM keyguard_meta",
    ] {
        assert_eq!(changed(&[statement]), Err(FileError::Damaged), "{statement}");
    }
    assert_eq!(changed(&["DROP TABLE keyguard_meta"]), Err(FileError::OtherFormat));
    assert_eq!(changed(&["DROP TABLE keyguard_values"]), Err(FileError::OtherFormat));
    assert_eq!(changed(&["ALTER TABLE keyguard_keys DROP COLUMN packed"]), Err(FileError::OtherFormat));
}

#[test]
fn rows_of_a_snapshot_that_cannot_be_taken_over_are_skipped() {
    for (statement, table, rows) in [
        ("UPDATE keyguard_orgs SET packed = x'01'", "keyguard_orgs", 2),
        ("UPDATE keyguard_orgs SET name = ''", "keyguard_orgs", 2),
        ("UPDATE keyguard_orgs SET id = id + 100", "keyguard_orgs", 2),
        ("UPDATE keyguard_orgs SET meters = 'x'", "keyguard_orgs", 2),
        ("UPDATE keyguard_keys SET packed = (SELECT packed FROM keyguard_orgs)", "keyguard_keys", 4),
        ("UPDATE keyguard_keys SET packed = hex(packed)", "keyguard_keys", 4),
        ("UPDATE keyguard_keys SET id = -id", "keyguard_keys", 4),
        ("UPDATE keyguard_keys SET meta = '[]'", "keyguard_keys", 4),
        ("UPDATE keyguard_keys SET meters = x'ff'", "keyguard_keys", 4),
        ("UPDATE keyguard_keys SET last_used_ms = -1", "keyguard_keys", 4),
        ("UPDATE keyguard_keys SET last_used_ms = 253402300800000", "keyguard_keys", 4),
        ("UPDATE keyguard_address_rules SET net = '192.0.2.1/24'", "keyguard_address_rules", 2),
        ("UPDATE keyguard_address_rules SET kind = 'ALLOW'", "keyguard_address_rules", 2),
        ("UPDATE keyguard_address_rules SET made_by = ''", "keyguard_address_rules", 2),
        ("UPDATE keyguard_address_rules SET strikes = 0", "keyguard_address_rules", 2),
        ("UPDATE keyguard_address_rules SET strikes = 256", "keyguard_address_rules", 2),
        ("UPDATE keyguard_address_rules SET strikes_until_ms = NULL, strikes = 1", "keyguard_address_rules", 2),
        ("UPDATE keyguard_accounts SET meters = x''", "keyguard_accounts", 1),
        ("UPDATE usage_logs SET id = 'f47ac10b-58cc-4372-a567-0e02b2c3d4' || (10 + rowid)", "usage_logs", 6),
        ("UPDATE usage_logs SET key_id = (SELECT id FROM organizations)", "usage_logs", 6),
        ("UPDATE usage_logs SET status_code = -1", "usage_logs", 6),
        ("UPDATE keyguard_meta SET value = 'other' WHERE key = 'store'", "usage_logs", 6),
        ("UPDATE keyguard_usage SET at_ms = -1", "keyguard_usage", 7),
        ("UPDATE keyguard_usage SET path = x'2f'", "keyguard_usage", 7),
        ("UPDATE keyguard_usage SET path = hex(zeroblob(4097))", "keyguard_usage", 7),
        ("UPDATE keyguard_usage_hours SET requests = -1", "keyguard_usage_hours", 1),
        ("UPDATE keyguard_usage_days SET day = 2147483648", "keyguard_usage_days", 1),
        ("UPDATE keyguard_usage_days SET key_id = 0", "keyguard_usage_days", 1),
        ("UPDATE keyguard_usage_totals SET errors = 'many'", "keyguard_usage_totals", 3),
        ("UPDATE keyguard_values SET packed = 'text'", "keyguard_values", 1),
        ("UPDATE keyguard_values SET name = char(0)", "keyguard_values", 1),
    ] {
        let read = changed(&[statement]).unwrap();
        assert_eq!(read.len(), store().len(), "{statement}");
        let skipped: Vec<_> = read.iter().filter(|row| matches!(row, Row::Skipped(_))).collect();
        assert_eq!(skipped.len(), rows, "{statement}: {skipped:?}");
        assert!(
            skipped.iter().all(|row| matches!(row, Row::Skipped(skipped) if skipped.table == table)),
            "{statement}"
        );
    }
}

/// Small files of every format, to be damaged.
fn sound(folder: &Path, format: Format) -> Vec<u8> {
    match format {
        Format::Snapshot => _ = write(folder, "sound", &store()).unwrap(),
        Format::Keyguard => database(
            folder,
            "sound",
            &[
                KEYGUARD,
                "INSERT INTO organizations VALUES ('o', 'Initech', 'active', NULL)",
                "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 150)
                    INSERT INTO api_keys SELECT i, 'o', 'l', 'p', printf('%064x', i), 1, '[]', 60, NULL, NULL, NULL, NULL FROM n",
                "INSERT INTO usage_logs SELECT id, id, '/', 'GET', 200, 1, '', '2026-11-22 12:00:00' FROM api_keys",
            ],
        ),
        Format::SimpleKeystore => database(
            folder,
            "sound",
            &[
                SIMPLE_KEYSTORE,
                "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 90)
                    INSERT INTO keystore (name, encrypted_key) SELECT 'n' || i, hex(zeroblob(i * 30)) || i FROM n",
            ],
        ),
    }
    fs::read(folder.join("sound")).unwrap()
}

#[test]
fn a_truncated_file_is_damaged() {
    for format in FORMATS {
        let folder = tempfile::tempdir().unwrap();
        let sound = sound(folder.path(), format);
        assert_eq!(sound.len() % 4096, 0);
        for length in (0..sound.len()).step_by(4096).chain((0..sound.len()).step_by(3_001)) {
            fs::write(folder.path().join("x"), &sound[..length]).unwrap();
            let read = read_all(folder.path(), "x", format);
            assert!(matches!(read, Err(FileError::Damaged | FileError::NotADatabase)), "{length} bytes gave {read:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn a_damaged_file_gives_rows_or_an_error(
        format in 0..3_usize,
        length in any::<Option<prop::sample::Index>>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        close in any::<bool>(),
    ) {
        let format = FORMATS[format];
        let folder = tempfile::tempdir().unwrap();
        let mut bytes = sound(folder.path(), format);
        for (index, byte) in changes {
            // Half of them where the pages say what is in them.
            let index = index.index(bytes.len());
            bytes[if close { index / 4096 * 4096 + index % 120 } else { index }] ^= byte;
        }
        if let Some(length) = length {
            bytes.truncate(length.index(bytes.len()));
        }
        fs::write(folder.path().join("x"), &bytes).unwrap();
        for format in FORMATS {
            let _ = read_all(folder.path(), "x", format);
        }
    }
}

#[test]
fn a_tree_that_is_a_ring_is_damaged() {
    let folder = tempfile::tempdir().unwrap();
    let rows = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 5000)
        INSERT INTO keystore (name, encrypted_key) SELECT hex(zeroblob(100)), i FROM n";
    database(folder.path(), "x.db", &[SIMPLE_KEYSTORE, rows]);
    let mut bytes = fs::read(folder.path().join("x.db")).unwrap();
    let root: u32 = Connection::open(folder.path().join("x.db"))
        .and_then(|conn| {
            conn.query_row("SELECT rootpage FROM sqlite_schema WHERE name = 'keystore'", [], |row| row.get(0))
        })
        .unwrap();
    let page = (root as usize - 1) * 4096;
    assert_eq!(bytes[page], 5, "an interior page of a table");
    // The last child of the root is the root.
    bytes[page + 8..page + 12].copy_from_slice(&root.to_be_bytes());
    fs::write(folder.path().join("x.db"), bytes).unwrap();
    assert_eq!(read_all(folder.path(), "x.db", Format::SimpleKeystore), Err(FileError::Damaged));
}

#[test]
fn the_look_at_a_file_before_its_first_row_ends_when_told() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "a", &store()).unwrap();
    let folder = Folder::open(folder.path()).unwrap();
    let opened = Reader::open_with(&folder, &file_name("a"), Format::Snapshot, |interrupter| interrupter.interrupt());
    assert_eq!(opened.err(), Some(FileError::Stopped));
}

#[test]
fn a_snapshot_keeps_what_it_said_when_it_was_opened() {
    let folder = tempfile::tempdir().unwrap();
    let mut items = vec![header()];
    items.extend((1..2_000).map(|id| key(id, vault("v", None, id))));
    write(folder.path(), "a", &items).unwrap();
    let mut reader = open(folder.path(), "a", Format::Snapshot).unwrap();
    reader.next_rows().unwrap();
    // Nobody can write to it meanwhile.
    let conn = Connection::open(folder.path().join("a")).unwrap();
    conn.busy_timeout(Duration::ZERO).unwrap();
    assert!(conn.execute_batch("DELETE FROM keyguard_keys").is_err());
    let mut rows = 1;
    loop {
        match reader.next_rows().unwrap() {
            more if more.is_empty() => break,
            more => rows += more.iter().filter(|row| matches!(row, Row::Item(Item::Key(_)))).count(),
        }
    }
    assert_eq!(rows, 2_000);
}
