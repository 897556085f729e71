//! The admin API: organizations, keys, addresses and usage over HTTP, for those who hold an admin token.

use axum::Router;
use clap::Args;

use super::App;
use crate::failure::Failure;

/// What the admin API takes.
#[derive(Debug, Args)]
#[group(skip)]
pub struct Options {}

/// Everything under /admin.
///
/// # Errors
/// Options that cannot be.
pub fn router(_options: &Options) -> Result<Router<App>, Failure> {
    Ok(Router::new())
}
