//! When the Hub is asked for what the bucket does not give.

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
    /// How long it may wait for the Hub's limit of requests.
    wait: Duration,
    hub: OnceLock<Result<Hub>>,
    told: Once,
}

impl Fallback {
    /// The bucket alone.
    pub fn none() -> Fallback {
        Fallback(None)
    }

    /// The Hub. `wait` is how long a run may wait, at most, for its limit of requests.
    pub fn to_hub(session: &Session, wait: Duration) -> Fallback {
        let inner = Inner { session: session.clone(), wait, hub: OnceLock::new(), told: Once::new() };
        Fallback(Some(Arc::new(inner)))
    }

    /// Whether there is another source.
    pub fn is_some(&self) -> bool {
        self.0.is_some()
    }

    /// Whether the Hub is to be asked after this failure.
    pub fn covers(&self, failure: &Error) -> bool {
        self.0.is_some() && failure.cause.is_covered_by_fallback()
    }

    /// The Hub, where there is one; why not, when it cannot be used.
    pub fn hub(&self) -> Option<Result<Hub>> {
        let inner = self.0.as_ref()?;
        let session = &inner.session;
        let connect =
            || Hub::connect(&session.config.hub, &session.config.network, session.progress.clone(), inner.wait);
        Some(inner.hub.get_or_init(connect).clone())
    }

    /// Why the Hub could not be used, if it was needed.
    pub fn failure(&self) -> Option<Error> {
        self.0.as_ref()?.hub.get()?.as_ref().err().cloned()
    }

    /// The revision on the Hub, after the bucket failed to give it for this reason. A note says so.
    ///
    /// # Errors
    /// The bucket's failure, or both.
    pub async fn find(&self, query: &RepoQuery, revision: Option<&str>, failure: Error) -> Result<Found> {
        let Some(inner) = self.0.as_ref().filter(|_| self.covers(&failure)) else { return Err(failure) };
        inner.session.progress.event(Event::Step("asking the Hub"));
        let Some(hub) = self.hub() else { return Err(failure) };
        let mut found = hub?.find(query, revision).await.map_err(|second| both(&failure, second))?;
        found.notes.push(taken(&failure));
        Ok(found)
    }

    /// Says, once, that blobs come from the Hub now.
    pub fn tell(&self) {
        if let Some(inner) = &self.0 {
            let step = Event::Step("asking the Hub for what the bucket does not give");
            inner.told.call_once(|| inner.session.progress.event(step));
        }
    }
}

/// The error when the Hub failed too.
pub fn both(bucket: &Error, hub: Error) -> Error {
    let before = format!("before that: {}", one_line(bucket));
    let hint = match &hub.hint {
        Some(hint) => format!("{hint}\n  {before}"),
        None => before,
    };
    hub.hint(hint)
}

/// The note on a failure of the bucket that the Hub has made up for.
pub fn taken(failure: &Error) -> String {
    format!("{}; taken from the Hub", one_line(failure))
}

/// What failed and why, without the next step.
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
    fn both_failures_are_told_in_three_lines() {
        let bucket = Error::not_found("org/x is not in bucket 'b'").hint("push first");
        let hub = Error::new(crate::error::Cause::Unreachable, "cannot find org/x on the Hub")
            .because("no answer")
            .hint("wait");
        let text = "cannot find org/x on the Hub: no answer\n  wait\n  before that: org/x is not in bucket 'b'";
        assert_eq!(both(&bucket, hub).to_string(), text);
    }
}
