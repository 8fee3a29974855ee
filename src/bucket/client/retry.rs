//! The loop around a request, and when a store is given up. How often a request is tried: [`crate::retry`].

use std::future::Future;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, SemaphorePermit};

use super::Bucket;
use crate::bucket::connection::CONNECT;
use crate::bucket::error::{Cause, Failure};
use crate::bucket::wire::{Op, Request};
use crate::progress::{ANY_REQUEST, Waiting, waiting};
use crate::retry::Try;

/// A store that was found to work is not suspected again for this time.
const PROBE_AGAIN: Duration = Duration::from_secs(1);

/// Writes at once before the first one has succeeded, and writes in a row that are refused for one reason before no
/// more are sent: a key that may not write should not be told hundreds of times.
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
    /// What writes have met.
    writes: Mutex<Writes>,
    /// Whether a write has succeeded in this run.
    written: AtomicBool,
    first_writes: Semaphore,
    /// Whether the store does not delete many objects in one request.
    pub(super) deletes_singly: AtomicBool,
}

/// Refused writes since the last that the store took.
#[derive(Debug, Default)]
struct Writes {
    /// The last one, and how many were refused like it.
    refused: Option<(Failure, usize)>,
    /// Why no more are sent.
    over: Option<Failure>,
}

impl Writes {
    /// Takes note of a refusal. A store without room has none for the next one either; of other refusals it takes some
    /// to tell that the store takes nothing.
    fn refused(&mut self, op: Op, failure: &Failure) {
        if failure.cause == Cause::Full {
            self.over = Some(failure.clone());
        }
        // A part may be refused for what has become of its upload, and a condition for being one.
        let of_condition = op == Op::PutIf && failure.cause == Cause::Unsupported;
        if !op.creates() || failure.cause.is_of_one_object() || of_condition {
            return;
        }
        let times = match self.refused.take() {
            Some((known, times)) if is_same_refusal(&known, failure) => times + 1,
            _ => 1,
        };
        if times >= FIRST_WRITES {
            self.over = Some(failure.clone());
        }
        self.refused = Some((failure.clone(), times));
    }
}

/// Whether a store refuses for one reason; behind its code it may name what it refuses.
fn is_same_refusal(one: &Failure, other: &Failure) -> bool {
    fn code(failure: &Failure) -> Option<&str> {
        failure.detail.split(':').next()
    }
    one.cause == other.cause && (one.cause != Cause::Other || code(one) == code(other))
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
            writes: Mutex::default(),
            written: AtomicBool::default(),
            first_writes: Semaphore::new(FIRST_WRITES),
            deletes_singly: AtomicBool::default(),
        }
    }
}

impl Shared {
    fn lost(&self) -> std::sync::MutexGuard<'_, Option<Failure>> {
        self.lost.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn writes(&self) -> std::sync::MutexGuard<'_, Writes> {
        self.writes.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
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
        let failure = self.lost().clone().or_else(|| self.writes().over.clone().filter(|_| op.fills()))?;
        Some(Failure { shared: true, ..failure })
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
    /// all writes once it is known to take none.
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
            let request = waiting(ANY_REQUEST);
            let answer = send().await;
            drop(request);
            if answer.is_ok() && op.fills() {
                self.shared.writes().refused = None;
                if !self.shared.written.swap(true, Ordering::Relaxed) {
                    self.shared.first_writes.close();
                }
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
            if op.fills() {
                self.shared.writes().refused(op, &failure);
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
            let policy = Try::Store { known: self.shared.answered.load(Ordering::Relaxed) };
            let Some(pause) = policy.again(failure.cause, tried, failure.retry_after, fastrand::f64()) else {
                self.give_up_if_lost(&failure).await;
                return Err(failure);
            };
            let most = policy.most(failure.cause);
            let reason = &failure.detail;
            tracing::debug!(
                "request is tried again in {} ms: try {tried} of {most} failed ({reason})",
                pause.as_millis()
            );
            let why = format!("the store ({reason}; try {} of {most} follows)", tried + 1);
            match &wait {
                None => wait = Some(waiting(why)),
                Some(wait) => wait.update(why),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_that_refuses_every_write_for_one_reason_is_left_alone() {
        let denied = |key: &str| Failure::new(Cause::Denied, format!("AccessDenied: no access to {key}"));
        let over = |failures: &[(Op, Failure)]| {
            let mut writes = Writes::default();
            failures.iter().for_each(|(op, failure)| writes.refused(*op, failure));
            writes.over.is_some()
        };
        let times = |op, failure: &dyn Fn(usize) -> Failure, times| {
            (0..times).map(|time| (op, failure(time))).collect::<Vec<_>>()
        };
        assert!(over(&times(Op::Put, &|time| denied(&time.to_string()), FIRST_WRITES)));
        assert!(!over(&times(Op::Put, &|time| denied(&time.to_string()), FIRST_WRITES - 1)));
        assert!(over(&times(Op::Put, &|_| Failure::new(Cause::Full, "full"), 1)));
        assert!(over(&times(Op::Put, &|_| Failure::new(Cause::Unsupported, "x"), FIRST_WRITES)));
        assert!(!over(&times(Op::PutIf, &|_| Failure::new(Cause::Unsupported, "x"), 100)), "other writes go well");
        for cause in [Cause::Changed, Cause::Limit, Cause::Busy] {
            assert!(!over(&times(Op::Put, &|_| Failure::new(cause, "x"), 100)), "{cause:?}");
        }
        assert!(!over(&times(Op::PutPart, &|_| denied("x"), 100)));
        assert!(!over(&times(Op::Put, &|time| Failure::new(Cause::Other, format!("Code{time}: x")), 100)));
        let mut mixed = times(Op::Put, &|_| denied("x"), FIRST_WRITES - 1);
        mixed.push((Op::Put, Failure::new(Cause::Locked, "retention")));
        mixed.push((Op::Put, denied("x")));
        assert!(!over(&mixed));
    }
}
