//! The middleware: one KG.AUTH a request to /api. README.md, "HTTP", says what is answered, and why.
use axum::extract::{ConnectInfo, Request, State};
use axum::{http::StatusCode, middleware::Next, response::AppendHeaders, response::IntoResponse, response::Response};
use redis::{Cmd, FromRedisValue, RedisResult, Value, aio::ConnectionManager, cmd};
use std::{collections::HashMap, net::SocketAddr};

pub type Answer = HashMap<String, Value>;
pub type Guard = State<(ConnectionManager, String)>; // the one connection, and the store
pub type Peer = ConnectInfo<SocketAddr>;

pub fn field<T: FromRedisValue>(answer: &Answer, name: &str) -> Option<T> {
    answer.get(name).and_then(|value| T::from_redis_value_ref(value).ok())
}

/// The code of keyguard's answer, and the answer. Without one nobody is let in.
pub async fn ask(mut kg: ConnectionManager, command: &Cmd) -> (String, Answer) {
    let answer: RedisResult<Answer> = command.query_async(&mut kg).await;
    let answer = answer.inspect_err(|error| eprintln!("keyguard: {error}")).unwrap_or_default();
    (field(&answer, "code").unwrap_or_else(|| "UNAVAILABLE".into()), answer)
}

/// The headers in general use, and those of draft-ietf-httpapi-ratelimit-headers-11.
fn limits(answer: &Answer) -> AppendHeaders<Vec<(&'static str, String)>> {
    let seconds = |name| field::<i64>(answer, name).map_or(0, |ms| (ms.max(0) + 999) / 1000);
    let [window, full, wait] = ["window_ms", "reset_after_ms", "retry_after_ms"].map(seconds);
    let mut headers = Vec::from_iter((wait > 0).then(|| ("Retry-After", wait.to_string()))); // -1: it would not help
    if let (Some(limit), Some(left)) = (field::<u64>(answer, "limit"), field::<u64>(answer, "remaining")) {
        headers.push(("X-RateLimit-Limit", limit.to_string()));
        headers.push(("X-RateLimit-Remaining", left.to_string()));
        headers.push(("X-RateLimit-Reset", full.to_string()));
        headers.push(("RateLimit-Policy", format!("\"default\";q={limit};w={window}")));
        headers.push(("RateLimit", format!("\"default\";r={left};t={}", if wait > 0 { wait } else { full })));
    }
    AppendHeaders(headers)
}

pub fn refusal(code: &str, answer: &Answer) -> Response {
    let (status, code, challenge) = match code {
        // One code for all: nobody learns that a key was good once.
        "NOT_FOUND" | "DISABLED" | "EXPIRED" => (401, "NOT_FOUND", Some("Bearer realm=\"api\"")),
        "INSUFFICIENT_SCOPE" => (403, code, Some("Bearer realm=\"api\", error=\"insufficient_scope\"")),
        "IP_BLOCKED" | "IP_NOT_ALLOWED" | "ORG_SUSPENDED" => (403, code, None),
        "RATE_LIMITED" | "QUOTA_EXCEEDED" => (429, code, None),
        _ => (503, "UNAVAILABLE", None),
    };
    let body = format!("{{\"status\":{status},\"code\":\"{code}\"}}");
    let challenge = AppendHeaders(challenge.map(|challenge| ("WWW-Authenticate", challenge)));
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
    (status, [("Content-Type", "application/problem+json")], challenge, limits(answer), body).into_response()
}

/// What to ask about a request to /api.
fn question(request: &Request, store: &str, peer: SocketAddr) -> Option<Cmd> {
    let (path, method) = (request.uri().path(), request.method().as_str());
    let scope = match (method, path.strip_prefix("/api")?.strip_prefix('/').and_then(|rest| rest.split('/').next())) {
        (_, None) if path != "/api" => return None,
        ("GET", Some("me")) => None,
        ("GET", Some("orders")) => Some(("SCOPE", "orders:read")),
        _ => Some(("SCOPE", "*")), // what is not listed takes a key that may do everything
    };
    let header = |name| request.headers().get(name).map(|value| value.as_bytes()).filter(|value| !value.is_empty());
    let bearer = header("Authorization").and_then(|value| value.split_at_checked(7));
    let bearer = bearer.filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"Bearer ")).map(|(_, token)| token);
    // No key is asked about, too: a blocked address hears that first. X-Forwarded-For says what the caller likes.
    let (key, address, mut auth) = (header("X-API-Key").or(bearer), peer.ip().to_string(), cmd("KG.AUTH"));
    auth.arg(store).arg(key.unwrap_or_default()).arg(&["IP", &address, "PATH", path, "METHOD", method]).arg(scope);
    Some(auth)
}

pub async fn gate(guard: Guard, peer: Peer, mut request: Request, next: Next) -> Response {
    let State((kg, store)) = guard;
    let Some(auth) = question(&request, &store, peer.0) else { return next.run(request).await };
    let (code, answer) = ask(kg, &auth).await;
    if code != "VALID" {
        return refusal(&code, &answer);
    }
    let told = limits(&answer);
    request.extensions_mut().insert(answer);
    (told, next.run(request).await).into_response()
}
