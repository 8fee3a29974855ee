//! Decides when to push. Pure: takes events and the time, and returns "push now" or "wait until". All times are relative
//! to the start of the watch.

use std::time::Duration;

/// Maximum delay of a push while the cache keeps changing, in debounce times.
const MAX_DELAY: u32 = 10;
/// Lower bound of that delay.
const MIN_MAX_DELAY: Duration = Duration::from_secs(300);
/// Bounds of the first pause after a failed push, which is the debounce time. Later pauses double.
const FIRST_PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// Maximum pause after a failed push.
const MAX_PAUSE: Duration = Duration::from_secs(600);

/// The next action.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Push.
    Push,
    /// Wait until this time or the next event.
    WaitUntil(Duration),
    /// Wait for the next event.
    Idle,
}

/// The outcome of a push.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing that a retry could improve is left until the cache changes.
    Done,
    /// The store or the network failed, so the push has to be retried.
    Retry,
}

/// The changes that are waiting to be pushed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pending {
    Nothing,
    /// A push without debouncing.
    Immediate,
    Changes {
        first: Duration,
        last: Duration,
    },
}

/// The state of a watch.
#[derive(Debug, Clone)]
pub struct Schedule {
    debounce: Duration,
    pending: Pending,
    not_before: Duration,
    failures: u32,
}

impl Schedule {
    /// Creates the schedule of a watch, which starts with a push.
    pub fn new(debounce: Duration) -> Self {
        Schedule { debounce, pending: Pending::Immediate, not_before: Duration::ZERO, failures: 0 }
    }

    /// Decides what to do at this time.
    pub fn next(&self, now: Duration) -> Step {
        let due = match self.pending {
            Pending::Nothing => return Step::Idle,
            Pending::Immediate => Duration::ZERO,
            Pending::Changes { first, last } => {
                let max_delay = (self.debounce * MAX_DELAY).max(MIN_MAX_DELAY).max(self.debounce);
                (last + self.debounce).min(first + max_delay)
            }
        };
        match due.max(self.not_before) {
            due if due <= now => Step::Push,
            due => Step::WaitUntil(due),
        }
    }

    /// Records a change in the cache.
    pub fn record_change(&mut self, now: Duration) {
        self.pending = match self.pending {
            Pending::Changes { first, .. } => Pending::Changes { first, last: now },
            // A pending push also covers this change, but has to wait for the cache to be quiet.
            Pending::Nothing | Pending::Immediate => Pending::Changes { first: now, last: now },
        };
    }

    /// Records the start of a push, which covers all changes so far.
    pub fn start_push(&mut self) {
        self.pending = Pending::Nothing;
    }

    /// Records the end of a push, and returns the pause before a retry, if one is due. `jitter`, from 0 to 1, spreads the
    /// pauses of many watchers.
    pub fn finish_push(&mut self, now: Duration, outcome: Outcome, jitter: f64) -> Option<Duration> {
        if outcome == Outcome::Done {
            self.failures = 0;
            self.not_before = Duration::ZERO;
            return None;
        }
        let first = self.debounce.clamp(FIRST_PAUSE.0, FIRST_PAUSE.1);
        let doubled = first * 2u32.pow(self.failures.min(16));
        let pause = doubled.min(MAX_PAUSE).mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0);
        self.failures += 1;
        self.not_before = now + pause;
        if self.pending == Pending::Nothing {
            self.pending = Pending::Immediate;
        }
        Some(pause)
    }

    /// Returns the number of consecutive failed pushes.
    pub fn failures(&self) -> u32 {
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// Returns the schedule after the initial push, at time 0.
    fn started(debounce: u64) -> Schedule {
        let mut schedule = Schedule::new(s(debounce));
        assert_eq!(schedule.next(s(0)), Step::Push);
        schedule.start_push();
        assert_eq!(schedule.finish_push(s(0), Outcome::Done, 1.0), None);
        schedule
    }

    #[test]
    fn the_first_push_is_immediate_and_the_next_waits_for_a_change() {
        assert_eq!(started(30).next(s(1_000_000)), Step::Idle);
    }

    #[test]
    fn every_change_restarts_the_debounce_time() {
        let mut schedule = started(30);
        schedule.record_change(s(100));
        assert_eq!(schedule.next(s(100)), Step::WaitUntil(s(130)));
        schedule.record_change(s(129));
        assert_eq!(schedule.next(s(130)), Step::WaitUntil(s(159)));
        assert_eq!(schedule.next(s(159)), Step::Push);
        schedule.start_push();
        assert_eq!(schedule.next(s(160)), Step::Idle);
    }

    #[test]
    fn a_constantly_changing_cache_is_still_pushed() {
        let mut schedule = started(60);
        let pushed = (100..).step_by(10).map(s).find(|now| {
            schedule.record_change(*now);
            schedule.next(*now) == Step::Push
        });
        assert_eq!(pushed, Some(s(100 + 600)));
    }

    #[test]
    fn a_change_during_a_push_is_pushed_after_it() {
        let mut schedule = started(30);
        schedule.record_change(s(10));
        schedule.start_push();
        schedule.record_change(s(50));
        schedule.finish_push(s(200), Outcome::Done, 1.0);
        assert_eq!(schedule.next(s(200)), Step::Push);
        let mut schedule = started(30);
        schedule.start_push();
        schedule.record_change(s(190));
        schedule.finish_push(s(200), Outcome::Done, 1.0);
        assert_eq!(schedule.next(s(200)), Step::WaitUntil(s(220)));
    }

    #[test]
    fn failures_are_retried_with_growing_pauses() {
        let mut schedule = Schedule::new(s(30));
        let mut pauses = Vec::new();
        for _ in 0..8 {
            schedule.start_push();
            pauses.push(schedule.finish_push(s(0), Outcome::Retry, 1.0).unwrap());
            assert_eq!(schedule.next(s(0)), Step::WaitUntil(*pauses.last().unwrap()));
            assert_eq!(schedule.next(*pauses.last().unwrap()), Step::Push);
        }
        assert_eq!(pauses, [30, 60, 120, 240, 480, 600, 600, 600].map(s));
        assert_eq!(schedule.failures(), 8);
        assert_eq!(schedule.finish_push(s(0), Outcome::Retry, 0.0), Some(s(300)));
        schedule.finish_push(s(0), Outcome::Done, 0.5);
        assert_eq!(schedule.finish_push(s(0), Outcome::Retry, 1.0), Some(s(30)));
    }

    #[test]
    fn the_first_retry_pause_is_bounded() {
        let first = |debounce| {
            let mut schedule = Schedule::new(debounce);
            schedule.start_push();
            schedule.finish_push(s(0), Outcome::Retry, 1.0).unwrap()
        };
        assert_eq!(first(Duration::ZERO), s(1));
        assert_eq!(first(s(7200)), s(30));
    }

    #[test]
    fn a_change_neither_shortens_the_pause_nor_skips_debouncing() {
        let mut schedule = Schedule::new(s(30));
        schedule.start_push();
        schedule.finish_push(s(0), Outcome::Retry, 1.0);
        schedule.record_change(s(1));
        assert_eq!(schedule.next(s(1)), Step::WaitUntil(s(31)));
        schedule.record_change(s(29));
        assert_eq!(schedule.next(s(31)), Step::WaitUntil(s(59)));
        let mut schedule = Schedule::new(s(2));
        schedule.start_push();
        schedule.finish_push(s(0), Outcome::Retry, 1.0);
        schedule.start_push();
        schedule.finish_push(s(2), Outcome::Retry, 1.0);
        schedule.record_change(s(3));
        assert_eq!(schedule.next(s(5)), Step::WaitUntil(s(6)));
    }
}
