//! Raw keys that were made elsewhere: they go on working as they came.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};

use crate::harness::{Client, Reply, Setup, Sut, args, server_tests};

server_tests![
    a_foreign_key_works_and_gets_our_digest,
    a_foreign_key_is_kept_out_like_any_other,
    a_foreign_key_is_rotated_and_deleted,
    a_store_without_foreign_keys_looks_nothing_up_for_a_malformed_one,
];

/// What `keyguard_python` would have issued.
const RAW: &str = "kg_live_Zr-0_4k7Ar3Vb2nLpXy8TqWcE5uHsJdMfGiNoBvKtRa";

/// SHA-256 of it and `old-secret-key`.
const DIGEST: [u8; 32] = [
    25, 105, 106, 194, 251, 110, 31, 141, 158, 112, 129, 196, 160, 130, 60, 109, 209, 246, 206, 208, 233, 104, 224,
    107, 153, 37, 148, 242, 144, 244, 173, 47,
];

/// What the pepper called `old` is known by.
const PEPPER: [u8; 8] = [121, 163, 40, 89, 62, 239, 152, 64];

fn setup(sut: &Sut, peppers: &str) -> Setup {
    let key = base64::engine::general_purpose::STANDARD.encode([1; 32]);
    sut.setup().keyring(&format!(r#"{{"version":1,"keys":[{{"key":"{key}"}}],"peppers":{peppers}}}"#))
}

const PEPPERS: &str = r#"{"older":"x","old":"old-secret-key"}"#;

/// Makes of a key that was just issued one that was made elsewhere; its id.
fn foreign_key(c: &mut Client) -> i64 {
    c.ok("KG.ADDORG acme shop");
    let issued = c.ok("KG.NEWKEY acme shop web LIMIT 5 1m").list().to_vec();
    let id = issued[0].int();
    let key = format!("{{acme}}:key:{id}");
    let mut packed = c.packed(&key);
    // The digest, its key and the visible beginning stand at the end of version 1.
    let at = packed.len() - 15 - 8 - 32;
    let (digest, ours) = (packed[at..at + 32].to_vec(), packed[at + 32..at + 40].to_vec());
    packed[0] = 2;
    packed.splice(at.., [&DIGEST[..], &PEPPER, &[12], b"kg_live_Zr-0", &[0, 0, 0, 1]].concat());
    c.set_packed(&key, packed);
    c.ok(args!["DEL", format!("{{acme}}:digest:{}", URL_SAFE_NO_PAD.encode(digest))]);
    c.ok(args!["SET", format!("{{acme}}:digest:{}", URL_SAFE_NO_PAD.encode(DIGEST)), id]);
    c.ok(args!["HINCRBY", "acme", format!("using:{}", hex(&ours)), -1]);
    c.ok(args!["HINCRBY", "acme", format!("using:{}", hex(&PEPPER)), 1]);
    c.ok("HINCRBY acme foreign_keys 1");
    id
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The header's counts: of those under the pepper, and of foreign keys.
fn counts(c: &mut Client) -> (String, String) {
    let mut count = |field: &str| c.ok(args!["HGET", "acme", field]).text();
    (count(&format!("using:{}", hex(&PEPPER))), count("foreign_keys"))
}

fn a_foreign_key_works_and_gets_our_digest(sut: &Sut) {
    let server = setup(sut, PEPPERS).start();
    let mut c = server.client();
    let id = foreign_key(&mut c);
    let shown = c.ok(args!["KG.GETKEY", "acme", id]);
    assert_eq!((shown.field("imported").int(), shown.field("start").text()), (1, "kg_live_Zr-0".into()));
    assert_eq!(c.code(args!["KG.CHECK", "acme", RAW]), "VALID");
    assert_eq!(counts(&mut c), ("1".into(), "1".into()), "CHECK changes nothing");
    let reply = c.ok(args!["KG.AUTH", "acme", RAW]);
    assert_eq!((reply.field("code").text(), reply.field("id").int()), ("VALID".into(), id));
    assert_eq!(counts(&mut c), ("0".into(), "1".into()), "it is under our own key now, and its form is as it was");
    let left = c.ok(args!["KG.AUTH", "acme", RAW]);
    assert_eq!(left.field("remaining").int(), 3, "it goes on, and is charged to the same windows");
    assert_eq!(c.ok(args!["EXISTS", format!("{{acme}}:digest:{}", URL_SAFE_NO_PAD.encode(DIGEST))]).int(), 0);
    assert_eq!(c.ok(args!["KG.GETKEY", "acme", id]).field("imported").int(), 1);
    let rows = c.ok("KG.KEYRING STATUS").list().to_vec();
    let row = rows.iter().find(|row| row.field("fingerprint").text() == hex(&PEPPER)).unwrap();
    assert_eq!(row.field("records").int(), 0);
    c.ok(args!["KG.KEYRING", "DROP", hex(&PEPPER)]);
    assert_eq!(c.code(args!["KG.AUTH", "acme", RAW]), "VALID", "the pepper is needed no more");
}

fn a_foreign_key_is_kept_out_like_any_other(sut: &Sut) {
    let server = setup(sut, PEPPERS).start();
    let mut c = server.client();
    let id = foreign_key(&mut c);
    for raw in [&RAW[1..], &RAW[..RAW.len() - 1], &format!("{RAW}a"), &RAW.to_uppercase(), "", "x", &"x".repeat(1025)] {
        let reply = c.call(args!["KG.AUTH", "acme", raw, "IP", "192.0.2.1"]);
        assert_eq!(reply.field("code").text(), "NOT_FOUND", "{raw}");
    }
    assert_eq!(c.info_number("keyguard", "keyguard_addresses_failing"), 1);
    c.ok(args!["KG.SETKEY", "acme", id, "ACTIVE", "no"]);
    assert_eq!(c.code(args!["KG.AUTH", "acme", RAW]), "DISABLED");
    c.ok(args!["KG.SETKEY", "acme", id, "ACTIVE", "yes"]);
    assert_eq!(c.ok(args!["KG.REVOKE", "acme", "KEY", RAW]).text(), "OK");
    assert_eq!(c.code(args!["KG.AUTH", "acme", RAW]), "DISABLED");
    assert_eq!(counts(&mut c), ("1".into(), "1".into()));
    // Without its pepper every customer of old would be a stranger.
    let mut server = server;
    c.ok("SAVE");
    server.kill();
    let without = std::fs::read_to_string(server.keyring_file()).unwrap().replace(r#","old":"old-secret-key""#, "");
    std::fs::write(server.keyring_file(), without).unwrap();
    server.start_again();
    server.client().refused("NOKEYRING", args!["KG.AUTH", "acme", RAW]);
}

fn a_foreign_key_is_rotated_and_deleted(sut: &Sut) {
    let server = setup(sut, PEPPERS).start();
    let mut c = server.client();
    let id = foreign_key(&mut c);
    let raw = c.ok(args!["KG.ROTATE", "acme", id, "GRACE", "1h"]).list()[1].text();
    assert!(raw.starts_with("kg_live_") && raw.len() == 57, "{raw}");
    assert_eq!(counts(&mut c), ("1".into(), "1".into()), "the old one is in its grace");
    assert!(c.ok(args!["KG.GETKEY", "acme", id]).get("imported").is_none());
    for raw in [RAW, &raw] {
        assert_eq!(c.code(args!["KG.AUTH", "acme", raw]), "VALID");
    }
    let newer = c.ok(args!["KG.ROTATE", "acme", id]).list()[1].text();
    assert_eq!(counts(&mut c), ("0".into(), "0".into()), "it is gone");
    assert_eq!(
        [RAW, &raw, &newer].map(|raw| c.code(args!["KG.AUTH", "acme", raw])),
        ["NOT_FOUND", "NOT_FOUND", "VALID"]
    );
    for command in ["KG.DELKEY acme 2", "KG.DELSTORE acme"] {
        c.ok("FLUSHALL");
        assert_eq!(foreign_key(&mut c), 2);
        c.ok(command);
        if command.starts_with("KG.DELKEY") {
            assert_eq!(counts(&mut c), ("0".into(), "0".into()));
            assert_eq!(c.code(args!["KG.AUTH", "acme", RAW]), "NOT_FOUND");
        }
    }
}

fn a_store_without_foreign_keys_looks_nothing_up_for_a_malformed_one(sut: &Sut) {
    // Its keyring lacks the pepper, and nobody asks for it.
    let server = setup(sut, "{}").start();
    let mut c = server.client();
    foreign_key(&mut c);
    c.refused("NOKEYRING", args!["KG.AUTH", "acme", RAW]);
    c.ok("HSET acme foreign_keys 0");
    assert_eq!(c.code(args!["KG.AUTH", "acme", RAW]), "NOT_FOUND");
    c.ok("HDEL acme foreign_keys");
    assert_eq!(c.code(args!["KG.AUTH", "acme", RAW]), "NOT_FOUND");
    c.ok("HSET acme foreign_keys many");
    assert!(c.err(args!["KG.AUTH", "acme", RAW]).contains("header"));
}
