//! Deleting key records: `KG.DELKEY`.

use keyguard_core::listing::Filter;
use keyguard_core::record::Record;
use keyguard_core::{Error, Result};

use super::list::{MAX_READ, Scan};
use super::{Call, FILTER_OPTIONS, OF_TYPE};
use crate::args::Args;
use crate::doomed::Doomed;
use crate::register::{Access, Arg, Category, Command, Spec};
use crate::reply::integer;
use crate::store::{Missing, Packed, Store};
use crate::usage;

/// The most records that one call deletes: more would hold the server up for over 2 ms.
pub(super) const MAX_DELETED: usize = 100;

/// Deleting a record takes as long as looking at so many: where few match, a call deletes less, and holds the server up no longer.
const DELETING: usize = 7;

/// `KG.DELKEY store <id [id ...] | MATCH TYPE t filters | ALL TYPE t>`
pub struct DelKey;

/// Which records go.
enum Which<'a> {
    /// Those with these ids, in order.
    Ids(Vec<u64>),
    /// The first that match.
    Matching(Filter<'a>),
}

impl Command for DelKey {
    const SPEC: Spec = Spec {
        name: c"KG.DELKEY",
        summary: c"Deletes key records and all that belongs to them",
        complexity: c"O(N), N being the ids, or the records looked at, at most 1,000",
        flags: "",
        access: Access::Write,
        category: Category::Admin,
        min_args: 3,
        secrets: &[],
        secrets_from: 0,
        args: &[
            Arg::key(c"store"),
            Arg::one_of(
                c"which",
                &[
                    Arg::integer(c"id").multiple(),
                    Arg::block(c"match", &[OF_TYPE, FILTER_OPTIONS]).token(c"MATCH"),
                    Arg::block(c"all", &[OF_TYPE]).token(c"ALL"),
                ],
            ),
        ],
    };

    fn run(call: &Call<'_>, mut args: Args<'_>) -> Result<()> {
        let at = args.store()?;
        let which = which(args)?;
        let store = Store::open(call.ctx, at, Missing::Refuse)?;

        let packed = match which {
            Which::Ids(ids) => existing(&store, &ids)?,
            Which::Matching(filter) => matching(&store, &filter, call.now_ms)?,
        };
        let mut records = Vec::with_capacity(packed.len());
        for (id, packed) in &packed {
            records.push((*id, Record::decode(packed.bytes())?));
        }
        let doomed = Doomed::gather(&store, &records)?;

        doomed.delete(&store)?;
        let ids: Vec<u64> = records.iter().map(|(id, _)| *id).collect();
        usage::forget_keys(&store, &ids, call.now_ms)?;

        call.ctx.reply_integer(integer(records.len() as u64));
        Ok(())
    }
}

/// Reads what follows the store.
fn which<'c>(mut args: Args<'c>) -> Result<Which<'c>> {
    if args.take_word("MATCH") {
        let mut filter = Filter::default();
        while let Some(option) = args.option(&Filter::OPTIONS)? {
            filter.take(option, &mut args)?;
        }
        // Without a filter it would be ALL: who forgets one must not lose everything.
        return match filter.of_type {
            Some(_) if !filter.is_type_only() => Ok(Which::Matching(filter)),
            _ => Err(args.misuse()),
        };
    }
    if args.take_word("ALL") {
        let mut filter = Filter::default();
        while let Some(option) = args.option(&["TYPE"])? {
            filter.take(option, &mut args)?;
        }
        return if filter.of_type.is_some() { Ok(Which::Matching(filter)) } else { Err(args.misuse()) };
    }
    if args.left() > MAX_DELETED {
        return Err(Error::TooMany { what: "ids in one call", max: MAX_DELETED });
    }
    let mut ids = vec![args.id()?];
    while args.left() > 0 {
        ids.push(args.id()?);
    }
    args.finish()?;
    ids.sort_unstable();
    ids.dedup();
    Ok(Which::Ids(ids))
}

/// Those of the records that there are.
fn existing(store: &Store<'_>, ids: &[u64]) -> Result<Vec<(u64, Packed)>> {
    let mut packed = Vec::new();
    for id in ids {
        match store.packed_record(*id) {
            Err(Error::NoSuch { .. }) => {}
            found => packed.push((*id, found?)),
        }
    }
    Ok(packed)
}

/// The first records that match, as many as one call deletes.
///
/// # Errors
/// [`Error::TooMany`] if none was found and there are more: nothing deleted would mean that all is done.
fn matching(store: &Store<'_>, filter: &Filter<'_>, now_ms: u64) -> Result<Vec<(u64, Packed)>> {
    let mut scan = Scan::new(store, filter, 0)?;
    let mut found = Vec::new();
    while found.len() < MAX_DELETED
        && scan.looked() + found.len() * DELETING < 2 * MAX_READ
        && let Some((id, _, packed)) = scan.matching(filter, now_ms)?
    {
        found.push((id, packed));
    }
    if found.is_empty() {
        scan.expect_all("records without a match: filter by NAME, or delete the ids that KG.LISTKEYS finds by AFTER")?;
    }
    Ok(found)
}
