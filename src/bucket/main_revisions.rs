//! Every repo whose `main` is in the bucket, with the manifest that it leads to.
//!
//! One LIST names the refs. Keys that may mean the same repo (`refs/` and `refs-v2/`, and ids that are encoded alike)
//! are read together, several such groups at once. Which of them count: [`super::refs`].

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use futures_util::{StreamExt, stream};

use super::client::Bucket;
use super::keys;
use super::refs::Candidate;
use super::state::{RemoteState, Scope};
use crate::error::{Error, Result};
use crate::model::found::Found;
use crate::model::ids::{RefName, RepoName, RepoQuery, RepoType};
use crate::model::manifest::Manifest;

/// Groups that are read at once.
const AT_ONCE: usize = 32;

/// A repo, or a ref of which cannot be told what it leads to.
#[derive(Debug)]
pub struct MainRevision {
    /// The key of its ref.
    pub key: String,
    /// The repo, as far as it is known: all of it once its manifest was read, else what its key says.
    pub query: Option<RepoQuery>,
    /// The revision, or what is wrong with it.
    pub found: Result<Found>,
}

/// What was found.
#[derive(Debug, Default)]
pub struct MainRevisions {
    /// In the order of the listing, 0.1.0's refs first.
    pub all: Vec<MainRevision>,
    /// Whether the bucket has any `main` at all.
    pub any: bool,
}

/// Finds the repos that `allows` lets through, `limit` at the most.
///
/// # Errors
/// When the bucket cannot be listed, or the credentials are not accepted. What is wrong with a single repo is in its
/// [`MainRevision`].
pub async fn find(bucket: &Bucket, allows: impl Fn(&RepoName) -> bool, limit: Option<usize>) -> Result<MainRevisions> {
    let doing = format!("cannot list the refs in bucket '{}'", bucket.name());
    let listed = RemoteState::list(bucket, Scope::REFS).await;
    let state = &listed.map_err(|failure| bucket.explain(failure, &doing))?;
    let groups = groups(state.refs());
    let limit = limit.unwrap_or(usize::MAX);
    let mut mains = MainRevisions { all: Vec::new(), any: !groups.is_empty() };
    let wanted = groups.into_iter().filter(|group| group.may_be_any(&allows));
    let mut read =
        stream::iter(wanted).map(|group| read_group(bucket, state, group)).buffered(AT_ONCE.min(limit.max(1)));
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

/// Refs whose repos are encoded alike.
#[derive(Debug)]
struct Group<'a> {
    encoded: &'a str,
    refs: Vec<&'a Candidate>,
}

/// Sorts the listed refs named `main` into groups; those that 0.1.0 sees come first, as it has them.
fn groups(refs: &[Candidate]) -> Vec<Group<'_>> {
    let main = RefName::main();
    let (old, new): (Vec<_>, Vec<_>) =
        refs.iter().filter(|candidate| candidate.name == main).partition(|candidate| candidate.repo.is_none());
    let mut groups: Vec<Group<'_>> = Vec::new();
    let mut places: HashMap<&str, usize> = HashMap::new();
    for candidate in old.into_iter().chain(new) {
        let place = *places.entry(&candidate.encoded).or_insert_with(|| {
            groups.push(Group { encoded: &candidate.encoded, refs: Vec::new() });
            groups.len() - 1
        });
        groups[place].refs.push(candidate);
    }
    groups
}

impl Group<'_> {
    /// Whether a repo of this group may be wanted, as far as the keys tell.
    fn may_be_any(&self, allows: impl Fn(&RepoName) -> bool) -> bool {
        let named = self.refs.iter().filter_map(|candidate| candidate.repo.as_ref());
        let ids = keys::possible_ids(self.encoded);
        let possible = ids.iter().flat_map(|id| RepoType::ALL.map(|kind| RepoName::new(kind, id.clone())));
        let open = self.refs.iter().any(|candidate| candidate.repo.is_none());
        named.into_iter().any(&allows) || (open && possible.into_iter().any(|repo| allows(&repo)))
    }
}

async fn read_group(bucket: &Bucket, state: &RemoteState, group: Group<'_>) -> Result<Vec<MainRevision>> {
    let mut mains: Vec<MainRevision> = Vec::new();
    let mut newest: HashMap<RepoName, &Candidate> = HashMap::new();
    let mut told = HashSet::new();
    for candidate in group.refs {
        match read(bucket, state, candidate).await {
            Ok(Some(manifest)) => {
                let manifest = Arc::unwrap_or_clone(manifest);
                let repo = manifest.repo.clone();
                let query = Some(RepoQuery { kind: Some(repo.kind), id: repo.id.clone() });
                let found = Found { manifest, reference: Some(RefName::main()), pinned: false, notes: Vec::new() };
                let main = MainRevision { key: candidate.object.key.clone(), query: query.clone(), found: Ok(found) };
                match newest.get(&repo) {
                    None => mains.push(main),
                    Some(known) if candidate.outdoes(known) => {
                        let earlier = mains.iter_mut().find(|known| known.found.is_ok() && known.query == query);
                        *earlier.expect("it was put there") = main;
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
                // Both keys of a repo may lead to the same bad manifest.
                if told.insert(error.what.clone()) {
                    mains.push(MainRevision { key: candidate.object.key.clone(), query, found: Err(error) });
                }
            }
        }
    }
    // What one key has lost, the other may still have.
    let has = |query: &RepoQuery| query.kind.is_some() && newest.keys().any(|repo| query.matches(repo));
    mains.retain(|main| main.found.is_ok() || !main.query.as_ref().is_some_and(has));
    Ok(mains)
}

/// The manifest that a ref leads to; `None` when it is not of a repo that the ref may name, or the ref is gone.
async fn read(bucket: &Bucket, state: &RemoteState, candidate: &Candidate) -> Result<Option<Arc<Manifest>>> {
    let stored = state.read_ref(bucket, &candidate.object.key).await?;
    let Some(commit) = stored.checked()? else { return Ok(None) };
    let key = keys::manifest_of(&candidate.encoded, &commit);
    let Some(manifest) = state.read_manifest(bucket, &key).await?.checked()? else {
        return Err(Error::not_found(format!("the ref {} leads nowhere", candidate.object.key))
            .because(format!("the manifest {key} is not in the bucket"))
            .hint("push the revision again from a machine that has it"));
    };
    Ok(Some(manifest).filter(|manifest| candidate.may_mean(&manifest.repo)))
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
    fn keys_that_may_mean_one_repo_are_read_together() {
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
    fn a_group_is_left_unread_only_when_no_repo_of_it_is_wanted() {
        let only = |wanted: &'static str| move |repo: &RepoName| repo.to_string() == wanted;
        let state = listed(&["refs-v2/datasets--x--y/main", "refs/a___b/main"]);
        let groups = groups(state.refs());
        let [old, new] = groups.as_slice() else { panic!("{groups:?}") };
        for wanted in ["a_/b", "a/_b", "a___b", "dataset:a/_b"] {
            assert!(old.may_be_any(only(wanted)), "{wanted}");
        }
        assert!(!old.may_be_any(only("a/b")));
        assert!(new.may_be_any(only("dataset:x/y")) && !new.may_be_any(only("x/y")));
    }
}
