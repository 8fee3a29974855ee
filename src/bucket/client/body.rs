//! Bodies of requests, and how it is seen that they move.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use aws_smithy_types::body::SdkBody;
use bytes::Bytes;

use crate::bucket::error::{Cause, Failure};

/// A body must move at least once within this time.
pub(crate) const STALL: Duration = Duration::from_secs(90);
/// Bytes of an upload that may still be on their way when the last of its body was taken, in buffers on this machine.
const BUFFERED: u64 = 512 << 10;
/// The slowest connection that they are waited for, in bytes per second.
const SLOWEST: u64 = 8 << 10;
/// How much of a body in memory is handed over at a time.
const SLICE: usize = 64 << 10;

/// Makes the body of an upload, anew for each try.
pub type MakeBody<'a> = &'a (dyn Fn(&Pulse) -> SdkBody + Sync);

/// Shows that an upload body is moving, so that a slow one lives and a stalled one is given up.
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
    /// Something moved.
    pub fn beat(&self) {
        self.last.store(self.start.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    /// The body cannot go on: another try would end the same way.
    pub fn poison(&self) {
        self.poisoned.store(true, Ordering::Relaxed);
    }

    /// Gives up an upload of `size` bytes that does not move any more.
    pub(crate) async fn guard<T>(
        &self,
        size: u64,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let patience = STALL + Duration::from_secs(size.min(BUFFERED) / SLOWEST);
        self.beat();
        tokio::pin!(work);
        loop {
            match tokio::time::timeout(STALL / 3, &mut work).await {
                Ok(Err(_)) if self.poisoned.load(Ordering::Relaxed) => {
                    return Err(Failure::new(Cause::Other, "the local bytes cannot be sent"));
                }
                Ok(done) => return done,
                Err(_) => {
                    let quiet = self.start.elapsed().as_millis() as u64 - self.last.load(Ordering::Relaxed);
                    if u128::from(quiet) >= patience.as_millis() {
                        return Err(Failure::new(Cause::Broken, "the upload stalled"));
                    }
                }
            }
        }
    }
}

/// A body from memory. It goes in slices, so that a large one on a slow connection is seen to move.
pub(crate) struct MemoryBody {
    left: Bytes,
    pulse: Pulse,
}

impl MemoryBody {
    pub(crate) fn sdk_body(bytes: &Bytes, pulse: &Pulse) -> SdkBody {
        SdkBody::from_body_1_x(MemoryBody { left: bytes.clone(), pulse: pulse.clone() })
    }
}

impl http_body::Body for MemoryBody {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Self::Error>>> {
        if self.left.is_empty() {
            return Poll::Ready(None);
        }
        self.pulse.beat();
        let length = self.left.len().min(SLICE);
        Poll::Ready(Some(Ok(http_body::Frame::data(self.left.split_to(length)))))
    }

    fn is_end_stream(&self) -> bool {
        self.left.is_empty()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        http_body::SizeHint::with_exact(self.left.len() as u64)
    }
}
