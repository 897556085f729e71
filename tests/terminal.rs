//! What the operator sees on a terminal: `keyguard doctor`, the menu, the live view.

use std::{
    fs,
    io::{Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::unix::fs::PermissionsExt,
    process::{Command, Output, Stdio},
    thread,
};

use redis::{Parser, Value};
use serde_json::Value as Json;

use crate::harness::{
    Cluster, KEYRING, OTHER_KEYRING, Reply, Server, Sut, Terminal, args, contains, eventually, expect, free_port,
    nobody, now_ms, populate, server_tests, tool,
};

server_tests![
    the_doctor_finds_all_well,
    the_doctor_shows_people_a_line_for_each_check,
    the_doctor_tells_of_a_server_that_is_not_there,
    the_doctor_tells_of_a_server_without_the_module,
    the_doctor_tells_of_a_missing_keyring,
    the_doctor_tells_of_keys_that_the_keyring_lacks,
    the_doctor_tells_of_records_under_an_older_key,
    the_doctor_has_a_rekeying_that_failed_run_again_and_nothing_deleted,
    the_doctor_tells_of_a_keyring_file_that_others_may_read,
    the_doctor_finds_a_keyring_file_from_the_server_s_directory_on,
    the_doctor_looks_at_no_file_of_a_server_in_a_container,
    the_doctor_tells_of_a_policy_that_evicts,
    the_doctor_tells_of_data_that_no_disk_has,
    the_doctor_tells_of_a_disk_that_takes_nothing,
    the_doctor_tells_of_a_replica_without_a_disk,
    the_doctor_tells_of_failed_imports_until_one_succeeds,
    the_doctor_tells_of_a_cluster_that_is_not_whole,
    the_doctor_looks_at_every_primary_of_a_cluster,
    the_doctor_looks_at_what_a_user_may_see,
    the_doctor_names_each_command_that_a_user_lacks_and_the_rule_that_gives_it,
    the_doctor_tells_of_a_replica_that_lags_and_whose_clock_is_off,
    the_menu_does_what_each_of_its_entries_says,
    the_menu_takes_its_answers_from_a_pipe,
    the_menu_goes_on_after_an_error,
    the_menu_finds_expired_keys_among_more_than_a_reply_holds,
    the_menu_deletes_those_alone_that_it_has_shown,
    the_menu_touches_vault_keys_only,
    the_menu_asks_again_for_what_is_no_text,
    the_menu_ends_where_nobody_reads,
    a_signal_at_a_hidden_prompt_gives_the_terminal_back,
    top_shows_the_rate_of_calls_made_meanwhile,
    top_outlives_its_server_and_another_size,
    top_gives_the_terminal_back_by_whatever_key_it_ends,
    top_prints_one_frame_for_scripts,
    top_shows_what_a_user_may_see,
    what_only_people_read_has_no_json,
    records_cannot_disguise_what_people_read,
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
    fs::write(server.keyring_file(), keyring_of(&[KEYRING, OTHER_KEYRING])).unwrap();
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

/// The keyring of these files together, the newest key last.
fn keyring_of(files: &[&str]) -> String {
    let keys = files.iter().flat_map(|file| {
        let keyring: Json = serde_json::from_str(file).unwrap();
        keyring["keys"].as_array().unwrap().clone()
    });
    serde_json::json!({ "version": 1, "keys": keys.collect::<Vec<_>>() }).to_string()
}

fn the_doctor_has_a_rekeying_that_failed_run_again_and_nothing_deleted(sut: &Sut) {
    let server = well(sut);
    let mut c = server.client();
    let commands: Vec<_> = (1..=9).map(|n| args!["KG.ADDKEY", "acme", "vendor", format!("secret-{n}")]).collect();
    c.pipeline(&commands);
    // One that does not open, whatever the keyring holds.
    c.ok("COPY {acme}:key:4 {acme}:key:3 REPLACE");
    fs::write(server.keyring_file(), keyring_of(&[KEYRING, OTHER_KEYRING])).unwrap();
    c.ok("KG.KEYRING RELOAD");
    // Nothing can be written from the moment on at which it begins: it stays where it is.
    c.pipeline(&[args!["KG.REKEY", "acme"], args!["CLIENT", "PAUSE", "60000", "WRITE"]]);
    let (_, findings) = doctor(&server, &[]);
    assert_found(&findings, "rekeying", "ok", "KG.REKEY is under way", "");
    c.ok("CLIENT UNPAUSE");
    eventually("the rekeying having ended", || {
        let state = c.ok("KG.REKEY acme").field("state").text();
        expect(state == "done", || state)
    });
    let (code, findings) = doctor(&server, &[]);
    assert_eq!(code, 0, "{findings:#?}");
    assert_found(&findings, "rekeying", "warning", "could not open 1 vault keys; run it again", "KG.KEYRING RELOAD");
    let advice = findings.iter().filter_map(|finding| finding["advice"].as_str());
    let advised: Vec<&str> = advice.filter(|advice| advice.contains("DELKEY") || advice.contains("DELSTORE")).collect();
    assert!(advised.is_empty(), "{advised:?}");
    // Without it there is nothing more to be done again.
    c.ok("KG.DELKEY acme 3");
    assert!(of(&doctor(&server, &[]).1, "rekeying").is_empty());
}

fn the_doctor_tells_of_a_keyring_file_that_others_may_read(sut: &Sut) {
    let server = well(sut);
    let mut c = server.client();
    for mode in [0o640, 0o604, 0o700, 0o500, 0o200, 0o440, 0o000, 0o400, 0o600] {
        fs::set_permissions(server.keyring_file(), fs::Permissions::from_mode(mode)).unwrap();
        // What the module itself says of it.
        let is_taken = c.call("KG.KEYRING RELOAD") == Value::Okay;
        let (code, findings) = doctor(&server, &[]);
        assert_eq!(code, i32::from(!is_taken), "{mode:o}");
        let (state, advice) = if is_taken { ("ok", "") } else { ("problem", "chmod 600") };
        assert_found(&findings, "keyring file", state, &format!("{mode:04o}"), advice);
        assert_eq!(is_taken, [0o400, 0o600].contains(&mode), "{mode:o}");
    }
    fs::remove_file(server.keyring_file()).unwrap();
    let (code, findings) = doctor(&server, &[]);
    assert_eq!(code, 0);
    assert_found(&findings, "keyring file", "not_looked_at", "No such file", "");
}

fn the_doctor_finds_a_keyring_file_from_the_server_s_directory_on(sut: &Sut) {
    let server = sut.setup().module_arguments(&["keyring-file", "keyring", "usage", "no"]).start();
    fs::set_permissions(server.keyring_file(), fs::Permissions::from_mode(0o640)).unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let output = tool(&server).args(["doctor", "--json"]).current_dir(elsewhere.path()).output().unwrap();
    let findings: Vec<Json> = serde_json::from_slice(&output.stdout).unwrap();
    let path = server.keyring_file().display().to_string();
    assert_found(
        &findings,
        "keyring file",
        "problem",
        &format!("{path} has the mode 0640"),
        &format!("chmod 600 {path}"),
    );
    // Not to be seen from here, as for a user who may not know the directory.
    server.client().ok("ACL SETUSER some on >pw +@all ~* -config");
    let url = format!("redis://some:pw@127.0.0.1:{}", server.port());
    assert_found(&doctor(&server, &["--url", &url]).1, "keyring file", "warning", "unknown", "+config|get");
}

fn the_doctor_looks_at_no_file_of_a_server_in_a_container(sut: &Sut) {
    let server = well(sut);
    // One that others may read: of the server's own file that would be a problem.
    fs::set_permissions(server.keyring_file(), fs::Permissions::from_mode(0o640)).unwrap();
    let url = format!("redis://127.0.0.1:{}", as_if_in_a_container(&server));
    let (code, findings) = doctor(&server, &["--url", &url]);
    assert_eq!(code, 0, "{findings:#?}");
    assert_found(&findings, "keyring file", "not_looked_at", "was not looked at", "");
    assert!(!format!("{findings:?}").contains("chown"), "{findings:#?}");
}

/// A way to the server on which its process is the first of its machine, as it is in a container.
fn as_if_in_a_container(server: &Server) -> u16 {
    let (port, to) = (free_port(), server.port());
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
    let id = server.client().info("server", "process_id").unwrap();
    let (real, first) = (format!("process_id:{id}"), format!("process_id:{:<1$}", "1", id.len()));
    let pass = move |mut from: TcpStream, mut to: TcpStream| {
        let mut buffer = [0; 1 << 16];
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            let text = &mut buffer[..length];
            if let Some(at) = text.windows(real.len()).position(|window| window == real.as_bytes()) {
                text[at..at + real.len()].copy_from_slice(first.as_bytes());
            }
            if to.write_all(text).is_err() {
                return;
            }
        }
    };
    // It ends with the process.
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let server = TcpStream::connect((Ipv4Addr::LOCALHOST, to)).unwrap();
            for (from, to) in [(&client, &server), (&server, &client)] {
                let (from, to, pass) = (from.try_clone().unwrap(), to.try_clone().unwrap(), pass.clone());
                thread::spawn(move || pass(from, to));
            }
        }
    });
    port
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
        ("3600 1", "yes", "ok", "appendfsync everysec: a crash of the machine loses a second or two"),
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
    c.ok("CONFIG SET appendfsync always");
    assert_eq!(of(&doctor(&server, &[]).1, "persistence")[0].1, "append-only file, appendfsync always");
    c.ok("CONFIG SET no-appendfsync-on-rewrite yes");
    assert_found(
        &doctor(&server, &[]).1,
        "persistence",
        "warning",
        "not while it is rewritten",
        "no-appendfsync-on-rewrite no",
    );
}

fn the_doctor_tells_of_a_disk_that_takes_nothing(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    // Where the file is to be, something else is.
    fs::create_dir(server.directory().join("dump.rdb")).unwrap();
    for (save, advice) in [("3600 1", "MISCONF"), ("", "BGSAVE tries again")] {
        c.ok(args!["CONFIG", "SET", "save", save]);
        c.ok("BGSAVE");
        c.wait_for_background_work();
        let (code, findings) = doctor(&server, &[]);
        assert_eq!(code, 1);
        assert_found(&findings, "persistence", "problem", "the last save failed", advice);
        let refused = c.call("KG.ADDKEY acme vendor some-secret").is_error();
        let advised = of(&findings, "persistence").remove(0).2;
        assert_eq!(refused, advised.contains("MISCONF"), "{advised}");
    }
    let server = sut.setup().files_at_most(1 << 20).with("appendonly", "yes").start();
    let mut c = server.client();
    c.call(args!["SET", "large", "x".repeat(2 << 20)]);
    eventually("the append-only file being full", || {
        let found = of(&doctor(&server, &[]).1, "persistence").remove(0);
        let is_told = found.0 == "problem" && found.1.contains("the last write") && found.2.contains("MISCONF");
        expect(is_told, || format!("{found:?}"))
    });
}

fn the_doctor_tells_of_a_replica_without_a_disk(sut: &Sut) {
    let primary = well(sut);
    let replica = sut.setup().replica_of(&primary).start();
    primary.wait_for(&replica);
    let (code, findings) = doctor(&replica, &[]);
    assert_eq!(code, 0, "{findings:#?}");
    assert_found(&findings, "persistence", "warning", "until its primary has sent it everything", "appendonly yes");
}

fn the_doctor_tells_of_failed_imports_until_one_succeeds(sut: &Sut) {
    let server = well(sut);
    let mut c = server.client();
    populate(&mut c);
    let imported = |file: &str, state: &str| {
        let mut c = server.client();
        c.ok(format!("KG.IMPORT acme FROM {file} FORMAT snapshot"));
        eventually("the end of an import", || {
            let now = c.ok("KG.IMPORT acme STATUS").field("state").text();
            expect(now == state, || now)
        });
    };
    imported("none.sqlite", "failed");
    let (code, findings) = doctor(&server, &[]);
    assert_eq!(code, 0, "{findings:#?}");
    assert_found(&findings, "snapshots", "warning", "the last import of acme failed", "repeat it");
    c.ok("KG.SNAPSHOT acme TO it.sqlite");
    eventually("the end of a snapshot", || {
        let now = c.ok("KG.SNAPSHOT acme STATUS").field("state").text();
        expect(now == "done", || now)
    });
    imported("it.sqlite", "done");
    assert_found(&doctor(&server, &[]).1, "snapshots", "ok", "1 imports failed before, or of other stores", "");
    // Of another store, nothing is known of what failed.
    assert_found(
        &doctor(&server, &["--store", "spare"]).1,
        "snapshots",
        "warning",
        "of other stores than spare",
        "KG.IMPORT",
    );
}

fn the_doctor_tells_of_a_cluster_that_is_not_whole(sut: &Sut) {
    let server = sut.setup().cluster(15_000).with("appendonly", "yes").start();
    let mut c = server.client();
    // Half of it: the other slots have no node.
    c.ok("CLUSTER ADDSLOTSRANGE 0 8191");
    let (code, findings) = doctor(&server, &[]);
    assert_eq!(code, 1);
    assert_found(&findings, "cluster", "problem", "not whole", "CLUSTERDOWN");
    c.ok("CLUSTER ADDSLOTSRANGE 8192 16383");
    eventually("the cluster being whole", || {
        let (_, findings) = doctor(&server, &[]);
        expect(of(&findings, "cluster")[0].0 == "ok", || format!("{findings:#?}"))
    });
    c.ok("KG.ADDKEY acme vendor some-secret");
    let (code, findings) = doctor(&server, &[]);
    assert_eq!(code, 0, "{findings:#?}");
    assert_found(&findings, "store", "ok", "1 vault keys", "");
}

fn the_doctor_looks_at_every_primary_of_a_cluster(sut: &Sut) {
    let node = || sut.setup().cluster(15_000).with("appendonly", "yes");
    let mut cluster = Cluster::start(vec![node(), node(), node()], Vec::new());
    let (code, findings) = doctor(&cluster.primaries[0], &[]);
    assert_eq!(code, 0, "{findings:#?}");
    assert_found(&findings, "cluster", "ok", "3 of its nodes were looked at", "");
    let mut names: Vec<String> = cluster.primaries.iter().map(|node| format!("127.0.0.1:{}", node.port())).collect();
    let of_nodes = |findings: &[Json], check: &str| -> Vec<(String, String)> {
        let of_check = findings.iter().filter(|finding| finding["check"] == check);
        of_check.map(|of| (of["node"].as_str().unwrap().to_owned(), of["state"].as_str().unwrap().to_owned())).collect()
    };
    names.sort();
    for check in ["server", "keyring", "eviction", "persistence"] {
        let mut looked_at = of_nodes(&findings, check);
        looked_at.sort();
        assert_eq!(looked_at, names.iter().map(|name| (name.clone(), "ok".to_owned())).collect::<Vec<_>>(), "{check}");
    }
    // What is wrong with another one is said to be of that one.
    let other = format!("127.0.0.1:{}", cluster.primaries[1].port());
    cluster.primaries[1].client().ok("CONFIG SET maxmemory-policy allkeys-lru");
    let (_, findings) = doctor(&cluster.primaries[0], &[]);
    assert!(of_nodes(&findings, "eviction").contains(&(other.clone(), "warning".to_owned())), "{findings:#?}");
    let shown = tool(&cluster.primaries[0]).arg("doctor").output().unwrap().stdout;
    assert!(String::from_utf8(shown).unwrap().contains(&format!("{other}: allkeys-lru")));
    cluster.primaries[1].kill();
    let (code, findings) = doctor(&cluster.primaries[0], &[]);
    assert_eq!(code, 1);
    assert_eq!(
        of_nodes(&findings, "server").iter().filter(|found| **found == (other.clone(), "problem".to_owned())).count(),
        1
    );
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
        assert_found(&findings, check, "warning", "unknown", "");
    }
    assert!(findings.iter().all(|finding| finding["state"] == "warning"), "{findings:#?}");
    // One for a service alone, who may ask about itself.
    c.ok("ACL SETUSER gate on >pw -@all +kg.auth +acl|whoami +acl|dryrun +info ~acme");
    let (code, findings) = as_user("gate");
    assert_eq!(code, 0, "{findings:#?}");
    assert_found(&findings, "eviction", "ok", "noeviction", "");
    assert_found(&findings, "keyring", "warning", "unknown", "");
    assert_found(
        &findings,
        "permissions",
        "warning",
        "user gate may not call KG.ACQUIRE, KG.ADDKEY",
        "ACL SETUSER gate ",
    );
    // One of another store.
    c.ok("ACL SETUSER other on >pw +@all ~spare ~{spare}:*");
    assert_found(
        &as_user("other").1,
        "permissions",
        "warning",
        "may not touch acme with KG.ACQUIRE",
        "ACL SETUSER other ~acme",
    );
    // What INFO or CONFIG alone would tell is not taken for nothing.
    c.ok("ACL SETUSER blind on >pw +@all ~* -info");
    let (_, findings) = as_user("blind");
    for check in [
        "server",
        "module",
        "memory",
        "persistence",
        "replication",
        "snapshots",
        "waiting",
        "usage",
        "rekeying",
        "cluster",
    ] {
        assert_found(&findings, check, "warning", "unknown: the user may not INFO", "+info");
    }
    c.ok("ACL SETUSER unset on >pw +@all ~* -config");
    let (_, findings) = as_user("unset");
    for check in ["keyring file", "persistence", "snapshots", "usage", "crash reports"] {
        assert_found(&findings, check, "warning", "unknown: the user may not CONFIG GET", "+config|get");
    }
    // A command that nobody has.
    let setup = sut.setup();
    let file = setup.directory().join("without.conf");
    fs::write(&file, "rename-command CONFIG \"\"\n").unwrap();
    let without = setup.with("appendonly", "yes").with("include", file.to_str().unwrap()).start();
    assert_found(
        &doctor(&without, &[]).1,
        "persistence",
        "warning",
        "the server knows no CONFIG GET",
        "rename-command",
    );
    // One who is not let in.
    let url = format!("redis://gate:wrong@127.0.0.1:{}", server.port());
    let output = tool(&server).args(["doctor", "--url", &url]).output().unwrap();
    assert_eq!(output.status.code(), Some(5), "{output:?}");
}

fn the_doctor_names_each_command_that_a_user_lacks_and_the_rule_that_gives_it(sut: &Sut) {
    let server = well(sut);
    let mut c = server.client();
    let url = format!("redis://app:pw@127.0.0.1:{}", server.port());
    let permissions = || of(&doctor(&server, &["--url", &url]).1, "permissions").remove(0);
    // Of the servers among themselves alone, and of nobody's concern.
    const INTERNAL: &str = "kg.apply";
    let listed = c.ok("COMMAND LIST FILTERBY MODULE keyguard");
    let mut names: Vec<String> = listed.list().iter().map(|name| name.text().to_lowercase()).collect();
    names.retain(|name| name != INTERNAL);
    names.sort();
    c.ok("ACL SETUSER app on >pw -@all +acl|whoami +acl|dryrun ~acme");
    let (state, detail, advice) = permissions();
    assert_eq!(state, "warning");
    let named = detail.trim_start_matches("user app may not call ").split(", ");
    let mut named: Vec<String> = named.map(str::to_lowercase).collect();
    named.sort();
    assert_eq!(named, names);
    // The rules, as they stand there, give it all.
    let (_, rules) = advice.split_once("ACL SETUSER app ").unwrap_or_else(|| panic!("{advice}"));
    c.ok(format!("ACL SETUSER app {rules}"));
    assert_eq!(permissions().0, "ok", "{:?}", permissions());
    for name in ["kg.claim", "kg.usage"] {
        c.ok(format!("ACL SETUSER app -{name}"));
        let (state, detail, advice) = permissions();
        let expected = format!("user app may not call {}", name.to_uppercase());
        assert_eq!((state.as_str(), detail), ("warning", expected));
        assert!(advice.ends_with(&format!("ACL SETUSER app +{name}")), "{advice}");
        c.ok(format!("ACL SETUSER app +{name}"));
    }
    // Without the store, which is another rule.
    c.ok("ACL SETUSER app resetkeys");
    let (state, detail, advice) = permissions();
    assert!(state == "warning" && !detail.contains("may not call") && detail.contains("KG.USAGE"), "{detail}");
    assert!(advice.ends_with("ACL SETUSER app ~acme"), "{advice}");
    // Nobody is said to be permitted what nobody could look at.
    c.ok("ACL SETUSER app -acl|dryrun ~acme");
    let (state, detail, _) = permissions();
    assert!(state != "ok" && detail.contains("unknown"), "{detail}");
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
    // As the server has it, it does not come online, or is online and is not heard of.
    let findings = eventually("the doctor's warning of it", || {
        let (code, findings) = doctor(&primary, &[]);
        assert_eq!(code, 0, "{findings:#?}");
        let name = format!("127.0.0.1:{port} ");
        let found = of(&findings, "replication").into_iter().find(|found| found.1.contains(&name)).unwrap();
        expect(found.0 == "warning" && found.2.contains("its log"), || format!("{found:?}")).map(|()| findings)
    });
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
    terminal.answer_hidden("Secret (not shown): ", secret);
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
    terminal.answer_hidden("Secret (not shown): ", secrets[1]);
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
fn piped<T: AsRef<[u8]>>(server: &Server, lines: &[T]) -> (i32, String, String) {
    let mut command = tool(server);
    let mut child =
        command.arg("menu").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let lines: Vec<&[u8]> = lines.iter().map(AsRef::as_ref).collect();
    child.stdin.take().unwrap().write_all(&lines.join(&b'\n')).unwrap();
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

fn the_menu_finds_expired_keys_among_more_than_a_reply_holds(sut: &Sut) {
    const COUNT: usize = 1_200;
    let server = sut.server();
    let mut c = server.client();
    let add = |n: usize, expiry: &str| {
        let secret = format!("secret-{n}");
        if expiry.is_empty() {
            args!["KG.ADDKEY", "acme", "vendor", secret]
        } else {
            args!["KG.ADDKEY", "acme", "vendor", secret, "EXPIREAT", expiry]
        }
    };
    let commands: Vec<_> = (1..=COUNT).map(|n| add(n, if n == COUNT { "1" } else { "" })).collect();
    c.pipeline(&commands);
    let (code, shown, said) = piped(&server, &["r", "no", "r", "yes", "r", "q"]);
    assert_eq!((code, said.as_str()), (0, ""), "{shown}");
    for text in ["Delete these 1?", "Nothing is deleted", "Deleted: 1.", "No key has expired."] {
        assert!(shown.contains(text), "{text}: {shown}");
    }
    // More than are shown: their number is not said, and all of them are meant.
    let commands: Vec<_> = (1..=COUNT).map(|n| args!["KG.SETKEY", "acme", n, "EXPIREAT", "1"]).collect();
    c.pipeline(&commands);
    let (code, shown, said) = piped(&server, &["r", "yes", "q"]);
    assert_eq!((code, said.as_str()), (0, ""), "{shown}");
    assert!(shown.contains("Delete all expired keys, more than 1000?"), "{shown}");
    assert!(shown.contains(&format!("Deleted: {}.", COUNT - 1)), "{shown}");
    // A store that is not there has none.
    let (code, shown, said) = piped(&server, &["r", "q"]);
    assert_eq!((code, said.as_str()), (0, ""), "{shown}");
    let output = tool(&server).args(["menu", "--store", "another"]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

fn the_menu_deletes_those_alone_that_it_has_shown(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    for (secret, expiry) in [("one", "1"), ("two", "1"), ("three", "0"), ("four", "0")] {
        c.ok(args!["KG.ADDKEY", "acme", "vendor", secret, "EXPIREAT", expiry]);
    }
    let mut terminal = Terminal::start(&server, &["menu"]);
    terminal.answer(CHOICE, "r");
    terminal.expect("Delete these 2?");
    // While the question stands, another one expires, and the life of one is prolonged.
    c.ok("KG.SETKEY acme 3 EXPIREAT 1");
    c.ok("KG.SETKEY acme 2 EXPIREAT 0");
    terminal.line("yes");
    terminal.expect("Deleted: 1.");
    terminal.answer(CHOICE, "q");
    assert_eq!(terminal.end(), 0);
    let left = c.ok("KG.LISTKEYS acme");
    assert_eq!(left.list().len(), 3, "{left:?}");
    c.refused("NOSUCH", "KG.GETKEY acme 1");
}

fn the_menu_touches_vault_keys_only(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    c.ok("KG.ADDORG acme shop");
    let issued = c.ok("KG.NEWKEY acme shop web");
    let (id, raw) = (issued.list()[0].int().to_string(), issued.list()[1].text());
    for choice in ["n", "d", "m", "v"] {
        let (code, shown, said) = piped(&server, &[choice, &id, "yes", "q"]);
        assert_eq!(code, 0, "{shown}");
        assert!(said.contains("NOSUCH") && said.contains("API key"), "{choice}: {said}");
        assert!(!shown.contains("inactive.") && !shown.contains("active."), "{choice}: {shown}");
        assert_eq!(c.code(args!["KG.AUTH", "acme", raw]), "VALID", "{choice}");
    }
}

fn the_menu_asks_again_for_what_is_no_text(sut: &Sut) {
    let server = sut.server();
    let secret: &[u8] = b"\xff\xfe, bytes as they are";
    let lines: [&[u8]; 11] = [b"\xff", b"a", b"vend\xffor", b"vendor", b"", b"", b"", b"", b"", secret, b"q"];
    let (code, shown, said) = piped(&server, &lines);
    assert_eq!((code, said.as_str()), (0, ""), "{shown}");
    assert_eq!(shown.matches("no UTF-8").count(), 2, "{shown}");
    assert!(shown.contains("Added as 1."), "{shown}");
    assert_eq!(server.client().ok("KG.REVEAL acme 1").bytes(), secret);
}

fn the_menu_ends_where_nobody_reads(sut: &Sut) {
    let server = sut.server();
    server.client().ok("KG.ADDKEY acme vendor some-secret");
    for choice in ["?", "l", "u", "s", "r"] {
        let mut command = tool(&server);
        let mut child =
            command.arg("menu").stdin(Stdio::piped()).stdout(nobody()).stderr(Stdio::piped()).spawn().unwrap();
        // It may have ended by then.
        let _ = child.stdin.take().unwrap().write_all(format!("{choice}\n{choice}\n").as_bytes());
        let output = child.wait_with_output().unwrap();
        assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]), "{choice}: {output:?}");
    }
}

fn a_signal_at_a_hidden_prompt_gives_the_terminal_back(sut: &Sut) {
    let server = sut.server();
    server.client().ok("KG.ADDKEY acme vendor some-secret");
    for (arguments, signal, code) in [
        (&["menu"][..], "INT", 130),
        (&["menu"], "TERM", 143),
        (&["menu"], "HUP", 129),
        (&["vault", "add", "vendor"], "INT", 130),
    ] {
        let mut terminal = Terminal::start(&server, arguments);
        if arguments == ["menu"] {
            terminal.answer(CHOICE, "m");
            terminal.answer("mark active", "");
        }
        eventually("the terminal hiding what is typed", || {
            expect(!terminal.shows_what_is_typed(), || terminal.screen())
        });
        if signal == "INT" {
            terminal.keys("\u{3}");
        } else {
            let told = Command::new("kill").arg(format!("-{signal}")).arg(terminal.id().to_string()).status().unwrap();
            assert!(told.success());
        }
        assert_eq!(terminal.end(), code, "{arguments:?} {signal}");
        assert!(terminal.shows_what_is_typed(), "{arguments:?} {signal}");
    }
    // Where nothing is hidden any more, it is the end as well.
    let mut terminal = Terminal::start(&server, &["menu"]);
    terminal.answer(CHOICE, "m");
    terminal.answer("mark active", "");
    terminal.answer_hidden("Secret (not shown): ", "some-secret");
    terminal.expect("1 is already active");
    terminal.expect(CHOICE);
    terminal.keys("\u{3}");
    assert_eq!(terminal.end(), 130);
}

/// A store with a key that has been used; the key.
fn used_store(server: &Server) -> String {
    let mut c = server.client();
    c.ok("KG.ADDORG acme shop");
    let raw = c.ok("KG.NEWKEY acme shop web").list()[1].text();
    c.ok("KG.BLOCKIP acme 192.0.2.0/24 1h PATH /login");
    c.ok("KG.ALLOWIP acme 198.51.100.1");
    raw
}

/// Of what top shows, the numbers in the row of this title: calls a second and in all.
fn row(shown: &str, title: &str) -> Option<(f64, i64)> {
    let line = shown.lines().find(|line| line.split_whitespace().next() == Some(title))?;
    let mut numbers = line.split_whitespace().skip(1);
    // Before the second look there is no rate.
    Some((numbers.next()?.parse().unwrap_or(0.0), numbers.next()?.parse().ok()?))
}

fn top_shows_the_rate_of_calls_made_meanwhile(sut: &Sut) {
    let server = sut.setup().counting_usage().start();
    let raw = used_store(&server);
    let mut c = server.client();
    let mut terminal = Terminal::start(&server, &["top", "--interval", "0.2"]);
    terminal.shows("the live view", |screen| screen.contains("KG.AUTH"));
    assert!(terminal.is_taken());
    let mut calls = 0;
    eventually("the rate of calls", || {
        assert_eq!(c.code(args!["KG.AUTH", "acme", raw]), "VALID");
        assert_eq!(c.code("KG.AUTH acme kg_live_unknown"), "NOT_FOUND");
        calls += 1;
        let screen = terminal.screen();
        let rate = |title: &str| row(&screen, title).is_some_and(|(rate, _)| rate > 0.0);
        expect(rate("VALID") && rate("NOT_FOUND"), || screen.clone())
    });
    // Afterwards all of them, and none a second.
    terminal.shows("all calls, and none meanwhile", |screen| {
        row(screen, "VALID") == Some((0.0, calls)) && row(screen, "all") == Some((0.0, 2 * calls))
    });
    // Calls with a key that there is not are refused, and nobody's requests.
    for title in ["requests", "refused"] {
        terminal.shows("the store's own numbers", |screen| row(screen, title).is_some_and(|(_, all)| all == calls));
    }
    terminal.shows("the key that is used most", |screen| {
        let key = screen.lines().find(|line| line.contains(" web "));
        key.is_some_and(|key| key.split_whitespace().last() == Some(&calls.to_string()))
    });
    terminal.shows("the blocked address", |screen| {
        screen.lines().any(|line| line.starts_with("192.0.2.0/24") && line.contains("/login"))
    });
    let screen = terminal.screen();
    assert!(!screen.contains("198.51.100.1"), "what is allowed is not blocked: {screen}");
    assert!(!terminal.has_shown(&raw));
    terminal.keys("q");
    assert_eq!(terminal.end(), 0);
}

fn top_outlives_its_server_and_another_size(sut: &Sut) {
    let mut server = sut.server();
    let mut terminal = Terminal::start(&server, &["top", "--interval", "0.1"]);
    terminal.shows("the live view", |screen| screen.contains("memory ") && screen.contains("q quits"));
    for (rows, cols) in [(8, 30), (3, 5), (1, 1), (40, 100)] {
        terminal.resize(rows, cols);
    }
    terminal.shows("the view in its last size", |screen| screen.contains("q quits") && screen.contains("KG.AUTH"));
    server.kill();
    terminal.shows("that the server is away", |screen| screen.contains("the server does not answer"));
    assert!(terminal.screen().contains("memory "), "what was seen last stays");
    server.start_again();
    terminal.shows("that it is back", |screen| screen.contains("q quits"));
    terminal.keys("q");
    assert_eq!(terminal.end(), 0);
}

fn top_gives_the_terminal_back_by_whatever_key_it_ends(sut: &Sut) {
    let server = sut.server();
    for key in ["q", "\u{1b}", "\u{3}", "a signal"] {
        let mut terminal = Terminal::start(&server, &["top"]);
        terminal.shows("the live view", |screen| screen.contains("KG.AUTH"));
        assert!(terminal.is_taken() && !terminal.has_cursor() && !terminal.shows_what_is_typed());
        if key == "a signal" {
            let told = Command::new("kill").arg(terminal.id().to_string()).status().unwrap();
            assert!(told.success());
        } else {
            terminal.keys(key);
        }
        assert_eq!(terminal.end(), 0, "{key:?}");
        eventually("the terminal as it was", || {
            expect(!terminal.is_taken() && terminal.has_cursor(), || terminal.screen())
        });
        assert!(terminal.shows_what_is_typed());
        assert!(!terminal.screen().contains("KG.AUTH"));
    }
}

fn top_prints_one_frame_for_scripts(sut: &Sut) {
    let mut server = sut.server();
    let raw = used_store(&server);
    let mut c = server.client();
    let mut command = tool(&server);
    let mut child = command.args(["top", "--once", "--interval", "0.5"]).stdout(Stdio::piped()).spawn().unwrap();
    while child.try_wait().unwrap().is_none() {
        c.ok(args!["KG.AUTH", "acme", raw]);
    }
    let output = child.wait_with_output().unwrap();
    let shown = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{shown}");
    let (rate, _) = row(&shown, "VALID").unwrap_or_else(|| panic!("{shown}"));
    assert!(rate > 0.0, "{shown}");
    assert!(!shown.contains('\u{1b}') && !shown.contains("q quits"), "{shown}");
    let ends =
        |server: &Server, arguments: &[&str]| tool(server).arg("top").args(arguments).output().unwrap().status.code();
    assert_eq!(ends(&server, &[]), Some(2), "the live view needs a terminal");
    assert_eq!(ends(&server, &["--once", "--interval", "0"]), Some(2));
    server.kill();
    assert_eq!(ends(&server, &["--once"]), Some(3));
    let server = sut.setup().without_module().start();
    assert_eq!(ends(&server, &["--once"]), Some(4));
}

fn top_shows_what_a_user_may_see(sut: &Sut) {
    let server = sut.server();
    used_store(&server);
    let shown = |permissions: &str| {
        server.client().ok(format!("ACL SETUSER watcher reset on >pw -@all ~acme {permissions}"));
        let url = format!("redis://watcher:pw@127.0.0.1:{}", server.port());
        let output = tool(&server).args(["top", "--once", "--interval", "0.1", "--url", &url]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let nothing = shown("");
    assert!(nothing.contains("INFO is not permitted") && nothing.contains("KG.STATS is not permitted"), "{nothing}");
    let some = shown("+info +kg.listips");
    assert!(some.contains("memory ") && some.contains("192.0.2.0/24"), "{some}");
    assert!(some.contains("KG.STATS is not permitted"), "{some}");
}

fn what_only_people_read_has_no_json(sut: &Sut) {
    let server = sut.server();
    for (arguments, instead) in
        [(&["top", "--once", "--json"][..], "keyguard usage stats --json"), (&["menu", "--json"][..], "keyguard vault")]
    {
        let output = tool(&server).args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        assert!(output.stdout.is_empty() && contains(&output.stderr, instead.as_bytes()), "{output:?}");
    }
}

fn records_cannot_disguise_what_people_read(sut: &Sut) {
    let server = sut.setup().counting_usage().start();
    let mut c = server.client();
    // With a character that turns what follows round.
    let text = "gro.elpmaxe\u{202e}@x";
    c.ok(args!["KG.ADDKEY", "acme", "vendor", "some-secret", "LOGIN", text]);
    c.ok("KG.ADDORG acme shop");
    let raw = c.ok(args!["KG.NEWKEY", "acme", "shop", text]).list()[1].text();
    assert_eq!(c.code(args!["KG.AUTH", "acme", raw]), "VALID");
    let (code, menu, said) = piped(&server, &["l", "u", "d", "1", "no", "q"]);
    assert_eq!((code, said.as_str()), (0, ""), "{menu}");
    let top = tool(&server).args(["top", "--once", "--interval", "0.1"]).output().unwrap().stdout;
    let top = String::from_utf8(top).unwrap();
    for (shown, times) in [(menu, 3), (top, 1)] {
        assert_eq!(shown.matches("gro.elpmaxe\u{fffd}@x").count(), times, "{shown}");
        assert!(!shown.contains('\u{202e}'), "{shown}");
    }
}
