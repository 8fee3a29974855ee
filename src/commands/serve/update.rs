//! The updates that a server reports while it runs.

use std::path::PathBuf;
use std::time::SystemTime;

use serde::Serialize;

use super::environment::Variable;

/// An update of a running server.
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
    /// The server is ready.
    Started {
        /// Its address.
        url: String,
        /// The cache.
        #[serde(serialize_with = "crate::lossy::path")]
        cache: PathBuf,
        /// The bucket; absent if it is offline.
        #[serde(skip_serializing_if = "Option::is_none")]
        bucket: Option<String>,
        /// The variables for clients.
        environment: Vec<Variable>,
        /// Whether clients need a token.
        #[serde(skip)]
        needs_token: bool,
        /// Whether it runs a command, which already has the variables.
        #[serde(skip)]
        has_command: bool,
    },
    /// The server has stopped.
    Stopped {
        /// Whether it ran a command, after which nothing is printed.
        #[serde(skip)]
        has_command: bool,
    },
}

impl Update {
    /// Creates an update with the current time.
    pub fn now(kind: UpdateKind) -> Update {
        Update { time: crate::when::format(SystemTime::now()).unwrap_or_default(), kind }
    }
}
