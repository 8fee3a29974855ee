//! Times: how long ago they were, and how reports show them (RFC 3339 in UTC, to the second).

use std::time::{Duration, SystemTime};

use serde::Serializer;

/// Returns how long ago a time was; `None` if it is unknown or in the future.
pub fn age(time: Option<SystemTime>, now: SystemTime) -> Option<Duration> {
    now.duration_since(time?).ok()
}

/// Whether a time was certainly at least `grace` ago. An unknown time, or one in the future, was not.
pub fn is_past(time: Option<SystemTime>, grace: Duration, now: SystemTime) -> bool {
    age(time, now).is_some_and(|age| age >= grace)
}

/// Serializes a time; an unknown one becomes null.
pub fn serialize<S: Serializer>(time: &Option<SystemTime>, serializer: S) -> Result<S::Ok, S::Error> {
    match time.and_then(format) {
        Some(text) => serializer.serialize_some(&text),
        None => serializer.serialize_none(),
    }
}

/// Serializes seconds since 1970.
pub fn serialize_seconds<S: Serializer>(seconds: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    serialize(&from_unix_seconds(*seconds), serializer)
}

/// Returns the time this many seconds after 1970, or `None` if the system cannot represent it.
pub fn from_unix_seconds(seconds: u64) -> Option<SystemTime> {
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}

/// Formats a time as RFC 3339 in UTC; returns `None` outside the range of years that can be represented.
pub fn format(time: SystemTime) -> Option<String> {
    let seconds = match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(after) => i64::try_from(after.as_secs()).ok()?,
        Err(before) => -i64::try_from(before.duration().as_secs()).ok()?,
    };
    Some(jiff::Timestamp::from_second(seconds).ok()?.to_string())
}

/// Returns the current time to the millisecond, for logs.
pub fn now_in_millis() -> String {
    format!("{:.3}", jiff::Timestamp::now())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn times_are_rfc_3339_in_utc() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::new(seconds, 5);
        assert_eq!(format(at(1_790_000_000)).unwrap(), "2026-09-21T14:13:20Z");
        assert_eq!(format(SystemTime::UNIX_EPOCH - Duration::from_secs(1)).unwrap(), "1969-12-31T23:59:59Z");
    }
}
