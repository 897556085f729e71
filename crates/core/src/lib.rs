//! The decisions of keyguard: pure functions over plain values.
//!
//! Nothing here knows Redis, reads a clock, draws a random number or touches a file: the instant, the nonce and the bytes
//! come in as arguments, so that everything can be tested against a naive model and replayed from a replication stream.
#![forbid(unsafe_code)]

pub mod address;
pub mod allowed;
pub mod args;
pub mod asked;
mod codec;
pub mod cooling;
mod days;
pub mod digest;
pub mod effect;
pub mod error;
pub mod failures;
pub mod fernet;
pub mod gate;
mod interned;
pub mod ip;
pub mod keyring;
pub mod limit;
pub mod limiter;
pub mod listing;
pub mod meters;
pub mod names;
pub mod parse;
pub mod path;
pub mod pool;
pub mod quota;
pub mod record;
pub mod scope;
pub mod secret;
pub mod selection;
pub mod token;
pub mod usage;
pub mod vault;
pub mod waiting;
pub mod window;
pub mod zone;

pub use error::{Error, Result};
