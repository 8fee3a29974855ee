//! Carrying out pulls: each blob once, then per revision tree, snapshot and ref.
//!
//! A blob is fetched under huggingface_hub's own lock on it, so that the client and this tool never download the same
//! blob side by side. A revision whose blobs are not all here gets what is here, but no ref: nothing that looks
//! complete is left behind.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use super::fallback::{Fallback, both, taken};
use crate::cache::donors::Donor;
use crate::cache::layout::Layout;
use crate::cache::place::{self, LinkKind, SnapshotWriter, StagedSnapshot, ensure_dir};
use crate::cache::{lock, read};
use crate::engine::session::wait_for;
use crate::error::{Cause, Error, Result};
use crate::model::amount::Amount;
use crate::model::ids::{BlobId, RefName, RepoName};
use crate::model::manifest::Manifest;
use crate::plan::pull::{FetchReason, Plan};
use crate::progress::{self, Event};
use crate::task::blocking;
use crate::transfer::download::{Fetch, download, forget};
use crate::transfer::parts::SINGLE_GET;
use crate::transfer::source::Source;
use crate::transfer::{Context, pool};

/// Up to this size fetching a blob twice costs less than a lock file, which would stay for ever.
const WITHOUT_LOCK_FILE: u64 = 1 << 20;

/// What became of a plan.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Downloaded for it; a blob that several plans need counts for the first of them.
    pub downloaded: Amount,
    /// What of that came from the Hub.
    pub from_hub: Amount,
    /// Shared with another repo of this cache.
    pub shared: Amount,
    /// What a user should know.
    pub notes: Vec<String>,
    /// What failed.
    pub failures: Vec<Error>,
    /// Blobs that are not here after that.
    lost: HashSet<BlobId>,
}

impl Outcome {
    /// Blobs that could not be had.
    pub fn lost(&self) -> usize {
        self.lost.len()
    }

    /// Whether this blob could not be had.
    pub fn has_lost(&self, blob: &BlobId) -> bool {
        self.lost.contains(blob)
    }
}

/// One blob and the plans that need it.
#[derive(Debug, Clone)]
struct Job {
    fetch: Fetch,
    /// Index of the plan, and its repo.
    needs: Vec<(usize, RepoName)>,
    /// A file of this cache that should be it.
    donor: Option<Donor>,
    /// What stands there has the right size and the wrong bytes.
    replace: bool,
    /// Something that is not this blob stands in its place.
    occupied: bool,
}

/// Where the bytes of a download came from.
#[derive(Debug)]
enum Origin {
    Bucket,
    Hub,
    /// From the Hub, since the bucket failed to give them.
    HubAfter(Error),
}

/// How a repo got a blob.
#[derive(Debug)]
enum Got {
    Downloaded(Origin),
    Shared,
    /// It came by another process, or for another plan of the same repo.
    Here,
}

/// A plan, and whether the Hub was what knew its revision: then its blobs come from there.
#[derive(Debug, Clone)]
pub struct Planned {
    /// What is to be done.
    pub plan: Plan,
    /// Whether the revision was found on the Hub.
    pub from_hub: bool,
}

/// Executes the plans, which may share blobs; `kind` is what this cache allows. Blobs that the bucket does not give come
/// from the `fallback`. The outcomes are in the plans' order.
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
    // By size as well: of two manifests that do not agree, one is wrong, and the other is not to suffer from it.
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
            let fresh = || Job { fetch, needs: Vec::new(), donor: None, replace: false, occupied: false };
            let job = jobs.entry((action.blob, action.size)).or_insert_with(fresh);
            if !from_hub[index] {
                // What one of the revisions has in the bucket need not come from the Hub for the other.
                job.fetch.source = bucket.clone();
            }
            job.needs.push((index, repo.clone()));
            job.donor = job.donor.take().or_else(|| action.donor.clone());
            job.replace |= action.reason == FetchReason::Corrupt;
            job.occupied |= action.reason == FetchReason::WrongSize;
        }
    }
    let wire = jobs.values().filter(|job| job.donor.is_none());
    let context = &context.moving(wire.clone().map(|job| job.fetch.size).sum());
    let planned = wire.map(|job| progress::Job { blob: job.fetch.id, size: job.fetch.size, repo: job.needs[0].0 });
    context.progress.event(Event::Planned(planned.collect()));

    // For threads of their own: the one that links beside the downloads, and those that complete each plan.
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
            for (index, got) in fetched {
                let outcome: &mut Outcome = &mut outcomes[index];
                match got {
                    Ok(Got::Downloaded(origin)) => {
                        let moved = context.moved_bytes(&job.fetch.id, job.fetch.size);
                        outcome.downloaded.add(moved);
                        if !matches!(origin, Origin::Bucket) {
                            outcome.from_hub.add(moved);
                        }
                        if let Origin::HubAfter(failure) = origin {
                            outcome.notes.push(taken(&failure));
                        }
                    }
                    Ok(Got::Shared) => outcome.shared.add(job.fetch.size),
                    Ok(Got::Here) => {}
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

/// Makes new snapshots beside the downloads, where their links can be made before the blobs are there. What cannot be
/// made now is made, and its failure told, by [`assemble`].
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

/// Blobs that this plan has brought and nobody else knows yet.
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

/// Checks, once, the folders that every blob of a repo goes through: none may be a link, and blobs must be welcome
/// before hours are spent on fetching them. `blobs/` is made only when a blob is there to be put into it, since
/// huggingface_hub does not like a repo folder without snapshots.
fn check_dirs(layout: &Layout, repo: &RepoName) -> Result<()> {
    let locks = layout.root().join(".locks").join(repo.folder());
    let blobs = layout.blobs(repo);
    place::check_dir(layout.root(), &blobs)?;
    place::check_writable(&blobs)?;
    ensure_dir(layout.root(), &locks)?;
    ensure_dir(layout.root(), &layout.state().join("partial"))
}

/// Gets the blob for every plan that needs it: over the wire once at the most.
async fn fetch(context: &Context, fallback: &Fallback, job: &Job) -> Vec<(usize, Result<Got>)> {
    let mut done = Vec::new();
    // Who has it for certain.
    let mut source: Option<&RepoName> = None;
    let mut missing: Option<Error> = None;
    for (index, repo) in &job.needs {
        let got = match (&missing, source) {
            (Some(error), _) => Err(error.clone()),
            (_, Some(source)) if source == repo => Ok(Got::Here),
            (_, source) => obtain(context, fallback, job, repo, source).await,
        };
        match &got {
            Ok(_) => source = Some(repo),
            // One that cannot be had fails for all, without another try on the wire.
            Err(error) if source.is_none() => missing = Some(error.clone()),
            Err(_) => {}
        }
        done.push((*index, got));
    }
    done
}

async fn obtain(
    context: &Context,
    fallback: &Fallback,
    job: &Job,
    repo: &RepoName,
    source: Option<&RepoName>,
) -> Result<Got> {
    let (blob, size, layout) = (&job.fetch.id, job.fetch.size, &context.layout);
    if job.occupied {
        place::check_replaceable(&layout.blob(repo, blob))?;
    }
    // Who had to take the lock may find that the client has fetched the blob meanwhile.
    let client = client_lock(context, repo, job).await?;
    if client.is_some() && is_there(layout, repo, job) {
        return Ok(Got::Here);
    }
    let fetched = source.map(|source| layout.blob(source, blob));
    if let Some(from) = fetched.as_ref().or(job.donor.as_ref().map(|donor| &donor.file)) {
        // What this run has fetched was verified already.
        let verify = source.is_none();
        let (layout, from, repo, blob) = (layout.clone(), from.clone(), repo.clone(), *blob);
        if blocking(move || share(&layout, &from, &repo, &blob, verify.then_some(size))).await? {
            return Ok(Got::Shared);
        }
    }
    let _partial = match size {
        0..=SINGLE_GET => None,
        _ => {
            let note = format!("another hf-cache-sync is downloading {}: waiting for it", job.fetch.label());
            Some(wait_for(&*context.progress, &note, || lock::try_partial_lock(layout, blob)).await?)
        }
    };
    let (path, origin) = download_from_any(context, fallback, &job.fetch).await?;
    let placed = put_in_place(layout, &path, repo, blob);
    match (&placed, size > SINGLE_GET) {
        (Ok(()), true) => forget(layout, blob),
        // A large one stays as it is, all of it, for the next run.
        (Err(_), false) => drop(fs::remove_file(&path)),
        _ => {}
    }
    placed.map(|()| Got::Downloaded(origin))
}

/// Downloads a blob from its source and, where that fails in a way that is covered, from the fallback.
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
    fallback.tell();
    let blob = Fetch { source: Source::Hub(hub), ..blob.clone() };
    match download(context, &blob).await {
        Ok(path) => Ok((path, Origin::HubAfter(failure))),
        Err(second) => Err(both(&failure, second)),
    }
}

/// huggingface_hub's lock on the blob. For a small one no lock file is made: should the client begin to fetch it at the
/// same time, both put the same bytes into place, by rename.
async fn client_lock(context: &Context, repo: &RepoName, job: &Job) -> Result<Option<lock::Lock>> {
    let (layout, id) = (&context.layout, &job.fetch.id);
    if job.fetch.size <= WITHOUT_LOCK_FILE
        && let Some(none_or_taken) = lock::try_client_lock_if_there(layout, repo, id)?
    {
        return Ok(none_or_taken);
    }
    let note = format!("another process is downloading {}: waiting for it", job.fetch.label());
    wait_for(&*context.progress, &note, || lock::try_client_lock(layout, repo, id)).await.map(Some)
}

/// Whether nothing is to be done any more: the client may have fetched the blob while we waited for its lock.
fn is_there(layout: &Layout, repo: &RepoName, job: &Job) -> bool {
    let fits = |meta: fs::Metadata| meta.is_file() && meta.len() == job.fetch.size;
    !job.replace && fs::metadata(layout.blob(repo, &job.fetch.id)).is_ok_and(fits)
}

/// Renames a verified file to its blob's name: whatever stands there, a link included, is replaced, never followed.
fn put_in_place(layout: &Layout, file: &Path, repo: &RepoName, blob: &BlobId) -> Result<()> {
    let target = layout.blob(repo, blob);
    let mut moved = place::rename_over(file, &target);
    if moved.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
        ensure_dir(layout.root(), &layout.blobs(repo))?;
        moved = place::rename_over(file, &target);
    }
    match moved {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
            // blobs/ is a mount of its own: copy beside the target under a name that the client ignores.
            let beside = layout.blobs(repo).join(format!(".{blob}.{:08x}.new", fastrand::u32(..)));
            // Windows flushes only what is open for writing.
            let flush = || place::flushed(fs::OpenOptions::new().write(true).open(&beside)?.sync_all());
            let moved = fs::copy(file, &beside)
                .and_then(|_| flush())
                .and_then(|()| place::rename_over(&beside, &target))
                .inspect_err(|_| drop(fs::remove_file(&beside)));
            moved.map_err(|e| Error::io("cannot move a blob to", &target, &e))?;
            let _ = fs::remove_file(file);
            Ok(())
        }
        Err(error) if place::is_refused(&error) => Err(Error::io("cannot move a blob to", &target, &error)
            .hint("this file system cannot rename files, so that nothing can appear whole: use another --cache-dir")),
        Err(error) => Err(Error::io("cannot move a blob to", &target, &error)),
    }
}

/// Gives a repo the blob that is elsewhere in this cache: a reflink, else a hard link, else a copy. With `verify`, the blob's size,
/// its bytes are hashed first. `false` when they cannot be had from there.
fn share(layout: &Layout, source: &Path, to: &RepoName, blob: &BlobId, verify: Option<u64>) -> Result<bool> {
    let staging = place::Staging::new(layout)?;
    let staged = staging.path().join("blob");
    let is_in_snapshot = source.parent().is_none_or(|folder| !folder.ends_with("blobs"));
    let made = fs::canonicalize(source).and_then(|source| {
        let link = || match is_in_snapshot {
            // Files of snapshots are people's to change, where they are no links.
            true => Err(io::ErrorKind::Unsupported.into()),
            false => fs::hard_link(&source, &staged),
        };
        reflink_copy::reflink(&source, &staged).or_else(|_| link()).or_else(|_| read::copy_quietly(&source, &staged))
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

/// Writes the ref by which hf-hub finds a pinned commit, where that can be: a cache that is complete may be read-only,
/// and who asks for the commit in another way does without.
pub fn write_pin(layout: &Layout, plan: &Plan) {
    let (repo, commit) = (plan.manifest.repo(), plan.manifest.revision());
    if plan.write_pin
        && let Err(error) = place::write_ref(layout, repo, &RefName::of_commit(commit), commit, false)
    {
        tracing::debug!(%error, "the ref of {repo} that is called like its commit is not written");
    }
}

/// Of files that the manifest and its tree name by different algorithms the bytes must have both names.
fn check_twins(manifest: &Manifest, layout: &Layout, lost: &HashSet<BlobId>) -> Result<()> {
    let Some(tree) = manifest.tree() else { return Ok(()) };
    let (repo, commit) = (manifest.repo(), manifest.revision());
    let twins = manifest.files().iter().filter(|file| tree.may_list_twin(file) && !lost.contains(&file.blob));
    for file in twins {
        let known = tree.get(&file.path).expect("the tree knows the file").blob;
        if !read::matches_name(&layout.snapshot_file(repo, commit, &file.path), &known, file.size) {
            return Err(Error::invalid(format!("the manifest of {repo}@{} contradicts its tree", commit.short()))
                .because(format!("'{}' is blob {} by the one and {known} by the other", file.path, file.blob))
                .hint("push the revision again from a machine that has it"));
        }
    }
    Ok(())
}

/// Puts tree, snapshot and ref in place; returns what a user should know.
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
            // Another user's, in a cache that several share. The files are all the same without it.
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
    // This tool's own deleter is kept out; the client's is not.
    if let Some(gone) = plan.used.iter().find(|path| fs::metadata(path).is_err()) {
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
