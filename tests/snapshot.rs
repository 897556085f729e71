//! Snapshots: a store as a SQLite file, written in the background, whole or not at all.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use redis::Value;
use rusqlite::{Connection, OpenFlags};

use crate::harness::{
    Client, Reply, Server, Sut, args, eventually, expect, now_ms, populate, populate_store, server_tests,
};

server_tests![
    a_store_becomes_a_file_with_all_that_it_holds,
    a_snapshot_answers_at_once_and_tells_how_it_stands,
    a_snapshot_is_written_beside_its_place_and_moved_there,
    files_are_for_their_owner_alone_and_in_one_folder,
    what_is_wrong_with_folder_or_file_stands_in_status,
    a_write_that_fails_leaves_the_previous_file_and_the_server_whole,
    records_are_whole_while_they_are_changed,
    one_snapshot_at_a_time,
    replaced_data_ends_a_snapshot,
    a_killed_server_leaves_the_previous_file_whole,
    a_server_that_shuts_down_leaves_no_half_file,
    a_replica_writes_snapshots_of_its_own,
    a_schedule_writes_all_stores_and_keeps_the_newest,
    settings_of_snapshots_are_checked,
    rejects_bad_arguments,
];

/// Where a server of the suite puts its snapshots.
fn folder(server: &Server) -> PathBuf {
    server.directory().join("snapshots")
}

/// Waits until the snapshot of a store has ended; what STATUS says then.
fn ended(c: &mut Client, store: &str) -> Value {
    eventually("the snapshot ending", || {
        let status = c.ok(args!["KG.SNAPSHOT", store, "STATUS"]);
        expect(status.field("state").text() != "running", || format!("{status:?}")).map(|()| status)
    })
}

/// Writes a snapshot, which must succeed.
fn snapshot(c: &mut Client, store: &str, file: &str) -> Value {
    assert_eq!(c.ok(args!["KG.SNAPSHOT", store, "TO", file]).text(), "OK");
    let status = ended(c, store);
    assert_eq!(status.field("state").text(), "done", "{status:?}");
    assert_eq!(status.field("file").text(), file);
    status
}

/// Writes one, which must fail; why it did.
fn failing(c: &mut Client, store: &str, file: &str) -> String {
    assert_eq!(c.ok(args!["KG.SNAPSHOT", store, "TO", file]).text(), "OK");
    let status = ended(c, store);
    assert_eq!(status.field("state").text(), "failed", "{status:?}");
    assert_eq!(c.ok("PING").text(), "PONG");
    status.field("error").text()
}

/// Opens a file as a reader would, who knows nothing of its writer.
fn open(path: &Path) -> Connection {
    let db = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    let sound: String = db.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(sound, "ok");
    db
}

/// The first column of a query, as text.
fn column(db: &Connection, query: &str) -> Vec<String> {
    let mut statement = db.prepare(query).unwrap();
    let rows = statement.query_map([], |row| {
        Ok(match row.get_ref(0)? {
            rusqlite::types::ValueRef::Null => "NULL".to_owned(),
            rusqlite::types::ValueRef::Integer(number) => number.to_string(),
            rusqlite::types::ValueRef::Real(number) => number.to_string(),
            rusqlite::types::ValueRef::Text(text) => String::from_utf8(text.to_vec()).unwrap(),
            rusqlite::types::ValueRef::Blob(bytes) => format!("{} bytes", bytes.len()),
        })
    });
    rows.unwrap().map(Result::unwrap).collect()
}

fn count(db: &Connection, table: &str) -> i64 {
    db.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).unwrap()
}

/// What lies in a folder.
fn names(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

fn add_keys(c: &mut Client, store: &str, n: usize) {
    let commands: Vec<_> = (0..n)
        .map(|n| args!["KG.ADDKEY", store, format!("vendor{}", n % 7), format!("some-secret-{n}"), "BATCH", "b"])
        .collect();
    for some in commands.chunks(1000) {
        assert!(c.pipeline(some).iter().all(|reply| !reply.is_error()));
    }
}

fn a_store_becomes_a_file_with_all_that_it_holds(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    let sample = populate(&mut c);
    let before = now_ms();
    let status = snapshot(&mut c, "acme", "acme.sqlite");
    assert!((before..=now_ms()).contains(&status.field("begun_at").int()));
    assert!((before..=now_ms()).contains(&status.field("ended_at").int()));
    let path = folder(&server).join("acme.sqlite");
    assert_eq!(status.field("bytes").int() as u64, fs::metadata(&path).unwrap().len());
    assert!(status.field("rows").int() > 0);
    let db = open(&path);

    // Every record under its id, as the store packs it.
    let listed = c.ok("KG.LISTKEYS acme");
    let ids: BTreeSet<String> = listed.list().iter().map(|key| key.field("id").int().to_string()).collect();
    assert_eq!(column(&db, "SELECT id FROM keyguard_keys").into_iter().collect::<BTreeSet<_>>(), ids);
    for id in &ids {
        let packed: Vec<u8> =
            db.query_row("SELECT packed FROM keyguard_keys WHERE id = ?", [id], |row| row.get(0)).unwrap();
        assert_eq!(packed, c.packed(format!("{{acme}}:key:{id}")), "record {id}");
    }
    let orgs: BTreeMap<String, i64> =
        c.ok("KG.LISTORGS acme").list().iter().map(|org| (org.field("name").text(), org.field("id").int())).collect();
    let found: BTreeMap<String, i64> = db
        .prepare("SELECT name, id FROM keyguard_orgs")
        .unwrap()
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
        .unwrap()
        .map(Result::unwrap)
        .collect();
    assert_eq!(found, orgs);
    let rules = c.ok("KG.LISTIPS acme").list()[1].list().len();
    assert_eq!(count(&db, "keyguard_address_rules"), rules as i64);
    assert_eq!(column(&db, "SELECT name FROM keyguard_accounts ORDER BY 1"), ["shared"]);
    // Every API key with its quotas' state, which was used; the header.
    let with_state = column(&db, "SELECT id FROM keyguard_keys WHERE meters IS NOT NULL");
    for id in [sample.ids[0], sample.ids[3]] {
        assert!(with_state.contains(&id.to_string()), "{id} in {with_state:?}");
    }
    let next_id: i64 = c.ok("HGET acme next_id").text().parse().unwrap();
    let noted = column(&db, "SELECT value FROM keyguard_meta WHERE key = 'next_id'");
    assert_eq!(noted, [next_id.to_string()]);
    // The tables of the two packages.
    assert_eq!(count(&db, "organizations"), orgs.len() as i64);
    assert_eq!(count(&db, "api_keys"), c.ok("KG.COUNTKEYS acme TYPE api").int());
    assert_eq!(count(&db, "keystore"), c.ok("KG.COUNTKEYS acme TYPE vault").int());
    assert_eq!(column(&db, "SELECT is_active FROM api_keys WHERE label = 'old'"), ["0"]);
}

fn a_snapshot_answers_at_once_and_tells_how_it_stands(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    add_keys(&mut c, "acme", 20_000);
    assert_eq!(c.ok("KG.SNAPSHOT acme STATUS").fields(), [("state".to_owned(), Value::BulkString(b"none".to_vec()))]);
    assert_eq!(c.info_number("keyguard", "keyguard_snapshot_running"), 0);
    c.ok("KG.SNAPSHOT acme TO a.sqlite");
    let status = c.ok("KG.SNAPSHOT acme STATUS");
    assert_eq!(status.field("state").text(), "running");
    assert_eq!(status.field("file").text(), "a.sqlite");
    assert_eq!(c.info_number("keyguard", "keyguard_snapshot_running"), 1);
    let mut rows = 0;
    let status = eventually("the snapshot ending", || {
        let status = c.ok("KG.SNAPSHOT acme STATUS");
        let now = status.field("rows").int();
        assert!(now >= rows, "rows only grow");
        rows = now;
        expect(status.field("state").text() == "done", || format!("{status:?}")).map(|()| status)
    });
    // The records and the header.
    assert_eq!(status.field("rows").int(), 20_001);
    assert_eq!(c.info_number("keyguard", "keyguard_snapshot_running"), 0);
    assert_eq!(c.info_number("keyguard", "keyguard_snapshots_done"), 1);
    assert_eq!(c.info_number("keyguard", "keyguard_snapshots_failed"), 0);
    assert_eq!(c.info_number("keyguard", "keyguard_snapshot_last_at"), status.field("ended_at").int());
    assert_eq!(count(&open(&folder(&server).join("a.sqlite")), "keyguard_keys"), 20_000);
    assert!(server.log().contains("snapshot of store acme written to a.sqlite: 20001 rows"));
}

fn a_snapshot_is_written_beside_its_place_and_moved_there(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    add_keys(&mut c, "acme", 10);
    snapshot(&mut c, "acme", "a.sqlite");
    add_keys(&mut c, "acme", 20_000);
    let path = folder(&server).join("a.sqlite");
    c.ok("KG.SNAPSHOT acme TO a.sqlite");
    let mut seen = 0;
    eventually("the snapshot ending", || {
        // Whoever opens it meanwhile finds all of the one before, or all of the new one.
        let keys = count(&open(&path), "keyguard_keys");
        assert!([10, 20_010].contains(&keys), "{keys}");
        seen += 1;
        let status = c.ok("KG.SNAPSHOT acme STATUS");
        expect(status.field("state").text() == "done", || format!("{status:?}"))
    });
    assert!(seen > 3, "it was looked at {seen} times");
    assert_eq!(count(&open(&path), "keyguard_keys"), 20_010);
    assert_eq!(names(&folder(&server)), ["a.sqlite"]);
}

fn files_are_for_their_owner_alone_and_in_one_folder(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    populate_store(&mut c);
    snapshot(&mut c, "acme", "Acme_1.2-3@x.sqlite");
    let path = folder(&server).join("Acme_1.2-3@x.sqlite");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    for name in ["", ".", "..", "../a", "/tmp/a", "a/b", "a\0b", ".hidden", "-a", "a b", "\u{e9}", &"x".repeat(129)] {
        let error = c.refused("ERR", args!["KG.SNAPSHOT", "acme", "TO", name]);
        assert!(error.contains("bare name"), "{error}");
    }
    // A link in the folder's place of a file is not followed.
    let elsewhere = server.directory().join("elsewhere");
    fs::write(&elsewhere, "precious").unwrap();
    std::os::unix::fs::symlink(&elsewhere, folder(&server).join("link")).unwrap();
    c.ok("KG.SNAPSHOT acme TO link");
    ended(&mut c, "acme");
    assert_eq!(fs::read_to_string(&elsewhere).unwrap(), "precious");
}

fn what_is_wrong_with_folder_or_file_stands_in_status(sut: &Sut) {
    let file = sut.setup();
    let keyring = file.directory().join("keyring").display().to_string();
    let off = file.module_arguments(&["keyring-file", &keyring]).start();
    let mut c = off.client();
    populate_store(&mut c);
    let error = c.refused("ERR", "KG.SNAPSHOT acme TO a.sqlite");
    assert!(error.contains("snapshot-dir"), "{error}");
    assert_eq!(c.ok("KG.SNAPSHOT acme STATUS").field("state").text(), "none");

    let server = sut.server();
    let mut c = server.client();
    populate_store(&mut c);
    let folder = folder(&server);
    snapshot(&mut c, "acme", "a.sqlite");
    // A file that its owner may not write is meant to stay.
    let path = folder.join("a.sqlite");
    let before = fs::read(&path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
    let error = failing(&mut c, "acme", "a.sqlite");
    assert!(error.contains("write-protected"), "{error}");
    assert_eq!(fs::read(&path).unwrap(), before);
    fs::create_dir(folder.join("b.sqlite")).unwrap();
    let error = failing(&mut c, "acme", "b.sqlite");
    assert!(error.contains("file"), "{error}");
    fs::rename(&folder, server.directory().join("away")).unwrap();
    let error = failing(&mut c, "acme", "a.sqlite");
    assert!(error.contains("snapshot-dir does not exist"), "{error}");
    fs::write(&folder, "no folder").unwrap();
    let error = failing(&mut c, "acme", "a.sqlite");
    assert!(error.contains("snapshot-dir"), "{error}");
    assert_eq!(c.info_number("keyguard", "keyguard_snapshots_failed"), 4);
    assert!(server.log().contains("snapshot of store acme to a.sqlite failed: snapshot-dir does not exist"));
    // What is put right works again.
    fs::remove_file(&folder).unwrap();
    fs::rename(server.directory().join("away"), &folder).unwrap();
    snapshot(&mut c, "acme", "c.sqlite");
}

/// The files of the server may not grow beyond some size: what a full disk does, without one.
fn a_write_that_fails_leaves_the_previous_file_and_the_server_whole(sut: &Sut) {
    let server = sut.setup().files_at_most(2 << 20).start();
    let mut c = server.client();
    add_keys(&mut c, "acme", 100);
    snapshot(&mut c, "acme", "a.sqlite");
    add_keys(&mut c, "acme", 20_000);
    let error = failing(&mut c, "acme", "a.sqlite");
    assert!(!error.is_empty());
    assert_eq!(names(&folder(&server)), ["a.sqlite"]);
    assert_eq!(count(&open(&folder(&server).join("a.sqlite")), "keyguard_keys"), 100);
    // With room again, it works again.
    c.ok("KG.DELKEY acme MATCH TYPE vault BATCH b");
    while c.ok("KG.DELSTORE acme").int() > 0 {}
    add_keys(&mut c, "acme", 50);
    snapshot(&mut c, "acme", "a.sqlite");
    assert_eq!(count(&open(&folder(&server).join("a.sqlite")), "keyguard_keys"), 50);
}

fn records_are_whole_while_they_are_changed(sut: &Sut) {
    const KEYS: usize = 6_000;
    let server = sut.server();
    let mut c = server.client();
    add_keys(&mut c, "acme", KEYS);
    c.ok("KG.SNAPSHOT acme TO a.sqlite");
    // Meanwhile keys come, go and change: source and login together.
    let (mut round, mut deleted) = (0_usize, BTreeSet::new());
    let mut other = server.client();
    while c.ok("KG.SNAPSHOT acme STATUS").field("state").text() == "running" {
        let commands: Vec<_> = (0..50)
            .map(|n| {
                let id = 1 + (round * 50 + n) * 37 % KEYS;
                match n % 10 {
                    0 if deleted.insert(id) => args!["KG.DELKEY", "acme", id],
                    1 => args!["KG.ADDKEY", "acme", "late", format!("late-secret-{round}-{n}")],
                    _ if deleted.contains(&id) => args!["PING"],
                    _ => args!["KG.SETKEY", "acme", id, "SOURCE", round, "LOGIN", round],
                }
            })
            .collect();
        for reply in other.pipeline(&commands) {
            assert!(!reply.is_error(), "{reply:?}");
        }
        round += 1;
    }
    assert!(round > 3, "{round} rounds while it was written");
    assert_eq!(ended(&mut c, "acme").field("state").text(), "done");
    let db = open(&folder(&server).join("a.sqlite"));
    let ids: Vec<usize> =
        column(&db, "SELECT id FROM keyguard_keys ORDER BY id").iter().map(|id| id.parse().unwrap()).collect();
    assert!(ids.is_sorted_by(|a, b| a < b), "each is there once");
    assert!(ids.iter().all(|id| *id <= KEYS), "what came after the beginning is not there");
    let there: BTreeSet<usize> = ids.into_iter().collect();
    for id in 1..=KEYS {
        assert!(there.contains(&id) || deleted.contains(&id), "{id} was there all the time");
    }
    assert!(column(&db, "SELECT count(*) FROM keystore WHERE source IS NOT login") == ["0"]);
}

fn one_snapshot_at_a_time(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    add_keys(&mut c, "acme", 20_000);
    add_keys(&mut c, "zeta", 1);
    c.ok("KG.SNAPSHOT acme TO a.sqlite");
    for command in ["KG.SNAPSHOT acme TO b.sqlite", "KG.SNAPSHOT zeta TO z.sqlite"] {
        let error = c.refused("INUSE", command);
        assert!(error.contains("STATUS"), "{error}");
    }
    assert_eq!(c.ok("KG.SNAPSHOT zeta STATUS").field("state").text(), "none");
    assert_eq!(ended(&mut c, "acme").field("state").text(), "done");
    snapshot(&mut c, "zeta", "z.sqlite");
    assert_eq!(c.ok("KG.SNAPSHOT acme STATUS").field("file").text(), "a.sqlite", "each store's last one is told of");
    assert_eq!(names(&folder(&server)), ["a.sqlite", "z.sqlite"]);
}

fn replaced_data_ends_a_snapshot(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    for command in ["FLUSHALL", "FLUSHDB", "SWAPDB 0 1"] {
        c.ok("FLUSHALL");
        add_keys(&mut c, "acme", 20_000);
        c.ok("KG.SNAPSHOT acme TO a.sqlite");
        assert_eq!(c.ok("KG.SNAPSHOT acme STATUS").field("state").text(), "running");
        c.ok(command);
        c.ok("SELECT 0");
        add_keys(&mut c, "acme", 1);
        let status = ended(&mut c, "acme");
        assert_eq!(status.field("state").text(), "failed", "{command}");
        assert!(status.field("error").text().contains("replaced"), "{status:?}");
        eventually("the thread having left", || {
            let reply = c.call("KG.SNAPSHOT acme TO b.sqlite");
            expect(!reply.is_error(), || format!("{reply:?}"))
        });
        assert_eq!(ended(&mut c, "acme").field("state").text(), "done");
        assert_eq!(names(&folder(&server)), ["b.sqlite"], "{command}");
    }
    // Deleted by a command of ours, or by hand.
    for command in ["KG.DELSTORE acme", "DEL acme"] {
        c.ok("FLUSHALL");
        add_keys(&mut c, "acme", 20_000);
        let failed = c.info_number("keyguard", "keyguard_snapshots_failed");
        c.ok("KG.SNAPSHOT acme TO a.sqlite");
        while matches!(c.ok(command), Value::Int(left) if left > 0) {}
        add_keys(&mut c, "zeta", 1);
        eventually("the snapshot ending", || {
            let running = c.info_number("keyguard", "keyguard_snapshot_running");
            expect(running == 0, || format!("{running}"))
        });
        assert_eq!(c.info_number("keyguard", "keyguard_snapshots_failed"), failed + 1);
        // The thread notices a little later.
        eventually("nothing being left behind", || {
            let names = names(&folder(&server));
            expect(names == ["b.sqlite"], || format!("{command}: {names:?}"))
        });
    }
    assert!(server.log().contains("snapshot of store acme to a.sqlite failed: the store was deleted meanwhile"));
}

fn a_killed_server_leaves_the_previous_file_whole(sut: &Sut) {
    let mut server = sut.server();
    for round in 0..4 {
        let mut c = server.client();
        add_keys(&mut c, "acme", 500);
        snapshot(&mut c, "acme", "a.sqlite");
        add_keys(&mut c, "acme", 15_000);
        c.ok("KG.SNAPSHOT acme TO a.sqlite");
        // Nearly at once; in the middle; about when it is checked and moved.
        eventually("the moment", || {
            let rows = c.ok("KG.SNAPSHOT acme STATUS").field("rows").int();
            expect(rows >= [0, 3_000, 10_000, 15_500][round], || format!("{rows}"))
        });
        server.restart();
        let keys = count(&open(&folder(&server).join("a.sqlite")), "keyguard_keys");
        assert!([500, 15_500].contains(&keys), "{keys}");
        assert_eq!(server.client().ok("DBSIZE").int(), 0);
    }
}

fn a_server_that_shuts_down_leaves_no_half_file(sut: &Sut) {
    let mut server = sut.server();
    let mut c = server.client();
    add_keys(&mut c, "acme", 20_000);
    c.ok("KG.SNAPSHOT acme TO a.sqlite");
    eventually("some rows", || {
        let rows = c.ok("KG.SNAPSHOT acme STATUS").field("rows").int();
        expect(rows > 100, || format!("{rows}"))
    });
    c.send("SHUTDOWN NOSAVE");
    assert!(c.try_receive().is_none(), "the server is gone");
    server.kill();
    assert_eq!(names(&folder(&server)), [""; 0]);
    server.start_again();
}

fn a_replica_writes_snapshots_of_its_own(sut: &Sut) {
    let primary = sut.server();
    let replica = sut.setup().replica_of(&primary).start();
    let mut c = primary.client();
    populate_store(&mut c);
    primary.wait_for(&replica);
    let mut r = replica.client();
    snapshot(&mut r, "acme", "a.sqlite");
    snapshot(&mut c, "acme", "a.sqlite");
    let [ours, theirs] = [&primary, &replica].map(|server| open(&folder(server).join("a.sqlite")));
    for table in ["keyguard_keys", "keyguard_orgs"] {
        let query = format!("SELECT hex(packed) FROM {table} ORDER BY id");
        assert_eq!(column(&ours, &query), column(&theirs, &query));
    }
    assert_eq!(r.ok("DBSIZE").int(), c.ok("DBSIZE").int());
    // Losing its primary, or following another one, is nothing to it.
    r.ok("REPLICAOF NO ONE");
    snapshot(&mut r, "acme", "b.sqlite");
}

fn a_schedule_writes_all_stores_and_keeps_the_newest(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    populate_store(&mut c);
    c.ok("SELECT 3");
    add_keys(&mut c, "zeta", 3);
    c.ok("KG.BLOCKIP rules-only 192.0.2.1");
    fs::write(folder(&server).join("acme-mine.sqlite"), "not of the schedule").unwrap();
    c.ok("CONFIG SET keyguard.snapshot-keep 2");
    c.ok("CONFIG SET keyguard.snapshot-every 1s");
    let of = |prefix: &str| -> Vec<String> {
        let names = names(&folder(&server)).into_iter();
        names.filter(|name| name.starts_with(prefix) && name.ends_with("Z.sqlite")).collect()
    };
    let mut seen = BTreeSet::new();
    eventually("several rounds", || {
        seen.extend(of("acme-2"));
        expect(seen.len() > 3, || format!("{seen:?}"))
    });
    c.ok("CONFIG SET keyguard.snapshot-every off");
    eventually("the last one ending", || {
        let running = c.info_number("keyguard", "keyguard_snapshot_running");
        expect(running == 0, || format!("{running}"))
    });
    for (prefix, table, rows) in [
        ("acme-2", "organizations", 3),
        ("zeta@3-2", "keyguard_keys", 3),
        ("rules-only@3-2", "keyguard_address_rules", 1),
    ] {
        let files = of(prefix);
        assert!((1..=2).contains(&files.len()), "{prefix}: {files:?}");
        for file in files {
            assert_eq!(count(&open(&folder(&server).join(file)), table), rows);
        }
    }
    assert!(names(&folder(&server)).contains(&"acme-mine.sqlite".to_owned()), "other files are not touched");
    let done = c.info_number("keyguard", "keyguard_snapshots_done");
    std::thread::sleep(Duration::from_millis(1_500));
    assert_eq!(c.info_number("keyguard", "keyguard_snapshots_done"), done, "off is off");
}

fn settings_of_snapshots_are_checked(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    for (value, accepted) in [
        ("off", true),
        ("1s", true),
        ("90m", true),
        ("1h", true),
        ("0s", false),
        ("500ms", false),
        ("1", false),
        ("", false),
    ] {
        let reply = c.call(args!["CONFIG", "SET", "keyguard.snapshot-every", value]);
        assert_eq!(!reply.is_error(), accepted, "{value}: {reply:?}");
        if accepted {
            assert_eq!(c.ok("CONFIG GET keyguard.snapshot-every").fields()[0].1.text(), value);
        }
    }
    c.refused("ERR", "CONFIG SET keyguard.snapshot-keep 0");
    c.ok("CONFIG SET keyguard.snapshot-keep 48");
    assert_eq!(c.ok("CONFIG GET keyguard.snapshot-keep").fields()[0].1.text(), "48");
    c.refused("ERR", "CONFIG SET keyguard.snapshot-dir /tmp");
    assert_eq!(c.ok("CONFIG GET keyguard.snapshot-dir").fields()[0].1.text(), folder(&server).display().to_string());
}

fn rejects_bad_arguments(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    populate_store(&mut c);
    let before = c.state();
    for command in [
        "KG.SNAPSHOT",
        "KG.SNAPSHOT acme",
        "KG.SNAPSHOT acme TO",
        "KG.SNAPSHOT acme WHAT",
        "KG.SNAPSHOT acme STATUS WHAT",
        "KG.SNAPSHOT acme TO a.sqlite WHAT",
        "KG.SNAPSHOT acme TO a.sqlite FERNET",
        "KG.SNAPSHOT acme TO a.sqlite STATUS",
    ] {
        c.refused("ERR", command);
    }
    c.refused("NOKEYRING", "KG.SNAPSHOT acme TO a.sqlite FERNET nobody");
    c.refused("NOSTORE", "KG.SNAPSHOT nobody TO a.sqlite");
    c.refused("NOSTORE", "KG.SNAPSHOT nobody STATUS");
    c.refused("BADSTORE", "KG.SNAPSHOT {x} TO a.sqlite");
    assert_eq!(names(&folder(&server)), [""; 0]);
    assert_eq!(c.state(), before);
}
