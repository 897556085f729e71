//! What the server says of itself, asked once.

use std::collections::HashMap;

use redis::Cmd;

use crate::failure::Failure;
use crate::reply::Json;
use crate::server::Server;

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
        let keyring = node.ask(&command(&["KG.KEYRING", "STATUS"])).await.map(rows);
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

    /// Why there is nothing of INFO.
    pub fn no_info(&self) -> String {
        match &self.info {
            Err(failure) => failure.to_string(),
            Ok(_) => "INFO does not tell".to_owned(),
        }
    }

    /// A setting; none also if this user may not see it.
    pub fn setting(&self, name: &str) -> Option<&str> {
        self.settings.as_ref().ok()?.get(name).map(String::as_str)
    }

    /// Why there are no settings.
    pub fn no_settings(&self) -> String {
        match &self.settings {
            Err(failure) => failure.to_string(),
            Ok(_) => "CONFIG GET does not tell".to_owned(),
        }
    }

    /// The version of the module.
    pub fn module_version(&self) -> Option<&str> {
        self.info("keyguard_version")
    }
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
