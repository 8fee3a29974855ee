//! `diff`: this cache against the bucket, revision by revision.
//!
//! What this cache would publish is compared with what the bucket lists. Manifests that both sides have are read only
//! where the listing does not prove them equal; those that only the bucket has are not read at all, unless `--deep`
//! asks for it or their name is ambiguous (see [`crate::bucket::catalog`]). [`crate::plan::diff`] decides (pure).

use std::collections::HashSet;
use std::time::SystemTime;

use serde::Serialize;

use super::kind_of;
use crate::bucket::catalog::{self, Options};
use crate::bucket::keys;
use crate::bucket::read::Stored;
use crate::bucket::state::RemoteState;
use crate::cache::pushable::{self, Local};
use crate::cache::scan::{Inventory, Repo};
use crate::cache::{gated, usage};
use crate::engine::Session;
use crate::engine::survey::{Survey, survey};
use crate::error::{Error, Kind, Result};
use crate::model::ids::RepoName;
use crate::plan::diff::{self, Counts, LastUse, RefRow, Row};
use crate::task::blocking;

const EXAMPLES: &str = "\
Examples:
  hf-cache-sync diff                     what differs between cache and bucket
  hf-cache-sync diff --exit-code -q      for CI: exit 1 when anything differs
  hf-cache-sync diff --deep              also blobs missing of what is not here
  hf-cache-sync diff --json              with the paths and blobs that differ";

/// Compare the cache with the bucket, revision by revision
#[derive(Debug, Clone, Default, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Exit with 1 when anything differs
    #[arg(long)]
    pub exit_code: bool,

    /// Also read the manifests of what only the bucket has: their sizes, and blobs that the bucket lacks
    #[arg(long)]
    pub deep: bool,
}

/// What was found.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The bucket.
    pub bucket: String,
    /// Whether anything differs.
    pub differs: bool,
    /// How many revisions are how.
    pub counts: Counts,
    /// Sorted by type, id and commit.
    pub revisions: Vec<Row>,
    /// Refs to revisions of this cache that the bucket has otherwise, or lacks.
    pub refs: Vec<RefRow>,
    /// What could not be compared.
    pub failures: Vec<Error>,
    /// What a user should know.
    pub notes: Vec<String>,
    /// Whether a difference decides the exit code.
    #[serde(skip)]
    pub exit_code: bool,
    /// The time of the report.
    #[serde(skip)]
    pub now: SystemTime,
}

impl Report {
    /// Decides the exit code.
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
    // Gated repos are compared like any other; pointer files are left out as a push leaves them out.
    let options = pushable::Options { only: Vec::new(), allow_gated: true, sync_xet: session.config.cache.sync_xet };
    let Survey { inventory, local, remote } = survey(session, &bucket, options).await?;
    let allow_gated = session.config.team.allow_gated;
    let judged = blocking(move || {
        let gated = if allow_gated { HashSet::new() } else { gated(&inventory) };
        (gated, last_uses(&inventory))
    });
    let (known, mut failures) = known(&local, &remote);
    let options = Options { every_manifest: args.deep, every_ref: true };
    let ((gated, last_use), catalog) = tokio::join!(judged, catalog::read(&bucket, &remote, known, options));
    let mut catalog = catalog?;
    failures.append(&mut catalog.failures);
    failures.extend(local.failures.iter().cloned());

    let mut revisions = diff::compare_revisions(&local, &catalog, &remote, &last_use);
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

/// Repos that a push leaves out because of a licence. Of one that cannot be judged the push says so.
fn gated(inventory: &Inventory) -> HashSet<RepoName> {
    let looks_gated = |repo: &&Repo| {
        let mut snapshots = repo.revisions.keys().map(|commit| inventory.layout.snapshot(&repo.name, commit));
        snapshots.any(|snapshot| matches!(gated::check_snapshot(&snapshot), Ok(Some(_))))
    };
    inventory.repos.iter().filter(looks_gated).map(|repo| repo.name.clone()).collect()
}

/// The keys of the bucket's manifests of this cache's revisions, and an error for each that is not valid.
fn known(local: &Local, remote: &RemoteState) -> (HashSet<String>, Vec<Error>) {
    let mut known = HashSet::new();
    let mut failures = Vec::new();
    for repo in &local.repos {
        for revision in &repo.revisions {
            let key = keys::manifest(&repo.name.id, &revision.commit);
            let why = match remote.manifest(&key) {
                None => continue,
                Some(Stored::Valid(_)) => None,
                Some(Stored::Absent) => Some("it was deleted meanwhile".into()),
                Some(Stored::Invalid(error)) => Some(error.why.unwrap_or_default()),
            };
            failures.extend(why.map(|why: String| {
                let error = Error::invalid(format!("the manifest {key} is not valid")).because(why);
                error.hint("`hf-cache-sync push` from here writes it anew")
            }));
            known.insert(key);
        }
    }
    (known, failures)
}

fn last_uses(inventory: &Inventory) -> LastUse {
    let revisions = inventory.repos.iter().flat_map(|repo| repo.revisions.iter().map(move |found| (repo, found)));
    let used = revisions.filter_map(|(repo, (commit, revision))| {
        Some(((repo.name.clone(), commit.clone()), usage::last_use(repo, revision)?))
    });
    used.collect()
}
