//! What a watch tells while it runs: one update at a time, each a line of its own.

use std::path::PathBuf;

use serde::Serialize;

use super::source::How;
use crate::error::Error;
use crate::model::amount::Amount;
use crate::plan::push::Skip;

/// Something that a watch tells, with its time (UTC, RFC 3339).
#[derive(Debug, Clone, Serialize)]
pub struct Update {
    /// When.
    pub time: String,
    /// What.
    #[serde(flatten)]
    pub what: What,
}

/// What happened.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum What {
    /// The watch began.
    Started {
        /// The cache.
        #[serde(serialize_with = "crate::lossy::path")]
        cache: PathBuf,
        /// The bucket.
        bucket: String,
        /// How changes are noticed.
        how: How,
        /// Quiet time before a push, in seconds.
        debounce: f64,
    },
    /// A push ended; some of it may have failed.
    Pushed(Pushed),
    /// A push could not be carried out at all.
    Failed {
        /// Why.
        error: Error,
        /// Failed pushes in a row.
        attempt: u32,
        /// Seconds until the next try.
        retry_in: f64,
        /// The error, unless the push before ended by it too.
        #[serde(skip)]
        news: Vec<Error>,
    },
    /// The watch was told to end.
    Stopped {
        /// Whether a push was given up for it; the next push goes on from there.
        push_abandoned: bool,
    },
}

/// A push that ended.
#[derive(Debug, Clone, Serialize)]
pub struct Pushed {
    /// Uploaded.
    pub uploaded: Amount,
    /// In the bucket already.
    pub present: Amount,
    /// Manifests written.
    pub manifests: usize,
    /// Refs written.
    pub refs: usize,
    /// How many failures there were.
    pub failed: usize,
    /// Those that the push before did not have.
    pub failures: Vec<Error>,
    /// What was left out, and was not by the push before.
    pub skipped: Vec<Skip>,
    /// What a user should know, and was not told after the push before.
    pub notes: Vec<String>,
    /// Duration in seconds.
    pub seconds: f64,
    /// Seconds until the next try, when another try can help.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_in: Option<f64>,
}

impl Update {
    /// An update of now.
    pub fn now(what: What) -> Self {
        let now = jiff::Timestamp::now();
        let time = now.round(jiff::Unit::Second).unwrap_or(now).to_string();
        Update { time, what }
    }
}
