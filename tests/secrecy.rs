//! Secrecy: no secret reaches any place where it does not belong. Canaries go in; every channel is searched for them.

use std::{fs, path::Path};

use aho_corasick::AhoCorasick;
use base64::{
    Engine,
    engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD},
};
use rand::RngExt;
use redis::Value;

use crate::harness::{Argument, Client, Reply, Server, Sut, args, contains, eventually, expect, server_tests};

server_tests![no_secret_reaches_any_channel, no_error_repeats_what_was_sent];

/// A text that nothing else contains.
fn canary() -> String {
    let mut rng = rand::rng();
    (0..24)
        .map(|_| char::from(b"ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz23456789"[rng.random_range(0..57)]))
        .collect()
}

/// What must not be found, in every form in which it might be written.
struct Canaries(Vec<(String, Vec<u8>)>);

impl Canaries {
    fn add(&mut self, name: &str, secret: &[u8]) {
        let hex: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
        let mut forms = vec![("verbatim", secret.to_vec()), ("as HEX", hex.to_uppercase().into_bytes())];
        forms.push(("as hex", hex.into_bytes()));
        // As part of longer data, base64 depends on where the secret begins in its group of three.
        for skipped in 0..3 {
            let whole_groups = (secret.len() - skipped) / 3 * 3;
            for (form, engine) in [("as base64", STANDARD_NO_PAD), ("as base64url", URL_SAFE_NO_PAD)] {
                forms.push((form, engine.encode(&secret[skipped..skipped + whole_groups]).into_bytes()));
            }
        }
        self.0.extend(forms.into_iter().map(|(form, bytes)| (format!("{name} {form}"), bytes)));
    }

    /// Searches all channels, in each of which the control must be found: else the search proves nothing.
    fn search(&self, channels: &[(String, Vec<u8>)], control: &[u8]) {
        let needles = AhoCorasick::new(self.0.iter().map(|(_, bytes)| bytes)).expect("a searcher");
        for (channel, content) in channels {
            if let Some(found) = needles.find(content) {
                panic!("{} is in {channel}", self.0[found.pattern().as_usize()].0);
            }
            // A manifest only lists files, and a file that has just been begun says nothing yet.
            let silent = channel.ends_with(".manifest") || content.len() < 64;
            assert!(silent || contains(content, control), "the control is not in {channel}");
        }
    }
}

/// Two servers that write down all that they can, and a user who may not do much.
fn watched(sut: &Sut) -> (Server, Server) {
    let write_all = |setup: crate::harness::Setup| {
        let setup = setup
            .with("appendonly", "yes")
            .with("appendfsync", "always")
            .with("aof-use-rdb-preamble", "no")
            .with("rdbcompression", "no")
            .with("loglevel", "debug")
            .with("slowlog-log-slower-than", "0")
            .with("slowlog-max-len", "100000")
            .with("acllog-max-len", "10000")
            .with("latency-monitor-threshold", "1")
            .with("latency-tracking", "yes");
        if sut.is_valkey() {
            setup.with("commandlog-request-larger-than", "0").with("commandlog-reply-larger-than", "0")
        } else {
            setup
        }
    };
    let primary = write_all(sut.setup().counting_usage()).start();
    let replica = write_all(sut.setup().counting_usage().replica_of(&primary)).start();
    primary.wait_for(&replica);
    (primary, replica)
}

/// All files of a directory and those below it, but for the keyring.
fn files(directory: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if path.file_name().is_none_or(|name| name != "keyring") {
            found.push((path.display().to_string(), fs::read(&path).unwrap()));
        }
    }
    found
}

/// A reply as bytes, to be searched.
fn flat(reply: &Value) -> Vec<u8> {
    match reply {
        Value::Array(items) | Value::Set(items) => {
            items.iter().flat_map(|item| [flat(item), b"\n".to_vec()].concat()).collect()
        }
        Value::Map(pairs) => pairs.iter().flat_map(|(name, value)| [flat(name), flat(value)].concat()).collect(),
        Value::ServerError(_) => reply.error().into_bytes(),
        Value::BulkString(bytes) => bytes.clone(),
        Value::SimpleString(text) | Value::VerbatimString { text, .. } => text.clone().into_bytes(),
        other => format!("{other:?}").into_bytes(),
    }
}

fn no_secret_reaches_any_channel(sut: &Sut) {
    let (primary, replica) = watched(sut);
    let mut c = primary.client();
    let mut monitors = [primary.client(), replica.client()];
    for monitor in &mut monitors {
        monitor.ok("MONITOR");
    }
    let plain = canary();
    let mut canaries = Canaries(Vec::new());
    let mut errors = Vec::new();
    leave_traces(&mut c, &plain, &mut errors);
    use_secrets(&primary, &plain, &mut canaries, &mut errors);
    rotate(&primary, &replica, &mut canaries, &mut errors);
    primary.wait_for(&replica);
    for server in [&primary, &replica] {
        write_snapshots(&mut server.client(), &mut canaries, &mut errors);
    }
    import_snapshots(&mut primary.client(), &mut canaries, &mut errors);
    let keyring = fs::read_to_string(primary.keyring_file()).unwrap();
    let keyring: serde_json::Value = serde_json::from_str(&keyring).unwrap();
    for key in keyring["keys"].as_array().unwrap() {
        let root = key["key"].as_str().unwrap();
        canaries.add("the keyring's key in base64", root.as_bytes());
        canaries.add("the keyring's key", &STANDARD.decode(root).unwrap());
    }
    let fernet = keyring["fernet"]["old"].as_str().unwrap();
    canaries.add("the keyring's Fernet key in base64", fernet.as_bytes());
    canaries.add("the keyring's Fernet key", &URL_SAFE.decode(fernet).unwrap());
    canaries.add("the keyring's pepper", keyring["peppers"]["old"].as_str().unwrap().as_bytes());

    c.ok("SET the end");
    primary.wait_for(&replica);
    let mut unmarked: Vec<(String, Vec<u8>)> = Vec::new();
    let mut channels: Vec<(String, Vec<u8>)> = vec![("error texts".to_owned(), errors.join("\n").into_bytes())];
    for (monitor, name) in monitors.iter_mut().zip(["MONITOR", "MONITOR of the replica"]) {
        let mut lines = Vec::new();
        while !contains(&lines, b"\"the\" \"end\"") {
            lines.extend(flat(&monitor.receive()));
            lines.push(b'\n');
        }
        channels.push((name.to_owned(), lines));
    }
    for (server, name) in [(&primary, "primary"), (&replica, "replica")] {
        let mut c = server.client();
        // The control goes where only the server itself writes.
        c.ok(args!["DEBUG", "LOG", plain]);
        c.err(args!["EVAL", "return redis.error_reply(ARGV[1] .. ' x')", "0", plain]);
        c.ok(args!["CLIENT", "SETNAME", plain]);
        let mut ask = |channel: &str, commands: &[&str]| {
            let content = commands.iter().flat_map(|command| flat(&c.ok(*command))).collect();
            channels.push((format!("{channel} of the {name}"), content));
        };
        ask("SLOWLOG", &["SLOWLOG GET -1"]);
        ask("INFO", &["INFO everything"]);
        ask("CLIENT LIST", &["CLIENT LIST"]);
        if name == "primary" {
            ask("ACL LOG", &["ACL LOG 10000"]);
        }
        if sut.is_valkey() {
            for kind in ["slow", "large-request", "large-reply"] {
                ask(&format!("COMMANDLOG {kind}"), &[&format!("COMMANDLOG GET -1 {kind}")]);
            }
        }
        let latency: Vec<u8> =
            ["LATENCY LATEST", "LATENCY DOCTOR", "LATENCY HISTOGRAM", "MEMORY DOCTOR", "MODULE LIST", "CONFIG GET *"]
                .iter()
                .flat_map(|command| flat(&c.ok(*command)))
                .collect();
        unmarked.push((format!("LATENCY, MODULE LIST and CONFIG of the {name}"), latency));
        c.wait_for_background_work();
        c.ok("SAVE");
        channels.extend(files(server.directory()));
        // Rewritten, the file holds values instead of effects.
        if name == "primary" {
            c.ok("BGREWRITEAOF");
            c.wait_for_background_work();
            channels.extend(files(server.directory()));
        }
    }
    let kinds = [
        "appendonly.aof",
        "dump.rdb",
        "sealed.sqlite",
        "fernet.sqlite",
        "server.log",
        "INFO",
        "ACL LOG",
        "SLOWLOG",
        "MONITOR",
        "error texts",
    ];
    for kind in kinds {
        let of_kind: Vec<_> = channels.iter().filter(|(name, _)| name.contains(kind)).collect();
        assert!(!of_kind.is_empty(), "{kind} is among the channels");
    }
    canaries.search(&channels, plain.as_bytes());
    canaries.search(&unmarked, b"histogram_usec");
}

/// Leaves what is no secret in every channel.
fn leave_traces(c: &mut Client, plain: &str, errors: &mut Vec<String>) {
    c.ok(args!["SET", plain, plain]);
    errors.push(c.err(args![plain]));
    c.ok(args!["ACL", "SETUSER", plain, "on", ">password", "~other", "-@all", "+get", "+kg.addkey"]);
}

/// Secrets through every command that takes or makes one, in every way that ends before, in and after its handler.
fn use_secrets(primary: &Server, plain: &str, canaries: &mut Canaries, errors: &mut Vec<String>) {
    let mut c = primary.client();
    let mut take = |name: &str| {
        let secret = canary();
        canaries.add(name, secret.as_bytes());
        secret
    };
    let mut run = |c: &mut Client, command: Vec<Vec<u8>>| {
        let reply = c.call(&command);
        if reply.is_error() {
            errors.push(reply.error());
        }
        reply
    };
    // The store's first key, under a name that is no secret.
    let vault = take("the secret of ADDKEY");
    run(&mut c, args!["KG.ADDKEY", "acme", plain, vault, "LIMIT", "5", "1h", "META", "{}"]);
    assert_eq!(c.ok("KG.REVEAL acme 1").text(), vault);
    assert_eq!(c.ok(args!["KG.REVEAL", "acme", "NAME", plain]).text(), vault);
    assert_eq!(c.ok(args!["KG.FINDKEY", "acme", vault]).ints(), [1]);
    assert!(run(&mut c, args!["KG.ADDKEY", "acme", "other", vault, "UNIQUE"]).is_error());
    // Handed out at once, after a wait, and in a transaction; changed, and told of.
    assert_eq!(c.ok(args!["KG.ACQUIRE", "acme", plain]).field("secret").text(), vault);
    c.ok(args!["KG.ADDKEY", "acme", "slow", take("the secret of a key waited for"), "LIMIT", "1", "200ms"]);
    for _ in 0..2 {
        assert_eq!(c.code(args!["KG.ACQUIRE", "acme", "slow", "BLOCK", "10s"]), "ACQUIRED");
    }
    c.ok("MULTI");
    c.ok(args!["KG.ACQUIRE", "acme", plain]);
    c.ok("EXEC");
    c.ok(args!["KG.FEEDBACK", "acme", "1", "THROTTLED", "1ms"]);
    c.ok(args!["KG.FEEDBACK", "acme", "1", "REJECTED", "REASON", plain]);
    for (option, secret) in [("SECRET", take("the secret of SETKEY")), ("secret", take("another secret of SETKEY"))] {
        assert!(c.ok(args!["KG.SETKEY", "acme", "1", "META", "{}", option, secret]).list().len() <= 2);
        assert_eq!(c.ok("KG.REVEAL acme 1").text(), secret);
        assert!(run(&mut c, args!["KG.SETKEY", "acme", "2", "SECRET", secret, "UNIQUE"]).is_error());
    }
    c.ok(args!["KG.SETKEY", "acme", "1", "SECRET", vault, "ACTIVE", "yes"]);
    c.ok("KG.ADDORG acme shop LIMIT 3 1h");
    let raw = c.ok(args!["KG.NEWKEY", "acme", "shop", plain]).list()[1].text();
    for _ in 0..5 {
        run(&mut c, args!["KG.AUTH", "acme", raw, "IP", "192.0.2.1"]);
        run(&mut c, args!["KG.CHECK", "acme", raw, "IP", "192.0.2.1"]);
    }
    let makes_an_id = c.ok("KG.NEWKEY acme shop revoked").list().to_vec();
    let revoked = makes_an_id[1].text();
    c.ok(args!["KG.REVOKE", "acme", makes_an_id[0].int()]);
    run(&mut c, args!["KG.AUTH", "acme", revoked]);
    // Rotated, with a grace and without; revoked by the key itself and by its beginning.
    let leaked = c.ok("KG.NEWKEY acme shop leaked").list().to_vec();
    let mut shown = vec![leaked[1].text()];
    for grace in [&["GRACE", "1h"][..], &["GRACE", "1ms"], &[], &["GRACE", "1h"]] {
        let mut command = args!["KG.ROTATE", "acme", leaked[0].int()];
        command.extend(grace.iter().map(Argument::bytes));
        shown.push(c.ok(command).list()[1].text());
        for raw in &shown {
            run(&mut c, args!["KG.AUTH", "acme", raw]);
        }
    }
    for raw in &shown {
        run(&mut c, args!["KG.REVOKE", "acme", "KEY", raw]);
        run(&mut c, args!["KG.REVOKE", "nobody", "key", raw]);
        run(&mut c, args!["KG.REVOKE", "acme", "KEY", raw, "WHAT"]);
        // Without the word that tells it from an id, and with the word at the wrong end.
        run(&mut c, args!["KG.REVOKE", "acme", raw]);
        run(&mut c, args!["KG.REVOKE", "acme", raw, "KEY"]);
        run(&mut c, args!["KG.ROTATE", "acme", raw]);
    }
    run(&mut c, args!["KG.REVOKE", "acme", "START", &shown[4][..14]]);
    // Each command with a secret in its place, refused in every way.
    c.ok("SET text x");
    c.ok("HSET foreign f v");
    let secret_position: [(&str, usize, &str); 6] = [
        ("KG.ADDKEY", 3, "name"),
        ("KG.AUTH", 2, ""),
        ("KG.CHECK", 2, ""),
        ("KG.FINDKEY", 2, ""),
        ("KG.SETKEY", 4, "name"),
        ("KG.REVOKE", 3, "KEY"),
    ];
    let stores = ["acme", "nobody", "text", "foreign", "bad name", "{acme}:ips"];
    for (name, position, before) in secret_position {
        for store in stores {
            for tail in
                [&[][..], &["WHAT"], &["COST"], &["COST", "x"], &["IP", "x"], &["LIMIT", "0", "1h"], &["META", "{"]]
            {
                let secret = take(name);
                let mut command = args![name, store];
                command.resize(position, before.into());
                command.push(secret.into_bytes());
                command.extend(tail.iter().map(Argument::bytes));
                run(&mut c, command);
            }
        }
        let call = |secret: &str| {
            let mut command = args![name, "acme"];
            command.resize(position, before.into());
            command.push(secret.as_bytes().to_vec());
            command
        };
        // In a transaction, done and thrown away; in a script, where it is not allowed.
        for end in ["EXEC", "DISCARD"] {
            c.ok("MULTI");
            run(&mut c, call(&take(name)));
            c.ok(end);
        }
        // Full memory, a replica, a user who may not.
        c.ok("CONFIG SET maxmemory 1");
        run(&mut c, call(&take(name)));
        c.ok("CONFIG SET maxmemory 0");
        let mut denied = primary.client();
        denied.ok(args!["AUTH", plain, "password"]);
        assert!(run(&mut denied, call(&take(name))).is_error());
        assert!(run(&mut denied, args!["GET", plain]).is_error());
        // Too large, and with bytes that are no text.
        let large = [take(name).as_bytes(), &vec![b'x'; 70_000]].concat();
        let mut command = call("");
        command[position] = large;
        run(&mut c, command);
        let mut odd = take(name).into_bytes();
        odd.extend(b"\0\xff\r\n%s%n");
        let mut command = call("");
        command[position] = odd;
        run(&mut c, command);
        // Too few arguments: the server refuses it, and tells nobody.
        run(&mut c, args![name, take(name)]);
        run(&mut c, args![name]);
    }
    // A key that stands where the format is right and the store is not.
    canaries.add("an API key", raw.as_bytes());
    canaries.add("the body of an API key", &raw.as_bytes()[8..51]);
    canaries.add("a revoked API key", revoked.as_bytes());
    for raw in &shown {
        canaries.add("a rotated API key", raw.as_bytes());
        canaries.add("the body of a rotated API key", &raw.as_bytes()[8..51]);
    }
    for command in [args!["KG.AUTH", "nowhere", raw], args!["KG.AUTH", "acme", raw, "WHAT"]] {
        assert!(c.call(command).is_error());
    }
}

/// The store as files: with its secrets sealed, and under a Fernet key.
fn write_snapshots(c: &mut Client, canaries: &mut Canaries, errors: &mut Vec<String>) {
    for command in ["KG.SNAPSHOT acme TO sealed.sqlite", "KG.SNAPSHOT acme TO fernet.sqlite FERNET old"] {
        c.ok(command);
        let ended = eventually("the snapshot ending", || {
            let status = c.ok("KG.SNAPSHOT acme STATUS");
            expect(status.field("state").text() != "running", || format!("{status:?}")).map(|()| status)
        });
        assert_eq!(ended.field("state").text(), "done", "{ended:?}");
        errors.push(String::from_utf8_lossy(&flat(&ended)).into_owned());
    }
    // One who gives the key itself in place of its label, with the word before it and without.
    for words in [&["FERNET"][..], &[], &["FERNET", "old"]] {
        let secret = canary();
        canaries.add("a Fernet key in place of its label", secret.as_bytes());
        let mut command = args!["KG.SNAPSHOT", "acme", "TO", "x"];
        command.extend(words.iter().map(Argument::bytes));
        command.push(secret.into_bytes());
        errors.push(c.err(command));
    }
}

/// The same files come back, into stores of other names.
fn import_snapshots(c: &mut Client, canaries: &mut Canaries, errors: &mut Vec<String>) {
    let calls = [("copy", "sealed.sqlite FORMAT snapshot"), ("own", "fernet.sqlite FORMAT simple_keystore FERNET old")];
    for (store, rest) in calls {
        c.ok(format!("KG.IMPORT {store} FROM {rest}"));
        let ended = eventually("the import ending", || {
            let status = c.ok(args!["KG.IMPORT", store, "STATUS"]);
            expect(status.field("state").text() != "running", || format!("{status:?}")).map(|()| status)
        });
        assert_eq!(ended.field("state").text(), "done", "{ended:?}");
        assert!(ended.field("vault_keys").int() > 0, "{ended:?}");
        errors.push(String::from_utf8_lossy(&flat(&ended)).into_owned());
    }
    // Those who take a secret for its label.
    for (format, option) in [("keyguard", "PEPPER"), ("simple_keystore", "FERNET")] {
        let secret = canary();
        canaries.add("a secret in the place of a label", secret.as_bytes());
        errors.push(c.err(args!["KG.IMPORT", "copy", "FROM", "x", "FORMAT", format, option, secret]));
    }
}

/// A newer key comes into the keyring, after files that are none, and the vault is sealed again under it.
fn rotate(primary: &Server, replica: &Server, canaries: &mut Canaries, errors: &mut Vec<String>) {
    let file = fs::read_to_string(primary.keyring_file()).unwrap();
    let mut keyring: serde_json::Value = serde_json::from_str(&file).unwrap();
    let new: [u8; 32] = rand::rng().random();
    keyring["keys"].as_array_mut().unwrap().push(serde_json::json!({ "key": STANDARD.encode(new) }));
    let fernet: [u8; 32] = rand::rng().random();
    keyring["fernet"] = serde_json::json!({ "old": URL_SAFE.encode(fernet) });
    keyring["peppers"] = serde_json::json!({ "old": canary() });
    for server in [replica, primary] {
        let mut c = server.client();
        let broken = canary();
        canaries.add("a file that is no keyring", broken.as_bytes());
        for content in [broken.clone(), format!("{{\"version\":1,\"keys\":[{{\"key\":\"{broken}\"}}]}}")] {
            fs::write(server.keyring_file(), content).unwrap();
            errors.push(c.err("KG.KEYRING RELOAD"));
        }
        fs::write(server.keyring_file(), keyring.to_string()).unwrap();
        c.ok("KG.KEYRING RELOAD");
        // One who takes the key for its name.
        errors.push(c.err(args!["KG.KEYRING", "DROP", STANDARD.encode(new)]));
        errors.push(c.err(args!["KG.KEYRING", "DROP", broken]));
    }
    let mut c = primary.client();
    let ended = eventually("the vault being sealed again", || {
        let reply = c.ok("KG.REKEY acme");
        expect(reply.field("state").text() == "done", || format!("{reply:?}")).map(|()| reply)
    });
    assert!(ended.field("done").int() > 0 && ended.field("failed").int() == 0, "{ended:?}");
    errors.push(String::from_utf8_lossy(&flat(&c.ok("KG.KEYRING STATUS"))).into_owned());
}

fn no_error_repeats_what_was_sent(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    let sample = crate::harness::populate(&mut c);
    let secret = canary();
    for command in crate::harness::commands(&sample) {
        for position in 1..=command.len() {
            for value in [secret.clone(), format!("{secret}\r\n"), format!("-{secret}"), secret.repeat(100)] {
                let mut changed = command.clone();
                match changed.get_mut(position) {
                    Some(word) => *word = value.into_bytes(),
                    None => changed.push(value.into_bytes()),
                }
                let error = c.call(&changed).error();
                assert!(!error.contains(&secret[..12]), "{}: {error}", command[0].escape_ascii());
            }
        }
    }
}
