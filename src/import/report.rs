//! What an import is told to do, and what is told of it.

use std::ffi::c_int;

use keyguard_snapshot::file::FileName;
use keyguard_snapshot::read::Format;

use crate::worker::Failure;

/// Of how many rows is told what became of them, beside the counts.
const MAX_TOLD: usize = 100;

/// What is to be read, and where it belongs.
#[derive(Debug, Clone)]
pub struct Order {
    /// The database that the store is in, or will be.
    pub database: c_int,
    /// The store.
    pub store: String,
    /// The file.
    pub file: FileName,
    /// What the file is.
    pub format: Format,
    /// Whether it is only told what would be done.
    pub check: bool,
    /// Whether what is there already becomes what the file says, and is not left as it is.
    pub replace: bool,
    /// The label of the pepper under which the API keys of `keyguard_python` were digested.
    pub pepper: Option<String>,
    /// The label of the Fernet key of a `simple_keystore`.
    pub fernet: Option<String>,
}

/// How an import stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It is at work.
    Running,
    /// It is through.
    Done,
    /// It ended before it was through.
    Failed,
    /// It was ended.
    Stopped,
}

impl State {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Stopped => "stopped",
        }
    }
}

/// What is imported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// An organization.
    Org,
    /// An API key.
    ApiKey,
    /// A vault key.
    VaultKey,
    /// An address rule.
    Rule,
    /// The state of an account.
    Account,
    /// A line of the usage log.
    Usage,
}

impl What {
    /// All there is, in the order of the counts.
    pub const ALL: [Self; 6] = [Self::Org, Self::ApiKey, Self::VaultKey, Self::Rule, Self::Account, Self::Usage];

    /// What STATUS calls them.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Org => "organizations",
            Self::ApiKey => "api_keys",
            Self::VaultKey => "vault_keys",
            Self::Rule => "address_rules",
            Self::Account => "accounts",
            Self::Usage => "usage",
        }
    }
}

/// What is told of a row. It never says what stands in it.
#[derive(Debug, Clone)]
pub struct Told {
    /// Its table.
    pub table: &'static str,
    /// Its rowid; of our own tables that of records is the id.
    pub rowid: i64,
    /// What became of it, and why.
    pub why: String,
}

/// How far an import has come.
#[derive(Debug, Clone)]
pub struct Report {
    /// How it stands.
    pub state: State,
    /// What it was told.
    pub order: Order,
    /// Rows that were looked at.
    pub rows: u64,
    /// Rows of the file.
    pub total: u64,
    /// How many were added, or became what the file says, in the order of [`What::ALL`]; with CHECK, how many would.
    pub imported: [u64; What::ALL.len()],
    /// How many of them were there already.
    pub replaced: u64,
    /// How many rows were left out.
    pub skipped: u64,
    /// Why the first of them were, and what there is to know of others.
    pub told: Vec<Told>,
    /// Why it makes no progress now.
    pub waits: Option<String>,
    /// Why it failed.
    pub failure: Option<Failure>,
    /// In unix milliseconds.
    pub begun_ms: u64,
    /// In unix milliseconds.
    pub ended_ms: Option<u64>,
}

impl Report {
    pub(super) fn tell(&mut self, table: &'static str, rowid: i64, why: impl Into<String>) {
        if self.told.len() < MAX_TOLD {
            self.told.push(Told { table, rowid, why: why.into() });
        }
    }

    pub(super) fn skip(&mut self, table: &'static str, rowid: i64, why: impl Into<String>) {
        self.skipped += 1;
        self.tell(table, rowid, why);
    }

    /// Takes over all but what is told of rows.
    pub(super) fn come_to(&mut self, now: &Self) {
        (self.state, self.rows, self.total) = (now.state, now.rows, now.total);
        (self.imported, self.replaced, self.skipped) = (now.imported, now.replaced, now.skipped);
        self.waits.clone_from(&now.waits);
    }

    pub(super) fn is_of(&self, database: c_int, store: &str) -> bool {
        self.order.database == database && self.order.store == store
    }
}

/// What INFO tells of imports.
#[derive(Debug, Clone, Copy, Default)]
pub struct Summary {
    /// Whether one is at work.
    pub running: bool,
    /// Rows that the one at work, or the last one, has looked at.
    pub rows: u64,
    /// Rows that it skipped.
    pub skipped: u64,
    /// How many have ended well since the module was loaded.
    pub done: u64,
    /// How many have not.
    pub failed: u64,
}
