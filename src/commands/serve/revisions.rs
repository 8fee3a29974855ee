//! Looks up the revisions that clients request, and caches the results.
//!
//! Lookups go to the bucket, then to the Hub if it is the fallback, then to this machine's cache. If a known revision cannot
//! be refreshed, it is served stale, with a note.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Map, Value};
use tokio::sync::{OnceCell, watch};

use super::activity::Activity;
use super::documents::{LastCommit, Listing};
use crate::bucket::client::Bucket;
use crate::bucket::lookup;
use crate::bucket::state::RemoteState;
use crate::cache::inventory::Inventory;
use crate::cache::pushable;
use crate::cache::scan::scan_repo;
use crate::cache::state::LocalState;
use crate::engine::Session;
use crate::engine::fallback::Fallback;
use crate::error::{Cause, Error, Result};
use crate::model::found::Found;
use crate::model::ids::{Commit, RefName, RepoName, RepoQuery, RepoType};
use crate::progress::{Event, Progress};
use crate::task::blocking;

/// Timeout of the bucket in a lookup.
const TIMEOUT: Duration = Duration::from_secs(8);
/// The same while the bucket was last seen unreachable.
const TIMEOUT_WHILE_LOST: Duration = Duration::from_secs(2);
/// Maximum time that a request waits for a lookup, which then continues in the background. Clients time out after ten
/// seconds.
const WAIT: Duration = Duration::from_millis(9_500);
/// The same if the revision is known, and can be served stale.
const WAIT_IF_KNOWN: Duration = Duration::from_secs(3);
/// Timeout of a whole lookup, including waits for the Hub's rate limit.
const LOOKUP: Duration = Duration::from_secs(120);
/// Interval between attempts to reach an unreachable bucket.
const LOST: Duration = Duration::from_secs(5);
/// Time after which a failed lookup is repeated.
const RETRY: Duration = Duration::from_secs(2);
/// Maximum number of lookups that are remembered.
const MAX_REMEMBERED: usize = 512;
/// What the user of a client can do if the bucket lacks something.
pub(super) const MISSING_HINT: &str = "push it from a machine that has it, or run the server with --fallback hf-hub";

/// Where a revision was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In the bucket.
    Bucket,
    /// On the Hub.
    Hub,
    /// Only in this machine's cache.
    Cache,
}

/// A revision to serve.
#[derive(Debug)]
pub struct Revision {
    /// The manifest, and the ref by which it was found.
    pub found: Found,
    /// Where it was found.
    pub place: Place,
    /// All known files of the commit.
    pub listing: Listing,
    /// The same commit on the Hub, for files that the bucket lacks.
    pub on_hub: OnceCell<Arc<Revision>>,
    /// The front matter of its README.
    pub card: OnceCell<Map<String, Value>>,
}

impl Revision {
    fn new(found: Found, place: Place) -> Arc<Revision> {
        let listing = Listing::of(&found.manifest);
        Arc::new(Revision { found, place, listing, on_hub: Default::default(), card: Default::default() })
    }

    /// Returns the repo.
    pub fn repo(&self) -> &RepoName {
        self.found.manifest.repo()
    }

    /// Returns the commit.
    pub fn commit(&self) -> &Commit {
        self.found.manifest.revision()
    }

    /// Returns the commit for expanded listings.
    pub fn last_commit(&self) -> LastCommit {
        let time = self.found.modified.unwrap_or(SystemTime::UNIX_EPOCH);
        LastCommit { id: self.commit().clone(), date: date(time) }
    }
}

/// Formats a time as the Hub does: with milliseconds, which some clients need.
fn date(time: SystemTime) -> String {
    let time = jiff::Timestamp::try_from(time).unwrap_or_default();
    time.strftime("%Y-%m-%dT%H:%M:%S.%3fZ").to_string()
}

/// The refs of a repo, by name.
pub type Refs = Arc<BTreeMap<String, Commit>>;

/// A repo and a revision, as requested.
type Key = (String, String);

/// The revisions that clients request.
pub struct Revisions {
    session: Session,
    bucket: Option<Bucket>,
    fallback: Fallback,
    activity: Arc<Activity>,
    /// How long the result of a lookup is fresh.
    refresh: Duration,
    /// Whether only clients on this machine are served.
    is_local: bool,
    known: Slots<Key, Arc<Revision>>,
    refs: Slots<String, Refs>,
    /// The commit that each ref last resolved to. Clients resolve a ref first and then request files by commit.
    names: Mutex<HashMap<(RepoName, RefName), Commit>>,
    /// When and why the last request to the bucket failed to reach it; `None` if it succeeded.
    lost: Mutex<Option<(Instant, Error)>>,
}

/// Cached lookups, by request.
type Slots<K, T> = Mutex<HashMap<K, Arc<Slot<T>>>>;

/// A cached lookup, and the running one if there is one. There is at most one at a time.
struct Slot<T>(Mutex<State<T>>);

struct State<T> {
    known: Option<Known<T>>,
    running: Option<Running>,
}

/// A lookup that is running.
#[derive(Clone)]
struct Running {
    since: Instant,
    /// Closed when the lookup ends.
    end: watch::Receiver<()>,
}

/// The result of a lookup.
struct Known<T> {
    result: Result<T>,
    until: Instant,
}

impl<T: Clone + Send + 'static> Slot<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the cached result if it is fresh. Otherwise waits for the running lookup, or starts one. The lookup continues
    /// if the wait times out or is cancelled. `look_up` gets the previous result.
    async fn get<F>(self: &Arc<Self>, look_up: impl FnOnce(Option<T>) -> F) -> Result<T>
    where
        F: Future<Output = (Result<T>, Duration)> + Send + 'static,
    {
        let (mut running, is_known) = {
            let mut state = self.lock();
            if let Some(known) = state.known.as_ref().filter(|known| known.until > Instant::now()) {
                return known.result.clone();
            }
            let before = state.known.as_ref().and_then(|known| known.result.as_ref().ok()).cloned();
            let is_known = before.is_some();
            let running = match state.running.clone() {
                Some(running) => running,
                None => {
                    let (ended, end) = watch::channel(());
                    let (slot, work) = (self.clone(), look_up(before));
                    tokio::spawn(async move {
                        let (result, lifetime) = tokio::time::timeout(LOOKUP, work)
                            .await
                            .unwrap_or_else(|_| (Err(timed_out("the bucket")), RETRY));
                        let mut state = slot.lock();
                        state.known = Some(Known { result, until: Instant::now() + lifetime });
                        state.running = None;
                        drop(ended);
                    });
                    let running = Running { since: Instant::now(), end };
                    state.running = Some(running.clone());
                    running
                }
            };
            (running, is_known)
        };
        let wait = if is_known { WAIT_IF_KNOWN } else { WAIT };
        let has_ended = tokio::time::timeout_at((running.since + wait).into(), running.end.changed()).await.is_ok();
        let state = self.lock();
        match &state.known {
            Some(known) if has_ended || known.result.is_ok() => known.result.clone(),
            _ => Err(timed_out("the bucket")),
        }
    }
}

impl Revisions {
    /// Looks up revisions in this bucket; without one, only in the cache.
    pub fn new(
        session: &Session,
        bucket: Option<Bucket>,
        fallback: Fallback,
        activity: Arc<Activity>,
        refresh: Duration,
        is_local: bool,
    ) -> Revisions {
        Revisions {
            session: session.clone(),
            bucket,
            fallback,
            activity,
            refresh,
            is_local,
            known: Mutex::default(),
            refs: Mutex::default(),
            names: Mutex::default(),
            lost: Mutex::default(),
        }
    }

    /// Returns a revision.
    ///
    /// # Errors
    /// [`Cause::NotFound`] if the repo is not found, [`Cause::NoSuchRevision`] if it lacks the revision, and all causes of
    /// failed requests.
    pub async fn find(self: &Arc<Self>, query: &RepoQuery, revision: &str) -> Result<Arc<Revision>> {
        let slot = slot(&self.known, (query.to_string(), revision.to_string()));
        let (this, query, revision) = (self.clone(), query.clone(), revision.to_string());
        slot.get(|before| async move { this.renew(&query, &revision, before).await }).await
    }

    /// Looks up a revision. Also returns how long the result is fresh.
    async fn renew(
        &self,
        query: &RepoQuery,
        revision: &str,
        before: Option<Arc<Revision>>,
    ) -> (Result<Arc<Revision>>, Duration) {
        let found = match self.look_up(query, revision, before.is_some()).await {
            Ok(found) => self.keep_if_unchanged(before, found),
            Err(error) => match before.filter(|_| error.cause.may_pass()) {
                Some(before) => {
                    let note = format!("{query}@{revision} is served from an earlier lookup: {}", error.brief());
                    self.activity.event(Event::Note(note));
                    return (Ok(before), self.refresh.clamp(RETRY, LOST));
                }
                None => return (Err(error), RETRY.min(self.refresh)),
            },
        };
        if let Some(name) = &found.found.reference {
            // Clients continue with the commit.
            let by_commit = slot(&self.known, (query.to_string(), found.commit().to_string()));
            by_commit.lock().known = Some(Known { result: Ok(found.clone()), until: Instant::now() + self.refresh });
            let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
            if names.len() > MAX_REMEMBERED {
                names.clear();
            }
            names.insert((found.repo().clone(), name.clone()), found.commit().clone());
        }
        (Ok(found), self.refresh)
    }

    /// Returns the refs that clients have resolved to this revision and that have not moved since.
    pub fn references(&self, revision: &Revision) -> Vec<RefName> {
        let names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        let leads_here = |repo: &RepoName, commit: &Commit| repo == revision.repo() && commit == revision.commit();
        names.iter().filter(|((repo, _), commit)| leads_here(repo, commit)).map(|((_, name), _)| name.clone()).collect()
    }

    /// Returns one of these refs.
    pub fn reference(&self, revision: &Revision) -> Option<RefName> {
        // The ref in `found` may have moved.
        self.references(revision).pop()
    }

    /// Returns the known revision, with everything cached in it, if the lookup has found the same one again.
    fn keep_if_unchanged(&self, before: Option<Arc<Revision>>, found: Arc<Revision>) -> Arc<Revision> {
        match before {
            Some(before)
                if before.place == found.place
                    && before.found.manifest == found.found.manifest
                    && before.found.reference == found.found.reference =>
            {
                before
            }
            _ => found,
        }
    }

    async fn look_up(&self, query: &RepoQuery, revision: &str, is_known: bool) -> Result<Arc<Revision>> {
        let failure = match &self.bucket {
            Some(bucket) => match self.ask_bucket(lookup::find(bucket, query, Some(revision))).await {
                Ok(found) => return Ok(Revision::new(found, Place::Bucket)),
                // The other hint is for a command line.
                Err(failure) if failure.cause == Cause::NoSuchRevision => failure.hint(MISSING_HINT),
                Err(failure) => failure,
            },
            None => Error::not_found(format!("{query} is not in the cache")),
        };
        let failure = match self.fallback.covers(&failure) {
            true => match self.fallback.find(query, Some(revision), failure).await {
                Ok(found) => return Ok(Revision::new(found, Place::Hub)),
                Err(failure) => match failure.cause {
                    Cause::Denied => Error { cause: Cause::Gated, ..failure },
                    Cause::NoSuchKey => Error { cause: Cause::NotFound, ..failure },
                    _ => failure,
                },
            },
            false => failure,
        };
        // A stale revision is at least as good as what the cache has.
        if is_known && failure.cause.may_pass() {
            return Err(failure);
        }
        match self.find_in_cache(query, revision).await {
            Ok(found) => Ok(Revision::new(found, Place::Cache)),
            Err(InCache::NoRevision) if self.bucket.is_none() => {
                Err(Error::new(Cause::NoSuchRevision, format!("revision '{revision}' of {query} is not in the cache")))
            }
            Err(_) => Err(failure),
        }
    }

    /// Runs a lookup in the bucket. While the bucket is unreachable, this is tried only now and then, so that files in the
    /// cache are served without delay.
    async fn ask_bucket<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let lost = self.lost().clone();
        if let Some((_, failure)) = lost.as_ref().filter(|(since, _)| since.elapsed() < LOST) {
            return Err(failure.clone());
        }
        let timeout = if lost.is_some() { TIMEOUT_WHILE_LOST } else { TIMEOUT };
        let found = tokio::time::timeout(timeout, work).await.unwrap_or_else(|_| Err(timed_out("the bucket")));
        let failure = found.as_ref().err().filter(|failure| failure.cause.may_pass());
        // The lock is not held while the activity writes to the terminal.
        let lost = failure.map(|failure| (Instant::now(), out_of_reach(failure)));
        let was_lost = std::mem::replace(&mut *self.lost(), lost);
        match (failure, was_lost) {
            (Some(failure), None) => {
                let note = format!("the bucket cannot be read; serving from the cache: {}", failure.brief());
                self.activity.event(Event::Note(note));
            }
            (None, Some(_)) => self.activity.event(Event::Note("the bucket can be read again".into())),
            _ => {}
        }
        found
    }

    fn lost(&self) -> MutexGuard<'_, Option<(Instant, Error)>> {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns whether the Hub is the fallback.
    pub fn has_fallback(&self) -> bool {
        self.fallback.is_some()
    }

    /// Returns a revision, from the Hub if only the Hub is known to have all of its files.
    ///
    /// # Errors
    /// As [`find`](Self::find).
    pub async fn find_complete(self: &Arc<Self>, query: &RepoQuery, revision: &str) -> Result<Arc<Revision>> {
        let revision = self.find(query, revision).await?;
        match revision.listing.is_complete {
            true => Ok(revision),
            false => Ok(self.find_on_hub(&revision).await.unwrap_or(revision)),
        }
    }

    /// Finds the same commit on the Hub, for files that the bucket lacks.
    pub async fn find_on_hub(&self, revision: &Revision) -> Option<Arc<Revision>> {
        if revision.place == Place::Hub || !self.fallback.is_some() {
            return None;
        }
        let repo = revision.repo();
        let look_up = async || {
            let hub = self.fallback.hub().ok_or(())?.map_err(|_| ())?;
            let query = RepoQuery { kind: Some(repo.kind), id: repo.id.clone() };
            let found = tokio::time::timeout(TIMEOUT, hub.find(&query, Some(revision.commit().as_str()))).await;
            match found.unwrap_or_else(|_| Err(timed_out("the Hub"))) {
                Ok(found) => Ok(Revision::new(found, Place::Hub)),
                Err(error) => {
                    self.activity.fail(format!("{repo}@{}", revision.commit().short()), &error);
                    Err(())
                }
            }
        };
        // A failure is not remembered: it may be temporary.
        revision.on_hub.get_or_try_init(look_up).await.ok().cloned()
    }

    /// Finds a revision in this machine's cache.
    async fn find_in_cache(&self, query: &RepoQuery, revision: &str) -> Result<Found, InCache> {
        let repo = RepoName::new(query.kind.unwrap_or(RepoType::Model), query.id.clone());
        // Users of this machine can read its cache anyway. Others get nothing from it that looks gated.
        let allow_gated = self.is_local || self.session.config.team.allow_gated;
        let (layout, revision) = (self.session.layout(), revision.to_string());
        blocking(move || {
            let repo = scan_repo(&layout, &repo);
            if repo.revisions.is_empty() {
                return Err(InCache::Nothing);
            }
            let reference = revision.parse::<RefName>().ok().filter(|name| repo.refs.contains_key(name));
            let commit = match &reference {
                Some(name) => repo.refs.get(name).cloned(),
                None => {
                    let mut commits = repo.revisions.keys().filter(|commit| commit.as_str().starts_with(&revision));
                    commits.next().filter(|_| revision.len() >= 4 && commits.next().is_none()).cloned()
                }
            };
            let commit = commit.ok_or(InCache::NoRevision)?;
            let name = repo.name.clone();
            let inventory = Inventory { layout, repos: vec![repo], problems: Vec::new(), shared_store: false };
            let options = pushable::Options { allow_gated, sync_xet: true, ..Default::default() };
            let local = pushable::gather(&LocalState::new(inventory), &options).map_err(|_| InCache::Nothing)?;
            let local = local.repos.into_iter().find(|repo| repo.name == name);
            let mut revisions = local.into_iter().flat_map(|repo| repo.revisions);
            let found = revisions.find(|revision| revision.commit == commit).and_then(|found| found.manifest);
            let manifest = Arc::unwrap_or_clone(found.ok_or(InCache::NoRevision)?);
            Ok(Found { manifest, reference, pinned: false, modified: None, notes: Vec::new() })
        })
        .await
    }

    /// Returns the branches, tags and other refs of a repo.
    ///
    /// # Errors
    /// As [`find`](Self::find).
    pub async fn refs(self: &Arc<Self>, query: &RepoQuery) -> Result<Refs> {
        let slot = slot(&self.refs, query.to_string());
        let (this, query) = (self.clone(), query.clone());
        let renew = |before: Option<Refs>| async move {
            match (this.list_refs(&query).await, before) {
                (Ok(refs), _) => (Ok(refs), this.refresh),
                (Err(error), Some(before)) if error.cause.may_pass() => (Ok(before), this.refresh.clamp(RETRY, LOST)),
                (Err(error), _) => (Err(error), RETRY.min(this.refresh)),
            }
        };
        slot.get(renew).await
    }

    async fn list_refs(self: &Arc<Self>, query: &RepoQuery) -> Result<Refs> {
        let repo = RepoName::new(query.kind.unwrap_or(RepoType::Model), query.id.clone());
        let mut refs = BTreeMap::new();
        let listed = match &self.bucket {
            Some(bucket) => {
                let list = async {
                    RemoteState::list_repo(bucket, query).await.map_err(|failure| bucket.explain_listing(failure))
                };
                self.ask_bucket(list).await
            }
            None => Ok(RemoteState::default()),
        };
        let failure = match (listed, &self.bucket) {
            (Ok(state), Some(bucket)) => {
                let names: Vec<RefName> =
                    state.refs().iter().filter(|one| one.may_refer_to(&repo)).map(|one| one.name.clone()).collect();
                for name in names.into_iter().filter(|name| name.as_str().parse::<Commit>().is_err()) {
                    // A repo may have several keys. `lookup` decides which one counts, and whether it belongs to this repo.
                    if let Ok(found) = lookup::find(bucket, query, Some(name.as_str())).await {
                        refs.insert(name.to_string(), found.manifest.revision().clone());
                    }
                }
                None
            }
            (Err(failure), _) => Some(failure),
            (Ok(_), None) => None,
        };
        if refs.is_empty() {
            let layout = self.session.layout();
            let local = blocking(move || scan_repo(&layout, &repo).refs).await;
            refs.extend(local.into_iter().map(|(name, commit)| (name.to_string(), commit)));
        }
        if refs.is_empty() {
            // The Hub's refs are not listed: `main` is enough for clients to continue.
            let main = self.find(query, "main").await.map_err(|error| failure.unwrap_or(error))?;
            refs.insert("main".into(), main.commit().clone());
        }
        Ok(Arc::new(refs))
    }
}

/// Returns the error for requests that are skipped after this failure of an earlier one.
fn out_of_reach(failure: &Error) -> Error {
    let why = failure.why.clone().unwrap_or_else(|| failure.what.clone());
    Error { what: "the bucket cannot be reached".into(), why: Some(why), ..failure.clone() }
}

/// Why a revision was not found in the cache.
enum InCache {
    /// The cache has nothing of the repo.
    Nothing,
    /// The cache has the repo, but not the revision.
    NoRevision,
}

fn timed_out(by: &str) -> Error {
    Error::new(Cause::Broken, format!("{by} did not answer in time"))
}

/// Returns the slot of a key. Forgets all others if there are too many.
fn slot<K: Hash + Eq, T>(all: &Slots<K, T>, key: K) -> Arc<Slot<T>> {
    let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
    if all.len() >= MAX_REMEMBERED && !all.contains_key(&key) {
        all.clear();
    }
    let new = || Arc::new(Slot(Mutex::new(State { known: None, running: None })));
    all.entry(key).or_insert_with(new).clone()
}
