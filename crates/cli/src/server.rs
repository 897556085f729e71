//! The one way to the server: a connection that all of the process shares, and that comes back by itself.

use std::sync::Arc;
use std::time::Duration;

use redis::aio::{ConnectionLike, ConnectionManager, ConnectionManagerConfig};
use redis::cluster::ClusterClientBuilder;
use redis::cluster_async::ClusterConnection;
use redis::{Client, Cmd, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, ProtocolVersion, RedisResult, Value};
use tokio::sync::OnceCell;

use crate::failure::Failure;
use crate::reply::{self, Json};

/// How long to wait for a connection, and for an answer. Commands of the module take microseconds.
pub const TIMEOUT: Duration = Duration::from_secs(2);

/// A Redis or Valkey server, or a cluster of them; cheap to clone. It is connected to when it is first asked something, and again
/// after it was away. Nothing is asked twice: a KG.AUTH whose answer was lost may have been charged.
#[derive(Clone)]
pub struct Server(Arc<Inner>);

struct Inner {
    info: ConnectionInfo,
    /// Whether a node of a cluster stands for itself.
    alone: bool,
    link: OnceCell<Link>,
}

enum Link {
    Single(ConnectionManager),
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
        Ok(Self::new(info.set_redis_settings(settings), false))
    }

    fn new(info: ConnectionInfo, alone: bool) -> Self {
        Self(Arc::new(Inner { info, alone, link: OnceCell::new() }))
    }

    /// The node that the URL names, for itself, also where it is one of a cluster.
    pub fn node(&self) -> Self {
        Self::new(self.0.info.clone(), true)
    }

    /// Another node, by the same user and the same TLS; for itself, also where it is one of a cluster.
    pub fn sibling(&self, host: &str, port: u16) -> Self {
        let address = match self.0.info.addr().clone() {
            ConnectionAddr::TcpTls { insecure, tls_params, .. } => {
                ConnectionAddr::TcpTls { host: host.to_owned(), port, insecure, tls_params }
            }
            _ => ConnectionAddr::Tcp(host.to_owned(), port),
        };
        Self::new(self.0.info.clone().set_addr(address), true)
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
        let link = self.0.link.get_or_try_init(|| connect(&self.0.info, self.0.alone)).await?;
        let answer = match link {
            Link::Single(connection) => connection.clone().req_packed_command(command).await,
            Link::Cluster(connection) => connection.clone().req_packed_command(command).await,
        };
        Ok(answer.and_then(Value::extract_error)?)
    }

    /// Whether it is a node of a cluster.
    ///
    /// # Errors
    /// Why there is no answer.
    pub async fn is_cluster(&self) -> Result<bool, Failure> {
        Ok(matches!(self.0.link.get_or_try_init(|| connect(&self.0.info, self.0.alone)).await?, Link::Cluster(_)))
    }
}

/// One that turns out to be a node of a cluster is connected to as a cluster.
async fn connect(info: &ConnectionInfo, alone: bool) -> RedisResult<Link> {
    let config = ConnectionManagerConfig::new()
        .set_number_of_retries(0)
        .set_connection_timeout(Some(TIMEOUT))
        .set_response_timeout(Some(TIMEOUT));
    let client = Client::open(info.clone())?;
    let mut single = ConnectionManager::new_with_config(client, config).await?;
    if alone {
        return Ok(Link::Single(single));
    }
    // A user who may not ask this gets a server that is no cluster, whose redirections then say so.
    let about: RedisResult<String> = redis::cmd("INFO").arg("cluster").query_async(&mut single).await;
    if !about.is_ok_and(|about| about.contains("cluster_enabled:1")) {
        return Ok(Link::Single(single));
    }
    let client = ClusterClientBuilder::new([info.clone()])
        .use_protocol(ProtocolVersion::RESP3)
        .connection_timeout(TIMEOUT)
        .response_timeout(TIMEOUT)
        .build()?;
    Ok(Link::Cluster(client.get_async_connection().await?))
}
