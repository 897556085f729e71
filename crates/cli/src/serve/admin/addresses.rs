//! Rules for addresses.

use axum::extract::State;
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::access::Subject;
use super::extract::{Body, Query, long, within};
use super::problem::{BodyProblems, Detail, Problem, Problems};
use super::terms::{given_duration, instant};
use super::{command, page_of};
use crate::serve::App;

/// What a rule does.
#[derive(Debug, Default, Clone, Copy, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Nobody is let in from there.
    #[default]
    Block,
    /// No block holds for it.
    Allow,
}

/// A rule for addresses.
#[derive(Debug, Serialize, ToSchema)]
pub struct Rule {
    /// An address or a network.
    net: String,
    /// `block` or `allow`.
    kind: String,
    /// What it is for; for everything if this is null.
    path: Option<String>,
    /// null for one that does not end.
    #[schema(format = DateTime)]
    expires_at: Option<String>,
    reason: Option<String>,
    /// Who made it, if it was not an operator.
    by: Option<String>,
    /// How often this address was blocked by itself.
    strikes: Option<u64>,
}

/// A page of rules.
#[derive(Debug, Serialize, ToSchema)]
pub struct RuleList {
    /// There may be none although pages follow: those that have ended were looked at.
    addresses: Vec<Rule>,
    /// `cursor` of the next page; null on the last.
    next: Option<String>,
}

/// Which page of a list.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct RulePage {
    /// How many rules a page looks at; 100 unless it is given.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<u32>,
    /// `next` of the page before.
    #[param(min_length = 1, max_length = 128)]
    cursor: Option<String>,
}

/// A new rule; it replaces one of the same kind for the same network and path.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RuleCreate {
    /// 192.0.2.0/24 or an address; to block an IPv6 address blocks its /64.
    #[schema(min_length = 1, max_length = 64, example = "192.0.2.0/24")]
    net: String,
    #[serde(default)]
    #[schema(default = "block")]
    kind: Kind,
    /// How long it holds: a number and ms, s, m, h or d.
    #[schema(min_length = 1, max_length = 32, example = "1h")]
    duration: Option<String>,
    /// Until when it holds: RFC 3339, unix seconds, or a time of day in the time zone of the store, such as 16:00. Not with duration.
    #[schema(min_length = 1, max_length = 64)]
    until: Option<String>,
    /// What it is for, and all beneath; for everything if it is left out.
    #[schema(min_length = 1, max_length = 1024, example = "/api")]
    path: Option<String>,
    /// Why.
    #[schema(min_length = 1, max_length = 256)]
    reason: Option<String>,
}

/// Which rule.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct RuleQuery {
    /// Its network or address.
    #[param(min_length = 1, max_length = 64)]
    net: String,
    /// What it does; `block` unless it is given.
    #[serde(default)]
    #[param(inline)]
    kind: Kind,
    /// What it is for.
    #[param(min_length = 1, max_length = 1024)]
    path: Option<String>,
}

#[derive(Deserialize)]
struct Listed {
    rule: String,
    kind: String,
    path: Option<String>,
    expires_at: Option<i64>,
    reason: Option<String>,
    by: Option<String>,
    strikes: Option<u64>,
}

/// List the rules for addresses.
#[utoipa::path(get, path = "/admin/addresses", tag = "addresses", params(RulePage), responses(
    (status = 200, description = "A page of them", body = RuleList),
    Problems,
))]
pub async fn list_rules(State(app): State<App>, Query(page): Query<RulePage>) -> Result<Json<RuleList>, Problem> {
    let mut list = command(&app, "KG.LISTIPS");
    if let Some(cursor) = &page.cursor {
        list.arg("CURSOR").arg(long("cursor", cursor, 1..=128)?);
    }
    list.arg("COUNT").arg(within("limit", page.limit.unwrap_or(100), 1..=1000)?);
    let (next, rules): (_, Vec<Listed>) = page_of(&app, &list).await?;
    let rule = |rule: Listed| Rule {
        net: rule.rule,
        kind: rule.kind,
        path: rule.path,
        expires_at: rule.expires_at.map(instant),
        reason: rule.reason,
        by: rule.by,
        strikes: rule.strikes,
    };
    Ok(Json(RuleList { addresses: rules.into_iter().map(rule).collect(), next }))
}

/// Block an address or a network, or allow it whatever is blocked.
#[utoipa::path(post, path = "/admin/addresses", tag = "addresses", request_body = RuleCreate, responses(
    (status = 200, description = "It holds", body = Detail),
    (status = 409, description = "There are too many rules", body = Detail),
    BodyProblems,
))]
pub async fn add_rule(
    State(app): State<App>,
    Body(new): Body<RuleCreate>,
) -> Result<(Extension<Subject>, Json<Detail>), Problem> {
    let (name, kind, done) = match new.kind {
        Kind::Block => ("KG.BLOCKIP", "block", "Blocked."),
        Kind::Allow => ("KG.ALLOWIP", "allow", "Allowed."),
    };
    let mut add = command(&app, name);
    add.arg(long("net", &new.net, 1..=64)?);
    match (&new.duration, &new.until) {
        (Some(_), Some(_)) => return Err(Problem::invalid("duration and until cannot come together.")),
        (Some(duration), None) => _ = add.arg(given_duration("duration", duration)?),
        (None, Some(until)) => _ = add.arg("UNTIL").arg(long("until", until, 1..=64)?),
        (None, None) => {}
    }
    if let Some(path) = &new.path {
        add.arg("PATH").arg(long("path", path, 1..=1024)?);
    }
    if let Some(reason) = &new.reason {
        add.arg("REASON").arg(long("reason", reason, 1..=256)?);
    }
    let path = new.path.map_or_else(String::new, |path| format!(" for {path:?}"));
    let subject = Subject(format!("{kind} {:?}{path}", new.net));
    app.server.ask(&add).await.map_err(|failure| Problem::from(failure).about(&subject))?;
    Ok((Extension(subject), Json(Detail { detail: done.to_owned() })))
}

/// Take a rule away.
#[utoipa::path(delete, path = "/admin/addresses", tag = "addresses", params(RuleQuery), responses(
    (status = 200, description = "It is gone", body = Detail),
    (status = 404, description = "There is no such rule", body = Detail),
    Problems,
))]
pub async fn remove_rule(State(app): State<App>, Query(query): Query<RuleQuery>) -> Result<Json<Detail>, Problem> {
    let (name, done) = match query.kind {
        Kind::Block => ("KG.UNBLOCKIP", "Unblocked."),
        Kind::Allow => ("KG.UNALLOWIP", "No longer allowed."),
    };
    let mut remove = command(&app, name);
    remove.arg(long("net", &query.net, 1..=64)?);
    if let Some(path) = &query.path {
        remove.arg("PATH").arg(long("path", path, 1..=1024)?);
    }
    match app.server.ask(&remove).await?.as_i64() {
        Some(0) => Err(Problem::not_found("There is no such rule.")),
        _ => Ok(Json(Detail { detail: done.to_owned() })),
    }
}
