//! The other servers: nodes of the cluster, replicas, the primary.

use std::time::{Duration, Instant};

use redis::ConnectionAddr;

use super::Finding;
use super::facts::{Facts, bytes, command};
use crate::failure::Failure;
use crate::reply::Json;
use crate::server::Server;

/// Windows are kept in absolute time: by as much as its clock is off, a replica that takes over is wrong about them.
const SKEW_TO_WARN_OF: Duration = Duration::from_millis(100);

/// A replica tells once a second how far it is.
const SECONDS_TO_WARN_OF: u64 = 5;

/// Of several measures the one with the shortest way is the best.
const MEASURES: usize = 3;

/// The cluster, as one of its nodes has it.
pub struct Cluster {
    /// Whether it is whole.
    pub finding: Finding,
    /// Where that node is.
    pub name: String,
    /// The primaries that have slots, without that node.
    pub others: Vec<Server>,
}

/// The cluster that a node belongs to, if it is one's.
pub async fn cluster(facts: &Facts, node: &Server) -> Option<Cluster> {
    const CHECK: &str = "cluster";
    let name = node.address().to_string();
    match facts.info("cluster_enabled") {
        None => return Some(Cluster { finding: facts.without_info(CHECK), name, others: Vec::new() }),
        Some("1") => {}
        Some(_) => return None,
    }
    let others = match other_primaries(node).await {
        Ok(others) => others,
        Err(failure) => {
            let mut finding = Finding::unanswered(CHECK, &failure);
            finding.detail = format!("of the cluster, this node alone was looked at; {}", finding.detail);
            return Some(Cluster { finding, name, others: Vec::new() });
        }
    };
    let looked_at = format!("{} of its nodes were looked at: this one and all other primaries", others.len() + 1);
    let finding = match node.ask(&command(&["CLUSTER", "INFO"])).await {
        Err(failure) => Finding::unanswered(CHECK, &failure),
        Ok(about) if about.as_str().is_some_and(|about| about.contains("cluster_state:ok")) => {
            Finding::ok(CHECK, format!("whole, as {name} has it; {looked_at}"))
        }
        Ok(_) => Finding::problem(
            CHECK,
            format!("not whole, as {name} has it: slots without a node, or a node that is away; {looked_at}"),
            "redis-cli --cluster check says which; stores in those slots answer CLUSTERDOWN",
        ),
    };
    Some(Cluster { finding, name, others })
}

async fn other_primaries(node: &Server) -> Result<Vec<Server>, Failure> {
    let myself = node.ask(&command(&["CLUSTER", "MYID"])).await?;
    // Ranges of slots, each with its nodes, the primary first: address, port, id.
    let ranges = node.ask(&command(&["CLUSTER", "SLOTS"])).await?;
    let primaries = ranges.as_array().into_iter().flatten().filter_map(|range| range.get(2));
    let mut known = vec![&myself];
    let mut others = Vec::new();
    for primary in primaries {
        let port = primary.get(1).and_then(Json::as_u64).and_then(|port| u16::try_from(port).ok());
        let (Some(port), Some(id)) = (port, primary.get(2)) else {
            return Err(Failure::Strange("CLUSTER SLOTS tells addresses, ports and ids"));
        };
        if known.contains(&id) {
            continue;
        }
        known.push(id);
        // Nodes without an address of their own are where the asked one is.
        let host = match (primary.get(0).and_then(Json::as_str), node.address()) {
            (Some(host), _) if !host.is_empty() && host != "?" => host,
            (_, ConnectionAddr::Tcp(host, _) | ConnectionAddr::TcpTls { host, .. }) => host,
            _ => "127.0.0.1",
        };
        others.push(node.sibling(host, port));
    }
    Ok(others)
}

/// How the replicas follow, or this replica its primary.
pub async fn replication(facts: &Facts, node: &Server) -> Vec<Finding> {
    const CHECK: &str = "replication";
    match facts.info("role") {
        None => return vec![facts.without_info(CHECK)],
        Some("master") => {}
        Some(_) => return vec![as_replica(facts)],
    }
    let replicas: Vec<Replica> =
        (0..).map_while(|index| facts.info(&format!("slave{index}")).map(Replica::from)).collect();
    if replicas.is_empty() {
        return vec![Finding::ok(CHECK, "no replicas")];
    }
    let offset = facts.number("master_repl_offset").unwrap_or(0);
    let mut findings = Vec::new();
    for replica in replicas {
        findings.push(replica.following(offset));
        findings.push(replica.clock(node).await);
    }
    findings
}

fn as_replica(facts: &Facts) -> Finding {
    const CHECK: &str = "replication";
    let name = |name| facts.info(name).unwrap_or("not known");
    let primary = format!("{}:{}", name("master_host"), name("master_port"));
    if facts.info("master_link_status") != Some("up") {
        return Finding::problem(
            CHECK,
            format!("this replica has no link to its primary {primary}"),
            "look at the logs of both: what changes there, revocations too, does not come here",
        );
    }
    Finding::ok(CHECK, format!("a replica of {primary}; ask that one as well"))
}

/// A replica as INFO of its primary has it.
struct Replica {
    host: String,
    port: u16,
    state: String,
    offset: u64,
    lag_seconds: u64,
}

impl From<&str> for Replica {
    fn from(line: &str) -> Self {
        let field = |name: &str| {
            let mut pairs = line.split(',').filter_map(|pair| pair.split_once('='));
            pairs.find(|(key, _)| *key == name).map(|(_, value)| value)
        };
        let number = |name: &str| field(name).and_then(|value| value.parse().ok()).unwrap_or(0);
        Self {
            host: field("ip").unwrap_or_default().to_owned(),
            port: field("port").and_then(|port| port.parse().ok()).unwrap_or(0),
            state: field("state").unwrap_or_default().to_owned(),
            offset: number("offset"),
            lag_seconds: number("lag"),
        }
    }
}

impl Replica {
    fn name(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    fn following(&self, offset: u64) -> Finding {
        const CHECK: &str = "replication";
        const ADVICE: &str = "look at its log, and at client-output-buffer-limit: if it took over now, keys that were revoked \
                              since would work again";
        let name = self.name();
        let behind = bytes(offset.saturating_sub(self.offset));
        if self.state != "online" {
            return Finding::warning(CHECK, format!("the replica {name} is not online yet: {}", self.state), ADVICE);
        }
        let detail = format!("the replica {name} was heard of {} s ago, {behind} behind", self.lag_seconds);
        if self.lag_seconds >= SECONDS_TO_WARN_OF {
            return Finding::warning(CHECK, detail, ADVICE);
        }
        Finding::ok(CHECK, detail)
    }

    async fn clock(&self, primary: &Server) -> Finding {
        const CHECK: &str = "clock";
        let replica = primary.sibling(&self.host, self.port);
        let skew_us = match skew_us(primary, &replica).await {
            Ok(skew) => skew,
            Err(failure) => {
                return Finding::not_looked_at(CHECK, format!("that of the replica {}: {failure}", self.name()));
            }
        };
        let detail = format!("that of the replica {} is {} ms off", self.name(), skew_us / 1000);
        if skew_us.unsigned_abs() > u64::try_from(SKEW_TO_WARN_OF.as_micros()).unwrap_or(u64::MAX) {
            return Finding::warning(
                CHECK,
                detail,
                "let NTP set the clocks of both: windows are kept in absolute time",
            );
        }
        Finding::ok(CHECK, detail)
    }
}

/// By how much the second's clock is ahead of the first's, in microseconds.
async fn skew_us(first: &Server, second: &Server) -> Result<i64, Failure> {
    let begin = Instant::now();
    let one = ahead_us(first, begin).await?;
    Ok(ahead_us(second, begin).await?.saturating_sub(one))
}

/// A server's clock less the time since `begin`, in microseconds, at the middle of the way there and back.
async fn ahead_us(server: &Server, begin: Instant) -> Result<i64, Failure> {
    let mut best: Option<(Duration, i64)> = None;
    for _ in 0..MEASURES {
        let sent = Instant::now();
        let answer = server.ask(&command(&["TIME"])).await?;
        let way = sent.elapsed();
        let number = |index: usize| {
            let value = answer.get(index)?;
            value.as_i64().or_else(|| value.as_str()?.parse().ok())
        };
        let (Some(seconds), Some(micros)) = (number(0), number(1)) else {
            return Err(Failure::Strange("TIME is a pair"));
        };
        let middle_us = i64::try_from((sent - begin + way / 2).as_micros()).unwrap_or(i64::MAX);
        let ahead = seconds.saturating_mul(1_000_000).saturating_add(micros).saturating_sub(middle_us);
        if best.is_none_or(|(shortest, _)| way < shortest) {
            best = Some((way, ahead));
        }
    }
    best.map(|(_, ahead)| ahead).ok_or(Failure::Strange("TIME is a pair"))
}
