//! How answers are shown: tables for people, JSON for programs, colour on terminals alone (anstream heeds NO_COLOR).

use anstyle::{AnsiColor, Style};

use crate::failure::Failure;

const PROBLEM: Style = AnsiColor::Red.on_default().bold();

/// What went wrong, and what to do, on standard error.
pub fn show_failure(failure: &Failure) {
    anstream::eprintln!("{PROBLEM}error{PROBLEM:#}: {failure}");
    if let Some(advice) = failure.advice() {
        anstream::eprintln!("{advice}");
    }
}
