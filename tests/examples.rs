//! The examples, run as they stand against a server and a vendor that is as strict as a real one.

use std::{
    collections::HashSet,
    io::{BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Output, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use crate::harness::{Client, Reply, Server, Sut, args, now_ms, python, server_tests};

server_tests![gateway_workers_answer_every_prompt_within_every_limit, a_gateway_worker_gives_up_for_a_reason];

/// What a key of the vendor may do.
struct Contract {
    secret: &'static str,
    /// None: it is revoked.
    limit: Option<(usize, i64)>,
}

/// A call that the vendor has seen.
#[derive(Debug, Clone)]
struct Seen {
    /// The id of the key in the vault, and the instant of the claim, as the worker names them.
    id: i64,
    claimed_at_ms: i64,
    received_ms: i64,
    /// 0: the connection was cut instead of an answer.
    status: u16,
    /// What the window of the key has to hold for it.
    tokens: i64,
}

/// An HTTP server with a limit for each key, which fails once for some prompts.
struct Vendor {
    port: u16,
    seen: Arc<Mutex<Vec<Seen>>>,
    done: Arc<AtomicBool>,
}

impl Vendor {
    fn start(contracts: &'static [Contract]) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let port = listener.local_addr().unwrap().port();
        let (seen, done) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let vendor = Self { port, seen: Arc::clone(&seen), done: Arc::clone(&done) };
        let failed = Arc::new(Mutex::new(HashSet::new()));
        thread::spawn(move || {
            for connection in listener.incoming().map_while(|connection| connection.ok()) {
                if done.load(Ordering::Relaxed) {
                    return;
                }
                let (seen, failed) = (Arc::clone(&seen), Arc::clone(&failed));
                // A worker that is gone in the midst of its call is nothing to the vendor.
                thread::spawn(move || drop(serve(connection, contracts, &seen, &failed)));
            }
        });
        vendor
    }

    fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

impl Drop for Vendor {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
    }
}

/// Answers one call.
fn serve(
    connection: TcpStream,
    contracts: &[Contract],
    seen: &Mutex<Vec<Seen>>,
    failed: &Mutex<HashSet<String>>,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(connection);
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        if line.trim_end().is_empty() {
            break;
        }
        head.push(line.trim_end().to_owned());
    }
    let header = |name: &str| {
        let value =
            head.iter().find_map(|line| line.split_once(": ").filter(|(found, _)| found.eq_ignore_ascii_case(name)));
        value.map(|(_, value)| value.to_owned()).unwrap_or_default()
    };
    let mut body = vec![0; header("Content-Length").parse().unwrap_or(0)];
    reader.read_exact(&mut body)?;
    let body: serde_json::Value = serde_json::from_slice(&body)?;
    let prompt = body["messages"][0]["content"].as_str().unwrap_or_default().to_owned();
    let authorization = header("Authorization");
    let contract = contracts.iter().find(|contract| authorization == format!("Bearer {}", contract.secret));
    let request_id = header("X-Client-Request-Id");
    let (id, claimed_at_ms) = request_id.split_once('-').expect("the id of the key and the instant of the claim");

    // Looking and counting are one step: else two calls at once could both be the last that fits.
    let mut all = seen.lock().unwrap();
    let received_ms = now_ms();
    let mut call = Seen {
        id: id.parse().unwrap(),
        claimed_at_ms: claimed_at_ms.parse().unwrap(),
        received_ms,
        status: 200,
        tokens: 0,
    };
    let served = |window_ms: i64| {
        let within =
            |other: &&Seen| other.id == call.id && other.status == 200 && other.received_ms > received_ms - window_ms;
        all.iter().filter(within).count()
    };
    let number: i64 = prompt.split(' ').next_back().and_then(|number| number.parse().ok()).unwrap_or(0);
    let estimate = prompt.len() as i64 / 4 + body["max_tokens"].as_i64().unwrap_or(0);
    (call.status, call.tokens) = match contract.and_then(|contract| contract.limit) {
        None => (401, 0),
        Some((count, window_ms)) if served(window_ms) >= count => (429, 0),
        Some(_) if prompt.contains("bad") => (400, 0),
        // Whether these counted the worker cannot know.
        Some(_) if prompt.contains("cut") && failed.lock().unwrap().insert(prompt.clone()) => (0, estimate),
        Some(_) if prompt.contains("busy") && failed.lock().unwrap().insert(prompt.clone()) => (503, estimate),
        Some(_) => (200, 100 + number),
    };
    let status = call.status;
    let answer = serde_json::json!({
        "choices": [{"message": {"role": "assistant", "content": format!("answer to {prompt}")}}],
        "usage": {"total_tokens": call.tokens},
    });
    all.push(call);
    drop(all);
    if status == 0 {
        return Ok(());
    }
    let body = if status == 200 { answer.to_string() } else { "{}".to_owned() };
    let retry = if status == 429 { "Retry-After: 1\r\n" } else { "" };
    let length = body.len();
    write!(
        reader.get_mut(),
        "HTTP/1.1 {status} x\r\nContent-Length: {length}\r\n{retry}Connection: close\r\n\r\n{body}"
    )
}

/// Starts a worker on these prompts.
fn worker(server: &Server, vendor_port: u16, settings: &[(&str, &str)], prompts: &[String]) -> Child {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/llm_gateway.py");
    let mut child = Command::new(python())
        .arg(script)
        .env("REDIS_URL", format!("redis://127.0.0.1:{}", server.port()))
        .env("VENDOR_URL", format!("http://127.0.0.1:{vendor_port}"))
        .env("PATIENCE", "60")
        .env("no_proxy", "*")
        .envs(settings.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("Python runs");
    // Fewer than a pipe holds: nobody waits for the other.
    child.stdin.take().unwrap().write_all(prompts.join("\n").as_bytes()).expect("the worker reads");
    child
}

/// Runs a worker to its end.
fn run(server: &Server, vendor_port: u16, settings: &[(&str, &str)], prompts: &[&str]) -> (bool, String, String) {
    let prompts: Vec<String> = prompts.iter().map(|prompt| (*prompt).to_owned()).collect();
    let Output { status, stdout, stderr } = worker(server, vendor_port, settings, &prompts).wait_with_output().unwrap();
    let [stdout, stderr] = [stdout, stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    (status.success(), stdout, stderr)
}

/// A line of MONITOR: the instant in milliseconds, and the words of the command.
fn monitored(line: &str) -> (i64, Vec<String>) {
    let (instant, rest) = line.split_once(' ').expect("an instant");
    let (seconds, micros) = instant.split_once('.').expect("seconds and microseconds");
    let at_ms = seconds.parse::<i64>().unwrap() * 1000 + micros.parse::<i64>().unwrap() / 1000;
    (at_ms, rest.split('"').skip(1).step_by(2).map(str::to_owned).collect())
}

/// The tokens that the windows of a key hold, of a batch of its own.
fn tokens_held(c: &mut Client, id: i64, batch: &str) -> i64 {
    c.ok(format!("KG.SETKEY llm {id} ACTIVE yes LIMIT 1000000 1h UNIT tokens"));
    let reply = c.ok(format!("KG.ACQUIRE llm openai BATCH {batch} COST 0 BLOCK 30s"));
    assert_eq!((reply.field("code").text(), reply.field("limit").int()), ("ACQUIRED".to_owned(), 1_000_000));
    1_000_000 - reply.field("remaining").int()
}

/// The vault's limits are stricter than these, so that calls that took longer on their way than others are not refused; but with
/// `tight` the vendor is stricter than anybody was told.
const CONTRACTS: &[Contract] = &[
    Contract { secret: "sk-revoked-0123456789", limit: None },
    Contract { secret: "sk-tight-0123456789", limit: Some((2, 500)) },
    Contract { secret: "sk-first-0123456789", limit: Some((4, 300)) },
    Contract { secret: "sk-second-0123456789", limit: Some((4, 300)) },
];
const BATCHES: [&str; 4] = ["revoked", "tight", "first", "second"];
const REVOKED: i64 = 1;
const TIGHT: i64 = 2;
const FIRST: i64 = 3;
const SECOND: i64 = 4;

/// Claims of one key are booked up to so far ahead of the clock, each at an instant of its own.
const AHEAD_MS: i64 = 50;

fn gateway_workers_answer_every_prompt_within_every_limit(sut: &Sut) {
    const WORKERS: usize = 4;
    let vendor = Vendor::start(CONTRACTS);
    let server = sut.server();
    let mut c = server.client();
    for (contract, batch) in CONTRACTS.iter().zip(BATCHES) {
        let requests = if batch == "tight" { "100 1m" } else { "4 600ms" };
        let limits = format!("LIMIT {requests} LIMIT 100000 1h UNIT tokens");
        c.ok(format!("KG.ADDKEY llm openai {} BATCH {batch} {limits}", contract.secret));
    }
    let mut monitor = server.client();
    monitor.ok("MONITOR");
    let prompt = |number: usize| match number {
        5 => "cut 5".to_owned(),
        9 => "busy 9".to_owned(),
        _ => format!("prompt {number}"),
    };
    let prompts: Vec<String> = (0..40).map(prompt).collect();
    let workers: Vec<Child> =
        prompts.chunks(prompts.len() / WORKERS).map(|share| worker(&server, vendor.port, &[], share)).collect();
    let mut answers = Vec::new();
    for worker in workers {
        let output = worker.wait_with_output().unwrap();
        let complaints = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && complaints.is_empty(), "{complaints}");
        answers.extend(String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned));
    }
    answers.sort();
    let mut expected: Vec<String> = prompts.iter().map(|prompt| format!("answer to {prompt}")).collect();
    expected.sort();
    assert_eq!(answers, expected, "every prompt is answered, once");

    let seen = vendor.seen();
    let of = |id: i64| seen.iter().filter(move |call| call.id == id);
    let claims = |id: i64| {
        let mut claims: Vec<i64> = of(id).map(|call| call.claimed_at_ms).collect();
        claims.sort_unstable();
        claims
    };
    for id in [REVOKED, FIRST, SECOND] {
        let claims = claims(id);
        let fifth = claims.iter().zip(claims.iter().skip(4)).find(|(first, fifth)| *fifth - *first < 600);
        assert_eq!(fifth, None, "key {id} is claimed more than four times in 600 ms: {claims:?}");
    }
    assert!([FIRST, SECOND].iter().all(|id| of(*id).count() > 0));

    c.ok("SET the end");
    let mut feedback: Vec<(i64, Vec<String>)> = Vec::new();
    loop {
        let (at_ms, words) = monitored(&monitor.receive().text());
        match &*words[0] {
            "SET" if words[1] == "the" => break,
            "KG.FEEDBACK" => feedback.push((at_ms, words)),
            _ => {}
        }
    }
    let told = |what: &str| {
        let told = feedback.iter().filter(|(_, words)| words[3] == what);
        told.map(|(at_ms, words)| (*at_ms, words[2].parse::<i64>().unwrap())).collect::<Vec<_>>()
    };
    let throttled = told("THROTTLED");
    assert!(throttled.iter().any(|(_, id)| *id == TIGHT), "the vendor is stricter with it than the vault knows");
    assert_eq!(throttled.len(), seen.iter().filter(|call| call.status == 429).count());
    for (from_ms, id) in throttled {
        // MONITOR tells of a command a little after it was decided.
        let cooling = from_ms + AHEAD_MS..from_ms + 1000 - AHEAD_MS;
        let used = claims(id).into_iter().find(|at_ms| cooling.contains(at_ms));
        assert_eq!(used, None, "key {id} is used while it cools down, from {from_ms} on");
    }
    let rejected = told("REJECTED");
    assert!(of(REVOKED).all(|call| call.status == 401) && (1..=WORKERS).contains(&rejected.len()));
    assert!(rejected.iter().all(|(_, id)| *id == REVOKED));
    let late = claims(REVOKED).into_iter().find(|at_ms| *at_ms > rejected[0].0 + AHEAD_MS);
    assert_eq!(late, None, "a key that was rejected is used no more");
    let record = c.ok(args!["KG.GETKEY", "llm", REVOKED]);
    assert_eq!(record.field("rejected").text(), "the vendor answered 401");
    assert_eq!(["active", "usable"].map(|field| record.field(field).int()), [0, 0]);

    for (id, batch) in (1..).zip(BATCHES) {
        let used: i64 = of(id).map(|call| call.tokens).sum();
        assert_eq!(tokens_held(&mut c, id, batch), used, "the tokens of key {id}");
    }
}

fn a_gateway_worker_gives_up_for_a_reason(sut: &Sut) {
    const OPEN: &[Contract] = &[Contract { secret: "sk-open-0123456789", limit: Some((1000, 1)) }];
    let vendor = Vendor::start(OPEN);
    let server = sut.server();
    let mut c = server.client();
    // Nobody listens there, and nobody is about to.
    let nobody_port = 1;
    let gives_up = |outcome: (bool, String, String), answers: &str, why: &str| {
        let (success, stdout, stderr) = outcome;
        assert!(!success && stdout == answers, "{stdout}{stderr}");
        assert!(stderr.contains(why), "{stderr}");
        assert!(!stderr.contains("Traceback") && !stderr.contains("sk-"), "{stderr}");
    };
    c.ok(format!("KG.ADDKEY llm openai {} BATCH b LIMIT 90000 1h UNIT tokens", OPEN[0].secret));
    // A prompt that the vendor does not take costs nothing, and the next one is answered.
    let outcome = run(&server, vendor.port, &[], &["a bad one", "another 7"]);
    gives_up(outcome, "answer to another 7\n", "'a bad one': the vendor answered 400");
    assert_eq!(tokens_held(&mut c, 1, "b"), 107);
    // A vendor that is down. Whether it counted the calls is unknown, so the claims stand, and the key stays in use.
    let outcome = run(&server, nobody_port, &[("PATIENCE", "0.3")], &["hello"]);
    gives_up(outcome, "", "'hello': no answer in time");
    assert_eq!(c.ok("KG.GETKEY llm 1").field("usable").int(), 1);
    assert_eq!(tokens_held(&mut c, 1, "b"), 107 + 501);
    // More than any key may ever take, and no key at all.
    c.ok("KG.SETKEY llm 1 LIMIT 500 1h UNIT tokens");
    gives_up(run(&server, vendor.port, &[], &["hello"]), "", "'hello': no key: RATE_LIMITED");
    c.ok("KG.SETKEY llm 1 ACTIVE no");
    gives_up(run(&server, vendor.port, &[("WAIT", "50ms")], &["hello"]), "", "'hello': no key: NONE_USABLE");
    // A secret that no header can hold is not shown.
    c.ok(args!["KG.SETKEY", "llm", 1, "ACTIVE", "yes", "CLEAR", "limits", "SECRET", "sk-with\na-line"]);
    gives_up(run(&server, vendor.port, &[("PATIENCE", "0.3")], &["hello"]), "", "'hello': no answer in time");
    // One that the vendor does not know is out of use at once, and the worker waits for another.
    c.ok("KG.SETKEY llm 1 SECRET sk-unknown");
    gives_up(run(&server, vendor.port, &[("WAIT", "50ms")], &["hello"]), "", "'hello': no key: NONE_USABLE");
    assert_eq!(c.ok("KG.GETKEY llm 1").field("rejected").text(), "the vendor answered 401");
}
