//! Organizations and stores as a whole: described, listed, set, deleted.

use std::collections::BTreeSet;

use redis::Value;

use crate::harness::{Client, Reply, Sut, args, eventually, expect, now_ms, populate_store, server_tests};

server_tests![
    an_organization_is_described,
    counts_are_right_after_every_change,
    pages_go_through_all_organizations_in_order,
    a_filter_ends_a_page_early_and_says_where_to_go_on,
    an_organization_with_keys_is_in_use,
    a_deleted_organization_leaves_nothing_behind,
    limits_of_an_organization_are_cleared,
    a_change_of_status_is_told,
    organizations_deleted_by_hand_are_passed_over,
    damaged_organizations_are_an_error,
    settings_are_set_and_cleared,
    settings_changed_by_hand_are_an_error,
    a_store_is_described,
    a_store_is_deleted_in_slices_and_nothing_else,
    a_store_with_damaged_records_can_be_deleted,
    a_store_with_damaged_counts_can_be_deleted,
    a_store_of_large_records_is_deleted_in_smaller_slices,
    a_wrong_type_in_the_way_leaves_nothing_half_done,
    a_store_is_deleted_with_full_memory,
    a_deleted_store_begins_anew,
    who_waits_for_a_key_learns_that_the_store_is_gone,
    a_replica_follows,
    rejects_bad_arguments,
];

/// Deletes a store; what each call answered.
fn delete(c: &mut Client, store: &str) -> Vec<i64> {
    let mut left = Vec::new();
    while left.last() != Some(&0) {
        left.push(c.ok(format!("KG.DELSTORE {store}")).int());
        assert!(left.len() < 1000, "it never ends: {left:?}");
    }
    left
}

/// The keys of a store that do not run out by themselves.
fn lasting_keys(c: &mut Client, store: &str) -> Vec<String> {
    let derived = format!("{{{store}}}:");
    let keys = c.keys().into_iter();
    let ours: Vec<_> = keys.filter(|key| key.starts_with(derived.as_bytes()) || key == store.as_bytes()).collect();
    ours.into_iter()
        .filter(|key| c.ok(args!["PEXPIRETIME", key]).int() == -1)
        .map(|key| key.escape_ascii().to_string())
        .collect()
}

fn add_orgs(c: &mut Client, store: &str, n: usize) {
    let commands: Vec<_> = (0..n).map(|n| args!["KG.ADDORG", store, format!("org {n}")]).collect();
    assert!(c.pipeline(&commands).iter().all(|reply| !reply.is_error()));
}

fn add_keys(c: &mut Client, store: &str, n: usize) {
    let commands: Vec<_> = (0..n)
        .map(|n| args!["KG.ADDKEY", store, format!("vendor{}", n % 3), format!("some-secret-{}", n % 50)])
        .collect();
    assert!(c.pipeline(&commands).iter().all(|reply| !reply.is_error()));
}

fn names(page: &Value) -> Vec<String> {
    page.list().iter().map(|org| org.field("name").text()).collect()
}

fn an_organization_is_described(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    let before = now_ms();
    let id = c
        .ok(args!["KG.ADDORG", "acme", "Acme: {Inc} \u{e9}", "LIMIT", 5, "1h", "LIMIT", 9, "2h", "UNIT", "tokens"])
        .int();
    c.ok(args!["KG.NEWKEY", "acme", "Acme: {Inc} \u{e9}", "web"]);
    for mut c in [server.client(), server.client().resp3()] {
        let org = c.ok(args!["kg.getorg", "acme", "Acme: {Inc} \u{e9}"]);
        let fields: Vec<String> = org.fields().into_iter().map(|(name, _)| name).collect();
        assert_eq!(fields, ["id", "name", "status", "created_at", "limits", "quotas", "keys"]);
        assert_eq!(org.field("id").int(), id);
        assert_eq!(org.field("name").text(), "Acme: {Inc} \u{e9}");
        assert_eq!(org.field("status").text(), "active");
        assert!((before..=now_ms()).contains(&org.field("created_at").int()));
        let limits: Vec<String> = org.field("limits").list().iter().map(Reply::text).collect();
        assert_eq!(limits, ["5 3600000ms requests", "9 7200000ms tokens"]);
        assert_eq!(org.field("keys").int(), 1);
        assert_eq!(c.ok("KG.LISTORGS acme").list(), [org]);
    }
    c.refused("NOSUCH", "KG.GETORG acme nobody");
    c.refused("NOSTORE", "KG.GETORG nobody nobody");
}

fn counts_are_right_after_every_change(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    let check = |c: &mut Client, expected: [i64; 3], keys: i64| {
        let store = c.ok("KG.GETSTORE acme");
        let counts = ["vault_keys", "api_keys", "organizations"].map(|field| store.field(field).int());
        assert_eq!(counts, expected);
        assert_eq!(c.ok("KG.GETORG acme shop").field("keys").int(), keys);
    };
    c.ok("KG.ADDORG acme shop");
    check(&mut c, [0, 0, 1], 0);
    let id = c.ok("KG.NEWKEY acme shop web").list()[0].int();
    check(&mut c, [0, 1, 1], 1);
    c.ok("KG.NEWKEY acme shop cron");
    c.ok("KG.ADDORG acme lab");
    let other = c.ok("KG.NEWKEY acme lab cron").list()[0].int();
    c.ok("KG.ADDKEY acme vendor some-secret");
    check(&mut c, [1, 3, 2], 2);
    c.ok(args!["KG.REVOKE", "acme", id]);
    check(&mut c, [1, 3, 2], 2);
    c.ok(args!["KG.DELKEY", "acme", id, other]);
    check(&mut c, [1, 1, 2], 1);
    c.ok("KG.DELORG acme lab");
    check(&mut c, [1, 1, 1], 1);
    c.ok("KG.DELKEY acme ALL TYPE vault");
    c.ok("KG.DELKEY acme ALL TYPE api");
    check(&mut c, [0, 0, 1], 0);
    c.ok("KG.DELORG acme shop");
    assert_eq!(c.ok("KG.GETSTORE acme").field("organizations").int(), 0);
    assert!(c.ok("KG.LISTORGS acme").list().is_empty());
}

fn pages_go_through_all_organizations_in_order(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    add_orgs(&mut c, "acme", 500);
    assert_eq!(c.ok("KG.ADDKEY acme vendor some-secret").int(), 501, "keys and organizations share the ids");
    add_orgs(&mut c, "acme2", 3);
    c.ok("KG.ADDORG acme last");
    c.ok("KG.DELORG acme last");
    c.ok("KG.ADDORG acme last");
    let expected: Vec<String> = (0..500).map(|n| format!("org {n}")).chain(["last".to_owned()]).collect();
    for count in [1, 7, 100, 167, 200] {
        let (mut found, mut after) = (Vec::new(), 0);
        loop {
            let page = c.ok(format!("KG.LISTORGS acme AFTER {after} COUNT {count}"));
            found.extend(names(&page));
            let Some(last) = page.list().last() else { break };
            after = last.field("id").int();
            if page.list().len() < count {
                break;
            }
        }
        assert_eq!(found, expected, "{count} a page");
    }
    assert_eq!(names(&c.ok("KG.LISTORGS acme")), expected[..200]);
    assert_eq!(names(&c.ok("KG.LISTORGS acme STATUS active")), expected[..200]);
    assert!(c.ok("KG.LISTORGS acme STATUS suspended").list().is_empty());
    assert!(c.ok("KG.LISTORGS acme AFTER 100000 COUNT 5").list().is_empty());
    for name in ["org 3", "last", "org 450"] {
        c.ok(args!["KG.SETORG", "acme", name, "STATUS", "suspended"]);
    }
    assert_eq!(names(&c.ok("KG.LISTORGS acme STATUS suspended")), ["org 3", "org 450", "last"]);
    assert_eq!(names(&c.ok("KG.LISTORGS acme STATUS suspended AFTER 4 COUNT 1")), ["org 450"]);
    assert_eq!(names(&c.ok("KG.LISTORGS acme AFTER 3 COUNT 2 status ACTIVE")), ["org 4", "org 5"]);
}

fn a_filter_ends_a_page_early_and_says_where_to_go_on(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    add_orgs(&mut c, "acme", 1500);
    c.ok(args!["KG.SETORG", "acme", "org 1200", "STATUS", "suspended"]);
    c.ok(args!["KG.SETORG", "acme", "org 10", "STATUS", "suspended"]);
    for command in ["KG.LISTORGS acme STATUS suspended", "KG.LISTORGS acme STATUS suspended AFTER 0 COUNT 2"] {
        let page = c.ok(command);
        assert_eq!(page.list().len(), 2, "{command}");
        assert_eq!(page.list()[0].field("name").text(), "org 10");
        assert_eq!(page.list()[1].fields(), [("after".to_owned(), Value::Int(1000))]);
    }
    let full = c.ok("KG.LISTORGS acme STATUS suspended AFTER 0 COUNT 1");
    assert_eq!(names(&full), ["org 10"], "a full page goes on after its last");
    assert_eq!(names(&c.ok("KG.LISTORGS acme STATUS suspended AFTER 1000 COUNT 2")), ["org 1200"]);
}

fn an_organization_with_keys_is_in_use(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    c.ok("KG.ADDORG acme shop LIMIT 5 1h");
    let issued = c.ok("KG.NEWKEY acme shop web");
    let [id, raw] = issued.list() else { panic!("a pair") };
    assert_eq!(c.code(format!("KG.AUTH acme {}", raw.text())), "VALID");
    let before = c.state();
    c.refused("INUSE", "KG.DELORG acme shop");
    c.ok(args!["KG.REVOKE", "acme", id.int()]);
    c.refused("INUSE", "KG.DELORG acme shop");
    c.refused("NOSUCH", "KG.DELORG acme nobody");
    c.refused("NOSTORE", "KG.DELORG nobody shop");
    assert_eq!(c.state().len(), before.len());
    c.ok(args!["KG.DELKEY", "acme", id.int()]);
    assert_eq!(c.ok("KG.DELORG acme shop"), Value::Okay);
    c.refused("NOSUCH", "KG.DELORG acme shop");
}

fn a_deleted_organization_leaves_nothing_behind(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    c.ok("KG.ADDORG acme keep");
    let before = c.keys();
    let id = c.ok("KG.ADDORG acme shop LIMIT 1 1h").int();
    let issued = c.ok("KG.NEWKEY acme shop web");
    assert_eq!(c.code(format!("KG.AUTH acme {}", issued.list()[1].text())), "VALID");
    c.ok(args!["KG.DELKEY", "acme", issued.list()[0].int()]);
    assert_eq!(c.ok("EXISTS {acme}:orgwin:shop").int(), 1);
    c.ok("KG.DELORG acme shop");
    assert_eq!(c.keys(), before);
    assert_eq!(names(&c.ok("KG.LISTORGS acme")), ["keep"]);
    c.refused("NOSUCH", "KG.GETORG acme shop");
    c.refused("NOSUCH", "KG.NEWKEY acme shop web");
    // The next of this name is another one, with its own windows.
    assert!(c.ok("KG.ADDORG acme shop LIMIT 1 1h").int() > id);
    let raw = c.ok("KG.NEWKEY acme shop web").list()[1].text();
    assert_eq!(c.code(format!("KG.AUTH acme {raw}")), "VALID");
}

fn limits_of_an_organization_are_cleared(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    c.ok("KG.ADDORG acme shop LIMIT 1 1h");
    let raw = c.ok("KG.NEWKEY acme shop web").list()[1].text();
    assert_eq!(c.code(format!("KG.AUTH acme {raw}")), "VALID");
    assert_eq!(c.code(format!("KG.AUTH acme {raw}")), "RATE_LIMITED");
    assert_eq!(c.ok("HEXISTS {acme}:org:shop limits").int(), 1);
    c.refused("ERR", "KG.SETORG acme shop CLEAR limits LIMIT 5 1h");
    c.refused("ERR", "KG.SETORG acme shop CLEAR limits CLEAR limits");
    c.refused("ERR", "KG.SETORG acme shop CLEAR");
    c.refused("ERR", "KG.SETORG acme shop CLEAR name");
    assert_eq!(c.ok("KG.SETORG acme shop clear LIMITS"), Value::Okay);
    assert!(c.ok("KG.GETORG acme shop").field("limits").list().is_empty());
    assert_eq!(c.ok("HEXISTS {acme}:org:shop limits").int(), 0);
    assert_eq!(c.code(format!("KG.AUTH acme {raw}")), "VALID");
    assert_eq!(c.ok("KG.GETORG acme shop").field("keys").int(), 1);
}

fn a_change_of_status_is_told(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    c.ok("CONFIG SET notify-keyspace-events EAd");
    c.ok("KG.ADDORG acme shop");
    let mut listener = server.client();
    listener.ok("PSUBSCRIBE __keyevent@0__:kg.*");
    for command in [
        "KG.SETORG acme shop STATUS active",
        "KG.SETORG acme shop STATUS suspended",
        "KG.SETORG acme shop STATUS suspended LIMIT 5 1h",
        "KG.SETORG acme shop CLEAR limits",
        "KG.SETORG acme shop STATUS active",
    ] {
        c.ok(command);
    }
    for event in ["kg.suspend", "kg.activate"] {
        let message: Vec<String> = match listener.receive() {
            Value::Array(parts) => parts.iter().map(Reply::text).collect(),
            Value::Push { data, .. } => data.iter().map(Reply::text).collect(),
            other => panic!("a message, not {other:?}"),
        };
        let told = &message[message.len() - 2..];
        assert_eq!(told, [format!("__keyevent@0__:{event}"), "{acme}:org:shop".to_owned()]);
    }
}

fn organizations_deleted_by_hand_are_passed_over(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    for name in ["a", "b", "c"] {
        c.ok(format!("KG.ADDORG acme {name}"));
    }
    c.ok("DEL {acme}:org:a");
    assert_eq!(names(&c.ok("KG.LISTORGS acme")), ["b", "c"]);
    c.ok("KG.ADDORG acme a");
    assert_eq!(names(&c.ok("KG.LISTORGS acme")), ["b", "c", "a"], "once, under its new id");
    c.ok("HDEL {acme}:orgs 2");
    assert_eq!(names(&c.ok("KG.LISTORGS acme")), ["c", "a"]);
    c.ok(args!["SETBIT", "{acme}:ids:org", 5000, 1]);
    assert_eq!(names(&c.ok("KG.LISTORGS acme")), ["c", "a"]);
    // Its keys were counted in a record that is gone.
    c.ok("HSET {acme}:org:a keys -1");
    assert_eq!(c.ok("KG.GETORG acme a").field("keys").int(), 0);
    c.ok("KG.DELORG acme a");
}

fn damaged_organizations_are_an_error(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    c.ok("KG.ADDORG acme shop");
    let payload = c.ok("DUMP {acme}:org:shop").bytes();
    for (damage, code) in [
        (args!["HSET", "{acme}:org:shop", "r", "x"], "ERR"),
        (args!["HDEL", "{acme}:org:shop", "r"], "ERR"),
        (args!["HSET", "{acme}:org:shop", "keys", "many"], "ERR"),
        (args!["SET", "{acme}:org:shop", "x"], "WRONGTYPE"),
    ] {
        c.ok(damage);
        let before = c.state();
        for command in ["KG.GETORG acme shop", "KG.LISTORGS acme", "KG.DELORG acme shop"] {
            c.refused(code, command);
        }
        assert_eq!(c.state(), before);
        c.ok(args!["RESTORE", "{acme}:org:shop", 0, payload, "REPLACE"]);
    }
    for bad in [&b"\x01"[..], b"\xff", b"", b"nobody"] {
        c.ok(args!["HSET", "{acme}:orgs", 1, bad]);
        assert!(c.ok("KG.LISTORGS acme").list().is_empty(), "what is in no organization's name names none");
    }
    for key in ["{acme}:orgs", "{acme}:ids:org"] {
        c.ok(args!["DEL", key]);
        c.ok(args!["RPUSH", key, "x"]);
        let before = c.state();
        for command in ["KG.LISTORGS acme", "KG.DELORG acme shop", "KG.ADDORG acme lab", "KG.DELSTORE acme"] {
            c.refused("WRONGTYPE", command);
        }
        assert_eq!(c.state(), before, "{key}");
        c.ok(args!["DEL", key]);
        c.ok(args!["SETBIT", "{acme}:ids:org", 1, 1]);
    }
    c.ok("HSET acme organizations many");
    let before = c.state();
    for command in ["KG.ADDORG acme lab", "KG.DELORG acme shop", "KG.GETSTORE acme"] {
        c.refused("ERR", command);
    }
    assert_eq!(c.state(), before);
}

fn settings_are_set_and_cleared(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    assert_eq!(c.ok("KG.SETSTORE acme TZ europe/berlin"), Value::Okay);
    let settings = |c: &mut Client| {
        let store = c.ok("KG.GETSTORE acme");
        (store.field("tz").text(), store.get("ip_threshold").map(|threshold| threshold.int()))
    };
    let berlin = || "Europe/Berlin".to_owned();
    assert_eq!(settings(&mut c), (berlin(), None), "as the database spells it");
    assert_eq!(c.ok("HGET acme tz").text(), "Europe/Berlin");
    for threshold in [0, 1, 60_000] {
        c.ok(format!("kg.setstore acme ipthreshold {threshold}"));
        assert_eq!(settings(&mut c), (berlin(), Some(threshold)));
    }
    c.ok("KG.SETSTORE acme CLEAR tz IPTHRESHOLD 7");
    assert_eq!(settings(&mut c), ("UTC".to_owned(), Some(7)));
    c.ok("KG.SETSTORE acme TZ America/New_York CLEAR IP_THRESHOLD");
    assert_eq!(settings(&mut c), ("America/New_York".to_owned(), None));
    c.ok("KG.SETSTORE acme CLEAR ip_threshold CLEAR tz");
    assert_eq!(settings(&mut c), ("UTC".to_owned(), None));
    let before = c.state();
    c.ok("KG.SETSTORE acme CLEAR tz");
    assert_eq!(c.state(), before, "what is clear can be cleared");
    c.ok("KG.SETSTORE other CLEAR tz");
    assert_eq!(c.ok("KG.GETSTORE other").field("tz").text(), "UTC");
    assert_eq!(c.ok("KG.ADDKEY other vendor some-secret").int(), 1, "it is a store as any");
}

fn settings_changed_by_hand_are_an_error(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    c.ok("KG.SETSTORE acme TZ UTC IPTHRESHOLD 5");
    for (field, bad) in [
        ("tz", &["Mars/Olympus", ""][..]),
        ("ip_threshold", &["", "-1", "60001", "many"]),
        ("created_at", &["x"]),
        ("vault_keys", &["x"]),
    ] {
        let good = c.ok(args!["HGET", "acme", field]);
        for bad in bad {
            c.ok(args!["HSET", "acme", field, *bad]);
            assert!(c.refused("ERR", "KG.GETSTORE acme").contains("damaged header"));
        }
        match good {
            Value::Nil => c.ok(args!["HDEL", "acme", field]),
            good => c.ok(args!["HSET", "acme", field, good.bytes()]),
        };
        c.ok("KG.GETSTORE acme");
    }
}

fn a_store_is_described(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    let before = now_ms();
    populate_store(&mut c);
    for mut c in [server.client(), server.client().resp3()] {
        let store = c.ok("KG.GETSTORE acme");
        let fields: Vec<String> = store.fields().into_iter().map(|(name, _)| name).collect();
        assert_eq!(fields, ["created_at", "tz", "vault_keys", "api_keys", "organizations", "keyring"]);
        assert!((before..=now_ms()).contains(&store.field("created_at").int()));
        assert_eq!(store.field("vault_keys").int(), c.ok("KG.COUNTKEYS acme TYPE vault").int());
        assert_eq!(store.field("api_keys").int(), c.ok("KG.COUNTKEYS acme TYPE api").int());
        assert_eq!(store.field("organizations").int(), c.ok("KG.LISTORGS acme").list().len() as i64);
        let newest = c.ok("KG.KEYRING STATUS").list()[0].field("fingerprint").text();
        let used: Vec<String> = store.field("keyring").list().iter().map(Reply::text).collect();
        assert_eq!(used, [newest]);
    }
    c.ok("KG.SETSTORE empty TZ UTC");
    assert!(c.ok("KG.GETSTORE empty").field("keyring").list().is_empty());
    c.refused("NOSTORE", "KG.GETSTORE nobody");
}

fn a_store_is_deleted_in_slices_and_nothing_else(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    populate_store(&mut c);
    for store in ["zeta", "acme2"] {
        add_orgs(&mut c, store, 3);
        add_keys(&mut c, store, 3);
        c.ok(format!("KG.BLOCKIP {store} 192.0.2.1"));
    }
    let others: BTreeSet<_> = c.state().into_iter().filter(|(key, _)| !is_of(key, "acme")).collect();
    add_keys(&mut c, "acme", 170);
    let issued: Vec<_> =
        (0..60).map(|n| args!["KG.NEWKEY", "acme", ["shop", "lab"][n % 2], "bulk", "LIMIT", "5", "1h"]).collect();
    let issued: Vec<String> = c.pipeline(&issued).iter().map(|issued| issued.list()[1].text()).collect();
    assert!(issued.iter().all(|raw| c.code(format!("KG.AUTH acme {raw}")) == "VALID"));
    add_orgs(&mut c, "acme", 130);
    c.ok("KG.BLOCKIP acme 192.0.2.1");
    c.ok("KG.SETSTORE acme TZ UTC IPTHRESHOLD 9");
    let count = |c: &mut Client| {
        let store = c.ok("KG.GETSTORE acme");
        ["vault_keys", "api_keys", "organizations"].map(|field| store.field(field).int()).into_iter().sum::<i64>()
    };
    let mut last = count(&mut c);
    let (mut slices, at_first) = (Vec::new(), last);
    while last > 0 {
        let left = c.ok("KG.DELSTORE acme").int();
        slices.push(last - left);
        if left > 0 {
            assert_eq!(count(&mut c), left, "the counts are right between slices");
            let listed = c.ok("KG.LISTKEYS acme AFTER 0 COUNT 200").list().len() as i64;
            assert_eq!(listed, c.ok("KG.COUNTKEYS acme").int().min(200));
        }
        last = left;
    }
    assert_eq!(slices.iter().sum::<i64>(), at_first);
    assert!(slices.iter().all(|slice| (1..=100).contains(slice)), "{slices:?}");
    assert_eq!(slices.len() as i64, (at_first + 99) / 100, "{slices:?}");
    assert_eq!(lasting_keys(&mut c, "acme"), [""; 0]);
    for key in c.keys() {
        let key = String::from_utf8(key).unwrap();
        assert!(
            !is_of(&key, "acme") || key.starts_with("{acme}:account:") || key.starts_with("{acme}:ip:"),
            "{key} is left"
        );
    }
    let left: BTreeSet<_> = c.state().into_iter().filter(|(key, _)| !is_of(key, "acme")).collect();
    assert_eq!(left, others, "other stores are as they were");
    c.refused("NOSTORE", "KG.DELSTORE acme");
    c.refused("NOSTORE", format!("KG.AUTH acme {}", issued[0]));
}

fn is_of(key: &str, store: &str) -> bool {
    key == store || key.starts_with(&format!("{{{store}}}:"))
}

fn a_store_with_damaged_records_can_be_deleted(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    let sample = populate_store(&mut c);
    c.ok("KG.ADDKEY acme lonely its-only-secret");
    let alone = c.ok("KG.NEXTKEY acme lonely").field("id").int();
    for damage in [
        args!["HSET", "{acme}:key:1", "r", "x"],
        args!["HDEL", "{acme}:key:2", "r"],
        args!["DEL", "{acme}:key:3"],
        args!["SET", format!("{{acme}}:key:{}", sample.ids[0]), "x"],
        args!["HSET", format!("{{acme}}:key:{}", sample.ids[1]), "r", vec![0xff; 100]],
        args!["HSET", format!("{{acme}}:key:{alone}"), "r", ""],
        args!["HSET", "{acme}:org:shop", "r", "x"],
        args!["DEL", "{acme}:org:lab"],
        args!["SET", "{acme}:org:lab", "x"],
        args!["SETBIT", "{acme}:ids:vault", 5000, 1],
        args!["SETBIT", "{acme}:ids:api", 1, 1],
        args!["SETBIT", "{acme}:ids:org", 5001, 1],
        args!["SET", "{acme}:pool:maps", "x"],
        args!["SET", "{acme}:ips", "x"],
        args!["RPUSH", "{acme}:usage", "x"],
    ] {
        if damage[0] == b"SET" || damage[0] == b"RPUSH" {
            c.ok(args!["DEL", damage[1]]);
        }
        c.ok(damage);
    }
    delete(&mut c, "acme");
    let mut left = lasting_keys(&mut c, "acme");
    // A record that does not decode cannot say where it stands in the indexes, one that is gone not even its name.
    let said = ["{acme}:digest:", "{acme}:starts:", "{acme}:pool:mail"];
    left.retain(|key| !said.iter().any(|begin| key.starts_with(begin)));
    assert_eq!(left, [""; 0]);
    assert!(c.ok("KEYS {acme}:win:*").list().is_empty());
}

fn a_store_with_damaged_counts_can_be_deleted(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    let sample = populate_store(&mut c);
    add_keys(&mut c, "acme", 200);
    let used = c.ok("KG.GETSTORE acme").field("keyring").list()[0].text();
    for field in ["vault_keys", "api_keys", "organizations", &format!("using:{used}"), "next_id", "tz"] {
        c.ok(args!["HSET", "acme", field, "many"]);
    }
    c.ok("HSET {acme}:org:shop keys many");
    // Nor does what an index says of those that go count.
    let digests = c.ok("KEYS {acme}:digest:*");
    for key in digests.list().iter().take(10) {
        c.ok(args!["SET", key.bytes(), "x,y"]);
    }
    let left = delete(&mut c, "acme");
    assert_eq!(left.len(), 3, "{left:?}");
    assert_eq!(lasting_keys(&mut c, "acme"), [""; 0]);
    c.refused("NOSTORE", format!("KG.CHECK acme {}", sample.plain));
}

fn a_store_of_large_records_is_deleted_in_smaller_slices(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    c.ok("KG.ADDORG acme shop");
    let secret = "s".repeat(65_536);
    for n in 0..70 {
        c.ok(args!["KG.ADDKEY", "acme", "large", format!("{n}{}", &secret[5..])]);
    }
    let left = delete(&mut c, "acme");
    assert!(left.len() > 2 && left[0] > 30, "{left:?}");
    assert!(left[..left.len() - 1].iter().all(|left| *left > 1), "the organization is the last: {left:?}");
    assert_eq!(lasting_keys(&mut c, "acme"), [""; 0]);
}

fn a_wrong_type_in_the_way_leaves_nothing_half_done(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    populate_store(&mut c);
    for key in ["acme", "{acme}:ids:vault", "{acme}:ids:api", "{acme}:ids:org", "{acme}:orgs"] {
        let payload = c.ok(args!["DUMP", key]).bytes();
        c.ok(args!["DEL", key]);
        c.ok(args!["SADD", key, "x"]);
        let before = c.state();
        c.refused("WRONGTYPE", "KG.DELSTORE acme");
        assert_eq!(c.state(), before, "{key}");
        c.ok(args!["RESTORE", key, 0, payload, "REPLACE"]);
    }
    c.ok("HSET acme schema 2");
    let before = c.state();
    c.refused("ERR", "KG.DELSTORE acme");
    assert_eq!(c.state(), before, "a store of a newer version is not ours to delete");
    c.ok("HSET acme schema 1");
    delete(&mut c, "acme");
}

fn a_store_is_deleted_with_full_memory(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    populate_store(&mut c);
    add_keys(&mut c, "acme", 150);
    c.ok("CONFIG SET maxmemory 1");
    delete(&mut c, "acme");
    assert_eq!(lasting_keys(&mut c, "acme"), [""; 0]);
}

fn a_deleted_store_begins_anew(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    let sample = populate_store(&mut c);
    delete(&mut c, "acme");
    // What addresses claimed runs out by itself.
    for key in c.keys() {
        if key.starts_with(b"{acme}:ip:") {
            c.ok(args!["DEL", key]);
        }
    }
    populate_store(&mut c);
    assert_eq!(c.ok("KG.FINDKEY acme another-secret").ints(), [3]);
    assert_eq!(c.code(format!("KG.AUTH acme {}", sample.plain)), "NOT_FOUND", "an old key is not a new one");
    assert_eq!(c.ok("KG.USABILITY acme NAME maps").list().len(), 2);
    c.ok("DEBUG RELOAD");
    delete(&mut c, "acme");
    c.ok("DEBUG RELOAD");
    assert_eq!(lasting_keys(&mut c, "acme"), [""; 0]);
}

fn who_waits_for_a_key_learns_that_the_store_is_gone(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    c.ok("KG.ADDKEY acme vendor some-secret LIMIT 1 1h");
    assert_eq!(c.code("KG.ACQUIRE acme vendor"), "ACQUIRED");
    let mut waiting = server.client();
    waiting.send("KG.ACQUIRE acme vendor BLOCK 50m");
    eventually("somebody waiting", || {
        let blocked = c.info_number("clients", "blocked_clients");
        expect(blocked == 1, || format!("{blocked} wait"))
    });
    delete(&mut c, "acme");
    let reply = waiting.receive();
    assert!(["NOSTORE", "NOSUCH"].contains(&&*reply.error_code()), "{reply:?}");
}

fn a_replica_follows(sut: &Sut) {
    let primary = sut.server();
    let replica = sut.setup().replica_of(&primary).start();
    primary.wait_for(&replica);
    let (mut ours, mut theirs) = (primary.client(), replica.client());
    populate_store(&mut ours);
    add_keys(&mut ours, "acme", 150);
    let mut check = |what: &str| {
        primary.wait_for(&replica);
        assert_eq!(ours.state(), theirs.state(), "{what}");
        for command in ["KG.GETSTORE acme", "KG.LISTORGS acme", "KG.GETORG acme shop"] {
            assert_eq!(ours.call(command), theirs.call(command), "{what}: {command}");
        }
    };
    for command in [
        "KG.DELORG acme spare",
        "KG.SETORG acme shop STATUS suspended CLEAR limits",
        "KG.SETSTORE acme TZ Asia/Tokyo IPTHRESHOLD 5",
        "KG.SETSTORE acme CLEAR tz",
        "KG.DELSTORE acme",
        "KG.DELSTORE acme",
    ] {
        primary.client().ok(command);
        check(command);
    }
    let mut c = primary.client();
    assert_eq!(lasting_keys(&mut c, "acme"), [""; 0]);
    for command in ["KG.DELSTORE acme", "KG.SETSTORE acme TZ UTC", "KG.DELORG acme shop"] {
        replica.client().refused("READONLY", command);
    }
}

fn rejects_bad_arguments(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    c.ok("KG.ADDORG acme shop");
    let before = c.state();
    for command in [
        "KG.GETORG acme",
        "KG.GETORG acme shop x",
        "KG.LISTORGS",
        "KG.LISTORGS acme x",
        "KG.LISTORGS acme STATUS",
        "KG.LISTORGS acme STATUS asleep",
        "KG.LISTORGS acme STATUS active STATUS active",
        "KG.LISTORGS acme AFTER",
        "KG.LISTORGS acme AFTER 1",
        "KG.LISTORGS acme AFTER 1 COUNT",
        "KG.LISTORGS acme AFTER 1 COUNT 0",
        "KG.LISTORGS acme AFTER 1 COUNT 201",
        "KG.LISTORGS acme AFTER x COUNT 1",
        "KG.LISTORGS acme AFTER 1 COUNT 1 AFTER 1 COUNT 1",
        "KG.LISTORGS acme COUNT 1",
        "KG.DELORG acme",
        "KG.DELORG acme shop x",
        "KG.SETSTORE acme",
        "KG.SETSTORE acme TZ",
        "KG.SETSTORE acme TZ Mars/Olympus",
        "KG.SETSTORE acme TZ +02:00",
        "KG.SETSTORE acme TZ UTC TZ UTC",
        "KG.SETSTORE acme TZ UTC CLEAR tz",
        "KG.SETSTORE acme IPTHRESHOLD",
        "KG.SETSTORE acme IPTHRESHOLD -1",
        "KG.SETSTORE acme IPTHRESHOLD 60001",
        "KG.SETSTORE acme IPTHRESHOLD x",
        "KG.SETSTORE acme IPTHRESHOLD 1 IPTHRESHOLD 1",
        "KG.SETSTORE acme CLEAR",
        "KG.SETSTORE acme CLEAR schema",
        "KG.SETSTORE acme CLEAR tz CLEAR tz",
        "KG.SETSTORE acme WHAT ever",
        "KG.GETSTORE",
        "KG.GETSTORE acme x",
        "KG.DELSTORE",
        "KG.DELSTORE acme x",
    ] {
        c.refused("ERR", command);
    }
    assert!(c.err("KG.SETSTORE acme TZ Mars/Olympus").contains("Europe/Berlin"), "it says what is accepted");
    c.refused("ERR", args!["KG.GETORG", "acme", "o".repeat(257)]);
    c.refused("ERR", args!["KG.DELORG", "acme", ""]);
    c.refused("ERR", "KG.SETSTORE nobody TZ Mars/Olympus");
    assert_eq!(c.state(), before);
}
