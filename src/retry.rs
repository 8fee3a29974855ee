//! Which failures are tried again, how often, and after which pause. Pure; the loops are where the requests are.

use std::time::Duration;

use crate::error::Cause;
use crate::pace;

/// What is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Try {
    /// A request to the store. `known`: it has answered in this run; a wrong endpoint should not take long to be told.
    Store {
        /// Whether the store has answered before.
        known: bool,
    },
    /// A request to the Hub. Waits that it asks for are not counted.
    #[cfg_attr(not(feature = "fallback"), allow(dead_code))]
    Hub,
    /// A body that breaks, without any progress in between.
    Body,
    /// All the bytes of a blob: once more when they are wrong, since they may have been damaged on the way.
    Blob,
    /// The same for a blob in parts, of which those come again that are not known to be right.
    Parts,
}

impl Try {
    /// How often it is tried in all, when it fails like this.
    pub(crate) fn most(self, cause: Cause) -> u32 {
        match (self, cause) {
            (_, cause) if !cause.is_transient() => 1,
            // What cuts answers mostly cuts all of them.
            (Try::Store { .. }, Cause::Incomplete) => 3,
            // Each try has taken long.
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

    /// The pause before the next try, after so many failed; `None` when there is none. `asked` is what the other side
    /// asks to wait; `jitter`, from 0 to 1, spreads the tries of many.
    pub(crate) fn again(self, cause: Cause, tried: u32, asked: Option<Duration>, jitter: f64) -> Option<Duration> {
        (tried < self.most(cause)).then(|| pause(tried, jitter).max(asked.unwrap_or_default()))
    }
}

/// Returns whether a body that broke off after `moved` bytes has brought a part of `size` bytes further. Otherwise it counts
/// as another failure in a row: a connection that is cut after each byte would be tried for hours.
pub(crate) fn is_progress(moved: u64, size: u64) -> bool {
    moved >= (size / 100).clamp(pace::MIN_BYTES, 64 << 10)
}

/// 0.25 s, doubling to 15 s, of which at least half is waited.
fn pause(tried: u32, jitter: f64) -> Duration {
    let most = Duration::from_millis(250) * 2u32.pow(tried.clamp(1, 7) - 1);
    most.min(Duration::from_secs(15)).mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: Try = Try::Store { known: true };

    #[test]
    fn only_what_may_pass_is_tried_again() {
        for what in [KNOWN, Try::Store { known: false }, Try::Hub, Try::Body, Try::Blob, Try::Parts] {
            for cause in [Cause::Denied, Cause::NoSuchKey, Cause::Full, Cause::Corrupt, Cause::Certificate] {
                assert_eq!(what.again(cause, 1, None, 0.5), None, "{what:?} {cause:?}");
            }
            assert!(what.again(Cause::Broken, 1, None, 0.5).is_some(), "{what:?}");
        }
    }

    #[test]
    fn a_store_that_has_never_answered_is_given_up_soon() {
        assert_eq!(KNOWN.most(Cause::Unreachable), 8);
        assert_eq!(Try::Store { known: false }.most(Cause::Unreachable), 3);
        assert_eq!(Try::Store { known: false }.most(Cause::Busy), 8, "that is an answer");
        assert_eq!(KNOWN.most(Cause::Incomplete), 3);
        assert_eq!(KNOWN.again(Cause::Busy, 8, None, 0.5), None);
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
    fn pauses_grow_are_bounded_and_heed_the_store() {
        assert_eq!(pause(1, 1.0), Duration::from_millis(250));
        assert!((1..40).all(|tried| pause(tried, 1.0) <= Duration::from_secs(15)));
        assert!(pause(3, 0.0) >= Duration::from_millis(500));
        let asked = Some(Duration::from_secs(30));
        assert_eq!(KNOWN.again(Cause::Busy, 1, asked, 0.5), Some(Duration::from_secs(30)));
    }
}
