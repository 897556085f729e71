//! A terminal, with a program in it and somebody who types.

use std::{
    io::{Read, Write},
    num::NonZero,
    sync::{Arc, Mutex},
    thread,
};

use portable_pty::{Child, CommandBuilder, MasterPty, PtySize, native_pty_system};

use super::{Server, contains, eventually, expect, tool};

/// The terminal's size at first, in rows and columns.
const SIZE: (u16, u16) = (50, 120);

/// A program of the project's command line that has a terminal of its own.
pub struct Terminal {
    master: Box<dyn MasterPty + Send>,
    keyboard: Box<dyn Write + Send>,
    child: Box<dyn Child + Send + Sync>,
    shown: Arc<Mutex<Shown>>,
    /// Up to where [`Terminal::expect`] has looked.
    read: usize,
}

struct Shown {
    /// Every byte since the beginning.
    bytes: Vec<u8>,
    screen: vt100::Parser,
}

impl Terminal {
    /// Starts the program as [`tool`] does, with these arguments.
    pub fn start(server: &Server, arguments: &[&str]) -> Self {
        let (rows, cols) = SIZE;
        let pair = native_pty_system().openpty(size(rows, cols)).expect("a terminal can be had");
        let described = tool(server);
        let mut command = CommandBuilder::new(described.get_program());
        command.args(arguments);
        command.cwd(server.directory());
        for (name, value) in described.get_envs() {
            command.env(name, value.unwrap_or_default());
        }
        command.env("TERM", "xterm-256color");
        let child = pair.slave.spawn_command(command).expect("it runs");
        let mut output = pair.master.try_clone_reader().unwrap();
        let keyboard = pair.master.take_writer().unwrap();
        let shown =
            Arc::new(Mutex::new(Shown { bytes: Vec::new(), screen: vt100::Parser::new(some(rows), some(cols), 0) }));
        let kept = Arc::clone(&shown);
        // It ends with the program, whose end closes the terminal.
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = output.read(&mut buffer) {
                let mut shown = kept.lock().unwrap();
                shown.bytes.extend_from_slice(&buffer[..length]);
                shown.screen.process(&buffer[..length]);
            }
        });
        Self { master: pair.master, keyboard, child, shown, read: 0 }
    }

    /// Types, without a line's end.
    pub fn keys(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).expect("the terminal takes keys");
        self.keyboard.flush().unwrap();
    }

    /// Types a line.
    pub fn line(&mut self, text: &str) {
        self.keys(&format!("{text}\r"));
    }

    /// Waits until this comes, after all that was waited for before.
    pub fn expect(&mut self, text: &str) {
        self.read += eventually(&format!("{text:?} on the terminal"), || {
            let shown = self.shown.lock().unwrap();
            let new = &shown.bytes[self.read..];
            let found = new.windows(text.len()).position(|window| window == text.as_bytes());
            found.map(|at| at + text.len()).ok_or_else(|| String::from_utf8_lossy(new).into_owned())
        });
    }

    /// Waits until the question comes, and answers it.
    pub fn answer(&mut self, question: &str, answer: &str) {
        self.expect(question);
        self.line(answer);
    }

    /// Waits until the question comes and nothing that is typed is shown any more; then answers it.
    pub fn answer_hidden(&mut self, question: &str, answer: &str) {
        self.expect(question);
        eventually("the terminal hiding what is typed", || {
            expect(!self.shows_what_is_typed(), || "it shows it".to_owned())
        });
        self.line(answer);
    }

    /// Whether the terminal itself shows what is typed, as it does for programs that ask for nothing else.
    pub fn shows_what_is_typed(&self) -> bool {
        const ECHO: u32 = 0o10;
        self.master.get_termios().expect("a terminal has modes").local_flags.bits() & ECHO != 0
    }

    /// Whether this was ever shown.
    pub fn has_shown(&self, text: &str) -> bool {
        contains(&self.shown.lock().unwrap().bytes, text.as_bytes())
    }

    /// What the screen shows now.
    pub fn screen(&self) -> String {
        self.shown.lock().unwrap().screen.screen().contents()
    }

    /// Whether the program has the screen for itself, away from what stood there before.
    pub fn is_taken(&self) -> bool {
        self.shown.lock().unwrap().screen.screen().alternate_screen()
    }

    /// Whether there is a cursor to be seen.
    pub fn has_cursor(&self) -> bool {
        !self.shown.lock().unwrap().screen.screen().hide_cursor()
    }

    /// Waits until the screen is as wanted.
    pub fn shows(&self, what: &str, wanted: impl Fn(&str) -> bool) {
        eventually(what, || {
            let screen = self.screen();
            expect(wanted(&screen), || screen)
        });
    }

    /// Another size, as when a window is dragged.
    pub fn resize(&self, rows: u16, cols: u16) {
        self.shown.lock().unwrap().screen.screen_mut().set_size(some(rows), some(cols));
        self.master.resize(size(rows, cols)).expect("the terminal can be resized");
    }

    /// The program's process.
    pub fn id(&self) -> u32 {
        self.child.process_id().expect("it runs")
    }

    /// Waits for the program's end; its exit code.
    pub fn end(&mut self) -> u32 {
        eventually("the program's end", || match self.child.try_wait().unwrap() {
            Some(status) => Ok(status.exit_code()),
            None => Err(self.screen()),
        })
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn some(length: u16) -> NonZero<u16> {
    NonZero::new(length).expect("a terminal has a size")
}

fn size(rows: u16, cols: u16) -> PtySize {
    PtySize { rows, cols, pixel_width: 0, pixel_height: 0 }
}
