//! `keyguard top`: what a store's server does just now, on a screen that is drawn again each second.
//!
//! [`sample`] asks the server, [`view`] makes text of two samples, the older of which gives the rates. Both know no terminal, so
//! that `--once` shows the very same.

mod sample;
mod view;

use std::io::{self, IsTerminal, Write};
use std::time::Duration;
use std::{mem, thread};

use clap::Args;
use crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::DefaultTerminal;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::{self, UnboundedReceiver};

use crate::cli::At;
use crate::failure::Failure;
use crate::server::Server;
use sample::Sample;

/// The shortest time between two looks, in seconds: the server has other things to do.
const LEAST_SECONDS: f64 = 0.1;

/// The longest.
const MOST_SECONDS: f64 = 3_600.0;

/// What `keyguard top` takes.
#[derive(Debug, Args)]
pub struct Options {
    /// Seconds between two looks.
    #[arg(long, default_value = "1", value_parser = interval)]
    interval: Duration,

    /// Look twice, print what there is to see, and end: for scripts.
    #[arg(long)]
    once: bool,
}

fn interval(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "seconds, such as 1 or 0.5".to_owned())?;
    if (LEAST_SECONDS..=MOST_SECONDS).contains(&seconds) {
        Ok(Duration::from_secs_f64(seconds))
    } else {
        Err(format!("from {LEAST_SECONDS} to {MOST_SECONDS} seconds"))
    }
}

/// Shows the store until somebody ends it.
///
/// # Errors
/// That there is no server at the beginning, or no terminal. A server that goes away later is waited for.
pub async fn run(at: &At, options: &Options) -> Result<(), Failure> {
    at.refuse_json("top", "keyguard usage stats --json, keyguard ip list --json and INFO keyguard have what it shows")?;
    let server = Server::at(&at.url)?;
    let first = Sample::of(&server, &at.store).await?;
    if options.once {
        tokio::time::sleep(options.interval).await;
        let second = Sample::of(&server, &at.store).await?;
        return Ok(writeln!(io::stdout(), "{}", view::plain(&second, Some(&first), &at.store))?);
    }
    if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        return Err(Failure::Usage("the live view needs a terminal: use --once elsewhere".to_owned()));
    }
    // From here on a panic, too, gives the terminal back as it was.
    let mut terminal = ratatui::try_init()?;
    let view = View { store: at.store.clone(), latest: first, before: None, failure: None };
    let shown = view.until_ended(&mut terminal, happenings(server, &at.store, options.interval)?).await;
    let restored = ratatui::try_restore();
    shown?;
    Ok(restored?)
}

/// What there is to see, and what was seen before.
struct View {
    store: String,
    latest: Sample,
    before: Option<Sample>,
    /// Why the last look saw nothing.
    failure: Option<Failure>,
}

impl View {
    async fn until_ended(
        mut self,
        terminal: &mut DefaultTerminal,
        mut happenings: UnboundedReceiver<Happening>,
    ) -> Result<(), Failure> {
        loop {
            let text = view::lively(&self.latest, self.before.as_ref(), &self.store, self.failure.as_ref());
            terminal.draw(|frame| frame.render_widget(text, frame.area()))?;
            match happenings.recv().await {
                // Another size, say, in which all is drawn again at once.
                Some(Happening::Terminal(Ok(event))) if !ends(&event) => {}
                Some(Happening::Terminal(Ok(_)) | Happening::Told) | None => return Ok(()),
                Some(Happening::Terminal(Err(error))) => return Err(error.into()),
                Some(Happening::Looked(Err(failure))) => self.failure = Some(failure),
                Some(Happening::Looked(Ok(sample))) => {
                    self.failure = None;
                    self.before = Some(mem::replace(&mut self.latest, sample));
                }
            }
        }
    }
}

/// What makes the view another one.
enum Happening {
    /// A key, or another size.
    Terminal(io::Result<Event>),
    /// Another look at the server.
    Looked(Result<Sample, Failure>),
    /// Somebody tells the process to end.
    Told,
}

/// Everything that happens. None waits for another: a server that hangs keeps no key from being heard.
fn happenings(server: Server, store: &str, interval: Duration) -> io::Result<UnboundedReceiver<Happening>> {
    let (sender, receiver) = mpsc::unbounded_channel();
    for kind in [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()] {
        let mut told = signal(kind)?;
        let sender = sender.clone();
        tokio::spawn(async move {
            told.recv().await;
            let _ = sender.send(Happening::Told);
        });
    }
    let (store, looks) = (store.to_owned(), sender.clone());
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(interval).await;
            if looks.send(Happening::Looked(Sample::of(&server, &store).await)).is_err() {
                return;
            }
        }
    });
    // It reads until the process ends.
    thread::spawn(move || {
        loop {
            let event = event::read();
            let failed = event.is_err();
            if sender.send(Happening::Terminal(event)).is_err() || failed {
                return;
            }
        }
    });
    Ok(receiver)
}

/// Whether this is an end: raw, the terminal makes no signal of Ctrl-C.
fn ends(event: &Event) -> bool {
    match event {
        Event::Key(key) if key.kind != KeyEventKind::Release => match key.code {
            KeyCode::Char('q') | KeyCode::Esc => true,
            KeyCode::Char('c' | 'd') => key.modifiers.contains(KeyModifiers::CONTROL),
            _ => false,
        },
        _ => false,
    }
}
