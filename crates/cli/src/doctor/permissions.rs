//! What the user of this connection may do.

use super::Finding;
use super::facts::command;
use crate::failure::Failure;
use crate::server::Server;

/// One call of each kind, complete, as the server looks at the number of arguments first. None of them is run.
const TRIED: [&[&str]; 9] = [
    &["KG.AUTH", "", "x"],
    &["KG.ACQUIRE", "", "x"],
    &["KG.LOG", "", "0", "PATH", "/", "METHOD", "GET", "STATUS", "200", "LATENCY", "1"],
    &["KG.LISTKEYS", ""],
    &["KG.ADDKEY", "", "x", "x"],
    &["KG.NEWKEY", "", "x", "x"],
    &["KG.REVOKE", "", "1"],
    &["KG.BLOCKIP", "", "192.0.2.1"],
    &["KG.STATS", ""],
];

/// What is permitted, and what is not.
pub async fn of_user(node: &Server, store: &str) -> Finding {
    const CHECK: &str = "permissions";
    let user = match node.ask(&command(&["ACL", "WHOAMI"])).await {
        Ok(user) => user.as_str().unwrap_or_default().to_owned(),
        Err(failure) => return Finding::unanswered(CHECK, &failure),
    };
    let mut refused: Vec<&str> = Vec::new();
    for tried in TRIED {
        // Where the store goes, in front of all others, the table has a blank.
        let words: Vec<&str> = tried.iter().map(|word| if word.is_empty() { store } else { word }).collect();
        let mut words_of_dry_run = vec!["ACL", "DRYRUN", &user];
        words_of_dry_run.extend(words);
        match node.ask(&command(&words_of_dry_run)).await {
            Ok(answer) if answer == "OK" => {}
            Ok(_) => refused.extend(tried.first()),
            Err(failure @ Failure::Unreachable(_)) => return Finding::unanswered(CHECK, &failure),
            Err(failure) => return Finding::not_looked_at(CHECK, format!("user {user}; {failure}")),
        }
    }
    if refused.is_empty() {
        return Finding::ok(CHECK, format!("user {user} may use and manage {store}"));
    }
    Finding::warning(
        CHECK,
        format!("user {user} may not call {} on {store}", refused.join(", ")),
        "if it should, ACL SETUSER grants it; if it need not, all is well",
    )
}
