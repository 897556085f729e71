//! What is typed without being shown, on a terminal that shows it again whatever ends the process.

use std::io::{self, Write};
use std::process;
use std::sync::Once;

use rustix::termios::{self, OptionalActions, Termios};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task;
use zeroize::Zeroizing;

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
        // It has put the terminal right, and sent the signal of Ctrl-C to this process, in which another task is about to hear it.
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
