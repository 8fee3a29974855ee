//! Where blobs come from: the bucket, or the Hub. How they are read, and what is said when that fails.

use bytes::Bytes;

use super::Context;
use super::download::Fetch;
use super::parts::HUB_RANGE;
use crate::bucket::client::{Bucket, Download};
use crate::bucket::error::{Cause, Failure};
use crate::bucket::keys;
use crate::error::{Error, Result};
use crate::hub::{self, Hub};
use crate::model::ids::BlobId;

/// Where a blob comes from. Each blob of a run may have another source.
#[derive(Debug, Clone)]
pub enum Source {
    /// The bucket, where a blob is found by its name.
    Bucket(Bucket),
    /// The Hub, where it is found as a file of a commit.
    Hub(Hub),
}

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

impl Source {
    /// Bytes that one request reads of a large blob of this size.
    pub(super) fn range(&self, context: &Context, size: u64) -> u64 {
        match self {
            Source::Hub(_) => HUB_RANGE,
            Source::Bucket(_) => context.cut().range(size, context.limits.parts.streams()),
        }
    }

    /// Opens a blob for reading: all of it, or the bytes from `range.0` to `range.1` (exclusive) of the object with this
    /// etag.
    pub(super) async fn open(
        &self,
        blob: &Fetch,
        range: Option<(u64, u64)>,
        etag: Option<&str>,
    ) -> Result<Body, Failure> {
        match self {
            Source::Bucket(bucket) => bucket.get(&keys::blob(&blob.id), range, etag).await.map(Body::Bucket),
            Source::Hub(hub) => hub.open(&blob.repo, &blob.commit, &blob.path, range).await.map(Body::Hub),
        }
    }

    pub(super) fn explain(&self, blob: &Fetch, failure: Failure) -> Error {
        let bucket = match self {
            Source::Hub(hub) => return hub.explain(failure, &format!("cannot get {} from the Hub", blob.label())),
            Source::Bucket(bucket) => bucket,
        };
        let doing = format!("cannot pull blob {} ({})", blob.id, blob.label());
        if failure.cause == Cause::NoSuchKey {
            return Error::new(Cause::NoSuchKey, doing)
                .because("the manifest names it, but the bucket does not have it")
                .hint("push it again from a machine that has it");
        }
        bucket.explain(failure, &doing)
    }

    pub(super) fn wrong_hash(&self, blob: &Fetch, found: &BlobId) -> Error {
        match self {
            Source::Hub(_) => {
                not_the_named_bytes(Cause::Corrupt, blob, format!("they hash to {found}, not to {}", blob.id))
            }
            Source::Bucket(_) => Error::corrupt(format!(
                "blob {} ({}) is corrupt in the bucket",
                blob.id,
                blob.label()
            ))
            .because(format!("its bytes hash to {found}"))
            .hint(format!(
                "pull it once more, best on another machine; if it persists, delete the key {} and push it again \
                         from one that has it",
                keys::blob(&blob.id)
            )),
        }
    }

    /// The bytes were wrong, and others each time.
    pub(super) fn damaged(&self, blob: &Fetch) -> Error {
        let from = match self {
            Source::Hub(_) => "the Hub",
            Source::Bucket(_) => "the bucket",
        };
        Error::new(Cause::Damaged, format!("blob {} ({}) does not arrive whole from {from}", blob.id, blob.label()))
            .because("its bytes are wrong, and others each time they are fetched")
            .hint(
                "run it again: what has arrived is kept; if it persists, check this machine's memory, disk and network",
            )
    }

    /// It has `found` bytes, which are too many or too few.
    pub(super) fn wrong_size(&self, blob: &Fetch, found: u64) -> Error {
        match self {
            Source::Hub(_) => {
                not_the_named_bytes(Cause::WrongSize, blob, format!("there are more than {} of them", blob.size))
            }
            Source::Bucket(_) => wrong_size_in_bucket(blob, &found.to_string()),
        }
    }

    /// It ends before a range that the manifest says it has.
    pub(super) fn too_short(&self, blob: &Fetch) -> Error {
        match self {
            Source::Hub(_) => {
                not_the_named_bytes(Cause::WrongSize, blob, format!("there are fewer than {} of them", blob.size))
            }
            Source::Bucket(_) => wrong_size_in_bucket(blob, "fewer"),
        }
    }
}

fn wrong_size_in_bucket(blob: &Fetch, found: &str) -> Error {
    Error::new(Cause::WrongSize, format!("blob {} ({}) has the wrong size in the bucket", blob.id, blob.label()))
        .because(format!("the manifest says {} bytes, the bucket has {found}", blob.size))
        .hint("push it again from a machine that has it: a wrong size is replaced")
}

fn not_the_named_bytes(cause: Cause, blob: &Fetch, why: String) -> Error {
    Error::new(cause, format!("the bytes of {} from the Hub are not those that it names", blob.label())).because(why)
}
