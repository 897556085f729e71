//! The README's command reference against what the server knows of the commands.

use std::{fs, path::Path};

use redis::Value;

use crate::harness::{Client, Reply, Sut, args, server_tests};

server_tests![the_reference_is_what_the_server_knows, the_examples_run_as_printed, the_recipes_for_users_are_accepted,];

fn the_reference_is_what_the_server_knows(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    // Within a table, a bar is escaped.
    let readme = readme().replace("\\|", "|");
    let names: Vec<String> =
        c.ok("COMMAND LIST FILTERBY MODULE keyguard").list().iter().map(|name| name.text().to_uppercase()).collect();
    let missing: Vec<String> = names
        .iter()
        .filter(|name| *name != "KG.APPLY")
        .map(|name| syntax_of(&mut c, name))
        .filter(|syntax| !readme.contains(&format!("`{syntax}`")))
        .collect();
    assert!(missing.is_empty(), "README.md lacks:\n{}", missing.join("\n"));
    for mention in readme.split("KG.").skip(1) {
        let name: String = mention.chars().take_while(char::is_ascii_uppercase).collect();
        let name = format!("KG.{name}");
        assert!(name == "KG." || names.contains(&name), "README.md names {name}, which the module does not have");
    }
}

fn readme() -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).expect("README.md")
}

fn the_examples_run_as_printed(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    let mut raw = String::new();
    let mut codes = Vec::new();
    for line in readme().lines() {
        let Some(command) = line.trim_start().strip_prefix("> KG.") else { continue };
        let reply = c.ok(format!("KG.{}", command.replace("kg_live_...", &raw)));
        if command.starts_with("NEWKEY ") {
            let [id, key] = reply.list() else { panic!("an id and a key expected, not {reply:?}") };
            assert!(id.int() > 0);
            raw = key.text();
        }
        if command.starts_with("AUTH ") {
            codes.push(reply.field("code").text());
        }
    }
    assert!(!codes.is_empty() && codes.iter().all(|code| code == "VALID"), "{codes:?}");
}

fn the_recipes_for_users_are_accepted(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    let readme = readme();
    let recipes: Vec<&str> = readme.lines().map(str::trim).filter(|line| line.starts_with("ACL SETUSER ")).collect();
    assert!(!recipes.is_empty());
    for recipe in recipes {
        c.ok(recipe);
    }
}

/// The whole syntax of a command, as the reference prints it.
fn syntax_of(c: &mut Client, name: &str) -> String {
    let docs = c.ok(args!["COMMAND", "DOCS", name]).fields().remove(0).1;
    let arguments = docs.get("arguments").unwrap_or(Value::Array(Vec::new()));
    let words: Vec<String> = arguments.list().iter().map(argument_syntax).collect();
    [&[name.to_owned()][..], &words].concat().join(" ")
}

/// One argument: `count`, `[COST n]`, `count window [count window ...]`, `<id | NAME name>`.
fn argument_syntax(argument: &Value) -> String {
    let flags: Vec<String> = argument
        .get("flags")
        .map(|flags| flags.list().iter().map(|flag| flag.text().to_lowercase()).collect())
        .unwrap_or_default();
    let has = |flag: &str| flags.iter().any(|found| found == flag);
    let kind = argument.field("type").text();
    let parts = || argument.field("arguments").list().iter().map(argument_syntax).collect::<Vec<_>>();
    let value = match &*kind {
        "pure-token" => String::new(),
        "oneof" => parts().join(" | "),
        "block" => parts().join(" "),
        _ => argument.field("name").text(),
    };
    let token = argument.get("token").map(|token| token.text()).unwrap_or_default();
    let whole = [token, value].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ");
    match (has("optional"), has("multiple")) {
        (true, true) => format!("[{whole}]..."),
        (true, false) => format!("[{whole}]"),
        (false, true) => format!("{whole} [{whole} ...]"),
        (false, false) if kind == "oneof" => format!("<{whole}>"),
        (false, false) => whole,
    }
}
