//! `keyguard menu`: the vault keys of a store by questions and answers, as `simple_keystore` has it.
//!
//! It asks line by line, so that it works in any terminal and with its answers in a pipe. What the server refuses is shown, and the
//! menu goes on. A secret is typed without echo, and shown only when it is asked for.

mod prompt;
mod table;

use jiff::civil::Date;
use redis::{Cmd, Value};
use zeroize::Zeroizing;

use crate::cli::At;
use crate::failure::Failure;
use crate::output;
use crate::reply::Json;
use crate::server::Server;
use prompt::Stop;

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

/// How many keys a list shows: more are for `keyguard vault list`, which goes page by page.
const SHOWN: usize = 1_000;

/// As many as the server has on a page.
const PAGE: usize = 200;

/// Asks what to do, and does it, until there is nothing more.
///
/// # Errors
/// That there is no server at the beginning, or none with the module, or no terminal.
pub async fn run(at: &At) -> Result<(), Failure> {
    let mut menu =
        Menu { server: Server::at(&at.url)?, store: at.store.clone(), last: Answers::default(), created: Vec::new() };
    // What does not work at all is told of before any question.
    menu.count(&[]).await?;
    println!("{CHOICES}");
    loop {
        match menu.once().await {
            Ok(()) => {}
            Err(Stop::Leave) => {
                println!();
                return Ok(());
            }
            Err(Stop::Failed(Failure::Io(error))) => return Err(Failure::Io(error)),
            Err(Stop::Failed(failure)) => output::show_failure(&failure),
        }
    }
}

struct Menu {
    server: Server,
    store: String,
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
        let choice = prompt::line(&format!("\n{} [a d l n m r s u v q, ? for help]: ", self.store))?;
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
            _ => {
                println!("{CHOICES}");
                Ok(())
            }
        }
    }

    async fn add(&mut self) -> Result<(), Stop> {
        println!("Enter takes what stands in brackets, - stands for nothing.");
        let last = &self.last;
        let mut answers = Answers { name: prompt::with_default("Name", &last.name)?, ..Answers::default() };
        while answers.name.is_empty() {
            println!("A key needs a name: that of the vendor, say.");
            answers.name = prompt::with_default("Name", &last.name)?;
        }
        answers.source = prompt::with_default("Source", &last.source)?;
        answers.login = prompt::with_default("Login", &last.login)?;
        answers.batch = prompt::with_default("Batch", &last.batch)?;
        answers.expiry =
            prompt::with_default("Expiry (30 or 30d, 12h, 2027-01-31, 2027-01-31T12:00:00Z)", &last.expiry)?;
        let active = prompt::yes("Active", true)?;
        let secret = prompt::secret("Secret (not shown): ")?;
        let mut command = self.command("KG.ADDKEY");
        command.arg(&answers.name).arg(secret.as_bytes());
        for (name, value) in [("SOURCE", &answers.source), ("LOGIN", &answers.login), ("BATCH", &answers.batch)] {
            if !value.is_empty() {
                command.arg(name).arg(value);
            }
        }
        if let Some((name, value)) = expiry(&answers.expiry) {
            command.arg(name).arg(value);
        }
        if !active {
            command.arg("INACTIVE");
        }
        // What was typed is kept as default also if the server refuses it: then one answer is wrong, not all.
        self.last = answers;
        let id = self.server.ask(&command).await?.as_u64().ok_or(Failure::Strange("KG.ADDKEY answers an id"))?;
        self.created.push(id);
        println!("Added as {id}.");
        Ok(())
    }

    async fn delete(&self) -> Result<(), Stop> {
        let Some(record) = self.chosen("delete").await? else { return Ok(()) };
        table::keys(&[&record]);
        if !prompt::yes("Delete it", false)? {
            println!("Nothing is deleted.");
            return Ok(());
        }
        let deleted = self.server.ask(self.command("KG.DELKEY").arg(id_of(&record)?)).await?;
        println!("Deleted: {deleted}.");
        Ok(())
    }

    async fn list(&self) -> Result<(), Stop> {
        self.show_all(&[]).await?;
        Ok(())
    }

    async fn next(&self) -> Result<(), Stop> {
        let Some(record) = self.chosen("mark inactive").await? else { return Ok(()) };
        self.set_active(&record, "no").await?;
        let Some(name) = record.get("name").and_then(Json::as_str) else {
            return Err(Failure::Usage("only vault keys are handed out".to_owned()).into());
        };
        let next = self.server.ask(self.command("KG.NEXTKEY").arg(name)).await?;
        println!("The next one:");
        table::keys(&[&next]);
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
        let count = self.count(&expired).await?;
        if count == 0 {
            println!("No key has expired.");
            return Ok(());
        }
        self.show_all(&expired).await?;
        if !prompt::yes(&format!("Delete these {count}"), false)? {
            println!("Nothing is deleted.");
            return Ok(());
        }
        let mut deleted = 0;
        loop {
            // A hundred a call.
            let command = self.command("KG.DELKEY").arg("MATCH").arg(&["TYPE", "vault"]).arg(&expired).clone();
            match self.server.ask(&command).await?.as_u64() {
                Some(0) | None => break,
                Some(more) => deleted += more,
            }
        }
        println!("Deleted: {deleted}.");
        Ok(())
    }

    async fn session(&self) -> Result<(), Stop> {
        let mut records = Vec::new();
        for id in &self.created {
            match self.server.ask(self.command("KG.GETKEY").arg(id)).await {
                Ok(record) => records.push(record),
                Err(failure) if matches!(failure.code(), Some("NOSUCH" | "NOSTORE")) => println!("{id} is deleted."),
                Err(failure) => return Err(failure.into()),
            }
        }
        table::keys(&records.iter().collect::<Vec<_>>());
        Ok(())
    }

    async fn usability(&self) -> Result<(), Stop> {
        table::sets(&list(self.server.ask(&self.command("KG.USABILITY")).await?));
        Ok(())
    }

    async fn reveal(&self) -> Result<(), Stop> {
        let id = prompt::line("Id of the key to reveal: ")?;
        if id.is_empty() {
            return Ok(());
        }
        let record = self.server.ask(self.command("KG.GETKEY").arg(&id)).await?;
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
            let ids = list(self.server.ask(self.command("KG.FINDKEY").arg(secret.as_bytes())).await?);
            match ids.as_slice() {
                [] => {
                    println!("No key has this secret.");
                    return Ok(None);
                }
                [only] => id = only.to_string(),
                several => {
                    let ids: Vec<String> = several.iter().map(Json::to_string).collect();
                    println!("Several keys have this secret: {}. Name one by its id.", ids.join(", "));
                    return Ok(None);
                }
            }
        }
        Ok(Some(self.server.ask(self.command("KG.GETKEY").arg(id)).await?))
    }

    async fn set_active(&self, record: &Json, active: &str) -> Result<(), Stop> {
        let id = id_of(record)?;
        let changed = self.server.ask(self.command("KG.SETKEY").arg(id).arg("ACTIVE").arg(active)).await?;
        let state = if active == "yes" { "active" } else { "inactive" };
        let already = if list(changed).is_empty() { "already " } else { "" };
        println!("{id} is {already}{state}.");
        Ok(())
    }

    async fn show_secret(&self, record: &Json) -> Result<(), Stop> {
        let secret = match self.server.ask_raw(self.command("KG.REVEAL").arg(id_of(record)?)).await? {
            Value::BulkString(secret) => Zeroizing::new(secret),
            _ => return Err(Failure::Strange("KG.REVEAL answers a secret").into()),
        };
        prompt::show_bytes(&secret)
    }

    async fn show_all(&self, filters: &[&str]) -> Result<(), Failure> {
        let mut records: Vec<Json> = Vec::new();
        let mut after = 0;
        // The last map of a page that had to end early says where the next one begins, and nothing else.
        loop {
            let mut command = self.command("KG.LISTKEYS");
            command.arg(&["TYPE", "vault"]).arg(filters).arg("AFTER").arg(after).arg("COUNT").arg(PAGE);
            let mut page = match self.server.ask(&command).await {
                Err(failure) if failure.code() == Some("NOSTORE") => Vec::new(),
                answer => list(answer?),
            };
            let full = page.len() == PAGE;
            let ended_at = page.last().and_then(|last| last.get("after")).and_then(Json::as_u64);
            if ended_at.is_some() {
                page.pop();
            }
            let last_id = page.last().and_then(|last| last.get("id")).and_then(Json::as_u64);
            records.append(&mut page);
            match ended_at.or(if full { last_id } else { None }) {
                Some(next) if records.len() < SHOWN => after = next,
                more => {
                    table::keys(&records.iter().take(SHOWN).collect::<Vec<_>>());
                    if more.is_some() {
                        println!("There may be more: these are the first {SHOWN}.");
                    }
                    return Ok(());
                }
            }
        }
    }

    /// How many vault keys there are; a store that is not there yet has none.
    async fn count(&self, filters: &[&str]) -> Result<u64, Failure> {
        let command = self.command("KG.COUNTKEYS").arg(&["TYPE", "vault"]).arg(filters).clone();
        match self.server.ask(&command).await {
            Ok(count) => count.as_u64().ok_or(Failure::Strange("KG.COUNTKEYS answers a number")),
            Err(Failure::Refused { .. }) => Ok(0),
            Err(failure) => Err(failure),
        }
    }

    fn command(&self, name: &str) -> Cmd {
        let mut command = redis::cmd(name);
        command.arg(&self.store);
        command
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
