//! Questions, to a terminal or to whatever stands in for one. What is typed hidden leaves no terminal behind that hides
//! what follows.

use std::io::{self, BufRead, IsTerminal, Write};
use std::process;
use std::sync::Once;

use rustix::termios::{self, OptionalActions, Termios};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task;
use zeroize::Zeroizing;

use crate::failure::Failure;

const NO_TEXT: &str = "That is no UTF-8. Once more:";

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

/// A line, without blanks around it. What is no UTF-8 is asked for again.
pub fn line(question: &str) -> Result<String, Stop> {
    loop {
        let line = raw_line(question)?;
        match str::from_utf8(&line) {
            Ok(text) => return Ok(text.trim().to_owned()),
            Err(_) => say(NO_TEXT)?,
        }
    }
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
pub fn secret(question: &str) -> Result<Zeroizing<Vec<u8>>, Stop> {
    while io::stdin().is_terminal() {
        match hidden(question) {
            Ok(secret) => return Ok(Zeroizing::new(secret.as_bytes().to_vec())),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => say(NO_TEXT)?,
            Err(error) => return Err(error.into()),
        }
    }
    let mut secret = raw_line(question)?;
    while secret.last().is_some_and(|last| matches!(last, b'\r' | b'\n')) {
        secret.pop();
    }
    say("")?;
    Ok(secret)
}

/// A line for people.
pub fn say(text: &str) -> Result<(), Stop> {
    show_bytes(text.as_bytes())
}

/// Shows a secret, byte by byte as it is.
pub fn show_bytes(secret: &[u8]) -> Result<(), Stop> {
    let mut output = io::stdout().lock();
    output.write_all(secret)?;
    output.write_all(b"\n")?;
    Ok(output.flush()?)
}

fn raw_line(question: &str) -> Result<Zeroizing<Vec<u8>>, Stop> {
    let mut output = io::stdout().lock();
    output.write_all(question.as_bytes())?;
    output.flush()?;
    let mut line = Zeroizing::new(Vec::new());
    // While somebody thinks, the connection is to be kept alive by others.
    let read = task::block_in_place(|| io::stdin().lock().read_until(b'\n', &mut line))?;
    if read == 0 { Err(Stop::Leave) } else { Ok(line) }
}

/// A line that is not shown, without its end. It needs a terminal, and a runtime.
///
/// # Errors
/// What the terminal refuses; of the kind `InvalidData` for what is no UTF-8.
pub fn hidden(question: &str) -> io::Result<Zeroizing<String>> {
    static WATCHED: Once = Once::new();
    let as_it_was = termios::tcgetattr(io::stdin())?;
    let mut watched = Ok(());
    WATCHED.call_once(|| watched = restore_at_a_signal(&as_it_was));
    watched?;
    match task::block_in_place(|| rpassword::prompt_password(question)) {
        // It has put the terminal right, and sent the signal of Ctrl-C to this process, in which another task is about
        // to hear it.
        Err(error) if error.kind() == io::ErrorKind::Interrupted => end(SignalKind::interrupt()),
        typed => typed.map(Zeroizing::new),
    }
}

/// From now on, a signal that ends the process gives the terminal back as it was first.
fn restore_at_a_signal(as_it_was: &Termios) -> io::Result<()> {
    for kind in [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup(), SignalKind::quit()] {
        let mut told = signal(kind)?;
        let as_it_was = as_it_was.clone();
        tokio::spawn(async move {
            told.recv().await;
            // What can be done about a terminal that is gone? Nothing.
            let _ = termios::tcsetattr(io::stdin(), OptionalActions::Now, &as_it_was);
            end(kind)
        });
    }
    Ok(())
}

/// Ends the process as a shell has it of one that this signal ended.
fn end(kind: SignalKind) -> ! {
    let _ = writeln!(io::stderr());
    process::exit(128 + kind.as_raw_value())
}
