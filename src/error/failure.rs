use std::time::Duration;

use super::Cause;

/// A failed request to a store or to the Hub. It becomes an [`super::Error`] where it is known what the request was for.
#[derive(Debug, Clone)]
pub struct Failure {
    /// Why it failed.
    pub cause: Cause,
    /// The message of the server or the network.
    pub detail: String,
    /// How long the server says to wait before the next attempt.
    pub retry_after: Option<Duration>,
    /// A hint that is more specific than the one for the cause.
    pub hint: Option<String>,
    /// Whether this repeats the failure of an earlier request. The request itself was not sent.
    pub shared: bool,
}

impl Failure {
    /// Creates a failure without a response.
    pub fn new(cause: Cause, detail: impl Into<String>) -> Self {
        Failure { cause, detail: detail.into(), retry_after: None, hint: None, shared: false }
    }

    /// Adds a hint.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}
