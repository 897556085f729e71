//! Hostile input: whatever is sent, restored or written into its keys, the server answers and lives.

use std::{env, ops::Range};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use redis::Value;

use crate::harness::{Client, Reply, Sample, Server, Sut, args, commands, contains, populate, server_tests};

server_tests![
    every_command_takes_any_number_of_anything,
    every_position_takes_anything,
    a_broken_protocol_ends_the_connection_only,
    wrong_types_in_every_place,
    damaged_records_are_an_error,
    damaged_stores_are_an_error,
    damaged_payloads_of_buckets,
    damaged_payloads_of_key_windows,
    damaged_payloads_of_address_rules,
    damaged_payloads_of_claims_of_addresses,
    damaged_payloads_of_pools,
    damaged_payloads_of_statistics,
];

/// Stands in everything that is sent as text: no error may repeat it.
const MARK: &[u8] = b"ZQXJ7";

/// A server that keeps a list of what took a second or longer, and compresses nothing.
fn server(sut: &Sut) -> Server {
    sut.setup().with("slowlog-log-slower-than", "1000000").with("rdbcompression", "no").start()
}

/// Everything that an argument can be. The largest comes last.
fn anything() -> Vec<Vec<u8>> {
    let mut all = args![
        "",
        MARK,
        b"ZQXJ7\0ZQXJ7",
        b"\0",
        b"\xff\xfeZQXJ7\xc3\x28",
        b"ZQXJ7\r\n-ERR ZQXJ7\r\n",
        "\n",
        " ",
        "-1",
        "0",
        "-0",
        "1",
        "9223372036854775807",
        "-9223372036854775808",
        "9223372036854775808",
        "18446744073709551615",
        "340282366920938463463374607431768211456",
        "1e309",
        "NaN",
        "ZQXJ7%s%n%n%x{}",
        "{ZQXJ7}",
        "{ZQXJ7}:key:1",
        "1s",
        "99999999999999999999d",
        "COST",
        "LIMIT",
        "IP",
        "NAME",
        "EXPIREAT",
        "*",
        "10.0.0.1",
        "::ffff:0:0",
        "acme",
        "zeta",
        "{acme}:key:1",
        "{acme}:ips",
        "text",
        "list",
        "set",
        "zset",
        "hash",
        "stream",
        "rl:few"
    ];
    all.push(MARK.repeat(1 << 20).split_off(4 << 20));
    all
}

/// Keys of the server's own types, and ours.
fn prepare(c: &mut Client) -> Sample {
    for command in ["SET text x", "RPUSH list x", "SADD set x", "ZADD zset 1 x", "HSET hash f v", "XADD stream 1-1 f v"]
    {
        c.ok(command);
    }
    populate(c)
}

/// Sends commands, each followed by a PING of its own: all are answered, in sync, and no error repeats what was sent.
fn survive(c: &mut Client, commands: &[Vec<Vec<u8>>]) {
    let nonces: Vec<String> = (0..commands.len()).map(|n| format!("nonce-{n}")).collect();
    let pinged: Vec<Vec<Vec<u8>>> =
        commands.iter().zip(&nonces).flat_map(|(command, nonce)| [command.clone(), args!["PING", nonce]]).collect();
    let replies = c.pipeline(&pinged);
    for ((command, nonce), reply) in commands.iter().zip(&nonces).zip(replies.chunks(2)) {
        assert_eq!(reply[1], Value::BulkString(nonce.clone().into_bytes()), "out of step after {}", shown(command));
        let error = reply[0].error();
        for part in [MARK, b"\xff\xfe", b"{acme}"] {
            assert!(!contains(error.as_bytes(), part), "{} is answered with its own bytes: {error}", shown(command));
        }
        assert!(!error.contains("internal error"), "{}: {error}", shown(command));
    }
}

fn shown(command: &[Vec<u8>]) -> String {
    command.iter().map(|word| word[..word.len().min(60)].escape_ascii().to_string()).collect::<Vec<_>>().join(" ")
}

/// No command of ours took a second.
fn assert_swift(c: &mut Client) {
    let entries = c.ok("SLOWLOG GET 100");
    let slow: Vec<String> =
        entries.list().iter().map(|entry| entry.list()[3].list()[0].text().to_lowercase()).collect();
    assert!(!slow.iter().any(|name| name.starts_with("kg.")), "took a second: {slow:?}");
}

fn names(c: &mut Client) -> Vec<String> {
    let mut names: Vec<String> = c.ok("COMMAND LIST FILTERBY MODULE keyguard").list().iter().map(Reply::text).collect();
    names.sort();
    assert!(names.len() > 15, "{names:?}");
    names
}

fn every_command_takes_any_number_of_anything(sut: &Sut) {
    let server = server(sut);
    let mut c = server.client();
    prepare(&mut c);
    let all = anything();
    for name in names(&mut c) {
        let mut batch = Vec::new();
        for count in 0..=12 {
            for value in &all {
                if value.len() > 1000 && count > 3 {
                    continue;
                }
                for first in [value.as_slice(), b"acme", b"rl:few"] {
                    let mut command = args![name];
                    command.extend(std::iter::repeat_n(value.clone(), count));
                    if let Some(word) = command.get_mut(1) {
                        *word = first.to_vec();
                    }
                    batch.push(command);
                }
            }
        }
        survive(&mut c, &batch);
    }
    assert_swift(&mut c);
}

fn every_position_takes_anything(sut: &Sut) {
    let server = server(sut);
    let mut c = server.client();
    let sample = prepare(&mut c);
    let all = anything();
    for command in commands(&sample) {
        let mut batch = Vec::new();
        for value in &all {
            for position in 1..=command.len() {
                if value.len() > 1000 && position > 4 {
                    continue;
                }
                let mut changed = command.clone();
                match changed.get_mut(position) {
                    Some(word) => word.clone_from(value),
                    None => changed.push(value.clone()),
                }
                batch.push(changed);
            }
        }
        // Also with each argument left out, and with each twice.
        for position in 1..command.len() {
            let (mut less, mut more) = (command.clone(), command.clone());
            less.remove(position);
            more.insert(position, command[position].clone());
            batch.extend([less, more]);
        }
        survive(&mut c, &batch);
    }
    assert_swift(&mut c);
}

fn a_broken_protocol_ends_the_connection_only(sut: &Sut) {
    let server = server(sut);
    let mut c = server.client();
    c.claim("b 5 1h");
    let broken: [&[u8]; 4] = [
        b"*3\r\n$8\r\nKG.CLAIM\r\n$-5\r\nb\r\n",
        b"*2147483648\r\n",
        b"*4\r\n$8\r\nKG.CLAIM\r\n$99999999999\r\n",
        b"KG.CLAIM \"b\r\n",
    ];
    for bytes in broken {
        let mut other = server.client();
        other.send_bytes(bytes).unwrap();
        assert!(other.try_receive().is_none_or(|reply| reply.is_error()));
    }
    // Inline commands and a connection closed in the middle of one.
    let mut other = server.client();
    other.send_bytes(b"kg.claim b 5 1h\r\n").unwrap();
    assert_eq!(other.receive().ints()[2], 3);
    other.send_bytes(b"*4\r\n$8\r\nKG.CLAIM\r\n$1\r\nb\r\n").unwrap();
    drop(other);
    assert_eq!(c.remaining("b 5 1h").remaining, 3);
}

/// All commands upon a store that something has been done to: none may crash, none that answers an error may have changed
/// anything. How many answered an error.
fn all_commands(c: &mut Client, commands: &[Vec<Vec<u8>>], what: &str) -> usize {
    let mut errors = 0;
    let mut before = c.ok("DEBUG DIGEST").text();
    for command in commands {
        let replies = c.pipeline(&[command.clone(), args!["PING", what], args!["DEBUG", "DIGEST"]]);
        let [reply, nonce, after] = replies.try_into().expect("a reply each");
        assert_eq!(nonce.text(), what);
        let after = after.text();
        if reply.is_error() {
            errors += 1;
            let error = reply.error();
            assert_eq!(after, before, "{what}: {} answered {error} and wrote", shown(command));
            assert!(!error.contains("internal error"), "{what}: {}: {error}", shown(command));
            let codes = [
                "ERR",
                "WRONGTYPE",
                "TAMPERED",
                "NOKEYRING",
                "NOSUCH",
                "BADSTORE",
                "NOSTORE",
                "DUPLICATE",
                "INUSE",
                "NOTUNIQUE",
            ];
            assert!(codes.contains(&&*reply.error_code()), "{what}: {}: {error}", shown(command));
        }
        before = after;
    }
    errors
}

/// The commands that look at a store without changing it, then the others.
fn store_commands(sample: &Sample) -> Vec<Vec<Vec<u8>>> {
    let mut all: Vec<_> = commands(sample).into_iter().filter(|command| command[1] == b"acme").collect();
    all.push(args!["KG.AUTH", "acme", sample.plain, "IP", "192.0.2.7"]);
    all.push(args!["KG.CHECK", "acme", sample.limited, "SCOPE", "read"]);
    all.push(args!["KG.CHECK", "acme", sample.revoked]);
    all.push(args!["KG.CLAIMIP", "acme", "192.0.2.10", "5", "1h", "PATH", "/shop"]);
    all.push(args!["KG.REVOKE", "acme", "START", &sample.plain[..14]]);
    all.push(args!["KG.FINDKEY", "acme", "another-secret"]);
    all.extend((9..14).map(|id| args!["KG.GETKEY", "acme", id]));
    all.extend((0..5).map(|index| args!["KG.FINDKEY", "acme", format!("a-maps-secret-number-{index}")]));
    all.push(args!["KG.DELKEY", "acme", sample.ids[0], sample.ids[2], "1"]);
    all.push(args!["KG.DELSTORE", "acme"]);
    all
}

fn wrong_types_in_every_place(sut: &Sut) {
    let server = server(sut);
    let mut c = server.client();
    let sample = prepare(&mut c);
    let ours: Vec<Vec<u8>> =
        c.keys().into_iter().filter(|key| key.starts_with(b"acme") || key.starts_with(b"{")).collect();
    let payloads: Vec<(Vec<u8>, Vec<u8>)> =
        ours.iter().map(|key| (key.clone(), c.ok(args!["DUMP", key]).bytes())).collect();
    for key in &ours {
        let own = c.ok(args!["TYPE", key]).text();
        let mut errors = 0;
        for other in ["text", "list", "set", "zset", "hash", "stream", "rl:few", "{acme}:ips", "{acme}:orgs"] {
            let kind = c.ok(args!["TYPE", other]).text();
            if own == kind {
                continue;
            }
            c.ok(args!["COPY", other, key, "REPLACE"]);
            errors += all_commands(&mut c, &store_commands(&sample), &format!("{other} for {}", key.escape_ascii()));
            restore_all(&mut c, &payloads);
        }
        assert!(errors > 0, "nobody minded a wrong type at {}", key.escape_ascii());
    }
    assert_eq!(c.code(format!("KG.CHECK acme {}", sample.plain)), "VALID");
}

/// The store as it was.
fn restore_all(c: &mut Client, payloads: &[(Vec<u8>, Vec<u8>)]) {
    let surplus: Vec<Vec<u8>> = c
        .keys()
        .into_iter()
        .filter(|key| key.starts_with(b"{") && !payloads.iter().any(|(ours, _)| ours == key))
        .collect();
    for key in surplus {
        c.ok(args!["DEL", key]);
    }
    let restored: Vec<_> =
        payloads.iter().map(|(key, payload)| args!["RESTORE", key, "0", payload, "REPLACE"]).collect();
    for reply in c.pipeline(&restored) {
        assert!(!reply.is_error(), "{reply:?}");
    }
}

/// Damaged versions of some bytes: cut, changed in one place, grown, empty, random.
fn damaged(bytes: &[u8]) -> Vec<Vec<u8>> {
    let step = (bytes.len() / 40).max(1);
    let mut all: Vec<Vec<u8>> = (0..bytes.len()).step_by(step).map(|length| bytes[..length].to_vec()).collect();
    for position in (0..bytes.len()).step_by(step) {
        for mask in [0x01, 0x80, 0xff] {
            let mut changed = bytes.to_vec();
            changed[position] ^= mask;
            all.push(changed);
        }
    }
    all.push([bytes, b"\0"].concat());
    all.push([bytes, bytes].concat());
    all.extend([vec![0xff; 64], vec![0; 64], b"ZQXJ7".to_vec(), vec![0xff; 100_000]]);
    all
}

fn damaged_records_are_an_error(sut: &Sut) {
    let server = server(sut);
    let mut c = server.client();
    let sample = prepare(&mut c);
    let calls = |id: i64, raw: Option<&str>| {
        let mut calls = vec![args!["KG.GETKEY", "acme", id], args!["KG.REVEAL", "acme", id]];
        calls.extend(raw.map(|raw| args!["KG.CHECK", "acme", raw, "SCOPE", "read"]));
        calls.extend(raw.map(|raw| args!["KG.AUTH", "acme", raw, "SCOPE", "read", "IP", "192.0.2.1"]));
        calls
    };
    for (id, raw) in [(1, None), (sample.ids[0], Some(&*sample.limited))] {
        let key = format!("{{acme}}:key:{id}");
        let packed = c.packed(&key);
        for bytes in damaged(&packed) {
            c.set_packed(&key, &bytes);
            let what = format!("{} bytes in record {id}", bytes.len());
            let errors = all_commands(&mut c, &calls(id, raw), &what);
            let cut = bytes.len() < packed.len() && packed.starts_with(&bytes);
            if cut {
                assert_eq!(errors, calls(id, raw).len(), "{what}: cut short, every command says so");
            }
        }
        c.ok(args!["HDEL", key, "r"]);
        assert_eq!(all_commands(&mut c, &calls(id, raw), "no packed field"), calls(id, raw).len());
        c.set_packed(&key, &packed);
        assert_eq!(all_commands(&mut c, &calls(id, raw), "the field is back"), usize::from(raw.is_some()));
        // What is only there to be read does not matter to what it describes.
        for (field, _) in c.ok(args!["HGETALL", key]).fields() {
            if field != "r" {
                c.ok(args!["HSET", key, field, b"ZQXJ7\0\xff"]);
                survive(&mut c, &calls(id, raw));
            }
        }
    }
    // The rest of the commands, on a store with records that say nothing.
    for id in [1, 2, 3, sample.ids[0], sample.ids[1]] {
        c.ok(args!["HSET", format!("{{acme}}:key:{id}"), "r", "ZQXJ7"]);
    }
    survive(&mut c, &store_commands(&sample));
}

fn damaged_stores_are_an_error(sut: &Sut) {
    let server = server(sut);
    let mut c = server.client();
    let sample = prepare(&mut c);
    let payloads: Vec<(Vec<u8>, Vec<u8>)> = c
        .keys()
        .into_iter()
        .filter(|key| key.starts_with(b"acme") || key.starts_with(b"{"))
        .map(|key| (key.clone(), c.ok(args!["DUMP", key]).bytes()))
        .collect();
    let values = args![
        "",
        "ZQXJ7",
        "-1",
        "0",
        "1.5",
        "9223372036854775807",
        "18446744073709551615",
        "18446744073709551616",
        b"\0\xff"
    ];
    for (key, _) in &payloads {
        let kind = c.ok(args!["TYPE", key]).text();
        if key.starts_with(b"{acme}:key:") || kind == "none" {
            continue;
        }
        let shown_key = key.escape_ascii().to_string();
        if kind == "hash" {
            for (field, value) in c.ok(args!["HGETALL", key]).fields() {
                let cut = &value.bytes()[..value.bytes().len() / 2];
                for bad in values.iter().map(Vec::as_slice).chain([cut]) {
                    c.ok(args!["HSET", key, field, bad]);
                    let what = format!("{} in {shown_key} {field}", bad.escape_ascii());
                    all_commands(&mut c, &store_commands(&sample), &what);
                    restore_all(&mut c, &payloads);
                }
                c.ok(args!["HDEL", key, field]);
                all_commands(&mut c, &store_commands(&sample), &format!("{shown_key} without {field}"));
                restore_all(&mut c, &payloads);
            }
        } else if kind == "string" {
            for bad in &values {
                c.ok(args!["SET", key, bad]);
                all_commands(&mut c, &store_commands(&sample), &format!("{} in {shown_key}", bad.escape_ascii()));
                restore_all(&mut c, &payloads);
            }
        }
        // Without it altogether: records lost from outside.
        c.ok(args!["DEL", key]);
        all_commands(&mut c, &store_commands(&sample), &format!("{shown_key} is gone"));
        restore_all(&mut c, &payloads);
    }
    assert_eq!(c.code(format!("KG.CHECK acme {}", sample.plain)), "VALID");
}

/// How many damaged payloads of each type.
fn fuzz_count() -> usize {
    env::var("KEYGUARD_FUZZ").map_or(10_000, |count| count.parse().expect("KEYGUARD_FUZZ is a number"))
}

/// The parts of a payload of a native type: what `DUMP` gives for a value that saves itself as one string.
struct Payload {
    /// Type, module id, opcode and length come before the module's own bytes.
    own: Range<usize>,
    length: Range<usize>,
    bytes: Vec<u8>,
}

impl Payload {
    const FOOTER: usize = 10;

    fn parse(bytes: Vec<u8>) -> Self {
        // One byte type, nine of module id (it has 64 bits), one opcode "string"; then a length and so many bytes; then
        // the opcode "end", two bytes of version and eight of checksum.
        assert_eq!((bytes[1], bytes[10]), (0x81, 5), "a native value saved as one string: {}", bytes.escape_ascii());
        let (length_bytes, length) = match bytes[11] >> 6 {
            0 => (1, usize::from(bytes[11])),
            1 => (2, usize::from(bytes[11] & 0x3f) << 8 | usize::from(bytes[12])),
            _ => (5, u32::from_be_bytes(bytes[12..16].try_into().unwrap()) as usize),
        };
        let start = 11 + length_bytes;
        let own = start..start + length;
        assert_eq!(own.end + 1 + Self::FOOTER, bytes.len(), "nothing else is in it");
        Self { own, length: 11..start, bytes }
    }

    /// With other bytes of the module, and a length that fits them.
    fn with_own(&self, own: &[u8]) -> Vec<u8> {
        let mut bytes = self.bytes[..self.length.start].to_vec();
        bytes.push(0x80);
        bytes.extend(u32::try_from(own.len()).unwrap().to_be_bytes());
        bytes.extend(own);
        bytes.extend(&self.bytes[self.own.end..]);
        seal(bytes)
    }

    /// A payload that differs from this one somewhere.
    fn mutate(&self, rng: &mut StdRng) -> Vec<u8> {
        if rng.random_bool(0.1) {
            // Anywhere before the footer: frame, lengths, opcodes.
            let mut bytes = self.bytes.clone();
            let end = bytes.len() - Self::FOOTER;
            for _ in 0..rng.random_range(1..4) {
                bytes[rng.random_range(0..end)] = rng.random();
            }
            return seal(bytes);
        }
        let mut own = self.bytes[self.own.clone()].to_vec();
        for _ in 0..rng.random_range(1..4) {
            let at = if own.is_empty() { 0 } else { rng.random_range(0..own.len()) };
            match rng.random_range(0..8) {
                0 | 1 if !own.is_empty() => own[at] ^= 1 << rng.random_range(0..8),
                2 if !own.is_empty() => own[at] = *[0, 1, 0x7f, 0x80, 0xff].get(rng.random_range(0..5)).unwrap(),
                3 if !own.is_empty() => own[at] = own[at].wrapping_add(rng.random_range(0..3)).wrapping_sub(1),
                4 => own.truncate(at),
                5 => own.splice(at..at, (0..rng.random_range(1..12)).map(|_| 0xff).collect::<Vec<u8>>()).for_each(drop),
                6 => own
                    .splice(at..at, (0..rng.random_range(1..12)).map(|_| rng.random()).collect::<Vec<u8>>())
                    .for_each(drop),
                _ => {
                    let until = (at + rng.random_range(0..16)).min(own.len());
                    let piece = own[at..until].to_vec();
                    own.extend(piece);
                }
            }
        }
        self.with_own(&own)
    }
}

/// A payload with a checksum that fits: the last eight bytes, CRC-64 of all before them.
fn seal(mut bytes: Vec<u8>) -> Vec<u8> {
    static REDIS: crc::Crc<u64> = crc::Crc::<u64>::new(&crc::CRC_64_REDIS);
    let end = bytes.len() - 8;
    let checksum = REDIS.checksum(&bytes[..end]);
    bytes[end..].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

/// Restores damaged payloads of each of these keys under the key itself, and uses what was accepted.
fn fuzz(sut: &Sut, keys: &[&str], probes: impl Fn(&Sample, &str) -> Vec<Vec<Vec<u8>>>) {
    let server = server(sut);
    let mut c = server.client();
    let sample = prepare(&mut c);
    let seed: u64 = rand::random();
    let mut rng = StdRng::seed_from_u64(seed);
    println!("{}: payloads of {keys:?} with seed {seed}", sut.name);
    let own: Vec<String> = keys.iter().map(|key| key.replace("ID", &sample.ids[0].to_string())).collect();
    let payloads: Vec<Payload> = own.iter().map(|key| Payload::parse(c.ok(args!["DUMP", key]).bytes())).collect();
    for (key, payload) in own.iter().zip(&payloads) {
        // The frame is understood: the same bytes in it give the same value.
        let digests = [payload.bytes.clone(), payload.with_own(&payload.bytes[payload.own.clone()])].map(|bytes| {
            c.ok(args!["RESTORE", key, "0", bytes, "REPLACE"]);
            c.ok(args!["DEBUG", "DIGEST-VALUE", key])
        });
        assert_eq!(digests[0], digests[1]);
    }
    let (mut accepted, mut kept) = (0, 0);
    let rounds = fuzz_count().div_ceil(payloads.len() * 25);
    for _ in 0..rounds {
        for (key, payload) in own.iter().zip(&payloads) {
            let mut batch = Vec::new();
            let probes = probes(&sample, key);
            for _ in 0..25 {
                batch.push(args!["RESTORE", key, "0", payload.mutate(&mut rng), "REPLACE"]);
                batch.extend(probes.iter().cloned());
            }
            let replies = c.pipeline(&batch);
            assert_eq!(replies.len(), batch.len());
            for round in replies.chunks(1 + probes.len()) {
                if round[0] == Value::Okay {
                    accepted += 1;
                } else {
                    assert_eq!(round[0].error(), "ERR Bad data format");
                }
                for (reply, probe) in round[1..].iter().zip(&probes) {
                    assert!(!reply.error().contains("internal error"), "seed {seed}: {}: {reply:?}", shown(probe));
                }
            }
            // What was accepted last is kept aside, for what follows.
            kept += 1;
            c.call(args!["COPY", key, format!("kept:{kept}"), "REPLACE"]);
        }
    }
    assert!(accepted > 0, "seed {seed}: nothing at all was accepted");
    // What was accepted can be saved and loaded, and is the same then.
    let before = c.state();
    c.ok("DEBUG RELOAD");
    assert_eq!(c.state(), before, "seed {seed}");
    assert_swift(&mut c);
}

fn damaged_payloads_of_buckets(sut: &Sut) {
    fuzz(sut, &["rl:few", "rl:many", "rl:refunded", "rl:full"], |_, key| {
        vec![
            args!["KG.INSPECT", key],
            args!["KG.REMAINING", key, "5", "1h", "100", "7d"],
            args!["KG.CLAIM", key, "1000000", "1h", "1000000", "7d", "COST", "3"],
            args!["KG.REFUND", key, "2"],
            args!["DUMP", key],
            args!["DEBUG", "DIGEST-VALUE", key],
        ]
    });
}

fn damaged_payloads_of_key_windows(sut: &Sut) {
    fuzz(sut, &["{acme}:win:ID", "{acme}:orgwin:shop"], |sample, key| {
        vec![
            args!["KG.AUTH", "acme", sample.limited, "SCOPE", "read", "COST", "1", "COST", "2", "UNIT", "tokens"],
            args!["KG.CHECK", "acme", sample.limited, "SCOPE", "read"],
            args!["KG.GETKEY", "acme", sample.ids[0]],
            args!["DUMP", key],
            args!["DEBUG", "DIGEST-VALUE", key],
        ]
    });
}

fn damaged_payloads_of_address_rules(sut: &Sut) {
    fuzz(sut, &["{acme}:ips"], |sample, key| {
        vec![
            args!["KG.CHECKIP", "acme", "192.0.2.7"],
            args!["KG.AUTH", "acme", sample.plain, "IP", "2001:db8::7"],
            args!["KG.BLOCKIP", "acme", "192.0.2.8", "1h", "REASON", "scan"],
            args!["KG.UNBLOCKIP", "acme", "192.0.2.7"],
            args!["KG.CHECKIP", "acme", "192.0.2.10", "PATH", "/login/x"],
            args!["KG.LISTIPS", "acme"],
            args!["KG.ALLOWIP", "acme", "10.0.0.0/8", "PATH", "/x"],
            args!["KG.CLEARIP", "acme", "192.0.2.10"],
            args!["DUMP", key],
            args!["DEBUG", "DIGEST-VALUE", key],
        ]
    });
}

fn damaged_payloads_of_claims_of_addresses(sut: &Sut) {
    fuzz(sut, &["{acme}:ip:192.0.2.9"], |_, key| {
        vec![
            args!["KG.CLAIMIP", "acme", "192.0.2.9", "1000000", "1h", "PATH", "/login"],
            args!["KG.CLAIMIP", "acme", "192.0.2.9", "1", "1h", "PATH", "/shop", "LOCKOUT", "1ms"],
            args!["KG.CLAIMIP", "acme", "192.0.2.9", "1", "1h"],
            args!["KG.CLEARIP", "acme", "192.0.2.9", "PATH", "/login"],
            args!["DUMP", key],
            args!["DEBUG", "DIGEST-VALUE", key],
        ]
    });
}

fn damaged_payloads_of_statistics(sut: &Sut) {
    fuzz(sut, &["{acme}:stats:all", "{acme}:stats:0"], |sample, key| {
        vec![
            args!["KG.STATS", "acme", "HOURS", "2160"],
            args!["KG.STATS", "acme", "KEY", sample.ids[0], "DAYS", "90"],
            args!["KG.USAGE", "acme"],
            args!["KG.LOG", "acme", sample.ids[0], "PATH", "/x", "METHOD", "GET", "STATUS", "200", "LATENCY", "1"],
            args!["DUMP", key],
            args!["DEBUG", "DIGEST-VALUE", key],
        ]
    });
}

fn damaged_payloads_of_pools(sut: &Sut) {
    fuzz(sut, &["{acme}:pool:maps", "{acme}:pool:openai", "{acme}:account:shared"], |_, key| {
        vec![
            args!["KG.ACQUIRE", "acme", "maps", "COST", "1", "COST", "5", "UNIT", "tokens"],
            args!["KG.ACQUIRE", "acme", "openai", "ORDER", "remaining"],
            args!["KG.NEXTKEY", "acme", "maps"],
            args!["KG.GETKEY", "acme", "NAME", "openai"],
            args!["KG.FEEDBACK", "acme", "1", "THROTTLED", "1ms"],
            args!["KG.SETTLE", "acme", "1", "AT", "1800000000000", "COST", "7", "UNIT", "tokens"],
            args!["KG.SETKEY", "acme", "1", "WEIGHT", "5"],
            args!["DUMP", key],
            args!["DEBUG", "DIGEST-VALUE", key],
        ]
    });
}
