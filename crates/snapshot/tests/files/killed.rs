//! A server that is killed in the middle of writing.

use std::env;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use keyguard_core::record::OrgStatus;
use keyguard_snapshot::file::Folder;
use keyguard_snapshot::write::Writer;

use crate::samples::*;

const FOLDER: &str = "KEYGUARD_TEST_WRITES_INTO";

/// Runs in a child process of the test below, and nowhere else: writes snapshots until it is killed.
#[test]
fn a_child_process_writes_until_it_is_killed() {
    let Some(folder) = env::var_os(FOLDER).map(PathBuf::from) else { return };
    let folder = Folder::open(&folder).unwrap();
    for round in 0_u64.. {
        let mut writer = Writer::create(&folder, &file_name("a.sqlite")).unwrap();
        writer.put(&header()).unwrap();
        writer.put(&org(1, "o", OrgStatus::Active)).unwrap();
        for id in 10..3_000 {
            writer.put(&key(id, api_record("o", &round.to_string(), id).encode().unwrap())).unwrap();
            if id % 1_000 == 0 {
                println!("\nwriting");
            }
        }
        writer.finish(NOW_MS).unwrap();
        println!("\nfinished");
    }
}

#[test]
fn a_server_killed_while_it_writes_leaves_the_last_snapshot_whole() {
    for lines in [1, 2, 3, 4, 5, 6, 8] {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), "a.sqlite", &store()).unwrap();
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["--exact", "killed::a_child_process_writes_until_it_is_killed", "--nocapture"])
            .env(FOLDER, folder.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        let told: Vec<_> = stdout.filter(|line| line == "writing" || line == "finished").take(lines).collect();
        child.kill().unwrap();
        child.wait().unwrap();
        let (items, skipped) = items(folder.path(), "a.sqlite");
        assert_eq!(skipped, []);
        if told.iter().any(|line| line == "finished") {
            assert_eq!(items.len(), 2 + 2_990);
        } else {
            // It may have finished between its last line and its end.
            assert!(items == without_tokens(&store()) || items.len() == 2 + 2_990);
        }
        // The next writer works beside what was left.
        write(folder.path(), "a.sqlite", &[header()]).unwrap();
        assert!(fs::read_dir(folder.path()).unwrap().count() <= 2);
    }
}
