//! Limits the requests in flight: to a fixed number by `--workers`, else to one that follows what is measured.
//!
//! A limit starts low at a near store and high at a far one ([`Limits::new`]), and grows while more requests in flight
//! move more. When the store pushes back (503, 429, broken connections), it halves. Small objects and parts of large
//! blobs have different optima, so each has a limiter of its own; a fixed number is one limiter for both.

use std::num::NonZeroU64;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::rate::Rate;

/// A store with a longer round trip than this is far.
const FAR: Duration = Duration::from_millis(8);
/// The minimum after back-pressure.
const LEAST: usize = 2;
/// The fixed cost of a request, expressed in bytes.
const OBJECT_COST: u64 = 64 << 10;
/// A request that moves more than this many bytes per second waits for this machine and not for the store: more of them
/// would only bring the parts of a blob out of order.
const FAST: f64 = 100e6;
/// A request that moves fewer bytes per second than this waits for the store. Since each takes so long, there are few
/// measurements, and growth takes larger steps.
const SLOW: f64 = 20e6;
/// Bytes per second that a connection to a far store is expected to move at least.
const USUAL: u64 = 5_000_000;
const STEP: usize = 2;
const LARGE_STEP: usize = 4;
/// The minimum time over which throughput is measured.
const WINDOW: Duration = Duration::from_millis(150);

/// The memory of requests in flight is counted in units of this many bytes.
const UNIT: u64 = 64 << 10;
/// The maximum for one request, since buffers do not grow any further.
const UNITS_EACH: u64 = 6;
/// The maximum for all requests together, unless `--workers` sets their number.
const UNITS: usize = 384;

/// The memory of a run without requests in flight, in bytes: measured 19 MB, plus room for the plan of some ten thousand
/// files.
const MEMORY_BASE: u64 = 31 << 20;
/// The memory of a request in flight, in bytes: measured 0.3 to 0.7 MB (a slice of the file, the client's and the
/// allocator's buffers), plus room for TLS.
const MEMORY_PER_REQUEST: u64 = 1 << 20;

/// Returns how many requests may be in flight for a run to stay within this many bytes of memory; `None` if there is not
/// enough for even one.
pub fn requests_within(memory: u64) -> Option<usize> {
    let requests = memory.checked_sub(MEMORY_BASE)? / MEMORY_PER_REQUEST;
    (requests > 0).then(|| requests.min(1 << 16) as usize)
}

/// The maximum that a run may use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Caps {
    /// Number of requests in flight, which is not adapted.
    pub workers: Option<usize>,
    /// Number of requests in flight for which there is memory.
    pub memory: Option<usize>,
    /// Bytes per second.
    pub rate: Option<NonZeroU64>,
}

/// The limiters of a run.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Limits blobs that are moved in one request.
    pub objects: Arc<Limiter>,
    /// Limits parts of large blobs.
    pub parts: Arc<Limiter>,
    /// Limits bytes.
    pub rate: Rate,
}

/// Issues permits for requests.
#[derive(Debug)]
pub struct Limiter {
    permits: Arc<Semaphore>,
    control: Mutex<Control>,
    sharers: AtomicUsize,
    /// A limit shared by several limiters.
    together: Option<Arc<Semaphore>>,
    /// Memory shared by several limiters, in units.
    room: Option<Arc<Semaphore>>,
}

/// One of the large blobs that share a limiter.
#[derive(Debug)]
pub struct Share(Arc<Limiter>);

impl Limits {
    /// Creates one limiter with a fixed number of `workers`, or two that adapt, starting with what suits the store's
    /// `round_trip`. At a near store, a few requests keep this machine busy; at a far one, many have to be in flight. If
    /// memory or the rate sets a limit, it applies to both together.
    pub fn new(caps: Caps, round_trip: Option<Duration>) -> Self {
        let rate = Rate::new(caps.rate);
        let most = [caps.memory, rate.requests()].into_iter().flatten().min().map(|most| most.max(1));
        if let Some(workers) = caps.workers {
            let workers = most.map_or(workers, |most| most.min(workers));
            let one = Arc::new(Limiter::new(workers, workers, true));
            return Limits { objects: one.clone(), parts: one, rate };
        }
        let far = round_trip.is_some_and(|time| time > FAR);
        let (objects, parts) = match caps.rate {
            // A few connections may reach the limit. What others receive ahead of it waits in their sockets.
            Some(rate) => (16, (rate.get() / USUAL).clamp(LEAST as u64, if far { 64 } else { 4 }) as usize),
            None if far => (UNITS, 64),
            None => (16, 4),
        };
        let together = most.map(|most| Arc::new(Semaphore::new(most)));
        let room = Arc::new(Semaphore::new(UNITS));
        let limiter = |start: usize, usual: usize| {
            let most = most.map_or(usual, |most| most.min(usual));
            let mut limiter = Limiter::new(start.min(most), most, false);
            limiter.lock().rate = caps.rate.map(|rate| rate.get() as f64);
            limiter.together = together.clone();
            limiter.room = Some(room.clone());
            Arc::new(limiter)
        };
        Limits { objects: limiter(objects, UNITS), parts: limiter(parts, 64), rate }
    }

    /// Reports how often the store has pushed back so far, in total.
    pub fn report_push_backs(&self, total: u64) {
        self.objects.report_push_backs(total);
        self.parts.report_push_backs(total);
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.0.sharers.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Decides on the limit, without a clock or permits.
#[derive(Debug)]
struct Control {
    limit: usize,
    start: usize,
    most: usize,
    fixed: bool,
    /// Number of permits in use or waiting in the semaphore.
    issued: usize,
    window_start: Instant,
    window_done: usize,
    window_bytes: u64,
    best: f64,
    /// The limit before it was raised at the end of the last window. The current window shows whether that helped.
    raised_from: Option<usize>,
    push_backs: u64,
    /// The limit on bytes per second, if there is one.
    rate: Option<f64>,
}

/// A permit for one request. Report what was moved, then drop it.
#[derive(Debug)]
pub struct Permit {
    limiter: Arc<Limiter>,
    permit: Option<OwnedSemaphorePermit>,
    _together: Option<OwnedSemaphorePermit>,
    _room: Option<OwnedSemaphorePermit>,
    moved: u64,
}

impl Limiter {
    fn new(start: usize, most: usize, fixed: bool) -> Self {
        let start = start.max(1);
        let control = Control {
            limit: start,
            start,
            most,
            fixed,
            issued: start,
            window_start: Instant::now(),
            window_done: 0,
            window_bytes: 0,
            best: 0.0,
            raised_from: None,
            push_backs: 0,
            rate: None,
        };
        let permits = Arc::new(Semaphore::new(start));
        let control = Mutex::new(control);
        Limiter { permits, control, sharers: 0.into(), together: None, room: None }
    }

    /// Returns the maximum that can ever be in flight.
    pub fn ceiling(&self) -> usize {
        self.lock().most
    }

    /// Counts a large blob among those that share this limiter, until the result is dropped.
    pub fn share(self: &Arc<Self>) -> Share {
        self.sharers.fetch_add(1, Ordering::Relaxed);
        Share(self.clone())
    }

    /// Returns how many requests each of the large blobs may have in flight now: the limit divided by those that share it.
    pub fn streams(&self) -> usize {
        self.lock().limit.div_ceil(self.sharers.load(Ordering::Relaxed).max(1))
    }

    /// Returns how many requests the store may turn out to reward, which growth finds out soon.
    pub fn reach(&self) -> usize {
        let control = self.lock();
        if control.fixed { control.limit } else { (control.limit * LARGE_STEP).min(control.most) }
    }

    /// Returns how many requests may be in flight now.
    pub fn limit(&self) -> usize {
        self.lock().limit
    }

    /// Waits for a permit to move this many bytes.
    pub async fn permit(self: &Arc<Self>, bytes: u64) -> Permit {
        let permit = self.permits.clone().acquire_owned().await.expect("the semaphore is never closed");
        let together = match &self.together {
            Some(together) => Some(together.clone().acquire_owned().await.expect("the semaphore is never closed")),
            None => None,
        };
        let units = bytes.div_ceil(UNIT).clamp(1, UNITS_EACH) as u32;
        let room = match &self.room {
            Some(room) => Some(room.clone().acquire_many_owned(units).await.expect("the semaphore is never closed")),
            None => None,
        };
        Permit { limiter: self.clone(), permit: Some(permit), _together: together, _room: room, moved: 0 }
    }

    fn report_push_backs(&self, total: u64) {
        let mut control = self.lock();
        if total > control.push_backs {
            control.push_backs = total;
            control.shrink(Instant::now());
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Control> {
        self.control.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Permit {
    /// Counts bytes that this request has moved.
    pub fn count(&mut self, bytes: u64) {
        self.moved += bytes;
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut control = self.limiter.lock();
        if self.moved > 0 {
            control.record(self.moved, Instant::now());
        }
        let permit = self.permit.take().expect("taken only here");
        if control.issued > control.limit {
            control.issued -= 1;
            permit.forget();
        } else if control.issued < control.limit {
            self.limiter.permits.add_permits(control.limit - control.issued);
            control.issued = control.limit;
        }
    }
}

impl Control {
    fn record(&mut self, bytes: u64, now: Instant) {
        self.window_done += 1;
        self.window_bytes += bytes;
        let spent = now.duration_since(self.window_start);
        if self.fixed || spent < WINDOW || self.window_done < self.limit {
            return;
        }
        let cost = self.window_done as u64 * OBJECT_COST;
        let score = (self.window_bytes + cost) as f64 / spent.as_secs_f64();
        let before = self.limit;
        let each = score / before as f64;
        // More requests would only share the limit on bytes.
        let moved = self.window_bytes as f64 / spent.as_secs_f64();
        let is_limited = self.rate.is_some_and(|rate| moved > rate * 0.9);
        if is_limited {
            // Stay: fewer might not reach it.
        } else if score > self.best * 1.1 && each < FAST {
            let step = if each < SLOW && spent > 2 * WINDOW { LARGE_STEP } else { STEP };
            self.limit = (before * step).min(self.most);
        } else if let Some(earlier) = self.raised_from {
            // More requests in flight did not move more: go back, and stay there until things change.
            self.limit = earlier.max(self.start);
        }
        self.raised_from = (self.limit > before).then_some(before);
        self.best = self.best.max(score);
        self.restart(now);
    }

    fn shrink(&mut self, now: Instant) {
        if !self.fixed {
            self.limit = (self.limit / 2).max(LEAST).min(self.most);
            self.best = 0.0;
            self.raised_from = None;
            self.restart(now);
        }
    }

    fn restart(&mut self, now: Instant) {
        self.window_start = now;
        self.window_done = 0;
        self.window_bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: usize = 16;
    const MOST: usize = 256;

    /// Returns the limit for a store that takes `latency` per object, and moves up to `most` bytes per second.
    fn settle(latency: Duration, most: f64, object: u64) -> usize {
        let limiter = Arc::new(Limiter::new(START, MOST, false));
        let mut control = limiter.lock();
        let mut now = Instant::now();
        for _ in 0..200 {
            let rate = (control.limit as f64 * object as f64 / latency.as_secs_f64()).min(most);
            for _ in 0..control.limit {
                now += Duration::from_secs_f64(object as f64 / rate);
                control.record(object, now);
            }
        }
        control.limit
    }

    #[test]
    fn a_far_store_gets_many_and_a_near_one_few() {
        assert_eq!(settle(Duration::from_millis(60), 1e12, 20_000), MOST);
        let near = settle(Duration::from_millis(1), 300e6, 20_000);
        assert!((START..=2 * START).contains(&near), "{near}");
        let far = Limits::new(Caps::default(), Some(Duration::from_millis(30)));
        let close = Limits::new(Caps::default(), Some(Duration::from_millis(1)));
        assert!(far.parts.lock().limit > close.parts.lock().limit);
        // A limit on bytes needs few connections, unless they turn out to be slow.
        let limited = |rate| Limits::new(Caps { rate: NonZeroU64::new(rate), ..Caps::default() }, Some(2 * FAR));
        let parts = [1_000_000, 20_000_000, 10_000_000_000].map(|rate| limited(rate).parts.limit());
        assert_eq!(parts, [2, 4, 64]);
    }

    /// A near store that gives 5 MB/s to a connection: parts of 8 MiB take long, so there are few measurements.
    #[test]
    fn slow_requests_find_their_number_in_few_steps() {
        let limiter = Limiter::new(4, 64, false);
        let mut control = limiter.lock();
        let mut now = Instant::now();
        let mut limits = vec![control.limit];
        for _ in 0..2 {
            now += Duration::from_secs_f64(8.4 / 5.0);
            (0..control.limit).for_each(|_| control.record(8 << 20, now));
            limits.push(control.limit);
        }
        assert_eq!(limits, [4, 16, 64]);
        drop(control);
        // A saturated line does not give more to more requests.
        let limiter = Limiter::new(4, 64, false);
        let mut control = limiter.lock();
        let mut now = Instant::now();
        for _ in 0..10 {
            now += Duration::from_secs_f64(8.4 * control.limit as f64 / 12.0);
            (0..control.limit).for_each(|_| control.record(8 << 20, now));
        }
        assert_eq!(control.limit, 4);
    }

    #[test]
    fn back_pressure_halves_and_a_fixed_number_stays() {
        let limiter = Arc::new(Limiter::new(START, MOST, false));
        limiter.report_push_backs(1);
        limiter.report_push_backs(1);
        assert_eq!(limiter.lock().limit, START / 2);
        (2..20).for_each(|n| limiter.report_push_backs(n));
        assert_eq!(limiter.lock().limit, LEAST);
        let fixed = Limits::new(Caps { workers: Some(3), ..Caps::default() }, None);
        fixed.report_push_backs(1);
        assert_eq!(fixed.objects.ceiling(), 3);
        assert!(Arc::ptr_eq(&fixed.objects, &fixed.parts));
    }

    #[test]
    fn memory_is_a_number_of_requests() {
        assert_eq!(requests_within(0), None);
        assert_eq!(requests_within((32 << 20) - 1), None);
        assert_eq!(requests_within(32 << 20), Some(1));
        assert_eq!(requests_within(64 << 20), Some(33));
        assert_eq!(requests_within(u64::MAX), Some(1 << 16));
    }

    #[tokio::test]
    async fn objects_and_parts_share_one_cap() {
        let capped = |memory, rate: Option<u64>| {
            let rate = rate.and_then(NonZeroU64::new);
            Limits::new(Caps { workers: None, memory, rate }, Some(Duration::from_millis(30)))
        };
        let limits = capped(Some(3), None);
        let mut held =
            vec![limits.objects.permit(1).await, limits.parts.permit(1).await, limits.objects.permit(1).await];
        let waits = |limiter: &Arc<Limiter>| {
            let limiter = limiter.clone();
            async move { tokio::time::timeout(Duration::ZERO, limiter.permit(1)).await.is_err() }
        };
        assert!(waits(&limits.objects).await && waits(&limits.parts).await);
        held.pop();
        assert!(!waits(&limits.parts).await);
        // A slow rate is a cap as well, the lower cap counts, and it is never below one.
        assert_eq!(capped(Some(30), Some(1 << 20)).objects.ceiling(), 16);
        assert_eq!(capped(Some(3), Some(1 << 20)).parts.ceiling(), 3);
        assert_eq!(capped(Some(0), Some(1000)).objects.ceiling(), 1);
        let fixed = Limits::new(Caps { workers: Some(8), memory: Some(3), rate: None }, None);
        assert_eq!(fixed.objects.ceiling(), 3);
        let one = capped(Some(1), None);
        one.report_push_backs(1);
        assert_eq!(one.parts.lock().limit, 1);
    }

    #[tokio::test]
    async fn requests_in_flight_take_memory_by_their_size() {
        let limits = Limits::new(Caps::default(), Some(Duration::from_millis(30)));
        let mut held = Vec::new();
        for _ in 0..32 {
            held.push(limits.parts.permit(32 << 20).await);
            held.push(limits.objects.permit(200_000).await);
        }
        // 32 times 6 and 4 units: 64 are left, for as many small requests.
        for _ in 0..64 {
            held.push(limits.objects.permit(20_000).await);
        }
        let waits = async |limiter: &Arc<Limiter>, bytes| {
            tokio::time::timeout(Duration::ZERO, limiter.permit(bytes)).await.is_err()
        };
        assert!(waits(&limits.objects, 1).await && waits(&limits.parts, 1 << 20).await);
        held.pop();
        assert!(waits(&limits.objects, 65_537).await && !waits(&limits.objects, 65_536).await);
        // A number that the user has chosen is kept.
        let fixed = Limits::new(Caps { workers: Some(200), ..Caps::default() }, Some(Duration::from_millis(30)));
        for _ in 0..200 {
            held.push(fixed.objects.permit(8 << 20).await);
        }
        assert!(waits(&fixed.parts, 1).await);
    }

    /// A store that gives 5 MB/s to a connection.
    #[test]
    fn requests_grow_until_they_reach_the_limit_on_bytes() {
        let grown = |rate: f64, windows| {
            let limiter = Limiter::new(4, 64, false);
            let mut control = limiter.lock();
            control.rate = Some(rate);
            let mut now = control.window_start;
            for _ in 0..windows {
                now += Duration::from_secs_f64(control.limit as f64 * 8.4e6 / rate.min(control.limit as f64 * 5e6));
                (0..control.limit).for_each(|_| control.record(8 << 20, now));
            }
            control.limit
        };
        assert_eq!([1, 2, 5].map(|windows| grown(20e6, windows)), [4; 3]);
        assert_eq!([1, 2, 5].map(|windows| grown(60e6, windows)), [16; 3]);
        // Small objects are far below the limit on bytes, whatever they cost otherwise.
        let limiter = Limiter::new(4, 64, false);
        let mut control = limiter.lock();
        control.rate = Some(1e6);
        let now = control.window_start + Duration::from_millis(400);
        (0..40).for_each(|_| control.record(1000, now));
        assert_eq!(control.limit, 16);
    }

    #[test]
    fn large_blobs_share_the_limit() {
        let limiter = Arc::new(Limiter::new(8, 64, false));
        let first = limiter.share();
        assert_eq!(limiter.streams(), 8);
        let others: Vec<_> = (0..3).map(|_| limiter.share()).collect();
        assert_eq!(limiter.streams(), 2);
        drop(others);
        assert_eq!(limiter.streams(), 8);
        drop(first);
        assert_eq!(limiter.streams(), 8);
    }

    #[tokio::test]
    async fn a_lower_limit_takes_permits_back() {
        let limiter = Arc::new(Limiter::new(START, MOST, false));
        let mut held = Vec::new();
        for _ in 0..START {
            held.push(limiter.permit(1).await);
        }
        limiter.report_push_backs(1);
        held.clear();
        assert_eq!(limiter.permits.available_permits(), START / 2);
    }
}
