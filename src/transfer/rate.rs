//! Limits the bytes per second: one token bucket for all requests of a run, in both directions.
//!
//! Every transfer takes bytes from the bucket and waits until they are paid for: before they are sent, or after they were
//! received, so that the socket's flow control slows the store down. `Tokens` is the arithmetic, which gets the time as an
//! argument; [`Rate`] adds the clock and the waiting.

use std::future::Future;
use std::num::NonZeroU64;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Sleep, sleep_until};

/// How long unused bandwidth is saved up while nothing is transferred.
const BURST: Duration = Duration::from_millis(100);
/// The minimum bytes per second of a request; a lower limit means fewer requests. A store drops a connection on which
/// nothing moves for a while.
const PER_REQUEST: u64 = 64 << 10;
/// The minimum number of bytes moved at a time.
const LEAST: u64 = 4 << 10;

/// The uploads in flight take about this long together. They are lost when a run is killed, but the more of them there are,
/// the less depends on the speed of each connection.
const UPLOADS_IN_FLIGHT: Duration = Duration::from_secs(8);
/// The bytes of uploads in flight are counted in units of this many.
const UNIT: u64 = 64 << 10;

/// The limit of a run; clones share it.
#[derive(Debug, Clone, Default)]
pub struct Rate(Option<Arc<Limited>>);

#[derive(Debug)]
struct Limited {
    per_second: NonZeroU64,
    tokens: Mutex<Tokens>,
    total: AtomicU64,
    /// The bytes of uploads that may be in flight, in units.
    uploads: Arc<Semaphore>,
    /// The most for a single one: at least two can be in flight, so that the line is never idle.
    units_each: u32,
}

/// The time when all bytes taken so far are paid for. Pure: callers pass the time.
#[derive(Debug)]
struct Tokens {
    per_second: NonZeroU64,
    paid: Instant,
}

impl Tokens {
    fn new(per_second: NonZeroU64, now: Instant) -> Self {
        Tokens { per_second, paid: now }
    }

    /// Takes bytes, and returns when they may move.
    fn take(&mut self, bytes: u64, now: Instant) -> Instant {
        let oldest = now.checked_sub(BURST).unwrap_or(now);
        self.paid = self.paid.max(oldest) + Duration::from_secs_f64(bytes as f64 / self.per_second.get() as f64);
        self.paid
    }
}

impl Rate {
    /// Creates a limit of this many bytes per second; `None` is no limit.
    pub fn new(per_second: Option<NonZeroU64>) -> Self {
        Rate(per_second.map(|per_second| {
            let tokens = Mutex::new(Tokens::new(per_second, Instant::now()));
            let bytes = per_second.get().saturating_mul(UPLOADS_IN_FLIGHT.as_secs());
            let units = (bytes / UNIT).clamp(2, 1 << 24) as u32;
            let uploads = Arc::new(Semaphore::new(units as usize));
            Arc::new(Limited { per_second, tokens, total: AtomicU64::new(0), uploads, units_each: units / 2 })
        }))
    }

    /// Returns how many requests can share the limit without any of them stalling.
    pub fn requests(&self) -> Option<usize> {
        self.0.as_ref().map(|limited| (limited.per_second.get() / PER_REQUEST).clamp(1, 1 << 16) as usize)
    }

    /// Waits until an upload of this many bytes may start: until those in flight leave room for it. It takes the room until
    /// the result is dropped; `None` if there is no limit.
    pub async fn admit_upload(&self, bytes: u64) -> Option<OwnedSemaphorePermit> {
        let limited = self.0.as_ref()?;
        let units = bytes.div_ceil(UNIT).clamp(1, u64::from(limited.units_each)) as u32;
        Some(limited.uploads.clone().acquire_many_owned(units).await.expect("the semaphore is never closed"))
    }

    /// Returns how many bytes to move at a time: `most`, or as many as a quarter of a second allows.
    pub fn slice(&self, most: u64) -> u64 {
        self.0.as_ref().map_or(most, |limited| (limited.per_second.get() / 4).max(LEAST).min(most))
    }

    /// Returns how many bytes have been moved within the limit; 0 if there is none.
    pub fn total(&self) -> u64 {
        self.0.as_ref().map_or(0, |limited| limited.total.load(Ordering::Relaxed))
    }

    /// Takes bytes, and returns when they may move, unless that is now.
    fn take(&self, bytes: u64) -> Option<Instant> {
        let limited = self.0.as_ref()?;
        limited.total.fetch_add(bytes, Ordering::Relaxed);
        let now = Instant::now();
        let mut tokens = limited.tokens.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        Some(tokens.take(bytes, now)).filter(|when| *when > now)
    }

    /// Waits until these bytes may move.
    pub async fn wait(&self, bytes: u64) {
        if let Some(when) = self.take(bytes) {
            sleep_until(when.into()).await;
        }
    }
}

/// Makes a body that is polled wait.
#[derive(Debug)]
pub struct Throttle {
    rate: Rate,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Throttle {
    /// Creates a throttle with this limit.
    pub fn new(rate: &Rate) -> Self {
        Throttle { rate: rate.clone(), sleep: None }
    }

    /// Returns ready when these bytes may move. The first call takes them, and later calls wait for the same bytes.
    pub fn poll(&mut self, bytes: u64, task: &mut Context<'_>) -> Poll<()> {
        let sleep = match &mut self.sleep {
            Some(sleep) => sleep,
            None => match self.rate.take(bytes) {
                Some(when) => self.sleep.insert(Box::pin(sleep_until(when.into()))),
                None => return Poll::Ready(()),
            },
        };
        let done = sleep.as_mut().poll(task);
        if done.is_ready() {
            self.sleep = None;
        }
        done
    }

    /// Returns how many bytes to move at a time.
    pub fn slice(&self, most: u64) -> u64 {
        self.rate.slice(most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn per_second(bytes: u64) -> NonZeroU64 {
        NonZeroU64::new(bytes).unwrap()
    }

    #[tokio::test]
    async fn few_uploads_are_in_flight() {
        let starts =
            async |rate: &Rate, bytes| tokio::time::timeout(Duration::ZERO, rate.admit_upload(bytes)).await.ok();
        // 80 MiB in all.
        let rate = Rate::new(Some(per_second(10 << 20)));
        let mut held = Vec::new();
        for _ in 0..5 {
            held.push(starts(&rate, 16 << 20).await.unwrap());
        }
        assert!(starts(&rate, 1).await.is_none());
        held.pop();
        assert!(starts(&rate, 17 << 20).await.is_none() && starts(&rate, 16 << 20).await.is_some());
        // There are always two.
        for slow in [1, 1000, 10 << 20] {
            let rate = Rate::new(Some(per_second(slow)));
            let _two = [starts(&rate, 1 << 40).await.unwrap(), starts(&rate, 1 << 40).await.unwrap()];
            assert!(starts(&rate, 1).await.is_none());
        }
        assert!(starts(&Rate::default(), 1).await.unwrap().is_none());
    }

    #[test]
    fn many_requests_move_what_the_rate_allows() {
        let start = Instant::now();
        let mut tokens = Tokens::new(per_second(1000), start);
        // Ten requests at the same moment: the last one may move when all are paid for.
        let when: Vec<Instant> = (0..10).map(|_| tokens.take(500, start)).collect();
        assert_eq!(when[0], start + SECOND / 2);
        assert_eq!(when[9], start + 5 * SECOND);
        // One that comes meanwhile queues behind them.
        assert_eq!(tokens.take(1000, start + 2 * SECOND), start + 6 * SECOND);
    }

    #[test]
    fn the_rate_is_never_exceeded_by_more_than_a_burst() {
        let start = Instant::now();
        for chunk in [1, 700, 4096, 300_000] {
            let mut tokens = Tokens::new(per_second(100_000), start);
            let (mut now, mut moved, mut pause_at) = (start, 0, 50_000);
            while now < start + 60 * SECOND {
                now = tokens.take(chunk, now).max(now);
                moved += chunk;
                let allowed = 100_000.0 * (now - start + BURST).as_secs_f64();
                assert!(moved as f64 <= allowed * 1.001, "{moved} in {:?} by {chunk}", now - start);
                // Now and then, something else takes a moment, which may be made up for.
                if moved >= pause_at {
                    now += BURST / 2;
                    pause_at = moved + 50_000;
                }
            }
            let ideal = 100_000.0 * (now - start).as_secs_f64();
            assert!(moved as f64 >= ideal * 0.99, "{moved} of {ideal} by {chunk}");
        }
    }

    #[test]
    fn unused_bandwidth_is_not_saved_up() {
        let start = Instant::now();
        let mut tokens = Tokens::new(per_second(1000), start);
        tokens.take(1000, start);
        let later = start + 3600 * SECOND;
        assert_eq!(tokens.take(2000, later), later + 2 * SECOND - BURST);
    }

    #[test]
    fn a_slow_limit_means_small_pieces_and_few_requests() {
        let rate = |bytes| Rate::new(Some(per_second(bytes)));
        assert_eq!((rate(1000).slice(256 << 10), rate(1000).requests()), (LEAST, Some(1)));
        assert_eq!((rate(400_000).slice(256 << 10), rate(400_000).requests()), (100_000, Some(6)));
        assert_eq!(rate(50_000_000).slice(256 << 10), 256 << 10);
        assert_eq!((Rate::default().slice(7), Rate::default().requests()), (7, None));
        // However slow, no request stalls for as long as a store waits.
        for bytes in [1000, 10_000, 65_536, 1 << 20, 1 << 30] {
            let rate = rate(bytes);
            let round = rate.requests().unwrap() as u64 * rate.slice(256 << 10);
            assert!(round as f64 / bytes as f64 <= 5.0, "{bytes}");
        }
    }

    #[tokio::test]
    async fn a_body_takes_its_bytes_once() {
        let rate = Rate::new(Some(per_second(1000)));
        let paid = || rate.0.as_ref().unwrap().tokens.lock().unwrap().paid;
        let mut task = Context::from_waker(std::task::Waker::noop());
        let mut throttle = Throttle::new(&rate);
        assert!(throttle.poll(1 << 40, &mut task).is_pending());
        let first = paid();
        assert!(throttle.poll(1 << 40, &mut task).is_pending());
        assert_eq!(paid(), first, "a second poll takes nothing");
        assert!(Throttle::new(&Rate::default()).poll(1 << 40, &mut task).is_ready());
    }

    #[tokio::test]
    async fn received_bytes_are_waited_for() {
        let waits = async |rate: &Rate, bytes| tokio::time::timeout(Duration::ZERO, rate.wait(bytes)).await.is_err();
        let rate = Rate::new(Some(per_second(1000)));
        assert!(waits(&rate, 1 << 40).await);
        assert!(waits(&rate.clone(), 1).await, "behind the others, through any clone");
        assert_eq!(rate.total(), (1 << 40) + 1);
        assert!(!waits(&Rate::default(), 1 << 40).await);
    }
}
