//! What a look shows: the same lines for the screen and for `--once`, on the screen with colours.

use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span, Text};

use super::sample::Sample;
use crate::failure::Failure;
use crate::output::printable;
use crate::reply::Json;

/// How many of the keys that are used most.
const KEYS: usize = 10;

/// How many blocked addresses.
const ADDRESSES: usize = 10;

const HEADING: Style = Style::new().add_modifier(Modifier::BOLD);
const ALARM: Style = Style::new().fg(Color::Red).add_modifier(Modifier::BOLD);
const HINT: Style = Style::new().add_modifier(Modifier::DIM);

/// For the screen. With a failure, what was seen last stays, under the reason why nothing new is.
pub fn lively(latest: &Sample, before: Option<&Sample>, store: &str, failure: Option<&Failure>) -> Text<'static> {
    let mut lines = vec![match failure {
        None => Line::styled("q quits", HINT),
        Some(failure) => Line::styled(printable(&format!("{failure}; this is old, trying again")), ALARM),
    }];
    lines.extend(body(latest, before, store));
    Text::from(lines)
}

/// For scripts: without colours.
pub fn plain(latest: &Sample, before: Option<&Sample>, store: &str) -> String {
    let lines: Vec<String> =
        body(latest, before, store).iter().map(|line| line.to_string().trim_end().to_owned()).collect();
    lines.join("\n")
}

fn body(latest: &Sample, before: Option<&Sample>, store: &str) -> Vec<Line<'static>> {
    let mut lines = Vec::new();
    server(&mut lines, latest);
    answers(&mut lines, latest, before);
    calls(&mut lines, latest, store);
    keys(&mut lines, latest);
    addresses(&mut lines, latest);
    lines
}

fn heading(lines: &mut Vec<Line<'static>>, text: String) {
    lines.push(Line::default());
    lines.push(Line::styled(text, HEADING));
}

fn server(lines: &mut Vec<Line<'static>>, latest: &Sample) {
    let Some(used) = latest.number("used_memory") else {
        lines.push(Line::styled("INFO is not permitted to this user", HINT));
        return;
    };
    let number = |name| latest.number(name).unwrap_or(0);
    let limit = match number("maxmemory") {
        0 => String::new(),
        limit => format!(" of {}", mebibytes(limit)),
    };
    lines.push(Line::from(format!(
        "memory {}{limit}   clients {}   commands/s {}",
        mebibytes(used),
        number("connected_clients"),
        number("instantaneous_ops_per_sec"),
    )));
    lines.push(Line::from(format!(
        "waiting {} in {} lines, the longest for {:.1} s   addresses that fail {}   blocked for it {}",
        number("keyguard_waiters"),
        number("keyguard_waiting_lines"),
        number("keyguard_longest_wait_ms") as f64 / 1000.0,
        number("keyguard_addresses_failing"),
        number("keyguard_automatic_blocks"),
    )));
}

/// The answers of KG.AUTH, of all stores of the server: how many a second, and how many since it started.
fn answers(lines: &mut Vec<Line<'static>>, latest: &Sample, before: Option<&Sample>) {
    heading(lines, format!("{:<22}{:>12}{:>14}", "KG.AUTH, all stores", "per second", "since start"));
    let seconds = before.map(|before| latest.since(before).as_secs_f64()).filter(|seconds| *seconds > 0.0);
    let rate = |now: u64, then: u64| match seconds {
        // A server that was started anew counts from nothing.
        Some(seconds) => format!("{:.1}", now.checked_sub(then).unwrap_or(now) as f64 / seconds),
        None => "-".to_owned(),
    };
    let (mut now_all, mut then_all) = (0, 0);
    for (code, now) in latest.answers() {
        let then = before.and_then(|before| before.number(&format!("keyguard_auth_{code}"))).unwrap_or(0);
        now_all += now;
        then_all += then;
        if now == 0 {
            continue;
        }
        let style = if code == "valid" { Style::new().fg(Color::Green) } else { Style::new().fg(Color::Yellow) };
        lines.push(Line::from(vec![
            Span::styled(format!("{:<22}", code.to_uppercase()), style),
            Span::raw(format!("{:>12}{now:>14}", rate(now, then))),
        ]));
    }
    lines.push(Line::from(format!("{:<22}{:>12}{now_all:>14}", "all", rate(now_all, then_all))));
}

/// What the store itself has counted.
fn calls(lines: &mut Vec<Line<'static>>, latest: &Sample, store: &str) {
    heading(lines, format!("{:<22}{:>12}{:>14}", format!("store {}", printable(store)), "last hour", "in all"));
    let Some(stats) = &latest.stats else {
        lines.push(Line::styled("nothing to be seen: no such store yet, or KG.STATS is not permitted", HINT));
        return;
    };
    let number = |name| latest.stat(name).unwrap_or(0);
    for (title, hour, all) in
        [("requests", "requests_last_hour", "requests"), ("refused", "refused_last_hour", "refused")]
    {
        lines.push(Line::from(format!("{title:<22}{:>12}{:>14}", number(hour), number(all))));
    }
    let figure = |name: &str| stats.get(name).map_or_else(|| "-".to_owned(), Json::to_string);
    lines.push(Line::from(format!(
        "keys {} of {} active   vault keys {}   organizations {}   errors {} %   latency {} ms",
        number("active_keys"),
        number("keys"),
        number("vault_keys"),
        number("organizations"),
        figure("error_rate"),
        figure("latency_ms"),
    )));
    if let Some(Json::Object(refusals)) = stats.get("refusals")
        && !refusals.is_empty()
    {
        let each: Vec<String> = refusals.iter().map(|(code, count)| format!("{code} {count}")).collect();
        lines.push(Line::from(format!("refusals: {}", each.join(", "))));
    }
}

fn keys(lines: &mut Vec<Line<'static>>, latest: &Sample) {
    let Some(Json::Array(keys)) = latest.stats.as_ref().and_then(|stats| stats.get("top_keys")) else { return };
    if keys.is_empty() {
        return;
    }
    heading(lines, format!("{:<8}{:<28}{:<20}{:>12}", "key", "label", "begins", "requests"));
    for key in keys.iter().take(KEYS) {
        lines.push(Line::from(format!(
            "{:<8}{:<28}{:<20}{:>12}",
            field(key, "id"),
            cut(&field(key, "label"), 27),
            cut(&field(key, "start"), 19),
            field(key, "requests"),
        )));
    }
}

fn addresses(lines: &mut Vec<Line<'static>>, latest: &Sample) {
    let Some((blocked, more)) = &latest.blocked else { return };
    if blocked.is_empty() && !more {
        return;
    }
    let more = if *more { " or more" } else { "" };
    heading(lines, format!("{:<44}{:<20}{}", format!("blocked: {}{more}", blocked.len()), "path", "for another"));
    for rule in blocked.iter().take(ADDRESSES) {
        let left = match rule.get("retry_after_ms").and_then(Json::as_i64) {
            Some(ms @ 0..) => format!("{} s", ms / 1000),
            _ => "ever".to_owned(),
        };
        let (net, path) = (field(rule, "rule"), field(rule, "path"));
        lines.push(Line::from(format!("{:<44}{:<20}{left}", cut(&net, 43), cut(&path, 19))));
    }
}

fn field(map: &Json, name: &str) -> String {
    match map.get(name) {
        None | Some(Json::Null) => String::new(),
        Some(Json::String(text)) => printable(text),
        Some(other) => other.to_string(),
    }
}

fn cut(text: &str, longest: usize) -> String {
    text.chars().take(longest).collect()
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}
