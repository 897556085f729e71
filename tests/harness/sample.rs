//! Data of every kind that the module keeps, and one valid call of every command upon it.

use super::{Client, Reply, args, eventually, expect};

/// What [`populate`] made, as far as it cannot be known before.
pub struct Sample {
    /// An API key of organization `shop` with limits, used three times of five.
    pub limited: String,
    /// One without limits and scopes.
    pub plain: String,
    /// One that is revoked.
    pub revoked: String,
    /// One with quotas and allowed addresses, which was rotated: the key of now, and the one before, whose grace lasts.
    pub rotated: [String; 2],
    /// Their ids, in this order.
    pub ids: [i64; 4],
}

/// The secret of the vault's keys 1 and 2.
const SECRET: &str = "sk-live-0123456789abcdef";

/// Fills a server with buckets of all shapes, the store `acme`, and `spare`, which is to go. No window ends while a test runs.
pub fn populate(client: &mut Client) -> Sample {
    populate_buckets(client);
    client.ok("KG.SETSTORE spare TZ Europe/Berlin");
    populate_store(client)
}

fn populate_buckets(client: &mut Client) {
    for _ in 0..3 {
        client.claim("rl:few 10 1h");
    }
    let many = vec![args!["KG.CLAIM", "rl:many", "1000", "1h", "5000", "7d", "COST", "3"]; 300];
    assert!(client.pipeline(&many).iter().all(|reply| !reply.is_error()));
    client.claim("rl:weighted 1000000 1h COST 250000");
    client.claim("rl:refunded 10 1h COST 7");
    client.ok("KG.REFUND rl:refunded 4");
    for _ in 0..3 {
        client.claim("rl:full 3 1h");
    }
    assert!(!client.claim("rl:full 3 1h").claimed);
}

/// The store alone, with what its calls came to.
pub fn populate_store(client: &mut Client) -> Sample {
    client.ok("CONFIG SET keyguard.usage yes");
    let sample = populate_records(client);
    for (id, status) in [(sample.ids[0], 200), (sample.ids[0], 503), (sample.ids[3], 404), (0, 301)] {
        client.ok(format!("KG.LOG acme {id} PATH /api/x?q=1 METHOD GET STATUS {status} LATENCY 12 IP 192.0.2.77"));
    }
    assert_eq!(client.code(format!("KG.AUTH acme {} IP 192.0.2.7 PATH /x METHOD PUT", sample.plain)), "IP_BLOCKED");
    assert_eq!(client.code(format!("KG.AUTH acme {}", sample.revoked)), "DISABLED");
    client.ok("CONFIG SET keyguard.usage no");
    usage_written(client);
    sample
}

/// Waits until what was counted is written down.
pub fn usage_written(client: &mut Client) {
    eventually("usage being written down", || {
        let waiting = client.info_number("keyguard", "keyguard_usage_stores_waiting");
        expect(waiting == 0, || format!("{waiting} stores wait"))
    });
}

fn populate_records(client: &mut Client) -> Sample {
    client.ok(format!(
        "KG.ADDKEY acme openai {SECRET} SOURCE billing LOGIN ops@example.com BATCH b1 ACCOUNT a1 LIMIT 10 1h \
         LIMIT 100000 1h UNIT tokens WEIGHT 3 META {{\"tier\":1}}"
    ));
    client.ok(format!("KG.ADDKEY acme openai {SECRET} INACTIVE"));
    client.ok("KG.ADDKEY acme mail another-secret EXPIREIN 30d");
    client.ok("KG.ADDORG acme shop LIMIT 100 1h QUOTA 100000 month");
    client.ok("KG.ADDORG acme lab");
    let mut new = |arguments: &str| {
        let reply = client.ok(format!("KG.NEWKEY acme {arguments}"));
        let [id, raw] = reply.list() else { panic!("NEWKEY answers a pair, not {reply:?}") };
        (id.int(), raw.text())
    };
    let limited = new("shop web SCOPES orders:*,read LIMIT 5 1h LIMIT 100000 1h UNIT tokens META {\"plan\":\"gold\"}");
    let plain = new("shop cron EXPIREIN 30d");
    let revoked = new("lab old PREFIX lab_");
    for _ in 0..3 {
        assert_eq!(client.code(format!("KG.AUTH acme {} SCOPE read COST 1 COST 50 UNIT tokens", limited.1)), "VALID");
    }
    assert_eq!(client.code(format!("KG.AUTH acme {}", plain.1)), "VALID");
    client.ok(format!("KG.REVOKE acme {}", revoked.0));
    client.ok("KG.BLOCKIP acme 192.0.2.7 1h REASON scan");
    client.ok("KG.BLOCKIP acme 2001:db8::7 2h");
    client.ok("KG.ALLOWIP acme 198.51.100.0/24 PATH /open");
    for path in ["/login", "/shop"] {
        client.ok(format!("KG.CLAIMIP acme 192.0.2.9 5 1h PATH {path}"));
    }
    for code in ["VALID", "RATE_LIMITED"] {
        assert_eq!(client.code("KG.CLAIMIP acme 192.0.2.10 1 1h PATH /login LOCKOUT 2h"), code);
    }
    populate_pool(client);
    // One without keys, which can be deleted.
    client.ok("KG.ADDORG acme spare");
    let (rotated, keys) = rotated(client);
    let ids = [limited.0, plain.0, revoked.0, rotated];
    Sample { limited: limited.1, plain: plain.1, revoked: revoked.1, rotated: keys, ids }
}

/// A key with quotas and allowed addresses, used before and after it was rotated.
fn rotated(client: &mut Client) -> (i64, [String; 2]) {
    let issued = client
        .ok("KG.NEWKEY acme shop guarded SCOPES * QUOTA 1000 month QUOTA 50000 total UNIT tokens ALLOW 192.0.2.0/24 \
         ALLOW 2001:db8::/32 META {\"tier\":2}");
    let (id, old) = (issued.list()[0].int(), issued.list()[1].text());
    let new = client.ok(format!("KG.ROTATE acme {id} GRACE 30d")).list()[1].text();
    for raw in [&old, &new] {
        assert_eq!(client.code(format!("KG.AUTH acme {raw} IP 192.0.2.77 COST 2 COST 9 UNIT tokens")), "VALID");
    }
    (id, [new, old])
}

/// A pool with keys in every state.
fn populate_pool(client: &mut Client) {
    let ids: Vec<i64> = (0..5)
        .map(|index| {
            client
                .ok(format!(
                    "KG.ADDKEY acme maps a-maps-secret-number-{index} BATCH b{} ACCOUNT shared SHARED 50 1h LIMIT 4 1h \
                     LIMIT 9000 1h UNIT tokens",
                    index % 2
                ))
                .int()
        })
        .collect();
    for order in ["rotate", "weight", "random", "remaining", "expiry"] {
        let reply = client.ok(format!("KG.ACQUIRE acme maps COST 100 UNIT tokens ORDER {order}"));
        assert_eq!(reply.field("code").text(), "ACQUIRED");
        let (id, at) = (reply.field("id").int(), reply.field("claimed_at_ms").int());
        assert_eq!(client.ok(format!("KG.SETTLE acme {id} AT {at} COST 70 UNIT tokens")).int(), 1);
    }
    client.ok(format!("KG.FEEDBACK acme {} THROTTLED 1h", ids[1]));
    client.ok(format!("KG.FEEDBACK acme {} REJECTED REASON unpaid", ids[2]));
}

/// A valid call of every command upon what [`populate`] made; each begins with the command's name.
pub fn commands(sample: &Sample) -> Vec<Vec<Vec<u8>>> {
    let id = sample.ids[1];
    vec![
        args!["KG.CLAIM", "rl:few", "1000", "1h", "2000", "7d", "COST", "1"],
        args!["KG.REMAINING", "rl:few", "1000", "1h", "2000", "7d", "COST", "1"],
        args!["KG.REFUND", "rl:weighted", "1"],
        args!["KG.INSPECT", "rl:few"],
        args!["KG.GETKEY", "acme", "1"],
        args!["KG.GETKEY", "acme", "NAME", "mail"],
        args!["KG.LISTKEYS", "acme", "NAME", "openai", "ACTIVE", "yes", "SORTBY", "id", "DESC", "LIMIT", "0", "10"],
        args!["KG.LISTKEYS", "acme", "TYPE", "api", "AFTER", "0", "COUNT", "10"],
        args!["KG.COUNTKEYS", "acme", "EXPIRED", "no"],
        args!["KG.USABILITY", "acme", "NAME", "mail"],
        args!["KG.REVEAL", "acme", "1"],
        args!["KG.REVEAL", "acme", "NAME", "mail"],
        args!["KG.FINDKEY", "acme", SECRET],
        args![
            "KG.AUTH",
            "acme",
            sample.limited,
            "IP",
            "198.51.100.1",
            "SCOPE",
            "read",
            "COST",
            "0",
            "COST",
            "1",
            "UNIT",
            "tokens"
        ],
        args!["KG.AUTH", "acme", sample.rotated[1], "IP", "192.0.2.77", "PATH", "/x", "METHOD", "GET", "WITHMETA"],
        args!["KG.CHECK", "acme", sample.plain, "IP", "198.51.100.1"],
        args!["KG.CHECKIP", "acme", "192.0.2.7"],
        args!["KG.CHECKIP", "acme", "192.0.2.10", "PATH", "/login"],
        args!["KG.LISTIPS", "acme", "CURSOR", "192.0.2.7,block", "COUNT", "10"],
        args!["KG.CLAIMIP", "acme", "192.0.2.9", "5", "1h", "PATH", "/login", "LOCKOUT", "1h", "EVERYWHERE"],
        args!["KG.CLEARIP", "acme", "192.0.2.9", "PATH", "/shop"],
        args!["KG.ALLOWIP", "acme", "198.51.100.0/25", "UNTIL", "4:00 PM", "PATH", "/open", "REASON", "office"],
        args!["KG.UNALLOWIP", "acme", "198.51.100.0/25", "PATH", "/open"],
        args!["KG.BLOCKIP", "acme", "192.0.2.8", "1h", "REASON", "scan"],
        args!["KG.UNBLOCKIP", "acme", "192.0.2.8"],
        args!["KG.GETORG", "acme", "shop"],
        args!["KG.LISTORGS", "acme", "STATUS", "active", "AFTER", "0", "COUNT", "10"],
        args!["KG.DELORG", "acme", "spare"],
        args!["KG.SETSTORE", "acme", "TZ", "Europe/Berlin", "IPTHRESHOLD", "50"],
        args!["KG.SETSTORE", "acme", "CLEAR", "tz", "CLEAR", "ip_threshold"],
        args!["KG.GETSTORE", "acme"],
        args!["KG.DELSTORE", "spare"],
        args!["KG.SETORG", "acme", "shop", "STATUS", "active", "QUOTA", "100000", "month"],
        args![
            "KG.SETKEY",
            "acme",
            sample.ids[3],
            "NAME",
            "guard",
            "QUOTA",
            "900",
            "month",
            "ALLOW",
            "192.0.2.0/25",
            "CLEAR",
            "meta"
        ],
        args!["KG.ROTATE", "acme", sample.ids[0]],
        args!["KG.ROTATE", "acme", sample.ids[3], "GRACE", "1h"],
        args!["KG.REVOKE", "acme", id],
        args!["KG.REVOKE", "acme", "KEY", sample.revoked],
        args!["KG.REVOKE", "acme", "START", &sample.revoked[..10]],
        args![
            "KG.ADDKEY",
            "acme",
            "mail2",
            "a-third-secret",
            "INACTIVE",
            "EXPIREIN",
            "1h",
            "SOURCE",
            "s",
            "LOGIN",
            "l",
            "BATCH",
            "b",
            "ACCOUNT",
            "a",
            "LIMIT",
            "5",
            "1h",
            "UNIT",
            "tokens",
            "WEIGHT",
            "2",
            "META",
            "{}",
            "UNIQUE"
        ],
        args!["KG.ADDORG", "acme", "club", "LIMIT", "5", "1h", "QUOTA", "7", "day"],
        args![
            "KG.SETKEY",
            "acme",
            "1",
            "NAME",
            "openai",
            "SECRET",
            "another-long-secret",
            "ACTIVE",
            "yes",
            "EXPIREIN",
            "2h",
            "SOURCE",
            "s",
            "ACCOUNT",
            "a",
            "SHARED",
            "7",
            "1h",
            "LIMIT",
            "5",
            "1h",
            "WEIGHT",
            "2",
            "META",
            "{}",
            "UNIQUE",
            "CLEAR",
            "login",
            "CLEAR",
            "batch"
        ],
        args!["KG.NEXTKEY", "acme", "maps", "BATCH", "b1"],
        args![
            "KG.ACQUIRE",
            "acme",
            "maps",
            "BATCH",
            "b0",
            "LIMIT",
            "5",
            "1h",
            "COST",
            "1",
            "COST",
            "7",
            "UNIT",
            "tokens",
            "ORDER",
            "rotate",
            "BLOCK",
            "10ms"
        ],
        args!["KG.SETTLE", "acme", "1", "AT", "1800000000000", "COST", "1", "COST", "7", "UNIT", "tokens"],
        args!["KG.FEEDBACK", "acme", "1", "THROTTLED", "5ms", "AT", "1800000000000"],
        args!["KG.FEEDBACK", "acme", "1", "REJECTED", "REASON", "unpaid"],
        args![
            "KG.NEWKEY",
            "acme",
            "shop",
            "tool",
            "PREFIX",
            "p_",
            "SCOPES",
            "a,b",
            "LIMIT",
            "5",
            "1h",
            "UNIT",
            "tokens",
            "QUOTA",
            "9",
            "total",
            "ALLOW",
            "192.0.2.0/24",
            "EXPIREAT",
            "2100-01-01T00:00:00Z",
            "META",
            "{}"
        ],
        args!["KG.LOG", "acme", id, "PATH", "/x", "METHOD", "GET", "STATUS", "200", "LATENCY", "7", "IP", "192.0.2.7"],
        args!["KG.STATS", "acme", "HOURS", "24"],
        args!["KG.STATS", "acme", "KEY", id, "DAYS", "7"],
        args![
            "KG.USAGE",
            "acme",
            "KEY",
            id,
            "FROM",
            "2026-01-01T00:00:00Z",
            "TO",
            "4102444800",
            "CURSOR",
            "4102444800000-0",
            "COUNT",
            "10"
        ],
        args!["KG.KEYRING", "STATUS"],
        args!["KG.KEYRING", "RELOAD"],
        args!["KG.REKEY", "acme"],
        args!["KG.REKEY", "acme", "STOP"],
        args!["KG.DELKEY", "acme", "2"],
        args!["KG.DELKEY", "acme", "MATCH", "TYPE", "vault", "NAME", "mail2"],
        args!["KG.SNAPSHOT", "acme", "TO", "acme.sqlite"],
        args!["KG.SNAPSHOT", "acme", "STATUS"],
        args!["KG.IMPORT", "acme", "FROM", "nothing.sqlite", "FORMAT", "snapshot", "CHECK", "ONCONFLICT", "replace"],
        args!["KG.IMPORT", "acme", "STATUS"],
        args!["KG.APPLY", "rl:few", "payload"],
    ]
}
