//! Who is let in: every request under /admin passes here, whatever its route.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use axum::extract::{ConnectInfo, Request, State};
use axum::http::header::CACHE_CONTROL;
use axum::http::uri::PathAndQuery;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use percent_encoding::percent_decode_str;

use super::extract::arrived;
use super::problem::Problem;
use crate::failure::Failure;
use crate::reply::Json;
use crate::serve::{App, log};
use crate::token::{Role, Token, Tokens};

/// How many wrong tokens an address may show in a minute before it is told to wait.
const WRONG_A_MINUTE: u32 = 10;

/// Where the module counts them: a path that no service has.
const COUNTED_AT: &str = "/.keyguard-admin";

/// What it takes to decide.
pub struct Access {
    tokens: RwLock<Tokens>,
    file: PathBuf,
    app: App,
    /// Held by every change that is under way.
    changes: Arc<tokio::sync::RwLock<()>>,
}

impl Access {
    /// For those whose tokens are in this file.
    ///
    /// # Errors
    /// A file of tokens that cannot be read, or that others can.
    pub fn read(file: &Path, app: &App) -> Result<Self, Failure> {
        Ok(Self {
            tokens: RwLock::new(Tokens::read(file)?),
            file: file.to_owned(),
            app: app.clone(),
            changes: Arc::default(),
        })
    }

    /// Reads the file again; how many tokens there are then. None is an answer, too: whoever takes out the last one means it.
    ///
    /// # Errors
    /// As [`read`](Self::read); then those from before hold.
    pub fn read_again(&self) -> Result<usize, Failure> {
        let tokens = Tokens::read_any(&self.file)?;
        let count = tokens.len();
        *self.tokens.write().unwrap_or_else(PoisonError::into_inner) = tokens;
        Ok(count)
    }

    /// Waits until no change is under way.
    pub async fn settled(&self) {
        drop(self.changes.write().await);
    }

    /// How many tokens there are.
    pub fn token_count(&self) -> usize {
        self.tokens.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    fn find(&self, presented: &str) -> Option<Token> {
        self.tokens.read().unwrap_or_else(PoisonError::into_inner).find(presented).cloned()
    }
}

/// What a change was about, where its path does not say so: for the log.
#[derive(Debug, Clone)]
pub struct Subject(pub String);

/// Lets a request through that shows a token which allows it. Who changes something is written down, by the name of the token.
///
/// A right token is let in also while its address has shown too many wrong ones, so that nobody can lock out another who shares his
/// address; and as no number of guesses finds 256 random bits, that gives nothing away. The address is that of the connection: no
/// header can give another one.
pub async fn guard(
    State(access): State<Arc<Access>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    request: Request,
    next: Next,
) -> Response {
    let mut response = match admit(&access, peer, request.method(), request.headers()).await {
        Ok(_) if reads(request.method()) => next.run(request).await,
        Ok(token) => change(&access, token, peer, request, next).await,
        Err(problem) => problem.into_response(),
    };
    // Some of these answers hold a key.
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// Makes a change and writes it down, in a task of its own: if who asked for it hangs up, it comes to its end all the same. What it
/// asks for has arrived before, as nothing bounds that task's time.
async fn change(access: &Access, token: Token, peer: SocketAddr, request: Request, next: Next) -> Response {
    let (method, target) = (request.method().clone(), target(request.uri()));
    let request = arrived(request).await;
    let under_way = Arc::clone(&access.changes).read_owned().await;
    let changing = tokio::spawn(async move {
        let response = match request {
            Ok(request) => next.run(request).await,
            Err(problem) => problem.into_response(),
        };
        let (name, role, from) = (token.name.as_str(), token.role.as_str(), peer.ip().to_canonical());
        let subject = response.extensions().get().map_or_else(String::new, |Subject(subject)| format!(": {subject}"));
        let status = response.status().as_u16();
        log(format_args!("admin: {name} ({role}) from {from}: {method} {target:?} {status}{subject}"));
        drop(under_way);
        response
    });
    // Nothing but the end of the program ends it before.
    changing.await.unwrap_or_else(|_| Problem::internal().into_response())
}

/// Path and query as people read them, or as they came if that is no text. The log has them in quotes, with all that is not printable
/// escaped.
fn target(uri: &Uri) -> String {
    let target = uri.path_and_query().map_or_else(|| uri.path(), PathAndQuery::as_str);
    percent_decode_str(target).decode_utf8().map_or_else(|_| target.to_owned(), Cow::into_owned)
}

async fn admit(access: &Access, peer: SocketAddr, method: &Method, headers: &HeaderMap) -> Result<Token, Problem> {
    let mut presented = headers.get_all("x-admin-key").iter();
    let Some(first) = presented.next() else {
        return Err(Problem::new(StatusCode::UNAUTHORIZED, "The header X-Admin-Key is missing."));
    };
    // Of two headers it is not clear which is meant.
    let only = first.to_str().ok().filter(|_| presented.next().is_none());
    match access.find(only.unwrap_or_default()) {
        Some(token) if token.role == Role::Write || reads(method) => Ok(token),
        Some(_) => Err(Problem::new(StatusCode::FORBIDDEN, "This admin key may only read.")),
        None => Err(refuse(&access.app, peer).await),
    }
}

/// Counts a wrong token. One that cannot be counted is as wrong: what nobody guesses need not be counted to be safe.
async fn refuse(app: &App, peer: SocketAddr) -> Problem {
    let mut claim = redis::cmd("KG.CLAIMIP");
    let address = peer.ip().to_canonical().to_string();
    claim.arg(&app.store).arg(address).arg(WRONG_A_MINUTE).arg("1m").arg("PATH").arg(COUNTED_AT);
    match app.server.ask(&claim).await {
        Ok(answer) if answer.get("code").and_then(Json::as_str) == Some("RATE_LIMITED") => {
            let wait_ms = answer.get("retry_after_ms").and_then(Json::as_u64).unwrap_or(60_000);
            Problem::too_many("Too many invalid admin keys from this address.", wait_ms.div_ceil(1000).max(1))
        }
        _ => Problem::new(StatusCode::FORBIDDEN, "Invalid admin key."),
    }
}

fn reads(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD)
}
