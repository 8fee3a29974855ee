//! The decision of a push. Pure: what this cache offers and what the bucket has in, ordered actions out.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;

use serde::Serialize;

use crate::bucket::{keys, refs};
use crate::cache::gated::Gated;
use crate::cache::identify::LocalFile;
use crate::cache::local::{Local, LocalRepo, LocalRevision};
use crate::engine::survey::{Remote, Stored};
use crate::error::{Error, Kind, printable};
use crate::model::amount::Amount;
use crate::model::ids::{BlobId, Commit, RefName, RepoName, RepoPath};
use crate::model::manifest::{Manifest, Tree};

/// What to do, in this order.
#[derive(Debug, Default, Serialize)]
pub struct Plan {
    /// Blobs to send.
    pub uploads: Vec<UploadAction>,
    /// Revisions to publish, once their blobs are in the bucket.
    pub revisions: Vec<RevisionAction>,
    /// What is left out. (This and what follows is in the report itself.)
    #[serde(skip)]
    pub skips: Vec<Skip>,
    /// What is wrong already now.
    #[serde(skip)]
    pub failures: Vec<Error>,
    /// What a user should know.
    #[serde(skip)]
    pub notes: Vec<String>,
    /// Blobs that need not be sent.
    #[serde(skip)]
    pub present: Amount,
    /// Those of them that something to be published names: should one be gone by then, it can be sent after all.
    #[serde(skip)]
    pub relied_on: Vec<UploadAction>,
}

/// A blob to send.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UploadAction {
    /// Its name.
    pub blob: BlobId,
    /// Its size in bytes.
    pub size: u64,
    /// A repo that has it.
    #[serde(flatten)]
    pub repo: RepoName,
    /// A file that it is.
    pub path: RepoPath,
    /// Where its bytes are.
    #[serde(serialize_with = "crate::lossy::path")]
    pub source: PathBuf,
    /// Why.
    pub reason: UploadReason,
}

/// Why a blob is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum UploadReason {
    /// The bucket lacks it.
    Missing,
    /// The bucket has it with another size.
    WrongSize,
}

/// A revision whose blobs are, or will be, in the bucket.
#[derive(Debug, Serialize)]
pub struct RevisionAction {
    /// The repo.
    #[serde(flatten)]
    pub repo: RepoName,
    /// The revision.
    #[serde(rename = "revision")]
    pub commit: Commit,
    /// What to do about its manifest.
    pub manifest: ManifestAction,
    /// Refs to write, once the manifest is there.
    pub refs: Vec<RefAction>,
    /// Refs that are right already.
    pub refs_unchanged: usize,
    /// Files of the snapshot that are broken here and that the bucket's manifest lacks.
    #[serde(skip)]
    pub lacking: usize,
    /// What this machine knows of the revision.
    #[serde(skip)]
    pub ours: Manifest,
    /// Other names, as right, of files of it.
    #[serde(skip)]
    pub twins: HashMap<RepoPath, BlobId>,
}

impl RevisionAction {
    /// Whether anything of it is to be written.
    pub fn publishes(&self) -> bool {
        self.manifest != ManifestAction::Keep || !self.refs.is_empty()
    }
}

/// What to do about a manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ManifestAction {
    /// The bucket's has all that ours has.
    Keep,
    /// The bucket has none.
    Create,
    /// The bucket's lacks files or the tree: write both united.
    Extend,
    /// The bucket's is not valid.
    Replace,
}

/// A ref to write.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RefAction {
    /// The key.
    pub key: String,
    /// The ref.
    pub name: RefName,
    /// What it says now, as far as that is a commit.
    #[serde(skip)]
    pub before: Option<Commit>,
}

/// Something that is left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Skip {
    /// The repo.
    #[serde(flatten)]
    pub repo: RepoName,
    /// The revision, when it is about one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision: Option<Commit>,
    /// Why.
    #[serde(flatten)]
    pub reason: SkipReason,
}

/// Why something is left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "reason", rename_all = "kebab-case")]
pub enum SkipReason {
    /// The repo looks gated.
    Gated {
        /// The licence file.
        file: String,
        /// The keyword in it.
        keyword: &'static str,
        /// The licence, where it is a well-known one.
        #[serde(skip_serializing_if = "Option::is_none")]
        license: Option<&'static str>,
    },
    /// An LFS/Xet pointer file.
    Pointer {
        /// Which file.
        path: RepoPath,
    },
    /// A snapshot without any file to publish.
    NoFiles,
    /// A ref to a revision that is not in this cache.
    NoSnapshot {
        /// The ref.
        name: RefName,
    },
    /// A revision that was not published, because blobs of it could not be sent.
    Withheld {
        /// How many of its files.
        files: usize,
    },
    /// Files in a snapshot that are not the commit's: its tree does not list them.
    Unlisted {
        /// Their paths, safe to print.
        files: Vec<String>,
    },
    /// Real files in a snapshot of links, of which nothing tells that they are the commit's.
    Unlinked {
        /// Their paths, safe to print.
        files: Vec<String>,
    },
    /// Complete blobs that no snapshot uses.
    Unused {
        /// How many.
        blobs: usize,
    },
}

/// The manifest of a revision as this machine knows it. Of two right names of a file that of the tree is taken, else the
/// one that the bucket's manifest uses. Where only the bucket has the commit's tree, what that does not list is left out.
pub fn manifest(repo: &RepoName, revision: &LocalRevision, stored: Option<&Manifest>) -> Manifest {
    let tree = stored.and_then(|stored| stored.tree.as_ref()).filter(|_| revision.tree.is_none());
    let is_listed = |local: &&LocalFile| tree.is_none_or(|tree| tree.get(&local.file.path).is_some());
    let files = revision.files.iter().filter(is_listed).map(|local| {
        let mut file = local.file.clone();
        if let (Some(other), Some(stored)) = (local.other, stored) {
            let in_tree =
                |tree: &Option<Tree>| tree.as_ref().and_then(|tree| tree.get(&file.path)).map(|entry| entry.blob);
            let listed = || stored.files.iter().find(|known| known.path == file.path).map(|known| known.blob);
            let wanted = in_tree(&revision.tree).or_else(|| in_tree(&stored.tree)).or_else(listed);
            if wanted == Some(other) {
                file.blob = other;
            }
        }
        file
    });
    Manifest {
        repo: repo.clone(),
        revision: revision.commit.clone(),
        files: files.collect(),
        tree: revision.tree.clone().filter(Tree::is_harmless),
        extra: serde_json::Map::new(),
    }
}

/// Decides.
pub fn plan(local: &Local, remote: &Remote) -> Plan {
    let (failures, notes) = (local.failures.clone(), local.notes.clone());
    let mut plan = Plan { failures, notes, ..Plan::default() };
    let mut blobs: BTreeMap<(BlobId, u64), UploadAction> = BTreeMap::new();
    let mut claimed: HashSet<String> = HashSet::new();
    // Repos for which a key of 0.1.0 is plainly theirs come first: the others take only what is left.
    let (plain, others): (Vec<_>, Vec<_>) = local.repos.iter().partition(|repo| keys::is_plain(&repo.name));
    for repo in plain.into_iter().chain(others) {
        plan_repo(repo, remote, &mut plan, &mut blobs, &mut claimed);
    }
    let published: HashSet<BlobId> = plan
        .revisions
        .iter()
        .filter(|revision| revision.publishes())
        .flat_map(|revision| revision.ours.files.iter().map(|file| file.blob))
        .collect();
    for ((id, size), upload) in blobs {
        match remote.blobs.get(&id) {
            Some(there) if *there == size => {
                plan.present.add(size);
                if published.contains(&id) {
                    plan.relied_on.push(upload);
                }
            }
            there => {
                let reason = if there.is_some() { UploadReason::WrongSize } else { UploadReason::Missing };
                plan.uploads.push(UploadAction { reason, ..upload });
            }
        }
    }
    plan
}

fn plan_repo(
    repo: &LocalRepo,
    remote: &Remote,
    plan: &mut Plan,
    blobs: &mut BTreeMap<(BlobId, u64), UploadAction>,
    claimed: &mut HashSet<String>,
) {
    let mut skip = |revision: Option<&Commit>, reason| {
        plan.skips.push(Skip { repo: repo.name.clone(), revision: revision.cloned(), reason });
    };
    if let Some(gated) = &repo.gated {
        let Gated { file, keyword, license } = gated.clone();
        skip(None, SkipReason::Gated { file, keyword, license });
        return;
    }
    if repo.unused > 0 {
        skip(None, SkipReason::Unused { blobs: repo.unused });
    }
    let mut known: HashSet<&Commit> = HashSet::new();
    for revision in &repo.revisions {
        known.insert(&revision.commit);
        for path in &revision.pointers {
            skip(Some(&revision.commit), SkipReason::Pointer { path: path.clone() });
        }
        if !revision.strangers.is_empty() {
            let files = revision.strangers.clone();
            let has_tree = revision.tree.is_some();
            let reason = if has_tree { SkipReason::Unlisted { files } } else { SkipReason::Unlinked { files } };
            skip(Some(&revision.commit), reason);
        }
        if revision.files.is_empty() {
            skip(Some(&revision.commit), SkipReason::NoFiles);
        }
    }
    for (name, commit) in repo.refs.iter().filter(|(_, commit)| !known.contains(commit)) {
        skip(Some(commit), SkipReason::NoSnapshot { name: name.clone() });
    }
    for revision in repo.revisions.iter().filter(|revision| !revision.files.is_empty()) {
        match plan_revision(repo, revision, remote, claimed) {
            Err(error) => plan.failures.push(error),
            Ok(action) => {
                let mut files = action.ours.files.iter().peekable();
                let mut unlisted = Vec::new();
                for local in &revision.files {
                    match files.next_if(|file| file.path == local.file.path) {
                        Some(file) => {
                            let upload = || upload(&repo.name, local, file.blob);
                            blobs.entry((file.blob, file.size)).or_insert_with(upload);
                        }
                        None => unlisted.push(printable(local.file.path.as_str(), 400)),
                    }
                }
                if !unlisted.is_empty() {
                    let (repo, revision) = (repo.name.clone(), Some(revision.commit.clone()));
                    plan.skips.push(Skip { repo, revision, reason: SkipReason::Unlisted { files: unlisted } });
                }
                let stored = remote.manifests.get(&keys::manifest(&repo.name.id, &revision.commit));
                plan.notes.extend(stored.and_then(|stored| strangers_there(stored, &action.ours)));
                if !action.ours.files.is_empty() {
                    plan.revisions.push(action);
                }
            }
        }
    }
}

/// Says when the bucket's manifest has files that are not the commit's, by our tree: it loses none, and gets no tree.
fn strangers_there(stored: &Stored, ours: &Manifest) -> Option<String> {
    let (Stored::Other(theirs), Some(tree)) = (stored, &ours.tree) else { return None };
    let strangers = theirs.files.iter().filter(|file| tree.get(&file.path).is_none()).count();
    (strangers > 0 && theirs.tree.is_none()).then(|| {
        format!(
            "the bucket's manifest of {}@{} has files that are not of the commit, by its tree ({strangers} of them): it \
             keeps them, and gets no tree",
            ours.repo,
            ours.revision.short()
        )
    })
}

fn upload(repo: &RepoName, local: &LocalFile, blob: BlobId) -> UploadAction {
    UploadAction {
        blob,
        size: local.file.size,
        repo: repo.clone(),
        path: local.file.path.clone(),
        source: local.source.clone(),
        reason: UploadReason::Missing,
    }
}

fn plan_revision(
    repo: &LocalRepo,
    revision: &LocalRevision,
    remote: &Remote,
    claimed: &mut HashSet<String>,
) -> Result<RevisionAction, Error> {
    if let Some(error) = &revision.refused {
        return Err(error.clone());
    }
    let stored = remote.manifests.get(&keys::manifest(&repo.name.id, &revision.commit));
    let other = match stored {
        Some(Stored::Other(manifest)) => Some(&**manifest),
        _ => None,
    };
    let ours = manifest(&repo.name, revision, other);
    let twins = twins(revision, &ours);
    let manifest = match (stored, other) {
        (None, _) => ManifestAction::Create,
        (Some(Stored::Same), _) => ManifestAction::Keep,
        (Some(Stored::Invalid(_)), _) | (_, None) => ManifestAction::Replace,
        (_, Some(other)) if unite(other, &ours, &twins)? == *other => ManifestAction::Keep,
        _ => ManifestAction::Extend,
    };
    let is_there = |path: &str| other.is_some_and(|other| other.files.iter().any(|file| file.path.as_str() == path));
    let lacking = revision.broken.iter().filter(|path| !is_there(path)).count();
    let mut action = RevisionAction {
        repo: repo.name.clone(),
        commit: revision.commit.clone(),
        manifest,
        refs: Vec::new(),
        refs_unchanged: 0,
        lacking,
        ours,
        twins,
    };
    for (name, _) in repo.all_refs().filter(|(_, commit)| **commit == revision.commit) {
        for key in refs::keys_to_write(&repo.name, &name) {
            if !claimed.insert(key.clone()) {
                continue;
            }
            let shared = keys::is_shared_ref(&repo.name, &key);
            match remote.refs.get(&key) {
                Some(stored) if stored.commit.as_ref() == Some(&revision.commit) => action.refs_unchanged += 1,
                // Never taken from another repo.
                Some(stored) if shared && stored.owner.as_ref() != Some(&repo.name) => {}
                stored => {
                    let before = stored.and_then(|stored| stored.commit.clone());
                    action.refs.push(RefAction { key, name: name.clone(), before });
                }
            }
        }
    }
    Ok(action)
}

/// The names that are not in our manifest and are as right.
fn twins(revision: &LocalRevision, ours: &Manifest) -> HashMap<RepoPath, BlobId> {
    let named: HashMap<&RepoPath, BlobId> = ours.files.iter().map(|file| (&file.path, file.blob)).collect();
    let unused = revision.files.iter().filter_map(|local| {
        let (other, named) = (local.other?, *named.get(&local.file.path)?);
        Some((local.file.path.clone(), if named == other { local.file.blob } else { other }))
    });
    unused.collect()
}

/// The bucket's manifest with the files that it knows by another right name named as in ours.
fn with_our_names(stored: &Manifest, ours: &Manifest, twins: &HashMap<RepoPath, BlobId>) -> Manifest {
    let mut stored = stored.clone();
    for file in &mut stored.files {
        if twins.get(&file.path) == Some(&file.blob)
            && let Some(own) = ours.files.iter().find(|own| own.path == file.path)
        {
            file.blob = own.blob;
        }
    }
    stored
}

/// The bucket's manifest with ours added.
///
/// # Errors
/// When it is another repo's, which shares the key, or when they contradict each other.
pub fn unite(stored: &Manifest, ours: &Manifest, twins: &HashMap<RepoPath, BlobId>) -> Result<Manifest, Error> {
    if stored.repo != ours.repo {
        return Err(Error::new(Kind::Failed, format!("{}@{} cannot be stored", ours.repo, ours.revision.short()))
            .because(format!("the bucket's key for it belongs to {}, which has the same commit hash", stored.repo)));
    }
    if twins.is_empty() {
        return stored.united_with(ours);
    }
    with_our_names(stored, ours, twins).united_with(ours)
}
