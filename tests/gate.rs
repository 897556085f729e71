//! The gate: who is let in, why not, and what that costs.

use std::{sync::Arc, thread};

use redis::Value;

use crate::harness::{Client, Reply, Sut, args, eventually, expect, now_ms, server_tests};

server_tests![
    issues_keys_of_the_format,
    tells_a_typo_from_a_key,
    answers_every_field,
    answers_every_code,
    checks_in_order,
    charges_nothing_on_refusal,
    an_organization_shares_its_limit,
    counts_each_unit_by_itself,
    limits_hold_under_concurrency,
    keys_expire,
    scopes_grant_what_they_say,
    revoking_is_final,
    a_suspended_organization_is_kept_out,
    blocks_addresses,
    blocks_ipv6_by_64,
    blocks_end,
    check_changes_nothing,
    rejects_bad_arguments,
    keeps_to_the_maxima,
];

const HOUR: i64 = 3_600_000;

/// A store with an organization, and a key of it.
fn new_key(c: &mut Client, arguments: &str) -> (i64, String) {
    if c.ok("EXISTS acme").int() == 0 {
        c.ok("KG.ADDORG acme shop");
    }
    let reply = c.ok(format!("KG.NEWKEY acme {arguments}"));
    let [id, raw] = reply.list() else { panic!("a pair, not {reply:?}") };
    (id.int(), raw.text())
}

fn auth(c: &mut Client, raw: &str, options: &str) -> String {
    c.code(format!("KG.AUTH acme {raw} {options}"))
}

fn issues_keys_of_the_format(sut: &Sut) {
    const DIGITS: &[u8] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let server = sut.server();
    let mut c = server.client();
    let mut seen = Vec::new();
    for (options, prefix) in [("", "kg_live_"), ("PREFIX test_", "test_"), ("prefix X-", "X-"), ("", "kg_live_")] {
        let (id, raw) = new_key(&mut c, &format!("shop web {options}"));
        assert_eq!(id, seen.len() as i64 + 2, "the organization has the first id");
        let body = raw.strip_prefix(prefix).expect("the prefix");
        assert!(body.bytes().all(|byte| byte.is_ascii_alphanumeric()) && body.len() == 49, "{raw}");
        let (before, checksum) = raw.split_at(raw.len() - 6);
        let digit = |byte: u8| DIGITS.iter().position(|digit| *digit == byte).unwrap() as u64;
        let value = checksum.bytes().fold(0, |value, byte| value * 62 + digit(byte));
        assert_eq!(value, u64::from(crc::Crc::<u32>::new(&crc::CRC_32_ISO_HDLC).checksum(before.as_bytes())));
        assert_eq!(auth(&mut c, &raw, ""), "VALID");
        assert!(!seen.contains(&raw));
        seen.push(raw);
    }
}

fn tells_a_typo_from_a_key(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    let (_, raw) = new_key(&mut c, "shop web");
    let mut typos: Vec<Vec<u8>> = vec![b"x".to_vec(), b"kg_live_".to_vec(), raw[..raw.len() - 1].into()];
    for position in 0..raw.len() {
        let mut typo = raw.clone().into_bytes();
        typo[position] = if typo[position] == b'a' { b'b' } else { b'a' };
        typos.push(typo);
    }
    typos.extend([format!("{raw}a").into_bytes(), format!(" {raw}").into_bytes(), raw.to_uppercase().into_bytes()]);
    typos.extend([vec![0], vec![0xff; 57], vec![b'a'; 70_000], b"kg_live_\r\n".to_vec()]);
    for typo in typos {
        for command in ["KG.AUTH", "KG.CHECK"] {
            assert_eq!(
                c.code(args![command, "acme", typo]),
                "NOT_FOUND",
                "{}",
                typo[..typo.len().min(80)].escape_ascii()
            );
        }
    }
    let empty = c.call(args!["KG.AUTH", "acme", ""]);
    assert!(empty.is_error() || empty.field("code").text() == "NOT_FOUND", "{empty:?}");
    // A good key of another store is no key of this one.
    c.ok("KG.ADDORG zeta shop");
    assert_eq!(c.code(args!["KG.AUTH", "zeta", raw]), "NOT_FOUND");
    c.refused("NOSTORE", args!["KG.AUTH", "nobody", raw]);
    assert_eq!(auth(&mut c, &raw, ""), "VALID");
}

fn answers_every_field(sut: &Sut) {
    let server = sut.server();
    let mut plain = server.client();
    let (id, raw) = new_key(&mut plain, "shop web SCOPES orders:*,read LIMIT 5 1h LIMIT 100 2h");
    for (mut c, remaining) in [(server.client(), 4), (server.client().resp3(), 3)] {
        let before = now_ms();
        let map = c.ok(format!("KG.AUTH acme {raw} SCOPE read"));
        assert_eq!(map.field("code").text(), "VALID");
        assert_eq!(map.field("id").int(), id);
        assert_eq!([map.field("org").text(), map.field("label").text()], ["shop", "web"]);
        assert_eq!(map.field("limit").int(), 5);
        assert_eq!(map.field("remaining").int(), remaining);
        assert_eq!(map.field("window_ms").int(), HOUR);
        assert_eq!(map.field("reset_after_ms").int(), HOUR);
        assert!((before..=now_ms()).contains(&map.field("claimed_at_ms").int()));
        let scopes: Vec<String> = map.field("scopes").list().iter().map(Reply::text).collect();
        assert_eq!(scopes, ["orders:*", "read"]);
    }
    let map = server.client().resp3().ok(format!("KG.AUTH acme {raw}"));
    assert!(matches!(map, Value::Map(_)));
    let flat = server.client().ok(format!("KG.AUTH acme {raw}"));
    assert!(matches!(flat, Value::Array(_)));
    // A key without limits has no such fields.
    let (_, free) = new_key(&mut plain, "shop free");
    let map = plain.ok(format!("KG.AUTH acme {free}"));
    assert_eq!(map.field("code").text(), "VALID");
    for field in ["limit", "remaining", "window_ms", "limited_by", "retry_after_ms"] {
        assert_eq!(map.get(field), None, "{field} does not apply");
    }
}

fn answers_every_code(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    let (_, plain) = new_key(&mut c, "shop plain");
    let (_, limited) = new_key(&mut c, "shop limited LIMIT 1 1h");
    let (_, expired) = new_key(&mut c, "shop expired EXPIREAT 1");
    let (revoked_id, revoked) = new_key(&mut c, "shop revoked");
    c.ok("KG.ADDORG acme lab");
    let (_, suspended) = new_key(&mut c, "lab suspended");
    c.ok("KG.SETORG acme lab STATUS suspended");
    c.ok(args!["KG.REVOKE", "acme", revoked_id]);
    c.ok("KG.BLOCKIP acme 192.0.2.1 1h");
    assert_eq!(auth(&mut c, &limited, ""), "VALID");
    let table = [
        (&plain, "", "VALID"),
        (&plain, "IP 192.0.2.2", "VALID"),
        (&plain, "IP 192.0.2.1", "IP_BLOCKED"),
        (&plain, "SCOPE read", "INSUFFICIENT_SCOPE"),
        (&revoked, "", "DISABLED"),
        (&expired, "", "EXPIRED"),
        (&suspended, "", "ORG_SUSPENDED"),
        (&limited, "", "RATE_LIMITED"),
        (&"kg_live_nobody".to_owned(), "", "NOT_FOUND"),
    ];
    for (raw, options, code) in table {
        for command in ["KG.CHECK", "KG.AUTH"] {
            let map = c.ok(format!("{command} acme {raw} {options}"));
            assert_eq!(map.field("code").text(), code, "{command} {options}");
            if code == "RATE_LIMITED" {
                assert_eq!(map.field("limited_by").text(), "key");
                assert_eq!((map.field("limit").int(), map.field("remaining").int()), (1, 0));
                assert!((1..=HOUR).contains(&map.field("retry_after_ms").int()));
            }
            if code == "NOT_FOUND" {
                assert_eq!(map.get("id"), None);
            }
        }
    }
}

fn checks_in_order(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    c.ok("KG.ADDORG acme shop");
    c.ok("KG.ADDORG acme lab");
    // Each key fails in more ways than the one before; each call fails by the first of them.
    let (_, full) = new_key(&mut c, "shop full LIMIT 1 1h SCOPES read");
    let (_, late) = new_key(&mut c, "lab late LIMIT 1 1h SCOPES read EXPIREAT 1");
    let (id, gone) = new_key(&mut c, "lab gone LIMIT 1 1h SCOPES read EXPIREAT 1");
    let (_, kept_out) = new_key(&mut c, "lab kept-out LIMIT 1 1h SCOPES read");
    for raw in [&full, &kept_out] {
        assert_eq!(auth(&mut c, raw, "SCOPE read"), "VALID");
    }
    c.ok(args!["KG.REVOKE", "acme", id]);
    c.ok("KG.SETORG acme lab STATUS suspended");
    c.ok("KG.BLOCKIP acme 192.0.2.1 1h");
    let table = [
        (&*full, "SCOPE read", "RATE_LIMITED"),
        (&full, "SCOPE write", "INSUFFICIENT_SCOPE"),
        (&kept_out, "SCOPE write", "ORG_SUSPENDED"),
        (&late, "SCOPE write", "EXPIRED"),
        (&gone, "SCOPE write", "DISABLED"),
        ("nonsense", "SCOPE write", "NOT_FOUND"),
        (&full, "SCOPE write IP 192.0.2.1", "IP_BLOCKED"),
        (&gone, "SCOPE write IP 192.0.2.1", "IP_BLOCKED"),
        ("nonsense", "SCOPE write IP 192.0.2.1", "IP_BLOCKED"),
    ];
    for (raw, options, code) in table {
        for command in ["KG.AUTH", "KG.CHECK"] {
            assert_eq!(c.code(format!("{command} acme {raw} {options}")), code, "{command} {options}");
        }
    }
}

fn charges_nothing_on_refusal(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    c.ok("KG.ADDORG acme shop LIMIT 3 1h");
    c.ok("KG.BLOCKIP acme 192.0.2.1 1h");
    let (_, wide) = new_key(&mut c, "shop wide LIMIT 100 1h LIMIT 10 1h UNIT tokens");
    let (_, narrow) = new_key(&mut c, "shop narrow LIMIT 2 1h");
    assert_eq!(auth(&mut c, &narrow, ""), "VALID");
    assert_eq!(auth(&mut c, &narrow, ""), "VALID");
    // One unit of the organization is left; these refusals must leave it and the key's units alone.
    let before = c.state();
    let refusals = [
        (&narrow, "", "RATE_LIMITED"),
        (&wide, "COST 2", "RATE_LIMITED"),
        (&wide, "COST 1 COST 11 UNIT tokens", "RATE_LIMITED"),
        (&wide, "SCOPE read", "INSUFFICIENT_SCOPE"),
        (&wide, "IP 192.0.2.1", "IP_BLOCKED"),
    ];
    for (raw, options, code) in refusals {
        assert_eq!(auth(&mut c, raw, options), code, "{options}");
        assert_eq!(c.state(), before, "{options}");
    }
    let refused = c.ok(format!("KG.AUTH acme {wide} COST 2"));
    assert_eq!(refused.field("limited_by").text(), "org");
    assert_eq!((refused.field("limit").int(), refused.field("remaining").int()), (3, 1));
    let never = c.ok(format!("KG.AUTH acme {wide} COST 11 UNIT tokens"));
    assert_eq!((never.field("limited_by").text().as_str(), never.field("retry_after_ms").int()), ("key", -1));
    let valid = c.ok(format!("KG.AUTH acme {wide} COST 1 COST 10 UNIT tokens"));
    assert_eq!(valid.field("code").text(), "VALID");
    assert_eq!(auth(&mut c, &wide, "COST 0"), "VALID", "costs nothing, so it fits");
    assert_eq!(auth(&mut c, &wide, ""), "RATE_LIMITED");
}

fn an_organization_shares_its_limit(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    c.ok("KG.ADDORG acme shop LIMIT 4 1h");
    c.ok("KG.ADDORG acme lab LIMIT 4 1h");
    let keys: Vec<String> = (0..3).map(|n| new_key(&mut c, &format!("shop k{n} LIMIT 2 1h")).1).collect();
    let (_, other) = new_key(&mut c, "lab k");
    let codes: Vec<String> = [0, 0, 0, 1, 2, 2].iter().map(|&n: &usize| auth(&mut c, &keys[n], "")).collect();
    assert_eq!(codes, ["VALID", "VALID", "RATE_LIMITED", "VALID", "VALID", "RATE_LIMITED"]);
    let refused = c.ok(format!("KG.CHECK acme {}", keys[1]));
    assert_eq!(refused.field("limited_by").text(), "org");
    assert_eq!((refused.field("limit").int(), refused.field("remaining").int()), (4, 0));
    assert_eq!(auth(&mut c, &other, ""), "VALID", "another organization has its own");
}

fn counts_each_unit_by_itself(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    let (_, raw) = new_key(&mut c, "shop web LIMIT 3 1h LIMIT 1000 1h UNIT tokens LIMIT 50 1h UNIT bytes");
    assert_eq!(auth(&mut c, &raw, "COST 0 COST 900 UNIT tokens"), "VALID");
    assert_eq!(auth(&mut c, &raw, "COST 0 COST 200 UNIT tokens"), "RATE_LIMITED");
    assert_eq!(auth(&mut c, &raw, "COST 0 COST 100 UNIT tokens COST 50 UNIT bytes"), "VALID");
    assert_eq!(auth(&mut c, &raw, "COST 0 COST 1 UNIT bytes"), "RATE_LIMITED");
    // Who names other units only still makes one request; units that nothing limits are free.
    assert_eq!(auth(&mut c, &raw, ""), "VALID");
    assert_eq!(auth(&mut c, &raw, "COST 5 UNIT pages"), "VALID");
    assert_eq!(c.code(format!("KG.CHECK acme {raw} COST 2 UNIT requests")), "RATE_LIMITED");
    assert_eq!(auth(&mut c, &raw, "cost 1 unit requests"), "VALID");
    assert_eq!(auth(&mut c, &raw, ""), "RATE_LIMITED", "one request is the default");
}

fn limits_hold_under_concurrency(sut: &Sut) {
    let server = Arc::new(sut.server());
    let mut c = server.client();
    c.ok("KG.ADDORG acme shop LIMIT 100 1h");
    let keys: Vec<String> = (0..4).map(|n| new_key(&mut c, &format!("shop k{n} LIMIT 40 1h")).1).collect();
    let workers: Vec<_> = (0..8)
        .map(|n| {
            let (mut c, raw) = (server.client(), keys[n % 4].clone());
            thread::spawn(move || (0..40).filter(|_| auth(&mut c, &raw, "") == "VALID").count())
        })
        .collect();
    let valid: usize = workers.into_iter().map(|worker| worker.join().unwrap()).sum();
    assert_eq!(valid, 100, "exactly the organization's limit, over four keys of 40 each");
}

fn keys_expire(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    for past in ["EXPIREAT 1", "EXPIREAT 1700000000", "EXPIREAT 2001-01-01T00:00:00Z"] {
        let (id, raw) = new_key(&mut c, &format!("shop past {past}"));
        assert_eq!(auth(&mut c, &raw, ""), "EXPIRED", "{past}");
        assert_eq!(c.ok(args!["KG.GETKEY", "acme", id]).field("id").int(), id, "still listed");
    }
    for later in ["EXPIREAT 0", "EXPIREAT 4102444800", "EXPIREAT 2100-01-01T00:00:00+02:00", "EXPIREIN 1d"] {
        let (_, raw) = new_key(&mut c, &format!("shop later {later}"));
        assert_eq!(auth(&mut c, &raw, ""), "VALID", "{later}");
    }
    let before = now_ms();
    let (_, raw) = new_key(&mut c, "shop soon EXPIREIN 300ms LIMIT 1000000 1h");
    let after = now_ms();
    eventually("the key expiring", || {
        let sent = now_ms();
        let code = auth(&mut c, &raw, "");
        let answered = now_ms();
        match &*code {
            "VALID" => assert!(sent < after + 300, "valid at {sent}, made by {after}"),
            "EXPIRED" => assert!(answered >= before + 300, "expired at {answered}, made at {before}"),
            other => panic!("{other}"),
        }
        expect(code == "EXPIRED", || code)
    });
}

fn scopes_grant_what_they_say(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    let table: [(&str, &str, bool); 14] = [
        ("", "SCOPE read", false),
        ("", "", true),
        ("SCOPES read", "SCOPE read", true),
        ("SCOPES read", "SCOPE Read", false),
        ("SCOPES read", "SCOPE read SCOPE write", false),
        ("SCOPES read,write", "SCOPE read SCOPE write", true),
        ("SCOPES *", "SCOPE anything SCOPE at:all", true),
        ("SCOPES orders:*", "SCOPE orders:read", true),
        ("SCOPES orders:*", "SCOPE orders:read:all", true),
        ("SCOPES orders:*", "SCOPE orders", false),
        ("SCOPES orders:*", "SCOPE ordersx:read", false),
        ("SCOPES orders*", "SCOPE orders:read", false),
        ("SCOPES a,b,c", "SCOPE b", true),
        ("SCOPES orders:*", "SCOPE *", false),
    ];
    for (granted, wanted, valid) in table {
        let (_, raw) = new_key(&mut c, &format!("shop key {granted}"));
        let code = if valid { "VALID" } else { "INSUFFICIENT_SCOPE" };
        assert_eq!(auth(&mut c, &raw, wanted), code, "{granted:?} and {wanted:?}");
    }
}

fn revoking_is_final(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    let (id, raw) = new_key(&mut c, "shop web");
    assert_eq!(c.ok(args!["KG.REVOKE", "acme", id]), Value::Okay);
    assert_eq!(auth(&mut c, &raw, ""), "DISABLED");
    // Again is no error, and changes nothing.
    let before = c.state();
    c.ok(args!["KG.REVOKE", "acme", id]);
    assert_eq!(c.state(), before);
    assert_eq!(c.ok(args!["KG.GETKEY", "acme", id]).field("active").int(), 0);
    c.refused("NOSUCH", "KG.REVOKE acme 999");
    c.refused("ERR", "KG.REVOKE acme x");
    c.refused("ERR", "KG.REVOKE acme");
    c.ok("DEBUG RELOAD");
    assert_eq!(auth(&mut c, &raw, ""), "DISABLED");
    assert_eq!(c.ok(args!["KG.DELKEY", "acme", id]).int(), 1);
    assert_eq!(auth(&mut c, &raw, ""), "NOT_FOUND");
}

fn a_suspended_organization_is_kept_out(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    let (_, raw) = new_key(&mut c, "shop web");
    c.ok("KG.ADDORG acme lab");
    let (_, other) = new_key(&mut c, "lab web");
    assert_eq!(c.ok("KG.SETORG acme shop STATUS suspended"), Value::Okay);
    assert_eq!(auth(&mut c, &raw, ""), "ORG_SUSPENDED");
    assert_eq!(auth(&mut c, &other, ""), "VALID");
    assert_eq!(c.ok("kg.setorg acme shop status ACTIVE"), Value::Okay);
    assert_eq!(auth(&mut c, &raw, ""), "VALID");
    c.refused("NOSUCH", "KG.SETORG acme nobody STATUS active");
    c.refused("ERR", "KG.SETORG acme shop STATUS asleep");
    c.refused("DUPLICATE", "KG.ADDORG acme shop");
    c.refused("NOSUCH", "KG.NEWKEY acme nobody web");
    assert_eq!(auth(&mut c, &raw, ""), "VALID");
}

fn blocks_addresses(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    let (_, raw) = new_key(&mut c, "shop web");
    c.ok("KG.BLOCKIP acme 192.0.2.1 1h REASON scan");
    c.ok(args!["KG.BLOCKIP", "acme", "192.0.2.3", "5m", "reason", "two words"]);
    let blocked = ["192.0.2.1", "::ffff:192.0.2.1", "::FFFF:C000:0201", "192.0.2.3"];
    let free = ["192.0.2.2", "192.0.2.10", "192.0.2.11", "::192.0.2.1", "2001:db8::1", "1.2.0.192"];
    for (addresses, code) in [(&blocked[..], "IP_BLOCKED"), (&free, "VALID")] {
        for address in addresses {
            assert_eq!(auth(&mut c, &raw, &format!("IP {address}")), code, "{address}");
            let check = c.ok(format!("KG.CHECKIP acme {address}"));
            assert_eq!(check.field("code").text() == "IP_BLOCKED", code == "IP_BLOCKED", "{address}: {check:?}");
        }
    }
    assert_eq!(auth(&mut c, &raw, ""), "VALID", "without an address there is none to block");
    let map = c.ok("KG.CHECKIP acme 192.0.2.1");
    assert_eq!(map.field("reason").text(), "scan");
    assert_eq!(map.field("rule").text(), "192.0.2.1");
    assert!((HOUR - 60_000..=HOUR).contains(&map.field("retry_after_ms").int()), "{map:?}");
    // A mapped address names the same rule.
    assert_eq!(c.ok("KG.UNBLOCKIP acme ::ffff:192.0.2.1").int(), 1);
    assert_eq!(c.ok("KG.UNBLOCKIP acme 192.0.2.1").int(), 0, "no longer blocked");
    assert_eq!(auth(&mut c, &raw, "IP 192.0.2.1"), "VALID");
    assert_eq!(auth(&mut c, &raw, "IP 192.0.2.3"), "IP_BLOCKED");
    c.ok("KG.BLOCKIP acme ::ffff:192.0.2.9 1h");
    assert_eq!(auth(&mut c, &raw, "IP 192.0.2.9"), "IP_BLOCKED");
    // Without a duration, for good.
    assert_eq!(c.ok("KG.BLOCKIP acme 192.0.2.44 REASON forever"), Value::Okay);
    assert_eq!(c.ok("KG.CHECKIP acme 192.0.2.44").get("retry_after_ms"), None);
    assert_eq!(auth(&mut c, &raw, "IP 192.0.2.44"), "IP_BLOCKED");
    c.ok("KG.ADDORG zeta shop");
    let other = c.ok("KG.NEWKEY zeta shop web").list()[1].text();
    assert_eq!(c.code(format!("KG.AUTH zeta {other} IP 192.0.2.3")), "VALID", "each store has its own rules");
}

fn blocks_ipv6_by_64(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    let (_, raw) = new_key(&mut c, "shop web");
    c.ok("KG.BLOCKIP acme 2001:db8:0:1::5 1h");
    for address in ["2001:db8:0:1::5", "2001:db8:0:1::6", "2001:DB8:0:1:ffff:ffff:ffff:ffff", "2001:db8:0:1::"] {
        assert_eq!(auth(&mut c, &raw, &format!("IP {address}")), "IP_BLOCKED", "{address}");
    }
    for address in ["2001:db8:0:2::5", "2001:db8::5", "2001:db8:0:0:1::5", "::1"] {
        assert_eq!(auth(&mut c, &raw, &format!("IP {address}")), "VALID", "{address}");
    }
    c.ok("KG.UNBLOCKIP acme 2001:db8:0:1::77");
    assert_eq!(auth(&mut c, &raw, "IP 2001:db8:0:1::5"), "VALID");
}

fn blocks_end(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    let (_, raw) = new_key(&mut c, "shop web");
    c.ok("KG.BLOCKIP acme 192.0.2.2 1h");
    let before = now_ms();
    c.ok("KG.BLOCKIP acme 192.0.2.1 300ms");
    let after = now_ms();
    eventually("the block ending", || {
        let sent = now_ms();
        let code = auth(&mut c, &raw, "IP 192.0.2.1");
        let answered = now_ms();
        match &*code {
            "IP_BLOCKED" => assert!(sent < after + 300, "blocked at {sent}, made by {after}"),
            "VALID" => assert!(answered >= before + 300, "free at {answered}, blocked at {before}"),
            other => panic!("{other}"),
        }
        expect(code == "VALID", || code)
    });
    assert_ne!(c.code("KG.CHECKIP acme 192.0.2.1"), "IP_BLOCKED");
    assert_eq!(auth(&mut c, &raw, "IP 192.0.2.2"), "IP_BLOCKED");
    // A later block replaces the earlier one, shorter or longer.
    c.ok("KG.BLOCKIP acme 192.0.2.2 1ms");
    eventually("the shorter block ending", || {
        let code = auth(&mut c, &raw, "IP 192.0.2.2");
        expect(code == "VALID", || code)
    });
}

fn check_changes_nothing(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    c.ok("KG.ADDORG acme shop LIMIT 10 1h");
    let (_, raw) = new_key(&mut c, "shop web LIMIT 5 1h SCOPES read");
    let before = c.state();
    for _ in 0..10 {
        let map = c.ok(format!("KG.CHECK acme {raw} SCOPE read IP 192.0.2.1 COST 2"));
        assert_eq!(map.field("code").text(), "VALID");
        assert_eq!(map.field("remaining").int(), 5, "before the cost");
    }
    assert_eq!(c.state(), before);
    assert_eq!(auth(&mut c, &raw, ""), "VALID");
    let before = c.state();
    assert_eq!(c.ok(format!("KG.CHECK acme {raw}")).field("remaining").int(), 4);
    assert_eq!(c.code(format!("KG.CHECK acme {raw} COST 5")), "RATE_LIMITED");
    assert_eq!(c.code("KG.CHECK acme nonsense IP 192.0.2.1"), "NOT_FOUND");
    assert_eq!(c.state(), before);
}

fn rejects_bad_arguments(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    let (_, raw) = new_key(&mut c, "shop web LIMIT 5 1h");
    let before = c.state();
    let tails = [
        "IP",
        "IP x",
        "IP 192.0.2",
        "IP 192.0.2.256",
        "IP 192.0.2.0/24",
        "IP 192.0.2.1:80",
        "IP 192.0.2.1 IP 192.0.2.1",
        "SCOPE",
        "SCOPE a,b",
        "COST",
        "COST x",
        "COST -1",
        "COST 1 UNIT",
        "COST 1 COST 2",
        "WHAT",
        "UNIT tokens",
        "COST 1 UNIT tokens COST 2 UNIT tokens",
    ];
    for command in ["KG.AUTH", "KG.CHECK"] {
        for tail in tails {
            c.refused("ERR", &*format!("{command} acme {raw} {tail}"));
        }
        c.refused("ERR", &*format!("{command} acme"));
        c.refused("ERR", command);
    }
    let new = [
        "",
        "shop",
        "shop a WHAT",
        "shop a PREFIX",
        "shop a SCOPES",
        "shop a SCOPES ,",
        "shop a SCOPES a,,b",
        "shop a LIMIT",
        "shop a LIMIT 5",
        "shop a LIMIT 0 1h",
        "shop a EXPIREIN 0",
        "shop a EXPIREAT soon",
        "shop a META {",
        "shop a META",
        "shop a EXPIREAT 1 EXPIREIN 1h",
        "shop a PREFIX a PREFIX b",
        "shop a PREFIX a.b",
        "shop a SCOPES a SCOPES b",
    ];
    for tail in new {
        c.refused("ERR", &*format!("KG.NEWKEY acme {tail}"));
    }
    let others = [
        "KG.ADDORG acme",
        "KG.ADDORG acme a WHAT",
        "KG.ADDORG acme a LIMIT 5",
        "KG.ADDORG acme a LIMIT x 1h",
        "KG.SETORG acme",
        "KG.SETORG acme shop STATUS",
        "KG.BLOCKIP acme",
        "KG.BLOCKIP acme x 1h",
        "KG.BLOCKIP acme 192.0.2.1 0",
        "KG.BLOCKIP acme 192.0.2.1 x",
        "KG.BLOCKIP acme 192.0.2.1 -1h",
        "KG.BLOCKIP acme 192.0.2.1 1h REASON",
        "KG.BLOCKIP acme 192.0.2.1 1h WHAT x",
        "KG.UNBLOCKIP acme",
        "KG.UNBLOCKIP acme x",
        "KG.UNBLOCKIP acme 192.0.2.1 x",
        "KG.CHECKIP acme",
        "KG.CHECKIP acme x",
        "KG.CHECKIP acme 192.0.2.1 x",
    ];
    for command in others {
        c.refused("ERR", command);
    }
    assert_eq!(c.state(), before);
}

fn keeps_to_the_maxima(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    c.ok(args!["KG.ADDORG", "acme", "o".repeat(256)]);
    c.refused("ERR", args!["KG.ADDORG", "acme", "o".repeat(257)]);
    c.ok("KG.ADDORG acme shop");
    c.ok(args!["KG.NEWKEY", "acme", "shop", "l".repeat(256)]);
    c.refused("ERR", args!["KG.NEWKEY", "acme", "shop", "l".repeat(257)]);
    let scopes = |count: usize| (0..count).map(|n| format!("s{n}")).collect::<Vec<_>>().join(",");
    let raw = c.ok(args!["KG.NEWKEY", "acme", "shop", "a", "SCOPES", scopes(64)]).list()[1].text();
    assert_eq!(auth(&mut c, &raw, "SCOPE s63"), "VALID");
    c.refused("ERR", args!["KG.NEWKEY", "acme", "shop", "a", "SCOPES", scopes(65)]);
    let limits = |count: usize| (1..=count).map(|n| format!(" LIMIT 5 {n}h")).collect::<String>();
    c.ok(format!("KG.NEWKEY acme shop a{}", limits(8)));
    c.refused("ERR", &*format!("KG.NEWKEY acme shop a{}", limits(9)));
    c.refused("ERR", &*format!("KG.ADDORG acme many{}", limits(9)));
    let meta = |length: usize| format!("{{\"m\":\"{}\"}}", "m".repeat(length - 8));
    c.ok(args!["KG.NEWKEY", "acme", "shop", "a", "META", meta(16_384)]);
    c.refused("ERR", args!["KG.NEWKEY", "acme", "shop", "a", "META", meta(16_385)]);
}
