//! Claims that wait (`BLOCK`) and buckets that are locked (`LOCKOUT`): who is answered when, whatever happens meanwhile.

use std::time::{Duration, Instant};

use redis::{Value, cluster::ClusterClient};

use crate::harness::{
    Claim, Client, Cluster, Reply, Server, Sut, args, eventually, expect, migrate, now_ms, server_tests,
};

server_tests![
    two_hundred_are_served_in_the_order_they_came,
    a_time_out_is_the_normal_refusal_on_time,
    nobody_overtakes_who_waits,
    other_limits_are_another_line,
    changes_of_the_bucket_wake_who_waits,
    changes_that_free_nothing_wake_nobody_wrongly,
    another_type_in_the_place_of_the_bucket_is_an_error,
    swapping_databases_wakes_who_waits,
    who_is_gone_holds_nobody_up,
    client_unblock_ends_the_wait,
    a_pause_of_writes_delays_grants_and_not_refusals,
    what_the_server_would_refuse_is_refused,
    transactions_scripts_and_functions_do_not_wait,
    a_demoted_primary_sends_everyone_away,
    a_failover_sends_everyone_to_the_new_primary,
    a_slot_that_moves_takes_who_waits_along,
    shutting_down_holds_nobody,
    grants_reach_the_replica_and_the_file,
    only_so_many_may_wait,
    one_timer_serves_them_all,
    a_cluster_that_is_down_grants_nothing,
    the_longest_wait_is_a_setting,
    info_and_inspect_show_who_waits,
    a_refusal_locks_the_bucket_for_as_long_as_it_says,
    what_locks_and_what_does_not,
    a_lock_survives_like_the_rest,
    who_waits_waits_for_the_end_of_a_lock,
];

/// A client that has asked, and waits for the answer.
struct Waiter {
    client: Client,
    id: i64,
    asked: Instant,
}

impl Waiter {
    fn asks(server: &Server, arguments: &str) -> Self {
        let mut client = server.client();
        let id = client.ok("CLIENT ID").int();
        let asked = Instant::now();
        client.send(format!("KG.CLAIM {arguments}"));
        Self { client, id, asked }
    }

    fn reply(&mut self) -> Value {
        self.client.receive()
    }

    fn claim(&mut self) -> Claim {
        Claim::from(&self.reply())
    }
}

/// Waits until so many wait.
fn waiting(c: &mut Client, wanted: i64) {
    eventually("who waits", || {
        let found = c.info_number("keyguard", "keyguard_waiters");
        expect(found == wanted, || format!("{found} wait, not {wanted}"))
    });
}

/// One who waits for the bucket `b`, of which one unit an hour is claimed.
fn one_waits(server: &Server, c: &mut Client) -> Waiter {
    c.claim("b 1 1h");
    let waiter = Waiter::asks(server, "b 1 1h BLOCK 1m");
    waiting(c, 1);
    waiter
}

fn two_hundred_are_served_in_the_order_they_came(sut: &Sut) {
    const LIMIT: usize = 20;
    const WINDOW: i64 = 1000;
    let server = sut.server();
    let mut c = server.client();
    let filled = c.claim("b 20 1s COST 20").claimed_at_ms;
    let mut waiters = Vec::new();
    for index in 0..200 {
        let patience = if index % 10 == 9 { "1500ms" } else { "1m" };
        waiters.push((Waiter::asks(&server, &format!("b 20 1s BLOCK {patience}")), patience));
        // An answer to this means that the server has read what was sent before.
        c.ok("PING");
    }
    let mut claims = Vec::new();
    for (waiter, patience) in &mut waiters {
        let claim = waiter.claim();
        if claim.claimed {
            claims.push(claim);
        } else {
            assert_eq!(*patience, "1500ms", "refused before its time was out");
            assert!(claim.retry_after_ms > 0 && waiter.asked.elapsed() >= Duration::from_millis(1500));
        }
    }
    assert!((180..200).contains(&claims.len()), "{} were served", claims.len());
    let order: Vec<(i64, i64)> = claims.iter().map(|claim| (claim.claimed_at_ms, -claim.remaining)).collect();
    assert!(order.is_sorted(), "in the order they came: {order:?}");
    let instants: Vec<i64> = claims.iter().map(|claim| claim.claimed_at_ms).collect();
    let mut idle: Vec<i64> = instants[..LIMIT].iter().map(|at| at - filled - WINDOW).collect();
    idle.extend(instants.windows(LIMIT + 1).map(|window| window[LIMIT] - window[0] - WINDOW));
    assert!(idle.iter().all(|late| *late >= 0), "nobody too early: {idle:?}");
    idle.sort_unstable();
    // How late the slowest was on a machine with nothing else to do, scripts/bench shows.
    assert!(idle[idle.len() / 2] <= 5, "ms that a free unit lay idle: {idle:?}");
}

fn a_time_out_is_the_normal_refusal_on_time(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    let newest = c.claim("b 1 1h").claimed_at_ms;
    let mut late = Vec::new();
    for wait in [1, 7, 38, 99, 151, 12, 55, 3, 27] {
        let mut waiter = Waiter::asks(&server, &format!("b 1 1h BLOCK {wait}ms"));
        let refused = waiter.claim();
        let waited = i64::try_from(waiter.asked.elapsed().as_millis()).unwrap();
        // The server's clock counts whole milliseconds: the first of them may have begun before.
        assert!(waited >= wait - 1, "asked to wait for {wait} ms, waited for {waited}");
        late.push(waited - wait);
        let wanted = Claim { claimed: false, limit: 1, remaining: 0, claimed_at_ms: 0, ..refused };
        assert_eq!(refused, wanted);
        let freed = newest + 3_600_000 - now_ms();
        assert!((freed..=freed + 1000).contains(&refused.retry_after_ms), "{refused:?}, free in {freed} ms");
    }
    late.sort_unstable();
    assert!(late[late.len() / 2] <= 5, "the server's own clock for this ticks every 100 ms: {late:?}");
    assert_eq!(c.remaining("b 1 1h").remaining, 0);
    assert_eq!(c.ok("KG.INSPECT b").field("units").int(), 1, "a refusal changes nothing");
}

fn nobody_overtakes_who_waits(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    let at = c.claim("b 3 1h COST 2").claimed_at_ms;
    let mut first = Waiter::asks(&server, "b 3 1h COST 3 BLOCK 1m");
    waiting(&mut c, 1);
    // A unit is free, but the first has come first: for who would not wait, and for who would.
    for command in ["KG.CLAIM b 3 1h", "KG.REMAINING b 3 1h", "KG.CLAIM b 3 3600s COST 0"] {
        let refused = Claim::from(&c.ok(command));
        assert!(!refused.claimed && refused.retry_after_ms > 0, "{command}: {refused:?}");
    }
    let mut second = Waiter::asks(&server, "b 3 1h BLOCK 1m");
    waiting(&mut c, 2);
    let mut third = Waiter::asks(&server, "b 3 1h BLOCK 20ms");
    assert!(!third.claim().claimed, "its time is out, and there was a unit");
    assert!(!c.claim("b 3 1h").claimed);
    assert_eq!(c.ok(format!("KG.REFUND b 1 AT {at}")).int(), 1);
    waiting(&mut c, 2);
    assert_eq!(c.ok(format!("KG.REFUND b 1 AT {at}")).int(), 1);
    assert!(first.claim().claimed, "all that it needs is there");
    waiting(&mut c, 1);
    let oldest = c.ok("KG.INSPECT b").field("oldest").int();
    c.ok(format!("KG.REFUND b 2 AT {oldest}"));
    assert!(second.claim().claimed);
    waiting(&mut c, 0);
    assert!(c.claim("b 3 1h").claimed, "nobody waits any more");
    assert_eq!(c.ok("KG.INSPECT b").field("units").int(), 3);
}

fn other_limits_are_another_line(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    c.claim("b 2 1h COST 2");
    let mut one = Waiter::asks(&server, "b 2 1h BLOCK 1m");
    let mut other = Waiter::asks(&server, "b 2 300ms BLOCK 1m");
    assert!(other.claim().claimed, "its units were free in a moment");
    waiting(&mut c, 1);
    assert!(c.claim("b 9 1h").claimed, "whoever names other limits stands in no line");
    assert!(!c.claim("b 2 3600s").claimed, "the same limits in other words");
    c.ok("DEL b");
    assert!(one.claim().claimed);
}

/// What happens to the bucket `b`, full for an hour, after which a claim fits.
const FREEING: [&str; 16] = [
    "DEL b",
    "UNLINK b",
    "PEXPIRE b 20",
    "EXPIREAT b 1",
    "FLUSHALL",
    "FLUSHALL ASYNC",
    "FLUSHDB",
    "RENAME b elsewhere",
    "MOVE b 1",
    "KG.REFUND b 1",
    "RENAME empty b",
    "COPY empty b REPLACE",
    "RESTORE b 0 <dump of empty> REPLACE",
    "MULTI; DEL b; EXEC",
    "EVAL return(redis.call('del',KEYS[1])) 1 b",
    "DEL b; DEBUG RELOAD",
];

fn changes_of_the_bucket_wake_who_waits(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    let mut slow = Vec::new();
    for change in FREEING {
        c.ok("FLUSHALL");
        c.claim("empty 5 1h");
        c.ok("KG.REFUND empty 1");
        let dump = c.ok("DUMP empty").bytes();
        let mut waiter = one_waits(&server, &mut c);
        let begun = Instant::now();
        for command in change.split("; ") {
            let words = command.split(' ').collect::<Vec<_>>();
            match words[..] {
                ["RESTORE", ..] => c.ok(args!["RESTORE", "b", 0, dump, "REPLACE"]),
                _ => c.ok(command),
            };
        }
        let claim = waiter.claim();
        assert!(claim.claimed, "{change}: {claim:?}");
        slow.push(begun.elapsed());
        waiting(&mut c, 0);
        assert!(!c.claim("b 1 1h").claimed, "{change}: and only one was let in");
    }
    slow.sort_unstable();
    assert!(slow[slow.len() / 2] < Duration::from_millis(500), "at once, not at the look once a second: {slow:?}");
}

fn changes_that_free_nothing_wake_nobody_wrongly(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    let mut waiter = one_waits(&server, &mut c);
    let dump = c.ok("DUMP b").bytes();
    c.ok("COPY b full");
    c.ok(args!["RESTORE", "b", 0, dump, "REPLACE"]);
    c.ok("RENAME full b");
    c.ok("PERSIST b");
    c.ok("PEXPIRE b 100000");
    c.ok("DEL something else");
    c.ok("DEBUG RELOAD");
    c.ok("RENAME b c");
    assert!(waiter.claim().claimed, "the bucket is gone");
    // A full one comes in the place of one that was deleted, in one step.
    c.ok("FLUSHALL");
    let mut waiter = one_waits(&server, &mut c);
    c.ok("COPY b full");
    for command in ["MULTI", "DEL b", "RENAME full b", "EXEC"] {
        c.ok(command);
    }
    let mut other = Waiter::asks(&server, "b 1 1h BLOCK 50ms");
    assert!(!other.claim().claimed);
    waiting(&mut c, 1);
    c.ok("DEL b");
    assert!(waiter.claim().claimed);
}

fn another_type_in_the_place_of_the_bucket_is_an_error(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    for change in ["SET b x", "MULTI; DEL b; LPUSH b x; EXEC", "RENAME list b"] {
        c.ok("FLUSHALL");
        c.ok("LPUSH list x");
        let mut waiter = one_waits(&server, &mut c);
        change.split("; ").for_each(|command| drop(c.ok(command)));
        let reply = waiter.reply();
        assert_eq!(reply.error_code(), "WRONGTYPE", "{change}: {reply:?}");
        waiting(&mut c, 0);
    }
}

fn swapping_databases_wakes_who_waits(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    let mut waiter = one_waits(&server, &mut c);
    let mut elsewhere = server.client();
    elsewhere.ok("SELECT 3");
    elsewhere.claim("b 1 1h");
    elsewhere.send("KG.CLAIM b 1 1h BLOCK 1m");
    waiting(&mut c, 2);
    c.ok("SWAPDB 0 3");
    c.ok("SWAPDB 0 1");
    assert!(waiter.claim().claimed, "database 0 is now one without the bucket");
    waiting(&mut c, 1);
    c.ok("SELECT 3");
    c.ok("DEL b");
    assert!(Claim::from(&elsewhere.receive()).claimed);
}

fn who_is_gone_holds_nobody_up(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    c.claim("b 2 1h");
    for gone in ["hung up", "killed", "unblocked"] {
        let mut first = Waiter::asks(&server, "b 2 1h COST 2 BLOCK 1m");
        waiting(&mut c, 1);
        let mut second = Waiter::asks(&server, "b 2 1h BLOCK 1m");
        waiting(&mut c, 2);
        let mut third = Waiter::asks(&server, "b 2 1h COST 2 BLOCK 1m");
        waiting(&mut c, 3);
        match gone {
            "hung up" => drop(first),
            "killed" => drop(c.ok(format!("CLIENT KILL ID {}", first.id))),
            _ => {
                assert_eq!(c.ok(format!("CLIENT UNBLOCK {} ERROR", first.id)).int(), 1);
                assert_eq!(first.reply().error_code(), "UNBLOCKED");
                first.client.ok("PING");
            }
        }
        let claim = second.claim();
        assert!(claim.claimed, "its cost fits once the first is {gone}");
        waiting(&mut c, 1);
        c.ok(format!("KG.REFUND b 1 AT {}", claim.claimed_at_ms));
        assert_eq!(c.ok(format!("CLIENT UNBLOCK {}", third.id)).int(), 1);
        assert!(!third.claim().claimed);
        waiting(&mut c, 0);
    }
}

fn client_unblock_ends_the_wait(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    let mut waiter = one_waits(&server, &mut c);
    assert_eq!(c.ok(format!("CLIENT UNBLOCK {} TIMEOUT", waiter.id)).int(), 1);
    let refused = waiter.claim();
    assert!(!refused.claimed && refused.retry_after_ms > 3_500_000, "the normal refusal: {refused:?}");
    waiter.client.ok("PING");
    assert_eq!(c.ok(format!("CLIENT UNBLOCK {}", waiter.id)).int(), 0, "it does not wait any more");
    let mut again = Waiter::asks(&server, "b 1 1h BLOCK 1m LOCKOUT 1h");
    waiting(&mut c, 1);
    assert_eq!(c.ok(format!("CLIENT UNBLOCK {}", again.id)).int(), 1);
    assert!(!again.claim().claimed);
    c.ok("KG.REFUND b 1");
    assert!(c.claim("b 1 1h").claimed, "only a wait that ends by itself locks the bucket");
}

fn a_pause_of_writes_delays_grants_and_not_refusals(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    let at = c.claim("b 1 300ms").claimed_at_ms;
    let mut waiter = Waiter::asks(&server, "b 1 300ms BLOCK 1m");
    let mut impatient = Waiter::asks(&server, "b 1 300ms BLOCK 400ms");
    waiting(&mut c, 2);
    c.ok("CLIENT PAUSE 60000 WRITE");
    let refused = impatient.claim();
    assert!(!refused.claimed && refused.retry_after_ms > 0, "its time was out: {refused:?}");
    assert!(now_ms() >= at + 300);
    assert_eq!(c.ok("KG.INSPECT b").field("newest").int(), at, "nothing is granted in a pause");
    waiting(&mut c, 1);
    c.ok("CLIENT UNPAUSE");
    let unpaused = now_ms();
    let claim = waiter.claim();
    assert!(claim.claimed && claim.claimed_at_ms >= unpaused - 1000, "{claim:?}");
}

fn what_the_server_would_refuse_is_refused(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    let cases =
        [("maxmemory 1", "maxmemory 0", "OOM"), ("min-replicas-to-write 1", "min-replicas-to-write 0", "NOREPLICAS")];
    for (set, back, code) in cases {
        c.ok("FLUSHALL");
        let mut waiter = one_waits(&server, &mut c);
        c.ok(format!("CONFIG SET {set}"));
        // What frees a unit must itself be let through, or happen by itself.
        if code == "OOM" {
            c.ok("KG.REFUND b 1");
        }
        let reply = waiter.reply();
        assert_eq!(reply.error_code(), code, "{set}: {reply:?}");
        c.ok(format!("CONFIG SET {back}"));
        waiting(&mut c, 0);
    }
}

fn transactions_scripts_and_functions_do_not_wait(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    c.claim("b 1 1h");
    c.ok("MULTI");
    c.ok("KG.CLAIM b 1 1h BLOCK 1m");
    c.ok("KG.CLAIM c 1 1h BLOCK 1m");
    let replies = c.ok("EXEC");
    let claims: Vec<bool> = replies.list().iter().map(|reply| Claim::from(reply).claimed).collect();
    assert_eq!(claims, [false, true]);
    let script = "return redis.call('KG.CLAIM', KEYS[1], '1', '1h', 'BLOCK', '1m')";
    assert!(!Claim::from(&c.ok(args!["EVAL", script, 1, "b"])).claimed);
    let function = format!("#!lua name=k\nredis.register_function('f', function(KEYS) {script} end)");
    c.ok(args!["FUNCTION", "LOAD", function]);
    assert!(!Claim::from(&c.ok("FCALL f 1 b")).claimed);
    waiting(&mut c, 0);
    assert!(!Claim::from(&c.ok("KG.CLAIM b 1 1h COST 2 BLOCK 1m")).claimed, "what can never fit need not wait");
    // Others wait, and the transaction is refused like anybody who does not.
    let mut waiter = Waiter::asks(&server, "b 1 1h BLOCK 1m");
    waiting(&mut c, 1);
    for command in ["MULTI", "DEL b", "KG.CLAIM b 1 1h BLOCK 1m"] {
        c.ok(command);
    }
    assert!(!Claim::from(&c.ok("EXEC").list()[1]).claimed);
    assert!(waiter.claim().claimed);
}

fn a_demoted_primary_sends_everyone_away(sut: &Sut) {
    let server = sut.server();
    let other = sut.server();
    let mut c = server.client();
    let mut waiters: Vec<Waiter> = (0..3).map(|_| one_waits_more(&server, &mut c)).collect();
    waiting(&mut c, 3);
    c.ok(format!("REPLICAOF 127.0.0.1 {}", other.port()));
    for waiter in &mut waiters {
        assert_eq!(waiter.reply().error_code(), "UNBLOCKED");
        assert!(waiter.client.try_receive().is_none(), "and the connection ends");
    }
    waiting(&mut c, 0);
    c.ok("REPLICAOF NO ONE");
    c.ok("FLUSHALL");
    let mut waiter = one_waits(&server, &mut c);
    c.ok("DEL b");
    assert!(waiter.claim().claimed, "a primary again");
}

fn one_waits_more(server: &Server, c: &mut Client) -> Waiter {
    c.claim("b 1 1h");
    Waiter::asks(server, "b 1 1h BLOCK 1m")
}

fn a_failover_sends_everyone_to_the_new_primary(sut: &Sut) {
    let primary = sut.server();
    let replica = sut.setup().replica_of(&primary).start();
    let mut c = primary.client();
    c.claim("soon 1 200ms");
    let mut waiter = one_waits(&primary, &mut c);
    let mut soon = Waiter::asks(&primary, "soon 1 200ms BLOCK 1m");
    primary.wait_for(&replica);
    c.ok(format!("FAILOVER TO 127.0.0.1 {}", replica.port()));
    assert_eq!(waiter.reply().error_code(), "UNBLOCKED");
    // Before the failover, in its pause, or not at all: in any case an answer.
    let reply = soon.reply();
    assert!(reply.error_code() == "UNBLOCKED" || Claim::from(&reply).claimed, "{reply:?}");
    let mut new = replica.client();
    eventually("the failover", || {
        let role = new.info("replication", "role");
        expect(role.as_deref() == Some("master"), || format!("{role:?}"))
    });
    let mut again = Waiter::asks(&replica, "b 1 1h BLOCK 1m");
    waiting(&mut new, 1);
    new.ok("KG.REFUND b 1");
    assert!(again.claim().claimed);
    replica.wait_for(&primary);
    assert_eq!(primary.client().state(), new.state());
}

fn a_slot_that_moves_takes_who_waits_along(sut: &Sut) {
    let cluster = Cluster::start((0..2).map(|_| sut.setup().cluster(15_000)).collect(), Vec::new());
    let (slot, source) = cluster.place_of(b"b");
    let target = 1 - source;
    let (mut from, mut to) = (cluster.primaries[source].client(), cluster.primaries[target].client());

    // Key by key. What waits at the source is told to try again as soon as the bucket has left, or the slot.
    let mut waiter = one_waits(&cluster.primaries[source], &mut from);
    cluster.begin_migration(slot, source, target);
    waiting(&mut from, 1);
    migrate(&mut from, &to, b"b");
    let reply = waiter.reply();
    assert_eq!(reply.error_code(), "TRYAGAIN", "{reply:?}");
    assert_eq!(from.err("KG.CLAIM b 1 1h BLOCK 1m").split(' ').next(), Some("ASK"));
    to.ok("ASKING");
    assert!(!Claim::from(&to.ok("KG.CLAIM b 1 1h BLOCK 20ms")).claimed, "the bucket has moved with its units");
    cluster.end_migration(slot, target);
    let mut waiter = one_waits(&cluster.primaries[target], &mut to);
    to.ok("KG.REFUND b 1");
    assert!(waiter.claim().claimed);

    // All that a client of the cluster sees of a move is that it takes its turn.
    to.claim("c{b} 1 1h");
    let nodes = cluster.primaries.iter().map(|node| format!("redis://127.0.0.1:{}", node.port()));
    let client = ClusterClient::builder(nodes).retries(50).min_retry_wait(5).max_retry_wait(50);
    let client = client.response_timeout(Duration::from_secs(60)).build().unwrap();
    let waiter = std::thread::spawn(move || {
        let mut connection = client.get_connection().unwrap();
        let mut command = redis::cmd("KG.CLAIM");
        for word in ["c{b}", "1", "1h", "BLOCK", "50s"] {
            command.arg(word);
        }
        command.query::<Value>(&mut connection)
    });
    waiting(&mut to, 1);
    cluster.move_slots(&[slot], target, source);
    waiting(&mut from, 1);
    let back = cluster.have_slots_moved(sut, &[slot], source, target);
    let owner = if back { &mut to } else { &mut from };
    waiting(owner, 1);
    owner.ok("KG.REFUND c{b} 1");
    assert!(Claim::from(&waiter.join().unwrap().expect("the client found its way")).claimed);
}

fn shutting_down_holds_nobody(sut: &Sut) {
    let mut server = sut.setup().with("appendonly", "yes").with("appendfsync", "always").start();
    let mut c = server.client();
    let mut waiter = one_waits(&server, &mut c);
    c.send("SHUTDOWN NOSAVE");
    assert!(c.try_receive().is_none());
    let end = waiter.client.try_receive();
    assert!(end.is_none() || end.is_some_and(|reply| reply.is_error()), "no grant");
    server.restart();
    let mut c = server.client();
    assert_eq!(c.ok("KG.INSPECT b").field("units").int(), 1);
    assert!(!c.claim("b 1 1h").claimed);
}

fn grants_reach_the_replica_and_the_file(sut: &Sut) {
    let mut primary = sut.setup().with("appendonly", "yes").with("appendfsync", "always").start();
    let replica = sut.setup().replica_of(&primary).start();
    let mut c = primary.client();
    c.claim("b 4 100ms COST 4");
    let mut waiters: Vec<Waiter> = (0..20).map(|_| Waiter::asks(&primary, "b 4 100ms 100 1h BLOCK 1m")).collect();
    let mut elsewhere = primary.client();
    elsewhere.ok("SELECT 5");
    elsewhere.claim("b 1 100ms");
    elsewhere.send("KG.CLAIM b 1 100ms 5 1h BLOCK 1m");
    let at: Vec<i64> = waiters.iter_mut().map(|waiter| waiter.claim().claimed_at_ms).collect();
    assert!(at.iter().all(|at| *at > 0));
    assert!(Claim::from(&elsewhere.receive()).claimed);
    assert!(!c.claim("b 20 1h").claimed);
    primary.wait_for(&replica);
    let mut theirs = replica.client();
    for database in [0, 5] {
        let states = [&mut c, &mut theirs].map(|client| {
            client.ok(format!("SELECT {database}"));
            client.state()
        });
        assert_eq!(states[0].len(), 1);
        assert_eq!(states[0], states[1]);
    }
    c.ok("SELECT 0");
    let before = c.state();
    primary.restart();
    assert_eq!(primary.client().state(), before);
}

fn only_so_many_may_wait(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    c.claim("b 1 1h");
    c.claim("c 1 1h");
    let mut waiters: Vec<Client> = (0..1000).map(|_| server.client()).collect();
    for waiter in &mut waiters {
        waiter.send("KG.CLAIM b 1 1h BLOCK 1m");
    }
    waiting(&mut c, 1000);
    let text = c.refused("TOOMANYWAITERS", "KG.CLAIM b 1 1h BLOCK 1m");
    assert!(text.contains("1000"), "{text}");
    c.refused("TOOMANYWAITERS", "KG.CLAIM b 2 1h COST 2 BLOCK 1m");
    let mut lines = Vec::new();
    for count in 1..=64 {
        c.claim("d 1 1h COST 1");
        lines.push(Waiter::asks(&server, &format!("d 1 {count}h BLOCK 1m")));
    }
    waiting(&mut c, 1064);
    c.refused("TOOMANYWAITERS", "KG.CLAIM d 1 65h BLOCK 1m");
    drop(lines);
    waiting(&mut c, 1000);
    assert!(!c.claim("b 1 1h").claimed, "who does not wait is refused as ever");
    let other = Waiter::asks(&server, "c 1 1h BLOCK 1m");
    waiting(&mut c, 1001);
    assert_eq!(c.ok("KG.INSPECT b").field("waiters").int(), 1000);
    drop(other);
    drop(waiters);
    waiting(&mut c, 0);
}

fn one_timer_serves_them_all(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    let waiter = one_waits(&server, &mut c);
    let claims: Vec<_> = (0..10_000).map(|_| args!["KG.CLAIM", "b", 1_000_000, "1m"]).collect();
    for _ in 0..2 {
        c.pipeline(&claims);
        drop(Waiter::asks(&server, "b 1 1h BLOCK 1m"));
        waiting(&mut c, 1);
    }
    // Timers that were set and forgotten would go off, and set others, for as long as anyone waits.
    let busy = |c: &mut Client| -> f64 {
        ["used_cpu_user", "used_cpu_sys"]
            .map(|field| c.info("cpu", field).unwrap().parse::<f64>().unwrap())
            .iter()
            .sum()
    };
    let before = busy(&mut c);
    let begun = Instant::now();
    eventually("two seconds", || expect(begun.elapsed() > Duration::from_secs(2), String::new));
    let busy = busy(&mut c) - before;
    assert!(busy < 0.4, "{busy} s of work in two seconds in which nothing happened");
    drop(waiter);
}

fn a_cluster_that_is_down_grants_nothing(sut: &Sut) {
    let cluster = Cluster::start((0..2).map(|_| sut.setup().cluster(15_000)).collect(), Vec::new());
    let (slot, source) = cluster.place_of(b"b");
    let mut c = cluster.primaries[source].client();
    let mut waiter = one_waits(&cluster.primaries[source], &mut c);
    // Any other slot of the node: without an owner for it the cluster counts as down.
    let other = if source == 0 { (slot + 1) % 8192 } else { 8192 + (slot + 1) % 8192 };
    c.ok(format!("CLUSTER DELSLOTS {other}"));
    let reply = waiter.reply();
    assert_eq!(reply.error_code(), "CLUSTERDOWN", "{reply:?}");
    waiting(&mut c, 0);
}

fn the_longest_wait_is_a_setting(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    assert_eq!(c.ok("CONFIG GET keyguard.block-max").get("keyguard.block-max").unwrap().text(), "1h");
    c.claim("b 1 1h");
    let text = c.refused("ERR", "KG.CLAIM b 1 1h BLOCK 3601s");
    assert!(text.contains("keyguard.block-max"), "{text}");
    c.ok("CONFIG SET keyguard.block-max 50ms");
    c.refused("ERR", "KG.CLAIM b 1 1h BLOCK 51ms");
    assert!(!c.claim("b 1 1h BLOCK 50ms").claimed);
    for bad in ["0", "10", "-1s", "x", "367d"] {
        c.refused("ERR", &*format!("CONFIG SET keyguard.block-max {bad}"));
    }
    let file = server.keyring_file().display().to_string();
    let setup = sut.setup().module_arguments(&["keyring-file", &file, "block-max", "2h"]);
    let server = setup.start();
    let mut c = server.client();
    assert_eq!(c.ok("CONFIG GET keyguard.block-max").get("keyguard.block-max").unwrap().text(), "2h");
}

fn info_and_inspect_show_who_waits(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    let number = |c: &mut Client, field: &str| c.info_number("keyguard", &format!("keyguard_{field}"));
    assert_eq!(["waiters", "waiting_lines", "longest_wait_ms"].map(|field| number(&mut c, field)), [0; 3]);
    let begun = Instant::now();
    let first = one_waits(&server, &mut c);
    let second = Waiter::asks(&server, "b 1 2h BLOCK 1m");
    waiting(&mut c, 2);
    assert_eq!(number(&mut c, "waiting_lines"), 2);
    assert_eq!(c.ok("KG.INSPECT b").field("waiters").int(), 2);
    assert_eq!(c.ok("KG.INSPECT other").field("waiters").int(), 0);
    eventually("time going by", || expect(number(&mut c, "longest_wait_ms") > 0, String::new));
    assert!(number(&mut c, "longest_wait_ms") <= 1 + i64::try_from(begun.elapsed().as_millis()).unwrap());
    drop((first, second));
    waiting(&mut c, 0);
    assert_eq!(number(&mut c, "longest_wait_ms"), 0);
}

fn a_refusal_locks_the_bucket_for_as_long_as_it_says(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    assert!(c.claim("b 2 50ms LOCKOUT 400ms").claimed);
    assert!(c.claim("b 2 50ms LOCKOUT 400ms").claimed);
    let before = now_ms();
    let refused = c.claim("b 2 50ms LOCKOUT 400ms");
    let after = now_ms();
    let wanted =
        Claim { claimed: false, limit: 2, remaining: 0, retry_after_ms: 400, reset_after_ms: 400, claimed_at_ms: 0 };
    assert_eq!(refused, wanted);
    let until = c.ok("KG.INSPECT b").field("locked_until").int();
    assert!((before + 400..=after + 400).contains(&until));
    assert_eq!(c.ok("PEXPIRETIME b").int(), until + 1000);
    let ended = loop {
        let asked = now_ms();
        let refused = c.claim("b 100 1ms LOCKOUT 1h");
        if refused.claimed {
            break refused.claimed_at_ms;
        }
        assert!(asked < until, "locked until {until}, refused at {asked}");
        assert_eq!(refused.remaining, 0);
        let retry = until - now_ms()..=until - asked;
        assert!(retry.contains(&refused.retry_after_ms), "{refused:?}, not in {retry:?}");
        let peeked = c.remaining("b 100 1ms");
        assert!(!peeked.claimed || now_ms() >= until, "locked until {until}: {peeked:?}");
    };
    assert!(ended >= until, "locked until {until}, let in at {ended}");
    assert!(c.ok("KG.INSPECT b").get("locked_until").is_none());
}

fn what_locks_and_what_does_not(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    assert!(!c.claim("b 2 1h COST 3 LOCKOUT 1h").claimed, "what could never fit");
    assert_eq!(c.keys(), Vec::<Vec<u8>>::new());
    assert!(c.claim("b 2 1h COST 2 LOCKOUT 1h").claimed);
    let waiter = Waiter::asks(&server, "b 2 1h BLOCK 1m");
    waiting(&mut c, 1);
    c.ok("KG.REFUND b 2");
    let mut waiter = waiter;
    assert!(waiter.claim().claimed, "a grant locks nothing");
    let mut waiter = Waiter::asks(&server, "b 2 1h COST 2 BLOCK 1m");
    waiting(&mut c, 1);
    assert!(!c.claim("b 2 1h LOCKOUT 1h").claimed, "it would fit, but for who came first");
    c.ok("KG.REFUND b 1");
    assert!(waiter.claim().claimed, "so that locked nothing");
    let mut waiter = Waiter::asks(&server, "b 2 1h BLOCK 20ms LOCKOUT 2h");
    let refused = waiter.claim();
    assert!(!refused.claimed && refused.retry_after_ms == 7_200_000, "the end of a wait is a refusal: {refused:?}");
    c.ok("KG.REFUND b 2");
    assert!(!c.claim("b 2 1h").claimed, "units given back do not unlock it");
    c.ok("DEL b");
    assert!(c.claim("b 2 1h").claimed);
}

fn a_lock_survives_like_the_rest(sut: &Sut) {
    let mut primary = sut.setup().with("appendonly", "yes").with("appendfsync", "always").start();
    let replica = sut.setup().replica_of(&primary).start();
    let mut c = primary.client();
    for _ in 0..40 {
        c.claim("b 3 1m LOCKOUT 1h");
        c.claim("c 2 1s");
    }
    c.claim("c 1 1s LOCKOUT 1h");
    let before = c.state();
    primary.wait_for(&replica);
    assert_eq!(replica.client().state(), before);
    assert!(!replica.client().remaining("c 100 1s").claimed);
    let dump = c.ok("DUMP b").bytes();
    c.ok(args!["RESTORE", "d", 0, dump]);
    assert!(!c.claim("d 100 1m").claimed);
    c.ok("DEL d");
    for command in ["DEBUG RELOAD", "DEBUG LOADAOF"] {
        c.ok(command);
        assert_eq!(c.state(), before, "{command}");
    }
    c.ok("CONFIG SET aof-use-rdb-preamble no");
    c.wait_for_background_work();
    c.ok("BGREWRITEAOF");
    c.wait_for_background_work();
    primary.restart();
    assert_eq!(primary.client().state(), before, "after a kill, from the file rewritten as commands");
    assert!(!primary.client().claim("b 100 1m").claimed);
}

fn who_waits_waits_for_the_end_of_a_lock(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    c.claim("b 1 1h");
    c.claim("b 1 1h LOCKOUT 300ms");
    let until = c.ok("KG.INSPECT b").field("locked_until").int();
    let mut waiter = Waiter::asks(&server, "b 2 1h BLOCK 1m");
    let claim = waiter.claim();
    assert!(claim.claimed && claim.claimed_at_ms >= until, "{claim:?}, locked until {until}");
}
