//! What was counted and logged.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::extract::{Query, id_of, long, within};
use super::problem::{Detail, Problem, Problems};
use super::terms::instant;
use super::{ask, ask_if_any, command, page_of};
use crate::serve::App;

/// Which statistics.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct StatsQuery {
    /// Adds the last so many hours; of the whole store alone.
    #[param(minimum = 1, maximum = 2160)]
    hours: Option<u32>,
    /// Adds the last so many days; of one key alone.
    #[param(minimum = 1, maximum = 90)]
    days: Option<u32>,
    /// The id of a key: its statistics alone.
    #[param(max_length = 19, pattern = "^[1-9][0-9]{0,18}$")]
    key: Option<String>,
}

/// The statistics of everything, or of one key.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub enum AnyStats {
    All(Stats),
    OfKey(KeyStats),
}

/// The statistics of all keys.
#[derive(Debug, Serialize, ToSchema)]
pub struct Stats {
    total_organizations: u64,
    total_keys: u64,
    active_keys: u64,
    /// Calls that were let in.
    total_requests: u64,
    /// Of the present minute and the 60 before it.
    recent_requests_1h: u64,
    /// The five that were used most.
    top_keys: Vec<TopKey>,
    /// How many of a hundred responses that were told of had a status of 400 or more.
    error_rate: f64,
    /// Calls that were not let in.
    total_refused: u64,
    recent_refused_1h: u64,
    /// How many were refused, by code.
    refusals: BTreeMap<String, u64>,
    /// Responses that were told of.
    logged: u64,
    errors: u64,
    /// How long they took, in milliseconds, on average.
    latency_ms: f64,
    /// How many entries the log has.
    log_entries: u64,
    /// How many found no room in it.
    unlogged: u64,
    /// Those that were asked for; hours without a call are left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    hours: Option<Vec<Hour>>,
}

/// A key that is used much.
#[derive(Debug, Serialize, ToSchema)]
pub struct TopKey {
    id: String,
    label: String,
    prefix: String,
    requests: u64,
}

/// The calls of an hour.
#[derive(Debug, Serialize, ToSchema)]
pub struct Hour {
    /// When it began.
    #[schema(format = DateTime)]
    hour: String,
    requests: u64,
    refused: u64,
    logged: u64,
    errors: u64,
}

/// The statistics of one key.
#[derive(Debug, Serialize, ToSchema)]
pub struct KeyStats {
    key_id: String,
    /// Calls that were let in.
    total_requests: u64,
    /// Calls that were not.
    total_refused: u64,
    /// Responses that were told of.
    logged: u64,
    errors: u64,
    /// How many of a hundred responses that were told of had a status of 400 or more.
    error_rate: f64,
    /// How long they took, in milliseconds, on average.
    latency_ms: f64,
    #[schema(format = DateTime)]
    last_used_at: Option<String>,
    /// Those that were asked for; days without a call are left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    days: Option<Vec<Day>>,
}

/// The calls of a day.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Day {
    /// In the time zone of the store, such as 2026-11-22.
    day: String,
    requests: u64,
    refused: u64,
    logged: u64,
    errors: u64,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Counted {
    organizations: u64,
    keys: u64,
    active_keys: u64,
    requests: u64,
    requests_last_hour: u64,
    refused: u64,
    refused_last_hour: u64,
    logged: u64,
    errors: u64,
    error_rate: f64,
    latency_ms: f64,
    log_entries: u64,
    unlogged: u64,
    refusals: BTreeMap<String, u64>,
    top_keys: Vec<CountedTop>,
    hours: Option<Vec<CountedHour>>,
    days: Option<Vec<Day>>,
    last_used_at: Option<i64>,
}

#[derive(Deserialize)]
struct CountedTop {
    id: i64,
    #[serde(default)]
    label: String,
    #[serde(default)]
    start: String,
    requests: u64,
}

#[derive(Deserialize)]
struct CountedHour {
    hour: i64,
    requests: u64,
    refused: u64,
    logged: u64,
    errors: u64,
}

/// Usage statistics: of all keys, or of one.
#[utoipa::path(get, path = "/admin/stats", tag = "usage", params(StatsQuery), responses(
    (status = 200, description = "What was counted", body = AnyStats),
    (status = 404, description = "There is no such key", body = Detail),
    Problems,
))]
pub async fn show_stats(State(app): State<App>, Query(query): Query<StatsQuery>) -> Result<Json<AnyStats>, Problem> {
    let mut stats = command(&app, "KG.STATS");
    match (&query.key, query.hours, query.days) {
        (None, _, Some(_)) => return Err(Problem::invalid("days must come with key; of all keys there are hours.")),
        (Some(_), Some(_), _) => return Err(Problem::invalid("hours cannot come with key; of a key there are days.")),
        (None, hours, None) => {
            hours.map(|hours| within("hours", hours, 1..=2160)).transpose()?;
            hours.into_iter().for_each(|hours| _ = stats.arg("HOURS").arg(hours));
        }
        (Some(key), None, days) => {
            stats.arg("KEY").arg(key_id(key)?);
            days.map(|days| within("days", days, 1..=90)).transpose()?;
            days.into_iter().for_each(|days| _ = stats.arg("DAYS").arg(days));
        }
    }
    Ok(Json(match query.key {
        Some(key) => AnyStats::OfKey(ask::<Counted>(&app, &stats).await?.of_key(key)),
        None => {
            // Nothing was counted where nothing is.
            let none = || Counted { hours: query.hours.map(|_| Vec::new()), ..Counted::default() };
            AnyStats::All(ask_if_any(&app, &stats).await?.unwrap_or_else(none).of_all())
        }
    }))
}

fn key_id(key: &str) -> Result<i64, Problem> {
    id_of(key).ok_or_else(|| Problem::invalid("key must be the id of a key."))
}

impl Counted {
    fn of_all(self) -> Stats {
        let top = |key: CountedTop| TopKey {
            id: key.id.to_string(),
            label: key.label,
            prefix: key.start,
            requests: key.requests,
        };
        let hour = |of: CountedHour| Hour {
            hour: instant(of.hour),
            requests: of.requests,
            refused: of.refused,
            logged: of.logged,
            errors: of.errors,
        };
        Stats {
            total_organizations: self.organizations,
            total_keys: self.keys,
            active_keys: self.active_keys,
            total_requests: self.requests,
            recent_requests_1h: self.requests_last_hour,
            top_keys: self.top_keys.into_iter().map(top).collect(),
            error_rate: self.error_rate,
            total_refused: self.refused,
            recent_refused_1h: self.refused_last_hour,
            refusals: self.refusals,
            logged: self.logged,
            errors: self.errors,
            latency_ms: self.latency_ms,
            log_entries: self.log_entries,
            unlogged: self.unlogged,
            hours: self.hours.map(|hours| hours.into_iter().map(hour).collect()),
        }
    }

    fn of_key(self, key_id: String) -> KeyStats {
        KeyStats {
            key_id,
            total_requests: self.requests,
            total_refused: self.refused,
            logged: self.logged,
            errors: self.errors,
            error_rate: self.error_rate,
            latency_ms: self.latency_ms,
            last_used_at: self.last_used_at.map(instant),
            days: self.days,
        }
    }
}

/// Which entries of the log.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct UsageQuery {
    /// The id of a key: its entries alone.
    #[param(max_length = 19, pattern = "^[1-9][0-9]{0,18}$")]
    key: Option<String>,
    /// Not before this: RFC 3339, or unix seconds.
    #[param(min_length = 1, max_length = 64)]
    from: Option<String>,
    /// Not after this: RFC 3339, or unix seconds.
    #[param(min_length = 1, max_length = 64)]
    to: Option<String>,
    /// `next` of the page before.
    #[param(min_length = 1, max_length = 64)]
    cursor: Option<String>,
    /// How many entries a page looks at; 100 unless it is given.
    #[param(minimum = 1, maximum = 500)]
    limit: Option<u32>,
}

/// A page of the log, newest first.
#[derive(Debug, Serialize, ToSchema)]
pub struct UsageList {
    /// There may be none although pages follow: those of others were looked at.
    entries: Vec<UsageEntry>,
    /// `cursor` of the next page; null on the last.
    next: Option<String>,
}

/// A call.
#[derive(Debug, Serialize, ToSchema)]
pub struct UsageEntry {
    #[schema(format = DateTime)]
    at: String,
    /// null for a call without a key that is known.
    key_id: Option<String>,
    /// Why it was refused; null for one that was let in.
    code: Option<String>,
    /// How it was responded to; null for one that was refused.
    status: Option<u16>,
    latency_ms: Option<u64>,
    method: Option<String>,
    path: Option<String>,
    ip: Option<String>,
}

#[derive(Deserialize)]
struct Entry {
    at: i64,
    id: Option<i64>,
    code: Option<String>,
    status: Option<u16>,
    latency_ms: Option<u64>,
    method: Option<String>,
    path: Option<String>,
    ip: Option<String>,
}

/// The log of calls.
#[utoipa::path(get, path = "/admin/usage", tag = "usage", params(UsageQuery), responses(
    (status = 200, description = "A page of it", body = UsageList),
    (status = 404, description = "There is no such key", body = Detail),
    Problems,
))]
pub async fn list_usage(State(app): State<App>, Query(query): Query<UsageQuery>) -> Result<Json<UsageList>, Problem> {
    let mut usage = command(&app, "KG.USAGE");
    if let Some(key) = &query.key {
        usage.arg("KEY").arg(key_id(key)?);
    }
    for (name, option, value) in
        [("from", "FROM", &query.from), ("to", "TO", &query.to), ("cursor", "CURSOR", &query.cursor)]
    {
        if let Some(value) = value {
            usage.arg(option).arg(long(name, value, 1..=64)?);
        }
    }
    usage.arg("COUNT").arg(within("limit", query.limit.unwrap_or(100), 1..=500)?);
    let (next, entries): (_, Vec<Entry>) = page_of(&app, &usage).await?;
    let entry = |entry: Entry| UsageEntry {
        at: instant(entry.at),
        key_id: entry.id.filter(|id| *id != 0).map(|id| id.to_string()),
        code: entry.code,
        status: entry.status,
        latency_ms: entry.latency_ms,
        method: entry.method,
        path: entry.path,
        ip: entry.ip,
    };
    Ok(Json(UsageList { entries: entries.into_iter().map(entry).collect(), next }))
}
