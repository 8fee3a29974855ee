//! The header `Range`. Pure.

use std::ops::Range;

/// What a request wants of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// All of it.
    Whole,
    /// These bytes.
    Part {
        /// The bytes.
        bytes: Range<u64>,
        /// Whether it is what remains of an interrupted download: `bytes=N-`.
        is_rest: bool,
    },
    /// An empty file: it has no range.
    Empty,
    /// Bytes after its end: HTTP status 416.
    Unsatisfiable,
}

/// Understands the header of a request for a file of `size` bytes. What is malformed is ignored, as RFC 9110 says, and so are
/// several ranges at once, which no client of the Hub requests.
pub fn parse(header: Option<&str>, size: u64) -> Wanted {
    let range = header.and_then(|text| text.trim().strip_prefix("bytes=")).and_then(|text| text.trim().split_once('-'));
    let Some((start, end)) = range else { return Wanted::Whole };
    let (start, end) = (start.trim(), end.trim());
    let number = |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse::<u64>().unwrap_or(u64::MAX));
    match (number(start), number(end), start.is_empty(), end.is_empty()) {
        (Some(_), Some(_), true, true) | (None, ..) | (_, None, ..) => Wanted::Whole,
        _ if size == 0 => Wanted::Empty,
        // The last bytes.
        (_, Some(0), true, _) => Wanted::Unsatisfiable,
        (_, Some(length), true, _) => Wanted::Part { bytes: size.saturating_sub(length)..size, is_rest: false },
        (Some(start), _, _, _) if start >= size => Wanted::Unsatisfiable,
        (Some(start), _, _, true) => Wanted::Part { bytes: start..size, is_rest: start > 0 },
        (Some(start), Some(end), ..) if end < start => Wanted::Whole,
        (Some(start), Some(end), ..) => Wanted::Part { bytes: start..end.saturating_add(1).min(size), is_rest: false },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_a_range() {
        let part = |start, end, is_rest| Wanted::Part { bytes: start..end, is_rest };
        for (header, wanted) in [
            ("bytes=0-0", part(0, 1, false)),
            ("bytes=0-100000", part(0, 100, false)),
            ("bytes=7-", part(7, 100, true)),
            ("bytes=0-", part(0, 100, false)),
            ("bytes=99-99", part(99, 100, false)),
            ("bytes=-10", part(90, 100, false)),
            ("bytes=-1000", part(0, 100, false)),
            ("bytes=100-", Wanted::Unsatisfiable),
            ("bytes=100-200", Wanted::Unsatisfiable),
            ("bytes=99999999999999999999999-", Wanted::Unsatisfiable),
            ("bytes=-0", Wanted::Unsatisfiable),
            ("bytes=5-4", Wanted::Whole),
            ("bytes=-", Wanted::Whole),
            ("bytes=a-b", Wanted::Whole),
            ("bytes=+1-2", Wanted::Whole),
            ("bytes=0-1,5-6", Wanted::Whole),
            ("items=0-1", Wanted::Whole),
            ("", Wanted::Whole),
        ] {
            assert_eq!(parse(Some(header), 100), wanted, "{header}");
        }
        assert_eq!(parse(None, 100), Wanted::Whole);
        assert_eq!(parse(Some("bytes=0-"), 0), Wanted::Empty);
        assert_eq!(parse(None, 0), Wanted::Whole);
    }
}
