//! The retry loop around a request, and when to give up on a store. How often a request is retried: [`crate::retry`].

use std::future::Future;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, SemaphorePermit};

use super::Bucket;
use super::small::Room;
use crate::bucket::connection::CONNECT;
use crate::bucket::request::{Op, Request};
use crate::error::{Cause, Failure};
use crate::progress::{ANY_REQUEST, Waiting, waiting};
use crate::retry::Try;

/// A store that was found to work is not probed again for this long.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);

/// Maximum number of concurrent writes until the first one has succeeded, and of consecutive writes refused for the same
/// reason until no more are sent: a key without write permission should not cause hundreds of refusals.
const FIRST_WRITES: usize = 8;

/// State that all requests of a run share.
#[derive(Debug)]
pub(super) struct Shared {
    /// Whether a request has succeeded in this run.
    has_answered: AtomicBool,
    requests: AtomicU64,
    transient_failures: AtomicU64,
    /// How many of them may still change something in the bucket.
    lost_changes: AtomicU64,
    /// Fastest response in microseconds; 0 before the first.
    fastest: AtomicU64,
    /// When a probe last found that the store works. The lock makes sure that only one request probes at a time.
    last_probe: tokio::sync::Mutex<Option<Instant>>,
    /// Why no further request can succeed, once that is certain.
    lost: Mutex<Option<Failure>>,
    refused_writes: Mutex<RefusedWrites>,
    /// Whether a write has succeeded in this run.
    has_written: AtomicBool,
    first_writes: Semaphore,
    /// Whether the store cannot delete many objects in one request.
    pub(super) deletes_singly: AtomicBool,
    /// Whether the store wants the ETag of a condition on a write without its quotes.
    pub(super) wants_bare_etags: AtomicBool,
    /// Whether the pages of a listing have to be requested one after another.
    pub(super) lists_in_sequence: AtomicBool,
    /// Whether ETags in this bucket look like MD5s and are something else.
    pub(super) has_other_etags: AtomicBool,
    /// The memory for objects that are read whole.
    pub(super) room: Room,
}

/// The writes that the store has refused since it last accepted one.
#[derive(Debug, Default)]
struct RefusedWrites {
    /// The last refusal, and the number of consecutive refusals for the same reason.
    last: Option<(Failure, usize)>,
    /// Why no more writes are sent.
    stopped: Option<Failure>,
}

impl RefusedWrites {
    /// Records a refusal. One is enough to stop writing to a full store; for other reasons it takes several.
    fn record(&mut self, op: Op, failure: &Failure) {
        if failure.cause == Cause::Full {
            self.stopped = Some(failure.clone());
        }
        // A part may be refused because of its upload, and a conditional write because of its condition.
        let is_about_condition = op == Op::PutIf && failure.cause == Cause::Unsupported;
        if !op.creates_object() || failure.cause.is_of_one_object() || is_about_condition {
            return;
        }
        let times = match self.last.take() {
            Some((known, times)) if is_same_refusal(&known, failure) => times + 1,
            _ => 1,
        };
        if times >= FIRST_WRITES {
            self.stopped = Some(failure.clone());
        }
        self.last = Some((failure.clone(), times));
    }
}

/// Whether two writes were refused for the same reason. After the code, a message may name the refused object.
fn is_same_refusal(one: &Failure, other: &Failure) -> bool {
    fn code(failure: &Failure) -> Option<&str> {
        failure.detail.split(':').next()
    }
    one.cause == other.cause && (one.cause != Cause::Other || code(one) == code(other))
}

impl Default for Shared {
    fn default() -> Self {
        Shared {
            has_answered: AtomicBool::default(),
            requests: AtomicU64::default(),
            transient_failures: AtomicU64::default(),
            lost_changes: AtomicU64::default(),
            fastest: AtomicU64::default(),
            last_probe: tokio::sync::Mutex::default(),
            lost: Mutex::default(),
            refused_writes: Mutex::default(),
            has_written: AtomicBool::default(),
            first_writes: Semaphore::new(FIRST_WRITES),
            deletes_singly: AtomicBool::default(),
            wants_bare_etags: AtomicBool::default(),
            lists_in_sequence: AtomicBool::default(),
            has_other_etags: AtomicBool::default(),
            room: Room::new(),
        }
    }
}

impl Shared {
    /// Counts a request, which may be one of several attempts.
    pub(super) fn count_request(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    fn lost(&self) -> std::sync::MutexGuard<'_, Option<Failure>> {
        self.lost.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn refused_writes(&self) -> std::sync::MutexGuard<'_, RefusedWrites> {
        self.refused_writes.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn record_time(&self, time: Duration) {
        let micros = (time.as_micros() as u64).max(1);
        let fastest = self.fastest.load(Ordering::Relaxed);
        if fastest == 0 || micros < fastest {
            self.fastest.store(micros, Ordering::Relaxed);
        }
    }

    /// Limits concurrent writes until the first one has succeeded. Other requests need no permit.
    async fn write_permit(&self, op: Op) -> Option<SemaphorePermit<'_>> {
        if !op.uses_space() || self.has_written.load(Ordering::Relaxed) {
            return None;
        }
        // The semaphore is closed once a write has succeeded.
        self.first_writes.acquire().await.ok()
    }

    /// Returns why a request need not be sent: it cannot succeed.
    fn known_failure(&self, op: Op) -> Option<Failure> {
        let failure =
            self.lost().clone().or_else(|| self.refused_writes().stopped.clone().filter(|_| op.uses_space()))?;
        Some(Failure { shared: true, ..failure })
    }
}

impl Bucket {
    /// Returns the number of requests sent so far, and how many of them failed with a transient failure.
    pub fn counts(&self) -> (u64, u64) {
        (self.shared.requests.load(Ordering::Relaxed), self.shared.transient_failures.load(Ordering::Relaxed))
    }

    /// Returns how many requests that change something have got no answer, or one that leaves open whether they did.
    pub fn lost_changes(&self) -> u64 {
        self.shared.lost_changes.load(Ordering::Relaxed)
    }

    /// Returns the time of the fastest response so far: about one round trip to the store.
    pub fn round_trip(&self) -> Option<Duration> {
        let fastest = self.shared.fastest.load(Ordering::Relaxed);
        (fastest > 0).then(|| Duration::from_micros(fastest))
    }

    /// Sends a request, and retries it with back-off while failures are transient. Once the store is known to be lost, all
    /// requests fail immediately: a run with thousands of blobs must not wait for each of them. The same goes for all
    /// writes once the store is known to refuse them.
    pub(super) async fn retried<T, F>(&self, op: Op, send: impl Fn() -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let mut attempts = 0;
        let mut wait: Option<Waiting> = None;
        let worked_before = self.shared.has_answered.load(Ordering::Relaxed);
        loop {
            let permit = self.shared.write_permit(op).await;
            if let Some(failure) = self.shared.known_failure(op) {
                return Err(failure);
            }
            self.shared.count_request();
            let sent = Instant::now();
            let request = waiting(ANY_REQUEST);
            let answer = send().await;
            drop(request);
            if answer.is_ok() && op.uses_space() {
                self.shared.refused_writes().last = None;
                if !self.shared.has_written.swap(true, Ordering::Relaxed) {
                    self.shared.first_writes.close();
                }
            }
            let failure = match answer {
                Ok(value) => {
                    self.shared.has_answered.store(true, Ordering::Relaxed);
                    self.shared.record_time(sent.elapsed());
                    return Ok(value);
                }
                Err(failure) => failure,
            };
            attempts += 1;
            if failure.cause.is_final() {
                *self.shared.lost() = Some(failure.clone());
            }
            if op.uses_space() {
                self.shared.refused_writes().record(op, &failure);
            }
            drop(permit);
            if !failure.cause.is_transient() {
                // Credentials that were accepted before may have expired or been revoked, which affects all requests.
                if failure.cause.is_identity() && worked_before {
                    self.give_up_if_lost(&failure).await;
                }
                return Err(failure);
            }
            self.shared.transient_failures.fetch_add(1, Ordering::Relaxed);
            if op.changes_bucket() {
                self.shared.lost_changes.fetch_add(1, Ordering::Relaxed);
            }
            let policy = Try::Store { known: self.shared.has_answered.load(Ordering::Relaxed) };
            let Some(pause) = policy.pause(failure.cause, attempts, failure.retry_after, fastrand::f64()) else {
                self.give_up_if_lost(&failure).await;
                return Err(failure);
            };
            let limit = policy.max_attempts(failure.cause);
            let reason = &failure.detail;
            tracing::debug!(
                "request is tried again in {} ms: try {attempts} of {limit} failed ({reason})",
                pause.as_millis()
            );
            let why = format!("the store ({reason}; try {} of {limit} follows)", attempts + 1);
            match &wait {
                None => wait = Some(waiting(why)),
                Some(wait) => wait.update(why),
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// Decides what a permanent failure means. If the store cannot even list one key for a similar reason, it is lost;
    /// otherwise only this request has a problem.
    async fn give_up_if_lost(&self, failure: &Failure) {
        // One request probes and the others wait for the result, so that none goes on to the next blob in the meantime.
        let mut last_probe = self.shared.last_probe.lock().await;
        if self.shared.lost().is_some() || last_probe.is_some_and(|time| time.elapsed() < PROBE_INTERVAL) {
            return;
        }
        let mut request = Request::new(Op::List, "");
        request.timeout = Some(self.wire.timeout().min(CONNECT * 2));
        let request = request.query("list-type", "2").query("max-keys", "1").query("prefix", &*self.prefix);
        match self.wire.send(&request).await {
            Err(probe) if probe.cause.is_transient() || probe.cause.is_identity() || probe.cause.is_final() => {
                *self.shared.lost() = Some(failure.clone());
            }
            _ => *last_probe = Some(Instant::now()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_stop_once_the_store_refuses_them_all_for_one_reason() {
        let denied = |key: &str| Failure::new(Cause::Denied, format!("AccessDenied: no access to {key}"));
        let stops = |failures: &[(Op, Failure)]| {
            let mut writes = RefusedWrites::default();
            failures.iter().for_each(|(op, failure)| writes.record(*op, failure));
            writes.stopped.is_some()
        };
        let times = |op, failure: &dyn Fn(usize) -> Failure, times| {
            (0..times).map(|time| (op, failure(time))).collect::<Vec<_>>()
        };
        assert!(stops(&times(Op::Put, &|time| denied(&time.to_string()), FIRST_WRITES)));
        assert!(!stops(&times(Op::Put, &|time| denied(&time.to_string()), FIRST_WRITES - 1)));
        assert!(stops(&times(Op::Put, &|_| Failure::new(Cause::Full, "full"), 1)));
        assert!(stops(&times(Op::Put, &|_| Failure::new(Cause::Unsupported, "x"), FIRST_WRITES)));
        assert!(!stops(&times(Op::PutIf, &|_| Failure::new(Cause::Unsupported, "x"), 100)), "other writes succeed");
        for cause in [Cause::Changed, Cause::Limit, Cause::Busy] {
            assert!(!stops(&times(Op::Put, &|_| Failure::new(cause, "x"), 100)), "{cause:?}");
        }
        assert!(!stops(&times(Op::PutPart, &|_| denied("x"), 100)));
        assert!(!stops(&times(Op::Put, &|time| Failure::new(Cause::Other, format!("Code{time}: x")), 100)));
        let mut mixed = times(Op::Put, &|_| denied("x"), FIRST_WRITES - 1);
        mixed.push((Op::Put, Failure::new(Cause::Locked, "retention")));
        mixed.push((Op::Put, denied("x")));
        assert!(!stops(&mixed));
    }
}
