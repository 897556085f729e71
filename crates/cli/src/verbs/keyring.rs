//! The keys that seal secrets, and moving a store to the newest.

use clap::Subcommand;

use crate::failure::Failure;
use crate::output::of;

use super::request::Request;
use super::{Console, progress};

const COLUMNS: [&str; 5] = ["fingerprint", "newest", "records", "pepper", "missing"];

/// What can be done with the keyring.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// List the keys of this server's keyring, newest first, with how many records use each
    Status,
    /// Read this server's keyring again from where it is kept
    Reload,
    /// Forget a key of this server's keyring that no record uses any more
    Drop {
        /// Its fingerprint
        fingerprint: String,
    },
    /// Seal the store's secrets again under the newest key, and wait for it. Exit code 1 if some do not open
    ///
    /// Ended with Ctrl-C it goes on in the server; `keyring stop` stops it there, unless someone still waits, who would start it again.
    Rekey {
        /// Return once it has begun
        #[arg(long)]
        no_wait: bool,
    },
    /// Stop sealing again
    Stop,
}

/// Does it.
///
/// # Errors
/// What the module refuses, or why it does not answer.
pub async fn run(console: &Console, verb: Verb) -> Result<(), Failure> {
    match verb {
        // It looks through all keys of the server.
        Verb::Status => {
            let reply = console.ask_node(Request::new("KG.KEYRING").word("STATUS")).await?;
            console.out.table(&COLUMNS, reply.as_array().map_or(&[], Vec::as_slice))
        }
        Verb::Reload => {
            let reply = console.ask_node(Request::new("KG.KEYRING").word("RELOAD")).await?;
            console.out.done("reloaded", &reply)
        }
        Verb::Drop { fingerprint } => {
            let reply = console.ask_node(Request::new("KG.KEYRING").word("DROP").word(fingerprint)).await?;
            console.out.done("dropped", &reply)
        }
        Verb::Rekey { no_wait: true } => console.show(console.request("KG.REKEY")).await,
        Verb::Rekey { no_wait: false } => {
            // The same call starts it, and tells how it stands.
            progress::watch(
                console,
                || console.request("KG.REKEY"),
                |status| {
                    let [done, left] = ["done", "left"].map(|name| of(status, name).as_u64().unwrap_or_default());
                    (done, Some(done + left))
                },
            )
            .await
        }
        Verb::Stop => console.show(console.request("KG.REKEY").word("STOP")).await,
    }
}
