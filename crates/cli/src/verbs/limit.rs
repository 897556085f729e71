//! Sliding windows on any key.

use clap::{Args, Subcommand};
use redis::Value;

use crate::failure::Failure;
use crate::output::of;
use crate::reply::{Json, json};

use super::Console;
use super::request::Request;

const FIELDS: [&str; 6] = ["claimed", "limit", "remaining", "retry_after_ms", "reset_after_ms", "claimed_at_ms"];

/// What can be done with limits.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Claim units of a bucket, within all its limits. Exit code 1 if they refuse
    Claim {
        #[command(flatten)]
        windows: Windows,
        /// Wait so long for its turn: 500ms, 30s, 5m
        #[arg(long, value_name = "WAIT")]
        block: Option<String>,
        /// For how long a refusal locks the bucket
        #[arg(long, value_name = "DURATION")]
        lockout: Option<String>,
    },
    /// Show what is left of a bucket; changes nothing. Exit code 1 if a claim would be refused
    Remaining(Windows),
    /// Give units back, of the newest claim or of that AT an instant; prints how many
    Refund {
        /// The bucket, any key of the server
        bucket: String,
        /// How many units
        units: String,
        /// The claimed_at_ms of the claim
        #[arg(long, value_name = "CLAIMED_AT_MS")]
        at: Option<String>,
    },
    /// Show what a bucket holds
    Inspect {
        /// The bucket, any key of the server
        bucket: String,
    },
}

/// A bucket and its limits.
#[derive(Debug, Args)]
pub struct Windows {
    /// The bucket, any key of the server
    bucket: String,
    /// How many in which window, as 100 1m; may be repeated, as 10 1s 100 1m
    #[arg(required = true, num_args = 2.., value_names = ["COUNT", "WINDOW"])]
    limits: Vec<String>,
    /// How many units; one, unless given
    #[arg(long, value_name = "N")]
    cost: Option<String>,
}

impl Windows {
    fn request(self, command: &str) -> Request {
        Request::new(command).word(self.bucket).words(self.limits).option("COST", self.cost)
    }
}

/// Does it.
///
/// # Errors
/// What the module refuses, or why it does not answer.
pub async fn run(console: &Console, verb: Verb) -> Result<(), Failure> {
    match verb {
        Verb::Claim { windows, block, lockout } => {
            let request = windows.request("KG.CLAIM").option("LOCKOUT", lockout);
            claimed(console, console.ask_waiting(request, block).await?)
        }
        Verb::Remaining(windows) => claimed(console, console.ask_raw(windows.request("KG.REMAINING")).await?),
        Verb::Refund { bucket, units, at } => {
            console.value(Request::new("KG.REFUND").word(bucket).word(units).option("AT", at)).await
        }
        Verb::Inspect { bucket } => console.show(Request::new("KG.INSPECT").word(bucket)).await,
    }
}

fn claimed(console: &Console, reply: Value) -> Result<(), Failure> {
    let reply = json(reply);
    let Some(values) = reply.as_array() else { return Err(Failure::Strange("no claim")) };
    let named: Json = FIELDS.iter().zip(values).map(|(&name, value)| (name.to_owned(), value.clone())).collect();
    if console.out.json {
        console.out.value(&reply)?;
    } else {
        console.out.lines(&FIELDS, &named)?;
    }
    if *of(&named, "claimed") == 1 { Ok(()) } else { Err(Failure::Answered) }
}
