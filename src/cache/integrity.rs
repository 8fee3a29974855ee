//! For `verify`: what each repo claims about its files, and which files have to be hashed to prove it.
//!
//! The scan lists what is there. This module adds what a check needs beyond that: trees, the text of links, broken and
//! foreign links by path, and the state of refs. [`Facts::jobs`] lists every file to hash once, even if several names claim
//! its bytes; [`Facts::record`] records the results. [`crate::plan::verify`] (pure) judges them.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::inventory::{BlobPlace, Problem, ProblemKind, Repo, SnapshotFile};
use super::layout::Layout;
use super::lock;
use super::prune_facts::{is_locked, lock_files};
use super::select::{Selected, SelectedRepo};
use super::state::{LocalState, TreeFile};
use crate::error::Error;
use crate::files;
use crate::model::ids::{BlobId, Commit, RefName, RepoName, RepoPath};
use crate::model::manifest::Manifest;
use crate::model::tree::Tree;

/// Everything that the check of a cache is based on.
#[derive(Debug)]
pub struct Facts {
    /// The paths of the cache.
    pub layout: Layout,
    /// The repos that are checked.
    pub repos: Vec<RepoFacts>,
    /// Failures to read something, which therefore cannot be judged.
    pub failures: Vec<Error>,
}

/// The facts about one repo.
#[derive(Debug)]
pub struct RepoFacts {
    /// The repo.
    pub name: RepoName,
    /// Whether only some of its revisions are checked. The rest of the repo is not judged then.
    pub is_part: bool,
    /// Blobs to check, by the name that they claim.
    pub blobs: BTreeMap<BlobId, BlobFacts>,
    /// Revisions to check.
    pub revisions: BTreeMap<Commit, RevisionFacts>,
    /// Refs that are not as they should be.
    pub refs: BTreeMap<PathBuf, RefFacts>,
    /// Entries of `blobs/` whose name is not a hash, so that nothing proves their bytes.
    pub unnamed: Vec<PathBuf>,
    /// Anything in place of a file or folder that is neither.
    pub odd: Vec<Problem>,
    /// Whether a client is working in this repo right now.
    pub is_busy: bool,
}

/// A blob.
#[derive(Debug, Clone)]
pub struct BlobFacts {
    /// The entry in `blobs/`.
    pub path: PathBuf,
    /// The location of its bytes.
    pub place: BlobPlace,
    /// Its size in bytes.
    pub size: u64,
    /// The result of hashing.
    pub check: Check,
}

/// A revision.
#[derive(Debug)]
pub struct RevisionFacts {
    /// Its files.
    pub files: BTreeMap<RepoPath, FileFacts>,
    /// Links in it whose path cannot be a file of a commit.
    pub bad_paths: Vec<Problem>,
    /// The commit's listing.
    pub tree: TreeFile,
    /// Whether there is a listing of a newer format than this program knows.
    pub has_unknown_tree: bool,
    /// Whether a part of it cannot be read, so that its content is unknown.
    pub is_unreadable: bool,
}

impl RevisionFacts {
    /// Returns the commit's listing, if it is valid.
    pub fn tree(&self) -> Option<&Tree> {
        match &self.tree {
            TreeFile::Valid(tree) => Some(tree),
            TreeFile::Absent | TreeFile::Private | TreeFile::Invalid(_) => None,
        }
    }

    /// Returns whether there are real files, and no tree that says what they should be.
    pub fn has_unlisted_files(&self) -> bool {
        let is_unlisted =
            |file: &FileFacts| matches!(file.kind, FileKind::Real { expected: None, hard_link: None, .. });
        self.tree().is_none() && self.files.values().any(is_unlisted)
    }

    /// Takes from a manifest of this revision what its real files should be.
    pub fn expect(&mut self, manifest: &Manifest) {
        for listed in manifest.files() {
            if let Some(FileFacts { kind: FileKind::Real { expected, .. }, .. }) = self.files.get_mut(&listed.path) {
                expected.get_or_insert(listed.blob);
            }
        }
    }
}

/// A file of a snapshot.
#[derive(Debug, Clone)]
pub struct FileFacts {
    /// Its kind.
    pub kind: FileKind,
    /// For a file that the tree knows by the name of the other algorithm: whether the bytes have both names.
    pub twin: Check,
}

/// The kind of a snapshot file.
#[derive(Debug, Clone)]
pub enum FileKind {
    /// A link to a blob that is there. An absolute link breaks when the cache is moved.
    Link {
        /// The blob.
        blob: BlobId,
        /// Whether the link's text is an absolute path.
        is_absolute: bool,
    },
    /// A link whose target is missing; with the blob, if the target is named like one.
    Broken(Option<BlobId>),
    /// A link that leads to something other than a blob of this repo.
    Foreign(PathBuf),
    /// A link to an entry of `blobs/` whose name is not a hash.
    Unnamed,
    /// A real file.
    Real {
        /// Its size in bytes.
        size: u64,
        /// The blob of `blobs/` that it is a hard link to.
        hard_link: Option<BlobId>,
        /// The blob that the tree says it is.
        expected: Option<BlobId>,
        /// The result of hashing.
        check: Check,
    },
}

/// The result of hashing a file.
#[derive(Debug, Clone, Default)]
pub enum Check {
    /// Not hashed.
    #[default]
    Unchecked,
    /// The bytes match the name.
    Good,
    /// The bytes have another name.
    Wrong {
        /// The name of the bytes that are there.
        found: BlobId,
        /// Number of bytes that are there.
        size: u64,
    },
    /// It could not be read.
    Unreadable,
    /// It changed or disappeared while it was read, or another program is downloading it.
    InUse,
}

impl Check {
    /// Returns whether the bytes were proven wrong.
    pub fn is_wrong(&self) -> bool {
        matches!(self, Check::Wrong { .. })
    }
}

/// A ref with a fault.
#[derive(Debug, Clone)]
pub struct RefFacts {
    /// Its name, if that is valid.
    pub name: Option<RefName>,
    /// The problem.
    pub fault: RefFault,
    /// When it was written.
    pub written: Option<SystemTime>,
}

/// The possible problems of a ref.
#[derive(Debug, Clone)]
pub enum RefFault {
    /// White space around the commit.
    Untidy,
    /// It names a commit that has no snapshot.
    Dangling(Commit),
    /// Its content is not a commit.
    Bad(String),
}

/// Collects the facts about the selected repos.
pub fn gather(state: &LocalState, selected: &Selected<'_>) -> Facts {
    let inventory = state.inventory();
    let layout = inventory.layout.clone();
    let mut facts = Facts { layout, repos: Vec::new(), failures: Vec::new() };
    if selected.repos.len() == inventory.repos.len() {
        facts.failures.extend(inventory.problems.iter().filter(|problem| is_unreadable(problem)).map(unreadable));
    }
    for SelectedRepo { repo, commits } in &selected.repos {
        let commits = commits.as_ref();
        let found = Gather { state, layout: &facts.layout, repo, commits, failures: &mut facts.failures }.run();
        facts.repos.push(found);
    }
    facts
}

fn is_unreadable(problem: &Problem) -> bool {
    problem.kind == ProblemKind::Unreadable
}

/// Returns the failure for something that could not be read.
fn unreadable(problem: &Problem) -> Error {
    problem.to_error("cannot check")
}

/// Returns whether there is certainly no snapshot of a commit. The content of an unreadable folder is unknown.
pub fn lacks_snapshot(layout: &Layout, repo: &RepoName, commit: &Commit) -> bool {
    match fs::metadata(layout.snapshot(repo, commit)) {
        Ok(meta) => !meta.is_dir(),
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

struct Gather<'a> {
    state: &'a LocalState,
    layout: &'a Layout,
    repo: &'a Repo,
    commits: Option<&'a BTreeSet<Commit>>,
    failures: &'a mut Vec<Error>,
}

impl Gather<'_> {
    fn run(mut self) -> RepoFacts {
        let repo = self.repo;
        let folder = self.layout.repo(&repo.name);
        let mut found = RepoFacts {
            name: repo.name.clone(),
            is_part: self.commits.is_some(),
            blobs: BTreeMap::new(),
            revisions: BTreeMap::new(),
            refs: BTreeMap::new(),
            unnamed: Vec::new(),
            odd: Vec::new(),
            is_busy: is_locked(self.layout, repo),
        };
        let by_inode = repo.blobs.iter().filter_map(|(id, blob)| Some((blob.inode.as_ref()?.id, *id))).collect();
        let selected = repo.revisions.keys().filter(|commit| self.is_selected(commit));
        found.revisions = selected.map(|commit| (commit.clone(), self.revision(commit, &by_inode))).collect();
        self.sort_problems(&folder, &mut found);
        self.read_refs(&mut found);
        let files = found.revisions.values().flat_map(|revision| revision.files.values());
        let used: HashSet<BlobId> = files.filter_map(FileFacts::blob).collect();
        let blobs = repo.blobs.iter().filter(|(id, _)| self.commits.is_none() || used.contains(id));
        let blobs = blobs.map(|(id, blob)| {
            let path = self.layout.blob(&repo.name, id);
            (*id, BlobFacts { path, place: blob.place.clone(), size: blob.size, check: Check::Unchecked })
        });
        found.blobs = blobs.collect();
        found
    }

    fn is_selected(&self, commit: &Commit) -> bool {
        self.commits.is_none_or(|commits| commits.contains(commit))
    }

    fn revision(&self, commit: &Commit, by_inode: &HashMap<(u64, u64), BlobId>) -> RevisionFacts {
        let repo = self.repo;
        let tree = self.state.tree(&repo.name, commit);
        let has_file = fs::symlink_metadata(self.layout.tree(&repo.name, commit)).is_ok();
        let has_unknown_tree = has_file && matches!(tree, TreeFile::Absent);
        let listed = |path: &RepoPath| match &tree {
            TreeFile::Valid(tree) => tree.get(path).map(|entry| entry.blob),
            _ => None,
        };
        let files = repo.revisions[commit].files.iter().map(|(path, file)| {
            let kind = match file {
                SnapshotFile::Link(blob) => {
                    let text = fs::read_link(self.layout.snapshot_file(&repo.name, commit, path));
                    FileKind::Link { blob: *blob, is_absolute: text.is_ok_and(|text| text.is_absolute()) }
                }
                SnapshotFile::Real(file) => FileKind::Real {
                    size: file.size,
                    hard_link: file.inode.as_ref().and_then(|inode| by_inode.get(&inode.id)).copied(),
                    expected: listed(path),
                    check: Check::Unchecked,
                },
            };
            (path.clone(), FileFacts { kind, twin: Check::Unchecked })
        });
        let files = files.collect();
        RevisionFacts { files, bad_paths: Vec::new(), tree, has_unknown_tree, is_unreadable: false }
    }

    /// Gives each problem of the scan to the part of the repo that it is about.
    fn sort_problems(&mut self, folder: &Path, found: &mut RepoFacts) {
        let (blobs, snapshots, refs) = (folder.join("blobs"), folder.join("snapshots"), folder.join("refs"));
        let mut outside = Vec::new();
        for problem in &self.repo.problems {
            let path = &problem.path;
            let in_blobs = path.starts_with(&blobs);
            match problem.kind {
                ProblemKind::Unreadable if path.starts_with(folder.join("trees")) => {}
                ProblemKind::Unreadable if self.concerns(&snapshots, path) => {
                    self.failures.push(unreadable(problem));
                    let commit = commit_at(&snapshots, path);
                    if let Some(revision) = commit.and_then(|commit| found.revisions.get_mut(&commit)) {
                        revision.is_unreadable = true;
                    }
                }
                ProblemKind::UnknownEntry if in_blobs && path.is_file() && self.commits.is_none() => {
                    found.unnamed.push(path.clone());
                }
                // The links to it are reported, and an unused one is only a leftover.
                ProblemKind::BrokenLink if in_blobs => {}
                _ if path.starts_with(&snapshots) && path != &snapshots => {
                    self.add_to_revision(&snapshots, problem, found);
                }
                ProblemKind::BadRef if path.starts_with(&refs) => {
                    let name = name_of_ref(&refs, path);
                    let written = files::modified(path);
                    let fault = RefFault::Bad(problem.detail.clone());
                    if self.commits.is_none() {
                        found.refs.insert(path.clone(), RefFacts { name, fault, written });
                    }
                }
                ProblemKind::NotAFile | ProblemKind::ForeignLink | ProblemKind::BadName => outside.push(problem),
                _ => {}
            }
        }
        outside.retain(|problem| self.commits.is_none() || is_used(found, blob_at(folder, &problem.path)));
        found.odd.extend(outside.into_iter().cloned());
    }

    /// Returns whether a path is part of what is checked: outside of the snapshots, or in one of the selected ones.
    fn concerns(&self, snapshots: &Path, path: &Path) -> bool {
        commit_at(snapshots, path).is_none_or(|commit| self.is_selected(&commit))
    }

    fn add_to_revision(&mut self, snapshots: &Path, problem: &Problem, found: &mut RepoFacts) {
        let inside = problem.path.strip_prefix(snapshots).unwrap_or(&problem.path);
        let mut parts = inside.iter();
        let commit = parts.next().and_then(|name| name.to_str()?.parse::<Commit>().ok());
        let text: Option<Vec<&str>> = parts.map(|part| part.to_str()).collect();
        let path = text.and_then(|parts| parts.join("/").parse::<RepoPath>().ok());
        let Some(revision) = commit.as_ref().and_then(|commit| found.revisions.get_mut(commit)) else {
            if self.commits.is_none() && problem.kind.is_failure() {
                found.odd.push(problem.clone());
            }
            return;
        };
        let Some(path) = path else {
            revision.bad_paths.push(problem.clone());
            return;
        };
        let target = fs::read_link(&problem.path).ok();
        let metadata = fs::metadata(&problem.path);
        let is_there = metadata.is_ok();
        let is_unknown = metadata.is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied);
        let named = target.as_ref().and_then(|target| target.file_name()?.to_str()?.parse::<BlobId>().ok());
        let kind = match (problem.kind, target) {
            // Its download finished after the scan.
            (ProblemKind::BrokenLink, _) if is_there && named.is_some() => {
                let Some(blob) = named else { return };
                FileKind::Link { blob, is_absolute: false }
            }
            // It is unknown whether its blob is there.
            (ProblemKind::BrokenLink, _) if is_unknown => {
                let blobs = self.layout.repo(&self.repo.name).join("blobs");
                let is_known = |known: &Problem| is_unreadable(known) && known.path.starts_with(&blobs);
                if !self.repo.problems.iter().any(is_known) {
                    self.failures.push(unreadable(problem));
                }
                match named {
                    Some(blob) => FileKind::Link { blob, is_absolute: false },
                    None => return,
                }
            }
            (ProblemKind::BrokenLink, _) => FileKind::Broken(named),
            (ProblemKind::ForeignLink, Some(target)) => FileKind::Foreign(target),
            (ProblemKind::BadName, Some(_)) if is_there => FileKind::Unnamed,
            (ProblemKind::BadName, Some(_)) => FileKind::Broken(None),
            _ => {
                found.odd.push(problem.clone());
                return;
            }
        };
        revision.files.insert(path, FileFacts { kind, twin: Check::Unchecked });
    }

    fn read_refs(&self, found: &mut RepoFacts) {
        let repo = self.repo;
        let pins = repo.pins.iter().map(|commit| (RefName::of_commit(commit), commit));
        for (name, commit) in repo.refs.iter().map(|(name, commit)| (name.clone(), commit)).chain(pins) {
            if !self.is_selected(commit) {
                continue;
            }
            let path = self.layout.reference(&repo.name, &name);
            let fault = match repo.untidy_refs.contains(&name) {
                true => RefFault::Untidy,
                false if fs::symlink_metadata(&path).is_err() => continue,
                false if !lacks_snapshot(self.layout, &repo.name, commit) => continue,
                false => RefFault::Dangling(commit.clone()),
            };
            let written = files::modified(&path);
            found.refs.insert(path, RefFacts { name: Some(name), fault, written });
        }
    }
}

/// Returns the commit of the snapshot that a path is in.
fn commit_at(snapshots: &Path, path: &Path) -> Option<Commit> {
    path.strip_prefix(snapshots).ok()?.iter().next()?.to_str()?.parse().ok()
}

/// Returns the blob of a repo whose place this is.
pub fn blob_at(repo: &Path, path: &Path) -> Option<BlobId> {
    let name = path.strip_prefix(repo.join("blobs")).ok()?;
    name.to_str()?.parse().ok()
}

/// Returns whether a file of the selected revisions is this blob.
fn is_used(found: &RepoFacts, blob: Option<BlobId>) -> bool {
    let mut files = found.revisions.values().flat_map(|revision| revision.files.values());
    blob.is_some() && files.any(|file| file.blob() == blob)
}

fn name_of_ref(refs: &Path, path: &Path) -> Option<RefName> {
    let parts: Option<Vec<&str>> = path.strip_prefix(refs).ok()?.iter().map(|part| part.to_str()).collect();
    parts?.join("/").parse().ok()
}

impl FileFacts {
    /// Returns the blob in `blobs/` that the file is, if it is one.
    pub fn blob(&self) -> Option<BlobId> {
        match &self.kind {
            FileKind::Link { blob, .. } => Some(*blob),
            FileKind::Real { hard_link, .. } => *hard_link,
            FileKind::Broken(_) | FileKind::Foreign(_) | FileKind::Unnamed => None,
        }
    }
}

/// A file to hash.
#[derive(Debug, Clone)]
pub struct Job {
    /// The file.
    pub path: PathBuf,
    /// Its size in bytes.
    pub size: u64,
    /// A name for people.
    pub label: String,
    /// A name that its bytes should have.
    pub blob: BlobId,
    /// Whether to compute git's sha1.
    pub sha1: bool,
    /// Whether to compute the sha256.
    pub sha256: bool,
    /// Index of its repo.
    pub repo: usize,
    claims: Vec<Claim>,
}

impl Job {
    /// Creates a job without claims, for tests.
    #[cfg(test)]
    pub fn new(path: PathBuf, size: u64, blob: BlobId, sha1: bool, sha256: bool) -> Job {
        Job { path, size, label: String::new(), blob, sha1, sha256, repo: 0, claims: Vec::new() }
    }
}

/// A name that the bytes of a file should have, and where it comes from.
#[derive(Debug, Clone)]
struct Claim {
    repo: usize,
    blob: BlobId,
    place: ClaimPlace,
}

#[derive(Debug, Clone)]
enum ClaimPlace {
    /// The name in `blobs/`.
    Blob,
    /// The tree, of a real file.
    File(Commit, RepoPath),
    /// The tree, of a link to a blob that has a name by the other algorithm.
    Twin(Commit, RepoPath),
}

/// The outcome of reading a file to hash it.
#[derive(Debug, Clone)]
pub enum Hashed {
    /// Its names.
    Names {
        /// git's sha1, if it was wanted.
        sha1: Option<BlobId>,
        /// The sha256, if it was wanted.
        sha256: Option<BlobId>,
        /// Number of bytes read.
        size: u64,
    },
    /// It changed or disappeared meanwhile.
    InUse,
    /// It cannot be read.
    Unreadable(Error),
}

impl Facts {
    /// Returns the files to hash, the largest first, each once, regardless of the number of its names.
    pub fn jobs(&self) -> Vec<Job> {
        let mut jobs = Jobs::default();
        for (index, repo) in self.repos.iter().enumerate() {
            let files = repo.revisions.values().flat_map(|revision| &revision.files);
            let paths: HashMap<BlobId, &RepoPath> =
                files.filter_map(|(path, file)| Some((file.blob()?, path))).collect();
            for (id, blob) in &repo.blobs {
                let label = || match paths.get(id) {
                    Some(path) => format!("{}/{path}", repo.name),
                    None => format!("{}, blob {id}", repo.name),
                };
                jobs.add(&blob.path, index, *id, ClaimPlace::Blob, label);
            }
            for (commit, revision) in &repo.revisions {
                for (path, file) in &revision.files {
                    let listed = revision.tree().and_then(|tree| tree.get(path)).map(|entry| entry.blob);
                    let at = self.layout.snapshot_file(&repo.name, commit, path);
                    let label = || format!("{}/{path}", repo.name);
                    match (&file.kind, listed) {
                        (FileKind::Link { blob, .. }, Some(listed)) if listed.may_be_twin(blob) => {
                            let place = ClaimPlace::Twin(commit.clone(), path.clone());
                            jobs.add(&at, index, listed, place, label);
                        }
                        (FileKind::Real { expected: Some(blob), .. }, _) => {
                            jobs.add(&at, index, *blob, ClaimPlace::File(commit.clone(), path.clone()), label);
                        }
                        _ => {}
                    }
                }
            }
        }
        jobs.all.sort_by_key(|job| std::cmp::Reverse(job.size));
        jobs.all
    }

    /// Records the hash of a file for every name that claims its bytes.
    pub fn record(&mut self, job: &Job, hashed: Hashed) {
        if let Hashed::Unreadable(error) = &hashed {
            self.failures.push(error.clone());
        }
        for claim in &job.claims {
            let check = self.check(claim, &hashed);
            let repo = &mut self.repos[claim.repo];
            match &claim.place {
                ClaimPlace::Blob => {
                    if let Some(blob) = repo.blobs.get_mut(&claim.blob) {
                        blob.check = check;
                    }
                }
                ClaimPlace::File(commit, path) | ClaimPlace::Twin(commit, path) => {
                    let revision = repo.revisions.get_mut(commit);
                    let Some(file) = revision.and_then(|revision| revision.files.get_mut(path)) else { continue };
                    match (&claim.place, &mut file.kind) {
                        (ClaimPlace::Twin(..), _) => file.twin = check,
                        (_, FileKind::Real { check: known, .. }) => *known = check,
                        _ => {}
                    }
                }
            }
        }
    }

    fn check(&self, claim: &Claim, hashed: &Hashed) -> Check {
        let (sha1, sha256, size) = match hashed {
            Hashed::Names { sha1, sha256, size } => (sha1, sha256, *size),
            Hashed::InUse => return Check::InUse,
            Hashed::Unreadable(_) => return Check::Unreadable,
        };
        let name = match claim.blob {
            BlobId::Sha1(_) => sha1,
            BlobId::Sha256(_) => sha256,
        };
        let repo = &self.repos[claim.repo].name;
        match name {
            Some(found) if *found == claim.blob => Check::Good,
            // Some clients write straight to the final name, under a lock.
            Some(_) if lock_files(&self.layout, repo, &claim.blob).iter().any(|path| lock::is_held(path)) => {
                Check::InUse
            }
            Some(found) => Check::Wrong { found: *found, size },
            None => Check::Unchecked,
        }
    }
}

#[derive(Default)]
struct Jobs {
    all: Vec<Job>,
    by_inode: HashMap<(u64, u64), usize>,
}

impl Jobs {
    fn add(&mut self, path: &Path, repo: usize, blob: BlobId, place: ClaimPlace, label: impl Fn() -> String) {
        let meta = fs::metadata(path).ok();
        let inode = meta.as_ref().and_then(|meta| crate::platform::inode(path, meta)).map(|inode| inode.id);
        let index = match inode.and_then(|inode| self.by_inode.get(&inode)) {
            Some(index) => *index,
            None => {
                let size = meta.map_or(0, |meta| meta.len());
                let path = path.to_path_buf();
                let job =
                    Job { path, size, label: label(), blob, sha1: false, sha256: false, repo, claims: Vec::new() };
                self.all.push(job);
                self.by_inode.extend(inode.map(|inode| (inode, self.all.len() - 1)));
                self.all.len() - 1
            }
        };
        let job = &mut self.all[index];
        match blob {
            BlobId::Sha1(_) => job.sha1 = true,
            BlobId::Sha256(_) => job.sha256 = true,
        }
        job.claims.push(Claim { repo, blob, place });
    }
}
