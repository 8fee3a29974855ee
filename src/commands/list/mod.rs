//! `list`: the repos of this cache ([`local`]: no credentials, no network), or those of the bucket ([`remote`]).

pub mod local;
pub mod remote;

use serde::Serialize;

use crate::engine::Session;
use crate::error::{Kind, Result};

const EXAMPLES: &str = "\
Examples:
  hf-cache-sync list                     repos in the local cache
  hf-cache-sync list --revisions         a line for each revision
  hf-cache-sync list --remote            repos in the bucket
  hf-cache-sync list --remote --sizes    with sizes; reads every manifest
  hf-cache-sync list --json              for jq and the like";

/// List repos in the cache, or with --remote in the bucket
#[derive(Debug, Clone, Default, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// List the bucket's repos
    #[arg(long)]
    pub remote: bool,

    /// A line for each revision
    #[arg(long)]
    pub revisions: bool,

    /// Read every manifest: tells sizes, and the types of repos that 0.1.0 has pushed (one request each)
    #[arg(long, requires = "remote")]
    pub sizes: bool,
}

/// What was found.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum Report {
    /// In the cache.
    Local(local::Report),
    /// In the bucket.
    Remote(remote::Report),
}

impl Report {
    /// Decides the exit code.
    pub fn failed(&self) -> Option<Kind> {
        match self {
            Report::Local(_) => None,
            Report::Remote(report) => super::kind_of(&report.failures),
        }
    }
}

/// Runs the command.
///
/// # Errors
/// When the cache, or the bucket, cannot be read at all.
pub async fn execute(session: &Session, args: &Args) -> Result<Report> {
    match args.remote {
        false => Ok(Report::Local(local::report(session, args).await?)),
        true => Ok(Report::Remote(remote::report(session, args).await?)),
    }
}
