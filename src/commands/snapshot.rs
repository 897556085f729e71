//! A store as a SQLite file: `KG.SNAPSHOT`.

use keyguard_core::{Error, Result};
use keyguard_snapshot::file::FileName;

use super::Call;
use crate::args::{Args, once};
use crate::export::{self, Order};
use crate::keyring;
use crate::register::{Access, Arg, Category, Command, Spec};
use crate::reply::Map;
use crate::store::{Missing, Store};

/// `KG.SNAPSHOT store <TO file [FERNET label] | STATUS>`
///
/// TO begins an export and answers at once; STATUS tells how the one of this store stands, or how the last one ended. It changes
/// nothing in the keyspace and works on replicas too, each server having a folder of its own.
pub struct Snapshot;

impl Command for Snapshot {
    const SPEC: Spec = Spec {
        name: c"KG.SNAPSHOT",
        summary: c"Writes a store to a SQLite file in the background, or tells how that stands",
        complexity:
            c"O(1); the work is O(N), N being the records and the log entries, in slices of a tenth of a millisecond",
        flags: "deny-script",
        access: Access::Read,
        category: Category::Secrets,
        min_args: 3,
        secrets: &[],
        // Whoever takes the Fernet key for its label shall not have shown it.
        secrets_from: 4,
        args: &[
            Arg::key(c"store"),
            Arg::one_of(
                c"action",
                &[
                    Arg::block(
                        c"export",
                        &[Arg::text(c"file").token(c"TO"), Arg::text(c"label").token(c"FERNET").optional()],
                    ),
                    Arg::word(c"status", c"STATUS"),
                ],
            ),
        ],
    };

    fn run(call: &Call<'_>, mut args: Args<'_>) -> Result<()> {
        let at = args.store()?;
        let action = args.option(&["TO", "STATUS"])?.ok_or_else(|| args.misuse())?;
        let (mut file, mut fernet) = (None, None);
        if action == "TO" {
            file = Some(file_name(args.value(action)?)?);
            while let Some(option) = args.option(&["FERNET"])? {
                once(&mut fernet, option, fernet_label(args.value(option)?)?)?;
            }
        }
        args.finish()?;
        let store = Store::open(call.ctx, at, Missing::Refuse)?;
        let database = call.ctx.selected_database();

        match file {
            Some(file) => {
                let store = store.name.as_str().to_owned();
                export::start(call.ctx, Order { database, store, file, fernet, schedule: None })?;
                call.ctx.reply_status(c"OK");
            }
            None => send_status(call, export::status(database, store.name).as_ref()),
        }
        Ok(())
    }
}

/// The name of a file in the folder of snapshots.
pub(super) fn file_name(bytes: &[u8]) -> Result<FileName> {
    let accepted =
        "the bare name of a file in keyguard.snapshot-dir, 1 to 128 of A-Z a-z 0-9 . _ - @, not beginning with . or -";
    FileName::parse(bytes).ok_or(Error::Invalid { what: "file", accepted })
}

/// The label of a Fernet key that the keyring has.
pub(super) fn fernet_label(bytes: &[u8]) -> Result<String> {
    let known = |label: &&str| keyring::installed().is_some_and(|keyring| keyring.fernet(label).is_some());
    let label = str::from_utf8(bytes).ok().filter(known);
    label.map(str::to_owned).ok_or(Error::NoKeyring {
        why: "the keyring of this server has no Fernet key of this label: add it to \"fernet\" in the keyring file, then KG.KEYRING RELOAD",
    })
}

fn send_status(call: &Call<'_>, status: Option<&export::Status>) {
    let Some(status) = status else {
        Map::default().field("state", "none").send(call.ctx);
        return;
    };
    let error = match &status.outcome {
        Some(Err(failure)) => Some(failure.to_string()),
        _ => None,
    };
    let mut map = Map::default();
    map.field(
        "state",
        match &status.outcome {
            None => "running",
            Some(Ok(_)) => "done",
            Some(Err(_)) => "failed",
        },
    );
    map.field("file", status.file.as_str()).field("rows", status.rows);
    if let Some(Ok(written)) = &status.outcome {
        map.field("bytes", written.bytes);
    }
    map.optional("unopened", (status.unopened > 0).then_some(status.unopened));
    map.field("begun_at", status.begun_ms).optional("ended_at", status.ended_ms);
    map.optional("error", error.as_ref());
    map.send(call.ctx);
}
