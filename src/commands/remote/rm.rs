//! `remote rm`: deletes repos, or single revisions of them, from the bucket.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::deletion::Deletion;
use crate::bucket::census::Census;
use crate::bucket::keys;
use crate::engine::Session;
use crate::engine::delete;
use crate::error::{Error, Result, printable};
use crate::model::ids::{RefName, RepoName, RepoQuery, RepoSpec, RepoType};
use crate::model::selection::Selection;
use crate::plan::deletion::Options;
use crate::suggest::did_you_mean;

/// Blobs that are younger than this by the store's clock are left to `remote gc`.
const GRACE: Duration = Duration::from_secs(24 * 3600);
/// Maximum number of revisions that an error lists.
const NAMED: usize = 12;

const EXAMPLES: &str = "\
Examples:
  hf-cache-sync remote rm org/name --dry-run    show what would be deleted
  hf-cache-sync remote rm org/name dataset:org/name
  hf-cache-sync remote rm org/name -r v1.0      one revision, with its refs
  hf-cache-sync remote rm org/name --yes        without a question

Deletes refs first, then manifests, then blobs that no other revision needs.
Blobs younger than 24 hours stay, since a push may rely on them; `remote gc`
deletes them later.

On a terminal, it shows what would be deleted and asks, unless --yes is given.
Without a terminal, it needs --yes.";

/// Delete repos or revisions from the bucket
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Repos to delete (org/name, dataset:org/name, or the Hub's URL). Without a type, the model; if there is none, the
    /// only other type with that id
    #[arg(value_name = "REPO_ID", required = true)]
    pub repos: Vec<RepoSpec>,

    /// Delete only this revision: a branch, tag or commit
    #[arg(long, short, value_name = "REV")]
    pub revision: Option<String>,

    /// Show what would be deleted, but delete nothing
    #[arg(long)]
    pub dry_run: bool,

    /// Do not ask for confirmation
    #[arg(long, short)]
    pub yes: bool,
}

/// Reads the bucket and plans.
///
/// # Errors
/// If a repo or revision does not exist, a request fails, or a manifest of a repo cannot be read.
pub async fn prepare(session: &Session, args: &Args) -> Result<Deletion> {
    let started = Instant::now();
    let selection = Selection::of(args.repos.clone()).at_revision(args.revision.as_deref())?;
    let bucket = session.config.storage.bucket()?.to_string();
    let options = Options { grace: GRACE, ..Options::default() };
    let prepared = delete::prepare(session, options, |census| {
        let mut removed = BTreeSet::new();
        for spec in &selection.repos {
            removed.extend(manifests_to_remove(census, &bucket, &spec.query, spec.revision.as_deref())?);
        }
        Ok(removed)
    });
    Ok(Deletion::new(session, prepared.await?, started))
}

/// Returns the keys of the manifests of a repo, or of one revision of it.
fn manifests_to_remove(
    census: &Census,
    bucket: &str,
    query: &RepoQuery,
    revision: Option<&str>,
) -> Result<Vec<String>> {
    let start = keys::manifests_of(&query.id);
    if let Some((_, problem)) = census.problems.iter().find(|(key, _)| key.starts_with(&start)) {
        let what = format!("nothing of {query} was deleted from bucket '{bucket}'");
        return Err(Census::refusal(what, problem, ""));
    }
    let mut by_type: BTreeMap<RepoType, Vec<&String>> = BTreeMap::new();
    for (key, needs) in census.manifests.iter().filter(|(_, needs)| query.matches(&needs.repo)) {
        by_type.entry(needs.repo.kind).or_default().push(key);
    }
    let kind = match by_type.keys().copied().collect::<Vec<_>>().as_slice() {
        [] => return Err(missing_repo(census, bucket, query)),
        [only] => *only,
        kinds if kinds.contains(&RepoType::Model) => RepoType::Model,
        kinds => {
            let choices: Vec<String> = kinds.iter().map(|kind| format!("{}:{}", kind.word(), query.id)).collect();
            return Err(Error::usage(format!("{query} is ambiguous in bucket '{bucket}'"))
                .because(format!("there are {}", choices.join(" and ")))
                .hint("name one of them with its type"));
        }
    };
    let all = by_type.remove(&kind).unwrap_or_default();
    let Some(revision) = revision else { return Ok(all.into_iter().cloned().collect()) };
    let repo = RepoName::new(kind, query.id.clone());
    Ok(vec![manifest_of(census, bucket, &repo, &all, revision)?])
}

/// Returns the key of the manifest of a revision.
fn manifest_of(census: &Census, bucket: &str, repo: &RepoName, all: &[&String], revision: &str) -> Result<String> {
    let shown = printable(revision, 100);
    if let Ok(name) = revision.parse::<RefName>() {
        let candidates = census.state.refs().iter().filter(|one| one.name == name && one.may_refer_to(repo));
        let leads = candidates.filter_map(|one| Some((one, census.target(one)?)));
        let leads = leads.filter(|(_, target)| all.contains(&target));
        if let Some((_, target)) = leads.reduce(|known, other| if other.0.supersedes(known.0) { other } else { known })
        {
            return Ok(target);
        }
    }
    let commit = |key: &str| census.manifests[key].commit.clone();
    let lower = revision.to_ascii_lowercase();
    let fits = |key: &&&String| lower.len() >= 4 && commit(key).as_str().starts_with(&lower);
    match all.iter().filter(fits).collect::<Vec<_>>().as_slice() {
        [one] => Ok((**one).clone()),
        [] => {
            let refs = census.state.refs().iter().filter(|one| one.may_refer_to(repo));
            let refs = refs.filter(|one| census.target(one).is_some_and(|target| all.contains(&&target)));
            let mut there: Vec<String> = refs.map(|one| one.name.to_string()).collect();
            there.sort();
            there.dedup();
            there.extend(all.iter().map(|key| commit(key).short().to_string()));
            let more = if there.len() > NAMED { " …" } else { "" };
            there.truncate(NAMED);
            Err(Error::not_found(format!("revision '{shown}' of {repo} is not in bucket '{bucket}'"))
                .because(format!("it has {}{more}", there.join(", "))))
        }
        several => {
            let commits: Vec<String> = several.iter().map(|key| commit(key).to_string()).collect();
            Err(Error::usage(format!("'{shown}' is ambiguous in {repo}"))
                .because(format!("it fits {}", commits.join(", ")))
                .hint("give more digits"))
        }
    }
}

/// Returns the error for a repo that is not in the bucket, with the nearest name.
fn missing_repo(census: &Census, bucket: &str, query: &RepoQuery) -> Error {
    let error = Error::not_found(format!("{query} is not in bucket '{bucket}'"));
    let of_other_type = census.manifests.values().find(|needs| needs.repo.id == query.id);
    if let Some(needs) = of_other_type {
        return error.because(format!("{} is there", needs.repo)).hint("name it with its type");
    }
    let names: BTreeSet<String> = census.manifests.values().map(|needs| needs.repo.to_string()).collect();
    let close = did_you_mean(&query.to_string(), names.iter().map(String::as_str));
    error.hint(close.unwrap_or_else(|| match names.len() {
        0 => "there are no repos under this prefix: check team.prefix".into(),
        count => format!("repos in the bucket: {count}, see `hf-cache-sync list --remote`"),
    }))
}
