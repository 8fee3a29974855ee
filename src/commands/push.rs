//! `push`: uploads what the bucket lacks.
//!
//! [`crate::engine::survey`] compares cache and bucket, [`crate::plan::push`] makes the plan (pure), and
//! [`crate::engine::publish`] executes it in the order that is safe for concurrent readers: blobs, then manifests, then
//! refs.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;
use std::time::Instant;

use serde::Serialize;

use super::{PathArgs, TransferArgs, kind_of};
use crate::bucket::client::Bucket;
use crate::cache::inventory::Problem;
use crate::cache::pushable::Options;
use crate::engine::Session;
use crate::engine::publish::{self, ListingSizes, Tally};
use crate::engine::survey::{Survey, survey};
use crate::error::{Error, Kind, Result, printable};
use crate::files::is_missing;
use crate::model::amount::Amount;
use crate::model::ids::BlobId;
use crate::model::ids::{Commit, RepoName, RepoSpec};
use crate::model::selection::Selection;
use crate::plan::push::{self as plan, ManifestAction, Plan, Skip, SkipReason};

const EXAMPLES: &str = "\
Examples:
  hf-cache-sync push --dry-run           show what would be uploaded
  hf-cache-sync push                     upload everything the bucket lacks
  hf-cache-sync push org/name dataset:org/name
  hf-cache-sync push org/name -r v1.0    one revision, with its refs
  hf-cache-sync push --exclude '*.bin' --exclude 'onnx/'   only other files
  hf-cache-sync push --workers 4 -q      few requests; silent unless it fails
  hf-cache-sync push --bwlimit 20MB/s    leave bandwidth to others";

/// Upload what the bucket lacks: blobs, then manifests, then refs
#[derive(Debug, Clone, Default, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Repos to push (org/name, dataset:org/name, org/name@revision, or the Hub's URL) [default: all]. Without a type,
    /// the model; if there is none, the other types with that id
    #[arg(value_name = "REPO_ID")]
    pub repos: Vec<RepoSpec>,

    /// Only this revision of the repo: a ref, a commit or the beginning of one. With several repos, write
    /// org/name@revision
    #[arg(short, long, value_name = "REVISION")]
    pub revision: Option<String>,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub paths: PathArgs,

    /// Compare with the bucket and show what would be uploaded, but upload nothing
    #[arg(long)]
    pub dry_run: bool,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub transfer: TransferArgs,
}

/// The report of `push`.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Whether nothing was written.
    pub dry_run: bool,
    /// Blobs uploaded, or to be uploaded.
    pub uploaded: Amount,
    /// Blobs already in the bucket.
    pub present: Amount,
    /// Manifests written, or to be written.
    pub manifests: usize,
    /// Manifests that were up to date.
    pub manifests_unchanged: usize,
    /// Refs written, or to be written.
    pub refs: usize,
    /// Refs that were up to date.
    pub refs_unchanged: usize,
    /// What was skipped, and why.
    pub skipped: Vec<Skip>,
    /// Notes for the user.
    pub notes: Vec<String>,
    /// What failed.
    pub failures: Vec<Error>,
    /// Duration in seconds.
    pub seconds: f64,
    /// The actions, for a dry run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plan: Option<Plan>,
    /// Revisions with changes, for the table, those with the most bytes first.
    #[serde(skip)]
    pub rows: Vec<Row>,
}

/// A revision with changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The repo.
    pub repo: RepoName,
    /// The revision.
    pub revision: Commit,
    /// Blobs uploaded for it; a blob that several revisions need counts towards the first.
    pub uploads: Amount,
    /// What happens to its manifest.
    pub manifest: ManifestAction,
    /// Number of files that are broken in the cache and missing from the bucket.
    pub missing_files: usize,
    /// Whether its manifest could not be written.
    pub is_unpublished: bool,
}

impl Report {
    /// Returns the kind of failure that determines the exit code.
    pub fn failed(&self) -> Option<Kind> {
        kind_of(&self.failures)
    }

    /// Creates the report of a dry run, or the initial report of a real one.
    fn from_plan(plan: &Plan, dry_run: bool) -> Report {
        let mut uploaded = Amount::default();
        let mut report = Report {
            dry_run,
            uploaded,
            present: plan.present,
            manifests: 0,
            manifests_unchanged: plan.revisions.iter().filter(|r| r.manifest == ManifestAction::Keep).count(),
            refs: 0,
            refs_unchanged: plan.revisions.iter().map(|r| r.refs_unchanged).sum(),
            skipped: plan.skips.clone(),
            failures: plan.failures.clone(),
            notes: plan.notes.clone(),
            seconds: 0.0,
            plan: None,
            rows: rows(plan),
        };
        if dry_run {
            plan.uploads.iter().for_each(|upload| uploaded.add(upload.size));
            report.uploaded = uploaded;
            report.manifests = plan.revisions.len() - report.manifests_unchanged;
            report.refs = plan.revisions.iter().map(|r| r.refs.len()).sum();
        }
        report
    }

    /// Adds what an earlier round of the same push has done, which this round has found done.
    fn add_earlier(&mut self, earlier: Report) {
        self.uploaded += earlier.uploaded;
        self.present.blobs = self.present.blobs.saturating_sub(earlier.uploaded.blobs);
        self.present.bytes = self.present.bytes.saturating_sub(earlier.uploaded.bytes);
        self.manifests += earlier.manifests;
        self.manifests_unchanged = self.manifests_unchanged.saturating_sub(earlier.manifests);
        self.refs += earlier.refs;
        self.refs_unchanged = self.refs_unchanged.saturating_sub(earlier.refs);
        let is_done = |row: &Row| {
            let is_same = |skip: &Skip| skip.repo == row.repo && skip.revision.as_ref() == Some(&row.revision);
            let is_withheld = |skip: &Skip| matches!(skip.reason, SkipReason::Withheld { .. }) && is_same(skip);
            let is_planned_again = self.rows.iter().any(|new| (&new.repo, &new.revision) == (&row.repo, &row.revision));
            !is_planned_again && !earlier.skipped.iter().any(is_withheld)
        };
        let done: Vec<Row> = earlier.rows.iter().filter(|row| is_done(row)).cloned().collect();
        self.rows.extend(done);
        self.rows.sort_by_key(|row| std::cmp::Reverse(row.uploads.bytes));
        let notes = earlier.notes.into_iter().filter(|note| !self.notes.contains(note)).collect::<Vec<_>>();
        self.notes.extend(notes);
    }

    /// Adds the outcome of the plan.
    fn record(&mut self, tally: Tally) {
        (self.uploaded, self.present) = (tally.uploaded, tally.present);
        (self.manifests, self.refs) = (tally.manifests, tally.refs);
        self.skipped.extend(tally.skipped);
        self.failures.extend(tally.failures);
        for row in &mut self.rows {
            row.is_unpublished = tally.unpublished.contains(&(row.repo.clone(), row.revision.clone()));
        }
    }
}

/// Returns the revisions with changes, those with the most bytes to upload first.
fn rows(plan: &Plan) -> Vec<Row> {
    let mut left: HashMap<BlobId, u64> = plan.uploads.iter().map(|upload| (upload.blob, upload.size)).collect();
    let mut rows = Vec::new();
    for action in &plan.revisions {
        let mut uploads = Amount::default();
        for file in action.ours.files() {
            left.remove(&file.blob).into_iter().for_each(|size| uploads.add(size));
        }
        if uploads.blobs > 0 || action.publishes() {
            let (repo, revision) = (action.repo.clone(), action.commit.clone());
            let (manifest, missing_files) = (action.manifest, action.missing_files);
            rows.push(Row { repo, revision, uploads, manifest, missing_files, is_unpublished: false });
        }
    }
    rows.sort_by_key(|row| std::cmp::Reverse(row.uploads.bytes));
    rows
}

/// Runs the command.
///
/// # Errors
/// When nothing can be pushed at all; individual failures are in the report.
pub async fn execute(session: &Session, args: &Args) -> Result<Report> {
    let started = Instant::now();
    let selection = Selection { paths: args.paths.filter()?, ..Selection::of(args.repos.clone()) };
    let selection = selection.at_revision(args.revision.as_deref())?;
    session.need_cache()?;
    let bucket = session.bucket().await?;
    let mut lock = None;
    let options = session.push_options(selection);
    let mut report: Option<Report> = None;
    let mut vanished: BTreeMap<PathBuf, String> = BTreeMap::new();
    loop {
        let Survey { local, remote, .. } = match survey_at_rest(session, &bucket, &options).await {
            // All that was requested is gone.
            Err(error)
                if error.cause.is_missing()
                    && let Some(earlier) = &mut report =>
            {
                earlier.skipped.retain(|skip| !matches!(skip.reason, SkipReason::Withheld { .. }));
                break;
            }
            surveyed => surveyed?,
        };
        let plan = plan::plan(&local, &remote);
        let listed = ListingSizes { blobs: remote.blobs().len(), refs: remote.refs().len() };
        // Free the memory for the transfers.
        drop((local, remote));
        log_plan(&plan);
        let mut current = Report::from_plan(&plan, args.dry_run);
        if args.dry_run {
            current.plan = Some(plan);
            report = Some(current);
            break;
        }
        // Not before, so that what is refused changes nothing. What a `prune` deleted meanwhile is found to be gone. A read-only
        // cache can be pushed without the lock: no prune can run on it.
        if lock.is_none() {
            lock = session.lock_shared().await.ok();
        }
        let context = session.transfers(&bucket, args.transfer.caps(), false);
        let mut tally = publish::publish(&context, &plan, listed).await;
        let before = vanished.len();
        vanished.extend(tally.vanished.drain(..).map(|blob| (blob.source, blob.label)));
        let has_failed = !tally.failures.is_empty();
        current.record(tally);
        if let Some(earlier) = report.take() {
            current.add_earlier(earlier);
        }
        report = Some(current);
        // What is still there was perhaps withheld for the sake of what is gone. Each round loses other files, so this ends.
        if vanished.len() == before || has_failed {
            break;
        }
    }
    drop(lock);
    let mut report = report.expect("the first round makes one");
    report.notes.extend(vanished_note(&vanished));
    report.seconds = started.elapsed().as_secs_f64();
    Ok(report)
}

/// Surveys both sides, again if files disappeared from the cache while it was scanned.
async fn survey_at_rest(session: &Session, bucket: &Bucket, options: &Options) -> Result<Survey> {
    let mut gone: HashSet<PathBuf> = HashSet::new();
    loop {
        let surveyed = survey(session, bucket, options.clone()).await?;
        let is_gone = |problem: &&Problem| problem.kind.is_failure() && is_missing(&problem.path);
        let before = gone.len();
        gone.extend(surveyed.state.inventory().problems().filter(is_gone).map(|problem| problem.path.clone()));
        if gone.len() == before {
            return Ok(surveyed);
        }
    }
}

/// Returns the note about files that were removed from the cache before they were uploaded.
fn vanished_note(vanished: &BTreeMap<PathBuf, String>) -> Option<String> {
    let first = printable(vanished.values().next()?, 400);
    Some(match vanished.len() {
        1 => format!("{first} was removed from the cache during the push, and was left out"),
        many => {
            format!("{many} files, such as {first}, were removed from the cache during the push, and were left out")
        }
    })
}

/// Logs each decision.
fn log_plan(plan: &plan::Plan) {
    for upload in &plan.uploads {
        let why = match upload.reason {
            plan::UploadReason::Missing => "missing from the bucket",
            plan::UploadReason::WrongSize => "its size in the bucket is wrong",
        };
        tracing::debug!("upload {} ({}/{}, {} B): {why}", upload.blob, upload.repo, upload.path, upload.size);
    }
    for revision in &plan.revisions {
        let manifest = match revision.manifest {
            plan::ManifestAction::Keep => "the bucket's manifest is complete",
            plan::ManifestAction::Create => "creating its manifest",
            plan::ManifestAction::Extend => "extending the bucket's manifest",
            plan::ManifestAction::Replace => "replacing the bucket's manifest, which is invalid",
        };
        let refs: Vec<&str> = revision.refs.iter().map(|one| one.key.as_str()).collect();
        let refs = if refs.is_empty() { "no refs to write".into() } else { format!("writing {}", refs.join(", ")) };
        tracing::debug!("publish {}@{}: {manifest}, {refs}", revision.repo, revision.commit.short());
    }
    for skip in &plan.skips {
        let revision = skip.revision.as_ref().map_or(String::new(), |commit| format!("@{}", commit.short()));
        let why = serde_json::to_string(&skip.reason).unwrap_or_default();
        tracing::debug!("skip {}{revision}: {why}", skip.repo);
    }
}
