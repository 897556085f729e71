//! `keyguard`: the operator's tools.
//!
//! [`cli`] is the grammar, [`server`] the one way to the Redis or Valkey server that has the module, [`output`] how answers are shown.
//! Every verb is one or a few commands of the module and nothing that the module does not do: what it refuses is refused here.

mod cli;
mod doctor;
mod failure;
mod menu;
mod output;
mod reply;
mod serve;
mod server;
mod top;

use std::process::ExitCode;

use clap::Parser;

use crate::cli::{Cli, Command};
use crate::failure::Failure;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    match done.map_err(Failure::from).and_then(|runtime| runtime.block_on(run(cli))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            output::show_failure(&failure);
            failure.exit_code()
        }
    }
}

async fn run(cli: Cli) -> Result<(), Failure> {
    let Cli { at, command } = cli;
    match command {
        Command::Doctor(options) => doctor::run(&at, &options).await,
        Command::Menu => menu::run(&at).await,
        Command::Serve(options) => serve::run(&at, options).await,
        Command::Top(options) => top::run(&at, &options).await,
    }
}
