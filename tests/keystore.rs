//! The vault as the successor of simple_keystore 0.10.0: all that its methods do, without the faults that they had.
//!
//! The first tests are named after the methods of that package, and each does what the method does; those after them are named
//! after what was wrong, and show that it is not so here. The last look at `KG.SETKEY` in depth, which takes the place of several.

use std::{fs, time::Instant};

use redis::Value;

use crate::harness::{
    Client, KEYRING, OTHER_KEYRING, Reply, Server, Sut, args, contains, eventually, expect, server_tests,
};

server_tests![
    add_key,
    get_key_by_name,
    get_key_record,
    get_key_record_by_id,
    get_matching_key_records,
    get_next_usable_key,
    update_key,
    mark_key_active,
    mark_key_inactive,
    delete_key_record,
    delete_matching_key_records,
    records_for_usability_report,
    usability_counts_report,
    remaining_uses,
    wait_until_available,
    settling_corrects_the_account_too,
    who_is_kept_from_a_key_by_an_earlier_waiter_gets_it_when_that_one_goes,
    get_available_key_for_use,
    get_key_with_most_uses_remaining,
    no_expired_key_is_usable,
    keys_that_expire_and_keys_that_do_not_go_together,
    a_delete_is_committed,
    no_id_is_reused_and_no_new_key_inherits_a_window,
    finding_a_secret_decrypts_nothing,
    no_secret_is_in_an_error_or_a_log_line,
    an_update_clears_every_field,
    setkey_changes_each_option_and_says_so,
    setkey_changes_nothing_that_is_so_already,
    setkey_changes_nothing_on_an_error,
    renaming_takes_windows_and_cooling_along,
    who_waits_sees_a_key_that_is_renamed,
    who_waits_sees_a_key_that_is_made_active,
    a_new_secret_is_found_and_revealed_and_the_old_one_is_not,
    a_new_secret_is_sealed_and_digested_under_the_newest_key,
    unique_does_not_say_who_has_the_secret,
    making_a_rejected_key_active_forgets_the_reason,
    the_readable_fields_follow,
    monitor_and_slowlog_show_no_argument_of_setkey,
];

const LONG: &str = "sk-live-0123456789abcdef";

/// An hour.
const HOUR_MS: i64 = 60 * 60 * 1000;

const ORDERS: [&str; 5] = ["expiry", "remaining", "rotate", "weight", "random"];

/// The id of a new key.
fn add(c: &mut Client, arguments: &str) -> i64 {
    c.ok(format!("KG.ADDKEY acme {arguments}")).int()
}

/// The ids of the keys that have a secret.
fn find(c: &mut Client, secret: &str) -> Vec<i64> {
    c.ok(args!["KG.FINDKEY", "acme", secret]).ints()
}

fn get(c: &mut Client, id: i64) -> Value {
    c.ok(args!["KG.GETKEY", "acme", id])
}

fn reveal(c: &mut Client, id: i64) -> String {
    c.ok(args!["KG.REVEAL", "acme", id]).text()
}

/// The fields that a call of SETKEY changed, in order of the alphabet.
fn set(c: &mut Client, id: i64, arguments: &str) -> Vec<String> {
    let mut changed: Vec<String> =
        c.ok(format!("KG.SETKEY acme {id} {arguments}")).list().iter().map(Reply::text).collect();
    changed.sort();
    changed
}

/// The ids that LISTKEYS answers, in its order.
fn list(c: &mut Client, arguments: &str) -> Vec<i64> {
    c.ok(format!("KG.LISTKEYS acme {arguments}")).list().iter().map(|record| record.field("id").int()).collect()
}

fn acquire(c: &mut Client, arguments: &str) -> Value {
    c.ok(format!("KG.ACQUIRE acme {arguments}"))
}

fn code(c: &mut Client, arguments: &str) -> String {
    acquire(c, arguments).field("code").text()
}

/// The id of a key that must be there to be had.
fn acquired(c: &mut Client, arguments: &str) -> i64 {
    let reply = acquire(c, arguments);
    assert_eq!(reply.field("code").text(), "ACQUIRED", "{arguments}: {reply:?}");
    reply.field("id").int()
}

/// A client that has sent a command and is held.
fn waiter(server: &Server, arguments: &str) -> Client {
    let mut waiter = server.client();
    waiter.send(format!("KG.ACQUIRE acme {arguments}"));
    let mut c = server.client();
    eventually("one who waits", || {
        let waiters = c.info_number("keyguard", "keyguard_waiters");
        expect(waiters == 1, || format!("{waiters} wait"))
    });
    waiter
}

// What simple_keystore did, method by method.

fn add_key(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    assert_eq!(add(&mut c, &format!("openai {LONG}")), 1, "the new id is the reply");
    assert_eq!(add(&mut c, "openai s2 INACTIVE EXPIREAT 4102444800 BATCH b SOURCE s LOGIN l"), 2);
    assert_eq!(reveal(&mut c, 1), LONG);
    let record = get(&mut c, 2);
    let text = |field: &str| record.field(field).text();
    assert_eq!([text("name"), text("batch"), text("source"), text("login")], ["openai", "b", "s", "l"]);
    assert_eq!([record.field("active").int(), record.field("expires_at").int()], [0, 4_102_444_800_000]);
    let plain = get(&mut c, 1);
    assert_eq!(plain.field("active").int(), 1, "a key is active unless told otherwise");
    assert_eq!(plain.get("expires_at"), None, "and never expires");
}

fn get_key_by_name(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    add(&mut c, &format!("openai {LONG}"));
    assert_eq!(c.ok("KG.REVEAL acme NAME openai").text(), LONG);
    c.refused("NOSUCH", "KG.REVEAL acme NAME nobody");
    add(&mut c, "openai another-secret");
    c.refused("NOTUNIQUE", "KG.REVEAL acme NAME openai");
}

fn get_key_record(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    add(&mut c, "other some-secret");
    let id = add(&mut c, &format!("openai {LONG} SOURCE s"));
    assert_eq!(find(&mut c, LONG), [id]);
    assert_eq!(get(&mut c, id).field("source").text(), "s");
    assert!(find(&mut c, "nobody's").is_empty(), "None, where there is no such key");
}

fn get_key_record_by_id(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    let id = add(&mut c, &format!("openai {LONG} EXPIREAT 1"));
    let record = get(&mut c, id);
    assert_eq!(record.field("name").text(), "openai");
    assert_eq!(["active", "expired", "usable"].map(|field| record.field(field).int()), [1, 1, 0]);
    c.refused("NOSUCH", "KG.GETKEY acme 2");
}

/// Keys of two names in several sets, some expired, some inactive. The ids are in the order of the lines.
fn fill(c: &mut Client) {
    for arguments in [
        "openai secret-1 SOURCE a LOGIN x BATCH 1 EXPIREIN 3d",
        "openai secret-2 SOURCE a LOGIN x BATCH 1",
        "openai secret-3 SOURCE a LOGIN y BATCH 2 EXPIREAT 1",
        "openai secret-4 SOURCE b INACTIVE EXPIREIN 1d",
        "mail secret-5 SOURCE a LOGIN x EXPIREIN 2d",
        "mail secret-6 SOURCE a LOGIN x EXPIREAT 2 INACTIVE",
    ] {
        add(c, arguments);
    }
}

fn get_matching_key_records(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    fill(&mut c);
    for (filter, expected) in [
        ("", &[1, 2, 3, 4, 5, 6][..]),
        ("NAME openai", &[1, 2, 3, 4]),
        ("NAME openai ACTIVE yes", &[1, 2, 3]),
        ("ACTIVE no", &[4, 6]),
        ("BATCH 1", &[1, 2]),
        ("SOURCE a", &[1, 2, 3, 5, 6]),
        ("LOGIN x SOURCE a NAME mail", &[5, 6]),
        ("NAME nobody", &[]),
        ("SORTBY expires_at", &[3, 6, 4, 5, 1, 2]),
        ("SORTBY name SORTBY id DESC", &[6, 5, 4, 3, 2, 1]),
        // Calculated fields sort too.
        ("SORTBY usable DESC SORTBY expired SORTBY id", &[1, 2, 5, 4, 3, 6]),
        ("EXPIRED no ACTIVE yes", &[1, 2, 5]),
    ] {
        assert_eq!(list(&mut c, filter), expected, "{filter}");
        if !filter.contains("SORTBY") {
            assert_eq!(c.ok(format!("KG.COUNTKEYS acme {filter}")).int(), expected.len() as i64, "{filter}");
        }
    }
    for id in list(&mut c, "") {
        assert_eq!(reveal(&mut c, id), format!("secret-{id}"));
    }
}

fn get_next_usable_key(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    let next = |c: &mut Client, tail: &str| {
        let id = c.ok(format!("KG.NEXTKEY acme {tail}")).field("id").int();
        (id, reveal(c, id))
    };
    c.ok("KG.ADDKEY acme other x");
    c.refused("NOSUCH", "KG.NEXTKEY acme openai");
    // A set of three, of which one expires soonest, and a set of one that expires within twelve hours of it.
    for n in 0..3 {
        add(&mut c, &format!("openai large-{n} SOURCE large EXPIREIN {}h", 48 + n));
    }
    add(&mut c, "openai small SOURCE small EXPIREIN 59h");
    assert_eq!(next(&mut c, "openai"), (5, "small".to_owned()), "of the smallest set");
    assert_eq!(next(&mut c, "openai SOURCE large"), (2, "large-0".to_owned()), "what matches");
    set(&mut c, 5, "EXPIREIN 61h");
    assert_eq!(next(&mut c, "openai").0, 2, "more than twelve hours later is not soon");
    // Never-expiring keys come last, expired and inactive ones never.
    add(&mut c, "openai never SOURCE never");
    add(&mut c, "openai gone SOURCE gone EXPIREAT 1");
    assert_eq!(next(&mut c, "openai").0, 2);
    for id in 2..=5 {
        set(&mut c, id, "ACTIVE no");
    }
    assert_eq!(next(&mut c, "openai").0, 6);
    set(&mut c, 6, "ACTIVE no");
    c.refused("NOSUCH", "KG.NEXTKEY acme openai");
    for (tail, field) in [("LOGIN l", "login"), ("BATCH b", "batch")] {
        let id = add(&mut c, &format!("openai by-{field} {tail}"));
        assert_eq!(next(&mut c, &format!("openai {tail}")).0, id);
    }
}

fn update_key(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    add(&mut c, &format!("openai {LONG} SOURCE s"));
    let arguments = "NAME mail ACTIVE no EXPIREAT 4102444800 BATCH b SOURCE t LOGIN l";
    assert_eq!(set(&mut c, 1, arguments), ["active", "batch", "expires_at", "login", "name", "source"]);
    let record = get(&mut c, 1);
    let text = |field: &str| record.field(field).text();
    assert_eq!([text("name"), text("batch"), text("source"), text("login")], ["mail", "b", "t", "l"]);
    assert_eq!([record.field("active").int(), record.field("expires_at").int()], [0, 4_102_444_800_000]);
    assert_eq!(reveal(&mut c, 1), LONG, "the secret is another matter");
    c.refused("NOSUCH", "KG.SETKEY acme 2 SOURCE s");
}

fn mark_key_active(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    add(&mut c, &format!("openai {LONG} INACTIVE"));
    assert_eq!(code(&mut c, "openai"), "NONE_USABLE");
    let found = find(&mut c, LONG)[0];
    assert_eq!(set(&mut c, found, "ACTIVE yes"), ["active"]);
    assert_eq!(get(&mut c, 1).field("usable").int(), 1);
    assert_eq!(acquired(&mut c, "openai"), 1);
}

fn mark_key_inactive(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    add(&mut c, &format!("openai {LONG}"));
    assert_eq!(acquired(&mut c, "openai"), 1);
    let found = find(&mut c, LONG)[0];
    assert_eq!(set(&mut c, found, "ACTIVE no"), ["active"]);
    assert_eq!(get(&mut c, 1).field("usable").int(), 0);
    assert_eq!(code(&mut c, "openai"), "NONE_USABLE");
}

fn delete_key_record(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    add(&mut c, &format!("openai {LONG}"));
    add(&mut c, "openai other-secret");
    let found = find(&mut c, LONG);
    assert_eq!(c.ok(args!["KG.DELKEY", "acme", found[0]]).int(), 1);
    assert!(find(&mut c, LONG).is_empty());
    assert_eq!(list(&mut c, ""), [2]);
}

fn delete_matching_key_records(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    fill(&mut c);
    assert_eq!(c.ok("KG.DELKEY acme MATCH TYPE vault NAME openai BATCH 1").int(), 2);
    assert_eq!(c.ok("KG.DELKEY acme MATCH TYPE vault EXPIRED yes ACTIVE no").int(), 1);
    assert_eq!(list(&mut c, ""), [3, 4, 5]);
    assert_eq!(c.ok("KG.DELKEY acme MATCH TYPE vault NAME openai").int(), 2);
    c.refused("NOSUCH", "KG.ACQUIRE acme openai");
    assert_eq!(c.ok("KG.DELKEY acme ALL TYPE vault").int(), 1);
    assert_eq!(c.ok("KG.COUNTKEYS acme").int(), 0);
    for n in 1..=6 {
        assert!(find(&mut c, &format!("secret-{n}")).is_empty());
    }
}

fn records_for_usability_report(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    fill(&mut c);
    let sorted = "SORTBY name SORTBY source SORTBY login SORTBY batch SORTBY active SORTBY expires_at";
    assert_eq!(list(&mut c, sorted), [6, 5, 1, 2, 3, 4]);
    assert_eq!(list(&mut c, &format!("NAME openai {sorted}")), [1, 2, 3, 4]);
}

fn usability_counts_report(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    fill(&mut c);
    let report = |c: &mut Client, tail: &str| -> Vec<(String, Option<String>, [i64; 4])> {
        let sets = c.ok(format!("KG.USABILITY acme {tail}"));
        let row = |set: &Value| {
            let counts = ["total", "active", "expired", "usable"].map(|field| set.field(field).int());
            (set.field("name").text(), set.get("login").map(|login| login.text()), counts)
        };
        let mut rows: Vec<_> = sets.list().iter().map(row).collect();
        rows.sort();
        rows
    };
    let [x, y] = ["x", "y"].map(|login| Some(login.to_owned()));
    let openai = [
        ("openai".to_owned(), None, [1, 0, 0, 0]),
        ("openai".to_owned(), x.clone(), [2, 2, 0, 2]),
        ("openai".to_owned(), y, [1, 1, 1, 0]),
    ];
    assert_eq!(report(&mut c, "NAME openai"), openai);
    let mail = [("mail".to_owned(), x, [2, 1, 1, 1])];
    assert_eq!(report(&mut c, ""), [&mail[..], &openai].concat());
    assert!(report(&mut c, "NAME nobody").is_empty());
}

fn remaining_uses(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    // A throttle of its own, for any id.
    for remaining in [3, 2, 1] {
        assert_eq!(c.remaining("ratelimit:1 3 1h").remaining, remaining, "looking charges nothing");
        let claim = c.claim("ratelimit:1 3 1h");
        assert_eq!((claim.claimed, claim.remaining), (true, remaining - 1), "two in one millisecond are two");
    }
    for _ in 0..3 {
        assert!(!c.claim("ratelimit:1 3 1h").claimed);
    }
    assert_eq!(c.ok("KG.INSPECT ratelimit:1").field("units").int(), 3, "refusals are not counted");
    assert_eq!(c.remaining("ratelimit:2 3 1h").remaining, 3, "another id has a throttle of its own");
    // The limits of a key itself.
    add(&mut c, "openai secret-1 BATCH 1 LIMIT 3 1h");
    add(&mut c, "openai secret-2 BATCH 2 LIMIT 5 1h");
    let remaining = |c: &mut Client, tail: &str| acquire(c, &format!("openai {tail}")).field("remaining").int();
    for _ in 0..2 {
        assert_eq!(remaining(&mut c, "BATCH 1 COST 0"), 3, "looking charges nothing");
    }
    assert_eq!([(); 2].map(|()| remaining(&mut c, "BATCH 1")), [2, 1]);
    assert_eq!([remaining(&mut c, "BATCH 1 COST 0"), remaining(&mut c, "BATCH 2 COST 0")], [1, 5]);
}

fn wait_until_available(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    let first = c.claim("ratelimit:1 1 300ms");
    let second = c.claim("ratelimit:1 1 300ms BLOCK 1h");
    assert!(first.claimed && second.claimed);
    assert!(second.claimed_at_ms >= first.claimed_at_ms + 300, "{first:?} {second:?}");
    c.claim("ratelimit:2 1 1h");
    let begun = Instant::now();
    assert!(!c.claim("ratelimit:2 1 1h BLOCK 60ms").claimed, "a time-out is the normal refusal");
    // The server counts whole milliseconds.
    assert!(begun.elapsed().as_millis() >= 59);
    // The same with a key and its own limits.
    add(&mut c, "openai secret LIMIT 1 300ms");
    let at = |reply: Value| reply.field("claimed_at_ms").int();
    let first = at(acquire(&mut c, "openai"));
    let second = at(acquire(&mut c, "openai BLOCK 1h"));
    assert!(second >= first + 300, "{second} comes 300 ms after {first}");
    add(&mut c, "slow secret LIMIT 1 1h");
    acquired(&mut c, "slow");
    assert_eq!(code(&mut c, "slow BLOCK 60ms"), "RATE_LIMITED");
}

fn settling_corrects_the_account_too(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    // Under limits that only the account has; under those that the call names, where neither has any.
    add(&mut c, "shared secret ACCOUNT one SHARED 1000 1h UNIT tokens LIMIT 10 1h");
    add(&mut c, "neither secret ACCOUNT two");
    for ask in ["shared", "neither LIMIT 1000 1h UNIT tokens"] {
        let ask = format!("{ask} COST 900 UNIT tokens");
        let claim = acquire(&mut c, &ask);
        assert_eq!(code(&mut c, &ask), "RATE_LIMITED", "{ask}");
        let (id, at_ms) = (claim.field("id").int(), claim.field("claimed_at_ms").int());
        assert_eq!(c.ok(format!("KG.SETTLE acme {id} AT {at_ms} COST 10 UNIT tokens")).int(), 1, "{ask}");
        assert_eq!(code(&mut c, &ask), "ACQUIRED", "{ask}");
    }
}

fn who_is_kept_from_a_key_by_an_earlier_waiter_gets_it_when_that_one_goes(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    let id = add(&mut c, "busy secret SOURCE s LIMIT 10 1h");
    acquired(&mut c, "busy");
    let first = waiter(&server, "busy COST 10 BLOCK 1h");
    let mut second = server.client();
    second.send("KG.ACQUIRE acme busy SOURCE s BLOCK 1h");
    eventually("two who wait", || {
        let waiters = c.info_number("keyguard", "keyguard_waiters");
        expect(waiters == 2, || format!("{waiters} wait"))
    });
    assert_eq!(code(&mut c, "busy"), "RATE_LIMITED", "it is left to those who wait");
    drop(first);
    assert_eq!(second.receive().field("id").int(), id);
}

fn get_available_key_for_use(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    for arguments in ["s1", "s2 EXPIREAT 1", "s3 INACTIVE", "s4"] {
        add(&mut c, &format!("openai {arguments}"));
    }
    // How often a key may be used is said by the caller, where the key does not say it.
    let ask = "openai LIMIT 2 1h";
    let mut uses = Vec::new();
    for _ in 0..4 {
        let reply = acquire(&mut c, ask);
        let id = reply.field("id").int();
        assert_eq!(reply.field("secret").text(), format!("s{id}"));
        assert_eq!(reply.field("limit").int(), 2);
        uses.push((id, reply.field("remaining").int()));
    }
    uses.sort_unstable();
    assert_eq!(uses, [(1, 0), (1, 1), (4, 0), (4, 1)], "each usable key as often as it may, no other");
    let refused = acquire(&mut c, ask);
    assert_eq!(refused.field("code").text(), "RATE_LIMITED");
    let retry_ms = refused.field("retry_after_ms").int();
    assert!(retry_ms > 0 && retry_ms <= HOUR_MS, "{retry_ms}");
    // It waits on the server, not in a loop of attempts, and is told at once of a key that comes.
    let mut waiting = waiter(&server, &format!("{ask} BLOCK 1h"));
    let id = add(&mut c, "openai s5");
    let reply = waiting.receive();
    assert_eq!([reply.field("id").int(), reply.field("remaining").int()], [id, 1]);
    assert_eq!(code(&mut c, &format!("{ask} SOURCE nobody")), "NONE_USABLE");
    c.refused("NOSUCH", "KG.ACQUIRE acme nobody");
}

fn get_key_with_most_uses_remaining(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    for n in 1..=3 {
        add(&mut c, &format!("openai s{n} LIMIT 10 1h BATCH {n}"));
    }
    add(&mut c, "openai s4 LIMIT 50 1h EXPIREAT 1");
    add(&mut c, "openai s5 LIMIT 50 1h INACTIVE");
    for (batch, uses) in [(1, 4), (2, 1), (3, 3)] {
        acquired(&mut c, &format!("openai BATCH {batch} COST {uses}"));
    }
    let most = |c: &mut Client| {
        let reply = acquire(c, "openai ORDER remaining COST 0");
        (reply.field("id").int(), reply.field("remaining").int())
    };
    assert_eq!([most(&mut c), most(&mut c)], [(2, 9); 2], "looking charges nothing");
    acquired(&mut c, "openai BATCH 2 COST 4");
    assert_eq!(most(&mut c), (3, 7));
    assert_eq!(acquired(&mut c, "openai ORDER remaining"), 3);
    for id in 1..=3 {
        set(&mut c, id, "ACTIVE no");
    }
    assert_eq!(code(&mut c, "openai ORDER remaining COST 0"), "NONE_USABLE");
}

// What was wrong with it.

fn no_expired_key_is_usable(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    for order in ORDERS {
        let name = format!("gone-{order}");
        add(&mut c, &format!("{name} s EXPIREAT 1"));
        add(&mut c, &format!("{name} s EXPIREAT 2001-01-01T00:00:00Z"));
        let reply = acquire(&mut c, &format!("{name} ORDER {order}"));
        assert_eq!((reply.field("code").text(), reply.field("retry_after_ms").int()), ("NONE_USABLE".to_owned(), -1));
        assert_eq!(code(&mut c, &format!("{name} ORDER {order} BLOCK 20ms")), "NONE_USABLE");
        c.refused("NOSUCH", &*format!("KG.NEXTKEY acme {name}"));
    }
    assert_eq!(c.ok("KG.COUNTKEYS acme EXPIRED no").int(), 0);
    // One that expires while it is in use is out of use at that millisecond, in every order at once.
    let id = add(&mut c, "brief s EXPIREIN 250ms");
    let expires_ms = get(&mut c, id).field("expires_at").int();
    for order in ORDERS {
        eventually("the end of the key", || {
            let reply = acquire(&mut c, &format!("brief ORDER {order}"));
            if reply.field("code").text() == "NONE_USABLE" {
                return Ok(());
            }
            let at_ms = reply.field("claimed_at_ms").int();
            // Many hand-outs in one millisecond are booked a little ahead of the clock.
            assert!(at_ms < expires_ms + 50, "handed out at {at_ms}, expired at {expires_ms}");
            Err(format!("{reply:?}"))
        });
    }
    assert_eq!(["expired", "usable"].map(|field| get(&mut c, id).field(field).int()), [1, 0]);
    // Given time, it is usable again.
    assert_eq!(set(&mut c, id, "EXPIREIN 1h"), ["expires_at"]);
    assert_eq!(acquired(&mut c, "brief"), id);
}

fn keys_that_expire_and_keys_that_do_not_go_together(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    for arguments in ["s1", "s2 EXPIREIN 1d", "s3 EXPIREAT 1", "s4", "s5 EXPIREIN 20h SOURCE a", "s6 EXPIREAT 0"] {
        add(&mut c, &format!("openai {arguments}"));
    }
    for order in ORDERS {
        for tail in ["", "SOURCE a"] {
            let id = acquired(&mut c, &format!("openai {tail} ORDER {order}"));
            assert!(if tail.is_empty() { id != 3 } else { id == 5 }, "{order} {tail}: {id}");
        }
    }
    assert_eq!(acquired(&mut c, "openai"), 5, "of those that expire, one of the smallest set");
    assert_eq!(c.ok("KG.NEXTKEY acme openai").field("id").int(), 5);
    assert_eq!(list(&mut c, "SORTBY expires_at"), [3, 5, 2, 1, 4, 6], "what never expires comes last");
    assert_eq!(list(&mut c, "SORTBY expires_at DESC"), [2, 5, 3, 1, 4, 6]);
    let sets = c.ok("KG.USABILITY acme NAME openai");
    let usable: i64 = sets.list().iter().map(|set| set.field("usable").int()).sum();
    assert_eq!(usable, 5);
}

fn a_delete_is_committed(sut: &Sut) {
    let mut server = sut.setup().with("appendonly", "yes").with("appendfsync", "always").start();
    let mut c = server.client();
    for n in 1..=4 {
        add(&mut c, &format!("openai secret-{n} LIMIT 5 1h"));
    }
    add(&mut c, "gone secret-5");
    acquired(&mut c, "openai");
    c.ok("KG.DELKEY acme 1 5");
    c.ok("KG.DELKEY acme MATCH TYPE vault NAME openai EXPIRED no ACTIVE yes");
    let last = add(&mut c, "openai secret-6");
    let before = c.state();
    server.restart();
    let mut c = server.client();
    assert_eq!(c.state(), before);
    assert_eq!(list(&mut c, ""), [last]);
    for id in 1..=5 {
        c.refused("NOSUCH", &*format!("KG.GETKEY acme {id}"));
        assert!(find(&mut c, &format!("secret-{id}")).is_empty());
    }
    c.refused("NOSUCH", "KG.ACQUIRE acme gone");
    assert_eq!([acquired(&mut c, "openai"), acquired(&mut c, "openai")], [last; 2]);
}

fn no_id_is_reused_and_no_new_key_inherits_a_window(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    let mut last = 0;
    for _ in 0..3 {
        // The same name and secret each time, and the newest key deleted.
        let id = add(&mut c, "openai secret LIMIT 1 1h");
        assert!(id > last, "{id} comes after {last}");
        last = id;
        assert_eq!(acquired(&mut c, "openai"), id);
        assert_eq!(code(&mut c, "openai"), "RATE_LIMITED");
        c.ok(args!["KG.FEEDBACK", "acme", id, "THROTTLED", "1h"]);
        assert_eq!(c.ok(args!["KG.DELKEY", "acme", id]).int(), 1);
        let own = |key: &Vec<u8>| [&b":win:"[..], b":pool:", b":key:"].iter().any(|kind| contains(key, kind));
        assert!(!c.keys().iter().any(own), "nothing is left of it");
    }
    // Nor while the others of its name stay, whose windows are theirs.
    let other = add(&mut c, "openai other LIMIT 1 1h");
    let gone = add(&mut c, "openai secret LIMIT 1 1h");
    let mut both = [acquired(&mut c, "openai"), acquired(&mut c, "openai")];
    both.sort_unstable();
    assert_eq!(both, [other, gone]);
    c.ok(args!["KG.DELKEY", "acme", gone]);
    let fresh = add(&mut c, "openai secret LIMIT 1 1h");
    assert_eq!(acquired(&mut c, "openai"), fresh);
    assert_eq!(get(&mut c, fresh).get("throttled"), None);
    assert_eq!(code(&mut c, "openai"), "RATE_LIMITED");
}

fn finding_a_secret_decrypts_nothing(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    for n in 1..=50 {
        add(&mut c, &format!("openai secret-number-{n}"));
    }
    // Not one ciphertext of the store opens any more.
    for id in 1..=50 {
        let key = format!("{{acme}}:key:{id}");
        let packed = c.packed(&key);
        let tampers = |c: &mut Client, at: usize| {
            let mut changed = packed.clone();
            changed[at] ^= 1;
            c.set_packed(&key, &changed);
            c.call(args!["KG.REVEAL", "acme", id]).error_code() == "TAMPERED"
        };
        assert!((0..packed.len()).rev().any(|at| tampers(&mut c, at)), "a byte of the ciphertext");
    }
    for id in 1..=50 {
        assert_eq!(find(&mut c, &format!("secret-number-{id}")), [id]);
        c.refused("TAMPERED", &*format!("KG.REVEAL acme {id}"));
    }
    assert!(find(&mut c, "secret-number-51").is_empty());
    // Nor does listing, counting or deleting.
    assert_eq!(list(&mut c, "NAME openai").len(), 50);
    assert_eq!(c.ok("KG.DELKEY acme 7").int(), 1);
    assert!(find(&mut c, "secret-number-7").is_empty());
}

fn no_secret_is_in_an_error_or_a_log_line(sut: &Sut) {
    const CANARY: &str = "canary-9f3KxQ7vZ2";
    let server = sut.setup().with("loglevel", "debug").start();
    let mut c = server.client();
    add(&mut c, &format!("openai {CANARY}"));
    c.ok("SET text x");
    let mut errors = Vec::new();
    for command in [
        format!("KG.ADDKEY acme openai {CANARY} UNIQUE"),
        format!("KG.ADDKEY acme openai {CANARY} WHAT"),
        format!("KG.ADDKEY acme openai {CANARY} LIMIT {CANARY} 1h"),
        format!("KG.ADDKEY text openai {CANARY}"),
        format!("KG.ADDKEY {{{CANARY}}} openai {CANARY}"),
        format!("KG.FINDKEY nobody {CANARY}"),
        format!("KG.FINDKEY acme {CANARY} {CANARY}"),
        format!("KG.SETKEY acme 1 SECRET {CANARY} UNIQUE WHAT"),
        format!("KG.SETKEY acme 1 SECRET {CANARY} SECRET {CANARY}"),
        format!("KG.SETKEY acme 1 {CANARY} x"),
        format!("KG.SETKEY acme 2 SECRET {CANARY}"),
        format!("KG.SETKEY acme {CANARY} SECRET {CANARY}"),
        format!("KG.REVEAL acme NAME {CANARY}"),
        format!("KG.ACQUIRE acme {CANARY}"),
        format!("KG.ACQUIRE acme openai ORDER {CANARY}"),
    ] {
        errors.push(c.err(command));
    }
    // A key that does not open is told of in the log, by its id.
    let mut packed = c.packed("{acme}:key:1");
    let place = (0..packed.len()).rev().find(|at| {
        packed[*at] ^= 1;
        c.set_packed("{acme}:key:1", &packed);
        let tampered = c.call("KG.REVEAL acme 1").error_code() == "TAMPERED";
        packed[*at] ^= u8::from(!tampered);
        tampered
    });
    assert!(place.is_some());
    errors.push(c.err("KG.ACQUIRE acme openai"));
    assert!(server.log().contains("vault key 1 could not be handed out"), "{}", server.log());
    for text in errors.iter().chain([&server.log()]) {
        assert!(!text.contains(CANARY) && !text.contains(&CANARY[7..]), "{text}");
    }
}

/// A key with everything that can be cleared; what it is cleared by.
const ALL: &str = "openai sk-live-0123456789abcdef SOURCE s LOGIN l BATCH b ACCOUNT a EXPIREIN 1d LIMIT 5 1h \
    LIMIT 500 1d UNIT tokens SHARED 9 1h WEIGHT 7 META {\"m\":1}";
const CLEARABLE: [&str; 9] =
    ["source", "login", "batch", "account", "expires_at", "limits", "shared", "weight", "meta"];

fn an_update_clears_every_field(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    let cleared = |record: &Value, field: &str| match field {
        "weight" => record.field("weight").int() == 1,
        "limits" => record.field("limits").list().is_empty(),
        _ => record.get(field).is_none(),
    };
    for field in CLEARABLE {
        let id = add(&mut c, ALL);
        let before = get(&mut c, id);
        // Without their account, the limits that it shares are nobody's.
        let gone: &[&str] = if field == "account" { &["account", "shared"] } else { &[field] };
        assert_eq!(set(&mut c, id, &format!("CLEAR {}", field.to_uppercase())), gone);
        let after = get(&mut c, id);
        for (name, value) in before.fields() {
            if gone.contains(&&*name) {
                assert!(!cleared(&before, &name) && cleared(&after, &name), "{field} clears {name}: {after:?}");
            } else {
                assert_eq!(after.get(&name), Some(value), "{field} leaves {name} alone");
            }
        }
        assert!(set(&mut c, id, &format!("CLEAR {field}")).is_empty(), "nothing is left to clear");
        assert_eq!(reveal(&mut c, id), LONG);
    }
    let id = add(&mut c, ALL);
    let all = CLEARABLE.map(|field| format!("CLEAR {field}")).join(" ");
    let mut expected = CLEARABLE.to_vec();
    expected.sort_unstable();
    assert_eq!(set(&mut c, id, &all), expected);
    let plain = add(&mut c, &format!("openai {LONG}"));
    let strip = |record: Value| -> Vec<(String, Value)> {
        record.fields().into_iter().filter(|(name, _)| !["id", "created_at"].contains(&&**name)).collect()
    };
    assert_eq!(strip(get(&mut c, id)), strip(get(&mut c, plain)), "it is as one that never had them");
}

// KG.SETKEY.

fn setkey_changes_each_option_and_says_so(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    for (arguments, field, value) in [
        ("NAME mail", "name", "mail"),
        ("SOURCE t", "source", "t"),
        ("login t", "login", "t"),
        ("BATCH t", "batch", "t"),
        ("ACCOUNT t", "account", "t"),
        ("ACTIVE no", "active", "0"),
        ("INACTIVE", "active", "0"),
        ("EXPIREAT 4102444800", "expires_at", "4102444800000"),
        ("EXPIREAT 0", "expires_at", ""),
        ("EXPIREAT 1", "expires_at", "1000"),
        ("WEIGHT 9", "weight", "9"),
        ("META {\"n\":2}", "meta", "{\"n\":2}"),
        ("LIMIT 6 2h", "limits", "6 7200000ms requests"),
        ("LIMIT 6 2h LIMIT 7 1h UNIT bytes", "limits", "6 7200000ms requests,7 3600000ms bytes"),
        ("SHARED 8 1h", "shared", "8 3600000ms requests"),
    ] {
        let id = add(&mut c, ALL);
        let before = get(&mut c, id);
        assert_eq!(set(&mut c, id, arguments), [field], "{arguments}");
        let after = get(&mut c, id);
        let found = match after.get(field) {
            None => String::new(),
            Some(Value::Int(number)) => number.to_string(),
            Some(Value::Array(items)) => items.iter().map(Reply::text).collect::<Vec<_>>().join(","),
            Some(text) => text.text(),
        };
        assert_eq!(found, value, "{arguments}");
        // What follows from it changes with it.
        let follows = ["status", "usable", "expired"];
        for (name, value) in before.fields() {
            if name != field && !follows.contains(&&*name) {
                assert_eq!(after.get(&name), Some(value), "{arguments} leaves {name} alone");
            }
        }
    }
    let id = add(&mut c, ALL);
    assert_eq!(set(&mut c, id, "SECRET new"), ["secret"]);
    assert_eq!(
        set(&mut c, id, "EXPIREIN 5h CLEAR meta SECRET newer SOURCE s2"),
        ["expires_at", "meta", "secret", "source"]
    );
    // Values are bytes, blanks included.
    let changed = c.ok(args!["KG.SETKEY", "acme", id, "SOURCE", "two words", "META", "{\"a\": [1, 2]}"]);
    assert_eq!(changed.list().len(), 2);
    assert_eq!(get(&mut c, id).field("source").text(), "two words");
    // The limits that hold are the new ones, and the windows stay.
    let id = add(&mut c, "limited s LIMIT 2 1h");
    assert_eq!([acquired(&mut c, "limited"), acquired(&mut c, "limited")], [id; 2]);
    assert_eq!(code(&mut c, "limited"), "RATE_LIMITED");
    set(&mut c, id, "LIMIT 3 1h");
    assert_eq!(acquire(&mut c, "limited").field("remaining").int(), 0);
    assert_eq!(code(&mut c, "limited"), "RATE_LIMITED");
    set(&mut c, id, "LIMIT 1 1h");
    assert_eq!(code(&mut c, "limited"), "RATE_LIMITED");
    set(&mut c, id, "CLEAR limits");
    assert_eq!(acquired(&mut c, "limited"), id);
}

fn setkey_changes_nothing_that_is_so_already(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    add(&mut c, ALL);
    let before = c.state();
    for arguments in [
        "NAME openai",
        "SOURCE s LOGIN l BATCH b ACCOUNT a",
        "ACTIVE yes",
        "WEIGHT 7",
        "META {\"m\":1}",
        "LIMIT 5 1h LIMIT 500 1d UNIT tokens",
        "SHARED 9 1h",
    ] {
        assert!(set(&mut c, 1, arguments).is_empty(), "{arguments}");
    }
    assert_eq!(c.state(), before);
    // A secret that is given counts as changed: to say otherwise would tell that it is the same.
    assert_eq!(set(&mut c, 1, &format!("SECRET {LONG}")), ["secret"]);
    assert_eq!(find(&mut c, LONG), [1]);
    assert_eq!(set(&mut c, 1, &format!("SECRET {LONG} UNIQUE")), ["secret"], "nobody else has it");
    assert_eq!(find(&mut c, LONG), [1]);
}

fn setkey_changes_nothing_on_an_error(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    add(&mut c, ALL);
    add(&mut c, "plain other-secret");
    c.ok("KG.ADDORG acme shop");
    let api = c.ok("KG.NEWKEY acme shop web").list()[0].int();
    c.ok("RPUSH {acme}:pool:list x");
    let before = c.state();
    for tail in [
        "",
        "1",
        "1 SOURCE",
        "1 SOURCE a SOURCE b",
        "1 SOURCE a WHAT b",
        "1 SOURCE a CLEAR source",
        "1 CLEAR source CLEAR SOURCE",
        "1 CLEAR name",
        "1 CLEAR secret",
        "1 CLEAR r",
        "1 CLEAR",
        "1 SOURCE a ACTIVE maybe",
        "1 ACTIVE yes INACTIVE",
        "1 ACTIVE yes ACTIVE yes",
        "1 SOURCE a WEIGHT 0",
        "1 SOURCE a WEIGHT 1000001",
        "1 SOURCE a META {",
        "1 SOURCE a META {} CLEAR meta",
        "1 SOURCE a LIMIT 0 1h",
        "1 LIMIT 5 1h CLEAR limits",
        "1 SHARED 5 1h CLEAR shared",
        "1 SHARED 5 1h CLEAR account",
        "2 SHARED 5 1h",
        "1 EXPIREAT 5 EXPIREIN 5h",
        "1 EXPIREAT 5 CLEAR expires_at",
        "1 EXPIREIN 0 SOURCE a",
        "1 UNIQUE SOURCE a",
        "x SOURCE a",
        "-1 SOURCE a",
    ] {
        c.refused("ERR", &*format!("KG.SETKEY acme {tail}"));
    }
    c.refused("ERR", args!["KG.SETKEY", "acme", 1, "SOURCE", "a", "SECRET", ""]);
    c.refused("ERR", args!["KG.SETKEY", "acme", 1, "SOURCE", "a", "SECRET", "s".repeat(65_537)]);
    c.refused("ERR", args!["KG.SETKEY", "acme", 1, "SOURCE", "a", "NAME", ""]);
    c.refused("ERR", args!["KG.SETKEY", "acme", 1, "SOURCE", "a", "NAME", "n".repeat(257)]);
    c.refused("NOSUCH", "KG.SETKEY acme 99 SOURCE a");
    c.refused("ERR", args!["KG.SETKEY", "acme", api, "SOURCE", "a"]);
    c.refused("NOSTORE", "KG.SETKEY nobody 1 SOURCE a");
    c.refused("DUPLICATE", "KG.SETKEY acme 1 SOURCE a SECRET other-secret UNIQUE");
    c.refused("WRONGTYPE", "KG.SETKEY acme 1 SOURCE a NAME list");
    assert_eq!(c.state(), before);
    // An index of a secret that holds something else: of the one that is to come, and of the one that goes.
    let digest = c.keys().into_iter().filter(|key| contains(key, b"{acme}:digest:"));
    let digest = digest.into_iter().find(|key| c.ok(args!["GET", key]).text() == "2").expect("that of the second key");
    c.ok(args!["RENAME", digest, "kept"]);
    c.ok(args!["RPUSH", digest, "x"]);
    let before = c.state();
    c.refused("WRONGTYPE", "KG.SETKEY acme 1 SOURCE a SECRET other-secret");
    c.refused("WRONGTYPE", "KG.SETKEY acme 2 SOURCE a SECRET a-third-secret");
    assert_eq!(c.state(), before);
}

fn renaming_takes_windows_and_cooling_along(sut: &Sut) {
    let primary = sut.setup().with("appendonly", "yes").with("appendfsync", "always").start();
    let replica = sut.setup().replica_of(&primary).start();
    primary.wait_for(&replica);
    let mut c = primary.client();
    let id = add(&mut c, "old s LIMIT 2 1h LIMIT 100 1h UNIT tokens");
    let at_ms = acquire(&mut c, "old COST 1 COST 60 UNIT tokens").field("claimed_at_ms").int();
    assert_eq!(set(&mut c, id, "NAME new"), ["name"]);
    c.refused("NOSUCH", "KG.ACQUIRE acme old");
    assert_eq!(code(&mut c, "new COST 1 COST 41 UNIT tokens"), "RATE_LIMITED", "60 tokens are used");
    assert_eq!(get(&mut c, id).field("last_used_at").int(), at_ms);
    // What was claimed under the old name is settled under the new one.
    assert_eq!(c.ok(format!("KG.SETTLE acme {id} AT {at_ms} COST 10 UNIT tokens")).int(), 1);
    assert_eq!(acquire(&mut c, "new COST 1 COST 90 UNIT tokens").field("remaining").int(), 0);
    assert_eq!(code(&mut c, "new"), "RATE_LIMITED");
    // Among others, and with what vendors said.
    let other = add(&mut c, "third s LIMIT 1 1h");
    set(&mut c, id, "LIMIT 50 1h");
    c.ok(format!("KG.FEEDBACK acme {id} THROTTLED 2h"));
    set(&mut c, id, "NAME third");
    assert_eq!(acquired(&mut c, "third"), other);
    let refused = acquire(&mut c, "third");
    assert_eq!(refused.field("code").text(), "RATE_LIMITED");
    set(&mut c, other, "ACTIVE no");
    assert_eq!(code(&mut c, "third"), "COOLING");
    assert!(get(&mut c, id).get("cooling_until").is_some());
    assert_eq!(list(&mut c, "NAME third"), [id, other]);
    assert!(list(&mut c, "NAME new").is_empty());
    primary.wait_for(&replica);
    let state = c.state();
    assert_eq!(replica.client().state(), state);
    let mut primary = primary;
    primary.restart();
    assert_eq!(primary.client().state(), state);
}

fn who_waits_sees_a_key_that_is_renamed(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    let used = add(&mut c, "busy s1 LIMIT 1 1h");
    let fresh = add(&mut c, "idle s2 LIMIT 1 1h");
    acquired(&mut c, "busy");
    let mut waiting = waiter(&server, "busy BLOCK 1m");
    set(&mut c, fresh, "NAME busy");
    assert_eq!(waiting.receive().field("id").int(), fresh);
    // When the last key of a name gets another one, there is nothing left to wait for.
    let mut waiting = waiter(&server, "busy BLOCK 1m");
    for id in [used, fresh] {
        set(&mut c, id, "NAME idle");
    }
    assert_eq!(waiting.receive().error_code(), "NOSUCH");
}

fn who_waits_sees_a_key_that_is_made_active(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    let id = add(&mut c, "busy s1 INACTIVE LIMIT 1 1h");
    for change in ["ACTIVE yes", "LIMIT 2 1h", "CLEAR limits SOURCE s", "EXPIREIN 1h"] {
        if change.starts_with("EXPIREIN") {
            set(&mut c, id, "EXPIREAT 1");
        } else if change.starts_with("CLEAR") {
            acquire(&mut c, "busy");
        }
        let tail = if change.contains("SOURCE") { "SOURCE s" } else { "" };
        let mut waiting = waiter(&server, &format!("busy {tail} BLOCK 1m"));
        set(&mut c, id, change);
        let reply = waiting.receive();
        assert_eq!(reply.field("code").text(), "ACQUIRED", "{change}");
        assert_eq!(reply.field("id").int(), id);
    }
}

fn a_new_secret_is_found_and_revealed_and_the_old_one_is_not(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    let record = |c: &mut Client| [find(c, "old-secret-0123456789"), find(c, "new-secret-9876543210")];
    for name in ["a", "b", "c"] {
        add(&mut c, &format!("{name} old-secret-0123456789"));
    }
    assert_eq!(record(&mut c), [vec![1, 2, 3], vec![]]);
    assert_eq!(set(&mut c, 2, "SECRET new-secret-9876543210"), ["secret"]);
    assert_eq!(record(&mut c), [vec![1, 3], vec![2]]);
    assert_eq!(reveal(&mut c, 2), "new-secret-9876543210");
    assert_eq!(get(&mut c, 2).field("hint").text(), "3210");
    assert_eq!(acquire(&mut c, "b").field("secret").text(), "new-secret-9876543210");
    assert_eq!(reveal(&mut c, 1), "old-secret-0123456789");
    // Together with a name, which is another matter.
    assert_eq!(set(&mut c, 1, "SECRET new-secret-9876543210 NAME b"), ["name", "secret"]);
    assert_eq!(record(&mut c), [vec![3], vec![1, 2]]);
    set(&mut c, 3, "SECRET new-secret-9876543210");
    assert_eq!(record(&mut c), [vec![], vec![1, 2, 3]]);
    let digests = c.keys().iter().filter(|key| contains(key, b":digest:")).count();
    assert_eq!(digests, 1, "nothing is left of a secret that no key has");
    set(&mut c, 2, "SECRET old-secret-0123456789");
    assert_eq!(record(&mut c), [vec![2], vec![1, 3]]);
    c.ok("KG.DELKEY acme 1 3");
    assert_eq!(record(&mut c), [vec![2], vec![]]);
    // A short one has no hint.
    set(&mut c, 2, "SECRET short");
    assert_eq!(get(&mut c, 2).get("hint"), None);
    assert_eq!(c.ok("HEXISTS {acme}:key:2 hint").int(), 0);
    // All bytes are a secret.
    let odd: Vec<u8> = (0..=255).collect();
    c.ok(args!["KG.SETKEY", "acme", 2, "SECRET", odd]);
    assert_eq!(c.ok("KG.REVEAL acme 2").bytes(), odd);
}

fn a_new_secret_is_sealed_and_digested_under_the_newest_key(sut: &Sut) {
    let mut server = sut.setup().with("appendonly", "yes").with("appendfsync", "always").start();
    let mut c = server.client();
    for secret in ["one-secret", "two-secret"] {
        add(&mut c, &format!("openai {secret}"));
    }
    server.kill();
    let [old, new] = [KEYRING, OTHER_KEYRING].map(|text| serde_json::from_str::<serde_json::Value>(text).unwrap());
    let both = serde_json::json!({"version": 1, "keys": [old["keys"][0], new["keys"][0]]});
    fs::write(server.keyring_file(), both.to_string()).unwrap();
    server.start_again();
    let mut c = server.client();
    let using = |c: &mut Client| -> Vec<i64> {
        let header = c.ok("HGETALL acme").fields();
        let counts = header.iter().filter(|(field, _)| field.starts_with("using:"));
        let mut counts: Vec<i64> = counts.map(|(_, count)| count.text().parse().unwrap()).collect();
        counts.sort_unstable();
        counts
    };
    assert_eq!(using(&mut c), [2]);
    c.refused("DUPLICATE", "KG.SETKEY acme 1 SECRET two-secret UNIQUE");
    assert_eq!(set(&mut c, 1, "SECRET one-secret UNIQUE"), ["secret"], "its own secret is no duplicate");
    assert_eq!(using(&mut c), [1, 1]);
    set(&mut c, 2, "SECRET one-secret");
    assert_eq!(using(&mut c), [0, 2]);
    assert_eq!([find(&mut c, "one-secret"), find(&mut c, "two-secret")], [vec![1, 2], vec![]]);
    // What is sealed under the newest key needs no other.
    server.kill();
    fs::write(server.keyring_file(), OTHER_KEYRING).unwrap();
    server.start_again();
    let mut c = server.client();
    assert_eq!([reveal(&mut c, 1), reveal(&mut c, 2)], ["one-secret"; 2]);
    assert_eq!(find(&mut c, "one-secret"), [1, 2]);
}

fn unique_does_not_say_who_has_the_secret(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    for n in 0..20 {
        add(&mut c, &format!("openai {}", if n == 13 { LONG } else { "another" }));
    }
    let before = c.state();
    let texts = [
        c.refused("DUPLICATE", &*format!("KG.SETKEY acme 1 SECRET {LONG} UNIQUE")),
        c.refused("DUPLICATE", &*format!("KG.SETKEY acme 2 UNIQUE SOURCE x SECRET {LONG}")),
        c.refused("DUPLICATE", "KG.SETKEY acme 1 SECRET another UNIQUE"),
        c.refused("DUPLICATE", &*format!("KG.ADDKEY acme mail {LONG} UNIQUE")),
    ];
    for text in &texts {
        assert!(!text.contains(|character: char| character.is_ascii_digit()) && !text.contains("openai"), "{text}");
        assert_eq!(text, &texts[0]);
    }
    assert_eq!(c.state(), before);
    assert_eq!(set(&mut c, 1, "SECRET its-own UNIQUE"), ["secret"]);
    assert_eq!(set(&mut c, 1, &format!("SECRET {LONG}")), ["secret"], "without UNIQUE it may be shared");
    assert_eq!(find(&mut c, LONG), [1, 14]);
}

fn making_a_rejected_key_active_forgets_the_reason(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    add(&mut c, "openai s");
    let reject = |c: &mut Client| {
        c.ok(args!["KG.FEEDBACK", "acme", 1, "REJECTED", "REASON", "account closed"]);
        assert_eq!(get(c, 1).field("rejected").text(), "account closed");
        assert_eq!(c.ok("HGET {acme}:key:1 rejected").text(), "account closed");
        assert_eq!(code(c, "openai"), "NONE_USABLE");
    };
    let forgotten = |c: &mut Client| {
        assert_eq!(get(c, 1).get("rejected"), None);
        assert_eq!(c.ok("HEXISTS {acme}:key:1 rejected").int(), 0);
    };
    reject(&mut c);
    // Anything else leaves it out of use, with its reason.
    assert_eq!(set(&mut c, 1, "SOURCE a SECRET t"), ["secret", "source"]);
    assert_eq!(get(&mut c, 1).field("rejected").text(), "account closed");
    assert_eq!(set(&mut c, 1, "ACTIVE yes"), ["active", "rejected"]);
    forgotten(&mut c);
    assert_eq!(acquired(&mut c, "openai"), 1);
    reject(&mut c);
    // Put away by hand, it is so for another reason.
    assert_eq!(set(&mut c, 1, "ACTIVE no"), ["rejected"]);
    forgotten(&mut c);
}

fn the_readable_fields_follow(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    add(&mut c, ALL);
    let hash = |c: &mut Client| -> Vec<(String, String)> {
        let mut fields: Vec<_> = c
            .ok("HGETALL {acme}:key:1")
            .fields()
            .into_iter()
            .filter(|(field, _)| !["r", "r2", "r3", "r4", "created_at"].contains(&&**field))
            .map(|(field, value)| (field, value.text()))
            .collect();
        fields.sort();
        fields
    };
    let is = |c: &mut Client, expected: &[(&str, &str)]| {
        let mut expected: Vec<_> =
            expected.iter().map(|(field, value)| ((*field).to_owned(), (*value).to_owned())).collect();
        expected.sort();
        assert_eq!(hash(c), expected);
    };
    c.ok("KG.SETKEY acme 1 NAME mail ACTIVE no SOURCE s2 LOGIN l2 BATCH b2 ACCOUNT a2 EXPIREAT 4102444800 LIMIT 6 2h \
         SHARED 8 1h META {} SECRET zzzzzzzzzzzzzzzzzzzz-wxyz");
    is(
        &mut c,
        &[
            ("type", "vault"),
            ("name", "mail"),
            ("status", "inactive"),
            ("source", "s2"),
            ("login", "l2"),
            ("batch", "b2"),
            ("account", "a2"),
            ("expires_at", "4102444800000"),
            ("limits", "6/7200000ms requests"),
            ("shared", "8/3600000ms requests"),
            ("meta", "{}"),
            ("hint", "wxyz"),
        ],
    );
    set(&mut c, 1, &format!("ACTIVE yes SECRET x {}", CLEARABLE.map(|field| format!("CLEAR {field}")).join(" ")));
    is(&mut c, &[("type", "vault"), ("name", "mail"), ("status", "active")]);
    // A change of one field leaves META, which no packed field repeats, as it is.
    set(&mut c, 1, "META {\"a\":1}");
    set(&mut c, 1, "SOURCE s3");
    is(&mut c, &[("type", "vault"), ("name", "mail"), ("status", "active"), ("source", "s3"), ("meta", "{\"a\":1}")]);
}

fn monitor_and_slowlog_show_no_argument_of_setkey(sut: &Sut) {
    let server = sut.setup().with("slowlog-log-slower-than", "0").with("slowlog-max-len", "10000").start();
    let mut c = server.client();
    add(&mut c, "openai first-secret");
    add(&mut c, "openai third-secret");
    let mut monitor = server.client();
    monitor.ok("MONITOR");
    let words = ["SECRET", "canary-secret", "UNIQUE", "EXPIREAT", "ACTIVE", "WHAT", "canary-what", "MAYBE"];
    for (tail, refused) in [
        ("SECRET canary-secret", false),
        ("SECRET canary-secret UNIQUE EXPIREAT 1", false),
        ("EXPIREAT 1 SECRET canary-secret ACTIVE MAYBE", true),
        ("SECRET third-secret SECRET canary-secret", true),
        ("WHAT canary-what", true),
        ("SECRET canary-secret WHAT", true),
        ("SECRET", true),
    ] {
        let reply = c.call(format!("KG.SETKEY acme 1 {tail}"));
        assert_eq!(reply.is_error(), refused, "{tail}: {reply:?}");
    }
    // In a transaction, and with full memory.
    c.ok("MULTI");
    c.call("KG.SETKEY acme 1 SECRET canary-secret");
    c.ok("EXEC");
    c.ok("CONFIG SET maxmemory 1");
    c.ok("KG.SETKEY acme 1 SECRET canary-secret");
    c.ok("CONFIG SET maxmemory 0");
    c.ok("SET the end");
    let mut lines = Vec::new();
    while !lines.last().is_some_and(|line: &String| line.contains("\"the\" \"end\"")) {
        lines.push(monitor.receive().text());
    }
    let told: Vec<&String> = lines.iter().filter(|line| line.contains("KG.SETKEY")).collect();
    assert!(told.len() >= 6, "{told:?}");
    for line in told {
        let (head, tail) = line.split_once("\"KG.SETKEY\" \"acme\" \"1\"").expect("store and id are shown");
        assert!(!head.is_empty() && tail.split(' ').all(|word| word.is_empty() || word == "\"(redacted)\""), "{line}");
    }
    // The server tells of its own HSET, which writes the readable fields and the sealed secret; the secret itself is nowhere.
    assert!(!lines.iter().any(|line| line.contains("canary")), "{lines:?}");
    let slow = c.ok("SLOWLOG GET -1");
    let entries = slow.list().iter().map(|entry| entry.list()[3].list().iter().map(Reply::text).collect::<Vec<_>>());
    let told: Vec<_> = entries.filter(|entry| entry[0].eq_ignore_ascii_case("KG.SETKEY")).collect();
    assert!(told.len() >= 6, "{told:?}");
    for entry in &told {
        assert!(entry[3..].iter().all(|word| word == "(redacted)"), "{entry:?}");
        assert!(!entry.iter().any(|word| words.contains(&&**word)), "{entry:?}");
    }
    assert!(!format!("{slow:?}").contains("canary"));
}
