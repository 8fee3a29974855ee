//! Which revisions the bucket provably holds. Pure: takes what this cache has, and one listing of the bucket with the
//! manifests and refs that were read.
//!
//! A revision is held if a pull would bring back every file and every ref that this cache has of it. Anything that is
//! not certain counts as not held.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use serde::Serialize;

use crate::bucket::keys;
use crate::bucket::read::Stored;
use crate::bucket::refs::Candidate;
use crate::bucket::state::RemoteState;
use crate::cache::identify::LocalFile;
use crate::cache::pushable::{Local, LocalRepo, LocalRevision};
use crate::model::ids::{BlobId, Commit, RefName, RepoName, RepoPath};
use crate::model::manifest::Manifest;

/// Which revisions of this cache the bucket holds. A revision that was not examined is not held.
#[derive(Debug, Clone, Default)]
pub struct Held(BTreeMap<(RepoName, Commit), Result<Proof, Lack>>);

/// The proof that the bucket holds a revision.
#[derive(Debug, Clone)]
pub struct Proof {
    /// Its manifest in the bucket.
    pub manifest: Arc<Manifest>,
    /// The keys of the refs that lead to it.
    pub refs: Vec<String>,
}

/// The part of a revision that the bucket lacks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "what", rename_all = "kebab-case")]
pub enum Lack {
    /// It is not known, since the bucket or the revision could not be examined.
    Unknown,
    /// A manifest.
    Manifest,
    /// A valid manifest.
    ValidManifest {
        /// What is wrong with the one it has.
        why: String,
    },
    /// A manifest of this repo: another repo has the same key.
    OwnManifest {
        /// The other repo.
        of: String,
    },
    /// Files, which its manifest does not list with the same content.
    Files {
        /// How many.
        count: usize,
        /// One of them.
        path: RepoPath,
    },
    /// Blobs of its manifest, which are missing or have the wrong size.
    Blobs {
        /// How many.
        count: usize,
        /// One of them.
        blob: BlobId,
    },
    /// A ref that names the revision here.
    Ref {
        /// Its name.
        name: RefName,
        /// The commit that it names in the bucket; `None` if it is not there.
        remote: Option<Commit>,
    },
    /// The whole repo: it looks gated, so that push and pull leave it out.
    Gated {
        /// The licence file.
        path: String,
    },
    /// An LFS/Xet pointer file, which push leaves out.
    Pointer {
        /// Its path.
        path: RepoPath,
    },
    /// Files that are not the commit's, which push leaves out.
    Strays {
        /// How many.
        count: usize,
        /// One of them, safe to print.
        path: String,
    },
    /// The revision as it is here: a file contradicts the commit's tree, or cannot be read.
    Damaged {
        /// Why.
        why: String,
    },
    /// What it had when it was listed: it has changed since.
    Changed,
}

impl Held {
    /// Examines every revision of this cache.
    pub fn examine(local: &Local, remote: &RemoteState) -> Held {
        let refs = RefIndex::new(remote);
        let revisions = local.repos.iter().flat_map(|repo| repo.revisions.iter().map(move |revision| (repo, revision)));
        let examined = revisions.map(|(repo, revision)| {
            let proof = prove(repo, revision, remote, &refs);
            ((repo.name.clone(), revision.commit.clone()), proof)
        });
        Held(examined.collect())
    }

    /// Notes that none of these revisions is held, for the same reason.
    pub fn refuse(&mut self, repo: &RepoName, commits: impl Iterator<Item = Commit>, lack: &Lack) {
        self.0.extend(commits.map(|commit| ((repo.clone(), commit), Err(lack.clone()))));
    }

    /// Returns the proof for a revision.
    pub fn proof(&self, repo: &RepoName, commit: &Commit) -> Option<&Proof> {
        self.0.get(&(repo.clone(), commit.clone()))?.as_ref().ok()
    }

    /// Returns what the bucket lacks of a revision; `None` if it holds all of it.
    pub fn lack(&self, repo: &RepoName, commit: &Commit) -> Option<Lack> {
        match self.0.get(&(repo.clone(), commit.clone())) {
            Some(Ok(_)) => None,
            Some(Err(lack)) => Some(lack.clone()),
            None => Some(Lack::Unknown),
        }
    }

    #[cfg(test)]
    pub fn of(examined: impl IntoIterator<Item = ((RepoName, Commit), Result<Proof, Lack>)>) -> Held {
        Held(examined.into_iter().collect())
    }
}

/// The bucket's ref keys, by encoded id and name.
pub(crate) struct RefIndex<'a>(HashMap<(&'a str, &'a RefName), Vec<&'a Candidate>>);

impl<'a> RefIndex<'a> {
    pub(crate) fn new(remote: &'a RemoteState) -> RefIndex<'a> {
        let mut index: HashMap<_, Vec<&Candidate>> = HashMap::new();
        for candidate in remote.refs() {
            index.entry((candidate.encoded.as_str(), &candidate.name)).or_default().push(candidate);
        }
        RefIndex(index)
    }

    /// Returns the keys that may be this ref of the repo.
    pub(crate) fn find(&self, repo: &RepoName, name: &RefName) -> impl Iterator<Item = &'a Candidate> {
        let encoded = keys::encoded(&repo.id);
        let all = self.0.get(&(encoded.as_str(), name)).cloned().unwrap_or_default();
        let repo = repo.clone();
        all.into_iter().filter(move |candidate| candidate.may_refer_to(&repo))
    }
}

fn prove(repo: &LocalRepo, revision: &LocalRevision, remote: &RemoteState, refs: &RefIndex<'_>) -> Result<Proof, Lack> {
    if let Some(error) = &revision.refused {
        return Err(Lack::Damaged { why: error.why.clone().unwrap_or_else(|| error.what.clone()) });
    }
    if let Some(path) = revision.broken.first() {
        return Err(Lack::Damaged { why: format!("{} cannot be read", crate::error::printable(path, 400)) });
    }
    if let Some(path) = revision.pointers.first() {
        return Err(Lack::Pointer { path: path.clone() });
    }
    let strays: Vec<&String> = revision.stray_files.iter().filter(|path| !is_compiled_python(path)).collect();
    if let Some(path) = strays.first() {
        return Err(Lack::Strays { count: strays.len(), path: path.to_string() });
    }
    let manifest = match remote.manifest(&keys::manifest(&repo.name.id, &revision.commit)) {
        None | Some(Stored::Absent) => return Err(Lack::Manifest),
        Some(Stored::Invalid(error)) => {
            return Err(Lack::ValidManifest { why: error.why.unwrap_or(error.what) });
        }
        Some(Stored::Valid(manifest)) => manifest,
    };
    if *manifest.repo() != repo.name {
        return Err(Lack::OwnManifest { of: manifest.repo().to_string() });
    }
    check_files(revision, &manifest)?;
    check_blobs(&manifest, remote)?;
    let own = repo.all_refs().filter(|(_, commit)| **commit == revision.commit);
    let keys = own.map(|(name, _)| check_ref(repo, &name, &revision.commit, remote, refs)).collect::<Result<_, _>>()?;
    Ok(Proof { manifest, refs: keys })
}

/// Python compiles modules again when it needs them.
fn is_compiled_python(path: &str) -> bool {
    path.split('/').any(|part| part == "__pycache__")
}

/// Every file that is here must be in the manifest, by a name of its bytes.
fn check_files(revision: &LocalRevision, manifest: &Manifest) -> Result<(), Lack> {
    let listed: HashMap<&RepoPath, (BlobId, u64)> =
        manifest.files().iter().map(|file| (&file.path, (file.blob, file.size))).collect();
    let is_listed = |local: &&LocalFile| {
        let names = [Some(local.file.blob), local.other];
        listed
            .get(&local.file.path)
            .is_some_and(|(blob, size)| *size == local.file.size && names.contains(&Some(*blob)))
    };
    let lacking: Vec<&LocalFile> = revision.files.iter().filter(|local| !is_listed(local)).collect();
    match lacking.first() {
        Some(first) => Err(Lack::Files { count: lacking.len(), path: first.file.path.clone() }),
        None => Ok(()),
    }
}

/// Every blob of the manifest must be there, not only those of files that are here: without one of them, a pull fails.
fn check_blobs(manifest: &Manifest, remote: &RemoteState) -> Result<(), Lack> {
    let lacking = manifest.files().iter().filter(|file| !remote.blobs().has(&file.blob, file.size));
    let lacking: BTreeSet<BlobId> = lacking.map(|file| file.blob).collect();
    match lacking.first() {
        Some(first) => Err(Lack::Blobs { count: lacking.len(), blob: *first }),
        None => Ok(()),
    }
}

/// The ref that a pull would follow must lead to the commit. Returns its key.
fn check_ref(
    repo: &LocalRepo,
    name: &RefName,
    commit: &Commit,
    remote: &RemoteState,
    refs: &RefIndex<'_>,
) -> Result<String, Lack> {
    let mut winner: Option<(&Candidate, Commit)> = None;
    for candidate in refs.find(&repo.name, name) {
        let Some(target) = remote.reference(&candidate.object.key).and_then(Stored::valid) else { continue };
        let manifest = remote.manifest(&keys::manifest(&repo.name.id, &target)).and_then(Stored::valid);
        if manifest.is_some_and(|manifest| *manifest.repo() == repo.name)
            && winner.as_ref().is_none_or(|(known, _)| candidate.supersedes(known))
        {
            winner = Some((candidate, target));
        }
    }
    match winner {
        Some((candidate, target)) if target == *commit => Ok(candidate.object.key.clone()),
        other => Err(Lack::Ref { name: name.clone(), remote: other.map(|(_, target)| target) }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bucket::client::Object;
    use crate::cache::identify::Source;
    use crate::model::ids::{RepoQuery, RepoType};
    use crate::model::manifest::ManifestFile;
    use proptest::prelude::*;
    use std::time::{Duration, SystemTime};

    fn commit(digit: u8) -> Commit {
        digit.to_string().repeat(40).parse().unwrap()
    }

    fn blob(digit: u8) -> BlobId {
        digit.to_string().repeat(40).parse().unwrap()
    }

    fn repo(text: &str) -> RepoName {
        let query: RepoQuery = text.parse().unwrap();
        RepoName::new(query.kind.unwrap_or(RepoType::Model), query.id)
    }

    /// Files by path, blob and size, all of one digit.
    fn files(of: &[(u8, u8, u8)]) -> Vec<ManifestFile> {
        let file = |(path, digit, size): &(u8, u8, u8)| ManifestFile {
            path: format!("file-{path}").parse().unwrap(),
            blob: blob(*digit),
            size: u64::from(*size),
        };
        of.iter().map(file).collect()
    }

    fn local(name: &RepoName, of: &[(u8, u8, u8)], refs: &[(&str, u8)]) -> Local {
        let files =
            files(of).into_iter().map(|file| LocalFile { file, source: Source::Snapshot, other: None }).collect();
        let repo = LocalRepo {
            name: name.clone(),
            gated: None,
            revisions: vec![LocalRevision::new(name, commit(1), files, None)],
            refs: refs.iter().map(|(name, digit)| (name.parse().unwrap(), commit(*digit))).collect(),
            pins: Default::default(),
            unused: 0,
        };
        Local { repos: vec![repo], ..Local::default() }
    }

    /// A bucket: manifests by repo, commit and files; refs by key, commit and time; blobs with their sizes.
    fn remote(
        manifests: &[(RepoName, u8, Vec<ManifestFile>)],
        refs: &[(String, u8, u64)],
        blobs: &[(u8, u8)],
    ) -> RemoteState {
        let object = |key: String, size: u64, second: u64| {
            let modified = Some(SystemTime::UNIX_EPOCH + Duration::from_secs(second));
            Object { key, size, etag: None, modified }
        };
        let keys_of = |(repo, digit, _): &(RepoName, u8, _)| keys::manifest(&repo.id, &commit(*digit));
        let objects = manifests.iter().map(|one| object(keys_of(one), 9, 1));
        let objects = objects.chain(refs.iter().map(|(key, _, second)| object(key.clone(), 40, *second)));
        let blobs = blobs.iter().map(|(digit, size)| object(keys::blob(&blob(*digit)), u64::from(*size), 1));
        let state = RemoteState::new(objects.chain(blobs));
        for one in manifests {
            let (repo, digit, files) = one.clone();
            let manifest = Manifest::new(repo, commit(digit), files, None).unwrap();
            state.keep_manifest(&keys_of(one), Stored::Valid(Arc::new(manifest)));
        }
        for (key, digit, _) in refs {
            state.keep_ref(key, Stored::Valid(commit(*digit)));
        }
        state
    }

    fn lack(local: &Local, remote: &RemoteState) -> Option<Lack> {
        Held::examine(local, remote).lack(&local.repos[0].name, &commit(1))
    }

    #[test]
    fn the_ref_that_a_pull_would_follow_decides() {
        let (data, model) = (repo("dataset:org/name"), repo("org/name"));
        let here = local(&data, &[(1, 1, 5)], &[("main", 1)]);
        let (old, new) = ("refs/org__name/main".to_string(), "refs-v2/datasets--org--name/main".to_string());
        let manifests = [
            (data.clone(), 1, files(&[(1, 1, 5)])),
            (data.clone(), 2, files(&[(1, 1, 5)])),
            (model, 3, files(&[(1, 1, 5)])),
        ];
        for (refs, held) in [
            (vec![(old.clone(), 1, 1)], true),
            (vec![(new.clone(), 1, 1)], true),
            (vec![], false),
            // A later push by 0.1.0 wins over a key of ours that is out of date, and the other way round.
            (vec![(old.clone(), 1, 2), (new.clone(), 2, 1)], true),
            (vec![(old.clone(), 2, 2), (new.clone(), 1, 1)], false),
            (vec![(old.clone(), 2, 1), (new.clone(), 1, 2)], true),
            // The old key is the model's.
            (vec![(old.clone(), 3, 2), (new.clone(), 1, 1)], true),
            (vec![(old.clone(), 3, 2)], false),
            // It leads nowhere.
            (vec![(old.clone(), 7, 2)], false),
        ] {
            let state = remote(&manifests, &refs, &[(1, 5)]);
            assert_eq!(lack(&here, &state).is_none(), held, "{refs:?}");
        }
    }

    proptest! {
        /// A proof means that a pull brings back every file with its content, from blobs that are all there.
        #[test]
        fn a_proof_is_complete(
            here in prop::collection::btree_map(0u8..4, 0u8..3, 0..4),
            there in prop::option::of(prop::collection::btree_map(0u8..4, 0u8..3, 1..5)),
            blobs in prop::collection::btree_map(0u8..3, 0u8..3, 0..4),
            is_of_another in prop::bool::weighted(0.1),
            refs in prop::collection::btree_map("main|v1|v2", 1u8..3, 0..3),
            remote_refs in prop::collection::btree_map("main|v1|v2", 1u8..3, 0..4),
        ) {
            // The size of a blob that is right is its digit.
            let as_files = |of: &BTreeMap<u8, u8>| of.iter().map(|(path, digit)| (*path, *digit, *digit)).collect::<Vec<_>>();
            let (model, other) = (repo("org/name"), repo("dataset:org/name"));
            let local_refs: Vec<(&str, u8)> = refs.iter().map(|(name, digit)| (name.as_str(), *digit)).collect();
            let here_files = as_files(&here);
            let local = local(&model, &here_files, &local_refs);
            let owner = if is_of_another { other } else { model.clone() };
            let mut manifests: Vec<_> = there.iter().map(|there| (owner.clone(), 1, files(&as_files(there)))).collect();
            manifests.push((model, 2, files(&[(0, 0, 0)])));
            let keys: Vec<_> =
                remote_refs.iter().map(|(name, digit)| (format!("refs/org__name/{name}"), *digit, 1)).collect();
            let blobs: Vec<(u8, u8)> = blobs.into_iter().collect();
            let state = remote(&manifests, &keys, &blobs);

            let brings_back = there.as_ref().is_some_and(|there| {
                let arrives = |digit: &u8| blobs.contains(&(*digit, *digit));
                !is_of_another
                    && there.values().all(arrives)
                    && here.iter().all(|(path, digit)| there.get(path) == Some(digit))
                    && refs.iter().filter(|(_, digit)| **digit == 1).all(|(name, _)| remote_refs.get(name) == Some(&1))
            });
            prop_assert_eq!(lack(&local, &state).is_none(), brings_back);
        }
    }
}
