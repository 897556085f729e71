//! The grammar of the command line.

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args, Parser, Subcommand};

use crate::failure::Failure;
use crate::verbs::{complete, ip, key, keyguard_python, keyring, limit, org, snapshot, store, usage, vault};
use crate::{doctor, serve, token, top};

/// Above the options that every command takes.
const EVERYWHERE: &str = "Options of every command";

const AFTER_HELP: &str = "\
Exit codes:
  0  done
  1  the server refused, or the answer is no: a key not let in, a limit used up, an address blocked,
     a problem that the doctor found
  2  the command line is wrong
  3  the server does not answer
  4  the server does not have the module, or one of another version
  5  the user of --url may not do this
  6  this machine refused: a file, a socket, the terminal

A node of a cluster stands for all of it, and rediss:// is TLS. A password is better given in
KEYGUARD_URL than in --url, where others see it.

Secrets are read from standard input, or asked for without echo. Colour is for terminals alone, and not with NO_COLOR.";

/// Guard API keys inside Redis or Valkey: the operator's tools.
#[derive(Debug, Parser)]
#[command(name = "keyguard", version, max_term_width = 100, after_help = AFTER_HELP)]
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
    /// The server: redis://[user:password@]host[:port][/database], rediss:// or unix:///path
    #[arg(
        long,
        env = "KEYGUARD_URL",
        hide_env_values = true,
        default_value = "redis://127.0.0.1:6379",
        global = true,
        alias = "redis",
        help_heading = EVERYWHERE
    )]
    pub url: String,

    /// The store whose keys, organizations and addresses these are.
    #[arg(long, env = "KEYGUARD_STORE", default_value = "default", global = true, help_heading = EVERYWHERE)]
    pub store: String,

    /// Answers as JSON, for programs.
    #[arg(long, global = true, help_heading = EVERYWHERE)]
    pub json: bool,
}

impl At {
    /// For what only people read.
    ///
    /// # Errors
    /// [`Failure::Usage`] if JSON was asked for; it says what has it.
    pub fn refuse_json(&self, command: &str, instead: &str) -> Result<(), Failure> {
        if self.json { Err(Failure::Usage(format!("{command} has no JSON: {instead}"))) } else { Ok(()) }
    }
}

/// What can be done.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Organizations, who API keys are issued to
    Org {
        /// What to do.
        #[command(subcommand)]
        verb: org::Verb,
    },
    /// API keys, for those who call you
    Key {
        /// What to do.
        #[command(subcommand)]
        verb: key::Verb,
    },
    /// Vault keys: the secrets that you call others with
    Vault {
        /// What to do.
        #[command(subcommand)]
        verb: vault::Verb,
    },
    /// Blocked and allowed addresses
    Ip {
        /// What to do.
        #[command(subcommand)]
        verb: ip::Verb,
    },
    /// Rate limits on any key of the server
    Limit {
        /// What to do.
        #[command(subcommand)]
        verb: limit::Verb,
    },
    /// What calls there were
    Usage {
        /// What to do.
        #[command(subcommand)]
        verb: usage::Verb,
    },
    /// Stores as SQLite files, and back
    Snapshot {
        /// What to do.
        #[command(subcommand)]
        verb: snapshot::Verb,
    },
    /// The keys that seal secrets
    Keyring {
        /// What to do.
        #[command(subcommand)]
        verb: keyring::Verb,
    },
    /// The store as a whole
    Store {
        /// What to do.
        #[command(subcommand)]
        verb: store::Verb,
    },
    /// Look at the server as one who has to answer for it: what is well, what is not, and what to do
    Doctor(doctor::Options),
    /// Watch: answers a second by their codes, the keys used most, who waits, who is blocked
    Top(top::Options),
    /// Vault keys by questions and answers: add, list, replace, delete, reveal
    Menu,
    /// An admin API, a gate for other HTTP servers to ask, and a page to look at
    Serve(serve::Options),
    /// Tokens for the admin API
    #[command(subcommand)]
    Token(token::Command),
    /// Print completions for a shell
    Completions(complete::Completions),
    /// Print the man page, of the program or of a command
    Man(complete::Man),
    /// The commands of keyguard_python.
    #[command(flatten)]
    KeyguardPython(keyguard_python::Verb),
}

/// What is wrong with a command line, without the words that have no place in it: one of them may be a secret that was typed where none
/// is taken, and what stands on standard error is kept in logs. A subcommand that is nearly one is shown.
pub fn without_values(mut error: clap::Error) -> clap::Error {
    match error.kind() {
        ErrorKind::UnknownArgument => match error.remove(ContextKind::InvalidArg) {
            Some(ContextValue::String(option)) if option.starts_with('-') => {
                let name = option.split('=').next().unwrap_or_default().to_owned();
                error.insert(ContextKind::InvalidArg, ContextValue::String(name));
            }
            _ => {}
        },
        ErrorKind::TooManyValues => {
            error.insert(ContextKind::InvalidValue, ContextValue::String("...".to_owned()));
        }
        ErrorKind::InvalidSubcommand if error.get(ContextKind::SuggestedSubcommand).is_none() => {
            error.remove(ContextKind::InvalidSubcommand);
        }
        _ => {}
    }
    error
}

#[cfg(test)]
mod tests {
    use clap::{Command, CommandFactory as _};

    use super::Cli;

    fn every_command(command: &Command, visit: &mut impl FnMut(&Command)) {
        visit(command);
        command.get_subcommands().for_each(|command| every_command(command, visit));
    }

    #[test]
    fn the_grammar_holds_together() {
        Cli::command().debug_assert();
    }

    /// Others of this machine see arguments, and shells remember them.
    #[test]
    fn no_argument_takes_a_secret() {
        every_command(&Cli::command(), &mut |command| {
            for argument in command.get_arguments().filter(|argument| argument.get_action().takes_values()) {
                let name = argument.get_id().as_str();
                for word in ["secret", "password", "passphrase", "raw", "leaked"] {
                    assert!(!name.contains(word), "{} takes {name}", command.get_name());
                }
            }
        });
    }

    #[test]
    fn every_command_and_argument_says_what_it_is() {
        every_command(&Cli::command(), &mut |command| {
            assert!(command.get_about().is_some(), "{}", command.get_name());
            for argument in command.get_arguments() {
                assert!(argument.get_help().is_some(), "{} of {}", argument.get_id(), command.get_name());
            }
        });
    }
}
