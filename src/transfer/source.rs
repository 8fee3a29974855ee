//! Where blobs are downloaded from: the bucket, or the Hub. How they are read, and what is said when that fails.

use bytes::Bytes;

use super::Context;
use super::download::Fetch;
use crate::bucket::client::Download;
use crate::bucket::error::{Cause, Failure};
use crate::error::{Error, Result};
use crate::model::ids::BlobId;
use crate::{bucket::keys, hub};

/// Parts that one request to the Hub reads: it counts requests, and each takes another one before it.
const HUB_PARTS: usize = 16;

/// The bytes of a blob, or of a range of it.
pub(super) enum Body {
    Bucket(Download),
    Hub(hub::Body),
}

impl Body {
    /// The next piece of the body; `None` at its end.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        match self {
            Body::Bucket(download) => download.next().await,
            Body::Hub(body) => body.next().await,
        }
    }

    /// Size of the whole object in bytes, when it is told.
    pub(super) fn object_size(&self) -> Option<u64> {
        match self {
            Body::Bucket(download) => download.object_size,
            Body::Hub(_) => None,
        }
    }

    /// What makes sure that later ranges are of the same object. A file of a commit cannot change.
    pub(super) fn take_etag(&mut self) -> Option<String> {
        match self {
            Body::Bucket(download) => download.etag.take(),
            Body::Hub(_) => None,
        }
    }
}

/// Parts that one request reads. With many requests in flight, small ones keep what is hashed close behind what comes.
pub(super) fn parts_at_once(context: &Context) -> usize {
    match context.limits.parts.streams() {
        _ if context.hub.is_some() => HUB_PARTS,
        0..=4 => 2,
        _ => 1,
    }
}

pub(super) async fn open(
    context: &Context,
    blob: &Fetch,
    range: Option<(u64, u64)>,
    etag: Option<&str>,
) -> Result<Body, Failure> {
    match &context.hub {
        Some(hub) => hub.open(&blob.repo, &blob.commit, &blob.path, range).await.map(Body::Hub),
        None => context.bucket.get(&keys::blob(&blob.id), range, etag).await.map(Body::Bucket),
    }
}

pub(super) fn explain(context: &Context, blob: &Fetch, failure: Failure) -> Error {
    if let Some(hub) = &context.hub {
        return hub.explain(failure, &format!("cannot get {} from the Hub", blob.label()));
    }
    let doing = format!("cannot pull blob {} ({})", blob.id, blob.label());
    if failure.cause == Cause::NoSuchKey {
        return Error::not_found(doing)
            .because("the manifest names it, but the bucket does not have it")
            .hint("push it again from a machine that has it");
    }
    context.bucket.explain(failure, &doing)
}

pub(super) fn wrong_hash(context: &Context, blob: &Fetch, found: &BlobId) -> Error {
    if context.hub.is_some() {
        return from_hub(blob, format!("they hash to {found}, not to {}", blob.id));
    }
    Error::integrity(format!("blob {} ({}) is corrupt in the bucket", blob.id, blob.label()))
        .because(format!("its bytes hash to {found}"))
        .hint(format!(
            "pull it once more, best on another machine; if it persists, delete the key {} and push it again from one that \
             has it",
            keys::blob(&blob.id)
        ))
}

pub(super) fn wrong_size(context: &Context, blob: &Fetch, found: u64) -> Error {
    if context.hub.is_some() {
        return from_hub(blob, format!("there are more than {} of them", blob.size));
    }
    Error::integrity(format!("blob {} ({}) has the wrong size in the bucket", blob.id, blob.label()))
        .because(format!("the manifest says {} bytes, the bucket has {found}", blob.size))
        .hint("push it again from a machine that has it: a wrong size is replaced")
}

/// The object ends before a range that the manifest says it has.
pub(super) fn too_short(context: &Context, blob: &Fetch) -> Error {
    if context.hub.is_some() {
        return from_hub(blob, format!("there are fewer than {} of them", blob.size));
    }
    Error::integrity(format!("blob {} ({}) has the wrong size in the bucket", blob.id, blob.label()))
        .because(format!("the manifest says {} bytes, the bucket has fewer", blob.size))
        .hint("push it again from a machine that has it: a wrong size is replaced")
}

fn from_hub(blob: &Fetch, why: String) -> Error {
    Error::integrity(format!("the bytes of {} from the Hub are not those that it names", blob.label())).because(why)
}
