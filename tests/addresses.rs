//! Addresses: who is kept out or let in, where, until when; and what an address may do without a key.

use crate::harness::{Client, Reply, Server, Sut, args, eventually, expect, now_ms, server_tests};

server_tests![
    a_network_is_kept_out_until_its_block_ends_or_is_taken_away,
    an_allow_rule_beats_every_block,
    a_rule_for_a_path_covers_whole_segments,
    a_block_ends_at_a_time_in_the_zone_of_the_store,
    an_end_that_is_no_time_is_refused,
    a_store_is_made_by_its_first_rule_alone,
    rules_are_listed_by_pages_that_survive_changes,
    a_hundred_thousand_rules_are_kept_and_asked,
    too_many_rules_are_refused,
    whoever_is_locked_out_of_many_paths_is_kept_out_all_the_same,
    too_many_failed_look_ups_block_an_address,
    nothing_but_an_unknown_key_counts_as_a_failure,
    a_flood_blocks_who_tries_too_often_and_nobody_else,
    ipv6_counts_and_is_blocked_by_64,
    the_store_s_threshold_comes_before_the_server_s,
    each_further_block_doubles,
    a_block_for_failures_survives_restarts_and_failovers,
    an_address_claims_within_its_limit,
    a_refused_claim_locks_the_address_out_of_the_path,
    a_refused_claim_locks_the_address_out_everywhere,
    an_address_has_a_window_for_each_of_256_paths,
    clearing_an_address_forgets_what_followed_on_its_own_doing,
    claims_and_lock_outs_are_the_same_everywhere,
    failures_are_forgotten_with_their_data,
    bad_arguments_change_nothing,
    full_memory_stops_claims_and_no_block,
];

const HOUR: i64 = 3_600_000;
const DAY: i64 = 24 * HOUR;

fn check(c: &mut Client, arguments: &str) -> String {
    c.code(format!("KG.CHECKIP acme {arguments}"))
}

/// Looks up a key that does not exist.
fn fail(c: &mut Client, address: &str) -> String {
    c.code(format!("KG.AUTH acme kg_live_nobody IP {address}"))
}

/// All rules, as `net kind path`, page by page.
fn rules(c: &mut Client, count: usize) -> Vec<String> {
    let (mut cursor, mut all) = ("0".to_owned(), Vec::new());
    loop {
        let page = c.ok(args!["KG.LISTIPS", "acme", "CURSOR", cursor, "COUNT", count]);
        let listed = page.list()[1].list();
        assert!(listed.len() <= count);
        all.extend(listed.iter().map(|rule| {
            let path = rule.get("path").map_or(String::new(), |path| path.text());
            format!("{} {} {path}", rule.field("rule").text(), rule.field("kind").text()).trim_end().to_owned()
        }));
        cursor = page.list()[0].text();
        if cursor == "0" {
            return all;
        }
    }
}

fn a_network_is_kept_out_until_its_block_ends_or_is_taken_away(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    assert_eq!(c.ok("KG.BLOCKIP acme 192.0.2.0/24 1h REASON scan").text(), "OK");
    c.ok("KG.BLOCKIP acme 2001:db8::/32");
    c.ok("KG.BLOCKIP acme 203.0.113.7 50ms");
    let blocked = c.ok("KG.CHECKIP acme 192.0.2.77");
    assert_eq!(blocked.field("code").text(), "IP_BLOCKED");
    assert_eq!([blocked.field("rule").text(), blocked.field("reason").text()], ["192.0.2.0/24", "scan"]);
    assert!((HOUR - 60_000..=HOUR).contains(&blocked.field("retry_after_ms").int()));
    assert_eq!([blocked.get("failures"), blocked.get("path"), blocked.get("strikes")], [None, None, None]);
    let for_good = c.ok("KG.CHECKIP acme 2001:db8:1:2:3::4");
    assert_eq!(for_good.field("rule").text(), "2001:db8::/32");
    assert_eq!([for_good.get("retry_after_ms"), for_good.get("reason")], [None, None]);
    assert_eq!([check(&mut c, "192.0.3.1"), check(&mut c, "::ffff:192.0.2.1")], ["VALID", "IP_BLOCKED"]);
    eventually("the end of the short block", || {
        let code = check(&mut c, "203.0.113.7");
        expect(code == "VALID", || code)
    });
    assert_eq!(c.ok("KG.UNBLOCKIP acme 192.0.2.0/25").int(), 0);
    assert_eq!(c.ok("KG.UNBLOCKIP acme 192.0.2.0/24 PATH /x").int(), 0);
    assert_eq!(c.ok("KG.UNBLOCKIP acme 192.0.2.0/24").int(), 1);
    assert_eq!(c.ok("KG.UNBLOCKIP acme 192.0.2.0/24").int(), 0);
    assert_eq!(check(&mut c, "192.0.2.77"), "VALID");
    // A rule takes the place of the one before.
    c.ok("KG.BLOCKIP acme 192.0.2.9 1h REASON one");
    c.ok("KG.BLOCKIP acme 192.0.2.9 2h");
    let second = c.ok("KG.CHECKIP acme 192.0.2.9");
    assert!(second.field("retry_after_ms").int() > HOUR && second.get("reason").is_none());
}

fn an_allow_rule_beats_every_block(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    c.ok("KG.ADDORG acme shop");
    let raw = c.ok("KG.NEWKEY acme shop web").list()[1].text();
    c.ok("KG.BLOCKIP acme 192.0.2.7");
    c.ok("KG.BLOCKIP acme 192.0.0.0/16 1h");
    assert_eq!(c.ok("KG.ALLOWIP acme 192.0.2.0/24 1h REASON office").text(), "OK");
    let allowed = c.ok("KG.CHECKIP acme 192.0.2.7");
    assert_eq!(allowed.field("code").text(), "VALID");
    assert_eq!([allowed.field("allowed").text(), allowed.field("reason").text()], ["192.0.2.0/24", "office"]);
    assert_eq!(allowed.get("rule"), None);
    assert_eq!(c.code(format!("KG.AUTH acme {raw} IP 192.0.2.7")), "VALID");
    assert_eq!(c.code(format!("KG.AUTH acme {raw} IP 192.0.3.7")), "IP_BLOCKED");
    for _ in 0..3 {
        let claimed = c.ok("KG.CLAIMIP acme 192.0.2.7 1 1h LOCKOUT 1h EVERYWHERE");
        assert_eq!(claimed.field("code").text(), "VALID");
        assert_eq!(claimed.field("allowed").text(), "192.0.2.0/24");
    }
    assert_eq!(c.ok("EXISTS {acme}:ip:192.0.2.7").int(), 0, "nothing was counted");
    assert_eq!(c.ok("KG.UNALLOWIP acme 192.0.2.0/24").int(), 1);
    assert_eq!(c.ok("KG.UNALLOWIP acme 192.0.2.0/24").int(), 0);
    assert_eq!(check(&mut c, "192.0.2.7"), "IP_BLOCKED");
    // An IPv6 address is let in alone, out of a /64 that is not.
    c.ok("KG.BLOCKIP acme 2001:db8::7");
    c.ok("KG.ALLOWIP acme 2001:db8::7");
    assert_eq!(["2001:db8::7", "2001:db8::8"].map(|address| check(&mut c, address)), ["VALID", "IP_BLOCKED"]);
    assert_eq!(c.ok("KG.UNALLOWIP acme 2001:db8::7").int(), 1);
}

fn a_rule_for_a_path_covers_whole_segments(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    c.ok("KG.BLOCKIP acme 192.0.2.7 1h PATH /api/");
    c.ok("KG.ALLOWIP acme 192.0.2.7 PATH /api/health?x=1");
    c.ok("KG.BLOCKIP acme 192.0.2.8 PATH /");
    for (arguments, code) in [
        ("192.0.2.7", "VALID"),
        ("192.0.2.7 PATH /", "VALID"),
        ("192.0.2.7 PATH /api", "IP_BLOCKED"),
        ("192.0.2.7 PATH /api/", "IP_BLOCKED"),
        ("192.0.2.7 PATH /api//v1?q", "IP_BLOCKED"),
        ("192.0.2.7 PATH //api/v1", "IP_BLOCKED"),
        ("192.0.2.7 PATH /apiary", "VALID"),
        ("192.0.2.7 PATH /v1/api", "VALID"),
        ("192.0.2.7 PATH /api/health/db", "VALID"),
        ("192.0.2.7 PATH /api/healthy", "IP_BLOCKED"),
        ("192.0.2.8 PATH /", "IP_BLOCKED"),
        ("192.0.2.8 PATH /any/thing", "IP_BLOCKED"),
        ("192.0.2.8", "VALID"),
    ] {
        assert_eq!(check(&mut c, arguments), code, "{arguments}");
    }
    assert_eq!(c.ok("KG.CHECKIP acme 192.0.2.7 PATH /api/v1/x").field("path").text(), "/api");
    // With one for everywhere beside it, each has its own life.
    c.ok("KG.BLOCKIP acme 192.0.2.7");
    let all = ["192.0.2.7 allow /api/health", "192.0.2.7 block", "192.0.2.7 block /api", "192.0.2.8 block /"];
    assert_eq!(rules(&mut c, 10), all);
    assert_eq!(c.ok("KG.UNBLOCKIP acme 192.0.2.7 PATH /api/").int(), 1);
    assert_eq!(check(&mut c, "192.0.2.7 PATH /other"), "IP_BLOCKED");
    assert_eq!(c.ok("KG.UNALLOWIP acme 192.0.2.7 PATH /api/health").int(), 1);
    assert_eq!(rules(&mut c, 10), ["192.0.2.7 block", "192.0.2.8 block /"]);
}

fn a_block_ends_at_a_time_in_the_zone_of_the_store(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    c.ok("KG.ADDORG acme shop");
    for (zone, offset_ms) in [("", 0), ("Asia/Kathmandu", 20_700_000), ("Asia/Tokyo", 9 * HOUR)] {
        if !zone.is_empty() {
            c.ok(args!["HSET", "acme", "tz", zone]);
        }
        for (time, of_day_ms) in
            [("16:00", 16 * HOUR), ("4:30 PM", 16 * HOUR + HOUR / 2), ("12 am", 0), ("09:15:30", 9 * HOUR + 930_000)]
        {
            let before = now_ms();
            c.ok(args!["KG.BLOCKIP", "acme", "192.0.2.7", "UNTIL", time]);
            let end = c.ok("KG.LISTIPS acme").list()[1].list()[0].field("expires_at").int();
            assert!((before..=now_ms() + DAY).contains(&end), "{time} in {zone:?} lies within a day");
            assert_eq!((end + offset_ms - of_day_ms).rem_euclid(DAY), 0, "{time} in {zone:?}");
        }
    }
    c.ok("KG.BLOCKIP acme 192.0.2.7 UNTIL 2100-01-01T00:00:00+01:00");
    assert_eq!(c.ok("KG.LISTIPS acme").list()[1].list()[0].field("expires_at").int(), 4_102_441_200_000);
    c.ok("KG.ALLOWIP acme 192.0.2.7 UNTIL 4102444800");
    assert_eq!(c.ok("KG.LISTIPS acme").list()[1].list()[0].field("expires_at").int(), 4_102_444_800_000);
    c.ok(args!["HSET", "acme", "tz", "Mars/Olympus"]);
    assert!(c.err("KG.BLOCKIP acme 192.0.2.7 UNTIL 16:00").starts_with("ERR damaged header"));
}

fn an_end_that_is_no_time_is_refused(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    c.ok("KG.ADDORG acme shop");
    let before = c.state();
    let past = (now_ms() / 1000 - 1).to_string();
    for bad in
        ["30 minutes", "30m", "noon", "25:00", "16", "0", "13 PM", "", "2020-01-01T00:00:00Z", "2100-01-01", &past]
    {
        for command in ["KG.BLOCKIP", "KG.ALLOWIP"] {
            let text = c.refused("ERR", args![command, "acme", "192.0.2.7", "UNTIL", bad]);
            assert!(text.contains("UNTIL"), "{bad}: {text}");
        }
        c.refused("ERR", args!["KG.CLAIMIP", "acme", "192.0.2.7", "1", "1h", "LOCKOUT", "UNTIL", bad]);
    }
    for bad in ["30 minutes", "0", "-1", "1w", "367d"] {
        c.refused("ERR", args!["KG.BLOCKIP", "acme", "192.0.2.7", bad]);
        c.refused("ERR", args!["KG.CLAIMIP", "acme", "192.0.2.7", "1", "1h", "LOCKOUT", bad]);
    }
    assert_eq!(c.state(), before);
}

fn a_store_is_made_by_its_first_rule_alone(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    for command in [
        "KG.UNBLOCKIP acme 192.0.2.7",
        "KG.UNALLOWIP acme 192.0.2.7",
        "KG.LISTIPS acme",
        "KG.CHECKIP acme 192.0.2.7",
        "KG.CLAIMIP acme 192.0.2.7 1 1h",
        "KG.CLEARIP acme 192.0.2.7",
    ] {
        c.refused("NOSTORE", command);
    }
    assert_eq!(c.ok("DBSIZE").int(), 0);
    c.ok("KG.ALLOWIP acme 192.0.2.7");
    assert_eq!(rules(&mut c, 10), ["192.0.2.7 allow"]);
    assert_eq!(c.ok("KG.UNALLOWIP acme 192.0.2.7").int(), 1);
    assert_eq!(c.ok("EXISTS acme {acme}:ips").int(), 1, "the header stays");
    assert!(rules(&mut c, 10).is_empty());
}

fn rules_are_listed_by_pages_that_survive_changes(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client().resp3();
    let mut expected = Vec::new();
    let mut batch = Vec::new();
    for n in 0..1_200 {
        let net = format!("10.{}.{}.0/24", n / 256, n % 256);
        batch.push(args!["KG.BLOCKIP", "acme", net]);
        expected.push(format!("{net} block"));
        if n % 100 == 0 {
            batch.push(args!["KG.BLOCKIP", "acme", net, "1h", "PATH", "/a,b c"]);
            expected.push(format!("{net} block /a,b c"));
        }
    }
    batch.push(args!["KG.ALLOWIP", "acme", "2001:db8::1"]);
    expected.push("2001:db8::1/128 allow".to_owned());
    batch.push(args!["KG.BLOCKIP", "acme", "203.0.113.9", "1ms"]);
    assert!(c.pipeline(&batch).iter().all(|reply| !reply.is_error()));
    eventually("the end of the shortest rule", || {
        let code = check(&mut c, "203.0.113.9");
        expect(code == "VALID", || code)
    });
    for count in [1_000, 100, 7, 1] {
        assert_eq!(rules(&mut c, count), expected, "by {count}");
    }
    assert_eq!(c.ok("KG.LISTIPS acme").list()[1].list().len(), 100, "without a count");
    // The rule that the cursor stands for goes, and others come before and behind it.
    let first = c.ok("KG.LISTIPS acme COUNT 10");
    c.ok("KG.UNBLOCKIP acme 10.0.8.0/24");
    c.ok("KG.BLOCKIP acme 9.9.9.9");
    c.ok("KG.BLOCKIP acme 10.0.8.128/25");
    let second = c.ok(args!["KG.LISTIPS", "acme", "COUNT", "3", "CURSOR", first.list()[0].text()]);
    let nets: Vec<String> = second.list()[1].list().iter().map(|rule| rule.field("rule").text()).collect();
    assert_eq!(nets, ["10.0.8.128/25", "10.0.9.0/24", "10.0.10.0/24"]);
    for bad in ["", "x", "10.0.0.0/8", "10.0.0.0/8,none", "-1"] {
        c.refused("ERR", args!["KG.LISTIPS", "acme", "CURSOR", bad]);
    }
    for bad in ["0", "1001", "-1", "x", ""] {
        c.refused("ERR", args!["KG.LISTIPS", "acme", "COUNT", bad]);
    }
}

/// Sends commands in batches.
fn all_ok(c: &mut Client, commands: impl Iterator<Item = Vec<Vec<u8>>>) {
    let commands: Vec<_> = commands.collect();
    for batch in commands.chunks(5_000) {
        let replies = c.pipeline(batch);
        assert!(replies.iter().all(|reply| !reply.is_error()), "{:?}", replies.iter().find(|reply| reply.is_error()));
    }
}

/// An address of 10.0.0.0/8.
fn numbered(n: u32) -> String {
    std::net::Ipv4Addr::from_bits(0x0a00_0000 + n).to_string()
}

fn a_hundred_thousand_rules_are_kept_and_asked(sut: &Sut) {
    let mut server = sut.server();
    let mut c = server.client();
    all_ok(&mut c, (0..100_000).map(|n| args!["KG.BLOCKIP", "acme", numbered(n * 2), "1h"]));
    for n in [0, 1, 49_999, 99_999] {
        assert_eq!(check(&mut c, &numbered(n * 2)), "IP_BLOCKED");
        assert_eq!(check(&mut c, &numbered(n * 2 + 1)), "VALID");
    }
    let digest = c.ok("DEBUG DIGEST-VALUE {acme}:ips").list()[0].text();
    let bytes = c.ok("MEMORY USAGE {acme}:ips").int();
    assert!(bytes < 200 * 100_000, "{bytes} bytes");
    c.ok("SAVE");
    server.restart();
    let mut c = server.client();
    assert_eq!(c.ok("DEBUG DIGEST-VALUE {acme}:ips").list()[0].text(), digest);
    assert_eq!(check(&mut c, &numbered(199_998)), "IP_BLOCKED");
    all_ok(&mut c, (0..100_000).map(|n| args!["KG.UNBLOCKIP", "acme", numbered(n * 2)]));
    assert_eq!(c.ok("EXISTS {acme}:ips").int(), 0);
}

fn whoever_is_locked_out_of_many_paths_is_kept_out_all_the_same(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    c.ok("KG.SETSTORE acme IPTHRESHOLD 2");
    for n in 0..70 {
        for _ in 0..2 {
            c.ok(format!("KG.CLAIMIP acme 192.0.2.7 1 1h PATH /{n} LOCKOUT 1h"));
        }
    }
    let said = |server: &Server| server.log().matches("192.0.2.7 is not kept out: TOOMANY").count();
    assert_eq!(said(&server), 1, "the log does not grow with what strangers ask for");
    // Operators still have room for paths, and everywhere there is always room.
    c.ok("KG.BLOCKIP acme 192.0.2.7 PATH /by/hand");
    for _ in 0..3 {
        assert_eq!(c.code("KG.AUTH acme stranger IP 192.0.2.7"), "NOT_FOUND");
    }
    assert_eq!(c.code("KG.AUTH acme stranger IP 192.0.2.7"), "IP_BLOCKED");
    c.ok("KG.ALLOWIP acme 192.0.2.7");
    assert_eq!(check(&mut c, "192.0.2.7 PATH /1"), "VALID");
    let dump = c.ok("DUMP {acme}:ips");
    c.ok(args!["RESTORE", "{acme}:ips", 0, dump.bytes(), "REPLACE"]);
}

fn too_many_rules_are_refused(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    all_ok(&mut c, (0..64).map(|n| args!["KG.BLOCKIP", "acme", "192.0.2.7", "PATH", format!("/{n}")]));
    let before = c.state();
    c.refused("TOOMANY", "KG.BLOCKIP acme 192.0.2.7 PATH /64");
    c.refused("TOOMANY", "KG.ALLOWIP acme 192.0.2.7 PATH /x");
    assert_eq!(c.state(), before);
    c.ok("KG.BLOCKIP acme 192.0.2.7 PATH /63");
    assert_eq!(c.ok("KG.UNBLOCKIP acme 192.0.2.7 PATH /63").int(), 1);
    c.ok("KG.BLOCKIP acme 192.0.2.7");
}

/// A server on which three failures are one too many, and a block lasts an hour.
fn strict(sut: &Sut) -> Server {
    let server = sut.server();
    let mut c = server.client();
    c.ok("CONFIG SET keyguard.ip-block-threshold 2");
    c.ok("CONFIG SET keyguard.ip-block-duration 1h");
    c.ok("KG.ADDORG acme shop");
    server
}

fn too_many_failed_look_ups_block_an_address(sut: &Sut) {
    let server = strict(sut);
    let mut c = server.client();
    let raw = c.ok("KG.NEWKEY acme shop web").list()[1].text();
    c.ok("CONFIG SET notify-keyspace-events KEA");
    let mut listener = server.client();
    listener.ok("SUBSCRIBE __keyevent@0__:kg.block");
    for n in 1..=2 {
        assert_eq!(fail(&mut c, "192.0.2.7"), "NOT_FOUND");
        let checked = c.ok("KG.CHECKIP acme 192.0.2.7");
        assert_eq!((checked.field("code").text().as_str(), checked.field("failures").int()), ("VALID", n));
    }
    assert_eq!(c.info_number("keyguard", "keyguard_addresses_failing"), 1);
    assert_eq!(c.info_number("keyguard", "keyguard_automatic_blocks"), 0);
    assert_eq!(fail(&mut c, "192.0.2.7"), "NOT_FOUND", "the third, and the last that is answered");
    assert_eq!(fail(&mut c, "192.0.2.7"), "IP_BLOCKED");
    assert_eq!(c.code(format!("KG.AUTH acme {raw} IP 192.0.2.7")), "IP_BLOCKED");
    assert_eq!(c.code(format!("KG.AUTH acme {raw} IP 192.0.2.8")), "VALID");
    let blocked = c.ok("KG.CHECKIP acme 192.0.2.7");
    assert_eq!([blocked.field("rule").text(), blocked.field("by").text()], ["192.0.2.7", "failures"]);
    assert_eq!(blocked.field("strikes").int(), 1);
    assert!((HOUR - 60_000..=HOUR).contains(&blocked.field("retry_after_ms").int()));
    assert_eq!(blocked.get("failures"), None, "counted anew");
    assert_eq!(listener.receive().list()[2].text(), "{acme}:ips");
    assert_eq!(c.info_number("keyguard", "keyguard_addresses_failing"), 0);
    assert_eq!(c.info_number("keyguard", "keyguard_automatic_blocks"), 1);
    assert!(server.log().contains("192.0.2.7 is kept out for 60 min"), "one line says so");
    assert_eq!(c.ok("KG.UNBLOCKIP acme 192.0.2.7").int(), 1);
    assert_eq!(fail(&mut c, "192.0.2.7"), "NOT_FOUND");
}

fn nothing_but_an_unknown_key_counts_as_a_failure(sut: &Sut) {
    let server = strict(sut);
    let mut c = server.client();
    let new = |c: &mut Client, arguments: &str| {
        let reply = c.ok(format!("KG.NEWKEY acme {arguments}"));
        (reply.list()[0].int(), reply.list()[1].text())
    };
    let (_, good) = new(&mut c, "shop good");
    let (_, limited) = new(&mut c, "shop limited LIMIT 1 1h");
    let (_, expired) = new(&mut c, "shop expired EXPIREAT 1");
    let (id, revoked) = new(&mut c, "shop revoked");
    c.ok(args!["KG.REVOKE", "acme", id]);
    c.ok("KG.ADDORG acme lab");
    let (_, suspended) = new(&mut c, "lab suspended");
    c.ok("KG.SETORG acme lab STATUS suspended");
    c.ok("KG.BLOCKIP acme 192.0.2.9");
    c.ok("KG.ALLOWIP acme 192.0.2.10");
    assert_eq!(c.code(format!("KG.AUTH acme {limited} IP 192.0.2.7")), "VALID");
    for _ in 0..5 {
        for (arguments, code) in [
            (format!("{good} IP 192.0.2.7"), "VALID"),
            (format!("{good} IP 192.0.2.7 SCOPE read"), "INSUFFICIENT_SCOPE"),
            (format!("{limited} IP 192.0.2.7"), "RATE_LIMITED"),
            (format!("{expired} IP 192.0.2.7"), "EXPIRED"),
            (format!("{revoked} IP 192.0.2.7"), "DISABLED"),
            (format!("{suspended} IP 192.0.2.7"), "ORG_SUSPENDED"),
            ("kg_live_nobody".to_owned(), "NOT_FOUND"),
            ("kg_live_nobody IP 192.0.2.9".to_owned(), "IP_BLOCKED"),
            ("kg_live_nobody IP 192.0.2.10".to_owned(), "NOT_FOUND"),
        ] {
            assert_eq!(c.code(format!("KG.AUTH acme {arguments}")), code, "{arguments}");
        }
        c.call(args!["KG.AUTH", "acme", "", "IP", "192.0.2.7"]);
        assert_eq!(c.code("KG.CHECK acme kg_live_nobody IP 192.0.2.7"), "NOT_FOUND");
        c.err("KG.AUTH acme kg_live_nobody IP 192.0.2.7 SCOPE");
        c.err("KG.AUTH nobody kg_live_nobody IP 192.0.2.7");
    }
    for address in ["192.0.2.7", "192.0.2.9", "192.0.2.10"] {
        assert_eq!(c.ok(args!["KG.CHECKIP", "acme", address]).get("failures"), None, "{address}");
    }
    // Another store counts for itself.
    c.ok("KG.ADDORG zeta shop");
    fail(&mut c, "192.0.2.7");
    assert_eq!(c.ok("KG.CHECKIP zeta 192.0.2.7").get("failures"), None);
    c.ok("CONFIG SET keyguard.ip-block-threshold 0");
    for _ in 0..10 {
        assert_eq!(fail(&mut c, "192.0.2.7"), "NOT_FOUND", "nobody is blocked");
    }
}

/// A key that has the form of one, checksum included, and this body of 43 characters.
fn well_formed(body: &str) -> String {
    const DIGITS: &[u8] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    static CRC: crc::Crc<u32> = crc::Crc::<u32>::new(&crc::CRC_32_ISO_HDLC);
    let mut raw = format!("kg_live_{body}");
    let mut sum = CRC.checksum(raw.as_bytes());
    let checksum = [(); 6].map(|()| {
        let digit = DIGITS[sum as usize % DIGITS.len()];
        sum /= DIGITS.len() as u32;
        char::from(digit)
    });
    raw.extend(checksum.into_iter().rev());
    raw
}

fn a_flood_blocks_who_tries_too_often_and_nobody_else(sut: &Sut) {
    use rand::{RngExt, distr::Alphanumeric};
    const FLOOD: usize = 100_000;
    /// How many addresses the server counts failures of, and what that takes.
    const COUNTED: i64 = 65_536;
    const TABLE_BYTES: i64 = COUNTED * 40;
    /// Two rules, the windows of the good keys, and what this connection's commands and replies stand in.
    const OTHER_BYTES: i64 = 128 * 1024;
    /// How many addresses of the flood come between two tries of each that tries too often.
    const BETWEEN: usize = 900;

    let server = sut.server();
    let mut c = server.client();
    c.ok("KG.ADDORG acme shop");
    let raw = c.ok("KG.NEWKEY acme shop web").list()[1].text();
    let body = &raw["kg_live_".len()..raw.len() - 6];
    assert_eq!(well_formed(body), raw);
    // A key that is right but for one character, and yet well formed.
    let near = |n: usize| {
        let at = n % body.len();
        let other = if body.as_bytes()[at] == b'x' { "y" } else { "x" };
        well_formed(&format!("{}{other}{}", &body[..at], &body[at + 1..]))
    };
    let flooding = |n: usize| {
        if n.is_multiple_of(2) { numbered(n as u32) } else { format!("2001:db8:{:x}:{:x}::1", n >> 16, n & 0xffff) }
    };
    let ask = |raw: &str, address: &str| args!["KG.AUTH", "acme", raw, "IP", address];
    let all = |c: &mut Client, code: &str, asked: &[Vec<Vec<u8>>]| {
        let replies = c.pipeline(asked);
        let other = replies.iter().find(|map| map.field("code").text() != code);
        assert!(other.is_none(), "{code} expected: {other:?}");
    };
    c.ok("KG.CHECKIP acme 192.0.2.7");
    let before_bytes = c.info_number("memory", "used_memory");

    // One tries from the start; the other, from all over an IPv6 network, when there are more who fail than can be counted.
    let [early, late] = [|_: usize| "192.0.2.7".to_owned(), |n: usize| format!("2001:db8:ffff:1::{n:x}")];
    let mut tries = [0, 0];
    let mut attempt = |c: &mut Client, which: usize, times: usize| {
        for _ in 0..times.min(101 - tries[which]) {
            let address = [&early as &dyn Fn(usize) -> String, &late][which](tries[which]);
            all(c, "NOT_FOUND", &[ask(&near(tries[which]), &address)]);
            tries[which] += 1;
        }
        tries[which]
    };
    let mut random = rand::rng();
    let mut most = 0;
    for first in (0..FLOOD).step_by(BETWEEN) {
        // The second failure comes at once: an address with one alone may make room for others.
        attempt(&mut c, 0, if first == 0 { 2 } else { 1 });
        if first >= FLOOD * 4 / 5 {
            attempt(&mut c, 1, 6);
        }
        let mut guess = || -> String { (0..43).map(|_| char::from(random.sample(Alphanumeric))).collect() };
        let flood: Vec<_> =
            (first..FLOOD.min(first + BETWEEN)).map(|n| ask(&well_formed(&guess()), &flooding(n))).collect();
        all(&mut c, "NOT_FOUND", &flood);
        // Those who have a key go in and out, also where others failed.
        all(&mut c, "VALID", &[ask(&raw, "198.51.100.7"), ask(&raw, &flooding(first)), ask(&raw, "2001:db8:aaaa::7")]);
        let counted = c.info_number("keyguard", "keyguard_addresses_failing");
        assert!(counted <= COUNTED, "{counted} addresses");
        most = most.max(counted);
    }
    assert!(most > COUNTED * 9 / 10, "the flood filled the table: {most}");
    assert_eq!([attempt(&mut c, 0, 101), attempt(&mut c, 1, 101)], [101, 101], "up to the threshold, exactly");
    let grown = c.info_number("memory", "used_memory") - before_bytes;
    assert!((TABLE_BYTES..=TABLE_BYTES + OTHER_BYTES).contains(&grown), "{grown} bytes more");

    assert_eq!(rules(&mut c, 10), ["192.0.2.7 block", "2001:db8:ffff:1::/64 block"]);
    assert_eq!(c.info_number("keyguard", "keyguard_automatic_blocks"), 2);
    all(&mut c, "IP_BLOCKED", &[ask(&raw, "192.0.2.7"), ask(&near(0), "192.0.2.7"), ask(&raw, "2001:db8:ffff:1::7")]);
    let every: Vec<_> = (0..FLOOD).step_by(97).map(|n| ask(&raw, &flooding(n))).collect();
    all(&mut c, "VALID", &every);
}

fn ipv6_counts_and_is_blocked_by_64(sut: &Sut) {
    let server = strict(sut);
    let mut c = server.client();
    for host in [":1", ":2:3", "ffff:ffff:ffff:ffff"] {
        assert_eq!(fail(&mut c, &format!("2001:db8:0:7:{host}")), "NOT_FOUND");
    }
    assert_eq!(fail(&mut c, "2001:db8:0:7::9"), "IP_BLOCKED");
    assert_eq!(c.ok("KG.CHECKIP acme 2001:db8:0:7::9").field("rule").text(), "2001:db8:0:7::/64");
    assert_eq!(fail(&mut c, "2001:db8:0:8::9"), "NOT_FOUND");
    for address in ["::ffff:192.0.2.7", "192.0.2.7", "::ffff:c000:207"] {
        assert_eq!(fail(&mut c, address), "NOT_FOUND");
    }
    assert_eq!(c.ok("KG.CHECKIP acme 192.0.2.7").field("rule").text(), "192.0.2.7");
    // Claims likewise.
    for (address, remaining) in [("2001:db8:0:9::1", 1), ("2001:db8:0:9::2", 0)] {
        assert_eq!(c.ok(args!["KG.CLAIMIP", "acme", address, "2", "1h"]).field("remaining").int(), remaining);
    }
    assert_eq!(c.code("KG.CLAIMIP acme 2001:db8:0:9::3 2 1h LOCKOUT 1h"), "RATE_LIMITED");
    assert_eq!(check(&mut c, "2001:db8:0:9::4"), "IP_BLOCKED");
    assert_eq!(check(&mut c, "2001:db8:0:a::4"), "VALID");
}

fn the_store_s_threshold_comes_before_the_server_s(sut: &Sut) {
    let server = strict(sut);
    let mut c = server.client();
    c.ok("HSET acme ip_threshold 4");
    for _ in 0..5 {
        assert_eq!(fail(&mut c, "192.0.2.7"), "NOT_FOUND");
    }
    assert_eq!(fail(&mut c, "192.0.2.7"), "IP_BLOCKED");
    c.ok("HSET acme ip_threshold 0");
    for _ in 0..5 {
        assert_eq!(fail(&mut c, "192.0.2.8"), "NOT_FOUND");
    }
    assert_eq!(c.ok("KG.CHECKIP acme 192.0.2.8").get("failures"), None);
    c.ok("HSET acme ip_threshold many");
    assert!(c.err("KG.AUTH acme kg_live_nobody IP 192.0.2.8").starts_with("ERR damaged header"));
    // What the settings accept.
    for bad in ["-1", "60001", "x"] {
        c.err(args!["CONFIG", "SET", "keyguard.ip-block-threshold", bad]);
    }
    for bad in ["0s", "31d", "60", "x", ""] {
        c.err(args!["CONFIG", "SET", "keyguard.ip-block-duration", bad]);
    }
    let setup = sut.setup().module_arguments(&["ip-block-threshold", "7", "ip-block-duration", "2h"]);
    let other = setup.start();
    let mut c = other.client();
    let setting = |c: &mut Client, name: &str| c.ok(args!["CONFIG", "GET", name]).get(name).map(|value| value.text());
    assert_eq!(setting(&mut c, "keyguard.ip-block-threshold").as_deref(), Some("7"));
    assert_eq!(setting(&mut c, "keyguard.ip-block-duration").as_deref(), Some("2h"));
}

fn each_further_block_doubles(sut: &Sut) {
    let server = strict(sut);
    let mut c = server.client();
    c.ok("CONFIG SET keyguard.ip-block-duration 1s");
    for (strikes, lasts_ms) in [(1, 1_000), (2, 2_000), (3, 4_000)] {
        let before = now_ms();
        for _ in 0..3 {
            assert_eq!(fail(&mut c, "192.0.2.7"), "NOT_FOUND");
        }
        let rule = c.ok("KG.LISTIPS acme").list()[1].list()[0].clone();
        assert_eq!(rule.field("strikes").int(), strikes);
        let end = rule.field("expires_at").int();
        assert!((before + lasts_ms..=now_ms() + lasts_ms).contains(&end), "block {strikes}");
        if strikes < 3 {
            eventually("the end of the block", || {
                let code = check(&mut c, "192.0.2.7");
                expect(code == "VALID", || code)
            });
            assert!(rules(&mut c, 10).is_empty(), "what has ended is not listed, and remembered");
        }
    }
}

fn a_block_for_failures_survives_restarts_and_failovers(sut: &Sut) {
    for appendonly in ["no", "yes"] {
        let setup = sut.setup().with("appendonly", appendonly);
        let mut server = setup.start();
        let mut c = server.client();
        c.ok("KG.ADDORG acme shop");
        let replica = sut.setup().replica_of(&server).start();
        server.wait_for(&replica);
        c.ok("CONFIG SET keyguard.ip-block-threshold 2");
        for _ in 0..3 {
            fail(&mut c, "192.0.2.7");
        }
        let rule = c.ok("KG.LISTIPS acme").list()[1].list()[0].clone();
        let lasts = rule.field("expires_at").int() - now_ms();
        assert!((DAY - 60_000..=DAY).contains(&lasts), "24 hours unless set, not {lasts} ms");
        server.wait_for(&replica);
        let before = c.state();
        assert_eq!(replica.client().state(), before);
        assert_eq!(replica.client().code("KG.CHECKIP acme 192.0.2.7"), "IP_BLOCKED");
        if appendonly == "no" {
            // The replica may still be getting its file.
            c.wait_for_background_work();
            c.ok("SAVE");
        }
        server.restart();
        let mut c = server.client();
        assert_eq!(c.state(), before, "appendonly {appendonly}");
        let mut promoted = replica.client();
        promoted.ok("REPLICAOF NO ONE");
        assert_eq!(fail(&mut promoted, "192.0.2.7"), "IP_BLOCKED");
        let listed = promoted.ok("KG.LISTIPS acme").list()[1].list()[0].clone();
        assert_eq!((listed.field("strikes").int(), listed.field("by").text().as_str()), (1, "failures"));
    }
}

fn an_address_claims_within_its_limit(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client().resp3();
    c.ok("KG.ADDORG acme shop");
    let mut claimed_at = Vec::new();
    for remaining in [2, 1, 0] {
        let before = now_ms();
        let map = c.ok("KG.CLAIMIP acme 192.0.2.7 3 1h");
        assert_eq!(map.field("code").text(), "VALID");
        assert_eq!([map.field("limit").int(), map.field("remaining").int()], [3, remaining]);
        assert_eq!([map.field("window_ms").int(), map.field("reset_after_ms").int()], [HOUR, HOUR]);
        assert_eq!([map.get("retry_after_ms"), map.get("limited_by"), map.get("allowed")], [None, None, None]);
        claimed_at.push(map.field("claimed_at_ms").int());
        assert!((before..=now_ms()).contains(claimed_at.last().unwrap()));
    }
    let before = c.state();
    let refused = c.ok("KG.CLAIMIP acme 192.0.2.7 3 1h");
    assert_eq!([refused.field("code").text(), refused.field("limited_by").text()], ["RATE_LIMITED", "address"]);
    assert_eq!([refused.field("limit").int(), refused.field("remaining").int()], [3, 0]);
    let retry = refused.field("retry_after_ms").int();
    assert!((claimed_at[0] + HOUR - now_ms()..=HOUR).contains(&retry));
    assert_eq!(refused.get("claimed_at_ms"), None);
    assert_eq!(c.state(), before, "a refusal without LOCKOUT changes nothing");
    assert_eq!(c.code("KG.CLAIMIP acme 192.0.2.8 3 1h"), "VALID", "another address");
    assert_eq!(c.code("KG.CLAIMIP acme 192.0.2.7 3 1h PATH /login"), "VALID", "a path has its own count");
    assert_eq!(c.ok("KG.CLAIMIP acme 192.0.2.7 3 1h PATH /login/?next=x").field("remaining").int(), 1);
    // The window slides, to the millisecond.
    let first = c.ok("KG.CLAIMIP acme 192.0.2.9 1 200ms").field("claimed_at_ms").int();
    let again = eventually("room in the window", || {
        let map = c.ok("KG.CLAIMIP acme 192.0.2.9 1 200ms");
        expect(map.field("code").text() == "VALID", || format!("{map:?}")).map(|()| map)
    });
    assert!(again.field("claimed_at_ms").int() >= first + 200);
    let ttl = c.ok("PEXPIRETIME {acme}:ip:192.0.2.7").int();
    assert!((claimed_at[2] + HOUR + 1000..=now_ms() + HOUR + 1000).contains(&ttl));
    c.refused("ERR", "KG.CLAIM {acme}:ip:192.0.2.7 1 1h");
}

fn a_refused_claim_locks_the_address_out_of_the_path(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    c.ok("KG.ADDORG acme shop");
    let raw = c.ok("KG.NEWKEY acme shop web").list()[1].text();
    let claim = "KG.CLAIMIP acme 192.0.2.7 2 1s PATH /login LOCKOUT 30m";
    assert_eq!([c.code(claim), c.code(claim)], ["VALID", "VALID"]);
    assert!(rules(&mut c, 10).is_empty());
    let refused = c.ok(claim);
    assert_eq!(refused.field("code").text(), "RATE_LIMITED");
    assert!((HOUR / 2 - 60_000..=HOUR / 2).contains(&refused.field("retry_after_ms").int()));
    let locked = c.ok("KG.LISTIPS acme").list()[1].list()[0].clone();
    assert_eq!([locked.field("rule").text(), locked.field("path").text()], ["192.0.2.7", "/login"]);
    assert_eq!([locked.field("kind").text(), locked.field("by").text()], ["block", "claims"]);
    // The next one is told of the lock-out, which it does not extend.
    let blocked = c.ok(claim);
    assert_eq!(blocked.field("code").text(), "IP_BLOCKED");
    assert!(blocked.field("retry_after_ms").int() <= refused.field("retry_after_ms").int());
    assert_eq!([blocked.field("limited_by").text(), blocked.field("path").text()], ["address", "/login"]);
    assert_eq!(c.ok("KG.LISTIPS acme").list()[1].list()[0].field("expires_at"), locked.field("expires_at"));
    for (arguments, code) in
        [("192.0.2.7 PATH /login/reset", "IP_BLOCKED"), ("192.0.2.7 PATH /shop", "VALID"), ("192.0.2.7", "VALID")]
    {
        assert_eq!(check(&mut c, arguments), code, "{arguments}");
    }
    assert_eq!(c.code(format!("KG.AUTH acme {raw} IP 192.0.2.7")), "VALID");
    // Until a time of day.
    for _ in 0..2 {
        c.ok("KG.CLAIMIP acme 192.0.2.8 1 1h PATH /login LOCKOUT UNTIL 2100-01-01T00:00:00Z");
    }
    let until = c.ok("KG.LISTIPS acme").list()[1].list()[1].field("expires_at").int();
    assert_eq!(until, 4_102_444_800_000);
}

fn a_refused_claim_locks_the_address_out_everywhere(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    c.ok("KG.ADDORG acme shop");
    let raw = c.ok("KG.NEWKEY acme shop web").list()[1].text();
    for code in ["VALID", "RATE_LIMITED", "IP_BLOCKED"] {
        assert_eq!(c.code("KG.CLAIMIP acme 192.0.2.7 1 1h PATH /login LOCKOUT 1h EVERYWHERE"), code);
    }
    assert_eq!(rules(&mut c, 10), ["192.0.2.7 block"]);
    assert_eq!(c.code(format!("KG.AUTH acme {raw} IP 192.0.2.7")), "IP_BLOCKED");
    assert_eq!(c.code("KG.CLAIMIP acme 192.0.2.7 9 1h PATH /shop"), "IP_BLOCKED");
    // Without a path, everywhere is all there is.
    for code in ["VALID", "RATE_LIMITED", "IP_BLOCKED"] {
        assert_eq!(c.code("KG.CLAIMIP acme 192.0.2.8 1 1h LOCKOUT 1h"), code);
    }
    assert_eq!(check(&mut c, "192.0.2.8 PATH /any"), "IP_BLOCKED");
}

fn an_address_has_a_window_for_each_of_256_paths(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    c.ok("KG.ADDORG acme shop");
    all_ok(&mut c, (0..256).map(|n| args!["KG.CLAIMIP", "acme", "192.0.2.7", "2", "1h", "PATH", format!("/{n}")]));
    let before = c.state();
    let refused = c.ok("KG.CLAIMIP acme 192.0.2.7 2 1h PATH /more LOCKOUT 1h");
    assert_eq!(refused.field("code").text(), "RATE_LIMITED");
    assert!((HOUR - 60_000..=HOUR + 1000).contains(&refused.field("retry_after_ms").int()));
    assert_eq!(c.state(), before, "no count that is alive was given up, and nobody locked out");
    assert_eq!(c.ok("KG.CLAIMIP acme 192.0.2.7 2 1h PATH /0").field("remaining").int(), 0);
    assert_eq!(c.ok("KG.CLEARIP acme 192.0.2.7 PATH /1").int(), 1);
    assert_eq!(c.code("KG.CLAIMIP acme 192.0.2.7 2 1h PATH /more"), "VALID");
}

fn clearing_an_address_forgets_what_followed_on_its_own_doing(sut: &Sut) {
    let server = strict(sut);
    let mut c = server.client();
    c.ok("CONFIG SET keyguard.ip-block-threshold 3");
    assert_eq!(c.ok("KG.CLEARIP acme 192.0.2.7").int(), 0);
    c.ok("KG.BLOCKIP acme 192.0.2.7 PATH /admin");
    c.ok("KG.ALLOWIP acme 192.0.2.7 PATH /open");
    for path in ["/login", "/shop"] {
        for _ in 0..2 {
            c.ok(args!["KG.CLAIMIP", "acme", "192.0.2.7", "1", "1h", "PATH", path, "LOCKOUT", "1h"]);
        }
    }
    c.ok("KG.CLAIMIP acme 192.0.2.7 5 1h");
    c.ok("KG.CLAIMIP acme 192.0.2.8 5 1h");
    fail(&mut c, "192.0.2.7");
    // Of one path: its claims, its lock-out, and the failures, which have none.
    assert_eq!(c.ok("KG.CLEARIP acme 192.0.2.7 PATH /login/").int(), 3);
    assert_eq!(c.ok("KG.CLEARIP acme 192.0.2.7 PATH /login").int(), 0);
    assert_eq!(c.ok("KG.CHECKIP acme 192.0.2.7").get("failures"), None);
    assert_eq!(check(&mut c, "192.0.2.7 PATH /login"), "VALID");
    assert_eq!(check(&mut c, "192.0.2.7 PATH /shop"), "IP_BLOCKED");
    // Of all: two logs, the lock-out of the shop, the block for failures; not what an operator set.
    for _ in 0..4 {
        fail(&mut c, "192.0.2.7");
    }
    assert_eq!(check(&mut c, "192.0.2.7"), "IP_BLOCKED");
    assert_eq!(c.ok("KG.CLEARIP acme 192.0.2.7").int(), 4);
    assert_eq!(rules(&mut c, 10), ["192.0.2.7 allow /open", "192.0.2.7 block /admin"]);
    assert_eq!(c.ok("EXISTS {acme}:ip:192.0.2.7 {acme}:ip:192.0.2.8").int(), 1);
    assert_eq!(c.ok("KG.CLAIMIP acme 192.0.2.7 1 1h PATH /shop").field("remaining").int(), 0);
    // Nothing is remembered of the block either.
    for _ in 0..4 {
        fail(&mut c, "192.0.2.7");
    }
    assert_eq!(c.ok("KG.CHECKIP acme 192.0.2.7").field("strikes").int(), 1);
}

fn claims_and_lock_outs_are_the_same_everywhere(sut: &Sut) {
    let mut server = sut.setup().with("appendonly", "yes").with("appendfsync", "always").start();
    let mut c = server.client();
    c.ok("KG.ADDORG acme shop");
    let replica = sut.setup().replica_of(&server).start();
    server.wait_for(&replica);
    let commands = [
        "KG.BLOCKIP acme 10.0.0.0/8 1h PATH /a REASON why",
        "KG.ALLOWIP acme 10.1.0.0/16",
        "KG.BLOCKIP acme 192.0.2.99 1ms",
        "KG.CLAIMIP acme 192.0.2.1 2 1h",
        "KG.CLAIMIP acme 192.0.2.1 2 7d PATH /x",
        "KG.CLAIMIP acme 2001:db8::1 1 1h PATH /x",
        "KG.CLAIMIP acme 2001:db8::2 1 1h PATH /x LOCKOUT UNTIL 16:00",
        "KG.CLAIMIP acme 192.0.2.2 1 1h LOCKOUT 1h",
        "KG.CLAIMIP acme 192.0.2.2 1 1h LOCKOUT 1h",
        "KG.CLAIMIP acme 192.0.2.3 1 1h PATH /x",
        "KG.CLAIMIP acme 192.0.2.3 1 1h PATH /y",
        "KG.CLEARIP acme 192.0.2.3 PATH /x",
        "KG.CLEARIP acme 192.0.2.2",
        "KG.UNALLOWIP acme 10.1.0.0/16",
        "KG.BLOCKIP acme 192.0.2.98 1h",
    ];
    for command in commands {
        c.ok(command);
        server.wait_for(&replica);
        assert_eq!(replica.client().state(), c.state(), "{command}");
    }
    let before = c.state();
    c.ok("DEBUG RELOAD");
    assert_eq!(c.state(), before);
    c.ok("BGREWRITEAOF");
    c.wait_for_background_work();
    server.restart();
    let mut c = server.client();
    assert_eq!(c.state(), before);
    // A refusal is no effect.
    assert_eq!(c.code("KG.CLAIMIP acme 2001:db8::3 1 1h PATH /x"), "IP_BLOCKED");
    assert_eq!(c.code("KG.CLAIMIP acme 192.0.2.3 1 1h PATH /y"), "RATE_LIMITED");
    assert_eq!(c.state(), before);
}

fn failures_are_forgotten_with_their_data(sut: &Sut) {
    let server = strict(sut);
    let mut c = server.client();
    for clear in ["FLUSHALL", "SWAPDB 0 1"] {
        c.ok("KG.ALLOWIP acme 198.51.100.1");
        fail(&mut c, "192.0.2.7");
        assert_eq!(c.ok("KG.CHECKIP acme 192.0.2.7").field("failures").int(), 1);
        c.ok(clear);
        assert_eq!(c.info_number("keyguard", "keyguard_addresses_failing"), 0, "{clear}");
    }
}

fn bad_arguments_change_nothing(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    c.ok("KG.ADDORG acme shop");
    c.ok("KG.CLAIMIP acme 192.0.2.7 5 1h PATH /x");
    c.ok("KG.BLOCKIP acme 192.0.2.7 1h");
    let before = c.state();
    let long_path = format!("/{}", "x".repeat(1_024));
    let long_reason = "x".repeat(257);
    for command in [
        "KG.BLOCKIP acme",
        "KG.BLOCKIP acme 192.0.2.7/24",
        "KG.BLOCKIP acme 192.0.2.0/33",
        "KG.BLOCKIP acme host.example.com",
        "KG.BLOCKIP acme 192.0.2.7 1h UNTIL 16:00",
        "KG.BLOCKIP acme 192.0.2.7 1h 2h",
        "KG.BLOCKIP acme 192.0.2.7 PATH /a PATH /b",
        "KG.BLOCKIP acme 192.0.2.7 PATH api",
        "KG.BLOCKIP acme 192.0.2.7 PATH /a/../b",
        "KG.BLOCKIP acme 192.0.2.7 PATH",
        "KG.BLOCKIP acme 192.0.2.7 FOREVER",
        "KG.UNBLOCKIP acme",
        "KG.UNBLOCKIP acme 192.0.2.7 1h",
        "KG.UNBLOCKIP acme 192.0.2.7 PATH x",
        "KG.ALLOWIP acme 192.0.2.7 0",
        "KG.CHECKIP acme 192.0.2.0/24",
        "KG.CHECKIP acme 192.0.2.7 PATH x",
        "KG.CLAIMIP acme 192.0.2.7 5",
        "KG.CLAIMIP acme 192.0.2.0/24 5 1h",
        "KG.CLAIMIP acme 192.0.2.7 0 1h",
        "KG.CLAIMIP acme 192.0.2.7 5 0",
        "KG.CLAIMIP acme 192.0.2.7 5 1h EVERYWHERE",
        "KG.CLAIMIP acme 192.0.2.7 5 1h LOCKOUT",
        "KG.CLAIMIP acme 192.0.2.7 5 1h LOCKOUT UNTIL",
        "KG.CLAIMIP acme 192.0.2.7 5 1h LOCKOUT 1h LOCKOUT 2h",
        "KG.CLAIMIP acme 192.0.2.7 5 1h LOCKOUT 1h EVERYWHERE EVERYWHERE",
        "KG.CLEARIP acme",
        "KG.CLEARIP acme 192.0.2.0/24",
        "KG.CLEARIP acme 192.0.2.7 PATH x",
        "KG.CLEARIP acme 192.0.2.7 /x",
        &format!("KG.BLOCKIP acme 192.0.2.7 PATH {long_path}"),
        &format!("KG.CHECKIP acme 192.0.2.7 PATH {long_path}"),
        &format!("KG.BLOCKIP acme 192.0.2.7 REASON {long_reason}"),
    ] {
        c.refused("ERR", command);
    }
    c.refused("ERR", args!["KG.BLOCKIP", "acme", "192.0.2.7", "PATH", b"/a\0b"]);
    c.refused("ERR", args!["KG.BLOCKIP", "acme", "192.0.2.7", "PATH", b"/\xff"]);
    assert_eq!(c.state(), before);
}

fn full_memory_stops_claims_and_no_block(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    c.ok("KG.ADDORG acme shop");
    c.ok("KG.CLAIMIP acme 192.0.2.7 5 1h");
    c.ok("CONFIG SET maxmemory 1");
    c.refused("OOM", "KG.CLAIMIP acme 192.0.2.7 5 1h");
    c.ok("KG.BLOCKIP acme 192.0.2.8");
    c.ok("KG.ALLOWIP acme 192.0.2.9");
    assert_eq!(check(&mut c, "192.0.2.8"), "IP_BLOCKED");
    assert_eq!(c.ok("KG.UNBLOCKIP acme 192.0.2.8").int(), 1);
    assert_eq!(c.ok("KG.UNALLOWIP acme 192.0.2.9").int(), 1);
    assert_eq!(c.ok("KG.CLEARIP acme 192.0.2.7").int(), 1);
}
