//! A store of keyguard as a SQLite file, and the files of the two Python packages that it succeeds.
//!
//! A snapshot has the tables `organizations`, `api_keys` and `usage_logs` of `keyguard_python` 0.3.0 and `keystore` of
//! `simple_keystore` 0.10.0, with exactly their columns, so that those packages read it as their own; and tables of our own, whose
//! names begin with `keyguard_`, for what those cannot hold. Of our own tables, the column `packed` is what an import believes; the
//! readable columns beside it are for people, as in the hashes of a store.
//!
//! The crate knows files and SQLite, and neither Redis nor the keyring: secrets come and go sealed, or as tokens of Fernet.
#![forbid(unsafe_code)]

pub mod file;
mod foreign;
pub mod item;
mod own;
pub mod read;
mod schema;
mod time;
mod uuid;
pub mod write;
