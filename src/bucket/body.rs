//! Request bodies, and how a stalled upload is detected.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use aws_smithy_types::body::SdkBody;
use bytes::Bytes;

use crate::error::{Cause, Failure};
use crate::pace;

/// Bytes of an upload that may still be in buffers on this machine once its whole body has been read.
const BUFFERED: u64 = 512 << 10;
/// How many of those bytes the slowest supported connection sends within the timeout for a response.
const SENT: u64 = 480 << 10;
/// How many bytes of a body in memory to send at a time.
const SLICE: usize = 64 << 10;

/// Creates the body of an upload, once for each attempt.
pub type MakeBody<'a> = &'a (dyn Fn(&Pulse) -> SdkBody + Sync);

/// Tracks the progress of an upload body, so that a stalled upload is aborted and a slow one is not.
#[derive(Debug, Clone)]
pub struct Pulse {
    start: Instant,
    last: Arc<AtomicU64>,
    poisoned: Arc<AtomicBool>,
}

impl Default for Pulse {
    fn default() -> Self {
        Pulse { start: Instant::now(), last: Arc::default(), poisoned: Arc::default() }
    }
}

impl Pulse {
    /// Records progress.
    pub fn beat(&self) {
        self.last.store(self.start.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    /// Records that the body cannot be read, so that another attempt would fail in the same way.
    pub fn poison(&self) {
        self.poisoned.store(true, Ordering::Relaxed);
    }

    /// Aborts an upload of `size` bytes once it has stalled. The store has `timeout` to respond.
    pub(crate) async fn guard<T>(
        &self,
        timeout: Duration,
        size: u64,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let window = pace::window(timeout);
        let limit = window + timeout.mul_f64(size.min(BUFFERED) as f64 / SENT as f64);
        self.beat();
        tokio::pin!(work);
        loop {
            match tokio::time::timeout(window / 3, &mut work).await {
                Ok(Err(_)) if self.poisoned.load(Ordering::Relaxed) => {
                    return Err(Failure::new(Cause::Other, "the local bytes cannot be sent"));
                }
                Ok(done) => return done,
                Err(_) => {
                    let idle = self.start.elapsed().as_millis() as u64 - self.last.load(Ordering::Relaxed);
                    if u128::from(idle) >= limit.as_millis() {
                        return Err(Failure::new(Cause::Stalled, "the upload stalled"));
                    }
                }
            }
        }
    }
}

/// A body from memory. It is sent in slices, so that a large body makes visible progress on a slow connection.
pub(crate) struct MemoryBody {
    remaining: Bytes,
    pulse: Pulse,
}

impl MemoryBody {
    pub(crate) fn sdk_body(bytes: &Bytes, pulse: &Pulse) -> SdkBody {
        SdkBody::from_body_1_x(MemoryBody { remaining: bytes.clone(), pulse: pulse.clone() })
    }
}

impl http_body::Body for MemoryBody {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Self::Error>>> {
        if self.remaining.is_empty() {
            return Poll::Ready(None);
        }
        self.pulse.beat();
        let length = self.remaining.len().min(SLICE);
        Poll::Ready(Some(Ok(http_body::Frame::data(self.remaining.split_to(length)))))
    }

    fn is_end_stream(&self) -> bool {
        self.remaining.is_empty()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        http_body::SizeHint::with_exact(self.remaining.len() as u64)
    }
}
