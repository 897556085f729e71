//! What the server says of itself, asked once.

use std::collections::HashMap;
use std::time::Duration;

use redis::Cmd;
use tokio::time;

use super::Finding;
use crate::failure::Failure;
use crate::reply::Json;
use crate::server::Server;

/// How long KG.KEYRING STATUS may take: a few seconds for a million keys.
const SURVEY: Duration = Duration::from_secs(60);

/// INFO, the configuration and the keyring, each as far as this user may see it.
pub struct Facts {
    info: Result<HashMap<String, String>, Failure>,
    settings: Result<HashMap<String, String>, Failure>,
    /// The rows of KG.KEYRING STATUS.
    pub keyring: Result<Vec<Json>, Failure>,
}

/// A command of these words.
pub fn command(words: &[&str]) -> Cmd {
    let mut command = Cmd::new();
    command.arg(words);
    command
}

/// KG.KEYRING STATUS looks through all keys of the server, which takes longer than other answers where they are many.
async fn survey(node: &Server) -> Result<Json, Failure> {
    let patient = node.patient();
    let asked = time::timeout(SURVEY, patient.ask(&command(&["KG.KEYRING", "STATUS"]))).await;
    asked.unwrap_or_else(|_| Err(Failure::Unreachable("KG.KEYRING STATUS has no answer within a minute".to_owned())))
}

impl Facts {
    /// Asks a node.
    ///
    /// # Errors
    /// That it does not answer, does not let this user in at all, or is without the module.
    pub async fn of(node: &Server) -> Result<Self, Failure> {
        let info = node.ask(&command(&["INFO", "everything"])).await.map(|text| lines(&text));
        if let Err(failure @ (Failure::Unreachable(_) | Failure::Misconfigured(_) | Failure::Usage(_))) = info {
            return Err(failure);
        }
        // Whether a command is there is said before whether this user may call it.
        let keyring = survey(node).await.map(rows);
        if let Err(Failure::NoModule) = keyring {
            return Err(Failure::NoModule);
        }
        // Who is not let in at all may see nothing; the advice is that for a wrong password.
        if let (Err(Failure::NotPermitted(info)), Err(Failure::NotPermitted(keyring))) = (&info, &keyring)
            && info == keyring
        {
            return Err(Failure::NotPermitted(info.clone()));
        }
        let mut settings = node.ask(&command(&["CONFIG", "GET", "*"])).await.map(|map| match map {
            Json::Object(map) => {
                map.into_iter().filter_map(|(name, value)| Some((name, value.as_str()?.to_owned()))).collect()
            }
            _ => HashMap::new(),
        });
        if let Ok(settings) = &mut settings {
            // Passwords are of no use here.
            settings.retain(|name: &String, _| !name.contains("pass") && !name.contains("auth"));
        }
        Ok(Self { info, settings, keyring })
    }

    /// A line of INFO; none also if this user may not see it.
    pub fn info(&self, name: &str) -> Option<&str> {
        self.info.as_ref().ok()?.get(name).map(String::as_str)
    }

    /// A number in INFO.
    pub fn number(&self, name: &str) -> Option<u64> {
        self.info(name)?.parse().ok()
    }

    /// What INFO does not tell.
    pub fn without_info(&self, check: &'static str) -> Finding {
        unknown(check, "INFO", "+info", self.info.as_ref().err())
    }

    /// A setting; none also if this user may not see it.
    pub fn setting(&self, name: &str) -> Option<&str> {
        self.settings.as_ref().ok()?.get(name).map(String::as_str)
    }

    /// Whether this user may see the settings.
    pub fn has_settings(&self) -> bool {
        self.settings.is_ok()
    }

    /// What CONFIG GET does not tell.
    pub fn without_settings(&self, check: &'static str) -> Finding {
        unknown(check, "CONFIG GET", "+config|get", self.settings.as_ref().err())
    }

    /// The version of the module.
    pub fn module_version(&self) -> Option<&str> {
        self.info("keyguard_version")
    }
}

/// What is not known is never well: a check that could not be made is something to look after.
fn unknown(check: &'static str, call: &str, rule: &str, why: Option<&Failure>) -> Finding {
    match why {
        None => Finding::not_looked_at(check, format!("unknown: {call} of this server does not tell")),
        Some(Failure::NotPermitted(_)) => Finding::warning(
            check,
            format!("unknown: the user may not {call}"),
            format!("ACL SETUSER with {rule}, or let a user look who may"),
        ),
        Some(failure) if is_of_no_command(failure) => {
            Finding::warning(check, format!("unknown: the server knows no {call}"), "has rename-command taken it away?")
        }
        Some(failure) => Finding::warning(check, format!("unknown: {call}: {failure}"), "look at the server's log"),
    }
}

fn is_of_no_command(failure: &Failure) -> bool {
    matches!(failure, Failure::NoModule)
        || matches!(failure, Failure::Refused { text, .. } if text.contains("unknown command"))
}

fn lines(text: &Json) -> HashMap<String, String> {
    let pairs = text.as_str().unwrap_or_default().lines().filter_map(|line| line.split_once(':'));
    pairs.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect()
}

fn rows(answer: Json) -> Vec<Json> {
    match answer {
        Json::Array(rows) => rows,
        _ => Vec::new(),
    }
}

/// A number of bytes for people.
pub fn bytes(count: u64) -> String {
    const UNITS: [(u64, &str); 3] = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match UNITS.into_iter().find(|(size, _)| count >= *size) {
        Some((size, unit)) => format!("{}.{} {unit}", count / size, count % size * 10 / size),
        None => format!("{count} bytes"),
    }
}
