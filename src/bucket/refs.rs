//! Which repo a ref key means, and which of the keys of one ref counts. Pure: whoever reads refs does the requests and
//! asks here.
//!
//! A ref has up to two keys: `refs/<id>/<ref>`, as 0.1.0 knows it, and `refs-v2/<folder>/<ref>`. The first may mean
//! several repos (`a_/b` and `a/_b`; a model and a dataset of one id), but never a kernel, which 0.1.0 would install as
//! a model. The second means one. So each listed key is a [`Candidate`]:
//!
//! - It counts for a repo only when the manifest that it leads to, the one of the commit that it says, names the repo,
//!   and the repo is one that the key may mean ([`Candidate::may_mean`]).
//! - Of those that count, the one that was written last wins ([`Candidate::outdoes`]), so that a newer push by 0.1.0 is
//!   never hidden.
//!
//! Which keys a push writes: [`keys_to_write`]; which of them it must not take from another repo:
//! [`keys::is_shared_ref`].

use super::client::Object;
use super::keys::{self, RefKey};
use crate::model::ids::{RefName, RepoName, RepoType};

/// A listed key of a ref.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// The key as listed.
    pub object: Object,
    /// The ref.
    pub name: RefName,
    /// The id as it stands in 0.1.0's keys: also that of the manifest that the ref leads to.
    pub encoded: String,
    /// The repo that a key under `refs-v2/` names; none for 0.1.0's, which may mean several.
    pub repo: Option<RepoName>,
}

impl Candidate {
    /// A listed object as a ref; `None` when its key is none.
    pub fn of(object: Object) -> Option<Candidate> {
        let (encoded, repo, name) = match keys::parse_ref(&object.key)? {
            RefKey::Old(encoded, name) => (encoded.to_string(), None, name),
            RefKey::New(repo, name) => (keys::encoded(&repo.id), Some(repo), name),
        };
        Some(Candidate { object, name, encoded, repo })
    }

    /// Whether the key may mean this repo. It does when the manifest that it leads to is this repo's.
    pub fn may_mean(&self, repo: &RepoName) -> bool {
        match &self.repo {
            Some(named) => named == repo,
            None => has_old_key(repo) && keys::encoded(&repo.id) == self.encoded,
        }
    }

    /// Whether this key wins over another one that counts for the same ref: the later one does, and 0.1.0's where the
    /// listing does not tell.
    pub fn outdoes(&self, other: &Candidate) -> bool {
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

/// Whether 0.1.0's keys may mean the repo. It would install a kernel as a model.
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
    fn a_key_may_mean_what_it_says_and_0_1_0_s_no_kernel() {
        let repos = ["a_/b", "a/_b", "a___b", "dataset:a/_b", "space:a_/b", "kernel:a/_b", "a/b", "gpt2"];
        for (key, meant) in [
            ("refs/a___b/main", &repos[..5]),
            ("refs/a__b/v1.0", &["a/b"]),
            ("refs/gpt2/refs/pr/1", &["gpt2"]),
            ("refs-v2/models--a--_b/main", &["a/_b"]),
            ("refs-v2/datasets--a--_b/main", &["dataset:a/_b"]),
            ("refs-v2/kernels--a--_b/main", &["kernel:a/_b"]),
        ] {
            let candidate = candidate(key, None);
            let means: Vec<&str> = repos.into_iter().filter(|name| candidate.may_mean(&repo(name))).collect();
            assert_eq!(means, meant, "{key}");
        }
    }

    #[test]
    fn the_last_written_wins_and_0_1_0_s_when_that_is_not_told() {
        for (old, new, old_wins) in [
            (Some(2), Some(1), true),
            (Some(1), Some(2), false),
            (Some(1), Some(1), true),
            (None, None, true),
            (Some(1), None, true),
            (None, Some(1), false),
        ] {
            let (old, new) = (candidate("refs/a__b/main", old), candidate("refs-v2/datasets--a--b/main", new));
            assert_eq!((old.outdoes(&new), new.outdoes(&old)), (old_wins, !old_wins), "{old:?} {new:?}");
        }
    }

    #[test]
    fn what_0_1_0_would_misread_has_a_key_of_its_own() {
        for (name, keys) in [
            ("org/name", &["refs/org__name/main"][..]),
            ("dataset:org/name", &["refs/org__name/main", "refs-v2/datasets--org--name/main"]),
            ("a_/b", &["refs/a___b/main", "refs-v2/models--a_--b/main"]),
            ("kernel:org/name", &["refs-v2/kernels--org--name/main"]),
        ] {
            let repo = repo(name);
            let written: Vec<String> = keys_to_write(&repo, &RefName::main()).collect();
            assert_eq!(written, keys, "{name}");
            // What is written is also read.
            assert!(written.iter().all(|key| candidate(key, None).may_mean(&repo)), "{name}");
        }
    }
}
