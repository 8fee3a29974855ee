//! What a prune must know beside the scan: who else is at work, what the tool itself has left, and where links lead.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

use super::hidden;
use crate::cache::clients::{self, BlobEntry};
use crate::cache::layout::Layout;
use crate::cache::lock;
use crate::cache::scan::{self, InFlight, Inventory, Problem, ProblemKind, Repo, Revision};
use crate::cache::shared::{self, Payload};
use crate::cache::{read, space};
use crate::model::ids::{BlobId, Commit, RefName, RepoName};
use crate::model::manifest::Tree;

/// Trees are read only where a client was seen since then.
const LATELY: Duration = Duration::from_secs(3600);

/// Everything that a plan is made of.
#[derive(Debug)]
pub struct Facts {
    /// The scan.
    pub inventory: Inventory,
    /// Payloads of the cache-wide store.
    pub payloads: Vec<Payload>,
    /// What could not be read in that store.
    pub store_problems: Vec<Problem>,
    /// The tool's own unfinished files.
    pub leftovers: Vec<Leftover>,
    /// Unfinished downloads at the root, of nobody knows which repo.
    pub root_temporaries: Vec<InFlight>,
    /// What nobody could look into, beside what the scan says to be unreadable.
    pub hidden: BTreeSet<PathBuf>,
    /// What the scan says to be unreadable, but which can hold no link.
    pub harmless: BTreeSet<PathBuf>,
    /// More about single repos; those without an entry have nothing special.
    pub repos: BTreeMap<RepoName, RepoFacts>,
    /// Whether access times are not kept here.
    pub noatime: bool,
}

impl Facts {
    /// Of a repo, whether there is anything to say about it or not.
    pub fn about(&self, repo: &RepoName) -> &RepoFacts {
        static NOTHING: LazyLock<RepoFacts> = LazyLock::new(RepoFacts::default);
        self.repos.get(repo).unwrap_or(&NOTHING)
    }
}

/// More about one repo.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RepoFacts {
    /// A part of its folder that is itself a link: nothing is deleted through it.
    pub linked_part: Option<PathBuf>,
    /// A link outside this repo that leads into it.
    pub needed_by: Option<PathBuf>,
    /// When a client last began or ended to fetch one of its blobs, as far as its locks tell.
    pub client_seen: Option<SystemTime>,
    /// Revisions that have all the files of their tree: no download of one is half done. Only where a client was seen
    /// not long ago.
    pub complete: BTreeSet<Commit>,
    /// Unfinished downloads whose lock another process holds right now.
    pub held: BTreeSet<PathBuf>,
    /// Whether another process holds the lock of any blob of this repo: it is at work in it.
    pub locked: bool,
    /// Refs that name a commit without a snapshot.
    pub lone_refs: BTreeMap<RefName, LoneRef>,
    /// Newest change of what would go with an empty folder: refs and trees without a snapshot, and the folder itself
    /// where it has no snapshot at all.
    pub touched: Option<SystemTime>,
    /// Newest change of the folders themselves: something came in or went, whatever time it has of its own.
    pub arrived: Option<SystemTime>,
    /// When somebody last wrote to something of a name that is no client's, but which may be a download.
    pub unfinished: Option<SystemTime>,
}

/// A ref to what is not here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoneRef {
    /// What it names.
    pub commit: Commit,
    /// When it was written.
    pub written: Option<SystemTime>,
}

/// A file or folder of the tool's own state that is not finished.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leftover {
    /// Where.
    pub path: PathBuf,
    /// Its bytes.
    pub bytes: u64,
    /// Last change.
    pub modified: Option<SystemTime>,
}

/// Looks around.
pub fn gather(inventory: Inventory) -> Facts {
    let layout = inventory.layout.clone();
    let (payloads, store_problems) = shared::payloads(&layout);
    let mut repos: BTreeMap<RepoName, RepoFacts> =
        inventory.repos.iter().map(|repo| (repo.name.clone(), about(&layout, repo))).collect();
    let behind = hidden::look(&inventory);
    for (name, link) in behind.needed {
        if let Some(facts) = repos.get_mut(&name) {
            facts.needed_by = Some(link);
        }
    }
    let noatime = space::lacks_access_times(layout.root());
    let (hidden, harmless) = (behind.hidden, behind.harmless);
    let (leftovers, root_temporaries) = (leftovers(&layout), root_temporaries(&layout));
    Facts { leftovers, root_temporaries, hidden, harmless, inventory, payloads, store_problems, repos, noatime }
}

fn about(layout: &Layout, repo: &Repo) -> RepoFacts {
    let folder = layout.repo(&repo.name);
    let parts = ["blobs", "snapshots", "refs", "trees", ".no_exist"].map(|name| folder.join(name));
    let is_link = |path: &&PathBuf| fs::symlink_metadata(path).is_ok_and(|meta| meta.is_symlink());
    let written =
        |name: &RefName| fs::symlink_metadata(layout.reference(&repo.name, name)).and_then(|meta| meta.modified());
    let refs = repo.refs.iter().map(|(name, commit)| (name.clone(), commit));
    let lone_refs = refs
        .chain(repo.pins.iter().map(|commit| (RefName::of_commit(commit), commit)))
        .filter(|(_, commit)| !repo.revisions.contains_key(*commit));
    let lone_refs: BTreeMap<_, _> = lone_refs
        .map(|(name, commit)| {
            let written = written(&name).ok();
            (name, LoneRef { commit: commit.clone(), written })
        })
        .collect();
    let lone_trees = repo.trees.iter().filter(|commit| !repo.revisions.contains_key(*commit));
    let mut touched = Newest(lone_refs.values().map(|one| one.written).max().flatten());
    lone_trees.for_each(|commit| touched.look(&layout.tree(&repo.name, commit)));
    if repo.revisions.is_empty() {
        touched.look(&folder);
        parts.iter().for_each(|part| touched.look(part));
    }
    let mut arrived = Newest::default();
    for part in [&folder, &parts[0], &parts[1], &parts[2]] {
        arrived.look(part);
    }
    let client_seen = client_seen(layout, repo);
    let lately = client_seen.is_some_and(|time| time.elapsed().is_ok_and(|age| age < LATELY));
    let complete =
        repo.revisions.iter().filter(|(commit, revision)| lately && is_complete(layout, repo, commit, revision));
    RepoFacts {
        linked_part: parts.iter().find(is_link).cloned(),
        needed_by: None,
        client_seen,
        complete: complete.map(|(commit, _)| commit.clone()).collect(),
        locked: is_locked(layout, repo),
        held: repo.in_flight.iter().filter(|file| is_held(layout, repo, &file.path)).map(|f| f.path.clone()).collect(),
        lone_refs,
        touched: touched.0,
        arrived: arrived.0,
        unfinished: unfinished(repo, &folder),
    }
}

/// The newest write to what lies in `blobs/` under a foreign name, or in a temporary folder of the repo: copying
/// programs and clients that are not known here put there what they have not finished.
fn unfinished(repo: &Repo, folder: &Path) -> Option<SystemTime> {
    let blobs = folder.join("blobs");
    let strangers = repo.problems.iter().filter(|problem| problem.kind == ProblemKind::UnknownEntry);
    let strangers = strangers.map(|problem| &problem.path).filter(|path| path.starts_with(&blobs));
    let in_blobs = strangers.filter_map(|path| last_write(path, &|_| true));
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let beside = entries.filter_map(|entry| match entry.file_name().to_str()? {
        // Notes on what has come are written there, too.
        ".metadata" => last_write(&entry.path(), &|name| clients::blob_entry(name) == BlobEntry::InFlight),
        name if clients::is_known_in_repo(name) => last_write(&entry.path(), &|_| true),
        _ => None,
    });
    in_blobs.chain(beside).max()
}

/// The newest write to a file of a name that counts, here or below; links are not followed.
fn last_write(path: &Path, counts: &dyn Fn(&str) -> bool) -> Option<SystemTime> {
    let meta = fs::symlink_metadata(path).ok()?;
    if meta.is_dir() {
        let entries = fs::read_dir(path).into_iter().flatten().flatten();
        return entries.filter_map(|entry| last_write(&entry.path(), counts)).max();
    }
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let file = (meta.is_file() && counts(name)).then(|| InFlight::new(path.to_path_buf(), &meta));
    file.and_then(|file| file.written())
}

/// The newest time of a lock, and of the blob that was fetched under it: some clients leave the time of a lock file as
/// it is when they take it again. Locks of this tool's own pulls do not count; none of those runs now.
fn client_seen(layout: &Layout, repo: &Repo) -> Option<SystemTime> {
    let mut newest = Newest::default();
    for path in locks(layout, repo).unwrap_or_default().into_iter().filter(|path| !lock::is_own(path)) {
        newest.look(&path);
        let blob = path.file_name().and_then(|name| clients::blob_of_temporary(name.to_str()?));
        newest.0 = newest.0.max(blob.and_then(|blob| repo.blobs.get(&blob)?.modified));
    }
    newest.0
}

/// Whether another process holds a lock of this repo, or nobody can tell.
pub fn is_locked(layout: &Layout, repo: &Repo) -> bool {
    locks(layout, repo).is_none_or(|locks| locks.iter().any(|path| lock::is_held(path)))
}

/// The lock files of a repo, wherever a client has them; `None` when a folder of them cannot be read.
fn locks(layout: &Layout, repo: &Repo) -> Option<Vec<PathBuf>> {
    let mut found = repo.locks.clone();
    let mut folders = vec![layout.root().join(".locks").join(repo.name.folder())];
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

/// Whether the snapshot has every file that the commit's tree lists; without a tree nobody can tell.
fn is_complete(layout: &Layout, repo: &Repo, commit: &Commit, revision: &Revision) -> bool {
    let Ok(Some(bytes)) = read::read_small(&layout.tree(&repo.name, commit), read::MAX_TREE) else { return false };
    let tree = Tree::parse(&bytes).ok().flatten();
    tree.is_some_and(|tree| tree.is_portable() && tree.entries().keys().all(|path| revision.files.contains_key(path)))
}

/// Whether another process holds the lock of the blob that this file is to become.
fn is_held(layout: &Layout, repo: &Repo, file: &Path) -> bool {
    let blob = file.file_name().and_then(|name| clients::blob_of_temporary(name.to_str()?));
    blob.is_some_and(|blob| lock_files(layout, &repo.name, &blob).iter().any(|path| lock::is_held(path)))
}

/// The locks that clients hold on a blob while they download it.
pub fn lock_files(layout: &Layout, repo: &RepoName, blob: &BlobId) -> [PathBuf; 3] {
    let file = format!("{blob}.lock");
    let locks = layout.root().join(".locks").join(repo.folder());
    [layout.client_lock(repo, blob), locks.join("blobs").join(&file), layout.blobs(repo).join(file)]
}

/// The newest modification time of several paths; those that are not there do not count.
#[derive(Default)]
struct Newest(Option<SystemTime>);

impl Newest {
    fn look(&mut self, path: &Path) {
        let modified = fs::symlink_metadata(path).and_then(|meta| meta.modified()).ok();
        self.0 = self.0.max(modified);
    }
}

/// Downloads of clients that put them at the root, or into `tmp` there. What cannot be read there is no file.
pub fn root_temporaries(layout: &Layout) -> Vec<InFlight> {
    let files = |folder: &Path, wanted: fn(&str) -> bool| {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        let named = entries.filter(move |entry| entry.file_name().to_str().is_some_and(wanted));
        named.filter_map(|entry| Some((entry.path(), entry.metadata().ok().filter(|meta| meta.is_file())?)))
    };
    let folder = layout.root().join(clients::TEMPORARY_FOLDER);
    let inside = crate::cache::remove::is_inside(layout.root(), &folder.join("file"));
    let of_folder = inside.then(|| files(&folder, clients::is_in_temporary_folder)).into_iter().flatten();
    let all = files(layout.root(), clients::is_root_temporary).chain(of_folder);
    let mut found: Vec<InFlight> = all.map(|(path, meta)| InFlight::new(path, &meta)).collect();
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

/// Partial downloads, staging folders, and records of uploads that were to be resumed. A partial download and its
/// journal count as one, by the newest of both.
fn leftovers(layout: &Layout) -> Vec<Leftover> {
    let mut found = Vec::new();
    for folder in ["partial", "staging", "uploads"] {
        let folder = layout.state().join(folder);
        if !crate::cache::remove::is_inside(layout.root(), &folder.join("entry")) {
            continue;
        }
        let mut group: BTreeMap<PathBuf, (Newest, Vec<(PathBuf, u64)>)> = BTreeMap::new();
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            let (newest, files) = group.entry(path.with_extension("")).or_default();
            newest.look(&path);
            files.push((path.clone(), bytes_in(&path)));
        }
        for (newest, files) in group.into_values() {
            found.extend(files.into_iter().map(|(path, bytes)| Leftover { path, bytes, modified: newest.0 }));
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

/// The bytes that deleting `path` would free, as far as they can be read.
fn bytes_in(path: &Path) -> u64 {
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => {
            fs::read_dir(path).into_iter().flatten().flatten().map(|entry| bytes_in(&entry.path())).sum()
        }
        Ok(meta) if meta.is_file() => {
            let last = scan::inode(&meta).is_none_or(|inode| inode.links <= 1);
            if last { scan::on_disk(&meta) } else { 0 }
        }
        _ => 0,
    }
}
