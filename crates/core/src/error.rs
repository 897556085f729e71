//! Every error that a command can answer, with its text: the one table.
//!
//! A text starts with a code that programs match on, in capitals, then says what was wrong and what is accepted. It holds
//! no byte that a client sent: such bytes may be a secret, and the server may not survive some of them.

use crate::keyring::{Fingerprint, SourceError};

/// What went wrong. [`std::fmt::Display`] gives the whole error line, code first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Too few or too many arguments; `usage` is the command's own grammar.
    #[error("ERR wrong number of arguments, usage: {usage}")]
    Arity {
        /// The grammar of the command.
        usage: &'static str,
    },
    /// An argument that cannot be what it stands for.
    #[error("ERR {what} is not valid: {accepted}")]
    Invalid {
        /// The argument's name in the command reference.
        what: &'static str,
        /// What would have been accepted.
        accepted: &'static str,
    },
    /// A word where an option was expected.
    #[error("ERR syntax error, usage: {usage}")]
    Syntax {
        /// The grammar of the command.
        usage: &'static str,
    },
    /// An option without its value.
    #[error("ERR {option} needs a value")]
    MissingValue {
        /// The option's name.
        option: &'static str,
    },
    /// An option that may be given once, given twice, or two that exclude each other.
    #[error("ERR {option} may be given only once, and not with an option that says the same in another way")]
    Repeated {
        /// The option's name.
        option: &'static str,
    },
    /// An argument longer than its maximum.
    #[error("ERR {what} is too long: at most {max} bytes")]
    TooLong {
        /// The argument's name in the command reference.
        what: &'static str,
        /// The maximum, in bytes.
        max: usize,
    },
    /// More items of one kind than a record or a command holds.
    #[error("ERR too many of {what}: at most {max}")]
    TooManyItems {
        /// What there were too many of.
        what: &'static str,
        /// The maximum.
        max: usize,
    },
    /// Something that a later version brings.
    #[error("ERR {what} is not available in this version")]
    NotYet {
        /// The option or command.
        what: &'static str,
    },
    /// A bucket name that belongs to a store's own keys.
    #[error(
        "ERR this name belongs to the keys of a store: a bucket may not be called {{store}}:key:..., :win:... and so on"
    )]
    ReservedName,
    /// An effect sent by a client instead of the replication stream or an append-only file.
    #[error("ERR this command is how servers tell each other of changes; clients may not call it")]
    InternalCommand,
    /// A key record, header or other value of ours that does not decode.
    #[error("ERR damaged {what}: changed from outside, or written by a newer version")]
    Damaged {
        /// Which of our values.
        what: &'static str,
    },
    /// A key holds another type than the command works on.
    #[error("WRONGTYPE Operation against a key holding the wrong kind of value")]
    WrongType,
    /// The key that carries a store's header holds a hash of someone else's.
    #[error("BADSTORE a hash that is not a store of keyguard stands under this name; choose another name")]
    ForeignHash,
    /// A store's name that cannot be one.
    #[error("BADSTORE a store is named with 1 to 64 of A-Z a-z 0-9 . _ -")]
    BadStore,
    /// A store that does not exist.
    #[error(
        "NOSTORE no store of this name; KG.ADDKEY, KG.ADDORG, KG.BLOCKIP, KG.ALLOWIP, KG.SETSTORE and KG.IMPORT create one"
    )]
    NoStore,
    /// A record, organization or address rule that does not exist.
    #[error("NOSUCH no such {what} in this store")]
    NoSuch {
        /// What was looked for.
        what: &'static str,
    },
    /// A name or beginning that several records share.
    #[error("NOTUNIQUE several records match; use the id")]
    NotUnique,
    /// Something that is there already.
    #[error("DUPLICATE this store already has {what}")]
    Duplicate {
        /// What there would have been two of.
        what: &'static str,
    },
    /// Something that others still refer to.
    #[error("INUSE this {what}; KG.DELKEY them first")]
    InUse {
        /// What is in use, and by what.
        what: &'static str,
    },
    /// The key of the keyring that seals and digests.
    #[error(
        "INUSE this is the newest key of the keyring, which seals and digests: add a newer one, then KG.KEYRING RELOAD"
    )]
    NewestKey,
    /// A key of the keyring without which records could not be read.
    #[error(
        "INUSE records of the stores on this server that use this key: {records}; KG.REKEY moves vault keys to the newest, API keys move when they are next found valid"
    )]
    KeyInUse {
        /// How many, in all databases.
        records: u64,
    },
    /// A keyring to be put in force that lacks a key of the one in force.
    #[error(
        "INUSE the keyring that was read lacks key {fingerprint}, which is in force: KG.KEYRING DROP first; nothing changed"
    )]
    KeyWouldGo {
        /// The key that it lacks.
        fingerprint: Fingerprint,
    },
    /// A key that the keyring does not hold.
    #[error("NOSUCH no such key in the keyring of this server; KG.KEYRING STATUS names them")]
    NoSuchKey,
    /// A keyring that could not be read while the server runs.
    #[error("ERR the keyring was not read again, what was in force stays so: {why}")]
    Unreloaded {
        /// What is wrong with it.
        why: SourceError,
    },
    /// A command that takes longer than others may be held up, where its caller cannot be made to wait.
    #[error("ERR this looks through all stores, which takes a while: not in MULTI, a script or a function")]
    MayNotWait,
    /// Work in the background, of which a server does one at a time.
    #[error("INUSE {what} is at work on this server: STATUS tells when it is done")]
    Busy {
        /// What is at work.
        what: &'static str,
    },
    /// A server that was given no folder for snapshots.
    #[error(
        "ERR there is no folder for snapshots: set keyguard.snapshot-dir in the configuration file, or give it to loadmodule"
    )]
    SnapshotsOff,
    /// More records than one call may read or change.
    #[error("TOOMANY more than {max} {what}")]
    TooMany {
        /// What there were too many of.
        what: &'static str,
        /// The maximum.
        max: usize,
    },
    /// A bucket that holds as many entries as it may.
    #[error("BUCKETFULL the bucket holds 1000000 entries; use a shorter window or claim more units at a time")]
    BucketFull,
    /// More who wait for a bucket, or in all, than there may be.
    #[error(
        "TOOMANYWAITERS 1000 wait for this bucket or pool, or in 64 different lines, or 10000 in all; try again later"
    )]
    TooManyWaiters,
    /// No keyring, or one that lacks the key of this record.
    #[error("NOKEYRING {why}")]
    NoKeyring {
        /// What is missing and how to give it.
        why: &'static str,
    },
    /// A sealed secret that does not open under the name it stands under.
    #[error("TAMPERED the sealed secret does not belong to this record, or was changed")]
    Tampered,
    /// During a slot migration, a key that may already be on the other node; after one, a key that is.
    #[error("TRYAGAIN this key is moving to another node, or has moved; try again")]
    TryAgain,
    /// A write that the server would not let through now.
    #[error("OOM command not allowed when used memory > 'maxmemory'")]
    OutOfMemory,
    /// A defect of ours; the log says where.
    #[error("ERR internal error of keyguard; the server's log says where")]
    Internal,
}

/// What the functions of this crate return.
pub type Result<T, E = Error> = std::result::Result<T, E>;
