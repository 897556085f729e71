//! The commands: a file per family, and the one table of them all.
//!
//! A handler is four paragraphs: parse, decide, effect, reply. What a command is called, which key it declares, what it may do
//! and how `COMMAND DOCS` describes it stand beside its handler in a [`Command`].

pub mod acquire;
pub mod addresses;
pub mod apikeys;
pub mod apply;
pub mod auth;
pub mod claim;
pub mod delete;
mod given;
#[cfg(feature = "snapshot")]
pub mod import;
pub mod ip;
pub mod keyring;
pub mod keys;
pub mod list;
pub mod orgs;
#[cfg(feature = "snapshot")]
pub mod snapshot;
pub mod stores;
pub mod usage;

use std::ffi::CStr;

use keyguard_core::Result;
use keyguard_core::limit::MAX_LIMITS;
use keyguard_core::quota::{self, Period, Quota, Quotas};
use keyguard_core::record::{DEFAULT_UNIT, UnitLimit, UnitLimits, parse_unit};
use keyguard_core::{Error, parse};

use crate::args::Args;
use crate::ffi::Ctx;
use crate::register::{Arg, Entry};

/// Every command.
pub fn table() -> Vec<Entry> {
    vec![
        Entry::of::<claim::Claim>(),
        Entry::of::<claim::Remaining>(),
        Entry::of::<claim::Refund>(),
        Entry::of::<claim::Inspect>(),
        Entry::of::<keys::AddKey>(),
        Entry::of::<keys::SetKey>(),
        Entry::of::<keys::GetKey>(),
        Entry::of::<keys::Reveal>(),
        Entry::of::<keys::FindKey>(),
        Entry::of::<acquire::NextKey>(),
        Entry::of::<acquire::Acquire>(),
        Entry::of::<acquire::Settle>(),
        Entry::of::<acquire::Feedback>(),
        Entry::of::<list::ListKeys>(),
        Entry::of::<list::CountKeys>(),
        Entry::of::<list::UsabilityOfSets>(),
        Entry::of::<delete::DelKey>(),
        Entry::of::<orgs::AddOrg>(),
        Entry::of::<orgs::SetOrg>(),
        Entry::of::<orgs::GetOrg>(),
        Entry::of::<orgs::ListOrgs>(),
        Entry::of::<orgs::DelOrg>(),
        Entry::of::<apikeys::NewKey>(),
        Entry::of::<apikeys::Rotate>(),
        Entry::of::<apikeys::Revoke>(),
        Entry::of::<auth::Auth>(),
        Entry::of::<auth::Check>(),
        Entry::of::<ip::BlockIp>(),
        Entry::of::<ip::UnblockIp>(),
        Entry::of::<ip::AllowIp>(),
        Entry::of::<ip::UnallowIp>(),
        Entry::of::<ip::ListIps>(),
        Entry::of::<ip::CheckIp>(),
        Entry::of::<stores::SetStore>(),
        Entry::of::<stores::GetStore>(),
        Entry::of::<stores::DelStore>(),
        Entry::of::<addresses::ClaimIp>(),
        Entry::of::<addresses::ClearIp>(),
        Entry::of::<usage::Log>(),
        Entry::of::<usage::Stats>(),
        Entry::of::<usage::Usage>(),
        Entry::of::<keyring::KeyringCommand>(),
        Entry::of::<keyring::Rekey>(),
        #[cfg(feature = "snapshot")]
        Entry::of::<snapshot::Snapshot>(),
        #[cfg(feature = "snapshot")]
        Entry::of::<import::Import>(),
        Entry::of::<apply::Apply>(),
    ]
}

/// The call that a handler answers.
pub struct Call<'c> {
    /// The server.
    pub ctx: Ctx<'c>,
    /// The clock, read once, in unix milliseconds.
    pub now_ms: u64,
}

/// `LIMIT count window [UNIT u]`, which may be given several times.
const LIMIT: Arg = Arg::block(
    c"limit",
    &[Arg::integer(c"count").token(c"LIMIT"), Arg::text(c"window"), Arg::text(c"unit").token(c"UNIT").optional()],
)
.optional()
.multiple();

/// `QUOTA n day | month | total [UNIT u]`, which may be given several times.
const QUOTA: Arg = Arg::block(
    c"quota",
    &[
        Arg::integer(c"count").token(c"QUOTA"),
        Arg::one_of(
            c"period",
            &[Arg::word(c"day", c"day"), Arg::word(c"month", c"month"), Arg::word(c"total", c"total")],
        ),
        Arg::text(c"unit").token(c"UNIT").optional(),
    ],
)
.optional()
.multiple();

/// `SCOPES a,b`.
const SCOPES: Arg = Arg::text(c"scopes").token(c"SCOPES").optional();

/// `ALLOW net`, which may be given several times.
const ALLOW: Arg = Arg::text(c"net").token(c"ALLOW").optional().multiple();

/// `TYPE vault | api`.
const OF_TYPE: Arg = Arg::one_of(c"type", &[Arg::word(c"vault", c"vault"), Arg::word(c"api", c"api")]).token(c"TYPE");

/// What a filter takes beside TYPE.
const FILTER_OPTIONS: Arg = Arg::block(
    c"filters",
    &[
        Arg::text(c"name").token(c"NAME").optional(),
        Arg::text(c"source").token(c"SOURCE").optional(),
        Arg::text(c"login").token(c"LOGIN").optional(),
        Arg::text(c"batch").token(c"BATCH").optional(),
        Arg::text(c"account").token(c"ACCOUNT").optional(),
        Arg::text(c"org").token(c"ORG").optional(),
        yes_or_no(c"active", c"ACTIVE"),
        yes_or_no(c"expired", c"EXPIRED"),
    ],
);

/// The options of `keyguard_core::listing::Filter`.
const FILTER: Arg = Arg::block(c"filter", &[OF_TYPE.optional(), FILTER_OPTIONS]);

const fn yes_or_no(name: &'static CStr, token: &'static CStr) -> Arg {
    const WORDS: &[Arg] = &[Arg::word(c"yes", c"yes"), Arg::word(c"no", c"no")];
    Arg::one_of(name, WORDS).token(token).optional()
}

/// `COST n [UNIT u]`, which may be given several times.
const COST: Arg =
    Arg::block(c"cost", &[Arg::integer(c"n").token(c"COST"), Arg::text(c"unit").token(c"UNIT").optional()])
        .optional()
        .multiple();

/// `EXPIREAT t | EXPIREIN d`.
const EXPIRY: Arg =
    Arg::one_of(c"expiry", &[Arg::text(c"time").token(c"EXPIREAT"), Arg::text(c"duration").token(c"EXPIREIN")])
        .optional();

/// Reads what follows the word LIMIT.
fn unit_limit<'c>(args: &mut Args<'c>, limits: &mut UnitLimits<'c>) -> Result<()> {
    let limit = args.limit()?;
    let unit = unit(args)?;
    limits.try_push(UnitLimit { unit, limit }).map_err(|_| Error::TooManyItems { what: "limits", max: MAX_LIMITS })
}

/// Reads what follows the word QUOTA.
fn quota<'c>(args: &mut Args<'c>, quotas: &mut Quotas<'c>) -> Result<()> {
    let count = args.units("QUOTA")?;
    let period = Period::parse(args.bytes()?)?;
    let unit = unit(args)?;
    quota::add(quotas, Quota { count, period, unit })
}

/// Reads `UNIT u`, if it comes next.
fn unit<'c>(args: &mut Args<'c>) -> Result<&'c str> {
    if args.take_word("UNIT") { parse_unit(args.value("UNIT")?) } else { Ok(DEFAULT_UNIT) }
}

/// Reads the value of EXPIREAT or EXPIREIN: unix milliseconds, or `None` for never.
fn expiry(args: &mut Args<'_>, option: &'static str, now_ms: u64) -> Result<Option<u64>> {
    let value = args.value(option)?;
    if option == "EXPIREIN" {
        return Ok(Some(now_ms + parse::duration_ms(value, option)?));
    }
    let at_ms = parse::instant_ms(value, option)?;
    Ok((at_ms > 0).then_some(at_ms))
}
