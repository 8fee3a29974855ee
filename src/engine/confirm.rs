//! Does the bucket really have what was sent to it? A store, or something in front of it, may answer 200 and keep
//! nothing, less, or put it elsewhere; and what was there at the first listing may be gone when it is published.
//!
//! One listing tells, or HEADs where they are fewer. A listing may lag behind what a store has, so that a HEAD decides
//! about what it lacks.

use std::time::Duration;

use futures_util::{StreamExt, stream};

use crate::bucket::client::Bucket;
use crate::bucket::error::Failure;
use crate::bucket::keys;
use crate::bucket::state::{RemoteState, Scope};
use crate::error::{Cause, Error, Result};
use crate::transfer::upload::Upload;

/// Objects on a page of a listing.
const PAGE: usize = 1000;
/// HEADs at once.
const AT_ONCE: usize = 32;
/// How long a store gets, time after time, to show what it has taken twice.
pub const PATIENCE: [Duration; 3] = [Duration::ZERO, Duration::from_millis(300), Duration::from_secs(1)];

/// A blob that the bucket does not have as it should.
pub struct Lacking {
    /// Which.
    pub blob: Upload,
    /// What is there instead.
    pub instead: Instead,
}

/// What a bucket has under the name of a blob that is not there as it should be.
pub enum Instead {
    /// Nothing.
    Nothing,
    /// So many bytes, which are not as many as they should be.
    Size(u64),
    /// It does not tell.
    Untold(Failure),
}

/// Whether a listing of about `listed` objects takes fewer requests than looking at so many of them one by one.
pub fn prefers_listing(looks: usize, listed: usize) -> bool {
    looks > listed.div_ceil(PAGE)
}

/// Those of the blobs that the bucket does not have with their sizes. `listed` is about how many objects a listing has.
///
/// # Errors
/// When the listing fails.
pub async fn lacking(bucket: &Bucket, blobs: Vec<Upload>, listed: usize) -> Result<Vec<Lacking>> {
    let suspects = match prefers_listing(blobs.len(), listed) {
        false => blobs,
        true => {
            let doing = || format!("cannot check what bucket '{}' has", bucket.name());
            let listed = RemoteState::list(bucket, Scope::BLOBS).await;
            let state = listed.map_err(|failure| bucket.explain(failure, &doing()))?;
            blobs.into_iter().filter(|blob| !state.blobs().has(&blob.id, blob.size)).collect()
        }
    };
    let looks = stream::iter(suspects).map(async |blob| {
        let instead = look(bucket, &blob).await?;
        Some(Lacking { blob, instead })
    });
    Ok(looks.buffer_unordered(AT_ONCE).filter_map(std::future::ready).collect().await)
}

/// Those that were sent a second time and are still not there, each with its error.
pub async fn still_lacking(bucket: &Bucket, blobs: Vec<Upload>) -> Vec<(Upload, Error)> {
    let looks = stream::iter(blobs).map(async |blob| {
        let mut last = None;
        for pause in PATIENCE {
            tokio::time::sleep(pause).await;
            last = Some(look(bucket, &blob).await?);
        }
        let error = explain(bucket, &blob, last?);
        Some((blob, error))
    });
    looks.buffer_unordered(AT_ONCE).filter_map(std::future::ready).collect().await
}

/// What is wrong about the blob; nothing when it is there with its size.
async fn look(bucket: &Bucket, blob: &Upload) -> Option<Instead> {
    match bucket.head(&keys::blob(&blob.id)).await {
        Ok(Some(size)) if size == blob.size => None,
        Ok(Some(size)) => Some(Instead::Size(size)),
        Ok(None) => Some(Instead::Nothing),
        Err(failure) => Some(Instead::Untold(failure)),
    }
}

/// The error for a blob that the store has taken and does not have.
pub fn explain(bucket: &Bucket, blob: &Upload, instead: Instead) -> Error {
    let what = format!("blob {} ({}) is not in the bucket as it was sent", blob.id, blob.label);
    let why = match instead {
        Instead::Untold(failure) if failure.cause.is_transient() => {
            return bucket.explain(failure, &format!("cannot tell whether blob {} ({}) arrived", blob.id, blob.label));
        }
        Instead::Size(size) => format!("the store took {} bytes without an error and has {size}", blob.size),
        Instead::Nothing | Instead::Untold(_) => "the store took it without an error and does not have it".into(),
    };
    Error::new(Cause::NotKept, what)
        .because(why)
        .hint("check the store, its lifecycle rules and what is between it and here; nothing that needs this blob is published")
}
