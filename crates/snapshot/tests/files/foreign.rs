//! Databases of the two packages, as those write them.

use std::path::Path;

use keyguard_snapshot::file::FileError;
use keyguard_snapshot::item::{ForeignKey, ForeignOrg, ForeignSecret, Row, Usage};
use keyguard_snapshot::read::Format;
use rusqlite::Connection;

use crate::samples::*;

/// What SQLAlchemy makes of the models of `keyguard_python`, but for white space.
pub const KEYGUARD: &str = "
    CREATE TABLE organizations (id VARCHAR(36) NOT NULL, name VARCHAR NOT NULL, status VARCHAR,
        created_at DATETIME DEFAULT CURRENT_TIMESTAMP, PRIMARY KEY (id));
    CREATE TABLE api_keys (id VARCHAR(36) NOT NULL, org_id VARCHAR(36) NOT NULL, label VARCHAR NOT NULL, prefix VARCHAR NOT NULL,
        key_hash VARCHAR NOT NULL, is_active BOOLEAN, scopes JSON, rate_limit_per_minute INTEGER, monthly_limit BIGINT,
        created_at DATETIME DEFAULT CURRENT_TIMESTAMP, expires_at DATETIME, last_used_at DATETIME, PRIMARY KEY (id),
        FOREIGN KEY(org_id) REFERENCES organizations (id));
    CREATE UNIQUE INDEX ix_api_keys_key_hash ON api_keys (key_hash);
    CREATE TABLE usage_logs (id VARCHAR(36) NOT NULL, key_id VARCHAR(36) NOT NULL, path VARCHAR NOT NULL, method VARCHAR NOT NULL,
        status_code INTEGER NOT NULL, latency_ms INTEGER NOT NULL, ip_address VARCHAR NOT NULL,
        timestamp DATETIME DEFAULT CURRENT_TIMESTAMP, PRIMARY KEY (id), FOREIGN KEY(key_id) REFERENCES api_keys (id));";

pub const SIMPLE_KEYSTORE: &str = "CREATE TABLE IF NOT EXISTS keystore (id INTEGER PRIMARY KEY, name TEXT NOT NULL,
    expiration_in_sse INTEGER, active INTEGER DEFAULT 1, batch TEXT, source TEXT, login TEXT, encrypted_key TEXT UNIQUE,
    created_at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP, updated_at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP);";

/// A database that these statements make.
pub fn database(folder: &Path, name: &str, statements: &[&str]) {
    let conn = Connection::open(folder.join(name)).unwrap();
    conn.execute_batch("PRAGMA foreign_keys = OFF").unwrap();
    statements.iter().for_each(|statement| conn.execute_batch(statement).unwrap());
}

fn hash() -> String {
    "0123456789abcdef".repeat(4)
}

/// A key of the organization `o1` with these values in place of sound ones.
fn insert_key(id: &str, changed: &[(&str, &str)]) -> String {
    let (id_text, hash) = (format!("'{id}'"), format!("'{id}' || substr('{}', 1 + length('{id}'))", hash()));
    let mut columns = vec![
        ("id", &*id_text),
        ("org_id", "'o1'"),
        ("label", "'ci'"),
        ("prefix", "'kg_live_abcd'"),
        ("key_hash", &*hash),
        ("is_active", "1"),
        ("scopes", "'[\"read\"]'"),
        ("rate_limit_per_minute", "60"),
        ("monthly_limit", "NULL"),
        ("created_at", "'2026-11-22 12:00:00'"),
        ("expires_at", "NULL"),
        ("last_used_at", "NULL"),
    ];
    for (name, value) in changed {
        columns.iter_mut().find(|column| column.0 == *name).unwrap().1 = value;
    }
    let (names, values): (Vec<_>, Vec<_>) = columns.into_iter().unzip();
    format!("INSERT INTO api_keys ({}) VALUES ({});", names.join(","), values.join(","))
}

fn insert_secret(id: i64, changed: &[(&str, &str)]) -> String {
    let (id, token) = (id.to_string(), format!("CAST('gAA{id}' AS BLOB)"));
    let mut columns = vec![
        ("id", &*id),
        ("name", "'openai'"),
        ("expiration_in_sse", "0"),
        ("active", "1"),
        ("batch", "NULL"),
        ("source", "NULL"),
        ("login", "NULL"),
        ("encrypted_key", &*token),
        ("created_at", "'2026-11-22 12:00:00'"),
    ];
    for (name, value) in changed {
        columns.iter_mut().find(|column| column.0 == *name).unwrap().1 = value;
    }
    let (names, values): (Vec<_>, Vec<_>) = columns.into_iter().unzip();
    format!("INSERT INTO keystore ({}) VALUES ({});", names.join(","), values.join(","))
}

const ORG: &str = "INSERT INTO organizations VALUES ('o1', 'Initech', 'active', '2026-11-22 12:00:00');";

#[test]
fn a_database_of_keyguard_python_is_read_as_it_means_it() {
    let folder = tempfile::tempdir().unwrap();
    let full = insert_key(
        "aa",
        &[
            ("scopes", "'[\"read\", \"orders:*\"]'"),
            ("is_active", "0"),
            ("rate_limit_per_minute", "0"),
            ("monthly_limit", "10000"),
            ("created_at", "'2026-11-22 12:00:00.123456'"),
            ("expires_at", "'2026-11-23T12:00:00+00:00'"),
            ("last_used_at", "'2026-11-22 13:00:00.5+01:00'"),
        ],
    );
    let bare = insert_key(
        "bb",
        &[("scopes", "NULL"), ("rate_limit_per_minute", "NULL"), ("created_at", "NULL"), ("is_active", "NULL")],
    );
    let statements = [
        KEYGUARD,
        ORG,
        "INSERT INTO organizations VALUES ('o2', 'Initech', 'suspended', NULL), ('o3', 'Hooli', NULL, NULL);",
        &full,
        &bare,
        &insert_key("cc", &[("scopes", "'null'")]),
        "INSERT INTO usage_logs VALUES ('u1', 'aa', '/v1', 'GET', 404, 17, '192.0.2.7', '2026-11-22 12:00:00.250000'),
            ('u2', 'aa', '', '', 200, 0, '', '2026-11-22 12:00:01')",
    ];
    database(folder.path(), "k.db", &statements);
    let rows = read(folder.path(), "k.db", Format::Keyguard).unwrap();
    let noon = 1_795_348_800_000;
    let org = |rowid: i64, name: &str, is_active, created_ms| {
        Row::ForeignOrg(ForeignOrg { rowid, id: format!("o{rowid}"), name: name.to_owned(), is_active, created_ms })
    };
    assert_eq!(
        rows[..3],
        [org(1, "Initech", true, Some(noon)), org(2, "Initech", false, None), org(3, "Hooli", true, None),]
    );
    let bytes = |first: u8| {
        let mut bytes: [u8; 32] = [0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef].repeat(4).try_into().unwrap();
        bytes[0] = first;
        bytes
    };
    let full = ForeignKey {
        rowid: 1,
        id: "aa".to_owned(),
        org: "o1".to_owned(),
        label: "ci".to_owned(),
        start: "kg_live_abcd".to_owned(),
        hash: bytes(0xaa),
        is_active: false,
        scopes: vec!["read".to_owned(), "orders:*".to_owned()],
        per_minute: 0,
        per_month: Some(10_000),
        created_ms: Some(noon + 123),
        expires_ms: Some(noon + 86_400_000),
        last_used_ms: Some(noon + 500),
    };
    let bare = ForeignKey {
        rowid: 2,
        id: "bb".to_owned(),
        hash: bytes(0xbb),
        scopes: Vec::new(),
        per_minute: 60,
        per_month: None,
        created_ms: None,
        expires_ms: None,
        last_used_ms: None,
        ..full.clone()
    };
    let with_null = ForeignKey {
        rowid: 3,
        id: "cc".to_owned(),
        hash: bytes(0xcc),
        is_active: true,
        created_ms: Some(noon),
        ..bare.clone()
    };
    let keys = [full, bare, with_null].map(|key| Row::ForeignKey(Box::new(key)));
    assert_eq!(rows[3..6], keys);
    let used =
        Usage { path: Some("/v1".to_owned()), status: Some(404), latency_ms: Some(17), ..usage(noon + 250, 0, 0) };
    let blank = Usage { path: None, method: None, ip: None, latency_ms: Some(0), ..usage(noon + 1_000, 0, 0) };
    let uses = [used, blank].map(|usage| Row::ForeignUse { key: "aa".to_owned(), usage });
    assert_eq!(rows[6..], uses);
}

#[test]
fn a_key_that_cannot_be_taken_over_stops_no_other() {
    let bad = [
        ("id", "''"),
        ("id", "zeroblob(4)"),
        ("org_id", "'nobody'"),
        ("org_id", "'o-bad'"),
        ("label", "''"),
        ("label", "char(7)"),
        ("label", "hex(zeroblob(129))"),
        ("label", "CAST(x'ff' AS TEXT)"),
        ("prefix", "''"),
        ("prefix", "'kg live'"),
        ("prefix", "hex(zeroblob(20))"),
        ("key_hash", "''"),
        ("key_hash", "substr(hex(zeroblob(32)), 2)"),
        ("key_hash", "substr(hex(zeroblob(32)), 2) || 'g'"),
        ("key_hash", "substr(hex(zeroblob(32)), 3) || '\u{e9}'"),
        ("key_hash", "zeroblob(32)"),
        ("is_active", "2"),
        ("is_active", "x'01'"),
        ("scopes", "''"),
        ("scopes", "'{}'"),
        ("scopes", "'[1]'"),
        ("scopes", "'[\"a b\"]'"),
        ("scopes", "'[\"\"]'"),
        ("scopes", "'\"read\"'"),
        ("scopes", "x'5b5d'"),
        ("scopes", "'[' || replace(hex(zeroblob(32)), '0', '\"x\",') || '\"x\"]'"),
        ("scopes", "replace(hex(zeroblob(5000)), '00', '[')"),
        ("rate_limit_per_minute", "-1"),
        ("rate_limit_per_minute", "1000000000001"),
        ("rate_limit_per_minute", "1.5"),
        ("monthly_limit", "-1"),
        ("created_at", "'yesterday'"),
        ("created_at", "x'00'"),
        ("expires_at", "'1969-12-31 23:59:59'"),
        ("expires_at", "'10000-01-01 00:00:00'"),
        ("last_used_at", "'2026-02-30 00:00:00'"),
    ];
    let folder = tempfile::tempdir().unwrap();
    let mut statements = vec![KEYGUARD.to_owned(), ORG.to_owned()];
    statements.push("INSERT INTO organizations VALUES ('o-bad', '', 'active', NULL)".to_owned());
    statements.extend(bad.iter().enumerate().map(|(index, changed)| insert_key(&format!("{index:02x}"), &[*changed])));
    statements.push(insert_key("ff", &[]));
    let statements: Vec<&str> = statements.iter().map(String::as_str).collect();
    database(folder.path(), "k.db", &statements);
    let rows = read(folder.path(), "k.db", Format::Keyguard).unwrap();
    assert_eq!(rows.len(), 2 + bad.len() + 1);
    for (row, bad) in rows[2..].iter().zip(&bad) {
        let Row::Skipped(skipped) = row else { panic!("{bad:?} gave {row:?}") };
        assert_eq!(skipped.table, "api_keys");
        assert!(!skipped.why.is_empty());
    }
    assert!(matches!(&rows[1], Row::Skipped(skipped) if (skipped.table, skipped.rowid) == ("organizations", 2)));
    assert!(matches!(rows.last(), Some(Row::ForeignKey(key)) if key.id == "ff"));
}

#[test]
fn rows_of_the_log_that_cannot_be_taken_over_are_skipped() {
    let folder = tempfile::tempdir().unwrap();
    let rows = [
        "('1', '', '/', 'GET', 200, 1, '', '2026-11-22 12:00:00')",
        "('2', 'k', '/', 'GET', -1, 1, '', '2026-11-22 12:00:00')",
        "('3', 'k', '/', 'GET', 70000, 1, '', '2026-11-22 12:00:00')",
        "('4', 'k', '/', 'GET', 200, -1, '', '2026-11-22 12:00:00')",
        "('5', 'k', '/', 'GET', 200, 4294967296, '', '2026-11-22 12:00:00')",
        "('6', 'k', '/', 'GET', 200, 1, '', NULL)",
        "('7', 'k', '/', 'GET', 200, 1, '', '1')",
        "('8', 'k', x'2f', 'GET', 200, 1, '', '2026-11-22 12:00:00')",
        "('9', 'k', hex(zeroblob(5000)), 'GET', 200, 1, '', '2026-11-22 12:00:00')",
    ];
    let all = format!("INSERT INTO usage_logs VALUES {}", rows.join(","));
    database(folder.path(), "k.db", &[KEYGUARD, &all]);
    let read = read(folder.path(), "k.db", Format::Keyguard).unwrap();
    assert_eq!(read.len(), rows.len());
    assert!(read.iter().all(|row| matches!(row, Row::Skipped(_))), "{read:?}");
}

#[test]
fn a_database_of_simple_keystore_is_read_as_it_means_it() {
    let folder = tempfile::tempdir().unwrap();
    let statements = [
        SIMPLE_KEYSTORE,
        // Python's sqlite3 stores bytes as a blob.
        &insert_secret(1, &[("batch", "'b1'"), ("source", "'web'"), ("login", "'me@example.com'")]),
        &insert_secret(2, &[("encrypted_key", "'gAAAAAB-_='"), ("expiration_in_sse", "1795348800")]),
        &insert_secret(-3, &[("expiration_in_sse", "1795348800.9"), ("active", "0"), ("batch", "''")]),
        &insert_secret(4, &[("expiration_in_sse", "NULL"), ("active", "NULL")]),
        &insert_secret(5, &[("expiration_in_sse", "0.5"), ("active", "7")]),
    ];
    database(folder.path(), "s.db", &statements);
    let noon = 1_795_348_800_000;
    let first = ForeignSecret {
        id: 1,
        name: "openai".to_owned(),
        token: "gAA1".to_owned(),
        expires_ms: None,
        is_active: true,
        batch: Some("b1".to_owned()),
        source: Some("web".to_owned()),
        login: Some("me@example.com".to_owned()),
        created_ms: Some(noon),
    };
    let bare = ForeignSecret { batch: None, source: None, login: None, ..first.clone() };
    let token = |token: &str| token.to_owned();
    let expected = [
        ForeignSecret { id: -3, token: token("gAA-3"), expires_ms: Some(noon), is_active: false, ..bare.clone() },
        first,
        ForeignSecret { id: 2, token: token("gAAAAAB-_="), expires_ms: Some(noon), ..bare.clone() },
        ForeignSecret { id: 4, token: token("gAA4"), is_active: false, ..bare.clone() },
        ForeignSecret { id: 5, token: token("gAA5"), expires_ms: Some(1_000), ..bare },
    ];
    let rows = read(folder.path(), "s.db", Format::SimpleKeystore).unwrap();
    assert_eq!(rows, expected.map(|secret| Row::ForeignSecret(Box::new(secret))));
}

#[test]
fn a_secret_that_cannot_be_taken_over_stops_no_other() {
    let bad = [
        ("name", "''"),
        ("name", "char(10)"),
        ("name", "x'61'"),
        ("expiration_in_sse", "-1"),
        ("expiration_in_sse", "9223372036854775807"),
        ("expiration_in_sse", "1e300"),
        ("expiration_in_sse", "-0.5"),
        ("expiration_in_sse", "'soon'"),
        ("batch", "char(7)"),
        ("login", "zeroblob(3)"),
        ("encrypted_key", "NULL"),
        ("encrypted_key", "''"),
        ("encrypted_key", "'keyguard:17:AAAA'"),
        ("encrypted_key", "x'ff'"),
        ("created_at", "'now'"),
    ];
    let folder = tempfile::tempdir().unwrap();
    let mut statements = vec![SIMPLE_KEYSTORE.to_owned()];
    statements.extend(bad.iter().enumerate().map(|(index, changed)| insert_secret(index as i64, &[*changed])));
    // A value longer than any that can be taken over, in the middle and at the end of what is read at once.
    let huge = |id| insert_secret(id, &[("batch", "hex(zeroblob(600000))")]);
    statements.extend([huge(50), insert_secret(51, &[]), huge(52)]);
    let statements: Vec<&str> = statements.iter().map(String::as_str).collect();
    database(folder.path(), "s.db", &statements);
    let rows = read(folder.path(), "s.db", Format::SimpleKeystore).unwrap();
    for (row, bad) in rows.iter().zip(&bad) {
        assert!(matches!(row, Row::Skipped(_)), "{bad:?} gave {row:?}");
    }
    let last = &rows[bad.len()..];
    assert!(matches!(last[0], Row::Skipped(skipped) if (skipped.rowid, skipped.why) == (50, "a value is too long")));
    assert!(matches!(&last[1], Row::ForeignSecret(secret) if secret.id == 51));
    assert!(matches!(last[2], Row::Skipped(skipped) if skipped.rowid == 52));
    assert_eq!(last.len(), 3);
}

#[test]
fn the_log_of_keyguard_python_need_not_be_there() {
    let folder = tempfile::tempdir().unwrap();
    database(folder.path(), "k.db", &[KEYGUARD, ORG, "DROP TABLE usage_logs"]);
    assert_eq!(read(folder.path(), "k.db", Format::Keyguard).unwrap().len(), 1);
    database(folder.path(), "k.db", &["DROP TABLE api_keys"]);
    assert_eq!(read(folder.path(), "k.db", Format::Keyguard), Err(FileError::OtherFormat));
}

#[test]
fn a_snapshot_is_also_a_database_of_the_packages() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "a.sqlite", &store()).unwrap();
    let rows = read(folder.path(), "a.sqlite", Format::Keyguard).unwrap();
    // Its keys have no hash that anybody else could use.
    let skipped: Vec<_> = rows.iter().filter(|row| matches!(row, Row::Skipped(_))).collect();
    assert_eq!((rows.len(), skipped.len()), (10, 2));
    let rows = read(folder.path(), "a.sqlite", Format::SimpleKeystore).unwrap();
    assert!(
        matches!(&*rows, [Row::ForeignSecret(secret), Row::Skipped(_)] if secret.id == 12 && secret.name == "openai")
    );
}
