//! The store as a whole.

use clap::Subcommand;

use crate::failure::Failure;

use super::Console;

/// What can be done with the store.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Show the store: its settings, and how much it holds
    Show,
    /// Change its settings
    Set {
        /// The time zone of its days and months, such as Europe/Berlin
        #[arg(long, value_name = "ZONE")]
        tz: Option<String>,
        /// More failed look-ups than this within an hour block an address; 0 is never
        #[arg(long, value_name = "N")]
        ip_threshold: Option<String>,
        /// Take `tz` or `ip_threshold` away; may be repeated
        #[arg(long, value_name = "FIELD")]
        clear: Vec<String>,
    },
    /// Delete the store, with all keys and organizations
    Delete {
        /// Its name once more, so that it is no slip
        #[arg(long, value_name = "STORE")]
        confirm: String,
    },
}

/// Does it.
///
/// # Errors
/// What the module refuses, or why it does not answer.
pub async fn run(console: &Console, verb: Verb) -> Result<(), Failure> {
    match verb {
        Verb::Show => console.show(console.request("KG.GETSTORE")).await,
        Verb::Set { tz, ip_threshold, clear } => {
            let request = console.request("KG.SETSTORE").option("TZ", tz).option("IPTHRESHOLD", ip_threshold);
            console.tell(request.each("CLEAR", clear), "changed").await
        }
        Verb::Delete { confirm } => {
            if confirm != console.store {
                return Err(Failure::Usage(format!("--confirm does not name the store, which is {:?}", console.store)));
            }
            console.until_none(console.request("KG.DELSTORE"), &mut 0).await?;
            console.out.done("deleted", &0.into())
        }
    }
}
