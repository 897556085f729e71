//! The one way to the server: a connection that all of the process shares, and that comes back by itself.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::cluster::ClusterClientBuilder;
use redis::cluster_async::ClusterConnection;
use redis::cluster_routing::{RoutingInfo, SingleNodeRoutingInfo};
use redis::io::tcp::TcpSettings;
use redis::{
    Arg, AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ConnectionInfo, ErrorKind, IntoConnectionInfo,
    ProtocolVersion, RedisError, RedisResult, ServerErrorKind, Value,
};
use tokio::sync::watch;
use tokio::time;
use url::Url;

use crate::failure::Failure;
use crate::reply::{self, Json};

/// How long to wait for an answer, the connecting included. Commands of the module take microseconds.
pub const TIMEOUT: Duration = Duration::from_secs(2);

/// How long an attempt to connect may take, with all nodes of a cluster: longer than anybody waits for it, so that one node that hangs
/// keeps nobody from the others.
const CONNECTING: Duration = Duration::from_secs(10);

/// How long one node of a cluster may take to be connected to, beyond what its distance takes: while the client looks for one that hangs,
/// it asks the others nothing.
const CONNECTING_TO_NODE: Duration = Duration::from_millis(500);

/// By how much longer than to another one it may take to be connected to a node.
const FARTHER: u32 = 3;

/// How long a connection to a cluster is kept in any case: a node that stays away is no reason to connect to all the others without end.
const KEPT: Duration = Duration::from_millis(500);

/// How long to wait for the answer of a command that was asked to wait itself: longer than the module ever does.
const PATIENCE: Duration = Duration::from_secs(367 * 24 * 3600);

/// How many answers in a row may fail to come before a server is given up of which something is awaited: it may be busy for a while.
const MISSED: u32 = 2;

/// How often a cluster may send a command elsewhere before that is an answer.
const REDIRECTIONS: usize = 5;

/// How long to wait before a node is asked again that was not ready for a slot.
const PAUSE: Duration = Duration::from_millis(20);

/// A Redis or Valkey server, or a cluster of them; cheap to clone. It is connected to when it is first asked something, and again
/// after it was away. Nothing is done twice: a KG.AUTH whose answer was lost may have been charged, so that only what a node of a
/// cluster says that it has not done is asked of another.
#[derive(Clone)]
pub struct Server(Arc<Inner>);

struct Inner {
    info: ConnectionInfo,
    /// How long an answer may take.
    patience: Duration,
    /// Whether a node of a cluster stands for itself.
    alone: bool,
    link: RwLock<Option<Arc<Link>>>,
    /// The cluster when it was last connected to, if this is one.
    known: RwLock<Known>,
    /// The last attempt to connect: one at a time is made.
    attempt: Mutex<Option<Attempt>>,
}

/// What comes of an attempt to connect; nothing while it is under way.
type Attempt = watch::Receiver<Option<RedisResult<Arc<Link>>>>;

enum Link {
    Single(MultiplexedConnection),
    /// And since when.
    Cluster(ClusterConnection, Instant),
}

/// What is remembered of a cluster.
#[derive(Clone)]
struct Known {
    /// Its nodes: any of them knows the others.
    nodes: Vec<ConnectionInfo>,
    /// How long one of them may take to be connected to.
    allowance: Duration,
}

impl Default for Known {
    fn default() -> Self {
        Self { nodes: Vec::new(), allowance: CONNECTING_TO_NODE }
    }
}

impl Server {
    /// The server at a URL; it need not be there yet.
    ///
    /// # Errors
    /// [`Failure::Usage`] if this is no such URL.
    pub fn at(url: &str) -> Result<Self, Failure> {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let info = parse(url).map_err(|why| Failure::Usage(format!("--url is not understood: {why}")))?;
        // Maps come as maps.
        let settings = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
        let info = info.set_redis_settings(settings).set_tcp_settings(tcp_settings());
        Ok(Self::new(info, TIMEOUT, false))
    }

    fn new(info: ConnectionInfo, patience: Duration, alone: bool) -> Self {
        let (link, known, attempt) = (RwLock::default(), RwLock::default(), Mutex::default());
        Self(Arc::new(Inner { info, patience, alone, link, known, attempt }))
    }

    /// The same, for commands that wait: it is connected to within [`TIMEOUT`], and may answer whenever it likes.
    pub fn patient(&self) -> Self {
        Self::new(self.0.info.clone(), PATIENCE, self.0.alone)
    }

    /// The node that the URL names, for itself, also where it is one of a cluster: for what is each server's own.
    pub fn node(&self) -> Self {
        Self::new(self.0.info.clone(), self.0.patience, true)
    }

    /// Another node, by the same user and the same TLS; for itself, also where it is one of a cluster.
    pub fn sibling(&self, host: &str, port: u16) -> Self {
        Self::new(sibling(&self.0.info, host, port), self.0.patience, true)
    }

    /// Where the URL leads, without user and password.
    pub fn address(&self) -> &ConnectionAddr {
        self.0.info.addr()
    }

    /// What the server answers.
    ///
    /// # Errors
    /// What it refuses, or why there is no answer.
    pub async fn ask(&self, command: &Cmd) -> Result<Json, Failure> {
        self.ask_raw(command).await.map(reply::json)
    }

    /// What the server answers, byte by byte: for secrets.
    ///
    /// # Errors
    /// What it refuses, or why there is no answer.
    pub async fn ask_raw(&self, command: &Cmd) -> Result<Value, Failure> {
        let mut used = None;
        let asking = async {
            let link = self.link().await.map_err(|error| Failure::connecting(self.address(), error))?;
            let answer = match &**used.insert(link) {
                Link::Single(connection) => connection.clone().req_packed_command(command).await,
                Link::Cluster(connection, _) => ask_cluster(connection.clone(), command).await,
            };
            Ok::<_, Failure>(answer.and_then(Value::extract_error))
        };
        let answer = match time::timeout(self.0.patience, asking).await {
            Ok(answer) => answer?,
            Err(_) if used.is_none() => {
                return Err(Failure::Unreachable(format!("cannot connect to {} within two seconds", self.address())));
            }
            Err(_) => Err(RedisError::from((ErrorKind::Io, "no answer within two seconds"))),
        };
        answer.map_err(|error| {
            if let Some(link) = used.as_ref().filter(|_| is_over(&error)) {
                self.give_up(link);
            }
            // Only INFO would have said that this is a cluster.
            let is_hidden = matches!(used.as_deref(), Some(Link::Single(_))) && !self.0.alone;
            match error.kind() {
                ErrorKind::Server(ServerErrorKind::Moved) if is_hidden => Failure::NotPermitted(
                    "this is a cluster, and another node has the store: to find it, the user needs +info and +cluster|slots"
                        .to_owned(),
                ),
                _ => error.into(),
            }
        })
    }

    /// Ends when the server answers nothing any more: a command that waits would do so for ever. It is asked on and on, with too few of the
    /// command's own words, which it refuses whoever asks; that is an answer.
    pub async fn silence(&self, command: &Cmd) -> Failure {
        let mut question = Cmd::new();
        for word in command.args_iter().take(2) {
            if let Arg::Simple(word) = word {
                question.arg(word);
            }
        }
        let mut missed = 0;
        loop {
            time::sleep(TIMEOUT).await;
            match self.ask(&question).await {
                Err(failure @ Failure::Unreachable(_)) if missed >= MISSED => return failure,
                Err(Failure::Unreachable(_)) => missed += 1,
                _ => missed = 0,
            }
        }
    }

    /// The connection, made if there is none.
    async fn link(&self) -> RedisResult<Arc<Link>> {
        if let Some(link) = self.0.present() {
            return Ok(link);
        }
        let mut attempt = self.0.attempt();
        match attempt.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(outcome)) => outcome.clone(),
            _ => Err(RedisError::from((ErrorKind::Io, "connecting was given up"))),
        }
    }

    /// The next who asks connects anew, unless that has happened already. A connection to a cluster stays until there is another: it
    /// knows more nodes than the one in the URL, and only what it asks of a node that hangs is lost.
    fn give_up(&self, over: &Arc<Link>) {
        let mut link = self.0.link.write().unwrap_or_else(PoisonError::into_inner);
        if link.as_ref().is_none_or(|link| !Arc::ptr_eq(link, over)) {
            return;
        }
        match **over {
            Link::Single(_) => *link = None,
            Link::Cluster(_, since) => {
                drop(link);
                if since.elapsed() >= KEPT {
                    drop(self.0.attempt());
                }
            }
        }
    }
}

impl Inner {
    fn present(&self) -> Option<Arc<Link>> {
        self.link.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The attempt to connect that is under way, or a new one. It is a task of its own: whoever asks has two seconds for everything, and
    /// when these are over, what the attempt has reached is not lost for those who come after him.
    fn attempt(self: &Arc<Self>) -> Attempt {
        let mut attempt = self.attempt.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(attempt) =
            attempt.as_ref().filter(|attempt| attempt.borrow().is_none() && attempt.has_changed().is_ok())
        {
            return attempt.clone();
        }
        let (told, outcome) = watch::channel(None);
        let inner = Arc::clone(self);
        tokio::spawn(async move {
            let connected = time::timeout(CONNECTING, connect(&inner)).await;
            let connected =
                connected.unwrap_or_else(|_| Err(RedisError::from((ErrorKind::Io, "connecting took too long"))));
            let connected = connected.map(Arc::new);
            if let Ok(link) = &connected {
                *inner.link.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(link));
            }
            told.send_replace(Some(connected));
        });
        *attempt = Some(outcome.clone());
        outcome
    }
}

/// What a URL says, or what is wrong with it, in words that repeat nothing of it.
fn parse(url: &str) -> Result<ConnectionInfo, String> {
    const SCHEMES: [&str; 7] =
        ["redis://", "rediss://", "valkey://", "valkeys://", "unix://", "redis+unix://", "valkey+unix://"];
    if !SCHEMES.iter().any(|scheme| url.starts_with(scheme)) {
        return Err("it must begin with redis://, rediss:// or unix://".to_owned());
    }
    let parsed = Url::parse(url).map_err(|why| {
        // The usual reason for a port that is none is a password with a slash in it.
        format!("{why}; it is redis://[user:password@]host[:port][/database], with %2F for a / in a password")
    })?;
    parsed.into_connection_info().map_err(|error| {
        let text = error.to_string();
        text.split(" - ").next().unwrap_or_default().to_lowercase()
    })
}

/// Whether an error is about the connection and not about the command: a primary that has become a replica may have a successor behind the
/// same name, and a user that is not let in is let in only by a new connection.
fn is_over(error: &RedisError) -> bool {
    match error.kind() {
        ErrorKind::Server(kind) => kind == ServerErrorKind::ReadOnly,
        ErrorKind::Extension => matches!(error.code(), Some("NOAUTH" | "WRONGPASS")),
        _ => true,
    }
}

/// What a node of a cluster refuses because another has the slot is asked there; it was not done.
async fn ask_cluster(mut connection: ClusterConnection, command: &Cmd) -> RedisResult<Value> {
    let mut answer = connection.req_packed_command(command).await.and_then(Value::extract_error);
    for _ in 0..REDIRECTIONS {
        let Err(error) = &answer else { break };
        let node = error.redirect_node().and_then(|(address, _)| address.rsplit_once(':'));
        let node = node.and_then(|(host, port)| {
            Some(SingleNodeRoutingInfo::ByAddress { host: host.to_owned(), port: port.parse().ok()? })
        });
        answer = match (error.kind(), node) {
            (ErrorKind::Server(ServerErrorKind::Moved), Some(node)) => {
                connection.route_command(command.clone(), RoutingInfo::SingleNode(node)).await
            }
            (ErrorKind::Server(ServerErrorKind::Ask), Some(node)) => {
                let mut pipeline = redis::pipe();
                pipeline.cmd("ASKING").add_command(command.clone());
                let answers = connection.route_pipeline(pipeline, 1, 1, node).await;
                answers.map(|answers| answers.into_iter().next().unwrap_or(Value::Nil))
            }
            (ErrorKind::Server(ServerErrorKind::TryAgain), _) => {
                time::sleep(PAUSE).await;
                connection.req_packed_command(command).await
            }
            _ => break,
        }
        .and_then(Value::extract_error);
    }
    answer
}

/// A peer that vanished without a word is noticed: nothing that was sent is acknowledged any more.
fn tcp_settings() -> TcpSettings {
    let settings = TcpSettings::default();
    #[cfg(target_os = "linux")]
    let settings = settings.set_user_timeout(TIMEOUT);
    settings
}

/// One that turns out to be a node of a cluster is connected to as a cluster.
async fn connect(inner: &Inner) -> RedisResult<Link> {
    let Inner { info, patience, alone, .. } = inner;
    let config =
        AsyncConnectionConfig::new().set_connection_timeout(Some(TIMEOUT)).set_response_timeout(Some(*patience));
    let client = Client::open(info.clone())?;
    let begun = Instant::now();
    let mut single = match client.get_multiplexed_async_connection_with_config(&config).await {
        Ok(single) => single,
        // It may be the one that is away, and the others go on without it.
        Err(error) => {
            let known = inner.known.read().unwrap_or_else(PoisonError::into_inner).clone();
            let is_away = matches!(Failure::from(error.clone()), Failure::Unreachable(_));
            return match is_away && !known.nodes.is_empty() {
                true => connect_cluster(inner, known).await.map_err(|_| error),
                false => Err(error),
            };
        }
    };
    let allowance = TIMEOUT.min(CONNECTING_TO_NODE + FARTHER * begun.elapsed());
    if *alone {
        return Ok(Link::Single(single));
    }
    let about: RedisResult<String> = redis::cmd("INFO").arg("cluster").query_async(&mut single).await;
    let is_cluster = match about {
        Ok(about) => about.contains("cluster_enabled:1"),
        // A user who may not ask this gets a server that is no cluster, whose redirections then say so.
        Err(error) if matches!(error.kind(), ErrorKind::Server(_)) => false,
        Err(error) => return Err(error),
    };
    match is_cluster {
        true => connect_cluster(inner, Known { nodes: vec![info.clone()], allowance }).await,
        false => Ok(Link::Single(single)),
    }
}

async fn connect_cluster(inner: &Inner, Known { nodes, allowance }: Known) -> RedisResult<Link> {
    let client = ClusterClientBuilder::new(nodes)
        .use_protocol(ProtocolVersion::RESP3)
        .connection_timeout(allowance)
        .response_timeout(inner.patience)
        .tcp_settings(tcp_settings())
        .retries(0)
        .build()?;
    let mut connection = client.get_async_connection().await?;
    let (mut slots, anywhere) = (redis::cmd("CLUSTER"), RoutingInfo::SingleNode(SingleNodeRoutingInfo::Random));
    slots.arg("SLOTS");
    if let Ok(Value::Array(ranges)) = connection.route_command(slots, anywhere).await {
        let nodes = nodes_of(&ranges).map(|(host, port)| sibling(&inner.info, &host, port)).collect();
        *inner.known.write().unwrap_or_else(PoisonError::into_inner) = Known { nodes, allowance };
    }
    Ok(Link::Cluster(connection, Instant::now()))
}

/// The nodes of CLUSTER SLOTS: of ranges `first last [host port ...]...`.
fn nodes_of(ranges: &[Value]) -> impl Iterator<Item = (String, u16)> {
    let ranges = ranges.iter().filter_map(Value::as_sequence);
    let nodes = ranges.flat_map(|range| range.iter().skip(2)).filter_map(Value::as_sequence);
    let nodes: BTreeSet<_> = nodes
        .filter_map(|node| match node {
            [Value::BulkString(host), Value::Int(port), ..] if !host.is_empty() => {
                Some((str::from_utf8(host).ok()?.to_owned(), u16::try_from(*port).ok()?))
            }
            _ => None,
        })
        .collect();
    nodes.into_iter()
}

/// Another node, by the same user and the same TLS.
fn sibling(info: &ConnectionInfo, host: &str, port: u16) -> ConnectionInfo {
    let address = match info.addr().clone() {
        ConnectionAddr::TcpTls { insecure, tls_params, .. } => {
            ConnectionAddr::TcpTls { host: host.to_owned(), port, insecure, tls_params }
        }
        _ => ConnectionAddr::Tcp(host.to_owned(), port),
    };
    info.clone().set_addr(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_that_is_none_is_told_why_and_not_repeated() {
        for (url, wanted) in [
            ("localhost:6379", "it must begin with redis://"),
            ("http://localhost", "it must begin with redis://"),
            ("", "it must begin with redis://"),
            ("redis://localhost:hidden", "invalid port number"),
            ("redis://user:hid/den@localhost", "%2F"),
            ("redis://localhost:99999", "invalid port number"),
            ("redis://", "hostname"),
            ("redis://localhost/hidden", "invalid database number"),
            ("redis://[::1", "invalid IPv6 address"),
            ("redis://0.0.0.0", "wildcard"),
        ] {
            let why = parse(url).err().unwrap_or_default();
            assert!(why.contains(wanted) && !why.contains("hid"), "{url}: {why}");
        }
        for url in
            ["redis://localhost", "rediss://user:x@localhost:1/2", "unix:///run/redis.sock", "valkey://localhost"]
        {
            assert!(parse(url).is_ok(), "{url}");
        }
    }
}
