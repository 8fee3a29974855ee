//! `verify`: proves that the cache, or the bucket, holds what its names say, and repairs it.
//!
//! [`crate::cache::integrity`] adds to the scan, [`crate::engine::verify`] hashes and repairs, and
//! [`crate::plan::verify`] judges (pure).

use std::path::PathBuf;
use std::time::Instant;

use serde::Serialize;

use super::fallback::FallbackArgs;
use super::{TransferArgs, kind_of};
use crate::cache::integrity;
use crate::cache::place;
use crate::cache::select::select;
use crate::cache::state::LocalState;
use crate::engine::Session;
use crate::engine::verify::{local, remote};
use crate::error::{Error, Kind, Result};
use crate::model::amount::Amount;
use crate::model::ids::RepoSpec;
use crate::model::selection::Selection;
use crate::plan::verify::local::{Row, Unverified};
use crate::plan::verify::{self as plan, Finding, Outcome};
use crate::progress::Event;
use crate::task::blocking;

const EXAMPLES: &str = "\
Examples:
  hf-cache-sync verify                   hash every blob, check links and refs
  hf-cache-sync verify org/name --repair fetch what is damaged from the bucket
  hf-cache-sync verify --repair --fallback hf-hub   else from the Hub
  hf-cache-sync verify --remote          check the bucket by one listing
  hf-cache-sync verify --remote --deep   read and hash all of it
  hf-cache-sync verify --remote --repair upload good copies from the cache";

/// Check that every file is what its name says, in the cache or in the bucket, and repair it
#[derive(Debug, Clone, Default, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Repos to check (org/name, dataset:org/name, org/name@revision, or the Hub's URL) [default: all]
    #[arg(value_name = "REPO_ID")]
    pub repos: Vec<RepoSpec>,

    /// Check the bucket instead of the cache: manifests, refs, and whether each blob is there with the right size
    #[arg(long)]
    pub remote: bool,

    /// With --remote: also read each blob and hash it
    #[arg(long, requires = "remote")]
    pub deep: bool,

    /// Repair what is damaged: fetch bad blobs again, and keep the bad ones in a quarantine. With --remote, upload good
    /// copies from the cache
    #[arg(long)]
    pub repair: bool,

    /// With --repair: check, and show what would be repaired, but change nothing
    #[arg(long, requires = "repair")]
    pub dry_run: bool,

    /// With --repair: do not flush repaired blobs to disk before they become visible
    #[arg(long, requires = "repair", conflicts_with = "remote")]
    pub no_sync: bool,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub fallback: FallbackArgs,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub transfer: TransferArgs,
}

/// The report of `verify`.
#[derive(Debug, Serialize)]
pub struct Report {
    /// What was checked.
    pub scope: Scope,
    /// Whether repairs were wanted.
    pub repair: bool,
    /// Whether nothing was written.
    pub dry_run: bool,
    /// Blobs and files that are what they should be.
    pub verified: Amount,
    /// Number of blobs and files that another program was working on.
    pub in_use: usize,
    /// Every revision that was checked.
    pub revisions: Vec<Row>,
    /// What is not as it should be.
    pub findings: Vec<Finding>,
    /// What nothing proves right or wrong.
    pub unverified: Vec<Unverified>,
    /// Blobs downloaded for repairs.
    pub downloaded: Amount,
    /// The part of `downloaded` that came from the Hub.
    pub from_hub: Amount,
    /// Blobs taken from elsewhere in this cache.
    pub shared: Amount,
    /// Blobs uploaded for repairs.
    pub uploaded: Amount,
    /// Files moved into the quarantine.
    pub quarantined: Amount,
    /// The folder of the quarantine; null for a bucket.
    #[serde(serialize_with = "optional_path")]
    pub quarantine: Option<PathBuf>,
    /// Notes for the user.
    pub notes: Vec<String>,
    /// What could not be checked, and repairs that failed.
    pub failures: Vec<Error>,
    /// Duration in seconds.
    pub seconds: f64,
}

/// What was checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scope {
    /// The cache.
    Cache,
    /// The bucket, by its listing.
    Bucket,
    /// The bucket, with every blob read.
    BucketDeep,
}

fn optional_path<S: serde::Serializer>(path: &Option<PathBuf>, to: S) -> Result<S::Ok, S::Error> {
    match path {
        Some(path) => crate::lossy::path(path, to),
        None => to.serialize_none(),
    }
}

impl Report {
    /// Returns the damage that is left.
    pub fn left(&self) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(|finding| finding.reason.is_damage() && finding.outcome != Outcome::Repaired)
    }

    /// Returns the kind of failure that determines the exit code.
    pub fn failed(&self) -> Option<Kind> {
        match self.left().next() {
            Some(_) => Some(Kind::Integrity),
            None => kind_of(&self.failures),
        }
    }

    fn new(scope: Scope, args: &Args) -> Report {
        Report {
            scope,
            repair: args.repair,
            dry_run: args.dry_run,
            verified: Amount::default(),
            in_use: 0,
            revisions: Vec::new(),
            findings: Vec::new(),
            unverified: Vec::new(),
            downloaded: Amount::default(),
            from_hub: Amount::default(),
            shared: Amount::default(),
            uploaded: Amount::default(),
            quarantined: Amount::default(),
            quarantine: None,
            notes: Vec::new(),
            failures: Vec::new(),
            seconds: 0.0,
        }
    }

    fn record(&mut self, tally: local::Tally) {
        self.downloaded = tally.downloaded;
        self.from_hub = tally.from_hub;
        self.shared = tally.shared;
        self.quarantined = tally.quarantined;
        self.notes.extend(tally.notes);
        self.failures.extend(tally.failures);
    }
}

/// Runs the command.
///
/// # Errors
/// When a repo is not there, the cache cannot be read at all, or the bucket cannot be listed; what is damaged is in the
/// report.
pub async fn execute(session: &Session, args: &Args) -> Result<Report> {
    let started = Instant::now();
    args.fallback.check()?;
    if args.fallback.fallback.is_some() && (args.remote || !args.repair) {
        return Err(Error::usage("--fallback is of no use here")
            .because("the Hub is only a source for repairs of the cache")
            .hint("use it with --repair and without --remote"));
    }
    if args.fallback.hub_wait.is_some() && args.fallback.fallback.is_none() {
        return Err(Error::usage("--hub-wait is of no use here")
            .because("only a repair from the Hub waits for its rate limit")
            .hint("use it with --repair --fallback hf-hub"));
    }
    let mut report = match args.remote {
        true => check_bucket(session, args).await?,
        false => check_cache(session, args).await?,
    };
    report.seconds = started.elapsed().as_secs_f64();
    Ok(report)
}

async fn check_cache(session: &Session, args: &Args) -> Result<Report> {
    session.need_cache()?;
    let layout = session.layout();
    if args.repair && !args.dry_run {
        place::check_writable(layout.root()).map_err(|error| {
            error.hint("a cache that cannot be written to can be checked, but not repaired: omit --repair")
        })?;
    }
    session.progress.event(Event::Step("scanning the cache"));
    let (root, repos) = (layout.root().to_path_buf(), args.repos.clone());
    let (mut facts, mut notes) = blocking(move || {
        let state = LocalState::scan(&root)?;
        let selected = select(state.inventory(), &Selection::of(repos))?;
        Ok::<_, Error>((integrity::gather(&state, &selected), selected.notes))
    })
    .await?;
    // A check alone does not depend on the network.
    let more_notes = match args.repair {
        true => local::look_up_real_files(session, &mut facts).await,
        false => Vec::new(),
    };
    let mut facts = local::hash(session, facts).await;
    notes.extend(more_notes);
    let judged = plan::local::judge(&facts, session.now);
    let mut report = Report::new(Scope::Cache, args);
    report.failures = std::mem::take(&mut facts.failures);
    (report.revisions, report.findings, report.unverified) = (judged.revisions, judged.findings, judged.unverified);
    (report.verified, report.in_use, report.notes) = (judged.verified, judged.in_use, notes);
    report.quarantine = Some(layout.quarantine());
    if args.repair && !report.findings.is_empty() {
        let options = local::Options {
            caps: args.transfer.caps(),
            sync: !args.no_sync,
            fallback: args.fallback.resolve(session, false),
            dry_run: args.dry_run,
        };
        let tally = local::repair(session, &facts, &mut report.findings, options).await?;
        report.record(tally);
    }
    Ok(report)
}

async fn check_bucket(session: &Session, args: &Args) -> Result<Report> {
    let bucket = session.bucket().await?;
    let caps = args.transfer.caps();
    let scope = if args.deep { Scope::BucketDeep } else { Scope::Bucket };
    let found = remote::check(session, &bucket, &args.repos, args.deep.then_some(caps)).await?;
    let judged = plan::remote::judge(&found.facts);
    let mut report = Report::new(scope, args);
    (report.revisions, report.findings, report.verified) = (judged.revisions, judged.findings, judged.verified);
    (report.notes, report.failures) = (found.notes, found.failures);
    if args.repair && !report.findings.is_empty() {
        let tally = remote::repair(session, &bucket, caps, &mut report.findings, args.dry_run).await?;
        report.uploaded = tally.uploaded;
        report.notes.extend(tally.notes);
        report.failures.extend(tally.failures);
    }
    Ok(report)
}
