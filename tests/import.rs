//! Imports: what stands in a SQLite file comes into a store, record by record, each as a whole or not at all.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
};

use keyguard_core::{
    digest::foreign_digest,
    fernet,
    keyring::{Label, Pepper},
    record::{ApiRecord, VaultRecord},
    secret::Secret,
};
use redis::Value;
use rusqlite::{Connection, params};

use crate::harness::{
    Client, KEYRING, OTHER_KEYRING, Reply, Server, Setup, Sut, args, contains, eventually, expect, now_ms, populate,
    populate_store, server_tests, usage_written,
};

server_tests![
    every_api_key_of_keyguard_python_goes_on_working,
    what_an_api_key_was_and_may_is_what_the_file_says,
    keys_that_begin_alike_are_told_apart,
    organizations_of_one_name_get_a_number,
    what_keyguard_python_logged_is_in_the_log_and_the_statistics,
    what_is_there_already_becomes_what_the_file_says_when_told_so,
    every_secret_of_simple_keystore_is_revealed_as_it_was,
    a_snapshot_comes_back_as_it_was,
    a_snapshot_becomes_a_store_of_another_name,
    a_snapshot_meets_records_that_are_there,
    a_snapshot_that_lies_damages_no_store,
    what_is_revoked_stays_so_whatever_a_snapshot_says,
    usage_is_written_down_where_an_import_held_it_back,
    usage_of_a_snapshot_goes_on_where_a_crash_broke_it_off,
    lines_older_than_the_log_are_counted_and_not_logged,
    usage_of_a_snapshot_is_not_taken_for_that_of_other_keys,
    a_snapshot_of_another_keyring_is_left_out_record_by_record,
    check_tells_what_would_be_done_and_does_nothing,
    a_damaged_file_is_an_error_and_nothing_is_written,
    replicas_and_the_append_only_file_get_what_was_imported,
    one_import_at_a_time,
    replaced_data_and_a_deleted_store_end_an_import,
    full_memory_holds_an_import_up,
    paused_writes_hold_an_import_up,
    a_server_that_shuts_down_ends_an_import,
    what_a_call_lacks_is_an_error_at_once,
];

/// The secret key of the `keyguard_python` whose files these are.
const OLD_SECRET: &str = "super-secret-admin-key-change-me";

/// The key of the `simple_keystore`.
const FERNET: &str = "cw_0x689RpI-jtRR7oE8h_eQsKImvJapLeSbXpwF4e4=";

fn setup(sut: &Sut) -> Setup {
    let mut keyring: serde_json::Value = serde_json::from_str(KEYRING).unwrap();
    keyring["peppers"] = serde_json::json!({ "old": OLD_SECRET });
    keyring["fernet"] = serde_json::json!({ "keystore": FERNET });
    sut.setup().keyring(&keyring.to_string())
}

fn path(server: &Server, file: &str) -> PathBuf {
    server.directory().join("snapshots").join(file)
}

/// Waits until the import into a store has ended; what STATUS says then.
fn ended(c: &mut Client, store: &str) -> Value {
    eventually("the import ending", || {
        let status = c.ok(args!["KG.IMPORT", store, "STATUS"]);
        expect(status.field("state").text() != "running", || format!("{status:?}")).map(|()| status)
    })
}

/// An import, which must go through.
fn import(c: &mut Client, store: &str, rest: &str) -> Value {
    assert_eq!(c.ok(format!("KG.IMPORT {store} FROM {rest}")).text(), "OK");
    let status = ended(c, store);
    assert_eq!(status.field("state").text(), "done", "{status:?}");
    status
}

/// Counts of STATUS.
fn counts<const N: usize>(status: &Value, fields: [&str; N]) -> [i64; N] {
    fields.map(|field| status.field(field).int())
}

fn whys(status: &Value) -> BTreeSet<String> {
    status.field("skips").list().iter().map(|skip| skip.field("why").text()).collect()
}

/// An API key as `keyguard_python` has it.
struct Key {
    raw: String,
    org: usize,
    label: String,
    is_active: bool,
    scopes: &'static str,
    per_minute: i64,
    per_month: Option<i64>,
    expires: Option<&'static str>,
}

const ORGS: [(&str, &str); 4] =
    [("Acme Inc.", "active"), ("M\u{fc}ller & S\u{f6}hne", "active"), ("Gone", "suspended"), ("Acme Inc.", "active")];

/// Keys of every kind.
fn keys(count: usize) -> Vec<Key> {
    let key = |n: usize| {
        // As secrets.token_urlsafe(32) makes them: 43 of A-Z a-z 0-9 _ -, which never have our checksum.
        let body: String = foreign_digest(&pepper("x"), n.to_string().as_bytes())
            .as_bytes()
            .iter()
            .chain(&[n as u8; 11])
            .map(|byte| {
                char::from(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"[*byte as usize % 64])
            })
            .collect();
        Key {
            raw: format!("{}{body}", ["kg_live_", "kg_live_", "acme_", ""][n % 4]),
            org: n / 4 % ORGS.len(),
            label: format!("key {n}"),
            is_active: n % 10 != 3,
            scopes: ["[\"read\", \"orders:*\"]", "[]", "null", "[\"*\"]"][n % 4],
            per_minute: if n % 50 == 7 { 0 } else { 60 + n as i64 },
            per_month: n.is_multiple_of(3).then_some(100_000),
            expires: [None, Some("2999-12-31 23:59:59.000000"), Some("2020-01-01 00:00:00.000000")]
                [if n % 20 == 9 { 2 } else { n % 2 }],
        }
    };
    (0..count).map(key).collect()
}

impl Key {
    /// What AUTH answers.
    fn code(&self) -> &'static str {
        if !self.is_active || self.per_minute == 0 {
            "DISABLED"
        } else if self.expires.is_some_and(|at| at.starts_with("2020")) {
            "EXPIRED"
        } else if ORGS[self.org].1 == "suspended" {
            "ORG_SUSPENDED"
        } else {
            "VALID"
        }
    }
}

fn pepper(text: &str) -> Pepper {
    Pepper::new(Label::parse("old").unwrap(), text.as_bytes()).unwrap()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The tables of `keyguard_python` 0.3.0, as SQLAlchemy makes them.
const KEYGUARD_TABLES: &str = "
    CREATE TABLE organizations (id VARCHAR(36) NOT NULL, name VARCHAR NOT NULL, status VARCHAR,
        created_at DATETIME DEFAULT CURRENT_TIMESTAMP, PRIMARY KEY (id));
    CREATE TABLE api_keys (id VARCHAR(36) NOT NULL, org_id VARCHAR(36) NOT NULL, label VARCHAR NOT NULL,
        prefix VARCHAR NOT NULL, key_hash VARCHAR NOT NULL, is_active BOOLEAN, scopes JSON, rate_limit_per_minute INTEGER,
        monthly_limit BIGINT, created_at DATETIME DEFAULT CURRENT_TIMESTAMP, expires_at DATETIME, last_used_at DATETIME,
        PRIMARY KEY (id), FOREIGN KEY(org_id) REFERENCES organizations (id));
    CREATE UNIQUE INDEX ix_api_keys_key_hash ON api_keys (key_hash);
    CREATE TABLE usage_logs (id VARCHAR(36) NOT NULL, key_id VARCHAR(36) NOT NULL, path VARCHAR NOT NULL,
        method VARCHAR NOT NULL, status_code INTEGER NOT NULL, latency_ms INTEGER NOT NULL, ip_address VARCHAR NOT NULL,
        timestamp DATETIME DEFAULT CURRENT_TIMESTAMP, PRIMARY KEY (id),
        FOREIGN KEY(key_id) REFERENCES api_keys (id));";

/// A database of `keyguard_python` with these keys.
fn keyguard_file(server: &Server, file: &str, keys: &[Key]) {
    let mut db = Connection::open(path(server, file)).unwrap();
    db.execute_batch(KEYGUARD_TABLES).unwrap();
    let inserting = db.transaction().unwrap();
    for (n, (name, status)) in ORGS.iter().enumerate() {
        let row = params![format!("org-{n}"), name, status, "2025-02-03 04:05:06"];
        inserting.execute("INSERT INTO organizations VALUES (?, ?, ?, ?)", row).unwrap();
    }
    for (n, key) in keys.iter().enumerate() {
        let hash = hex(foreign_digest(&pepper(OLD_SECRET), key.raw.as_bytes()).as_bytes());
        let last_used = (n % 2 == 0).then_some("2025-06-07 08:09:10.123456");
        let row = params![
            format!("00000000-0000-4000-8000-{n:012}"),
            format!("org-{}", key.org),
            key.label,
            &key.raw[..12],
            hash,
            key.is_active,
            key.scopes,
            key.per_minute,
            key.per_month,
            "2025-03-04 05:06:07",
            key.expires,
            last_used,
        ];
        inserting.execute("INSERT INTO api_keys VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row).unwrap();
    }
    inserting.commit().unwrap();
}

fn every_api_key_of_keyguard_python_goes_on_working(sut: &Sut) {
    const FIELDS: [&str; 4] = ["organizations", "api_keys", "imported", "skipped"];
    let server = setup(sut).start();
    let mut c = server.client();
    let keys = keys(1000);
    keyguard_file(&server, "old.db", &keys);
    let status = import(&mut c, "acme", "old.db FORMAT keyguard PEPPER old");
    assert_eq!(counts(&status, FIELDS), [4, 1000, 1004, 0]);
    assert_eq!(counts(&status, ["rows", "total", "check", "replaced"]), [1004, 1004, 0, 0]);
    assert_eq!(c.ok("KG.COUNTKEYS acme TYPE api").int(), 1000);
    assert_eq!(c.ok("HGET acme foreign_keys").text(), "1000");
    let again = import(&mut c, "acme", "old.db FORMAT keyguard PEPPER old");
    assert_eq!(counts(&again, FIELDS), [0, 0, 0, 1004], "what is there is left as it is");
    for (n, key) in keys.iter().enumerate() {
        let reply = c.ok(args!["KG.AUTH", "acme", key.raw]);
        assert_eq!(reply.field("code").text(), key.code(), "key {n}");
        assert_eq!(reply.field("label").text(), key.label);
    }
    let old = c.ok("KG.KEYRING STATUS").list()[1].clone();
    let refused = keys.iter().filter(|key| key.code() != "VALID").count();
    assert_eq!(old.field("records").int(), refused as i64, "those let in are under our own key now");
    // Their digests are others now, and still they are the same.
    let again = import(&mut c, "acme", "old.db FORMAT keyguard PEPPER old");
    assert_eq!(counts(&again, FIELDS), [0, 0, 0, 1004]);
    for (n, key) in keys.iter().enumerate() {
        assert_eq!(c.code(args!["KG.AUTH", "acme", key.raw]), key.code(), "key {n}");
    }
    assert_eq!(c.info_number("keyguard", "keyguard_imports_done"), 3);
    assert_eq!(c.info_number("keyguard", "keyguard_import_running"), 0);
    assert!(!server.log().contains(OLD_SECRET));
}

fn what_an_api_key_was_and_may_is_what_the_file_says(sut: &Sut) {
    let server = setup(sut).start();
    let mut c = server.client();
    let keys = keys(60);
    keyguard_file(&server, "old.db", &keys);
    import(&mut c, "acme", "old.db FORMAT keyguard PEPPER old");
    let shown: BTreeMap<String, Value> =
        c.ok("KG.LISTKEYS acme").list().iter().map(|key| (key.field("label").text(), key.clone())).collect();
    for (n, key) in keys.iter().enumerate() {
        let shown = &shown[&key.label];
        let name = if key.org == 3 { "Acme Inc. (2)" } else { ORGS[key.org].0 };
        assert_eq!(shown.field("org").text(), name);
        assert_eq!(shown.field("start").text(), key.raw[..12]);
        assert_eq!(shown.field("created_at").int(), 1_741_064_767_000);
        assert_eq!(shown.field("imported").int(), 1);
        assert_eq!(shown.field("meta").text(), format!(r#"{{"imported_id":"00000000-0000-4000-8000-{n:012}"}}"#));
        let expected: Option<Vec<String>> = serde_json::from_str(key.scopes).unwrap();
        let scopes: Vec<String> = shown.field("scopes").list().iter().map(Reply::text).collect();
        assert_eq!(scopes, expected.unwrap_or_default());
        let limits: Vec<String> = shown.field("limits").list().iter().map(Reply::text).collect();
        let limit = (key.per_minute > 0).then(|| format!("{} 60000ms requests", key.per_minute));
        assert_eq!(limits, limit.into_iter().collect::<Vec<_>>());
        let quotas: Vec<String> = shown.field("quotas").list().iter().map(Reply::text).collect();
        assert_eq!(quotas.len(), usize::from(key.per_month.is_some()), "{quotas:?}");
        assert!(quotas.iter().all(|quota| quota.contains("100000") && quota.contains("month")), "{quotas:?}");
        assert_eq!(shown.get("expires_at").is_some(), key.expires.is_some());
        let used = shown.get("last_used_at").map(|at| at.int());
        assert_eq!(used, (n % 2 == 0).then_some(1_749_283_750_123));
        let status = if key.is_active && key.per_minute > 0 { "active" } else { "inactive" };
        assert_eq!(shown.field("status").text(), status);
    }
    // Rotating one makes it one of ours, with what it started with.
    let (n, key) = keys.iter().enumerate().find(|(n, key)| n % 4 == 2 && key.code() == "VALID").unwrap();
    let id = shown[&keys[n].label].field("id").int();
    let raw = c.ok(args!["KG.ROTATE", "acme", id]).list()[1].text();
    assert!(raw.starts_with("acme_"), "{raw}");
    assert_eq!([&key.raw, &raw].map(|raw| c.code(args!["KG.AUTH", "acme", raw])), ["NOT_FOUND", "VALID"]);
}

fn keys_that_begin_alike_are_told_apart(sut: &Sut) {
    let server = setup(sut).start();
    let mut c = server.client();
    let mut keys = keys(300);
    for (n, key) in keys.iter_mut().enumerate() {
        // Of a long prefix the visible beginning shows nothing else.
        *key = Key {
            raw: format!("mycompany_live_{}", key.raw),
            label: "web".to_owned(),
            org: n % 2,
            ..keys_of_one_kind()
        };
    }
    keyguard_file(&server, "old.db", &keys);
    let status = import(&mut c, "acme", "old.db FORMAT keyguard PEPPER old");
    assert_eq!(counts(&status, ["api_keys", "skipped"]), [300, 0]);
    c.refused("NOTUNIQUE", "KG.REVOKE acme START mycompany_li");
    let starts = c.ok("HGETALL {acme}:starts:li").list()[1].text();
    assert!(starts.split(',').count() <= 65, "the index does not grow with each of them: {starts}");
    for key in &keys {
        assert_eq!(c.code(args!["KG.AUTH", "acme", key.raw]), "VALID");
    }
    // Used, rotated, renamed: they are the same, and what was rotated away does not come back. Organizations have the ids before.
    let ids: Vec<i64> = (5..305).collect();
    c.ok(args!["KG.ROTATE", "acme", ids[290]]);
    c.ok(args!["KG.SETKEY", "acme", ids[291], "NAME", "renamed"]);
    c.ok(args!["KG.SETKEY", "acme", ids[5], "META", "{}"]);
    let again = import(&mut c, "acme", "old.db FORMAT keyguard PEPPER old");
    assert_eq!(counts(&again, ["imported", "skipped"]), [0, 304]);
    assert_eq!(c.code(args!["KG.AUTH", "acme", keys[290].raw]), "NOT_FOUND");
    assert_eq!(c.ok("KG.COUNTKEYS acme TYPE api").int(), 300);
    for ids in ids.chunks(100) {
        let command = args!["KG.DELKEY", "acme"].into_iter().chain(ids.iter().map(|id| id.to_string().into_bytes()));
        assert_eq!(c.ok(command.collect::<Vec<_>>()).int(), 100);
    }
    assert_eq!(c.ok("HGET acme foreign_keys").text(), "0");
}

/// A key that is let in.
fn keys_of_one_kind() -> Key {
    let (raw, label) = (String::new(), String::new());
    Key { raw, label, org: 0, is_active: true, scopes: "[]", per_minute: 60, per_month: None, expires: None }
}

fn organizations_of_one_name_get_a_number(sut: &Sut) {
    let server = setup(sut).start();
    let mut c = server.client();
    keyguard_file(&server, "old.db", &keys(200));
    let status = import(&mut c, "acme", "old.db FORMAT keyguard PEPPER old");
    let names: Vec<String> = c.ok("KG.LISTORGS acme").list().iter().map(|org| org.field("name").text()).collect();
    assert_eq!(names, ["Acme Inc.", "M\u{fc}ller & S\u{f6}hne", "Gone", "Acme Inc. (2)"]);
    let keys_of: Vec<i64> = c.ok("KG.LISTORGS acme").list().iter().map(|org| org.field("keys").int()).collect();
    assert_eq!(keys_of, [52, 52, 48, 48]);
    assert_eq!(c.ok("KG.GETORG acme Gone").field("status").text(), "suspended");
    // That, and keys that are inactive by their limit, is told of.
    let skips = status.field("skips").list().to_vec();
    let told: Vec<(String, i64)> =
        skips.iter().map(|skip| (skip.field("table").text(), skip.field("rowid").int())).collect();
    assert_eq!(told[0], ("organizations".to_owned(), 4));
    assert_eq!(told[1..].iter().map(|(_, rowid)| *rowid).collect::<Vec<_>>(), [8, 58, 108, 158]);
    assert!(whys(&status).iter().all(|why| !why.contains("Acme")), "what stands in a row is not told");
}

fn what_keyguard_python_logged_is_in_the_log_and_the_statistics(sut: &Sut) {
    const ROWS: i64 = 1000;
    let server = setup(sut).counting_usage().start();
    let mut c = server.client();
    let keys = keys(8);
    keyguard_file(&server, "old.db", &keys);
    let now_s = now_ms() / 1000;
    let mut db = Connection::open(path(&server, "old.db")).unwrap();
    let inserting = db.transaction().unwrap();
    // One in four an hour and more ago, the first one beyond what a log keeps; one in ten an error.
    let ago_s = |n: i64| match n {
        0 => 400 * 24 * 3600,
        n if n % 4 == 0 => 3 * 3600,
        n => [60, 50, 40][n as usize % 4 - 1] - n % 30,
    };
    // They were logged in the order of their times.
    let mut order: Vec<i64> = (0..ROWS).collect();
    order.sort_by_key(|n| -ago_s(*n));
    for n in order {
        let ago_s = ago_s(n);
        let row = params![
            format!("use-{n}"),
            format!("00000000-0000-4000-8000-{:012}", n % 8),
            format!("/orders/{n}?token=hunter2"),
            "GET",
            if n % 10 == 0 { 500 } else { 200 },
            n % 100,
            format!("192.0.2.{}", n % 250),
            format!("@{}", now_s - ago_s),
        ];
        let sql = "INSERT INTO usage_logs VALUES (?, ?, ?, ?, ?, ?, ?, datetime(substr(?, 2), 'unixepoch'))";
        inserting.execute(sql, row).unwrap();
    }
    inserting.commit().unwrap();
    drop(db);
    let told = import(&mut c, "acme", "old.db FORMAT keyguard PEPPER old CHECK");
    let status = import(&mut c, "acme", "old.db FORMAT keyguard PEPPER old");
    assert_eq!(counts(&status, ["usage", "skipped", "api_keys"]), [ROWS, 0, 8]);
    assert_eq!(counts(&told, ["usage", "skipped", "api_keys"]), [ROWS, 0, 8]);
    let stats = c.ok("KG.STATS acme");
    assert_eq!(counts(&stats, ["requests", "logged", "errors"]), [ROWS, ROWS, ROWS / 10]);
    assert_eq!(stats.field("requests_last_hour").int(), ROWS * 3 / 4);
    assert_eq!(stats.field("log_entries").int(), ROWS - 1);
    let ids: Vec<i64> = c.ok("KG.LISTKEYS acme").list().iter().map(|key| key.field("id").int()).collect();
    for id in &ids {
        assert_eq!(c.ok(args!["KG.STATS", "acme", "KEY", id]).field("requests").int(), ROWS / 8);
    }
    let entry = c.ok("KG.USAGE acme COUNT 1").list()[1].list()[0].clone();
    assert!(ids.contains(&entry.field("id").int()) && entry.field("path").text().starts_with("/orders/"));
    assert_eq!((entry.field("method").text(), entry.field("status").int() / 100 > 1), ("GET".into(), true));
    assert!(!format!("{:?}", c.ok("XRANGE {acme}:usage - +")).contains("hunter2"));
    // What was done since comes behind it, and what is known is not counted twice.
    assert_eq!(c.code(args!["KG.AUTH", "acme", keys[0].raw]), "VALID");
    let again = import(&mut c, "acme", "old.db FORMAT keyguard PEPPER old");
    assert_eq!(counts(&again, ["usage", "imported", "skipped"]), [0, 0, 12 + ROWS]);
    assert_eq!(c.ok("KG.STATS acme").field("requests").int(), ROWS + 1);
    assert_eq!(
        c.ok("HGET acme active_keys").text(),
        keys.iter().filter(|key| key.is_active && key.per_minute > 0).count().to_string()
    );
}

fn what_is_there_already_becomes_what_the_file_says_when_told_so(sut: &Sut) {
    let server = setup(sut).start();
    let mut c = server.client();
    let keys = keys(8);
    keyguard_file(&server, "old.db", &keys);
    import(&mut c, "acme", "old.db FORMAT keyguard PEPPER old");
    let before = c.ok("KG.LISTKEYS acme");
    let state = c.state();
    let ids: Vec<i64> = before.list().iter().map(|key| key.field("id").int()).collect();
    assert_eq!(c.code(args!["KG.AUTH", "acme", keys[0].raw]), "VALID");
    c.ok(args!["KG.SETKEY", "acme", ids[0], "NAME", "renamed", "ACTIVE", "no", "SCOPES", "x", "CLEAR", "quotas"]);
    c.ok(args!["KG.SETKEY", "acme", ids[1], "LIMIT", "1", "1h"]);
    c.ok(args!["KG.REVOKE", "acme", ids[4]]);
    c.ok(args!["KG.SETORG", "acme", "Gone", "STATUS", "active"]);
    let skipped = import(&mut c, "acme", "old.db FORMAT keyguard PEPPER old ONCONFLICT skip");
    assert_eq!(counts(&skipped, ["imported", "skipped"]), [0, 12]);
    assert_eq!(c.ok(args!["KG.GETKEY", "acme", ids[0]]).field("label").text(), "renamed");
    let status = import(&mut c, "acme", "old.db FORMAT keyguard PEPPER old ONCONFLICT replace");
    assert_eq!(counts(&status, ["imported", "replaced", "skipped"]), [11, 11, 1]);
    assert!(whys(&status).contains("it is there and revoked, which is final"));
    for (id, before) in ids.iter().zip(before.list()) {
        let shown = c.ok(args!["KG.GETKEY", "acme", id]);
        for field in ["label", "status", "scopes", "limits", "quotas", "meta", "org"] {
            if *id == ids[4] && field == "status" {
                assert_eq!(shown.field(field).text(), "revoked");
            } else {
                assert_eq!(shown.field(field), before.field(field), "{field} of {id}");
            }
        }
    }
    assert_eq!(c.ok("KG.GETORG acme Gone").field("status").text(), "suspended");
    let active = c.ok("KG.COUNTKEYS acme TYPE api ACTIVE yes").int();
    assert_eq!(c.ok("HGET acme active_keys").text(), active.to_string());
    assert_eq!(c.code(args!["KG.AUTH", "acme", keys[0].raw]), "VALID");
    assert_eq!(c.keys().len(), state.len() + 1, "the window of the one key that was used, and nothing else");
}

const KEYSTORE_TABLE: &str =
    "CREATE TABLE keystore (id INTEGER PRIMARY KEY, name TEXT NOT NULL, expiration_in_sse INTEGER,
    active INTEGER DEFAULT 1, batch TEXT, source TEXT, login TEXT, encrypted_key TEXT UNIQUE,
    created_at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP, updated_at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP);";

fn secret(n: usize) -> String {
    format!("sk-example-{}-{}", n % 990, "\u{e9}".repeat(n % 40))
}

/// A database of `simple_keystore` with so many keys.
fn keystore_file(server: &Server, file: &str, count: usize) {
    let key = fernet::Key::parse(FERNET).unwrap();
    let mut db = Connection::open(path(server, file)).unwrap();
    db.execute_batch(KEYSTORE_TABLE).unwrap();
    let inserting = db.transaction().unwrap();
    for n in 0..count {
        let mut iv = [0; 16];
        iv[..8].copy_from_slice(&(n as u64).to_be_bytes());
        let token = fernet::encrypt(&key, &Secret::from_slice(secret(n).as_bytes()), 1_600_000_000 + n as u64, iv);
        let row = params![
            format!("vendor {}", n % 7),
            [Some(0_i64), None, Some(4_000_000_000), Some(1_500_000_000)][n % 4],
            i64::from(n % 5 != 0),
            (n % 3 == 0).then(|| format!("b{}", n % 2)),
            (n % 2 == 0).then_some("web"),
            (n % 11 == 0).then_some("ops@example.com"),
            token,
            "2024-05-06 07:08:09",
        ];
        let sql =
            "INSERT INTO keystore (name, expiration_in_sse, active, batch, source, login, encrypted_key, created_at)
            VALUES (?, ?, ?, ?, ?, ?, ?, ?)";
        inserting.execute(sql, row).unwrap();
    }
    inserting.commit().unwrap();
}

fn every_secret_of_simple_keystore_is_revealed_as_it_was(sut: &Sut) {
    let server = setup(sut).start();
    let mut c = server.client();
    c.ok("KG.ADDKEY acme another some-other-secret");
    keystore_file(&server, "keys.db", 1000);
    let status = import(&mut c, "acme", "keys.db FORMAT simple_keystore FERNET keystore");
    assert_eq!(counts(&status, ["vault_keys", "imported", "skipped", "rows"]), [1000, 1000, 0, 1000]);
    for n in 0..1000 {
        let id = n as i64 + 2;
        assert_eq!(c.ok(args!["KG.REVEAL", "acme", id]).text(), secret(n), "key {n}");
        let shown = c.ok(args!["KG.GETKEY", "acme", id]);
        let text = |field| shown.get(field).map(|value| value.text());
        assert_eq!(text("name"), Some(format!("vendor {}", n % 7)));
        assert_eq!(text("source"), (n % 2 == 0).then(|| "web".to_owned()));
        assert_eq!(text("login"), (n % 11 == 0).then(|| "ops@example.com".to_owned()));
        assert_eq!(text("batch"), (n % 3 == 0).then(|| format!("b{}", n % 2)));
        assert_eq!(text("status").as_deref(), Some(if n % 5 == 0 { "inactive" } else { "active" }));
        let expires = [None, None, Some(4_000_000_000_000), Some(1_500_000_000_000)][n % 4];
        assert_eq!(shown.get("expires_at").map(|at| at.int()), expires);
        assert_eq!(shown.field("created_at").int(), 1_714_979_289_000);
        assert!(c.ok(args!["KG.FINDKEY", "acme", secret(n)]).ints().contains(&id));
    }
    let again = import(&mut c, "acme", "keys.db FORMAT simple_keystore FERNET keystore");
    assert_eq!(counts(&again, ["imported", "skipped"]), [0, 1000]);
    c.ok("KG.SETKEY acme 3 ACTIVE no EXPIREIN 1h");
    let again = import(&mut c, "acme", "keys.db FORMAT simple_keystore FERNET keystore ONCONFLICT replace");
    assert_eq!(counts(&again, ["imported", "replaced", "skipped"]), [1000, 1000, 0]);
    let shown = c.ok("KG.GETKEY acme 3");
    assert!(shown.field("active").int() == 1 && shown.get("expires_at").is_none());
    assert_eq!(c.ok("KG.COUNTKEYS acme").int(), 1001);
    assert_eq!(c.ok(args!["KG.ACQUIRE", "acme", "vendor 1"]).field("code").text(), "ACQUIRED");
    // Under the key of another keystore nothing opens.
    let db = Connection::open(path(&server, "keys.db")).unwrap();
    let other = fernet::Key::parse("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=").unwrap();
    let token = fernet::encrypt(&other, &Secret::from_slice(b"hunter2"), 0, [0; 16]);
    db.execute("UPDATE keystore SET encrypted_key = ? WHERE id = 1", [token]).unwrap();
    db.execute("UPDATE keystore SET encrypted_key = 'hunter2' WHERE id = 2", []).unwrap();
    drop(db);
    let status = import(&mut c, "beta", "keys.db FORMAT simple_keystore FERNET keystore");
    assert_eq!(counts(&status, ["imported", "skipped"]), [998, 2]);
    let text = format!("{:?}", whys(&status));
    assert!(text.contains("another key") && text.contains("not a Fernet token") && !text.contains("hunter2"), "{text}");
}

/// Writes a snapshot of a store.
fn snapshot(c: &mut Client, store: &str, file: &str) {
    c.ok(args!["KG.SNAPSHOT", store, "TO", file]);
    eventually("the snapshot ending", || {
        let status = c.ok(args!["KG.SNAPSHOT", store, "STATUS"]);
        expect(status.field("state").text() == "done", || format!("{status:?}"))
    });
}

/// The keys of a store, with their states, that an import brings back: not what addresses claimed, nor the usage log.
fn state_of_store(c: &mut Client, store: &str) -> Vec<(String, String)> {
    let tag = format!("{{{store}}}:");
    let mut state = c.state();
    state.retain(|(key, _)| {
        key.strip_prefix(&tag).is_some_and(|kind| !["ip:", "usage", "stats"].iter().any(|left| kind.starts_with(left)))
    });
    let left: BTreeMap<String, String> = state.into_iter().collect();
    left.into_iter().collect()
}

/// What a header says, but of which run of a server it is.
fn header(c: &mut Client, store: &str) -> BTreeMap<String, String> {
    let fields = c.ok(args!["HGETALL", store]).fields();
    let text = |value: &Value| value.text();
    let header = fields.iter().map(|(field, value)| (field.clone(), text(value)));
    header.filter(|(field, value)| field != "run_id" && value != "0").collect()
}

fn a_snapshot_comes_back_as_it_was(sut: &Sut) {
    let server = setup(sut).start();
    let mut c = server.client();
    let sample = populate(&mut c);
    keyguard_file(&server, "old.db", &keys(5));
    import(&mut c, "acme", "old.db FORMAT keyguard PEPPER old");
    c.ok("KG.SETSTORE acme TZ Europe/Berlin IPTHRESHOLD 50");
    snapshot(&mut c, "acme", "acme.sqlite");
    let (before, said) = (state_of_store(&mut c, "acme"), header(&mut c, "acme"));
    let listed = c.ok("KG.LISTKEYS acme");
    c.ok("FLUSHALL");
    let status = import(&mut c, "acme", "acme.sqlite FORMAT snapshot");
    assert_eq!(status.field("skipped").int(), 0, "{status:?}");
    assert_eq!(header(&mut c, "acme"), said);
    let after = state_of_store(&mut c, "acme");
    for (one, other) in before.iter().zip(&after) {
        assert_eq!(one, other);
    }
    assert_eq!(after.len(), before.len());
    assert_eq!(c.ok("KG.LISTKEYS acme"), listed);
    for raw in &sample.rotated {
        assert_eq!(c.code(args!["KG.AUTH", "acme", raw, "IP", "192.0.2.77"]), "VALID");
    }
    assert_eq!(c.code(args!["KG.AUTH", "acme", sample.revoked]), "DISABLED");
    // The windows are as full as they were: three of five were used.
    let left = c.ok(args!["KG.AUTH", "acme", sample.limited, "SCOPE", "read"]).field("remaining").int();
    assert_eq!(left, 1);
    // Once more: all is there.
    let again = import(&mut c, "acme", "acme.sqlite FORMAT snapshot");
    assert_eq!(again.field("imported").int(), 0, "{again:?}");
}

/// The address rules of a store, without how long they still hold.
fn rules(c: &mut Client, store: &str) -> Vec<String> {
    let listed = c.ok(args!["KG.LISTIPS", store]).list()[1].clone();
    let rule = |rule: &Value| {
        let fields = rule.fields().into_iter().filter(|(field, _)| field != "retry_after_ms");
        format!("{:?}", fields.collect::<Vec<_>>())
    };
    listed.list().iter().map(rule).collect()
}

fn a_snapshot_becomes_a_store_of_another_name(sut: &Sut) {
    let server = setup(sut).start();
    let mut c = server.client();
    let sample = populate(&mut c);
    snapshot(&mut c, "acme", "acme.sqlite");
    let status = import(&mut c, "copy", "acme.sqlite FORMAT snapshot");
    assert_eq!(status.field("skipped").int(), 0, "{status:?}");
    let listed = c.ok("KG.LISTKEYS acme");
    assert_eq!(c.ok("KG.LISTKEYS copy"), listed);
    assert_eq!(c.ok("KG.LISTORGS copy"), c.ok("KG.LISTORGS acme"));
    assert_eq!(rules(&mut c, "copy"), rules(&mut c, "acme"));
    assert_eq!(c.ok("KG.USABILITY copy"), c.ok("KG.USABILITY acme"));
    for key in listed.list() {
        if key.field("type").text() == "vault" {
            let id = key.field("id").int();
            let secret = c.ok(args!["KG.REVEAL", "acme", id]);
            assert_eq!(c.ok(args!["KG.REVEAL", "copy", id]), secret, "sealed for its new place");
            assert!(c.ok(args!["KG.FINDKEY", "copy", secret.text()]).ints().contains(&id));
        }
    }
    for raw in [&sample.plain, &sample.rotated[0], &sample.rotated[1]] {
        let command = |store| args!["KG.CHECK", store, raw, "IP", "192.0.2.77"];
        let (here, there) = (c.ok(command("acme")), c.ok(command("copy")));
        assert_eq!(here.field("code").text(), "VALID");
        for field in ["code", "id", "org", "quota_remaining"] {
            assert_eq!(here.get(field), there.get(field));
        }
    }
    // No id that the other store gave out is given out here.
    let next = c.ok("HGET acme next_id").text();
    assert_eq!(c.ok("KG.ADDKEY copy mail a-new-secret").int().to_string(), next);
    let next = c.ok("KG.ACQUIRE acme maps ORDER rotate").field("id").int();
    assert_eq!(c.ok("KG.ACQUIRE copy maps ORDER rotate").field("id").int(), next, "what was handed out is known");
}

fn a_snapshot_meets_records_that_are_there(sut: &Sut) {
    let server = setup(sut).start();
    let mut c = server.client();
    let sample = populate(&mut c);
    snapshot(&mut c, "acme", "acme.sqlite");
    let (before, listed) = (state_of_store(&mut c, "acme"), c.ok("KG.LISTKEYS acme"));
    c.ok("KG.SETKEY acme 1 NAME other SECRET a-secret-of-today ACTIVE no CLEAR limits");
    c.ok(args!["KG.SETKEY", "acme", sample.ids[1], "NAME", "renamed"]);
    c.ok("KG.DELKEY acme 3");
    c.ok("KG.UNBLOCKIP acme 192.0.2.7");
    let changed = c.ok("KG.LISTKEYS acme");
    let next_id = c.ok("HGET acme next_id").text();
    let status = import(&mut c, "acme", "acme.sqlite FORMAT snapshot");
    assert_eq!(counts(&status, ["vault_keys", "api_keys", "address_rules", "replaced"]), [1, 0, 1, 0]);
    let mut expected = changed.list().to_vec();
    let third = listed.list().iter().find(|key| key.field("id").int() == 3).unwrap();
    let place = expected.iter().position(|key| key.field("id").int() > 3).unwrap();
    expected.insert(place, third.clone());
    assert_eq!(c.ok("KG.LISTKEYS acme").list(), expected, "what was missing, and nothing else");
    let status = import(&mut c, "acme", "acme.sqlite FORMAT snapshot ONCONFLICT replace");
    let left_out = whys(&status);
    assert_eq!(left_out.into_iter().collect::<Vec<_>>(), ["the store has a usage log or statistics of its own"]);
    assert_eq!(c.ok("KG.LISTKEYS acme"), listed);
    let after = state_of_store(&mut c, "acme");
    for (one, other) in before.iter().zip(&after) {
        assert_eq!(one, other);
    }
    assert_eq!(after.len(), before.len());
    assert_eq!(c.ok("HGET acme next_id").text(), next_id, "and no id is given out twice");
    // An id that something else has here is left alone.
    c.ok("KG.ADDORG beta first");
    for n in 2..=6 {
        c.ok(args!["KG.ADDKEY", "beta", "mine", format!("a-secret-of-beta-{n}")]);
    }
    let status = import(&mut c, "beta", "acme.sqlite FORMAT snapshot ONCONFLICT replace");
    assert!(whys(&status).contains("an organization has its id"), "{status:?}");
    assert!(whys(&status).contains("a key has its id"), "{status:?}");
    assert!(whys(&status).contains("its organization is not in the store"), "{status:?}");
    assert_eq!(c.ok("KG.GETORG beta first").field("id").int(), 1);
}

/// A snapshot, changed by a statement.
fn changed(server: &Server, file: &str, sql: &str, params: impl rusqlite::Params) {
    fs::copy(path(server, "acme.sqlite"), path(server, file)).unwrap();
    assert!(Connection::open(path(server, file)).unwrap().execute(sql, params).unwrap() > 0, "{sql}");
}

fn a_snapshot_that_lies_damages_no_store(sut: &Sut) {
    let server = setup(sut).start();
    let mut c = server.client();
    let sample = populate(&mut c);
    c.ok("KG.SETSTORE acme TZ Europe/Berlin IPTHRESHOLD 50");
    snapshot(&mut c, "acme", "acme.sqlite");
    let id = sample.ids[1];
    // Settings that KG.SETSTORE does not take, ids that no list has room for, values of keys that there are not.
    for (n, sql) in [
        "UPDATE keyguard_meta SET value = 'Nowhere/City' WHERE key = 'tz'",
        "UPDATE keyguard_meta SET value = 60001 WHERE key = 'ip_threshold'",
        "UPDATE keyguard_meta SET value = 9223372036854775807 WHERE key = 'next_id'",
        "UPDATE keyguard_meta SET value = 1000000000000 WHERE key = 'next_id'",
        "INSERT INTO keyguard_values (name, packed) SELECT 'stats:77777', packed FROM keyguard_values WHERE name = 'stats:0'",
    ]
    .into_iter()
    .enumerate()
    {
        changed(&server, "lie", sql, []);
        let store = format!("copy{n}");
        import(&mut c, &store, "lie FORMAT snapshot");
        c.ok(format!("KG.NEWKEY {store} shop new"));
        c.ok(format!("KG.STATS {store} KEY {id} DAYS 1"));
        assert_eq!(c.code(args!["KG.AUTH", store, "no-key", "IP", "198.51.100.1"]), "NOT_FOUND", "{sql}");
        assert!(c.keys().iter().all(|key| !contains(key, b"stats:77777")), "{sql}");
    }
    // Digests that are another record's, or twice the same.
    let db = Connection::open(path(&server, "acme.sqlite")).unwrap();
    let packed = |id: i64| -> Vec<u8> {
        db.query_row("SELECT packed FROM keyguard_keys WHERE id = ?", [id], |row| row.get(0)).unwrap()
    };
    let (vault, api) = (packed(1), packed(id));
    let (vault, api) = (VaultRecord::decode(&vault).unwrap(), ApiRecord::decode(&api).unwrap());
    let stolen = VaultRecord { digest: api.issued.digest, ..vault }.encode().unwrap();
    let doubled = ApiRecord { previous: Some((api.issued, 4_000_000_000_000)), ..api.clone() }.encode().unwrap();
    for (record, packed, why) in [(1, stolen, "TAMPERED"), (id, doubled, "DUPLICATE")] {
        changed(&server, "lie", "UPDATE keyguard_keys SET packed = ? WHERE id = ?", params![packed, record]);
        c.ok("FLUSHALL");
        let status = import(&mut c, "acme", "lie FORMAT snapshot");
        assert_eq!(counts(&status, ["skipped"]), [1], "{status:?}");
        assert!(whys(&status).iter().all(|told| told.starts_with(why)), "{status:?}");
        let code = if record == 1 { "VALID" } else { "NOT_FOUND" };
        assert_eq!(c.code(args!["KG.AUTH", "acme", sample.plain, "IP", "192.0.2.77"]), code);
    }
}

fn what_is_revoked_stays_so_whatever_a_snapshot_says(sut: &Sut) {
    let server = setup(sut).start();
    let mut c = server.client();
    let sample = populate(&mut c);
    snapshot(&mut c, "acme", "acme.sqlite");
    c.ok(args!["KG.REVOKE", "acme", sample.ids[1]]);
    let status = import(&mut c, "acme", "acme.sqlite FORMAT snapshot ONCONFLICT replace");
    let why = whys(&status);
    assert_eq!(
        why.iter().filter(|why| !why.contains("usage")).collect::<Vec<_>>(),
        ["it is there and revoked, which is final"]
    );
    assert_eq!(c.code(args!["KG.AUTH", "acme", sample.plain, "IP", "192.0.2.77"]), "DISABLED");
}

fn usage_is_written_down_where_an_import_held_it_back(sut: &Sut) {
    let server = setup(sut).counting_usage().start();
    let mut c = server.client();
    keyguard_file(&server, "old.db", &keys(1000));
    c.ok("KG.ADDORG acme first");
    let log = args!["KG.LOG", "acme", 0, "PATH", "/x", "METHOD", "GET", "STATUS", 200, "LATENCY", 1];
    let command = args!["KG.IMPORT", "acme", "FROM", "old.db", "FORMAT", "keyguard", "PEPPER", "old"];
    let replies = c.pipeline(&[command, log.clone(), args!["SWAPDB", 0, 1], args!["SELECT", 1], log]);
    assert!(replies.iter().all(|reply| !reply.is_error()), "{replies:?}");
    usage_written(&mut c);
    assert_eq!(c.ok("XLEN {acme}:usage").int(), 2);
}

/// Puts lines of calls without a key into the log of a snapshot: so many, a millisecond from each to the next, up to this one.
fn log_more(server: &Server, file: &str, count: i64, last_ms: i64) {
    let mut db = Connection::open(path(server, file)).unwrap();
    let inserting = db.transaction().unwrap();
    inserting.execute("DELETE FROM keyguard_usage", []).unwrap();
    for at_ms in last_ms - count + 1..=last_ms {
        let sql = "INSERT INTO keyguard_usage (at_ms, seq, key_id, code) VALUES (?, 0, 0, 'NOT_FOUND')";
        inserting.execute(sql, [at_ms]).unwrap();
    }
    inserting.commit().unwrap();
}

/// The statistics of a store that do not depend on the clock, and those of a key.
fn statistics(c: &mut Client, store: &str, id: i64) -> (Vec<i64>, Value) {
    let stats = c.ok(args!["KG.STATS", store]);
    let counted = counts(&stats, ["requests", "refused", "logged", "errors"]).to_vec();
    (counted, c.ok(args!["KG.STATS", store, "KEY", id]))
}

fn usage_of_a_snapshot_goes_on_where_a_crash_broke_it_off(sut: &Sut) {
    const LINES: i64 = 20_000;
    const OWN: &str = "the store has a usage log or statistics of its own";
    for is_busy in [false, true] {
        let mut server = setup(sut).with("appendonly", "yes").with("appendfsync", "always").start();
        let mut c = server.client();
        let sample = populate_store(&mut c);
        for n in 0..110 {
            c.ok(args!["KG.ADDKEY", "acme", "many", format!("secret number {n}")]);
        }
        snapshot(&mut c, "acme", "acme.sqlite");
        log_more(&server, "acme.sqlite", LINES, now_ms());
        c.ok("FLUSHALL");
        import(&mut c, "acme", "acme.sqlite FORMAT snapshot");
        let (log, stats) = (c.ok("XRANGE {acme}:usage - +"), statistics(&mut c, "acme", sample.ids[0]));
        assert!(stats.0.iter().all(|count| *count > 0), "{stats:?}");
        assert_eq!(c.ok("HEXISTS acme usage_from").int(), 0, "it is through");
        c.ok("FLUSHALL");
        c.ok("KG.IMPORT acme FROM acme.sqlite FORMAT snapshot");
        // It stops in the middle, and there it ends.
        eventually("lines of the log", || expect(c.ok("XLEN {acme}:usage").int() > 0, || "none".to_owned()));
        c.ok("CONFIG SET maxmemory 1");
        eventually("the import waiting", || {
            let status = c.ok("KG.IMPORT acme STATUS");
            expect(status.get("waits").is_some(), || format!("{status:?}"))
        });
        let begun = c.ok("XLEN {acme}:usage").int();
        assert!((1..LINES).contains(&begun), "{begun} lines");
        server.restart();
        let mut c = server.client();
        assert_eq!(c.ok("XLEN {acme}:usage").int(), begun);
        assert_eq!(c.ok("HEXISTS acme usage_from").int(), 1);
        if is_busy {
            c.ok("CONFIG SET keyguard.usage yes");
            c.ok(args!["KG.LOG", "acme", sample.ids[0], "PATH", "/x", "METHOD", "GET", "STATUS", 500, "LATENCY", 12]);
            usage_written(&mut c);
        }
        let told = import(&mut c, "acme", "acme.sqlite FORMAT snapshot CHECK");
        let status = import(&mut c, "acme", "acme.sqlite FORMAT snapshot");
        assert_eq!(counts(&told, ["usage", "skipped"]), counts(&status, ["usage", "skipped"]));
        assert_eq!(c.ok("HEXISTS acme usage_from").int(), 0);
        let left = log.list().len() as i64 - begun;
        let (now_log, (counted, of_key)) = (c.ok("XRANGE {acme}:usage - +"), statistics(&mut c, "acme", sample.ids[0]));
        if is_busy {
            // They would come behind the line of today.
            assert_eq!(counts(&status, ["usage"]), [0]);
            assert!(whys(&status).contains("older than the newest line of the log"), "{status:?}");
            assert_eq!(now_log.list()[..begun as usize], log.list()[..begun as usize]);
            assert_eq!(now_log.list().len() as i64, begun + 1);
            let [requests, refused, logged, errors] = stats.0[..] else { panic!("{stats:?}") };
            assert_eq!(counted, [requests, refused, logged + 1, errors + 1]);
            assert_eq!(of_key.field("logged").int(), stats.1.field("logged").int() + 1);
            assert_eq!(of_key.field("requests"), stats.1.field("requests"));
        } else {
            assert_eq!(counts(&status, ["usage"]), [left]);
            assert_eq!(now_log, log);
            assert_eq!((counted, of_key), stats);
        }
        let state = c.state();
        let again = import(&mut c, "acme", "acme.sqlite FORMAT snapshot");
        assert_eq!(counts(&again, ["imported"]), [0]);
        assert!(again.field("skips").list().len() > 100 && whys(&again).contains(OWN), "however much else was told");
        assert_eq!(c.state(), state);
        // Nor does what is there count twice where the import broke off behind its last value.
        let meta = |key| -> String {
            let db = Connection::open(path(&server, "acme.sqlite")).unwrap();
            db.query_row("SELECT CAST(value AS TEXT) FROM keyguard_meta WHERE key = ?", [key], |row| row.get(0))
                .unwrap()
        };
        let last = log.list().last().unwrap().list()[0].text();
        c.ok(args!["HSET", "acme", "usage_from", format!("{} {last} 2 acme", meta("begun_ms"))]);
        import(&mut c, "acme", "acme.sqlite FORMAT snapshot");
        assert_eq!(c.state(), state);
    }
}

fn lines_older_than_the_log_are_counted_and_not_logged(sut: &Sut) {
    const OLDER: i64 = 300;
    let server = setup(sut).counting_usage().start();
    let mut c = server.client();
    c.ok("KG.ADDORG acme first");
    c.ok("KG.LOG acme 0 PATH /x METHOD GET STATUS 200 LATENCY 1");
    usage_written(&mut c);
    let logged = c.ok("XRANGE {acme}:usage - +").list().to_vec();
    keyguard_file(&server, "old.db", &keys(1));
    let db = Connection::open(path(&server, "old.db")).unwrap();
    let now_s = now_ms() / 1000;
    // The last two from a clock that runs ahead.
    for n in 0..OLDER + 2 {
        let at_s = if n < OLDER { now_s - 2 * OLDER + n } else { now_s + 60 + n };
        let row =
            params![format!("use-{n}"), format!("00000000-0000-4000-8000-{:012}", 0), "/x", "GET", 200, 1, "", at_s];
        let sql = "INSERT INTO usage_logs VALUES (?, ?, ?, ?, ?, ?, ?, datetime(?, 'unixepoch'))";
        db.execute(sql, row).unwrap();
    }
    drop(db);
    let told = import(&mut c, "acme", "old.db FORMAT keyguard PEPPER old CHECK");
    let status = import(&mut c, "acme", "old.db FORMAT keyguard PEPPER old");
    for status in [told, status] {
        assert_eq!(counts(&status, ["usage", "skipped"]), [2, OLDER], "{status:?}");
        assert!(whys(&status).contains("older than the newest line of the log"), "{status:?}");
    }
    let now_logged = c.ok("XRANGE {acme}:usage - +").list().to_vec();
    assert_eq!(now_logged[..1], logged);
    let times: Vec<String> = now_logged[1..].iter().map(|line| line.list()[0].text()).collect();
    assert_eq!(times, [OLDER, OLDER + 1].map(|n| format!("{}000-0", now_s + 60 + n)), "each has its own time");
    assert_eq!(counts(&c.ok("KG.STATS acme"), ["requests", "logged"]), [OLDER + 2, OLDER + 3]);
}

fn usage_of_a_snapshot_is_not_taken_for_that_of_other_keys(sut: &Sut) {
    let server = setup(sut).start();
    let mut c = server.client();
    let sample = populate_store(&mut c);
    snapshot(&mut c, "acme", "acme.sqlite");
    for n in 0..sample.ids[0] {
        c.ok(args!["KG.ADDKEY", "beta", "mine", format!("a-secret-of-beta-{n}")]);
    }
    for check in [" CHECK", ""] {
        let status = import(&mut c, "beta", &format!("acme.sqlite FORMAT snapshot{check}"));
        assert!(whys(&status).iter().any(|why| why.contains("the store had keys before")), "{status:?}");
        assert_eq!(counts(&status, ["usage"]), [0]);
    }
    assert!(c.keys().iter().all(|key| !contains(key, b"{beta}:usage") && !contains(key, b"{beta}:stats")));
    assert_eq!(c.ok("HEXISTS beta usage_from").int(), 0);
    // Of a store without keys they are what they were, whatever else it has.
    c.ok("KG.ADDORG gamma first");
    import(&mut c, "gamma", "acme.sqlite FORMAT snapshot");
    assert_eq!(statistics(&mut c, "gamma", sample.ids[0]).0, statistics(&mut c, "acme", sample.ids[0]).0);
}

fn a_snapshot_of_another_keyring_is_left_out_record_by_record(sut: &Sut) {
    let ours = setup(sut).start();
    let mut c = ours.client();
    populate_store(&mut c);
    snapshot(&mut c, "acme", "acme.sqlite");
    let stranger = sut.setup().keyring(OTHER_KEYRING).start();
    fs::copy(path(&ours, "acme.sqlite"), path(&stranger, "acme.sqlite")).unwrap();
    let mut c = stranger.client();
    let status = import(&mut c, "acme", "acme.sqlite FORMAT snapshot");
    assert_eq!(counts(&status, ["vault_keys", "api_keys", "organizations"]), [0, 0, 3]);
    assert_eq!(counts(&status, ["skipped"]), [12]);
    assert!(whys(&status).iter().all(|why| why.contains("keyring")), "{status:?}");
    assert_eq!(c.ok("KG.COUNTKEYS acme").int(), 0);
    assert!(c.keys().iter().all(|key| !contains(key, b":key:") && !contains(key, b":digest:")));
}

fn check_tells_what_would_be_done_and_does_nothing(sut: &Sut) {
    const FIELDS: [&str; 7] =
        ["organizations", "api_keys", "vault_keys", "address_rules", "accounts", "replaced", "skipped"];
    let server = setup(sut).start();
    let mut c = server.client();
    populate(&mut c);
    snapshot(&mut c, "acme", "acme.sqlite");
    keyguard_file(&server, "old.db", &keys(100));
    keystore_file(&server, "keys.db", 100);
    c.ok("KG.DELKEY acme 1 3");
    c.ok("KG.ADDKEY acme mail a-secret-after-it");
    for rest in [
        "acme.sqlite FORMAT snapshot",
        "acme.sqlite FORMAT snapshot ONCONFLICT replace",
        "old.db FORMAT keyguard PEPPER old",
        "keys.db FORMAT simple_keystore FERNET keystore",
    ] {
        for store in ["acme", "fresh"] {
            let before = c.state();
            let told = import(&mut c, store, &format!("{rest} CHECK"));
            assert_eq!(c.state(), before, "{rest} into {store}");
            assert_eq!(told.field("check").int(), 1);
            let done = import(&mut c, store, rest);
            assert_eq!(counts(&told, FIELDS), counts(&done, FIELDS), "{rest} into {store}");
            assert_eq!(told.field("skips"), done.field("skips"), "{rest} into {store}");
            assert_eq!(done.field("check").int(), 0);
        }
    }
}

fn a_damaged_file_is_an_error_and_nothing_is_written(sut: &Sut) {
    let server = setup(sut).start();
    let mut c = server.client();
    populate_store(&mut c);
    snapshot(&mut c, "acme", "acme.sqlite");
    keyguard_file(&server, "old.db", &keys(1000));
    keystore_file(&server, "keys.db", 1000);
    let files = [
        ("acme.sqlite", "snapshot"),
        ("old.db", "keyguard PEPPER old"),
        ("keys.db", "simple_keystore FERNET keystore"),
    ];
    let before = c.state();
    let mut fails = |file: &str, format: &str| {
        c.ok(format!("KG.IMPORT copy FROM {file} FORMAT {format}"));
        let status = ended(&mut c, "copy");
        assert_eq!(status.field("state").text(), "failed", "{file} {format}: {status:?}");
        assert!(!status.field("error").text().is_empty());
        assert_eq!(c.state(), before, "{file} {format}");
    };
    for (file, format) in files {
        let sound = fs::read(path(&server, file)).unwrap();
        let middle = sound.len() / 2;
        fs::write(path(&server, "short"), &sound[..middle]).unwrap();
        fails("short", format);
        let mut torn = sound.clone();
        torn[middle - middle % 4096..][..8192].fill(0x5a);
        torn[8192..12288].fill(0xff);
        fs::write(path(&server, "torn"), torn).unwrap();
        fails("torn", format);
        fs::write(path(&server, "text"), "hunter2").unwrap();
        fails("text", format);
        fails("missing", format);
        for (_, other) in files.iter().filter(|(_, other)| *other != format) {
            // A snapshot has the tables of the others too.
            if file != "acme.sqlite" {
                fails(file, other);
            }
        }
    }
    assert_eq!(c.info_number("keyguard", "keyguard_imports_failed"), 16);
    assert!(!server.log().contains("hunter2"));
}

fn replicas_and_the_append_only_file_get_what_was_imported(sut: &Sut) {
    let mut server = setup(sut).with("appendonly", "yes").with("appendfsync", "always").start();
    let mut c = server.client();
    let replica = setup(sut).replica_of(&server).start();
    populate(&mut c);
    snapshot(&mut c, "acme", "acme.sqlite");
    keyguard_file(&server, "old.db", &keys(300));
    keystore_file(&server, "keys.db", 300);
    server.wait_for(&replica);
    for rest in [
        "acme.sqlite FORMAT snapshot",
        "old.db FORMAT keyguard PEPPER old",
        "keys.db FORMAT simple_keystore FERNET keystore",
        "acme.sqlite FORMAT snapshot ONCONFLICT replace",
    ] {
        import(&mut c, "copy", rest);
        import(&mut c, "acme", rest);
    }
    let state = c.state();
    server.wait_for(&replica);
    assert_eq!(replica.client().state(), state);
    let text = replica.client().err("KG.IMPORT acme FROM acme.sqlite FORMAT snapshot");
    assert!(text.starts_with("READONLY"), "{text}");
    server.restart();
    let mut c = server.client();
    assert_eq!(c.state(), state);
    let log: Vec<u8> = appended(&server);
    for plain in [OLD_SECRET.as_bytes(), FERNET.as_bytes(), secret(17).as_bytes(), keys(300)[17].raw.as_bytes()] {
        assert!(!contains(&log, plain), "no plaintext in the append-only file");
    }
}

/// Everything that stands in the append-only file.
fn appended(server: &Server) -> Vec<u8> {
    let folder = server.directory().join("appendonlydir");
    fs::read_dir(folder).unwrap().flat_map(|entry| fs::read(entry.unwrap().path()).unwrap()).collect()
}

fn one_import_at_a_time(sut: &Sut) {
    let server = setup(sut).start();
    let mut c = server.client();
    assert_eq!(c.ok("KG.IMPORT acme STATUS").fields(), [("state".to_owned(), Value::BulkString(b"none".to_vec()))]);
    keyguard_file(&server, "old.db", &keys(1000));
    let first = args!["KG.IMPORT", "acme", "FROM", "old.db", "FORMAT", "keyguard", "PEPPER", "old"];
    let second = args!["KG.IMPORT", "beta", "FROM", "old.db", "FORMAT", "keyguard", "PEPPER", "old"];
    let drop = args!["KG.IMPORT", "acme", "STATUS"];
    let replies = c.pipeline(&[first, second, drop]);
    assert_eq!(replies[0].text(), "OK");
    assert_eq!(replies[1].error_code(), "INUSE", "{replies:?}");
    assert_eq!(replies[2].field("state").text(), "running");
    assert_eq!(replies[2].field("seconds").int(), 0);
    assert_eq!(ended(&mut c, "acme").field("state").text(), "done");
    assert_eq!(c.ok("KG.IMPORT beta STATUS").field("state").text(), "none");
    import(&mut c, "beta", "old.db FORMAT keyguard PEPPER old");
    assert_eq!(c.ok("KG.IMPORT acme STATUS").field("api_keys").int(), 1000, "each store's last one is told of");
}

fn replaced_data_and_a_deleted_store_end_an_import(sut: &Sut) {
    let server = setup(sut).start();
    let mut c = server.client();
    keyguard_file(&server, "old.db", &keys(1000));
    let command = args!["KG.IMPORT", "acme", "FROM", "old.db", "FORMAT", "keyguard", "PEPPER", "old"];
    for (end, state, why) in [
        ("FLUSHALL", "failed", Some("replaced")),
        ("SWAPDB 0 1", "failed", Some("replaced")),
        ("KG.DELSTORE acme", "stopped", None),
    ] {
        c.ok("FLUSHALL");
        c.ok("KG.ADDORG acme first");
        let end = end.split(' ').map(|word| word.as_bytes().to_vec()).collect();
        let replies = c.pipeline(&[command.clone(), end]);
        assert!(replies.iter().all(|reply| !reply.is_error()), "{replies:?}");
        let status = ended(&mut c, "acme");
        assert_eq!(status.field("state").text(), state, "{status:?}");
        assert_eq!(status.get("error").map(|error| error.text().contains("replaced")), why.map(|_| true));
        assert_eq!(status.field("imported").int(), 0);
        let kept = if state == "failed" { c.ok("DBSIZE").int() } else { 0 };
        eventually("the thread having left", || {
            let reply = c.call("KG.IMPORT beta FROM missing FORMAT snapshot");
            expect(!reply.is_error(), || format!("{reply:?}"))
        });
        ended(&mut c, "beta");
        assert_eq!(c.ok("DBSIZE").int(), kept, "nothing came after it");
    }
}

fn full_memory_holds_an_import_up(sut: &Sut) {
    let server = setup(sut).start();
    let mut c = server.client();
    keyguard_file(&server, "old.db", &keys(500));
    let command = args!["KG.IMPORT", "acme", "FROM", "old.db", "FORMAT", "keyguard", "PEPPER", "old"];
    let replies = c.pipeline(&[command.clone(), args!["CONFIG", "SET", "maxmemory", "1"]]);
    assert!(replies.iter().all(|reply| !reply.is_error()), "{replies:?}");
    eventually("the import waiting", || {
        let status = c.ok("KG.IMPORT acme STATUS");
        expect(status.get("waits").is_some_and(|why| why.text().starts_with("OOM")), || format!("{status:?}"))
    });
    assert_eq!(c.ok("KG.IMPORT acme STATUS").field("state").text(), "running");
    assert_eq!(c.ok("DBSIZE").int(), 0);
    c.ok("CONFIG SET maxmemory 0");
    let status = ended(&mut c, "acme");
    assert_eq!(counts(&status, ["api_keys"]), [500]);
    assert!(status.get("waits").is_none());
    c.ok("CONFIG SET maxmemory 1");
    assert_eq!(c.call(&command).error_code(), "OOM");
    c.ok("CONFIG SET maxmemory 0");
}

fn paused_writes_hold_an_import_up(sut: &Sut) {
    let server = setup(sut).start();
    let mut c = server.client();
    keyguard_file(&server, "old.db", &keys(500));
    let command = args!["KG.IMPORT", "acme", "FROM", "old.db", "FORMAT", "keyguard", "PEPPER", "old"];
    let replies = c.pipeline(&[command, args!["CLIENT", "PAUSE", "600000", "WRITE"]]);
    assert!(replies.iter().all(|reply| !reply.is_error()), "{replies:?}");
    // A second one would have done it many times over.
    let begun = now_ms();
    while now_ms() < begun + 300 {
        assert_eq!(c.info_number("keyguard", "keyguard_import_rows"), 0);
        assert_eq!(c.ok("DBSIZE").int(), 0);
    }
    assert_eq!(c.info_number("keyguard", "keyguard_import_running"), 1);
    c.ok("CLIENT UNPAUSE");
    assert_eq!(ended(&mut c, "acme").field("api_keys").int(), 500);
}

fn a_server_that_shuts_down_ends_an_import(sut: &Sut) {
    let mut server = setup(sut).with("appendonly", "yes").with("appendfsync", "always").start();
    let mut c = server.client();
    keyguard_file(&server, "old.db", &keys(1000));
    c.ok("KG.IMPORT acme FROM old.db FORMAT keyguard PEPPER old");
    server.restart();
    let mut c = server.client();
    assert_eq!(c.ok("KG.IMPORT acme STATUS").field("state").text(), "none");
    // The same call goes on: each record is there as a whole or not at all.
    let status = import(&mut c, "acme", "old.db FORMAT keyguard PEPPER old");
    assert_eq!(counts(&status, ["imported"])[0] + counts(&status, ["skipped"])[0], 1004);
    assert_eq!(c.ok("KG.COUNTKEYS acme TYPE api").int(), 1000);
    for key in keys(1000).iter().step_by(37) {
        assert_eq!(c.code(args!["KG.AUTH", "acme", key.raw]), key.code());
    }
}

fn what_a_call_lacks_is_an_error_at_once(sut: &Sut) {
    let server = setup(sut).start();
    let mut c = server.client();
    for arguments in [
        "",
        "FROM",
        "WHAT",
        "FROM a.db",
        "FROM a.db FORMAT",
        "FROM a.db FORMAT sqlite",
        "FROM a.db FORMAT keyguard",
        "FROM a.db FORMAT simple_keystore",
        "FROM a.db FORMAT snapshot PEPPER old",
        "FROM a.db FORMAT snapshot FERNET keystore",
        "FROM a.db FORMAT keyguard PEPPER old FERNET keystore",
        "FROM a.db FORMAT snapshot ONCONFLICT",
        "FROM a.db FORMAT snapshot ONCONFLICT merge",
        "FROM a.db FORMAT snapshot CHECK CHECK",
        "FROM a.db FORMAT snapshot WHAT",
        "FROM ../a.db FORMAT snapshot",
        "FROM .a FORMAT snapshot",
        "STATUS WHAT",
    ] {
        c.refused("ERR", format!("KG.IMPORT acme {arguments}"));
    }
    for arguments in ["keyguard PEPPER hunter2", "simple_keystore FERNET hunter2", "simple_keystore FERNET old"] {
        let text = c.refused("NOKEYRING", format!("KG.IMPORT acme FROM a.db FORMAT {arguments}"));
        assert!(!text.contains("hunter2"), "{text}");
    }
    c.refused("BADSTORE", "KG.IMPORT a:b FROM a.db FORMAT snapshot");
    c.ok("SET text x");
    c.refused("WRONGTYPE", "KG.IMPORT text FROM a.db FORMAT snapshot");
    assert_eq!(c.ok("DBSIZE").int(), 1);
    assert_eq!(c.ok("KG.IMPORT acme STATUS").field("state").text(), "none");
    let begun = now_ms();
    let off = sut.setup().module_arguments(&[]).start();
    let text = off.client().refused("ERR", "KG.IMPORT acme FROM a.db FORMAT snapshot");
    assert!(text.contains("snapshot-dir") && now_ms() >= begun, "{text}");
}
