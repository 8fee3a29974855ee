//! Updates that a watch reports while it runs, one per line.

use std::path::PathBuf;

use serde::Serialize;

use super::source::How;
use crate::error::Error;
use crate::model::amount::Amount;
use crate::plan::push::Skip;

/// An update of a running watch.
#[derive(Debug, Clone, Serialize)]
pub struct Update {
    /// The time (UTC, RFC 3339).
    pub time: String,
    /// What happened.
    #[serde(flatten)]
    pub kind: UpdateKind,
}

/// What happened.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum UpdateKind {
    /// The watch started.
    Started {
        /// The cache.
        #[serde(serialize_with = "crate::lossy::path")]
        cache: PathBuf,
        /// The bucket.
        bucket: String,
        /// How changes are detected.
        how: How,
        /// Quiet time before a push, in seconds.
        debounce: f64,
    },
    /// A push finished, possibly with failures.
    Pushed(PushSummary),
    /// A push failed entirely.
    Failed {
        /// The error.
        error: Error,
        /// Number of consecutive failed pushes.
        attempt: u32,
        /// Seconds until the retry.
        retry_in: f64,
        /// The error, unless the previous push failed in the same way.
        #[serde(skip)]
        news: Vec<Error>,
    },
    /// The watch was stopped.
    Stopped {
        /// Whether a running push was abandoned; the next push resumes from there.
        push_abandoned: bool,
    },
}

/// The summary of a finished push.
#[derive(Debug, Clone, Serialize)]
pub struct PushSummary {
    /// Blobs uploaded.
    pub uploaded: Amount,
    /// Blobs already in the bucket.
    pub present: Amount,
    /// Manifests written.
    pub manifests: usize,
    /// Refs written.
    pub refs: usize,
    /// Number of failures.
    pub failed: usize,
    /// Failures that the previous push did not have.
    pub failures: Vec<Error>,
    /// Items that were skipped, but not by the previous push.
    pub skipped: Vec<Skip>,
    /// Notes for the user that the previous push did not have.
    pub notes: Vec<String>,
    /// Duration in seconds.
    pub seconds: f64,
    /// Seconds until the retry, if a retry can help.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_in: Option<f64>,
}

impl Update {
    /// Creates an update with the current time.
    pub fn now(kind: UpdateKind) -> Self {
        let now = jiff::Timestamp::now();
        let time = now.round(jiff::Unit::Second).unwrap_or(now).to_string();
        Update { time, kind }
    }
}
