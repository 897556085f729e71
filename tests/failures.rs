//! Limits under failures: whatever dies or moves while clients claim, they are never told of more units than a limit allows,
//! but for those that a primary granted and had not yet replicated when it died.

use std::{
    fmt::Display,
    fs, mem,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use redis::{
    Value,
    cluster::{ClusterClient, ClusterConnection},
};

use crate::harness::{
    Claim, Client, Cluster, Reply, Server, Setup, Sut, args, eventually, expect, now_ms, server_tests,
};

server_tests![
    a_cluster_failover_loses_only_what_was_not_replicated,
    limits_hold_while_slots_move,
    sentinels_fail_over_and_limits_hold,
    confirmed_claims_outlive_their_primary,
    acknowledged_claims_survive_kills,
    a_half_written_command_is_left_out,
];

/// How many clients claim at a time.
const CLIENTS: usize = 4;

/// What a client lets pass after an answer, and after a failure.
const PACE: Duration = Duration::from_millis(1);
const BACK_OFF: Duration = Duration::from_millis(10);

const HOUR_MS: i64 = 3_600_000;

/// A key with its limit.
struct Bucket {
    name: String,
    count: usize,
    window_ms: i64,
}

impl Bucket {
    /// One whose window is longer than any test: all claims count to the end.
    fn whole(name: impl Display, count: usize) -> Self {
        Self { name: format!("whole:{name}"), count, window_ms: HOUR_MS }
    }

    fn rolling(name: impl Display) -> Self {
        Self { name: format!("rolling:{name}"), count: 10, window_ms: 500 }
    }

    fn is_whole(&self) -> bool {
        self.window_ms == HOUR_MS
    }

    fn claim(&self) -> Vec<Vec<u8>> {
        args!["KG.CLAIM", self.name, self.count, format!("{}ms", self.window_ms)]
    }

    /// What the server holds.
    fn units(&self, c: &mut Client) -> usize {
        c.ok(args!["KG.INSPECT", self.name]).field("units").int() as usize
    }

    /// In no window are there more of these instants, which are sorted, than the limit allows.
    fn assert_allows(&self, instants: &[i64]) {
        for span in instants.windows(self.count + 1) {
            let ms = span[self.count] - span[0];
            assert!(ms >= self.window_ms, "{}: {} units within {ms} ms of {instants:?}", self.name, span.len());
        }
    }
}

/// Buckets all over the slots, half of them rolling; others for each part of a test.
fn many(part: &str) -> Arc<[Bucket]> {
    let names = (0..24).map(|n| (format!("{part}:{n}"), 20 * (n + 1)));
    names.flat_map(|(name, count)| [Bucket::whole(&name, count), Bucket::rolling(&name)]).collect()
}

fn few() -> Arc<[Bucket]> {
    (0..4).map(|n| Bucket::whole(n, 600)).collect()
}

/// What a client learns of a claim.
enum Answer {
    Told(Claim),
    /// It went out, and no answer came.
    Unknown,
    /// No server has carried it out.
    Refused,
}

/// What clients know of a bucket.
#[derive(Default)]
struct Known {
    /// The instants of the claims that they were told are granted, sorted.
    grants: Vec<i64>,
    /// The claims of which they were told nothing.
    unknown: usize,
}

fn add(known: &mut [Known], more: Vec<Known>) {
    for (known, more) in known.iter_mut().zip(more) {
        known.grants.extend(more.grants);
        known.grants.sort_unstable();
        known.unknown += more.unknown;
    }
}

fn nothing(buckets: &[Bucket]) -> Vec<Known> {
    buckets.iter().map(|_| Known::default()).collect()
}

/// Clients that claim on all buckets in turn until they are told to end.
struct Load {
    stop: Arc<AtomicBool>,
    answers: Arc<[AtomicUsize]>,
    clients: Vec<JoinHandle<Vec<Known>>>,
}

impl Load {
    fn start<C>(buckets: &Arc<[Bucket]>, client: impl Fn() -> C) -> Self
    where
        C: FnMut(&Bucket) -> Answer + Send + 'static,
    {
        let stop = Arc::new(AtomicBool::new(false));
        let answers: Arc<[AtomicUsize]> = buckets.iter().map(|_| AtomicUsize::new(0)).collect();
        let run = |n: usize| {
            let (mut client, buckets, stop, answers) = (client(), buckets.clone(), stop.clone(), answers.clone());
            thread::spawn(move || {
                let mut known = nothing(&buckets);
                let turns = (0..buckets.len()).cycle().skip(n * buckets.len() / CLIENTS);
                for turn in turns.take_while(|_| !stop.load(Relaxed)) {
                    let answer = client(&buckets[turn]);
                    thread::sleep(if matches!(answer, Answer::Told(_)) { PACE } else { BACK_OFF });
                    match answer {
                        Answer::Told(claim) => {
                            known[turn].grants.extend(claim.claimed.then_some(claim.claimed_at_ms));
                            answers[turn].fetch_add(1, Relaxed);
                        }
                        Answer::Unknown => known[turn].unknown += 1,
                        Answer::Refused => {}
                    }
                }
                known
            })
        };
        let clients = (0..CLIENTS).map(run).collect();
        Self { stop, answers, clients }
    }

    /// Waits until every bucket has had so many more answers.
    fn go_on(&self, answers: usize) {
        let counts = || self.answers.iter().map(|count| count.load(Relaxed));
        let before: Vec<usize> = counts().collect();
        eventually("answers on every bucket", || {
            assert!(!self.clients.iter().any(JoinHandle::is_finished), "a client has failed");
            let more: Vec<usize> = counts().zip(&before).map(|(now, before)| now - before).collect();
            expect(more.iter().all(|more| *more >= answers), || format!("{more:?}"))
        });
    }

    /// Ends the clients; all that they know.
    fn end(mut self) -> Vec<Known> {
        self.stop.store(true, Relaxed);
        let clients = mem::take(&mut self.clients).into_iter();
        let each = clients.map(|client| client.join().expect("a client ends in peace"));
        let mut known: Vec<Known> = self.answers.iter().map(|_| Known::default()).collect();
        each.for_each(|more| add(&mut known, more));
        known
    }
}

impl Drop for Load {
    /// A test that fails leaves no client behind.
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        for client in self.clients.drain(..) {
            let _ = client.join();
        }
    }
}

/// Claims on every bucket until the limit refuses; what was granted adds to what is known.
fn exhaust(buckets: &[Bucket], known: &mut [Known], mut client: impl FnMut(&Bucket) -> Answer) {
    for (bucket, known) in buckets.iter().zip(known) {
        loop {
            let Answer::Told(claim) = client(bucket) else { panic!("{}: no answer while nothing fails", bucket.name) };
            if !claim.claimed {
                break;
            }
            known.grants.push(claim.claimed_at_ms);
        }
        known.grants.sort_unstable();
    }
}

/// A client that asks where the primary is, and asks again whenever it has lost it. If it wants claims confirmed, it counts
/// those only that a replica has.
fn client_of(mut primary: impl FnMut() -> Option<u16> + Send, confirmed: bool) -> impl FnMut(&Bucket) -> Answer + Send {
    let mut connection: Option<Client> = None;
    move |bucket| {
        let Some(mut c) = connection.take().or_else(|| Client::try_connect(primary()?).ok()) else {
            return Answer::Refused;
        };
        if !sent(&mut c, &bucket.claim()) {
            return Answer::Refused;
        }
        let Some(reply) = c.try_receive() else { return Answer::Unknown };
        if reply.is_error() {
            assert!(["READONLY", "LOADING"].contains(&&*reply.error_code()), "{}: {reply:?}", bucket.name);
            return Answer::Refused;
        }
        let claim = Claim::from(&reply);
        if confirmed && claim.claimed {
            let wait = args!["WAIT", 1, 10_000];
            if !sent(&mut c, &wait) || c.try_receive().is_none_or(|replicas| replicas.int() < 1) {
                return Answer::Unknown;
            }
        }
        connection = Some(c);
        Answer::Told(claim)
    }
}

fn sent(c: &mut Client, command: &[Vec<u8>]) -> bool {
    c.send_bytes(&redis::pack_command(command)).is_ok()
}

/// A client of the server at this port.
fn client_at(port: u16) -> impl FnMut(&Bucket) -> Answer + Send {
    client_of(move || Some(port), false)
}

/// A client that follows a cluster by itself.
fn client_of_cluster(cluster: &Cluster) -> impl FnMut(&Bucket) -> Answer + Send + use<> {
    let nodes = cluster.primaries.iter().chain(&cluster.replicas);
    let client = ClusterClient::builder(nodes.map(|node| format!("redis://127.0.0.1:{}", node.port())))
        .retries(8)
        .min_retry_wait(5)
        .max_retry_wait(50)
        .connection_timeout(Duration::from_secs(20))
        .response_timeout(Duration::from_secs(20))
        .build()
        .expect("a client of the cluster");
    let mut connection: Option<ClusterConnection> = None;
    move |bucket| {
        let Some(mut c) = connection.take().or_else(|| client.get_connection().ok()) else { return Answer::Refused };
        let words = bucket.claim();
        let mut command = redis::Cmd::new();
        for word in &words {
            command.arg(word);
        }
        match command.query::<Value>(&mut c) {
            Ok(reply) => {
                connection = Some(c);
                Answer::Told(Claim::from(&reply))
            }
            Err(error) => {
                let outage = error.is_io_error() || error.is_cluster_error();
                assert!(outage, "{}: {error:?}", bucket.name);
                Answer::Unknown
            }
        }
    }
}

/// The limits that roll hold in every window.
fn assert_rolling(buckets: &[Bucket], known: &[Known]) {
    let rolling = buckets.iter().zip(known).filter(|(bucket, _)| !bucket.is_whole());
    rolling.for_each(|(bucket, known)| bucket.assert_allows(&known.grants));
}

/// What a failover has cost.
#[derive(Default)]
struct Loss {
    granted: usize,
    lost: usize,
    surplus: usize,
}

/// Compares what clients know of exhausted buckets with what the server holds that serves them now: it holds no more than the
/// limit, and lacks nothing but the last claims before the primary was killed, if it was. Takes all units back.
fn loss<'a>(c: &mut Client, buckets: impl Iterator<Item = (&'a Bucket, &'a Known)>, killed_ms: Option<i64>) -> Loss {
    let mut loss = Loss::default();
    let (mut newest_held, mut lost) = (0, Vec::new());
    for (bucket, Known { grants, .. }) in buckets.filter(|(bucket, _)| bucket.is_whole()) {
        assert_eq!(bucket.units(c), bucket.count, "{} is full", bucket.name);
        let lost_before = lost.len();
        for same in grants.chunk_by(|one, next| one == next) {
            let held = c.ok(args!["KG.REFUND", bucket.name, same.len(), "AT", same[0]]).int() as usize;
            lost.extend(&same[held..]);
            if held > 0 && killed_ms.is_some_and(|killed_ms| same[0] <= killed_ms) {
                newest_held = newest_held.max(same[0]);
            }
        }
        let (surplus, lost) = (grants.len().saturating_sub(bucket.count), lost.len() - lost_before);
        assert!(surplus <= lost, "{}: {surplus} units above the limit, {lost} claims lost", bucket.name);
        loss.granted += grants.len();
        loss.surplus += surplus;
    }
    loss.lost = lost.len();
    for at_ms in lost {
        assert!(killed_ms.is_some_and(|killed_ms| at_ms <= killed_ms), "one of {at_ms} is lost, kill {killed_ms:?}");
        assert!(newest_held <= at_ms, "one of {at_ms} is lost, one of {newest_held} is not");
    }
    loss
}

fn report(sut: &Sut, test: &str, Loss { granted, lost, surplus }: &Loss) {
    let name = &sut.name;
    eprintln!("{name}::failures::{test}: of {granted} claims granted {lost} lost, {surplus} above the limits");
}

/// Three primaries with a replica each, which takes over only when the test lets it: a machine short of breath must not look
/// like a failure.
fn cluster_of_six(sut: &Sut, node_timeout_ms: u32) -> Cluster {
    let node = || sut.setup().cluster(node_timeout_ms).with("cluster-require-full-coverage", "no");
    let replica = || node().with("cluster-replica-no-failover", "yes");
    Cluster::start([(); 3].map(|()| node()).into(), [(); 3].map(|()| replica()).into())
}

/// Kills a primary and waits until the cluster has put its replica into its place; when it was killed.
fn fail_over(cluster: &mut Cluster, n: usize) -> i64 {
    cluster.primaries[n].kill();
    let killed_ms = now_ms();
    let mut heir = cluster.replicas[n].client();
    heir.ok("CONFIG SET cluster-replica-no-failover no");
    eventually("the replica's promotion", || {
        let role = heir.info("replication", "role");
        let state = heir.ok("CLUSTER INFO").text();
        expect(role.as_deref() == Some("master") && state.contains("cluster_state:ok"), || format!("{role:?}, {state}"))
    });
    killed_ms
}

fn a_cluster_failover_loses_only_what_was_not_replicated(sut: &Sut) {
    let mut cluster = cluster_of_six(sut, 1000);
    for (doomed, part) in [(1, "killed"), (2, "killed without its replica")] {
        let buckets = many(part);
        let load = Load::start(&buckets, || client_of_cluster(&cluster));
        load.go_on(10);
        let surely_lost = doomed == 2;
        if surely_lost {
            // What it grants after it has been cut off its replica.
            let mut c = cluster.primaries[doomed].client();
            c.ok("ACL SETUSER default -psync -sync");
            c.ok("CLIENT KILL TYPE replica");
            load.go_on(3);
        }
        let killed_ms = fail_over(&mut cluster, doomed);
        load.go_on(5);
        let mut known = load.end();
        exhaust(&buckets, &mut known, client_of_cluster(&cluster));

        // No exception for those that roll: to fail over takes longer than their window.
        assert_rolling(&buckets, &known);
        for n in 0..3 {
            let serving = if (1..=doomed).contains(&n) { &cluster.replicas[n] } else { &cluster.primaries[n] };
            let here = |bucket: &Bucket| cluster.place_of(bucket.name.as_bytes()).1 == n;
            let here = buckets.iter().zip(&known).filter(|(bucket, _)| here(bucket));
            let loss = loss(&mut serving.client(), here, (n == doomed).then_some(killed_ms));
            assert!(loss.granted > 0, "no bucket on node {n}");
            if n == doomed {
                report(sut, &format!("a_cluster_failover_loses_only_what_was_not_replicated, {part}"), &loss);
                assert!(loss.surplus > 0 || !surely_lost, "a loss is seen where there is one");
            }
        }
    }
}

fn limits_hold_while_slots_move(sut: &Sut) {
    let cluster = cluster_of_six(sut, 15_000);
    let buckets = many("moved");
    let places: Vec<(i64, usize)> = buckets.iter().map(|bucket| cluster.place_of(bucket.name.as_bytes())).collect();
    let groups =
        [0, 1, 2].map(|n| places.iter().filter(|place| place.1 == n).map(|place| place.0).collect::<Vec<i64>>());
    let load = Load::start(&buckets, || client_of_cluster(&cluster));
    load.go_on(3);
    // Two thirds of the slots go on twice, key by key; then all of them, where the servers can do it by themselves.
    for round in 0..2 {
        for (n, slots) in groups.iter().enumerate() {
            cluster.move_slots(&slots[slots.len() / 3..], (n + round) % 3, (n + round + 1) % 3);
        }
    }
    load.go_on(3);
    for (n, slots) in groups.iter().enumerate() {
        let (staying, gone) = slots.split_at(slots.len() / 3);
        for (slots, source) in [(staying, n), (gone, (n + 2) % 3)] {
            if cluster.have_slots_moved(sut, slots, source, (source + 1) % 3) {
                load.go_on(1);
            }
        }
    }
    let mut known = load.end();
    exhaust(&buckets, &mut known, client_of_cluster(&cluster));

    for (bucket, Known { grants, unknown }) in buckets.iter().zip(&known) {
        assert_eq!(*unknown, 0, "{}: clients see nothing of a move", bucket.name);
        bucket.assert_allows(grants);
        assert!(!bucket.is_whole() || grants.len() == bucket.count, "{}: {} granted", bucket.name, grants.len());
    }
    for (primary, replica) in cluster.primaries.iter().zip(&cluster.replicas) {
        assert_become_equal(primary, replica);
    }
}

/// Waits until the two hold the same; keys may still expire.
fn assert_become_equal(primary: &Server, replica: &Server) {
    primary.wait_for(replica);
    eventually("the same state on both", || {
        let [ours, theirs] = [primary, replica].map(|server| {
            let mut c = server.client();
            // A replica in a cluster sends its readers to the primary unless told so; elsewhere it is an error.
            c.call("READONLY");
            c.state()
        });
        assert!(!ours.is_empty());
        expect(ours == theirs, || format!("{ours:#?}\n{theirs:#?}"))
    });
}

/// A server with an append-only file that no acknowledged write is missing from.
fn durable(setup: Setup) -> Setup {
    setup.with("appendonly", "yes").with("appendfsync", "always")
}

fn sentinels_fail_over_and_limits_hold(sut: &Sut) {
    let mut old = durable(sut.setup()).start();
    // Not to be promoted before the primary is dead, however slow the machine.
    let new = durable(sut.setup().replica_of(&old)).with("replica-priority", "0").start();
    old.wait_for(&new);
    let sentinels = [(); 3].map(|()| sut.setup().sentinel_of(&old).start());
    for sentinel in &sentinels {
        let mut c = sentinel.client();
        for period in ["info-period", "publish-period", "ask-period", "ping-period"] {
            c.ok(format!("SENTINEL DEBUG {period} 200"));
        }
        c.ok("SENTINEL DEBUG tilt-trigger 10000");
        eventually("the sentinel knowing everybody", || {
            let map = c.ok("SENTINEL MASTER it");
            let seen = ["num-other-sentinels", "num-slaves"].map(|field| map.field(field).text());
            expect(seen == ["2", "1"], || format!("{seen:?}"))
        });
    }
    let ports = sentinels.each_ref().map(Server::port);
    let primary_by = |sentinel: u16| {
        let mut c = Client::try_connect(sentinel).ok()?;
        c.ok("SENTINEL GET-MASTER-ADDR-BY-NAME it").list()[1].text().parse::<u16>().ok()
    };
    let buckets = many("watched");
    let load = || Load::start(&buckets, || client_of(move || primary_by(ports[rand::random_range(0..3)]), false));
    let first = load();
    first.go_on(10);
    old.kill();
    let killed_ms = now_ms();
    new.client().ok("CONFIG SET replica-priority 100");
    eventually("all sentinels naming the new primary", || {
        let named = ports.map(primary_by);
        expect(named == [Some(new.port()); 3], || format!("{named:?}, not {}", new.port()))
    });
    first.go_on(5);
    // The old one comes back with all that it had granted, to clients who have all been told of the new one.
    let mut known = first.end();
    let second = load();
    old.start_again();
    // Seen from the new one: sentinels end the connections to a server whose role they change.
    let (mut c, online) = (new.client(), format!("port={},state=online", old.port()));
    eventually("the old primary being a replica", || {
        let replicas = c.ok("INFO replication").text();
        expect(replicas.contains(&online), || replicas)
    });
    second.go_on(5);
    add(&mut known, second.end());
    exhaust(&buckets, &mut known, client_at(new.port()));

    assert_become_equal(&new, &old);
    assert_rolling(&buckets, &known);
    let loss = loss(&mut new.client(), buckets.iter().zip(&known), Some(killed_ms));
    report(sut, "sentinels_fail_over_and_limits_hold", &loss);
}

fn confirmed_claims_outlive_their_primary(sut: &Sut) {
    let buckets = few();
    let mut known = nothing(&buckets);
    let mut primary = sut.server();
    for _ in 0..3 {
        let replica = sut.setup().replica_of(&primary).start();
        primary.wait_for(&replica);
        let port = primary.port();
        let load = Load::start(&buckets, || client_of(move || Some(port), true));
        load.go_on(50);
        primary.kill();
        add(&mut known, load.end());
        primary = replica;
        let mut c = primary.client();
        c.ok("REPLICAOF NO ONE");
        for (bucket, Known { grants, unknown }) in buckets.iter().zip(&known) {
            let (units, confirmed) = (bucket.units(&mut c), grants.len());
            assert!((confirmed..=confirmed + unknown).contains(&units), "{units} units, {confirmed} and {unknown}");
        }
    }
    exhaust(&buckets, &mut known, client_at(primary.port()));
    for (bucket, Known { grants, .. }) in buckets.iter().zip(&known) {
        bucket.assert_allows(grants);
        assert_eq!(bucket.units(&mut primary.client()), bucket.count);
    }
}

fn acknowledged_claims_survive_kills(sut: &Sut) {
    let buckets = few();
    let mut known = nothing(&buckets);
    let mut server = durable(sut.setup()).start();
    let port = server.port();
    for kills in 1..=3 {
        let load = Load::start(&buckets, || client_at(port));
        load.go_on(50);
        server.kill();
        add(&mut known, load.end());
        let in_flight: usize = known.iter().map(|known| known.unknown).sum();
        assert!(in_flight <= kills * CLIENTS, "one a client: {in_flight}");
        server.start_again();
        let mut c = server.client();
        for (bucket, Known { grants, unknown }) in buckets.iter().zip(&known) {
            let (units, granted) = (bucket.units(&mut c), grants.len());
            assert!((granted..=granted + unknown).contains(&units), "{units} units, {granted} and {unknown}");
        }
    }
    exhaust(&buckets, &mut known, client_at(server.port()));
    for (bucket, Known { grants, unknown }) in buckets.iter().zip(&known) {
        bucket.assert_allows(grants);
        assert!(grants.len() + unknown >= bucket.count, "{}: {} and {unknown}", bucket.name, grants.len());
        assert_eq!(bucket.units(&mut server.client()), bucket.count);
    }
}

fn a_half_written_command_is_left_out(sut: &Sut) {
    let claim = ["KG.CLAIM whole:0 20 1h"];
    let transaction = ["MULTI", "KG.CLAIM whole:0 20 1h", "KG.CLAIM whole:1 20 1h 50 2h", "EXEC"];
    for commands in [&claim[..], &["KG.ADDKEY acme vendor some-secret"], &transaction] {
        for hundredths in [0, 30, 60, 99] {
            check_tail(sut, commands, |write| write[..1 + (write.len() - 2) * hundredths / 100].to_vec());
        }
    }
    check_tail(sut, &claim, |_| b"*3\r\n$8\r\nKG.APPLY\r\n$7\r\nwhole:0\r\n$40\r\n\0\xff\r\n*3\r\nKG".to_vec());
}

/// Commands of which only that is left in the file leave nothing behind.
fn check_tail(sut: &Sut, commands: &[&str], left: impl Fn(&[u8]) -> Vec<u8>) {
    let mut server = durable(sut.setup()).with("aof-load-truncated", "yes").start();
    let mut c = server.client();
    for _ in 0..2 {
        c.claim("whole:0 20 1h");
    }
    let (before, length) = (c.state(), fs::read(appended(&server)).unwrap().len());
    for command in commands {
        c.ok(*command);
    }
    server.kill();
    let bytes = fs::read(appended(&server)).unwrap();
    let tail = left(&bytes[length..]);
    fs::write(appended(&server), [&bytes[..length], &tail].concat()).unwrap();
    server.start_again();
    let mut c = server.client();
    assert_eq!(c.state(), before, "{commands:?} of which there was {}", tail.escape_ascii());
    if bytes[length..].starts_with(b"*1\r\n$5\r\nMULTI") {
        // Only the newest Valkey drops all of a transaction that lacks its end. The others leave its MULTI in the file and
        // would take what is written from now on for a part of it: a new file mends that.
        c.ok("BGREWRITEAOF");
        c.wait_for_background_work();
    }
    let bucket = [Bucket::whole(0, 20)];
    let mut known = nothing(&bucket);
    exhaust(&bucket, &mut known, client_at(server.port()));
    assert_eq!(known[0].grants.len(), 18, "the limit holds");
    c.ok("DEBUG DIGEST");
    let before = c.state();
    c.ok("DEBUG LOADAOF");
    assert_eq!(c.state(), before, "the file is whole again");
    server.restart();
    assert_eq!(server.client().state(), before);
}

/// The file that a server appends to.
fn appended(server: &Server) -> PathBuf {
    let files = fs::read_dir(server.directory().join("appendonlydir")).unwrap().map(|file| file.unwrap().path());
    let mut files: Vec<PathBuf> = files.filter(|path| path.extension().is_some_and(|end| end == "aof")).collect();
    assert_eq!(files.len(), 1, "one file is appended to: {files:?}");
    files.remove(0)
}
