//! What several targets check.

use std::fs;
use std::path::PathBuf;
use std::sync::LazyLock;

use keyguard_core::digest::Digest;
use keyguard_core::ip::{By, Kind};
use keyguard_core::keyring::Fingerprint;
use keyguard_core::limit::{MAX_UNITS, MAX_WINDOW_MS};
use keyguard_core::record::{ApiRecord, Issued, OrgRecord, OrgStatus, Status, UnitLimits};
use keyguard_core::window::{Entry, MAX_INSTANT_MS, WindowLog};
use keyguard_snapshot::file::{FileName, Folder};
use keyguard_snapshot::item::{Counts, Header, Item, Key, Org, Rule, Usage};
use keyguard_snapshot::read::Format;
use keyguard_snapshot::write::Writer;
use rusqlite::Connection;

/// Checks a log against the plain list of its entries, and that it reads back as it is written.
pub fn check_log(log: &WindowLog) {
    let entries: Vec<Entry> = log.iter().collect();
    assert_eq!(log.entries(), entries.len());
    assert_eq!(log.units(), entries.iter().map(|entry| entry.units).sum::<u64>());
    assert_eq!(log.is_empty(), entries.is_empty());
    assert_eq!(log.oldest_ms(), entries.first().map(|entry| entry.at_ms));
    assert_eq!(log.newest_ms(), entries.last().map(|entry| entry.at_ms));
    assert!(entries.is_sorted_by_key(|entry| entry.at_ms), "in order of time");
    assert!(entries.iter().all(|entry| entry.at_ms <= MAX_INSTANT_MS && (1..=MAX_UNITS).contains(&entry.units)));
    assert!(log.retention_ms() <= MAX_WINDOW_MS);
    assert!(log.expires_at_ms() > log.newest_ms() || log.is_empty());

    // A few entries from everywhere, and the milliseconds before and after them.
    for entry in entries.iter().step_by(entries.len() / 8 + 1).chain(entries.last()) {
        for after_ms in [entry.at_ms.saturating_sub(1), entry.at_ms, entry.at_ms + 1] {
            check_counts(log, &entries, after_ms);
        }
    }

    let encoded = log.encode();
    let decoded = WindowLog::decode(&encoded).expect("what is written can be read");
    assert_eq!(decoded, *log);
    assert_eq!(decoded.encode(), encoded, "equal logs have equal bytes");
    let _ = (log.allocations(), log.memory_bytes(), log.is_full(log.newest_ms().unwrap_or(0), 1), format!("{log:?}"));
}

fn check_counts(log: &WindowLog, entries: &[Entry], after_ms: u64) {
    let counted = || entries.iter().filter(|entry| entry.at_ms > after_ms);
    let units: u64 = counted().map(|entry| entry.units).sum();
    assert_eq!(log.units_after(after_ms), units, "after {after_ms}");
    for nth in [1, units / 2, units, units + 1] {
        let mut passed = 0;
        let expected = counted().find(|entry| {
            passed += entry.units;
            passed >= nth
        });
        // The first unit is number 1.
        if nth > 0 {
            let gone = log.units() - log.units_after(after_ms);
            assert_eq!(log.instant_of_unit(gone + nth), expected.map(|entry| entry.at_ms), "{nth} after {after_ms}");
        }
    }
}

/// A number of any size in one byte: four bits of value, four of magnitude.
pub fn magnified(byte: u8) -> u64 {
    u64::from(byte & 15) << (u32::from(byte >> 4) * 4)
}

/// A folder of this process for files that are read again.
pub static SCRATCH: LazyLock<PathBuf> = LazyLock::new(|| {
    let folder = std::env::temp_dir().join(format!("keyguard-fuzz-{}", std::process::id()));
    fs::create_dir_all(&folder).expect("a folder of its own");
    folder
});

/// A small sound file of this format. Those of the Python packages have small pages, so that they are short.
pub fn sound_file(format: Format) -> Vec<u8> {
    let path = SCRATCH.join("sound");
    fs::remove_file(&path).ok();
    match format {
        Format::Snapshot => write_snapshot(),
        Format::Keyguard => make(&path, KEYGUARD),
        Format::SimpleKeystore => make(&path, SIMPLE_KEYSTORE),
    }
    fs::read(&path).expect("it was written")
}

const KEYGUARD: &str = "PRAGMA page_size = 512;
    CREATE TABLE organizations (id, name, status, created_at);
    CREATE TABLE api_keys (id, org_id, label, prefix, key_hash, is_active, scopes, rate_limit_per_minute, monthly_limit,
        created_at, expires_at, last_used_at);
    CREATE TABLE usage_logs (key_id, path, method, status_code, latency_ms, ip_address, timestamp);
    INSERT INTO organizations VALUES ('o1', 'Initech', 'active', '2026-11-22 12:00:00');
    INSERT INTO api_keys VALUES ('k1', 'o1', 'ci', 'kg_live_abcd', printf('%064x', 1), 1, '[\"read\"]', 60, 1000,
        '2026-11-22 12:00:00', NULL, '2026-11-22 12:00:00.123456');
    INSERT INTO usage_logs VALUES ('k1', '/v1', 'GET', 200, 12, '192.0.2.7', '2026-11-22 12:00:00');";

const SIMPLE_KEYSTORE: &str = "PRAGMA page_size = 512;
    CREATE TABLE keystore (id INTEGER PRIMARY KEY, name, expiration_in_sse, active, batch, source, login, encrypted_key, created_at);
    INSERT INTO keystore VALUES (1, 'openai', 0, 1, 'b', NULL, 'me', x'674141', '2026-11-22 12:00:00'),
        (2, 'other', 1795348800.5, 0, NULL, 'web', NULL, 'gAAAAAB', '2026-11-22 12:00:00');";

fn make(path: &std::path::Path, statements: &str) {
    Connection::open(path).and_then(|conn| conn.execute_batch(statements)).expect("a database is made");
}

fn write_snapshot() {
    let at_ms = 1_800_000_000_000;
    let issued = Issued {
        digest: Digest::from_bytes([7; 32]),
        digest_key: Fingerprint::from_bytes(*b"fingerpr"),
        start: "kg_live_0",
        is_foreign: false,
    };
    let key = ApiRecord {
        org: "Initech",
        label: "ci",
        status: Status::Active,
        created_ms: at_ms,
        expires_ms: None,
        scopes: Default::default(),
        limits: UnitLimits::new(),
        quotas: Default::default(),
        allowed: Default::default(),
        issued,
        previous: None,
    };
    let org = OrgRecord {
        id: 1,
        status: OrgStatus::Active,
        created_ms: at_ms,
        limits: UnitLimits::new(),
        quotas: Default::default(),
    };
    let rule = Rule {
        net: "192.0.2.0/24".to_owned(),
        kind: Kind::Block,
        path: Some("/api".to_owned()),
        until_ms: None,
        reason: "abuse".to_owned(),
        by: By::Hand,
        strikes: None,
    };
    let usage = Usage { at_ms, key: 2, status: Some(200), path: Some("/v1".to_owned()), ..Usage::default() };
    let counts = Counts { requests: 1, ..Counts::default() };
    let items = [
        Item::Header(Header {
            version: "0.1.0".to_owned(),
            store: "acme".to_owned(),
            created_ms: at_ms,
            next_id: 3,
            tz: None,
            ip_threshold: None,
            begun_ms: at_ms,
        }),
        Item::Org(Org { id: 1, name: "Initech".to_owned(), packed: org.encode().expect("in range"), meters: None }),
        Item::Key(Key {
            id: 2,
            packed: key.encode().expect("in range"),
            meta: Some("{}".to_owned()),
            meters: None,
            last_used_ms: Some(at_ms),
            token: None,
        }),
        Item::Rule(rule),
        Item::Usage(usage.clone()),
        Item::Usage(Usage { seq: 1, key: 0, code: Some("NOT_FOUND".to_owned()), ..usage }),
        Item::Hour { hour_ms: at_ms, counts },
        Item::Day { key: 2, day: 20_000, counts },
        Item::Total { key: None, code: Some("NOT_FOUND".to_owned()), counts },
        Item::Value { name: "stats:all".to_owned(), packed: vec![1, 2, 3] },
    ];
    let folder = Folder::open(&SCRATCH).expect("the folder is there");
    let name = FileName::parse(b"sound").expect("a name");
    let mut writer = Writer::create(&folder, &name).expect("a file is begun");
    items.iter().for_each(|item| writer.put(item).expect("it is written"));
    writer.finish(at_ms).expect("it is finished");
}
