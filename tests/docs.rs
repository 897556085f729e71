//! The README's command reference against what the server knows of the commands.

use std::{fs, path::Path};

use redis::Value;

use crate::harness::{Client, Reply, Sut, args, server_tests};

server_tests![the_reference_is_what_the_server_knows];

fn the_reference_is_what_the_server_knows(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).expect("README.md");
    // Within a table, a bar is escaped.
    let readme = readme.replace("\\|", "|");
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

/// The whole syntax of a command, as the reference prints it.
fn syntax_of(c: &mut Client, name: &str) -> String {
    let docs = c.ok(args!["COMMAND", "DOCS", name]).fields().remove(0).1;
    let arguments = docs.get("arguments").unwrap_or(Value::Array(Vec::new()));
    let words: Vec<String> = arguments.list().iter().map(argument_syntax).collect();
    [&[name.to_owned()][..], &words].concat().join(" ")
}

/// One argument: `count`, `COST n`, `[count window ...]`, `EXPIREAT t | EXPIREIN d`.
fn argument_syntax(argument: &Value) -> String {
    let flags: Vec<String> = argument
        .get("flags")
        .map(|flags| flags.list().iter().map(|flag| flag.text().to_lowercase()).collect())
        .unwrap_or_default();
    let has = |flag: &str| flags.iter().any(|found| found == flag);
    let kind = argument.field("type").text();
    let parts = || argument.field("arguments").list().iter().map(argument_syntax).collect::<Vec<_>>();
    let token = argument.get("token").map(|token| token.text()).filter(|token| !token.is_empty());
    let value = match &*kind {
        "pure-token" => String::new(),
        "oneof" => parts().join(if parts().iter().any(|part| part.contains(' ')) { " | " } else { "|" }),
        "block" => parts().join(" "),
        _ => argument.get("display_text").unwrap_or_else(|| argument.field("name")).text(),
    };
    let with_token = |value: &str| match &token {
        Some(token) if value.is_empty() => token.clone(),
        Some(token) => format!("{token} {value}"),
        None => value.to_owned(),
    };
    let whole = match (has("multiple"), has("multiple_token")) {
        (false, _) => with_token(&value),
        (true, true) => format!("{0} [{0} ...]", with_token(&value)),
        (true, false) => with_token(&format!("{value} [{value} ...]")),
    };
    if has("optional") { format!("[{whole}]") } else { whole }
}
