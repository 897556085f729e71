//! The store: what is in it, how large it is, and whether its calls are counted.

use super::Finding;
use super::facts::{Facts, bytes, command};
use crate::reply::Json;
use crate::server::Server;

/// The keys of a store that grow with it. None of them ever has an expiry.
const LARGE: [&str; 4] = ["usage", "stats:all", "ips", "orgs"];

/// Whether there is such a store.
pub async fn store(server: &Server, store: &str) -> Finding {
    const CHECK: &str = "store";
    let about = match server.ask(&command(&["KG.GETSTORE", store])).await {
        Ok(about) => about,
        Err(failure) if failure.code() == Some("NOSTORE") => {
            return Finding::warning(
                CHECK,
                format!("there is no store {store} yet"),
                "name another with --store (or KEYGUARD_STORE), or begin: KG.ADDORG and KG.ADDKEY make it",
            );
        }
        Err(failure) => return Finding::unanswered(CHECK, &failure),
    };
    let count = |name: &str| about.get(name).and_then(Json::as_u64).unwrap_or(0);
    let detail = format!(
        "{store} has {} organizations, {} API keys, {} vault keys",
        count("organizations"),
        count("api_keys"),
        count("vault_keys")
    );
    Finding::ok(CHECK, detail)
}

/// Whether calls are counted, and what found no room, on all nodes that were looked at.
pub async fn usage(nodes: &[Facts], server: &Server, store: &str) -> Finding {
    const CHECK: &str = "usage";
    let (mut dropped, mut off) = (0, "");
    for facts in nodes {
        let Some(here) = facts.number("keyguard_usage_rows_dropped") else {
            return facts.without_info(CHECK);
        };
        dropped += here;
        match facts.setting("keyguard.usage") {
            None => return facts.without_settings(CHECK),
            Some("no") if nodes.len() == 1 => off = "calls are not counted (keyguard.usage no); ",
            Some("no") => off = "some nodes do not count calls (keyguard.usage no); ",
            Some(_) => {}
        }
    }
    let stats = match server.ask(&command(&["KG.STATS", store])).await {
        Ok(stats) => stats,
        Err(failure) if failure.code() == Some("NOSTORE") => {
            return Finding::ok(CHECK, format!("{off}no store, no calls"));
        }
        Err(failure) => return Finding::unanswered(CHECK, &failure),
    };
    let count = |name: &str| stats.get(name).and_then(Json::as_u64).unwrap_or(0);
    let detail = format!(
        "{off}{} requests, {} in the last hour; {} refused, {} in the last hour; {} log entries, {} found no room",
        count("requests"),
        count("requests_last_hour"),
        count("refused"),
        count("refused_last_hour"),
        count("log_entries"),
        count("unlogged").max(dropped)
    );
    if dropped > 0 {
        return Finding::warning(
            CHECK,
            detail,
            "more calls came than could be written down: see whom KG.STATS and KG.LISTIPS name",
        );
    }
    Finding::ok(CHECK, detail)
}

/// What the larger keys take.
pub async fn sizes(server: &Server, store: &str) -> Finding {
    const CHECK: &str = "sizes";
    let mut sizes = Vec::new();
    for name in LARGE {
        let key = format!("{{{store}}}:{name}");
        match server.ask(&command(&["MEMORY", "USAGE", &key])).await {
            Ok(size) => sizes.extend(size.as_u64().map(|size| format!("{key} {}", bytes(size)))),
            Err(failure) => return Finding::unanswered(CHECK, &failure),
        }
    }
    if sizes.is_empty() {
        return Finding::ok(CHECK, "nothing large");
    }
    Finding::ok(CHECK, sizes.join(", "))
}
