//! The limiter: what `KG.CLAIM`, `KG.REMAINING`, `KG.REFUND` and `KG.INSPECT` answer and leave behind.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use redis::Value;

use crate::harness::{Claim, Client, Reply, Sut, args, eventually, expect, now_ms, server_tests};

server_tests![
    refuses_when_full,
    allows_at_the_promised_instant_and_not_before,
    takes_from_all_limits_or_none,
    reports_the_tightest_limit_when_claimed,
    reports_the_longest_wait_when_refused,
    charges_the_cost,
    cost_that_can_never_fit,
    cost_zero_charges_nothing,
    a_lowered_limit_leaves_nothing,
    remaining_changes_nothing,
    refund_gives_back,
    inspect_describes_the_bucket,
    bucket_expires_after_its_longest_window,
    reads_every_duration,
    rejects_bad_arguments,
    options_in_any_order_and_case,
    refuses_names_of_a_store,
    refuses_other_types,
    a_bucket_is_full_at_a_million_entries,
    speaks_resp3,
    works_in_multi,
    works_in_a_script,
    a_claim_touches_watched_keys,
    the_bucket_is_wherever_its_key_is,
    never_more_than_count_under_concurrency,
    agrees_with_a_list_of_timestamps,
    full_memory_refuses_to_claim,
    clients_cannot_apply_effects,
];

const HOUR: i64 = 3_600_000;

fn refuses_when_full(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    let before = now_ms();
    let mut newest = 0;
    let mut oldest = 0;
    for left in [2, 1, 0] {
        let claim = c.claim("b 3 1h");
        newest = claim.claimed_at_ms;
        oldest = if oldest == 0 { newest } else { oldest };
        let wanted = Claim {
            claimed: true,
            limit: 3,
            remaining: left,
            retry_after_ms: 0,
            reset_after_ms: HOUR,
            claimed_at_ms: newest,
        };
        assert_eq!(claim, wanted);
        assert!((before..=now_ms()).contains(&newest), "claimed at {newest}, between {before} and now");
    }
    for peek in [false, true] {
        let before = now_ms();
        let refused = if peek { c.remaining("b 3 1h") } else { c.claim("b 3 1h") };
        let after = now_ms();
        assert!(!refused.claimed);
        assert_eq!((refused.limit, refused.remaining, refused.claimed_at_ms), (3, 0, 0));
        let retry = oldest + HOUR - after..=oldest + HOUR - before;
        assert!(retry.contains(&refused.retry_after_ms), "{refused:?}: retry within {retry:?}");
        let reset = newest + HOUR - after..=newest + HOUR - before;
        assert!(reset.contains(&refused.reset_after_ms), "{refused:?}: reset within {reset:?}");
    }
}

fn allows_at_the_promised_instant_and_not_before(sut: &Sut) {
    const WINDOW: i64 = 300;
    let server = sut.server();
    let mut c = server.client();
    let mut claims = VecDeque::from([c.claim("b 2 300ms").claimed_at_ms, c.claim("b 2 300ms").claimed_at_ms]);
    for _ in 0..4 {
        let due = claims[0] + WINDOW;
        loop {
            let before = now_ms();
            let claim = c.claim("b 2 300ms");
            let after = now_ms();
            if claim.claimed {
                assert!(claim.claimed_at_ms >= due, "claimed at {} though full until {due}", claim.claimed_at_ms);
                claims.pop_front();
                claims.push_back(claim.claimed_at_ms);
                break;
            }
            assert!(before < due, "refused at {before} or later though free from {due}");
            let promised = before + claim.retry_after_ms..=after + claim.retry_after_ms;
            assert!(
                promised.contains(&due),
                "{claim:?} between {before} and {after} promises another instant than {due}"
            );
        }
    }
}

fn takes_from_all_limits_or_none(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    assert!(c.claim("b 2 1h 5 2h").claimed);
    assert!(c.claim("b 2 1h 5 2h").claimed);
    assert_eq!(c.remaining("b 5 2h").remaining, 3);
    for _ in 0..3 {
        let refused = c.claim("b 2 1h 5 2h");
        assert!(!refused.claimed);
        assert_eq!((refused.limit, refused.remaining), (2, 0));
    }
    assert_eq!(c.remaining("b 5 2h").remaining, 3, "a refusal takes nothing from the other limit");
    assert_eq!(c.claim("b 3 1h 5 2h COST 1").remaining, 0, "the bucket holds what was claimed under other limits");
}

fn reports_the_tightest_limit_when_claimed(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    let check = |c: &mut Client, arguments: &str, limit: i64, remaining: i64, reset: i64| {
        let claim = c.claim(arguments);
        let seen = (claim.claimed, claim.limit, claim.remaining, claim.reset_after_ms);
        assert_eq!(seen, (true, limit, remaining, reset), "{arguments}");
    };
    check(&mut c, "fewest-first 5 1h 10 2h", 5, 4, HOUR);
    check(&mut c, "fewest-last 10 2h 5 1h", 5, 4, HOUR);
    check(&mut c, "fewest-is-longer 10 1h 5 2h", 5, 4, 2 * HOUR);
    check(&mut c, "tie 5 1h 5 2h", 5, 4, 2 * HOUR);
    check(&mut c, "tie-turned 5 2h 5 1h", 5, 4, 2 * HOUR);
    check(&mut c, "three 9 1h 7 2h 8 3h", 7, 6, 2 * HOUR);
}

fn reports_the_longest_wait_when_refused(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    let at = c.claim("b 10 3h").claimed_at_ms;
    let check = |c: &mut Client, arguments: &str, limit: i64, window: i64| {
        let before = now_ms();
        let refused = c.claim(&format!("b {arguments}"));
        let after = now_ms();
        assert!(!refused.claimed, "{arguments}");
        assert_eq!(refused.limit, limit, "{arguments}");
        let retry = at + window - after..=at + window - before;
        assert!(retry.contains(&refused.retry_after_ms), "{arguments}: {refused:?}, retry within {retry:?}");
    };
    check(&mut c, "1 1h 1 2h", 1, 2 * HOUR);
    check(&mut c, "1 2h 1 1h", 1, 2 * HOUR);
    check(&mut c, "1 1h 5 2h", 1, HOUR);
    check(&mut c, "5 1h 1 2h", 1, 2 * HOUR);
}

fn charges_the_cost(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    assert_eq!(c.claim("b 5 1h COST 3").remaining, 2);
    assert_eq!(c.remaining("b 5 1h COST 3").remaining, 2);
    assert!(!c.remaining("b 5 1h COST 3").claimed);
    let refused = c.claim("b 5 1h COST 3");
    assert!(!refused.claimed && refused.retry_after_ms > 0, "{refused:?}");
    assert_eq!(refused.remaining, 2);
    let peek = c.remaining("b 5 1h COST 2");
    assert!(peek.claimed);
    assert_eq!(peek.remaining, 2, "before the cost");
    assert_eq!(c.claim("b 5 1h COST 2").remaining, 0);
}

fn cost_that_can_never_fit(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    for command in ["KG.CLAIM", "KG.REMAINING"] {
        let refused = Claim::from(&c.ok(format!("{command} b 5 1h COST 6")));
        assert!(!refused.claimed);
        assert_eq!((refused.limit, refused.remaining, refused.retry_after_ms), (5, 5, -1), "{command}");
        assert_eq!(refused.claimed_at_ms, 0);
        let refused = Claim::from(&c.ok(format!("{command} b 100 2h 5 1h COST 6")));
        assert_eq!((refused.claimed, refused.limit, refused.retry_after_ms), (false, 5, -1), "{command}");
    }
    assert_eq!(c.ok("EXISTS b").int(), 0, "a refused claim creates nothing");
}

fn cost_zero_charges_nothing(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    let claim = c.claim("b 5 1h COST 0");
    assert_eq!((claim.claimed, claim.remaining, claim.retry_after_ms), (true, 5, 0));
    assert_eq!(c.ok("EXISTS b").int(), 0, "nothing claimed, nothing kept");
    c.claim("b 5 1h COST 2");
    let before = c.state();
    assert_eq!(c.claim("b 5 1h COST 0").remaining, 3);
    assert_eq!(c.remaining("b 5 1h COST 0").remaining, 3);
    assert_eq!(c.state(), before);
}

fn a_lowered_limit_leaves_nothing(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    c.claim("b 10 1h COST 8");
    let peek = c.remaining("b 5 1h");
    assert_eq!((peek.claimed, peek.limit, peek.remaining), (false, 5, 0));
    let refused = c.claim("b 5 1h");
    assert_eq!((refused.claimed, refused.remaining), (false, 0));
    assert_eq!(c.remaining("b 10 1h").remaining, 2);
}

fn remaining_changes_nothing(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    let peek = c.remaining("b 3 1h");
    assert_eq!(
        peek,
        Claim { claimed: true, limit: 3, remaining: 3, retry_after_ms: 0, reset_after_ms: 0, claimed_at_ms: 0 }
    );
    assert_eq!(c.keys(), Vec::<Vec<u8>>::new(), "a peek creates nothing");
    for _ in 0..3 {
        c.claim("b 10 2h");
    }
    let before = c.state();
    eventually("a millisecond passing", || {
        c.remaining("b 10 1ms");
        expect(c.remaining("b 10 1ms").remaining == 10, || "still inside the short window".to_owned())
    });
    c.remaining("b 1 1h COST 5");
    c.remaining("b 10 7d 20 30d");
    assert_eq!(c.state(), before, "digest and expiry are as they were");
    assert_eq!(c.remaining("b 10 2h").remaining, 7, "a short peek forgets nothing that a longer window needs");
    c.claim("b 10 1ms");
    assert_eq!(c.remaining("b 10 2h").remaining, 6, "nor does a claim in a short window");
}

fn refund_gives_back(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    assert_eq!(c.ok("KG.REFUND b 1").int(), 0, "of a bucket that is not there");
    assert_eq!(c.ok("EXISTS b").int(), 0);
    let first = c.claim("b 10 1h COST 4").claimed_at_ms;
    // The next claim has another instant, so that AT tells them apart.
    eventually("a millisecond passing", || expect(now_ms() > first + 1, String::new));
    let second = c.claim("b 10 1h COST 3").claimed_at_ms;
    assert!(second > first);
    assert_eq!(c.ok("KG.REFUND b 1").int(), 1);
    assert_eq!(c.remaining("b 10 1h").remaining, 4);
    assert_eq!(c.ok(format!("KG.REFUND b 3 AT {first}")).int(), 3);
    assert_eq!(c.remaining("b 10 1h").remaining, 7);
    assert_eq!(c.ok(format!("KG.REFUND b 100 AT {first}")).int(), 1, "no more than the claim took");
    assert_eq!(c.ok(format!("KG.REFUND b 100 AT {first}")).int(), 0);
    assert_eq!(c.ok(format!("KG.REFUND b 1 AT {}", first - 1)).int(), 0, "no such claim");
    assert_eq!(c.remaining("b 10 1h").remaining, 8);
    assert_eq!(c.ok(format!("KG.REFUND b 2 AT {second}")).int(), 2);
    assert_eq!(c.remaining("b 10 1h").remaining, 10);
    assert_eq!(c.ok("KG.REFUND b 1").int(), 0, "nothing left to give back");
    for bad in ["b", "b 0", "b -1", "b x", "b 1 AT", "b 1 AT x", "b 1 AT -5", "b 1 NOW 5", "b 1 AT 5 AT 6"] {
        c.refused("ERR", &*format!("KG.REFUND {bad}"));
    }
}

fn inspect_describes_the_bucket(sut: &Sut) {
    let server = sut.server();
    let first = server.client().claim("b 10 1h COST 4").claimed_at_ms;
    let last = server.client().claim("b 10 1h 100 2h COST 3").claimed_at_ms;
    for mut c in [server.client(), server.client().resp3()] {
        let map = c.ok("KG.INSPECT b");
        assert_eq!(map.field("entries").int(), 2);
        assert_eq!(map.field("units").int(), 7);
        assert!(map.field("bytes").int() > 0);
        let span: Vec<i64> = ["oldest", "newest"].map(|name| number_with_prefix(&map, name)).to_vec();
        assert_eq!(span, [first, last]);
        assert_eq!(number_with_prefix(&map, "retention"), 2 * HOUR);
    }
}

/// A field whose name may carry its unit: `oldest_ms` for `oldest`.
fn number_with_prefix(map: &Value, prefix: &str) -> i64 {
    let fields = map.fields();
    let field = fields.iter().find(|(name, _)| name.starts_with(prefix));
    field.unwrap_or_else(|| panic!("no field {prefix} in {map:?}")).1.int()
}

fn bucket_expires_after_its_longest_window(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    let check = |c: &mut Client, arguments: &str, window: i64| {
        let at = c.claim(&format!("b {arguments}")).claimed_at_ms;
        assert_eq!(c.ok("PEXPIRETIME b").int(), at + window + 1000, "after {arguments}");
    };
    check(&mut c, "10 1h", HOUR);
    check(&mut c, "10 30m 20 2h", 2 * HOUR);
    check(&mut c, "20 3h 10 30m COST 2", 3 * HOUR);
    assert_eq!(c.ok("TYPE b").text(), "kgwindow1");
    let at = c.claim("short 1 100ms").claimed_at_ms;
    eventually("the bucket expiring", || {
        let left = c.ok("EXISTS short").int();
        let late = now_ms();
        assert!(left == 1 || late >= at + 1100, "gone at {late}, {} ms early", at + 1100 - late);
        expect(left == 0, || format!("still there at {late}"))
    });
}

fn reads_every_duration(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    let table =
        [("500ms", 500), ("30s", 30_000), ("5m", 300_000), ("2h", 2 * HOUR), ("7d", 168 * HOUR), ("90", 90_000)];
    for (window, ms) in table {
        assert_eq!(c.claim(&format!("b:{window} 5 {window}")).reset_after_ms, ms, "{window}");
    }
}

fn rejects_bad_arguments(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    let table = [
        "b",
        "b 1",
        "b 1 1s 2",
        "b 0 1s",
        "b -1 1s",
        "b x 1s",
        "b 1.5 1s",
        "b 1 0",
        "b 1 0s",
        "b 1 -1s",
        "b 1 x",
        "b 1 1y",
        "b 1 1.5s",
        "b 1 s",
        "b 1 99999999999d",
        "b 9223372036854775807 1s",
        "b 9223372036854775808 1s",
        "b 1 1s COST",
        "b 1 1s COST x",
        "b 1 1s COST -1",
        "b 1 1s COST 9223372036854775808",
        "b 1 1s COST 1 COST 1",
        "b 1 1s COST 1 UNIT tokens",
        "b 1 1s WHAT",
        "b 1 1s WHAT 1",
        "b 1 1s BLOCK",
        "b 1 1s BLOCK 5",
        "b 1 1s BLOCK 0s",
        "b 1 1s BLOCK 61m",
        "b 1 1s BLOCK 1s BLOCK 1s",
        "b 1 1s LOCKOUT",
        "b 1 1s LOCKOUT 0",
        "b 1 1s LOCKOUT 1s LOCKOUT 1s",
        "b 1 1s 1 2s 1 3s 1 4s 1 5s 1 6s 1 7s 1 8s 1 9s",
    ];
    for command in ["KG.CLAIM", "KG.REMAINING"] {
        for arguments in table {
            c.refused("ERR", &*format!("{command} {arguments}"));
        }
        c.refused("ERR", command);
    }
    for option in ["BLOCK", "LOCKOUT"] {
        c.refused("ERR", &*format!("KG.REMAINING b 1 1s {option} 5s"));
    }
    for bad in ["KG.INSPECT", "KG.INSPECT b c", "KG.REFUND"] {
        c.refused("ERR", bad);
    }
    assert_eq!(c.keys(), Vec::<Vec<u8>>::new(), "what is refused creates nothing");
    assert!(c.claim("b 1 1s 1 2s 1 3s 1 4s 1 5s 1 6s 1 7s 1 8s").claimed, "eight limits are accepted");
}

fn options_in_any_order_and_case(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    assert_eq!(Claim::from(&c.ok("kg.claim b 5 1h cost 2")).remaining, 3);
    assert_eq!(Claim::from(&c.ok("Kg.Remaining b 5 1h Cost 2")).remaining, 3);
    let at = c.claim("b 5 1h").claimed_at_ms;
    assert_eq!(c.ok(format!("kg.refund b 1 at {at}")).int(), 1);
}

fn refuses_names_of_a_store(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    c.ok("KG.ADDORG acme shop");
    let before = c.state();
    let tails =
        ["key:1", "win:1", "digest:x", "starts:x", "pool:x", "orgs", "org:x", "orgwin:x", "ips", "usage", "stats:day"];
    for tail in tails {
        for bucket in [format!("{{acme}}:{tail}"), format!("{{nobody}}:{tail}")] {
            for command in [format!("KG.CLAIM {bucket} 5 1h"), format!("KG.REFUND {bucket} 1")] {
                assert!(c.err(&command).contains("store"), "{command}");
            }
        }
    }
    assert_eq!(c.state(), before);
    for name in ["{acme}", "{acme}:other", "x{acme}:ips", "acme:ips", "{}:ips", "{a", "a}b", "{acme}:orgsx"] {
        assert!(c.claim(&format!("{name} 5 1h")).claimed, "{name} is anybody's");
    }
}

fn refuses_other_types(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    c.ok("SET string x");
    c.ok("HSET hash f v");
    c.ok("RPUSH list x");
    c.ok("KG.ADDORG acme shop LIMIT 5 1h");
    c.ok("KG.BLOCKIP acme 192.0.2.1 1h");
    let before = c.state();
    for key in ["string", "hash", "list", "acme"] {
        for command in ["KG.CLAIM KEY 5 1h", "KG.REMAINING KEY 5 1h", "KG.REFUND KEY 1", "KG.INSPECT KEY"] {
            c.refused("WRONGTYPE", &*command.replace("KEY", key));
        }
    }
    assert_eq!(c.state(), before);
    c.claim("b 5 1h");
    c.refused("WRONGTYPE", "GET b");
    c.refused("WRONGTYPE", "HGETALL b");
    c.refused("WRONGTYPE", "KG.AUTH b some-key");
}

fn a_bucket_is_full_at_a_million_entries(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    let script = "for i = 1, 100000 do redis.call('KG.CLAIM', KEYS[1], 2000000, '1h') end \
                  return redis.call('KG.CLAIM', KEYS[1], 2000000, '1h', 'COST', 0)";
    for portion in 1..=10 {
        let claim = Claim::from(&c.ok(args!["EVAL", script, "1", "b"]));
        assert_eq!(claim.remaining, 2_000_000 - portion * 100_000);
    }
    let before = c.state();
    c.refused("BUCKETFULL", "KG.CLAIM b 2000000 1h");
    assert_eq!(c.state(), before);
    c.refused("BUCKETFULL", "KG.REMAINING b 2000000 1h");
    assert_eq!(c.remaining("b 2000000 1h COST 0").remaining, 1_000_000);
    let digest = c.state_of(b"b");
    c.ok("DEBUG RELOAD");
    assert_eq!(c.state_of(b"b"), digest);
    assert_eq!(c.ok("KG.REFUND b 1").int(), 1);
}

fn speaks_resp3(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client().resp3();
    assert_eq!(c.claim("b 3 1h").remaining, 2);
    assert_eq!(c.remaining("b 3 1h").remaining, 2);
    assert!(matches!(c.ok("KG.INSPECT b"), Value::Map(_)));
    assert!(matches!(server.client().ok("KG.INSPECT b"), Value::Array(_)));
    c.refused("ERR", "KG.CLAIM b");
}

fn works_in_multi(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    for command in ["MULTI", "KG.CLAIM b 2 1h", "KG.REMAINING b 2 1h", "KG.CLAIM b 2 1h", "KG.CLAIM b 2 1h", "PING"] {
        c.ok(command);
    }
    let replies = c.ok("EXEC");
    let claims: Vec<Claim> = replies.list()[..4].iter().map(Claim::from).collect();
    assert_eq!(claims.iter().map(|claim| claim.claimed).collect::<Vec<_>>(), [true, true, true, false]);
    assert_eq!(claims.iter().map(|claim| claim.remaining).collect::<Vec<_>>(), [1, 1, 0, 0]);
}

fn works_in_a_script(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    let script = "local first = redis.call('KG.CLAIM', KEYS[1], 1, '1h') \
                  local second = redis.call('KG.CLAIM', KEYS[1], 1, '1h') \
                  return {first, second, redis.call('KG.REMAINING', KEYS[1], 1, '1h')}";
    let replies = c.ok(args!["EVAL", script, "1", "b"]);
    let claimed: Vec<bool> = replies.list().iter().map(|reply| Claim::from(reply).claimed).collect();
    assert_eq!(claimed, [true, false, false]);
    let caught = c.ok(args!["EVAL", "return redis.pcall('KG.CLAIM', KEYS[1], 0, '1h').err", "1", "b"]).text();
    assert!(caught.starts_with("ERR "), "{caught}");
    let read_only = c.err(args!["EVAL_RO", script, "1", "b"]);
    assert!(read_only.to_lowercase().contains("write commands are not allowed"), "{read_only}");
}

fn a_claim_touches_watched_keys(sut: &Sut) {
    let server = sut.server();
    let (mut watcher, mut other) = (server.client(), server.client());
    other.claim("b 2 1h");
    watcher.ok("WATCH b");
    other.claim("b 2 1h");
    watcher.ok("MULTI");
    watcher.ok("PING");
    assert_eq!(watcher.ok("EXEC"), Value::Nil, "a granted claim changes the bucket");
    watcher.ok("WATCH b");
    assert!(!other.claim("b 2 1h").claimed);
    other.remaining("b 2 1h");
    other.ok("KG.INSPECT b");
    watcher.ok("MULTI");
    watcher.ok("PING");
    assert!(matches!(watcher.ok("EXEC"), Value::Array(_)), "a refused one does not");
}

fn the_bucket_is_wherever_its_key_is(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    c.claim("b 5 1h COST 2");
    c.ok("RENAME b c");
    assert_eq!(c.remaining("b 5 1h").remaining, 5);
    assert_eq!(c.remaining("c 5 1h").remaining, 3);
    c.ok("COPY c d");
    assert_eq!(c.claim("d 5 1h").remaining, 2);
    assert_eq!(c.claim("c 5 1h COST 3").remaining, 0, "the copy is one of its own");
    c.ok("SWAPDB 0 1");
    assert_eq!(c.claim("c 5 1h").remaining, 4);
    c.ok("SWAPDB 0 1");
    assert!(!c.claim("c 5 1h").claimed);
    c.ok("MOVE d 1");
    assert_eq!(c.remaining("d 5 1h").remaining, 5);
    c.ok("FLUSHALL");
    assert_eq!(c.claim("c 5 1h").remaining, 4);
    c.ok("DEL c");
    assert_eq!(c.claim("c 5 1h").remaining, 4);
    c.ok("UNLINK c");
    assert_eq!(c.claim("c 5 1h").remaining, 4);
    c.ok("FLUSHALL ASYNC");
    assert_eq!(c.claim("c 5 1h").remaining, 4);
}

fn never_more_than_count_under_concurrency(sut: &Sut) {
    const COUNT: usize = 20;
    const WINDOW: i64 = 200;
    let server = Arc::new(sut.server());
    let stop = Arc::new(AtomicBool::new(false));
    let workers: Vec<_> = (0..8)
        .map(|_| {
            let (mut c, stop) = (server.client(), Arc::clone(&stop));
            thread::spawn(move || {
                let mut claims = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let claim = c.claim("b 20 200ms 1000 1h");
                    claims.extend(claim.claimed.then_some(claim.claimed_at_ms));
                }
                claims
            })
        })
        .collect();
    let start = Instant::now();
    let mut c = server.client();
    eventually("five windows' worth of claims", || {
        let used = 1000 - c.remaining("b 1000 1h").remaining;
        expect(used >= 5 * COUNT as i64 && start.elapsed() > Duration::from_secs(1), || format!("{used} claims"))
    });
    stop.store(true, Ordering::Relaxed);
    let mut claims: Vec<i64> = workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect();
    claims.sort_unstable();
    assert_eq!(claims.len() as i64, 1000 - c.remaining("b 1000 1h").remaining, "every claim is counted once");
    for pair in claims.windows(COUNT + 1) {
        let span = pair[COUNT] - pair[0];
        assert!(span >= WINDOW, "{} claims within {span} ms", COUNT + 1);
    }
}

fn agrees_with_a_list_of_timestamps(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    let seed = rand::random();
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    // The naive model: every claim with its instant and what is left of its cost.
    let mut log: Vec<(i64, i64)> = Vec::new();
    let limits = [(7, 20), (15, 80), (40, 400), (1_000_000, HOUR)];
    let used = |log: &[(i64, i64)], now: i64, window: i64| -> i64 {
        log.iter().filter(|(at, _)| now < at + window).map(|(_, cost)| cost).sum()
    };
    let deadline = Instant::now() + Duration::from_secs(2);
    while Instant::now() < deadline {
        // Any prefix of the limits; the longest is always among them, so that the bucket keeps all it needs.
        let chosen = &limits[rng.random_range(0..limits.len())..];
        let text: String = chosen.iter().map(|(count, window)| format!(" {count} {window}ms")).collect();
        let cost = if rng.random_bool(0.7) { 1 } else { rng.random_range(0..10) };
        if rng.random_bool(0.1) && !log.is_empty() {
            let index = rng.random_range(log.len().saturating_sub(20)..log.len());
            let (at, left) = log[index];
            // Several claims of one instant cannot be told apart by it.
            if log.iter().filter(|(other, _)| *other == at).count() == 1 {
                let wanted = rng.random_range(1..5);
                let given = c.ok(format!("KG.REFUND b {wanted} AT {at}")).int();
                assert_eq!(given, wanted.min(left), "refund of {wanted} of the {left} claimed at {at}");
                log[index].1 -= given;
            }
            continue;
        }
        let before = now_ms();
        let peek = rng.random_bool(0.2);
        let arguments = format!("b{text} COST {cost}");
        let reply = if peek { c.remaining(&arguments) } else { c.claim(&arguments) };
        let after = now_ms();
        let fits = |now: i64| chosen.iter().all(|(count, window)| used(&log, now, *window) + cost <= *count);
        let seen = format!("{arguments} between {before} and {after}: {reply:?}");
        if reply.claimed && !peek && cost > 0 {
            let at = reply.claimed_at_ms;
            assert!((before..=after).contains(&at), "{seen}");
            assert!(fits(at), "claimed though it does not fit; {seen}");
            let left = chosen.iter().map(|(count, window)| (count - used(&log, at, *window) - cost).max(0)).min();
            assert_eq!(Some(reply.remaining), left, "{seen}");
            log.push((at, cost));
        } else if reply.claimed {
            // The older the log, the emptier: what fitted at the server's instant fits at the end of ours.
            assert!(fits(after), "would not fit; {seen}");
        } else {
            assert!(!fits(before), "refused though it fits; {seen}");
            let retry = reply.retry_after_ms;
            if retry == -1 {
                assert!(chosen.iter().any(|(count, _)| cost > *count), "{seen}");
            } else {
                assert!(fits(after + retry), "would still not fit after the wait; {seen}");
                assert!(!fits(before + retry - 1), "would have fitted earlier; {seen}");
            }
        }
    }
    assert!(log.len() > 50, "the model has seen only {} claims", log.len());
}

fn full_memory_refuses_to_claim(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    c.claim("b 5 1h COST 2");
    c.ok("CONFIG SET maxmemory 1");
    let before = c.state_of(b"b");
    c.refused("OOM", "KG.CLAIM b 5 1h");
    c.refused("OOM", "KG.CLAIM new 5 1h");
    assert_eq!(c.remaining("b 5 1h").remaining, 3);
    assert_eq!(c.state_of(b"b"), before);
    c.ok("CONFIG SET maxmemory 0");
    assert_eq!(c.claim("b 5 1h").remaining, 2);
}

fn clients_cannot_apply_effects(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    c.claim("b 5 1h COST 2");
    let before = c.state();
    for payload in [&b""[..], b"x", b"\x00\x01\x02", &[0xff; 64]] {
        for key in ["b", "new", "{acme}:ips"] {
            let text = c.err(args!["KG.APPLY", key, payload]);
            assert!(text.contains("clients"), "{text}");
        }
    }
    for command in ["MULTI", "KG.APPLY b x"] {
        c.call(command);
    }
    c.call("EXEC");
    c.err(args!["EVAL", "return redis.call('KG.APPLY', KEYS[1], 'x')", "1", "b"]);
    assert_eq!(c.state(), before);
}
