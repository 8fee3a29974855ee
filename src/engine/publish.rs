//! Executes the plan of a push: blobs, then each manifest whose blobs are all in the bucket, then its refs.

use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::{StreamExt, stream};

use super::announce::Announcement;
use super::confirm::{self, BlobStatus, Unconfirmed};
use crate::bucket::client::{Bucket, Condition};
use crate::bucket::keys;
use crate::bucket::read::{self, Stored};
use crate::bucket::state::{RemoteState, Scope};
use crate::cache::lock;
use crate::engine::session::wait_for;
use crate::error::{Cause, Error, Result};
use crate::model::amount::Amount;
use crate::model::ids::{BlobId, Commit, RepoName};
use crate::plan::push::{ManifestAction, Plan, RefAction, RevisionAction, Skip, UploadAction, unite};
use crate::progress::{Event, Job};
use crate::transfer::parts::SINGLE_PUT;
use crate::transfer::upload::{Upload, upload};
use crate::transfer::{Context, pool};

/// Maximum number of attempts to write a manifest that other machines write at the same time.
const MANIFEST_ATTEMPTS: u32 = 6;
/// Maximum number of revisions that are published concurrently.
const CONCURRENCY: usize = 16;
/// Maximum number of times that the blobs are confirmed, if uploading missing ones again takes long.
const ROUNDS: u32 = 3;

/// The approximate number of objects in the bucket's listings.
#[derive(Debug, Clone, Copy)]
pub struct ListingSizes {
    /// Blobs.
    pub blobs: usize,
    /// Refs.
    pub refs: usize,
}

/// A blob, by its name and size.
type Key = (BlobId, u64);

/// The outcome of a plan.
#[derive(Debug, Default)]
pub struct Tally {
    /// Blobs uploaded by this run.
    pub uploaded: Amount,
    /// Blobs that were already in the bucket.
    pub present: Amount,
    /// Manifests written.
    pub manifests: usize,
    /// Refs written.
    pub refs: usize,
    /// Revisions that were withheld.
    pub skipped: Vec<Skip>,
    /// Revisions whose manifests could not be written.
    pub unpublished: HashSet<(RepoName, Commit)>,
    /// Failures.
    pub failures: Vec<Error>,
    /// Blobs that were removed from the cache before they were uploaded.
    pub vanished: Vec<Upload>,
}

impl Tally {
    /// Records why a blob was not uploaded. One that is no longer in the cache is not a failure.
    fn record_lost(&mut self, blob: &Upload, error: Error) {
        match error.cause {
            Cause::Vanished => self.vanished.push(blob.clone()),
            _ => self.failures.push(error),
        }
    }
}

/// Executes the plan.
pub async fn publish(context: &Context, plan: &Plan, listed: ListingSizes) -> Tally {
    let mut tally = Tally { present: plan.present, ..Tally::default() };
    let (lost, announcement) = send_blobs(context, plan, listed, &mut tally).await;
    context.progress.event(Event::Step("writing manifests and refs"));
    let published = stream::iter(&plan.revisions)
        .map(|revision| publish_revision(context, revision, &lost, announcement.as_ref()))
        .buffer_unordered(CONCURRENCY)
        .collect::<Vec<_>>();
    let published = match &announcement {
        Some(announcement) => announcement.keep_during(&context.bucket, published).await,
        None => published.await,
    };
    let mut refs = Vec::new();
    for done in published {
        tally.manifests += done.manifests;
        refs.extend(done.refs);
        tally.skipped.extend(done.skipped);
        tally.unpublished.extend(done.unpublished);
        tally.failures.extend(done.failures);
    }
    // A write without an answer may still arrive: then the notice stays until it expires.
    let is_answered = !tally.failures.iter().any(|failure| failure.cause.is_transient());
    let end = async {
        if let Some(announcement) = announcement.filter(|_| is_answered) {
            announcement.end(&context.bucket).await;
        }
    };
    let (checked, ()) = tokio::join!(check_refs(context, refs, listed.refs), end);
    for checked in checked {
        match checked {
            Ok(()) => tally.refs += 1,
            Err(error) => tally.failures.push(error),
        }
    }
    tally
}

/// Uploads all blobs, and confirms that the bucket has them and all others that the plan relies on. Returns the blobs that
/// are not in the bucket afterwards. No deletion removes the others while the announcement counts.
async fn send_blobs(
    context: &Context,
    plan: &Plan,
    listed: ListingSizes,
    tally: &mut Tally,
) -> (HashSet<Key>, Option<Announcement>) {
    let mut repos = BTreeMap::new();
    let jobs = plan.uploads.iter().map(|upload| {
        let next = repos.len();
        Job { blob: upload.blob, size: upload.size, repo: *repos.entry(&upload.repo).or_insert(next) }
    });
    context.progress.event(Event::Planned(jobs.collect()));
    let mut lost = HashSet::new();
    let mut sent = HashSet::new();
    for (blob, failure) in send_all(context, plan.uploads.iter().map(to_upload).collect()).await {
        match failure {
            None => {
                tally.uploaded.add(context.moved_bytes(&blob.id, blob.size));
                sent.insert((blob.id, blob.size));
            }
            Some(error) => {
                lost.insert((blob.id, blob.size));
                tally.record_lost(&blob, error);
            }
        }
    }
    let relied_on = plan.uploads.iter().filter(|action| sent.contains(&(action.blob, action.size)));
    let relied_on: Vec<Upload> = relied_on.chain(&plan.relied_on).map(to_upload).collect();
    let announced: Vec<&RevisionAction> =
        plan.revisions.iter().filter(|revision| revision.publishes() && revision.withheld(&lost).is_none()).collect();
    let announcement = match settle(context, &announced, &relied_on, listed.blobs, tally, &sent, &mut lost).await {
        Ok(announcement) => announcement,
        Err(error) => {
            tally.failures.push(error);
            lost.extend(relied_on.iter().map(|blob| (blob.id, blob.size)));
            None
        }
    };
    (lost, announcement)
}

/// Announces what is about to be published, and confirms that the bucket has the blobs that it relies on. Any of them may
/// have been deleted since the listing; none is deleted afterwards.
async fn settle(
    context: &Context,
    announced: &[&RevisionAction],
    relied_on: &[Upload],
    listed: usize,
    tally: &mut Tally,
    sent: &HashSet<Key>,
    lost: &mut HashSet<Key>,
) -> Result<Option<Announcement>> {
    let bucket = &context.bucket;
    let mut announcement = match announced {
        [] => None,
        _ => Some(Announcement::make(bucket, announced).await?),
    };
    for round in 1..=ROUNDS {
        if let Some(announcement) = &mut announcement {
            if round > 1 {
                announcement.renew(bucket).await?;
            }
            announcement.wait_for_others(bucket, &*context.progress).await?;
        }
        let blobs: Vec<Upload> =
            relied_on.iter().filter(|blob| !lost.contains(&(blob.id, blob.size))).cloned().collect();
        if !blobs.is_empty() {
            context.progress.event(Event::Step("checking what arrived"));
            let confirm = async {
                let unconfirmed = confirm::find_unconfirmed(bucket, blobs, listed + sent.len()).await?;
                Ok(send_again(context, unconfirmed, tally, sent).await)
            };
            let gone = match &announcement {
                Some(announcement) => announcement.keep_during(bucket, confirm).await?,
                None => confirm.await?,
            };
            lost.extend(gone);
        }
        // Uploading again may have taken longer than the announcement counts.
        if announcement.as_ref().is_none_or(Announcement::is_fresh) {
            break;
        }
    }
    Ok(announcement)
}

/// Uploads unconfirmed blobs once more. Returns the blobs that are not in the bucket afterwards.
async fn send_again(
    context: &Context,
    unconfirmed: Vec<Unconfirmed>,
    tally: &mut Tally,
    sent: &HashSet<Key>,
) -> Vec<Key> {
    if unconfirmed.is_empty() {
        return Vec::new();
    }
    let mut gone = Vec::new();
    let mut again = Vec::new();
    for Unconfirmed { blob, status } in unconfirmed {
        match status {
            // After another upload, it would still be unknown whether the blob is there.
            BlobStatus::Unknown(failure) if failure.cause.is_transient() => {
                gone.push((blob.id, blob.size));
                tally.failures.push(confirm::explain(&context.bucket, &blob, BlobStatus::Unknown(failure)));
            }
            _ => again.push(blob),
        }
    }
    let number = again.len();
    if number > 0 {
        let blobs = if number == 1 { "1 blob is".into() } else { format!("{number} blobs are") };
        let note = format!("{blobs} not in the bucket as they were sent or listed before: sending once more");
        context.progress.event(Event::Note(if number == 1 { note.replace("they were", "it was") } else { note }));
    }
    for blob in again.iter().filter(|blob| sent.contains(&(blob.id, blob.size))) {
        context.report_restarted(blob.id);
    }
    let mut unsure = Vec::new();
    for (blob, failure) in send_all(context, again).await {
        match failure {
            None => unsure.push(blob),
            Some(error) => {
                gone.push((blob.id, blob.size));
                tally.record_lost(&blob, error);
            }
        }
    }
    let mut arrived: HashSet<Key> = unsure.iter().map(|blob| (blob.id, blob.size)).collect();
    for (blob, error) in confirm::find_lost(&context.bucket, unsure).await {
        arrived.remove(&(blob.id, blob.size));
        gone.push((blob.id, blob.size));
        tally.failures.push(error);
    }
    // Blobs that the first listing had shown count as uploaded now, and lost blobs as neither.
    for (id, size) in &arrived {
        if !sent.contains(&(*id, *size)) {
            tally.present.take(*size);
            tally.uploaded.add(*size);
        }
    }
    gone.iter().filter(|key| sent.contains(key)).for_each(|(_, size)| tally.uploaded.take(*size));
    gone.iter().filter(|key| !sent.contains(key)).for_each(|(_, size)| tally.present.take(*size));
    gone
}

fn to_upload(action: &UploadAction) -> Upload {
    Upload {
        id: action.blob,
        size: action.size,
        source: action.source.clone(),
        label: format!("{}/{}", action.repo, action.path),
    }
}

/// Uploads blobs. Returns each with its failure, if any.
pub(super) async fn send_all(context: &Context, blobs: Vec<Upload>) -> Vec<(Upload, Option<Error>)> {
    let mut done = Vec::with_capacity(blobs.len());
    let context = &context.moving(blobs.iter().map(|blob| blob.size).sum());
    pool::run(
        blobs,
        &context.limits,
        |blob: &Upload| context.cut().puts(blob.size, context.max_parts),
        |blob| {
            let context = context.clone();
            async move {
                let sent = send(&context, &blob).await;
                (blob, sent)
            }
        },
        |(blob, sent)| {
            context.progress.event(Event::Finished { blob: blob.id });
            done.push((blob, sent.err()));
        },
    )
    .await;
    done
}

/// Uploads a blob. For a large one, waits until no other push from this cache is uploading it.
async fn send(context: &Context, blob: &Upload) -> Result<()> {
    if blob.size <= SINGLE_PUT {
        return upload(context, blob).await;
    }
    let attempt = || lock::try_upload_lock(&context.layout, &blob.id);
    let mut sent_by_other = false;
    let _lock = match attempt() {
        // A read-only cache has no record of the upload that two pushes could share.
        Err(_) => return upload(context, blob).await,
        Ok(Some(lock)) => lock,
        Ok(None) => {
            let note = format!("another hf-cache-sync is pushing {}: waiting for it", blob.label);
            let lock = wait_for(&*context.progress, &note, attempt).await?;
            let there = context.bucket.head(&keys::blob(&blob.id)).await;
            sent_by_other = there.is_ok_and(|size| size == Some(blob.size));
            lock
        }
    };
    let sent = if sent_by_other { Ok(()) } else { upload(context, blob).await };
    let record = context.layout.upload(&blob.id);
    let _ = crate::cache::inside::remove_file(context.layout.root(), &record.with_extension("lock"));
    sent
}

#[derive(Default)]
struct Published<'a> {
    manifests: usize,
    refs: Vec<(&'a RevisionAction, &'a RefAction)>,
    skipped: Option<Skip>,
    /// The revision, until its manifest is there.
    unpublished: Option<(RepoName, Commit)>,
    failures: Vec<Error>,
}

async fn publish_revision<'a>(
    context: &Context,
    revision: &'a RevisionAction,
    lost: &HashSet<Key>,
    announcement: Option<&Announcement>,
) -> Published<'a> {
    let mut done = Published { skipped: revision.withheld(lost), ..Published::default() };
    if done.skipped.is_some() || !revision.publishes() {
        return done;
    }
    done.unpublished = Some((revision.repo.clone(), revision.commit.clone()));
    match announcement {
        Some(announcement) if announcement.is_valid() => {}
        // Why there is none was said.
        None => return done,
        Some(_) => {
            let what = format!("{}@{} was not published", revision.repo, revision.commit.short());
            done.failures.push(
                Error::new(Cause::Changed, what)
                    .because("it took so long that other machines may have deleted what it needs")
                    .hint("run push again: what was uploaded is kept"),
            );
            return done;
        }
    }
    // A manifest that is to be kept may have been removed since it was listed, and a ref may not lead nowhere.
    match write_manifest(context, revision).await {
        Ok(written) => done.manifests += usize::from(written),
        Err(error) => {
            done.failures.push(error);
            return done;
        }
    }
    done.unpublished = None;
    for reference in &revision.refs {
        match write_ref(context, revision, reference).await {
            Ok(true) => done.refs.push((revision, reference)),
            Ok(false) => {}
            Err(error) => done.failures.push(error),
        }
    }
    done
}

/// Writes a ref. Returns `false` if another repo has taken its key since the listing.
async fn write_ref(context: &Context, revision: &RevisionAction, reference: &RefAction) -> Result<bool> {
    let (repo, key) = (&revision.repo, &reference.key);
    if keys::is_shared_ref(repo, key) && is_taken(&context.bucket, key, repo).await? {
        return Ok(false);
    }
    put_ref(context, revision, reference).await.map(|()| true)
}

/// Returns whether a key that several repos may use leads to a manifest of another repo.
async fn is_taken(bucket: &Bucket, key: &str, repo: &RepoName) -> Result<bool> {
    let Some(commit) = read::reference(bucket, key).await?.valid() else { return Ok(false) };
    let manifest = read::manifest(bucket, &keys::manifest(&repo.id, &commit)).await?.valid();
    Ok(manifest.is_none_or(|manifest| manifest.repo() != repo))
}

async fn put_ref(context: &Context, revision: &RevisionAction, reference: &RefAction) -> Result<()> {
    let content = Bytes::copy_from_slice(revision.commit.as_str().as_bytes());
    let written = context.bucket.put_small(&reference.key, content).await;
    let doing = format!("cannot write ref {} of {}@{}", reference.name, revision.repo, revision.commit.short());
    written.map_err(|failure| context.bucket.explain(failure, &doing))
}

/// Checks that the bucket has the refs that were written: by one listing if there are many, and by reading those that the
/// listing does not prove.
async fn check_refs(context: &Context, refs: Vec<(&RevisionAction, &RefAction)>, listed: usize) -> Vec<Result<()>> {
    let bucket = &context.bucket;
    let there = match confirm::prefers_listing(refs.len(), listed + refs.len()) {
        // Without the listing, each ref is read.
        true => RemoteState::list(bucket, Scope::REFS).await.unwrap_or_default(),
        false => RemoteState::default(),
    };
    let checks =
        stream::iter(refs).map(async |(revision, reference)| match there.prove_ref(&reference.key, &revision.commit) {
            true => Ok(()),
            false => check_ref(context, revision, reference).await,
        });
    checks.buffer_unordered(CONCURRENCY).collect().await
}

/// Reads a ref back. If it still has its old value, it is written once more. A value other than ours that was written
/// meanwhile is fine: another machine has moved the ref.
async fn check_ref(context: &Context, revision: &RevisionAction, reference: &RefAction) -> Result<()> {
    for (time, pause) in [Duration::ZERO].into_iter().chain(confirm::CHECK_PAUSES).enumerate() {
        if time == 1 {
            put_ref(context, revision, reference).await?;
        }
        tokio::time::sleep(pause).await;
        let Some((stored, modified)) = read::reference_and_time(&context.bucket, &reference.key).await?.valid() else {
            continue;
        };
        let is_later = modified.is_some() && seconds(modified) > seconds(reference.modified);
        if stored == revision.commit || Some(&stored) != reference.before.as_ref() || is_later {
            return Ok(());
        }
    }
    let what = format!("ref {} of {}@{} was not written", reference.name, revision.repo, revision.commit.short());
    Err(Error::new(Cause::NotKept, what)
        .because(format!("the store took the key {} twice without an error and does not have it", reference.key))
        .hint("check the store and any proxy in between, then run push again"))
}

/// Returns a time in whole seconds, since headers have no more than that.
fn seconds(time: Option<SystemTime>) -> Option<u64> {
    Some(time?.duration_since(SystemTime::UNIX_EPOCH).ok()?.as_secs())
}

/// Merges our manifest into the bucket's: reads, merges, writes and reads back until it has all of our files, since another
/// machine may be writing it, too. The write is conditional on the version that was read, so that nothing is lost on stores
/// that honour conditions; on others, reading back reveals that our files are gone. If the store accepts a write and does
/// not change its content, it is repeated only once. Returns whether it
/// had to be written.
async fn write_manifest(context: &Context, revision: &RevisionAction) -> Result<bool> {
    let ours = &*revision.ours;
    let bucket = &context.bucket;
    let key = keys::manifest(&ours.repo().id, ours.revision());
    let doing = format!("cannot write the manifest of {}@{}", ours.repo(), ours.revision().short());
    let mut swallowed = 0;
    let mut has_written = false;
    for _ in 0..MANIFEST_ATTEMPTS {
        let (before, wanted, condition) = match read::manifest_and_etag(bucket, &key).await? {
            Stored::Absent => (None, ours.clone(), Some(Condition::Absent)),
            Stored::Valid((stored, etag)) => {
                let united = unite(&stored, ours, &revision.twins)?;
                if united == stored {
                    return Ok(has_written || revision.manifest != ManifestAction::Keep);
                }
                (Some(stored), united, etag.map(Condition::Unchanged))
            }
            // An invalid manifest is replaced.
            Stored::Invalid(_) => (None, ours.clone(), None),
        };
        if swallowed == 2 {
            break;
        }
        let bytes = wanted.to_json().into();
        let written = match &condition {
            Some(condition) => bucket.put_small_if(&key, bytes, condition).await,
            None => bucket.put_small(&key, bytes).await,
        };
        match written {
            Ok(()) => has_written = true,
            Err(failure) if failure.cause == Cause::Changed => continue,
            Err(failure) => return Err(bucket.explain(failure, &doing)),
        }
        let stored = read::manifest(bucket, &key).await?.valid();
        if let Some(stored) = &stored
            && unite(stored, ours, &revision.twins)? == *stored
        {
            return Ok(true);
        }
        if stored == before {
            tokio::time::sleep(confirm::CHECK_PAUSES[swallowed + 1]).await;
            swallowed += 1;
        }
    }
    if swallowed > 0 {
        let what = format!("the manifest of {}@{} was not written", ours.repo(), ours.revision().short());
        return Err(Error::new(Cause::NotKept, what)
            .because(format!("the store took the key {key} twice without an error and does not have it"))
            .hint("check the store and any proxy in between, then run push again: no ref names this revision"));
    }
    Err(Error::new(Cause::Changed, doing)
        .because("other machines keep writing it, or the store does not show what was written")
        .hint("run push again: its blobs are in the bucket"))
}
