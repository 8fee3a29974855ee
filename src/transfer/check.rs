//! Reading a blob of the bucket to hash it, without keeping it anywhere.

use super::Context;
use super::download::fetch_range;
use super::parts::SINGLE_GET;
use super::source::{Fetch, Source};
use crate::error::{Cause, Error, Result};
use crate::hash::BlobHasher;
use crate::model::ids::BlobId;
use crate::progress::{Event, Meter};
use crate::retry::Try;

/// Returns the name of the bytes that the source has. Wrong ones are read again, since they may have been damaged on
/// the way: only the same ones twice are believed.
///
/// # Errors
/// [`Cause::NoSuchKey`] or [`Cause::WrongSize`] if the blob is not there like that, [`Cause::Damaged`] if other bytes
/// come each time, and if a request fails.
pub async fn hash(context: &Context, blob: &Fetch) -> Result<BlobId> {
    context.progress.event(Event::Started { blob: blob.id, name: blob.label(), size: blob.size });
    let hashed = hash_until_sure(context, blob).await;
    context.progress.event(Event::Finished { blob: blob.id });
    if let Source::Bucket(bucket) = &blob.source {
        context.limits.report_push_backs(bucket.counts().1);
    }
    hashed
}

async fn hash_until_sure(context: &Context, blob: &Fetch) -> Result<BlobId> {
    let mut before = None;
    for _ in 0..Try::Blob.max_attempts(Cause::Damaged) {
        let found = hash_once(context, blob).await?;
        if found == blob.id || before == Some(found) {
            return Ok(found);
        }
        tracing::debug!(blob = %blob.id, %found, "wrong bytes arrived");
        before = Some(found);
    }
    Err(blob.source.damaged(blob))
}

async fn hash_once(context: &Context, blob: &Fetch) -> Result<BlobId> {
    let limiter = if blob.size <= SINGLE_GET { &context.limits.objects } else { &context.limits.parts };
    let mut permit = limiter.permit(blob.size).await;
    let mut meter = Meter::new(&context.progress, blob.id);
    let mut hasher = BlobHasher::like(&blob.id, blob.size);
    if blob.size > 0 {
        fetch_range(context, blob, 0..blob.size, |chunk, _| {
            hasher.update(chunk);
            meter.add(chunk.len() as u64);
            Ok(())
        })
        .await?;
    }
    permit.count(blob.size);
    let found = hasher.finish();
    if found == blob.id {
        meter.keep();
    }
    Ok(found)
}

/// Returns whether an error says that the blob is not there, or not with its size, rather than that it could not be
/// read.
pub fn is_about_the_blob(error: &Error) -> bool {
    matches!(error.cause, Cause::NoSuchKey | Cause::WrongSize)
}
