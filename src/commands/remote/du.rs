//! `remote du`: shows what takes space in the bucket, by repo, from one listing and all manifests.

use serde::Serialize;

use crate::bucket::census::Census;
use crate::bucket::keys;
use crate::commands::kind_of;
use crate::engine::Session;
use crate::error::{Error, Kind, Result};
use crate::model::amount::Amount;
use crate::model::ids::RepoName;
use crate::plan::bucket_usage::{self, RepoUsage};
use crate::progress::Event;

const EXAMPLES: &str = "\
Examples:
  hf-cache-sync remote du                what takes space in the bucket
  hf-cache-sync remote du --json         for jq and similar tools

A repo's size counts each of its blobs once. `Unique` is what deleting the repo
would free; blobs that other repos need, too, are in `Shared`.";

/// Show what takes space in the bucket
#[derive(Debug, Clone, Default, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {}

/// The report of `remote du`.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The bucket.
    pub bucket: String,
    /// Prefix of all keys; empty if there is none.
    pub prefix: String,
    /// The repos, the largest first.
    pub repos: Vec<Row>,
    /// All blobs.
    pub blobs: Amount,
    /// Blobs that several repos need.
    pub shared: Amount,
    /// Blobs that no manifest needs.
    pub unreferenced: Amount,
    /// Unknown keys among the blobs, manifests and refs.
    pub foreign: Foreign,
    /// Number of unfinished multipart uploads; null if the store does not list them.
    pub unfinished_uploads: Option<usize>,
    /// Whether the bucket keeps earlier versions of its objects; null if the store does not say.
    pub versioned: Option<bool>,
    /// Manifests that could not be read. The blobs that they need count as unreferenced.
    pub failures: Vec<Error>,
}

/// Keys that this tool does not know.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Foreign {
    /// How many.
    pub keys: usize,
    /// Their total size in bytes.
    pub bytes: u64,
}

/// A repo.
#[derive(Debug, Serialize)]
pub struct Row {
    /// The repo.
    #[serde(flatten)]
    pub repo: RepoName,
    /// Number of revisions.
    pub revisions: usize,
    /// Number of blobs.
    pub blobs: u64,
    /// Bytes of all revisions, each blob counted once.
    pub size: u64,
    /// Bytes that no other repo needs.
    pub unique: u64,
    /// Bytes that other repos need, too.
    pub shared: u64,
    /// Blobs that it needs and that are missing from the bucket, or have another size there.
    pub missing: Amount,
}

impl Report {
    /// Returns the kind of failure that determines the exit code.
    pub fn failed(&self) -> Option<Kind> {
        kind_of(&self.failures)
    }
}

/// Runs the command.
///
/// # Errors
/// If no bucket is configured, or if a request fails.
pub async fn execute(session: &Session) -> Result<Report> {
    let bucket = session.bucket().await?;
    session.progress.event(Event::Step("reading the bucket's manifests"));
    let (census, uploads, versioned) =
        tokio::join!(Census::take(&bucket, None), bucket.unfinished_uploads(keys::BLOBS), bucket.is_versioned());
    let census = census?;
    let doing = format!("cannot list the unfinished uploads of bucket '{}'", bucket.name());
    let uploads = uploads.map_err(|failure| bucket.explain(failure, &doing))?;
    let is_ours = |upload: &crate::bucket::client::Unfinished| keys::parse_blob(&upload.key).is_some();
    let usage = bucket_usage::usage(&census);
    let mut repos: Vec<Row> = usage.repos.into_iter().map(|(repo, usage)| row(repo, usage)).collect();
    repos.sort_by_key(|row| std::cmp::Reverse(row.size));
    let foreign = census.state.foreign();
    Ok(Report {
        bucket: bucket.name().to_string(),
        prefix: session.config.team.prefix.clone(),
        repos,
        blobs: usage.blobs,
        shared: usage.shared,
        unreferenced: usage.unreferenced,
        foreign: Foreign { keys: foreign.keys, bytes: foreign.bytes },
        unfinished_uploads: uploads.map(|uploads| uploads.iter().filter(|upload| is_ours(upload)).count()),
        versioned,
        failures: census.problems.into_values().collect(),
    })
}

fn row(repo: RepoName, usage: RepoUsage) -> Row {
    Row {
        repo,
        revisions: usage.revisions,
        blobs: usage.all.blobs,
        size: usage.all.bytes,
        unique: usage.unique.bytes,
        shared: usage.shared.bytes,
        missing: usage.missing,
    }
}
