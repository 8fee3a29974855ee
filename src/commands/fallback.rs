//! `--fallback hf-hub`, for the commands that have it.

use std::time::Duration;

use crate::engine::Session;
use crate::engine::fallback::Fallback;
use crate::error::{Error, Result};

/// Options of commands that can go to another source.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct FallbackArgs {
    /// Where to go when the bucket lacks a repo, a revision or a blob, has it corrupt, or does not answer; never when
    /// it refuses the credentials
    #[arg(long, value_name = "SOURCE")]
    pub fallback: Option<Other>,

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
pub enum Other {
    /// The Hugging Face Hub (HF_TOKEN, HF_ENDPOINT)
    HfHub,
}

impl FallbackArgs {
    /// Whether such a build can do that.
    ///
    /// # Errors
    /// [`crate::error::Cause::Usage`] when it was built without.
    pub fn check(&self) -> Result<()> {
        if self.fallback.is_some() && !cfg!(feature = "fallback") {
            return Err(Error::usage("--fallback hf-hub is not possible")
                .because("this hf-cache-sync was built without the feature `fallback`")
                .hint("use a build with it, or leave --fallback out"));
        }
        Ok(())
    }

    /// What the engine does with it. A dry run tells what the bucket has, and asks nobody else.
    pub fn resolve(&self, session: &Session, dry_run: bool) -> Fallback {
        match self.fallback.filter(|_| !dry_run) {
            Some(Other::HfHub) => Fallback::to_hub(session, Duration::from_secs(self.hub_wait)),
            None => Fallback::none(),
        }
    }
}
