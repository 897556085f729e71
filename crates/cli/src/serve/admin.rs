//! The admin API: organizations, keys, addresses and usage over HTTP, for those who hold an admin token.
//!
//! Paths, fields and statuses are those of `keyguard_python`'s router, so that what was written for it goes on working; what it did
//! not have is added to them. Each request is one or a few commands of the module, whose refusals are told in [`problem`].

mod access;
mod addresses;
mod extract;
mod keys;
mod orgs;
mod problem;
mod terms;
mod usage;

use std::path::PathBuf;
use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::StatusCode;
use axum::middleware;
use axum::response::IntoResponse as _;
use clap::Args;
use redis::Cmd;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tower_http::catch_panic::CatchPanicLayer;
use utoipa::openapi::security::{ApiKey, ApiKeyValue, SecurityRequirement, SecurityScheme};
use utoipa::{Modify, OpenApi};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use utoipa_swagger_ui::{Config, SwaggerUi};

pub use self::access::Access;
use self::problem::{Detail, Problem};
use super::{App, log, page};
use crate::failure::Failure;
use crate::reply::Json;

/// The largest body, in bytes: the longest scopes and META that a key can have, and as much again.
const MAX_BODY_BYTES: usize = 64 * 1024;

/// Where the page after the last one begins.
const LAST: &str = "0";

/// The most records that one call of the module lists.
const MOST_AT_ONCE: u32 = 200;

/// How many calls of the module a page takes at most: one that would need more is short, and says where to go on.
const MOST_CALLS: usize = 50;

/// What the page at /docs may load: as the page at /, and the styles and images that Swagger UI has within its own script.
const DOCS_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; connect-src 'self'; \
    img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// What the admin API takes.
#[derive(Debug, Args)]
#[group(id = "admin")]
pub struct Options {
    /// The file of those who may use the admin API, a line for each: read or write, a name, sha256: and the digest of their token.
    /// `keyguard token new` makes them. Mode 0600; read at start and on SIGHUP. Without it, there is no admin API.
    #[arg(long, env = "KEYGUARD_ADMIN_TOKENS_FILE", value_name = "FILE")]
    admin_tokens: Option<PathBuf>,
}

/// What /openapi.json begins with.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "keyguard",
        description = "Organizations, API keys, addresses and usage of a store. Every request shows an admin token in X-Admin-Key; \
            `keyguard token new` makes one."
    ),
    components(schemas(Detail)),
    modifiers(&AdminKey),
    tags(
        (name = "organizations", description = "Who has keys"),
        (name = "keys", description = "API keys"),
        (name = "addresses", description = "Who is kept out, or let in, by address"),
        (name = "usage", description = "What was counted and logged")
    )
)]
struct Document;

/// The header that all of it needs.
struct AdminKey;

impl Modify for AdminKey {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let scheme = SecurityScheme::ApiKey(ApiKey::Header(ApiKeyValue::new("X-Admin-Key")));
        document.components.get_or_insert_default().add_security_scheme("admin_key", scheme);
        document.security = Some(vec![SecurityRequirement::new("admin_key", [] as [&str; 0])]);
    }
}

impl Options {
    /// Who is let in, unless there is no admin API.
    ///
    /// # Errors
    /// A file of tokens that cannot be read, or that others can.
    pub fn access(&self, app: &App) -> Result<Option<Arc<Access>>, Failure> {
        Ok(self.admin_tokens.as_ref().map(|file| Access::read(file, app)).transpose()?.map(Arc::new))
    }
}

/// Everything under /admin, what describes it, and a page to try it on.
pub fn router(access: Option<Arc<Access>>) -> Router<App> {
    let Some(access) = access else {
        log(format_args!("no admin API: there is no --admin-tokens (or KEYGUARD_ADMIN_TOKENS_FILE)"));
        return Router::new();
    };
    log(format_args!("admin API at /admin, for {} tokens; described at /docs", access.token_count()));
    let (router, document) = OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(orgs::create_org, orgs::list_orgs))
        .routes(routes!(orgs::show_org, orgs::update_org, orgs::delete_org))
        .routes(routes!(keys::create_key, keys::list_keys))
        .routes(routes!(keys::show_key, keys::update_key, keys::revoke_key))
        .routes(routes!(keys::rotate_key))
        .routes(routes!(addresses::list_rules, addresses::add_rule, addresses::remove_rule))
        .routes(routes!(usage::show_stats))
        .routes(routes!(usage::list_usage))
        .split_for_parts();
    let guarded = router
        .method_not_allowed_fallback(async || Problem::new(StatusCode::METHOD_NOT_ALLOWED, "Method not allowed."))
        // Within the guard, which writes down what comes of it.
        .layer(CatchPanicLayer::custom(|_| Problem::internal().into_response()))
        .route_layer(middleware::from_fn_with_state(access, access::guard))
        // Around the guard, which reads the bodies.
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES));
    // Without a validator, which is on the network.
    let config = Config::default().validator_url("none");
    let docs = SwaggerUi::new("/docs").url("/openapi.json", document).config(config);
    guarded.merge(page::strict(docs.into(), DOCS_POLICY))
}

/// A command on the store.
fn command(app: &App, name: &str) -> Cmd {
    let mut command = redis::cmd(name);
    command.arg(&app.store);
    command
}

/// What the module answers, as a type.
async fn ask<T: DeserializeOwned>(app: &App, command: &Cmd) -> Result<T, Problem> {
    read(app.server.ask(command).await?)
}

/// The same; nothing where nothing is yet.
async fn ask_if_any<T: DeserializeOwned>(app: &App, command: &Cmd) -> Result<Option<T>, Problem> {
    match app.server.ask(command).await {
        Err(failure) if failure.code() == Some("NOSTORE") => Ok(None),
        answer => read(answer?).map(Some),
    }
}

/// What was just made, as the server shows it, or as far as we know it if the server has gone away since.
async fn seen_or<T, F: Future<Output = Result<T, Problem>>>(as_known: T, look: impl Fn() -> F) -> T {
    let mut seen = look().await;
    if seen.is_err() {
        // Over another connection: the one before may be what was lost.
        seen = look().await;
    }
    seen.unwrap_or(as_known)
}

/// An answer of the module as a type.
fn read<T: DeserializeOwned>(answer: Json) -> Result<T, Problem> {
    serde_json::from_value(answer).map_err(|_| Failure::Strange("of another form").into())
}

/// How many records the store has.
#[derive(Default, Deserialize)]
struct Totals {
    organizations: u64,
    api_keys: u64,
}

/// None where nothing is.
async fn totals(app: &App) -> Result<Totals, Problem> {
    ask_if_any(app, &command(app, "KG.GETSTORE")).await.map(Option::unwrap_or_default)
}

/// A page of a command that says itself where the next one begins.
async fn page_of<T: DeserializeOwned>(app: &App, list: &Cmd) -> Result<(Option<String>, Vec<T>), Problem> {
    let (next, records): (String, _) = ask_if_any(app, list).await?.unwrap_or_else(|| (LAST.to_owned(), Vec::new()));
    Ok((Some(next).filter(|next| next != LAST), records))
}

/// A page of records, of a command that takes AFTER and COUNT, and where the next one begins.
async fn listed<T: DeserializeOwned>(
    app: &App,
    list: &Cmd,
    after: i64,
    limit: u32,
) -> Result<(Vec<T>, Option<String>), Problem> {
    let (mut found, mut after, mut left) = (Vec::new(), after, limit);
    for _ in 0..MOST_CALLS {
        let count = left.min(MOST_AT_ONCE);
        let mut list = list.clone();
        list.arg("AFTER").arg(after).arg("COUNT").arg(count);
        let mut page: Vec<Json> = ask_if_any(app, &list).await?.unwrap_or_default();
        let number = |record: &Json, field: &str| record.get(field).and_then(Json::as_i64);
        // One that ended before it was full ends with where to go on.
        let goes_on = page.pop_if(|last| last.get("after").is_some()).and_then(|last| number(&last, "after"));
        let whole = page.len() >= count as usize;
        let last = page.last().and_then(|last| number(last, "id"));
        left = left.saturating_sub(page.len() as u32);
        for record in page {
            found.push(read(record)?);
        }
        match goes_on.or(last.filter(|_| whole)) {
            Some(next) => after = next,
            None => return Ok((found, None)),
        }
        if left == 0 {
            break;
        }
    }
    Ok((found, Some(after.to_string())))
}
