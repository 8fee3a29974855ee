//! `list`: the repos in this cache.

use std::path::PathBuf;
use std::time::SystemTime;

use serde::Serialize;

use super::Args;
use crate::cache::inventory::{Inventory, Repo};
use crate::cache::scan;
use crate::cache::usage;
use crate::engine::Session;
use crate::error::Result;
use crate::model::ids::{Commit, RefName, RepoName};
use crate::progress::Event;
use crate::task::blocking;
use crate::when;

/// The report of `list` for the cache.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The `hub` folder.
    #[serde(serialize_with = "crate::lossy::path")]
    pub cache_dir: PathBuf,
    /// Bytes on disk, each file counted once.
    pub size: u64,
    /// Sorted by type and id.
    pub repos: Vec<Row>,
    /// Number of problems, which `status` lists.
    pub problems: usize,
    /// Whether to show a line for each revision.
    #[serde(skip)]
    pub by_revision: bool,
    /// The time of the report.
    #[serde(skip)]
    pub now: SystemTime,
}

/// A repo.
#[derive(Debug, Serialize)]
pub struct Row {
    /// The repo's type and id.
    #[serde(flatten)]
    pub repo: RepoName,
    /// Bytes on disk, each file counted once.
    pub size: u64,
    /// Number of complete blobs.
    pub blobs: usize,
    /// Time of last use.
    #[serde(serialize_with = "when::serialize")]
    pub last_used: Option<SystemTime>,
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
    /// The commit it names, which need not be in the cache.
    pub commit: Commit,
}

/// A revision.
#[derive(Debug, Serialize)]
pub struct RevisionRow {
    /// The commit.
    pub revision: Commit,
    /// Number of files in its snapshot.
    pub files: usize,
    /// Their bytes, each blob counted once.
    pub size: u64,
    /// Time of last use.
    #[serde(serialize_with = "when::serialize")]
    pub last_used: Option<SystemTime>,
    /// Refs that name it.
    pub refs: Vec<RefName>,
}

/// Scans the cache.
///
/// # Errors
/// When the cache cannot be read at all.
pub async fn report(session: &Session, args: &Args) -> Result<Report> {
    session.need_cache()?;
    session.progress.event(Event::Step("scanning the cache"));
    let root = session.config.cache.root.clone();
    let inventory = blocking(move || scan::scan(&root)).await?;
    Ok(Report {
        cache_dir: session.config.cache.root.clone(),
        size: usage::unique_bytes(&inventory.repos),
        repos: inventory.repos.iter().map(row).collect(),
        problems: problems(&inventory),
        by_revision: args.revisions,
        now: session.now,
    })
}

fn problems(inventory: &Inventory) -> usize {
    inventory.problems().filter(|problem| problem.kind.is_failure()).count()
}

fn row(repo: &Repo) -> Row {
    let refs_to = |commit: &Commit| {
        repo.refs.iter().filter(|(_, named)| *named == commit).map(|(name, _)| name.clone()).collect::<Vec<_>>()
    };
    let revisions = repo.revisions.iter().map(|(commit, revision)| RevisionRow {
        revision: commit.clone(),
        files: revision.files.len(),
        size: usage::revision_bytes(repo, revision),
        last_used: usage::last_use(repo, revision),
        refs: refs_to(commit),
    });
    Row {
        repo: repo.name.clone(),
        size: usage::unique_bytes([repo]),
        blobs: repo.blobs.len(),
        last_used: usage::last_use_of_repo(repo),
        refs: repo.refs.iter().map(|(name, commit)| Reference { name: name.clone(), commit: commit.clone() }).collect(),
        revisions: revisions.collect(),
    }
}
