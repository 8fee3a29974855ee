//! What `remote rm` and `remote gc` have in common: both plan, show what they would delete, and delete it.

use std::time::Instant;

use serde::Serialize;

use crate::commands::kind_of;
use crate::engine::Session;
use crate::engine::delete::{Outcome, Prepared};
use crate::error::{Error, Kind, Result};
use crate::model::amount::Amount;
use crate::model::ids::{Commit, RefName, RepoName};
use crate::plan::deletion::{KeepReason, ManifestDeletion, Plan};

/// The report of `remote rm` and `remote gc`.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The bucket.
    pub bucket: String,
    /// Prefix of all keys; empty if there is none.
    pub prefix: String,
    /// Whether nothing was deleted.
    pub dry_run: bool,
    /// Whether the user was asked and declined, so that nothing was deleted.
    pub declined: bool,
    /// Revisions deleted, or to be deleted.
    pub revisions: Vec<Removed>,
    /// Number of refs deleted, or to be deleted.
    pub refs: usize,
    /// Blobs deleted, or to be deleted.
    pub blobs: Amount,
    /// Number of unfinished uploads aborted, or to be aborted.
    pub uploads: usize,
    /// Blobs that no manifest needs and that stay, by reason.
    pub kept: Vec<Kept>,
    /// Revisions that stay because they are being pushed at the moment.
    pub busy: Vec<Removed>,
    /// Whether the bucket keeps earlier versions of its objects; null if the store does not say.
    pub versioned: Option<bool>,
    /// What failed.
    pub failures: Vec<Error>,
    /// Duration in seconds.
    pub seconds: f64,
    /// The deletions, for a dry run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plan: Option<Plan>,
    /// Whether the table was already shown when asking for confirmation.
    #[serde(skip)]
    pub was_shown: bool,
}

/// A revision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Removed {
    /// The repo.
    #[serde(flatten)]
    pub repo: RepoName,
    /// The revision.
    pub revision: Commit,
    /// Refs that named it.
    pub refs: Vec<RefName>,
}

/// Blobs that are kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Kept {
    /// Why.
    pub reason: KeepReason,
    /// How many, and how large.
    #[serde(flatten)]
    pub amount: Amount,
}

impl Report {
    /// Returns the kind of failure that determines the exit code.
    pub fn failed(&self) -> Option<Kind> {
        kind_of(&self.failures).or((!self.busy.is_empty() && !self.dry_run && !self.declined).then_some(Kind::Failed))
    }

    /// Whether anything is deleted.
    pub fn deletes(&self) -> bool {
        !self.revisions.is_empty() || self.refs > 0 || self.blobs.blobs > 0 || self.uploads > 0
    }

    /// Converts a preview into the report of a deletion that was declined: nothing was deleted, which is not a failure.
    pub fn into_declined(self) -> Report {
        Report {
            dry_run: false,
            declined: true,
            revisions: Vec::new(),
            refs: 0,
            blobs: Amount::default(),
            uploads: 0,
            plan: None,
            ..self
        }
    }
}

fn removed(plan: &Plan, manifests: &[ManifestDeletion]) -> Vec<Removed> {
    let row = |one: &ManifestDeletion| {
        let refs = plan.refs.iter().filter(|reference| reference.target == one.key);
        let mut refs: Vec<RefName> = refs.map(|reference| reference.name.clone()).collect();
        refs.sort();
        // A ref may have two keys.
        refs.dedup();
        Removed { repo: one.repo.clone(), revision: one.revision.clone(), refs }
    };
    manifests.iter().map(row).collect()
}

fn kept(amounts: impl IntoIterator<Item = (KeepReason, Amount)>) -> Vec<Kept> {
    amounts.into_iter().map(|(reason, amount)| Kept { reason, amount }).collect()
}

/// A planned deletion that the user has yet to confirm.
pub struct Deletion {
    started: Instant,
    prefix: String,
    prepared: Prepared,
}

impl Deletion {
    /// Wraps a plan whose preparation began at `started`.
    pub fn new(session: &Session, prepared: Prepared, started: Instant) -> Deletion {
        Deletion { started, prefix: session.config.team.prefix.clone(), prepared }
    }

    /// Returns what would be deleted right now.
    pub fn preview(&self) -> Report {
        let plan = &self.prepared.plan;
        Report {
            bucket: self.prepared.bucket().to_string(),
            prefix: self.prefix.clone(),
            dry_run: true,
            declined: false,
            revisions: removed(plan, &plan.manifests),
            refs: plan.refs.len(),
            blobs: plan.amount(),
            uploads: plan.uploads.len(),
            kept: kept(plan.kept.clone()),
            busy: removed(plan, &plan.busy),
            versioned: self.prepared.versioned,
            failures: Vec::new(),
            seconds: self.started.elapsed().as_secs_f64(),
            plan: Some(plan.clone()),
            was_shown: false,
        }
    }

    /// Deletes what was planned.
    ///
    /// # Errors
    /// If nothing could be deleted at all; individual failures are in the report.
    pub async fn execute(self, session: &Session, was_shown: bool) -> Result<Report> {
        let Outcome { refs, manifests, blobs, uploads, kept: left, busy, failures } =
            self.prepared.execute(session).await?;
        let plan = &self.prepared.plan;
        Ok(Report {
            dry_run: false,
            revisions: removed(plan, &manifests),
            refs,
            blobs,
            uploads,
            kept: kept(left),
            busy: removed(plan, &busy),
            failures,
            seconds: self.started.elapsed().as_secs_f64(),
            plan: None,
            was_shown,
            ..self.preview()
        })
    }
}

/// Returns the error for a deletion that the user can neither be asked about nor has confirmed beforehand.
pub fn refuse_without_consent(command: &str) -> Error {
    Error::usage(format!("`{command}` deletes from a bucket that others use, and there is no terminal to ask on"))
        .hint(format!("see what `{command} --dry-run` shows first, then add --yes"))
}
