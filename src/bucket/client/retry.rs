//! How often a request is tried, and when a store is given up.

use std::future::Future;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, SemaphorePermit};

use super::Bucket;
use crate::bucket::connection::CONNECT;
use crate::bucket::error::{Cause, Failure};
use crate::bucket::wire::{Op, Request};
use crate::progress::{ANSWER, Waiting, waiting};

/// A store that was found to work is not suspected again for this time.
const PROBE_AGAIN: Duration = Duration::from_secs(1);
/// Tries of one request once the store has answered before; about a minute with back-off.
const TRIES: u32 = 8;
/// Tries of the very first connection: a wrong endpoint should not take long to be told.
const FIRST_TRIES: u32 = 3;
/// Tries of a request whose answer is not whole: what cuts answers mostly cuts all of them.
const INCOMPLETE_TRIES: u32 = 3;

/// Writes at once before the first one has succeeded: a store without room, or a key that may not write, should not be
/// told hundreds of times.
const FIRST_WRITES: usize = 8;

/// What all requests of a run have in common.
#[derive(Debug)]
pub(super) struct Shared {
    answered: AtomicBool,
    requests: AtomicU64,
    pushed_back: AtomicU64,
    /// Fastest answer in microseconds; 0 before the first.
    fastest: AtomicU64,
    /// When it was last found out that the store works, for whoever suspects that it does not.
    probed: tokio::sync::Mutex<Option<Instant>>,
    /// Why nothing works any more, once that is certain.
    lost: Mutex<Option<Failure>>,
    /// Why nothing can be written any more, once the store has no room.
    full: Mutex<Option<Failure>>,
    /// Whether a write has succeeded in this run.
    written: AtomicBool,
    first_writes: Semaphore,
}

impl Default for Shared {
    fn default() -> Self {
        Shared {
            answered: AtomicBool::default(),
            requests: AtomicU64::default(),
            pushed_back: AtomicU64::default(),
            fastest: AtomicU64::default(),
            probed: tokio::sync::Mutex::default(),
            lost: Mutex::default(),
            full: Mutex::default(),
            written: AtomicBool::default(),
            first_writes: Semaphore::new(FIRST_WRITES),
        }
    }
}

impl Shared {
    fn lost(&self) -> std::sync::MutexGuard<'_, Option<Failure>> {
        self.lost.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn full(&self) -> std::sync::MutexGuard<'_, Option<Failure>> {
        self.full.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn note_time(&self, time: Duration) {
        let micros = (time.as_micros() as u64).max(1);
        let fastest = self.fastest.load(Ordering::Relaxed);
        if fastest == 0 || micros < fastest {
            self.fastest.store(micros, Ordering::Relaxed);
        }
    }

    /// Waits until this may be sent: at once, unless it is a write before any has succeeded.
    async fn turn(&self, op: Op) -> Option<SemaphorePermit<'_>> {
        if !op.fills() || self.written.load(Ordering::Relaxed) {
            return None;
        }
        // Closed as soon as one has succeeded.
        self.first_writes.acquire().await.ok()
    }

    /// Why there is no point in sending this.
    fn hopeless(&self, op: Op) -> Option<Failure> {
        self.lost().clone().or_else(|| self.full().clone().filter(|_| op.fills()))
    }
}

impl Bucket {
    /// Requests sent so far, and how many of them the store pushed back or lost.
    pub fn counts(&self) -> (u64, u64) {
        (self.shared.requests.load(Ordering::Relaxed), self.shared.pushed_back.load(Ordering::Relaxed))
    }

    /// The fastest answer so far: about one round trip to the store.
    pub fn round_trip(&self) -> Option<Duration> {
        let fastest = self.shared.fastest.load(Ordering::Relaxed);
        (fastest > 0).then(|| Duration::from_micros(fastest))
    }

    /// Sends a request, and again with back-off while the failure is transient. Once the store is known to be lost,
    /// for whatever request, all of them fail at once: a run with thousands of blobs must not wait for each. Likewise
    /// all writes once it has no room.
    pub(super) async fn retried<T, F>(&self, op: Op, send: impl Fn() -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let mut tried = 0;
        let mut wait: Option<Waiting> = None;
        let worked_before = self.shared.answered.load(Ordering::Relaxed);
        loop {
            let turn = self.shared.turn(op).await;
            if let Some(failure) = self.shared.hopeless(op) {
                return Err(failure);
            }
            self.shared.requests.fetch_add(1, Ordering::Relaxed);
            let sent = Instant::now();
            let request = waiting(ANSWER);
            let answer = send().await;
            drop(request);
            if answer.is_ok() && op.fills() && !self.shared.written.swap(true, Ordering::Relaxed) {
                self.shared.first_writes.close();
            }
            let failure = match answer {
                Ok(value) => {
                    self.shared.answered.store(true, Ordering::Relaxed);
                    self.shared.note_time(sent.elapsed());
                    return Ok(value);
                }
                Err(failure) => failure,
            };
            tried += 1;
            if failure.cause.is_final() {
                *self.shared.lost() = Some(failure.clone());
            }
            if failure.cause == Cause::Full && op.fills() {
                *self.shared.full() = Some(failure.clone());
            }
            drop(turn);
            if !failure.cause.is_transient() {
                // Credentials that were accepted before may have ended: then they will not begin to be right again.
                if failure.cause.is_identity() && worked_before {
                    self.give_up_if_lost(&failure).await;
                }
                return Err(failure);
            }
            self.shared.pushed_back.fetch_add(1, Ordering::Relaxed);
            let answered = failure.cause == Cause::Busy || self.shared.answered.load(Ordering::Relaxed);
            let most = match failure.cause {
                Cause::Incomplete => INCOMPLETE_TRIES,
                _ if answered => TRIES,
                _ => FIRST_TRIES,
            };
            if tried >= most {
                self.give_up_if_lost(&failure).await;
                return Err(failure);
            }
            let pause = back_off(tried, failure.retry_after);
            let reason = &failure.detail;
            tracing::debug!(
                "request is tried again in {} ms: try {tried} of {most} failed ({reason})",
                pause.as_millis()
            );
            let why = format!("the store ({reason}; try {} of {most} follows)", tried + 1);
            match &wait {
                None => wait = Some(waiting(why)),
                Some(wait) => wait.now_for(why),
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// A request failed for good. If the store does not even list one key, for such a reason, it is lost; otherwise only
    /// that request has a problem.
    async fn give_up_if_lost(&self, failure: &Failure) {
        // One finds out, and the others wait for it: none of them goes on to the next blob meanwhile.
        let mut probed = self.shared.probed.lock().await;
        if self.shared.lost().is_some() || probed.is_some_and(|time| time.elapsed() < PROBE_AGAIN) {
            return;
        }
        let mut request = Request::new(Op::List, "");
        request.patience = CONNECT * 2;
        let request = request.query("list-type", "2").query("max-keys", "1").query("prefix", &*self.prefix);
        match self.wire.send(&request).await {
            Err(probe) if probe.cause.is_transient() || probe.cause.is_identity() || probe.cause.is_final() => {
                *self.shared.lost() = Some(failure.clone());
            }
            _ => *probed = Some(Instant::now()),
        }
    }
}

/// 0.25 s, doubling to 15 s, with full jitter; never less than the store asks for.
pub(crate) fn back_off(tried: u32, asked: Option<Duration>) -> Duration {
    let most = Duration::from_millis(250) * 2u32.pow(tried.min(7) - 1);
    let pause = most.min(Duration::from_secs(15)).mul_f64(0.5 + fastrand::f64() / 2.0);
    pause.max(asked.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn back_off_grows_is_bounded_and_heeds_the_store() {
        assert!(back_off(1, None) <= Duration::from_millis(250));
        assert!((1..40).all(|tried| back_off(tried, None) <= Duration::from_secs(15)));
        assert_eq!(back_off(1, Some(Duration::from_secs(30))), Duration::from_secs(30));
    }
}
