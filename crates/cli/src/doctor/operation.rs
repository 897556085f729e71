//! How the server is run: version, memory, disk, what works in the background.

use super::facts::{Facts, bytes, command};
use super::{Finding, keyring};
use crate::output;
use crate::reply::Json;
use crate::server::Server;

/// Of `maxmemory`, in percent: from here on the next write may be refused.
const NEARLY_FULL: u64 = 90;

/// Which server this is.
pub fn server(facts: &Facts, node: &Server) -> Finding {
    const CHECK: &str = "server";
    let address = node.address();
    // A Valkey tells a version of Redis too, for those who look for one.
    let (name, version) = match (facts.info("valkey_version"), facts.info("redis_version")) {
        (Some(version), _) => ("Valkey", version),
        (None, Some(version)) => ("Redis", version),
        _ => return facts.without_info(CHECK),
    };
    let mut numbers = version.split('.').map_while(|part| part.parse().ok());
    let number: (u32, u32) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let least = if name == "Valkey" { (7, 2) } else { (7, 0) };
    let detail = format!("{name} {version} at {address}");
    if number < least {
        return Finding::problem(
            CHECK,
            format!("{detail} is too old"),
            "keyguard needs Redis 7.0 or Valkey 7.2 or later",
        );
    }
    let role = facts.info("role").map_or("", |role| if role == "master" { ", a primary" } else { ", a replica" });
    Finding::ok(CHECK, detail + role)
}

/// Which version of the module, beside this program's own.
pub fn module(facts: &Facts) -> Finding {
    const CHECK: &str = "module";
    let ours = env!("CARGO_PKG_VERSION");
    match facts.module_version() {
        None => facts.without_info(CHECK),
        Some(theirs) if theirs != ours => Finding::warning(
            CHECK,
            format!("keyguard {theirs} is loaded, and this program is of {ours}"),
            "use the program that came with the module",
        ),
        Some(theirs) => Finding::ok(CHECK, format!("keyguard {theirs}")),
    }
}

/// Whether keys may vanish when memory is full.
pub fn eviction(facts: &Facts) -> Finding {
    const CHECK: &str = "eviction";
    let Some(policy) = facts.info("maxmemory_policy").or_else(|| facts.setting("maxmemory-policy")) else {
        return facts.without_info(CHECK);
    };
    let limit = facts.number("maxmemory").or_else(|| facts.setting("maxmemory")?.parse().ok());
    const ADVICE: &str = "CONFIG SET maxmemory-policy noeviction, and the same in the configuration file: an evicted record is a \
                          key that stops working, an evicted bucket a limit that starts afresh";
    match (policy, limit) {
        ("noeviction", _) => Finding::ok(CHECK, policy),
        (policy, Some(0)) => Finding::warning(CHECK, format!("{policy}, harmless only until maxmemory is set"), ADVICE),
        (policy, None) => Finding::warning(CHECK, format!("{policy}; it is unknown whether maxmemory is set"), ADVICE),
        (policy, Some(limit)) => {
            Finding::problem(CHECK, format!("{policy} takes keys away at {}", bytes(limit)), ADVICE)
        }
    }
}

/// Whether there is room for more.
pub fn memory(facts: &Facts) -> Finding {
    const CHECK: &str = "memory";
    let (Some(used), Some(limit)) = (facts.number("used_memory"), facts.number("maxmemory")) else {
        return facts.without_info(CHECK);
    };
    if limit == 0 {
        return Finding::ok(CHECK, format!("{} used, maxmemory is not set", bytes(used)));
    }
    let detail = format!("{} used of {}", bytes(used), bytes(limit));
    if used / NEARLY_FULL >= limit / 100 {
        return Finding::warning(
            CHECK,
            detail,
            "raise maxmemory: full, the server refuses new keys and claims (OOM); KG.REVOKE goes on",
        );
    }
    Finding::ok(CHECK, detail)
}

/// Half a minute is what the system keeps to itself when nobody tells it to write.
const UNSYNCED: &str = "a crash of the machine loses up to half a minute, revocations too";

const APPEND_ONLY: &str = "CONFIG SET appendonly yes, and the same in the configuration file";

/// What a crash loses.
pub fn persistence(facts: &Facts) -> Finding {
    const CHECK: &str = "persistence";
    let Some(append_only) = facts.info("aof_enabled") else {
        return facts.without_info(CHECK);
    };
    let failed = |name| facts.info(name).is_some_and(|status| status != "ok");
    let saves = facts.setting("save");
    if failed("aof_last_write_status") {
        return Finding::problem(
            CHECK,
            "the last write to the append-only file failed",
            "look at the server's log, and at the disk: until one succeeds, nobody is let in and no key can be \
             revoked (MISCONF)",
        );
    }
    if failed("rdb_last_bgsave_status") {
        let goes_on = saves == Some("") || facts.setting("stop-writes-on-bgsave-error") == Some("no");
        return Finding::problem(
            CHECK,
            "the last save failed",
            if goes_on {
                "look at the server's log, and at the disk; BGSAVE tries again"
            } else {
                "look at the server's log, and at the disk: until one succeeds, nobody is let in and no key can be \
                 revoked (MISCONF); BGSAVE tries again"
            },
        );
    }
    if failed("aof_last_bgrewrite_status") {
        return Finding::problem(
            CHECK,
            "the last rewrite of the append-only file failed: it grows, and if it is new, it is not in force yet",
            "look at the server's log, and at the disk; BGREWRITEAOF tries again",
        );
    }
    if append_only == "1" {
        return match facts.setting("appendfsync") {
            None => facts.without_settings(CHECK),
            Some("no") => Finding::warning(
                CHECK,
                format!("append-only file, appendfsync no: {UNSYNCED}"),
                "CONFIG SET appendfsync everysec, and the same in the configuration file",
            ),
            Some(sync) if facts.setting("no-appendfsync-on-rewrite") == Some("yes") => Finding::warning(
                CHECK,
                format!("append-only file, appendfsync {sync}, but not while it is rewritten: then {UNSYNCED}"),
                "CONFIG SET no-appendfsync-on-rewrite no, and the same in the configuration file",
            ),
            Some("everysec") => Finding::ok(
                CHECK,
                "append-only file, appendfsync everysec: a crash of the machine loses a second or two, revocations too",
            ),
            Some(sync) => Finding::ok(CHECK, format!("append-only file, appendfsync {sync}")),
        };
    }
    let is_replica = facts.info("role").is_some_and(|role| role != "master");
    match saves {
        None => facts.without_settings(CHECK),
        // What it has, its primary has too, as long as that is there.
        Some("") if is_replica => Finding::warning(
            CHECK,
            "neither an append-only file nor saves: after a restart this replica is empty until its primary has sent \
             it everything, and as a primary it would lose every key",
            APPEND_ONLY,
        ),
        Some("") => Finding::problem(
            CHECK,
            "neither an append-only file nor saves: a restart loses every key, and empties the replicas too",
            APPEND_ONLY,
        ),
        Some(saves) => Finding::warning(
            CHECK,
            format!(
                "saves alone (save {saves}): a crash loses what came after the last one, revocations too; just now \
                 {} changes",
                facts.number("rdb_changes_since_last_save").unwrap_or(0)
            ),
            APPEND_ONLY,
        ),
    }
}

/// Whether a crash report would hold the arguments of the command that ran, a secret among them. Older servers don't ask.
pub fn crash_reports(facts: &Facts) -> Option<Finding> {
    const CHECK: &str = "crash reports";
    Some(match facts.setting("hide-user-data-from-log") {
        None if facts.has_settings() => return None,
        None => facts.without_settings(CHECK),
        Some("yes") => Finding::ok(CHECK, "without the arguments of commands"),
        _ => Finding::warning(
            CHECK,
            "a crash report in the server's log would hold the running command's arguments, and so a secret",
            "CONFIG SET hide-user-data-from-log yes, and the same in the configuration file",
        ),
    })
}

/// Whether snapshots are made, and whether they and imports succeed.
///
/// INFO counts failures of all stores since the server started; how the last one of this store ended, its STATUS says,
/// and that is what counts.
pub async fn snapshots(facts: &Facts, server: &Server, store: &str) -> Finding {
    const CHECK: &str = "snapshots";
    let Some(folder) = facts.setting("keyguard.snapshot-dir") else {
        return facts.without_settings(CHECK);
    };
    let (Some(done), Some(failed), Some(imports_failed)) = (
        facts.number("keyguard_snapshots_done"),
        facts.number("keyguard_snapshots_failed"),
        facts.number("keyguard_imports_failed"),
    ) else {
        return facts.without_info(CHECK);
    };
    let mut before = Vec::new();
    for (what, name, failed) in [("snapshot", "KG.SNAPSHOT", failed), ("import", "KG.IMPORT", imports_failed)] {
        if failed == 0 {
            continue;
        }
        let last = match server.ask(&command(&[name, store, "STATUS"])).await {
            Ok(last) => last,
            Err(failure) if failure.code() == Some("NOSTORE") => Json::Null,
            Err(failure) => return Finding::unanswered(CHECK, &failure),
        };
        match last.get("state").and_then(Json::as_str) {
            Some("failed") => {
                return Finding::warning(
                    CHECK,
                    format!("the last {what} of {store} failed{}: {}", ended(&last), output::cell(&last, "error")),
                    format!("put that right, and repeat it: a {name} that succeeds ends this warning"),
                );
            }
            Some("done" | "running") => before.push(format!("{failed} {what}s failed before, or of other stores")),
            _ => {
                return Finding::warning(
                    CHECK,
                    format!("since the start {failed} {what}s failed, of other stores than {store}"),
                    format!("{name} store STATUS of each says when and why, and so does the server's log"),
                );
            }
        }
    }
    let before = if before.is_empty() { String::new() } else { format!("; since the start {}", before.join(" and ")) };
    let how = match facts.setting("keyguard.snapshot-every") {
        _ if folder.is_empty() => return Finding::ok(CHECK, format!("none: keyguard.snapshot-dir is not set{before}")),
        Some("off") | None => "when asked for".to_owned(),
        Some(every) => format!("every {every}"),
    };
    Finding::ok(CHECK, format!("into {folder}, {how}; {done} since the start{before}"))
}

/// When something ended, where its STATUS says so.
fn ended(last: &Json) -> String {
    let at = last.get("ended_at").and_then(Json::as_i64).map(|_| output::cell(last, "ended_at"));
    at.map_or_else(String::new, |at| format!(" at {at}"))
}

/// Who stands in line.
pub fn waiting(facts: &Facts) -> Finding {
    const CHECK: &str = "waiting";
    let Some(waiters) = facts.number("keyguard_waiters") else {
        return facts.without_info(CHECK);
    };
    let number = |name| facts.number(name).unwrap_or(0);
    let (lines, longest_ms) = (number("keyguard_waiting_lines"), number("keyguard_longest_wait_ms"));
    if waiters == 0 {
        return Finding::ok(CHECK, "nobody");
    }
    Finding::ok(CHECK, format!("{waiters} claims in {lines} lines, the longest for {longest_ms} ms"))
}

/// How the KG.REKEY at work stands, or the last one, whose store the server does not tell. What failed may be a key
/// that the keyring lacks for the moment: so nothing here says that a record should be deleted.
pub fn rekeying(facts: &Facts) -> Option<Finding> {
    const CHECK: &str = "rekeying";
    let number = |name| facts.number(name);
    let (Some(running), Some(done), Some(left), Some(failed)) = (
        number("keyguard_rekey_running"),
        number("keyguard_rekey_done"),
        number("keyguard_rekey_left"),
        number("keyguard_rekey_failed"),
    ) else {
        return Some(facts.without_info(CHECK));
    };
    if running > 0 {
        return Some(Finding::ok(
            CHECK,
            format!(
                "KG.REKEY is under way: {done} vault keys done, at most {left} left, {failed} of them could not be \
                 opened so far"
            ),
        ));
    }
    // INFO tells of it for as long as nothing is to be done again: also when what failed has been deleted since.
    if failed == 0 || keyring::records_under_older_keys(facts) == Some(0) {
        return None;
    }
    Some(Finding::warning(
        CHECK,
        format!("the last KG.REKEY could not open {failed} vault keys; run it again"),
        "with all older keys in the keyring file: KG.KEYRING RELOAD, then KG.REKEY (it begins anew after a RELOAD, \
         or after its STOP). What fails again was changed from outside: KG.REVEAL says so, and a snapshot may have \
         it. Delete nothing before, neither keys of the keyring nor records",
    ))
}
