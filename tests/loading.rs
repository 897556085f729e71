//! Loading: the keyring that the module starts with, and what it says where there is none.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, process::Command};

use crate::harness::{
    Client, KEYRING, OTHER_KEYRING, Reply, Server, Sut, args, eventually, expect, populate, server_tests,
};

server_tests![
    loads_while_the_server_runs,
    makes_a_keyring_when_alone,
    makes_no_keyring_unless_told_to,
    makes_no_keyring_in_a_cluster,
    makes_no_keyring_on_a_replica,
    makes_no_keyring_for_an_existing_store,
    refuses_a_keyring_that_others_can_read,
    refuses_a_damaged_keyring,
    refuses_unknown_arguments,
    reads_the_keyring_from_the_environment,
    reads_a_keyring_of_bare_base64,
    lines_of_the_configuration_win_over_arguments,
    the_example_configuration_starts_a_server,
    works_without_a_keyring,
    an_older_key_still_opens,
    a_replaced_keyring_opens_nothing,
    tells_of_a_policy_that_evicts,
    describes_itself,
    describes_its_commands,
];

fn keyring_mode(server: &Server) -> u32 {
    fs::metadata(server.keyring_file()).unwrap().permissions().mode() & 0o777
}

fn loads_while_the_server_runs(sut: &Sut) {
    let server = sut.setup().without_module().start();
    let mut c = server.client();
    assert!(c.call("KG.CLAIM b 1 1h").is_error());
    let keyring = server.keyring_file();
    fs::remove_file(&keyring).unwrap();
    c.ok(args![
        "MODULE",
        "LOAD",
        sut.module().to_str().unwrap(),
        "keyring-file",
        keyring.to_str().unwrap(),
        "keyring-auto-create",
        "yes"
    ]);
    assert!(c.claim("b 1 1h").claimed);
    add_first_key(&mut c);
    assert_eq!(c.ok("KG.REVEAL acme 1").text(), "some-secret");
    assert_eq!(keyring_mode(&server), 0o600);
    // Data of the native types forbids taking the module away, as the server sees to.
    c.err("MODULE UNLOAD keyguard");
    assert!(!c.claim("b 1 1h").claimed);
}

/// The first key of a server that has to make its keyring: it looks for stores of another one first, which may take more
/// than one call.
fn add_first_key(c: &mut Client) {
    eventually("the keyring being made", || {
        let reply = c.call("KG.ADDKEY acme vendor some-secret");
        let looking = reply.error_code() == "NOKEYRING" && reply.error().contains("still looking");
        assert!(looking || !reply.is_error(), "{reply:?}");
        expect(!looking, || reply.error())
    });
}

fn makes_a_keyring_when_alone(sut: &Sut) {
    let setup = sut.setup().with("appendonly", "yes").with("appendfsync", "always");
    let mut server = setup.keyring_to_be_made("yes").start();
    add_first_key(&mut server.client());
    assert_eq!(keyring_mode(&server), 0o600);
    let made = fs::read_to_string(server.keyring_file()).unwrap();
    let file: serde_json::Value = serde_json::from_str(&made).expect("JSON");
    assert_eq!(file["version"], 1);
    assert_eq!(file["keys"].as_array().unwrap().len(), 1);
    server.restart();
    assert_eq!(server.client().ok("KG.REVEAL acme 1").text(), "some-secret");
    assert_eq!(fs::read_to_string(server.keyring_file()).unwrap(), made, "made once");
    let other = sut.setup().keyring_to_be_made("yes").start();
    other.client().ok("SET not a-store");
    add_first_key(&mut other.client());
    assert_ne!(fs::read_to_string(other.keyring_file()).unwrap(), made, "every keyring is its own");
}

/// Commands that need a keyring say that there is none, and none is made.
fn assert_without_keyring(server: &Server, commands: &[&str]) {
    for command in commands {
        let text = server.client().refused("NOKEYRING", *command);
        assert!(!text.contains("still looking"), "{text}");
    }
    assert!(!server.keyring_file().exists());
}

fn makes_no_keyring_unless_told_to(sut: &Sut) {
    let setup = sut.setup();
    let file = setup.directory().join("elsewhere").display().to_string();
    let log = setup.module_arguments(&["keyring-file", &file]).start_in_vain();
    assert!(log.contains("keyring-file does not exist"), "{log}");
    let log = sut.setup().keyring_to_be_made("no").start_in_vain();
    assert!(log.contains("keyring-file does not exist"), "{log}");
}

fn makes_no_keyring_in_a_cluster(sut: &Sut) {
    let server = sut.setup().cluster(15_000).keyring_to_be_made("yes").start();
    let mut c = server.client();
    c.ok("CLUSTER ADDSLOTSRANGE 0 16383");
    eventually("the cluster of one", || {
        let info = c.ok("CLUSTER INFO").text();
        expect(info.contains("cluster_state:ok"), || info.clone())
    });
    assert_without_keyring(&server, &["KG.ADDKEY acme vendor some-secret"]);
}

fn makes_no_keyring_on_a_replica(sut: &Sut) {
    let primary = sut.setup().keyring_to_be_made("yes").start();
    primary.client().ok("KG.ADDORG acme shop");
    let replica = sut.setup().keyring_to_be_made("yes").replica_of(&primary).start();
    primary.wait_for(&replica);
    assert_without_keyring(&replica, &["KG.FINDKEY acme some-secret"]);
    // Nor on a primary that has one: the replica could not read what it writes.
    assert_without_keyring(&primary, &["KG.ADDKEY acme vendor some-secret", "KG.NEWKEY acme shop web"]);
}

fn makes_no_keyring_for_an_existing_store(sut: &Sut) {
    let setup = sut.setup().with("appendonly", "yes").with("appendfsync", "always");
    let mut server = setup.keyring_to_be_made("yes").start();
    add_first_key(&mut server.client());
    server.kill();
    fs::remove_file(server.keyring_file()).unwrap();
    server.start_again();
    let commands = [
        "KG.REVEAL acme 1",
        "KG.ADDKEY acme vendor other-secret",
        "KG.FINDKEY acme some-secret",
        "KG.ADDKEY another-store vendor other-secret",
    ];
    assert_without_keyring(&server, &commands);
}

fn refuses_a_keyring_that_others_can_read(sut: &Sut) {
    for mode in [0o644, 0o640, 0o604, 0o660, 0o620] {
        let log = sut.setup().keyring_with_mode(KEYRING, mode).start_in_vain();
        assert!(log.contains("keyring") && log.contains("0600"), "{mode:o}: {log}");
    }
    for mode in [0o600, 0o400] {
        let server = sut.setup().keyring_with_mode(KEYRING, mode).start();
        assert_eq!(server.client().ok("KG.ADDKEY acme vendor some-secret").int(), 1);
        assert_eq!(keyring_mode(&server), mode);
    }
}

fn refuses_a_damaged_keyring(sut: &Sut) {
    let canary = "q83vEjRWeJCrze8SNFZ4kKvN7xI0VniQq83vEjRWeJA";
    let table = [
        String::new(),
        "{".to_owned(),
        "{\"version\":1,\"keys\":[]}".to_owned(),
        "{\"version\":2,\"keys\":[]}".to_owned(),
        format!("{{\"version\":1,\"keys\":[{{\"key\":\"{canary}{canary}\",\"created\":\"2026-01-01T00:00:00Z\"}}]}}"),
        format!("{canary}={canary}"),
        format!("{canary}=\n{canary}="),
    ];
    for content in table {
        let log = sut.setup().keyring(&content).start_in_vain();
        assert!(log.contains("keyring"), "{content}: {log}");
        assert!(!log.contains(&canary[..12]), "the log shows the key: {log}");
    }
}

fn refuses_unknown_arguments(sut: &Sut) {
    for arguments in [&["keyring-fil", "x"][..], &["keyring-file"], &["keyring-auto-create", "perhaps"]] {
        let log = sut.setup().module_arguments(arguments).start_in_vain();
        assert!(!log.contains("panicked"), "{log}");
    }
}

fn reads_the_keyring_from_the_environment(sut: &Sut) {
    let server = sut.setup().module_arguments(&[]).environment("KEYGUARD_KEYRING", KEYRING).start();
    let mut c = server.client();
    c.ok("KG.ADDKEY acme vendor some-secret");
    let payload = c.ok("DUMP {acme}:key:1").bytes();
    let header = c.ok("DUMP acme").bytes();
    // The same key by file opens what this one has sealed; so does a .netrc.
    let by_file = sut.setup().keyring(KEYRING).start();
    let netrc = sut.setup();
    let password: serde_json::Value = serde_json::from_str(KEYRING).unwrap();
    let password = password["keys"][0]["key"].as_str().unwrap();
    let file = netrc.directory().join(".netrc");
    fs::write(&file, format!("machine KEYGUARD_KEYRING login keyguard password {password}\n")).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    let by_netrc = netrc.module_arguments(&[]).start();
    for other in [by_file, by_netrc] {
        let mut c = other.client();
        c.ok(args!["RESTORE", "acme", "0", header]);
        c.ok(args!["RESTORE", "{acme}:key:1", "0", payload]);
        assert_eq!(c.ok("KG.REVEAL acme 1").text(), "some-secret");
    }
}

fn reads_a_keyring_of_bare_base64(sut: &Sut) {
    let [old, new] = [KEYRING, OTHER_KEYRING].map(|text| {
        let file: serde_json::Value = serde_json::from_str(text).unwrap();
        file["keys"][0]["key"].as_str().unwrap().to_owned()
    });
    for (content, keys) in [(format!("{old}\n"), "1"), (format!("{old}\n{new}\n"), "2"), (format!("{old},{new}"), "2")]
    {
        let server = sut.setup().keyring(&content).start();
        let mut c = server.client();
        c.ok("KG.ADDKEY acme vendor some-secret");
        assert_eq!(c.ok("KG.REVEAL acme 1").text(), "some-secret");
        assert_eq!(c.info("keyguard", "keyguard_keyring_keys").as_deref(), Some(keys));
    }
}

fn lines_of_the_configuration_win_over_arguments(sut: &Sut) {
    let setup = sut.setup();
    let file = setup.directory().join("server.conf");
    let lines = [
        &*format!("loadmodule {} keyring-file nowhere keyring-auto-create no", sut.module().display()),
        "keyguard.keyring-file keyring",
        "keyguard.keyring-auto-create yes",
        "save \"\"",
    ];
    fs::write(&file, lines.join("\n")).unwrap();
    let server = setup.configuration(&file).start();
    let mut c = server.client();
    add_first_key(&mut c);
    assert_eq!(c.ok("CONFIG GET keyguard.keyring-file").field("keyguard.keyring-file").text(), "keyring");
    assert_eq!(c.ok("CONFIG GET keyguard.*").field("keyguard.keyring-auto-create").text(), "yes");
    for name in ["keyguard.keyring-file", "keyguard.keyring-auto-create"] {
        assert!(c.err(format!("CONFIG SET {name} no")).contains("immutable"), "{name} is fixed at start");
    }
}

fn the_example_configuration_starts_a_server(sut: &Sut) {
    // The folders as they are below the project's root, after a build.
    let setup = sut.setup();
    let release = setup.directory().join("target/release");
    fs::create_dir_all(&release).unwrap();
    std::os::unix::fs::symlink(sut.module(), release.join("libkeyguard.so")).unwrap();
    let server = setup.configuration(&Path::new(env!("CARGO_MANIFEST_DIR")).join("redis.conf.example")).start();
    let mut c = server.client();
    add_first_key(&mut c);
    assert_eq!(c.ok("KG.REVEAL acme 1").text(), "some-secret");
    assert!(c.claim("limit:ada 3 10s").claimed);
    assert!(server.directory().join("target/keyguard.keyring").exists());
}

fn works_without_a_keyring(sut: &Sut) {
    let server = sut.setup().module_arguments(&[]).start();
    let mut c = server.client();
    for command in ["KG.ADDKEY acme vendor some-secret", "KG.ADDKEY acme vendor some-secret UNIQUE"] {
        c.refused("NOKEYRING", command);
    }
    assert_eq!(c.keys(), Vec::<Vec<u8>>::new());
    assert!(c.claim("b 1 1h").claimed);
    assert!(!c.claim("b 1 1h").claimed);
    c.ok("KG.BLOCKIP acme 192.0.2.1 1h");
    assert_eq!(c.code("KG.CHECKIP acme 192.0.2.1"), "IP_BLOCKED");
}

fn an_older_key_still_opens(sut: &Sut) {
    let mut server = sut.setup().keyring(KEYRING).with("appendonly", "yes").with("appendfsync", "always").start();
    let mut c = server.client();
    let sample = populate(&mut c);
    server.kill();
    let [old, new] = [KEYRING, OTHER_KEYRING].map(|text| {
        let mut file: serde_json::Value = serde_json::from_str(text).unwrap();
        file["keys"][0].take()
    });
    let both = serde_json::json!({ "version": 1, "keys": [old, new] });
    fs::write(server.keyring_file(), both.to_string()).unwrap();
    server.start_again();
    let mut c = server.client();
    assert_eq!(c.ok("KG.REVEAL acme 1").text(), "sk-live-0123456789abcdef");
    assert_eq!(c.code(format!("KG.AUTH acme {} SCOPE read", sample.limited)), "VALID");
    assert_eq!(c.ok("KG.FINDKEY acme another-secret").ints(), [3]);
    let id = c.ok("KG.ADDKEY acme vendor another-secret").int();
    let raw = c.ok("KG.NEWKEY acme shop newer").list()[1].text();
    let mut found = c.ok("KG.FINDKEY acme another-secret").ints();
    found.sort_unstable();
    assert_eq!(found, [3, id], "under both keys");
    c.refused("DUPLICATE", "KG.ADDKEY acme vendor sk-live-0123456789abcdef UNIQUE");
    // Without the older key, what the newer one made goes on.
    server.kill();
    fs::write(server.keyring_file(), OTHER_KEYRING).unwrap();
    server.start_again();
    let mut c = server.client();
    c.refused("NOKEYRING", "KG.REVEAL acme 1");
    assert_eq!(c.ok(args!["KG.REVEAL", "acme", id]).text(), "another-secret");
    assert_eq!(c.code(format!("KG.AUTH acme {raw}")), "VALID");
}

fn a_replaced_keyring_opens_nothing(sut: &Sut) {
    let mut server = sut.setup().keyring(KEYRING).with("appendonly", "yes").with("appendfsync", "always").start();
    let mut c = server.client();
    let sample = populate(&mut c);
    server.kill();
    fs::write(server.keyring_file(), OTHER_KEYRING).unwrap();
    server.start_again();
    let mut c = server.client();
    let before = c.state();
    c.refused("NOKEYRING", "KG.REVEAL acme 1");
    for command in ["KG.AUTH", "KG.CHECK"] {
        c.refused("NOKEYRING", args![command, "acme", sample.plain]);
    }
    c.refused("NOKEYRING", "KG.FINDKEY acme another-secret");
    assert_eq!(c.state(), before);
    assert_eq!(c.ok("KG.GETKEY acme 1").field("name").text(), "openai", "what needs no key works");
    assert!(!c.claim("rl:full 3 1h").claimed);
    eventually("the log naming the missing key", || {
        let log = server.log();
        expect(log.contains("which the keyring lacks"), || log)
    });
    let lacking = c.info("keyguard", "keyguard_keyring_lacking").expect("INFO names the missing key");
    assert!(server.log().contains(&format!("key {lacking}")), "{lacking}");
}

fn tells_of_a_policy_that_evicts(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    let mut flag = || {
        let info = c.ok("INFO keyguard").text();
        info.lines().find_map(|line| line.strip_prefix("keyguard_eviction_unsafe:")).expect("the flag").to_owned()
    };
    assert_eq!(flag(), "0");
    let mut admin = server.client();
    for (policy, expected) in [("allkeys-lru", "1"), ("noeviction", "0"), ("volatile-ttl", "1"), ("noeviction", "0")] {
        admin.ok(args!["CONFIG", "SET", "maxmemory-policy", policy]);
        assert_eq!(flag(), expected, "{policy}");
    }
    assert!(server.log().contains("maxmemory-policy allkeys-lru"), "{}", server.log());
}

/// On a server without what the module needs to keep secrets out of MONITOR: a line that says so, and no server.
pub fn refuses_a_server_too_old(sut: &Sut) {
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("log");
    let mut server = Command::new(sut.program())
        .current_dir(directory.path())
        .args(["--port", "0", "--unixsocket", "socket", "--save", "", "--logfile", "log", "--loadmodule"])
        .arg(sut.module())
        .spawn()
        .unwrap();
    let status = eventually("the server to give up", || {
        server.try_wait().unwrap().ok_or_else(|| fs::read_to_string(&log).unwrap_or_default())
    });
    let log = fs::read_to_string(&log).unwrap();
    assert!(!status.success(), "{log}");
    assert!(log.contains("keyguard needs Redis 7.0 or Valkey 7.2 or later"), "{log}");
}

fn describes_itself(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    populate(&mut c);
    let info = c.ok("INFO keyguard").text();
    assert!(info.contains("# keyguard"), "{info}");
    assert!(info.lines().filter(|line| line.starts_with("keyguard_")).count() > 2, "{info}");
    assert!(c.ok("INFO everything").text().contains("# keyguard"));
    let config = c.ok("CONFIG GET keyguard.*").fields();
    let names: Vec<&str> = config.iter().map(|(name, _)| name.as_str()).collect();
    for name in ["keyguard.keyring-file", "keyguard.keyring-auto-create"] {
        assert!(names.contains(&name), "{names:?}");
    }
    let modules = c.ok("MODULE LIST");
    let module = modules.list().iter().find(|module| module.field("name").text() == "keyguard").expect("keyguard");
    assert!(module.field("ver").int() > 0);
}

/// Every command as the server knows it.
fn command_names(c: &mut Client) -> Vec<String> {
    let mut names: Vec<String> =
        c.ok("COMMAND LIST FILTERBY MODULE keyguard").list().iter().map(|name| name.text().to_uppercase()).collect();
    names.sort();
    names
}

fn describes_its_commands(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    let sample = populate(&mut c);
    let names = command_names(&mut c);
    let tried = crate::harness::commands(&sample);
    for name in &names {
        assert!(tried.iter().any(|command| command[0] == name.as_bytes()), "{name} is in no table of these tests");
    }
    for command in tried {
        let name = String::from_utf8_lossy(&command[0]).into_owned();
        assert!(names.contains(&name), "{name} is among {names:?}");
        let docs = c.ok(format!("COMMAND DOCS {name}")).fields().remove(0).1;
        for field in ["summary", "since", "complexity"] {
            assert!(!docs.field(field).text().is_empty(), "{name} has a {field}");
        }
        assert_eq!(docs.field("group").text(), "module");
        assert!(!docs.field("arguments").list().is_empty(), "{name} has arguments");
        let info = c.ok(format!("COMMAND INFO {name}")).list()[0].clone();
        let arity = info.list()[1].int();
        let fits = if arity < 0 { command.len() as i64 >= -arity } else { command.len() as i64 == arity };
        assert!(arity != -1 && fits, "{name} has the arity {arity}");
        // Below it, the server itself refuses.
        let short = &command[..usize::try_from(arity.abs()).unwrap() - 1];
        assert!(c.err(short).contains("wrong number of arguments"), "{name}");
        // First key, last key, step.
        let key_position = if name == "KG.KEYRING" { 0 } else { 1 };
        let positions = info.list()[3..6].iter().map(Reply::int).collect::<Vec<_>>();
        assert_eq!(positions, [key_position; 3], "{name}");
        let mut keys = args!["COMMAND", "GETKEYS"];
        keys.extend(command.iter().cloned());
        if key_position == 0 {
            assert!(c.err(keys).contains("no key arguments"), "{name}");
            continue;
        }
        let found: Vec<Vec<u8>> = c.ok(keys).list().iter().map(Reply::bytes).collect();
        assert_eq!(found, [command[1].clone()], "{name}");
        let mut keys = args!["COMMAND", "GETKEYSANDFLAGS"];
        keys.extend(command.iter().cloned());
        let flags: Vec<String> = c.ok(keys).list()[0].list()[1].list().iter().map(Reply::text).collect();
        let reads = [
            "KG.REMAINING",
            "KG.INSPECT",
            "KG.GETKEY",
            "KG.LISTKEYS",
            "KG.COUNTKEYS",
            "KG.USABILITY",
            "KG.GETORG",
            "KG.LISTORGS",
            "KG.GETSTORE",
            "KG.NEXTKEY",
            "KG.REVEAL",
            "KG.FINDKEY",
            "KG.CHECK",
            "KG.CHECKIP",
            "KG.LISTIPS",
            "KG.STATS",
            "KG.USAGE",
            "KG.SNAPSHOT",
        ];
        assert_eq!(flags.contains(&"RO".to_owned()), reads.contains(&&*name), "{name}: {flags:?}");
    }
}
