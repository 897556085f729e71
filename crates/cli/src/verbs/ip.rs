//! Rules about addresses, and what is known of one.

use clap::{Args, Subcommand};

use crate::failure::Failure;
use crate::output::of;

use super::Console;
use super::options::Max;
use super::request::Request;

const COLUMNS: [&str; 7] = ["rule", "kind", "path", "expires_at", "reason", "by", "strikes"];

/// What can be done with addresses.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Block a network, for good or for a time
    Block(Rule),
    /// Take a block back; prints 0 if there was none
    Unblock(Place),
    /// Allow a network, whatever blocks there are
    Allow(Rule),
    /// Take an allow rule back; prints 0 if there was none
    Unallow(Place),
    /// List the rules
    List {
        #[command(flatten)]
        max: Max,
    },
    /// Show what holds for an address. Exit code 1 if it is blocked
    Check(Address),
    /// Count a call from an address, as a log-in is counted. Exit code 1 if it is refused
    Claim {
        #[command(flatten)]
        address: Address,
        /// How many are allowed
        count: String,
        /// In any window of this length: 30s, 5m, 2h, 7d
        window: String,
        /// How long the first refusal blocks the address
        #[arg(long, value_name = "DURATION", conflicts_with = "until")]
        lockout: Option<String>,
        /// Until when the first refusal blocks the address: 16:00, 4 PM, unix seconds or RFC 3339
        #[arg(long, value_name = "TIME")]
        until: Option<String>,
        /// Lock it out everywhere, and not from the path alone
        #[arg(long)]
        everywhere: bool,
    },
    /// Forget an address's failures, claims, lock-outs and automatic blocks; prints how many
    Clear(Address),
}

/// A rule to be.
#[derive(Debug, Args)]
pub struct Rule {
    #[command(flatten)]
    place: Place,
    /// For how long; without it for good
    #[arg(conflicts_with = "until")]
    duration: Option<String>,
    /// Until when: 16:00, 4 PM, unix seconds or RFC 3339
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// Why
    #[arg(long)]
    reason: Option<String>,
}

impl Rule {
    fn request(self, console: &Console, command: &str) -> Request {
        let request = console.request(command).word(self.place.net).words(self.duration);
        request.option("UNTIL", self.until).option("PATH", self.place.path).option("REASON", self.reason)
    }
}

/// Where a rule holds.
#[derive(Debug, Args)]
pub struct Place {
    /// A network such as 192.0.2.0/24, or an address
    net: String,
    /// For this path and what is under it alone
    #[arg(long)]
    path: Option<String>,
}

impl Place {
    fn request(self, console: &Console, command: &str) -> Request {
        console.request(command).word(self.net).option("PATH", self.path)
    }
}

/// An address.
#[derive(Debug, Args)]
pub struct Address {
    /// An address
    address: String,
    /// At this path
    #[arg(long)]
    path: Option<String>,
}

/// Does it.
///
/// # Errors
/// What the module refuses, or why it does not answer.
pub async fn run(console: &Console, verb: Verb) -> Result<(), Failure> {
    match verb {
        Verb::Block(rule) => console.tell(rule.request(console, "KG.BLOCKIP"), "blocked").await,
        Verb::Unblock(place) => console.value(place.request(console, "KG.UNBLOCKIP")).await,
        Verb::Allow(rule) => console.tell(rule.request(console, "KG.ALLOWIP"), "allowed").await,
        Verb::Unallow(place) => console.value(place.request(console, "KG.UNALLOWIP")).await,
        Verb::List { max } => {
            let rows = console.pages_by_cursor(|| console.request("KG.LISTIPS"), max.max).await?;
            console.out.table(&COLUMNS, &rows)
        }
        Verb::Check(Address { address, path }) => {
            judged(console, console.request("KG.CHECKIP").word(address).option("PATH", path)).await
        }
        Verb::Claim { address, count, window, lockout, until, everywhere } => {
            let request = console.request("KG.CLAIMIP").word(address.address).word(count).word(window);
            let request = request.option("PATH", address.path).option("LOCKOUT", lockout);
            let request = match until {
                Some(until) => request.word("LOCKOUT").word("UNTIL").word(until),
                None => request,
            };
            judged(console, request.flag("EVERYWHERE", everywhere)).await
        }
        Verb::Clear(Address { address, path }) => {
            console.value(console.request("KG.CLEARIP").word(address).option("PATH", path)).await
        }
    }
}

async fn judged(console: &Console, request: Request) -> Result<(), Failure> {
    let reply = console.ask(request).await?;
    console.out.record(&reply)?;
    if of(&reply, "code") == "VALID" { Ok(()) } else { Err(Failure::Answered) }
}
