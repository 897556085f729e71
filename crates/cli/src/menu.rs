//! `keyguard menu`: the vault keys of a store by questions and answers, as `simple_keystore` has it.
//!
//! It asks line by line, so that it works in any terminal and with its answers in a pipe. What the server refuses is shown, and the
//! menu goes on. A secret is typed without echo, and shown only when it is asked for.

use std::slice;

use jiff::civil::Date;
use redis::Value;
use zeroize::Zeroizing;

use crate::cli::At;
use crate::failure::Failure;
use crate::output;
use crate::prompt::{self, Stop};
use crate::reply::Json;
use crate::verbs::{Console, Kind};

const CHOICES: &str = "\
a  add a key
d  delete a key
l  list all keys
n  mark a key inactive, and get the next of its name
m  mark a key active again
r  remove all expired keys
s  list the keys created in this session
u  usability: how many keys of each set there are, and how many of them are usable
v  reveal the secret of a key
q  quit (so does Ctrl-D)";

/// What is shown of keys.
const KEYS: [&str; 9] = ["id", "name", "source", "login", "batch", "active", "usable", "expires_at", "hint"];

/// What is shown of sets of keys, as KG.USABILITY counts them.
const SETS: [&str; 9] = ["name", "source", "login", "batch", "total", "active", "expired", "usable", "expires_at"];

/// How many keys a list shows: more are for `keyguard vault list`, which goes page by page.
const SHOWN: usize = 1_000;

/// Asks what to do, and does it, until there is nothing more.
///
/// # Errors
/// That there is no server at the beginning, or none with the module, or no terminal.
pub async fn run(at: &At) -> Result<(), Failure> {
    at.refuse_json("menu", "keyguard vault --help lists the commands that do the same for programs")?;
    let mut menu = Menu { console: Console::at(at)?, last: Answers::default(), created: Vec::new() };
    // What does not work at all is told of before any question.
    menu.vault_keys(&[], Some(1)).await?;
    menu.console.out.text(CHOICES)?;
    loop {
        match menu.once().await {
            Ok(()) => {}
            Err(Stop::Leave) => return menu.console.out.text(""),
            Err(Stop::Failed(Failure::Io(error))) => return Err(Failure::Io(error)),
            Err(Stop::Failed(failure)) => output::show_failure(&failure),
        }
    }
}

struct Menu {
    console: Console,
    /// The defaults of the next key.
    last: Answers,
    /// The ids of the keys created since the beginning.
    created: Vec<u64>,
}

/// What was answered about a key, but for its secret.
#[derive(Default, Clone)]
struct Answers {
    name: String,
    source: String,
    login: String,
    batch: String,
    expiry: String,
}

impl Menu {
    /// One choice, and what follows from it.
    async fn once(&mut self) -> Result<(), Stop> {
        let choice = prompt::line(&format!("\n{} [a d l n m r s u v q, ? for help]: ", self.console.store))?;
        match choice.to_lowercase().as_str() {
            "a" | "add" => self.add().await,
            "d" | "delete" => self.delete().await,
            "l" | "list" => self.list().await,
            "n" | "next" => self.next().await,
            "m" | "mark" | "reactivate" => self.reactivate().await,
            "r" | "remove" => self.remove_expired().await,
            "s" | "session" => self.session().await,
            "u" | "usability" => self.usability().await,
            "v" | "reveal" => self.reveal().await,
            "q" | "x" | "quit" | "exit" => Err(Stop::Leave),
            "" => Ok(()),
            _ => prompt::say(CHOICES),
        }
    }

    async fn add(&mut self) -> Result<(), Stop> {
        prompt::say("Enter takes what stands in brackets, - stands for nothing.")?;
        let last = &self.last;
        let mut answers = Answers { name: prompt::with_default("Name", &last.name)?, ..Answers::default() };
        while answers.name.is_empty() {
            prompt::say("A key needs a name: that of the vendor, say.")?;
            answers.name = prompt::with_default("Name", &last.name)?;
        }
        answers.source = prompt::with_default("Source", &last.source)?;
        answers.login = prompt::with_default("Login", &last.login)?;
        answers.batch = prompt::with_default("Batch", &last.batch)?;
        answers.expiry =
            prompt::with_default("Expiry (30 or 30d, 12h, 2027-01-31, 2027-01-31T12:00:00Z)", &last.expiry)?;
        let active = prompt::yes("Active", true)?;
        let secret = prompt::secret("Secret (not shown): ")?;
        let text = |name, value: &String| (!value.is_empty()).then(|| (name, value.clone()));
        let options = [text("SOURCE", &answers.source), text("LOGIN", &answers.login), text("BATCH", &answers.batch)];
        let options = options.into_iter().chain([expiry(&answers.expiry)]).flatten();
        let request = self.console.request("KG.ADDKEY").word(&answers.name).word(secret.as_slice());
        let request = options.fold(request, |request, (name, value)| request.word(name).word(value));
        let request = request.flag("INACTIVE", !active);
        // What was typed is kept as default also if the server refuses it: then one answer is wrong, not all.
        self.last = answers;
        let id = self.console.ask(request).await?.as_u64().ok_or(Failure::Strange("KG.ADDKEY answers an id"))?;
        self.created.push(id);
        prompt::say(&format!("Added as {id}."))?;
        Ok(())
    }

    async fn delete(&self) -> Result<(), Stop> {
        let Some(record) = self.chosen("delete").await? else { return Ok(()) };
        self.show(slice::from_ref(&record))?;
        if !prompt::yes("Delete it", false)? {
            prompt::say("Nothing is deleted.")?;
            return Ok(());
        }
        let deleted = self.console.ask(self.console.request("KG.DELKEY").word(id_of(&record)?)).await?;
        prompt::say(&format!("Deleted: {deleted}."))?;
        Ok(())
    }

    async fn list(&self) -> Result<(), Stop> {
        self.show(&self.vault_keys(&[], Some(SHOWN + 1)).await?)
    }

    async fn next(&self) -> Result<(), Stop> {
        let Some(record) = self.chosen("mark inactive").await? else { return Ok(()) };
        let name = record.get("name").and_then(Json::as_str).ok_or(Failure::Strange("a vault key has a name"))?;
        self.set_active(&record, "no").await?;
        let next = self.console.ask(self.console.request("KG.NEXTKEY").word(name)).await?;
        prompt::say("The next one:")?;
        self.show(slice::from_ref(&next))?;
        if prompt::yes("Show its secret", false)? {
            self.show_secret(&next).await?;
        }
        Ok(())
    }

    async fn reactivate(&self) -> Result<(), Stop> {
        match self.chosen("mark active").await? {
            Some(record) => self.set_active(&record, "yes").await,
            None => Ok(()),
        }
    }

    async fn remove_expired(&self) -> Result<(), Stop> {
        let expired = ["EXPIRED", "yes"];
        let records = self.vault_keys(&expired, Some(SHOWN + 1)).await?;
        let question = match records.len() {
            0 => {
                prompt::say("No key has expired.")?;
                return Ok(());
            }
            count @ ..=SHOWN => format!("Delete these {count}"),
            _ => format!("Delete all expired keys, more than {SHOWN}"),
        };
        self.show(&records)?;
        if !prompt::yes(&question, false)? {
            prompt::say("Nothing is deleted.")?;
            return Ok(());
        }
        // A key whose life was prolonged meanwhile stays; so does one that was not shown, unless all were meant.
        let shown = records.iter().map(id_of).collect::<Result<Vec<u64>, Failure>>()?;
        let mut ids =
            self.vault_keys(&expired, None).await?.iter().map(id_of).collect::<Result<Vec<u64>, Failure>>()?;
        if shown.len() <= SHOWN {
            ids.retain(|id| shown.contains(id));
        }
        let mut deleted = 0;
        self.console.delete_keys(&ids, &mut deleted).await?;
        prompt::say(&format!("Deleted: {deleted}."))?;
        Ok(())
    }

    async fn session(&self) -> Result<(), Stop> {
        let mut records = Vec::new();
        for id in &self.created {
            match self.console.ask(self.console.request("KG.GETKEY").word(id)).await {
                Ok(record) => records.push(record),
                Err(failure) if matches!(failure.code(), Some("NOSUCH" | "NOSTORE")) => {
                    prompt::say(&format!("{id} is deleted."))?
                }
                Err(failure) => return Err(failure.into()),
            }
        }
        self.show(&records)
    }

    async fn usability(&self) -> Result<(), Stop> {
        let sets = list(self.console.ask(self.console.request("KG.USABILITY")).await?);
        self.table(&SETS, &sets)
    }

    async fn reveal(&self) -> Result<(), Stop> {
        let id = prompt::line("Id of the key to reveal: ")?;
        if id.is_empty() {
            return Ok(());
        }
        let record = self.vault_key(&id).await?;
        self.show_secret(&record).await
    }

    /// The key that the answers name: by its id, or, as whoever holds it knows it, by its secret.
    async fn chosen(&self, what: &str) -> Result<Option<Json>, Stop> {
        let mut id = prompt::line(&format!("Id of the key to {what} (empty: find it by its secret): "))?;
        if id.is_empty() {
            let secret = prompt::secret("Secret (not shown): ")?;
            if secret.is_empty() {
                return Ok(None);
            }
            let ids = list(self.console.ask(self.console.request("KG.FINDKEY").word(secret.as_slice())).await?);
            match ids.as_slice() {
                [] => {
                    prompt::say("No key has this secret.")?;
                    return Ok(None);
                }
                [only] => id = only.to_string(),
                several => {
                    let ids: Vec<String> = several.iter().map(Json::to_string).collect();
                    prompt::say(&format!("Several keys have this secret: {}. Name one by its id.", ids.join(", ")))?;
                    return Ok(None);
                }
            }
        }
        Ok(Some(self.vault_key(&id).await?))
    }

    /// The vault key of that id; API keys, which have ids of the same series, are none of the menu's business.
    async fn vault_key(&self, id: &str) -> Result<Json, Failure> {
        let record = self.console.ask(self.console.request("KG.GETKEY").word(id)).await?;
        Kind::Vault.expect(&record)?;
        Ok(record)
    }

    async fn set_active(&self, record: &Json, active: &str) -> Result<(), Stop> {
        let id = id_of(record)?;
        let request = self.console.request("KG.SETKEY").word(id).word("ACTIVE").word(active);
        let changed = self.console.ask(request).await?;
        let state = if active == "yes" { "active" } else { "inactive" };
        let already = if list(changed).is_empty() { "already " } else { "" };
        prompt::say(&format!("{id} is {already}{state}."))?;
        Ok(())
    }

    async fn show_secret(&self, record: &Json) -> Result<(), Stop> {
        let request = self.console.request("KG.REVEAL").word(id_of(record)?);
        let secret = match self.console.ask_raw(request).await? {
            Value::BulkString(secret) => Zeroizing::new(secret),
            _ => return Err(Failure::Strange("KG.REVEAL answers a secret").into()),
        };
        prompt::show_bytes(&secret)
    }

    /// Keys, without their secrets.
    fn show(&self, records: &[Json]) -> Result<(), Stop> {
        self.table(&KEYS, records.get(..SHOWN).unwrap_or(records))?;
        if records.len() > SHOWN {
            prompt::say(&format!("There are more: these are the first {SHOWN}."))?;
        }
        Ok(())
    }

    fn table(&self, columns: &[&str], rows: &[Json]) -> Result<(), Stop> {
        if rows.is_empty() {
            return prompt::say("None.");
        }
        Ok(self.console.out.table(columns, rows)?)
    }

    /// The vault keys that the filters let through, or the first so many of them; a store that is not there yet has
    /// none.
    async fn vault_keys(&self, filters: &[&str], max: Option<usize>) -> Result<Vec<Json>, Failure> {
        let request = || self.console.request("KG.LISTKEYS").words(["TYPE", "vault"]).words(filters.iter().copied());
        match self.console.pages_by_id(request, max).await {
            Err(failure) if failure.code() == Some("NOSTORE") => Ok(Vec::new()),
            answer => answer,
        }
    }
}

fn id_of(record: &Json) -> Result<u64, Failure> {
    record.get("id").and_then(Json::as_u64).ok_or(Failure::Strange("a record has an id"))
}

fn list(answer: Json) -> Vec<Json> {
    match answer {
        Json::Array(items) => items,
        _ => Vec::new(),
    }
}

/// The option that an answer stands for. As `simple_keystore` has it, a bare number is days and a day begins at midnight (here: UTC);
/// all else is for the server to judge.
fn expiry(answer: &str) -> Option<(&'static str, String)> {
    if answer.is_empty() {
        None
    } else if answer.bytes().all(|byte| byte.is_ascii_digit()) {
        Some(("EXPIREIN", format!("{answer}d")))
    } else if answer.parse::<Date>().is_ok() && !answer.contains(':') {
        Some(("EXPIREAT", format!("{answer}T00:00:00Z")))
    } else if answer.contains(':') || answer.contains('-') {
        Some(("EXPIREAT", answer.to_owned()))
    } else {
        Some(("EXPIREIN", answer.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::expiry;

    #[test]
    fn an_expiry_is_days_or_a_duration_or_a_day_or_a_time() {
        for (answer, expected) in [
            ("", None),
            ("30", Some(("EXPIREIN", "30d"))),
            ("12h", Some(("EXPIREIN", "12h"))),
            ("2027-01-31", Some(("EXPIREAT", "2027-01-31T00:00:00Z"))),
            ("2027-01-31T12:00:00+01:00", Some(("EXPIREAT", "2027-01-31T12:00:00+01:00"))),
            ("2027-02-31", Some(("EXPIREAT", "2027-02-31"))),
            ("soon", Some(("EXPIREIN", "soon"))),
        ] {
            let expected = expected.map(|(option, value)| (option, value.to_owned()));
            assert_eq!(expiry(answer), expected, "{answer}");
        }
    }
}
