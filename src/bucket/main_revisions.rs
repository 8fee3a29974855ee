//! Every repo whose `main` is in the bucket, with the manifest that it leads to.
//!
//! One LIST returns the refs. Keys that may refer to the same repo (under `refs/` and `refs-v2/`, and ids with the same
//! encoding) are read as a group, several groups concurrently. Which of the keys count: [`super::refs`].

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use futures_util::{StreamExt, stream};

use super::client::Bucket;
use super::keys;
use super::read::Memory;
use super::refs::Candidate;
use super::state::{RemoteState, Scope};
use crate::error::{Error, Result};
use crate::model::found::Found;
use crate::model::ids::{RefName, RepoName, RepoQuery, RepoType};
use crate::model::manifest::Manifest;

/// Number of groups to read concurrently.
const CONCURRENT_GROUPS: usize = 32;

/// A repo, or a ref that cannot be followed.
#[derive(Debug)]
pub struct MainRevision {
    /// The key of its ref.
    pub key: String,
    /// The repo, as far as it is known: from the manifest if it was read, otherwise from the key.
    pub query: Option<RepoQuery>,
    /// The revision, or why it could not be found.
    pub found: Result<Found>,
}

/// The result of [`find`].
#[derive(Debug, Default)]
pub struct MainRevisions {
    /// In listing order, 0.1.0's refs first.
    pub all: Vec<MainRevision>,
    /// Whether the bucket has any `main` at all.
    pub any: bool,
}

/// Finds the repos that `allows` accepts, up to `limit`.
///
/// # Errors
/// If the bucket cannot be listed, or the credentials are not accepted. Problems with a single repo are in its
/// [`MainRevision`].
pub async fn find(
    bucket: &Bucket,
    memory: &dyn Memory,
    allows: impl Fn(&RepoName) -> bool,
    limit: Option<usize>,
) -> Result<MainRevisions> {
    let limit = limit.unwrap_or(usize::MAX);
    let list = async |what: &str, scope| {
        let doing = format!("cannot list the {what} in bucket '{}'", bucket.name());
        RemoteState::list(bucket, scope).await.map_err(|failure| bucket.explain(failure, &doing))
    };
    let mut state = list("refs", Scope::REFS).await?;
    let wanted = groups(state.refs()).into_iter().filter(|group| group.may_have_any(&allows)).count().min(limit);
    if prefers_listing(wanted, state.refs().len()) {
        state = state.merge(list("manifests", Scope::MANIFESTS).await?);
    }
    let state = &state;
    let groups = groups(state.refs());
    let mut mains = MainRevisions { all: Vec::new(), any: !groups.is_empty() };
    let wanted = groups.into_iter().filter(|group| group.may_have_any(&allows));
    let mut read = stream::iter(wanted)
        .map(|group| read_group(bucket, memory, state, group))
        .buffered(CONCURRENT_GROUPS.min(limit.max(1)));
    while mains.all.len() < limit
        && let Some(group) = read.next().await
    {
        for main in group? {
            let known = main.query.as_ref().and_then(|query| Some(RepoName::new(query.kind?, query.id.clone())));
            if mains.all.len() < limit && known.is_none_or(|repo| allows(&repo)) {
                mains.all.push(main);
            }
        }
    }
    Ok(mains)
}

/// Whether listing the manifests, which are probably a few times as many as the refs, takes fewer requests than reading
/// this many refs and manifests.
fn prefers_listing(wanted: usize, refs: usize) -> bool {
    wanted * 2 > 4 * refs.div_ceil(1000)
}

/// Refs whose repos have the same encoded id.
#[derive(Debug)]
struct Group<'a> {
    encoded: &'a str,
    refs: Vec<&'a Candidate>,
}

/// Groups the listed refs named `main`. Refs that 0.1.0 sees come first, in the order in which it lists them.
fn groups(refs: &[Candidate]) -> Vec<Group<'_>> {
    let main = RefName::main();
    let (old, new): (Vec<_>, Vec<_>) =
        refs.iter().filter(|candidate| candidate.name == main).partition(|candidate| candidate.repo.is_none());
    let mut groups: Vec<Group<'_>> = Vec::new();
    let mut indexes: HashMap<&str, usize> = HashMap::new();
    for candidate in old.into_iter().chain(new) {
        let index = *indexes.entry(&candidate.encoded).or_insert_with(|| {
            groups.push(Group { encoded: &candidate.encoded, refs: Vec::new() });
            groups.len() - 1
        });
        groups[index].refs.push(candidate);
    }
    groups
}

impl Group<'_> {
    /// Whether the group may include an allowed repo, judging by the keys alone.
    fn may_have_any(&self, allows: impl Fn(&RepoName) -> bool) -> bool {
        let named = self.refs.iter().filter_map(|candidate| candidate.repo.as_ref());
        let ids = keys::possible_ids(self.encoded);
        let possible = ids.iter().flat_map(|id| RepoType::ALL.map(|kind| RepoName::new(kind, id.clone())));
        let is_ambiguous = self.refs.iter().any(|candidate| candidate.repo.is_none());
        named.into_iter().any(&allows) || (is_ambiguous && possible.into_iter().any(|repo| allows(&repo)))
    }
}

async fn read_group(
    bucket: &Bucket,
    memory: &dyn Memory,
    state: &RemoteState,
    group: Group<'_>,
) -> Result<Vec<MainRevision>> {
    let mut mains: Vec<MainRevision> = Vec::new();
    let mut newest: HashMap<RepoName, &Candidate> = HashMap::new();
    let mut reported = HashSet::new();
    for candidate in group.refs {
        match read(bucket, memory, state, candidate).await {
            Ok(Some(manifest)) => {
                let manifest = Arc::unwrap_or_clone(manifest);
                let repo = manifest.repo().clone();
                let query = Some(RepoQuery { kind: Some(repo.kind), id: repo.id.clone() });
                let found = Found {
                    manifest,
                    reference: Some(RefName::main()),
                    pinned: false,
                    modified: None,
                    notes: Vec::new(),
                };
                let main = MainRevision { key: candidate.object.key.clone(), query: query.clone(), found: Ok(found) };
                match newest.get(&repo) {
                    None => mains.push(main),
                    Some(known) if candidate.supersedes(known) => {
                        let earlier = mains.iter_mut().find(|known| known.found.is_ok() && known.query == query);
                        *earlier.expect("it was added with `newest`") = main;
                    }
                    Some(_) => continue,
                }
                newest.insert(repo, candidate);
            }
            Ok(None) => {}
            Err(error) if error.cause.is_denial() => return Err(error),
            Err(error) => {
                let query = match &candidate.repo {
                    Some(repo) => Some(RepoQuery { kind: Some(repo.kind), id: repo.id.clone() }),
                    None => keys::plain_id(group.encoded).map(|id| RepoQuery { kind: None, id }),
                };
                // Both keys of a repo may lead to the same invalid manifest.
                if reported.insert(error.what.clone()) {
                    mains.push(MainRevision { key: candidate.object.key.clone(), query, found: Err(error) });
                }
            }
        }
    }
    // If one key of a repo cannot be followed, the other may still be good.
    let was_found = |query: &RepoQuery| query.kind.is_some() && newest.keys().any(|repo| query.matches(repo));
    mains.retain(|main| main.found.is_ok() || !main.query.as_ref().is_some_and(was_found));
    Ok(mains)
}

/// Reads the manifest that a ref leads to; `None` if the ref may not refer to the manifest's repo, or no longer exists.
async fn read(
    bucket: &Bucket,
    memory: &dyn Memory,
    state: &RemoteState,
    candidate: &Candidate,
) -> Result<Option<Arc<Manifest>>> {
    let commit = match state.listed_target(candidate) {
        Some(commit) => commit.clone(),
        None => match state.read_ref(bucket, &candidate.object.key).await?.checked()? {
            Some(commit) => commit,
            None => return Ok(None),
        },
    };
    let key = keys::manifest_of(&candidate.encoded, &commit);
    let Some(manifest) = state.recall_manifest(bucket, &key, memory).await?.checked()? else {
        return Err(Error::not_found(format!("the ref {} leads nowhere", candidate.object.key))
            .because(format!("the manifest {key} is not in the bucket"))
            .hint("push the revision again from a machine that has it"));
    };
    Ok(Some(manifest).filter(|manifest| candidate.may_refer_to(manifest.repo())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bucket::client::Object;

    fn listed(keys: &[&str]) -> RemoteState {
        let object = |key: &&str| Object { key: key.to_string(), size: 40, etag: None, modified: None };
        RemoteState::new(keys.iter().map(object))
    }

    #[test]
    fn keys_that_may_refer_to_the_same_repo_are_grouped() {
        let state = listed(&[
            "refs-v2/datasets--a--b/main",
            "refs-v2/kernels--k/main",
            "refs-v2/models--a--b/v1.0",
            "refs/a__b/main",
            "refs/a__b/refs/main",
            "refs/gpt2/main",
            "refs/gpt2/v1",
            "refs/stray",
        ]);
        let groups = groups(state.refs());
        let keys = |group: &Group<'_>| group.refs.iter().map(|candidate| candidate.object.key.clone()).collect();
        let keys: Vec<Vec<String>> = groups.iter().map(keys).collect();
        assert_eq!(
            keys,
            [
                vec!["refs/a__b/main", "refs-v2/datasets--a--b/main"],
                vec!["refs/gpt2/main"],
                vec!["refs-v2/kernels--k/main"],
            ]
        );
    }

    #[test]
    fn a_group_is_skipped_only_if_none_of_its_repos_is_allowed() {
        let only = |wanted: &'static str| move |repo: &RepoName| repo.to_string() == wanted;
        let state = listed(&["refs-v2/datasets--x--y/main", "refs/a___b/main"]);
        let groups = groups(state.refs());
        let [old, new] = groups.as_slice() else { panic!("{groups:?}") };
        for wanted in ["a_/b", "a/_b", "a___b", "dataset:a/_b"] {
            assert!(old.may_have_any(only(wanted)), "{wanted}");
        }
        assert!(!old.may_have_any(only("a/b")));
        assert!(new.may_have_any(only("dataset:x/y")) && !new.may_have_any(only("x/y")));
    }
}
