//! The Hub as a fallback for revisions and blobs that the bucket fails to provide.

use std::sync::{Arc, Once, OnceLock};
use std::time::Duration;

use super::Session;
use crate::error::{Error, Result};
use crate::hub::Hub;
use crate::model::found::Found;
use crate::model::ids::RepoQuery;
use crate::progress::Event;

/// Another source for a run, or none. The Hub is connected when it is first needed.
#[derive(Clone)]
pub struct Fallback(Option<Arc<Inner>>);

struct Inner {
    session: Session,
    /// Maximum time to wait for the Hub's rate limit.
    wait: Duration,
    hub: OnceLock<Result<Hub>>,
    announced: Once,
}

impl Fallback {
    /// Uses the bucket alone.
    pub fn none() -> Fallback {
        Fallback(None)
    }

    /// Falls back to the Hub. `wait` is the maximum time that a run waits for the Hub's rate limit.
    pub fn to_hub(session: &Session, wait: Duration) -> Fallback {
        let inner = Inner { session: session.clone(), wait, hub: OnceLock::new(), announced: Once::new() };
        Fallback(Some(Arc::new(inner)))
    }

    /// Returns whether there is a fallback.
    pub fn is_some(&self) -> bool {
        self.0.is_some()
    }

    /// Returns whether the Hub may help after this failure.
    pub fn covers(&self, failure: &Error) -> bool {
        self.0.is_some() && failure.cause.is_covered_by_fallback()
    }

    /// Connects to the Hub, if there is a fallback. An error says why it cannot be used.
    pub fn hub(&self) -> Option<Result<Hub>> {
        let inner = self.0.as_ref()?;
        let session = &inner.session;
        let connect =
            || Hub::connect(&session.config.hub, &session.config.network, session.progress.clone(), inner.wait);
        Some(inner.hub.get_or_init(connect).clone())
    }

    /// Returns why the Hub could not be used, if it was needed.
    pub fn failure(&self) -> Option<Error> {
        self.0.as_ref()?.hub.get()?.as_ref().err().cloned()
    }

    /// Finds a revision on the Hub after this failure of the bucket, and adds a note about it.
    ///
    /// # Errors
    /// The bucket's failure, or both failures.
    pub async fn find(&self, query: &RepoQuery, revision: Option<&str>, failure: Error) -> Result<Found> {
        let Some(inner) = self.0.as_ref().filter(|_| self.covers(&failure)) else { return Err(failure) };
        inner.session.progress.event(Event::Step("asking the Hub"));
        let Some(hub) = self.hub() else { return Err(failure) };
        let mut found = hub?.find(query, revision).await.map_err(|second| both(&failure, second))?;
        found.notes.push(note_on(&failure));
        Ok(found)
    }

    /// Announces, once per run, that blobs come from the Hub.
    pub fn announce(&self) {
        if let Some(inner) = &self.0 {
            let step = Event::Step("asking the Hub for what the bucket does not give");
            inner.announced.call_once(|| inner.session.progress.event(step));
        }
    }
}

/// Combines the failures of the bucket and of the Hub.
pub fn both(bucket: &Error, hub: Error) -> Error {
    let before = format!("before that: {}", one_line(bucket));
    let hint = match &hub.hint {
        Some(hint) => format!("{hint}\n  {before}"),
        None => before,
    };
    hub.hint(hint)
}

/// Returns the note on a failure of the bucket after which the Hub helped.
pub fn note_on(failure: &Error) -> String {
    format!("{}; taken from the Hub", one_line(failure))
}

/// Formats an error without its hint.
fn one_line(error: &Error) -> String {
    match &error.why {
        Some(why) => format!("{}: {why}", error.what),
        None => error.what.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_failures_take_three_lines() {
        let bucket = Error::not_found("org/x is not in bucket 'b'").hint("push first");
        let hub = Error::new(crate::error::Cause::Unreachable, "cannot find org/x on the Hub")
            .because("no answer")
            .hint("wait");
        let text = "cannot find org/x on the Hub: no answer\n  wait\n  before that: org/x is not in bucket 'b'";
        assert_eq!(both(&bucket, hub).to_string(), text);
    }
}
