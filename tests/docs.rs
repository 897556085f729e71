//! The README's command reference against what the server knows of the commands.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use redis::Value;

use crate::harness::{Client, Reply, Sut, args, eventually, expect, populate_store, server_tests, tool};

server_tests![
    the_reference_is_what_the_server_knows,
    the_examples_run_as_printed,
    the_recipes_for_users_are_accepted,
    the_restore_drill_runs_as_printed,
    the_commands_of_the_operators_tools_run_as_printed,
];

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

/// On a server that has the store, then on one that has its keyring and nothing else.
fn the_restore_drill_runs_as_printed(sut: &Sut) {
    let readme = readme();
    let drill = readme.split("**Restore drill.**").nth(1).unwrap().split("\n**").next().unwrap();
    let commands: Vec<&str> = drill.lines().filter_map(|line| line.strip_prefix("    redis-cli ")).collect();
    assert_eq!(commands.len(), 6, "{commands:?}");
    let old = sut.setup().counting_usage().start();
    let mut c = old.client();
    let sample = populate_store(&mut c);
    let run = |c: &mut Client, command: &str| {
        let mut reply = c.ok(command);
        if command.ends_with("STATUS") {
            reply = eventually("it having ended", || {
                let reply = c.ok(command);
                expect(reply.field("state").text() != "running", || format!("{reply:?}")).map(|()| reply)
            });
            assert_eq!(reply.field("state").text(), "done", "{command}: {reply:?}");
        }
        reply
    };
    // What was counted last is in the snapshot when it has been written down.
    eventually("the usage being written", || {
        let waiting = c.info_number("keyguard", "keyguard_usage_stores_waiting");
        expect(waiting == 0, || format!("{waiting}"))
    });
    let (snapshot, import) = commands.split_at(2);
    snapshot.iter().for_each(|command| drop(run(&mut c, command)));
    let of = |c: &mut Client, command: &str| format!("{:?}", c.ok(command));
    let looks = ["KG.STATS acme", "KG.LISTORGS acme", "KG.GETORG acme shop", "KG.USAGE acme", "KG.COUNTKEYS acme"];
    let before = looks.map(|look| of(&mut c, look));

    let new = sut.setup().counting_usage().start();
    fs::copy(old.directory().join("snapshots/drill.sqlite"), new.directory().join("snapshots/drill.sqlite")).unwrap();
    let mut c = new.client();
    let (check, real) = import.split_at(2);
    let told = check.iter().map(|command| run(&mut c, command)).collect::<Vec<_>>().pop().unwrap();
    assert_eq!(c.ok("DBSIZE").int(), 0, "a look changes nothing");
    let done = real.iter().map(|command| run(&mut c, command)).collect::<Vec<_>>().pop().unwrap();
    for field in ["imported", "skipped", "api_keys", "vault_keys", "organizations"] {
        assert_eq!(told.field(field), done.field(field), "{field}");
    }
    assert_eq!(done.field("skipped").int(), 0, "{done:?}");
    for (look, before) in looks.iter().zip(before) {
        assert_eq!(of(&mut c, look), before, "{look}");
    }
    assert_eq!(c.code(format!("KG.AUTH acme {}", sample.plain)), "VALID");
    assert_eq!(c.code(format!("KG.AUTH acme {}", sample.revoked)), "DISABLED");
    assert_eq!(c.ok("KG.REVEAL acme 1").text(), old.client().ok("KG.REVEAL acme 1").text());
}

/// All but those that serve until they are ended: what these do has tests of its own.
fn the_commands_of_the_operators_tools_run_as_printed(sut: &Sut) {
    let server = sut.server();
    fs::write(server.directory().join("secret.txt"), "what openai is called with").unwrap();
    let readme = readme();
    let commands =
        readme.lines().filter_map(|line| line.strip_prefix("    ")).filter(|line| line.starts_with("keyguard "));
    let mut run = 0;
    for line in commands.filter(|line| !line.starts_with("keyguard serve")) {
        let command = tool(&server);
        let program = command.get_program().to_owned();
        let rest = line.trim_start_matches("keyguard");
        let mut shell = Command::new("sh");
        shell.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        shell.arg("-c").arg(format!("\"$KEYGUARD\"{rest}")).env("KEYGUARD", program).current_dir(server.directory());
        let done = shell.stdin(Stdio::null()).output().expect("sh runs");
        assert!(done.status.success(), "{line}: {}", String::from_utf8_lossy(&done.stderr));
        run += 1;
    }
    assert!(run >= 8, "{run} commands");
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
