//! Which repos a ref key may refer to, and which of a ref's keys takes precedence. Pure: callers do the I/O.
//!
//! A ref has up to two keys: `refs/<id>/<ref>`, which 0.1.0 knows, and `refs-v2/<folder>/<ref>`. The first may refer to
//! several repos (`a_/b` and `a/_b`; a model and a dataset with the same id), but never to a kernel, which 0.1.0 would
//! install as a model. The second refers to exactly one repo. So each listed key is a [`Candidate`]:
//!
//! - It counts for a repo only if the key may refer to that repo ([`Candidate::may_refer_to`]) and the manifest of the
//!   commit in the ref names that repo.
//! - Of those that count, the last one written wins ([`Candidate::supersedes`]), so that a newer push by 0.1.0 is never
//!   hidden.
//!
//! [`keys_to_write`] says which keys a push writes; [`keys::is_shared_ref`] says which of them may belong to another
//! repo, from which a push must not take them.

use super::client::Object;
use super::keys::{self, RefKey};
use crate::model::ids::{RefName, RepoName, RepoType};

/// A listed ref key.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// The key as listed.
    pub object: Object,
    /// The ref.
    pub name: RefName,
    /// The encoded id, as in 0.1.0's keys and in the key of the manifest that the ref leads to.
    pub encoded: String,
    /// The repo that a key under `refs-v2/` names; `None` for 0.1.0's keys, which may refer to several.
    pub repo: Option<RepoName>,
}

impl Candidate {
    /// Parses a listed object as a ref; `None` if its key is not a ref key.
    pub fn of(object: Object) -> Option<Candidate> {
        let (encoded, repo, name) = match keys::parse_ref(&object.key)? {
            RefKey::Old(encoded, name) => (encoded.to_string(), None, name),
            RefKey::New(repo, name) => (keys::encoded(&repo.id), Some(repo), name),
        };
        Some(Candidate { object, name, encoded, repo })
    }

    /// Whether the key may refer to this repo. It does if the manifest that it leads to is this repo's.
    pub fn may_refer_to(&self, repo: &RepoName) -> bool {
        match &self.repo {
            Some(named) => named == repo,
            None => has_old_key(repo) && keys::encoded(&repo.id) == self.encoded,
        }
    }

    /// Whether this key takes precedence over another key of the same ref. The later write wins; 0.1.0's key breaks ties.
    pub fn supersedes(&self, other: &Candidate) -> bool {
        let rank = |candidate: &Candidate| (candidate.object.modified, candidate.repo.is_none());
        rank(self) > rank(other)
    }
}

/// The keys that a ref of this repo may be written to.
pub fn keys_to_write(repo: &RepoName, name: &RefName) -> impl Iterator<Item = String> + use<> {
    let old = has_old_key(repo).then(|| keys::old_ref(&repo.id, name));
    let new = (!keys::is_plain(repo)).then(|| keys::new_ref(repo, name));
    old.into_iter().chain(new)
}

/// Whether 0.1.0's keys may refer to the repo. 0.1.0 would install a kernel as a model.
fn has_old_key(repo: &RepoName) -> bool {
    repo.kind != RepoType::Kernel
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ids::RepoQuery;
    use std::time::{Duration, SystemTime};

    fn candidate(key: &str, second: Option<u64>) -> Candidate {
        let modified = second.map(|second| SystemTime::UNIX_EPOCH + Duration::from_secs(second));
        Candidate::of(Object { key: key.into(), size: 40, etag: None, modified }).unwrap()
    }

    fn repo(text: &str) -> RepoName {
        let query: RepoQuery = text.parse().unwrap();
        RepoName::new(query.kind.unwrap_or(RepoType::Model), query.id)
    }

    #[test]
    fn old_keys_may_refer_to_several_repos_but_never_to_a_kernel() {
        let repos = ["a_/b", "a/_b", "a___b", "dataset:a/_b", "space:a_/b", "kernel:a/_b", "a/b", "gpt2"];
        for (key, expected) in [
            ("refs/a___b/main", &repos[..5]),
            ("refs/a__b/v1.0", &["a/b"]),
            ("refs/gpt2/refs/pr/1", &["gpt2"]),
            ("refs-v2/models--a--_b/main", &["a/_b"]),
            ("refs-v2/datasets--a--_b/main", &["dataset:a/_b"]),
            ("refs-v2/kernels--a--_b/main", &["kernel:a/_b"]),
        ] {
            let candidate = candidate(key, None);
            let possible: Vec<&str> = repos.into_iter().filter(|name| candidate.may_refer_to(&repo(name))).collect();
            assert_eq!(possible, expected, "{key}");
        }
    }

    #[test]
    fn the_last_write_wins_and_the_0_1_0_key_breaks_ties() {
        for (old, new, old_wins) in [
            (Some(2), Some(1), true),
            (Some(1), Some(2), false),
            (Some(1), Some(1), true),
            (None, None, true),
            (Some(1), None, true),
            (None, Some(1), false),
        ] {
            let (old, new) = (candidate("refs/a__b/main", old), candidate("refs-v2/datasets--a--b/main", new));
            assert_eq!((old.supersedes(&new), new.supersedes(&old)), (old_wins, !old_wins), "{old:?} {new:?}");
        }
    }

    #[test]
    fn repos_that_0_1_0_would_misread_get_their_own_key() {
        for (name, keys) in [
            ("org/name", &["refs/org__name/main"][..]),
            ("dataset:org/name", &["refs/org__name/main", "refs-v2/datasets--org--name/main"]),
            ("a_/b", &["refs/a___b/main", "refs-v2/models--a_--b/main"]),
            ("kernel:org/name", &["refs-v2/kernels--org--name/main"]),
        ] {
            let repo = repo(name);
            let written: Vec<String> = keys_to_write(&repo, &RefName::main()).collect();
            assert_eq!(written, keys, "{name}");
            // Every key that is written is also read.
            assert!(written.iter().all(|key| candidate(key, None).may_refer_to(&repo)), "{name}");
        }
    }
}
