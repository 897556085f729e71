//! What the user of this connection may do.

use super::Finding;
use super::facts::command;
use crate::failure::Failure;
use crate::server::Server;

/// All commands on a store, and that on the keyring.
const ON_STORES: [&str; 41] = [
    "KG.ACQUIRE",
    "KG.ADDKEY",
    "KG.ADDORG",
    "KG.ALLOWIP",
    "KG.AUTH",
    "KG.BLOCKIP",
    "KG.CHECK",
    "KG.CHECKIP",
    "KG.CLAIMIP",
    "KG.CLEARIP",
    "KG.COUNTKEYS",
    "KG.DELKEY",
    "KG.DELORG",
    "KG.DELSTORE",
    "KG.FEEDBACK",
    "KG.FINDKEY",
    "KG.GETKEY",
    "KG.GETORG",
    "KG.GETSTORE",
    "KG.IMPORT",
    "KG.KEYRING",
    "KG.LISTIPS",
    "KG.LISTKEYS",
    "KG.LISTORGS",
    "KG.LOG",
    "KG.NEWKEY",
    "KG.NEXTKEY",
    "KG.REKEY",
    "KG.REVEAL",
    "KG.REVOKE",
    "KG.ROTATE",
    "KG.SETKEY",
    "KG.SETORG",
    "KG.SETSTORE",
    "KG.SETTLE",
    "KG.SNAPSHOT",
    "KG.STATS",
    "KG.UNALLOWIP",
    "KG.UNBLOCKIP",
    "KG.USABILITY",
    "KG.USAGE",
];

/// Those on a bucket: which buckets this user should have, nobody can tell from here.
const ON_BUCKETS: [&str; 4] = ["KG.CLAIM", "KG.INSPECT", "KG.REFUND", "KG.REMAINING"];

/// As many arguments as any command needs at least: the server looks at their number first, and at nothing else in
/// them.
const ARGUMENTS: [&str; 10] = ["x"; 10];

/// What the server says to a call that is not made.
enum Answer {
    Permitted,
    NotTheCommand,
    NotTheKey,
}

/// What is permitted, and what is not.
pub async fn of_user(node: &Server, store: &str) -> Finding {
    const CHECK: &str = "permissions";
    let user = match node.ask(&command(&["ACL", "WHOAMI"])).await {
        Ok(user) => user.as_str().unwrap_or_default().to_owned(),
        Err(failure) => return Finding::unanswered(CHECK, &failure),
    };
    let (mut commands, mut on_the_store): (Vec<&str>, Vec<&str>) = (Vec::new(), Vec::new());
    for name in ON_STORES.into_iter().chain(ON_BUCKETS) {
        match try_out(node, &user, name, store).await {
            Ok(Answer::Permitted) => {}
            Ok(Answer::NotTheCommand) => commands.push(name),
            Ok(Answer::NotTheKey) if ON_BUCKETS.contains(&name) => {}
            Ok(Answer::NotTheKey) => on_the_store.push(name),
            Err(failure) => return Finding::unanswered(CHECK, &failure),
        }
    }
    if commands.is_empty() && on_the_store.is_empty() {
        return Finding::ok(CHECK, format!("user {user} may call every command, on {store} too"));
    }
    let (mut refused, mut rules) = (Vec::new(), Vec::new());
    if !commands.is_empty() {
        refused.push(format!("may not call {}", commands.join(", ")));
        rules.extend(commands.iter().map(|name| format!("+{}", name.to_lowercase())));
    }
    if !on_the_store.is_empty() {
        refused.push(format!("may not touch {store} with {}", on_the_store.join(", ")));
        rules.push(format!("~{store}"));
    }
    Finding::warning(
        CHECK,
        format!("user {user} {}", refused.join("; ")),
        format!("of these, what the user should have: ACL SETUSER {user} {}", rules.join(" ")),
    )
}

async fn try_out(node: &Server, user: &str, name: &str, store: &str) -> Result<Answer, Failure> {
    let answer = node.ask(command(&["ACL", "DRYRUN", user, name, store]).arg(&ARGUMENTS)).await?;
    // `User gate has no permissions to run the 'KG.CLAIM' command`, or to access a key.
    Ok(match answer.as_str() {
        Some("OK") => Answer::Permitted,
        Some(text) if text.ends_with("command") => Answer::NotTheCommand,
        _ => Answer::NotTheKey,
    })
}
