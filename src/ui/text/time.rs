//! Times in output and logs.

use std::io::IsTerminal;
use std::time::{Duration, SystemTime};

use super::plural;
use crate::when;

const UNITS: [(u64, &str); 6] = [
    (365 * 86_400, "year"),
    (30 * 86_400, "month"),
    (7 * 86_400, "week"),
    (86_400, "day"),
    (3600, "hour"),
    (60, "minute"),
];

/// Formats a time relative to `now`, as in "3 days ago". An unknown time is "-".
pub fn ago(then: Option<SystemTime>, now: SystemTime) -> String {
    let Some(then) = then else { return "-".into() };
    match now.duration_since(then) {
        Ok(age) if age < Duration::from_secs(60) => "just now".into(),
        Ok(age) => format!("{} ago", rough_age(age)),
        // The clocks of this machine, a file server and a store differ slightly.
        Err(ahead) if ahead.duration() < Duration::from_secs(600) => "just now".into(),
        Err(ahead) => format!("in {}", rough_age(ahead.duration())),
    }
}

/// Returns the current time for a log: "2026-09-21T14:13:20Z".
pub fn stamp() -> String {
    when::format(SystemTime::now()).unwrap_or_default()
}

/// An output stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// stdout
    Out,
    /// stderr
    Err,
}

/// Adds the time to the summary of a run, unless it goes to a terminal: "2026-09-21T14:13:20Z  Uploaded 2 blobs".
pub fn stamped(line: &str, to: Stream) -> String {
    let is_terminal = match to {
        Stream::Out => std::io::stdout().is_terminal(),
        Stream::Err => std::io::stderr().is_terminal(),
    };
    if is_terminal { line.to_string() } else { format!("{}  {line}", stamp()) }
}

/// Formats an age in the largest unit that fits; weeks only from two weeks on.
fn rough_age(age: Duration) -> String {
    let seconds = age.as_secs();
    let fits = |(length, word): &&(u64, &str)| seconds >= if *word == "week" { 2 * length } else { *length };
    match UNITS.iter().find(fits) {
        Some((length, word)) => plural(seconds / length, word),
        None => plural(seconds, "second"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_use_the_largest_unit_that_fits() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(2_000_000_000);
        let day = 86_400;
        for (seconds, text) in [
            (0, "just now"),
            (59, "just now"),
            (60, "1 minute ago"),
            (3599, "59 minutes ago"),
            (3600, "1 hour ago"),
            (day - 1, "23 hours ago"),
            (day, "1 day ago"),
            (3 * day, "3 days ago"),
            (13 * day, "13 days ago"),
            (14 * day, "2 weeks ago"),
            (29 * day, "4 weeks ago"),
            (30 * day, "1 month ago"),
            (364 * day, "12 months ago"),
            (800 * day, "2 years ago"),
        ] {
            assert_eq!(ago(Some(now - Duration::from_secs(seconds)), now), text);
        }
        assert_eq!(ago(Some(now + Duration::from_secs(300)), now), "just now");
        assert_eq!(ago(Some(now + Duration::from_secs(2 * day)), now), "in 2 days");
        assert_eq!(ago(None, now), "-");
    }
}
