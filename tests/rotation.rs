//! Rotation: a newer key comes into the keyring, everything moves to it, and the old one goes, while the server works on.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use redis::Value;

use crate::harness::{
    Client, Cluster, Reply, Server, Setup, Sut, args, eventually, expect, migrate, populate, server_tests,
};

server_tests![
    a_whole_rotation_loses_nothing,
    status_counts_what_uses_each_key,
    status_names_keys_that_are_missing,
    reload_puts_the_first_keyring_in_force,
    reload_leaves_a_keyring_in_force_when_it_cannot_be_read,
    reload_does_not_lose_a_key,
    drop_takes_only_what_nobody_needs,
    a_pepper_in_use_is_kept_like_a_key,
    api_keys_move_to_the_newest_key_when_they_are_used,
    api_keys_stay_where_they_are_when_nothing_is_charged,
    an_api_key_in_its_grace_keeps_its_key_in_the_keyring,
    questions_wait_without_holding_others_up,
    questions_are_not_asked_in_transactions_and_scripts,
    who_asks_may_go_away,
    each_server_has_its_own_keyring,
    rekey_goes_on_beside_traffic,
    rekey_goes_on_after_a_crash,
    rekey_reaches_replicas_as_it_is,
    rekey_writes_a_slice_as_one_transaction,
    rekey_stops_and_goes_on,
    rekey_takes_one_store_after_the_other,
    rekey_counts_what_does_not_open,
    rekey_waits_while_writes_are_paused,
    rekey_ends_with_the_data,
    rekey_ends_with_its_store,
    rekey_begins_again_under_a_newer_key,
    rekey_knows_secrets_that_several_keys_share,
    rekey_ends_where_a_slot_moves,
    rekey_goes_on_where_a_slot_has_gone,
];

/// A keyring file of these keys, oldest first, each 32 times its number.
fn keyring(keys: &[u8]) -> String {
    let keys: Vec<_> = keys.iter().map(|key| serde_json::json!({ "key": STANDARD.encode([*key; 32]) })).collect();
    serde_json::json!({ "version": 1, "keys": keys }).to_string()
}

/// Another content of the file that a running server read its keyring from.
fn write_keyring(server: &Server, keys: &[u8]) {
    fs::write(server.keyring_file(), keyring(keys)).unwrap();
}

/// The same, put in force.
fn reload(server: &Server, keys: &[u8]) {
    write_keyring(server, keys);
    assert_eq!(server.client().ok("KG.KEYRING RELOAD").text(), "OK");
}

/// What STATUS says: fingerprint, newest, records, missing.
fn status(c: &mut Client) -> Vec<(String, bool, i64, bool)> {
    let reply = c.ok("KG.KEYRING STATUS");
    let row = |row: &Value| {
        let missing = row.get("missing").map_or(0, |missing| missing.int());
        (row.field("fingerprint").text(), row.field("newest").int() == 1, row.field("records").int(), missing == 1)
    };
    reply.list().iter().map(row).collect()
}

/// How many records use each key, newest first.
fn records(c: &mut Client) -> Vec<i64> {
    status(c).into_iter().map(|(_, _, records, _)| records).collect()
}

/// The fingerprints of the keyring, newest first.
fn fingerprints(c: &mut Client) -> Vec<String> {
    status(c).into_iter().map(|(fingerprint, ..)| fingerprint).collect()
}

/// What KG.REKEY says: state, left, done, failed.
type Progress = (String, i64, i64, i64);

fn progress(reply: &Value) -> Progress {
    let number = |field| reply.field(field).int();
    (reply.field("state").text(), number("left"), number("done"), number("failed"))
}

fn rekey(c: &mut Client, store: &str) -> Progress {
    progress(&c.ok(args!["KG.REKEY", store]))
}

/// Starts a job, if none is under way, and waits for its end.
fn rekeyed(c: &mut Client, store: &str) -> Progress {
    eventually("the end of the job", || {
        let seen = rekey(c, store);
        expect(seen.0 == "done", || format!("{seen:?}")).map(|()| seen)
    })
}

fn done(done: i64) -> Progress {
    ("done".to_owned(), 0, done, 0)
}

fn secret(n: usize) -> String {
    format!("sk-live-{n:08}-abcdef")
}

/// Vault keys 1 to `count` of a new store.
fn add(c: &mut Client, store: &str, count: usize) {
    let commands: Vec<_> =
        (1..=count).map(|n| args!["KG.ADDKEY", store, format!("name{}", n % 7), secret(n)]).collect();
    for (reply, n) in c.pipeline(&commands).iter().zip(1..) {
        assert_eq!(*reply, Value::Int(n));
    }
}

/// They are all there, and found by their secrets.
fn assert_all_there(c: &mut Client, store: &str, count: usize) {
    let commands: Vec<_> =
        (1..=count).flat_map(|n| [args!["KG.REVEAL", store, n], args!["KG.FINDKEY", store, secret(n)]]).collect();
    for (replies, n) in c.pipeline(&commands).chunks(2).zip(1..) {
        assert_eq!(replies[0], Value::BulkString(secret(n).into_bytes()), "key {n}");
        assert_eq!(replies[1].ints(), [n as i64], "the secret of key {n}");
    }
}

/// Waits until a job has done something, and holds all writes: it stands in the middle.
fn halt_in_the_middle(c: &mut Client, store: &str) {
    assert_eq!(rekey(c, store).0, "running");
    // Without a rest: a few thousand records take it a fraction of a second.
    let begun = Instant::now();
    while c.info_number("keyguard", "keyguard_rekey_done") == 0 {
        assert!(begun.elapsed() < Duration::from_secs(60), "nothing was sealed again");
    }
    c.ok("CLIENT PAUSE 600000 WRITE");
    assert_eq!(c.info_number("keyguard", "keyguard_rekey_running"), 1, "it is not through yet");
    assert!(c.info_number("keyguard", "keyguard_rekey_left") > 0);
}

fn durable(setup: Setup) -> Setup {
    setup.with("appendonly", "yes").with("appendfsync", "always")
}

fn a_whole_rotation_loses_nothing(sut: &Sut) {
    let mut server = durable(sut.setup().keyring(&keyring(&[1]))).start();
    let mut c = server.client();
    add(&mut c, "acme", 50);
    c.ok("KG.ADDORG acme shop");
    let issued = c.ok("KG.NEWKEY acme shop web").list().to_vec();
    let old = fingerprints(&mut c).remove(0);
    reload(&server, &[1, 2]);
    assert_eq!(c.info("keyguard", "keyguard_keyring_newest"), Some(fingerprints(&mut c).remove(0)));
    assert_eq!(rekeyed(&mut c, "acme"), done(50));
    assert_eq!(records(&mut c), [50, 1], "the API key stays under its key");
    let text = c.refused("INUSE", args!["KG.KEYRING", "DROP", old]);
    assert!(text.contains("use this key: 1;"), "{text}");
    let id = c.ok("KG.NEWKEY acme shop newer").list()[0].int();
    assert_eq!(c.code(args!["KG.AUTH", "acme", issued[1].text()]), "VALID");
    c.ok(args!["KG.DELKEY", "acme", issued[0].int()]);
    assert_eq!(c.ok(args!["KG.KEYRING", "DROP", old.to_uppercase()]).text(), "OK");
    write_keyring(&server, &[2]);
    server.restart();
    let mut c = server.client();
    assert_all_there(&mut c, "acme", 50);
    assert_eq!(c.ok(args!["KG.GETKEY", "acme", id]).field("label").text(), "newer");
    assert_eq!(records(&mut c), [51]);
    assert_eq!(c.info("keyguard", "keyguard_keyring_lacking").unwrap_or_default(), "");
}

fn status_counts_what_uses_each_key(sut: &Sut) {
    let server = sut.setup().keyring(&keyring(&[1])).start();
    let mut c = server.client();
    assert_eq!(records(&mut c), [0]);
    let sample = populate(&mut c);
    c.ok("SELECT 3");
    add(&mut c, "zeta", 10);
    c.ok("SELECT 0");
    // Eight vault keys and four API keys of `populate`.
    assert_eq!(records(&mut c), [22]);
    reload(&server, &[1, 2]);
    add(&mut c, "beta", 4);
    let rows = status(&mut c.resp3());
    assert_eq!(
        rows.iter().map(|row| (row.1, row.2, row.3)).collect::<Vec<_>>(),
        [(true, 4, false), (false, 22, false)]
    );
    assert!(rows.iter().all(|row| row.0.len() == 16 && row.0.bytes().all(|byte| byte.is_ascii_hexdigit())));
    let mut c = server.client();
    assert_eq!(c.code(format!("KG.AUTH acme {} SCOPE read", sample.limited)), "VALID");
    c.ok("KG.DELKEY acme 1 2");
    c.ok("DEL {beta}:key:1");
    assert_eq!(
        records(&mut c),
        [5, 19],
        "what is counted is what the headers say, and AUTH moved one to the newest key"
    );
    for command in ["KG.KEYRING", "KG.KEYRING WHAT", "KG.KEYRING STATUS x", "KG.KEYRING DROP", "KG.KEYRING DROP x"] {
        c.refused("ERR", command);
    }
}

fn a_pepper_in_use_is_kept_like_a_key(sut: &Sut) {
    let with_peppers = |peppers: &str| {
        let mut file: serde_json::Value = serde_json::from_str(&keyring(&[1])).unwrap();
        file["peppers"] = serde_json::from_str(peppers).unwrap();
        file.to_string()
    };
    let both = with_peppers(r#"{"old":"hunter2","older":"x"}"#);
    let server = sut.setup().keyring(&both).start();
    let mut c = server.client();
    populate(&mut c);
    let rows = c.ok("KG.KEYRING STATUS").list().to_vec();
    assert_eq!(rows.len(), 3, "the key, and two peppers");
    assert_eq!([1, 2].map(|row: usize| rows[row].field("pepper").text()), ["old", "older"]);
    let old = rows[1].field("fingerprint").text();
    let use_it = |c: &mut Client, by: i64| c.ok(args!["HINCRBY", "acme", format!("using:{old}"), by]);
    use_it(&mut c, 1);
    assert_eq!(c.ok("KG.KEYRING STATUS").list()[1].field("records").int(), 1);
    let text = c.refused("INUSE", args!["KG.KEYRING", "DROP", old]);
    assert!(text.contains("use this key: 1;"), "{text}");
    for peppers in ["{}", r#"{"older":"x"}"#, r#"{"old":"typo","older":"x"}"#, r#"{"renamed":"hunter2","older":"x"}"#] {
        fs::write(server.keyring_file(), with_peppers(peppers)).unwrap();
        assert!(c.refused("INUSE", "KG.KEYRING RELOAD").contains(&old), "{peppers}");
    }
    use_it(&mut c, -1);
    assert_eq!(c.ok(args!["KG.KEYRING", "DROP", old]).text(), "OK");
    fs::write(server.keyring_file(), with_peppers(r#"{"older":"x"}"#)).unwrap();
    c.ok("KG.KEYRING RELOAD");
    // A store that came to use it meanwhile has strangers among its customers.
    use_it(&mut c, 1);
    let row = c.ok("KG.KEYRING STATUS").list()[2].clone();
    assert_eq!((row.field("fingerprint").text(), row.field("missing").int()), (old.clone(), 1));
    assert_eq!(c.info("keyguard", "keyguard_keyring_lacking").as_deref(), Some(&*old));
    let unknown = format!("kg_live_{}", "0".repeat(49));
    let org = c.ok("KG.LISTORGS acme").list()[0].field("name").text();
    let issued = c.ok(args!["KG.NEWKEY", "acme", org, "web"]).list().to_vec();
    let raw = issued[1].text();
    assert_eq!(c.code(args!["KG.AUTH", "acme", raw]), "VALID");
    assert_eq!(c.code(args!["KG.AUTH", "acme", unknown]), "NOT_FOUND", "its form is wrong");
    c.ok(args!["KG.DELKEY", "acme", issued[0].int()]);
    c.refused("NOKEYRING", args!["KG.AUTH", "acme", raw]);
    fs::write(server.keyring_file(), both).unwrap();
    c.ok("KG.KEYRING RELOAD");
    assert_eq!(c.code(args!["KG.AUTH", "acme", raw]), "NOT_FOUND");
    assert!(!server.log().contains("hunter2"));
}

fn status_names_keys_that_are_missing(sut: &Sut) {
    let mut server = durable(sut.setup().keyring(&keyring(&[1]))).start();
    let mut c = server.client();
    add(&mut c, "acme", 3);
    let old = fingerprints(&mut c).remove(0);
    server.kill();
    write_keyring(&server, &[2]);
    server.start_again();
    let mut c = server.client();
    let rows = status(&mut c);
    assert_eq!((rows[0].1, rows[0].2, rows[0].3), (true, 0, false));
    assert_eq!(rows[1..], [(old.clone(), false, 3, true)]);
    c.refused("NOSUCH", args!["KG.KEYRING", "DROP", old]);
    assert_eq!(c.info("keyguard", "keyguard_keyring_lacking"), Some(old));
    // RELOAD brings it back, and what INFO says of it.
    reload(&server, &[1, 2]);
    eventually("INFO having nothing to complain of", || {
        let lacking = c.info("keyguard", "keyguard_keyring_lacking").unwrap_or_default();
        expect(lacking.is_empty(), || lacking)
    });
    assert_all_there(&mut c, "acme", 3);
}

fn reload_puts_the_first_keyring_in_force(sut: &Sut) {
    let server = sut.setup().module_arguments(&[]).start();
    let mut c = server.client();
    assert_eq!(status(&mut c), []);
    c.refused("NOKEYRING", "KG.KEYRING DROP 0123456789abcdef");
    assert!(c.refused("ERR", "KG.KEYRING RELOAD").contains(".netrc"));
    c.refused("NOKEYRING", "KG.ADDKEY acme vendor some-secret");
    let netrc = server.directory().join(".netrc");
    fs::write(&netrc, format!("machine KEYGUARD_KEYRING password {}\n", STANDARD.encode([1; 32]))).unwrap();
    fs::set_permissions(&netrc, fs::Permissions::from_mode(0o644)).unwrap();
    assert!(c.refused("ERR", "KG.KEYRING RELOAD").contains("0600"));
    fs::set_permissions(&netrc, fs::Permissions::from_mode(0o600)).unwrap();
    c.ok("KG.KEYRING RELOAD");
    assert_eq!(c.info("keyguard", "keyguard_keyring_source").as_deref(), Some("netrc"));
    c.ok("KG.ADDKEY acme vendor some-secret");
    assert_eq!(records(&mut c), [1]);
}

fn reload_leaves_a_keyring_in_force_when_it_cannot_be_read(sut: &Sut) {
    let server = sut.setup().keyring(&keyring(&[1])).start();
    let mut c = server.client();
    add(&mut c, "acme", 3);
    let before = status(&mut c);
    let file = server.keyring_file();
    let mut refused = |words: &str| {
        let text = c.refused("ERR", "KG.KEYRING RELOAD");
        assert!(text.contains(words) && !text.contains("hunter2"), "{text}");
        assert_eq!(status(&mut c), before, "{words}");
        assert_all_there(&mut c, "acme", 3);
    };
    for (content, words) in [
        ("{\"hunter2\"".to_owned(), "not of the form"),
        ("hunter2".to_owned(), "key 1 of the keyring is not 32 bytes"),
        (keyring(&[]), "holds no key"),
        (keyring(&[1, 2, 1]), "key 3 of the keyring is the same"),
        (keyring(&[1, 0]), "all zeros"),
        (" ".repeat(2 << 20), "larger"),
    ] {
        fs::write(&file, content).unwrap();
        refused(words);
    }
    write_keyring(&server, &[1, 2]);
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
    refused("mode 0640");
    fs::remove_file(&file).unwrap();
    refused("does not exist");
    // A pipe that nobody writes to would hold the server for good.
    assert!(Command::new("mkfifo").args(["-m", "600"]).arg(&file).status().unwrap().success());
    refused("not a regular file");
}

fn reload_does_not_lose_a_key(sut: &Sut) {
    let server = sut.setup().keyring(&keyring(&[1, 2])).start();
    let mut c = server.client();
    let [newest, older] = fingerprints(&mut c).try_into().unwrap();
    for keys in [&[2][..], &[1, 3], &[3]] {
        write_keyring(&server, keys);
        let text = c.refused("INUSE", "KG.KEYRING RELOAD");
        assert!(text.contains("KG.KEYRING DROP"), "{text}");
        assert_eq!(fingerprints(&mut c), [newest.clone(), older.clone()]);
    }
    c.ok(args!["KG.KEYRING", "DROP", older]);
    assert_eq!(fingerprints(&mut c), [&*newest]);
    // As long as the file holds it, it comes back.
    reload(&server, &[1, 2]);
    assert_eq!(fingerprints(&mut c), [newest, older]);
    // In a transaction too: it needs no survey.
    c.ok("MULTI");
    c.ok("KG.KEYRING RELOAD");
    assert_eq!(c.ok("EXEC").list().len(), 1);
}

fn drop_takes_only_what_nobody_needs(sut: &Sut) {
    let server = sut.setup().keyring(&keyring(&[1])).start();
    let mut c = server.client();
    add(&mut c, "acme", 5);
    c.ok("SELECT 2");
    add(&mut c, "acme", 2);
    c.ok("SELECT 0");
    let [newest, old] = {
        reload(&server, &[1, 2]);
        fingerprints(&mut c).try_into().unwrap()
    };
    let text = c.refused("INUSE", args!["KG.KEYRING", "DROP", old]);
    assert!(text.contains("use this key: 7;") && text.contains("KG.REKEY"), "{text}");
    c.refused("INUSE", args!["KG.KEYRING", "DROP", newest]);
    c.refused("NOSUCH", "KG.KEYRING DROP 0123456789abcdef");
    for bad in ["", "0123456789abcde", "0123456789abcdefg", "+123456789abcdef", "0123456789abcdeg"] {
        let text = c.refused("ERR", args!["KG.KEYRING", "DROP", bad]);
        assert!(text.contains("16 hexadecimal digits"), "{text}");
    }
    assert_eq!(rekeyed(&mut c, "acme"), done(5));
    assert!(
        c.refused("INUSE", args!["KG.KEYRING", "DROP", old]).contains("use this key: 2;"),
        "those of the other database"
    );
    c.ok("SELECT 2");
    c.ok("KG.DELKEY acme 1");
    assert_eq!(rekeyed(&mut c, "acme"), done(1));
    c.ok(args!["KG.KEYRING", "DROP", old]);
    assert_eq!(fingerprints(&mut c), [newest]);
    c.refused("NOSUCH", args!["KG.KEYRING", "DROP", old]);
}

/// A server whose survey takes a while.
fn full_server(sut: &Sut) -> Server {
    let server = sut.setup().keyring(&keyring(&[1])).start();
    let mut c = server.client();
    c.ok("DEBUG POPULATE 300000");
    add(&mut c, "acme", 5);
    server
}

/// An API key of organization `shop`.
fn issue(c: &mut Client, arguments: &str) -> (i64, String) {
    if c.ok("EXISTS acme").int() == 0 {
        c.ok("KG.ADDORG acme shop");
    }
    let reply = c.ok(format!("KG.NEWKEY acme shop {arguments}"));
    (reply.list()[0].int(), reply.list()[1].text())
}

fn digests(c: &mut Client) -> Vec<Vec<u8>> {
    c.keys().into_iter().filter(|key| key.starts_with(b"{acme}:digest:")).collect()
}

fn api_keys_move_to_the_newest_key_when_they_are_used(sut: &Sut) {
    let mut primary = durable(sut.setup().keyring(&keyring(&[1]))).start();
    let replica = sut.setup().keyring(&keyring(&[1, 2])).replica_of(&primary).start();
    primary.wait_for(&replica);
    let (mut c, mut theirs) = (primary.client(), replica.client());
    let mut keys = Vec::new();
    for n in 0..10 {
        keys.push(issue(
            &mut c,
            &format!("key{n} LIMIT 5 1h QUOTA 9 total META {{}} PREFIX {}", "p".repeat(1 + n * 3)),
        ));
        if n % 2 == 0 {
            assert_eq!(c.code(args!["KG.AUTH", "acme", keys[n].1]), "VALID");
        }
    }
    let old = fingerprints(&mut c).remove(0);
    reload(&primary, &[1, 2]);
    let before: Vec<Value> = keys.iter().map(|(id, _)| c.ok(args!["KG.GETKEY", "acme", id])).collect();
    assert_eq!(records(&mut c), [0, 10]);
    for (n, (id, raw)) in keys.iter().enumerate() {
        let index = digests(&mut c);
        let map = c.ok(args!["KG.AUTH", "acme", raw]);
        assert_eq!((map.field("code").text().as_str(), map.field("id").int()), ("VALID", *id));
        assert_eq!(map.field("remaining").int(), if n % 2 == 0 { 3 } else { 4 });
        assert_eq!(records(&mut c), [n as i64 + 1, 9 - n as i64]);
        let moved = digests(&mut c);
        assert_eq!(moved.len(), 10, "one entry for another");
        assert_eq!(moved.iter().filter(|entry| index.contains(entry)).count(), 9);
        // Again, and nothing moves.
        c.ok(args!["KG.AUTH", "acme", raw]);
        assert_eq!(digests(&mut c), moved);
        for (field, value) in before[n].fields() {
            if field != "last_used_at" {
                assert_eq!(c.ok(args!["KG.GETKEY", "acme", id]).field(&field), value, "{field}");
            }
        }
    }
    primary.wait_for(&replica);
    assert_eq!(c.state(), theirs.state());
    assert_eq!(records(&mut theirs), [10, 0]);
    for c in [&mut theirs, &mut c] {
        assert_eq!(c.ok(args!["KG.KEYRING", "DROP", old]).text(), "OK");
    }
    let still_there = |c: &mut Client| {
        for (id, raw) in &keys {
            let map = c.ok(args!["KG.CHECK", "acme", raw]);
            assert_eq!((map.field("code").text().as_str(), map.field("id").int()), ("VALID", *id));
            assert!(map.field("remaining").int() >= 2);
        }
    };
    still_there(&mut c);
    still_there(&mut theirs);
    let state = c.state();
    write_keyring(&primary, &[2]);
    primary.restart();
    let mut c = primary.client();
    assert_eq!(c.state(), state);
    still_there(&mut c);
    for (id, raw) in &keys {
        c.ok(args!["KG.REVOKE", "acme", "KEY", raw]);
        assert_eq!(c.ok(args!["KG.DELKEY", "acme", id]).int(), 1);
    }
    assert_eq!(digests(&mut c).len(), 0);
    assert_eq!(records(&mut c), [0]);
}

fn api_keys_stay_where_they_are_when_nothing_is_charged(sut: &Sut) {
    let server = durable(sut.setup().keyring(&keyring(&[1]))).start();
    let mut c = server.client();
    let (_, raw) = issue(&mut c, "web SCOPES read LIMIT 2 1h QUOTA 1 total");
    let (gone, revoked) = issue(&mut c, "gone");
    let (_, late) = issue(&mut c, "late EXPIREAT 1");
    let (_, here) = issue(&mut c, "here ALLOW 192.0.2.1");
    c.ok(args!["KG.REVOKE", "acme", gone]);
    c.ok("KG.BLOCKIP acme 192.0.2.66 1h");
    reload(&server, &[1, 2]);
    let before = c.state();
    for (raw, options, code) in [
        (&raw, "SCOPE write", "INSUFFICIENT_SCOPE"),
        (&raw, "COST 3", "RATE_LIMITED"),
        (&raw, "COST 2", "QUOTA_EXCEEDED"),
        (&raw, "IP 192.0.2.66", "IP_BLOCKED"),
        (&revoked, "", "DISABLED"),
        (&late, "", "EXPIRED"),
        (&here, "", "IP_NOT_ALLOWED"),
    ] {
        assert_eq!(c.code(format!("KG.AUTH acme {raw} {options}")), code);
        assert_eq!(c.state(), before, "{code}");
    }
    for raw in [&raw, &revoked] {
        c.ok(args!["KG.CHECK", "acme", raw]);
    }
    assert_eq!(c.state(), before);
    assert_eq!(records(&mut c), [0, 4]);
    assert_eq!(c.code(args!["KG.AUTH", "acme", raw]), "VALID");
    assert_eq!(records(&mut c), [1, 3]);
    // By the key itself, also what stays under the old one can be revoked, rotated and deleted.
    assert_eq!(c.ok(args!["KG.REVOKE", "acme", "KEY", here]), Value::Okay);
    let late = c.ok(args!["KG.ROTATE", "acme", gone + 1]);
    assert_eq!(records(&mut c), [2, 2]);
    assert_eq!(c.code(args!["KG.AUTH", "acme", late.list()[1].text()]), "EXPIRED");
    c.ok(args!["KG.DELKEY", "acme", gone, gone + 2]);
    assert_eq!(records(&mut c), [2, 0]);
}

fn an_api_key_in_its_grace_keeps_its_key_in_the_keyring(sut: &Sut) {
    let server = durable(sut.setup().keyring(&keyring(&[1]))).start();
    let mut c = server.client();
    let (id, first) = issue(&mut c, "web LIMIT 50 1h");
    let (other, _) = issue(&mut c, "other");
    let old = fingerprints(&mut c).remove(0);
    reload(&server, &[1, 2]);
    let second = c.ok(args!["KG.ROTATE", "acme", id, "GRACE", "1h"]).list()[1].text();
    c.ok(args!["KG.DELKEY", "acme", other]);
    for raw in [&first, &second] {
        assert_eq!(c.code(args!["KG.AUTH", "acme", raw]), "VALID");
    }
    // Without the old key, its holder would be a stranger before the grace has ended.
    c.refused("INUSE", args!["KG.KEYRING", "DROP", old]);
    assert_eq!(records(&mut c), [1, 1]);
    // The grace ends: the next use of the key lets the old one go.
    let third = c.ok(args!["KG.ROTATE", "acme", id, "GRACE", "1ms"]).list()[1].text();
    eventually("the end of the grace", || {
        let code = c.code(args!["KG.CHECK", "acme", second]);
        expect(code == "NOT_FOUND", || code)
    });
    assert_eq!(c.code(args!["KG.AUTH", "acme", third]), "VALID");
    assert_eq!(records(&mut c), [1, 0]);
    assert_eq!(c.ok(args!["KG.KEYRING", "DROP", old]).text(), "OK");
    assert_eq!(digests(&mut c).len(), 1);
    assert_eq!(c.code(args!["KG.AUTH", "acme", third]), "VALID");
    c.ok(args!["KG.DELKEY", "acme", id]);
    assert_eq!(records(&mut c), [0]);
}

fn questions_wait_without_holding_others_up(sut: &Sut) {
    let server = full_server(sut);
    let mut askers: Vec<Client> = (0..20).map(|_| server.client()).collect();
    for asker in &mut askers {
        asker.send("KG.KEYRING STATUS");
        asker.send("PING");
    }
    let mut c = server.client();
    let blocked = c.info_number("clients", "blocked_clients");
    assert!(blocked > 0, "the survey takes its time");
    assert!(c.claim("b 5 1h").claimed);
    // CLIENT UNBLOCK leaves them alone.
    let list = c.ok("CLIENT LIST").text();
    let id = |line: &str| line.strip_prefix("id=").and_then(|line| line.split(' ').next()).unwrap().to_owned();
    for asker in list.lines().filter(|line| line.contains("cmd=kg.keyring")).map(id) {
        assert_eq!(c.ok(args!["CLIENT", "UNBLOCK", asker]).int(), 0);
    }
    for asker in &mut askers {
        assert_eq!(asker.receive().list()[0].field("records").int(), 5);
        assert_eq!(asker.receive().text(), "PONG", "answers come in order");
    }
    c.ok("SELECT 1");
    add(&mut c, "beta", 2);
    c.ok("SWAPDB 0 1");
    assert_eq!(records(&mut c), [7], "wherever the stores are now");
}

fn questions_are_not_asked_in_transactions_and_scripts(sut: &Sut) {
    let server = sut.setup().keyring(&keyring(&[1, 2])).start();
    let mut c = server.client();
    let old = fingerprints(&mut c).remove(1);
    for command in ["KG.KEYRING STATUS".to_owned(), format!("KG.KEYRING DROP {old}")] {
        c.ok("MULTI");
        c.ok(&command);
        let replies = c.ok("EXEC");
        assert_eq!(replies.list().len(), 1);
        assert!(replies.list()[0].error().contains("MULTI"), "{replies:?}");
        let words: Vec<String> = command.split(' ').map(|word| format!("'{word}'")).collect();
        let text = c.err(args!["EVAL", format!("return redis.call({})", words.join(",")), "0"]);
        assert!(text.contains("script"), "{text}");
        assert_eq!(c.ok("PING").text(), "PONG");
    }
    assert_eq!(status(&mut c).len(), 2);
}

fn who_asks_may_go_away(sut: &Sut) {
    let server = full_server(sut);
    let mut c = server.client();
    for _ in 0..10 {
        server.client().send("KG.KEYRING STATUS");
    }
    let mut killed = server.client();
    let id = killed.ok("CLIENT ID").int();
    killed.send("KG.KEYRING STATUS");
    eventually("it being held", || {
        let blocked = c.info_number("clients", "blocked_clients");
        expect(blocked > 0, || blocked.to_string())
    });
    c.ok(args!["CLIENT", "KILL", "ID", id]);
    assert!(killed.try_receive().is_none());
    assert_eq!(records(&mut c), [5]);
    eventually("nobody being held", || {
        let blocked = c.info_number("clients", "blocked_clients");
        expect(blocked == 0, || blocked.to_string())
    });
    // Where the server's role changes, it sends away who waits.
    let mut asker = server.client();
    asker.send("KG.KEYRING STATUS");
    eventually("it being held", || {
        let blocked = c.info_number("clients", "blocked_clients");
        expect(blocked == 1, || blocked.to_string())
    });
    c.ok("REPLICAOF 127.0.0.1 1");
    assert_eq!(asker.receive().error_code(), "UNBLOCKED");
    c.ok("REPLICAOF NO ONE");
    assert_eq!(records(&mut c), [5]);
}

fn each_server_has_its_own_keyring(sut: &Sut) {
    let primary = sut.setup().keyring(&keyring(&[1])).start();
    let replica = sut.setup().keyring(&keyring(&[1])).replica_of(&primary).start();
    let (mut ours, mut theirs) = (primary.client(), replica.client());
    add(&mut ours, "acme", 3);
    primary.wait_for(&replica);
    assert_eq!(records(&mut theirs), [3]);
    reload(&replica, &[1, 2]);
    assert_eq!(records(&mut theirs), [0, 3]);
    assert_eq!(records(&mut ours), [3], "what one server is told the other does not hear");
    theirs.refused("READONLY", "KG.REKEY acme");
    let [_, old] = fingerprints(&mut theirs).try_into().unwrap();
    theirs.refused("INUSE", args!["KG.KEYRING", "DROP", old]);
    reload(&primary, &[1, 2]);
    assert_eq!(rekeyed(&mut ours, "acme"), done(3));
    primary.wait_for(&replica);
    assert_eq!(records(&mut theirs), [3, 0]);
    assert_all_there(&mut theirs, "acme", 3);
    theirs.ok(args!["KG.KEYRING", "DROP", old]);
    assert_eq!([status(&mut theirs).len(), status(&mut ours).len()], [1, 2]);
}

fn rekey_goes_on_beside_traffic(sut: &Sut) {
    const COUNT: usize = 3000;
    let server = sut.setup().keyring(&keyring(&[1])).start();
    let mut c = server.client();
    add(&mut c, "acme", COUNT);
    let before = c.ok("HGETALL {acme}:key:17");
    reload(&server, &[1, 2]);
    let through = AtomicBool::new(false);
    thread::scope(|scope| {
        for n in 0..2 {
            let mut c = server.client();
            let through = &through;
            scope.spawn(move || {
                let mut id = n;
                while !through.load(Ordering::Relaxed) {
                    id = (id + 37) % COUNT;
                    assert!(c.claim("b 1000000 1h").claimed);
                    assert_eq!(c.ok(args!["KG.REVEAL", "acme", id + 1]).text(), secret(id + 1));
                    assert_eq!(c.ok(args!["KG.FINDKEY", "acme", secret(id + 1)]).ints(), [id as i64 + 1]);
                }
            });
        }
        assert_eq!(rekey(&mut c, "acme"), ("running".to_owned(), COUNT as i64, 0, 0));
        let fresh = c.ok("KG.ADDKEY acme vendor a-fresh-secret").int();
        let ended = rekeyed(&mut c, "acme");
        through.store(true, Ordering::Relaxed);
        assert_eq!(ended, done(COUNT as i64));
        assert_eq!(c.ok(args!["KG.REVEAL", "acme", fresh]).text(), "a-fresh-secret");
    });
    assert_eq!(records(&mut c), [COUNT as i64 + 1, 0]);
    assert_all_there(&mut c, "acme", COUNT);
    // Nothing else of a record has changed, and a record is sealed once.
    let after = c.ok("HGETALL {acme}:key:17");
    for (field, value) in before.fields() {
        let is_packed = ["r", "r2", "r3", "r4"].contains(&&*field);
        // Which pieces differ depends on where the sealed secret lies in them.
        assert!(is_packed || after.field(&field) == value, "{field}");
    }
    assert_ne!(before.field("r2"), after.field("r2"));
    for field in ["r", "r2", "r3", "r4"] {
        let length = |record: &Value| record.get(field).map(|piece| piece.bytes().len());
        assert_eq!(length(&before), length(&after), "{field}");
    }
    assert_eq!(rekey(&mut c, "acme"), done(COUNT as i64));
    assert_eq!(c.ok("HGETALL {acme}:key:17"), after);
    let digests = c.keys().into_iter().filter(|key| key.starts_with(b"{acme}:digest:")).count();
    assert_eq!(digests, COUNT + 1, "no index entry stays behind");
    for (field, value) in [("running", 0), ("done", COUNT as i64), ("left", 0), ("failed", 0)] {
        assert_eq!(c.info_number("keyguard", &format!("keyguard_rekey_{field}")), value, "{field}");
    }
}

fn rekey_goes_on_after_a_crash(sut: &Sut) {
    const COUNT: usize = 3000;
    let mut server = durable(sut.setup().keyring(&keyring(&[1]))).start();
    let mut c = server.client();
    add(&mut c, "acme", COUNT);
    reload(&server, &[1, 2]);
    halt_in_the_middle(&mut c, "acme");
    let middle = records(&mut c);
    assert!(!middle.contains(&0), "{middle:?}");
    server.restart();
    let mut c = server.client();
    assert_eq!(records(&mut c), middle, "what was done is kept, as a whole");
    assert_eq!(middle.iter().sum::<i64>(), COUNT as i64);
    assert_all_there(&mut c, "acme", COUNT);
    assert_eq!(rekeyed(&mut c, "acme"), done(middle[1]), "the rest, and nothing twice");
    assert_all_there(&mut c, "acme", COUNT);
    assert_eq!(records(&mut c), [COUNT as i64, 0]);
}

fn rekey_reaches_replicas_as_it_is(sut: &Sut) {
    const COUNT: usize = 2000;
    let primary = durable(sut.setup().keyring(&keyring(&[1, 2]))).start();
    let replica = durable(sut.setup().keyring(&keyring(&[1, 2]))).replica_of(&primary).start();
    let (mut ours, mut theirs) = (primary.client(), replica.client());
    add(&mut ours, "acme", COUNT);
    reload(&primary, &[1, 2, 3]);
    reload(&replica, &[1, 2, 3]);
    halt_in_the_middle(&mut ours, "acme");
    let same = |ours: &mut Client, theirs: &mut Client| {
        primary.wait_for(&replica);
        assert_eq!(ours.state(), theirs.state());
        assert_all_there(theirs, "acme", COUNT);
    };
    same(&mut ours, &mut theirs);
    ours.ok("CLIENT UNPAUSE");
    assert_eq!(rekeyed(&mut ours, "acme"), done(COUNT as i64));
    same(&mut ours, &mut theirs);
    // A replica that takes over in the middle goes on when it is told to.
    reload(&primary, &[1, 2, 3, 4]);
    reload(&replica, &[1, 2, 3, 4]);
    halt_in_the_middle(&mut ours, "acme");
    primary.wait_for(&replica);
    theirs.ok("REPLICAOF NO ONE");
    ours.ok(args!["REPLICAOF", "127.0.0.1", replica.port()]);
    ours.ok("CLIENT UNPAUSE");
    replica.wait_for(&primary);
    eventually("the job of the former primary ending", || {
        let running = ours.info_number("keyguard", "keyguard_rekey_running");
        expect(running == 0, || running.to_string())
    });
    let left = records(&mut theirs)[1];
    assert!(left > 0);
    assert_eq!(rekeyed(&mut theirs, "acme"), done(left));
    replica.wait_for(&primary);
    assert_eq!(ours.state(), theirs.state());
    assert_all_there(&mut ours, "acme", COUNT);
}

fn rekey_writes_a_slice_as_one_transaction(sut: &Sut) {
    let server = durable(sut.setup().keyring(&keyring(&[1]))).start();
    let mut c = server.client();
    c.ok("KG.ADDKEY acme vendor some-secret");
    c.ok("KG.ADDKEY acme vendor some-secret");
    let log = || -> Vec<String> {
        let file = server.directory().join("appendonlydir/appendonly.aof.1.incr.aof");
        let text = String::from_utf8_lossy(&fs::read(file).unwrap()).into_owned();
        // The name of a command comes after the number of its words and its own length.
        let lines: Vec<&str> = text.split("\r\n").collect();
        let names = lines.windows(3).filter(|lines| lines[0].starts_with('*') && lines[1].starts_with('$'));
        names.map(|lines| lines[2].to_uppercase()).collect()
    };
    let record = |index: &'static str| ["HSET", index, "APPEND", "HINCRBY", "HINCRBY"];
    let in_one = [&["MULTI"][..], &record("SET"), &record("DEL"), &["EXEC"]].concat();
    let in_two = [&["MULTI"][..], &record("SET"), &["EXEC", "MULTI"], &record("DEL"), &["EXEC"]].concat();
    // On a busy machine a slice may be over when it has done one record: of several, one has done both.
    for newest in 2..=MAX_ROTATIONS {
        let before = log().len();
        reload(&server, &(1..=newest).collect::<Vec<_>>());
        assert_eq!(rekeyed(&mut c, "acme"), done(2));
        let mut written = log().split_off(before);
        written.retain(|name| name != "SELECT");
        if written == in_one {
            return;
        }
        assert_eq!(written, in_two);
    }
    panic!("no slice did two records");
}

/// How many keyrings a test tries, one after the other.
const MAX_ROTATIONS: u8 = 40;

fn rekey_stops_and_goes_on(sut: &Sut) {
    const COUNT: i64 = 2000;
    let server = sut.setup().keyring(&keyring(&[1])).start();
    let mut c = server.client();
    c.refused("NOSTORE", "KG.REKEY acme");
    c.refused("NOSTORE", "KG.REKEY acme STOP");
    add(&mut c, "acme", COUNT as usize);
    assert_eq!(rekey(&mut c, "acme"), done(0), "nothing to do");
    assert_eq!(progress(&c.ok("KG.REKEY acme STOP")), done(0));
    reload(&server, &[1, 2]);
    let replies = c.pipeline(&[args!["KG.REKEY", "acme"], args!["KG.REKEY", "acme", "stop"]]);
    assert_eq!(progress(&replies[0]).0, "running");
    let (state, left, done_first, failed) = progress(&replies[1]);
    assert_eq!((&*state, left + done_first, failed), ("stopped", COUNT, 0));
    assert!(left > 0);
    assert_eq!(c.info_number("keyguard", "keyguard_rekey_running"), 0);
    assert_eq!(records(&mut c), [done_first, left], "nothing goes on");
    assert_eq!(rekeyed(&mut c, "acme"), done(left));
    for command in ["KG.REKEY", "KG.REKEY acme STOP STOP", "KG.REKEY acme WHAT"] {
        c.refused("ERR", command);
    }
    c.refused("BADSTORE", "KG.REKEY {acme}");
    c.ok("HSET foreign f v");
    c.refused("BADSTORE", "KG.REKEY foreign");
    c.ok("SET text x");
    c.refused("WRONGTYPE", "KG.REKEY text");
}

fn rekey_takes_one_store_after_the_other(sut: &Sut) {
    let server = sut.setup().keyring(&keyring(&[1])).start();
    let mut c = server.client();
    for database in 0..2 {
        c.ok(args!["SELECT", database]);
        for store in ["acme", "zeta"] {
            add(&mut c, store, 300);
        }
    }
    reload(&server, &[1, 2]);
    c.ok("MULTI");
    for database in 0..2 {
        c.ok(args!["SELECT", database]);
        c.ok("KG.REKEY acme");
        c.ok("KG.REKEY zeta");
    }
    let replies = c.ok("EXEC");
    for reply in replies.list().iter().filter(|reply| !matches!(reply, Value::Okay)) {
        assert_eq!(progress(reply), ("running".to_owned(), 300, 0, 0));
    }
    for database in [1, 0] {
        c.ok(args!["SELECT", database]);
        for store in ["zeta", "acme"] {
            assert_eq!(rekeyed(&mut c, store), done(300));
            assert_all_there(&mut c, store, 300);
        }
    }
    assert_eq!(records(&mut c), [1200, 0]);
}

fn rekey_counts_what_does_not_open(sut: &Sut) {
    let server = sut.setup().keyring(&keyring(&[1])).start();
    let mut c = server.client();
    add(&mut c, "acme", 10);
    c.ok("KG.ADDORG acme shop");
    let raw = c.ok("KG.NEWKEY acme shop web").list()[1].text();
    // A record under another's id, one that is no record, one whose index is of another type, and one that is gone by hand.
    c.ok("COPY {acme}:key:1 {acme}:key:2 REPLACE");
    c.ok("HSET {acme}:key:3 r damaged");
    c.ok("DEL {acme}:key:4");
    reload(&server, &[1, 2]);
    let ended = rekeyed(&mut c, "acme");
    assert_eq!(ended, ("done".to_owned(), 2, 7, 2));
    assert_eq!(c.info_number("keyguard", "keyguard_rekey_failed"), 2);
    c.refused("TAMPERED", "KG.REVEAL acme 2");
    for n in [1, 5, 10] {
        assert_eq!(c.ok(args!["KG.REVEAL", "acme", n]).text(), secret(n));
    }
    assert_eq!(c.code(args!["KG.AUTH", "acme", raw]), "VALID");
    assert_eq!(rekey(&mut c, "acme"), ended, "it is told of again, and not begun again");
    assert_eq!(progress(&c.ok("KG.REKEY acme STOP")), ended);
    let state = c.state();
    assert_eq!(rekeyed(&mut c, "acme"), ("done".to_owned(), 2, 0, 2), "forgotten, it is");
    assert_eq!(c.state(), state);
    // A key that the keyring lacks: the vault keys under it fail, and do not once it is back.
    let server = sut.setup().keyring(&keyring(&[1])).start();
    let mut c = server.client();
    add(&mut c, "acme", 5);
    let dump: Vec<(Vec<u8>, Vec<u8>)> =
        c.keys().into_iter().map(|key| (key.clone(), c.ok(args!["DUMP", key]).bytes())).collect();
    let other = sut.setup().keyring(&keyring(&[2])).start();
    let mut c = other.client();
    for (key, payload) in dump {
        c.ok(args!["RESTORE", key, "0", payload]);
    }
    assert_eq!(rekeyed(&mut c, "acme"), ("done".to_owned(), 5, 0, 5));
    reload(&other, &[1, 2]);
    assert_eq!(rekeyed(&mut c, "acme"), done(5));
    assert_all_there(&mut c, "acme", 5);
}

fn rekey_waits_while_writes_are_paused(sut: &Sut) {
    const COUNT: usize = 2000;
    let server = sut.setup().keyring(&keyring(&[1])).start();
    let mut c = server.client();
    add(&mut c, "acme", COUNT);
    reload(&server, &[1, 2]);
    halt_in_the_middle(&mut c, "acme");
    // The job looks again ten times a second.
    let before = c.state();
    thread::sleep(Duration::from_millis(300));
    assert_eq!(c.state(), before);
    c.ok("CLIENT UNPAUSE");
    assert_eq!(rekeyed(&mut c, "acme"), done(COUNT as i64));
    // So it is with too few replicas.
    reload(&server, &[1, 2, 3]);
    let replies = c.pipeline(&[args!["KG.REKEY", "acme"], args!["CONFIG", "SET", "min-replicas-to-write", "1"]]);
    assert_eq!(progress(&replies[0]).0, "running");
    let before = c.state();
    thread::sleep(Duration::from_millis(300));
    assert_eq!(c.state(), before);
    assert!(c.info_number("keyguard", "keyguard_rekey_left") > 0);
    c.ok("CONFIG SET min-replicas-to-write 0");
    assert_eq!(rekeyed(&mut c, "acme").0, "done");
    assert_all_there(&mut c, "acme", COUNT);
}

fn rekey_ends_with_the_data(sut: &Sut) {
    let server = sut.setup().keyring(&keyring(&[1])).start();
    let mut c = server.client();
    add(&mut c, "acme", 2000);
    reload(&server, &[1, 2]);
    let replies = c.pipeline(&[args!["KG.REKEY", "acme"], args!["FLUSHALL"]]);
    assert_eq!(progress(&replies[0]).0, "running");
    eventually("the job ending", || {
        let running = c.info_number("keyguard", "keyguard_rekey_running");
        expect(running == 0, || running.to_string())
    });
    c.refused("NOSTORE", "KG.REKEY acme");
    assert_eq!(c.keys(), Vec::<Vec<u8>>::new(), "nothing comes back");
    // A store of the same name in another database's place is gone through from its beginning.
    reload(&server, &[1, 2]);
    add(&mut c, "acme", 10);
    c.ok("SELECT 1");
    add(&mut c, "acme", 10);
    reload(&server, &[1, 2, 3]);
    let replies = c.pipeline(&[args!["KG.REKEY", "acme"], args!["SWAPDB", "0", "1"]]);
    assert_eq!(progress(&replies[0]).0, "running");
    assert_eq!(rekeyed(&mut c, "acme").0, "done");
    assert_all_there(&mut c, "acme", 10);
    c.ok("SELECT 0");
    assert_eq!(rekeyed(&mut c, "acme").0, "done");
    assert_eq!(records(&mut c), [20, 0, 0]);
}

fn rekey_ends_with_its_store(sut: &Sut) {
    let server = sut.setup().keyring(&keyring(&[1])).start();
    let mut c = server.client();
    add(&mut c, "acme", 2000);
    add(&mut c, "zeta", 500);
    reload(&server, &[1, 2]);
    for store in ["acme", "zeta"] {
        assert_eq!(rekey(&mut c, store).0, "running");
    }
    while c.ok("KG.DELSTORE acme").int() > 0 {
        // Each slice stops the job. One that somebody starts again copes with keys that vanish.
        rekey(&mut c, "acme");
    }
    c.refused("NOSTORE", "KG.REKEY acme");
    assert_eq!(rekeyed(&mut c, "zeta"), done(500));
    assert_all_there(&mut c, "zeta", 500);
    assert!(c.keys().iter().all(|key| !key.starts_with(b"{acme}") && key != b"acme"), "nothing comes back");
    assert_eq!(records(&mut c), [500, 0]);
    // A store of the same name starts with nothing done.
    add(&mut c, "acme", 3);
    assert_eq!(rekey(&mut c, "acme"), done(0));
}

fn rekey_begins_again_under_a_newer_key(sut: &Sut) {
    const COUNT: usize = 3000;
    let server = sut.setup().keyring(&keyring(&[1])).start();
    let mut c = server.client();
    add(&mut c, "acme", COUNT);
    reload(&server, &[1, 2]);
    halt_in_the_middle(&mut c, "acme");
    reload(&server, &[1, 2, 3]);
    c.ok("CLIENT UNPAUSE");
    let (state, left, done, failed) = rekeyed(&mut c, "acme");
    assert_eq!((&*state, left, failed), ("done", 0, 0));
    assert!(done > COUNT as i64, "some twice");
    assert_eq!(records(&mut c), [COUNT as i64, 0, 0]);
    assert_all_there(&mut c, "acme", COUNT);
    for old in fingerprints(&mut c).into_iter().skip(1) {
        c.ok(args!["KG.KEYRING", "DROP", old]);
    }
    assert_all_there(&mut c, "acme", COUNT);
}

fn rekey_knows_secrets_that_several_keys_share(sut: &Sut) {
    let server = sut.setup().keyring(&keyring(&[1])).start();
    let mut c = server.client();
    let large = "x".repeat(65_536);
    for (name, secret) in [("a", "shared"), ("b", "alone"), ("c", "shared"), ("d", "shared"), ("e", &large)] {
        c.ok(args!["KG.ADDKEY", "acme", name, secret, "META", "{\"a\":1}"]);
    }
    reload(&server, &[1, 2]);
    c.ok("KG.ADDKEY acme f shared");
    c.refused("DUPLICATE", "KG.ADDKEY acme g shared UNIQUE");
    assert_eq!(c.ok("KG.FINDKEY acme shared").ints(), [1, 3, 4, 6]);
    assert_eq!(rekeyed(&mut c, "acme"), done(5));
    assert_eq!(c.ok("KG.FINDKEY acme shared").ints(), [1, 3, 4, 6]);
    assert_eq!(c.ok("KG.FINDKEY acme alone").ints(), [2]);
    assert_eq!(c.ok(args!["KG.FINDKEY", "acme", large]).ints(), [5]);
    assert_eq!(c.ok("KG.REVEAL acme 5").text(), large);
    assert_eq!(c.ok("KG.GETKEY acme 1").field("meta").text(), "{\"a\":1}");
    c.refused("DUPLICATE", "KG.ADDKEY acme g shared UNIQUE");
    let old = fingerprints(&mut c).remove(1);
    c.ok(args!["KG.KEYRING", "DROP", old]);
    c.ok("KG.DELKEY acme 1 2 3 4 5 6");
    assert_eq!(c.keys(), [b"acme"], "the index goes with its records");
}

/// A cluster of two nodes with a store of so many keys, which are to be sealed again: clients of the node that has it and of the
/// other one, and their indexes.
fn cluster(sut: &Sut, count: usize) -> (Cluster, [Client; 2], [usize; 2]) {
    let node = || sut.setup().cluster(15_000).keyring(&keyring(&[1]));
    let cluster = Cluster::start(vec![node(), node()], Vec::new());
    let (_, source) = cluster.place_of(b"acme");
    let mut clients = [source, 1 - source].map(|n| cluster.primaries[n].client());
    add(&mut clients[0], "acme", count);
    cluster.primaries.iter().for_each(|node| reload(node, &[1, 2]));
    assert_eq!(clients.each_mut().map(records), [vec![0, count as i64], vec![0, 0]], "each node counts its own");
    (cluster, clients, [source, 1 - source])
}

fn job_has_ended(c: &mut Client) {
    eventually("the job having ended", || {
        let running = c.info_number("keyguard", "keyguard_rekey_running");
        expect(running == 0, || running.to_string())
    });
}

fn rekey_ends_where_a_slot_moves(sut: &Sut) {
    let (cluster, [mut ours, mut theirs], [source, target]) = cluster(sut, 20);
    let (slot, _) = cluster.place_of(b"acme");
    cluster.begin_migration(slot, source, target);
    migrate(&mut ours, &theirs, b"{acme}:key:7");
    assert_eq!(rekey(&mut ours, "acme").0, "running");
    job_has_ended(&mut ours);
    let log = cluster.primaries[source].log();
    assert!(log.contains("KG.REKEY stopped: TRYAGAIN"), "{log}");
    cluster.move_slots(&[slot], source, target);
    assert_all_there(&mut theirs, "acme", 20);
    assert_eq!(rekeyed(&mut theirs, "acme").1, 0);
    assert_all_there(&mut theirs, "acme", 20);
    assert_eq!([&mut ours, &mut theirs].map(records), [vec![0, 0], vec![20, 0]]);
}

fn rekey_goes_on_where_a_slot_has_gone(sut: &Sut) {
    const COUNT: usize = 2000;
    let (cluster, [mut ours, mut theirs], [source, target]) = cluster(sut, COUNT);
    let (slot, _) = cluster.place_of(b"acme");
    assert_eq!(rekey(&mut ours, "acme").0, "running");
    if !cluster.have_slots_moved(sut, &[slot], source, target) {
        cluster.move_slots(&[slot], source, target);
    }
    job_has_ended(&mut ours);
    assert_all_there(&mut theirs, "acme", COUNT);
    let (state, left, done, failed) = rekeyed(&mut theirs, "acme");
    assert_eq!((&*state, left, failed), ("done", 0, 0));
    assert!(done <= COUNT as i64);
    assert_eq!(records(&mut theirs), [COUNT as i64, 0]);
    assert_all_there(&mut theirs, "acme", COUNT);
}
