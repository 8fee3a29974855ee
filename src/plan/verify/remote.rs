//! Judges the bucket. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::local::{Row, completeness};
use super::{AffectedFile, Finding, Outcome, Place, Reason, Repair};
use crate::bucket::keys;
use crate::model::amount::Amount;
use crate::model::filter::PathFilter;
use crate::model::ids::{BlobId, Commit, RepoName};
use crate::model::manifest::Manifest;

/// Everything that the verdict on a bucket is based on.
#[derive(Debug, Default)]
pub struct Facts {
    /// Manifests by key; for one that is not valid, the reason.
    pub manifests: BTreeMap<String, Result<Arc<Manifest>, String>>,
    /// Faulty refs, by key.
    pub refs: BTreeMap<String, RefFault>,
    /// Faulty blobs, with their sizes according to the manifests.
    pub blobs: BTreeMap<(BlobId, u64), BlobFault>,
    /// Blobs that could not be checked.
    pub unchecked: BTreeSet<(BlobId, u64)>,
}

/// The possible faults of a ref.
#[derive(Debug, Clone)]
pub enum RefFault {
    /// Its content is not a commit.
    Bad(String),
    /// There is no manifest of the commit that it names.
    Dangling(Commit),
    /// The manifest of the commit that it names is this other repo's, so that nothing reads the ref.
    Foreign(Commit, RepoName),
}

/// The possible faults of a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlobFault {
    /// It is missing.
    Missing,
    /// It has this many bytes instead.
    Size(u64),
    /// Its bytes hash to another name.
    Corrupt(BlobId),
}

/// The verdict on a bucket.
#[derive(Debug, Default)]
pub struct Judgement {
    /// Every revision that was checked.
    pub revisions: Vec<Row>,
    /// What is wrong.
    pub findings: Vec<Finding>,
    /// Blobs that are right, as far as they were checked.
    pub verified: Amount,
}

/// Judges the facts.
pub fn judge(facts: &Facts) -> Judgement {
    let mut out = Judgement::default();
    let mut affected: BTreeMap<(BlobId, u64), BTreeMap<&RepoName, Vec<AffectedFile>>> = BTreeMap::new();
    for (key, manifest) in &facts.manifests {
        match manifest {
            Ok(manifest) => {
                for file in manifest.files() {
                    let file_of = AffectedFile { revision: manifest.revision().clone(), path: file.path.clone() };
                    let blob = affected.entry((file.blob, file.size)).or_default();
                    blob.entry(manifest.repo()).or_default().push(file_of);
                }
                out.revisions.push(row(manifest, facts));
            }
            Err(why) => {
                let repair = Repair::Push { named: None };
                out.findings.push(finding(None, Reason::BadManifest, key.clone(), why.clone(), repair));
            }
        }
    }
    out.revisions.sort_by(|a, b| (&a.repo, &a.revision).cmp(&(&b.repo, &b.revision)));
    for ((blob, size), repos) in affected {
        let Some(fault) = facts.blobs.get(&(blob, size)) else {
            if !facts.unchecked.contains(&(blob, size)) {
                out.verified.add(size);
            }
            continue;
        };
        let (reason, detail) = match fault {
            BlobFault::Missing => (Reason::Missing, "the manifest names it, but the bucket does not have it".into()),
            BlobFault::Size(found) => (Reason::WrongSize, format!("it has {found} bytes instead of {size}")),
            BlobFault::Corrupt(found) => (Reason::Corrupt, format!("its bytes hash to {found}")),
        };
        for (repo, files) in repos {
            let key = keys::blob(&blob);
            let new = finding(Some(repo.clone()), reason, key, detail.clone(), Repair::Upload { size });
            out.findings.push(Finding { blob: Some(blob), files, ..new });
        }
    }
    for (key, fault) in &facts.refs {
        let (reason, detail, named) = match fault {
            RefFault::Bad(why) => (Reason::BadRef, why.clone(), None),
            RefFault::Dangling(commit) => {
                let detail = format!("it names {}, which has no manifest", commit.short());
                (Reason::DanglingRef, detail, Some(commit.clone()))
            }
            RefFault::Foreign(commit, owner) => {
                let detail = format!("it names {}, whose manifest is that of {owner}", commit.short());
                (Reason::DanglingRef, detail, Some(commit.clone()))
            }
        };
        let repo = match keys::parse_ref(key) {
            Some(keys::RefKey::New(repo, _)) => Some(repo),
            _ => None,
        };
        out.findings.push(finding(repo, reason, key.clone(), detail, Repair::Push { named }));
    }
    out
}

fn finding(repo: Option<RepoName>, reason: Reason, key: String, detail: String, repair: Repair) -> Finding {
    let place = Place::Key(key);
    Finding { repo, reason, place, blob: None, files: Vec::new(), detail, outcome: Outcome::Found, repair }
}

fn row(manifest: &Manifest, facts: &Facts) -> Row {
    let damaged = manifest.files().iter().filter(|file| facts.blobs.contains_key(&(file.blob, file.size)));
    let damaged = damaged.map(|file| file.path.to_string()).collect();
    let is_unchecked = manifest.files().iter().any(|file| facts.unchecked.contains(&(file.blob, file.size)));
    let absent =
        manifest.tree().map(|_| manifest.missing_from_tree(&PathFilter::default()) + manifest.unportable_count());
    let (repo, revision) = (manifest.repo().clone(), manifest.revision().clone());
    Row { repo, revision, status: completeness(damaged, is_unchecked, absent), files: manifest.files().len(), absent }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    fn manifest(repo: &str, files: &[(&str, char)]) -> (String, Result<Arc<Manifest>, String>) {
        let file = |(path, digit): &(&str, char)| {
            format!("{{\"path\": \"{path}\", \"blob\": \"{}\", \"size\": 3}}", digit.to_string().repeat(40))
        };
        let files: Vec<String> = files.iter().map(file).collect();
        let text = format!("{{\"repo\": \"{repo}\", \"revision\": \"{COMMIT}\", \"files\": [{}]}}", files.join(", "));
        let manifest = Manifest::parse(text.as_bytes()).unwrap();
        (keys::manifest(&manifest.repo().id, manifest.revision()), Ok(Arc::new(manifest)))
    }

    fn blob(digit: char) -> (BlobId, u64) {
        (digit.to_string().repeat(40).parse().unwrap(), 3)
    }

    #[test]
    fn each_repo_that_needs_a_bad_blob_is_named_and_a_good_one_counts_once() {
        let manifests = [manifest("org/a", &[("x", '1'), ("y", '2')]), manifest("org/b", &[("z", '1'), ("w", '2')])];
        let blobs = [(blob('1'), BlobFault::Size(2))].into();
        let judged = judge(&Facts { manifests: manifests.into(), blobs, ..Facts::default() });
        let found: Vec<_> = judged.findings.iter().map(|one| (one.reason, one.files[0].path.as_str())).collect();
        assert_eq!(found, [(Reason::WrongSize, "x"), (Reason::WrongSize, "z")]);
        assert!(judged.findings.iter().all(|one| one.repair == Repair::Upload { size: 3 }));
        assert_eq!((judged.verified.blobs, judged.verified.bytes), (1, 3));
        assert!(judged.revisions.iter().all(|row| row.status.word() == "damaged"));
    }

    #[test]
    fn bad_manifests_and_refs_are_pushed_again() {
        let mut facts = Facts { unchecked: [blob('1')].into(), ..Facts::default() };
        facts.manifests.extend([manifest("org/a", &[("x", '1')])]);
        facts.manifests.insert("manifests/org__b@x.json".into(), Err("it is not JSON".into()));
        facts.refs.insert("refs-v2/datasets--org--c/main".into(), RefFault::Dangling(COMMIT.parse().unwrap()));
        let judged = judge(&facts);
        let reasons: Vec<_> = judged.findings.iter().map(|one| one.reason).collect();
        assert_eq!(reasons, [Reason::BadManifest, Reason::DanglingRef]);
        let repairs: Vec<_> = judged.findings.iter().map(|one| one.repair.clone()).collect();
        assert_eq!(repairs, [None, COMMIT.parse().ok()].map(|named| Repair::Push { named }));
        assert_eq!(judged.findings[1].repo.as_ref().unwrap().to_string(), "dataset:org/c");
        // An object that could not be checked is neither good nor bad.
        assert_eq!((judged.verified.blobs, judged.revisions[0].status.word()), (0, "unknown"));
    }
}
