//! Resolves a [`Selection`] against the inventory of a cache: which of its repos and revisions are meant.

use std::collections::{BTreeMap, BTreeSet};

use super::inventory::{Inventory, Repo, Revision};
use crate::error::{Error, Result, printable};
use crate::model::ids::{Commit, RefName, RepoName, RepoSpec, RepoType};
use crate::model::selection::{Selection, ambiguous_commit};
use crate::suggest::did_you_mean;

/// The selected part of a cache.
#[derive(Debug)]
pub struct Selected<'a> {
    /// The repos, in scan order.
    pub repos: Vec<SelectedRepo<'a>>,
    /// Notes for the user.
    pub notes: Vec<String>,
}

/// A selected repo.
#[derive(Debug)]
pub struct SelectedRepo<'a> {
    /// The repo.
    pub repo: &'a Repo,
    /// Its selected revisions, each of which is in the cache; `None` if the whole repo is selected.
    pub commits: Option<BTreeSet<Commit>>,
}

impl SelectedRepo<'_> {
    /// Returns whether this revision is selected.
    pub fn includes(&self, commit: &Commit) -> bool {
        self.commits.as_ref().is_none_or(|commits| commits.contains(commit))
    }

    /// Returns the selected revisions.
    pub fn revisions(&self) -> impl Iterator<Item = (&Commit, &Revision)> {
        self.repo.revisions.iter().filter(|(commit, _)| self.includes(commit))
    }
}

/// Resolves the selection.
///
/// # Errors
/// [`crate::error::Cause::NotFound`] if a requested repo or revision is not in the cache, with the names that it could
/// be, or [`crate::error::Cause::Usage`] if an abbreviated commit is ambiguous.
pub fn select<'a>(inventory: &'a Inventory, selection: &Selection) -> Result<Selected<'a>> {
    let mut notes = Vec::new();
    let mut requested: BTreeMap<&RepoName, Option<BTreeSet<Commit>>> = BTreeMap::new();
    for spec in &selection.repos {
        let (repos, note) = prefer_model(find_repos(inventory, spec, &mut notes)?, spec)?;
        notes.extend(note);
        for SelectedRepo { repo, commits } in repos {
            let known = requested.entry(&repo.name).or_insert_with(|| Some(BTreeSet::new()));
            *known = known.take().zip(commits).map(|(a, b)| &a | &b);
        }
    }
    let is_everything = selection.repos.is_empty();
    let repos = inventory.repos.iter().filter(|repo| selection.allows(&repo.name)).filter_map(|repo| {
        let commits = if is_everything { None } else { requested.remove(&repo.name)? };
        Some(SelectedRepo { repo, commits })
    });
    Ok(Selected { repos: repos.collect(), notes })
}

/// Finds the repos with this id, of any type that fits. Another spelling of the id is accepted with a note.
fn find_repos<'a>(inventory: &'a Inventory, spec: &RepoSpec, notes: &mut Vec<String>) -> Result<Vec<&'a Repo>> {
    let query = &spec.query;
    let found: Vec<&Repo> = inventory.repos.iter().filter(|repo| query.matches(&repo.name)).collect();
    if !found.is_empty() {
        return Ok(found);
    }
    let found: Vec<&Repo> = inventory.repos.iter().filter(|repo| query.resembles(&repo.name)).collect();
    match found.as_slice() {
        [one] => notes.push(format!("{query} is {} in this cache", one.name)),
        [one, others @ ..] if others.iter().all(|other| other.name.id == one.name.id) => {
            notes.push(format!("{query} is {} in this cache", one.name.id));
        }
        _ => return Err(not_cached(inventory, spec)),
    }
    Ok(found)
}

/// Selects among repos that share an id, and returns them with a note for the user. An id without a type prefers the
/// model, as in a pull, and falls back to the other types. Repos without the requested revision are dropped.
///
/// # Errors
/// If no repo has the revision.
fn prefer_model<'a>(repos: Vec<&'a Repo>, spec: &RepoSpec) -> Result<(Vec<SelectedRepo<'a>>, Option<String>)> {
    let (mut selected, mut errors) = (Vec::new(), Vec::new());
    for repo in repos {
        match spec.revision.as_ref().map(|text| find_commit(repo, text)).transpose() {
            Ok(commit) => selected.push(SelectedRepo { repo, commits: commit.map(|commit| [commit].into()) }),
            Err(error) => errors.push((repo.name.kind != RepoType::Model, error)),
        }
    }
    // The model's error takes precedence.
    errors.sort_by_key(|(is_other, _)| *is_other);
    if let (true, Some((_, error))) = (selected.is_empty(), errors.into_iter().next()) {
        return Err(error);
    }
    let is_model = |one: &SelectedRepo<'_>| one.repo.name.kind == RepoType::Model;
    let others: Vec<String> =
        selected.iter().filter(|one| !is_model(one)).map(|one| one.repo.name.to_string()).collect();
    if others.is_empty() || others.len() == selected.len() {
        return Ok((selected, None));
    }
    selected.retain(is_model);
    let note = format!("{} is the model; this cache also has {}", spec.query, others.join(" and "));
    Ok((selected, Some(note)))
}

/// Finds the commit in this cache that a ref, a commit hash or a prefix of one refers to.
fn find_commit(repo: &Repo, text: &str) -> Result<Commit> {
    let fits = |commit: &&Commit| text.len() >= 4 && commit.as_str().starts_with(text);
    let by_ref = text.parse::<RefName>().ok().and_then(|name| repo.refs.get(&name));
    let commits: Vec<&Commit> = repo.revisions.keys().filter(fits).collect();
    match (by_ref.filter(|commit| repo.revisions.contains_key(*commit)), commits.as_slice()) {
        (Some(commit), _) => Ok(commit.clone()),
        (None, [commit]) => Ok((*commit).clone()),
        (None, several @ [_, _, ..]) => Err(ambiguous_commit(&printable(text, 100), &repo.name, several)),
        (None, []) => {
            let mut available: Vec<&str> = repo.refs.keys().map(RefName::as_str).collect();
            available.extend(repo.revisions.keys().map(Commit::short));
            available.truncate(12);
            Err(Error::not_found(format!("revision '{}' of {} is not in this cache", printable(text, 100), repo.name))
                .because(format!("it has {}", available.join(", "))))
        }
    }
}

fn not_cached(inventory: &Inventory, RepoSpec { query, .. }: &RepoSpec) -> Error {
    let names: Vec<String> = inventory.repos.iter().map(|repo| repo.name.to_string()).collect();
    let error = Error::not_found(format!("{query} is not in the cache {}", inventory.layout.root().display()));
    if let Some(other) = inventory.repos.iter().find(|repo| repo.name.id == query.id) {
        return error.because(format!("{} is a {} there", query.id, other.name.kind)).hint(format!(
            "name it as {}:{}",
            other.name.kind.word(),
            query.id
        ));
    }
    let close = did_you_mean(&query.to_string(), names.iter().map(String::as_str));
    error.hint(close.unwrap_or_else(|| "`hf-cache-sync list` shows what is there".into()))
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use crate::cache::scan::scan;
    use crate::error::Cause;
    use std::fs;

    /// A cache with these repo folders, each with two snapshots and a `main` that names the first.
    fn cache(folders: &[&str]) -> (tempfile::TempDir, Inventory) {
        let hub = tempfile::tempdir().unwrap();
        for folder in folders {
            let repo = hub.path().join(folder);
            for digit in ["a", "b"] {
                fs::create_dir_all(repo.join("snapshots").join(digit.repeat(40))).unwrap();
            }
            fs::create_dir_all(repo.join("refs")).unwrap();
            fs::write(repo.join("refs/main"), "a".repeat(40)).unwrap();
        }
        let inventory = scan(hub.path()).unwrap();
        (hub, inventory)
    }

    /// Returns the selected revisions, as `org/name=aaaa,bbbb`, and the notes.
    fn selected(inventory: &Inventory, specs: &[&str]) -> Result<(Vec<String>, Vec<String>)> {
        let selection = Selection::of(specs.iter().map(|spec| spec.parse().unwrap()).collect());
        let Selected { repos, notes } = select(inventory, &selection)?;
        let repos = repos.iter().map(|one| {
            let commits: Vec<&str> = one.revisions().map(|(commit, _)| &commit.as_str()[..4]).collect();
            format!("{}={}", one.repo.name, commits.join(","))
        });
        Ok((repos.collect(), notes))
    }

    #[test]
    fn repos_and_their_revisions_are_found() {
        let (_hub, inventory) = cache(&["models--org--a", "datasets--org--a", "datasets--org--b"]);
        let names = |specs: &[&str]| selected(&inventory, specs).unwrap().0;
        assert_eq!(names(&[]).len(), 3);
        assert_eq!(names(&["org/a"]), ["org/a=aaaa,bbbb"]);
        assert_eq!(names(&["dataset:org/a@main"]), ["dataset:org/a=aaaa"]);
        assert_eq!(names(&["org/b@bbbb", "org/a@main"]), ["org/a=aaaa", "dataset:org/b=bbbb"]);
        assert_eq!(names(&["org/a@main", "org/a@bbbb"]), ["org/a=aaaa,bbbb"]);
        assert_eq!(names(&["org/a@main", "org/a"]), ["org/a=aaaa,bbbb"]);
        assert_eq!(names(&["org/a", "org/a@main"]), ["org/a=aaaa,bbbb"]);
        let (repos, notes) = selected(&inventory, &["ORG/B"]).unwrap();
        assert_eq!((repos[0].as_str(), notes.len()), ("dataset:org/b=aaaa,bbbb", 1));
        let (_, notes) = selected(&inventory, &["org/a"]).unwrap();
        assert!(notes[0].contains("dataset:org/a"), "{notes:?}");
    }

    #[test]
    fn what_is_not_there_is_an_error_with_the_nearest_names() {
        let (_hub, inventory) = cache(&["models--org--a", "datasets--org--model-b"]);
        let fail = |spec: &str| selected(&inventory, &[spec]).unwrap_err();
        let error = fail("model:org/model-b");
        assert_eq!(error.cause, Cause::NotFound);
        assert!(error.to_string().contains("dataset:org/model-b"), "{error}");
        assert!(fail("org/model-c").to_string().contains("did you mean"));
        let error = fail("org/a@v9");
        assert!(error.cause == Cause::NotFound && error.to_string().contains("main"), "{error}");
    }

    #[test]
    fn a_filter_limits_the_repos() {
        let (_hub, inventory) = cache(&["models--org--a", "datasets--org--b"]);
        let filter = crate::model::filter::RepoFilter::new(&["dataset:*".into()], &[]).unwrap();
        let selection = Selection { filter, ..Selection::default() };
        let found = select(&inventory, &selection).unwrap().repos;
        assert_eq!(found.iter().map(|one| one.repo.name.to_string()).collect::<Vec<_>>(), ["dataset:org/b"]);
    }
}
