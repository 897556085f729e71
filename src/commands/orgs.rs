//! Organizations: `KG.ADDORG`, `KG.SETORG`, `KG.GETORG`, `KG.LISTORGS`, `KG.DELORG`.

use keyguard_core::names::{Derived, Listed, name};
use keyguard_core::quota::Quotas;
use keyguard_core::record::{OrgRecord, OrgStatus, UnitLimits};
use keyguard_core::{Error, Result};

use super::list::{MAX_PAGE, MAX_READ, after};
use super::{Call, LIMIT, QUOTA, quota, unit_limit};
use crate::adding::NewOrg;
use crate::args::{Args, once};
use crate::ffi::{Kind, OwnedString};
use crate::register::{Access, Arg, Category, Command, Spec};
use crate::reply::{Map, Value, integer};
use crate::store::{Missing, ORGANIZATIONS, OrgNames, Packed, Store, org_fields};

/// `STATUS active | suspended`.
const STATUS: Arg = Arg::one_of(c"status", &[Arg::word(c"active", c"active"), Arg::word(c"suspended", c"suspended")])
    .token(c"STATUS")
    .optional();

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
        args: &[Arg::key(c"store"), Arg::text(c"name"), LIMIT, QUOTA],
    };

    fn run(call: &Call<'_>, mut args: Args<'_>) -> Result<()> {
        let at = args.store()?;
        let org = name(args.bytes()?, "name")?;
        let (mut limits, mut quotas) = (UnitLimits::new(), Quotas::new());
        while let Some(option) = args.option(&["LIMIT", "QUOTA"])? {
            match option {
                "LIMIT" => unit_limit(&mut args, &mut limits)?,
                _ => quota(&mut args, &mut quotas)?,
            }
        }
        args.finish()?;
        let store = Store::open(call.ctx, at, Missing::Create)?;

        let id = store.next_id()?;
        let record = OrgRecord { id, status: OrgStatus::Active, created_ms: call.now_ms, limits, quotas };
        let adding = NewOrg::expect(&store, org, &record)?;

        adding.write(&store, call.now_ms)?;

        call.ctx.reply_integer(integer(id));
        Ok(())
    }
}

/// `KG.SETORG store name [STATUS active|suspended] [LIMIT count window [UNIT u]]... [CLEAR field]...`
pub struct SetOrg;

impl Command for SetOrg {
    const SPEC: Spec = Spec {
        name: c"KG.SETORG",
        summary: c"Suspends an organization, lets it work again, or changes its limits and quotas",
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
            STATUS,
            LIMIT,
            QUOTA,
            Arg::text(c"field").token(c"CLEAR").optional().multiple(),
        ],
    };

    fn run(call: &Call<'_>, mut args: Args<'_>) -> Result<()> {
        let at = args.store()?;
        let org = name(args.bytes()?, "name")?;
        let mut status = None;
        let (mut limits, mut quotas) = (UnitLimits::new(), Quotas::new());
        let (mut clear_limits, mut clear_quotas) = (None, None);
        while let Some(option) = args.option(&["STATUS", "LIMIT", "QUOTA", "CLEAR"])? {
            match option {
                "STATUS" => once(&mut status, option, parse_status(args.value(option)?)?)?,
                "LIMIT" => unit_limit(&mut args, &mut limits)?,
                "QUOTA" => quota(&mut args, &mut quotas)?,
                _ => {
                    let field = args.value(option)?;
                    let cleared = [("limits", &mut clear_limits), ("quotas", &mut clear_quotas)];
                    let known = cleared.into_iter().find(|(name, _)| field.eq_ignore_ascii_case(name.as_bytes()));
                    let (_, cleared) = known.ok_or(Error::Invalid { what: option, accepted: "limits or quotas" })?;
                    once(cleared, option, ())?;
                }
            }
        }
        args.finish()?;
        if clear_limits.is_some() && !limits.is_empty() || clear_quotas.is_some() && !quotas.is_empty() {
            return Err(Error::Repeated { option: "CLEAR" });
        }
        let store = Store::open(call.ctx, at, Missing::Refuse)?;

        let packed = store.packed_org(org)?;
        let mut record = OrgRecord::decode(packed.bytes())?;
        let before = record.status;
        record.status = status.unwrap_or(before);
        if clear_limits.is_some() || !limits.is_empty() {
            record.limits = limits;
        }
        if clear_quotas.is_some() || !quotas.is_empty() {
            record.quotas = quotas;
        }
        let (key, fields) = (store.name.org(org), org_fields(org, &record)?);

        store.rewrite_hash(&key, &fields, &[])?;
        if record.status != before {
            let event = if record.status == OrgStatus::Active { c"kg.activate" } else { c"kg.suspend" };
            call.ctx.notify(event, OwnedString::new(&key).name());
        }

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

/// `KG.GETORG store name`
pub struct GetOrg;

impl Command for GetOrg {
    const SPEC: Spec = Spec {
        name: c"KG.GETORG",
        summary: c"Describes an organization",
        complexity: c"O(1)",
        flags: "",
        access: Access::Read,
        category: Category::Read,
        min_args: 3,
        secrets: &[],
        secrets_from: 0,
        args: &[Arg::key(c"store"), Arg::text(c"name")],
    };

    fn run(call: &Call<'_>, mut args: Args<'_>) -> Result<()> {
        let at = args.store()?;
        let org = name(args.bytes()?, "name")?;
        args.finish()?;
        let store = Store::open(call.ctx, at, Missing::Refuse)?;
        let packed = store.packed_org(org)?;
        let record = OrgRecord::decode(packed.bytes())?;
        let keys = store.keys_of_org(org)?;

        describe(call, org, &record, keys);
        Ok(())
    }
}

fn describe(call: &Call<'_>, org: &str, record: &OrgRecord<'_>, keys: u64) {
    let quotas: Vec<String> = record.quotas.iter().map(ToString::to_string).collect();
    Map::default()
        .field("id", record.id)
        .field("name", org)
        .field("status", record.status.as_str())
        .field("created_at", record.created_ms)
        .field("limits", &record.limits)
        .field("quotas", Value::Strings(quotas.iter().map(String::as_str).collect()))
        .field("keys", keys)
        .send(call.ctx);
}

/// `KG.LISTORGS store [STATUS active|suspended] [AFTER id COUNT n]`
pub struct ListOrgs;

impl Command for ListOrgs {
    const SPEC: Spec = Spec {
        name: c"KG.LISTORGS",
        summary: c"Describes organizations, in order of their ids",
        complexity: c"O(N), N being the organizations looked at, at most 1,000",
        flags: "",
        access: Access::Read,
        category: Category::Read,
        min_args: 2,
        secrets: &[],
        secrets_from: 0,
        args: &[
            Arg::key(c"store"),
            STATUS,
            Arg::block(c"page", &[Arg::integer(c"id").token(c"AFTER"), Arg::integer(c"n").token(c"COUNT")]).optional(),
        ],
    };

    fn run(call: &Call<'_>, mut args: Args<'_>) -> Result<()> {
        let at = args.store()?;
        let (mut status, mut page) = (None, None);
        while let Some(option) = args.option(&["STATUS", "AFTER"])? {
            match option {
                "STATUS" => once(&mut status, option, parse_status(args.value(option)?)?)?,
                _ => once(&mut page, option, after(&mut args)?)?,
            }
        }
        args.finish()?;
        let store = Store::open(call.ctx, at, Missing::Refuse)?;

        let (after, count) = page.unwrap_or((0, MAX_PAGE));
        // One more than are looked at tells whether there are more.
        let mut ids = store.ids_after(Listed::Orgs, after, MAX_READ + 1)?;
        let more = ids.len() > MAX_READ;
        ids.truncate(MAX_READ);
        let names = OrgNames::of(&store)?;
        // The buffer for the names of keys is made once.
        let (mut key, mut found) = (Vec::new(), Vec::new());
        for id in &ids {
            if found.len() == count {
                break;
            }
            let Some(org) = names.name(*id)? else { continue };
            store.name.write_derived(&Derived::Org(org.as_bytes()), &mut key);
            let record = store.read(&key)?;
            if record.kind() == Kind::Empty {
                // Somebody deleted it by hand.
                continue;
            }
            let packed = Packed::read(&record)?.ok_or(Error::Damaged { what: "organization record" })?;
            let (its_id, its_status) = {
                let record = OrgRecord::decode(packed.bytes())?;
                (record.id, record.status)
            };
            // One that was deleted by hand and added again is listed under its new id.
            if its_id == *id && status.is_none_or(|status| status == its_status) {
                found.push((org, packed));
            }
        }
        let mut orgs = Vec::with_capacity(found.len());
        for (org, packed) in &found {
            orgs.push((org.as_str(), OrgRecord::decode(packed.bytes())?, store.keys_of_org(org)?));
        }

        let rest_after = ids.last().filter(|_| more && found.len() < count);
        call.ctx.reply_array(orgs.len() + usize::from(rest_after.is_some()));
        orgs.iter().for_each(|(org, record, keys)| describe(call, org, record, *keys));
        if let Some(after) = rest_after {
            Map::default().field("after", *after).send(call.ctx);
        }
        Ok(())
    }
}

/// `KG.DELORG store name`
pub struct DelOrg;

impl Command for DelOrg {
    const SPEC: Spec = Spec {
        name: c"KG.DELORG",
        summary: c"Deletes an organization that has no keys",
        complexity: c"O(1)",
        flags: "fast",
        access: Access::Write,
        category: Category::Admin,
        min_args: 3,
        secrets: &[],
        secrets_from: 0,
        args: &[Arg::key(c"store"), Arg::text(c"name")],
    };

    fn run(call: &Call<'_>, mut args: Args<'_>) -> Result<()> {
        let at = args.store()?;
        let org = name(args.bytes()?, "name")?;
        args.finish()?;
        let store = Store::open(call.ctx, at, Missing::Refuse)?;

        let packed = store.packed_org(org)?;
        let record = OrgRecord::decode(packed.bytes())?;
        if store.keys_of_org(org)? > 0 {
            return Err(Error::InUse { what: "organization still has API keys" });
        }
        let (key, win, names) = (store.name.org(org), store.name.orgwin(org), store.name.orgs());
        store.read(&win)?;
        store.expect(&names, Kind::Hash)?;
        store.expect(&store.name.ids(Listed::Orgs), Kind::Text)?;
        store.expect_counts(&[ORGANIZATIONS], None)?;

        store.delist(Listed::Orgs, &[record.id])?;
        store.write(c"HDEL", &[&names, record.id.to_string().as_bytes()])?;
        store.write(c"DEL", &[&key, &win])?;
        store.count(ORGANIZATIONS, -1)?;

        call.ctx.reply_status(c"OK");
        Ok(())
    }
}
