//! What calls there were.

use clap::Subcommand;

use crate::failure::Failure;

use super::Console;
use super::options::Max;

const COLUMNS: [&str; 8] = ["at", "id", "code", "status", "latency_ms", "method", "path", "ip"];

/// What can be seen of usage.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Show how many calls there were, of the store or of a key
    Stats {
        /// Of the API key of this id
        #[arg(long, value_name = "ID")]
        key: Option<String>,
        /// Hour by hour, for so many hours
        #[arg(long, value_name = "N", conflicts_with = "days")]
        hours: Option<String>,
        /// Day by day, for so many days; with --key
        #[arg(long, value_name = "N")]
        days: Option<String>,
    },
    /// List the logged calls, newest first
    Log {
        /// Those of the API key of this id
        #[arg(long, value_name = "ID")]
        key: Option<String>,
        /// Those from this time on: unix seconds or RFC 3339
        #[arg(long, value_name = "TIME")]
        from: Option<String>,
        /// Those up to this time
        #[arg(long, value_name = "TIME")]
        to: Option<String>,
        #[command(flatten)]
        max: Max,
    },
}

/// Does it.
///
/// # Errors
/// What the module refuses, or why it does not answer.
pub async fn run(console: &Console, verb: Verb) -> Result<(), Failure> {
    match verb {
        Verb::Stats { key, hours, days } => {
            let request = console.request("KG.STATS").option("KEY", key);
            console.show(request.option("HOURS", hours).option("DAYS", days)).await
        }
        Verb::Log { key, from, to, max } => {
            let request = || {
                let request = console.request("KG.USAGE").option("KEY", key.as_deref());
                request.option("FROM", from.as_deref()).option("TO", to.as_deref())
            };
            console.out.table(&COLUMNS, &console.pages_by_cursor(request, max.max).await?)
        }
    }
}
