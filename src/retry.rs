//! Which failures are retried, how often, and after which pause. Pure: the loops are where the requests are.

use std::time::Duration;

use crate::error::Cause;
use crate::pace;

/// The kind of operation that is attempted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Try {
    /// A request to the store.
    Store {
        /// Whether the store has responded in this run. If not, the endpoint may be wrong, which should show quickly.
        known: bool,
    },
    /// A request to the Hub. Waits that the Hub asks for do not count.
    #[cfg_attr(not(feature = "fallback"), allow(dead_code))]
    Hub,
    /// A body that breaks off, without progress in between.
    Body,
    /// A whole blob. Wrong bytes are requested once more, since they may have been damaged in transit.
    Blob,
    /// A blob in parts, of which those that are not known to be right are requested again.
    Parts,
}

impl Try {
    /// Returns the maximum number of attempts if it fails like this.
    pub(crate) fn max_attempts(self, cause: Cause) -> u32 {
        match (self, cause) {
            (_, cause) if !cause.is_transient() => 1,
            // A proxy that truncates responses usually truncates all of them.
            (Try::Store { .. }, Cause::Incomplete) => 3,
            // Each attempt has taken long.
            (Try::Store { .. } | Try::Hub | Try::Body, Cause::Stalled) => 3,
            // About a minute.
            (Try::Store { known: true }, _) | (Try::Store { .. }, Cause::Busy) => 8,
            (Try::Store { known: false }, _) => 3,
            (Try::Hub, _) => 5,
            (Try::Body, _) => 6,
            (Try::Blob, _) => 2,
            (Try::Parts, _) => 4,
        }
    }

    /// Returns the pause before the next attempt, after this many have failed; `None` if there is no next one. `requested` is
    /// the wait that the server asks for. `jitter`, from 0 to 1, spreads the attempts of many requests.
    pub(crate) fn pause(self, cause: Cause, failed: u32, requested: Option<Duration>, jitter: f64) -> Option<Duration> {
        (failed < self.max_attempts(cause)).then(|| pause(failed, jitter).max(requested.unwrap_or_default()))
    }
}

/// Returns whether a body that broke off after `moved` bytes is progress on a part of `size` bytes. If not, it counts as
/// another failure in a row: otherwise, a connection that breaks after each byte would be retried for hours.
pub(crate) fn is_progress(moved: u64, size: u64) -> bool {
    moved >= (size / 100).clamp(pace::MIN_BYTES, 64 << 10)
}

/// Returns the pause after this many failures: 0.25 s, doubled each time up to 15 s, and at least half of that.
fn pause(failed: u32, jitter: f64) -> Duration {
    let most = Duration::from_millis(250) * 2u32.pow(failed.clamp(1, 7) - 1);
    most.min(Duration::from_secs(15)).mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: Try = Try::Store { known: true };

    #[test]
    fn only_transient_failures_are_retried() {
        for what in [KNOWN, Try::Store { known: false }, Try::Hub, Try::Body, Try::Blob, Try::Parts] {
            for cause in [Cause::Denied, Cause::NoSuchKey, Cause::Full, Cause::Corrupt, Cause::Certificate] {
                assert_eq!(what.pause(cause, 1, None, 0.5), None, "{what:?} {cause:?}");
            }
            assert!(what.pause(Cause::Broken, 1, None, 0.5).is_some(), "{what:?}");
        }
    }

    #[test]
    fn a_store_that_has_never_answered_is_given_up_soon() {
        assert_eq!(KNOWN.max_attempts(Cause::Unreachable), 8);
        assert_eq!(Try::Store { known: false }.max_attempts(Cause::Unreachable), 3);
        assert_eq!(Try::Store { known: false }.max_attempts(Cause::Busy), 8, "that is an answer");
        assert_eq!(KNOWN.max_attempts(Cause::Incomplete), 3);
        assert_eq!(KNOWN.pause(Cause::Busy, 8, None, 0.5), None);
    }

    #[test]
    fn only_a_real_piece_of_a_part_is_progress() {
        for (moved, size, expected) in [
            (1, 8 << 20, false),
            (64 << 10, 8 << 20, true),
            ((64 << 10) - 1, 1 << 40, false),
            (64 << 10, 1 << 40, true),
            (4 << 10, 100 << 10, true),
            (10, 20, false),
            (9_999, 1_000_000, false),
            (10_000, 1_000_000, true),
        ] {
            assert_eq!(is_progress(moved, size), expected, "{moved} of {size}");
        }
    }

    #[test]
    fn pauses_grow_up_to_a_limit_and_respect_the_store() {
        assert_eq!(pause(1, 1.0), Duration::from_millis(250));
        assert!((1..40).all(|failed| pause(failed, 1.0) <= Duration::from_secs(15)));
        assert!(pause(3, 0.0) >= Duration::from_millis(500));
        let requested = Some(Duration::from_secs(30));
        assert_eq!(KNOWN.pause(Cause::Busy, 1, requested, 0.5), Some(Duration::from_secs(30)));
    }
}
