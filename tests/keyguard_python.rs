//! The gate as the successor of keyguard_python 0.3.0: all that it does while a request waits, without the faults that it had.
//!
//! The first tests are named after the functions, options and settings of that package, and each does what they do; those after
//! them are named after what was wrong, and show that it is not so here. Where the package answers a status, the code that the
//! module answers stands in the README's table beside that status; that the examples send it, `http.rs` proves.

use std::{collections::BTreeSet, fs, path::Path, thread};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use redis::Value;

use crate::apikeys::{away_from_midnight, forge_start};
use crate::harness::{
    Client, KEYRING, OTHER_KEYRING, Reply, Server, Sut, args, contains, eventually, expect, now_ms, server_tests,
};

server_tests![
    generate_api_key,
    hash_key,
    verify_key,
    is_rate_limited,
    is_blocked,
    block,
    track_ip_abuse,
    cleanup,
    block_request,
    seconds_until_time,
    rate_limit_by_ip_limit_and_window,
    rate_limit_by_ip_lockout,
    rate_limit_by_ip_scope,
    middleware_protected_path,
    middleware_blocked_address,
    middleware_missing_key,
    middleware_invalid_or_inactive_key,
    middleware_suspended_organization,
    middleware_over_the_limit,
    middleware_headers_of_an_authorized_request,
    request_state_api_key,
    config_default_rate_limit_per_minute,
    config_ip_block_threshold,
    config_secret_key,
    expires_at_is_enforced,
    the_monthly_limit_is_enforced,
    scopes_are_enforced,
    a_use_sets_last_used_at,
    failures_at_the_threshold_hold_up_nobody,
    a_block_of_a_path_is_checked_wherever_a_path_is_named,
    what_is_no_duration_is_an_error_and_no_hour,
    another_path_that_begins_alike_is_another_path,
    revoking_by_a_beginning_takes_no_other_key_along,
    without_a_keyring_no_key_is_issued_and_none_let_in,
    a_digest_that_differs_in_one_byte_lets_nobody_in,
    refused_calls_are_not_counted,
    two_calls_in_one_instant_are_two,
    windows_go_when_they_are_over,
    no_name_of_a_caller_meets_a_window_of_the_gate,
];

const MINUTE: i64 = 60_000;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;

/// A server with a store that has the organization `shop`, and a client of it.
fn shop(sut: &Sut) -> (Server, Client) {
    let server = sut.server();
    let mut c = server.client();
    c.ok("KG.ADDORG acme shop");
    (server, c)
}

fn new_key(c: &mut Client, arguments: &str) -> (i64, String) {
    let reply = c.ok(format!("KG.NEWKEY acme {arguments}"));
    (reply.list()[0].int(), reply.list()[1].text())
}

fn auth(c: &mut Client, raw: &str, options: &str) -> String {
    c.code(format!("KG.AUTH acme {raw} {options}"))
}

fn check_ip(c: &mut Client, arguments: &str) -> String {
    c.code(format!("KG.CHECKIP acme {arguments}"))
}

fn claim_ip(c: &mut Client, arguments: &str) -> Value {
    c.ok(format!("KG.CLAIMIP acme {arguments}"))
}

/// All address rules of the store, which are few.
fn rules(c: &mut Client) -> Vec<Value> {
    c.ok("KG.LISTIPS acme").list()[1].list().to_vec()
}

/// The status of HTTP that the README gives to a code; that of what the route answers is 200 here.
fn status(code: &str) -> u16 {
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).expect("README.md");
    let (_, table) = readme.split_once("#### HTTP").expect("the chapter on HTTP");
    let row = table.lines().find_map(|line| {
        let mut cells = line.strip_prefix("| ")?.split(" | ");
        let (codes, answer) = (cells.next()?, cells.next()?);
        codes.contains(&format!("`{code}`")).then(|| answer.get(..3)?.parse().ok())
    });
    row.unwrap_or_else(|| panic!("the README's table of HTTP lacks {code}")).unwrap_or(200)
}

// AuthService.

fn generate_api_key(sut: &Sut) {
    let (_server, mut c) = shop(sut);
    let mut seen = BTreeSet::new();
    for n in 0..100 {
        let (options, prefix) = if n % 2 == 0 { ("", "kg_live_") } else { ("PREFIX kg_test_", "kg_test_") };
        let (id, raw) = new_key(&mut c, &format!("shop web {options}"));
        let random = raw.strip_prefix(prefix).expect("the prefix");
        // 256 bits in characters of six bits are 43 of them.
        assert!(random.len() >= 43 && random.bytes().all(|byte| byte.is_ascii_alphanumeric()), "{raw}");
        assert_eq!(c.ok(args!["KG.GETKEY", "acme", id]).field("start").text(), raw[..prefix.len() + 6]);
        assert!(seen.insert(random.to_owned()), "no two are the same");
    }
}

/// Copies all keys to another server.
fn copy(from: &mut Client, to: &mut Client) {
    for key in from.keys() {
        let payload = from.ok(args!["DUMP", key]).bytes();
        to.ok(args!["RESTORE", key, "0", payload]);
    }
}

fn hash_key(sut: &Sut) {
    let (_server, mut c) = shop(sut);
    let (id, raw) = new_key(&mut c, "shop web");
    let digests: Vec<Vec<u8>> = c.keys().into_iter().filter(|key| contains(key, b":digest:")).collect();
    assert_eq!(digests.len(), 1, "one for a key");
    assert_eq!(c.ok(args!["GET", digests[0]]).text(), id.to_string());
    let record = format!("{:?}", c.ok(args!["HGETALL", format!("{{acme}}:key:{id}")]));
    assert!(!record.contains(&raw[14..24]), "the key itself is not kept");
    // The pepper makes it: the same key has the same digest under the same one, and no other.
    let servers = [KEYRING, OTHER_KEYRING].map(|keyring| sut.setup().keyring(keyring).start());
    let [mut same, mut other] = servers.each_ref().map(Server::client);
    copy(&mut c, &mut same);
    copy(&mut c, &mut other);
    assert_eq!(auth(&mut same, &raw, ""), "VALID");
    other.refused("NOKEYRING", args!["KG.AUTH", "acme", raw]);
}

fn verify_key(sut: &Sut) {
    let (_server, mut c) = shop(sut);
    let (_, raw) = new_key(&mut c, "shop web");
    let (_, other) = new_key(&mut c, "shop other");
    assert_eq!([auth(&mut c, &raw, ""), auth(&mut c, &other, "")], ["VALID", "VALID"]);
    let mixed = format!("{}{}", &raw[..raw.len() / 2], &other[raw.len() / 2..]);
    for wrong in [&raw[1..], &raw[..raw.len() - 1], &format!("{raw}x"), &raw.to_uppercase(), &mixed, "kg_live_", "x"] {
        assert_eq!(auth(&mut c, wrong, ""), "NOT_FOUND");
    }
}

// RateLimitService and MemoryRateLimitService.

fn is_rate_limited(sut: &Sut) {
    let (_server, mut c) = shop(sut);
    let (_, raw) = new_key(&mut c, "shop web LIMIT 3 1m");
    let (_, other) = new_key(&mut c, "shop other LIMIT 3 1m");
    for left in [2, 1, 0] {
        let map = c.ok(format!("KG.AUTH acme {raw}"));
        assert_eq!((map.field("code").text().as_str(), map.field("remaining").int()), ("VALID", left));
        assert_eq!(map.field("window_ms").int(), MINUTE);
    }
    let limited = c.ok(format!("KG.AUTH acme {raw}"));
    assert_eq!((limited.field("code").text().as_str(), limited.field("remaining").int()), ("RATE_LIMITED", 0));
    assert_eq!(c.ok(format!("KG.AUTH acme {other}")).field("remaining").int(), 2, "each has its own");
    // Any other id, and any window.
    for (id, window, remaining) in [("ratelimit:1", "1m", 1), ("ratelimit:1", "1m", 0), ("ratelimit:2", "10", 1)] {
        let claim = c.claim(&format!("{id} 2 {window}"));
        assert_eq!((claim.claimed, claim.remaining), (true, remaining));
    }
    assert!(!c.claim("ratelimit:1 2 1m").claimed);
    // The window slides: one is free when the first is as old as the window.
    let (_, fast) = new_key(&mut c, "shop fast LIMIT 1 300ms");
    let at = |map: &Value| map.field("claimed_at_ms").int();
    let first = c.ok(format!("KG.AUTH acme {fast}"));
    let second = eventually("the end of the window", || {
        let map = c.ok(format!("KG.AUTH acme {fast}"));
        expect(map.field("code").text() == "VALID", || format!("{map:?}")).map(|()| map)
    });
    assert!(at(&second) >= at(&first) + 300, "{first:?} {second:?}");
}

fn is_blocked(sut: &Sut) {
    let (_server, mut c) = shop(sut);
    assert_eq!(check_ip(&mut c, "192.0.2.7"), "VALID");
    c.ok("KG.BLOCKIP acme 192.0.2.7 1h");
    c.ok("KG.BLOCKIP acme 192.0.2.8 1h PATH /login");
    for (asked, code) in [
        ("192.0.2.7", "IP_BLOCKED"),
        ("192.0.2.7 PATH /login", "IP_BLOCKED"),
        ("192.0.2.8", "VALID"),
        ("192.0.2.8 PATH /login", "IP_BLOCKED"),
        ("192.0.2.8 PATH /shop", "VALID"),
        ("192.0.2.9", "VALID"),
    ] {
        assert_eq!(check_ip(&mut c, asked), code, "{asked}");
    }
}

fn block(sut: &Sut) {
    let (_server, mut c) = shop(sut);
    let before = now_ms();
    c.ok("KG.BLOCKIP acme 192.0.2.7 86400");
    let end = rules(&mut c)[0].field("expires_at").int();
    assert!((before + DAY..=now_ms() + DAY).contains(&end), "a number alone is seconds");
    // Again is another block, from now on, longer or shorter.
    c.ok("KG.BLOCKIP acme 192.0.2.7 300ms");
    let end = rules(&mut c)[0].field("expires_at").int();
    eventually("the end of the block", || {
        let code = check_ip(&mut c, "192.0.2.7");
        let now = now_ms();
        assert!(code != "VALID" || now >= end, "free at {now}, blocked until {end}");
        expect(code == "VALID", || code)
    });
}

fn track_ip_abuse(sut: &Sut) {
    let (_server, mut c) = shop(sut);
    let (_, raw) = new_key(&mut c, "shop web");
    c.ok("CONFIG SET keyguard.ip-block-threshold 5");
    for n in 1..=5 {
        assert_eq!(auth(&mut c, "kg_live_nobody", "IP 192.0.2.7"), "NOT_FOUND");
        assert_eq!(c.ok("KG.CHECKIP acme 192.0.2.7").field("failures").int(), n);
    }
    assert_eq!(auth(&mut c, &raw, "IP 192.0.2.7"), "VALID", "as many as the threshold are not too many");
    let before = now_ms();
    assert_eq!(auth(&mut c, "kg_live_nobody", "IP 192.0.2.7"), "NOT_FOUND");
    assert_eq!(auth(&mut c, &raw, "IP 192.0.2.7"), "IP_BLOCKED");
    assert_eq!(auth(&mut c, &raw, "IP 192.0.2.8"), "VALID", "another address");
    let end = rules(&mut c)[0].field("expires_at").int();
    assert!((before + DAY..=now_ms() + DAY).contains(&end), "for 24 hours");
    assert_eq!(check_ip(&mut c, "192.0.2.7 PATH /any"), "IP_BLOCKED", "everywhere");
}

fn cleanup(sut: &Sut) {
    let (_server, mut c) = shop(sut);
    // Nobody has to call anything: what is over goes by itself.
    c.ok("CONFIG SET keyguard.ip-block-threshold 1");
    c.ok("CONFIG SET keyguard.ip-block-duration 1s");
    for _ in 0..2 {
        assert_eq!(auth(&mut c, "kg_live_nobody", "IP 192.0.2.8"), "NOT_FOUND");
    }
    c.claim("ratelimit:1 5 20ms");
    claim_ip(&mut c, "192.0.2.7 5 20ms");
    c.ok("KG.BLOCKIP acme 192.0.2.7 20ms");
    eventually("the windows being gone", || {
        let left = c.ok("EXISTS ratelimit:1 {acme}:ip:192.0.2.7").int();
        expect(left == 0, || format!("{left} left"))
    });
    eventually("the blocks having ended", || {
        let listed = rules(&mut c);
        expect(listed.is_empty(), || format!("{listed:?}"))
    });
    assert_eq!(c.info_number("keyguard", "keyguard_addresses_failing"), 0);
}

// KeyGuard.block_request, and the times that it takes.

fn block_request(sut: &Sut) {
    let (_server, mut c) = shop(sut);
    let (_, raw) = new_key(&mut c, "shop web");
    // As in the package's README: this address, from this path, for an hour.
    c.ok("KG.BLOCKIP acme 192.0.2.7 1h PATH /withdraw REASON fraud");
    c.ok("KG.BLOCKIP acme 192.0.2.8 3600");
    c.ok(args!["KG.BLOCKIP", "acme", "192.0.2.9", "UNTIL", "4:00 PM", "PATH", "/withdraw"]);
    for (asked, code) in [
        ("IP 192.0.2.7 PATH /withdraw", "IP_BLOCKED"),
        ("IP 192.0.2.7 PATH /balance", "VALID"),
        ("IP 192.0.2.8 PATH /withdraw", "IP_BLOCKED"),
        ("IP 192.0.2.8 PATH /balance", "IP_BLOCKED"),
        ("IP 192.0.2.8", "IP_BLOCKED"),
        ("IP 192.0.2.9 PATH /withdraw", "IP_BLOCKED"),
        ("IP 192.0.2.9 PATH /balance", "VALID"),
    ] {
        assert_eq!(auth(&mut c, &raw, asked), code, "{asked}");
        assert_eq!(check_ip(&mut c, &asked[3..]), code, "{asked}");
    }
    let ends: Vec<i64> = rules(&mut c).iter().map(|rule| rule.field("expires_at").int()).collect();
    for end in &ends[..2] {
        assert!((now_ms() + HOUR - MINUTE..=now_ms() + HOUR).contains(end), "{ends:?}");
    }
    assert_eq!(ends[2].rem_euclid(DAY), 16 * HOUR, "of UTC, unless the store has another zone");
}

fn seconds_until_time(sut: &Sut) {
    let (_server, mut c) = shop(sut);
    let of_day = |hours: i64, minutes: i64| hours * HOUR + minutes * MINUTE;
    let table = [
        ("16:00", of_day(16, 0)),
        ("4:00 PM", of_day(16, 0)),
        ("04:00 pm", of_day(16, 0)),
        ("4 PM", of_day(16, 0)),
        ("9:05", of_day(9, 5)),
        ("00:00", 0),
        ("12 AM", 0),
        ("12:30 PM", of_day(12, 30)),
        ("11:59 PM", of_day(23, 59)),
        ("23:59", of_day(23, 59)),
    ];
    for (zone, offset) in [("UTC", 0), ("Asia/Kolkata", of_day(5, 30))] {
        c.ok(args!["KG.SETSTORE", "acme", "TZ", zone]);
        for (time, of_day) in table {
            let before = now_ms();
            c.ok(args!["KG.BLOCKIP", "acme", "192.0.2.7", "UNTIL", time]);
            let after = now_ms();
            let end = rules(&mut c)[0].field("expires_at").int();
            // Today or, if it is over, tomorrow.
            let next = |now: i64| now + (of_day - offset - now - 1).rem_euclid(DAY) + 1;
            assert!([next(before), next(after)].contains(&end), "{time} in {zone}: {end} at {before}");
        }
    }
    let before = c.state();
    for bad in
        ["", "noon", "24:00", "16:60", "0 PM", "13 PM", "16", "4:00 XM", "30 minutes", "4 o'clock", "16:00:00:00"]
    {
        c.refused("ERR", args!["KG.BLOCKIP", "acme", "192.0.2.7", "UNTIL", bad]);
    }
    assert_eq!(c.state(), before, "what is no time is no hour either");
}

// The dependency rate_limit_by_ip.

fn rate_limit_by_ip_limit_and_window(sut: &Sut) {
    let (_server, mut c) = shop(sut);
    for left in [4, 3, 2, 1, 0] {
        let map = claim_ip(&mut c, "192.0.2.7 5 60 PATH /api/search");
        assert_eq!((map.field("code").text().as_str(), map.field("remaining").int()), ("VALID", left));
        assert_eq!([map.field("limit").int(), map.field("window_ms").int()], [5, MINUTE]);
    }
    let full = claim_ip(&mut c, "192.0.2.7 5 60 PATH /api/search");
    assert_eq!([full.field("code").text(), full.field("limited_by").text()], ["RATE_LIMITED", "address"]);
    assert_eq!(status("RATE_LIMITED"), 429);
    assert_eq!([full.field("limit").int(), full.field("remaining").int()], [5, 0]);
    assert!((1..=MINUTE).contains(&full.field("retry_after_ms").int()));
    assert!(rules(&mut c).is_empty(), "without a lock-out nobody is kept out");
    // Another address, another path; one that is kept out is told so before anything is counted.
    for other in ["192.0.2.8 5 60 PATH /api/search", "192.0.2.7 5 60 PATH /login"] {
        assert_eq!(claim_ip(&mut c, other).field("remaining").int(), 4);
    }
    c.ok("KG.BLOCKIP acme 192.0.2.7 1h");
    assert_eq!(claim_ip(&mut c, "192.0.2.7 5 60 PATH /login").field("code").text(), "IP_BLOCKED");
    assert_eq!(status("IP_BLOCKED"), 403);
    c.ok("KG.UNBLOCKIP acme 192.0.2.7");
    assert_eq!(claim_ip(&mut c, "192.0.2.7 5 60 PATH /login").field("remaining").int(), 3);
    // Another window.
    let at = |map: &Value| map.field("claimed_at_ms").int();
    let first = claim_ip(&mut c, "192.0.2.9 1 300ms PATH /x");
    let second = eventually("the end of the window", || {
        let map = claim_ip(&mut c, "192.0.2.9 1 300ms PATH /x");
        expect(map.field("code").text() == "VALID", || format!("{map:?}")).map(|()| map)
    });
    assert!(at(&second) >= at(&first) + 300, "{first:?} {second:?}");
}

fn rate_limit_by_ip_lockout(sut: &Sut) {
    let (_server, mut c) = shop(sut);
    for (address, lockout) in [("192.0.2.7", &["86400"][..]), ("192.0.2.8", &["UNTIL", "4:00 PM"])] {
        let mut claim = args!["KG.CLAIMIP", "acme", address, "3", "60", "PATH", "/login", "LOCKOUT"];
        claim.extend(lockout.iter().map(|word| word.as_bytes().to_vec()));
        let before = now_ms();
        let codes: Vec<String> = (0..5).map(|_| c.code(&claim)).collect();
        assert_eq!(codes, ["VALID", "VALID", "VALID", "RATE_LIMITED", "IP_BLOCKED"], "the first refusal locks");
        let end = c.ok(args!["KG.CHECKIP", "acme", address, "PATH", "/login"]).field("retry_after_ms").int() + now_ms();
        let of_day = |end: i64| (end - 16 * HOUR + DAY / 2).rem_euclid(DAY) - DAY / 2;
        match lockout {
            [_] => assert!((before + DAY..=now_ms() + DAY).contains(&end), "{end}"),
            _ => assert!((0..MINUTE).contains(&of_day(end)), "{end}"),
        }
    }
    for bad in [&["soon"][..], &["0"], &["-1"], &["30 minutes"], &["UNTIL", "30 minutes"], &["UNTIL"], &[]] {
        let mut claim = args!["KG.CLAIMIP", "acme", "192.0.2.9", "1", "60", "LOCKOUT"];
        claim.extend(bad.iter().map(|word| word.as_bytes().to_vec()));
        c.refused("ERR", claim);
    }
    assert_eq!(c.ok("EXISTS {acme}:ip:192.0.2.9").int(), 0);
}

fn rate_limit_by_ip_scope(sut: &Sut) {
    let (_server, mut c) = shop(sut);
    let (_, raw) = new_key(&mut c, "shop web");
    for (address, scope, elsewhere) in [("192.0.2.7", "", "VALID"), ("192.0.2.8", "EVERYWHERE", "IP_BLOCKED")] {
        for code in ["VALID", "RATE_LIMITED", "IP_BLOCKED"] {
            let claim = format!("{address} 1 60 PATH /heavy-task LOCKOUT 1h {scope}");
            assert_eq!(claim_ip(&mut c, &claim).field("code").text(), code, "{scope}");
        }
        assert_eq!(auth(&mut c, &raw, &format!("IP {address} PATH /heavy-task")), "IP_BLOCKED");
        assert_eq!(auth(&mut c, &raw, &format!("IP {address} PATH /other")), elsewhere);
        assert_eq!(claim_ip(&mut c, &format!("{address} 9 60 PATH /other")).field("code").text(), elsewhere);
    }
}

// The middleware.

fn middleware_protected_path(sut: &Sut) {
    let (_server, mut c) = shop(sut);
    // Which routes ask is the application's business; whom they keep out by path is the store's.
    c.ok("KG.BLOCKIP acme 192.0.2.0/24 PATH /api");
    let (_, raw) = new_key(&mut c, "shop web");
    for (path, code) in [
        ("/api", "IP_BLOCKED"),
        ("/api/", "IP_BLOCKED"),
        ("/api/data", "IP_BLOCKED"),
        ("/api/data?page=2", "IP_BLOCKED"),
        ("/health", "VALID"),
        ("/docs", "VALID"),
        ("/admin/keys", "VALID"),
    ] {
        assert_eq!(auth(&mut c, &raw, &format!("IP 192.0.2.7 PATH {path}")), code, "{path}");
    }
}

fn middleware_blocked_address(sut: &Sut) {
    let (_server, mut c) = shop(sut);
    let (_, raw) = new_key(&mut c, "shop web LIMIT 1 1h");
    c.ok("KG.BLOCKIP acme 192.0.2.7 1h");
    // Whatever key it brings, and without any.
    for key in [&*raw, "kg_live_nobody", ""] {
        for command in ["KG.AUTH", "KG.CHECK"] {
            let map = c.ok(args![command, "acme", key, "IP", "192.0.2.7"]);
            assert_eq!((map.field("code").text().as_str(), status("IP_BLOCKED")), ("IP_BLOCKED", 403));
            assert!((1..=HOUR).contains(&map.field("retry_after_ms").int()));
            assert_eq!([map.get("id"), map.get("limit")], [None, None], "and hears nothing of the key");
        }
    }
    assert_eq!(auth(&mut c, &raw, "IP 192.0.2.8"), "VALID", "nothing was charged");
}

fn middleware_missing_key(sut: &Sut) {
    let (_server, mut c) = shop(sut);
    let map = c.ok(args!["KG.AUTH", "acme", "", "IP", "192.0.2.7"]);
    assert_eq!((map.field("code").text().as_str(), status("NOT_FOUND")), ("NOT_FOUND", 401));
    assert_eq!(map.fields().len(), 1, "{map:?}");
    c.refused("ERR", "KG.AUTH acme");
    // Unlike there: who sends none guesses none.
    assert_eq!(c.ok("KG.CHECKIP acme 192.0.2.7").get("failures"), None);
}

fn middleware_invalid_or_inactive_key(sut: &Sut) {
    let (_server, mut c) = shop(sut);
    let (inactive, inactive_raw) = new_key(&mut c, "shop inactive");
    let (revoked, revoked_raw) = new_key(&mut c, "shop revoked");
    let (deleted, deleted_raw) = new_key(&mut c, "shop deleted");
    for raw in [&inactive_raw, &revoked_raw, &deleted_raw] {
        assert_eq!(auth(&mut c, raw, ""), "VALID");
    }
    c.ok(format!("KG.SETKEY acme {inactive} ACTIVE no"));
    c.ok(format!("KG.REVOKE acme {revoked}"));
    c.ok(format!("KG.DELKEY acme {deleted}"));
    for (raw, code) in [
        (&*inactive_raw, "DISABLED"),
        (&*revoked_raw, "DISABLED"),
        (&*deleted_raw, "NOT_FOUND"),
        ("kg_live_nobody", "NOT_FOUND"),
    ] {
        assert_eq!((auth(&mut c, raw, "").as_str(), status(code)), (code, 401));
    }
    c.ok(format!("KG.SETKEY acme {inactive} ACTIVE yes"));
    assert_eq!(auth(&mut c, &inactive_raw, ""), "VALID");
}

fn middleware_suspended_organization(sut: &Sut) {
    let (_server, mut c) = shop(sut);
    let (_, raw) = new_key(&mut c, "shop web LIMIT 2 1h");
    assert_eq!(auth(&mut c, &raw, ""), "VALID");
    c.ok("KG.SETORG acme shop STATUS suspended");
    assert_eq!((auth(&mut c, &raw, "").as_str(), status("ORG_SUSPENDED")), ("ORG_SUSPENDED", 403));
    c.ok("KG.SETORG acme shop STATUS active");
    let map = c.ok(format!("KG.AUTH acme {raw}"));
    assert_eq!((map.field("code").text().as_str(), map.field("remaining").int()), ("VALID", 0));
}

fn middleware_over_the_limit(sut: &Sut) {
    let (_server, mut c) = shop(sut);
    let (_, raw) = new_key(&mut c, "shop web LIMIT 2 1m");
    let codes = [(); 3].map(|()| auth(&mut c, &raw, ""));
    assert_eq!(codes, ["VALID", "VALID", "RATE_LIMITED"]);
    assert_eq!(status("RATE_LIMITED"), 429);
    // What the headers are made of.
    let map = c.ok(format!("KG.AUTH acme {raw}"));
    assert_eq!([map.field("limit").int(), map.field("remaining").int()], [2, 0]);
    let [retry, reset] = ["retry_after_ms", "reset_after_ms"].map(|field| map.field(field).int());
    assert!(0 < retry && retry <= reset && reset <= MINUTE, "{map:?}");
    assert_eq!((map.field("limited_by").text().as_str(), map.get("claimed_at_ms")), ("key", None));
}

fn middleware_headers_of_an_authorized_request(sut: &Sut) {
    let (_server, mut c) = shop(sut);
    let (_, raw) = new_key(&mut c, "shop web LIMIT 60 1m");
    for left in [59, 58] {
        let map = c.ok(format!("KG.AUTH acme {raw}"));
        assert_eq!((map.field("code").text().as_str(), status("VALID")), ("VALID", 200));
        assert_eq!([map.field("limit").int(), map.field("remaining").int()], [60, left]);
        assert!((1..=MINUTE).contains(&map.field("reset_after_ms").int()));
    }
}

fn request_state_api_key(sut: &Sut) {
    let (_server, mut c) = shop(sut);
    let (id, raw) = new_key(&mut c, "shop web SCOPES read,write META {\"team\":\"a\"}");
    let map = c.ok(format!("KG.AUTH acme {raw} WITHMETA"));
    assert_eq!(map.field("id").int(), id);
    assert_eq!(["org", "label", "meta"].map(|field| map.field(field).text()), ["shop", "web", "{\"team\":\"a\"}"]);
    let scopes: Vec<String> = map.field("scopes").list().iter().map(Reply::text).collect();
    assert_eq!(scopes, ["read", "write"]);
}

// KeyGuardConfig.

fn config_default_rate_limit_per_minute(sut: &Sut) {
    let (_server, mut c) = shop(sut);
    // A limit is what a key was given; what all of an organization's keys are to have is the organization's.
    let (_, given) = new_key(&mut c, "shop given LIMIT 60 1m");
    let (_, free) = new_key(&mut c, "shop free");
    let limit = |c: &mut Client, raw: &str| c.ok(format!("KG.CHECK acme {raw}")).get("limit").map(|limit| limit.int());
    assert_eq!([limit(&mut c, &given), limit(&mut c, &free)], [Some(60), None]);
    c.ok("KG.SETORG acme shop LIMIT 50 1m");
    assert_eq!([limit(&mut c, &given), limit(&mut c, &free)], [Some(50), Some(50)], "the one with the fewest left");
    for left in [49, 48] {
        assert_eq!(c.ok(format!("KG.AUTH acme {free}")).field("remaining").int(), left);
    }
}

fn config_ip_block_threshold(sut: &Sut) {
    let (_server, mut c) = shop(sut);
    // The failures that an address has before it is blocked, up to 102.
    let allowed = |c: &mut Client, address: &str| {
        let ask = args!["KG.AUTH", "acme", "kg_live_nobody", "IP", address];
        let codes = c.pipeline(&vec![ask; 102]);
        codes.iter().take_while(|map| map.field("code").text() == "NOT_FOUND").count()
    };
    assert_eq!(allowed(&mut c, "192.0.2.1"), 101, "more than a hundred, unless set");
    c.ok("CONFIG SET keyguard.ip-block-threshold 7");
    assert_eq!(allowed(&mut c, "192.0.2.2"), 8, "set for the server");
    c.ok("KG.SETSTORE acme IPTHRESHOLD 3");
    assert_eq!(allowed(&mut c, "192.0.2.3"), 4, "and for the store");
    c.ok("KG.SETSTORE acme IPTHRESHOLD 0");
    assert_eq!(allowed(&mut c, "192.0.2.4"), 102, "never");
    let configured = sut.setup().module_arguments(&["keyring-file", "keyring", "ip-block-threshold", "1"]).start();
    let mut c = configured.client();
    c.ok("KG.ADDORG acme shop");
    assert_eq!(allowed(&mut c, "192.0.2.1"), 2, "from the start");
}

fn config_secret_key(sut: &Sut) {
    let server = sut.setup().keyring(OTHER_KEYRING).start();
    let mut c = server.client();
    c.ok("KG.ADDORG acme shop");
    let (_, raw) = new_key(&mut c, "shop web");
    assert_eq!(auth(&mut c, &raw, ""), "VALID");
    let secret: serde_json::Value = serde_json::from_str(OTHER_KEYRING).unwrap();
    let secret = secret["keys"][0]["key"].as_str().unwrap();
    for key in c.keys() {
        let payload = c.ok(args!["DUMP", key]).bytes();
        assert!(!contains(&payload, secret.as_bytes()), "it is not kept beside what it protects");
    }
}

// What was wrong.

fn expires_at_is_enforced(sut: &Sut) {
    let (_server, mut c) = shop(sut);
    let (_, past) = new_key(&mut c, "shop past EXPIREAT 1");
    assert_eq!((auth(&mut c, &past, "").as_str(), status("EXPIRED")), ("EXPIRED", 401));
    let (id, soon) = new_key(&mut c, "shop soon EXPIREIN 300ms");
    let end = c.ok(format!("KG.GETKEY acme {id}")).field("expires_at").int();
    eventually("the end of the key", || {
        let sent = now_ms();
        let code = auth(&mut c, &soon, "");
        assert!(code == "EXPIRED" || sent < end, "{code} for what was asked at {sent}, after {end}");
        assert!(code == "VALID" || now_ms() >= end, "{code} before {end}");
        expect(code == "EXPIRED", || code)
    });
    let (id, later) = new_key(&mut c, "shop later EXPIREIN 1h");
    assert_eq!(auth(&mut c, &later, ""), "VALID");
    c.ok(format!("KG.SETKEY acme {id} EXPIREAT 1"));
    assert_eq!(auth(&mut c, &later, ""), "EXPIRED");
}

fn the_monthly_limit_is_enforced(sut: &Sut) {
    away_from_midnight();
    let (_server, mut c) = shop(sut);
    let (_, raw) = new_key(&mut c, "shop web QUOTA 3 month");
    let codes = [(); 5].map(|()| auth(&mut c, &raw, ""));
    assert_eq!(codes, ["VALID", "VALID", "VALID", "QUOTA_EXCEEDED", "QUOTA_EXCEEDED"]);
    assert_eq!(status("QUOTA_EXCEEDED"), 429);
    let map = c.ok(format!("KG.AUTH acme {raw}"));
    assert_eq!((map.field("quota_remaining").int(), map.field("limited_by").text().as_str()), (0, "quota"));
    assert!((1..=31 * DAY).contains(&map.field("quota_reset_ms").int()));
    // An organization's counts for all of its keys.
    c.ok("KG.ADDORG acme lab QUOTA 3 month");
    let keys = [(); 2].map(|()| new_key(&mut c, "lab web").1);
    let codes = [0, 1, 0, 1, 0].map(|which| auth(&mut c, &keys[which], ""));
    assert_eq!(codes, ["VALID", "VALID", "VALID", "QUOTA_EXCEEDED", "QUOTA_EXCEEDED"]);
}

fn scopes_are_enforced(sut: &Sut) {
    let (_server, mut c) = shop(sut);
    let (_, raw) = new_key(&mut c, "shop web SCOPES read LIMIT 3 1h");
    let (_, none) = new_key(&mut c, "shop none");
    assert_eq!(auth(&mut c, &raw, "SCOPE read"), "VALID");
    for (key, options) in [(&raw, "SCOPE write"), (&raw, "SCOPE read SCOPE write"), (&none, "SCOPE read")] {
        let code = auth(&mut c, key, options);
        assert_eq!((code.as_str(), status("INSUFFICIENT_SCOPE")), ("INSUFFICIENT_SCOPE", 403), "{options}");
    }
    assert_eq!(c.ok(format!("KG.AUTH acme {raw}")).field("remaining").int(), 1, "what is refused is not charged");
}

fn a_use_sets_last_used_at(sut: &Sut) {
    let (mut server, mut c) = shop(sut);
    let used = |c: &mut Client, id: i64| {
        c.ok(format!("KG.GETKEY acme {id}")).get("last_used_at").map(|last_used_at| last_used_at.int())
    };
    for options in ["", "LIMIT 5 1h", "QUOTA 5 month"] {
        let (id, raw) = new_key(&mut c, &format!("shop web {options}"));
        assert_eq!(used(&mut c, id), None, "never, so far");
        assert_eq!(auth(&mut c, &raw, "SCOPE write"), "INSUFFICIENT_SCOPE");
        assert_eq!(used(&mut c, id), None, "a refusal is no use");
        let before = now_ms();
        assert_eq!(auth(&mut c, &raw, ""), "VALID");
        let at = used(&mut c, id);
        assert!(at.is_some_and(|at| (before..=now_ms()).contains(&at)), "{at:?} for {options:?}");
        c.ok("SAVE");
        server.restart();
        c = server.client();
        assert_eq!(used(&mut c, id), at, "and stays known");
    }
}

fn failures_at_the_threshold_hold_up_nobody(sut: &Sut) {
    const THREADS: usize = 16;
    let (server, mut c) = shop(sut);
    let (_, raw) = new_key(&mut c, "shop web");
    c.ok("CONFIG SET keyguard.ip-block-threshold 40");
    // Many at once, some of them over the threshold: each hears at once what is so.
    let codes: Vec<String> = thread::scope(|scope| {
        let ask = || {
            let mut c = server.client();
            (0..10).map(|_| auth(&mut c, "kg_live_nobody", "IP 192.0.2.7")).collect::<Vec<_>>()
        };
        let asking: Vec<_> = (0..THREADS).map(|_| scope.spawn(ask)).collect();
        asking.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    let count = |wanted: &str| codes.iter().filter(|code| *code == wanted).count();
    assert_eq!((count("NOT_FOUND"), count("IP_BLOCKED")), (41, THREADS * 10 - 41));
    assert_eq!(c.ok("PING").text(), "PONG");
    assert_eq!(auth(&mut c, &raw, "IP 192.0.2.7"), "IP_BLOCKED");
    assert_eq!(auth(&mut c, &raw, "IP 192.0.2.8"), "VALID");
    assert_eq!(c.info_number("keyguard", "keyguard_automatic_blocks"), 1, "one block, however many were at it");
}

fn a_block_of_a_path_is_checked_wherever_a_path_is_named(sut: &Sut) {
    let (_server, mut c) = shop(sut);
    let (_, raw) = new_key(&mut c, "shop web");
    c.ok("KG.BLOCKIP acme 192.0.2.7 1h PATH /withdraw");
    for (path, code) in [("PATH /withdraw", "IP_BLOCKED"), ("PATH /withdraw/all", "IP_BLOCKED"), ("PATH /x", "VALID")] {
        for command in [
            format!("KG.AUTH acme {raw} IP 192.0.2.7 {path}"),
            format!("KG.CHECK acme {raw} IP 192.0.2.7 {path}"),
            format!("KG.CLAIMIP acme 192.0.2.7 1000 1h {path}"),
            format!("KG.CHECKIP acme 192.0.2.7 {path}"),
        ] {
            assert_eq!(c.code(&command), code, "{path}");
        }
    }
    assert_eq!(auth(&mut c, &raw, "IP 192.0.2.8 PATH /withdraw"), "VALID");
}

fn what_is_no_duration_is_an_error_and_no_hour(sut: &Sut) {
    let (_server, mut c) = shop(sut);
    let (id, _) = new_key(&mut c, "shop web");
    let before = c.state();
    for bad in ["30 minutes", "1 hour", "soon", "1h30m", "half", "1.5h", "", " 5m"] {
        for command in [
            args!["KG.BLOCKIP", "acme", "192.0.2.7", bad],
            args!["KG.BLOCKIP", "acme", "192.0.2.7", bad, "PATH", "/withdraw"],
            args!["KG.BLOCKIP", "acme", "192.0.2.7", "UNTIL", bad],
            args!["KG.ALLOWIP", "acme", "192.0.2.7", bad],
            args!["KG.CLAIMIP", "acme", "192.0.2.7", "5", bad],
            args!["KG.CLAIMIP", "acme", "192.0.2.7", "5", "1m", "LOCKOUT", bad],
            args!["KG.CLAIMIP", "acme", "192.0.2.7", "5", "1m", "LOCKOUT", "UNTIL", bad],
            args!["KG.NEWKEY", "acme", "shop", "web", "EXPIREIN", bad],
            args!["KG.NEWKEY", "acme", "shop", "web", "LIMIT", "5", bad],
            args!["KG.ROTATE", "acme", id, "GRACE", bad],
        ] {
            c.refused("ERR", command);
        }
    }
    // Nor in two arguments.
    for command in ["KG.BLOCKIP acme 192.0.2.7 30 minutes", "KG.CLAIMIP acme 192.0.2.7 5 1m LOCKOUT 30 minutes"] {
        c.refused("ERR", command);
    }
    assert_eq!(c.state(), before);
}

fn another_path_that_begins_alike_is_another_path(sut: &Sut) {
    let (_server, mut c) = shop(sut);
    let (_, raw) = new_key(&mut c, "shop web");
    c.ok("KG.BLOCKIP acme 192.0.2.7 PATH /api");
    c.ok("KG.CLAIMIP acme 192.0.2.8 1 1h PATH /api LOCKOUT 1h");
    c.ok("KG.CLAIMIP acme 192.0.2.8 1 1h PATH /api LOCKOUT 1h");
    for address in ["192.0.2.7", "192.0.2.8"] {
        for (path, code) in [("/api", "IP_BLOCKED"), ("/api/v1", "IP_BLOCKED"), ("/apiary", "VALID"), ("/ap", "VALID")]
        {
            assert_eq!(auth(&mut c, &raw, &format!("IP {address} PATH {path}")), code, "{path}");
            assert_eq!(check_ip(&mut c, &format!("{address} PATH {path}")), code, "{path}");
        }
        assert_eq!(claim_ip(&mut c, &format!("{address} 5 1h PATH /apiary")).field("code").text(), "VALID");
    }
}

fn revoking_by_a_beginning_takes_no_other_key_along(sut: &Sut) {
    let (_server, mut c) = shop(sut);
    let [(first, raw), (second, twin), (_, other)] = [(); 3].map(|()| new_key(&mut c, "shop web"));
    let start = &raw[..14];
    // What many keys begin with, and what might stand for others.
    let before = c.state();
    for near in ["kg_live_", "kg_live", "k", "_", "%", "kg%", "kg_live_______", "kg_live_%", "kg-live-", ""] {
        let text = c.err(args!["KG.REVOKE", "acme", "START", near]);
        assert!(["NOSUCH", "ERR"].contains(&text.split(' ').next().unwrap()), "{near}: {text}");
    }
    // One character of the beginning of another kind.
    let near = format!("kgxlive_{}", &start[8..]);
    c.refused("NOSUCH", args!["KG.REVOKE", "acme", "START", near]);
    c.refused("NOSUCH", args!["KG.REVOKE", "acme", "START", format!("kg_live_{}_", &start[8..13])]);
    assert_eq!(c.state(), before);
    // Of two that begin alike neither, and the answer says why.
    forge_start(&mut c, (second, &twin[..14]), start);
    c.refused("NOTUNIQUE", args!["KG.REVOKE", "acme", "START", start]);
    assert_eq!([&raw, &twin, &other].map(|raw| auth(&mut c, raw, "")), ["VALID", "VALID", "VALID"]);
    c.ok(args!["KG.REVOKE", "acme", first]);
    assert_eq!([&raw, &twin, &other].map(|raw| auth(&mut c, raw, "")), ["DISABLED", "VALID", "VALID"]);
}

fn without_a_keyring_no_key_is_issued_and_none_let_in(sut: &Sut) {
    let mut server = sut.setup().with("appendonly", "yes").with("appendfsync", "always").start();
    let mut c = server.client();
    c.ok("KG.ADDORG acme shop");
    let (_, raw) = new_key(&mut c, "shop web");
    // The data without the keyring.
    let bare = sut.setup().module_arguments(&[]).start();
    let mut elsewhere = bare.client();
    copy(&mut c, &mut elsewhere);
    for command in ["KG.AUTH acme", "KG.CHECK acme"] {
        elsewhere.refused("NOKEYRING", format!("{command} {raw}"));
        elsewhere.refused("NOKEYRING", format!("{command} {raw} IP 192.0.2.7"));
    }
    elsewhere.refused("NOKEYRING", "KG.NEWKEY acme shop web");
    // A new store.
    elsewhere.ok("FLUSHALL");
    elsewhere.call("KG.ADDORG acme shop");
    elsewhere.refused("NOKEYRING", "KG.NEWKEY acme shop web");
    assert_eq!(elsewhere.ok("KG.COUNTKEYS acme TYPE api").int(), 0);
    // Another keyring is as good as none: its customers are no strangers.
    fs::write(server.keyring_file(), OTHER_KEYRING).unwrap();
    server.restart();
    let mut c = server.client();
    c.refused("NOKEYRING", format!("KG.AUTH acme {raw}"));
    fs::write(server.keyring_file(), KEYRING).unwrap();
    server.restart();
    assert_eq!(auth(&mut server.client(), &raw, ""), "VALID");
}

fn a_digest_that_differs_in_one_byte_lets_nobody_in(sut: &Sut) {
    let (_server, mut c) = shop(sut);
    let (id, raw) = new_key(&mut c, "shop web");
    let record = format!("{{acme}}:key:{id}");
    let index = c.keys().into_iter().find(|key| contains(key, b":digest:")).expect("the key's digest");
    let digest = URL_SAFE_NO_PAD.decode(&index[b"{acme}:digest:".len()..]).expect("base64url");
    let packed = c.packed(&record);
    let at = packed.windows(digest.len()).position(|window| window == digest).expect("the digest in the record");
    // In the record: what the index leads to is not what it should be.
    for byte in 0..digest.len() {
        for bit in [0, 7] {
            let mut wrong = packed.clone();
            wrong[at + byte] ^= 1 << bit;
            c.set_packed(&record, wrong);
            c.refused("ERR", format!("KG.AUTH acme {raw}"));
        }
    }
    c.set_packed(&record, packed);
    assert_eq!(auth(&mut c, &raw, ""), "VALID");
    // In the index: nothing is found.
    for byte in 0..digest.len() {
        let mut wrong = digest.clone();
        wrong[byte] ^= 1;
        let elsewhere = format!("{{acme}}:digest:{}", URL_SAFE_NO_PAD.encode(wrong));
        c.ok(args!["RENAME", index, elsewhere]);
        assert_eq!(auth(&mut c, &raw, ""), "NOT_FOUND");
        c.ok(args!["RENAME", elsewhere, index]);
    }
    assert_eq!(auth(&mut c, &raw, ""), "VALID");
}

fn refused_calls_are_not_counted(sut: &Sut) {
    let (_server, mut c) = shop(sut);
    let (_, raw) = new_key(&mut c, "shop web LIMIT 3 500ms");
    for ask in [format!("KG.AUTH acme {raw}"), "KG.CLAIMIP acme 192.0.2.7 3 500ms PATH /login".to_owned()] {
        let first = c.ok(&ask).field("claimed_at_ms").int();
        assert_eq!([c.code(&ask), c.code(&ask)], ["VALID", "VALID"]);
        // Whoever asks without a pause has his turn all the same when the first is over.
        let again = eventually("room in the window", || {
            let map = c.ok(&ask);
            expect(map.field("code").text() == "VALID", || format!("{map:?}")).map(|()| map)
        });
        let at = again.field("claimed_at_ms").int();
        assert!(at >= first + 500, "{at} comes half a second after {first}");
    }
    let (_, raw) = new_key(&mut c, "shop slow LIMIT 3 1h");
    for ask in [format!("KG.AUTH acme {raw}"), "KG.CLAIMIP acme 192.0.2.8 3 1h".to_owned()] {
        assert_eq!([(); 3].map(|()| c.code(&ask)), ["VALID", "VALID", "VALID"]);
        let before = c.state();
        for _ in 0..20 {
            assert_eq!(c.code(&ask), "RATE_LIMITED");
        }
        assert_eq!(c.state(), before);
    }
}

fn two_calls_in_one_instant_are_two(sut: &Sut) {
    let (_server, mut c) = shop(sut);
    let (_, raw) = new_key(&mut c, "shop web LIMIT 1000000 1h");
    let claim = args!["KG.CLAIMIP", "acme", "192.0.2.7", "1000000", "1h"];
    for ask in [args!["KG.AUTH", "acme", raw], claim] {
        let mut last = 1_000_000;
        eventually("two in one millisecond", || {
            let maps = c.pipeline(&vec![ask.clone(); 32]);
            for map in &maps {
                let left = map.field("remaining").int();
                assert_eq!(left, last - 1, "each counts");
                last = left;
            }
            let times: Vec<i64> = maps.iter().map(|map| map.field("claimed_at_ms").int()).collect();
            expect(times.windows(2).any(|pair| pair[0] == pair[1]), || format!("{times:?}"))
        });
    }
}

fn windows_go_when_they_are_over(sut: &Sut) {
    let (_server, mut c) = shop(sut);
    c.ok("KG.SETORG acme shop LIMIT 1000 1h");
    let (id, raw) = new_key(&mut c, "shop web LIMIT 2 1h");
    let claim = "KG.CLAIMIP acme 192.0.2.7 2 1h PATH /login";
    let windows = [format!("{{acme}}:win:{id}"), "{acme}:orgwin:shop".to_owned(), "{acme}:ip:192.0.2.7".to_owned()];
    // Whatever happened to them: granted, refused, refused with an error.
    for _ in 0..4 {
        auth(&mut c, &raw, "");
        c.code(claim);
        c.refused("ERR", format!("KG.AUTH acme {raw} COST x"));
        c.refused("ERR", format!("{claim} LOCKOUT x"));
        for window in &windows {
            let left = c.ok(args!["PTTL", window]).int();
            assert!((HOUR - MINUTE..=DAY + HOUR).contains(&left), "{window} has {left} ms left");
        }
    }
    // What was refused from the start leaves none at all.
    let (other, raw) = new_key(&mut c, "shop web SCOPES read LIMIT 2 1h");
    assert_eq!(auth(&mut c, &raw, "COST 3"), "RATE_LIMITED");
    assert_eq!(auth(&mut c, &raw, "SCOPE write"), "INSUFFICIENT_SCOPE");
    c.ok("KG.BLOCKIP acme 192.0.2.8");
    assert_eq!(c.code("KG.CLAIMIP acme 192.0.2.8 2 1h"), "IP_BLOCKED");
    assert_eq!(c.ok(format!("EXISTS {{acme}}:win:{other} {{acme}}:ip:192.0.2.8")).int(), 0);
}

fn no_name_of_a_caller_meets_a_window_of_the_gate(sut: &Sut) {
    let (_server, mut c) = shop(sut);
    c.ok("KG.SETORG acme shop LIMIT 5 1h");
    let (id, raw) = new_key(&mut c, "shop web LIMIT 5 1h");
    assert_eq!(auth(&mut c, &raw, ""), "VALID");
    claim_ip(&mut c, "192.0.2.7 5 1h");
    let before = c.state();
    for window in [format!("{{acme}}:win:{id}"), "{acme}:orgwin:shop".to_owned(), "{acme}:ip:192.0.2.7".to_owned()] {
        c.refused("ERR", args!["KG.CLAIM", window, "5", "1h"]);
    }
    // An organization, an address and a path of one name have nothing in common.
    assert_eq!(c.state(), before);
    c.ok("KG.ADDORG acme 192.0.2.7 LIMIT 5 1h");
    let (_, namesake) = new_key(&mut c, "192.0.2.7 192.0.2.7");
    assert_eq!(c.ok(format!("KG.AUTH acme {namesake}")).field("remaining").int(), 4);
    assert_eq!(claim_ip(&mut c, "192.0.2.7 5 1h").field("remaining").int(), 3);
}
