//! Carrying out a prune, under the tool's exclusive lock.
//!
//! The order keeps every reader safe: a revision's refs go before its snapshot, the snapshot at once, by a rename, and
//! its blobs only after a fresh look at the repo, each under huggingface_hub's own lock on it. Whatever is not as the
//! scan found it any more is left alone. An interruption leaves blobs that nobody uses, for the next run.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::cache::clients::{self, BlobEntry};
use crate::cache::facts::{self, Facts};
use crate::cache::layout::Layout;
use crate::cache::litter::is_litter;
use crate::cache::lock::{self, Lock};
use crate::cache::remove::{self, Aside};
use crate::cache::scan::inode;
use crate::cache::scan::{self, Blob, InFlight, Place, ProblemKind, Repo, Revision, SnapshotFile};
use crate::cache::shared::{self, Swept};
use crate::error::{Error, Result};
use crate::model::ids::{BlobId, Commit, RefName, RepoName};
use crate::plan::prune::{Eviction, Plan, Skip, SkipReason, What, hidden_uses};

/// What was done.
#[derive(Debug, Default)]
pub struct Done {
    /// Places in the plan of the actions that were carried out, at least in part.
    pub actions: BTreeSet<usize>,
    /// Bytes that the disk got back.
    pub freed: u64,
    /// What was left alone after all.
    pub skips: Vec<Skip>,
    /// What failed.
    pub failures: Vec<Error>,
}

/// Executes the plan.
pub fn execute(facts: &Facts, plan: &Plan) -> Done {
    let mut run = Run {
        facts,
        layout: &facts.inventory.layout,
        done: Done::default(),
        blobs: BTreeMap::new(),
        payloads: BTreeMap::new(),
        joined: BTreeMap::new(),
        joined_root: None,
    };
    for (index, action) in plan.actions.iter().enumerate() {
        let attempt = match &action.what {
            What::Leftover { path } => run.leftover(path),
            What::Temporary { repo, path } => run.temporary(repo, path),
            What::RootTemporary { path } => run.root_temporary(path),
            What::Revision(eviction) => run.revision(eviction),
            What::Ref { repo, name, commit } => run.lone_ref(repo, name, commit),
            // Several things at once, below.
            What::Blob { .. } | What::Payload { .. } | What::Folder { .. } => continue,
        };
        if run.settle(attempt) {
            run.done.actions.insert(index);
        }
    }
    for (index, action) in plan.actions.iter().enumerate() {
        match &action.what {
            What::Blob { repo, blob } => run.blobs.entry(repo).or_default().push((index, *blob)),
            What::Revision(gone) if run.done.actions.contains(&index) => {
                run.blobs.entry(&gone.repo).or_default().extend(gone.blobs.iter().map(|blob| (index, *blob)));
            }
            What::Payload { path } => drop(run.payloads.insert(path.clone(), Some(index))),
            _ => {}
        }
    }
    for (repo, blobs) in std::mem::take(&mut run.blobs) {
        run.blobs_of(repo, &blobs);
    }
    for (payload, index) in std::mem::take(&mut run.payloads) {
        let swept = run.payload(&payload);
        if run.settle(swept) {
            run.done.actions.extend(index);
        }
    }
    for (index, action) in plan.actions.iter().enumerate() {
        // Where something was left alone after all, which is said already, the folder is not empty.
        if let What::Folder { repo } = &action.what
            && !run.done.skips.iter().any(|skip| skip.repo.as_ref() == Some(repo))
        {
            let attempt = run.folder(repo);
            if run.settle(attempt) {
                run.done.actions.insert(index);
            }
        }
    }
    run.done
}

struct Run<'a> {
    facts: &'a Facts,
    layout: &'a Layout,
    done: Done,
    /// Blobs to delete, with the action that each belongs to.
    blobs: BTreeMap<&'a RepoName, Vec<(usize, BlobId)>>,
    /// Payloads to sweep, with the action of each that is one of its own.
    payloads: BTreeMap<PathBuf, Option<usize>>,
    /// Repos that were looked at for downloads which began after the scan, and whether there is one.
    joined: BTreeMap<RepoName, bool>,
    /// The same for the root.
    joined_root: Option<bool>,
}

/// Done, or left alone.
type Attempt = Result<Option<Box<Skip>>>;

impl Run<'_> {
    /// Notes how an attempt ended; returns whether it was done.
    fn settle(&mut self, attempt: Attempt) -> bool {
        match attempt {
            Ok(None) => return true,
            Ok(Some(skip)) => self.done.skips.push(*skip),
            Err(error) => self.done.failures.push(error),
        }
        false
    }

    fn skip(&self, reason: SkipReason, repo: Option<&RepoName>, path: &Path, bytes: u64) -> Attempt {
        let path = Some(path.to_path_buf());
        Ok(Some(Box::new(Skip { repo: repo.cloned(), revision: None, path, reason, bytes })))
    }

    fn leftover(&mut self, path: &Path) -> Attempt {
        let known = self.facts.leftovers.iter().find(|leftover| leftover.path == path);
        if !remove::is_inside(self.layout.root(), path) {
            return self.skip(SkipReason::Link, None, path, 0);
        }
        let meta = match fs::symlink_metadata(path) {
            Ok(meta) => meta,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(cannot_delete(path, &error)),
        };
        if meta.modified().ok() > known.and_then(|leftover| leftover.modified) {
            return self.skip(SkipReason::Changed, None, path, 0);
        }
        let deleted = if meta.is_dir() { remove::tree(path) } else { remove::file(path) };
        deleted.map_err(|e| cannot_delete(path, &e))?;
        self.done.freed += known.map_or(0, |leftover| leftover.bytes);
        Ok(None)
    }

    fn temporary(&mut self, repo: &RepoName, path: &Path) -> Attempt {
        let files = self.facts.inventory.repo(repo).map(|repo| repo.in_flight.iter().chain(&repo.temporaries));
        let known = files.into_iter().flatten().find(|file| file.path == path);
        if !remove::is_inside(self.layout.root(), path) {
            return self.skip(SkipReason::Link, Some(repo), path, 0);
        }
        let blob = path.file_name().and_then(|name| clients::blob_of_temporary(name.to_str()?));
        let _lock = match blob {
            Some(blob) => match ClientLock::take(self.layout, repo, &blob)? {
                None => return self.skip(SkipReason::Held, Some(repo), path, known.map_or(0, |file| file.on_disk)),
                lock => lock,
            },
            None => None,
        };
        self.unfinished(Some(repo), path, known)
    }

    fn root_temporary(&mut self, path: &Path) -> Attempt {
        let known = self.facts.root_temporaries.iter().find(|file| file.path == path);
        if !remove::is_inside(self.layout.root(), path) {
            return self.skip(SkipReason::Link, None, path, 0);
        }
        if let Some(skip) = self.unfinished(None, path, known)? {
            return Ok(Some(skip));
        }
        if let Some(folder) = path.parent().filter(|folder| *folder != self.layout.root()) {
            let _ = fs::remove_dir(folder);
        }
        Ok(None)
    }

    /// A file that nobody has written to since the scan.
    fn unfinished(&mut self, repo: Option<&RepoName>, path: &Path, known: Option<&InFlight>) -> Attempt {
        let meta = match fs::symlink_metadata(path) {
            Ok(meta) => meta,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(cannot_delete(path, &error)),
        };
        let same = |file: &&InFlight| file.modified == meta.modified().ok() && file.size == meta.len();
        let Some(known) = known.filter(same) else {
            return self.skip(SkipReason::Changed, repo, path, scan::on_disk(&meta));
        };
        remove::file(path).map_err(|e| cannot_delete(path, &e))?;
        self.done.freed += known.on_disk;
        Ok(None)
    }

    /// Refs first, so that none ever names a snapshot that is not there; then the snapshot, then what belongs to it.
    fn revision(&mut self, eviction: &Eviction) -> Attempt {
        let (repo, commit) = (&eviction.repo, &eviction.revision);
        let snapshot = self.layout.snapshot(repo, commit);
        let changed = |reason| {
            let (repo, revision) = (Some(repo.clone()), Some(commit.clone()));
            Ok(Some(Box::new(Skip { repo, revision, path: None, reason, bytes: 0 })))
        };
        if !remove::is_inside(self.layout.root(), &snapshot) {
            return changed(SkipReason::Link);
        }
        if self.has_new_download(repo) {
            return changed(SkipReason::InFlight);
        }
        if eviction.blobs.iter().any(|blob| is_locked(self.layout, repo, blob)) {
            return changed(SkipReason::Held);
        }
        let now = scan::scan_refs(self.layout, repo);
        let naming = now.refs.iter().filter(|(_, named)| *named == commit).map(|(name, _)| name.clone());
        let naming: Vec<_> = naming.chain(now.pins.get(commit).map(RefName::of_commit)).collect();
        let unclear = now.problems.iter().any(|problem| problem.kind != ProblemKind::UntidyRef);
        if naming.iter().any(|name| !eviction.refs.contains(name)) || unclear {
            return changed(SkipReason::Changed);
        }
        let found = self.facts.inventory.repo(repo).and_then(|repo| repo.revisions.get(commit));
        if !found.is_some_and(|found| is_unchanged(self.layout, repo, commit, found, eviction.last_use)) {
            return changed(SkipReason::Changed);
        }
        let paths: Vec<_> = naming.iter().map(|name| self.layout.reference(repo, name)).collect();
        if !paths.iter().all(|path| remove::is_inside(self.layout.root(), path)) {
            return changed(SkipReason::Link);
        }
        let failed = |error: io::Error| cannot_delete(&snapshot, &error);
        let mut refs = Vec::new();
        let taken = paths.iter().try_for_each(|path| {
            match Aside::take(self.layout, path)? {
                Some(aside) => refs.push(aside),
                None => drop(remove::file(path)?),
            }
            Ok(())
        });
        let taken = taken.and_then(|()| Aside::take(self.layout, &snapshot)).inspect_err(|_| {
            // A snapshot that stays keeps its refs.
            refs.drain(..).for_each(|aside| drop(aside.put_back()));
        });
        let freed = match taken.map_err(failed)? {
            Some(aside) => aside.delete(),
            None => remove::tree(&snapshot),
        };
        drop(refs);
        paths.iter().for_each(|path| remove_empty_parents(path, &self.layout.repo(repo).join("refs")));
        self.done.freed += freed.map_err(failed)?;
        let tree = self.layout.tree(repo, commit);
        if remove::is_inside(self.layout.root(), &tree) {
            remove::file(&tree).map_err(|e| cannot_delete(&tree, &e))?;
        }
        let absent = self.layout.repo(repo).join(".no_exist").join(commit.as_str());
        if remove::is_inside(self.layout.root(), &absent)
            && fs::symlink_metadata(&absent).is_ok_and(|meta| meta.is_dir())
        {
            remove::folder(self.layout, &absent).map_err(|e| cannot_delete(&absent, &e))?;
        }
        // As far as they are empty now.
        for file in [&tree, &absent] {
            let _ = file.parent().map(fs::remove_dir);
        }
        Ok(None)
    }

    /// A ref that still names the commit which is still not here.
    fn lone_ref(&mut self, repo: &RepoName, name: &RefName, commit: &Commit) -> Attempt {
        let path = self.layout.reference(repo, name);
        if !remove::is_inside(self.layout.root(), &path) {
            return self.skip(SkipReason::Link, Some(repo), &path, 0);
        }
        let now = scan::scan_refs(self.layout, repo);
        let came = fs::symlink_metadata(self.layout.snapshot(repo, commit)).is_ok();
        let names =
            now.refs.get(name) == Some(commit) || (now.pins.contains(commit) && name.as_str() == commit.as_str());
        if came || !names || self.has_new_download(repo) {
            return self.skip(SkipReason::Changed, Some(repo), &path, 0);
        }
        remove::file(&path).map_err(|e| cannot_delete(&path, &e))?;
        remove_empty_parents(&path, &self.layout.repo(repo).join("refs"));
        Ok(None)
    }

    /// Whether a client began, or went on with, a download into this repo since the scan; or one that may be for it.
    fn has_new_download(&mut self, repo: &RepoName) -> bool {
        if let Some(joined) = self.joined.get(repo) {
            return *joined;
        }
        let at_root = *self.joined_root.get_or_insert_with(|| {
            let now = facts::root_temporaries(self.layout);
            is_news(&now, &self.facts.root_temporaries)
        });
        let entries = fs::read_dir(self.layout.blobs(repo)).into_iter().flatten().flatten();
        let unfinished = |entry: &fs::DirEntry| {
            entry.file_name().to_str().is_some_and(|name| clients::blob_entry(name) == BlobEntry::InFlight)
        };
        let now =
            entries.filter(unfinished).filter_map(|entry| Some(InFlight::new(entry.path(), &entry.metadata().ok()?)));
        let joined = at_root || is_news(&now.collect::<Vec<_>>(), self.known_in_flight(repo));
        self.joined.insert(repo.clone(), joined);
        joined
    }

    fn known_in_flight(&self, repo: &RepoName) -> &[InFlight] {
        self.facts.inventory.repo(repo).map(|repo| repo.in_flight.as_slice()).unwrap_or_default()
    }

    /// Deletes blobs of one repo, after a fresh look at all that may use them.
    fn blobs_of(&mut self, name: &RepoName, blobs: &[(usize, BlobId)]) {
        let now = scan::scan_repo(self.layout, name);
        let folder = self.layout.blobs(name);
        let reason = if now.is_link || !remove::is_inside(self.layout.root(), &folder.join("blob")) {
            Some((SkipReason::Link, folder))
        } else {
            hidden_uses(self.layout, &now).map(|problem| (SkipReason::Changed, problem.path.clone()))
        };
        if let Some((reason, path)) = reason {
            let skip = self.skip(reason, Some(name), &path, 0);
            self.settle(skip);
            return;
        }
        // One that began after the scan has found here what it need not fetch, and links it next.
        if is_news(&now.in_flight, self.known_in_flight(name)) {
            let skip = self.skip(SkipReason::InFlight, Some(name), &self.layout.blobs(name), 0);
            self.settle(skip);
            return;
        }
        let used = used(&now);
        for (index, id) in blobs {
            let attempt = self.blob(&now, &used, id);
            if self.settle(attempt) {
                self.done.actions.insert(*index);
            }
        }
    }

    fn blob(&mut self, now: &Repo, used: &HashSet<BlobId>, id: &BlobId) -> Attempt {
        let path = self.layout.blob(&now.name, id);
        let Some(blob) = now.blobs.get(id) else { return Ok(None) };
        let before = self.facts.inventory.repo(&now.name).and_then(|repo| repo.blobs.get(id));
        if used.contains(id) || !before.is_some_and(|before| is_same(before, blob)) {
            return self.skip(SkipReason::Changed, Some(&now.name), &path, blob.size);
        }
        if is_locked(self.layout, &now.name, id) {
            return self.skip(SkipReason::Held, Some(&now.name), &path, blob.size);
        }
        let Some(_lock) = ClientLock::take(self.layout, &now.name, id)? else {
            return self.skip(SkipReason::Held, Some(&now.name), &path, blob.size);
        };
        // A download that ended before we had its lock has put another file there.
        let still = fs::symlink_metadata(&path).is_ok_and(|meta| match &blob.place {
            Place::Blobs => meta.is_file() && same_inode(&inode(&meta), &blob.inode),
            Place::Shared(_) => meta.is_symlink() && meta.modified().ok() == blob.placed,
            Place::Elsewhere => false,
        });
        if !still {
            return self.skip(SkipReason::Changed, Some(&now.name), &path, blob.size);
        }
        self.done.freed += remove::file(&path).map_err(|e| cannot_delete(&path, &e))?;
        if let Place::Shared(payload) = &blob.place {
            self.payloads.entry(payload.clone()).or_default();
        }
        Ok(None)
    }

    fn payload(&mut self, payload: &Path) -> Attempt {
        let repos = self.facts.inventory.repos.iter();
        let links = repos.flat_map(|repo| {
            let linking = repo.blobs.iter().filter(|(_, blob)| blob.place == Place::Shared(payload.to_path_buf()));
            linking.map(|(id, _)| self.layout.blob(&repo.name, id))
        });
        let known: Vec<PathBuf> = links.collect();
        match shared::sweep(self.layout, payload, &known)? {
            Swept::Freed(bytes) => self.done.freed += bytes,
            Swept::Referenced(_) => {}
            Swept::Unknown => return self.skip(SkipReason::Unlisted, None, payload, 0),
            Swept::Held => return self.skip(SkipReason::Held, None, payload, 0),
        }
        Ok(None)
    }

    /// Takes the folder out by one rename, looks at what was taken, and puts it back if it is not empty after all.
    fn folder(&mut self, name: &RepoName) -> Attempt {
        let path = self.layout.repo(name);
        let now = scan::scan_repo(self.layout, name);
        if facts::is_locked(self.layout, &now) {
            return self.skip(SkipReason::Held, Some(name), &path, 0);
        }
        if !self.is_empty(&now) {
            return self.skip(SkipReason::Changed, Some(name), &path, 0);
        }
        let failed = |error: io::Error| cannot_delete(&path, &error);
        match Aside::take(self.layout, &path).map_err(failed)? {
            Some(aside) if self.is_empty(&scan::scan_folder(self.layout, name, aside.path())) => {
                aside.delete().map_err(failed)?;
            }
            Some(aside) => {
                aside.put_back().map_err(failed)?;
                return self.skip(SkipReason::Changed, Some(name), &path, 0);
            }
            None => {
                remove::tree(&path).map_err(failed)?;
            }
        }
        self.locks(name);
        Ok(None)
    }

    /// Whether nothing is in the folder but what the plan knew of and nobody needs without a snapshot.
    fn is_empty(&self, now: &Repo) -> bool {
        let Some(before) = self.facts.inventory.repo(&now.name) else { return false };
        let old_refs = now.refs.iter().all(|(name, commit)| before.refs.get(name) == Some(commit));
        let old_trees = now.trees.iter().all(|commit| before.trees.contains(commit));
        let rest = now.revisions.len() + now.blobs.len() + now.in_flight.len() + now.temporaries.len();
        let old_pins = now.pins.iter().all(|commit| before.pins.contains(commit));
        !now.is_link && now.problems.is_empty() && rest == 0 && old_refs && old_pins && old_trees
    }

    /// Removes the lock files of a repo that is gone, as far as nobody holds them or has just used them. Best effort.
    fn locks(&self, name: &RepoName) {
        let folder = self.layout.root().join(".locks").join(name.folder());
        if !remove::is_inside(self.layout.root(), &folder.join("lock")) {
            return;
        }
        let seen = self.facts.about(name).client_seen;
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let file = entry.file_name();
            let blob = file.to_str().and_then(|name| name.strip_suffix(".lock")?.parse::<BlobId>().ok());
            let modified = entry.metadata().and_then(|meta| meta.modified()).ok();
            if let Some(blob) = blob
                && modified <= seen
                && !self.layout.repo(name).exists()
                && let Ok(Some(_lock)) = lock::try_client_lock(self.layout, name, &blob)
            {
                let _ = fs::remove_file(entry.path());
            }
        }
        let _ = fs::remove_dir(&folder);
    }
}

/// Whether one of these files was not there, or was another, when `known` was.
fn is_news(now: &[InFlight], known: &[InFlight]) -> bool {
    let is_known = |file: &InFlight| {
        known.iter().any(|one| one.path == file.path && one.modified == file.modified && one.size == file.size)
    };
    !now.iter().all(is_known)
}

/// Whether another process holds one of the locks that clients take on a blob.
fn is_locked(layout: &Layout, repo: &RepoName, blob: &BlobId) -> bool {
    facts::lock_files(layout, repo, blob).iter().any(|path| lock::is_held(path))
}

/// huggingface_hub's lock on a blob. A lock file that was not there before is taken away again, so that it does not
/// look as if a client had been here.
struct ClientLock {
    _lock: Lock,
    made: Option<PathBuf>,
}

impl ClientLock {
    fn take(layout: &Layout, repo: &RepoName, blob: &BlobId) -> Result<Option<Self>> {
        let path = layout.client_lock(repo, blob);
        let made = fs::symlink_metadata(&path).is_err().then_some(path);
        let lock = lock::try_client_lock(layout, repo, blob)?;
        // Without flock, huggingface_hub takes the mere file for a lock that is held.
        let lock = lock.filter(|lock| lock.is_real() || made.is_some());
        Ok(lock.map(|lock| ClientLock { _lock: lock, made }))
    }
}

impl Drop for ClientLock {
    fn drop(&mut self) {
        if let Some(path) = &self.made {
            let _ = fs::remove_file(path);
            let _ = path.parent().map(fs::remove_dir);
        }
    }
}

fn cannot_delete(path: &Path, error: &io::Error) -> Error {
    Error::io("cannot delete", path, error)
}

/// Folders of nested refs that are empty now, up to `refs` itself, which stays.
fn remove_empty_parents(path: &Path, refs: &Path) {
    for folder in path.ancestors().skip(1).take_while(|folder| *folder != refs && folder.starts_with(refs)) {
        if fs::remove_dir(folder).is_err() {
            return;
        }
    }
}

/// Blobs that a snapshot of the repo uses: by a link, or as the file that a real file is a hard link to.
fn used(repo: &Repo) -> HashSet<BlobId> {
    let by_inode: BTreeMap<(u64, u64), BlobId> =
        repo.blobs.iter().filter_map(|(id, blob)| Some((blob.inode?.id, *id))).collect();
    let files = repo.revisions.values().flat_map(|revision| revision.files.values());
    files
        .filter_map(|file| match file {
            SnapshotFile::Link(id) => Some(*id),
            SnapshotFile::Real { inode, .. } => by_inode.get(&inode.as_ref()?.id).copied(),
        })
        .collect()
}

fn same_inode(one: &Option<scan::Inode>, other: &Option<scan::Inode>) -> bool {
    one.map(|inode| inode.id) == other.map(|inode| inode.id)
}

fn is_same(before: &Blob, now: &Blob) -> bool {
    before.place == now.place
        && before.size == now.size
        && before.placed == now.placed
        && before.modified == now.modified
        && same_inode(&before.inode, &now.inode)
}

/// Whether the snapshot has the files that the scan found, and none was used since.
fn is_unchanged(layout: &Layout, repo: &RepoName, commit: &Commit, found: &Revision, last_use: u64) -> bool {
    let root = layout.snapshot(repo, commit);
    let mut left: HashSet<PathBuf> = found.files.keys().map(|path| layout.snapshot_file(repo, commit, path)).collect();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { return false };
        for entry in entries {
            let Ok(entry) = entry else { return false };
            let Ok(kind) = entry.file_type() else { return false };
            if kind.is_dir() {
                folders.push(entry.path());
            } else if !left.remove(&entry.path()) && !in_litter(&root, &entry.path()) {
                return false;
            }
        }
    }
    let unchanged = |(path, file): (&crate::model::ids::RepoPath, &SnapshotFile)| {
        let path = layout.snapshot_file(repo, commit, path);
        let target = || fs::read_link(&path).ok()?.file_name()?.to_str()?.parse::<BlobId>().ok();
        let same = match file {
            SnapshotFile::Link(id) => target() == Some(*id),
            SnapshotFile::Real { inode: before, .. } => {
                fs::symlink_metadata(&path).is_ok_and(|meta| meta.is_file() && same_inode(&inode(&meta), before))
            }
        };
        same && fs::metadata(&path).is_ok_and(|meta| !used_after(&meta, last_use))
    };
    left.is_empty() && found.files.iter().all(unchanged)
}

/// Whether a part of the path below `root` is called like what systems leave anywhere: the scan has told files of the
/// commit that are called so from the rest.
fn in_litter(root: &Path, path: &Path) -> bool {
    let parts = path.strip_prefix(root).into_iter().flatten();
    parts.filter_map(|part| part.to_str()).any(is_litter)
}

/// Whether a time of the file is later than a use in that second (since 1970). A time that cannot be read is not.
fn used_after(meta: &fs::Metadata, last_use: u64) -> bool {
    let times = [meta.accessed().ok(), meta.modified().ok()];
    let seconds = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_secs());
    times.into_iter().flatten().any(|time| seconds(time) > last_use)
}
