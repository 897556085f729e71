//! A cluster of two nodes: every key is where clients look for it, also while its slot moves.

use redis::Value;

use crate::harness::{
    Client, Cluster, Reply, Sample, Sut, args, commands, eventually, expect, migrate, populate_store, server_tests,
    slot_of,
};

server_tests![
    clients_read_every_key,
    a_store_half_gone_says_try_again,
    a_store_half_come_says_try_again,
    a_bucket_moves_with_its_limit,
    a_slot_moves_with_all_that_is_in_it,
];

/// Two nodes with half of the slots each.
fn pair(sut: &Sut) -> Cluster {
    Cluster::start([(); 2].map(|()| sut.setup().cluster(15_000)).into(), Vec::new())
}

/// Connections to the node that has the store `acme` and to the other one, and their indexes.
fn source_and_target(cluster: &Cluster) -> (Client, Client, usize, usize) {
    let (_, source) = cluster.place_of(b"acme");
    (cluster.primaries[source].client(), cluster.primaries[1 - source].client(), source, 1 - source)
}

/// Opens the slot of the store `acme` for moving to the other node.
fn begin_migration(cluster: &Cluster) -> i64 {
    let (slot, source) = cluster.place_of(b"acme");
    cluster.begin_migration(slot, source, 1 - source);
    slot
}

fn asking(c: &mut Client, command: &[Vec<u8>]) -> Value {
    c.ok("ASKING");
    c.call(command)
}

fn clients_read_every_key(sut: &Sut) {
    let cluster = pair(sut);
    let mut clients = [cluster.primaries[0].client(), cluster.primaries[1].client()];
    populate_store(&mut clients[cluster.place_of(b"acme").1]);
    for n in 0..40 {
        let bucket = format!("bucket:{n}");
        clients[cluster.place_of(bucket.as_bytes()).1].claim(&format!("{bucket} 5 1h"));
        let store = format!("store-{n}");
        let c = &mut clients[cluster.place_of(store.as_bytes()).1];
        c.ok(format!("KG.ADDKEY {store} vendor some-secret LIMIT 5 1h"));
        c.ok(format!("KG.ADDORG {store} shop LIMIT 5 1h"));
        let raw = c.ok(format!("KG.NEWKEY {store} shop web LIMIT 5 1h")).list()[1].text();
        assert_eq!(c.code(format!("KG.AUTH {store} {raw}")), "VALID");
        c.ok(format!("KG.BLOCKIP {store} 192.0.2.1 1h"));
    }
    for c in &mut clients {
        let keys = c.keys();
        assert_eq!(c.ok("DBSIZE").int(), keys.len() as i64);
        assert!(keys.len() > 100, "both nodes have some: {}", keys.len());
        let mut in_slots = std::collections::BTreeMap::new();
        for key in &keys {
            let shown = key.escape_ascii().to_string();
            assert_eq!(c.ok(args!["EXISTS", key]).int(), 1, "{shown}");
            match &*c.ok(args!["TYPE", key]).text() {
                "hash" => assert!(!c.ok(args!["HGETALL", key]).fields().is_empty(), "{shown}"),
                "string" => assert!(!c.ok(args!["GET", key]).bytes().is_empty(), "{shown}"),
                "none" => panic!("{shown} is listed and has no type"),
                _ => assert!(!c.ok(args!["DUMP", key]).bytes().is_empty(), "{shown}"),
            }
            *in_slots.entry(slot_of(c, key)).or_insert(0) += 1;
        }
        for (slot, count) in in_slots {
            assert_eq!(c.ok(format!("CLUSTER COUNTKEYSINSLOT {slot}")).int(), count, "slot {slot}");
        }
        c.ok("DEBUG RELOAD");
        assert_eq!(c.keys(), keys);
    }
}

/// The commands of a store that only read, and `KG.AUTH`, which must not be mistaken either.
fn reads(sample: &Sample) -> Vec<Vec<Vec<u8>>> {
    let reading = [
        "KG.GETKEY",
        "KG.LISTKEYS",
        "KG.COUNTKEYS",
        "KG.USABILITY",
        "KG.GETORG",
        "KG.LISTORGS",
        "KG.REVEAL",
        "KG.FINDKEY",
        "KG.CHECK",
        "KG.CHECKIP",
        "KG.STATS",
        "KG.USAGE",
        "KG.AUTH",
    ];
    let named = |command: &[Vec<u8>]| reading.iter().any(|name| name.as_bytes() == command[0]);
    let mut reads: Vec<_> = commands(sample).into_iter().filter(|command| named(command)).collect();
    reads.push(args!["KG.CHECK", "acme", sample.limited, "SCOPE", "read", "IP", "192.0.2.7"]);
    reads.push(args!["KG.CHECK", "acme", sample.revoked]);
    reads.push(args!["KG.CHECK", "acme", sample.limited, "SCOPE", "orders:x"]);
    reads
}

/// The commands of a store that write, so that they change nothing of what the reads see.
fn writes(sample: &Sample) -> Vec<Vec<Vec<u8>>> {
    let writing = ["KG.ADDKEY", "KG.ADDORG", "KG.NEWKEY", "KG.BLOCKIP", "KG.UNBLOCKIP", "KG.SETORG", "KG.DELORG"];
    let named = |command: &[Vec<u8>]| writing.iter().any(|name| name.as_bytes() == command[0]);
    let mut writes: Vec<_> = commands(sample).into_iter().filter(|command| named(command)).collect();
    writes.push(args!["KG.REVOKE", "acme", sample.ids[2]]);
    writes.push(args!["KG.REVOKE", "acme", "KEY", sample.revoked]);
    writes.push(args!["KG.REVOKE", "acme", "START", &sample.revoked[..10]]);
    writes.push(args!["KG.DELKEY", "acme", "999"]);
    // The last: where nothing stands in its way, nothing is left.
    writes.push(args!["KG.DELSTORE", "acme"]);
    writes
}

/// What of a reply must stay the same: not the milliseconds, nor what AUTH itself uses up.
fn essence(reply: &Value) -> String {
    match reply {
        Value::Array(items) if items.first() == Some(&Value::BulkString(b"code".to_vec())) => {
            reply.field("code").text()
        }
        other => format!("{other:?}"),
    }
}

/// Runs all commands upon a store of which a part is elsewhere: each answers as before or asks to try again.
fn check_half_moved(c: &mut Client, ask: bool, sample: &Sample, wanted: &[String], what: &str) -> Vec<bool> {
    let keys = c.keys();
    let mut call = |command: &Vec<Vec<u8>>| if ask { asking(c, command) } else { c.call(command) };
    let mut refused = Vec::new();
    for (command, wanted) in reads(sample).iter().zip(wanted) {
        let reply = call(command);
        let retry = ["TRYAGAIN", "ASK"].contains(&&*reply.error_code());
        assert!(retry || essence(&reply) == *wanted, "{what}: {} is {reply:?}, not {wanted}", shown(command));
        refused.push(retry);
    }
    for command in writes(sample) {
        let reply = call(&command);
        let retry = ["TRYAGAIN", "ASK"].contains(&&*reply.error_code());
        assert!(retry || !reply.is_error(), "{what}: {} answers {}", shown(&command), reply.error());
        refused.push(retry);
    }
    let added: Vec<String> =
        c.keys().iter().filter(|key| !keys.contains(key)).map(|key| key.escape_ascii().to_string()).collect();
    assert!(added.is_empty(), "{what}: created {added:?}");
    refused
}

fn shown(command: &[Vec<u8>]) -> String {
    command.iter().map(|word| word.escape_ascii().to_string()).collect::<Vec<_>>().join(" ")
}

/// The derived keys of the store, in an order that takes every kind early.
fn derived_keys(c: &mut Client) -> Vec<Vec<u8>> {
    let mut keys: Vec<Vec<u8>> = c.keys().into_iter().filter(|key| key != b"acme").collect();
    keys.sort_by_key(|key| key.iter().rev().copied().collect::<Vec<u8>>());
    assert!(keys.len() > 12, "{} derived keys", keys.len());
    keys
}

fn a_store_half_gone_says_try_again(sut: &Sut) {
    let cluster = pair(sut);
    let (mut from, mut to, _, target) = source_and_target(&cluster);
    let sample = populate_store(&mut from);
    let wanted: Vec<String> = reads(&sample).iter().map(|command| essence(&from.ok(command))).collect();
    let slot = begin_migration(&cluster);
    let derived = derived_keys(&mut from);
    // One by one: each alone is missed by those that need it. A key that came home is migrated again later.
    for key in &derived {
        migrate(&mut from, &to, key);
        let what = format!("{} is gone", key.escape_ascii());
        let refused = check_half_moved(&mut from, false, &sample, &wanted, &what);
        assert!(refused.iter().any(|refused| *refused), "{what}: nobody missed it");
        from.ok(format!("CLUSTER SETSLOT {slot} STABLE"));
        migrate(&mut to, &from, key);
        begin_migration(&cluster);
    }
    for key in &derived {
        migrate(&mut from, &to, key);
        check_half_moved(&mut from, false, &sample, &wanted, &format!("all up to {} are gone", key.escape_ascii()));
    }
    // Only the header is left: every command needs something that is gone.
    for command in reads(&sample).iter().chain(&writes(&sample)) {
        let reply = from.call(command);
        assert_eq!(reply.error_code(), "TRYAGAIN", "{}: {reply:?}", shown(command));
    }
    migrate(&mut from, &to, b"acme");
    for command in reads(&sample).iter().chain(&writes(&sample)) {
        assert_eq!(from.call(command).error_code(), "ASK", "{}", shown(command));
    }
    assert_eq!(from.keys(), Vec::<Vec<u8>>::new());
    cluster.end_migration(slot, target);
    assert_works(&mut to, &mut from, &sample, &wanted);
}

/// After the migration the new node does all, and the old one says where it is.
fn assert_works(to: &mut Client, from: &mut Client, sample: &Sample, wanted: &[String]) {
    for (command, wanted) in reads(sample).iter().zip(wanted) {
        assert_eq!(essence(&to.ok(command)), *wanted, "{}", shown(command));
        assert_eq!(from.call(command).error_code(), "MOVED", "{}", shown(command));
    }
    for command in writes(sample) {
        to.ok(&command);
    }
    assert_eq!(from.keys(), Vec::<Vec<u8>>::new());
}

fn a_store_half_come_says_try_again(sut: &Sut) {
    let cluster = pair(sut);
    let (mut from, mut to, _, target) = source_and_target(&cluster);
    let sample = populate_store(&mut from);
    let wanted: Vec<String> = reads(&sample).iter().map(|command| essence(&from.ok(command))).collect();
    let derived = derived_keys(&mut from);
    let slot = begin_migration(&cluster);
    migrate(&mut from, &to, b"acme");
    for command in reads(&sample).iter().chain(&writes(&sample)) {
        assert_eq!(from.call(command).error_code(), "ASK", "{}", shown(command));
        let reply = asking(&mut to, command);
        assert_eq!(reply.error_code(), "TRYAGAIN", "only the header has come: {}: {reply:?}", shown(command));
        assert_eq!(to.call(command).error_code(), "MOVED", "without ASKING it is not there yet");
    }
    assert_eq!(to.keys(), [b"acme".to_vec()], "nothing is created");
    for key in &derived {
        migrate(&mut from, &to, key);
        let what = format!("all up to {} have come", key.escape_ascii());
        check_half_moved(&mut to, true, &sample, &wanted, &what);
        assert!(from.keys().iter().all(|key| derived.contains(key)));
    }
    cluster.end_migration(slot, target);
    assert_works(&mut to, &mut from, &sample, &wanted);
}

fn a_bucket_moves_with_its_limit(sut: &Sut) {
    let cluster = pair(sut);
    let (mut from, mut to, _, target) = source_and_target(&cluster);
    for bucket in ["{acme}moved", "{acme}staying"] {
        for _ in 0..2 {
            assert!(from.claim(&format!("{bucket} 3 1h")).claimed);
        }
    }
    let slot = begin_migration(&cluster);
    migrate(&mut from, &to, b"{acme}moved");
    let claim = args!["KG.CLAIM", "{acme}moved", "3", "1h"];
    let fresh = args!["KG.CLAIM", "{acme}fresh", "3", "1h"];
    for command in [&claim, &fresh] {
        assert_eq!(from.call(command).error_code(), "ASK");
        assert_eq!(to.call(command).error_code(), "MOVED");
    }
    assert_eq!(asking(&mut to, &claim).ints()[..3], [1, 3, 0]);
    assert_eq!(asking(&mut to, &claim).ints()[..3], [0, 3, 0]);
    assert_eq!(asking(&mut to, &fresh).ints()[..3], [1, 3, 2]);
    assert_eq!(from.claim("{acme}staying 3 1h").remaining, 0);
    migrate(&mut from, &to, b"{acme}staying");
    cluster.end_migration(slot, target);
    for (bucket, remaining) in [("{acme}moved", 0), ("{acme}staying", 0), ("{acme}fresh", 2)] {
        assert_eq!(to.remaining(&format!("{bucket} 3 1h")).remaining, remaining, "{bucket}");
        assert!(to.ok(args!["PTTL", bucket]).int() > 3_500_000);
    }
    assert_eq!(from.call(&claim).error_code(), "MOVED");
}

fn a_slot_moves_with_all_that_is_in_it(sut: &Sut) {
    let cluster = pair(sut);
    let (mut from, mut to, source, target) = source_and_target(&cluster);
    let sample = populate_store(&mut from);
    for n in 0..300 {
        from.claim(&format!("{{acme}}bucket:{} 3 1h 1000 7d", n % 100));
    }
    assert!(!from.claim("{acme}bucket:5 3 1h").claimed);
    let wanted: Vec<String> = reads(&sample).iter().map(|command| essence(&from.ok(command))).collect();
    let before = from.state();
    let slot = slot_of(&mut from, b"acme");
    if !cluster.have_slots_moved(sut, &[slot], source, target) {
        cluster.move_slots(&[slot], source, target);
    }
    eventually("the source having let go of all keys", || {
        let keys = from.keys();
        expect(keys.is_empty(), || format!("{keys:?}"))
    });
    let after = to.state();
    assert_eq!(after.len(), before.len());
    for ((key, before), (other, after)) in before.iter().zip(&after) {
        let (before, before_expiry) = before.rsplit_once(' ').unwrap();
        let (after, after_expiry) = after.rsplit_once(' ').unwrap();
        assert_eq!((key, before), (other, after));
        // MIGRATE sends what is left to live, not the instant of its end.
        let difference = before_expiry.parse::<i64>().unwrap() - after_expiry.parse::<i64>().unwrap();
        assert!(difference.abs() < 5000, "{key} expires {difference} ms off");
    }
    assert!(!to.claim("{acme}bucket:5 3 1h").claimed, "the limit holds");
    assert_works(&mut to, &mut from, &sample, &wanted);
}
