//! `--fallback hf-hub`: when the Hub is asked for what the bucket does not give.

use std::time::Duration;

use crate::engine::Session;
use crate::error::{Error, Kind, Result};
use crate::hub::Hub;

/// Options of commands that can go to another source.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct FallbackArgs {
    /// Where to go when the bucket lacks a repo, a revision or a blob, has it corrupt, or does not answer; never when
    /// it refuses the credentials
    #[arg(long, value_name = "SOURCE")]
    pub fallback: Option<Fallback>,

    /// How long to wait, at most, when the Hub's limit of requests is reached (HTTP status 429)
    #[arg(long, value_name = "SECONDS", default_value_t = 300, allow_negative_numbers = true, value_parser = seconds)]
    pub hub_wait: u64,
}

fn seconds(text: &str) -> Result<u64, String> {
    let text = text.trim();
    text.parse().map_err(|_| "expected a number of seconds, 0 or more".to_string())
}

impl Default for FallbackArgs {
    fn default() -> Self {
        FallbackArgs { fallback: None, hub_wait: 300 }
    }
}

/// Another source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Fallback {
    /// The Hugging Face Hub (HF_TOKEN, HF_ENDPOINT)
    HfHub,
}

impl FallbackArgs {
    /// Whether such a build can do that.
    ///
    /// # Errors
    /// [`Kind::Usage`] when it was built without.
    pub fn check(&self) -> Result<()> {
        if self.fallback.is_some() && !cfg!(feature = "fallback") {
            return Err(Error::usage("--fallback hf-hub is not possible")
                .because("this hf-cache-sync was built without the feature `fallback`")
                .hint("use a build with it, or leave --fallback out"));
        }
        Ok(())
    }

    /// A dry run tells what the bucket has, and asks nobody else.
    pub fn unless(self, dry_run: bool) -> FallbackArgs {
        FallbackArgs { fallback: self.fallback.filter(|_| !dry_run), ..self }
    }

    /// Prepares the requests to the Hub.
    ///
    /// # Errors
    /// As [`Hub::connect`].
    pub fn connect(&self, session: &Session) -> Result<Hub> {
        let wait = Duration::from_secs(self.hub_wait);
        Hub::connect(&session.config.hub, &session.config.network, session.progress.clone(), wait)
    }

    /// Whether the Hub is to be asked after this failure.
    pub fn covers(&self, failure: &Error) -> bool {
        let Some(Fallback::HfHub) = self.fallback else { return false };
        match failure.kind {
            Kind::NotFound | Kind::Integrity | Kind::Unavailable => true,
            // A wrong set-up is to be mended, not papered over; and the Hub does not help a full disk.
            Kind::Credentials
            | Kind::Permission
            | Kind::MissingBucket
            | Kind::Usage
            | Kind::Failed
            | Kind::Internal
            | Kind::Interrupted => false,
        }
    }

    /// Whether the Hub is to be asked after these failures.
    pub fn covers_all(&self, failures: &[Error]) -> bool {
        !failures.is_empty() && failures.iter().all(|failure| self.covers(failure))
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
    fn only_what_is_missing_corrupt_or_out_of_reach_is_covered() {
        use Kind::*;
        let all = [Failed, Usage, Credentials, NotFound, MissingBucket, Integrity, Unavailable, Interrupted];
        let with = FallbackArgs { fallback: Some(Fallback::HfHub), ..FallbackArgs::default() };
        let covered: Vec<Kind> = all.into_iter().filter(|kind| with.covers(&Error::new(*kind, "x"))).collect();
        assert_eq!(covered, [NotFound, Integrity, Unavailable]);
        assert!(all.into_iter().all(|kind| !FallbackArgs::default().covers(&Error::new(kind, "x"))));
        assert!(!with.covers_all(&[]));
        assert!(!with.covers_all(&[Error::not_found("x"), Error::new(Credentials, "y")]));
    }

    #[test]
    fn both_failures_are_told_in_three_lines() {
        let bucket = Error::not_found("org/x is not in bucket 'b'").hint("push first");
        let hub = Error::new(Kind::Unavailable, "cannot find org/x on the Hub").because("no answer").hint("wait");
        let text = "cannot find org/x on the Hub: no answer\n  wait\n  before that: org/x is not in bucket 'b'";
        assert_eq!(both(&bucket, hub).to_string(), text);
    }
}
