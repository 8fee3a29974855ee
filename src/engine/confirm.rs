//! Confirms that the bucket has the blobs that were uploaded or relied on. A store, or a proxy in front of it, may answer
//! 200 and store nothing, or only part of the data; and a blob in the first listing may be gone by the time of publication.
//!
//! Uses one listing, or HEADs if they take fewer requests. Since a listing may lag behind, blobs that it does not show are
//! checked with a HEAD.

use std::time::Duration;

use futures_util::{StreamExt, stream};

use crate::bucket::client::Bucket;
use crate::bucket::keys;
use crate::bucket::state::RemoteState;
use crate::error::{Cause, Error, Failure, Result};
use crate::transfer::upload::Upload;

/// Objects per page of a listing.
const PAGE: usize = 1000;
/// Maximum number of concurrent HEADs.
const CONCURRENCY: usize = 32;
/// Pauses before each check for an object that was uploaded again.
pub const CHECK_PAUSES: [Duration; 3] = [Duration::ZERO, Duration::from_millis(300), Duration::from_secs(1)];

/// A blob that the bucket does not have in its full size.
pub struct Unconfirmed {
    /// The blob.
    pub blob: Upload,
    /// The result of the check.
    pub status: BlobStatus,
}

/// Why a blob is not confirmed.
pub enum BlobStatus {
    /// The bucket does not have it.
    Missing,
    /// The bucket has an object of this many bytes instead.
    WrongSize(u64),
    /// The check failed.
    Unknown(Failure),
}

/// Returns whether a listing of about `listed` objects takes fewer requests than this many individual checks.
pub fn prefers_listing(checks: usize, listed: usize) -> bool {
    checks > listed.div_ceil(PAGE)
}

/// Returns the blobs that the bucket does not have with their sizes. `listed` is the approximate number of objects in a
/// listing.
///
/// # Errors
/// If the listing fails.
pub async fn find_unconfirmed(bucket: &Bucket, blobs: Vec<Upload>, listed: usize) -> Result<Vec<Unconfirmed>> {
    let suspects = match prefers_listing(blobs.len(), listed) {
        false => blobs,
        true => {
            let doing = || format!("cannot check what bucket '{}' has", bucket.name());
            let listed = RemoteState::list_blobs(bucket, listed).await;
            let state = listed.map_err(|failure| bucket.explain(failure, &doing()))?;
            blobs.into_iter().filter(|blob| !state.blobs().has(&blob.id, blob.size)).collect()
        }
    };
    let checks = stream::iter(suspects).map(async |blob| {
        let status = check(bucket, &blob).await?;
        Some(Unconfirmed { blob, status })
    });
    Ok(checks.buffer_unordered(CONCURRENCY).filter_map(std::future::ready).collect().await)
}

/// Returns the blobs that are still missing after they were uploaded again, each with its error.
pub async fn find_lost(bucket: &Bucket, blobs: Vec<Upload>) -> Vec<(Upload, Error)> {
    let checks = stream::iter(blobs).map(async |blob| {
        let mut last = None;
        for pause in CHECK_PAUSES {
            tokio::time::sleep(pause).await;
            last = Some(check(bucket, &blob).await?);
        }
        let error = explain(bucket, &blob, last?);
        Some((blob, error))
    });
    checks.buffer_unordered(CONCURRENCY).filter_map(std::future::ready).collect().await
}

/// Checks a blob; `None` if the bucket has it with its size.
async fn check(bucket: &Bucket, blob: &Upload) -> Option<BlobStatus> {
    match bucket.head(&keys::blob(&blob.id)).await {
        Ok(Some(size)) if size == blob.size => None,
        Ok(Some(size)) => Some(BlobStatus::WrongSize(size)),
        Ok(None) => Some(BlobStatus::Missing),
        Err(failure) => Some(BlobStatus::Unknown(failure)),
    }
}

/// Returns the error for a blob that the store accepted but does not have.
pub fn explain(bucket: &Bucket, blob: &Upload, status: BlobStatus) -> Error {
    let what = format!("blob {} ({}) is not in the bucket as it was sent", blob.id, blob.label);
    let why = match status {
        BlobStatus::Unknown(failure) if failure.cause.is_transient() => {
            return bucket.explain(failure, &format!("cannot check whether blob {} ({}) arrived", blob.id, blob.label));
        }
        BlobStatus::WrongSize(size) => {
            format!("the store accepted {} bytes without an error, but has {size}", blob.size)
        }
        BlobStatus::Missing | BlobStatus::Unknown(_) => {
            "the store accepted it without an error, but does not have it".into()
        }
    };
    Error::new(Cause::NotKept, what).because(why).hint(
        "check the store, its lifecycle rules and any proxy in between; nothing that needs this blob is published",
    )
}
