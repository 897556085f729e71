//! One look at a server.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use redis::Cmd;

use crate::failure::Failure;
use crate::reply::Json;
use crate::server::Server;

/// How many address rules one look takes.
const RULES: u64 = 100;

/// What a server had counted at an instant. What this user may not see is none.
pub struct Sample {
    taken: Instant,
    /// INFO, by the names of its lines.
    info: Option<BTreeMap<String, u64>>,
    /// KG.STATS.
    pub stats: Option<Json>,
    /// The first page of the address rules that block, and whether there are more.
    pub blocked: Option<(Vec<Json>, bool)>,
}

impl Sample {
    /// Looks once.
    ///
    /// # Errors
    /// That there is no server, no module, or no such store. What this user may not ask is left out.
    pub async fn of(server: &Server, store: &str) -> Result<Self, Failure> {
        let info = permitted(server.ask(redis::cmd("INFO").arg("everything")).await)?;
        let stats = of_store(server.ask(redis::cmd("KG.STATS").arg(store)).await)?;
        let list: &Cmd = &redis::cmd("KG.LISTIPS").arg(store).arg("COUNT").arg(RULES).clone();
        let rules = of_store(server.ask(list).await)?;
        Ok(Self { taken: Instant::now(), info: info.map(numbers), stats, blocked: rules.map(blocking) })
    }

    /// A number of INFO.
    pub fn number(&self, name: &str) -> Option<u64> {
        self.info.as_ref()?.get(name).copied()
    }

    /// A number of KG.STATS.
    pub fn stat(&self, name: &str) -> Option<u64> {
        self.stats.as_ref()?.get(name)?.as_u64()
    }

    /// The answers of KG.AUTH by their codes, as INFO counts them.
    pub fn answers(&self) -> impl Iterator<Item = (&str, u64)> {
        let lines = self.info.iter().flatten();
        lines.filter_map(|(name, count)| Some((name.strip_prefix("keyguard_auth_")?, *count)))
    }

    /// The time from that look to this.
    pub fn since(&self, before: &Self) -> Duration {
        self.taken.saturating_duration_since(before.taken)
    }
}

/// Nothing, where this user may not ask.
fn permitted(answer: Result<Json, Failure>) -> Result<Option<Json>, Failure> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(Failure::NotPermitted(_)) => Ok(None),
        Err(failure) => Err(failure),
    }
}

/// Nothing also of a store that is not there yet: it may come while one looks.
fn of_store(answer: Result<Json, Failure>) -> Result<Option<Json>, Failure> {
    match answer {
        Err(failure) if failure.code() == Some("NOSTORE") => Ok(None),
        answer => permitted(answer),
    }
}

/// What the nodes of a cluster have together is the largest of theirs, and not their sum.
const LARGEST: &str = "keyguard_longest_wait_ms";

/// The lines of INFO that are whole numbers. A cluster answers a text for each node: their sum, or the largest.
fn numbers(info: Json) -> BTreeMap<String, u64> {
    let texts: Vec<String> = match info {
        Json::String(text) => vec![text],
        Json::Object(nodes) => nodes.into_iter().filter_map(|(_, text)| Some(text.as_str()?.to_owned())).collect(),
        _ => Vec::new(),
    };
    let mut sums: BTreeMap<String, u64> = BTreeMap::new();
    for (name, value) in texts.iter().flat_map(|text| text.lines()).filter_map(|line| line.split_once(':')) {
        if let Ok(number) = value.trim().parse::<u64>() {
            let sum = sums.entry(name.to_owned()).or_default();
            *sum = if name == LARGEST { number.max(*sum) } else { sum.saturating_add(number) };
        }
    }
    sums
}

fn blocking(page: Json) -> (Vec<Json>, bool) {
    let Json::Array(mut parts) = page else { return (Vec::new(), false) };
    let rules = match parts.pop() {
        Some(Json::Array(rules)) => rules,
        _ => Vec::new(),
    };
    let more = parts.pop().is_some_and(|cursor| cursor != "0" && cursor != 0);
    let blocks = rules.into_iter().filter(|rule| rule.get("kind").is_none_or(|kind| kind != "allow"));
    (blocks.collect(), more)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::numbers;

    #[test]
    fn the_nodes_of_a_cluster_are_summed_up_and_of_their_longest_waits_the_longest_counts() {
        let node = |waiters: u64, longest_ms: u64| {
            format!(
                "# keyguard\r\nkeyguard_waiters:{waiters}\r\nkeyguard_longest_wait_ms:{longest_ms}\r\nrole:master\r\n"
            )
        };
        let all = numbers(json!({ "one:7000": node(2, 300), "two:7000": node(3, 900), "three:7000": node(0, 0) }));
        assert_eq!((all.get("keyguard_waiters"), all.get("keyguard_longest_wait_ms")), (Some(&5), Some(&900)));
        let one = numbers(json!(node(2, 300)));
        assert_eq!((one.get("keyguard_waiters"), one.get("keyguard_longest_wait_ms")), (Some(&2), Some(&300)));
        assert!(!one.contains_key("role"));
    }
}
