//! API keys over their lives: what is said of them, how it changes, quotas, rotation, revocation, and when they were last used.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::Instant,
};

use redis::Value;

use crate::harness::{Client, Reply, Server, Setup, Sut, args, contains, eventually, expect, now_ms, server_tests};

server_tests![
    descriptions_show_what_was_given_and_no_secret,
    setkey_changes_and_clears_every_field,
    setkey_keeps_what_a_key_used,
    setkey_takes_nothing_of_the_other_type,
    revoked_keys_never_work_again,
    records_of_every_length_are_read_as_written,
    records_that_shrink_leave_nothing_behind,
    records_in_one_piece_are_read_and_rewritten_in_pieces,
    organizations_of_every_length_are_read_as_written,
    vault_keys_of_every_length_are_read_as_written,
    a_quota_holds_until_its_period_ends,
    a_quota_counts_its_unit_only,
    quotas_and_limits_take_from_all_or_none,
    limits_refuse_before_quotas,
    an_organization_shares_its_quota,
    quotas_can_be_changed,
    a_quota_is_never_forgotten,
    a_refusal_tells_what_is_left_without_it,
    an_exceeded_quota_is_an_event,
    keys_are_used_from_allowed_addresses_only,
    auth_takes_a_path_and_a_method,
    auth_answers_meta_when_asked,
    rotating_changes_nothing_but_the_secret,
    both_keys_work_as_one_in_the_grace,
    the_old_key_is_a_stranger_after_its_grace,
    rotating_again_ends_the_first_key,
    rotation_refuses_what_it_cannot_do,
    revokes_by_the_key_itself,
    revokes_by_the_visible_beginning,
    no_call_is_valid_that_begins_after_the_revocation_has_replied,
    deleting_takes_every_index_along,
    knows_when_a_key_was_last_used,
    counts_its_answers,
    everything_is_the_same_elsewhere,
    agrees_with_a_plain_model,
];

const HOUR: i64 = 3_600_000;
const DAY: i64 = 24 * HOUR;

/// A new key, in a store that has the organization `shop`.
fn new_key(c: &mut Client, arguments: &str) -> (i64, String) {
    if c.ok("EXISTS acme").int() == 0 {
        c.ok("KG.ADDORG acme shop");
    }
    pair(&c.ok(format!("KG.NEWKEY acme {arguments}")))
}

fn pair(reply: &Value) -> (i64, String) {
    let [id, raw] = reply.list() else { panic!("a pair, not {reply:?}") };
    (id.int(), raw.text())
}

fn rotate(c: &mut Client, id: i64, grace: &str) -> String {
    let (same, raw) = pair(&c.ok(format!("KG.ROTATE acme {id} {grace}")));
    assert_eq!(same, id);
    raw
}

fn auth(c: &mut Client, raw: &str, options: &str) -> String {
    c.code(format!("KG.AUTH acme {raw} {options}"))
}

fn key(c: &mut Client, id: i64) -> Value {
    c.ok(format!("KG.GETKEY acme {id}"))
}

/// The names of the fields that SETKEY changed.
fn set(c: &mut Client, id: i64, arguments: &str) -> Vec<String> {
    texts(&c.ok(format!("KG.SETKEY acme {id} {arguments}")))
}

fn texts(list: &Value) -> Vec<String> {
    list.list().iter().map(Reply::text).collect()
}

/// The keys whose names begin so.
fn keys_like(c: &mut Client, beginning: &str) -> Vec<String> {
    let keys = c.keys().into_iter().map(|key| String::from_utf8(key).unwrap());
    keys.filter(|key| key.starts_with(beginning)).collect()
}

fn durable(setup: Setup) -> Setup {
    setup.with("appendonly", "yes").with("appendfsync", "always")
}

fn primary_and_replica(sut: &Sut) -> (Server, Server) {
    let primary = durable(sut.setup()).start();
    let replica = sut.setup().replica_of(&primary).start();
    primary.wait_for(&replica);
    (primary, replica)
}

// What is said of a key.

fn descriptions_show_what_was_given_and_no_secret(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    let (id, raw) = new_key(
        &mut c,
        "shop web PREFIX pk_ SCOPES read,orders:* LIMIT 5 1h LIMIT 100 1m UNIT tokens QUOTA 10 day quota 1000 MONTH UNIT \
         tokens QUOTA 50000 total ALLOW 192.0.2.0/24 ALLOW 2001:db8::/32 allow ::ffff:198.51.100.7 EXPIREAT 4102444800 \
         META {\"plan\":1}",
    );
    assert_eq!(auth(&mut c, &raw, "SCOPE read IP 192.0.2.9"), "VALID");
    let rotated = rotate(&mut c, id, "GRACE 1h");
    for mut c in [server.client(), server.client().resp3()] {
        let one = key(&mut c, id);
        let listed = c.ok("KG.LISTKEYS acme TYPE api").list()[0].clone();
        for map in [one, listed] {
            assert_eq!(texts(&map.field("scopes")), ["read", "orders:*"]);
            assert_eq!(texts(&map.field("quotas")), ["10 day requests", "1000 month tokens", "50000 total requests"]);
            assert_eq!(texts(&map.field("allowed")), ["192.0.2.0/24", "2001:db8::/32", "198.51.100.7"]);
            assert_eq!(map.field("expires_at").int(), 4_102_444_800_000);
            assert_eq!(map.field("meta").text(), "{\"plan\":1}");
            assert_eq!(map.field("start").text(), rotated[..9]);
            assert!((now_ms()..=now_ms() + HOUR).contains(&map.field("rotated_until").int()), "{map:?}");
            assert!((now_ms() - HOUR..=now_ms()).contains(&map.field("last_used_at").int()), "{map:?}");
            let shown = format!("{map:?}");
            for raw in [&raw, &rotated] {
                assert!(!shown.contains(&raw[10..20]) && !shown.contains(&raw[46..]), "no part of a key: {shown}");
            }
            assert!(map.get("digest").is_none() && map.get("r").is_none(), "{shown}");
        }
    }
    // Nothing of a raw key stands in the keyspace, beyond its visible beginning.
    for name in c.keys() {
        let value = match &*c.ok(args!["TYPE", name]).text() {
            "hash" => format!("{:?}", c.ok(args!["HGETALL", name])),
            "string" => format!("{:?}", c.ok(args!["GET", name])),
            _ => format!("{:?}", c.ok(args!["DUMP", name])),
        };
        for raw in [&raw, &rotated] {
            assert!(!value.contains(&raw[..10]) && !value.contains(&raw[9..17]), "{}", name.escape_ascii());
        }
    }
    let (bare, _) = new_key(&mut c, "shop bare");
    let map = key(&mut c, bare);
    assert!(map.field("quotas").list().is_empty() && map.field("allowed").list().is_empty());
    for field in ["rotated_until", "last_used_at", "meta", "expires_at"] {
        assert_eq!(map.get(field), None, "{field} does not apply");
    }
}

fn setkey_changes_and_clears_every_field(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    let (id, raw) = new_key(&mut c, "shop web");
    let steps: [(&str, &[&str]); 23] = [
        ("NAME tool", &["label"]),
        ("NAME tool", &[]),
        ("SCOPES b,a", &["scopes"]),
        ("SCOPES b,a", &[]),
        ("LIMIT 5 1h LIMIT 7 1h UNIT tokens", &["limits"]),
        ("LIMIT 5 1h", &["limits"]),
        ("QUOTA 5 day QUOTA 6 total UNIT tokens", &["quotas"]),
        ("QUOTA 5 day", &["quotas"]),
        ("QUOTA 5 day UNIT requests", &[]),
        ("ALLOW 192.0.2.0/24 ALLOW 2001:db8::/32", &["allowed"]),
        ("ALLOW 192.0.2.0/24 ALLOW 2001:db8::/32", &[]),
        ("EXPIREAT 4102444800", &["expires_at"]),
        ("META {}", &["meta"]),
        ("ACTIVE no", &["active"]),
        ("INACTIVE", &[]),
        ("ACTIVE yes CLEAR meta", &["active", "meta"]),
        ("CLEAR meta", &[]),
        ("CLEAR scopes", &["scopes"]),
        ("clear LIMITS", &["limits"]),
        ("CLEAR quotas CLEAR allowed", &["quotas", "allowed"]),
        ("CLEAR expires_at", &["expires_at"]),
        ("EXPIREAT 0", &[]),
        ("NAME web", &["label"]),
    ];
    let first = key(&mut c, id);
    for (arguments, changed) in steps {
        let before = key(&mut c, id);
        assert_eq!(set(&mut c, id, arguments), changed, "{arguments}");
        let after = key(&mut c, id);
        let differ: Vec<String> = after
            .fields()
            .into_iter()
            .filter(|(name, value)| before.get(name) != Some(value.clone()))
            .map(|(name, _)| name)
            .collect();
        let gone: Vec<String> =
            before.fields().into_iter().map(|(name, _)| name).filter(|name| after.get(name).is_none()).collect();
        for name in differ.iter().chain(&gone).filter(|name| !["status", "usable"].contains(&&***name)) {
            assert!(changed.contains(&&**name), "{arguments} changed {name}");
        }
        assert!(
            changed.iter().all(|name| differ.iter().chain(&gone).any(|other| other == name)),
            "{arguments}: {differ:?}"
        );
    }
    assert_eq!(key(&mut c, id), first, "everything is as it was");
    assert_eq!(auth(&mut c, &raw, ""), "VALID");
    // What was set holds.
    set(&mut c, id, "SCOPES read LIMIT 2 1h ALLOW 192.0.2.1 QUOTA 100 total");
    assert_eq!(auth(&mut c, &raw, "SCOPE read IP 192.0.2.1"), "VALID");
    assert_eq!(auth(&mut c, &raw, "SCOPE write IP 192.0.2.1"), "INSUFFICIENT_SCOPE");
    assert_eq!(auth(&mut c, &raw, "SCOPE read IP 192.0.2.2"), "IP_NOT_ALLOWED");
    assert_eq!(auth(&mut c, &raw, "SCOPE read IP 192.0.2.1"), "VALID");
    assert_eq!(auth(&mut c, &raw, "SCOPE read IP 192.0.2.1"), "RATE_LIMITED");
    set(&mut c, id, "ACTIVE no");
    assert_eq!(auth(&mut c, &raw, ""), "DISABLED");
    set(&mut c, id, "ACTIVE yes EXPIREAT 1");
    assert_eq!(auth(&mut c, &raw, ""), "EXPIRED");
}

fn setkey_keeps_what_a_key_used(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    let (id, raw) = new_key(&mut c, "shop web LIMIT 5 1h QUOTA 50 total META {\"a\":1}");
    for _ in 0..3 {
        assert_eq!(auth(&mut c, &raw, ""), "VALID");
    }
    let used = key(&mut c, id).field("last_used_at");
    set(&mut c, id, "NAME other SCOPES x");
    assert_eq!(key(&mut c, id).field("last_used_at"), used);
    assert_eq!(key(&mut c, id).field("meta").text(), "{\"a\":1}");
    let map = c.ok(format!("KG.CHECK acme {raw}"));
    assert_eq!((map.field("remaining").int(), map.field("quota_remaining").int()), (2, 47));
}

fn setkey_takes_nothing_of_the_other_type(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    let (id, _) = new_key(&mut c, "shop web SCOPES a LIMIT 5 1h");
    let vault = c.ok("KG.ADDKEY acme vendor some-secret SOURCE s").int();
    let before = c.state();
    for tail in [
        "SOURCE s",
        "LOGIN l",
        "BATCH b",
        "ACCOUNT a",
        "ACCOUNT a SHARED 5 1h",
        "SHARED 5 1h",
        "WEIGHT 2",
        "SECRET another-secret",
        "SECRET another-secret UNIQUE",
        "CLEAR source",
        "CLEAR login",
        "CLEAR batch",
        "CLEAR account",
        "CLEAR shared",
        "CLEAR weight",
    ] {
        for wrapped in [tail.to_owned(), format!("NAME other {tail}"), format!("{tail} SCOPES b")] {
            c.refused("ERR", format!("KG.SETKEY acme {id} {wrapped}"));
            assert_eq!(c.state(), before, "{wrapped}");
        }
    }
    for tail in ["SCOPES a", "QUOTA 5 day", "ALLOW 192.0.2.1", "CLEAR scopes", "CLEAR quotas", "CLEAR allowed"] {
        for wrapped in [tail.to_owned(), format!("NAME other {tail}"), format!("{tail} SECRET another-secret")] {
            c.refused("ERR", format!("KG.SETKEY acme {vault} {wrapped}"));
            assert_eq!(c.state(), before, "{wrapped}");
        }
    }
    for tail in [
        "SCOPES b CLEAR scopes",
        "QUOTA 5 day CLEAR quotas",
        "ALLOW 192.0.2.1 CLEAR allowed",
        "LIMIT 6 1h CLEAR limits",
        "EXPIREIN 1h CLEAR expires_at",
        "META {} CLEAR meta",
        "CLEAR scopes CLEAR SCOPES",
        "CLEAR label",
        "CLEAR org",
        "CLEAR last_used_at",
        "QUOTA 5 week",
        "QUOTA 5",
        "QUOTA 0 day",
        "QUOTA x day",
        "QUOTA -1 day",
        "QUOTA 5 day QUOTA 6 day",
        "QUOTA 5 day UNIT",
        "ALLOW x",
        "ALLOW 192.0.2.0/33",
        "ALLOW",
        "NAME other WHAT",
        "PREFIX p_",
        "ORG lab",
    ] {
        c.refused("ERR", format!("KG.SETKEY acme {id} {tail}"));
    }
    assert_eq!(c.state(), before);
}

fn revoked_keys_never_work_again(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    let (id, raw) = new_key(&mut c, "shop web");
    c.ok(format!("KG.REVOKE acme {id}"));
    let before = c.state();
    for tail in ["ACTIVE yes", "ACTIVE no", "INACTIVE", "NAME other ACTIVE yes", "active YES clear meta"] {
        c.refused("ERR", format!("KG.SETKEY acme {id} {tail}"));
    }
    for tail in ["", "GRACE 1h"] {
        c.refused("ERR", format!("KG.ROTATE acme {id} {tail}"));
    }
    assert_eq!(c.state(), before);
    assert_eq!(set(&mut c, id, "NAME was-leaked META {\"why\":1}"), ["label", "meta"]);
    assert_eq!(auth(&mut c, &raw, ""), "DISABLED");
    assert_eq!(key(&mut c, id).field("status").text(), "revoked");
}

// How records are kept.

/// The lengths of a packed record's pieces, after a look that they are as they should be.
fn pieces(c: &mut Client, key: &str) -> usize {
    let read: Vec<Option<Vec<u8>>> = ["r", "r2", "r3", "r4"]
        .into_iter()
        .map(|field| match c.ok(args!["HGET", key, field]) {
            Value::Nil => None,
            piece => Some(piece.bytes()),
        })
        .collect();
    let lengths: Vec<usize> = read.iter().map_while(|piece| piece.as_ref().map(Vec::len)).collect();
    let there = read.iter().filter(|piece| piece.is_some()).count();
    assert_eq!(lengths.len(), there, "pieces without a gap: {lengths:?}");
    let total: usize = lengths.iter().sum();
    let wanted: Vec<usize> =
        if total > 256 { vec![total] } else { (0..total).step_by(64).map(|begin| 64.min(total - begin)).collect() };
    assert_eq!(lengths, wanted, "{key}");
    total
}

/// Every multiple of a piece, and what lies beside it, was among the lengths.
fn assert_covers(lengths: &[usize], from: usize) {
    let wanted = [63, 64, 65, 127, 128, 129, 191, 192, 193, 255, 256, 257];
    for length in wanted.into_iter().filter(|length| *length >= from) {
        assert!(lengths.contains(&length), "no record of {length} bytes among {lengths:?}");
    }
}

fn records_of_every_length_are_read_as_written(sut: &Sut) {
    let mut server = durable(sut.setup()).start();
    let mut c = server.client();
    c.ok("KG.ADDORG acme o");
    let mut keys = Vec::new();
    let mut lengths = Vec::new();
    for length in 1..=256 {
        let label = "l".repeat(length);
        let (id, raw) = pair(&c.ok(args!["KG.NEWKEY", "acme", "o", label, "PREFIX", ""]));
        lengths.push(pieces(&mut c, &format!("{{acme}}:key:{id}")));
        keys.push((id, label, raw));
    }
    assert_covers(&lengths, 63);
    for round in 0..2 {
        for (id, label, raw) in &keys {
            let map = c.ok(format!("KG.AUTH acme {raw}"));
            assert_eq!(map.field("code").text(), "VALID", "round {round}");
            assert_eq!((map.field("id").int(), map.field("label").text()), (*id, label.clone()));
            assert_eq!(key(&mut c, *id).field("label").text(), *label);
        }
        server.restart();
        c = server.client();
    }
    let listed = c.ok("KG.LISTKEYS acme TYPE api AFTER 0 COUNT 200");
    for (map, (id, label, _)) in listed.list().iter().zip(&keys) {
        assert_eq!((map.field("id").int(), map.field("label").text()), (*id, label.clone()));
    }
    for (id, _, raw) in &keys {
        c.ok(format!("KG.REVOKE acme {id}"));
        pieces(&mut c, &format!("{{acme}}:key:{id}"));
        assert_eq!(auth(&mut c, raw, ""), "DISABLED");
    }
}

fn records_that_shrink_leave_nothing_behind(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    c.ok("KG.ADDORG acme o");
    let (id, mut raw) = pair(&c.ok(args!["KG.NEWKEY", "acme", "o", "l", "PREFIX", ""]));
    let name = format!("{{acme}}:key:{id}");
    let mut lengths = Vec::new();
    // Every length after many others, longer and shorter.
    for step in 0..512 {
        let label = "l".repeat(1 + step * 149 % 256);
        c.ok(format!("KG.SETKEY acme {id} NAME {label}"));
        lengths.push(pieces(&mut c, &name));
        if step % 16 == 7 {
            raw = rotate(&mut c, id, if step % 32 == 7 { "GRACE 1h" } else { "" });
            pieces(&mut c, &name);
        }
        if step % 64 == 8 {
            raw = rotate(&mut c, id, "");
            pieces(&mut c, &name);
        }
        let map = c.ok(format!("KG.AUTH acme {raw}"));
        assert_eq!(map.get("label").map(|label| label.text()), Some(label), "{map:?}");
    }
    assert_covers(&lengths, 63);
    set(&mut c, id, "NAME l QUOTA 5 total QUOTA 6 day QUOTA 7 month ALLOW 192.0.2.1 LIMIT 5 1h LIMIT 5 1h UNIT tokens");
    pieces(&mut c, &name);
    rotate(&mut c, id, "");
    set(&mut c, id, "CLEAR quotas CLEAR allowed CLEAR limits");
    assert_eq!(pieces(&mut c, &name), 63);
    assert_eq!(
        c.ok(args!["OBJECT", "ENCODING", name]).text(),
        if lengths.contains(&257) { "hashtable" } else { "listpack" }
    );
}

fn records_in_one_piece_are_read_and_rewritten_in_pieces(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    c.ok("KG.ADDORG acme o");
    let (id, mut raw) = pair(&c.ok(args!["KG.NEWKEY", "acme", "o", "l", "PREFIX", "", "META", "{}"]));
    let name = format!("{{acme}}:key:{id}");
    for length in [1, 2, 3, 60, 65, 66, 67, 128, 130, 193, 194, 195, 200] {
        // As a release before this one wrote them.
        set(&mut c, id, &format!("NAME {}", "l".repeat(length)));
        let packed = c.packed(&name);
        c.ok(args!["HSET", name, "r", packed]);
        c.ok(args!["HDEL", name, "r2", "r3", "r4"]);
        assert_eq!(auth(&mut c, &raw, ""), "VALID");
        assert_eq!(key(&mut c, id).field("label").text().len(), length);
        if length % 2 == 0 {
            raw = rotate(&mut c, id, "");
        } else {
            set(&mut c, id, "EXPIREIN 1h");
        }
        pieces(&mut c, &name);
        set(&mut c, id, "CLEAR expires_at");
        assert_eq!(pieces(&mut c, &name), packed.len());
        assert_eq!(c.code(format!("KG.AUTH acme {raw} WITHMETA")), "VALID");
    }
}

fn organizations_of_every_length_are_read_as_written(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    c.ok("KG.ADDORG acme shop");
    let (_, raw) = new_key(&mut c, "shop web");
    let mut lengths = Vec::new();
    for step in 0..512 {
        // Units of all lengths, in one to eight limits.
        let step = step * 149 % 512;
        let (units, first) = (1 + step / 64, step % 32);
        let limits: String = (0..units)
            .map(|n| {
                format!(
                    " LIMIT 5 1h UNIT {}{}",
                    char::from(b'a' + n as u8),
                    "u".repeat(if n == 0 { first } else { 31 })
                )
            })
            .collect();
        c.ok(format!("KG.SETORG acme shop{limits}{}", if step % 2 == 0 { " QUOTA 9 total UNIT zz" } else { "" }));
        lengths.push(pieces(&mut c, "{acme}:org:shop"));
        let map = c.ok(format!("KG.CHECK acme {raw}"));
        assert_eq!(map.field("code").text(), "VALID", "{map:?}");
        assert_eq!(map.field("limit").int(), 5);
    }
    assert_covers(&lengths, 127);
}

fn vault_keys_of_every_length_are_read_as_written(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    let id = c.ok("KG.ADDKEY acme n s").int();
    let mut lengths = Vec::new();
    for step in 0..256 {
        let name = "n".repeat(1 + step * 149 % 256);
        c.ok(format!("KG.SETKEY acme {id} NAME {name}"));
        lengths.push(pieces(&mut c, "{acme}:key:1"));
        assert_eq!(c.ok(args!["KG.REVEAL", "acme", "NAME", name]).text(), "s");
        assert_eq!(c.code(args!["KG.ACQUIRE", "acme", name]), "ACQUIRED");
    }
    assert_covers(&lengths, 129);
}

// Quotas.

/// Away from the end of a day, in UTC and in Kolkata: no day ends while a test looks.
pub fn away_from_midnight() {
    eventually("the day having begun", || {
        let near = |offset: i64| (now_ms() + offset + 30_000).rem_euclid(DAY) < 35_000;
        expect(!near(0) && !near(KOLKATA), || "midnight is near".to_owned())
    });
}

/// How far Kolkata is ahead of UTC, all the year.
const KOLKATA: i64 = 5 * HOUR + HOUR / 2;

/// The end of the day and of the month, where clocks are this far ahead of UTC.
fn ends(now: i64, offset: i64) -> [i64; 2] {
    let day = (now + offset).div_euclid(DAY);
    // Days are counted from the first of March of the year 0: months then have a plain rule.
    let month_of = |day: i64| {
        let of_era = (day + 719_468).rem_euclid(146_097);
        let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year + year / 4 - year / 100);
        (5 * of_year + 2) / 153
    };
    let next_month = (day..).find(|next| month_of(*next) != month_of(day)).unwrap();
    [(day + 1) * DAY - offset, next_month * DAY - offset]
}

fn a_quota_holds_until_its_period_ends(sut: &Sut) {
    away_from_midnight();
    let server = sut.server();
    let mut c = server.client();
    c.ok("KG.ADDORG acme shop");
    for (zone, offset) in [(None, 0), (Some("Asia/Kolkata"), KOLKATA), (Some("UTC"), 0)] {
        if let Some(zone) = zone {
            c.ok(format!("HSET acme tz {zone}"));
        }
        for (index, period) in ["day", "month"].into_iter().enumerate() {
            let (id, raw) = new_key(&mut c, &format!("shop web QUOTA 3 {period}"));
            let win = format!("{{acme}}:win:{id}");
            for left in [2, 1, 0] {
                let map = c.ok(format!("KG.AUTH acme {raw}"));
                let wanted = ends(now_ms(), offset)[index] - now_ms();
                assert_eq!(map.field("code").text(), "VALID");
                assert_eq!(map.field("quota_remaining").int(), left);
                let reset = map.field("quota_reset_ms").int();
                assert!((0..5_000).contains(&(reset - wanted)), "{period} in {zone:?}: {reset}, not {wanted}");
                assert_eq!((map.get("limit"), map.get("limited_by"), map.get("retry_after_ms")), (None, None, None));
            }
            let before = c.state();
            for command in ["KG.AUTH", "KG.CHECK"] {
                let map = c.ok(format!("{command} acme {raw}"));
                assert_eq!(map.field("code").text(), "QUOTA_EXCEEDED");
                assert_eq!(map.field("limited_by").text(), "quota");
                assert_eq!(map.field("quota_remaining").int(), 0);
                assert_eq!(map.field("retry_after_ms"), map.field("quota_reset_ms"));
                assert_eq!(map.get("claimed_at_ms"), None);
                assert_eq!(c.code(format!("{command} acme {raw} COST 0 IP 192.0.2.1")), "VALID", "it costs nothing");
                let map = c.ok(format!("{command} acme {raw} COST 4"));
                assert_eq!(map.field("retry_after_ms").int(), -1, "more than the whole quota never fits");
            }
            assert_eq!(c.state(), before);
            let ends_at = ends(now_ms(), offset)[index];
            assert!(c.ok(args!["PEXPIRETIME", win]).int() >= ends_at, "kept until the period ends");
        }
    }
    // Another zone does not move the end of a period that has begun.
    let (_, raw) = new_key(&mut c, "shop web QUOTA 3 day");
    assert_eq!(auth(&mut c, &raw, ""), "VALID");
    c.ok("KG.SETSTORE acme TZ Asia/Kolkata");
    let map = c.ok(format!("KG.AUTH acme {raw}"));
    let wanted = ends(now_ms(), 0)[0] - now_ms();
    assert!((0..5_000).contains(&(map.field("quota_reset_ms").int() - wanted)), "{map:?}");
    assert_eq!(map.field("quota_remaining").int(), 1);
    // For good.
    let (id, raw) = new_key(&mut c, "shop web QUOTA 2 total");
    assert_eq!(c.ok(format!("KG.CHECK acme {raw}")).field("quota_remaining").int(), 2);
    for left in [1, 0] {
        let map = c.ok(format!("KG.AUTH acme {raw}"));
        assert_eq!((map.field("quota_remaining").int(), map.get("quota_reset_ms")), (left, None));
        assert_eq!(c.ok(format!("PTTL {{acme}}:win:{id}")).int(), -1, "kept for good");
    }
    let map = c.ok(format!("KG.AUTH acme {raw}"));
    assert_eq!((map.field("code").text().as_str(), map.field("retry_after_ms").int()), ("QUOTA_EXCEEDED", -1));
    // A zone that does not exist is told of where it is needed, and nothing is charged.
    c.ok("HSET acme tz Mars/Olympus");
    let (_, raw) = new_key(&mut c, "shop web QUOTA 2 day");
    let before = c.state();
    c.refused("ERR", format!("KG.AUTH acme {raw}"));
    assert_eq!(c.state(), before);
}

fn a_quota_counts_its_unit_only(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    let (_, raw) = new_key(&mut c, "shop web QUOTA 3 total QUOTA 100 total UNIT tokens QUOTA 40 month UNIT tokens");
    let call = |c: &mut Client, options: &str| {
        let map = c.ok(format!("KG.AUTH acme {raw} {options}"));
        (map.field("code").text(), map.field("quota_remaining").int())
    };
    let told = |code: &str, left| (code.to_owned(), left);
    assert_eq!(call(&mut c, "COST 0 COST 30 UNIT tokens"), told("VALID", 3));
    assert_eq!(call(&mut c, "COST 0 COST 11 UNIT tokens"), told("QUOTA_EXCEEDED", 10));
    assert_eq!(call(&mut c, "COST 5 UNIT pages"), told("VALID", 2), "what no quota counts is free");
    assert_eq!(call(&mut c, "COST 1 COST 10 UNIT tokens"), told("VALID", 0));
    assert_eq!(call(&mut c, "COST 1 COST 1 UNIT tokens"), told("QUOTA_EXCEEDED", 0));
    assert_eq!(
        call(&mut c, "COST 0 COST 61 UNIT tokens"),
        told("QUOTA_EXCEEDED", 60),
        "the one that is never full again"
    );
    assert_eq!(call(&mut c, ""), told("VALID", 0));
    assert_eq!(call(&mut c, ""), told("QUOTA_EXCEEDED", 0));
}

fn quotas_and_limits_take_from_all_or_none(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    c.ok("KG.ADDORG acme shop LIMIT 100 1h QUOTA 3 total UNIT tokens QUOTA 50 month");
    let (_, raw) = new_key(&mut c, "shop web LIMIT 5 1h QUOTA 4 total LIMIT 10 1h UNIT tokens");
    assert_eq!(auth(&mut c, &raw, "COST 1 COST 3 UNIT tokens"), "VALID");
    let before = c.state();
    for (options, code, by) in [
        ("COST 1 COST 1 UNIT tokens", "QUOTA_EXCEEDED", "quota"),
        ("COST 4", "QUOTA_EXCEEDED", "quota"),
        ("COST 5", "RATE_LIMITED", "key"),
        ("COST 0 COST 8 UNIT tokens", "RATE_LIMITED", "key"),
        ("COST 101", "RATE_LIMITED", "key"),
        ("SCOPE read", "INSUFFICIENT_SCOPE", ""),
    ] {
        let map = c.ok(format!("KG.AUTH acme {raw} {options}"));
        assert_eq!(map.field("code").text(), code, "{options}");
        assert_eq!(map.get("limited_by").map_or(String::new(), |by| by.text()), by, "{options}");
        assert_eq!(c.state(), before, "{options}");
    }
    let map = c.ok(format!("KG.AUTH acme {raw} COST 3"));
    assert_eq!((map.field("remaining").int(), map.field("quota_remaining").int()), (1, 0));
}

fn limits_refuse_before_quotas(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    let (_, raw) = new_key(&mut c, "shop web LIMIT 1 1h QUOTA 1 total");
    assert_eq!(auth(&mut c, &raw, ""), "VALID");
    let map = c.ok(format!("KG.AUTH acme {raw}"));
    assert_eq!((map.field("code").text().as_str(), map.field("limited_by").text().as_str()), ("RATE_LIMITED", "key"));
    assert!((1..=HOUR).contains(&map.field("retry_after_ms").int()));
    assert_eq!(map.get("quota_remaining"), None, "what was not asked is not told");
}

fn an_organization_shares_its_quota(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    c.ok("KG.ADDORG acme shop QUOTA 5 month");
    c.ok("KG.ADDORG acme lab QUOTA 5 month");
    let (_, first) = new_key(&mut c, "shop a QUOTA 3 total");
    let (_, second) = new_key(&mut c, "shop b");
    let (_, other) = new_key(&mut c, "lab a");
    let codes: Vec<String> =
        [&first, &first, &first, &first, &second, &second, &second, &other].map(|raw| auth(&mut c, raw, "")).to_vec();
    let (yes, no) = ("VALID", "QUOTA_EXCEEDED");
    assert_eq!(codes, [yes, yes, yes, no, yes, yes, no, yes]);
    let map = c.ok(format!("KG.AUTH acme {second}"));
    assert!(map.field("retry_after_ms").int() > 0 && map.field("limited_by").text() == "quota", "{map:?}");
    c.ok("KG.SETORG acme shop QUOTA 7 month");
    assert_eq!(c.ok(format!("KG.AUTH acme {second}")).field("quota_remaining").int(), 1);
}

fn quotas_can_be_changed(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    let (id, raw) = new_key(&mut c, "shop web QUOTA 10 total");
    for _ in 0..6 {
        assert_eq!(auth(&mut c, &raw, ""), "VALID");
    }
    let left = |c: &mut Client| {
        let map = c.ok(format!("KG.AUTH acme {raw}"));
        (map.field("code").text(), map.get("quota_remaining").map(|left| left.int()))
    };
    set(&mut c, id, "QUOTA 3 total");
    assert_eq!(left(&mut c), ("QUOTA_EXCEEDED".to_owned(), Some(0)));
    set(&mut c, id, "QUOTA 8 total");
    assert_eq!(left(&mut c), ("VALID".to_owned(), Some(1)));
    set(&mut c, id, "CLEAR quotas");
    assert_eq!(left(&mut c), ("VALID".to_owned(), None));
    set(&mut c, id, "QUOTA 8 total");
    assert_eq!(left(&mut c), ("VALID".to_owned(), Some(0)), "what was used without a quota did not count");
    let nine: String = (0..9).map(|n| format!(" QUOTA 5 day UNIT u{n}")).collect();
    c.refused("ERR", format!("KG.SETKEY acme {id}{nine}"));
    c.refused("ERR", format!("KG.NEWKEY acme shop a{nine}"));
    c.refused("ERR", format!("KG.ADDORG acme many{nine}"));
}

fn a_quota_is_never_forgotten(sut: &Sut) {
    away_from_midnight();
    let (mut primary, replica) = primary_and_replica(sut);
    let mut c = primary.client();
    c.ok("KG.ADDORG acme shop QUOTA 50 total");
    let (id, raw) = new_key(&mut c, "shop web QUOTA 20 month QUOTA 9 total UNIT tokens LIMIT 30 1h");
    let mut left = 20;
    let mut use_one = |c: &mut Client, when: &str| {
        left -= 1;
        let map = c.ok(format!("KG.AUTH acme {raw} COST 1 COST 1 UNIT tokens"));
        assert_eq!(map.field("quota_remaining").int(), left - 11, "{when}: {map:?}");
        assert_eq!(map.field("remaining").int(), left + 10, "{when}: {map:?}");
    };
    use_one(&mut c, "first");
    c.ok("DEBUG RELOAD");
    use_one(&mut c, "after a reload of the RDB");
    primary.restart();
    let mut c = primary.client();
    use_one(&mut c, "after a replay of the AOF");
    c.ok("BGREWRITEAOF");
    c.wait_for_background_work();
    primary.restart();
    let mut c = primary.client();
    use_one(&mut c, "after a rewrite of the AOF");
    for key in [format!("{{acme}}:win:{id}"), "{acme}:orgwin:shop".to_owned()] {
        let payload = c.ok(args!["DUMP", key]).bytes();
        let ttl = c.ok(args!["PTTL", key]).int().max(0);
        c.ok(args!["DEL", key]);
        c.ok(args!["RESTORE", key, ttl, payload]);
        c.ok(args!["COPY", key, "elsewhere"]);
        c.ok(args!["RENAME", "elsewhere", key]);
    }
    use_one(&mut c, "after DUMP, RESTORE, COPY and RENAME");
    primary.wait_for(&replica);
    let mut theirs = replica.client();
    assert_eq!(c.state(), theirs.state());
    assert_eq!(theirs.ok(format!("KG.CHECK acme {raw} COST 0")).field("quota_remaining").int(), 4);
    theirs.ok("REPLICAOF NO ONE");
    use_one(&mut theirs, "after a failover");
}

fn a_refusal_tells_what_is_left_without_it(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    let (_, raw) = new_key(&mut c, "shop web LIMIT 10 1h QUOTA 3 total");
    let told = |map: &Value| ["remaining", "reset_after_ms", "quota_remaining"].map(|field| map.field(field).int());
    // Untouched: the limit is full, and stays so.
    assert_eq!(told(&c.ok(format!("KG.AUTH acme {raw} COST 4"))), [10, 0, 3]);
    assert_eq!(told(&c.ok(format!("KG.CHECK acme {raw} COST 4"))), [10, 0, 3]);
    assert_eq!(told(&c.ok(format!("KG.AUTH acme {raw} COST 3"))), [7, HOUR, 0]);
    let map = c.ok(format!("KG.AUTH acme {raw} COST 2"));
    assert_eq!(map.field("code").text(), "QUOTA_EXCEEDED");
    assert_eq!(map.field("remaining").int(), 7, "nothing was charged");
}

fn an_exceeded_quota_is_an_event(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    c.ok("CONFIG SET notify-keyspace-events KEd");
    let mut listener = server.client();
    listener.ok("PSUBSCRIBE __keyspace@0__:*");
    let (id, raw) = new_key(&mut c, "shop web QUOTA 1 total");
    assert_eq!(auth(&mut c, &raw, ""), "VALID");
    assert_eq!(c.code(format!("KG.CHECK acme {raw}")), "QUOTA_EXCEEDED");
    assert_eq!(auth(&mut c, &raw, ""), "QUOTA_EXCEEDED");
    let rotated = rotate(&mut c, id, "");
    c.ok(args!["KG.REVOKE", "acme", "KEY", rotated]);
    for event in ["kg.quota", "kg.rotate", "kg.revoke"] {
        let message = listener.receive();
        let words = match &message {
            Value::Push { data, .. } => data.clone(),
            other => other.list().to_vec(),
        };
        let words: Vec<String> = words.iter().skip(2).map(Reply::text).collect();
        assert_eq!(words, [format!("__keyspace@0__:{{acme}}:key:{id}"), event.to_owned()]);
    }
}

// AUTH.

fn keys_are_used_from_allowed_addresses_only(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    let (id, raw) =
        new_key(&mut c, "shop web SCOPES read LIMIT 100 1h ALLOW 192.0.2.0/24 ALLOW 2001:db8:1::/48 ALLOW 203.0.113.9");
    let inside = ["192.0.2.0", "192.0.2.255", "::ffff:192.0.2.7", "2001:db8:1::5", "2001:DB8:1:ffff::", "203.0.113.9"];
    let outside = ["192.0.3.0", "192.0.1.255", "2001:db8:2::", "203.0.113.8", "203.0.113.10", "::192.0.2.7", "::1"];
    for address in inside {
        assert_eq!(auth(&mut c, &raw, &format!("IP {address}")), "VALID", "{address}");
    }
    let before = c.state();
    for address in outside {
        assert_eq!(auth(&mut c, &raw, &format!("IP {address}")), "IP_NOT_ALLOWED", "{address}");
        assert_eq!(c.code(format!("KG.CHECK acme {raw} IP {address}")), "IP_NOT_ALLOWED", "{address}");
    }
    assert_eq!(auth(&mut c, &raw, ""), "IP_NOT_ALLOWED", "who does not say from where");
    let map = c.ok(format!("KG.AUTH acme {raw} IP ::1"));
    assert_eq!((map.field("id").int(), map.get("limit"), map.get("limited_by")), (id, None, None));
    assert_eq!(c.state(), before);
    // Its place among the codes: after the organization, before scopes.
    assert_eq!(auth(&mut c, &raw, "IP ::1 SCOPE write"), "IP_NOT_ALLOWED");
    assert_eq!(auth(&mut c, &raw, "IP 192.0.2.1 SCOPE write"), "INSUFFICIENT_SCOPE");
    c.ok("KG.SETORG acme shop STATUS suspended");
    assert_eq!(auth(&mut c, &raw, "IP ::1"), "ORG_SUSPENDED");
    c.ok("KG.SETORG acme shop STATUS active");
    c.ok("KG.BLOCKIP acme 192.0.2.1 1h");
    assert_eq!(auth(&mut c, &raw, "IP 192.0.2.1"), "IP_BLOCKED", "a block counts also for who is allowed");
    // Up to 64, written as they are meant.
    let many: String = (0..64).map(|n| format!(" ALLOW 10.{n}.0.0/16")).collect();
    set(&mut c, id, &many);
    assert_eq!(auth(&mut c, &raw, "IP 10.63.1.1"), "VALID");
    assert_eq!(auth(&mut c, &raw, "IP 10.64.1.1"), "IP_NOT_ALLOWED");
    c.refused("ERR", format!("KG.SETKEY acme {id}{many} ALLOW ::1"));
    set(&mut c, id, "ALLOW 0.0.0.0/0");
    assert_eq!(auth(&mut c, &raw, "IP 198.51.100.1"), "VALID");
    assert_eq!(auth(&mut c, &raw, "IP 2001:db8::1"), "IP_NOT_ALLOWED", "all of IPv4 is nothing of IPv6");
    set(&mut c, id, "ALLOW 2001:db8::7");
    assert_eq!(auth(&mut c, &raw, "IP 2001:db8::7 SCOPE read"), "VALID");
    assert_eq!(auth(&mut c, &raw, "IP 2001:db8::8 SCOPE read"), "IP_NOT_ALLOWED", "its neighbour in the /64");
    set(&mut c, id, "ALLOW ::/0");
    assert_eq!(auth(&mut c, &raw, "IP 2001:db8::1"), "VALID");
    assert_eq!(auth(&mut c, &raw, "IP 198.51.100.1"), "IP_NOT_ALLOWED");
}

fn auth_takes_a_path_and_a_method(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    let (_, raw) = new_key(&mut c, "shop web");
    for options in
        ["PATH /", "METHOD GET", "path /a/b?c=d method post", "METHOD M-SEARCH", "METHOD BASELINE-CONTROL PATH /x"]
    {
        for command in ["KG.AUTH", "KG.CHECK"] {
            assert_eq!(c.code(format!("{command} acme {raw} {options}")), "VALID", "{options}");
        }
    }
    let before = c.state();
    for method in [&b""[..], b"GET /", b"G\xffT", b"GET\r\n", b"a/b", &[b'M'; 33]] {
        for command in ["KG.AUTH", "KG.CHECK"] {
            c.refused("ERR", args![command, "acme", raw, "METHOD", method]);
        }
    }
    for options in ["METHOD", "PATH", "METHOD GET METHOD GET", "PATH / PATH /", "WITHMETA WITHMETA"] {
        c.refused("ERR", format!("KG.AUTH acme {raw} {options}"));
    }
    assert_eq!(c.state(), before);
}

fn auth_answers_meta_when_asked(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    let (id, raw) = new_key(&mut c, "shop web META {\"plan\":\"gold\"} LIMIT 1 1h");
    let (_, bare) = new_key(&mut c, "shop bare");
    let meta = |c: &mut Client, command: &str| {
        let map = c.ok(command);
        (map.field("code").text(), map.get("meta").map(|meta| meta.text()))
    };
    let gold = Some("{\"plan\":\"gold\"}".to_owned());
    assert_eq!(meta(&mut c, &format!("KG.CHECK acme {raw} WITHMETA")), ("VALID".to_owned(), gold.clone()));
    assert_eq!(meta(&mut c, &format!("KG.AUTH acme {raw} withmeta")), ("VALID".to_owned(), gold.clone()));
    assert_eq!(meta(&mut c, &format!("KG.AUTH acme {raw} WITHMETA")), ("RATE_LIMITED".to_owned(), gold.clone()));
    assert_eq!(meta(&mut c, &format!("KG.AUTH acme {raw}")), ("RATE_LIMITED".to_owned(), None));
    assert_eq!(meta(&mut c, &format!("KG.AUTH acme {bare} WITHMETA")), ("VALID".to_owned(), None));
    c.ok(format!("KG.REVOKE acme {id}"));
    assert_eq!(meta(&mut c, &format!("KG.AUTH acme {raw} WITHMETA")), ("DISABLED".to_owned(), gold));
    assert_eq!(meta(&mut c, "KG.AUTH acme nonsense WITHMETA"), ("NOT_FOUND".to_owned(), None));
}

// Rotation.

fn rotating_changes_nothing_but_the_secret(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    let (id, raw) = new_key(
        &mut c,
        "shop web PREFIX pk-live_ SCOPES read LIMIT 5 1h QUOTA 50 total ALLOW 192.0.2.1 EXPIREIN 1d META {\"a\":1}",
    );
    for _ in 0..2 {
        assert_eq!(auth(&mut c, &raw, "IP 192.0.2.1"), "VALID");
    }
    let (_, other) = new_key(&mut c, "shop other");
    let before = key(&mut c, id);
    let window = c.state_of(format!("{{acme}}:win:{id}").as_bytes());
    let new = rotate(&mut c, id, "");
    assert_eq!(auth(&mut c, &raw, "IP 192.0.2.1"), "NOT_FOUND", "without a grace the old key stops at once");
    assert_eq!(c.code(format!("KG.CHECK acme {raw} IP 192.0.2.1")), "NOT_FOUND");
    assert!(new.starts_with("pk-live_") && new != raw && new.len() == raw.len());
    let after = key(&mut c, id);
    for (name, value) in before.fields() {
        if name == "start" {
            assert_eq!(after.field("start").text(), new[..14]);
        } else {
            assert_eq!(after.field(&name), value, "{name}");
        }
    }
    assert_eq!(before.fields().len(), after.fields().len());
    assert_eq!(c.state_of(format!("{{acme}}:win:{id}").as_bytes()), window);
    let map = c.ok(format!("KG.AUTH acme {new} SCOPE read IP 192.0.2.1"));
    assert_eq!(map.field("code").text(), "VALID");
    assert_eq!((map.field("remaining").int(), map.field("quota_remaining").int()), (2, 47));
    assert_eq!(auth(&mut c, &other, ""), "VALID");
    assert_eq!(keys_like(&mut c, "{acme}:digest:").len(), 2, "none is left of the old key");
    // An inactive key may be rotated, and stays inactive; an expired one stays expired.
    set(&mut c, id, "ACTIVE no");
    let new = rotate(&mut c, id, "GRACE 1h");
    assert_eq!(auth(&mut c, &new, "IP 192.0.2.1"), "DISABLED");
    set(&mut c, id, "ACTIVE yes EXPIREAT 1");
    let new = rotate(&mut c, id, "");
    assert_eq!(auth(&mut c, &new, "IP 192.0.2.1"), "EXPIRED");
}

fn both_keys_work_as_one_in_the_grace(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    let (id, old) = new_key(&mut c, "shop web LIMIT 5 1h QUOTA 50 total META {\"a\":1}");
    assert_eq!(auth(&mut c, &old, ""), "VALID");
    let before = now_ms();
    let new = rotate(&mut c, id, "GRACE 2h");
    let until = key(&mut c, id).field("rotated_until").int();
    assert!((before + 2 * HOUR..=now_ms() + 2 * HOUR).contains(&until));
    for (raw, remaining) in [(&new, 3), (&old, 2), (&new, 1), (&old, 0)] {
        let map = c.ok(format!("KG.AUTH acme {raw} WITHMETA"));
        assert_eq!((map.field("id").int(), map.field("remaining").int()), (id, remaining), "{map:?}");
        assert_eq!(map.field("quota_remaining").int(), 45 + remaining);
        assert_eq!(map.field("meta").text(), "{\"a\":1}");
    }
    for raw in [&old, &new] {
        assert_eq!(auth(&mut c, raw, ""), "RATE_LIMITED");
    }
    c.ok("DEBUG RELOAD");
    set(&mut c, id, "CLEAR limits NAME other");
    for raw in [&old, &new] {
        assert_eq!(auth(&mut c, raw, ""), "VALID");
    }
    assert_eq!(key(&mut c, id).field("rotated_until").int(), until);
    let expiring: Vec<i64> = keys_like(&mut c, "{acme}:digest:")
        .into_iter()
        .map(|key| c.ok(args!["PEXPIRETIME", key]).int())
        .filter(|at| *at != -1)
        .collect();
    assert_eq!(expiring, [until], "the old key's entry goes by itself");
    c.ok(format!("KG.REVOKE acme {id}"));
    for raw in [&old, &new] {
        assert_eq!(auth(&mut c, raw, ""), "DISABLED", "both at once");
    }
}

fn the_old_key_is_a_stranger_after_its_grace(sut: &Sut) {
    let (primary, replica) = primary_and_replica(sut);
    let (mut c, mut theirs) = (primary.client(), replica.client());
    let (id, old) = new_key(&mut c, "shop web");
    let before = now_ms();
    let new = rotate(&mut c, id, "GRACE 300ms");
    let after = now_ms();
    primary.wait_for(&replica);
    eventually("the end of the grace", || {
        let sent = now_ms();
        let codes = [auth(&mut c, &old, ""), theirs.code(format!("KG.CHECK acme {old}"))];
        let answered = now_ms();
        for code in &codes {
            match &**code {
                "VALID" => assert!(sent < after + 300, "valid at {sent}, rotated by {after}"),
                "NOT_FOUND" => assert!(answered >= before + 300, "a stranger at {answered}, rotated at {before}"),
                other => panic!("{other}"),
            }
        }
        expect(codes.iter().all(|code| code == "NOT_FOUND"), || format!("{codes:?}"))
    });
    assert_eq!(auth(&mut c, &new, ""), "VALID");
    assert_eq!(key(&mut c, id).get("rotated_until"), None);
    c.refused("NOSUCH", args!["KG.REVOKE", "acme", "KEY", old]);
    c.refused("NOSUCH", args!["KG.REVOKE", "acme", "START", &old[..14]]);
    eventually("the old key's entry going", || {
        let left = keys_like(&mut c, "{acme}:digest:").len();
        expect(left == 1, || format!("{left} entries"))
    });
    primary.wait_for(&replica);
    assert_eq!(c.state(), theirs.state());
    // What is still noted of the old key in the record does no harm.
    c.ok("DEBUG RELOAD");
    set(&mut c, id, "NAME other");
    assert_eq!(auth(&mut c, &new, ""), "VALID");
    assert_eq!(auth(&mut c, &old, ""), "NOT_FOUND");
    let newest = rotate(&mut c, id, "GRACE 1h");
    for (raw, code) in [(&old, "NOT_FOUND"), (&new, "VALID"), (&newest, "VALID")] {
        assert_eq!(auth(&mut c, raw, ""), code);
    }
}

fn rotating_again_ends_the_first_key(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    let (id, first) = new_key(&mut c, "shop web");
    let second = rotate(&mut c, id, "GRACE 1h");
    let third = rotate(&mut c, id, "GRACE 2h");
    for (raw, code) in [(&first, "NOT_FOUND"), (&second, "VALID"), (&third, "VALID")] {
        assert_eq!(auth(&mut c, raw, ""), code);
    }
    assert_eq!(keys_like(&mut c, "{acme}:digest:").len(), 2);
    let fourth = rotate(&mut c, id, "");
    for (raw, code) in [(&first, "NOT_FOUND"), (&second, "NOT_FOUND"), (&third, "NOT_FOUND"), (&fourth, "VALID")] {
        assert_eq!(auth(&mut c, raw, ""), code);
    }
    assert_eq!(keys_like(&mut c, "{acme}:digest:").len(), 1);
    let starts: i64 = keys_like(&mut c, "{acme}:starts:").into_iter().map(|key| c.ok(args!["HLEN", key]).int()).sum();
    assert_eq!(starts, 1);
}

fn rotation_refuses_what_it_cannot_do(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    let (id, raw) = new_key(&mut c, "shop web");
    let vault = c.ok("KG.ADDKEY acme vendor some-secret").int();
    let before = c.state();
    c.refused("NOSUCH", "KG.ROTATE acme 999");
    c.refused("NOSUCH", args!["KG.ROTATE", "acme", vault]);
    c.refused("NOSTORE", "KG.ROTATE nobody 1");
    for tail in ["", "x", "-1", "0x1"] {
        c.refused("ERR", format!("KG.ROTATE acme {tail}"));
    }
    for tail in ["GRACE", "GRACE 0", "GRACE -1h", "GRACE x", "GRACE 1h GRACE 1h", "WHAT", "GRACE 1h x"] {
        c.refused("ERR", format!("KG.ROTATE acme {id} {tail}"));
    }
    assert_eq!(c.state(), before);
    // The longest grace, and one that is longer.
    let (long, _) = new_key(&mut c, "shop long");
    rotate(&mut c, long, "GRACE 365d");
    let before = c.state();
    for grace in ["GRACE 999999999999d", "GRACE 18446744073709551615", "GRACE 9223372036854775807ms"] {
        c.refused("ERR", format!("KG.ROTATE acme {id} {grace}"));
    }
    assert_eq!(c.state(), before);
    // An index that holds something else: nothing is half done.
    let index =
        keys_like(&mut c, "{acme}:digest:").into_iter().find(|key| c.ok(args!["GET", key]).text() == id.to_string());
    let index = index.expect("the key's entry");
    c.ok(args!["RENAME", index, "kept"]);
    c.ok(args!["RPUSH", index, "x"]);
    let before = c.state();
    c.refused("WRONGTYPE", args!["KG.ROTATE", "acme", id]);
    c.refused("WRONGTYPE", args!["KG.ROTATE", "acme", id, "GRACE", "1h"]);
    assert_eq!(c.state(), before);
    c.ok(args!["DEL", index]);
    c.ok(args!["RENAME", "kept", index]);
    assert_eq!(auth(&mut c, &raw, ""), "VALID");
}

// Revocation.

fn revokes_by_the_key_itself(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    let (id, old) = new_key(&mut c, "shop web");
    let (_, other) = new_key(&mut c, "shop other");
    let new = rotate(&mut c, id, "GRACE 1h");
    for raw in [&old, &new, &old] {
        assert_eq!(c.ok(args!["KG.REVOKE", "acme", "key", raw]), Value::Okay);
        assert_eq!(auth(&mut c, &old, ""), "DISABLED");
        assert_eq!(auth(&mut c, &new, ""), "DISABLED");
    }
    let before = c.state();
    assert_eq!(c.ok(format!("KG.REVOKE acme {id}")), Value::Okay);
    assert_eq!(c.state(), before, "again is no error, and changes nothing");
    assert_eq!(auth(&mut c, &other, ""), "VALID");
    let typo = other.replace("kg_live_", "kg_life_");
    for raw in [&*typo, "x", "", &other[..14], "999"] {
        c.refused("NOSUCH", args!["KG.REVOKE", "acme", "KEY", raw]);
    }
    c.refused("NOSTORE", args!["KG.REVOKE", "nobody", "KEY", other]);
    c.refused("ERR", "KG.REVOKE acme KEY");
    c.refused("ERR", args!["KG.REVOKE", "acme", "KEY", other, "x"]);
    c.refused("ERR", args!["KG.REVOKE", "acme", other]);
    let vault = c.ok("KG.ADDKEY acme vendor some-secret").int();
    c.refused("NOSUCH", args!["KG.REVOKE", "acme", vault]);
    c.refused("NOSUCH", "KG.REVOKE acme KEY some-secret");
    assert_eq!(auth(&mut c, &other, ""), "VALID");
}

/// Gives the record of one key the visible beginning of another, as if chance had made them the same.
pub fn forge_start(c: &mut Client, (id, own): (i64, &str), start: &str) {
    let key = format!("{{acme}}:key:{id}");
    let mut packed = c.packed(&key);
    let at = packed.windows(own.len()).position(|window| window == own.as_bytes()).expect("its beginning");
    packed[at..at + own.len()].copy_from_slice(start.as_bytes());
    c.set_packed(&key, packed);
    for (start, ids) in [(own, None), (start, Some(id))] {
        let (field, end) = start.split_at(start.len() - 2);
        let index = format!("{{acme}}:starts:{end}");
        let known = c.ok(args!["HGET", index, field]);
        match ids {
            None => _ = c.ok(args!["HDEL", index, field]),
            Some(id) => _ = c.ok(args!["HSET", index, field, format!("{},{id}", known.text())]),
        }
    }
}

fn revokes_by_the_visible_beginning(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    let (id, raw) = new_key(&mut c, "shop web");
    let (_, other) = new_key(&mut c, "shop other");
    let start = &raw[..14];
    assert_eq!(key(&mut c, id).field("start").text(), start);
    // Nothing but the whole beginning, and no character stands for others.
    let mut near: Vec<String> = (0..start.len()).map(|length| start[..length].to_owned()).collect();
    near.push(raw[..15].to_owned());
    for wildcard in ["_", "%", "*", "?"] {
        near.extend(
            (0..14)
                .filter(|at| start[*at..=*at] != *wildcard)
                .map(|at| format!("{}{wildcard}{}", &start[..at], &start[at + 1..])),
        );
    }
    near.extend([start.to_uppercase(), format!("{start}\0"), "_%".to_owned()].into_iter().filter(|near| near != start));
    let before = c.state();
    for near in near {
        let text = c.err(args!["KG.REVOKE", "acme", "START", near]);
        assert!(text.starts_with("NOSUCH ") || text.starts_with("ERR "), "{near:?}: {text}");
    }
    for (bytes, code) in [(&b"\xff\xfe"[..], "ERR"), (b"", "ERR"), (&[b'a'; 100], "ERR")] {
        c.refused(code, args!["KG.REVOKE", "acme", "START", bytes]);
    }
    c.refused("ERR", "KG.REVOKE acme START");
    c.refused("ERR", args!["KG.REVOKE", "acme", "START", start, "x"]);
    c.refused("NOSTORE", args!["KG.REVOKE", "nobody", "START", start]);
    assert_eq!(c.state(), before);
    assert_eq!(c.ok(args!["KG.REVOKE", "acme", "start", start]), Value::Okay);
    assert_eq!(auth(&mut c, &raw, ""), "DISABLED");
    assert_eq!(auth(&mut c, &other, ""), "VALID");
    assert_eq!(c.ok(args!["KG.REVOKE", "acme", "START", start]), Value::Okay, "again is no error");
    // The beginning of a key in its grace, and of the one that came after it.
    for which in [0, 1] {
        let (id, old) = new_key(&mut c, "shop web");
        let new = rotate(&mut c, id, "GRACE 1h");
        assert_eq!(c.ok(args!["KG.REVOKE", "acme", "START", &[&old, &new][which][..14]]), Value::Okay);
        assert_eq!([auth(&mut c, &old, ""), auth(&mut c, &new, "")], ["DISABLED", "DISABLED"]);
    }
    // Two keys that begin alike: neither is revoked, until one of them has gone.
    let (first, first_raw) = new_key(&mut c, "shop twin");
    let (second, second_raw) = new_key(&mut c, "shop twin");
    let start = &first_raw[..14];
    forge_start(&mut c, (second, &second_raw[..14]), start);
    assert_eq!(key(&mut c, second).field("start").text(), start);
    let before = c.state();
    c.refused("NOTUNIQUE", args!["KG.REVOKE", "acme", "START", start]);
    assert_eq!(c.state(), before);
    assert_eq!([auth(&mut c, &first_raw, ""), auth(&mut c, &second_raw, "")], ["VALID", "VALID"]);
    c.ok(args!["KG.DELKEY", "acme", first]);
    assert_eq!(c.ok(args!["KG.REVOKE", "acme", "START", start]), Value::Okay);
    assert_eq!(auth(&mut c, &second_raw, ""), "DISABLED");
}

/// Has many connections authenticate with one key as fast as they can while a command takes it out of use, and compares by one
/// clock: whoever asks after the reply to that command must be refused.
fn revoke_under_load(server: &Server, raw: &str, revocation: Vec<Vec<u8>>, refusal: &str) {
    const CONNECTIONS: usize = 50;
    /// How many calls each connection makes before the command, and after its reply.
    const CALLS: usize = 10;
    /// Where it gives up, if the command never comes to be sent.
    const MOST_CALLS: usize = 100_000;
    let (warm, is_revoked) = (AtomicUsize::new(0), AtomicBool::new(false));
    let ask = || {
        let mut c = server.client();
        let command = format!("KG.AUTH acme {raw}");
        let (mut calls, mut after) = (Vec::new(), 0);
        while after < CALLS && calls.len() < MOST_CALLS {
            after += usize::from(is_revoked.load(Ordering::SeqCst));
            let sent = Instant::now();
            calls.push((sent, c.code(&command)));
            if calls.len() == CALLS {
                warm.fetch_add(1, Ordering::SeqCst);
            }
        }
        calls
    };
    let (replied, connections) = thread::scope(|scope| {
        let asking: Vec<_> = (0..CONNECTIONS).map(|_| scope.spawn(ask)).collect();
        let mut c = server.client();
        eventually("all connections calling", || {
            let warm = warm.load(Ordering::SeqCst);
            expect(warm == CONNECTIONS || asking.iter().any(|thread| thread.is_finished()), || format!("{warm} do"))
        });
        let reply = c.call(&revocation);
        let replied = Instant::now();
        // Whatever the reply is, the others come to an end.
        is_revoked.store(true, Ordering::SeqCst);
        assert!(!reply.is_error(), "{}", reply.error());
        (replied, asking.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>())
    });
    for calls in connections {
        let valid = calls.iter().take_while(|(_, code)| code == "VALID").count();
        assert!(valid >= CALLS, "the key worked at first: {:?}", calls[valid]);
        let (_, rest) = calls.split_at(valid);
        assert!(rest.iter().all(|(_, code)| code == refusal), "and never again: {rest:?}");
        let late = calls.iter().filter(|(sent, _)| *sent >= replied);
        let codes: Vec<&str> = late.map(|(_, code)| code.as_str()).collect();
        assert!(codes.len() >= CALLS, "{} calls came after the reply", codes.len());
        assert!(codes.iter().all(|code| *code == refusal), "after the reply: {codes:?}");
    }
}

fn no_call_is_valid_that_begins_after_the_revocation_has_replied(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    for kind in ["id", "key", "start", "inactive", "rotated", "deleted", "suspended"] {
        let (id, raw) = new_key(&mut c, "shop web LIMIT 1000000 1h");
        let (revocation, refusal) = match kind {
            "id" => (args!["KG.REVOKE", "acme", id], "DISABLED"),
            "key" => (args!["KG.REVOKE", "acme", "KEY", raw], "DISABLED"),
            "start" => (args!["KG.REVOKE", "acme", "START", &raw[..14]], "DISABLED"),
            "inactive" => (args!["KG.SETKEY", "acme", id, "ACTIVE", "no"], "DISABLED"),
            "rotated" => (args!["KG.ROTATE", "acme", id], "NOT_FOUND"),
            "deleted" => (args!["KG.DELKEY", "acme", id], "NOT_FOUND"),
            _ => (args!["KG.SETORG", "acme", "shop", "STATUS", "suspended"], "ORG_SUSPENDED"),
        };
        revoke_under_load(&server, &raw, revocation, refusal);
    }
}

fn deleting_takes_every_index_along(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    c.ok("KG.ADDORG acme shop QUOTA 100 total");
    let (first, _) = new_key(&mut c, "shop first");
    c.ok(args!["KG.DELKEY", "acme", first]);
    let empty = c.keys();
    let mut ids = Vec::new();
    for n in 0..12 {
        let (id, raw) = new_key(&mut c, &format!("shop web{n} QUOTA 5 total PREFIX {}", ["a_", "b_", "c_"][n % 3]));
        assert_eq!(auth(&mut c, &raw, ""), "VALID");
        if n % 2 == 0 {
            rotate(&mut c, id, "GRACE 1h");
        }
        if n % 4 == 0 {
            rotate(&mut c, id, "GRACE 1h");
        }
        if n % 6 == 0 {
            rotate(&mut c, id, "");
        }
        if n % 5 == 0 {
            c.ok(format!("KG.REVOKE acme {id}"));
        }
        ids.push(id);
    }
    assert_eq!(c.ok(format!("KG.DELKEY acme {} {}", ids[0], ids[2])).int(), 2);
    assert_eq!(keys_like(&mut c, "{acme}:win:").len(), 10);
    assert_eq!(c.ok("KG.DELKEY acme MATCH TYPE api NAME web4").int(), 1);
    assert_eq!(c.ok("KG.DELKEY acme ALL TYPE api").int(), 9);
    let mut left = c.keys();
    left.retain(|key| !contains(key, b"orgwin"));
    assert_eq!(left, empty, "nothing is left of twelve keys");
    let header = c.ok("HGETALL acme").fields();
    let counts: Vec<(String, String)> = header
        .into_iter()
        .filter(|(name, _)| name.starts_with("using:") || name == "api_keys")
        .map(|(name, count)| (name, count.text()))
        .collect();
    assert!(counts.iter().all(|(_, count)| count == "0"), "{counts:?}");
}

// Last use, counts, and what others see.

fn knows_when_a_key_was_last_used(sut: &Sut) {
    let (primary, replica) = primary_and_replica(sut);
    let mut c = primary.client();
    for options in ["", "LIMIT 100 1h", "QUOTA 100 total"] {
        let (id, raw) = new_key(&mut c, &format!("shop web SCOPES read {options}"));
        let unused = c.state();
        for options in ["SCOPE write", "COST 101 SCOPE write"] {
            assert_eq!(auth(&mut c, &raw, options), "INSUFFICIENT_SCOPE");
        }
        assert_eq!(c.code(format!("KG.CHECK acme {raw}")), "VALID");
        assert_eq!(c.state(), unused, "neither refusals nor looks are uses");
        assert_eq!(key(&mut c, id).get("last_used_at"), None);
        let before = now_ms();
        assert_eq!(auth(&mut c, &raw, ""), "VALID");
        let used = key(&mut c, id).field("last_used_at").int();
        assert!((before..=now_ms()).contains(&used));
        let offset = c.info_number("replication", "master_repl_offset");
        for _ in 0..5 {
            assert_eq!(auth(&mut c, &raw, "COST 0"), "VALID");
        }
        if options.is_empty() {
            assert_eq!(auth(&mut c, &raw, ""), "VALID");
        }
        assert_eq!(c.info_number("replication", "master_repl_offset"), offset, "nothing is written within the minute");
        assert_eq!(key(&mut c, id).field("last_used_at").int(), used);
        primary.wait_for(&replica);
        assert_eq!(key(&mut replica.client(), id).field("last_used_at").int(), used);
        // The minute is known by the window's state: without it, the next use counts anew.
        eventually("a later millisecond", || expect(now_ms() > used + 1, || "the same".to_owned()));
        c.ok(format!("DEL {{acme}}:win:{id}"));
        assert_eq!(auth(&mut c, &raw, ""), "VALID");
        assert!(key(&mut c, id).field("last_used_at").int() > used);
    }
    // A record that was deleted by hand is not brought back by halves.
    let (id, raw) = new_key(&mut c, "shop web");
    let effect = format!("KG.AUTH acme {raw}");
    assert_eq!(c.code(&effect), "VALID");
    c.ok(format!("DEL {{acme}}:key:{id} {{acme}}:win:{id}"));
    let before = c.state();
    c.refused("ERR", effect);
    assert_eq!(c.state(), before);
    primary.wait_for(&replica);
    assert_eq!(c.state(), replica.client().state());
}

fn counts_its_answers(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    let (_, raw) = new_key(&mut c, "shop web LIMIT 2 1h");
    let (id, gone) = new_key(&mut c, "shop gone");
    let (_, late) = new_key(&mut c, "shop late EXPIREAT 1");
    let (_, few) = new_key(&mut c, "shop few QUOTA 1 total");
    let (_, here) = new_key(&mut c, "shop here ALLOW 192.0.2.1");
    c.ok("KG.ADDORG acme lab");
    c.ok("KG.SETORG acme lab STATUS suspended");
    let (_, lab) = new_key(&mut c, "lab web");
    c.ok(format!("KG.REVOKE acme {id}"));
    c.ok("KG.BLOCKIP acme 192.0.2.66 1h");
    let mut wanted: BTreeMap<String, i64> = BTreeMap::new();
    for (raw, options) in [
        (&*raw, ""),
        (&raw, ""),
        (&raw, ""),
        (&raw, "SCOPE a"),
        (&raw, "IP 192.0.2.66"),
        (&gone, ""),
        (&late, ""),
        (&few, ""),
        (&few, ""),
        (&here, ""),
        (&lab, ""),
        ("nonsense", ""),
        ("nonsense", ""),
    ] {
        *wanted.entry(auth(&mut c, raw, options)).or_default() += 1;
        c.ok(format!("KG.CHECK acme {raw} {options}"));
        c.call(format!("KG.AUTH acme {raw} WHAT"));
        c.call(format!("KG.AUTH nobody {raw}"));
    }
    assert_eq!(wanted.len(), 10, "every code was answered: {wanted:?}");
    for (code, count) in wanted {
        assert_eq!(c.info_number("keyguard", &format!("keyguard_auth_{}", code.to_lowercase())), count, "{code}");
    }
}

fn everything_is_the_same_elsewhere(sut: &Sut) {
    let (mut primary, replica) = primary_and_replica(sut);
    let mut c = primary.client();
    c.ok("KG.ADDORG acme shop LIMIT 1000 1h QUOTA 1000 month QUOTA 5000 total UNIT tokens");
    let (plain, mut raw) = new_key(&mut c, "shop plain");
    let (_, limited) =
        new_key(&mut c, "shop limited LIMIT 5 1h LIMIT 500 1h UNIT tokens QUOTA 7 total QUOTA 9 day META {}");
    let (_, narrow) = new_key(&mut c, "shop narrow SCOPES a,b ALLOW 192.0.2.0/24 EXPIREIN 1h");
    // In a transaction, what a use writes is part of it.
    let gone = rotate(&mut c, plain, "GRACE 1ms");
    eventually("the end of the grace", || {
        let code = c.code(format!("KG.CHECK acme {raw}"));
        expect(code == "NOT_FOUND", || code)
    });
    raw = gone;
    for command in ["MULTI", "SET x 1", &format!("KG.AUTH acme {raw}"), &format!("KG.ROTATE acme {plain}"), "EXEC"] {
        c.ok(command);
    }
    assert_eq!(auth(&mut c, &raw, ""), "NOT_FOUND");
    raw = rotate(&mut c, plain, "");
    for n in 0..8 {
        c.ok(format!("KG.AUTH acme {raw} PATH /x METHOD GET"));
        c.ok(format!("KG.AUTH acme {limited} COST 1 COST 7 UNIT tokens WITHMETA"));
        c.ok(format!("KG.AUTH acme {narrow} IP 192.0.2.{n} SCOPE a SCOPE b"));
        c.ok(format!("KG.AUTH acme {narrow} IP 192.0.3.{n}"));
        match n {
            1 => _ = set(&mut c, plain, "LIMIT 50 1h QUOTA 3 month"),
            2 => raw = rotate(&mut c, plain, "GRACE 1h"),
            3 => _ = set(&mut c, plain, &format!("NAME {}", "l".repeat(200))),
            4 => _ = set(&mut c, plain, "NAME l CLEAR limits"),
            5 => raw = rotate(&mut c, plain, "GRACE 2h"),
            6 => raw = rotate(&mut c, plain, ""),
            _ => {}
        }
    }
    c.ok(args!["KG.REVOKE", "acme", "KEY", narrow]);
    c.ok(args!["KG.REVOKE", "acme", "START", &raw[..14]]);
    primary.wait_for(&replica);
    let state = c.state();
    assert!(state.len() > 10, "{state:?}");
    assert_eq!(replica.client().state(), state, "the replica");
    c.ok("DEBUG RELOAD");
    assert_eq!(c.state(), state, "the RDB");
    primary.restart();
    let mut c = primary.client();
    assert_eq!(c.state(), state, "the AOF");
    c.ok("BGREWRITEAOF");
    c.wait_for_background_work();
    primary.restart();
    assert_eq!(primary.client().state(), state, "the AOF, rewritten");
}

// A plain model: what is used is a sum, since no window and no grace ends while the test runs.

/// Numbers that a seed repeats.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % below
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.roll(from.len())]
    }
}

/// Who is charged: a key or an organization.
#[derive(Default, Debug)]
struct Owner {
    /// Count, window and unit.
    limits: Vec<(i64, &'static str, &'static str)>,
    /// Count, period and unit.
    quotas: Vec<(i64, &'static str, &'static str)>,
    claimed: BTreeMap<&'static str, i64>,
    counted: BTreeMap<(&'static str, &'static str), i64>,
}

impl Owner {
    /// New limits and quotas, or none, as options.
    fn decide_limits(dice: &mut Dice, most: usize) -> (Vec<(i64, &'static str, &'static str)>, String) {
        let mut limits = Vec::new();
        let mut options = String::new();
        for unit in ["requests", "tokens"] {
            for window in ["1h", "2h"] {
                if dice.roll(3) == 0 {
                    let count = 1 + dice.roll(most) as i64;
                    limits.push((count, window, unit));
                    options += &format!(" LIMIT {count} {window} UNIT {unit}");
                }
            }
        }
        (limits, options)
    }

    fn decide_quotas(dice: &mut Dice, most: usize) -> (Vec<(i64, &'static str, &'static str)>, String) {
        let mut quotas = Vec::new();
        let mut options = String::new();
        for unit in ["requests", "tokens"] {
            for period in ["month", "total"] {
                if dice.roll(4) == 0 {
                    let count = 1 + dice.roll(most) as i64;
                    quotas.push((count, period, unit));
                    options += &format!(" QUOTA {count} {period} UNIT {unit}");
                }
            }
        }
        (quotas, options)
    }

    /// What is left under each limit, and what the call costs there.
    fn left(&self, costs: &BTreeMap<&str, i64>) -> Vec<(i64, i64)> {
        let left =
            |(count, _, unit): &(i64, &str, &'static str)| (count - self.claimed.get(unit).unwrap_or(&0), costs[unit]);
        self.limits.iter().map(left).collect()
    }

    fn quotas_left(&self, costs: &BTreeMap<&str, i64>) -> Vec<(i64, i64)> {
        let left = |(count, period, unit): &(i64, &'static str, &'static str)| {
            ((count - self.counted.get(&(*period, *unit)).unwrap_or(&0)).max(0), costs[unit])
        };
        self.quotas.iter().map(left).collect()
    }

    fn charge(&mut self, costs: &BTreeMap<&'static str, i64>) {
        for (unit, cost) in costs {
            if self.limits.iter().any(|limit| limit.2 == *unit) {
                *self.claimed.entry(unit).or_default() += cost;
            }
            for (_, period, _) in self.quotas.iter().filter(|quota| quota.2 == *unit) {
                *self.counted.entry((period, unit)).or_default() += cost;
            }
        }
    }
}

struct ModelKey {
    id: i64,
    org: usize,
    status: &'static str,
    scopes: &'static str,
    allowed: bool,
    owner: Owner,
    /// The key of now, then that in its grace, if any.
    working: Vec<String>,
    /// Those that no longer work.
    over: Vec<String>,
}

/// What may be told: what is left, and what the call costs of it.
type Told = Vec<(i64, i64)>;

/// The code, and what may be told of limits and of quotas.
fn expected(
    key: &ModelKey,
    suspended: bool,
    org: &Owner,
    options: &str,
    costs: &BTreeMap<&str, i64>,
) -> (&'static str, Told, Told) {
    let scope_is_granted = |scope: &str| key.scopes == "*" || key.scopes.split(',').any(|own| own == scope);
    let none = Vec::new;
    if key.status != "active" {
        return ("DISABLED", none(), none());
    }
    if suspended {
        return ("ORG_SUSPENDED", none(), none());
    }
    if key.allowed && !options.contains("IP 192.0.2.") {
        return ("IP_NOT_ALLOWED", none(), none());
    }
    if ["read", "write"].iter().any(|scope| options.contains(&format!("SCOPE {scope}")) && !scope_is_granted(scope)) {
        return ("INSUFFICIENT_SCOPE", none(), none());
    }
    let limits = [key.owner.left(costs), org.left(costs)].concat();
    let quotas = [key.owner.quotas_left(costs), org.quotas_left(costs)].concat();
    // A limit that was lowered below what is used refuses also what costs nothing; a quota does not.
    let over: Vec<_> = limits.iter().copied().filter(|(left, cost)| cost > left).collect();
    let exceeded: Vec<_> = quotas.iter().copied().filter(|(left, cost)| cost > left && *cost > 0).collect();
    // Told of is one of those that refuse, else one with the fewest left.
    let fewest = |all: Vec<(i64, i64)>| {
        let after = all.iter().map(|(left, cost)| left - cost.min(left)).min();
        all.into_iter().filter(|(left, cost)| Some(left - cost.min(left)) == after).collect::<Vec<_>>()
    };
    match (over, exceeded) {
        (over, _) if !over.is_empty() => ("RATE_LIMITED", over, none()),
        (_, exceeded) if !exceeded.is_empty() => ("QUOTA_EXCEEDED", fewest(limits), exceeded),
        _ => ("VALID", fewest(limits), fewest(quotas)),
    }
}

fn agrees_with_a_plain_model(sut: &Sut) {
    away_from_midnight();
    let seed = std::env::var("KEYGUARD_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(|| rand::random::<u64>() | 1);
    let mut dice = Dice(seed);
    let (primary, replica) = primary_and_replica(sut);
    let mut c = primary.client();
    let mut orgs: [(bool, Owner); 2] = Default::default();
    for name in ["shop", "lab"] {
        c.ok(format!("KG.ADDORG acme {name}"));
    }
    let mut keys: Vec<ModelKey> = Vec::new();
    let mut codes: BTreeMap<String, usize> = BTreeMap::new();
    for step in 0..600 {
        let what = format!("seed {seed}, step {step}");
        if keys.len() < 4 || (keys.len() < 10 && dice.roll(25) == 0) {
            let org = dice.roll(2);
            let scopes = dice.pick(&["read", "*", "read,write"]);
            let (limits, limit_options) = Owner::decide_limits(&mut dice, 30);
            let (quotas, quota_options) = Owner::decide_quotas(&mut dice, 30);
            let allowed = dice.roll(4) == 0;
            let allow = if allowed { " ALLOW 192.0.2.0/24" } else { "" };
            let arguments = format!("{} k SCOPES {scopes}{limit_options}{quota_options}{allow}", ["shop", "lab"][org]);
            let (id, raw) = new_key(&mut c, &arguments);
            let owner = Owner { limits, quotas, ..Owner::default() };
            keys.push(ModelKey {
                id,
                org,
                status: "active",
                scopes,
                allowed,
                owner,
                working: vec![raw],
                over: Vec::new(),
            });
            continue;
        }
        let index = dice.roll(keys.len());
        let key = &mut keys[index];
        let id = key.id;
        match dice.roll(40) {
            0 => {
                let (suspended, _) = &mut orgs[key.org];
                *suspended = !*suspended && dice.roll(2) == 0;
                let status = if *suspended { "suspended" } else { "active" };
                c.ok(format!("KG.SETORG acme {} STATUS {status}", ["shop", "lab"][key.org]));
            }
            1 => {
                let (limits, limit_options) = Owner::decide_limits(&mut dice, 80);
                let (quotas, quota_options) = Owner::decide_quotas(&mut dice, 80);
                c.ok(format!("KG.SETORG acme {}{limit_options}{quota_options}", ["shop", "lab"][key.org]));
                let owner = &mut orgs[key.org].1;
                if !limits.is_empty() {
                    owner.limits = limits;
                }
                if !quotas.is_empty() {
                    owner.quotas = quotas;
                }
            }
            2 | 3 => {
                let (limits, options) = Owner::decide_limits(&mut dice, 60);
                set(&mut c, id, if limits.is_empty() { "CLEAR limits" } else { &options });
                key.owner.limits = limits;
            }
            4 => {
                let (quotas, options) = Owner::decide_quotas(&mut dice, 60);
                set(&mut c, id, if quotas.is_empty() { "CLEAR quotas" } else { &options });
                key.owner.quotas = quotas;
            }
            5 => {
                key.allowed = !key.allowed;
                set(&mut c, id, if key.allowed { "ALLOW 192.0.2.0/24" } else { "CLEAR allowed" });
            }
            6 if key.status != "revoked" => {
                key.status = dice.pick(&["active", "inactive", "active"]);
                let label = "l".repeat(1 + dice.roll(200));
                set(&mut c, id, &format!("NAME {label} ACTIVE {}", if key.status == "active" { "yes" } else { "no" }));
            }
            7 | 8 if key.status != "revoked" => {
                let grace = dice.pick(&["", "GRACE 1h"]);
                let raw = rotate(&mut c, id, grace);
                key.working.insert(0, raw);
                let stay = if grace.is_empty() { 1 } else { 2 };
                let over = key.working.split_off(stay.min(key.working.len()));
                key.over.extend(over);
            }
            9 if dice.roll(3) == 0 => {
                let shown = &key.working[dice.roll(key.working.len())];
                let which = match dice.roll(3) {
                    0 => args!["KG.REVOKE", "acme", id],
                    1 => args!["KG.REVOKE", "acme", "KEY", shown],
                    _ => args!["KG.REVOKE", "acme", "START", &shown[..14]],
                };
                assert_eq!(c.ok(which), Value::Okay, "{what}");
                key.status = "revoked";
            }
            10 if dice.roll(3) == 0 => {
                assert_eq!(c.ok(args!["KG.DELKEY", "acme", id]).int(), 1, "{what}");
                let mut gone = keys.remove(index);
                gone.working.append(&mut gone.over);
                for raw in gone.working {
                    assert_eq!(auth(&mut c, &raw, ""), "NOT_FOUND", "{what}");
                }
            }
            _ => {
                let charging = dice.roll(5) > 0;
                let mut options = dice.pick(&["", " IP 192.0.2.9", " IP 192.0.2.9", " IP ::1"]).to_owned();
                options += dice.pick(&["", " SCOPE read", " SCOPE write", " SCOPE read SCOPE write"]);
                let mut costs = BTreeMap::from([("requests", 1), ("tokens", 0)]);
                for (unit, option) in [("requests", ""), ("tokens", " UNIT tokens")] {
                    if dice.roll(2) == 0 {
                        let cost = dice.roll(9) as i64;
                        costs.insert(unit, cost);
                        options += &format!(" COST {cost}{option}");
                    }
                }
                let is_over = !key.over.is_empty() && dice.roll(8) == 0;
                let raws = if is_over { &key.over } else { &key.working };
                let raw = &raws[dice.roll(raws.len())];
                let (suspended, org) = &mut orgs[key.org];
                let (code, limits, quotas) = match is_over {
                    true => ("NOT_FOUND", Vec::new(), Vec::new()),
                    false => expected(key, *suspended, org, &options, &costs),
                };
                let valid = code == "VALID";
                let before = (!charging || !valid).then(|| c.state());
                let map = c.ok(format!("{} acme {raw}{options}", if charging { "KG.AUTH" } else { "KG.CHECK" }));
                let what = format!("{what}: {options}: {map:?}, not {code} {limits:?} {quotas:?}");
                assert_eq!(map.field("code").text(), code, "{what} {:?} {:?}", key.owner, org);
                *codes.entry(code.to_owned()).or_default() += 1;
                for (field, told) in [("remaining", limits), ("quota_remaining", quotas)] {
                    let mut told = told
                        .into_iter()
                        .map(|(left, cost)| (if valid && charging { left - cost } else { left }).max(0));
                    match map.get(field) {
                        None => assert_eq!(told.next(), None, "{field}: {what}"),
                        Some(left) => assert!(told.any(|told| told == left.int()), "{field}: {what}"),
                    }
                }
                assert_eq!(
                    map.get("retry_after_ms").is_some(),
                    ["RATE_LIMITED", "QUOTA_EXCEEDED"].contains(&code),
                    "{what}"
                );
                assert_eq!(map.get("claimed_at_ms").is_some(), valid && charging, "{what}");
                if let Some(before) = before {
                    assert_eq!(c.state(), before, "changed something: {what}");
                } else {
                    key.owner.charge(&costs);
                    org.charge(&costs);
                }
            }
        }
    }
    assert!(codes.len() >= 7, "every kind of answer: {codes:?}");
    primary.wait_for(&replica);
    assert_eq!(c.state(), replica.client().state(), "seed {seed}");
}
