//! Pulls blobs into the cache: each once, however many clients request it, and through the same engine as `pull`.
//!
//! A file is pulled as `pull --include` would pull it: the blob, its link in a partial snapshot, the tree and the ref. So
//! every other command and client understands the cache.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::{Notify, RwLock};

use super::activity::{Activity, Origin};
use super::revisions::{MISSING_HINT, Place, Revision, Revisions};
use crate::bucket::client::Bucket;
use crate::cache::layout::Layout;
use crate::cache::{gated, place, read, shared, snapshot};
use crate::engine::Session;
use crate::engine::fallback::Fallback;
use crate::engine::pull::{Decision, Options, Pull, Work};
use crate::error::{Cause, Error, Result};
use crate::model::found::Found;
use crate::model::ids::{BlobId, Commit, RefName, RepoName, RepoPath, RepoQuery};
use crate::task::blocking;
use crate::transfer::Context;
use crate::transfer::arrival::{Arrival, Arrivals};
use crate::transfer::parts::SINGLE_GET;

/// How long a permanent failure is remembered, so that client retries do not fetch a corrupt blob again and again.
const PERMANENT: Duration = Duration::from_secs(30);
/// The same for a temporary failure.
const TEMPORARY: Duration = Duration::from_secs(1);
/// Minimum interval between two updates of a served file's last use.
const MARK_USED: Duration = Duration::from_secs(60);

/// Pulls blobs into the cache.
pub struct Puller {
    session: Session,
    bucket: Option<Bucket>,
    fallback: Fallback,
    options: Options,
    /// Shared by all pulls: limits, hashing, arrivals. Created by the first one, since the limits depend on the latency of
    /// the bucket, which the first lookups measure.
    context: OnceLock<Context>,
    arrivals: Arc<Arrivals>,
    revisions: Arc<Revisions>,
    activity: Arc<Activity>,
    failures: Mutex<HashMap<(RepoName, BlobId), (Instant, Error)>>,
    marked: Mutex<HashMap<BlobId, Instant>>,
    /// Revisions that did not look gated when the first of their files was pulled. They are not checked again when their
    /// licence has arrived: as with `pull`, a revision is served entirely or not at all.
    admitted: Mutex<HashSet<(RepoName, Commit)>>,
    /// The refs that have been written to the cache.
    written: Mutex<HashMap<(RepoName, RefName), Commit>>,
    /// Held for reading by pulls, and for writing while the cache is pruned.
    pub gate: RwLock<()>,
    /// Bytes that have been added to the cache since it was last measured.
    pub added: AtomicU64,
    /// Notified when bytes have been added.
    pub has_added: Notify,
    /// Revisions that are to be published; `None` without `--push`.
    pub unpublished: Option<Mutex<Unpublished>>,
}

/// Revisions from the Hub that are to be published.
#[derive(Default)]
pub struct Unpublished {
    /// When the last file of each arrived.
    pub waiting: HashMap<(RepoName, Commit), Instant>,
    /// All that have ever been added.
    seen: HashSet<(RepoName, Commit)>,
}

impl Unpublished {
    fn add(&mut self, key: (RepoName, Commit)) {
        self.seen.insert(key.clone());
        self.waiting.insert(key, Instant::now());
    }
}

/// A file of a revision, opened for a client.
pub enum Opened {
    /// It is in the cache.
    Present(File),
    /// It is on its way.
    Arriving(Arc<Arrival>),
}

impl Puller {
    /// Creates a puller. Without a bucket and a fallback, it serves only the cache.
    pub fn new(
        session: &Session,
        bucket: Option<Bucket>,
        fallback: Fallback,
        options: Options,
        revisions: Arc<Revisions>,
        activity: Arc<Activity>,
        publishes: bool,
    ) -> Arc<Puller> {
        let arrivals: Arc<Arrivals> = Arc::default();
        Arc::new(Puller {
            session: session.clone(),
            bucket,
            fallback,
            options,
            context: OnceLock::new(),
            arrivals,
            revisions,
            activity,
            failures: Mutex::default(),
            marked: Mutex::default(),
            admitted: Mutex::default(),
            written: Mutex::default(),
            gate: RwLock::new(()),
            added: AtomicU64::new(0),
            has_added: Notify::new(),
            unpublished: publishes.then(Mutex::default),
        })
    }

    fn layout(&self) -> Layout {
        self.session.layout()
    }

    /// Returns whether clients with a part of this blob may have wrong bytes, so that no download may be resumed. `opened`
    /// is the source the client is about to read, if it has been opened.
    pub async fn is_suspect(&self, blob: &BlobId, opened: Option<&Opened>) -> bool {
        let arriving = match opened {
            Some(Opened::Arriving(arrival)) => Some(arrival.clone()),
            Some(Opened::Present(_)) => None,
            None => self.arrivals.get(blob),
        };
        match arriving {
            Some(arrival) => arrival.may_have_passed_on_wrong_bytes(),
            None => {
                let (layout, blob) = (self.layout(), *blob);
                blocking(move || place::is_marked_unverified(&layout, &blob)).await
            }
        }
    }

    /// Opens a file of a revision. Pulls it if it is not in the cache.
    ///
    /// # Errors
    /// If it is already known to be unavailable.
    pub async fn open(self: &Arc<Self>, revision: &Arc<Revision>, path: &RepoPath) -> Result<Opened> {
        let file = revision.listing.get(path).ok_or_else(|| Error::not_found(format!("no file '{path}'")))?;
        let (blob, size) = (file.blob, file.size);
        if let Some(arrival) = self.arrivals.get(&blob) {
            self.link_after(&arrival, revision, path);
            return Ok(Opened::Arriving(arrival));
        }
        if let Some(file) = self.open_present(revision, path, blob, size).await {
            return Ok(Opened::Present(file));
        }
        self.pull(revision, path, blob, size).await.map(Opened::Arriving)
    }

    /// Starts to pull a file that is not in the cache, and waits until a client that shares this cache need not download it:
    /// until a small file is complete, or the lock of a large one is held.
    pub async fn prepare(self: &Arc<Self>, revision: &Arc<Revision>, path: &RepoPath) {
        if let Ok(Opened::Arriving(arrival)) = self.open(revision, path).await {
            let mut state = arrival.watch();
            let is_large = arrival.size > SINGLE_GET;
            let begun = state.wait_for(|state| (state.has_begun && is_large) || state.outcome.is_some());
            let _ = tokio::time::timeout(Duration::from_secs(2), begun).await;
        }
    }

    /// Opens the blob in the cache, marks it as used, and adds the file to the snapshot if it is missing there.
    async fn open_present(
        self: &Arc<Self>,
        revision: &Arc<Revision>,
        path: &RepoPath,
        blob: BlobId,
        size: u64,
    ) -> Option<File> {
        let layout = self.layout();
        let (repo, commit, name) = (revision.repo().clone(), revision.commit().clone(), path.clone());
        let marks = self.needs_marking(&blob);
        let (references, sync) = (self.references_to_write(revision), self.options.sync);
        let (file, is_linked, references) = blocking(move || {
            let open = |path: &std::path::Path| {
                let file = read::open_quietly(path).ok()?;
                file.metadata().is_ok_and(|meta| meta.len() == size).then_some(file)
            };
            let in_snapshot = layout.snapshot_file(&repo, &commit, &name);
            let is_linked = snapshot::is_linked(&layout, &repo, &commit, &name, &blob, size);
            let file = open(&layout.blob(&repo, &blob)).or_else(|| is_linked.then(|| open(&in_snapshot)).flatten())?;
            if marks {
                place::mark_used(&in_snapshot, SystemTime::now());
            }
            for reference in references.iter().filter(|_| is_linked) {
                if let Err(error) = place::write_ref(&layout, &repo, reference, &commit, sync) {
                    tracing::debug!("{error}");
                }
            }
            Some((file, is_linked, references))
        })
        .await?;
        self.note_unpublished(revision, path);
        if is_linked && !references.is_empty() {
            self.note_written(revision, references);
        }
        if !is_linked && revision.place != Place::Cache {
            let (puller, revision, path) = (self.clone(), revision.clone(), path.clone());
            tokio::spawn(async move {
                let _ = puller.pull(&revision, &path, blob, size).await;
            });
        }
        Some(file)
    }

    /// Schedules the revision of a cached file for publishing if the bucket lacks the file: an earlier server may have
    /// fetched it from the Hub and been killed. One push publishes everything of the revision that is cached, so once is
    /// enough.
    fn note_unpublished(&self, revision: &Revision, path: &RepoPath) {
        let Some(unpublished) = &self.unpublished else { return };
        let is_missing_in_bucket = match revision.place {
            Place::Hub => true,
            Place::Bucket => revision.found.manifest.files().binary_search_by(|file| file.path.cmp(path)).is_err(),
            Place::Cache => false,
        };
        let key = (revision.repo().clone(), revision.commit().clone());
        let mut unpublished = unpublished.lock().unwrap_or_else(PoisonError::into_inner);
        if is_missing_in_bucket && !unpublished.seen.contains(&key) {
            unpublished.add(key);
        }
    }

    /// Returns the refs that clients have resolved to this revision and that the cache may lack.
    fn references_to_write(&self, revision: &Revision) -> Vec<RefName> {
        let mut references = match revision.place {
            Place::Cache => Vec::new(),
            Place::Bucket | Place::Hub => self.revisions.references(revision),
        };
        let written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        references.retain(|name| written.get(&(revision.repo().clone(), name.clone())) != Some(revision.commit()));
        references
    }

    fn note_written(&self, revision: &Revision, references: Vec<RefName>) {
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        let keys = references.into_iter().map(|name| (revision.repo().clone(), name));
        written.extend(keys.map(|key| (key, revision.commit().clone())));
    }

    fn needs_marking(&self, blob: &BlobId) -> bool {
        let mut marked = self.marked.lock().unwrap_or_else(PoisonError::into_inner);
        if marked.len() > 100_000 {
            marked.clear();
        }
        let now = Instant::now();
        match marked.get(blob) {
            Some(last) if now.duration_since(*last) < MARK_USED => false,
            _ => marked.insert(*blob, now).is_none_or(|_| true),
        }
    }

    /// Starts to pull a blob, unless it is already being pulled.
    async fn pull(
        self: &Arc<Self>,
        revision: &Arc<Revision>,
        path: &RepoPath,
        blob: BlobId,
        size: u64,
    ) -> Result<Arc<Arrival>> {
        if let Some(error) = self.known_failure(revision.repo(), &blob) {
            return Err(error);
        }
        let layout = self.layout();
        let target = layout.blob(revision.repo(), &blob);
        let is_suspect = blocking(move || place::is_marked_unverified(&layout, &blob)).await;
        let (arrival, is_new) = self.arrivals.begin(blob, size, &target, is_suspect);
        if !is_new {
            self.link_after(&arrival, revision, path);
            return Ok(arrival);
        }
        let (puller, revision, path) = (self.clone(), revision.clone(), path.clone());
        tokio::spawn(async move {
            let _gate = puller.gate.read().await;
            let result = puller.pull_file(&revision, &path, blob, size).await;
            puller.end(revision.repo(), blob, size, result).await;
        });
        Ok(arrival)
    }

    async fn end(&self, repo: &RepoName, blob: BlobId, size: u64, result: Result<()>) {
        self.activity.end_pull(&blob, result.as_ref().err());
        match &result {
            Ok(()) => {
                self.added.fetch_add(size, Ordering::Relaxed);
                self.has_added.notify_one();
                if self.arrivals.get(&blob).is_some_and(|arrival| arrival.has_passed_on_right_bytes()) {
                    let layout = self.layout();
                    blocking(move || place::unmark_unverified(&layout, &blob)).await;
                }
            }
            Err(error) => {
                let lifetime = if error.cause.may_pass() { TEMPORARY } else { PERMANENT };
                let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
                failures.retain(|_, (until, _)| *until > Instant::now());
                failures.insert((repo.clone(), blob), (Instant::now() + lifetime, error.clone()));
            }
        }
        self.arrivals.end(&blob, result);
    }

    /// Pulls the files of a revision by which a push determines whether its repo is gated. Clients may not have requested
    /// them.
    ///
    /// # Errors
    /// If one of them cannot be pulled.
    pub async fn pull_licenses(self: &Arc<Self>, repo: &RepoName, commit: &Commit) -> Result<()> {
        let query = RepoQuery { kind: Some(repo.kind), id: repo.id.clone() };
        let revision = self.revisions.find_complete(&query, commit.as_str()).await?;
        for (path, file) in revision.listing.files().iter().filter(|(path, _)| gated::is_judged_by(path)) {
            let mut state = self.pull(&revision, path, file.blob, file.size).await?.watch();
            let ended = state.wait_for(|state| state.outcome.is_some()).await;
            ended.ok().and_then(|state| state.outcome.clone()).unwrap_or(Ok(()))?;
        }
        Ok(())
    }

    fn known_failure(&self, repo: &RepoName, blob: &BlobId) -> Option<Error> {
        let failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        failures
            .get(&(repo.clone(), *blob))
            .filter(|(until, _)| *until > Instant::now())
            .map(|(_, error)| error.clone())
    }

    fn admitted(&self) -> MutexGuard<'_, HashSet<(RepoName, Commit)>> {
        self.admitted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Links another file to a blob in flight once it has arrived.
    fn link_after(self: &Arc<Self>, arrival: &Arc<Arrival>, revision: &Arc<Revision>, path: &RepoPath) {
        let mut state = arrival.watch();
        let (puller, revision, path) = (self.clone(), revision.clone(), path.clone());
        tokio::spawn(async move {
            let arrived = state.wait_for(|state| state.outcome.is_some()).await;
            let is_here = arrived.is_ok_and(|state| matches!(state.outcome, Some(Ok(()))));
            if is_here && let Some(file) = revision.listing.get(&path) {
                // Links the file if necessary. Another repo needs its own copy of the blob.
                let present = puller.open_present(&revision, &path, file.blob, file.size).await;
                if present.is_none() && revision.place != Place::Cache {
                    let _ = puller.pull(&revision, &path, file.blob, file.size).await;
                }
            }
        });
    }

    /// Pulls one file.
    async fn pull_file(&self, revision: &Arc<Revision>, path: &RepoPath, blob: BlobId, size: u64) -> Result<()> {
        let label = format!("{}/{path}", revision.repo());
        let (found, from_hub) = self.find(revision, path, blob).await?;
        let origin = if from_hub { Origin::Hub } else { Origin::Bucket };
        self.activity.begin_pull(blob, label.clone(), size, origin);
        let Some(bucket) = &self.bucket else {
            let missing = Error::new(Cause::NoSuchKey, format!("{label} is not in the cache"));
            return Err(missing.because("this server is offline"));
        };
        let context = self.context.get_or_init(|| Context {
            arrivals: Some(self.arrivals.clone()),
            ..self.session.transfers(bucket, self.options.caps, self.options.sync)
        });
        let key = (revision.repo().clone(), revision.commit().clone());
        let mut session = Session { now: SystemTime::now(), ..self.session.clone() };
        session.config.team.allow_gated |= self.admitted().contains(&key);
        let pull = Pull::begin(&session, bucket, self.options, self.fallback.clone(), false).await.sharing(context);
        let plan = match pull.decide(&found, from_hub).await? {
            Decision::Gated(gated) => {
                return Err(Error::new(Cause::Gated, format!("{label} is not served"))
                    .because(format!("its repo looks gated, {}", gated.why()))
                    .hint("set team.allow_gated: true if all users of this server may access it"));
            }
            Decision::Pull(plan) => plan,
        };
        if !plan.fetch.is_empty() {
            self.admitted().insert(key.clone());
        }
        let mut work = [Work { found, plan: *plan, from_hub }];
        pull.reuse_local(&mut work).await;
        let outcome = pull.carry_out(&mut work).await?.remove(0);
        let came_from_hub = outcome.from_hub.blobs > 0;
        if let Some(failure) = outcome.failures.into_iter().next() {
            return Err(failure);
        }
        if came_from_hub && let Some(unpublished) = &self.unpublished {
            unpublished.lock().unwrap_or_else(PoisonError::into_inner).add(key);
        }
        Ok(())
    }

    /// Returns the revision limited to this file, and whether it comes from the Hub.
    async fn find(&self, revision: &Arc<Revision>, path: &RepoPath, blob: BlobId) -> Result<(Found, bool)> {
        let (layout, repo, commit) = (self.layout(), revision.repo().clone(), revision.commit().clone());
        // The cache-wide store needs the Xet hashes in it.
        let has_tree = blocking(move || !shared::is_store(&layout) && layout.tree(&repo, &commit).is_file()).await;
        let limited = |revision: &Revision| {
            let manifest = revision.found.manifest.filtered(|file| file.path == *path)?;
            // Comparing the tree again for each of thousands of files would take longer than pulling them.
            let manifest = if has_tree { manifest.without_tree() } else { manifest };
            let Found { pinned, modified, .. } = revision.found;
            Some(Found { manifest, reference: self.revisions.reference(revision), pinned, modified, notes: Vec::new() })
        };
        if let Some(found) = limited(revision) {
            return Ok((found, revision.place == Place::Hub));
        }
        if let Some(on_hub) = self.revisions.find_on_hub(revision).await
            && on_hub.listing.get(path).is_some_and(|file| file.blob == blob)
            && let Some(found) = limited(&on_hub)
        {
            return Ok((Found { reference: self.revisions.reference(revision), ..found }, true));
        }
        Err(Error::new(Cause::NoSuchKey, format!("{}/{path} is not in the bucket", revision.repo()))
            .because("the commit has it, but it was never pushed to the bucket")
            .hint(MISSING_HINT))
    }
}
