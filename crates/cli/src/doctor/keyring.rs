//! The keyring: whether the server has it, all of it, and alone.

use std::fs;
use std::os::unix::fs::MetadataExt;

use redis::ConnectionAddr;

use super::facts::Facts;
use super::{Finding, State};
use crate::reply::Json;
use crate::server::Server;

/// The keys in force, those that records wait for, and those that they should leave.
pub fn keyring(facts: &Facts, store: &str) -> Vec<Finding> {
    const CHECK: &str = "keyring";
    let rows = match &facts.keyring {
        Ok(rows) => rows,
        Err(failure) => return vec![Finding::unanswered(CHECK, failure)],
    };
    let name = |row: &Json| row.get("fingerprint").and_then(Json::as_str).unwrap_or_default().to_owned();
    let mut findings = Vec::new();
    for row in rows.iter().filter(|row| flag(row, "missing")) {
        findings.push(Finding::problem(
            CHECK,
            format!("the key {} is missing: {} records need it and do not open", name(row), records(row)),
            "put it back into the keyring file, before the newest, and call KG.KEYRING RELOAD; without it nothing reads them",
        ));
    }
    let Some(newest) = rows.iter().find(|row| flag(row, "newest")) else {
        findings.push(Finding::problem(
            CHECK,
            "there is none: the limiter works, the vault and the gate answer NOKEYRING",
            "make one (umask 077; head -c 32 /dev/urandom | base64 > FILE), name it in keyguard.keyring-file, and restart; \
             every replica needs the same",
        ));
        return findings;
    };
    let older: Vec<&Json> = rows.iter().filter(|row| is_older(row) && !flag(row, "missing")).collect();
    let left: u64 = older.iter().copied().map(records).sum();
    if left > 0 {
        findings.push(Finding::warning(
            CHECK,
            format!("{left} records are still under older keys"),
            format!(
                "KG.REKEY {store}, for each store, until its state is done and failed is 0; an API key moves when it is next used. Then KG.KEYRING \
                 DROP, which refuses a key that records use"
            ),
        ));
    }
    if findings.is_empty() {
        let source =
            facts.info("keyguard_keyring_source").map_or_else(String::new, |source| format!(", from: {source}"));
        let keys = older.len() + 1;
        findings.push(Finding::ok(CHECK, format!("{keys} in force, the newest is {}{source}", name(newest))));
    }
    findings
}

/// How many records use another key than the newest, one that the keyring lacks too; none if this user may not see it.
pub fn records_under_older_keys(facts: &Facts) -> Option<u64> {
    let rows = facts.keyring.as_ref().ok()?;
    Some(rows.iter().filter(|row| is_older(row)).map(records).sum())
}

fn is_older(row: &Json) -> bool {
    !flag(row, "newest") && row.get("pepper").is_none_or(Json::is_null)
}

fn records(row: &Json) -> u64 {
    row.get("records").and_then(Json::as_u64).unwrap_or(0)
}

fn flag(row: &Json, name: &str) -> bool {
    match row.get(name) {
        Some(Json::Bool(truth)) => *truth,
        Some(Json::Number(number)) => number.as_u64() != Some(0),
        _ => false,
    }
}

/// Who may read the file, if it is on this machine.
pub fn file(facts: &Facts, node: &Server) -> Finding {
    const CHECK: &str = "keyring file";
    let Some(path) = facts.setting("keyguard.keyring-file") else {
        return facts.without_settings(CHECK);
    };
    if path.is_empty() {
        return match facts.info("keyguard_keyring_source") {
            Some("environment") => Finding::warning(
                CHECK,
                "the keyring comes from the server's environment, which the server's user can read in /proc",
                "prefer keyguard.keyring-file: it can also be reloaded without a restart",
            ),
            _ => Finding::ok(CHECK, "none is set"),
        };
    }
    if !is_here(node.address()) {
        return Finding::not_looked_at(CHECK, format!("{path} is on another machine"));
    }
    let about = match fs::metadata(path) {
        Ok(about) => about,
        Err(error) => return Finding::not_looked_at(CHECK, format!("{path}: {error}")),
    };
    let mode = about.mode() & 0o777;
    let finding = |state, detail: String, advice: String| Finding { check: CHECK, state, detail, advice: Some(advice) };
    if mode & 0o077 != 0 {
        return finding(
            State::Problem,
            format!("{path} has the mode {mode:04o}: others on that machine can have the keys"),
            format!(
                "chmod 600 {path}; if others may have read it, add a new key and KG.REKEY. The server refuses it as it is \
                 at the next start"
            ),
        );
    }
    // A server in a container has another view of processes: then there is nothing to compare.
    let process = facts.info("process_id").and_then(|id| fs::metadata(format!("/proc/{id}")).ok());
    match process {
        Some(process) if process.uid() != about.uid() => finding(
            State::Warning,
            format!("{path} belongs to user {}, the server runs as {}", about.uid(), process.uid()),
            format!("chown {} {path}: else the next start or RELOAD may not be able to read it", process.uid()),
        ),
        _ => Finding::ok(CHECK, format!("{path}, mode {mode:04o}")),
    }
}

/// Whether a server at that address is on this machine.
fn is_here(address: &ConnectionAddr) -> bool {
    match address {
        ConnectionAddr::Tcp(host, _) | ConnectionAddr::TcpTls { host, .. } => {
            host == "localhost" || host.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback())
        }
        _ => true,
    }
}
