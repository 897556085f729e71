//! Files that are said to be snapshots, or databases of the two Python packages: whatever is in them, reading ends, with rows or an
//! error.
//!
//! The first byte says which format is read, and whether the rest is the file, or changes to a sound one: the place and the value of
//! a byte in four.
#![no_main]

use std::fs;
use std::sync::LazyLock;

use keyguard_core::names;
use keyguard_fuzz::{SCRATCH, sound_file};
use keyguard_snapshot::file::{FileName, Folder};
use keyguard_snapshot::item::{Item, Row};
use keyguard_snapshot::read::{Format, Reader};
use libfuzzer_sys::fuzz_target;

const FORMATS: [Format; 3] = [Format::Snapshot, Format::Keyguard, Format::SimpleKeystore];

static SOUND: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| FORMATS.map(sound_file).into());

fuzz_target!(|input: &[u8]| {
    let Some((first, rest)) = input.split_first() else { return };
    let index = usize::from(first & 3).min(2);
    let mut bytes = rest.to_vec();
    if first & 4 != 0 {
        bytes.clone_from(&SOUND[index]);
        for change in rest.as_chunks::<4>().0 {
            let place = usize::from(u16::from_be_bytes([change[0], change[1]])) * usize::from(change[2] & 3).max(1);
            let length = bytes.len();
            bytes[place % length] = change[3];
        }
    }
    fs::write(SCRATCH.join("fuzzed"), &bytes).expect("the folder is there");
    let folder = Folder::open(&SCRATCH).expect("the folder is there");
    let name = FileName::parse(b"fuzzed").expect("a name");
    let Ok(mut reader) = Reader::open(&folder, &name, FORMATS[index]) else { return };
    let mut count = 0;
    while let Ok(rows) = reader.next_rows() {
        if rows.is_empty() {
            assert_eq!(count, reader.total(), "every row is given once");
            break;
        }
        count += rows.len() as u64;
        rows.iter().for_each(check);
    }
});

/// What is given out is in range.
fn check(row: &Row) {
    match row {
        Row::Item(Item::Org(org)) => assert!(org.id > 0 && names::is_name(&org.name)),
        Row::Item(Item::Key(key)) => assert!(key.id > 0 && key.id <= i64::MAX as u64),
        Row::ForeignOrg(org) => assert!(names::is_name(&org.name) && names::is_name(&org.id)),
        Row::ForeignKey(key) => assert!(names::is_name(&key.label) && key.start.is_ascii() && key.scopes.len() <= 64),
        Row::ForeignSecret(secret) => assert!(names::is_name(&secret.name) && !secret.token.is_empty()),
        Row::Skipped(skipped) => assert!(!skipped.why.is_empty()),
        Row::Item(_) | Row::ForeignUse { .. } => {}
    }
}
