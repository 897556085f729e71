//! Stores as SQLite files, and back.

use clap::Subcommand;

use crate::failure::Failure;
use crate::output::of;

use super::{Console, progress};

/// What can be done with snapshots.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Write the store to a SQLite file of the server's snapshot-dir, and wait for it. Exit code 1 if it fails
    Write {
        /// The bare name of the file, such as acme.sqlite
        file: String,
        /// Secrets as Fernet tokens, under the Fernet key of this label in the keyring file
        #[arg(long, value_name = "LABEL")]
        fernet: Option<String>,
        /// Return once it has begun
        #[arg(long)]
        no_wait: bool,
    },
    /// Show how the last snapshot stands
    Status,
    /// Bring a file of the server's snapshot-dir into the store, and wait for it. Exit code 1 if it fails
    Import {
        /// The bare name of the file
        file: String,
        /// What it is
        #[arg(long, value_name = "snapshot|keyguard|simple_keystore", default_value = "snapshot")]
        format: String,
        /// Write nothing, and tell what would be
        #[arg(long)]
        check: bool,
        /// The label of keyguard_python's secret key in the keyring file
        #[arg(long, value_name = "LABEL")]
        pepper: Option<String>,
        /// The label of a Fernet key in the keyring file
        #[arg(long, value_name = "LABEL")]
        fernet: Option<String>,
        /// What becomes of what is there already
        #[arg(long, value_name = "skip|replace")]
        on_conflict: Option<String>,
        /// Return once it has begun
        #[arg(long)]
        no_wait: bool,
    },
    /// Show how the last import stands
    ImportStatus,
}

/// Does it.
///
/// # Errors
/// What the module refuses, or why it does not answer.
pub async fn run(console: &Console, verb: Verb) -> Result<(), Failure> {
    match verb {
        Verb::Write { file, fernet, no_wait } => {
            let request = console.request("KG.SNAPSHOT").word("TO").word(file).option("FERNET", fernet);
            if no_wait {
                return console.tell(request, "begun").await;
            }
            console.ask(request).await?;
            let status = || console.request("KG.SNAPSHOT").word("STATUS");
            progress::watch(console, status, |status| (of(status, "rows").as_u64().unwrap_or_default(), None)).await
        }
        Verb::Status => console.show(console.request("KG.SNAPSHOT").word("STATUS")).await,
        Verb::Import { file, format, check, pepper, fernet, on_conflict, no_wait } => {
            let request = console.request("KG.IMPORT").word("FROM").word(file).word("FORMAT").word(format);
            let request = request.flag("CHECK", check).option("PEPPER", pepper).option("FERNET", fernet);
            let request = request.option("ONCONFLICT", on_conflict);
            if no_wait {
                return console.tell(request, "begun").await;
            }
            console.ask(request).await?;
            progress::watch(
                console,
                || console.request("KG.IMPORT").word("STATUS"),
                |status| (of(status, "rows").as_u64().unwrap_or_default(), of(status, "total").as_u64()),
            )
            .await
        }
        Verb::ImportStatus => console.show(console.request("KG.IMPORT").word("STATUS")).await,
    }
}
