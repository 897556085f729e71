//! `keyguard serve`: the admin API, the gate that other HTTP servers ask, and a page to look at.

mod admin;
mod connections;
mod metrics;
mod page;
mod proxies;
mod verify;

use std::fmt;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::panic::{self, PanicHookInfo};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum_server::Handle;
use axum_server::tls_rustls::RustlsConfig;
use clap::{Args, value_parser};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::timeout::TimeoutLayer;

use crate::cli::At;
use crate::failure::Failure;
use crate::server::Server;

use self::connections::bounded;
use self::metrics::Metrics;

/// How long a request may take to arrive, and then to be answered; and how long those that are under way may take when we are to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// What `keyguard serve` takes.
#[derive(Debug, Args)]
#[group(id = "serve")]
pub struct Options {
    /// Where to listen.
    #[arg(long, env = "KEYGUARD_LISTEN", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,

    /// A certificate in PEM, with its chain: then HTTPS is spoken. Read at start and on SIGHUP, as its key.
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,

    /// Its private key, in PEM.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,

    /// How many connections there may be at a time; more wait until one ends.
    #[arg(long, value_name = "N", default_value = "10000", value_parser = value_parser!(u32).range(1..))]
    max_connections: u32,

    #[command(flatten)]
    admin: admin::Options,

    #[command(flatten)]
    verify: verify::Options,
}

/// What every handler has.
#[derive(Clone)]
pub struct App {
    /// The server that is asked.
    pub server: Server,
    /// The store, unless a key's prefix names another.
    pub store: String,
}

/// Serves until it is told to stop.
///
/// # Errors
/// What cannot be listened on; options that cannot be.
pub async fn run(at: &At, options: Options) -> Result<(), Failure> {
    let app = App { server: Server::at(&at.url)?, store: at.store.clone() };
    let metrics = Arc::new(Metrics::new());
    let access = options.admin.access(&app)?;
    let router = Router::new()
        .merge(admin::router(access.clone()))
        .merge(verify::router(&options.verify, Arc::clone(&metrics))?)
        .merge(metrics::router(metrics))
        .merge(page::router())
        .fallback(async || problem(StatusCode::NOT_FOUND, "NOT_FOUND"));
    let router = lasting(router).with_state(app);
    panic::set_hook(Box::new(|about| log(format_args!("{}", told_of_panic(about)))));
    let tls = match (options.tls_cert, options.tls_key) {
        (Some(certificate), Some(key)) => Some(Tls::read(certificate, key).await?),
        _ => None,
    };
    let listen = options.listen;
    let handle = Handle::new();
    let config = tls.as_ref().map(|tls| tls.config.clone());
    end_when_told(handle.clone())?;
    read_again_when_told(access.clone(), tls)?;
    tokio::spawn(tell_when_listening(handle.clone(), if config.is_some() { "https" } else { "http" }));
    let service = connections::limited(router, connections::affordable(options.max_connections));
    let served = match config {
        Some(config) => bounded(axum_server::bind_rustls(listen, config)).handle(handle).serve(service).await,
        None => bounded(axum_server::bind(listen)).handle(handle).serve(service).await,
    };
    if let Some(access) = access {
        // Those too that nobody waits for any more. One that takes longer is given up.
        let _ = time::timeout(PATIENCE, access.settled()).await;
    }
    // Nothing but the address can be wrong: what goes wrong later ends one connection.
    served.map_err(|error| io::Error::new(error.kind(), format!("cannot listen on {listen}: {error}")).into())
}

/// No request lasts without end, and none ends the others.
fn lasting<S: Clone + Send + Sync + 'static>(router: Router<S>) -> Router<S> {
    router
        .layer(TimeoutLayer::with_status_code(StatusCode::REQUEST_TIMEOUT, PATIENCE))
        .layer(CatchPanicLayer::custom(|_| problem(StatusCode::INTERNAL_SERVER_ERROR, "INTERNAL")))
}

/// Where a panic was, for the log; not what it says, which may be what somebody sent.
fn told_of_panic(about: &PanicHookInfo<'_>) -> String {
    let place = about.location().map_or_else(String::new, |place| format!(" at {}:{}", place.file(), place.line()));
    format!("keyguard: panicked{place}")
}

/// What HTTPS is spoken with, and where it comes from.
struct Tls {
    certificate: PathBuf,
    key: PathBuf,
    config: RustlsConfig,
}

impl Tls {
    async fn read(certificate: PathBuf, key: PathBuf) -> Result<Self, Failure> {
        let config = Self::config(&certificate, &key).await?;
        Ok(Self { certificate, key, config })
    }

    /// For the connections to come; if the files cannot be taken, they go on as before.
    async fn read_again(&self) -> Result<(), Failure> {
        let read = Self::config(&self.certificate, &self.key).await?;
        self.config.reload_from_config(read.get_inner());
        Ok(())
    }

    async fn config(certificate: &Path, key: &Path) -> Result<RustlsConfig, Failure> {
        let read = RustlsConfig::from_pem_file(certificate, key).await.map_err(|error| {
            let [certificate, key] = [certificate, key].map(Path::display);
            Failure::Usage(format!("--tls-cert {certificate}, --tls-key {key}: {error}"))
        })?;
        // It offers HTTP/2 too, which is not spoken here.
        let mut config = (*read.get_inner()).clone();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        read.reload_from_config(Arc::new(config));
        Ok(read)
    }
}

/// On SIGHUP the files of tokens and of TLS are read again. One that cannot be taken leaves in force what was read before.
fn read_again_when_told(access: Option<Arc<admin::Access>>, tls: Option<Tls>) -> io::Result<()> {
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            if let Some(access) = &access {
                match access.read_again() {
                    Ok(count) => log(format_args!("read again: {count} admin tokens")),
                    Err(failure) => log(format_args!("the admin tokens stay as they were: {failure}")),
                }
            }
            if let Some(tls) = &tls {
                match tls.read_again().await {
                    Ok(()) => log(format_args!("read again: the certificate and its key")),
                    Err(failure) => log(format_args!("the certificate and its key stay as they were: {failure}")),
                }
            }
            if access.is_none() && tls.is_none() {
                log(format_args!("nothing to read again: no --admin-tokens, no --tls-cert"));
            }
        }
    });
    Ok(())
}

async fn tell_when_listening(handle: Handle<SocketAddr>, scheme: &'static str) {
    if let Some(address) = handle.listening().await {
        log(format_args!("keyguard listens on {scheme}://{address}"));
    }
}

/// On SIGTERM and SIGINT no more is taken; what is under way is answered, or given up when its time is over. That time is counted
/// here: while axum-server waits for a place for a connection, it does not hear that it is to end.
fn end_when_told(handle: Handle<SocketAddr>) -> io::Result<()> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::spawn(async move {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        handle.graceful_shutdown(None);
        time::sleep(PATIENCE).await;
        handle.shutdown();
    });
    Ok(())
}

/// A line of the log, whole also if several write at once. That nobody can read it ends nothing.
fn log(line: fmt::Arguments<'_>) {
    let _ = anstream::stderr().lock().write_all(format!("{line}\n").as_bytes());
}

/// A refusal that is not about a key, as RFC 9457 has it.
fn problem(status: StatusCode, code: &str) -> Response {
    let body = format!("{{\"status\":{},\"code\":\"{code}\"}}", status.as_u16());
    (status, [(header::CONTENT_TYPE, "application/problem+json")], body).into_response()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use std::net::Ipv4Addr;
    use std::sync::Mutex;

    use axum::routing::get;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    #[tokio::test]
    async fn a_panic_is_a_problem_for_who_asked_alone_and_the_log_does_not_repeat_it() {
        static LOG: Mutex<String> = Mutex::new(String::new());
        async fn fails() {
            panic!("hush");
        }
        let router = lasting(Router::new().route("/fails", get(fails)).route("/works", get(async || "it works")));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, router).await });
        panic::set_hook(Box::new(|about| LOG.lock().unwrap().push_str(&told_of_panic(about))));
        let mut connection = TcpStream::connect(address).await.unwrap();
        let asked =
            b"GET /fails HTTP/1.1\r\nHost: x\r\n\r\nGET /works HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        connection.write_all(asked).await.unwrap();
        let mut answers = String::new();
        connection.read_to_string(&mut answers).await.unwrap();
        drop(panic::take_hook());
        assert!(answers.starts_with("HTTP/1.1 500 ") && answers.ends_with("it works"), "{answers}");
        assert!(answers.contains("{\"status\":500,\"code\":\"INTERNAL\"}"), "{answers}");
        let log = LOG.lock().unwrap();
        assert!(log.starts_with("keyguard: panicked at ") && log.contains("serve.rs:"), "{log}");
        assert!(!log.contains("hush") && !answers.contains("hush"), "{log} {answers}");
    }
}
