//! Usage: what `KG.AUTH` and `KG.LOG` count and log, and how `KG.STATS` and `KG.USAGE` tell it.

use std::collections::BTreeMap;

use rand::{RngExt, SeedableRng, rngs::StdRng};
use redis::Value;

use crate::harness::{Client, Reply, Server, Sut, args, eventually, expect, now_ms, server_tests, usage_written};

server_tests![
    counts_are_those_of_the_calls_and_of_the_log,
    what_waits_is_told_at_once,
    a_log_entry_is_what_was_told,
    what_cannot_be_logged_is_refused,
    pages_stay_valid_while_entries_come,
    active_keys_are_counted_through_every_change,
    the_log_is_bounded_by_entries,
    the_log_is_bounded_by_age,
    a_flood_of_refusals_fills_neither_the_log_nor_the_memory,
    a_call_is_not_replicated_and_a_flush_is,
    a_replica_has_the_same_and_answers_the_same,
    what_was_flushed_survives_a_kill,
    an_idle_server_writes_nothing,
    a_store_that_goes_takes_its_usage_along,
    a_deleted_key_takes_its_statistics_along,
    databases_keep_their_own,
    a_demoted_primary_forgets_what_waits,
    nothing_is_written_while_writes_are_paused,
    foreign_values_stop_nothing,
    settings_turn_it_off_and_on,
];

/// A server that counts, with a store `acme` of one organization.
fn counting(sut: &Sut) -> Server {
    let server = sut.setup().counting_usage().start();
    server.client().ok("KG.ADDORG acme shop");
    server
}

fn new_key(c: &mut Client, options: &str) -> (i64, String) {
    let reply = c.ok(format!("KG.NEWKEY acme shop {options}"));
    (reply.list()[0].int(), reply.list()[1].text())
}

fn log(c: &mut Client, id: i64, status: u16, latency_ms: u64) {
    c.ok(format!("KG.LOG acme {id} PATH /x METHOD GET STATUS {status} LATENCY {latency_ms}"));
}

/// All entries of the log, newest first, as KG.USAGE pages them.
fn all_entries(c: &mut Client, options: &str, count: usize) -> Vec<Value> {
    let (mut all, mut cursor) = (Vec::new(), "0".to_owned());
    loop {
        let page = c.ok(format!("KG.USAGE acme {options} COUNT {count} CURSOR {cursor}"));
        all.extend(page.list()[1].list().iter().cloned());
        cursor = page.list()[0].text();
        if cursor == "0" {
            return all;
        }
    }
}

fn counts(stats: &Value, names: &[&str]) -> Vec<i64> {
    names.iter().map(|name| stats.field(name).int()).collect()
}

fn refusals(stats: &Value) -> BTreeMap<String, i64> {
    stats.field("refusals").fields().into_iter().map(|(code, count)| (code, count.int())).collect()
}

const TOTALS: [&str; 4] = ["requests", "refused", "logged", "errors"];

fn counts_are_those_of_the_calls_and_of_the_log(sut: &Sut) {
    let server = counting(sut);
    let mut c = server.client();
    let keys: Vec<(i64, String)> =
        ["a", "b LIMIT 20 1h", "c SCOPES read", "d"].map(|options| new_key(&mut c, options)).into();
    c.ok(format!("KG.REVOKE acme {}", keys[3].0));
    let mut rng = StdRng::seed_from_u64(7);
    let (mut codes, mut by_key) = (BTreeMap::<String, i64>::new(), BTreeMap::<i64, [i64; 5]>::new());
    let mut logged = [0; 3];
    for _ in 0..300 {
        let (id, raw) = &keys[rng.random_range(0..4)];
        let raw = if rng.random_range(0..10) == 0 { "unknown" } else { raw };
        let scope = if rng.random_range(0..3) == 0 { "SCOPE write" } else { "" };
        let reply = c.ok(format!("KG.AUTH acme {raw} IP 192.0.2.1 PATH /x METHOD GET {scope}"));
        let code = reply.field("code").text();
        if let Some(known) = reply.get("id") {
            assert_eq!(known.int(), *id);
            by_key.entry(*id).or_default()[usize::from(code != "VALID")] += 1;
        }
        *codes.entry(code).or_default() += 1;
        let (status, latency_ms) = (rng.random_range(100..600_u16), rng.random_range(0..100_u64));
        let of = if rng.random_range(0..5) == 0 { 0 } else { *id };
        log(&mut c, of, status, latency_ms);
        logged[0] += 1;
        logged[1] += i64::from(status >= 400);
        logged[2] += latency_ms as i64;
        if of > 0 {
            let counts = by_key.entry(of).or_default();
            counts[2] += 1;
            counts[3] += i64::from(status >= 400);
            counts[4] += latency_ms as i64;
        }
    }
    let valid = codes.remove("VALID").unwrap_or(0);
    let refused: i64 = codes.values().sum();
    let check = |c: &mut Client| {
        let stats = c.ok("KG.STATS acme HOURS 2");
        assert_eq!(counts(&stats, &TOTALS), [valid, refused, logged[0], logged[1]]);
        assert_eq!(counts(&stats, &["requests_last_hour", "refused_last_hour"]), [valid, refused]);
        assert_eq!(refusals(&stats), codes);
        assert_eq!(stats.field("latency_ms").int(), logged[2] / logged[0]);
        let rate = (logged[1] as f64 * 10_000.0 / logged[0] as f64).round() / 100.0;
        assert_eq!(stats.field("error_rate").text(), rate.to_string());
        assert_eq!(stats.field("unlogged").int(), 0);
        let hours = stats.field("hours");
        let sum = |name: &str| hours.list().iter().map(|hour| hour.field(name).int()).sum::<i64>();
        assert_eq!(TOTALS.map(sum), [valid, refused, logged[0], logged[1]]);
        assert!(hours.list().iter().all(|hour| hour.field("hour").int() % 3_600_000 == 0));
        let mut top: Vec<(i64, i64)> = by_key.iter().map(|(id, counts)| (counts[0], -id)).collect();
        top.retain(|(requests, _)| *requests > 0);
        top.sort_unstable_by(|one, other| other.cmp(one));
        let shown = stats.field("top_keys");
        let shown: Vec<(i64, i64)> =
            shown.list().iter().map(|key| (key.field("requests").int(), -key.field("id").int())).collect();
        assert_eq!(shown, top);
        for (id, of_key) in &by_key {
            let stats = c.ok(format!("KG.STATS acme KEY {id} DAYS 2"));
            assert_eq!(counts(&stats, &TOTALS), of_key[..4], "key {id}");
            assert_eq!(stats.field("latency_ms").int(), of_key[4].checked_div(of_key[2]).unwrap_or(0));
            assert_eq!(stats.get("last_used_at").is_some(), of_key[0] > 0);
            let days = stats.field("days");
            let sum = |name: &str| days.list().iter().map(|day| day.field(name).int()).sum::<i64>();
            assert_eq!(TOTALS.map(sum).as_slice(), &of_key[..4]);
        }
    };
    check(&mut c);
    usage_written(&mut c);
    check(&mut c);

    // The log by hand.
    let entries = all_entries(&mut c, "", 37);
    assert_eq!(entries.len() as i64, refused + logged[0]);
    assert_eq!(c.ok("KG.STATS acme").field("log_entries").int(), entries.len() as i64);
    assert_eq!(c.ok("XLEN {acme}:usage").int(), entries.len() as i64);
    let mut by_code = BTreeMap::new();
    entries.iter().filter_map(|entry| entry.get("code")).for_each(|code| *by_code.entry(code.text()).or_default() += 1);
    assert_eq!(by_code, codes);
    let of_status: Vec<&Value> = entries.iter().filter(|entry| entry.get("status").is_some()).collect();
    assert_eq!(of_status.iter().filter(|entry| entry.field("status").int() >= 400).count() as i64, logged[1]);
    assert_eq!(of_status.iter().map(|entry| entry.field("latency_ms").int()).sum::<i64>(), logged[2]);
    assert!(entries.is_sorted_by(|newer, older| newer.field("at").int() >= older.field("at").int()));
    let id = keys[0].0;
    let of_key = all_entries(&mut c, &format!("KEY {id}"), 500);
    let expected: Vec<&Value> =
        entries.iter().filter(|entry| entry.get("id").is_some_and(|of| of.int() == id)).collect();
    assert_eq!(of_key.iter().collect::<Vec<_>>(), expected);
    // The log and the statistics are what people can read and what a reload keeps.
    let before = c.state();
    c.ok("DEBUG RELOAD");
    assert_eq!(c.state(), before);
    check(&mut c);
}

fn what_waits_is_told_at_once(sut: &Sut) {
    let server = counting(sut);
    let mut c = server.client();
    let (id, raw) = new_key(&mut c, "web");
    for n in 1..50 {
        assert_eq!(c.code(format!("KG.AUTH acme {raw}")), "VALID");
        assert_eq!(c.ok("KG.STATS acme").field("requests").int(), n);
        assert_eq!(c.ok(format!("KG.STATS acme KEY {id}")).field("requests").int(), n);
        let top = c.ok("KG.STATS acme").field("top_keys").list()[0].clone();
        assert_eq!(counts(&top, &["id", "requests"]), [id, n]);
        assert_eq!((top.field("label").text(), top.field("start").text()), ("web".to_owned(), raw[..14].to_owned()));
    }
    // The rate is a number for clients that know such.
    let mut c = server.client().resp3();
    log(&mut c, id, 500, 7);
    log(&mut c, 0, 200, 8);
    log(&mut c, 0, 200, 8);
    assert_eq!(c.ok("KG.STATS acme").field("error_rate"), Value::Double(33.33));
}

fn a_log_entry_is_what_was_told(sut: &Sut) {
    let server = counting(sut);
    let mut c = server.client();
    let (id, raw) = new_key(&mut c, "web SCOPES read");
    let before = now_ms();
    c.ok(args![
        "KG.LOG",
        "acme",
        id,
        "path",
        b"/a\xff\n/b?token=secret".as_slice(),
        "METHOD",
        "PATCH",
        "status",
        "418",
        "latency",
        "86400000",
        "ip",
        "::ffff:192.0.2.9"
    ]);
    c.ok("KG.LOG acme 0 LATENCY 0 STATUS 100 METHOD x PATH /");
    c.code(format!("KG.AUTH acme {raw} SCOPE write IP 2001:db8::7 PATH /z?q METHOD GET"));
    c.code("KG.AUTH acme nothing");
    // What was let in is logged by KG.LOG.
    c.code(format!("KG.AUTH acme {raw}"));
    c.code(format!("KG.CHECK acme {raw} SCOPE write"));
    usage_written(&mut c);
    let entries = all_entries(&mut c, "", 10);
    let shown: Vec<Vec<(String, String)>> = entries
        .iter()
        .map(|entry| {
            let at = entry.field("at").int();
            assert!((before..=now_ms()).contains(&at));
            let fields = entry.fields().into_iter().filter(|(name, _)| name != "at");
            let text = |value: &Value| match value {
                Value::Int(number) => number.to_string(),
                other => other.text(),
            };
            fields.map(|(name, value)| (name, text(&value))).collect()
        })
        .collect();
    let fields = |fields: &[(&str, &str)]| {
        fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect::<Vec<_>>()
    };
    let id = id.to_string();
    assert_eq!(
        shown,
        [
            fields(&[("code", "NOT_FOUND")]),
            fields(&[
                ("id", &id),
                ("code", "INSUFFICIENT_SCOPE"),
                ("method", "GET"),
                ("path", "/z"),
                ("ip", "2001:db8::7")
            ]),
            fields(&[("status", "100"), ("latency_ms", "0"), ("method", "x"), ("path", "/")]),
            fields(&[
                ("id", &id),
                ("status", "418"),
                ("latency_ms", "86400000"),
                ("method", "PATCH"),
                ("path", "/a%FF%0A/b"),
                ("ip", "192.0.2.9")
            ]),
        ]
    );
    // Entries that somebody else adds are shown as far as they are ours.
    c.ok("XADD {acme}:usage * status many what ever id 7 path /p");
    assert_eq!(all_entries(&mut c, "KEY 7", 10)[0].field("path").text(), "/p");
}

fn what_cannot_be_logged_is_refused(sut: &Sut) {
    let server = counting(sut);
    let mut c = server.client();
    let (id, _) = new_key(&mut c, "web");
    let call = |id: &str, path: &str, method: &str, status: &str, latency: &str| {
        args!["KG.LOG", "acme", id, "PATH", path, "METHOD", method, "STATUS", status, "LATENCY", latency]
    };
    c.ok(call(&id.to_string(), "/", "GET", "599", "0"));
    c.refused("NOSUCH", call("999", "/", "GET", "200", "0"));
    c.refused("NOSTORE", args!["KG.LOG", "none", "0", "PATH", "/", "METHOD", "GET", "STATUS", "200", "LATENCY", "1"]);
    for (path, method, status, latency) in [
        (&*"x".repeat(2_049), "GET", "200", "1"),
        ("/", "", "200", "1"),
        ("/", "G T", "200", "1"),
        ("/", &"x".repeat(33), "200", "1"),
        ("/", "GET", "99", "1"),
        ("/", "GET", "600", "1"),
        ("/", "GET", "70000", "1"),
        ("/", "GET", "200", "-1"),
        ("/", "GET", "200", "1.5"),
        ("/", "GET", "200", "86400001"),
        ("/", "GET", "200", "99999999999"),
    ] {
        c.refused("ERR", call("0", path, method, status, latency));
    }
    for bad in [
        "KG.LOG acme x PATH / METHOD GET STATUS 200 LATENCY 1",
        "KG.LOG acme 0 PATH / METHOD GET STATUS 200 IP 192.0.2.1",
        "KG.LOG acme 0 PATH / METHOD GET STATUS 200 LATENCY 1 IP nowhere",
        "KG.LOG acme 0 PATH / PATH / METHOD GET STATUS 200 LATENCY 1",
        "KG.LOG acme 0 PATH / METHOD GET STATUS 200 LATENCY 1 WHAT",
        "KG.STATS acme HOURS 0",
        "KG.STATS acme HOURS 2161",
        "KG.STATS acme DAYS 3",
        "KG.STATS acme KEY 2 HOURS 3",
        "KG.STATS acme KEY 2 DAYS 91",
        "KG.STATS acme KEY x",
        "KG.USAGE acme COUNT 0",
        "KG.USAGE acme COUNT 501",
        "KG.USAGE acme CURSOR 5",
        "KG.USAGE acme CURSOR 5-x",
        "KG.USAGE acme FROM never",
        "KG.USAGE acme TO 2026",
        "KG.USAGE acme WHAT",
    ] {
        let reply = c.call(bad);
        assert!(reply.is_error() || bad.ends_with("TO 2026"), "{bad}: {reply:?}");
    }
    c.refused("NOSUCH", "KG.STATS acme KEY 999");
    c.refused("NOSTORE", "KG.STATS none");
    c.refused("NOSTORE", "KG.USAGE none");
    assert_eq!(c.ok("KG.STATS acme").field("logged").int(), 1);
}

fn pages_stay_valid_while_entries_come(sut: &Sut) {
    let server = counting(sut);
    let mut c = server.client();
    for n in 0..500 {
        log(&mut c, 0, 200, n);
    }
    usage_written(&mut c);
    let at = |entry: &Value| entry.field("at").int();
    let before = all_entries(&mut c, "", 100);
    let (mut seen, mut cursor) = (Vec::new(), "0".to_owned());
    loop {
        let page = c.ok(format!("KG.USAGE acme COUNT 60 CURSOR {cursor}"));
        seen.extend(page.list()[1].list().iter().map(|entry| entry.field("latency_ms").int()));
        cursor = page.list()[0].text();
        if cursor == "0" {
            break;
        }
        log(&mut c, 0, 200, 9_999);
        usage_written(&mut c);
    }
    assert_eq!(seen, (0..500).rev().collect::<Vec<i64>>());
    assert_eq!(c.ok("KG.USAGE acme").list()[1].list().len(), 100, "without a count");
    // From and to are within.
    let (first, last) = (at(&before[499]) / 1000, at(&before[0]) / 1000 + 1);
    assert_eq!(all_entries(&mut c, &format!("FROM {first} TO {last}"), 500).len(), 500);
    assert!(all_entries(&mut c, &format!("TO {first}"), 500).is_empty());
    assert!(all_entries(&mut c, "FROM 2100-01-01T00:00:00Z", 500).is_empty());
    // A call looks at 500 entries: a page may be empty, and not the last.
    let (id, _) = new_key(&mut c, "web");
    log(&mut c, id, 204, 1);
    usage_written(&mut c);
    let many = vec![args!["KG.LOG", "acme", "0", "PATH", "/", "METHOD", "GET", "STATUS", "200", "LATENCY", "1"]; 2_000];
    c.pipeline(&many);
    usage_written(&mut c);
    let page = c.ok(format!("KG.USAGE acme KEY {id}"));
    assert!(page.list()[1].list().is_empty() && page.list()[0].text() != "0");
    assert_eq!(all_entries(&mut c, &format!("KEY {id}"), 10).len(), 1);
}

fn active_keys_are_counted_through_every_change(sut: &Sut) {
    let server = counting(sut);
    let mut c = server.client();
    let mut rng = StdRng::seed_from_u64(11);
    // Of every key whether it is active; of those that are revoked nothing changes any more.
    let mut keys: Vec<(i64, String, Option<bool>)> = Vec::new();
    for step in 0..300 {
        let chosen = (!keys.is_empty()).then(|| rng.random_range(0..keys.len()));
        match (rng.random_range(0..7), chosen) {
            (0 | 1, _) | (_, None) => {
                let (id, raw) = new_key(&mut c, "web");
                keys.push((id, raw, Some(true)));
            }
            (2 | 3, Some(index)) => {
                let active = rng.random_range(0..2) == 1;
                let reply =
                    c.call(format!("KG.SETKEY acme {} ACTIVE {}", keys[index].0, if active { "yes" } else { "no" }));
                if keys[index].2.is_some() {
                    assert!(!reply.is_error());
                    keys[index].2 = Some(active);
                }
            }
            (4, Some(index)) => {
                let (id, raw, _) = &keys[index];
                let by_id = rng.random_range(0..2) == 0;
                c.ok(if by_id { format!("KG.REVOKE acme {id}") } else { format!("KG.REVOKE acme KEY {raw}") });
                keys[index].2 = None;
            }
            (5, Some(index)) => {
                let (id, ..) = keys.swap_remove(index);
                assert_eq!(c.ok(format!("KG.DELKEY acme {id}")).int(), 1);
            }
            (_, Some(index)) if keys[index].2.is_some() => {
                keys[index].1 = c.ok(format!("KG.ROTATE acme {}", keys[index].0)).list()[1].text();
            }
            _ => {}
        }
        let stats = c.ok("KG.STATS acme");
        let active = keys.iter().filter(|(.., active)| *active == Some(true)).count() as i64;
        assert_eq!(counts(&stats, &["keys", "active_keys"]), [keys.len() as i64, active], "after step {step}");
    }
    c.ok("KG.ADDKEY acme vendor a-secret");
    assert_eq!(counts(&c.ok("KG.STATS acme"), &["organizations", "vault_keys"]), [1, 1]);
}

fn the_log_is_bounded_by_entries(sut: &Sut) {
    let server = counting(sut);
    let mut c = server.client();
    c.ok("CONFIG SET keyguard.usage-log-entries 100");
    for n in 0..250 {
        log(&mut c, 0, 200, n);
    }
    usage_written(&mut c);
    let latencies = |c: &mut Client| -> Vec<i64> {
        all_entries(c, "", 500).iter().map(|entry| entry.field("latency_ms").int()).collect()
    };
    assert_eq!(latencies(&mut c), (150..250).rev().collect::<Vec<_>>());
    assert_eq!(c.ok("XLEN {acme}:usage").int(), 100);
    // Many more at once than one slice takes away.
    c.ok("CONFIG SET keyguard.usage-log-entries 10000000");
    let many = vec![args!["KG.LOG", "acme", "0", "PATH", "/", "METHOD", "GET", "STATUS", "200", "LATENCY", "1"]; 5_000];
    c.pipeline(&many);
    usage_written(&mut c);
    assert_eq!(c.ok("XLEN {acme}:usage").int(), 5_100);
    c.ok("CONFIG SET keyguard.usage-log-entries 7");
    log(&mut c, 0, 200, 77);
    usage_written(&mut c);
    assert_eq!(c.ok("XLEN {acme}:usage").int(), 7);
    assert_eq!(latencies(&mut c)[0], 77);
    // None at all: only counts.
    c.ok("CONFIG SET keyguard.usage-log-entries 0");
    log(&mut c, 0, 200, 78);
    c.code("KG.AUTH acme nothing");
    usage_written(&mut c);
    assert_eq!(c.ok("EXISTS {acme}:usage").int(), 0);
    let stats = c.ok("KG.STATS acme");
    assert_eq!(counts(&stats, &["logged", "refused", "log_entries", "unlogged"]), [5_252, 1, 0, 0]);
}

fn the_log_is_bounded_by_age(sut: &Sut) {
    let server = counting(sut);
    let mut c = server.client();
    // As if they were old: older than what follows, so that ids go on.
    for n in 1..=700 {
        c.ok(format!("XADD {{acme}}:usage {}-0 status 200 ms {n}", n * 1000));
    }
    assert!(all_entries(&mut c, "", 500).is_empty(), "what is too old is not shown");
    log(&mut c, 0, 200, 1);
    usage_written(&mut c);
    assert_eq!(c.ok("XLEN {acme}:usage").int(), 1);
    c.ok("CONFIG SET keyguard.usage-log-age 50ms");
    eventually("the entry being too old to be shown", || {
        let shown = c.ok("KG.USAGE acme").list()[1].list().len();
        expect(shown == 0, || format!("{shown} entries"))
    });
    c.ok("CONFIG SET keyguard.usage-log-age 1h");
    assert_eq!(all_entries(&mut c, "", 10).len(), 1);
}

fn a_flood_of_refusals_fills_neither_the_log_nor_the_memory(sut: &Sut) {
    let server = counting(sut);
    let mut c = server.client();
    let started = now_ms();
    let many = vec![args!["KG.AUTH", "acme", "nothing", "PATH", "x".repeat(3_000)]; 20_000];
    assert!(c.pipeline(&many).iter().all(|reply| !reply.is_error()));
    let mut made = 20_000;
    // One by one, for several flushes: each of them leaves nothing waiting, and what a second may log is no more for that.
    while now_ms() - started < 5_000 {
        c.code("KG.AUTH acme nothing PATH /x");
        made += 1;
    }
    usage_written(&mut c);
    let seconds = (now_ms() - started) / 1000 + 2;
    let stats = c.ok("KG.STATS acme");
    let (entries, unlogged) = (stats.field("log_entries").int(), stats.field("unlogged").int());
    assert_eq!(refusals(&stats)["NOT_FOUND"], made);
    assert_eq!(entries + unlogged, made);
    assert!((256..=256 * seconds).contains(&entries), "{entries} entries in {seconds} seconds");
    assert_eq!(c.info_number("keyguard", "keyguard_usage_rows_dropped"), unlogged);
    assert!(all_entries(&mut c, "", 500).iter().all(|entry| entry.field("path").text().len() <= 2_048));
    // Lines that wait are bounded too.
    let (id, _) = new_key(&mut c, "web");
    let line = args!["KG.LOG", "acme", id, "PATH", "x".repeat(2_000), "METHOD", "GET", "STATUS", "200", "LATENCY", "1"];
    let before = c.ok("KG.STATS acme").field("unlogged").int();
    for _ in 0..10 {
        c.pipeline(&vec![line.clone(); 2_000]);
    }
    usage_written(&mut c);
    let stats = c.ok("KG.STATS acme");
    let logged = stats.field("log_entries").int() - entries;
    assert_eq!(logged + stats.field("unlogged").int() - before, 20_000);
    assert_eq!(stats.field("logged").int(), 20_000);
}

fn a_call_is_not_replicated_and_a_flush_is(sut: &Sut) {
    let server = counting(sut);
    let replica = sut.setup().counting_usage().replica_of(&server).start();
    server.wait_for(&replica);
    let mut c = server.client();
    let (_, raw) = new_key(&mut c, "web");
    assert_eq!(c.code(format!("KG.AUTH acme {raw}")), "VALID");
    usage_written(&mut c);
    server.wait_for(&replica);
    // Within one second many calls are few effects: that of each second, and none for a call.
    let before = c.info_number("replication", "master_repl_offset");
    for _ in 0..2_000 {
        c.code("KG.AUTH acme nothing");
    }
    usage_written(&mut c);
    let grown = c.info_number("replication", "master_repl_offset") - before;
    assert!(grown < 100_000, "{grown} bytes for 2,000 refusals");
    server.wait_for(&replica);
    assert_eq!(c.state(), replica.client().state());
}

fn a_replica_has_the_same_and_answers_the_same(sut: &Sut) {
    let setup = sut.setup().counting_usage().with("appendonly", "yes").with("appendfsync", "always");
    let mut server = setup.start();
    let replica = sut.setup().counting_usage().replica_of(&server).start();
    server.wait_for(&replica);
    let (mut c, mut theirs) = (server.client(), replica.client());
    c.ok("KG.ADDORG acme shop");
    c.ok("KG.SETSTORE acme TZ Asia/Kathmandu");
    c.ok("CONFIG SET keyguard.usage-log-entries 300");
    let keys: Vec<(i64, String)> = (0..40).map(|n| new_key(&mut c, &format!("k{n} LIMIT {} 1h", n + 1))).collect();
    for round in 0..3 {
        for (id, raw) in &keys {
            for _ in 0..4 {
                c.code(format!("KG.AUTH acme {raw} IP 192.0.2.1 PATH /{round}"));
                log(&mut c, *id, 200 + round * 150, 7);
            }
        }
        if round == 1 {
            c.ok(format!("KG.DELKEY acme {}", keys[39].0));
            c.refused("NOSUCH", format!("KG.LOG acme {} PATH / METHOD GET STATUS 200 LATENCY 1", keys[39].0));
        }
        usage_written(&mut c);
        server.wait_for(&replica);
        assert_eq!(c.state(), theirs.state(), "round {round}");
        if round == 1 {
            break;
        }
    }
    let questions = [
        "KG.STATS acme HOURS 3".to_owned(),
        format!("KG.STATS acme KEY {} DAYS 3", keys[3].0),
        "KG.USAGE acme COUNT 300".to_owned(),
    ];
    let answers = questions.clone().map(|question| c.ok(question));
    assert_eq!(questions.clone().map(|question| theirs.ok(question)), answers);
    theirs.refused("READONLY", "KG.LOG acme 0 PATH / METHOD GET STATUS 200 LATENCY 1");
    let before = c.state();
    c.ok("BGREWRITEAOF");
    c.wait_for_background_work();
    c.ok("DEBUG LOADAOF");
    assert_eq!(c.state(), before);
    c.ok("CONFIG SET aof-use-rdb-preamble no");
    c.ok("BGREWRITEAOF");
    c.wait_for_background_work();
    server.restart();
    let mut c = server.client();
    assert_eq!(c.state(), before);
    assert_eq!(questions.map(|question| c.ok(question)), answers);
}

fn what_was_flushed_survives_a_kill(sut: &Sut) {
    let setup = sut.setup().counting_usage().with("appendonly", "yes").with("appendfsync", "always");
    let mut server = setup.start();
    let mut c = server.client();
    c.ok("KG.ADDORG acme shop");
    let (id, raw) = new_key(&mut c, "web");
    for _ in 0..100 {
        c.code(format!("KG.AUTH acme {raw}"));
        log(&mut c, id, 200, 3);
    }
    usage_written(&mut c);
    let before = [c.ok("KG.STATS acme"), c.ok(format!("KG.STATS acme KEY {id} DAYS 1")), c.ok("KG.USAGE acme")];
    server.kill();
    server.restart();
    let mut c = server.client();
    assert_eq!([c.ok("KG.STATS acme"), c.ok(format!("KG.STATS acme KEY {id} DAYS 1")), c.ok("KG.USAGE acme")], before);
    // What still waits is lost with the server, and it alone. So few lines are written down in one piece.
    for _ in 0..60 {
        log(&mut c, 0, 200, 3);
    }
    usage_written(&mut c);
    for _ in 0..60 {
        log(&mut c, 0, 200, 3);
    }
    server.kill();
    server.restart();
    let mut c = server.client();
    let kept = c.ok("KG.STATS acme").field("logged").int() - 100;
    assert!((60..=120).contains(&kept), "{kept}");
    assert_eq!(c.ok("XLEN {acme}:usage").int() - 100, kept, "counts and lines are those of one flush");
}

fn an_idle_server_writes_nothing(sut: &Sut) {
    let server = counting(sut);
    let mut c = server.client();
    log(&mut c, 0, 200, 3);
    usage_written(&mut c);
    assert_eq!(c.info_number("keyguard", "keyguard_usage_rows_waiting"), 0);
    let before = (c.state(), c.info_number("persistence", "rdb_changes_since_last_save"));
    // What another timer of the module writes comes after two periods of this one.
    let started = now_ms();
    eventually("two seconds", || expect(now_ms() - started > 2_100, String::new));
    assert_eq!((c.state(), c.info_number("persistence", "rdb_changes_since_last_save")), before);
}

fn a_store_that_goes_takes_its_usage_along(sut: &Sut) {
    let server = counting(sut);
    let mut c = server.client();
    for how in ["KG.DELSTORE acme", "DEL acme", "FLUSHALL", "FLUSHDB"] {
        c.call("KG.ADDORG acme shop");
        let (id, raw) = new_key(&mut c, "web");
        c.code(format!("KG.AUTH acme {raw}"));
        usage_written(&mut c);
        assert_eq!(c.ok("EXISTS {acme}:stats:all {acme}:stats:0").int(), 2);
        // Some wait when it goes.
        c.code(format!("KG.AUTH acme {raw}"));
        log(&mut c, id, 200, 1);
        while c.ok(how).int_or_zero() > 0 && how == "KG.DELSTORE acme" {}
        usage_written(&mut c);
        if how == "DEL acme" {
            let stats = c.ok("EXISTS {acme}:usage").int();
            assert_eq!(stats, 0, "nothing is written for a store that is gone");
            c.ok("FLUSHALL");
            continue;
        }
        assert_eq!(c.keys(), Vec::<Vec<u8>>::new(), "{how}");
        c.ok("KG.ADDORG acme shop");
        assert_eq!(counts(&c.ok("KG.STATS acme"), &TOTALS), [0; 4], "{how}");
        c.ok("FLUSHALL");
    }
    // Days of keys whose records somebody deleted by hand go too.
    c.ok("KG.ADDORG acme shop");
    let (id, raw) = new_key(&mut c, "web");
    c.code(format!("KG.AUTH acme {raw}"));
    usage_written(&mut c);
    c.ok(format!("DEL {{acme}}:key:{id}"));
    c.ok("DEL {acme}:ids:api");
    while c.ok("KG.DELSTORE acme").int() > 0 {}
    assert_eq!(c.ok("EXISTS {acme}:stats:all {acme}:stats:0 {acme}:usage").int(), 0);
}

/// An integer of a reply, or 0 of any other.
trait IntOrZero {
    fn int_or_zero(&self) -> i64;
}

impl IntOrZero for Value {
    fn int_or_zero(&self) -> i64 {
        if let Value::Int(number) = self { *number } else { 0 }
    }
}

fn a_deleted_key_takes_its_statistics_along(sut: &Sut) {
    let server = counting(sut);
    let mut c = server.client();
    let keys = [new_key(&mut c, "a"), new_key(&mut c, "b")];
    for (id, raw) in &keys {
        c.code(format!("KG.AUTH acme {raw}"));
        log(&mut c, *id, 200, 1);
    }
    usage_written(&mut c);
    // What waits of it goes with it, and the totals of the store stay.
    c.code(format!("KG.AUTH acme {}", keys[0].1));
    c.ok(format!("KG.DELKEY acme {}", keys[0].0));
    usage_written(&mut c);
    let stats = c.ok("KG.STATS acme");
    assert_eq!(counts(&stats, &TOTALS), [3, 0, 2, 0]);
    let top: Vec<i64> = stats.field("top_keys").list().iter().map(|key| key.field("id").int()).collect();
    assert_eq!(top, [keys[1].0]);
    c.refused("NOSUCH", format!("KG.STATS acme KEY {}", keys[0].0));
    assert_eq!(c.ok("EXISTS {acme}:stats:0").int(), 1);
    c.ok(format!("KG.DELKEY acme {}", keys[1].0));
    usage_written(&mut c);
    assert_eq!(c.ok("EXISTS {acme}:stats:0").int(), 0);
}

fn databases_keep_their_own(sut: &Sut) {
    let server = counting(sut);
    let mut c = server.client();
    c.ok("SELECT 1");
    c.ok("KG.ADDORG acme other");
    log(&mut c, 0, 500, 9);
    c.ok("SELECT 0");
    log(&mut c, 0, 200, 1);
    log(&mut c, 0, 200, 1);
    let logged = |c: &mut Client, database: i32| {
        c.ok(format!("SELECT {database}"));
        counts(&c.ok("KG.STATS acme"), &["logged", "errors"])
    };
    c.ok("SWAPDB 0 1");
    assert_eq!([logged(&mut c, 0), logged(&mut c, 1)], [[1, 1], [2, 0]]);
    usage_written(&mut c);
    assert_eq!([logged(&mut c, 0), logged(&mut c, 1)], [[1, 1], [2, 0]]);
    // Emptying one leaves what waits for the other.
    c.ok("SELECT 0");
    log(&mut c, 0, 200, 1);
    c.ok("SELECT 1");
    log(&mut c, 0, 200, 1);
    c.ok("FLUSHDB");
    usage_written(&mut c);
    assert_eq!(logged(&mut c, 0), [2, 1]);
    c.ok("SELECT 1");
    assert_eq!(c.ok("DBSIZE").int(), 0);
}

fn a_demoted_primary_forgets_what_waits(sut: &Sut) {
    let (old, new) = (counting(sut), counting(sut));
    let mut c = old.client();
    usage_written(&mut c);
    c.pipeline(&vec![args!["KG.LOG", "acme", "0", "PATH", "/", "METHOD", "GET", "STATUS", "200", "LATENCY", "1"]; 100]);
    c.ok(format!("REPLICAOF 127.0.0.1 {}", new.port()));
    usage_written(&mut c);
    new.wait_for(&old);
    assert_eq!(c.state(), new.client().state());
    assert_eq!(c.ok("KG.STATS acme").field("logged").int(), 0);
    // And as a primary again it counts afresh.
    c.ok("REPLICAOF NO ONE");
    log(&mut c, 0, 200, 1);
    usage_written(&mut c);
    assert_eq!(c.ok("KG.STATS acme").field("logged").int(), 1);
}

fn nothing_is_written_while_writes_are_paused(sut: &Sut) {
    let server = counting(sut);
    let mut c = server.client();
    log(&mut c, 0, 200, 1);
    c.ok("CLIENT PAUSE 60000 WRITE");
    let started = now_ms();
    eventually("a flush being due", || expect(now_ms() - started > 1_300, String::new));
    assert_eq!(c.ok("EXISTS {acme}:usage").int(), 0);
    assert_eq!(c.ok("KG.STATS acme").field("logged").int(), 1, "it waits");
    c.ok("CLIENT UNPAUSE");
    usage_written(&mut c);
    assert_eq!(c.ok("XLEN {acme}:usage").int(), 1);
}

fn foreign_values_stop_nothing(sut: &Sut) {
    let server = counting(sut);
    let mut c = server.client();
    let (id, raw) = new_key(&mut c, "web");
    let call = |c: &mut Client| {
        c.code(format!("KG.AUTH acme {raw}"));
        log(c, id, 200, 1);
        usage_written(c);
    };
    c.ok("SET {acme}:usage text");
    call(&mut c);
    c.refused("WRONGTYPE", "KG.USAGE acme");
    c.refused("WRONGTYPE", "KG.STATS acme");
    c.ok("DEL {acme}:usage");
    let stats = c.ok("KG.STATS acme");
    assert_eq!(counts(&stats, &["requests", "logged", "unlogged", "log_entries"]), [1, 1, 1, 0]);
    c.ok("DEL {acme}:stats:0");
    c.ok("SET {acme}:stats:0 text");
    call(&mut c);
    c.refused("WRONGTYPE", format!("KG.STATS acme KEY {id}"));
    assert_eq!(counts(&c.ok("KG.STATS acme"), &["requests", "log_entries"]), [2, 1]);
    c.ok("DEL {acme}:stats:0 {acme}:stats:all");
    c.ok("SET {acme}:stats:all text");
    call(&mut c);
    c.refused("WRONGTYPE", "KG.STATS acme");
    assert_eq!(c.ok("GET {acme}:stats:all").text(), "text");
    assert_eq!(c.ok(format!("KG.DELKEY acme {id}")).int(), 1);
    while c.ok("KG.DELSTORE acme").int() > 0 {}
    assert_eq!(c.ok("DBSIZE").int(), 0);
    // A stream whose last id leaves no room for another.
    c.ok("KG.ADDORG acme shop");
    c.ok("XADD {acme}:usage 18446744073709551615-18446744073709551615 a b");
    log(&mut c, 0, 200, 1);
    usage_written(&mut c);
    assert_eq!(c.ok("XLEN {acme}:usage").int(), 1);
    assert_eq!(counts(&c.ok("KG.STATS acme"), &["logged", "unlogged"]), [1, 1]);
}

fn settings_turn_it_off_and_on(sut: &Sut) {
    let server = counting(sut);
    let mut c = server.client();
    let shown = |c: &mut Client| -> Vec<String> {
        c.ok("CONFIG GET keyguard.usage*")
            .fields()
            .into_iter()
            .map(|(name, value)| format!("{name} {}", value.text()))
            .collect()
    };
    let mut all = shown(&mut c);
    all.sort();
    assert_eq!(all, ["keyguard.usage yes", "keyguard.usage-log-age 30d", "keyguard.usage-log-entries 100000"]);
    log(&mut c, 0, 200, 1);
    c.ok("CONFIG SET keyguard.usage no");
    let started = now_ms();
    usage_written(&mut c);
    assert!(now_ms() - started < 900, "what waits is written at once");
    log(&mut c, 0, 200, 1);
    c.code("KG.AUTH acme nothing");
    assert_eq!(c.info_number("keyguard", "keyguard_usage_stores_waiting"), 0);
    assert_eq!(counts(&c.ok("KG.STATS acme"), &["logged", "refused", "log_entries"]), [1, 0, 1]);
    c.ok("CONFIG SET keyguard.usage yes");
    log(&mut c, 0, 200, 1);
    assert_eq!(c.ok("KG.STATS acme").field("logged").int(), 2);
    for bad in ["usage-log-entries -1", "usage-log-entries 10000001", "usage-log-age 30", "usage-log-age 0s", "usage x"]
    {
        c.err(format!("CONFIG SET keyguard.{bad}"));
    }
}
