//! The grammar of the command line.

use clap::{Args, Parser, Subcommand};

use crate::{doctor, serve, top};

/// Guard API keys inside Redis or Valkey: the operator's tools.
#[derive(Debug, Parser)]
#[command(name = "keyguard", version, max_term_width = 100)]
pub struct Cli {
    /// Where the server is, and how answers are shown.
    #[command(flatten)]
    pub at: At,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What every command takes.
#[derive(Debug, Clone, Args)]
pub struct At {
    /// The server: redis://[user:password@]host[:port][/database], rediss:// for TLS, unix:///path/to/socket. A node of a cluster
    /// stands for all of it. A password is better given in the environment than here, where others see it.
    #[arg(long, env = "KEYGUARD_URL", hide_env_values = true, default_value = "redis://127.0.0.1:6379", global = true)]
    pub url: String,

    /// The store whose keys, organizations and addresses these are.
    #[arg(long, env = "KEYGUARD_STORE", default_value = "default", global = true)]
    pub store: String,

    /// Answers as JSON, for programs.
    #[arg(long, global = true)]
    pub json: bool,
}

/// What can be done.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Look at the server as one who has to answer for it: what is well, what is not, and what to do.
    Doctor(doctor::Options),
    /// Vault keys by questions and answers: add, list, replace, delete, reveal.
    Menu,
    /// An admin API, a gate for other HTTP servers to ask, and a page to look at.
    Serve(serve::Options),
    /// Watch: answers a second by their codes, the keys used most, who waits, who is blocked.
    Top(top::Options),
}
