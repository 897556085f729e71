//! The one way to the server: a connection that all of the process shares, and that comes back by itself.

use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::cluster::ClusterClientBuilder;
use redis::cluster_async::ClusterConnection;
use redis::cluster_routing::{RoutingInfo, SingleNodeRoutingInfo};
use redis::io::tcp::TcpSettings;
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ConnectionInfo, ErrorKind, IntoConnectionInfo, ProtocolVersion,
    RedisError, RedisResult, ServerErrorKind, Value,
};
use tokio::sync::watch;
use tokio::time;

use crate::failure::Failure;
use crate::reply::{self, Json};

/// How long to wait for an answer, the connecting included. Commands of the module take microseconds.
pub const TIMEOUT: Duration = Duration::from_secs(2);

/// How long an attempt to connect may take, with all nodes of a cluster: longer than anybody waits for it, so that one node that hangs
/// keeps nobody from the others.
const CONNECTING: Duration = Duration::from_secs(10);

/// How long to wait for the answer of a command that was asked to wait itself: longer than the module ever does.
const PATIENCE: Duration = Duration::from_secs(367 * 24 * 3600);

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
    /// The last attempt to connect: one at a time is made.
    attempt: Mutex<Option<Attempt>>,
}

/// What comes of an attempt to connect; nothing while it is under way.
type Attempt = watch::Receiver<Option<RedisResult<Arc<Link>>>>;

enum Link {
    Single(MultiplexedConnection),
    Cluster(ClusterConnection),
}

impl Server {
    /// The server at a URL; it need not be there yet.
    ///
    /// # Errors
    /// [`Failure::Usage`] if this is no such URL.
    pub fn at(url: &str) -> Result<Self, Failure> {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let no_url = "it must begin with redis://, rediss:// or unix://";
        let info =
            url.into_connection_info().map_err(|_| Failure::Usage(format!("--url is not understood: {no_url}")))?;
        // Maps come as maps.
        let settings = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
        let info = info.set_redis_settings(settings).set_tcp_settings(tcp_settings());
        Ok(Self::new(info, TIMEOUT, false))
    }

    fn new(info: ConnectionInfo, patience: Duration, alone: bool) -> Self {
        Self(Arc::new(Inner { info, patience, alone, link: RwLock::default(), attempt: Mutex::default() }))
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
        let address = match self.0.info.addr().clone() {
            ConnectionAddr::TcpTls { insecure, tls_params, .. } => {
                ConnectionAddr::TcpTls { host: host.to_owned(), port, insecure, tls_params }
            }
            _ => ConnectionAddr::Tcp(host.to_owned(), port),
        };
        Self::new(self.0.info.clone().set_addr(address), self.0.patience, true)
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
            let link = used.insert(self.link().await?);
            match &**link {
                Link::Single(connection) => connection.clone().req_packed_command(command).await,
                Link::Cluster(connection) => ask_cluster(connection.clone(), command).await,
            }
            .and_then(Value::extract_error)
        };
        let answer = match time::timeout(self.0.patience, asking).await {
            Ok(answer) => answer,
            Err(_) => Err(RedisError::from((ErrorKind::Io, "no answer within two seconds"))),
        };
        if let (Err(error), Some(link)) = (&answer, &used)
            && is_over(error)
        {
            self.give_up(link);
        }
        Ok(answer?)
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
        let is_cluster = matches!(**over, Link::Cluster(_));
        let mut link = self.0.link.write().unwrap_or_else(PoisonError::into_inner);
        if link.as_ref().is_none_or(|link| !Arc::ptr_eq(link, over)) {
            return;
        }
        if !is_cluster {
            *link = None;
        }
        drop(link);
        if is_cluster {
            drop(self.0.attempt());
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
    let mut single = client.get_multiplexed_async_connection_with_config(&config).await?;
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
    if !is_cluster {
        return Ok(Link::Single(single));
    }
    let client = ClusterClientBuilder::new([info.clone()])
        .use_protocol(ProtocolVersion::RESP3)
        .connection_timeout(TIMEOUT)
        .response_timeout(*patience)
        .tcp_settings(tcp_settings())
        .retries(0)
        .build()?;
    Ok(Link::Cluster(client.get_async_connection().await?))
}
