//! A store from a SQLite file: `KG.IMPORT`.

use keyguard_core::{Error, Result};
use keyguard_snapshot::file::FileName;
use keyguard_snapshot::read::Format;

use super::Call;
use super::snapshot::{fernet_label, file_name};
use crate::args::{Args, once};
use crate::import::{self, Order, What};
use crate::keyring;
use crate::register::{Access, Arg, Category, Command, Spec};
use crate::reply::Map;
use crate::store::{Missing, Store};

/// `KG.IMPORT store <FROM file FORMAT snapshot | keyguard | simple_keystore [CHECK] [PEPPER label] [FERNET label]
/// [ONCONFLICT skip | replace] | STATUS>`
///
/// FROM begins an import and answers at once; STATUS tells how the one of this store stands, or how the last one ended. CHECK goes
/// through the file and tells what would be done. Memory is asked for when it begins and before every slice: STATUS works without.
pub struct Import;

/// The formats, by their names.
const FORMATS: [(&str, Format); 3] =
    [("snapshot", Format::Snapshot), ("keyguard", Format::Keyguard), ("simple_keystore", Format::SimpleKeystore)];

impl Command for Import {
    const SPEC: Spec = Spec {
        name: c"KG.IMPORT",
        summary: c"Takes a SQLite file into a store in the background: a snapshot, or what keyguard_python or simple_keystore kept",
        complexity: c"O(1); the work is O(N), N being the rows of the file, in slices of a millisecond",
        flags: "deny-script",
        access: Access::Write,
        category: Category::Admin,
        min_args: 3,
        secrets: &[],
        // Whoever takes a secret for its label shall not have shown it.
        secrets_from: 4,
        args: &[
            Arg::key(c"store"),
            Arg::one_of(
                c"action",
                &[
                    Arg::block(
                        c"import",
                        &[
                            Arg::text(c"file").token(c"FROM"),
                            Arg::one_of(
                                c"format",
                                &[
                                    Arg::word(c"snapshot", c"snapshot"),
                                    Arg::word(c"keyguard", c"keyguard"),
                                    Arg::word(c"simple_keystore", c"simple_keystore"),
                                ],
                            )
                            .token(c"FORMAT"),
                            Arg::word(c"check", c"CHECK").optional(),
                            Arg::text(c"label").token(c"PEPPER").optional(),
                            Arg::text(c"label").token(c"FERNET").optional(),
                            Arg::one_of(c"onconflict", &[Arg::word(c"skip", c"skip"), Arg::word(c"replace", c"replace")])
                                .token(c"ONCONFLICT")
                                .optional(),
                        ],
                    ),
                    Arg::word(c"status", c"STATUS"),
                ],
            ),
        ],
    };

    fn run(call: &Call<'_>, mut args: Args<'_>) -> Result<()> {
        let at = args.store()?;
        let action = args.option(&["FROM", "STATUS"])?.ok_or_else(|| args.misuse())?;
        let given = if action == "FROM" { Some(Given::parse(&mut args)?) } else { None };
        args.finish()?;
        let store = Store::open(call.ctx, at, Missing::Create)?;
        let Some(given) = given else {
            send_status(call, import::status(call.ctx.selected_database(), store.name).as_ref());
            return Ok(());
        };
        if !given.check {
            call.ctx.refuse_if_out_of_memory()?;
        }

        let (database, store_exists) = (call.ctx.selected_database(), store.exists());
        let Given { file, format, check, replace, pepper, fernet } = given;
        let store = store.name.as_str().to_owned();
        import::start(call.ctx, Order { database, store, file, format, check, replace, pepper, fernet }, store_exists)?;

        call.ctx.reply_status(c"OK");
        Ok(())
    }
}

/// What a call says of an import.
struct Given {
    file: FileName,
    format: Format,
    check: bool,
    replace: bool,
    pepper: Option<String>,
    fernet: Option<String>,
}

impl Given {
    fn parse(args: &mut Args<'_>) -> Result<Self> {
        let file = file_name(args.value("FROM")?)?;
        let (mut format, mut check, mut conflict, mut pepper, mut fernet) = (None, None, None, None, None);
        while let Some(option) = args.option(&["FORMAT", "CHECK", "PEPPER", "FERNET", "ONCONFLICT"])? {
            match option {
                "FORMAT" => {
                    let word = args.value(option)?;
                    let known = FORMATS.into_iter().find(|(name, _)| word.eq_ignore_ascii_case(name.as_bytes()));
                    let accepted = "snapshot, keyguard or simple_keystore";
                    once(&mut format, option, known.ok_or(Error::Invalid { what: option, accepted })?.1)?;
                }
                "CHECK" => once(&mut check, option, ())?,
                "PEPPER" => once(&mut pepper, option, pepper_label(args.value(option)?)?)?,
                "FERNET" => once(&mut fernet, option, fernet_label(args.value(option)?)?)?,
                _ => {
                    let word = args.value(option)?;
                    let known = [("skip", false), ("replace", true)];
                    let known = known.into_iter().find(|(name, _)| word.eq_ignore_ascii_case(name.as_bytes()));
                    let accepted = "skip or replace";
                    once(&mut conflict, option, known.ok_or(Error::Invalid { what: option, accepted })?.1)?;
                }
            }
        }
        let format = format.ok_or_else(|| args.misuse())?;
        let needs = |option, label: &Option<String>, of| {
            let accepted = match (of == format, label) {
                (true, None) => "the label that it has in the keyring file: this format needs one",
                (false, Some(_)) => "not for this format",
                _ => return Ok(()),
            };
            Err(Error::Invalid { what: option, accepted })
        };
        needs("PEPPER", &pepper, Format::Keyguard)?;
        needs("FERNET", &fernet, Format::SimpleKeystore)?;
        Ok(Self { file, format, check: check.is_some(), replace: conflict.unwrap_or(false), pepper, fernet })
    }
}

/// The label of a pepper that the keyring has.
fn pepper_label(bytes: &[u8]) -> Result<String> {
    let known = |label: &&str| keyring::installed().is_some_and(|keyring| keyring.pepper(label).is_some());
    let label = str::from_utf8(bytes).ok().filter(known);
    label.map(str::to_owned).ok_or(Error::NoKeyring {
        why: "the keyring of this server has no pepper of this label: add the old secret key to \"peppers\" in the keyring file, then KG.KEYRING RELOAD",
    })
}

fn send_status(call: &Call<'_>, status: Option<&import::Report>) {
    let Some(status) = status else {
        Map::default().field("state", "none").send(call.ctx);
        return;
    };
    let order = &status.order;
    let format = FORMATS.iter().find(|(_, format)| *format == order.format).map_or("", |(name, _)| name);
    let error = status.failure.map(|failure| failure.to_string());
    let until_ms = status.ended_ms.unwrap_or(call.now_ms);
    let told = status.told.iter().map(|told| {
        let mut map = Map::default();
        map.field("table", told.table).field("rowid", told.rowid).field("why", &told.why);
        map
    });
    let mut map = Map::default();
    map.field("state", status.state.as_str())
        .field("file", order.file.as_str())
        .field("format", format)
        .field("check", order.check)
        .field("rows", status.rows)
        .field("total", status.total)
        .field("imported", status.imported.iter().sum::<u64>());
    for (what, count) in What::ALL.into_iter().zip(status.imported) {
        map.field(what.as_str(), count);
    }
    map.field("replaced", status.replaced)
        .field("skipped", status.skipped)
        .field("skips", told.collect::<Vec<_>>())
        .optional("waits", status.waits.as_ref())
        .optional("error", error.as_ref())
        .field("seconds", until_ms.saturating_sub(status.begun_ms) / 1000)
        .send(call.ctx);
}
