//! How large blobs are cut: the one place that knows the sizes of parts and ranges. Pure.
//!
//! What a run moves is spread over the requests that the store may reward. Many small parts use all of them; larger
//! ones are less work for the store and spend less of their time waiting for an answer. So parts are as large as they
//! can be without leaving requests unused.

const MIB: u64 = 1 << 20;

/// Blobs up to this size are sent in one request.
pub const SINGLE_PUT: u64 = 16 * MIB;
/// Blobs up to this size are fetched in one request.
pub const SINGLE_GET: u64 = 8 * MIB;

/// S3 takes no smaller part of an upload, but for the last.
const SMALLEST_PART: u64 = 5 * MIB;
/// No part of an upload is larger, unless the blob has more of them than the store takes: fewer are less work for a
/// store, but more is sent again after an interruption.
const LARGEST_PART: u64 = 32 * MIB;
/// A blob has at least so many parts, unless they were smaller than [`USUAL_PART`] then.
const PARTS_EACH: u64 = 8;
/// Above this size, a part is not to be a large piece of its blob.
const USUAL_PART: u64 = 16 * MIB;
/// Parts of an upload that each request in flight gets to send, so that a slow one does not hold up the rest.
const ROUNDS: u64 = 2;

/// No range is smaller: its answer would take longer to begin than to come.
const SMALLEST_RANGE: u64 = MIB;
/// The largest range with many in flight, so that the hash stays close behind,
const LARGEST_RANGE: u64 = 4 * MIB;
/// and with few.
const LARGEST_RANGE_OF_FEW: u64 = 8 * MIB;
/// Requests in flight for a blob that are few.
const FEW: usize = 4;
/// A range of a file on the Hub, which counts requests and takes another one before each.
pub const HUB_RANGE: u64 = 64 * MIB;
/// A download is taken up again at multiples of this, or of a range that is smaller.
const LARGEST_UNIT: u64 = 4 * MIB;

/// What the sizes depend on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// Bytes that the run moves, all blobs together; a blob alone counts as its own run.
    pub bytes: u64,
    /// Requests in flight that the store may reward.
    pub streams: usize,
}

impl Cut {
    /// Bytes for each request in flight, when a blob of `size` is one of those that are moved.
    fn share(self, size: u64) -> u64 {
        self.bytes.max(size) / self.streams.max(1) as u64
    }

    /// Size of the parts in which a blob is sent: whole MiB, all equal (R2 wants that) but the last, and at most
    /// `most` of them.
    pub fn part(self, size: u64, most: u64) -> u64 {
        let largest = (size / PARTS_EACH).clamp(USUAL_PART, LARGEST_PART);
        let usual = (self.share(size) / ROUNDS).clamp(SMALLEST_PART, largest);
        let even = size.div_ceil(size.div_ceil(usual).max(1));
        let needed = size.div_ceil(most.max(1));
        even.max(needed).div_ceil(MIB).max(SMALLEST_PART / MIB) * MIB
    }

    /// Requests that a blob can have in flight while it is sent; 0 when it is a single one.
    pub fn puts(self, size: u64, most: u64) -> u64 {
        if size <= SINGLE_PUT { 0 } else { size.div_ceil(self.part(size, most)) }
    }

    /// Size of the ranges in which a blob is fetched from a bucket: whole MiB. `streams` is how many requests it may
    /// have in flight by itself.
    pub fn range(self, size: u64, streams: usize) -> u64 {
        let largest = if streams <= FEW { LARGEST_RANGE_OF_FEW } else { LARGEST_RANGE };
        self.share(size).clamp(SMALLEST_RANGE, largest).div_ceil(MIB) * MIB
    }

    /// Requests that a blob can have in flight while it is fetched; 0 when it is a single one.
    pub fn gets(self, size: u64) -> u64 {
        if size <= SINGLE_GET { 0 } else { size.div_ceil(self.range(size, FEW)) }
    }
}

/// Size of the pieces of a download that are noted once they are there, when it is fetched in such ranges.
pub fn unit(range: u64) -> u64 {
    range.min(LARGEST_UNIT)
}

/// Whether a download may have been noted in such pieces.
pub fn is_unit(bytes: u64) -> bool {
    (MIB..=LARGEST_UNIT).contains(&bytes) && bytes.is_multiple_of(MIB)
}

/// Whether parts of this size can make up a blob: those of an upload that is taken up again stay as they are.
pub fn is_possible(part: u64, size: u64, most: u64) -> bool {
    part >= SMALLEST_PART && size.div_ceil(part) <= most
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GIB: u64 = 1 << 30;
    /// Streams at a store that is far, and near by.
    const FAR: usize = 64;
    const NEAR: usize = 16;

    fn part(size: u64, count: u64, streams: usize) -> u64 {
        Cut { bytes: size * count, streams }.part(size, 10_000) / MIB
    }

    fn range(size: u64, count: u64, reach: usize, streams: usize) -> u64 {
        Cut { bytes: size * count, streams: reach }.range(size, streams) / MIB
    }

    #[test]
    fn parts_use_all_streams_and_are_no_smaller_than_that_takes() {
        // Size in MiB, how many, far, near.
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
        // One worker has no use for small ones.
        assert_eq!(part(40 * MIB, 1, 1), 14);
        assert_eq!(part(GIB, 1, 1), 32);
    }

    #[test]
    fn ranges_use_all_streams_and_are_no_smaller_than_that_takes() {
        // Size in MiB, how many, far, near.
        for (size, count, far, near) in
            [(64, 4, 4, 8), (70, 1, 2, 5), (512, 4, 4, 8), (20 << 10, 1, 4, 8), (20, 1000, 4, 8), (9, 1, 1, 1)]
        {
            let found = [(FAR, 16), (NEAR, FEW)].map(|(reach, streams)| range(size * MIB, count, reach, streams));
            assert_eq!(found, [far, near], "{count} of {size} MiB");
        }
        assert_eq!(range(40 * MIB, 1, 1, 1), 8);
    }

    #[test]
    fn a_single_request_is_no_part() {
        let cut = Cut { bytes: 0, streams: FAR };
        assert_eq!((cut.puts(SINGLE_PUT, 10_000), cut.gets(SINGLE_GET)), (0, 0));
        assert_eq!((cut.puts(SINGLE_PUT + 1, 10_000), cut.gets(SINGLE_GET + 1)), (4, 9));
    }

    #[test]
    fn an_upload_that_is_taken_up_again_keeps_its_parts() {
        assert!(is_possible(16 * MIB, 40 * MIB, 10_000) && is_possible(5 * MIB, 64 * MIB, 13));
        assert!(!is_possible(0, 40 * MIB, 10_000) && !is_possible(5 * MIB, 64 * MIB, 12));
        assert!(is_unit(unit(8 * MIB)) && is_unit(unit(HUB_RANGE)) && is_unit(unit(MIB)));
        assert!(!is_unit(0) && !is_unit(MIB + 1) && !is_unit(8 * MIB));
    }

    proptest! {
        /// Whatever the size: no store refuses such parts.
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
