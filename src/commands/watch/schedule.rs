//! When to push. Pure: events and the time in, "push now" or "wait until" out. All times count from the start of
//! the watch.

use std::time::Duration;

/// How long a cache that never gets quiet is waited for, in debounce times.
const PATIENCE: u32 = 10;
/// And at the least.
const LEAST_PATIENCE: Duration = Duration::from_secs(300);
/// The first pause after a failed push is the debounce time, but within these bounds; then it doubles.
const FIRST_PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// Longest pause after a failed push.
const LONGEST_PAUSE: Duration = Duration::from_secs(600);

/// What to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Push.
    Push,
    /// Nothing before this time, unless something happens.
    WaitUntil(Duration),
    /// Nothing until something happens.
    Idle,
}

/// How a push ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing is left that another try could do better, until the cache changes.
    Done,
    /// The store or the network refused: to be tried again.
    Retry,
}

/// What there is to push.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pending {
    Nothing,
    /// Known already, not to be waited for.
    AtOnce,
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
    /// A watch that begins with a push.
    pub fn new(debounce: Duration) -> Self {
        Schedule { debounce, pending: Pending::AtOnce, not_before: Duration::ZERO, failures: 0 }
    }

    /// What to do at this time.
    pub fn next(&self, now: Duration) -> Step {
        let due = match self.pending {
            Pending::Nothing => return Step::Idle,
            Pending::AtOnce => Duration::ZERO,
            Pending::Changes { first, last } => {
                let patience = (self.debounce * PATIENCE).max(LEAST_PATIENCE).max(self.debounce);
                (last + self.debounce).min(first + patience)
            }
        };
        match due.max(self.not_before) {
            due if due <= now => Step::Push,
            due => Step::WaitUntil(due),
        }
    }

    /// Something in the cache changed.
    pub fn changed(&mut self, now: Duration) {
        self.pending = match self.pending {
            Pending::Changes { first, .. } => Pending::Changes { first, last: now },
            // A push that is owed anyway covers the change too, but not before the cache is quiet.
            Pending::Nothing | Pending::AtOnce => Pending::Changes { first: now, last: now },
        };
    }

    /// A push begins: it covers all changes up to now.
    pub fn begun(&mut self) {
        self.pending = Pending::Nothing;
    }

    /// The push ended. `jitter`, from 0 to 1, spreads the pauses of many watchers. Returns the pause before the
    /// next try, when there has to be one.
    pub fn ended(&mut self, now: Duration, outcome: Outcome, jitter: f64) -> Option<Duration> {
        if outcome == Outcome::Done {
            self.failures = 0;
            self.not_before = Duration::ZERO;
            return None;
        }
        let first = self.debounce.clamp(FIRST_PAUSE.0, FIRST_PAUSE.1);
        let doubled = first * 2u32.pow(self.failures.min(16));
        let pause = doubled.min(LONGEST_PAUSE).mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0);
        self.failures += 1;
        self.not_before = now + pause;
        if self.pending == Pending::Nothing {
            self.pending = Pending::AtOnce;
        }
        Some(pause)
    }

    /// Failed pushes in a row.
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

    /// After the initial push, at time 0.
    fn started(debounce: u64) -> Schedule {
        let mut schedule = Schedule::new(s(debounce));
        assert_eq!(schedule.next(s(0)), Step::Push);
        schedule.begun();
        assert_eq!(schedule.ended(s(0), Outcome::Done, 1.0), None);
        schedule
    }

    #[test]
    fn it_pushes_at_start_and_then_waits_for_a_change() {
        assert_eq!(started(30).next(s(1_000_000)), Step::Idle);
    }

    #[test]
    fn every_change_begins_the_quiet_time_anew() {
        let mut schedule = started(30);
        schedule.changed(s(100));
        assert_eq!(schedule.next(s(100)), Step::WaitUntil(s(130)));
        schedule.changed(s(129));
        assert_eq!(schedule.next(s(130)), Step::WaitUntil(s(159)));
        assert_eq!(schedule.next(s(159)), Step::Push);
        schedule.begun();
        assert_eq!(schedule.next(s(160)), Step::Idle);
    }

    #[test]
    fn a_cache_that_never_gets_quiet_is_pushed_all_the_same() {
        let mut schedule = started(60);
        let pushed = (100..).step_by(10).map(s).find(|now| {
            schedule.changed(*now);
            schedule.next(*now) == Step::Push
        });
        assert_eq!(pushed, Some(s(100 + 600)));
    }

    #[test]
    fn a_change_during_a_push_is_pushed_after_it() {
        let mut schedule = started(30);
        schedule.changed(s(10));
        schedule.begun();
        schedule.changed(s(50));
        schedule.ended(s(200), Outcome::Done, 1.0);
        assert_eq!(schedule.next(s(200)), Step::Push);
        let mut schedule = started(30);
        schedule.begun();
        schedule.changed(s(190));
        schedule.ended(s(200), Outcome::Done, 1.0);
        assert_eq!(schedule.next(s(200)), Step::WaitUntil(s(220)));
    }

    #[test]
    fn failures_are_tried_again_with_longer_and_longer_pauses() {
        let mut schedule = Schedule::new(s(30));
        let mut pauses = Vec::new();
        for _ in 0..8 {
            schedule.begun();
            pauses.push(schedule.ended(s(0), Outcome::Retry, 1.0).unwrap());
            assert_eq!(schedule.next(s(0)), Step::WaitUntil(*pauses.last().unwrap()));
            assert_eq!(schedule.next(*pauses.last().unwrap()), Step::Push);
        }
        assert_eq!(pauses, [30, 60, 120, 240, 480, 600, 600, 600].map(s));
        assert_eq!(schedule.failures(), 8);
        assert_eq!(schedule.ended(s(0), Outcome::Retry, 0.0), Some(s(300)));
        schedule.ended(s(0), Outcome::Done, 0.5);
        assert_eq!(schedule.ended(s(0), Outcome::Retry, 1.0), Some(s(30)));
    }

    #[test]
    fn a_short_debounce_does_not_hammer_the_store_and_a_long_one_does_not_delay_the_retry() {
        let first = |debounce| {
            let mut schedule = Schedule::new(debounce);
            schedule.begun();
            schedule.ended(s(0), Outcome::Retry, 1.0).unwrap()
        };
        assert_eq!(first(Duration::ZERO), s(1));
        assert_eq!(first(s(7200)), s(30));
    }

    #[test]
    fn a_change_does_not_shorten_the_pause_and_its_quiet_time_still_counts() {
        let mut schedule = Schedule::new(s(30));
        schedule.begun();
        schedule.ended(s(0), Outcome::Retry, 1.0);
        schedule.changed(s(1));
        assert_eq!(schedule.next(s(1)), Step::WaitUntil(s(31)));
        schedule.changed(s(29));
        assert_eq!(schedule.next(s(31)), Step::WaitUntil(s(59)));
        let mut schedule = Schedule::new(s(2));
        schedule.begun();
        schedule.ended(s(0), Outcome::Retry, 1.0);
        schedule.begun();
        schedule.ended(s(2), Outcome::Retry, 1.0);
        schedule.changed(s(3));
        assert_eq!(schedule.next(s(5)), Step::WaitUntil(s(6)));
    }
}
