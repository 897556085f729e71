//! The command line as a user types it and sees it: each file of `tests/cmd` on a fresh server, and what such a file cannot say.
//!
//! What stands in the files is what was printed: `TRYCMD=overwrite` writes it anew, and leaves what `[..]` stands for.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use trycmd::TestCases;

use crate::harness::{
    Client, Cluster, KEYRING, OTHER_KEYRING, Reply as _, Server, Sut, args, eventually, expect, free_port,
    server_tests, tool, tool_path,
};

server_tests![
    organizations,
    api_keys,
    vault_keys,
    addresses,
    limits,
    usage,
    snapshots,
    keyrings,
    stores,
    what_keyguard_python_has,
    what_shells_ask_for,
    failures_have_exit_codes_and_advice,
    a_server_without_the_module_is_told_of,
    every_file_of_cases_is_run,
    lists_go_on_to_their_end,
    no_secret_is_taken_as_an_argument,
    a_secret_comes_back_byte_by_byte,
    a_closed_pipe_is_no_failure,
    a_secret_that_nobody_takes_is_told_of,
    a_wait_may_take_longer_than_an_answer,
    what_waits_does_so_as_long_as_the_server_answers,
    a_node_stands_for_its_cluster,
];

/// The files of `tests/cmd`.
const FILES: [&str; 13] = [
    "errors",
    "ip",
    "key",
    "keyguard_python",
    "keyring",
    "limit",
    "no_module",
    "org",
    "shell",
    "snapshot",
    "store",
    "usage",
    "vault",
];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cmd")
}

/// Types what stands in the file, and sees what stands in it. `sh` is there for pipes.
fn check(server: &Server, file: &str) {
    check_with(server, file, &[]);
}

fn check_with(server: &Server, file: &str, environment: &[(&str, &str)]) {
    assert!(FILES.contains(&file));
    let tool = tool_path();
    let path = format!("{}:/usr/bin:/bin", tool.parent().unwrap().display());
    let cases = TestCases::new();
    cases.register_bin("keyguard", &*tool).register_bin("sh", Path::new("/bin/sh"));
    cases.env("KEYGUARD_URL", format!("redis://127.0.0.1:{}", server.port())).env("KEYGUARD_STORE", "acme");
    cases.env("NO_COLOR", "1").env("COLUMNS", "100").env("TZ", "UTC").env("PATH", path);
    cases.env("WORK", server.directory().display().to_string());
    environment.iter().for_each(|&(name, value)| {
        cases.env(name, value);
    });
    cases.case(folder().join(file).with_extension("trycmd"));
    cases.run();
}

fn organizations(sut: &Sut) {
    check(&sut.server(), "org");
}

fn api_keys(sut: &Sut) {
    check(&sut.server(), "key");
}

fn vault_keys(sut: &Sut) {
    check(&sut.server(), "vault");
}

fn addresses(sut: &Sut) {
    check(&sut.server(), "ip");
}

fn limits(sut: &Sut) {
    check(&sut.server(), "limit");
}

fn usage(sut: &Sut) {
    let server = sut.setup().counting_usage().start();
    let mut c = server.client();
    c.ok("KG.ADDORG acme shop");
    let raw = c.ok("KG.NEWKEY acme shop web SCOPES read").list()[1].text();
    assert_eq!(c.code(args!["KG.AUTH", "acme", raw]), "VALID");
    c.ok("KG.LOG acme 2 PATH /orders METHOD GET STATUS 200 LATENCY 7 IP 192.0.2.7");
    let entries = |c: &mut Client| c.ok("KG.USAGE acme").list()[1].list().len();
    eventually("the call in the log", || expect(entries(&mut c) == 1, || "no entry".to_owned()));
    assert_eq!(c.code(args!["KG.AUTH", "acme", raw, "SCOPE", "write"]), "INSUFFICIENT_SCOPE");
    eventually("the refusal in the log", || expect(entries(&mut c) == 2, || "one entry".to_owned()));
    check(&server, "usage");
}

fn snapshots(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    c.ok("KG.ADDORG acme shop");
    c.ok("KG.NEWKEY acme shop web");
    check(&server, "snapshot");
}

/// The second key comes into the file after the start.
fn keyrings(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    c.ok("KG.ADDKEY acme openai sk-first-example-secret");
    let mut both: serde_json::Value = serde_json::from_str(KEYRING).unwrap();
    let other: serde_json::Value = serde_json::from_str(OTHER_KEYRING).unwrap();
    both["keys"].as_array_mut().unwrap().push(other["keys"][0].clone());
    fs::write(server.keyring_file(), both.to_string()).unwrap();
    check(&server, "keyring");
}

fn stores(sut: &Sut) {
    check(&sut.server(), "store");
}

fn what_keyguard_python_has(sut: &Sut) {
    check(&sut.server(), "keyguard_python");
}

fn what_shells_ask_for(sut: &Sut) {
    check(&sut.server(), "shell");
}

fn failures_have_exit_codes_and_advice(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    c.ok("ACL SETUSER guest on >example -@all +kg.auth ~*");
    let address = format!("127.0.0.1:{}", server.port());
    let [guest, stranger] = ["guest:example", "guest:wrong"].map(|user| format!("redis://{user}@{address}"));
    let nowhere = format!("redis://127.0.0.1:{}", free_port());
    check_with(&server, "errors", &[("GUEST", &guest), ("STRANGER", &stranger), ("NOWHERE", &nowhere)]);
}

fn a_server_without_the_module_is_told_of(sut: &Sut) {
    check(&sut.setup().without_module().start(), "no_module");
}

fn every_file_of_cases_is_run(_: &Sut) {
    let entries = fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path());
    let found: BTreeSet<String> = entries.map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned()).collect();
    assert_eq!(found, FILES.into_iter().map(str::to_owned).collect());
}

fn run(server: &Server, arguments: &[&str], stdin: &[u8]) -> Output {
    let mut command = tool(server);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // One that takes nothing may have ended already.
    let _ = child.stdin.take().unwrap().write_all(stdin);
    child.wait_with_output().unwrap()
}

fn lines(output: &Output) -> usize {
    assert!(output.status.success(), "{output:?}");
    output.stdout.iter().filter(|&&byte| byte == b'\n').count()
}

fn lists_go_on_to_their_end(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    c.ok("KG.ADDORG acme shop");
    for n in 0..450 {
        c.ok(args!["KG.NEWKEY", "acme", "shop", format!("key {n}")]);
        c.ok(args!["KG.ADDKEY", "acme", "openai", format!("sk-example-{n}")]);
        c.ok(args!["KG.ADDORG", "acme", format!("org {n}")]);
        c.ok(args!["KG.BLOCKIP", "acme", format!("198.51.{}.{}", n / 250, n % 250)]);
    }
    for (list, count) in
        [(["key", "list"], 450), (["vault", "list"], 450), (["org", "list"], 451), (["ip", "list"], 450)]
    {
        // The heading is one.
        assert_eq!(lines(&run(&server, &list, b"")), count + 1, "{list:?}");
        for max in [0_usize, 1, 200, 201, 1000] {
            let max_text = max.to_string();
            let output = run(&server, &[list[0], list[1], "--json", "--max", &max_text], b"");
            let rows: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).unwrap();
            assert_eq!(rows.len(), max.min(count), "{list:?} --max {max}");
        }
    }
    assert_eq!(lines(&run(&server, &["vault", "list", "--sort", "created_at desc"], b"")), 451);
    assert_eq!(run(&server, &["vault", "delete", "--match", "--name", "openai"], b"").stdout, b"450\n");
    assert_eq!(run(&server, &["key", "delete", "--all"], b"").stdout, b"450\n");
}

fn no_secret_is_taken_as_an_argument(sut: &Sut) {
    let server = sut.server();
    let secret = "sk-first-example-secret";
    for words in [
        &["vault", "add", "openai", secret][..],
        &["vault", "add", "openai", "--secret", secret],
        &["vault", "set", "1", "--secret", secret],
        &["vault", "find", secret],
        &["key", "check", secret],
        &["key", "auth", secret],
        &["key", "revoke", "--key", secret],
        &["completions", "bash", secret],
    ] {
        assert_eq!(run(&server, words, b"").status.code(), Some(2), "{words:?}");
    }
    for words in [&["vault", "add", "openai"][..], &["vault", "find"], &["key", "check"]] {
        let output = run(&server, words, b"\n");
        assert_eq!(output.status.code(), Some(2), "{words:?}: nothing on standard input");
    }
}

fn a_secret_comes_back_byte_by_byte(sut: &Sut) {
    let server = sut.server();
    for secret in [&b"sk-example"[..], b" spaces \t", b"two\nlines\n", &[0xff, 0, 0xfe], "\u{e9}".as_bytes()] {
        let mut told = secret.to_vec();
        told.push(b'\n');
        let added = run(&server, &["vault", "add", "openai"], &told);
        assert!(added.status.success(), "{added:?}");
        let id = String::from_utf8(added.stdout).unwrap();
        assert_eq!(run(&server, &["vault", "reveal", id.trim()], b"").stdout, told);
    }
}

fn a_closed_pipe_is_no_failure(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    for n in 0..500 {
        c.ok(args!["KG.ADDORG", "acme", format!("{n} {}", "long".repeat(50))]);
    }
    let mut child = tool(&server).args(["org", "list"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

fn a_secret_that_nobody_takes_is_told_of(sut: &Sut) {
    let server = sut.server();
    server.client().ok("KG.ADDORG acme shop");
    for words in [&["key", "new", "web", "--org", "shop"][..], &["key", "new", "web", "--org", "shop", "--json"]] {
        let mut child = tool(&server).args(words).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(6), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("nobody took the secret"), "{output:?}");
    }
}

/// An answer is waited for two seconds, unless it was asked to wait.
fn a_wait_may_take_longer_than_an_answer(sut: &Sut) {
    let server = sut.server();
    let claim = ["limit", "claim", "vendor", "1", "2500ms"];
    assert!(run(&server, &claim, b"").status.success());
    let output = run(&server, &[&claim[..], &["--block", "1m"]].concat(), b"");
    assert!(output.status.success(), "{output:?}");
}

/// Nobody waits for the answer of a server that gives none to anybody.
fn what_waits_does_so_as_long_as_the_server_answers(sut: &Sut) {
    let server = sut.server();
    let run = |window: &str| {
        let claim = ["limit", "claim", "vendor", "1", window];
        assert!(run(&server, &claim, b"").status.success());
        let mut command = tool(&server);
        command.args([&claim[..], &["--block", "5m"]].concat()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().unwrap()
    };
    // Longer than it takes to notice that nothing comes.
    let output = run("9s").wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    server.client().ok("DEL vendor");
    let waiting = run("10m");
    let mut c = server.client();
    eventually("the claim waiting", || {
        expect(c.info_number("clients", "blocked_clients") == 1, || "it does not".to_owned())
    });
    let pid = server.client().info_number("server", "process_id").to_string();
    assert!(Command::new("kill").args(["-STOP", &pid]).status().unwrap().success());
    let output = waiting.wait_with_output();
    assert!(Command::new("kill").args(["-CONT", &pid]).status().unwrap().success());
    let output = output.unwrap();
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    assert!(String::from_utf8(output.stderr).unwrap().contains("does not answer"));
}

fn a_node_stands_for_its_cluster(sut: &Sut) {
    let setups = [(); 2].map(|()| sut.setup().cluster(15_000));
    let cluster = Cluster::start(setups.into(), Vec::new());
    let node = &cluster.primaries[0];
    for store in ["a", "b", "c", "d"] {
        let store = ["--store", store];
        for (words, stdin) in [
            (&["org", "add", "shop"][..], &b""[..]),
            (&["key", "new", "web", "--org", "shop"], b""),
            (&["vault", "add", "openai"], b"sk-example"),
            (&["vault", "acquire", "openai", "--block", "1s"], b""),
            (&["keyring", "rekey"], b""),
            (&["snapshot", "write", "it.sqlite"], b""),
        ] {
            let output = run(node, &[&store[..], words].concat(), stdin);
            assert!(output.status.success(), "{words:?}: {output:?}");
        }
        assert_eq!(run(node, &[&store[..], &["key", "count"]].concat(), b"").stdout, b"1\n");
    }
    // A keyring is each node's own.
    let records: i64 = cluster
        .primaries
        .iter()
        .map(|node| {
            let output = run(node, &["keyring", "status", "--json"], b"");
            let keys: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
            keys[0]["records"].as_i64().unwrap()
        })
        .sum();
    assert_eq!(records, 8);
}
