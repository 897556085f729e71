//! The vault: secrets go in, come out for those who may ask, and are bound to their place.

use redis::Value;

use crate::harness::{Client, Reply, Sut, args, contains, populate, server_tests};

server_tests![
    adds_and_reveals,
    keeps_every_option,
    shows_a_hint_of_long_secrets_only,
    finds_by_name_when_it_is_one,
    finds_by_secret,
    refuses_a_duplicate_when_asked_to,
    an_expired_or_inactive_key_is_listed_and_revealed,
    ids_are_never_used_again,
    ids_skip_when_another_run_has_allocated,
    deleting_leaves_nothing_behind,
    a_copied_record_does_not_open,
    a_changed_secret_does_not_open,
    a_store_must_exist_and_be_ours,
    rejects_bad_arguments,
    keeps_to_the_maxima,
    is_kept_out_of_scripts,
    full_memory_refuses_additions_only,
];

const LONG: &str = "sk-live-0123456789abcdef";

fn adds_and_reveals(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    let all_bytes: Vec<u8> = (0..=255).collect();
    let secrets: [&[u8]; 6] = [LONG.as_bytes(), b"x", b"\0", b"\r\n\xff\xfe", b"%s%n{}", &all_bytes];
    for (secret, id) in secrets.into_iter().zip(1..) {
        assert_eq!(c.ok(args!["KG.ADDKEY", "acme", "vendor", secret]), Value::Int(id));
        assert_eq!(c.ok(args!["KG.REVEAL", "acme", id]), Value::BulkString(secret.to_vec()));
    }
    let mut c = server.client().resp3();
    assert_eq!(c.ok("KG.REVEAL acme 1").text(), LONG);
    assert!(matches!(c.ok("KG.GETKEY acme 1"), Value::Map(_)));
    assert!(matches!(server.client().ok("KG.GETKEY acme 1"), Value::Array(_)));
    // No two records seal alike, and none holds its secret.
    c.ok(format!("KG.ADDKEY acme vendor {LONG}"));
    assert_eq!(c.ok("KG.REVEAL acme 7").text(), LONG);
    let hot = [1, 7].map(|id| c.packed(format!("{{acme}}:key:{id}")));
    assert_ne!(hot[0], hot[1]);
    for key in c.keys() {
        assert!(!contains(&c.ok(args!["DUMP", key]).bytes(), LONG.as_bytes()), "{}", key.escape_ascii());
    }
}

fn keeps_every_option(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    let id = c.ok(args![
        "KG.ADDKEY",
        "acme",
        "two words",
        LONG,
        "meta",
        "{\"a\": [1, \"b\"]}",
        "weight",
        "3",
        "LIMIT",
        "10",
        "1m",
        "SOURCE",
        "billing",
        "limit",
        "100000",
        "1d",
        "UNIT",
        "tokens",
        "LOGIN",
        "ops@example.com",
        "BATCH",
        "b1",
        "ACCOUNT",
        "acc",
        "EXPIREAT",
        "2100-01-01T00:00:00Z",
        "INACTIVE"
    ]);
    let map = c.ok(args!["KG.GETKEY", "acme", id.int()]);
    let text = |field: &str| map.field(field).text();
    assert_eq!(map.field("id").int(), id.int());
    assert_eq!([text("name"), text("source"), text("login")], ["two words", "billing", "ops@example.com"]);
    assert_eq!([text("batch"), text("account"), text("type")], ["b1", "acc", "vault"]);
    assert_eq!(map.field("active").int(), 0);
    assert_eq!(map.field("weight").int(), 3);
    assert!(text("meta").contains("\"b\""), "{}", text("meta"));
    let shown = format!("{map:?}");
    assert!(shown.contains("4102444800"), "the expiry is shown, in seconds or milliseconds: {shown}");
    assert!(map.get("limits").or_else(|| map.get("limit")).is_some(), "{shown}");
    // What was not given is left out or says nothing.
    c.ok(format!("KG.ADDKEY acme plain {LONG}"));
    let map = c.ok("KG.GETKEY acme 2");
    assert_eq!(map.field("active").int(), 1);
    for field in ["source", "login", "batch", "account", "meta"] {
        assert_eq!(map.get(field), None, "{field} does not apply");
    }
}

fn shows_a_hint_of_long_secrets_only(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    let table: [(&[u8], Option<&str>); 5] = [
        (b"0123456789abcdef", Some("cdef")),
        (b"0123456789abcde", None),
        (LONG.as_bytes(), Some("cdef")),
        (b"short", None),
        (b"0123456789abcdef0123\xff\xff", None),
    ];
    for (secret, hint) in table {
        let id = c.ok(args!["KG.ADDKEY", "acme", "vendor", secret]).int();
        let map = c.ok(args!["KG.GETKEY", "acme", id]);
        assert_eq!(map.get("hint").map(|value| value.text()).as_deref(), hint, "{}", secret.escape_ascii());
        for (field, value) in map.fields() {
            if let Value::BulkString(value) = value {
                assert!(!contains(&value, secret), "{field} holds the secret");
            }
        }
    }
}

fn finds_by_name_when_it_is_one(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    c.ok("KG.ADDKEY acme single first-secret");
    c.ok("KG.ADDKEY acme double second-secret");
    c.ok("KG.ADDKEY acme double third-secret");
    assert_eq!(c.ok("KG.GETKEY acme NAME single").field("id").int(), 1);
    assert_eq!(c.ok("KG.REVEAL acme name single").text(), "first-secret");
    for command in ["KG.GETKEY", "KG.REVEAL"] {
        c.refused("NOTUNIQUE", &*format!("{command} acme NAME double"));
        let none = c.call(format!("{command} acme NAME nobody")).error_code();
        assert!(["NOSUCH", "NOTUNIQUE"].contains(&&*none), "{command} answers {none}");
        c.refused("NOSUCH", &*format!("{command} acme 4"));
    }
    c.ok("KG.DELKEY acme 2");
    assert_eq!(c.ok("KG.REVEAL acme NAME double").text(), "third-secret");
    // Names are compared as they are.
    c.call("KG.GETKEY acme NAME SINGLE").is_error().then_some(()).expect("another name");
}

fn finds_by_secret(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    let ids = |c: &mut Client, secret: &str| {
        let mut ids = c.ok(args!["KG.FINDKEY", "acme", secret]).ints();
        ids.sort_unstable();
        ids
    };
    for (name, secret) in [("a", LONG), ("b", "other"), ("c", LONG), ("d", LONG)] {
        c.ok(args!["KG.ADDKEY", "acme", name, secret]);
    }
    c.ok(args!["KG.ADDKEY", "zeta", "a", LONG]);
    assert_eq!(ids(&mut c, LONG), [1, 3, 4]);
    assert_eq!(ids(&mut c, "other"), [2]);
    assert_eq!(ids(&mut c, "nobody's"), Vec::<i64>::new());
    c.ok("KG.DELKEY acme 3");
    assert_eq!(ids(&mut c, LONG), [1, 4]);
    c.ok("KG.DELKEY acme 1 4");
    assert_eq!(ids(&mut c, LONG), Vec::<i64>::new());
    // API keys have digests of their own.
    c.ok("KG.ADDORG acme shop");
    let raw = c.ok("KG.NEWKEY acme shop web").list()[1].text();
    assert_eq!(ids(&mut c, &raw), Vec::<i64>::new());
    c.ok(args!["KG.ADDKEY", "acme", "odd", "not-an-api-key"]);
    assert_eq!(c.code("KG.AUTH acme not-an-api-key"), "NOT_FOUND");
}

fn refuses_a_duplicate_when_asked_to(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    c.ok(format!("KG.ADDKEY acme a {LONG}"));
    let before = c.state();
    c.refused("DUPLICATE", &*format!("KG.ADDKEY acme b {LONG} UNIQUE"));
    assert_eq!(c.state(), before);
    assert_eq!(c.ok(format!("KG.ADDKEY acme b {LONG}")).int(), 2);
    assert_eq!(c.ok("KG.ADDKEY acme c another UNIQUE").int(), 3);
}

fn an_expired_or_inactive_key_is_listed_and_revealed(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    for options in ["EXPIREAT 1", "EXPIREAT 2001-01-01T00:00:00Z", "INACTIVE", "EXPIREAT 0", "EXPIREIN 1d"] {
        let id = c.ok(format!("KG.ADDKEY acme vendor {LONG} {options}")).int();
        assert_eq!(c.ok(args!["KG.REVEAL", "acme", id]).text(), LONG, "{options}");
        let map = c.ok(args!["KG.GETKEY", "acme", id]);
        if let Some(expired) = map.get("expired") {
            assert_eq!(expired.int() == 1, options.starts_with("EXPIREAT 1") || options.contains("2001"), "{options}");
        }
        assert_eq!(map.field("active").int() == 0, options == "INACTIVE");
    }
}

fn ids_are_never_used_again(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    let add = |c: &mut Client| c.ok("KG.ADDKEY acme vendor some-secret").int();
    assert_eq!([add(&mut c), add(&mut c), add(&mut c)], [1, 2, 3]);
    assert_eq!(c.ok("KG.DELKEY acme 3").int(), 1);
    assert_eq!(add(&mut c), 4);
    assert_eq!(c.ok("KG.DELKEY acme 1 2 4").int(), 3);
    assert_eq!(add(&mut c), 5);
    // Both kinds of record count together.
    c.ok("KG.ADDORG acme shop");
    let api = c.ok("KG.NEWKEY acme shop web").list()[0].int();
    assert!(api > 5);
    assert!(add(&mut c) > api);
    assert_eq!(c.ok("KG.ADDKEY zeta vendor some-secret").int(), 1, "each store counts for itself");
    c.ok("DEBUG RELOAD");
    assert!(add(&mut c) > api);
}

fn ids_skip_when_another_run_has_allocated(sut: &Sut) {
    let mut server = sut.setup().with("appendonly", "yes").with("appendfsync", "always").start();
    assert_eq!(server.client().ok("KG.ADDKEY acme vendor first-secret").int(), 1);
    server.restart();
    let mut c = server.client();
    let id = c.ok("KG.ADDKEY acme vendor second-secret").int();
    assert!((1025..=1026).contains(&id), "a new run skips 1,024 ids: {id}");
    assert_eq!(c.ok("KG.ADDKEY acme vendor third-secret").int(), id + 1, "once");
    assert_eq!(c.ok("KG.REVEAL acme 1").text(), "first-secret");
}

fn deleting_leaves_nothing_behind(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    c.ok("KG.ADDORG acme shop");
    let before = c.keys();
    let mut ids = Vec::new();
    for n in 0..20 {
        let arguments = format!("vendor secret-{} LIMIT 5 1h META {{}} SOURCE s", n % 7);
        ids.push(c.ok(format!("KG.ADDKEY acme {arguments}")).int());
        let new = c.ok(format!("KG.NEWKEY acme shop label-{n} LIMIT 5 1h"));
        ids.push(new.list()[0].int());
        assert_eq!(c.code(format!("KG.AUTH acme {}", new.list()[1].text())), "VALID");
    }
    let [first, second, rest @ ..] = &ids[..] else { panic!() };
    assert_eq!(c.ok(args!["KG.DELKEY", "acme", first]).int(), 1);
    assert_eq!(c.ok(args!["KG.DELKEY", "acme", first, second, "999999"]).int(), 1, "what is not there is not counted");
    let keys = c.keys();
    for id in [first, second] {
        let marks = [format!(":key:{id}"), format!(":win:{id}")];
        let left = keys.iter().find(|key| marks.iter().any(|mark| key.ends_with(mark.as_bytes())));
        assert_eq!(left, None);
        c.refused("NOSUCH", &*format!("KG.GETKEY acme {id}"));
    }
    let mut command = args!["KG.DELKEY", "acme"];
    command.extend(rest.iter().map(|id| id.to_string().into_bytes()));
    assert_eq!(c.ok(command).int(), 38);
    let left: Vec<String> =
        c.keys().into_iter().filter(|key| !before.contains(key)).map(|key| key.escape_ascii().to_string()).collect();
    // The organization's window outlives the keys that it was charged by.
    assert!(left.iter().all(|key| key.contains(":orgwin:")), "{left:?}");
    assert_eq!(c.ok("KG.DELKEY acme 1 2 3").int(), 0);
    for bad in ["acme", "acme x", "acme 1 x", "acme -1", "acme 0x1"] {
        c.refused("ERR", &*format!("KG.DELKEY {bad}"));
    }
}

fn a_copied_record_does_not_open(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    c.ok(format!("KG.ADDKEY acme a {LONG}"));
    c.ok("KG.ADDKEY acme b other-secret");
    c.ok("KG.ADDKEY zeta c third-secret");
    for target in ["{acme}:key:2", "{zeta}:key:1", "{acme}:key:77"] {
        c.ok(args!["COPY", "{acme}:key:1", target, "REPLACE"]);
    }
    for command in ["KG.REVEAL acme 2", "KG.REVEAL zeta 1", "KG.REVEAL acme 77"] {
        let text = c.refused("TAMPERED", command);
        assert!(!text.contains("sk-live"), "{text}");
    }
    assert_eq!(c.ok("KG.REVEAL acme 1").text(), LONG);
}

fn a_changed_secret_does_not_open(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    c.ok(format!("KG.ADDKEY acme a {LONG}"));
    let packed = c.packed("{acme}:key:1");
    let mut opened = 0;
    for position in 0..packed.len() {
        let mut changed = packed.clone();
        changed[position] ^= 0x40;
        c.set_packed("{acme}:key:1", &changed);
        let reply = c.call("KG.REVEAL acme 1");
        // Somewhere else than in the sealed secret, the change may mean another readable field.
        if !reply.is_error() {
            assert_eq!(reply.text(), LONG, "byte {position}");
            opened += 1;
        }
    }
    assert!(opened < packed.len() / 2, "{opened} of {} changes went unnoticed", packed.len());
    c.set_packed("{acme}:key:1", &packed);
    assert_eq!(c.ok("KG.REVEAL acme 1").text(), LONG);
}

fn a_store_must_exist_and_be_ours(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    let sample = populate(&mut c);
    c.ok("SET text x");
    c.ok("HSET foreign field value");
    let before = c.state();
    let long_name = "x".repeat(65);
    for command in crate::harness::commands(&sample) {
        let name = String::from_utf8_lossy(&command[0]).into_owned();
        if command[1] != b"acme" {
            continue;
        }
        let mut with_store = |store: &str| {
            let mut command = command.clone();
            command[1] = store.into();
            c.err(command)
        };
        for bad in ["", "a b", "{acme}", "a/b", "caf\u{e9}", &long_name] {
            let text = with_store(bad);
            assert!(text.starts_with("BADSTORE "), "{name} with the store {bad:?}: {text}");
        }
        assert!(with_store("text").starts_with("WRONGTYPE "), "{name}");
        assert!(with_store("foreign").starts_with("BADSTORE "), "{name}");
        if !["KG.ADDKEY", "KG.ADDORG", "KG.ALLOWIP", "KG.BLOCKIP", "KG.SETSTORE", "KG.IMPORT"].contains(&&*name) {
            let text = with_store("nobody");
            assert!(text.starts_with("NOSTORE "), "{name}: {text}");
        }
    }
    assert_eq!(c.state(), before, "nothing of this has changed anything");
    for command in ["KG.ADDKEY s1 n secret", "KG.ADDORG s2 shop", "KG.BLOCKIP s3 192.0.2.1 1h", "KG.SETSTORE s4 TZ UTC"]
    {
        c.ok(command);
    }
    for store in ["s1", "s2", "s3", "s4", "x.Y-z_9"] {
        c.ok(args!["KG.ADDKEY", store, "n", "secret"]);
        c.refused("NOSUCH", &*format!("KG.REVEAL {store} 999"));
    }
}

fn rejects_bad_arguments(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    c.ok("KG.ADDKEY acme a secret");
    let before = c.state();
    let tails = [
        "",
        "a",
        "a s WHAT",
        "a s LIMIT",
        "a s LIMIT 5",
        "a s LIMIT 0 1h",
        "a s LIMIT 5 0",
        "a s LIMIT 5 x",
        "a s LIMIT 5 1h UNIT",
        "a s EXPIREIN",
        "a s EXPIREIN x",
        "a s EXPIREIN 0",
        "a s EXPIREIN -5",
        "a s EXPIREAT",
        "a s EXPIREAT soon",
        "a s EXPIREAT -1",
        "a s EXPIREAT 1 EXPIREIN 5s",
        "a s EXPIREAT 1 EXPIREAT 1",
        "a s META",
        "a s META {",
        "a s META 1 META 2",
        "a s WEIGHT",
        "a s WEIGHT x",
        "a s WEIGHT -1",
        "a s SOURCE",
        "a s LOGIN",
        "a s BATCH",
        "a s ACCOUNT",
        "a s SOURCE a SOURCE b",
        "a s INACTIVE INACTIVE",
        "a s UNIQUE UNIQUE",
        "a s LIMIT 1 1h LIMIT 1 2h LIMIT 1 3h LIMIT 1 4h LIMIT 1 5h LIMIT 1 6h LIMIT 1 7h LIMIT 1 8h LIMIT 1 9h",
    ];
    for tail in tails {
        c.refused("ERR", &*format!("KG.ADDKEY acme {tail}"));
    }
    let others = [
        "KG.GETKEY",
        "KG.GETKEY acme",
        "KG.GETKEY acme x",
        "KG.GETKEY acme -1",
        "KG.GETKEY acme 1 2",
        "KG.GETKEY acme NAME",
        "KG.GETKEY acme NAME a b",
        "KG.REVEAL acme",
        "KG.REVEAL acme x",
        "KG.REVEAL acme 1 2",
        "KG.REVEAL acme 18446744073709551616",
        "KG.FINDKEY acme",
        "KG.FINDKEY acme a b",
    ];
    for command in others {
        c.refused("ERR", command);
    }
    assert_eq!(c.state(), before);
}

fn keeps_to_the_maxima(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    let secret = "s".repeat(65_536);
    let id = c.ok(args!["KG.ADDKEY", "acme", "a", secret]).int();
    assert_eq!(c.ok(args!["KG.REVEAL", "acme", id]).text(), secret);
    c.refused("ERR", args!["KG.ADDKEY", "acme", "a", "s".repeat(65_537)]);
    c.refused("ERR", args!["KG.ADDKEY", "acme", "a", ""]);
    let name = "n".repeat(256);
    c.ok(args!["KG.ADDKEY", "acme", name, "s"]);
    c.ok(args!["KG.REVEAL", "acme", "NAME", name]);
    c.refused("ERR", args!["KG.ADDKEY", "acme", "n".repeat(257), "s"]);
    let meta = |length: usize| format!("{{\"m\":\"{}\"}}", "m".repeat(length - 8));
    c.ok(args!["KG.ADDKEY", "acme", "a", "s", "META", meta(16_384)]);
    c.refused("ERR", args!["KG.ADDKEY", "acme", "a", "s", "META", meta(16_385)]);
    for option in ["SOURCE", "LOGIN", "BATCH", "ACCOUNT"] {
        c.ok(args!["KG.ADDKEY", "acme", "a", "s", option, "v".repeat(256)]);
        c.refused("ERR", args!["KG.ADDKEY", "acme", "a", "s", option, "v".repeat(257)]);
    }
    let mut many = args!["KG.DELKEY", "acme"];
    many.extend((100_000..100_100).map(|id: i64| id.to_string().into_bytes()));
    assert_eq!(c.ok(&many).int(), 0);
    many.push(b"1".to_vec());
    c.refused("TOOMANY", many);
    assert_eq!(c.ok("KG.REVEAL acme 1").text(), secret);
}

fn is_kept_out_of_scripts(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    let sample = populate(&mut c);
    let before = c.state();
    let closed = [
        "KG.ADDKEY",
        "KG.SETKEY",
        "KG.ACQUIRE",
        "KG.REVEAL",
        "KG.FINDKEY",
        "KG.NEWKEY",
        "KG.ROTATE",
        "KG.REVOKE",
        "KG.AUTH",
        "KG.CHECK",
        "KG.SNAPSHOT",
        "KG.IMPORT",
    ];
    for command in crate::harness::commands(&sample) {
        if closed.iter().any(|name| name.as_bytes() == command[0]) {
            let script = "return redis.call(unpack(ARGV))";
            let mut eval = args!["EVAL", script, "1", command[1]];
            eval.extend(command);
            let text = c.err(eval);
            assert!(text.contains("not allowed from script"), "{text}");
        }
    }
    assert_eq!(c.state(), before);
}

fn full_memory_refuses_additions_only(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    let sample = populate(&mut c);
    c.ok("CONFIG SET maxmemory 1");
    for command in crate::harness::commands(&sample) {
        let name = String::from_utf8_lossy(&command[0]).into_owned();
        let reply = c.call(&command);
        match &*name {
            "KG.APPLY" => assert_eq!(reply.error_code(), "ERR"),
            "KG.CLAIM" | "KG.CLAIMIP" | "KG.ACQUIRE" | "KG.AUTH" | "KG.ADDKEY" | "KG.ADDORG" | "KG.NEWKEY"
            | "KG.ROTATE" | "KG.LOG" => {
                assert_eq!(reply.error_code(), "OOM", "{name}");
            }
            _ => assert!(!reply.is_error(), "{name} works with full memory: {reply:?}"),
        }
    }
    c.ok("CONFIG SET maxmemory 0");
    assert_eq!(c.code(format!("KG.AUTH acme {} SCOPE read", sample.limited)), "VALID");
    assert_eq!(c.code(format!("KG.AUTH acme {}", sample.plain)), "DISABLED", "it was revoked all the same");
}
