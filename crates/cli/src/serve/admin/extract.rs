//! What handlers take from a request. What cannot be taken is told in our own words, which never repeat the request.

use std::ops::RangeInclusive;

use axum::body::{Bytes, HttpBody as _};
use axum::extract::rejection::BytesRejection;
use axum::extract::{FromRequest, FromRequestParts, Path, Query as AxumQuery, Request};
use axum::http::header::CONTENT_TYPE;
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::IntoResponse as _;
use serde::de::DeserializeOwned;
use serde_json::error::Category;
use utoipa::IntoParams;

use super::problem::Problem;

/// A body of JSON.
pub struct Body<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let is_json = is_json(request.headers());
        let bytes = body(request, state).await?;
        parse(is_json, &bytes).map(Self)
    }
}

/// A body of JSON, or none at all, which is as if it had no fields.
pub struct OptionalBody<T>(pub T);

impl<T: DeserializeOwned + Default, S: Send + Sync> FromRequest<S> for OptionalBody<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let is_json = is_json(request.headers());
        let bytes = body(request, state).await?;
        if bytes.is_empty() { Ok(Self(T::default())) } else { parse(is_json, &bytes).map(Self) }
    }
}

/// A request for a change with the whole of its body, or without one if its method has none here.
///
/// # Errors
/// As of [`Body`]: a body that is too large, or that breaks off.
pub async fn arrived(request: Request) -> Result<Request, Problem> {
    let (parts, unread) = request.into_parts();
    if !matches!(parts.method, Method::POST | Method::PATCH) {
        return Ok(Request::from_parts(parts, Bytes::new().into()));
    }
    let bytes = body(Request::from_parts(parts.clone(), unread), &()).await?;
    Ok(Request::from_parts(parts, bytes.into()))
}

async fn body<S: Send + Sync>(request: Request, state: &S) -> Result<Bytes, Problem> {
    // One that is announced as too large is not waited for.
    if request.body().size_hint().lower() > super::MAX_BODY_BYTES as u64 {
        return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "The body is too large."));
    }
    Bytes::from_request(request, state).await.map_err(|rejection: BytesRejection| {
        match rejection.into_response().status() {
            StatusCode::PAYLOAD_TOO_LARGE => Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "The body is too large."),
            _ => Problem::invalid("The body could not be read."),
        }
    })
}

fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    kind.eq_ignore_ascii_case("application/json")
}

fn parse<T: DeserializeOwned>(is_json: bool, bytes: &[u8]) -> Result<T, Problem> {
    if !is_json {
        return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "The body must be application/json."));
    }
    serde_json::from_slice(bytes).map_err(|error| {
        let what = match error.classify() {
            Category::Data => fault(&error.to_string()),
            _ => "not JSON".to_owned(),
        };
        Problem::invalid(format!(
            "The body cannot be taken: {what}, at line {} column {}.",
            error.line(),
            error.column()
        ))
    })
}

/// What serde found, without what it was given: it ends with what was expected, which are words of ours.
fn fault(error: &str) -> String {
    // serde_json appends the place.
    let error = error.rsplit_once(" at line ").map_or(error, |(error, _)| error);
    const OURS_ALONE: [&str; 2] = ["missing field", "duplicate field"];
    if OURS_ALONE.iter().any(|kind| error.starts_with(kind)) {
        return error.to_owned();
    }
    let kinds = ["unknown field", "unknown variant", "invalid type", "invalid value", "invalid length"];
    let kind = kinds.into_iter().find(|kind| error.starts_with(kind)).unwrap_or("not what is expected");
    match error.rsplit_once(", expected ") {
        Some((_, expected)) => format!("{kind}, expected {expected}"),
        None => kind.to_owned(),
    }
}

/// The query, of which every parameter is known.
pub struct Query<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let query = AxumQuery::try_from_uri(&parts.uri);
        let told = "The query cannot be taken: /openapi.json has its parameters and their limits.";
        query.map(|AxumQuery(query)| Self(query)).map_err(|_| Problem::invalid(told))
    }
}

/// The id of an API key, in a path. What is no number is the id of no key.
#[derive(IntoParams)]
#[into_params(names("id"), parameter_in = Path)]
pub struct KeyId(
    /// The id of the key
    #[param(value_type = String)]
    pub i64,
);

impl<S: Send + Sync> FromRequestParts<S> for KeyId {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let id: Result<Path<String>, _> = Path::from_request_parts(parts, state).await;
        id.ok().and_then(|Path(id)| id_of(&id)).map(Self).ok_or_else(|| Problem::not_found("Key not found."))
    }
}

/// The id that a text is: of one number there is one text.
pub fn id_of(text: &str) -> Option<i64> {
    text.parse().ok().filter(|id: &i64| *id > 0 && id.to_string() == text)
}

/// The name of an organization, in a path.
#[derive(IntoParams)]
#[into_params(names("name"), parameter_in = Path)]
pub struct OrgName(
    /// The name of the organization
    pub String,
);

impl<S: Send + Sync> FromRequestParts<S> for OrgName {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let name: Result<Path<String>, _> = Path::from_request_parts(parts, state).await;
        let name = name.ok().filter(|Path(name)| name.len() <= 256);
        name.map(|Path(name)| Self(name)).ok_or_else(|| Problem::not_found("Organization not found."))
    }
}

/// A number of the query or body that must lie within a range.
///
/// # Errors
/// What it must be.
pub fn within<T: PartialOrd + Copy + std::fmt::Display>(
    what: &str,
    value: T,
    range: RangeInclusive<T>,
) -> Result<T, Problem> {
    if range.contains(&value) {
        return Ok(value);
    }
    Err(Problem::invalid(format!("{what} must be from {} to {}.", range.start(), range.end())))
}

/// A text whose length, in characters, must lie within a range.
///
/// # Errors
/// What it must be.
pub fn long<'t>(what: &str, text: &'t str, range: RangeInclusive<usize>) -> Result<&'t str, Problem> {
    if range.contains(&text.chars().count()) {
        return Ok(text);
    }
    Err(Problem::invalid(format!("{what} must have {} to {} characters.", range.start(), range.end())))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Form {
        #[allow(dead_code)]
        name: u8,
    }

    #[test]
    fn a_fault_is_told_without_what_was_sent() {
        for (sent, told) in [
            (r#"{"name":"hush, expected hush"}"#, "invalid type, expected u8"),
            (r#"{"hush":1}"#, "unknown field, expected `name`"),
            (r#"{"name":1,"hush at line 1, expected x":1}"#, "unknown field, expected `name`"),
            (r#"{"name":99999}"#, "invalid value, expected u8"),
            ("{}", "missing field `name`"),
            (r#"{"name":1,"name":1}"#, "duplicate field `name`"),
        ] {
            assert_eq!(fault(&serde_json::from_str::<Form>(sent).unwrap_err().to_string()), told, "{sent}");
        }
    }

    #[test]
    fn an_id_has_one_spelling() {
        assert_eq!(id_of("7"), Some(7));
        assert!(
            ["", "0", "-1", "+7", "07", "7 ", "seven", "9223372036854775808"].into_iter().all(|id| id_of(id).is_none())
        );
    }
}
