//! Decides the sizes of parts and ranges: the only place that knows them. Pure.
//!
//! The bytes of a run are spread over the requests that the store may reward. Many small parts use all of them; larger
//! ones are less work for the store and spend less of their time waiting for an answer. So parts are as large as they
//! can be without leaving requests unused.

const MIB: u64 = 1 << 20;

/// Blobs up to this size are sent in one request.
pub const SINGLE_PUT: u64 = 16 * MIB;
/// Blobs up to this size are fetched in one request.
pub const SINGLE_GET: u64 = 8 * MIB;

/// The minimum that S3 accepts for all parts of an upload but the last.
const SMALLEST_PART: u64 = 5 * MIB;
/// The maximum for a part of an upload, unless the blob then has more parts than the store accepts. Fewer parts are less
/// work for a store, but more is sent again after an interruption.
const LARGEST_PART: u64 = 32 * MIB;
/// The minimum number of parts of a blob, unless they would be smaller than [`USUAL_PART`].
const PARTS_EACH: u64 = 8;
/// Above this size, a part should not be a large fraction of its blob.
const USUAL_PART: u64 = 16 * MIB;
/// The number of parts of an upload per request in flight, so that a slow one does not delay the others.
const ROUNDS: u64 = 2;

/// The minimum for a range. The answer to a smaller one would take longer to start than to arrive.
const SMALLEST_RANGE: u64 = MIB;
/// The maximum for a range with many in flight, so that the hash stays close behind.
const LARGEST_RANGE: u64 = 4 * MIB;
/// The maximum for a range with few in flight.
const LARGEST_RANGE_OF_FEW: u64 = 8 * MIB;
/// Up to this many requests in flight for a blob are few.
const FEW: usize = 4;
/// The size of a range of a file on the Hub, which limits the rate of requests, and each range takes two.
pub const HUB_RANGE: u64 = 64 * MIB;
/// A download resumes at multiples of this, or of its range if that is smaller.
const LARGEST_UNIT: u64 = 4 * MIB;

/// The inputs that determine sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// Number of bytes that the run moves, all blobs together. A blob moved on its own is a run of its own.
    pub bytes: u64,
    /// Number of requests in flight that the store may reward.
    pub streams: usize,
}

impl Cut {
    /// Returns the number of bytes per request in flight if a blob of `size` is among those that are moved.
    fn share(self, size: u64) -> u64 {
        self.bytes.max(size) / self.streams.max(1) as u64
    }

    /// Returns the size of the parts in which a blob is sent: whole MiB, all equal (R2 requires that) but the last, and at
    /// most `most` of them.
    pub fn part(self, size: u64, most: u64) -> u64 {
        let largest = (size / PARTS_EACH).clamp(USUAL_PART, LARGEST_PART);
        let usual = (self.share(size) / ROUNDS).clamp(SMALLEST_PART, largest);
        let even = size.div_ceil(size.div_ceil(usual).max(1));
        let needed = size.div_ceil(most.max(1));
        even.max(needed).div_ceil(MIB).max(SMALLEST_PART / MIB) * MIB
    }

    /// Returns how many requests a blob can have in flight while it is sent; 0 if it is sent in one.
    pub fn puts(self, size: u64, most: u64) -> u64 {
        if size <= SINGLE_PUT { 0 } else { size.div_ceil(self.part(size, most)) }
    }

    /// Returns the size of the ranges in which a blob is fetched from a bucket: whole MiB. `streams` is how many requests
    /// this blob may have in flight.
    pub fn range(self, size: u64, streams: usize) -> u64 {
        let largest = if streams <= FEW { LARGEST_RANGE_OF_FEW } else { LARGEST_RANGE };
        self.share(size).clamp(SMALLEST_RANGE, largest).div_ceil(MIB) * MIB
    }

    /// Returns how many requests a blob can have in flight while it is fetched; 0 if it is fetched in one.
    pub fn gets(self, size: u64) -> u64 {
        if size <= SINGLE_GET { 0 } else { size.div_ceil(self.range(size, FEW)) }
    }
}

/// Returns the size of the units in which the progress of a download with such ranges is recorded.
pub fn unit(range: u64) -> u64 {
    range.min(LARGEST_UNIT)
}

/// Returns whether the progress of a download may have been recorded in such units.
pub fn is_unit(bytes: u64) -> bool {
    (MIB..=LARGEST_UNIT).contains(&bytes) && bytes.is_multiple_of(MIB)
}

/// Returns whether parts of this size can make up a blob. A resumed upload keeps the size of its parts.
pub fn is_possible(part: u64, size: u64, most: u64) -> bool {
    part >= SMALLEST_PART && size.div_ceil(part) <= most
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GIB: u64 = 1 << 30;
    /// Requests in flight at a far store, and at a near one.
    const FAR: usize = 64;
    const NEAR: usize = 16;

    fn part(size: u64, count: u64, streams: usize) -> u64 {
        Cut { bytes: size * count, streams }.part(size, 10_000) / MIB
    }

    fn range(size: u64, count: u64, reach: usize, streams: usize) -> u64 {
        Cut { bytes: size * count, streams: reach }.range(size, streams) / MIB
    }

    #[test]
    fn parts_use_all_streams_and_are_no_smaller_than_necessary() {
        // Size in MiB, number of blobs, far, near.
        for (size, count, far, near) in [
            (64, 4, 5, 8),
            (70, 1, 5, 5),
            (512, 4, 16, 32),
            (8 << 10, 1, 32, 32),
            (20 << 10, 1, 32, 32),
            (600, 1, 5, 19),
            (20, 1000, 10, 10),
            (17, 1, 5, 5),
            (17, 100, 9, 9),
        ] {
            let found = [FAR, NEAR].map(|streams| part(size * MIB, count, streams));
            assert_eq!(found, [far, near], "{count} of {size} MiB");
        }
        // A single worker does not benefit from small parts.
        assert_eq!(part(40 * MIB, 1, 1), 14);
        assert_eq!(part(GIB, 1, 1), 32);
    }

    #[test]
    fn ranges_use_all_streams_and_are_no_smaller_than_necessary() {
        // Size in MiB, number of blobs, far, near.
        for (size, count, far, near) in
            [(64, 4, 4, 8), (70, 1, 2, 5), (512, 4, 4, 8), (20 << 10, 1, 4, 8), (20, 1000, 4, 8), (9, 1, 1, 1)]
        {
            let found = [(FAR, 16), (NEAR, FEW)].map(|(reach, streams)| range(size * MIB, count, reach, streams));
            assert_eq!(found, [far, near], "{count} of {size} MiB");
        }
        assert_eq!(range(40 * MIB, 1, 1, 1), 8);
    }

    #[test]
    fn a_single_request_is_not_a_part() {
        let cut = Cut { bytes: 0, streams: FAR };
        assert_eq!((cut.puts(SINGLE_PUT, 10_000), cut.gets(SINGLE_GET)), (0, 0));
        assert_eq!((cut.puts(SINGLE_PUT + 1, 10_000), cut.gets(SINGLE_GET + 1)), (4, 9));
    }

    #[test]
    fn a_resumed_upload_keeps_its_parts() {
        assert!(is_possible(16 * MIB, 40 * MIB, 10_000) && is_possible(5 * MIB, 64 * MIB, 13));
        assert!(!is_possible(0, 40 * MIB, 10_000) && !is_possible(5 * MIB, 64 * MIB, 12));
        assert!(is_unit(unit(8 * MIB)) && is_unit(unit(HUB_RANGE)) && is_unit(unit(MIB)));
        assert!(!is_unit(0) && !is_unit(MIB + 1) && !is_unit(8 * MIB));
    }

    proptest! {
        /// No store rejects such parts, for any size.
        #[test]
        fn parts_keep_to_the_limits(
            size in SINGLE_PUT + 1..5 << 40,
            others in 0..1u64 << 45,
            streams in 0..2000usize,
            most in prop_oneof![Just(10_000u64), Just(1000), 1..10_000u64],
        ) {
            let cut = Cut { bytes: others, streams };
            let part = cut.part(size, most);
            let count = size.div_ceil(part);
            prop_assert!(part.is_multiple_of(MIB) && part >= SMALLEST_PART);
            prop_assert!(count <= most && cut.puts(size, most) == count && is_possible(part, size, most));
            prop_assert!(part <= LARGEST_PART.max(size.div_ceil(most) + MIB));
        }
    }
}
