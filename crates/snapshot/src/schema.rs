//! The tables of a snapshot.

/// The format of our own tables. A reader takes those up to its own.
pub const FORMAT: i64 = 1;

/// `KGsn`, in the header of the file: what `file` and other programs know it by.
pub const APPLICATION_ID: i64 = 0x4b47_736e;

/// The tables of `keyguard_python` 0.3.0, to the letter as SQLAlchemy 2.1 makes them, and that of `simple_keystore` 0.10.0, whose code
/// relies on the order of its columns.
pub const FOREIGN: &str = "CREATE TABLE organizations (
\tid VARCHAR(36) NOT NULL, 
\tname VARCHAR NOT NULL, 
\tstatus VARCHAR, 
\tcreated_at DATETIME DEFAULT CURRENT_TIMESTAMP, 
\tPRIMARY KEY (id)
);
CREATE TABLE api_keys (
\tid VARCHAR(36) NOT NULL, 
\torg_id VARCHAR(36) NOT NULL, 
\tlabel VARCHAR NOT NULL, 
\tprefix VARCHAR NOT NULL, 
\tkey_hash VARCHAR NOT NULL, 
\tis_active BOOLEAN, 
\tscopes JSON, 
\trate_limit_per_minute INTEGER, 
\tmonthly_limit BIGINT, 
\tcreated_at DATETIME DEFAULT CURRENT_TIMESTAMP, 
\texpires_at DATETIME, 
\tlast_used_at DATETIME, 
\tPRIMARY KEY (id), 
\tFOREIGN KEY(org_id) REFERENCES organizations (id)
);
CREATE UNIQUE INDEX ix_api_keys_key_hash ON api_keys (key_hash);
CREATE TABLE usage_logs (
\tid VARCHAR(36) NOT NULL, 
\tkey_id VARCHAR(36) NOT NULL, 
\tpath VARCHAR NOT NULL, 
\tmethod VARCHAR NOT NULL, 
\tstatus_code INTEGER NOT NULL, 
\tlatency_ms INTEGER NOT NULL, 
\tip_address VARCHAR NOT NULL, 
\ttimestamp DATETIME DEFAULT CURRENT_TIMESTAMP, 
\tPRIMARY KEY (id), 
\tFOREIGN KEY(key_id) REFERENCES api_keys (id)
);
CREATE TABLE keystore (                 id INTEGER PRIMARY KEY,                 name TEXT NOT NULL,                 \
expiration_in_sse INTEGER,                 active INTEGER DEFAULT 1,                 batch TEXT,                 \
source TEXT,                 login TEXT,                 encrypted_key TEXT UNIQUE,                 \
created_at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP,                 \
updated_at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP             );
";

/// Our own tables. Times are in unix milliseconds, as in the hashes of a store; `packed` and `meters` are what an import believes.
pub const OWN: &str = "
CREATE TABLE keyguard_meta (key TEXT NOT NULL PRIMARY KEY, value);
CREATE TABLE keyguard_orgs (id INTEGER PRIMARY KEY, name TEXT NOT NULL, status TEXT, created_ms INTEGER, limits TEXT, quotas TEXT,
    packed BLOB NOT NULL, meters BLOB);
CREATE INDEX keyguard_orgs_name ON keyguard_orgs (name);
CREATE TABLE keyguard_keys (id INTEGER PRIMARY KEY, type TEXT, name TEXT, org TEXT, label TEXT, status TEXT, created_ms INTEGER,
    expires_ms INTEGER, last_used_ms INTEGER, start TEXT, scopes TEXT, limits TEXT, quotas TEXT, allowed TEXT,
    rotated_until_ms INTEGER, source TEXT, login TEXT, batch TEXT, account TEXT, weight INTEGER, shared TEXT, rejected TEXT,
    hint TEXT, meta TEXT, packed BLOB NOT NULL, meters BLOB);
CREATE TABLE keyguard_address_rules (id INTEGER PRIMARY KEY, net TEXT NOT NULL, kind TEXT NOT NULL, path TEXT, until_ms INTEGER,
    reason TEXT NOT NULL, made_by TEXT NOT NULL, strikes INTEGER, strikes_until_ms INTEGER);
CREATE TABLE keyguard_accounts (id INTEGER PRIMARY KEY, name TEXT NOT NULL, meters BLOB NOT NULL);
CREATE TABLE keyguard_usage (id INTEGER PRIMARY KEY, at_ms INTEGER NOT NULL, seq INTEGER NOT NULL, key_id INTEGER NOT NULL, code TEXT,
    status INTEGER, latency_ms INTEGER, method TEXT, path TEXT, ip TEXT);
CREATE TABLE keyguard_usage_hours (id INTEGER PRIMARY KEY, hour_ms INTEGER NOT NULL, requests INTEGER NOT NULL,
    refused INTEGER NOT NULL, logged INTEGER NOT NULL, errors INTEGER NOT NULL, latency_ms INTEGER NOT NULL);
CREATE TABLE keyguard_usage_days (id INTEGER PRIMARY KEY, key_id INTEGER NOT NULL, day INTEGER NOT NULL, date TEXT,
    requests INTEGER NOT NULL, refused INTEGER NOT NULL, logged INTEGER NOT NULL, errors INTEGER NOT NULL,
    latency_ms INTEGER NOT NULL);
CREATE TABLE keyguard_usage_totals (id INTEGER PRIMARY KEY, key_id INTEGER, code TEXT, requests INTEGER NOT NULL,
    refused INTEGER NOT NULL, logged INTEGER NOT NULL, errors INTEGER NOT NULL, latency_ms INTEGER NOT NULL);
CREATE TABLE keyguard_values (id INTEGER PRIMARY KEY, name TEXT NOT NULL, packed BLOB NOT NULL);
";

/// The codes of AUTH by their numbers in the UUIDs of the usage log, from 1 on. New ones come at the end.
pub const CODES: [&str; 10] = [
    "VALID",
    "IP_BLOCKED",
    "NOT_FOUND",
    "DISABLED",
    "EXPIRED",
    "ORG_SUSPENDED",
    "IP_NOT_ALLOWED",
    "INSUFFICIENT_SCOPE",
    "RATE_LIMITED",
    "QUOTA_EXCEEDED",
];

/// The largest value that is written and read of a snapshot, in bytes: the windows of the busiest record are below it.
pub const MAX_VALUE_BYTES: usize = 64 * 1024 * 1024;
