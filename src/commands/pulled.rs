//! The report on several revisions that are pulled together, with a row for each: that of `pull-all`, and of a `pull` of
//! several repos.

use std::collections::HashSet;
use std::path::PathBuf;

use serde::Serialize;

use super::kind_of;
use crate::cache::gated::Gated;
use crate::engine::hydrate;
use crate::engine::pull::{Decision, Pull, Work};
use crate::error::{Error, Kind, Result};
use crate::model::amount::Amount;
use crate::model::found::Found;
use crate::model::ids::{BlobId, Commit, RepoId, RepoName, RepoQuery, RepoType};
use crate::plan::pull::Plan;

/// Where the files of a pull came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// The bucket.
    Bucket,
    /// The Hub.
    Hub,
    /// Both the bucket and the Hub.
    #[serde(rename = "bucket-and-hub")]
    Both,
    /// Neither: nothing had to be downloaded.
    Cache,
}

impl Source {
    /// Determines the source from the blobs downloaded and the part of them that came from the Hub.
    pub fn of(downloaded: &Amount, from_hub: &Amount) -> Source {
        match (downloaded.blobs, from_hub.blobs) {
            (0, _) => Source::Cache,
            (_, 0) => Source::Bucket,
            (all, hub) if all == hub => Source::Hub,
            _ => Source::Both,
        }
    }
}

/// The report on several revisions.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// Whether nothing was written.
    pub dry_run: bool,
    /// The bucket.
    pub bucket: String,
    /// A row for each repo, in the order of the bucket's listing.
    pub repos: Vec<Row>,
    /// Why there are no rows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nothing: Option<EmptyReason>,
    /// Blobs downloaded, or to be downloaded.
    pub downloaded: Amount,
    /// The part of `downloaded` that came from the Hub.
    pub from_hub: Amount,
    /// Blobs shared with other repos of this cache.
    pub shared: Amount,
    /// Blobs already in the cache.
    pub present: Amount,
    /// Notes for the user.
    pub notes: Vec<String>,
    /// All failures, in the order of the rows.
    pub failures: Vec<Error>,
    /// Duration in seconds.
    pub seconds: f64,
}

/// Why there was nothing to pull.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum EmptyReason {
    /// No repo in the bucket has a `main`.
    Empty,
    /// No repo passes `--include`, `--exclude` and `--limit`.
    NoMatch,
}

/// A repo.
#[derive(Debug, Serialize)]
pub struct Row {
    /// The key of its ref in the bucket, for `pull-all`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The repo as it was requested, for `pull`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requested: Option<String>,
    /// Its id, if known.
    pub repo: Option<RepoId>,
    /// Its type, if known.
    pub repo_type: Option<RepoType>,
    /// The revision, if it was found.
    pub revision: Option<Commit>,
    /// The snapshot's folder, for `pull`.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "crate::lossy::optional")]
    pub snapshot: Option<PathBuf>,
    /// Number of files that `--include` and `--exclude` leave out, if there are such patterns.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub files_left_out: Option<usize>,
    /// The outcome.
    pub result: Outcome,
    /// Where the files came from.
    pub source: Option<Source>,
    /// Bytes of the revision, each blob counted once.
    pub size: u64,
    /// Blobs downloaded, or to be downloaded; a blob that several repos need counts towards the first.
    pub downloaded: Amount,
    /// The part of `downloaded` that came from the Hub.
    pub from_hub: Amount,
    /// Blobs shared with other repos of this cache.
    pub shared: Amount,
    /// Blobs already in the cache.
    pub present: Amount,
    /// Notes for the user.
    pub notes: Vec<String>,
    /// Set if it was skipped because it looks gated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gated: Option<Gated>,
    /// What failed.
    pub failures: Vec<Error>,
}

/// The outcome for a repo.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Something was pulled, and the repo is now complete.
    Pulled,
    /// It was already complete.
    Present,
    /// Something would be pulled.
    Planned,
    /// It was skipped because it looks gated.
    Skipped,
    /// Only part of it could be pulled.
    Partial,
    /// Nothing could be pulled.
    Failed,
}

impl Report {
    /// Returns the kind of failure that determines the exit code.
    pub fn failed(&self) -> Option<Kind> {
        match self.nothing {
            Some(_) => self.failures.first().map(crate::error::Error::kind),
            None => kind_of(&self.failures),
        }
    }
}

impl Row {
    /// Creates the row of a repo that is yet to be found.
    pub fn new(query: Option<&RepoQuery>) -> Row {
        Row {
            key: None,
            requested: None,
            repo: query.map(|query| query.id.clone()),
            repo_type: query.and_then(|query| query.kind),
            revision: None,
            snapshot: None,
            files_left_out: None,
            result: Outcome::Failed,
            source: None,
            size: 0,
            downloaded: Amount::default(),
            from_hub: Amount::default(),
            shared: Amount::default(),
            present: Amount::default(),
            notes: Vec::new(),
            gated: None,
            failures: Vec::new(),
        }
    }

    /// Records the revision that was found.
    pub fn set_revision(&mut self, found: &Found) {
        let manifest = &found.manifest;
        (self.repo, self.repo_type) = (Some(manifest.repo().id.clone()), Some(manifest.repo().kind));
        self.revision = Some(manifest.revision().clone());
        self.size = manifest.total_size();
        self.notes.clone_from(&found.notes);
    }

    /// Returns the repo's name, or else the text that is known of it.
    pub fn name(&self) -> String {
        match (&self.repo, self.repo_type) {
            (Some(id), Some(kind)) => RepoName::new(kind, id.clone()).to_string(),
            (Some(id), None) => id.to_string(),
            (None, _) => self.requested.clone().or_else(|| self.key.clone()).unwrap_or_default(),
        }
    }

    /// Records a failure.
    pub fn with_failure(mut self, error: Error) -> Row {
        self.failures.push(error);
        self
    }

    /// Plans the pull of a revision that was found. Returns the work, if there is any.
    pub async fn decide(mut self, pull: &Pull<'_>, found: Found, from_hub: bool) -> (Row, Option<Work>) {
        self.set_revision(&found);
        match pull.decide(&found, from_hub).await {
            Ok(Decision::Gated(gated)) => {
                self.result = Outcome::Skipped;
                self.gated = Some(gated);
                (self, None)
            }
            Ok(Decision::Pull(plan)) => {
                self.present = plan.present;
                (self, Some(Work { found, plan: *plan, from_hub }))
            }
            Err(error) => (self.with_failure(error), None),
        }
    }

    /// Records what would be pulled. `counted` holds the blobs that earlier rows would download.
    fn record_plan(&mut self, plan: &Plan, counted: &mut HashSet<BlobId>) {
        self.result = if plan.is_empty() { Outcome::Present } else { Outcome::Planned };
        for fetch in &plan.fetch {
            let shared = fetch.donor.is_some() || !counted.insert(fetch.blob);
            let amount = if shared { &mut self.shared } else { &mut self.downloaded };
            amount.add(fetch.size);
        }
    }

    /// Records what was pulled.
    fn record_outcome(&mut self, plan: &Plan, outcome: hydrate::Outcome) {
        let lost = outcome.lost();
        self.result = match outcome.failures.is_empty() {
            true if plan.is_empty() => Outcome::Present,
            true => Outcome::Pulled,
            false if lost < plan.manifest.blobs().len() => Outcome::Partial,
            false => Outcome::Failed,
        };
        self.source = Some(Source::of(&outcome.downloaded, &outcome.from_hub));
        self.downloaded = outcome.downloaded;
        self.from_hub = outcome.from_hub;
        self.notes.extend(outcome.notes);
        self.shared = outcome.shared;
        self.failures.extend(outcome.failures);
    }
}

impl Report {
    /// Adds the rows, carries out their work unless this is a dry run, and records the outcomes.
    ///
    /// # Errors
    /// If the cache cannot be written to; failures of individual repos are in their rows.
    pub async fn finish(&mut self, pull: Pull<'_>, decided: Vec<(Row, Option<Work>)>) -> Result<()> {
        let (mut work, mut rows_of_work) = (Vec::new(), Vec::new());
        for (row, todo) in decided {
            if let Some(todo) = todo {
                work.push(todo);
                rows_of_work.push(self.repos.len());
            }
            self.repos.push(row);
        }
        pull.reuse_local(&mut work).await;
        if self.dry_run {
            let mut counted = HashSet::new();
            for (row, work) in rows_of_work.into_iter().zip(&work) {
                self.repos[row].record_plan(&work.plan, &mut counted);
            }
        } else {
            let outcomes = pull.carry_out(&mut work).await?;
            for ((row, work), outcome) in rows_of_work.into_iter().zip(&work).zip(outcomes) {
                self.repos[row].record_outcome(&work.plan, outcome);
            }
        }
        self.sum_rows();
        Ok(())
    }

    fn sum_rows(&mut self) {
        for row in &self.repos {
            self.downloaded += row.downloaded;
            self.from_hub += row.from_hub;
            self.notes.extend(row.notes.iter().cloned());
            self.shared += row.shared;
            self.present += row.present;
            for failure in &row.failures {
                // A failed blob that several repos need is reported once.
                if !self.failures.contains(failure) {
                    self.failures.push(failure.clone());
                }
            }
        }
    }
}
