//! API keys.

use axum::extract::State;
use axum::http::StatusCode;
use axum::{Extension, Json};
use jiff::Timestamp;
use redis::Cmd;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::access::Subject;
use super::extract::{Body, KeyId, OptionalBody, Query, long, within};
use super::orgs::{after, key_count};
use super::problem::{BodyProblems, Detail, Problem, Problems};
use super::terms::{Limit, Quota, given_duration, given_instant, instant, nullable};
use super::{ask, command, listed, seen_or};
use crate::reply::Json as Value;
use crate::serve::App;

/// How much of a key is shown behind its prefix.
const SHOWN_BODY_BYTES: usize = 6;

/// What JSON calls an object.
type Object = serde_json::Map<String, Value>;

/// An API key; never its secret.
#[derive(Debug, Serialize, ToSchema)]
pub struct Key {
    id: String,
    label: String,
    /// The beginning of the key, which may be shown.
    prefix: String,
    /// Whether it is neither revoked nor inactive.
    is_active: bool,
    /// The limit of requests in a minute, if it has one.
    rate_limit_per_minute: Option<u64>,
    scopes: Vec<String>,
    org_name: String,
    #[schema(format = DateTime)]
    created_at: String,
    /// A minute exact; null if it was never used.
    #[schema(format = DateTime)]
    last_used_at: Option<String>,
    /// `active`, `inactive`, or `revoked`, which is final.
    status: String,
    /// Whether its time is over.
    expired: bool,
    #[schema(format = DateTime)]
    expires_at: Option<String>,
    /// After a rotation with a grace: until when the secret before it works. Null in the rotation's own answer if the server went away
    /// meanwhile.
    #[schema(format = DateTime)]
    rotated_until: Option<String>,
    limits: Vec<Limit>,
    quotas: Vec<Quota>,
    /// The networks that it works from; from everywhere if there are none.
    allow: Vec<String>,
    #[schema(value_type = Option<Object>)]
    meta: Option<Object>,
}

/// A key with its secret.
#[derive(Debug, Serialize, ToSchema)]
pub struct KeyCreated {
    /// The whole key. Keep it: it is shown this once.
    raw_key: String,
    #[serde(flatten)]
    key: Key,
}

/// A page of keys.
#[derive(Debug, Serialize, ToSchema)]
pub struct KeyList {
    keys: Vec<Key>,
    /// How many there are, on all pages.
    total: u64,
    /// `after` of the next page; null on the last.
    next: Option<String>,
}

/// What a key may do: a word, `*` for all, or `orders:*` for all that begins so.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[schema(min_length = 1, max_length = 256, pattern = "^[!-+\\--~]+$")]
pub struct Scope(String);

/// A new key.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct KeyCreate {
    /// The organization that it belongs to.
    #[schema(min_length = 1, max_length = 255)]
    org_name: String,
    /// For people; up to 256 bytes.
    #[schema(min_length = 1, max_length = 255)]
    label: String,
    /// What the key begins with.
    #[serde(default = "prefix")]
    #[schema(max_length = 32, pattern = "^[A-Za-z0-9_-]*$", default = "kg_live_")]
    prefix: String,
    /// 60 unless it is given, or `limits` are.
    #[schema(minimum = 1, maximum = 10000)]
    rate_limit_per_minute: Option<u32>,
    /// What it may do.
    #[serde(default = "scopes")]
    #[schema(max_items = 64, default = json!(["read"]))]
    scopes: Vec<Scope>,
    /// Beside `rate_limit_per_minute`; up to 8 in all.
    #[schema(max_items = 8)]
    limits: Option<Vec<Limit>>,
    #[serde(default)]
    #[schema(max_items = 8)]
    quotas: Vec<Quota>,
    /// The networks that it works from, such as 192.0.2.0/24; from everywhere if there are none.
    #[serde(default)]
    #[schema(max_items = 64)]
    allow: Vec<String>,
    /// RFC 3339, or unix seconds; 0 is never.
    #[schema(min_length = 1, max_length = 64, example = "2030-01-01T00:00:00Z")]
    expires_at: Option<String>,
    /// What goes with the key, up to 16 KiB of JSON.
    #[schema(value_type = Option<Object>)]
    meta: Option<Object>,
}

fn prefix() -> String {
    "kg_live_".to_owned()
}

fn scopes() -> Vec<Scope> {
    vec![Scope("read".to_owned())]
}

/// What to change; what is left out stays.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct KeyUpdate {
    /// For people; up to 256 bytes.
    #[schema(min_length = 1, max_length = 255)]
    label: Option<String>,
    /// Whether it is let in. A revoked key never is again.
    active: Option<bool>,
    /// They replace all that there are.
    #[schema(max_items = 64)]
    scopes: Option<Vec<Scope>>,
    /// They replace all that there are.
    #[schema(max_items = 8)]
    limits: Option<Vec<Limit>>,
    /// They replace all that there are.
    #[schema(max_items = 8)]
    quotas: Option<Vec<Quota>>,
    /// They replace all that there are.
    #[schema(max_items = 64)]
    allow: Option<Vec<String>>,
    /// RFC 3339, or unix seconds; null is never.
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<String>, min_length = 1, max_length = 64)]
    expires_at: Option<Option<String>>,
    /// null takes it away.
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<Object>)]
    meta: Option<Option<Object>>,
}

/// Which keys.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct KeyPage {
    /// Those of this organization alone.
    #[param(min_length = 1, max_length = 255)]
    org: Option<String>,
    /// The most that a page shows; 1000 unless it is given.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<u32>,
    /// The id that the page goes on after: `next` of the page before.
    #[param(max_length = 19, pattern = "^(0|[1-9][0-9]{0,18})$")]
    after: Option<String>,
}

/// How to delete a key.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Purge {
    /// Whether the record goes, too: then nothing tells any more that there was such a key.
    #[serde(default)]
    purge: bool,
}

/// How a key is rotated.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Rotation {
    /// How long the secret before it goes on working: a number and ms, s, m, h or d. Without it, it stops at once.
    #[schema(min_length = 1, max_length = 32, example = "1h")]
    grace: Option<String>,
}

/// A key is no longer let in.
#[derive(Debug, Serialize, ToSchema)]
pub struct Revoked {
    detail: String,
    key_id: String,
}

/// What the module tells of an API key.
#[derive(Deserialize)]
struct Record {
    id: i64,
    org: String,
    label: String,
    #[serde(default)]
    start: String,
    #[serde(default)]
    scopes: Vec<String>,
    created_at: i64,
    last_used_at: Option<i64>,
    expires_at: Option<i64>,
    rotated_until: Option<i64>,
    #[serde(default)]
    limits: Vec<String>,
    #[serde(default)]
    quotas: Vec<String>,
    #[serde(default)]
    allowed: Vec<String>,
    status: String,
    active: u8,
    expired: u8,
    meta: Option<String>,
}

impl From<Record> for Key {
    fn from(record: Record) -> Self {
        let limits: Vec<_> = record.limits.iter().filter_map(|limit| Limit::read(limit)).collect();
        Self {
            id: record.id.to_string(),
            label: record.label,
            prefix: record.start,
            is_active: record.active != 0,
            rate_limit_per_minute: limits.iter().find_map(Limit::requests_per_minute),
            scopes: record.scopes,
            org_name: record.org,
            created_at: instant(record.created_at),
            last_used_at: record.last_used_at.map(instant),
            status: record.status,
            expired: record.expired != 0,
            expires_at: record.expires_at.map(instant),
            rotated_until: record.rotated_until.map(instant),
            limits,
            quotas: record.quotas.iter().filter_map(|quota| Quota::read(quota)).collect(),
            allow: record.allowed,
            meta: record.meta.and_then(|meta| serde_json::from_str(&meta).ok()),
        }
    }
}

/// Create an API key. It is shown this once.
#[utoipa::path(post, path = "/admin/keys", tag = "keys", request_body = KeyCreate, responses(
    (status = 200, description = "The key", body = KeyCreated),
    (status = 404, description = "There is no such organization", body = Detail),
    BodyProblems,
))]
pub async fn create_key(
    State(app): State<App>,
    Body(new): Body<KeyCreate>,
) -> Result<(Extension<Subject>, Json<KeyCreated>), Problem> {
    let mut add = command(&app, "KG.NEWKEY");
    add.arg(long("org_name", &new.org_name, 1..=255)?).arg(long("label", &new.label, 1..=255)?);
    add.arg("PREFIX").arg(&new.prefix);
    if !new.scopes.is_empty() {
        add_scopes(&mut add, &new.scopes)?;
    }
    let per_minute = new.rate_limit_per_minute.or_else(|| new.limits.is_none().then_some(60));
    per_minute.map(|count| within("rate_limit_per_minute", count, 1..=10_000)).transpose()?;
    let limits: Vec<_> =
        per_minute.map(Limit::per_minute).into_iter().chain(new.limits.into_iter().flatten()).collect();
    limits.iter().try_for_each(|limit| limit.add_to(&mut add))?;
    new.quotas.iter().for_each(|quota| quota.add_to(&mut add));
    new.allow.iter().for_each(|net| _ = add.arg("ALLOW").arg(net));
    if let Some(expires_at) = &new.expires_at {
        add.arg("EXPIREAT").arg(long("expires_at", expires_at, 1..=64)?);
    }
    if let Some(meta) = &new.meta {
        add.arg("META").arg(Value::Object(meta.clone()).to_string());
    }
    let (id, raw_key): (i64, String) = ask(&app, &add).await?;
    let as_wished = Key {
        id: id.to_string(),
        label: new.label,
        prefix: beginning(&raw_key, new.prefix.len() + SHOWN_BODY_BYTES),
        is_active: true,
        rate_limit_per_minute: limits.iter().find_map(Limit::requests_per_minute),
        scopes: new.scopes.into_iter().map(|Scope(scope)| scope).collect(),
        org_name: new.org_name,
        created_at: Timestamp::now().to_string(),
        last_used_at: None,
        status: "active".to_owned(),
        expired: false,
        expires_at: new.expires_at.and_then(|text| given_instant(&text)),
        rotated_until: None,
        limits,
        quotas: new.quotas,
        allow: new.allow,
        meta: new.meta,
    };
    let subject = Extension(Subject(format!("key {id}")));
    Ok((subject, Json(with_secret(&app, id, raw_key, as_wished).await)))
}

/// List API keys.
#[utoipa::path(get, path = "/admin/keys", tag = "keys", params(KeyPage), responses(
    (status = 200, description = "A page of them, in order of ids", body = KeyList),
    (status = 404, description = "There is no such organization", body = Detail),
    Problems,
))]
pub async fn list_keys(State(app): State<App>, Query(page): Query<KeyPage>) -> Result<Json<KeyList>, Problem> {
    let limit = within("limit", page.limit.unwrap_or(1000), 1..=1000)?;
    let mut list = command(&app, "KG.LISTKEYS");
    list.arg("TYPE").arg("api");
    let total = match &page.org {
        Some(org) => {
            list.arg("ORG").arg(long("org", org, 1..=255)?);
            key_count(&app, org).await?
        }
        None => super::totals(&app).await?.api_keys,
    };
    let (records, next): (Vec<Record>, _) = listed(&app, &list, after(page.after.as_deref())?, limit).await?;
    Ok(Json(KeyList { keys: records.into_iter().map(Key::from).collect(), total, next }))
}

/// One API key.
#[utoipa::path(get, path = "/admin/keys/{id}", tag = "keys",
    params(KeyId), responses(
    (status = 200, description = "As it is now", body = Key),
    (status = 404, description = "There is no such key", body = Detail),
    Problems,
))]
pub async fn show_key(State(app): State<App>, KeyId(id): KeyId) -> Result<Json<Key>, Problem> {
    key(&app, id).await.map(Json)
}

/// Change an API key.
#[utoipa::path(patch, path = "/admin/keys/{id}", tag = "keys", request_body = KeyUpdate,
    params(KeyId), responses(
    (status = 200, description = "As it is now", body = Key),
    (status = 404, description = "There is no such key", body = Detail),
    (status = 409, description = "It is revoked, and cannot be active again", body = Detail),
    BodyProblems,
))]
pub async fn update_key(
    State(app): State<App>,
    KeyId(id): KeyId,
    Body(update): Body<KeyUpdate>,
) -> Result<Json<Key>, Problem> {
    let old = key(&app, id).await?;
    if update.active == Some(true) {
        expect_not_revoked(&old)?;
    }
    let mut set = command(&app, "KG.SETKEY");
    set.arg(id);
    let without = set.args_iter().count();
    if let Some(label) = &update.label {
        set.arg("NAME").arg(long("label", label, 1..=255)?);
    }
    if let Some(active) = update.active {
        set.arg("ACTIVE").arg(if active { "yes" } else { "no" });
    }
    if let Some(scopes) = &update.scopes {
        if scopes.is_empty() {
            set.arg("CLEAR").arg("scopes");
        } else {
            add_scopes(&mut set, scopes)?;
        }
    }
    let mut clear_if = |empty: bool, field: &str| empty.then(|| _ = set.arg("CLEAR").arg(field));
    clear_if(update.limits.as_ref().is_some_and(Vec::is_empty), "limits");
    clear_if(update.quotas.as_ref().is_some_and(Vec::is_empty), "quotas");
    clear_if(update.allow.as_ref().is_some_and(Vec::is_empty), "allowed");
    clear_if(update.expires_at == Some(None), "expires_at");
    clear_if(update.meta == Some(None), "meta");
    update.limits.iter().flatten().try_for_each(|limit| limit.add_to(&mut set))?;
    update.quotas.iter().flatten().for_each(|quota| quota.add_to(&mut set));
    update.allow.iter().flatten().for_each(|net| _ = set.arg("ALLOW").arg(net));
    if let Some(expires_at) = update.expires_at.flatten() {
        set.arg("EXPIREAT").arg(long("expires_at", &expires_at, 1..=64)?);
    }
    if let Some(meta) = update.meta.flatten() {
        set.arg("META").arg(Value::Object(meta).to_string());
    }
    // The module takes no command that changes nothing.
    if set.args_iter().count() == without {
        return Ok(Json(old));
    }
    app.server.ask(&set).await?;
    key(&app, id).await.map(Json)
}

/// Revoke an API key, for good; with `purge`, delete it.
#[utoipa::path(delete, path = "/admin/keys/{id}", tag = "keys",
    params(KeyId, Purge), responses(
    (status = 200, description = "It is no longer let in", body = Revoked),
    (status = 404, description = "There is no such key", body = Detail),
    Problems,
))]
pub async fn revoke_key(
    State(app): State<App>,
    KeyId(id): KeyId,
    Query(Purge { purge }): Query<Purge>,
) -> Result<Json<Revoked>, Problem> {
    let key = key(&app, id).await?;
    let (name, done) = if purge { ("KG.DELKEY", "deleted") } else { ("KG.REVOKE", "revoked") };
    app.server.ask(command(&app, name).arg(id)).await?;
    Ok(Json(Revoked { detail: format!("Key '{}' {done}.", key.label), key_id: key.id }))
}

/// Give an API key a new secret. It is shown this once.
#[utoipa::path(post, path = "/admin/keys/{id}/rotate", tag = "keys", request_body = inline(Option<Rotation>),
    params(KeyId), responses(
    (status = 200, description = "The key", body = KeyCreated),
    (status = 404, description = "There is no such key", body = Detail),
    (status = 409, description = "It is revoked", body = Detail),
    BodyProblems,
))]
pub async fn rotate_key(
    State(app): State<App>,
    KeyId(id): KeyId,
    OptionalBody(rotation): OptionalBody<Option<Rotation>>,
) -> Result<Json<KeyCreated>, Problem> {
    let before = key(&app, id).await?;
    expect_not_revoked(&before)?;
    let mut rotate = command(&app, "KG.ROTATE");
    rotate.arg(id);
    if let Some(grace) = rotation.unwrap_or_default().grace {
        rotate.arg("GRACE").arg(given_duration("grace", &grace)?);
    }
    let (id, raw_key): (i64, String) = ask(&app, &rotate).await?;
    let prefix = beginning(&raw_key, before.prefix.len());
    Ok(Json(with_secret(&app, id, raw_key, Key { prefix, rotated_until: None, ..before }).await))
}

/// A key and its new secret, which nobody can ask for a second time: it is shown also if the server has gone away since it made it, and
/// the key then as far as we know it.
async fn with_secret(app: &App, id: i64, raw_key: String, as_known: Key) -> KeyCreated {
    KeyCreated { raw_key, key: seen_or(as_known, || key(app, id)).await }
}

/// As much of a key as may be shown.
fn beginning(raw_key: &str, length: usize) -> String {
    raw_key.chars().take(length).collect()
}

/// The API key of this id: one of the vault is not there for these callers.
async fn key(app: &App, id: i64) -> Result<Key, Problem> {
    let record = app.server.ask(command(app, "KG.GETKEY").arg(id)).await?;
    if record.get("type").and_then(Value::as_str) != Some("api") {
        return Err(Problem::not_found("Key not found."));
    }
    super::read::<Record>(record).map(Key::from)
}

fn expect_not_revoked(key: &Key) -> Result<(), Problem> {
    if key.status == "revoked" {
        return Err(Problem::new(StatusCode::CONFLICT, "This key is revoked, which is final."));
    }
    Ok(())
}

/// A comma would make two scopes of one.
fn add_scopes(command: &mut Cmd, scopes: &[Scope]) -> Result<(), Problem> {
    if scopes.iter().any(|Scope(scope)| scope.is_empty() || scope.contains(',')) {
        return Err(Problem::invalid(
            "A scope must have 1 to 256 characters of printable ASCII without space and comma.",
        ));
    }
    let scopes: Vec<&str> = scopes.iter().map(|Scope(scope)| scope.as_str()).collect();
    command.arg("SCOPES").arg(scopes.join(","));
    Ok(())
}
