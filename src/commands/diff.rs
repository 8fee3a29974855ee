//! `diff`: compares this cache with the bucket, revision by revision.
//!
//! Compares what this cache would publish with the bucket's listing. A manifest that both sides have is read only if the
//! listing does not prove that they are equal. A manifest that only the bucket has is not read, except with `--deep` or if
//! its name is ambiguous (see [`crate::bucket::catalog`]). The comparison itself is in [`crate::plan::diff`] (pure).

use std::collections::HashSet;
use std::time::SystemTime;

use serde::Serialize;

use super::kind_of;
use crate::bucket::catalog::{self, Options};
use crate::bucket::keys;
use crate::bucket::read::Stored;
use crate::bucket::state::RemoteState;
use crate::cache::pushable::{self, Local};
use crate::cache::state::LocalState;
use crate::cache::usage;
use crate::engine::Session;
use crate::engine::survey::{Survey, survey};
use crate::error::{Error, Kind, Result};
use crate::model::ids::RepoName;
use crate::model::selection::Selection;
use crate::plan::diff::{self, Counts, Detail, Details, RefRow, Row};
use crate::task::blocking;

const EXAMPLES: &str = "\
Examples:
  hf-cache-sync diff                     what differs between cache and bucket
  hf-cache-sync diff --exit-code -q      for CI: exit with 1 if anything differs
  hf-cache-sync diff --deep              also check what only the bucket has
  hf-cache-sync diff --json              with the paths and blobs that differ";

/// Compare the cache with the bucket, revision by revision
#[derive(Debug, Clone, Default, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Exit with 1 if anything differs
    #[arg(long)]
    pub exit_code: bool,

    /// Also read the manifests of revisions that only the bucket has, to show their sizes and missing blobs
    #[arg(long)]
    pub deep: bool,
}

/// The report of `diff`.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The bucket.
    pub bucket: String,
    /// Whether anything differs.
    pub differs: bool,
    /// Number of revisions by status.
    pub counts: Counts,
    /// Sorted by type, id and commit.
    pub revisions: Vec<Row>,
    /// Refs of this cache that the bucket lacks, or that name another commit there.
    pub refs: Vec<RefRow>,
    /// Revisions and files that could not be compared.
    pub failures: Vec<Error>,
    /// Notes for the user.
    pub notes: Vec<String>,
    /// Whether a difference affects the exit code.
    #[serde(skip)]
    pub exit_code: bool,
    /// The time of the report.
    #[serde(skip)]
    pub now: SystemTime,
}

impl Report {
    /// Returns the kind of failure that determines the exit code.
    pub fn failed(&self) -> Option<Kind> {
        kind_of(&self.failures).or((self.exit_code && self.differs).then_some(Kind::Failed))
    }
}

/// Runs the command.
///
/// # Errors
/// When no bucket is configured, the cache cannot be read at all, or a request fails.
pub async fn execute(session: &Session, args: &Args) -> Result<Report> {
    session.need_cache()?;
    let bucket = session.bucket().await?;
    // Gated repos are compared like any others; pointer files are skipped, as in a push.
    let options = pushable::Options { allow_gated: true, ..session.push_options(Selection::default()) };
    let Survey { state, local, remote } = survey(session, &bucket, options).await?;
    let allow_gated = session.config.team.allow_gated;
    let judged = blocking(move || {
        let gated = if allow_gated { HashSet::new() } else { gated(&state) };
        (gated, details(&state))
    });
    let (known, mut failures) = known_manifests(&local, &remote);
    let options = Options { every_manifest: args.deep, every_ref: true };
    let ((gated, details), catalog) = tokio::join!(judged, catalog::read(&bucket, &remote, known, options));
    let mut catalog = catalog?;
    failures.append(&mut catalog.failures);
    failures.extend(local.failures.iter().cloned());

    let mut revisions = diff::compare_revisions(&local, &catalog, &remote, &details);
    revisions.iter_mut().for_each(|row| row.gated = gated.contains(&row.repo));
    let refs = diff::compare_refs(&local, &catalog);
    let counts = diff::count(&revisions);
    Ok(Report {
        bucket: bucket.name().to_string(),
        differs: refs.iter().any(|row| !gated.contains(&row.repo)) || revisions.iter().any(Row::differs),
        counts,
        revisions,
        refs,
        failures,
        notes: local.notes,
        exit_code: args.exit_code,
        now: session.now,
    })
}

/// Returns the repos that a push skips because of their licence. If a licence cannot be read, the push itself reports it.
fn gated(state: &LocalState) -> HashSet<RepoName> {
    let names = state.inventory().repos.iter().map(|repo| &repo.name);
    names.filter(|name| matches!(state.gated(name), Ok(Some(_)))).cloned().collect()
}

/// Returns the keys of the bucket's manifests of this cache's revisions, and an error for each that is not valid.
fn known_manifests(local: &Local, remote: &RemoteState) -> (HashSet<String>, Vec<Error>) {
    let mut known = HashSet::new();
    let mut failures = Vec::new();
    for repo in &local.repos {
        for revision in &repo.revisions {
            let key = keys::manifest(&repo.name.id, &revision.commit);
            let why = match remote.manifest(&key) {
                None => continue,
                Some(Stored::Valid(_)) => None,
                Some(Stored::Absent) => Some("it was deleted in the meantime".into()),
                Some(Stored::Invalid(error)) => Some(error.why.unwrap_or_default()),
            };
            failures.extend(why.map(|why: String| {
                let error = Error::invalid(format!("the manifest {key} is not valid")).because(why);
                error.hint("`hf-cache-sync push` from this cache replaces it")
            }));
            known.insert(key);
        }
    }
    (known, failures)
}

fn details(state: &LocalState) -> Details {
    let repos = state.inventory().repos.iter();
    let revisions = repos.flat_map(|repo| repo.revisions.iter().map(move |found| (repo, found)));
    let details = revisions.map(|(repo, (commit, revision))| {
        let completeness = state.completeness(repo, commit);
        ((repo.name.clone(), commit.clone()), Detail { completeness, last_used: usage::last_use(repo, revision) })
    });
    details.collect()
}
