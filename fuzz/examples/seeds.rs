//! Writes the seeds of the targets that read an encoding: `cargo run --example seeds`, in the folder `fuzz`, after a change of
//! one of the encodings. The seeds of the others are text, written by hand.

use std::fs;

use keyguard_core::address::AddressLogs;
use keyguard_core::cooling::Cooling;
use keyguard_core::effect::{Admitted, Charge, Charged, Claimed, Effect, Handed, Owner, RuleSet, WholeValue};
use keyguard_core::ip::{By, Kind, Net, Rule, Rules, Strikes};
use keyguard_core::limit::Limit;
use keyguard_core::meters::Meters;
use keyguard_core::path::Path;
use keyguard_core::pool::{HandOut, Pool, Traits, Unit};
use keyguard_core::quota::{Period, Used};
use keyguard_core::record::{UnitLimit, UnitLimits};
use keyguard_core::usage::{Counts, HOUR_MS, KeyDays, Row, StoreStats, Tally, Totals, UsageBatch};
use keyguard_core::window::WindowLog;
use keyguard_fuzz::sound_file;
use keyguard_snapshot::read::Format;

const START_MS: u64 = 1_800_000_000_000;

fn main() {
    let logs = [
        ("empty", log(0, 0, 1)),
        ("one_claim", log(1, 0, 1)),
        ("inline", log(6, 9, 1)),
        ("flat", log(60, 1_000, 1)),
        ("chunks", log(500, 90, 1)),
        ("weighted", log(30, 20_000, 1_000)),
        ("same_instant", log(300, 0, 1)),
        ("refunded", refunded()),
        ("mixed_windows", mixed_windows()),
        ("locked", locked()),
    ];
    for (name, log) in &logs {
        assert_eq!(WindowLog::decode(&log.encode()).as_ref(), Some(log));
        write("window_decode", name, &[&[0], &*log.encode()].concat());
    }
    // Four bytes for each operation: which, and three numbers.
    let operations = [
        [0, 0x15, 0x01, 0x43],
        [4, 0x03, 0x55, 0],
        [5, 0x02, 0x04, 0x66],
        [2, 0x05, 0x31, 0],
        [1, 0x01, 0x02, 0x33],
        [3, 0x01, 0x21, 0],
    ];
    for (name, log) in &logs {
        let all = [&[operations.len() as u8], operations.as_flattened(), &*log.encode()].concat();
        write("window_decode", &format!("{name}_changed"), &all);
    }

    let mut meters = Meters::default();
    write("meters_decode", "empty", &meters.encode());
    meters.charge(&[("requests", claimed(0))]);
    write("meters_decode", "one_unit", &meters.encode());
    for index in 0..40 {
        meters.charge(&[("requests", claimed(index)), ("tokens", claimed(index * 70)), ("x", claimed(index))]);
    }
    write("meters_decode", "three_units", &meters.encode());
    meters.set_use(START_MS);
    meters.set_used(Period::Day, "requests", Used { until_ms: Some(START_MS), units: 7 });
    meters.set_used(Period::Total, "tokens", Used { until_ms: None, units: 9 });
    write("meters_decode", "quotas", &meters.encode());

    write("pool_decode", "empty", &Pool::default().encode());
    write("pool_decode", "plain", &pool(1, &traits(&[], &[])).encode());
    let requests = [("requests", 60, 60_000), ("tokens", 90_000, 60_000)];
    let mut pool = pool(4, &traits(&requests, &[("requests", 600, 60_000)]));
    pool.enroll(9, &Traits { source: Some("a"), account: None, expires_ms: None, ..traits(&requests, &[]) }, None);
    for turn in 1..30 {
        let claims = [(Unit::from("requests").expect("a unit"), claimed(turn * 50))];
        let at_ms = START_MS + turn * 50;
        pool.hand_out(&HandOut { id: 1 + turn % 3, at_ms, turn, pass: Some((turn * 7, turn)), claims: &claims });
    }
    pool.cool(2, Some(Cooling { until_ms: START_MS + 60_000, count: 3, throttled_ms: START_MS }));
    write("pool_decode", "used", &pool.encode());

    let mut rules = Rules::new();
    write("rules_decode", "empty", &rules.encode());
    block(&mut rules, "192.0.2.7", None, "");
    write("rules_decode", "one_address", &rules.encode());
    block(&mut rules, "192.0.2.0/24", Some(START_MS), "scraping");
    block(&mut rules, "0.0.0.0/0", Some(1), "");
    write("rules_decode", "nested", &rules.encode());
    block(&mut rules, "2001:db8::7", None, "one of a /64");
    block(&mut rules, "2001:db8::/32", Some(START_MS + 1), "");
    write("rules_decode", "both_families", &rules.encode());
    set(&mut rules, "192.0.2.7", &by_hand(Kind::Allow, Some("/a")));
    set(&mut rules, "192.0.2.7", &by_hand(Kind::Block, Some("/a/b")));
    let strikes = Some(Strikes { count: 2, until_ms: START_MS + 1 });
    let failed = Rule { by: By::Failures, until_ms: Some(START_MS), strikes, ..by_hand(Kind::Block, None) };
    set(&mut rules, "192.0.2.8", &failed);
    set(&mut rules, "192.0.2.9", &Rule { by: By::Claims, strikes: None, ..failed.clone() });
    write("rules_decode", "paths_and_automatic", &rules.encode());

    let mut logs = AddressLogs::default();
    write("address_decode", "empty", &logs.encode());
    logs.claim(None, claimed(0));
    write("address_decode", "no_path", &logs.encode());
    for (index, path) in ["/login", "/a/path", "/a"].into_iter().enumerate() {
        let path = Path::parse(path.as_bytes()).expect("a path");
        (0..30).for_each(|step| logs.claim(Some(&path), claimed(step * (1 + index as u64))));
    }
    write("address_decode", "paths", &logs.encode());

    let (mut stats, mut days) = (StoreStats::default(), KeyDays::default());
    write("stats_decode", "no_stats", &[&[0][..], &stats.encode()].concat());
    write("stats_decode", "no_days", &[&[1][..], &days.encode()].concat());
    for step in 0..60 {
        let tally = Tally { requests: 100 + step * 7 % 50, refused: step % 3, logged: 99, errors: step % 5 };
        let hour = 500_000 + step as u32;
        let totals = Totals { logged: 99, unlogged: step, ..Totals::default() };
        stats.merge(&totals, &[(hour * 60, tally)], &[(hour, tally)], u64::from(hour) * HOUR_MS);
        stats.offer(step % 7 + 1, step * 10 + 1);
        let counts = Counts { requests: tally.requests, latency_ms: 40, ..Counts::default() };
        days.merge((step % 3) as u8, &counts, &[(20_000 + step as u32, tally)], 20_000 + step as u32);
    }
    write("stats_decode", "stats", &[&[0][..], &stats.encode()].concat());
    write("stats_decode", "days", &[&[1][..], &days.encode()].concat());

    let charge = |owner| Charge { owner, unit: "requests", claimed: claimed(0) };
    for (name, effect) in [
        ("claim", Effect::Claim(claimed(0))),
        ("refund_newest", Effect::Refund { units: 3, at_ms: None }),
        ("refund_at", Effect::Refund { units: 3, at_ms: Some(START_MS) }),
        ("charge", Effect::Charge([charge(Owner::Key(17)), charge(Owner::Org("acme"))].into_iter().collect())),
        ("block", Effect::Block { at_ms: START_MS, net: "192.0.2.7", until_ms: Some(START_MS), reason: "scraping" }),
        ("lock", Effect::Lock { at_ms: START_MS, until_ms: START_MS + 900_000 }),
        ("unblock", Effect::Unblock { net: "192.0.2.7" }),
        ("whole_bucket", Effect::Whole { value: WholeValue::Bucket(&log(6, 9, 1).encode()) }),
        ("whole_meters", Effect::Whole { value: WholeValue::Meters(&Meters::default().encode()) }),
        (
            "hand_out",
            Effect::HandOut(Handed {
                pool: "openai",
                id: 17,
                at_ms: START_MS,
                turn: 3,
                pass: Some((5, 4)),
                own: vec![("requests", 1, 60_000), ("tokens", 500, 60_000)],
                account: Some(("org", vec![("requests", 1, 1000)])),
            }),
        ),
        ("enroll", Effect::Enroll { pool: "a", from: Some("b"), id: 17, traits: &traits(&requests, &[]).encode() }),
        ("withdraw", Effect::Withdraw { pool: "openai", ids: vec![17, 18] }),
        ("cool", Effect::Cool { pool: "openai", id: 17, cooling: None }),
        ("settle", Effect::Settle { pool: "a", id: 1, at_ms: 7, own: vec![("tokens", 480, 60_000)], account: None }),
        ("whole_pool", Effect::Whole { value: WholeValue::Pool(&Pool::default().encode()) }),
        ("set_rule", Effect::SetRule { at_ms: START_MS, net: "192.0.2.8", rule: RuleSet::of(&failed) }),
        ("drop_rule", Effect::DropRule { net: "192.0.2.8", kind: Kind::Allow, path: Some("/a") }),
        ("claim_address", Effect::ClaimAddress { net: "192.0.2.8", path: Some("/a"), claimed: claimed(0) }),
        ("clear_address", Effect::ClearAddress { net: "192.0.2.8", path: None, blocks: vec![None, Some("/a")] }),
        (
            "admit",
            Effect::Admit(Admitted {
                id: 17,
                at_ms: START_MS,
                last_use: true,
                own: Charged {
                    claims: vec![("requests", 1, 60_000)],
                    quotas: vec![(Period::Month, "requests", Some(START_MS), 3), (Period::Total, "tokens", None, 4)],
                },
                org: Some(("acme", Charged { claims: vec![("requests", 1, 60_000)], quotas: vec![] })),
            }),
        ),
        ("whole_address", Effect::Whole { value: WholeValue::Address(&logs.encode()) }),
        ("whole_stats", Effect::Whole { value: WholeValue::Stats(&stats.encode()) }),
        ("whole_days", Effect::Whole { value: WholeValue::Days(&days.encode()) }),
        (
            "usage",
            Effect::Usage(UsageBatch {
                now_ms: START_MS,
                today: 20_833,
                totals: Some(Totals { logged: 3, ..Totals::default() }),
                minutes: vec![(30_000_000, Tally { requests: 3, ..Tally::default() })],
                hours: vec![(500_000, Tally { requests: 3, ..Tally::default() })],
                keys: vec![(17, Counts { requests: 3, ..Counts::default() }, vec![(20_833, Tally::default())])],
                gone: vec![18],
                rows: vec![Row { at_ms: START_MS, id: 17, status: Some(200), path: Some("/a"), ..Row::default() }],
                log_entries: Some(100),
                log_from: Some((1, 0)),
            }),
        ),
        ("whole_rules", Effect::Whole { value: WholeValue::Rules(&Rules::new().encode()) }),
    ] {
        write("effect_decode", name, &effect.encode().expect("an effect can be packed"));
    }

    // A file of the Python packages, and changes to a sound one of each format.
    write("snapshot_read", "keyguard", &[&[1], &*sound_file(Format::Keyguard)].concat());
    write("snapshot_read", "simple_keystore", &[&[2], &*sound_file(Format::SimpleKeystore)].concat());
    for (format, name) in ["snapshot", "keyguard", "simple_keystore"].iter().enumerate() {
        write("snapshot_read", &format!("{name}_unchanged"), &[4 | format as u8]);
        let changes = [[0x1f, 0xf0, 1, 7], [0x0f, 0x00, 2, 0xff], [0x00, 0x70, 1, 1]].concat();
        write("snapshot_read", &format!("{name}_changed"), &[&[4 | format as u8], &*changes].concat());
    }
}

fn log(claims: u64, step_ms: u64, units: u64) -> WindowLog {
    let mut log = WindowLog::default();
    (0..claims).for_each(|index| log.push(START_MS + index * step_ms, units, 86_400_000));
    log
}

fn traits(limits: &[(&'static str, u64, u64)], shared: &[(&'static str, u64, u64)]) -> Traits<'static> {
    let in_words = |limits: &[(&'static str, u64, u64)]| -> UnitLimits<'static> {
        let limit = |(unit, count, window_ms): &(&'static str, u64, u64)| UnitLimit {
            unit,
            limit: Limit::new(*count, *window_ms).expect("a limit"),
        };
        limits.iter().map(limit).collect()
    };
    Traits {
        active: true,
        expires_ms: Some(START_MS + 86_400_000),
        source: None,
        login: Some("ops@example.com"),
        batch: Some("b1"),
        account: Some("org"),
        weight: 3,
        limits: in_words(limits),
        shared: in_words(shared),
    }
}

fn pool(keys: u64, traits: &Traits<'_>) -> Pool {
    let mut pool = Pool::default();
    (1..=keys).for_each(|id| pool.enroll(id, traits, None));
    pool
}

fn locked() -> WindowLog {
    let mut log = log(40, 1_000, 1);
    log.lock(START_MS + 60_000, START_MS + 960_000);
    log
}

fn refunded() -> WindowLog {
    let mut log = log(100, 1_000, 5);
    log.refund(37, None, None);
    log.refund(3, Some(START_MS + 10_000), None);
    log
}

fn mixed_windows() -> WindowLog {
    let mut log = log(20, 1_000, 1);
    (20..40).for_each(|index| log.push(START_MS + index * 1_000, 2, 60_000));
    log
}

fn claimed(after_ms: u64) -> Claimed {
    Claimed { at_ms: START_MS + after_ms, units: 1 + after_ms, window_ms: 60_000 }
}

fn block(rules: &mut Rules, net: &str, until_ms: Option<u64>, reason: &str) {
    set(rules, net, &Rule { until_ms, reason, ..by_hand(Kind::Block, None) });
}

fn by_hand(kind: Kind, path: Option<&str>) -> Rule<'_> {
    let path = path.map(|path| Path::parse(path.as_bytes()).expect("a path"));
    Rule { kind, path, until_ms: None, reason: "", by: By::Hand, strikes: None }
}

fn set(rules: &mut Rules, net: &str, rule: &Rule<'_>) {
    rules.set(Net::parse(net.as_bytes()).expect("a network"), rule, 0).expect("a rule");
}

fn write(target: &str, name: &str, bytes: &[u8]) {
    let folder = format!("{}/seeds/{target}", env!("CARGO_MANIFEST_DIR"));
    fs::create_dir_all(&folder).and_then(|()| fs::write(format!("{folder}/{name}"), bytes)).expect("a seed is written");
}
