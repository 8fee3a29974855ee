//! Carrying out a push: blobs, then each manifest whose blobs are all there, then its refs.

use std::collections::{BTreeMap, HashSet};

use bytes::Bytes;
use futures_util::{StreamExt, stream};

use super::Report;
use super::plan::{ManifestAction, Plan, RefAction, RevisionAction, Skip, SkipReason, unite};
use super::state;
use crate::cache::lock;
use crate::commands::wait_for;
use crate::error::{Error, Kind, Result};
use crate::ids::BlobId;
use crate::progress::{Event, Job};
use crate::remote::client::Condition;
use crate::remote::error::Cause;
use crate::remote::transfer::upload::{SINGLE_PUT, Upload, requests, upload};
use crate::remote::transfer::{Context, pool};
use crate::remote::{keys, lookup};

/// How often a manifest is written again because another machine wrote it at the same time.
const MANIFEST_TRIES: u32 = 6;
/// Revisions published at once.
const AT_ONCE: usize = 16;

/// Executes the plan and completes the report.
pub async fn publish(context: &Context, plan: &Plan, report: &mut Report) {
    let lost = send_blobs(context, plan, report).await;
    context.progress.event(Event::Step("writing manifests and refs"));
    let mut published = stream::iter(&plan.revisions)
        .map(|revision| publish_revision(context, revision, &lost))
        .buffer_unordered(AT_ONCE);
    while let Some(done) = published.next().await {
        report.manifests += done.manifests;
        report.refs += done.refs;
        report.skipped.extend(done.skipped);
        report.failures.extend(done.failures);
    }
}

/// Sends all blobs; returns those that are not in the bucket after that.
async fn send_blobs(context: &Context, plan: &Plan, report: &mut Report) -> HashSet<(BlobId, u64)> {
    let mut repos = BTreeMap::new();
    let jobs = plan.uploads.iter().map(|upload| {
        let next = repos.len();
        Job { blob: upload.blob, size: upload.size, repo: *repos.entry(&upload.repo).or_insert(next) }
    });
    context.progress.event(Event::Planned(jobs.collect()));
    let uploads = plan.uploads.iter().map(|action| Upload {
        id: action.blob,
        size: action.size,
        source: action.source.clone(),
        label: format!("{}/{}", action.repo, action.path),
    });
    let mut lost = HashSet::new();
    pool::run(
        uploads.collect(),
        &context.limits,
        |blob: &Upload| requests(blob.size),
        |blob| {
            let context = context.clone();
            async move {
                let sent = send(&context, &blob).await;
                (blob, sent)
            }
        },
        |(blob, sent)| {
            context.progress.event(Event::Finished { blob: blob.id });
            match sent {
                Ok(()) => report.uploaded.add(context.moved(&blob.id, blob.size)),
                Err(error) => {
                    lost.insert((blob.id, blob.size));
                    report.failures.push(error);
                }
            }
        },
    )
    .await;
    lost
}

/// Sends a blob. A large one only while no other push from this cache does, for whose end it waits.
async fn send(context: &Context, blob: &Upload) -> Result<()> {
    if blob.size <= SINGLE_PUT {
        return upload(context, blob).await;
    }
    let attempt = || lock::try_upload_lock(&context.layout, &blob.id);
    let mut sent_by_other = false;
    let _lock = match attempt() {
        // A cache that cannot be written to has no record of an upload either, which two could share.
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
    let _ = std::fs::remove_file(context.layout.upload(&blob.id).with_extension("lock"));
    sent
}

#[derive(Default)]
struct Published {
    manifests: usize,
    refs: usize,
    skipped: Option<Skip>,
    failures: Vec<Error>,
}

async fn publish_revision(context: &Context, revision: &RevisionAction, lost: &HashSet<(BlobId, u64)>) -> Published {
    let mut done = Published::default();
    let missing = revision.ours.files.iter().filter(|file| lost.contains(&(file.blob, file.size))).count();
    if missing > 0 {
        done.skipped = Some(Skip {
            repo: revision.repo.clone(),
            revision: Some(revision.commit.clone()),
            reason: SkipReason::Withheld { files: missing },
        });
        return done;
    }
    if revision.manifest != ManifestAction::Keep {
        match write_manifest(context, revision).await {
            Ok(()) => done.manifests += 1,
            Err(error) => {
                done.failures.push(error);
                return done;
            }
        }
    }
    for reference in &revision.refs {
        match write_ref(context, revision, reference).await {
            Ok(written) => done.refs += usize::from(written),
            Err(error) => done.failures.push(error),
        }
    }
    done
}

/// Writes a ref, unless its key is one that another repo may use too and has taken since the listing.
async fn write_ref(context: &Context, revision: &RevisionAction, reference: &RefAction) -> Result<bool> {
    let (repo, key) = (&revision.repo, &reference.key);
    if keys::is_shared_ref(repo, key) {
        let stored = state::read_ref(&context.bucket, key, repo).await?;
        if stored.commit.is_some() && stored.owner.as_ref() != Some(repo) {
            return Ok(false);
        }
    }
    let content = Bytes::copy_from_slice(revision.commit.as_str().as_bytes());
    let written = context.bucket.put_small(key, content).await;
    let doing = format!("cannot write ref {} of {repo}@{}", reference.name, revision.commit.short());
    written.map(|()| true).map_err(|failure| context.bucket.explain(failure, &doing))
}

/// Reads, unites, writes and reads back, until the bucket's manifest has all of ours: another machine may be
/// writing the same one. The write is conditional on what was read, so that a store with real conditions loses nothing;
/// on others, reading back finds that our own files are gone.
async fn write_manifest(context: &Context, revision: &RevisionAction) -> Result<()> {
    let ours = &revision.ours;
    let bucket = &context.bucket;
    let key = keys::manifest(&ours.repo.id, &ours.revision);
    let doing = format!("cannot write the manifest of {}@{}", ours.repo, ours.revision.short());
    for _ in 0..MANIFEST_TRIES {
        let (wanted, condition) = match lookup::read_manifest_and_etag(bucket, &key).await {
            Ok(None) => (ours.clone(), Some(Condition::Absent)),
            Ok(Some((stored, etag))) => {
                let united = unite(&stored, ours)?;
                if united == stored {
                    return Ok(());
                }
                (united, etag.map(Condition::Unchanged))
            }
            // What is not valid is replaced, whatever it is.
            Err(error) if error.kind == Kind::Integrity => (ours.clone(), None),
            Err(error) => return Err(error),
        };
        let bytes = wanted.to_json().into();
        let written = match &condition {
            Some(condition) => bucket.put_small_if(&key, bytes, condition).await,
            None => bucket.put_small(&key, bytes).await,
        };
        match written {
            Ok(()) => {}
            Err(failure) if failure.cause == Cause::Changed => continue,
            Err(failure) => return Err(bucket.explain(failure, &doing)),
        }
        if let Some(stored) = lookup::if_valid(lookup::read_manifest(bucket, &key).await)?
            && unite(&stored, ours)? == stored
        {
            return Ok(());
        }
    }
    Err(Error::new(Kind::Unavailable, doing)
        .because("other machines keep writing it, or the store does not show what was written")
        .hint("run push again: its blobs are in the bucket"))
}
