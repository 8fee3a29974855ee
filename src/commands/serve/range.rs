//! Parses the `Range` header. Pure.

use std::ops::Range;

/// The requested part of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Requested {
    /// All of it.
    Whole,
    /// These bytes.
    Part {
        /// The bytes.
        bytes: Range<u64>,
        /// Whether it is the rest of an interrupted download: `bytes=N-`.
        is_rest: bool,
    },
    /// An empty file: it has no range.
    Empty,
    /// Bytes after its end: HTTP status 416.
    Unsatisfiable,
}

/// Parses the header of a request for a file of `size` bytes. A malformed range is ignored, as RFC 9110 requires, and so are
/// multiple ranges, which no Hub client requests.
pub fn parse(header: Option<&str>, size: u64) -> Requested {
    let range = header.and_then(|text| text.trim().strip_prefix("bytes=")).and_then(|text| text.trim().split_once('-'));
    let Some((start, end)) = range else { return Requested::Whole };
    let (start, end) = (start.trim(), end.trim());
    let number = |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse::<u64>().unwrap_or(u64::MAX));
    match (number(start), number(end), start.is_empty(), end.is_empty()) {
        (Some(_), Some(_), true, true) | (None, ..) | (_, None, ..) => Requested::Whole,
        _ if size == 0 => Requested::Empty,
        // The last bytes.
        (_, Some(0), true, _) => Requested::Unsatisfiable,
        (_, Some(length), true, _) => Requested::Part { bytes: size.saturating_sub(length)..size, is_rest: false },
        (Some(start), _, _, _) if start >= size => Requested::Unsatisfiable,
        (Some(start), _, _, true) => Requested::Part { bytes: start..size, is_rest: start > 0 },
        (Some(start), Some(end), ..) if end < start => Requested::Whole,
        (Some(start), Some(end), ..) => {
            Requested::Part { bytes: start..end.saturating_add(1).min(size), is_rest: false }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_every_form_of_range() {
        let part = |start, end, is_rest| Requested::Part { bytes: start..end, is_rest };
        for (header, expected) in [
            ("bytes=0-0", part(0, 1, false)),
            ("bytes=0-100000", part(0, 100, false)),
            ("bytes=7-", part(7, 100, true)),
            ("bytes=0-", part(0, 100, false)),
            ("bytes=99-99", part(99, 100, false)),
            ("bytes=-10", part(90, 100, false)),
            ("bytes=-1000", part(0, 100, false)),
            ("bytes=100-", Requested::Unsatisfiable),
            ("bytes=100-200", Requested::Unsatisfiable),
            ("bytes=99999999999999999999999-", Requested::Unsatisfiable),
            ("bytes=-0", Requested::Unsatisfiable),
            ("bytes=5-4", Requested::Whole),
            ("bytes=-", Requested::Whole),
            ("bytes=a-b", Requested::Whole),
            ("bytes=+1-2", Requested::Whole),
            ("bytes=0-1,5-6", Requested::Whole),
            ("items=0-1", Requested::Whole),
            ("", Requested::Whole),
        ] {
            assert_eq!(parse(Some(header), 100), expected, "{header}");
        }
        assert_eq!(parse(None, 100), Requested::Whole);
        assert_eq!(parse(Some("bytes=0-"), 0), Requested::Empty);
        assert_eq!(parse(None, 0), Requested::Whole);
    }
}
