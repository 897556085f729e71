//! Looking over a store's key records: `KG.LISTKEYS`, `KG.COUNTKEYS`, `KG.USABILITY`.

use keyguard_core::listing::{Filter, Sets, SortBy, Sorting};
use keyguard_core::names::{Derived, name};
use keyguard_core::pool::Pool;
use keyguard_core::record::{Record, RecordType, VaultRecord};
use keyguard_core::{Error, Result, parse};

use super::keys::{Beside, describe, history_of, pool_of};
use super::{Call, FILTER};
use crate::args::{Args, once};
use crate::ffi::{Key, Kind};
use crate::register::{Access, Arg, Category, Command, Spec};
use crate::reply::{Map, integer};
use crate::store::{API_KEYS, Missing, Packed, Store, VAULT_KEYS};

/// The most records that one call looks at: more would hold the server up for over 2 ms, together with describing a page.
pub(super) const MAX_READ: usize = 1_000;

/// The most records that one call describes, and as many as it does unless told otherwise.
pub(super) const MAX_PAGE: usize = 200;

/// The most bytes of records that one call looks at: secrets of 64 KiB and META of 16 KiB would else hold the server up long
/// before there are many of them.
pub(super) const MAX_BYTES: usize = 2 << 20;

/// The most keys of one name that one call counts set by set.
const MAX_COUNTED: usize = 10_000;

const MANY_BYTES: Error = Error::TooMany { what: "bytes of records to look at: ask for fewer", max: MAX_BYTES };

/// The records that a filter may match, one after the other in order of their ids, as far as one call may look.
pub(super) struct Scan<'s, 'c> {
    store: &'s Store<'c>,
    ids: std::vec::IntoIter<u64>,
    /// A buffer for the names of keys.
    name: Vec<u8>,
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
        Ok(Self { store, ids: ids.into_iter(), name: Vec::new(), last: after, looked: 0, bytes: 0 })
    }

    /// The next record that exists, packed, and its key; None when there are no more or the call has looked at enough.
    ///
    /// # Errors
    /// [`Error::WrongType`] or [`Error::Damaged`] where no record of ours stands.
    fn next(&mut self) -> Result<Option<(u64, Key<'c>, Packed)>> {
        while self.looked < MAX_READ && self.bytes < MAX_BYTES {
            let Some(id) = self.ids.next() else { return Ok(None) };
            self.looked += 1;
            self.last = id;
            let key = self.open(id)?;
            if key.kind() == Kind::Empty {
                continue;
            }
            let packed = Packed::read(&key)?.ok_or(Error::Damaged { what: "key record" })?;
            self.bytes += packed.bytes().len();
            return Ok(Some((id, key, packed)));
        }
        Ok(None)
    }

    /// The next record that matches, as [`next`](Self::next) gives it.
    ///
    /// # Errors
    /// As there, and [`Error::Damaged`] for one that does not decode.
    pub(super) fn matching(&mut self, filter: &Filter<'_>, now_ms: u64) -> Result<Option<(u64, Key<'c>, Packed)>> {
        while let Some(next) = self.next()? {
            let (_, _, packed) = &next;
            if filter.matches(&Record::decode(packed.bytes())?, now_ms) {
                return Ok(Some(next));
            }
        }
        Ok(None)
    }

    fn open(&mut self, id: u64) -> Result<Key<'c>> {
        self.store.name.write_derived(&Derived::Key(id), &mut self.name);
        self.store.read(&self.name)
    }

    /// What stands beside a record, which counts as looked at.
    fn beside(&mut self, key: &Key<'_>) -> Result<Beside> {
        let beside = Beside::read(key)?;
        self.bytes += beside.len();
        Ok(beside)
    }

    /// How many ids were looked at, whether there is a record or not.
    pub(super) fn looked(&self) -> usize {
        self.looked
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
            Some(_) => Err(MANY_BYTES),
        }
    }

    /// Makes sure that what was read is not too much.
    ///
    /// # Errors
    /// [`Error::TooMany`].
    fn expect_bytes(&self) -> Result<()> {
        if self.bytes < MAX_BYTES { Ok(()) } else { Err(MANY_BYTES) }
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
    packed: Packed,
    beside: Beside,
}

impl Command for ListKeys {
    const SPEC: Spec = Spec {
        name: c"KG.LISTKEYS",
        summary: c"Describes key records; never shows a secret",
        complexity: c"O(N), N being the records looked at, at most 1,000; with SORTBY O(N*log(N))",
        flags: "",
        access: Access::Read,
        category: Category::Read,
        min_args: 2,
        secrets: &[],
        secrets_from: 0,
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
                "AFTER" => {
                    let (id, count) = after(&mut args)?;
                    once(&mut page, option, Page::After { id, count })?;
                }
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
                let found = page_of(&mut scan, &filter, call.now_ms, 0, count)?;
                let rest_after = scan.rest_after().filter(|_| found.len() < count);
                (found, rest_after)
            }
            Page::Limit { offset, count } => {
                let mut scan = Scan::new(&store, &filter, 0)?;
                let found = if sort_by.is_empty() {
                    let found = page_of(&mut scan, &filter, call.now_ms, offset, count)?;
                    if found.len() == count { Ok(()) } else { scan.expect_all(MAX_LISTED) }.map(|()| found)
                } else {
                    sorted(&mut scan, &filter, call.now_ms, &sort_by, offset, count)
                };
                (found?, None)
            }
        };
        let mut records = Vec::with_capacity(found.len());
        for found in &found {
            let record = Record::decode(found.packed.bytes())?;
            let pool = pool_of(&store, &record)?;
            records.push((found, record, pool));
        }
        // Every pool is looked at before the reply begins: there is no error in the midst of one.
        let mut histories = Vec::with_capacity(records.len());
        for (found, _, pool) in &records {
            histories.push(history_of(pool.as_ref(), found.id)?);
        }

        call.ctx.reply_array(records.len() + usize::from(rest_after.is_some()));
        for ((found, record, _), history) in records.iter().zip(histories) {
            describe(call, found.id, record, &found.beside, history);
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
        .ok_or(Error::Invalid { what: "offset", accepted: "a whole number from 0 to 1000" })?;
    Ok(Page::Limit { offset, count: page_size(args)? })
}

/// Reads what follows the word AFTER: an id, and the size of the page.
pub(super) fn after(args: &mut Args<'_>) -> Result<(u64, usize)> {
    let id = args.id()?;
    if !args.take_word("COUNT") {
        return Err(args.misuse());
    }
    Ok((id, page_size(args)?))
}

fn page_size(args: &mut Args<'_>) -> Result<usize> {
    let count = args.positive("count", MAX_PAGE as u64, "a whole number from 1 to 200")?;
    Ok(usize::try_from(count).unwrap_or(MAX_PAGE))
}

/// The records that match, from the one after `offset` of them on, until there are `count`.
fn page_of(
    scan: &mut Scan<'_, '_>,
    filter: &Filter<'_>,
    now_ms: u64,
    offset: usize,
    count: usize,
) -> Result<Vec<Found>> {
    let mut found = Vec::new();
    let mut passed = 0;
    while found.len() < count
        && let Some((id, key, packed)) = scan.matching(filter, now_ms)?
    {
        if passed < offset {
            passed += 1;
        } else {
            let beside = scan.beside(&key)?;
            found.push(Found { id, packed, beside });
        }
    }
    Ok(found)
}

/// As many records in an order other than that of their ids: all that match are read, and META only of those.
fn sorted(
    scan: &mut Scan<'_, '_>,
    filter: &Filter<'_>,
    now_ms: u64,
    sort_by: &SortBy,
    offset: usize,
    count: usize,
) -> Result<Vec<Found>> {
    let mut matching = Vec::new();
    while let Some((id, _, packed)) = scan.matching(filter, now_ms)? {
        matching.push((id, packed));
    }
    scan.expect_all(MAX_SORTED)?;
    let mut sorting = Sorting::new(sort_by, matching.len());
    for (id, packed) in &matching {
        sorting.push(*id, &Record::decode(packed.bytes())?, now_ms);
    }
    let positions = sorting.into_positions();
    let mut matching: Vec<Option<(u64, Packed)>> = matching.into_iter().map(Some).collect();
    let mut found = Vec::new();
    for position in positions.into_iter().skip(offset).take(count) {
        if let Some((id, packed)) = matching.get_mut(position).and_then(Option::take) {
            let key = scan.open(id)?;
            let beside = scan.beside(&key)?;
            found.push(Found { id, packed, beside });
        }
        scan.expect_bytes()?;
    }
    Ok(found)
}

/// `KG.COUNTKEYS store [filters]`
pub struct CountKeys;

impl Command for CountKeys {
    const SPEC: Spec = Spec {
        name: c"KG.COUNTKEYS",
        summary: c"Counts key records",
        complexity: c"O(1) for all, a TYPE or a NAME; else O(N), N being the records looked at, at most 1,000",
        flags: "",
        access: Access::Read,
        category: Category::Read,
        min_args: 2,
        secrets: &[],
        secrets_from: 0,
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
            while scan.matching(&filter, call.now_ms)?.is_some() {
                count += 1;
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
        complexity: c"O(N*log(N)), N being the vault keys of the store, at most 1,000, or of the name, at most 10,000",
        flags: "",
        access: Access::Read,
        category: Category::Read,
        min_args: 2,
        secrets: &[],
        secrets_from: 0,
        args: &[Arg::key(c"store"), Arg::text(c"name").token(c"NAME").optional()],
    };

    fn run(call: &Call<'_>, mut args: Args<'_>) -> Result<()> {
        let at = args.store()?;
        let mut of = None;
        while let Some(option) = args.option(&["NAME"])? {
            once(&mut of, option, name(args.value(option)?, option)?)?;
        }
        args.finish()?;
        let store = Store::open(call.ctx, at, Missing::Refuse)?;

        let (key, mut packed) = (of.map(|name| store.read(&store.name.pool(name))).transpose()?, Vec::new());
        let mut sets = Sets::default();
        if let (Some(name), Some(key)) = (of, &key) {
            // The pool knows all that is asked.
            let pool = key.native::<Pool>()?.filter(|pool| !pool.is_empty());
            if pool.is_some_and(|pool| pool.len() > MAX_COUNTED) {
                return Err(Error::TooMany { what: "keys of this name", max: MAX_COUNTED });
            }
            pool.into_iter().for_each(|pool| sets.add_pool(name, pool, call.now_ms));
        } else {
            let filter = Filter { of_type: Some(RecordType::Vault), ..Filter::default() };
            let mut scan = Scan::new(&store, &filter, 0)?;
            while let Some((_, _, record)) = scan.matching(&filter, call.now_ms)? {
                packed.push(record);
            }
            scan.expect_all("vault keys to look at: give a NAME")?;
            for packed in &packed {
                sets.add(&VaultRecord::decode(packed.bytes())?, call.now_ms);
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
