//! The slowest body that is waited for. A connection that delivers a byte now and then is as good as broken, but would never
//! count as stalled.

use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::error::{Cause, Failure};

/// The least number of bytes of a body in every [`window`]. A connection of 20 kB/s that hundreds of requests share brings
/// more for each.
pub(crate) const MIN_BYTES: u64 = 4 << 10;

/// Returns how long a body may take to make progress, given the timeout for a response.
pub(crate) fn window(timeout: Duration) -> Duration {
    timeout * 3 / 2
}

/// Watches over one body. Only the time spent waiting for it counts, not that of the reader.
#[derive(Debug)]
pub(crate) struct Pace {
    window: Duration,
    waited: Duration,
    bytes: u64,
}

impl Pace {
    /// Starts to watch a body of a server that has this long to respond.
    pub(crate) fn new(timeout: Duration) -> Pace {
        Pace { window: window(timeout), waited: Duration::ZERO, bytes: 0 }
    }

    /// Waits for the next piece of the body; `None` at its end.
    ///
    /// # Errors
    /// [`Cause::Stalled`] if too few bytes have arrived in time, or that of `piece`.
    pub(crate) async fn next(
        &mut self,
        piece: impl Future<Output = Result<Option<Bytes>, Failure>>,
    ) -> Result<Option<Bytes>, Failure> {
        let start = Instant::now();
        let arrived = tokio::time::timeout(self.window.saturating_sub(self.waited), piece).await;
        self.waited += start.elapsed();
        let Ok(arrived) = arrived else {
            let why = format!("fewer than {MIN_BYTES} bytes arrived in {} s", self.window.as_secs_f64());
            return Err(Failure::new(Cause::Stalled, why));
        };
        let piece = arrived?;
        self.add(piece.as_ref().map_or(0, Bytes::len));
        Ok(piece)
    }

    fn add(&mut self, bytes: usize) {
        self.bytes = self.bytes.saturating_add(bytes as u64);
        if self.bytes >= MIN_BYTES {
            (self.waited, self.bytes) = (Duration::ZERO, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::{pending, ready};

    const WINDOW: Duration = Duration::from_secs(90);

    fn pace(waited: Duration, bytes: u64) -> Pace {
        Pace { waited, bytes, ..Pace::new(Duration::from_secs(60)) }
    }

    type Piece = Result<Option<Bytes>, Failure>;

    fn next(mut pace: Pace, piece: impl Future<Output = Piece>) -> Result<Option<Bytes>, Cause> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(pace.next(piece)).map_err(|failure| failure.cause)
    }

    #[test]
    fn a_body_has_a_window_in_all_and_not_for_each_piece() {
        // A piece that is there is never refused.
        let spent = || pace(WINDOW, 0);
        assert_eq!(next(spent(), ready(Ok(None))), Ok(None));
        assert_eq!(next(spent(), pending()), Err(Cause::Stalled));
        let mut slow = pace(WINDOW, MIN_BYTES - 2);
        slow.add(1);
        assert_eq!(next(slow, pending()), Err(Cause::Stalled), "a byte does not start a new window");
    }

    #[test]
    fn enough_bytes_start_a_new_window() {
        let mut pace = pace(WINDOW, MIN_BYTES - 1);
        pace.add(1);
        assert_eq!((pace.waited, pace.bytes), (Duration::ZERO, 0));
        pace.add(usize::MAX);
        assert_eq!(pace.bytes, 0);
    }
}
