//! Whether what cannot be undone is wanted: asked of whoever sits at the terminal, on standard error.

use std::io::{self, IsTerminal as _, Write as _};

use crate::failure::Failure;

/// Sees that there is somebody to ask.
///
/// # Errors
/// [`Failure::Usage`] without a terminal: a script has to say beforehand that it means it.
pub fn expect_somebody() -> Result<(), Failure> {
    if io::stdin().is_terminal() && io::stderr().is_terminal() {
        return Ok(());
    }
    Err(Failure::Usage("without a terminal to be asked at, --match and --all delete with --yes only".to_owned()))
}

/// Asks; whatever is not yes is no.
///
/// # Errors
/// [`Failure::Answered`] if it is not wanted, or there is no answer.
pub fn ask(question: &str) -> Result<(), Failure> {
    let mut terminal = io::stderr().lock();
    write!(terminal, "{question} [y/N] ")?;
    terminal.flush()?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    if matches!(answer.trim().to_lowercase().as_str(), "y" | "yes") {
        return Ok(());
    }
    writeln!(terminal, "Nothing is deleted.")?;
    Err(Failure::Answered)
}
