//! What Prometheus reads at /metrics, and whether all is well at /healthz.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicI64;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use tokio::time;

use super::App;
use crate::failure::Failure;
use crate::reply::Json;

/// How long the server's own figures are waited for: those of the gate are there without them.
const SCRAPE: Duration = Duration::from_millis(250);

/// Counters by one label.
type By = Family<[(&'static str, String); 1], Counter>;

/// What the gate counts.
pub struct Metrics {
    registry: Registry,
    answers: By,
    errors: By,
    durations: Histogram,
    in_flight: Gauge<i64, AtomicI64>,
}

impl Metrics {
    /// Nothing counted yet.
    pub fn new() -> Self {
        let (answers, errors, in_flight) = (By::default(), By::default(), Gauge::default());
        // From an eighth of a millisecond to two seconds, which is as long as an answer is waited for.
        let durations = Histogram::new(exponential_buckets(0.000_125, 2.0, 15));
        let mut registry = Registry::with_prefix("keyguard");
        registry.register("verify_answers", "Answers of the gate by code", answers.clone());
        registry.register("verify_errors", "Questions that had no answer, by reason", errors.clone());
        let about = "Time from question to answer of the server";
        registry.register_with_unit("auth_duration", about, Unit::Seconds, durations.clone());
        registry.register("verify_in_flight", "Requests being answered", in_flight.clone());
        registry.register("build", "The program", Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]));
        Self { registry, answers, errors, durations, in_flight }
    }

    /// A request has come; it has been answered, or was given up, when what is returned is dropped.
    pub fn begin(&self) -> InFlight<'_> {
        self.in_flight.inc();
        InFlight(&self.in_flight)
    }

    /// An answer, and how long the server took for it.
    pub fn answered(&self, code: &str, took: Duration) {
        self.answers.get_or_create(&[("code", code.to_owned())]).inc();
        self.durations.observe(took.as_secs_f64());
    }

    /// No answer.
    pub fn failed(&self, failure: &Failure) {
        self.answers.get_or_create(&[("code", "UNAVAILABLE".to_owned())]).inc();
        self.errors.get_or_create(&[("reason", reason(failure))]).inc();
    }

    /// A request that could not be asked about.
    pub fn malformed(&self) {
        self.answers.get_or_create(&[("code", "BAD_REQUEST".to_owned())]).inc();
    }
}

/// A request that is being answered.
pub struct InFlight<'a>(&'a Gauge<i64, AtomicI64>);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// /metrics and /healthz.
pub fn router(metrics: Arc<Metrics>) -> Router<App> {
    let show = |app: State<App>| show(app, metrics);
    Router::new().route("/metrics", get(show)).route("/healthz", get(health))
}

async fn show(State(app): State<App>, metrics: Arc<Metrics>) -> Response {
    let mut text = String::new();
    if encode(&mut text, &metrics.registry).is_err() {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    }
    // What the module itself counts, if we may ask: in a cluster each primary, all of which have to answer.
    let mut about = redis::cmd("INFO");
    about.arg("keyguard");
    let shown = match time::timeout(SCRAPE, app.server.ask(&about)).await {
        Ok(Ok(Json::String(info))) => figures([("", &*info)]),
        Ok(Ok(Json::Object(nodes))) => figures(nodes.iter().filter_map(|(node, info)| Some((&**node, info.as_str()?)))),
        _ => String::new(),
    };
    let end = text.rfind("# EOF").unwrap_or(text.len());
    text.insert_str(end, &shown);
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}

/// The numbers in sections of INFO, as gauges: `keyguard_auth_valid:7` is `keyguard_server_auth_valid 7`; by nodes, if they have names.
fn figures<'a>(infos: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let mut gauges: BTreeMap<&str, Vec<(&str, &str)>> = BTreeMap::new();
    for (node, info) in infos {
        for (name, value) in info.lines().filter_map(|line| line.split_once(':')) {
            let is_name = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
            if is_name && value.trim().parse::<i64>().is_ok() {
                let name = name.strip_prefix("keyguard_").unwrap_or(name);
                gauges.entry(name).or_default().push((node, value.trim()));
            }
        }
    }
    let mut text = String::new();
    for (name, values) in gauges {
        text += &format!("# TYPE keyguard_server_{name} gauge\n");
        for (node, value) in values {
            let label = if node.is_empty() { String::new() } else { format!("{{node={node:?}}}") };
            text += &format!("keyguard_server_{name}{label} {value}\n");
        }
    }
    text
}

/// Asked so that the module refuses the question, a method without a name, and the server has refused it before if it could not answer any:
/// while it is loading, read-only, or cannot write. Whoever may ask /verify's questions may ask this one, and nothing comes of it.
async fn health(State(app): State<App>) -> Response {
    match app.server.ask(redis::cmd("KG.AUTH").arg(&app.store).arg("").arg("METHOD").arg("")).await {
        Ok(_) => "ok".into_response(),
        Err(failure) if matches!(failure.code(), Some("ERR" | "NOSTORE")) => "ok".into_response(),
        Err(failure) => (StatusCode::SERVICE_UNAVAILABLE, reason(&failure)).into_response(),
    }
}

/// What is wrong, in a word.
fn reason(failure: &Failure) -> String {
    match failure {
        Failure::Refused { code, .. } => code.to_lowercase(),
        Failure::Unreachable(_) => "unreachable".to_owned(),
        Failure::Misconfigured(_) => "misconfigured".to_owned(),
        Failure::NoModule => "no_module".to_owned(),
        Failure::NotPermitted(_) => "not_permitted".to_owned(),
        _ => "not_understood".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_the_numbers_of_info() {
        let info = "# keyguard_keyguard\r\nkeyguard_version:0.1.0\r\nkeyguard_auth_valid:7\r\nkeyguard_x:-1\r\n";
        let expected = "# TYPE keyguard_server_auth_valid gauge\nkeyguard_server_auth_valid 7\n\
                        # TYPE keyguard_server_x gauge\nkeyguard_server_x -1\n";
        assert_eq!(figures([("", info)]), expected);
        let expected = "# TYPE keyguard_server_x gauge\n\
                        keyguard_server_x{node=\"a:1\"} 1\nkeyguard_server_x{node=\"a:2\"} 2\n";
        assert_eq!(figures([("a:1", "keyguard_x:1\r\n"), ("a:2", "keyguard_x:2\r\n")]), expected);
    }
}
