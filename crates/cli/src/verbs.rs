//! The verbs: each is its grammar, and one or a few commands of the module. What their options take is handed on as it is: the
//! module checks it, and says what is wrong.

pub mod complete;
mod confirm;
mod console;
pub mod ip;
pub mod key;
pub mod keyguard_python;
pub mod keyring;
pub mod limit;
mod options;
pub mod org;
mod progress;
mod request;
mod secret;
pub mod snapshot;
pub mod store;
pub mod usage;
pub mod vault;

pub use console::{Console, Kind};
