//! What the admin API answers when it does not do what it was asked: a status, and `{"detail": "..."}` that never repeats the request.

use std::collections::BTreeMap;

use axum::Json;
use axum::http::header::{RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::openapi::{ContentBuilder, Ref, RefOr, ResponseBuilder};
use utoipa::{IntoResponses, ToSchema};

use super::access::Subject;
use crate::failure::Failure;

/// How many seconds a caller may wait before it asks again for what the server could not do just now.
const RETRY_AFTER_SECONDS: u64 = 1;

/// What happened, for people.
#[derive(Debug, Serialize, ToSchema)]
pub struct Detail {
    /// One sentence.
    pub detail: String,
}

/// An answer other than the one that was asked for.
#[derive(Debug)]
pub struct Problem {
    status: StatusCode,
    detail: String,
    retry_after_seconds: Option<u64>,
    subject: Option<Subject>,
}

impl Problem {
    pub fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self { status, detail: detail.into(), retry_after_seconds: None, subject: None }
    }

    /// That of a change which the server was asked for: it may have been made all the same.
    pub fn about(self, subject: &Subject) -> Self {
        Self { subject: Some(subject.clone()), ..self }
    }

    pub fn not_found(detail: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, detail)
    }

    /// What was sent is not what it should be.
    pub fn invalid(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, detail)
    }

    /// Too much of something; worth asking again after so many seconds.
    pub fn too_many(detail: &str, retry_after_seconds: u64) -> Self {
        Self { retry_after_seconds: Some(retry_after_seconds), ..Self::new(StatusCode::TOO_MANY_REQUESTS, detail) }
    }

    /// What is our fault; of that, no more is told.
    pub fn internal() -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "This is a fault of keyguard serve, whose log says more.")
    }

    fn unavailable(detail: impl Into<String>) -> Self {
        Self { retry_after_seconds: Some(RETRY_AFTER_SECONDS), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, detail) }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(Detail { detail: self.detail })).into_response();
        if let Some(seconds) = self.retry_after_seconds {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if let Some(subject) = self.subject {
            response.extensions_mut().insert(subject);
        }
        if self.status == StatusCode::UNAUTHORIZED {
            let scheme = HeaderValue::from_static("ApiKey header=\"X-Admin-Key\"");
            response.headers_mut().insert(WWW_AUTHENTICATE, scheme);
        }
        response
    }
}

/// What the module refuses is the caller's to put right if its code says so; anything else is the server's.
impl From<Failure> for Problem {
    fn from(failure: Failure) -> Self {
        match &failure {
            Failure::Refused { code, text } => match code.as_str() {
                "NOSTORE" => Self::not_found("Not found: this store has nothing in it yet."),
                "NOSUCH" if text.starts_with("no such organization") => Self::not_found("Organization not found."),
                "NOSUCH" if text.starts_with("no such id") => Self::not_found("Key not found."),
                "NOSUCH" => Self::not_found(text),
                "DUPLICATE" => Self::new(StatusCode::BAD_REQUEST, "An organization of this name already exists."),
                "INUSE" => Self::new(
                    StatusCode::CONFLICT,
                    "The organization still has API keys: delete them first, DELETE /admin/keys/{id}?purge=true.",
                ),
                "NOTUNIQUE" | "TOOMANY" => Self::new(StatusCode::CONFLICT, text),
                "ERR" => Self::invalid(text),
                _ => Self::unavailable(format!("The server cannot do this now: {code} {text}")),
            },
            Failure::NoModule => Self::unavailable("The server does not have the keyguard module."),
            Failure::NotPermitted(_) => {
                Self::unavailable("The server does not permit this to the user of this program.")
            }
            Failure::Strange(_) => {
                Self::unavailable("The server's answer is not understood: is the module of this version?")
            }
            _ => Self::unavailable("The server does not answer."),
        }
    }
}

/// The problems that any request may meet, for the document; handlers add their own.
pub struct Problems;

impl IntoResponses for Problems {
    fn responses() -> BTreeMap<String, RefOr<utoipa::openapi::Response>> {
        // These come before anything of ours is asked, without a body.
        let bare = [
            ("408", "It took more than 10 seconds, as when a body does not arrive"),
            ("414", "A path and query that are too long"),
            ("431", "Headers that are too long or too many, or a path that is"),
        ];
        let bare = bare.map(|(status, description)| {
            (status.to_owned(), RefOr::T(ResponseBuilder::new().description(description).build()))
        });
        let told = [
            ("401", "No X-Admin-Key"),
            ("403", "An X-Admin-Key that is not known, or one that may not change anything"),
            ("405", "A method that there is not for this path; Allow says which there are"),
            ("422", "A parameter or a field that cannot be"),
            ("429", "Too many wrong keys from this address; Retry-After says when to try again"),
            ("500", "A fault of this program, whose log says more"),
            ("503", "The server does not answer, or cannot do this now; Retry-After says when to try again"),
        ];
        told.map(response).into_iter().chain(bare).collect()
    }
}

/// Those of a request with a body.
pub struct BodyProblems;

impl IntoResponses for BodyProblems {
    fn responses() -> BTreeMap<String, RefOr<utoipa::openapi::Response>> {
        let of_bodies = [("413", "A body of more than 64 KiB"), ("415", "A body that is not application/json")];
        Problems::responses().into_iter().chain(of_bodies.map(response)).collect()
    }
}

/// A status with a [`Detail`].
fn response((status, description): (&str, &str)) -> (String, RefOr<utoipa::openapi::Response>) {
    let content = ContentBuilder::new().schema(Some(Ref::from_schema_name("Detail"))).build();
    let response = ResponseBuilder::new().description(description).content("application/json", content).build();
    (status.to_owned(), RefOr::T(response))
}
