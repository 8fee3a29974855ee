//! The connections: accepts them, bounds them, and ends them.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use super::activity::InFlight;
use super::respond::Site;
use crate::error::printable;

/// Connections that are open at once, beyond which new ones wait.
const MAX_CONNECTIONS: usize = 4096;
/// Time for a client to send the headers of a request, also of the next one on a connection.
const HEADERS: Duration = Duration::from_secs(30);
/// Number of headers of a request.
const MAX_HEADERS: usize = 100;
/// Bytes that are buffered for a connection.
const BUFFER: usize = 64 << 10;
/// Time for responses in flight to end after the server was told to.
const GRACE: Duration = Duration::from_secs(10);

/// Serves until `end` is told so, and returns once the responses in flight have been sent, or were given their time.
pub async fn run(listener: TcpListener, site: Arc<Site>, mut end: watch::Receiver<bool>) {
    let room = Arc::new(Semaphore::new(limit()));
    let mut connections = JoinSet::new();
    loop {
        let permit = tokio::select! {
            permit = room.clone().acquire_owned() => permit.expect("the semaphore is never closed"),
            () = told(&mut end) => break,
        };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = told(&mut end) => break,
            Some(_) = connections.join_next() => continue,
        };
        match accepted {
            Ok((stream, peer)) => {
                let (site, end) = (site.clone(), end.clone());
                connections.spawn(async move {
                    serve(stream, peer, site, end).await;
                    drop(permit);
                });
            }
            // No more files, or the client is gone already.
            Err(error) => {
                tracing::debug!(%error, "a connection was not accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
    drop(listener);
    let all_ended = async { while connections.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(GRACE, all_ended).await;
}

/// Waits until the server is told to end.
async fn told(end: &mut watch::Receiver<bool>) {
    let _ = end.wait_for(|end| *end).await;
}

/// Returns how many connections may be open, leaving files for the transfers.
fn limit() -> usize {
    match crate::platform::file_limit() {
        Some(files) => (files / 2).clamp(16, MAX_CONNECTIONS),
        None => MAX_CONNECTIONS,
    }
}

async fn serve(stream: TcpStream, peer: SocketAddr, site: Arc<Site>, mut end: watch::Receiver<bool>) {
    let _ = stream.set_nodelay(true);
    let _counted = InFlight::of_connections(&site.activity);
    let is_local = peer.ip().is_loopback();
    let service = service_fn(|request: Request<Incoming>| {
        let site = site.clone();
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
            Ok::<_, Infallible>(answer)
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
        () = told(&mut end) => {
            // The response in flight is sent, and no other request is taken.
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%peer, %error, "a connection broke off");
    }
}
