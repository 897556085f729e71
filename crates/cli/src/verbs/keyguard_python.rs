//! The commands of `keyguard_python`, as its users know them: the same words, the same columns.

use clap::Subcommand;

use crate::failure::Failure;
use crate::output::{cell, of};
use crate::reply::Json;

use super::{Console, Kind};

/// What keys are allowed in a minute when nothing is said.
const REQUESTS_PER_MINUTE: u32 = 60;

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
        #[arg(long)]
        prefix: Option<String>,
        /// Requests per minute
        #[arg(long, value_name = "N", default_value_t = REQUESTS_PER_MINUTE)]
        rate_limit: u32,
        /// What it may, separated by commas
        #[arg(long, default_value = "read")]
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
            let request = console.request("KG.NEWKEY").word(&org).word(&label).option("PREFIX", prefix);
            let limited = request.word("SCOPES").word(&scopes).word("LIMIT").word(rate_limit).word("1m");
            let reply = match console.ask(limited).await {
                Err(failure) if is_missing(&failure) => {
                    console.out.text(&format!("✗ Organization '{org}' not found."))?;
                    console.out.text(&format!("  Create one first: keyguard create-org \"{org}\""))?;
                    return Err(Failure::Answered);
                }
                reply => reply?,
            };
            let Some([_, Json::String(raw)]) = reply.as_array().map(Vec::as_slice) else {
                return Err(Failure::Strange("no key"));
            };
            let scopes: Vec<String> = scopes.split(',').map(|scope| format!("'{scope}'")).collect();
            let rule = "═".repeat(raw.chars().count().max(50) + 4);
            let text = format!(
                "✓ API key created:\n  Label:      {label}\n  Org:        {org}\n  Rate Limit: {rate_limit}/min\n  \
                 Scopes:     [{}]\n\n  ╔{rule}╗\n  ║  {:<width$}║\n  ║  {raw:<width$}║\n  ╚{rule}╝",
                scopes.join(", "),
                "API KEY (save this — it won't be shown again!)",
                width = rule.chars().count() - 2,
            );
            let shown = if console.out.json { reply.to_string() } else { text };
            console.out.secret(shown.as_bytes())
        }
        Verb::ListOrgs => list_orgs(console).await,
        Verb::ListKeys => list_keys(console).await,
        Verb::RevokeKey { prefix } => revoke_key(console, &prefix).await,
        Verb::Stats => stats(console).await,
    }
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
    console.out.done(&format!("✓ Ready: the server has keyguard; store {}", console.store), &reply)
}

async fn create_org(console: &Console, name: &str) -> Result<(), Failure> {
    match console.ask(console.request("KG.ADDORG").word(name)).await {
        Err(failure) if failure.code() == Some("DUPLICATE") => {
            console.out.text(&format!("✗ Organization '{name}' already exists."))?;
            Err(Failure::Answered)
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
            _ => cell(key, "last_used_at").chars().take(19).map(|c| if c == 'T' { ' ' } else { c }).collect(),
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
    let key = if prefix.bytes().all(|byte| byte.is_ascii_digit()) {
        match console.ask(console.request("KG.GETKEY").word(prefix)).await {
            Err(failure) if is_missing(&failure) => None,
            reply => Some(reply?).filter(|record| Kind::Api.expect(record).is_ok()),
        }
    } else {
        let keys = all(console, &["KG.LISTKEYS", "TYPE", "api"]).await?;
        let mut keys = keys.into_iter().filter(|key| {
            of(key, "start").as_str().is_some_and(|start| !prefix.is_empty() && start.starts_with(prefix))
        });
        let first = keys.next();
        if keys.next().is_some() {
            console.out.text(&format!("✗ Several keys begin with '{prefix}'; name one by its id"))?;
            return Err(Failure::Answered);
        }
        first
    };
    let Some(key) = key else {
        console.out.text(&format!("✗ No key found with prefix '{prefix}'"))?;
        return Err(Failure::Answered);
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
