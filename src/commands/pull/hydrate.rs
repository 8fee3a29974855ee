//! Carrying out pulls: each blob once, then per revision tree, snapshot and ref.
//!
//! A blob is fetched under huggingface_hub's own lock on it, so that the client and this tool never download the same
//! blob side by side. A revision whose blobs are not all here gets what is here, but no ref: nothing that looks
//! complete is left behind.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io;
use std::path::Path;
use std::time::SystemTime;

use super::plan::{FetchReason, Plan};
use crate::cache::layout::Layout;
use crate::cache::lock;
use crate::cache::place::{self, LinkKind, SnapshotWriter, ensure_dir};
use crate::commands::{Amount, wait_for};
use crate::error::{Error, Result};
use crate::ids::{BlobId, RepoName};
use crate::progress::Event;
use crate::remote::transfer::download::{Fetch, SINGLE_GET, download};
use crate::remote::transfer::{Context, blocking, pool};

/// What was done.
#[derive(Debug, Default)]
pub struct Done {
    /// Downloaded.
    pub downloaded: Amount,
    /// What failed.
    pub failures: Vec<Error>,
    /// Blobs that are not here after that.
    pub lost: HashSet<BlobId>,
}

/// One blob and the repos that need it.
#[derive(Debug, Clone)]
struct Job {
    fetch: Fetch,
    repos: Vec<RepoName>,
    /// What stands there has the right size and the wrong bytes.
    replace: bool,
}

/// Executes the plans, which may share blobs.
///
/// # Errors
/// When the cache cannot be written to at all.
pub async fn hydrate(context: &Context, plans: &[Plan], now: SystemTime) -> Result<Done> {
    let kind = LinkKind::probe(&context.layout)?;
    let mut jobs: BTreeMap<BlobId, Job> = BTreeMap::new();
    for plan in plans {
        for action in &plan.fetch {
            let label = format!("{}/{}", plan.manifest.repo, action.path);
            let fetch = Fetch { id: action.blob, size: action.size, label };
            let job = jobs.entry(action.blob).or_insert_with(|| Job { fetch, repos: Vec::new(), replace: false });
            job.repos.push(plan.manifest.repo.clone());
            job.replace |= action.reason == FetchReason::Corrupt;
        }
    }
    for plan in plans.iter().filter(|plan| !plan.fetch.is_empty()) {
        check_dirs(&context.layout, &plan.manifest.repo)?;
    }
    let bytes = jobs.values().map(|job| job.fetch.size).sum();
    context.progress.event(Event::Planned { blobs: jobs.len() as u64, bytes });

    let mut done = Done::default();
    pool::run(
        jobs.into_values().collect(),
        context.limits.objects.ceiling(),
        |job: &Job| job.fetch.size > SINGLE_GET,
        |job| {
            let context = context.clone();
            async move {
                let fetched = fetch(&context, &job).await;
                (job, fetched)
            }
        },
        |(job, fetched)| match fetched {
            Ok(true) => done.downloaded.add(job.fetch.size),
            Ok(false) => {}
            Err(error) => {
                done.lost.insert(job.fetch.id);
                done.failures.push(error);
            }
        },
    )
    .await;
    context.progress.event(Event::Step("linking files"));
    for plan in plans {
        let (layout, plan, lost, sync) = (context.layout.clone(), plan.clone(), done.lost.clone(), context.sync);
        if let Err(error) = blocking(move || assemble(&layout, &plan, kind, &lost, sync, now)).await {
            done.failures.push(error);
        }
    }
    Ok(done)
}

/// Checks, once, the folders that every blob of a repo goes through: none may be a link. `blobs/` is made only when a
/// blob is there to be put into it, since huggingface_hub does not like a repo folder without snapshots.
fn check_dirs(layout: &Layout, repo: &RepoName) -> Result<()> {
    let locks = layout.root().join(".locks").join(repo.folder());
    place::check_dir(layout.root(), &layout.blobs(repo))?;
    ensure_dir(layout.root(), &locks)?;
    ensure_dir(layout.root(), &layout.state().join("partial"))
}

/// Whether the blob was downloaded; it may have come by another process while we waited for its lock.
async fn fetch(context: &Context, job: &Job) -> Result<bool> {
    let (blob, layout) = (&job.fetch.id, &context.layout);
    let (first, others) = job.repos.split_first().expect("every job comes from a plan");
    let mut downloaded = false;
    {
        let _client = client_lock(context, first, job).await?;
        if !is_there(layout, first, job) {
            let _partial = match job.fetch.size {
                0..=SINGLE_GET => None,
                _ => {
                    let note = format!("another hf-cache-sync is downloading {}: waiting for it", job.fetch.label);
                    Some(wait_for(&*context.progress, &note, || lock::try_partial_lock(layout, blob)).await?)
                }
            };
            let path = download(context, &job.fetch).await?;
            put_in_place(layout, &path, first, blob)?;
            if job.fetch.size > SINGLE_GET {
                let _ = fs::remove_file(layout.partial(blob).with_extension("lock"));
            }
            downloaded = true;
        }
    }
    for repo in others {
        let _client = client_lock(context, repo, job).await?;
        if !is_there(layout, repo, job) {
            let (layout, first, repo, blob) = (layout.clone(), first.clone(), repo.clone(), *blob);
            blocking(move || share(&layout, &first, &repo, &blob)).await?;
        }
    }
    Ok(downloaded)
}

async fn client_lock(context: &Context, repo: &RepoName, job: &Job) -> Result<lock::Lock> {
    let note = format!("another process is downloading {}: waiting for it", job.fetch.label);
    wait_for(&*context.progress, &note, || lock::try_client_lock(&context.layout, repo, &job.fetch.id)).await
}

/// Whether nothing is to be done any more: the client may have fetched the blob while we waited for its lock.
fn is_there(layout: &Layout, repo: &RepoName, job: &Job) -> bool {
    let fits = |meta: fs::Metadata| meta.is_file() && meta.len() == job.fetch.size;
    !job.replace && fs::metadata(layout.blob(repo, &job.fetch.id)).is_ok_and(fits)
}

/// Renames a verified file to its blob's name: whatever stands there, a link included, is replaced, never followed.
fn put_in_place(layout: &Layout, file: &Path, repo: &RepoName, blob: &BlobId) -> Result<()> {
    let target = layout.blob(repo, blob);
    let mut moved = fs::rename(file, &target);
    if moved.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
        ensure_dir(layout.root(), &layout.blobs(repo))?;
        moved = fs::rename(file, &target);
    }
    match moved {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
            // blobs/ is a mount of its own: copy beside the target under a name that the client ignores.
            let beside = layout.blobs(repo).join(format!(".{blob}.{:08x}.new", rand::random::<u32>()));
            let copied = fs::copy(file, &beside).and_then(|_| fs::File::open(&beside)?.sync_all());
            let moved =
                copied.and_then(|()| fs::rename(&beside, &target)).inspect_err(|_| drop(fs::remove_file(&beside)));
            let _ = fs::remove_file(file);
            moved.map_err(|e| Error::io("cannot move a blob to", &target, &e))
        }
        Err(error) => {
            let _ = fs::remove_file(file);
            Err(Error::io("cannot move a blob to", &target, &error))
        }
    }
}

/// Gives another repo the blob that the first one has: a reflink, else a hard link, else a copy.
fn share(layout: &Layout, from: &RepoName, to: &RepoName, blob: &BlobId) -> Result<()> {
    let staging = place::Staging::new(layout)?;
    let staged = staging.path().join("blob");
    let source = layout.blob(from, blob);
    let made = fs::canonicalize(&source).and_then(|source| {
        reflink_copy::reflink(&source, &staged)
            .or_else(|_| fs::hard_link(&source, &staged))
            .or_else(|_| fs::copy(&source, &staged).map(drop))
    });
    made.map_err(|e| Error::io("cannot share", &source, &e))?;
    put_in_place(layout, &staged, to, blob)
}

fn assemble(
    layout: &Layout,
    plan: &Plan,
    kind: LinkKind,
    lost: &HashSet<BlobId>,
    sync: bool,
    now: SystemTime,
) -> Result<()> {
    let manifest = &plan.manifest;
    let (repo, commit) = (&manifest.repo, &manifest.revision);
    // The tree first: it proves that a snapshot without all its files is not complete.
    if plan.write_tree
        && let Some(tree) = &manifest.tree
    {
        place::write_small(layout, &layout.tree(repo, commit), &tree.to_json())?;
    }
    let links: Vec<_> =
        plan.link.iter().filter(|link| !lost.contains(&link.blob)).map(|link| (&link.path, &link.blob)).collect();
    if !links.is_empty() {
        SnapshotWriter { layout, repo, commit, kind }.write(&links)?;
    }
    let complete = !manifest.files.iter().any(|file| lost.contains(&file.blob));
    if complete && let Some(name) = &plan.write_ref {
        if sync {
            place::sync_dir(&layout.blobs(repo));
            place::sync_dir(&layout.repo(repo).join("snapshots"));
        }
        place::write_ref(layout, repo, name, commit)?;
    }
    plan.used.iter().for_each(|path| place::mark_used(path, now));
    Ok(())
}
