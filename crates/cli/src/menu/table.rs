//! What the menu shows of keys.

use comfy_table::Table;
use jiff::Timestamp;

use crate::reply::Json;

/// Keys, without their secrets.
pub fn keys(records: &[&Json]) {
    show(
        &[
            ("id", "id"),
            ("name", "name"),
            ("source", "source"),
            ("login", "login"),
            ("batch", "batch"),
            ("active", "active?"),
            ("usable", "usable?"),
            ("expires_at", "expires"),
            ("hint", "ends in"),
        ],
        records,
    );
}

/// Sets of keys, as KG.USABILITY counts them.
pub fn sets(rows: &[Json]) {
    show(
        &[
            ("name", "name"),
            ("source", "source"),
            ("login", "login"),
            ("batch", "batch"),
            ("total", "total"),
            ("active", "active"),
            ("expired", "expired"),
            ("usable", "usable"),
            ("expires_at", "next expires"),
        ],
        &rows.iter().collect::<Vec<_>>(),
    );
}

fn show(columns: &[(&str, &str)], rows: &[&Json]) {
    if rows.is_empty() {
        println!("None.");
        return;
    }
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING).set_header(columns.iter().map(|(_, title)| *title));
    for row in rows {
        table.add_row(columns.iter().map(|(field, title)| cell(field, title, row.get(field))));
    }
    println!("{table}");
}

fn cell(field: &str, title: &str, value: Option<&Json>) -> String {
    match (field, value) {
        // The title of what is true or not is a question.
        (_, Some(Json::Number(truth))) if title.ends_with('?') => {
            if truth.as_u64() == Some(0) { "no" } else { "yes" }.to_owned()
        }
        (_, None | Some(Json::Null)) => String::new(),
        ("expires_at", Some(Json::Number(at_ms))) => match at_ms.as_i64().map(Timestamp::from_millisecond) {
            Some(Ok(time)) => time.to_string(),
            _ => at_ms.to_string(),
        },
        (_, Some(Json::String(text))) => printable(text),
        (_, Some(other)) => other.to_string(),
    }
}

/// Without what a terminal would take for an order: names come from whoever may add keys.
fn printable(text: &str) -> String {
    text.chars().map(|character| if character.is_control() { char::REPLACEMENT_CHARACTER } else { character }).collect()
}
