//! Sources of downloads: the bucket and the Hub. How blobs are read from them, and the errors when that fails.

use bytes::Bytes;

use super::Context;
use super::parts::HUB_RANGE;
use crate::bucket::client::{Bucket, Download};
use crate::bucket::keys;
use crate::error::{Cause, Error, Failure, Result};
use crate::hub::{self, Hub};
use crate::model::ids::{BlobId, Commit, RepoName, RepoPath};

/// A blob to download.
#[derive(Debug, Clone)]
pub struct Fetch {
    /// Its name.
    pub id: BlobId,
    /// Its size in bytes, according to the manifest.
    pub size: u64,
    /// A repo that contains it,
    pub repo: RepoName,
    /// in this revision,
    pub commit: Commit,
    /// as this file.
    pub path: RepoPath,
    /// Its source.
    pub source: Source,
}

impl Fetch {
    /// Returns a file name for display.
    pub fn label(&self) -> String {
        format!("{}/{}", self.repo, self.path)
    }
}

/// The source of a blob. Each blob of a run may have a different one.
#[derive(Debug, Clone)]
pub enum Source {
    /// The bucket, in which a blob is found by its name.
    Bucket(Bucket),
    /// The Hub, on which a blob is found as a file of a commit.
    Hub(Hub),
}

/// A stream of the bytes of a blob, or of a range of it.
pub(super) enum Body {
    Bucket(Download),
    Hub(hub::Body),
}

impl Body {
    /// Returns the next chunk; `None` at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        match self {
            Body::Bucket(download) => download.next().await,
            Body::Hub(body) => body.next().await,
        }
    }

    /// Returns the size of the whole object in bytes, if the source reports it.
    pub(super) fn object_size(&self) -> Option<u64> {
        match self {
            Body::Bucket(download) => download.object_size,
            Body::Hub(_) => None,
        }
    }

    /// Takes the ETag, which makes sure that later ranges belong to the same object. A file of a commit cannot change.
    pub(super) fn take_etag(&mut self) -> Option<String> {
        match self {
            Body::Bucket(download) => download.etag.take(),
            Body::Hub(_) => None,
        }
    }
}

impl Source {
    /// Returns how many bytes of a large blob of this size one request reads.
    pub(super) fn range(&self, context: &Context, size: u64) -> u64 {
        match self {
            Source::Hub(_) => HUB_RANGE,
            Source::Bucket(_) => context.cut().range(size, context.limits.parts.streams()),
        }
    }

    /// Opens a blob for reading: all of it, or the bytes from `range.0` to `range.1` (exclusive), if the object still has
    /// this ETag.
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

    /// Turns the failure of a request into an error.
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

    /// Returns the error for bytes that hash to another name.
    pub(super) fn wrong_hash(&self, blob: &Fetch, found: &BlobId) -> Error {
        match self {
            Source::Hub(_) => {
                wrong_bytes_from_hub(Cause::Corrupt, blob, format!("they hash to {found}, not to {}", blob.id))
            }
            Source::Bucket(_) => Error::corrupt(format!(
                "blob {} ({}) is corrupt in the bucket",
                blob.id,
                blob.label()
            ))
            .because(format!("its bytes hash to {found}"))
            .hint(format!(
                "try again, preferably on another machine; if it persists, run `hf-cache-sync verify --remote --deep \
                 --repair {}` on a machine that has a good copy",
                blob.repo
            )),
        }
    }

    /// Returns the error for bytes that were wrong, and different each time.
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

    /// Returns the error for a blob that has `found` bytes in the source: too many or too few.
    pub(super) fn wrong_size(&self, blob: &Fetch, found: u64) -> Error {
        match self {
            Source::Hub(_) => {
                wrong_bytes_from_hub(Cause::WrongSize, blob, format!("there are more than {} of them", blob.size))
            }
            Source::Bucket(_) => wrong_size_in_bucket(blob, &found.to_string()),
        }
    }

    /// Returns the error for a blob that ends before a requested range.
    pub(super) fn too_short(&self, blob: &Fetch) -> Error {
        match self {
            Source::Hub(_) => {
                wrong_bytes_from_hub(Cause::WrongSize, blob, format!("there are fewer than {} of them", blob.size))
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

fn wrong_bytes_from_hub(cause: Cause, blob: &Fetch, why: String) -> Error {
    Error::new(cause, format!("the bytes of {} from the Hub are not those that it names", blob.label())).because(why)
}
