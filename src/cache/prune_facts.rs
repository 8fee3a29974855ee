//! Facts that a prune needs beyond the scan: activity of other processes, the tool's own leftovers, and the targets of
//! links.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

use super::incoming_links;
use crate::cache::clients::{self, BlobEntry};
use crate::cache::inventory::{Inventory, Problem, ProblemKind, Repo, UnfinishedFile, on_disk};
use crate::cache::layout::Layout;
use crate::cache::lock;
use crate::cache::shared::{self, Payload};
use crate::cache::state::{Completeness, LocalState};
use crate::error::Cause;
use crate::files;
use crate::model::ids::{BlobId, Commit, RefName, RepoName};
use crate::platform;

/// A repo's trees are read only if a client was active in it this recently.
const RECENT: Duration = Duration::from_secs(3600);

/// Everything that a prune plan is based on.
#[derive(Debug)]
pub struct Facts {
    /// The result of the scan.
    pub inventory: Inventory,
    /// Payloads of the cache-wide store.
    pub payloads: Vec<Payload>,
    /// Problems found while reading that store.
    pub store_problems: Vec<Problem>,
    /// The tool's own unfinished files.
    pub leftovers: Vec<Leftover>,
    /// Unfinished downloads at the root, which may belong to any repo.
    pub root_temporaries: Vec<UnfinishedFile>,
    /// Places that could not be inspected, with the cause, in addition to those that the scan reports as unreadable.
    pub hidden: BTreeMap<PathBuf, Cause>,
    /// Places that the scan reports as unreadable, but that cannot contain links.
    pub harmless: BTreeSet<PathBuf>,
    /// Facts about individual repos; a repo without an entry has the defaults.
    pub repos: BTreeMap<RepoName, RepoFacts>,
    /// Whether the file system keeps no access times.
    pub noatime: bool,
}

impl Facts {
    /// Returns the facts about a repo, or the defaults.
    pub fn for_repo(&self, repo: &RepoName) -> &RepoFacts {
        static DEFAULT: LazyLock<RepoFacts> = LazyLock::new(RepoFacts::default);
        self.repos.get(repo).unwrap_or(&DEFAULT)
    }
}

/// Facts about one repo.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RepoFacts {
    /// A part of its folder that is itself a link. Nothing is deleted through it.
    pub linked_part: Option<PathBuf>,
    /// A link outside this repo that leads into it.
    pub needed_by: Option<PathBuf>,
    /// When a client last started or finished downloading one of its blobs, judging by its locks.
    pub client_seen: Option<SystemTime>,
    /// Revisions that have all files of their tree, so none of them is half downloaded. Only collected if a client was
    /// active recently.
    pub complete: BTreeSet<Commit>,
    /// Unfinished downloads whose lock another process holds right now.
    pub held: BTreeSet<PathBuf>,
    /// Whether another process holds the lock of any blob of this repo, so it is working in the repo.
    pub locked: bool,
    /// Refs that name a commit without a snapshot.
    pub dangling_refs: BTreeMap<RefName, DanglingRef>,
    /// Last change of anything that is deleted with an empty folder: refs and trees without a snapshot, and the folder
    /// itself if it has no snapshots at all.
    pub last_change: Option<SystemTime>,
    /// Last change of the folders themselves. It shows that entries were added or removed, regardless of their own times.
    pub last_arrival: Option<SystemTime>,
    /// Last write to a file that may be a download, although no known client uses its name.
    pub last_unfinished_write: Option<SystemTime>,
}

/// A ref to a commit without a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DanglingRef {
    /// The commit that it names.
    pub commit: Commit,
    /// When it was written.
    pub written: Option<SystemTime>,
}

/// An unfinished file or folder in the tool's own state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leftover {
    /// Its path.
    pub path: PathBuf,
    /// Its size in bytes.
    pub bytes: u64,
    /// Last change.
    pub modified: Option<SystemTime>,
}

/// Collects all facts.
pub fn gather(inventory: Inventory) -> Facts {
    let layout = inventory.layout.clone();
    let state = LocalState::new(inventory);
    let (payloads, store_problems) = shared::payloads(&layout);
    let mut repos: BTreeMap<RepoName, RepoFacts> =
        state.inventory().repos.iter().map(|repo| (repo.name.clone(), repo_facts(&state, repo))).collect();
    let inventory = state.into_inventory();
    let links = incoming_links::find(&inventory);
    for (name, link) in links.needed {
        if let Some(facts) = repos.get_mut(&name) {
            facts.needed_by = Some(link);
        }
    }
    let noatime = platform::lacks_access_times(layout.root());
    let (hidden, harmless) = (links.hidden, links.harmless);
    let (leftovers, root_temporaries) = (find_leftovers(&layout), root_temporaries(&layout));
    Facts { leftovers, root_temporaries, hidden, harmless, inventory, payloads, store_problems, repos, noatime }
}

fn repo_facts(state: &LocalState, repo: &Repo) -> RepoFacts {
    let layout = state.layout();
    let folder = layout.repo(&repo.name);
    let parts = ["blobs", "snapshots", "refs", "trees", ".no_exist"].map(|name| folder.join(name));
    let is_link = |path: &&PathBuf| fs::symlink_metadata(path).is_ok_and(|meta| meta.is_symlink());
    let written =
        |name: &RefName| fs::symlink_metadata(layout.reference(&repo.name, name)).and_then(|meta| meta.modified());
    let refs = repo.refs.iter().map(|(name, commit)| (name.clone(), commit));
    let dangling_refs = refs
        .chain(repo.pins.iter().map(|commit| (RefName::of_commit(commit), commit)))
        .filter(|(_, commit)| !repo.revisions.contains_key(*commit));
    let dangling_refs: BTreeMap<_, _> = dangling_refs
        .map(|(name, commit)| {
            let written = written(&name).ok();
            (name, DanglingRef { commit: commit.clone(), written })
        })
        .collect();
    let dangling_trees = repo.trees.iter().filter(|commit| !repo.revisions.contains_key(*commit));
    let mut last_change = LatestChange(dangling_refs.values().map(|one| one.written).max().flatten());
    dangling_trees.for_each(|commit| last_change.include(&layout.tree(&repo.name, commit)));
    if repo.revisions.is_empty() {
        last_change.include(&folder);
        parts.iter().for_each(|part| last_change.include(part));
    }
    let mut last_arrival = LatestChange::default();
    for part in [&folder, &parts[0], &parts[1], &parts[2]] {
        last_arrival.include(part);
    }
    let client_seen = last_client_activity(layout, repo);
    let is_recent = client_seen.is_some_and(|time| time.elapsed().is_ok_and(|age| age < RECENT));
    let is_complete = |commit: &&Commit| state.completeness(repo, commit) == Completeness::Complete;
    let complete = repo.revisions.keys().filter(|_| is_recent).filter(is_complete);
    RepoFacts {
        linked_part: parts.iter().find(is_link).cloned(),
        needed_by: None,
        client_seen,
        complete: complete.cloned().collect(),
        locked: is_locked(layout, repo),
        held: repo.in_flight.iter().filter(|file| is_held(layout, repo, &file.path)).map(|f| f.path.clone()).collect(),
        dangling_refs,
        last_change: last_change.0,
        last_arrival: last_arrival.0,
        last_unfinished_write: last_unfinished_write(repo, &folder),
    }
}

/// Returns the time of the last write to an unknown file in `blobs/` or in a temporary folder of the repo. Copy
/// programs and unknown clients keep their unfinished files there.
fn last_unfinished_write(repo: &Repo, folder: &Path) -> Option<SystemTime> {
    let blobs = folder.join("blobs");
    let unknown = repo.problems.iter().filter(|problem| problem.kind == ProblemKind::UnknownEntry);
    let unknown = unknown.map(|problem| &problem.path).filter(|path| path.starts_with(&blobs));
    let in_blobs = unknown.filter_map(|path| last_write(path, &|_| true));
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let beside = entries.filter_map(|entry| match entry.file_name().to_str()? {
        // Clients also keep notes on finished downloads there.
        ".metadata" => last_write(&entry.path(), &|name| clients::blob_entry(name) == BlobEntry::InFlight),
        name if clients::is_known_in_repo(name) => last_write(&entry.path(), &|_| true),
        _ => None,
    });
    in_blobs.chain(beside).max()
}

/// Returns the time of the last write to `path` or a file below it whose name `counts`. Links are not followed.
fn last_write(path: &Path, counts: &dyn Fn(&str) -> bool) -> Option<SystemTime> {
    let meta = fs::symlink_metadata(path).ok()?;
    if meta.is_dir() {
        let entries = fs::read_dir(path).into_iter().flatten().flatten();
        return entries.filter_map(|entry| last_write(&entry.path(), counts)).max();
    }
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let file = (meta.is_file() && counts(name)).then(|| UnfinishedFile::new(path.to_path_buf(), &meta));
    file.and_then(|file| file.last_write())
}

/// Returns the newest time of a client's lock file or of the blob that was downloaded under it, since some clients do
/// not update the time of a lock file that they take again. Locks of this tool's own pulls do not count: none is
/// running now.
fn last_client_activity(layout: &Layout, repo: &Repo) -> Option<SystemTime> {
    let mut newest = LatestChange::default();
    for path in find_locks(layout, repo).unwrap_or_default().into_iter().filter(|path| !lock::is_own(path)) {
        newest.include(&path);
        let blob = path.file_name().and_then(|name| clients::blob_of_temporary(name.to_str()?));
        newest.0 = newest.0.max(blob.and_then(|blob| repo.blobs.get(&blob)?.modified));
    }
    newest.0
}

/// Returns whether another process holds a lock of this repo. Also true if that cannot be determined.
pub fn is_locked(layout: &Layout, repo: &Repo) -> bool {
    find_locks(layout, repo).is_none_or(|locks| locks.iter().any(|path| lock::is_held(path)))
}

/// Returns whether another process now holds a lock of this repo, regardless of an earlier scan. Also true if that cannot be
/// determined.
pub fn is_locked_now(layout: &Layout, repo: &RepoName) -> bool {
    let folders = vec![layout.root().join(".locks").join(repo.folder()), layout.blobs(repo)];
    find_locks_below(folders).is_none_or(|locks| locks.iter().any(|path| lock::is_held(path)))
}

/// Finds the lock files of a repo wherever clients keep them; `None` if one of those folders cannot be read.
fn find_locks(layout: &Layout, repo: &Repo) -> Option<Vec<PathBuf>> {
    let mut found = find_locks_below(vec![layout.root().join(".locks").join(repo.name.folder())])?;
    found.extend(repo.locks.iter().cloned());
    Some(found)
}

fn find_locks_below(mut folders: Vec<PathBuf>) -> Option<Vec<PathBuf>> {
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => continue,
            Err(_) => return None,
        };
        for entry in entries {
            let entry = entry.ok()?;
            match entry.file_type().ok()?.is_dir() {
                true => folders.push(entry.path()),
                false if entry.path().extension().is_some_and(|end| end == "lock") => found.push(entry.path()),
                false => {}
            }
        }
    }
    Some(found)
}

/// Returns whether another process holds the lock of the blob that this file will become.
fn is_held(layout: &Layout, repo: &Repo, file: &Path) -> bool {
    let blob = file.file_name().and_then(|name| clients::blob_of_temporary(name.to_str()?));
    blob.is_some_and(|blob| lock_files(layout, &repo.name, &blob).iter().any(|path| lock::is_held(path)))
}

/// Returns the lock files that clients may hold while they download a blob.
pub fn lock_files(layout: &Layout, repo: &RepoName, blob: &BlobId) -> [PathBuf; 3] {
    let file = format!("{blob}.lock");
    let locks = layout.root().join(".locks").join(repo.folder());
    [layout.client_lock(repo, blob), locks.join("blobs").join(&file), layout.blobs(repo).join(file)]
}

/// The newest modification time of several paths. Missing paths do not count.
#[derive(Default)]
struct LatestChange(Option<SystemTime>);

impl LatestChange {
    fn include(&mut self, path: &Path) {
        self.0 = self.0.max(files::modified(path));
    }
}

/// Finds unfinished downloads of clients that keep them at the root or in its `tmp` folder. Unreadable entries are
/// ignored.
pub fn root_temporaries(layout: &Layout) -> Vec<UnfinishedFile> {
    let files = |folder: &Path, wanted: fn(&str) -> bool| {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        let named = entries.filter(move |entry| entry.file_name().to_str().is_some_and(wanted));
        named.filter_map(|entry| Some((entry.path(), entry.metadata().ok().filter(|meta| meta.is_file())?)))
    };
    let folder = layout.root().join(clients::TEMPORARY_FOLDER);
    let inside = crate::cache::remove::is_inside(layout.root(), &folder.join("file"));
    let of_folder = inside.then(|| files(&folder, clients::is_in_temporary_folder)).into_iter().flatten();
    let all = files(layout.root(), clients::is_root_temporary).chain(of_folder);
    let mut found: Vec<UnfinishedFile> = all.map(|(path, meta)| UnfinishedFile::new(path, &meta)).collect();
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

/// Finds partial downloads, staging folders and records of resumable uploads. A partial download and its journal share
/// the newer of their two times.
fn find_leftovers(layout: &Layout) -> Vec<Leftover> {
    let mut found = Vec::new();
    for folder in [layout.partials(), layout.staging(), layout.uploads()] {
        if !crate::cache::remove::is_inside(layout.root(), &folder.join("entry")) {
            continue;
        }
        let mut group: BTreeMap<PathBuf, (LatestChange, Vec<(PathBuf, u64)>)> = BTreeMap::new();
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            let (newest, files) = group.entry(path.with_extension("")).or_default();
            newest.include(&path);
            files.push((path.clone(), reclaimable_bytes(&path)));
        }
        for (newest, files) in group.into_values() {
            found.extend(files.into_iter().map(|(path, bytes)| Leftover { path, bytes, modified: newest.0 }));
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

/// Returns the bytes that deleting `path` would free, as far as it can be read.
fn reclaimable_bytes(path: &Path) -> u64 {
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => {
            fs::read_dir(path).into_iter().flatten().flatten().map(|entry| reclaimable_bytes(&entry.path())).sum()
        }
        Ok(meta) if meta.is_file() => {
            let last = platform::inode(path, &meta).is_none_or(|inode| inode.links <= 1);
            if last { on_disk(&meta) } else { 0 }
        }
        _ => 0,
    }
}
