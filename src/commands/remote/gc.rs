//! `remote gc`: deletes from the bucket what no manifest needs any more.

use std::collections::BTreeSet;
use std::time::Instant;

use super::deletion::Deletion;
use crate::commands::prune::Age;
use crate::engine::Session;
use crate::engine::delete;
use crate::error::Result;
use crate::plan::deletion::Options;

const EXAMPLES: &str = "\
Examples:
  hf-cache-sync remote gc --dry-run      show what would be deleted
  hf-cache-sync remote gc --yes          for cron
  hf-cache-sync remote gc --grace 7d     keep everything younger than a week

Deletes blobs that no manifest names and refs that lead to no manifest, and
aborts uploads that were never finished; everything only once it is older than
the grace period by the store's clock. If a manifest cannot be read, or was
written by a newer version, nothing is deleted.

Pushes by this version may run at the same time. One by hf-cache-sync 0.1.0 may
not take longer than the grace period.

On a terminal, it shows what would be deleted and asks, unless --yes is given.
Without a terminal, it needs --yes.";

/// Delete from the bucket what no revision needs any more
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Keep what is younger than this by the store's clock
    #[arg(long, value_name = "AGE", default_value = "24h")]
    pub grace: Age,

    /// Show what would be deleted, but delete nothing
    #[arg(long)]
    pub dry_run: bool,

    /// Do not ask for confirmation
    #[arg(long, short)]
    pub yes: bool,
}

/// Reads the bucket and plans.
///
/// # Errors
/// If a request fails, or if something in the bucket is not understood: then nothing may be deleted.
pub async fn prepare(session: &Session, args: &Args) -> Result<Deletion> {
    let started = Instant::now();
    let options = Options { grace: args.grace.0, everything: true, ..Options::default() };
    let prepared = delete::prepare(session, options, |_| Ok(BTreeSet::new())).await?;
    Ok(Deletion::new(session, prepared, started))
}
