//! The gate for other HTTP servers: nginx, Caddy, Traefik and Envoy ask about each request, and let through what is VALID. README.md, "HTTP",
//! says what is answered, and why.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::{ConnectInfo, Query, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use axum::{Extension, Router};
use clap::Args;
use ipnet::IpNet;
use percent_encoding::{AsciiSet, CONTROLS, percent_decode, utf8_percent_encode};
use redis::Cmd;

use super::App;
use super::metrics::Metrics;
use super::proxies::{self, Proxies};
use crate::failure::Failure;
use crate::reply::Json;

/// What the gate takes.
#[derive(Debug, Args)]
#[group(skip)] // clap would name it after the type, and several are called so
pub struct Options {
    /// A proxy whose X-Forwarded-For is believed, instead of the loopback: an address or a network. May be given several times.
    #[arg(long, value_name = "NET", value_parser = proxies::network, default_values = ["127.0.0.0/8", "::1"])]
    trusted_proxy: Vec<IpNet>,

    /// Let everybody in while the server is away, instead of nobody. What it refuses stays refused.
    #[arg(long)]
    fail_open: bool,

    /// The store of keys that begin so, instead of --store; of several, the longest counts. May be given several times.
    #[arg(long, value_name = "PREFIX=STORE", value_parser = prefix_and_store)]
    store_by_prefix: Vec<(String, String)>,
}

/// The headers by which a proxy names the path of a request, and its method.
const PATHS: [&str; 2] = ["X-Original-URI", "X-Forwarded-Uri"];
const METHODS: [&str; 2] = ["X-Original-Method", "X-Forwarded-Method"];

/// How requests are looked at.
struct Gate {
    proxies: Proxies,
    fail_open: bool,
    stores: BTreeMap<String, String>,
    metrics: Arc<Metrics>,
    /// What the log has been told, by the names of the stores.
    told: Mutex<HashMap<String, Told>>,
}

/// What the log says of a store.
struct Told {
    is_answered: bool,
    /// When that was said.
    at: Instant,
}

/// What is asked, of which store.
struct Question<'a> {
    store: &'a str,
    command: Cmd,
}

/// /verify.
///
/// # Errors
/// Options that cannot be.
pub fn router(options: &Options, metrics: Arc<Metrics>) -> Result<Router<App>, Failure> {
    let stores: BTreeMap<_, _> = options.store_by_prefix.iter().cloned().collect();
    if stores.len() != options.store_by_prefix.len() {
        return Err(Failure::Usage("--store-by-prefix: a prefix has one store".to_owned()));
    }
    let proxies = Proxies(options.trusted_proxy.clone());
    let gate = Arc::new(Gate { proxies, fail_open: options.fail_open, stores, metrics, told: Mutex::default() });
    let routes = Router::new().route("/verify", any(verify)).route("/verify/", any(verify));
    Ok(routes.route("/verify/{*path}", any(verify)).layer(Extension(gate)))
}

fn prefix_and_store(text: &str) -> Result<(String, String), &'static str> {
    let split = text.split_once('=').filter(|(prefix, store)| !prefix.is_empty() && !store.is_empty());
    split.map(|(prefix, store)| (prefix.to_owned(), store.to_owned())).ok_or("PREFIX=STORE, such as acme_live=acme")
}

/// One KG.AUTH a request, of which only the head is looked at.
async fn verify(
    State(app): State<App>,
    Extension(gate): Extension<Arc<Gate>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    request: Request,
) -> Response {
    let _in_flight = gate.metrics.begin();
    let question = match gate.question(&app.store, peer, request.uri(), request.method().as_str(), request.headers()) {
        Ok(question) => question,
        Err(why) => {
            gate.metrics.malformed();
            return malformed(why);
        }
    };
    let begun = Instant::now();
    let answer = app.server.ask(&question.command).await;
    let answer = answer.and_then(|answer| match answer.get("code").and_then(Json::as_str) {
        Some(code) => Ok((code.to_owned(), answer)),
        None => Err(Failure::Strange("it has no code")),
    });
    match answer {
        Ok((code, answer)) => {
            gate.metrics.answered(&code, begun.elapsed());
            gate.note(question.store, None);
            respond(&code, &answer)
        }
        // A word that the module does not take is the mistake of whoever asks, who may do so as often as he likes.
        Err(Failure::Refused { code, text }) if code == "ERR" => {
            gate.metrics.malformed();
            malformed(&text)
        }
        Err(failure) => {
            gate.metrics.failed(&failure);
            gate.note(question.store, Some(&failure));
            match gate.fail_open && is_away(&failure) {
                true => let_in("UNAVAILABLE", &Json::Null),
                false => respond("UNAVAILABLE", &Json::Null),
            }
        }
    }
}

impl Gate {
    /// What to ask about a request.
    ///
    /// # Errors
    /// Why that is not certain: a caller may have added headers that contradict the proxy's.
    fn question<'a>(
        &'a self,
        store: &'a str,
        peer: SocketAddr,
        uri: &Uri,
        method: &str,
        headers: &HeaderMap,
    ) -> Result<Question<'a>, &'static str> {
        let key = key(headers);
        let store = self.store_of(key).unwrap_or(store);
        let address = self.proxies.caller(peer, headers).ok_or("a trusted proxy's X-Forwarded-For has no address")?;
        let mut auth = redis::cmd("KG.AUTH");
        auth.arg(store).arg(key).arg("IP").arg(address.to_string());
        let mut needs = Vec::new();
        let query = || match Query::<Vec<(String, String)>>::try_from_uri(uri) {
            Ok(Query(query)) => Ok(query),
            Err(_) => Err("the query is not understood"),
        };
        let (path, method) = match uri.path().strip_prefix("/verify").filter(|rest| !rest.is_empty()) {
            // Envoy appends the path, and the query with it, which is the caller's; and it knows none of these headers.
            Some(path) => {
                if PATHS.iter().chain(&METHODS).any(|name| headers.contains_key(*name)) {
                    return Err("path or method stand both after /verify and in a header");
                }
                if path == "/" && query()?.iter().any(|(name, _)| matches!(&**name, "scope" | "cost")) {
                    return Err("what is demanded stands after /verify, without a slash: /verify?scope=...");
                }
                (Some(path.as_bytes()), Some(method.as_bytes()))
            }
            None => {
                needs.extend(query()?);
                let two = "two headers contradict each other about path or method";
                (agreed(headers, PATHS).ok_or(two)?, agreed(headers, METHODS).ok_or(two)?)
            }
        };
        if let Some(path) = path {
            auth.arg("PATH").arg(&*routed(path).ok_or("the path has a # in it")?);
        }
        if let Some(method) = method {
            auth.arg("METHOD").arg(method);
        }
        // A caller who adds to these headers makes it harder for himself, never easier.
        for (name, header) in [("scope", "X-Required-Scope"), ("cost", "X-Required-Cost")] {
            for line in headers.get_all(header) {
                let line = line.to_str().map_err(|_| "X-Required-Scope or X-Required-Cost is not ASCII")?;
                let words = line.split([' ', ',']).filter(|word| !word.is_empty());
                needs.extend(words.map(|word| (name.to_owned(), word.to_owned())));
            }
        }
        for (name, value) in &needs {
            match &**name {
                "scope" => {
                    auth.arg("SCOPE").arg(value);
                }
                "cost" => {
                    let (units, unit) = value.split_once(':').map_or((&**value, None), |(n, unit)| (n, Some(unit)));
                    units
                        .parse::<u64>()
                        .ok()
                        .filter(|units| *units > 0)
                        .ok_or("a cost is a number from 1, or 1:unit")?;
                    auth.arg("COST").arg(units);
                    if let Some(unit) = unit {
                        auth.arg("UNIT").arg(unit);
                    }
                }
                // A word that the proxy's configuration has wrong must not pass for no word.
                _ => return Err("the words of /verify are scope and cost"),
            }
        }
        Ok(Question { store, command: auth })
    }

    /// The store of the longest prefix that the key begins with.
    fn store_of(&self, key: &[u8]) -> Option<&str> {
        let fitting = self.stores.iter().filter(|(prefix, _)| key.starts_with(prefix.as_bytes()));
        fitting.max_by_key(|(prefix, _)| prefix.len()).map(|(_, store)| &**store)
    }

    /// Logs when a store is not answered for any more, and when it is again; at most once a second, however fast that changes. What the
    /// server says repeats nothing that was sent.
    fn note(&self, store: &str, failure: Option<&Failure>) {
        const PAUSE: Duration = Duration::from_secs(1);
        let is_answered = failure.is_none();
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        match told.get_mut(store) {
            Some(told) if told.is_answered == is_answered || told.at.elapsed() < PAUSE => return,
            Some(told) => *told = Told { is_answered, at: Instant::now() },
            // That all is well from the start is not worth a word.
            None if is_answered => return,
            None => drop(told.insert(store.to_owned(), Told { is_answered, at: Instant::now() })),
        }
        drop(told);
        match failure {
            Some(failure) => anstream::eprintln!("keyguard: no answer to KG.AUTH about {store}: {failure}"),
            None => anstream::eprintln!("keyguard: KG.AUTH about {store} is answered again"),
        }
    }
}

/// The key, or nothing. That is asked about, too: a blocked address hears so first.
fn key(headers: &HeaderMap) -> &[u8] {
    let value = |name| headers.get(name).map(HeaderValue::as_bytes).filter(|value| !value.is_empty());
    let bearer = value(header::AUTHORIZATION).and_then(|value| value.split_at_checked(7));
    let bearer = bearer.filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"Bearer ")).map(|(_, token)| token);
    value(HeaderName::from_static("x-api-key")).or(bearer).unwrap_or_default()
}

/// What all of these headers say that are there. `None` if they contradict each other: one of them is the caller's own, and we cannot know which.
fn agreed<'a>(headers: &'a HeaderMap, names: [&str; 2]) -> Option<Option<&'a [u8]>> {
    let mut values = names.into_iter().flat_map(|name| headers.get_all(name));
    let Some(first) = values.next() else { return Some(None) };
    values.all(|value| value == first).then(|| Some(first.as_bytes()))
}

/// The path of a URI as the application routes by it: without host and query, and decoded once. `None` for one with a raw `#`, which no
/// client sends: some take the path to end there, others read on.
fn routed(uri: &[u8]) -> Option<Cow<'_, [u8]>> {
    let uri = uri.split(|byte| *byte == b'?').next().unwrap_or_default();
    if uri.contains(&b'#') {
        return None;
    }
    let decoded: Cow<'_, [u8]> = percent_decode(path_of(uri)).into();
    // To some a backslash is a slash, to some a semicolon ends a segment, and to some a host follows two slashes.
    let is_certain = !decoded.starts_with(b"//") && !decoded.iter().any(|byte| b"\\;".contains(byte));
    if is_certain && !decoded.contains(&b'?') {
        return Some(decoded);
    }
    // A `.` tells the module that nobody knows where the path leads: every block keeps it out, and no rule lets it in.
    let mut path = if is_certain { Vec::new() } else { b"/./".to_vec() };
    for byte in &*decoded {
        match byte {
            // It stands for itself: read as the beginning of a query, it would hide what follows from the rules, such as `/../admin`.
            b'?' => path.extend(b"%3F"),
            byte => path.push(*byte),
        }
    }
    Some(Cow::Owned(path))
}

/// What follows the host, in a URI that has one; the module takes what does not begin with a slash for a path that leads anywhere.
fn path_of(uri: &[u8]) -> &[u8] {
    let is_scheme =
        |text: &[u8]| !text.is_empty() && text.iter().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(byte));
    let host = uri.windows(3).position(|three| three == b"://");
    let host = host.and_then(|at| uri.split_at_checked(at)).filter(|(scheme, _)| is_scheme(scheme));
    let Some((_, rest)) = host else { return uri };
    let rest = rest.strip_prefix(b"://").unwrap_or(rest);
    let (host, path) = rest.split_at(rest.iter().position(|byte| *byte == b'/').unwrap_or(rest.len()));
    match (host.contains(&b'\\'), path) {
        (true, _) => uri,
        (false, b"") => b"/",
        (false, path) => path,
    }
}

/// Whether this is about a server that cannot answer anybody, and not about this request or how we are set up.
fn is_away(failure: &Failure) -> bool {
    const AWAY: [&str; 8] =
        ["LOADING", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "MISCONF", "NOREPLICAS", "BUSY"];
    matches!(failure, Failure::Unreachable(_)) || failure.code().is_some_and(|code| AWAY.contains(&code))
}

/// The table.
fn respond(code: &str, answer: &Json) -> Response {
    let (status, code, challenge) = match code {
        "VALID" => return let_in(code, answer),
        // One code for all: nobody learns that a key was good once.
        "NOT_FOUND" | "DISABLED" | "EXPIRED" => (StatusCode::UNAUTHORIZED, "NOT_FOUND", Some("Bearer realm=\"api\"")),
        "INSUFFICIENT_SCOPE" => {
            (StatusCode::FORBIDDEN, code, Some("Bearer realm=\"api\", error=\"insufficient_scope\""))
        }
        "IP_BLOCKED" | "IP_NOT_ALLOWED" | "ORG_SUSPENDED" => (StatusCode::FORBIDDEN, code, None),
        "RATE_LIMITED" | "QUOTA_EXCEEDED" => (StatusCode::TOO_MANY_REQUESTS, code, None),
        _ => (StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE", None),
    };
    let mut headers = limits(answer);
    if let Some(challenge) = challenge {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
    }
    refusal(status, code, None, headers)
}

/// As RFC 9457 has it. The code is also a header, and so is the status: nginx passes neither body nor status on.
fn refusal(status: StatusCode, code: &str, detail: Option<&str>, mut headers: HeaderMap) -> Response {
    put(&mut headers, "x-keyguard-code", code);
    put(&mut headers, "x-keyguard-status", status.as_str());
    put(&mut headers, "content-type", "application/problem+json");
    let detail = detail.map(|detail| format!(",\"detail\":{}", Json::from(detail))).unwrap_or_default();
    let body = format!("{{\"status\":{},\"code\":\"{code}\"{detail}}}", status.as_u16());
    (status, headers, body).into_response()
}

/// What cannot be asked about. The reason repeats nothing that was sent.
fn malformed(why: &str) -> Response {
    refusal(StatusCode::BAD_REQUEST, "BAD_REQUEST", Some(why), HeaderMap::new())
}

/// With what the server behind the proxy wants to know about the caller. All of it is always there: what a caller pretends to be is replaced.
fn let_in(code: &str, answer: &Json) -> Response {
    let mut headers = limits(answer);
    let text = |name: &str| answer.get(name).and_then(Json::as_str).unwrap_or_default();
    let scopes = answer.get("scopes").and_then(Json::as_array).map(Vec::as_slice).unwrap_or_default();
    let scopes: Vec<&str> = scopes.iter().filter_map(Json::as_str).collect();
    put(&mut headers, "x-keyguard-code", code);
    put(&mut headers, "x-keyguard-status", StatusCode::OK.as_str());
    name(&mut headers, "x-keyguard-key-id", &answer.get("id").map(Json::to_string).unwrap_or_default());
    name(&mut headers, "x-keyguard-organization", text("org"));
    name(&mut headers, "x-keyguard-label", text("label"));
    name(&mut headers, "x-keyguard-scopes", &scopes.join(" "));
    (StatusCode::OK, headers).into_response()
}

/// The headers in general use, and those of draft-ietf-httpapi-ratelimit-headers-11.
fn limits(answer: &Json) -> HeaderMap {
    let number = |name: &str| answer.get(name).and_then(Json::as_i64);
    let seconds = |name| number(name).map_or(0, |ms| ms.max(0).saturating_add(999) / 1000);
    let [window, full, wait] = ["window_ms", "reset_after_ms", "retry_after_ms"].map(seconds);
    let mut headers = HeaderMap::new();
    // -1: it would not help.
    if wait > 0 {
        put(&mut headers, "retry-after", &wait.to_string());
    }
    if let (Some(limit), Some(left)) = (number("limit"), number("remaining")) {
        put(&mut headers, "x-ratelimit-limit", &limit.to_string());
        put(&mut headers, "x-ratelimit-remaining", &left.to_string());
        put(&mut headers, "x-ratelimit-reset", &full.to_string());
        put(&mut headers, "ratelimit-policy", &format!("\"default\";q={limit};w={window}"));
        let until = if wait > 0 { wait } else { full };
        put(&mut headers, "ratelimit", &format!("\"default\";r={left};t={until}"));
    }
    headers
}

/// What a caller is named by, or `-`: some proxies take an empty header for none, and leave what the caller wrote under its name.
fn name(headers: &mut HeaderMap, name: &'static str, value: &str) {
    match value {
        "" => put(headers, name, "-"),
        "-" => drop(headers.insert(name, HeaderValue::from_static("%2D"))),
        value => put(headers, name, value),
    }
}

/// What is no printable ASCII is percent-encoded, and so is the percent sign.
fn put(headers: &mut HeaderMap, name: &'static str, value: &str) {
    const UNSAFE: &AsciiSet = &CONTROLS.add(b'%');
    let value = utf8_percent_encode(value, UNSAFE).to_string();
    if let Ok(value) = HeaderValue::from_str(&value) {
        headers.insert(name, value);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_as_the_application_routes_by_them() {
        for (uri, path) in [
            ("/api/orders", "/api/orders"),
            ("/api/orders?x=/other#y", "/api/orders"),
            ("/%61pi%2forders?x=%61", "/api/orders"),
            ("/%2561pi", "/%61pi"),
            ("/100%", "/100%"),
            ("/100%2", "/100%2"),
            ("/public/%3f/../admin?x", "/public/%3F/../admin"),
            ("/%23x", "/#x"),
            ("/a//b", "/a//b"),
            ("http://host/api?x", "/api"),
            ("HTTP://user@[::1]:80/api", "/api"),
            ("http:///api", "/api"),
            ("http://host", "/"),
            ("http://host?x=/y", "/"),
            ("/admin/x://y/public", "/admin/x://y/public"),
            ("/a?b=http://host/c", "/a"),
            // What does not begin with a slash leads anywhere, and so does what has a segment `.` or `..`.
            ("", ""),
            ("*", "*"),
            ("host:443", "host:443"),
            ("admin/x://y/public", "admin/x://y/public"),
            ("://y/public", "://y/public"),
            (r"http://host\x/public", r"/./http://host\x/public"),
            (r"/public\..\admin", r"/.//public\..\admin"),
            ("/public%5cx", r"/.//public\x"),
            ("/public/..;x/%3f", "/.//public/..;x/%3F"),
            ("//host/admin", "/.///host/admin"),
            ("/%2Fhost/admin", "/.///host/admin"),
        ] {
            assert_eq!(routed(uri.as_bytes()).as_deref(), Some(path.as_bytes()), "{uri}");
        }
        for uri in ["#", "/#", "/public#/../admin", "http://host#/admin", "/a#?b"] {
            assert_eq!(routed(uri.as_bytes()), None, "{uri}");
        }
    }

    #[test]
    fn values_of_headers_are_printable_ascii() {
        let mut headers = HeaderMap::new();
        put(&mut headers, "x-keyguard-label", "caf\u{e9} 100%\r\nX-Other: 1");
        assert_eq!(headers["x-keyguard-label"], "caf%C3%A9 100%25%0D%0AX-Other: 1");
    }

    #[test]
    fn no_name_of_a_caller_is_empty() {
        for (value, wanted) in [("", "-"), ("-", "%2D"), ("--", "--"), ("shop", "shop")] {
            let mut headers = HeaderMap::new();
            name(&mut headers, "x-keyguard-label", value);
            assert_eq!(headers["x-keyguard-label"], wanted);
        }
    }
}
