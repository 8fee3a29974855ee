//! Executes the plans of pulls: first each blob once, and then the tree, the snapshot and the ref of each revision.
//!
//! A blob is fetched under huggingface_hub's own lock on it, so that the client and this tool never download the same blob
//! at the same time. If some blobs of a revision cannot be fetched, the others are linked, but no ref is written, so that
//! the revision does not look complete.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use super::fallback::{Fallback, both, note_on};
use crate::cache::donors::Donor;
use crate::cache::inside::{self, check_dir, ensure_dir, open_dir};
use crate::cache::layout::Layout;
use crate::cache::snapshot::{LinkKind, SnapshotWriter, StagedSnapshot};
use crate::cache::staging::Staging;
use crate::cache::{lock, place, read, shared};
use crate::engine::session::wait_for;
use crate::error::{Cause, Error, Result};
use crate::files;
use crate::model::amount::Amount;
use crate::model::ids::{BlobId, RefName, RepoName};
use crate::model::manifest::Manifest;
use crate::plan::pull::{FetchReason, Plan};
use crate::platform::Opening;
use crate::progress::{self, Event};
use crate::task::blocking;
use crate::transfer::download::{Fetch, download, forget};
use crate::transfer::parts::SINGLE_GET;
use crate::transfer::source::Source;
use crate::transfer::{Context, pool};

/// Maximum size, in bytes, of a blob that is fetched without creating a lock file, since lock files are never removed.
/// Fetching such a blob twice costs less.
const WITHOUT_LOCK_FILE: u64 = 1 << 20;

/// The outcome of a plan.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Blobs downloaded for it; a blob that several plans need counts for the first of them.
    pub downloaded: Amount,
    /// The part of `downloaded` that came from the Hub.
    pub from_hub: Amount,
    /// Blobs shared from elsewhere in this cache.
    pub shared: Amount,
    /// Notes for the user.
    pub notes: Vec<String>,
    /// Failures.
    pub failures: Vec<Error>,
    /// Blobs that could not be fetched.
    lost: HashSet<BlobId>,
}

impl Outcome {
    /// Returns the number of blobs that could not be fetched.
    pub fn lost(&self) -> usize {
        self.lost.len()
    }

    /// Returns whether this blob could not be fetched.
    pub fn has_lost(&self, blob: &BlobId) -> bool {
        self.lost.contains(blob)
    }
}

/// A blob and the plans that need it.
#[derive(Debug, Clone)]
struct Job {
    fetch: Fetch,
    /// The index and the repo of each plan that needs it.
    needs: Vec<(usize, RepoName)>,
    /// Another file in this cache that should have its bytes.
    donor: Option<Donor>,
    /// Its name in the cache-wide store, which it may join.
    xet_hash: Option<BlobId>,
    /// Whether that name comes from the Hub itself. A name from a bucket is checked before it is used.
    is_name_trusted: bool,
    /// Whether the local file has the right size and the wrong bytes.
    replace: bool,
    /// Whether the local path is occupied by something other than this blob.
    occupied: bool,
}

/// The origin of a download.
#[derive(Debug)]
enum Origin {
    Bucket,
    Hub,
    /// From the Hub, after this failure of the bucket.
    HubAfter(Error),
}

/// How a repo got a blob.
#[derive(Debug)]
enum Obtained {
    Downloaded(Origin),
    /// From elsewhere in this cache.
    Shared,
    /// It was already there, placed by another process or another plan of the same repo.
    Present,
}

/// A plan, and whether its revision was found on the Hub, so that its blobs come from there.
#[derive(Debug, Clone)]
pub struct Planned {
    /// The plan.
    pub plan: Plan,
    /// Whether the revision was found on the Hub.
    pub from_hub: bool,
}

/// Executes the plans, which may share blobs, and returns the outcomes in the same order. `kind` is the kind of links that
/// this cache supports. Blobs that the bucket fails to provide come from the `fallback`.
pub async fn hydrate(
    context: &Context,
    fallback: &Fallback,
    planned: Vec<Planned>,
    kind: LinkKind,
    now: SystemTime,
) -> Vec<Outcome> {
    let from_hub: Vec<bool> = planned.iter().map(|planned| planned.from_hub).collect();
    let plans: Vec<Plan> = planned.into_iter().map(|planned| planned.plan).collect();
    let mut outcomes: Vec<Outcome> = plans.iter().map(|plan| start(&context.layout, plan)).collect();
    // The size is part of the key: if two manifests disagree about it, the wrong one must not affect the other.
    let mut jobs: BTreeMap<(BlobId, u64), Job> = BTreeMap::new();
    let bucket = Source::Bucket(context.bucket.clone());
    for (index, plan) in plans.iter().enumerate().filter(|(index, _)| outcomes[*index].failures.is_empty()) {
        let repo = plan.manifest.repo();
        let hub = if from_hub[index] { fallback.hub() } else { None };
        let source = hub.and_then(Result::ok).map_or_else(|| bucket.clone(), Source::Hub);
        for action in &plan.fetch {
            let (commit, path) = (plan.manifest.revision().clone(), action.path.clone());
            let source = source.clone();
            let fetch = Fetch { id: action.blob, size: action.size, repo: repo.clone(), commit, path, source };
            let new_job = || Job {
                fetch,
                needs: Vec::new(),
                donor: None,
                xet_hash: None,
                is_name_trusted: false,
                replace: false,
                occupied: false,
            };
            let job = jobs.entry((action.blob, action.size)).or_insert_with(new_job);
            if let Some(xet_hash) = action.xet_hash.filter(|_| kind == LinkKind::Symlink)
                && (job.xet_hash.is_none() || from_hub[index])
            {
                (job.xet_hash, job.is_name_trusted) = (Some(xet_hash), from_hub[index]);
            }
            if !from_hub[index] {
                // If the bucket has the blob for one revision, it is not fetched from the Hub for another.
                job.fetch.source = bucket.clone();
            }
            job.needs.push((index, repo.clone()));
            job.donor = job.donor.take().or_else(|| action.donor.clone());
            job.replace |= action.reason == FetchReason::Corrupt;
            job.occupied |= action.reason == FetchReason::WrongSize;
        }
    }
    let downloads = jobs.values().filter(|job| job.donor.is_none());
    let context = &context.moving(downloads.clone().fold(0, |sum, job| sum.saturating_add(job.fetch.size)));
    let planned = downloads.map(|job| progress::Job { blob: job.fetch.id, size: job.fetch.size, repo: job.needs[0].0 });
    context.progress.event(Event::Planned(planned.collect()));

    // Shared with the thread that links during the downloads, and the threads that complete each plan.
    let plans: Arc<[Plan]> = plans.into();
    let staged = stage(&context.layout, &plans, kind);
    pool::run(
        jobs.into_values().collect(),
        &context.limits,
        |job: &Job| context.cut().gets(job.fetch.size),
        |job| {
            let (context, fallback) = (context.clone(), fallback.clone());
            async move {
                let fetched = fetch(&context, &fallback, &job).await;
                (job, fetched)
            }
        },
        |(job, fetched)| {
            context.progress.event(Event::Finished { blob: job.fetch.id });
            for (index, obtained) in fetched {
                let outcome: &mut Outcome = &mut outcomes[index];
                match obtained {
                    Ok(Obtained::Downloaded(origin)) => {
                        let moved = context.moved_bytes(&job.fetch.id, job.fetch.size);
                        outcome.downloaded.add(moved);
                        if !matches!(origin, Origin::Bucket) {
                            outcome.from_hub.add(moved);
                        }
                        if let Origin::HubAfter(failure) = origin {
                            outcome.notes.push(note_on(&failure));
                        }
                    }
                    Ok(Obtained::Shared) => outcome.shared.add(job.fetch.size),
                    Ok(Obtained::Present) => {}
                    Err(error) => {
                        outcome.lost.insert(job.fetch.id);
                        outcome.failures.push(error);
                    }
                }
            }
        },
    )
    .await;
    context.progress.event(Event::Step("linking files"));
    let staged = staged.await;
    for (index, (outcome, staged)) in outcomes.iter_mut().zip(staged).enumerate() {
        if outcome.failures.is_empty() || !outcome.lost.is_empty() {
            let (layout, plans, lost, sync) =
                (context.layout.clone(), plans.clone(), outcome.lost.clone(), context.sync);
            let assembled = blocking(move || {
                let own = own_blobs(&plans, index);
                let writer = writer(&layout, &plans[index], kind, &own);
                assemble(&plans[index], &writer, staged, &lost, sync, now)
            });
            match assembled.await {
                Ok(note) => outcome.notes.extend(note),
                Err(error) => outcome.failures.push(error),
            }
        }
    }
    outcomes
}

/// Prepares new snapshots during the downloads, since symbolic links can be created before their targets. Anything that
/// cannot be prepared is left to [`assemble`], which also reports failures.
fn stage(
    layout: &Layout,
    plans: &Arc<[Plan]>,
    kind: LinkKind,
) -> impl Future<Output = Vec<Option<StagedSnapshot>>> + use<> {
    let count = plans.len();
    let (layout, plans) = (layout.clone(), plans.clone());
    let work = tokio::task::spawn_blocking(move || {
        let one = |plan: &Plan| {
            if kind != LinkKind::Symlink || plan.fetch.is_empty() || plan.link.is_empty() {
                return None;
            }
            let links: Vec<_> = plan.link.iter().map(|link| (&link.path, &link.blob)).collect();
            writer(&layout, plan, kind, &HashSet::new()).stage(&links).ok().flatten()
        };
        plans.iter().map(one).collect::<Vec<_>>()
    });
    async move {
        let mut staged = work.await.unwrap_or_default();
        staged.resize_with(count, || None);
        staged
    }
}

fn writer<'a>(layout: &'a Layout, plan: &'a Plan, kind: LinkKind, own: &'a HashSet<BlobId>) -> SnapshotWriter<'a> {
    SnapshotWriter { layout, repo: plan.manifest.repo(), commit: plan.manifest.revision(), kind, own }
}

/// Returns the blobs that this plan has added and that no other snapshot uses yet.
fn own_blobs(plans: &[Plan], index: usize) -> HashSet<BlobId> {
    let plan = &plans[index];
    if plans.iter().filter(|other| other.manifest.repo() == plan.manifest.repo()).count() > 1 {
        return HashSet::new();
    }
    plan.fetch.iter().filter(|fetch| fetch.reason == FetchReason::Missing).map(|fetch| fetch.blob).collect()
}

fn start(layout: &Layout, plan: &Plan) -> Outcome {
    let checked = if plan.fetch.is_empty() { Ok(()) } else { check_dirs(layout, plan.manifest.repo()) };
    Outcome { failures: checked.err().into_iter().collect(), ..Outcome::default() }
}

/// Checks the folders of a repo's blobs once, before a possibly long download: none may be a link, and all must be writable.
/// A new repo is created with its first blob; an existing one gets its `snapshots/` now, since huggingface_hub's scan
/// complains about a repo without it.
fn check_dirs(layout: &Layout, repo: &RepoName) -> Result<()> {
    let locks = layout.root().join(".locks").join(repo.folder());
    let blobs = layout.blobs(repo);
    check_dir(layout.root(), &blobs)?;
    place::check_writable(&blobs)?;
    if layout.repo(repo).exists() {
        ensure_dir(layout.root(), &layout.repo(repo).join("snapshots"))?;
    }
    ensure_dir(layout.root(), &locks)?;
    ensure_dir(layout.root(), &layout.partials())
}

/// Obtains the blob for every plan that needs it, downloading it at most once.
async fn fetch(context: &Context, fallback: &Fallback, job: &Job) -> Vec<(usize, Result<Obtained>)> {
    let mut done = Vec::new();
    // A repo that already has the verified blob.
    let mut source: Option<&RepoName> = None;
    let mut missing: Option<Error> = None;
    for (index, repo) in &job.needs {
        let obtained = match (&missing, source) {
            (Some(error), _) => Err(error.clone()),
            (_, Some(source)) if source == repo => Ok(Obtained::Present),
            (_, source) => obtain(context, fallback, job, repo, source).await,
        };
        match &obtained {
            Ok(_) => source = Some(repo),
            // If the download failed, it fails for all plans, without another attempt.
            Err(error) if source.is_none() => missing = Some(error.clone()),
            Err(_) => {}
        }
        done.push((*index, obtained));
    }
    done
}

async fn obtain(
    context: &Context,
    fallback: &Fallback,
    job: &Job,
    repo: &RepoName,
    source: Option<&RepoName>,
) -> Result<Obtained> {
    let (blob, size, layout) = (&job.fetch.id, job.fetch.size, &context.layout);
    if job.occupied {
        place::check_replaceable(&layout.blob(repo, blob))?;
    }
    // The client may have fetched the blob while this process waited for the lock.
    let client = client_lock(context, repo, job).await?;
    if let Some(arrival) = context.arrivals.as_ref().and_then(|arrivals| arrivals.get(blob)) {
        arrival.note_begin();
    }
    if client.is_some() && is_present(layout, repo, job) {
        return Ok(Obtained::Present);
    }
    if let Some(xet_hash) = job.xet_hash {
        let (layout, repo, blob) = (layout.clone(), repo.clone(), *blob);
        match blocking(move || shared::link(&layout, &repo, &blob, size, &xet_hash)).await {
            Ok(true) => return Ok(Obtained::Shared),
            Ok(false) => {}
            Err(error) => tracing::debug!(%error, "the cache-wide store is not used"),
        }
    }
    let fetched = source.map(|source| layout.blob(source, blob));
    if let Some(from) = fetched.as_ref().or(job.donor.as_ref().map(|donor| &donor.file)) {
        // A blob that this run has fetched is already verified.
        let verify = source.is_none();
        let (layout, from, repo, blob) = (layout.clone(), from.clone(), repo.clone(), *blob);
        if blocking(move || share(&layout, &from, &repo, &blob, verify.then_some(size))).await? {
            return Ok(Obtained::Shared);
        }
    }
    let partial = match size {
        0..=SINGLE_GET => None,
        _ => {
            let note = format!("another hf-cache-sync is downloading {}: waiting for it", job.fetch.label());
            Some(wait_for(&*context.progress, &note, || lock::try_partial_lock(layout, blob)).await?)
        }
    };
    // A server that did not get the client's lock may have fetched the blob under this one.
    if (partial.is_some() || context.arrivals.is_some()) && is_present(layout, repo, job) {
        return Ok(Obtained::Present);
    }
    let (path, origin) = download_from_any(context, fallback, &job.fetch).await?;
    let placed = put_in_place(layout, &path, repo, blob);
    match (&placed, size > SINGLE_GET) {
        (Ok(()), true) => forget(layout, blob),
        // A large file is kept for the next run.
        (Err(_), false) => drop(inside::remove_file(layout.root(), &path)),
        _ => {}
    }
    placed?;
    if let Some(xet_hash) = job.xet_hash {
        let (layout, repo, blob, is_trusted) = (layout.clone(), repo.clone(), *blob, job.is_name_trusted);
        blocking(move || shared::publish(&layout, &repo, &blob, size, &xet_hash, is_trusted)).await?;
    }
    Ok(Obtained::Downloaded(origin))
}

/// Downloads a blob from its source or, after a failure that the fallback covers, from the fallback.
async fn download_from_any(context: &Context, fallback: &Fallback, blob: &Fetch) -> Result<(PathBuf, Origin)> {
    let failure = match download(context, blob).await {
        Ok(path) if matches!(blob.source, Source::Hub(_)) => return Ok((path, Origin::Hub)),
        Ok(path) => return Ok((path, Origin::Bucket)),
        Err(failure) => failure,
    };
    if matches!(blob.source, Source::Hub(_)) || !fallback.covers(&failure) {
        return Err(failure);
    }
    let Some(Ok(hub)) = fallback.hub() else { return Err(failure) };
    fallback.announce();
    let blob = Fetch { source: Source::Hub(hub), ..blob.clone() };
    match download(context, &blob).await {
        Ok(path) => Ok((path, Origin::HubAfter(failure))),
        Err(second) => Err(both(&failure, second)),
    }
}

/// Takes huggingface_hub's lock on the blob. For a small blob, no lock file is created: if the client fetches it at the same
/// time, both rename the same bytes into place. A blob that may join the cache-wide store always needs the lock.
async fn client_lock(context: &Context, repo: &RepoName, job: &Job) -> Result<Option<lock::Lock>> {
    let (layout, id) = (&context.layout, &job.fetch.id);
    if job.fetch.size <= WITHOUT_LOCK_FILE
        && job.xet_hash.is_none()
        && let Some(lock) = lock::try_client_lock_if_there(layout, repo, id)?
    {
        return Ok(lock);
    }
    if context.arrivals.is_some() {
        // The lock holder may be a client that is waiting for this very download.
        return lock::try_client_lock(layout, repo, id);
    }
    let note = format!("another process is downloading {}: waiting for it", job.fetch.label());
    wait_for(&*context.progress, &note, || lock::try_client_lock(layout, repo, id)).await.map(Some)
}

/// Returns whether the blob is present in the meantime.
fn is_present(layout: &Layout, repo: &RepoName, job: &Job) -> bool {
    let fits = |meta: fs::Metadata| meta.is_file() && meta.len() == job.fetch.size;
    !job.replace && fs::metadata(layout.blob(repo, &job.fetch.id)).is_ok_and(fits)
}

/// Renames a verified file to its blob's name. An existing file or link is replaced, never followed.
fn put_in_place(layout: &Layout, file: &Path, repo: &RepoName, blob: &BlobId) -> Result<()> {
    let (root, target) = (layout.root(), layout.blob(repo, blob));
    let failed = |error: io::Error| Error::io("cannot move a blob to", &target, &error);
    let blobs = open_dir(root, &layout.blobs(repo))?;
    let (folder, name) = inside::parent(root, file, false).map_err(failed)?;
    let new = blob.to_string();
    match place::rename_over_in(&folder, name, &blobs, new.as_ref()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
            // blobs/ is a separate mount: copy to a sibling whose name the client ignores.
            let beside = format!(".{blob}.{:08x}.new", fastrand::u32(..));
            let copy = || {
                let mut copy = inside::open_in(&blobs, beside.as_ref(), Opening::NewToWrite, 0o666)?;
                io::copy(&mut files::open(file)?, &mut copy)?;
                place::flushed(copy.sync_all())?;
                drop(copy);
                place::rename_over_in(&blobs, beside.as_ref(), &blobs, new.as_ref())
            };
            copy().inspect_err(|_| drop(blobs.remove_file(beside.as_ref()))).map_err(failed)?;
            let _ = folder.remove_file(name);
            Ok(())
        }
        Err(error) if place::is_refused(&error) => Err(failed(error)
            .hint("this file system cannot rename files, so no file can appear atomically: use another --cache-dir")),
        Err(error) => Err(failed(error)),
    }
}

/// Shares a blob from elsewhere in this cache with a repo, as a reflink, a hard link or a copy. With `verify`, the blob's
/// size, its bytes are hashed first. Returns `false` if they cannot be used.
pub(super) fn share(layout: &Layout, source: &Path, to: &RepoName, blob: &BlobId, verify: Option<u64>) -> Result<bool> {
    let staging = Staging::new(layout)?;
    let (folder, name) = (staging.folder()?, "blob".as_ref());
    let staged = staging.path().join(name);
    let is_in_snapshot = source.parent().is_none_or(|folder| !folder.ends_with("blobs"));
    let made = fs::canonicalize(source).and_then(|source| {
        let link = || match is_in_snapshot {
            // Users may edit real files in snapshots, so they are never hard-linked.
            true => Err(io::ErrorKind::Unsupported.into()),
            false => folder.hard_link(&source, name),
        };
        let cloned = folder.clone_file(&source, name).or_else(|_| link());
        cloned.or_else(|_| read::copy_quietly(&source, &folder, name))
    });
    if let Err(error) = made {
        tracing::debug!(path = %source.display(), %error, "a blob of this cache cannot be shared");
        return Ok(false);
    }
    if verify.is_some_and(|size| !read::matches_name(&staged, blob, size)) {
        tracing::warn!("{} is corrupt: its bytes do not match its name", source.display());
        return Ok(false);
    }
    put_in_place(layout, &staged, to, blob).map(|()| true)
}

/// Writes the ref by which hf-hub finds a pinned commit. Best effort, since a complete cache may be read-only and no other
/// client needs this ref.
pub fn write_pin(layout: &Layout, plan: &Plan) {
    let (repo, commit) = (plan.manifest.repo(), plan.manifest.revision());
    if plan.write_pin
        && let Err(error) = place::write_ref(layout, repo, &RefName::of_commit(commit), commit, false)
    {
        tracing::debug!(%error, "the ref of {repo} that is named after its commit was not written");
    }
}

/// Checks files that the manifest and its tree name by different hash algorithms: both names must match the bytes.
fn check_twins(manifest: &Manifest, layout: &Layout, lost: &HashSet<BlobId>) -> Result<()> {
    let Some(tree) = manifest.tree() else { return Ok(()) };
    let (repo, commit) = (manifest.repo(), manifest.revision());
    let twins = manifest.files().iter().filter(|file| tree.may_list_twin(file) && !lost.contains(&file.blob));
    for file in twins {
        let known = tree.get(&file.path).expect("the tree knows the file").blob;
        if !read::matches_name(&layout.snapshot_file(repo, commit, &file.path), &known, file.size) {
            return Err(Error::invalid(format!("the manifest of {repo}@{} contradicts its tree", commit.short()))
                .because(format!("'{}' is blob {} in the manifest and {known} in the tree", file.path, file.blob))
                .hint("push the revision again from a machine that has it"));
        }
    }
    Ok(())
}

/// Puts the tree, the snapshot and the ref in place. May return a note for the user.
fn assemble(
    plan: &Plan,
    writer: &SnapshotWriter<'_>,
    staged: Option<StagedSnapshot>,
    lost: &HashSet<BlobId>,
    sync: bool,
    now: SystemTime,
) -> Result<Option<String>> {
    let mut note = None;
    let (layout, manifest) = (writer.layout, &plan.manifest);
    let (repo, commit) = (manifest.repo(), manifest.revision());
    // The tree first: it proves that a snapshot without all its files is not complete.
    if plan.write_tree
        && let Some(tree) = manifest.tree()
    {
        let path = layout.tree(repo, commit);
        match place::write_small(layout, &path, &tree.to_json(), sync) {
            Ok(()) => {}
            // The tree file belongs to another user of a shared cache. The files are complete without it.
            Err(error) if error.cause == Cause::Permission || place::check_replaceable(&path).is_err() => {
                note =
                    Some(format!("the list that proves {repo}@{} complete was not written: {error}", commit.short()));
            }
            Err(error) => return Err(error),
        }
    }
    let links: Vec<_> =
        plan.link.iter().filter(|link| !lost.contains(&link.blob)).map(|link| (&link.path, &link.blob)).collect();
    let staged = staged.filter(|_| lost.is_empty());
    if !links.is_empty() && !staged.map_or(Ok(false), StagedSnapshot::publish)? {
        writer.write(&links)?;
    }
    check_twins(manifest, layout, lost)?;
    let complete = plan.unstorable.is_empty() && !manifest.files().iter().any(|file| lost.contains(&file.blob));
    // The lock protects against this tool's prune, but not against the client's, or against users who move folders.
    let fetched = manifest.files().iter().filter(|file| !lost.contains(&file.blob) && file.path.is_storable());
    let fetched = fetched.map(|file| layout.snapshot_file(repo, commit, &file.path));
    if let Some(gone) = plan.used.iter().cloned().chain(fetched).find(|path| fs::metadata(path).is_err()) {
        return Err(Error::failed(format!("{} was deleted while {repo} was pulled", gone.display()))
            .hint("run the same pull again"));
    }
    if complete && let Some(name) = &plan.write_ref {
        if sync {
            place::sync_dir(&layout.blobs(repo));
            place::sync_dir(&layout.repo(repo).join("snapshots"));
        }
        place::write_ref(layout, repo, name, commit, sync)?;
    }
    if complete {
        write_pin(layout, plan);
    }
    plan.used.iter().for_each(|path| place::mark_used(path, now));
    Ok(note)
}
