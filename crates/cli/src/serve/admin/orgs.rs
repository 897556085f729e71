//! Organizations.

use axum::extract::State;
use axum::{Extension, Json};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::access::Subject;
use super::extract::{Body, OrgName, Query, id_of, long, within};
use super::problem::{BodyProblems, Detail, Problem, Problems};
use super::terms::{Limit, Quota, instant};
use super::{ask, command, listed, seen_or};
use crate::serve::App;

/// An organization.
#[derive(Debug, Serialize, ToSchema)]
pub struct Org {
    id: String,
    name: String,
    /// While it is suspended, none of its keys is let in.
    status: OrgStatus,
    #[schema(format = DateTime)]
    created_at: String,
    /// How many API keys it has.
    key_count: u64,
    /// All of its keys together.
    limits: Vec<Limit>,
    /// All of its keys together.
    quotas: Vec<Quota>,
}

/// Whether the keys of an organization are let in.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum OrgStatus {
    Active,
    Suspended,
}

/// A page of organizations.
#[derive(Debug, Serialize, ToSchema)]
pub struct OrgList {
    organizations: Vec<Org>,
    /// How many there are, on all pages.
    total: u64,
    /// `after` of the next page; null on the last.
    next: Option<String>,
}

/// A new organization.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct OrgCreate {
    /// What it is called; up to 256 bytes.
    #[schema(min_length = 1, max_length = 255)]
    name: String,
    /// All of its keys together.
    #[serde(default)]
    #[schema(max_items = 8)]
    limits: Vec<Limit>,
    /// All of its keys together.
    #[serde(default)]
    #[schema(max_items = 8)]
    quotas: Vec<Quota>,
}

/// What to change; what is left out stays.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct OrgUpdate {
    status: Option<OrgStatus>,
    /// They replace all that there are.
    #[schema(max_items = 8)]
    limits: Option<Vec<Limit>>,
    /// They replace all that there are.
    #[schema(max_items = 8)]
    quotas: Option<Vec<Quota>>,
}

/// Which page of a list.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct OrgPage {
    /// The most that a page shows; 1000 unless it is given.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<u32>,
    /// The id that the page goes on after: `next` of the page before.
    #[param(max_length = 19, pattern = "^(0|[1-9][0-9]{0,18})$")]
    after: Option<String>,
}

/// What the module tells of an organization.
#[derive(Deserialize)]
struct Record {
    id: i64,
    name: String,
    status: OrgStatus,
    created_at: i64,
    #[serde(default)]
    limits: Vec<String>,
    #[serde(default)]
    quotas: Vec<String>,
    keys: u64,
}

impl From<Record> for Org {
    fn from(record: Record) -> Self {
        Self {
            id: record.id.to_string(),
            name: record.name,
            status: record.status,
            created_at: instant(record.created_at),
            key_count: record.keys,
            limits: record.limits.iter().filter_map(|limit| Limit::read(limit)).collect(),
            quotas: record.quotas.iter().filter_map(|quota| Quota::read(quota)).collect(),
        }
    }
}

/// Create an organization.
#[utoipa::path(post, path = "/admin/orgs", tag = "organizations", request_body = OrgCreate, responses(
    (status = 200, description = "It is there", body = Org),
    (status = 400, description = "There is one of this name", body = Detail),
    BodyProblems,
))]
pub async fn create_org(
    State(app): State<App>,
    Body(new): Body<OrgCreate>,
) -> Result<(Extension<Subject>, Json<Org>), Problem> {
    let mut add = command(&app, "KG.ADDORG");
    add.arg(long("name", &new.name, 1..=255)?);
    new.limits.iter().try_for_each(|limit| limit.add_to(&mut add))?;
    new.quotas.iter().for_each(|quota| quota.add_to(&mut add));
    let subject = Subject(format!("organization {:?}", new.name));
    let id: i64 = ask(&app, &add).await.map_err(|problem| problem.about(&subject))?;
    let name = new.name.clone();
    let as_wished = Org {
        id: id.to_string(),
        name: new.name,
        status: OrgStatus::Active,
        created_at: Timestamp::now().to_string(),
        key_count: 0,
        limits: new.limits,
        quotas: new.quotas,
    };
    let made = seen_or(as_wished, || org(&app, &name)).await;
    Ok((Extension(subject), Json(made)))
}

/// List organizations.
#[utoipa::path(get, path = "/admin/orgs", tag = "organizations", params(OrgPage), responses(
    (status = 200, description = "A page of them, in order of ids", body = OrgList),
    Problems,
))]
pub async fn list_orgs(State(app): State<App>, Query(page): Query<OrgPage>) -> Result<Json<OrgList>, Problem> {
    let limit = within("limit", page.limit.unwrap_or(1000), 1..=1000)?;
    let list = command(&app, "KG.LISTORGS");
    let (records, next): (Vec<Record>, _) = listed(&app, &list, after(page.after.as_deref())?, limit).await?;
    let total = super::totals(&app).await?.organizations;
    Ok(Json(OrgList { organizations: records.into_iter().map(Org::from).collect(), total, next }))
}

/// The id that a page begins after.
pub fn after(text: Option<&str>) -> Result<i64, Problem> {
    match text {
        None | Some("0") => Ok(0),
        Some(text) => id_of(text).ok_or_else(|| Problem::invalid("after must be an id, as next of the page before.")),
    }
}

/// Suspend an organization or let it in again; change its limits and quotas.
#[utoipa::path(patch, path = "/admin/orgs/{name}", tag = "organizations", request_body = OrgUpdate,
    params(OrgName), responses(
    (status = 200, description = "As it is now", body = Org),
    (status = 404, description = "There is none of this name", body = Detail),
    BodyProblems,
))]
pub async fn update_org(
    State(app): State<App>,
    OrgName(name): OrgName,
    Body(update): Body<OrgUpdate>,
) -> Result<Json<Org>, Problem> {
    let mut set = command(&app, "KG.SETORG");
    set.arg(&name);
    if let Some(status) = update.status {
        let status = match status {
            OrgStatus::Active => "active",
            OrgStatus::Suspended => "suspended",
        };
        set.arg("STATUS").arg(status);
    }
    if let Some(limits) = &update.limits {
        if limits.is_empty() {
            set.arg("CLEAR").arg("limits");
        }
        limits.iter().try_for_each(|limit| limit.add_to(&mut set))?;
    }
    if let Some(quotas) = &update.quotas {
        if quotas.is_empty() {
            set.arg("CLEAR").arg("quotas");
        }
        quotas.iter().for_each(|quota| quota.add_to(&mut set));
    }
    app.server.ask(&set).await?;
    org(&app, &name).await.map(Json)
}

/// Delete an organization that has no keys.
#[utoipa::path(delete, path = "/admin/orgs/{name}", tag = "organizations",
    params(OrgName), responses(
    (status = 200, description = "It is gone", body = Detail),
    (status = 404, description = "There is none of this name", body = Detail),
    (status = 409, description = "It still has API keys", body = Detail),
    Problems,
))]
pub async fn delete_org(State(app): State<App>, OrgName(name): OrgName) -> Result<Json<Detail>, Problem> {
    app.server.ask(command(&app, "KG.DELORG").arg(&name)).await?;
    Ok(Json(Detail { detail: "Organization deleted.".to_owned() }))
}

/// One organization.
#[utoipa::path(get, path = "/admin/orgs/{name}", tag = "organizations",
    params(OrgName), responses(
    (status = 200, description = "As it is now", body = Org),
    (status = 404, description = "There is none of this name", body = Detail),
    Problems,
))]
pub async fn show_org(State(app): State<App>, OrgName(name): OrgName) -> Result<Json<Org>, Problem> {
    org(&app, &name).await.map(Json)
}

async fn org(app: &App, name: &str) -> Result<Org, Problem> {
    ask::<Record>(app, command(app, "KG.GETORG").arg(name)).await.map(Org::from)
}

/// How many keys an organization has.
pub async fn key_count(app: &App, name: &str) -> Result<u64, Problem> {
    org(app, name).await.map(|org| org.key_count)
}
