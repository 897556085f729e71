//! Looking over a store's key records: `KG.LISTKEYS`, `KG.COUNTKEYS`, `KG.USABILITY`.

use keyguard_core::listing::{Filter, Sets, SortBy, Sorting};
use keyguard_core::names::name;
use keyguard_core::record::{Record, RecordType};
use keyguard_core::{Error, Result, parse};

use super::keys::describe;
use super::{Call, FILTER};
use crate::args::{Args, once};
use crate::ffi::{Key, OwnedString};
use crate::register::{Access, Arg, Category, Command, Spec};
use crate::reply::{Map, integer};
use crate::store::{API_KEYS, Missing, PACKED, Store, VAULT_KEYS};

/// The most records that one call looks at.
pub(super) const MAX_READ: usize = 2_000;

/// The most records that one call describes, and as many as it does unless told otherwise.
const MAX_PAGE: usize = 1_000;

/// The most bytes of records that one call looks at: secrets of 64 KiB and META of 16 KiB would else hold the server up long
/// before there are many of them.
const MAX_BYTES: usize = 4 << 20;

/// The records that a filter may match, one after the other in order of their ids, as far as one call may look.
pub(super) struct Scan<'s, 'c> {
    store: &'s Store<'c>,
    ids: std::vec::IntoIter<u64>,
    /// The last id looked at.
    last: u64,
    looked: usize,
    bytes: usize,
}

impl<'s, 'c> Scan<'s, 'c> {
    /// Those after the id `after`.
    pub(super) fn new(store: &'s Store<'c>, filter: &Filter<'_>, after: u64) -> Result<Self> {
        // One more than are looked at tells whether there are more.
        let n = MAX_READ + 1;
        let ids = match (filter.vault_name(), filter.record_type()) {
            (Some(name), _) => store.vault_ids_named(name, after, n)?,
            (None, Some(of)) => store.ids_after(of, after, n)?,
            (None, None) => {
                let mut ids = store.ids_after(RecordType::Vault, after, n)?;
                ids.extend(store.ids_after(RecordType::Api, after, n)?);
                ids.sort_unstable();
                ids.dedup();
                ids
            }
        };
        Ok(Self { store, ids: ids.into_iter(), last: after, looked: 0, bytes: 0 })
    }

    /// The next record that exists, packed, and its key; None when there are no more or the call has looked at enough.
    ///
    /// # Errors
    /// [`Error::WrongType`] or [`Error::Damaged`] where no record of ours stands.
    pub(super) fn next(&mut self) -> Result<Option<(u64, Key<'c>, OwnedString)>> {
        while self.looked < MAX_READ && self.bytes < MAX_BYTES {
            let Some(id) = self.ids.next() else { return Ok(None) };
            self.looked += 1;
            self.last = id;
            if let Some(key) = self.store.record(id)? {
                let packed = key.hash_field(PACKED)?.ok_or(Error::Damaged { what: "key record" })?;
                self.took(&packed);
                return Ok(Some((id, key, packed)));
            }
        }
        Ok(None)
    }

    /// Counts what was read beside the records.
    fn took(&mut self, field: &OwnedString) {
        self.bytes += field.name().bytes().len();
    }

    /// The id to go on after, if records are left that were not looked at.
    pub(super) fn rest_after(&self) -> Option<u64> {
        (self.ids.len() > 0).then_some(self.last)
    }

    /// Makes sure that all was looked at.
    ///
    /// # Errors
    /// [`Error::TooMany`] `records`, which says what to do.
    pub(super) fn expect_all(&self, records: &'static str) -> Result<()> {
        match self.rest_after() {
            None => Ok(()),
            Some(_) if self.looked >= MAX_READ => Err(Error::TooMany { what: records, max: MAX_READ }),
            Some(_) => Err(Error::TooMany { what: "bytes of records to look at; look at fewer", max: MAX_BYTES }),
        }
    }
}

/// `KG.LISTKEYS store [filters] [SORTBY field [ASC|DESC]]... [LIMIT offset count | AFTER id COUNT n]`
pub struct ListKeys;

/// Which of the matching records are described.
enum Page {
    /// So many after leaving out so many.
    Limit { offset: usize, count: usize },
    /// So many after an id.
    After { id: u64, count: usize },
}

/// A record to describe.
struct Found {
    id: u64,
    packed: OwnedString,
    meta: Option<OwnedString>,
}

impl Command for ListKeys {
    const SPEC: Spec = Spec {
        name: c"KG.LISTKEYS",
        summary: c"Describes key records; never shows a secret",
        complexity: c"O(N), N being the records looked at, at most 2,000; with SORTBY O(N*log(N))",
        flags: "",
        access: Access::Read,
        category: Category::Read,
        min_args: 2,
        secrets: &[],
        args: &[
            Arg::key(c"store"),
            FILTER,
            Arg::block(
                c"sort",
                &[
                    Arg::text(c"field").token(c"SORTBY"),
                    Arg::one_of(c"order", &[Arg::word(c"asc", c"ASC"), Arg::word(c"desc", c"DESC")]).optional(),
                ],
            )
            .optional()
            .multiple(),
            Arg::one_of(
                c"page",
                &[
                    Arg::block(c"limit", &[Arg::integer(c"offset").token(c"LIMIT"), Arg::integer(c"count")]),
                    Arg::block(c"after", &[Arg::integer(c"id").token(c"AFTER"), Arg::integer(c"n").token(c"COUNT")]),
                ],
            )
            .optional(),
        ],
    };

    fn run(call: &Call<'_>, mut args: Args<'_>) -> Result<()> {
        const OPTIONS: &[&str] = &[
            "TYPE", "NAME", "SOURCE", "LOGIN", "BATCH", "ACCOUNT", "ORG", "ACTIVE", "EXPIRED", "SORTBY", "LIMIT",
            "AFTER",
        ];
        let at = args.store()?;
        let mut filter = Filter::default();
        let mut sort_by = SortBy::default();
        let mut page = None;
        while let Some(option) = args.option(OPTIONS)? {
            match option {
                "SORTBY" => sort_by.take(&mut args)?,
                "LIMIT" => once(&mut page, option, limit(&mut args)?)?,
                "AFTER" => once(&mut page, option, after(&mut args)?)?,
                _ => drop(filter.take(option, &mut args)?),
            }
        }
        if !sort_by.is_empty() && matches!(page, Some(Page::After { .. })) {
            return Err(args.misuse());
        }
        args.finish()?;
        let store = Store::open(call.ctx, at, Missing::Refuse)?;

        let page = page.unwrap_or(Page::Limit { offset: 0, count: MAX_PAGE });
        let (found, rest_after) = match page {
            Page::After { id, count } => {
                let mut scan = Scan::new(&store, &filter, id)?;
                let found = matching(&mut scan, &filter, call.now_ms, 0, count)?;
                let rest_after = scan.rest_after().filter(|_| found.len() < count);
                (found, rest_after)
            }
            Page::Limit { offset, count } if sort_by.is_empty() => {
                let mut scan = Scan::new(&store, &filter, 0)?;
                let found = matching(&mut scan, &filter, call.now_ms, offset, count)?;
                if found.len() < count {
                    scan.expect_all(MAX_LISTED)?;
                }
                (found, None)
            }
            Page::Limit { offset, count } => {
                let mut scan = Scan::new(&store, &filter, 0)?;
                let found = matching(&mut scan, &filter, call.now_ms, 0, usize::MAX)?;
                scan.expect_all(MAX_SORTED)?;
                (sorted(found, &sort_by, call.now_ms, offset, count)?, None)
            }
        };
        let mut records = Vec::with_capacity(found.len());
        for found in &found {
            records.push((found, Record::decode(found.packed.name().bytes())?));
        }

        call.ctx.reply_array(records.len() + usize::from(rest_after.is_some()));
        for (found, record) in &records {
            describe(call, found.id, record, found.meta.as_ref().map(|meta| meta.name().bytes()));
        }
        if let Some(after) = rest_after {
            Map::default().field("after", after).send(call.ctx);
        }
        Ok(())
    }
}

const MAX_LISTED: &str = "records to look at: filter by NAME or TYPE, or page by AFTER";
const MAX_SORTED: &str = "records to sort: filter by NAME or TYPE, or page by AFTER";

/// Reads what follows the word LIMIT.
fn limit(args: &mut Args<'_>) -> Result<Page> {
    let offset = parse::unsigned(args.value("LIMIT")?).and_then(|offset| usize::try_from(offset).ok());
    let offset = offset
        .filter(|offset| *offset <= MAX_READ)
        .ok_or(Error::Invalid { what: "offset", accepted: "a whole number from 0 to 2000" })?;
    Ok(Page::Limit { offset, count: page_size(args)? })
}

/// Reads what follows the word AFTER.
fn after(args: &mut Args<'_>) -> Result<Page> {
    let id = args.id()?;
    if !args.take_word("COUNT") {
        return Err(args.misuse());
    }
    Ok(Page::After { id, count: page_size(args)? })
}

fn page_size(args: &mut Args<'_>) -> Result<usize> {
    let count = args.positive("count", MAX_PAGE as u64, "a whole number from 1 to 1000")?;
    Ok(usize::try_from(count).unwrap_or(MAX_PAGE))
}

/// The records that match, from the one after `offset` of them on, until there are `count`.
fn matching(
    scan: &mut Scan<'_, '_>,
    filter: &Filter<'_>,
    now_ms: u64,
    offset: usize,
    count: usize,
) -> Result<Vec<Found>> {
    let mut found = Vec::new();
    let mut passed = 0;
    while found.len() < count
        && let Some((id, key, packed)) = scan.next()?
    {
        if !filter.matches(&Record::decode(packed.name().bytes())?, now_ms) {
            continue;
        }
        if passed < offset {
            passed += 1;
            continue;
        }
        let meta = key.hash_field(c"meta")?;
        meta.iter().for_each(|meta| scan.took(meta));
        found.push(Found { id, packed, meta });
    }
    Ok(found)
}

/// Some of the records, in an order other than that of their ids.
fn sorted(found: Vec<Found>, sort_by: &SortBy, now_ms: u64, offset: usize, count: usize) -> Result<Vec<Found>> {
    let mut sorting = Sorting::new(sort_by, found.len());
    for found in &found {
        sorting.push(found.id, &Record::decode(found.packed.name().bytes())?, now_ms);
    }
    let positions = sorting.into_positions();
    let mut found: Vec<Option<Found>> = found.into_iter().map(Some).collect();
    let page = positions.into_iter().skip(offset).take(count);
    Ok(page.filter_map(|position| found.get_mut(position).and_then(Option::take)).collect())
}

/// `KG.COUNTKEYS store [filters]`
pub struct CountKeys;

impl Command for CountKeys {
    const SPEC: Spec = Spec {
        name: c"KG.COUNTKEYS",
        summary: c"Counts key records",
        complexity: c"O(1) for all, a TYPE or a NAME; else O(N), N being the records looked at, at most 2,000",
        flags: "",
        access: Access::Read,
        category: Category::Read,
        min_args: 2,
        secrets: &[],
        args: &[Arg::key(c"store"), FILTER],
    };

    fn run(call: &Call<'_>, mut args: Args<'_>) -> Result<()> {
        let at = args.store()?;
        let mut filter = Filter::default();
        while let Some(option) = args.option(&Filter::OPTIONS)? {
            filter.take(option, &mut args)?;
        }
        args.finish()?;
        let store = Store::open(call.ctx, at, Missing::Refuse)?;

        let count = if filter.is_type_only() {
            match filter.record_type() {
                Some(RecordType::Vault) => store.counted(VAULT_KEYS)?,
                Some(RecordType::Api) => store.counted(API_KEYS)?,
                None => store.counted(VAULT_KEYS)?.saturating_add(store.counted(API_KEYS)?),
            }
        } else if let Some(name) = filter.vault_name_only() {
            store.named(name)?
        } else {
            let mut scan = Scan::new(&store, &filter, 0)?;
            let mut count = 0;
            while let Some((_, _, packed)) = scan.next()? {
                count += u64::from(filter.matches(&Record::decode(packed.name().bytes())?, call.now_ms));
            }
            scan.expect_all("records to look at: filter by NAME or TYPE")?;
            count
        };

        call.ctx.reply_integer(integer(count));
        Ok(())
    }
}

/// `KG.USABILITY store [NAME name]`
pub struct UsabilityOfSets;

impl Command for UsabilityOfSets {
    const SPEC: Spec = Spec {
        name: c"KG.USABILITY",
        summary:
            c"Counts the vault keys of each set that has name, source, login and batch in common, and what use they are",
        complexity: c"O(N*log(N)), N being the vault keys of the store, or of the name; at most 2,000",
        flags: "",
        access: Access::Read,
        category: Category::Read,
        min_args: 2,
        secrets: &[],
        args: &[Arg::key(c"store"), Arg::text(c"name").token(c"NAME").optional()],
    };

    fn run(call: &Call<'_>, mut args: Args<'_>) -> Result<()> {
        let at = args.store()?;
        let mut filter = Filter { of_type: Some(RecordType::Vault), ..Filter::default() };
        while let Some(option) = args.option(&["NAME"])? {
            once(&mut filter.name, option, name(args.value(option)?, option)?)?;
        }
        args.finish()?;
        let store = Store::open(call.ctx, at, Missing::Refuse)?;

        let mut scan = Scan::new(&store, &filter, 0)?;
        let mut packed = Vec::new();
        while let Some((_, _, record)) = scan.next()? {
            packed.push(record);
        }
        scan.expect_all("vault keys to look at: give a NAME")?;
        let mut sets = Sets::default();
        for packed in &packed {
            let record = Record::decode(packed.name().bytes())?;
            if let Record::Vault(vault) = &record
                && filter.matches(&record, call.now_ms)
            {
                sets.add(vault, call.now_ms);
            }
        }

        call.ctx.reply_array(sets.len());
        for (set, usability) in sets.iter() {
            Map::default()
                .field("name", set.name)
                .optional("source", set.source)
                .optional("login", set.login)
                .optional("batch", set.batch)
                .field("total", usability.total)
                .field("active", usability.active)
                .field("expired", usability.expired)
                .field("usable", usability.usable)
                .optional("expires_at", usability.expires_ms)
                .send(call.ctx);
        }
        Ok(())
    }
}
