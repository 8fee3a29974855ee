//! Plans a push. Pure: takes the pushable content of the cache and the state of the bucket, and returns ordered actions.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use serde::Serialize;

use crate::bucket::read::Stored;
use crate::bucket::state::RemoteState;
use crate::bucket::{keys, refs};
use crate::cache::gated::Gated;
use crate::cache::identify::LocalFile;
use crate::cache::layout::Layout;
use crate::cache::pushable::{Local, LocalRepo, LocalRevision};
use crate::error::{Error, printable};
use crate::model::amount::Amount;
use crate::model::ids::{BlobId, Commit, RefName, RepoName, RepoPath};
use crate::model::manifest::{Manifest, ManifestFile};
use crate::model::tree::Tree;

/// The plan, to be carried out in this order.
#[derive(Debug, Default, Serialize)]
pub struct Plan {
    /// Blobs to upload.
    pub uploads: Vec<UploadAction>,
    /// Revisions to publish, once their blobs are in the bucket.
    pub revisions: Vec<RevisionAction>,
    /// Items that are left out. The report has these and the following fields itself.
    #[serde(skip)]
    pub skips: Vec<Skip>,
    /// Problems that already exist.
    #[serde(skip)]
    pub failures: Vec<Error>,
    /// Notes for the user.
    #[serde(skip)]
    pub notes: Vec<String>,
    /// Blobs that the bucket already has.
    #[serde(skip)]
    pub present: Amount,
    /// Those of them that a new manifest or ref relies on. If one is gone before publication, it is uploaded after all.
    #[serde(skip)]
    pub relied_on: Vec<UploadAction>,
}

/// A blob to upload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UploadAction {
    /// Its name.
    pub blob: BlobId,
    /// Its size in bytes.
    pub size: u64,
    /// A repo that has it.
    #[serde(flatten)]
    pub repo: RepoName,
    /// The path of a file with this content.
    pub path: RepoPath,
    /// The file with its bytes.
    #[serde(serialize_with = "crate::lossy::path")]
    pub source: PathBuf,
    /// Why it is uploaded.
    pub reason: UploadReason,
}

/// Why a blob is uploaded.
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
    /// The action for its manifest.
    pub manifest: ManifestAction,
    /// Refs to write, once the manifest is there.
    pub refs: Vec<RefAction>,
    /// Number of refs that are up to date.
    pub refs_unchanged: usize,
    /// Number of files that are broken here and missing from the bucket's manifest.
    #[serde(skip)]
    pub missing_files: usize,
    /// The manifest as this machine knows it.
    #[serde(skip)]
    pub ours: Arc<Manifest>,
    /// Other valid names of its files.
    #[serde(skip)]
    pub twins: HashMap<RepoPath, BlobId>,
}

impl RevisionAction {
    /// Returns whether a manifest or ref is written.
    pub fn publishes(&self) -> bool {
        self.manifest != ManifestAction::Keep || !self.refs.is_empty()
    }

    /// Returns the skip of a revision that must not be published because it needs one of these blobs, which are not in the
    /// bucket.
    pub fn withheld(&self, lost: &HashSet<(BlobId, u64)>) -> Option<Skip> {
        let files = self.ours.files().iter().filter(|file| lost.contains(&(file.blob, file.size))).count();
        (files > 0).then(|| Skip {
            repo: self.repo.clone(),
            revision: Some(self.commit.clone()),
            reason: SkipReason::Withheld { files },
        })
    }
}

/// The action for a manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ManifestAction {
    /// The bucket's manifest has everything that ours has.
    Keep,
    /// The bucket has none.
    Create,
    /// The bucket's manifest lacks files or the tree, so it is merged with ours.
    Extend,
    /// The bucket's manifest is not valid.
    Replace,
}

/// A ref to write.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RefAction {
    /// Its key.
    pub key: String,
    /// The ref.
    pub name: RefName,
    /// The commit that it names now, if it is valid.
    #[serde(skip)]
    pub before: Option<Commit>,
    /// When it was last written, by the store's clock.
    #[serde(skip)]
    pub modified: Option<SystemTime>,
}

/// An item that is left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Skip {
    /// The repo.
    #[serde(flatten)]
    pub repo: RepoName,
    /// The revision, if it concerns one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision: Option<Commit>,
    /// Why it is left out.
    #[serde(flatten)]
    pub reason: SkipReason,
}

/// Why an item is left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "reason", rename_all = "kebab-case")]
pub enum SkipReason {
    /// The repo looks gated.
    Gated {
        /// The licence file.
        file: String,
        /// The keyword in it.
        keyword: &'static str,
        /// The licence, if it is a well-known one.
        #[serde(skip_serializing_if = "Option::is_none")]
        license: Option<&'static str>,
    },
    /// An LFS/Xet pointer file.
    Pointer {
        /// Its path.
        path: RepoPath,
    },
    /// A snapshot without any files to publish.
    NoFiles,
    /// A ref to a revision that is not in this cache.
    NoSnapshot {
        /// The ref.
        name: RefName,
    },
    /// A revision that was not published because some of its blobs could not be uploaded.
    Withheld {
        /// Number of files with these blobs.
        files: usize,
    },
    /// Files in a snapshot that the commit's tree does not list.
    Unlisted {
        /// Their paths, escaped for printing.
        files: Vec<String>,
    },
    /// Real files in a snapshot of links that are not known to be part of the commit.
    Unlinked {
        /// Their paths, escaped for printing.
        files: Vec<String>,
    },
    /// Complete blobs that no snapshot uses.
    Unused {
        /// Number of blobs.
        blobs: usize,
    },
}

/// Returns the manifest of a revision as this machine knows it, given the bucket's; `None` without any files. If a file
/// has two valid names, it gets the one in the tree, or else the one in the bucket's manifest. If only the bucket has
/// the commit's tree, files that it does not list are left out.
///
/// # Errors
/// The reason, if the files contradict each other.
pub fn beside(revision: &LocalRevision, stored: &Manifest) -> Result<Option<Arc<Manifest>>, String> {
    let Some(own) = &revision.manifest else { return Ok(None) };
    let tree = stored.tree().filter(|_| revision.tree.is_none());
    let is_listed = |path: &RepoPath| tree.is_none_or(|tree| tree.get(path).is_some());
    let others: HashMap<&RepoPath, BlobId> =
        revision.files.iter().filter_map(|local| Some((&local.file.path, local.other?))).collect();
    let in_tree = |tree: Option<&Tree>, path: &RepoPath| Some(tree?.get(path)?.blob);
    let name = |file: &ManifestFile| {
        let Some(other) = others.get(&file.path) else { return file.blob };
        let listed = || stored.files().iter().find(|known| known.path == file.path).map(|known| known.blob);
        let wanted = in_tree(revision.tree.as_deref(), &file.path).or_else(|| in_tree(stored.tree(), &file.path));
        if wanted.or_else(listed) == Some(*other) { *other } else { file.blob }
    };
    if own.files().iter().all(|file| is_listed(&file.path) && name(file) == file.blob) {
        return Ok(Some(own.clone()));
    }
    let Some(listed) = own.filtered(|file| is_listed(&file.path)) else { return Ok(None) };
    listed.with_blobs(name).map(|manifest| Some(Arc::new(manifest)))
}

/// Returns the bucket's manifest of a revision; `None` if there is none.
fn stored_manifest(remote: &RemoteState, repo: &LocalRepo, revision: &LocalRevision) -> Option<Stored<Arc<Manifest>>> {
    remote.manifest(&keys::manifest(&repo.name.id, &revision.commit))
}

/// Makes the plan. Manifests and refs that were not read count as missing; their publication merges them anyway.
pub fn plan(local: &Local, remote: &RemoteState) -> Plan {
    let (failures, notes) = (local.failures.clone(), local.notes.clone());
    let mut plan = Plan { failures, notes, ..Plan::default() };
    let mut blobs: BTreeMap<(BlobId, u64), Found<'_>> = BTreeMap::new();
    let mut claimed: HashSet<String> = HashSet::new();
    // Repos that clearly own their keys of 0.1.0 come first; the others only get free keys.
    let (plain, others): (Vec<_>, Vec<_>) = local.repos.iter().partition(|repo| keys::is_plain(&repo.name));
    for repo in plain.into_iter().chain(others) {
        plan_repo(repo, remote, &mut plan, &mut blobs, &mut claimed);
    }
    let published: HashSet<BlobId> = plan
        .revisions
        .iter()
        .filter(|revision| revision.publishes())
        .flat_map(|revision| revision.ours.files().iter().map(|file| file.blob))
        .collect();
    for ((id, size), found) in blobs {
        let upload = |reason| found.upload(id, reason, &local.layout);
        match remote.blobs().get(&id) {
            Some(there) if there.size == size => {
                plan.present.add(size);
                if published.contains(&id) {
                    plan.relied_on.push(upload(UploadReason::Missing));
                }
            }
            Some(_) => plan.uploads.push(upload(UploadReason::WrongSize)),
            None => plan.uploads.push(upload(UploadReason::Missing)),
        }
    }
    plan
}

/// The first file with a blob.
struct Found<'a> {
    repo: &'a LocalRepo,
    revision: &'a LocalRevision,
    file: &'a LocalFile,
}

impl Found<'_> {
    fn upload(&self, blob: BlobId, reason: UploadReason, layout: &Layout) -> UploadAction {
        let (repo, ManifestFile { path, size, .. }) = (&self.repo.name, &self.file.file);
        let source = self.file.path(layout, repo, &self.revision.commit);
        UploadAction { blob, size: *size, repo: repo.clone(), path: path.clone(), source, reason }
    }
}

fn plan_repo<'a>(
    repo: &'a LocalRepo,
    remote: &RemoteState,
    plan: &mut Plan,
    blobs: &mut BTreeMap<(BlobId, u64), Found<'a>>,
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
        if !revision.stray_files.is_empty() {
            let files = revision.stray_files.clone();
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
            Ok(None) => {
                let files = revision.files.iter().map(|local| printable(local.file.path.as_str(), 400)).collect();
                let (repo, revision) = (repo.name.clone(), Some(revision.commit.clone()));
                plan.skips.push(Skip { repo, revision, reason: SkipReason::Unlisted { files } });
            }
            Ok(Some(action)) => {
                let mut files = action.ours.files().iter().peekable();
                let mut unlisted = Vec::new();
                for local in &revision.files {
                    match files.next_if(|file| file.path == local.file.path) {
                        Some(file) => {
                            blobs.entry((file.blob, file.size)).or_insert(Found { repo, revision, file: local });
                        }
                        None => unlisted.push(printable(local.file.path.as_str(), 400)),
                    }
                }
                if !unlisted.is_empty() {
                    let (repo, revision) = (repo.name.clone(), Some(revision.commit.clone()));
                    plan.skips.push(Skip { repo, revision, reason: SkipReason::Unlisted { files: unlisted } });
                }
                let stored = stored_manifest(remote, repo, revision).and_then(Stored::valid);
                plan.notes.extend(stored.and_then(|theirs| stray_files_note(&theirs, &action.ours)));
                plan.revisions.push(action);
            }
        }
    }
}

/// Returns a note if the bucket's manifest has files that our tree does not list. It keeps them, so it gets no tree.
fn stray_files_note(theirs: &Manifest, ours: &Manifest) -> Option<String> {
    let tree = ours.tree()?;
    let strays = theirs.files().iter().filter(|file| tree.get(&file.path).is_none()).count();
    (strays > 0 && theirs.tree().is_none()).then(|| {
        format!(
            "the bucket's manifest of {}@{} has files that are not part of the commit, according to its tree ({strays} of \
             them): it keeps them, and gets no tree",
            ours.repo(),
            ours.revision().short()
        )
    })
}

fn plan_revision(
    repo: &LocalRepo,
    revision: &LocalRevision,
    remote: &RemoteState,
    claimed: &mut HashSet<String>,
) -> Result<Option<RevisionAction>, Error> {
    if let Some(error) = &revision.refused {
        return Err(error.clone());
    }
    let stored = stored_manifest(remote, repo, revision);
    let is_there = stored.is_some();
    let theirs = stored.and_then(Stored::valid);
    let ours = match &theirs {
        Some(theirs) => beside(revision, theirs).map_err(|why| {
            Error::failed(format!("{}@{} was not pushed", repo.name, revision.commit.short())).because(why)
        })?,
        None => revision.manifest.clone(),
    };
    let Some(ours) = ours else { return Ok(None) };
    let twins = twins(revision, &ours);
    let manifest = match &theirs {
        None if is_there => ManifestAction::Replace,
        None => ManifestAction::Create,
        // The listing proves that they are equal.
        Some(theirs) if Arc::ptr_eq(theirs, &ours) => ManifestAction::Keep,
        Some(theirs) if unite(theirs, &ours, &twins)? == **theirs => ManifestAction::Keep,
        Some(_) => ManifestAction::Extend,
    };
    let has =
        |path: &str| theirs.as_ref().is_some_and(|theirs| theirs.files().iter().any(|file| file.path.as_str() == path));
    let missing_files = revision.broken.iter().filter(|path| !has(path)).count();
    let mut action = RevisionAction {
        repo: repo.name.clone(),
        commit: revision.commit.clone(),
        manifest,
        refs: Vec::new(),
        refs_unchanged: 0,
        missing_files,
        ours,
        twins,
    };
    for (name, _) in repo.all_refs().filter(|(_, commit)| **commit == revision.commit) {
        for key in refs::keys_to_write(&repo.name, &name) {
            if !claimed.insert(key.clone()) {
                continue;
            }
            let shared = keys::is_shared_ref(&repo.name, &key);
            let stored = remote.reference(&key);
            let is_there = stored.is_some();
            let before = stored.and_then(Stored::valid);
            let is_right = before.as_ref() == Some(&revision.commit);
            let is_of_other = is_there && shared && remote.owner(&repo.name.id, &key).as_ref() != Some(&repo.name);
            // A ref that led nowhere until now may be deleted as such before its manifest is written.
            let is_dangling = matches!(manifest, ManifestAction::Create | ManifestAction::Replace);
            if is_right && (is_of_other || !is_dangling) {
                action.refs_unchanged += 1;
            } else if is_of_other {
                // The key belongs to another repo.
            } else {
                let modified = remote.listed_ref(&key).and_then(|listed| listed.object.modified);
                action.refs.push(RefAction { key, name: name.clone(), before, modified });
            }
        }
    }
    Ok(Some(action))
}

/// Returns the valid names of files that are not in our manifest.
fn twins(revision: &LocalRevision, ours: &Manifest) -> HashMap<RepoPath, BlobId> {
    let named: HashMap<&RepoPath, BlobId> = ours.files().iter().map(|file| (&file.path, file.blob)).collect();
    let unused = revision.files.iter().filter_map(|local| {
        let (other, named) = (local.other?, *named.get(&local.file.path)?);
        Some((local.file.path.clone(), if named == other { local.file.blob } else { other }))
    });
    unused.collect()
}

/// Adds our manifest to the bucket's. Files that the bucket's knows by another valid name are named as in ours.
///
/// # Errors
/// If it belongs to another repo with the same key, or the two contradict each other.
pub fn unite(stored: &Manifest, ours: &Manifest, twins: &HashMap<RepoPath, BlobId>) -> Result<Manifest, Error> {
    if stored.repo() != ours.repo() {
        return Err(Error::failed(format!("{}@{} cannot be stored", ours.repo(), ours.revision().short()))
            .because(format!("the bucket's key for it belongs to {}, which has the same commit hash", stored.repo())));
    }
    if twins.is_empty() {
        return stored.merge(ours);
    }
    let names: HashMap<&RepoPath, BlobId> = ours.files().iter().map(|file| (&file.path, file.blob)).collect();
    let name = |file: &ManifestFile| match names.get(&file.path) {
        Some(own) if twins.get(&file.path) == Some(&file.blob) => *own,
        _ => file.blob,
    };
    let renamed = stored.with_blobs(name).map_err(|why| {
        Error::invalid(format!("cannot merge {}@{} with the bucket's manifest", ours.repo(), ours.revision().short()))
            .because(why)
    })?;
    renamed.merge(ours)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bucket::client::Object;
    use crate::cache::identify::Source;
    use crate::model::ids::{RepoQuery, RepoType};
    use crate::model::tree::Tree;

    fn name(text: &str) -> RepoName {
        let query: RepoQuery = text.parse().unwrap();
        RepoName::new(query.kind.unwrap_or(RepoType::Model), query.id)
    }

    fn commit(digit: char) -> Commit {
        digit.to_string().repeat(40).parse().unwrap()
    }

    fn sha1(digit: &str) -> BlobId {
        digit.repeat(40).parse().unwrap()
    }

    fn sha256(digit: &str) -> BlobId {
        digit.repeat(64).parse().unwrap()
    }

    /// `a=1` is the path `a` with the blob `111…`, ten bytes long.
    fn files(text: &str) -> Vec<ManifestFile> {
        let file = |part: &str| {
            let (path, digit) = part.split_once('=').unwrap();
            ManifestFile { path: path.parse().unwrap(), blob: sha1(digit), size: 10 }
        };
        text.split_whitespace().map(file).collect()
    }

    /// The same files as a tree.
    fn tree(text: &str) -> Tree {
        let entry = |file: ManifestFile| format!(r#""{}": {{"size": 10, "blob_id": "{}"}}"#, file.path, file.blob);
        let entries: Vec<String> = files(text).into_iter().map(entry).collect();
        let text = format!(r#"{{"format_version": 1, "files": {{{}}}}}"#, entries.join(", "));
        Tree::parse(text.as_bytes()).unwrap().unwrap()
    }

    fn revision(repo: &str, digit: char, text: &str) -> LocalRevision {
        let files = files(text).into_iter().map(|file| LocalFile { file, source: Source::Snapshot, other: None });
        LocalRevision::new(&name(repo), commit(digit), files.collect(), None)
    }

    fn repo(id: &str, revisions: Vec<LocalRevision>, refs: &[(&str, char)]) -> LocalRepo {
        LocalRepo {
            name: name(id),
            gated: None,
            revisions,
            refs: refs.iter().map(|(name, digit)| (name.parse().unwrap(), commit(*digit))).collect(),
            pins: Default::default(),
            unused: 0,
        }
    }

    fn local(repos: impl IntoIterator<Item = LocalRepo>) -> Local {
        Local { repos: repos.into_iter().collect(), ..Local::default() }
    }

    /// A bucket with these blobs, and with what was read under these keys.
    #[derive(Default)]
    struct Bucket<'a> {
        blobs: &'a [(&'a str, u64)],
        manifests: Vec<(String, Stored<Arc<Manifest>>)>,
        refs: Vec<(&'a str, Stored<Commit>)>,
    }

    impl Bucket<'_> {
        fn state(self) -> RemoteState {
            let object = |key: String, size| Object { key, size, etag: None, modified: None };
            let blobs = self.blobs.iter().map(|(digit, size)| object(keys::blob(&sha1(digit)), *size));
            let manifests = self.manifests.iter().map(|(key, _)| object(key.clone(), 1));
            let refs = self.refs.iter().map(|(key, _)| object(key.to_string(), 40));
            let state = RemoteState::new(blobs.chain(manifests).chain(refs));
            self.manifests.into_iter().for_each(|(key, stored)| state.keep_manifest(&key, stored));
            self.refs.into_iter().for_each(|(key, stored)| state.keep_ref(key, stored));
            state
        }
    }

    fn key(repo: &str, digit: char) -> String {
        keys::manifest(&name(repo).id, &commit(digit))
    }

    fn stored(repo: &str, digit: char, text: &str, tree: Option<Tree>) -> (String, Stored<Arc<Manifest>>) {
        let manifest = Manifest::new(name(repo), commit(digit), files(text), tree.map(Arc::new)).unwrap();
        (key(repo, digit), Stored::Valid(Arc::new(manifest)))
    }

    fn invalid<T>() -> Stored<T> {
        Stored::Invalid(Error::invalid("it is not valid"))
    }

    fn keys_of(action: &RevisionAction) -> Vec<&str> {
        action.refs.iter().map(|one| one.key.as_str()).collect()
    }

    #[test]
    fn a_blob_is_sent_when_the_bucket_lacks_it_or_has_another_size() {
        use UploadReason::{Missing, WrongSize};
        for (blobs, uploads, present) in [
            (&[][..], &[("1", Missing), ("2", Missing)][..], 0),
            (&[("1", 10)], &[("2", Missing)], 1),
            (&[("1", 10), ("2", 9)], &[("2", WrongSize)], 1),
            (&[("1", 10), ("2", 10), ("3", 10)], &[], 2),
        ] {
            // Two files and two repos share a blob.
            let repos = ["org/one", "dataset:org/two"]
                .map(|id| repo(id, vec![revision(id, 'a', "x=1 y=2 z=1")], &[("main", 'a')]));
            let plan = plan(&local(repos), &Bucket { blobs, ..Bucket::default() }.state());
            let sent: Vec<_> = plan.uploads.iter().map(|upload| (upload.blob, upload.reason)).collect();
            let expected: Vec<_> = uploads.iter().map(|(digit, reason)| (sha1(digit), *reason)).collect();
            assert_eq!((sent, plan.present.blobs), (expected, present), "{blobs:?}");
            assert_eq!(plan.relied_on.len() as u64, present, "what is published relies on it: {blobs:?}");
        }
    }

    #[test]
    fn a_manifest_is_created_extended_kept_or_replaced() {
        use ManifestAction::{Create, Extend, Keep, Replace};
        let of = |text| Some(stored("org/name", 'a', text, None));
        for (there, action) in [
            (None, Create),
            (of("x=1"), Extend),
            (of("x=1 y=2"), Keep),
            (of("x=1 y=2 z=3"), Keep),
            (Some((key("org/name", 'a'), invalid())), Replace),
            // It was listed, and gone when it was read.
            (Some((key("org/name", 'a'), Stored::Absent)), Replace),
        ] {
            let shown = format!("{there:?}");
            let local = local([repo("org/name", vec![revision("org/name", 'a', "x=1 y=2")], &[])]);
            let blobs = &[("1", 10), ("2", 10)];
            let remote = Bucket { blobs, manifests: there.into_iter().collect(), ..Bucket::default() }.state();
            let plan = plan(&local, &remote);
            let [revision] = plan.revisions.as_slice() else { panic!("{:?}", plan.revisions) };
            assert_eq!(revision.manifest, action, "{shown}");
            // Nothing relies on blobs of what is not published.
            assert_eq!(plan.relied_on.len(), if action == Keep { 0 } else { 2 }, "{shown}");
            assert!(
                Arc::ptr_eq(&revision.ours, local.repos[0].revisions[0].manifest.as_ref().unwrap()),
                "made once: {shown}"
            );
        }
    }

    #[test]
    fn what_contradicts_the_buckets_manifest_is_a_failure() {
        let other_file = stored("org/name", 'a', "x=9", None);
        let other_repo = (key("org/name", 'a'), stored("dataset:org/name", 'a', "x=1", None).1);
        for (there, words) in [(other_file, "disagree about"), (other_repo, "cannot be stored")] {
            let local = local([repo("org/name", vec![revision("org/name", 'a', "x=1")], &[("main", 'a')])]);
            let plan = plan(&local, &Bucket { manifests: vec![there], ..Bucket::default() }.state());
            assert!(plan.failures[0].what.contains(words), "{:?}", plan.failures);
            assert!(plan.revisions.is_empty() && plan.uploads.is_empty());
        }
    }

    #[test]
    fn a_ref_is_written_unless_it_is_right_or_another_repos() {
        let (old, new) = ("refs/org__name/main", "refs-v2/datasets--org--name/main");
        let theirs = || stored("org/name", 'b', "x=1", None);
        let earlier = || stored("dataset:org/name", 'b', "x=1", None);
        let says = |digit| Stored::Valid(commit(digit));
        let both = || vec![(old, says('a')), (new, says('a'))];
        for (id, refs, manifests, written, before, unchanged) in [
            ("org/name", vec![], vec![], &[old][..], None, 0),
            ("org/name", vec![(old, says('a'))], vec![stored("org/name", 'a', "x=1", None)], &[], None, 1),
            // It dangles.
            ("org/name", vec![(old, says('a'))], vec![], &[old], Some('a'), 0),
            // 0.1.0's key of a plain model belongs to the model, regardless of its content.
            ("org/name", vec![(old, says('b'))], vec![earlier()], &[old], Some('b'), 0),
            ("org/name", vec![(old, invalid())], vec![], &[old], None, 0),
            ("dataset:org/name", vec![], vec![], &[old, new], None, 0),
            ("dataset:org/name", vec![(old, says('b'))], vec![earlier()], &[old, new], Some('b'), 0),
            ("dataset:org/name", vec![(old, says('b'))], vec![theirs()], &[new], None, 0),
            // Its repo is unknown.
            ("dataset:org/name", vec![(old, says('b'))], vec![], &[new], None, 0),
            ("dataset:org/name", vec![(old, invalid())], vec![], &[new], None, 0),
            ("dataset:org/name", both(), vec![stored("dataset:org/name", 'a', "x=1", None)], &[], None, 2),
            ("dataset:org/name", both(), vec![], &[new], Some('a'), 1),
            ("kernel:org/name", vec![], vec![], &["refs-v2/kernels--org--name/main"], None, 0),
        ] {
            let shown = format!("{id} {refs:?} {manifests:?}");
            let local = local([repo(id, vec![revision(id, 'a', "x=1")], &[("main", 'a')])]);
            let plan = plan(&local, &Bucket { manifests, refs, ..Bucket::default() }.state());
            let action = &plan.revisions[0];
            assert_eq!((keys_of(action), action.refs_unchanged), (written.to_vec(), unchanged), "{shown}");
            assert_eq!(action.refs.first().and_then(|one| one.before.clone()), before.map(commit), "{shown}");
        }
    }

    #[test]
    fn a_model_goes_before_the_dataset_of_its_id() {
        let ids = ["dataset:org/name", "org/name"];
        let digits = ['a', 'b'];
        let repos = ids.into_iter().zip(digits);
        let repos = repos.map(|(id, digit)| repo(id, vec![revision(id, digit, "x=1")], &[("main", digit)]));
        let plan = plan(&local(repos), &RemoteState::default());
        let written: Vec<_> = plan.revisions.iter().map(|action| (action.repo.to_string(), keys_of(action))).collect();
        let expected = [("org/name", "refs/org__name/main"), (ids[0], "refs-v2/datasets--org--name/main")];
        assert_eq!(written, expected.map(|(id, key)| (id.to_string(), vec![key])));
    }

    #[test]
    fn what_is_left_out_says_why() {
        let full = |text| vec![revision("org/name", 'a', text)];
        let with = |change: fn(&mut LocalRevision)| {
            let mut revisions = full("x=1");
            change(&mut revisions[0]);
            repo("org/name", revisions, &[])
        };
        let gated = Gated { file: "LICENSE".into(), keyword: "gated", license: None };
        let gated_reason = SkipReason::Gated { file: "LICENSE".into(), keyword: "gated", license: None };
        let pointer = "p.bin".parse::<RepoPath>().unwrap();
        for (repo, reason, published) in [
            (LocalRepo { gated: Some(gated), ..repo("org/name", vec![], &[("main", 'a')]) }, gated_reason, 0),
            (with(|one| one.pointers.push("p.bin".parse().unwrap())), SkipReason::Pointer { path: pointer }, 1),
            (repo("org/name", full(""), &[]), SkipReason::NoFiles, 0),
            (
                repo("org/name", full("x=1"), &[("gone", 'f')]),
                SkipReason::NoSnapshot { name: "gone".parse().unwrap() },
                1,
            ),
            (
                with(|one| one.stray_files.push("x.lock".into())),
                SkipReason::Unlinked { files: vec!["x.lock".into()] },
                1,
            ),
            (
                with(|one| {
                    one.stray_files.push("x.lock".into());
                    one.tree = Some(Arc::new(tree("x=1")));
                }),
                SkipReason::Unlisted { files: vec!["x.lock".into()] },
                1,
            ),
            (LocalRepo { unused: 2, ..repo("org/name", full("x=1"), &[]) }, SkipReason::Unused { blobs: 2 }, 1),
        ] {
            let plan = plan(&local([repo]), &RemoteState::default());
            let reasons: Vec<_> = plan.skips.iter().map(|skip| &skip.reason).collect();
            assert_eq!(reasons, [&reason]);
            assert_eq!((plan.revisions.len(), plan.uploads.len()), (published, published), "{reason:?}");
        }
    }

    #[test]
    fn what_the_commits_tree_refuses_is_a_failure_and_nothing_else() {
        let mut refused = revision("org/name", 'a', "x=1");
        refused.refused = Some(Error::invalid("org/name was not pushed"));
        let plan = plan(&local([repo("org/name", vec![refused], &[("main", 'a')])]), &RemoteState::default());
        assert_eq!((plan.failures.len(), plan.uploads.len(), plan.revisions.len()), (1, 0, 0));
    }

    #[test]
    fn a_revision_is_withheld_while_a_blob_of_it_is_missing() {
        let local = local([repo("org/name", vec![revision("org/name", 'a', "x=1 y=2 z=1")], &[])]);
        let plan = plan(&local, &RemoteState::default());
        let withheld = |lost: &[(&str, u64)]| {
            plan.revisions[0].withheld(&lost.iter().map(|(digit, size)| (sha1(digit), *size)).collect())
        };
        assert_eq!(withheld(&[("1", 10)]).unwrap().reason, SkipReason::Withheld { files: 2 });
        assert_eq!(withheld(&[("1", 9), ("3", 10)]), None);
    }

    #[test]
    fn only_what_the_buckets_tree_lists_joins_where_there_is_none_here() {
        let local = local([repo("org/name", vec![revision("org/name", 'a', "x=1 y=2 stray=3")], &[])]);
        let there = stored("org/name", 'a', "x=1", Some(tree("x=1 y=2")));
        let plan = plan(&local, &Bucket { manifests: vec![there], ..Bucket::default() }.state());
        let action = &plan.revisions[0];
        assert_eq!((action.manifest, action.ours.files()), (ManifestAction::Extend, files("x=1 y=2").as_slice()));
        assert_eq!(plan.skips[0].reason, SkipReason::Unlisted { files: vec!["stray".into()] });
        assert_eq!(plan.uploads.iter().map(|upload| upload.blob).collect::<Vec<_>>(), [sha1("1"), sha1("2")]);
    }

    #[test]
    fn of_two_right_names_the_buckets_is_taken() {
        let mut revision = revision("org/name", 'a', "x=1 y=2");
        revision.files[0].other = Some(sha256("1"));
        let (key, there) = stored("org/name", 'a', "x=1", None);
        let there = there.map(|manifest| Arc::new(manifest.with_blobs(|_| sha256("1")).unwrap()));
        let state = Bucket { manifests: vec![(key, there)], ..Bucket::default() }.state();
        let plan = plan(&local([repo("org/name", vec![revision], &[])]), &state);
        let action = &plan.revisions[0];
        assert_eq!(action.ours.files()[0].blob, sha256("1"));
        assert_eq!((action.manifest, action.twins[&files("x=1")[0].path]), (ManifestAction::Extend, sha1("1")));
        // It is sent, where it is missing, by the name that is published.
        assert_eq!(plan.uploads.iter().map(|upload| upload.blob).collect::<Vec<_>>(), [sha1("2"), sha256("1")]);
    }
}
