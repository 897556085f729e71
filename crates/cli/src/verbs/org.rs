//! Organizations, who API keys are issued to.

use clap::Subcommand;

use crate::failure::Failure;

use super::Console;
use super::options::{Limits, Max, Quotas};

const COLUMNS: [&str; 7] = ["id", "name", "status", "keys", "limits", "quotas", "created_at"];

/// What can be done with organizations.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Add an organization; prints its id
    Add {
        /// Its name
        name: String,
        #[command(flatten)]
        limits: Limits,
        #[command(flatten)]
        quotas: Quotas,
    },
    /// Change an organization; limits given replace all, and so do quotas
    Set {
        /// Its name
        name: String,
        /// Whether its keys are let in
        #[arg(long, value_name = "active|suspended")]
        status: Option<String>,
        #[command(flatten)]
        limits: Limits,
        #[command(flatten)]
        quotas: Quotas,
        /// Take away `limits` or `quotas`; may be repeated
        #[arg(long, value_name = "FIELD")]
        clear: Vec<String>,
    },
    /// Show an organization
    Show {
        /// Its name
        name: String,
    },
    /// List organizations
    List {
        /// Those of this status
        #[arg(long, value_name = "active|suspended")]
        status: Option<String>,
        #[command(flatten)]
        max: Max,
    },
    /// Remove an organization that has no keys any more
    #[command(alias = "delete")]
    Remove {
        /// Its name
        name: String,
    },
}

/// Does it.
///
/// # Errors
/// What the module refuses, or why it does not answer.
pub async fn run(console: &Console, verb: Verb) -> Result<(), Failure> {
    match verb {
        Verb::Add { name, limits, quotas } => {
            let request = console.request("KG.ADDORG").word(name);
            console.value(request.with(|r| limits.add(r)).with(|r| quotas.add(r))).await
        }
        Verb::Set { name, status, limits, quotas, clear } => {
            let request = console.request("KG.SETORG").word(name);
            let bare = request.command().args_iter().len();
            let request = request.option("STATUS", status).with(|r| limits.add(r)).with(|r| quotas.add(r));
            let request = request.each("CLEAR", clear);
            // The module has nothing against it.
            if request.command().args_iter().len() == bare {
                return Err(Failure::Usage("nothing to change: --status, --limit, --quota or --clear".to_owned()));
            }
            console.tell(request, "changed").await
        }
        Verb::Show { name } => console.show(console.request("KG.GETORG").word(name)).await,
        Verb::List { status, max } => {
            let request = || console.request("KG.LISTORGS").option("STATUS", status.as_deref());
            console.out.table(&COLUMNS, &console.pages_by_id(request, max.max).await?)
        }
        Verb::Remove { name } => console.tell(console.request("KG.DELORG").word(name), "removed").await,
    }
}
