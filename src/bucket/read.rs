//! Reads and validates manifests and refs. Nothing is cached here; [`super::state`] does that.

use std::time::SystemTime;

use super::client::{Bucket, Small};
use super::keys;
use crate::error::{Error, Result};
use crate::hash::md5_hex;
use crate::model::file_list::MAX_SIZE;
use crate::model::ids::Commit;
use crate::model::manifest::Manifest;

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

/// Reads the manifest under a key, and keeps its bytes in `memory`.
///
/// # Errors
/// If the request fails.
pub async fn manifest_to_remember(bucket: &Bucket, key: &str, memory: &dyn Memory) -> Result<Stored<Manifest>> {
    let read = async {
        let Some(small) = get_manifest(bucket, key).await? else { return Ok(None) };
        let manifest = parse_manifest(key, &small.bytes)?;
        memory.keep(&small.bytes);
        Ok(Some(manifest))
    };
    Stored::from_read(read.await)
}

/// Returns a manifest from the content that an object of this MD5 and size has; `None` if it is not remembered.
pub fn remembered_manifest(key: &str, md5: &str, size: u64, memory: &dyn Memory) -> Option<Manifest> {
    let bytes = memory.recall(md5, size)?;
    let is_same = bytes.len() as u64 == size && md5_hex(&bytes) == md5;
    parse_manifest(key, &bytes).ok().filter(|_| is_same)
}

/// Manifests that were read before, by the MD5 of their bytes.
pub trait Memory: Send + Sync {
    /// Returns the bytes with this MD5 and size. The caller checks both.
    fn recall(&self, md5: &str, size: u64) -> Option<Vec<u8>>;

    /// Remembers bytes.
    fn keep(&self, bytes: &[u8]);
}

/// Like [`manifest`], with the object's ETag if the store sends one.
///
/// # Errors
/// If the request fails.
pub async fn manifest_and_etag(bucket: &Bucket, key: &str) -> Result<Stored<(Manifest, Option<String>)>> {
    Stored::from_read(try_manifest(bucket, key).await)
}

async fn try_manifest(bucket: &Bucket, key: &str) -> Result<Option<(Manifest, Option<String>)>> {
    let Some(small) = get_manifest(bucket, key).await? else { return Ok(None) };
    Ok(Some((parse_manifest(key, &small.bytes)?, small.etag)))
}

async fn get_manifest(bucket: &Bucket, key: &str) -> Result<Option<Small>> {
    let doing = format!("cannot read {key}");
    bucket.get_small(key, MAX_SIZE).await.map_err(|failure| bucket.explain(failure, &doing))
}

/// Parses the content of a manifest's key.
fn parse_manifest(key: &str, bytes: &[u8]) -> Result<Manifest> {
    let invalid = |why: String| {
        Error::invalid(format!("the manifest {key} is not valid"))
            .because(why)
            .hint("push the revision again from a machine that has it")
    };
    let manifest = Manifest::parse(bytes).map_err(invalid)?;
    let own_key = keys::manifest(&manifest.repo().id, manifest.revision());
    if own_key != key {
        return Err(invalid(format!("it says that it is {}@{}", manifest.repo(), manifest.revision())));
    }
    Ok(manifest)
}

/// Reads a ref. Content that is not a commit hash is not valid.
///
/// # Errors
/// If the request fails.
pub async fn reference(bucket: &Bucket, key: &str) -> Result<Stored<Commit>> {
    Ok(reference_and_time(bucket, key).await?.map(|(commit, _)| commit))
}

/// Like [`reference`], with the time when it was last written, by the store's clock.
///
/// # Errors
/// If the request fails.
pub async fn reference_and_time(bucket: &Bucket, key: &str) -> Result<Stored<(Commit, Option<SystemTime>)>> {
    Stored::from_read(try_reference(bucket, key).await)
}

async fn try_reference(bucket: &Bucket, key: &str) -> Result<Option<(Commit, Option<SystemTime>)>> {
    let doing = format!("cannot read {key}");
    let small = bucket.get_small(key, MAX_REF).await.map_err(|failure| bucket.explain(failure, &doing))?;
    let Some(small) = small else { return Ok(None) };
    let text = String::from_utf8_lossy(&small.bytes);
    match text.trim().parse() {
        Ok(commit) => Ok(Some((commit, small.modified))),
        Err(why) => Err(Error::invalid(format!("the ref {key} in the bucket is not valid"))
            .because(why.to_string())
            .hint("push the repo again from a machine that has it, or pull a commit with -r")),
    }
}
