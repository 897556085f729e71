//! The page at /: keys, organizations, usage and addresses for people, in a browser, over the admin API.
//!
//! Three files that are in the program, no build step, no other host. The page holds no session: whoever opens it gives an admin token,
//! which the browser keeps for its tab and sends as `X-Admin-Key`, so that no other site can make it act (there is no cookie).

use axum::Router;
use axum::http::HeaderValue;
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use axum::response::IntoResponse;
use axum::routing::get;
use tower_http::set_header::SetResponseHeaderLayer;

use super::App;

/// Nothing but our own files and our own API; no inline script or style, no frames, no forms sent anywhere.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; \
    base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const FILES: [(&str, &str, &str); 4] = [
    ("/", "text/html; charset=utf-8", include_str!("page/index.html")),
    ("/page/app.js", "text/javascript; charset=utf-8", include_str!("page/app.js")),
    ("/page/style.css", "text/css; charset=utf-8", include_str!("page/style.css")),
    ("/favicon.ico", "image/svg+xml", include_str!("page/icon.svg")),
];

/// The page and what it loads.
pub fn router() -> Router<App> {
    let files = FILES
        .into_iter()
        .fold(Router::new(), |router, (path, kind, text)| router.route(path, get(async move || file(kind, text))));
    strict(files, POLICY)
}

fn file(kind: &'static str, text: &'static str) -> impl IntoResponse {
    // Another version of the program has another page.
    ([(CONTENT_TYPE, kind), (CACHE_CONTROL, "no-cache")], text)
}

/// What it answers is shown by browsers under this policy, as the type that it says, in no frame, and is named to nobody.
pub fn strict(router: Router<App>, policy: &'static str) -> Router<App> {
    [
        (CONTENT_SECURITY_POLICY, policy),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (X_FRAME_OPTIONS, "DENY"),
        (REFERRER_POLICY, "no-referrer"),
    ]
    .into_iter()
    .fold(router, |router, (name, value)| {
        router.layer(SetResponseHeaderLayer::overriding(name, HeaderValue::from_static(value)))
    })
}
