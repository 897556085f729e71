//! How answers are shown: tables for people, JSON for programs, colour on terminals alone (anstream heeds NO_COLOR).

use std::io::{self, Write as _};

use anstyle::{AnsiColor, Style};
use comfy_table::{Table, presets};
use jiff::{Timestamp, tz::TimeZone};

use crate::failure::Failure;
use crate::reply::Json;

const PROBLEM: Style = AnsiColor::Red.on_default().bold();
const HEADING: Style = Style::new().bold();

/// What stands in a table where there is nothing.
const NOTHING: &str = "-";

/// The fields that come first, in this order; the others follow in the order of the alphabet.
const FIRST: [&str; 33] = [
    "code",
    "state",
    "claimed",
    "id",
    "at",
    "hour",
    "day",
    "type",
    "name",
    "label",
    "org",
    "source",
    "login",
    "batch",
    "account",
    "start",
    "status",
    "rule",
    "kind",
    "file",
    "format",
    "organizations",
    "keys",
    "active_keys",
    "vault_keys",
    "requests",
    "requests_last_hour",
    "refused",
    "refused_last_hour",
    "logged",
    "errors",
    "error_rate",
    "latency_ms",
];

/// Instants in unix milliseconds.
const TIMES: [&str; 12] = [
    "at",
    "begun_at",
    "cooling_until",
    "created_at",
    "ended_at",
    "expires_at",
    "hour",
    "last_used_at",
    "locked_until",
    "newest",
    "oldest",
    "rotated_until",
];

/// Yes or no, which the module answers as 1 or 0. `newest` of a keyring is one, and never a time as early as that.
/// Where there is a `total`, the same words are counts.
const TRUTHS: [&str; 7] = ["active", "expired", "usable", "newest", "missing", "imported", "check"];

/// Written as the options take them: `100 1m`, `90000 1m tokens`.
const ALLOWANCES: [&str; 3] = ["limits", "quotas", "shared"];

/// Where answers go: standard output, in one of two forms.
#[derive(Debug, Clone, Copy)]
pub struct Output {
    /// JSON, on one line, exactly as the module answered.
    pub json: bool,
}

impl Output {
    /// A map, as lines `name: value`; lists of maps in it follow as tables.
    ///
    /// # Errors
    /// What standard output refuses.
    pub fn record(self, reply: &Json) -> Result<(), Failure> {
        let Json::Object(map) = reply else { return self.value(reply) };
        if self.json {
            return self.value(reply);
        }
        let is_table = |value: &Json| matches!(value, Json::Array(rows) if rows.first().is_some_and(Json::is_object));
        let (tables, lines): (Vec<_>, Vec<_>) =
            in_order(map.keys()).into_iter().partition(|name| is_table(of(reply, name)));
        self.lines(&lines, reply)?;
        for name in tables {
            line("")?;
            line(&format!("{HEADING}{name}{HEADING:#}"))?;
            if let Json::Array(rows) = of(reply, name) {
                self.rows(&columns(rows), rows)?;
            }
        }
        Ok(())
    }

    /// These fields of a map, in this order, as lines `name: value`: for people.
    ///
    /// # Errors
    /// What standard output refuses.
    pub fn lines(self, names: &[&str], map: &Json) -> Result<(), Failure> {
        names.iter().try_for_each(|name| line(&format!("{HEADING}{name}{HEADING:#}: {}", cell(map, name))))
    }

    /// Maps, a row for each, with these columns. None are no lines at all for programs that count them; people are told.
    ///
    /// # Errors
    /// What standard output refuses.
    pub fn table(self, columns: &[&str], rows: &[Json]) -> Result<(), Failure> {
        if self.json {
            return line(&Json::from(rows).to_string());
        }
        if rows.is_empty() {
            self.note("there are none");
            return Ok(());
        }
        self.rows(columns, rows)
    }

    fn rows(self, columns: &[&str], rows: &[Json]) -> Result<(), Failure> {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_header(columns);
        for row in rows {
            table.add_row(columns.iter().map(|name| cell(row, name)));
        }
        // Styles in a cell would count as its width.
        table.lines().enumerate().try_for_each(|(n, text)| match n {
            0 => line(&format!("{HEADING}{}{HEADING:#}", text.trim())),
            _ => line(text.trim()),
        })
    }

    /// One value, alone on a line; a list, one to a line.
    ///
    /// # Errors
    /// What standard output refuses.
    pub fn value(self, reply: &Json) -> Result<(), Failure> {
        match reply {
            _ if self.json => line(&reply.to_string()),
            Json::Array(values) => values.iter().try_for_each(|value| line(&shown("", value))),
            value => line(&shown("", value)),
        }
    }

    /// What was done; for programs, what the module answered.
    ///
    /// # Errors
    /// What standard output refuses.
    pub fn done(self, what: &str, reply: &Json) -> Result<(), Failure> {
        if self.json { line(&reply.to_string()) } else { line(what) }
    }

    /// Text for people alone, as it is.
    ///
    /// # Errors
    /// What standard output refuses.
    pub fn text(self, text: &str) -> Result<(), Failure> {
        line(text)
    }

    /// A secret, byte by byte, alone on standard output, so that it can be piped; or what holds one that is shown this once.
    ///
    /// # Errors
    /// What standard output refuses, also that nobody reads it: a secret that is shown once is lost then.
    pub fn secret(self, bytes: &[u8]) -> Result<(), Failure> {
        let mut out = io::stdout().lock();
        let mut write = || out.write_all(bytes).and_then(|()| out.write_all(b"\n")).and_then(|()| out.flush());
        write().map_err(|why| Failure::Io(io::Error::other(format!("nobody took the secret: {why}"))))
    }

    /// A word to whoever looks on, on standard error. That nobody does must not keep a secret from who reads standard output.
    pub fn note(self, text: &str) {
        let _ = writeln!(anstream::stderr(), "{text}");
    }
}

/// What went wrong, and what to do, on standard error.
pub fn show_failure(failure: &Failure) {
    anstream::eprintln!("{PROBLEM}error{PROBLEM:#}: {failure}");
    if let Some(advice) = failure.advice() {
        anstream::eprintln!("{advice}");
    }
}

/// Whoever read our output may have seen enough of it: what is asked is done all the same, and how it ended is the exit code.
fn line(text: &str) -> Result<(), Failure> {
    match writeln!(anstream::stdout(), "{text}") {
        Err(why) if why.kind() != io::ErrorKind::BrokenPipe => Err(why.into()),
        _ => Ok(()),
    }
}

/// The field of that name, null if there is none.
pub fn of<'a>(map: &'a Json, name: &str) -> &'a Json {
    map.get(name).unwrap_or(&Json::Null)
}

fn in_order<'a>(names: impl Iterator<Item = &'a String>) -> Vec<&'a str> {
    let mut names: Vec<&str> = names.map(String::as_str).collect();
    names.sort_by_key(|name| (FIRST.iter().position(|first| first == name).unwrap_or(FIRST.len()), *name));
    names.dedup();
    names
}

fn columns(rows: &[Json]) -> Vec<&str> {
    in_order(rows.iter().filter_map(Json::as_object).flat_map(|map| map.keys()))
}

/// A field of a map as people read it.
pub fn cell(map: &Json, name: &str) -> String {
    let is_count = map.get("total").is_some() && TRUTHS.contains(&name) && name != "check";
    shown(if is_count { "" } else { name }, of(map, name))
}

/// A value as people read it: times as such, in the zone of this machine, and a dash for nothing.
fn shown(name: &str, value: &Json) -> String {
    match value {
        Json::Null => NOTHING.to_owned(),
        Json::String(text) if text.is_empty() => NOTHING.to_owned(),
        Json::String(text) if ALLOWANCES.contains(&name) => allowance(text),
        Json::String(text) => printable(text),
        Json::Number(number) => match number.as_i64() {
            Some(0 | 1) if TRUTHS.contains(&name) => if number.as_i64() == Some(1) { "yes" } else { "no" }.to_owned(),
            Some(ms) if TIMES.contains(&name) => time(ms).unwrap_or_else(|| number.to_string()),
            Some(whole) => whole.to_string(),
            None => number.to_string(),
        },
        Json::Bool(truth) => if *truth { "yes" } else { "no" }.to_owned(),
        Json::Array(values) if values.is_empty() => NOTHING.to_owned(),
        Json::Array(values) => values.iter().map(|value| shown(name, value)).collect::<Vec<_>>().join(", "),
        Json::Object(map) if map.is_empty() => NOTHING.to_owned(),
        Json::Object(map) => {
            map.iter().map(|(name, value)| format!("{name} {}", shown(name, value))).collect::<Vec<_>>().join(", ")
        }
    }
}

/// Text without what must not reach a terminal: whatever others put into a record must not move the cursor of who reads it, nor turn the
/// order of a line round.
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if may_be_shown(c) { c } else { '\u{fffd}' }).collect()
}

fn may_be_shown(c: char) -> bool {
    let turns = matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    !c.is_control() && !turns
}

/// A limit or quota as the option takes it.
fn allowance(text: &str) -> String {
    const UNITS: [(u64, &str); 4] = [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1000, "s")];
    let word = |word: &str| match word.strip_suffix("ms").and_then(|ms| ms.parse::<u64>().ok()) {
        Some(ms) => match UNITS.iter().find(|(unit_ms, _)| ms % unit_ms == 0) {
            Some((unit_ms, unit)) => format!("{}{unit}", ms / unit_ms),
            None => format!("{ms}ms"),
        },
        None => word.to_owned(),
    };
    text.trim_end_matches(" requests").split(' ').map(word).collect::<Vec<_>>().join(" ")
}

/// As ISO 8601 has it, to the second, with the offset of this machine's time zone: the module takes it back so.
fn time(ms: i64) -> Option<String> {
    let zoned = Timestamp::from_millisecond(ms).ok()?.to_zoned(TimeZone::system());
    Some(zoned.strftime("%Y-%m-%dT%H:%M:%S%:z").to_string())
}

#[cfg(test)]
mod tests {
    use super::shown;
    use crate::reply::Json;

    #[test]
    fn text_of_records_cannot_disguise_a_row() {
        for (text, expected) in [
            ("caf\u{e9} \u{5e9}\u{5dc}\u{5d5}\u{5dd}", "caf\u{e9} \u{5e9}\u{5dc}\u{5d5}\u{5dd}"),
            ("a\u{1b}[2J\n", "a\u{fffd}[2J\u{fffd}"),
            ("a\u{202e}b\u{202c}", "a\u{fffd}b\u{fffd}"),
            ("\u{61c}\u{200e}\u{200f}\u{202a}\u{2066}\u{2069}", "\u{fffd}\u{fffd}\u{fffd}\u{fffd}\u{fffd}\u{fffd}"),
        ] {
            assert_eq!(shown("label", &Json::from(text)), expected, "{text:?}");
        }
    }
}
