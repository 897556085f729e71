//! The keyring: whether the server has it, all of it, and alone.

use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use redis::ConnectionAddr;

use super::Finding;
use super::facts::{Facts, bytes};
use crate::reply::Json;
use crate::server::Server;

/// Where the module makes a keyring when no file is named, in the server's directory.
const DEFAULT_FILE: &str = "keyguard.keyring";

/// The largest file that the module takes.
const MAX_BYTES: u64 = 1 << 20;

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
                "KG.REKEY {store}, for each store, until its state is done and failed is 0; an API key moves when it \
                 is next used. Then KG.KEYRING DROP, which refuses a key that records use"
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

/// Whether the module takes the file as it is, if it can be seen from here.
pub fn file(facts: &Facts, node: &Server) -> Finding {
    const CHECK: &str = "keyring file";
    let Some(path) = facts.setting("keyguard.keyring-file") else {
        return facts.without_settings(CHECK);
    };
    let path = match (path, facts.info("keyguard_keyring_source")) {
        ("", Some("environment")) => {
            return Finding::warning(
                CHECK,
                "the keyring comes from the server's environment, which the server's user can read in /proc",
                "prefer keyguard.keyring-file: it can also be reloaded without a restart",
            );
        }
        ("", Some("file" | "created")) => DEFAULT_FILE,
        ("", _) => return Finding::ok(CHECK, "none is set"),
        (path, _) => path,
    };
    if facts.info("process_id").is_none() {
        return facts.without_info(CHECK);
    }
    let Some(process) = process_of(facts).filter(|_| is_here(node.address())) else {
        return Finding::not_looked_at(
            CHECK,
            format!(
                "{path} was not looked at: the server's process is not to be seen from here (it is on another \
                 machine, or in a container, whose files are others). There, it is to have the mode 0400 or 0600 and to belong to the server's user"
            ),
        );
    };
    // Joined to a path that is absolute, the server's directory is nothing.
    let path = match facts.setting("dir") {
        Some(directory) => Path::new(directory).join(path),
        None => PathBuf::from(path),
    };
    if path.is_relative() {
        return Finding::not_looked_at(
            CHECK,
            format!("{} was not looked at: it is not known in which directory", path.display()),
        );
    }
    match fs::metadata(&path) {
        Ok(about) => as_the_module_sees_it(&path.display().to_string(), &about, process.uid()),
        Err(error) => Finding::not_looked_at(CHECK, format!("{} was not looked at: {error}", path.display())),
    }
}

/// The module takes a file of one of two modes, and no other.
fn as_the_module_sees_it(path: &str, about: &Metadata, server_uid: u32) -> Finding {
    const CHECK: &str = "keyring file";
    const REFUSED: &str = "the server refuses it at the next start and at a RELOAD";
    let mode = about.mode() & 0o777;
    if !about.is_file() {
        return Finding::problem(
            CHECK,
            format!("{path} is no regular file: {REFUSED}"),
            "name the file itself in keyguard.keyring-file",
        );
    }
    if about.len() > MAX_BYTES {
        return Finding::problem(
            CHECK,
            format!("{path} has more than {}: {REFUSED}", bytes(MAX_BYTES)),
            "is it the right file?",
        );
    }
    if mode & 0o077 != 0 {
        return Finding::problem(
            CHECK,
            format!("{path} has the mode {mode:04o}: others on that machine can have the keys, and {REFUSED}"),
            format!("chmod 600 {path}; if others may have read it, add a new key and KG.REKEY"),
        );
    }
    if !matches!(mode, 0o400 | 0o600) {
        return Finding::problem(
            CHECK,
            format!("{path} has the mode {mode:04o}: {REFUSED}, which take 0400 and 0600 alone"),
            format!("chmod 600 {path}"),
        );
    }
    // The superuser reads whatever there is.
    if server_uid != about.uid() && server_uid != 0 {
        return Finding::warning(
            CHECK,
            format!("{path} belongs to user {}, the server runs as {server_uid}", about.uid()),
            format!("chown {server_uid} {path}: else the next start or RELOAD cannot read it"),
        );
    }
    Finding::ok(CHECK, format!("{path}, mode {mode:04o}"))
}

/// The server's process, if it is one of those that can be seen from here: in a container it has another number, or the
/// number that another process has here.
fn process_of(facts: &Facts) -> Option<Metadata> {
    let folder = PathBuf::from("/proc").join(facts.info("process_id")?);
    let arguments = fs::read(folder.join("cmdline")).ok()?;
    let arguments = String::from_utf8_lossy(&arguments);
    let program = Path::new(facts.info("executable")?).file_name()?.to_str()?;
    is_that_server(&arguments, program, facts.info("tcp_port")?).then(|| fs::metadata(folder).ok()).flatten()
}

/// Whether a process is the server of this program at this port, by what the server calls itself, such as
/// `redis-server 127.0.0.1:6379`. One without a port listens on a socket alone.
fn is_that_server(arguments: &str, program: &str, port: &str) -> bool {
    let mut words = arguments.split([' ', '\0']);
    let is_program = words.next().is_some_and(|title| Path::new(title).file_name().is_some_and(|name| name == program));
    is_program && (port == "0" || words.any(|word| word.rsplit_once(':').is_some_and(|(_, of)| of == port)))
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

#[cfg(test)]
mod tests {
    use super::is_that_server;

    #[test]
    fn a_process_is_the_server_if_it_is_its_program_at_its_port() {
        for (arguments, program, port, expected) in [
            ("/usr/bin/redis-server 127.0.0.1:6379", "redis-server", "6379", true),
            ("redis-server *:6379 [cluster]\0\0", "redis-server", "6379", true),
            ("valkey-server [::1]:7000", "valkey-server", "7000", true),
            ("redis-server /run/redis.sock", "redis-server", "0", true),
            ("redis-server *:6380", "redis-server", "6379", false),
            ("redis-server *:16379", "redis-server", "6379", false),
            ("/sbin/init\0splash\0", "redis-server", "6379", false),
            ("sh\0-c\0redis-server *:6379\0", "redis-server", "6379", false),
            ("", "redis-server", "0", false),
        ] {
            assert_eq!(is_that_server(arguments, program, port), expected, "{arguments:?}");
        }
    }
}
