//! Sizes and rates on the command line, in a common notation.

use std::num::NonZeroU64;
use std::str::FromStr;

use crate::transfer::limit::requests_within;

/// A size with a unit, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size(pub u64);

impl FromStr for Size {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        // A bare 50 surely means gigabytes; read as bytes, it would cost the whole cache.
        let lacks_unit = text.trim().parse::<u64>().is_ok_and(|number| (1..1000).contains(&number));
        let size = bytes(text).filter(|_| !lacks_unit).map(Size);
        size.ok_or_else(|| "expected a size with a unit, such as 50GB or 200GiB, or 0".to_string())
    }
}

fn bytes(text: &str) -> Option<u64> {
    let bytes = text.trim().parse::<bytesize::ByteSize>().map(|size| size.as_u64()).ok();
    bytes.filter(|bytes| *bytes < 1 << 60)
}

/// A memory limit, expressed as the number of requests in flight that fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory(pub usize);

impl FromStr for Memory {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let requests = bytes(text).and_then(requests_within);
        requests.map(Memory).ok_or_else(|| "expected a size such as 64MiB (at least 32MiB)".to_string())
    }
}

/// Bytes per second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ByteRate(pub NonZeroU64);

/// Minimum rate. Below it, stores drop connections and files take forever.
const MIN_RATE: u64 = 1000;
/// Maximum rate. No network is faster, so a higher one is a typo.
const MAX_RATE: u64 = 1_000_000_000_000;

impl FromStr for ByteRate {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let size = text.strip_suffix("/s").or_else(|| text.strip_suffix("/S")).unwrap_or(text);
        let bytes = bytes(size).filter(|bytes| (MIN_RATE..=MAX_RATE).contains(bytes)).and_then(NonZeroU64::new);
        bytes.map(ByteRate).ok_or_else(|| "expected a rate such as 50MB/s or 6MiB/s, from 1kB/s to 1TB/s".to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_sizes_per_second() {
        let parse = |text: &str| text.parse::<ByteRate>().map(|rate| rate.0.get());
        for text in ["50MB/s", "50M", "50 MB/s", " 50mb/s ", "50000000", "50000kB/S"] {
            assert_eq!(parse(text), Ok(50_000_000), "{text}");
        }
        assert_eq!(parse("6MiB/s"), Ok(6 << 20));
        assert_eq!(parse("1.5KiB"), Ok(1536));
        for text in ["", "0", "0MB/s", "-1M", "fast", "10B/s", "50", "2TB/s", "1e30", "50MB/h", "50/s/s", "/s", "NaN"] {
            assert!(parse(text).unwrap_err().starts_with("expected a rate"), "{text}");
        }
    }

    #[test]
    fn memory_has_a_minimum() {
        assert_eq!("32MiB".parse(), Ok(Memory(1)));
        assert_eq!("96 MiB".parse(), Ok(Memory(65)));
        for text in ["", "0", "-64MiB", "32MB", "31.9MiB", "64", "lots", "1e30"] {
            assert!(text.parse::<Memory>().unwrap_err().ends_with("(at least 32MiB)"), "{text}");
        }
    }

    #[test]
    fn sizes_need_units() {
        assert_eq!("50GB".parse(), Ok(Size(50_000_000_000)));
        assert_eq!("200 GiB".parse(), Ok(Size(200 << 30)));
        assert_eq!("0".parse(), Ok(Size(0)));
        for text in ["-1", "much", "50", "999", " 200 ", ""] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }
}
