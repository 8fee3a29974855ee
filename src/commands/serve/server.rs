//! Accepts connections, limits their number, and shuts them down.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use http_body_util::BodyExt;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, Id, JoinSet};

use super::activity::InFlight;
use super::respond::Site;
use crate::error::printable;

/// Maximum number of open connections. Beyond it, new ones replace those that have been idle longest.
const MAX_CONNECTIONS: usize = 4096;
/// Fraction of them (one in this many) that is closed at a time, so that not every new connection needs a search.
const BATCH: usize = 64;
/// Time after which a connection counts as idle. Long enough that none is closed between two requests.
const IDLE: Duration = Duration::from_secs(1);
/// Time after which a client that has stopped reading its response may be disconnected, too.
const STALLED: Duration = Duration::from_secs(60);
/// Interval between attempts to close a connection while all are in use.
const ROOM: Duration = Duration::from_millis(100);
/// Time for a client to send the headers of a request, including those after the first on a connection.
const HEADERS: Duration = Duration::from_secs(30);
/// Maximum number of headers in a request.
const MAX_HEADERS: usize = 100;
/// Size of a connection's buffer, in bytes.
const BUFFER: usize = 64 << 10;
/// Time for responses in flight to finish once shutdown has begun.
const GRACE: Duration = Duration::from_secs(10);

/// Serves until `end` becomes true. Returns once the responses in flight have been sent or [`GRACE`] is over.
pub async fn run(listener: TcpListener, site: Arc<Site>, mut end: watch::Receiver<bool>) {
    let limit = limit();
    let mut connections = JoinSet::new();
    let mut open: HashMap<Id, (Arc<Usage>, AbortHandle)> = HashMap::new();
    loop {
        let has_room = open.len() < limit || close_some(&mut open, limit.div_ceil(BATCH));
        tokio::select! {
            () = wait_for_shutdown(&mut end) => break,
            Some(ended) = connections.join_next_with_id() => {
                open.remove(&ended.map_or_else(|error| error.id(), |(id, ())| id));
            }
            accepted = listener.accept(), if has_room => match accepted {
                Ok((stream, peer)) => {
                    let usage = Arc::new(Usage::new());
                    let handle = connections.spawn(serve(stream, peer, site.clone(), usage.clone(), end.clone()));
                    open.insert(handle.id(), (usage, handle));
                }
                // The process is out of file descriptors, or the client has already disconnected.
                Err(error) => {
                    tracing::debug!(%error, "cannot accept a connection");
                    tokio::time::sleep(ROOM).await;
                }
            },
            () = tokio::time::sleep(ROOM), if !has_room => {}
        }
    }
    drop(listener);
    let all_ended = async { while connections.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(GRACE, all_ended).await;
}

/// Waits until shutdown begins.
async fn wait_for_shutdown(end: &mut watch::Receiver<bool>) {
    let _ = end.wait_for(|end| *end).await;
}

/// Returns how many connections may be open. Leaves file descriptors for the files they read and for transfers.
fn limit() -> usize {
    match crate::platform::file_limit() {
        Some(files) => (files / 3).clamp(16, MAX_CONNECTIONS),
        None => MAX_CONNECTIONS,
    }
}

/// Closes up to this many connections, longest idle first. Returns whether any was closed.
fn close_some(open: &mut HashMap<Id, (Arc<Usage>, AbortHandle)>, limit: usize) -> bool {
    let now = Instant::now();
    let candidates = open.iter().filter_map(|(id, (usage, _))| Some((usage.closable_since(now)?, *id)));
    let mut candidates: Vec<_> = candidates.collect();
    candidates.sort_unstable();
    for (_, id) in candidates.iter().take(limit) {
        if let Some((_, handle)) = open.remove(id) {
            handle.abort();
        }
    }
    !candidates.is_empty()
}

/// When a connection was last used, and whether a response is in progress.
struct Usage(Mutex<(Instant, bool)>);

impl Usage {
    fn new() -> Usage {
        Usage(Mutex::new((Instant::now(), false)))
    }

    fn lock(&self) -> MutexGuard<'_, (Instant, bool)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records that bytes were received or sent, and whether a response is still in progress.
    fn note(&self, is_busy: bool) {
        *self.lock() = (Instant::now(), is_busy);
    }

    /// If the connection may be closed, returns whether a response is in progress, and when the connection was last used.
    fn closable_since(&self, now: Instant) -> Option<(bool, Instant)> {
        let (last, is_busy) = *self.lock();
        let unused = now.saturating_duration_since(last);
        (unused >= if is_busy { STALLED } else { IDLE }).then_some((is_busy, last))
    }
}

/// Marks a connection as busy while a response is prepared and sent.
struct InUse(Arc<Usage>);

impl InUse {
    fn new(usage: &Arc<Usage>) -> InUse {
        usage.note(true);
        InUse(usage.clone())
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        self.0.note(false);
    }
}

async fn serve(
    stream: TcpStream,
    peer: SocketAddr,
    site: Arc<Site>,
    usage: Arc<Usage>,
    mut end: watch::Receiver<bool>,
) {
    let _ = stream.set_nodelay(true);
    let _counted = InFlight::of_connections(&site.activity);
    let is_local = peer.ip().is_loopback();
    let service = service_fn(|request: Request<Incoming>| {
        let (site, in_use) = (site.clone(), InUse::new(&usage));
        async move {
            let started = Instant::now();
            let (method, target) = (request.method().clone(), printable(&request.uri().to_string(), 500));
            let range =
                request.headers().get("range").and_then(|range| range.to_str().ok()).map(|range| printable(range, 60));
            let answer = site.answer(request, is_local).await;
            tracing::info!(
                status = answer.status().as_u16(),
                ms = started.elapsed().as_millis() as u64,
                range = range.as_deref(),
                peer = %peer.ip(),
                "{method} {target}"
            );
            let note_frame = move |frame| {
                in_use.0.note(true);
                frame
            };
            Ok::<_, Infallible>(answer.map(|body| body.map_frame(note_frame)))
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS)
        .max_headers(MAX_HEADERS)
        .max_buf_size(BUFFER)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = wait_for_shutdown(&mut end) => {
            // Sends the response in flight, and accepts no further request.
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%peer, %error, "a connection failed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closes_idle_connections_before_stalled_ones_and_never_one_in_use() {
        let start = Instant::now();
        let of = |seconds, is_busy| Usage(Mutex::new((start + Duration::from_secs(seconds), is_busy)));
        let now = start + Duration::from_secs(100);
        let since = |usage: &Usage| usage.closable_since(now);
        let (idle, stalled) = (of(90, false), of(1, true));
        assert!(since(&idle) < since(&stalled) && since(&of(80, false)) < since(&idle));
        assert!(since(&idle).is_some() && since(&stalled).is_some());
        assert_eq!((since(&of(50, true)), since(&of(100, false))), (None, None));
    }
}
