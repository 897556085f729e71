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
    Client, Cluster, KEYRING, OTHER_KEYRING, Reply as _, Server, Sut, Terminal, args, contains, eventually, expect,
    free_port, nobody, server_tests, tool, tool_path,
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
    a_verb_keeps_to_its_own_kind_of_keys,
    a_secret_comes_also_if_nobody_reads_the_words_about_it,
    a_secret_that_is_no_text_is_whole_in_json,
    a_token_is_shown_as_json_to_programs,
    a_rekeying_that_fails_for_some_is_no_success,
    much_is_deleted_only_by_who_says_yes,
    filters_work_in_a_store_of_any_size,
    what_fails_half_way_says_how_far_it_came,
    a_server_that_is_not_ready_is_told_of,
    a_closed_pipe_is_no_failure,
    a_closed_pipe_makes_no_yes_of_a_no,
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
    assert_eq!(run(&server, &["vault", "delete", "--match", "--name", "openai", "--yes"], b"").stdout, b"450\n");
    assert_eq!(run(&server, &["key", "delete", "--all", "--yes"], b"").stdout, b"450\n");
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
        &["vault", "set", "1", "--secret=sk-first-example-secret"],
        &["vault", "add", "openai", "--password=sk-first-example-secret"],
        &["vault", "add", "openai", "-sk-first-example-secret"],
        &["vault", secret],
        &[secret],
    ] {
        let output = run(&server, words, b"");
        assert_eq!(output.status.code(), Some(2), "{words:?}");
        let said = [output.stdout, output.stderr].concat();
        assert!(!contains(&said, b"first-example"), "{words:?}: {}", String::from_utf8_lossy(&said));
        assert!(contains(&said, b"--help"), "{words:?}: {}", String::from_utf8_lossy(&said));
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

fn a_verb_keeps_to_its_own_kind_of_keys(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    c.ok("KG.ADDORG acme shop");
    c.ok("KG.NEWKEY acme shop web");
    c.ok("KG.ADDKEY acme openai sk-first-example-secret");
    let mut records = || [2, 3].map(|id| format!("{:?}", c.ok(args!["KG.GETKEY", "acme", id])));
    let before = records();
    let [an_api_key, a_vault_key] =
        ["no vault key has this id: an API key has", "no API key has this id: a vault key has"];
    for (words, said) in [
        (&["key", "show", "3"][..], a_vault_key),
        (&["key", "set", "3", "--label", "site"], a_vault_key),
        (&["key", "set", "3", "--active", "no"], a_vault_key),
        (&["key", "delete", "3"], a_vault_key),
        (&["key", "delete", "2", "3"], a_vault_key),
        (&["key", "revoke", "3"], "no such API key"),
        (&["key", "rotate", "3"], "no such API key"),
        (&["vault", "show", "2", "--json"], an_api_key),
        (&["vault", "set", "2", "--active", "no"], an_api_key),
        (&["vault", "set", "2", "--secret"], an_api_key),
        (&["vault", "delete", "3", "2"], an_api_key),
        (&["vault", "reveal", "2"], "no such vault key"),
        (&["vault", "feedback", "2", "rejected"], "no such vault key"),
        (&["vault", "settle", "2", "--at", "1", "--cost", "1"], "no such vault key"),
    ] {
        let output = run(&server, words, b"sk-second-example-secret");
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{words:?}: {output:?}");
        assert!(output.stdout.is_empty() && told.contains("NOSUCH") && told.contains(said), "{words:?}: {output:?}");
    }
    assert_eq!(run(&server, &["revoke-key", "3"], b"").status.code(), Some(1));
    assert_eq!(records(), before);
    assert_eq!(run(&server, &["key", "delete", "2", "99"], b"").stdout, b"1\n");
    assert_eq!(run(&server, &["vault", "delete", "3"], b"").stdout, b"1\n");
}

fn a_secret_comes_also_if_nobody_reads_the_words_about_it(sut: &Sut) {
    let server = sut.server();
    server.client().ok("KG.ADDORG acme shop");
    server.client().ok("KG.ADDKEY acme openai sk-first-example-secret");
    for words in [&["key", "new", "web", "--org", "shop"][..], &["vault", "acquire", "openai"]] {
        let output = tool(&server).args(words).stderr(nobody()).output().unwrap();
        assert_eq!(lines(&output), 1, "{words:?}");
    }
}

/// JSON is text, and a secret need not be.
fn a_secret_that_is_no_text_is_whole_in_json(sut: &Sut) {
    let server = sut.server();
    server.client().ok(args!["KG.ADDKEY", "acme", "openai", &[0xff_u8, 0, 0xfe]]);
    let shown =
        |words: &[&str]| -> serde_json::Value { serde_json::from_slice(&run(&server, words, b"").stdout).unwrap() };
    assert_eq!(shown(&["vault", "reveal", "1", "--json"]), serde_json::json!({"secret_base64": "/wD+"}));
    let acquired = shown(&["vault", "acquire", "openai", "--json"]);
    assert_eq!((&acquired["code"], &acquired["secret_base64"]), (&"ACQUIRED".into(), &"/wD+".into()), "{acquired}");
    assert!(acquired.get("secret").is_none(), "{acquired}");
}

fn a_token_is_shown_as_json_to_programs(sut: &Sut) {
    let server = sut.server();
    let new_token = ["token", "new", "--role", "write", "--name", "ci", "--json"];
    let output = run(&server, &new_token, b"");
    let shown: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(shown["token"].as_str().unwrap().starts_with("kga_") && output.stderr.is_empty(), "{output:?}");
    assert!(shown["line"].as_str().unwrap().starts_with("write ci sha256:"), "{output:?}");
}

fn a_rekeying_that_fails_for_some_is_no_success(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    for n in 1..=3 {
        c.ok(args!["KG.ADDKEY", "acme", "openai", format!("sk-example-{n}")]);
    }
    // A record in another's place does not open.
    c.ok("COPY {acme}:key:1 {acme}:key:2 REPLACE");
    let old: serde_json::Value = serde_json::from_str(KEYRING).unwrap();
    let mut both: serde_json::Value = serde_json::from_str(OTHER_KEYRING).unwrap();
    both["keys"].as_array_mut().unwrap().insert(0, old["keys"][0].clone());
    fs::write(server.keyring_file(), both.to_string()).unwrap();
    assert!(run(&server, &["keyring", "reload"], b"").status.success());
    for json in [&[][..], &["--json"]] {
        let output = run(&server, &[&["keyring", "rekey"][..], json].concat(), b"");
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(told.contains("1 vault keys did not open") && told.contains("keyring status"), "{told}");
    }
    assert_eq!(run(&server, &["vault", "delete", "2"], b"").stdout, b"1\n");
    for words in [["keyring", "stop"], ["keyring", "rekey"]] {
        let output = run(&server, &words, b"");
        assert!(output.status.success(), "{words:?}: {output:?}");
    }
}

fn much_is_deleted_only_by_who_says_yes(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    for n in 0..12 {
        c.ok(args!["KG.ADDKEY", "acme", "openai", format!("sk-example-{n}")]);
    }
    let all = ["vault", "delete", "--all"];
    let some = ["vault", "delete", "--match", "--name", "openai"];
    for words in [&all[..], &some] {
        let output = run(&server, words, b"yes\n");
        assert_eq!(output.status.code(), Some(2), "{words:?}: {output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("--yes"), "{words:?}: {output:?}");
    }
    for (answer, code) in [("n", 1), ("", 1), ("y", 0)] {
        assert_eq!(run(&server, &["vault", "count"], b"").stdout, b"12\n");
        let mut terminal = Terminal::start(&server, &all);
        terminal.answer("Delete 12 vault keys of the store acme? [y/N] ", answer);
        assert_eq!(terminal.end(), code, "{answer:?}");
    }
    let mut terminal = Terminal::start(&server, &some);
    terminal.expect("0");
    assert_eq!(terminal.end(), 0, "there is nothing to ask about");
    c.ok("KG.ADDKEY acme openai sk-example");
    assert_eq!(run(&server, &[&some[..], &["--yes"]].concat(), b"").stdout, b"1\n");
}

/// The module looks at a thousand records a call.
fn filters_work_in_a_store_of_any_size(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    for n in 0..2_500 {
        let source = if n % 2_000 == 0 { "few" } else { "many" };
        c.ok(args!["KG.ADDKEY", "acme", format!("vendor {n}"), format!("sk-example-{n}"), "SOURCE", source]);
    }
    c.refused("TOOMANY", "KG.COUNTKEYS acme TYPE vault SOURCE few");
    assert_eq!(run(&server, &["vault", "count", "--source", "few"], b"").stdout, b"2\n");
    assert_eq!(run(&server, &["vault", "count", "--source", "few", "--json"], b"").stdout, b"2\n");
    let deleting = ["vault", "delete", "--match", "--source", "few", "--yes"];
    assert_eq!(run(&server, &deleting, b"").stdout, b"2\n");
    assert_eq!(run(&server, &["vault", "count"], b"").stdout, b"2498\n");
}

fn what_fails_half_way_says_how_far_it_came(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    for n in 0..150 {
        c.ok(args!["KG.ADDKEY", "acme", "openai", format!("sk-example-{n}")]);
    }
    c.ok("HSET {acme}:key:120 r damaged");
    let output = run(&server, &["vault", "delete", "--all", "--yes"], b"");
    assert_eq!((output.status.code(), &*output.stdout), (Some(1), &b""[..]), "{output:?}");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(told.starts_with("100 were deleted before this:\nerror: "), "{told}");
    let ids: Vec<String> = (101..=150).map(|id| id.to_string()).collect();
    let words: Vec<&str> = ["vault", "delete"].into_iter().chain(ids.iter().map(String::as_str)).collect();
    assert_eq!(run(&server, &words, b"").status.code(), Some(1));
    assert_eq!(run(&server, &["vault", "count"], b"").stdout, b"50\n", "all ids are looked at before one is deleted");
}

fn a_server_that_is_not_ready_is_told_of(sut: &Sut) {
    let primary = sut.server();
    let told = |server: &Server, words: &[&str]| {
        let output = run(server, words, b"");
        let stdout = String::from_utf8(output.stdout).unwrap();
        (output.status.code().unwrap(), stdout, String::from_utf8(output.stderr).unwrap())
    };
    let replica = sut.setup().replica_of(&primary).start();
    primary.wait_for(&replica);
    let (code, stdout, _) = told(&replica, &["init"]);
    assert!(code == 1 && stdout.contains("a replica") && !stdout.contains("keyring"), "{stdout}");
    let bare = sut.setup().module_arguments(&[]).start();
    let (code, stdout, stderr) = told(&bare, &["init", "--json"]);
    assert!(code == 1 && stdout.is_empty() && stderr.contains("no keyring") && !stderr.contains("replica"), "{stderr}");
    let making = sut.setup().keyring_to_be_made("yes").start();
    assert_eq!(told(&making, &["init"]).0, 0, "the first key makes its keyring");
    assert_eq!(told(&primary, &["init"]).0, 0);
}

fn a_closed_pipe_is_no_failure(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    for n in 0..500 {
        c.ok(args!["KG.ADDORG", "acme", format!("{n} {}", "long".repeat(50))]);
    }
    let output = tool(&server).args(["org", "list"]).stdout(nobody()).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

fn a_closed_pipe_makes_no_yes_of_a_no(sut: &Sut) {
    let server = sut.server();
    server.client().ok("KG.ADDORG acme shop");
    server.client().ok("KG.BLOCKIP acme 192.0.2.7");
    server.client().ok("KG.CLAIM bucket 1 1h");
    for words in
        [&["ip", "check", "192.0.2.7"][..], &["limit", "remaining", "bucket", "1", "1h"], &["create-org", "shop"]]
    {
        for json in [&[][..], &["--json"]] {
            let output = tool(&server).args(words).args(json).stdout(nobody()).output().unwrap();
            assert_eq!(output.status.code(), Some(1), "{words:?} {json:?}");
        }
    }
}

fn a_secret_that_nobody_takes_is_told_of(sut: &Sut) {
    let server = sut.server();
    server.client().ok("KG.ADDORG acme shop");
    server.client().ok("KG.ADDKEY acme openai sk-first-example-secret");
    let new_token = ["token", "new", "--role", "read", "--name"];
    for words in [
        &["key", "new", "web", "--org", "shop"][..],
        &["key", "rotate", "3"],
        &["create-key", "--org", "shop", "--label", "web"],
        &["vault", "acquire", "openai"],
        &["vault", "reveal", "2"],
        &[&new_token[..], &["one"]].concat(),
        &[&new_token[..], &["two", "--file", "tokens"]].concat(),
    ] {
        for json in [&[][..], &["--json"]] {
            let output = tool(&server).args(words).args(json).stdout(nobody()).output().unwrap();
            assert_eq!(output.status.code(), Some(6), "{words:?}: {output:?}");
            let told = String::from_utf8_lossy(&output.stderr);
            assert!(told.contains("nobody took the secret"), "{words:?}: {output:?}");
            let is_a_new_one = ["new", "rotate", "--org"].contains(&words[1]) && words[0] != "token";
            assert_eq!(told.contains("rotate or delete it"), is_a_new_one, "{words:?}: {output:?}");
            let _ = fs::remove_file(server.directory().join("tokens"));
        }
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
