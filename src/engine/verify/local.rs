//! Checks the cache by hashing, and repairs it.
//!
//! A repair is a pull of exactly what is damaged: the same sources, locks and renames. Good copies elsewhere in this cache
//! are used first, and only the rest needs a bucket. Bad bytes get a second name in the quarantine before anything is
//! renamed over them, so that no reader ever finds a file missing and nothing is lost.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use futures_util::{StreamExt, stream};

use crate::bucket::client::Bucket;
use crate::bucket::keys;
use crate::bucket::lookup;
use crate::bucket::read::{self as remote, Stored};
use crate::cache::donors::{self, Donor};
use crate::cache::integrity::{Check, Facts, lacks_snapshot};
use crate::cache::inventory::{BlobPlace, SnapshotFile};
use crate::cache::layout::Layout;
use crate::cache::quarantine::{self, Kept};
use crate::cache::shared::{self, SweepOutcome};
use crate::cache::snapshot::{LinkKind, SnapshotWriter};
use crate::cache::state::{LocalState, TreeFile};
use crate::cache::{layout, lock, place, read, repair, scan};
use crate::engine::Session;
use crate::engine::fallback::Fallback;
use crate::engine::hydrate::{self, Planned};
use crate::engine::pull::check_space;
use crate::engine::rehash;
use crate::engine::session::wait_for;
use crate::error::{Error, Kind, Result};
use crate::model::amount::Amount;
use crate::model::ids::{BlobId, Commit, RefName, RepoName, RepoPath, RepoQuery};
use crate::model::manifest::{Manifest, ManifestFile};
use crate::plan::pull::{FetchAction, FetchReason, LinkAction, Plan};
use crate::plan::verify::{AffectedFile, Finding, Outcome, Place, Reason, Repair};
use crate::progress::Event;
use crate::task::blocking;
use crate::transfer::limit::Caps;

/// Maximum number of concurrent requests for the sizes of blobs.
const CONCURRENCY: usize = 32;

/// Hashes everything that the facts are about, and records the results.
pub async fn hash(session: &Session, facts: Facts) -> Facts {
    session.progress.event(Event::Step("checking the files"));
    let (mut facts, jobs) = blocking(move || {
        let jobs = facts.jobs();
        (facts, jobs)
    })
    .await;
    let hashed = rehash::hash_all(&session.config.cache.root, jobs, &session.progress).await;
    blocking(move || {
        hashed.into_iter().for_each(|(job, hashed)| facts.record(&job, hashed));
        facts
    })
    .await
}

/// Looks up in the bucket what real files should be if no tree here lists them. Returns notes. Files that the bucket does
/// not list either stay unverified.
pub async fn look_up_real_files(session: &Session, facts: &mut Facts) -> Vec<String> {
    let mut unlisted = Vec::new();
    for repo in &facts.repos {
        let revisions = repo.revisions.iter().filter(|(_, revision)| revision.has_unlisted_files());
        unlisted.extend(revisions.map(|(commit, _)| (repo.name.clone(), commit.clone())));
    }
    if unlisted.is_empty() || session.config.storage.bucket.is_none() {
        return Vec::new();
    }
    session.progress.event(Event::Step("reading manifests"));
    let note = |error: &Error| vec![format!("some files were not compared with the bucket's manifests: {error}")];
    let bucket = match session.bucket().await {
        Ok(bucket) => bucket,
        Err(error) => return note(&error),
    };
    let bucket = &bucket;
    let reads = unlisted.into_iter().map(|(repo, commit)| async move {
        let read = remote::manifest(bucket, &keys::manifest(&repo.id, &commit)).await;
        (repo, commit, read)
    });
    let mut reads = std::pin::pin!(stream::iter(reads).buffered(CONCURRENCY));
    while let Some((repo, commit, read)) = reads.next().await {
        let manifest = match read {
            Ok(stored) => stored.valid().filter(|manifest| *manifest.repo() == repo),
            // The others would fail for the same reason.
            Err(error) => return note(&error),
        };
        let known = facts.repos.iter_mut().find(|facts| facts.name == repo);
        let revision = known.and_then(|facts| facts.revisions.get_mut(&commit));
        if let Some((manifest, revision)) = manifest.zip(revision) {
            revision.expect(&manifest);
        }
    }
    Vec::new()
}

/// How to repair.
#[derive(Clone)]
pub struct Options {
    /// Limits for the transfers.
    pub caps: Caps,
    /// Whether a blob is flushed to the disk before it becomes visible.
    pub sync: bool,
    /// A source other than the bucket.
    pub fallback: Fallback,
    /// Whether to only report what could be repaired.
    pub dry_run: bool,
}

/// The outcome of a repair.
#[derive(Debug, Default)]
pub struct Tally {
    /// Blobs downloaded.
    pub downloaded: Amount,
    /// The part of them that came from the Hub.
    pub from_hub: Amount,
    /// Blobs taken from elsewhere in this cache.
    pub shared: Amount,
    /// Files moved to the quarantine.
    pub quarantined: Amount,
    /// Notes for the user.
    pub notes: Vec<String>,
    /// Failures.
    pub failures: Vec<Error>,
}

/// Repairs what can be repaired. Records the outcome in each finding.
///
/// # Errors
/// If the cache cannot be written to at all, or a repair needs a bucket and none is configured.
pub async fn repair(session: &Session, facts: &Facts, findings: &mut [Finding], options: Options) -> Result<Tally> {
    let layout = session.layout();
    let mut tally = Tally::default();
    session.progress.event(Event::Step("looking for good copies"));
    let copies = find_copies(&layout, facts, findings.iter().filter_map(|finding| blob_to_find(facts, finding))).await;
    let bucket = match findings.iter().any(|finding| needs_bucket(facts, finding, &copies)) {
        false => None,
        true => match session.bucket().await {
            Ok(bucket) => Some(bucket),
            Err(error) if error.cause.kind() == Kind::Usage => return Err(error),
            Err(error) => {
                tally.failures.push(error);
                None
            }
        },
    };
    let _locks = match options.dry_run {
        true => None,
        false => {
            // Taken before the tool lock, so that a `prune` that waits for that one does not wait for two repairs in a row.
            let note = "another hf-cache-sync is repairing this cache: waiting for it";
            let alone = wait_for(&*session.progress, note, || lock::try_repair_lock(&layout)).await?;
            Some((alone, session.lock_shared().await?))
        }
    };
    let mut run = Run {
        session,
        facts,
        layout,
        options,
        bucket,
        copies,
        sizes: HashMap::new(),
        manifests: HashMap::new(),
        tally,
    };
    run.look_in_bucket(findings).await;
    let mut pending_repairs = Vec::new();
    for (index, finding) in findings.iter_mut().enumerate() {
        finding.outcome = Outcome::Left;
        if !run.options.dry_run && is_gone(&run.layout, finding) {
            finding.outcome = Outcome::Repaired;
            finding.detail += "; another program has repaired or removed it in the meantime";
            continue;
        }
        match run.prepare(finding).await {
            Ok(Some(pending)) => pending_repairs.push((index, pending)),
            Ok(None) => {}
            Err(error) => run.tally.failures.push(error),
        }
    }
    run.find_remaining_copies(findings, &mut pending_repairs).await;
    for (index, _) in pending_repairs.iter().filter(|(_, pending)| !pending.has_source()) {
        findings[*index].detail += "; no good copy was found";
    }
    if pending_repairs.iter().any(|(_, pending)| !pending.has_source()) {
        let from_hub = "use `--fallback hf-hub` to get them from the Hub, or ";
        let from_hub = if run.options.fallback.is_some() { "" } else { from_hub };
        run.tally.notes.push(format!(
            "no good copy of some blobs was found: {from_hub}run `hf-cache-sync push` on a machine that has them, then \
             repair again"
        ));
    }
    if run.options.dry_run {
        for (index, pending) in &pending_repairs {
            if pending.has_source() {
                findings[*index].outcome = Outcome::Repairable;
            }
        }
        return Ok(run.tally);
    }
    run.fetch(findings, pending_repairs).await;
    Ok(run.tally)
}

/// Returns whether the repair needs the bucket or its fallback.
fn needs_bucket(facts: &Facts, finding: &Finding, copies: &Copies) -> bool {
    match finding.repair {
        Repair::Ref => finding.reason == Reason::BadRef,
        Repair::Fetch { .. } => blob_to_find(facts, finding).is_some_and(|(_, blob, _)| !copies.contains_key(&blob)),
        Repair::LookUp | Repair::Tree => true,
        _ => false,
    }
}

/// Good copies of blobs in this cache, each with its size in bytes.
type Copies = HashMap<BlobId, (Donor, u64)>;

/// Returns the blob that has to be copied from elsewhere in this cache or fetched from a source, with its size if known.
fn blob_to_find(facts: &Facts, finding: &Finding) -> Option<(RepoName, BlobId, Option<u64>)> {
    let Repair::Fetch { size, .. } = finding.repair else { return None };
    let (repo, blob) = (finding.repo.as_ref()?, finding.blob?);
    let known = facts.repos.iter().find(|facts| facts.name == *repo).and_then(|facts| facts.blobs.get(&blob));
    let is_here = known.is_some_and(|known| matches!(known.check, Check::Good));
    (!is_here).then(|| (repo.clone(), blob, size))
}

/// Finds copies of blobs elsewhere in this cache: those that this run has already proven good, and others that are hashed
/// now.
async fn find_copies(
    layout: &Layout,
    facts: &Facts,
    needed: impl Iterator<Item = (RepoName, BlobId, Option<u64>)>,
) -> Copies {
    let mut copies = Copies::new();
    let mut missing = Vec::new();
    for (repo, blob, size) in needed {
        let good = facts.repos.iter().find_map(|repo| {
            let known = repo.blobs.get(&blob).filter(|known| matches!(known.check, Check::Good))?;
            Some((Donor { repo: repo.name.clone(), file: known.path.clone() }, known.size))
        });
        match good {
            Some(good) => drop(copies.insert(blob, good)),
            None => missing.push((repo, blob, size)),
        }
    }
    if missing.is_empty() {
        return copies;
    }
    let blobs = facts.repos.iter().flat_map(|repo| repo.blobs.values());
    let bad: HashSet<PathBuf> = blobs.filter(|blob| blob.check.is_wrong()).map(|blob| blob.path.clone()).collect();
    let names = xet_hashes(facts, missing.iter().map(|(_, blob, _)| *blob));
    let layout = layout.clone();
    let found = blocking(move || {
        let mut found = donors::find_proven(&LocalState::unscanned(layout.clone()), &missing, &bad);
        for (repo, blob, size) in missing {
            let in_store = |hash| donors::find_in_store(&layout, &repo, size?, hash);
            if !found.contains_key(&blob)
                && let Some(donor) = names.get(&blob).and_then(in_store)
                && is_good(&donor.file, &blob)
            {
                found.insert(blob, (donor, size.unwrap_or_default()));
            }
        }
        found
    });
    copies.extend(found.await);
    copies
}

/// Returns the names of these blobs in the cache-wide store, as far as trees list them.
fn xet_hashes(facts: &Facts, blobs: impl Iterator<Item = BlobId>) -> HashMap<BlobId, BlobId> {
    let blobs: HashSet<BlobId> = blobs.collect();
    let trees = facts.repos.iter().flat_map(|repo| repo.revisions.values()).filter_map(|revision| revision.tree());
    let entries =
        trees.flat_map(|tree| tree.entries().map(|(_, entry)| entry)).filter(|entry| blobs.contains(&entry.blob));
    entries.filter_map(|entry| Some((entry.blob, entry.xet_hash?))).collect()
}

fn is_good(path: &Path, blob: &BlobId) -> bool {
    fs::metadata(path).is_ok_and(|meta| read::matches_name(path, blob, meta.len()))
}

/// Returns whether nothing is left to repair because the client or another process was faster.
fn is_gone(layout: &Layout, finding: &Finding) -> bool {
    let Some(repo) = &finding.repo else { return false };
    let is_file_there =
        |file: &AffectedFile| fs::symlink_metadata(layout.snapshot_file(repo, &file.revision, &file.path)).is_ok();
    if !finding.files.is_empty() && !finding.files.iter().any(is_file_there) {
        return true;
    }
    let (Place::Path(path), Some(blob)) = (&finding.place, finding.blob) else { return false };
    match finding.reason {
        Reason::Corrupt => is_good(path, &blob) || (finding.files.is_empty() && fs::metadata(path).is_err()),
        Reason::Missing => fs::metadata(layout.blob(repo, &blob)).is_ok() && *path == layout.blob(repo, &blob),
        _ => false,
    }
}

/// The outcome of setting a blob aside.
#[derive(Debug, PartialEq, Eq)]
enum SetAside {
    /// It is in the quarantine, with this many bytes.
    Moved(u64),
    /// It no longer exists.
    Gone,
    /// It was downloaded again, and is good.
    Good,
    /// It is being downloaded, or a snapshot uses it now.
    InUse,
}

/// Moves a bad blob into the quarantine under its lock, unless it has become good or is in use.
fn set_aside_unused(layout: &Layout, repo: &RepoName, blob: &BlobId, path: &Path) -> Result<SetAside> {
    let Some(_lock) = lock::try_client_lock(layout, repo, blob)? else { return Ok(SetAside::InUse) };
    // The previous lock holder may have downloaded it.
    if is_good(path, blob) {
        return Ok(SetAside::Good);
    }
    let now = scan::scan_repo(layout, repo);
    let mut files = now.revisions.values().flat_map(|revision| revision.files.values());
    if files.any(|file| matches!(file, SnapshotFile::Link(id) if id == blob)) {
        return Ok(SetAside::InUse);
    }
    let size = fs::metadata(path).map_or(0, |meta| meta.len());
    Ok(match quarantine::set_aside(layout, path)? {
        Some(_) => SetAside::Moved(size),
        None => SetAside::Gone,
    })
}

/// A revision of a repo.
type RevisionKey = (RepoName, Commit);

/// A blob to fetch, or files to link.
struct PendingRepair {
    repo: RepoName,
    revision: Commit,
    file: ManifestFile,
    /// Why the blob is fetched; `None` if it is here.
    reason: Option<FetchReason>,
    link: Vec<AffectedFile>,
    /// A copy elsewhere in this cache.
    donor: Option<Donor>,
    /// Whether the bucket, or the fallback, is expected to have it.
    is_available: bool,
    /// Files whose bytes are quarantined before they are replaced.
    keep: Vec<PathBuf>,
}

impl PendingRepair {
    fn has_source(&self) -> bool {
        self.reason.is_none() || self.donor.is_some() || self.is_available
    }
}

struct Run<'a> {
    session: &'a Session,
    facts: &'a Facts,
    layout: Layout,
    options: Options,
    bucket: Option<Bucket>,
    /// Good copies of damaged blobs.
    copies: Copies,
    /// The sizes of blobs in the bucket; `None` if it does not have one.
    sizes: HashMap<BlobId, Result<Option<u64>>>,
    /// Manifests that were read, from the bucket or else the Hub.
    manifests: HashMap<RevisionKey, Option<Manifest>>,
    tally: Tally,
}

impl Run<'_> {
    /// Looks in the bucket for everything that has no copy in this cache, with concurrent requests.
    async fn look_in_bucket(&mut self, findings: &[Finding]) {
        let Some(bucket) = self.bucket.clone() else { return };
        let mut blobs = BTreeMap::new();
        for finding in findings {
            if let Some((repo, blob, _)) = blob_to_find(self.facts, finding)
                && !self.copies.contains_key(&blob)
                && let Some(file) = finding.files.first()
            {
                blobs.entry(blob).or_insert_with(|| format!("{repo}/{}", file.path));
            }
        }
        let bucket = &bucket;
        let requests =
            blobs.into_iter().map(|(blob, label)| async move { (blob, size_in(bucket, &blob, &label).await) });
        self.sizes = stream::iter(requests).buffer_unordered(CONCURRENCY).collect().await;
    }

    /// Repairs what needs no download. Returns what does.
    async fn prepare(&mut self, finding: &mut Finding) -> Result<Option<PendingRepair>> {
        let (Some(repo), Place::Path(path)) = (finding.repo.clone(), finding.place.clone()) else { return Ok(None) };
        match finding.repair.clone() {
            Repair::None | Repair::Upload { .. } | Repair::Push { .. } => Ok(None),
            Repair::Fetch { link, size } => self.plan_repair(finding, &repo, link, size).await,
            Repair::LookUp => {
                let Some(file) = finding.files.first().cloned() else { return Ok(None) };
                let manifest = self.manifest(&repo, &file.revision).await?;
                let listed = manifest.and_then(|manifest| {
                    let listed = manifest.files().iter().find(|listed| listed.path == file.path);
                    listed.map(|listed| (listed.blob, listed.size))
                });
                let Some((blob, size)) = listed else { return Ok(None) };
                finding.blob = Some(blob);
                self.plan_repair(finding, &repo, vec![file], Some(size)).await
            }
            Repair::Link => {
                let (Some(blob), Some(file)) = (finding.blob, finding.files.first().cloned()) else { return Ok(None) };
                let size = fs::metadata(self.layout.blob(&repo, &blob)).map_or(0, |meta| meta.len());
                let (revision, link) = (file.revision.clone(), vec![file.clone()]);
                let file = ManifestFile { path: file.path, blob, size };
                let (reason, donor, is_available, keep) = (None, None, true, Vec::new());
                Ok(Some(PendingRepair { repo, revision, file, reason, link, donor, is_available, keep }))
            }
            Repair::SetAside => self.act(finding, |run| run.set_aside_blob(&repo, &path)).map(|()| None),
            Repair::TidyRef => {
                let name = ref_name(&self.layout, &repo, &path);
                self.act(finding, |run| match name {
                    Some(name) => repair::repair_ref(&run.layout, &repo, &name),
                    None => Ok(false),
                })
                .map(|()| None)
            }
            Repair::Ref => self.repair_ref(finding, &repo, &path).await.map(|()| None),
            Repair::Tree => self.repair_tree(finding, &repo, &path).await.map(|()| None),
        }
    }

    /// Runs a repair, unless this is a dry run. `repair` returns whether it succeeded.
    fn act(&mut self, finding: &mut Finding, repair: impl FnOnce(&mut Self) -> Result<bool>) -> Result<()> {
        if self.options.dry_run {
            finding.outcome = Outcome::Repairable;
        } else if repair(self)? {
            finding.outcome = Outcome::Repaired;
        }
        Ok(())
    }

    async fn plan_repair(
        &mut self,
        finding: &mut Finding,
        repo: &RepoName,
        link: Vec<AffectedFile>,
        size: Option<u64>,
    ) -> Result<Option<PendingRepair>> {
        let (Some(blob), Some(first)) = (finding.blob, finding.files.first().cloned()) else { return Ok(None) };
        let own = self.layout.blob(repo, &blob);
        // Another repair, or the check, has proven that the blob is here: only the link is wrong.
        let known = self.facts.repos.iter().find(|facts| facts.name == *repo).and_then(|facts| facts.blobs.get(&blob));
        let is_here = known.is_some_and(|known| matches!(known.check, Check::Good));
        let mut keep = Vec::new();
        if finding.reason == Reason::Corrupt
            && let Place::Path(path) = &finding.place
        {
            keep.push(path.clone());
        }
        if is_here {
            let size = known.map_or(0, |known| known.size);
            let file = ManifestFile { path: first.path, blob, size };
            let (repo, revision) = (repo.clone(), first.revision);
            let (reason, donor, is_available) = (None, None, true);
            return Ok(Some(PendingRepair { repo, revision, file, reason, link, donor, is_available, keep }));
        }
        let reason = if fs::symlink_metadata(&own).is_ok() { FetchReason::Corrupt } else { FetchReason::Missing };
        if let Some((donor, size)) = self.copies.get(&blob).cloned() {
            let file = ManifestFile { path: first.path, blob, size };
            let (repo, revision) = (repo.clone(), first.revision);
            let (reason, donor, is_available) = (Some(reason), Some(donor), false);
            return Ok(Some(PendingRepair { repo, revision, file, reason, link, donor, is_available, keep }));
        }
        let there = match (self.sizes.get(&blob), &self.bucket) {
            (Some(known), _) => known.clone(),
            (None, Some(bucket)) => size_in(bucket, &blob, &format!("{repo}/{}", first.path)).await,
            (None, None) => Ok(None),
        };
        let (there, failure) = match there {
            Ok(there) => (there, None),
            Err(error) => (None, Some(error)),
        };
        let mut size = size;
        if size.is_none() && there.is_none() {
            let listed = self.manifest(repo, &first.revision).await.ok().flatten();
            size = listed.and_then(|manifest| manifest.blobs().get(&blob).copied());
        }
        let in_bucket = there.is_some_and(|there| size.is_none_or(|size| size == there));
        let size = size.or(there);
        let covered = failure.as_ref().is_none_or(|error| self.options.fallback.covers(error));
        let is_available = in_bucket || (self.options.fallback.is_some() && covered && size.is_some());
        if !is_available {
            self.tally.failures.extend(failure);
        }
        // Without a size, only a copy in this cache can help, since its size is known.
        let file = ManifestFile { path: first.path, blob, size: size.unwrap_or(0) };
        let (repo, revision) = (repo.clone(), first.revision);
        Ok(Some(PendingRepair { repo, revision, file, reason: Some(reason), link, donor: None, is_available, keep }))
    }

    /// Reads the manifest of a revision, from the bucket or else the Hub; `None` if neither has it.
    async fn manifest(&mut self, repo: &RepoName, commit: &Commit) -> Result<Option<Manifest>> {
        let key = (repo.clone(), commit.clone());
        if let Some(known) = self.manifests.get(&key) {
            return Ok(known.clone());
        }
        let Some(bucket) = &self.bucket else { return Ok(None) };
        let stored = remote::manifest(bucket, &keys::manifest(&repo.id, commit)).await.and_then(Stored::checked);
        let failure = match stored {
            Ok(Some(manifest)) if manifest.repo() == repo => {
                self.manifests.insert(key, Some(manifest.clone()));
                return Ok(Some(manifest));
            }
            Ok(_) => Error::not_found(format!("{repo}@{} is not in bucket '{}'", commit.short(), bucket.name())),
            Err(error) => error,
        };
        let is_missing = failure.cause.is_missing() || failure.cause.is_invalid();
        let query = RepoQuery { kind: Some(repo.kind), id: repo.id.clone() };
        let found = match self.options.fallback.find(&query, Some(commit.as_str()), failure).await {
            Ok(found) => Some(found.manifest),
            Err(_) if is_missing => None,
            Err(error) => return Err(error),
        };
        self.manifests.insert(key, found.clone());
        Ok(found)
    }

    /// Moves a bad blob that no snapshot uses into the quarantine.
    fn set_aside_blob(&mut self, repo: &RepoName, path: &Path) -> Result<bool> {
        let Some(blob) = path.file_name().and_then(|name| name.to_str()?.parse::<BlobId>().ok()) else {
            return Ok(false);
        };
        match set_aside_unused(&self.layout, repo, &blob, path)? {
            SetAside::Moved(size) => self.tally.quarantined.add(size),
            SetAside::Gone => {}
            SetAside::Good => return Ok(true),
            SetAside::InUse => return Ok(false),
        }
        self.set_aside_payload(repo, &blob);
        Ok(true)
    }

    /// Moves a bad payload of the cache-wide store into the quarantine once no blob links to it. Otherwise, the client would
    /// link it into the next repo, since it checks only the size.
    fn set_aside_payload(&mut self, repo: &RepoName, blob: &BlobId) {
        let facts = self.facts.repos.iter().find(|facts| facts.name == *repo);
        let place = facts.and_then(|facts| facts.blobs.get(blob)).map(|blob| blob.place.clone());
        let Some(BlobPlace::Shared(payload)) = place else { return };
        let size = fs::metadata(&payload).map_or(0, |meta| meta.len());
        match shared::quarantine(&self.layout, &payload, &links_to(&self.layout, &payload)) {
            Ok(SweepOutcome::Freed(_)) => self.tally.quarantined.add(size),
            Ok(SweepOutcome::Referenced(links)) => self.tally.notes.push(format!(
                "{} is still linked from {links} other places in this cache: `verify --repair` without REPO_ID repairs \
                 them all",
                crate::error::shown(&payload)
            )),
            Ok(SweepOutcome::Unknown | SweepOutcome::Locked) => self.tally.notes.push(format!(
                "{} has wrong bytes and is kept, because it is unknown what else needs it",
                crate::error::shown(&payload)
            )),
            Err(error) => self.tally.failures.push(error),
        }
    }

    /// Writes the commit that the bucket has for a ref. If it has none, a dangling ref is removed from the cache, since
    /// huggingface_hub cannot list a repo with such a ref.
    async fn repair_ref(&mut self, finding: &mut Finding, repo: &RepoName, path: &Path) -> Result<()> {
        let Some(name) = ref_name(&self.layout, repo, path) else { return Ok(()) };
        let mut commit = None;
        if finding.reason == Reason::BadRef {
            // Without the bucket, its commit is unknown.
            let Some(bucket) = &self.bucket else { return Ok(()) };
            let query = RepoQuery { kind: Some(repo.kind), id: repo.id.clone() };
            // Only an answer from the bucket shows that it does not have the ref.
            let found = match lookup::find(bucket, &query, Some(name.as_str())).await {
                Ok(found) => Some(found.manifest.revision().clone()),
                Err(error) if error.cause.is_missing() || error.cause.is_invalid() => None,
                Err(error) => return Err(error),
            };
            commit = found.filter(|commit| self.layout.snapshot(repo, commit).is_dir());
        }
        let (repo, path) = (repo.clone(), path.to_path_buf());
        self.act(finding, |run| {
            // It has been written again in the meantime.
            let now = scan::scan_refs(&run.layout, &repo);
            let pin = now.pins.iter().find(|commit| commit.as_str() == name.as_str());
            if let Some(commit) = now.refs.get(&name).or(pin)
                && !lacks_snapshot(&run.layout, &repo, commit)
            {
                return Ok(true);
            }
            match &commit {
                Some(commit) => {
                    let kept = quarantine::keep(&run.layout, &path)?;
                    place::write_ref(&run.layout, &repo, &name, commit, run.options.sync)?;
                    run.count(kept);
                }
                None => {
                    let size = fs::symlink_metadata(&path).map_or(0, |meta| meta.len());
                    if quarantine::set_aside(&run.layout, &path)?.is_some() {
                        run.tally.quarantined.add(size);
                    }
                }
            }
            Ok(true)
        })
    }

    async fn repair_tree(&mut self, finding: &mut Finding, repo: &RepoName, path: &Path) -> Result<()> {
        let commit = path.file_stem().and_then(|name| name.to_str()?.parse::<Commit>().ok());
        let Some(commit) = commit else { return Ok(()) };
        let manifest = self.manifest(repo, &commit).await?;
        let Some(tree) = manifest.and_then(|manifest| Some(manifest.tree()?.to_json())) else { return Ok(()) };
        let path = path.to_path_buf();
        let (repo, layout) = (repo.clone(), self.layout.clone());
        self.act(finding, |run| {
            // It has been written again in the meantime.
            if matches!(LocalState::unscanned(layout).tree(&repo, &commit), TreeFile::Valid(_)) {
                return Ok(true);
            }
            let kept = quarantine::keep(&run.layout, &path)?;
            match place::write_small(&run.layout, &path, &tree, run.options.sync) {
                Ok(()) => {
                    run.count(kept);
                    Ok(true)
                }
                Err(error) => {
                    kept.into_iter().for_each(Kept::forget);
                    Err(error)
                }
            }
        })
    }

    fn count(&mut self, kept: Option<Kept>) {
        if let Some(kept) = kept {
            self.tally.quarantined.add(fs::metadata(kept.path()).map_or(0, |meta| meta.len()));
        }
    }

    /// Finds copies in this cache of the blobs whose names came from the bucket.
    async fn find_remaining_copies(&self, findings: &[Finding], pending_repairs: &mut [(usize, PendingRepair)]) {
        let is_open = |(index, pending): &&mut (usize, PendingRepair)| {
            findings[*index].repair == Repair::LookUp && pending.reason.is_some() && pending.donor.is_none()
        };
        let mut open: Vec<&mut PendingRepair> =
            pending_repairs.iter_mut().filter(is_open).map(|(_, pending)| pending).collect();
        let blobs = open.iter().map(|pending| (pending.repo.clone(), pending.file.blob, Some(pending.file.size)));
        let copies = find_copies(&self.layout, self.facts, blobs.collect::<Vec<_>>().into_iter()).await;
        for pending in &mut open {
            if let Some((donor, size)) = copies.get(&pending.file.blob).cloned() {
                (pending.donor, pending.file.size) = (Some(donor), size);
            }
        }
    }

    /// Links and copies what is in this cache, and fetches everything else at once.
    async fn fetch(&mut self, findings: &mut [Finding], pending_repairs: Vec<(usize, PendingRepair)>) {
        let pending_repairs = pending_repairs.into_iter().filter(|(_, pending)| pending.has_source());
        let (here, pending_repairs): (Vec<_>, Vec<_>) =
            pending_repairs.partition(|(_, pending)| pending.reason.is_none() || pending.donor.is_some());
        for (index, pending) in here {
            if let Err(error) = self.put_in_place(&mut findings[index], pending).await {
                self.tally.failures.push(error);
            }
        }
        let Some(bucket) = self.bucket.clone().filter(|_| !pending_repairs.is_empty()) else { return };
        let mut kept: HashMap<usize, Vec<Kept>> = HashMap::new();
        let mut drafts: BTreeMap<RevisionKey, Draft> = BTreeMap::new();
        let mut places: Vec<(usize, BlobId, HashSet<RevisionKey>)> = Vec::new();
        for (index, pending) in pending_repairs {
            let keep: Result<Vec<Option<Kept>>> =
                pending.keep.iter().map(|path| quarantine::keep(&self.layout, path)).collect();
            match keep {
                Ok(keep) => drop(kept.insert(index, keep.into_iter().flatten().collect())),
                Err(error) => {
                    self.tally.failures.push(error);
                    continue;
                }
            }
            let blob = pending.file.blob;
            let used = add(&mut drafts, pending);
            places.push((index, blob, used));
        }
        let plans: Result<BTreeMap<RevisionKey, Plan>> =
            drafts.into_iter().map(|(key, draft)| Ok((key.clone(), draft.into_plan(&key)?))).collect();
        let outcomes = match &plans {
            Ok(plans) => self.hydrate(&bucket, plans).await,
            Err(error) => Err(error.clone()),
        };
        let outcomes = match outcomes {
            Ok(outcomes) => outcomes,
            Err(error) => {
                self.tally.failures.push(error);
                kept.into_values().flatten().for_each(Kept::forget);
                return;
            }
        };
        let plans = plans.unwrap_or_default();
        let by_place: HashMap<&RevisionKey, &hydrate::Outcome> = plans.keys().zip(&outcomes).collect();
        for (index, blob, used) in places {
            let outcomes: Vec<_> = used.iter().map(|place| by_place[place]).collect();
            let is_repaired = outcomes.iter().all(|outcome| {
                !outcome.has_lost(&blob) && (outcome.failures.is_empty() || outcome.lost() == outcome.failures.len())
            });
            let kept = kept.remove(&index).into_iter().flatten();
            if !is_repaired {
                kept.for_each(Kept::forget);
                continue;
            }
            findings[index].outcome = Outcome::Repaired;
            kept.for_each(|kept| self.count(Some(kept)));
            if findings[index].reason == Reason::Corrupt
                && let Some(repo) = findings[index].repo.clone()
            {
                self.set_aside_payload(&repo, &blob);
            }
        }
        for outcome in outcomes {
            self.tally.downloaded += outcome.downloaded;
            self.tally.from_hub += outcome.from_hub;
            self.tally.shared += outcome.shared;
            self.tally.notes.extend(outcome.notes);
            self.tally.failures.extend(outcome.failures);
        }
    }

    /// Links files to a blob that is here, copying it from elsewhere in this cache first if necessary.
    async fn put_in_place(&mut self, finding: &mut Finding, pending: PendingRepair) -> Result<()> {
        let (repo, blob, size, is_copied) =
            (pending.repo.clone(), pending.file.blob, pending.file.size, pending.donor.is_some());
        let _client = match is_copied {
            false => None,
            true => {
                let note = format!("another process is downloading {repo}/{}: waiting for it", pending.file.path);
                let lock = || lock::try_client_lock(&self.layout, &repo, &blob);
                Some(wait_for(&*self.session.progress, &note, lock).await?)
            }
        };
        let (layout, hub) = (self.layout.clone(), &self.session.config.hub);
        let no_symlinks = hub.no_symlinks;
        let is_store = !no_symlinks && !hub.no_shared_blobs && shared::is_store(&layout);
        let xet_hash = xet_hashes(self.facts, [blob].into_iter()).remove(&blob).filter(|_| is_store);
        let kept = blocking(move || {
            let kept: Vec<Option<Kept>> =
                pending.keep.iter().map(|path| quarantine::keep(&layout, path)).collect::<Result<_>>()?;
            let placed =
                copy_blob(&layout, &pending, xet_hash).and_then(|()| link_files(&layout, &pending, no_symlinks));
            match placed {
                Ok(()) => Ok(kept),
                Err(error) => {
                    kept.into_iter().flatten().for_each(Kept::forget);
                    Err(error)
                }
            }
        });
        kept.await?.into_iter().for_each(|kept| self.count(kept));
        finding.outcome = Outcome::Repaired;
        if is_copied {
            self.tally.shared.add(size);
            if finding.reason == Reason::Corrupt {
                self.set_aside_payload(&repo, &blob);
            }
        }
        Ok(())
    }

    async fn hydrate(&self, bucket: &Bucket, plans: &BTreeMap<RevisionKey, Plan>) -> Result<Vec<hydrate::Outcome>> {
        let room = check_space(&self.layout, &plans.values().collect::<Vec<_>>())?;
        if let Some(note) = room {
            self.session.progress.event(Event::Note(note));
        }
        let kind = LinkKind::probe(&self.layout, self.session.config.hub.no_symlinks)?;
        let context = self.session.transfers(bucket, self.options.caps, self.options.sync);
        let planned = plans.values().map(|plan| Planned { plan: plan.clone(), from_hub: false }).collect();
        Ok(hydrate::hydrate(&context, &self.options.fallback, planned, kind, self.session.now).await)
    }
}

/// Copies the blob that was found into the repo, if there is one. The caller holds huggingface_hub's lock on the blob.
/// `xet_hash` is its name in the cache-wide store.
fn copy_blob(layout: &Layout, pending: &PendingRepair, xet_hash: Option<BlobId>) -> Result<()> {
    let Some(donor) = &pending.donor else { return Ok(()) };
    let (repo, blob, size) = (&pending.repo, &pending.file.blob, pending.file.size);
    // It is here, but was not checked.
    if donor.file == layout.blob(repo, blob) {
        return Ok(());
    }
    if let Some(xet_hash) = xet_hash
        && shared::link(layout, repo, blob, size, &xet_hash)?
    {
        return Ok(());
    }
    match hydrate::share(layout, &donor.file, repo, blob, Some(size))? {
        true => Ok(()),
        false => Err(Error::failed(format!("cannot copy {}", crate::error::shown(&donor.file)))
            .because("it has changed since it was checked")
            .hint("run the same repair again")),
    }
}

fn link_files(layout: &Layout, pending: &PendingRepair, no_symlinks: bool) -> Result<()> {
    let kind = LinkKind::probe(layout, no_symlinks)?;
    // If snapshots have real files, a blob that was added only for them moves into place.
    let is_added = pending.reason == Some(FetchReason::Missing) && pending.link.len() == 1;
    let own: HashSet<BlobId> = is_added.then_some(pending.file.blob).into_iter().collect();
    pending.link.iter().try_for_each(|file| {
        let writer = SnapshotWriter { layout, repo: &pending.repo, commit: &file.revision, kind, own: &own };
        writer.write(&[(&file.path, &pending.file.blob)])
    })
}

/// Returns the size of a blob in the bucket; `None` if it does not have it.
async fn size_in(bucket: &Bucket, blob: &BlobId, label: &str) -> Result<Option<u64>> {
    let found = bucket.head(&keys::blob(blob)).await;
    found.map_err(|failure| bucket.explain(failure, &format!("cannot look for blob {blob} ({label})")))
}

/// The repairs of one revision.
#[derive(Default)]
struct Draft {
    files: Vec<ManifestFile>,
    fetch: Vec<FetchAction>,
    link: Vec<LinkAction>,
}

impl Draft {
    fn add_file(&mut self, path: &RepoPath, file: &ManifestFile) {
        if !self.files.iter().any(|known| known.path == *path) {
            self.files.push(ManifestFile { path: path.clone(), ..file.clone() });
        }
    }

    fn into_plan(self, (repo, commit): &RevisionKey) -> Result<Plan> {
        let manifest = Manifest::new(repo.clone(), commit.clone(), self.files, None);
        let manifest =
            manifest.map_err(|why| Error::invalid(format!("cannot repair {repo}@{}", commit.short())).because(why))?;
        Ok(Plan {
            manifest,
            fetch: self.fetch,
            write_tree: false,
            link: self.link,
            write_ref: None,
            unstorable: Vec::new(),
            write_pin: false,
            present: Amount::default(),
            used: Vec::new(),
        })
    }
}

/// Adds a pending repair to the drafts of its revisions. Returns these revisions.
fn add(drafts: &mut BTreeMap<RevisionKey, Draft>, pending: PendingRepair) -> HashSet<RevisionKey> {
    let mut used = HashSet::new();
    let file = &pending.file;
    let key = |commit: &Commit| (pending.repo.clone(), commit.clone());
    if let Some(reason) = pending.reason {
        let draft = drafts.entry(key(&pending.revision)).or_default();
        draft.add_file(&file.path, file);
        if !draft.fetch.iter().any(|fetch| fetch.blob == file.blob) {
            let (blob, size, path) = (file.blob, file.size, file.path.clone());
            draft.fetch.push(FetchAction { blob, size, path, reason, donor: None, xet_hash: None });
        }
        used.insert(key(&pending.revision));
    }
    for link in &pending.link {
        let draft = drafts.entry(key(&link.revision)).or_default();
        draft.add_file(&link.path, file);
        draft.link.push(LinkAction { path: link.path.clone(), blob: file.blob });
        used.insert(key(&link.revision));
    }
    used
}

fn ref_name(layout: &Layout, repo: &RepoName, path: &Path) -> Option<RefName> {
    let inside = path.strip_prefix(layout.repo(repo).join("refs")).ok()?;
    let parts: Option<Vec<&str>> = inside.iter().map(|part| part.to_str()).collect();
    parts?.join("/").parse().ok()
}

/// Returns every blob of all repos that links to this payload.
fn links_to(layout: &Layout, payload: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for repo in fs::read_dir(layout.root()).into_iter().flatten().flatten() {
        let blobs = repo.path().join("blobs");
        for entry in fs::read_dir(&blobs).into_iter().flatten().flatten() {
            let leads = fs::read_link(entry.path()).is_ok_and(|target| {
                layout::shared_target(&layout.shared_store(), &blobs, &target).is_some_and(|target| target == payload)
            });
            if leads {
                found.push(entry.path());
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The check found bad bytes, but the client has fetched good ones since then.
    #[test]
    fn a_blob_that_was_downloaded_again_is_not_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path().join("hub"));
        let repo = RepoName::from_folder("models--org--name").unwrap();
        // The git oid of "hello\n".
        let blob: BlobId = "ce013625030ba8dba906f756967f9e9ca394464a".parse().unwrap();
        let path = layout.blob(&repo, &blob);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let set_aside = || set_aside_unused(&layout, &repo, &blob, &path).unwrap();
        fs::write(&path, "hello\n").unwrap();
        assert_eq!(set_aside(), SetAside::Good);
        assert!(path.exists());
        fs::write(&path, "other").unwrap();
        let held = lock::try_client_lock(&layout, &repo, &blob).unwrap();
        assert_eq!(set_aside(), SetAside::InUse);
        drop(held);
        assert_eq!(set_aside(), SetAside::Moved(5));
        assert_eq!((path.exists(), set_aside()), (false, SetAside::Gone));
    }
}
