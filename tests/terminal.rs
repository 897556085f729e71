//! What the operator sees on a terminal: `keyguard doctor`, the menu, the live view.

use std::{
    fs,
    io::Write,
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::unix::fs::PermissionsExt,
    process::{Output, Stdio},
    thread,
};

use redis::{Parser, Value};
use serde_json::Value as Json;

use crate::harness::{
    OTHER_KEYRING, Reply, Server, Sut, Terminal, args, contains, eventually, expect, free_port, now_ms, populate,
    server_tests, tool,
};

server_tests![
    the_doctor_finds_all_well,
    the_doctor_shows_people_a_line_for_each_check,
    the_doctor_tells_of_a_server_that_is_not_there,
    the_doctor_tells_of_a_server_without_the_module,
    the_doctor_tells_of_a_missing_keyring,
    the_doctor_tells_of_keys_that_the_keyring_lacks,
    the_doctor_tells_of_records_under_an_older_key,
    the_doctor_tells_of_a_keyring_file_that_others_may_read,
    the_doctor_tells_of_a_policy_that_evicts,
    the_doctor_tells_of_data_that_no_disk_has,
    the_doctor_looks_at_what_a_user_may_see,
    the_doctor_tells_of_a_replica_that_lags_and_whose_clock_is_off,
    the_menu_does_what_each_of_its_entries_says,
    the_menu_takes_its_answers_from_a_pipe,
    the_menu_goes_on_after_an_error,
];

/// A server that a doctor has nothing to say against.
fn well(sut: &Sut) -> Server {
    let server = sut.setup().with("appendonly", "yes").start();
    // Those that have this setting.
    server.client().call("CONFIG SET hide-user-data-from-log yes");
    server
}

/// What the doctor ends with and finds.
fn doctor(server: &Server, arguments: &[&str]) -> (i32, Vec<Json>) {
    let mut command = tool(server);
    let output = command.args(["doctor", "--json"]).args(arguments).output().expect("it runs");
    let findings = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    (output.status.code().unwrap(), findings)
}

/// The findings of a check: state, detail and advice.
fn of(findings: &[Json], check: &str) -> Vec<(String, String, String)> {
    let text = |finding: &Json, name: &str| finding[name].as_str().unwrap_or_default().to_owned();
    let about = findings.iter().filter(|finding| finding["check"] == check);
    about.map(|finding| (text(finding, "state"), text(finding, "detail"), text(finding, "advice"))).collect()
}

/// That a check found this, the only time or once among others.
#[track_caller]
fn assert_found(findings: &[Json], check: &str, state: &str, detail: &str, advice: &str) {
    let found = of(findings, check);
    let fits =
        |found: &(String, String, String)| found.0 == state && found.1.contains(detail) && found.2.contains(advice);
    assert!(found.iter().any(fits), "{check}: {found:#?}");
}

fn the_doctor_finds_all_well(sut: &Sut) {
    let server = well(sut);
    let mut c = server.client();
    populate(&mut c);
    let (code, findings) = doctor(&server, &["--strict"]);
    for finding in &findings {
        assert_eq!(finding["state"], "ok", "{finding}");
        assert!(finding["advice"].is_null(), "{finding}");
    }
    assert_eq!(code, 0);
    for check in [
        "server",
        "module",
        "keyring",
        "keyring file",
        "eviction",
        "memory",
        "persistence",
        "permissions",
        "replication",
        "snapshots",
        "waiting",
        "store",
        "usage",
        "sizes",
    ] {
        assert_eq!(of(&findings, check).len(), 1, "{check}: {findings:#?}");
    }
    let version = if sut.is_valkey() { "Valkey " } else { "Redis " };
    assert_found(&findings, "server", "ok", version, "");
    assert_found(&findings, "module", "ok", env!("CARGO_PKG_VERSION"), "");
    assert_found(&findings, "store", "ok", "acme has 3 organizations", "");
}

fn the_doctor_shows_people_a_line_for_each_check(sut: &Sut) {
    let server = sut.server();
    let Output { status, stdout, stderr } = tool(&server).arg("doctor").output().unwrap();
    let (shown, said) = (String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap());
    let line =
        |check: &str| shown.lines().find(|line| line.get(10..).is_some_and(|rest| rest.starts_with(check))).unwrap();
    assert!(line("module").starts_with("ok "), "{shown}");
    assert!(line("persistence").starts_with("problem "), "{shown}");
    assert!(shown.contains("-> CONFIG SET appendonly yes"), "{shown}");
    assert!(!shown.contains('\u{1b}'), "colours are for terminals: {shown:?}");
    assert_eq!(status.code(), Some(1), "{shown}");
    assert!(said.contains("1 problems"), "{said}");
    // There is no such store yet, which is worth a warning and no more.
    server.client().ok("CONFIG SET appendonly yes");
    let findings = doctor(&server, &[]);
    assert_eq!(findings.0, 0, "{findings:?}");
    assert_eq!(doctor(&server, &["--strict"]).0, 1);
}

fn the_doctor_tells_of_a_server_that_is_not_there(sut: &Sut) {
    let mut server = sut.server();
    server.kill();
    let output = tool(&server).arg("doctor").output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    assert!(contains(&output.stderr, b"is it running"), "{output:?}");
}

fn the_doctor_tells_of_a_server_without_the_module(sut: &Sut) {
    let server = sut.setup().without_module().start();
    let output = tool(&server).arg("doctor").output().unwrap();
    assert_eq!(output.status.code(), Some(4), "{output:?}");
    assert!(contains(&output.stderr, b"MODULE LOAD"), "{output:?}");
}

fn the_doctor_tells_of_a_missing_keyring(sut: &Sut) {
    let server = sut.setup().module_arguments(&[]).with("appendonly", "yes").start();
    let (code, findings) = doctor(&server, &[]);
    assert_eq!(code, 1);
    assert_found(&findings, "keyring", "problem", "NOKEYRING", "keyguard.keyring-file");
    assert_found(&findings, "keyring file", "ok", "none is set", "");
}

fn the_doctor_tells_of_keys_that_the_keyring_lacks(sut: &Sut) {
    let mut server = sut.setup().with("appendonly", "yes").with("appendfsync", "always").start();
    let fingerprint = {
        let mut c = server.client();
        c.ok("KG.ADDKEY acme vendor some-secret");
        c.ok("KG.KEYRING STATUS").list()[0].field("fingerprint").text()
    };
    server.kill();
    fs::write(server.keyring_file(), OTHER_KEYRING).unwrap();
    server.start_again();
    let (code, findings) = doctor(&server, &[]);
    assert_eq!(code, 1);
    assert_found(&findings, "keyring", "problem", &format!("{fingerprint} is missing: 1 records"), "RELOAD");
}

fn the_doctor_tells_of_records_under_an_older_key(sut: &Sut) {
    let server = well(sut);
    let mut c = server.client();
    c.ok("KG.ADDKEY acme vendor some-secret");
    let mut keyring: Json = serde_json::from_str(&fs::read_to_string(server.keyring_file()).unwrap()).unwrap();
    let newer: Json = serde_json::from_str(OTHER_KEYRING).unwrap();
    keyring["keys"].as_array_mut().unwrap().push(newer["keys"][0].clone());
    fs::write(server.keyring_file(), keyring.to_string()).unwrap();
    c.ok("KG.KEYRING RELOAD");
    let (code, findings) = doctor(&server, &[]);
    assert_eq!(code, 0, "work to be done is no problem yet");
    assert_found(&findings, "keyring", "warning", "1 records are still under older keys", "KG.REKEY acme");
    eventually("the rekeying being done", || {
        let state = c.ok("KG.REKEY acme").field("state").text();
        expect(state == "done", || state)
    });
    let (_, findings) = doctor(&server, &[]);
    assert_found(&findings, "keyring", "ok", "2 in force", "");
}

fn the_doctor_tells_of_a_keyring_file_that_others_may_read(sut: &Sut) {
    let server = well(sut);
    for (mode, state) in [(0o640, "problem"), (0o604, "problem"), (0o400, "ok"), (0o600, "ok")] {
        fs::set_permissions(server.keyring_file(), fs::Permissions::from_mode(mode)).unwrap();
        let (code, findings) = doctor(&server, &[]);
        assert_eq!(code, i32::from(state == "problem"), "{mode:o}");
        let advice = if state == "ok" { "" } else { "chmod 600" };
        assert_found(&findings, "keyring file", state, &format!("{mode:04o}"), advice);
    }
    fs::remove_file(server.keyring_file()).unwrap();
    let (code, findings) = doctor(&server, &[]);
    assert_eq!(code, 0);
    assert_found(&findings, "keyring file", "not_looked_at", "No such file", "");
}

fn the_doctor_tells_of_a_policy_that_evicts(sut: &Sut) {
    let server = well(sut);
    let mut c = server.client();
    c.ok("CONFIG SET maxmemory-policy allkeys-lru");
    let (code, findings) = doctor(&server, &[]);
    assert_eq!(code, 0);
    assert_found(&findings, "eviction", "warning", "allkeys-lru", "noeviction");
    c.ok("CONFIG SET maxmemory 100mb");
    let (code, findings) = doctor(&server, &[]);
    assert_eq!(code, 1);
    assert_found(&findings, "eviction", "problem", "allkeys-lru takes keys away at 100.0 MiB", "noeviction");
}

fn the_doctor_tells_of_data_that_no_disk_has(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    for (save, append_only, state, detail) in [
        ("", "no", "problem", "neither"),
        ("3600 1", "no", "warning", "saves alone (save 3600 1)"),
        ("3600 1", "yes", "ok", "appendfsync everysec"),
    ] {
        c.ok(args!["CONFIG", "SET", "save", save]);
        c.ok(args!["CONFIG", "SET", "appendonly", append_only]);
        let (code, findings) = doctor(&server, &[]);
        assert_eq!(code, i32::from(state == "problem"));
        assert_found(&findings, "persistence", state, detail, "");
    }
    c.wait_for_background_work();
    c.ok("CONFIG SET appendfsync no");
    assert_found(&doctor(&server, &[]).1, "persistence", "warning", "appendfsync no", "everysec");
}

fn the_doctor_looks_at_what_a_user_may_see(sut: &Sut) {
    let server = well(sut);
    let mut c = server.client();
    populate(&mut c);
    let as_user = |name: &str| {
        let url = format!("redis://{name}:pw@127.0.0.1:{}", server.port());
        doctor(&server, &["--url", &url])
    };
    // One who may see nothing: nothing is said to be well, and nothing to be a problem.
    c.ok("ACL SETUSER nobody on >pw -@all ~acme");
    let (code, findings) = as_user("nobody");
    assert_eq!(code, 0, "{findings:#?}");
    for check in
        ["server", "module", "keyring", "keyring file", "eviction", "persistence", "permissions", "store", "sizes"]
    {
        assert_found(&findings, check, "not_looked_at", "", "");
    }
    // One for a service alone, who may ask about itself.
    c.ok("ACL SETUSER gate on >pw -@all +kg.auth +acl|whoami +acl|dryrun +info ~acme");
    let (code, findings) = as_user("gate");
    assert_eq!(code, 0, "{findings:#?}");
    assert_found(&findings, "eviction", "ok", "noeviction", "");
    assert_found(&findings, "keyring", "not_looked_at", "", "");
    assert_found(&findings, "permissions", "warning", "user gate may not call KG.ACQUIRE, KG.LOG", "ACL SETUSER");
    // One of another store.
    c.ok("ACL SETUSER other on >pw +@all ~spare ~{spare}:*");
    assert_found(&as_user("other").1, "permissions", "warning", "may not call KG.AUTH", "");
    // One who is not let in.
    let url = format!("redis://gate:wrong@127.0.0.1:{}", server.port());
    let output = tool(&server).args(["doctor", "--url", &url]).output().unwrap();
    assert_eq!(output.status.code(), Some(5), "{output:?}");
}

fn the_doctor_tells_of_a_replica_that_lags_and_whose_clock_is_off(sut: &Sut) {
    let primary = well(sut);
    let replica = sut.setup().replica_of(&primary).with("appendonly", "yes").start();
    primary.wait_for(&replica);
    let (code, findings) = doctor(&primary, &[]);
    assert_eq!(code, 0, "{findings:#?}");
    assert_found(&findings, "replication", "ok", &format!("127.0.0.1:{} was heard of", replica.port()), "");
    assert_found(&findings, "clock", "ok", &format!("127.0.0.1:{} is ", replica.port()), "");
    assert_found(
        &doctor(&replica, &[]).1,
        "replication",
        "ok",
        &format!("a replica of 127.0.0.1:{}", primary.port()),
        "",
    );

    // One that asked for everything and says nothing more, on a machine whose clock is three seconds ahead.
    let port = server_whose_clock_is_ahead(3_000);
    let mut c = primary.client();
    c.ok("REPLCONF listening-port 1 capa eof capa psync2".replace("port 1", &format!("port {port}")));
    c.ok("REPLCONF ip-address 127.0.0.1");
    c.send("PSYNC ? -1");
    let mut admin = primary.client();
    eventually("the replica being known", || {
        let info = admin.ok("INFO replication").text();
        expect(info.contains(&format!("port={port},")), || info)
    });
    let (code, findings) = doctor(&primary, &[]);
    assert_eq!(code, 0, "{findings:#?}");
    assert_found(&findings, "replication", "warning", &format!("127.0.0.1:{port} is not online yet"), "log");
    let clock = of(&findings, "clock").into_iter().find(|found| found.1.contains(&port.to_string())).unwrap();
    let off: i64 = clock.1.split(' ').find_map(|word| word.parse().ok()).unwrap();
    assert!(clock.0 == "warning" && (2_900..3_100).contains(&off), "{clock:?}");

    let mut primary = primary;
    primary.kill();
    eventually("the replica noticing", || {
        let found = of(&doctor(&replica, &[]).1, "replication");
        expect(found[0].0 == "problem" && found[0].1.contains("no link"), || format!("{found:?}"))
    });
}

/// Something that takes connections as a server does, and knows the time only, by so many milliseconds too late.
fn server_whose_clock_is_ahead(by_ms: i64) -> u16 {
    let port = free_port();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
    let serve = move |mut stream: TcpStream| {
        let mut reader = stream.try_clone().unwrap();
        let mut parser = Parser::new();
        while let Ok(Value::Array(words)) = parser.parse_value(&mut reader) {
            let now = now_ms() + by_ms;
            let answer = match words[0].text().to_uppercase().as_str() {
                "TIME" => {
                    let (seconds, micros) = ((now / 1000).to_string(), (now % 1000 * 1000).to_string());
                    format!("*2\r\n${}\r\n{seconds}\r\n${}\r\n{micros}\r\n", seconds.len(), micros.len())
                }
                "HELLO" => "%1\r\n$5\r\nproto\r\n:3\r\n".to_owned(),
                _ => "+OK\r\n".to_owned(),
            };
            if stream.write_all(answer.as_bytes()).is_err() {
                return;
            }
        }
    };
    // It ends with the process.
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || serve(stream));
        }
    });
    port
}

/// Of the menu, the question what to do.
const CHOICE: &str = "? for help]: ";

/// One more key by the menu; the answers in the order of its questions.
fn add_by_menu(terminal: &mut Terminal, answers: [&str; 6], secret: &str) {
    terminal.answer(CHOICE, "a");
    for (question, answer) in ["Name", "Source", "Login", "Batch", "Expiry", "Active"].into_iter().zip(answers) {
        terminal.expect(question);
        terminal.answer(": ", answer);
    }
    terminal.answer("Secret (not shown): ", secret);
    terminal.expect("Added as ");
}

fn the_menu_does_what_each_of_its_entries_says(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    let mut terminal = Terminal::start(&server, &["menu"]);
    let secrets = ["first-of-the-secrets", "second-of-the-secrets", "third-of-the-secrets"];

    // Add: the last answers are the defaults of the next.
    add_by_menu(&mut terminal, ["vendor", "billing", "ops@example.com", "b1", "30d", ""], secrets[0]);
    add_by_menu(&mut terminal, ["", "", "-", "", "60", "no"], secrets[1]);
    let (first, second) = (c.ok("KG.GETKEY acme 1"), c.ok("KG.GETKEY acme 2"));
    for (field, expected) in [("name", "vendor"), ("source", "billing"), ("batch", "b1")] {
        assert_eq!([&first, &second].map(|key| key.field(field).text()), [expected; 2]);
    }
    assert_eq!(first.field("login").text(), "ops@example.com");
    assert!(second.get("login").is_none(), "{second:?}");
    let days = |key: &Value| (key.field("expires_at").int() - now_ms() + 3_600_000) / 86_400_000;
    assert_eq!([&first, &second].map(days), [30, 60]);
    assert_eq!([&first, &second].map(|key| key.field("active").int()), [1, 0]);
    c.ok("KG.ADDKEY acme elsewhere of-nobody-here");

    // List: all keys. Session: those made here.
    terminal.answer(CHOICE, "l");
    terminal.expect("vendor");
    terminal.expect("elsewhere");
    terminal.answer(CHOICE, "s");
    terminal.expect("vendor");
    terminal.answer(CHOICE, "u");
    terminal.expect("total");
    terminal.expect(CHOICE);
    let screen = terminal.screen();
    // The questions after both: this one, and that for the usability between.
    let session = screen.rsplit(CHOICE.trim_end()).nth(2).unwrap();
    assert!(session.contains("vendor") && !session.contains("elsewhere"), "{session}");

    // Mark active by the secret; mark inactive and get the next, with its secret only when asked for.
    terminal.line("m");
    terminal.answer("mark active", "");
    terminal.answer("Secret (not shown): ", secrets[1]);
    terminal.expect("2 is active");
    terminal.answer(CHOICE, "n");
    terminal.answer("mark inactive", "1");
    terminal.expect("1 is inactive");
    terminal.expect("vendor");
    terminal.answer("Show its secret", "");
    terminal.expect(CHOICE);
    for secret in secrets {
        assert!(!terminal.has_shown(secret), "{secret} was shown");
    }
    terminal.line("m");
    terminal.answer("mark active", "1");
    terminal.expect("1 is active");
    terminal.answer(CHOICE, "n");
    terminal.answer("mark inactive", "1");
    terminal.answer("Show its secret", "yes");
    terminal.expect(secrets[1]);

    // Reveal.
    terminal.answer(CHOICE, "v");
    terminal.answer("reveal", "1");
    terminal.expect(secrets[0]);

    // Delete, and not.
    terminal.answer(CHOICE, "d");
    terminal.answer("delete", "3");
    terminal.answer("Delete it", "");
    terminal.expect("Nothing is deleted");
    assert_eq!(c.ok("KG.COUNTKEYS acme").int(), 3);
    terminal.answer(CHOICE, "d");
    terminal.answer("delete", "3");
    terminal.answer("Delete it", "yes");
    terminal.expect("Deleted: 1");
    assert_eq!(c.ok("KG.COUNTKEYS acme").int(), 2);

    // Remove what has expired.
    terminal.answer(CHOICE, "r");
    terminal.expect("No key has expired");
    c.ok("KG.ADDKEY acme short a-short-secret EXPIREAT 1");
    terminal.answer(CHOICE, "r");
    terminal.expect("short");
    terminal.answer("Delete these 1", "");
    terminal.expect("Nothing is deleted");
    terminal.answer(CHOICE, "r");
    terminal.answer("Delete these 1", "yes");
    terminal.expect("Deleted: 1");
    assert_eq!(c.ok("KG.COUNTKEYS acme").int(), 2);
    assert!(!terminal.has_shown(secrets[2]) && !terminal.has_shown("a-short-secret"));

    // Ctrl-D is the end.
    terminal.expect(CHOICE);
    terminal.keys("\u{4}");
    assert_eq!(terminal.end(), 0);
}

/// The menu with these lines in a pipe: its exit code, what it shows and what it complains of.
fn piped(server: &Server, lines: &[&str]) -> (i32, String, String) {
    let mut command = tool(server);
    let mut child =
        command.arg("menu").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(lines.join("\n").as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn the_menu_takes_its_answers_from_a_pipe(sut: &Sut) {
    let server = sut.server();
    let secret = " with blanks that count ";
    let (code, shown, said) = piped(&server, &["add", "vendor", "", "", "", "", "", secret, "list", "q"]);
    assert_eq!((code, said.as_str()), (0, ""), "{shown}");
    assert!(shown.contains("Added as 1.") && shown.contains("vendor"), "{shown}");
    assert!(!shown.contains(secret), "{shown}");
    assert_eq!(server.client().ok("KG.REVEAL acme 1").text(), secret);
    // An end in the midst of a question leaves too, and does nothing.
    let (code, shown, said) = piped(&server, &["d", "1"]);
    assert_eq!((code, said.as_str()), (0, ""), "{shown}");
    assert_eq!(server.client().ok("KG.COUNTKEYS acme").int(), 1);
}

fn the_menu_goes_on_after_an_error(sut: &Sut) {
    let mut server = sut.server();
    let lines = [
        "v",
        "7",
        "a",
        "vendor",
        "",
        "",
        "",
        "soon",
        "",
        "some-secret",
        "a",
        "",
        "",
        "",
        "",
        "-",
        "",
        "some-secret",
        "q",
    ];
    let (code, shown, said) = piped(&server, &lines);
    assert_eq!(code, 0, "{shown}{said}");
    assert!(said.contains("NOSTORE") || said.contains("NOSUCH"), "{said}");
    assert!(said.contains("ERR"), "an expiry that is none: {said}");
    assert!(shown.contains("[soon]") && shown.contains("Added as 1."), "{shown}");
    assert!(!shown.contains("some-secret") && !said.contains("some-secret"), "{shown}{said}");
    let mut terminal = Terminal::start(&server, &["menu"]);
    terminal.expect(CHOICE);
    server.kill();
    terminal.line("u");
    terminal.expect("the server does not answer");
    server.start_again();
    eventually("the menu finding the server again", || {
        terminal.line("u");
        terminal.expect(CHOICE);
        let screen = terminal.screen();
        // It has lost everything, and says so.
        expect(screen.contains("NOSTORE"), || screen)
    });
    terminal.line("q");
    assert_eq!(terminal.end(), 0);
    // Without a server there is nothing to ask about.
    server.kill();
    assert_eq!(piped(&server, &["q"]).0, 3);
}
