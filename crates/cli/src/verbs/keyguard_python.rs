//! The commands of `keyguard_python`, as its users know them: the same words, the same columns.

use clap::Subcommand;
use jiff::Timestamp;

use crate::failure::Failure;
use crate::output::{cell, of};
use crate::reply::Json;

use super::request::Request;
use super::{Console, key};

/// What keys are allowed in a minute when nothing is said.
const REQUESTS_PER_MINUTE: u32 = 60;

/// What they may when nothing is said.
const SCOPES: &str = "read";

/// The commands of `keyguard_python`.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// See that the server is ready (as keyguard_python has it; there is nothing to be made)
    Init,
    /// Create an organization (as keyguard_python has it; see `org add`)
    CreateOrg {
        /// Its name
        name: String,
    },
    /// Issue an API key (as keyguard_python has it; see `key new`)
    CreateKey {
        /// The organization that it belongs to
        #[arg(long)]
        org: String,
        /// What it is for
        #[arg(long)]
        label: String,
        /// What it begins with; kg_live_, unless given
        #[arg(long, default_value = "")]
        prefix: String,
        /// Requests per minute; 60, if it is 0
        #[arg(long, value_name = "N", default_value_t = REQUESTS_PER_MINUTE)]
        rate_limit: u32,
        /// What it may, separated by commas
        #[arg(long, default_value = SCOPES)]
        scopes: String,
    },
    /// List all organizations (as keyguard_python has it; see `org list`)
    ListOrgs,
    /// List all API keys (as keyguard_python has it; see `key list`)
    ListKeys,
    /// Revoke an API key by how it begins, or by its id (as keyguard_python has it; see `key revoke`)
    RevokeKey {
        /// How it begins, as `list-keys` shows it, or its id
        #[arg(value_name = "START|ID")]
        prefix: String,
    },
    /// Show usage statistics (as keyguard_python has it; see `usage stats`)
    Stats,
}

/// Does it.
///
/// # Errors
/// What the module refuses, or why it does not answer.
pub async fn run(console: &Console, verb: Verb) -> Result<(), Failure> {
    match verb {
        Verb::Init => init(console).await,
        Verb::CreateOrg { name } => create_org(console, &name).await,
        Verb::CreateKey { org, label, prefix, rate_limit, scopes } => {
            // As the original has it, an empty word and 0 are as good as nothing. It keeps the blanks of "read, write", which no
            // route's scope would ever equal.
            let prefix = Some(prefix).filter(|prefix| !prefix.is_empty());
            let rate_limit = if rate_limit == 0 { REQUESTS_PER_MINUTE } else { rate_limit };
            let scopes = if scopes.is_empty() { SCOPES } else { &scopes };
            let scopes: Vec<&str> = scopes.split(',').map(str::trim).collect();
            let request = console.request("KG.NEWKEY").word(&org).word(&label).option("PREFIX", prefix);
            let limited = request.word("SCOPES").word(scopes.join(",")).word("LIMIT").word(rate_limit).word("1m");
            let reply = match console.ask(limited).await {
                Err(failure) if is_missing(&failure) => {
                    let advice = format!("  Create one first: keyguard create-org \"{org}\"");
                    return refused(console, &format!("✗ Organization '{org}' not found.\n{advice}"));
                }
                reply => reply?,
            };
            let Some([id, Json::String(raw)]) = reply.as_array().map(Vec::as_slice) else {
                return Err(Failure::Strange("no key"));
            };
            let scopes: Vec<String> = scopes.iter().map(|scope| format!("'{scope}'")).collect();
            let rule = "═".repeat(raw.chars().count().max(50) + 4);
            let text = format!(
                "✓ API key created:\n  Label:      {label}\n  Org:        {org}\n  Rate Limit: {rate_limit}/min\n  \
                 Scopes:     [{}]\n\n  ╔{rule}╗\n  ║  {:<width$}║\n  ║  {raw:<width$}║\n  ╚{rule}╝",
                scopes.join(", "),
                "API KEY (save this — it won't be shown again!)",
                width = rule.chars().count() - 2,
            );
            let shown = if console.out.json { reply.to_string() } else { text };
            key::hand_over(console, id, &shown)
        }
        Verb::ListOrgs => list_orgs(console).await,
        Verb::ListKeys => list_keys(console).await,
        Verb::RevokeKey { prefix } => revoke_key(console, &prefix).await,
        Verb::Stats => stats(console).await,
    }
}

/// What the original says on standard output, where programs want JSON and nothing else.
fn refused(console: &Console, text: &str) -> Result<(), Failure> {
    if console.out.json {
        console.out.note(text);
    } else {
        console.out.text(text)?;
    }
    Err(Failure::Answered)
}

fn is_missing(failure: &Failure) -> bool {
    matches!(failure.code(), Some("NOSUCH" | "NOSTORE"))
}

async fn init(console: &Console) -> Result<(), Failure> {
    let reply = match console.ask(console.request("KG.GETSTORE")).await {
        // The first command that writes creates it.
        Err(failure) if failure.code() == Some("NOSTORE") => Json::Null,
        reply => reply?,
    };
    let missing = missing(console).await?;
    if !missing.is_empty() {
        return refused(console, &format!("✗ Not ready:\n  {}", missing.join("\n  ")));
    }
    console.out.done(&format!("✓ Ready: the server has keyguard; store {}", console.store), &reply)
}

/// What keeps keys from being issued at this server, and what to do about it.
async fn missing(console: &Console) -> Result<Vec<&'static str>, Failure> {
    let info = console.ask_node(Request::new("INFO").word("everything")).await?;
    let is = |line: &str| info.as_str().is_some_and(|text| text.lines().any(|other| other == line));
    let mut missing = Vec::new();
    // A replica of a cluster sends whoever writes on to its primary.
    if is("role:slave") && !is("cluster_enabled:1") {
        missing.push("the server is a replica, which takes no changes: name its primary in --url (or KEYGUARD_URL)");
    }
    if is("keyguard_keyring_keys:0") {
        let setting = Request::new("CONFIG").word("GET").word("keyguard.keyring-auto-create");
        let is_made = console.ask_node(setting).await;
        // Then the first key that is issued makes it.
        if !is_made.is_ok_and(|settings| of(&settings, "keyguard.keyring-auto-create") == "yes") {
            missing.push(
                "the server has no keyring: make one (umask 077; head -c 32 /dev/urandom | base64 > FILE), and restart it with \
                 keyguard.keyring-file FILE",
            );
        }
    }
    Ok(missing)
}

async fn create_org(console: &Console, name: &str) -> Result<(), Failure> {
    match console.ask(console.request("KG.ADDORG").word(name)).await {
        Err(failure) if failure.code() == Some("DUPLICATE") => {
            refused(console, &format!("✗ Organization '{name}' already exists."))
        }
        reply => {
            let id = reply?;
            console.out.done(&format!("✓ Organization created:\n  Name: {name}\n  ID:   {id}"), &id)
        }
    }
}

/// A store that is not there yet has none.
async fn all(console: &Console, listing: &[&str]) -> Result<Vec<Json>, Failure> {
    let (command, words) = listing.split_first().ok_or(Failure::Strange("no command"))?;
    match console.pages_by_id(|| console.request(command).words(words), None).await {
        Err(failure) if failure.code() == Some("NOSTORE") => Ok(Vec::new()),
        rows => rows,
    }
}

async fn list_orgs(console: &Console) -> Result<(), Failure> {
    let orgs = all(console, &["KG.LISTORGS"]).await?;
    if console.out.json {
        return console.out.value(&orgs.into());
    }
    if orgs.is_empty() {
        return console.out.text("No organizations found. Create one:\n  keyguard create-org \"My Company\"");
    }
    console.out.text(&format!("\n{:<30} {:<12} {:<8} ID\n{}", "Name", "Status", "Keys", "─".repeat(90)))?;
    for org in &orgs {
        let [name, status, keys, id] = ["name", "status", "keys", "id"].map(|field| cell(org, field));
        console.out.text(&format!("{name:<30} {status:<12} {keys:<8} {id}"))?;
    }
    console.out.text(&format!("\nTotal: {} organization(s)", orgs.len()))
}

async fn list_keys(console: &Console) -> Result<(), Failure> {
    let keys = all(console, &["KG.LISTKEYS", "TYPE", "api"]).await?;
    if console.out.json {
        return console.out.value(&keys.into());
    }
    if keys.is_empty() {
        return console
            .out
            .text("No API keys found. Create one:\n  keyguard create-key --org \"My Org\" --label \"my-key\"");
    }
    let heading = ["Label", "Prefix", "Org", "Status", "Rate/min", "Last Used"].map(str::to_owned);
    console.out.text(&format!("\n{}\n{}", key_line(&heading), "─".repeat(110)))?;
    for key in &keys {
        let last_used = match of(key, "last_used_at") {
            Json::Null => "never".to_owned(),
            // To the second and in UTC, as the original keeps it.
            at => at
                .as_i64()
                .and_then(|ms| Timestamp::from_millisecond(ms).ok())
                .map_or_else(String::new, |at| at.strftime("%Y-%m-%d %H:%M:%S").to_string()),
        };
        let [label, start, org, status] = ["label", "start", "org", "status"].map(|field| cell(key, field));
        console.out.text(&key_line(&[label, start, org, status, per_minute(key), last_used]))?;
    }
    console.out.text(&format!("\nTotal: {} key(s)", keys.len()))
}

fn key_line([label, start, org, status, rate, last_used]: &[String; 6]) -> String {
    format!("{label:<25} {start:<15} {org:<20} {status:<10} {rate:<10} {last_used}")
}

/// What a key is allowed in a minute; a dash, if it is counted otherwise.
fn per_minute(key: &Json) -> String {
    let limits = of(key, "limits").as_array().map_or(&[][..], Vec::as_slice);
    let rate = limits.iter().filter_map(Json::as_str).find_map(|limit| limit.strip_suffix(" 60000ms requests"));
    rate.unwrap_or("—").to_owned()
}

async fn revoke_key(console: &Console, prefix: &str) -> Result<(), Failure> {
    // Digits may be an id as well as how a key begins: also then it must be one key alone.
    let keys = all(console, &["KG.LISTKEYS", "TYPE", "api"]).await?;
    let id: Option<u64> = prefix.parse().ok();
    let mut keys = keys.into_iter().filter(|key| {
        let begins = |start: &str| !prefix.is_empty() && start.starts_with(prefix);
        of(key, "start").as_str().is_some_and(begins) || id.is_some_and(|id| *of(key, "id") == id)
    });
    let key = keys.next();
    if keys.next().is_some() {
        return refused(
            console,
            "✗ Several keys fit that; name one by all of its visible beginning, or use keyguard key revoke",
        );
    }
    let Some(key) = key else {
        // Without it: it may be a whole key.
        return refused(console, "✗ No key found with that prefix or id");
    };
    let [label, start] = ["label", "start"].map(|field| cell(&key, field));
    if of(&key, "status") == "revoked" {
        return console.out.done(&format!("Key '{label}' is already revoked."), &"OK".into());
    }
    let done = format!("✓ Key '{label}' (prefix: {start}) has been revoked.");
    console.tell(console.request("KG.REVOKE").word(of(&key, "id").to_string()), &done).await
}

async fn stats(console: &Console) -> Result<(), Failure> {
    let stats = match console.ask(console.request("KG.STATS")).await {
        Err(failure) if failure.code() == Some("NOSTORE") => Json::Null,
        reply => reply?,
    };
    if console.out.json {
        return console.out.value(&stats);
    }
    let count = |field: &str| of(&stats, field).as_u64().unwrap_or_default();
    let rule = "═".repeat(38);
    console.out.text(&format!("\n╔{rule}╗\n║        KeyGuard Statistics           ║\n╠{rule}╣"))?;
    for (name, field) in [
        ("Organizations:", "organizations"),
        ("Total Keys:", "keys"),
        ("Active Keys:", "active_keys"),
        ("Total Requests:", "requests"),
        ("Requests (1h):", "requests_last_hour"),
    ] {
        console.out.text(&format!("║  {name:<18}{:<17} ║", count(field)))?;
    }
    let error_rate = format!("{:.1}%", of(&stats, "error_rate").as_f64().unwrap_or_default());
    console.out.text(&format!("║  {:<18}{error_rate:<17} ║\n╚{rule}╝", "Error Rate:"))
}
