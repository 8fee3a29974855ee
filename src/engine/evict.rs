//! Carries out a prune, under the tool's exclusive lock.
//!
//! The order keeps concurrent readers safe: a revision's refs are deleted before its snapshot, the snapshot atomically
//! by a rename, and its blobs only after scanning the repo again, each under huggingface_hub's own lock on it. Anything
//! that has changed since the scan is left alone. An interruption leaves unused blobs for the next run.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::Session;
use super::held::{Asker, Checker};
use super::session::wait_for;
use crate::bucket::client::Bucket;
use crate::cache::clients::{self, BlobEntry};
use crate::cache::inventory::{Blob, BlobPlace, ProblemKind, Repo, Revision, SnapshotFile, UnfinishedFile, on_disk};
use crate::cache::junk::is_junk;
use crate::cache::layout::Layout;
use crate::cache::lock::{self, Lock};
use crate::cache::prune_facts::{self, Facts};
use crate::cache::remove::{self, StagedRemoval};
use crate::cache::scan;
use crate::cache::shared::{self, SweepOutcome};
use crate::cache::state::{Completeness, LocalState};
use crate::cache::{inside, place, staging};
use crate::error::{Cause, Error, Result};
use crate::files;
use crate::model::ids::{BlobId, Commit, RefName, RepoName};
use crate::plan::prune::held::Lack;
use crate::plan::prune::{Eviction, Options, Plan, Skip, SkipReason, Target, find_undecidable};
use crate::platform::{Inode, inode};
use crate::progress::Event;
use crate::task::blocking;

/// Minimum grace period without locks, where age is the only sign that another process may be using something.
const LOCKLESS_GRACE: Duration = Duration::from_secs(24 * 3600);

/// The coarsest timestamp resolution of any file system.
const TIMESTAMP_RESOLUTION: Duration = Duration::from_secs(2);

/// The outcome of a prune.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Indexes of the plan's actions that were carried out, at least in part.
    pub actions: BTreeSet<usize>,
    /// Bytes freed.
    pub freed: u64,
    /// Entries that were skipped after all.
    pub skips: Vec<Skip>,
    /// Failed deletions.
    pub failures: Vec<Error>,
}

/// Takes the tool's exclusive lock on the cache, if there is a cache, waiting for other processes. If the file system has no
/// locks, unused files are kept for longer. `hint` suggests what is possible in a read-only cache.
///
/// # Errors
/// If the cache cannot be written to.
pub async fn lock(session: &Session, options: &mut Options, hint: &str) -> Result<Option<Lock>> {
    let layout = session.layout();
    if !layout.root().is_dir() {
        return Ok(None);
    }
    place::check_writable(layout.root()).map_err(|error| error.hint(hint))?;
    let note = "another hf-cache-sync is using this cache: waiting for it";
    let lock = wait_for(&*session.progress, note, || lock::try_tool_lock(&layout, lock::Mode::Exclusive)).await;
    let lock = lock.map_err(|error| match error.cause {
        Cause::DiskFull => error.hint("delete some other file first: this needs a few kilobytes of free space"),
        _ => error,
    })?;
    staging::prepare(&layout);
    if !lock.is_real() {
        let note = "this file system does not support locks: keeping unused blobs and unfinished downloads for a day";
        session.progress.event(Event::Note(note.into()));
        options.orphan_grace = options.orphan_grace.max(LOCKLESS_GRACE);
        options.temporary_grace = options.temporary_grace.max(LOCKLESS_GRACE);
    }
    Ok(Some(lock))
}

/// Adds the completeness of each revision that is evicted or kept to the plan.
pub async fn add_statuses(facts: Facts, mut plan: Plan) -> (Facts, Plan) {
    blocking(move || {
        let state = LocalState::unscanned(facts.inventory.layout.clone());
        let repos: HashMap<&RepoName, &Repo> = facts.inventory.repos.iter().map(|repo| (&repo.name, repo)).collect();
        plan.add_statuses(|repo, commit| {
            repos.get(repo).map_or(Completeness::Unknown, |repo| state.completeness(repo, commit))
        });
        drop(repos);
        (facts, plan)
    })
    .await
}

/// Carries out the plan. If the bucket has to hold what is evicted, that is checked again before each eviction. The lock is
/// held until the last deletion, even if the caller stops waiting.
pub async fn carry_out(
    session: &Session,
    facts: Facts,
    plan: Plan,
    bucket: Option<&Bucket>,
    options: &Options,
    lock: Option<Lock>,
) -> (Plan, Outcome) {
    session.progress.event(Event::Step("deleting"));
    let (asker, questions) = Asker::new();
    let evictions = plan.actions.iter().filter_map(|action| match &action.target {
        Target::Revision(gone) => Some((&gone.repo, &gone.revision)),
        _ => None,
    });
    let checker = bucket.zip(options.held.as_ref()).map(|(bucket, held)| Checker::new(bucket, held, evictions));
    let must_ask = options.held.is_some();
    let work = blocking(move || {
        let done = execute(&facts, &plan, must_ask.then_some(&asker));
        drop(lock);
        (plan, done)
    });
    let answers = async {
        if let Some(checker) = checker {
            checker.serve(questions).await;
        }
    };
    tokio::join!(work, answers).0
}

/// Executes the plan. If the bucket has to hold what is evicted, `asker` checks each revision right before it is deleted.
pub fn execute(facts: &Facts, plan: &Plan, asker: Option<&Asker>) -> Outcome {
    let mut run = Run {
        facts,
        asker,
        layout: &facts.inventory.layout,
        outcome: Outcome::default(),
        blobs: BTreeMap::new(),
        payloads: BTreeMap::new(),
        new_downloads: BTreeMap::new(),
        has_new_root_download: None,
        failed: BTreeSet::new(),
    };
    for (index, action) in plan.actions.iter().enumerate() {
        let attempt = match &action.target {
            Target::Leftover { path } => run.delete_leftover(path),
            Target::Temporary { repo, path } => run.delete_temporary(repo, path),
            Target::RootTemporary { path } => run.delete_root_temporary(path),
            Target::Revision(eviction) => run.delete_revision(eviction),
            Target::Ref { repo, name, commit } => run.delete_dangling_ref(repo, name, commit),
            // Handled below, several at once.
            Target::Blob { .. } | Target::Payload { .. } | Target::Folder { .. } => continue,
        };
        if let (Err(_), Some(repo)) = (&attempt, repo_of(&action.target)) {
            run.failed.insert(repo);
        }
        if run.record(attempt) {
            run.outcome.actions.insert(index);
        }
    }
    for (index, action) in plan.actions.iter().enumerate() {
        match &action.target {
            Target::Blob { repo, blob } => run.blobs.entry(repo).or_default().push((index, *blob)),
            Target::Revision(gone) if run.outcome.actions.contains(&index) => {
                run.blobs.entry(&gone.repo).or_default().extend(gone.blobs.iter().map(|blob| (index, *blob)));
            }
            Target::Payload { path } => drop(run.payloads.insert(path.clone(), Some(index))),
            _ => {}
        }
    }
    for (repo, blobs) in std::mem::take(&mut run.blobs) {
        run.delete_blobs(repo, &blobs);
    }
    for (payload, index) in std::mem::take(&mut run.payloads) {
        let attempt = run.delete_payload(&payload);
        if run.record(attempt) {
            run.outcome.actions.extend(index);
        }
    }
    for (index, action) in plan.actions.iter().enumerate() {
        // If anything in the repo was skipped or failed, which has been reported, its folder is not empty.
        if let Target::Folder { repo } = &action.target
            && !run.failed.contains(repo)
            && !run.outcome.skips.iter().any(|skip| skip.repo.as_ref() == Some(repo))
        {
            let attempt = run.delete_folder(repo);
            if run.record(attempt) {
                run.outcome.actions.insert(index);
            }
        }
    }
    run.outcome
}

struct Run<'a> {
    facts: &'a Facts,
    asker: Option<&'a Asker>,
    layout: &'a Layout,
    outcome: Outcome,
    /// Blobs to delete, with the action that each belongs to.
    blobs: BTreeMap<&'a RepoName, Vec<(usize, BlobId)>>,
    /// Payloads to delete, with their actions if they have any.
    payloads: BTreeMap<PathBuf, Option<usize>>,
    /// Whether a download has started since the scan, for repos that have been checked.
    new_downloads: BTreeMap<RepoName, bool>,
    /// The same for downloads at the root.
    has_new_root_download: Option<bool>,
    /// Repos in which a deletion has failed.
    failed: BTreeSet<&'a RepoName>,
}

/// The result of a deletion: `None` if done, or else why the entry was skipped.
type Attempt = Result<Option<Box<Skip>>>;

impl<'a> Run<'a> {
    /// Records the result of an attempt. Returns whether it succeeded.
    fn record(&mut self, attempt: Attempt) -> bool {
        match attempt {
            Ok(None) => return true,
            Ok(Some(skip)) => self.outcome.skips.push(*skip),
            Err(error) => self.outcome.failures.push(error),
        }
        false
    }

    fn skip(&self, reason: SkipReason, repo: Option<&RepoName>, path: &Path, bytes: u64) -> Attempt {
        let path = Some(path.to_path_buf());
        Ok(Some(Box::new(Skip { repo: repo.cloned(), revision: None, status: None, path, reason, lacks: None, bytes })))
    }

    fn delete_leftover(&mut self, path: &Path) -> Attempt {
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
        let root = self.layout.root();
        let deleted = if meta.is_dir() { inside::delete_tree(root, path) } else { remove::delete_file(root, path) };
        deleted.map_err(|e| cannot_delete(path, &e))?;
        self.outcome.freed += known.map_or(0, |leftover| leftover.bytes);
        Ok(None)
    }

    fn delete_temporary(&mut self, repo: &RepoName, path: &Path) -> Attempt {
        let files = self.facts.inventory.repo(repo).map(|repo| repo.in_flight.iter().chain(&repo.temporaries));
        let known = files.into_iter().flatten().find(|file| file.path == path);
        if !remove::is_inside(self.layout.root(), path) {
            return self.skip(SkipReason::Link, Some(repo), path, 0);
        }
        let blob = path.file_name().and_then(|name| clients::blob_of_temporary(name.to_str()?));
        let _lock = match blob {
            Some(blob) => match ClientLock::acquire(self.layout, repo, &blob)? {
                None => return self.skip(SkipReason::Held, Some(repo), path, known.map_or(0, |file| file.on_disk)),
                lock => lock,
            },
            None => None,
        };
        self.delete_unfinished(Some(repo), path, known)
    }

    fn delete_root_temporary(&mut self, path: &Path) -> Attempt {
        let known = self.facts.root_temporaries.iter().find(|file| file.path == path);
        if !remove::is_inside(self.layout.root(), path) {
            return self.skip(SkipReason::Link, None, path, 0);
        }
        if let Some(skip) = self.delete_unfinished(None, path, known)? {
            return Ok(Some(skip));
        }
        if let Some(folder) = path.parent().filter(|folder| *folder != self.layout.root()) {
            let _ = inside::remove_dir(self.layout.root(), folder);
        }
        Ok(None)
    }

    /// Deletes an unfinished file, unless it has been written to since the scan.
    fn delete_unfinished(&mut self, repo: Option<&RepoName>, path: &Path, known: Option<&UnfinishedFile>) -> Attempt {
        let meta = match fs::symlink_metadata(path) {
            Ok(meta) => meta,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(cannot_delete(path, &error)),
        };
        let same = |file: &&UnfinishedFile| file.modified == meta.modified().ok() && file.size == meta.len();
        let Some(known) = known.filter(same) else {
            return self.skip(SkipReason::Changed, repo, path, on_disk(&meta));
        };
        remove::delete_file(self.layout.root(), path).map_err(|e| cannot_delete(path, &e))?;
        self.outcome.freed += known.on_disk;
        Ok(None)
    }

    /// Deletes the refs first, so that none ever names a missing snapshot, then the snapshot, then its related files.
    fn delete_revision(&mut self, eviction: &Eviction) -> Attempt {
        let (repo, commit) = (&eviction.repo, &eviction.revision);
        let snapshot = self.layout.snapshot(repo, commit);
        let kept = |reason, lacks| {
            let (repo, revision) = (Some(repo.clone()), Some(commit.clone()));
            let status = Some(eviction.status.clone());
            Ok(Some(Box::new(Skip { repo, revision, status, path: None, reason, lacks, bytes: 0 })))
        };
        let changed = |reason| kept(reason, None);
        if !remove::is_inside(self.layout.root(), &snapshot) {
            return changed(SkipReason::Link);
        }
        if self.has_new_download(repo) {
            return changed(SkipReason::InFlight);
        }
        // A lock holder may be about to link any of the repo's blobs.
        if prune_facts::is_locked_now(self.layout, repo) {
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
        let lacks = match self.asker.map(|asker| asker.still_holds(repo, commit)) {
            None | Some(Ok(true)) => None,
            Some(Ok(false)) => Some(Lack::Changed),
            Some(Err(error)) => {
                // The first failure counts for all further checks, too.
                if !self.outcome.failures.contains(&error) {
                    self.outcome.failures.push(error);
                }
                Some(Lack::Unknown)
            }
        };
        if lacks.is_some() {
            return kept(SkipReason::NotInBucket, lacks);
        }
        let failed = |error: io::Error| cannot_delete(&snapshot, &error);
        let mut refs = Vec::new();
        let moved = paths.iter().try_for_each(|path| {
            match StagedRemoval::move_out(self.layout, path)? {
                Some(removal) => refs.push(removal),
                None => drop(remove::delete_file(self.layout.root(), path)?),
            }
            Ok(())
        });
        let moved = moved.and_then(|()| StagedRemoval::move_out(self.layout, &snapshot)).inspect_err(|_| {
            // If the snapshot stays, so must its refs.
            refs.drain(..).for_each(|removal| drop(removal.put_back()));
        });
        let freed = match moved.map_err(failed)? {
            Some(removal) => removal.delete(),
            None => inside::delete_tree(self.layout.root(), &snapshot),
        };
        drop(refs);
        paths.iter().for_each(|path| self.remove_empty_parents(path, repo));
        self.outcome.freed += freed.map_err(failed)?;
        let tree = self.layout.tree(repo, commit);
        if remove::is_inside(self.layout.root(), &tree) {
            remove::delete_file(self.layout.root(), &tree).map_err(|e| cannot_delete(&tree, &e))?;
        }
        let absent = self.layout.repo(repo).join(".no_exist").join(commit.as_str());
        if remove::is_inside(self.layout.root(), &absent)
            && fs::symlink_metadata(&absent).is_ok_and(|meta| meta.is_dir())
        {
            remove::delete_folder(self.layout, &absent).map_err(|e| cannot_delete(&absent, &e))?;
        }
        // Removes only empty folders.
        for file in [&tree, &absent] {
            let _ = file.parent().map(|folder| inside::remove_dir(self.layout.root(), folder));
        }
        Ok(None)
    }

    /// Deletes a ref, provided that it still names the commit and the commit is still missing.
    fn delete_dangling_ref(&mut self, repo: &RepoName, name: &RefName, commit: &Commit) -> Attempt {
        let path = self.layout.reference(repo, name);
        if !remove::is_inside(self.layout.root(), &path) {
            return self.skip(SkipReason::Link, Some(repo), &path, 0);
        }
        let now = scan::scan_refs(self.layout, repo);
        let has_snapshot = fs::symlink_metadata(self.layout.snapshot(repo, commit)).is_ok();
        let names =
            now.refs.get(name) == Some(commit) || (now.pins.contains(commit) && name.as_str() == commit.as_str());
        if has_snapshot || !names || self.has_new_download(repo) || prune_facts::is_locked_now(self.layout, repo) {
            return self.skip(SkipReason::Changed, Some(repo), &path, 0);
        }
        remove::delete_file(self.layout.root(), &path).map_err(|e| cannot_delete(&path, &e))?;
        self.remove_empty_parents(&path, repo);
        Ok(None)
    }

    /// Returns whether a client has started or continued a download since the scan that is, or may be, for this repo.
    fn has_new_download(&mut self, repo: &RepoName) -> bool {
        if let Some(is_new) = self.new_downloads.get(repo) {
            return *is_new;
        }
        let at_root = *self.has_new_root_download.get_or_insert_with(|| {
            let now = prune_facts::root_temporaries(self.layout);
            has_new_files(&now, &self.facts.root_temporaries)
        });
        let entries = fs::read_dir(self.layout.blobs(repo)).into_iter().flatten().flatten();
        let unfinished = |entry: &fs::DirEntry| {
            entry.file_name().to_str().is_some_and(|name| clients::blob_entry(name) == BlobEntry::InFlight)
        };
        let now = entries
            .filter(unfinished)
            .filter_map(|entry| Some(UnfinishedFile::new(entry.path(), &entry.metadata().ok()?)));
        let is_new = at_root || has_new_files(&now.collect::<Vec<_>>(), self.known_in_flight(repo));
        self.new_downloads.insert(repo.clone(), is_new);
        is_new
    }

    fn known_in_flight(&self, repo: &RepoName) -> &[UnfinishedFile] {
        self.facts.inventory.repo(repo).map(|repo| repo.in_flight.as_slice()).unwrap_or_default()
    }

    /// Deletes blobs of one repo, after scanning it again for uses.
    fn delete_blobs(&mut self, name: &'a RepoName, blobs: &[(usize, BlobId)]) {
        let (mut uses, now) = Uses::find(self.layout, name);
        let folder = self.layout.blobs(name);
        let reason = if now.is_link || !remove::is_inside(self.layout.root(), &folder.join("blob")) {
            Some((SkipReason::Link, folder))
        } else {
            uses.undecidable.clone().map(|path| (SkipReason::Changed, path))
        };
        if let Some((reason, path)) = reason {
            let skip = self.skip(reason, Some(name), &path, 0);
            self.record(skip);
            return;
        }
        // A download that started after the scan may have found one of these blobs, and may be about to link it.
        if has_new_files(&now.in_flight, self.known_in_flight(name)) {
            let skip = self.skip(SkipReason::InFlight, Some(name), &self.layout.blobs(name), 0);
            self.record(skip);
            return;
        }
        if prune_facts::is_locked_now(self.layout, name) {
            let skip = self.skip(SkipReason::Held, Some(name), &self.layout.blobs(name), 0);
            self.record(skip);
            return;
        }
        for (index, id) in blobs {
            let attempt = self.delete_blob(&now, &mut uses, id);
            if attempt.is_err() {
                self.failed.insert(name);
            }
            if self.record(attempt) {
                self.outcome.actions.insert(*index);
            }
        }
    }

    fn delete_blob(&mut self, now: &Repo, uses: &mut Uses<'_>, id: &BlobId) -> Attempt {
        let path = self.layout.blob(&now.name, id);
        let Some(blob) = now.blobs.get(id) else { return Ok(None) };
        let before = self.facts.inventory.repo(&now.name).and_then(|repo| repo.blobs.get(id));
        if uses.blobs.contains(id) || !before.is_some_and(|before| is_same(before, blob)) {
            return self.skip(SkipReason::Changed, Some(&now.name), &path, blob.size);
        }
        if is_locked(self.layout, &now.name, id) {
            return self.skip(SkipReason::Held, Some(&now.name), &path, blob.size);
        }
        let Some(_lock) = ClientLock::acquire(self.layout, &now.name, id)? else {
            return self.skip(SkipReason::Held, Some(&now.name), &path, blob.size);
        };
        // A download that finished before we got its lock has replaced the file.
        let is_unchanged = fs::symlink_metadata(&path).is_ok_and(|meta| match &blob.place {
            BlobPlace::Blobs => meta.is_file() && same_inode(&inode(&path, &meta), &blob.inode),
            BlobPlace::Shared(_) => meta.is_symlink() && meta.modified().ok() == blob.placed,
            BlobPlace::Elsewhere => false,
        });
        // Under the lock, no client can link it.
        if !is_unchanged || uses.has_now(id) {
            return self.skip(SkipReason::Changed, Some(&now.name), &path, blob.size);
        }
        self.outcome.freed += remove::delete_file(self.layout.root(), &path).map_err(|e| cannot_delete(&path, &e))?;
        if let BlobPlace::Shared(payload) = &blob.place {
            self.payloads.entry(payload.clone()).or_default();
        }
        Ok(None)
    }

    fn delete_payload(&mut self, payload: &Path) -> Attempt {
        let repos = self.facts.inventory.repos.iter();
        let links = repos.flat_map(|repo| {
            let linking = repo.blobs.iter().filter(|(_, blob)| blob.place == BlobPlace::Shared(payload.to_path_buf()));
            linking.map(|(id, _)| self.layout.blob(&repo.name, id))
        });
        let known: Vec<PathBuf> = links.collect();
        match shared::sweep(self.layout, payload, &known)? {
            SweepOutcome::Freed(bytes) => self.outcome.freed += bytes,
            SweepOutcome::Referenced(_) => {}
            SweepOutcome::Unknown => return self.skip(SkipReason::Unlisted, None, payload, 0),
            SweepOutcome::Locked => return self.skip(SkipReason::Held, None, payload, 0),
        }
        Ok(None)
    }

    /// Moves the folder out of the cache by one rename, scans it again, and moves it back if it is not empty after all.
    fn delete_folder(&mut self, name: &RepoName) -> Attempt {
        let path = self.layout.repo(name);
        let now = scan::scan_repo(self.layout, name);
        if prune_facts::is_locked(self.layout, &now) {
            return self.skip(SkipReason::Held, Some(name), &path, 0);
        }
        if !self.is_empty(&now) {
            return self.skip(SkipReason::Changed, Some(name), &path, 0);
        }
        let failed = |error: io::Error| cannot_delete(&path, &error);
        match StagedRemoval::move_out(self.layout, &path).map_err(failed)? {
            Some(removal) if self.is_empty(&scan::scan_folder(self.layout, name, removal.path())) => {
                removal.delete().map_err(failed)?;
            }
            Some(removal) => {
                removal.put_back().map_err(failed)?;
                return self.skip(SkipReason::Changed, Some(name), &path, 0);
            }
            None => {
                inside::delete_tree(self.layout.root(), &path).map_err(failed)?;
            }
        }
        self.remove_locks(name);
        Ok(None)
    }

    /// Returns whether the folder has no content except refs and trees known to the plan, which are useless without a
    /// snapshot.
    fn is_empty(&self, now: &Repo) -> bool {
        let Some(before) = self.facts.inventory.repo(&now.name) else { return false };
        let old_refs = now.refs.iter().all(|(name, commit)| before.refs.get(name) == Some(commit));
        let old_trees = now.trees.iter().all(|commit| before.trees.contains(commit));
        let rest = now.revisions.len() + now.blobs.len() + now.in_flight.len() + now.temporaries.len();
        let old_pins = now.pins.iter().all(|commit| before.pins.contains(commit));
        !now.is_link && now.problems.is_empty() && rest == 0 && old_refs && old_pins && old_trees
    }

    /// Removes the lock files of a deleted repo, unless they are held or were used recently. Best effort.
    fn remove_locks(&self, name: &RepoName) {
        let folder = self.layout.client_locks(name);
        if !remove::is_inside(self.layout.root(), &folder.join("lock")) {
            return;
        }
        let seen = self.facts.for_repo(name).client_seen;
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let file = entry.file_name();
            let blob = file.to_str().and_then(|name| name.strip_suffix(".lock")?.parse::<BlobId>().ok());
            let modified = entry.metadata().and_then(|meta| meta.modified()).ok();
            if let Some(blob) = blob
                && modified <= seen
                && !self.layout.repo(name).exists()
                && let Ok(Some(_lock)) = lock::try_client_lock(self.layout, name, &blob)
            {
                let _ = inside::remove_file(self.layout.root(), &entry.path());
            }
        }
        let _ = inside::remove_dir(self.layout.root(), &folder);
    }

    /// Removes the empty parent folders of a nested ref, up to but not including `refs` itself.
    fn remove_empty_parents(&self, path: &Path, repo: &RepoName) {
        let refs = self.layout.repo(repo).join("refs");
        for folder in path.ancestors().skip(1).take_while(|folder| *folder != refs && folder.starts_with(&refs)) {
            if inside::remove_dir(self.layout.root(), folder).is_err() {
                return;
            }
        }
    }
}

/// Returns whether any of these files is not in `known`, or has changed.
fn has_new_files(now: &[UnfinishedFile], known: &[UnfinishedFile]) -> bool {
    let is_known = |file: &UnfinishedFile| {
        known.iter().any(|one| one.path == file.path && one.modified == file.modified && one.size == file.size)
    };
    !now.iter().all(is_known)
}

/// Returns whether another process holds one of the locks that clients take on a blob.
fn is_locked(layout: &Layout, repo: &RepoName, blob: &BlobId) -> bool {
    prune_facts::lock_files(layout, repo, blob).iter().any(|path| lock::is_held(path))
}

/// Holds huggingface_hub's lock on a blob. A lock file that did not exist before is removed on drop, so that it does
/// not look like client activity.
struct ClientLock<'a> {
    _lock: Option<Lock>,
    root: &'a Path,
    created: Option<PathBuf>,
}

impl<'a> ClientLock<'a> {
    fn acquire(layout: &'a Layout, repo: &RepoName, blob: &BlobId) -> Result<Option<Self>> {
        let path = layout.client_lock(repo, blob);
        let created = fs::symlink_metadata(&path).is_err().then_some(path);
        let root = layout.root();
        let lock = match lock::try_client_lock(layout, repo, blob) {
            // On a full disk, no other process can create it either.
            Err(error) if error.cause == Cause::DiskFull && created.is_some() => {
                return Ok(Some(ClientLock { _lock: None, root, created }));
            }
            lock => lock?,
        };
        // Without flock, huggingface_hub considers the lock held if the file exists.
        let lock = lock.filter(|lock| lock.is_real() || created.is_some());
        Ok(lock.map(|lock| ClientLock { _lock: Some(lock), root, created }))
    }
}

impl Drop for ClientLock<'_> {
    fn drop(&mut self) {
        if let Some(path) = &self.created {
            let _ = inside::remove_file(self.root, path);
            let _ = path.parent().map(|folder| inside::remove_dir(self.root, folder));
        }
    }
}

/// Returns the repo of a target that is deleted on its own.
fn repo_of(target: &Target) -> Option<&RepoName> {
    match target {
        Target::Revision(eviction) => Some(&eviction.repo),
        Target::Ref { repo, .. } | Target::Temporary { repo, .. } => Some(repo),
        _ => None,
    }
}

fn cannot_delete(path: &Path, error: &io::Error) -> Error {
    Error::io("cannot delete", path, error)
}

/// The blobs that the snapshots of a repo use.
struct Uses<'a> {
    layout: &'a Layout,
    repo: &'a RepoName,
    blobs: HashSet<BlobId>,
    /// A path whose uses of blobs cannot be determined.
    undecidable: Option<PathBuf>,
    /// When the snapshots were inspected, and the last change of each folder in them by then. A new link changes one.
    inspected_at: SystemTime,
    folders: Vec<(PathBuf, Option<SystemTime>)>,
}

impl<'a> Uses<'a> {
    /// Scans the repo for uses.
    fn find(layout: &'a Layout, repo: &'a RepoName) -> (Uses<'a>, Repo) {
        // Before the scan, so that no change in between is missed.
        let (inspected_at, folders) = (SystemTime::now(), snapshot_folders(layout, repo));
        let now = scan::scan_repo(layout, repo);
        let undecidable = find_undecidable(layout, &now).map(|problem| problem.path.clone());
        (Uses { layout, repo, blobs: used_blobs(&now), undecidable, inspected_at, folders }, now)
    }

    /// Returns whether a snapshot uses, or may use, the blob now. Scans the repo again if anything may have changed.
    fn has_now(&mut self, id: &BlobId) -> bool {
        if self.may_have_changed() {
            *self = Uses::find(self.layout, self.repo).0;
        }
        self.undecidable.is_some() || self.blobs.contains(id)
    }

    fn may_have_changed(&self) -> bool {
        self.folders.iter().any(|(path, modified)| {
            // Two changes at almost the same time cannot be distinguished.
            let is_fresh = modified.is_some_and(|modified| {
                let apart = self.inspected_at.duration_since(modified).unwrap_or_else(|error| error.duration());
                apart < TIMESTAMP_RESOLUTION
            });
            is_fresh || files::modified(path) != *modified
        })
    }
}

/// Returns the folder of all snapshots of a repo, and all folders in it, each with the time of its last change.
fn snapshot_folders(layout: &Layout, repo: &RepoName) -> Vec<(PathBuf, Option<SystemTime>)> {
    let mut left = vec![layout.repo(repo).join("snapshots")];
    let mut found = Vec::new();
    while let Some(folder) = left.pop() {
        found.push((folder.clone(), files::modified(&folder)));
        let entries = fs::read_dir(&folder).into_iter().flatten().flatten();
        let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        left.extend(folders.map(|entry| entry.path()));
    }
    found
}

/// Returns the blobs that a snapshot of the repo uses, by a link or a hard link.
fn used_blobs(repo: &Repo) -> HashSet<BlobId> {
    let by_inode: BTreeMap<(u64, u64), BlobId> =
        repo.blobs.iter().filter_map(|(id, blob)| Some((blob.inode?.id, *id))).collect();
    let files = repo.revisions.values().flat_map(|revision| revision.files.values());
    files
        .filter_map(|file| match file {
            SnapshotFile::Link(id) => Some(*id),
            SnapshotFile::Real(file) => by_inode.get(&file.inode.as_ref()?.id).copied(),
        })
        .collect()
}

fn same_inode(one: &Option<Inode>, other: &Option<Inode>) -> bool {
    one.map(|inode| inode.id) == other.map(|inode| inode.id)
}

fn is_same(before: &Blob, now: &Blob) -> bool {
    before.place == now.place
        && before.size == now.size
        && before.placed == now.placed
        && before.modified == now.modified
        && same_inode(&before.inode, &now.inode)
}

/// Returns whether the snapshot still has exactly the files that the scan found, and none has been used since.
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
            } else if !left.remove(&entry.path()) && !is_in_junk(&root, &entry.path()) {
                return false;
            }
        }
    }
    let unchanged = |(path, file): (&crate::model::ids::RepoPath, &SnapshotFile)| {
        let path = layout.snapshot_file(repo, commit, path);
        let target = || fs::read_link(&path).ok()?.file_name()?.to_str()?.parse::<BlobId>().ok();
        let same = match file {
            SnapshotFile::Link(id) => target() == Some(*id),
            SnapshotFile::Real(before) => fs::symlink_metadata(&path)
                .is_ok_and(|meta| meta.is_file() && same_inode(&inode(&path, &meta), &before.inode)),
        };
        same && fs::metadata(&path).is_ok_and(|meta| !used_after(&meta, last_use))
    };
    left.is_empty() && found.files.iter().all(unchanged)
}

/// Returns whether any part of the path below `root` is named like junk. The scan has already separated files of the
/// commit with such names.
fn is_in_junk(root: &Path, path: &Path) -> bool {
    let parts = path.strip_prefix(root).into_iter().flatten();
    parts.filter_map(|part| part.to_str()).any(is_junk)
}

/// Returns whether the file was accessed or changed after `last_use`, in seconds since 1970. An unknown time does not
/// count.
fn used_after(meta: &fs::Metadata, last_use: u64) -> bool {
    let times = [meta.accessed().ok(), meta.modified().ok()];
    let seconds = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_secs());
    times.into_iter().flatten().any(|time| seconds(time) > last_use)
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use crate::model::ids::RepoType;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_blob_that_is_linked_after_the_scan_is_in_use() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path().join("hub"));
        let repo = RepoName::new(RepoType::Model, "org/name".parse().unwrap());
        let name = "a".repeat(40);
        let (commit, blob): (Commit, BlobId) = ("c".repeat(40).parse().unwrap(), name.parse().unwrap());
        fs::create_dir_all(layout.blobs(&repo)).unwrap();
        fs::write(layout.blob(&repo, &blob), "1").unwrap();
        let old = SystemTime::now() - Duration::from_secs(60);
        let snapshots = layout.repo(&repo).join("snapshots");
        // In a new snapshot, in a new folder of an old one, and in an old folder, whether or not it was fresh at the scan.
        for (is_there, is_fresh) in [("", false), ("old", false), ("old/sub", false), ("old/sub", true)] {
            let _ = fs::remove_dir_all(&snapshots);
            let there = is_there.replace("old", commit.as_str());
            fs::create_dir_all(snapshots.join(&there)).unwrap();
            if !is_fresh {
                for folder in snapshots.join(&there).ancestors().take_while(|folder| folder.starts_with(&snapshots)) {
                    fs::File::open(folder).unwrap().set_modified(old).unwrap();
                }
            }
            let (mut uses, _) = Uses::find(&layout, &repo);
            assert!(!uses.has_now(&blob), "{is_there}");
            assert_eq!(uses.may_have_changed(), is_fresh, "{is_there}");
            let sub = snapshots.join(commit.as_str()).join("sub");
            fs::create_dir_all(&sub).unwrap();
            symlink(format!("../../../blobs/{name}"), sub.join("file")).unwrap();
            assert!(uses.has_now(&blob), "{is_there}");
        }
    }
}
