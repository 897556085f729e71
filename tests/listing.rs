//! Finding, listing, counting and deleting key records.

use std::cmp::Ordering;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use redis::Value;

use crate::harness::{Client, Reply, Sut, args, contains, populate, server_tests};

server_tests![
    lists_records_as_getkey_describes_them,
    every_filter_keeps_what_it_says,
    every_field_sorts_both_ways,
    a_page_is_what_was_asked_for,
    pages_miss_nothing_and_repeat_nothing_while_keys_come_and_go,
    no_call_looks_at_more_than_1000_records,
    no_call_looks_at_more_than_2_mebibytes_of_records,
    no_secret_and_no_digest_is_listed,
    counts_what_there_is,
    tells_how_usable_each_set_is,
    deletes_what_matches_in_slices_until_none_is_left,
    deleting_all_leaves_nothing_behind,
    damaged_records_are_an_error_and_nothing_is_half_deleted,
    any_bytes_are_a_list_of_ids,
    a_list_of_the_wrong_type_stops_what_needs_it,
    a_leap_of_ids_is_refused,
    a_replica_has_the_same_list,
    rejects_bad_arguments,
];

/// Records of all kinds.
fn fill(c: &mut Client) {
    c.ok("KG.ADDORG acme shop");
    c.ok("KG.ADDORG acme lab");
    for command in [
        "KG.ADDKEY acme openai sk-live-0123456789abcdef SOURCE billing LOGIN ops BATCH b1 ACCOUNT a2 WEIGHT 30",
        "KG.ADDKEY acme openai sk-live-0123456789abcdzz SOURCE billing LOGIN dev BATCH b2 EXPIREIN 2d INACTIVE",
        "KG.NEWKEY acme shop web SCOPES orders:* LIMIT 5 1h META {\"a\":1}",
        "KG.ADDKEY acme openai short SOURCE import BATCH b2 EXPIREAT 1 WEIGHT 4",
        "KG.NEWKEY acme lab openai EXPIREIN 1d",
        "KG.ADDKEY acme mail 0123456789abcdefghij EXPIREIN 1d LOGIN ops ACCOUNT a1 LIMIT 10 1m LIMIT 9 1d UNIT tokens",
        "KG.ADDKEY acme Mail 0123456789abcdefghij EXPIREIN 3d LOGIN ops ACCOUNT a10 META {}",
        "KG.NEWKEY acme shop api PREFIX aa_ EXPIREAT 5",
        "KG.NEWKEY acme lab web",
        "KG.ADDKEY acme mail x EXPIREAT 7 INACTIVE",
    ] {
        c.ok(command);
    }
    c.ok("KG.REVOKE acme 11");
}

/// The ids that fill gave to records, in order: the organizations have the first two.
const IDS: std::ops::RangeInclusive<i64> = 3..=12;

/// Every record, as GETKEY describes it.
fn described(c: &mut Client) -> Vec<Value> {
    IDS.map(|id| c.ok(format!("KG.GETKEY acme {id}"))).collect()
}

/// The records of a list.
fn list(c: &mut Client, tail: &str) -> Vec<Value> {
    c.ok(format!("KG.LISTKEYS acme {tail}")).list().to_vec()
}

fn ids(records: &[Value]) -> Vec<i64> {
    records.iter().map(|record| record.field("id").int()).collect()
}

fn lists_records_as_getkey_describes_them(sut: &Sut) {
    let server = sut.server();
    for mut c in [server.client(), server.client().resp3()] {
        if c.ok("EXISTS acme").int() == 0 {
            fill(&mut c);
        }
        let all = described(&mut c);
        assert_eq!(list(&mut c, ""), all);
        assert_eq!(list(&mut c, "AFTER 0 COUNT 200"), all);
        assert_eq!(list(&mut c, "SORTBY id LIMIT 0 200"), all);
        assert_eq!(list(&mut c, "NAME mail"), [all[5].clone(), all[9].clone()]);
    }
    let mut c = server.client();
    assert!(list(&mut c, "NAME nobody").is_empty());
    c.ok("KG.BLOCKIP zeta 192.0.2.1 1h");
    assert!(c.ok("KG.LISTKEYS zeta").list().is_empty());
}

/// Whether a field of a description is this text.
fn is(record: &Value, field: &str, text: &str) -> bool {
    record.get(field).is_some_and(|value| value.text() == text)
}

fn every_filter_keeps_what_it_says(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    fill(&mut c);
    let all = described(&mut c);
    let flag = |record: &Value, field: &str| record.field(field).int() == 1;
    type Keep<'a> = &'a dyn Fn(&Value) -> bool;
    let table: [(&str, Keep<'_>); 24] = [
        ("TYPE vault", &|record| is(record, "type", "vault")),
        ("type API", &|record| is(record, "type", "api")),
        ("NAME openai", &|record| is(record, "name", "openai")),
        ("NAME Mail", &|record| is(record, "name", "Mail")),
        ("NAME openai TYPE vault", &|record| is(record, "name", "openai")),
        ("NAME openai TYPE api", &|record| is(record, "label", "openai")),
        ("NAME web ORG shop", &|record| is(record, "label", "web") && is(record, "org", "shop")),
        ("NAME web", &|_| false),
        ("SOURCE billing", &|record| is(record, "source", "billing")),
        ("LOGIN ops", &|record| is(record, "login", "ops")),
        ("BATCH b2", &|record| is(record, "batch", "b2")),
        ("ACCOUNT a1", &|record| is(record, "account", "a1")),
        ("ORG lab", &|record| is(record, "org", "lab")),
        ("ORG lab TYPE vault", &|_| false),
        ("SOURCE billing TYPE api", &|_| false),
        ("ACTIVE yes", &|record| flag(record, "active")),
        ("ACTIVE no", &|record| !flag(record, "active")),
        ("EXPIRED YES", &|record| flag(record, "expired")),
        ("EXPIRED no", &|record| !flag(record, "expired")),
        ("EXPIRED no ACTIVE yes", &|record| flag(record, "usable")),
        ("EXPIRED no ACTIVE yes NAME mail", &|record| flag(record, "usable") && is(record, "name", "mail")),
        ("SOURCE billing BATCH b2", &|record| is(record, "source", "billing") && is(record, "batch", "b2")),
        ("LOGIN ops EXPIRED yes", &|_| false),
        ("TYPE api ACTIVE no", &|record| is(record, "type", "api") && !flag(record, "active")),
    ];
    for (filter, keep) in table {
        let expected: Vec<Value> = all.iter().filter(|record| keep(record)).cloned().collect();
        for page in ["", "LIMIT 0 20", "AFTER 0 COUNT 20", "SORTBY id"] {
            assert_eq!(list(&mut c, &format!("{filter} {page}")), expected, "{filter} {page}");
        }
        let count = c.ok(format!("KG.COUNTKEYS acme {filter}")).int();
        assert_eq!(count, expected.len() as i64, "{filter}");
    }
}

const FIELDS: [&str; 17] = [
    "id",
    "type",
    "name",
    "label",
    "org",
    "source",
    "login",
    "batch",
    "account",
    "status",
    "active",
    "expired",
    "usable",
    "created_at",
    "expires_at",
    "weight",
    "hint",
];

/// Two descriptions by one field: numbers as numbers, texts as bytes, what is missing last.
fn compare(left: &Value, right: &Value, field: &str, descending: bool) -> Ordering {
    let value = |record: &Value| match field {
        "hint" if is(record, "type", "api") => record.get("start"),
        _ => record.get(field),
    };
    let order = match (value(left), value(right)) {
        (Some(Value::Int(left)), Some(Value::Int(right))) => left.cmp(&right),
        (Some(left), Some(right)) => left.bytes().cmp(&right.bytes()),
        (left, right) => return left.is_none().cmp(&right.is_none()),
    };
    if descending { order.reverse() } else { order }
}

fn every_field_sorts_both_ways(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    fill(&mut c);
    let all = described(&mut c);
    for field in FIELDS {
        for (order, descending) in [("", false), ("ASC", false), ("desc", true)] {
            let mut expected = all.clone();
            expected
                .sort_by(|left, right| compare(left, right, field, descending).then(compare(left, right, "id", false)));
            let found = list(&mut c, &format!("SORTBY {field} {order}"));
            assert_eq!(ids(&found), ids(&expected), "SORTBY {field} {order}");
            assert_eq!(found, expected);
            // Two fields, and a page.
            let mut expected = all.clone();
            expected.sort_by(|left, right| {
                compare(left, right, "type", true)
                    .then(compare(left, right, field, descending))
                    .then(compare(left, right, "id", false))
            });
            let found = list(&mut c, &format!("SORTBY type DESC SORTBY {field} {order} LIMIT 3 4"));
            assert_eq!(ids(&found), ids(&expected[3..7]), "SORTBY type DESC SORTBY {field} {order}");
        }
    }
    let found = list(&mut c, "SORTBY weight DESC NAME openai");
    assert_eq!(ids(&found), [3, 6, 4]);
}

fn a_page_is_what_was_asked_for(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    fill(&mut c);
    let all: Vec<i64> = IDS.collect();
    for (page, expected) in [
        ("LIMIT 0 1", &all[..1]),
        ("LIMIT 2 3", &all[2..5]),
        ("limit 9 200", &all[9..]),
        ("LIMIT 10 1", &[]),
        ("LIMIT 1000 200", &[]),
        ("AFTER 0 COUNT 2", &all[..2]),
        ("after 3 count 2", &all[1..3]),
        ("AFTER 12 COUNT 1", &[]),
        ("AFTER 18446744073709551615 COUNT 200", &[]),
        ("TYPE api LIMIT 1 2", &[7, 10]),
        ("TYPE api AFTER 5 COUNT 2", &[7, 10]),
        ("NAME openai AFTER 3 COUNT 1", &[4]),
        ("NAME openai LIMIT 1 5", &[4, 6]),
        ("ACTIVE no LIMIT 1 1", &[11]),
    ] {
        assert_eq!(ids(&list(&mut c, page)), expected, "{page}");
    }
}

/// Adds vault keys with secrets of their own.
fn add(c: &mut Client, name: &str, count: usize, options: &str) {
    let add = |n| {
        let command = format!("KG.ADDKEY acme {name} secret-{n}-of-{name} {options}");
        command.split_ascii_whitespace().map(|word| word.as_bytes().to_vec()).collect()
    };
    let commands: Vec<Vec<Vec<u8>>> = (0..count).map(add).collect();
    assert!(c.pipeline(&commands).iter().all(|reply| !reply.is_error()));
}

fn pages_miss_nothing_and_repeat_nothing_while_keys_come_and_go(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    c.ok("KG.ADDORG acme shop");
    for n in 0..50 {
        add(&mut c, "vendor", 3, "");
        c.ok(format!("KG.NEWKEY acme shop label-{n}"));
    }
    let first: Vec<i64> = ids(&list(&mut c, ""));
    assert_eq!(first.len(), 200);
    let mut gone = Vec::new();
    let (mut seen, mut after) = (Vec::new(), 0);
    loop {
        let page = ids(&list(&mut c, &format!("AFTER {after} COUNT 7")));
        let Some(last) = page.last() else { break };
        after = *last;
        seen.extend(page);
        // One that was seen goes, one that was not, and a few more come.
        let (old, new) = (seen[seen.len() / 2], after + 9);
        if c.ok(args!["KG.DELKEY", "acme", old, new]).int() > 0 {
            gone.extend([old, new]);
        }
        if seen.len() < 200 {
            add(&mut c, "vendor", 1, "");
        }
    }
    assert!(seen.is_sorted_by(|left, right| left < right), "in order, and none twice: {seen:?}");
    let missed: Vec<&i64> = first.iter().filter(|id| !gone.contains(id) && !seen.contains(id)).collect();
    assert!(missed.is_empty(), "{missed:?}");
    assert!(seen.len() > first.len() - gone.len());
    assert!(seen.iter().any(|id| !first.contains(id)), "what came meanwhile is at the end");
}

fn no_call_looks_at_more_than_1000_records(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    add(&mut c, "some", 980, "SOURCE a");
    add(&mut c, "few", 30, "SOURCE b");
    assert_eq!(list(&mut c, "").len(), 200);
    assert_eq!(ids(&list(&mut c, "LIMIT 800 200")), (801..=1000).collect::<Vec<i64>>());
    assert_eq!(ids(&list(&mut c, "AFTER 990 COUNT 200")), (991..=1010).collect::<Vec<i64>>());
    assert_eq!(list(&mut c, "NAME few SORTBY id DESC").len(), 30);
    assert_eq!(list(&mut c, "NAME few SOURCE a").len(), 0);
    assert_eq!(list(&mut c, "SOURCE b LIMIT 0 20").len(), 20, "full before the end");
    let before = c.state();
    for tail in ["LIMIT 801 200", "LIMIT 1000 1", "SORTBY name", "SOURCE b", "SOURCE b LIMIT 0 21", "SOURCE nobody"] {
        let text = c.refused("TOOMANY", &*format!("KG.LISTKEYS acme {tail}"));
        assert!(text.contains("1000") && text.contains("AFTER"), "{text}");
    }
    for filter in ["ACTIVE yes", "SOURCE b", "TYPE vault EXPIRED no"] {
        let text = c.refused("TOOMANY", &*format!("KG.COUNTKEYS acme {filter}"));
        assert!(text.contains("NAME"), "{text}");
    }
    assert!(c.refused("TOOMANY", "KG.USABILITY acme").contains("NAME"));
    c.refused("TOOMANY", "KG.DELKEY acme MATCH TYPE vault SOURCE nobody");
    assert_eq!(c.state(), before);
    // By AFTER the page says where to go on.
    let page = list(&mut c, "SOURCE b AFTER 0 COUNT 100");
    assert_eq!(ids(&page[..20]), (981..=1000).collect::<Vec<i64>>());
    assert_eq!(page[20].fields(), [("after".to_owned(), Value::Int(1000))]);
    assert_eq!(page.len(), 21);
    assert_eq!(ids(&list(&mut c, "SOURCE b AFTER 1000 COUNT 100")), (1001..=1010).collect::<Vec<i64>>());
    let page = list(&mut c, "SOURCE nobody AFTER 0 COUNT 1");
    assert_eq!((page.len(), page[0].field("after").int()), (1, 1000));
    assert!(list(&mut c, "SOURCE nobody AFTER 10 COUNT 1").is_empty(), "1,000 are not too many");
    assert_eq!(ids(&list(&mut c, "SOURCE b AFTER 0 COUNT 20")), (981..=1000).collect::<Vec<i64>>());
    // Names are looked up.
    assert_eq!(c.ok("KG.COUNTKEYS acme").int(), 1010);
    assert_eq!(c.ok("KG.COUNTKEYS acme NAME some").int(), 980);
    assert_eq!(c.ok("KG.COUNTKEYS acme NAME few ACTIVE yes").int(), 30);
    assert_eq!(c.ok("KG.USABILITY acme NAME few").list().len(), 1);
    // Some are found among the 1,000, and go; then there are others among them.
    let mut deleted = Vec::new();
    while deleted.last() != Some(&0) {
        deleted.push(c.ok("KG.DELKEY acme MATCH TYPE vault SOURCE b").int());
    }
    assert_eq!(deleted.iter().sum::<i64>(), 30, "{deleted:?}");
    assert_eq!(c.ok("KG.COUNTKEYS acme").int(), 980);
}

fn no_call_looks_at_more_than_2_mebibytes_of_records(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    add(&mut c, "vendor", 300, &format!("META {{\"m\":\"{}\"}}", "m".repeat(16_000)));
    c.refused("TOOMANY", "KG.LISTKEYS acme");
    c.refused("TOOMANY", "KG.LISTKEYS acme SORTBY id");
    assert_eq!(ids(&list(&mut c, "SORTBY id DESC LIMIT 0 2")), [300, 299]);
    assert_eq!(list(&mut c, "LIMIT 0 100").len(), 100);
    let page = list(&mut c, "AFTER 0 COUNT 200");
    let (after, records) = page.split_last().unwrap();
    let after = after.field("after").int();
    assert_eq!(records.last().unwrap().field("id").int(), after);
    assert!((100..200).contains(&after));
    let next = list(&mut c, &format!("AFTER {after} COUNT 100"));
    assert_eq!(ids(&next), (after + 1..=after + 100).collect::<Vec<i64>>());
    assert_eq!(c.ok("KG.COUNTKEYS acme ACTIVE yes").int(), 300);
}

/// All bytes of a reply.
fn flat(reply: &Value) -> Vec<u8> {
    match reply {
        Value::Array(items) => items.iter().flat_map(flat).collect(),
        Value::Map(pairs) => pairs.iter().flat_map(|(name, value)| [flat(name), flat(value)].concat()).collect(),
        Value::Int(number) => number.to_string().into_bytes(),
        other => other.bytes(),
    }
}

fn no_secret_and_no_digest_is_listed(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    let sample = populate(&mut c);
    let mut hidden: Vec<Vec<u8>> = args![
        "sk-live-0123456789ab",
        "another-secret",
        "a-maps-secret-number",
        &sample.limited[20..],
        &sample.plain[20..],
        &sample.revoked[20..],
        &sample.rotated[0][20..],
        &sample.rotated[1][20..]
    ];
    for key in c.keys() {
        if let Some(digest) = key.strip_prefix(b"{acme}:digest:") {
            hidden.extend([digest.to_vec(), URL_SAFE_NO_PAD.decode(digest).unwrap()]);
        }
    }
    assert_eq!(hidden.len(), 8 + 2 * 12);
    for command in
        ["KG.LISTKEYS acme", "KG.LISTKEYS acme SORTBY hint", "KG.LISTKEYS acme AFTER 0 COUNT 9", "KG.USABILITY acme"]
    {
        for mut c in [server.client(), server.client().resp3()] {
            let reply = flat(&c.ok(command));
            assert!(reply.len() > 50);
            for hidden in &hidden {
                assert!(!contains(&reply, hidden), "{command} shows {}", hidden.escape_ascii());
            }
        }
    }
}

fn counts_what_there_is(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    fill(&mut c);
    let count = |c: &mut Client, filter: &str| c.ok(format!("KG.COUNTKEYS acme {filter}")).int();
    for (filter, expected) in [("", 10), ("TYPE vault", 6), ("TYPE api", 4), ("NAME openai", 3), ("NAME nobody", 0)] {
        assert_eq!(count(&mut c, filter), expected, "{filter}");
    }
    c.ok("KG.DELKEY acme 3 5");
    for (filter, expected) in [("", 8), ("TYPE vault", 5), ("TYPE api", 3), ("NAME openai", 2), ("ORG shop", 1)] {
        assert_eq!(count(&mut c, filter), expected, "{filter}");
    }
    c.ok("HSET acme vault_keys x");
    c.refused("ERR", "KG.COUNTKEYS acme");
    assert_eq!(count(&mut c, "TYPE api"), 3);
}

fn tells_how_usable_each_set_is(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    fill(&mut c);
    c.ok("KG.ADDKEY acme openai another SOURCE billing LOGIN ops BATCH b1 EXPIREIN 5d");
    c.ok("KG.ADDKEY acme openai another SOURCE billing LOGIN ops BATCH b1 EXPIREIN 4d");
    let soonest = c.ok("KG.GETKEY acme 14").field("expires_at");
    let sets = c.ok("KG.USABILITY acme");
    let summary = |set: &Value| {
        let text = |field: &str| set.get(field).map_or("-".to_owned(), |value| value.text());
        let number = |field: &str| set.field(field).int();
        let names = ["name", "source", "login", "batch"].map(text).join(" ");
        format!("{names} {:?}", ["total", "active", "expired", "usable"].map(number))
    };
    let found: Vec<String> = sets.list().iter().map(summary).collect();
    let expected = [
        "Mail - ops - [1, 1, 0, 1]",
        "mail - - - [1, 0, 1, 0]",
        "mail - ops - [1, 1, 0, 1]",
        "openai billing dev b2 [1, 0, 0, 0]",
        "openai billing ops b1 [3, 3, 0, 3]",
        "openai import - b2 [1, 1, 1, 0]",
    ];
    assert_eq!(found, expected);
    let expiries: Vec<Option<Value>> = sets.list().iter().map(|set| set.get("expires_at")).collect();
    assert_eq!(expiries[4], Some(soonest));
    assert_eq!(expiries.iter().filter(|expiry| expiry.is_none()).count(), 3, "{expiries:?}");
    let named: Vec<String> = c.ok("KG.USABILITY acme NAME mail").list().iter().map(summary).collect();
    assert_eq!(named, expected[1..3]);
    assert!(c.ok("KG.USABILITY acme NAME nobody").list().is_empty());
}

fn deletes_what_matches_in_slices_until_none_is_left(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    fill(&mut c);
    add(&mut c, "bulk", 520, "SOURCE old");
    let slices = |c: &mut Client, which: &str| {
        let mut slices = Vec::new();
        while slices.last() != Some(&0) {
            slices.push(c.ok(format!("KG.DELKEY acme {which}")).int());
        }
        slices
    };
    assert_eq!(slices(&mut c, "MATCH TYPE api NAME openai"), [1, 0]);
    assert_eq!(slices(&mut c, "match active no type VAULT"), [2, 0]);
    assert_eq!(slices(&mut c, "MATCH TYPE vault NAME openai EXPIRED yes"), [1, 0]);
    assert_eq!(slices(&mut c, "MATCH TYPE api SOURCE old"), [0]);
    assert_eq!(slices(&mut c, "MATCH TYPE vault ORG shop"), [0]);
    assert_eq!(slices(&mut c, "MATCH TYPE api ORG shop EXPIRED no"), [1, 0]);
    assert_eq!(ids(&list(&mut c, "LIMIT 0 5")), [3, 8, 9, 10, 11]);
    assert_eq!(slices(&mut c, "MATCH TYPE vault SOURCE old"), [100, 100, 100, 100, 100, 20, 0]);
    assert_eq!(c.ok("KG.COUNTKEYS acme").int(), 5);
    add(&mut c, "bulk", 260, "");
    assert_eq!(slices(&mut c, "ALL TYPE vault"), [100, 100, 63, 0]);
    assert_eq!(ids(&list(&mut c, "")), [10, 11]);
    assert_eq!(slices(&mut c, "all type api"), [2, 0]);
    assert!(list(&mut c, "").is_empty());
    assert_eq!(c.ok("KG.COUNTKEYS acme").int(), 0);
}

fn deleting_all_leaves_nothing_behind(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    c.ok("KG.ADDORG acme shop");
    let before = c.keys();
    for n in 0..40 {
        c.ok(format!("KG.ADDKEY acme vendor-{} secret-{} LIMIT 5 1h META {{}} SOURCE s", n % 3, n % 7));
        let raw = c.ok(format!("KG.NEWKEY acme shop label-{n} LIMIT 5 1h")).list()[1].text();
        assert_eq!(c.code(format!("KG.AUTH acme {raw}")), "VALID");
    }
    assert_eq!(c.ok("KG.DELKEY acme 2 3 81").int(), 3);
    assert_eq!(c.ok("KG.DELKEY acme ALL TYPE vault").int(), 39);
    let keys = c.keys();
    assert!(keys.contains(&b"{acme}:ids:api".to_vec()) && !keys.contains(&b"{acme}:ids:vault".to_vec()));
    assert!(!keys.iter().any(|key| contains(key, b":pool:")));
    assert_eq!(c.ok("KG.DELKEY acme ALL TYPE api").int(), 38);
    // The organization's window outlives the keys that it was charged by.
    let left: Vec<Vec<u8>> =
        c.keys().into_iter().filter(|key| !before.contains(key) && !contains(key, b":orgwin:")).collect();
    assert!(left.is_empty(), "{left:?}");
    add(&mut c, "vendor", 1, "");
    assert_eq!(ids(&list(&mut c, "")), [82]);
}

fn damaged_records_are_an_error_and_nothing_is_half_deleted(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    fill(&mut c);
    let packed = c.packed("{acme}:key:4");
    for (damage, code) in [
        (args!["HSET", "{acme}:key:4", "r", "x"], "ERR"),
        (args!["HDEL", "{acme}:key:4", "r"], "ERR"),
        (args!["SET", "{acme}:key:4", "x"], "WRONGTYPE"),
    ] {
        c.ok(damage);
        let before = c.state();
        for command in [
            "KG.LISTKEYS acme",
            "KG.LISTKEYS acme SORTBY id",
            "KG.LISTKEYS acme AFTER 3 COUNT 1",
            "KG.LISTKEYS acme NAME openai",
            "KG.COUNTKEYS acme ACTIVE yes",
            "KG.USABILITY acme",
            "KG.DELKEY acme ALL TYPE vault",
            "KG.DELKEY acme MATCH TYPE vault NAME openai",
        ] {
            c.refused(code, command);
        }
        assert_eq!(c.state(), before);
        assert_eq!(ids(&list(&mut c, "TYPE api")), [5, 7, 10, 11], "the others are as they were");
        assert_eq!(ids(&list(&mut c, "AFTER 4 COUNT 2")), [5, 6]);
    }
    c.ok("DEL {acme}:key:4");
    assert_eq!(ids(&list(&mut c, "LIMIT 0 3")), [3, 5, 6], "one that is gone is passed over");
    c.set_packed("{acme}:key:4", &packed);
    // What stands beside the packed field is for people.
    c.ok("HSET {acme}:key:4 name other status revoked expires_at 1 source x");
    assert_eq!(ids(&list(&mut c, "NAME openai SOURCE billing EXPIRED no")), [3, 4]);
    // A record under the other type's list is still what it is.
    c.ok("SETBIT {acme}:ids:api 4 1");
    assert_eq!(ids(&list(&mut c, "TYPE api")), [5, 7, 10, 11]);
    assert_eq!(ids(&list(&mut c, "")), IDS.collect::<Vec<i64>>());
    // Nor does a name without its pool have keys.
    c.ok("DEL {acme}:pool:openai");
    assert!(list(&mut c, "NAME openai").is_empty());
}

fn any_bytes_are_a_list_of_ids(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    fill(&mut c);
    for bytes in [&b"\xff\xff\xff"[..], &[0xff; 100], b"12345678", b"\0\0\0\0\0\0\0\0\0", b"-1"] {
        c.ok(args!["SET", "{acme}:ids:vault", bytes]);
        let listed = |id: &i64| bytes.get(*id as usize / 8).is_some_and(|byte| byte & (0x80 >> (id % 8)) != 0);
        let expected: Vec<i64> = IDS.filter(|id| listed(id) || [5, 7, 10, 11].contains(id)).collect();
        assert_eq!(ids(&list(&mut c, "")), expected, "{}", bytes.escape_ascii());
    }
    c.ok(args!["SET", "{acme}:ids:vault", vec![0xff; 1000]]);
    c.ok(args!["SET", "{acme}:ids:api", vec![0xff; 1000]]);
    c.refused("TOOMANY", "KG.LISTKEYS acme SORTBY id");
    let page = list(&mut c, "AFTER 0 COUNT 200");
    assert_eq!((page.len(), page[10].field("after").int()), (11, 1000));
    assert_eq!(c.ok("KG.DELKEY acme ALL TYPE vault").int(), 6);
    // Without its list a record is not found by looking, and those that come are listed again.
    c.ok("DEL {acme}:ids:vault {acme}:ids:api");
    assert!(list(&mut c, "").is_empty());
    assert_eq!(c.ok("KG.DELKEY acme 5").int(), 1);
    add(&mut c, "vendor", 1, "");
    assert_eq!(ids(&list(&mut c, "")), [13]);
}

fn a_list_of_the_wrong_type_stops_what_needs_it(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    fill(&mut c);
    let wrong = |c: &mut Client, key: &str, commands: &[&str]| {
        let payload = c.ok(args!["DUMP", key]).bytes();
        c.ok(args!["DEL", key]);
        c.ok(args!["RPUSH", key, "x"]);
        let before = c.state();
        for command in commands {
            c.refused("WRONGTYPE", *command);
        }
        assert_eq!(c.state(), before, "{key}");
        c.ok(args!["RESTORE", key, 0, payload, "REPLACE"]);
    };
    wrong(
        &mut c,
        "{acme}:ids:vault",
        &[
            "KG.ADDKEY acme vendor some-secret",
            "KG.DELKEY acme 3",
            "KG.DELKEY acme 3 5",
            "KG.DELKEY acme ALL TYPE vault",
            "KG.LISTKEYS acme",
            "KG.LISTKEYS acme TYPE vault",
            "KG.COUNTKEYS acme ACTIVE yes",
            "KG.USABILITY acme",
        ],
    );
    wrong(
        &mut c,
        "{acme}:ids:api",
        &["KG.NEWKEY acme shop x", "KG.DELKEY acme 5", "KG.LISTKEYS acme", "KG.LISTKEYS acme ORG shop"],
    );
    wrong(
        &mut c,
        "{acme}:pool:openai",
        &["KG.LISTKEYS acme NAME openai", "KG.COUNTKEYS acme NAME openai", "KG.USABILITY acme NAME openai"],
    );
    assert_eq!(list(&mut c, ""), described(&mut c));
}

fn a_leap_of_ids_is_refused(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    fill(&mut c);
    c.ok("HSET acme next_id 4000000000");
    let before = c.state();
    c.refused("ERR", "KG.ADDKEY acme vendor some-secret");
    c.refused("ERR", "KG.NEWKEY acme shop web");
    assert_eq!(c.state(), before);
    // Ten million is no leap.
    c.ok("HSET acme next_id 10000000");
    assert_eq!(c.ok("KG.ADDKEY acme vendor some-secret").int(), 10_000_000);
    assert_eq!(ids(&list(&mut c, "AFTER 12 COUNT 5")), [10_000_000]);
    assert_eq!(c.ok("KG.DELKEY acme MATCH TYPE vault NAME vendor").int(), 1);
}

fn a_replica_has_the_same_list(sut: &Sut) {
    let primary = sut.server();
    let replica = sut.setup().replica_of(&primary).start();
    primary.wait_for(&replica);
    let (mut ours, mut theirs) = (primary.client(), replica.client());
    fill(&mut ours);
    add(&mut ours, "bulk", 300, "SOURCE old");
    let mut check = |what: &str| {
        primary.wait_for(&replica);
        assert_eq!(ours.state(), theirs.state(), "{what}");
        for tail in ["", "TYPE api SORTBY label", "AFTER 100 COUNT 50", "NAME openai"] {
            assert_eq!(list(&mut ours, tail), list(&mut theirs, tail), "{what}: {tail}");
        }
        assert_eq!(ours.ok("KG.USABILITY acme"), theirs.ok("KG.USABILITY acme"));
        assert_eq!(ours.ok("KG.COUNTKEYS acme SOURCE old"), theirs.ok("KG.COUNTKEYS acme SOURCE old"));
    };
    check("after additions");
    for command in [
        "KG.DELKEY acme 3 5 20",
        "KG.DELKEY acme MATCH TYPE vault SOURCE old",
        "KG.DELKEY acme ALL TYPE vault",
        "KG.DELKEY acme ALL TYPE api",
        "KG.ADDKEY acme vendor some-secret",
    ] {
        primary.client().ok(command);
        check(command);
    }
    theirs_refuses_to_delete(&mut replica.client());
}

fn theirs_refuses_to_delete(c: &mut Client) {
    for command in ["KG.DELKEY acme ALL TYPE vault", "KG.DELKEY acme MATCH TYPE vault NAME vendor"] {
        c.refused("READONLY", command);
    }
}

fn rejects_bad_arguments(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    fill(&mut c);
    let before = c.state();
    for tail in [
        "x",
        "TYPE",
        "TYPE x",
        "TYPE vault TYPE vault",
        "NAME",
        "NAME a NAME a",
        "ACTIVE",
        "ACTIVE 1",
        "EXPIRED maybe",
        "SORTBY",
        "SORTBY secret",
        "SORTBY digest",
        "SORTBY id UP",
        "SORTBY id ASC DESC",
        "LIMIT",
        "LIMIT 0",
        "LIMIT x 1",
        "LIMIT 0 0",
        "LIMIT 0 1001",
        "LIMIT 1001 1",
        "LIMIT -1 1",
        "LIMIT 0 1 LIMIT 0 1",
        "AFTER",
        "AFTER 1",
        "AFTER 1 COUNT",
        "AFTER 1 COUNT 0",
        "AFTER 1 COUNT 1001",
        "AFTER x COUNT 1",
        "AFTER 1 2",
        "COUNT 1",
        "COUNT 1 AFTER 1",
        "AFTER 1 COUNT 1 LIMIT 0 1",
        "AFTER 1 COUNT 1 SORTBY id",
        "SORTBY id AFTER 1 COUNT 1",
    ] {
        c.refused("ERR", &*format!("KG.LISTKEYS acme {tail}"));
    }
    for command in [
        "KG.LISTKEYS",
        "KG.COUNTKEYS",
        "KG.COUNTKEYS acme x",
        "KG.COUNTKEYS acme SORTBY id",
        "KG.COUNTKEYS acme LIMIT 0 1",
        "KG.USABILITY",
        "KG.USABILITY acme x",
        "KG.USABILITY acme NAME",
        "KG.USABILITY acme NAME a NAME b",
        "KG.USABILITY acme TYPE vault",
        "KG.DELKEY acme MATCH",
        "KG.DELKEY acme MATCH TYPE vault",
        "KG.DELKEY acme MATCH NAME openai",
        "KG.DELKEY acme MATCH TYPE vault NAME",
        "KG.DELKEY acme MATCH TYPE vault NAME openai 3",
        "KG.DELKEY acme MATCH TYPE vault NAME openai LIMIT 0 1",
        "KG.DELKEY acme ALL",
        "KG.DELKEY acme ALL vault",
        "KG.DELKEY acme ALL TYPE",
        "KG.DELKEY acme ALL TYPE x",
        "KG.DELKEY acme ALL TYPE vault NAME openai",
        "KG.DELKEY acme 3 ALL",
        "KG.DELKEY acme 3 MATCH TYPE vault NAME openai",
    ] {
        c.refused("ERR", command);
    }
    assert_eq!(c.state(), before);
}
