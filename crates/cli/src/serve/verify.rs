//! The gate for other HTTP servers: nginx, Caddy, Traefik and Envoy ask about each request, and let through what is VALID.

use axum::Router;
use clap::Args;

use super::App;
use crate::failure::Failure;

/// What the gate takes.
#[derive(Debug, Args)]
#[group(skip)]
pub struct Options {}

/// /verify.
///
/// # Errors
/// Options that cannot be.
pub fn router(_options: &Options) -> Result<Router<App>, Failure> {
    Ok(Router::new())
}
