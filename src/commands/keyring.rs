//! The keyring and its rotation: `KG.KEYRING`, `KG.REKEY`.

use std::collections::BTreeMap;

use keyguard_core::keyring::{Fingerprint, KeyringKey};
use keyguard_core::{Error, Result};

use super::Call;
use crate::args::{Args, once};
use crate::ffi::Ctx;
use crate::register::{Access, Arg, Category, Command, Spec};
use crate::reply::Map;
use crate::store::{Missing, Store};
use crate::survey::{self, Findings};
use crate::{keyring, rekey};

/// `KG.KEYRING <STATUS | RELOAD | DROP fingerprint>`
///
/// Each server has a keyring of its own, so that this replicates nothing and works on replicas too. STATUS and DROP count what the
/// stores of all databases use, which takes a survey: the caller is held meanwhile, nobody else. DROP forgets a key in memory; as
/// long as it is in the file, RELOAD and a restart bring it back.
pub struct KeyringCommand;

impl Command for KeyringCommand {
    const SPEC: Spec = Spec {
        name: c"KG.KEYRING",
        summary:
            c"Shows which keys of this server's keyring are in use, reads the keyring again, or forgets a key of it",
        complexity: c"O(N), N being the keys on the server, in slices of a millisecond; O(1) for RELOAD",
        flags: "blocking",
        access: Access::None,
        category: Category::Admin,
        min_args: 2,
        // Whoever takes a key of the keyring for its fingerprint shall not have shown it.
        secrets: &[2],
        secrets_from: 0,
        args: &[Arg::one_of(
            c"action",
            &[
                Arg::word(c"status", c"STATUS"),
                Arg::word(c"reload", c"RELOAD"),
                Arg::text(c"fingerprint").token(c"DROP"),
            ],
        )],
    };

    fn run(call: &Call<'_>, mut args: Args<'_>) -> Result<()> {
        let action = args.option(&["STATUS", "RELOAD", "DROP"])?;
        let dropped = if action == Some("DROP") { Some(fingerprint(args.value("DROP")?)?) } else { None };
        args.finish()?;

        match (action, dropped) {
            (Some("RELOAD"), _) => {
                keyring::reload()?;
                survey::start(call.ctx);
                call.ctx.reply_status(c"OK");
                Ok(())
            }
            (_, Some(fingerprint)) => {
                keyring::confirm_droppable(fingerprint)?;
                let decide = move |findings: &Findings| -> Result<survey::Answer> {
                    keyring::drop_key(fingerprint, findings)?;
                    Ok(Box::new(|ctx| ctx.reply_status(c"OK")))
                };
                survey::ask(call.ctx, Box::new(decide))
            }
            _ => survey::ask(call.ctx, Box::new(|findings| Ok(status(findings)))),
        }
    }
}

fn fingerprint(bytes: &[u8]) -> Result<Fingerprint> {
    let parsed = str::from_utf8(bytes).ok().and_then(|text| text.parse().ok());
    parsed.ok_or(Error::Invalid { what: "fingerprint", accepted: "16 hexadecimal digits" })
}

/// A key or a pepper as STATUS shows it.
struct Row {
    fingerprint: String,
    /// What it is called, if it is a pepper.
    pepper: Option<String>,
    newest: bool,
    records: u64,
    missing: bool,
}

/// The keys of the keyring, the newest first, then its peppers, then what stores use and it lacks.
fn status(findings: &Findings) -> survey::Answer {
    let keyring = keyring::installed();
    let mut using: BTreeMap<Fingerprint, u64> = findings.using.clone();
    let mut rows = Vec::new();
    for key in keyring.iter().flat_map(|keyring| keyring.newest_first()).map(KeyringKey::fingerprint) {
        let records = using.remove(&key).unwrap_or(0);
        let newest = rows.is_empty();
        rows.push(Row { fingerprint: key.to_string(), pepper: None, newest, records, missing: false });
    }
    for pepper in keyring.iter().flat_map(|keyring| keyring.peppers()) {
        let records = using.remove(&pepper.fingerprint()).unwrap_or(0);
        let (fingerprint, label) = (pepper.fingerprint().to_string(), pepper.label().to_owned());
        rows.push(Row { fingerprint, pepper: Some(label), newest: false, records, missing: false });
    }
    rows.extend(using.into_iter().map(|(key, records)| Row {
        fingerprint: key.to_string(),
        pepper: None,
        newest: false,
        records,
        missing: true,
    }));
    Box::new(move |ctx| send_status(ctx, &rows))
}

fn send_status(ctx: Ctx<'_>, rows: &[Row]) {
    ctx.reply_array(rows.len());
    for row in rows {
        let mut map = Map::default();
        map.field("fingerprint", &row.fingerprint)
            .field("newest", row.newest)
            .field("records", row.records)
            .optional("pepper", row.pepper.as_deref())
            .optional("missing", row.missing.then_some(true))
            .send(ctx);
    }
}

/// `KG.REKEY store [STOP]`
///
/// Starts to seal the vault keys of the store again under the newest key of the keyring, or tells how that stands; STOP ends it.
/// `left` counts vault keys only. The header counts all records that use an older key, without telling their types apart: so
/// while the job runs, `left` is the vault keys that it has not looked at, or that count if it is smaller; when it is done,
/// those that failed. An API key is kept as a digest only and cannot be digested anew without the raw key: it stays under its
/// key, and is in no field of the reply; KG.KEYRING STATUS counts it.
pub struct Rekey;

impl Command for Rekey {
    const SPEC: Spec = Spec {
        name: c"KG.REKEY",
        summary: c"Seals the vault keys of a store again under the newest key of the keyring, in the background",
        complexity: c"O(1); the work is O(N), N being the ids that were given out, in slices of a millisecond",
        flags: "",
        access: Access::Write,
        category: Category::Admin,
        min_args: 2,
        secrets: &[],
        secrets_from: 0,
        args: &[Arg::key(c"store"), Arg::word(c"stop", c"STOP").optional()],
    };

    fn run(call: &Call<'_>, mut args: Args<'_>) -> Result<()> {
        let at = args.store()?;
        let mut stop = None;
        while let Some(option) = args.option(&["STOP"])? {
            once(&mut stop, option, ())?;
        }
        args.finish()?;
        let store = Store::open(call.ctx, at, Missing::Refuse)?;

        let progress = match stop {
            Some(()) => rekey::stop(call.ctx, &store),
            None => rekey::start(call.ctx, &store)?,
        };

        let mut map = Map::default();
        map.field("state", progress.state.as_str())
            .field("left", progress.left)
            .field("done", progress.done)
            .field("failed", progress.failed)
            .send(call.ctx);
        Ok(())
    }
}
