//! What became of calls: `KG.LOG`, `KG.STATS`, `KG.USAGE`.

use keyguard_core::gate::Code;
use keyguard_core::ip::Address;
use keyguard_core::parse::MAX_INSTANT_MS;
use keyguard_core::record::Record;
use keyguard_core::usage::{
    Counts, DAYS_KEPT, Days, HOUR_MS, HOURS_KEPT, KEYS, KeyDays, MAX_LATENCY_MS, MAX_LOGGED_PATH, Row, StoreStats,
    TOP_KEPT, hour_of, minute_of,
};
use keyguard_core::zone::day_text;
use keyguard_core::{Error, Result, parse};

use super::Call;
use super::auth::method;
use crate::args::{Args, once};
use crate::effects::LAST_USED_AT;
use crate::ffi::{EntryId, Kind};
use crate::register::{Access, Arg, Category, Command, Spec};
use crate::reply::{Map, Value, integer};
use crate::store::{API_KEYS, Missing, ORGANIZATIONS, Packed, Store, VAULT_KEYS};
use crate::usage::{self, Ended, Told, entry_id, row_of};

/// How many of the keys with most requests are shown.
const TOP_SHOWN: usize = 10;

/// How many entries a page shows, unless it is told.
const PAGE: u64 = 100;

/// The most entries that a page shows.
const MAX_PAGE: u64 = 500;

/// The most entries that are looked at for it: more would hold the server up for over 2 ms.
const MAX_LOOKED_AT: u64 = 500;

/// `KG.LOG store id PATH path METHOD method STATUS status LATENCY ms [IP addr]`
pub struct Log;

impl Command for Log {
    const SPEC: Spec = Spec {
        name: c"KG.LOG",
        summary: c"Tells how a call ended that was let in, for the statistics and the usage log",
        complexity: c"O(1)",
        flags: "deny-oom fast",
        access: Access::Write,
        category: Category::Use,
        min_args: 11,
        secrets: &[],
        secrets_from: 0,
        args: &[
            Arg::key(c"store"),
            Arg::integer(c"id"),
            Arg::text(c"path").token(c"PATH"),
            Arg::text(c"method").token(c"METHOD"),
            Arg::integer(c"status").token(c"STATUS"),
            Arg::integer(c"ms").token(c"LATENCY"),
            Arg::text(c"addr").token(c"IP").optional(),
        ],
    };

    fn run(call: &Call<'_>, mut args: Args<'_>) -> Result<()> {
        let at = args.store()?;
        let id = args.id()?;
        let (mut path, mut of, mut status, mut latency_ms, mut address) = (None, None, None, None, None);
        while let Some(option) = args.option(&["PATH", "METHOD", "STATUS", "LATENCY", "IP"])? {
            let value = args.value(option)?;
            match option {
                "PATH" if value.len() > MAX_LOGGED_PATH => {
                    return Err(Error::TooLong { what: option, max: MAX_LOGGED_PATH });
                }
                "PATH" => once(&mut path, option, value)?,
                "METHOD" => once(&mut of, option, method(value)?)?,
                "STATUS" => {
                    let accepted = "a status of HTTP, from 100 to 599";
                    let status_of = parse::unsigned(value).and_then(|status| u16::try_from(status).ok());
                    let status_of = status_of.filter(|status| (100..600).contains(status));
                    once(&mut status, option, status_of.ok_or(Error::Invalid { what: option, accepted })?)?;
                }
                "LATENCY" => {
                    let accepted = "whole milliseconds, up to a day";
                    let ms = parse::unsigned(value).and_then(|ms| u32::try_from(ms).ok());
                    let ms = ms.filter(|ms| *ms <= MAX_LATENCY_MS);
                    once(&mut latency_ms, option, ms.ok_or(Error::Invalid { what: option, accepted })?)?;
                }
                _ => once(&mut address, option, Address::parse(value)?)?,
            }
        }
        let (Some(path), Some(of), Some(status), Some(latency_ms)) = (path, of, status, latency_ms) else {
            return Err(args.misuse());
        };
        args.finish()?;
        let store = Store::open(call.ctx, at, Missing::Refuse)?;
        if id > 0 {
            match store.read(&store.name.key(id))?.kind() {
                Kind::Hash => {}
                Kind::Empty => return Err(Error::NoSuch { what: "id" }),
                _ => return Err(Error::WrongType),
            }
        }

        let told = Told { path: Some(path), method: Some(of), address };
        usage::ended(call, &store, &Ended { id, status, latency_ms, told });

        call.ctx.reply_status(c"OK");
        Ok(())
    }
}

/// `KG.STATS store [KEY id] [HOURS hours | DAYS days]`
pub struct Stats;

impl Command for Stats {
    const SPEC: Spec = Spec {
        name: c"KG.STATS",
        summary:
            c"Tells what a store holds and what its calls came to, or those of one key; by hours or days, if asked",
        complexity: c"O(1), and O(N) for N hours or days",
        flags: "fast",
        access: Access::Read,
        category: Category::Read,
        min_args: 2,
        secrets: &[],
        secrets_from: 0,
        args: &[
            Arg::key(c"store"),
            Arg::integer(c"id").token(c"KEY").optional(),
            Arg::one_of(c"by", &[Arg::integer(c"hours").token(c"HOURS"), Arg::integer(c"days").token(c"DAYS")])
                .optional(),
        ],
    };

    fn run(call: &Call<'_>, mut args: Args<'_>) -> Result<()> {
        let at = args.store()?;
        let (mut id, mut hours, mut days) = (None, None, None);
        while let Some(option) = args.option(&["KEY", "HOURS", "DAYS"])? {
            match option {
                "KEY" => {
                    let value = parse::unsigned(args.value(option)?);
                    once(&mut id, option, value.ok_or(Error::Invalid { what: "id", accepted: "a whole number" })?)?;
                }
                "HOURS" => {
                    let accepted = "a whole number from 1 to 2160, and not with KEY";
                    let value = parse::unsigned(args.value(option)?);
                    let value = value.filter(|hours| (1..=u64::from(HOURS_KEPT)).contains(hours));
                    once(&mut hours, option, value.ok_or(Error::Invalid { what: option, accepted })? as u32)?;
                }
                _ => {
                    let accepted = "a whole number from 1 to 90, and only with KEY";
                    let value = parse::unsigned(args.value(option)?);
                    let value = value.filter(|days| (1..=u64::from(DAYS_KEPT)).contains(days));
                    once(&mut days, option, value.ok_or(Error::Invalid { what: option, accepted })? as u32)?;
                }
            }
        }
        if hours.is_some() && (days.is_some() || id.is_some()) || days.is_some() && id.is_none() {
            return Err(args.misuse());
        }
        args.finish()?;
        let store = Store::open(call.ctx, at, Missing::Refuse)?;
        match id {
            Some(id) => of_key(call, &store, id, days),
            None => of_store(call, &store, hours),
        }
    }
}

fn of_store(call: &Call<'_>, store: &Store<'_>, hours: Option<u32>) -> Result<()> {
    let (none, key) = (StoreStats::default(), store.read(&store.name.stats())?);
    let stats = key.native::<StoreStats>()?.unwrap_or(&none);
    let (waiting, waiting_recent, waiting_hours) = usage::waiting_of(store, call.now_ms);
    let log_entries = store.read(&store.name.usage())?.stream_len()?;
    let [organizations, keys, active, vault_keys] =
        [store.counted(ORGANIZATIONS)?, store.counted(API_KEYS)?, store.active_keys()?, store.counted(VAULT_KEYS)?];
    let mut totals = *stats.totals();
    totals.add(&waiting);
    let mut recent = stats.last_hour(call.now_ms);
    recent.add(&waiting_recent);
    let counts = totals.counts();
    let top = top_keys(store, stats)?;
    let mut by_hour: Days = Vec::new();
    if let Some(hours) = hours {
        let now = hour_of(minute_of(call.now_ms));
        by_hour = stats.hours().collect();
        for (hour, tally) in waiting_hours {
            match by_hour.binary_search_by_key(&hour, |(hour, _)| *hour) {
                Ok(index) => by_hour.get_mut(index).into_iter().for_each(|(_, before)| before.add(&tally)),
                Err(index) => by_hour.insert(index, (hour, tally)),
            }
        }
        by_hour.retain(|(hour, _)| hour.abs_diff(now) < HOURS_KEPT && hour + hours > now);
    }

    let refusals: Vec<(Code, u64)> =
        totals.codes().filter(|(code, count)| *code != Code::Valid && *count > 0).collect();
    let mut map = Map::default();
    map.field("organizations", organizations)
        .field("keys", keys)
        .field("active_keys", active)
        .field("vault_keys", vault_keys)
        .field("requests", counts.requests)
        .field("requests_last_hour", recent.requests)
        .field("refused", counts.refused)
        .field("refused_last_hour", recent.refused)
        .field("logged", counts.logged)
        .field("errors", counts.errors)
        .field("error_rate", Value::Decimal(counts.error_rate()))
        .field("latency_ms", counts.mean_latency_ms())
        .field("log_entries", log_entries)
        .field("unlogged", totals.unlogged)
        .send_first(call.ctx, 2 + usize::from(hours.is_some()));
    call.ctx.reply_bytes(b"refusals");
    call.ctx.reply_map(refusals.len());
    for (code, count) in refusals {
        call.ctx.reply_bytes(code.as_str().as_bytes());
        call.ctx.reply_integer(integer(count));
    }
    call.ctx.reply_bytes(b"top_keys");
    call.ctx.reply_array(top.len());
    for (id, packed, requests) in &top {
        let mut map = Map::default();
        map.field("id", *id);
        if let Ok(Record::Api(record)) = Record::decode(packed.bytes()) {
            map.field("label", record.label).field("start", record.issued.start);
        }
        map.field("requests", *requests).send(call.ctx);
    }
    if hours.is_some() {
        call.ctx.reply_bytes(b"hours");
        call.ctx.reply_array(by_hour.len());
        for (hour, tally) in by_hour {
            Map::default()
                .field("hour", u64::from(hour) * HOUR_MS)
                .field("requests", tally.requests)
                .field("refused", tally.refused)
                .field("logged", tally.logged)
                .field("errors", tally.errors)
                .send(call.ctx);
        }
    }
    Ok(())
}

/// The keys with most requests that there are, with their records, and with what waits.
fn top_keys(store: &Store<'_>, stats: &StoreStats) -> Result<Vec<(u64, Packed, u64)>> {
    let mut all = stats.clone_top();
    for (id, requests) in usage::waiting_top(store, TOP_KEPT) {
        // Of those that wait, the ones with most requests: another cannot have come among the first by what waits.
        let stored = match store.read(&store.name.days(id / KEYS))?.native::<KeyDays>() {
            Ok(Some(days)) => days.totals((id % KEYS) as u8).unwrap_or_default().requests,
            _ => 0,
        };
        all.offer(id, stored.saturating_add(requests));
    }
    let mut top = Vec::new();
    for (id, requests) in all.top() {
        match store.packed_record(id) {
            Ok(packed) => top.push((id, packed, requests)),
            // Somebody deleted or changed it by hand.
            Err(Error::NoSuch { .. } | Error::WrongType | Error::Damaged { .. }) => continue,
            Err(error) => return Err(error),
        }
        if top.len() == TOP_SHOWN {
            break;
        }
    }
    Ok(top)
}

fn of_key(call: &Call<'_>, store: &Store<'_>, id: u64, days: Option<u32>) -> Result<()> {
    let record = store.read(&store.name.key(id))?;
    let last_used_at = match record.kind() {
        Kind::Empty => return Err(Error::NoSuch { what: "id" }),
        Kind::Hash => record.hash_field_named(&LAST_USED_AT)?,
        _ => return Err(Error::WrongType),
    };
    let last_used_at = last_used_at.and_then(|at| parse::unsigned(at.name().bytes()));
    let zone = store.zone()?;
    let key = store.read(&store.name.days(id / KEYS))?;
    let (low, stored) = ((id % KEYS) as u8, key.native::<KeyDays>()?);
    let mut counts: Counts = stored.and_then(|stored| stored.totals(low)).unwrap_or_default();
    let (waiting, waiting_days) = usage::waiting_of_key(store, &zone, id);
    counts.add(&waiting);
    let mut by_day: Days = Vec::new();
    if let Some(days) = days {
        let today = zone.day(call.now_ms);
        by_day = stored.map_or_else(Days::new, |stored| stored.days(low));
        for (day, tally) in waiting_days {
            match by_day.binary_search_by_key(&day, |(day, _)| *day) {
                Ok(index) => by_day.get_mut(index).into_iter().for_each(|(_, before)| before.add(&tally)),
                Err(index) => by_day.insert(index, (day, tally)),
            }
        }
        by_day.retain(|(day, _)| day.abs_diff(today) < DAYS_KEPT && day + days > today);
    }

    Map::default()
        .field("requests", counts.requests)
        .field("refused", counts.refused)
        .field("logged", counts.logged)
        .field("errors", counts.errors)
        .field("error_rate", Value::Decimal(counts.error_rate()))
        .field("latency_ms", counts.mean_latency_ms())
        .optional("last_used_at", last_used_at)
        .send_first(call.ctx, usize::from(days.is_some()));
    if days.is_some() {
        call.ctx.reply_bytes(b"days");
        call.ctx.reply_array(by_day.len());
        for (day, tally) in by_day {
            let day = day_text(day);
            Map::default()
                .field("day", &day)
                .field("requests", tally.requests)
                .field("refused", tally.refused)
                .field("logged", tally.logged)
                .field("errors", tally.errors)
                .send(call.ctx);
        }
    }
    Ok(())
}

/// `KG.USAGE store [KEY id] [FROM time] [TO time] [CURSOR cursor] [COUNT count]`
pub struct Usage;

impl Command for Usage {
    const SPEC: Spec = Spec {
        name: c"KG.USAGE",
        summary:
            c"Shows the usage log by pages, newest first: the cursor of the next one, 0 after the last, and the entries",
        complexity: c"O(N), N being the entries looked at, at most 500",
        flags: "",
        access: Access::Read,
        category: Category::Read,
        min_args: 2,
        secrets: &[],
        secrets_from: 0,
        args: &[
            Arg::key(c"store"),
            Arg::integer(c"id").token(c"KEY").optional(),
            Arg::text(c"from").token(c"FROM").optional(),
            Arg::text(c"to").token(c"TO").optional(),
            Arg::text(c"cursor").token(c"CURSOR").optional(),
            Arg::integer(c"count").token(c"COUNT").optional(),
        ],
    };

    fn run(call: &Call<'_>, mut args: Args<'_>) -> Result<()> {
        let at = args.store()?;
        let (mut id, mut from_ms, mut to_ms, mut cursor, mut count) = (None, None, None, None, None);
        while let Some(option) = args.option(&["KEY", "FROM", "TO", "CURSOR", "COUNT"])? {
            let value = args.value(option)?;
            match option {
                "KEY" => {
                    let accepted = "a whole number";
                    once(&mut id, option, parse::unsigned(value).ok_or(Error::Invalid { what: "id", accepted })?)?;
                }
                "FROM" => once(&mut from_ms, option, parse::instant_ms(value, option)?)?,
                "TO" => once(&mut to_ms, option, parse::instant_ms(value, option)?)?,
                "CURSOR" => {
                    let accepted = "0, or the cursor of the page before";
                    let id = if value == b"0" { Some(None) } else { entry_id(value).map(Some) };
                    once(&mut cursor, option, id.ok_or(Error::Invalid { what: option, accepted })?)?;
                }
                _ => {
                    let accepted = "a whole number from 1 to 500";
                    let value = parse::unsigned(value).filter(|count| (1..=MAX_PAGE).contains(count));
                    once(&mut count, option, value.ok_or(Error::Invalid { what: option, accepted })?)?;
                }
            }
        }
        args.finish()?;
        let store = Store::open(call.ctx, at, Missing::Refuse)?;
        let log = store.read(&store.name.usage())?;

        // Older ones go when something is written next.
        let (_, age_ms) = crate::config::usage_log();
        let first_ms = from_ms.unwrap_or(0).max(call.now_ms.saturating_sub(age_ms));
        let mut last: EntryId = (to_ms.unwrap_or(MAX_INSTANT_MS.max(call.now_ms)), u64::MAX);
        if let Some((ms, seq)) = cursor.flatten() {
            // Those before the one that the page before ended with.
            let before = seq.checked_sub(1).map(|seq| (ms, seq)).or(ms.checked_sub(1).map(|ms| (ms, u64::MAX)));
            last = last.min(before.unwrap_or((0, 0)));
        }
        let (most, mut looked_at, mut end) = (count.unwrap_or(PAGE) as usize, 0, (0, 0));
        let (mut page, mut next) = (Vec::new(), None);
        log.stream_visit(((first_ms, 0), last), true, |entry, fields| {
            // One more tells whether there are more.
            if page.len() == most || looked_at == MAX_LOOKED_AT {
                next = Some(end);
                return false;
            }
            looked_at += 1;
            end = entry;
            let row = row_of(entry, fields);
            if id.is_none_or(|id| row.id == id) {
                page.push(Shown::of(&row));
            }
            true
        })?;

        call.ctx.reply_array(2);
        match next {
            None => call.ctx.reply_bytes(b"0"),
            Some((ms, seq)) => call.ctx.reply_bytes(format!("{ms}-{seq}").as_bytes()),
        }
        call.ctx.reply_array(page.len());
        page.iter().for_each(|shown| shown.send(call));
        Ok(())
    }
}

/// A line of the log, on its way to a reply.
struct Shown {
    at_ms: u64,
    id: u64,
    code: Option<Code>,
    status: Option<u16>,
    latency_ms: Option<u32>,
    /// Method, path and address.
    texts: [Option<Box<str>>; 3],
}

impl Shown {
    fn of(row: &Row<'_>) -> Self {
        let Row { at_ms, id, code, status, latency_ms, method, path, ip, .. } = *row;
        Self { at_ms, id, code, status, latency_ms, texts: [method, path, ip].map(|text| text.map(Into::into)) }
    }

    fn send(&self, call: &Call<'_>) {
        let [method, path, ip] = &self.texts;
        let mut map = Map::default();
        map.field("at", self.at_ms)
            .optional("id", (self.id > 0).then_some(self.id))
            .optional("code", self.code.map(Code::as_str))
            .optional("status", self.status.map(u64::from))
            .optional("latency_ms", self.latency_ms.map(u64::from))
            .optional("method", method.as_deref())
            .optional("path", path.as_deref())
            .optional("ip", ip.as_deref())
            .send(call.ctx);
    }
}
