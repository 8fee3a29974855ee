//! `push`: what this cache has and the bucket lacks goes to the bucket.
//!
//! [`crate::engine::survey`] looks at both sides, [`crate::plan::push`] decides (pure), [`crate::engine::publish`] does
//! it in the order that keeps every reader safe: blobs, then manifests, then refs.

use std::collections::HashMap;
use std::time::Instant;

use serde::Serialize;

use super::{TransferArgs, kind_of};
use crate::cache::pushable;
use crate::engine::Session;
use crate::engine::publish::{self, ListingSizes, Tally};
use crate::engine::survey::{Survey, survey};
use crate::error::{Error, Kind, Result};
use crate::model::amount::Amount;
use crate::model::ids::BlobId;
use crate::model::ids::{Commit, RepoName, RepoSpec};
use crate::plan::push::{self as plan, ManifestAction, Plan, Skip};

const EXAMPLES: &str = "\
Examples:
  hf-cache-sync push --dry-run           what would be uploaded
  hf-cache-sync push                     everything that the bucket lacks
  hf-cache-sync push org/name dataset:org/name
  hf-cache-sync push --workers 4 -q      gently; silent unless it fails
  hf-cache-sync push --bwlimit 20MB/s    leaves network to others";

/// Upload what the bucket lacks: blobs, then manifests, then refs
#[derive(Debug, Clone, Default, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Repos to push (org/name, dataset:org/name, org/name@revision, or the Hub's URL); all when none is named.
    /// Without a type, the model; failing that, the other types of that id
    #[arg(value_name = "REPO_ID")]
    pub repos: Vec<RepoSpec>,

    /// Say what would be uploaded, compared with the real bucket, and stop there
    #[arg(long)]
    pub dry_run: bool,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub transfer: TransferArgs,
}

/// What a push did, or would do.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Whether nothing was written.
    pub dry_run: bool,
    /// Uploaded, or to be uploaded.
    pub uploaded: Amount,
    /// In the bucket already.
    pub present: Amount,
    /// Manifests written, or to be written.
    pub manifests: usize,
    /// Manifests that were as they should be.
    pub manifests_unchanged: usize,
    /// Refs written, or to be written.
    pub refs: usize,
    /// Refs that were as they should be.
    pub refs_unchanged: usize,
    /// What was left out, and why.
    pub skipped: Vec<Skip>,
    /// What a user should know.
    pub notes: Vec<String>,
    /// What failed.
    pub failures: Vec<Error>,
    /// Duration in seconds.
    pub seconds: f64,
    /// The actions, for a dry run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plan: Option<Plan>,
    /// The revisions that something was done about, for people: the most bytes first.
    #[serde(skip)]
    pub rows: Vec<Row>,
}

/// A revision that something is done about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The repo.
    pub repo: RepoName,
    /// The revision.
    pub revision: Commit,
    /// What is sent for it; a blob that several revisions need counts for the first of them.
    pub uploads: Amount,
    /// What is done about its manifest.
    pub manifest: ManifestAction,
    /// Files that are broken here and not in the bucket either.
    pub lacking: usize,
}

impl Report {
    /// Decides the exit code.
    pub fn failed(&self) -> Option<Kind> {
        kind_of(&self.failures)
    }

    /// The report of a dry run, and the beginning of that of a real one.
    fn planned(plan: &Plan, dry_run: bool) -> Report {
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

    /// Adds what became of the plan.
    fn complete(&mut self, tally: Tally) {
        (self.uploaded, self.present) = (tally.uploaded, tally.present);
        (self.manifests, self.refs) = (tally.manifests, tally.refs);
        self.skipped.extend(tally.skipped);
        self.failures.extend(tally.failures);
    }
}

/// The revisions that there is something to do about, those with the most bytes to send first.
fn rows(plan: &Plan) -> Vec<Row> {
    let mut left: HashMap<BlobId, u64> = plan.uploads.iter().map(|upload| (upload.blob, upload.size)).collect();
    let mut rows = Vec::new();
    for action in &plan.revisions {
        let mut uploads = Amount::default();
        for file in &action.ours.files {
            left.remove(&file.blob).into_iter().for_each(|size| uploads.add(size));
        }
        if uploads.blobs > 0 || action.manifest != ManifestAction::Keep || !action.refs.is_empty() {
            let (repo, revision) = (action.repo.clone(), action.commit.clone());
            rows.push(Row { repo, revision, uploads, manifest: action.manifest, lacking: action.lacking });
        }
    }
    rows.sort_by_key(|row| std::cmp::Reverse(row.uploads.bytes));
    rows
}

/// Runs the command.
///
/// # Errors
/// When nothing can be done at all; single failures are in the report.
pub async fn execute(session: &Session, args: &Args) -> Result<Report> {
    let started = Instant::now();
    session.need_cache()?;
    let bucket = session.bucket().await?;
    let options = pushable::Options {
        only: args.repos.clone(),
        allow_gated: session.config.team.allow_gated,
        sync_xet: session.config.cache.sync_xet,
    };
    let Survey { local, remote, .. } = survey(session, &bucket, options).await?;
    let plan = plan::plan(&local, &remote);
    let listed = ListingSizes { blobs: remote.blobs().len(), refs: remote.refs().len() };
    // The transfers need the memory.
    drop((local, remote));
    tell(&plan);
    let mut report = Report::planned(&plan, args.dry_run);
    if args.dry_run {
        report.plan = Some(plan);
    } else {
        let context = session.transfers(&bucket, args.transfer.caps(), false);
        // A cache that cannot be written to can still be pushed: then there is no prune to be kept out either.
        let _lock = session.lock_shared().await.ok();
        report.complete(publish::publish(&context, &plan, listed).await);
    }
    report.seconds = started.elapsed().as_secs_f64();
    Ok(report)
}

/// Tells each decision to the log.
fn tell(plan: &plan::Plan) {
    for upload in &plan.uploads {
        let why = match upload.reason {
            plan::UploadReason::Missing => "missing in the bucket",
            plan::UploadReason::WrongSize => "the bucket has it with another size",
        };
        tracing::debug!("upload {} ({}/{}, {} B): {why}", upload.blob, upload.repo, upload.path, upload.size);
    }
    for revision in &plan.revisions {
        let manifest = match revision.manifest {
            plan::ManifestAction::Keep => "the bucket's manifest has all of it",
            plan::ManifestAction::Create => "its manifest is created",
            plan::ManifestAction::Extend => "the bucket's manifest is extended",
            plan::ManifestAction::Replace => "the bucket's manifest is not valid and is replaced",
        };
        let refs: Vec<&str> = revision.refs.iter().map(|one| one.key.as_str()).collect();
        let refs = if refs.is_empty() { "no ref is written".into() } else { format!("writes {}", refs.join(", ")) };
        tracing::debug!("publish {}@{}: {manifest}, {refs}", revision.repo, revision.commit.short());
    }
    for skip in &plan.skips {
        let revision = skip.revision.as_ref().map_or(String::new(), |commit| format!("@{}", commit.short()));
        let why = serde_json::to_string(&skip.reason).unwrap_or_default();
        tracing::debug!("skip {}{revision}: {why}", skip.repo);
    }
}
