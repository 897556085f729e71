//! A store with something of everything, and what reads and writes files.

use std::path::Path;

use keyguard_core::allowed::Allowed;
use keyguard_core::digest::Digest;
use keyguard_core::ip::{By, Kind, Net, Strikes};
use keyguard_core::keyring::Fingerprint;
use keyguard_core::limit::Limit;
use keyguard_core::meters::Meters;
use keyguard_core::quota::{Period, Quota, Quotas, Used};
use keyguard_core::record::{ApiRecord, Issued, OrgRecord, OrgStatus, Status, UnitLimit, UnitLimits, VaultRecord};
use keyguard_core::scope::Scopes;
use keyguard_core::secret::Hint;
use keyguard_snapshot::file::{FileError, FileName, Folder};
use keyguard_snapshot::item::{Counts, Header, Item, Key, Org, Row, Rule, Skipped, Usage};
use keyguard_snapshot::read::{Format, Reader};
use keyguard_snapshot::write::{Writer, Written};

/// 2026-11-22 12:00:00.123 UTC.
pub const NOW_MS: u64 = 1_795_348_800_123;

pub fn file_name(name: &str) -> FileName {
    FileName::parse(name.as_bytes()).unwrap()
}

pub fn write(folder: &Path, name: &str, items: &[Item]) -> Result<Written, FileError> {
    let mut writer = Writer::create(&Folder::open(folder)?, &file_name(name))?;
    items.iter().try_for_each(|item| writer.put(item))?;
    writer.finish(NOW_MS + 1)
}

pub fn read(folder: &Path, name: &str, format: Format) -> Result<Vec<Row>, FileError> {
    let mut reader = Reader::open(&Folder::open(folder)?, &file_name(name), format)?;
    let mut rows = Vec::new();
    loop {
        match reader.next_rows()? {
            more if more.is_empty() => break,
            more => rows.extend(more),
        }
    }
    assert_eq!(rows.len() as u64, reader.total());
    Ok(rows)
}

/// The items of a snapshot, and what was skipped.
pub fn items(folder: &Path, name: &str) -> (Vec<Item>, Vec<Skipped>) {
    let (mut items, mut skipped) = (Vec::new(), Vec::new());
    for row in read(folder, name, Format::Snapshot).unwrap() {
        match row {
            Row::Item(item) => items.push(item),
            Row::Skipped(row) => skipped.push(row),
            other => panic!("{other:?} in a snapshot"),
        }
    }
    (items, skipped)
}

/// As it comes back: tokens are only written.
pub fn without_tokens(items: &[Item]) -> Vec<Item> {
    let without = |item: &Item| match item {
        Item::Key(key) => Item::Key(Key { token: None, ..key.clone() }),
        other => other.clone(),
    };
    items.iter().map(without).collect()
}

pub fn limits<'a>(limits: &[(&'a str, u64, u64)]) -> UnitLimits<'a> {
    limits
        .iter()
        .map(|(unit, count, window_ms)| UnitLimit { unit, limit: Limit::new(*count, *window_ms).unwrap() })
        .collect()
}

pub fn digest(seed: u64) -> Digest {
    let mut bytes = [0xd1; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    Digest::from_bytes(bytes)
}

pub fn vault(name: &str, expires_ms: Option<u64>, seed: u64) -> Vec<u8> {
    let sealed = [&[9; 64][..], &seed.to_le_bytes()].concat();
    let record = VaultRecord {
        name,
        status: Status::Active,
        created_ms: NOW_MS - 1_000,
        expires_ms,
        source: Some("web"),
        login: None,
        batch: Some("b1"),
        account: Some("shared"),
        weight: 3,
        limits: limits(&[("requests", 60, 60_000), ("tokens", 90_000, 60_000)]),
        shared: limits(&[("requests", 600, 60_000)]),
        rejected: None,
        sealed: &sealed,
        digest: digest(seed),
        digest_key: Fingerprint::from_bytes(*b"fingerpr"),
        hint: Some(Hint::try_from(*b"cdef").unwrap()),
    };
    record.encode().unwrap()
}

pub fn api_record<'a>(org: &'a str, label: &'a str, seed: u64) -> ApiRecord<'a> {
    let issued = Issued {
        digest: digest(seed),
        digest_key: Fingerprint::from_bytes(*b"fingerpr"),
        start: "kg_live_003aUl",
        is_foreign: false,
    };
    ApiRecord {
        org,
        label,
        status: Status::Active,
        created_ms: NOW_MS - 2_000,
        expires_ms: Some(NOW_MS + 86_400_000),
        scopes: Scopes::parse(b"orders:*,users:read").unwrap(),
        limits: limits(&[("requests", 100, 60_000)]),
        issued,
        quotas: Quotas::from_iter([Quota { count: 5_000, period: Period::Month, unit: "requests" }]),
        allowed: allowed(),
        previous: None,
    }
}

fn allowed() -> Allowed<'static> {
    let mut allowed = Allowed::default();
    allowed.add(Net::parse(b"192.0.2.0/24").unwrap()).unwrap();
    allowed
}

pub fn meters() -> Vec<u8> {
    let mut meters = Meters::default();
    meters.set_use(NOW_MS);
    meters.set_used(Period::Month, "requests", Used { until_ms: Some(NOW_MS + 1), units: 7 });
    meters.encode()
}

pub fn header() -> Item {
    Item::Header(Header {
        version: "0.1.0".to_owned(),
        store: "acme".to_owned(),
        created_ms: NOW_MS - 9_000,
        next_id: 100,
        tz: Some("Europe/Berlin".to_owned()),
        ip_threshold: Some(50),
        begun_ms: NOW_MS,
    })
}

pub fn org(id: u64, name: &str, status: OrgStatus) -> Item {
    let record = OrgRecord {
        id,
        status,
        created_ms: NOW_MS - 5_000,
        limits: limits(&[("requests", 1_000, 1_000)]),
        quotas: Quotas::new(),
    };
    Item::Org(Org { id, name: name.to_owned(), packed: record.encode().unwrap(), meters: None })
}

pub fn key(id: u64, packed: Vec<u8>) -> Item {
    Item::Key(Key { id, packed, meta: None, meters: None, last_used_ms: None, token: None })
}

pub fn usage(at_ms: u64, seq: u64, key: u64) -> Usage {
    Usage {
        at_ms,
        seq,
        key,
        code: None,
        status: Some(200),
        latency_ms: Some(12),
        method: Some("GET".to_owned()),
        path: Some("/v1/orders".to_owned()),
        ip: Some("192.0.2.7".to_owned()),
    }
}

pub fn counts(seed: u64) -> Counts {
    Counts { requests: seed, refused: seed + 1, logged: seed + 2, errors: seed + 3, latency_ms: seed + 4 }
}

/// Something of everything.
pub fn store() -> Vec<Item> {
    let rule = Rule {
        net: "192.0.2.7".to_owned(),
        kind: Kind::Block,
        path: None,
        until_ms: Some(NOW_MS + 60_000),
        reason: String::new(),
        by: By::Failures,
        strikes: Some(Strikes { count: 2, until_ms: NOW_MS + 120_000 }),
    };
    let by_hand = Rule {
        net: "2001:db8::/32".to_owned(),
        kind: Kind::Allow,
        path: Some("/api".to_owned()),
        until_ms: None,
        reason: "the office \u{1f3e2}".to_owned(),
        by: By::Hand,
        strikes: None,
    };
    let refused = Usage {
        code: Some("RATE_LIMITED".to_owned()),
        status: None,
        latency_ms: None,
        method: None,
        path: None,
        ip: None,
        ..usage(NOW_MS, 1, 10)
    };
    let nobody = Usage { code: Some("NOT_FOUND".to_owned()), key: 0, status: Some(401), ..usage(NOW_MS, 3, 0) };
    let with_all = Usage { code: Some("QUOTA_EXCEEDED".to_owned()), status: Some(429), ..usage(NOW_MS + 5, 0, 11) };
    let no_latency = Usage { latency_ms: None, path: None, ..usage(NOW_MS + 5, 1, 11) };
    let empty_path = Usage { path: Some(String::new()), ..usage(NOW_MS + 5, 2, 11) };
    let odd_code = Usage { code: Some("ODD".to_owned()), ..usage(NOW_MS + 5, 3, 11) };
    let rotated = ApiRecord {
        previous: Some((api_record("a", "b", 77).issued, NOW_MS + 3_600_000)),
        ..api_record("Initech", "rotated", 11)
    };
    let mut items = vec![
        header(),
        org(1, "Initech", OrgStatus::Active),
        org(2, "Hooli, \"Inc\"", OrgStatus::Suspended),
        Item::Key(Key {
            id: 10,
            packed: api_record("Initech", "ci", 10).encode().unwrap(),
            meta: Some("{\"team\":\"x\"}".to_owned()),
            meters: Some(meters()),
            last_used_ms: Some(NOW_MS - 7),
            token: None,
        }),
        key(11, rotated.encode().unwrap()),
        Item::Key(Key {
            id: 12,
            packed: vault("openai", None, 12),
            meta: None,
            meters: None,
            last_used_ms: None,
            token: Some("gAAAAABtoken_-=".to_owned()),
        }),
        key(13, vault("openai", Some(NOW_MS), 13)),
        Item::Rule(rule),
        Item::Rule(by_hand),
        Item::Account { name: "shared".to_owned(), meters: meters() },
    ];
    let rows = [
        usage(NOW_MS - 1, 0, 10),
        usage(NOW_MS, 0, 10),
        refused,
        usage(NOW_MS, 2, 11),
        nobody,
        with_all,
        no_latency,
        empty_path,
        odd_code,
        usage(NOW_MS + 6, u64::from(u32::MAX), 10),
        usage(NOW_MS + 6, u64::from(u32::MAX) + 1, 10),
        // A key that was deleted, and a vault key.
        usage(NOW_MS + 7, 0, 9),
        usage(NOW_MS + 7, 1, 12),
    ];
    items.extend(rows.map(Item::Usage));
    items.extend([
        Item::Hour { hour_ms: NOW_MS / 3_600_000 * 3_600_000, counts: counts(1) },
        Item::Day { key: 10, day: 20_779, counts: counts(2) },
        Item::Total { key: Some(10), code: None, counts: counts(3) },
        Item::Total { key: None, code: Some("NOT_FOUND".to_owned()), counts: counts(4) },
        Item::Total { key: None, code: None, counts: Counts::default() },
        Item::Value { name: "stats:all".to_owned(), packed: vec![0, 1, 2, 255] },
    ]);
    items
}
