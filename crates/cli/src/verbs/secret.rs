//! Secrets come from standard input, or are asked for without echo: never as an argument, which others see and shells remember.

use std::io::{self, IsTerminal as _, Read as _};

use zeroize::Zeroizing;

use crate::failure::Failure;
use crate::prompt;

/// More than the module takes.
const MAX_BYTES: u64 = 1 << 20;

/// A secret, without the end of its line.
///
/// # Errors
/// None is given, or it cannot be read.
pub fn read(what: &str) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let stdin = io::stdin();
    let mut secret = Zeroizing::new(Vec::new());
    if stdin.is_terminal() {
        secret.extend_from_slice(prompt::hidden(&format!("{what}: "))?.as_bytes());
    } else {
        stdin.lock().take(MAX_BYTES).read_to_end(&mut secret)?;
        if secret.last() == Some(&b'\n') {
            secret.pop();
            if secret.last() == Some(&b'\r') {
                secret.pop();
            }
        }
    }
    if secret.is_empty() {
        return Err(Failure::Usage(format!("no {what} on standard input")));
    }
    Ok(secret)
}
