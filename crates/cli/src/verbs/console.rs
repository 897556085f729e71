//! What a verb has: the server, the store, and how answers are shown.

use redis::{ToRedisArgs, Value};

use crate::cli::At;
use crate::failure::Failure;
use crate::output::{Output, of};
use crate::reply::Json;
use crate::server::Server;

use super::options::Filters;
use super::request::Request;

/// As many records as the module gives at a time.
const PAGE: usize = 200;

/// As many ids as it takes at a time to delete their keys.
const DELETED: usize = 100;

/// What a key record is. Both kinds share one series of ids, none is given out twice, and no record ever becomes the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// An API key, for those who call you.
    Api,
    /// A vault key: a secret that you call others with.
    Vault,
}

impl Kind {
    /// As the module has it in TYPE and in `type`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Api => "api",
            Self::Vault => "vault",
        }
    }

    /// One of them, in words.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Api => "API key",
            Self::Vault => "vault key",
        }
    }

    /// Looks at what KG.GETKEY describes.
    ///
    /// # Errors
    /// `NOSUCH` if that is a key of the other kind: of this one, there is none of that id.
    pub fn expect(self, record: &Json) -> Result<(), Failure> {
        let text = match (self, of(record, "type").as_str()) {
            (Self::Api, Some("api")) | (Self::Vault, Some("vault")) => return Ok(()),
            (Self::Api, Some("vault")) => "no API key has this id: a vault key has",
            (Self::Vault, Some("api")) => "no vault key has this id: an API key has",
            _ => return Err(Failure::Strange("no type of key")),
        };
        Err(Failure::Refused { code: "NOSUCH".to_owned(), text: text.to_owned() })
    }
}

/// What a verb has.
pub struct Console {
    server: Server,
    /// Without the timeout: for what is asked to wait.
    patient: Server,
    /// Without the timeout, and never another node of its cluster: a keyring is each server's own.
    node: Server,
    /// The store.
    pub store: String,
    /// Where answers go.
    pub out: Output,
}

impl Console {
    /// At this server and store.
    ///
    /// # Errors
    /// A URL that is none.
    pub fn at(at: &At) -> Result<Self, Failure> {
        let server = Server::at(&at.url)?;
        Ok(Self {
            patient: server.patient(),
            node: server.node().patient(),
            server,
            store: at.store.clone(),
            out: Output { json: at.json },
        })
    }

    /// A command on the store.
    pub fn request(&self, command: &str) -> Request {
        Request::new(command).word(&self.store)
    }

    /// What the module answers.
    ///
    /// # Errors
    /// What it refuses, or why there is no answer.
    pub async fn ask(&self, request: Request) -> Result<Json, Failure> {
        self.server.ask(request.command()).await
    }

    /// Asks for the record of a key of this kind, and shows it.
    ///
    /// # Errors
    /// `NOSUCH` for a key of the other kind, what is refused, or why there is no answer.
    pub async fn show_key(&self, request: Request, kind: Kind) -> Result<(), Failure> {
        let record = self.ask(request).await?;
        kind.expect(&record)?;
        self.out.record(&record)
    }

    /// What the module answers, byte by byte: for secrets.
    ///
    /// # Errors
    /// What it refuses, or why there is no answer.
    pub async fn ask_raw(&self, request: Request) -> Result<Value, Failure> {
        self.server.ask_raw(request.command()).await
    }

    /// What this very node answers, however long it takes, and if it is one of a cluster.
    ///
    /// # Errors
    /// What it refuses, or why there is no answer.
    pub async fn ask_node(&self, request: Request) -> Result<Json, Failure> {
        self.node.ask(request.command()).await
    }

    /// What the module answers, however long it takes, as long as the server answers anything.
    ///
    /// # Errors
    /// What it refuses, or why there is no answer.
    pub async fn ask_patiently(&self, request: Request) -> Result<Value, Failure> {
        tokio::select! {
            answer = self.patient.ask_raw(request.command()) => answer,
            silence = self.server.silence(request.command()) => Err(silence),
        }
    }

    /// What the module answers to a command that may be told to wait, with `BLOCK wait`.
    ///
    /// # Errors
    /// What it refuses, or why there is no answer.
    pub async fn ask_waiting(&self, request: Request, wait: Option<String>) -> Result<Value, Failure> {
        match wait {
            Some(wait) => self.ask_patiently(request.word("BLOCK").word(wait)).await,
            None => self.ask_raw(request).await,
        }
    }

    /// Asks, and shows a map.
    ///
    /// # Errors
    /// What is refused, or why there is no answer.
    pub async fn show(&self, request: Request) -> Result<(), Failure> {
        let reply = self.ask(request).await?;
        self.out.record(&reply)
    }

    /// Asks, and shows a number or a list of them.
    ///
    /// # Errors
    /// What is refused, or why there is no answer.
    pub async fn value(&self, request: Request) -> Result<(), Failure> {
        let reply = self.ask(request).await?;
        self.out.value(&reply)
    }

    /// Asks, and says what was done.
    ///
    /// # Errors
    /// What is refused, or why there is no answer.
    pub async fn tell(&self, request: Request, done: &str) -> Result<(), Failure> {
        let reply = self.ask(request).await?;
        self.out.done(done, &reply)
    }

    /// Sees that none of these ids is that of a key of the other kind, before anything is done to any of them. One that there
    /// is not is left to the command that follows.
    ///
    /// # Errors
    /// `NOSUCH` for a key of the other kind, what is refused, or why there is no answer.
    pub async fn expect_type(&self, ids: &[String], kind: Kind) -> Result<(), Failure> {
        for id in ids {
            match self.ask(self.request("KG.GETKEY").word(id)).await {
                Err(failure) if matches!(failure.code(), Some("NOSUCH" | "NOSTORE")) => {}
                record => kind.expect(&record?)?,
            }
        }
        Ok(())
    }

    /// Asks for a change of fields, and says which changed.
    ///
    /// # Errors
    /// What is refused, or why there is no answer.
    pub async fn change(&self, request: Request) -> Result<(), Failure> {
        let reply = self.ask(request).await?;
        let fields: Vec<&str> = reply.as_array().into_iter().flatten().filter_map(Json::as_str).collect();
        let done =
            if fields.is_empty() { "nothing changed".to_owned() } else { format!("changed {}", fields.join(", ")) };
        self.out.done(&done, &reply)
    }

    /// Repeats a command that does a part at a time until it answers 0; adds up what it answers, which stands also if it fails half
    /// way.
    ///
    /// # Errors
    /// What is refused, or why there is no answer.
    pub async fn until_none(&self, request: Request, all: &mut u64) -> Result<(), Failure> {
        loop {
            match self.server.ask(request.command()).await?.as_u64() {
                Some(0) => return Ok(()),
                Some(some) => *all += some,
                None => return Err(Failure::Strange("no number")),
            }
        }
    }

    /// Deletes the keys of these ids; adds up how many there were, which stands also if it fails half way.
    ///
    /// # Errors
    /// What is refused, or why there is no answer.
    pub async fn delete_keys<T: ToRedisArgs>(&self, ids: &[T], deleted: &mut u64) -> Result<(), Failure> {
        for ids in ids.chunks(DELETED) {
            let reply = self.ask(self.request("KG.DELKEY").words(ids)).await?;
            *deleted += reply.as_u64().ok_or(Failure::Strange("no number"))?;
        }
        Ok(())
    }

    /// All key records that filters fit.
    ///
    /// # Errors
    /// What is refused, or why there is no answer.
    pub async fn list_keys(&self, filters: &impl Filters) -> Result<Vec<Json>, Failure> {
        self.pages_by_id(|| filters.add_all(self.request("KG.LISTKEYS")), None).await
    }

    /// How many key records filters fit: where they are too many for the module to look at in one call, page by page.
    ///
    /// # Errors
    /// What is refused, or why there is no answer.
    pub async fn count_keys(&self, filters: &impl Filters) -> Result<usize, Failure> {
        match self.ask(filters.add_all(self.request("KG.COUNTKEYS"))).await {
            Err(failure) if failure.code() == Some("TOOMANY") => Ok(self.list_keys(filters).await?.len()),
            count => {
                let count = count?.as_u64().and_then(|count| count.try_into().ok());
                count.ok_or(Failure::Strange("no number"))
            }
        }
    }

    /// All maps of a listing that goes on AFTER an id, or the first so many.
    ///
    /// # Errors
    /// What is refused, or why there is no answer.
    pub async fn pages_by_id(&self, request: impl Fn() -> Request, max: Option<usize>) -> Result<Vec<Json>, Failure> {
        let mut all = Vec::new();
        let mut after = Json::from(0);
        loop {
            let Some(count) = next_page(max, all.len()) else { return Ok(all) };
            let request = request().word("AFTER").word(after.to_string()).word("COUNT").word(count);
            let mut page = array(self.ask(request).await?)?;
            let full = page.len() == count;
            match page.last() {
                // A page that had to end before it was full says where.
                Some(last) if last.get("after").is_some() && last.get("id").is_none() => {
                    after = of(last, "after").clone();
                    page.pop();
                    all.append(&mut page);
                    continue;
                }
                Some(last) => after = of(last, "id").clone(),
                None => return Ok(all),
            }
            all.append(&mut page);
            if !full {
                return Ok(all);
            }
        }
    }

    /// All maps of a sorted listing, or the first so many.
    ///
    /// # Errors
    /// What is refused, or why there is no answer.
    pub async fn pages_by_offset(
        &self,
        request: impl Fn() -> Request,
        max: Option<usize>,
    ) -> Result<Vec<Json>, Failure> {
        let mut all = Vec::new();
        loop {
            let Some(count) = next_page(max, all.len()) else { return Ok(all) };
            let mut page = array(self.ask(request().word("LIMIT").word(all.len()).word(count)).await?)?;
            let full = page.len() == count;
            all.append(&mut page);
            if !full {
                return Ok(all);
            }
        }
    }

    /// All maps of a listing that goes on from a cursor, or the first so many.
    ///
    /// # Errors
    /// What is refused, or why there is no answer.
    pub async fn pages_by_cursor(
        &self,
        request: impl Fn() -> Request,
        max: Option<usize>,
    ) -> Result<Vec<Json>, Failure> {
        let mut all = Vec::new();
        if max == Some(0) {
            return Ok(all);
        }
        let mut cursor: Option<String> = None;
        loop {
            let reply = self.ask(request().option("CURSOR", cursor.as_deref())).await?;
            let Some([next, page]) = reply.as_array().map(Vec::as_slice) else {
                return Err(Failure::Strange("no page"));
            };
            all.append(&mut array(page.clone())?);
            if max.is_some_and(|max| all.len() >= max) {
                all.truncate(max.unwrap_or_default());
                return Ok(all);
            }
            match next.as_str() {
                Some("0") => return Ok(all),
                Some(next) => cursor = Some(next.to_owned()),
                None => return Err(Failure::Strange("no cursor")),
            }
        }
    }
}

/// How many maps the next page is to have after so many; none, if these are enough.
fn next_page(max: Option<usize>, so_far: usize) -> Option<usize> {
    let count = max.map_or(PAGE, |max| PAGE.min(max.saturating_sub(so_far)));
    (count > 0).then_some(count)
}

fn array(reply: Json) -> Result<Vec<Json>, Failure> {
    match reply {
        Json::Array(values) => Ok(values),
        _ => Err(Failure::Strange("no list")),
    }
}
