//! API keys, for those who call you.

use std::slice;

use clap::{Args, Subcommand};

use crate::failure::Failure;
use crate::output::of;
use crate::reply::Json;

use super::options::{Chosen, Cost, Expiry, Limits, Listing, Quotas, State};
use super::request::Request;
use super::{Console, Kind, options, secret};

const COLUMNS: [&str; 9] = ["id", "label", "org", "start", "status", "scopes", "limits", "last_used_at", "expires_at"];

/// What can be done with API keys.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Issue an API key; prints it, the only time that it is shown
    New {
        /// What it is for
        label: String,
        /// The organization that it belongs to
        #[arg(long)]
        org: String,
        /// What it begins with; kg_live_, unless given
        #[arg(long)]
        prefix: Option<String>,
        #[command(flatten)]
        grants: Grants,
    },
    /// Show a key, never its secret
    Show {
        /// Its id
        id: String,
    },
    /// List API keys
    List {
        #[command(flatten)]
        filters: Filters,
        #[command(flatten)]
        listing: Listing,
    },
    /// Count API keys
    Count {
        #[command(flatten)]
        filters: Filters,
    },
    /// Change a key; limits, quotas and networks given replace all
    Set {
        /// Its id
        id: String,
        /// What it is for
        #[arg(long)]
        label: Option<String>,
        /// Whether it is let in
        #[arg(long, value_name = "yes|no")]
        active: Option<String>,
        #[command(flatten)]
        grants: Grants,
        /// Take a field away, such as `quotas` or `expires_at`; may be repeated
        #[arg(long, value_name = "FIELD")]
        clear: Vec<String>,
    },
    /// Revoke a key, for good
    ///
    /// By its id, by its visible start, or by the key itself, read from standard input or asked for without echo.
    Revoke {
        /// Its id
        #[arg(required_unless_present_any = ["start", "leaked"])]
        id: Option<String>,
        /// The visible start, the whole of it, as `key list` shows it
        #[arg(long, conflicts_with_all = ["id", "leaked"])]
        start: Option<String>,
        /// Read the key itself from standard input, or ask for it without echo
        #[arg(long = "key", id = "leaked", conflicts_with = "id")]
        leaked: bool,
    },
    /// Give a key a new secret; prints it, the only time that it is shown
    Rotate {
        /// Its id
        id: String,
        /// How long the old one works beside it: 30s, 5m, 2h, 7d
        #[arg(long, value_name = "DURATION")]
        grace: Option<String>,
    },
    /// Ask whether a key would be let in, and charge nothing
    ///
    /// The key is read from standard input, or asked for without echo. Exit code 1 if it would not be let in.
    Check(Call),
    /// Let a key in as a call does, and charge it
    ///
    /// The key is read from standard input, or asked for without echo. Exit code 1 if it is not let in.
    Auth(Call),
    /// Delete keys, and all that is known of them
    Delete(Chosen<Filters>),
}

/// What a key may.
#[derive(Debug, Args)]
pub struct Grants {
    /// What it may, such as orders:read, orders:* or *; may be repeated
    #[arg(long, value_name = "SCOPE", value_delimiter = ',', alias = "scopes")]
    scope: Vec<String>,
    #[command(flatten)]
    limits: Limits,
    #[command(flatten)]
    quotas: Quotas,
    /// A network that it works from, as 192.0.2.0/24; may be repeated. Without any, from everywhere
    #[arg(long, value_name = "NET")]
    allow: Vec<String>,
    #[command(flatten)]
    expiry: Expiry,
    /// Whatever you want to know of it, a JSON object
    #[arg(long, value_name = "JSON")]
    meta: Option<String>,
}

impl Grants {
    fn add(&self, request: Request) -> Request {
        let scopes = (!self.scope.is_empty()).then(|| self.scope.join(","));
        let request = request.option("SCOPES", scopes).with(|r| self.limits.add(r)).with(|r| self.quotas.add(r));
        request.each("ALLOW", &self.allow).with(|r| self.expiry.add(r)).option("META", self.meta.as_deref())
    }
}

/// Which API keys.
#[derive(Debug, Args)]
pub struct Filters {
    /// Those with this label
    #[arg(long)]
    label: Option<String>,
    /// Those of this organization
    #[arg(long)]
    org: Option<String>,
    #[command(flatten)]
    state: State,
}

impl options::Filters for Filters {
    const KIND: Kind = Kind::Api;

    fn add(&self, request: Request) -> Request {
        let request = request.option("NAME", self.label.as_deref()).option("ORG", self.org.as_deref());
        self.state.add(request)
    }
}

/// A call to be judged.
#[derive(Debug, Args)]
pub struct Call {
    /// The address that it comes from
    #[arg(long, value_name = "ADDR")]
    ip: Option<String>,
    /// What it asks for
    #[arg(long)]
    path: Option<String>,
    /// Its HTTP method
    #[arg(long)]
    method: Option<String>,
    /// A scope that it needs; may be repeated
    #[arg(long)]
    scope: Vec<String>,
    /// What it costs, as 5 or "1200 tokens"; may be repeated
    #[arg(long, value_name = "N [UNIT]")]
    cost: Vec<Cost>,
    /// Show the key's META as well
    #[arg(long)]
    with_meta: bool,
}

impl Call {
    async fn judge(self, console: &Console, command: &str) -> Result<(), Failure> {
        let key = secret::read("API key")?;
        let request = console.request(command).word(key.as_slice()).option("IP", self.ip).option("PATH", self.path);
        let request = request.option("METHOD", self.method).each("SCOPE", self.scope).each_of("COST", &self.cost);
        let reply = console.ask(request.flag("WITHMETA", self.with_meta)).await?;
        console.out.record(&reply)?;
        if of(&reply, "code") == "VALID" { Ok(()) } else { Err(Failure::Answered) }
    }
}

/// Does it.
///
/// # Errors
/// What the module refuses, or why it does not answer.
pub async fn run(console: &Console, verb: Verb) -> Result<(), Failure> {
    match verb {
        Verb::New { label, org, prefix, grants } => {
            let request = console.request("KG.NEWKEY").word(org).word(label).option("PREFIX", prefix);
            issued(console, &console.ask(request.with(|r| grants.add(r))).await?)
        }
        Verb::Show { id } => console.show_key(console.request("KG.GETKEY").word(id), Kind::Api).await,
        Verb::List { filters, listing } => console.out.table(&COLUMNS, &listing.rows(console, &filters).await?),
        Verb::Count { filters } => console.out.value(&console.count_keys(&filters).await?.into()),
        Verb::Set { id, label, active, grants, clear } => {
            console.expect_type(slice::from_ref(&id), Kind::Api).await?;
            let request = console.request("KG.SETKEY").word(id).option("NAME", label).option("ACTIVE", active);
            console.change(request.with(|r| grants.add(r)).each("CLEAR", clear)).await
        }
        Verb::Revoke { id, start, leaked } => {
            let request = console.request("KG.REVOKE").option("START", start);
            let request = match (id, leaked) {
                (Some(id), _) => request.word(id),
                (None, true) => request.word("KEY").word(secret::read("API key")?.as_slice()),
                (None, false) => request,
            };
            console.tell(request, "revoked").await
        }
        Verb::Rotate { id, grace } => {
            let request = console.request("KG.ROTATE").word(id).option("GRACE", grace);
            issued(console, &console.ask(request).await?)
        }
        Verb::Check(call) => call.judge(console, "KG.CHECK").await,
        Verb::Auth(call) => call.judge(console, "KG.AUTH").await,
        Verb::Delete(chosen) => chosen.delete(console).await,
    }
}

/// A raw key alone on standard output, with the words about it elsewhere.
fn issued(console: &Console, reply: &Json) -> Result<(), Failure> {
    let Some([id, Json::String(raw)]) = reply.as_array().map(Vec::as_slice) else {
        return Err(Failure::Strange("no key"));
    };
    if console.out.json {
        return hand_over(console, id, &reply.to_string());
    }
    console.out.note(&format!("key {id}, shown this once:"));
    hand_over(console, id, raw)
}

/// Shows what holds a new raw key. If nobody takes it, it says which key now has a secret that nobody knows.
///
/// # Errors
/// What standard output refuses.
pub fn hand_over(console: &Console, id: &Json, shown: &str) -> Result<(), Failure> {
    let lost = |_: &Failure| console.out.note(&format!("key {id} has a secret that nobody knows: rotate or delete it"));
    console.out.secret(shown.as_bytes()).inspect_err(lost)
}
