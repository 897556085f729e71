//! How many connections there may be, and for how long one may keep us waiting.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::Router;
use axum::extract::ConnectInfo;
use axum::http::Request;
use axum_server::Server;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};
use tower::{Service, service_fn};

use super::PATIENCE;

/// Files that are no connections of callers: those to the server, listeners, what the runtime needs.
const OTHER_FILES: u64 = 64;

/// The most that the head of a request may hold, in bytes: twice what nginx takes by default.
const MAX_HEAD: usize = 64 * 1024;

/// Who sends nothing, or byte by byte, is not waited for without end; and no head may fill our memory. HTTP/1 alone, as an idle connection
/// of HTTP/2 would keep its place for as long as it answers pings, and no proxy needs it.
pub fn bounded<A>(server: Server<SocketAddr, A>) -> Server<SocketAddr, A> {
    let mut server = server.http1_only().first_request_timeout(PATIENCE);
    server.http_builder().http1().header_read_timeout(PATIENCE).max_buf_size(MAX_HEAD);
    server
}

/// As many of these connections as this process may have files for, which it is allowed as many of as the system lets it. Says so if
/// they are fewer.
pub fn affordable(wanted: u32) -> usize {
    let (files, Rlimit { current, maximum }) = (u64::from(wanted) + OTHER_FILES, getrlimit(Resource::Nofile));
    let allowed = maximum.map_or(files, |maximum| maximum.min(files));
    let is_raised = || setrlimit(Resource::Nofile, Rlimit { current: Some(allowed), maximum }).is_ok();
    let files = match current {
        Some(current) if current < allowed && !is_raised() => current,
        _ => allowed,
    };
    let places = u32::try_from(files.saturating_sub(OTHER_FILES)).map_or(wanted, |places| places.clamp(1, wanted));
    if places < wanted {
        anstream::eprintln!(
            "keyguard takes {places} connections at a time, not {wanted}: it may open {files} files (ulimit -n)"
        );
    }
    places as usize
}

/// The router for each connection. One more than there are places for waits, and all after it in the queue of the listener.
pub fn limited(router: Router, places: usize) -> impl Service<SocketAddr, Response = Connection, Error = AcquireError> {
    let places = Arc::new(Semaphore::new(places));
    service_fn(move |peer| {
        let (router, places) = (router.clone(), Arc::clone(&places));
        async move { Ok(Connection { router, peer, _place: Arc::new(places.acquire_owned().await?) }) }
    })
}

/// The router, which is told where the connection comes from; the place is free again when it is dropped.
#[derive(Clone)]
pub struct Connection {
    router: Router,
    peer: SocketAddr,
    _place: Arc<OwnedSemaphorePermit>,
}

impl<B> Service<Request<B>> for Connection
where
    Router: Service<Request<B>, Error = Infallible>,
{
    type Response = <Router as Service<Request<B>>>::Response;
    type Error = Infallible;
    type Future = <Router as Service<Request<B>>>::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.router.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        request.extensions_mut().insert(ConnectInfo(self.peer));
        self.router.call(request)
    }
}
