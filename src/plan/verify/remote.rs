//! Judges the bucket.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::local::{Row, completeness};
use super::{AffectedFile, Finding, Outcome, Place, Reason, Repair};
use crate::bucket::keys;
use crate::model::amount::Amount;
use crate::model::filter::PathFilter;
use crate::model::ids::{BlobId, Commit, RepoName};
use crate::model::manifest::Manifest;

/// Everything that the check of a bucket is based on.
#[derive(Debug, Default)]
pub struct Facts {
    /// Manifests by key; for one that is not valid, the reason.
    pub manifests: BTreeMap<String, Result<Arc<Manifest>, String>>,
    /// Refs that are not as they should be, by key.
    pub refs: BTreeMap<String, RefFault>,
    /// Blobs, with the sizes that manifests say, that are not as they should be.
    pub blobs: BTreeMap<(BlobId, u64), BlobFault>,
    /// Blobs that could not be checked.
    pub unchecked: Vec<(BlobId, u64)>,
}

/// What can be wrong about a ref.
#[derive(Debug, Clone)]
pub enum RefFault {
    /// Its content is not a commit.
    Bad(String),
    /// There is no manifest of the commit that it names.
    Dangling(Commit),
}

/// What can be wrong about a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlobFault {
    /// It is not there.
    Missing,
    /// It has this many bytes.
    Size(u64),
    /// Its bytes have another name.
    Corrupt(BlobId),
}

/// The judgement.
#[derive(Debug, Default)]
pub struct Judgement {
    /// Every revision that was checked.
    pub revisions: Vec<Row>,
    /// What is not as it should be.
    pub findings: Vec<Finding>,
    /// Blobs that are as they should be, as far as was checked.
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
            Err(why) => out.findings.push(finding(None, Reason::BadManifest, key.clone(), why.clone(), Repair::Push)),
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
        let (reason, detail) = match fault {
            RefFault::Bad(why) => (Reason::BadRef, why.clone()),
            RefFault::Dangling(commit) => {
                (Reason::DanglingRef, format!("it names {}, of which there is no manifest", commit.short()))
            }
        };
        let repo = match keys::parse_ref(key) {
            Some(keys::RefKey::New(repo, _)) => Some(repo),
            _ => None,
        };
        out.findings.push(finding(repo, reason, key.clone(), detail, Repair::Push));
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
    let absent =
        manifest.tree().map(|_| manifest.missing_from_tree(&PathFilter::default()) + manifest.unportable_count());
    let (repo, revision) = (manifest.repo().clone(), manifest.revision().clone());
    Row { repo, revision, status: completeness(damaged, absent), files: manifest.files().len(), absent }
}
