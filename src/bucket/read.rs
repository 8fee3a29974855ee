//! Reads and validates manifests and refs. Nothing is cached here; [`super::state`] does that.

use super::client::Bucket;
use super::keys;
use crate::error::{Error, Result};
use crate::model::ids::Commit;
use crate::model::manifest::Manifest;

/// Maximum size of a manifest in bytes.
pub const MAX_MANIFEST: u64 = 256 << 20;
/// Maximum size of a ref in bytes.
const MAX_REF: u64 = 256;

/// The content under a key.
#[derive(Debug, Clone)]
pub enum Stored<T> {
    /// Valid content.
    Valid(T),
    /// Invalid content; the error says what is wrong with it.
    Invalid(Error),
    /// There is no such object.
    Absent,
}

impl<T> Stored<T> {
    /// Turns the error for invalid content into a value. Failed requests remain errors.
    fn from_read(read: Result<Option<T>>) -> Result<Stored<T>> {
        match read {
            Ok(Some(content)) => Ok(Stored::Valid(content)),
            Ok(None) => Ok(Stored::Absent),
            Err(error) if error.cause.is_invalid() => Ok(Stored::Invalid(error)),
            Err(error) => Err(error),
        }
    }

    /// Returns the content if it is valid.
    pub fn valid(self) -> Option<T> {
        match self {
            Stored::Valid(content) => Some(content),
            Stored::Invalid(_) | Stored::Absent => None,
        }
    }

    /// Returns the content; `None` if there is no such object.
    ///
    /// # Errors
    /// If the content is not valid.
    pub fn checked(self) -> Result<Option<T>> {
        match self {
            Stored::Valid(content) => Ok(Some(content)),
            Stored::Invalid(error) => Err(error),
            Stored::Absent => Ok(None),
        }
    }

    /// Applies `change` to valid content.
    pub fn map<U>(self, change: impl FnOnce(T) -> U) -> Stored<U> {
        match self {
            Stored::Valid(content) => Stored::Valid(change(content)),
            Stored::Invalid(error) => Stored::Invalid(error),
            Stored::Absent => Stored::Absent,
        }
    }
}

/// Reads the manifest under a key. A manifest that belongs under another key is not valid.
///
/// # Errors
/// If the request fails.
pub async fn manifest(bucket: &Bucket, key: &str) -> Result<Stored<Manifest>> {
    Ok(manifest_and_etag(bucket, key).await?.map(|(manifest, _)| manifest))
}

/// Like [`manifest`], with the object's ETag if the store sends one.
///
/// # Errors
/// If the request fails.
pub async fn manifest_and_etag(bucket: &Bucket, key: &str) -> Result<Stored<(Manifest, Option<String>)>> {
    Stored::from_read(try_manifest(bucket, key).await)
}

async fn try_manifest(bucket: &Bucket, key: &str) -> Result<Option<(Manifest, Option<String>)>> {
    let doing = format!("cannot read {key}");
    let small = bucket.get_small(key, MAX_MANIFEST).await.map_err(|failure| bucket.explain(failure, &doing))?;
    let Some(small) = small else { return Ok(None) };
    let invalid = |why: String| {
        Error::invalid(format!("the manifest {key} is not valid"))
            .because(why)
            .hint("push the revision again from a machine that has it")
    };
    let manifest = Manifest::parse(&small.bytes).map_err(invalid)?;
    let own_key = keys::manifest(&manifest.repo().id, manifest.revision());
    if own_key != key {
        return Err(invalid(format!("it says that it is {}@{}", manifest.repo(), manifest.revision())));
    }
    Ok(Some((manifest, small.etag)))
}

/// Reads a ref. Content that is not a commit hash is not valid.
///
/// # Errors
/// If the request fails.
pub async fn reference(bucket: &Bucket, key: &str) -> Result<Stored<Commit>> {
    Stored::from_read(try_reference(bucket, key).await)
}

async fn try_reference(bucket: &Bucket, key: &str) -> Result<Option<Commit>> {
    let doing = format!("cannot read {key}");
    let small = bucket.get_small(key, MAX_REF).await.map_err(|failure| bucket.explain(failure, &doing))?;
    let Some(small) = small else { return Ok(None) };
    let text = String::from_utf8_lossy(&small.bytes);
    match text.trim().parse() {
        Ok(commit) => Ok(Some(commit)),
        Err(why) => Err(Error::invalid(format!("the ref {key} in the bucket is not valid"))
            .because(why.to_string())
            .hint("push the repo again from a machine that has it, or pull a commit with -r")),
    }
}
