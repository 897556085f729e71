//! What shells and `man` want to know of the command line.

use std::io::{self, Write as _};

use clap::{Args, Command, CommandFactory as _};
use clap_complete::Shell;

use crate::cli::Cli;
use crate::failure::Failure;

/// Completions of a shell.
#[derive(Debug, Args)]
pub struct Completions {
    /// The shell
    shell: Shell,
}

/// A man page.
#[derive(Debug, Args)]
pub struct Man {
    /// Of this command, such as `key new`; without it of the program
    command: Vec<String>,
}

impl Completions {
    /// Prints them.
    ///
    /// # Errors
    /// What standard output refuses.
    pub fn print(&self) -> Result<(), Failure> {
        let mut text = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "keyguard", &mut text);
        Ok(io::stdout().lock().write_all(&text)?)
    }
}

impl Man {
    /// Prints it.
    ///
    /// # Errors
    /// No such command; what standard output refuses.
    pub fn print(&self) -> Result<(), Failure> {
        let mut root = Cli::command();
        root.build();
        let mut command: &Command = &root;
        for name in &self.command {
            let none = || Failure::Usage(format!("there is no command {:?}", self.command.join(" ")));
            command = command.find_subcommand(name).ok_or_else(none)?;
        }
        let mut text = Vec::new();
        clap_mangen::Man::new(command.clone()).render(&mut text)?;
        Ok(io::stdout().lock().write_all(&text)?)
    }
}
