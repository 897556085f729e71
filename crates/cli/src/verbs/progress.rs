//! What goes on in the background of the server: asked for now and then until it ends, and shown as it goes.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::failure::Failure;
use crate::output::{Output, of};
use crate::reply::Json;

use super::Console;
use super::request::Request;

/// How often the server is asked at first, and how seldom at last.
const OFTEN: Duration = Duration::from_millis(50);
const SELDOM: Duration = Duration::from_millis(500);

/// How far it is, and of how much, if that is known.
pub type HowFar = fn(&Json) -> (u64, Option<u64>);

/// Asks until it no longer runs; a bar on standard error, if that is a terminal. Shows the last answer.
///
/// # Errors
/// It ended otherwise than well, or there is no answer.
pub async fn watch(console: &Console, ask: impl Fn() -> Request, how_far: HowFar) -> Result<(), Failure> {
    // It hides itself where nobody looks.
    let bar = ProgressBar::new_spinner();
    style(&bar, "{spinner} {human_pos} records");
    let mut pause = OFTEN;
    let status = loop {
        let status = console.ask(ask()).await?;
        if of(&status, "state") != "running" {
            break status;
        }
        let (done, all) = how_far(&status);
        if bar.length().is_none()
            && let Some(all) = all
        {
            bar.set_length(all);
            style(&bar, "{bar:40} {human_pos} of {human_len} records ({eta})");
        }
        bar.set_position(done);
        bar.tick();
        tokio::time::sleep(pause).await;
        pause = SELDOM.min(pause * 2);
    };
    bar.finish_and_clear();
    ended(console.out, &status)
}

fn style(bar: &ProgressBar, template: &str) {
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
}

/// Shows how it ended. A job that was done may still have failed for some records: KG.REKEY counts them in `failed`, and all that is
/// not under the newest key in `left`.
fn ended(out: Output, status: &Json) -> Result<(), Failure> {
    out.record(status)?;
    let [failed, left] = ["failed", "left"].map(|name| of(status, name).as_u64().unwrap_or_default());
    if of(status, "state") != "done" {
        return Err(Failure::Answered);
    }
    if failed > 0 {
        out.note(&format!(
            "{failed} vault keys did not open and stay as they are. Put back into the keyring what keyguard keyring status shows as \
             missing, and reload, or keyguard keyring stop, so that rekey looks again. What fails again was changed from outside: \
             a snapshot may have it, or keyguard vault set ID --secret replaces it. Delete nothing before"
        ));
    } else if left > 0 {
        out.note(&format!("{left} vault keys are left under an older key: rekey again"));
    }
    if failed > 0 || left > 0 { Err(Failure::Answered) } else { Ok(()) }
}
