//! `list --remote`: the repos in the bucket, from a listing of manifests and refs; see [`crate::bucket::catalog`].

use std::collections::{BTreeMap, HashSet};
use std::time::SystemTime;

use serde::Serialize;

use super::Args;
use crate::bucket::catalog::{self, Catalog, Options, Repo};
use crate::bucket::state::{RemoteState, Scope};
use crate::engine::Session;
use crate::error::{Error, Result};
use crate::model::ids::{BlobId, Commit, RefName, RepoName};
use crate::progress::Event;
use crate::when;

/// The report of `list` for the bucket.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The bucket.
    pub bucket: String,
    /// Prefix of all keys; empty if there is none.
    pub prefix: String,
    /// Sorted by type and id.
    pub repos: Vec<Row>,
    /// Number of keys in place of manifests and refs that are neither.
    pub unknown_keys: usize,
    /// Invalid manifests and refs.
    pub failures: Vec<Error>,
    /// Whether to show a line for each revision.
    #[serde(skip)]
    pub by_revision: bool,
    /// Whether to show sizes.
    #[serde(skip)]
    pub with_sizes: bool,
    /// The time of the report.
    #[serde(skip)]
    pub now: SystemTime,
}

/// A repo.
#[derive(Debug, Serialize)]
pub struct Row {
    /// The repo's type and id. Unless manifests were read, a dataset pushed only by 0.1.0 counts as a model.
    #[serde(flatten)]
    pub repo: RepoName,
    /// Bytes of all revisions, each blob counted once, if all manifests were read.
    pub size: Option<u64>,
    /// When a manifest of this repo was last written, by the store's clock.
    #[serde(serialize_with = "when::serialize")]
    pub pushed: Option<SystemTime>,
    /// The most recently pushed revision.
    pub latest: Commit,
    /// Its refs.
    pub refs: Vec<Reference>,
    /// Its revisions.
    pub revisions: Vec<RevisionRow>,
}

/// A ref.
#[derive(Debug, Serialize)]
pub struct Reference {
    /// Its name.
    pub name: RefName,
    /// The commit it names, unless that is not in the listing and nothing required reading it.
    pub commit: Option<Commit>,
}

/// A revision.
#[derive(Debug, Serialize)]
pub struct RevisionRow {
    /// The commit.
    pub revision: Commit,
    /// Number of files, if the manifest was read.
    pub files: Option<usize>,
    /// Bytes, each blob counted once, if the manifest was read.
    pub size: Option<u64>,
    /// When its manifest was written, by the store's clock.
    #[serde(serialize_with = "when::serialize")]
    pub pushed: Option<SystemTime>,
    /// Refs that name it.
    pub refs: Vec<RefName>,
}

/// Lists the bucket.
///
/// # Errors
/// When no bucket is configured, or a request fails.
pub async fn report(session: &Session, args: &Args) -> Result<Report> {
    let bucket = session.bucket().await?;
    session.progress.event(Event::Step("listing the bucket"));
    let listed = RemoteState::list(&bucket, Scope::NAMES).await;
    let state = listed.map_err(|failure| bucket.explain_listing(failure))?;
    let options = Options { every_manifest: args.sizes, every_ref: args.sizes };
    let catalog = catalog::read(&bucket, &state, HashSet::new(), options).await?;
    Ok(Report {
        bucket: bucket.name().to_string(),
        prefix: session.config.team.prefix.clone(),
        repos: rows(&catalog),
        unknown_keys: catalog.foreign,
        failures: catalog.failures,
        by_revision: args.revisions,
        with_sizes: args.sizes,
        now: session.now,
    })
}

fn rows(catalog: &Catalog) -> Vec<Row> {
    catalog.repos.iter().filter_map(|(name, repo)| row(name, repo)).collect()
}

fn row(name: &RepoName, repo: &Repo) -> Option<Row> {
    let revisions = repo.revisions.iter().map(|(commit, revision)| RevisionRow {
        revision: commit.clone(),
        files: revision.manifest.as_ref().map(|manifest| manifest.files().len()),
        size: revision.manifest.as_ref().map(|manifest| manifest.total_size()),
        pushed: revision.modified,
        refs: repo.refs_to(commit).cloned().collect(),
    });
    let refs =
        repo.refs.iter().map(|(name, reference)| Reference { name: name.clone(), commit: reference.commit.clone() });
    Some(Row {
        repo: name.clone(),
        size: size(repo),
        pushed: repo.revisions.values().filter_map(|revision| revision.modified).max(),
        latest: repo.latest()?.clone(),
        refs: refs.collect(),
        revisions: revisions.collect(),
    })
}

fn size(repo: &Repo) -> Option<u64> {
    let mut blobs: BTreeMap<BlobId, u64> = BTreeMap::new();
    for revision in repo.revisions.values() {
        blobs.extend(revision.manifest.as_ref()?.blobs());
    }
    // Sizes come from the bucket and cannot be trusted not to overflow.
    Some(blobs.values().fold(0, |sum: u64, size| sum.saturating_add(*size)))
}
