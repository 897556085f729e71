//! What is written comes back, and the two packages find it in their tables.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::time::{Duration, SystemTime};

use keyguard_core::ip::{By, Kind, Strikes};
use keyguard_core::pool::Pool;
use keyguard_core::quota::{Period, Quota, Quotas};
use keyguard_core::record::{ApiRecord, OrgStatus, Status};
use keyguard_core::scope::Scopes;
use keyguard_snapshot::file::{FileError, Folder};
use keyguard_snapshot::item::{Counts, Item, Key, Org, Rule, Usage};
use keyguard_snapshot::read::{Format, Reader};
use keyguard_snapshot::write::Writer;
use proptest::prelude::*;
use rusqlite::Connection;
use rusqlite::types::Value;

use crate::samples::*;

/// The columns of all rows, for comparison with a list.
fn select(folder: &Path, sql: &str) -> Vec<Vec<Value>> {
    let conn = Connection::open(folder.join("a.sqlite")).unwrap();
    let mut select = conn.prepare(sql).unwrap();
    let columns = select.column_count();
    let rows = select.query_map([], |row| (0..columns).map(|column| row.get(column)).collect()).unwrap();
    rows.map(Result::unwrap).collect()
}

fn texts(folder: &Path, sql: &str) -> Vec<String> {
    let text = |value| match value {
        Value::Text(text) => text,
        Value::Integer(number) => number.to_string(),
        Value::Null => "NULL".to_owned(),
        other => panic!("{other:?}"),
    };
    select(folder, sql).into_iter().map(|row| row.into_iter().map(text).collect::<Vec<_>>().join("|")).collect()
}

#[test]
fn every_item_comes_back_as_it_was_put() {
    let folder = tempfile::tempdir().unwrap();
    let store = store();
    let written = write(folder.path(), "a.sqlite", &store).unwrap();
    assert_eq!(written.rows, store.len() as u64);
    assert_eq!(written.bytes, fs::metadata(folder.path().join("a.sqlite")).unwrap().len());
    let (items, skipped) = items(folder.path(), "a.sqlite");
    assert_eq!(skipped, []);
    assert_eq!(items, without_tokens(&store));
    // Nothing but the file is left, and only its owner may read it.
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    let mode = fs::metadata(folder.path().join("a.sqlite")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn the_tables_of_the_packages_are_theirs_to_the_letter() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "a.sqlite", &[header()]).unwrap();
    let sql = "SELECT sql FROM sqlite_schema WHERE tbl_name NOT LIKE 'keyguard%' AND sql IS NOT NULL ORDER BY name";
    // As sqlite_master of databases has it that the packages made.
    let expected = [
        "CREATE TABLE api_keys (\n\tid VARCHAR(36) NOT NULL, \n\torg_id VARCHAR(36) NOT NULL, \n\tlabel VARCHAR NOT NULL, \n\tprefix VARCHAR NOT NULL, \n\tkey_hash VARCHAR NOT NULL, \n\tis_active BOOLEAN, \n\tscopes JSON, \n\trate_limit_per_minute INTEGER, \n\tmonthly_limit BIGINT, \n\tcreated_at DATETIME DEFAULT CURRENT_TIMESTAMP, \n\texpires_at DATETIME, \n\tlast_used_at DATETIME, \n\tPRIMARY KEY (id), \n\tFOREIGN KEY(org_id) REFERENCES organizations (id)\n)",
        "CREATE UNIQUE INDEX ix_api_keys_key_hash ON api_keys (key_hash)",
        "CREATE TABLE keystore (                 id INTEGER PRIMARY KEY,                 name TEXT NOT NULL,                 expiration_in_sse INTEGER,                 active INTEGER DEFAULT 1,                 batch TEXT,                 source TEXT,                 login TEXT,                 encrypted_key TEXT UNIQUE,                 created_at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP,                 updated_at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP             )",
        "CREATE TABLE organizations (\n\tid VARCHAR(36) NOT NULL, \n\tname VARCHAR NOT NULL, \n\tstatus VARCHAR, \n\tcreated_at DATETIME DEFAULT CURRENT_TIMESTAMP, \n\tPRIMARY KEY (id)\n)",
        "CREATE TABLE usage_logs (\n\tid VARCHAR(36) NOT NULL, \n\tkey_id VARCHAR(36) NOT NULL, \n\tpath VARCHAR NOT NULL, \n\tmethod VARCHAR NOT NULL, \n\tstatus_code INTEGER NOT NULL, \n\tlatency_ms INTEGER NOT NULL, \n\tip_address VARCHAR NOT NULL, \n\ttimestamp DATETIME DEFAULT CURRENT_TIMESTAMP, \n\tPRIMARY KEY (id), \n\tFOREIGN KEY(key_id) REFERENCES api_keys (id)\n)",
    ];
    assert_eq!(texts(folder.path(), sql), expected);
}

#[test]
fn keyguard_python_finds_what_it_can_hold() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "a.sqlite", &store()).unwrap();
    assert_eq!(
        texts(folder.path(), "SELECT id, name, status, created_at FROM organizations ORDER BY id"),
        [
            "0724d383-f4f6-81dc-8000-000000000001|Initech|active|2026-11-22 11:59:55.123000",
            "0724d383-f4f6-81dc-8000-000000000002|Hooli, \"Inc\"|suspended|2026-11-22 11:59:55.123000",
        ]
    );
    assert_eq!(
        texts(
            folder.path(),
            "SELECT k.id, o.name, label, prefix, substr(key_hash, 1, 14), is_active, scopes, rate_limit_per_minute, monthly_limit,
                k.created_at, expires_at, last_used_at
                FROM api_keys AS k JOIN organizations AS o ON o.id = k.org_id ORDER BY k.id"
        ),
        [
            "0724d383-f4f6-82dc-8000-00000000000a|Initech|ci|kg_live_003a|keyguard:10:Cg|1|[\"orders:*\",\"users:read\"]|100|5000|2026-11-22 11:59:58.123000|2026-11-23 12:00:00.123000|2026-11-22 12:00:00.116000",
            "0724d383-f4f6-82dc-8000-00000000000b|Initech|rotated|kg_live_003a|keyguard:11:Cw|1|[\"orders:*\",\"users:read\"]|100|5000|2026-11-22 11:59:58.123000|2026-11-23 12:00:00.123000|NULL",
        ]
    );
    let logged = texts(
        folder.path(),
        "SELECT key_id, path, method, status_code, latency_ms, ip_address, timestamp FROM usage_logs ORDER BY rowid",
    );
    let key = |id: u32| format!("0724d383-f4f6-82dc-8000-{id:012x}");
    assert_eq!(
        logged,
        [
            format!("{}|/v1/orders|GET|200|12|192.0.2.7|2026-11-22 12:00:00.122000", key(10)),
            format!("{}|/v1/orders|GET|200|12|192.0.2.7|2026-11-22 12:00:00.123000", key(10)),
            format!("{}|/v1/orders|GET|200|12|192.0.2.7|2026-11-22 12:00:00.123000", key(11)),
            format!("{}|/v1/orders|GET|429|12|192.0.2.7|2026-11-22 12:00:00.128000", key(11)),
            format!("{}||GET|200|0|192.0.2.7|2026-11-22 12:00:00.128000", key(11)),
            format!("{}|/v1/orders|GET|200|12|192.0.2.7|2026-11-22 12:00:00.129000", key(10)),
        ]
    );
    // No row stands in both tables.
    assert_eq!(texts(folder.path(), "SELECT count(*) FROM keyguard_usage"), ["7"]);
}

#[test]
fn simple_keystore_finds_what_it_can_hold() {
    let folder = tempfile::tempdir().unwrap();
    let early = Item::Key(Key {
        id: 14,
        packed: vault("early", Some(999), 14),
        meta: None,
        meters: None,
        last_used_ms: None,
        // The same token as that of 12, which its table takes only once.
        token: Some("gAAAAABtoken_-=".to_owned()),
    });
    let mut store = store();
    store.insert(7, early);
    write(folder.path(), "a.sqlite", &store).unwrap();
    assert_eq!(
        texts(
            folder.path(),
            "SELECT id, name, expiration_in_sse, active, batch, source, login, substr(encrypted_key, 1, 20), created_at, updated_at
                FROM keystore"
        ),
        [
            "12|openai|0|1|b1|web|NULL|gAAAAABtoken_-=|2026-11-22 11:59:59|2026-11-22 11:59:59",
            "13|openai|1795348800|1|b1|web|NULL|keyguard:13:CQkJCQkJ|2026-11-22 11:59:59|2026-11-22 11:59:59",
            // Never is 0: what expired in the first second did not expire never.
            "14|early|1|1|b1|web|NULL|keyguard:14:CQkJCQkJ|2026-11-22 11:59:59|2026-11-22 11:59:59",
        ]
    );
    assert_eq!(texts(folder.path(), "SELECT typeof(encrypted_key) FROM keystore"), ["text"; 3]);
}

#[test]
fn people_can_read_what_an_import_believes() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "a.sqlite", &store()).unwrap();
    assert_eq!(
        texts(
            folder.path(),
            "SELECT id, type, name, org, label, limits, shared, quotas, allowed, scopes FROM keyguard_keys LIMIT 3"
        )[1..],
        [
            "11|api|NULL|Initech|rotated|100/60000ms requests|NULL|5000 month requests|192.0.2.0/24|orders:*,users:read",
            "12|vault|openai|NULL|NULL|60/60000ms requests, 90000/60000ms tokens|600/60000ms requests|NULL|NULL|NULL",
        ]
    );
    assert_eq!(texts(folder.path(), "SELECT limits FROM keyguard_orgs"), ["1000/1000ms requests"; 2]);
    assert_eq!(texts(folder.path(), "SELECT date FROM keyguard_usage_days"), ["2026-11-22"]);
    assert_eq!(texts(folder.path(), "SELECT made_by FROM keyguard_address_rules"), ["failures", "hand"]);
    let meta = texts(folder.path(), "SELECT key, value FROM keyguard_meta ORDER BY key");
    assert_eq!(meta[2], "finished_ms|1795348800124");
    assert_eq!(meta[3], "format|1");
}

/// A unit, a count and a window; a count, a period and a unit.
type Limited = (&'static str, u64, u64);
type Quoted = (u64, Period, &'static str);

#[test]
fn a_limit_becomes_a_number_of_requests_a_minute() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = vec![header(), org(1, "o", OrgStatus::Active)];
    let cases: [(&[Limited], &str); 8] = [
        (&[("requests", 7, 60_000), ("requests", 1, 1_000_000)], "7"),
        (&[("requests", 9, 60_000), ("requests", 8, 60_000)], "8"),
        (&[("requests", 5, 1_000)], "300"),
        (&[("requests", 5, 1_000), ("requests", 100, 3_600_000)], "1"),
        (&[("requests", 1, 86_400_000)], "1"),
        (&[("requests", 100, 90_000)], "66"),
        (&[("tokens", 5, 60_000)], "2147483647"),
        (&[], "2147483647"),
    ];
    for (index, (of_key, _)) in cases.iter().enumerate() {
        let record = ApiRecord { limits: limits(of_key), ..api_record("o", "k", index as u64) };
        store.push(key(10 + index as u64, record.encode().unwrap()));
    }
    let quotas: [(&[Quoted], &str); 3] = [
        (&[(5, Period::Month, "requests"), (6, Period::Day, "requests")], "5"),
        (&[(5, Period::Month, "tokens")], "NULL"),
        (&[], "NULL"),
    ];
    for (index, (of_key, _)) in quotas.iter().enumerate() {
        let quotas: Quotas<'_> =
            of_key.iter().map(|(count, period, unit)| Quota { count: *count, period: *period, unit }).collect();
        let record =
            ApiRecord { quotas, scopes: Scopes::default(), status: Status::Inactive, ..api_record("o", "k", 0) };
        store.push(key(20 + index as u64, record.encode().unwrap()));
    }
    write(folder.path(), "a.sqlite", &store).unwrap();
    let per_minute = texts(folder.path(), "SELECT rate_limit_per_minute FROM api_keys WHERE is_active ORDER BY id");
    assert_eq!(per_minute, cases.map(|(_, expected)| expected));
    let per_month =
        texts(folder.path(), "SELECT monthly_limit FROM api_keys WHERE NOT is_active AND scopes = '[]' ORDER BY id");
    assert_eq!(per_month, quotas.map(|(_, expected)| expected));
}

#[test]
fn a_damaged_record_stops_no_snapshot() {
    let folder = tempfile::tempdir().unwrap();
    let damaged = |id| {
        Item::Key(Key {
            id,
            packed: vec![1, 2, 3],
            meta: Some("{}".to_owned()),
            meters: Some(meters()),
            last_used_ms: Some(5),
            token: Some("t".to_owned()),
        })
    };
    let store = [
        header(),
        org(1, "whole", OrgStatus::Active),
        Item::Org(Org { id: 2, name: "damaged".to_owned(), packed: vec![7], meters: None }),
        damaged(10),
        key(11, api_record("whole", "k", 11).encode().unwrap()),
        key(12, api_record("damaged", "k", 12).encode().unwrap()),
        key(13, api_record("missing", "k", 13).encode().unwrap()),
        // Copied by hand, digest and all.
        key(14, api_record("whole", "k", 11).encode().unwrap()),
        Item::Usage(usage(NOW_MS, 0, 10)),
        Item::Usage(usage(NOW_MS, 1, 12)),
        Item::Usage(usage(NOW_MS, 2, 13)),
        Item::Usage(usage(NOW_MS, 3, 14)),
    ];
    assert_eq!(write(folder.path(), "a.sqlite", &store).unwrap().rows, 12);
    let kept =
        texts(folder.path(), "SELECT id, type, status, length(packed) > 2, last_used_ms FROM keyguard_keys LIMIT 2");
    assert_eq!(kept, ["10|NULL|NULL|1|5", "11|api|active|1|NULL"]);
    assert_eq!(texts(folder.path(), "SELECT count(*) FROM api_keys"), ["2"]);
    assert_eq!(texts(folder.path(), "SELECT name FROM organizations"), ["whole"]);
    assert_eq!(texts(folder.path(), "SELECT count(*) FROM keystore"), ["0"]);
    assert_eq!(texts(folder.path(), "SELECT count(*) FROM usage_logs"), ["1"]);
    let (items, skipped) = items(folder.path(), "a.sqlite");
    assert_eq!(items.len(), 10);
    let skipped: Vec<_> = skipped.iter().map(|row| (row.table, row.rowid, row.why)).collect();
    let why = "its record cannot be read";
    assert_eq!(skipped, [("keyguard_orgs", 2, why), ("keyguard_keys", 10, why)]);
}

#[test]
fn what_no_snapshot_can_hold_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    for bad in [
        key(0, vec![1]),
        key(1 << 63, vec![1]),
        key(u64::MAX, vec![1]),
        org(0, "o", OrgStatus::Active),
        Item::Day { key: 0, day: 0, counts: Counts::default() },
        Item::Total { key: Some(u64::MAX), code: None, counts: Counts::default() },
        Item::Value { name: "v".to_owned(), packed: vec![0; 64 * 1024 * 1024 + 1] },
    ] {
        assert_eq!(write(folder.path(), "a.sqlite", &[header(), bad]), Err(FileError::OutOfRange));
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    // Counts and times of no clock are as large as can be.
    let far = Item::Hour { hour_ms: u64::MAX, counts: Counts { requests: u64::MAX, ..counts(1) } };
    let far_use = Item::Usage(Usage { at_ms: u64::MAX, ..usage(0, u64::MAX, 0) });
    write(folder.path(), "a.sqlite", &[header(), far_use, far]).unwrap();
    let (items, skipped) = items(folder.path(), "a.sqlite");
    let largest = i64::MAX as u64;
    let expected = Item::Hour { hour_ms: largest, counts: Counts { requests: largest, ..counts(1) } };
    assert_eq!((&items[2], skipped.len()), (&expected, 0));
    assert_eq!(items[1], Item::Usage(Usage { at_ms: largest, ..usage(0, largest, 0) }));
}

#[test]
fn without_a_header_there_is_no_snapshot_to_read() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "a.sqlite", &[]).unwrap();
    let opened = Reader::open(&Folder::open(folder.path()).unwrap(), &file_name("a.sqlite"), Format::Snapshot);
    assert_eq!(opened.err(), Some(FileError::Damaged));
}

#[test]
fn a_new_snapshot_takes_the_place_of_the_old_one() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "a.sqlite", &[header()]).unwrap();
    let before = Reader::open(&Folder::open(folder.path()).unwrap(), &file_name("a.sqlite"), Format::Snapshot).unwrap();
    write(folder.path(), "a.sqlite", &store()).unwrap();
    assert_eq!(items(folder.path(), "a.sqlite").0.len(), store().len());
    // Whoever was reading has what was there.
    assert_eq!(before.total(), 1);
    let mut before = before;
    assert_eq!(before.next_rows().unwrap().len(), 1);
    assert_eq!(before.next_rows().unwrap(), []);
}

#[test]
fn what_is_given_up_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "a.sqlite", &[header()]).unwrap();
    let open = Folder::open(folder.path()).unwrap();
    let mut writer = Writer::create(&open, &file_name("a.sqlite")).unwrap();
    writer.put(&header()).unwrap();
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    drop(writer);
    let mut stopped = Writer::create(&open, &file_name("a.sqlite")).unwrap();
    stopped.put(&header()).unwrap();
    stopped.interrupter().interrupt();
    assert_eq!(stopped.put(&org(1, "o", OrgStatus::Active)), Err(FileError::Stopped));
    assert_eq!(stopped.finish(NOW_MS), Err(FileError::Stopped));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    assert_eq!(items(folder.path(), "a.sqlite").0, [header()]);
    let mut reader = Reader::open(&open, &file_name("a.sqlite"), Format::Snapshot).unwrap();
    reader.interrupter().interrupt();
    assert_eq!(reader.next_rows(), Err(FileError::Stopped));
}

#[test]
fn what_may_not_be_replaced_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::write(at("target"), "mine").unwrap();
    fs::create_dir(at("directory")).unwrap();
    symlink(at("target"), at("link")).unwrap();
    symlink(at("nowhere"), at("dangling")).unwrap();
    fs::write(at("protected"), "mine").unwrap();
    fs::set_permissions(at("protected"), fs::Permissions::from_mode(0o400)).unwrap();
    for (name, error) in [
        ("directory", FileError::NotAFile),
        ("link", FileError::NotAFile),
        ("dangling", FileError::NotAFile),
        ("protected", FileError::Protected),
    ] {
        assert_eq!(write(folder.path(), name, &[header()]), Err(error), "{name}");
    }
    assert!(!at("nowhere").exists());
    assert_eq!(fs::read(at("target")).unwrap(), b"mine");
    // One that came while the snapshot was written is not replaced either.
    let open = Folder::open(folder.path()).unwrap();
    let mut writer = Writer::create(&open, &file_name("late")).unwrap();
    writer.put(&header()).unwrap();
    symlink(at("target"), at("late")).unwrap();
    assert_eq!(writer.finish(NOW_MS), Err(FileError::NotAFile));
    assert_eq!(fs::read(at("target")).unwrap(), b"mine");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 6);
}

#[test]
fn a_folder_that_is_gone_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let open = Folder::open(folder.path()).unwrap();
    drop(folder);
    assert_eq!(Writer::create(&open, &file_name("a")).err(), Some(FileError::NoFolder));
    assert_eq!(Reader::open(&open, &file_name("a"), Format::Snapshot).err(), Some(FileError::NoFile));
}

#[test]
fn what_a_killed_server_left_is_removed_after_an_hour() {
    let folder = tempfile::tempdir().unwrap();
    let hours_ago = |hours: u64| SystemTime::now() - Duration::from_secs(hours * 3_600 + 60);
    let make = |name: &str, modified| {
        let file = fs::File::create(folder.path().join(name)).unwrap();
        file.set_modified(modified).unwrap();
    };
    make(".a.sqlite.0123456789abcdef.tmp", hours_ago(1));
    make(".b.0000000000000000.tmp", hours_ago(48));
    let kept = [
        (".fresh.0123456789abcdef.tmp", hours_ago(0)),
        (".a.sqlite.0123456789abcde.tmp", hours_ago(9)),
        (".a.sqlite.0123456789ABCDEF.tmp", hours_ago(9)),
        (".a b.0123456789abcdef.tmp", hours_ago(9)),
        ("a.0123456789abcdef.tmp", hours_ago(9)),
        (".0123456789abcdef.tmp", hours_ago(9)),
        (".a.0123456789abcdef", hours_ago(9)),
    ];
    kept.iter().for_each(|(name, modified)| make(name, *modified));
    fs::create_dir(folder.path().join(".d.0123456789abcdef.tmp")).unwrap();
    // A writer that has been at it for long is not left behind.
    let open = Folder::open(folder.path()).unwrap();
    let slow = Writer::create(&open, &file_name("slow")).unwrap();
    let own = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path());
    let own = own.into_iter().find(|path| path.to_str().unwrap().contains(".slow.")).unwrap();
    fs::File::options().write(true).open(&own).unwrap().set_modified(hours_ago(9)).unwrap();
    drop(Writer::create(&open, &file_name("a.sqlite")).unwrap());
    assert!(own.exists());
    drop(slow);
    let mut left: Vec<_> =
        fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    left.sort();
    let mut expected: Vec<_> = kept.iter().map(|(name, _)| (*name).to_owned()).collect();
    expected.push(".d.0123456789abcdef.tmp".to_owned());
    expected.sort();
    assert_eq!(left, expected);
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof!["[a-z]{1,8}", "[^\\p{Cc}]{1,20}"]
}

fn optional<T: std::fmt::Debug>(of: impl Strategy<Value = T>) -> impl Strategy<Value = Option<T>> {
    proptest::option::of(of)
}

const LARGEST: u64 = i64::MAX as u64;

fn any_counts() -> impl Strategy<Value = Counts> {
    [0..=LARGEST, 0..=LARGEST, 0..=LARGEST, 0..=LARGEST, 0..=LARGEST].prop_map(
        |[requests, refused, logged, errors, latency_ms]| Counts { requests, refused, logged, errors, latency_ms },
    )
}

fn any_usage() -> impl Strategy<Value = Usage> {
    let code = prop_oneof![Just("RATE_LIMITED".to_owned()), Just("VALID".to_owned()), text()];
    let at_ms = prop_oneof![4 => NOW_MS..NOW_MS + 5, 1 => 0..=LARGEST];
    let seq = prop_oneof![4 => 0..4_u64, 1 => 0..=LARGEST];
    let texts = (optional("[ -~]{0,5}"), optional("\\PC{0,9}"), optional("[ -~]{0,9}"));
    (at_ms, seq, 0..14_u64, optional(code), optional(any::<u16>()), optional(any::<u32>()), texts).prop_map(
        |(at_ms, seq, key, code, status, latency_ms, (method, path, ip))| Usage {
            at_ms,
            seq,
            key,
            code,
            status,
            latency_ms,
            method,
            path,
            ip,
        },
    )
}

fn any_rule() -> impl Strategy<Value = Rule> {
    let net = prop_oneof![Just("192.0.2.7"), Just("192.0.2.0/24"), Just("2001:db8::/64")];
    let by = prop_oneof![Just(By::Hand), Just(By::Claims), Just(By::Failures)];
    let strikes = optional((1..=u8::MAX, 0..NOW_MS).prop_map(|(count, until_ms)| Strikes { count, until_ms }));
    (net, any::<bool>(), optional("/[a-z]{0,5}"), optional(0..NOW_MS), "[a-z ]{0,9}", by, strikes).prop_map(
        |(net, blocks, path, until_ms, reason, by, strikes)| Rule {
            net: net.to_owned(),
            kind: if blocks { Kind::Block } else { Kind::Allow },
            path,
            until_ms,
            reason,
            by,
            strikes,
        },
    )
}

/// Keys of every kind with the ids 10 to 13, and anything else.
fn any_store() -> impl Strategy<Value = Vec<Item>> {
    let names = proptest::collection::vec(text(), 4);
    let key = (any::<bool>(), optional(Just("{\"a\": 1}".to_owned())), optional(0..NOW_MS), any::<bool>());
    let keys = proptest::collection::vec(key, 0..4);
    let usage = proptest::collection::vec(any_usage(), 0..40);
    let rules = proptest::collection::vec(any_rule(), 0..4);
    let days = proptest::collection::vec((1..=LARGEST, any::<i32>(), any_counts()), 0..4);
    let totals = proptest::collection::vec((optional(1..=LARGEST), optional(text()), any_counts()), 0..4);
    let values = proptest::collection::vec((text(), proptest::collection::vec(any::<u8>(), 0..99)), 0..4);
    (names, keys, rules, usage, days, totals, values).prop_map(
        |(names, keys, rules, mut usage, days, totals, values)| {
            let mut items =
                vec![header(), org(1, &names[0], OrgStatus::Active), org(2, &names[1], OrgStatus::Suspended)];
            for (index, (is_vault, meta, last_used_ms, has_meters)) in keys.into_iter().enumerate() {
                let (id, name) = (10 + index as u64, &names[index]);
                let packed =
                    if is_vault { vault(name, last_used_ms, id) } else { api_record(name, name, id).encode().unwrap() };
                // Of a vault key it is what its pool remembers.
                let state = || if is_vault { Pool::default().encode() } else { meters() };
                let meters = has_meters.then(state);
                items.push(Item::Key(Key {
                    id,
                    packed,
                    meta,
                    meters,
                    last_used_ms,
                    token: is_vault.then(|| id.to_string()),
                }));
            }
            items.extend(rules.into_iter().map(Item::Rule));
            usage.sort_by_key(|usage| (usage.at_ms, usage.seq));
            usage.dedup_by_key(|usage| (usage.at_ms, usage.seq));
            items.extend(usage.into_iter().map(Item::Usage));
            items.extend(days.into_iter().map(|(key, day, counts)| Item::Day { key, day, counts }));
            items.extend(totals.into_iter().map(|(key, code, counts)| Item::Total { key, code, counts }));
            items.extend(values.into_iter().map(|(name, packed)| Item::Value { name, packed }));
            items
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_store_comes_back(store in any_store()) {
        let folder = tempfile::tempdir().unwrap();
        let written = write(folder.path(), "a.sqlite", &store).unwrap();
        prop_assert_eq!(written.rows, store.len() as u64);
        let (items, skipped) = items(folder.path(), "a.sqlite");
        prop_assert_eq!(skipped, []);
        prop_assert_eq!(items, without_tokens(&store));
    }
}

#[test]
fn thousands_of_rows_come_back_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = vec![header(), org(1, "o", OrgStatus::Active)];
    store.extend((10..1_300).map(|id| key(id, api_record("o", "k", id).encode().unwrap())));
    // In both tables of the log, a stretch in one at a time.
    let of =
        |row: u64| usage(NOW_MS + row / 3, row % 3, if (row / 700).is_multiple_of(2) { 10 + row % 1_000 } else { 0 });
    store.extend((0..5_000).map(|row| Item::Usage(of(row))));
    // More than is given at once by its size.
    store.extend((0..9).map(|value| Item::Value { name: format!("v{value}"), packed: vec![value; 700_000] }));
    write(folder.path(), "a.sqlite", &store).unwrap();
    let (items, skipped) = items(folder.path(), "a.sqlite");
    assert_eq!(skipped, []);
    assert!(items == store);
    let mut reader =
        Reader::open(&Folder::open(folder.path()).unwrap(), &file_name("a.sqlite"), Format::Snapshot).unwrap();
    loop {
        match reader.next_rows().unwrap().len() {
            0 => break,
            rows => assert!(rows <= 512, "{rows}"),
        }
    }
}
