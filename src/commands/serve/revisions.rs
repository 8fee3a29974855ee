//! The revisions that clients ask for: each is looked up once, and again when it is no longer fresh.
//!
//! The bucket decides, then the Hub if there is such a fallback, then this machine's cache. If a revision that was served
//! before cannot be looked up again, it is served as it was, with a note.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Map, Value};
use tokio::sync::{Mutex as AsyncMutex, OnceCell};

use super::activity::Activity;
use super::documents::{LastCommit, Listing};
use crate::bucket::client::Bucket;
use crate::bucket::lookup;
use crate::bucket::state::RemoteState;
use crate::cache::pushable;
use crate::cache::scan::{Inventory, scan_repo};
use crate::cache::state::LocalState;
use crate::engine::Session;
use crate::engine::fallback::Fallback;
use crate::error::{Cause, Error, Result};
use crate::model::found::Found;
use crate::model::ids::{Commit, RefName, RepoName, RepoQuery, RepoType};
use crate::progress::{Event, Progress};
use crate::task::blocking;

/// Longest time to wait for a lookup. Clients wait for ten seconds.
const PATIENCE: Duration = Duration::from_secs(8);
/// Time after which a failed lookup is repeated.
const RETRY: Duration = Duration::from_secs(2);
/// Number of lookups that are remembered.
const MAX_REMEMBERED: usize = 512;

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

/// A revision that is served.
#[derive(Debug)]
pub struct Revision {
    /// The manifest, and the ref by which it was found.
    pub found: Found,
    /// Where it was found.
    pub place: Place,
    /// All files of the commit, as far as they are known.
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

    /// Returns the commit as expanded listings tell it.
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

/// The revisions that clients ask for.
pub struct Revisions {
    session: Session,
    bucket: Option<Bucket>,
    fallback: Fallback,
    activity: Arc<Activity>,
    /// How long a lookup is fresh.
    refresh: Duration,
    known: Slots<Key, Arc<Revision>>,
    refs: Slots<String, Refs>,
    /// The ref by which a commit was last found: clients resolve it first and request files by commit.
    names: Mutex<HashMap<(RepoName, Commit), RefName>>,
    /// Whether the bucket could not be reached the last time.
    is_lost: AtomicBool,
}

/// What is known, by what was requested. A slot is locked during its lookup, so that there is only one.
type Slots<K, T> = Mutex<HashMap<K, Slot<T>>>;
type Slot<T> = Arc<AsyncMutex<Option<Known<T>>>>;

/// The result of a lookup.
struct Known<T> {
    result: Result<T>,
    until: Instant,
}

impl Revisions {
    /// Looks revisions up in this bucket; without one, only in the cache.
    pub fn new(
        session: &Session,
        bucket: Option<Bucket>,
        fallback: Fallback,
        activity: Arc<Activity>,
        refresh: Duration,
    ) -> Revisions {
        Revisions {
            session: session.clone(),
            bucket,
            fallback,
            activity,
            refresh,
            known: Mutex::default(),
            refs: Mutex::default(),
            names: Mutex::default(),
            is_lost: AtomicBool::new(false),
        }
    }

    /// Returns a revision.
    ///
    /// # Errors
    /// [`Cause::NotFound`] if nobody has the repo, [`Cause::NoSuchRevision`] if it lacks the revision, and all causes of
    /// failed requests.
    pub async fn find(&self, query: &RepoQuery, revision: &str) -> Result<Arc<Revision>> {
        let requested = slot(&self.known, (query.to_string(), revision.to_string()));
        let mut known = requested.lock().await;
        if let Some(known) = known.as_ref().filter(|known| known.until > Instant::now()) {
            return known.result.clone();
        }
        let before = known.take().and_then(|known| known.result.ok());
        let (result, lifetime) = match self.look_up(query, revision, before.is_some()).await {
            Ok(found) => (Ok(self.keep_if_unchanged(before, found)), self.refresh),
            Err(error) => match before.filter(|_| error.cause.may_pass()) {
                Some(before) => {
                    let note = format!("{query}@{revision} is served as it was: {error}");
                    self.activity.event(Event::Note(note));
                    (Ok(before), self.refresh.clamp(RETRY, PATIENCE))
                }
                None => (Err(error), RETRY.min(self.refresh)),
            },
        };
        let until = Instant::now() + lifetime;
        *known = Some(Known { result: result.clone(), until });
        if let Ok(revision) = &result
            && let Some(name) = &revision.found.reference
        {
            // Clients go on with the commit.
            let by_commit = slot(&self.known, (query.to_string(), revision.commit().to_string()));
            if let Ok(mut known) = by_commit.try_lock() {
                *known = Some(Known { result: Ok(revision.clone()), until });
            }
            let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
            if names.len() > MAX_REMEMBERED {
                names.clear();
            }
            names.insert((revision.repo().clone(), revision.commit().clone()), name.clone());
        }
        result
    }

    /// Returns the ref by which clients have found this revision.
    pub fn reference(&self, revision: &Revision) -> Option<RefName> {
        let key = (revision.repo().clone(), revision.commit().clone());
        let names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        revision.found.reference.clone().or_else(|| names.get(&key).cloned())
    }

    /// Keeps what is known about a revision if the lookup has found the same again.
    fn keep_if_unchanged(&self, before: Option<Arc<Revision>>, found: Arc<Revision>) -> Arc<Revision> {
        match before {
            Some(before) if before.place == found.place && before.found.manifest == found.found.manifest => before,
            _ => found,
        }
    }

    async fn look_up(&self, query: &RepoQuery, revision: &str, is_known: bool) -> Result<Arc<Revision>> {
        let failure = match &self.bucket {
            Some(bucket) => {
                let found = tokio::time::timeout(PATIENCE, lookup::find(bucket, query, Some(revision))).await;
                let found = found.unwrap_or_else(|_| Err(unanswered("the bucket")));
                self.note_reach(found.as_ref().err());
                match found {
                    Ok(found) => return Ok(Revision::new(found, Place::Bucket)),
                    Err(failure) => failure,
                }
            }
            None => Error::not_found(format!("{query} is not in the cache")),
        };
        let failure = match self.fallback.covers(&failure) {
            true => {
                let found = self.fallback.find(query, Some(revision), failure);
                match tokio::time::timeout(PATIENCE, found).await.unwrap_or_else(|_| Err(unanswered("the Hub"))) {
                    Ok(found) => return Ok(Revision::new(found, Place::Hub)),
                    Err(failure) if failure.cause == Cause::Denied => Error { cause: Cause::Gated, ..failure },
                    Err(failure) => failure,
                }
            }
            false => failure,
        };
        // What was served before is at least as good as what the cache knows.
        if is_known && failure.cause.may_pass() {
            return Err(failure);
        }
        match self.find_in_cache(query, revision).await {
            Some(found) => Ok(Revision::new(found, Place::Cache)),
            None => Err(failure),
        }
    }

    /// Tells when the bucket is out of reach, and when it is back.
    fn note_reach(&self, failure: Option<&Error>) {
        let failure = failure.filter(|failure| failure.cause.may_pass());
        match (failure, self.is_lost.swap(failure.is_some(), Ordering::Relaxed)) {
            (Some(failure), false) => {
                let note = format!("the bucket cannot be reached, so the cache is served: {failure}");
                self.activity.event(Event::Note(note));
            }
            (None, true) => self.activity.event(Event::Note("the bucket can be reached again".into())),
            _ => {}
        }
    }

    /// Whether the Hub may help.
    pub fn has_fallback(&self) -> bool {
        self.fallback.is_some()
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
            let found = tokio::time::timeout(PATIENCE, hub.find(&query, Some(revision.commit().as_str()))).await;
            match found.unwrap_or_else(|_| Err(unanswered("the Hub"))) {
                Ok(found) => Ok(Revision::new(found, Place::Hub)),
                Err(error) => {
                    self.activity.fail(format!("{repo}@{}", revision.commit().short()), &error);
                    Err(())
                }
            }
        };
        // A failure may pass.
        revision.on_hub.get_or_try_init(look_up).await.ok().cloned()
    }

    /// Finds a revision in this machine's cache.
    async fn find_in_cache(&self, query: &RepoQuery, revision: &str) -> Option<Found> {
        let repo = RepoName::new(query.kind.unwrap_or(RepoType::Model), query.id.clone());
        let (layout, revision, allow_gated) =
            (self.session.layout(), revision.to_string(), self.session.config.team.allow_gated);
        blocking(move || {
            let repo = scan_repo(&layout, &repo);
            let reference = revision.parse::<RefName>().ok().filter(|name| repo.refs.contains_key(name));
            let commit = match &reference {
                Some(name) => repo.refs.get(name).cloned(),
                None => {
                    let mut commits = repo.revisions.keys().filter(|commit| commit.as_str().starts_with(&revision));
                    commits.next().filter(|_| revision.len() >= 4 && commits.next().is_none()).cloned()
                }
            }?;
            let name = repo.name.clone();
            let inventory = Inventory { layout, repos: vec![repo], problems: Vec::new(), shared_store: false };
            let options = pushable::Options { allow_gated, sync_xet: true, ..Default::default() };
            let local = pushable::gather(&LocalState::new(inventory), &options).ok()?;
            let local = local.repos.into_iter().find(|repo| repo.name == name)?;
            let found = local.revisions.into_iter().find(|revision| revision.commit == commit)?;
            let manifest = Arc::unwrap_or_clone(found.manifest?);
            Some(Found { manifest, reference, pinned: false, modified: None, notes: Vec::new() })
        })
        .await
    }

    /// Returns the branches, tags and other refs of a repo.
    ///
    /// # Errors
    /// As [`find`](Self::find).
    pub async fn refs(&self, query: &RepoQuery) -> Result<Refs> {
        let slot = slot(&self.refs, query.to_string());
        let mut known = slot.lock().await;
        if let Some(known) = known.as_ref().filter(|known| known.until > Instant::now()) {
            return known.result.clone();
        }
        let listed = tokio::time::timeout(PATIENCE, self.list_refs(query)).await;
        let result = listed.unwrap_or_else(|_| Err(unanswered("the bucket")));
        let lifetime = if result.is_ok() { self.refresh } else { RETRY.min(self.refresh) };
        *known = Some(Known { result: result.clone(), until: Instant::now() + lifetime });
        result
    }

    async fn list_refs(&self, query: &RepoQuery) -> Result<Refs> {
        let repo = RepoName::new(query.kind.unwrap_or(RepoType::Model), query.id.clone());
        let mut refs = BTreeMap::new();
        let listed = match &self.bucket {
            Some(bucket) => {
                RemoteState::list_repo(bucket, query).await.map_err(|failure| bucket.explain_listing(failure))
            }
            None => Ok(RemoteState::default()),
        };
        let failure = match (listed, &self.bucket) {
            (Ok(state), Some(bucket)) => {
                let names: Vec<RefName> =
                    state.refs().iter().filter(|one| one.may_refer_to(&repo)).map(|one| one.name.clone()).collect();
                for name in names.into_iter().filter(|name| name.as_str().parse::<Commit>().is_err()) {
                    // Which of its keys counts, and whether it leads to this very repo, is decided in one place.
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
            // The Hub's refs are not listed: its main is enough to go on with.
            let main = self.find(query, "main").await.map_err(|error| failure.unwrap_or(error))?;
            refs.insert("main".into(), main.commit().clone());
        }
        Ok(Arc::new(refs))
    }
}

fn unanswered(by: &str) -> Error {
    Error::new(Cause::Broken, format!("{by} does not answer in time"))
}

/// Returns the slot of a key, and forgets all others if there are too many.
fn slot<K: Hash + Eq, T>(all: &Slots<K, T>, key: K) -> Slot<T> {
    let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
    if all.len() >= MAX_REMEMBERED && !all.contains_key(&key) {
        all.clear();
    }
    all.entry(key).or_default().clone()
}
