//! The two Python packages that keyguard succeeds, as they come from PyPI, on files of ours and with files of theirs.
//!
//! What a server does with such files is proved on every server by others; these run on one.

use std::{collections::BTreeMap, path::Path, process::Command};

use base64::{Engine, engine::general_purpose::URL_SAFE};
use rusqlite::{Connection, OpenFlags};
use serde_json::Value as Json;

use crate::harness::{Client, Reply, Server, Sut, args, eventually, expect, installed, server_tests, tool};

server_tests![
    keyguard_python_reads_a_snapshot_as_its_own,
    simple_keystore_reads_every_secret_of_a_snapshot,
    keys_that_keyguard_python_issued_are_let_in,
    secrets_that_simple_keystore_kept_are_revealed,
];

/// Runs a program with the Python that has both packages; what it prints.
fn python(arguments: &[&str], environment: &[(&str, &str)]) -> String {
    let program = installed("KEYGUARD_PREDECESSORS", "target/predecessors/bin/python");
    let mut command = Command::new(program);
    let output = command.args(arguments).envs(environment.iter().copied()).output().expect("Python runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{arguments:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// A command of keyguard_python's own command line, on this database.
fn keyguard(database: &Path, command: &str) -> String {
    let url = format!("sqlite+aiosqlite:///{}", database.display());
    python(&["-m", "keyguard", "--db", &url, command], &[])
}

fn snapshot(c: &mut Client, command: &str) {
    assert_eq!(c.ok(command).text(), "OK");
    eventually("the snapshot ending", || {
        let status = c.ok("KG.SNAPSHOT acme STATUS");
        expect(status.field("state").text() == "done", || format!("{status:?}"))
    });
}

/// A server whose keyring file has a Fernet key of the label `old` as well.
fn server_with_fernet(sut: &Sut, key: &[u8; 32]) -> Server {
    let mut keyring: Json = serde_json::from_str(crate::harness::KEYRING).unwrap();
    keyring["fernet"] = serde_json::json!({ "old": URL_SAFE.encode(key) });
    sut.setup().keyring(&keyring.to_string()).start()
}

fn keyguard_python_reads_a_snapshot_as_its_own(sut: &Sut) {
    let server = sut.setup().counting_usage().start();
    let mut c = server.client();
    let orgs = [("Acme Inc.", 3), ("M\u{fc}ller & S\u{f6}hne", 2), ("suspended", 1), ("empty", 0)];
    let mut keys = Vec::new();
    for (org, n) in orgs {
        c.ok(args!["KG.ADDORG", "acme", org]);
        for n in 0..n {
            let label = format!("{}-{n}", &org[..1]);
            let issued = c.ok(args![
                "KG.NEWKEY",
                "acme",
                org,
                label,
                "SCOPES",
                "read,orders:*",
                "LIMIT",
                10 + n,
                "1m",
                "QUOTA",
                1000,
                "month"
            ]);
            keys.push((issued.list()[0].int(), label, issued.list()[1].text(), org));
        }
    }
    c.ok("KG.SETORG acme suspended STATUS suspended");
    c.ok(args!["KG.REVOKE", "acme", keys[1].0]);
    let mut calls = 0;
    for round in 0..4 {
        for (id, _, raw, org) in &keys {
            if c.code(args!["KG.AUTH", "acme", raw, "IP", "192.0.2.1"]) == "VALID" {
                assert!(*org != "suspended");
                let status = if round == 0 { 500 } else { 200 };
                c.ok(args![
                    "KG.LOG",
                    "acme",
                    id,
                    "PATH",
                    "/orders",
                    "METHOD",
                    "GET",
                    "STATUS",
                    status,
                    "LATENCY",
                    7,
                    "IP",
                    "192.0.2.1"
                ]);
                calls += 1;
            }
        }
    }
    assert_eq!(calls, 16);
    eventually("the log being written", || {
        let entries = c.ok("KG.STATS acme").field("log_entries").int();
        // The refusals are there too.
        expect(entries >= 24, || format!("{entries}"))
    });
    snapshot(&mut c, "KG.SNAPSHOT acme TO acme.sqlite");
    let database = server.directory().join("snapshots/acme.sqlite");

    let shown = keyguard(&database, "list-orgs");
    for org in c.ok("KG.LISTORGS acme").list() {
        let (name, status, keys) = (org.field("name").text(), org.field("status").text(), org.field("keys").int());
        let line = shown.lines().find(|line| line.starts_with(&format!("{name:<30} ")));
        let words: Vec<&str> = line.expect("the organization is listed")[name.len()..].split_whitespace().collect();
        assert_eq!(words[..2], [status, keys.to_string()]);
    }
    assert!(shown.contains("Total: 4 organization(s)"), "{shown}");

    let shown = keyguard(&database, "list-keys");
    for key in c.ok("KG.LISTKEYS acme").list() {
        let label = key.field("label").text();
        let line = shown.lines().find(|line| line.starts_with(&format!("{label:<25} "))).expect("the key is listed");
        let status = if key.field("status").text() == "active" { "active" } else { "revoked" };
        let limit = key.field("limits").list()[0].text();
        let per_minute = limit.split(' ').next().unwrap();
        let start: String = key.field("start").text().chars().take(12).collect();
        for word in [start.as_str(), status, per_minute, &key.field("org").text()] {
            assert!(line.contains(word), "{word} in {line}");
        }
        assert_eq!(line.contains("never"), key.get("last_used_at").is_none(), "{line}");
    }
    assert!(shown.contains("Total: 6 key(s)"), "{shown}");

    let stats = c.ok("KG.STATS acme");
    let shown = keyguard(&database, "stats");
    let figure = |name: &str| -> String {
        let line = shown.lines().find(|line| line.contains(name)).unwrap_or_else(|| panic!("{name} in {shown}"));
        line.split(':').nth(1).unwrap().trim_matches(|c: char| !c.is_ascii_digit()).to_owned()
    };
    for (name, field) in [
        ("Organizations", "organizations"),
        ("Total Keys", "keys"),
        ("Active Keys", "active_keys"),
        ("Total Requests", "requests"),
        ("Requests (1h)", "requests_last_hour"),
    ] {
        assert_eq!(figure(name), stats.field(field).int().to_string(), "{name}");
    }
    assert_eq!(stats.field("requests").int(), calls);
    // 4 of 16.
    assert_eq!(figure("Error Rate"), "25.0");

    // Our own commands of these names say the same in the same words, but for ids, blanks, and two more characters of each key.
    for command in ["list-orgs", "list-keys", "stats"] {
        let output = tool(&server).env("TZ", "UTC").arg(command).output().expect("it runs");
        let ours = String::from_utf8(output.stdout).expect("text").replace('%', "");
        let theirs = keyguard(&database, command).replace('%', "");
        assert_eq!(ours.lines().count(), theirs.lines().count(), "{command}: {ours}{theirs}");
        for (ours, theirs) in ours.lines().zip(theirs.lines()) {
            let (ours, theirs) = (ours.split_whitespace(), theirs.split_whitespace());
            assert_eq!(ours.clone().count(), theirs.clone().count(), "{command}: {ours:?}, {theirs:?}");
            for (ours, theirs) in ours.zip(theirs) {
                let is_same = if theirs.starts_with("kg_live_") { ours.starts_with(theirs) } else { ours == theirs };
                assert!(is_same || theirs.len() == 36, "{command}: {ours}, {theirs}");
            }
        }
    }
}

fn simple_keystore_reads_every_secret_of_a_snapshot(sut: &Sut) {
    let key = [7; 32];
    let server = server_with_fernet(sut, &key);
    let mut c = server.client();
    let mut secrets = BTreeMap::new();
    for n in 0..200 {
        let secret = format!("sk-example-{n}-{}", "\u{e9}".repeat(n % 40));
        let mut command =
            args!["KG.ADDKEY", "acme", format!("vendor {}", n % 3), secret, "SOURCE", format!("s{}", n % 5)];
        if n % 4 == 0 {
            command.extend(args!["LOGIN", "ops@example.com", "BATCH", "b1", "INACTIVE"]);
        }
        if n % 7 == 0 {
            command.extend(args!["EXPIREAT", 4_000_000_000_i64]);
        }
        secrets.insert(c.ok(command).int(), secret);
    }
    snapshot(&mut c, "KG.SNAPSHOT acme TO vault.sqlite FERNET old");
    let database = server.directory().join("snapshots/vault.sqlite");
    let script = "import json, sys\nfrom simple_keystore import SimpleKeyStore\n\
                  print(json.dumps(SimpleKeyStore(sys.argv[1]).get_matching_key_records(), default=str))";
    let fernet = URL_SAFE.encode(key);
    let printed = python(&["-c", script, &database.display().to_string()], &[("SIMPLE_KEYSTORE_KEY", &fernet)]);
    let records: Vec<Json> = serde_json::from_str(printed.lines().last().unwrap()).unwrap();
    assert_eq!(records.len(), secrets.len());
    for record in records {
        let id = record["id"].as_i64().unwrap();
        assert_eq!(record["key"].as_str().unwrap(), secrets[&id]);
        let ours = c.ok(args!["KG.GETKEY", "acme", id]);
        for field in ["name", "source", "login", "batch"] {
            assert_eq!(record[field].as_str().map(str::to_owned), ours.get(field).map(|value| value.text()), "{field}");
        }
        assert_eq!(record["active"].as_bool().unwrap(), ours.field("status").text() == "active");
        let expires_s = record["expiration_in_sse"].as_i64().unwrap();
        assert_eq!(expires_s * 1000, ours.get("expires_at").map_or(0, |at_ms| at_ms.int()));
    }
}

/// Waits for an import, which must go through; how many rows of `what` came.
fn imported(c: &mut Client, command: &str, what: &str) -> i64 {
    assert_eq!(c.ok(command).text(), "OK");
    let status = eventually("the import ending", || {
        let status = c.ok("KG.IMPORT acme STATUS");
        expect(status.field("state").text() != "running", || format!("{status:?}")).map(|()| status)
    });
    assert_eq!((status.field("state").text(), status.field("skipped").int()), ("done".into(), 0), "{status:?}");
    status.field(what).int()
}

fn keys_that_keyguard_python_issued_are_let_in(sut: &Sut) {
    const SCRIPT: &str = r#"
import asyncio, datetime, json, sys
from keyguard.config import KeyGuardConfig
from keyguard.core import KeyGuard
from keyguard.models import APIKey, Organization, UsageLog

async def main():
    kg = KeyGuard(KeyGuardConfig(secret_key="old \u00e9 secret", database_url="sqlite+aiosqlite:///" + sys.argv[1]))
    await kg.init_db()
    raw_keys = []
    async with kg.session_factory() as session:
        for o in range(4):
            org = Organization(name="org", status="active")
            session.add(org)
            await session.flush()
            for n in range(250):
                raw, digest = kg.auth.generate_api_key()
                expires = datetime.datetime(2999, 1, 2, 3, 4, 5, 678900) if n % 3 else None
                key = APIKey(org_id=org.id, label=f"key {n}", prefix=raw[:12], key_hash=digest, expires_at=expires,
                             scopes=["read", "orders:write"], rate_limit_per_minute=5, monthly_limit=1000)
                session.add(key)
                await session.flush()
                session.add(UsageLog(key_id=key.id, path="/x", method="GET", status_code=200, latency_ms=3, ip_address="192.0.2.1"))
                raw_keys.append(raw)
        await session.commit()
    await kg.engine.dispose()
    print(json.dumps(raw_keys))

asyncio.run(main())
"#;
    let mut keyring: Json = serde_json::from_str(crate::harness::KEYRING).unwrap();
    keyring["peppers"] = serde_json::json!({ "old": "old \u{e9} secret" });
    let server = sut.setup().keyring(&keyring.to_string()).start();
    let mut c = server.client();
    let database = server.directory().join("snapshots/keyguard.db");
    let printed = python(&["-c", SCRIPT, &database.display().to_string()], &[]);
    let keys: Vec<String> = serde_json::from_str(printed.lines().last().unwrap()).unwrap();
    assert_eq!(imported(&mut c, "KG.IMPORT acme FROM keyguard.db FORMAT keyguard PEPPER old", "api_keys"), 1000);
    assert_eq!(c.ok("KG.STATS acme").field("requests").int(), 1000);
    // As long as they are not used here, the old package knows them in a snapshot, too.
    snapshot(&mut c, "KG.SNAPSHOT acme TO back.sqlite");
    let hashes = |path: &Path| -> Vec<String> {
        let db = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
        let mut statement = db.prepare("SELECT key_hash FROM api_keys ORDER BY 1").unwrap();
        let rows = statement.query_map([], |row| row.get(0)).unwrap();
        rows.map(Result::unwrap).collect()
    };
    assert_eq!(hashes(&database.with_file_name("back.sqlite")), hashes(&database));
    for raw in &keys {
        let reply = c.ok(args!["KG.AUTH", "acme", raw, "SCOPE", "orders:write"]);
        assert_eq!((reply.field("code").text(), reply.field("remaining").int()), ("VALID".into(), 4), "{raw}");
        assert_eq!(c.code(args!["KG.AUTH", "acme", format!("{raw}x")]), "NOT_FOUND");
        assert_eq!(c.code(args!["KG.AUTH", "acme", raw, "SCOPE", "admin"]), "INSUFFICIENT_SCOPE");
    }
}

fn secrets_that_simple_keystore_kept_are_revealed(sut: &Sut) {
    const SCRIPT: &str = r#"
import sys
from simple_keystore import SimpleKeyStore
ks = SimpleKeyStore(sys.argv[1])
for n in range(1000):
    ks.add_key(name=f"vendor {n % 3}", unencrypted_key=f"sk-{n}-" + "\u00e9" * (n % 50), active=n % 4 != 0,
               expiration_in_sse=4000000000 if n % 2 else None, batch="b1", source=f"s{n % 5}", login="ops")
"#;
    let key = [9; 32];
    let server = server_with_fernet(sut, &key);
    let mut c = server.client();
    let database = server.directory().join("snapshots/keys.db");
    let fernet = URL_SAFE.encode(key);
    python(&["-c", SCRIPT, &database.display().to_string()], &[("SIMPLE_KEYSTORE_KEY", &fernet)]);
    assert_eq!(imported(&mut c, "KG.IMPORT acme FROM keys.db FORMAT simple_keystore FERNET old", "vault_keys"), 1000);
    for n in 0..1000_usize {
        let secret = format!("sk-{n}-{}", "\u{e9}".repeat(n % 50));
        assert_eq!(c.ok(args!["KG.REVEAL", "acme", n + 1]).text(), secret);
        let shown = c.ok(args!["KG.GETKEY", "acme", n + 1]);
        assert_eq!(shown.field("active").int(), i64::from(n % 4 != 0));
        assert_eq!(shown.get("expires_at").map(|at| at.int()), (n % 2 == 1).then_some(4_000_000_000_000));
        assert_eq!(shown.field("source").text(), format!("s{}", n % 5));
    }
}
