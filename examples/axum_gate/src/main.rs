//! An HTTP API behind keyguard's gate.
//!
//!     redis-cli KG.ADDORG acme shop; redis-cli KG.NEWKEY acme shop web SCOPES orders:read LIMIT 100 1m
//!     PASSWORD=what-/login-takes cargo run --release   (which also heeds KEYGUARD_URL, KEYGUARD_STORE and PORT)
//!     curl -i -H 'X-API-Key: kg_live_...' http://127.0.0.1:8000/api/me
mod gate;

use std::{collections::HashMap, env, error::Error, net::SocketAddr, time::Duration};

use axum::extract::{Json, State};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Router, middleware, routing};
use gate::{Answer, Peer, ask, field, gate, refusal};
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::{Client, cmd};
use serde_json::{Value, json};
use subtle::ConstantTimeEq;

async fn me(Extension(caller): Extension<Answer>) -> Json<Value> {
    let [org, label] = ["org", "label"].map(|name| field::<String>(&caller, name));
    Json(json!({"org": org, "label": label, "scopes": field::<Vec<String>>(&caller, "scopes")}))
}

async fn orders() -> Json<Value> {
    Json(json!({"orders": []}))
}

/// What a login needs: the connection, the store, and the password.
type Login = (ConnectionManager, String, String);

/// Five attempts a minute from an address, or none for a quarter of an hour.
async fn login(
    State((kg, store, password)): State<Login>,
    peer: Peer,
    Json(body): Json<HashMap<String, String>>,
) -> Response {
    let (address, at) = (peer.ip().to_string(), ["PATH", "/login"]);
    let mut claim = cmd("KG.CLAIMIP");
    claim.arg(&store).arg(&address).arg(5).arg("1m").arg(&at).arg("LOCKOUT").arg("15m");
    let (code, answer) = ask(kg.clone(), &claim).await;
    if code != "VALID" {
        return refusal(&code, &answer);
    }
    let attempt = body.get("password").map_or("", String::as_str);
    if !bool::from(attempt.as_bytes().ct_eq(password.as_bytes())) {
        return refusal("NOT_FOUND", &Answer::new());
    }
    ask(kg, cmd("KG.CLEARIP").arg(&store).arg(&address).arg(&at)).await;
    Json(json!({"welcome": true})).into_response()
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let variable = |name, default: &str| env::var(name).unwrap_or_else(|_| default.to_owned());
    // One connection for all requests. Nothing is asked twice: a KG.AUTH whose answer was lost may have been charged.
    let once =
        ConnectionManagerConfig::new().set_number_of_retries(0).set_response_timeout(Some(Duration::from_secs(2)));
    let client = Client::open(variable("KEYGUARD_URL", "redis://127.0.0.1"))?;
    let (kg, store) = (ConnectionManager::new_lazy_with_config(client, once)?, variable("KEYGUARD_STORE", "acme"));
    let app = Router::new()
        .route("/api/me", routing::get(me))
        .route("/api/orders", routing::get(orders))
        .route("/login", routing::post(login))
        .with_state((kg.clone(), store.clone(), env::var("PASSWORD")?))
        .layer(middleware::from_fn_with_state((kg, store), gate));
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", variable("PORT", "8000").parse()?)).await?;
    Ok(axum::serve(listener, app.into_make_service_with_connect_info::<SocketAddr>()).await?)
}
