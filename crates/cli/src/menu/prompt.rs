//! Questions, from a terminal or from whatever stands in for one.

use std::io::{self, BufRead, IsTerminal, Write};

use tokio::task;
use zeroize::Zeroizing;

use crate::failure::Failure;

/// Why there is no answer.
pub enum Stop {
    /// The input has ended: there is nobody any more to ask.
    Leave,
    /// What went wrong.
    Failed(Failure),
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::UnexpectedEof { Self::Leave } else { Self::Failed(error.into()) }
    }
}

/// A line, without blanks around it.
pub fn line(question: &str) -> Result<String, Stop> {
    Ok(raw_line(question)?.trim().to_owned())
}

/// A line; nothing takes the default, and `-` is nothing.
pub fn with_default(question: &str, default: &str) -> Result<String, Stop> {
    let shown = if default.is_empty() { String::new() } else { format!(" [{default}]") };
    let answer = line(&format!("{question}{shown}: "))?;
    Ok(match answer.as_str() {
        "" => default.to_owned(),
        "-" => String::new(),
        _ => answer,
    })
}

/// Yes or no; what is neither is the default.
pub fn yes(question: &str, default: bool) -> Result<bool, Stop> {
    let answer = line(&format!("{question}? (yes/no) [{}]: ", if default { "yes" } else { "no" }))?;
    Ok(match answer.to_lowercase().as_str() {
        "y" | "yes" => true,
        "n" | "no" => false,
        _ => default,
    })
}

/// A secret: without echo from a terminal, else the next line, of which nothing but its end is taken away.
pub fn secret(question: &str) -> Result<Zeroizing<String>, Stop> {
    if io::stdin().is_terminal() {
        return Ok(Zeroizing::new(task::block_in_place(|| rpassword::prompt_password(question))?));
    }
    let mut secret = raw_line(question)?;
    let length = secret.trim_end_matches(['\r', '\n']).len();
    secret.truncate(length);
    println!();
    Ok(secret)
}

/// Shows a secret, byte by byte as it is.
pub fn show_bytes(secret: &[u8]) -> Result<(), Stop> {
    let mut output = io::stdout().lock();
    output.write_all(secret)?;
    output.write_all(b"\n")?;
    Ok(output.flush()?)
}

fn raw_line(question: &str) -> Result<Zeroizing<String>, Stop> {
    let mut output = io::stdout().lock();
    output.write_all(question.as_bytes())?;
    output.flush()?;
    let mut line = Zeroizing::new(String::new());
    // While somebody thinks, the connection is to be kept alive by others.
    let read = task::block_in_place(|| io::stdin().lock().read_line(&mut line))?;
    if read == 0 { Err(Stop::Leave) } else { Ok(line) }
}
