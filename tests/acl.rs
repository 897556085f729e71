//! Access: what a user may do, and by which category.

use crate::harness::{Client, Reply, Server, Sut, args, populate, server_tests};

server_tests![
    an_application_may_do_its_work_and_nothing_else,
    a_key_pattern_is_a_whole_store,
    categories_hold_their_commands,
    secrets_are_in_no_general_category,
    categories_grant_and_deny,
];

const USE: [&str; 10] = [
    "kg.auth",
    "kg.check",
    "kg.claim",
    "kg.claimip",
    "kg.clearip",
    "kg.feedback",
    "kg.log",
    "kg.refund",
    "kg.remaining",
    "kg.settle",
];
const SECRETS: [&str; 6] = ["kg.acquire", "kg.findkey", "kg.newkey", "kg.reveal", "kg.rotate", "kg.snapshot"];
const READ: [&str; 13] = [
    "kg.checkip",
    "kg.countkeys",
    "kg.getkey",
    "kg.getorg",
    "kg.getstore",
    "kg.inspect",
    "kg.listips",
    "kg.listkeys",
    "kg.listorgs",
    "kg.nextkey",
    "kg.stats",
    "kg.usability",
    "kg.usage",
];
const ADMIN: [&str; 16] = [
    "kg.addkey",
    "kg.addorg",
    "kg.allowip",
    "kg.blockip",
    "kg.delkey",
    "kg.delorg",
    "kg.delstore",
    "kg.import",
    "kg.keyring",
    "kg.rekey",
    "kg.revoke",
    "kg.setkey",
    "kg.setorg",
    "kg.setstore",
    "kg.unallowip",
    "kg.unblockip",
];

/// A connection of a user with these rights.
fn user(server: &Server, rules: &str) -> Client {
    let mut admin = server.client();
    admin.ok(format!("ACL SETUSER app reset on >password {rules}"));
    let mut c = server.client();
    c.ok("AUTH app password");
    c
}

fn an_application_may_do_its_work_and_nothing_else(sut: &Sut) {
    let server = sut.server();
    let mut admin = server.client();
    let sample = populate(&mut admin);
    admin.ok("KG.ADDORG zeta shop");
    let other = admin.ok("KG.NEWKEY zeta shop web").list()[1].text();
    let mut c = user(&server, "-@all +kg.auth +kg.claim ~acme ~rl:*");
    assert_eq!(c.code(format!("KG.AUTH acme {} SCOPE read IP 192.0.2.1", sample.limited)), "VALID");
    assert!(c.claim("rl:few 1000 1h").claimed);
    let before = admin.state();
    for command in crate::harness::commands(&sample) {
        let name = String::from_utf8_lossy(&command[0]).into_owned();
        if !["KG.AUTH", "KG.CLAIM"].contains(&&*name) {
            let text = c.refused("NOPERM", &command);
            assert!(text.to_lowercase().contains(&name.to_lowercase()), "{text}");
        }
    }
    let forbidden = [
        "KG.CLAIM other 5 1h",
        "KG.CLAIM {acme}:key:1 5 1h",
        "KG.CLAIM acm 5 1h",
        &format!("KG.AUTH zeta {other}"),
        "GET x",
        "SET x y",
        "HGETALL acme",
        "HGETALL {acme}:key:1",
        "DUMP rl:few",
        "DEL rl:few",
        "SCAN 0",
        "KEYS *",
        "CONFIG GET *",
        "MONITOR",
        "DEBUG SLEEP 0",
        "FLUSHALL",
        "ACL LIST",
        "MODULE LIST",
        "INFO",
        "SLOWLOG GET",
        "EVAL return 0",
        "CLIENT LIST",
        "COMMAND",
        "SAVE",
        "PING",
    ];
    for command in forbidden {
        c.refused("NOPERM", command);
    }
    assert_eq!(admin.state(), before);
}

fn a_key_pattern_is_a_whole_store(sut: &Sut) {
    let server = sut.server();
    let sample = populate(&mut server.client());
    let mut c = user(&server, "-@all +kg.auth +kg.claim +kg.reveal +hgetall ~acme");
    // The store's derived keys need no pattern of their own, and are not open to other commands.
    assert_eq!(c.code(format!("KG.AUTH acme {} SCOPE read IP 192.0.2.7", sample.limited)), "IP_BLOCKED");
    assert_eq!(c.code(format!("KG.AUTH acme {} SCOPE read", sample.limited)), "VALID");
    assert_eq!(c.ok("KG.REVEAL acme 3").text(), "another-secret");
    c.refused("NOPERM", "HGETALL {acme}:key:1");
    c.refused("NOPERM", "KG.CLAIM rl:few 5 1h");
    c.refused("WRONGTYPE", "KG.CLAIM acme 5 1h");
}

/// The commands of a category that are ours.
fn members(c: &mut Client, category: &str) -> Vec<String> {
    let reply = c.ok(format!("ACL CAT {category}"));
    let mut names: Vec<String> =
        reply.list().iter().map(|name| name.text().to_lowercase()).filter(|name| name.starts_with("kg.")).collect();
    names.sort();
    names
}

fn categories_hold_their_commands(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    let known: Vec<String> = c.ok("ACL CAT").list().iter().map(Reply::text).collect();
    for (category, commands) in [
        ("keyguard_use", &USE[..]),
        ("keyguard_secrets", &SECRETS),
        ("keyguard_read", &READ),
        ("keyguard_admin", &ADMIN),
    ] {
        assert_eq!(known.iter().any(|name| name == category), sut.has_module_categories(), "{category}");
        if sut.has_module_categories() {
            let mut members = members(&mut c, category);
            // How servers tell each other of changes is no command for users, wherever it stands.
            members.retain(|name| name != "kg.apply");
            assert_eq!(members, commands, "{category}");
        }
    }
}

fn secrets_are_in_no_general_category(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    for category in ["read", "write"] {
        let members = members(&mut c, category);
        for name in SECRETS {
            assert!(!members.iter().any(|member| member == name), "{name} is in @{category}");
        }
        if sut.has_module_categories() {
            assert!(!members.is_empty(), "some are in @{category}");
        }
    }
    let sample = populate(&mut c);
    let mut c = user(&server, "-@all +@read +@write ~*");
    for command in crate::harness::commands(&sample) {
        let name = String::from_utf8_lossy(&command[0]).to_lowercase();
        if SECRETS.contains(&&*name) {
            c.refused("NOPERM", &command);
        }
    }
    c.ok("SET x y");
    if sut.has_module_categories() {
        assert!(c.claim("rl:few 1000 1h").claimed);
    }
}

fn categories_grant_and_deny(sut: &Sut) {
    if !sut.has_module_categories() {
        // There the README's recipes name commands: the first tests of this file.
        let server = sut.server();
        assert!(server.client().err("ACL SETUSER app +@keyguard_use").contains("Error in ACL SETUSER"));
        return;
    }
    let server = sut.server();
    let sample = populate(&mut server.client());
    let rules = [
        ("-@all +@keyguard_use ~*", &USE[..]),
        ("-@all +@keyguard_secrets ~*", &SECRETS),
        ("-@all +@keyguard_read ~*", &READ),
        ("-@all +@keyguard_admin ~*", &ADMIN),
        ("+@all -@keyguard_use -@keyguard_read -@keyguard_admin ~*", &SECRETS),
    ];
    for (rules, allowed) in rules {
        let mut c = user(&server, rules);
        for command in crate::harness::commands(&sample) {
            let name = String::from_utf8_lossy(&command[0]).to_lowercase();
            let reply = c.call(&command);
            if name != "kg.apply" {
                assert_eq!(reply.error_code() != "NOPERM", allowed.contains(&&*name), "{rules}: {name}: {reply:?}");
            }
        }
    }
    let mut c = user(&server, "+@all -@dangerous ~*");
    let text = c.err(args!["KG.APPLY", "rl:few", "x"]);
    assert!(text.starts_with("NOPERM "), "{text}");
}
