//! Splits the listing of the blobs, so that its pages can be requested concurrently. Pure.
//!
//! A store returns one page after another, 1000 keys each: for 100,000 blobs, that is 100 round trips. But the names of blobs
//! are hashes and therefore spread evenly, so their number is enough to split them into segments that take about the same
//! number of pages, and S3 can start a listing after any key (`start-after`).

use super::Object;
use crate::bucket::keys;

/// Maximum number of concurrent listings.
const MOST: usize = 16;
/// The share of its pages, in percent, that a segment is expected to fill, so that nearly all segments fit.
const FILLED: usize = 85;
/// Number of hexadecimal digits that determine a position.
const DIGITS: usize = 4;
/// The number of positions.
const POSITIONS: usize = 1 << (4 * DIGITS);

/// The keys after one key, up to and including another.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Segment {
    /// Empty for the first segment.
    pub(super) after: String,
    /// `None` for the last segment.
    until: Option<String>,
}

impl Segment {
    /// Whether no other segment follows.
    pub(super) fn is_last(&self) -> bool {
        self.until.is_none()
    }

    /// Whether a key belongs to a later segment.
    pub(super) fn is_past(&self, key: &str) -> bool {
        self.until.as_deref().is_some_and(|until| key > until)
    }
}

/// Returns the segments of all blobs, if there are about `keys` of them and a page has `page`. One segment is not worth it.
pub(super) fn of_all(keys: usize, page: usize) -> Vec<Segment> {
    split(String::new(), 0, keys, page)
}

/// Returns the segments of all blobs that follow the first page. One segment is not worth it. There is none if the page is
/// not in order.
pub(super) fn of_rest(page: &[Object]) -> Vec<Segment> {
    let Some(last) = page.last().filter(|_| page.is_sorted_by(|a, b| a.key < b.key)) else { return Vec::new() };
    let Some(end) = position(&last.key) else { return Vec::new() };
    let all = page.len().saturating_mul(POSITIONS) / (end + 1);
    split(last.key.clone(), end, all - page.len(), page.len())
}

/// Splits the keys after a key at this position, of which there are about `keys`.
fn split(after: String, position: usize, keys: usize, page: usize) -> Vec<Segment> {
    let pages = (keys * 100).div_ceil(page * FILLED);
    let number = pages.div_ceil(pages.div_ceil(MOST).max(1));
    let starts = (1..number).map(|index| position + (POSITIONS - position) * index / number);
    let mut starts = starts.map(|start| format!("{}{start:0DIGITS$x}", keys::BLOBS));
    let mut segments = Vec::new();
    let mut after = after;
    for _ in 0..number {
        let until = starts.next();
        segments.push(Segment { after, until: until.clone() });
        after = until.unwrap_or_default();
    }
    segments
}

/// Returns the position of a blob among all possible names; `None` for other keys.
fn position(key: &str) -> Option<usize> {
    keys::parse_blob(key)?;
    usize::from_str_radix(key.strip_prefix(keys::BLOBS)?.get(..DIGITS)?, 16).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::hash::md5_hex;

    fn objects(keys: &[String]) -> Vec<Object> {
        let object = |key: &String| Object { key: key.clone(), size: 1, etag: None, modified: None };
        keys.iter().map(object).collect()
    }

    fn names(number: usize) -> Vec<String> {
        let digits = |index: usize| md5_hex(index.to_string().as_bytes());
        let mut names: Vec<String> = (0..number).map(|index| format!("blobs/{0}{0}", digits(index))).collect();
        names.sort();
        names
    }

    /// Returns how many of the keys belong to each segment. Each belongs to exactly one.
    fn counts(segments: &[Segment], keys: &[String]) -> Vec<usize> {
        let has = |segment: &Segment, key: &str| *key > *segment.after && !segment.is_past(key);
        for key in keys {
            assert_eq!(segments.iter().filter(|segment| has(segment, key)).count(), 1, "{key}: {segments:?}");
        }
        segments.iter().map(|segment| keys.iter().filter(|key| has(segment, key)).count()).collect()
    }

    #[test]
    fn a_segment_fits_on_a_page() {
        for number in [1_200, 2_000, 5_000, 13_000] {
            let names = names(number);
            let all = counts(&of_all(number, 1000), &names);
            assert!(all.iter().all(|count| *count <= 1000) && all.len() <= number.div_ceil(800), "{all:?}");
            let (page, rest) = names.split_at(1000);
            // The estimate from the first page is a little off.
            let rest = counts(&of_rest(&objects(page)), rest);
            assert!(rest.iter().all(|count| *count <= 1000) && rest.len() <= number.div_ceil(750), "{rest:?}");
        }
        // Two pages each.
        let all = counts(&of_all(20_000, 1000), &names(20_000));
        assert!(all.len() == 12 && all.iter().all(|count| *count <= 2000), "{all:?}");
        assert_eq!(of_all(1_000_000, 1000).len(), MOST);
    }

    #[test]
    fn what_fits_on_a_page_is_no_segment() {
        assert_eq!((of_all(0, 1000).len(), of_all(850, 1000).len(), of_all(851, 1000).len()), (0, 1, 2));
        assert_eq!(of_rest(&objects(&[])), []);
        assert_eq!(of_rest(&objects(&["blobs/zz".to_string()])), []);
        let mut shuffled = names(100);
        shuffled.swap(3, 4);
        assert_eq!(of_rest(&objects(&shuffled[..50])), []);
    }

    proptest! {
        #[test]
        fn every_key_belongs_to_one_segment(
            keys in prop::collection::btree_set("blobs/([0-9a-f]{4}|[0-9a-f]{40}|[ -~]{0,8})", 1..40),
            page in 1_usize..10,
            known in 0_usize..5_000,
        ) {
            let keys: Vec<String> = keys.into_iter().collect();
            if known > 0 {
                counts(&of_all(known, 1000), &keys);
            }
            let (page, rest) = keys.split_at(page.min(keys.len()));
            let segments = of_rest(&objects(page));
            if !segments.is_empty() {
                // Segments that would end before they start are empty, and each key is still in exactly one.
                for key in rest {
                    let has = |segment: &&Segment| **key > *segment.after && !segment.is_past(key);
                    prop_assert_eq!(segments.iter().filter(has).count(), 1, "{}: {:?}", key, segments);
                }
            }
        }
    }
}
