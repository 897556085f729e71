//! Vault keys: the secrets that you call others with.

use std::slice;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::{Args, Subcommand};
use redis::Value;

use crate::failure::Failure;
use crate::output::cell;
use crate::reply::{Json, json};

use super::options::{Allowance, Chosen, Cost, Expiry, Limits, Listing, Origin, State};
use super::request::Request;
use super::{Console, Kind, options, secret};

const COLUMNS: [&str; 10] =
    ["id", "name", "source", "login", "batch", "account", "status", "usable", "expires_at", "limits"];

/// The field of KG.ACQUIRE that holds the secret.
const SECRET: &str = "secret";

/// What can be done with vault keys.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Add a secret; prints its id
    ///
    /// The secret is read from standard input, or asked for without echo.
    Add {
        /// What it is asked for by, as the vendor's name
        name: String,
        /// Out of use until it is made active
        #[arg(long)]
        inactive: bool,
        /// Refuse it if the same secret is there already under this name
        #[arg(long)]
        unique: bool,
        #[command(flatten)]
        fields: Fields,
    },
    /// Change a key; limits given replace all
    Set {
        /// Its id
        id: String,
        /// What it is asked for by
        #[arg(long)]
        name: Option<String>,
        /// Read a new secret from standard input, or ask for it without echo
        #[arg(long)]
        secret: bool,
        /// Whether it is in use
        #[arg(long, value_name = "yes|no")]
        active: Option<String>,
        /// Refuse a secret that is there already under this name
        #[arg(long)]
        unique: bool,
        #[command(flatten)]
        fields: Fields,
        /// Take a field away, such as `limits` or `expires_at`; may be repeated
        #[arg(long, value_name = "FIELD")]
        clear: Vec<String>,
    },
    /// Show a key, never its secret
    Show(Which),
    /// Print the secret
    Reveal(Which),
    /// Print the ids of the keys that have a secret
    ///
    /// The secret is read from standard input, or asked for without echo. Exit code 1 if none has it.
    Find,
    /// List keys
    List {
        #[command(flatten)]
        filters: Filters,
        #[command(flatten)]
        listing: Listing,
    },
    /// Count keys
    Count {
        #[command(flatten)]
        filters: Filters,
    },
    /// How many keys of each set (name, source, login, batch) are usable, and until when
    Usability {
        /// Those of this name
        #[arg(long)]
        name: Option<String>,
    },
    /// Show the usable key to be used up next
    Next {
        /// What it is asked for by
        name: String,
        #[command(flatten)]
        origin: Origin,
    },
    /// Hand out a usable key within its limits
    ///
    /// Prints the secret, and on standard error what `settle` and `feedback` want to know. Exit code 1 if there is none.
    Acquire {
        /// What it is asked for by
        name: String,
        #[command(flatten)]
        origin: Origin,
        #[command(flatten)]
        limits: Limits,
        /// What the call costs, as 5 or "1200 tokens"; may be repeated
        #[arg(long, value_name = "N [UNIT]")]
        cost: Vec<Cost>,
        /// Which of them is first
        #[arg(long, value_name = "expiry|remaining|rotate|weight|random")]
        order: Option<String>,
        /// Wait so long for one: 500ms, 30s, 5m
        #[arg(long, value_name = "WAIT")]
        block: Option<String>,
    },
    /// Correct what a call was charged to what it really used
    Settle {
        /// The id of the key
        id: String,
        /// Its claimed_at_ms
        #[arg(long, value_name = "CLAIMED_AT_MS")]
        at: String,
        /// What it cost, as 5 or "1200 tokens"; may be repeated
        #[arg(long, value_name = "N [UNIT]", required = true)]
        cost: Vec<Cost>,
    },
    /// Tell what the vendor said to a key; prints for how many milliseconds it cools down, -1 being out of use
    Feedback {
        /// The id of the key
        id: String,
        /// ok, throttled or rejected
        what: String,
        /// How long the vendor said to wait, if throttled
        duration: Option<String>,
        /// Why it was rejected
        #[arg(long)]
        reason: Option<String>,
        /// The claimed_at_ms of the call
        #[arg(long, value_name = "CLAIMED_AT_MS")]
        at: Option<String>,
    },
    /// Delete keys
    Delete(Chosen<Filters>),
}

/// What a vault key has beside its name and secret.
#[derive(Debug, Args)]
pub struct Fields {
    #[command(flatten)]
    origin: Origin,
    /// The account whose limits it shares with other keys
    #[arg(long)]
    account: Option<String>,
    /// A limit that it shares with all keys of its account, as "100 1m"; may be repeated
    #[arg(long, value_name = "COUNT WINDOW [UNIT]")]
    shared: Vec<Allowance>,
    #[command(flatten)]
    limits: Limits,
    #[command(flatten)]
    expiry: Expiry,
    /// How often it is handed out in the order `weight`
    #[arg(long, value_name = "N")]
    weight: Option<String>,
    /// Whatever you want to know of it, a JSON object
    #[arg(long, value_name = "JSON")]
    meta: Option<String>,
}

impl Fields {
    fn add(&self, request: Request) -> Request {
        let request = request.with(|r| self.origin.add(r)).option("ACCOUNT", self.account.as_deref());
        let request = request.each_of("SHARED", &self.shared).with(|r| self.limits.add(r)).with(|r| self.expiry.add(r));
        request.option("WEIGHT", self.weight.as_deref()).option("META", self.meta.as_deref())
    }
}

/// Which vault keys.
#[derive(Debug, Args)]
pub struct Filters {
    /// Those of this name
    #[arg(long)]
    name: Option<String>,
    #[command(flatten)]
    origin: Origin,
    /// Those of this account
    #[arg(long)]
    account: Option<String>,
    #[command(flatten)]
    state: State,
}

impl options::Filters for Filters {
    const KIND: Kind = Kind::Vault;

    fn add(&self, request: Request) -> Request {
        let request = request.option("NAME", self.name.as_deref()).with(|r| self.origin.add(r));
        self.state.add(request.option("ACCOUNT", self.account.as_deref()))
    }
}

/// One key.
#[derive(Debug, Args)]
pub struct Which {
    /// Its id
    #[arg(required_unless_present = "name", conflicts_with = "name")]
    id: Option<String>,
    /// Its name, if it is the only one of that name
    #[arg(long)]
    name: Option<String>,
}

impl Which {
    fn add(&self, request: Request) -> Request {
        request.words(self.id.as_deref()).option("NAME", self.name.as_deref())
    }
}

/// Does it.
///
/// # Errors
/// What the module refuses, or why it does not answer.
pub async fn run(console: &Console, verb: Verb) -> Result<(), Failure> {
    match verb {
        Verb::Add { name, inactive, unique, fields } => {
            let secret = secret::read("secret")?;
            let request = console.request("KG.ADDKEY").word(name).word(secret.as_slice());
            let request = request.flag("INACTIVE", inactive).flag("UNIQUE", unique);
            console.value(fields.add(request)).await
        }
        Verb::Set { id, name, secret, active, unique, fields, clear } => {
            console.expect_type(slice::from_ref(&id), Kind::Vault).await?;
            let secret = if secret { Some(secret::read("secret")?) } else { None };
            let request = console.request("KG.SETKEY").word(id).option("NAME", name);
            let request = request.option("SECRET", secret.as_ref().map(|secret| secret.as_slice()));
            let request = request.option("ACTIVE", active).flag("UNIQUE", unique);
            console.change(fields.add(request).each("CLEAR", clear)).await
        }
        Verb::Show(which) => console.show_key(which.add(console.request("KG.GETKEY")), Kind::Vault).await,
        Verb::Reveal(which) => {
            let reply = console.ask_raw(which.add(console.request("KG.REVEAL"))).await?;
            let Value::BulkString(secret) = reply else { return Err(Failure::Strange("no secret")) };
            if !console.out.json {
                return console.out.secret(&secret);
            }
            let shown = match secret_json(&secret) {
                (SECRET, text) => text,
                (name, encoded) => Json::from_iter([(name.to_owned(), encoded)]),
            };
            console.out.secret(shown.to_string().as_bytes())
        }
        Verb::Find => {
            let secret = secret::read("secret")?;
            let ids = console.ask(console.request("KG.FINDKEY").word(secret.as_slice())).await?;
            console.out.value(&ids)?;
            if ids.as_array().is_some_and(Vec::is_empty) { Err(Failure::Answered) } else { Ok(()) }
        }
        Verb::List { filters, listing } => console.out.table(&COLUMNS, &listing.rows(console, &filters).await?),
        Verb::Count { filters } => console.out.value(&console.count_keys(&filters).await?.into()),
        Verb::Usability { name } => {
            let reply = console.ask(console.request("KG.USABILITY").option("NAME", name)).await?;
            let columns = ["name", "source", "login", "batch", "total", "active", "expired", "usable", "expires_at"];
            console.out.table(&columns, reply.as_array().map_or(&[], Vec::as_slice))
        }
        Verb::Next { name, origin } => console.show(origin.add(console.request("KG.NEXTKEY").word(name))).await,
        Verb::Acquire { name, origin, limits, cost, order, block } => {
            let request = console.request("KG.ACQUIRE").word(name).with(|r| origin.add(r)).with(|r| limits.add(r));
            let request = request.each_of("COST", &cost).option("ORDER", order);
            acquired(console, console.ask_waiting(request, block).await?)
        }
        Verb::Settle { id, at, cost } => {
            console.value(console.request("KG.SETTLE").word(id).word("AT").word(at).each_of("COST", &cost)).await
        }
        Verb::Feedback { id, what, duration, reason, at } => {
            let request = console.request("KG.FEEDBACK").word(id).word(what).words(duration);
            console.value(request.option("REASON", reason).option("AT", at)).await
        }
        Verb::Delete(chosen) => chosen.delete(console).await,
    }
}

/// A secret as JSON, and the name that it goes by. JSON is text: what is none comes in base64, under a name of its own, so that nobody
/// takes one for the other.
fn secret_json(secret: &[u8]) -> (&'static str, Json) {
    match str::from_utf8(secret) {
        Ok(text) => (SECRET, text.into()),
        Err(_) => ("secret_base64", STANDARD.encode(secret).into()),
    }
}

/// The secret alone on standard output, with the words about it elsewhere.
fn acquired(console: &Console, reply: Value) -> Result<(), Failure> {
    let Value::Map(mut pairs) = reply else { return Err(Failure::Strange("no map")) };
    let at = pairs.iter().position(|(name, _)| matches!(name, Value::BulkString(name) if name == SECRET.as_bytes()));
    let secret = match at.map(|at| pairs.swap_remove(at)) {
        Some((_, Value::BulkString(secret))) => Some(secret),
        Some(_) => return Err(Failure::Strange("no secret")),
        None => None,
    };
    let mut reply = json(Value::Map(pairs));
    if console.out.json {
        let Some(secret) = secret else { return console.out.value(&reply).and(Err(Failure::Answered)) };
        let (name, secret) = secret_json(&secret);
        if let Json::Object(fields) = &mut reply {
            fields.insert(name.to_owned(), secret);
        }
        return console.out.secret(reply.to_string().as_bytes());
    }
    let fields = ["code", "id", "claimed_at_ms", "limit", "remaining", "reset_after_ms", "retry_after_ms"];
    let about = fields.iter().filter(|name| reply.get(name).is_some());
    let about: Vec<String> = about.map(|name| format!("{name} {}", cell(&reply, name))).collect();
    console.out.note(&about.join(", "));
    match secret {
        Some(secret) => console.out.secret(&secret),
        None => Err(Failure::Answered),
    }
}
