//! Every repo whose `main` is in the bucket, with the manifest that it leads to.
//!
//! One LIST names the refs. Keys that may mean the same repo (`refs/` and `refs-v2/`, and ids that are encoded alike)
//! are read together, several such groups at once: a candidate counts only when its manifest names the repo, and of
//! those that count the one written last wins.

use std::collections::{HashMap, HashSet};
use std::time::SystemTime;

use futures_util::{StreamExt, stream};

use super::client::{Bucket, Object};
use super::keys::{self, RefKey};
use super::lookup::{Found, read_manifest, read_ref};
use crate::error::{Error, Kind, Result};
use crate::ids::{RefName, RepoName, RepoQuery, RepoType};
use crate::manifest::Manifest;

/// Groups that are read at once.
const AT_ONCE: usize = 32;

/// A repo, or a ref of which cannot be told what it leads to.
#[derive(Debug)]
pub struct Main {
    /// The key of its ref.
    pub key: String,
    /// The repo, as far as it is known: all of it once its manifest was read, else what its key says.
    pub query: Option<RepoQuery>,
    /// The revision, or what is wrong with it.
    pub found: Result<Found>,
}

/// What was found.
#[derive(Debug, Default)]
pub struct Mains {
    /// In the order of the listing, 0.1.0's refs first.
    pub all: Vec<Main>,
    /// Whether the bucket has any `main` at all.
    pub any: bool,
}

/// Finds the repos that `allows` lets through, `limit` at the most.
///
/// # Errors
/// When the bucket cannot be listed, or the credentials are not accepted. What is wrong with a single repo is in its
/// [`Main`].
pub async fn find(bucket: &Bucket, allows: impl Fn(&RepoName) -> bool, limit: Option<usize>) -> Result<Mains> {
    let doing = format!("cannot list the refs in bucket '{}'", bucket.name());
    let objects = bucket.list(keys::ALL_REFS).await.map_err(|failure| bucket.explain(failure, &doing))?;
    let groups = groups(&objects);
    let limit = limit.unwrap_or(usize::MAX);
    let mut mains = Mains { all: Vec::new(), any: !groups.is_empty() };
    let wanted = groups.into_iter().filter(|group| group.may_be_any(&allows));
    let mut read = stream::iter(wanted).map(|group| read_group(bucket, group)).buffered(AT_ONCE.min(limit.max(1)));
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
#[derive(Debug, PartialEq, Eq)]
struct Group {
    encoded: String,
    refs: Vec<Candidate>,
}

/// A ref.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Candidate {
    key: String,
    /// The repo that a key of ours names; 0.1.0's may mean several.
    repo: Option<RepoName>,
    modified: Option<SystemTime>,
}

/// Sorts the listed refs named `main` into groups; those that 0.1.0 sees come first, as it has them.
fn groups(objects: &[Object]) -> Vec<Group> {
    let main = RefName::main();
    let (mut old, mut new) = (Vec::new(), Vec::new());
    for object in objects {
        let candidate = |repo| Candidate { key: object.key.clone(), repo, modified: object.modified };
        match keys::parse_ref(&object.key) {
            Some(RefKey::Old(encoded, name)) if name == main => old.push((encoded.to_string(), candidate(None))),
            Some(RefKey::New(repo, name)) if name == main => {
                new.push((keys::encoded(&repo.id), candidate(Some(repo))));
            }
            _ => {}
        }
    }
    let mut groups: Vec<Group> = Vec::new();
    let mut places: HashMap<String, usize> = HashMap::new();
    for (encoded, candidate) in old.into_iter().chain(new) {
        let place = *places.entry(encoded.clone()).or_insert_with(|| {
            groups.push(Group { encoded, refs: Vec::new() });
            groups.len() - 1
        });
        groups[place].refs.push(candidate);
    }
    groups
}

impl Group {
    /// Whether a repo of this group may be wanted, as far as the keys tell.
    fn may_be_any(&self, allows: impl Fn(&RepoName) -> bool) -> bool {
        let named = self.refs.iter().filter_map(|candidate| candidate.repo.as_ref());
        let ids = keys::possible_ids(&self.encoded);
        let possible = ids.iter().flat_map(|id| RepoType::ALL.map(|kind| RepoName::new(kind, id.clone())));
        let open = self.refs.iter().any(|candidate| candidate.repo.is_none());
        named.into_iter().any(&allows) || (open && possible.into_iter().any(|repo| allows(&repo)))
    }
}

async fn read_group(bucket: &Bucket, group: Group) -> Result<Vec<Main>> {
    let mut mains: Vec<Main> = Vec::new();
    let mut newest: HashMap<RepoName, Option<SystemTime>> = HashMap::new();
    let mut told = HashSet::new();
    for candidate in &group.refs {
        match read(bucket, &group.encoded, candidate).await {
            Ok(Some(manifest)) => {
                let repo = manifest.repo.clone();
                let query = Some(RepoQuery { kind: Some(repo.kind), id: repo.id.clone() });
                let found = Found { manifest, reference: Some(RefName::main()), notes: Vec::new() };
                let main = Main { key: candidate.key.clone(), query: query.clone(), found: Ok(found) };
                match newest.get(&repo) {
                    None => mains.push(main),
                    Some(known) if candidate.modified > *known => {
                        let earlier = mains.iter_mut().find(|known| known.found.is_ok() && known.query == query);
                        *earlier.expect("it was put there") = main;
                    }
                    Some(_) => continue,
                }
                newest.insert(repo, candidate.modified);
            }
            Ok(None) => {}
            Err(error) if error.kind == Kind::Credentials => return Err(error),
            Err(error) => {
                let query = match &candidate.repo {
                    Some(repo) => Some(RepoQuery { kind: Some(repo.kind), id: repo.id.clone() }),
                    None => keys::plain_id(&group.encoded).map(|id| RepoQuery { kind: None, id }),
                };
                // Both keys of a repo may lead to the same bad manifest.
                if told.insert(error.what.clone()) {
                    mains.push(Main { key: candidate.key.clone(), query, found: Err(error) });
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
async fn read(bucket: &Bucket, encoded: &str, candidate: &Candidate) -> Result<Option<Manifest>> {
    let Some(commit) = read_ref(bucket, &candidate.key).await? else { return Ok(None) };
    let key = keys::manifest_of(encoded, &commit);
    let Some(manifest) = read_manifest(bucket, &key).await? else {
        return Err(Error::not_found(format!("the ref {} leads nowhere", candidate.key))
            .because(format!("the manifest {key} is not in the bucket"))
            .hint("push the revision again from a machine that has it"));
    };
    // 0.1.0 never installs a kernel, so its key never means one.
    let counts = match &candidate.repo {
        Some(repo) => *repo == manifest.repo,
        None => manifest.repo.kind != RepoType::Kernel,
    };
    Ok(Some(manifest).filter(|_| counts))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(keys: &[&str]) -> Vec<Object> {
        keys.iter().map(|key| Object { key: key.to_string(), size: 40, etag: None, modified: None }).collect()
    }

    #[test]
    fn keys_that_may_mean_one_repo_are_read_together() {
        let objects = listing(&[
            "refs-v2/datasets--a--b/main",
            "refs-v2/kernels--k/main",
            "refs-v2/models--a--b/v1.0",
            "refs/a__b/main",
            "refs/a__b/refs/main",
            "refs/gpt2/main",
            "refs/gpt2/v1",
            "refs/stray",
        ]);
        let groups = groups(&objects);
        let keys: Vec<Vec<&str>> =
            groups.iter().map(|group| group.refs.iter().map(|candidate| candidate.key.as_str()).collect()).collect();
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
        let groups = groups(&listing(&["refs-v2/datasets--x--y/main", "refs/a___b/main"]));
        let [old, new] = groups.as_slice() else { panic!("{groups:?}") };
        for wanted in ["a_/b", "a/_b", "a___b", "dataset:a/_b"] {
            assert!(old.may_be_any(only(wanted)), "{wanted}");
        }
        assert!(!old.may_be_any(only("a/b")));
        assert!(new.may_be_any(only("dataset:x/y")) && !new.may_be_any(only("x/y")));
    }
}
