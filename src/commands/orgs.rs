//! Organizations: `KG.ADDORG`, `KG.SETORG`.

use keyguard_core::names::name;
use keyguard_core::record::{OrgRecord, OrgStatus, UnitLimits};
use keyguard_core::{Error, Result};

use super::{Call, LIMIT, unit_limit};
use crate::args::{Args, once};
use crate::ffi::Kind;
use crate::register::{Access, Arg, Category, Command, Spec};
use crate::reply::integer;
use crate::store::{Missing, Store, org_fields};

/// `KG.ADDORG store name [LIMIT count window [UNIT u]]...`
pub struct AddOrg;

impl Command for AddOrg {
    const SPEC: Spec = Spec {
        name: c"KG.ADDORG",
        summary: c"Adds an organization, whose keys share its limits, and answers its id",
        complexity: c"O(1)",
        flags: "deny-oom",
        access: Access::Write,
        category: Category::Admin,
        min_args: 3,
        secrets: &[],
        secrets_from: 0,
        args: &[Arg::key(c"store"), Arg::text(c"name"), LIMIT],
    };

    fn run(call: &Call<'_>, mut args: Args<'_>) -> Result<()> {
        let at = args.store()?;
        let org = name(args.bytes()?, "name")?;
        let mut limits = UnitLimits::new();
        while let Some(option) = args.option(&["LIMIT", "QUOTA"])? {
            match option {
                "LIMIT" => unit_limit(&mut args, &mut limits)?,
                what => return Err(Error::NotYet { what }),
            }
        }
        args.finish()?;
        let store = Store::open(call.ctx, at, Missing::Create)?;

        match store.packed_org(org) {
            Err(Error::NoSuch { .. }) => {}
            Err(error) => return Err(error),
            Ok(_) => return Err(Error::Duplicate { what: "an organization of this name" }),
        }
        let names = store.name.orgs();
        store.expect(&names, Kind::Hash)?;
        let id = store.next_id()?;
        let record = OrgRecord { id, status: OrgStatus::Active, created_ms: call.now_ms, limits };
        let fields = org_fields(org, &record)?;

        store.write_header(call.now_ms, Some(id))?;
        store.write(c"HSET", &[&names, org.as_bytes(), id.to_string().as_bytes()])?;
        store.write_hash(&store.name.org(org), &fields)?;

        call.ctx.reply_integer(integer(id));
        Ok(())
    }
}

/// `KG.SETORG store name [STATUS active|suspended] [LIMIT count window [UNIT u]]...`
pub struct SetOrg;

impl Command for SetOrg {
    const SPEC: Spec = Spec {
        name: c"KG.SETORG",
        summary: c"Suspends an organization, lets it work again, or replaces its limits",
        complexity: c"O(1)",
        flags: "",
        access: Access::Write,
        category: Category::Admin,
        min_args: 3,
        secrets: &[],
        secrets_from: 0,
        args: &[
            Arg::key(c"store"),
            Arg::text(c"name"),
            Arg::one_of(c"status", &[Arg::word(c"active", c"active"), Arg::word(c"suspended", c"suspended")])
                .token(c"STATUS")
                .optional(),
            LIMIT,
        ],
    };

    fn run(call: &Call<'_>, mut args: Args<'_>) -> Result<()> {
        let at = args.store()?;
        let org = name(args.bytes()?, "name")?;
        let mut status = None;
        let mut limits = UnitLimits::new();
        while let Some(option) = args.option(&["STATUS", "LIMIT", "QUOTA"])? {
            match option {
                "STATUS" => once(&mut status, option, parse_status(args.value(option)?)?)?,
                "LIMIT" => unit_limit(&mut args, &mut limits)?,
                what => return Err(Error::NotYet { what }),
            }
        }
        args.finish()?;
        let store = Store::open(call.ctx, at, Missing::Refuse)?;

        let packed = store.packed_org(org)?;
        let mut record = OrgRecord::decode(packed.name().bytes())?;
        record.status = status.unwrap_or(record.status);
        if !limits.is_empty() {
            record.limits = limits;
        }

        store.write_hash(&store.name.org(org), &org_fields(org, &record)?)?;

        call.ctx.reply_status(c"OK");
        Ok(())
    }
}

fn parse_status(word: &[u8]) -> Result<OrgStatus> {
    [OrgStatus::Active, OrgStatus::Suspended]
        .into_iter()
        .find(|status| word.eq_ignore_ascii_case(status.as_str().as_bytes()))
        .ok_or(Error::Invalid { what: "STATUS", accepted: "active or suspended" })
}
