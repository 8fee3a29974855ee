//! The scanner: takes an inventory of the cache, and records every problem found on the way.
//!
//! It makes one pass over the folders, with two system calls per file and repos in parallel. Links are read, not
//! followed: a snapshot file's blob is the name of its FIRST hop in `blobs/`, even if that entry is itself a link into
//! the cache-wide store. Nothing is skipped silently: anything unreadable or not understood becomes a [`Problem`].

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs::{self, DirEntry, Metadata};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;

use super::clients::{self, BlobEntry};
use super::inventory::{
    Blob, BlobPlace, Inventory, Problem, ProblemKind, RealFile, Repo, Revision, SnapshotFile, UnfinishedFile,
};
use super::junk::{is_copy, is_junk};
use super::layout::{self, Layout};
use super::read;
use crate::error::{Cause, Error, Result, plain_io};
use crate::files;
use crate::model::file_list::MAX_SIZE;
use crate::model::ids::{BlobId, Commit, RefName, RepoName, RepoPath};
use crate::model::tree::Tree;
use crate::platform::{LinkReader, inode};

/// Scans the cache. A root that does not exist is an empty cache.
///
/// # Errors
/// If the root is not a folder or cannot be read at all. Errors below it become [`Problem`]s.
pub fn scan(root: &Path) -> Result<Inventory> {
    let layout = Layout::new(root);
    let mut inventory = Inventory { layout, repos: Vec::new(), problems: Vec::new(), shared_store: false };
    let entries = match fs::metadata(root) {
        Ok(meta) if !meta.is_dir() => {
            return Err(Error::usage(format!("the cache directory {} is not a directory", root.display()))
                .hint("set HF_HUB_CACHE, cache.hf_cache_dir or --cache-dir to the `hub` folder"));
        }
        Ok(_) => fs::read_dir(root).map_err(|e| Error::io("cannot read the cache directory", root, &e))?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(inventory),
        Err(error) => return Err(Error::io("cannot read the cache directory", root, &error)),
    };

    let mut folders = Vec::new();
    for entry in entries {
        let entry = match entry {
            Ok(entry) => entry,
            Err(error) => {
                inventory.problems.push(Problem::unreadable(root, &error));
                continue;
            }
        };
        match root_entry(&entry) {
            RootEntry::Repo(name) => folders.push((name, entry.path())),
            RootEntry::SharedStore => inventory.shared_store = super::shared::is_store(&inventory.layout),
            RootEntry::Known => {}
            RootEntry::Unknown => {
                let detail = "not part of a Hugging Face cache";
                inventory.problems.push(Problem::new(entry.path(), ProblemKind::UnknownEntry, detail));
            }
        }
    }
    inventory.repos = scan_repos(&inventory.layout, &folders);
    inventory.repos.sort_by(|a, b| a.name.cmp(&b.name));
    inventory.problems.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(inventory)
}

enum RootEntry {
    Repo(RepoName),
    SharedStore,
    Known,
    Unknown,
}

fn root_entry(entry: &DirEntry) -> RootEntry {
    let name = entry.file_name();
    let Some(name) = name.to_str() else { return RootEntry::Unknown };
    match RepoName::from_folder(name) {
        Some(repo) => RootEntry::Repo(repo),
        None if name == "blobs" => RootEntry::SharedStore,
        None if clients::is_known_at_root(name) || is_junk(name) => RootEntry::Known,
        None => RootEntry::Unknown,
    }
}

/// Scans one repo folder again, before something in it is deleted.
pub fn scan_repo(layout: &Layout, name: &RepoName) -> Repo {
    scan_folder(layout, name, &layout.repo(name))
}

/// Scans a repo folder that was moved to `path`.
pub fn scan_folder(layout: &Layout, name: &RepoName, path: &Path) -> Repo {
    RepoScan::run(layout, name, path)
}

/// Reads only the refs of one repo. Except for them and their problems, the result is empty.
pub fn scan_refs(layout: &Layout, name: &RepoName) -> Repo {
    let path = layout.repo(name);
    let mut scan = RepoScan::new(layout, name, &path);
    scan.scan_refs(path.join("refs"), String::new());
    scan.repo
}

/// Returns the refs of one repo that have white space around their commit.
pub fn untidy_refs(layout: &Layout, name: &RepoName) -> Vec<RefName> {
    let path = layout.repo(name);
    let mut scan = RepoScan::new(layout, name, &path);
    scan.scan_refs(path.join("refs"), String::new());
    scan.repo.untidy_refs
}

/// Scans repo folders on a few threads, since the work consists of system calls, which overlap.
fn scan_repos(layout: &Layout, folders: &[(RepoName, PathBuf)]) -> Vec<Repo> {
    let threads = std::thread::available_parallelism().map_or(2, |n| n.get().clamp(2, 8)).min(folders.len());
    let next = AtomicUsize::new(0);
    let found = Mutex::new(Vec::with_capacity(folders.len()));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some((name, path)) = folders.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let repo = RepoScan::run(layout, name, path);
                    // The repo was deleted after the root was read.
                    if files::is_missing(path) {
                        continue;
                    }
                    found.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(repo);
                }
            });
        }
    });
    found.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// The scan of one repo folder.
struct RepoScan<'a> {
    layout: &'a Layout,
    path: &'a Path,
    blobs_dir: PathBuf,
    /// Broken links in `blobs/`, with the reason.
    dangling: HashMap<BlobId, (String, Cause)>,
    /// Paths in snapshots. Most are in several, which share the text.
    paths: HashSet<RepoPath>,
    repo: Repo,
}

impl<'a> RepoScan<'a> {
    fn new(layout: &'a Layout, name: &RepoName, path: &'a Path) -> Self {
        let repo = Repo {
            name: name.clone(),
            blobs: BTreeMap::new(),
            revisions: BTreeMap::new(),
            refs: BTreeMap::new(),
            pins: BTreeSet::new(),
            untidy_refs: Vec::new(),
            trees: Vec::new(),
            in_flight: Vec::new(),
            temporaries: Vec::new(),
            locks: Vec::new(),
            problems: Vec::new(),
            is_link: fs::symlink_metadata(path).is_ok_and(|meta| meta.is_symlink()),
        };
        RepoScan { layout, path, blobs_dir: path.join("blobs"), dangling: HashMap::new(), paths: HashSet::new(), repo }
    }

    fn run(layout: &'a Layout, name: &RepoName, path: &'a Path) -> Repo {
        let mut scan = RepoScan::new(layout, name, path);
        scan.scan_all();
        scan.repo.problems.sort_by(|a, b| a.path.cmp(&b.path));
        scan.repo
    }

    fn add_problem(&mut self, path: PathBuf, kind: ProblemKind, detail: impl Into<String>) {
        self.repo.problems.push(Problem::new(path, kind, detail));
    }

    fn add_broken_link(&mut self, path: PathBuf, detail: String, cause: Cause) {
        self.repo.problems.push(Problem { cause, ..Problem::new(path, ProblemKind::BrokenLink, detail) });
    }

    fn add_special_file(&mut self, path: PathBuf, meta: &Metadata) {
        self.add_problem(path, ProblemKind::NotAFile, files::not_a_file(meta));
    }

    /// Lists the entries of a folder that have UTF-8 names. A missing folder has none.
    fn list_folder(&mut self, dir: &Path) -> Vec<(String, DirEntry)> {
        let mut out = Vec::new();
        let entries = match fs::read_dir(dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return out,
            Err(error) => {
                self.repo.problems.push(Problem::unreadable(dir, &error));
                return out;
            }
        };
        for entry in entries {
            match entry {
                Err(error) => self.repo.problems.push(Problem::unreadable(dir, &error)),
                Ok(entry) => match entry.file_name().into_string() {
                    Ok(name) => out.push((name, entry)),
                    Err(_) => self.add_problem(entry.path(), ProblemKind::BadName, "its name is not UTF-8"),
                },
            }
        }
        out
    }

    fn scan_all(&mut self) {
        let cause = match fs::metadata(self.path) {
            Ok(meta) if meta.is_dir() => None,
            Ok(_) => Some(Cause::Other),
            Err(error) => Some(Cause::of_io(&error)),
        };
        if let Some(cause) = cause {
            let detail = "is named like a repo but is not a readable folder";
            let problem = Problem::new(self.path.to_path_buf(), ProblemKind::Unreadable, detail);
            self.repo.problems.push(Problem { cause, ..problem });
            return;
        }
        for (name, entry) in self.list_folder(self.path) {
            match name.as_str() {
                "blobs" | "snapshots" | "refs" | "trees" | ".no_exist" => {}
                name if clients::is_known_in_repo(name) || is_junk(name) => {}
                _ => self.add_problem(entry.path(), ProblemKind::UnknownEntry, "not part of a cached repo"),
            }
        }
        // Reported once, instead of again for each part.
        if self.repo.problems.iter().any(|problem| problem.kind == ProblemKind::Unreadable) {
            return;
        }
        self.scan_blobs();
        self.scan_snapshots();
        self.scan_refs(self.path.join("refs"), String::new());
        self.scan_trees();
    }

    fn scan_blobs(&mut self) {
        let dir = self.blobs_dir.clone();
        let entries = self.list_folder(&dir);
        let mut blobs = Vec::with_capacity(entries.len());
        for (name, entry) in entries {
            let meta = match entry.metadata() {
                Ok(meta) => meta,
                // Renamed or removed after the folder was read, because a download finished.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => {
                    self.repo.problems.push(Problem::unreadable(&entry.path(), &error));
                    continue;
                }
            };
            let modified = meta.modified().ok();
            match clients::blob_entry(&name) {
                BlobEntry::Blob(id) if meta.is_file() => {
                    blobs.push((id, blob(&entry.path(), &meta, BlobPlace::Blobs, modified)));
                }
                BlobEntry::Blob(id) if meta.is_symlink() => self.add_linked_blob(id, entry.path(), modified),
                BlobEntry::Blob(_) if files::is_special(&meta) => self.add_special_file(entry.path(), &meta),
                BlobEntry::Blob(_) => {
                    self.add_problem(entry.path(), ProblemKind::BadName, "is named like a blob but is not a file")
                }
                BlobEntry::InFlight | BlobEntry::Lock | BlobEntry::Note if meta.is_dir() => {
                    self.add_problem(entry.path(), ProblemKind::UnknownEntry, "is in blobs/, but is a folder")
                }
                BlobEntry::InFlight => {
                    self.repo.in_flight.push(UnfinishedFile::new(entry.path(), &meta));
                }
                BlobEntry::Lock => self.repo.locks.push(entry.path()),
                BlobEntry::Note => {}
                BlobEntry::Foreign if is_junk(&name) => {}
                BlobEntry::Foreign => {
                    self.add_problem(
                        entry.path(),
                        ProblemKind::UnknownEntry,
                        "is in blobs/, but its name is not a hash",
                    );
                }
            }
        }
        // In bulk, which is cheaper than one by one and fills the nodes of the map.
        self.repo.blobs.append(&mut BTreeMap::from_iter(blobs));
    }

    fn add_linked_blob(&mut self, id: BlobId, path: PathBuf, placed: Option<SystemTime>) {
        let target = match fs::read_link(&path) {
            Ok(target) => target,
            Err(error) => {
                self.repo.problems.push(Problem::unreadable(&path, &error));
                return;
            }
        };
        let place = match layout::shared_target(&self.layout.shared_store(), &self.blobs_dir, &target) {
            Some(payload) => BlobPlace::Shared(payload),
            None => BlobPlace::Elsewhere,
        };
        match fs::metadata(&path) {
            Ok(meta) if meta.is_file() => {
                self.repo.blobs.insert(id, blob(&path, &meta, place, placed));
            }
            Ok(_) => self.add_problem(path, ProblemKind::ForeignLink, "is a link to something that is not a file"),
            Err(error) => {
                let detail = format!("its target {} cannot be read: {}", target.display(), plain_io(&error));
                self.add_broken_link(path, detail.clone(), Cause::of_io(&error));
                self.dangling.insert(id, (detail, Cause::of_io(&error)));
            }
        }
    }

    fn scan_snapshots(&mut self) {
        for (name, entry) in self.list_folder(&self.path.join("snapshots")) {
            let path = entry.path();
            let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
            match name.parse::<Commit>() {
                Ok(commit) if is_dir => {
                    let files = self.scan_snapshot(path, &commit);
                    self.repo.revisions.insert(commit, Revision { files: BTreeMap::from_iter(files) });
                }
                Err(_) if is_junk(&name) => {}
                Ok(_) => {
                    self.add_problem(path, ProblemKind::ForeignLink, "is named like a snapshot but is not a folder")
                }
                Err(_) => self.add_problem(
                    path,
                    ProblemKind::UnknownEntry,
                    "is in snapshots/, but its name is not a commit hash",
                ),
            }
        }
    }

    /// Returns the files of one snapshot, in no particular order.
    fn scan_snapshot(&mut self, root: PathBuf, commit: &Commit) -> Vec<(RepoPath, SnapshotFile)> {
        let mut files = Vec::new();
        let mut commit_files = CommitFiles { commit, tree: None, inodes: None };
        let mut left = vec![Folder { path: root, prefix: String::new(), depth: 0, looks_like_junk: false }];
        while let Some(folder) = left.pop() {
            self.scan_snapshot_folder(&folder, &mut commit_files, &mut files, &mut left);
        }
        files
    }

    fn scan_snapshot_folder(
        &mut self,
        folder: &Folder,
        commit_files: &mut CommitFiles<'_>,
        files: &mut Vec<(RepoPath, SnapshotFile)>,
        left: &mut Vec<Folder>,
    ) {
        let before = self.repo.problems.len();
        let mut links = Links::new(&folder.path);
        for (name, entry) in self.list_folder(&folder.path) {
            let kind = match entry.file_type() {
                Ok(kind) => kind,
                Err(error) => {
                    self.repo.problems.push(Problem::unreadable(&entry.path(), &error));
                    continue;
                }
            };
            let looks_like_junk = folder.looks_like_junk || is_junk(&name);
            if kind.is_dir() {
                let (path, prefix) = (entry.path(), format!("{}{name}/", folder.prefix));
                left.push(Folder { path, prefix, depth: folder.depth + 1, looks_like_junk });
                continue;
            }
            if kind.is_file() && clients::is_unfinished_file(&name) {
                self.add_in_flight(&entry);
                continue;
            }
            let relative = match folder.prefix.is_empty() {
                true => name.parse::<RepoPath>(),
                false => format!("{}{name}", folder.prefix).parse(),
            };
            let relative = match relative {
                Ok(relative) => relative,
                Err(_) if looks_like_junk => continue,
                Err(why) => {
                    self.add_problem(entry.path(), ProblemKind::BadName, why.to_string());
                    continue;
                }
            };
            let file = match (kind.is_symlink(), looks_like_junk) {
                (true, _) => self.resolve_link(&mut links, &name, folder.depth, looks_like_junk),
                (false, false) => self.read_real_file(&entry),
                (false, true) => entry
                    .metadata()
                    .ok()
                    .and_then(|meta| real_file(&entry.path(), &meta))
                    .filter(|file| commit_files.contains(self, &relative, file)),
            };
            if let Some(file) = file {
                let path = match self.paths.get(&relative) {
                    Some(known) => known.clone(),
                    None => {
                        self.paths.insert(relative.clone());
                        relative
                    }
                };
                files.push((path, file));
            }
        }
        // Problems in junk folders, such as an unreadable `lost+found`, do not concern the commit.
        if folder.looks_like_junk {
            let kept = self.repo.problems.split_off(before);
            self.repo.problems.extend(kept.into_iter().filter(|problem| problem.kind == ProblemKind::BrokenLink));
        }
    }

    /// Resolves a link to its blob. A file that is named like junk belongs to the commit only if it links to a blob.
    fn resolve_link(
        &mut self,
        links: &mut Links,
        name: &str,
        depth: usize,
        looks_like_junk: bool,
    ) -> Option<SnapshotFile> {
        let dir = links.dir;
        let target = match links.read(name) {
            Ok(target) => target,
            Err(_) if looks_like_junk => return None,
            Err(error) => {
                self.repo.problems.push(Problem::unreadable(&dir.join(name), &error));
                return None;
            }
        };
        let Some(blob_name) = self.first_hop(dir, target, depth) else {
            if looks_like_junk {
                return None;
            }
            let detail = format!("links to {}, which is not a blob of this repo", target.display());
            self.add_problem(dir.join(name), ProblemKind::ForeignLink, detail);
            return None;
        };
        let Ok(id) = blob_name.parse::<BlobId>() else {
            if looks_like_junk {
                return None;
            }
            let detail = format!("its blob '{blob_name}' has a name that is not a hash");
            self.add_problem(dir.join(name), ProblemKind::BadName, detail);
            return None;
        };
        if self.repo.blobs.contains_key(&id) || self.has_appeared(id) {
            return Some(SnapshotFile::Link(id));
        }
        let (detail, cause) = match self.dangling.get(&id) {
            Some(known) => known.clone(),
            None => (format!("its blob {id} is missing"), Cause::Other),
        };
        self.add_broken_link(dir.join(name), detail, cause);
        None
    }

    /// Returns whether a blob appeared after `blobs/` was read, because its download finished during the scan.
    fn has_appeared(&mut self, id: BlobId) -> bool {
        let path = self.blobs_dir.join(id.to_string());
        match fs::symlink_metadata(&path) {
            Ok(meta) if meta.is_file() => {
                self.repo.blobs.insert(id, blob(&path, &meta, BlobPlace::Blobs, meta.modified().ok()));
            }
            Ok(meta) if meta.is_symlink() && !self.dangling.contains_key(&id) => {
                self.add_linked_blob(id, path, meta.modified().ok())
            }
            _ => {}
        }
        self.repo.blobs.contains_key(&id)
    }

    /// Returns the name in `blobs/` that a link in the snapshot folder `dir` points to. The client's own link text is
    /// recognised directly. Other spellings (absolute, through a linked cache root) are resolved.
    fn first_hop<'t>(&self, dir: &Path, target: &'t Path, depth: usize) -> Option<Cow<'t, str>> {
        let text = target.to_str()?;
        let mut rest = text;
        for _ in 0..depth + 2 {
            match rest.strip_prefix("../") {
                Some(shorter) => rest = shorter,
                None => break,
            }
        }
        if text.len() - rest.len() == 3 * (depth + 2)
            && let Some(name) = rest.strip_prefix("blobs/")
            && !name.contains(['/', '\\'])
        {
            return Some(Cow::Borrowed(name));
        }
        let resolved = layout::normalized(&dir.join(target));
        let (parent, name) = (resolved.parent()?, resolved.file_name()?.to_str()?);
        let same = parent == self.blobs_dir
            || matches!((parent.canonicalize(), self.blobs_dir.canonicalize()), (Ok(a), Ok(b)) if a == b);
        same.then(|| Cow::Owned(name.to_string()))
    }

    fn read_real_file(&mut self, entry: &DirEntry) -> Option<SnapshotFile> {
        let found = entry.metadata();
        match &found {
            Ok(meta) if meta.is_file() => {}
            Ok(meta) => self.add_special_file(entry.path(), meta),
            Err(error) => self.repo.problems.push(Problem::unreadable(&entry.path(), error)),
        }
        real_file(&entry.path(), &found.ok()?)
    }

    /// Scans a folder of refs. `prefix` is its path in `refs/`, empty or ending in `/`.
    fn scan_refs(&mut self, dir: PathBuf, prefix: String) {
        let mut entries = self.list_folder(&dir);
        entries.sort_by(|(a, _), (b, _)| a.cmp(b));
        for (name, entry) in entries {
            let path = entry.path();
            let relative = format!("{prefix}{name}");
            match entry.file_type() {
                Ok(kind) if kind.is_dir() && is_junk(&name) => {}
                Ok(kind) if kind.is_dir() && prefix.len() < 512 => self.scan_refs(path, format!("{relative}/")),
                Ok(kind) if kind.is_file() && clients::is_temporary_ref(&name) => self.add_temporary(path, &entry),
                Ok(kind) if kind.is_file() => self.read_ref(path, &relative, &entry),
                Ok(_) if is_junk(&name) => {}
                Ok(_) => {
                    let meta = entry.metadata().ok().filter(files::is_special);
                    let what = meta.map_or("is a ref but not a regular file".into(), |meta| files::not_a_file(&meta));
                    self.add_problem(path, ProblemKind::BadRef, what);
                }
                Err(error) => self.repo.problems.push(Problem::unreadable(&path, &error)),
            }
        }
    }

    /// Reads one ref. A branch may be named like junk, so the file's content decides.
    fn read_ref(&mut self, path: PathBuf, relative: &str, entry: &DirEntry) {
        let looks_like_junk = entry.file_name().to_str().is_some_and(is_junk);
        let content = match read::read_small(&path, layout::MAX_REF) {
            Ok(content) => content,
            Err(_) if looks_like_junk => return,
            Err(error) => {
                self.repo.problems.push(Problem::unreadable(&path, &error));
                return;
            }
        };
        let text = content.and_then(|bytes| String::from_utf8(bytes).ok());
        let bare = text.as_deref().map(layout::bare_commit);
        let untidy = bare != text.as_deref();
        match (relative.parse::<RefName>(), bare.map(str::parse::<Commit>)) {
            (_, None | Some(Err(_))) if clients::may_be_torn_ref(relative) && !looks_like_junk => {
                self.add_temporary(path, entry)
            }
            (Ok(name), Some(Ok(commit))) => {
                if untidy {
                    let detail = "has white space around its commit, which huggingface_hub takes as part of it \
                                  (`hf-cache-sync doctor --fix` repairs it)";
                    self.add_problem(path, ProblemKind::UntidyRef, detail);
                    self.repo.untidy_refs.push(name.clone());
                }
                match commit.as_str() == relative {
                    true => drop(self.repo.pins.insert(commit)),
                    false => drop(self.repo.refs.insert(name, commit)),
                }
            }
            _ if looks_like_junk => {}
            // Neither git nor the Hub allows such a ref: a dotfile, a temporary file of rsync, a conflicted copy.
            (Err(why), _) => self.add_problem(path, ProblemKind::UnknownEntry, format!("is in refs/, but {why}")),
            (_, None | Some(Err(_))) if is_copy(relative) => {
                self.add_problem(path, ProblemKind::UnknownEntry, "is in refs/, but its content is not a commit hash")
            }
            (_, Some(Err(why))) => self.add_problem(path, ProblemKind::BadRef, format!("its content {why}")),
            (_, None) => self.add_problem(path, ProblemKind::BadRef, "its content is not a commit hash"),
        }
    }

    fn scan_trees(&mut self) {
        for (name, entry) in self.list_folder(&self.path.join("trees")) {
            match name.strip_suffix(".json").map(str::parse::<Commit>) {
                Some(Ok(commit)) => match entry.file_type() {
                    Ok(kind) if kind.is_file() || kind.is_symlink() || kind.is_dir() => self.repo.trees.push(commit),
                    _ => match entry.metadata() {
                        Ok(meta) if files::is_special(&meta) => self.add_special_file(entry.path(), &meta),
                        _ => self.repo.trees.push(commit),
                    },
                },
                _ if is_junk(&name) => {}
                _ if clients::is_temporary_tree(&name) => self.add_temporary(entry.path(), &entry),
                _ => self.add_problem(entry.path(), ProblemKind::UnknownEntry, "is in trees/, but is not a tree"),
            }
        }
        self.repo.trees.sort();
    }

    fn add_in_flight(&mut self, entry: &DirEntry) {
        // Gone already: it was renamed to what it was for.
        if let Ok(meta) = entry.metadata() {
            self.repo.in_flight.push(UnfinishedFile::new(entry.path(), &meta));
        }
    }

    fn add_temporary(&mut self, path: PathBuf, entry: &DirEntry) {
        // Gone already: it was renamed to what it was for.
        if let Ok(meta) = entry.metadata() {
            self.repo.temporaries.push(UnfinishedFile::new(path, &meta));
        }
    }
}

/// A folder of a snapshot that has yet to be scanned.
struct Folder {
    path: PathBuf,
    /// Its path in the repo, empty or ending in `/`.
    prefix: String,
    /// Its depth below the snapshot.
    depth: usize,
    /// Whether it is named like junk, or is in a folder that is.
    looks_like_junk: bool,
}

/// Decides which real files named like junk belong to a commit: those that its tree lists, and hard links to blobs.
/// Both are only collected on first use.
struct CommitFiles<'a> {
    commit: &'a Commit,
    tree: Option<Option<Tree>>,
    inodes: Option<HashSet<(u64, u64)>>,
}

impl CommitFiles<'_> {
    fn contains(&mut self, scan: &RepoScan<'_>, path: &RepoPath, file: &SnapshotFile) -> bool {
        let SnapshotFile::Real(file) = file else { return true };
        let blobs = || scan.repo.blobs.values().filter_map(|blob| Some(blob.inode?.id)).collect();
        if file.inode.is_some_and(|inode| self.inodes.get_or_insert_with(blobs).contains(&inode.id)) {
            return true;
        }
        let read = || {
            let path = scan.path.join("trees").join(format!("{}.json", self.commit));
            let bytes = read::read_small(&path, MAX_SIZE).ok()??;
            Tree::parse(&bytes).ok()?
        };
        self.tree.get_or_insert_with(read).as_ref().is_some_and(|tree| tree.get(path).is_some())
    }
}

/// Reads the links of one folder.
struct Links<'a> {
    dir: &'a Path,
    reader: LinkReader,
}

impl<'a> Links<'a> {
    fn new(dir: &'a Path) -> Self {
        Links { dir, reader: LinkReader::default() }
    }

    fn read(&mut self, name: &str) -> io::Result<&Path> {
        self.reader.read(self.dir, name)
    }
}

fn real_file(path: &Path, meta: &Metadata) -> Option<SnapshotFile> {
    let (accessed, modified) = (meta.accessed().ok(), meta.modified().ok());
    let file = || RealFile { size: meta.len(), inode: inode(path, meta), accessed, modified };
    meta.is_file().then(|| SnapshotFile::Real(Box::new(file())))
}

/// `meta` is that of the bytes behind `path`.
fn blob(path: &Path, meta: &Metadata, place: BlobPlace, placed: Option<SystemTime>) -> Blob {
    let (accessed, modified) = (meta.accessed().ok(), meta.modified().ok());
    Blob { size: meta.len(), place, inode: inode(path, meta), accessed, modified, placed }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_of_any_length_are_read_completely() {
        let dir = tempfile::tempdir().unwrap();
        let mut links = Links::new(dir.path());
        for length in [1, 1023, 1024, 1025, 4000] {
            let (name, target) = (format!("link-{length}"), "x/".repeat(length / 2) + &"y".repeat(length % 2));
            symlink(&target, dir.path().join(&name)).unwrap();
            assert_eq!(links.read(&name).unwrap().to_str(), Some(target.as_str()));
        }
        assert_eq!(links.read("nothing").unwrap_err().kind(), io::ErrorKind::NotFound);
        let gone = dir.path().join("gone");
        assert_eq!(Links::new(&gone).read("link").unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_blob_that_appears_during_the_scan_is_not_a_broken_link() {
        let commit = "0123456789abcdef0123456789abcdef01234567";
        let (file, shared) = ("ce013625030ba8dba906f756967f9e9ca394464a".to_string(), "cd".repeat(32));
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path());
        let name = RepoName::from_folder("models--a--b").unwrap();
        let (path, store) = (layout.repo(&name), layout.shared_store().join("ab"));
        let snapshot = path.join("snapshots").join(commit);
        for folder in [&path.join("blobs"), &snapshot, &store] {
            fs::create_dir_all(folder).unwrap();
        }
        let mut scan = RepoScan {
            layout: &layout,
            path: &path,
            blobs_dir: path.join("blobs"),
            dangling: HashMap::new(),
            paths: HashSet::new(),
            repo: RepoScan::run(&layout, &name, &path),
        };
        scan.scan_blobs();
        fs::write(path.join("blobs").join(&file), "hello\n").unwrap();
        fs::write(store.join("ab".repeat(32)), "shared").unwrap();
        symlink(format!("../../blobs/ab/{}", "ab".repeat(32)), path.join("blobs").join(&shared)).unwrap();
        for (path, blob) in [("a", &file), ("b", &shared), ("c", &"ef".repeat(32))] {
            symlink(format!("../../blobs/{blob}"), snapshot.join(path)).unwrap();
        }
        scan.scan_snapshots();
        assert_eq!(scan.repo.blobs.values().map(|blob| blob.size).collect::<Vec<_>>(), [6, 6]);
        assert!(matches!(&scan.repo.problems[..], [problem] if problem.path == snapshot.join("c")));
    }
}
