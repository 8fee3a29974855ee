//! `list`: the repos in this cache ([`local`], without credentials or network) or in the bucket ([`remote`]).

pub mod local;
pub mod remote;

use serde::Serialize;

use crate::engine::Session;
use crate::error::{Kind, Result};

const EXAMPLES: &str = "\
Examples:
  hf-cache-sync list                     repos in the local cache
  hf-cache-sync list --revisions         one line per revision
  hf-cache-sync list --remote            repos in the bucket
  hf-cache-sync list --remote --sizes    with sizes; reads every manifest
  hf-cache-sync list --json              for jq and similar tools";

/// List repos in the cache or, with --remote, in the bucket
#[derive(Debug, Clone, Default, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// List the bucket's repos
    #[arg(long)]
    pub remote: bool,

    /// Show one line per revision
    #[arg(long)]
    pub revisions: bool,

    /// Read every manifest (one request each) to show sizes, and the types of repos pushed by 0.1.0
    #[arg(long, requires = "remote")]
    pub sizes: bool,
}

/// The report of `list`.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum Report {
    /// Repos in the cache.
    Local(local::Report),
    /// Repos in the bucket.
    Remote(remote::Report),
}

impl Report {
    /// Returns the kind of failure that determines the exit code.
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
/// When the cache or the bucket cannot be read at all.
pub async fn execute(session: &Session, args: &Args) -> Result<Report> {
    match args.remote {
        false => Ok(Report::Local(local::report(session, args).await?)),
        true => Ok(Report::Remote(remote::report(session, args).await?)),
    }
}
