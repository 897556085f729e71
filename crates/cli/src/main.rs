//! `keyguard`: the operator's tools.
//!
//! [`cli`] is the grammar, [`server`] the one way to the Redis or Valkey server that has the module, [`output`] how answers are shown.
//! Every verb is one or a few commands of the module and nothing that the module does not do: what it refuses is refused here.

mod cli;
mod doctor;
mod failure;
mod menu;
mod output;
mod prompt;
mod reply;
mod serve;
mod server;
mod token;
mod top;
mod verbs;

use std::io::ErrorKind;
use std::process::ExitCode;

use clap::Parser;

use crate::cli::{Cli, Command};
use crate::failure::Failure;
use crate::output::Output;
use crate::verbs::Console;

fn main() -> ExitCode {
    let cli = Cli::try_parse().unwrap_or_else(|error| cli::without_values(error).exit());
    let done = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    match done.map_err(Failure::from).and_then(|runtime| runtime.block_on(run(cli))) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read our output has seen enough of it.
        Err(Failure::Io(why)) if why.kind() == ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        // It has been shown.
        Err(failure @ Failure::Answered) => failure.exit_code(),
        Err(failure) => {
            output::show_failure(&failure);
            failure.exit_code()
        }
    }
}

async fn run(cli: Cli) -> Result<(), Failure> {
    let Cli { at, command } = cli;
    match command {
        Command::Org { verb } => verbs::org::run(&Console::at(&at)?, verb).await,
        Command::Key { verb } => verbs::key::run(&Console::at(&at)?, verb).await,
        Command::Vault { verb } => verbs::vault::run(&Console::at(&at)?, verb).await,
        Command::Ip { verb } => verbs::ip::run(&Console::at(&at)?, verb).await,
        Command::Limit { verb } => verbs::limit::run(&Console::at(&at)?, verb).await,
        Command::Usage { verb } => verbs::usage::run(&Console::at(&at)?, verb).await,
        Command::Snapshot { verb } => verbs::snapshot::run(&Console::at(&at)?, verb).await,
        Command::Keyring { verb } => verbs::keyring::run(&Console::at(&at)?, verb).await,
        Command::Store { verb } => verbs::store::run(&Console::at(&at)?, verb).await,
        Command::Serve(options) => serve::run(&at, options).await,
        Command::Token(command) => token::run(Output { json: at.json }, &command),
        Command::Completions(completions) => completions.print(),
        Command::Man(man) => man.print(),
        Command::KeyguardPython(verb) => verbs::keyguard_python::run(&Console::at(&at)?, verb).await,
        Command::Doctor(options) => doctor::run(&at, &options).await,
        Command::Menu => menu::run(&at).await,
        Command::Top(options) => top::run(&at, &options).await,
    }
}
