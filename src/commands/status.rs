//! `status`: the cache at a glance. Purely local: needs neither credentials nor network.

use std::path::PathBuf;
use std::time::SystemTime;

use serde::Serialize;

use crate::cache::inventory::Problem;
use crate::cache::{leftovers, scan, space, usage};
use crate::engine::Session;
use crate::error::Result;
use crate::model::amount::Amount;
use crate::progress::Event;
use crate::task::blocking;
use crate::when;

const EXAMPLES: &str = "\
Examples:
  hf-cache-sync status                   sizes, budget and bucket at a glance
  hf-cache-sync status --json            for scripts, with all problems
  hf-cache-sync --cache-dir /data/hub status";

/// Show the cache at a glance: size, budget, bucket, problems
#[derive(Debug, Clone, Default, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {}

/// The report of `status`.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The `hub` folder.
    #[serde(serialize_with = "crate::lossy::path")]
    pub cache_dir: PathBuf,
    /// Number of repos.
    pub repos: usize,
    /// Number of revisions of all repos.
    pub revisions: usize,
    /// Bytes on disk, each file counted once.
    pub size: u64,
    /// Budget of `prune`, in bytes.
    pub budget: u64,
    /// Free bytes of the file system, if known.
    pub free: Option<u64>,
    /// Time of last use of anything in the cache.
    #[serde(serialize_with = "when::serialize")]
    pub last_used: Option<SystemTime>,
    /// Unfinished downloads, in flight or interrupted; not included in `size`.
    pub in_flight: Amount,
    /// The configured bucket.
    pub bucket: Option<String>,
    /// Its endpoint, or none for AWS S3.
    pub endpoint: Option<String>,
    /// Prefix of all keys; empty if there is none.
    pub prefix: String,
    /// Problems in the cache.
    pub problems: Vec<Problem>,
    /// The time of the report.
    #[serde(skip)]
    pub now: SystemTime,
}

/// Scans the cache.
///
/// # Errors
/// When the cache cannot be read at all.
pub async fn execute(session: &Session, _: &Args) -> Result<Report> {
    session.need_cache()?;
    session.progress.event(Event::Step("scanning the cache"));
    let root = session.config.cache.root.clone();
    let inventory = blocking(move || scan::scan(&root)).await?;
    let repos = &inventory.repos;
    let mut in_flight = Amount::default();
    repos.iter().flat_map(|repo| &repo.in_flight).for_each(|temporary| in_flight.add(temporary.size));
    leftovers::partial_downloads(&inventory.layout).into_iter().for_each(|bytes| in_flight.add(bytes));
    let config = &session.config;
    Ok(Report {
        cache_dir: config.cache.root.clone(),
        repos: repos.len(),
        revisions: repos.iter().map(|repo| repo.revisions.len()).sum(),
        size: usage::unique_bytes(repos),
        budget: config.cache.max_local_bytes,
        free: space::available(&config.cache.root),
        last_used: repos.iter().filter_map(usage::last_use_of_repo).max(),
        in_flight,
        bucket: config.storage.bucket.clone(),
        endpoint: config.storage.endpoint.clone(),
        prefix: config.team.prefix.clone(),
        problems: inventory.problems().cloned().collect(),
        now: session.now,
    })
}
