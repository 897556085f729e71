//! The thread of an import: it reads the file, and opens what is under a Fernet key or sealed for another store.

use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::SyncSender;

use keyguard_core::digest::{Domain, digest};
use keyguard_core::fernet;
use keyguard_core::keyring::Keyring;
use keyguard_core::record::{Record, VaultRecord};
use keyguard_core::secret::Secret;
use keyguard_core::{Error, Result, vault};
use keyguard_snapshot::file::{FileError, Folder};
use keyguard_snapshot::item::{self, ForeignSecret, Item, Row};
use keyguard_snapshot::read::Reader;

use super::report::{Order, Told};
use crate::keyring;
use crate::store::place_in;
use crate::worker::{Failure, Stop};

/// How many rows are handed over at once.
const HANDED: usize = 32;
/// The largest state of a record and the largest value of statistics that are taken over, in bytes: no snapshot of ours has larger
/// ones, and to unpack them must not hold the server up.
const MAX_STATE: usize = 256 << 10;
const MAX_VALUE: usize = 1 << 20;

/// A row as the thread hands it over.
pub(super) enum Prepared {
    Row(Row),
    /// A key of a `simple_keystore`, and its secret.
    Secret(Box<ForeignSecret>, Secret),
    /// One that cannot be taken over.
    Refused(Told),
}

/// What the thread says of itself.
#[derive(Default)]
pub(super) struct Shared {
    pub(super) total: AtomicU64,
    pub(super) outcome: Mutex<Option<Result<(), Failure>>>,
}

/// What the thread does.
pub(super) fn read(
    folder: &str,
    order: &Order,
    keyring: &Keyring,
    sender: &SyncSender<Vec<Prepared>>,
    stop: &Stop,
    shared: &Shared,
) -> Result<(), Failure> {
    let folder = Folder::open(&PathBuf::from(folder))?;
    let mut reader = Reader::open_with(&folder, &order.file, order.format, |interrupter| stop.interrupts(interrupter))?;
    shared.total.store(reader.total(), Ordering::Relaxed);
    let fernet = order.fernet.as_ref().and_then(|label| keyring.fernet(label));
    let mut from = None;
    loop {
        let mut rows = reader.next_rows()?.into_iter();
        if rows.len() == 0 {
            return Ok(());
        }
        while rows.len() > 0 {
            let mut prepared = Vec::with_capacity(HANDED);
            for row in rows.by_ref().take(HANDED) {
                if stop.requested() {
                    return Err(FileError::Stopped.into());
                }
                if let Row::Item(Item::Header(header)) = &row {
                    from = Some(header.store.clone());
                }
                prepared.push(prepare(row, order, keyring, fernet, from.as_deref()));
            }
            // The main thread has given up, and knows why.
            sender.send(prepared).map_err(|_| FileError::Stopped)?;
        }
    }
}

/// Opens what is under a Fernet key or sealed for another store.
fn prepare(row: Row, order: &Order, keyring: &Keyring, fernet: Option<&fernet::Key>, from: Option<&str>) -> Prepared {
    let too_large = |table, rowid| {
        Prepared::Refused(Told { table, rowid, why: "its state is larger than any that a snapshot has".to_owned() })
    };
    let is_large = |state: &Option<Vec<u8>>| state.as_ref().is_some_and(|state| state.len() > MAX_STATE);
    match row {
        Row::Item(Item::Org(org)) if is_large(&org.meters) => too_large("keyguard_orgs", rowid(org.id)),
        Row::Item(Item::Key(key)) if is_large(&key.meters) => too_large("keyguard_keys", rowid(key.id)),
        Row::Item(Item::Account { meters, .. }) if meters.len() > MAX_STATE => too_large("keyguard_accounts", 0),
        Row::Item(Item::Value { packed, .. }) if packed.len() > MAX_VALUE => too_large("keyguard_values", 0),
        Row::ForeignSecret(mut row) => {
            let opened = fernet.ok_or(fernet::FernetError::WrongKey);
            match opened.and_then(|key| fernet::decrypt(key, row.token.as_bytes())) {
                Ok(secret) => {
                    row.token = String::new();
                    Prepared::Secret(row, secret)
                }
                Err(why) => Prepared::Refused(Told { table: "keystore", rowid: row.id, why: why.to_string() }),
            }
        }
        Row::Item(Item::Key(mut key)) => match sealed_for(&key, order, keyring, from) {
            Ok(packed) => {
                key.packed = packed.unwrap_or(key.packed);
                Prepared::Row(Row::Item(Item::Key(key)))
            }
            Err(error) => {
                let (rowid, why) = (rowid(key.id), error.to_string());
                Prepared::Refused(Told { table: "keyguard_keys", rowid, why })
            }
        },
        row => Prepared::Row(row),
    }
}

/// Makes sure that the secret of a vault key opens where it comes from; its record with it sealed anew, if it goes to a store of
/// another name.
fn sealed_for(key: &item::Key, order: &Order, keyring: &Keyring, from: Option<&str>) -> Result<Option<Vec<u8>>> {
    let Record::Vault(record) = Record::decode(&key.packed)? else { return Ok(None) };
    let from = from.ok_or(Error::Internal)?;
    let secret = vault::open(keyring, &place_in(from, key.id), record.sealed)?;
    if from == order.store {
        // A digest that is another's would lead whoever looks for that to this key, and keep the other out.
        let is_its_own = keyring
            .find(record.digest_key)
            .is_none_or(|key| digest(key, Domain::Vault, secret.expose()).matches(&record.digest));
        return if is_its_own { Ok(None) } else { Err(Error::Tampered) };
    }
    let newest = keyring.newest();
    let sealed = vault::seal(newest, *keyring::random()?, &place_in(&order.store, key.id), &secret)?;
    let digest = digest(newest, Domain::Vault, secret.expose());
    VaultRecord { sealed: &sealed, digest, digest_key: newest.fingerprint(), ..record }.encode().map(Some)
}

/// An id as a rowid.
pub(super) fn rowid(id: u64) -> i64 {
    i64::try_from(id).unwrap_or(i64::MAX)
}
