//! `keyguard serve`: the admin API, the gate that other HTTP servers ask, and a page to look at.

mod admin;
mod verify;

use std::net::SocketAddr;

use axum::Router;
use clap::Args;

use crate::cli::At;
use crate::failure::Failure;
use crate::server::Server;

/// What `keyguard serve` takes.
#[derive(Debug, Args)]
#[group(id = "serve")]
pub struct Options {
    /// Where to listen.
    #[arg(long, env = "KEYGUARD_LISTEN", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,

    #[command(flatten)]
    admin: admin::Options,

    #[command(flatten)]
    verify: verify::Options,
}

/// What every handler has.
#[derive(Clone)]
pub struct App {
    /// The server that is asked.
    pub server: Server,
    /// The store, unless a key's prefix names another.
    pub store: String,
}

/// Serves until it is told to stop.
///
/// # Errors
/// What cannot be listened on; options that cannot be.
pub async fn run(at: &At, options: Options) -> Result<(), Failure> {
    let app = App { server: Server::at(&at.url)?, store: at.store.clone() };
    let router: Router<App> =
        Router::new().merge(admin::router(&options.admin, &app)?).merge(verify::router(&options.verify)?);
    let handle = axum_server::Handle::new();
    axum_server::bind(options.listen)
        .handle(handle)
        .serve(router.with_state(app).into_make_service_with_connect_info::<SocketAddr>())
        .await
        .map_err(Failure::from)
}
