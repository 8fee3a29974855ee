//! The option `--fallback hf-hub`, shared by several commands.

use std::time::Duration;

use crate::engine::Session;
use crate::engine::fallback::Fallback;
use crate::error::{Error, Result};

/// How many seconds a run waits for the Hub's rate limit by default.
const HUB_WAIT: u64 = 300;

/// Options of commands that can fall back to another source.
#[derive(Debug, Clone, Copy, Default, clap::Args)]
pub struct FallbackArgs {
    /// Where to download from if the bucket lacks a repo, revision or blob, has a corrupt copy, or does not answer; never
    /// used if the bucket rejects the credentials
    #[arg(long, value_name = "SOURCE")]
    pub fallback: Option<FallbackSource>,

    /// Maximum time to wait when the Hub's rate limit is reached (HTTP status 429) [default: 300]
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true, value_parser = seconds)]
    pub hub_wait: Option<u64>,
}

fn seconds(text: &str) -> Result<u64, String> {
    let text = text.trim();
    text.parse().map_err(|_| "expected a number of seconds, 0 or more".to_string())
}

/// A fallback source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum FallbackSource {
    /// The Hugging Face Hub (HF_TOKEN, HF_ENDPOINT)
    HfHub,
}

impl FallbackArgs {
    /// Checks that this build supports the fallback.
    ///
    /// # Errors
    /// [`crate::error::Cause::Usage`] when it was built without the feature.
    pub fn check(&self) -> Result<()> {
        if self.fallback.is_some() && !cfg!(feature = "fallback") {
            return Err(Error::usage("--fallback hf-hub is not available")
                .because("this hf-cache-sync was built without the feature `fallback`")
                .hint("use a build with this feature, or omit --fallback"));
        }
        Ok(())
    }

    /// Returns the engine's fallback. A dry run has none: it shows what the bucket has.
    pub fn resolve(&self, session: &Session, dry_run: bool) -> Fallback {
        match self.fallback.filter(|_| !dry_run) {
            Some(FallbackSource::HfHub) => {
                Fallback::to_hub(session, Duration::from_secs(self.hub_wait.unwrap_or(HUB_WAIT)))
            }
            None => Fallback::none(),
        }
    }
}
