//! What a snapshot is made of, one row at a time, and what is read from the files of others.

use keyguard_core::ip::{By, Kind, Strikes};

/// A piece of a snapshot. They are written, and come back, in the order of the variants: the header first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// What holds of the store as a whole.
    Header(Header),
    /// An organization.
    Org(Org),
    /// A key record.
    Key(Key),
    /// An address rule.
    Rule(Rule),
    /// The state of an account that several vault keys draw on.
    Account {
        /// Its name.
        name: String,
        /// [`Meters`](keyguard_core::meters::Meters), encoded.
        meters: Vec<u8>,
    },
    /// A row of the usage log.
    Usage(Usage),
    /// What happened in an hour.
    Hour {
        /// Its beginning, in unix milliseconds.
        hour_ms: u64,
        /// How much.
        counts: Counts,
    },
    /// What a key did in a day.
    Day {
        /// The id of its record.
        key: u64,
        /// Days since 1970-01-01, in the time zone of the store.
        day: i32,
        /// How much.
        counts: Counts,
    },
    /// What happened in all: of a key, or with a code; None is what was asked without either.
    Total {
        /// The id of a record.
        key: Option<u64>,
        /// A code of AUTH, in capitals.
        code: Option<String>,
        /// How much.
        counts: Counts,
    },
    /// A native value as it is encoded, by its name in the store behind `{acme}:`.
    Value {
        /// For example `stats:all`.
        name: String,
        /// Its encoding.
        packed: Vec<u8>,
    },
}

/// What holds of a store as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// The version of keyguard that wrote it.
    pub version: String,
    /// The store's name.
    pub store: String,
    /// When the store was created, in unix milliseconds.
    pub created_ms: u64,
    /// The id that its next record gets.
    pub next_id: u64,
    /// Its time zone, if one was set.
    pub tz: Option<String>,
    /// How many wrong keys block an address, if that was set.
    pub ip_threshold: Option<u64>,
    /// When the snapshot was begun, in unix milliseconds.
    pub begun_ms: u64,
}

/// An organization.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Org {
    /// Its id.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// [`OrgRecord`](keyguard_core::record::OrgRecord), packed.
    pub packed: Vec<u8>,
    /// [`Meters`](keyguard_core::meters::Meters), encoded, if it has any.
    pub meters: Option<Vec<u8>>,
}

/// A key record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// Its id.
    pub id: u64,
    /// [`Record`](keyguard_core::record::Record), packed; the secret of a vault key is sealed in it.
    pub packed: Vec<u8>,
    /// What a client keeps with it: a JSON object.
    pub meta: Option<String>,
    /// What happened to it, if anything did: of an API key its [`Meters`](keyguard_core::meters::Meters), encoded; of a vault key what
    /// its pool [remembers](keyguard_core::pool::Pool::remembered).
    pub meters: Option<Vec<u8>>,
    /// When it was last used, in unix milliseconds.
    pub last_used_ms: Option<u64>,
    /// What the old package knows it by, if it can: the secret of a vault key under a Fernet key; the hash of an API key that came from
    /// there and was not used since. It is only written, into the tables of those packages.
    pub token: Option<String>,
}

/// An address rule: see [`keyguard_core::ip::Rule`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "they are documented there")]
pub struct Rule {
    pub net: String,
    pub kind: Kind,
    pub path: Option<String>,
    pub until_ms: Option<u64>,
    pub reason: String,
    pub by: By,
    pub strikes: Option<Strikes>,
}

/// A row of the usage log.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Usage {
    /// When, in unix milliseconds.
    pub at_ms: u64,
    /// The number of the row within its millisecond.
    pub seq: u64,
    /// The id of the key's record; 0 for none.
    pub key: u64,
    /// The code of a refusal by AUTH, in capitals.
    pub code: Option<String>,
    /// The status of the response.
    pub status: Option<u16>,
    /// How long it took, in milliseconds.
    pub latency_ms: Option<u32>,
    /// The method.
    pub method: Option<String>,
    /// The path.
    pub path: Option<String>,
    /// The address.
    pub ip: Option<String>,
}

/// How much happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Calls that AUTH let in.
    pub requests: u64,
    /// Calls that it refused.
    pub refused: u64,
    /// Responses that were logged.
    pub logged: u64,
    /// Those of them with a status of 400 or more.
    pub errors: u64,
    /// How long those logged took in all, in milliseconds.
    pub latency_ms: u64,
}

/// A row of a file, read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Row {
    /// Of a snapshot.
    Item(Item),
    /// An organization of `keyguard_python`.
    ForeignOrg(ForeignOrg),
    /// An API key of `keyguard_python`.
    ForeignKey(Box<ForeignKey>),
    /// A row of its log.
    ForeignUse {
        /// The `id` of the key.
        key: String,
        /// The row, with `key` 0 and `seq` 0.
        usage: Usage,
    },
    /// A key of `simple_keystore`.
    ForeignSecret(Box<ForeignSecret>),
    /// A row that cannot be taken over.
    Skipped(Skipped),
}

/// A row that cannot be taken over, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Skipped {
    /// Its table.
    pub table: &'static str,
    /// Its rowid.
    pub rowid: i64,
    /// What is wrong with it; never what stands in it.
    pub why: &'static str,
}

/// An organization of `keyguard_python`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForeignOrg {
    /// Its rowid, for reports.
    pub rowid: i64,
    /// Its `id` there.
    pub id: String,
    /// Its name, which need not be unique there.
    pub name: String,
    /// Whether its keys work.
    pub is_active: bool,
    /// In unix milliseconds.
    pub created_ms: Option<u64>,
}

/// An API key of `keyguard_python`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForeignKey {
    /// Its rowid, for reports.
    pub rowid: i64,
    /// Its `id` there.
    pub id: String,
    /// The `id` of its organization there.
    pub org: String,
    /// What people call it.
    pub label: String,
    /// The visible beginning of the raw key.
    pub start: String,
    /// SHA-256 of the raw key followed by the old secret key.
    pub hash: [u8; 32],
    /// Whether it works.
    pub is_active: bool,
    /// What it may do.
    pub scopes: Vec<String>,
    /// Requests a minute; 0 lets nothing in.
    pub per_minute: u64,
    /// Requests a month, which the old package stored and never enforced.
    pub per_month: Option<u64>,
    /// In unix milliseconds.
    pub created_ms: Option<u64>,
    /// In unix milliseconds.
    pub expires_ms: Option<u64>,
    /// In unix milliseconds.
    pub last_used_ms: Option<u64>,
}

/// A key of `simple_keystore`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForeignSecret {
    /// Its `id` there, which is its rowid.
    pub id: i64,
    /// Its name.
    pub name: String,
    /// The secret, as a token of Fernet.
    pub token: String,
    /// In unix milliseconds; None is never.
    pub expires_ms: Option<u64>,
    /// Whether it may be used.
    pub is_active: bool,
    /// The batch that it came in.
    pub batch: Option<String>,
    /// Where it came from.
    pub source: Option<String>,
    /// The login that it belongs to.
    pub login: Option<String>,
    /// In unix milliseconds.
    pub created_ms: Option<u64>,
}
